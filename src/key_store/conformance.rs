//! What every key store must do, as checks that any implementation can run.
//!
//! ```
//! use tokenseal::key_store::{MemoryKeyStore, conformance};
//!
//! // In a test of your own store: each call opens the same store anew.
//! let vault = MemoryKeyStore::new();
//! conformance::check(|| vault.clone());
//! ```

use std::fmt::Write as _;
use std::thread;

use super::{KeyName, KeyStore, KeyStoreError};
use crate::seal::{KeyId, SealingKey};
use crate::secret::Secret;

/// The longest text that an entry may have, in bytes.
const LONGEST: usize = 256;

/// Checks a store that can be written to. `open` opens the same store anew, as another process would; its
/// entries outlive every handle. What the checks put there, they delete.
///
/// # Panics
/// If the store does not do what [`KeyStore`] promises. The message says which promise it is.
pub fn check<S: KeyStore>(open: impl Fn() -> S) {
    let store = open();
    assert!(!store.is_read_only(), "a store that can only be read cannot be checked by writing to it");
    assert!(!store.description().is_empty(), "messages need the name of the store");
    assert_eq!(store.identity(), open().identity(), "two handles on one store have the same identity");
    store.prepare().expect("the store is ready to make entries");

    let names = Names::new();
    let cleanup = Cleanup { store: &store, names: &names };
    check_one_entry(&open, &names.first);
    check_others(&open, &names);
    drop(cleanup);
    for name in names.all() {
        let left = open().read(name).expect("a store can be read");
        assert!(left.is_none(), "a deleted entry is gone for every handle");
        open().delete(name).expect("deleting an entry that is not there is not an error");
    }
}

fn check_one_entry<S: KeyStore>(open: &impl Fn() -> S, name: &KeyName) {
    let texts = [text('a', LONGEST), text('b', 60)];
    open().create(name, &texts[0]).expect("an entry can be made");
    assert_holds(&open(), name, &texts[0], "an entry is read as it was made, by every handle");
    let again = open().create(name, &texts[1]);
    let error = again.expect_err("an entry is never replaced");
    assert_shows_nothing(&error, &texts);
    assert_holds(&open(), name, &texts[0], "an entry stays as it is where another was to be made");
    open().delete(name).expect("an entry can be deleted");
    assert!(open().read(name).expect("a store can be read").is_none(), "a deleted entry is gone");
    open().create(name, &texts[1]).expect("a name can be used again");
    assert_holds(&open(), name, &texts[1], "an entry that is made again has its own text");
}

/// Entries whose names differ in one part only are several.
fn check_others<S: KeyStore>(open: &impl Fn() -> S, names: &Names) {
    for (number, name) in names.others.iter().enumerate() {
        assert!(open().read(name).expect("a store can be read").is_none(), "{name} was never made");
        open().create(name, &text('c', 50 + number)).expect("a second entry can be made");
    }
    for (number, name) in names.others.iter().enumerate() {
        assert_holds(&open(), name, &text('c', 50 + number), "entries do not get mixed up");
    }
    open().delete(&names.first).expect("an entry can be deleted");
    for (number, name) in names.others.iter().enumerate() {
        assert_holds(&open(), name, &text('c', 50 + number), "deleting an entry leaves the others alone");
    }
}

fn assert_holds(store: &dyn KeyStore, name: &KeyName, text: &Secret, promise: &str) {
    let found = store.read(name).expect("a store can be read");
    // Some stores end what they keep with a line break.
    let is_kept = found.is_some_and(|found| found.expose().trim_ascii_end() == text.expose());
    assert!(is_kept, "{promise}: {name}");
}

fn assert_shows_nothing(error: &KeyStoreError, texts: &[Secret]) {
    let mut shown = format!("{error} {error:?}");
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let _ = write!(shown, " {error} {error:?}");
        cause = error.source();
    }
    assert!(!texts.iter().any(|text| shown.contains(text.expose())), "no error shows the text of an entry");
}

/// A text that differs from every other of another letter or length.
fn text(letter: char, length: usize) -> Secret {
    Secret::from(letter.to_string().repeat(length))
}

/// Names that no cache uses: their key ids are new.
struct Names {
    first: KeyName,
    others: Vec<KeyName>,
}

