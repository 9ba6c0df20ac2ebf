//! The persisted cache within one process: what it promises about reading, changing and losing files.
#![cfg(feature = "file")]

mod common;

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::key_stores::{Hanging, OneForAll, Refusing};
use common::{Bench, account, generation, has, key_id, replace, response, wanted};
use tokenseal::{
    CacheError, Error, ErrorKind, PersistedTokenCache, TokenCache,
    key_store::{KeyFileStore, MemoryKeyStore},
};

#[test]
fn a_handle_can_be_cloned_and_used_from_any_thread() {
    fn is_shareable<T: Send + Sync + Clone + 'static>(_: &T) {}
    let bench = Bench::new();
    let cache = bench.open();
    is_shareable(&cache);
    let clone = cache.clone();
    std::thread::spawn(move || clone.add(&response("alice", "read")).unwrap()).join().unwrap();
    assert!(has(&cache, "alice", "read"));
}

#[test]
fn tokens_outlive_the_handle() {
    let bench = Bench::new();
    let cache = bench.open();
    assert!(cache.accounts().unwrap().is_empty());
    cache.add(&response("alice", "read")).unwrap();
    assert!(has(&cache, "alice", "read"));
    drop(cache);
    let again = bench.open();
    assert!(has(&again, "alice", "read"));
    assert!(!has(&again, "alice", "write") && !has(&again, "bob", "read"));
    assert_eq!(bench.keys.len(), 1);
    assert_eq!(bench.files(), ["default.lock", "default.sealed"]);
}

#[test]
fn nothing_readable_is_in_any_file() {
    let bench = Bench::new();
    let keys = bench.base.path().join("keys");
    let cache = bench.builder_with(Arc::new(KeyFileStore::new(&keys))).open().unwrap();
    cache.add(&response("alice", "read")).unwrap();
    cache.remove_account(&account("bob")).unwrap();
    cache.add(&response("bob", "read")).unwrap();
    cache.remove_account(&account("bob")).unwrap();
    for directory in [bench.directory(), keys] {
        for name in common::files(&directory) {
            let bytes = fs::read(directory.join(&name)).unwrap();
            // None so short that sealed bytes have it by chance.
            for planted in
                ["alice", "at-bob-read", "rt-bob-read", "AccessToken", "\"secret\"", "target", "idp.example"]
            {
                let found = bytes.windows(planted.len()).any(|window| window == planted.as_bytes());
                assert!(!found, "{planted} in {name}");
            }
        }
    }
}

#[test]
fn another_handle_sees_a_change_at_its_next_call() {
    let bench = Bench::new();
    let (one, other) = (bench.open(), bench.open());
    for round in 0..50 {
        let scope = format!("s{round}");
        one.add(&response("alice", &scope)).unwrap();
        assert!(has(&other, "alice", &scope), "round {round}");
    }
    other.remove_account(&account("alice")).unwrap();
    assert!(one.accounts().unwrap().is_empty());
    one.add(&response("bob", "read")).unwrap();
    assert_eq!(other.accounts().unwrap().len(), 1, "and alice has not come back");
}

#[test]
fn an_update_returns_the_value_of_its_function() {
    let cache = Bench::new();
    let cache = cache.open();
    let updated = cache.try_update(|tokens| {
        tokens.add(&response("alice", "read"))?;
        Ok::<_, CacheError>(tokens.accounts().len())
    });
    assert_eq!(updated.unwrap().into_value(), 1);
}

#[test]
fn an_update_that_fails_or_panics_writes_nothing_and_poisons_nothing() {
    let bench = Bench::new();
    let cache = bench.open();
    cache.add(&response("alice", "read")).unwrap();
    let before = fs::read(bench.file()).unwrap();

    let failed = cache.try_update(|tokens| {
        tokens.clear();
        Err::<(), _>(Error::aborted("changed my mind"))
    });
    let failed = failed.unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::Aborted);
    assert_eq!(std::error::Error::source(&failed).unwrap().to_string(), "changed my mind");

    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _ = cache.try_update(|tokens| -> Result<(), Error> {
            tokens.clear();
            panic!("in the middle of a change");
        });
    }));
    assert!(panicked.is_err());

    assert_eq!(fs::read(bench.file()).unwrap(), before);
    assert!(has(&cache, "alice", "read"), "the state in memory is as before");
    cache.add(&response("bob", "read")).unwrap();
    assert!(has(&cache, "alice", "read") && has(&cache, "bob", "read"));
}

