//! A cache as a sealed record: what a file holds, or a row of a database.

mod key_notes;
mod rollback;

use std::path::PathBuf;

pub(crate) use key_notes::KeyNotes;

use crate::cache::{CacheError, EnvironmentAliases, TokenCache};
use crate::seal::{self, Context, Header, KeyId, SealError, SealingKey};
use crate::secret::SecretBytes;

/// Makes sealed records of a cache that is kept in one place, and caches of its sealed records.
#[derive(Debug)]
pub(crate) struct Codec {
    context: Context,
    aliases: EnvironmentAliases,
    /// What this process knows the record by, to notice an older one that was put back.
    place: PathBuf,
}

/// A record that is not sealed yet.
pub(crate) struct Unsealed {
    /// Room for the header, then the JSON.
    bytes: SecretBytes,
}

impl Unsealed {
    /// Writes a cache and the notes about its keys.
    pub(crate) fn write(cache: &mut TokenCache, notes: &KeyNotes) -> Self {
        // Notes that a program brought in with other content are none of ours.
        drop(KeyNotes::take_from(cache));
        let member = notes.to_member();
        let length =
            seal::HEADER_LEN + cache.written_len() + member.as_ref().map_or(0, |text| text.len() + 1);
        let mut bytes = SecretBytes::with_capacity(length + seal::PADDING + seal::TAG_LEN);
        bytes.extend(&[0; seal::HEADER_LEN]);
        cache.write(&mut bytes, member.as_deref());
        Self { bytes }
    }

    /// How long it will be when it is sealed, in bytes.
    pub(crate) fn sealed_len(&self) -> u64 {
        seal::sealed_len(self.bytes.len() - seal::HEADER_LEN) as u64
    }
}

/// Why a record cannot be opened.
#[derive(Debug)]
pub(crate) enum OpenError {
    Seal(SealError),
    /// It was opened, and does not hold a cache.
    Content(CacheError),
}

impl Codec {
    pub(crate) fn new(context: Context, aliases: EnvironmentAliases, place: PathBuf) -> Self {
        Self { context, aliases, place }
    }

    /// A cache with nothing in it.
    pub(crate) fn empty(&self) -> TokenCache {
        let mut cache = TokenCache::new();
        self.adopt(&mut cache);
        cache
    }

    /// Makes a cache that a program brought one of this place.
    pub(crate) fn adopt(&self, cache: &mut TokenCache) {
        cache.set_environment_aliases(self.aliases.clone());
    }

    /// Fails if this process has seen a later record of the same key.
    pub(crate) fn check_not_rolled_back(&self, header: &Header) -> Result<(), SealError> {
        let (found, seen) = (header.generation, self.last_generation(header.key_id));
        if found < seen { Err(SealError::RolledBack { found, seen }) } else { Ok(()) }
    }

    /// The generation of the last record that this process has seen of a key; 0 if it has seen none.
    pub(crate) fn last_generation(&self, key_id: KeyId) -> u64 {
        rollback::seen(&self.place, key_id)
    }

    /// Remembers a record that was read or written.
    pub(crate) fn see(&self, key_id: KeyId, generation: u64) {
        rollback::see(&self.place, key_id, generation);
    }

    /// Opens a sealed record.
    pub(crate) fn open(
        &self,
        key: &SealingKey,
        header: &Header,
        record: Vec<u8>,
    ) -> Result<(TokenCache, KeyNotes), OpenError> {
        let json = seal::open(key, &self.context, record).map_err(OpenError::Seal)?;
        let mut cache = self.empty();
        cache.deserialize(json).map_err(OpenError::Content)?;
        let notes = KeyNotes::take_from(&mut cache);
        self.see(header.key_id, header.generation);
        Ok((cache, notes))
    }

    /// Seals a record.
    pub(crate) fn seal(
        &self,
        key: &SealingKey,
        generation: u64,
        record: Unsealed,
    ) -> Result<Vec<u8>, SealError> {
        seal::seal_in_place(key, &self.context, generation, record.bytes)
    }
}
