//! The platform keyring: Windows Credential Manager, macOS Keychain, or the Secret Service.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use keyring_core::api::CredentialPersistence;
use keyring_core::{CredentialStore, Entry, Error};
use zeroize::Zeroize as _;

use super::probe::HostEnvironment;
use super::{KeyName, KeyStore, KeyStoreError};
use crate::process::Process;
use crate::secret::Secret;

/// What the platform's keyring is known by: one call at a time, whoever opened it.
pub(super) const PLATFORM: &str = "platform keyring";

/// The keyring of the platform, or a `keyring_core` store that the program hands in.
///
/// A default store that the program has set in `keyring_core` is respected and never overwritten.
///
/// ```no_run
/// use std::sync::Arc;
/// use tokenseal::PersistedTokenCache;
/// use tokenseal::key_store::KeyringStore;
///
/// // What `PersistedTokenCache::open` does.
/// let keys = Arc::new(KeyringStore::platform());
/// let cache = PersistedTokenCache::builder("contoso-cli").key_store(keys).open()?;
/// # Ok::<(), tokenseal::Error>(())
/// ```
pub struct KeyringStore {
    /// `Some`: the program chose it, and nothing else will do.
    given: Option<Arc<CredentialStore>>,
    /// Where it was handed in: a platform's own store answers in that process only.
    given_in: Process,
    connection: Mutex<Option<Arc<CredentialStore>>>,
}

impl KeyringStore {
    /// The keyring of the platform, connected to when it is first needed.
    pub fn platform() -> Self {
        Self { given: None, given_in: Process::current(), connection: Mutex::default() }
    }

    /// A store that the program made.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use tokenseal::key_store::KeyringStore;
    ///
    /// let store = keyring_core::mock::Store::new().unwrap();
    /// let keys = KeyringStore::with_store(store);
    /// ```
    pub fn with_store(store: Arc<CredentialStore>) -> Self {
        Self { given: Some(store), given_in: Process::current(), connection: Mutex::default() }
    }

    /// Runs `work` on the entry of this name. A connection that a restarted service has forgotten is
    /// made anew once.
    fn with_entry<T>(
        &self,
        name: &KeyName,
        work: impl Fn(&Entry) -> Result<T, Error>,
    ) -> Result<T, KeyStoreError> {
        self.check_fork()?;
        let attempt = || {
            let store = self.connect()?;
            work(&entry(&*store, name)?)
        };
        let result = match attempt() {
            Err(error @ Error::PlatformFailure(_)) => {
                let had_connection = self.connection().take().is_some();
                if had_connection && native::CAN_BE_RESTARTED { attempt() } else { Err(error) }
            }
            result => result,
        };
        result.map_err(|error| self.explain(error, name))
    }

    fn connect(&self) -> Result<Arc<CredentialStore>, Error> {
        if let Some(given) = &self.given {
            return Ok(Arc::clone(given));
        }
        if let Some(connection) = &*self.connection() {
            return Ok(Arc::clone(connection));
        }
        let store = match keyring_core::get_default_store() {
            Some(set) => set,
            None => native::connect()?,
        };
        *self.connection() = Some(Arc::clone(&store));
        Ok(store)
    }

    /// Fails in a child that was forked from a process that had used the keyring: what answers for it there
    /// is a thread, which no child has.
    pub(super) fn check_fork(&self) -> Result<(), KeyStoreError> {
        let works = match self.given.clone().or_else(keyring_core::get_default_store) {
            Some(set) if !native::is_native(&*set) => true,
            _ => is_first_user() && (self.given.is_none() || self.given_in.is_current()),
        };
        if works {
            return Ok(());
        }
        Err(KeyStoreError::unavailable(
            self.description(),
            "open the cache in the child only, before its parent uses the keyring, or start the child as a \
             new program",
            "this process was forked from one that had used it",
        ))
    }

    fn connection(&self) -> std::sync::MutexGuard<'_, Option<Arc<CredentialStore>>> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the platform's own store admits that it is locked.
    fn is_locked(&self) -> bool {
        self.connect().is_ok_and(|store| native::is_native(&*store)) && native::is_locked().unwrap_or(false)
    }

    fn explain(&self, error: Error, name: &KeyName) -> KeyStoreError {
        explain(error, self.description(), Some(name))
    }
}

