//! The Tokio driver: the call is a task, and a few threads do the blocking work. Nothing here blocks the
//! runtime, and no refresh has its own thread.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake};
use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::caller::{Caller, Step};
use super::lease::Home;
use super::registry::Registry;
use super::single_flight::{Flight, Patience, Waited, Waiting};
use super::source::Source;
use crate::cache::{RefreshTokenQuery, TokenResponse};
use crate::deadline::{self, InLane, Lane};
use crate::refresh::call::Call;
use crate::refresh::driver::{Driver, Next};
use crate::refresh::plan::credential::{Credential, Purpose};
use crate::refresh::plan::names::{LeaseName, lease_name};
use crate::refresh::plan::step::{Called, Outcome};
use crate::refresh::{AcquireError, AcquireRequest, Acquired, RefreshFailure, RefreshGuard};
use crate::trace;
use crate::workers::{self, Timer};

pub(crate) async fn acquire<F, R>(
    source: &Source,
    registry: impl FnOnce() -> Arc<Registry>,
    request: AcquireRequest<'_>,
    purpose: Purpose,
    call: F,
) -> Result<Acquired<Credential>, AcquireError>
where
    F: FnMut(Call) -> R + Send + 'static,
    R: Future<Output = Result<Option<TokenResponse>, RefreshFailure>> + Send + 'static,
{
    let runtime = runtime()?;
    let mut caller = match Caller::new(source, registry, request, purpose)? {
        Ok(acquired) => return Ok(acquired),
        Err(caller) => caller,
    };
    let mut call = Some(call);
    loop {
        let lead = |driver| {
            let Some(call) = call.take() else { return Err(AcquireError::unexplained()) };
            let refresh = Refresh { driver, call, runtime: runtime.clone(), timer: None };
            on_a_worker(refresh, |mut refresh| {
                let next = refresh.driver.begin();
                refresh.go_on(next);
            })
        };
        let flight = match caller.join(lead) {
            Step::Done(result) => return result,
            Step::Wait(flight) => flight,
        };
        let waited = outcome(&flight, caller.patience()).await;
        if let Some(result) = caller.judge(waited) {
            return result;
        }
    }
}

fn runtime() -> Result<Handle, AcquireError> {
    Handle::try_current().map_err(|_| AcquireError::NoRuntime)
}

/// Waits for a flight to end.
async fn outcome(flight: &Flight<Outcome>, patience: Patience) -> Waited<Outcome> {
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
                // The caller's own call has begun meanwhile.
                Err(later) if later > until => {}
                // The runtime's clock says so, even if the system's does not: tests may advance it.
                Err(_) => return Waited::TimedOut,
            }
        }
    }
}

/// How late a call may answer on a busy runtime.
const GRACE: Duration = Duration::from_millis(250);

/// The intervals between attempts to take a lease that another process has.
const FIRST_RETRY: Duration = Duration::from_millis(2);
const LONGEST_RETRY: Duration = Duration::from_millis(50);

/// A refresh in progress. It is owned by a worker, by the task of its call, or by a wait for a lease.
struct Refresh<F> {
    driver: Driver,
    call: F,
    runtime: Handle,
    /// Ends the wait at its deadline.
    timer: Option<Timer>,
}

/// A suspended refresh. Whatever takes it out resumes it.
type Slot<F> = Arc<Mutex<Option<Refresh<F>>>>;

fn take<F>(slot: &Slot<F>) -> Option<Refresh<F>> {
    let mut refresh = slot.lock().unwrap_or_else(PoisonError::into_inner).take()?;
    refresh.timer = None;
    Some(refresh)
}

/// Schedules `work` for a point in time, unless the refresh has been resumed by then.
fn take_at<F: Send + 'static>(
    slot: &Slot<F>,
    time: Instant,
    work: impl FnOnce(Refresh<F>) + Send + 'static,
) -> Result<(), AcquireError> {
    let late = Arc::clone(slot);
    let timer = workers::run_at(time, move || {
        if let Some(refresh) = take(&late) {
            work(refresh);
        }
    });
    let timer = timer.map_err(|source| AcquireError::NoThread { source: Arc::new(source) })?;
    if let Some(refresh) = &mut *slot.lock().unwrap_or_else(PoisonError::into_inner) {
        refresh.timer = Some(timer);
    }
    Ok(())
}

/// Resumes a refresh on a worker. Without a worker it ends, and its callers get an error.
fn on_a_worker<F: Send + 'static>(
    refresh: Refresh<F>,
    work: impl FnOnce(Refresh<F>) + Send + 'static,
) -> Result<(), AcquireError> {
    workers::run(move || work(refresh)).map_err(|source| AcquireError::NoThread { source: Arc::new(source) })
}

