//! The cache that tokens are acquired from: in a file, or in memory only.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

use crate::cache::{CacheError, TokenCache};
use crate::persisted::{Error, PersistedTokenCache, Updated};
use crate::process::Process;
use crate::store::StoreError;

#[derive(Debug, Clone)]
pub(super) enum Tokens {
    File(PersistedTokenCache),
    Memory(Arc<InMemory>),
}

/// A cache in memory, and who has it in hand: asking for it again there would wait for ever.
#[derive(Debug)]
pub(super) struct InMemory {
    cache: Mutex<TokenCache>,
    holder: Mutex<Option<(Process, ThreadId)>>,
}

impl InMemory {
    pub(super) fn new(cache: TokenCache) -> Self {
        Self { cache: Mutex::new(cache), holder: Mutex::default() }
    }

    fn holder(&self) -> MutexGuard<'_, Option<(Process, ThreadId)>> {
        self.holder.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_mine(&self) -> bool {
        *self.holder() == Some((Process::current(), thread::current().id()))
    }

    /// Calls `work` with the cache. Fails inside another such call of the same thread, and in a child that
    /// was forked in the middle of one.
    pub(super) fn with<T>(&self, work: impl FnOnce(&mut TokenCache) -> T) -> Result<T, Error> {
        struct Held<'a>(&'a InMemory);
        impl Drop for Held<'_> {
            fn drop(&mut self) {
                *self.0.holder() = None;
            }
        }
        if self.is_mine() {
            return Err(nested());
        }
        if self.holder().is_some_and(|(process, _)| !process.is_current()) {
            return Err(StoreError::Forked { path: PathBuf::from(IN_MEMORY) }.into());
        }
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        *self.holder() = Some((Process::current(), thread::current().id()));
        let _held = Held(self);
        Ok(work(&mut cache))
    }
}

impl Tokens {
    pub(super) fn read<T>(&self, look: impl FnOnce(&TokenCache) -> T) -> Result<T, Error> {
        match self {
            Self::File(cache) => cache.read(look),
            Self::Memory(cache) => cache.with(|cache| look(cache)),
        }
    }

    /// As [`read`](Self::read), but never waits; `None` if it would have to.
    pub(super) fn read_if_current<T>(&self, look: impl FnOnce(&TokenCache) -> T) -> Result<Option<T>, Error> {
        match self {
            Self::File(cache) => cache.read_if_current(look),
            Self::Memory(_) => self.read(look).map(Some),
        }
    }

    /// As [`read`](Self::read), of what is in memory, however old. Never waits.
    pub(super) fn read_in_memory<T>(&self, look: impl FnOnce(&TokenCache) -> T) -> Result<T, Error> {
        match self {
            Self::File(cache) => Ok(cache.read_in_memory(look)),
            Self::Memory(_) => self.read(look),
        }
    }

    pub(super) fn update<T>(
        &self,
        change: impl FnOnce(&mut TokenCache) -> Result<T, CacheError>,
    ) -> Result<T, Error> {
        match self {
            Self::File(cache) => cache.update(change).map(Updated::into_value),
            Self::Memory(cache) => Ok(cache.with(change)??),
        }
    }

    /// Fails inside a change of the cache by this thread, where waiting for anybody would be in vain.
    pub(super) fn check_not_in_hand(&self) -> Result<(), Error> {
        match self {
            Self::File(cache) if cache.store().is_locked_by_this_thread() => {
                Err(StoreError::Nested { path: cache.path().to_owned() }.into())
            }
            Self::Memory(cache) if cache.is_mine() => Err(nested()),
            _ => Ok(()),
        }
    }
}

/// What stands for a path where there is none.
const IN_MEMORY: &str = "(in memory)";

fn nested() -> Error {
    StoreError::Nested { path: PathBuf::from(IN_MEMORY) }.into()
}
