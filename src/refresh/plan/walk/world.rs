//! The world of the walk: two processes, a sealed cache, a lease with a status, and what happens to them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::super::{Fault, Outcome, Plan, Read, Step};
use super::provider::{Provider, Reply};
use crate::cache::{AccessTokenQuery, Account, RefreshToken, TokenCache, TokenResponse};
use crate::persisted::Error;
use crate::refresh::error::AcquireError;
use crate::refresh::plan::back_off::unix_millis;
use crate::refresh::plan::credential::Purpose;
use crate::refresh::plan::held::Held;
use crate::refresh::plan::look::{Means, Wanted};
use crate::refresh::plan::names::{LeaseName, RequestId};
use crate::refresh::plan::pending::Pending;
use crate::refresh::plan::status::Status;
use crate::secret::Secret;

pub(super) const SCOPES: [&str; 2] = ["read", "write"];

/// More steps than any refresh takes.
pub(super) const MOST_STEPS: u32 = 60;

/// A refresh token, by its number.
pub(super) type Token = usize;

/// What happens in a walk, and how often.
#[derive(Debug, Clone, Hash)]
pub(super) struct Scenario {
    /// The process and the request of each caller.
    pub(super) callers: Vec<(usize, usize)>,
    pub(super) replies: Vec<Reply>,
    pub(super) kills: u32,
    pub(super) failed_saves: u32,
    pub(super) unreadable: u32,
    pub(super) timeouts: u32,
    pub(super) sign_outs: u32,
    pub(super) sign_ins: u32,
    /// Leases that end although they are used: a database's, not a lock file's.
    pub(super) expiries: u32,
}

#[derive(Clone)]
pub(super) struct World {
    pub(super) disk: Arc<TokenCache>,
    pub(super) now: u64,
    pub(super) provider: Provider,
    pub(super) lease: SharedLease,
    pub(super) processes: [Process; 2],
    pub(super) flights: Vec<Flight>,
    pub(super) callers: Vec<Caller>,
    pub(super) is_signed_in: bool,
    /// Sessions whose tokens may be lost: their process was killed, or the answer.
    pub(super) excused: BTreeSet<usize>,
    /// What must not be sent: a refresh token for a request, or for any.
    pub(super) refused: BTreeSet<(usize, Token)>,
    pub(super) down: BTreeSet<Token>,
    pub(super) left: Scenario,
    /// How it came to this, for whoever reads what was wrong.
    pub(super) trail: Vec<(usize, Event)>,
}

#[derive(Debug, Clone, Copy)]
#[allow(dead_code)] // Shown, if something is wrong.
pub(super) enum Event {
    Caller,
    Read(Read),
    Unreadable,
    Lease,
    TimedOut,
    Reply(Reply),
    Answer,
    Save(bool),
    SaveLater,
    Kill,
    SignOut,
    SignIn,
    Expiry,
}