#[test]
fn an_update_without_a_change_writes_nothing() {
    let bench = Bench::new();
    let cache = bench.open();
    let before = generation(&bench.file());
    cache.update(|tokens| tokens.remove_app_tokens("nobody")).unwrap();
    assert_eq!(generation(&bench.file()), before);
}

#[test]
fn a_nested_update_is_an_error_and_reading_inside_one_is_not() {
    let bench = Bench::new();
    let (cache, other_handle) = (bench.open(), bench.open());
    cache.add(&response("alice", "read")).unwrap();
    let outer = cache.try_update(|tokens| {
        tokens.add(&response("alice", "write"))?;
        assert!(has(&cache, "alice", "read") && !has(&cache, "alice", "write"), "the state before");
        for handle in [&cache, &other_handle] {
            let nested = handle.add(&response("bob", "read"));
            assert!(nested.unwrap_err().is_nested_change());
        }
        Ok::<_, Error>(())
    });
    outer.unwrap();
    assert!(has(&cache, "alice", "write") && !has(&cache, "bob", "read"));
}

#[test]
fn threads_lose_nothing() {
    let bench = Bench::new();
    let shared = bench.open();
    let errors = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let own = if thread % 2 == 0 { shared.clone() } else { bench.open() };
            let errors = &errors;
            scope.spawn(move || {
                for round in 0..25 {
                    let scope = format!("{thread}-{round}");
                    let ok = own.add(&response("alice", &scope)).is_ok() && has(&own, "alice", &scope);
                    errors.fetch_add(usize::from(!ok), Ordering::SeqCst);
                }
            });
        }
    });
    assert_eq!(errors.load(Ordering::SeqCst), 0);
    let tokens = bench.open().read(|tokens| tokens.access_tokens().count()).unwrap();
    assert_eq!(tokens, 8 * 25);
}

#[test]
fn a_file_for_another_application_or_cache_does_not_open() {
    let bench = Bench::new();
    drop(bench.open());
    let keys = Arc::new(bench.keys.clone());
    fs::copy(bench.file(), bench.directory().join("other.sealed")).unwrap();
    let other_cache = bench.builder().cache("other").open();
    assert!(other_cache.unwrap_err().is_key_lost(), "its key is another cache's");
    let other_application =
        PersistedTokenCache::builder("fabrikam").directory(bench.directory()).key_store(keys).open();
    assert!(other_application.unwrap_err().is_key_lost());
}

#[test]
fn even_with_the_same_key_a_swapped_file_does_not_open() {
    let bench = Bench::new();
    let keys = Arc::new(OneForAll(MemoryKeyStore::new(), std::sync::Mutex::default()));
    drop(bench.builder_with(keys.clone()).open().unwrap());
    fs::copy(bench.file(), bench.directory().join("other.sealed")).unwrap();
    let swapped = bench.builder_with(keys.clone()).cache("other").open().unwrap_err();
    assert!(swapped.is_tampered(), "{swapped}");
    let other = PersistedTokenCache::builder("fabrikam").directory(bench.directory()).key_store(keys).open();
    assert!(other.unwrap_err().is_tampered());
}

