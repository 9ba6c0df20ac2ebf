//! Why a cache in a file did not do what it was asked to do.

use std::error::Error as StdError;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::cache::CacheError;
use crate::error_kind::ErrorKind;
use crate::key_store::KeyStoreError;
use crate::private_file::FileError;
use crate::seal::SealError;
use crate::store::StoreError;

/// Why a [`PersistedTokenCache`](crate::PersistedTokenCache) or a
/// [`SharedTokenCache`](crate::SharedTokenCache) failed. Nothing that could not be read was overwritten or
/// deleted, and no error holds a secret.
///
/// Its text says what happened, to what, and what to do. What the operating system or the key store said is
/// its [`source`](std::error::Error::source), and is not repeated in the text.
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
pub struct Error(Box<Repr>);

#[derive(Debug, thiserror::Error)]
pub(crate) enum Repr {
    #[error(
        "\"{name}\" cannot name a cache: use 1 to 64 letters, digits, `-`, `_` and `.`, beginning with a \
         letter or digit and not ending with `.`, and no name that Windows reserves"
    )]
    InvalidName { name: String },

    #[error("there is no home directory to keep the cache in; set HOME, or name a directory")]
    NoHomeDirectory,

    #[cfg(unix)]
    #[error(
        "this program runs with the rights of another user than the one who started it; name the directory \
         of the cache"
    )]
    ForeignRights,

    #[cfg(not(feature = "keyring"))]
    #[error(
        "no key store was named, and this build has no platform keyring: name one, or enable the `keyring` feature"
    )]
    NoKeyStore,

    #[error(transparent)]
    Cache(CacheError),

    #[error("{}: {seal}", path.display())]
    Seal { path: PathBuf, seal: SealError },

    #[error("{}: {content}", path.display())]
    Content { path: PathBuf, content: CacheError },

    #[error(transparent)]
    KeyStore(KeyStoreError),

    #[error(transparent)]
    Store(StoreError),

    #[cfg(feature = "tokio")]
    #[error("no thread could be started; close programs, or raise the limit of threads")]
    NoThread { source: std::io::Error },

    #[error("the change was given up, and nothing was written")]
    Aborted(#[source] Box<dyn StdError + Send + Sync>),
}

impl Error {
    /// Makes any error end a [`try_update`](crate::PersistedTokenCache::try_update): nothing is written, and
    /// `try_update` returns this error, with `cause` as its source.
    pub fn aborted(cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Repr::Aborted(cause.into()).into()
    }

    /// The kind of this error.
    pub fn kind(&self) -> ErrorKind {
        match &*self.0 {
            Repr::InvalidName { .. } => ErrorKind::InvalidName,
            Repr::NoHomeDirectory => ErrorKind::NoHomeDirectory,
            #[cfg(unix)]
            Repr::ForeignRights => ErrorKind::ForeignRights,
            #[cfg(not(feature = "keyring"))]
            Repr::NoKeyStore => ErrorKind::NoKeyStore,
            Repr::Cache(_) => ErrorKind::NotAccepted,
            Repr::Seal { seal, .. } => kind_of_seal_error(seal),
            Repr::Content { .. } => ErrorKind::NotACache,
            Repr::KeyStore(error) => error.kind(),
            Repr::Store(error) => kind_of_store_error(error),
            #[cfg(feature = "tokio")]
            Repr::NoThread { .. } => ErrorKind::NoThread,
            Repr::Aborted(_) => ErrorKind::Aborted,
        }
    }

    /// The file or directory that it is about, if it is about one.
    pub fn path(&self) -> Option<&Path> {
        match &*self.0 {
            Repr::Seal { path, .. } | Repr::Content { path, .. } => Some(path),
            Repr::KeyStore(error) => error.path(),
            Repr::Store(error) => error.path(),
            _ => None,
        }
    }

    /// What the cache did not accept ([`ErrorKind::NotAccepted`]), or why the content of the file is not a
    /// cache ([`ErrorKind::NotACache`]).
    pub fn cache_error(&self) -> Option<&CacheError> {
        match &*self.0 {
            Repr::Cache(error) | Repr::Content { content: error, .. } => Some(error),
            _ => None,
        }
    }

