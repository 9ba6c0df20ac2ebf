//! A call to the token endpoint: the request to send, and the interpretation of the response.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use super::failure::RefreshFailure;
use crate::cache::{ErrorResponse, TokenResponse, append_to_form, form_to_json, is_microsoft};
use crate::secret::{Secret, SecretBytes};

/// A refresh to make (RFC 6749 section 6): the argument of the function passed to `acquire`.
///
/// [`form`](Self::form) is the body to send, and [`answer`](Self::answer) interprets the response. A program
/// with its own OAuth client uses the parts instead, and returns a
/// [`TokenResponse`] or a [`RefreshFailure`] itself.
///
/// ```
/// use tokenseal::TokenResponse;
/// use tokenseal::refresh::{RefreshCall, RefreshFailure};
/// # struct Answer { status: u16, content_type: Option<&'static str>, retry_after: Option<&'static str>, body: &'static str }
/// # fn post(_: &str) -> std::io::Result<Answer> {
/// #     Ok(Answer { status: 200, content_type: None, retry_after: None, body: "{}" }) }
///
/// fn refresh(call: RefreshCall) -> Result<TokenResponse, RefreshFailure> {
///     // `post` sends it with any HTTP client, as `application/x-www-form-urlencoded`.
///     let answer = post(call.form().expose()).map_err(RefreshFailure::transient)?;
///     call.answer(answer.status, answer.content_type, answer.retry_after, answer.body)
/// }
/// ```
#[non_exhaustive]
pub struct RefreshCall {
    refresh_token: Secret,
    request: Request,
}

/// A token to obtain without a refresh token: the argument of the function passed to
/// [`acquire_for_application`](crate::PersistedTokenCache::acquire_for_application) or
/// [`acquire_with`](crate::PersistedTokenCache::acquire_with).
///
/// [`form`](Self::form) is the body of a client credentials request (RFC 6749 section 4.4), and
/// [`answer`](Self::answer) interprets the response. A program that obtains its token in another way (a managed
/// identity, on behalf of a user, from another program) uses the parts instead.
///
/// ```
/// use tokenseal::TokenResponse;
/// use tokenseal::refresh::{MintCall, RefreshFailure};
///
/// fn from_the_metadata_service(call: MintCall) -> Result<TokenResponse, RefreshFailure> {
/// #   let get = |_: &str| Ok::<_, std::io::Error>((200, r#"{"access_token":"at","expires_in":"3600"}"#));
///     let (status, body) = get(&call.scopes().join(" ")).map_err(RefreshFailure::transient)?;
///     call.answer(status, None, None, body)
/// }
/// ```
#[non_exhaustive]
pub struct MintCall {
    request: Request,
}

/// A call requested by a plan.
#[derive(Debug)]
pub(super) struct Call {
    /// `None` if the call needs none.
    pub(super) refresh_token: Option<Secret>,
    pub(super) request: Request,
}

/// The parameters of a token request.
pub(super) struct Request {
    pub(super) client_id: String,
    pub(super) environment: String,
    pub(super) realm: Option<String>,
    pub(super) scopes: Vec<String>,
    pub(super) claims: Option<String>,
    pub(super) token_endpoint: Option<String>,
    /// A token's lifetime counts from before the call: the machine may sleep before the response is processed.
    pub(super) began: SystemTime,
    /// Whether the form was built, so that these scopes were sent.
    pub(super) has_sent_scopes: AtomicBool,
}

impl RefreshCall {
    pub(super) fn new(call: Call) -> Self {
        Self { refresh_token: call.refresh_token.unwrap_or_else(|| Secret::from("")), request: call.request }
    }

    /// The refresh token to send.
    pub fn refresh_token(&self) -> &Secret {
        &self.refresh_token
    }

    /// The client id.
    pub fn client_id(&self) -> &str {
        &self.request.client_id
    }

    /// The identity provider's host.
    pub fn environment(&self) -> &str {
        &self.request.environment
    }

    /// The requested realm (tenant), if the request or the cache names one.
    pub fn realm(&self) -> Option<&str> {
        self.request.realm.as_deref()
    }