/// Every way to damage the file is an error of its kind, and the bytes stay as they are.
#[test]
fn what_cannot_be_read_is_never_overwritten() {
    let bench = Bench::new();
    bench.open().add(&response("alice", "read")).unwrap();
    let good = fs::read(bench.file()).unwrap();
    let altered = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        bytes
    };
    for (what, bytes) in [
        ("a flipped bit", altered(100)),
        ("a flipped nonce", altered(40)),
        ("another key id", altered(10)),
        ("a later version", altered(3)),
        ("a truncated file", good[..200].to_vec()),
        ("an empty file", Vec::new()),
        ("plaintext", br#"{"AccessToken":{}}"#.to_vec()),
    ] {
        fs::write(bench.file(), &bytes).unwrap();
        let opened = bench.builder().open();
        let error = opened.unwrap_err();
        match what {
            "a flipped nonce" | "another key id" => assert!(error.is_key_lost(), "{what}: {error}"),
            "a later version" => assert!(!error.is_tampered() && !error.is_key_lost(), "{error}"),
            _ => assert!(error.is_tampered(), "{what}: {error}"),
        }
        assert!(error.to_string().contains("default") || error.is_key_lost(), "{error}");
        assert_eq!(fs::read(bench.file()).unwrap(), bytes, "{what} stays");
        assert_eq!(bench.keys.len(), 1, "no key is made over {what}");
    }
    fs::write(bench.file(), &good).unwrap();
    assert!(has(&bench.open(), "alice", "read"));
}

#[test]
fn damage_under_an_open_handle_is_an_error_and_stays() {
    let bench = Bench::new();
    let cache = bench.open();
    cache.add(&response("alice", "read")).unwrap();
    let mut bytes = fs::read(bench.file()).unwrap();
    bytes[100] ^= 1;
    replace(&bench, &bytes);
    assert!(cache.find_access_token(&wanted("alice", "read")).unwrap_err().is_tampered());
    assert!(cache.add(&response("bob", "read")).unwrap_err().is_tampered());
    assert_eq!(fs::read(bench.file()).unwrap(), bytes);
}

#[test]
fn plaintext_in_the_place_of_the_file_is_refused_on_every_path() {
    use tokenseal::{AcquireError, RefreshTokenQuery, refresh::AcquireRequest};
    let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/01_single_account_aad.json");
    let plaintext = fs::read(fixture).unwrap();
    assert!(plaintext.len() > 1_000);
    let bench = Bench::new();
    let cache = bench.open();
    cache.add(&response("alice", "read")).unwrap();
    replace(&bench, &plaintext);
    let (alice, query) = (account("alice"), wanted("alice", "read"));
    let refresh = RefreshTokenQuery::new(common::CLIENT, &alice);
    let errors = [
        bench.builder().open().unwrap_err(),
        cache.read(|_| ()).unwrap_err(),
        cache.find_access_token(&query).unwrap_err(),
        cache.find_refresh_tokens(&refresh).unwrap_err(),
        cache.find_id_token(common::CLIENT, &alice, None).unwrap_err(),
        cache.accounts().unwrap_err(),
        cache.add(&response("bob", "read")).unwrap_err(),
        cache.update(|_| ()).unwrap_err(),
        cache.remove_account(&alice).unwrap_err(),
        cache.clear().unwrap_err(),
    ];
    let of_refreshing = [
        cache.acquire(AcquireRequest::new(&query), |_| unreachable!()).map(drop).unwrap_err(),
        cache.refresh_guard(&refresh, std::time::Duration::from_secs(1)).map(drop).unwrap_err(),
    ];
    let of_refreshing = of_refreshing.iter().map(|error| match error {
        AcquireError::Cache(error) => &**error,
        other => panic!("{other:?}"),
    });
    for (number, error) in errors.iter().chain(of_refreshing).enumerate() {
        assert!(error.is_tampered(), "{number}: {error:?}");
        assert!(error.to_string().contains("no sealed token cache"), "{number}: {error}");
    }
    assert_eq!(fs::read(bench.file()).unwrap(), plaintext);
    // Set aside only when told to, and not read then either.
    let aside = cache.reset().unwrap().unwrap();
    assert_eq!(fs::read(aside).unwrap(), plaintext);
    assert!(cache.accounts().unwrap().is_empty());
}