/// Whether no parent of this process has used the keyring before it was forked.
fn is_first_user() -> bool {
    static USED_BY: AtomicU32 = AtomicU32::new(0);
    let process = std::process::id();
    match USED_BY.compare_exchange(0, process, Ordering::SeqCst, Ordering::SeqCst) {
        Ok(_) => true,
        Err(first) => first == process || !cfg!(unix),
    }
}

fn unavailable(store: String, source: String) -> KeyStoreError {
    KeyStoreError::unavailable(store, HostEnvironment::detect().advice(), source)
}

/// Turns an error of the keyring crates into one of ours. Two of theirs carry the entry's bytes:
/// those are wiped here and go no further. Of the others the text is kept, not the value.
pub(super) fn explain(error: Error, store: String, name: Option<&KeyName>) -> KeyStoreError {
    match (error, name) {
        (Error::NoEntry, Some(name)) => KeyStoreError::missing(store, name),
        (Error::Ambiguous(_), Some(name)) => KeyStoreError::ambiguous(store, name),
        (Error::BadEncoding(mut bytes) | Error::BadDataFormat(mut bytes, _), name) => {
            bytes.zeroize();
            match name {
                Some(name) => KeyStoreError::damaged(store, name),
                None => unavailable(store, "it answered with an entry that it was not asked for".into()),
            }
        }
        // On Windows nothing can be locked: there is no logon that has a Credential Manager.
        (Error::NoStorageAccess(cause), _) if !cfg!(windows) => {
            KeyStoreError::locked(store, cause.to_string())
        }
        (Error::PlatformFailure(cause) | Error::NoStorageAccess(cause), _) => {
            unavailable(store, cause.to_string())
        }
        (other, _) => unavailable(store, other.to_string()),
    }
}

fn entry(store: &CredentialStore, name: &KeyName) -> Result<Entry, Error> {
    let label = format!("{} token cache key", name.service());
    let vendor = store.vendor();
    let modifiers = if vendor.contains("windows-native-keyring-store") {
        // The default would send the key to other machines that do not have the file.
        HashMap::from([("persistence", "Local")])
    } else if vendor.contains("secret-service-keyring-store") {
        HashMap::from([("label", label.as_str())])
    } else {
        HashMap::new()
    };
    let modifiers = (!modifiers.is_empty()).then_some(&modifiers);
    store.build(name.service(), &name.user(), modifiers)
}

impl KeyStore for KeyringStore {
    fn description(&self) -> String {
        match (&self.given, &*self.connection()) {
            (Some(store), _) | (None, Some(store)) if !native::is_native(&**store) => {
                format!("the keyring \"{}\"", store.vendor())
            }
            _ => native::DESCRIPTION.into(),
        }
    }

    fn identity(&self) -> Option<String> {
        match &self.given {
            Some(store) => Some(format!("keyring {} {}", store.vendor(), store.id())),
            None => Some(PLATFORM.into()),
        }
    }

    fn prepare(&self) -> Result<(), KeyStoreError> {
        self.check_fork()?;
        let unnamed = |error| explain(error, self.description(), None);
        let store = self.connect().map_err(unnamed)?;
        let is_transient = matches!(
            store.persistence(),
            CredentialPersistence::ProcessOnly | CredentialPersistence::EntryOnly
        );
        if self.given.is_none() && is_transient {
            return Err(KeyStoreError::unavailable(
                self.description(),
                "pass it explicitly if its keys need not outlive the process",
                "it keeps entries for this process only",
            ));
        }
        if native::is_native(&*store) { native::unlock().map_err(unnamed) } else { Ok(()) }
    }

    fn create(&self, name: &KeyName, text: &Secret) -> Result<(), KeyStoreError> {
        let is_new = self.with_entry(name, |entry| match entry.get_secret() {
            Err(Error::NoEntry) => entry.set_secret(text.expose().as_bytes()).map(|()| true),
            Err(error) => Err(error),
            Ok(mut found) => {
                found.zeroize();
                Ok(false)
            }
        })?;
        if is_new {
            return Ok(());
        }
        Err(KeyStoreError::exists(self.description(), name))
    }

