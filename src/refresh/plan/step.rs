//! What a plan and its driver tell each other.

use std::sync::Arc;

use super::credential::Credential;
use super::names::LeaseName;
use crate::cache::{AccessToken, TokenResponse};
use crate::persisted::Error;
use crate::refresh::call::Call;
use crate::refresh::error::AcquireError;
use crate::refresh::failure::RefreshFailure;
use crate::refresh::request::Acquired;

/// What a driver is to do next, and what it is to tell the plan then.
#[derive(Debug)]
pub(crate) enum Step {
    /// Remove this access token from the cache: `Plan::forgotten`.
    Forget(Box<AccessToken>),
    /// Read the cache: `Plan::read`, or `Plan::unreadable`.
    Read(Read),
    /// Give back the lease that is held, if any, and take this one: `Plan::leased`, or
    /// `Plan::not_leased`.
    Lease {
        name: LeaseName,
        /// Whether it is worth waiting for.
        waits: bool,
    },
    /// Make this call, and note beside the lease that it is in use: `Plan::answered`, or
    /// `Plan::give_up`.
    Call(Box<Call>),
    /// Save what is pending: `Plan::saved`.
    Save,
    /// Tell all who wait. The plan has ended.
    Finish(Outcome),
}

/// Which state of the cache to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Read {
    /// The newest.
    Newest,
    /// What is in memory, however old.
    InMemory,
    /// The newest, or what is in memory if that cannot be read.
    NewestOrInMemory,
    /// The newest, if it is in memory.
    IfCurrent,
}

/// How a plan ended.
#[derive(Debug, Clone)]
pub(crate) enum Outcome {
    Acquired(Acquired<Credential>),
    /// An early refresh was not tried, because somebody else has the lease.
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

/// What came of a call.
#[derive(Debug)]
pub(crate) enum Called {
    /// `None`: it succeeded, and there are no tokens to save.
    Answered(Result<Option<Box<TokenResponse>>, RefreshFailure>),
    /// It was given up at its deadline.
    #[cfg(feature = "tokio")]
    TimedOut,
    /// It never answered, and never will.
    Lost(&'static str),
}
