//! Disks that are full or read-only, for real: file systems mounted for the test.
//!
//! Needs root. Without it the tests say so and pass, unless `TOKENSEAL_REQUIRE_ROOT` is set.
#![cfg(all(target_os = "linux", feature = "file"))]

mod common;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::rotating::{Rotating, expire, refresh_tokens, sign_in_expired, wanted};
use common::{Bench, files, has, response};
use tokenseal::TokenResponse;

fn mount(arguments: &[&str]) -> bool {
    Command::new("mount").args(arguments).output().is_ok_and(|output| output.status.success())
}

/// A mount below a bench, until it is dropped.
struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0).status();
    }
}

/// `None`, or a failure, where nothing can be mounted.
fn mounted<'a>(at: &'a Path, arguments: &[&str]) -> Option<Mounted<'a>> {
    if mount(arguments) {
        return Some(Mounted(at));
    }
    common::skip("ROOT", "nothing can be mounted without root");
    None
}

fn resize(at: &Path, size: &str) {
    assert!(mount(&["-o", &format!("remount,size={size}"), at.to_str().unwrap()]));
}

/// What the operating system said.
fn cause(error: &tokenseal::Error) -> String {
    std::error::Error::source(error).unwrap().to_string()
}

#[test]
fn on_a_full_disk_the_old_cache_stays_and_a_rotated_token_is_saved_later() {
    let bench = Bench::new();
    let directory = bench.directory();
    std::fs::create_dir(&directory).unwrap();
    let path = directory.to_str().unwrap();
    let options = "size=64k,mode=0700";
    let Some(_mounted) = mounted(&directory, &["-t", "tmpfs", "-o", options, "tmpfs", path]) else { return };
    let cache = bench.open();
    sign_in_expired(&cache);
    // The lock of the refresh is there from before.
    let provider = Rotating::new();
    cache.acquire(&wanted("read"), provider.call()).unwrap();
    expire(&cache);

    let mut added = 0;
    let error = loop {
        match cache.add(&response("bob", &format!("{added}-{}", "x".repeat(500)))) {
            Ok(_) => added += 1,
            Err(error) => break error,
        }
        assert!(added < 1_000, "it never gets full");
    };
    assert!(cause(&error).contains("No space left"), "{error}: {}", cause(&error));
    assert!(added > 1);
    for cache in [&cache, &bench.open()] {
        let last = format!("{}-{}", added - 1, "x".repeat(500));
        assert!(has(cache, "bob", &last), "what was acknowledged stays");
        assert_eq!(cache.read(refresh_tokens).unwrap().len(), added + 1);
    }
    let is_litter = |name: &String| name.contains(".tmp");
    assert!(!files(&directory).iter().any(is_litter), "{:?}", files(&directory));

    // What a refresh brings now is given out, marked, and saved as soon as there is room.
    let long =
        format!(r#"{{"access_token":"{}","refresh_token":"rotated","expires_in":3600}}"#, "y".repeat(8_000));
    provider.next(move || Ok(TokenResponse::from_json(long)?));
    let acquired = cache.acquire(&wanted("read"), provider.call()).unwrap();
    assert!(!acquired.is_persisted(), "there is no room for it");
    assert!(cause(acquired.save_failure().unwrap()).contains("No space left"));
    let holds = |token: &str| cache.read(refresh_tokens).unwrap().iter().any(|kept| kept == token);
    assert!(!holds("rotated"));
    resize(&directory, "1m");
    let started = Instant::now();
    while !holds("rotated") {
        assert!(started.elapsed() < Duration::from_secs(20), "it was never saved");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(!files(&directory).iter().any(is_litter));
    assert_eq!(provider.sent(), ["original", "rotated-1"]);
}

#[test]
fn a_read_only_file_system_can_be_read_and_refuses_changes() {
    let bench = Bench::new();
    let cache = bench.open();
    sign_in_expired(&cache);
    cache.add(&response("bob", "read")).unwrap();
    let before = std::fs::read(bench.file()).unwrap();
    let directory = bench.directory();
    let path = directory.to_str().unwrap();
    let Some(_mounted) = mounted(&directory, &["--bind", path, path]) else { return };
    assert!(mount(&["-o", "remount,bind,ro", path]));
    let cache = bench.open();
    assert!(has(&cache, "bob", "read"));
    let error = cache.add(&response("bob", "write")).unwrap_err();
    assert!(cause(&error).contains("Read-only"), "{error}: {}", cause(&error));
    assert!(cache.remove_account(&common::account("bob")).is_err());
    assert!(bench.builder().reset().is_err());
    let provider = Rotating::new();
    let acquired = cache.acquire(&wanted("read"), provider.call()).unwrap();
    assert!(acquired.token().expose() == "renewed-1" && !acquired.is_persisted());
    assert_eq!(std::fs::read(bench.file()).unwrap(), before);
}
