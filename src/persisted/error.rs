//! Why a persisted cache did not do what it was asked for.

use std::path::PathBuf;

use crate::cache::CacheError;
use crate::key_store::KeyStoreError;
use crate::private_file::FileError;
use crate::seal::SealError;
use crate::store::StoreError;

/// Why a [`PersistedTokenCache`](crate::PersistedTokenCache) failed. Nothing that could not be read
/// was overwritten or deleted, and no variant holds a secret.
///
/// ```no_run
/// use tokenseal::PersistedTokenCache;
///
/// match PersistedTokenCache::builder("contoso-cli").open() {
///     Ok(cache) => println!("{}", cache.path().display()),
///     Err(error) if error.is_key_unavailable() => println!("unlock the keyring: {error}"),
///     Err(error) if error.is_key_lost() || error.is_tampered() => {
///         // Only when the user says so: set the file aside and start empty.
///         let (cache, aside) = PersistedTokenCache::builder("contoso-cli").reset()?;
///         println!("{} is set aside as {aside:?}", cache.path().display());
///     }
///     Err(error) => return Err(error),
/// }
/// # Ok::<(), tokenseal::Error>(())
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The name of an application or a cache cannot be used as part of a file name everywhere.
    #[error(
        "\"{name}\" cannot name a cache: use 1 to 64 letters, digits, `-`, `_` and `.`, beginning with a \
         letter or digit and not ending with `.`, and no name that Windows reserves"
    )]
    #[non_exhaustive]
    InvalidName {
        /// The name.
        name: String,
    },

    /// There is no home directory to keep the cache in.
    #[error("there is no home directory to keep the cache in; set HOME, or name a directory")]
    NoHomeDirectory,

    /// The program runs with the rights of another user than the one who started it (setuid, setgid), whose
    /// home is not to be trusted.
    #[error(
        "this program runs with the rights of another user than the one who started it: name the directory \
         of the cache"
    )]
    ForeignRights,

    /// No key store was named and the crate was built without the platform keyring.
    #[error(
        "no key store was named, and this build has no platform keyring: name one, or enable the `keyring` feature"
    )]
    NoKeyStore,

    /// The cache did not take what it was given.
    #[error(transparent)]
    Cache(#[from] CacheError),

    /// The sealed file cannot be opened.
    #[error("{}: {source}", path.display())]
    #[non_exhaustive]
    Seal {
        /// The sealed file.
        path: PathBuf,
        /// Why.
        source: SealError,
    },

    /// The sealed file was opened, and does not hold a cache.
    #[error("{}: {source}", path.display())]
    #[non_exhaustive]
    Content {
        /// The sealed file.
        path: PathBuf,
        /// Why.
        source: CacheError,
    },

    /// The key is not available.
    #[error(transparent)]
    KeyStore(#[from] KeyStoreError),

    /// The sealed file cannot be read, replaced or locked.
    #[error(transparent)]
    Store(#[from] StoreError),

    /// The operating system gave no thread for what an asynchronous call does.
    #[cfg(feature = "tokio")]
    #[error("no thread could be started")]
    #[non_exhaustive]
    NoThread {
        /// Why.
        source: std::io::Error,
    },

    /// The function that was to change the cache failed. Nothing was written.
    #[error("the change was given up: {0}")]
    Aborted(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    /// Makes any error end an [`update`](crate::PersistedTokenCache::update): nothing is written, and
    /// `update` returns it as [`Error::Aborted`].
    pub fn aborted(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Aborted(cause.into())
    }

    /// Whether the key store could not be asked: it is absent, locked or does not answer. The sealed
    /// file is as it was; unlocking or starting the keyring helps.
    pub fn is_key_unavailable(&self) -> bool {
        matches!(self, Self::KeyStore(error) if error.is_unavailable())
    }

    /// Whether the key store answered, and does not have the key that sealed the file: its entry is gone,
    /// damaged or exchanged. Only a restored keyring opens the file again.
    pub fn is_key_lost(&self) -> bool {
        match self {
            Self::KeyStore(error) => error.is_lost(),
            Self::Seal { source, .. } => matches!(source, SealError::WrongKey { .. }),
            _ => false,
        }
    }

    /// Whether the sealed file was altered, truncated, or is none.
    pub fn is_tampered(&self) -> bool {
        let Self::Seal { source, .. } = self else { return false };
        matches!(source, SealError::Tampered | SealError::Truncated { .. } | SealError::NotAnEnvelope)
    }

    /// Whether an older copy of the file was put back while this process ran.
    pub fn is_rolled_back(&self) -> bool {
        matches!(self, Self::Seal { source: SealError::RolledBack { .. }, .. })
    }

    /// Whether another process or thread held the lock for too long.
    pub fn is_lock_timeout(&self) -> bool {
        matches!(self, Self::Store(StoreError::LockTimedOut { .. }))
    }

    /// Whether the file is, or would become, larger than the limit.
    pub fn is_too_large(&self) -> bool {
        matches!(self, Self::Store(StoreError::TooLarge { .. }))
    }

    /// Whether an update was begun inside another update of the same cache.
    pub fn is_nested_update(&self) -> bool {
        matches!(self, Self::Store(StoreError::Nested { .. }))
    }
}

impl From<FileError> for Error {
    fn from(error: FileError) -> Self {
        Self::Store(error.into())
    }
}

impl From<std::convert::Infallible> for Error {
    fn from(never: std::convert::Infallible) -> Self {
        match never {}
    }
}
