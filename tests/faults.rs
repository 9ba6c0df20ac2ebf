//! The operating system fails, or the process is killed, at each system call of each operation.
//!
//! Each run is this program again, under `strace`, which makes one call fail or kills the process as
//! it enters it. Where `strace` is not installed the tests say so and pass, unless
//! `TOKENSEAL_REQUIRE_STRACE` is set.
#![cfg(all(target_os = "linux", feature = "file"))]

mod common;

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{account, files, has, response, wanted, with_key_file};
use tokenseal::{AcquireRequest, Error, TokenCache, TokenResponse};

/// The calls that change something, or that a change depends on.
const CALLS: [&str; 13] = [
    "openat",
    "read",
    "write",
    "fsync",
    "rename",
    "flock",
    "statx",
    "getdents64",
    "getrandom",
    "mkdir",
    "chmod",
    "unlink",
    "clone3",
];

fn strace_is_missing() -> bool {
    let found = Command::new("strace").arg("-V").output().is_ok();
    if !found {
        common::skip("STRACE", "strace is not installed");
    }
    !found
}

/// Runs `task` under strace; whether it said that it was acknowledged.
fn run(base: &Path, task: &str, strace: &[String]) -> bool {
    let output = Command::new("strace")
        .args(["-f", "-q"])
        .args(strace)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "as_a_child_process", "--nocapture", "--test-threads=1"])
        .env("TOKENSEAL_CHILD_BASE", base)
        .env("TOKENSEAL_CHILD_TASK", task)
        .env("RUST_BACKTRACE", "0")
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).contains("acknowledged")
}

/// Not a test by itself: one operation. It prints only after the cache said that it is done.
#[test]
fn as_a_child_process() {
    let Some(base) = std::env::var_os("TOKENSEAL_CHILD_BASE") else { return };
    let open = || with_key_file(Path::new(&base)).open();
    let done = match std::env::var("TOKENSEAL_CHILD_TASK").unwrap().as_str() {
        "first sign-in" | "add" => open().and_then(|cache| cache.add(&response("alice", "second")).map(drop)),
        "sign out" => open().and_then(|cache| cache.remove_account(&account("bob")).map(drop)),
        "reset" => with_key_file(Path::new(&base)).reset().map(drop),
        "refresh" => open().and_then(|cache| {
            let stale = cache.find_access_token(&wanted("alice", "first"))?.unwrap();
            let wanted = wanted("alice", "first");
            let request = AcquireRequest::new(&wanted).replacing(&stale);
            let answer = r#"{"access_token":"renewed","refresh_token":"rotated","expires_in":3600}"#;
            match cache.acquire(request, move |_| Ok(TokenResponse::from_json(answer)?)) {
                Ok(acquired) if acquired.is_persisted() && acquired.token().expose() == "renewed" => Ok(()),
                Ok(_) => Err(Error::aborted("kept, and not persisted")),
                Err(error) => Err(Error::aborted(error)),
            }
        }),
        other => panic!("no task {other}"),
    };
    // In the test's output, not where a failing write could be taken for the cache's.
    match done {
        Ok(()) => println!("\nacknowledged"),
        Err(error) => println!("\nrefused: {error}"),
    }
}

/// A new cache with two users, but for a first sign-in. A copy would share its key, and this process
/// would see a rollback.
fn fresh(task: &str) -> tempfile::TempDir {
    let base = tempfile::tempdir().unwrap();
    if task == "first sign-in" {
        return base;
    }
    let cache = with_key_file(base.path()).open().unwrap();
    cache.add(&response("alice", "first")).unwrap();
    cache.add(&response("bob", "first")).unwrap();
    base
}

/// Which of `task`'s calls of each kind are made once it gets to the cache, by the numbers that strace
/// gives them: each thread has its own.
fn calls(task: &str) -> Vec<(&'static str, BTreeSet<usize>)> {
    let base = fresh(task);
    let log = base.path().join("log");
    let trace = format!("trace={}", CALLS.join(","));
    assert!(run(base.path(), task, &["-o".into(), log.display().to_string(), "-e".into(), trace]));
    let log = fs::read_to_string(log).unwrap();
    let beginning = log.lines().position(|line| line.contains("/tokens")).unwrap();
    let numbers = |call: &str| {
        let mut made: HashMap<&str, usize> = HashMap::new();
        let mut numbers = BTreeSet::new();
        for (at, line) in log.lines().enumerate() {
            if line.contains(&format!(" {call}(")) {
                let number = made.entry(line.split_whitespace().next().unwrap()).or_default();
                *number += 1;
                if at >= beginning {
                    numbers.insert(*number);
                }
            }
        }
        numbers
    };
    CALLS.into_iter().map(|call| (call, numbers(call))).collect()
}

