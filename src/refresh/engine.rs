//! The refresh itself: lock, look again, call, save, release. One thread does it, for all who wait.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant, SystemTime};

use super::acquired::{Acquired, Origin};
use super::call::{Call, Called};
use super::desk::Desk;
use super::error::{AcquireError, FailedCall, SignInReason};
use super::failure::{Cause, Reason, RefreshFailure, Rejection};
use super::flight::Lead;
use super::freshness::is_due;
use super::identity::{
    CredentialName, FlightKey, RequestId, TokenMark, credential_name, refresh_token_query,
};
use super::landing::{Landing, Leftover};
use super::refresh_call::RefreshCall;
use super::refusal::Verdict;
use super::tokens::Tokens;
use super::turn::{Place, Turn};
use super::unsaved::{Unsaved, overlaid};
use crate::cache::{
    AccessToken, AccessTokenQuery, Account, CacheError, ErrorResponse, Life, RefreshToken, TokenCache,
    TokenResponse, token_endpoint_of,
};
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
    pub(super) token_endpoint: Option<String>,
    pub(super) claims: Option<String>,
    pub(super) tries_now: bool,
    /// The access token that is to be replaced.
    pub(super) refused: Option<AccessToken>,
    pub(super) wait_timeout: Duration,
    /// Until when to wait for others.
    pub(super) deadline: Instant,
    /// Until when a call may begin: whoever asked for it waits no longer.
    pub(super) begin_by: Instant,
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
    /// It cannot be said which, on account of this.
    Ambiguous(&'static str),
    Nothing,
}

/// How long after an early refresh that was in vain the next one is tried, unless the server says.
const EARLY_PAUSE: Duration = Duration::from_secs(1);

const SEVERAL_REALMS: &str =
    "the account has tokens of several realms: name one with `AccessTokenQuery::realm`";
const SEVERAL_ISSUERS: &str = "the environment has several users of this id, told apart by their issuer: take the \
                               account from `accounts`, or name it with `Account::with_issuer`";

/// A refresh token to try.
struct Candidate {
    token: RefreshToken,
    name: CredentialName,
    /// The realm to keep the tokens under, if nothing else names one.
    realm: Option<String>,
    mark: TokenMark,
    /// Whether the row is this client's: another client's token may be rejected for being another
    /// client's.
    is_own: bool,
}

/// What is known in this flight, whichever lock it holds.
struct Heard {
    /// Refresh tokens that must not be sent any more.
    spent: Vec<Secret>,
    /// Why the user must sign in, if nothing else is left.
    error: AcquireError,
}

/// What came of a turn.
enum Taken {
    Landed(Landing),
    /// Under the lock it turned out that another refresh token, with another lock, is the one to use.
    Elsewhere(Box<Candidate>),
}

type Leader = Lead<FlightKey, Landing>;

/// The access token of an answer, as the cache has it.
struct Came {
    token: AccessToken,
    is_fresh: bool,
}

impl Came {
    /// Whether the cache had this very token before, until then.
    fn is_no_better_than(&self, known_until: Option<i64>) -> bool {
        known_until.is_some_and(|until| !self.is_fresh || self.token.expires_on_seconds() <= until)
    }
}

/// What came of looking at an answer.
enum Kept {
    Landed(Landing),
    /// The session that it belongs to has ended, or it is about another user: another token may do.
    Another,
}

impl Job {
    /// Does the job and lands the flight.
    pub(super) fn run<C: Call>(&self, mut call: C, lead: Leader) {
        let mut turn = None;
        let landing =
            self.fly(&mut call, &lead, &mut turn).unwrap_or_else(|error| self.failed(error, turn.as_ref()));
        if self.is_early {
            self.pause_after(&landing);
        }
        // What could not be saved is tried again when nobody waits for it any more.
        let unsaved = turn.filter(|(turn, _)| !turn.unsaved().is_empty());
        lead.land(landing);
        if let Some((mut turn, name)) = unsaved {
            turn.save_leftover(&self.tokens);
            turn.save_later(&self.tokens, &self.desk, &name);
        }
    }

