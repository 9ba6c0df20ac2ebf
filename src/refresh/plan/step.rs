//! The messages between a plan and its driver.

use std::sync::Arc;

use super::credential::Credential;
use super::names::LeaseName;
use crate::cache::{AccessToken, TokenResponse};
use crate::persisted::Error;
use crate::refresh::call::Call;
use crate::refresh::error::AcquireError;
use crate::refresh::failure::RefreshFailure;
use crate::refresh::request::Acquired;

/// The next step for a driver, and the method of the plan that takes its outcome.
#[derive(Debug)]
pub(crate) enum Step {
    /// Remove this access token from the cache: `Plan::forgotten`.
    Forget(Box<AccessToken>),
    /// Read the cache: `Plan::read`, or `Plan::unreadable`.
    Read(Read),
    /// Release the lease that is held, if any, and take this one: `Plan::leased`, or
    /// `Plan::not_leased`.
    Lease {
        name: LeaseName,
        /// Whether it is worth waiting for.
        waits: bool,
    },
    /// Make this call, and record beside the lease that it is in use: `Plan::answered`, or
    /// `Plan::give_up`.
    Call(Box<Call>),
    /// Save what is pending: `Plan::saved`.
    Save,
    /// Publish the outcome to all waiting callers. The plan has ended.
    Finish(Outcome),
}

/// Which state of the cache to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Read {
    /// The newest.
    Newest,
    /// The state in memory, however old.
    InMemory,
    /// The newest, or the one in memory if that cannot be read.
    NewestOrInMemory,
    /// The newest, only if it is in memory.
    IfCurrent,
}

/// How a plan ended.
#[derive(Debug, Clone)]
pub(crate) enum Outcome {
    Acquired(Acquired<Credential>),
    /// An early refresh was skipped, because the lease is taken.
    Busy,
    /// `leftover` is the best token there is, valid or within its extended lifetime.
    Failed {
        error: AcquireError,
        leftover: Option<Leftover>,
    },
}

/// A token to serve when there is no better one.
#[derive(Debug, Clone)]
pub(crate) struct Leftover {
    pub(crate) token: Credential,
    /// Why it may not be saved.
    pub(crate) save_failure: Option<Arc<Error>>,
}

/// The outcome of a call.
#[derive(Debug)]
pub(crate) enum Called {
    /// `Ok(None)`: it succeeded without tokens to save.
    Answered(Result<Option<Box<TokenResponse>>, RefreshFailure>),
    /// It was abandoned at its deadline.
    #[cfg(feature = "tokio")]
    TimedOut,
    /// It ended without an answer.
    Lost(&'static str),
}
