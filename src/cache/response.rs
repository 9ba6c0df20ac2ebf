//! A token response as a program hands it to the cache, and what is known about its request.

use std::fmt;
use std::time::{Duration, SystemTime};

use super::environment::of_token_endpoint;
use super::error::CacheError;
use super::fields::ext_cache_key;
use super::form;
use super::json::{self, Scanner};
use super::json_text;
use super::scopes::listed;
use crate::secret::{Secret, SecretBytes};

/// A token response (RFC 6749 section 5.1, OpenID Connect Core section 3.1.3.3) with what the cache
/// must know about the request that it answers.
///
/// Take the JSON body as it came from the server ([`TokenResponse::from_json`]), or any type that
/// serializes to it, such as `oauth2`'s ([`TokenResponse::from_serialize`]).
///
/// ```
/// use tokenseal::{TokenCache, TokenResponse};
///
/// let body = r#"{"access_token":"at","expires_in":3600,"refresh_token":"rt"}"#;
/// let response = TokenResponse::from_json(body)?
///     .client_id("my-client")
///     .token_endpoint("https://idp.example.com/realms/shop/protocol/openid-connect/token")
///     .realm("shop")
///     .home_account_id("alice")
///     .requested_scopes(["orders.read"])
///     .grant_type("authorization_code");
/// let added = TokenCache::new().add(&response)?;
/// assert_eq!(added.account().unwrap().home_account_id(), "alice");
/// # Ok::<(), tokenseal::CacheError>(())
/// ```
#[must_use = "add it to a cache"]
pub struct TokenResponse {
    pub(crate) body: Body,
    pub(crate) client_id: Option<String>,
    pub(crate) token_endpoint: Option<String>,
    pub(crate) environment: Option<String>,
    pub(crate) realm: Option<String>,
    pub(crate) home_account_id: Option<String>,
    pub(crate) issuer: Option<String>,
    pub(crate) grant_type: Option<String>,
    pub(crate) granted_scopes: Option<Vec<String>>,
    pub(crate) requested_scopes: Vec<String>,
    pub(crate) username: Option<String>,
    pub(crate) authority_type: Option<String>,
    pub(crate) parameters: Vec<(String, Secret)>,
    pub(crate) sent_refresh_token: Option<Secret>,
    pub(crate) received_at: Option<SystemTime>,
    pub(crate) lifetime: Option<Lifetime>,
    /// The realm that was asked for, which the answer to a refresh belongs to unless it says otherwise.
    pub(crate) expected_realm: Option<String>,
    /// Where it is known rather than the parameters that it stands for.
    pub(crate) named_ext_cache_key: Option<String>,
    pub(crate) establishes_account: bool,
}

/// How long the access token lives, where the program knows better than the response.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Lifetime {
    For(Duration),
    Until(SystemTime),
    Endless,
}

impl TokenResponse {
    /// Takes the JSON body of a token response. The bytes are wiped when the response is dropped;
    /// hand over a `Vec<u8>` or `String` rather than a slice, or a copy stays with you.
    ///
    /// # Errors
    /// [`CacheError::MalformedResponse`] if it is not a JSON object.
    pub fn from_json(body: impl Into<SecretBytes>) -> Result<Self, CacheError> {
        Ok(Self {
            body: Body::parse(body.into())?,
            client_id: None,
            token_endpoint: None,
            environment: None,
            realm: None,
            home_account_id: None,
            issuer: None,
            grant_type: None,
            granted_scopes: None,
            requested_scopes: Vec::new(),
            username: None,
            authority_type: None,
            parameters: Vec::new(),
            sent_refresh_token: None,
            received_at: None,
            lifetime: None,
            expected_realm: None,
            named_ext_cache_key: None,
            establishes_account: true,
        })
    }

    /// Takes the form-encoded body of a token response (`application/x-www-form-urlencoded`), as GitHub
    /// sends it unless it is asked for JSON.
    ///
    /// ```
    /// let body = "access_token=at&scope=repo%2Cgist&token_type=bearer";
    /// let response = tokenseal::TokenResponse::from_form(body)?.client_id("my-client");
    /// # Ok::<(), tokenseal::CacheError>(())
    /// ```
    ///
    /// # Errors
    /// [`CacheError::MalformedResponse`] if it is not UTF-8 text.
    pub fn from_form(body: impl Into<SecretBytes>) -> Result<Self, CacheError> {
        Self::from_json(form::to_json(&body.into()).ok_or(CacheError::MalformedResponse { offset: 0 })?)
    }

