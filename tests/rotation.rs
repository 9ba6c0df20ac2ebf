//! The key is rotated at each sign-out, and no key that is in use is ever lost.
#![cfg(feature = "file")]

mod common;

use std::fs;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use common::key_stores::{Forgetful, Hanging, Refusing};
use common::{Bench, account, has, key_id, replace, response};
use tokenseal::{
    Error, PersistedTokenCache, TokenCache,
    key_store::{KeyFileStore, MemoryKeyStore},
};

#[test]
fn a_sign_out_rotates_the_key_and_old_copies_stay_shut() {
    let bench = Bench::new();
    let cache = bench.open();
    cache.add(&response("alice", "read")).unwrap();
    cache.add(&response("bob", "read")).unwrap();
    let (old, old_key) = (fs::read(bench.file()).unwrap(), key_id(&bench.file()));
    let updated = cache.remove_account(&account("alice")).unwrap();
    assert!(matches!(updated.rotation(), tokenseal::persisted::Rotation::Done));
    assert_eq!(updated.value().access_tokens(), 1);
    assert_ne!(key_id(&bench.file()), old_key);
    assert_eq!(bench.keys.len(), 1, "the old key is gone");
    assert!(has(&cache, "bob", "read") && !has(&cache, "alice", "read"));
    // The next change forgets the old key; nothing more is rotated.
    let rotated = key_id(&bench.file());
    cache.add(&response("bob", "write")).unwrap();
    assert_eq!(key_id(&bench.file()), rotated);
    replace(&bench, &old);
    assert!(bench.builder().open().unwrap_err().is_key_lost(), "an old copy cannot be opened");
}

#[test]
fn other_handles_follow_a_rotation() {
    let bench = Bench::new();
    let (one, other) = (bench.open(), bench.open());
    for round in 0..20 {
        one.add(&response("alice", "read")).unwrap();
        other.add(&response("bob", &round.to_string())).unwrap();
        let signed_out = one.remove_account(&account("alice")).unwrap();
        assert!(!signed_out.is_rotation_pending());
        assert!(!has(&other, "alice", "read") && has(&other, "bob", &round.to_string()));
    }
    assert_eq!(bench.keys.len(), 1);
}