#[derive(Clone)]
pub(super) struct SharedLease {
    pub(super) status: Status,
    pub(super) holder: Option<Holder>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Holder {
    Flight(usize),
    /// A process that has renewed tokens in memory only.
    Process(usize),
}

#[derive(Clone)]
pub(super) struct Process {
    pub(super) is_alive: bool,
    pub(super) memory: Arc<TokenCache>,
    pub(super) pending: Pending,
}

#[derive(Clone)]
pub(super) struct Flight {
    pub(super) process: usize,
    pub(super) request: usize,
    pub(super) plan: Plan,
    pub(super) todo: Todo,
    pub(super) held: Option<Held>,
    pub(super) has_lease: bool,
    /// A refresh token that came and is not yet pending or saved.
    pub(super) custody: Option<Token>,
    pub(super) steps: u32,
    /// What others must not send, once the lease is given back.
    pub(super) refused: Vec<(Option<usize>, Token)>,
}

#[derive(Clone, Hash)]
pub(super) enum Todo {
    Read(Read),
    Lease,
    Call(Token),
    Answer(Token, Reply, Option<Token>),
    Save,
    Finished,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Caller {
    Idle,
    Waits(usize),
    Done,
}

pub(super) fn time(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_700_000_000 + seconds)
}

pub(super) fn text(token: Token) -> String {
    format!("rt{token}")
}

pub(super) fn number(token: &Secret) -> Token {
    token.expose()[2..].parse().expect("a refresh token of the walk")
}

pub(super) fn response(json: &str, now: u64) -> TokenResponse {
    let mut response = TokenResponse::from_json(json).expect("JSON");
    response.received_at = Some(time(now));
    response
}

pub(super) fn sign_in(cache: &mut TokenCache, token: Token, now: u64) {
    let json = format!(r#"{{"refresh_token":"{}","scope":"read write"}}"#, text(token));
    let response = response(&json, now).client_id("app").environment("idp.example").realm("r");
    cache.add(&response.home_account_id("alice")).expect("a sign-in");
}

pub(super) fn wanted(request: usize) -> Arc<Wanted> {
    let account = Account::new("alice", "idp.example");
    let query = AccessTokenQuery::for_account("app", &account).realm("r").scopes([SCOPES[request]]);
    Arc::new(Wanted {
        purpose: Purpose::AccessToken,
        request: RequestId::new(&Purpose::AccessToken, &query, None, None),
        query,
        means: Means::RefreshToken(Box::new(account)),
        family_id: None,
        token_endpoint: None,
        claims: None,
        tries_now: false,
        refused: None,
        call_timeout: Duration::from_secs(30),
        is_early: false,
    })
}

impl World {
    pub(super) fn new(scenario: Scenario) -> Self {
        let mut cache = TokenCache::new();
        sign_in(&mut cache, 0, 0);
        let disk = Arc::new(cache);
        let process = Process { is_alive: true, memory: Arc::clone(&disk), pending: Pending::default() };
        Self {
            disk,
            now: 10,
            provider: Provider { valid: vec![Some(0)], sessions: vec![0] },
            lease: SharedLease { status: Status::default(), holder: None },
            processes: [process.clone(), process],
            flights: Vec::new(),
            callers: vec![Caller::Idle; scenario.callers.len()],
            is_signed_in: true,
            excused: BTreeSet::new(),
            refused: BTreeSet::new(),
            down: BTreeSet::new(),
            left: scenario,
            trail: Vec::new(),
        }
    }

    /// The states that may come next.
    pub(super) fn next(&self, fault: Option<Fault>) -> Result<Vec<Self>, String> {
        let mut next = Vec::new();
        for caller in 0..self.callers.len() {
            if self.callers[caller] == Caller::Idle {
                next.push(self.with(caller, Event::Caller, |world| world.start(caller, fault))?);
            }
        }
        for flight in 0..self.flights.len() {
            self.go_on(flight, &mut next)?;
        }
        for process in 0..2 {
            self.save_later(process, &mut next)?;
            if self.left.kills > 0 && self.processes[process].is_alive {
                next.push(self.with(process, Event::Kill, |world| {
                    world.kill(process);
                    Ok(())
                })?);
            }
        }
        if self.left.sign_outs > 0 && self.is_signed_in {
            next.push(self.with(0, Event::SignOut, |world| {
                world.left.sign_outs -= 1;
                world.is_signed_in = false;
                world.change(|cache| {
                    let _ = cache.remove_account(&Account::new("alice", "idp.example"));
                });
                Ok(())
            })?);
        }
        if self.left.sign_ins > 0 {
            next.push(self.with(0, Event::SignIn, |world| {
                world.left.sign_ins -= 1;
                world.is_signed_in = true;
                world.now += 5;
                world.down.clear();
                let (session, token) = (world.provider.valid.len(), world.provider.sessions.len());
                world.provider.valid.push(Some(token));
                world.provider.sessions.push(session);
                let now = world.now;
                world.change(|cache| sign_in(cache, token, now));
                Ok(())
            })?);
        }
        if let (Some(Holder::Flight(_)), true) = (self.lease.holder, self.left.expiries > 0) {
            next.push(self.with(0, Event::Expiry, |world| {
                world.left.expiries -= 1;
                world.excuse_all();
                let holder = world.lease.holder.take();
                for (number, flight) in world.flights.iter_mut().enumerate() {
                    if holder == Some(Holder::Flight(number)) {
                        flight.has_lease = false;
                    }
                }
                Ok(())
            })?);
        }
        Ok(next)
    }

    pub(super) fn with(
        &self,
        number: usize,
        event: Event,
        change: impl FnOnce(&mut Self) -> Result<(), String>,
    ) -> Result<Self, String> {
        let mut world = self.clone();
        world.trail.push((number, event));
        let wrong = change(&mut world).and_then(|()| world.check()).err();
        match wrong {
            Some(wrong) => Err(format!("{wrong}, after {:?}", world.trail)),
            None => Ok(world),
        }
    }

    pub(super) fn change(&mut self, change: impl FnOnce(&mut TokenCache)) {
        let mut cache = (*self.disk).clone();
        change(&mut cache);
        self.disk = Arc::new(cache);
    }

    pub(super) fn excuse_all(&mut self) {
        self.excused.extend(0..self.provider.valid.len());
    }

    /// A caller looks, and joins a flight or leads one.
    pub(super) fn start(&mut self, caller: usize, fault: Option<Fault>) -> Result<(), String> {
        let (process, request) = self.left.callers[caller];
        if !self.processes[process].is_alive {
            self.callers[caller] = Caller::Done;
            return Ok(());
        }
        let is_same = |flight: &Flight| {
            flight.process == process && flight.request == request && !matches!(flight.todo, Todo::Finished)
        };
        if let Some(flight) = self.flights.iter().position(is_same) {
            self.callers[caller] = Caller::Waits(flight);
            return Ok(());
        }
        let mut plan = Plan::new(wanted(request));
        plan.fault = fault;
        let step = plan.begin();
        self.callers[caller] = Caller::Waits(self.flights.len());
        let (todo, refused) = (Todo::Finished, Vec::new());
        self.flights.push(Flight {
            process,
            request,
            plan,
            todo,
            held: None,
            has_lease: false,
            custody: None,
            steps: 0,
            refused,
        });
        self.take_step(self.flights.len() - 1, step)
    }

    /// What a driver does with a step.
    pub(super) fn take_step(&mut self, number: usize, step: Step) -> Result<(), String> {
        let flight = &mut self.flights[number];
        flight.steps += 1;
        if flight.steps > MOST_STEPS {
            return Err("a refresh goes on for ever".into());
        }
        let todo = match step {
            Step::Forget(_) => return Err("nothing was to be forgotten".into()),
            Step::Read(read) => Todo::Read(read),
            Step::Lease { .. } => {
                self.release(number);
                Todo::Lease
            }
            Step::Call(call) => {
                let token = number_of(call.refresh_token.as_ref());
                self.may_be_sent(number, token)?;
                Todo::Call(token)
            }
            Step::Save => Todo::Save,
            Step::Finish(outcome) => {
                self.finish(number, &outcome)?;
                Todo::Finished
            }
        };
        self.flights[number].todo = todo;
        Ok(())
    }

    pub(super) fn finish(&mut self, number: usize, outcome: &Outcome) -> Result<(), String> {
        self.check_outcome(number, outcome)?;
        for caller in &mut self.callers {
            if *caller == Caller::Waits(number) {
                *caller = Caller::Done;
            }
        }
        self.release(number);
        Ok(())
    }

    /// Gives a lease back, with what others are to know.
    pub(super) fn release(&mut self, number: usize) {
        let flight = &mut self.flights[number];
        let Some(held) = flight.held.take() else { return };
        let has_lease = std::mem::take(&mut flight.has_lease);
        let refused = std::mem::take(&mut flight.refused);
        let process = flight.process;
        self.processes[process].pending = held.pending.clone();
        if !has_lease {
            return;
        }
        // What could not be saved, others cannot know.
        let refused = if held.pending.is_empty() { refused } else { Vec::new() };
        for (request, token) in refused {
            match request {
                Some(request) => drop(self.refused.insert((request, token))),
                None => drop(self.down.insert(token)),
            }
        }
        self.lease.holder = held.pending.has_renewed_tokens().then_some(Holder::Process(process));
        self.lease.status = held.status;
    }

    /// All that a flight may meet next.
    pub(super) fn go_on(&self, number: usize, next: &mut Vec<Self>) -> Result<(), String> {
        let flight = &self.flights[number];
        match &flight.todo {
            Todo::Finished => {}
            Todo::Read(read) => {
                next.push(self.with(number, Event::Read(*read), |world| world.read(number, *read))?);
                if self.left.unreadable > 0 && *read != Read::InMemory {
                    next.push(self.with(number, Event::Unreadable, |world| {
                        world.left.unreadable -= 1;
                        if *read == Read::NewestOrInMemory {
                            return world.read(number, Read::InMemory);
                        }
                        let now = time(world.now);
                        let flight = &mut world.flights[number];
                        let error = AcquireError::from(Error::aborted("the disk is away"));
                        let step = flight.plan.unreadable(error, flight.held.as_mut(), now);
                        world.take_step(number, step)
                    })?);
                }
            }
            Todo::Lease => {
                let is_free = match self.lease.holder {
                    None => true,
                    Some(Holder::Process(holder)) => holder == flight.process,
                    Some(Holder::Flight(_)) => false,
                };
                // A lease may expire; the lane within a process does not.
                let in_lane = |other: &Flight| other.process == flight.process && other.held.is_some();
                if is_free && !self.flights.iter().any(in_lane) {
                    next.push(self.with(number, Event::Lease, |world| world.lease(number))?);
                }
                if self.left.timeouts > 0 {
                    next.push(self.with(number, Event::TimedOut, |world| {
                        // A plan that only ever waits is to be noticed.
                        let is_faulty = world.flights[number].plan.fault == Some(Fault::BlocksForEver);
                        world.left.timeouts -= u32::from(!is_faulty);
                        let error = AcquireError::NoAccount;
                        let step = world.flights[number].plan.not_leased(Some(error));
                        world.take_step(number, step)
                    })?);
                }
            }
            Todo::Call(token) => {
                let session = self.provider.sessions[*token];
                if self.provider.valid[session] != Some(*token) {
                    // Theft, or a session that is over.
                    next.push(self.with(number, Event::Reply(Reply::Dead), |world| {
                        world.provider.valid[session] = None;
                        world.flights[number].refused.push((None, *token));
                        world.flights[number].todo = Todo::Answer(*token, Reply::Dead, None);
                        Ok(())
                    })?);
                    return Ok(());
                }
                for reply in &self.left.replies {
                    next.push(self.with(number, Event::Reply(*reply), |world| {
                        world.reply(number, *token, *reply);
                        Ok(())
                    })?);
                }
            }
            Todo::Answer(token, reply, came) => {
                next.push(
                    self.with(number, Event::Answer, |world| world.answer(number, *token, *reply, *came))?,
                );
            }
            Todo::Save => {
                next.push(self.with(number, Event::Save(true), |world| world.save(number, true))?);
                if self.left.failed_saves > 0 {
                    next.push(self.with(number, Event::Save(false), |world| {
                        world.left.failed_saves -= 1;
                        world.save(number, false)
                    })?);
                }
            }
        }
        Ok(())
    }

    pub(super) fn read(&mut self, number: usize, read: Read) -> Result<(), String> {
        let now = time(self.now);
        let process = self.flights[number].process;
        if read != Read::InMemory {
            self.processes[process].memory = Arc::clone(&self.disk);
        }
        let cache = Arc::clone(&self.processes[process].memory);
        let is_signed_out = !self.is_signed_in && read != Read::InMemory;
        let flight = &mut self.flights[number];
        let step = flight.plan.read(&cache, flight.held.as_mut(), now);
        if is_signed_out && matches!(step, Step::Finish(Outcome::Acquired(_))) {
            return Err("a token of an account is served that was signed out".into());
        }
        self.take_step(number, step)
    }

    pub(super) fn lease(&mut self, number: usize) -> Result<(), String> {
        let flight = &mut self.flights[number];
        let mut status = self.lease.status.clone();
        status.forget_what_is_over(unix_millis(time(self.now)));
        let pending = self.processes[flight.process].pending.clone();
        let name = LeaseName::new("idp.example", "alice", None, "app");
        let held = flight.held.insert(Held { name, status, pending });
        let step = flight.plan.leased(held);
        flight.has_lease = true;
        self.lease.holder = Some(Holder::Flight(number));
        self.take_step(number, step)
    }

    pub(super) fn save(&mut self, number: usize, succeeds: bool) -> Result<(), String> {
        let flight = &mut self.flights[number];
        let Some(held) = &mut flight.held else { return Err("a save without a lease".into()) };
        save(&mut held.pending, &mut self.disk, succeeds);
        let process = &mut self.processes[flight.process];
        process.pending = held.pending.clone();
        process.memory = Arc::clone(&self.disk);
        if process.pending.is_empty() && self.lease.holder == Some(Holder::Process(flight.process)) {
            self.lease.holder = None;
        }
        let step = flight.plan.saved();
        self.take_step(number, step)
    }

    /// What could not be saved is tried again when nobody uses the lease.
    pub(super) fn save_later(&self, process: usize, next: &mut Vec<Self>) -> Result<(), String> {
        let is_waiting = self.processes[process].is_alive && !self.processes[process].pending.is_empty();
        let is_free = matches!(self.lease.holder, None | Some(Holder::Process(_)))
            && self.lease.holder.is_none_or(|holder| holder == Holder::Process(process));
        if is_waiting && is_free {
            next.push(self.with(process, Event::SaveLater, |world| {
                save(&mut world.processes[process].pending, &mut world.disk, true);
                world.lease.holder = None;
                Ok(())
            })?);
        }
        Ok(())
    }

    pub(super) fn kill(&mut self, process: usize) {
        self.left.kills -= 1;
        self.processes[process].is_alive = false;
        let has_tokens = !self.processes[process].pending.is_empty()
            || self.flights.iter().any(|flight| flight.process == process && flight.held.is_some());
        if has_tokens {
            self.excuse_all();
        }
        self.processes[process].pending = Pending::default();
        for (number, flight) in self.flights.iter_mut().enumerate() {
            if flight.process == process {
                flight.todo = Todo::Finished;
                flight.held = None;
                flight.custody = None;
                if self.lease.holder == Some(Holder::Flight(number)) {
                    self.lease.holder = None;
                }
            }
        }
        if self.lease.holder == Some(Holder::Process(process)) {
            self.lease.holder = None;
        }
        for (caller, (of, _)) in self.callers.iter_mut().zip(&self.left.callers) {
            if *of == process {
                *caller = Caller::Done;
            }
        }
    }
}

pub(super) fn save(pending: &mut Pending, disk: &mut Arc<TokenCache>, succeeds: bool) {
    pending.save(|change| {
        if !succeeds {
            return Err(Error::aborted("the disk is full"));
        }
        let mut cache = (**disk).clone();
        change(&mut cache)?;
        *disk = Arc::new(cache);
        Ok(())
    });
}

pub(super) fn number_of(token: Option<&Secret>) -> Token {
    number(token.expect("a refresh sends one"))
}

pub(super) fn number_of_row(row: &RefreshToken) -> Token {
    number(&row.secret())
}
