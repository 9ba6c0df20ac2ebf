//! Walks through every order of events that a plan can meet, with the plan itself.
//!
//! The world is two processes, a provider that rotates refresh tokens and takes a second use for theft, a
//! sealed cache, and a lease with a status. Wherever something can happen in more ways than one, the walk takes
//! them all, and goes on from each state once. What must hold is checked in every state.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{After, Called, Fault, Outcome, Plan, Read, State, Step};
use crate::cache::{AccessTokenQuery, Account, TokenCache, TokenResponse};
use crate::persisted::Error;
use crate::refresh::back_off::unix_millis;
use crate::refresh::error::{AcquireError, SignInReason};
use crate::refresh::failure::{Cause, Reason, RefreshFailure};
use crate::refresh::held::Held;
use crate::refresh::look::{Means, Wanted};
use crate::refresh::names::RequestId;
use crate::refresh::pending::Pending;
use crate::refresh::request::Origin;
use crate::refresh::status::Status;

const SCOPES: [&str; 2] = ["read", "write"];

/// More steps than any refresh takes.
const MOST_STEPS: u32 = 60;

/// A refresh token, by its number.
type Token = usize;

/// What happens in a walk, and how often.
#[derive(Debug, Clone, Hash)]
struct Scenario {
    /// The process and the request of each caller.
    callers: Vec<(usize, usize)>,
    replies: Vec<Reply>,
    kills: u32,
    failed_saves: u32,
    unreadable: u32,
    timeouts: u32,
    sign_outs: u32,
    sign_ins: u32,
    /// Leases that end although they are used: a database's, not a lock file's.
    expiries: u32,
}

/// What the provider says to a refresh token that it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Reply {
    Rotated,
    SameRefreshToken,
    OtherScopes,
    NoAccessToken,
    /// A refresh token, and an error beside it.
    ErrorWithToken,
    Dead,
    NeedsUser,
    Refused,
    Outage,
    /// It rotated the token, and the answer was lost.
    LostAnswer,
    OtherUser,
}

#[derive(Clone)]
struct World {
    disk: Arc<TokenCache>,
    now: u64,
    provider: Provider,
    lease: SharedLease,
    processes: [Process; 2],
    flights: Vec<Flight>,
    callers: Vec<Caller>,
    is_signed_in: bool,
    /// Sessions whose tokens may be lost: their process was killed, or the answer.
    excused: BTreeSet<usize>,
    /// What must not be sent: a refresh token for a request, or for any.
    refused: BTreeSet<(usize, Token)>,
    down: BTreeSet<Token>,
    left: Scenario,
    /// How it came to this, for whoever reads what was wrong.
    trail: Vec<(usize, Event)>,
}

