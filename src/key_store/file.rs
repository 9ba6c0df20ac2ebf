//! Keys in files beside nothing else: for machines without a keyring, and only when asked for.

use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use super::{KeyName, KeyStore, KeyStoreError};
use crate::private_file::{self, failed};
use crate::secret::{Secret, SecretBytes};

/// The longest text of an entry that is read.
const LIMIT: usize = 4096;

/// A key store of plain files, mode 0600, in a directory that you name.
///
/// **Whoever can read these files can read the tokens.** It protects from less than a keyring does:
/// not from a backup or a stolen disk that holds both the key and the cache. Put it where the sealed
/// file is not: on another volume, in a mounted secret, in a directory that is not backed up.
///
/// ```
/// use std::sync::Arc;
/// use tokenseal::{KeyFileStore, PersistedTokenCache};
///
/// # let base = tempfile::tempdir().unwrap();
/// # let (keys, tokens) = (base.path().join("keys"), base.path().join("tokens"));
/// let cache = PersistedTokenCache::builder("contoso-cli")
///     .directory(tokens)
///     .key_store(Arc::new(KeyFileStore::new(keys)))
///     .open()?;
/// # Ok::<(), tokenseal::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct KeyFileStore {
    directory: PathBuf,
}

impl KeyFileStore {
    /// Keeps each key in a file of its own in `directory`, which is made when the first key is. A
    /// relative one is one below the current directory of this moment.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        let directory = directory.into();
        Self { directory: std::path::absolute(&directory).unwrap_or(directory) }
    }

    /// The directory of the key files.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    fn path(&self, name: &KeyName) -> PathBuf {
        // The names of applications and caches were checked: neither has a separator in it.
        self.directory.join(format!("{}.{}.{}.key", name.service(), name.cache(), name.key_id()))
    }
}

impl KeyStore for KeyFileStore {
    fn description(&self) -> String {
        format!("the key file directory {}", self.directory.display())
    }

    fn prepare(&self) -> Result<(), KeyStoreError> {
        private_file::prepare_directory(&self.directory)?;
        Ok(())
    }

    fn create(&self, name: &KeyName, text: &Secret) -> Result<(), KeyStoreError> {
        private_file::prepare_directory(&self.directory)?;
        let path = self.path(name);
        let mut file = private_file::create_new(&path)?;
        let written = file.write_all(text.expose().as_bytes()).and_then(|()| private_file::sync(&file));
        if let Err(error) = written {
            // Half a key is no key; what matters is the error above.
            let _ = private_file::remove(&path);
            return Err(failed("write", &path)(error).into());
        }
        private_file::sync_directory(&self.directory)?;
        Ok(())
    }

    fn read(&self, name: &KeyName) -> Result<Option<Secret>, KeyStoreError> {
        let path = self.path(name);
        let Some(file) = private_file::open(&path)? else { return Ok(None) };
        let mut bytes = SecretBytes::from(Vec::with_capacity(LIMIT));
        let mut chunk = zeroize::Zeroizing::new([0; LIMIT]);
        let mut file = file.take(LIMIT as u64);
        loop {
            match file.read(&mut *chunk).map_err(failed("read", &path))? {
                0 => break,
                length => bytes.extend(&chunk[..length]),
            }
        }
        let text = String::from_utf8(bytes.into_vec()).map_err(|error| {
            drop(SecretBytes::from(error.into_bytes()));
            KeyStoreError::Damaged { store: self.description(), name: name.to_string() }
        })?;
        Ok(Some(Secret::from(text)))
    }

    fn delete(&self, name: &KeyName) -> Result<(), KeyStoreError> {
        let path = self.path(name);
        match private_file::remove(&path) {
            Ok(()) => Ok(private_file::sync_directory(&self.directory)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(failed("delete", &path)(error).into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relative_directory_stays_where_it_was_meant() {
        let store = KeyFileStore::new("keys");
        assert_eq!(store.directory(), std::env::current_dir().unwrap().join("keys"));
    }
}
