//! Every order of events that something done once can meet: two processes, kills, saves that fail.

use std::collections::HashSet;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use super::super::{Called, Fault, Outcome, Plan, Read, Step};
use super::world::{save, time};
use crate::cache::{TokenCache, TokenResponse};
use crate::refresh::error::AcquireError;
use crate::refresh::failure::RefreshFailure;
use crate::refresh::once::OnceRequest;
use crate::refresh::plan::back_off::unix_millis;
use crate::refresh::plan::credential::{Once, Purpose};
use crate::refresh::plan::held::Held;
use crate::refresh::plan::look::{Means, Wanted};
use crate::refresh::plan::names::{LeaseName, RequestId};
use crate::refresh::plan::pending::Pending;
use crate::refresh::plan::status::Status;

const NOW: u64 = 10;

/// What comes of the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Reply {
    /// A sign-in, whose tokens are to be saved.
    Tokens,
    /// It saved its result itself.
    Done,
    /// It says that it is done, and nothing shows that.
    NotDone,
    Refused,
    Outage,
    Panicked,
}

const REPLIES: [Reply; 6] =
    [Reply::Tokens, Reply::Done, Reply::NotDone, Reply::Refused, Reply::Outage, Reply::Panicked];

#[derive(Clone, Hash, PartialEq, Eq)]
enum Todo {
    Read(Read),
    Lease,
    Call,
    Answer(Reply),
    Save,
    Finished,
}

#[derive(Clone)]
struct Flight {
    process: usize,
    plan: Plan,
    todo: Todo,
    held: Option<Held>,
    steps: u32,
}

#[derive(Clone)]
struct World {
    disk: Arc<TokenCache>,
    memory: [Arc<TokenCache>; 2],
    pending: [Pending; 2],
    is_alive: [bool; 2],
    status: Status,
    holder: Option<usize>,
    flights: Vec<Flight>,
    kills: u32,
    failed_saves: u32,
    /// Whether the work has failed, so that it is not begun again at once.
    has_failed: bool,
    /// Whether the work said that it is done, and nothing showed that.
    has_lied: bool,
    fault: Option<Fault>,
    trail: Vec<String>,
}

fn is_done(cache: &TokenCache) -> bool {
    cache.knows_account("alice", "idp.example")
}

