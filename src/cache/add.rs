//! Adds a token response: the rows that msal (Python) 1.39 would write, without its defects.

use std::time::SystemTime;

use super::account::Account;
use super::claims::Claims;
use super::environment;
use super::error::CacheError;
use super::fields::{Field, Fields};
use super::json_text;
use super::map_key::KeyParts;
use super::response::TokenResponse;
use super::row_text::{RowFields, Value, with_fields};
use super::rows::{Kind, RowId, RowText};
use super::{TokenCache, unix_seconds};
use crate::secret::Secret;

/// How long an access token is taken to live when its response does not say, in seconds.
const DEFAULT_LIFETIME: i64 = 600;

/// The grant types by which a user signs in, as opposed to one that only refreshes.
const SIGN_IN_GRANTS: [&str; 5] =
    ["broker", "authorization_code", "password", "urn:ietf:params:oauth:grant-type:device_code", "user_fic"];

/// What [`TokenCache::add`] wrote.
///
/// ```
/// # use tokenseal::{TokenCache, TokenResponse};
/// # let response = TokenResponse::from_json(
/// #     r#"{"access_token":"at","expires_in":3600,"refresh_token":"rt"}"#)?
/// #     .client_id("app").environment("idp.example").realm("r").home_account_id("alice")
/// #     .requested_scopes(["read"]);
/// let added = TokenCache::new().add(&response)?;
/// assert_eq!(added.account().unwrap().environment(), "idp.example");
/// # Ok::<(), tokenseal::CacheError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Added {
    account: Option<Account>,
    is_signed_out: bool,
}

impl Added {
    /// The account that the tokens belong to; `None` for tokens of the application itself.
    pub fn account(&self) -> Option<&Account> {
        self.account.as_ref()
    }

    /// Whether nothing was added: the response answers a refresh, and its account was signed out
    /// since the refresh began.
    pub fn is_signed_out(&self) -> bool {
        self.is_signed_out
    }
}

/// Everything that is derived from a response before anything is written.
struct Derived<'a> {
    response: &'a TokenResponse,
    client_id: Option<&'a str>,
    environment: Option<String>,
    realm: Option<String>,
    home_account_id: Option<String>,
    id_claims: Option<Claims>,
    target: String,
    now: i64,
    access_token: Option<Secret>,
    refresh_token: Option<Secret>,
    id_token: Option<Secret>,
    family: Option<String>,
}

impl<'a> Derived<'a> {
    fn of(response: &'a TokenResponse, cache: &TokenCache) -> Result<Self, CacheError> {
        let body = &response.body;
        let (environment, realm) = environment_and_realm(response)?;
        let access_token = body.secret_of("access_token")?;
        let refresh_token = body.secret_of("refresh_token")?;
        let id_token = body.secret_of("id_token")?;
        let id_claims = match id_token.as_ref().map(|token| Claims::of_id_token(token.expose())) {
            // An encrypted token cannot be read, and need not be where the account is named.
            Some(Err(_)) if response.home_account_id.is_some() => None,
            claims => claims.transpose()?,
        };
        let home_account_id = match home_account_id(response, id_claims.as_ref())? {
            // The answer to a refresh need not say whose it is (OpenID Connect Core section 12.2).
            None => cache.owner_of_sent_refresh_token(response, environment.as_deref()),
            known => known,
        };
        let is_app_grant = match response.grant_type.as_deref() {
            _ if response.is_refresh() => false,
            None => refresh_token.is_none() && id_token.is_none(),
            Some(grant_type) => grant_type == "client_credentials",
        };
        if home_account_id.is_none() && !is_app_grant {
            return Err(CacheError::NoAccount);
        }
        Ok(Self {
            client_id: response.client_id.as_deref(),
            environment,
            realm,
            home_account_id,
            id_claims,
            target: target(response)?,
            now: unix_seconds(response.received_at.unwrap_or_else(SystemTime::now)),
            access_token,
            refresh_token,
            id_token,
            family: family(response),
            response,
        })
    }

