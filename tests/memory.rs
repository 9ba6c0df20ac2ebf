//! What is left in the memory of a process: the parent plants secrets and looks for them in a child.
//!
//! The parent makes the tokens and the sealed file; the child gets them by opening that file only.
//! The parent then reads all readable memory of the child at named moments. What it looks for never
//! counts twice, for the child has no copy but those that the crate makes.
#![cfg(all(target_os = "linux", feature = "file"))]

mod common;
#[path = "common/scan.rs"]
mod scan;

use std::fs;
use std::io::Write as _;
use std::path::Path;

use scan::{Heap, Observed, Planted};
use tokenseal::{
    AccessTokenQuery, Account, Error, PersistedTokenCache, TokenResponse, refresh::RefreshFailure,
};

const SECRETS: usize = 100;

fn open(base: &Path) -> PersistedTokenCache {
    common::with_key_file(base).open().unwrap()
}

fn response(number: usize, access_token: &str) -> TokenResponse {
    let json = format!(r#"{{"access_token":"{access_token}","expires_in":3600}}"#);
    let response = TokenResponse::from_json(json).unwrap();
    response.client_id("app").environment("e").realm("r").home_account_id(format!("user-{number}"))
}

fn random_text(length: usize) -> String {
    let mut bytes = vec![0; length];
    getrandom::fill(&mut bytes).unwrap();
    bytes
        .iter()
        .map(|byte| {
            char::from(
                b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz012345-_"[usize::from(byte % 60)],
            )
        })
        .collect()
}

/// Lets gdb look at the registers where only what descends from it may be looked at unasked.
fn be_watched() {
    let _ = rustix::process::set_ptracer(rustix::process::PTracer::Any);
}

/// Tells the parent, and waits until it has looked.
fn moment(name: &str) {
    println!("\nmoment: {name}");
    std::io::stdout().flush().unwrap();
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
}

/// Not a test by itself: what the observed child does.
#[test]
fn as_a_child_process() {
    let Some(base) = std::env::var_os("TOKENSEAL_CHILD_BASE") else { return };
    let base = Path::new(&base);
    be_watched();
    // Off the main thread, so that the ended thread's stack is looked at too.
    let off_the_main_thread = |work: &(dyn Fn() + Sync)| {
        std::thread::scope(|scope| scope.spawn(work).join().unwrap());
    };

    let cache = open(base);
    moment("idle");
    drop(cache);
    moment("dropped");

    off_the_main_thread(&|| {
        let cache = open(base);
        for number in 0..SECRETS {
            let account = tokenseal::Account::new(format!("user-{number}"), "e");
            let wanted = tokenseal::AccessTokenQuery::for_account("app", &account);
            assert!(cache.find_access_token(&wanted).unwrap().is_some());
        }
        cache.add(&response(1_000, "not planted")).unwrap();
    });
    moment("found and added");

    off_the_main_thread(&|| {
        let cache = open(base);
        let given_up = cache.try_update(|tokens| {
            tokens.add(&response(1_001, "not planted"))?;
            Err::<(), _>(Error::aborted("given up"))
        });
        assert!(given_up.is_err());
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _never = cache.try_update(|tokens| -> Result<(), Error> {
                tokens.add(&response(1_002, "not planted"))?;
                panic!("in the middle of a save");
            });
        }));
        assert!(panicked.is_err());
    });
    moment("failed and panicked");

    off_the_main_thread(&|| {
        // When this is refused, what would have been sealed stands written out.
        let limit = fs::metadata(base.join("tokens/default.sealed")).unwrap().len();
        let cache = common::with_key_file(base).size_limit(limit).open().unwrap();
        let error = cache.add(&response(1_003, &"not planted".repeat(1_000))).unwrap_err();
        assert!(error.is_too_large(), "{error}");
    });
    moment("failed in mid-save");

    off_the_main_thread(&|| {
        for round in 0..200 {
            open(base).add(&response(2_000, &format!("not planted {round}"))).unwrap();
        }
    });
    moment("200 cycles");

    let cache = open(base);
    for number in 0..SECRETS / 2 {
        cache.remove_account(&tokenseal::Account::new(format!("user-{number}"), "e")).unwrap();
    }
    moment("half signed out");
    drop(cache);

    moment("before it is no cache");
    let error = common::with_key_file(base).open().unwrap_err();
    assert_eq!(error.kind(), tokenseal::ErrorKind::NotACache, "{error}");
    moment("no cache");

    let file = base.join("tokens/default.sealed");
    let mut bytes = fs::read(&file).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&file, bytes).unwrap();
    assert!(common::with_key_file(base).open().unwrap_err().is_tampered());
    moment("refused");
}

