//! Error responses of token endpoints (RFC 6749 section 5.2), in the forms that providers really send.

use super::json::{self, elements};
use super::json_text;
use super::response::Body;

/// The longest `claims` that are kept, in bytes.
const LONGEST_CLAIMS: usize = 4096;

/// What an error response says. Nothing else of it is kept: descriptions may quote tokens.
#[derive(Debug, Default)]
#[cfg_attr(not(feature = "file"), allow(dead_code))] // The model alone makes no refresh.
pub(crate) struct ErrorResponse {
    /// What happened; `None` where no code can be read.
    pub(crate) code: Option<String>,
    /// More exactly (`suberror`, `error_subtype`).
    pub(crate) sub_error: Option<String>,
    /// Whether it says more than RFC 6749 has: sub-errors, readable or not, or a list of codes.
    pub(crate) has_details: bool,
    /// Whether the code is that of the member `error`, as RFC 6749 has it.
    pub(crate) is_standard: bool,
    /// The claims that the next sign-in is to bring, as JSON.
    pub(crate) claims: Option<String>,
}

/// A code that can be shown: anything else may be a text with who knows what in it.
pub(crate) fn is_code(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte))
}

/// The code, or what is shown in its place.
pub(crate) fn code(text: &str) -> String {
    if is_code(text) { text.to_owned() } else { "unknown".to_owned() }
}

impl ErrorResponse {
    /// Reads a body that is an error response because of its status.
    pub(crate) fn read(body: &Body) -> Self {
        let text = |raw: &str| json_text::decode(raw).map(std::borrow::Cow::into_owned);
        let code_of = |raw: &str| text(raw).filter(|text| is_code(text));
        // RFC 6749; OpenAI and others; Supabase, Okta and others.
        let error = body.raw("error");
        let nested = error.and_then(|error| json::member(error, "code"));
        let code =
            [error, nested, body.raw("error_code"), body.raw("code")].into_iter().flatten().find_map(code_of);
        let is_standard = error.and_then(code_of).is_some();
        // Entra ID has two spellings, Google one; some put them into the error.
        let within =
            |name: &str| error.filter(|error| error.starts_with('{')).and_then(|it| json::member(it, name));
        let either = |name: &str| body.raw(name).or_else(|| within(name));
        let mut details = ["suberror", "sub_error", "error_subtype"]
            .into_iter()
            .filter_map(either)
            .filter(|&raw| is_said(raw))
            .peekable();
        let has_codes =
            either("error_codes").is_some_and(|raw| is_said(raw) || elements(raw).next().is_some());
        let has_details = has_codes || details.peek().is_some();
        let sub_error = details.find_map(text).map(|text| self::code(&text));
        let claims = body
            .raw("claims")
            .and_then(|raw| if raw.starts_with('{') { Some(raw.to_owned()) } else { text(raw) });
        let claims =
            claims.filter(|claims| claims.len() <= LONGEST_CLAIMS && claims.trim_start().starts_with('{'));
        Self { code, sub_error, has_details, is_standard, claims }
    }

    /// Reads a body that came with a status of success; `None` if it is no error response.
    pub(crate) fn in_success(body: &Body) -> Option<Self> {
        let is_error = body.raw("error").is_some_and(is_said) || body.raw("ok") == Some("false");
        let read = Self::read(body);
        let is_nothing_else = || !body.has_tokens() && read.code.is_some();
        (is_error || is_nothing_else()).then_some(read)
    }
}

