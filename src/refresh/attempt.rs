//! One caller's way to a token: look, take a seat in a flight, wait, judge what comes of it.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use super::acquired::{Acquired, Origin};
use super::call::Call;
use super::desk::Desk;
use super::engine::Job;
use super::error::{AcquireError, SignInReason};
use super::flight::{Flight, Lead, Patience, Seat, Waited};
use super::freshness::is_due;
use super::identity::{FlightKey, RequestId, credential_name, refresh_token_query};
use super::landing::{Landing, Leftover};
use super::request::AcquireRequest;
use super::tokens::Tokens;
use super::turn::Place;
use super::unsaved::{Unsaved, overlaid};
use crate::cache::{AccessToken, Account, Life, TokenCache};
use crate::deadline;

/// More stack than the work of a refresh was seen to use, the caller's function apart.
const STACK: usize = 64 * 1024;

/// How long a leader's own work may take before its call begins: to read the cache, to take a free lock.
const OWN_WORK: Duration = Duration::from_millis(500);

/// What a caller is to do.
pub(super) enum Step {
    Done(Result<Acquired, AcquireError>),
    Wait(Arc<Flight<Landing>>),
}

/// What the first look says.
pub(super) enum Found {
    Fresh(AccessToken),
    /// It is valid, and the server would like to see it refreshed.
    Due(AccessToken),
    Nothing,
}

/// Looks for a token that need not be refreshed. Never waits: if the file must be read again, that is
/// left to the one thread that does it for all.
pub(super) fn look(tokens: &Tokens, request: &AcquireRequest<'_>) -> Result<Found, AcquireError> {
    if request.claims.is_some() {
        // A service that asks for claims takes no token of before.
        return Ok(Found::Nothing);
    }
    let refused = request.refused.map(AccessToken::secret);
    let find =
        |cache: &TokenCache| cache.find_living_access_token(request.query, Life::Fresh, refused.as_ref());
    Ok(match tokens.read_if_current(find)?.flatten() {
        Some(token) if is_due(&token, request.query) => Found::Due(token),
        Some(token) => Found::Fresh(token),
        None => Found::Nothing,
    })
}

pub(super) struct Attempt<'a, C> {
    tokens: &'a Tokens,
    desk: Arc<Desk>,
    request: AcquireRequest<'a>,
    id: FlightKey,
    account: Account,
    /// Taken when this caller leads.
    call: Option<C>,
    /// A valid token that the server would like to see refreshed.
    due: Option<AccessToken>,
    deadline: Instant,
}

impl<'a, C: Call> Attempt<'a, C> {
    pub(super) fn new(
        tokens: &'a Tokens,
        desk: Arc<Desk>,
        request: AcquireRequest<'a>,
        call: C,
        due: Option<AccessToken>,
    ) -> Result<Self, AcquireError> {
        let owner = &request.query.owner;
        let (Some(home_account_id), Some(environment)) = (&owner.home_account_id, &owner.environment) else {
            return Err(AcquireError::NoAccount);
        };
        // The refresh could never be saved while this thread waits for it under the lock.
        tokens.check_not_in_hand()?;
        Ok(Self {
            tokens,
            desk,
            id: FlightKey {
                request: RequestId::new(request.query, request.family_id, request.claims),
                tries_now: request.tries_now,
            },
            account: Account { issuer: owner.issuer.clone(), ..Account::new(home_account_id, environment) },
            call: Some(call),
            due,
            deadline: deadline::after(request.wait_timeout),
            request,
        })
    }

    pub(super) fn patience(&self) -> Patience {
        let is_leader = self.call.is_none();
        // The patience of a leader is with others, whom its own refresh waits for until the deadline.
        let deadline = if is_leader { self.begin_by() } else { self.deadline };
        Patience { deadline, call_timeout: self.request.call_timeout, is_leader }
    }

    fn begin_by(&self) -> Instant {
        self.deadline + OWN_WORK
    }

    fn now(&self) -> SystemTime {
        self.request.query.now.unwrap_or_else(SystemTime::now)
    }

    /// Takes a seat, and leads the flight if nobody else does. An early refresh makes nobody wait.
    pub(super) fn board(&mut self) -> Step {
        let due = self.due.take();
        let still_valid =
            |token, failure| Step::Done(Ok(Acquired::instead(token, Origin::StillValid, failure)));
        if let Some(token) = &due
            && let Some(pause) = self.desk.early_pause(&self.id.request)
            && !self.request.tries_now
        {
            return still_valid(token.clone(), pause.failure);
        }
        match (self.desk.flights.board(&self.id), due) {
            (Seat::Follow(_), Some(token)) => still_valid(token, None),
            (Seat::Follow(flight), None) => Step::Wait(flight),
            (Seat::Lead(lead), due) => {
                let flight = match self.call.take() {
                    Some(call) => self.lead(lead, call, due.is_some()),
                    // It led before, and what came of it was refused: that cannot be.
                    None => Err(unexplained()),
                };
                match (flight, due) {
                    (flight, Some(token)) => still_valid(token, flight.err()),
                    (Ok(flight), None) => Step::Wait(flight),
                    (Err(error), None) => Step::Done(self.fall_back(error, None)),
                }
            }
        }
    }

