//! A default store that the program has set in `keyring_core` is respected and never overwritten.
//!
//! In a program of its own, for the default belongs to the whole process.
#![cfg(feature = "keyring")]

mod common;

use std::sync::Arc;

use common::Bench;
use tokenseal::key_store::KeyringStore;

#[test]
fn a_default_store_that_is_set_stays_and_is_used_if_it_lasts() {
    let mock = keyring_core::mock::Store::new().unwrap();
    keyring_core::set_default_store(mock.clone());
    let bench = Bench::new();
    let error = bench.builder_with(Arc::new(KeyringStore::platform())).open().unwrap_err();
    assert!(error.is_key_unavailable(), "{error:?}");
    assert!(
        format!("{error:?}").contains("this process only"),
        "a store that forgets is not chosen silently"
    );
    assert!(!bench.file().exists());
    // Handed in, it is what was asked for.
    let cache = bench.builder_with(Arc::new(KeyringStore::with_store(mock.clone()))).open().unwrap();
    cache.add(&common::response("alice", "read")).unwrap();
    let default = keyring_core::get_default_store().unwrap();
    assert_eq!(
        default.id(),
        keyring_core::api::CredentialStoreApi::id(&*mock),
        "the default is as it was set"
    );
}
