//! Waiting, but not for ever: points in time, and taking turns until one.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use crate::sync::{Condvar, Mutex};

/// As good as for ever.
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

/// Lets one at a time through.
#[derive(Debug, Default)]
pub(crate) struct Lane {
    is_taken: Mutex<bool>,
    freed: Condvar,
}

impl Lane {
    /// Waits for the turn; `None` after the deadline.
    pub(crate) fn enter(self: &Arc<Self>, deadline: Instant) -> Option<InLane> {
        let mut is_taken = self.is_taken.lock().unwrap_or_else(PoisonError::into_inner);
        while *is_taken {
            let left = left(deadline);
            if left.is_zero() {
                return None;
            }
            is_taken = self.freed.wait_timeout(is_taken, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        *is_taken = true;
        Some(InLane(Arc::clone(self)))
    }

    /// Whether somebody has the turn.
    pub(crate) fn is_taken(&self) -> bool {
        *self.is_taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The turn, until it is dropped.
#[derive(Debug)]
pub(crate) struct InLane(Arc<Lane>);

impl Drop for InLane {
    fn drop(&mut self) {
        *self.0.is_taken.lock().unwrap_or_else(PoisonError::into_inner) = false;
        self.0.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_until_the_deadline() {
        let lane = Arc::new(Lane::default());
        let first = lane.enter(after(Duration::ZERO)).unwrap();
        assert!(lane.is_taken() && lane.enter(after(Duration::from_millis(20))).is_none());
        let waiting = std::thread::spawn({
            let lane = Arc::clone(&lane);
            move || lane.enter(after(Duration::from_secs(20))).is_some()
        });
        drop(first);
        assert!(waiting.join().unwrap() && !lane.is_taken());
    }

    #[test]
    fn a_wait_without_end_is_no_overflow() {
        assert!(left(after(Duration::MAX)) > FAR / 2);
        assert_eq!(left(after(Duration::ZERO)), Duration::ZERO);
    }
}
