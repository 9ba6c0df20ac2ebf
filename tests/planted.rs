//! Things planted where the cache, its lock or its key should be: refused at once, victims untouched.
#![cfg(all(unix, feature = "file"))]

mod common;

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Bench, response};
use tokenseal::{Error, ErrorKind, key_store::KeyFileStore};

/// What is wrong with the file that an error names.
fn file_error(error: &Error) -> ErrorKind {
    assert!(error.path().is_some(), "expected a file error: {error:?}");
    error.kind()
}

fn mode_of(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

/// Runs `attempt`, which must fail within a second.
fn fails_at_once<T>(attempt: impl FnOnce() -> Result<T, Error>) -> Error {
    let started = Instant::now();
    let Err(error) = attempt() else { panic!("it was accepted") };
    assert!(started.elapsed() < Duration::from_secs(1), "{error} came late");
    error
}

#[test]
fn links_pipes_and_directories_are_refused_everywhere() {
    for name in ["default.sealed", "default.lock"] {
        for what in ["link to a file", "link to nothing", "pipe", "directory", "device"] {
            let bench = Bench::new();
            let cache = bench.open();
            cache.add(&response("alice", "read")).unwrap();
            let victim = bench.base.path().join("victim");
            fs::write(&victim, b"precious").unwrap();
            fs::set_permissions(&victim, Permissions::from_mode(0o600)).unwrap();
            let planted = bench.directory().join(name);
            fs::remove_file(&planted).unwrap();
            match what {
                "link to a file" => symlink(&victim, &planted).unwrap(),
                "link to nothing" => symlink(bench.base.path().join("nothing"), &planted).unwrap(),
                "directory" => fs::create_dir(&planted).unwrap(),
                "pipe" => assert!(Command::new("mkfifo").arg(&planted).status().unwrap().success()),
                _ => {
                    let made = Command::new("mknod").arg(&planted).args(["c", "1", "5"]).status().unwrap();
                    if !made.success() {
                        common::skip("ROOT", "only root can make devices");
                        continue;
                    }
                }
            }
            let error = fails_at_once(|| cache.add(&response("bob", "read")));
            assert_eq!(file_error(&error), ErrorKind::WrongFileType, "{what} at {name}");
            if name == "default.sealed" {
                assert_eq!(file_error(&fails_at_once(|| cache.accounts())), ErrorKind::WrongFileType);
                let error = fails_at_once(|| bench.builder().open());
                assert_eq!(file_error(&error), ErrorKind::WrongFileType);
            }
            assert_eq!(fs::read(&victim).unwrap(), b"precious");
            assert!(!bench.base.path().join("nothing").exists());
            assert_eq!(bench.files().len(), 2, "no litter: {:?}", bench.files());
        }
    }
}

#[test]
fn a_hard_link_to_something_else_is_no_envelope_and_stays_untouched() {
    let bench = Bench::new();
    drop(bench.open());
    let victim = bench.base.path().join("victim");
    fs::write(&victim, b"precious").unwrap();
    fs::set_permissions(&victim, Permissions::from_mode(0o600)).unwrap();
    fs::remove_file(bench.file()).unwrap();
    fs::hard_link(&victim, bench.file()).unwrap();
    assert!(fails_at_once(|| bench.builder().open()).is_tampered());
    assert_eq!(fs::read(&victim).unwrap(), b"precious");
}

#[test]
fn a_hard_link_to_something_else_as_the_lock_harms_nothing() {
    let bench = Bench::new();
    let cache = bench.open();
    let victim = bench.base.path().join("victim");
    fs::write(&victim, b"precious").unwrap();
    let lock = bench.directory().join("default.lock");
    fs::remove_file(&lock).unwrap();
    fs::hard_link(&victim, &lock).unwrap();
    for (mode, is_refused) in [(0o644, true), (0o600, false)] {
        fs::set_permissions(&victim, Permissions::from_mode(mode)).unwrap();
        let came = cache.add(&response("alice", "read"));
        assert_eq!(came.is_err(), is_refused, "{came:?}");
        if let Err(error) = came {
            assert_eq!(file_error(&error), ErrorKind::LoosePermissions);
        }
        assert_eq!((fs::read(&victim).unwrap(), mode_of(&victim)), (b"precious".to_vec(), mode));
    }
}

#[test]
fn loose_permissions_are_refused_and_said_how_to_mend() {
    let bench = Bench::new();
    let cache = bench.open();
    for loose in [0o644, 0o660, 0o602, 0o604] {
        fs::set_permissions(bench.file(), Permissions::from_mode(loose)).unwrap();
        let error = fails_at_once(|| bench.builder().open());
        assert!(error.to_string().contains("chmod 600"), "{error}");
        assert!(error.to_string().contains(&format!(" has mode {loose:o}, ")), "{error}");
        assert_eq!(file_error(&error), ErrorKind::LoosePermissions);
        let error = cache.add(&response("alice", "read")).unwrap_err();
        assert_eq!(file_error(&error), ErrorKind::LoosePermissions, "{error}");
    }
    fs::set_permissions(bench.file(), Permissions::from_mode(0o600)).unwrap();
    for loose in [0o770, 0o702, 0o777, 0o1777] {
        fs::set_permissions(bench.directory(), Permissions::from_mode(loose)).unwrap();
        let error = fails_at_once(|| bench.builder().open());
        assert_eq!(file_error(&error), ErrorKind::LoosePermissions, "{loose:o}");
    }
    fs::set_permissions(bench.directory(), Permissions::from_mode(0o755)).unwrap();
    bench.open().add(&response("alice", "read")).unwrap();
}

#[test]
fn modes_are_strict_whatever_the_umask() {
    for umask in ["000", "022", "077", "777"] {
        let bench = Bench::new();
        let output = Command::new("sh")
            .arg("-c")
            .arg(format!("umask {umask}; exec \"$0\" --exact as_a_child_process --nocapture"))
            .arg(std::env::current_exe().unwrap())
            .env("TOKENSEAL_CHILD_BASE", bench.base.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("it was done"), "umask {umask}: {said}");
        for directory in ["state/tokens", "state", "keys"] {
            assert_eq!(mode_of(&bench.base.path().join(directory)), 0o700, "{directory} under umask {umask}");
        }
        for (directory, expected) in [("state/tokens", 4), ("keys", 1)] {
            let names = common::files(&bench.base.path().join(directory));
            assert_eq!(names.len(), expected, "{names:?} under umask {umask}");
            for name in names {
                let path = bench.base.path().join(directory).join(&name);
                assert_eq!(mode_of(&path), 0o600, "{name} under umask {umask}");
            }
        }
    }
}

/// Not a test by itself: run by the one above with another umask.
#[test]
fn as_a_child_process() {
    let Some(base) = std::env::var_os("TOKENSEAL_CHILD_BASE") else { return };
    let base = Path::new(&base);
    let cache = tokenseal::PersistedTokenCache::builder("contoso-cli")
        .directory(base.join("state").join("tokens"))
        .key_store(Arc::new(KeyFileStore::new(base.join("keys"))))
        .open()
        .unwrap();
    cache.add(&response("alice", "read")).unwrap();
    // A refresh that fails, so that its lock and its note stay.
    let wanted = common::wanted("alice", "write");
    let error =
        cache.acquire(&wanted, |_| Err(tokenseal::refresh::RefreshFailure::transient("down"))).unwrap_err();
    assert!(error.is_transient(), "{error:?}");
    println!("it was done");
}

#[test]
fn what_belongs_to_somebody_else_is_refused() {
    if !is_root() {
        return common::skip("ROOT", "only root can give files away");
    }
    let bench = Bench::new();
    let cache = bench.open();
    std::os::unix::fs::chown(bench.file(), Some(65534), None).unwrap();
    let error = fails_at_once(|| bench.builder().open());
    assert_eq!(file_error(&error), ErrorKind::ForeignOwner);
    assert!(error.to_string().contains(" belongs to user 65534 "), "{error}");
    assert!(cache.add(&response("alice", "read")).is_err());
    std::os::unix::fs::chown(bench.file(), Some(0), None).unwrap();
    std::os::unix::fs::chown(bench.directory().join("default.lock"), Some(65534), None).unwrap();
    let error = cache.add(&response("alice", "read")).unwrap_err();
    assert_eq!(file_error(&error), ErrorKind::ForeignOwner, "{error}");
    std::os::unix::fs::chown(bench.directory().join("default.lock"), Some(0), None).unwrap();
    std::os::unix::fs::chown(bench.directory(), Some(65534), None).unwrap();
    assert_eq!(file_error(&fails_at_once(|| bench.builder().open())), ErrorKind::ForeignOwner);

    let base = tempfile::tempdir().unwrap();
    let open = |name| common::with_key_file(base.path()).cache(name).open();
    drop(open("default").unwrap());
    let keys = base.path().join("keys");
    let key = keys.join(&common::files(&keys)[0]);
    std::os::unix::fs::chown(&key, Some(65534), None).unwrap();
    assert_eq!(file_error(&fails_at_once(|| open("default"))), ErrorKind::ForeignOwner);
    std::os::unix::fs::chown(&key, Some(0), None).unwrap();
    // No key is made where somebody else may take it away; the user's own is read.
    std::os::unix::fs::chown(&keys, Some(65534), None).unwrap();
    assert_eq!(file_error(&fails_at_once(|| open("second"))), ErrorKind::ForeignOwner);
    drop(open("default").unwrap());
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0)
}