impl Names {
    fn new() -> Self {
        let [one, two] = [(); 2].map(|()| new_id());
        let first = KeyName::new("tokenseal-conformance", "default", one);
        let others = vec![
            KeyName::new("tokenseal-conformance", "default", two),
            KeyName::new("tokenseal-conformance", "default-2", one),
            KeyName::new("tokenseal-conformance-2", "default", one),
        ];
        Self { first, others }
    }

    fn all(&self) -> impl Iterator<Item = &KeyName> {
        self.others.iter().chain([&self.first])
    }
}

fn new_id() -> KeyId {
    SealingKey::generate().expect("the system has random bytes").id()
}

/// Deletes what the checks made, whether they succeed or not.
struct Cleanup<'a, S: KeyStore> {
    store: &'a S,
    names: &'a Names,
}

impl<S: KeyStore> Drop for Cleanup<'_, S> {
    fn drop(&mut self) {
        for name in self.names.all() {
            let deleted = self.store.delete(name);
            assert!(deleted.is_ok() || thread::panicking(), "an entry can be deleted");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;
    use crate::key_store::MemoryKeyStore;

    /// What is wrong with a store.
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Fault {
        ReplacesEntries,
        ForgetsTheCache,
        ForgetsTheService,
        KeepsWhatIsDeleted,
        MissesWhatIsGone,
        ShowsTexts,
        CutsTexts,
        ForgetsItselfWhenReopened,
    }

    #[derive(Debug, Clone)]
    struct Faulty(MemoryKeyStore, Option<Fault>);

    impl Faulty {
        fn name(&self, name: &KeyName) -> KeyName {
            match self.1 {
                Some(Fault::ForgetsTheCache) => KeyName::new(name.service(), "any", name.key_id()),
                Some(Fault::ForgetsTheService) => KeyName::new("any", name.cache(), name.key_id()),
                _ => name.clone(),
            }
        }
    }

    impl KeyStore for Faulty {
        fn description(&self) -> String {
            "the faulty store".into()
        }

        fn create(&self, name: &KeyName, text: &Secret) -> Result<(), KeyStoreError> {
            let name = &self.name(name);
            match self.1 {
                Some(Fault::ReplacesEntries) => self.0.delete(name)?,
                Some(Fault::ShowsTexts) => {
                    let known = self.0.read(name)?.map(|text| text.expose().to_owned());
                    let shown = known.unwrap_or_default();
                    return self.0.create(name, text).map_err(|_| KeyStoreError::locked("it", shown));
                }
                Some(Fault::CutsTexts) => {
                    let cut = text.expose().get(..64).unwrap_or(text.expose()).to_owned();
                    return self.0.create(name, &Secret::from(cut));
                }
                _ => {}
            }
            self.0.create(name, text)
        }

        fn read(&self, name: &KeyName) -> Result<Option<Secret>, KeyStoreError> {
            self.0.read(&self.name(name))
        }

        fn delete(&self, name: &KeyName) -> Result<(), KeyStoreError> {
            match self.1 {
                Some(Fault::KeepsWhatIsDeleted) => Ok(()),
                Some(Fault::MissesWhatIsGone) if self.0.read(name)?.is_none() => {
                    Err(KeyStoreError::unavailable("it", "make one", "there is none"))
                }
                _ => self.0.delete(&self.name(name)),
            }
        }
    }

    fn passes(fault: Option<Fault>) -> bool {
        let store = Faulty(MemoryKeyStore::new(), fault);
        let reopens = fault == Some(Fault::ForgetsItselfWhenReopened);
        let open = || if reopens { Faulty(MemoryKeyStore::new(), fault) } else { store.clone() };
        catch_unwind(AssertUnwindSafe(|| check(open))).is_ok()
    }

    #[test]
    fn a_good_store_passes_and_every_fault_is_noticed() {
        assert!(passes(None));
        for fault in [
            Fault::ReplacesEntries,
            Fault::ForgetsTheCache,
            Fault::ForgetsTheService,
            Fault::KeepsWhatIsDeleted,
            Fault::MissesWhatIsGone,
            Fault::ShowsTexts,
            Fault::CutsTexts,
            Fault::ForgetsItselfWhenReopened,
        ] {
            assert!(!passes(Some(fault)), "{fault:?}");
        }
    }
}