    /// The requested scopes. A program that sends them itself passes them to
    /// [`TokenResponse::requested_scopes`]; otherwise a response without `scope` has the scopes of the sign-in.
    pub fn scopes(&self) -> &[String] {
        &self.request.scopes
    }

    /// The requested claims, as JSON (`AcquireRequest::claims`).
    pub fn claims(&self) -> Option<&str> {
        self.request.claims.as_deref()
    }

    /// The URL of the token endpoint, if known: from the request, or derived for Microsoft's hosts.
    pub fn token_endpoint(&self) -> Option<&str> {
        self.request.token_endpoint.as_deref()
    }

    /// The request body, `application/x-www-form-urlencoded`: the grant type, the client id, the refresh
    /// token, and the scopes and claims if there are any. A confidential client adds its authentication
    /// (RFC 6749 section 2.3).
    pub fn form(&self) -> Secret {
        self.request.form("refresh_token", Some(&self.refresh_token))
    }

    /// Interprets the server's response: returns the tokens, or the reason why there are none.
    ///
    /// `content_type` and `retry_after` are the values of these headers; `Retry-After` may be a number of seconds
    /// or a date. The body is JSON or form-encoded.
    ///
    /// # Errors
    /// [`RefreshFailure`] if the response is an error, with whatever status, or has no token.
    pub fn answer(
        &self,
        status: u16,
        content_type: Option<&str>,
        retry_after: Option<&str>,
        body: impl Into<SecretBytes>,
    ) -> Result<TokenResponse, RefreshFailure> {
        self.request.answer(status, content_type, retry_after, body.into())
    }
}

impl MintCall {
    pub(super) fn new(call: Call) -> Self {
        Self { request: call.request }
    }

    /// The client id.
    pub fn client_id(&self) -> &str {
        &self.request.client_id
    }

    /// The identity provider's host.
    pub fn environment(&self) -> &str {
        &self.request.environment
    }

    /// The requested realm (tenant), if the request names one.
    pub fn realm(&self) -> Option<&str> {
        self.request.realm.as_deref()
    }

    /// The requested scopes. A response without `scope` is taken to grant these.
    pub fn scopes(&self) -> &[String] {
        &self.request.scopes
    }

    /// The requested claims, as JSON (`AcquireRequest::claims`).
    pub fn claims(&self) -> Option<&str> {
        self.request.claims.as_deref()
    }

    /// The URL of the token endpoint, if known: from the request, or derived for Microsoft's hosts.
    pub fn token_endpoint(&self) -> Option<&str> {
        self.request.token_endpoint.as_deref()
    }

    /// The body of a client credentials request, `application/x-www-form-urlencoded`: the grant type, the
    /// client id, and the scopes and claims if there are any. The client adds its authentication (RFC 6749
    /// section 2.3).
    pub fn form(&self) -> Secret {
        self.request.form("client_credentials", None)
    }

    /// Interprets the server's response, as [`RefreshCall::answer`] does.
    ///
    /// # Errors
    /// [`RefreshFailure`] if the response is an error, with whatever status, or has no token.
    pub fn answer(
        &self,
        status: u16,
        content_type: Option<&str>,
        retry_after: Option<&str>,
        body: impl Into<SecretBytes>,
    ) -> Result<TokenResponse, RefreshFailure> {
        self.request.answer(status, content_type, retry_after, body.into())
    }
}

impl Request {
    fn form(&self, grant_type: &str, refresh_token: Option<&Secret>) -> Secret {
        let scopes = self.scopes.join(" ");
        let length = refresh_token.map_or(0, |token| token.expose().len()) + scopes.len();
        let mut form = SecretBytes::with_capacity(3 * (length + self.client_id.len()) + 256);
        let mut append = |name, value: &str| append_to_form(&mut form, name, value);
        append("grant_type", grant_type);
        append("client_id", &self.client_id);
        if let Some(refresh_token) = refresh_token {
            append("refresh_token", refresh_token.expose());
        }
        if !scopes.is_empty() {
            append("scope", &scopes);
            self.has_sent_scopes.store(true, Ordering::Relaxed);
        }
        if let Some(claims) = &self.claims {
            append("claims", claims);
        }
        if refresh_token.is_some() && is_microsoft(&self.environment) {
            append("client_info", "1");
        }
        form.into_secret()
    }

