//! Single flight within a process: the first caller leads, and concurrent callers with the same key share the
//! outcome.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::{Arc, PoisonError};
use std::task::Waker;
#[cfg(feature = "tokio")]
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use crate::deadline;
use crate::sync::{Condvar, Mutex, MutexGuard};

/// The flights in progress.
#[derive(Debug)]
pub(crate) struct SingleFlight<K, V> {
    under_way: Mutex<HashMap<K, Arc<Flight<V>>>>,
    ended: Condvar,
}

/// One flight, as its waiters see it.
#[derive(Debug)]
pub(crate) struct Flight<V> {
    state: Mutex<State<V>>,
    changed: Condvar,
}

#[derive(Debug)]
struct State<V> {
    progress: Progress<V>,
    /// The number of asynchronous waiters so far, which numbers them.
    #[cfg(feature = "tokio")]
    waiters: u64,
    wakers: BTreeMap<u64, Waker>,
}

#[derive(Debug, Clone)]
enum Progress<V> {
    UnderWay(Phase),
    Finished(V),
    Crashed,
}

/// The progress of a flight.
#[derive(Debug, Clone, Copy)]
enum Phase {
    /// It waits for other processes.
    Waiting,
    /// It is making a call. The time is when it began, unless the call ends itself at its deadline.
    Calling(Option<Instant>),
    /// The call is over, and its outcome is being saved.
    Saving,
}

/// The result of a wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Waited<V> {
    Finished(V),
    /// The leader panicked.
    Crashed,
    /// The waiter's own deadline passed.
    TimedOut,
    /// The call took longer than the waiter allows.
    CallTimedOut,
}

/// How long a waiter waits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// In all.
    pub(crate) deadline: Instant,
    /// For the call, from when it began.
    pub(crate) call_timeout: Duration,
    /// Whether the waiter leads the flight: it waits for its own call and save regardless of `deadline`. A
    /// program that ended meanwhile would lose the new token.
    pub(crate) is_leader: bool,
}

/// The role of a caller in a flight.
pub(crate) enum Joined<K: Eq + Hash + Clone, V: Clone> {
    /// There was no flight: lead it.
    Leader(Leader<K, V>),
    /// There is one: wait for it.
    Follower(Arc<Flight<V>>),
}

/// Leads a flight. Dropped without [`finish`](Self::finish), it crashes.
pub(crate) struct Leader<K: Eq + Hash + Clone, V: Clone> {
    flights: Arc<SingleFlight<K, V>>,
    key: K,
    flight: Arc<Flight<V>>,
}

impl<K, V> Default for SingleFlight<K, V> {
    fn default() -> Self {
        Self { under_way: Mutex::new(HashMap::new()), ended: Condvar::new() }
    }
}

impl<K: Eq + Hash + Clone, V: Clone> SingleFlight<K, V> {
    fn under_way(&self) -> MutexGuard<'_, HashMap<K, Arc<Flight<V>>>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Joins the flight of this key, or begins one.
    pub(crate) fn join(self: &Arc<Self>, key: &K) -> Joined<K, V> {
        let mut under_way = self.under_way();
        if let Some(flight) = under_way.get(key) {
            return Joined::Follower(Arc::clone(flight));
        }
        let progress = Progress::UnderWay(Phase::Waiting);
        let state = Mutex::new(State {
            progress,
            #[cfg(feature = "tokio")]
            waiters: 0,
            wakers: BTreeMap::new(),
        });
        let flight = Arc::new(Flight { state, changed: Condvar::new() });
        under_way.insert(key.clone(), Arc::clone(&flight));
        Joined::Leader(Leader { flights: Arc::clone(self), key: key.clone(), flight })
    }

    /// Whether there is no flight.
    pub(crate) fn is_empty(&self) -> bool {
        self.under_way().is_empty()
    }