fn sign_in() -> TokenResponse {
    let response = TokenResponse::from_json(r#"{"refresh_token":"rt","scope":"read"}"#).expect("JSON");
    response.client_id("app").environment("idp.example").realm("r").home_account_id("alice")
}

fn plan() -> Plan {
    let purpose = Purpose::Once(Once { name: "sign-in".into(), is_done: Arc::new(is_done) });
    let query = OnceRequest::query();
    Plan::new(Arc::new(Wanted {
        request: RequestId::new(&purpose, &query, None, None),
        purpose,
        query,
        means: Means::Mint,
        family_id: None,
        token_endpoint: None,
        claims: None,
        tries_now: false,
        refused: None,
        call_timeout: Duration::from_secs(30),
        is_early: false,
    }))
}

impl World {
    fn new(fault: Option<Fault>) -> Self {
        let disk = Arc::new(TokenCache::new());
        Self {
            memory: [Arc::clone(&disk), Arc::clone(&disk)],
            disk,
            pending: [Pending::default(), Pending::default()],
            is_alive: [true; 2],
            status: Status::default(),
            holder: None,
            flights: Vec::new(),
            kills: 1,
            failed_saves: 1,
            has_failed: false,
            has_lied: false,
            fault,
            trail: Vec::new(),
        }
    }

    /// The states that may come next.
    fn next(&self) -> Result<Vec<Self>, String> {
        let mut next = Vec::new();
        let mut push = |event: String, change: &dyn Fn(&mut Self) -> Result<(), String>| {
            let mut world = self.clone();
            world.trail.push(event);
            let wrong = change(&mut world).err();
            if let Some(wrong) = wrong {
                return Err(format!("{wrong}, after {:?}", world.trail));
            }
            next.push(world);
            Ok(())
        };
        // Two callers of each process, of whom the second may come at any time.
        for process in 0..2 {
            let of_process = self.flights.iter().filter(|flight| flight.process == process).count();
            let is_idle = !self.flights.iter().any(|f| f.process == process && f.todo != Todo::Finished);
            if self.is_alive[process] && of_process < 2 && is_idle {
                push(format!("{process} begins"), &|world| {
                    let mut plan = plan();
                    plan.fault = world.fault;
                    let step = plan.begin();
                    let flight = Flight { process, plan, todo: Todo::Finished, held: None, steps: 0 };
                    world.flights.push(flight);
                    world.take_step(world.flights.len() - 1, step)
                })?;
            }
            if self.is_alive[process] && self.holder.is_none() && !self.pending[process].is_empty() {
                push(format!("{process} saves later"), &|world| {
                    let pending = &mut world.pending[process];
                    save(pending, &mut world.disk, true);
                    Ok(())
                })?;
            }
            if self.is_alive[process] && self.kills > 0 {
                push(format!("{process} is killed"), &|world| {
                    world.kill(process);
                    Ok(())
                })?;
            }
        }
        for (number, flight) in self.flights.iter().enumerate() {
            match &flight.todo {
                Todo::Finished => {}
                Todo::Read(read) => push(format!("{number} reads"), &|world| world.read(number, *read))?,
                Todo::Lease if self.holder.is_none() => {
                    push(format!("{number} has the lease"), &|world| world.lease(number))?;
                }
                Todo::Lease => push(format!("{number} waits in vain"), &|world| {
                    let step = world.flights[number].plan.not_leased(Some(AcquireError::NoAccount));
                    world.take_step(number, step)
                })?,
                Todo::Call => {
                    for reply in REPLIES {
                        push(format!("{number}: {reply:?}"), &|world| {
                            world.flights[number].todo = Todo::Answer(reply);
                            Ok(())
                        })?;
                    }
                }
                Todo::Answer(reply) => {
                    push(format!("{number} answers"), &|world| world.answer(number, *reply))?;
                }
                Todo::Save => {
                    push(format!("{number} saves"), &|world| world.save(number, true))?;
                    if self.failed_saves > 0 {
                        push(format!("{number} cannot save"), &|world| {
                            world.failed_saves -= 1;
                            world.save(number, false)
                        })?;
                    }
                }
            }
        }
        Ok(next)
    }

    fn take_step(&mut self, number: usize, step: Step) -> Result<(), String> {
        self.flights[number].steps += 1;
        if self.flights[number].steps > 40 {
            return Err("it goes on for ever".into());
        }
        let todo = match step {
            Step::Read(read) => Todo::Read(read),
            Step::Lease { .. } => {
                self.release(number);
                Todo::Lease
            }
            Step::Call(call) => {
                if call.refresh_token.is_some() {
                    return Err("a refresh token is sent".into());
                }
                if self.flights.iter().any(|other| matches!(other.todo, Todo::Call | Todo::Answer(_))) {
                    return Err("it is done twice at the same time".into());
                }
                let flight = &self.flights[number];
                let is_pending = flight.held.as_ref().is_some_and(|held| !held.pending.is_empty());
                if is_done(&self.disk) || is_pending {
                    return Err("it is done although it was done before".into());
                }
                if self.has_failed {
                    return Err("it is done again although that failed a moment ago".into());
                }
                Todo::Call
            }
            Step::Save => Todo::Save,
            Step::Finish(outcome) => {
                self.finish(number, &outcome)?;
                Todo::Finished
            }
            Step::Forget(_) => return Err("nothing was to be forgotten".into()),
        };
        self.flights[number].todo = todo;
        Ok(())
    }

    fn finish(&mut self, number: usize, outcome: &Outcome) -> Result<(), String> {
        if let Outcome::Acquired(acquired) = outcome {
            let is_saved = is_done(&self.disk);
            let is_pending = self.flights[number].held.as_ref().is_some_and(|held| !held.pending.is_empty());
            if !is_saved && (!is_pending || acquired.is_persisted()) {
                return Err("a caller is told that it is done, and it is not".into());
            }
        }
        if matches!(outcome, Outcome::Failed { error: AcquireError::NotDone, .. }) && !self.has_lied {
            return Err("a caller is told that it is not done, and it is".into());
        }
        self.release(number);
        Ok(())
    }

    fn release(&mut self, number: usize) {
        let flight = &mut self.flights[number];
        let Some(held) = flight.held.take() else { return };
        self.pending[flight.process] = held.pending;
        self.status = held.status;
        self.holder = None;
    }

    fn read(&mut self, number: usize, read: Read) -> Result<(), String> {
        let process = self.flights[number].process;
        if read != Read::InMemory {
            self.memory[process] = Arc::clone(&self.disk);
        }
        let cache = Arc::clone(&self.memory[process]);
        let flight = &mut self.flights[number];
        let step = flight.plan.read(&cache, flight.held.as_mut(), time(NOW));
        self.take_step(number, step)
    }

    fn lease(&mut self, number: usize) -> Result<(), String> {
        let flight = &mut self.flights[number];
        let mut status = self.status.clone();
        status.forget_what_is_over(unix_millis(time(NOW)));
        let name = LeaseName::of_mint(&flight.plan.wanted.request);
        let held = flight.held.insert(Held { name, status, pending: self.pending[flight.process].clone() });
        let step = flight.plan.leased(held);
        self.holder = Some(number);
        self.take_step(number, step)
    }

    fn answer(&mut self, number: usize, reply: Reply) -> Result<(), String> {
        self.has_lied |= reply == Reply::NotDone;
        self.has_failed |= !matches!(reply, Reply::Tokens | Reply::Done);
        let called = match reply {
            Reply::Tokens => Called::Answered(Ok(Some(Box::new(sign_in())))),
            Reply::Done => {
                let mut cache = (*self.disk).clone();
                cache.add(&sign_in()).expect("a sign-in");
                self.disk = Arc::new(cache);
                Called::Answered(Ok(None))
            }
            Reply::NotDone => Called::Answered(Ok(None)),
            Reply::Refused => Called::Answered(Err(RefreshFailure::refused("access_denied"))),
            Reply::Outage => Called::Answered(Err(RefreshFailure::transient("no browser"))),
            Reply::Panicked => Called::Lost("it panicked"),
        };
        let flight = &mut self.flights[number];
        let Some(held) = &mut flight.held else { return Err("it is done without a lease".into()) };
        let step = flight.plan.answered(called, held, time(NOW));
        self.take_step(number, step)
    }

    fn save(&mut self, number: usize, succeeds: bool) -> Result<(), String> {
        let flight = &mut self.flights[number];
        let Some(held) = &mut flight.held else { return Err("a save without a lease".into()) };
        save(&mut held.pending, &mut self.disk, succeeds);
        self.memory[flight.process] = Arc::clone(&self.disk);
        let step = flight.plan.saved();
        self.take_step(number, step)
    }

    fn kill(&mut self, process: usize) {
        self.kills -= 1;
        self.is_alive[process] = false;
        self.pending[process] = Pending::default();
        for (number, flight) in self.flights.iter_mut().enumerate().filter(|(_, f)| f.process == process) {
            // What it learned, nobody was told.
            self.has_failed &= self.holder != Some(number);
            self.holder.take_if(|holder| *holder == number);
            (flight.todo, flight.held) = (Todo::Finished, None);
        }
    }

    fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        let to = &mut hasher;
        for cache in [&self.disk, &self.memory[0], &self.memory[1]] {
            is_done(cache).hash(to);
        }
        (self.is_alive, self.status.to_text(), self.holder, self.kills, self.failed_saves).hash(to);
        (self.has_failed, self.has_lied).hash(to);
        for pending in &self.pending {
            pending.fingerprint(to);
        }
        for flight in &self.flights {
            (flight.process, &flight.todo, flight.held.is_some(), flight.steps).hash(to);
            if flight.todo != Todo::Finished {
                std::mem::discriminant(&flight.plan.state).hash(to);
                flight.plan.error.to_string().hash(to);
            }
            if let Some(held) = &flight.held {
                held.status.to_text().hash(to);
                held.pending.fingerprint(to);
            }
        }
        hasher.finish()
    }
}

