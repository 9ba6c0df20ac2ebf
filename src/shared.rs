//! A cache in memory only, shared by threads and tasks.

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, ThreadId};

use crate::cache::{
    AccessToken, AccessTokenQuery, Account, AccountQuery, Added, IdToken, RefreshToken, RefreshTokenQuery,
    Removed, TokenCache, TokenResponse,
};
use crate::persisted::{Committed, Error, Rotation};
use crate::process::Process;
use crate::store::StoreError;

/// A cache in memory, and the thread that is using it, which would wait for itself.
#[derive(Debug)]
struct InMemory {
    process: Process,
    /// The cache of a forked child; `None` if another thread of the parent was using the cache at the fork.
    child: OnceLock<Option<Box<Self>>>,
    cache: Mutex<TokenCache>,
    holder: Mutex<Option<ThreadId>>,
}

impl InMemory {
    fn new(cache: TokenCache) -> Self {
        let (process, child) = (Process::current(), OnceLock::new());
        Self { process, child, cache: Mutex::new(cache), holder: Mutex::default() }
    }

    /// Returns the cache of this process. A child inherits the content.
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

    /// Calls `work` with the cache. Fails inside another such call of the same thread, and in a child forked during
    /// one.
    fn with<T>(&self, work: impl FnOnce(&mut TokenCache) -> T) -> Result<T, Error> {
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

/// Shown in place of a path.
const IN_MEMORY: &str = "(in memory)";

fn nested() -> Error {
    StoreError::Nested { path: PathBuf::from(IN_MEMORY) }.into()
}

/// A token cache in memory only, shared by the threads and tasks of one process, with one refresh at a
/// time among them. Cheap to clone; each clone is the same cache.
///
/// It is used as a [`PersistedTokenCache`](crate::PersistedTokenCache) is, but nothing is saved: when the last
/// clone is dropped, the tokens are gone. Other processes are not kept from using the same refresh tokens.
///
/// ```
/// use tokenseal::{AccessTokenQuery, Account, SharedTokenCache, TokenCache, TokenResponse};
///
/// let cache = SharedTokenCache::new(TokenCache::new());
/// let expired = TokenResponse::from_json(r#"{"access_token":"old","refresh_token":"rt","expires_in":0}"#)?
///     .client_id("app").environment("idp.example").home_account_id("alice").requested_scopes(["read"]);
/// cache.add(&expired)?;
///
/// let account = Account::new("alice", "idp.example");
/// let wanted = AccessTokenQuery::for_account("app", &account).scopes(["read"]);
/// let acquired = cache.acquire(&wanted, |call| {
///     // Send `call.form()` to the token endpoint, and pass on what came back.
///     call.answer(200, None, None, r#"{"access_token":"new","expires_in":3600}"#)
/// })?;
/// assert_eq!(acquired.token().expose(), "new");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct SharedTokenCache {
    memory: Arc<InMemory>,
    /// Identifies the cache in this process and its children.
    number: u64,
}

impl SharedTokenCache {
    /// Shares a cache.
    pub fn new(cache: TokenCache) -> Self {
        static NUMBERS: AtomicU64 = AtomicU64::new(1);
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        Self { memory: Arc::new(InMemory::new(cache)), number }
    }

    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Fails inside a change of the cache by this thread, which would wait for itself.
    pub(crate) fn check_not_in_hand(&self) -> Result<(), Error> {
        if self.memory.own()?.is_mine() { Err(nested()) } else { Ok(()) }
    }

    /// Finds an access token, as [`TokenCache::find_access_token`].
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn find_access_token(&self, query: &AccessTokenQuery) -> Result<Option<AccessToken>, Error> {
        self.read(|tokens| tokens.find_access_token(query))
    }

    /// Finds refresh tokens, as [`TokenCache::find_refresh_tokens`].
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn find_refresh_tokens(&self, query: &RefreshTokenQuery) -> Result<Vec<RefreshToken>, Error> {
        self.read(|tokens| tokens.find_refresh_tokens(query))
    }

    /// Finds an id token, as [`TokenCache::find_id_token`].
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn find_id_token(
        &self,
        client_id: &str,
        account: &Account,
        realm: Option<&str>,
    ) -> Result<Option<IdToken>, Error> {
        self.read(|tokens| tokens.find_id_token(client_id, account, realm))
    }

    /// Returns all accounts.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn accounts(&self) -> Result<Vec<Account>, Error> {
        self.read(TokenCache::accounts)
    }

    /// Finds accounts, as [`TokenCache::find_accounts`].
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn find_accounts(&self, query: &AccountQuery) -> Result<Vec<Account>, Error> {
        self.read(|tokens| tokens.find_accounts(query))
    }

    /// Calls `look` with the cache. Nobody else reads or changes it meanwhile.
    ///
    /// # Errors
    /// [`Error`] inside `read` or a change of the same cache, where it would wait for itself, and in a child
    /// that was forked while another thread was inside.
    pub fn read<T>(&self, look: impl FnOnce(&TokenCache) -> T) -> Result<T, Error> {
        self.memory.with(|cache| look(cache))
    }

    /// Adds a token response.
    ///
    /// # Errors
    /// As [`try_update`](Self::try_update); [`ErrorKind::NotAccepted`](crate::ErrorKind::NotAccepted) if the
    /// response is not one that can be kept.
    pub fn add(&self, response: &TokenResponse) -> Result<Added, Error> {
        self.try_update(|tokens| tokens.add(response)).map(Committed::into_value)
    }

    /// Signs a user out: removes all rows of the account.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn remove_account(&self, account: &Account) -> Result<Committed<Removed>, Error> {
        self.update(|tokens| tokens.remove_account(account))
    }

    /// Removes everything.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn clear(&self) -> Result<Committed<Removed>, Error> {
        self.update(TokenCache::clear)
    }

    /// Changes the cache in one step. If `change` panics, the cache is as it was. Nobody else reads or changes
    /// it meanwhile, so it must not make network calls.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn update<T>(&self, change: impl FnOnce(&mut TokenCache) -> T) -> Result<Committed<T>, Error> {
        self.try_update(|tokens| Ok::<_, Error>(change(tokens)))
    }

    /// Changes the cache as [`update`](Self::update) does, unless `change` fails: then it is as it was.
    ///
    /// # Errors
    /// What `change` returned; otherwise as [`read`](Self::read).
    pub fn try_update<T, E: Into<Error>>(
        &self,
        change: impl FnOnce(&mut TokenCache) -> Result<T, E>,
    ) -> Result<Committed<T>, Error> {
        let value = self.memory.with(|cache| {
            let mut tokens = cache.fork();
            let lineage = tokens.begin_lineage();
            let value = change(&mut tokens).map_err(Into::into)?;
            if tokens.lineage() != lineage {
                tokens.set_environment_aliases(cache.environment_aliases().clone());
            }
            *cache = tokens;
            cache.end_fork();
            Ok::<_, Error>(value)
        })??;
        Ok(Committed::new(value, Rotation::NotNeeded))
    }
}

impl fmt::Debug for SharedTokenCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedTokenCache").finish_non_exhaustive()
    }
}
