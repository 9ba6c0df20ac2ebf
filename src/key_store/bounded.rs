//! Every call to a key store on a thread of its own, with a deadline.
//!
//! A keyring may wait for a prompt for ever, and some panic on an async runtime's threads.

use std::collections::HashMap;
use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use super::{KeyName, KeyStore, KeyStoreError, entry};
use crate::deadline::{self, Lane};
use crate::process::PerProcess;
use crate::seal::{KeyId, SealingKey};

/// More stack than the crates below a keyring were seen to use.
const STACK: usize = 256 * 1024;

/// A key store that answers in time, and keys instead of texts.
#[derive(Debug, Clone)]
pub(crate) struct BoundedKeyStore {
    store: Arc<dyn KeyStore>,
    application: String,
    cache: String,
    /// Stores are not reliable with several calls at once, and a hung one must not gather threads.
    place: Place,
}

/// Which store it is: those that are one share a lane, whoever opened them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Place {
    /// As the store itself says.
    Named(String),
    /// Where it stands in memory.
    At(usize),
}

type Lanes = Mutex<HashMap<Place, Weak<Lane>>>;

/// A child that is forked begins with none: its parent's calls are not under way there.
static LANES: PerProcess<Lanes> = PerProcess::new(|_parent| Lanes::default());

/// How long to wait for a store that hung at the call before and hangs still.
const WHILE_STUCK: Duration = Duration::from_millis(250);

impl BoundedKeyStore {
    pub(crate) fn new(store: Arc<dyn KeyStore>, application: &str, cache: &str) -> Self {
        let place = match store.identity() {
            Some(identity) => Place::Named(identity),
            None => Place::At(Arc::as_ptr(&store).cast::<()>().addr()),
        };
        Self { store, application: application.to_owned(), cache: cache.to_owned(), place }
    }

    fn lane(&self) -> Arc<Lane> {
        let mut lanes = LANES.get().lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lane) = lanes.get(&self.place).and_then(Weak::upgrade) {
            return lane;
        }
        lanes.retain(|_, lane| lane.strong_count() > 0);
        let lane = Arc::new(Lane::default());
        lanes.insert(self.place.clone(), Arc::downgrade(&lane));
        lane
    }

    /// How long to wait while others wait for a lock: `within`, but hardly at all if a call from before
    /// is still unanswered.
    pub(crate) fn patience(&self, within: Duration) -> Duration {
        if self.lane().is_overdue() { within.min(WHILE_STUCK) } else { within }
    }

    /// Does any interactive work, such as an unlock prompt, before a lock is taken.
    pub(crate) fn prepare(&self, within: Duration) -> Result<(), KeyStoreError> {
        self.call(within, |store| store.prepare())
    }

    /// Puts a key that was just generated into the store, and reads it back.
    pub(crate) fn create(&self, key: &SealingKey, within: Duration) -> Result<(), KeyStoreError> {
        let (name, text) = (self.name(key.id()), entry::encode(key));
        let kept = self.call(within, move |store| {
            store.create(&name, &text)?;
            Ok(store.read(&name)?.is_some_and(|kept| kept.expose().trim_ascii_end() == text.expose()))
        })?;
        if kept {
            return Ok(());
        }
        Err(KeyStoreError::not_kept(self.store.description(), &self.name(key.id())))
    }

    /// Gets the key with this id.
    pub(crate) fn get(&self, key_id: KeyId, within: Duration) -> Result<SealingKey, KeyStoreError> {
        let name = self.name(key_id);
        let text = self.call(within, move |store| store.read(&name))?;
        let (store, name) = (self.store.description(), self.name(key_id));
        let Some(text) = text else { return Err(KeyStoreError::missing(store, &name)) };
        entry::decode(key_id, &text).ok_or_else(|| KeyStoreError::damaged(store, &name))
    }

    /// Why no key can be made, in a store that can only be read.
    pub(crate) fn read_only(&self) -> Option<KeyStoreError> {
        let is_read_only = self.store.is_read_only();
        is_read_only.then(|| {
            let advice =
                "rotate its keys where they come from: older copies of the file can be opened till then";
            KeyStoreError::unavailable(self.store.description(), advice, "its keys are only read")
        })
    }

    /// The key of a store that can be read only, to seal a first file with; `None` from other stores.
    pub(crate) fn fixed(&self, within: Duration) -> Result<Option<SealingKey>, KeyStoreError> {
        let (application, cache) = (self.application.clone(), self.cache.clone());
        let keys = self.call(within, move |store| store.fixed_keys(&application, &cache))?;
        match keys[..] {
            [] => Ok(None),
            [only] => self.get(only, within).map(Some),
            [first, ..] => Err(KeyStoreError::ambiguous(self.store.description(), &self.name(first))),
        }
    }

    /// Deletes the key with this id.
    pub(crate) fn delete(&self, key_id: KeyId, within: Duration) -> Result<(), KeyStoreError> {
        let name = self.name(key_id);
        self.call(within, move |store| store.delete(&name))
    }

    fn name(&self, key_id: KeyId) -> KeyName {
        KeyName::new(&*self.application, &*self.cache, key_id)
    }

    fn call<T: Send + 'static>(
        &self,
        within: Duration,
        work: impl FnOnce(&dyn KeyStore) -> Result<T, KeyStoreError> + Send + 'static,
    ) -> Result<T, KeyStoreError> {
        let timed_out = || KeyStoreError::timed_out(self.store.description(), within);
        let deadline = deadline::after(within);
        let lane = self.lane();
        let in_lane = lane.enter(deadline).ok_or_else(timed_out)?;
        let (answer, answered) = sync_channel(1);
        let store = Arc::clone(&self.store);
        let spawned = thread::Builder::new().name("tokenseal-key-store".into()).spawn(move || {
            let result = catch_unwind(AssertUnwindSafe(|| work(&*store)));
            // The thread's stack outlives it in the allocator's cache.
            zeroize::zeroize_stack::<STACK>();
            drop(in_lane);
            // Nobody waits any more once the deadline has passed.
            let _ = answer.send(result);
        });
        let unavailable = |advice: &str, source: Box<dyn Error + Send + Sync>| {
            KeyStoreError::unavailable(self.store.description(), advice, source)
        };
        spawned.map_err(|error| unavailable("no thread could be started to ask it", error.into()))?;
        match answered.recv_timeout(deadline::left(deadline)) {
            Ok(Ok(result)) => result,
            // What a panic says may be anything, a secret too.
            Ok(Err(_panic)) => Err(unavailable("report this to its maintainers", "it panicked".into())),
            Err(RecvTimeoutError::Timeout) => {
                lane.set_overdue();
                Err(timed_out())
            }
            Err(RecvTimeoutError::Disconnected) => {
                Err(unavailable("report this to its maintainers", "its thread ended".into()))
            }
        }
    }
}