/// What must hold after any failure of `task`.
fn check(base: &Path, task: &str, acknowledged: bool, what: &str) {
    let cache = with_key_file(base).open().unwrap_or_else(|error| panic!("{task}, {what}: {error}"));
    match task {
        "first sign-in" => {
            assert!(!acknowledged || has(&cache, "alice", "second"), "{what}: it was acknowledged");
        }
        "add" => {
            assert!(
                has(&cache, "alice", "first") && has(&cache, "bob", "first"),
                "{what}: what was there stays"
            );
            assert!(!acknowledged || has(&cache, "alice", "second"), "{what}: it was acknowledged");
        }
        "refresh" => {
            assert!(has(&cache, "bob", "first"), "{what}: what was there stays");
            let refresh_tokens = |tokens: &TokenCache| {
                tokens
                    .refresh_tokens()
                    .filter(|token| token.home_account_id() == Some("alice"))
                    .map(|token| token.expose().to_owned())
                    .collect::<Vec<_>>()
            };
            let kept = cache.read(refresh_tokens).unwrap();
            assert!(kept == ["rotated"] || !acknowledged && kept == ["rt-alice-first"], "{what}: {kept:?}");
        }
        "sign out" => {
            assert!(has(&cache, "alice", "first"), "{what}: what was there stays");
            assert!(!acknowledged || !has(&cache, "bob", "first"), "{what}: it was acknowledged");
        }
        _ => {
            // Set aside, but not lost.
            let aside = files(&base.join("tokens")).iter().any(|name| name.contains(".aside-"));
            assert!(has(&cache, "alice", "first") || aside, "{what}: what was there stays somewhere");
            assert!(!acknowledged || cache.accounts().unwrap().is_empty(), "{what}: it was acknowledged");
        }
    }
    // The next change makes up for whatever was cut short, and leaves no litter.
    cache.update(|tokens| tokens.add(&response("carol", "next"))).unwrap();
    let cache = with_key_file(base).open().unwrap();
    assert!(has(&cache, "carol", "next"), "{what}");
    let mut left = files(&base.join("tokens"));
    left.retain(|name| !name.contains(".aside-") && !name.ends_with(".refresh.lock"));
    if task == "refresh" {
        // The next refresh takes the lock at once, and the note of the killed one away.
        let wanted = wanted("alice", "other");
        let answer = r#"{"access_token":"at","refresh_token":"again","expires_in":3600}"#;
        let acquired = cache.acquire(&wanted, move |_| Ok(TokenResponse::from_json(answer)?)).unwrap();
        assert!(acquired.is_persisted(), "{what}");
        left = files(&base.join("tokens"));
        left.retain(|name| !name.ends_with(".refresh.lock"));
    }
    assert_eq!(left, ["default.lock", "default.sealed"], "{task}, {what}: no litter");
    if task == "first sign-in" {
        // A key that was made just before a kill has sealed nothing.
        let keys = files(&base.join("keys")).len();
        assert!(keys == 1 || keys == 2 && !acknowledged, "{what}: {keys} keys");
    } else if task != "reset" {
        cache.update(|tokens| tokens.add(&response("carol", "again"))).unwrap();
        assert_eq!(files(&base.join("keys")).len(), 1, "{task}, {what}: no key is left over");
    }
}

