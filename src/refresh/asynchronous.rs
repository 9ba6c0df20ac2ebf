//! The asynchronous functions that programs on Tokio call.

use std::sync::Arc;
use std::time::Duration;

use super::call::{Call, MintCall};
use super::driver::registry::Registry;
use super::driver::source::Source;
use super::driver::tokio::{acquire, guard, settle};
use super::once::Search;
use super::plan::credential::{Credential, Purpose};
use super::synchronous::for_application;
use super::{AcquireError, AcquireRequest, Acquired, OnceRequest, RefreshCall, RefreshFailure, RefreshGuard};
use crate::cache::{IdToken, RefreshTokenQuery, TokenCache, TokenResponse};
use crate::persisted::PersistedTokenCache;
use crate::shared::SharedTokenCache;

impl PersistedTokenCache {
    /// As [`acquire`](Self::acquire), for asynchronous code on Tokio.
    ///
    /// Dropping the returned future cancels the wait only: `call` runs as a task of the runtime, and it
    /// and the save of what it brings run to completion. The work on locks and files is done by a few
    /// threads, however many tasks there are. A fresh token is returned at once.
    ///
    /// The runtime must go on being driven for the call to complete: shut down or left alone
    /// meanwhile, it takes what the server answers with it, and the call counts as failed.
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire), and [`AcquireError::NoRuntime`] outside a Tokio runtime.
    ///
    /// # Panics
    /// In a runtime whose clock is not enabled.
    pub async fn acquire_async<'a, F, R>(
        &self,
        request: impl Into<AcquireRequest<'a>>,
        mut call: F,
    ) -> Result<Acquired, AcquireError>
    where
        F: FnMut(RefreshCall) -> R + Send + 'static,
        R: Future<Output = Result<TokenResponse, RefreshFailure>> + Send + 'static,
    {
        let call = move |sent: Call| some(call(RefreshCall::new(sent)));
        acquire(
            &Source::File(self.clone()),
            || Registry::of(self),
            request.into(),
            Purpose::AccessToken,
            call,
        )
        .await
        .map(|acquired| acquired.map(Credential::into_access_token))
    }

    /// As [`acquire_for_application`](Self::acquire_for_application), for asynchronous code on Tokio; see
    /// [`acquire_async`](Self::acquire_async).
    ///
    /// # Errors
    /// As [`acquire_for_application`](Self::acquire_for_application), and [`AcquireError::NoRuntime`] outside
    /// a Tokio runtime.
    ///
    /// # Panics
    /// In a runtime whose clock is not enabled.
    pub async fn acquire_for_application_async<'a, F, R>(
        &self,
        request: impl Into<AcquireRequest<'a>>,
        call: F,
    ) -> Result<Acquired, AcquireError>
    where
        F: FnMut(MintCall) -> R + Send + 'static,
        R: Future<Output = Result<TokenResponse, RefreshFailure>> + Send + 'static,
    {
        self.acquire_with_async(for_application(request.into())?, call).await
    }

    /// As [`acquire_with`](Self::acquire_with), for asynchronous code on Tokio; see
    /// [`acquire_async`](Self::acquire_async).
    ///
    /// # Errors
    /// As [`acquire_with`](Self::acquire_with), and [`AcquireError::NoRuntime`] outside a Tokio runtime.
    ///
    /// # Panics
    /// In a runtime whose clock is not enabled.
    pub async fn acquire_with_async<'a, F, R>(
        &self,
        request: impl Into<AcquireRequest<'a>>,
        mut call: F,
    ) -> Result<Acquired, AcquireError>
    where
        F: FnMut(MintCall) -> R + Send + 'static,
        R: Future<Output = Result<TokenResponse, RefreshFailure>> + Send + 'static,
    {
        let call = move |sent: Call| some(call(MintCall::new(sent)));
        acquire(&Source::File(self.clone()), || Registry::of(self), request.into(), Purpose::Mint, call)
            .await
            .map(|acquired| acquired.map(Credential::into_access_token))
    }

    /// As [`acquire_id_token`](Self::acquire_id_token), for asynchronous code on Tokio; see
    /// [`PersistedTokenCache::acquire_async`].
    ///
    /// # Errors
    /// As [`acquire_id_token`](Self::acquire_id_token), and [`AcquireError::NoRuntime`] outside a Tokio runtime.
    ///
    /// # Panics
    /// In a runtime whose clock is not enabled.
    pub async fn acquire_id_token_async<'a, F, R>(
        &self,
        request: impl Into<AcquireRequest<'a>>,
        mut call: F,
    ) -> Result<Acquired<IdToken>, AcquireError>
    where
        F: FnMut(RefreshCall) -> R + Send + 'static,
        R: Future<Output = Result<TokenResponse, RefreshFailure>> + Send + 'static,
    {
        let call = move |sent: Call| some(call(RefreshCall::new(sent)));
        acquire(&Source::File(self.clone()), || Registry::of(self), request.into(), Purpose::IdToken, call)
            .await
            .map(|acquired| acquired.map(Credential::into_id_token))
    }

    /// As [`run_once`](Self::run_once), for asynchronous code on Tokio. Dropping the returned future cancels the
    /// wait only: `work` runs as a task of the runtime, and it and the save of what it returns run to completion.
    ///
    /// # Errors
    /// As [`run_once`](Self::run_once), and [`AcquireError::NoRuntime`] outside a Tokio runtime.
    ///
    /// # Panics
    /// In a runtime whose clock is not enabled.
    pub async fn run_once_async<'a, T, W, R>(
        &self,
        request: impl Into<OnceRequest<'a>>,
        look: impl Fn(&TokenCache) -> Option<T> + Send + Sync + 'static,
        work: W,
    ) -> Result<T, AcquireError>
    where
        T: 'static,
        W: FnMut() -> R + Send + 'static,
        R: Future<Output = Result<Option<TokenResponse>, RefreshFailure>> + Send + 'static,
    {
        run_once(Source::File(self.clone()), Registry::of(self), request.into(), Search::new(look), work)
            .await
    }

    /// As [`settle`](Self::settle), for asynchronous code on Tokio.
    ///
    /// # Errors
    /// As [`settle`](Self::settle), and [`AcquireError::NoRuntime`] outside a Tokio runtime.
    ///
    /// # Panics
    /// In a runtime whose clock is not enabled.
    pub async fn settle_async(&self, within: Duration) -> Result<(), AcquireError> {
        settle(&Source::File(self.clone()), &Registry::of(self), within).await
    }

    /// As [`refresh_guard`](Self::refresh_guard), for asynchronous code on Tokio. Dropping the returned
    /// future gives the right back as soon as it comes.
    ///
    /// # Errors
    /// As [`refresh_guard`](Self::refresh_guard), and [`AcquireError::NoRuntime`] outside a Tokio runtime.
    ///
    /// # Panics
    /// In a runtime whose clock is not enabled.
    pub async fn refresh_guard_async(
        &self,
        query: &RefreshTokenQuery,
        within: Duration,
    ) -> Result<RefreshGuard, AcquireError> {
        guard(Source::File(self.clone()), Registry::of(self), query.clone(), within).await
    }
}

