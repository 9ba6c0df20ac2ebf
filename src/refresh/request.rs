//! The request to acquire a token, and its result.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::error::AcquireError;
use crate::cache::{AccessToken, AccessTokenQuery};
use crate::persisted::Error;

/// The default time to wait for another caller's refresh.
const WAIT_TIMEOUT: Duration = Duration::from_secs(60);

/// The default time for a call to the token endpoint.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Which token to acquire, and on what terms. A plain `&AccessTokenQuery` converts to one with the default
/// terms.
///
/// ```
/// use std::time::Duration;
/// use tokenseal::{AccessTokenQuery, Account};
/// use tokenseal::refresh::AcquireRequest;
///
/// let account = Account::new("alice", "idp.example.com");
/// let wanted = AccessTokenQuery::for_account("my-client", &account).scopes(["orders.read"]);
/// let request = AcquireRequest::new(&wanted)
///     .wait_timeout(Duration::from_secs(10))
///     .allow_extended_lifetime(true);
/// # let _ = request;
/// ```
#[derive(Clone, Copy)]
#[must_use]
pub struct AcquireRequest<'a> {
    pub(super) query: &'a AccessTokenQuery,
    pub(super) family_id: Option<&'a str>,
    pub(super) refused: Option<&'a AccessToken>,
    pub(super) wait_timeout: Duration,
    pub(super) call_timeout: Duration,
    pub(super) allows_extended_lifetime: bool,
    pub(super) token_endpoint: Option<&'a str>,
    pub(super) claims: Option<&'a str>,
    pub(super) tries_now: bool,
}

impl<'a> AcquireRequest<'a> {
    /// Asks for a token that `query` describes.
    ///
    /// A token is fresh if it outlives the query's skew, or half of its own lifetime if that is shorter.
    pub fn new(query: &'a AccessTokenQuery) -> Self {
        Self {
            query,
            family_id: None,
            refused: None,
            wait_timeout: WAIT_TIMEOUT,
            call_timeout: CALL_TIMEOUT,
            allows_extended_lifetime: false,
            token_endpoint: None,
            claims: None,
            tries_now: false,
        }
    }

    /// The family that the client belongs to, if the cache does not know it.
    pub fn family_id(mut self, family_id: &'a str) -> Self {
        self.family_id = Some(family_id);
        self
    }

    /// Asks for any token but this one, which the service refused although it has not expired. If another caller
    /// has refreshed it meanwhile, the newer token is returned without a call.
    pub fn replacing(mut self, refused: &'a AccessToken) -> Self {
        self.refused = Some(refused);
        self
    }

    /// The URL of the token endpoint, for [`RefreshCall::token_endpoint`](crate::refresh::RefreshCall::token_endpoint).
    pub fn token_endpoint(mut self, url: &'a str) -> Self {
        self.token_endpoint = Some(url);
        self
    }

    /// Claims that the token must have, as JSON: what a service asked for (Entra's claims challenge, RFC 9470).
    /// They are sent, and no cached token is returned.
    pub fn claims(mut self, claims: &'a str) -> Self {
        self.claims = Some(claims);
        self
    }

    /// Ignores back-offs and remembered refusals: for a user who says "try again". Never use it in a loop.
    pub fn try_now(mut self) -> Self {
        self.tries_now = true;
        self
    }

    /// How long to wait for other callers: 60 seconds by default. A caller waits for its own call up to the
    /// [call timeout](Self::call_timeout), and for its save.
    pub fn wait_timeout(mut self, timeout: Duration) -> Self {
        self.wait_timeout = timeout;
        self
    }

    /// How long the call to the token endpoint may take: 30 seconds by default.
    ///
    /// An asynchronous call is dropped then. A blocking one cannot be: its callers get an error, and the refresh
    /// token stays locked until the call returns, because it may have been used. Set a timeout on the HTTP
    /// client as well.
    pub fn call_timeout(mut self, timeout: Duration) -> Self {
        self.call_timeout = timeout;
        self
    }

    /// Whether an expired token may be returned while the identity provider is unreachable, up to the end of its
    /// extended lifetime (`ext_expires_in`). The default is no. The service must accept such tokens.
    pub fn allow_extended_lifetime(mut self, allow: bool) -> Self {
        self.allows_extended_lifetime = allow;
        self
    }
}

