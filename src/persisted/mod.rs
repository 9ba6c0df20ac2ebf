//! The cache that a program opens: sealed in a file, shared by threads and processes.

mod builder;
mod error;
mod rotation;
mod state;
#[cfg(feature = "tokio")]
mod tokio;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use crate::error_kind::ErrorKind;
pub use builder::PersistedTokenCacheBuilder;
pub use error::Error;
pub use rotation::{Committed, Rotation};

use crate::cache::{
    AccessToken, AccessTokenQuery, Account, AccountQuery, Added, IdToken, RefreshToken, RefreshTokenQuery,
    Removed, TokenCache, TokenResponse,
};
use crate::deadline::Lane;
use crate::key_store::{BoundedKeyStore, KeyStore};
use crate::process::Shared;
use crate::record::Codec;
use crate::seal::Context;
use crate::store::FileStore;
use crate::trace::{self, CacheId, Work};
use rotation::Change;
use state::State;

/// A token cache that is sealed in a file and shared by every thread and process that opens it.
///
/// Reading takes no lock: it looks whether another process replaced the file (one `stat` on local
/// Linux file systems), reads it again if so, and answers from memory. A change is one step:
/// [`update`](Self::update) takes the lock, reads what others wrote, applies the change, seals,
/// replaces the file and makes that durable before it returns. So no change is lost and no half of
/// one is ever seen.
///
/// The handle is cheap to clone and can be used from any thread. Its calls block, for as long as a
/// disk or a lock takes; asynchronous code uses those that end in `_async` (feature `tokio`).
///
/// # Processes that fork
/// A child that is forked goes on with the handles of its parent, and with none of its parent's locks,
/// refreshes and calls: it takes part as any other process does. What was begun before the fork is its
/// parent's: a change that a child would write without the lock is an error, and so is a
/// [`RefreshGuard`](crate::refresh::RefreshGuard) that it inherited. The platform keyring cannot be used in a child
/// of a process that has used it; it says so at once. Fork first, and open the cache after that.
///
/// ```
/// use tokenseal::{AccessTokenQuery, PersistedTokenCache, TokenResponse};
/// # use std::sync::Arc;
/// # let directory = tempfile::tempdir().unwrap();
/// # let builder = PersistedTokenCache::builder("contoso-cli")
/// #     .directory(directory.path().join("tokens"))
/// #     .key_store(Arc::new(tokenseal::key_store::MemoryKeyStore::new()));
/// # let sign_in = || TokenResponse::from_json(r#"{"access_token":"at","expires_in":3600}"#)
/// #     .map(|r| r.client_id("app").home_account_id("alice").requested_scopes(["User.Read"])
/// #         .token_endpoint("https://idp.example.com/tenant/token"));
///
/// # /*
/// let cache = PersistedTokenCache::open("contoso-cli")?;
/// # */
/// # let cache = builder.open()?;
/// let response = sign_in()?;                       // any OAuth client
/// let added = cache.add(&response)?;               // on disk, sealed, before this returns
///
/// let account = added.account().unwrap();
/// let wanted = AccessTokenQuery::for_account("app", account).scopes(["User.Read"]);
/// assert!(cache.find_access_token(&wanted)?.is_some());
/// # Ok::<(), tokenseal::Error>(())
/// ```
#[derive(Clone)]
pub struct PersistedTokenCache(Arc<Inner>);

struct Inner {
    store: FileStore,
    keys: BoundedKeyStore,
    codec: Codec,
    trace_id: CacheId,
    lock_timeout: Duration,
    key_timeout: Duration,
    rotation_timeout: Duration,
    state: Shared<Arc<State>>,
    /// One thread at a time reads the file again.
    reloading: Arc<Lane>,
}

impl PersistedTokenCache {
    /// Opens the cache `default` of an application, with its key in the platform keyring.
    ///
    /// # Errors
    /// As for [`PersistedTokenCacheBuilder::open`].
    #[cfg(feature = "keyring")]
    pub fn open(application: impl Into<String>) -> Result<Self, Error> {
        Self::builder(application).open()
    }

    /// Returns a builder for a cache of an application. The names of the application and the cache are
    /// authenticated: a file sealed for one never opens as another.
    pub fn builder(application: impl Into<String>) -> PersistedTokenCacheBuilder {
        PersistedTokenCacheBuilder::new(application.into())
    }

