//! The refresh itself: lock, look again, call, save, release. One thread does it, for all who wait.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::acquired::{Acquired, Origin};
use super::back_off::Verdict;
use super::call::{Call, Called};
use super::desk::Desk;
use super::error::{AcquireError, FailedCall, SignInReason};
use super::failure::{Cause, Reason, RefreshFailure, Rejection};
use super::flight::Lead;
use super::freshness::is_due;
use super::identity::{CredentialName, RequestId, refresh_token_query};
use super::landing::{Landing, Leftover};
use super::tokens::Tokens;
use super::turn::{Place, Turn};
use super::unsaved::{Unsaved, overlaid};
use crate::cache::{AccessToken, AccessTokenQuery, Account, Life, RefreshToken, TokenCache, TokenResponse};
use crate::deadline;
use crate::persisted::Error;
use crate::secret::Secret;

/// What to acquire, and until when.
pub(super) struct Job {
    pub(super) tokens: Tokens,
    pub(super) desk: Arc<Desk>,
    pub(super) request: RequestId,
    pub(super) query: AccessTokenQuery,
    pub(super) account: Account,
    pub(super) family_id: Option<String>,
    pub(super) refused: Option<Secret>,
    pub(super) wait_timeout: Duration,
    pub(super) deadline: Instant,
    pub(super) call_timeout: Duration,
    /// There is a valid token, which the server would like to see refreshed: not worth waiting for.
    pub(super) is_early: bool,
}

/// What the cache has.
enum Look {
    /// A token that is fresh.
    Fresh(AccessToken),
    /// No such token, but this refresh token.
    Send(Box<Candidate>),
    Nothing,
}

/// A refresh token to try.
struct Candidate {
    token: RefreshToken,
    name: CredentialName,
    /// The realm to keep the tokens under, if nothing else names one.
    realm: Option<String>,
    /// Whether it may be removed when the server rejects it: another client's token may be rejected
    /// for being another client's.
    may_be_retired: bool,
}

/// What is known in this flight, whichever lock it holds.
struct Heard {
    /// Refresh tokens that must not be sent any more.
    spent: Vec<Secret>,
    reason: SignInReason,
}

/// What came of a turn.
enum Taken {
    Landed(Landing),
    /// Under the lock it turned out that another refresh token, with another lock, is the one to use.
    Elsewhere(Box<Candidate>),
}

type Leader = Lead<RequestId, Landing>;

impl Job {
    /// Does the job and lands the flight.
    pub(super) fn run<C: Call>(&self, mut call: C, lead: Leader) {
        let mut turn = None;
        let landing =
            self.fly(&mut call, &lead, &mut turn).unwrap_or_else(|error| self.failed(error, turn.as_ref()));
        // What could not be saved is tried again when nobody waits for it any more.
        let unsaved = turn.filter(|(turn, _)| !turn.unsaved().is_empty());
        lead.land(landing);
        if let Some((mut turn, name)) = unsaved {
            turn.save_leftover(&self.tokens);
            turn.save_later(&self.tokens, &self.desk, &name);
        }
    }

    fn failed(&self, error: AcquireError, turn: Option<&(Turn, CredentialName)>) -> Landing {
        let none = Unsaved::default();
        let unsaved = turn.map_or(&none, |(turn, _)| turn.unsaved());
        let leftover = |cache: &TokenCache| {
            cache.find_living_access_token(&self.query, Life::Extended, self.refused.as_ref())
        };
        // Without waiting; and if the file has changed and cannot be read, not from before: somebody may
        // have signed out.
        let leftover = self.tokens.read_if_current(|cache| overlaid(cache, [unsaved], leftover));
        let with_failure = |token| Leftover { token, save_failure: unsaved.failure() };
        Landing::Failed { error, leftover: leftover.ok().flatten().flatten().map(with_failure) }
    }

    /// Leaves the turn that it took last in `held`.
    fn fly<C: Call>(
        &self,
        call: &mut C,
        lead: &Leader,
        held: &mut Option<(Turn, CredentialName)>,
    ) -> Result<Landing, AcquireError> {
        let mut heard = Heard { spent: Vec::new(), reason: SignInReason::NoRefreshToken };
        let mut look = self.look(&Unsaved::default(), &heard)?;
        loop {
            let name = match look {
                Look::Fresh(token) => return Ok(Landing::Acquired(Acquired::from_cache(token))),
                Look::Nothing => return Err(AcquireError::SignInRequired { reason: heard.reason }),
                Look::Send(candidate) => candidate.name,
            };
            if let Some((mut turn, name)) = held.take() {
                // One lock at a time.
                turn.save_leftover(&self.tokens);
                turn.save_later(&self.tokens, &self.desk, &name);
                if deadline::left(self.deadline).is_zero() {
                    return Err(Place::of(&self.tokens, &name).timed_out(self.wait_timeout));
                }
            }
            let turn = if self.is_early {
                let Some(turn) = self.desk.turn_if_free(&self.tokens, &name)? else {
                    return Ok(Landing::Busy);
                };
                turn
            } else {
                self.desk.turn(&self.tokens, &name, self.wait_timeout, self.deadline)?
            };
            let (turn, _) = held.insert((turn, name.clone()));
            // Under another lock nothing shows that these are spent.
            heard.spent.extend(turn.unsaved().spent());
            look = match self.take_turn(&name, turn, call, lead, &mut heard)? {
                Taken::Landed(landing) => return Ok(landing),
                Taken::Elsewhere(candidate) => Look::Send(candidate),
            };
        }
    }

