//! Everything that is derived from a token response before anything is written.

use std::time::{Duration, SystemTime};

use super::TokenCache;
use super::claims::Claims;
use super::environment;
use super::error::CacheError;
use super::error_response::{ErrorResponse, code};
use super::json_text;
use super::map_key::KeyParts;
use super::owner::{Identification, SentToken};
use super::response::{Lifetime, Seconds, TokenResponse};
use super::scopes::split_scopes;
use super::token::ENDLESS;
use super::unix_seconds;
use crate::secret::Secret;

/// How long an access token is taken to live when its response does not say, in seconds.
const DEFAULT_LIFETIME: i64 = 600;

pub(super) struct Derived<'a> {
    pub(super) response: &'a TokenResponse,
    pub(super) client_id: String,
    pub(super) environment: String,
    pub(super) realm: Option<String>,
    pub(super) home_account_id: Option<String>,
    /// Who issued the id token, where accounts are told apart by it.
    pub(super) issuer: Option<String>,
    /// Whether only the program said whose the tokens are.
    pub(super) is_named: bool,
    pub(super) id_claims: Option<Claims>,
    pub(super) target: String,
    pub(super) now: i64,
    pub(super) access_token: Option<Secret>,
    pub(super) refresh_token: Option<Secret>,
    pub(super) id_token: Option<Secret>,
    pub(super) family: Option<String>,
}

impl<'a> Derived<'a> {
    pub(super) fn of(response: &'a TokenResponse, cache: &TokenCache) -> Result<Self, CacheError> {
        let body = &response.body;
        if let Some(ErrorResponse { code: error, .. }) = ErrorResponse::in_success(body) {
            return Err(CacheError::ErrorResponse { error: error.unwrap_or_else(|| code("")) });
        }
        if !body.has_tokens() {
            return Err(CacheError::NoTokens);
        }
        let access_token = body.secret_of("access_token")?;
        let refresh_token = body.secret_of("refresh_token")?;
        let id_token = body.secret_of("id_token")?;

        let sent = cache.sent_token(response);
        let is_known = response.home_account_id.as_ref().is_some_and(|named| !named.is_empty())
            || sent.as_ref().is_some_and(|sent| sent.home_account_id.is_some());
        let said = Identification::read(response, is_known)?;
        let place = Place::of(response, sent.as_ref())?;
        let client_id = client_id(response, sent.as_ref())?;
        let (home_account_id, issuer, is_named) = match &sent {
            Some(sent) if sent.home_account_id.is_some() => {
                cache.check_same_user(sent, Some(&client_id), &said)?;
                (sent.home_account_id.clone(), sent.issuer.clone(), false)
            }
            // The answer to a refresh need not say whose it is.
            _ => match said.owner(response) {
                Some(owner) => (Some(owner.home_account_id), owner.issuer, owner.is_named),
                None => (None, None, false),
            },
        };
        if let (Some(owner), None, None) = (&home_account_id, &issuer, &sent)
            && cache.has_users_of_several_issuers(owner, &place.environment)
        {
            return Err(CacheError::NotNamed { what: "issuer", how: "issuer" });
        }
        let issuer = match (&home_account_id, is_named) {
            (Some(owner), true) => issuer.or_else(|| cache.only_issuer(owner, &place.environment)),
            _ => issuer,
        };
        let is_app_grant = match response.grant_type.as_deref() {
            _ if response.is_refresh() => false,
            None => refresh_token.is_none() && id_token.is_none(),
            Some(grant_type) => grant_type == "client_credentials",
        };
        if home_account_id.is_none() && !is_app_grant {
            return Err(CacheError::NoAccount);
        }
        let mut derived = Self {
            client_id,
            environment: place.environment,
            realm: place.realm,
            home_account_id,
            issuer,
            is_named,
            id_claims: said.claims,
            target: String::new(),
            now: unix_seconds(response.received_at.unwrap_or_else(SystemTime::now)),
            access_token,
            refresh_token,
            id_token,
            family: family(response),
            response,
        };
        let needs_realm = derived.access_token.is_some() || derived.id_token.is_some();
        if sent.is_some() && response.realm.is_none() && needs_realm {
            derived.realm = cache.realm_of_refresh(&derived)?;
        }
        let granted = response.granted().or_else(|| cache.scopes_of_sign_in(sent.as_ref()));
        derived.target = sorted(&granted.unwrap_or_default());
        Ok(derived)
    }

