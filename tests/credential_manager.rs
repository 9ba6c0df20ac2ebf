//! The platform keyring on Windows: the key in the Credential Manager, on this machine only, and the file
//! under `LocalAppData`.
#![cfg(all(windows, feature = "keyring"))]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::{account, has, response};
use tokenseal::{PersistedTokenCache, key_store::probe};

const APPLICATION: &str = "tokenseal-tests";

/// The entry of the key that a sealed file names, by way of the keyring crate alone.
fn entry(file: &Path) -> keyring_core::Entry {
    let id = common::key_id(file).iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
    let store = keyring_core::get_default_store().expect("`keyring` sets it at its first use");
    store.build(APPLICATION, &format!("default/{id}"), None).unwrap()
}

/// Not a test by itself: what the test below does with a `LocalAppData` of its own.
#[test]
fn as_a_child_process() {
    let Some(base) = std::env::var_os("TOKENSEAL_CHILD_BASE").map(PathBuf::from) else { return };
    assert!(probe().is_usable(), "{}", probe());
    #[cfg(feature = "conformance")]
    tokenseal::key_store::conformance::check(tokenseal::key_store::KeyringStore::platform);
    let open = || PersistedTokenCache::open(APPLICATION);
    let cache = open().unwrap();
    cache.add(&response("alice", "read")).unwrap();
    cache.add(&response("bob", "read")).unwrap();
    let expected = base.join(APPLICATION).join("tokenseal").join("default.sealed");
    let file = cache.path().to_owned();
    assert_eq!(file, expected.canonicalize().unwrap());
    let first = entry(&file);
    assert!(first.get_password().is_err(), "it is bytes, not UTF-16 text");
    assert!(first.get_secret().unwrap().starts_with(b"tokenseal-key-1:"));
    assert_eq!(first.get_attributes().unwrap()["persistence"], "Local");
    assert!(has(&open().unwrap(), "alice", "read"));

    assert!(!cache.remove_account(&account("alice")).unwrap().is_rotation_pending());
    assert!(first.get_secret().is_err(), "the old key is gone");
    let second = entry(&file);
    assert_eq!(second.get_attributes().unwrap()["persistence"], "Local");
    assert!(has(&open().unwrap(), "bob", "read") && !has(&cache, "alice", "read"));
    drop(cache);

    // The entry is altered, then lost: errors, and nothing is made or changed.
    let (genuine, before) = (second.get_secret().unwrap(), std::fs::read(&file).unwrap());
    second.set_secret(&genuine[..genuine.len() - 1]).unwrap();
    assert!(open().unwrap_err().is_key_lost());
    second.set_secret(&genuine).unwrap();
    assert!(has(&open().unwrap(), "bob", "read"));
    second.delete_credential().unwrap();
    assert!(open().unwrap_err().is_key_lost());
    assert_eq!(std::fs::read(&file).unwrap(), before);
    assert!(second.get_secret().is_err(), "no other key is made");
    let (cache, aside) = PersistedTokenCache::builder(APPLICATION).reset().unwrap();
    assert!(aside.is_some() && cache.accounts().unwrap().is_empty());
    entry(&file).delete_credential().unwrap();
    println!("the child is done");
}

#[test]
fn the_key_is_in_the_credential_manager_and_the_file_under_local_app_data() {
    let base = tempfile::tempdir().unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "as_a_child_process", "--nocapture"])
        .env("TOKENSEAL_CHILD_BASE", base.path())
        .env("LOCALAPPDATA", base.path())
        .output()
        .unwrap();
    let said =
        format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.contains("the child is done"), "{said}");
}