    fn read(&self, name: &KeyName) -> Result<Option<Secret>, KeyStoreError> {
        let read = |entry: &Entry| match entry.get_secret() {
            Err(Error::NoEntry) => Ok(None),
            Err(error) => Err(error),
            Ok(bytes) => {
                String::from_utf8(bytes).map(Some).map_err(|error| Error::BadEncoding(error.into_bytes()))
            }
        };
        let found = self.with_entry(name, read)?;
        if found.is_none() && self.is_locked() {
            // Some services know no entry while they are locked: the key is not lost.
            return Err(KeyStoreError::locked(self.description(), "it knows no entry while it is locked"));
        }
        Ok(found.map(Secret::from))
    }

    fn delete(&self, name: &KeyName) -> Result<(), KeyStoreError> {
        self.with_entry(name, |entry| match entry.delete_credential() {
            Err(Error::NoEntry) => Ok(()),
            result => result,
        })
    }
}

impl fmt::Debug for KeyringStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyringStore").field("store", &self.description()).finish()
    }
}

/// The Secret Service, taken directly: `keyring` remembers its first failure for good, and cannot
/// connect again.
#[cfg(all(unix, not(any(target_os = "macos", target_os = "ios", target_os = "android"))))]
pub(super) mod native {
    use std::sync::Arc;

    use keyring_core::{CredentialStore, Error};
    use secret_service::blocking::SecretService;
    use secret_service::{EncryptionType, Error as ServiceError};

    pub(crate) const DESCRIPTION: &str = "the Secret Service";
    pub(super) const CAN_BE_RESTARTED: bool = true;

    pub(crate) fn is_native(store: &CredentialStore) -> bool {
        store.vendor().contains("secret-service-keyring-store")
    }

    pub(crate) fn connect() -> Result<Arc<CredentialStore>, Error> {
        let store: Arc<CredentialStore> = zbus_secret_service_keyring_store::Store::new()?;
        Ok(store)
    }

    /// Opens the default collection, which may show a prompt.
    pub(crate) fn unlock() -> Result<(), Error> {
        examine_default_collection(true).map(drop)
    }

    /// Whether entries could only be made after a prompt.
    pub(crate) fn is_locked() -> Result<bool, Error> {
        examine_default_collection(false)
    }

    fn examine_default_collection(unlock: bool) -> Result<bool, Error> {
        let explain = |error: ServiceError| match error {
            ServiceError::Locked | ServiceError::Prompt => Error::NoStorageAccess(Box::new(error)),
            ServiceError::NoResult => Error::PlatformFailure("it has no default collection".into()),
            error => Error::PlatformFailure(Box::new(error)),
        };
        // No secret passes over this connection.
        let service = SecretService::connect(EncryptionType::Plain).map_err(explain)?;
        let collection = service.get_default_collection().map_err(explain)?;
        let is_locked = collection.is_locked().map_err(explain)?;
        if is_locked && unlock {
            collection.unlock().map_err(explain)?;
        }
        Ok(is_locked)
    }
}

#[cfg(not(all(unix, not(any(target_os = "macos", target_os = "ios", target_os = "android")))))]
pub(super) mod native {
    use std::sync::Arc;

    use keyring_core::{CredentialStore, Error};

    #[cfg(windows)]
    pub(crate) const DESCRIPTION: &str = "the Windows Credential Manager";
    #[cfg(not(windows))]
    pub(crate) const DESCRIPTION: &str = "the Keychain";
    /// A prompt that was dismissed must not come twice.
    pub(super) const CAN_BE_RESTARTED: bool = false;

    pub(crate) fn is_native(store: &CredentialStore) -> bool {
        store.vendor().contains("native-keyring-store")
    }

    /// `keyring` installs the native store as the default of `keyring_core`; it is only called where
    /// the program has set none.
    pub(crate) fn connect() -> Result<Arc<CredentialStore>, Error> {
        if keyring::Entry::store_status().is_err() {
            return Err(Error::NoDefaultStore);
        }
        keyring_core::get_default_store().ok_or(Error::NoDefaultStore)
    }

    /// The system asks when the entry is made.
    #[allow(clippy::unnecessary_wraps)]
    pub(crate) fn unlock() -> Result<(), Error> {
        Ok(())
    }

