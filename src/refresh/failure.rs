//! Why a call to the token endpoint failed.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::meaning::{self, Meaning};
use crate::cache::{Body, CacheError, ErrorResponse, code};
use crate::secret::{Secret, SecretBytes};

/// The error of a call, shared by all callers that waited for it. It is never printed here.
#[derive(Clone)]
pub(super) struct Cause(pub(super) Arc<dyn StdError + Send + Sync>);

impl fmt::Debug for Cause {
    /// A client's error may show anything, even a token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cause(..)")
    }
}

/// Why a call to the token endpoint failed: the function passed to `acquire` returns it instead of a
/// [`TokenResponse`](crate::TokenResponse). [`RefreshCall::answer`](crate::refresh::RefreshCall::answer)
/// makes one from the server's response.
///
/// There are three kinds; only the first needs the user:
///
/// - the server **rejected** the refresh token (`invalid_grant`, RFC 6749 section 5.2), or wants the
///   user to be asked something;
/// - it **refused** the request for another reason (`invalid_scope`, `invalid_client`): this request
///   is not repeated for two minutes, and others are not affected;
/// - anything else is **transient**: no connection, a timeout, a status 429 or 5xx, a response that
///   cannot be read. The tokens are kept, and nobody tries again before the back-off is over.
///
/// ```
/// use std::time::Duration;
/// use tokenseal::refresh::RefreshFailure;
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
#[must_use = "return it from the call"]
pub struct RefreshFailure(pub(super) Reason);

#[derive(Debug, Clone)]
pub(super) enum Reason {
    Rejected(Rejection),
    Refused {
        error: String,
    },
    /// An error status without an error code: only this request is known to fail.
    Unexplained {
        status: u16,
        retry_after: Option<Duration>,
    },
    Transient {
        retry_after: Option<Duration>,
        cause: Cause,
    },
}

/// The codes with which a server rejects a refresh token, or asks for the user.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Rejection {
    pub(super) error: String,
    pub(super) sub_error: Option<String>,
    /// Whether the refresh token is certainly invalid.
    pub(super) ends_token: bool,
    /// The claims to request at the sign-in. They may be about a user, and are not shown.
    pub(super) claims: Option<Secret>,
}

/// The only code for an invalid refresh token (RFC 6749 section 5.2).
const INVALID_GRANT: &str = "invalid_grant";

/// Entra ID's sub-error for an invalid refresh token.
const BAD_TOKEN: &str = "bad_token";

impl RefreshFailure {
    /// Returns a word for the outcome, and the server's error code, if any.
    pub(super) fn outcome(&self) -> (&'static str, Option<&str>) {
        match &self.0 {
            Reason::Rejected(rejection) => ("rejected", Some(&rejection.error)),
            Reason::Refused { error } => ("refused", Some(error)),
            Reason::Transient { .. } => ("transient", None),
            Reason::Unexplained { .. } => ("refused without a code", None),
        }
    }

    /// The server rejected the refresh token with this error code: `invalid_grant`, or one that requires the
    /// user, such as `interaction_required`.
    ///
    /// The token is removed from the cache if it is certainly invalid: the code is `invalid_grant`, and the
    /// [sub-error](Self::sub_error) is `bad_token` or absent. Otherwise it may work for another request, and
    /// is kept. Callers are told to sign in again.
    pub fn rejected(error: impl AsRef<str>) -> Self {
        let error = code(error.as_ref());
        let ends_token = error.eq_ignore_ascii_case(INVALID_GRANT);
        Self(Reason::Rejected(Rejection { error, sub_error: None, ends_token, claims: None }))
    }

    /// The sub-error beside `invalid_grant` (`suberror` at Entra ID, `error_subtype` at Google).
    pub fn sub_error(mut self, named: impl AsRef<str>) -> Self {
        if let Reason::Rejected(Rejection { sub_error, ends_token, .. }) = &mut self.0
            && !named.as_ref().is_empty()
        {
            *ends_token &= named.as_ref() == BAD_TOKEN;
            *sub_error = Some(code(named.as_ref()));
        }
        self
    }

