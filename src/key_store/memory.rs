//! Keys in memory, gone with the process: for tests, and for sealing without a keyring.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use super::{KeyName, KeyStore, KeyStoreError};
use crate::secret::Secret;

/// A key store that forgets everything when its last clone is dropped.
///
/// A file that was sealed under one of its keys cannot be opened by another process, or after this
/// one.
///
/// ```
/// use std::sync::Arc;
/// use tokenseal::PersistedTokenCache;
/// use tokenseal::key_store::MemoryKeyStore;
///
/// # let directory = tempfile::tempdir().unwrap();
/// let cache = PersistedTokenCache::builder("contoso-cli")
///     .directory(directory.path().join("tokens"))
///     .key_store(Arc::new(MemoryKeyStore::new()))
///     .open()?;
/// # Ok::<(), tokenseal::Error>(())
/// ```
#[derive(Clone, Default)]
pub struct MemoryKeyStore(Arc<Mutex<HashMap<KeyName, Secret>>>);

impl MemoryKeyStore {
    /// A store without entries.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries().len()
    }

    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn entries(&self) -> std::sync::MutexGuard<'_, HashMap<KeyName, Secret>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl KeyStore for MemoryKeyStore {
    fn description(&self) -> String {
        "the key store in memory".into()
    }

    fn create(&self, name: &KeyName, text: &Secret) -> Result<(), KeyStoreError> {
        match self.entries().entry(name.clone()) {
            std::collections::hash_map::Entry::Occupied(_) => {
                Err(KeyStoreError::exists(self.description(), name))
            }
            std::collections::hash_map::Entry::Vacant(vacant) => {
                vacant.insert(text.clone());
                Ok(())
            }
        }
    }

    fn read(&self, name: &KeyName) -> Result<Option<Secret>, KeyStoreError> {
        Ok(self.entries().get(name).cloned())
    }

    fn delete(&self, name: &KeyName) -> Result<(), KeyStoreError> {
        self.entries().remove(name);
        Ok(())
    }
}

impl fmt::Debug for MemoryKeyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryKeyStore").field("entries", &self.len()).finish()
    }
}
