//! Texts in JSON: from a raw string to what it says, and back.
//!
//! A secret is copied into a block of its final size only: a growing one would leave parts of it in
//! the blocks that it outgrew.

use std::borrow::Cow;

use crate::secret::{Secret, SecretBytes};

/// What stands between the quotes of a raw JSON string.
pub(crate) fn unquoted(raw: &str) -> Option<&str> {
    raw.strip_prefix('"')?.strip_suffix('"')
}

/// The text of a raw JSON string; `None` if `raw` is not a string, or not one that UTF-8 can hold
/// (half of a surrogate pair).
///
/// Only a string with escapes is copied. Never call this for a secret: see [`decode_secret`].
pub(crate) fn decode(raw: &str) -> Option<Cow<'_, str>> {
    let inner = unquoted(raw)?;
    if !has_escape(inner) {
        return Some(Cow::Borrowed(inner));
    }
    let mut text = String::with_capacity(inner.len());
    unescape(inner, |part| text.push_str(part))?;
    Some(Cow::Owned(text))
}

/// Like [`decode`], but what it copies is wiped: into a block of the final size, never a growing one.
pub(crate) fn decode_secret(raw: &str) -> Option<Secret> {
    let inner = unquoted(raw)?;
    if !has_escape(inner) {
        return Some(Secret::from(inner));
    }
    let mut text = String::with_capacity(decoded_len(raw)?);
    decode_into(raw, &mut text);
    Some(Secret::from(text))
}

/// Looks at every byte, which vector instructions do faster than a search that may stop early.
fn has_escape(inner: &str) -> bool {
    inner.bytes().fold(0, |found, byte| found | u8::from(byte == b'\\')) != 0
}

/// The length of the text of a raw JSON string; `None` where [`decode`] gives none.
pub(crate) fn decoded_len(raw: &str) -> Option<usize> {
    let inner = unquoted(raw)?;
    if !has_escape(inner) {
        return Some(inner.len());
    }
    let mut length = 0;
    unescape(inner, |part| length += part.len())?;
    Some(length)
}

/// Appends the text of a raw JSON string, or nothing where it has none.
pub(crate) fn decode_into(raw: &str, text: &mut String) {
    let Some(inner) = unquoted(raw) else { return };
    if !has_escape(inner) {
        text.push_str(inner);
    } else if decoded_len(raw).is_some() {
        let _checked = unescape(inner, |part| text.push_str(part));
    }
}

/// Hands out the parts of a JSON string's text in order.
fn unescape(mut inner: &str, mut part: impl FnMut(&str)) -> Option<()> {
    while let Some(plain) = inner.find('\\') {
        part(&inner[..plain]);
        let kind = *inner.as_bytes().get(plain + 1)?;
        inner = inner.get(plain + 2..)?;
        let simple = match kind {
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let (character, rest) = unescape_unicode(inner)?;
                inner = rest;
                character
            }
            other => char::from(other),
        };
        part(simple.encode_utf8(&mut [0; 4]));
    }
    part(inner);
    Some(())
}

/// Reads the four digits after `\u`, and the second half of a surrogate pair.
fn unescape_unicode(rest: &str) -> Option<(char, &str)> {
    let unit = |text: &str| u32::from_str_radix(text.get(..4)?, 16).ok();
    let high = unit(rest)?;
    let rest = &rest[4..];
    if let Some(character) = char::from_u32(high) {
        return Some((character, rest));
    }
    let low = unit(rest.strip_prefix("\\u")?)?;
    if !(0xD800..0xDC00).contains(&high) || !(0xDC00..0xE000).contains(&low) {
        return None;
    }
    let character = char::from_u32(0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00))?;
    Some((character, &rest[6..]))
}

/// Appends `text` as a JSON string.
pub(crate) fn encode(text: &str, out: &mut SecretBytes) {
    serde_json::to_writer(out, text).expect("writing a string into memory cannot fail");
}

/// `text`, which is no secret, as a JSON string.
pub(crate) fn encoded(text: &str) -> String {
    serde_json::to_string(text).expect("a string can always be written")
}

/// The text after a byte order mark, which RFC 8259 (section 8.1) lets a reader ignore.
pub(crate) fn without_byte_order_mark(json: SecretBytes) -> SecretBytes {
    match json.expose().strip_prefix(b"\xEF\xBB\xBF") {
        Some(rest) => SecretBytes::from(rest),
        None => json,
    }
}

#[cfg(test)]
mod tests {
    use super::super::json::Scanner;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn half_a_surrogate_pair_is_no_text() {
        for raw in [r#""\ud800""#, r#""\udc00\ud800""#, r#""\ud800x""#, r#""\ud800\u0041""#, "1", "\""] {
            assert_eq!(decode(raw), None, "{raw}");
            assert_eq!(decode_secret(raw), None, "{raw}");
        }
    }

    proptest! {
        #[test]
        fn strings_survive(text in any::<String>()) {
            let mut out = SecretBytes::default();
            encode(&text, &mut out);
            let raw = std::str::from_utf8(out.expose()).unwrap();
            prop_assert!(Scanner::new(raw).value().is_ok());
            prop_assert!(decode(raw).is_some_and(|decoded| decoded == text));
            prop_assert!(decode_secret(raw).is_some_and(|decoded| decoded.expose() == text));
        }

        #[test]
        fn escapes_read_as_serde_json_reads_them(units in proptest::collection::vec(any::<u16>(), 0..6)) {
            let raw = units.iter().fold(String::from("\""), |raw, unit| format!("{raw}\\u{unit:04x}")) + "\"";
            prop_assert_eq!(decode(&raw).map(Cow::into_owned), serde_json::from_str::<String>(&raw).ok());
        }
    }
}
