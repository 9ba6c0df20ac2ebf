//! What comes of a flight, for all who waited for it.

use std::sync::Arc;

use super::acquired::Acquired;
use super::error::AcquireError;
use crate::cache::AccessToken;
use crate::persisted::Error;

/// How a flight ended.
#[derive(Debug, Clone)]
pub(super) enum Landing {
    Acquired(Acquired),
    /// An early refresh was not tried, because somebody else has the turn.
    Busy,
    /// `leftover` is the best token there is, valid or within its extended lifetime.
    Failed {
        error: AcquireError,
        leftover: Option<Leftover>,
    },
}

/// A token to serve when there is no better one.
#[derive(Debug, Clone)]
pub(super) struct Leftover {
    pub(super) token: AccessToken,
    /// Why it may not be saved.
    pub(super) save_failure: Option<Arc<Error>>,
}
