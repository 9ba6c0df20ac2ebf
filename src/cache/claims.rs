//! Who signed in: the claims of `id_token` and `client_info`, read without validation.
//!
//! The cache does not trust these claims; it only sorts tokens by them. Validating an `id_token` is
//! the client's task, done before the response gets here.

use base64ct::{Base64UrlUnpadded, Encoding as _};

use super::error::CacheError;
use super::fields::parse_time;
use super::json;
use super::json_text;
use crate::secret::SecretBytes;

/// What an id token must be where nothing else says whose it is.
const NOT_READABLE: &str =
    "a JSON Web Token that is not encrypted (or name the account with `home_account_id`)";

/// A decoded JSON object of claims.
pub(crate) struct Claims(SecretBytes);

impl Claims {
    /// The payload of a JSON Web Token (RFC 7519 section 3).
    pub(crate) fn of_id_token(id_token: &str) -> Result<Self, CacheError> {
        let unusable = CacheError::UnusableField { field: "id_token", expected: NOT_READABLE };
        id_token.split('.').nth(1).and_then(Self::decode).ok_or(unusable)
    }

    /// MSAL's `client_info`.
    pub(crate) fn of_client_info(client_info: &str) -> Result<Self, CacheError> {
        let expected = "a JSON object in base64url";
        Self::decode(client_info).ok_or(CacheError::UnusableField { field: "client_info", expected })
    }

    fn decode(base64url: &str) -> Option<Self> {
        let base64url = base64url.trim_end_matches('=');
        let mut bytes = SecretBytes::from(vec![0; base64url.len() / 4 * 3 + 2]);
        let length = Base64UrlUnpadded::decode(base64url, bytes.expose_mut()).ok()?.len();
        let claims = Self(SecretBytes::from(&bytes.expose()[..length]));
        let text = std::str::from_utf8(claims.0.expose()).ok()?;
        let mut scanner = json::Scanner::new(text);
        let is_object = scanner.peek() == Some(b'{') && scanner.value().is_ok() && scanner.finish().is_ok();
        is_object.then_some(claims)
    }

    /// A claim that is text and not empty.
    pub(crate) fn text(&self, name: &str) -> Option<String> {
        json_text::decode(self.raw(name)?).map(std::borrow::Cow::into_owned).filter(|text| !text.is_empty())
    }

    /// The first text of a claim that is a list.
    pub(crate) fn first_text(&self, name: &str) -> Option<String> {
        json::elements(self.raw(name)?)
            .find_map(json_text::decode)
            .map(std::borrow::Cow::into_owned)
            .filter(|text| !text.is_empty())
    }

    /// A claim that is a time, in Unix seconds.
    pub(crate) fn seconds(&self, name: &str) -> Option<i64> {
        let raw = self.raw(name)?;
        let text = json_text::decode(raw);
        parse_time(text.as_deref().unwrap_or(raw))
    }

    fn raw(&self, name: &str) -> Option<&str> {
        let object = std::str::from_utf8(self.0.expose()).expect("checked when it was decoded");
        json::member(object, name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client_info(base64url: &str) -> Result<Option<String>, CacheError> {
        Claims::of_client_info(base64url).map(|claims| claims.text("uid"))
    }

    #[test]
    fn padding_is_optional() {
        assert_eq!(client_info("eyJ1aWQiOiAiYSJ9").unwrap().as_deref(), Some("a"));
        assert_eq!(client_info("eyJ1aWQiOiAiYWIifQ").unwrap().as_deref(), Some("ab"));
        assert_eq!(client_info("eyJ1aWQiOiAiYWIifQ==").unwrap().as_deref(), Some("ab"));
    }

    #[test]
    fn what_is_no_object_is_an_error() {
        for base64url in ["", "!", "W10", "eyJ", "bnVsbA"] {
            assert!(client_info(base64url).is_err(), "{base64url}");
        }
        assert!(Claims::of_id_token("only-one-part").is_err());
        assert!(Claims::of_id_token("a.!!.c").is_err());
    }
}
