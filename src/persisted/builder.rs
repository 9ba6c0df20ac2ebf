//! How to open a persisted cache: names, directory, key store, limits, deadlines.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::error::Repr;
use super::{Error, PersistedTokenCache};
use crate::cache::EnvironmentAliases;
use crate::key_store::KeyStore;
use crate::private_file;

/// The largest sealed file unless another limit is set: 32 MiB.
const SIZE_LIMIT: u64 = 32 * 1024 * 1024;

/// How to open a [`PersistedTokenCache`]. Made by [`PersistedTokenCache::builder`].
///
/// ```
/// # use std::sync::Arc;
/// # use tokenseal::{PersistedTokenCache, TokenResponse};
/// # use tokenseal::key_store::MemoryKeyStore;
/// # let directory = tempfile::tempdir().unwrap();
/// # let builder = PersistedTokenCache::builder("contoso-cli")
/// #     .directory(directory.path().join("tokens"))
/// #     .key_store(Arc::new(MemoryKeyStore::new()));
/// use std::time::Duration;
///
/// let cache = builder.cache("work").size_limit(1024 * 1024).lock_timeout(Duration::from_secs(5)).open()?;
/// assert!(cache.path().ends_with("work.sealed"));
/// # Ok::<(), tokenseal::Error>(())
/// ```
#[derive(Clone)]
#[must_use]
pub struct PersistedTokenCacheBuilder {
    pub(super) application: String,
    pub(super) cache: String,
    pub(super) directory: Option<PathBuf>,
    pub(super) key_store: Option<Arc<dyn KeyStore>>,
    pub(super) aliases: EnvironmentAliases,
    pub(super) size_limit: u64,
    pub(super) lock_timeout: Duration,
    pub(super) key_timeout: Duration,
    pub(super) rotation_timeout: Duration,
}

impl PersistedTokenCacheBuilder {
    pub(super) fn new(application: String) -> Self {
        Self {
            application,
            cache: "default".into(),
            directory: None,
            key_store: None,
            aliases: EnvironmentAliases::default(),
            size_limit: SIZE_LIMIT,
            lock_timeout: Duration::from_secs(30),
            key_timeout: Duration::from_secs(30),
            rotation_timeout: Duration::from_secs(3),
        }
    }

    /// The name of the cache within the application: `default` unless named.
    pub fn cache(mut self, cache: impl Into<String>) -> Self {
        self.cache = cache.into();
        self
    }

    /// The directory of the file. Unless named it is `<state>/<application>/tokenseal`, where the
    /// state directory is `$XDG_STATE_HOME` or `~/.local/state` on Linux, `~/Library/Application
    /// Support` on macOS and the local application data directory on Windows: places that are
    /// neither synchronised nor emptied by cleaners.
    ///
    /// Nothing is made in a directory that belongs to somebody else, as under `sudo` with `HOME` kept, and
    /// a setuid program must name its directory.
    ///
    /// It is made with mode 0700. One that exists must belong to the current user, and nobody else
    /// may be able to write to it.
    pub fn directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    /// Where the key lives: the platform keyring unless named.
    pub fn key_store(mut self, key_store: Arc<dyn KeyStore>) -> Self {
        self.key_store = Some(key_store);
        self
    }

    /// Hosts that are one identity provider: those of Microsoft unless named.
    pub fn environment_aliases(mut self, aliases: EnvironmentAliases) -> Self {
        self.aliases = aliases;
        self
    }

    /// The largest sealed file that is read or written, in bytes: 32 MiB unless set.
    pub fn size_limit(mut self, bytes: u64) -> Self {
        self.size_limit = bytes;
        self
    }

    /// How long to wait for a change that another process or thread is making: 30 seconds unless
    /// set.
    pub fn lock_timeout(mut self, timeout: Duration) -> Self {
        self.lock_timeout = timeout;
        self
    }

    /// How long to wait for the key store where no lock is held, which leaves a person time to
    /// answer a prompt: 30 seconds unless set.
    pub fn key_timeout(mut self, timeout: Duration) -> Self {
        self.key_timeout = timeout;
        self
    }

