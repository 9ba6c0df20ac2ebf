//! A process that forks: parent and child go on with the same memory, and never with the same nonce.
//!
//! The library is preloaded that makes `getpid` fork (`common/fork.c`), for safe Rust cannot.
#![cfg(all(target_os = "linux", target_env = "gnu"))]

use std::collections::HashSet;
use std::path::Path;
use std::process::Command;

use tokenseal::seal::{self, Context, KeyId, SealingKey};

const SEALS: usize = 1_000;

fn nonce(key: &SealingKey) -> String {
    let record = seal::seal(key, &Context::file("contoso-cli", "default"), 1, b"{}").unwrap();
    record[32..56].iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"))
}

/// Not a test by itself: seals before it forks, so that whatever is kept between seals is kept, and
/// after it, twice over.
#[test]
fn as_a_child_process() {
    use std::io::Write as _;
    let Some(out) = std::env::var_os("TOKENSEAL_CHILD_OUT") else { return };
    let key = SealingKey::from_bytes(KeyId::from_bytes([1; 16]), &[2; 32]);
    let mut lines: Vec<String> = (0..10).map(|_| nonce(&key)).collect();
    let _ = std::process::id();
    // Here run two.
    lines.extend((0..SEALS).map(|_| nonce(&key)));
    let pid = std::process::id();
    let mut file = std::fs::File::create_new(Path::new(&out).join(pid.to_string())).unwrap();
    file.write_all(lines.join("\n").as_bytes()).unwrap();
}

#[test]
fn parent_and_child_of_a_fork_share_no_nonce() {
    let base = tempfile::tempdir().unwrap();
    let (library, out) = (base.path().join("fork.so"), base.path().join("out"));
    std::fs::create_dir(&out).unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/common/fork.c");
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(source).status();
    assert!(built.unwrap().success(), "the linker that Rust needs compiles C as well");
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "as_a_child_process", "--test-threads=1"])
        .env("LD_PRELOAD", &library)
        .env("TOKENSEAL_TEST_FORK", "1")
        .env("TOKENSEAL_CHILD_OUT", &out)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let started = std::time::Instant::now();
    let read = || -> Vec<String> {
        let files = std::fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().path());
        files.map(|file| std::fs::read_to_string(file).unwrap()).collect()
    };
    // The parent does not wait for the child.
    let is_whole = |said: &String| said.lines().count() == 10 + SEALS;
    while read().len() < 2 || !read().iter().all(is_whole) {
        assert!(started.elapsed().as_secs() < 20, "{} of 2 processes said something", read().len());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let said = read();
    let nonces: Vec<Vec<&str>> = said.iter().map(|said| said.lines().collect()).collect();
    assert_eq!(nonces[0][..10], nonces[1][..10], "they were one process until they forked");
    let distinct: HashSet<&str> = nonces.iter().flat_map(|nonces| &nonces[10..]).copied().collect();
    assert_eq!(distinct.len(), 2 * SEALS);
}
