//! Models of what threads of one process do to each other, checked in every order by loom:
//! `RUSTFLAGS='--cfg tokenseal_model' cargo test --all-features --release --lib --target-dir target/model refresh::model`.

use std::sync::Arc;
use std::sync::PoisonError;
use std::time::Duration;

use loom::thread;

use super::single_flight::{Flight, Joined, Leader, Patience, SingleFlight, Waited};
use crate::deadline::{self, Lane};
use crate::sync::Mutex;

/// As much of the world as the flights and the lane are to protect.
struct World {
    flights: Arc<SingleFlight<&'static str, u32>>,
    lane: Arc<Lane>,
    provider: Mutex<Provider>,
}

/// A cache and a server in one: refresh token `n` can be used once, and brings `n + 1`.
#[derive(Default)]
struct Provider {
    calls: u32,
    /// The refresh token in the cache, and the one the server would take.
    cached: u32,
    taken: u32,
    is_called: bool,
    fresh: Vec<&'static str>,
}

impl World {
    fn new() -> Arc<Self> {
        Arc::new(Self { flights: Arc::default(), lane: Arc::default(), provider: Mutex::default() })
    }

    fn provider<T>(&self, look: impl FnOnce(&mut Provider) -> T) -> T {
        look(&mut self.provider.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn is_fresh(&self, scope: &'static str) -> bool {
        self.provider(|provider| provider.fresh.contains(&scope))
    }

    /// What `engine` does: lease, look again, call, save.
    fn refresh(&self, scope: &'static str) {
        let _turn = self.lane.enter(far()).expect("nobody holds it for ever");
        if self.is_fresh(scope) {
            return;
        }
        let sent = self.provider(|provider| {
            assert!(!provider.is_called, "two calls at once");
            provider.is_called = true;
            provider.cached
        });
        thread::yield_now();
        self.provider(|provider| {
            assert_eq!(sent, provider.taken, "a refresh token was sent twice");
            provider.taken += 1;
            provider.calls += 1;
            provider.is_called = false;
            provider.cached = provider.taken;
            provider.fresh.push(scope);
        });
    }

    /// What `attempt` does.
    fn acquire(self: &Arc<Self>, scope: &'static str, wait: impl Fn(&Flight<u32>) -> Waited<u32>) {
        loop {
            if self.is_fresh(scope) {
                return;
            }
            match self.flights.join(&scope) {
                Joined::Follower(flight) => match wait(&flight) {
                    Waited::Finished(_) => break,
                    Waited::Crashed => {}
                    other => panic!("{other:?}"),
                },
                Joined::Leader(lead) => {
                    self.refresh(scope);
                    lead.finish(1);
                    break;
                }
            }
        }
        assert!(self.is_fresh(scope), "whoever is done has what it came for");
    }
}

fn far() -> std::time::Instant {
    deadline::after(Duration::MAX)
}

fn patience() -> Patience {
    Patience { deadline: far(), call_timeout: Duration::MAX, is_leader: false }
}

fn blocking(flight: &Flight<u32>) -> Waited<u32> {
    flight.wait(patience())
}

#[cfg(feature = "tokio")]
fn asynchronous(flight: &Flight<u32>) -> Waited<u32> {
    use super::single_flight::Waiting;
    use std::task::Context;

    loop {
        let until = match flight.look(patience()) {
            Ok(waited) => return waited,
            Err(until) => until,
        };
        let (waiting, bell) = (Waiting::new(flight), Arc::<Bell>::default());
        let waker = Arc::clone(&bell).into();
        while waiting.poll(patience(), until, &Context::from_waker(&waker)).is_pending() {
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

fn all(world: &Arc<World>, scopes: &[&'static str], wait: fn(&Flight<u32>) -> Waited<u32>) {
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
}

#[test]
fn three_that_want_the_same_make_one_call() {
    check(3, || {
        let world = World::new();
        all(&world, &["read"; 3], blocking);
        assert_eq!(world.provider(|provider| provider.calls), 1);
        assert!(world.flights.is_empty(), "no flight is left behind");
    });
}

#[cfg(feature = "tokio")]
#[test]
fn three_tasks_that_want_the_same_make_one_call() {
    check(2, || {
        let world = World::new();
        all(&world, &["read"; 3], asynchronous);
        assert_eq!(world.provider(|provider| provider.calls), 1);
    });
}

#[test]
fn those_who_want_other_scopes_take_turns() {
    check(3, || {
        let world = World::new();
        all(&world, &["read", "write", "read"], blocking);
        assert_eq!(world.provider(|provider| provider.calls), 2);
    });
}

#[test]
fn a_leader_that_crashes_strands_nobody() {
    check(3, || {
        let world = World::new();
        let crashing = Arc::clone(&world);
        let crashed = thread::spawn(move || match crashing.flights.join(&"read") {
            Joined::Leader(lead) => {
                let _: &Leader<_, _> = &lead;
                assert!(lead.call_begins(false, far()));
            }
            Joined::Follower(flight) => drop(blocking(&flight)),
        });
        all(&world, &["read"; 2], blocking);
        crashed.join().unwrap();
        assert!(world.flights.is_empty(), "no flight is left behind");
        assert_eq!(world.provider(|provider| provider.calls), 1);
    });
}
