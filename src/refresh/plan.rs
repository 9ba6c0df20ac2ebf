//! Decides the next step of a refresh, without I/O, a clock, a thread or a runtime.
//!
//! A driver executes a [`Step`] and reports what it saw; the plan returns the next step.
//!
//! ```text
//! begin ─► Read ─► Lease ─► Read ─► Call ─► Read ─► Save ─► Read ─► Finish
//!                    ▲        │       │
//!                    └────────┴───────┘ another refresh token, or another try
//! ```

pub(super) mod back_off;
pub(super) mod credential;
pub(super) mod freshness;
pub(super) mod held;
pub(super) mod look;
pub(super) mod names;
pub(super) mod pending;
pub(super) mod refusal;
pub(super) mod status;
pub(super) mod step;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime};

use super::call::{Call, Request};
use super::error::{AcquireError, FailedCall, SignInReason};
use super::failure::{Cause, Reason, RefreshFailure, Rejection};
use super::request::{Acquired, TokenSource};
use crate::cache::{
    CacheError, ErrorResponse, Life, RefreshToken, TokenCache, TokenResponse, token_endpoint_of,
};
use crate::secret::Secret;
use credential::{Credential, Purpose};
use held::Held;
use look::{Candidate, Look, Wanted};
use names::TokenMark;
use pending::overlaid;
use refusal::Verdict;
use step::{Called, Leftover, Outcome, Read, Step};

/// The pause after a failed early refresh, unless the server asks for another.
const EARLY_PAUSE: Duration = Duration::from_secs(1);

/// One refresh, from the first lookup to the result for all waiting callers.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    wanted: Arc<Wanted>,
    state: State,
    /// Refresh tokens that must no longer be sent.
    spent: Vec<Secret>,
    /// The error to report if no other refresh token is left.
    error: AcquireError,
    /// A fault to simulate, which the walk must detect.
    #[cfg(test)]
    fault: Option<Fault>,
}

/// The faults that a plan can simulate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(test), allow(dead_code))]
enum Fault {
    LooksAtAnOldState,
    LooksWithoutWhatIsPending,
    IgnoresBackOff,
    IgnoresRefusals,
    ForgetsFailures,
    ForgetsRefusalsOfRotatedTokens,
    RetiresWhatIsAlive,
    DropsTokensOfErrors,
    FinishesUnsaved,
    KeepsWhatIsDead,
    BlocksForEver,
}

/// The event that the plan waits for.
#[derive(Debug, Clone)]
enum State {
    /// The content of the cache, before taking a lease.
    Looking,
    /// The outcome of taking the lease.
    Leasing,
    /// The content of the cache under the lease: it may have changed since the last lookup.
    LookingAgain,
    /// The outcome of a call, and when the call began.
    Calling(Box<Candidate>, SystemTime),
    /// The cache in memory, to check whether it accepts the response.
    Checking(Box<Answer>),
    /// The outcome of a save.
    Saving(After),
    /// The cache with the response, to judge the response by.
    Judging(Box<Answer>),
    /// The cache, to check whether the work shows in it.
    Done(Box<Candidate>),
    /// The cache with the refresh token that came with an error: the failure is recorded for that token.
    Failing(Box<Failed>),
    /// The cache, to find a token to serve instead.
    FallingBack(AcquireError),
    Ended,
}

/// The step after a save.
#[derive(Debug, Clone)]
enum After {
    Judge(Box<Answer>),
    Fail(Box<Failed>),
    LookAgain,
}

/// A response with tokens.
#[derive(Debug, Clone)]
struct Answer {
    response: Arc<TokenResponse>,
    sent: Candidate,
    /// The token that was asked for.
    token: Option<Secret>,
    /// The expiry of this very token in the cache before the call.
    known_until: Option<i64>,
    has_expired: bool,
    /// Set if the response is an error although it has tokens.
    failure: Option<Reason>,
}

/// A call without a token response.
#[derive(Debug, Clone)]
struct Failed {
    reason: Reason,
    sent: Candidate,
    /// The refresh token that came with the error.
    came: Option<Arc<TokenResponse>>,
}

impl Plan {
    pub(super) fn new(wanted: Arc<Wanted>) -> Self {
        let error = AcquireError::sign_in(SignInReason::NoRefreshToken);
        Self {
            wanted,
            state: State::Looking,
            spent: Vec::new(),
            error,
            #[cfg(test)]
            fault: None,
        }
    }