#[test]
fn an_older_copy_put_back_is_noticed_and_nothing_is_written() {
    let bench = Bench::new();
    let cache = bench.open();
    cache.add(&response("alice", "one")).unwrap();
    let old = fs::read(bench.file()).unwrap();
    cache.add(&response("alice", "two")).unwrap();
    replace(&bench, &old);
    assert!(cache.accounts().unwrap_err().is_rolled_back());
    assert!(cache.add(&response("alice", "three")).unwrap_err().is_rolled_back());
    assert!(
        bench.builder().open().unwrap_err().is_rolled_back(),
        "another handle of this process sees it too"
    );
    assert_eq!(fs::read(bench.file()).unwrap(), old);
}

#[test]
fn a_lost_key_is_told_from_tampering_and_no_other_is_made() {
    let bench = Bench::new();
    drop(bench.open());
    let before = fs::read(bench.file()).unwrap();
    let empty = MemoryKeyStore::new();
    let error = bench.builder_with(Arc::new(empty.clone())).open().unwrap_err();
    assert!(error.is_key_lost() && !error.is_key_unavailable() && !error.is_tampered(), "{error}");
    assert!(empty.is_empty());
    assert_eq!(fs::read(bench.file()).unwrap(), before);
}

#[test]
fn reset_sets_aside_and_starts_empty() {
    let bench = Bench::new();
    let cache = bench.open();
    cache.add(&response("alice", "read")).unwrap();
    drop(cache);
    let sealed = fs::read(bench.file()).unwrap();
    let empty = MemoryKeyStore::new();
    let (cache, aside) = bench.builder_with(Arc::new(empty.clone())).reset().unwrap();
    let aside = aside.unwrap();
    assert_eq!(fs::read(&aside).unwrap(), sealed, "nothing is lost");
    assert!(cache.accounts().unwrap().is_empty());
    cache.add(&response("bob", "read")).unwrap();
    assert_eq!(empty.len(), 1);
    assert_eq!(bench.keys.len(), 1, "the old key is left where it is");
    // What was set aside can be put back with its keyring.
    fs::rename(&aside, bench.file()).unwrap();
    assert!(has(&bench.open(), "alice", "read"));
}

#[test]
fn a_reset_without_a_key_store_leaves_the_file() {
    let bench = Bench::new();
    let cache = bench.open();
    cache.add(&response("alice", "read")).unwrap();
    let before = fs::read(bench.file()).unwrap();
    let refusing = Arc::new(Refusing::new(&bench.keys));
    refusing.refuses(true);
    let error = bench.builder_with(refusing).reset().unwrap_err();
    assert!(error.is_key_unavailable(), "{error}");
    assert_eq!(fs::read(bench.file()).unwrap(), before);
    assert_eq!(bench.files(), ["default.lock", "default.sealed"]);
    assert!(has(&cache, "alice", "read"));
}

#[test]
fn a_file_that_was_removed_is_an_empty_cache_and_nobody_comes_back() {
    let bench = Bench::new();
    let cache = bench.open();
    cache.add(&response("alice", "read")).unwrap();
    let old_key = key_id(&bench.file());
    fs::remove_file(bench.file()).unwrap();
    assert!(cache.accounts().unwrap().is_empty());
    cache.add(&response("bob", "read")).unwrap();
    assert_eq!(cache.accounts().unwrap().len(), 1);
    assert_ne!(key_id(&bench.file()), old_key, "under a key of its own");
    assert!(has(&bench.open(), "bob", "read"));
}

#[test]
fn the_size_limit_holds_before_anything_is_written_or_read() {
    let bench = Bench::new();
    let cache = bench.builder().size_limit(4096).open().unwrap();
    cache.add(&response("alice", "read")).unwrap();
    let before = fs::read(bench.file()).unwrap();
    let error = cache.add(&response("alice", &"x".repeat(4096))).unwrap_err();
    assert!(error.is_too_large(), "{error}");
    assert_eq!(fs::read(bench.file()).unwrap(), before);
    assert!(has(&cache, "alice", "read"));
    cache.add(&response("alice", "more")).unwrap();
    let error = bench.builder().size_limit(500).open().unwrap_err();
    assert!(error.is_too_large(), "{error}");
    // A sparse gigabyte is refused without being read.
    let file = fs::OpenOptions::new().write(true).open(bench.file()).unwrap();
    file.set_len(1 << 30).unwrap();
    let started = std::time::Instant::now();
    assert!(bench.builder().open().unwrap_err().is_too_large());
    assert!(started.elapsed() < Duration::from_secs(1));
}

