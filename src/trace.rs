//! Spans and events for operators (feature `tracing`). Without the feature, all of this is empty.
//!
//! No field holds a secret, a user name, an account id or a path. Caches, leases and requests are identified by
//! hashes, and failures by their kind or the server's error code.

#[cfg(feature = "tracing")]
pub(crate) use with_tracing::*;
#[cfg(not(feature = "tracing"))]
pub(crate) use without_tracing::*;

/// The operation of a span.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Work {
    Open,
    Load,
    Save,
    Rotation,
}

#[cfg(feature = "tracing")]
mod with_tracing {
    use std::fmt;
    use std::path::Path;
    use std::time::Duration;

    use sha2::{Digest as _, Sha256};
    use tracing::span::EnteredSpan;
    use tracing::{Span, debug_span, field, info, info_span, warn};

    use super::Work;
    use crate::error_kind::ErrorKind;

    /// Identifies a cache by a hash of its path, which may contain a user name.
    #[derive(Debug, Clone)]
    pub(crate) struct CacheId(u64);

    impl CacheId {
        pub(crate) fn of(path: &Path) -> Self {
            let hash = Sha256::digest(path.as_os_str().as_encoded_bytes());
            Self(hash[..8].iter().fold(0, |id, byte| id << 8 | u64::from(*byte)))
        }
    }

    impl fmt::Display for CacheId {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "{:016x}", self.0)
        }
    }

    /// Enters a span until the value is dropped.
    pub(crate) fn enter(work: Work, cache: &CacheId) -> EnteredSpan {
        match work {
            Work::Open => debug_span!("open", cache = %cache),
            Work::Load => debug_span!("load", cache = %cache),
            Work::Save => debug_span!("save", cache = %cache),
            Work::Rotation => info_span!("rotation", cache = %cache),
        }
        .entered()
    }

    /// The span of a refresh, which threads enter in turn.
    #[derive(Debug, Clone)]
    pub(crate) struct Refresh(Span);

    impl Refresh {
        pub(crate) fn new(request: &str, is_early: bool) -> Self {
            Self(info_span!("refresh", request, is_early, lease = field::Empty))
        }

        pub(crate) fn enter(&self) -> EnteredSpan {
            self.0.clone().entered()
        }

        /// The lease was taken.
        pub(crate) fn leased(&self, lease: &str, waited: Duration) {
            self.0.record("lease", lease);
            if waited >= NOTICEABLE {
                info!(parent: &self.0, lease, waited_ms = millis(waited), "waited for the lease");
            }
        }

        pub(crate) fn acquired(&self) {
            info!(parent: &self.0, "acquired");
        }

        /// The call failed. `code` is the server's error code, if any.
        pub(crate) fn failed(&self, outcome: &'static str, code: Option<&str>) {
            warn!(parent: &self.0, outcome, code, "the call brought no token");
        }

        /// A back-off began.
        pub(crate) fn back_off(&self, retry_after: Duration) {
            warn!(parent: &self.0, retry_after_ms = millis(retry_after), "backing off");
        }

        /// The refresh ended without a token.
        pub(crate) fn gave_up(&self, reason: &'static str, code: Option<&str>) {
            warn!(parent: &self.0, reason, code, "no token could be acquired");
        }

        /// The response is in memory only.
        pub(crate) fn not_saved(&self, kind: ErrorKind) {
            warn!(parent: &self.0, ?kind, "renewed tokens could not be saved, and are kept in memory");
        }
    }

    /// The old key is still in use, or still exists.
    pub(crate) fn rotation_pending(cache: &CacheId, kind: ErrorKind) {
        warn!(cache = %cache, ?kind, "the key could not be rotated; the next change tries again");
    }

    /// The shortest wait that is reported.
    const NOTICEABLE: Duration = Duration::from_millis(10);

    fn millis(duration: Duration) -> u64 {
        u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(not(feature = "tracing"))]
#[allow(clippy::unused_self)] // The same functions as with the feature.
mod without_tracing {
    use std::path::Path;
    use std::time::Duration;

    use super::Work;
    use crate::error_kind::ErrorKind;

    #[derive(Debug, Clone)]
    pub(crate) struct CacheId;

    impl CacheId {
        pub(crate) fn of(_: &Path) -> Self {
            Self
        }
    }

    /// An empty span.
    pub(crate) struct Entered;

    pub(crate) fn enter(_: Work, _: &CacheId) -> Entered {
        Entered
    }

    #[derive(Debug, Clone)]
    pub(crate) struct Refresh;

    impl Refresh {
        pub(crate) fn new(_: &str, _: bool) -> Self {
            Self
        }

        pub(crate) fn enter(&self) -> Entered {
            Entered
        }

        pub(crate) fn leased(&self, _: &str, _: Duration) {}

        pub(crate) fn acquired(&self) {}

        pub(crate) fn failed(&self, _: &'static str, _: Option<&str>) {}

        pub(crate) fn back_off(&self, _: Duration) {}

        pub(crate) fn gave_up(&self, _: &'static str, _: Option<&str>) {}

        pub(crate) fn not_saved(&self, _: ErrorKind) {}
    }

    pub(crate) fn rotation_pending(_: &CacheId, _: ErrorKind) {}
}
