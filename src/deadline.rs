//! Waiting, but not for ever: points in time, and taking turns until one.

#[cfg(feature = "tokio")]
use std::collections::VecDeque;
use std::sync::{Arc, PoisonError};
#[cfg(feature = "tokio")]
use std::task::Waker;
use std::time::{Duration, Instant};

use crate::process::Process;
use crate::sync::{Condvar, Mutex, MutexGuard};

/// Effectively forever.
const FAR: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);

/// When a wait that begins now and takes `within` at the most is over.
pub(crate) fn after(within: Duration) -> Instant {
    let now = Instant::now();
    now + within.min(FAR)
}

/// How long is left; nothing when the point has passed.
pub(crate) fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

/// Lets one at a time through, of the threads of one process.
#[derive(Debug, Default)]
pub(crate) struct Lane {
    taken: Mutex<Option<Taken>>,
    freed: Condvar,
    /// Those who wait without a thread, in the order in which they came.
    #[cfg(feature = "tokio")]
    queue: Mutex<VecDeque<Waker>>,
}

#[derive(Debug)]
struct Taken {
    /// In a child that was forked meanwhile nobody has the turn.
    process: Process,
    is_overdue: bool,
}

impl Lane {
    /// Waits for the turn; `None` after the deadline.
    pub(crate) fn enter(self: &Arc<Self>, deadline: Instant) -> Option<InLane> {
        let mut taken = self.taken();
        while taken.as_ref().is_some_and(|taken| taken.process.is_current()) {
            let left = left(deadline);
            if left.is_zero() {
                return None;
            }
            taken = self.freed.wait_timeout(taken, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        let process = Process::current();
        *taken = Some(Taken { process, is_overdue: false });
        Some(InLane { lane: Arc::clone(self), process })
    }

    /// Takes the turn if it is free; otherwise `waker` is woken when it may be.
    #[cfg(feature = "tokio")]
    pub(crate) fn enter_or_queue(self: &Arc<Self>, waker: Waker) -> Option<InLane> {
        let mut queue = self.queue();
        let in_lane = self.enter(after(Duration::ZERO));
        if in_lane.is_none() {
            queue.push_back(waker);
        }
        in_lane
    }

    /// Wakes the first of those who wait without a thread: the turn is free, or whoever was woken does not
    /// want it any more.
    #[cfg(feature = "tokio")]
    pub(crate) fn wake_next(&self) {
        let next = self.queue().pop_front();
        if let Some(next) = next {
            next.wake();
        }
    }

    #[cfg(feature = "tokio")]
    fn queue(&self) -> MutexGuard<'_, VecDeque<Waker>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that whoever has the turn takes longer than it was given.
    pub(crate) fn set_overdue(&self) {
        if let Some(taken) = &mut *self.taken() {
            taken.is_overdue = true;
        }
    }

    /// Whether somebody has the turn for longer than it was given.
    pub(crate) fn is_overdue(&self) -> bool {
        let taken = self.taken();
        taken.as_ref().is_some_and(|taken| taken.is_overdue && taken.process.is_current())
    }

    fn taken(&self) -> MutexGuard<'_, Option<Taken>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The turn, until it is dropped.
#[derive(Debug)]
pub(crate) struct InLane {
    lane: Arc<Lane>,
    process: Process,
}

impl Drop for InLane {
    fn drop(&mut self) {
        // In a child the turn may be somebody else's by now.
        if self.process.is_current() {
            *self.lane.taken() = None;
            self.lane.freed.notify_one();
            #[cfg(feature = "tokio")]
            self.lane.wake_next();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_until_the_deadline() {
        let lane = Arc::new(Lane::default());
        let first = lane.enter(after(Duration::ZERO)).unwrap();
        assert!(lane.enter(after(Duration::from_millis(20))).is_none());
        assert!(!lane.is_overdue());
        lane.set_overdue();
        assert!(lane.is_overdue());
        let waiting = std::thread::spawn({
            let lane = Arc::clone(&lane);
            move || lane.enter(after(Duration::from_secs(20))).is_some()
        });
        drop(first);
        assert!(waiting.join().unwrap() && !lane.is_overdue());
        assert!(lane.enter(after(Duration::ZERO)).is_some());
    }

    #[test]
    fn a_wait_without_end_is_no_overflow() {
        assert!(left(after(Duration::MAX)) > FAR / 2);
        assert_eq!(left(after(Duration::ZERO)), Duration::ZERO);
    }
}
