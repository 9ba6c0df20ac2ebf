//! What asynchronous programs on Tokio call.

use std::time::Duration;

use super::call::{Call, MintCall};
use super::registry::Registry;
use super::source::Source;
use super::tokio::{acquire, guard, settle};
use super::{
    AcquireError, AcquireRequest, Acquired, RefreshCall, RefreshFailure, RefreshGuard, for_application,
};
use crate::cache::{RefreshTokenQuery, TokenResponse};
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
        let call = move |sent: Call| call(RefreshCall::new(sent));
        acquire(&Source::File(self.clone()), || Registry::of(self), request.into(), true, call).await
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
        let call = move |sent: Call| call(MintCall::new(sent));
        acquire(&Source::File(self.clone()), || Registry::of(self), request.into(), false, call).await
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
        let call = move |sent: Call| call(RefreshCall::new(sent));
        acquire(
            &Source::Memory(self.clone()),
            || Registry::of_memory(self.number()),
            request.into(),
            true,
            call,
        )
        .await
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
        let call = move |sent: Call| call(MintCall::new(sent));
        acquire(
            &Source::Memory(self.clone()),
            || Registry::of_memory(self.number()),
            request.into(),
            false,
            call,
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
