//! One caller's path to a token: look it up, lead or join a flight, wait, and judge the outcome.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::lease::Home;
use super::registry::Registry;
use super::single_flight::{Flight, Joined, Patience, Waited};
use super::source::Source;
use crate::cache::{AccessToken, Account, Life, TokenCache};
use crate::deadline;
use crate::refresh::driver::{self, Driver};
use crate::refresh::error::{AcquireError, SignInReason};
use crate::refresh::plan::credential::{Credential, Purpose};
use crate::refresh::plan::look::{Means, Wanted};
use crate::refresh::plan::names::{FlightKey, RequestId, access_token_name};
use crate::refresh::plan::pending::{Pending, overlaid};
use crate::refresh::plan::step::{Leftover, Outcome};
use crate::refresh::request::{AcquireRequest, Acquired, TokenSource};
use crate::secret::Secret;

/// How long a leader may take to read the cache and take a free lock before its call begins.
const OWN_WORK: Duration = Duration::from_millis(500);

/// The next step of a caller.
pub(crate) enum Step {
    Done(Result<Acquired<Credential>, AcquireError>),
    Wait(Arc<Flight<Outcome>>),
}

/// The result of the first lookup.
enum Found {
    Fresh(Credential),
    /// Valid, but the server asked for an early refresh.
    Due(Credential),
    Nothing,
}

/// Looks for a token that need not be refreshed. Never waits: if the cache must be read again, the leader
/// does that for all callers.
fn look(source: &Source, request: &AcquireRequest<'_>, purpose: &Purpose) -> Result<Found, AcquireError> {
    if request.claims.is_some() {
        // A service that asks for claims rejects the tokens issued before.
        return Ok(Found::Nothing);
    }
    let refused = request.refused.map(AccessToken::secret);
    let find = |cache: &TokenCache| purpose.find(cache, request.query, Life::Fresh, refused.as_ref());
    Ok(match source.read_if_current(find)?.flatten() {
        Some(token) if token.is_due(request.query) => Found::Due(token),
        Some(token) => Found::Fresh(token),
        None => Found::Nothing,
    })
}

pub(crate) struct Caller<'a> {
    source: &'a Source,
    registry: Arc<Registry>,
    request: AcquireRequest<'a>,
    purpose: Purpose,
    id: FlightKey,
    means: Means,
    has_led: bool,
    /// A valid token for which the server asked for an early refresh.
    due: Option<Credential>,
    deadline: Instant,
}

impl<'a> Caller<'a> {
    /// Returns a token that need not be refreshed, or else a caller that waits for one.
    pub(crate) fn new(
        source: &'a Source,
        registry: impl FnOnce() -> Arc<Registry>,
        request: AcquireRequest<'a>,
        purpose: Purpose,
    ) -> Result<Result<Acquired<Credential>, Self>, AcquireError> {
        let due = match look(source, &request, &purpose)? {
            Found::Fresh(token) => return Ok(Ok(Acquired::from_cache(token))),
            Found::Due(token) => Some(token),
            Found::Nothing => None,
        };
        let owner = &request.query.owner;
        let means = match (&purpose, &owner.home_account_id, &owner.environment) {
            (Purpose::AccessToken | Purpose::IdToken, Some(home_account_id), Some(environment)) => {
                let account = Account::new(home_account_id, environment);
                Means::RefreshToken(Box::new(Account { issuer: owner.issuer.clone(), ..account }))
            }
            (Purpose::AccessToken | Purpose::IdToken, ..) => return Err(AcquireError::NoAccount),
            (Purpose::Mint, _, None) => return Err(AcquireError::NoEnvironment),
            (Purpose::Mint | Purpose::Once(_), ..) => Means::Mint,
        };
        // While this thread holds the lock and waits, the refresh could never be saved.
        source.check_not_in_hand()?;
        Ok(Err(Self {
            source,
            registry: registry(),
            id: FlightKey {
                request: RequestId::new(&purpose, request.query, request.family_id, request.claims),
                needs_refresh_token: purpose.needs_refresh_token(),
                tries_now: request.tries_now,
                replaces: request.refused.map(access_token_name),
            },
            purpose,
            means,
            has_led: false,
            due,
            deadline: deadline::after(request.wait_timeout),
            request,
        }))
    }

    pub(crate) fn patience(&self) -> Patience {
        // A leader's deadline limits only how long its refresh waits for other processes.
        let deadline = if self.has_led { self.begin_by() } else { self.deadline };
        Patience { deadline, call_timeout: self.request.call_timeout, is_leader: self.has_led }
    }

    fn begin_by(&self) -> Instant {
        self.deadline + OWN_WORK
    }

    fn now(&self) -> SystemTime {
        self.request.query.now.unwrap_or_else(SystemTime::now)
    }

    /// Joins the flight for this request, or begins one with `lead`. Nobody waits for an early refresh.
    pub(crate) fn join(&mut self, lead: impl FnOnce(Driver) -> Result<(), AcquireError>) -> Step {
        let due = self.due.take();
        let still_valid =
            |token, failure| Step::Done(Ok(Acquired::instead(token, TokenSource::StillValid, failure)));
        if let Some(token) = &due
            && let Some(pause) = self.registry.early_pause(&self.id.request)
            && !self.request.tries_now
        {
            return still_valid(token.clone(), pause.failure);
        }
        match (self.registry.flights.join(&self.id), due) {
            (Joined::Follower(_), Some(token)) => still_valid(token, None),
            (Joined::Follower(flight), None) => Step::Wait(flight),
            // It has led before, and a leader always accepts its own outcome.
            (Joined::Leader(_), None) if self.has_led => {
                Step::Done(self.fall_back(AcquireError::unexplained(), None))
            }
            (Joined::Leader(leader), due) => {
                self.has_led = true;
                let flight = leader.flight();
                let source = self.source.clone();
                let registry = Arc::clone(&self.registry);
                let wanted = Arc::new(self.wanted(due.is_some()));
                let driver = Driver::new(wanted, source, registry, leader, self.driver_patience());
                match (lead(driver), due) {
                    (started, Some(token)) => still_valid(token, started.err()),
                    (Ok(()), None) => Step::Wait(flight),
                    (Err(error), None) => Step::Done(self.fall_back(error, None)),
                }
            }
        }
    }

