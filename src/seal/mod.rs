//! Sealing: bytes in, sealed bytes out, with no I/O. The format is described in `docs/format.md`.
//!
//! Algorithm 1 is XAES-256-GCM (C2SP) with a key commitment: AES-256-GCM under a key and nonce that
//! are derived for each message, so that random nonces never run out.

mod error;
mod header;
mod key;
mod xaes;

pub use error::SealError;
pub(crate) use header::Header;
pub use header::{HEADER_LEN, KeyId, Kind};
pub use key::SealingKey;
pub use xaes::TAG_LEN;

pub use crate::secret::SecretBytes;
use crate::secret::constant_time_eq;

/// The plaintext is padded with spaces to a multiple of this, so that its length says little.
pub const PADDING: usize = 256;

/// What a sealed record belongs to. Sealed data opens in the very context it was sealed in only, so
/// that nothing can be swapped between applications, caches or partitions.
///
/// ```
/// use tokenseal::seal::Context;
/// let context = Context::file("contoso-cli", "default");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Context {
    kind: Kind,
    application: String,
    cache: String,
    partition: String,
}

impl Context {
    /// The context of a cache in a file.
    pub fn file(application: impl Into<String>, cache: impl Into<String>) -> Self {
        let (application, cache) = (application.into(), cache.into());
        Self { kind: Kind::File, application, cache, partition: String::new() }
    }

    /// The context of one partition of a cache, such as the tokens of one account in a database.
    pub fn partition(
        application: impl Into<String>,
        cache: impl Into<String>,
        partition: impl Into<String>,
    ) -> Self {
        Self { kind: Kind::Partition, partition: partition.into(), ..Self::file(application, cache) }
    }

    /// The additional data: the header, then each part of the context with its length before it.
    fn aad(&self, header: &[u8; HEADER_LEN]) -> Vec<u8> {
        let mut aad = header.to_vec();
        for part in [&self.application, &self.cache, &self.partition] {
            let length = u32::try_from(part.len()).expect("names are shorter than 4 GiB");
            aad.extend_from_slice(&length.to_be_bytes());
            aad.extend_from_slice(part.as_bytes());
        }
        aad
    }
}

/// The length of the sealed record of a plaintext of `length` bytes.
pub(crate) fn sealed_len(length: usize) -> usize {
    HEADER_LEN + length.next_multiple_of(PADDING) + TAG_LEN
}

/// Seals a JSON text with a fresh random nonce.
///
/// `generation` counts the records sealed under this key for this context; a reader refuses to go
/// back to a lower one.
///
/// # Errors
/// [`SealError::NoRandomness`] if the operating system gives no random bytes.
///
/// ```
/// use tokenseal::seal::{self, Context, SealingKey};
///
/// let key = SealingKey::generate()?;
/// let context = Context::file("contoso-cli", "default");
/// let sealed = seal::seal(&key, &context, 1, br#"{"AccessToken":{}}"#)?;
/// let opened = seal::open(&key, &context, sealed)?;
/// assert_eq!(opened.expose().trim_ascii(), br#"{"AccessToken":{}}"#);
/// # Ok::<(), seal::SealError>(())
/// ```
pub fn seal(key: &SealingKey, context: &Context, generation: u64, json: &[u8]) -> Result<Vec<u8>, SealError> {
    let mut record = SecretBytes::with_capacity(sealed_len(json.len()));
    record.extend(&[0; HEADER_LEN]);
    record.extend(json);
    seal_in_place(key, context, generation, record)
}

/// Seals the JSON text that stands in `record` after [`HEADER_LEN`] bytes of room for the header.
pub(crate) fn seal_in_place(
    key: &SealingKey,
    context: &Context,
    generation: u64,
    record: SecretBytes,
) -> Result<Vec<u8>, SealError> {
    let mut nonce = [0; xaes::NONCE_LEN];
    getrandom::fill(&mut nonce).map_err(|source| SealError::NoRandomness { source })?;
    Ok(seal_with_nonce(key, context, generation, nonce, record))
}

fn seal_with_nonce(
    key: &SealingKey,
    context: &Context,
    generation: u64,
    nonce: [u8; xaes::NONCE_LEN],
    mut record: SecretBytes,
) -> Vec<u8> {
    // The record never moves with plaintext in it: the room for padding and tag is made first.
    let padded = (record.len() - HEADER_LEN).next_multiple_of(PADDING) + HEADER_LEN;
    let padding = [b' '; PADDING];
    record.reserve(padded + TAG_LEN);
    record.extend(&padding[..padded - record.len()]);

    let mut header = Header { kind: context.kind, key_id: key.id(), generation, nonce, commitment: [0; 32] };
    let tag = xaes::with_message_keys(key.bytes(), &nonce, |message| {
        header.commitment = *message.commitment;
        let bytes = header.to_bytes();
        record.expose_mut()[..HEADER_LEN].copy_from_slice(&bytes);
        message.encrypt(&context.aad(&bytes), &mut record.expose_mut()[HEADER_LEN..])
    });
    record.extend(&tag);
    record.into_vec()
}

/// Opens a sealed record: the JSON text, with spaces before and after it.
///
/// The record is decrypted where it stands, and the bytes are wiped when the result is dropped.
///
/// # Errors
/// [`SealError`], which tells apart what is no sealed record, what was sealed by a later version or
/// under another key or for another purpose, and what was altered. Nothing is decrypted then.
///
/// ```
/// use tokenseal::seal::{self, Context, SealError, SealingKey};
///
/// let key = SealingKey::generate()?;
/// let sealed = seal::seal(&key, &Context::file("contoso-cli", "default"), 1, b"{}")?;
/// let swapped = seal::open(&key, &Context::file("contoso-cli", "other"), sealed);
/// assert!(matches!(swapped, Err(SealError::Tampered)));
/// # Ok::<(), SealError>(())
/// ```
pub fn open(key: &SealingKey, context: &Context, record: Vec<u8>) -> Result<SecretBytes, SealError> {
    let header = Header::read(&record)?;
    if header.kind != context.kind {
        return Err(SealError::WrongContextKind { found: header.kind, expected: context.kind });
    }
    if header.key_id != key.id() {
        return Err(SealError::UnknownKeyId { key_id: header.key_id });
    }
    let mut record = SecretBytes::from(record);
    let bytes = header.to_bytes();
    let length = record.len();
    let Some((body, tag)) = record.expose_mut()[HEADER_LEN..].split_last_chunk_mut::<TAG_LEN>() else {
        return Err(SealError::Truncated { length });
    };
    let opened = xaes::with_message_keys(key.bytes(), &header.nonce, |message| {
        if !constant_time_eq(message.commitment, &header.commitment) {
            return Err(SealError::WrongKey { key_id: header.key_id });
        }
        if message.decrypt(&context.aad(&bytes), body, tag) { Ok(()) } else { Err(SealError::Tampered) }
    });
    opened?;
    // White space around JSON means nothing, so header and tag need not be cut off.
    tag.fill(b' ');
    record.expose_mut()[..HEADER_LEN].fill(b' ');
    Ok(record)
}

#[cfg(test)]
mod tests;
