//! The blocking functions that programs call.

use std::sync::Arc;
use std::time::Duration;

use super::call::Call;
use super::driver::blocking;
use super::driver::registry::Registry;
use super::driver::source::Source;
use super::once::Search;
use super::plan::credential::{Credential, Purpose};
use super::{
    AcquireError, AcquireRequest, Acquired, MintCall, OnceRequest, RefreshCall, RefreshFailure, RefreshGuard,
};
use crate::cache::{IdToken, RefreshTokenQuery, TokenCache, TokenResponse};
use crate::persisted::PersistedTokenCache;
use crate::shared::SharedTokenCache;

impl PersistedTokenCache {
    /// Returns a valid access token, refreshing it if necessary: at once from the cache if there is a fresh
    /// one, and otherwise by one call among all threads, tasks and processes that share the cache. Callers
    /// that want the same meanwhile wait and share the result.
    ///
    /// `call` sends the refresh token to the token endpoint (RFC 6749 section 6) and says what came back:
    /// [`RefreshCall::form`] is the body to send, and [`RefreshCall::answer`] reads the answer. It runs on a
    /// thread of its own, without the cache's lock, and only for the one caller whose lease it is; if the
    /// server rejects a token and the cache has another, it is called again with that. What came back is on
    /// disk before this returns.
    ///
    /// The token that is returned as refreshed is the one that the call brought. If it brought none for
    /// the request, that is remembered: the server is not asked the same again for two minutes, doubling to
    /// an hour, until the next sign-in. A token that is still valid is served meanwhile, with the failure
    /// ([`Acquired::failure`]), except after a sign-out.
    ///
    /// A token that the server asked to be refreshed early (`refresh_in`) is refreshed in the background,
    /// and the valid one is returned at once. A program that ends soon calls [`settle`](Self::settle) first.
    ///
    /// A caller whose own call is under way waits for it, up to the call's timeout, and for its save. If
    /// another caller's time is over first, the call and its save still run to completion.
    ///
    /// If the account has tokens of several realms, the query must name one.
    ///
    /// # Guarantee, and its limits
    /// No refresh token is sent twice by programs that use `acquire` or a
    /// [guard](Self::refresh_guard) on one cache on one machine, except
    /// - when a process is killed, or its power cut, between the server's answer and its save: the next
    ///   one sends the old token, and if the server takes that for theft, the user must sign in again;
    /// - when `call` says that it failed, or panics, although the server had answered: a connection that
    ///   breaks at the last moment looks like one that never was;
    /// - when a process ends by itself while a call is under way or a renewed token cannot be saved: see
    ///   [`settle`](Self::settle);
    /// - when an asynchronous call was given up at its deadline, or its runtime shut down, although the
    ///   server had answered;
    /// - where the directory cannot be written to: one refresh at a time then holds within a process
    ///   only, and what comes of it is in memory only.
    ///
    /// Programs that use the refresh tokens of the cache without either are not kept out, nor are
    /// copies of the cache on other machines.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use tokenseal::{Account, PersistedTokenCache};
    /// # use tokenseal::key_store::MemoryKeyStore;
    /// # let directory = tempfile::tempdir()?;
    /// # let cache = PersistedTokenCache::builder("contoso-cli")
    /// #     .directory(directory.path().join("tokens"))
    /// #     .key_store(Arc::new(MemoryKeyStore::new()))
    /// #     .open()?;
    /// use tokenseal::{AccessTokenQuery, TokenResponse};
    /// use tokenseal::refresh::{RefreshCall, RefreshFailure};
    /// # struct Answer { status: u16, content_type: Option<&'static str>, retry_after: Option<&'static str>, body: &'static str }
    /// # fn post(_: &str) -> std::io::Result<Answer> {
    /// #     Ok(Answer { status: 200, content_type: None, retry_after: None, body: "{}" }) }
    ///
    /// fn refresh(call: RefreshCall) -> Result<TokenResponse, RefreshFailure> {
    ///     let answer = post(call.form().expose()).map_err(RefreshFailure::transient)?; // any HTTP client
    ///     call.answer(answer.status, answer.content_type, answer.retry_after, answer.body)
    /// }
    ///
    /// # let account = Account::new("alice", "idp.example.com");
    /// let wanted = AccessTokenQuery::for_account("my-client", &account).scopes(["orders.read"]);
    /// match cache.acquire(&wanted, refresh) {
    ///     Ok(acquired) => println!("a token of {} characters", acquired.token().expose().len()),
    ///     Err(error) if error.is_sign_in_required() => println!("sign in"),
    ///     Err(error) if error.is_transient() => println!("try again: {error}"),
    ///     Err(error) => return Err(error.into()),
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`AcquireError`] if the user must sign in again, the identity provider is out of reach and no
    /// valid token is left, a deadline passed, or the cache failed. Called inside a change of the same
    /// cache, it is an error at once.
    pub fn acquire<'a, F>(
        &self,
        request: impl Into<AcquireRequest<'a>>,
        mut call: F,
    ) -> Result<Acquired, AcquireError>
    where
        F: FnMut(RefreshCall) -> Result<TokenResponse, RefreshFailure> + Send + 'static,
    {
        let call = move |sent: Call| call(RefreshCall::new(sent)).map(Some);
        let source = Source::File(self.clone());
        blocking::acquire(&source, || Registry::of(self), request.into(), Purpose::AccessToken, call)
            .map(|acquired| acquired.map(Credential::into_access_token))
    }

    /// Returns a valid id token, refreshing it if necessary, as [`acquire`](Self::acquire) does for an access
    /// token. The query's client, account and realm say whose; its scopes are sent, and should have `openid`.
    ///
    /// An id token is fresh until its claim `exp`, less the query's skew. It has not been validated.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use tokenseal::Account;
    /// # use tokenseal::key_store::MemoryKeyStore;
    /// # let directory = tempfile::tempdir()?;
    /// # let cache = tokenseal::PersistedTokenCache::builder("contoso-cli")
    /// #     .directory(directory.path().join("tokens"))
    /// #     .key_store(Arc::new(MemoryKeyStore::new()))
    /// #     .open()?;
    /// # let account = Account::new("alice", "idp.example.com");
    /// # fn post(_: &str) -> std::io::Result<(u16, &'static str)> { Ok((200, "{}")) }
    /// use tokenseal::AccessTokenQuery;
    /// use tokenseal::refresh::RefreshFailure;
    ///
    /// let wanted = AccessTokenQuery::for_account("my-client", &account).scopes(["openid"]);
    /// let acquired = cache.acquire_id_token(&wanted, |call| {
    ///     let (status, body) = post(call.form().expose()).map_err(RefreshFailure::transient)?;
    ///     call.answer(status, None, None, body)
    /// });
    /// assert!(acquired.unwrap_err().is_sign_in_required()); // nobody has signed in yet
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`AcquireError`] as for [`acquire`](Self::acquire).
    pub fn acquire_id_token<'a, F>(
        &self,
        request: impl Into<AcquireRequest<'a>>,
        mut call: F,
    ) -> Result<Acquired<IdToken>, AcquireError>
    where
        F: FnMut(RefreshCall) -> Result<TokenResponse, RefreshFailure> + Send + 'static,
    {
        let call = move |sent: Call| call(RefreshCall::new(sent)).map(Some);
        let source = Source::File(self.clone());
        blocking::acquire(&source, || Registry::of(self), request.into(), Purpose::IdToken, call)
            .map(|acquired| acquired.map(Credential::into_id_token))
    }

    /// Does something once among all threads, tasks and processes that share the cache, such as signing in
    /// with a browser or registering a client.
    ///
    /// `look` finds in the cache what was done. If it finds nothing, one caller runs `work`, and the others
    /// wait and share the result. If `work` returns a token response, it is added to the cache and is on disk,
    /// sealed, before this returns; if it cannot be saved, it is kept in memory and saved later. A failure is remembered as [`acquire`](Self::acquire) remembers one, with
    /// the same back-off for all processes, and a process that is killed meanwhile keeps nobody waiting.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use tokenseal::TokenResponse;
    /// # use tokenseal::key_store::MemoryKeyStore;
    /// # use tokenseal::refresh::RefreshFailure;
    /// # let directory = tempfile::tempdir()?;
    /// # let cache = tokenseal::PersistedTokenCache::builder("contoso-cli")
    /// #     .directory(directory.path().join("tokens"))
    /// #     .key_store(Arc::new(MemoryKeyStore::new()))
    /// #     .open()?;
    /// # fn sign_in_with_a_browser() -> Result<TokenResponse, RefreshFailure> {
    /// #     Ok(TokenResponse::from_json(r#"{"access_token":"at","refresh_token":"rt"}"#)?
    /// #         .client_id("app").environment("idp.example").home_account_id("alice")) }
    /// let account = cache.run_once(
    ///     "sign-in",
    ///     |tokens| tokens.accounts().into_iter().next(),
    ///     || sign_in_with_a_browser().map(Some),
    /// )?;
    /// # assert_eq!(account.home_account_id(), "alice");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`AcquireError`] as for [`acquire`](Self::acquire), and [`AcquireError::NotDone`] if `look` finds nothing
    /// after `work` has succeeded.
    pub fn run_once<'a, T: 'static>(
        &self,
        request: impl Into<OnceRequest<'a>>,
        look: impl Fn(&TokenCache) -> Option<T> + Send + Sync + 'static,
        work: impl FnMut() -> Result<Option<TokenResponse>, RefreshFailure> + Send + 'static,
    ) -> Result<T, AcquireError> {
        run_once(&Source::File(self.clone()), || Registry::of(self), request.into(), look, work)
    }

    /// Returns a valid access token of the application itself, getting one if necessary: by one call among
    /// all threads, tasks and processes that share the cache, as [`acquire`](Self::acquire) does for a user.
    ///
    /// `call` gets the token by client credentials (RFC 6749 section 4.4), from a managed identity, or in any
    /// other way that needs no refresh token. The query names the environment, and no account. What the
    /// response does not say is taken from the query: the environment, the realm and the scopes.
    ///
    /// Deadlines, back-off, remembered refusals and the limits are those of [`acquire`](Self::acquire).
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use tokenseal::PersistedTokenCache;
    /// # use tokenseal::key_store::MemoryKeyStore;
    /// # let directory = tempfile::tempdir()?;
    /// # let cache = PersistedTokenCache::builder("contoso-daemon")
    /// #     .directory(directory.path().join("tokens"))
    /// #     .key_store(Arc::new(MemoryKeyStore::new()))
    /// #     .open()?;
    /// # fn post(_: &str) -> std::io::Result<(u16, &'static str)> {
    /// #     Ok((200, r#"{"access_token":"at","expires_in":3600}"#)) }
    /// use tokenseal::AccessTokenQuery;
    /// use tokenseal::refresh::RefreshFailure;
    ///
    /// let wanted = AccessTokenQuery::for_application("my-daemon")
    ///     .environment("idp.example.com")
    ///     .realm("contoso")
    ///     .scopes(["orders.read"]);
    /// let acquired = cache.acquire_for_application(&wanted, |call| {
    ///     let form = format!("{}&client_secret=s3cret", call.form().expose());
    ///     let (status, body) = post(&form).map_err(RefreshFailure::transient)?;
    ///     call.answer(status, None, None, body)
    /// })?;
    /// assert_eq!(acquired.token().expose(), "at");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`AcquireError`] as for [`acquire`](Self::acquire), and if the query names no environment or names an
    /// account.
    pub fn acquire_for_application<'a, F>(
        &self,
        request: impl Into<AcquireRequest<'a>>,
        call: F,
    ) -> Result<Acquired, AcquireError>
    where
        F: FnMut(MintCall) -> Result<TokenResponse, RefreshFailure> + Send + 'static,
    {
        mint(&Source::File(self.clone()), || Registry::of(self), for_application(request.into())?, call)
    }

    /// Returns a valid access token, getting one by `call` if necessary, without a refresh token: on behalf of
    /// a user, or from another program that keeps the session. It is
    /// [`acquire_for_application`](Self::acquire_for_application) for the tokens of a user. The query names
    /// the account, or at least the environment.
    ///
    /// # Errors
    /// [`AcquireError`] as for [`acquire`](Self::acquire), and if the query names no environment.
    pub fn acquire_with<'a, F>(
        &self,
        request: impl Into<AcquireRequest<'a>>,
        call: F,
    ) -> Result<Acquired, AcquireError>
    where
        F: FnMut(MintCall) -> Result<TokenResponse, RefreshFailure> + Send + 'static,
    {
        mint(&Source::File(self.clone()), || Registry::of(self), request.into(), call)
    }

    /// Locks the refresh token that `query` finds, for callers that send it and save the answer
    /// themselves.
    ///
    /// # Errors
    /// [`AcquireError`] if somebody else has it for longer than `within`, the cache cannot be read, a
    /// renewed refresh token is in memory only because it cannot be saved, or a failure of the server
    /// holds everybody up ([`AcquireError::retry_after`]).
    pub fn refresh_guard(
        &self,
        query: &RefreshTokenQuery,
        within: Duration,
    ) -> Result<RefreshGuard, AcquireError> {
        RefreshGuard::wait(&Source::File(self.clone()), &Registry::of(self), query, within, || true)
    }

    /// Waits until every refresh of this cache that is under way in this process has been saved, `within`
    /// this time. Call it before the program ends: a refresh that ends with the process takes the rotated
    /// refresh token with it, and the user must sign in again.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use tokenseal::PersistedTokenCache;
    /// # use tokenseal::key_store::MemoryKeyStore;
    /// # let directory = tempfile::tempdir()?;
    /// # let cache = PersistedTokenCache::builder("contoso-cli")
    /// #     .directory(directory.path().join("tokens"))
    /// #     .key_store(Arc::new(MemoryKeyStore::new()))
    /// #     .open()?;
    /// cache.settle(std::time::Duration::from_secs(30))?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`AcquireError::NotSettled`] if a refresh takes longer, and [`AcquireError::NotSaved`] if what came
    /// cannot be saved.
    pub fn settle(&self, within: Duration) -> Result<(), AcquireError> {
        Registry::of(self).settle(&Source::File(self.clone()), within)
    }
}

