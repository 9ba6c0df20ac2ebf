//! The fields of a row, whichever SDK wrote it: one name for each meaning.

use std::borrow::Cow;

use sha2::{Digest, Sha256};

use super::json::{self, Span};
use super::json_text;
use super::scopes::split_scopes;
use crate::secret::Secret;

/// What a field means. The spellings stand in [`Field::of`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Field {
    Secret,
    HomeAccountId,
    /// Ours: `named` where only the program said whose the token is.
    HomeAccountIdSource,
    /// Ours: who issued the id token, where accounts share an environment.
    Issuer,
    Environment,
    ClientId,
    Realm,
    Target,
    TokenType,
    CachedAt,
    ExpiresOn,
    ExtendedExpiresOn,
    /// .NET's older duplicate of the field above.
    ExtExpiresOn,
    RefreshOn,
    KeyId,
    ExtCacheKey,
    ExtComponents,
    UserAssertionHash,
    FamilyId,
    LastModificationTime,
    LocalAccountId,
    Username,
    Name,
    AuthorityType,
    AccountSource,
}

const FIELD_COUNT: usize = Field::AccountSource as usize + 1;

impl Field {
    fn of(name: &str) -> Option<Self> {
        // Over bytes the compiler branches on the length first, which every lookup profits from.
        Some(match name.as_bytes() {
            b"secret" => Self::Secret,
            b"home_account_id" => Self::HomeAccountId,
            b"home_account_id_source" => Self::HomeAccountIdSource,
            b"iss" => Self::Issuer,
            b"environment" => Self::Environment,
            b"client_id" => Self::ClientId,
            b"realm" => Self::Realm,
            b"target" => Self::Target,
            b"token_type" => Self::TokenType,
            b"cached_at" => Self::CachedAt,
            b"expires_on" => Self::ExpiresOn,
            b"extended_expires_on" => Self::ExtendedExpiresOn,
            b"ext_expires_on" => Self::ExtExpiresOn,
            b"refresh_on" => Self::RefreshOn,
            // Python and Node, .NET, Go.
            b"key_id" | b"kid" | b"keyid" => Self::KeyId,
            b"ext_cache_key" => Self::ExtCacheKey,
            // .NET, Node.
            b"ext" | b"additionalCacheKeyComponents" => Self::ExtComponents,
            b"user_assertion_hash" | b"userAssertionHash" => Self::UserAssertionHash,
            b"family_id" => Self::FamilyId,
            b"last_modification_time" => Self::LastModificationTime,
            b"local_account_id" => Self::LocalAccountId,
            b"username" => Self::Username,
            b"name" => Self::Name,
            b"authority_type" => Self::AuthorityType,
            b"account_source" => Self::AccountSource,
            _ => return None,
        })
    }

    /// The field that a raw JSON key names.
    pub(crate) fn of_raw(raw_key: &str) -> Option<Self> {
        let inner = &raw_key[1..raw_key.len() - 1];
        if inner.contains('\\') { Self::of(&json_text::decode(raw_key)?) } else { Self::of(inner) }
    }
}

/// The raw values of one row's known fields. Of a name that stands twice, the last one counts, as
/// in every SDK.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fields<'a> {
    raw: [Option<&'a str>; FIELD_COUNT],
    /// Whether strings may have escapes in them.
    has_escapes: bool,
}

/// What is known about the text of a row from when it was first read, so that a lookup need not walk
/// over its token again.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    /// Where the raw value of the secret stands in the row's value.
    pub(crate) secret: Span,
    pub(crate) has_escapes: bool,
}

impl Shape {
    pub(crate) const UNKNOWN: Self = Self { secret: Span { start: 0, end: 0 }, has_escapes: true };
}

impl<'a> Fields<'a> {
    pub(crate) const EMPTY: Self = Self { raw: [None; FIELD_COUNT], has_escapes: true };

    /// Reads the fields of `object`, the raw JSON of a row.
    pub(crate) fn read(object: &'a str) -> Self {
        Self::read_known(object, Shape::UNKNOWN)
    }

    /// Reads the fields of a row whose shape is known.
    pub(crate) fn read_known(object: &'a str, shape: Shape) -> Self {
        let mut fields = Self { has_escapes: shape.has_escapes, ..Self::EMPTY };
        json::members_around(object, shape.secret, |key, value| fields.put(key, value));
        fields
    }

    /// Where the raw value of the secret stands in `object`, from which these fields were read.
    pub(crate) fn secret_place(&self, object: &str) -> Span {
        let place = |raw: &str| {
            let start = raw.as_ptr().addr().checked_sub(object.as_ptr().addr())?;
            Some(Span { start, end: start + raw.len() })
        };
        self.raw(Field::Secret).and_then(place).unwrap_or_default()
    }

