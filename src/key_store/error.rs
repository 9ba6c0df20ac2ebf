//! Why a key cannot be had.

use std::error::Error;
use std::time::Duration;

use crate::private_file::FileError;

/// Why a key store did not do what it was asked for. No variant holds any part of an entry.
///
/// ```
/// use tokenseal::KeyStoreError;
///
/// let error = KeyStoreError::locked("the vault", "it is sealed");
/// assert!(error.is_unavailable() && !error.is_lost());
/// assert_eq!(error.to_string(), "the vault is locked; unlock it and try again");
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyStoreError {
    /// The store cannot be reached: there is none, or it does not answer properly.
    #[error("{store} is not available; {advice}")]
    #[non_exhaustive]
    Unavailable {
        /// Which store.
        store: String,
        /// What to do about it.
        advice: String,
        /// What the store said.
        source: Box<dyn Error + Send + Sync>,
    },

    /// The store is locked, or the prompt to unlock it was dismissed.
    #[error("{store} is locked; unlock it and try again")]
    #[non_exhaustive]
    Locked {
        /// Which store.
        store: String,
        /// What the store said.
        source: Box<dyn Error + Send + Sync>,
    },

    /// The store did not answer in time: it hangs, or waits for somebody to answer a prompt.
    #[error("{store} did not answer within {waited:?}; look for a prompt that waits, or restart the service")]
    #[non_exhaustive]
    TimedOut {
        /// Which store.
        store: String,
        /// How long was waited.
        waited: Duration,
    },

    /// The store says that it has no such entry. It may be locked, or have been replaced by a new
    /// one, so no other key is made.
    #[error(
        "{store} has no key under {name}, which the sealed file names; if the keyring was locked, \
         replaced or not brought along, restore it; otherwise set the file aside with `reset`"
    )]
    #[non_exhaustive]
    NoEntry {
        /// Which store.
        store: String,
        /// The name of the entry.
        name: String,
    },

    /// The entry is no key of this crate, or not whole.
    #[error(
        "the entry under {name} in {store} is damaged or was replaced; restore it, or set the file aside with `reset`"
    )]
    #[non_exhaustive]
    Damaged {
        /// Which store.
        store: String,
        /// The name of the entry.
        name: String,
    },

    /// The store has several entries under one name.
    #[error("{store} has several entries under {name}; remove those that do not belong there")]
    #[non_exhaustive]
    Ambiguous {
        /// Which store.
        store: String,
        /// The name of the entries.
        name: String,
    },

    /// There is an entry under the name of a new one. It was left as it is.
    #[error("{store} has an entry under {name} already, and it is not replaced")]
    #[non_exhaustive]
    Exists {
        /// Which store.
        store: String,
        /// The name of the entry.
        name: String,
    },

    /// The store took an entry and gave back something else.
    #[error("{store} did not keep the key that was put under {name}; it cannot be used")]
    #[non_exhaustive]
    NotKept {
        /// Which store.
        store: String,
        /// The name of the entry.
        name: String,
    },

    /// A key file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),

    /// No key can be made.
    #[error(transparent)]
    Seal(#[from] crate::seal::SealError),
}

impl KeyStoreError {
    /// For a [`KeyStore`](crate::KeyStore) of your own: it cannot be reached. Say which store it is,
    /// what to do about it and what happened, and no part of an entry.
    pub fn unavailable(
        store: impl Into<String>,
        advice: impl Into<String>,
        source: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        Self::Unavailable { store: store.into(), advice: advice.into(), source: source.into() }
    }

    /// For a [`KeyStore`](crate::KeyStore) of your own: it is locked, or a prompt was dismissed.
    pub fn locked(store: impl Into<String>, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Locked { store: store.into(), source: source.into() }
    }

    /// Whether the store could not be asked: it is absent, locked or does not answer. Trying again
    /// later may help.
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::Locked { .. } | Self::TimedOut { .. })
    }

    /// Whether the store answered, and the key is not there or not whole.
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::NoEntry { .. } | Self::Damaged { .. })
    }
}
