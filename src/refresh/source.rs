//! The cache that tokens are acquired from: in a file, or in memory only.

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use super::registry::Registry;
use crate::cache::{CacheError, TokenCache};
use crate::deadline;
use crate::persisted::{Error, PersistedTokenCache, Updated};
use crate::process::Process;
use crate::store::StoreError;

#[derive(Debug, Clone)]
pub(super) enum Source {
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

impl Source {
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

/// A token cache in memory only, shared by the threads and tasks of one process, with one refresh at a
/// time among them. Cheap to clone; each clone is the same cache.
///
/// Nothing is saved: when the last clone is dropped, the tokens are gone. Other processes are not kept
/// from using the same refresh tokens.
///
/// ```
/// use tokenseal::{AccessTokenQuery, Account, RefreshFailure, SharedTokenCache, TokenCache, TokenResponse};
///
/// let cache = SharedTokenCache::new(TokenCache::new());
/// let expired = TokenResponse::from_json(r#"{"access_token":"old","refresh_token":"rt","expires_in":0}"#)?
///     .client_id("app").environment("idp.example").home_account_id("alice").requested_scopes(["read"]);
/// cache.update(|tokens| tokens.add(&expired))?;
///
/// let wanted = AccessTokenQuery::new("app").account(&Account::new("alice", "idp.example")).scopes(["read"]);
/// let acquired = cache.acquire(&wanted, |call| {
///     // Send `call.form()` to the token endpoint, and say what came back.
///     call.answer(200, None, None, r#"{"access_token":"new","expires_in":3600}"#)
/// })?;
/// assert_eq!(acquired.token().expose(), "new");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct SharedTokenCache {
    pub(super) source: Source,
    /// What it is known by in this process, and in those that it forks.
    number: u64,
}

impl SharedTokenCache {
    /// Shares a cache.
    pub fn new(cache: TokenCache) -> Self {
        static NUMBERS: AtomicU64 = AtomicU64::new(1);
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        Self { source: Source::Memory(Arc::new(InMemory::new(cache))), number }
    }

    pub(super) fn registry(&self) -> Arc<Registry> {
        Registry::of_memory(self.number)
    }

    /// Calls `look` with the cache. Nobody else reads or changes it meanwhile.
    ///
    /// # Panics
    /// Inside `read` or `update` of the same cache, where it would wait for itself, and in a child that was
    /// forked while another thread was inside.
    pub fn read<T>(&self, look: impl FnOnce(&TokenCache) -> T) -> T {
        self.update(|cache| look(cache))
    }

    /// Calls `change` with the cache. Nobody else reads or changes it meanwhile, so no network call
    /// belongs in it.
    ///
    /// # Panics
    /// Inside `read` or `update` of the same cache, where it would wait for itself, and in a child that was
    /// forked while another thread was inside.
    pub fn update<T>(&self, change: impl FnOnce(&mut TokenCache) -> T) -> T {
        let Source::Memory(cache) = &self.source else { unreachable!("made in memory") };
        match cache.with(change) {
            Ok(value) => value,
            Err(error) => {
                panic!("a SharedTokenCache cannot be used inside its own `read` or `update`: {error}")
            }
        }
    }
}

impl fmt::Debug for SharedTokenCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedTokenCache").finish_non_exhaustive()
    }
}