impl SharedTokenCache {
    /// As [`acquire`](Self::acquire), for asynchronous code on Tokio; see
    /// [`PersistedTokenCache::acquire_async`].
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire), and [`AcquireError::NoRuntime`] outside a Tokio runtime.
    ///
    /// # Panics
    /// In a runtime whose clock is not enabled.
    pub async fn acquire_async<'a, F, R>(
        &self,
        request: impl Into<AcquireRequest<'a>>,
        mut call: F,
    ) -> Result<Acquired, AcquireError>
    where
        F: FnMut(RefreshCall) -> R + Send + 'static,
        R: Future<Output = Result<TokenResponse, RefreshFailure>> + Send + 'static,
    {
        let call = move |sent: Call| some(call(RefreshCall::new(sent)));
        acquire(
            &Source::Memory(self.clone()),
            || Registry::of_memory(self.number()),
            request.into(),
            Purpose::AccessToken,
            call,
        )
        .await
        .map(|acquired| acquired.map(Credential::into_access_token))
    }

    /// As [`acquire_for_application`](Self::acquire_for_application), for asynchronous code on Tokio; see
    /// [`PersistedTokenCache::acquire_async`].
    ///
    /// # Errors
    /// As [`acquire_for_application`](Self::acquire_for_application), and [`AcquireError::NoRuntime`] outside
    /// a Tokio runtime.
    ///
    /// # Panics
    /// In a runtime whose clock is not enabled.
    pub async fn acquire_for_application_async<'a, F, R>(
        &self,
        request: impl Into<AcquireRequest<'a>>,
        call: F,
    ) -> Result<Acquired, AcquireError>
    where
        F: FnMut(MintCall) -> R + Send + 'static,
        R: Future<Output = Result<TokenResponse, RefreshFailure>> + Send + 'static,
    {
        self.acquire_with_async(for_application(request.into())?, call).await
    }

    /// As [`acquire_with`](Self::acquire_with), for asynchronous code on Tokio; see
    /// [`PersistedTokenCache::acquire_async`].
    ///
    /// # Errors
    /// As [`acquire_with`](Self::acquire_with), and [`AcquireError::NoRuntime`] outside a Tokio runtime.
    ///
    /// # Panics
    /// In a runtime whose clock is not enabled.
    pub async fn acquire_with_async<'a, F, R>(
        &self,
        request: impl Into<AcquireRequest<'a>>,
        mut call: F,
    ) -> Result<Acquired, AcquireError>
    where
        F: FnMut(MintCall) -> R + Send + 'static,
        R: Future<Output = Result<TokenResponse, RefreshFailure>> + Send + 'static,
    {
        let call = move |sent: Call| some(call(MintCall::new(sent)));
        acquire(
            &Source::Memory(self.clone()),
            || Registry::of_memory(self.number()),
            request.into(),
            Purpose::Mint,
            call,
        )
        .await
        .map(|acquired| acquired.map(Credential::into_access_token))
    }

    /// As [`acquire_id_token`](Self::acquire_id_token), for asynchronous code on Tokio; see
    /// [`PersistedTokenCache::acquire_async`].
    ///
    /// # Errors
    /// As [`acquire_id_token`](Self::acquire_id_token), and [`AcquireError::NoRuntime`] outside a Tokio runtime.
    ///
    /// # Panics
    /// In a runtime whose clock is not enabled.
    pub async fn acquire_id_token_async<'a, F, R>(
        &self,
        request: impl Into<AcquireRequest<'a>>,
        mut call: F,
    ) -> Result<Acquired<IdToken>, AcquireError>
    where
        F: FnMut(RefreshCall) -> R + Send + 'static,
        R: Future<Output = Result<TokenResponse, RefreshFailure>> + Send + 'static,
    {
        let call = move |sent: Call| some(call(RefreshCall::new(sent)));
        acquire(
            &Source::Memory(self.clone()),
            || Registry::of_memory(self.number()),
            request.into(),
            Purpose::IdToken,
            call,
        )
        .await
        .map(|acquired| acquired.map(Credential::into_id_token))
    }

    /// As [`run_once`](Self::run_once), for asynchronous code on Tokio. Dropping the returned future cancels the
    /// wait only: `work` runs as a task of the runtime, and it and the save of what it returns run to completion.
    ///
    /// # Errors
    /// As [`run_once`](Self::run_once), and [`AcquireError::NoRuntime`] outside a Tokio runtime.
    ///
    /// # Panics
    /// In a runtime whose clock is not enabled.
    pub async fn run_once_async<'a, T, W, R>(
        &self,
        request: impl Into<OnceRequest<'a>>,
        look: impl Fn(&TokenCache) -> Option<T> + Send + Sync + 'static,
        work: W,
    ) -> Result<T, AcquireError>
    where
        T: 'static,
        W: FnMut() -> R + Send + 'static,
        R: Future<Output = Result<Option<TokenResponse>, RefreshFailure>> + Send + 'static,
    {
        run_once(
            Source::Memory(self.clone()),
            Registry::of_memory(self.number()),
            request.into(),
            Search::new(look),
            work,
        )
        .await
    }

    /// As [`settle`](Self::settle), for asynchronous code on Tokio.
    ///
    /// # Errors
    /// As [`settle`](Self::settle), and [`AcquireError::NoRuntime`] outside a Tokio runtime.
    ///
    /// # Panics
    /// In a runtime whose clock is not enabled.
    pub async fn settle_async(&self, within: Duration) -> Result<(), AcquireError> {
        settle(&Source::Memory(self.clone()), &Registry::of_memory(self.number()), within).await
    }

    /// As [`refresh_guard`](Self::refresh_guard), for asynchronous code on Tokio.
    ///
    /// # Errors
    /// As [`refresh_guard`](Self::refresh_guard), and [`AcquireError::NoRuntime`] outside a Tokio runtime.
    ///
    /// # Panics
    /// In a runtime whose clock is not enabled.
    pub async fn refresh_guard_async(
        &self,
        query: &RefreshTokenQuery,
        within: Duration,
    ) -> Result<RefreshGuard, AcquireError> {
        guard(Source::Memory(self.clone()), Registry::of_memory(self.number()), query.clone(), within).await
    }
}

async fn some<R>(answer: R) -> Result<Option<TokenResponse>, RefreshFailure>
where
    R: Future<Output = Result<TokenResponse, RefreshFailure>>,
{
    answer.await.map(Some)
}

async fn run_once<T, W, R>(
    source: Source,
    registry: Arc<Registry>,
    request: OnceRequest<'_>,
    search: Search<T>,
    mut work: W,
) -> Result<T, AcquireError>
where
    T: 'static,
    W: FnMut() -> R + Send + 'static,
    R: Future<Output = Result<Option<TokenResponse>, RefreshFailure>> + Send + 'static,
{
    let (query, purpose) = (OnceRequest::query(), search.purpose(request));
    let request = request.on(&query);
    acquire(&source, || Arc::clone(&registry), request, purpose, move |_: Call| work()).await?;
    search.result(&source, &registry)
}
