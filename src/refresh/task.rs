//! The same for asynchronous callers, on Tokio: nothing here blocks the runtime.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::attempt::{self, Attempt, Found, Step};
use super::call::{Asynchronous, Call};
use super::desk::Desk;
use super::flight::{Flight, Patience, Waited, Waiting};
use super::identity::credential_name;
use super::landing::Landing;
use super::tokens::Tokens;
use super::turn::Place;
use super::{
    AcquireError, AcquireRequest, Acquired, RefreshCall, RefreshFailure, RefreshGuard, SharedTokenCache,
};
use crate::cache::{RefreshTokenQuery, TokenResponse};
use crate::deadline;
use crate::persisted::PersistedTokenCache;

impl PersistedTokenCache {
    /// As [`acquire`](Self::acquire), for asynchronous code on Tokio.
    ///
    /// Dropping the returned future cancels the wait only: `call` runs as a task of the runtime, and it
    /// and the save of what it brings come to their end. The work on locks and files is done on a
    /// thread of its own. A fresh token is given without a pause.
    ///
    /// The runtime must go on being driven for the call to come to its end: shut down or left alone
    /// meanwhile, it takes what the server answers with it, and the call counts as failed.
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire).
    ///
    /// # Panics
    /// Outside a Tokio runtime, or in one whose clock is not enabled.
    pub async fn acquire_async<'a, F, R>(
        &self,
        request: impl Into<AcquireRequest<'a>>,
        call: F,
    ) -> Result<Acquired, AcquireError>
    where
        F: FnMut(RefreshCall) -> R + Send + 'static,
        R: Future<Output = Result<TokenResponse, RefreshFailure>> + Send + 'static,
    {
        let desk = || Desk::of(self);
        acquire(&Tokens::File(self.clone()), desk, request.into(), call).await
    }

    /// As [`refresh_guard`](Self::refresh_guard), for asynchronous code on Tokio. Dropping the returned
    /// future gives the right back as soon as it comes.
    ///
    /// # Errors
    /// As [`refresh_guard`](Self::refresh_guard).
    ///
    /// # Panics
    /// Outside a Tokio runtime, or in one whose clock is not enabled.
    pub async fn refresh_guard_async(
        &self,
        query: &RefreshTokenQuery,
        within: Duration,
    ) -> Result<RefreshGuard, AcquireError> {
        guard(Tokens::File(self.clone()), Desk::of(self), query.clone(), within).await
    }
}

impl SharedTokenCache {
    /// As [`acquire`](Self::acquire), for asynchronous code on Tokio; see
    /// [`PersistedTokenCache::acquire_async`].
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire).
    ///
    /// # Panics
    /// Outside a Tokio runtime, or in one whose clock is not enabled.
    pub async fn acquire_async<'a, F, R>(
        &self,
        request: impl Into<AcquireRequest<'a>>,
        call: F,
    ) -> Result<Acquired, AcquireError>
    where
        F: FnMut(RefreshCall) -> R + Send + 'static,
        R: Future<Output = Result<TokenResponse, RefreshFailure>> + Send + 'static,
    {
        acquire(&self.tokens, || self.desk(), request.into(), call).await
    }

    /// As [`refresh_guard`](Self::refresh_guard), for asynchronous code on Tokio.
    ///
    /// # Errors
    /// As [`refresh_guard`](Self::refresh_guard).
    ///
    /// # Panics
    /// Outside a Tokio runtime, or in one whose clock is not enabled.
    pub async fn refresh_guard_async(
        &self,
        query: &RefreshTokenQuery,
        within: Duration,
    ) -> Result<RefreshGuard, AcquireError> {
        guard(self.tokens.clone(), self.desk(), query.clone(), within).await
    }
}

async fn acquire<F, R>(
    tokens: &Tokens,
    desk: impl FnOnce() -> Arc<Desk>,
    request: AcquireRequest<'_>,
    call: F,
) -> Result<Acquired, AcquireError>
where
    F: FnMut(RefreshCall) -> R + Send + 'static,
    R: Future<Output = Result<TokenResponse, RefreshFailure>> + Send + 'static,
{
    let due = match attempt::look(tokens, &request)? {
        Found::Fresh(token) => return Ok(Acquired::from_cache(token)),
        Found::Due(token) => Some(token),
        Found::Nothing => None,
    };
    let call = Asynchronous { runtime: Handle::current(), call };
    wait(Attempt::new(tokens, desk(), request, call, due)?).await
}

async fn wait<C: Call>(mut attempt: Attempt<'_, C>) -> Result<Acquired, AcquireError> {
    loop {
        let flight = match attempt.board() {
            Step::Done(result) => return result,
            Step::Wait(flight) => flight,
        };
        let waited = landing(&flight, attempt.patience()).await;
        if let Some(result) = attempt.judge(waited) {
            return result;
        }
    }
}

async fn landing(flight: &Flight<Landing>, patience: Patience) -> Waited<Landing> {
    loop {
        let until = match flight.look(patience) {
            Ok(waited) => return waited,
            Err(until) => until,
        };
        let waiting = Waiting::new(flight);
        let news = std::future::poll_fn(|context| waiting.poll(patience, until, context));
        if tokio::time::timeout(deadline::left(until), news).await.is_err() {
            match flight.look(patience) {
                Ok(waited) => return waited,
                // One's own call has begun meanwhile.
                Err(later) if later > until => {}
                // The time is over, by the runtime's clock if not by the system's: tests may let it run.
                Err(_) => return Waited::TimedOut,
            }
        }
    }
}

async fn guard(
    tokens: Tokens,
    desk: Arc<Desk>,
    query: RefreshTokenQuery,
    within: Duration,
) -> Result<RefreshGuard, AcquireError> {
    let deadline = deadline::after(within);
    let name = tokens.read_in_memory(|cache| credential_name(cache, &query))?;
    // One thread waits for all tasks that want the same.
    let queue = desk.guard_queue(&name);
    let Ok(first) = tokio::time::timeout(within, Arc::clone(&queue).acquire_owned()).await else {
        return Err(Place::of(&tokens, &name).timed_out(within));
    };
    let first = first.expect("the queue is never closed");
    let (give, given) = oneshot::channel();
    let started = thread::Builder::new().name("tokenseal-guard".into()).spawn(move || {
        let is_wanted = || !give.is_closed();
        let guard = RefreshGuard::wait(&tokens, &desk, &query, deadline::left(deadline), is_wanted);
        drop(first);
        // If nobody waits any more, the guard is dropped here.
        let _ = give.send(guard);
    });
    if let Err(source) = started {
        return Err(AcquireError::NoThread { source: Arc::new(source) });
    }
    given.await.expect("the thread sends before it ends")
}