    #[cfg(test)]
    fn has(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    #[cfg(not(test))]
    #[allow(clippy::unused_self)] // Only tests simulate faults.
    fn has(&self, _: Fault) -> bool {
        false
    }

    /// The first step.
    pub(super) fn begin(&mut self) -> Step {
        if let Some(token) = self.wanted.refused.as_ref().filter(|token| token.is_endless()) {
            // It was assumed not to expire; the service says otherwise.
            return Step::Forget(Box::new(token.clone()));
        }
        self.look()
    }

    pub(super) fn forgotten(&mut self, result: Result<(), AcquireError>) -> Step {
        match result {
            Ok(()) => self.look(),
            Err(error) => self.give_up(error),
        }
    }

    fn look(&mut self) -> Step {
        self.state = State::Looking;
        Step::Read(Read::Newest)
    }

    fn look_again(&mut self) -> Step {
        self.state = State::LookingAgain;
        Step::Read(if self.has(Fault::LooksAtAnOldState) { Read::InMemory } else { Read::Newest })
    }

    /// The lease was taken.
    pub(super) fn leased(&mut self, held: &Held) -> Step {
        // Under another lease nothing else records that these are spent.
        self.spent.extend(held.pending.spent());
        self.look_again()
    }

    /// The lease was not taken. `None`: it is not free, and not worth waiting for.
    pub(super) fn not_leased(&mut self, error: Option<AcquireError>) -> Step {
        match error {
            Some(_) if self.has(Fault::BlocksForEver) => self.look(),
            Some(error) => self.give_up(error),
            None => self.finish(Outcome::Busy),
        }
    }

    /// Ends the plan with an error, after looking for a token to serve instead.
    pub(super) fn give_up(&mut self, error: AcquireError) -> Step {
        self.state = State::FallingBack(error);
        // Never waits, and never uses an outdated state: the user may have signed out.
        Step::Read(Read::IfCurrent)
    }

    fn finish(&mut self, outcome: Outcome) -> Step {
        self.state = State::Ended;
        Step::Finish(outcome)
    }

    fn finish_with(&mut self, token: Credential, origin: TokenSource, held: Option<&Held>) -> Step {
        let save_failure = held.and_then(|held| held.pending.failure());
        self.finish(Outcome::Acquired(Acquired { token, origin, save_failure, failure: None }))
    }

    /// The cache could not be read.
    pub(super) fn unreadable(
        &mut self,
        error: AcquireError,
        held: Option<&mut Held>,
        now: SystemTime,
    ) -> Step {
        match (std::mem::replace(&mut self.state, State::Ended), held) {
            (State::FallingBack(error), _) => self.finish(Outcome::Failed { error, leftover: None }),
            (State::Failing(failed), Some(held)) => {
                let mark = failed.sent.mark.clone();
                self.failed(*failed, &mark, held, now)
            }
            _ => self.give_up(error),
        }
    }

    /// The cache was read, without pending changes.
    pub(super) fn read(&mut self, cache: &TokenCache, held: Option<&mut Held>, now: SystemTime) -> Step {
        let pending = held.as_ref().filter(|_| !self.has(Fault::LooksWithoutWhatIsPending));
        let pending = pending.map(|held| held.pending.clone()).unwrap_or_default();
        overlaid(cache, [&pending], |cache| self.read_overlaid(cache, held, now))
    }

    fn read_overlaid(&mut self, cache: &TokenCache, held: Option<&mut Held>, now: SystemTime) -> Step {
        match (std::mem::replace(&mut self.state, State::Ended), held) {
            (State::Looking, _) => self.decide(cache, None, now),
            (State::LookingAgain, held) => self.decide(cache, held.as_deref(), now),
            (State::Checking(answer), Some(held)) => self.check(*answer, cache, held, now),
            (State::Judging(answer), Some(held)) => self.judge(*answer, cache, held, now),
            (State::Done(sent), Some(held)) => self.judge_done(&sent.mark, cache, held, now),
            (State::Failing(failed), Some(held)) => {
                let came =
                    failed.came.as_ref().and_then(|came| self.wanted.mark_after(&failed.sent, came, cache));
                if let Some(mark) = &came {
                    held.rotated(&failed.sent.mark, mark);
                }
                let mark = came.unwrap_or_else(|| failed.sent.mark.clone());
                self.failed(*failed, &mark, held, now)
            }
            (State::FallingBack(error), held) => {
                let save_failure = held.and_then(|held| held.pending.failure());
                let leftover = self.wanted.leftover(cache, now).map(|token| Leftover { token, save_failure });
                self.finish(Outcome::Failed { error, leftover })
            }
            (state, _) => unreachable!("nothing is read in {state:?}"),
        }
    }

    /// Decides from the content of the cache.
    fn decide(&mut self, cache: &TokenCache, held: Option<&Held>, now: SystemTime) -> Step {
        loop {
            let candidate = match self.wanted.look(cache, &self.spent, now) {
                Look::Fresh(token) => return self.finish_with(token, TokenSource::Cache, held),
                Look::Nothing => return self.give_up(self.error.clone()),
                Look::Ambiguous(what) => return self.give_up(AcquireError::Ambiguous { what }),
                Look::Send(candidate) => candidate,
            };
            let Some(held) = held.filter(|held| held.name == candidate.name) else {
                self.state = State::Leasing;
                return Step::Lease { name: candidate.name, waits: !self.wanted.is_early };
            };
            if !self.wanted.tries_now {
                if let Some(retry_after) = held.back_off(&candidate.mark, now)
                    && !self.has(Fault::IgnoresBackOff)
                {
                    return self.give_up(AcquireError::Unavailable { retry_after, cause: None });
                }
                match held.refusal(&self.wanted.request, &candidate.mark, now) {
                    // Another refresh token may succeed.
                    Some((left, verdict @ (Verdict::Rejected(_) | Verdict::OtherUser)))
                        if candidate.token.is_some() =>
                    {
                        self.error = verdict.clone().into_error(left);
                        self.spent.extend(candidate.token.as_ref().map(RefreshToken::secret));
                        continue;
                    }
                    Some(_) if self.has(Fault::IgnoresRefusals) => {}
                    Some((left, verdict)) => return self.give_up(verdict.clone().into_error(left)),
                    None => {}
                }
            }
            let call = self.call(&candidate, now);
            self.state = State::Calling(candidate, now);
            return Step::Call(Box::new(call));
        }
    }

    fn call(&self, sent: &Candidate, now: SystemTime) -> Call {
        let wanted = &*self.wanted;
        let known_endpoint = || token_endpoint_of(&sent.environment, sent.realm.as_deref()?);
        let request = Request {
            client_id: wanted.query.client_id.clone(),
            environment: sent.environment.clone(),
            realm: sent.realm.clone(),
            scopes: wanted.query.scopes.clone(),
            claims: wanted.claims.clone(),
            token_endpoint: wanted.token_endpoint.clone().or_else(known_endpoint),
            began: now,
            has_sent_scopes: AtomicBool::new(false),
        };
        Call { refresh_token: sent.token.as_ref().map(RefreshToken::secret), request }
    }

    /// The call ended.
    #[cfg_attr(not(feature = "tokio"), allow(unused_variables))] // A blocking call is never given up.
    pub(super) fn answered(&mut self, called: Called, held: &mut Held, now: SystemTime) -> Step {
        let State::Calling(sent, began) = std::mem::replace(&mut self.state, State::Ended) else {
            unreachable!("nothing was called");
        };
        let sent = *sent;
        let reason = match called {
            Called::Answered(Ok(Some(answer))) => return self.keep(*answer, began, sent),
            Called::Answered(Ok(None)) => {
                self.state = State::Done(Box::new(sent));
                return Step::Read(Read::NewestOrInMemory);
            }
            Called::Answered(Err(RefreshFailure(reason))) => reason,
            #[cfg(feature = "tokio")]
            Called::TimedOut => {
                held.failed(None, &sent.mark, now);
                return self.give_up(AcquireError::CallTimedOut { waited: self.wanted.call_timeout });
            }
            Called::Lost(why) => {
                Reason::Transient { retry_after: None, cause: Cause(Arc::from(Box::from(why))) }
            }
        };
        // The failure is that of the token that was sent, not of a newer sign-in.
        let mark = sent.mark.clone();
        self.failed(Failed { reason, sent, came: None }, &mark, held, now)
    }

    /// Records a failure for a refresh token: the one that was sent, or the one that came with the error.
    fn failed(&mut self, failed: Failed, mark: &TokenMark, held: &mut Held, now: SystemTime) -> Step {
        let request = &self.wanted.request;
        match failed.reason {
            Reason::Transient { retry_after, cause } => {
                let mut forgotten = held.clone();
                let held = if self.has(Fault::ForgetsFailures) { &mut forgotten } else { held };
                let retry_after = held.failed(retry_after, mark, now);
                self.give_up(AcquireError::Unavailable { retry_after, cause: Some(FailedCall(cause)) })
            }
            Reason::Unexplained { status, retry_after } => {
                held.answered();
                let retry_after = held.refused(request, mark, Verdict::Unexplained(status), retry_after, now);
                let cause = Cause(Arc::from(Box::from(format!("status {status}"))));
                self.give_up(AcquireError::Unavailable { retry_after, cause: Some(FailedCall(cause)) })
            }
            Reason::Refused { error } => {
                held.answered();
                held.refused(request, mark, Verdict::Refused(error.clone()), None, now);
                self.give_up(AcquireError::Refused { error })
            }
            Reason::Rejected(rejection) => self.rejected(failed.sent, mark, rejection, held, now),
        }
    }

    /// The server rejected this refresh token, or requires user interaction.
    fn rejected(
        &mut self,
        sent: Candidate,
        mark: &TokenMark,
        rejection: Rejection,
        held: &mut Held,
        now: SystemTime,
    ) -> Step {
        held.answered();
        self.error = rejection.clone().into();
        let Some(token) = sent.token else {
            held.refused(&self.wanted.request, mark, Verdict::Rejected(rejection), None, now);
            return self.give_up(self.error.clone());
        };
        self.spent.push(token.secret());
        if self.has(Fault::KeepsWhatIsDead) {
            return self.look_again();
        }
        if (rejection.ends_token || self.has(Fault::RetiresWhatIsAlive)) && sent.is_own {
            // Only rows with this very token are removed: a newer one may have arrived.
            held.pending.retire(token);
            self.state = State::Saving(After::LookAgain);
            return Step::Save;
        }
        held.refused(&self.wanted.request, mark, Verdict::Rejected(rejection), None, now);
        self.look_again()
    }

    /// Completes a response, before checking whether the cache accepts it.
    fn keep(&mut self, response: TokenResponse, began: SystemTime, sent: Candidate) -> Step {
        let mut response = self.wanted.completed(response, &sent);
        response.received_at.get_or_insert(began);
        let failure =
            ErrorResponse::in_success(&response.body).map(|error| RefreshFailure::classified(200, error).0);
        let token = self.wanted.purpose.secret_of(&response);
        let response = Arc::new(response);
        let answer = Answer { response, sent, token, known_until: None, has_expired: false, failure };
        self.state = State::Checking(Box::new(answer));
        Step::Read(Read::InMemory)
    }

    fn check(&mut self, mut answer: Answer, cache: &TokenCache, held: &mut Held, now: SystemTime) -> Step {
        if answer.failure.is_none() {
            let owner = answer.sent.owner();
            let expiry = |token| self.wanted.purpose.expiry(cache, owner, token);
            answer.known_until = answer.token.as_ref().and_then(expiry);
            let added = if self.wanted.is_of_another_user(&answer.response, &answer.sent) {
                Err(CacheError::OtherAccount)
            } else {
                cache.fork().add(&answer.response)
            };
            match added {
                Ok(added) => {
                    answer.has_expired =
                        added.has_expired() && !matches!(self.wanted.purpose, Purpose::IdToken);
                    let knew_owner = answer.sent.knew_owner;
                    match answer.sent.token {
                        Some(_) => held.pending.renew(Arc::clone(&answer.response)),
                        None => held.pending.mint(Arc::clone(&answer.response), knew_owner),
                    }
                    if self.has(Fault::FinishesUnsaved) {
                        self.state = State::Judging(Box::new(answer));
                        return Step::Read(Read::InMemory);
                    }
                    self.state = State::Saving(After::Judge(Box::new(answer)));
                    return Step::Save;
                }
                Err(CacheError::OtherAccount) => {
                    held.answered();
                    let mark = &answer.sent.mark;
                    held.refused(&self.wanted.request, mark, Verdict::OtherUser, None, now);
                    return self.try_another(SignInReason::OtherUser, answer.sent);
                }
                // The status is a success, but the body is not a token response.
                Err(error) => answer.failure = Some(RefreshFailure::transient(error).0),
            }
        }
        // A refresh token in it has replaced the one that was sent.
        let Answer { response, sent, failure, .. } = answer;
        let reason = failure.unwrap_or(Reason::Unexplained { status: 200, retry_after: None });
        let rest = response.refresh_token_only().filter(|rest| cache.fork().add(rest).is_ok());
        let rest = rest.filter(|_| sent.token.is_some() && !self.has(Fault::DropsTokensOfErrors));
        let Some(rest) = rest.map(Arc::new) else {
            let mark = sent.mark.clone();
            return self.failed(Failed { reason, sent, came: None }, &mark, held, now);
        };
        held.pending.renew(Arc::clone(&rest));
        self.state = State::Saving(After::Fail(Box::new(Failed { reason, sent, came: Some(rest) })));
        Step::Save
    }

    /// Tries another refresh token, if there is one.
    fn try_another(&mut self, reason: SignInReason, sent: Candidate) -> Step {
        self.error = AcquireError::sign_in(reason);
        let Some(token) = sent.token else { return self.give_up(self.error.clone()) };
        self.spent.push(token.secret());
        self.look_again()
    }

    /// A save ended, successfully or not.
    pub(super) fn saved(&mut self) -> Step {
        match std::mem::replace(&mut self.state, State::Ended) {
            State::Saving(After::Judge(answer)) => {
                self.state = State::Judging(answer);
                // If the cache cannot be read, nothing was saved, and the new tokens are in memory.
                Step::Read(Read::NewestOrInMemory)
            }
            State::Saving(After::Fail(failed)) => {
                self.state = State::Failing(failed);
                Step::Read(Read::NewestOrInMemory)
            }
            State::Saving(After::LookAgain) => self.look_again(),
            state => unreachable!("nothing was to be saved in {state:?}"),
        }
    }

    /// Judges a response by what the cache has of it.
    fn judge(&mut self, answer: Answer, cache: &TokenCache, held: &mut Held, now: SystemTime) -> Step {
        let Answer { response, sent, token, known_until, has_expired, .. } = answer;
        if matches!(self.wanted.purpose, Purpose::Once(_)) {
            return self.judge_done(&sent.mark, cache, held, now);
        }
        let mark = self.wanted.mark_after(&sent, &response, cache);
        if let Some(mark) = &mark
            && !self.has(Fault::ForgetsRefusalsOfRotatedTokens)
        {
            held.rotated(&sent.mark, mark);
        }
        let mark = mark.unwrap_or_else(|| sent.mark.clone());
        let is_ours = match sent.token {
            Some(_) => cache.awaits(&response),
            None => !sent.knew_owner || self.wanted.knows_owner(cache),
        };
        if !is_ours {
            return self.try_another(SignInReason::SignedOut, sent);
        }
        let came = token.as_ref().and_then(|token| self.wanted.came(cache, token, now));
        let verdict = match (&token, came) {
            (None, _) => self.wanted.purpose.missing(),
            (Some(_), _) if has_expired => Verdict::Expired,
            (Some(token), _) if self.wanted.is_refused(token) => Verdict::SameToken,
            // It expired during the call, or while the machine slept.
            (Some(token), None) if self.wanted.has_expired(cache, token, sent.owner(), now) => {
                Verdict::Expired
            }
            (Some(_), None) if matches!(self.wanted.purpose, Purpose::IdToken) => Verdict::NoIdToken,
            (Some(_), None) => Verdict::NotGranted(response.granted().unwrap_or_else(|| sent.scopes())),
            // The same token is useful only if it lasts longer now.
            (Some(_), Some(came)) if came.is_no_better_than(known_until) => Verdict::SameToken,
            (Some(_), Some(came)) => {
                held.granted(&self.wanted.request);
                return self.finish_with(came.token, TokenSource::Refreshed, Some(held));
            }
        };
        // The same request would have the same result.
        held.answered();
        // When the token expires, the server will issue another.
        let is_same = matches!(verdict, Verdict::SameToken);
        let until = token.as_ref().filter(|_| is_same);
        let until = until.and_then(|token| self.wanted.left_of(cache, token, sent.owner(), now));
        let left = held.refused(&self.wanted.request, &mark, verdict.clone(), until, now);
        self.give_up(verdict.into_error(left))
    }

    /// Checks whether the cache shows that the work was done.
    fn judge_done(&mut self, mark: &TokenMark, cache: &TokenCache, held: &mut Held, now: SystemTime) -> Step {
        let query = &self.wanted.query;
        if let Some(done) = self.wanted.purpose.find(cache, query, Life::Fresh, None) {
            held.granted(&self.wanted.request);
            return self.finish_with(done, TokenSource::Refreshed, Some(held));
        }
        held.answered();
        let verdict = self.wanted.purpose.missing();
        let left = held.refused(&self.wanted.request, mark, verdict.clone(), None, now);
        self.give_up(verdict.into_error(left))
    }
}

/// Returns how long to pause early refreshes after this outcome, and the failure.
pub(super) fn early_pause(outcome: &Outcome) -> Option<(Duration, Option<AcquireError>)> {
    let (pause, failure) = match outcome {
        Outcome::Acquired(acquired) => {
            let failure = acquired.failure()?;
            (failure.retry_after(), Some(failure.clone()))
        }
        Outcome::Busy => (None, None),
        Outcome::Failed { error, .. } => (error.retry_after(), Some(error.clone())),
    };
    Some((pause.unwrap_or(EARLY_PAUSE), failure))
}

#[cfg(test)]
mod walk;
