//! A point in time to wait until, for waits of any length.

use std::time::{Duration, Instant};

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_without_end_is_no_overflow() {
        assert!(left(after(Duration::MAX)) > FAR / 2);
        assert_eq!(left(after(Duration::ZERO)), Duration::ZERO);
    }
}