    pub(crate) fn put(&mut self, raw_key: &str, raw_value: &'a str) {
        if let Some(field) = Field::of_raw(raw_key) {
            self.raw[field as usize] = Some(raw_value);
        }
    }

    /// The raw JSON of a field.
    pub(crate) fn raw(&self, field: Field) -> Option<&'a str> {
        self.raw[field as usize]
    }

    fn decode(&self, raw: &'a str) -> Option<Cow<'a, str>> {
        if self.has_escapes { json_text::decode(raw) } else { json_text::unquoted(raw).map(Cow::Borrowed) }
    }

    fn decoded_len(&self, raw: &str) -> Option<usize> {
        if self.has_escapes { json_text::decoded_len(raw) } else { json_text::unquoted(raw).map(str::len) }
    }

    /// The text of a field; `None` where it is missing, null, empty or no string.
    pub(crate) fn text(&self, field: Field) -> Option<Cow<'a, str>> {
        self.decode(self.raw(field)?).filter(|text| !text.is_empty())
    }

    /// Whether the field's text is `wanted`.
    pub(crate) fn is(&self, field: Field, wanted: &str) -> bool {
        self.text(field).is_some_and(|text| text == wanted)
    }

    /// Whether there is a token that can be read.
    pub(crate) fn has_secret(&self) -> bool {
        self.raw(Field::Secret).and_then(|raw| self.decoded_len(raw)).is_some_and(|length| length > 0)
    }

    /// The token of a credential row.
    pub(crate) fn secret(&self) -> Option<Secret> {
        json_text::decode_secret(self.raw(Field::Secret)?).filter(|secret| !secret.is_empty())
    }

    /// A time in Unix seconds, however it was written: as a string or a number, with a fraction
    /// (older Python), negative (.NET's "never set", taken for missing), null or "".
    pub(crate) fn time(&self, field: Field) -> Option<i64> {
        let raw = self.raw(field)?;
        let text = if raw.starts_with('"') { self.decode(raw)? } else { Cow::Borrowed(raw) };
        parse_time(&text).filter(|&seconds| seconds > 0)
    }

    /// When the extended lifetime ends; the end of the ordinary one where none is written.
    pub(crate) fn extended_expires_on(&self) -> Option<i64> {
        let extended = self.time(Field::ExtendedExpiresOn).or_else(|| self.time(Field::ExtExpiresOn));
        extended.or_else(|| self.time(Field::ExpiresOn))
    }

    /// The texts of some fields, one after the other in one block, and where each ends. A field
    /// without text adds nothing.
    pub(crate) fn joined<const N: usize>(&self, fields: [Field; N]) -> Option<(Secret, [u32; N])> {
        let (mut ends, mut length) = ([0; N], 0);
        for (field, end) in fields.into_iter().zip(&mut ends) {
            length += self.raw(field).and_then(|raw| self.decoded_len(raw)).unwrap_or(0);
            *end = u32::try_from(length).ok()?;
        }
        // Of the final size, so that no part is left behind in a smaller block.
        let mut texts = String::with_capacity(length);
        for raw in fields.into_iter().filter_map(|field| self.raw(field)) {
            if self.has_escapes {
                json_text::decode_into(raw, &mut texts);
            } else {
                texts.push_str(json_text::unquoted(raw).unwrap_or_default());
            }
        }
        Some((Secret::from(texts), ends))
    }

    /// Whether the target holds just the scopes of `target`, in whatever order.
    pub(crate) fn has_scopes_of(&self, target: &str) -> bool {
        let own = self.text(Field::Target).unwrap_or_default();
        let holds = |all: &str, scope: &str| split_scopes(all).any(|s| s == scope);
        split_scopes(&own).all(|scope| holds(target, scope))
            && split_scopes(target).all(|scope| holds(&own, scope))
    }

    /// The extended cache key: as written, or hashed here from the components that .NET and Node
    /// write in its place (their own hashes of the same components differ).
    pub(crate) fn ext_cache_key(&self) -> Option<Cow<'a, str>> {
        self.text(Field::ExtCacheKey).or_else(|| {
            let mut components = Vec::new();
            json::members(self.raw(Field::ExtComponents)?, |key, value| {
                if let (Some(key), Some(value)) = (json_text::decode(key), json_text::decode(value)) {
                    components.push((key.into_owned(), value.into_owned()));
                }
            });
            ext_cache_key(components.iter().map(|(name, value)| (name.as_str(), value.as_str())))
                .map(Cow::Owned)
        })
    }
}

