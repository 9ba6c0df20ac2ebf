//! The kinds of credentials that can be asked for, and how the cache is searched for each.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use super::freshness::is_due;
use super::refusal::Verdict;
use crate::cache::{AccessToken, AccessTokenQuery, IdToken, Life, TokenCache, TokenResponse, end_of_time};
use crate::secret::Secret;

/// What a request is for.
#[derive(Debug, Clone)]
pub(crate) enum Purpose {
    /// An access token, by a refresh token.
    AccessToken,
    /// An id token, by a refresh token.
    IdToken,
    /// An access token, by a call that needs no refresh token.
    Mint,
    /// Work that must be done once, under a name.
    Once(Once),
}

#[derive(Clone)]
pub(crate) struct Once {
    pub(crate) name: String,
    pub(crate) is_done: Arc<dyn Fn(&TokenCache) -> bool + Send + Sync>,
}

/// A credential that was found, or the fact that the work is done.
#[derive(Debug, Clone)]
pub(crate) enum Credential {
    AccessToken(AccessToken),
    IdToken(IdToken),
    Done,
}

impl Purpose {
    pub(crate) fn needs_refresh_token(&self) -> bool {
        matches!(self, Self::AccessToken | Self::IdToken)
    }

    /// Finds a credential with this much life left that is not the `refused` token.
    pub(crate) fn find(
        &self,
        cache: &TokenCache,
        query: &AccessTokenQuery,
        life: Life,
        refused: Option<&Secret>,
    ) -> Option<Credential> {
        match self {
            Self::AccessToken | Self::Mint => {
                cache.find_living_access_token(query, life, refused).map(Credential::AccessToken)
            }
            Self::IdToken => cache.find_living_id_token(query, life).map(Credential::IdToken),
            Self::Once(once) => (once.is_done)(cache).then_some(Credential::Done),
        }
    }

    /// Finds the token with this secret, if the query describes it and it has not expired.
    pub(crate) fn find_this(
        &self,
        cache: &TokenCache,
        query: &AccessTokenQuery,
        secret: &Secret,
    ) -> Option<Credential> {
        match self {
            Self::AccessToken | Self::Mint => {
                cache.find_this_access_token(query, secret).map(Credential::AccessToken)
            }
            Self::IdToken => cache.find_this_id_token(query, secret).map(Credential::IdToken),
            Self::Once(_) => None,
        }
    }

    /// Returns when the token with this secret expires, in Unix seconds, under whatever scopes it is cached.
    pub(crate) fn expiry(&self, cache: &TokenCache, owner: &str, secret: &Secret) -> Option<i64> {
        match self {
            Self::AccessToken | Self::Mint => cache.expiry_of_access_token(owner, secret),
            Self::IdToken => cache.expiry_of_id_token(owner, secret),
            Self::Once(_) => None,
        }
    }

    /// Returns the token of this kind from a response.
    pub(crate) fn secret_of(&self, response: &TokenResponse) -> Option<Secret> {
        match self {
            Self::AccessToken | Self::Mint => response.access_token(),
            Self::IdToken => response.id_token(),
            Self::Once(_) => None,
        }
    }

    /// Returns the verdict on a response without such a token.
    pub(crate) fn missing(&self) -> Verdict {
        match self {
            Self::AccessToken | Self::Mint => Verdict::NoAccessToken,
            Self::IdToken => Verdict::NoIdToken,
            Self::Once(_) => Verdict::NotDone,
        }
    }
}

impl Credential {
    pub(crate) fn secret(&self) -> Option<Secret> {
        match self {
            Self::AccessToken(token) => Some(token.secret()),
            Self::IdToken(token) => Some(token.secret()),
            Self::Done => None,
        }
    }

    pub(crate) fn expires_on_seconds(&self) -> i64 {
        match self {
            Self::AccessToken(token) => token.expires_on_seconds(),
            Self::IdToken(token) => token.expires_on_seconds().unwrap_or(0),
            Self::Done => i64::MAX,
        }
    }

    pub(crate) fn expires_on(&self) -> SystemTime {
        match self {
            Self::AccessToken(token) => token.expires_on(),
            Self::IdToken(token) => token.expires_on().unwrap_or(SystemTime::UNIX_EPOCH),
            Self::Done => end_of_time(),
        }
    }

    /// Returns until when it may be served while the identity provider is unreachable.
    pub(crate) fn extended_expires_on(&self) -> SystemTime {
        match self {
            Self::AccessToken(token) => token.extended_expires_on(),
            Self::IdToken(_) | Self::Done => self.expires_on(),
        }
    }

    /// Whether the server asked for a refresh before now.
    pub(crate) fn is_due(&self, query: &AccessTokenQuery) -> bool {
        matches!(self, Self::AccessToken(token) if is_due(token, query))
    }

    pub(crate) fn into_access_token(self) -> AccessToken {
        let Self::AccessToken(token) = self else { unreachable!("an access token was asked for") };
        token
    }

    pub(crate) fn into_id_token(self) -> IdToken {
        let Self::IdToken(token) = self else { unreachable!("an id token was asked for") };
        token
    }
}

impl fmt::Debug for Once {
    /// The name may contain anything, so it is not shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Once").finish_non_exhaustive()
    }
}
