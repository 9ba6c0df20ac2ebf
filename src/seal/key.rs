//! The key that seals a cache.

use std::fmt;

use zeroize::Zeroizing;

use super::error::SealError;
use super::header::KeyId;

/// A 256-bit key and its id. The bytes are wiped when the key is dropped.
///
/// ```
/// use tokenseal::seal::{KeyId, SealingKey};
///
/// let (one, other) = (SealingKey::generate()?, SealingKey::generate()?);
/// assert_ne!(one.id(), other.id());
/// let configured = SealingKey::from_bytes(KeyId::from_bytes([7; 16]), &[42; 32]);
/// assert_eq!(configured.id().to_string(), "07070707070707070707070707070707");
/// # Ok::<(), tokenseal::seal::SealError>(())
/// ```
pub struct SealingKey {
    id: KeyId,
    /// Boxed, so that a move leaves no copy behind.
    bytes: Box<Zeroizing<[u8; 32]>>,
}

impl SealingKey {
    /// A new random key with a new random id.
    ///
    /// # Errors
    /// [`SealError::NoRandomness`] if the operating system gives no random bytes.
    pub fn generate() -> Result<Self, SealError> {
        let mut id = [0; 16];
        let mut key = Self { id: KeyId::from_bytes(id), bytes: Box::default() };
        getrandom::fill(&mut id)
            .and_then(|()| getrandom::fill(&mut **key.bytes))
            .map_err(|source| SealError::NoRandomness { source })?;
        key.id = KeyId::from_bytes(id);
        Ok(key)
    }

    /// A key that is kept elsewhere. `fill` writes its bytes into place, so that no copy is made.
    #[cfg(feature = "file")]
    pub(crate) fn from_parts<E>(
        id: KeyId,
        fill: impl FnOnce(&mut [u8; 32]) -> Result<(), E>,
    ) -> Result<Self, E> {
        let mut key = Self { id, bytes: Box::default() };
        fill(&mut key.bytes)?;
        Ok(key)
    }

    /// A key whose bytes a program keeps itself, a web application in its configuration say.
    ///
    /// The array that is passed stays with the caller, who wipes it.
    pub fn from_bytes(id: KeyId, bytes: &[u8; 32]) -> Self {
        let mut key = Self { id, bytes: Box::default() };
        key.bytes.copy_from_slice(bytes);
        key
    }

    /// The id, which every record that the key seals names.
    pub fn id(&self) -> KeyId {
        self.id
    }

    pub(crate) fn bytes(&self) -> &[u8; 32] {
        &self.bytes
    }
}

impl fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SealingKey").field("id", &self.id).finish_non_exhaustive()
    }
}