    fn open_with(builder: PersistedTokenCacheBuilder) -> Result<Self, Error> {
        let inner = Inner::new(builder)?;
        let _span = trace::enter(Work::Open, &inner.trace_id);
        match inner.load(inner.key_timeout)? {
            Some(state) => inner.set_state(state),
            None => inner.create()?,
        }
        Ok(Self(Arc::new(inner)))
    }

    fn reset_with(builder: PersistedTokenCacheBuilder) -> Result<(Self, Option<PathBuf>), Error> {
        let cache = Self(Arc::new(Inner::new(builder)?));
        let aside = cache.reset()?;
        Ok((cache, aside))
    }

    /// The sealed file.
    pub fn path(&self) -> &Path {
        self.0.store.path()
    }

    /// Finds an access token, as [`TokenCache::find_access_token`].
    ///
    /// # Errors
    /// [`Error`] if another process changed the file and it cannot be read.
    pub fn find_access_token(&self, query: &AccessTokenQuery) -> Result<Option<AccessToken>, Error> {
        self.read(|tokens| tokens.find_access_token(query))
    }

    /// Finds refresh tokens, as [`TokenCache::find_refresh_tokens`].
    ///
    /// # Errors
    /// [`Error`] if another process changed the file and it cannot be read.
    pub fn find_refresh_tokens(&self, query: &RefreshTokenQuery) -> Result<Vec<RefreshToken>, Error> {
        self.read(|tokens| tokens.find_refresh_tokens(query))
    }

    /// Finds an id token, as [`TokenCache::find_id_token`].
    ///
    /// # Errors
    /// [`Error`] if another process changed the file and it cannot be read.
    pub fn find_id_token(
        &self,
        client_id: &str,
        account: &Account,
        realm: Option<&str>,
    ) -> Result<Option<IdToken>, Error> {
        self.read(|tokens| tokens.find_id_token(client_id, account, realm))
    }

    /// All accounts.
    ///
    /// # Errors
    /// [`Error`] if another process changed the file and it cannot be read.
    pub fn accounts(&self) -> Result<Vec<Account>, Error> {
        self.read(TokenCache::accounts)
    }

    /// Finds accounts, as [`TokenCache::find_accounts`].
    ///
    /// # Errors
    /// [`Error`] if another process changed the file and it cannot be read.
    pub fn find_accounts(&self, query: &AccountQuery) -> Result<Vec<Account>, Error> {
        self.read(|tokens| tokens.find_accounts(query))
    }

    /// Calls `look` with the newest state of the cache. No lock is held meanwhile: `look` may take its
    /// time, and call this cache again; it goes on seeing the state that it was called with.
    ///
    /// # Errors
    /// [`Error`] if another process changed the file and it cannot be read.
    pub fn read<T>(&self, look: impl FnOnce(&TokenCache) -> T) -> Result<T, Error> {
        Ok(look(&self.0.newest()?.cache))
    }

    /// As [`read`](Self::read), but only if the file need not be read again; `None` if it must be.
    /// Never waits.
    pub(crate) fn read_if_current<T>(&self, look: impl FnOnce(&TokenCache) -> T) -> Result<Option<T>, Error> {
        let state = self.0.state();
        Ok(if self.0.is_current(&state)? { Some(look(&state.cache)) } else { None })
    }

    /// As [`read`](Self::read), and waits for others until the deadline only.
    pub(crate) fn read_by<T>(
        &self,
        deadline: Instant,
        look: impl FnOnce(&TokenCache) -> T,
    ) -> Result<T, Error> {
        Ok(look(&self.0.newest_by(deadline)?.cache))
    }

    /// As [`read`](Self::read), of what is in memory, however old. Never waits.
    pub(crate) fn read_in_memory<T>(&self, look: impl FnOnce(&TokenCache) -> T) -> T {
        look(&self.0.state().cache)
    }

    pub(crate) fn store(&self) -> &FileStore {
        &self.0.store
    }

    /// Adds a token response. On disk, sealed, before this returns.
    ///
    /// # Errors
    /// [`Error`] as for [`update`](Self::update).
    pub fn add(&self, response: &TokenResponse) -> Result<Added, Error> {
        self.try_update(|tokens| tokens.add(response)).map(Committed::into_value)
    }

    /// Signs a user out: removes all rows of the account and seals the rest under a new key, so that
    /// no older copy of the file can be opened with what the key store holds.
    ///
    /// # Errors
    /// [`Error`] as for [`update`](Self::update).
    pub fn remove_account(&self, account: &Account) -> Result<Committed<Removed>, Error> {
        self.update(|tokens| tokens.remove_account(account))
    }

