//! What is in memory of a sealed file, and how it gets there.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::error::Repr;
use super::{Error, Inner};
use crate::cache::TokenCache;
use crate::deadline;
use crate::error_kind::ErrorKind;
use crate::key_store::KeyStoreError;
use crate::record::{KeyNotes, OpenError, Unsealed};
use crate::seal::{Header, KeyId, SealError, SealingKey};
use crate::store::{Record, StoreError, StoreLock, Watch};
use crate::trace::{self, Work};

/// The content of the file as it was last read or written.
#[derive(Debug)]
pub(super) struct State {
    pub(super) cache: TokenCache,
    pub(super) notes: KeyNotes,
    /// The key that seals the file; `None` where there is no file.
    pub(super) key: Option<Arc<SealingKey>>,
    pub(super) generation: u64,
    /// `None`: there was no file.
    pub(super) watch: Option<Watch>,
    is_read: bool,
}

impl State {
    /// Before the file was looked at.
    pub(super) fn unread() -> Self {
        let cache = TokenCache::new();
        Self { cache, notes: KeyNotes::default(), key: None, generation: 0, watch: None, is_read: false }
    }
}

/// How often a file that changes while it is read is read again.
const ATTEMPTS: usize = 16;

impl Inner {
    /// The state in memory, whatever the file is by now.
    pub(super) fn state(&self) -> Arc<State> {
        self.state.get()
    }

    /// Puts a new state in place of the old one and wipes what the old one held alone.
    pub(super) fn set_state(&self, new: State) {
        self.set_state_if(new, |_, _| true);
    }

    fn set_state_if(&self, mut new: State, is_newer: impl FnOnce(&State, &State) -> bool) {
        new.is_read = true;
        self.state.change(|state| {
            if !is_newer(state, &new) {
                return;
            }
            *state = Arc::new(new);
            // Nobody else has the new state yet, and the old one is gone, unless it is being read.
            if let Some(state) = Arc::get_mut(state) {
                state.cache.end_fork();
            }
        });
    }

    /// The newest state: what the file holds. Reads it again if another process, or another handle
    /// in this one, replaced it.
    pub(super) fn newest(&self) -> Result<Arc<State>, Error> {
        self.newest_by(deadline::after(self.key_timeout))
    }

    /// The same, and waits for the key store until the deadline only.
    pub(super) fn newest_by(&self, deadline: Instant) -> Result<Arc<State>, Error> {
        let deadline = deadline.min(deadline::after(self.key_timeout));
        for _ in 0..ATTEMPTS {
            let state = self.state();
            if self.is_current(&state)? {
                return Ok(state);
            }
            let Some(_reloading) = self.reloading.enter(deadline) else {
                let store = self.keys.description();
                return Err(KeyStoreError::timed_out(store, self.key_timeout).into());
            };
            if !self.is_current(&self.state())? {
                self.reload(deadline::left(deadline))?;
            }
        }
        // It changes all the time: what was read last was the newest after this call began.
        Ok(self.state())
    }

    /// Has the key that the file names in memory, before others have to wait for the lock. What else
    /// changed is read under the lock: it may change again until then.
    pub(super) fn fetch_key(&self) -> Result<(), Error> {
        let state = self.state();
        if self.is_current(&state)? {
            return Ok(());
        }
        let named = self.store.read_header()?.and_then(|header| Header::read_key_id(&header));
        if named.is_some() && named == state.key.as_ref().map(|key| key.id()) {
            return Ok(());
        }
        self.newest().map(drop)
    }

    /// The newest state while the lock is held, so that it stays the newest.
    pub(super) fn newest_locked(&self, _lock: &StoreLock) -> Result<Arc<State>, Error> {
        for _ in 0..ATTEMPTS {
            let state = self.state();
            if self.is_current(&state)? {
                return Ok(state);
            }
            // Not behind a thread that waits for a prompt: others wait for this one.
            self.reload(self.keys.patience(self.rotation_timeout))?;
        }
        Err(StoreError::NeverStill { path: self.store.path().to_owned() }.into())
    }

    fn reload(&self, key_timeout: Duration) -> Result<(), Error> {
        let state = self.load(key_timeout)?.unwrap_or_else(|| self.empty());
        // A change that this process made meanwhile is newer than what was read before it. Of two
        // keys neither is older: the next look at the file finds out.
        self.set_state_if(state, |current, new| {
            let key_id = |state: &State| state.key.as_ref().map(|key| key.id());
            new.key.is_none() || key_id(current) != key_id(new) || new.generation >= current.generation
        });
        Ok(())
    }