    /// Whether the key store could not be asked: it is absent, locked or does not answer. The sealed
    /// file is as it was; unlocking or starting the keyring helps.
    pub fn is_key_unavailable(&self) -> bool {
        use ErrorKind::{KeyStoreLocked, KeyStoreTimedOut, KeyStoreUnavailable};
        matches!(self.kind(), KeyStoreUnavailable | KeyStoreLocked | KeyStoreTimedOut)
    }

    /// Whether the key store answered, and does not have the key that sealed the file: its entry is gone,
    /// damaged or exchanged. Only a restored keyring opens the file again.
    pub fn is_key_lost(&self) -> bool {
        matches!(self.kind(), ErrorKind::KeyMissing | ErrorKind::KeyDamaged | ErrorKind::WrongKey)
    }

    /// Whether the sealed file was altered or truncated, or is not one.
    pub fn is_tampered(&self) -> bool {
        matches!(self.kind(), ErrorKind::Tampered | ErrorKind::Truncated | ErrorKind::NotSealed)
    }

    /// Whether an older copy of the file was put back while this process ran.
    pub fn is_rolled_back(&self) -> bool {
        self.kind() == ErrorKind::RolledBack
    }

    /// Whether another process or thread held the lock for too long.
    pub fn is_lock_timeout(&self) -> bool {
        self.kind() == ErrorKind::LockTimedOut
    }

    /// Whether the file is, or would become, larger than the limit.
    pub fn is_too_large(&self) -> bool {
        self.kind() == ErrorKind::TooLarge
    }

    /// Whether a change was begun inside another change of the same cache.
    pub fn is_nested_change(&self) -> bool {
        self.kind() == ErrorKind::NestedChange
    }
}

fn kind_of_store_error(error: &StoreError) -> ErrorKind {
    match error {
        StoreError::File(error) => error.kind(),
        StoreError::LockTimedOut { .. } => ErrorKind::LockTimedOut,
        StoreError::Nested { .. } => ErrorKind::NestedChange,
        StoreError::Forked { .. } => ErrorKind::Forked,
        StoreError::LockRemoved { .. } => ErrorKind::LockRemoved,
        StoreError::NeverStill { .. } => ErrorKind::Contended,
        StoreError::CannotLock { .. } => ErrorKind::CannotLock,
        StoreError::TooLarge { .. } => ErrorKind::TooLarge,
        StoreError::Seal(error) => kind_of_seal_error(error),
    }
}

fn kind_of_seal_error(error: &SealError) -> ErrorKind {
    match error {
        SealError::NotAnEnvelope => ErrorKind::NotSealed,
        SealError::Unsupported { .. } => ErrorKind::UnsupportedVersion,
        SealError::Truncated { .. } => ErrorKind::Truncated,
        SealError::TooLarge { .. } => ErrorKind::TooLarge,
        SealError::Tampered | SealError::WrongContextKind { .. } => ErrorKind::Tampered,
        SealError::UnknownKeyId { .. } | SealError::WrongKey { .. } => ErrorKind::WrongKey,
        SealError::RolledBack { .. } => ErrorKind::RolledBack,
        SealError::NoRandomness { .. } => ErrorKind::NoRandomness,
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source()
    }
}

impl From<Repr> for Error {
    fn from(repr: Repr) -> Self {
        Self(Box::new(repr))
    }
}

impl From<CacheError> for Error {
    fn from(error: CacheError) -> Self {
        Repr::Cache(error).into()
    }
}

impl From<KeyStoreError> for Error {
    fn from(error: KeyStoreError) -> Self {
        Repr::KeyStore(error).into()
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        Repr::Store(error).into()
    }
}

impl From<FileError> for Error {
    fn from(error: FileError) -> Self {
        StoreError::from(error).into()
    }
}

impl From<std::convert::Infallible> for Error {
    fn from(never: std::convert::Infallible) -> Self {
        match never {}
    }
}