impl<F, R> Refresh<F>
where
    F: FnMut(Call) -> R + Send + 'static,
    R: Future<Output = Result<Option<TokenResponse>, RefreshFailure>> + Send + 'static,
{
    /// Runs until there is something to wait for.
    fn go_on(mut self, mut next: Next) {
        loop {
            next = match next {
                Next::Done => return,
                Next::Lease(name) => return self.wait_for_lease(name),
                Next::Call(call) => match self.driver.may_call(true) {
                    Ok(()) => return self.call(*call),
                    Err(next) => *next,
                },
            };
        }
    }

    /// Waits for the lane of a lease without occupying a thread.
    fn wait_for_lease(self, name: LeaseName) {
        let lane = self.driver.lane(&name);
        let until = self.driver.patience.deadline;
        let slot = Arc::new(Mutex::new(Some(self)));
        WaitingForLane { slot: Arc::clone(&slot), lane, name: name.clone() }.enter();
        let timed = take_at(&slot, until, move |mut refresh| {
            let next = refresh.driver.lease_timed_out(&name);
            refresh.go_on(next);
        });
        if timed.is_err() {
            drop(take(&slot));
        }
    }

    /// Takes the lease as soon as no other process has it.
    fn lease_in_lane(mut self, name: LeaseName, in_lane: InLane, retry: Duration) {
        let in_lane = match self.driver.lease_in_lane(&name, in_lane) {
            Ok(next) => return self.go_on(next),
            Err(in_lane) => in_lane,
        };
        if deadline::left(self.driver.patience.deadline).is_zero() {
            drop(in_lane);
            let next = self.driver.lease_timed_out(&name);
            return self.go_on(next);
        }
        let time = self.driver.patience.deadline.min(deadline::after(retry));
        let again = workers::run_at(time, move || {
            self.lease_in_lane(name, in_lane, LONGEST_RETRY.min(retry * 2));
        });
        // Without a thread the refresh was dropped, and its callers get an error.
        if let Ok(again) = again {
            again.detach();
        }
    }

    /// Runs the call as a task of the runtime. Its result is passed to a worker in the same poll that receives
    /// it.
    fn call(mut self, request: Call) {
        let runtime = self.runtime.clone();
        let within = self.driver.patience.call_timeout;
        // Some clients need the runtime when the future is created.
        let entered = runtime.enter();
        let Ok(future) = catch_unwind(AssertUnwindSafe(|| (self.call)(request))) else {
            drop(entered);
            let next = self.driver.answered(Called::Lost("the call panicked"));
            return self.go_on(next);
        };
        drop(entered);
        let trace = self.driver.trace.clone();
        let slot = Arc::new(Mutex::new(Some(self)));
        let answering = Answering { slot: Arc::clone(&slot) };
        let task = runtime.spawn(async move {
            let called = tokio::time::timeout(within, NoPanic(Box::pin(future), trace)).await;
            answering.answered(match called {
                Ok(Ok(answer)) => Called::Answered(answer.map(|tokens| tokens.map(Box::new))),
                Ok(Err(Panicked)) => Called::Lost("the call panicked"),
                Err(_) => Called::TimedOut,
            });
        });
        let overdue = deadline::after(within.saturating_add(GRACE));
        // Without a thread, only the runtime's clock ends the call.
        let _ = take_at(&slot, overdue, move |mut refresh| {
            // The runtime is not being driven, or the task blocks. It will not be polled again.
            task.abort();
            let next = refresh.driver.answered(Called::TimedOut);
            refresh.go_on(next);
        });
    }
}

/// A call in progress. If it is dropped without an answer, as when its runtime is shut down, it has failed.
struct Answering<F, R>
where
    F: FnMut(Call) -> R + Send + 'static,
    R: Future<Output = Result<Option<TokenResponse>, RefreshFailure>> + Send + 'static,
{
    slot: Slot<F>,
}

impl<F, R> Answering<F, R>
where
    F: FnMut(Call) -> R + Send + 'static,
    R: Future<Output = Result<Option<TokenResponse>, RefreshFailure>> + Send + 'static,
{
    fn answered(&self, called: Called) {
        let Some(refresh) = take(&self.slot) else { return };
        let _ = workers::run_after_call(move || {
            let mut refresh = refresh;
            let next = refresh.driver.answered(called);
            refresh.go_on(next);
        });
    }
}