#[test]
fn an_absent_key_store_is_an_error_and_nothing_is_written() {
    let bench = Bench::new();
    let keys = Arc::new(Refusing::new(&bench.keys));
    keys.refuses(true);
    let error = bench.builder_with(keys.clone()).open().unwrap_err();
    assert!(error.is_key_unavailable(), "{error}");
    assert_eq!(keys.calls(), ["prepare"], "asked before the lock is taken");
    assert!(bench.files().is_empty(), "{:?}", bench.files());
    keys.refuses(false);
    drop(bench.builder_with(keys.clone()).open().unwrap());
    assert_eq!(keys.calls(), ["prepare", "create", "read"]);
    drop(bench.builder_with(keys.clone()).open().unwrap());
    assert_eq!(keys.calls(), ["read"], "an existing file needs no more than its key");
}

#[test]
fn the_key_is_read_once_and_kept() {
    let bench = Bench::new();
    drop(bench.open());
    let keys = Arc::new(Refusing::new(&bench.keys));
    let cache = bench.builder_with(keys.clone()).open().unwrap();
    assert_eq!(keys.calls(), ["read"]);
    for round in 0..5 {
        cache.add(&response("alice", &round.to_string())).unwrap();
        bench.open().add(&response("bob", &round.to_string())).unwrap();
        assert!(has(&cache, "bob", &round.to_string()));
    }
    assert!(keys.calls().is_empty());
}

#[test]
fn litter_of_a_killed_save_is_swept_and_nothing_else_is() {
    let bench = Bench::new();
    let cache = bench.open();
    for name in [".default.tmp", ".default.short.tmp", ".other.tmp", "default.sealed.aside-1-a"] {
        fs::write(bench.directory().join(name), b"x").unwrap();
    }
    cache.add(&response("alice", "read")).unwrap();
    assert_eq!(
        bench.files(),
        [".default.short.tmp", ".other.tmp", "default.lock", "default.sealed", "default.sealed.aside-1-a"]
    );
}

#[test]
fn names_that_leave_the_directory_are_refused() {
    for name in ["", "..", "a/b", "con", "a\\b"] {
        let bench = Bench::new();
        let error = bench.builder().cache(name).open().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidName, "{name}");
    }
}

#[test]
fn a_relative_or_linked_path_is_the_same_cache() {
    let bench = Bench::new();
    let cache = bench.open();
    #[cfg(unix)]
    {
        let link = bench.base.path().join("link");
        std::os::unix::fs::symlink(bench.directory(), &link).unwrap();
        let through_link = bench.builder().directory(&link).open().unwrap();
        assert_eq!(through_link.path(), cache.path());
        let nested = cache.try_update(|_| {
            assert!(through_link.add(&response("a", "b")).unwrap_err().is_nested_change());
            Ok::<_, Error>(())
        });
        nested.unwrap();
    }
    let dotted = bench.builder().directory(bench.directory().join("..").join("tokens")).open().unwrap();
    assert_eq!(dotted.path(), cache.path());
}

#[test]
fn reading_and_changing_inside_a_read_is_no_deadlock() {
    let bench = Bench::new();
    let cache = bench.open();
    let found = cache.read(|tokens| {
        if tokens.accounts().is_empty() {
            cache.add(&response("alice", "read")).unwrap();
        }
        assert!(has(&cache, "alice", "read"));
        tokens.accounts().len()
    });
    assert_eq!(found.unwrap(), 0, "it goes on seeing the state it was called with");
    assert!(has(&cache, "alice", "read"));
}

#[test]
fn waiting_for_ever_can_be_asked_for() {
    let bench = Bench::new();
    let for_ever = bench
        .builder()
        .lock_timeout(Duration::MAX)
        .key_timeout(Duration::MAX)
        .rotation_timeout(Duration::MAX);
    let cache = for_ever.open().unwrap();
    cache.add(&response("alice", "read")).unwrap();
    assert!(!cache.remove_account(&account("alice")).unwrap().is_rotation_pending());
}

