//! The platform keyring on Linux, for real: a Secret Service on a private bus, healthy and not.
//!
//! Each test runs this program again under `scripts/with-secret-service.sh`. Where no Secret Service
//! is installed the tests say so and pass, unless `TOKENSEAL_REQUIRE_SECRET_SERVICE` is set.
#![cfg(all(target_os = "linux", feature = "keyring"))]

mod common;
#[path = "common/denying_service.rs"]
mod denying_service;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{account, has, response};
use denying_service::DenyingService;
use tokenseal::{PersistedTokenCache, key_store::probe, persisted::PersistedTokenCacheBuilder};

/// Runs `task` of [`as_a_child_process`] with a Secret Service in the given state.
fn run(state: Option<&str>, task: &str) {
    if let Some(missing) = ["dbus-daemon", "gnome-keyring-daemon", "gdbus", "secret-tool"]
        .iter()
        .find(|tool| !is_installed(tool))
    {
        return common::skip(
            "SECRET_SERVICE",
            &format!("there is no Secret Service: {missing} is not installed"),
        );
    }
    let base = tempfile::tempdir().unwrap();
    let output = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/with-secret-service.sh"))
        .args(state)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "as_a_child_process", "--nocapture"])
        .env("TOKENSEAL_CHILD_BASE", base.path())
        .env("TOKENSEAL_CHILD_TASK", task)
        .output()
        .unwrap();
    let said =
        format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.contains("the child is done"), "{task}:\n{said}");
}

fn is_installed(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(tool).is_file())
}

fn builder(base: &Path) -> PersistedTokenCacheBuilder {
    PersistedTokenCache::builder("contoso-cli")
        .directory(base.join("tokens"))
        .key_timeout(Duration::from_secs(2))
        .rotation_timeout(Duration::from_millis(500))
}

fn signal(name: &str) {
    let pid = std::env::var("SECRET_SERVICE_PID").unwrap();
    assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
}

fn lock_collection() {
    let done = Command::new("gdbus")
        .args(["call", "--session", "--dest", "org.freedesktop.secrets"])
        .args(["--object-path", "/org/freedesktop/secrets"])
        .args(["--method", "org.freedesktop.Secret.Service.Lock"])
        .arg("['/org/freedesktop/secrets/collection/login']")
        .output()
        .unwrap();
    assert!(done.status.success());
}