/// Whether a member says anything: some servers write empty ones.
fn is_said(raw: &str) -> bool {
    !matches!(raw, "null" | "false" | "0" | "\"\"")
        && !matches!(raw.split_ascii_whitespace().collect::<String>().as_str(), "{}" | "[]")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(json: &str) -> Body {
        Body::parse(json.into()).unwrap()
    }

    #[test]
    fn codes_are_found_where_providers_write_them() {
        for (json, expected) in [
            (r#"{"error":"invalid_grant"}"#, Some("invalid_grant")),
            (
                r#"{"error":{"message":"no","type":"t","code":"refresh_token_reused"}}"#,
                Some("refresh_token_reused"),
            ),
            (
                r#"{"code":400,"error_code":"refresh_token_not_found","msg":"no"}"#,
                Some("refresh_token_not_found"),
            ),
            (r#"{"code":"invalid_token"}"#, Some("invalid_token")),
            (r#"{"error":"Something went wrong","error_code":"E1.2-x"}"#, Some("E1.2-x")),
            (r#"{"error":{"code":190}}"#, None),
            (r#"{"error":"two words"}"#, None),
            (r#"{"error":["invalid_grant"]}"#, None),
            (r#"{"error":""}"#, None),
        ] {
            assert_eq!(ErrorResponse::read(&body(json)).code.as_deref(), expected, "{json}");
        }
        let long = format!(r#"{{"error":"{}"}}"#, "x".repeat(65));
        assert_eq!(ErrorResponse::read(&body(&long)).code, None);
    }

    #[test]
    fn details_are_noticed_though_they_cannot_be_shown() {
        for (json, sub_error) in [
            (r#"{"error":"e","suberror":"bad_token"}"#, Some("bad_token")),
            (r#"{"error":"e","sub_error":"x"}"#, Some("x")),
            (r#"{"error":"e","error_subtype":"invalid_rapt"}"#, Some("invalid_rapt")),
            (r#"{"error":"e","suberror":"eyJ secret"}"#, Some("unknown")),
            (r#"{"error":"e","suberror":{"a":1}}"#, None),
            (r#"{"error":"e","error_codes":[50057]}"#, None),
        ] {
            let read = ErrorResponse::read(&body(json));
            assert!(read.has_details, "{json}");
            assert_eq!(read.sub_error.as_deref(), sub_error, "{json}");
        }
        for json in [
            r#"{"error":"e"}"#,
            r#"{"error":"e","suberror":"","error_codes":[ ],"sub_error":null}"#,
            r#"{"error":"e","error_description":"d"}"#,
        ] {
            assert!(!ErrorResponse::read(&body(json)).has_details, "{json}");
        }
    }

    #[test]
    fn errors_in_a_success_are_told_from_tokens() {
        let is_error = |json: &str| ErrorResponse::in_success(&body(json)).is_some();
        for json in [
            r#"{"error":"bad_refresh_token"}"#,
            r#"{"ok":false,"error":"invalid_refresh_token"}"#,
            r#"{"ok":false}"#,
            r#"{"error":{"code":190}}"#,
            r#"{"error":"e","access_token":"at"}"#,
            r#"{"error_code":"E1"}"#,
        ] {
            assert!(is_error(json), "{json}");
        }
        for json in [
            "{}",
            r#"{"access_token":"at"}"#,
            r#"{"access_token":"at","error":"","ok":true}"#,
            r#"{"access_token":"at","error":null,"code":"c"}"#,
            r#"{"access_token":"at","error":false}"#,
            r#"{"access_token":"at","error":{ }}"#,
        ] {
            assert!(!is_error(json), "{json}");
        }
    }

    #[test]
    fn claims_are_kept_as_json_within_reason() {
        let claims = |json: &str| ErrorResponse::read(&body(json)).claims;
        let text = r#"{"error":"interaction_required","claims":"{\"access_token\":{}}"}"#;
        assert_eq!(claims(text).as_deref(), Some(r#"{"access_token":{}}"#));
        assert_eq!(claims(r#"{"claims":{"a":1}}"#).as_deref(), Some(r#"{"a":1}"#));
        for none in [r#"{"claims":1}"#, r#"{"claims":""}"#, r#"{"claims":"no json"}"#] {
            assert_eq!(claims(none), None, "{none}");
        }
        assert_eq!(claims(&format!(r#"{{"claims":{{"a":"{}"}}}}"#, "x".repeat(5_000))), None);
    }
}
