//! A few threads and a timer that do blocking work for asynchronous callers.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::deadline;
use crate::process::{PerProcess, Process};

/// The maximum number of threads of each pool.
const MOST_THREADS: usize = 4;

/// How long an idle thread waits before it ends.
const IDLE: Duration = Duration::from_secs(5);

/// More stack than the work was observed to use.
const STACK: usize = 64 * 1024;

type Work = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Workers {
    state: Mutex<State>,
    /// Notified of new work, or of an earlier timer.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    ready: VecDeque<Work>,
    /// Scheduled work, by time and order.
    later: BTreeMap<(Instant, u64), Work>,
    number: u64,
    threads: usize,
    /// The number of idle threads.
    idle: usize,
}

static WORKERS: PerProcess<Workers> = PerProcess::new(|_parent| Workers::default());

/// The pool that saves responses. No other work can delay it.
static SAVERS: PerProcess<Workers> = PerProcess::new(|_parent| Workers::default());

/// Runs `work` on a thread as soon as one is free, whatever becomes of the caller.
///
/// # Errors
/// If there is no thread, and none could be started.
pub(crate) fn run(work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    WORKERS.get().add(|state| state.ready.push_back(Box::new(work)))
}

/// As [`run`], for saving a response: a rotated refresh token is lost if the process ends before the save.
///
/// # Errors
/// If there is no thread, and none could be started.
pub(crate) fn run_after_call(work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    SAVERS.get().add(|state| state.ready.push_back(Box::new(work)))
}

/// As [`run`], at a point in time, unless the timer is dropped first.
///
/// # Errors
/// If there is no thread, and none could be started.
pub(crate) fn run_at(time: Instant, work: impl FnOnce() + Send + 'static) -> io::Result<Timer> {
    let mut number = 0;
    WORKERS.get().add(|state| {
        state.number += 1;
        number = state.number;
        state.later.insert((time, number), Box::new(work));
    })?;
    Ok(Timer { key: (time, number), process: Process::current() })
}

/// Scheduled work. Dropping it cancels the work.
#[must_use]
pub(crate) struct Timer {
    key: (Instant, u64),
    process: Process,
}

impl Timer {
    /// Lets the work run without the timer.
    pub(crate) fn detach(mut self) {
        self.key.1 = 0;
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        if self.process.is_current() && self.key.1 != 0 {
            let workers = WORKERS.get();
            let work = workers.state().later.remove(&self.key);
            // The work may own a timer itself.
            drop(work);
        }
    }
}

impl Workers {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&'static self, add: impl FnOnce(&mut State)) -> io::Result<()> {
        let mut state = self.state();
        let needs_thread = state.threads < MOST_THREADS && state.idle <= state.ready.len();
        if needs_thread {
            let worker = thread::Builder::new().name("tokenseal-worker".into()).spawn(move || self.work());
            match worker {
                Ok(_) => state.threads += 1,
                Err(error) if state.threads == 0 => return Err(error),
                // The existing threads will do it.
                Err(_) => {}
            }
        }
        add(&mut state);
        drop(state);
        self.changed.notify_one();
        Ok(())
    }

    /// The loop of a thread.
    fn work(&self) {
        let mut state = self.state();
        loop {
            let now = Instant::now();
            while let Some(due) = state.later.first_entry().filter(|first| first.key().0 <= now) {
                let work = due.remove();
                state.ready.push_back(work);
            }
            if let Some(work) = state.ready.pop_front() {
                drop(state);
                // Its caller notices that it was dropped.
                drop(catch_unwind(AssertUnwindSafe(work)));
                // There may be tokens on the stack, and the thread may stay idle for long.
                zeroize::zeroize_stack::<STACK>();
                state = self.state();
                continue;
            }
            let next = state.later.keys().next().map(|(time, _)| *time);
            let until = next.unwrap_or_else(|| deadline::after(IDLE));
            state.idle += 1;
            let waited = self.changed.wait_timeout(state, deadline::left(until));
            let (woken, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            state = woken;
            let timed_out = timeout.timed_out();
            state.idle -= 1;
            // One thread is enough to wait for the timers.
            if timed_out && state.ready.is_empty() && (state.later.is_empty() || state.threads > 1) {
                let is_due = state.later.keys().next().is_some_and(|(time, _)| *time <= Instant::now());
                if !is_due {
                    state.threads -= 1;
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn work_is_done_by_a_few_threads_however_much_there_is() {
        let (done, results) = mpsc::channel();
        for number in 0..1_000 {
            let done = done.clone();
            run(move || done.send((number, thread::current().id())).unwrap()).unwrap();
        }
        let mut results: Vec<_> = (0..1_000).map(|_| results.recv_timeout(LONG).unwrap()).collect();
        results.sort_unstable_by_key(|(number, _)| *number);
        assert!(results.iter().map(|(number, _)| *number).eq(0..1_000));
        let threads: std::collections::HashSet<_> = results.iter().map(|(_, thread)| *thread).collect();
        assert!(threads.len() <= MOST_THREADS);
    }

    #[test]
    fn what_a_call_brought_is_not_kept_waiting_by_work_that_hangs() {
        let (release, released) = mpsc::channel::<()>();
        let released = std::sync::Arc::new(Mutex::new(released));
        for _ in 0..2 * MOST_THREADS {
            let released = std::sync::Arc::clone(&released);
            let hang = move || {
                let _ = released.lock().unwrap().recv_timeout(LONG);
            };
            run(hang).unwrap();
        }
        let (done, saved) = mpsc::channel();
        run_after_call(move || done.send(()).unwrap()).unwrap();
        saved.recv_timeout(Duration::from_secs(5)).unwrap();
        drop(release);
    }

    #[test]
    fn work_for_later_is_done_in_time_and_a_panic_stops_nothing() {
        let (done, results) = mpsc::channel();
        let began = Instant::now();
        for millis in [60, 20, 40] {
            let done = done.clone();
            let work = move || done.send(millis).unwrap();
            run_at(began + Duration::from_millis(millis), work).unwrap().detach();
        }
        let cancelled = done.clone();
        drop(run_at(began + Duration::from_millis(10), move || cancelled.send(10).unwrap()).unwrap());
        run(|| panic!("this is a test")).unwrap();
        for expected in [20, 40, 60] {
            assert_eq!(results.recv_timeout(LONG), Ok(expected));
            assert!(began.elapsed() >= Duration::from_millis(expected));
        }
    }
}
