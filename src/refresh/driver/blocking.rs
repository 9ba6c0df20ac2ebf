//! The blocking driver: a thread for each refresh, which waits for a lease, a call and a save.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;

use super::caller::{Caller, Step};
use super::registry::Registry;
use super::source::Source;
use crate::cache::TokenResponse;
use crate::refresh::call::Call;
use crate::refresh::driver::{Driver, Next};
use crate::refresh::error::AcquireError;
use crate::refresh::failure::RefreshFailure;
use crate::refresh::plan::credential::{Credential, Purpose};
use crate::refresh::plan::step::Called;
use crate::refresh::request::{AcquireRequest, Acquired};

/// More stack than a refresh was observed to use, without the caller's function.
const STACK: usize = 64 * 1024;

/// Acquires what is asked for: at once, as a follower, or by leading a refresh.
pub(crate) fn acquire<F>(
    source: &Source,
    registry: impl FnOnce() -> Arc<Registry>,
    request: AcquireRequest<'_>,
    purpose: Purpose,
    call: F,
) -> Result<Acquired<Credential>, AcquireError>
where
    F: FnMut(Call) -> Result<Option<TokenResponse>, RefreshFailure> + Send + 'static,
{
    let mut caller = match Caller::new(source, registry, request, purpose)? {
        Ok(acquired) => return Ok(acquired),
        Err(caller) => caller,
    };
    let mut call = Some(call);
    loop {
        let lead = |driver| drive_on_a_thread(driver, call.take());
        let flight = match caller.join(lead) {
            Step::Done(result) => return result,
            Step::Wait(flight) => flight,
        };
        if let Some(result) = caller.judge(flight.wait(caller.patience())) {
            return result;
        }
    }
}

/// Runs on its own thread: if the caller stops waiting, the call and its save still run to completion.
fn drive_on_a_thread<F>(driver: Driver, call: Option<F>) -> Result<(), AcquireError>
where
    F: FnMut(Call) -> Result<Option<TokenResponse>, RefreshFailure> + Send + 'static,
{
    let Some(call) = call else { return Err(AcquireError::unexplained()) };
    let started = thread::Builder::new().name("tokenseal-refresh".into()).spawn(move || {
        drive(driver, call);
        // The thread's stack outlives it in the allocator's cache.
        zeroize::zeroize_stack::<STACK>();
    });
    started.map(drop).map_err(|source| AcquireError::NoThread { source: Arc::new(source) })
}

/// Runs a refresh to completion.
pub(crate) fn drive<F>(mut driver: Driver, mut call: F)
where
    F: FnMut(Call) -> Result<Option<TokenResponse>, RefreshFailure>,
{
    let mut next = driver.begin();
    loop {
        next = match next {
            Next::Lease(name) => driver.wait_for_lease(name),
            Next::Call(request) => match driver.may_call(false) {
                Ok(()) => {
                    let answer = {
                        let _span = driver.trace.enter();
                        catch_unwind(AssertUnwindSafe(|| call(*request)))
                    };
                    driver.answered(match answer {
                        Ok(answer) => Called::Answered(answer.map(|tokens| tokens.map(Box::new))),
                        // The panic message may contain anything, even a secret.
                        Err(_) => Called::Lost("the call panicked"),
                    })
                }
                Err(next) => *next,
            },
            Next::Done => return,
        }
    }
}
