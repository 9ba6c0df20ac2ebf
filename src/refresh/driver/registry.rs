//! The in-process state of a cache's refreshes: flights, pauses, and what could not be saved or published for
//! each refresh token.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use super::single_flight::SingleFlight;
use super::source::Source;
use crate::deadline::{self, Lane};
use crate::persisted::PersistedTokenCache;
use crate::process::PerProcess;
use crate::refresh::error::AcquireError;
use crate::refresh::plan::back_off::unix_millis;
use crate::refresh::plan::names::{FlightKey, LeaseName, RequestId};
use crate::refresh::plan::pending::Pending;
use crate::refresh::plan::status::Status;
use crate::refresh::plan::step::Outcome;
use crate::store::FileLock;
use crate::sync::{Mutex, MutexGuard};

/// The interval between attempts to save while a caller waits for that.
const BETWEEN_SAVES: Duration = Duration::from_millis(250);

/// The state of the refreshes of one cache in this process, for all its handles.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    pub(crate) flights: Arc<SingleFlight<FlightKey, Outcome>>,
    credentials: Mutex<HashMap<LeaseName, Arc<Credential>>>,
    /// Until when early refreshes of a request pause, and the failure.
    early_pauses: Mutex<HashMap<RequestId, EarlyPause>>,
}

/// A failed early refresh.
#[derive(Debug, Clone)]
pub(crate) struct EarlyPause {
    until: Instant,
    pub(crate) failure: Option<AcquireError>,
}

/// The state of one refresh token in this process.
#[derive(Debug, Default)]
pub(crate) struct Credential {
    pub(crate) lane: Arc<Lane>,
    remembered: Mutex<Remembered>,
    #[cfg(feature = "tokio")]
    guard_queue: std::sync::OnceLock<Arc<tokio::sync::Semaphore>>,
}

#[derive(Debug, Default)]
pub(crate) struct Remembered {
    /// What could not be saved yet.
    pub(crate) pending: Pending,
    /// Kept while a renewed refresh token is in memory only, so that no other process sends the one in the
    /// cache again.
    pub(crate) lock: Option<FileLock>,
    /// The status that could not be written.
    pub(crate) status: Option<Status>,
    /// Whether a thread will try to save again.
    pub(crate) has_saver: bool,
}

/// Identifies the cache of a registry.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Of {
    File(PathBuf),
    /// One in memory only, by its number.
    Memory(u64),
}

type Registries = std::sync::Mutex<HashMap<Of, Arc<Registry>>>;

/// The registries of all caches. A forked child begins with none: the refreshes in progress are its parent's.
static REGISTRIES: PerProcess<Registries> = PerProcess::new(|_parent| Registries::default());

impl Registry {
    pub(crate) fn of(cache: &PersistedTokenCache) -> Arc<Self> {
        Self::find(Of::File(cache.path().to_owned()))
    }

    pub(crate) fn of_memory(number: u64) -> Arc<Self> {
        Self::find(Of::Memory(number))
    }

    fn find(of: Of) -> Arc<Self> {
        let mut registries = REGISTRIES.get().lock().unwrap_or_else(PoisonError::into_inner);
        registries.retain(|_, registry| Arc::strong_count(registry) > 1 || !registry.is_idle());
        Arc::clone(registries.entry(of).or_default())
    }

    /// Returns the pause of early refreshes for this request, if there is one.
    pub(crate) fn early_pause(&self, request: &RequestId) -> Option<EarlyPause> {
        let pauses = self.early_pauses();
        pauses.get(request).filter(|pause| !deadline::left(pause.until).is_zero()).cloned()
    }

    /// Pauses early refreshes for this request.
    pub(crate) fn pause_early(&self, request: &RequestId, pause: Duration, failure: Option<AcquireError>) {
        let mut pauses = self.early_pauses();
        pauses.retain(|_, pause| !deadline::left(pause.until).is_zero());
        pauses.insert(request.clone(), EarlyPause { until: deadline::after(pause), failure });
    }

    fn early_pauses(&self) -> MutexGuard<'_, HashMap<RequestId, EarlyPause>> {
        self.early_pauses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for all refreshes in progress, and saves pending changes.
    pub(crate) fn settle(self: &Arc<Self>, source: &Source, within: Duration) -> Result<(), AcquireError> {
        source.check_not_in_hand()?;
        let deadline = deadline::after(within);
        if !self.flights.wait_until_empty(deadline) {
            return Err(AcquireError::NotSettled { waited: within });
        }
        loop {
            let credentials: Vec<_> =
                self.credentials().iter().map(|(name, known)| (name.clone(), Arc::clone(known))).collect();
            let pending = credentials.into_iter().find_map(|(name, credential)| {
                let remembered = credential.remembered();
                let failure = remembered.pending.failure().filter(|_| remembered.pending.is_at_risk());
                failure.map(|failure| (name, failure))
            });
            let Some((name, failure)) = pending else { return Ok(()) };
            if let Ok(mut lease) = self.lease(source, &name, within, deadline) {
                lease.save(source);
            }
            if deadline::left(deadline).is_zero() {
                return Err(AcquireError::NotSaved { source: failure });
            }
            if self.credential(&name).remembered().pending.is_at_risk() {
                thread::sleep(BETWEEN_SAVES.min(deadline::left(deadline)));
            }
        }
    }

    /// Returns the pending changes of all refresh tokens.
    pub(crate) fn pending(&self) -> Vec<Pending> {
        let credentials: Vec<_> = self.credentials().values().map(Arc::clone).collect();
        let pending = credentials.iter().map(|credential| credential.remembered().pending.clone());
        pending.filter(|pending| !pending.is_empty()).collect()
    }

    /// Returns the queue of asynchronous waiters for a guard.
    #[cfg(feature = "tokio")]
    pub(crate) fn guard_queue(&self, name: &LeaseName) -> Arc<tokio::sync::Semaphore> {
        let credential = self.credential(name);
        Arc::clone(credential.guard_queue.get_or_init(|| Arc::new(tokio::sync::Semaphore::new(1))))
    }

    fn credentials(&self) -> MutexGuard<'_, HashMap<LeaseName, Arc<Credential>>> {
        self.credentials.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_idle(&self) -> bool {
        let mut credentials = self.credentials();
        credentials.retain(|_, credential| !credential.is_idle());
        let is_paused = self.early_pauses().values().any(|pause| !deadline::left(pause.until).is_zero());
        credentials.is_empty() && self.flights.is_empty() && !is_paused
    }

    pub(crate) fn credential(&self, name: &LeaseName) -> Arc<Credential> {
        let mut credentials = self.credentials();
        credentials.retain(|known, credential| known == name || !credential.is_idle());
        Arc::clone(credentials.entry(name.clone()).or_default())
    }
}

impl Credential {
    pub(crate) fn remembered(&self) -> MutexGuard<'_, Remembered> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is unused and has nothing to keep.
    fn is_idle(self: &Arc<Self>) -> bool {
        let remembered = self.remembered();
        #[cfg(feature = "tokio")]
        let is_waited_for = self.guard_queue.get().is_some_and(|queue| Arc::strong_count(queue) > 1);
        #[cfg(not(feature = "tokio"))]
        let is_waited_for = false;
        let is_used = Arc::strong_count(self) > 1 || is_waited_for;
        !is_used
            && remembered.pending.is_empty()
            && remembered.status.as_ref().is_none_or(|status| status.is_over(unix_millis(SystemTime::now())))
    }
}
