//! The text of a key's entry: ASCII (some keyrings keep nothing else), with a version and a checksum.
//!
//! `tokenseal-key-1:` + base64url of the 32 bytes + `:` + base64url of the first 8 bytes of
//! SHA-256 over a label, the key's id and its bytes. The checksum tells a damaged or exchanged entry
//! from a file that was tampered with.

use base64ct::{Base64UrlUnpadded, Encoding as _};
use sha2::{Digest as _, Sha256};

use crate::seal::{KeyId, SealingKey};
use crate::secret::{Secret, constant_time_eq};

const PREFIX: &str = "tokenseal-key-1:";
const LABEL: &[u8] = b"tokenseal key entry 1";
const KEY_LEN: usize = 43;
const CHECKSUM_LEN: usize = 11;

/// More stack than reading or writing an entry was seen to use.
const STACK: usize = 4 * 1024;

/// Writes a key as the text of its entry. No trace of the key is left on the stack.
pub(crate) fn encode(key: &SealingKey) -> Secret {
    let text = write(key);
    zeroize::zeroize_stack::<STACK>();
    text
}

/// Reads the key with the id `key_id` from the text of its entry. No trace of the key is left on the stack.
pub(crate) fn decode(key_id: KeyId, text: &Secret) -> Option<SealingKey> {
    let key = read(key_id, text);
    zeroize::zeroize_stack::<STACK>();
    key
}

#[inline(never)]
fn write(key: &SealingKey) -> Secret {
    let mut text = String::with_capacity(PREFIX.len() + KEY_LEN + 1 + CHECKSUM_LEN);
    let mut base64 = zeroize::Zeroizing::new([0; KEY_LEN]);
    text.push_str(PREFIX);
    let encoded = Base64UrlUnpadded::encode(key.bytes(), &mut *base64).expect("43 characters hold 32 bytes");
    text.push_str(encoded);
    text.push(':');
    text.push_str(std::str::from_utf8(&checksum(key.id(), key.bytes())).expect("base64 is ASCII"));
    Secret::from(text)
}

#[inline(never)]
fn read(key_id: KeyId, text: &Secret) -> Option<SealingKey> {
    // Some keyrings' own tools append a line end.
    let (base64, written) = text.expose().trim_ascii_end().strip_prefix(PREFIX)?.split_once(':')?;
    let key = SealingKey::from_parts(key_id, |bytes| {
        let decoded = Base64UrlUnpadded::decode(base64, bytes).map_err(drop)?;
        if decoded.len() == 32 { Ok(()) } else { Err(()) }
    });
    let key = key.ok()?;
    constant_time_eq(&checksum(key_id, key.bytes()), written.as_bytes()).then_some(key)
}

fn checksum(key_id: KeyId, bytes: &[u8; 32]) -> [u8; CHECKSUM_LEN] {
    let digest =
        Sha256::new_with_prefix(LABEL).chain_update(key_id.as_bytes()).chain_update(bytes).finalize();
    let mut base64 = [0; CHECKSUM_LEN];
    Base64UrlUnpadded::encode(&digest[..8], &mut base64).expect("11 characters hold 8 bytes");
    base64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> SealingKey {
        SealingKey::from_bytes(KeyId::from_bytes([1; 16]), &[0xFE; 32])
    }

    #[test]
    fn a_key_survives() {
        let text = encode(&key());
        assert!(text.expose().is_ascii() && text.expose().len() < 100);
        let read = decode(key().id(), &text).unwrap();
        assert_eq!((read.id(), read.bytes()), (key().id(), key().bytes()));
        let with_line_end = Secret::from(format!("{}\n", text.expose()));
        assert!(decode(key().id(), &with_line_end).is_some());
    }

    #[test]
    fn the_text_is_the_documented_one() {
        let text = encode(&SealingKey::from_bytes(KeyId::from_bytes([1; 16]), &[1; 32]));
        let document = include_str!("../../docs/format.md");
        assert!(document.contains(text.expose()), "the document lacks {}", text.expose());
    }

    #[test]
    fn no_altered_or_truncated_entry_is_a_key() {
        let text = encode(&key());
        for length in 0..text.expose().len() {
            assert!(decode(key().id(), &Secret::from(&text.expose()[..length])).is_none());
        }
        for at in 0..text.expose().len() {
            let mut altered = text.expose().to_owned();
            let other = if &altered[at..=at] == "A" { "B" } else { "A" };
            altered.replace_range(at..=at, other);
            assert!(decode(key().id(), &Secret::from(altered)).is_none(), "byte {at}");
        }
        assert!(decode(KeyId::from_bytes([2; 16]), &text).is_none(), "another key's entry");
    }
}
