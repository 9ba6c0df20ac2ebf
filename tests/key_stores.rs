//! The key stores of this crate do what every key store must.
#![cfg(feature = "conformance")]

use tokenseal::key_store::{KeyFileStore, MemoryKeyStore, conformance};

#[test]
fn keys_in_memory() {
    let store = MemoryKeyStore::new();
    conformance::check(|| store.clone());
}

#[test]
fn keys_in_files() {
    let base = tempfile::tempdir().unwrap();
    let directory = base.path().join("keys");
    conformance::check(|| KeyFileStore::new(&directory));
    let left = std::fs::read_dir(&directory).unwrap().count();
    assert_eq!(left, 0, "the checks leave nothing");
}

/// A store of the keyring crates, as a program may hand it in.
#[cfg(feature = "keyring")]
#[test]
fn keys_in_a_store_that_was_handed_in() {
    let store = keyring_core::mock::Store::new().unwrap();
    conformance::check(|| tokenseal::key_store::KeyringStore::with_store(store.clone()));
}
