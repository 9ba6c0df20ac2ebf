//! The call to the token endpoint, blocking or asynchronous, as the one who makes it sees it.

#[cfg(feature = "tokio")]
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use super::failure::RefreshFailure;
use super::refresh_call::RefreshCall;
use crate::cache::TokenResponse;

/// What came of a call.
pub(super) enum Called {
    Answered(Result<Box<TokenResponse>, RefreshFailure>),
    /// It was given up.
    #[cfg(feature = "tokio")]
    TimedOut,
    /// It never answered, and never will.
    Lost(&'static str),
}

/// A call that may be made several times, one after the other.
pub(super) trait Call: Send + 'static {
    /// Whether it is given up when its time is over. Otherwise those who wait must be told.
    const CAN_BE_GIVEN_UP: bool;

    fn call(&mut self, call: RefreshCall, within: Duration) -> Called;
}

/// A blocking call.
pub(super) struct Blocking<F>(pub(super) F);

impl<F> Call for Blocking<F>
where
    F: FnMut(RefreshCall) -> Result<TokenResponse, RefreshFailure> + Send + 'static,
{
    const CAN_BE_GIVEN_UP: bool = false;

    fn call(&mut self, call: RefreshCall, _: Duration) -> Called {
        Called::Answered((self.0)(call).map(Box::new))
    }
}

/// How much later than its own deadline a call may answer, where its runtime is busy.
#[cfg(feature = "tokio")]
const GRACE: Duration = Duration::from_millis(250);

/// An asynchronous call, made as a task of the runtime that it was handed over in.
#[cfg(feature = "tokio")]
pub(super) struct Asynchronous<F> {
    pub(super) runtime: tokio::runtime::Handle,
    pub(super) call: F,
}

#[cfg(feature = "tokio")]
impl<F, R> Call for Asynchronous<F>
where
    F: FnMut(RefreshCall) -> R + Send + 'static,
    R: Future<Output = Result<TokenResponse, RefreshFailure>> + Send + 'static,
{
    const CAN_BE_GIVEN_UP: bool = true;

    fn call(&mut self, call: RefreshCall, within: Duration) -> Called {
        let (answer, answered) = std::sync::mpsc::sync_channel(1);
        // Some clients need the runtime already when the future is made.
        let _entered = self.runtime.enter();
        let future = (self.call)(call);
        let task = self.runtime.spawn(async move {
            let result = tokio::time::timeout(within, future).await;
            // Nobody waits any more for a task that was given up.
            let _ = answer.send(result);
        });
        let mut answer = answered.recv_timeout(within.saturating_add(GRACE));
        if matches!(answer, Err(RecvTimeoutError::Timeout)) {
            // Its runtime is not being driven, or it blocks in there. It will not be polled again.
            task.abort();
            answer = answered.recv_timeout(GRACE);
        }
        match answer {
            Ok(Ok(result)) => Called::Answered(result.map(Box::new)),
            Ok(Err(_)) | Err(RecvTimeoutError::Timeout) => Called::TimedOut,
            Err(RecvTimeoutError::Disconnected) => {
                Called::Lost("the call panicked, or its runtime was shut down")
            }
        }
    }
}
