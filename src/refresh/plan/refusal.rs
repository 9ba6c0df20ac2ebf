//! Refusals of a request, and how long each counts.

use std::time::Duration;

use super::back_off::{self, FIRST, LONGEST, LONGEST_OBEYED, milliseconds};
use super::names::{RequestId, TokenMark};
use crate::refresh::error::{AcquireError, SignInReason};
use crate::refresh::failure::Rejection;

/// How long a refusal counts at first (as in MSAL) and at most. Each one in a row doubles it.
const FIRST_REFUSAL: Duration = Duration::from_secs(2 * 60);
const LONGEST_REFUSAL: Duration = Duration::from_secs(60 * 60);

/// Effectively until the next sign-in.
const UNTIL_SIGN_IN: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// A response to one request, which is not repeated before `until`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Refusal {
    /// Unix milliseconds.
    pub(crate) at: u64,
    pub(crate) until: u64,
    /// How many came in a row.
    pub(crate) times: u32,
    pub(crate) request: String,
    /// The refresh token that was sent. It does not count for another.
    pub(crate) mark: TokenMark,
    pub(crate) verdict: Verdict,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Verdict {
    /// User interaction is required, and the refresh token is still valid.
    Rejected(Rejection),
    /// The response was about another user.
    OtherUser,
    /// The request is wrong.
    Refused(String),
    /// Other scopes were granted.
    NotGranted(String),
    /// The response had no access token.
    NoAccessToken,
    /// The response had no id token of this user and client.
    NoIdToken,
    /// The work was reported as done, and does not show.
    NotDone,
    /// The response had the access token that was already cached.
    SameToken,
    /// The access token had already expired.
    Expired,
    /// An error status without an error code, which may be transient.
    Unexplained(u16),
}

impl Refusal {
    /// Returns a further refusal of a request, after those in `before`.
    pub(crate) fn after<'a>(
        before: impl IntoIterator<Item = &'a Self>,
        request: &RequestId,
        mark: &TokenMark,
        verdict: Verdict,
        retry_after: Option<Duration>,
        now: u64,
    ) -> Self {
        let mut before = before.into_iter();
        let last = before.find(|known| known.is_of(request, mark) && known.is_in_a_row(now));
        let times = last.map_or(0, |last| last.times).saturating_add(1);
        let doubled =
            |first: Duration, longest: Duration| first.saturating_mul(1 << (times - 1).min(16)).min(longest);
        let wait = match (&verdict, retry_after) {
            (Verdict::OtherUser, _) => UNTIL_SIGN_IN,
            (Verdict::Unexplained(_), Some(asked)) => asked.clamp(FIRST, LONGEST_OBEYED),
            (Verdict::Unexplained(_), None) => back_off::with_jitter(doubled(FIRST, LONGEST)),
            (_, Some(most)) => doubled(FIRST_REFUSAL, LONGEST_REFUSAL).min(most.max(FIRST)),
            (_, None) => doubled(FIRST_REFUSAL, LONGEST_REFUSAL),
        };
        let until = now.saturating_add(milliseconds(wait));
        Self { at: now, until, times, request: request.as_str().to_owned(), mark: mark.clone(), verdict }
    }

    fn is_of(&self, request: &RequestId, mark: &TokenMark) -> bool {
        self.request == request.as_str() && self.mark.covers(mark)
    }

    /// Returns how long the same request with the same token is not repeated.
    pub(crate) fn remaining(&self, request: &RequestId, mark: &TokenMark, now: u64) -> Option<Duration> {
        // Neither a clock that was set back nor a corrupt status may lock anybody out.
        let longest = match self.verdict {
            Verdict::OtherUser => UNTIL_SIGN_IN,
            _ => LONGEST_REFUSAL,
        };
        let until = self.until.min(self.at.saturating_add(milliseconds(longest)));
        let counts = self.is_of(request, mark) && self.at <= now && now < until;
        counts.then(|| Duration::from_millis(until - now))
    }

    /// Whether to keep it: another refusal now would continue the row.
    pub(crate) fn is_in_a_row(&self, now: u64) -> bool {
        let wait = self.until.saturating_sub(self.at);
        (self.at..self.until.saturating_add(wait).saturating_add(1_000)).contains(&now)
    }
}