    /// After an early refresh that was in vain the next one is not tried at once.
    fn pause_after(&self, landing: &Landing) {
        let (pause, failure) = match landing {
            Landing::Acquired(acquired) => match acquired.failure() {
                Some(failure) => (failure.retry_after(), Some(failure.clone())),
                None => return,
            },
            Landing::Busy => (None, None),
            Landing::Failed { error, .. } => (error.retry_after(), Some(error.clone())),
        };
        self.desk.pause_early(&self.request, pause.unwrap_or(EARLY_PAUSE), failure);
    }

    fn failed(&self, error: AcquireError, turn: Option<&(Turn, CredentialName)>) -> Landing {
        let none = Unsaved::default();
        let unsaved = turn.map_or(&none, |(turn, _)| turn.unsaved());
        let leftover = |cache: &TokenCache| {
            // A service that asks for claims takes no token of before.
            let wanted = self.claims.is_none().then_some(&self.query)?;
            cache.find_living_access_token(wanted, Life::Extended, self.refused().as_ref())
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
        if let Some(token) = self.refused.as_ref().filter(|token| token.is_endless()) {
            // It was taken to live for ever; the service says that it does not.
            self.tokens.update(|cache| Ok(cache.remove_access_token(token)))?;
        }
        let error = AcquireError::sign_in(SignInReason::NoRefreshToken);
        let mut heard = Heard { spent: Vec::new(), error };
        let mut look = self.look(&Unsaved::default(), &heard)?;
        loop {
            let name = match look {
                Look::Fresh(token) => return Ok(Landing::Acquired(Acquired::from_cache(token))),
                Look::Nothing => return Err(heard.error),
                Look::Ambiguous(what) => return Err(AcquireError::Ambiguous { what }),
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
                Look::Nothing => return Err(heard.error.clone()),
                Look::Ambiguous(what) => return Err(AcquireError::Ambiguous { what }),
                Look::Send(candidate) if candidate.name != *name => return Ok(Taken::Elsewhere(candidate)),
                Look::Send(candidate) => candidate,
            };
            if !self.tries_now {
                if let Some(retry_after) = turn.back_off(&candidate.mark) {
                    return Err(AcquireError::Unavailable { retry_after, cause: None });
                }
                match turn.refusal(&self.request, &candidate.mark) {
                    // Another token may do.
                    Some((left, verdict @ (Verdict::Rejected(_) | Verdict::OtherUser))) => {
                        heard.error = verdict.clone().into_error(left);
                        heard.spent.push(candidate.token.secret());
                        continue;
                    }
                    Some((left, verdict)) => return Err(verdict.clone().into_error(left)),
                    None => {}
                }
            }
            turn.begin_use();
            let Some(called) = self.call(call, lead, &candidate) else {
                return Err(Place::of(&self.tokens, name).timed_out(self.wait_timeout));
            };
            // A child that was forked in the call has not got the lock.
            turn.check_process()?;
            let reason = match called {
                Called::Answered(Ok(answer)) => match self.keep(*answer, &candidate, turn, heard)? {
                    Ok(Kept::Landed(landing)) => return Ok(Taken::Landed(landing)),
                    Ok(Kept::Another) => {
                        turn.end_use();
                        continue;
                    }
                    Err(reason) => reason,
                },
                Called::Answered(Err(RefreshFailure(reason))) => reason,
                #[cfg(feature = "tokio")]
                Called::TimedOut => {
                    turn.failed(None, &candidate.mark);
                    return Err(AcquireError::CallTimedOut { waited: self.call_timeout });
                }
                Called::Lost(why) => {
                    Reason::Transient { retry_after: None, cause: Cause(Arc::from(Box::from(why))) }
                }
            };
            self.failed_call(reason, *candidate, turn, heard)?;
            turn.end_use();
        }
    }

    /// Remembers why a call brought no tokens. `Ok`: another refresh token may do.
    fn failed_call(
        &self,
        reason: Reason,
        sent: Candidate,
        turn: &mut Turn,
        heard: &mut Heard,
    ) -> Result<(), AcquireError> {
        // What is noted is noted of the token that would be sent next: this one, or one that came with the
        // error.
        let mark = self.sent_next(turn, heard).unwrap_or_else(|| sent.mark.clone());
        match reason {
            Reason::Transient { retry_after, cause } => {
                let retry_after = turn.failed(retry_after, &mark);
                Err(AcquireError::Unavailable { retry_after, cause: Some(FailedCall(cause)) })
            }
            Reason::Unexplained { status, retry_after } => {
                turn.answered();
                let verdict = Verdict::Unexplained(status);
                let retry_after = turn.refused(&self.request, &mark, verdict, retry_after);
                let cause = Cause(Arc::from(Box::from(format!("status {status}"))));
                Err(AcquireError::Unavailable { retry_after, cause: Some(FailedCall(cause)) })
            }
            Reason::Refused { error } => {
                turn.answered();
                turn.refused(&self.request, &mark, Verdict::Refused(error.clone()), None);
                Err(AcquireError::Refused { error })
            }
            Reason::Rejected(rejection) => {
                turn.answered();
                self.rejected(sent, &mark, rejection, turn, heard);
                Ok(())
            }
        }
    }

    /// Makes the call; `None` if it is too late for that.
    fn call<C: Call>(&self, call: &mut C, lead: &Leader, sent: &Candidate) -> Option<Called> {
        let environment = sent.token.environment();
        let request = RefreshCall {
            refresh_token: sent.token.secret(),
            client_id: self.query.client_id.clone(),
            environment: environment.to_owned(),
            realm: sent.realm.clone(),
            scopes: self.query.scopes.clone(),
            claims: self.claims.clone(),
            token_endpoint: self
                .token_endpoint
                .clone()
                .or_else(|| token_endpoint_of(environment, sent.realm.as_deref()?)),
            began: SystemTime::now(),
            has_sent_scopes: AtomicBool::new(false),
        };
        if !lead.call_begins(C::CAN_BE_GIVEN_UP, self.begin_by) {
            return None;
        }
        let began = request.began;
        let called = catch_unwind(AssertUnwindSafe(|| call.call(request, self.call_timeout)));
        lead.call_ended();
        Some(match called {
            Ok(Called::Answered(Ok(mut answer))) => {
                answer.received_at.get_or_insert(began);
                Called::Answered(Ok(answer))
            }
            Ok(called) => called,
            // What a panic says may be anything, a secret too.
            Err(_) => Called::Lost("the call panicked"),
        })
    }

    /// Saves the tokens that came, and only then gives them out. The inner error: it was an error after
    /// all.
    fn keep(
        &self,
        answer: TokenResponse,
        sent: &Candidate,
        turn: &mut Turn,
        heard: &mut Heard,
    ) -> Result<Result<Kept, Reason>, AcquireError> {
        let answer = self.completed(answer, sent);
        if let Some(error) = ErrorResponse::in_success(&answer.body) {
            self.keep_refresh_token(&answer, turn)?;
            return Ok(Err(RefreshFailure::classified(200, error).0));
        }
        // Before it is saved, as far as it can be told from what is in memory.
        let access_token = answer.access_token();
        let owner = sent.token.home_account_id().unwrap_or_default();
        let known_until = |cache: &TokenCache| cache.expiry_of_access_token(owner, access_token.as_ref()?);
        let (taken, known_until) = self.tokens.read_in_memory(|cache| {
            overlaid(cache, [turn.unsaved()], |cache| (cache.fork().add(&answer), known_until(cache)))
        })?;
        let has_expired = match taken {
            Ok(added) => added.has_expired(),
            Err(CacheError::OtherAccount) => {
                turn.answered();
                turn.refused(&self.request, &sent.mark, Verdict::OtherUser, None);
                heard.spent.push(sent.token.secret());
                heard.error = AcquireError::sign_in(SignInReason::OtherUser);
                return Ok(Ok(Kept::Another));
            }
            Err(error) => {
                // The server said yes, and what it sent is no token response. Whatever refresh token is in
                // it is the one that works from now on.
                self.keep_refresh_token(&answer, turn)?;
                return Ok(Err(RefreshFailure::transient(error).0));
            }
        };
        let of_sign_in = || sent.token.scopes().collect::<Vec<_>>().join(" ");
        let granted = answer.granted().unwrap_or_else(of_sign_in);
        let answer = Arc::new(answer);
        self.renew(&answer, sent, turn)?;
        let found = |cache: &TokenCache| {
            let came = access_token.as_ref()?;
            let came = cache.find_this_access_token(&self.query, came)?;
            let fresh = cache.find_living_access_token(&self.query, Life::Fresh, None);
            let is_fresh = fresh.is_some_and(|fresh| fresh.secret() == came.secret());
            Some(Came { token: came, is_fresh })
        };
        let (is_ours, came) =
            self.read_even_if_unreadable(turn, |cache| (cache.awaits(&answer), found(cache)))?;
        if !is_ours {
            heard.spent.push(sent.token.secret());
            heard.error = AcquireError::sign_in(SignInReason::SignedOut);
            return Ok(Ok(Kept::Another));
        }
        let verdict = match (&access_token, came) {
            (None, _) => Verdict::NoAccessToken,
            (Some(_), _) if has_expired => Verdict::Expired,
            (Some(_), _) if access_token == self.refused() => Verdict::SameToken,
            (Some(_), None) => Verdict::NotGranted(granted),
            // The same token once more is of use only if it lasts longer now.
            (Some(_), Some(came)) if came.is_no_better_than(known_until) => Verdict::SameToken,
            (Some(_), Some(Came { token, .. })) => {
                turn.granted(&self.request);
                return Ok(Ok(Kept::Landed(served(token, Origin::Refreshed, turn))));
            }
        };
        // The same request would only bring the same again.
        turn.answered();
        let mark = self.sent_next(turn, heard).unwrap_or_else(|| sent.mark.clone());
        let left = turn.refused(&self.request, &mark, verdict.clone(), None);
        Err(verdict.into_error(left))
    }

    /// Saves the refresh token of an answer whose other tokens are of no use.
    fn keep_refresh_token(&self, answer: &TokenResponse, turn: &mut Turn) -> Result<(), AcquireError> {
        if let Some(rest) = answer.refresh_token_only()
            && self.tokens.read_in_memory(|cache| cache.fork().add(&rest).is_ok())?
        {
            turn.renew(Arc::new(rest), &self.tokens);
        }
        Ok(())
    }

    /// Saves an answer. What was known of the refresh token that was sent is known of the one that came.
    fn renew(
        &self,
        answer: &Arc<TokenResponse>,
        sent: &Candidate,
        turn: &mut Turn,
    ) -> Result<(), AcquireError> {
        turn.renew(Arc::clone(answer), &self.tokens);
        let owner = sent.token.home_account_id().unwrap_or_default();
        let came = answer.body.secret_of("refresh_token").ok().flatten();
        let mark = self.read_even_if_unreadable(turn, |cache| {
            let account = Account::new(owner, sent.token.environment());
            let wanted = refresh_token_query(&self.query, &account, self.family_id.as_deref());
            let rows = cache.find_refresh_tokens(&wanted).into_iter();
            let mut of_row =
                rows.filter(|row| came.as_ref() == Some(&row.secret())).map(|row| TokenMark::of(&row));
            of_row.find(|mark| mark.is_of_row(&sent.mark))
        })?;
        if let Some(mark) = mark {
            turn.rotated(&sent.mark, &mark);
        }
        Ok(())
    }

    /// Looks at the cache with what is not saved yet. If the file cannot be read, nothing was saved, and
    /// what the server has just given is good.
    fn read_even_if_unreadable<T>(
        &self,
        turn: &Turn,
        look: impl Fn(&TokenCache) -> T,
    ) -> Result<T, AcquireError> {
        Ok(match self.read(turn.unsaved(), &look) {
            Ok(found) => found,
            Err(_) => self.tokens.read_in_memory(|cache| overlaid(cache, [turn.unsaved()], look))?,
        })
    }

    fn refused(&self) -> Option<Secret> {
        self.refused.as_ref().map(AccessToken::secret)
    }

    /// The refresh token that would be sent next.
    fn sent_next(&self, turn: &Turn, heard: &Heard) -> Option<TokenMark> {
        match self.look(turn.unsaved(), heard).ok()? {
            Look::Send(next) => Some(next.mark),
            Look::Fresh(_) | Look::Ambiguous(_) | Look::Nothing => None,
        }
    }

    /// Fills in what the answer to a refresh need not say.
    fn completed(&self, mut answer: TokenResponse, sent: &Candidate) -> TokenResponse {
        let Candidate { token, realm, .. } = sent;
        answer.sent_refresh_token = Some(token.secret());
        answer.client_id.get_or_insert_with(|| self.query.client_id.clone());
        // Whatever the answer calls them: they belong where the token came from that was sent.
        answer.environment = Some(token.environment().to_owned());
        answer.home_account_id = token.home_account_id().map(str::to_owned);
        answer.grant_type.get_or_insert_with(|| "refresh_token".to_owned());
        answer.expected_realm.clone_from(realm);
        answer.named_ext_cache_key.clone_from(&self.query.ext_cache_key);
        match &self.query.key_id {
            Some(key_id) if answer.key_id().is_none() => answer.parameter("key_id", key_id),
            _ => answer,
        }
    }

    /// The server does not take this refresh token, or asks for the user.
    fn rejected(
        &self,
        sent: Candidate,
        mark: &TokenMark,
        rejection: Rejection,
        turn: &mut Turn,
        heard: &mut Heard,
    ) {
        heard.spent.push(sent.token.secret());
        heard.error = rejection.clone().into();
        if rejection.ends_token && sent.is_own {
            // Only where this very token stands: a newer one may have come meanwhile.
            turn.retire(sent.token, &self.tokens);
        } else {
            turn.refused(&self.request, mark, Verdict::Rejected(rejection), None);
        }
    }

    /// What the cache has, with what is not saved yet.
    fn look(&self, unsaved: &Unsaved, heard: &Heard) -> Result<Look, AcquireError> {
        let looked = self.read(unsaved, |cache| {
            let fresh = cache.find_living_access_token(&self.query, Life::Fresh, self.refused().as_ref());
            // The claims are those of a service that takes no token of before.
            if let Some(token) = fresh.filter(|_| self.claims.is_none())
                && !(self.is_early && is_due(&token, &self.query))
            {
                return Look::Fresh(token);
            }
            if cache.has_several_issuers(&self.account) {
                return Look::Ambiguous(SEVERAL_ISSUERS);
            }
            let wanted = refresh_token_query(&self.query, &self.account, self.family_id.as_deref());
            let mut refresh_tokens = cache.find_refresh_tokens(&wanted);
            refresh_tokens.retain(|token| !heard.spent.contains(&token.secret()));
            let Some(first) = refresh_tokens.first().map(RefreshToken::secret) else { return Look::Nothing };
            // Clients of a family may hold one token: the client's own row is the one that it answers for.
            refresh_tokens.retain(|token| token.secret() == first);
            let own = refresh_tokens.iter().position(|token| token.client_id() == self.query.client_id);
            let token = refresh_tokens.swap_remove(own.unwrap_or(0));
            let realm = match &self.query.realm {
                Some(realm) => Some(realm.clone()),
                None => match cache.known_realm(&self.query.client_id, &self.account) {
                    Ok(realm) => realm,
                    Err(_several) => return Look::Ambiguous(SEVERAL_REALMS),
                },
            };
            let (name, mark) = (CredentialName::of(&token), TokenMark::of(&token));
            let is_own = token.client_id() == self.query.client_id;
            Look::Send(Box::new(Candidate { token, name, realm, mark, is_own }))
        });
        looked.map_err(|error| {
            // Somebody else is reading it, or the key store hangs.
            let is_late = error.is_key_unavailable() && deadline::left(self.deadline).is_zero();
            if is_late { self.timed_out() } else { error.into() }
        })
    }

    fn timed_out(&self) -> AcquireError {
        let wanted = refresh_token_query(&self.query, &self.account, self.family_id.as_deref());
        match self.tokens.read_in_memory(|cache| credential_name(cache, &wanted)) {
            Ok(name) => Place::of(&self.tokens, &name).timed_out(self.wait_timeout),
            Err(error) => error.into(),
        }
    }

    fn read<T>(&self, unsaved: &Unsaved, look: impl FnOnce(&TokenCache) -> T) -> Result<T, Error> {
        self.tokens.read_by(self.deadline, |cache| overlaid(cache, [unsaved], look))
    }
}

fn served(token: AccessToken, origin: Origin, turn: &Turn) -> Landing {
    Landing::Acquired(Acquired { token, origin, save_failure: turn.unsaved().failure(), failure: None })
}
