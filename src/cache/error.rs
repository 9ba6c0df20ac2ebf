//! What can be wrong with what a token cache is given.

/// Why a token response or a serialized cache was not taken. Nothing was changed.
///
/// ```
/// use tokenseal::{CacheError, TokenCache};
///
/// let error = TokenCache::new().deserialize("[]").unwrap_err();
/// assert!(matches!(error, CacheError::NotACache { .. }));
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CacheError {
    /// The bytes to deserialize are no unified cache.
    #[error("this is no token cache: {reason} at byte {offset}; nothing was read")]
    #[non_exhaustive]
    NotACache {
        /// What was expected, never what was found.
        reason: &'static str,
        /// Where in the bytes it was noticed.
        offset: usize,
    },

    /// The token response is not a JSON object.
    #[error("the token response is no JSON object (noticed at byte {offset}); nothing was added")]
    #[non_exhaustive]
    MalformedResponse {
        /// Where in the bytes it was noticed.
        offset: usize,
    },

    /// A field of the token response cannot be understood.
    #[error("the token response's {field} is not usable: expected {expected}; nothing was added")]
    #[non_exhaustive]
    UnusableField {
        /// The name of the field.
        field: &'static str,
        /// What it should be.
        expected: &'static str,
    },

    /// The response is an error, sent with a status of success.
    #[error("the token response is the error {error}; nothing was added")]
    #[non_exhaustive]
    ErrorResponse {
        /// The error code; `unknown` where none can be read.
        error: String,
    },

    /// The token response holds no token.
    #[error("the token response has no access token, refresh token or id token; nothing was added")]
    NoTokens,

    /// The tokens are another user's than the refresh token that was sent (OpenID Connect Core section
    /// 12.2).
    #[error(
        "the token response is about another user than the refresh token that was sent; nothing was added"
    )]
    OtherAccount,

    /// The response does not say where its tokens belong, so that they would never be found.
    #[error("nothing says which {what} this token response is of; name it with `{how}`; nothing was added")]
    #[non_exhaustive]
    NotNamed {
        /// What is missing.
        what: &'static str,
        /// The functions of [`TokenResponse`](crate::TokenResponse) that name it.
        how: &'static str,
    },

    /// The token endpoint is not a URL from which an environment and a realm can be derived.
    #[error(
        "the token endpoint {reason}; give an https URL with a path (plain http is taken for \
         loopback only), or name both the environment and the realm"
    )]
    #[non_exhaustive]
    TokenEndpoint {
        /// What is wrong with it.
        reason: &'static str,
    },

    /// A user's tokens came without anything that says whose they are.
    #[error(
        "no account can be derived from this token response (it has neither client_info nor an \
         id_token with a sub), and two users' tokens would overwrite each other: name the account \
         with `home_account_id`"
    )]
    NoAccount,

    /// A section of the cache is not a JSON object, and a row put there would replace what it is.
    #[error(
        "the cache's {section} section is no JSON object, and adding to it would lose what is \
         there; clear the cache, or repair it"
    )]
    #[non_exhaustive]
    UnusableSection {
        /// The name of the section.
        section: &'static str,
    },
}