    /// Takes a token response of any type that serializes to the JSON of RFC 6749, such as
    /// `oauth2::StandardTokenResponse`. What is serialized on the way is wiped.
    ///
    /// # Errors
    /// [`CacheError::MalformedResponse`] if it does not serialize to a JSON object.
    pub fn from_serialize(response: &impl serde::Serialize) -> Result<Self, CacheError> {
        let mut body = SecretBytes::with_capacity(4096);
        serde_json::to_writer(&mut body, response)
            .map_err(|_carries_values| CacheError::MalformedResponse { offset: 0 })?;
        Self::from_json(body)
    }

    /// The client that the tokens were issued to.
    pub fn client_id(mut self, client_id: impl Into<String>) -> Self {
        self.client_id = Some(client_id.into());
        self
    }

    /// The URL that answered. The environment is its host and the realm the first segment of its
    /// path, unless they are named; only https is taken, and http to this machine.
    pub fn token_endpoint(mut self, url: impl Into<String>) -> Self {
        self.token_endpoint = Some(url.into());
        self
    }

    /// The identity provider, where the host of the token endpoint does not tell: give
    /// `host:port` when several listen on one host.
    pub fn environment(mut self, environment: impl Into<String>) -> Self {
        self.environment = Some(environment.into());
        self
    }

    /// The tenant or realm, where the first segment of the token endpoint's path does not tell.
    pub fn realm(mut self, realm: impl Into<String>) -> Self {
        self.realm = Some(realm.into());
        self
    }

    /// The issuer that the user is one of (`iss`), for a response without an id token whose account the program
    /// names: where a host has several issuers, such as Keycloak's realms, an id says whose it is only with
    /// its issuer. [`Account::issuer`](crate::Account::issuer) is that of an account.
    pub fn issuer(mut self, issuer: impl Into<String>) -> Self {
        self.issuer = Some(issuer.into());
        self
    }

    /// The account that the tokens belong to, where neither `client_info` nor the `id_token` of the
    /// response tells. It must be unique within the environment.
    pub fn home_account_id(mut self, home_account_id: impl Into<String>) -> Self {
        self.home_account_id = Some(home_account_id.into());
        self
    }

    /// The grant type of the request, such as `authorization_code` or `client_credentials`.
    pub fn grant_type(mut self, grant_type: impl Into<String>) -> Self {
        self.grant_type = Some(grant_type.into());
        self
    }

    /// The scopes asked for. They count where the response names no `scope`, which means that all
    /// of them were granted (RFC 6749 section 5.1).
    pub fn requested_scopes<S: Into<String>>(mut self, scopes: impl IntoIterator<Item = S>) -> Self {
        self.requested_scopes = listed(scopes);
        self
    }

    /// The scopes to keep the tokens under, whatever the response's `scope` says. This is what
    /// MSAL's events call `scope`.
    pub fn granted_scopes<S: Into<String>>(mut self, scopes: impl IntoIterator<Item = S>) -> Self {
        self.granted_scopes = Some(listed(scopes));
        self
    }

    /// The user name that was signed in with, where the `id_token` has none.
    pub fn username(mut self, username: impl Into<String>) -> Self {
        self.username = Some(username.into());
        self
    }

    /// The kind of authority: `MSSTS` unless named (`ADFS` where the realm is `adfs`).
    pub fn authority_type(mut self, authority_type: impl Into<String>) -> Self {
        self.authority_type = Some(authority_type.into());
        self
    }

    /// A further parameter of the token request (what MSAL calls `data`). `key_id` is kept with the
    /// access token; any that is no standard parameter, such as `fmi_path`, sets the token apart
    /// under an extended cache key. Standard ones (a `client_secret`, say) are not kept at all.
    pub fn parameter(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        let (name, value) = (name.into(), value.into());
        match name.as_str() {
            "refresh_token" => return self.sent_refresh_token(value),
            "username" => self.username = self.username.or(Some(value)),
            other if other != "key_id" && is_standard_parameter(other) => drop(Secret::from(value)),
            _ => self.parameters.push((name, Secret::from(value))),
        }
        self
    }

    /// The refresh token that was sent for this response (grant type `refresh_token`). A new one in
    /// the response replaces it in every row that holds it, whichever SDK wrote the row; without it
    /// the old token would stay beside the new one.
    ///
    /// The account, the environment and the client are those of that row, whatever this response names. If
    /// the response says that it is about another user, [`add`](crate::TokenCache::add) fails.
    ///
    /// It also says that this is no sign-in, as [`without_account`](Self::without_account) does, and a
    /// refresh token that another sign-in has put in the place of the one sent is left alone.
    pub fn sent_refresh_token(mut self, refresh_token: impl Into<Secret>) -> Self {
        self.sent_refresh_token = Some(refresh_token.into());
        self
    }

    /// When the response arrived; the time of [`TokenCache::add`](crate::TokenCache::add) unless
    /// named. Expiry counts from here.
    pub fn received_at(mut self, now: SystemTime) -> Self {
        self.received_at = Some(now);
        self
    }

