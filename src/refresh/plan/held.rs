//! The state that comes with a lease: recent failures, and tokens that are not saved yet.

use std::time::{Duration, SystemTime};

use super::back_off::{BackOff, unix_millis};
use super::names::{LeaseName, RequestId, TokenMark};
use super::pending::Pending;
use super::refusal::{Refusal, Verdict};
use super::status::Status;

/// The state of one refresh token, under its lease.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    pub(crate) name: LeaseName,
    pub(crate) status: Status,
    pub(crate) pending: Pending,
}

impl Held {
    /// Returns the remaining back-off after a failed call.
    pub(crate) fn back_off(&self, mark: &TokenMark, now: SystemTime) -> Option<Duration> {
        self.status.back_off.as_ref()?.remaining(unix_millis(now), mark)
    }

    /// Returns the refusal of the same request with the same token, and how long it still counts.
    pub(crate) fn refusal(
        &self,
        request: &RequestId,
        mark: &TokenMark,
        now: SystemTime,
    ) -> Option<(Duration, &Verdict)> {
        let known = |refusal: &Refusal| refusal.remaining(request, mark, unix_millis(now));
        self.status.refusals.iter().find_map(|refusal| Some((known(refusal)?, &refusal.verdict)))
    }

    /// Records a failed call, and returns the back-off.
    pub(crate) fn failed(
        &mut self,
        retry_after: Option<Duration>,
        mark: &TokenMark,
        now: SystemTime,
    ) -> Duration {
        let now = unix_millis(now);
        let back_off = BackOff::after_failure(self.status.back_off.as_ref(), retry_after, mark, now);
        let wait = Duration::from_millis(back_off.until - now);
        self.status.back_off = Some(back_off);
        wait
    }

    /// Records that the server answered, whatever the answer was.
    pub(crate) fn answered(&mut self) {
        self.status.back_off = None;
    }

    /// Records that a request succeeded.
    pub(crate) fn granted(&mut self, request: &RequestId) {
        self.answered();
        self.status.forget(request.as_str());
    }

    /// Records a refusal, and returns how long it counts.
    pub(crate) fn refused(
        &mut self,
        request: &RequestId,
        mark: &TokenMark,
        verdict: Verdict,
        retry_after: Option<Duration>,
        now: SystemTime,
    ) -> Duration {
        let now = unix_millis(now);
        let refusal = Refusal::after(&self.status.refusals, request, mark, verdict, retry_after, now);
        let wait = Duration::from_millis(refusal.until - now);
        self.status.refuse(refusal);
        wait
    }

    /// Carries the refusals of a refresh token over to the one that replaced it.
    pub(crate) fn rotated(&mut self, from: &TokenMark, to: &TokenMark) {
        self.status.carry(from, to);
    }
}