    /// Waits until there is no flight; `false` after the deadline.
    pub(crate) fn wait_until_empty(&self, deadline: Instant) -> bool {
        let mut under_way = self.under_way();
        while !under_way.is_empty() {
            let left = deadline::left(deadline);
            if left.is_zero() {
                return false;
            }
            under_way = self.ended.wait_timeout(under_way, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

impl<K: Eq + Hash + Clone, V: Clone> Leader<K, V> {
    /// The state to wait on.
    pub(crate) fn flight(&self) -> Arc<Flight<V>> {
        Arc::clone(&self.flight)
    }

    /// Announces that a call begins, and whether it ends itself at its deadline. Returns `false` if it is the
    /// first call and too late: the leader may have stopped waiting.
    #[must_use]
    pub(crate) fn call_begins(&self, is_given_up: bool, begin_by: Instant) -> bool {
        let began = (!is_given_up).then(Instant::now);
        // Under the lock, so that waiters judge by the same point in time.
        let may_begin = |progress: &Progress<V>| {
            let waits_for_first = matches!(progress, Progress::UnderWay(Phase::Waiting));
            !waits_for_first || !deadline::left(begin_by).is_zero()
        };
        self.flight.set_if(may_begin, Progress::UnderWay(Phase::Calling(began)))
    }

    /// Announces that the call is over.
    pub(crate) fn call_ended(&self) {
        self.flight.set(Progress::UnderWay(Phase::Saving));
    }

    /// Ends the flight.
    pub(crate) fn finish(self, value: V) {
        self.end(Progress::Finished(value));
    }

    fn end(&self, progress: Progress<V>) {
        // A later caller looks into the cache first, and leads another flight only if necessary.
        let mut under_way = self.flights.under_way();
        if under_way.get(&self.key).is_some_and(|flight| Arc::ptr_eq(flight, &self.flight)) {
            under_way.remove(&self.key);
        }
        drop(under_way);
        self.flight.set(progress);
        self.flights.ended.notify_all();
    }
}

impl<K: Eq + Hash + Clone, V: Clone> Drop for Leader<K, V> {
    fn drop(&mut self) {
        let has_finished = matches!(self.flight.state().progress, Progress::Finished(_));
        if !has_finished {
            self.end(Progress::Crashed);
        }
    }
}

impl<V> Flight<V> {
    fn state(&self) -> MutexGuard<'_, State<V>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, progress: Progress<V>) {
        self.set_if(|_| true, progress);
    }

    fn set_if(&self, may_set: impl FnOnce(&Progress<V>) -> bool, progress: Progress<V>) -> bool {
        let mut state = self.state();
        if !may_set(&state.progress) {
            return false;
        }
        state.progress = progress;
        let wakers = std::mem::take(&mut state.wakers);
        drop(state);
        self.changed.notify_all();
        wakers.into_values().for_each(Waker::wake);
        true
    }
}

impl<V: Clone> Flight<V> {
    /// Waits for the flight to end.
    pub(crate) fn wait(&self, patience: Patience) -> Waited<V> {
        let mut state = self.state();
        loop {
            let until = match ended(&state.progress, patience) {
                Ok(waited) => return waited,
                Err(until) => until,
            };
            let left = deadline::left(until);
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Returns the result, or the latest time to wait until.
    #[cfg(feature = "tokio")]
    pub(crate) fn look(&self, patience: Patience) -> Result<Waited<V>, Instant> {
        ended(&self.state().progress, patience)
    }
}

/// An asynchronous waiter, which is woken at each change until it is dropped.
#[cfg(feature = "tokio")]
pub(crate) struct Waiting<'a, V> {
    flight: &'a Flight<V>,
    number: u64,
}

#[cfg(feature = "tokio")]
impl<'a, V: Clone> Waiting<'a, V> {
    pub(crate) fn new(flight: &'a Flight<V>) -> Self {
        let mut state = flight.state();
        state.waiters += 1;
        Self { flight, number: state.waiters }
    }

    /// Ready when there is news: the end, or an earlier deadline than `until`.
    pub(crate) fn poll(&self, patience: Patience, until: Instant, context: &Context<'_>) -> Poll<()> {
        let mut state = self.flight.state();
        if ended(&state.progress, patience).map_or_else(|new| new < until, |_| true) {
            return Poll::Ready(());
        }
        state.wakers.insert(self.number, context.waker().clone());
        Poll::Pending
    }
}

#[cfg(feature = "tokio")]
impl<V> Drop for Waiting<'_, V> {
    fn drop(&mut self) {
        self.flight.state().wakers.remove(&self.number);
    }
}

/// Returns the result of a flight, or the latest time to wait until.
fn ended<V: Clone>(progress: &Progress<V>, patience: Patience) -> Result<Waited<V>, Instant> {
    let phase = match progress {
        Progress::Finished(value) => return Ok(Waited::Finished(value.clone())),
        Progress::Crashed => return Ok(Waited::Crashed),
        Progress::UnderWay(phase) => *phase,
    };
    let Patience { deadline, call_timeout, is_leader } = patience;
    let call_deadline = match phase {
        Phase::Calling(Some(began)) => began.checked_add(call_timeout),
        Phase::Waiting | Phase::Calling(None) | Phase::Saving => None,
    };
    if call_deadline.is_some_and(|until| deadline::left(until).is_zero()) {
        return Ok(Waited::CallTimedOut);
    }
    let is_own_call = is_leader && !matches!(phase, Phase::Waiting);
    let deadline = if is_own_call { deadline::after(Duration::MAX) } else { deadline };
    if deadline::left(deadline).is_zero() {
        return Ok(Waited::TimedOut);
    }
    Err(call_deadline.map_or(deadline, |until| until.min(deadline)))
}
