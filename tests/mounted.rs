//! Keys that Kubernetes and Docker mount; directories that are not there; other users' homes.
#![cfg(all(unix, feature = "file"))]

mod common;

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::{account, has, response, with_key_file};
use tokenseal::{
    ErrorKind, PersistedTokenCache, key_store::KeyFileStore, persisted::PersistedTokenCacheBuilder,
};

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// A cache with a token in it, and its one key file.
fn made(base: &Path) -> PathBuf {
    let cache = with_key_file(base).open().unwrap();
    cache.add(&response("alice", "read")).unwrap();
    let names = common::files(&base.join("keys"));
    assert_eq!(names.len(), 1);
    base.join("keys").join(&names[0])
}

fn mounted(base: &Path) -> PersistedTokenCacheBuilder {
    PersistedTokenCache::builder("contoso-cli")
        .directory(base.join("tokens"))
        .key_store(Arc::new(KeyFileStore::mounted(base.join("mount"))))
}

/// As a kubelet lays a secret out: links to a directory that can be exchanged in one step.
fn as_kubernetes_does(base: &Path, key: &Path, file_mode: u32) {
    let mount = base.join("mount");
    let version = mount.join("..2026_11_26_22_36_28.123456789");
    fs::create_dir_all(&version).unwrap();
    let name = key.file_name().unwrap();
    fs::rename(key, version.join(name)).unwrap();
    mode(&version.join(name), file_mode);
    mode(&version, 0o755);
    mode(&mount, 0o1777);
    symlink(version.file_name().unwrap(), mount.join("..data")).unwrap();
    symlink(Path::new("..data").join(name), mount.join(name)).unwrap();
}

/// F11: what the README recommends works.
#[test]
fn a_key_that_kubernetes_mounts_opens_the_cache_and_seals_the_first() {
    for file_mode in [0o644, 0o440, 0o400, 0o444] {
        let base = tempfile::tempdir().unwrap();
        let base = base.path();
        let key = made(base);
        as_kubernetes_does(base, &key, file_mode);
        let cache = mounted(base).open().unwrap();
        assert!(has(&cache, "alice", "read"));
        cache.add(&response("bob", "read")).unwrap();
        let keys = KeyFileStore::mounted(base.join("mount"));
        assert_eq!(keys.key_files().unwrap().len(), 1, "and it says what it found");
        // What else is mounted is none of its business.
        fs::write(base.join("mount/tls.key"), "of another program").unwrap();
        assert_eq!(keys.key_files().unwrap().len(), 1);
        fs::remove_file(base.join("mount/tls.key")).unwrap();
        // A sign-out cannot rotate the key, and says so.
        let signed_out = cache.remove_account(&account("alice")).unwrap();
        let tokenseal::persisted::Rotation::Pending { reason } = signed_out.rotation() else {
            panic!("{:?}", signed_out.rotation())
        };
        assert!(reason.to_string().contains("rotate its keys where they come from"), "{reason}");
        assert!(!has(&mounted(base).open().unwrap(), "alice", "read"));
        // On a new volume the mounted key is the first one.
        fs::remove_dir_all(base.join("tokens")).unwrap();
        let cache = mounted(base).open().unwrap();
        cache.add(&response("carol", "read")).unwrap();
        drop(cache);
        assert!(has(&mounted(base).open().unwrap(), "carol", "read"));
        assert_eq!(common::files(&base.join("mount")).len(), 3, "nothing is written there");
    }
}

#[test]
fn a_key_that_docker_mounts_opens_the_cache() {
    let base = tempfile::tempdir().unwrap();
    let base = base.path();
    let key = made(base);
    fs::create_dir(base.join("mount")).unwrap();
    fs::rename(&key, base.join("mount").join(key.file_name().unwrap())).unwrap();
    mode(&base.join("mount").join(key.file_name().unwrap()), 0o444);
    mode(&base.join("mount"), 0o755);
    assert!(has(&mounted(base).open().unwrap(), "alice", "read"));
    // The strict store stays strict.
    let strict = PersistedTokenCache::builder("contoso-cli")
        .directory(base.join("tokens"))
        .key_store(Arc::new(KeyFileStore::new(base.join("mount"))));
    let error = strict.open().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LoosePermissions, "{error}");
}

#[test]
fn what_others_could_have_written_is_no_mounted_key() {
    let refused = |prepare: &dyn Fn(&Path, &Path)| {
        let base = tempfile::tempdir().unwrap();
        let base = base.path();
        let key = made(base);
        as_kubernetes_does(base, &key, 0o444);
        prepare(base, &fs::canonicalize(base.join("mount").join(key.file_name().unwrap())).unwrap());
        let error = mounted(base).open().unwrap_err();
        assert!(!error.is_key_unavailable() && error.path().is_some(), "{error}");
        error.to_string()
    };
    assert!(refused(&|_, key| mode(key, 0o666)).contains("mode 666"));
    assert!(refused(&|_, key| mode(key, 0o464)).contains("mode 464"));
    assert!(refused(&|_, key| mode(key.parent().unwrap(), 0o777)).contains("mode 777"));
    assert!(refused(&|base, _| mode(&base.join("mount"), 0o777)).contains("mode 777"));
    let outside = |base: &Path, key: &Path| {
        let elsewhere = base.join("elsewhere.key");
        fs::rename(key, &elsewhere).unwrap();
        symlink(&elsewhere, key).unwrap();
    };
    assert!(refused(&outside).contains("leads out of the directory"));
    let pipe = |_: &Path, key: &Path| {
        fs::remove_file(key).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(key).status().unwrap().success());
    };
    assert!(refused(&pipe).contains("pipe"));
    if !rustix::process::geteuid().is_root() {
        return common::skip("ROOT", "only root can give a file away");
    }
    assert!(refused(&|_, key| chown(key, Some(12_345), None).unwrap()).contains("user 12345"));
}