    /// Has the refresh made, by a thread of its own.
    fn lead(
        &self,
        lead: Lead<FlightKey, Landing>,
        call: C,
        is_early: bool,
    ) -> Result<Arc<Flight<Landing>>, AcquireError> {
        let flight = lead.flight();
        let owned = |text: &str| text.to_owned();
        let job = Job {
            tokens: self.tokens.clone(),
            desk: Arc::clone(&self.desk),
            request: self.id.request.clone(),
            query: self.request.query.clone(),
            account: self.account.clone(),
            family_id: self.request.family_id.map(owned),
            token_endpoint: self.request.token_endpoint.map(owned),
            claims: self.request.claims.map(owned),
            tries_now: self.request.tries_now,
            refused: self.request.refused.cloned(),
            wait_timeout: self.request.wait_timeout,
            deadline: self.deadline,
            begin_by: self.begin_by(),
            call_timeout: self.request.call_timeout,
            is_early,
        };
        // On a thread of its own: whoever waits may go, and the call and its save run to completion.
        let started = thread::Builder::new().name("tokenseal-refresh".into()).spawn(move || {
            job.run(call, lead);
            // The thread's stack outlives it in the allocator's cache.
            zeroize::zeroize_stack::<STACK>();
        });
        started.map(|_| flight).map_err(|source| AcquireError::NoThread { source: Arc::new(source) })
    }

    /// What a landing means for this caller; `None` if it must try again.
    pub(super) fn judge(&mut self, waited: Waited<Landing>) -> Option<Result<Acquired, AcquireError>> {
        let has_led = self.call.is_none();
        Some(match waited {
            Waited::Landed(Landing::Acquired(acquired)) => {
                if !has_led && self.is_refused(&acquired.token) {
                    return None;
                }
                Ok(acquired)
            }
            // The early refresh of somebody who does not need it was not worth waiting for.
            Waited::Landed(Landing::Busy) if !has_led => return None,
            Waited::Landed(Landing::Busy) => Err(unexplained()),
            // Whoever led it had less patience.
            Waited::Landed(Landing::Failed { error: AcquireError::WaitTimedOut { .. }, .. })
                if !has_led && !deadline::left(self.deadline).is_zero() =>
            {
                return None;
            }
            Waited::Landed(Landing::Failed { error: error @ AcquireError::WaitTimedOut { .. }, .. }) => {
                self.give_up(error)
            }
            Waited::Landed(Landing::Failed { error, leftover }) => self.fall_back(error, leftover),
            Waited::Crashed => self.fall_back(unexplained(), None),
            Waited::TimedOut => self.give_up(self.timed_out()),
            Waited::CallTimedOut => {
                self.give_up(AcquireError::CallTimedOut { waited: self.request.call_timeout })
            }
        })
    }

    /// A token that may be served although it should have been refreshed.
    fn fall_back(&self, error: AcquireError, leftover: Option<Leftover>) -> Result<Acquired, AcquireError> {
        let now = self.now();
        // After a sign-out nothing is served any more, and of several users nobody's.
        let ends_all = matches!(
            error,
            AcquireError::SignInRequired { reason: SignInReason::SignedOut, .. }
                | AcquireError::Ambiguous { .. }
        );
        let is_wanted =
            |it: &Leftover| !ends_all && self.request.claims.is_none() && !self.is_refused(&it.token);
        let leftover = leftover.filter(is_wanted);
        let Some(Leftover { token, save_failure }) = leftover else { return Err(error) };
        let origin = if token.expires_on() > now {
            Origin::StillValid
        } else if self.request.allows_extended_lifetime
            && error.is_transient()
            && token.extended_expires_on() > now
        {
            Origin::ExtendedLifetime
        } else {
            return Err(error);
        };
        Ok(Acquired { token, origin, save_failure, failure: Some(error) })
    }

    /// For whoever cannot wait for the one who knows better: what is in memory, saved or not.
    fn give_up(&self, error: AcquireError) -> Result<Acquired, AcquireError> {
        let unsaved = self.desk.unsaved();
        let refused = self.request.refused.map(AccessToken::secret);
        let find = |cache: &TokenCache, life| {
            cache.find_living_access_token(self.request.query, life, refused.as_ref())
        };
        let save_failure = || unsaved.iter().find_map(Unsaved::failure);
        // Not from before the file was changed: somebody may have signed out.
        let found = self.tokens.read_if_current(|cache| {
            let saved = find(cache, Life::Fresh);
            overlaid(cache, &unsaved, |cache| {
                let is_wanted = saved.is_none() && self.request.claims.is_none();
                let fresh = is_wanted.then(|| find(cache, Life::Fresh)).flatten();
                (fresh, find(cache, Life::Extended))
            })
        });
        match found {
            // It is not saved yet, which may be what the other one waits for.
            Ok(Some((Some(token), _))) => {
                Ok(Acquired { token, origin: Origin::Cache, save_failure: save_failure(), failure: None })
            }
            Ok(Some((None, leftover))) => {
                let leftover = leftover.map(|token| Leftover { token, save_failure: save_failure() });
                self.fall_back(error, leftover)
            }
            Ok(None) | Err(_) => self.fall_back(error, None),
        }
    }

    fn is_refused(&self, token: &AccessToken) -> bool {
        self.request.refused.is_some_and(|refused| refused.secret() == token.secret())
    }

    /// Says which lock it was, and who was noted to hold it.
    fn timed_out(&self) -> AcquireError {
        let within = self.request.wait_timeout;
        let wanted = refresh_token_query(self.request.query, &self.account, self.request.family_id);
        match self.tokens.read_in_memory(|cache| credential_name(cache, &wanted)) {
            Ok(name) => Place::of(self.tokens, &name).timed_out(within),
            Err(error) => error.into(),
        }
    }
}

/// A flight ended without saying how.
fn unexplained() -> AcquireError {
    AcquireError::Unavailable { retry_after: Duration::ZERO, cause: None }
}