    fn parts(&self) -> KeyParts<'_> {
        KeyParts {
            home_account_id: self.home_account_id.as_deref().unwrap_or_default(),
            environment: self.environment.as_deref().unwrap_or_default(),
            client_id: self.client_id.unwrap_or_default(),
            realm: self.realm.as_deref().unwrap_or_default(),
            target: &self.target,
            ext_cache_key: None,
        }
    }

    /// When the access token expires, and when its extended lifetime does.
    fn expiry(&self) -> Result<(i64, i64), CacheError> {
        let body = &self.response.body;
        let lifetime = match body.seconds_of("expires_in")? {
            Some(lifetime) => lifetime,
            None => match body.seconds_of("expires_on")?.filter(|&expires_on| expires_on != 0) {
                Some(expires_on) => expires_on.saturating_sub(self.now),
                None => DEFAULT_LIFETIME,
            },
        };
        let extended = body.seconds_of("ext_expires_in")?.unwrap_or(lifetime);
        Ok((self.now.saturating_add(lifetime), self.now.saturating_add(extended)))
    }

    fn username(&self) -> &str {
        self.response.username.as_deref().unwrap_or_default()
    }
}

fn environment_and_realm(response: &TokenResponse) -> Result<(Option<String>, Option<String>), CacheError> {
    let (mut environment, mut realm) = (None, None);
    if let Some(url) = &response.token_endpoint {
        let (host, first_segment) = environment::of_token_endpoint(url)?;
        if first_segment.is_none() && response.realm.is_none() {
            return Err(CacheError::TokenEndpoint { reason: "has no path that names a realm" });
        }
        (environment, realm) = (Some(host), first_segment);
    }
    Ok((response.environment.clone().or(environment), response.realm.clone().or(realm)))
}

