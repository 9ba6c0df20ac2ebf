//! Why a record cannot be sealed or opened.

use super::header::{KeyId, Kind};

/// Why sealing or opening failed. Whatever was stored must be left alone, save in the case of
/// [`NoRandomness`](Self::NoRandomness), where nothing was read.
///
/// ```
/// use tokenseal::seal::{self, Context, SealError, SealingKey};
///
/// let (key, context) = (SealingKey::generate()?, Context::file("contoso-cli", "default"));
/// let error = seal::open(&key, &context, b"{}".to_vec()).unwrap_err();
/// assert!(matches!(error, SealError::NotAnEnvelope));
/// # Ok::<(), SealError>(())
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SealError {
    /// The bytes are no sealed record. A plaintext cache is refused as well, never taken over
    /// silently.
    #[error("this is no sealed token cache; import a plaintext cache explicitly, or set the file aside")]
    NotAnEnvelope,

    /// The record was made by a later version, or is damaged in its first bytes.
    #[error("the sealed record has {field} {found}, which this version does not know; use a newer version")]
    #[non_exhaustive]
    Unsupported {
        /// Which field of the header.
        field: &'static str,
        /// Its value.
        found: u8,
    },

    /// The record is shorter than any can be.
    #[error("the sealed record ends after {length} bytes, before its tag; restore it or set it aside")]
    #[non_exhaustive]
    Truncated {
        /// How many bytes there are.
        length: usize,
    },

    /// The record is longer than the limit.
    #[error("the sealed record has {length} bytes and the limit is {limit}; raise the size limit")]
    #[non_exhaustive]
    TooLarge {
        /// How many bytes there are or would be.
        length: u64,
        /// How many are allowed.
        limit: u64,
    },

    /// The record was sealed under a key with another id.
    #[error("the sealed record names the key {key_id}, which is not the one at hand")]
    #[non_exhaustive]
    UnknownKeyId {
        /// The id that the record names.
        key_id: KeyId,
    },

    /// The key has the right id but other bytes: the keyring's entry was replaced, or the record's
    /// header altered.
    #[error(
        "the key {key_id} is not the one that sealed this record: its entry in the key store was replaced"
    )]
    #[non_exhaustive]
    WrongKey {
        /// The id of the key.
        key_id: KeyId,
    },

    /// The record was altered after it was sealed, or sealed for another application, cache or
    /// partition.
    #[error(
        "the sealed record was altered, or belongs to another application or cache; nothing was decrypted"
    )]
    Tampered,

    /// The record is of another kind.
    #[error("the sealed record is of kind {found}, and {expected} was expected")]
    #[non_exhaustive]
    WrongContextKind {
        /// What the record is.
        found: Kind,
        /// What it was to be.
        expected: Kind,
    },

    /// The record is older than one that this process has seen under the same key.
    #[error(
        "the sealed record has generation {found}, and this process has seen {seen}: an older copy was \
         put back; restore the newer one, or restart to accept this one"
    )]
    #[non_exhaustive]
    RolledBack {
        /// The generation of the record.
        found: u64,
        /// The highest generation seen.
        seen: u64,
    },

    /// The operating system gives no random bytes.
    #[error("the operating system gives no random bytes, and nothing can be sealed without them")]
    #[non_exhaustive]
    NoRandomness {
        /// What the system said.
        source: getrandom::Error,
    },
}
