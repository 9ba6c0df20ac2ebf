//! The cache that tokens are acquired from: in a file, or in memory only.

use std::time::{Duration, Instant};

use crate::cache::{CacheError, TokenCache};
use crate::deadline;
use crate::persisted::{Committed, Error, PersistedTokenCache};
use crate::shared::SharedTokenCache;
use crate::store::StoreError;

#[derive(Debug, Clone)]
pub(crate) enum Source {
    File(PersistedTokenCache),
    Memory(SharedTokenCache),
}

impl Source {
    pub(crate) fn read<T>(&self, look: impl FnOnce(&TokenCache) -> T) -> Result<T, Error> {
        match self {
            Self::File(cache) => cache.read(look),
            Self::Memory(cache) => cache.read(look),
        }
    }

    /// As [`read`](Self::read), but waits at most until the deadline, and at least briefly.
    pub(crate) fn read_by<T>(
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
    pub(crate) fn read_if_current<T>(&self, look: impl FnOnce(&TokenCache) -> T) -> Result<Option<T>, Error> {
        match self {
            Self::File(cache) => cache.read_if_current(look),
            Self::Memory(_) => self.read(look).map(Some),
        }
    }

    /// As [`read`](Self::read), from memory, however old. Never waits.
    pub(crate) fn read_in_memory<T>(&self, look: impl FnOnce(&TokenCache) -> T) -> Result<T, Error> {
        match self {
            Self::File(cache) => Ok(cache.read_in_memory(look)),
            Self::Memory(_) => self.read(look),
        }
    }

    pub(crate) fn update<T>(
        &self,
        change: impl FnOnce(&mut TokenCache) -> Result<T, CacheError>,
    ) -> Result<T, Error> {
        match self {
            Self::File(cache) => cache.try_update(change).map(Committed::into_value),
            Self::Memory(cache) => cache.try_update(change).map(Committed::into_value),
        }
    }

    /// Fails inside a change of the cache by this thread, which would wait for itself.
    pub(crate) fn check_not_in_hand(&self) -> Result<(), Error> {
        match self {
            Self::File(cache) if cache.store().is_locked_by_this_thread() => {
                Err(StoreError::Nested { path: cache.path().to_owned() }.into())
            }
            Self::Memory(cache) => cache.check_not_in_hand(),
            Self::File(_) => Ok(()),
        }
    }
}

/// The time allowed for a key store that responds.
const A_MOMENT: Duration = Duration::from_millis(250);