fn home_account_id(
    response: &TokenResponse,
    id_claims: Option<&Claims>,
) -> Result<Option<String>, CacheError> {
    if let Some(named) = response.home_account_id.clone().filter(|named| !named.is_empty()) {
        return Ok(Some(named));
    }
    if let Some(client_info) = response.body.text_of("client_info")? {
        let client_info = Claims::of_client_info(&client_info)?;
        if let (Some(uid), Some(utid)) = (client_info.text("uid"), client_info.text("utid")) {
            return Ok(Some(format!("{uid}.{utid}")));
        }
    }
    Ok(id_claims.and_then(|claims| claims.text("sub")))
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

fn target(response: &TokenResponse) -> Result<String, CacheError> {
    let scope = response.body.text_of("scope")?;
    let mut scopes: Vec<&str> = match (&response.granted_scopes, &scope) {
        (Some(granted), _) => granted.iter().map(String::as_str).collect(),
        (None, Some(scope)) => scope.split_ascii_whitespace().collect(),
        (None, None) => response.requested_scopes.iter().map(String::as_str).collect(),
    };
    scopes.sort_unstable();
    Ok(scopes.join(" "))
}

impl TokenCache {
    /// Adds the tokens of a response: rows for the access token, refresh token, id token, account
    /// and application, each in the place of the one it renews.
    ///
    /// The rows and their keys are those of msal (Python) 1.39; the differences are listed in the
    /// [module documentation](crate#where-tokenseal-differs-from-msal-python).
    ///
    /// # Errors
    /// [`CacheError`] if the response cannot be understood, if nothing says whose tokens they are, or
    /// if the cache cannot take them. Nothing is changed then.
    pub fn add(&mut self, response: &TokenResponse) -> Result<Added, CacheError> {
        let derived = Derived::of(response, self)?;
        let is_refresh = response.is_refresh();
        if is_refresh && self.is_signed_out(&derived) {
            return Ok(Added { account: None, is_signed_out: true });
        }
        let (expires_on, extended_expires_on) = derived.expiry()?;
        let refresh_in = response.body.seconds_of("refresh_in")?;
        let token_type = response.body.text_of("token_type")?;
        let account_is_written = derived.home_account_id.is_some() && !is_refresh;
        for (kind, is_written) in [
            (Kind::AccessToken, derived.access_token.is_some()),
            (Kind::Account, account_is_written),
            (Kind::IdToken, derived.id_token.is_some()),
            (Kind::RefreshToken, derived.refresh_token.is_some()),
            (Kind::AppMetadata, true),
        ] {
            if is_written && self.rows.is_unusable(kind) {
                return Err(CacheError::UnusableSection { section: kind.name() });
            }
        }

        if let Some(access_token) = &derived.access_token {
            let times = AccessTokenTimes {
                cached_at: derived.now.to_string(),
                expires_on: expires_on.to_string(),
                extended_expires_on: extended_expires_on.to_string(),
                refresh_on: refresh_in.map(|seconds| derived.now.saturating_add(seconds).to_string()),
            };
            let token_type = token_type.as_deref().unwrap_or("Bearer");
            self.add_access_token(&derived, access_token, token_type, &times);
        }
        if account_is_written {
            self.add_account(&derived);
        }
        if let Some(id_token) = &derived.id_token {
            self.add_id_token(&derived, id_token);
        }
        if let Some(refresh_token) = &derived.refresh_token {
            self.add_refresh_token(&derived, refresh_token);
        }
        self.add_app_metadata(&derived);
        self.changed();
        let account = derived.home_account_id.as_ref().map(|home_account_id| {
            let environment = derived.environment.as_deref().unwrap_or_default();
            self.find_account(home_account_id, environment).unwrap_or_else(|| {
                let realm = derived.realm.as_deref().unwrap_or_default();
                Account::bare(home_account_id, environment, realm)
            })
        });
        Ok(Added { account, is_signed_out: false })
    }

    /// Whose refresh token was sent, as far as the cache still has it.
    fn owner_of_sent_refresh_token(
        &self,
        response: &TokenResponse,
        environment: Option<&str>,
    ) -> Option<String> {
        let sent = response.sent_refresh_token.as_ref()?;
        self.rows.all(Kind::RefreshToken).map(|row| self.rows.fields(row)).find_map(|fields| {
            let is_it =
                self.is_in(&fields, environment) && fields.secret().is_some_and(|secret| secret == *sent);
            is_it.then(|| fields.text(Field::HomeAccountId).map(std::borrow::Cow::into_owned))?
        })
    }

    /// Whether the account has neither an account row nor a refresh token: so a sign-out leaves it.
    fn is_signed_out(&self, derived: &Derived<'_>) -> bool {
        let Some(owner) = &derived.home_account_id else { return false };
        let environment = derived.environment.as_deref().unwrap_or_default();
        [Kind::Account, Kind::RefreshToken]
            .into_iter()
            .all(|kind| self.rows_of(kind, owner, environment).is_empty())
    }

    fn add_access_token(
        &mut self,
        derived: &Derived<'_>,
        secret: &Secret,
        token_type: &str,
        times: &AccessTokenTimes,
    ) {
        let ext_cache_key = derived.response.ext_cache_key();
        let key_id = derived.response.key_id();
        let parts = KeyParts { ext_cache_key: ext_cache_key.as_deref(), ..derived.parts() };
        let mut row = RowFields::default();
        row.put("credential_type", Value::Text("AccessToken"));
        row.put("secret", Value::Text(secret.expose()));
        row.put("home_account_id", derived.home_account_id.as_deref());
        row.put("environment", derived.environment.as_deref());
        row.put("client_id", derived.client_id);
        row.put("target", Value::Text(&derived.target));
        row.put("realm", derived.realm.as_deref());
        row.put("token_type", Value::Text(token_type));
        row.put("cached_at", Value::Text(&times.cached_at));
        row.put("expires_on", Value::Text(&times.expires_on));
        row.put("extended_expires_on", Value::Text(&times.extended_expires_on));
        if let Some(key_id) = key_id {
            row.put("key_id", Value::Text(key_id));
        }
        if let Some(ext_cache_key) = &ext_cache_key {
            row.put("ext_cache_key", Value::Text(ext_cache_key));
        }
        if let Some(refresh_on) = &times.refresh_on {
            row.put("refresh_on", Value::Text(refresh_on));
        }
        // Under its own key msal lets a token of another type replace this one. In a row that another
        // SDK wrote under another key, the type and key must be the same.
        let is_same_token = |fields: &Fields<'_>| {
            fields.text(Field::KeyId).as_deref() == key_id
                && fields
                    .text(Field::TokenType)
                    .as_deref()
                    .unwrap_or("Bearer")
                    .eq_ignore_ascii_case(token_type)
                && fields.text(Field::UserAssertionHash).is_none()
        };
        match self.slot(Kind::AccessToken, &parts, is_same_token) {
            Slot::Taken(old) => self.rewrite(Kind::AccessToken, old, |key, _| row.write(key)),
            Slot::Free(key) => self.rows.insert(Kind::AccessToken, row.write(&key)),
        }
    }

    fn add_account(&mut self, derived: &Derived<'_>) {
        let claim = |name| derived.id_claims.as_ref().and_then(|claims| claims.text(name));
        let local_account_id = claim("oid").or_else(|| claim("sub"));
        let username = claim("preferred_username").or_else(|| claim("upn"));
        let is_adfs = derived.realm.as_deref() == Some("adfs");
        let authority_type = derived.response.authority_type.as_deref();
        let grant_type = derived.response.grant_type.as_deref();
        let mut row = RowFields::default();
        row.put("home_account_id", derived.home_account_id.as_deref());
        row.put("environment", derived.environment.as_deref());
        row.put("realm", derived.realm.as_deref());
        row.put("local_account_id", local_account_id.as_deref());
        row.put("username", Value::Text(username.as_deref().unwrap_or(derived.username())));
        row.put(
            "authority_type",
            Value::Text(authority_type.unwrap_or(if is_adfs { "ADFS" } else { "MSSTS" })),
        );
        if let Some(grant_type) = grant_type.filter(|grant_type| SIGN_IN_GRANTS.contains(grant_type)) {
            row.put("account_source", Value::Text(grant_type));
        }
        match self.slot(Kind::Account, &derived.parts(), |_| true) {
            Slot::Taken(old) => self.rewrite(Kind::Account, old, |key, value| row.merge(key, value)),
            Slot::Free(key) => self.rows.insert(Kind::Account, row.write(&key)),
        }
    }

    fn add_id_token(&mut self, derived: &Derived<'_>, secret: &Secret) {
        let mut row = RowFields::default();
        row.put("credential_type", Value::Text("IdToken"));
        row.put("secret", Value::Text(secret.expose()));
        row.put("home_account_id", derived.home_account_id.as_deref());
        row.put("environment", derived.environment.as_deref());
        row.put("realm", derived.realm.as_deref());
        row.put("client_id", derived.client_id);
        let is_same_token = |fields: &Fields<'_>| fields.text(Field::UserAssertionHash).is_none();
        match self.slot(Kind::IdToken, &derived.parts(), is_same_token) {
            Slot::Taken(old) => self.rewrite(Kind::IdToken, old, |key, _| row.write(key)),
            Slot::Free(key) => self.rows.insert(Kind::IdToken, row.write(&key)),
        }
    }

    fn add_refresh_token(&mut self, derived: &Derived<'_>, secret: &Secret) {
        let modified = derived.now.to_string();
        if self.renew_sent_refresh_token(derived, secret, &modified) {
            return;
        }
        if derived.response.sent_refresh_token.is_some() && self.has_refresh_token(derived) {
            // The one that was sent is gone and another came: a newer sign-in, which this must not undo.
            return;
        }
        let mut row = RowFields::default();
        row.put("credential_type", Value::Text("RefreshToken"));
        row.put("secret", Value::Text(secret.expose()));
        row.put("home_account_id", derived.home_account_id.as_deref());
        row.put("environment", derived.environment.as_deref());
        row.put("client_id", derived.client_id);
        row.put("target", Value::Text(&derived.target));
        row.put("last_modification_time", Value::Text(&modified));
        if let Some(family) = &derived.family {
            row.put("family_id", Value::Text(family));
        }
        // The other SDKs write no target: their one row for the client is the one that is renewed.
        let is_same_token = |fields: &Fields<'_>| {
            fields.text(Field::FamilyId).as_deref() == derived.family.as_deref()
                && fields.text(Field::UserAssertionHash).is_none()
        };
        match self.slot(Kind::RefreshToken, &derived.parts(), is_same_token) {
            Slot::Taken(old) => self.rewrite(Kind::RefreshToken, old, |key, _| row.write(key)),
            Slot::Free(key) => self.rows.insert(Kind::RefreshToken, row.write(&key)),
        }
    }

    /// Whether the client has a refresh token of this user.
    fn has_refresh_token(&self, derived: &Derived<'_>) -> bool {
        let Some(owner) = &derived.home_account_id else { return false };
        let environment = derived.environment.as_deref().unwrap_or_default();
        let rows = self.rows_of(Kind::RefreshToken, owner, environment);
        let client_id = derived.client_id.unwrap_or_default();
        rows.into_iter().any(|row| self.rows.fields(row).is(Field::ClientId, client_id))
    }

    /// Puts a rotated refresh token in every row that holds the one it replaces.
    fn renew_sent_refresh_token(&mut self, derived: &Derived<'_>, secret: &Secret, modified: &str) -> bool {
        let (Some(sent), Some(owner)) = (&derived.response.sent_refresh_token, &derived.home_account_id)
        else {
            return false;
        };
        let environment = derived.environment.as_deref().unwrap_or_default();
        let holders = self.refresh_tokens_with_secret(owner, environment, sent);
        for &row in &holders {
            self.rewrite(Kind::RefreshToken, row, |key, value| {
                let secret = (Field::Secret, "secret", secret.expose());
                let modified = (Field::LastModificationTime, "last_modification_time", modified);
                with_fields(key, value, &[secret, modified])
            });
        }
        !holders.is_empty()
    }

    fn add_app_metadata(&mut self, derived: &Derived<'_>) {
        let mut row = RowFields::default();
        row.put("client_id", derived.client_id);
        row.put("environment", derived.environment.as_deref());
        if let Some(family) = &derived.family {
            row.put("family_id", Value::Text(family));
        }
        match self.slot(Kind::AppMetadata, &derived.parts(), |_| true) {
            Slot::Taken(old) => self.rewrite(Kind::AppMetadata, old, |key, value| row.merge(key, value)),
            Slot::Free(key) => self.rows.insert(Kind::AppMetadata, row.write(&key)),
        }
    }

    /// Finds the row that a new one renews, whichever SDK wrote it, or a key that is free.
    fn slot(
        &mut self,
        kind: Kind,
        parts: &KeyParts<'_>,
        is_same_token: impl Fn(&Fields<'_>) -> bool,
    ) -> Slot {
        let plain = parts.map_key(kind);
        let in_the_way = self.rows.under_map_key(kind, &plain);
        if let Some(row) = in_the_way.filter(|&row| self.is_same_row(kind, row, parts)) {
            return Slot::Taken(row);
        }
        let under_other_keys = self.rows.of_identity(kind, parts);
        let renewed = under_other_keys
            .into_iter()
            .find(|&row| self.is_same_row(kind, row, parts) && is_same_token(&self.rows.fields(row)));
        if let Some(row) = renewed {
            return Slot::Taken(row);
        }
        let key = if in_the_way.is_none() { plain } else { parts.distinct_map_key(kind) };
        self.rows.under_map_key(kind, &key).map_or_else(|| Slot::Free(json_text::encoded(&key)), Slot::Taken)
    }

    /// Whether a row is the one that `parts` name, by its fields.
    fn is_same_row(&self, kind: Kind, row: RowId, parts: &KeyParts<'_>) -> bool {
        let fields = self.rows.fields(row);
        let text = |field| fields.text(field).unwrap_or_default();
        let same = |field, wanted: &str| text(field) == wanted;
        let environment = text(Field::Environment).eq_ignore_ascii_case(parts.environment);
        let owner = same(Field::HomeAccountId, parts.home_account_id);
        let client = same(Field::ClientId, parts.client_id);
        let realm = same(Field::Realm, parts.realm);
        environment
            && match kind {
                Kind::AccessToken => {
                    owner
                        && client
                        && realm
                        && fields.has_scopes_of(parts.target)
                        && fields.ext_cache_key().as_deref() == parts.ext_cache_key
                }
                Kind::RefreshToken => {
                    let target = text(Field::Target);
                    owner && client && (target.is_empty() || fields.has_scopes_of(parts.target))
                }
                Kind::IdToken => owner && client && realm,
                Kind::Account => owner && realm,
                Kind::AppMetadata => client,
            }
    }

    /// Replaces a row's text, unless it stays the same.
    fn rewrite(&mut self, kind: Kind, row: RowId, write: impl FnOnce(&str, &str) -> RowText) {
        let text = write(self.rows.raw_key(row), self.rows.value(row));
        if text.value() != self.rows.value(row) {
            self.rows.replace(kind, row, text);
        }
    }
}

struct AccessTokenTimes {
    cached_at: String,
    expires_on: String,
    extended_expires_on: String,
    refresh_on: Option<String>,
}

/// Where a new row goes.
enum Slot {
    /// Into the place of this row.
    Taken(RowId),
    /// Under this raw key, which no row has.
    Free(String),
}
