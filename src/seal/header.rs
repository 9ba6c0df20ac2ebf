//! The first 88 bytes of a sealed record.

use std::fmt;

use super::error::SealError;
use super::xaes::{COMMITMENT_LEN, NONCE_LEN, TAG_LEN};

/// The length of the header in bytes.
pub const HEADER_LEN: usize = 88;

const MAGIC: [u8; 3] = *b"TSL";
const VERSION: u8 = 1;
const ALGORITHM: u8 = 1;

/// What a sealed record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// A whole cache in a file.
    File,
    /// One partition of a cache, in a session or a database.
    Partition,
}

impl Kind {
    fn to_byte(self) -> u8 {
        match self {
            Self::File => 1,
            Self::Partition => 2,
        }
    }

    fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::File),
            2 => Some(Self::Partition),
            _ => None,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File => "file",
            Self::Partition => "partition",
        })
    }
}

/// The name of a key: 16 random bytes, made with it. It tells nothing about the key.
///
/// ```
/// let id = tokenseal::seal::KeyId::from_bytes([0xAB; 16]);
/// assert_eq!(id.to_string(), "ab".repeat(16));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId([u8; 16]);

impl KeyId {
    /// The id of these bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The bytes of the id.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// Reads the 32 hexadecimal digits that `Display` writes.
    #[cfg(feature = "file")]
    pub(crate) fn from_hex(hex: &str) -> Option<Self> {
        let mut bytes = [0; 16];
        if hex.len() != 32 || !hex.is_ascii() {
            return None;
        }
        for (byte, digits) in bytes.iter_mut().zip(hex.as_bytes().chunks(2)) {
            let digits = std::str::from_utf8(digits).ok().filter(|digits| !digits.starts_with('+'))?;
            *byte = u8::from_str_radix(digits, 16).ok()?;
        }
        Some(Self(bytes))
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A header that is well-formed. That it is genuine, only opening the record shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    pub(crate) key_id: KeyId,
    pub(crate) generation: u64,
    pub(crate) nonce: [u8; NONCE_LEN],
    pub(crate) commitment: [u8; COMMITMENT_LEN],
}

impl Header {
    pub(crate) fn to_bytes(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..3].copy_from_slice(&MAGIC);
        bytes[3] = VERSION;
        bytes[4] = ALGORITHM;
        bytes[5] = self.kind.to_byte();
        bytes[8..24].copy_from_slice(&self.key_id.0);
        bytes[24..32].copy_from_slice(&self.generation.to_be_bytes());
        bytes[32..56].copy_from_slice(&self.nonce);
        bytes[56..].copy_from_slice(&self.commitment);
        bytes
    }

    /// The key id that the first bytes of a record name, if they look like one.
    #[cfg(feature = "file")]
    pub(crate) fn read_key_id(header: &[u8; HEADER_LEN]) -> Option<KeyId> {
        header.starts_with(&MAGIC).then(|| KeyId(array_at(header, 8)))
    }

    /// Reads the header of a whole record.
    pub(crate) fn read(record: &[u8]) -> Result<Self, SealError> {
        let magic = record.get(..MAGIC.len()).unwrap_or(record);
        if magic.is_empty() {
            return Err(SealError::Truncated { length: 0 });
        }
        if !MAGIC.starts_with(magic) {
            return Err(SealError::NotAnEnvelope);
        }
        let unsupported = |field, found| SealError::Unsupported { field, found };
        let byte = |at: usize| record.get(at).copied();
        if let Some(version) = byte(3).filter(|&version| version != VERSION) {
            return Err(unsupported("version", version));
        }
        if let Some(algorithm) = byte(4).filter(|&algorithm| algorithm != ALGORITHM) {
            return Err(unsupported("algorithm", algorithm));
        }
        let kind = byte(5).map(|kind| Kind::from_byte(kind).ok_or_else(|| unsupported("kind", kind)));
        for reserved in [6, 7].into_iter().filter_map(byte) {
            if reserved != 0 {
                return Err(unsupported("reserved byte", reserved));
            }
        }
        let (Some(kind), true) = (kind.transpose()?, record.len() >= HEADER_LEN + TAG_LEN) else {
            return Err(SealError::Truncated { length: record.len() });
        };
        Ok(Self {
            kind,
            key_id: KeyId(array_at(record, 8)),
            generation: u64::from_be_bytes(array_at(record, 24)),
            nonce: array_at(record, 32),
            commitment: array_at(record, 56),
        })
    }
}

fn array_at<const N: usize>(record: &[u8], at: usize) -> [u8; N] {
    *record[at..].first_chunk().expect("the length was checked")
}
