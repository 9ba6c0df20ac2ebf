//! Files of hostile size and shape: an error soon, or a cache, in bounded memory.
#![cfg(all(target_os = "linux", feature = "file"))]

mod common;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::Bench;
use tokenseal::{CacheError, key_store::KeyFileStore};

/// Not a test by itself: opens the cache and says what came of it, how fast, and the most memory.
#[test]
fn as_a_child_process() {
    let Some(base) = std::env::var_os("TOKENSEAL_CHILD_BASE") else { return };
    let started = Instant::now();
    let opened = common::with_key_file(Path::new(&base)).open();
    let took = started.elapsed().as_millis();
    let kind = match &opened {
        Ok(cache) => format!("rows {}", cache.read(|tokens| tokens.access_tokens().count()).unwrap()),
        Err(error) if error.is_too_large() => "too large".into(),
        Err(error) if matches!(error.cache_error(), Some(CacheError::NotACache { .. })) => "no cache".into(),
        Err(error) => format!("other: {error}"),
    };
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    println!("\n> {took} {} {kind}", peak.split_whitespace().next().unwrap());
}

struct Came {
    took: Duration,
    peak_kib: u64,
    kind: String,
}

fn open_in_a_child(base: &Path) -> Came {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "as_a_child_process", "--nocapture"])
        .env("TOKENSEAL_CHILD_BASE", base)
        .output()
        .unwrap();
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = out.lines().find_map(|line| line.strip_prefix("> ")).unwrap_or_else(|| panic!("{out}"));
    let mut words = line.splitn(3, ' ');
    let mut number = || words.next().unwrap().parse().unwrap();
    let (took, peak_kib) = (Duration::from_millis(number()), number());
    Came { took, peak_kib, kind: words.next().unwrap().to_owned() }
}

const SOON: Duration = Duration::from_millis(100);

#[test]
fn a_sparse_gibibyte_is_refused_unread() {
    let base = tempfile::tempdir().unwrap();
    drop(common::with_key_file(base.path()).open().unwrap());
    let file = std::fs::File::options().write(true).open(base.path().join("tokens/default.sealed")).unwrap();
    file.set_len(1 << 30).unwrap();
    let came = open_in_a_child(base.path());
    assert_eq!(came.kind, "too large");
    assert!(came.took < SOON && came.peak_kib < 64 << 10, "{:?}, {} KiB", came.took, came.peak_kib);
}

#[test]
fn json_100_000_deep_is_refused_soon() {
    for (open, close) in [("[", "]"), (r#"{"a":"#, "}")] {
        let base = tempfile::tempdir().unwrap();
        let deep = format!(r#"{{"AccessToken":{}1{}}}"#, open.repeat(100_000), close.repeat(100_000));
        common::plant(base.path(), deep.as_bytes());
        let came = open_in_a_child(base.path());
        assert_eq!(came.kind, "no cache");
        assert!(came.took < SOON && came.peak_kib < 64 << 10, "{:?}, {} KiB", came.took, came.peak_kib);
    }
}

#[test]
fn a_million_rows_are_read_in_bounded_memory() {
    let base = tempfile::tempdir().unwrap();
    let rows: Vec<String> = (0..1_000_000).map(|n| format!(r#""{n}":{{"secret":"s"}}"#)).collect();
    let json = format!(r#"{{"AccessToken":{{{}}}}}"#, rows.join(","));
    common::plant(base.path(), json.as_bytes());
    let came = open_in_a_child(base.path());
    // None has an expiry, so none is a token that could be read; all are kept.
    assert_eq!(came.kind, "rows 0");
    println!("{} MB with a million rows: {:?}, {} MiB", json.len() >> 20, came.took, came.peak_kib >> 10);
    assert!(
        came.took < Duration::from_secs(5) && came.peak_kib < 128 << 10,
        "{:?} {}",
        came.took,
        came.peak_kib
    );
}

#[test]
fn endless_devices_are_refused_as_file_key_and_directory() {
    let bench = Bench::new();
    drop(bench.open());
    std::fs::remove_file(bench.file()).unwrap();
    let device = Command::new("mknod").arg(bench.file()).args(["c", "1", "5"]).status().unwrap();
    if !device.success() {
        return common::skip("ROOT", "a device cannot be made without root");
    }
    let started = Instant::now();
    let error = bench.builder().open().unwrap_err();
    assert!(error.to_string().contains("a pipe, socket or device"), "{error}");
    assert!(bench.builder().directory("/dev/zero").open().is_err());
    let keys = std::sync::Arc::new(KeyFileStore::new("/dev/zero"));
    assert!(bench.builder().directory(bench.base.path().join("other")).key_store(keys).open().is_err());
    assert!(started.elapsed() < Duration::from_secs(1));
}
