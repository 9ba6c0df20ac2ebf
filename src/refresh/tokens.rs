//! The cache that tokens are acquired from: in a file, or in memory only.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use crate::cache::{CacheError, TokenCache};
use crate::deadline;
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
    process: Process,
    /// That of a child that was forked, in the child's memory; `None` if a thread of its parent had the
    /// cache in hand just then.
    child: OnceLock<Option<Box<Self>>>,
    cache: Mutex<TokenCache>,
    holder: Mutex<Option<ThreadId>>,
}

impl InMemory {
    pub(super) fn new(cache: TokenCache) -> Self {
        let (process, child) = (Process::current(), OnceLock::new());
        Self { process, child, cache: Mutex::new(cache), holder: Mutex::default() }
    }

    /// That of this process. A child takes the cache over as it was.
    fn own(&self) -> Result<&Self, Error> {
        let mut own = self;
        while !own.process.is_current() {
            let take_over = || own.cache.try_lock().ok().map(|cache| Box::new(Self::new(cache.clone())));
            let child = own.child.get_or_init(take_over);
            own = child.as_ref().ok_or_else(|| StoreError::Forked { path: PathBuf::from(IN_MEMORY) })?;
        }
        Ok(own)
    }

    fn holder(&self) -> MutexGuard<'_, Option<ThreadId>> {
        self.holder.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_mine(&self) -> bool {
        *self.holder() == Some(thread::current().id())
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
        let own = self.own()?;
        if own.is_mine() {
            return Err(nested());
        }
        let mut cache = own.cache.lock().unwrap_or_else(PoisonError::into_inner);
        *own.holder() = Some(thread::current().id());
        let _held = Held(own);
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

    /// As [`read`](Self::read), and waits for others until the deadline only; a moment for what is free.
    pub(super) fn read_by<T>(
        &self,
        deadline: Instant,
        look: impl FnOnce(&TokenCache) -> T,
    ) -> Result<T, Error> {
        match self {
            Self::File(cache) => cache.read_by(deadline.max(deadline::after(A_MOMENT)), look),
            Self::Memory(_) => self.read(look),
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
            Self::Memory(cache) if cache.own()?.is_mine() => Err(nested()),
            _ => Ok(()),
        }
    }
}

/// How long a key store that answers may take.
const A_MOMENT: Duration = Duration::from_millis(250);

/// What stands for a path where there is none.
const IN_MEMORY: &str = "(in memory)";

fn nested() -> Error {
    StoreError::Nested { path: PathBuf::from(IN_MEMORY) }.into()
}