    /// How long the access token lives, where the response does not say so, or says it wrongly. It counts
    /// from [`received_at`](Self::received_at).
    pub fn lifetime(mut self, lifetime: Duration) -> Self {
        self.lifetime = Some(Lifetime::For(lifetime));
        self
    }

    /// When the access token expires, where the response does not say so, or says it wrongly.
    pub fn expires_on(mut self, expires_on: SystemTime) -> Self {
        self.lifetime = Some(Lifetime::Until(expires_on));
        self
    }

    /// Says that the access token does not expire, whatever the response says. It is found until it is
    /// removed or passed to `AcquireRequest::replacing`.
    pub fn without_expiry(mut self) -> Self {
        self.lifetime = Some(Lifetime::Endless);
        self
    }

    /// Says that this is no sign-in but a silent refresh: no account is added, and if the account was
    /// signed out meanwhile, nothing is ([`Added::is_signed_out`](crate::cache::Added::is_signed_out)).
    pub fn without_account(mut self) -> Self {
        self.establishes_account = false;
        self
    }

    /// The scopes that were granted: as the program says, as the response says, or those that were asked
    /// for. `None`: nobody says.
    pub(crate) fn granted(&self) -> Option<String> {
        let named = self.granted_scopes.as_ref().map(|scopes| scopes.join(" "));
        let requested = || (!self.requested_scopes.is_empty()).then(|| self.requested_scopes.join(" "));
        named.or_else(|| self.body.scope()).or_else(requested)
    }

    /// What is left of a response whose other fields cannot be used: the refresh token, if there is one.
    #[cfg(feature = "file")]
    pub(crate) fn refresh_token_only(&self) -> Option<Self> {
        let refresh_token = self.body.secret_of("refresh_token").ok().flatten()?;
        let mut json = SecretBytes::with_capacity(2 * refresh_token.expose().len() + 32);
        json.extend(br#"{"refresh_token":"#);
        json_text::encode(refresh_token.expose(), &mut json);
        json.extend(b"}");
        // Its endpoint may be what cannot be used; where the tokens belong is known from the one sent.
        Some(Self {
            client_id: self.client_id.clone(),
            environment: self.environment.clone(),
            home_account_id: self.home_account_id.clone(),
            requested_scopes: self.requested_scopes.clone(),
            sent_refresh_token: self.sent_refresh_token.clone(),
            received_at: self.received_at,
            establishes_account: self.establishes_account,
            ..Self::from_json(json).ok()?
        })
    }

    /// The access token.
    #[cfg(feature = "file")]
    pub(crate) fn access_token(&self) -> Option<Secret> {
        self.body.secret_of("access_token").ok().flatten()
    }

    /// The id token.
    #[cfg(feature = "file")]
    pub(crate) fn id_token(&self) -> Option<Secret> {
        self.body.secret_of("id_token").ok().flatten()
    }

    /// Whether it puts another refresh token in the place of the one that was sent.
    #[cfg(feature = "file")]
    pub(crate) fn rotates(&self) -> bool {
        let came = self.body.secret_of("refresh_token").ok().flatten();
        came.is_some_and(|came| self.sent_refresh_token.as_ref() != Some(&came))
    }

    /// Whether it answers a silent refresh rather than a sign-in.
    pub(crate) fn is_refresh(&self) -> bool {
        !self.establishes_account || self.sent_refresh_token.is_some()
    }

    /// What msal (Python) hashes into the extended cache key.
    pub(crate) fn ext_cache_key(&self) -> Option<String> {
        let extended = self.parameters.iter().filter(|(name, _)| name != "key_id");
        let of_parameters = ext_cache_key(extended.map(|(name, value)| (name.as_str(), value.expose())));
        of_parameters.or_else(|| self.named_ext_cache_key.clone())
    }

    pub(crate) fn key_id(&self) -> Option<&str> {
        let (_, key_id) = self.parameters.iter().rev().find(|(name, _)| name == "key_id")?;
        Some(key_id.expose())
    }
}

/// Request parameters that say nothing about which token it is, and of which some are secrets.
pub(crate) fn is_standard_parameter(name: &str) -> bool {
    STANDARD_PARAMETERS.contains(&name)
}

const STANDARD_PARAMETERS: [&str; 22] = [
    "client_id",
    "grant_type",
    "scope",
    "claims",
    "username",
    "password",
    "refresh_token",
    "code",
    "redirect_uri",
    "code_verifier",
    "device_code",
    "assertion",
    "requested_token_use",
    "client_assertion",
    "client_assertion_type",
    "client_secret",
    "token_type",
    "req_cnf",
    "key_id",
    "user_federated_identity_credential",
    "user_id",
    "client_info",
];

impl fmt::Debug for TokenResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenResponse")
            .field("client_id", &self.client_id)
            // A URL may carry credentials; the host and realm say enough.
            .field(
                "token_endpoint",
                &self.token_endpoint.as_deref().and_then(|url| of_token_endpoint(url).ok()),
            )
            .field("environment", &self.environment)
            .field("realm", &self.realm)
            .field("grant_type", &self.grant_type)
            .field("has_access_token", &self.body.raw("access_token").is_some())
            .field("has_refresh_token", &self.body.raw("refresh_token").is_some())
            .field("has_id_token", &self.body.raw("id_token").is_some())
            .finish_non_exhaustive()
    }
}