#[test]
fn without_a_mounted_key_no_cache_is_made_and_the_error_says_what_is_there() {
    let base = tempfile::tempdir().unwrap();
    let base = base.path();
    fs::create_dir(base.join("mount")).unwrap();
    let error = mounted(base).open().unwrap_err();
    assert!(error.is_key_unavailable(), "{error}");
    let source = std::error::Error::source(&error).or_else(|| panic!("{error:?}")).unwrap();
    assert!(source.to_string().contains("0 key files"), "{source}");
    assert!(!base.join("tokens/default.sealed").exists());
    let missing = KeyFileStore::mounted(base.join("nowhere")).key_files().unwrap_err();
    assert!(missing.is_unavailable() && !missing.is_lost(), "{missing}");
}

/// R10: a volume that is not mounted has lost no key.
#[test]
fn a_missing_key_directory_is_unavailable_and_never_lost() {
    for is_mounted in [false, true] {
        let base = tempfile::tempdir().unwrap();
        let base = base.path();
        let key = made(base);
        let sealed = fs::read(base.join("tokens/default.sealed")).unwrap();
        let builder = || if is_mounted { mounted(base) } else { with_key_file(base) };
        fs::rename(base.join("keys"), base.join("away")).unwrap();
        let error = builder().open().unwrap_err();
        assert!(error.is_key_unavailable() && !error.is_key_lost(), "{error}");
        assert!(!error.to_string().contains("reset"), "{error}");
        // A directory that is there and has not the key has lost it.
        fs::create_dir(base.join(if is_mounted { "mount" } else { "keys" })).unwrap();
        assert!(builder().open().unwrap_err().is_key_lost());
        assert_eq!(fs::read(base.join("tokens/default.sealed")).unwrap(), sealed);
        drop(key);
    }
}

/// Not a test by itself: opens a cache where HOME says, and prints what became of it.
#[test]
fn as_a_program_that_opens_its_cache() {
    if std::env::var_os("TOKENSEAL_OPENS").is_none() {
        return;
    }
    let keys = Arc::new(tokenseal::key_store::MemoryKeyStore::new());
    match PersistedTokenCache::builder("contoso-cli").key_store(keys).open() {
        Ok(cache) => println!("opened {}", cache.path().display()),
        Err(error) => println!("refused: {error} ({error:?})"),
    }
}

fn open_with_home(home: &Path, wrapper: &[&str]) -> String {
    let program = std::env::current_exe().unwrap();
    let mut command = match wrapper {
        [] => std::process::Command::new(&program),
        [wrapper, arguments @ ..] => {
            let mut command = std::process::Command::new(wrapper);
            command.args(arguments).arg(&program);
            command
        }
    };
    command.args(["--exact", "as_a_program_that_opens_its_cache", "--nocapture"]);
    command
        .env("TOKENSEAL_OPENS", "1")
        .env("HOME", home)
        .env_remove("XDG_STATE_HOME")
        .env_remove("XDG_DATA_HOME");
    let output = command.output().unwrap();
    String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
}

/// F12: `sudo` with HOME kept.
#[test]
fn nothing_is_made_in_the_home_of_another_user() {
    if !rustix::process::geteuid().is_root() {
        return common::skip("ROOT", "only root can be in another user's home");
    }
    let base = tempfile::tempdir().unwrap();
    let (alice, own) = (base.path().join("alice"), base.path().join("own"));
    for home in [&alice, &own] {
        fs::create_dir(home).unwrap();
    }
    chown(&alice, Some(12_345), None).unwrap();
    let said = open_with_home(&alice, &[]);
    assert!(said.contains("refused: ") && said.contains("belongs to user 12345"), "{said}");
    assert!(said.contains("ForeignParent") && said.contains("sudo -H"), "{said}");
    assert_eq!(fs::read_dir(&alice).unwrap().count(), 0, "nothing is made");
    assert!(open_with_home(&own, &[]).contains("opened "));
    // Nor below what an earlier mistake made there.
    for made in [".local", ".local/state"] {
        fs::create_dir(alice.join(made)).unwrap();
        let said = open_with_home(&alice, &[]);
        assert!(said.contains("belongs to user 12345"), "{said}");
    }
    assert_eq!(fs::read_dir(alice.join(".local/state")).unwrap().count(), 0);
    fs::remove_dir_all(alice.join(".local")).unwrap();
    // Nor where a program names a directory there.
    let named = PersistedTokenCache::builder("contoso-cli")
        .directory(alice.join("tokens"))
        .key_store(Arc::new(tokenseal::key_store::MemoryKeyStore::new()));
    let error = named.open().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ForeignParent, "{error}");
}

/// D10: a setuid program does not do what the caller's HOME says.
#[test]
fn with_the_rights_of_another_user_the_directory_must_be_named() {
    let is_there = std::process::Command::new("setpriv").arg("true").status();
    if !rustix::process::geteuid().is_root() || !is_there.is_ok_and(|status| status.success()) {
        return common::skip("ROOT", "only root can be another user as well, and setpriv makes it so");
    }
    let base = tempfile::tempdir().unwrap();
    let said = open_with_home(base.path(), &["setpriv", "--ruid", "12345"]);
    assert!(said.contains("refused: ") && said.contains("name the directory"), "{said}");
    assert_eq!(fs::read_dir(base.path()).unwrap().count(), 0);
}
