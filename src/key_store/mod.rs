//! Where the key lives: the platform keyring, memory, or a key file that was asked for by name.
//!
//! A key is never written twice: each has an entry of its own, named by its id, and is made, read
//! back, used and deleted. So nothing that happens to another key, and no write that lands late, can
//! destroy it.

mod bounded;
#[cfg(feature = "conformance")]
pub mod conformance;
mod entry;
mod error;
mod file;
mod file_name;
#[cfg(feature = "keyring")]
mod keyring;
mod memory;
#[cfg(feature = "keyring")]
mod probe;

use std::fmt;

pub(crate) use bounded::BoundedKeyStore;
pub use error::KeyStoreError;
pub use file::KeyFileStore;
#[cfg(feature = "keyring")]
pub use keyring::KeyringStore;
pub use memory::MemoryKeyStore;
#[cfg(feature = "keyring")]
pub use probe::{HostEnvironment, Probe, probe};

use crate::seal::KeyId;
use crate::secret::Secret;

/// The name of a key's entry.
///
/// ```
/// use tokenseal::{key_store::KeyName, seal::KeyId};
///
/// let name = KeyName::new("contoso-cli", "default", KeyId::from_bytes([7; 16]));
/// assert_eq!(name.user(), "default/07070707070707070707070707070707");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct KeyName {
    application: String,
    cache: String,
    key_id: KeyId,
}

impl KeyName {
    /// The name of the entry of a key of a cache. `service` is the application.
    pub fn new(service: impl Into<String>, cache: impl Into<String>, key_id: KeyId) -> Self {
        Self { application: service.into(), cache: cache.into(), key_id }
    }

    /// What keyrings call the service: the application.
    pub fn service(&self) -> &str {
        &self.application
    }

    /// What keyrings call the user: the cache and the key's id, as `default/0f1e...`.
    pub fn user(&self) -> String {
        format!("{}/{}", self.cache, self.key_id)
    }

    /// The cache that the key is for.
    pub fn cache(&self) -> &str {
        &self.cache
    }

    /// The key's id.
    pub fn key_id(&self) -> KeyId {
        self.key_id
    }
}

impl fmt::Display for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "service \"{}\", user \"{}\"", self.service(), self.user())
    }
}

/// A place that keeps keys as short ASCII texts.
///
/// # Implementation notes
/// The cache calls every method from a thread of its own with a deadline, one call at a time, so an
/// implementation may block, and need not think of async runtimes. It is never asked to change an
/// entry: if [`create`](Self::create) finds one under the name, that is an error. Report no part of a
/// text in an error. The feature `conformance` has checks for an implementation.
///
/// ```
/// use tokenseal::Secret;
/// use tokenseal::key_store::{KeyName, KeyStore, KeyStoreError};
///
/// /// Keeps keys in a vault that is reached over the network.
/// #[derive(Debug)]
/// struct Vault(/* a client */);
///
/// impl KeyStore for Vault {
///     fn description(&self) -> String {
///         "the vault".into()
///     }
///     fn create(&self, name: &KeyName, text: &Secret) -> Result<(), KeyStoreError> {
///         let path = format!("{}/{}", name.service(), name.user());
///         # let _ = (path, text);
///         // Put `text.expose()` at `path`, unless something is there.
///         Err(KeyStoreError::unavailable("the vault", "check the network", "no route to it"))
///     }
///     fn read(&self, name: &KeyName) -> Result<Option<Secret>, KeyStoreError> {
///         # let _ = name;
///         Err(KeyStoreError::locked("the vault", "it is sealed"))
///     }
///     fn delete(&self, name: &KeyName) -> Result<(), KeyStoreError> {
///         # let _ = name;
///         Ok(())
///     }
/// }
/// ```
pub trait KeyStore: fmt::Debug + Send + Sync {
    /// What to call this store in messages, such as "the Secret Service".
    fn description(&self) -> String;

    /// Tells this store from others: two with the same identity are one, and get one call at a time between
    /// them. `None`, the default: each object is a store of its own. It never waits.
    fn identity(&self) -> Option<String> {
        None
    }

    /// Whether entries can only be read, so that no key is rotated. The default can be written to.
    fn is_read_only(&self) -> bool {
        false
    }

    /// The ids of the keys of a cache, in a store that can [only be read](Self::is_read_only): one of them
    /// seals the first file of the cache, for which another store is asked to make one. The default has
    /// none.
    ///
    /// # Errors
    /// [`KeyStoreError`] if the store cannot be reached or read.
    fn fixed_keys(&self, service: &str, cache: &str) -> Result<Vec<KeyId>, KeyStoreError> {
        let _ = (service, cache);
        Ok(Vec::new())
    }

    /// Does any interactive work that is needed before an entry can be made, such as a prompt to unlock.
    /// It is called before any lock is taken.
    ///
    /// # Errors
    /// [`KeyStoreError`] if no entry could be made.
    fn prepare(&self) -> Result<(), KeyStoreError> {
        Ok(())
    }

    /// Makes an entry. When this returns, the entry outlives the process, if anything in this store
    /// does.
    ///
    /// # Errors
    /// [`KeyStoreError`] if the store cannot be reached or did not take the text.
    fn create(&self, name: &KeyName, text: &Secret) -> Result<(), KeyStoreError>;

    /// Reads an entry; `None` if the store says that there is none.
    ///
    /// # Errors
    /// [`KeyStoreError`] if the store cannot be reached or read.
    fn read(&self, name: &KeyName) -> Result<Option<Secret>, KeyStoreError>;

    /// Deletes an entry. That there is none is no error.
    ///
    /// # Errors
    /// [`KeyStoreError`] if the store cannot be reached or did not delete the entry.
    fn delete(&self, name: &KeyName) -> Result<(), KeyStoreError>;
}
