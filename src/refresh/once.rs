//! Work that must be done once, under a name: its terms, and the lookup of its result.

use std::sync::Arc;
use std::time::Duration;

use super::driver::registry::Registry;
use super::driver::source::Source;
use super::error::AcquireError;
use super::plan::credential::{Once, Purpose};
use super::plan::pending::overlaid;
use super::request::AcquireRequest;
use crate::cache::{AccessTokenQuery, TokenCache};

/// The default time to wait: a user may be signing in.
const TIMEOUT: Duration = Duration::from_secs(5 * 60);

/// The name and the terms of work that must be done once. A plain `&str` converts to one with the default
/// terms.
///
/// ```
/// use std::time::Duration;
/// use tokenseal::refresh::OnceRequest;
///
/// let request = OnceRequest::new("sign-in my-client").wait_timeout(Duration::from_secs(60));
/// # let _ = request;
/// ```
#[derive(Debug, Clone, Copy)]
#[must_use]
pub struct OnceRequest<'a> {
    name: &'a str,
    wait_timeout: Duration,
    call_timeout: Duration,
    tries_now: bool,
}

impl<'a> OnceRequest<'a> {
    /// Names the work: callers with the same name share one run. Only a hash of the name is stored.
    pub fn new(name: &'a str) -> Self {
        Self { name, wait_timeout: TIMEOUT, call_timeout: TIMEOUT, tries_now: false }
    }

    /// How long to wait for another caller's run: 5 minutes by default.
    pub fn wait_timeout(mut self, timeout: Duration) -> Self {
        self.wait_timeout = timeout;
        self
    }

    /// How long the work may take: 5 minutes by default. An asynchronous one is dropped then. A blocking one
    /// cannot be: its caller gets an error, and other callers wait until it returns.
    pub fn call_timeout(mut self, timeout: Duration) -> Self {
        self.call_timeout = timeout;
        self
    }

    /// Ignores back-offs and remembered refusals: for a user who says "try again". Never use it in a loop.
    pub fn try_now(mut self) -> Self {
        self.tries_now = true;
        self
    }

    /// The query of a request without a token.
    pub(super) fn query() -> AccessTokenQuery {
        AccessTokenQuery::for_application(String::new()).any_scope()
    }

    pub(super) fn on(self, query: &AccessTokenQuery) -> AcquireRequest<'_> {
        let request =
            AcquireRequest::new(query).wait_timeout(self.wait_timeout).call_timeout(self.call_timeout);
        if self.tries_now { request.try_now() } else { request }
    }
}

impl<'a> From<&'a str> for OnceRequest<'a> {
    fn from(name: &'a str) -> Self {
        Self::new(name)
    }
}

type Look<T> = dyn Fn(&TokenCache) -> Option<T> + Send + Sync;

/// The lookup of the result.
pub(super) struct Search<T>(Arc<Look<T>>);

impl<T: 'static> Search<T> {
    pub(super) fn new(look: impl Fn(&TokenCache) -> Option<T> + Send + Sync + 'static) -> Self {
        Self(Arc::new(look))
    }

    pub(super) fn purpose(&self, request: OnceRequest<'_>) -> Purpose {
        let look = Arc::clone(&self.0);
        let is_done = Arc::new(move |cache: &TokenCache| look(cache).is_some());
        Purpose::Once(Once { name: request.name.to_owned(), is_done })
    }

    /// Looks up the result, saved or not.
    pub(super) fn result(&self, source: &Source, registry: &Registry) -> Result<T, AcquireError> {
        let pending = registry.pending();
        let found = source.read_in_memory(|cache| overlaid(cache, &pending, |cache| (self.0)(cache)))?;
        found.ok_or(AcquireError::NotDone)
    }
}
