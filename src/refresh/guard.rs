//! A lock on a refresh token, for callers that load, request and save by themselves.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::driver::lease::Lease;
use super::driver::registry::Registry;
use super::driver::source::Source;
use super::error::{AcquireError, FailedCall, SignInReason};
use super::failure::{Reason, RefreshFailure};
use super::plan::look::SEVERAL_ISSUERS;
use super::plan::names::{RequestId, TokenMark, lease_name};
use super::plan::refusal::Verdict;
use crate::cache::{
    Account, Added, CacheError, ErrorResponse, RefreshToken, RefreshTokenQuery, TokenResponse,
};
use crate::deadline;
use crate::persisted::Error;

/// A lock on one refresh token, the first that its query finds. Until it is dropped, no other guard and no
/// [`acquire`](crate::PersistedTokenCache::acquire) uses that token, in any process that shares the cache.
///
/// It is not bound to a thread: it can be stored, sent to another thread and dropped there. If the process is
/// killed, the lock is released.
///
/// No guard is available during a back-off.
///
/// ```
/// # use std::sync::Arc;
/// # use tokenseal::{Account, PersistedTokenCache};
/// # use tokenseal::key_store::MemoryKeyStore;
/// # let directory = tempfile::tempdir()?;
/// # let cache = PersistedTokenCache::builder("contoso-cli")
/// #     .directory(directory.path().join("tokens"))
/// #     .key_store(Arc::new(MemoryKeyStore::new()))
/// #     .open()?;
/// use std::time::Duration;
/// use tokenseal::{RefreshTokenQuery, TokenResponse};
/// use tokenseal::refresh::RefreshFailure;
///
/// # fn post(_: &str) -> std::io::Result<(u16, String)> { Ok((200, String::new())) }
/// let account = Account::new("alice", "idp.example.com");
/// let wanted = RefreshTokenQuery::new("my-client", &account);
/// let mut guard = cache.refresh_guard(&wanted, Duration::from_secs(60))?;
/// if let Some(refresh_token) = guard.refresh_token() {
///     let form = format!("grant_type=refresh_token&refresh_token={}", refresh_token.expose());
///     match post(&form) {
///         Ok((200, body)) => match TokenResponse::from_json(body) {
///             Ok(response) => drop(guard.save(response)?),
///             Err(error) => return Err(guard.rejected(error.into()).into()),
///         },
///         Ok((status, body)) => return Err(guard.rejected(RefreshFailure::from_error_response(status, body)).into()),
///         Err(error) => return Err(guard.rejected(RefreshFailure::transient(error)).into()),
///     }
/// }
/// drop(guard);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[must_use = "dropping the guard lets others use the refresh token"]
pub struct RefreshGuard {
    lease: Lease,
    source: Source,
    registry: Arc<Registry>,
    request: RequestId,
    query: RefreshTokenQuery,
    token: Option<RefreshToken>,
}

/// How often somebody who waits looks whether it is still wanted.
const SLICE: Duration = Duration::from_millis(250);

impl RefreshGuard {
    /// Waits for the guard for as long as it `is_wanted`.
    pub(super) fn wait(
        source: &Source,
        registry: &Arc<Registry>,
        query: &RefreshTokenQuery,
        within: Duration,
        is_wanted: impl Fn() -> bool,
    ) -> Result<Self, AcquireError> {
        source.check_not_in_hand()?;
        let deadline = deadline::after(within);
        let look = || {
            let looked = source.read_by(deadline, |cache| {
                let is_ambiguous = cache.has_several_issuers(&query.account);
                (!is_ambiguous).then(|| (lease_name(cache, query), cache.find_refresh_token(query)))
            });
            looked?.ok_or(AcquireError::Ambiguous { what: SEVERAL_ISSUERS })
        };
        let (mut expected, _) = look()?;
        loop {
            let slice = deadline.min(deadline::after(SLICE));
            let mut lease = match registry.lease(source, &expected, within, slice) {
                Err(AcquireError::WaitTimedOut { .. })
                    if !deadline::left(deadline).is_zero() && is_wanted() =>
                {
                    continue;
                }
                lease => lease?,
            };
            lease.save(source);
            if lease.held.pending.has_renewed_tokens()
                && let Some(source) = lease.held.pending.failure()
            {
                return Err(AcquireError::NotSaved { source });
            }
            let (name, token) = look()?;
            if name != expected {
                // Somebody else's sign-in or refresh brought another token while this waited.
                expected = name;
                continue;
            }
            let (request, now) = (RequestId::of_guard(query), SystemTime::now());
            if let Some(mark) = token.as_ref().map(TokenMark::of) {
                if let Some(retry_after) = lease.held.back_off(&mark, now) {
                    return Err(AcquireError::Unavailable { retry_after, cause: None });
                }
                if let Some((left, verdict)) = lease.held.refusal(&request, &mark, now) {
                    return Err(verdict.clone().into_error(left));
                }
            }
            lease.begin_use();
            let (source, registry, query) = (source.clone(), Arc::clone(registry), query.clone());
            return Ok(Self { lease, source, registry, request, query, token });
        }
    }

    /// The refresh token to send; `None` if the cache has none.
    pub fn refresh_token(&self) -> Option<&RefreshToken> {
        self.token.as_ref()
    }