#[test]
fn many_removals_in_one_update_cost_what_they_cost_in_memory() {
    let bench = Bench::new();
    let accounts: Vec<String> = (0..30_000)
        .map(|n| format!(r#""{n}":{{"home_account_id":"u{n}","environment":"idp.example","realm":"r"}}"#))
        .collect();
    let json = format!(r#"{{"Account":{{{}}}}}"#, accounts.join(","));
    let remove_all = |tokens: &mut TokenCache| {
        let started = std::time::Instant::now();
        for n in 0..30_000 {
            tokens.remove_account(&account(&format!("u{n}")));
        }
        started.elapsed()
    };
    let mut in_memory = TokenCache::new();
    in_memory.deserialize(json.clone()).unwrap();
    let alone = remove_all(&mut in_memory);
    let cache = bench.open();
    cache.try_update(|tokens| tokens.deserialize(json)).unwrap();
    let within = cache.update(|tokens| remove_all(tokens)).unwrap().into_value();
    assert!(within < alone * 5 + Duration::from_millis(100), "{within:?}, and in memory {alone:?}");
}

#[test]
fn every_lookup_sees_the_file() {
    let bench = Bench::new();
    let cache = bench.open();
    let id_token = "e30.eyJzdWIiOiJhbGljZSJ9.sig";
    let json = format!(
        r#"{{"access_token":"at","refresh_token":"rt-of-alice","id_token":"{id_token}","expires_in":3600}}"#
    );
    let response = tokenseal::TokenResponse::from_json(json).unwrap().client_id(common::CLIENT);
    cache.add(&response.environment(common::ENVIRONMENT).realm("tenant").username("Alice@x")).unwrap();
    let alice = account("alice");
    let refresh = tokenseal::RefreshTokenQuery::new(common::CLIENT, &alice);
    assert_eq!(cache.find_refresh_tokens(&refresh).unwrap()[0].expose(), "rt-of-alice");
    assert_eq!(cache.find_id_token(common::CLIENT, &alice, None).unwrap().unwrap().expose(), id_token);
    let named = tokenseal::cache::AccountQuery::new().username("alice@X");
    assert_eq!(cache.find_accounts(&named).unwrap()[0].home_account_id(), "alice");
    let shown = format!("{cache:?}");
    assert!(shown.contains("default.sealed") && !shown.contains("rt-of-alice"), "{shown}");
}

#[test]
fn a_reset_that_cannot_make_its_key_puts_the_file_back() {
    let bench = Bench::new();
    let keys = Arc::new(Refusing::new(&bench.keys));
    let cache = bench.builder_with(keys.clone()).open().unwrap();
    cache.add(&response("alice", "read")).unwrap();
    for refused in ["create", "read"] {
        keys.fails_at(&[refused]);
        assert!(cache.reset().unwrap_err().is_key_unavailable(), "{refused}");
        keys.fails_at(&[]);
        assert!(has(&cache, "alice", "read") && has(&bench.open(), "alice", "read"), "{refused}");
        assert_eq!(bench.files(), ["default.lock", "default.sealed"]);
        assert_eq!(bench.keys.len(), 1, "{refused}: no key is left over");
    }
    assert!(cache.reset().unwrap().is_some());
    assert!(cache.accounts().unwrap().is_empty());
}

#[test]
fn a_hung_key_store_costs_each_reader_its_deadline_and_no_more() {
    let bench = Bench::new();
    let keys = Arc::new(Hanging::new(&bench.keys));
    let builder = bench.builder_with(keys.clone()).key_timeout(Duration::from_millis(300));
    let cache = builder.rotation_timeout(Duration::from_millis(300)).open().unwrap();
    cache.add(&response("alice", "read")).unwrap();
    // Another handle rotates the key: this one must ask the store for it, which hangs.
    bench.open().remove_account(&account("alice")).unwrap();
    keys.hangs(true);
    let started = std::time::Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| assert!(cache.accounts().unwrap_err().is_key_unavailable()));
        }
    });
    assert!(started.elapsed() < Duration::from_millis(900), "{:?}", started.elapsed());
    keys.hangs(false);
    assert!(cache.accounts().unwrap().is_empty());
}

