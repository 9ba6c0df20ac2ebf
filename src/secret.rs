//! Secrets in memory: wiped when dropped, never printed, never serialized by accident.

use std::fmt;

/// A secret text (a token, a key entry) that is wiped when it is dropped.
///
/// `Debug` shows no part of it, and it implements neither `Display` nor `Serialize`: the only way
/// to the text is [`Secret::expose`], which is easy to search for in a review.
///
/// ```
/// let secret = tokenseal::Secret::from("eyJ0eXAi...");
/// assert_eq!(format!("{secret:?}"), "Secret(..)");
/// assert_eq!(secret.expose(), "eyJ0eXAi...");
/// ```
pub struct Secret(Box<str>);

impl Secret {
    /// The text itself. Do not print it, and do not keep a copy that is not wiped.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether the text is empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl From<String> for Secret {
    /// Takes the text over. The whole allocation of `text` is wiped, its spare capacity included.
    fn from(text: String) -> Self {
        if text.len() == text.capacity() {
            return Self(text.into_boxed_str());
        }
        // Shrinking may move the text and leave the old block unwiped, so copy and wipe instead.
        let secret = Self(text.as_str().into());
        drop(SecretBytes::from(text));
        secret
    }
}

impl Clone for Secret {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl PartialEq for Secret {
    /// Compares in a time that depends on the lengths only.
    fn eq(&self, other: &Self) -> bool {
        constant_time_eq(self.0.as_bytes(), other.0.as_bytes())
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.0).into_boxed_bytes();
        wipe(&mut bytes);
    }
}

/// A buffer of secret bytes (a serialized cache, a token response) that is wiped when dropped.
///
/// ```
/// let bytes = tokenseal::seal::SecretBytes::from(r#"{"access_token":"..."}"#);
/// assert_eq!(format!("{bytes:?}"), "SecretBytes(..)");
/// ```
#[derive(Default)]
pub struct SecretBytes(Vec<u8>);

impl SecretBytes {
    /// The bytes themselves.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// The number of bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// An empty buffer that holds `capacity` bytes without growing.
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Self(Vec::with_capacity(capacity))
    }

    /// Makes room for `capacity` bytes in all, wiping the old block if it must move.
    pub(crate) fn reserve(&mut self, capacity: usize) {
        if capacity > self.0.capacity() {
            let mut grown = Self::with_capacity(capacity);
            grown.0.extend_from_slice(&self.0);
            *self = grown;
        }
    }

    /// Appends `bytes`. When the buffer must grow, the old block is wiped first: a plain `Vec`
    /// would free it with the secrets still in it.
    pub(crate) fn extend(&mut self, bytes: &[u8]) {
        let needed = self.0.len() + bytes.len();
        if needed > self.0.capacity() {
            self.reserve(needed.max(self.0.capacity() * 2));
        }
        self.0.extend_from_slice(bytes);
    }

    pub(crate) fn expose_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }

    /// The text of bytes that are one.
    #[cfg(feature = "file")]
    pub(crate) fn into_secret(self) -> Secret {
        Secret::from(String::from_utf8(self.into_vec()).expect("made of text"))
    }

    /// Gives the buffer out. The caller answers for what is in it from here on.
    pub(crate) fn into_vec(mut self) -> Vec<u8> {
        std::mem::take(&mut self.0)
    }
}

impl From<Vec<u8>> for SecretBytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl From<String> for SecretBytes {
    fn from(text: String) -> Self {
        Self(text.into_bytes())
    }
}

impl From<&[u8]> for SecretBytes {
    fn from(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }
}

impl From<&str> for SecretBytes {
    fn from(text: &str) -> Self {
        Self::from(text.as_bytes())
    }
}

impl std::io::Write for SecretBytes {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretBytes(..)")
    }
}

impl Drop for SecretBytes {
    fn drop(&mut self) {
        // Within its capacity a vector grows in place, so this reaches the spare part as well.
        let capacity = self.0.capacity();
        self.0.resize(capacity, 0);
        wipe(&mut self.0);
    }
}

/// Overwrites `bytes` with zeroes in a way the compiler may not leave out.
///
/// `Zeroize` for slices writes byte by byte; a `fill` behind a barrier runs at memory speed, which
/// counts for caches of several megabytes.
pub(crate) fn wipe(bytes: &mut [u8]) {
    bytes.fill(0);
    zeroize::optimization_barrier(bytes);
}

/// Compares in a time that depends on the lengths only.
pub(crate) fn constant_time_eq(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let mut difference = 0;
    for (x, y) in a.iter().zip(b) {
        difference |= x ^ y;
        zeroize::optimization_barrier(&difference);
    }
    difference == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn debug_shows_nothing() {
        let secret = Secret::from(String::from("planted"));
        let bytes = SecretBytes::from("planted");
        let shown = format!("{secret:?} {secret:#?} {bytes:?} {bytes:#?}");
        assert!(!shown.contains("planted"), "{shown}");
    }

    #[test]
    fn a_string_with_spare_capacity_is_taken_whole() {
        let mut text = String::with_capacity(100);
        text.push_str("planted");
        assert_eq!(Secret::from(text).expose(), "planted");
    }

    #[test]
    fn growing_keeps_the_bytes() {
        let mut bytes = SecretBytes::with_capacity(2);
        for part in ["a", "bc", "defghij", ""] {
            bytes.write_all(part.as_bytes()).unwrap();
        }
        assert_eq!(bytes.expose(), b"abcdefghij");
    }

    #[test]
    fn equality_sees_every_byte_and_the_length() {
        assert_eq!(Secret::from("abc"), Secret::from("abc"));
        for other in ["abd", "bbc", "ab", "abcd", ""] {
            assert_ne!(Secret::from("abc"), Secret::from(other));
        }
    }
}