/// Not a test by itself: what the observed child of the second test does.
#[test]
fn as_a_child_process_that_refreshes() {
    let Some(base) = std::env::var_os("TOKENSEAL_CHILD_BASE") else { return };
    let base = Path::new(&base);
    be_watched();
    let cache = open(base);
    let wanted = AccessTokenQuery::for_account("app", &Account::new("user-0", "e"));
    let answer = base.join("answer.json");
    let acquired = cache.acquire(&wanted, move |call| {
        assert!(call.refresh_token().expose().len() > 1_000);
        Ok(TokenResponse::from_json(fs::read(&answer).unwrap())?)
    });
    moment("acquired");
    drop(acquired.unwrap());
    moment("refreshed");
    let acquired = cache.acquire(&wanted, |_| Err(RefreshFailure::transient("no call is needed")));
    drop(acquired.unwrap());
    let rejected = wanted.at(std::time::SystemTime::now() + std::time::Duration::from_secs(7_200));
    let error = cache.acquire(&rejected, |call| {
        drop(call);
        Err(RefreshFailure::rejected("invalid_grant"))
    });
    assert!(error.unwrap_err().is_sign_in_required());
    moment("rejected");
    drop(cache);
    moment("dropped");
}

fn refresh_leaves_nothing(heap: Heap) {
    let base = tempfile::tempdir().unwrap();
    let [old_access, old_refresh, new_access, new_refresh] = [0, 1, 2, 3].map(|n| random_text(1_200 + n));
    {
        let json =
            format!(r#"{{"access_token":"{old_access}","refresh_token":"{old_refresh}","expires_in":0}}"#);
        let response = TokenResponse::from_json(json).unwrap().client_id("app").environment("e").realm("r");
        open(base.path()).add(&response.home_account_id("user-0")).unwrap();
    }
    let json =
        format!(r#"{{"access_token":"{new_access}","refresh_token":"{new_refresh}","expires_in":3600}}"#);
    fs::write(base.path().join("answer.json"), json).unwrap();
    let planted = |texts: [&String; 2]| Planted::new(texts.map(|text| text.as_bytes().to_vec()).into());
    let (old, new) = (planted([&old_access, &old_refresh]), planted([&new_access, &new_refresh]));
    let refresh_token = planted([&new_refresh, &new_refresh]);

    let mut observed = Observed::start(base.path(), "as_a_child_process_that_refreshes", heap);
    observed.wait_for("acquired");
    let (exposed, whole) = new.find_in(&observed.child);
    assert_eq!((exposed.len(), whole), (2, 3), "the caller has one more of the access token");
    observed.go_on();
    observed.wait_for("refreshed");
    let (exposed, whole) = new.find_in(&observed.child);
    assert_eq!((exposed.len(), whole), (2, 2), "each once");
    assert!(old.find_in(&observed.child).0.is_empty(), "the old ones are nowhere");
    observed.go_on();
    observed.wait_for("rejected");
    assert!(refresh_token.find_in(&observed.child).0.is_empty(), "nor is what the server rejected");
    observed.go_on();
    observed.wait_for("dropped");
    assert!(new.find_in(&observed.child).0.is_empty() && old.find_in(&observed.child).0.is_empty());
    observed.go_on();
    observed.child.wait().unwrap();
}

#[test]
fn a_refresh_leaves_each_new_token_once_and_the_old_ones_nowhere() {
    refresh_leaves_nothing(Heap::System);
}

#[test]
fn a_refresh_leaves_nothing_on_a_heap_that_never_reuses_memory() {
    refresh_leaves_nothing(Heap::Quarantine);
}

/// The keys to look for: the long-term one, that of the record in the file, and the round keys of both.
fn keys_in_use(base: &Path, key: &[u8; 32]) -> Planted {
    let record = fs::read(base.join("tokens/default.sealed")).unwrap();
    let message_key = scan::message_key(key, &record[32..56]);
    Planted::new([scan::round_keys(key), scan::round_keys(&message_key)].concat())
}

/// No key of these is in memory or a register.
fn no_key(observed: &Observed, keys: &Planted, moment: &str) {
    let (exposed, _) = keys.find_in(&observed.child);
    assert!(exposed.is_empty(), "{moment}: round keys {exposed:?} are exposed");
    let Some(found) = observed.in_registers(keys) else {
        return common::skip("GDB", "registers are not looked at without gdb");
    };
    assert_eq!(found, 0, "{moment}: in registers");
}

/// The long-term key, and how it may stand in memory.
fn key_of(base: &Path) -> ([u8; 32], Planted) {
    use base64ct::Encoding as _;
    let files = common::files(&base.join("keys"));
    assert_eq!(files.len(), 1, "{files:?}");
    let text = fs::read_to_string(base.join("keys").join(&files[0])).unwrap();
    let text = text.split(':').nth(1).unwrap();
    let key: [u8; 32] = base64ct::Base64UrlUnpadded::decode_vec(text).unwrap().try_into().unwrap();
    (key, Planted::new(vec![key.to_vec(), text.as_bytes().to_vec()]))
}

fn leaves_nothing(heap: Heap) {
    let base = tempfile::tempdir().unwrap();
    let secrets: Vec<String> = (0..SECRETS).map(|number| random_text(1_200 + number)).collect();
    {
        let cache = open(base.path());
        let added = cache.try_update(|tokens| {
            secrets
                .iter()
                .enumerate()
                .try_for_each(|(number, secret)| tokens.add(&response(number, secret)).map(drop))
        });
        added.unwrap();
    }
    let (key, entries) = key_of(base.path());
    let no_cache = format!("[\"{}\"]", secrets.join("\",\""));
    let tokens = Planted::new(secrets.into_iter().map(String::into_bytes).collect());

    let mut observed = Observed::start(base.path(), "as_a_child_process", heap);
    observed.wait_for("idle");
    let (exposed, whole) = tokens.find_in(&observed.child);
    // This is the positive control as well: the search finds what is there.
    assert_eq!((exposed.len(), whole), (SECRETS, SECRETS), "open: each secret once");
    let (_, whole_keys) = entries.find_in(&observed.child);
    assert_eq!(whole_keys, 1, "open: the key once");
    let keys = keys_in_use(base.path(), &key);
    let (exposed, _) = keys.find_in(&observed.child);
    assert!(exposed.iter().all(|&number| number < 2), "open: the key, and no other round key: {exposed:?}");
    assert_eq!(observed.in_registers(&keys).unwrap_or(0), 0, "open: in registers");
    for name in ["dropped", "found and added", "failed and panicked", "failed in mid-save", "200 cycles"] {
        observed.go_on();
        observed.wait_for(name);
        let (exposed, _) = tokens.find_in(&observed.child);
        assert!(exposed.is_empty(), "{name}: {} secrets are exposed", exposed.len());
        let (exposed, _) = entries.find_in(&observed.child);
        assert!(exposed.is_empty(), "{name}: the key is exposed: {exposed:?}");
        no_key(&observed, &keys_in_use(base.path(), &key), name);
        no_key(&observed, &keys, name);
    }
    observed.go_on();
    observed.wait_for("half signed out");
    let (exposed, whole) = tokens.find_in(&observed.child);
    assert_eq!(
        (exposed.len(), whole),
        (SECRETS / 2, SECRETS / 2),
        "signed out: wiped at once, the others once"
    );
    assert!(entries.find_in(&observed.child).0.is_empty(), "signed out: the first key");
    let (key, entries) = key_of(base.path());
    assert_eq!(entries.find_in(&observed.child).1, 1, "signed out: the last key once");
    observed.go_on();
    observed.wait_for("before it is no cache");
    common::plant(base.path(), no_cache.as_bytes());
    for name in ["no cache", "refused"] {
        observed.go_on();
        observed.wait_for(name);
        assert!(tokens.find_in(&observed.child).0.is_empty(), "{name}");
        assert!(entries.find_in(&observed.child).0.is_empty(), "{name}: the key");
        no_key(&observed, &keys, name);
        no_key(&observed, &keys_in_use(base.path(), &key), name);
    }
    observed.go_on();
    observed.child.wait().unwrap();
}

#[test]
fn no_secret_and_no_key_is_left_in_memory() {
    leaves_nothing(Heap::System);
}

#[test]
fn nothing_is_left_on_a_heap_that_never_reuses_memory() {
    leaves_nothing(Heap::Quarantine);
}

/// The search for keys knows what to look for: the schedule of FIPS 197 appendix A.3.
#[test]
fn round_keys_are_those_of_the_standard() {
    let key: Vec<u8> = "603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4"
        .as_bytes()
        .chunks(2)
        .map(|digits| u8::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap())
        .collect();
    let keys = scan::round_keys(&key.try_into().unwrap());
    let hex = |key: &Vec<u8>| key.iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
    assert_eq!(keys.len(), 15);
    assert_eq!(hex(&keys[2]), "9ba354118e6925afa51a8b5f2067fcde");
    assert_eq!(hex(&keys[14]), "fe4890d1e6188d0b046df344706c631e");
}