    /// The server refused the request for a reason that says nothing about the refresh token, with this
    /// error code: `invalid_scope`, `invalid_client`, `unauthorized_client`, `invalid_request`.
    pub fn refused(error: impl AsRef<str>) -> Self {
        Self(Reason::Refused { error: code(error.as_ref()) })
    }

    /// The call failed for a reason unrelated to the refresh token. `cause` becomes the `source()` of the error
    /// that the callers get, so it must not show a token.
    pub fn transient(cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self(Reason::Transient { retry_after: None, cause: Cause(Arc::from(cause.into())) })
    }

    /// The delay that the server asks for (RFC 9110 section 10.2.3), up to five minutes.
    pub fn retry_after(mut self, delay: Duration) -> Self {
        if let Reason::Transient { retry_after, .. } | Reason::Unexplained { retry_after, .. } = &mut self.0 {
            *retry_after = Some(delay);
        }
        self
    }

    /// Classifies an error response by its status and body (RFC 6749 section 5.2). Only the codes and `claims`
    /// of the body are kept.
    ///
    /// A refusal is definite with a status 400, 401, 403 or 422, or a success whose body is an error, as
    /// GitHub and Slack send it, and a code: `error`, or in other providers' forms `error.code`,
    /// `error_code` or `code`. Codes that mean "later", such as `rate_limited`, are transient, and so are
    /// all other statuses, whatever their body.
    pub fn from_error_response(status: u16, body: impl Into<SecretBytes>) -> Self {
        let read = Body::parse(body.into()).map(|body| ErrorResponse::read(&body));
        Self::classified(status, read.unwrap_or_default())
    }

    pub(super) fn classified(status: u16, response: ErrorResponse) -> Self {
        let ErrorResponse { code, sub_error, has_details, is_standard, claims } = response;
        let is_success = (200..300).contains(&status);
        let is_refusal = is_success || matches!(status, 400 | 401 | 403 | 422);
        match code.filter(|_| is_refusal) {
            Some(error) => match meaning::of(&error) {
                Meaning::Later => Self::transient(format!("status {status}, error {error}")),
                Meaning::RequestIsWrong => Self(Reason::Refused { error }),
                Meaning::UserIsNeeded => {
                    let is_dead = !has_details || sub_error.as_deref() == Some(BAD_TOKEN);
                    let ends_token = is_standard
                        && error.eq_ignore_ascii_case(INVALID_GRANT)
                        && is_dead
                        && matches!(status, 400 | 401 | 403);
                    let claims = claims.map(Secret::from);
                    Self(Reason::Rejected(Rejection { error, sub_error, ends_token, claims }))
                }
            },
            None if is_refusal && !is_success => Self(Reason::Unexplained { status, retry_after: None }),
            None => Self::transient(format!("status {status}")),
        }
    }

    /// Whether the server rejected the refresh token, or requires the user.
    pub fn is_rejected(&self) -> bool {
        matches!(self.0, Reason::Rejected(_))
    }
}

