//! What a call to the token endpoint says when it brings no tokens.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::cache::{Body, CacheError};
use crate::secret::SecretBytes;

/// An error of the caller's, shared by all who waited for the call. It is never printed from here.
#[derive(Clone)]
pub(super) struct Cause(pub(super) Arc<dyn StdError + Send + Sync>);

impl fmt::Debug for Cause {
    /// What a client's error shows may be anything, a token too.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cause(..)")
    }
}

/// Why a call to the token endpoint brought no tokens: what the function given to `acquire` returns
/// instead of a [`TokenResponse`](crate::TokenResponse).
///
/// Three kinds must be told apart, for the first ends the session and the others must not:
///
/// - the server **rejected** the refresh token (`invalid_grant`, RFC 6749 section 5.2), or wants the
///   user to be asked something;
/// - it **refused** the request for another reason (`invalid_scope`, `invalid_client`): this request
///   is not repeated for two minutes, others are free to go;
/// - anything else is **transient**: no connection, a timeout, a status 429 or 5xx, an answer that
///   cannot be read. The tokens stay, and nobody tries again before the back-off is over.
///
/// ```
/// use std::time::Duration;
/// use tokenseal::RefreshFailure;
///
/// // Where the client library tells them apart:
/// let rejected = RefreshFailure::rejected("invalid_grant").sub_error("bad_token");
/// let no_connection = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
/// let transient = RefreshFailure::transient(no_connection).retry_after(Duration::from_secs(7));
/// assert!(rejected.is_rejected() && !transient.is_rejected());
///
/// // From the server's answer itself:
/// let failure = RefreshFailure::from_error_response(400, r#"{"error":"invalid_grant"}"#);
/// assert!(failure.is_rejected());
/// assert!(!RefreshFailure::from_error_response(503, "").is_rejected());
/// ```
#[derive(Debug)]
pub struct RefreshFailure(pub(super) Reason);

#[derive(Debug)]
pub(super) enum Reason {
    Rejected(Rejection),
    Refused { error: String },
    Transient { retry_after: Option<Duration>, cause: Cause },
}

/// The codes with which a server rejects a refresh token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rejection {
    pub(super) error: String,
    pub(super) sub_error: Option<String>,
}

/// Sub-errors by which Entra ID says that the user must do something, or that the token is another
/// client's, and not that the token is dead.
const TOKEN_IS_ALIVE: [&str; 6] = [
    "basic_action",
    "additional_action",
    "message_only",
    "consent_required",
    "user_password_expired",
    "client_mismatch",
];

/// OpenID Connect Core section 3.1.2.6: the user must be asked.
const USER_IS_NEEDED: [&str; 4] =
    ["interaction_required", "login_required", "consent_required", "account_selection_required"];

/// RFC 6749 section 5.2: the request is wrong, and would be wrong again.
const REQUEST_IS_WRONG: [&str; 5] =
    ["invalid_request", "invalid_client", "unauthorized_client", "unsupported_grant_type", "invalid_scope"];

impl Rejection {
    /// Whether the refresh token is of no use any more.
    pub(super) fn ends_token(&self) -> bool {
        let sub_error = self.sub_error.as_deref().unwrap_or_default();
        self.error == "invalid_grant" && !TOKEN_IS_ALIVE.contains(&sub_error)
    }
}

/// A code as RFC 6749 has them; anything else may be a text with who knows what in it.
pub(super) fn code(text: &str) -> String {
    let is_code = (1..=64).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte));
    if is_code { text.to_owned() } else { "unknown".to_owned() }
}

impl RefreshFailure {
    /// The server rejected the refresh token, with this error code: `invalid_grant`, or one by which
    /// OpenID Connect asks for the user, such as `interaction_required`.
    ///
    /// The rejected token is removed from the cache if it is `invalid_grant`, unless the
    /// [sub-error](Self::sub_error) is one of those that leave it alive (`basic_action`,
    /// `additional_action`, `message_only`, `consent_required`, `user_password_expired`,
    /// `client_mismatch`). Whoever asked is told to sign in again.
    pub fn rejected(error: impl AsRef<str>) -> Self {
        Self(Reason::Rejected(Rejection { error: code(error.as_ref()), sub_error: None }))
    }

