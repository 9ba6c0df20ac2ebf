//! A token endpoint in memory that rotates refresh tokens and takes a second use for theft.

use std::collections::HashSet;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use tokenseal::{
    AccessTokenQuery, PersistedTokenCache, TokenCache, TokenResponse,
    refresh::{RefreshCall, RefreshFailure},
};

use super::{CLIENT, ENVIRONMENT, account};

#[derive(Default)]
pub(crate) struct Rotating {
    state: Mutex<State>,
    /// Signalled whenever a call begins, or may go on.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    calls: usize,
    running: usize,
    sent: Vec<String>,
    used: HashSet<String>,
    is_revoked: bool,
    is_held: bool,
    answers: Vec<Answer>,
    lifetime: Option<u32>,
}

/// What to answer the next call with, instead of tokens.
pub(crate) type Answer = Box<dyn FnOnce() -> Result<TokenResponse, RefreshFailure> + Send>;

impl Rotating {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Answers one call in this way.
    pub(crate) fn next(
        &self,
        answer: impl FnOnce() -> Result<TokenResponse, RefreshFailure> + Send + 'static,
    ) {
        self.state.lock().unwrap().answers.push(Box::new(answer));
    }

    pub(crate) fn next_fails(&self, failure: RefreshFailure) {
        self.next(move || Err(failure));
    }

    pub(crate) fn set_lifetime(&self, seconds: u32) {
        self.state.lock().unwrap().lifetime = Some(seconds);
    }

    /// Lets calls wait until [`let_go`](Self::let_go).
    pub(crate) fn hold(&self) {
        self.state.lock().unwrap().is_held = true;
    }

    pub(crate) fn let_go(&self) {
        self.state.lock().unwrap().is_held = false;
        self.changed.notify_all();
    }

    /// Waits until so many calls have begun.
    pub(crate) fn wait_for_calls(&self, calls: usize) {
        let state = self.state.lock().unwrap();
        let waited =
            self.changed.wait_timeout_while(state, Duration::from_secs(20), |state| state.calls < calls);
        assert!(waited.unwrap().0.calls >= calls, "no call came");
    }

    pub(crate) fn wait_until_idle(&self) {
        let state = self.state.lock().unwrap();
        let waited =
            self.changed.wait_timeout_while(state, Duration::from_secs(20), |state| state.running > 0);
        assert_eq!(waited.unwrap().0.running, 0, "a call never ended");
    }

    pub(crate) fn calls(&self) -> usize {
        self.state.lock().unwrap().calls
    }

    /// The refresh tokens that were sent, in order.
    pub(crate) fn sent(&self) -> Vec<String> {
        self.state.lock().unwrap().sent.clone()
    }

    /// Whether a refresh token was sent twice.
    pub(crate) fn is_revoked(&self) -> bool {
        self.state.lock().unwrap().is_revoked
    }

    /// The function to hand to `acquire`.
    pub(crate) fn call(
        self: &Arc<Self>,
    ) -> impl FnMut(RefreshCall) -> Result<TokenResponse, RefreshFailure> + Send + 'static {
        let provider = Arc::clone(self);
        move |call| provider.refresh(&call)
    }

    /// Answers a request for the scopes of `call`.
    pub(crate) fn refresh(&self, call: &RefreshCall) -> Result<TokenResponse, RefreshFailure> {
        let answer = self.refresh_with(call.refresh_token().expose())?;
        Ok(answer.requested_scopes(call.scopes()))
    }

    pub(crate) fn refresh_with(&self, refresh_token: &str) -> Result<TokenResponse, RefreshFailure> {
        let mut state = self.state.lock().unwrap();
        state.calls += 1;
        state.running += 1;
        state.sent.push(refresh_token.to_owned());
        self.changed.notify_all();
        let mut state = self.changed.wait_while(state, |state| state.is_held).unwrap();
        let answer = if state.answers.is_empty() { None } else { Some(state.answers.remove(0)) };
        let result = match answer {
            Some(answer) => {
                drop(state);
                let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(answer));
                state = self.state.lock().unwrap();
                result
            }
            None => Ok(state.rotate(refresh_token)),
        };
        state.running -= 1;
        self.changed.notify_all();
        drop(state);
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl State {
    fn rotate(&mut self, refresh_token: &str) -> Result<TokenResponse, RefreshFailure> {
        if self.is_revoked || !self.used.insert(refresh_token.to_owned()) {
            self.is_revoked = true;
            return Err(RefreshFailure::rejected("invalid_grant"));
        }
        let (number, lifetime) = (self.calls, self.lifetime.unwrap_or(3600));
        Ok(TokenResponse::from_json(format!(
            r#"{{"access_token":"renewed-{number}","refresh_token":"rotated-{number}","expires_in":{lifetime}}}"#
        ))?)
    }
}

pub(crate) fn wanted(scope: &str) -> AccessTokenQuery {
    AccessTokenQuery::for_account(CLIENT, &account("alice")).scopes([scope])
}

/// A sign-in of alice whose access token has these further members.
pub(crate) fn signed_in(refresh_token: &str, scope: &str, further: &str) -> TokenResponse {
    let json = format!(r#"{{"access_token":"first-{scope}","refresh_token":"{refresh_token}"{further}}}"#);
    TokenResponse::from_json(json)
        .unwrap()
        .client_id(CLIENT)
        .environment(ENVIRONMENT)
        .realm("tenant")
        .home_account_id("alice")
        .requested_scopes([scope])
}

/// Signs alice in with an access token that has expired.
pub(crate) fn sign_in_expired(cache: &PersistedTokenCache) {
    cache.add(&signed_in("original", "read", r#","expires_in":0"#)).unwrap();
}

pub(crate) fn refresh_tokens(cache: &TokenCache) -> Vec<String> {
    cache.refresh_tokens().map(|token| token.expose().to_owned()).collect()
}

/// Lets every access token in the cache expire.
pub(crate) fn expire(cache: &PersistedTokenCache) {
    let expired = |json: &[u8]| {
        let mut json: serde_json::Value = serde_json::from_slice(json).unwrap();
        for row in json["AccessToken"].as_object_mut().unwrap().values_mut() {
            row["expires_on"] = "1".into();
            row["extended_expires_on"] = "1".into();
        }
        json.to_string()
    };
    cache
        .try_update(|tokens| {
            let json = expired(tokens.serialize().json().expose());
            tokens.deserialize(json)
        })
        .unwrap();
}

/// The refresh tokens on disk.
pub(crate) fn kept(cache: &PersistedTokenCache) -> Vec<String> {
    cache.read(refresh_tokens).unwrap()
}

/// A call that must not be made.
pub(crate) fn never() -> impl FnMut(RefreshCall) -> Result<TokenResponse, RefreshFailure> + Send + 'static {
    // A panic would count as a failed call, and some tests expect one.
    |_| {
        eprintln!("no call was to be made");
        std::process::abort()
    }
}