#[test]
fn a_directory_that_is_a_file_is_refused() {
    let bench = Bench::new();
    fs::write(bench.directory(), b"precious").unwrap();
    let error = fails_at_once(|| bench.builder().open());
    assert_eq!(file_error(&error), ErrorKind::WrongFileType, "{error}");
    assert_eq!(fs::read(bench.directory()).unwrap(), b"precious");
}

#[test]
fn key_files_are_as_strict() {
    let bench = Bench::new();
    let keys = bench.base.path().join("keys");
    let open = || bench.builder_with(Arc::new(KeyFileStore::new(&keys))).open();
    drop(open().unwrap());
    let key = keys.join(&common::files(&keys)[0]);
    fs::set_permissions(&key, Permissions::from_mode(0o640)).unwrap();
    assert_eq!(file_error(&fails_at_once(open)), ErrorKind::LoosePermissions);
    fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
    drop(open().unwrap());
    let text = fs::read(&key).unwrap();
    fs::write(&key, &text[..text.len() - 1]).unwrap();
    let error = fails_at_once(open);
    assert!(error.is_key_lost(), "{error}");
    assert!(!error.to_string().contains(std::str::from_utf8(&text[16..40]).unwrap()));
    fs::remove_file(&key).unwrap();
    assert!(fails_at_once(open).is_key_lost());
    symlink("/dev/zero", &key).unwrap();
    assert_eq!(file_error(&fails_at_once(open)), ErrorKind::WrongFileType);
}

