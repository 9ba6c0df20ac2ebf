//! One refresh at a time: among threads, tasks and processes.
//!
//! ```text
//! look into the cache ─ fresh ───────────────────────────────────────────────► the token
//!        │ stale
//! take a seat (flight): one caller of this process leads, the others wait
//!        │
//! take the turn (turn): one process at a time, by a lock file for each refresh token
//!        │
//! look again (engine) ─ somebody else refreshed it ──────────────────────────► the token
//!        │ still stale
//! call ─ rejected: retire that token, look again
//!      ─ transient: back off, noted beside the lock (note) for all processes
//!        │ tokens
//! save; what cannot be saved is kept (unsaved), and so is the lock ──────────► the token
//! ```
//!
//! The lock on the cache file is taken for the save only, never across the call.

mod acquired;
mod attempt;
mod back_off;
mod call;
mod desk;
mod engine;
mod error;
mod failure;
mod flight;
mod freshness;
mod guard;
mod identity;
mod landing;
#[cfg(all(test, tokenseal_model))]
mod model;
mod note;
mod request;
mod shared;
#[cfg(feature = "tokio")]
mod task;
mod tokens;
mod turn;
mod unsaved;

use std::sync::Arc;
use std::time::Duration;

pub use acquired::{Acquired, Origin};
pub use error::{AcquireError, FailedCall, SignInReason};
pub use failure::RefreshFailure;
pub use guard::RefreshGuard;
pub use request::AcquireRequest;
pub use shared::SharedTokenCache;

use crate::cache::{RefreshTokenQuery, TokenResponse};
use crate::persisted::PersistedTokenCache;
use crate::secret::Secret;
use attempt::{Attempt, Found, Step};
use call::Blocking;
use desk::Desk;
use tokens::Tokens;

impl PersistedTokenCache {
    /// Gives an access token that is valid, and refreshes it if it must: at once from the cache if
    /// there is a fresh one, and otherwise by one call among all threads, tasks and processes that
    /// share the cache. Whoever else wants the same meanwhile waits and takes what comes of it.
    ///
    /// `call` sends the refresh token that it is given to the token endpoint (RFC 6749 section 6) and
    /// says what came back. It runs on a thread of its own, without the cache's lock, and only for the
    /// one caller whose turn it is; if the server rejects a token and the cache has another, it is
    /// called again with that. What it returns need not name the client, the account or the scopes:
    /// they are those of the request. What came back is on disk before this returns. If this caller's
    /// time is over first, the call and its save still come to their end.
    ///
    /// A token that the server asked to be refreshed early (`refresh_in`) is refreshed by one caller,
    /// while all others keep the valid one.
    ///
    /// # Guarantee, and its limits
    /// No refresh token is sent twice by programs that use `acquire` or a
    /// [guard](Self::refresh_guard) on one cache on one machine, except
    /// - when a process is killed, or its power cut, between the server's answer and its save: the next
    ///   one sends the old token, and if the server takes that for theft, the user must sign in again;
    /// - when `call` says that it failed, or panics, although the server had answered: a connection that
    ///   breaks at the last moment looks like one that never was;
    /// - when a process ends by itself while a renewed token cannot be saved;
    /// - when an asynchronous call was given up at its deadline, or its runtime shut down, although the
    ///   server had answered;
    /// - where the directory cannot be written to: one refresh at a time then holds within a process
    ///   only, and what comes of it is in memory only.
    ///
    /// Programs that use the refresh tokens of the cache without either are not kept out, nor are
    /// copies of the cache on other machines.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use tokenseal::{Account, MemoryKeyStore, PersistedTokenCache};
    /// # let directory = tempfile::tempdir()?;
    /// # let cache = PersistedTokenCache::builder("contoso-cli")
    /// #     .directory(directory.path().join("tokens"))
    /// #     .key_store(Arc::new(MemoryKeyStore::new()))
    /// #     .open()?;
    /// use tokenseal::{AccessTokenQuery, RefreshFailure, Secret, TokenResponse};
    ///
    /// /// Sends a refresh token with any HTTP or OAuth client.
    /// fn refresh(refresh_token: Secret) -> Result<TokenResponse, RefreshFailure> {
    ///     # let post = |_: &str| Ok::<_, std::io::Error>((200, r#"{"access_token":"at","expires_in":3600}"#));
    ///     let form = format!("grant_type=refresh_token&client_id=my-client&refresh_token={}", refresh_token.expose());
    ///     let (status, body) = post(&form).map_err(RefreshFailure::transient)?;
    ///     if status != 200 {
    ///         return Err(RefreshFailure::from_error_response(status, body));
    ///     }
    ///     Ok(TokenResponse::from_json(body)?)
    /// }
    ///
    /// # let account = Account::new("alice", "idp.example.com");
    /// let wanted = AccessTokenQuery::new("my-client").account(&account).scopes(["orders.read"]);
    /// match cache.acquire(&wanted, refresh) {
    ///     Ok(acquired) => println!("a token of {} characters", acquired.token().expose().len()),
    ///     Err(error) if error.is_sign_in_required() => println!("sign in"),
    ///     Err(error) if error.is_transient() => println!("try again: {error}"),
    ///     Err(error) => return Err(error.into()),
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`AcquireError`] if the user must sign in again, the identity provider is out of reach and no
    /// valid token is left, a deadline passed, or the cache failed. Called inside a change of the same
    /// cache, it is an error at once.
    pub fn acquire<'a, F>(
        &self,
        request: impl Into<AcquireRequest<'a>>,
        call: F,
    ) -> Result<Acquired, AcquireError>
    where
        F: FnMut(Secret) -> Result<TokenResponse, RefreshFailure> + Send + 'static,
    {
        acquire(&Tokens::File(self.clone()), || Desk::of(self), request.into(), call)
    }

    /// Waits for the right to use the refresh token that `query` finds, for whoever loads, calls and
    /// saves by themselves.
    ///
    /// # Errors
    /// [`AcquireError`] if somebody else has the right for longer than `within`, the cache cannot be
    /// read, or a renewed refresh token is in memory only because it cannot be saved.
    pub fn refresh_guard(
        &self,
        query: &RefreshTokenQuery,
        within: Duration,
    ) -> Result<RefreshGuard, AcquireError> {
        RefreshGuard::wait(&Tokens::File(self.clone()), &Desk::of(self), query, within, || true)
    }
}