impl SharedTokenCache {
    /// Returns a valid access token, refreshing it if necessary, as [`PersistedTokenCache::acquire`] does: one call among all threads and tasks of this process.
    /// Nothing is saved, and other processes are not kept from using the same refresh token.
    ///
    /// # Errors
    /// [`AcquireError`] if the user must sign in again, the identity provider is out of reach and no
    /// valid token is left, or a deadline passed.
    pub fn acquire<'a, F>(
        &self,
        request: impl Into<AcquireRequest<'a>>,
        mut call: F,
    ) -> Result<Acquired, AcquireError>
    where
        F: FnMut(RefreshCall) -> Result<TokenResponse, RefreshFailure> + Send + 'static,
    {
        let call = move |sent: Call| call(RefreshCall::new(sent)).map(Some);
        let (source, registry) = (Source::Memory(self.clone()), || Registry::of_memory(self.number()));
        blocking::acquire(&source, registry, request.into(), Purpose::AccessToken, call)
            .map(|acquired| acquired.map(Credential::into_access_token))
    }

    /// Returns a valid id token, refreshing it if necessary, as [`PersistedTokenCache::acquire_id_token`] does.
    ///
    /// # Errors
    /// [`AcquireError`] as for [`acquire`](Self::acquire).
    pub fn acquire_id_token<'a, F>(
        &self,
        request: impl Into<AcquireRequest<'a>>,
        mut call: F,
    ) -> Result<Acquired<IdToken>, AcquireError>
    where
        F: FnMut(RefreshCall) -> Result<TokenResponse, RefreshFailure> + Send + 'static,
    {
        let call = move |sent: Call| call(RefreshCall::new(sent)).map(Some);
        let (source, registry) = (Source::Memory(self.clone()), || Registry::of_memory(self.number()));
        blocking::acquire(&source, registry, request.into(), Purpose::IdToken, call)
            .map(|acquired| acquired.map(Credential::into_id_token))
    }

    /// Does something once among all threads and tasks that share the cache, as
    /// [`PersistedTokenCache::run_once`] does.
    ///
    /// # Errors
    /// [`AcquireError`] as for [`PersistedTokenCache::run_once`].
    pub fn run_once<'a, T: 'static>(
        &self,
        request: impl Into<OnceRequest<'a>>,
        look: impl Fn(&TokenCache) -> Option<T> + Send + Sync + 'static,
        work: impl FnMut() -> Result<Option<TokenResponse>, RefreshFailure> + Send + 'static,
    ) -> Result<T, AcquireError> {
        let registry = || Registry::of_memory(self.number());
        run_once(&Source::Memory(self.clone()), registry, request.into(), look, work)
    }

    /// Returns a valid access token of the application itself, getting one if necessary, as
    /// [`PersistedTokenCache::acquire_for_application`] does.
    ///
    /// # Errors
    /// [`AcquireError`] as for [`PersistedTokenCache::acquire_for_application`].
    pub fn acquire_for_application<'a, F>(
        &self,
        request: impl Into<AcquireRequest<'a>>,
        call: F,
    ) -> Result<Acquired, AcquireError>
    where
        F: FnMut(MintCall) -> Result<TokenResponse, RefreshFailure> + Send + 'static,
    {
        mint(
            &Source::Memory(self.clone()),
            || Registry::of_memory(self.number()),
            for_application(request.into())?,
            call,
        )
    }

    /// Returns a valid access token, getting one by `call` if necessary, as
    /// [`PersistedTokenCache::acquire_with`] does.
    ///
    /// # Errors
    /// [`AcquireError`] as for [`PersistedTokenCache::acquire_with`].
    pub fn acquire_with<'a, F>(
        &self,
        request: impl Into<AcquireRequest<'a>>,
        call: F,
    ) -> Result<Acquired, AcquireError>
    where
        F: FnMut(MintCall) -> Result<TokenResponse, RefreshFailure> + Send + 'static,
    {
        mint(&Source::Memory(self.clone()), || Registry::of_memory(self.number()), request.into(), call)
    }

    /// Waits until every refresh of this cache that is under way has ended, `within` this time, as
    /// [`PersistedTokenCache::settle`] does.
    ///
    /// # Errors
    /// [`AcquireError::NotSettled`] if a refresh takes longer.
    pub fn settle(&self, within: Duration) -> Result<(), AcquireError> {
        Registry::of_memory(self.number()).settle(&Source::Memory(self.clone()), within)
    }

    /// Locks a refresh token, as [`PersistedTokenCache::refresh_guard`] does,
    /// within this process.
    ///
    /// # Errors
    /// [`AcquireError`] if somebody else has the right for longer than `within`.
    pub fn refresh_guard(
        &self,
        query: &RefreshTokenQuery,
        within: Duration,
    ) -> Result<RefreshGuard, AcquireError> {
        RefreshGuard::wait(
            &Source::Memory(self.clone()),
            &Registry::of_memory(self.number()),
            query,
            within,
            || true,
        )
    }
}