    /// Asks for an entry that is not there.
    pub(crate) fn is_locked() -> Result<bool, Error> {
        match connect()?.build("tokenseal", "probe", None)?.get_secret() {
            Ok(_) | Err(Error::NoEntry) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error_kind::ErrorKind;
    use crate::seal::KeyId;
    use keyring_core::api::CredentialStoreApi as _;
    use keyring_core::mock;

    const PLANTED: &[u8] = b"planted-secret\xff";

    fn name() -> KeyName {
        KeyName::new("app", "default", KeyId::from_bytes([1; 16]))
    }

    #[test]
    fn a_store_that_was_handed_in_is_used() {
        let store = mock::Store::new().unwrap();
        let keys = KeyringStore::with_store(store.clone());
        keys.prepare().unwrap();
        assert!(keys.read(&name()).unwrap().is_none());
        keys.create(&name(), &Secret::from("text")).unwrap();
        assert_eq!(keys.read(&name()).unwrap().unwrap().expose(), "text");
        let entry = store.build("app", &format!("default/{}", name().key_id()), None).unwrap();
        assert_eq!(entry.get_secret().unwrap(), b"text");
        keys.delete(&name()).unwrap();
        keys.delete(&name()).unwrap();
        assert!(keys.read(&name()).unwrap().is_none());
    }

    /// A mock by the name of the platform's own store.
    #[derive(Debug)]
    struct Native(Arc<mock::Store>);

    impl keyring_core::api::CredentialStoreApi for Native {
        fn vendor(&self) -> String {
            "mock of zbus-secret-service-keyring-store, windows-native-keyring-store".into()
        }
        fn id(&self) -> String {
            self.0.id()
        }
        fn build(&self, service: &str, user: &str, _: Option<&HashMap<&str, &str>>) -> Result<Entry, Error> {
            self.0.build(service, user, None)
        }
        fn as_any(&self) -> &dyn std::any::Any {
            self
        }
    }

    #[test]
    fn a_store_that_the_program_has_set_is_respected_though_it_is_the_platform_s_own() {
        let store = mock::Store::new().unwrap();
        keyring_core::set_default_store(Arc::new(Native(Arc::clone(&store))));
        let keys = KeyringStore::platform();
        let created = keys.create(&name(), &Secret::from("text"));
        keyring_core::unset_default_store();
        created.unwrap();
        assert_eq!(store.build("app", &name().user(), None).unwrap().get_secret().unwrap(), b"text");
    }

    #[test]
    fn an_entry_that_is_there_is_not_replaced() {
        let keys = KeyringStore::with_store(mock::Store::new().unwrap());
        keys.create(&name(), &Secret::from("first")).unwrap();
        let error = keys.create(&name(), &Secret::from("second")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::KeyExists, "{error:?}");
        assert_eq!(keys.read(&name()).unwrap().unwrap().expose(), "first");
    }

    #[test]
    fn the_bytes_in_a_keyring_error_go_no_further() {
        let cause = || -> Box<dyn std::error::Error + Send + Sync> { "planted".into() };
        for error in [Error::BadEncoding(PLANTED.to_vec()), Error::BadDataFormat(PLANTED.to_vec(), cause())] {
            let explained = explain(error, "it".into(), Some(&name()));
            assert_eq!(explained.kind(), ErrorKind::KeyDamaged);
            let shown = format!("{explained} {explained:?}");
            assert!(!shown.contains("planted") && !shown.contains("112, 108"), "{shown}");
        }
    }

    #[test]
    fn unavailable_locked_and_lost_are_told_apart() {
        let explained = |error| explain(error, "it".into(), Some(&name()));
        assert!(explained(Error::NoDefaultStore).is_unavailable());
        assert!(explained(Error::PlatformFailure("x".into())).is_unavailable());
        let locked = explained(Error::NoStorageAccess("x".into()));
        assert_eq!(locked.kind() == ErrorKind::KeyStoreLocked, !cfg!(windows), "{locked:?}");
        assert!(locked.is_unavailable());
        assert!(explained(Error::NoEntry).is_lost());
        assert_eq!(explained(Error::Ambiguous(Vec::new())).kind(), ErrorKind::KeyAmbiguous);
    }

    #[test]
    fn an_entry_that_is_no_text_is_damaged() {
        let store = mock::Store::new().unwrap();
        let keys = KeyringStore::with_store(store.clone());
        let entry = store.build("app", &name().user(), None).unwrap();
        entry.set_secret(PLANTED).unwrap();
        assert_eq!(keys.read(&name()).unwrap_err().kind(), ErrorKind::KeyDamaged);
    }
}