/// Walks through all states; the number of them, or what was wrong in one.
fn walk(fault: Option<Fault>) -> Result<usize, String> {
    let first = World::new(fault);
    let mut seen = HashSet::from([first.fingerprint()]);
    let mut left = vec![first];
    while let Some(world) = left.pop() {
        let next = world.next()?;
        let is_over = |flight: &Flight| flight.todo == Todo::Finished;
        if next.is_empty() && !world.flights.iter().all(is_over) {
            return Err(format!("somebody waits for ever, after {:?}", world.trail));
        }
        for world in next {
            if seen.insert(world.fingerprint()) {
                left.push(world);
            }
        }
    }
    Ok(seen.len())
}

#[test]
fn in_every_order_of_events_it_is_done_once_and_nobody_waits_for_ever() {
    let states = walk(None).unwrap_or_else(|wrong| panic!("{wrong}"));
    println!("done once: {states} states");
}

#[test]
fn a_plan_that_does_it_wrong_is_noticed() {
    for fault in [
        Fault::LooksAtAnOldState,
        Fault::LooksWithoutWhatIsPending,
        Fault::IgnoresBackOff,
        Fault::IgnoresRefusals,
        Fault::ForgetsFailures,
        Fault::FinishesUnsaved,
        Fault::BlocksForEver,
    ] {
        let noticed = walk(Some(fault)).err();
        println!("{fault:?}: {noticed:?}");
        assert!(noticed.is_some(), "{fault:?} goes unnoticed");
    }
}