    /// The sub-error beside `invalid_grant` (`suberror` at Entra ID).
    #[must_use]
    pub fn sub_error(mut self, named: impl AsRef<str>) -> Self {
        if let Reason::Rejected(Rejection { sub_error, .. }) = &mut self.0 {
            *sub_error = Some(code(named.as_ref()));
        }
        self
    }

    /// The server refused the request for a reason that says nothing about the refresh token, with this
    /// error code: `invalid_scope`, `invalid_client`, `unauthorized_client`, `invalid_request`.
    pub fn refused(error: impl AsRef<str>) -> Self {
        Self(Reason::Refused { error: code(error.as_ref()) })
    }

    /// The call failed in a way that says nothing about the refresh token. `cause` becomes the
    /// `source()` of the error that the waiting callers get, so it must not show a token.
    pub fn transient(cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self(Reason::Transient { retry_after: None, cause: Cause(Arc::from(cause.into())) })
    }

    /// When the server says that it may be asked again (RFC 9110 section 10.2.3).
    #[must_use]
    pub fn retry_after(mut self, delay: Duration) -> Self {
        if let Reason::Transient { retry_after, .. } = &mut self.0 {
            *retry_after = Some(delay);
        }
        self
    }

    /// Tells from the status and the body of the server's answer which of them it is (RFC 6749 section
    /// 5.2). Nothing of the body but its error codes is kept.
    pub fn from_error_response(status: u16, body: impl Into<SecretBytes>) -> Self {
        let body = Body::parse(body.into()).ok();
        let text = |field| body.as_ref().and_then(|body| body.text_of(field).ok().flatten());
        // What a server says while it fails, a proxy may have said.
        let error = text("error").filter(|_| (400..500).contains(&status) && status != 429);
        match error.as_deref() {
            Some(error) if error == "invalid_grant" || USER_IS_NEEDED.contains(&error) => {
                let failure = Self::rejected(error);
                match text("suberror") {
                    Some(sub_error) => failure.sub_error(sub_error),
                    None => failure,
                }
            }
            Some(error) if REQUEST_IS_WRONG.contains(&error) => Self::refused(error),
            Some(error) => Self::transient(format!("status {status}, error {}", code(error))),
            None => Self::transient(format!("status {status}")),
        }
    }

    /// Whether the server rejected the refresh token.
    pub fn is_rejected(&self) -> bool {
        matches!(self.0, Reason::Rejected(_))
    }
}

impl From<CacheError> for RefreshFailure {
    /// An answer that is no token response: a proxy's page, say.
    fn from(error: CacheError) -> Self {
        Self::transient(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_apart() {
        let rejection = |status, body: &str| match RefreshFailure::from_error_response(status, body).0 {
            Reason::Rejected(rejection) => Some((rejection.ends_token(), rejection)),
            _ => None,
        };
        let (ends, plain) = rejection(400, r#"{"error":"invalid_grant"}"#).unwrap();
        assert!(ends && plain.sub_error.is_none());
        for (sub_error, ends) in [("bad_token", true), ("token_expired", true), ("consent_required", false)] {
            let body = format!(r#"{{"error":"invalid_grant","suberror":"{sub_error}"}}"#);
            assert_eq!(rejection(400, &body).unwrap().0, ends, "{sub_error}");
        }
        assert!(!rejection(400, r#"{"error":"interaction_required"}"#).unwrap().0);
        for (status, body) in [
            (503, ""),
            (429, r#"{"error":"temporarily_unavailable"}"#),
            (401, r#"{"error":"something else"}"#),
            (500, r#"{"error":"invalid_grant"}"#),
            (200, "<html>"),
            (400, r#"{"error":["invalid_grant"]}"#),
        ] {
            let failure = RefreshFailure::from_error_response(status, body);
            assert!(matches!(failure.0, Reason::Transient { .. }), "{status} {body}");
        }
        let failure = RefreshFailure::from_error_response(401, r#"{"error":"invalid_client"}"#);
        assert!(matches!(failure.0, Reason::Refused { error } if error == "invalid_client"));
    }

    #[test]
    fn nothing_but_codes_is_kept() {
        let failure = RefreshFailure::from_error_response(
            400,
            r#"{"error":"invalid_grant","suberror":"token eyJsecret was used","error_description":"eyJsecret"}"#,
        );
        assert!(!format!("{failure:?}").contains("secret") && format!("{failure:?}").contains("unknown"));
        let failure = RefreshFailure::transient("eyJsecret");
        assert!(!format!("{failure:?}").contains("secret"));
    }
}
