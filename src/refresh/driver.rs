//! What both drivers share: the steps of a plan that read, save and take leases.

pub(super) mod blocking;
pub(super) mod caller;
pub(super) mod lease;
#[cfg(all(test, tokenseal_model))]
mod model;
pub(super) mod registry;
pub(super) mod single_flight;
pub(super) mod source;
pub(super) mod status_file;
#[cfg(feature = "tokio")]
pub(super) mod tokio;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::call::Call;
use super::error::AcquireError;
use super::plan::look::Wanted;
use super::plan::names::{FlightKey, LeaseName};
use super::plan::step::{Called, Outcome, Read, Step};
use super::plan::{Plan, early_pause};
use super::request::TokenSource;
use crate::deadline;
#[cfg(feature = "tokio")]
use crate::deadline::{InLane, Lane};
use crate::persisted::Error;
use crate::trace;
use lease::{Home, Lease};
use registry::Registry;
use single_flight::Leader;
use source::Source;

/// How long a caller waits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// For other callers, in total.
    pub(super) wait_timeout: Duration,
    /// The deadline for other callers.
    pub(super) deadline: Instant,
    /// When it is too late to begin a call: its caller has stopped waiting.
    pub(super) begin_by: Instant,
    #[cfg_attr(not(feature = "tokio"), allow(dead_code))] // A blocking call is never given up.
    pub(super) call_timeout: Duration,
}

/// Drives one plan.
pub(super) struct Driver {
    plan: Plan,
    wanted: Arc<Wanted>,
    source: Source,
    registry: Arc<Registry>,
    leader: Option<Leader<FlightKey, Outcome>>,
    pub(super) patience: Patience,
    lease: Option<Lease>,
    has_leased: bool,
    /// When the wait for a lease began.
    waits_since: Instant,
    pub(super) trace: trace::Refresh,
}

/// A step that waits, which the blocking and the Tokio driver do in their own ways.
pub(super) enum Next {
    /// Take this lease.
    Lease(LeaseName),
    Call(Box<Call>),
    /// All callers have the outcome.
    Done,
}

impl Driver {
    pub(super) fn new(
        wanted: Arc<Wanted>,
        source: Source,
        registry: Arc<Registry>,
        leader: Leader<FlightKey, Outcome>,
        patience: Patience,
    ) -> Self {
        Self {
            plan: Plan::new(Arc::clone(&wanted)),
            waits_since: Instant::now(),
            trace: trace::Refresh::new(wanted.request.as_str(), wanted.is_early),
            wanted,
            source,
            registry,
            leader: Some(leader),
            patience,
            lease: None,
            has_leased: false,
        }
    }

    pub(super) fn begin(&mut self) -> Next {
        let step = self.plan.begin();
        self.go_on(step)
    }

    /// Takes a lease, waiting for it.
    #[allow(clippy::needless_pass_by_value)] // It comes out of a step.
    pub(super) fn wait_for_lease(&mut self, name: LeaseName) -> Next {
        let Patience { wait_timeout, deadline, .. } = self.patience;
        let lease = self.registry.lease(&self.source, &name, wait_timeout, deadline);
        self.leased(lease)
    }

    /// Takes a lease within the lane of this process; returns the lane if another process has the lease.
    #[cfg(feature = "tokio")]
    pub(super) fn lease_in_lane(&mut self, name: &LeaseName, in_lane: InLane) -> Result<Next, InLane> {
        match self.registry.lease_in_lane(&self.source, name, in_lane) {
            Ok(Ok(lease)) => Ok(self.leased(Ok(lease))),
            Ok(Err(in_lane)) => Err(in_lane),
            Err(error) => Ok(self.leased(Err(error))),
        }
    }

    #[cfg(feature = "tokio")]
    pub(super) fn lane(&self, name: &LeaseName) -> Arc<Lane> {
        Arc::clone(&self.registry.credential(name).lane)
    }

    /// The wait for a lease timed out.
    #[cfg(feature = "tokio")]
    pub(super) fn lease_timed_out(&mut self, name: &LeaseName) -> Next {
        let error = self.timed_out(name);
        self.leased(Err(error))
    }

    fn leased(&mut self, lease: Result<Lease, AcquireError>) -> Next {
        let step = match lease {
            Ok(lease) => {
                self.has_leased = true;
                let lease = self.lease.insert(lease);
                self.trace.leased(lease.held.name.as_str(), self.waits_since.elapsed());
                self.plan.leased(&lease.held)
            }
            Err(error) => self.plan.not_leased(Some(error)),
        };
        self.go_on(step)
    }

    /// Checks whether the call may still begin. If not, the waiting callers get an error.
    pub(super) fn may_call(&mut self, is_given_up: bool) -> Result<(), Box<Next>> {
        let begin_by = self.patience.begin_by;
        if self.leader.as_ref().is_some_and(|leader| leader.call_begins(is_given_up, begin_by)) {
            return Ok(());
        }
        let error = match &self.lease {
            Some(lease) => self.timed_out(&lease.held.name),
            None => AcquireError::unexplained(),
        };
        let step = self.plan.give_up(error);
        Err(Box::new(self.go_on(step)))
    }

    pub(super) fn answered(&mut self, called: Called) -> Next {
        if let Some(leader) = &self.leader {
            leader.call_ended();
        }
        self.trace_failure(&called);
        let now = SystemTime::now();
        let step = match &mut self.lease {
            // A child forked during the call does not hold the lease.
            Some(lease) => match lease.check_process() {
                Ok(()) => self.plan.answered(called, &mut lease.held, now),
                Err(error) => self.plan.give_up(error),
            },
            None => self.plan.give_up(AcquireError::unexplained()),
        };
        self.go_on(step)
    }

