//! The back-off after a transient failure.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::names::TokenMark;

/// The first wait. Each failure in a row doubles it.
pub(crate) const FIRST: Duration = Duration::from_secs(1);

/// The longest wait, unless the server asks for a longer one.
pub(crate) const LONGEST: Duration = Duration::from_secs(60);

/// The longest wait that a server may ask for.
pub(crate) const LONGEST_OBEYED: Duration = Duration::from_secs(5 * 60);

/// Unix milliseconds, which processes can exchange.
pub(crate) fn unix_millis(time: SystemTime) -> u64 {
    milliseconds(time.duration_since(UNIX_EPOCH).unwrap_or_default())
}

pub(crate) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Adds up to a quarter, so that machines that failed together do not retry together.
pub(crate) fn with_jitter(wait: Duration) -> Duration {
    wait + wait.mul_f64(0.25 * random_fraction())
}

/// After a transient failure, nobody tries again before `until`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BackOff {
    pub(crate) failed_at: u64,
    pub(crate) until: u64,
    /// Failures in a row.
    pub(crate) failures: u32,
    /// The refresh token that was sent. A later sign-in is not held up.
    pub(crate) mark: TokenMark,
}

impl BackOff {
    /// Returns the back-off after another failure.
    pub(crate) fn after_failure(
        before: Option<&Self>,
        retry_after: Option<Duration>,
        mark: &TokenMark,
        now: u64,
    ) -> Self {
        let in_a_row = before.filter(|before| before.is_in_a_row(now));
        let failures = in_a_row.map_or(0, |before| before.failures).saturating_add(1);
        let wait = retry_after.map_or_else(
            || with_jitter(FIRST.saturating_mul(1 << (failures - 1).min(6)).min(LONGEST)),
            |asked| asked.clamp(FIRST, LONGEST_OBEYED),
        );
        let until = now.saturating_add(milliseconds(wait));
        Self { failed_at: now, until, failures, mark: mark.clone() }
    }

    /// Whether a failure now would continue the row. After waiting twice as long as required, it starts anew.
    pub(crate) fn is_in_a_row(&self, now: u64) -> bool {
        let wait = self.until.saturating_sub(self.failed_at);
        (self.failed_at..self.until.saturating_add(wait).saturating_add(1_000)).contains(&now)
    }

    /// Returns the remaining wait for this refresh token; `None` if it may be sent.
    pub(crate) fn remaining(&self, now: u64, mark: &TokenMark) -> Option<Duration> {
        // Neither a clock that was set back nor a corrupt status may lock anybody out.
        let until = self.until.min(self.failed_at.saturating_add(milliseconds(LONGEST_OBEYED)));
        let counts = self.failed_at <= now && self.mark.is_as_late_as(mark);
        let left = until.checked_sub(now).filter(|&left| left > 0)?;
        counts.then(|| Duration::from_millis(left))
    }
}

/// Returns a random number from 0 to 1; 0 if there are no random bytes.
fn random_fraction() -> f64 {
    let mut bytes = [0; 4];
    getrandom::fill(&mut bytes).map_or(0.0, |()| f64::from(u32::from_ne_bytes(bytes)) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_700_000_000_000;

    fn mark(text: &str) -> TokenMark {
        TokenMark::parse(text)
    }

    fn seconds(back_off: &BackOff) -> f64 {
        Duration::from_millis(back_off.until - back_off.failed_at).as_secs_f64()
    }

    #[test]
    fn waits_double_up_to_a_minute_and_start_anew_after_a_pause() {
        let mut back_off: Option<BackOff> = None;
        let mut now = NOW;
        for expected in [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0] {
            let next = BackOff::after_failure(back_off.as_ref(), None, &mark("0.a"), now);
            assert!((expected..=expected * 1.25).contains(&seconds(&next)), "{expected}: {}", seconds(&next));
            now = next.until;
            back_off = Some(next);
        }
        let pause = BackOff::after_failure(back_off.as_ref(), None, &mark("0.a"), now + 200_000);
        assert_eq!(pause.failures, 1);
    }

    #[test]
    fn the_server_is_obeyed_within_reason() {
        let asked =
            |seconds| BackOff::after_failure(None, Some(Duration::from_secs(seconds)), &mark("0.a"), NOW);
        for (asked_for, expected) in [(0, 1.0), (7, 7.0), (100_000, 300.0)] {
            assert!((seconds(&asked(asked_for)) - expected).abs() < 0.001, "{asked_for}");
        }
    }

    #[test]
    fn nobody_tries_until_it_is_over_or_the_token_is_another() {
        let back_off = BackOff { failed_at: NOW, until: NOW + 5_000, failures: 1, mark: mark("7.a") };
        assert_eq!(back_off.remaining(NOW + 1_000, &mark("7.a")), Some(Duration::from_secs(4)));
        assert_eq!(back_off.remaining(NOW + 5_000, &mark("7.a")), None);
        assert_eq!(back_off.remaining(NOW + 1_000, &mark("8.a")), None, "another token");
        assert_eq!(back_off.remaining(NOW - 60_000, &mark("7.a")), None, "the clock was set back");
        let wrong = BackOff { until: u64::MAX, ..back_off };
        assert_eq!(wrong.remaining(NOW, &mark("7.a")), Some(LONGEST_OBEYED), "a status that is wrong");
        assert_eq!(wrong.remaining(NOW + 300_000, &mark("7.a")), None);
    }
}