/// The JSON body of a token response.
pub(crate) struct Body(SecretBytes);

impl Body {
    pub(crate) fn parse(json: SecretBytes) -> Result<Self, CacheError> {
        let malformed = |offset| CacheError::MalformedResponse { offset };
        let json = json_text::without_byte_order_mark(json);
        let text = std::str::from_utf8(json.expose()).map_err(|error| malformed(error.valid_up_to()))?;
        let mut scanner = Scanner::new(text);
        if scanner.peek() != Some(b'{') {
            return Err(malformed(scanner.offset()));
        }
        scanner
            .value()
            .and_then(|_| scanner.finish())
            .map_err(|json::Malformed { offset }| malformed(offset))?;
        Ok(Self(json))
    }

    fn text(&self) -> &str {
        std::str::from_utf8(self.0.expose()).expect("checked when it was parsed")
    }

    /// The raw value of a member that is not null.
    pub(crate) fn raw(&self, name: &str) -> Option<&str> {
        json::member(self.text(), name).filter(|&raw| raw != "null")
    }

    /// Whether it has a token of any kind.
    pub(crate) fn has_tokens(&self) -> bool {
        ["access_token", "refresh_token", "id_token"]
            .into_iter()
            .any(|name| !matches!(self.secret_of(name), Ok(None)))
    }

    /// The scopes that were granted, as text or as a list of texts. What cannot be read counts as absent.
    pub(crate) fn scope(&self) -> Option<String> {
        let raw = self.raw("scope")?;
        let scope = if raw.starts_with('[') {
            let scopes: Vec<_> = json::elements(raw).filter_map(json_text::decode).collect();
            scopes.join(" ")
        } else {
            json_text::decode(raw)?.into_owned()
        };
        (!scope.trim().is_empty()).then_some(scope)
    }

    /// A text that costs no token: what cannot be read counts as absent.
    pub(crate) fn hint(&self, field: &'static str) -> Option<String> {
        self.text_of(field).ok().flatten()
    }

    /// A number of seconds, written as a number or as text.
    pub(crate) fn seconds_of(&self, field: &'static str) -> Seconds {
        let Some(text) = self.number_text(field) else { return Seconds::Absent };
        super::fields::parse_time(&text).map_or(Seconds::Unreadable, Seconds::Read)
    }

    /// A point in time, as Unix seconds.
    pub(crate) fn instant_of(&self, field: &'static str) -> Option<i64> {
        super::time_text::instant(&self.number_text(field)?)
    }

    /// A number as it is written, within quotes or without; empty text counts for none.
    fn number_text(&self, field: &'static str) -> Option<std::borrow::Cow<'_, str>> {
        let raw = self.raw(field)?;
        // Text that UTF-8 cannot hold is not absent.
        let text =
            if raw.starts_with('"') { json_text::decode(raw).unwrap_or(raw.into()) } else { raw.into() };
        (!text.is_empty()).then_some(text)
    }

    /// A member that must be text; empty text counts for none.
    pub(crate) fn text_of(&self, field: &'static str) -> Result<Option<String>, CacheError> {
        let Some(raw) = self.raw(field) else { return Ok(None) };
        match json_text::decode(raw) {
            Some(text) => Ok(Some(text.into_owned()).filter(|text| !text.is_empty())),
            None => Err(CacheError::UnusableField { field, expected: "text" }),
        }
    }

    /// A member that must be text and is secret; empty text counts for none, and so does what some servers
    /// write for "none" (`false`, `[]`, `{}`).
    pub(crate) fn secret_of(&self, field: &'static str) -> Result<Option<Secret>, CacheError> {
        let Some(raw) = self.raw(field) else { return Ok(None) };
        if raw == "false" || raw.starts_with(['[', '{']) && raw[1..raw.len() - 1].trim().is_empty() {
            return Ok(None);
        }
        match json_text::decode_secret(raw) {
            Some(secret) => Ok(Some(secret).filter(|secret| !secret.is_empty())),
            None => Err(CacheError::UnusableField { field, expected: "text" }),
        }
    }
}

/// A number of seconds in a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seconds {
    Absent,
    Unreadable,
    Read(i64),
}