/// Not a test by itself: run by the one below, without what root may do besides.
#[test]
fn as_a_child_in_a_read_only_directory() {
    let Some(base) = std::env::var_os("TOKENSEAL_READ_ONLY_BASE") else { return };
    let cache = common::with_key_file(Path::new(&base)).open().unwrap();
    assert!(common::has(&cache, "alice", "read"));
    assert!(cache.add(&response("bob", "read")).is_err());
    assert!(cache.reset().is_err());
    assert!(common::has(&cache, "alice", "read"));
    println!("it was done");
}

#[test]
fn a_read_only_directory_can_be_read_and_refuses_changes() {
    let base = tempfile::tempdir().unwrap();
    let directory = base.path().join("tokens");
    common::with_key_file(base.path()).open().unwrap().add(&response("alice", "read")).unwrap();
    let before = (common::files(&directory), fs::read(directory.join("default.sealed")).unwrap());
    fs::set_permissions(&directory, Permissions::from_mode(0o500)).unwrap();
    common::again_without_root(
        "as_a_child_in_a_read_only_directory",
        "TOKENSEAL_READ_ONLY_BASE",
        base.path(),
    );
    fs::set_permissions(&directory, Permissions::from_mode(0o700)).unwrap();
    assert_eq!((common::files(&directory), fs::read(directory.join("default.sealed")).unwrap()), before);
}

/// A limit on file sizes is the full disk that needs no root: the write fails half-way.
#[test]
fn a_write_that_fails_leaves_the_old_file_and_no_litter() {
    let bench = Bench::new();
    let keys = bench.base.path().join("keys");
    let builder = || {
        tokenseal::PersistedTokenCache::builder("contoso-cli")
            .directory(bench.directory())
            .key_store(Arc::new(KeyFileStore::new(&keys)))
    };
    let cache = builder().open().unwrap();
    cache.add(&response("alice", "read")).unwrap();
    let before = fs::read(bench.file()).unwrap();
    let output = Command::new("sh")
        .arg("-c")
        // SIGXFSZ ignored, so that the write fails instead of the process.
        .arg("trap '' XFSZ; ulimit -f 8; exec \"$0\" --exact as_a_child_with_little_space --nocapture")
        .arg(std::env::current_exe().unwrap())
        .env("TOKENSEAL_SMALL_BASE", bench.base.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("the write failed"), "{said}");
    assert_eq!(fs::read(bench.file()).unwrap(), before);
    assert_eq!(bench.files(), ["default.lock", "default.sealed"]);
    assert!(common::has(&builder().open().unwrap(), "alice", "read"));
}

/// Not a test by itself: run by the one above with a limit on file sizes.
#[test]
fn as_a_child_with_little_space() {
    let Some(base) = std::env::var_os("TOKENSEAL_SMALL_BASE") else { return };
    let base = Path::new(&base);
    let cache = common::with_key_file(base).open().unwrap();
    let error = cache.add(&response("alice", &"x".repeat(20_000))).unwrap_err();
    assert_eq!(file_error(&error), ErrorKind::Io);
    assert!(error.to_string().starts_with("cannot write "), "{error}");
    assert!(common::has(&cache, "alice", "read"), "the state in memory is as before");
    println!("the write failed");
}

#[test]
fn without_a_home_directory_there_is_no_default_place() {
    let here = tempfile::tempdir().unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "as_a_child_without_a_home", "--nocapture"])
        .env("TOKENSEAL_NO_HOME", "1")
        .env("HOME", "relative")
        .env_remove("XDG_STATE_HOME")
        .current_dir(here.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("there is no home directory"), "{said}");
    assert!(common::files(here.path()).is_empty(), "nothing is made where the program runs");
}

/// Not a test by itself: run by the one above with a HOME that is no absolute path.
#[test]
fn as_a_child_without_a_home() {
    if std::env::var_os("TOKENSEAL_NO_HOME").is_none() {
        return;
    }
    let keys = Arc::new(tokenseal::key_store::MemoryKeyStore::new());
    let error = tokenseal::PersistedTokenCache::builder("contoso-cli").key_store(keys).open().unwrap_err();
    println!("{error}");
}
