//! What threads of one process do to each other in a refresh, checked in every order by loom: the single flight,
//! the registry, the driver and the plan are the real ones.
//! `RUSTFLAGS='--cfg tokenseal_model' cargo test --all-features --release --lib --target-dir target/model driver::model`.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};

use loom::thread;

use super::blocking::drive;
use super::caller::{Caller, Step};
use super::registry::Registry;
use super::single_flight::{Flight, Joined, Patience, Waited};
use super::source::Source;
use crate::cache::{AccessTokenQuery, Account, Life, TokenCache, TokenResponse};
use crate::deadline::{self, Lane};
use crate::refresh::call::Call;
use crate::refresh::plan::credential::Purpose;
use crate::refresh::plan::step::Outcome;
use crate::refresh::request::AcquireRequest;
use crate::shared::SharedTokenCache;
use crate::sync::Mutex;

/// A cache in memory that threads share, and a provider.
struct World {
    source: Source,
    registry: Arc<Registry>,
    provider: Arc<Mutex<Provider>>,
}

/// Refresh token `n` can be used once, and brings `n + 1`.
#[derive(Default)]
struct Provider {
    calls: u32,
    is_called: bool,
}

fn response(json: &str) -> TokenResponse {
    let response = TokenResponse::from_json(json).unwrap().client_id("app").environment("idp.example");
    response.realm("r").home_account_id("alice")
}

fn query(scope: &str) -> AccessTokenQuery {
    AccessTokenQuery::for_account("app", &Account::new("alice", "idp.example")).scopes([scope])
}