/// For messages that must not wait for the store.
impl BoundedKeyStore {
    pub(crate) fn description(&self) -> String {
        self.store.description()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error_kind::ErrorKind;
    use crate::key_store::MemoryKeyStore;
    use crate::secret::Secret;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::time::Instant;

    const SHORT: Duration = Duration::from_millis(100);
    const LONG: Duration = Duration::from_secs(10);

    /// Hangs until it is let go, and can be told to panic or to corrupt.
    #[derive(Debug, Default)]
    struct Awkward {
        inner: MemoryKeyStore,
        hangs: AtomicBool,
        panics: AtomicBool,
        corrupts: AtomicBool,
        calls: AtomicUsize,
    }

    impl Awkward {
        fn behave(&self) {
            self.calls.fetch_add(1, Ordering::SeqCst);
            assert!(!self.panics.load(Ordering::SeqCst), "told to");
            while self.hangs.load(Ordering::SeqCst) {
                thread::sleep(Duration::from_millis(1));
            }
        }
    }

    impl KeyStore for Awkward {
        fn description(&self) -> String {
            "the awkward store".into()
        }
        fn create(&self, name: &KeyName, text: &Secret) -> Result<(), KeyStoreError> {
            self.behave();
            if self.corrupts.load(Ordering::SeqCst) {
                return self.inner.create(name, &Secret::from("something else"));
            }
            self.inner.create(name, text)
        }
        fn read(&self, name: &KeyName) -> Result<Option<Secret>, KeyStoreError> {
            self.behave();
            self.inner.read(name)
        }
        fn delete(&self, name: &KeyName) -> Result<(), KeyStoreError> {
            self.behave();
            self.inner.delete(name)
        }
    }

    fn bounded(store: &Arc<Awkward>) -> BoundedKeyStore {
        BoundedKeyStore::new(Arc::clone(store) as Arc<dyn KeyStore>, "app", "default")
    }

    #[test]
    fn a_key_is_made_read_and_deleted() {
        let keys = bounded(&Arc::default());
        let key = SealingKey::generate().unwrap();
        keys.create(&key, LONG).unwrap();
        assert_eq!(keys.get(key.id(), LONG).unwrap().bytes(), key.bytes());
        keys.delete(key.id(), LONG).unwrap();
        assert!(keys.get(key.id(), LONG).unwrap_err().is_lost());
        keys.delete(key.id(), LONG).unwrap();
    }

    #[test]
    fn a_hung_store_is_an_error_in_time_and_gathers_no_calls() {
        let store = Arc::new(Awkward::default());
        let keys = bounded(&store);
        store.hangs.store(true, Ordering::SeqCst);
        let started = Instant::now();
        for _ in 0..3 {
            let error = keys.get(KeyId::from_bytes([1; 16]), SHORT).unwrap_err();
            assert!(error.kind() == ErrorKind::KeyStoreTimedOut, "{error:?}");
        }
        assert!(started.elapsed() < Duration::from_secs(3));
        assert_eq!(store.calls.load(Ordering::SeqCst), 1, "later calls wait for the first");
        store.hangs.store(false, Ordering::SeqCst);
        assert!(keys.get(KeyId::from_bytes([1; 16]), LONG).unwrap_err().is_lost(), "it answers again");
    }

    #[test]
    fn a_panic_is_an_error_and_the_next_call_works() {
        let store = Arc::new(Awkward::default());
        let keys = bounded(&store);
        store.panics.store(true, Ordering::SeqCst);
        assert!(keys.get(KeyId::from_bytes([1; 16]), LONG).unwrap_err().is_unavailable());
        store.panics.store(false, Ordering::SeqCst);
        assert!(keys.get(KeyId::from_bytes([1; 16]), LONG).unwrap_err().is_lost());
    }

    #[test]
    fn a_store_that_alters_what_it_takes_is_found_out() {
        let store = Arc::new(Awkward::default());
        store.corrupts.store(true, Ordering::SeqCst);
        let keys = bounded(&store);
        let key = SealingKey::generate().unwrap();
        assert_eq!(keys.create(&key, LONG).unwrap_err().kind(), ErrorKind::KeyNotKept);
        let error = keys.get(key.id(), LONG).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::KeyDamaged);
        assert!(!format!("{error} {error:?}").contains("something else"));
    }
}