    fn answer(
        &self,
        status: u16,
        content_type: Option<&str>,
        retry_after: Option<&str>,
        body: SecretBytes,
    ) -> Result<TokenResponse, RefreshFailure> {
        let body = if is_form(content_type, &body) { form_to_json(&body).unwrap_or(body) } else { body };
        let failed = |failure: RefreshFailure| match retry_after.and_then(delay) {
            Some(delay) => failure.retry_after(delay),
            None => failure,
        };
        if !(200..300).contains(&status) {
            return Err(failed(RefreshFailure::from_error_response(status, body)));
        }
        let mut response = TokenResponse::from_json(body).map_err(|error| failed(error.into()))?;
        if !response.body.has_tokens() {
            return Err(failed(match ErrorResponse::in_success(&response.body) {
                Some(error) => RefreshFailure::classified(status, error),
                None => crate::cache::CacheError::NoTokens.into(),
            }));
        }
        response.received_at = Some(self.began);
        if self.has_sent_scopes.load(Ordering::Relaxed) {
            response.requested_scopes.clone_from(&self.scopes);
        }
        Ok(response)
    }
}

impl fmt::Debug for RefreshCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.request.show(f, "RefreshCall")
    }
}

impl fmt::Debug for MintCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.request.show(f, "MintCall")
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.show(f, "Request")
    }
}

impl Request {
    fn show(&self, f: &mut fmt::Formatter<'_>, name: &str) -> fmt::Result {
        f.debug_struct(name)
            .field("client_id", &self.client_id)
            .field("environment", &self.environment)
            .field("realm", &self.realm)
            .field("scopes", &self.scopes)
            .finish_non_exhaustive()
    }
}

/// Whether a body is form-encoded: by its content type, or because it is not JSON and looks like a form.
fn is_form(content_type: Option<&str>, body: &SecretBytes) -> bool {
    let media_type = content_type.and_then(|named| named.split(';').next()).unwrap_or_default().trim();
    if media_type.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
        // Some servers label JSON so.
        return !begins_like_json(body);
    }
    let text = trimmed(body);
    let begins = |name: &str| text.starts_with(name.as_bytes());
    let has = |name: &str| {
        let follows = |part: &[u8]| part[0] == b'&' && part[1..] == *name.as_bytes();
        begins(name) || text.windows(name.len() + 1).any(follows)
    };
    let is_json = media_type.to_ascii_lowercase().contains("json");
    // JSON never begins so, whatever the content type.
    begins("access_token=")
        || begins("error=")
        || !is_json && !begins_like_json(body) && (has("access_token=") || has("error="))
}

fn begins_like_json(body: &SecretBytes) -> bool {
    trimmed(body).first() == Some(&b'{')
}

/// Strips a byte order mark and surrounding blanks.
fn trimmed(body: &SecretBytes) -> &[u8] {
    let text = body.expose();
    text.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(text).trim_ascii()
}

