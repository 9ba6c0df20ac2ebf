//! A change of the cache, and the rotation of its key that a sign-out asks for.
//!
//! Rotation, with the lock held. After each step a crash leaves a file that opens:
//!
//! 1. Write the file under the old key: the account is gone, and a rotation is noted as due, with the
//!    new key as prepared.
//! 2. Make the new key's entry and read it back.
//! 3. Write the file under the new key: the old key is noted as retiring.
//! 4. Delete the old key's entry. From here on no older copy of the file can be opened.
//!
//! The next change looks at the notes and finishes what was cut short.

use std::sync::Arc;
use std::time::Duration;

use super::state::State;
use super::{Error, Inner};
use crate::cache::TokenCache;
use crate::key_store::KeyStoreError;
use crate::record::KeyNotes;
use crate::seal::{KeyId, SealingKey};
use crate::store::StoreLock;
use crate::trace::{self, Work};

/// What became of the key in an update.
///
/// ```
/// # use std::sync::Arc;
/// # use tokenseal::{PersistedTokenCache, TokenResponse};
/// # use tokenseal::key_store::MemoryKeyStore;
/// # let directory = tempfile::tempdir().unwrap();
/// # let builder = PersistedTokenCache::builder("contoso-cli")
/// #     .directory(directory.path().join("tokens"))
/// #     .key_store(Arc::new(MemoryKeyStore::new()));
/// use tokenseal::persisted::Rotation;
///
/// let cache = builder.open()?;
/// let cleared = cache.clear()?;
/// assert!(matches!(cleared.rotation(), Rotation::NotNeeded), "it was empty");
/// # Ok::<(), tokenseal::Error>(())
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum Rotation {
    /// Nothing asked for a new key.
    NotNeeded,
    /// The file is sealed under a new key and the old one is deleted.
    Done,
    /// The change is made and durable, but the key store refused or was slow, so that older copies
    /// of the file can still be opened. The next update tries again.
    Pending {
        /// What the key store said.
        reason: KeyStoreError,
    },
}

/// What an update returned, and what became of the key.
///
/// ```
/// # use std::sync::Arc;
/// # use tokenseal::{PersistedTokenCache, TokenResponse};
/// # use tokenseal::key_store::MemoryKeyStore;
/// # let directory = tempfile::tempdir().unwrap();
/// # let builder = PersistedTokenCache::builder("contoso-cli")
/// #     .directory(directory.path().join("tokens"))
/// #     .key_store(Arc::new(MemoryKeyStore::new()));
/// let cache = builder.open()?;
/// let signed_out = cache.remove_account(&tokenseal::Account::new("alice", "idp.example"))?;
/// if signed_out.is_rotation_pending() {
///     eprintln!("older copies of the file can still be opened; the next change tries again");
/// }
/// assert_eq!(signed_out.value().total(), 0);
/// # Ok::<(), tokenseal::Error>(())
/// ```
#[derive(Debug)]
pub struct Committed<T> {
    value: T,
    rotation: Rotation,
}

impl<T> Committed<T> {
    pub(crate) fn new(value: T, rotation: Rotation) -> Self {
        Self { value, rotation }
    }

    /// What the change returned.
    pub fn value(&self) -> &T {
        &self.value
    }

    /// Consumes `self`, returning what the change returned.
    pub fn into_value(self) -> T {
        self.value
    }

    /// What became of the key.
    pub fn rotation(&self) -> &Rotation {
        &self.rotation
    }

    /// Whether older copies of the file can still be opened although they should not.
    pub fn is_rotation_pending(&self) -> bool {
        matches!(self.rotation, Rotation::Pending { .. })
    }
}

/// A change that is being made under the lock. Dropped without [`commit`](Self::commit), it leaves
/// everything as it was.
pub(super) struct Change<'a> {
    inner: &'a Inner,
    lock: &'a StoreLock,
    tokens: TokenCache,
    before: Before,
}

/// The state that the change started from.
struct Before {
    lineage: u64,
    notes: KeyNotes,
    key: Option<Arc<SealingKey>>,
    generation: u64,
    revision: u64,
    sign_outs: u64,
    is_empty: bool,
}

impl<'a> Change<'a> {
    pub(super) fn begin(inner: &'a Inner, lock: &'a StoreLock) -> Result<Self, Error> {
        let state = inner.newest_locked(lock)?;
        let mut tokens = state.cache.fork();
        let lineage = tokens.begin_lineage();
        let before = Before {
            lineage,
            notes: state.notes.clone(),
            key: state.key.clone(),
            generation: state.generation,
            revision: tokens.revision(),
            sign_outs: tokens.sign_outs(),
            is_empty: tokens.is_empty(),
        };
        Ok(Self { inner, lock, tokens, before })
    }

    /// The cache to change.
    pub(super) fn tokens(&mut self) -> &mut TokenCache {
        &mut self.tokens
    }