    /// How long to wait for the key store while the lock is held: 3 seconds unless set.
    pub fn rotation_timeout(mut self, timeout: Duration) -> Self {
        self.rotation_timeout = timeout;
        self
    }

    /// Opens the cache. Where no sealed file exists, a key and an empty file are made, so that a
    /// keyring that does not work shows before the user has signed in.
    ///
    /// # Errors
    /// [`Error`] if a name cannot be used, the directory or the file cannot, the key cannot be had
    /// within the deadline, or the file cannot be opened with it. Nothing that exists is overwritten.
    pub fn open(self) -> Result<PersistedTokenCache, Error> {
        PersistedTokenCache::open_with(self)
    }

    /// Sets a file that cannot be read aside, under a name that tells so, and opens an empty cache
    /// under a new key. The old key is left where it is. Returns the path of what was set aside, if
    /// there was a file.
    ///
    /// # Errors
    /// [`Error`] as for [`open`](Self::open). The file is then where it was.
    pub fn reset(self) -> Result<(PersistedTokenCache, Option<PathBuf>), Error> {
        PersistedTokenCache::reset_with(self)
    }

    /// The directory to use.
    pub(super) fn resolved_directory(&self) -> Result<PathBuf, Error> {
        use etcetera::BaseStrategy as _;
        if let Some(directory) = &self.directory {
            return Ok(directory.clone());
        }
        // HOME is what the user who started the program says.
        #[cfg(unix)]
        if private_file::has_foreign_rights() {
            return Err(Repr::ForeignRights.into());
        }
        #[cfg(any(target_os = "macos", target_os = "ios"))]
        let strategy = etcetera::base_strategy::Apple::new();
        #[cfg(not(any(target_os = "macos", target_os = "ios")))]
        let strategy = etcetera::base_strategy::choose_native_strategy();
        let strategy = strategy.map_err(|_| Repr::NoHomeDirectory)?;
        #[cfg(windows)]
        let state = strategy.cache_dir();
        #[cfg(not(windows))]
        let state = strategy.state_dir().unwrap_or_else(|| strategy.data_dir());
        // A relative HOME would put the tokens wherever the program happens to run.
        if !state.is_absolute() {
            return Err(Repr::NoHomeDirectory.into());
        }
        let directory = state.join(&self.application).join("tokenseal");
        #[cfg(unix)]
        private_file::check_home(&directory)?;
        Ok(directory)
    }

    pub(super) fn check_names(&self) -> Result<(), Error> {
        for name in [&self.application, &self.cache] {
            if !is_portable(name) {
                return Err(Repr::InvalidName { name: name.clone() }.into());
            }
        }
        Ok(())
    }
}

impl fmt::Debug for PersistedTokenCacheBuilder {
    /// Shows the description of the key store, not what a store that a program brings may show.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PersistedTokenCacheBuilder")
            .field("application", &self.application)
            .field("cache", &self.cache)
            .field("directory", &self.directory)
            .field("key_store", &self.key_store.as_ref().map(|keys| keys.description()))
            .field("size_limit", &self.size_limit)
            .field("lock_timeout", &self.lock_timeout)
            .field("key_timeout", &self.key_timeout)
            .field("rotation_timeout", &self.rotation_timeout)
            .finish_non_exhaustive()
    }
}

/// Whether a name means the same on every file system, and stays within one directory.
fn is_portable(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        && !name.ends_with('.')
        && !private_file::is_device(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_portable() {
        let long = "x".repeat(64);
        for name in ["contoso-cli", "a", "com.example.app", "A_1", "console", "com10", "com0", long.as_str()]
        {
            assert!(is_portable(name), "{name}");
        }
        let longer = "x".repeat(65);
        for name in [
            "",
            ".",
            "..",
            ".hidden",
            "a/b",
            "a\\b",
            "a b",
            "é",
            "con",
            "NUL.txt",
            "com1",
            "LPT9.x",
            "a.",
            "-a",
            "a\0",
            "a:b",
            longer.as_str(),
        ] {
            assert!(!is_portable(name), "{name}");
        }
    }
}