/// `Retry-After`: seconds, or a date (RFC 9110 section 10.2.3).
fn delay(header: &str) -> Option<Duration> {
    let header = header.trim();
    // A header doubled by a proxy has a comma.
    let first = header.split(',').next().unwrap_or_default().trim().trim_start_matches('+');
    if first.starts_with(|c: char| c.is_ascii_digit())
        && let Ok(seconds) = first.parse::<f64>()
    {
        return Some(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX));
    }
    let date = httpdate::parse_http_date(header).ok()?;
    Some(date.duration_since(SystemTime::now()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::super::failure::Reason;
    use super::*;

    fn call(environment: &str) -> RefreshCall {
        let request = Request {
            client_id: "my app".into(),
            environment: environment.into(),
            realm: None,
            scopes: vec!["read".into(), "write".into()],
            claims: None,
            token_endpoint: None,
            began: SystemTime::now() - Duration::from_secs(10),
            has_sent_scopes: AtomicBool::new(false),
        };
        RefreshCall { refresh_token: Secret::from("r/t+1"), request }
    }

    #[test]
    fn the_form_has_what_the_standard_asks_for() {
        let plain = "grant_type=refresh_token&client_id=my+app&refresh_token=r%2Ft%2B1&scope=read+write";
        assert_eq!(call("idp.example").form().expose(), plain);
        let mut with_claims = call("login.microsoftonline.com");
        with_claims.request.claims = Some(r#"{"a":1}"#.into());
        assert_eq!(with_claims.form().expose(), format!("{plain}&claims=%7B%22a%22%3A1%7D&client_info=1"));
        let mut without_scopes = call("idp.example");
        without_scopes.request.scopes.clear();
        assert!(!without_scopes.form().expose().contains("scope"));
        let minted = MintCall { request: call("login.microsoftonline.com").request }.form();
        assert_eq!(minted.expose(), "grant_type=client_credentials&client_id=my+app&scope=read+write");
        assert!(!without_scopes.request.has_sent_scopes.load(Ordering::Relaxed));
    }

    #[test]
    fn an_answer_without_scopes_has_those_that_were_sent() {
        let call = call("idp.example");
        let body = r#"{"access_token":"at","expires_in":60}"#;
        let answer = |call: &RefreshCall| call.answer(200, None, None, body).unwrap();
        assert_eq!(answer(&call).granted(), None, "nothing was sent from here");
        let _form = call.form();
        assert_eq!(answer(&call).granted().as_deref(), Some("read write"));
        assert_eq!(answer(&call).received_at, Some(call.request.began));
    }

    #[test]
    fn forms_are_read_whatever_they_are_called() {
        let answer = |content_type, body: &str| {
            call("idp.example").answer(200, content_type, None, body).unwrap().access_token().unwrap()
        };
        let form = "access_token=a%20t&scope=read&token_type=bearer";
        for content_type in [
            Some("application/x-www-form-urlencoded; charset=utf-8"),
            Some("text/plain"),
            Some("text/html"),
            None,
        ] {
            assert_eq!(answer(content_type, form).expose(), "a t", "{content_type:?}");
        }
        let json = "\u{feff} {\"access_token\":\"a&access_token=b\"}";
        assert_eq!(answer(Some("application/x-www-form-urlencoded"), json).expose(), "a&access_token=b");
        let error = "error=bad_refresh_token&error_description=The+refresh+token";
        let failure = call("idp.example").answer(200, Some("application/x-www-form-urlencoded"), None, error);
        assert!(failure.unwrap_err().is_rejected());
        assert!(
            call("idp.example").answer(400, None, None, "error=invalid_grant").unwrap_err().is_rejected()
        );
        assert!(call("idp.example").answer(200, Some("text/html"), None, "<html>").is_err());
    }

    #[test]
    fn retry_after_is_read_in_both_forms() {
        let asked = |header: &str| {
            let failure = call("idp.example").answer(503, None, Some(header), "").unwrap_err();
            let Reason::Transient { retry_after, .. } = failure.0 else { panic!("{failure:?}") };
            retry_after
        };
        assert_eq!(asked(" 7 "), Some(Duration::from_secs(7)));
        let in_a_minute = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(60));
        assert!((Duration::from_secs(55)..=Duration::from_secs(60)).contains(&asked(&in_a_minute).unwrap()));
        assert_eq!(asked("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO));
        assert_eq!(asked("120.5"), Some(Duration::from_millis(120_500)));
        assert_eq!(asked("120, 120"), Some(Duration::from_secs(120)));
        assert!(asked("99999999999999999999999") > Some(Duration::from_secs(1_000)));
        assert_eq!(asked("soon"), None);
    }

    #[test]
    fn answers_without_a_token_are_failures() {
        let transient = |body: &str| {
            let failure = call("idp.example").answer(200, Some("application/json"), None, body).unwrap_err();
            matches!(failure.0, Reason::Transient { .. })
        };
        for body in ["{}", "", "<html>", r#"{"access_token":""}"#, r#"{"ok":false}"#, r#"{"scope":"read"}"#] {
            assert!(transient(body), "{body}");
        }
        for body in [r#"{"error":"bad_refresh_token"}"#, r#"{"ok":false,"error":"invalid_scope"}"#] {
            assert!(!transient(body), "{body}");
        }
    }

    #[test]
    fn nothing_secret_is_shown() {
        assert!(!format!("{:?}", call("idp.example")).contains("r/t"));
    }
}
