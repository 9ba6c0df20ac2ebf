//! What the holder of a lease knows: what the server said lately, and what is not saved yet.

use std::time::{Duration, SystemTime};

use super::back_off::{BackOff, unix_millis};
use super::names::{LeaseName, RequestId, TokenMark};
use super::pending::Pending;
use super::refusal::{Refusal, Verdict};
use super::status::Status;

/// What is known of one refresh token by whoever holds its lease.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    pub(crate) name: LeaseName,
    pub(crate) status: Status,
    pub(crate) pending: Pending,
}

impl Held {
    /// How long nobody may call, because a call failed.
    pub(crate) fn back_off(&self, mark: &TokenMark, now: SystemTime) -> Option<Duration> {
        self.status.back_off.as_ref()?.remaining(unix_millis(now), mark)
    }

    /// What the server said to the same request and token lately, and how long that counts.
    pub(crate) fn refusal(
        &self,
        request: &RequestId,
        mark: &TokenMark,
        now: SystemTime,
    ) -> Option<(Duration, &Verdict)> {
        let known = |refusal: &Refusal| refusal.remaining(request, mark, unix_millis(now));
        self.status.refusals.iter().find_map(|refusal| Some((known(refusal)?, &refusal.verdict)))
    }

    /// Remembers that a call failed, and returns how long nobody may call again.
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

    /// Remembers that a call was answered, though perhaps not with what was asked for.
    pub(crate) fn answered(&mut self) {
        self.status.back_off = None;
    }

    /// Remembers that a request got what it asked for.
    pub(crate) fn granted(&mut self, request: &RequestId) {
        self.answered();
        self.status.forget(request.as_str());
    }

    /// Remembers an answer that need not be asked for again at once, and returns how long that counts.
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

    /// Keeps what is known of a refresh token for the one that it was rotated to.
    pub(crate) fn rotated(&mut self, from: &TokenMark, to: &TokenMark) {
        self.status.carry(from, to);
    }
}