    fn go_on(&mut self, mut step: Step) -> Next {
        let _span = self.trace.enter();
        loop {
            step = match step {
                Step::Forget(token) => {
                    let removed = self.source.update(|cache| Ok(cache.remove_access_token(&token)));
                    self.plan.forgotten(removed.map(drop).map_err(AcquireError::from))
                }
                Step::Read(read) => self.read(read),
                Step::Save => {
                    if let Some(lease) = &mut self.lease {
                        lease.save(&self.source);
                    }
                    self.plan.saved()
                }
                Step::Lease { name, waits } => {
                    self.release();
                    if waits && !(self.has_leased && deadline::left(self.patience.deadline).is_zero()) {
                        self.waits_since = Instant::now();
                        return Next::Lease(name);
                    }
                    self.lease_if_free(&name, waits)
                }
                Step::Call(call) => {
                    if let Some(lease) = &mut self.lease {
                        lease.begin_use();
                    }
                    return Next::Call(call);
                }
                Step::Finish(outcome) => {
                    self.finish(outcome);
                    return Next::Done;
                }
            }
        }
    }

    fn lease_if_free(&mut self, name: &LeaseName, waits: bool) -> Step {
        if waits {
            let error = self.timed_out(name);
            return self.plan.not_leased(Some(error));
        }
        match self.registry.lease_if_free(&self.source, name) {
            Ok(Some(lease)) => {
                let lease = self.lease.insert(lease);
                self.plan.leased(&lease.held)
            }
            Ok(None) => self.plan.not_leased(None),
            Err(error) => self.plan.not_leased(Some(error)),
        }
    }

    fn read(&mut self, read: Read) -> Step {
        let Self { plan, source, lease, patience, .. } = self;
        let now = SystemTime::now();
        let mut held = lease.as_mut().map(|lease| &mut lease.held);
        let newest = matches!(read, Read::Newest | Read::NewestOrInMemory);
        let mut failure = None;
        if newest {
            match source.read_by(patience.deadline, |cache| plan.read(cache, held.as_deref_mut(), now)) {
                Ok(step) => return step,
                Err(error) => failure = Some(error),
            }
        }
        let step = match read {
            Read::Newest => None,
            Read::InMemory | Read::NewestOrInMemory => {
                let in_memory = source.read_in_memory(|cache| plan.read(cache, held.as_deref_mut(), now));
                in_memory.map_err(|error| failure = Some(error)).ok()
            }
            Read::IfCurrent => {
                let current = source.read_if_current(|cache| plan.read(cache, held, now));
                current.map_err(|error| failure = Some(error)).ok().flatten()
            }
        };
        if let Some(step) = step {
            return step;
        }
        let error = failure.map_or_else(AcquireError::unexplained, |error| self.unreadable(error));
        let held = self.lease.as_mut().map(|lease| &mut lease.held);
        self.plan.unreadable(error, held, now)
    }

    fn unreadable(&self, error: Error) -> AcquireError {
        // Another caller is reading it, or the key store hangs.
        let is_late = error.is_key_unavailable() && deadline::left(self.patience.deadline).is_zero();
        if !is_late {
            return error.into();
        }
        match self.source.read_in_memory(|cache| self.wanted.lease_name(cache)) {
            Ok(name) => self.timed_out(&name),
            Err(error) => error.into(),
        }
    }

    fn timed_out(&self, name: &LeaseName) -> AcquireError {
        Home::of(&self.source, name).timed_out(self.patience.wait_timeout)
    }

    /// Releases the lease, after one more attempt to save what is pending.
    fn release(&mut self) {
        if let Some(mut lease) = self.lease.take() {
            lease.save_leftover(&self.source);
            lease.save_later(&self.source, &self.registry);
        }
    }

    fn trace_failure(&self, called: &Called) {
        match called {
            Called::Answered(Ok(_)) => {}
            Called::Answered(Err(failure)) => {
                let (outcome, code) = failure.outcome();
                self.trace.failed(outcome, code);
            }
            #[cfg(feature = "tokio")]
            Called::TimedOut => self.trace.failed("timed out", None),
            Called::Lost(_) => self.trace.failed("lost", None),
        }
    }

    fn trace_outcome(&self, outcome: &Outcome) {
        match outcome {
            Outcome::Acquired(acquired) => {
                if acquired.origin() == TokenSource::Refreshed {
                    self.trace.acquired();
                }
                if let Some(error) = acquired.save_failure() {
                    self.trace.not_saved(error.kind());
                }
            }
            Outcome::Busy => {}
            Outcome::Failed { error, .. } => {
                if let Some(retry_after) = error.retry_after() {
                    self.trace.back_off(retry_after);
                }
                let (reason, code) = error.reason();
                self.trace.gave_up(reason, code);
            }
        }
    }

    fn finish(&mut self, outcome: Outcome) {
        self.trace_outcome(&outcome);
        if self.wanted.is_early
            && let Some((pause, failure)) = early_pause(&outcome)
        {
            self.registry.pause_early(&self.wanted.request, pause, failure);
        }
        // Another save is attempted after the callers have their outcome.
        let lease = self.lease.take().filter(|lease| !lease.held.pending.is_empty());
        if let Some(leader) = self.leader.take() {
            leader.finish(outcome);
        }
        self.lease = lease;
        self.release();
    }
}