#[test]
fn replacing_all_tokens_counts_as_a_sign_out_only_if_an_account_is_gone() {
    let bench = Bench::new();
    let cache = bench.open();
    cache.add(&response("alice", "read")).unwrap();
    let mut key = key_id(&bench.file());
    let mut rotated = |change: &dyn Fn(&mut TokenCache)| {
        let _ = cache
            .try_update(|tokens| {
                change(tokens);
                Ok::<_, Error>(())
            })
            .unwrap();
        let new = key_id(&bench.file());
        let rotated = new != key;
        key = new;
        rotated
    };
    // R23: a usual way to change a cache, and to bring one in from elsewhere.
    let add_to_a_copy = |tokens: &mut TokenCache| {
        let mut copy = tokens.clone();
        drop(copy.add(&response("bob", "read")).unwrap());
        *tokens = copy;
    };
    assert!(!rotated(&add_to_a_copy));
    assert!(has(&cache, "alice", "read") && has(&cache, "bob", "read"));
    assert!(!rotated(&|tokens| tokens.deserialize(tokens.serialize().into_json()).unwrap()));
    let sign_out_in_a_copy = |tokens: &mut TokenCache| {
        let mut copy = tokens.clone();
        let _ = copy.remove_account(&account("bob"));
        *tokens = copy;
    };
    assert!(rotated(&sign_out_in_a_copy));
    let alice_is_gone = |tokens: &mut TokenCache| {
        let mut other = TokenCache::new();
        drop(other.add(&response("carol", "read")).unwrap());
        *tokens = other;
    };
    assert!(rotated(&alice_is_gone));
    assert!(has(&cache, "carol", "read") && !has(&cache, "alice", "read"));
    assert!(rotated(&|tokens| *tokens = TokenCache::new()));
    assert!(!rotated(&|tokens| tokens.deserialize(r#"{"Account":{"k":{}}}"#).unwrap()), "nothing was there");
    assert!(rotated(&|tokens| tokens.deserialize("{}").unwrap()));
    assert!(
        !rotated(&|tokens| {
            tokens.clear();
        }),
        "nothing is there"
    );
    assert!(!rotated(&|tokens| *tokens = TokenCache::new()), "nothing was there to be signed out");
    let add = |tokens: &mut TokenCache| drop(tokens.add(&response("bob", "read")).unwrap());
    assert!(!rotated(&add));
    assert!(!rotated(&|tokens| assert_eq!(tokens.remove_account(&account("nobody")).total(), 0)));
    assert!(rotated(&|tokens| assert!(tokens.clear().total() > 0)));
    assert_eq!(bench.keys.len(), 1);
}

#[test]
fn a_key_store_that_refuses_leaves_the_rotation_pending_and_the_next_update_makes_up_for_it() {
    for refused in [&["create"][..], &["read"], &["delete"], &["create", "read", "delete"]] {
        let bench = Bench::new();
        let keys = Arc::new(Refusing::new(&bench.keys));
        let cache = bench.builder_with(keys.clone()).open().unwrap();
        cache.add(&response("alice", "read")).unwrap();
        cache.add(&response("bob", "read")).unwrap();
        let (old, old_key) = (fs::read(bench.file()).unwrap(), key_id(&bench.file()));

        keys.fails_at(refused);
        let updated = cache.remove_account(&account("alice")).unwrap();
        assert!(updated.is_rotation_pending(), "{refused:?}");
        assert!(
            !has(&cache, "alice", "read") && has(&cache, "bob", "read"),
            "the sign-out happened all the same"
        );
        assert!(!has(&bench.open(), "alice", "read"), "and is durable");
        // Still pending while the store refuses.
        let again = cache.try_update(|tokens| tokens.add(&response("bob", "more"))).unwrap();
        assert!(again.is_rotation_pending(), "{refused:?}");

        keys.fails_at(&[]);
        // Whoever changes the cache next makes up for it: here another handle.
        let made_up = bench.open().try_update(|tokens| tokens.add(&response("bob", "third"))).unwrap();
        assert!(!made_up.is_rotation_pending(), "{refused:?}");
        assert_ne!(key_id(&bench.file()), old_key, "{refused:?}");
        assert!(has(&cache, "bob", "third") && has(&cache, "bob", "more") && !has(&cache, "alice", "read"));
        replace(&bench, &old);
        assert!(bench.builder().open().unwrap_err().is_key_lost(), "{refused:?}: the old copy is shut");
        assert_eq!(bench.keys.len(), 1, "{refused:?}: no key is left over");
    }
}

#[test]
fn two_caches_and_one_name_in_two_directories_never_touch_each_others_keys() {
    let bench = Bench::new();
    let keys: Arc<MemoryKeyStore> = Arc::new(bench.keys.clone());
    let builders = [
        bench.builder(),
        bench.builder().cache("second"),
        bench.builder().directory(bench.base.path().join("elsewhere")),
        PersistedTokenCache::builder("fabrikam").directory(bench.base.path().join("third")).key_store(keys),
    ];
    let caches: Vec<_> = builders.iter().map(|builder| builder.clone().open().unwrap()).collect();
    for round in 0..40 {
        let cache = &caches[round * 7 % caches.len()];
        cache.add(&response("stays", &round.to_string())).unwrap();
        cache.add(&response("goes", "x")).unwrap();
        cache.remove_account(&account("goes")).unwrap();
        assert_eq!(bench.keys.len(), caches.len());
    }
    for (builder, cache) in builders.iter().zip(&caches) {
        let reopened = builder.clone().open().unwrap();
        assert_eq!(reopened.accounts().unwrap(), cache.accounts().unwrap());
        assert!(!reopened.accounts().unwrap().is_empty());
    }
}

/// A member of an imported cache must not be taken for the notes of this one.
#[test]
fn imported_content_cannot_have_keys_deleted() {
    let bench = Bench::new();
    let victim = bench.builder().directory(bench.base.path().join("victim")).open().unwrap();
    victim.add(&response("alice", "read")).unwrap();
    let hex = |id: Vec<u8>| id.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
    let id = hex(key_id(victim.path()));
    let cache = bench.open();
    let member = format!(r#""tokenseal":{{"rotation":"due","prepared":"{id}","retiring":"{id}"}}"#);
    let json = format!(r#"{{{member},"AccessToken":{{}},{member}}}"#);
    cache.try_update(|tokens| tokens.deserialize(json)).unwrap();
    drop(cache);
    let cache = bench.open();
    cache.add(&response("bob", "read")).unwrap();
    assert!(!cache.remove_account(&account("bob")).unwrap().is_rotation_pending());
    assert_eq!(bench.keys.len(), 2);
    drop(victim);
    let victim = bench.builder().directory(bench.base.path().join("victim")).open().unwrap();
    assert!(has(&victim, "alice", "read"));
    assert!(
        !cache
            .read(|tokens| format!("{:?}", tokens.serialize().json().expose()))
            .unwrap()
            .contains("tokenseal")
    );
}

#[test]
fn a_locked_store_that_says_no_such_entry_does_not_end_a_rotation() {
    let bench = Bench::new();
    let refusing = Arc::new(Refusing::new(&bench.keys));
    let cache = bench.builder_with(refusing.clone()).open().unwrap();
    cache.add(&response("alice", "read")).unwrap();
    let old = fs::read(bench.file()).unwrap();
    refusing.fails_at(&["delete"]);
    assert!(cache.remove_account(&account("alice")).unwrap().is_rotation_pending());
    let forgetful = Arc::new(Forgetful(bench.keys.clone(), false.into()));
    let cache = bench.builder_with(forgetful.clone()).open().unwrap();
    forgetful.1.store(true, Ordering::SeqCst);
    let updated = cache.try_update(|tokens| tokens.add(&response("bob", "read"))).unwrap();
    assert!(updated.is_rotation_pending(), "{:?}", updated.rotation());
    forgetful.1.store(false, Ordering::SeqCst);
    let updated = cache.try_update(|tokens| tokens.add(&response("bob", "write"))).unwrap();
    assert!(!updated.is_rotation_pending());
    replace(&bench, &old);
    assert!(bench.builder().open().unwrap_err().is_key_lost(), "the old copy is shut");
}

/// The keyring was replaced by a new one, or another volume stands where the key files were: a key made
/// there would be lost when the real one comes back, and the old key would not be deleted.
#[test]
fn a_running_process_does_not_rotate_into_another_key_store() {
    let bench = Bench::new();
    let keys = bench.base.path().join("keys");
    let builder = || bench.builder_with(Arc::new(tokenseal::key_store::KeyFileStore::new(&keys)));
    let cache = builder().open().unwrap();
    cache.add(&response("alice", "read")).unwrap();
    cache.add(&response("bob", "read")).unwrap();
    let old_key = key_id(&bench.file());
    let elsewhere = bench.base.path().join("elsewhere");
    fs::rename(&keys, &elsewhere).unwrap();
    assert!(cache.remove_account(&account("alice")).unwrap().is_rotation_pending());
    assert!(cache.try_update(|tokens| tokens.add(&response("bob", "more"))).unwrap().is_rotation_pending());
    assert_eq!(key_id(&bench.file()), old_key);
    let _ = fs::remove_dir_all(&keys);
    fs::rename(&elsewhere, &keys).unwrap();
    let reopened = builder().open().unwrap();
    assert!(
        has(&reopened, "bob", "read") && has(&reopened, "bob", "more") && !has(&reopened, "alice", "read")
    );
    assert!(
        !reopened.try_update(|tokens| tokens.add(&response("bob", "last"))).unwrap().is_rotation_pending()
    );
    assert_ne!(key_id(&bench.file()), old_key);
    assert_eq!(common::files(&keys).len(), 1);
}

#[test]
fn a_store_that_never_deletes_gathers_no_forgotten_keys() {
    let bench = Bench::new();
    let keys = Arc::new(Refusing::new(&bench.keys));
    let cache = bench.builder_with(keys.clone()).open().unwrap();
    keys.fails_at(&["delete"]);
    for round in 0..40 {
        cache.add(&response("goes", &round.to_string())).unwrap();
        assert!(cache.remove_account(&account("goes")).unwrap().is_rotation_pending());
    }
    keys.fails_at(&[]);
    for round in 0..2 {
        cache.add(&response("stays", &round.to_string())).unwrap();
    }
    assert_eq!(bench.keys.len(), 1, "every key but the current one is gone");
}

#[test]
fn while_the_key_store_hangs_changes_go_on() {
    let bench = Bench::new();
    let keys = Arc::new(Hanging::new(&bench.keys));
    let builder = bench.builder_with(keys.clone()).rotation_timeout(std::time::Duration::from_millis(600));
    let cache = builder.open().unwrap();
    cache.add(&response("goes", "x")).unwrap();
    keys.hangs(true);
    assert!(cache.remove_account(&account("goes")).unwrap().is_rotation_pending());
    let started = std::time::Instant::now();
    for round in 0..4 {
        cache.add(&response("stays", &round.to_string())).unwrap();
    }
    assert!(started.elapsed() < std::time::Duration::from_millis(4 * 600), "{:?}", started.elapsed());
    keys.hangs(false);
    // The call that hung ends now; the next change makes up for what it left.
    std::thread::sleep(std::time::Duration::from_millis(100));
    let made_up = cache.try_update(|tokens| tokens.add(&response("stays", "last"))).unwrap();
    assert!(!made_up.is_rotation_pending(), "{:?}", made_up.rotation());
}

/// What a key store was asked to do may happen long after the deadline, when others went on.
#[test]
fn a_call_of_the_key_store_that_ends_after_its_deadline_destroys_nothing() {
    let wait = std::time::Duration::from_millis(300);
    for (call, goes_on) in [("create", false), ("create", true), ("delete", false), ("delete", true)] {
        let bench = Bench::new();
        let keys = Arc::new(Hanging::new(&bench.keys));
        let neighbour = bench.builder_with(keys.clone()).cache("neighbour").open().unwrap();
        neighbour.add(&response("dave", "read")).unwrap();
        let cache = bench.builder_with(keys.clone()).rotation_timeout(wait).open().unwrap();
        cache.add(&response("alice", "read")).unwrap();
        cache.add(&response("bob", "read")).unwrap();
        let old = fs::read(bench.file()).unwrap();

        keys.hangs_at(&[call]);
        assert!(cache.remove_account(&account("alice")).unwrap().is_rotation_pending(), "{call}");
        assert_eq!(keys.late(), 0, "{call}");
        if goes_on {
            // Another process, whose key store answers, makes up for the rotation before the call ends.
            let other = bench.open();
            let made_up = other.try_update(|tokens| tokens.add(&response("bob", "more"))).unwrap();
            assert!(!made_up.is_rotation_pending(), "{call}: {:?}", made_up.rotation());
            other.add(&response("carol", "read")).unwrap();
            assert!(!other.remove_account(&account("carol")).unwrap().is_rotation_pending());
        }
        keys.hangs(false);
        let released = std::time::Instant::now();
        while keys.late() == 0 {
            assert!(released.elapsed() < std::time::Duration::from_secs(20), "{call}: it never ended");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        for cache in [&cache, &bench.open()] {
            assert!(has(cache, "bob", "read") && !has(cache, "alice", "read"), "{call}");
            assert_eq!(has(cache, "bob", "more"), goes_on, "{call}");
        }
        for round in ["first", "second"] {
            let made_up = cache.try_update(|tokens| tokens.add(&response("bob", round))).unwrap();
            assert!(!made_up.is_rotation_pending(), "{call}: {:?}", made_up.rotation());
        }
        assert!(has(&bench.builder().cache("neighbour").open().unwrap(), "dave", "read"), "{call}");
        // Whoever was late may have left a key that seals nothing.
        let left = if (call, goes_on) == ("create", true) { 2..=3 } else { 2..=2 };
        assert!(left.contains(&bench.keys.len()), "{call}, {goes_on}: {} keys", bench.keys.len());
        replace(&bench, &old);
        assert!(bench.builder().open().unwrap_err().is_key_lost(), "{call}: the old copy is shut");
    }
}

#[test]
fn a_first_key_that_is_made_after_the_deadline_destroys_nothing() {
    let bench = Bench::new();
    let keys = Arc::new(Hanging::new(&bench.keys));
    keys.hangs_at(&["create"]);
    let wait = std::time::Duration::from_millis(300);
    let builder = bench.builder_with(keys.clone()).key_timeout(wait).rotation_timeout(wait);
    assert!(builder.clone().open().unwrap_err().is_key_unavailable());
    assert!(!bench.file().exists(), "nothing is sealed under a key that may never be there");
    let other = bench.open();
    other.add(&response("alice", "read")).unwrap();
    keys.hangs(false);
    let released = std::time::Instant::now();
    while keys.late() == 0 {
        assert!(released.elapsed() < std::time::Duration::from_secs(20), "it never ended");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    for cache in [builder.open().unwrap(), other] {
        assert!(has(&cache, "alice", "read"));
        cache.add(&response("alice", "write")).unwrap();
    }
    assert!(has(&bench.open(), "alice", "write"));
}

/// Two caches of one application, and one name in two directories, all with one key store.
#[test]
fn sign_outs_at_random_lose_no_key_of_another_cache() {
    let base = tempfile::tempdir().unwrap();
    let keys = Arc::new(KeyFileStore::new(base.path().join("keys")));
    let open = |directory: &str, cache: &str| {
        let builder = PersistedTokenCache::builder("contoso-cli").directory(base.path().join(directory));
        builder.cache(cache).key_store(keys.clone()).open().unwrap()
    };
    let places = [("one", "default"), ("one", "work"), ("other", "default"), ("other", "work")];
    for (directory, cache) in places {
        open(directory, cache).add(&response("stays", "read")).unwrap();
    }
    let mut random = [0; 100];
    getrandom::fill(&mut random).unwrap();
    for number in random {
        let (directory, name) = places[usize::from(number % 4)];
        let cache = open(directory, name);
        cache.add(&response("goes", "read")).unwrap();
        let copy = std::fs::read(cache.path()).unwrap();
        assert!(!cache.remove_account(&account("goes")).unwrap().is_rotation_pending());
        // After one more update the copy is shut for good: its key is in no entry.
        cache.add(&response("stays", "write")).unwrap();
        let key_id: String = copy[8..24].iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
        let entries = common::files(&base.path().join("keys"));
        assert!(entries.iter().all(|entry| !entry.contains(&key_id)), "{key_id} is still in {entries:?}");
        for (directory, cache) in places {
            assert!(common::has(&open(directory, cache), "stays", "read"), "{directory}/{cache}");
        }
    }
    assert_eq!(common::files(&base.path().join("keys")).len(), 4, "one key for each cache");
}
