//! The same for asynchronous code: what blocks is done by a few threads, and nothing blocks the runtime.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use tokio::sync::oneshot;

use super::error::Repr;
use super::{Committed, Error, PersistedTokenCache, PersistedTokenCacheBuilder};
use crate::cache::{
    AccessToken, AccessTokenQuery, Account, AccountQuery, Added, IdToken, RefreshToken, RefreshTokenQuery,
    Removed, TokenCache, TokenResponse,
};
use crate::workers;

impl PersistedTokenCacheBuilder {
    /// As [`open`](Self::open), for asynchronous code. Dropping the returned future does not stop what is
    /// under way.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn open_async(self) -> Result<PersistedTokenCache, Error> {
        on_a_worker(move || self.open()).await
    }
}

impl PersistedTokenCache {
    /// As [`read`](Self::read), for asynchronous code: at once if the file need not be read again.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub async fn read_async<T: Send + 'static>(
        &self,
        look: impl Fn(&TokenCache) -> T + Send + 'static,
    ) -> Result<T, Error> {
        if let Some(found) = self.read_if_current(&look)? {
            return Ok(found);
        }
        let cache = self.clone();
        on_a_worker(move || cache.read(look)).await
    }

    /// As [`find_access_token`](Self::find_access_token), for asynchronous code.
    ///
    /// # Errors
    /// As [`find_access_token`](Self::find_access_token).
    pub async fn find_access_token_async(
        &self,
        query: &AccessTokenQuery,
    ) -> Result<Option<AccessToken>, Error> {
        if let Some(found) = self.read_if_current(|tokens| tokens.find_access_token(query))? {
            return Ok(found);
        }
        let query = query.clone();
        self.read_async(move |tokens| tokens.find_access_token(&query)).await
    }

    /// As [`find_refresh_tokens`](Self::find_refresh_tokens), for asynchronous code.
    ///
    /// # Errors
    /// As [`find_refresh_tokens`](Self::find_refresh_tokens).
    pub async fn find_refresh_tokens_async(
        &self,
        query: &RefreshTokenQuery,
    ) -> Result<Vec<RefreshToken>, Error> {
        let query = query.clone();
        self.read_async(move |tokens| tokens.find_refresh_tokens(&query)).await
    }

    /// As [`find_id_token`](Self::find_id_token), for asynchronous code.
    ///
    /// # Errors
    /// As [`find_id_token`](Self::find_id_token).
    pub async fn find_id_token_async(
        &self,
        client_id: &str,
        account: &Account,
        realm: Option<&str>,
    ) -> Result<Option<IdToken>, Error> {
        let (client_id, account, realm) = (client_id.to_owned(), account.clone(), realm.map(str::to_owned));
        self.read_async(move |tokens| tokens.find_id_token(&client_id, &account, realm.as_deref())).await
    }

    /// As [`accounts`](Self::accounts), for asynchronous code.
    ///
    /// # Errors
    /// As [`accounts`](Self::accounts).
    pub async fn accounts_async(&self) -> Result<Vec<Account>, Error> {
        self.read_async(TokenCache::accounts).await
    }

    /// As [`find_accounts`](Self::find_accounts), for asynchronous code.
    ///
    /// # Errors
    /// As [`find_accounts`](Self::find_accounts).
    pub async fn find_accounts_async(&self, query: &AccountQuery) -> Result<Vec<Account>, Error> {
        let query = query.clone();
        self.read_async(move |tokens| tokens.find_accounts(&query)).await
    }

    /// As [`add`](Self::add), for asynchronous code. Dropping the returned future does not stop the save.
    ///
    /// # Errors
    /// As [`add`](Self::add).
    pub async fn add_async(&self, response: TokenResponse) -> Result<Added, Error> {
        self.try_update_async(move |tokens| tokens.add(&response)).await.map(Committed::into_value)
    }

    /// As [`remove_account`](Self::remove_account), for asynchronous code. Dropping the returned future does
    /// not stop the sign-out.
    ///
    /// # Errors
    /// As [`remove_account`](Self::remove_account).
    pub async fn remove_account_async(&self, account: &Account) -> Result<Committed<Removed>, Error> {
        let account = account.clone();
        self.update_async(move |tokens| tokens.remove_account(&account)).await
    }

    /// As [`clear`](Self::clear), for asynchronous code.
    ///
    /// # Errors
    /// As [`clear`](Self::clear).
    pub async fn clear_async(&self) -> Result<Committed<Removed>, Error> {
        self.update_async(TokenCache::clear).await
    }

    /// As [`update`](Self::update), for asynchronous code. `change` runs on another thread, under the lock.
    /// Dropping the returned future does not stop it.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use tokenseal::PersistedTokenCache;
    /// # use tokenseal::key_store::MemoryKeyStore;
    /// # let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    /// # runtime.block_on(async {
    /// # let directory = tempfile::tempdir().unwrap();
    /// # let builder = PersistedTokenCache::builder("contoso-cli")
    /// #     .directory(directory.path().join("tokens"))
    /// #     .key_store(Arc::new(MemoryKeyStore::new()));
    /// let cache = builder.open_async().await?;
    /// let now = std::time::SystemTime::now();
    /// let purged = cache.update_async(move |tokens| tokens.purge_expired(now)).await?;
    /// assert_eq!(purged.value().access_tokens(), 0);
    /// # Ok::<(), tokenseal::Error>(()) }).unwrap();
    /// ```
    ///
    /// # Errors
    /// As [`update`](Self::update).
    pub async fn update_async<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut TokenCache) -> T + Send + 'static,
    ) -> Result<Committed<T>, Error> {
        let cache = self.clone();
        on_a_worker(move || cache.update(change)).await
    }

    /// As [`try_update`](Self::try_update), for asynchronous code. `change` runs on another thread, under the
    /// lock. Dropping the returned future does not stop it.
    ///
    /// # Errors
    /// As [`try_update`](Self::try_update).
    pub async fn try_update_async<T: Send + 'static, E: Into<Error>>(
        &self,
        change: impl FnOnce(&mut TokenCache) -> Result<T, E> + Send + 'static,
    ) -> Result<Committed<T>, Error> {
        let cache = self.clone();
        on_a_worker(move || cache.try_update(change)).await
    }
}

/// Does work that blocks on another thread. A panic there is one here.
async fn on_a_worker<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let (done, result) = oneshot::channel();
    workers::run(move || {
        // Nobody may be waiting any more.
        drop(done.send(catch_unwind(AssertUnwindSafe(work))));
    })
    .map_err(|source| Repr::NoThread { source })?;
    match result.await.expect("a worker sends before it ends") {
        Ok(result) => result,
        Err(panic) => resume_unwind(panic),
    }
}