/// R22: a copy of the directory is another cache, whatever the original does.
#[test]
fn a_copied_directory_is_not_taken_for_a_rolled_back_one() {
    let bench = Bench::new();
    let cache = bench.open();
    cache.add(&response("alice", "read")).unwrap();
    let copy = bench.base.path().join("copy");
    fs::create_dir(&copy).unwrap();
    #[cfg(unix)]
    fs::set_permissions(&copy, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    fs::copy(bench.file(), copy.join("default.sealed")).unwrap();
    for number in 0..3 {
        cache.add(&response("alice", &number.to_string())).unwrap();
    }
    let copied = bench.builder().directory(&copy).open().unwrap();
    assert!(has(&copied, "alice", "read") && !has(&copied, "alice", "2"));
    // The original is watched as before.
    let old = fs::read(bench.file()).unwrap();
    cache.add(&response("alice", "more")).unwrap();
    replace(&bench, &old);
    assert!(cache.accounts().unwrap_err().is_rolled_back());
}

/// R24: what is on disk is saved.
#[test]
fn after_a_durable_change_nothing_counts_as_unsaved() {
    let bench = Bench::new();
    let cache = bench.open();
    cache.add(&response("alice", "read")).unwrap();
    assert!(!cache.read(TokenCache::has_state_changed).unwrap());
    cache.remove_account(&account("alice")).unwrap();
    assert!(!cache.read(TokenCache::has_state_changed).unwrap());
    let other = bench.open();
    other.add(&response("bob", "read")).unwrap();
    assert!(!cache.read(TokenCache::has_state_changed).unwrap());
}

/// A save that others may be making as well is not acknowledged, and no half of it is seen.
#[cfg(unix)]
#[test]
fn a_lock_file_that_is_removed_in_the_middle_of_a_change_is_an_error() {
    let bench = Bench::new();
    let cache = bench.open();
    cache.add(&response("alice", "read")).unwrap();
    let removed = cache.try_update(|tokens| {
        fs::remove_file(bench.directory().join("default.lock")).unwrap();
        tokens.add(&response("bob", "read"))
    });
    assert_eq!(removed.unwrap_err().kind(), ErrorKind::LockRemoved);
    assert!(has(&cache, "alice", "read") && !has(&cache, "bob", "read"));
    cache.add(&response("bob", "read")).unwrap();
    assert_eq!(bench.files(), ["default.lock", "default.sealed"], "no litter");
}

/// Whoever hangs with a lock file that was removed holds up nobody.
#[cfg(target_os = "linux")]
#[test]
fn a_hung_holder_of_a_removed_lock_file_is_waited_for_no_more() {
    let bench = Bench::new();
    let cache = bench.builder().lock_timeout(Duration::from_millis(500)).open().unwrap();
    let lock = bench.directory().join("default.lock");
    let hung = fs::File::open(&lock).unwrap();
    hung.lock().unwrap();
    assert!(cache.add(&response("alice", "read")).unwrap_err().is_lock_timeout());
    fs::remove_file(&lock).unwrap();
    cache.add(&response("alice", "read")).unwrap();
    let busy = fs::File::open(&lock).unwrap();
    busy.lock().unwrap();
    let freed = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        busy.unlock().unwrap();
    });
    cache.add(&response("bob", "read")).unwrap();
    freed.join().unwrap();
    drop(hung);
}

#[test]
fn a_save_is_made_whatever_stands_where_the_new_file_is_made() {
    let bench = Bench::new();
    let cache = bench.open();
    fs::create_dir(bench.directory().join(".default.tmp")).unwrap();
    fs::write(bench.directory().join(".default.0123456789abcdef.tmp"), b"litter").unwrap();
    for _ in 0..3 {
        cache.add(&response("alice", "read")).unwrap();
    }
    assert_eq!(bench.files(), [".default.tmp", "default.lock", "default.sealed"]);
}
