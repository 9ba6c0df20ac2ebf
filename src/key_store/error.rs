//! Key store errors.

use std::error::Error;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use super::KeyName;
use crate::duration_text::InWords;
use crate::error_kind::ErrorKind;
use crate::private_file::FileError;
use crate::seal::SealError;

/// Why a key store did not do what it was asked to do. It holds no part of an entry.
///
/// A [`KeyStore`](super::KeyStore) of your own makes these. Say which store it is, what to do about it and
/// what happened, and no part of an entry.
///
/// ```
/// use tokenseal::key_store::KeyStoreError;
///
/// let error = KeyStoreError::locked("the vault", "it is sealed");
/// assert!(error.is_unavailable() && !error.is_lost());
/// assert_eq!(error.to_string(), "the vault is locked; unlock it and try again");
/// ```
pub struct KeyStoreError(Box<Repr>);

#[derive(Debug, thiserror::Error)]
enum Repr {
    #[error("{store} is not available; {advice}")]
    Unavailable { store: String, advice: String, source: Box<dyn Error + Send + Sync> },

    #[error("{store} is locked; unlock it and try again")]
    Locked { store: String, source: Box<dyn Error + Send + Sync> },

    #[error(
        "{store} did not answer within {}; look for a prompt that waits, or restart the service",
        InWords(*waited)
    )]
    TimedOut { store: String, waited: Duration },

    // It may be locked, or have been replaced by a new one, so no other key is made.
    #[error(
        "{store} has no key under {name}, which the sealed file names; if the keyring was locked, \
         replaced or not brought along, restore it; otherwise set the file aside with `reset`"
    )]
    Missing { store: String, name: String },

    #[error(
        "the entry under {name} in {store} is damaged or was replaced; restore it, or set the file aside with `reset`"
    )]
    Damaged { store: String, name: String },

    #[error("{store} has several entries under {name}; remove those that do not belong there")]
    Ambiguous { store: String, name: String },

    #[error("{store} already has an entry under {name}, and it is not replaced")]
    Exists { store: String, name: String },

    #[error("{store} did not keep the key that was put under {name}; it cannot be used")]
    NotKept { store: String, name: String },

    #[error(transparent)]
    File(FileError),

    #[error(transparent)]
    Seal(SealError),
}

impl KeyStoreError {
    /// The store cannot be reached, or does not answer properly. `advice` says what to do about it.
    pub fn unavailable(
        store: impl Into<String>,
        advice: impl Into<String>,
        source: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        Repr::Unavailable { store: store.into(), advice: advice.into(), source: source.into() }.into()
    }

    /// The store is locked, or the prompt to unlock it was dismissed.
    pub fn locked(store: impl Into<String>, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Repr::Locked { store: store.into(), source: source.into() }.into()
    }

    /// There already is an entry under the name of a new one. It must be left as it is.
    pub fn exists(store: impl Into<String>, name: &KeyName) -> Self {
        Repr::Exists { store: store.into(), name: name.to_string() }.into()
    }

    /// The entry is not the text that was put there, as far as the store can tell.
    pub fn damaged(store: impl Into<String>, name: &KeyName) -> Self {
        Repr::Damaged { store: store.into(), name: name.to_string() }.into()
    }

    /// The store has several entries under one name.
    pub fn ambiguous(store: impl Into<String>, name: &KeyName) -> Self {
        Repr::Ambiguous { store: store.into(), name: name.to_string() }.into()
    }

    pub(crate) fn timed_out(store: String, waited: Duration) -> Self {
        Repr::TimedOut { store, waited }.into()
    }

    pub(crate) fn missing(store: String, name: &KeyName) -> Self {
        Repr::Missing { store, name: name.to_string() }.into()
    }

    pub(crate) fn not_kept(store: String, name: &KeyName) -> Self {
        Repr::NotKept { store, name: name.to_string() }.into()
    }

    /// The kind of this error.
    pub fn kind(&self) -> ErrorKind {
        match &*self.0 {
            Repr::Unavailable { .. } => ErrorKind::KeyStoreUnavailable,
            Repr::Locked { .. } => ErrorKind::KeyStoreLocked,
            Repr::TimedOut { .. } => ErrorKind::KeyStoreTimedOut,
            Repr::Missing { .. } => ErrorKind::KeyMissing,
            Repr::Damaged { .. } => ErrorKind::KeyDamaged,
            Repr::Ambiguous { .. } => ErrorKind::KeyAmbiguous,
            Repr::Exists { .. } => ErrorKind::KeyExists,
            Repr::NotKept { .. } => ErrorKind::KeyNotKept,
            Repr::File(error) => error.kind(),
            Repr::Seal(_) => ErrorKind::NoRandomness,
        }
    }

    /// Whether the store could not be asked: it is absent, locked or does not answer. Trying again
    /// later may help.
    pub fn is_unavailable(&self) -> bool {
        matches!(&*self.0, Repr::Unavailable { .. } | Repr::Locked { .. } | Repr::TimedOut { .. })
    }

    /// Whether the store answered, and the key is missing or damaged.
    pub fn is_lost(&self) -> bool {
        matches!(&*self.0, Repr::Missing { .. } | Repr::Damaged { .. })
    }

    pub(crate) fn path(&self) -> Option<&Path> {
        match &*self.0 {
            Repr::File(error) => Some(error.path()),
            _ => None,
        }
    }
}

impl fmt::Debug for KeyStoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for KeyStoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl Error for KeyStoreError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source()
    }
}

impl From<Repr> for KeyStoreError {
    fn from(repr: Repr) -> Self {
        Self(Box::new(repr))
    }
}

impl From<FileError> for KeyStoreError {
    fn from(error: FileError) -> Self {
        Repr::File(error).into()
    }
}

impl From<SealError> for KeyStoreError {
    fn from(error: SealError) -> Self {
        Repr::Seal(error).into()
    }
}