    /// Whether the file is still the one that `state` was read from.
    pub(super) fn is_current(&self, state: &State) -> Result<bool, Error> {
        match &state.watch {
            Some(watch) => Ok(self.store.is_current(watch)?),
            None => Ok(state.is_read && !self.store.is_there()?),
        }
    }

    fn empty(&self) -> State {
        State { cache: self.codec.empty(), ..State::unread() }
    }

    /// Reads and opens the file; `None` if there is none.
    pub(super) fn load(&self, key_timeout: Duration) -> Result<Option<State>, Error> {
        let _span = trace::enter(Work::Load, &self.trace_id);
        let mut missing = None;
        for _ in 0..ATTEMPTS {
            let Some(record) = self.store.read()? else { return Ok(None) };
            let header = Header::read(&record.bytes).map_err(|source| self.unopened(source))?;
            let key = match self.key(header.key_id, key_timeout) {
                Ok(key) => key,
                // Another process may have rotated the key meanwhile: read the file again, and ask
                // for what it names now. The same answer about the same key is final.
                Err(error) if error.kind() == ErrorKind::KeyMissing && missing != Some(header.key_id) => {
                    drop(error);
                    missing = Some(header.key_id);
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            if let Err(rolled_back) = self.codec.check_not_rolled_back(&header) {
                // A change that was made while this was read is no rollback.
                if !self.store.is_current(&record.watch)? {
                    continue;
                }
                return Err(self.unopened(rolled_back));
            }
            return self.open(record, header, key).map(Some);
        }
        Err(StoreError::NeverStill { path: self.store.path().to_owned() }.into())
    }

    fn open(&self, record: Record, header: Header, key: Arc<SealingKey>) -> Result<State, Error> {
        let (cache, notes) = self.codec.open(&key, &header, record.bytes).map_err(|error| match error {
            OpenError::Seal(seal) => self.unopened(seal),
            OpenError::Content(content) => {
                Repr::Content { path: self.store.path().to_owned(), content }.into()
            }
        })?;
        let generation = header.generation;
        Ok(State { cache, notes, key: Some(key), generation, watch: Some(record.watch), is_read: true })
    }

    fn unopened(&self, seal: SealError) -> Error {
        Repr::Seal { path: self.store.path().to_owned(), seal }.into()
    }

    /// The key with this id: the one in memory, or from the key store.
    fn key(&self, key_id: KeyId, within: Duration) -> Result<Arc<SealingKey>, KeyStoreError> {
        let known = self.state().key.clone();
        match known.filter(|key| key.id() == key_id) {
            Some(key) => Ok(key),
            None => self.keys.get(key_id, within).map(Arc::new),
        }
    }

    /// Makes a key and an empty file sealed under it. There must be no file, and the lock is held.
    pub(super) fn create_file(&self, lock: &StoreLock, key_timeout: Duration) -> Result<State, Error> {
        self.store.check_lock(lock)?;
        if let Some(key) = self.keys.fixed(key_timeout)? {
            let empty = self.empty();
            let generation = self.codec.last_generation(key.id()).saturating_add(1);
            return self.write(lock, empty.cache, &Arc::new(key), generation, empty.notes);
        }
        let key = SealingKey::generate().map_err(|source| self.unopened(source))?;
        if let Err(error) = self.keys.create(&key, key_timeout) {
            // It may be there after all, and seals nothing. If the store hangs, it stays.
            let _ = self.keys.delete(key.id(), self.keys.patience(self.rotation_timeout));
            return Err(error.into());
        }
        let empty = self.empty();
        let key = Arc::new(key);
        match self.write(lock, empty.cache, &key, 1, empty.notes) {
            Ok(state) => Ok(state),
            Err(error) => {
                // If only the last step failed, the file is there and needs its key.
                let is_used = self.store.read().map_or(true, |record| record.is_some());
                if !is_used {
                    // Should it stay in the key store after all, it seals nothing.
                    let _ = self.keys.delete(key.id(), self.rotation_timeout);
                }
                Err(error)
            }
        }
    }

    /// Seals a cache and replaces the file. When this returns, it is durable.
    pub(super) fn write(
        &self,
        lock: &StoreLock,
        mut cache: TokenCache,
        key: &Arc<SealingKey>,
        generation: u64,
        notes: KeyNotes,
    ) -> Result<State, Error> {
        let _span = trace::enter(Work::Save, &self.trace_id);
        let record = Unsealed::write(&mut cache, &notes);
        self.store.check_size(record.sealed_len())?;
        let record = self.codec.seal(key, generation, record).map_err(|source| self.unopened(source))?;
        let watch = Some(self.store.replace(lock, &record)?);
        cache.set_saved();
        self.codec.see(key.id(), generation);
        Ok(State { cache, notes, key: Some(Arc::clone(key)), generation, watch, is_read: true })
    }
}