    pub(super) fn parts(&self) -> KeyParts<'_> {
        KeyParts {
            home_account_id: self.home_account_id.as_deref().unwrap_or_default(),
            environment: &self.environment,
            client_id: &self.client_id,
            realm: self.realm.as_deref().unwrap_or_default(),
            target: &self.target,
            ext_cache_key: None,
            issuer: self.issuer.as_deref(),
        }
    }

    /// When the access token expires, and when its extended lifetime does. `has_refresh_token`: whether
    /// there is one to get another access token by.
    pub(super) fn expiry(&self, has_refresh_token: bool) -> (i64, i64) {
        let body = &self.response.body;
        let after = |lifetime: i64| self.now.saturating_add(lifetime);
        let expires_on = match self.response.lifetime {
            Some(Lifetime::For(lifetime)) => after(whole_seconds(lifetime)),
            Some(Lifetime::Until(expires_on)) => unix_seconds(expires_on),
            Some(Lifetime::Endless) => ENDLESS,
            None => {
                let instant = || body.instant_of("expires_on").filter(|&expires_on| expires_on != 0);
                match body.seconds_of("expires_in") {
                    Seconds::Read(lifetime) => after(lifetime),
                    found => match instant() {
                        Some(expires_on) => expires_on,
                        // GitHub's and Slack's: there is nothing to renew it by, for it does not end.
                        None if found == Seconds::Absent
                            && body.raw("expires_on").is_none()
                            && self.home_account_id.is_some()
                            && !has_refresh_token =>
                        {
                            ENDLESS
                        }
                        None => after(DEFAULT_LIFETIME),
                    },
                }
            }
        };
        let extended = match body.seconds_of("ext_expires_in") {
            Seconds::Read(extended) if self.response.lifetime.is_none() => after(extended),
            _ => expires_on,
        };
        (expires_on, extended)
    }

    pub(super) fn username(&self) -> &str {
        self.response.username.as_deref().unwrap_or_default()
    }
}

fn whole_seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

/// The environment and the realm.
struct Place {
    environment: String,
    realm: Option<String>,
}

impl Place {
    fn of(response: &TokenResponse, sent: Option<&SentToken>) -> Result<Self, CacheError> {
        let (mut environment, mut realm) = (None, None);
        if let Some(url) = &response.token_endpoint {
            match environment::of_token_endpoint(url) {
                Ok((_, None)) if response.realm.is_none() && sent.is_none() => {
                    return Err(CacheError::TokenEndpoint { reason: "has no path that names a realm" });
                }
                Ok((host, first_segment)) => (environment, realm) = (Some(host), first_segment),
                // Where the tokens belong is known from the one that was sent.
                Err(_) if sent.is_some() => {}
                Err(error) => return Err(error),
            }
        }
        let known = sent.and_then(|sent| sent.environment.clone());
        let environment = known.or_else(|| response.environment.clone()).or(environment);
        let environment = environment.filter(|environment| !environment.is_empty());
        Ok(Self {
            environment: environment.ok_or(CacheError::NotNamed {
                what: "environment",
                how: "token_endpoint` or `environment",
            })?,
            realm: response.realm.clone().or(realm),
        })
    }
}

/// The client: of the token that was sent, unless a family shares that.
fn client_id(response: &TokenResponse, sent: Option<&SentToken>) -> Result<String, CacheError> {
    let named = response.client_id.clone().filter(|client_id| !client_id.is_empty());
    let known = sent.and_then(|sent| sent.client_id.clone());
    let shares = sent.is_some_and(|sent| sent.is_of_a_family);
    let client_id = if shares { named.or(known) } else { known.or(named) };
    client_id.ok_or(CacheError::NotNamed { what: "client", how: "client_id" })
}

/// The response's `foci`. A number is taken for its digits; anything else names no family.
fn family(response: &TokenResponse) -> Option<String> {
    let raw = response.body.raw("foci")?;
    let family = if raw.bytes().all(|byte| byte.is_ascii_digit()) {
        raw.into()
    } else {
        json_text::decode(raw)?.into_owned()
    };
    (!family.is_empty()).then_some(family)
}

fn sorted(scopes: &str) -> String {
    let mut scopes: Vec<&str> = split_scopes(scopes).collect();
    scopes.sort_unstable();
    scopes.join(" ")
}
