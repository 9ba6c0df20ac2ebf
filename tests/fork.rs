//! A process that forks: parent and child go on with the same memory, never with the same nonce, and no child
//! has its parent's locks.
//!
//! The library is preloaded that makes `getpid` fork (`common/fork.c`), for safe Rust cannot.
#![cfg(all(target_os = "linux", target_env = "gnu", feature = "file"))]

mod common;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use common::rotating::{expire, signed_in, wanted};
use common::{account, files, with_key_file};
use tokenseal::{
    ErrorKind,
    seal::{self, Context, KeyId, SealingKey},
};
use tokenseal::{
    PersistedTokenCache, RefreshTokenQuery, TokenResponse,
    refresh::{AcquireRequest, RefreshCall, RefreshFailure},
};

const SEALS: usize = 1_000;
const LONG: Duration = Duration::from_secs(20);

/// The directory of a test, in the process that it starts.
fn base() -> Option<PathBuf> {
    std::env::var_os("TOKENSEAL_CHILD_BASE").map(PathBuf::from)
}

/// Forks. Whether this is the child.
fn fork(base: &Path) -> bool {
    let before = std::process::id();
    let thread = std::fs::read_link("/proc/thread-self").unwrap();
    let thread = thread.file_name().unwrap().to_str().unwrap().to_owned();
    std::fs::write(base.join("unfinished"), thread).unwrap();
    std::fs::rename(base.join("unfinished"), base.join("fork")).unwrap();
    std::process::id() != before
}

/// Says something to the test that started this process.
fn say(base: &Path, name: &str, what: &str) {
    let unfinished = base.join("said").join(format!(".{name}"));
    std::fs::write(&unfinished, what).unwrap();
    std::fs::rename(unfinished, base.join("said").join(name)).unwrap();
}