/// Runs `task` with a fault at each call of each kind.
fn inject(task: &str, faults: &[&str]) {
    let (mut runs, mut failed_at_the_disk) = (0, 0);
    for (call, numbers) in calls(task) {
        for fault in faults {
            for number in &numbers {
                let what = format!("{fault} at {call} {number} of {numbers:?}");
                let base = fresh(task);
                let log: PathBuf = base.path().join("log");
                let inject = format!("inject={call}:{fault}:when={number}");
                let acknowledged =
                    run(base.path(), task, &["-o".into(), log.display().to_string(), "-e".into(), inject]);
                check(base.path(), task, acknowledged, &what);
                // What did not become durable may be in the file all the same, and is no saved update. An
                // interrupted call is made again.
                let is_needed =
                    ["first sign-in", "add"].contains(&task) && ["fsync", "rename"].contains(&call);
                if is_needed && fault.starts_with("error=") && *fault != "error=EINTR" {
                    assert!(!acknowledged, "{what}: a false acknowledgement");
                    failed_at_the_disk += 1;
                }
                runs += 1;
            }
        }
    }
    assert!(runs > 30, "only {runs} faults were injected");
    // An add has the file, its rename and its directory; a first sign-in makes a directory besides, and
    // an empty file before.
    let errors =
        faults.iter().filter(|fault| fault.starts_with("error=") && **fault != "error=EINTR").count();
    let expected = errors
        * match task {
            "add" => 3,
            "first sign-in" => 7,
            _ => 0,
        };
    assert!(failed_at_the_disk >= expected, "only {failed_at_the_disk} of {expected} failures at the disk");
}

/// A file in a directory that a power cut takes away was not saved. No file system here takes it, as
/// their journals keep the order, so that the calls themselves are looked at.
#[test]
fn every_directory_that_is_made_is_made_durable_in_the_one_above() {
    if strace_is_missing() {
        return;
    }
    let above = tempfile::tempdir().unwrap();
    let base = above.path().canonicalize().unwrap().join("state/app");
    let log = above.path().join("log");
    let trace = ["-y", "-e", "trace=mkdir,fsync", "-o", log.to_str().unwrap()].map(str::to_owned);
    assert!(run(&base, "first sign-in", &trace));
    let log = fs::read_to_string(log).unwrap();
    let within = |line: &str, call: &str, open: char, close: char| {
        let (path, _) = line.split_once(call)?.1.split_once(open)?.1.split_once(close)?;
        Some(PathBuf::from(path))
    };
    let mut pending = Vec::new();
    let mut made = Vec::new();
    for line in log.lines() {
        if let Some(directory) = within(line, " mkdir(", '"', '"') {
            pending.push(directory.parent().unwrap().to_owned());
            made.push(directory);
        } else if let Some(synchronised) = within(line, " fsync(", '<', '>') {
            pending.retain(|parent| *parent != synchronised);
        }
    }
    let expected = [above.path().join("state"), base.clone(), base.join("tokens"), base.join("keys")];
    assert!(expected.iter().all(|directory| made.contains(directory)), "{made:?}");
    assert!(pending.is_empty(), "{pending:?} were not made durable");
}

#[test]
fn killed_at_every_call_of_a_first_sign_in() {
    if !strace_is_missing() {
        inject("first sign-in", &["signal=KILL"]);
    }
}

#[test]
fn killed_at_every_call_of_an_add() {
    if !strace_is_missing() {
        inject("add", &["signal=KILL"]);
    }
}

#[test]
fn killed_at_every_call_of_a_sign_out() {
    if !strace_is_missing() {
        inject("sign out", &["signal=KILL"]);
    }
}

#[test]
fn killed_at_every_call_of_a_reset() {
    if !strace_is_missing() {
        inject("reset", &["signal=KILL"]);
    }
}

#[test]
fn killed_at_every_call_of_a_refresh() {
    if !strace_is_missing() {
        inject("refresh", &["signal=KILL"]);
    }
}

#[test]
fn errors_at_every_call_of_a_refresh() {
    if !strace_is_missing() {
        inject("refresh", &["error=ENOSPC", "error=EIO"]);
    }
}

#[test]
fn errors_at_every_call_of_a_first_sign_in() {
    if !strace_is_missing() {
        inject("first sign-in", &["error=ENOSPC", "error=EIO", "error=EACCES"]);
    }
}

#[test]
fn errors_at_every_call_of_an_add() {
    if !strace_is_missing() {
        inject(
            "add",
            &["error=ENOSPC", "error=EIO", "error=EINTR", "error=EDQUOT", "error=EROFS", "error=EMFILE"],
        );
    }
}

#[test]
fn errors_at_every_call_of_a_sign_out() {
    if !strace_is_missing() {
        inject("sign out", &["error=EIO", "error=EACCES"]);
    }
}