impl SharedTokenCache {
    /// Gives an access token that is valid, and refreshes it if it must, as
    /// [`PersistedTokenCache::acquire`] does: one call among all threads and tasks of this process.
    /// Nothing is saved, and other processes are not kept from using the same refresh token.
    ///
    /// # Errors
    /// [`AcquireError`] if the user must sign in again, the identity provider is out of reach and no
    /// valid token is left, or a deadline passed.
    pub fn acquire<'a, F>(
        &self,
        request: impl Into<AcquireRequest<'a>>,
        call: F,
    ) -> Result<Acquired, AcquireError>
    where
        F: FnMut(Secret) -> Result<TokenResponse, RefreshFailure> + Send + 'static,
    {
        acquire(&self.tokens, || Arc::clone(&self.desk), request.into(), call)
    }

    /// Waits for the right to use a refresh token, as [`PersistedTokenCache::refresh_guard`] does,
    /// within this process.
    ///
    /// # Errors
    /// [`AcquireError`] if somebody else has the right for longer than `within`.
    pub fn refresh_guard(
        &self,
        query: &RefreshTokenQuery,
        within: Duration,
    ) -> Result<RefreshGuard, AcquireError> {
        RefreshGuard::wait(&self.tokens, &self.desk, query, within, || true)
    }
}

fn acquire<F>(
    tokens: &Tokens,
    desk: impl FnOnce() -> Arc<Desk>,
    request: AcquireRequest<'_>,
    call: F,
) -> Result<Acquired, AcquireError>
where
    F: FnMut(Secret) -> Result<TokenResponse, RefreshFailure> + Send + 'static,
{
    let due = match attempt::look(tokens, &request)? {
        Found::Fresh(token) => return Ok(Acquired::from_cache(token)),
        Found::Due(token) => Some(token),
        Found::Nothing => None,
    };
    let mut attempt = Attempt::new(tokens, desk(), request, Blocking(call), due)?;
    loop {
        let flight = match attempt.board() {
            Step::Done(result) => return result,
            Step::Wait(flight) => flight,
        };
        if let Some(result) = attempt.judge(flight.wait(attempt.patience())) {
            return result;
        }
    }
}