    fn driver_patience(&self) -> driver::Patience {
        driver::Patience {
            wait_timeout: self.request.wait_timeout,
            deadline: self.deadline,
            begin_by: self.begin_by(),
            call_timeout: self.request.call_timeout,
        }
    }

    fn wanted(&self, is_early: bool) -> Wanted {
        let owned = |text: &str| text.to_owned();
        Wanted {
            purpose: self.purpose.clone(),
            request: self.id.request.clone(),
            query: self.request.query.clone(),
            means: self.means.clone(),
            family_id: self.request.family_id.map(owned),
            token_endpoint: self.request.token_endpoint.map(owned),
            claims: self.request.claims.map(owned),
            tries_now: self.request.tries_now,
            refused: self.request.refused.cloned(),
            call_timeout: self.request.call_timeout,
            is_early,
        }
    }

    /// Judges an outcome for this caller; `None` if it must try again.
    pub(crate) fn judge(
        &mut self,
        waited: Waited<Outcome>,
    ) -> Option<Result<Acquired<Credential>, AcquireError>> {
        Some(match waited {
            Waited::Finished(Outcome::Acquired(acquired)) => {
                if !self.has_led && self.is_refused(&acquired.token) {
                    return None;
                }
                Ok(acquired)
            }
            // The leader had a valid token, and did not wait for the lease.
            Waited::Finished(Outcome::Busy) if !self.has_led => return None,
            Waited::Finished(Outcome::Busy) => Err(AcquireError::unexplained()),
            // The leader had a shorter deadline.
            Waited::Finished(Outcome::Failed { error: AcquireError::WaitTimedOut { .. }, .. })
                if !self.has_led && !deadline::left(self.deadline).is_zero() =>
            {
                return None;
            }
            Waited::Finished(Outcome::Failed {
                error: error @ AcquireError::WaitTimedOut { .. }, ..
            }) => self.give_up(error),
            Waited::Finished(Outcome::Failed { error, leftover }) => self.fall_back(error, leftover),
            Waited::Crashed => self.fall_back(AcquireError::unexplained(), None),
            Waited::TimedOut => self.give_up(self.timed_out()),
            Waited::CallTimedOut => {
                self.give_up(AcquireError::CallTimedOut { waited: self.request.call_timeout })
            }
        })
    }

    /// Returns a token that may be served although it was not refreshed.
    fn fall_back(
        &self,
        error: AcquireError,
        leftover: Option<Leftover>,
    ) -> Result<Acquired<Credential>, AcquireError> {
        let now = self.now();
        // Nothing is served after a sign-out, or if the user is ambiguous.
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
            TokenSource::StillValid
        } else if self.request.allows_extended_lifetime
            && error.is_transient()
            && token.extended_expires_on() > now
        {
            TokenSource::ExtendedLifetime
        } else {
            return Err(error);
        };
        Ok(Acquired { token, origin, save_failure, failure: Some(error) })
    }

    /// After a timeout, returns what is in memory, saved or not.
    fn give_up(&self, error: AcquireError) -> Result<Acquired<Credential>, AcquireError> {
        let pending = self.registry.pending();
        let refused = self.request.refused.map(AccessToken::secret);
        let find =
            |cache: &TokenCache, life| self.purpose.find(cache, self.request.query, life, refused.as_ref());
        let save_failure = || pending.iter().find_map(Pending::failure);
        // Never from an outdated state: the user may have signed out.
        let found = self.source.read_if_current(|cache| {
            let saved = find(cache, Life::Fresh);
            overlaid(cache, &pending, |cache| {
                let is_wanted = saved.is_none() && self.request.claims.is_none();
                let fresh = is_wanted.then(|| find(cache, Life::Fresh)).flatten();
                (fresh, find(cache, Life::Extended))
            })
        });
        match found {
            // It may be unsaved: that may be what the other caller waits for.
            Ok(Some((Some(token), _))) => Ok(Acquired {
                token,
                origin: TokenSource::Cache,
                save_failure: save_failure(),
                failure: None,
            }),
            Ok(Some((None, leftover))) => {
                let leftover = leftover.map(|token| Leftover { token, save_failure: save_failure() });
                self.fall_back(error, leftover)
            }
            Ok(None) | Err(_) => self.fall_back(error, None),
        }
    }

    fn is_refused(&self, token: &Credential) -> bool {
        self.refused().is_some_and(|refused| Some(refused) == token.secret())
    }

    fn refused(&self) -> Option<Secret> {
        self.request.refused.map(AccessToken::secret)
    }

    /// Returns the timeout error, naming the lock and its holder.
    fn timed_out(&self) -> AcquireError {
        let wanted = self.wanted(false);
        match self.source.read_in_memory(|cache| wanted.lease_name(cache)) {
            Ok(name) => Home::of(self.source, &name).timed_out(self.request.wait_timeout),
            Err(error) => error.into(),
        }
    }
}