impl World {
    fn new() -> Arc<Self> {
        let mut cache = TokenCache::new();
        cache.add(&response(r#"{"refresh_token":"0","scope":"read write"}"#)).unwrap();
        let source = Source::Memory(SharedTokenCache::new(cache));
        Arc::new(Self { source, registry: Arc::default(), provider: Arc::default() })
    }

    fn calls(&self) -> u32 {
        self.provider.lock().unwrap_or_else(PoisonError::into_inner).calls
    }

    fn acquire(&self, scope: &'static str, wait: fn(&Flight<Outcome>, Patience) -> Waited<Outcome>) {
        let wanted = query(scope);
        let registry = || Arc::clone(&self.registry);
        let request = AcquireRequest::from(&wanted);
        let Err(mut caller) = Caller::new(&self.source, registry, request, Purpose::AccessToken).unwrap()
        else {
            return;
        };
        loop {
            let provider = Arc::clone(&self.provider);
            let flight = match caller.join(|driver| {
                drive(driver, move |call| Ok(Some(refresh(&provider, &call, scope))));
                Ok(())
            }) {
                Step::Done(result) => return drop(result.unwrap()),
                Step::Wait(flight) => flight,
            };
            if let Some(result) = caller.judge(wait(&flight, caller.patience())) {
                return drop(result.unwrap());
            }
        }
    }

    fn has(&self, scope: &str) -> bool {
        let now = query(scope).at(SystemTime::now());
        self.source.read(|cache| cache.find_living_access_token(&now, Life::Fresh, None).is_some()).unwrap()
    }
}

fn refresh(provider: &Mutex<Provider>, call: &Call, scope: &str) -> TokenResponse {
    let number = {
        let mut provider = provider.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(!provider.is_called, "two calls at once");
        provider.is_called = true;
        let sent: u32 = call.refresh_token.as_ref().unwrap().expose().parse().unwrap();
        assert_eq!(sent, provider.calls, "a refresh token was sent twice");
        provider.calls += 1;
        provider.calls
    };
    thread::yield_now();
    provider.lock().unwrap_or_else(PoisonError::into_inner).is_called = false;
    let json = format!(
        r#"{{"access_token":"at{number}","refresh_token":"{number}","expires_in":3600,"scope":"{scope}"}}"#
    );
    TokenResponse::from_json(json).unwrap()
}

fn far() -> std::time::Instant {
    deadline::after(Duration::MAX)
}

fn blocking<V: Clone>(flight: &Flight<V>, patience: Patience) -> Waited<V> {
    flight.wait(patience)
}

#[cfg(feature = "tokio")]
fn asynchronous<V: Clone>(flight: &Flight<V>, patience: Patience) -> Waited<V> {
    use super::single_flight::Waiting;
    use std::task::Context;

    loop {
        let until = match flight.look(patience) {
            Ok(waited) => return waited,
            Err(until) => until,
        };
        let (waiting, bell) = (Waiting::new(flight), Arc::<Bell>::default());
        let waker = Arc::clone(&bell).into();
        while waiting.poll(patience, until, &Context::from_waker(&waker)).is_pending() {
            bell.wait();
        }
    }
}

/// What a task is woken by.
#[cfg(feature = "tokio")]
#[derive(Default)]
struct Bell {
    has_rung: Mutex<bool>,
    rang: crate::sync::Condvar,
}

#[cfg(feature = "tokio")]
impl Bell {
    fn wait(&self) {
        let mut has_rung = self.has_rung.lock().unwrap();
        while !std::mem::take(&mut *has_rung) {
            has_rung = self.rang.wait(has_rung).unwrap();
        }
    }
}

#[cfg(feature = "tokio")]
impl std::task::Wake for Bell {
    fn wake(self: Arc<Self>) {
        *self.has_rung.lock().unwrap() = true;
        self.rang.notify_one();
    }
}

/// Checks every order in which no thread is interrupted more often than this.
fn check(interruptions: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(interruptions);
    builder.check(model);
}

/// What several threads want at once, this one among them.
fn all(world: &Arc<World>, scopes: &[&'static str], wait: fn(&Flight<Outcome>, Patience) -> Waited<Outcome>) {
    let threads: Vec<_> = scopes[1..]
        .iter()
        .map(|&scope| {
            let world = Arc::clone(world);
            thread::spawn(move || world.acquire(scope, wait))
        })
        .collect();
    world.acquire(scopes[0], wait);
    for thread in threads {
        thread.join().unwrap();
    }
    assert!(scopes.iter().all(|scope| world.has(scope)), "whoever is done has what it came for");
    assert!(world.registry.flights.is_empty(), "no flight is left behind");
}

#[test]
fn those_who_want_the_same_make_one_call() {
    check(3, || {
        let world = World::new();
        all(&world, &["read"; 3], blocking);
        assert_eq!(world.calls(), 1);
    });
}

#[cfg(feature = "tokio")]
#[test]
fn tasks_that_want_the_same_make_one_call() {
    check(3, || {
        let world = World::new();
        all(&world, &["read"; 2], asynchronous);
        assert_eq!(world.calls(), 1);
    });
}

#[test]
fn those_who_want_other_scopes_take_turns() {
    check(3, || {
        let world = World::new();
        all(&world, &["read", "write"], blocking);
        assert_eq!(world.calls(), 2);
    });
}

#[test]
fn a_leader_that_crashes_strands_nobody() {
    check(3, || {
        let flights = Arc::<super::single_flight::SingleFlight<&'static str, u32>>::default();
        let patience = Patience { deadline: far(), call_timeout: Duration::MAX, is_leader: false };
        let crashing = Arc::clone(&flights);
        let crashed = thread::spawn(move || match crashing.join(&"read") {
            Joined::Leader(leader) => assert!(leader.call_begins(false, far())),
            Joined::Follower(flight) => drop(blocking(&flight, patience)),
        });
        match flights.join(&"read") {
            Joined::Leader(leader) => leader.finish(1),
            Joined::Follower(flight) => {
                assert!(matches!(blocking(&flight, patience), Waited::Crashed));
            }
        }
        crashed.join().unwrap();
        assert!(flights.is_empty(), "no flight is left behind");
    });
}

/// A waker of the lane's queue is never lost: whoever waits without a thread gets its turn.
#[cfg(feature = "tokio")]
#[test]
fn whoever_waits_for_a_lane_without_a_thread_gets_its_turn() {
    check(3, || {
        let lane = Arc::<Lane>::default();
        let threads = [true, false].map(|has_thread| {
            let lane = Arc::clone(&lane);
            thread::spawn(move || {
                if has_thread {
                    return drop(lane.enter(far()).unwrap());
                }
                let bell = Arc::<Bell>::default();
                while lane.enter_or_queue(Arc::clone(&bell).into()).is_none() {
                    bell.wait();
                }
            })
        });
        drop(lane.enter(far()).unwrap());
        for thread in threads {
            thread.join().unwrap();
        }
    });
}