/// Unix seconds from decimal text; a fraction is cut off.
pub(crate) fn parse_time(text: &str) -> Option<i64> {
    let text = text.trim();
    if let Ok(seconds) = text.parse() {
        return Some(seconds);
    }
    let seconds = text.parse::<f64>().ok().filter(|seconds| seconds.is_finite())?;
    #[allow(clippy::cast_possible_truncation)] // `as` saturates, which is what a far date wants.
    Some(seconds.trunc() as i64)
}

/// The extended cache key of request parameters, as msal (Python) 1.39 and MSAL Go make it: names
/// sorted, each name and value with its length in bytes before it, SHA-256, base64url, lower case.
/// Parameters with an empty value do not count; without any that counts there is no key.
pub(crate) fn ext_cache_key<'a>(components: impl Iterator<Item = (&'a str, &'a str)>) -> Option<String> {
    let mut components: Vec<_> = components.filter(|(_, value)| !value.is_empty()).collect();
    if components.is_empty() {
        return None;
    }
    components.sort_unstable();
    let mut hash = Sha256::new();
    for part in components.into_iter().flat_map(|(name, value)| [name, value]) {
        hash.update(format!("{}:", part.len()));
        hash.update(part);
    }
    let mut text = [0; 43];
    let text = base64ct::Encoder::<base64ct::Base64UrlUnpadded>::new(&mut text)
        .and_then(|mut encoder| encoder.encode(&hash.finalize()).and_then(|()| encoder.finish()))
        .expect("43 characters hold 32 bytes");
    Some(text.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ext_cache_keys_are_those_of_msal() {
        for (components, expected) in [
            (&[("key1", "value1"), ("key2", "value2")][..], "latlwkpewb_a0rcsmjvkecqt0_huumkw4sflzociike"),
            (&[("key2", "value2"), ("key1", "value1")], "latlwkpewb_a0rcsmjvkecqt0_huumkw4sflzociike"),
            (&[("fmi_path", "agent-app-id")], "a0ry_zl4gccsdp7gnw927x8s0mrmnodv6tyilt0u07m"),
            (&[("a", "b"), ("cd", "e")], "cybgactkrvlzlen1aiwzwl3ay5krkyixommrobc-ri4"),
            (&[("fmi_path", "value")], "n_lucewkadzv_nybtg-2wtorgf2nrns6ihlfa7vbuzg"),
            (&[("fmi_pat", "hvalue")], "tjtm16m-suk2_bkniblr25lyuki40qyceco7knuyu0k"),
            (&[("é", "é")], "xskzaoz4ibr3mznftyxctvg1ptuh-0fuzpty7ndbfls"),
        ] {
            assert_eq!(ext_cache_key(components.iter().copied()).as_deref(), Some(expected));
        }
        assert_eq!(ext_cache_key([].into_iter()), None);
        assert_eq!(ext_cache_key([("fmi_path", "")].into_iter()), None);
    }

    #[test]
    fn times_are_read_in_every_dialect() {
        for (raw, expected) in [
            (r#""1700000000""#, Some(1_700_000_000)),
            ("1700000000", Some(1_700_000_000)),
            (r#""1548804634.0556107""#, Some(1_548_804_634)),
            ("1548804634.9", Some(1_548_804_634)),
            (r#""-62135596800""#, None),
            ("null", None),
            (r#""""#, None),
            (r#""soon""#, None),
            (r#""NaN""#, None),
            ("[1]", None),
            ("1e300", Some(i64::MAX)),
        ] {
            let object = format!(r#"{{"expires_on":{raw}}}"#);
            assert_eq!(Fields::read(&object).time(Field::ExpiresOn), expected, "{raw}");
        }
    }

    #[test]
    fn extended_expiry_falls_back() {
        let extended = |object: &str| Fields::read(object).extended_expires_on();
        assert_eq!(extended(r#"{"expires_on":"5","extended_expires_on":"9"}"#), Some(9));
        assert_eq!(extended(r#"{"expires_on":"5","extended_expires_on":"0","ext_expires_on":"8"}"#), Some(8));
        assert_eq!(extended(r#"{"expires_on":"5","extended_expires_on":"-62135596800"}"#), Some(5));
    }

    #[test]
    fn the_last_of_two_fields_counts_and_escapes_are_read() {
        let fields = Fields::read(r#"{"realm":"a","\u0072ealm":"b\u0062","kid":"k"}"#);
        assert_eq!(fields.text(Field::Realm).as_deref(), Some("bb"));
        assert_eq!(fields.text(Field::KeyId).as_deref(), Some("k"));
        assert!(fields.is(Field::KeyId, "k") && !fields.is(Field::KeyId, ""));
    }

    #[test]
    fn scopes_are_sets() {
        let fields = Fields::read(r#"{"target":"b  a"}"#);
        assert!(fields.has_scopes_of("a b") && !fields.has_scopes_of("a") && !fields.has_scopes_of("a b c"));
    }
}
