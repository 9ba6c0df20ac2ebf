//! When to try again after a failure, and when not to ask again for what was refused.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::error::{AcquireError, SignInReason};
use super::failure::Rejection;

/// The first wait. Each failure in a row doubles it.
const FIRST: Duration = Duration::from_secs(1);

/// The longest wait, unless the server asks for a longer one.
const LONGEST: Duration = Duration::from_secs(60);

/// The longest wait that a server is obeyed in.
const LONGEST_OBEYED: Duration = Duration::from_secs(60 * 60);

/// How long an answer counts by which the server refused a request and left the token alive. As long
/// as in MSAL.
const REFUSAL_COUNTS: Duration = Duration::from_secs(2 * 60);

/// Unix milliseconds: what processes can tell each other.
pub(super) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// After a transient failure nobody tries until a point in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BackOff {
    pub(super) failed_at: u64,
    pub(super) until: u64,
    /// Failures in a row.
    pub(super) failures: u32,
    /// When the refresh token was last modified that was sent: of another, nothing is known.
    pub(super) renewed_at: i64,
}

impl BackOff {
    /// The back-off after another failure.
    pub(super) fn after_failure(
        before: Option<Self>,
        retry_after: Option<Duration>,
        renewed_at: i64,
        now: u64,
    ) -> Self {
        let in_a_row = before.filter(|before| before.is_in_a_row(now));
        let failures = in_a_row.map_or(0, |before| before.failures).saturating_add(1);
        let wait = retry_after.map_or_else(
            || {
                let wait = FIRST.saturating_mul(1 << (failures - 1).min(6)).min(LONGEST);
                // Up to a quarter more: machines that failed together should not come back together.
                wait + wait.mul_f64(0.25 * random_fraction())
            },
            |asked| asked.clamp(FIRST, LONGEST_OBEYED),
        );
        let until = now.saturating_add(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
        Self { failed_at: now, until, failures, renewed_at }
    }

    /// Whether a failure now would be another one in a row: whoever waited as long again as was asked for
    /// begins anew.
    pub(super) fn is_in_a_row(&self, now: u64) -> bool {
        let wait = self.until.saturating_sub(self.failed_at);
        (self.failed_at..self.until.saturating_add(wait).saturating_add(1_000)).contains(&now)
    }

    /// How long nobody may try with the refresh token that was modified then; `None` if anybody may.
    pub(super) fn remaining(&self, now: u64, renewed_at: i64) -> Option<Duration> {
        // A clock that was set back must not lock anybody out, nor must a note that is wrong.
        let longest = u64::try_from(LONGEST_OBEYED.as_millis()).unwrap_or(u64::MAX);
        let until = self.until.min(self.failed_at.saturating_add(longest));
        let counts = self.failed_at <= now && self.renewed_at == renewed_at;
        let left = until.checked_sub(now).filter(|&left| left > 0)?;
        counts.then(|| Duration::from_millis(left))
    }
}

/// An answer that the same request need not be made again for at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) at: u64,
    /// Which request it was.
    pub(super) request: String,
    /// When the refresh token was last modified that was sent.
    pub(super) renewed_at: i64,
    pub(super) verdict: Verdict,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The user is needed, and the refresh token is alive.
    Rejected(Rejection),
    /// The request is wrong.
    Refused(String),
    /// Other scopes were granted.
    NotGranted(String),
}

impl Refusal {
    /// Whether the same request, with the same token, need not be made again yet.
    pub(super) fn counts(&self, request: &str, now: u64, renewed_at: i64) -> bool {
        self.request == request && self.is_recent(now) && self.renewed_at == renewed_at
    }

    /// Whether it is not too old to count.
    pub(super) fn is_recent(&self, now: u64) -> bool {
        self.at <= now && u128::from(now - self.at) < REFUSAL_COUNTS.as_millis()
    }
}

impl From<Verdict> for AcquireError {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Rejected(rejection) => Self::SignInRequired { reason: rejection.into() },
            Verdict::Refused(error) => Self::Refused { error },
            Verdict::NotGranted(granted) => Self::NotGranted { granted },
        }
    }
}

impl From<Rejection> for SignInReason {
    fn from(Rejection { error, sub_error }: Rejection) -> Self {
        Self::Rejected { error, sub_error }
    }
}

/// From 0 to 1. Without random bytes nobody waits longer than needed.
pub(super) fn random_fraction() -> f64 {
    let mut bytes = [0; 4];
    getrandom::fill(&mut bytes).map_or(0.0, |()| f64::from(u32::from_ne_bytes(bytes)) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_700_000_000_000;

    fn seconds(back_off: &BackOff) -> f64 {
        Duration::from_millis(back_off.until - back_off.failed_at).as_secs_f64()
    }

    #[test]
    fn waits_double_up_to_a_minute_and_start_anew_after_a_pause() {
        let mut back_off = None;
        let mut now = NOW;
        for expected in [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0] {
            let next = BackOff::after_failure(back_off, None, 0, now);
            assert!((expected..=expected * 1.25).contains(&seconds(&next)), "{expected}: {}", seconds(&next));
            now = next.until;
            back_off = Some(next);
        }
        let pause = BackOff::after_failure(back_off, None, 0, now + 200_000);
        assert_eq!(pause.failures, 1);
    }

    #[test]
    fn the_server_is_obeyed_within_reason() {
        let asked = |seconds| BackOff::after_failure(None, Some(Duration::from_secs(seconds)), 0, NOW);
        for (asked_for, expected) in [(0, 1.0), (7, 7.0), (100_000, 3_600.0)] {
            assert!((seconds(&asked(asked_for)) - expected).abs() < 0.001, "{asked_for}");
        }
    }

    #[test]
    fn nobody_tries_until_it_is_over_or_the_token_is_another() {
        let back_off = BackOff { failed_at: NOW, until: NOW + 5_000, failures: 1, renewed_at: 7 };
        assert_eq!(back_off.remaining(NOW + 1_000, 7), Some(Duration::from_secs(4)));
        assert_eq!(back_off.remaining(NOW + 5_000, 7), None);
        assert_eq!(back_off.remaining(NOW + 1_000, 8), None, "another token");
        assert_eq!(back_off.remaining(NOW - 60_000, 7), None, "the clock was set back");
        let wrong = BackOff { until: u64::MAX, ..back_off };
        assert_eq!(wrong.remaining(NOW, 7), Some(LONGEST_OBEYED), "a note that is wrong");
        assert_eq!(wrong.remaining(NOW + 3_600_000, 7), None);
    }

    #[test]
    fn a_refusal_counts_for_two_minutes_for_that_request_and_token() {
        let verdict = Verdict::Refused("invalid_scope".into());
        let refusal = Refusal { at: NOW, request: "this".into(), renewed_at: 7, verdict };
        assert!(refusal.counts("this", NOW + 119_000, 7));
        assert!(!refusal.counts("that", NOW, 7));
        assert!(!refusal.counts("this", NOW + 120_000, 7));
        assert!(!refusal.counts("this", NOW + 2_000, 8));
        assert!(!refusal.counts("this", NOW - 1, 7));
    }
}