impl fmt::Debug for AcquireRequest<'_> {
    /// Claims may be about a user, and a URL may carry credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AcquireRequest")
            .field("query", &self.query)
            .field("family_id", &self.family_id)
            .field("refused", &self.refused)
            .field("wait_timeout", &self.wait_timeout)
            .field("call_timeout", &self.call_timeout)
            .field("allows_extended_lifetime", &self.allows_extended_lifetime)
            .field("has_claims", &self.claims.is_some())
            .field("tries_now", &self.tries_now)
            .finish_non_exhaustive()
    }
}

impl<'a> From<&'a AccessTokenQuery> for AcquireRequest<'a> {
    fn from(query: &'a AccessTokenQuery) -> Self {
        Self::new(query)
    }
}

/// A token that was acquired, and where it came from.
///
/// ```
/// # use std::sync::Arc;
/// # use tokenseal::{AccessTokenQuery, PersistedTokenCache, TokenResponse};
/// # use tokenseal::key_store::MemoryKeyStore;
/// # use tokenseal::refresh::RefreshFailure;
/// # let directory = tempfile::tempdir()?;
/// # let cache = PersistedTokenCache::builder("contoso-cli")
/// #     .directory(directory.path().join("tokens"))
/// #     .key_store(Arc::new(MemoryKeyStore::new()))
/// #     .open()?;
/// # let added = cache.add(&TokenResponse::from_json(r#"{"access_token":"at","refresh_token":"rt"}"#)?
/// #     .client_id("app").environment("idp.example").home_account_id("alice").requested_scopes(["read"]))?;
/// # let wanted = AccessTokenQuery::for_account("app", added.account().unwrap()).scopes(["read"]);
/// # let call = |_| Err(RefreshFailure::rejected("invalid_grant"));
/// let acquired = cache.acquire(&wanted, call)?;
/// if let Some(error) = acquired.save_failure() {
///     eprintln!("the next start may ask for a sign-in: {error}");
/// }
/// let header = format!("Authorization: Bearer {}", acquired.token().expose());
/// # assert_eq!(header, "Authorization: Bearer at");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct Acquired<T = AccessToken> {
    pub(super) token: T,
    pub(super) origin: TokenSource,
    pub(super) save_failure: Option<Arc<Error>>,
    pub(super) failure: Option<AcquireError>,
}

/// Where an acquired token came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TokenSource {
    /// It was in the cache, and fresh.
    Cache,
    /// It was just refreshed, by this caller or by one that it waited for.
    Refreshed,
    /// It was in the cache and is still valid. A refresh was due, but failed ([`Acquired::failure`]) or is in
    /// progress.
    StillValid,
    /// It has expired and is within its extended lifetime, which the request allowed.
    ExtendedLifetime,
}

impl<T> Acquired<T> {
    pub(super) fn from_cache(token: T) -> Self {
        Self { token, origin: TokenSource::Cache, save_failure: None, failure: None }
    }

    pub(super) fn map<U>(self, convert: impl FnOnce(T) -> U) -> Acquired<U> {
        let Self { token, origin, save_failure, failure } = self;
        Acquired { token: convert(token), origin, save_failure, failure }
    }

    pub(super) fn instead(token: T, origin: TokenSource, failure: Option<AcquireError>) -> Self {
        Self { token, origin, save_failure: None, failure }
    }

    /// The token.
    pub fn token(&self) -> &T {
        &self.token
    }

    /// Consumes `self`, returning the token.
    pub fn into_token(self) -> T {
        self.token
    }

    /// Where it came from.
    pub fn origin(&self) -> TokenSource {
        self.origin
    }

    /// Whether the tokens are saved. If not, the save is tried again in the background and at each later call.
    pub fn is_persisted(&self) -> bool {
        self.save_failure.is_none()
    }

    /// Why the renewed tokens could not be saved.
    pub fn save_failure(&self) -> Option<&Error> {
        self.save_failure.as_deref()
    }

    /// Why an older token was returned ([`TokenSource::StillValid`], [`TokenSource::ExtendedLifetime`]).
    pub fn failure(&self) -> Option<&AcquireError> {
        self.failure.as_ref()
    }
}
