//! Nothing piles up: behind a wait that timed out, a hung keyring or a probe, and with the size of a cache.
#![cfg(all(target_os = "linux", feature = "file"))]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::rotating::{Rotating, never, sign_in_expired, wanted};
use common::{Bench, CLIENT, account, response};
use tokenseal::{
    AccessTokenQuery, RefreshTokenQuery, Secret, TokenCache,
    key_store::{KeyName, KeyStore, KeyStoreError, MemoryKeyStore},
    refresh::AcquireRequest,
};

const SHORT: Duration = Duration::from_millis(10);

/// Runs a test of this program alone in a process, whose threads and descriptors can be counted.
fn alone(test: &str, work: impl FnOnce()) {
    const ALONE: &str = "TOKENSEAL_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return work();
    }
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(ALONE, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

fn count(what: &str) -> usize {
    std::fs::read_dir(format!("/proc/self/{what}")).unwrap().count()
}

/// Threads and descriptors.
fn used() -> (usize, usize) {
    (count("task"), count("fd"))
}

fn wait_until_used(expected: (usize, usize)) {
    let started = Instant::now();
    while used() > expected {
        assert!(started.elapsed() < Duration::from_secs(10), "{:?} of {expected:?} are left", used());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// R1: whoever waits for a hung holder, and however often.
#[test]
fn a_hundred_timed_out_waits_for_a_lock_leave_one_thread_and_one_descriptor() {
    alone("a_hundred_timed_out_waits_for_a_lock_leave_one_thread_and_one_descriptor", || {
        let bench = Bench::new();
        let cache = bench.builder().lock_timeout(SHORT).open().unwrap();
        sign_in_expired(&cache);
        let query = RefreshTokenQuery::new(CLIENT, &account("alice"));
        drop(cache.refresh_guard(&query, SHORT).unwrap());
        let held: Vec<std::fs::File> = bench
            .files()
            .iter()
            .filter(|name| name.strip_suffix(".lock").is_some())
            .map(|name| {
                let file = std::fs::File::open(bench.directory().join(name)).unwrap();
                file.lock().unwrap();
                file
            })
            .collect();
        assert_eq!(held.len(), 2, "the cache's lock and the refresh token's");
        let (threads, descriptors) = used();
        let wanted = wanted("read");
        for _ in 0..100 {
            assert!(cache.refresh_guard(&query, SHORT).is_err());
            assert!(cache.acquire(AcquireRequest::new(&wanted).wait_timeout(SHORT), never()).is_err());
            assert!(cache.add(&response("bob", "read")).is_err());
        }
        // A refresh that was waited for in vain ends a moment later.
        wait_until_used((threads + 2, descriptors + 2));
        drop(held);
        wait_until_used((threads, descriptors - 2));
        assert!(cache.refresh_guard(&query, Duration::from_secs(10)).is_ok());
        cache.add(&response("bob", "read")).unwrap();
    });
}

/// Hangs for as long as it is told to, or is slow.
#[derive(Debug, Default)]
struct Hanging {
    inner: MemoryKeyStore,
    hangs: AtomicBool,
    is_slow: AtomicBool,
}

impl Hanging {
    fn hang(&self) {
        if self.is_slow.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(50));
        }
        while self.hangs.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl KeyStore for Hanging {
    fn description(&self) -> String {
        "the hanging store".into()
    }
    fn prepare(&self) -> Result<(), KeyStoreError> {
        self.hang();
        Ok(())
    }
    fn create(&self, name: &KeyName, text: &Secret) -> Result<(), KeyStoreError> {
        self.hang();
        self.inner.create(name, text)
    }
    fn read(&self, name: &KeyName) -> Result<Option<Secret>, KeyStoreError> {
        self.hang();
        self.inner.read(name)
    }
    fn delete(&self, name: &KeyName) -> Result<(), KeyStoreError> {
        self.hang();
        self.inner.delete(name)
    }
}

/// R16: however many handles are opened on one store that hangs.
#[test]
fn a_hundred_opens_on_a_hung_store_leave_one_thread() {
    alone("a_hundred_opens_on_a_hung_store_leave_one_thread", || {
        let (bench, keys) = (Bench::new(), Arc::new(Hanging::default()));
        let builder = || bench.builder_with(keys.clone()).key_timeout(SHORT).rotation_timeout(SHORT);
        let cache = builder().key_timeout(Duration::from_secs(10)).open().unwrap();
        cache.add(&response("alice", "read")).unwrap();
        let (threads, descriptors) = used();
        keys.hangs.store(true, Ordering::SeqCst);
        for number in 0..100 {
            assert!(builder().open().unwrap_err().is_key_unavailable());
            if number % 10 == 0 {
                cache.add(&response("bob", "read")).unwrap();
                assert!(cache.remove_account(&account("bob")).unwrap().is_rotation_pending());
            }
        }
        wait_until_used((threads + 1, descriptors));
        keys.hangs.store(false, Ordering::SeqCst);
        wait_until_used((threads, descriptors));
        drop(builder().key_timeout(Duration::from_secs(10)).open().unwrap());
    });
}

/// A call that is quick, by another handle, is no reason to be impatient with the store.
#[test]
fn a_store_that_others_use_is_not_taken_for_hung() {
    let (bench, keys) = (Bench::new(), Arc::new(Hanging::default()));
    keys.is_slow.store(true, Ordering::SeqCst);
    let open = |number| bench.builder_with(keys.clone()).cache(format!("cache-{number}")).open().unwrap();
    let caches: Vec<_> = (0..4).map(open).collect();
    std::thread::scope(|scope| {
        for cache in &caches {
            scope.spawn(move || {
                cache.add(&response("alice", "read")).unwrap();
                assert!(!cache.remove_account(&account("alice")).unwrap().is_rotation_pending());
            });
        }
    });
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// R17: a find costs the same however many tenants one user has.
#[test]
fn a_find_costs_the_same_however_many_tenants_a_user_has() {
    let row = |tenant: usize| {
        format!(
            r#""k{tenant}":{{"secret":"at-{tenant}","home_account_id":"alice","environment":"e","client_id":"app",
            "realm":"tenant-{tenant}","target":"read","expires_on":"99999999999"}}"#
        )
    };
    let time = |tenants: usize| {
        let mut cache = TokenCache::new();
        let rows: Vec<String> = (0..tenants).map(row).collect();
        cache.deserialize(format!(r#"{{"AccessToken":{{{}}}}}"#, rows.join(","))).unwrap();
        let query =
            AccessTokenQuery::for_account("app", &tokenseal::Account::new("alice", "e")).scopes(["read"]);
        let query = query.realm(format!("tenant-{}", tenants - 1));
        let find = || {
            let started = Instant::now();
            for _ in 0..100 {
                let found = cache.find_access_token(&query).unwrap();
                assert_eq!(found.expose().len(), format!("at-{}", tenants - 1).len());
            }
            started.elapsed() / 100
        };
        find();
        median((0..21).map(|_| find()).collect())
    };
    let (one, many) = (time(1), time(5_000));
    println!("find: {one:?} with one tenant, {many:?} with 5,000");
    // What the index is for: without it the second is a thousand times the first.
    assert!(many < one * 20 && many < Duration::from_micros(50), "{one:?}, {many:?}");
}

/// R18: a save costs the same however many refresh locks there are.
#[test]
fn a_save_does_not_look_at_what_else_is_in_the_directory() {
    let (alone, crowded) = (Bench::new(), Bench::new());
    let caches = [alone.open(), crowded.open()];
    for number in 0..20_000 {
        std::fs::File::create(crowded.directory().join(format!("default@{number:032x}.refresh.lock")))
            .unwrap();
    }
    let mut times = [Vec::new(), Vec::new()];
    for round in 0..41 {
        for (cache, times) in caches.iter().zip(&mut times) {
            let started = Instant::now();
            cache.add(&response("alice", &format!("scope-{round}"))).unwrap();
            times.push(started.elapsed());
        }
    }
    let [alone, crowded] = times.map(median);
    println!("add: {alone:?}, beside 20,000 locks {crowded:?}");
    // Listing them took 8 ms more.
    assert!(crowded < alone * 2 + Duration::from_millis(2), "{alone:?}, {crowded:?}");
}

/// An acquire that fails at once leaves nothing of it.
#[test]
fn a_hundred_failed_refreshes_leave_no_thread() {
    alone("a_hundred_failed_refreshes_leave_no_thread", || {
        let (bench, provider) = (Bench::new(), Rotating::new());
        let cache = bench.open();
        sign_in_expired(&cache);
        let before = used();
        for number in 0..100 {
            provider.next_fails(tokenseal::refresh::RefreshFailure::refused("invalid_scope"));
            assert!(cache.acquire(&wanted(&format!("scope-{number}")), provider.call()).is_err());
        }
        wait_until_used(before);
    });
}

/// Whoever waits for a key that hangs waits until its own deadline, and leaves nothing.
#[test]
fn a_hundred_refreshes_behind_a_hung_keyring_leave_one_thread() {
    alone("a_hundred_refreshes_behind_a_hung_keyring_leave_one_thread", || {
        let (bench, keys) = (Bench::new(), Arc::new(Hanging::default()));
        let cache = bench.builder_with(keys.clone()).key_timeout(Duration::from_secs(30)).open().unwrap();
        for number in 0..100 {
            let user = format!("user-{number}");
            cache.add(&response(&user, "read").expires_on(std::time::SystemTime::UNIX_EPOCH)).unwrap();
        }
        // Another process changes the key, and this one needs the new one.
        let other = bench.builder_with(keys.clone()).open().unwrap();
        other.remove_account(&account("user-99")).unwrap();
        keys.hangs.store(true, Ordering::SeqCst);
        let before = used();
        std::thread::scope(|scope| {
            for number in 0..100 {
                let cache = &cache;
                scope.spawn(move || {
                    let wanted = common::wanted(&format!("user-{number}"), "read");
                    let request = AcquireRequest::new(&wanted).wait_timeout(SHORT);
                    assert!(cache.acquire(request, never()).unwrap_err().is_transient());
                    let query = RefreshTokenQuery::new(CLIENT, &account("user-0"));
                    assert!(cache.refresh_guard(&query, SHORT).is_err());
                });
            }
        });
        wait_until_used((before.0 + 1, before.1));
        keys.hangs.store(false, Ordering::SeqCst);
        wait_until_used(before);
        assert_eq!(cache.accounts().unwrap().len(), 99);
    });
}

/// The same for tasks: nobody waits longer than its own deadline, and a few threads are all that hangs.
#[cfg(feature = "tokio")]
#[test]
fn a_hundred_asynchronous_refreshes_behind_a_hung_keyring_leave_a_few_threads() {
    alone("a_hundred_asynchronous_refreshes_behind_a_hung_keyring_leave_a_few_threads", || {
        let (bench, keys) = (Bench::new(), Arc::new(Hanging::default()));
        let cache = bench.builder_with(keys.clone()).key_timeout(Duration::from_secs(30)).open().unwrap();
        for number in 0..100 {
            let user = format!("user-{number}");
            cache.add(&response(&user, "read").expires_on(std::time::SystemTime::UNIX_EPOCH)).unwrap();
        }
        let other = bench.builder_with(keys.clone()).open().unwrap();
        other.remove_account(&account("user-99")).unwrap();
        keys.hangs.store(true, Ordering::SeqCst);
        let before = used();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let acquire = |number: usize| {
                let cache = cache.clone();
                tokio::spawn(async move {
                    let wanted = common::wanted(&format!("user-{number}"), "read");
                    let request = AcquireRequest::new(&wanted).wait_timeout(SHORT);
                    cache.acquire_async(request, async |_| panic!("no call was to be made")).await
                })
            };
            let tasks: Vec<_> = (0..100).map(acquire).collect();
            let started = Instant::now();
            for task in tasks {
                assert!(task.await.unwrap().unwrap_err().is_transient());
            }
            assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
        });
        drop(runtime);
        wait_until_used((before.0 + 10, before.1 + 1));
        keys.hangs.store(false, Ordering::SeqCst);
        assert_eq!(cache.accounts().unwrap().len(), 99);
    });
}
