//! A cache in memory only, that threads and tasks share.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::desk::Desk;
use super::tokens::{InMemory, Tokens};
use crate::cache::TokenCache;

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
    pub(super) tokens: Tokens,
    /// What it is known by in this process, and in those that it forks.
    number: u64,
}

impl SharedTokenCache {
    /// Shares a cache.
    pub fn new(cache: TokenCache) -> Self {
        static NUMBERS: AtomicU64 = AtomicU64::new(1);
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        Self { tokens: Tokens::Memory(Arc::new(InMemory::new(cache))), number }
    }

    pub(super) fn desk(&self) -> Arc<Desk> {
        Desk::of_memory(self.number)
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
        let Tokens::Memory(cache) = &self.tokens else { unreachable!("made in memory") };
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
