//! What a process remembers of the refreshes of a cache: flights, pauses, and what could not be saved or
//! noted of each refresh token.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::back_off;
use super::error::AcquireError;
use super::flight::Flights;
use super::identity::{CredentialName, FlightKey, RequestId};
use super::landing::Landing;
use super::note::Note;
use super::tokens::Tokens;
use super::unsaved::Unsaved;
use crate::deadline::{self, Lane};
use crate::persisted::PersistedTokenCache;
use crate::process::PerProcess;
use crate::store::FileLock;

/// How long to wait before a save is tried again by whoever waits for it.
const BETWEEN_SAVES: Duration = Duration::from_millis(250);

/// All that a process knows of the refreshes of one cache, whichever handle they are made through.
#[derive(Debug, Default)]
pub(super) struct Desk {
    pub(super) flights: Arc<Flights<FlightKey, Landing>>,
    credentials: Mutex<HashMap<CredentialName, Arc<Credential>>>,
    /// Until when a request is not worth another early refresh, and why: one has failed.
    early_pauses: Mutex<HashMap<RequestId, EarlyPause>>,
}

/// An early refresh has failed.
#[derive(Debug, Clone)]
pub(super) struct EarlyPause {
    until: Instant,
    pub(super) failure: Option<AcquireError>,
}

/// What a process knows of one refresh token.
#[derive(Debug, Default)]
pub(super) struct Credential {
    pub(super) lane: Arc<Lane>,
    remembered: Mutex<Remembered>,
    #[cfg(feature = "tokio")]
    guard_queue: std::sync::OnceLock<Arc<tokio::sync::Semaphore>>,
}

#[derive(Debug, Default)]
pub(super) struct Remembered {
    /// What could not be saved yet.
    pub(super) unsaved: Unsaved,
    /// Held on to while a renewed refresh token is in memory only: whoever else used the one in the
    /// cache would send it a second time.
    pub(super) lock: Option<FileLock>,
    /// What could not be noted beside the lock.
    pub(super) note: Option<Note>,
    /// Whether a thread is about to try again to save.
    pub(super) has_saver: bool,
}

/// Which cache a desk is of.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Of {
    File(PathBuf),
    /// One in memory only, by its number.
    Memory(u64),
}

type Desks = Mutex<HashMap<Of, Arc<Desk>>>;

/// The desks of all caches that something is to be known about. A child that is forked begins with none:
/// what is under way is under way in its parent.
static DESKS: PerProcess<Desks> = PerProcess::new(|_parent| Desks::default());

impl Desk {
    pub(super) fn of(cache: &PersistedTokenCache) -> Arc<Self> {
        Self::find(Of::File(cache.path().to_owned()))
    }

    pub(super) fn of_memory(number: u64) -> Arc<Self> {
        Self::find(Of::Memory(number))
    }

    fn find(of: Of) -> Arc<Self> {
        let mut desks = DESKS.get().lock().unwrap_or_else(PoisonError::into_inner);
        desks.retain(|_, desk| Arc::strong_count(desk) > 1 || !desk.is_idle());
        Arc::clone(desks.entry(of).or_default())
    }

    /// Whether an early refresh for this request failed a moment ago, and why.
    pub(super) fn early_pause(&self, request: &RequestId) -> Option<EarlyPause> {
        let pauses = self.early_pauses();
        pauses.get(request).filter(|pause| !deadline::left(pause.until).is_zero()).cloned()
    }

    /// Makes early refreshes for this request pause.
    pub(super) fn pause_early(&self, request: &RequestId, pause: Duration, failure: Option<AcquireError>) {
        let mut pauses = self.early_pauses();
        pauses.retain(|_, pause| !deadline::left(pause.until).is_zero());
        pauses.insert(request.clone(), EarlyPause { until: deadline::after(pause), failure });
    }

    fn early_pauses(&self) -> MutexGuard<'_, HashMap<RequestId, EarlyPause>> {
        self.early_pauses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for all that is under way, and saves what could not be saved.
    pub(super) fn settle(self: &Arc<Self>, tokens: &Tokens, within: Duration) -> Result<(), AcquireError> {
        tokens.check_not_in_hand()?;
        let deadline = deadline::after(within);
        if !self.flights.wait_until_empty(deadline) {
            return Err(AcquireError::NotSettled { waited: within });
        }
        loop {
            let credentials: Vec<_> =
                self.credentials().iter().map(|(name, known)| (name.clone(), Arc::clone(known))).collect();
            let unsaved = credentials.into_iter().find_map(|(name, credential)| {
                let remembered = credential.remembered();
                let failure = remembered.unsaved.failure().filter(|_| remembered.unsaved.is_at_risk());
                failure.map(|failure| (name, failure))
            });
            let Some((name, failure)) = unsaved else { return Ok(()) };
            if let Ok(mut turn) = self.turn(tokens, &name, within, deadline) {
                turn.save(tokens);
            }
            if deadline::left(deadline).is_zero() {
                return Err(AcquireError::NotSaved { source: failure });
            }
            if self.credential(&name).remembered().unsaved.is_at_risk() {
                thread::sleep(BETWEEN_SAVES.min(deadline::left(deadline)));
            }
        }
    }

    /// What could not be saved yet, of any refresh token.
    pub(super) fn unsaved(&self) -> Vec<Unsaved> {
        let credentials: Vec<_> = self.credentials().values().map(Arc::clone).collect();
        let unsaved = credentials.iter().map(|credential| credential.remembered().unsaved.clone());
        unsaved.filter(|unsaved| !unsaved.is_empty()).collect()
    }

    /// Where asynchronous waiters for the right to use a refresh token stand in line.
    #[cfg(feature = "tokio")]
    pub(super) fn guard_queue(&self, name: &CredentialName) -> Arc<tokio::sync::Semaphore> {
        let credential = self.credential(name);
        Arc::clone(credential.guard_queue.get_or_init(|| Arc::new(tokio::sync::Semaphore::new(1))))
    }

    fn credentials(&self) -> MutexGuard<'_, HashMap<CredentialName, Arc<Credential>>> {
        self.credentials.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_idle(&self) -> bool {
        let mut credentials = self.credentials();
        credentials.retain(|_, credential| !credential.is_idle());
        let is_paused = self.early_pauses().values().any(|pause| !deadline::left(pause.until).is_zero());
        credentials.is_empty() && self.flights.is_empty() && !is_paused
    }

    pub(super) fn credential(&self, name: &CredentialName) -> Arc<Credential> {
        let mut credentials = self.credentials();
        credentials.retain(|known, credential| known == name || !credential.is_idle());
        Arc::clone(credentials.entry(name.clone()).or_default())
    }
}

impl Credential {
    pub(super) fn remembered(&self) -> MutexGuard<'_, Remembered> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nobody uses it and nothing is to be remembered.
    fn is_idle(self: &Arc<Self>) -> bool {
        let remembered = self.remembered();
        #[cfg(feature = "tokio")]
        let is_waited_for = self.guard_queue.get().is_some_and(|queue| Arc::strong_count(queue) > 1);
        #[cfg(not(feature = "tokio"))]
        let is_waited_for = false;
        let is_used = Arc::strong_count(self) > 1 || is_waited_for;
        !is_used
            && remembered.unsaved.is_empty()
            && remembered.note.as_ref().is_none_or(|note| note.is_over(back_off::now()))
    }
}
