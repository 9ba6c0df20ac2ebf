//! What to acquire and on what terms, and what was acquired.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::error::AcquireError;
use crate::cache::{AccessToken, AccessTokenQuery};
use crate::persisted::Error;

/// How long to wait for the refresh that somebody else makes, unless the request says otherwise.
const WAIT_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a call to the token endpoint may take, unless the request says otherwise.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Which access token to acquire, and on what terms. A plain `&AccessTokenQuery` is one as well, with
/// the usual terms.
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
    /// A token that `query` describes, which must name an account.
    ///
    /// A token counts as fresh if it outlives the query's skew, or half of its own lifetime where that
    /// is shorter.
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

    /// The family that the client belongs to, where it is known better than from the cache.
    pub fn family_id(mut self, family_id: &'a str) -> Self {
        self.family_id = Some(family_id);
        self
    }

    /// Any token but this one: the service refused it although it has not expired. If somebody has
    /// refreshed it meanwhile, the newer one is taken without another call.
    pub fn replacing(mut self, refused: &'a AccessToken) -> Self {
        self.refused = Some(refused);
        self
    }

    /// The URL of the token endpoint, for [`RefreshCall::token_endpoint`](crate::refresh::RefreshCall::token_endpoint).
    pub fn token_endpoint(mut self, url: &'a str) -> Self {
        self.token_endpoint = Some(url);
        self
    }

    /// Claims that the token must bring, as JSON: what a service asked for (Entra's claims challenge, RFC
    /// 9470). They are sent, and no token that is in the cache is taken in the place of the one that comes.
    pub fn claims(mut self, claims: &'a str) -> Self {
        self.claims = Some(claims);
        self
    }

    /// Asks the server now, although it failed or refused a moment ago: for a user who says "try again".
    /// Never call it in a loop.
    pub fn try_now(mut self) -> Self {
        self.tries_now = true;
        self
    }

    /// How long to wait for others: 60 seconds unless set. A call that this caller makes itself is waited
    /// for up to its [own timeout](Self::call_timeout), and so is its save.
    pub fn wait_timeout(mut self, timeout: Duration) -> Self {
        self.wait_timeout = timeout;
        self
    }

    /// How long the call to the token endpoint may take: 30 seconds unless set.
    ///
    /// An asynchronous call is given up then. A blocking one cannot be: whoever waits gets an error,
    /// and the refresh token stays locked until the call returns, for it may have been used. Set a
    /// timeout on the HTTP client as well.
    pub fn call_timeout(mut self, timeout: Duration) -> Self {
        self.call_timeout = timeout;
        self
    }

    /// Whether a token that has expired may be served while the identity provider is out of reach, up
    /// to the end of its extended lifetime (`ext_expires_in`): no, unless allowed. Ask the service
    /// whether it accepts such tokens.
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
    /// It was got by the refresh token just now, by this caller or by somebody it waited for.
    Refreshed,
    /// It was in the cache and is still valid. It should have been refreshed, but that did not succeed
    /// ([`Acquired::failure`]), or somebody else is about to.
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

    /// Whether what the cache knows of this token outlives the process. Where it does not, the save is
    /// tried again in the background and at each later call.
    pub fn is_persisted(&self) -> bool {
        self.save_failure.is_none()
    }

    /// Why the renewed tokens could not be saved.
    pub fn save_failure(&self) -> Option<&Error> {
        self.save_failure.as_deref()
    }

    /// Why it is an older token ([`TokenSource::StillValid`], [`TokenSource::ExtendedLifetime`]).
    pub fn failure(&self) -> Option<&AcquireError> {
        self.failure.as_ref()
    }
}