    /// Removes everything and seals what is left, an empty cache, under a new key.
    ///
    /// # Errors
    /// [`Error`] as for [`update`](Self::update).
    pub fn clear(&self) -> Result<Committed<Removed>, Error> {
        self.update(TokenCache::clear)
    }

    /// Changes the cache in one step that is durable when this returns.
    ///
    /// `change` sees the newest state, whoever wrote it. If it panics, nothing is written and the cache is
    /// as it was; use [`try_update`](Self::try_update) for a change that may fail. It runs under the lock,
    /// so it must be quick: no network call belongs in it. Reading the same cache inside it returns the
    /// state before the change.
    ///
    /// If `change` removes an account or clears the cache, or puts another cache in its place that an account
    /// is gone from, the file is sealed under a new key; see [`Committed::rotation`].
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use tokenseal::PersistedTokenCache;
    /// # let directory = tempfile::tempdir().unwrap();
    /// # let cache = PersistedTokenCache::builder("contoso-cli")
    /// #     .directory(directory.path().join("tokens"))
    /// #     .key_store(Arc::new(tokenseal::key_store::MemoryKeyStore::new()))
    /// #     .open()?;
    /// let now = std::time::SystemTime::now();
    /// let purged = cache.update(|tokens| tokens.purge_expired(now))?;
    /// assert_eq!(purged.value().access_tokens(), 0);
    /// # Ok::<(), tokenseal::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error`] if the lock or the key cannot be obtained in time, the file cannot be read, or the new one
    /// cannot be written or would exceed the size limit. The old file is then untouched. Only if the very
    /// last step fails, making the replacement durable, others may see the new one although it is not
    /// promised to survive.
    pub fn update<T>(&self, change: impl FnOnce(&mut TokenCache) -> T) -> Result<Committed<T>, Error> {
        self.try_update(|tokens| Ok::<_, Error>(change(tokens)))
    }

    /// Changes the cache as [`update`](Self::update) does, unless `change` fails: then nothing is written,
    /// and the cache is as it was.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use tokenseal::PersistedTokenCache;
    /// # let directory = tempfile::tempdir().unwrap();
    /// # let cache = PersistedTokenCache::builder("contoso-cli")
    /// #     .directory(directory.path().join("tokens"))
    /// #     .key_store(Arc::new(tokenseal::key_store::MemoryKeyStore::new()))
    /// #     .open()?;
    /// // Replaces the content with a cache that another program exported, if it is one.
    /// let exported = r#"{"AccessToken": {}}"#;
    /// cache.try_update(|tokens| tokens.deserialize(exported))?;
    /// # Ok::<(), tokenseal::Error>(())
    /// ```
    ///
    /// # Errors
    /// What `change` returned ([`Error::aborted`] makes one of any error); otherwise as
    /// [`update`](Self::update).
    pub fn try_update<T, E: Into<Error>>(
        &self,
        change: impl FnOnce(&mut TokenCache) -> Result<T, E>,
    ) -> Result<Committed<T>, Error> {
        let inner = &*self.0;
        inner.fetch_key()?;
        let lock = inner.store.lock(inner.lock_timeout)?;
        let mut changing = Change::begin(inner, &lock)?;
        let value = change(changing.tokens()).map_err(Into::into)?;
        let rotation = changing.commit()?;
        if let Rotation::Pending { reason } = &rotation {
            trace::rotation_pending(&inner.trace_id, reason.kind());
        }
        Ok(Committed::new(value, rotation))
    }

    /// Sets the file aside, under a name that tells so, and goes on with an empty cache under a new
    /// key. The old key is left where it is. Returns the path of what was set aside, if there was a
    /// file.
    ///
    /// # Errors
    /// [`Error`] if the lock or the key store cannot be had in time, or the file cannot be renamed.
    /// The file is then where it was.
    pub fn reset(&self) -> Result<Option<PathBuf>, Error> {
        let inner = &*self.0;
        inner.keys.prepare(inner.key_timeout)?;
        let lock = inner.store.lock(inner.lock_timeout)?;
        let aside = inner.store.set_aside(&lock)?;
        match (inner.create_file(&lock, inner.key_timeout), &aside) {
            (Ok(state), _) => inner.set_state(state),
            (Err(error), None) => return Err(error),
            (Err(error), Some(aside)) => {
                inner.store.put_back(&lock, aside)?;
                return Err(error);
            }
        }
        Ok(aside)
    }
}