impl Verdict {
    /// Returns the error for callers that ask again.
    pub(crate) fn into_error(self, retry_after: Duration) -> AcquireError {
        match self {
            Self::Rejected(rejection) => rejection.into(),
            Self::OtherUser => AcquireError::sign_in(SignInReason::OtherUser),
            Self::Refused(error) => AcquireError::Refused { error },
            Self::NotGranted(granted) => AcquireError::NotGranted { granted },
            Self::NoAccessToken => AcquireError::NoAccessToken,
            Self::NoIdToken => AcquireError::NoIdToken,
            Self::NotDone => AcquireError::NotDone,
            Self::SameToken => AcquireError::SameToken,
            Self::Expired => AcquireError::ExpiredToken { retry_after },
            Self::Unexplained(_) => AcquireError::Unavailable { retry_after, cause: None },
        }
    }
}

impl From<Rejection> for AcquireError {
    fn from(rejection: Rejection) -> Self {
        let Rejection { error, sub_error, claims, .. } = rejection;
        Self::SignInRequired { reason: SignInReason::Rejected { error, sub_error }, claims }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::{AccessTokenQuery, Account};
    use crate::refresh::plan::credential::Purpose;

    const NOW: u64 = 1_700_000_000_000;

    fn request(scope: &str) -> RequestId {
        RequestId::new(
            &Purpose::AccessToken,
            &AccessTokenQuery::for_account("app", &Account::new("u", "e")).scopes([scope]),
            None,
            None,
        )
    }

    fn mark(text: &str) -> TokenMark {
        TokenMark::parse(text)
    }

    fn refused(before: Option<&Refusal>, verdict: Verdict, now: u64) -> Refusal {
        Refusal::after(before, &request("a"), &mark("1.a"), verdict, None, now)
    }

    #[test]
    fn a_refusal_counts_for_two_minutes_and_twice_as_long_each_time_up_to_an_hour() {
        let mut last: Option<Refusal> = None;
        let mut now = NOW;
        for minutes in [2, 4, 8, 16, 32, 60, 60] {
            let next = refused(last.as_ref(), Verdict::Refused("invalid_scope".into()), now);
            assert_eq!(next.until - next.at, minutes * 60_000);
            now = next.until + 1;
            last = Some(next);
        }
        let later = refused(last.as_ref(), Verdict::SameToken, now + 3_700_000);
        assert_eq!(later.times, 1, "whoever waited as long again begins anew");
        let another =
            Refusal::after(last.as_ref(), &request("b"), &mark("1.a"), Verdict::SameToken, None, now);
        assert_eq!(another.times, 1);
        let signed_in =
            Refusal::after(last.as_ref(), &request("a"), &mark("2.a"), Verdict::SameToken, None, now);
        assert_eq!(signed_in.times, 1);
    }

    #[test]
    fn it_counts_for_that_request_and_token_only() {
        let refusal = refused(None, Verdict::NoAccessToken, NOW);
        let remaining = |scope, token, now| refusal.remaining(&request(scope), &mark(token), now);
        assert_eq!(remaining("a", "1.a", NOW + 119_000), Some(Duration::from_secs(1)));
        assert_eq!(remaining("a", "1.a", NOW + 120_000), None);
        assert_eq!(remaining("b", "1.a", NOW), None);
        assert_eq!(remaining("a", "2.a", NOW), None);
        assert_eq!(remaining("a", "1.a", NOW - 1), None, "the clock was set back");
        let wrong = Refusal { until: u64::MAX, ..refusal };
        assert_eq!(
            wrong.remaining(&request("a"), &mark("1.a"), NOW + 3_600_000),
            None,
            "a status that is wrong"
        );
    }

    #[test]
    fn another_user_s_answer_counts_until_the_next_sign_in_and_a_passing_fault_for_a_second() {
        let year = 365 * 24 * 60 * 60 * 1_000;
        let other = refused(None, Verdict::OtherUser, NOW);
        assert!(other.remaining(&request("a"), &mark("1.a"), NOW + year).is_some());
        let fault = refused(None, Verdict::Unexplained(400), NOW);
        assert!((1_000..=1_250).contains(&(fault.until - fault.at)));
        let asked = Some(Duration::from_secs(3_600));
        let fault = Refusal::after(None, &request("a"), &mark("1.a"), Verdict::Unexplained(400), asked, NOW);
        assert_eq!(fault.until - fault.at, 300_000, "up to five minutes");
    }
}