    /// Writes the change, and rotates the key where a sign-out asks for it.
    pub(super) fn commit(mut self) -> Result<Rotation, Error> {
        let Self { inner, lock, ref before, .. } = self;
        inner.store.check_lock(lock)?;
        // A program may put a whole other cache in the place of the one it was handed.
        let is_exchanged = self.tokens.lineage() != before.lineage;
        if is_exchanged {
            inner.codec.adopt(&mut self.tokens);
        }
        let is_changed = is_exchanged || self.tokens.revision() != before.revision;
        let is_sign_out = !before.is_empty
            && (self.tokens.sign_outs() != before.sign_outs
                || is_exchanged && self.tokens.has_lost_an_account(&inner.newest_locked(lock)?.cache));

        let Some(key) = before.key.clone() else {
            // Somebody removed the file: start one anew, under a new key.
            if is_changed {
                let created = inner.create_file(lock, inner.rotation_timeout)?;
                let (Some(key), notes) = (created.key, created.notes) else { return Ok(Rotation::NotNeeded) };
                inner.set_state(inner.write(
                    lock,
                    self.tokens,
                    &key,
                    created.generation.saturating_add(1),
                    notes,
                )?);
            }
            return Ok(Rotation::NotNeeded);
        };

        let mut notes = before.notes.clone();
        // A file under one key that notes the same key as retiring would delete its own.
        notes.retiring.retain(|retiring| *retiring != key.id());
        let leftover = inner.delete_retired(lock, key.id(), &mut notes)?;
        if !is_sign_out && !notes.is_rotation_due {
            if is_changed || notes != before.notes {
                let generation = before.generation.saturating_add(1);
                inner.set_state(inner.write(lock, self.tokens, &key, generation, notes)?);
            }
            return Ok(leftover.map_or(Rotation::NotNeeded, |reason| Rotation::Pending { reason }));
        }
        let (state, rotation) = inner.rotate(lock, self.tokens, &key, before.generation, notes, leftover)?;
        inner.set_state(state);
        Ok(rotation)
    }
}

impl Inner {
    /// Deletes the keys that a rotation left behind. What cannot be deleted stays noted.
    fn delete_retired(
        &self,
        lock: &StoreLock,
        current: KeyId,
        notes: &mut KeyNotes,
    ) -> Result<Option<KeyStoreError>, Error> {
        if notes.retiring.is_empty() {
            return Ok(None);
        }
        // Whoever wrote the file under the current key may have been killed before that was durable: a
        // power cut must not bring back a file whose key is gone.
        self.store.make_durable(lock)?;
        // Some services answer "no such entry" while they are locked. One that finds the current key
        // is not.
        if let Err(error) = self.keys.get(current, self.rotation_patience()) {
            return Ok(Some(error));
        }
        let mut failure = None;
        notes.retiring.retain(|&retiring| {
            if failure.is_some() {
                return true;
            }
            failure = self.keys.delete(retiring, self.rotation_patience()).err();
            failure.is_some()
        });
        Ok(failure)
    }

    /// Steps 1 to 4. An error is one of the first step; whatever fails later leaves it pending.
    fn rotate(
        &self,
        lock: &StoreLock,
        tokens: TokenCache,
        old: &Arc<SealingKey>,
        generation: u64,
        mut notes: KeyNotes,
        refusal: Option<KeyStoreError>,
    ) -> Result<(State, Rotation), Error> {
        let _span = trace::enter(Work::Rotation, &self.trace_id);
        let refusal = refusal.or_else(|| self.keys.read_only());
        // A store that does not have the old key is not the one that this file's keys live in: a keyring that
        // was replaced, a volume that is not mounted. A new key made there would be lost with it. And
        // where old keys cannot be deleted, more of them would only pile up.
        let old_key =
            refusal.map_or_else(|| self.keys.get(old.id(), self.rotation_patience()).map(drop), Err);
        let found = old_key.and_then(|()| self.find_prepared(&notes));
        let (new, must_create) = match found {
            Ok(Some(prepared)) => (Ok(prepared), false),
            Ok(None) => (SealingKey::generate().map_err(KeyStoreError::from), true),
            Err(unavailable) => (Err(unavailable), false),
        };
        notes.is_rotation_due = true;
        if let Ok(new) = &new {
            notes.prepare(new.id());
        }
        let under_old = self.write(lock, tokens, old, generation.saturating_add(1), notes.clone())?;
        let ready = new.and_then(|new| {
            if must_create {
                self.keys.create(&new, self.rotation_patience())?;
            }
            Ok(Arc::new(new))
        });
        let new = match ready {
            Ok(new) => new,
            Err(reason) => return Ok((under_old, Rotation::Pending { reason })),
        };

        // The other prepared keys may never have been made, and seal nothing: they go like the old one.
        let unused: Vec<KeyId> = notes.prepared.drain(..).filter(|&key_id| key_id != new.id()).collect();
        for key_id in unused {
            notes.retire(key_id);
        }
        notes.retire(old.id());
        notes.is_rotation_due = false;
        let tokens = under_old.cache.fork();
        let mut under_new = match self.write(lock, tokens, &new, 1, notes.clone()) {
            Ok(under_new) => under_new,
            Err(error) => {
                let reason = self.postponed(error);
                return Ok((under_old, Rotation::Pending { reason }));
            }
        };
        drop(under_old);
        let failure = match self.delete_retired(lock, new.id(), &mut notes) {
            Ok(failure) => failure,
            Err(error) => Some(self.postponed(error)),
        };
        // The file still notes what was deleted just now; the next change writes what is left.
        under_new.notes = notes;
        Ok((under_new, failure.map_or(Rotation::Done, |reason| Rotation::Pending { reason })))
    }

    fn rotation_patience(&self) -> Duration {
        self.keys.patience(self.rotation_timeout)
    }

    /// The file was written under one key, and what was to follow failed.
    fn postponed(&self, error: Error) -> KeyStoreError {
        let advice = "the rest of the rotation could not be done, and the next change tries again";
        KeyStoreError::unavailable(self.keys.description(), advice, error)
    }

    /// A key that an earlier rotation made and did not come to use.
    fn find_prepared(&self, notes: &KeyNotes) -> Result<Option<SealingKey>, KeyStoreError> {
        for &key_id in notes.prepared.iter().rev() {
            match self.keys.get(key_id, self.rotation_patience()) {
                Ok(key) => return Ok(Some(key)),
                Err(error) if error.is_lost() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }
}