fn heard(base: &Path, name: &str) -> String {
    let started = Instant::now();
    loop {
        if let Ok(said) = std::fs::read_to_string(base.join("said").join(name)) {
            return said;
        }
        assert!(started.elapsed() < LONG, "nobody said {name}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A process that stays for as long as its parent's test does.
fn stay(base: &Path) -> ! {
    let started = Instant::now();
    while base.exists() && started.elapsed() < 3 * LONG {
        thread::sleep(Duration::from_millis(20));
    }
    std::process::exit(0);
}

/// Runs a test of this program with a `getpid` that forks.
fn run(test: &str, variables: &[(&str, &str)]) -> tempfile::TempDir {
    let (base, succeeded) = outcome(test, variables);
    assert!(succeeded, "{}", std::fs::read_to_string(base.path().join("log")).unwrap());
    base
}

fn outcome(test: &str, variables: &[(&str, &str)]) -> (tempfile::TempDir, bool) {
    let base = tempfile::tempdir().unwrap();
    std::fs::create_dir(base.path().join("said")).unwrap();
    let library = base.path().join("fork.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/common/fork.c");
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(source).status();
    assert!(built.unwrap().success(), "the linker that Rust needs compiles C as well");
    // Not through pipes: a child would keep them open.
    let log = std::fs::File::create(base.path().join("log")).unwrap();
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env("LD_PRELOAD", &library)
        .env("TOKENSEAL_TEST_FORK", base.path().join("fork"))
        .env("TOKENSEAL_CHILD_BASE", base.path())
        .envs(variables.iter().copied())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .status()
        .unwrap();
    (base, status.success())
}

fn nonce(key: &SealingKey) -> String {
    let record = seal::seal(key, &Context::file("contoso-cli", "default"), 1, b"{}").unwrap();
    record[32..56].iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"))
}

/// Not a test by itself: seals before it forks, so that whatever is kept between seals is kept, and
/// after it, twice over.
#[test]
fn as_one_that_seals() {
    let Some(base) = base() else { return };
    let key = SealingKey::from_bytes(KeyId::from_bytes([1; 16]), &[2; 32]);
    let mut lines: Vec<String> = (0..10).map(|_| nonce(&key)).collect();
    let is_child = fork(&base);
    // Here run two.
    lines.extend((0..SEALS).map(|_| nonce(&key)));
    say(&base, if is_child { "child" } else { "parent" }, &lines.join("\n"));
    if is_child {
        std::process::exit(0);
    }
}

#[test]
fn parent_and_child_of_a_fork_share_no_nonce() {
    let base = run("as_one_that_seals", &[]);
    let said = ["parent", "child"].map(|name| heard(base.path(), name));
    let nonces: Vec<Vec<&str>> = said.iter().map(|said| said.lines().collect()).collect();
    assert_eq!(nonces[0][..10], nonces[1][..10], "they were one process until they forked");
    let distinct: HashSet<&str> = nonces.iter().flat_map(|nonces| &nonces[10..]).copied().collect();
    assert_eq!(distinct.len(), 2 * SEALS);
}

fn answer(call: &RefreshCall, token: &str) -> Result<TokenResponse, RefreshFailure> {
    let _sent = call.form();
    call.answer(
        200,
        None,
        None,
        format!(r#"{{"access_token":"{token}","refresh_token":"rt-{token}","expires_in":3600}}"#),
    )
}

fn sign_in(cache: &PersistedTokenCache) {
    cache.add(&signed_in("original", "read", r#","expires_in":0"#)).unwrap();
}

/// Not a test by itself: a prefork server, which forks a worker in the middle of a refresh.
#[test]
fn as_a_prefork_server() {
    let Some(base) = base() else { return };
    let cache = with_key_file(&base).open().unwrap();
    sign_in(&cache);
    let (calling, is_calling) = mpsc::channel();
    let (go_on, may_go_on) = mpsc::channel::<()>();
    let refresh = thread::spawn({
        let cache = cache.clone();
        move || {
            let acquired = cache.acquire(&wanted("read"), move |call| {
                calling.send(()).unwrap();
                may_go_on.recv().unwrap();
                answer(&call, "parent")
            });
            acquired.unwrap()
        }
    });
    is_calling.recv().unwrap();
    if fork(&base) {
        // It has no use for the cache, and keeps everything that it inherited.
        stay(&base);
    }
    if fork(&base) {
        // It reads and changes the cache that its parent opened. The refresh under way is its parent's.
        let accounts = cache.accounts().unwrap().len();
        cache.add(&common::response("bob", "read")).unwrap();
        let query = wanted("read");
        let patient = AcquireRequest::new(&query).wait_timeout(LONG);
        say(&base, "child began", &accounts.to_string());
        let acquired = cache.acquire(patient, |call| answer(&call, "child")).unwrap();
        say(&base, "child", acquired.token().expose());
        stay(&base);
    }
    assert_eq!(heard(&base, "child began"), "1");
    go_on.send(()).unwrap();
    assert_eq!(refresh.join().unwrap().token().expose(), "parent");
    // The worker lives on, and has no lock: the next refresh need not wait for it.
    assert_eq!(heard(&base, "child"), "parent", "one request among the two");
    expire(&cache);
    let started = Instant::now();
    let query = wanted("read");
    let acquired =
        cache.acquire(AcquireRequest::new(&query).wait_timeout(LONG), |call| answer(&call, "next"));
    assert_eq!(acquired.unwrap().token().expose(), "next");
    assert!(started.elapsed() < LONG / 2, "{:?}", started.elapsed());
    assert_eq!(cache.accounts().unwrap().len(), 2, "what the child added is there");
}

#[test]
fn a_worker_that_is_forked_in_the_middle_of_a_refresh_takes_part_and_keeps_no_lock() {
    drop(run("as_a_prefork_server", &[]));
}

/// Not a test by itself: is killed while it refreshes, with a child that uses the cache, or does not.
#[test]
fn as_a_server_that_is_killed() {
    let Some(base) = base() else { return };
    let cache = with_key_file(&base).open().unwrap();
    sign_in(&cache);
    if fork(&base) {
        let parent = heard(&base, "parent");
        // The parent is in its call, and killed there.
        let killed = Command::new("kill").args(["-9", &parent]).status().unwrap();
        assert!(killed.success());
        let started = Instant::now();
        let acquired = cache.acquire(&wanted("read"), |call| answer(&call, "child")).unwrap();
        say(&base, "child", &format!("{} {}", acquired.token().expose(), started.elapsed() < LONG / 2));
        stay(&base);
    }
    let acquired = cache.acquire(&wanted("read"), {
        let base = base.clone();
        move |_| {
            // Forked with the lock held, and without a use for the cache but to let go of what it inherited.
            if fork(&base) {
                drop(with_key_file(&base).cache("another").open());
                say(&base, "grandchild", "");
                stay(&base);
            }
            heard(&base, "grandchild");
            say(&base, "parent", &std::process::id().to_string());
            thread::sleep(3 * LONG);
            Err(RefreshFailure::transient("it was not killed"))
        }
    });
    panic!("{acquired:?}");
}

#[test]
fn a_killed_parent_s_lock_is_not_kept_by_a_child_that_uses_a_cache() {
    let (base, succeeded) = outcome("as_a_server_that_is_killed", &[]);
    assert!(!succeeded, "it was killed");
    assert_eq!(heard(base.path(), "child"), "child true");
}

/// Not a test by itself: forks in the middle of a change, and while it has a guard.
#[test]
fn as_one_that_forks_within() {
    let Some(base) = base() else { return };
    let cache = with_key_file(&base).open().unwrap();
    sign_in(&cache);
    let parent = std::process::id();
    let changed = cache.try_update(|tokens| {
        fork(&base);
        let who = if std::process::id() == parent { "parent" } else { "child" };
        tokens.add(&common::response(who, "read"))
    });
    if std::process::id() != parent {
        let is_forked = changed.is_err_and(|error| error.kind() == ErrorKind::Forked);
        say(&base, "change", &format!("{is_forked} {}", cache.accounts().unwrap().len()));
        std::process::exit(0);
    }
    changed.unwrap();
    assert_eq!(
        heard(&base, "change").split(' ').next(),
        Some("true"),
        "a child writes nothing without the lock"
    );
    assert!(common::has(&cache, "parent", "read") && !common::has(&cache, "child", "read"));

    let query = RefreshTokenQuery::new(common::CLIENT, &account("alice"));
    let mut guard = cache.refresh_guard(&query, LONG).unwrap();
    let response = || TokenResponse::from_json(r#"{"access_token":"at","expires_in":60}"#).unwrap();
    if fork(&base) {
        let saved = guard.save(response());
        let covers = guard.covers_other_processes();
        drop(guard);
        say(&base, "guard", &format!("{} {covers}", saved.is_err()));
        std::process::exit(0);
    }
    assert_eq!(heard(&base, "guard"), "true false");
    let other = with_key_file(&base).open().unwrap();
    let busy = thread::spawn(move || other.refresh_guard(&query, Duration::from_millis(100)).is_err());
    assert!(busy.join().unwrap(), "the child's end did not let go of the parent's");
    guard.save(response()).unwrap();
    drop(guard);
    let left: Vec<String> =
        files(&base.join("tokens")).into_iter().filter(|name| name.contains(".tmp")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_child_that_is_forked_within_a_change_or_a_guard_has_neither() {
    drop(run("as_one_that_forks_within", &[]));
}

/// Not a test by itself: forks while a thread of it waits for a lock that nobody wants any more.
#[test]
fn as_one_that_has_given_up() {
    let Some(base) = base() else { return };
    let cache = with_key_file(&base).lock_timeout(Duration::from_millis(100)).open().unwrap();
    let holder = std::fs::File::open(base.join("tokens/default.lock")).unwrap();
    holder.lock().unwrap();
    assert!(cache.add(&common::response("alice", "read")).unwrap_err().is_lock_timeout());
    if fork(&base) {
        stay(&base);
    }
    // The child has a copy of the file that the thread waits with, and of the holder's.
    holder.unlock().unwrap();
    let started = Instant::now();
    while let Err(error) = cache.add(&common::response("alice", "read")) {
        assert!(error.is_lock_timeout() && started.elapsed() < LONG, "{error}");
    }
}

#[test]
fn a_wait_that_was_given_up_before_a_fork_keeps_no_lock() {
    drop(run("as_one_that_has_given_up", &[]));
}

/// Not a test by itself: forks a hundred times while threads of it change the cache.
#[test]
fn as_one_that_forks_while_others_change_the_cache() {
    let Some(base) = base() else { return };
    let cache = with_key_file(&base).open().unwrap();
    let shared = tokenseal::SharedTokenCache::new(tokenseal::TokenCache::new());
    for number in 0..500 {
        cache.add(&common::response(&format!("user-{number}"), "read")).unwrap();
    }
    for number in 0..3_u32 {
        let (cache, shared) = (cache.clone(), shared.clone());
        thread::spawn(move || {
            loop {
                if number > 0 {
                    cache.add(&common::response("alice", "read")).unwrap();
                } else {
                    drop(shared.read(tokenseal::TokenCache::accounts));
                }
            }
        });
    }
    for number in 0..100 {
        if fork(&base) {
            let found = cache.accounts().unwrap().len();
            // It says at once if a thread of its parent had it in hand.
            let read = || shared.read(|tokens| tokens.accounts().len());
            let read = std::panic::catch_unwind(std::panic::AssertUnwindSafe(read));
            say(&base, &format!("child {number}"), &format!("{} {:?}", found >= 500, read.is_ok()));
            std::process::exit(0);
        }
    }
    for number in 0..100 {
        let said = heard(&base, &format!("child {number}"));
        assert!(said.starts_with("true "), "{said}");
    }
    std::process::exit(0);
}

#[test]
fn a_child_waits_for_no_thread_that_it_has_not_got() {
    drop(run("as_one_that_forks_while_others_change_the_cache", &[]));
}

/// Not a test by itself: forks in the call of `acquire`, and both answer.
#[test]
fn as_one_that_forks_in_its_call() {
    let Some(base) = base() else { return };
    let cache = with_key_file(&base).open().unwrap();
    sign_in(&cache);
    let acquired = cache.acquire(&wanted("read"), {
        let base = base.clone();
        move |call| {
            if fork(&base) {
                say(&base, "child", "");
                return answer(&call, "child");
            }
            heard(&base, "child");
            thread::sleep(Duration::from_millis(300));
            answer(&call, "parent")
        }
    });
    assert_eq!(acquired.unwrap().token().expose(), "parent");
    assert_eq!(common::rotating::kept(&cache), ["rt-parent"], "a child saves nothing without the lock");
    std::process::exit(0);
}

#[test]
fn a_child_that_is_forked_in_a_call_saves_nothing() {
    drop(run("as_one_that_forks_in_its_call", &[]));
}

/// Not a test by itself: uses the Secret Service, and forks.
#[cfg(feature = "keyring")]
#[test]
fn as_one_that_uses_the_keyring() {
    let Some(base) = base() else { return };
    let builder = || PersistedTokenCache::builder("contoso-cli").directory(base.join("tokens"));
    if std::env::var_os("TOKENSEAL_FORKS_FIRST").is_some() && !fork(&base) {
        assert_eq!(heard(&base, "child"), "it works", "nobody had used the keyring before");
        return;
    }
    let cache = builder().open().unwrap();
    cache.add(&common::response("alice", "read")).unwrap();
    if std::env::var_os("TOKENSEAL_FORKS_FIRST").is_some() {
        say(&base, "child", "it works");
        std::process::exit(0);
    }
    if fork(&base) {
        let started = Instant::now();
        let found = cache.accounts().unwrap().len();
        // What needs no keyring works; what does says at once what is wrong.
        cache.add(&common::response("bob", "read")).unwrap();
        let error = builder().open().unwrap_err();
        let signed_out = cache.remove_account(&account("alice")).unwrap();
        let probed = tokenseal::key_store::probe();
        say(
            &base,
            "child",
            &format!(
                "{found} {} {} {} {} {error}",
                error.is_key_unavailable(),
                signed_out.is_rotation_pending(),
                probed.is_usable(),
                started.elapsed() < Duration::from_secs(2),
            ),
        );
        std::process::exit(0);
    }
    let said = heard(&base, "child");
    assert!(said.starts_with("1 true true false true "), "{said}");
    assert!(said.contains("before its parent uses the keyring"), "{said}");
    cache.add(&common::response("carol", "read")).unwrap();
}

#[cfg(feature = "keyring")]
#[test]
fn in_a_child_the_keyring_says_at_once_what_is_wrong_unless_nobody_had_used_it() {
    if std::env::var_os("SECRET_SERVICE_PID").is_none() {
        // Again, on a bus with a service of its own.
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/with-secret-service.sh");
        let found = Command::new("sh").args(["-c", "command -v gnome-keyring-daemon dbus-daemon"]).output();
        if !found.is_ok_and(|found| found.status.success()) {
            return common::skip("SECRET_SERVICE", "gnome-keyring-daemon or dbus-daemon is missing");
        }
        let test = "in_a_child_the_keyring_says_at_once_what_is_wrong_unless_nobody_had_used_it";
        let again = Command::new(script)
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .output()
            .unwrap();
        assert!(
            again.status.success(),
            "{}",
            String::from_utf8_lossy(&[again.stdout, again.stderr].concat())
        );
        return;
    }
    drop(run("as_one_that_uses_the_keyring", &[]));
    drop(run("as_one_that_uses_the_keyring", &[("TOKENSEAL_FORKS_FIRST", "1")]));
}