    /// Everything that is done with the lock held.
    fn take_turn<C: Call>(
        &self,
        name: &CredentialName,
        turn: &mut Turn,
        call: &mut C,
        lead: &Leader,
        heard: &mut Heard,
    ) -> Result<Taken, AcquireError> {
        loop {
            // Somebody may have refreshed it, or signed in or out, since the last look.
            let candidate = match self.look(turn.unsaved(), heard)? {
                Look::Fresh(token) => return Ok(Taken::Landed(served(token, Origin::Cache, turn))),
                Look::Nothing => return Err(AcquireError::SignInRequired { reason: heard.reason.clone() }),
                Look::Send(candidate) if candidate.name != *name => return Ok(Taken::Elsewhere(candidate)),
                Look::Send(candidate) => candidate,
            };
            let renewed_at = candidate.token.last_modification_time;
            if let Some(retry_after) = turn.back_off(renewed_at) {
                return Err(AcquireError::Unavailable { retry_after, cause: None });
            }
            match turn.refusal(&self.request, renewed_at) {
                // Another token may do.
                Some(Verdict::Rejected(rejection)) => {
                    heard.reason = rejection.clone().into();
                    heard.spent.push(candidate.token.secret());
                    continue;
                }
                Some(verdict) => return Err(verdict.clone().into()),
                None => {}
            }
            turn.begin_use();
            let failure = match self.call(call, lead, &candidate.token) {
                Called::Answered(Ok(answer)) => match self.keep(*answer, &candidate, turn, heard)? {
                    Some(landing) => return Ok(Taken::Landed(landing)),
                    None => continue,
                },
                Called::Answered(Err(RefreshFailure(reason))) => reason,
                #[cfg(feature = "tokio")]
                Called::TimedOut => {
                    turn.failed(None, renewed_at);
                    return Err(AcquireError::CallTimedOut { waited: self.call_timeout });
                }
                Called::Lost(why) => {
                    Reason::Transient { retry_after: None, cause: Cause(Arc::from(Box::from(why))) }
                }
            };
            match failure {
                Reason::Transient { retry_after, cause } => {
                    let retry_after = turn.failed(retry_after, renewed_at);
                    return Err(AcquireError::Unavailable { retry_after, cause: Some(FailedCall(cause)) });
                }
                Reason::Refused { error } => {
                    turn.answered(&self.request);
                    turn.refused(&self.request, renewed_at, Verdict::Refused(error.clone()));
                    return Err(AcquireError::Refused { error });
                }
                Reason::Rejected(rejection) => {
                    turn.answered(&self.request);
                    self.rejected(*candidate, rejection, turn, heard);
                    turn.end_use();
                }
            }
        }
    }

    fn call<C: Call>(&self, call: &mut C, lead: &Leader, token: &RefreshToken) -> Called {
        if !C::CAN_BE_GIVEN_UP {
            lead.call_begins();
        }
        let called = catch_unwind(AssertUnwindSafe(|| call.call(token.secret(), self.call_timeout)));
        lead.call_ended();
        // What a panic says may be anything, a secret too.
        called.unwrap_or(Called::Lost("the call panicked"))
    }