#[derive(Debug, Clone, Copy)]
#[allow(dead_code)] // Shown, if something is wrong.
enum Event {
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

#[derive(Clone, Hash)]
struct Provider {
    /// The refresh token that it takes next, of each session.
    valid: Vec<Option<Token>>,
    /// The session of each refresh token.
    sessions: Vec<usize>,
}

#[derive(Clone)]
struct SharedLease {
    status: Status,
    holder: Option<Holder>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Holder {
    Flight(usize),
    /// A process that has renewed tokens in memory only.
    Process(usize),
}

#[derive(Clone)]
struct Process {
    is_alive: bool,
    memory: Arc<TokenCache>,
    pending: Pending,
}

#[derive(Clone)]
struct Flight {
    process: usize,
    request: usize,
    plan: Plan,
    todo: Todo,
    held: Option<Held>,
    has_lease: bool,
    /// A refresh token that came and is not yet pending or saved.
    custody: Option<Token>,
    steps: u32,
    /// What others must not send, once the lease is given back.
    refused: Vec<(Option<usize>, Token)>,
}

#[derive(Clone, Hash)]
enum Todo {
    Read(Read),
    Lease,
    Call(Token),
    Answer(Token, Reply, Option<Token>),
    Save,
    Finished,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Caller {
    Idle,
    Waits(usize),
    Done,
}

fn time(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_700_000_000 + seconds)
}

fn text(token: Token) -> String {
    format!("rt{token}")
}

fn number(token: &crate::secret::Secret) -> Token {
    token.expose()[2..].parse().expect("a refresh token of the walk")
}

fn response(json: &str, now: u64) -> TokenResponse {
    let mut response = TokenResponse::from_json(json).expect("JSON");
    response.received_at = Some(time(now));
    response
}

fn sign_in(cache: &mut TokenCache, token: Token, now: u64) {
    let json = format!(r#"{{"refresh_token":"{}","scope":"read write"}}"#, text(token));
    let response = response(&json, now).client_id("app").environment("idp.example").realm("r");
    cache.add(&response.home_account_id("alice")).expect("a sign-in");
}

fn wanted(request: usize) -> Arc<Wanted> {
    let account = Account::new("alice", "idp.example");
    let query = AccessTokenQuery::new("app").account(&account).realm("r").scopes([SCOPES[request]]);
    Arc::new(Wanted {
        request: RequestId::new(&query, None, None),
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
    fn new(scenario: Scenario) -> Self {
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
    fn next(&self, fault: Option<Fault>) -> Result<Vec<Self>, String> {
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

    fn with(
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

    fn change(&mut self, change: impl FnOnce(&mut TokenCache)) {
        let mut cache = (*self.disk).clone();
        change(&mut cache);
        self.disk = Arc::new(cache);
    }

    fn excuse_all(&mut self) {
        self.excused.extend(0..self.provider.valid.len());
    }

    /// A caller looks, and joins a flight or leads one.
    fn start(&mut self, caller: usize, fault: Option<Fault>) -> Result<(), String> {
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
    fn take_step(&mut self, number: usize, step: Step) -> Result<(), String> {
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

    /// No refresh token is sent twice, and no request is made again that failed a moment ago.
    fn may_be_sent(&self, number: usize, token: Token) -> Result<(), String> {
        let session = self.provider.sessions[token];
        let is_spent = self.provider.valid[session].is_some_and(|valid| valid != token);
        if is_spent && !self.excused.contains(&session) {
            return Err(format!("{} is sent a second time", text(token)));
        }
        if self.down.contains(&token) || self.refused.contains(&(self.flights[number].request, token)) {
            return Err(format!("{} is sent again although that failed a moment ago", text(token)));
        }
        Ok(())
    }

    fn finish(&mut self, number: usize, outcome: &Outcome) -> Result<(), String> {
        if let Outcome::Acquired(acquired) = outcome
            && acquired.origin() == Origin::Refreshed
            && acquired.is_persisted()
            && let Some(Some(valid)) = self.provider.valid.last()
            && self.is_signed_in
            && self.provider.valid.len() == 1
            && !self.excused.contains(&0)
            && self.flights[number].custody.is_some()
            && !self.disk.refresh_tokens().any(|row| number_of_row(&row) == *valid)
        {
            return Err("a caller is told that a token is saved, and it is not".into());
        }
        let is_untouched = self.provider.valid.len() == 1
            && self.provider.valid[0].is_some()
            && self.is_signed_in
            && self.excused.is_empty();
        if let Outcome::Failed { error: AcquireError::SignInRequired { reason, .. }, .. } = outcome
            && matches!(reason, SignInReason::NoRefreshToken | SignInReason::SignedOut)
            && is_untouched
        {
            return Err("a user is asked to sign in who is signed in".into());
        }
        for caller in &mut self.callers {
            if *caller == Caller::Waits(number) {
                *caller = Caller::Done;
            }
        }
        self.release(number);
        Ok(())
    }

    /// Gives a lease back, with what others are to know.
    fn release(&mut self, number: usize) {
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
    fn go_on(&self, number: usize, next: &mut Vec<Self>) -> Result<(), String> {
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
                        let error = AcquireError::from(Error::NoHomeDirectory);
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

    fn read(&mut self, number: usize, read: Read) -> Result<(), String> {
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

    fn lease(&mut self, number: usize) -> Result<(), String> {
        let flight = &mut self.flights[number];
        let mut status = self.lease.status.clone();
        status.forget_what_is_over(unix_millis(time(self.now)));
        let pending = self.processes[flight.process].pending.clone();
        let name = crate::refresh::names::LeaseName::new("idp.example", "alice", None, "app");
        let held = flight.held.insert(Held { name, status, pending });
        let step = flight.plan.leased(held);
        flight.has_lease = true;
        self.lease.holder = Some(Holder::Flight(number));
        self.take_step(number, step)
    }

    /// The provider takes the refresh token that is valid.
    fn reply(&mut self, number: usize, token: Token, reply: Reply) {
        let session = self.provider.sessions[token];
        let rotates = matches!(
            reply,
            Reply::Rotated
                | Reply::OtherScopes
                | Reply::NoAccessToken
                | Reply::ErrorWithToken
                | Reply::LostAnswer
                | Reply::OtherUser
        );
        let came = rotates.then(|| {
            self.provider.sessions.push(session);
            self.provider.sessions.len() - 1
        });
        match (reply, came) {
            (Reply::Dead, _) => self.provider.valid[session] = None,
            (_, Some(came)) => self.provider.valid[session] = Some(came),
            _ => {}
        }
        let flight = &mut self.flights[number];
        // Whoever keeps the tokens of another user would mix them up: they are given up on purpose.
        if matches!(reply, Reply::LostAnswer | Reply::OtherUser) {
            self.excused.insert(session);
        } else {
            flight.custody = came;
        }
        let known = came.unwrap_or(token);
        match reply {
            Reply::Outage | Reply::LostAnswer | Reply::Dead => flight.refused.push((None, token)),
            Reply::ErrorWithToken => flight.refused.push((Some(flight.request), known)),
            Reply::NeedsUser | Reply::Refused | Reply::OtherScopes | Reply::NoAccessToken => {
                flight.refused.push((Some(flight.request), known));
            }
            // What was known of the old one is known of the new one.
            Reply::Rotated => {
                let carried: Vec<_> = self
                    .refused
                    .iter()
                    .filter(|(request, of)| *of == token && *request != flight.request)
                    .map(|(request, _)| (Some(*request), known))
                    .collect();
                flight.refused.extend(carried);
            }
            _ => {}
        }
        flight.todo = Todo::Answer(token, reply, came);
    }

    fn answer(
        &mut self,
        number: usize,
        token: Token,
        reply: Reply,
        came: Option<Token>,
    ) -> Result<(), String> {
        let now = self.now;
        let flight = &mut self.flights[number];
        let granted = match reply {
            Reply::OtherScopes => "other",
            _ => SCOPES[flight.request],
        };
        let json = |json: String| Called::Answered(Ok(Box::new(response(&json, now))));
        let (refresh_token, access_token) = (text(came.unwrap_or(token)), format!("at{}", token + 100));
        let tokens = format!(
            r#""refresh_token":"{refresh_token}","access_token":"{access_token}-{}","expires_in":3600,"scope":"{granted}""#,
            flight.request
        );
        let called = match reply {
            Reply::Rotated | Reply::SameRefreshToken | Reply::OtherScopes => json(format!("{{{tokens}}}")),
            Reply::NoAccessToken => json(format!(r#"{{"refresh_token":"{refresh_token}"}}"#)),
            Reply::ErrorWithToken => {
                json(format!(r#"{{"error":"invalid_scope","refresh_token":"{refresh_token}"}}"#))
            }
            Reply::OtherUser => {
                // {"sub":"bob"}, where the stored user is alice.
                json(format!(r#"{{{tokens},"client_info":"eyJ1aWQiOiJib2IiLCJ1dGlkIjoidCJ9"}}"#))
            }
            Reply::Dead => Called::Answered(Err(RefreshFailure::rejected("invalid_grant"))),
            Reply::NeedsUser => Called::Answered(Err(RefreshFailure::rejected("interaction_required"))),
            Reply::Refused => Called::Answered(Err(RefreshFailure::refused("invalid_scope"))),
            Reply::Outage => Called::Answered(Err(RefreshFailure(Reason::Transient {
                retry_after: Some(Duration::from_secs(4)),
                cause: Cause(Arc::from(Box::from("no connection"))),
            }))),
            Reply::LostAnswer => Called::Lost("the answer was lost"),
        };
        let Some(held) = &mut flight.held else { return Err("a call without a lease".into()) };
        let step = flight.plan.answered(called, held, time(now));
        self.take_step(number, step)
    }

    fn save(&mut self, number: usize, succeeds: bool) -> Result<(), String> {
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
    fn save_later(&self, process: usize, next: &mut Vec<Self>) -> Result<(), String> {
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

    fn kill(&mut self, process: usize) {
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

    /// What holds in every state.
    fn check(&self) -> Result<(), String> {
        if !self.is_signed_in && self.disk.knows_account("alice", "idp.example") {
            return Err("an account that was signed out has come back".into());
        }
        let session = self.provider.valid.len() - 1;
        let Some(valid) = self.provider.valid[session] else { return Ok(()) };
        if !self.is_signed_in || self.excused.contains(&session) {
            return Ok(());
        }
        let on_disk = self.disk.refresh_tokens().any(|row| number_of_row(&row) == valid);
        let pending = |pending: &Pending| pending.refresh_tokens().any(|token| number(&token) == valid);
        let in_memory = self.processes.iter().any(|process| process.is_alive && pending(&process.pending))
            || self.flights.iter().any(|flight| {
                let in_hand = flight.custody == Some(valid) && !matches!(flight.todo, Todo::Finished);
                in_hand && !matches!(flight.plan.state, State::FallingBack(_))
                    || flight.held.as_ref().is_some_and(|held| pending(&held.pending))
            });
        if on_disk || in_memory {
            return Ok(());
        }
        Err(format!("{} is lost, and its session with it", text(valid)))
    }

    /// Nobody waits for ever.
    fn check_end(&self) -> Result<(), String> {
        if self.callers.iter().any(|caller| *caller != Caller::Done) {
            return Err(format!("a caller waits for ever, after {:?}", self.trail));
        }
        Ok(())
    }

    fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        let to = &mut hasher;
        self.disk.serialize().json().expose().hash(to);
        (self.now, &self.provider, self.is_signed_in, &self.excused, &self.refused, &self.down).hash(to);
        (&self.callers, &self.left).hash(to);
        (self.lease.holder, self.lease.status.to_text()).hash(to);
        for process in &self.processes {
            process.is_alive.hash(to);
            // What a process has in memory counts only where something reads it.
            process.memory.serialize().json().expose().hash(to);
            process.pending.fingerprint(to);
        }
        for flight in &self.flights {
            let Flight { process, request, plan, todo, held, has_lease, custody, steps, refused } = flight;
            (process, request, todo, has_lease, custody, refused).hash(to);
            if !matches!(todo, Todo::Finished) {
                // What comes back to where it was goes on for ever.
                steps.hash(to);
                fingerprint(plan, to);
                held.is_some().hash(to);
                if let Some(held) = held {
                    held.status.to_text().hash(to);
                    held.pending.fingerprint(to);
                }
            }
        }
        hasher.finish()
    }
}

fn save(pending: &mut Pending, disk: &mut Arc<TokenCache>, succeeds: bool) {
    pending.save(|change| {
        if !succeeds {
            return Err(Error::NoHomeDirectory);
        }
        let mut cache = (**disk).clone();
        change(&mut cache)?;
        *disk = Arc::new(cache);
        Ok(())
    });
}

fn number_of(token: Option<&crate::secret::Secret>) -> Token {
    number(token.expect("a refresh sends one"))
}

fn number_of_row(row: &crate::cache::RefreshToken) -> Token {
    number(&row.secret())
}

fn fingerprint(plan: &Plan, to: &mut DefaultHasher) {
    std::mem::discriminant(&plan.state).hash(to);
    plan.error.to_string().hash(to);
    plan.spent.iter().for_each(|token| token.expose().hash(to));
    let sent = |sent: &super::Candidate, to: &mut DefaultHasher| {
        (sent.mark.as_str(), sent.token.as_ref().map(number_of_row)).hash(to);
    };
    let answer = |answer: &super::Answer, to: &mut DefaultHasher| {
        sent(&answer.sent, to);
        answer.response.body.secret_of("refresh_token").ok().flatten().map(|token| number(&token)).hash(to);
        answer.access_token.as_ref().map(crate::secret::Secret::expose).hash(to);
        (answer.known_until, answer.failure.is_some()).hash(to);
    };
    let failed = |failed: &super::Failed, to: &mut DefaultHasher| {
        sent(&failed.sent, to);
        format!("{:?}", failed.reason).hash(to);
    };
    match &plan.state {
        State::Looking | State::Leasing | State::LookingAgain | State::Ended => {}
        State::Calling(candidate, _) => sent(candidate, to),
        State::Checking(it) | State::Judging(it) | State::Saving(After::Judge(it)) => answer(it, to),
        State::Saving(After::Fail(it)) | State::Failing(it) => failed(it, to),
        State::Saving(After::LookAgain) => 7.hash(to),
        State::FallingBack(error) => error.to_string().hash(to),
    }
}

/// Walks through all states; the number of them, or what was wrong in one.
fn walk(scenario: Scenario, fault: Option<Fault>) -> Result<usize, String> {
    let first = World::new(scenario);
    let mut seen = HashSet::from([first.fingerprint()]);
    let mut left = vec![first];
    while let Some(world) = left.pop() {
        let next = world.next(fault)?;
        if next.is_empty() {
            world.check_end()?;
        }
        for world in next {
            if seen.insert(world.fingerprint()) {
                left.push(world);
            }
        }
    }
    Ok(seen.len())
}

fn nothing() -> Scenario {
    Scenario {
        callers: Vec::new(),
        replies: vec![Reply::Rotated],
        kills: 0,
        failed_saves: 0,
        unreadable: 0,
        timeouts: 0,
        sign_outs: 0,
        sign_ins: 0,
        expiries: 0,
    }
}

/// What is walked through, by name.
fn scenarios() -> BTreeMap<&'static str, Scenario> {
    let callers = vec![(0, 0), (0, 1), (1, 0), (1, 1)];
    BTreeMap::from([
        ("kills", Scenario { callers: callers.clone(), kills: 1, ..nothing() }),
        (
            "failed saves",
            Scenario { callers: vec![(0, 0), (0, 1), (1, 0)], failed_saves: 2, kills: 1, ..nothing() },
        ),
        (
            "sessions",
            Scenario {
                callers: vec![(0, 0), (0, 1), (1, 0)],
                sign_outs: 1,
                sign_ins: 1,
                failed_saves: 1,
                ..nothing()
            },
        ),
        (
            "answers",
            Scenario {
                callers: vec![(0, 0), (1, 1), (1, 0)],
                replies: vec![
                    Reply::Rotated,
                    Reply::OtherScopes,
                    Reply::NoAccessToken,
                    Reply::ErrorWithToken,
                    Reply::Dead,
                    Reply::NeedsUser,
                    Reply::Refused,
                    Reply::Outage,
                    Reply::LostAnswer,
                    Reply::OtherUser,
                ],
                failed_saves: 1,
                ..nothing()
            },
        ),
        (
            // Without failed saves: one that is made up for later is a change of the row, after which a token
            // that was not rotated may be sent once more.
            "a provider that does not rotate",
            Scenario {
                callers: vec![(0, 0), (1, 1), (1, 0)],
                replies: vec![Reply::SameRefreshToken, Reply::NeedsUser, Reply::Outage],
                sign_ins: 1,
                sign_outs: 1,
                ..nothing()
            },
        ),
        (
            "the same asked for in turn",
            Scenario {
                callers: vec![(0, 0), (1, 0), (0, 1), (1, 0)],
                replies: vec![Reply::Rotated, Reply::OtherScopes, Reply::Outage, Reply::NeedsUser],
                ..nothing()
            },
        ),
        (
            "a sign-in after a refusal",
            Scenario {
                callers: vec![(0, 0), (0, 1), (1, 0)],
                replies: vec![Reply::Rotated, Reply::Refused, Reply::Outage, Reply::Dead],
                sign_ins: 1,
                ..nothing()
            },
        ),
        (
            "waits in vain",
            Scenario {
                callers: callers.clone(),
                unreadable: 1,
                timeouts: 1,
                replies: vec![Reply::Rotated, Reply::Dead],
                ..nothing()
            },
        ),
        (
            "leases that expire",
            Scenario {
                callers: vec![(0, 0), (0, 1), (1, 0)],
                expiries: 1,
                sign_outs: 1,
                failed_saves: 1,
                ..nothing()
            },
        ),
    ])
}

#[test]
fn in_every_order_of_events_nothing_is_lost_nobody_waits_for_ever_and_nothing_is_sent_twice() {
    let mut total = 0;
    for (name, scenario) in scenarios() {
        let began = std::time::Instant::now();
        let states = walk(scenario, None).unwrap_or_else(|wrong| panic!("{name}: {wrong}"));
        println!("{name}: {states} states in {:.1} s", began.elapsed().as_secs_f64());
        total += states;
    }
    println!("{total} states");
}

#[test]
fn a_plan_that_does_wrong_is_noticed() {
    for fault in [
        Fault::LooksAtAnOldState,
        Fault::LooksWithoutWhatIsPending,
        Fault::IgnoresBackOff,
        Fault::IgnoresRefusals,
        Fault::ForgetsFailures,
        Fault::ForgetsRefusalsOfRotatedTokens,
        Fault::RetiresWhatIsAlive,
        Fault::DropsTokensOfErrors,
        Fault::FinishesUnsaved,
        Fault::KeepsWhatIsDead,
        Fault::BlocksForEver,
    ] {
        let noticed = scenarios().into_iter().find_map(|(name, scenario)| {
            walk(scenario, Some(fault)).err().map(|wrong| format!("{name}: {wrong}"))
        });
        println!("{fault:?}: {noticed:?}");
        assert!(noticed.is_some(), "{fault:?} goes unnoticed");
    }
}