    /// Saves what the server answered to [`refresh_token`](Self::refresh_token). On disk, sealed, before
    /// this returns. The account, the environment and the client are those of that token; name the realm
    /// if the account has tokens of several.
    ///
    /// # Errors
    /// [`AcquireError`] if the response is not a token response, or an error in spite of its status: that is
    /// remembered, as [`rejected`](Self::rejected) does, and a refresh token that it holds is saved all the
    /// same. [`AcquireError::SignInRequired`] if it is another user's; nothing of it is kept.
    /// [`AcquireError::NotSaved`] if the disk did not take it: it is kept in memory and saved later, and
    /// nobody sends the old token meanwhile.
    pub fn save(&mut self, response: TokenResponse) -> Result<Added, AcquireError> {
        self.lease.check_process()?;
        let mut answer = response;
        if let Some(sent) = &self.token {
            answer.sent_refresh_token = Some(sent.secret());
            answer.environment = Some(sent.environment().to_owned());
            answer.home_account_id = sent.home_account_id().map(str::to_owned);
            answer.client_id.get_or_insert_with(|| self.query.client_id.clone());
        }
        let added = match self.source.read_in_memory(|cache| cache.fork().add(&answer))? {
            Err(error) if self.token.is_none() => return Err(Error::from(error).into()),
            Err(CacheError::OtherAccount) => {
                let mark = self.mark();
                self.lease.held.answered();
                let verdict = Verdict::OtherUser;
                self.lease.held.refused(&self.request, &mark, verdict, None, SystemTime::now());
                return Err(AcquireError::sign_in(SignInReason::OtherUser));
            }
            added => added,
        };
        match added {
            Ok(added) => {
                self.keep(answer)?;
                self.lease.held.granted(&self.request);
                Ok(added)
            }
            // It is no answer with tokens; the refresh token that it may hold is the one that works from now on.
            Err(error) => {
                let failure = match ErrorResponse::in_success(&answer.body) {
                    Some(error) => RefreshFailure::classified(200, error),
                    None => RefreshFailure::transient(error),
                };
                if let Some(rest) = answer.refresh_token_only() {
                    self.keep(rest)?;
                }
                Err(self.rejected(failure))
            }
        }
    }

    /// Saves an answer, and has the refresh token that came in hand.
    fn keep(&mut self, answer: TokenResponse) -> Result<(), AcquireError> {
        let Some(sent) = self.token.take() else {
            self.source.update(|cache| cache.add(&answer))?;
            return Ok(());
        };
        let is_spent = answer.rotates();
        self.lease.held.pending.renew(Arc::new(answer));
        self.lease.save(&self.source);
        if let Some(source) = self.lease.held.pending.failure() {
            self.lease.save_later(&self.source, &self.registry);
            self.token = Some(sent).filter(|_| !is_spent);
            return Err(AcquireError::NotSaved { source });
        }
        let account = Account::new(sent.home_account_id().unwrap_or_default(), sent.environment());
        let account = Account { issuer: sent.issuer.clone(), ..account };
        let wanted = RefreshTokenQuery { account, ..self.query.clone() };
        self.token = self.source.read(|cache| cache.find_refresh_token(&wanted))?;
        if let Some(to) = self.token.as_ref().map(TokenMark::of) {
            self.lease.held.rotated(&TokenMark::of(&sent), &to);
        }
        Ok(())
    }

    fn mark(&self) -> TokenMark {
        self.token.as_ref().map_or_else(TokenMark::none, TokenMark::of)
    }

    /// Remembers that the server gave no tokens for [`refresh_token`](Self::refresh_token), for all
    /// processes: one that is surely dead is removed, and nobody asks again before the back-off is over.
    /// Returns what to tell the caller.
    pub fn rejected(&mut self, failure: RefreshFailure) -> AcquireError {
        if let Err(error) = self.lease.check_process() {
            return error;
        }
        let now = SystemTime::now();
        let mark = self.mark();
        match failure.0 {
            Reason::Transient { retry_after, cause } => {
                let retry_after = self.lease.held.failed(retry_after, &mark, now);
                AcquireError::Unavailable { retry_after, cause: Some(FailedCall(cause)) }
            }
            Reason::Unexplained { retry_after, .. } => {
                // Which request it was is not known here.
                let retry_after = self.lease.held.failed(retry_after, &mark, now);
                AcquireError::Unavailable { retry_after, cause: None }
            }
            Reason::Refused { error } => {
                self.lease.held.answered();
                let verdict = Verdict::Refused(error);
                let left = self.lease.held.refused(&self.request, &mark, verdict.clone(), None, now);
                verdict.into_error(left)
            }
            Reason::Rejected(rejection) => {
                self.lease.held.answered();
                let own = self
                    .token
                    .take_if(|token| rejection.ends_token && token.client_id() == self.query.client_id);
                if let Some(token) = own {
                    self.lease.held.pending.retire(token);
                    self.lease.save(&self.source);
                } else {
                    let verdict = Verdict::Rejected(rejection.clone());
                    self.lease.held.refused(&self.request, &mark, verdict, None, now);
                }
                rejection.into()
            }
        }
    }

    /// Whether other processes are kept out. They are not where the cache is in memory only, or in a
    /// directory that cannot be written to.
    pub fn covers_other_processes(&self) -> bool {
        self.lease.covers_other_processes()
    }
}