fn mint<F>(
    source: &Source,
    registry: impl FnOnce() -> Arc<Registry>,
    request: AcquireRequest<'_>,
    mut call: F,
) -> Result<Acquired, AcquireError>
where
    F: FnMut(MintCall) -> Result<TokenResponse, RefreshFailure> + Send + 'static,
{
    let call = move |sent: Call| call(MintCall::new(sent)).map(Some);
    blocking::acquire(source, registry, request, Purpose::Mint, call)
        .map(|acquired| acquired.map(Credential::into_access_token))
}

fn run_once<T: 'static>(
    source: &Source,
    registry: impl Fn() -> Arc<Registry>,
    request: OnceRequest<'_>,
    look: impl Fn(&TokenCache) -> Option<T> + Send + Sync + 'static,
    mut work: impl FnMut() -> Result<Option<TokenResponse>, RefreshFailure> + Send + 'static,
) -> Result<T, AcquireError> {
    let (search, query) = (Search::new(look), OnceRequest::query());
    let purpose = search.purpose(request);
    blocking::acquire(source, &registry, request.on(&query), purpose, move |_: Call| work())?;
    search.result(source, &registry())
}

/// Fails if the request is for a user.
pub(super) fn for_application(request: AcquireRequest<'_>) -> Result<AcquireRequest<'_>, AcquireError> {
    if request.query.owner.home_account_id.is_some() { Err(AcquireError::NamesAccount) } else { Ok(request) }
}