impl<F, R> Drop for Answering<F, R>
where
    F: FnMut(Call) -> R + Send + 'static,
    R: Future<Output = Result<Option<TokenResponse>, RefreshFailure>> + Send + 'static,
{
    fn drop(&mut self) {
        self.answered(Called::Lost("the call was dropped: its runtime was shut down"));
    }
}

/// A wait for the lane of a lease.
struct WaitingForLane<F> {
    slot: Slot<F>,
    lane: Arc<Lane>,
    name: LeaseName,
}

impl<F, R> WaitingForLane<F>
where
    F: FnMut(Call) -> R + Send + 'static,
    R: Future<Output = Result<Option<TokenResponse>, RefreshFailure>> + Send + 'static,
{
    /// Enters the lane if it is free, and queues for it otherwise.
    fn enter(self) {
        let this = Arc::new(self);
        let Some(in_lane) = this.lane.enter_or_queue(Arc::clone(&this).into()) else { return };
        match take(&this.slot) {
            Some(refresh) => refresh.lease_in_lane(this.name.clone(), in_lane, FIRST_RETRY),
            // It has timed out. Leaving the lane wakes the next waiter.
            None => drop(in_lane),
        }
    }
}

impl<F, R> Wake for WaitingForLane<F>
where
    F: FnMut(Call) -> R + Send + 'static,
    R: Future<Output = Result<Option<TokenResponse>, RefreshFailure>> + Send + 'static,
{
    /// Resumes on a worker, so as not to delay the thread that leaves the lane.
    fn wake(self: Arc<Self>) {
        let Self { slot, lane, name } = &*self;
        let waiting = Self { slot: Arc::clone(slot), lane: Arc::clone(lane), name: name.clone() };
        let _ = workers::run(move || waiting.enter());
    }
}

struct Panicked;

/// A future whose panics are errors: a panic message may contain anything, even a secret.
struct NoPanic<R>(Pin<Box<R>>, trace::Refresh);

impl<R: Future> Future for NoPanic<R> {
    type Output = Result<R::Output, Panicked>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let _span = self.1.enter();
        match catch_unwind(AssertUnwindSafe(|| self.0.as_mut().poll(context))) {
            Ok(poll) => poll.map(Ok),
            Err(_) => Poll::Ready(Err(Panicked)),
        }
    }
}

/// The polling interval of `settle`.
const BETWEEN_LOOKS: Duration = Duration::from_millis(10);

pub(crate) async fn settle(
    source: &Source,
    registry: &Arc<Registry>,
    within: Duration,
) -> Result<(), AcquireError> {
    runtime()?;
    let deadline = deadline::after(within);
    // Not on a worker: the refreshes need them.
    while !registry.flights.is_empty() {
        if deadline::left(deadline).is_zero() {
            return Err(AcquireError::NotSettled { waited: within });
        }
        tokio::time::sleep(BETWEEN_LOOKS.min(deadline::left(deadline))).await;
    }
    let (source, registry) = (source.clone(), Arc::clone(registry));
    let (done, settled) = oneshot::channel();
    workers::run(move || drop(done.send(registry.settle(&source, deadline::left(deadline)))))
        .map_err(|source| AcquireError::NoThread { source: Arc::new(source) })?;
    settled.await.unwrap_or_else(|_| Err(AcquireError::unexplained()))
}

pub(crate) async fn guard(
    source: Source,
    registry: Arc<Registry>,
    query: RefreshTokenQuery,
    within: Duration,
) -> Result<RefreshGuard, AcquireError> {
    runtime()?;
    let deadline = deadline::after(within);
    let name = source.read_in_memory(|cache| lease_name(cache, &query))?;
    // One thread waits for all tasks with the same lease.
    let queue = registry.guard_queue(&name);
    let Ok(first) = tokio::time::timeout(within, Arc::clone(&queue).acquire_owned()).await else {
        return Err(Home::of(&source, &name).timed_out(within));
    };
    let first = first.expect("the queue is never closed");
    let (give, given) = oneshot::channel();
    let started = thread::Builder::new().name("tokenseal-guard".into()).spawn(move || {
        let is_wanted = || !give.is_closed();
        let guard = RefreshGuard::wait(&source, &registry, &query, deadline::left(deadline), is_wanted);
        drop(first);
        // If nobody waits any longer, the guard is dropped here.
        let _ = give.send(guard);
    });
    if let Err(source) = started {
        return Err(AcquireError::NoThread { source: Arc::new(source) });
    }
    given.await.expect("the thread sends before it ends")
}