impl From<CacheError> for RefreshFailure {
    /// The response is not a token response, but a proxy's page, for example, or an error with a success status.
    fn from(error: CacheError) -> Self {
        match error {
            CacheError::ErrorResponse { error } => {
                Self::classified(200, ErrorResponse { code: Some(error), ..ErrorResponse::default() })
            }
            error => Self::transient(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(status: u16, body: &str) -> Reason {
        RefreshFailure::from_error_response(status, body).0
    }

    fn rejection(status: u16, body: &str) -> Rejection {
        match failure(status, body) {
            Reason::Rejected(rejection) => rejection,
            other => panic!("{status} {body}: {other:?}"),
        }
    }

    #[test]
    fn a_refresh_token_is_dead_only_where_the_answer_says_nothing_else() {
        for (status, body) in [
            (400, r#"{"error":"invalid_grant"}"#),
            (401, r#"{"error":"INVALID_GRANT","error_description":"AADSTS50057: disabled"}"#),
            (403, r#"{"error":"invalid_grant","error_codes":[],"suberror":""}"#),
            (400, r#"{"error":"invalid_grant","suberror":"bad_token","error_codes":[70000]}"#),
        ] {
            assert!(rejection(status, body).ends_token, "{status} {body}");
        }
        for (status, body) in [
            (200, r#"{"error":"invalid_grant"}"#),
            (422, r#"{"error":"invalid_grant"}"#),
            (400, r#"{"error":"invalid_grant","error_codes":[50057]}"#),
            (400, r#"{"error":"invalid_grant","suberror":"device_authentication_failed"}"#),
            (400, r#"{"error":"invalid_grant","sub_error":"token_expired"}"#),
            (400, r#"{"error":"invalid_grant","error_subtype":"invalid_rapt"}"#),
            (400, r#"{"error":"invalid_grant","suberror":{"not":"text"}}"#),
            (400, r#"{"error":"bad_refresh_token"}"#),
            (401, r#"{"error":{"code":"refresh_token_reused"}}"#),
            (400, r#"{"error":"interaction_required","suberror":"bad_token"}"#),
        ] {
            assert!(!rejection(status, body).ends_token, "{status} {body}");
        }
        let shown = rejection(400, r#"{"error":"invalid_grant","error_subtype":"invalid_rapt"}"#).sub_error;
        assert_eq!(shown.as_deref(), Some("invalid_rapt"));
    }

    #[test]
    fn a_definite_refusal_is_no_outage_and_an_outage_no_refusal() {
        for (status, body) in [
            (400, r#"{"error":"invalid_target"}"#),
            (403, r#"{"error":"admin_policy_enforced"}"#),
            (422, r#"{"error_code":"validation_failed"}"#),
            (200, r#"{"ok":false,"error":"invalid_scope"}"#),
            (401, r#"{"error":"invalid_client"}"#),
        ] {
            assert!(matches!(failure(status, body), Reason::Refused { .. }), "{status} {body}");
        }
        for (status, body) in [
            (503, ""),
            (503, r#"{"error":"invalid_grant"}"#),
            (500, r#"{"error":"invalid_grant"}"#),
            (404, r#"{"error":"invalid_grant"}"#),
            (404, ""),
            (408, ""),
            (425, ""),
            (302, r#"{"error":"invalid_grant"}"#),
            (429, r#"{"error":"invalid_grant"}"#),
            (400, r#"{"error":"temporarily_unavailable"}"#),
            (400, r#"{"error":"use_dpop_nonce"}"#),
            (200, r#"{"ok":false}"#),
            (200, "<html>"),
        ] {
            assert!(matches!(failure(status, body), Reason::Transient { .. }), "{status} {body}");
        }
        for (status, body) in [(400, "<html>"), (401, ""), (403, r#"{"error":"two words"}"#), (422, "{}")] {
            assert!(matches!(failure(status, body), Reason::Unexplained { .. }), "{status} {body}");
        }
    }

    #[test]
    fn a_byte_order_mark_is_skipped() {
        assert!(rejection(400, "\u{feff}{\"error\":\"invalid_grant\"}").ends_token);
    }

    #[test]
    fn nothing_but_codes_is_kept_and_claims_are_not_shown() {
        let failure = RefreshFailure::from_error_response(
            400,
            r#"{"error":"invalid_grant","suberror":"token eyJsecret was used","error_description":"eyJsecret","claims":"{\"id\":\"eyJsecret\"}"}"#,
        );
        assert!(!format!("{failure:?}").contains("secret") && format!("{failure:?}").contains("unknown"));
        let failure = RefreshFailure::transient("eyJsecret");
        assert!(!format!("{failure:?}").contains("secret"));
    }
}
