//! Keys in files beside nothing else: for machines without a keyring, and only when asked for.

use std::error::Error;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use super::{KeyName, KeyStore, KeyStoreError, file_name};
use crate::private_file::{self, failed};
use crate::seal::KeyId;
use crate::secret::{Secret, SecretBytes};

/// The longest text of an entry that is read.
const LIMIT: usize = 4096;

/// A key store of plain files, mode 0600, in a directory that you name.
///
/// **Whoever can read these files can read the tokens.** It protects from less than a keyring does:
/// not from a backup or a stolen disk that holds both the key and the cache. Put it where the sealed
/// file is not: on another volume, in a directory that is not backed up, or in a secret that Kubernetes or
/// Docker mounts ([`mounted`](Self::mounted)).
///
/// ```
/// use std::sync::Arc;
/// use tokenseal::PersistedTokenCache;
/// use tokenseal::key_store::KeyFileStore;
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
    is_mounted: bool,
}

impl KeyFileStore {
    /// Keeps each key in a file of its own in `directory`, which is made when the first key is. A
    /// relative one is one below the current directory of this moment.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        let directory = directory.into();
        Self { directory: std::path::absolute(&directory).unwrap_or(directory), is_mounted: false }
    }

    /// Reads keys as Kubernetes and Docker mount secrets: files of root or of the current user, which
    /// nobody else can write to, and links that stay within `directory`. Nothing is ever written there, so
    /// that a sign-out cannot rotate the key ([`Rotation::Pending`](crate::persisted::Rotation::Pending)).
    ///
    /// The files are those that [`new`](Self::new) makes. Make one by opening a cache of the same names
    /// elsewhere, and mount it under its own name. It seals the first file of a cache, too.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use tokenseal::PersistedTokenCache;
    /// use tokenseal::key_store::KeyFileStore;
    ///
    /// let keys = Arc::new(KeyFileStore::mounted("/run/secrets"));
    /// println!("{} keys are mounted", keys.key_files().map_or(0, |files| files.len()));
    /// let builder = PersistedTokenCache::builder("contoso-web").key_store(keys);
    /// ```
    pub fn mounted(directory: impl Into<PathBuf>) -> Self {
        Self { is_mounted: true, ..Self::new(directory) }
    }

    /// The directory of the key files.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The key files that are there and can be used, of any cache, links followed.
    ///
    /// # Errors
    /// [`KeyStoreError`] if the directory is missing or cannot be read.
    pub fn key_files(&self) -> Result<Vec<PathBuf>, KeyStoreError> {
        let names = self.file_names()?.into_iter().filter(|name| file_name::is_key(name));
        let paths = names.map(|name| self.directory.join(name));
        let usable = paths.filter(|path| matches!(self.open(path), Ok(Some(_))));
        Ok(usable.filter_map(|path| std::fs::canonicalize(path).ok()).collect())
    }

    fn path(&self, name: &KeyName) -> PathBuf {
        self.directory.join(file_name::of(name))
    }

    fn open(&self, path: &Path) -> Result<Option<File>, KeyStoreError> {
        let file = if self.is_mounted {
            private_file::open_mounted(path, &self.directory)?
        } else {
            private_file::open(path)?
        };
        if file.is_none() {
            self.check_directory()?;
        }
        Ok(file)
    }

    /// A directory that is not there, such as a volume that is not mounted, has lost no key.
    fn check_directory(&self) -> Result<(), KeyStoreError> {
        let missing: Box<dyn Error + Send + Sync> = match std::fs::metadata(&self.directory) {
            Ok(metadata) if metadata.is_dir() => return Ok(()),
            Ok(_) => "it is not a directory".into(),
            Err(error) => error.into(),
        };
        Err(KeyStoreError::unavailable(
            self.description(),
            "mount the volume, or restore the directory",
            missing,
        ))
    }

    fn check_writable(&self) -> Result<(), KeyStoreError> {
        if !self.is_mounted {
            return Ok(());
        }
        let found =
            self.file_names().map(|names| names.iter().filter(|name| file_name::is_key(name)).count());
        let found = found.map_or_else(|error| error.to_string(), |keys| format!("it has {keys} key files"));
        Err(KeyStoreError::unavailable(
            self.description(),
            "mount a key file of this application and cache: mounted keys are only read",
            found,
        ))
    }

    fn file_names(&self) -> Result<Vec<String>, KeyStoreError> {
        self.check_directory()?;
        let entries = std::fs::read_dir(&self.directory).map_err(failed("list", &self.directory))?;
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed("list", &self.directory))?;
            names.extend(entry.file_name().into_string().ok());
        }
        names.sort();
        Ok(names)
    }
}

impl KeyStore for KeyFileStore {
    fn description(&self) -> String {
        format!("the key file directory {}", self.directory.display())
    }

    fn identity(&self) -> Option<String> {
        Some(format!("key files {}", self.directory.display()))
    }

    fn is_read_only(&self) -> bool {
        self.is_mounted
    }

    fn fixed_keys(&self, service: &str, cache: &str) -> Result<Vec<KeyId>, KeyStoreError> {
        if !self.is_mounted {
            return Ok(Vec::new());
        }
        let names = self.file_names()?;
        let is_usable = |name: &&String| matches!(self.open(&self.directory.join(name)), Ok(Some(_)));
        let of_cache = |name: &String| file_name::key_id(name, service, cache);
        Ok(names
            .iter()
            .filter(|name| of_cache(name).is_some())
            .filter(is_usable)
            .filter_map(of_cache)
            .collect())
    }

    fn prepare(&self) -> Result<(), KeyStoreError> {
        if self.is_mounted {
            return self.check_directory();
        }
        private_file::prepare_directory(&self.directory)?;
        Ok(())
    }

    fn create(&self, name: &KeyName, text: &Secret) -> Result<(), KeyStoreError> {
        self.check_writable()?;
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
        let Some(file) = self.open(&path)? else { return Ok(None) };
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
            KeyStoreError::damaged(self.description(), name)
        })?;
        Ok(Some(Secret::from(text)))
    }

    fn delete(&self, name: &KeyName) -> Result<(), KeyStoreError> {
        self.check_writable()?;
        let path = self.path(name);
        match private_file::remove(&path) {
            Ok(()) => Ok(private_file::sync_directory(&self.directory)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.check_directory(),
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