/// Starts another service in the place of one that was killed, with the same keyring files.
#[allow(clippy::zombie_processes)] // The caller ends it; where the wait fails, the bus goes too.
fn restart_service() -> std::process::Child {
    let home = std::env::var("SECRET_SERVICE_HOME").unwrap();
    let daemon = Command::new("sh")
        .arg("-c")
        .arg("printf test | exec gnome-keyring-daemon --foreground --components=secrets --control-directory=\"$0/control2\" --unlock")
        .arg(&home)
        .env("HOME", &home)
        .env("XDG_DATA_HOME", format!("{home}/data"))
        .env("XDG_RUNTIME_DIR", format!("{home}/run"))
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let owner = Command::new("gdbus")
            .args(["call", "--session", "--dest", "org.freedesktop.secrets"])
            .args(["--object-path", "/org/freedesktop/secrets"])
            .args(["--method", "org.freedesktop.Secret.Service.ReadAlias", "default"])
            .output()
            .unwrap();
        if String::from_utf8_lossy(&owner.stdout).contains("collection") {
            return daemon;
        }
        assert!(Instant::now() < deadline, "the service did not come back");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// An entry's text for each key in the keyring, by way of another program.
fn entries() -> Vec<String> {
    let found = Command::new("secret-tool").args(["search", "--all", "service", "contoso-cli"]).output();
    let text = found.map(|found| String::from_utf8_lossy(&found.stdout).into_owned()).unwrap_or_default();
    text.lines().filter_map(|line| line.strip_prefix("secret = ").map(str::to_owned)).collect()
}

/// Puts another text into the one entry of the keyring, by way of another program.
fn alter_entry(text: &str) {
    use std::io::Write as _;
    let found =
        Command::new("secret-tool").args(["search", "--all", "service", "contoso-cli"]).output().unwrap();
    // It writes the attributes to its standard error.
    let said = [found.stdout, found.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    let attributes: Vec<&str> = said
        .lines()
        .filter_map(|line| line.strip_prefix("attribute.")?.split_once(" = "))
        .flat_map(|(name, value)| [name, value])
        .collect();
    let mut store = Command::new("secret-tool")
        .args(["store", "--label=altered"])
        .args(attributes)
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    store.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(store.wait().unwrap().success());
    assert_eq!(entries(), [text], "the entry was replaced");
}

/// Not a test by itself: what the tests below do within a private bus.
#[test]
#[allow(clippy::too_many_lines)] // A list of small scenes.
fn as_a_child_process() {
    let Some(base) = std::env::var_os("TOKENSEAL_CHILD_BASE") else { return };
    let base = Path::new(&base);
    let file = base.join("tokens/default.sealed");
    let bounded = |attempt: &dyn Fn() -> Result<(), tokenseal::Error>| {
        let started = Instant::now();
        let error = attempt().unwrap_err();
        assert!(started.elapsed() < Duration::from_secs(5), "{error} took {:?}", started.elapsed());
        error
    };
    match std::env::var("TOKENSEAL_CHILD_TASK").unwrap().as_str() {
        "everyday life" => {
            assert!(probe().is_usable(), "{}", probe());
            #[cfg(feature = "conformance")]
            tokenseal::key_store::conformance::check(tokenseal::key_store::KeyringStore::platform);
            let cache = builder(base).open().unwrap();
            cache.add(&response("alice", "read")).unwrap();
            cache.add(&response("bob", "read")).unwrap();
            drop(cache);
            let cache = builder(base).open().unwrap();
            assert!(has(&cache, "alice", "read"));
            let before = entries();
            assert!(before.iter().all(|entry| entry.is_ascii() && entry.starts_with("tokenseal-key-1:")));
            let probed = probe();
            let shown = format!("{probed} {probed:?} {}", probed.advice());
            assert!(!shown.contains(&before[0][16..40]), "{shown}");
            let signed_out = cache.remove_account(&account("alice")).unwrap();
            assert!(!signed_out.is_rotation_pending(), "{:?}", signed_out.rotation());
            let after = entries();
            assert_eq!((before.len(), after.len()), (1, 1), "one entry, and another one");
            assert_ne!(before, after);
            let cache = builder(base).open().unwrap();
            assert!(has(&cache, "bob", "read") && !has(&cache, "alice", "read"));
        }
        "locked at first use" => {
            assert!(!probe().is_usable());
            assert!(probe().advice().contains("unlock"), "{}", probe());
            let error = bounded(&|| builder(base).open().map(drop));
            assert!(error.is_key_unavailable(), "{error:?}");
            assert!(!file.exists(), "nothing is written");
        }
        "no collection" | "no service" => {
            assert!(!probe().is_usable() && probe().advice().contains("KeyFileStore"), "{}", probe());
            let error = bounded(&|| builder(base).open().map(drop));
            assert!(error.is_key_unavailable(), "{error:?}");
            assert!(!file.exists(), "nothing is written");
        }
        "locked later" => {
            let cache = builder(base).open().unwrap();
            cache.add(&response("alice", "read")).unwrap();
            cache.add(&response("bob", "read")).unwrap();
            lock_collection();
            // The key was fetched at open: reading and adding go on.
            cache.add(&response("alice", "write")).unwrap();
            assert!(has(&cache, "alice", "write"));
            let before = std::fs::read(&file).unwrap();
            let error = bounded(&|| builder(base).open().map(drop));
            assert!(error.is_key_unavailable(), "{error:?}");
            assert_eq!(std::fs::read(&file).unwrap(), before, "the stored bytes are untouched");
            let signed_out = cache.remove_account(&account("alice")).unwrap();
            assert!(signed_out.is_rotation_pending(), "{:?}", signed_out.rotation());
            assert!(!has(&cache, "alice", "read") && has(&cache, "bob", "read"));
        }
        "hung" => {
            let cache = builder(base).open().unwrap();
            cache.add(&response("alice", "read")).unwrap();
            signal("-STOP");
            // However many ask, one thread waits, and none once the service answers.
            let waiting = || {
                let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
                let name = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm"));
                tasks
                    .filter_map(|task| name(task).ok())
                    .filter(|name| name.starts_with("tokenseal-key-s"))
                    .count()
            };
            std::thread::scope(|scope| {
                for _ in 0..20 {
                    scope.spawn(|| assert!(!probe().is_usable()));
                }
            });
            assert_eq!(waiting(), 1);
            let before = std::fs::read(&file).unwrap();
            let error = bounded(&|| builder(base).open().map(drop));
            assert!(error.is_key_unavailable(), "{error:?}");
            assert_eq!(std::fs::read(&file).unwrap(), before);
            let started = Instant::now();
            let signed_out = cache.remove_account(&account("alice")).unwrap();
            assert!(signed_out.is_rotation_pending() && started.elapsed() < Duration::from_secs(3));
            signal("-CONT");
            let continued = Instant::now();
            while waiting() > 0 {
                assert!(continued.elapsed() < Duration::from_secs(10), "a thread is left");
                std::thread::sleep(Duration::from_millis(10));
            }
            // The write that was cut off may land now. It destroys nothing, and the rotation is made up for.
            std::thread::sleep(Duration::from_millis(300));
            let made_up = cache.try_update(|tokens| tokens.add(&response("bob", "read"))).unwrap();
            assert!(!made_up.is_rotation_pending(), "{:?}", made_up.rotation());
            drop(cache);
            assert!(has(&builder(base).open().unwrap(), "bob", "read"));
        }
        "killed and restarted" => {
            let cache = builder(base).open().unwrap();
            cache.add(&response("alice", "read")).unwrap();
            cache.add(&response("bob", "read")).unwrap();
            signal("-KILL");
            std::thread::sleep(Duration::from_millis(200));
            let error = bounded(&|| builder(base).open().map(drop));
            assert!(error.is_key_unavailable(), "{error:?}");
            let mut service = restart_service();
            // The same handle, whose connection the new service does not know.
            let signed_out = cache.remove_account(&account("alice")).unwrap();
            assert!(!signed_out.is_rotation_pending(), "{:?}", signed_out.rotation());
            assert!(has(&builder(base).open().unwrap(), "bob", "read"));
            service.kill().unwrap();
            service.wait().unwrap();
        }
        "denied" => {
            let cache = builder(base).open().unwrap();
            cache.add(&response("alice", "read")).unwrap();
            cache.add(&response("bob", "read")).unwrap();
            signal("-KILL");
            std::thread::sleep(Duration::from_millis(200));
            for says_locked in [true, false] {
                let service = DenyingService::start(says_locked);
                assert_eq!(probe().is_usable(), !says_locked, "{}", probe());
                let before = std::fs::read(&file).unwrap();
                let error = bounded(&|| builder(base).open().map(drop));
                // One that does not admit that it is locked cannot be told from one without the entry.
                assert_eq!(
                    (error.is_key_unavailable(), error.is_key_lost()),
                    (says_locked, !says_locked),
                    "{error:?}"
                );
                assert_eq!(std::fs::read(&file).unwrap(), before, "the stored bytes are untouched");
                // A sign-out wants a new key: none is made where the current one is not found.
                let user = if says_locked { "alice" } else { "carol" };
                cache.add(&response(user, "read")).unwrap();
                let signed_out = cache.remove_account(&account(user)).unwrap();
                assert!(signed_out.is_rotation_pending(), "{:?}", signed_out.rotation());
                assert!(has(&cache, "bob", "read") && !has(&cache, user, "read"));
                assert_eq!(service.asked_to_make(), 0, "no key is made over existing data");
            }
            // Where nothing is at stake it is asked, and says no: an error, and no file.
            let service = DenyingService::start(false);
            let elsewhere = base.join("elsewhere");
            let error = bounded(&|| builder(base).directory(&elsewhere).open().map(drop));
            assert!(error.is_key_unavailable(), "{error:?}");
            assert!(service.asked_to_make() > 0 && !elsewhere.join("default.sealed").exists());
            drop(service);
            let mut genuine = restart_service();
            assert!(has(&builder(base).open().unwrap(), "bob", "read"), "the key was there all the time");
            let made_up = cache.try_update(|tokens| tokens.add(&response("dave", "read"))).unwrap();
            assert!(!made_up.is_rotation_pending(), "{:?}", made_up.rotation());
            genuine.kill().unwrap();
            genuine.wait().unwrap();
        }
        "emptied" => {
            let cache = builder(base).open().unwrap();
            cache.add(&response("alice", "read")).unwrap();
            drop(cache);
            let cleared = Command::new("secret-tool").args(["clear", "service", "contoso-cli"]).status();
            assert!(cleared.unwrap().success());
            let before = std::fs::read(&file).unwrap();
            let error = bounded(&|| builder(base).open().map(drop));
            assert!(error.is_key_lost(), "{error:?}");
            assert_eq!(std::fs::read(&file).unwrap(), before);
            assert!(entries().is_empty(), "no other key is made");
            let (cache, aside) = builder(base).reset().unwrap();
            assert!(aside.is_some() && cache.accounts().unwrap().is_empty());
        }
        "altered entry" => {
            let cache = builder(base).open().unwrap();
            cache.add(&response("alice", "read")).unwrap();
            drop(cache);
            let (genuine, before) = (entries().remove(0), std::fs::read(&file).unwrap());
            let digit = if genuine.as_bytes()[20] == b'A' { "B" } else { "A" };
            let altered = format!("{}{digit}{}", &genuine[..20], &genuine[21..]);
            for text in [&genuine[..genuine.len() / 2], &genuine[..genuine.len() - 1], "x", &altered] {
                alter_entry(text);
                let error = bounded(&|| builder(base).open().map(drop));
                assert!(error.is_key_lost(), "{error:?}");
                assert!(!format!("{error} {error:?}").contains(&genuine[16..40]), "{error:?}");
                assert_eq!(std::fs::read(&file).unwrap(), before, "the stored bytes are untouched");
                assert_eq!(entries(), [text], "no key is made, and none rewritten");
            }
            alter_entry(&genuine);
            assert!(has(&builder(base).open().unwrap(), "alice", "read"), "put back, it opens");
        }
        other => panic!("no task {other}"),
    }
    println!("the child is done");
}

#[test]
fn everyday_life() {
    run(None, "everyday life");
}

#[test]
fn locked_at_first_use() {
    run(Some("--locked"), "locked at first use");
}

#[test]
fn locked_later() {
    run(None, "locked later");
}

#[test]
fn without_a_collection() {
    run(Some("--no-collection"), "no collection");
}

#[test]
fn without_a_service() {
    run(Some("--no-service"), "no service");
}

#[test]
fn a_hung_service() {
    run(None, "hung");
}

#[test]
fn a_service_that_was_killed_and_restarted() {
    run(None, "killed and restarted");
}

#[test]
fn a_service_that_says_no_entry_while_it_is_locked() {
    run(None, "denied");
}

#[test]
fn an_emptied_keyring() {
    run(None, "emptied");
}

#[test]
fn an_altered_entry() {
    run(None, "altered entry");
}

#[test]
fn without_a_bus() {
    let base = tempfile::tempdir().unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "as_a_child_process", "--nocapture"])
        .env("DBUS_SESSION_BUS_ADDRESS", "unix:path=/nonexistent/bus")
        .env("TOKENSEAL_CHILD_BASE", base.path())
        .env("TOKENSEAL_CHILD_TASK", "no service")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("the child is done"), "{said}");
}
