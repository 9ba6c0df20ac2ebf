//! What `acquire` gives.

use std::sync::Arc;

use super::error::AcquireError;
use crate::cache::AccessToken;
use crate::persisted::Error;

/// An access token that was acquired, and where it came from.
///
/// ```
/// # use std::sync::Arc;
/// # use tokenseal::{AccessTokenQuery, MemoryKeyStore, PersistedTokenCache, RefreshFailure, TokenResponse};
/// # let directory = tempfile::tempdir()?;
/// # let cache = PersistedTokenCache::builder("contoso-cli")
/// #     .directory(directory.path().join("tokens"))
/// #     .key_store(Arc::new(MemoryKeyStore::new()))
/// #     .open()?;
/// # let added = cache.add(&TokenResponse::from_json(r#"{"access_token":"at","refresh_token":"rt"}"#)?
/// #     .client_id("app").environment("idp.example").home_account_id("alice").requested_scopes(["read"]))?;
/// # let wanted = AccessTokenQuery::new("app").account(added.account().unwrap()).scopes(["read"]);
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
pub struct Acquired {
    pub(super) token: AccessToken,
    pub(super) origin: Origin,
    pub(super) save_failure: Option<Arc<Error>>,
    pub(super) failure: Option<AcquireError>,
}

/// Where an acquired token came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Origin {
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

impl Acquired {
    pub(super) fn from_cache(token: AccessToken) -> Self {
        Self { token, origin: Origin::Cache, save_failure: None, failure: None }
    }

    pub(super) fn instead(token: AccessToken, origin: Origin, failure: Option<AcquireError>) -> Self {
        Self { token, origin, save_failure: None, failure }
    }

    /// The access token.
    pub fn token(&self) -> &AccessToken {
        &self.token
    }

    /// Gives out the access token.
    pub fn into_token(self) -> AccessToken {
        self.token
    }

    /// Where it came from.
    pub fn origin(&self) -> Origin {
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

    /// Why it is an older token ([`Origin::StillValid`], [`Origin::ExtendedLifetime`]).
    pub fn failure(&self) -> Option<&AcquireError> {
        self.failure.as_ref()
    }
}
