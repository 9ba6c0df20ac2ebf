//! Why no token could be acquired.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::failure::Cause;
use crate::duration_text::InWords;
use crate::persisted::Error;
use crate::secret::Secret;

/// Why [`acquire`](crate::PersistedTokenCache::acquire) returned no token. All callers that waited for the same
/// refresh share it. No variant shows a secret.
///
/// ```
/// use tokenseal::AcquireError;
///
/// fn advice(error: &AcquireError) -> &'static str {
///     match error {
///         error if error.is_sign_in_required() => "sign in again",
///         error if error.is_transient() => "try again in a moment",
///         _ => "see the message",
///     }
/// }
/// ```
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum AcquireError {
    /// The user must sign in again: there is no refresh token, or the server rejected it.
    #[error("sign in again: {reason}")]
    #[non_exhaustive]
    SignInRequired {
        /// Why.
        reason: SignInReason,
        /// The claims to request at the sign-in, if the server named any: see
        /// [`claims`](AcquireError::claims).
        claims: Option<Secret>,
    },

    /// The request is ambiguous: the account has tokens of several realms, or its id is that of several users.
    /// Nothing was sent.
    #[error("{what}; nothing was sent")]
    #[non_exhaustive]
    Ambiguous {
        /// What the request omits, and how to name it.
        what: &'static str,
    },

    /// The identity provider was unreachable, or could not answer. All tokens are kept.
    #[error("the token endpoint could not be reached, or did not answer properly; the tokens are kept, try again in {}",
        InWords(*retry_after))]
    #[non_exhaustive]
    Unavailable {
        /// The remaining back-off, which all processes share.
        retry_after: Duration,
        /// The failure of the call. `None` if another process made it.
        #[source]
        cause: Option<FailedCall>,
    },

    /// The server granted other scopes than those requested. The token is in the cache.
    #[error(
        "the server granted `{granted}`, which does not cover what was asked for; if it means the same, \
         name the scopes with `TokenResponse::granted_scopes`"
    )]
    #[non_exhaustive]
    NotGranted {
        /// The scopes that were granted.
        granted: String,
    },

    /// The response had no access token. Its other tokens are in the cache.
    #[error("the server sent no access token; check the scopes and the type of the client")]
    NoAccessToken,

    /// The response had no id token of this user and client. Its other tokens are in the cache.
    #[error("the server sent no id token; ask for the scope `openid`")]
    NoIdToken,

    /// The work succeeded, and `look` found nothing afterwards
    /// ([`run_once`](crate::PersistedTokenCache::run_once)).
    #[error("the work was reported as done, and its result was not found; check that `look` finds it")]
    NotDone,

    /// The server returned the access token that was already cached and does not last longer, or the one to
    /// replace ([`AcquireRequest::replacing`](crate::refresh::AcquireRequest::replacing)).
    #[error("the server returned the access token that was to be replaced; try again later")]
    SameToken,

    /// The access token had already expired (`expires_in` was zero or less).
    #[error(
        "the server sent an access token that had already expired; if that means that it does not \
         expire, say so with `TokenResponse::without_expiry`"
    )]
    #[non_exhaustive]
    ExpiredToken {
        /// How long the same request is not repeated.
        retry_after: Duration,
    },

    /// The server refused the request. The refresh token is kept. The same request is not repeated for two
    /// minutes, and longer each time, up to an hour.
    #[error(
        "the server refused the request: {error}; check the client and the scopes, a sign-in does not help"
    )]
    #[non_exhaustive]
    Refused {
        /// The error code, such as `invalid_scope`.
        error: String,
    },

    /// Another caller is refreshing this token, or reading the cache, and did not finish in time.
    #[error(
        "another refresh did not finish within {} (lock: {lock}, held by {}); try again",
        InWords(*waited),
        holder.map_or("an unknown process".into(), |pid| format!("process {pid}"))
    )]
    #[non_exhaustive]
    WaitTimedOut {
        /// How long the caller waited.
        waited: Duration,
        /// The process id of the holder, if known.
        holder: Option<u32>,
        /// The lock: a file, or a lock in memory.
        lock: String,
    },

    /// The call to the token endpoint did not end in time.
    #[error("the token endpoint did not answer within {}; the tokens are kept, try again", InWords(*waited))]
    #[non_exhaustive]
    CallTimedOut {
        /// How long the caller waited.
        waited: Duration,
    },

    /// The query names no account, and an application's own tokens have no refresh token.
    #[error(
        "no account is named, and without one there is no refresh token: name it with `AccessTokenQuery::for_account`"
    )]
    NoAccount,

    /// A token of the application itself was requested, but the query names an account.
    #[error("an account is named, and the application's own tokens belong to none: use `acquire_with`")]
    NamesAccount,

    /// A token without a refresh token was requested, but the query names no identity provider.
    #[error("no identity provider is named: name its host with `AccessTokenQuery::environment`")]
    NoEnvironment,

    /// A refresh guard was requested while a renewed refresh token is in this process's memory only, because it
    /// could not be saved.
    #[error(
        "a renewed refresh token could not be saved yet, and the one in the cache must not be used; make \
         the cache writable, and try again"
    )]
    #[non_exhaustive]
    NotSaved {
        /// Why it could not be saved.
        source: Arc<Error>,
    },

    /// A refresh did not finish in time (`settle`).
    #[error("a refresh was still in progress after {}; wait longer, or its tokens may be lost", InWords(*waited))]
    #[non_exhaustive]
    NotSettled {
        /// How long the caller waited.
        waited: Duration,
    },

    /// The cache failed.
    #[error(transparent)]
    Cache(Arc<Error>),

    /// An asynchronous call was made outside a Tokio runtime.
    #[cfg(feature = "tokio")]
    #[error("there is no Tokio runtime here; await this in a task of one")]
    NoRuntime,

    /// The operating system could not start a thread for the refresh.
    #[error("no thread could be started to refresh in; close programs, or raise the limit of threads")]
    #[non_exhaustive]
    NoThread {
        /// The cause.
        source: Arc<std::io::Error>,
    },
}