impl Inner {
    fn new(builder: PersistedTokenCacheBuilder) -> Result<Self, Error> {
        builder.check_names()?;
        let directory = builder.resolved_directory()?;
        let store = FileStore::new(&directory, &builder.cache, builder.size_limit)?;
        let key_store = builder.key_store.map_or_else(platform_key_store, Ok)?;
        let keys = BoundedKeyStore::new(key_store, &builder.application, &builder.cache);
        let context = Context::file(builder.application, builder.cache);
        let codec = Codec::new(context, builder.aliases, store.path().to_owned());
        let trace_id = CacheId::of(store.path());
        Ok(Self {
            store,
            keys,
            codec,
            trace_id,
            lock_timeout: builder.lock_timeout,
            key_timeout: builder.key_timeout,
            rotation_timeout: builder.rotation_timeout,
            state: Shared::new(Arc::new(State::unread()), || Arc::new(State::unread())),
            reloading: Arc::default(),
        })
    }

    /// Makes the key and an empty file, unless another process did so meanwhile.
    fn create(&self) -> Result<(), Error> {
        // A prompt is answered before others have to wait for the lock.
        self.keys.prepare(self.key_timeout)?;
        let lock = self.store.lock(self.lock_timeout.saturating_add(self.key_timeout))?;
        let state = match self.load(self.key_timeout)? {
            Some(state) => state,
            None => self.create_file(&lock, self.key_timeout)?,
        };
        self.set_state(state);
        Ok(())
    }
}

#[cfg(feature = "keyring")]
#[allow(clippy::unnecessary_wraps)] // Without the feature there is none.
fn platform_key_store() -> Result<Arc<dyn KeyStore>, Error> {
    Ok(Arc::new(crate::key_store::KeyringStore::platform()))
}

#[cfg(not(feature = "keyring"))]
fn platform_key_store() -> Result<Arc<dyn KeyStore>, Error> {
    Err(error::Repr::NoKeyStore.into())
}

impl fmt::Debug for PersistedTokenCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PersistedTokenCache")
            .field("path", &self.path())
            .field("key_store", &self.0.keys.description())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key_store::MemoryKeyStore;

    fn response(scope: &str) -> TokenResponse {
        let response = TokenResponse::from_json(r#"{"access_token":"x","expires_in":600}"#).unwrap();
        response.client_id("c").environment("e").realm("r").home_account_id("u").requested_scopes([scope])
    }

    fn open(base: &tempfile::TempDir, keys: &MemoryKeyStore) -> PersistedTokenCache {
        let builder = PersistedTokenCache::builder("app").directory(base.path().join("tokens"));
        builder.key_store(Arc::new(keys.clone())).open().unwrap()
    }

    /// A thread that read the file, slept and installed what it had read: the next change must not
    /// start from there.
    #[test]
    fn a_stale_state_in_memory_is_never_changed_and_written() {
        let (base, keys) = (tempfile::tempdir().unwrap(), MemoryKeyStore::new());
        let cache = open(&base, &keys);
        cache.add(&response("one")).unwrap();
        let stale = cache.0.load(cache.0.key_timeout).unwrap().unwrap();
        cache.add(&response("two")).unwrap();
        cache.0.set_state(stale);
        cache.add(&response("three")).unwrap();
        assert_eq!(cache.read(|tokens| tokens.access_tokens().count()).unwrap(), 3);
    }

    /// The same across a rotation: a key that was deleted must not seal the file again.
    #[test]
    fn a_stale_state_under_a_deleted_key_is_never_changed_and_written() {
        let (base, keys) = (tempfile::tempdir().unwrap(), MemoryKeyStore::new());
        let cache = open(&base, &keys);
        cache.add(&response("one")).unwrap();
        let stale = cache.0.load(cache.0.key_timeout).unwrap().unwrap();
        cache.remove_account(&Account::new("u", "e")).unwrap();
        cache.0.set_state(stale);
        cache.add(&response("two")).unwrap();
        let reopened = open(&base, &keys);
        let scopes = |cache: &PersistedTokenCache| {
            let scopes = |tokens: &TokenCache| {
                tokens.access_tokens().map(|t| t.scopes().collect()).collect::<Vec<String>>()
            };
            cache.read(scopes).unwrap()
        };
        assert_eq!(scopes(&reopened), ["two"], "the account that was signed out has not come back");
        assert_eq!(scopes(&cache), ["two"]);
        assert_eq!(keys.len(), 1);
    }
}
