//! The operating system fails, or the process is killed, at each system call of each operation.
//!
//! Each run is this program again, under `strace`, which makes one call fail or kills the process as
//! it enters it. Where `strace` is not installed the tests say so and pass, unless
//! `TOKENSEAL_REQUIRE_STRACE` is set.
#![cfg(all(target_os = "linux", feature = "file"))]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{account, files, has, response, wanted, with_key_file};
use tokenseal::{AcquireRequest, Error, TokenCache, TokenResponse};

/// The calls that change something, or that a change depends on.
const CALLS: [&str; 11] = [
    "openat",
    "write",
    "fsync",
    "rename",
    "flock",
    "statx",
    "getdents64",
    "getrandom",
    "mkdir",
    "unlink",
    "clone3",
];

fn strace_is_missing() -> bool {
    let found = Command::new("strace").arg("-V").output().is_ok();
    assert!(found || std::env::var_os("TOKENSEAL_REQUIRE_STRACE").is_none(), "this run requires strace");
    if !found {
        eprintln!("skipped: strace is not installed");
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
        "add" => open().and_then(|cache| cache.add(&response("alice", "second")).map(drop)),
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

/// A new cache with two users. A copy would share its key, and this process would see a rollback.
fn fresh() -> tempfile::TempDir {
    let base = tempfile::tempdir().unwrap();
    let cache = with_key_file(base.path()).open().unwrap();
    cache.add(&response("alice", "first")).unwrap();
    cache.add(&response("bob", "first")).unwrap();
    base
}

/// Which of `task`'s calls of each kind are made once it gets to the cache: from the first to the last.
fn calls(task: &str) -> Vec<(&'static str, std::ops::RangeInclusive<usize>)> {
    let base = fresh();
    let log = base.path().join("log");
    let trace = format!("trace={}", CALLS.join(","));
    assert!(run(base.path(), task, &["-o".into(), log.display().to_string(), "-e".into(), trace]));
    let log = fs::read_to_string(log).unwrap();
    let lines: Vec<&str> = log.lines().collect();
    let beginning = lines.iter().position(|line| line.contains("/tokens")).unwrap();
    let made =
        |lines: &[&str], call: &str| lines.iter().filter(|line| line.contains(&format!(" {call}("))).count();
    CALLS.into_iter().map(|call| (call, made(&lines[..beginning], call) + 1..=made(&lines, call))).collect()
}

/// What must hold after any failure of `task`.
fn check(base: &Path, task: &str, acknowledged: bool, what: &str) {
    let cache = with_key_file(base).open().unwrap_or_else(|error| panic!("{task}, {what}: {error}"));
    match task {
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
    if task != "reset" {
        cache.update(|tokens| tokens.add(&response("carol", "again"))).unwrap();
        assert_eq!(files(&base.join("keys")).len(), 1, "{task}, {what}: no key is left over");
    }
}

/// Runs `task` with a fault at each call of each kind.
fn inject(task: &str, faults: &[&str]) {
    let (mut runs, mut failed_at_the_disk) = (0, 0);
    for (call, numbers) in calls(task) {
        for fault in faults {
            for number in numbers.clone() {
                let what = format!("{fault} at {call} {number} of {numbers:?}");
                let base = fresh();
                let log: PathBuf = base.path().join("log");
                let inject = format!("inject={call}:{fault}:when={number}");
                let acknowledged =
                    run(base.path(), task, &["-o".into(), log.display().to_string(), "-e".into(), inject]);
                check(base.path(), task, acknowledged, &what);
                // What did not become durable may be in the file all the same, and is no saved update. An
                // interrupted call is made again.
                let is_needed = task == "add" && ["fsync", "rename"].contains(&call);
                if is_needed && fault.starts_with("error=") && *fault != "error=EINTR" {
                    assert!(!acknowledged, "{what}: a false acknowledgement");
                    failed_at_the_disk += 1;
                }
                runs += 1;
            }
        }
    }
    assert!(runs > 30, "only {runs} faults were injected");
    // The file, its rename and its directory.
    let errors =
        faults.iter().filter(|fault| fault.starts_with("error=") && **fault != "error=EINTR").count();
    let expected = if task == "add" { 3 * errors } else { 0 };
    assert!(failed_at_the_disk >= expected, "only {failed_at_the_disk} of {expected} failures at the disk");
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