/// Why the user must sign in again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SignInReason {
    /// The cache has no suitable refresh token.
    #[error("there is no refresh token for this account and client")]
    NoRefreshToken,
    /// The account was signed out during the refresh. The response was discarded.
    #[error("the account was signed out meanwhile")]
    SignedOut,
    /// The response was about another user (OpenID Connect Core section 12.2), and was discarded.
    #[error("the server answered with the tokens of another user")]
    OtherUser,
    /// The server rejected the refresh token.
    #[error("the server answered {error}{}", sub_error.as_ref().map(|code| format!(" ({code})")).unwrap_or_default())]
    #[non_exhaustive]
    Rejected {
        /// The error code, such as `invalid_grant`.
        error: String,
        /// The sub-error, if the server gave one.
        sub_error: Option<String>,
    },
}

/// A failed call to the token endpoint, as the `source()` of an [`AcquireError`]. Its own `source()` is the
/// error that the call returned.
#[derive(Debug, Clone)]
pub struct FailedCall(pub(super) Cause);

impl fmt::Display for FailedCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the call to the token endpoint failed")
    }
}

impl std::error::Error for FailedCall {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.0.0)
    }
}

impl AcquireError {
    pub(super) fn sign_in(reason: SignInReason) -> Self {
        Self::SignInRequired { reason, claims: None }
    }

    /// Returns a word for the reason, and the server's error code, if any.
    pub(super) fn reason(&self) -> (&'static str, Option<&str>) {
        match self {
            Self::SignInRequired { reason, .. } => match reason {
                SignInReason::NoRefreshToken => ("no refresh token", None),
                SignInReason::SignedOut => ("signed out", None),
                SignInReason::OtherUser => ("another user's answer", None),
                SignInReason::Rejected { error, .. } => ("rejected", Some(error)),
            },
            Self::Ambiguous { .. } => ("ambiguous request", None),
            Self::Unavailable { .. } => ("unavailable", None),
            Self::NotGranted { .. } => ("not granted", None),
            Self::NoAccessToken => ("no access token", None),
            Self::NoIdToken => ("no id token", None),
            Self::NotDone => ("not done", None),
            Self::SameToken => ("same token", None),
            Self::ExpiredToken { .. } => ("expired token", None),
            Self::Refused { error } => ("refused", Some(error)),
            Self::WaitTimedOut { .. } => ("lease timed out", None),
            Self::CallTimedOut { .. } => ("call timed out", None),
            Self::NoAccount | Self::NamesAccount | Self::NoEnvironment => ("invalid request", None),
            Self::NotSaved { .. } => ("not saved", None),
            Self::NotSettled { .. } => ("not settled", None),
            Self::Cache(_) => ("cache failed", None),
            #[cfg(feature = "tokio")]
            Self::NoRuntime => ("no runtime", None),
            Self::NoThread { .. } => ("no thread", None),
        }
    }

    /// The error of a refresh that ended without an outcome.
    pub(super) fn unexplained() -> Self {
        Self::Unavailable { retry_after: Duration::ZERO, cause: None }
    }

    /// Whether the user must sign in again.
    pub fn is_sign_in_required(&self) -> bool {
        matches!(self, Self::SignInRequired { .. })
    }

    /// The claims to request at the sign-in, as JSON (Entra's claims challenge, RFC 9470): pass them to the
    /// authorization endpoint as `claims`.
    pub fn claims(&self) -> Option<&str> {
        match self {
            Self::SignInRequired { claims, .. } => claims.as_ref().map(Secret::expose),
            _ => None,
        }
    }

    /// Whether the same request may succeed a little later: the server was unreachable, or another caller did not
    /// finish in time.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Unavailable { .. }
                | Self::WaitTimedOut { .. }
                | Self::CallTimedOut { .. }
                | Self::ExpiredToken { .. }
                | Self::NotSettled { .. }
        )
    }

    /// How long to wait before trying again, if known.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Unavailable { retry_after, .. } | Self::ExpiredToken { retry_after } => Some(*retry_after),
            _ => None,
        }
    }
}

impl From<Error> for AcquireError {
    fn from(error: Error) -> Self {
        Self::Cache(Arc::new(error))
    }
}