    /// Saves the tokens that came, and only then gives them out. `None`: the session that they belong to
    /// has ended, and there is another.
    fn keep(
        &self,
        answer: TokenResponse,
        sent: &Candidate,
        turn: &mut Turn,
        heard: &mut Heard,
    ) -> Result<Option<Landing>, AcquireError> {
        let answer = self.completed(answer, sent);
        let granted = answer.granted();
        let refused = self.tokens.read_in_memory(|cache| {
            overlaid(cache, [turn.unsaved()], |cache| cache.fork().add(&answer).err())
        })?;
        if let Some(error) = refused {
            // The server said yes, and what it sent is no token response. Whatever refresh token is in
            // it is the one that works from now on.
            if let Some(rest) = answer.into_refresh_token_only()
                && self.tokens.read_in_memory(|cache| cache.fork().add(&rest).is_ok())?
            {
                turn.renew(Arc::new(rest), &self.tokens);
            }
            let renewed_at = self.sent_next(turn, heard).unwrap_or(sent.token.last_modification_time);
            let retry_after = turn.failed(None, renewed_at);
            let cause = Some(FailedCall(Cause(Arc::new(error))));
            return Err(AcquireError::Unavailable { retry_after, cause });
        }
        let answer = Arc::new(answer);
        turn.renew(Arc::clone(&answer), &self.tokens);
        turn.answered(&self.request);
        let found = |cache: &TokenCache| {
            let find = |refused| cache.find_living_access_token(&self.query, Life::Valid, refused);
            (cache.awaits(&answer), find(self.refused.as_ref()), find(None).is_some())
        };
        let (is_ours, token, is_same) = match self.read(turn.unsaved(), found) {
            Ok(found) => found,
            // The file cannot be read, so nothing was saved; what the server has just given is good.
            Err(_) => self.tokens.read_in_memory(|cache| overlaid(cache, [turn.unsaved()], found))?,
        };
        if !is_ours {
            heard.spent.push(sent.token.secret());
            heard.reason = SignInReason::SignedOut;
            return Ok(None);
        }
        if token.is_none() && is_same {
            return Err(AcquireError::SameToken);
        }
        let Some(token) = token else {
            // The same request would only bring the same again.
            if let Some(renewed_at) = self.sent_next(turn, heard) {
                turn.refused(&self.request, renewed_at, Verdict::NotGranted(granted.clone()));
            }
            return Err(AcquireError::NotGranted { granted });
        };
        Ok(Some(served(token, Origin::Refreshed, turn)))
    }

    /// When the refresh token was modified that would be sent next.
    fn sent_next(&self, turn: &Turn, heard: &Heard) -> Option<i64> {
        match self.look(turn.unsaved(), heard).ok()? {
            Look::Send(next) => Some(next.token.last_modification_time),
            Look::Fresh(_) | Look::Nothing => None,
        }
    }

    /// Fills in what the answer to a refresh need not say.
    fn completed(&self, mut answer: TokenResponse, sent: &Candidate) -> TokenResponse {
        let Candidate { token, realm, .. } = sent;
        answer.sent_refresh_token = Some(token.secret());
        answer.received_at.get_or_insert_with(SystemTime::now);
        answer.client_id.get_or_insert_with(|| self.query.client_id.clone());
        // Whatever the answer calls them: they belong where the token came from that was sent.
        answer.environment = Some(token.environment().to_owned());
        answer.home_account_id = token.home_account_id().map(str::to_owned);
        answer.grant_type.get_or_insert_with(|| "refresh_token".to_owned());
        if answer.realm.is_none() && (self.query.realm.is_some() || answer.token_endpoint.is_none()) {
            answer.realm.clone_from(realm);
        }
        if answer.requested_scopes.is_empty() {
            answer.requested_scopes.clone_from(&self.query.scopes);
        }
        answer.named_ext_cache_key.clone_from(&self.query.ext_cache_key);
        match &self.query.key_id {
            Some(key_id) if answer.key_id().is_none() => answer.parameter("key_id", key_id),
            _ => answer,
        }
    }

    /// The server does not take this refresh token.
    fn rejected(&self, sent: Candidate, rejection: Rejection, turn: &mut Turn, heard: &mut Heard) {
        heard.spent.push(sent.token.secret());
        heard.reason = rejection.clone().into();
        if rejection.ends_token() && sent.may_be_retired {
            // Only where this very token stands: a newer one may have come meanwhile.
            turn.retire(sent.token, &self.tokens);
        } else {
            let renewed_at = sent.token.last_modification_time;
            turn.refused(&self.request, renewed_at, Verdict::Rejected(rejection));
        }
    }

    /// What the cache has, with what is not saved yet.
    fn look(&self, unsaved: &Unsaved, heard: &Heard) -> Result<Look, AcquireError> {
        Ok(self.read(unsaved, |cache| {
            let fresh = cache.find_living_access_token(&self.query, Life::Fresh, self.refused.as_ref());
            if let Some(token) = fresh
                && !(self.is_early && is_due(&token, &self.query))
            {
                return Look::Fresh(token);
            }
            let wanted = refresh_token_query(&self.query, &self.account, self.family_id.as_deref());
            let mut refresh_tokens = cache.find_refresh_tokens(&wanted).into_iter();
            let next = refresh_tokens.find(|token| !heard.spent.contains(&token.secret()));
            let Some(token) = next else { return Look::Nothing };
            let name = CredentialName::of(&token);
            let realm = self.query.realm.clone().or_else(|| cache.known_realm(&self.query));
            let may_be_retired = cache.may_use(&self.query.client_id, &token);
            Look::Send(Box::new(Candidate { token, name, realm, may_be_retired }))
        })?)
    }

    fn read<T>(&self, unsaved: &Unsaved, look: impl FnOnce(&TokenCache) -> T) -> Result<T, Error> {
        self.tokens.read(|cache| overlaid(cache, [unsaved], look))
    }
}

fn served(token: AccessToken, origin: Origin, turn: &Turn) -> Landing {
    Landing::Acquired(Acquired { token, origin, save_failure: turn.unsaved().failure(), failure: None })
}
