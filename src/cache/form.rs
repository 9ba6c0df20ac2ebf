//! Form-encoded bodies (`application/x-www-form-urlencoded`), read and written without leaving secrets
//! behind.

use super::json_text;
use crate::secret::SecretBytes;

/// A form as a JSON object of texts; `None` if it is not UTF-8 text. A byte order mark is skipped.
pub(crate) fn to_json(form: &SecretBytes) -> Option<SecretBytes> {
    let text = std::str::from_utf8(form.expose()).ok()?.trim_start_matches('\u{feff}').trim();
    // Escapes make a text longer, and a buffer that grows is wiped.
    let mut json = SecretBytes::with_capacity(text.len() * 2 + 16);
    json.extend(b"{");
    for (number, field) in text.split('&').filter(|field| !field.is_empty()).enumerate() {
        let (name, value) = field.split_once('=').unwrap_or((field, ""));
        if number > 0 {
            json.extend(b",");
        }
        json_text::encode(std::str::from_utf8(decoded(name).expose()).ok()?, &mut json);
        json.extend(b":");
        json_text::encode(std::str::from_utf8(decoded(value).expose()).ok()?, &mut json);
    }
    json.extend(b"}");
    Some(json)
}

fn decoded(text: &str) -> SecretBytes {
    let bytes = text.as_bytes();
    let mut decoded = SecretBytes::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let escaped = || {
            let digits = text.get(at + 1..at + 3)?;
            digits
                .bytes()
                .all(|digit| digit.is_ascii_hexdigit())
                .then(|| u8::from_str_radix(digits, 16).ok())?
        };
        match (byte, escaped()) {
            (b'%', Some(escaped)) => {
                decoded.extend(&[escaped]);
                at += 3;
                continue;
            }
            (b'+', _) => decoded.extend(b" "),
            _ => decoded.extend(&[byte]),
        }
        at += 1;
    }
    decoded
}

/// Appends a field to a form.
#[cfg(feature = "file")]
pub(crate) fn append(form: &mut SecretBytes, name: &str, value: &str) {
    if !form.is_empty() {
        form.extend(b"&");
    }
    encode(form, name);
    form.extend(b"=");
    encode(form, value);
}

#[cfg(feature = "file")]
fn encode(form: &mut SecretBytes, text: &str) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    for &byte in text.as_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'*' | b'-' | b'.' | b'_' => form.extend(&[byte]),
            b' ' => form.extend(b"+"),
            _ => form.extend(&[b'%', DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(form: &str) -> String {
        String::from_utf8(to_json(&form.into()).unwrap().into_vec()).unwrap()
    }

    #[test]
    fn forms_are_read_as_texts() {
        assert_eq!(json("access_token=a%2Fb&scope=x+y&e="), r#"{"access_token":"a/b","scope":"x y","e":""}"#);
        assert_eq!(json("\u{feff}a=%22%5C&&b"), r#"{"a":"\"\\","b":""}"#);
        assert_eq!(json("a=%zz&b=%2"), r#"{"a":"%zz","b":"%2"}"#);
        assert_eq!(json(""), "{}");
        assert!(to_json(&SecretBytes::from("a=%ff")).is_none(), "no UTF-8");
    }

    #[cfg(feature = "file")]
    #[test]
    fn what_is_written_is_read() {
        let mut form = SecretBytes::default();
        append(&mut form, "scope", "User.Read api://x/ü");
        append(&mut form, "b", "1&2=3%");
        assert_eq!(form.expose(), "scope=User.Read+api%3A%2F%2Fx%2F%C3%BC&b=1%262%3D3%25".as_bytes());
        assert_eq!(
            json(std::str::from_utf8(form.expose()).unwrap()),
            r#"{"scope":"User.Read api://x/ü","b":"1&2=3%"}"#
        );
    }
}
