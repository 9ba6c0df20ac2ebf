//! One refresh at a time: what `acquire` promises to the threads of one process.
#![cfg(feature = "file")]

mod common;

use std::error::Error as _;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use common::rotating::{Rotating, expire, kept, never, sign_in_expired, signed_in, wanted};
use common::{Bench, CLIENT, ENVIRONMENT, account};
use tokenseal::{
    AccessTokenQuery, AcquireError, PersistedTokenCache, RefreshTokenQuery, SharedTokenCache, TokenCache,
    TokenResponse,
    refresh::{AcquireRequest, Acquired, RefreshFailure, RefreshGuard, SignInReason, TokenSource},
};

const SHORT: Duration = Duration::from_millis(200);
const LONG: Duration = Duration::from_secs(20);

/// A thread whose refresh has been sent and waits for its answer.
fn refresh_under_way(
    cache: &PersistedTokenCache,
    provider: &Arc<Rotating>,
) -> thread::JoinHandle<Result<Acquired, AcquireError>> {
    provider.hold();
    let (cache, call) = (cache.clone(), provider.call());
    let waiting = thread::spawn(move || cache.acquire(&wanted("read"), call));
    provider.wait_for_calls(1);
    waiting
}

#[test]
fn a_fresh_token_comes_from_the_cache_and_nobody_is_called() {
    let bench = Bench::new();
    let cache = bench.open();
    cache.add(&common::response("alice", "read")).unwrap();
    let acquired = cache.acquire(&wanted("read"), never()).unwrap();
    assert_eq!((acquired.token().expose(), acquired.origin()), ("at-alice-read", TokenSource::Cache));
    assert!(acquired.is_persisted() && acquired.failure().is_none());
    assert_eq!(bench.files(), ["default.lock", "default.sealed"], "no lock was needed");
}

#[test]
fn an_expired_token_is_renewed_and_what_came_is_on_disk() {
    let (bench, provider) = (Bench::new(), Rotating::new());
    let cache = bench.open();
    sign_in_expired(&cache);
    let acquired = cache.acquire(&wanted("read"), provider.call()).unwrap();
    assert_eq!((acquired.token().expose(), acquired.origin()), ("renewed-1", TokenSource::Refreshed));
    assert!(acquired.is_persisted());
    assert_eq!(provider.sent(), ["original"]);
    let reopened = bench.open();
    assert_eq!(kept(&reopened), ["rotated-1"]);
    let again = reopened.acquire(&wanted("read"), never()).unwrap();
    assert_eq!((again.token().expose(), again.origin()), ("renewed-1", TokenSource::Cache));
    let files = bench.files();
    assert_eq!(files.len(), 3, "one lock file was added: {files:?}");
    let lock = files.iter().find(|name| name.ends_with(".refresh.lock")).unwrap();
    assert_eq!(std::fs::metadata(bench.directory().join(lock)).unwrap().len(), 0);
}

#[test]
fn many_threads_and_handles_make_one_call() {
    let (bench, provider) = (Bench::new(), Rotating::new());
    let handles: Vec<_> = (0..4).map(|_| bench.open()).collect();
    sign_in_expired(&handles[0]);
    for round in 1..=10 {
        provider.hold();
        let barrier = Arc::new(std::sync::Barrier::new(33));
        let threads: Vec<_> = (0..32)
            .map(|number| {
                let (cache, call, barrier) =
                    (handles[number % 4].clone(), provider.call(), Arc::clone(&barrier));
                thread::spawn(move || {
                    barrier.wait();
                    cache.acquire(&wanted("read"), call).unwrap().into_token().expose().to_owned()
                })
            })
            .collect();
        barrier.wait();
        provider.wait_for_calls(round);
        provider.let_go();
        for thread in threads {
            assert_eq!(thread.join().unwrap(), format!("renewed-{round}"));
        }
        assert_eq!(provider.calls(), round, "one call each round");
        expire(&handles[round % 4]);
    }
    assert!(!provider.is_revoked());
}

#[test]
fn other_scopes_wait_for_their_turn_and_send_the_rotated_token() {
    let (bench, provider) = (Bench::new(), Rotating::new());
    let cache = bench.open();
    sign_in_expired(&cache);
    provider.hold();
    let threads: Vec<_> = ["read", "write", "share"]
        .map(|scope| {
            let (cache, call) = (cache.clone(), provider.call());
            thread::spawn(move || cache.acquire(&wanted(scope), call).unwrap())
        })
        .into();
    provider.wait_for_calls(1);
    thread::sleep(SHORT);
    assert_eq!(provider.calls(), 1, "one at a time");
    provider.let_go();
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!(provider.sent(), ["original", "rotated-1", "rotated-2"]);
    assert_eq!(kept(&cache), ["rotated-3"]);
}

#[test]
fn a_rejected_token_is_retired_and_the_user_asked_once() {
    let (bench, provider) = (Bench::new(), Rotating::new());
    let cache = bench.open();
    sign_in_expired(&cache);
    provider.next_fails(RefreshFailure::rejected("invalid_grant").sub_error("bad_token"));
    let error = cache.acquire(&wanted("read"), provider.call()).unwrap_err();
    let AcquireError::SignInRequired {
        reason: SignInReason::Rejected { error: code, sub_error, .. }, ..
    } = &error
    else {
        panic!("{error:?}")
    };
    assert_eq!((code.as_str(), sub_error.as_deref()), ("invalid_grant", Some("bad_token")));
    assert_eq!(error.to_string(), "sign in again: the server answered invalid_grant (bad_token)");
    assert!(kept(&bench.open()).is_empty(), "retired on disk");
    assert_eq!(cache.accounts().unwrap().len(), 1, "the account stays, to be signed in to again");
    let error = cache.acquire(&wanted("read"), never()).unwrap_err();
    assert!(error.is_sign_in_required() && !error.is_transient(), "{error:?}");
}

#[test]
fn a_token_that_came_while_another_was_rejected_is_tried_and_kept() {
    let (bench, provider) = (Bench::new(), Rotating::new());
    let cache = bench.open();
    sign_in_expired(&cache);
    provider.next({
        let cache = bench.open();
        move || {
            // Another program signs in while the server says no.
            cache.add(&signed_in("newer", "write", r#","expires_in":0"#)).unwrap();
            expire(&cache);
            let rows = |tokens: &mut TokenCache| {
                let old = tokens.refresh_tokens().find(|token| token.expose() == "original");
                Ok::<_, tokenseal::CacheError>(old.map(|old| tokens.remove_refresh_token(&old)))
            };
            cache.try_update(rows).unwrap();
            Err(RefreshFailure::rejected("invalid_grant"))
        }
    });
    let acquired = cache.acquire(&wanted("read"), provider.call()).unwrap();
    assert_eq!(acquired.token().expose(), "renewed-2");
    assert_eq!(provider.sent(), ["original", "newer"]);
    assert_eq!(kept(&cache), ["rotated-2"]);
}

#[test]
fn an_access_token_that_came_while_the_refresh_token_was_rejected_is_taken() {
    let (bench, provider) = (Bench::new(), Rotating::new());
    let cache = bench.open();
    sign_in_expired(&cache);
    provider.next({
        let cache = bench.open();
        move || {
            cache.add(&signed_in("newer", "read", r#","expires_in":3600"#)).unwrap();
            Err(RefreshFailure::rejected("invalid_grant"))
        }
    });
    let acquired = cache.acquire(&wanted("read"), provider.call()).unwrap();
    assert_eq!((acquired.token().expose(), provider.calls()), ("first-read", 1));
    assert_eq!(kept(&cache), ["newer"], "only the rejected one is retired");
}

#[test]
fn a_sub_error_that_leaves_the_token_alive_keeps_it_and_is_not_asked_for_again() {
    let (bench, provider) = (Bench::new(), Rotating::new());
    let cache = bench.open();
    sign_in_expired(&cache);
    provider.next_fails(RefreshFailure::rejected("invalid_grant").sub_error("consent_required"));
    for _ in 0..3 {
        let error = bench.open().acquire(&wanted("read"), provider.call()).unwrap_err();
        assert!(error.to_string().contains("consent_required"), "{error}");
    }
    assert_eq!(provider.calls(), 1);
    assert_eq!(kept(&cache), ["original"]);
    // Another request is another matter.
    let acquired = cache.acquire(&wanted("write"), provider.call()).unwrap();
    assert_eq!(acquired.token().expose(), "renewed-2");
}

#[test]
fn a_family_token_that_is_refused_to_a_stranger_stays_for_its_family() {
    let (bench, provider) = (Bench::new(), Rotating::new());
    let cache = bench.open();
    let family = signed_in("of the family", "read", r#","expires_in":0,"foci":"1""#);
    cache.add(&family).unwrap();
    // The cache does not know the other client, and tries it in the family.
    let stranger = AccessTokenQuery::for_account("stranger", &account("alice")).scopes(["read"]);
    provider.next_fails(RefreshFailure::rejected("invalid_grant"));
    assert!(cache.acquire(&stranger, provider.call()).unwrap_err().is_sign_in_required());
    assert_eq!(kept(&cache), ["of the family"]);
    // And then its own, which is under another lock.
    cache.add(&signed_in("its own", "read", r#","expires_in":0"#).client_id("stranger")).unwrap();
    cache
        .try_update(|tokens| {
            // As if the cache did not know the client yet.
            let mut json: serde_json::Value =
                serde_json::from_slice(tokens.serialize().json().expose()).unwrap();
            json["AppMetadata"] = serde_json::json!({});
            tokens.deserialize(json.to_string())
        })
        .unwrap();
    provider.next_fails(RefreshFailure::rejected("invalid_grant").sub_error("client_mismatch"));
    let write = AccessTokenQuery::for_account("stranger", &account("alice")).scopes(["write"]);
    assert_eq!(cache.acquire(&write, provider.call()).unwrap().token().client_id(), "stranger");
    assert_eq!(provider.sent()[1..], ["of the family", "its own"]);
}

#[test]
fn two_clients_of_a_family_share_a_turn() {
    let (bench, provider) = (Bench::new(), Rotating::new());
    let cache = bench.open();
    let of =
        |client: &str| signed_in("of the family", "read", r#","expires_in":0,"foci":"1""#).client_id(client);
    cache.add(&of("one")).unwrap();
    cache.add(&of("two")).unwrap();
    provider.hold();
    let threads = ["one", "two"].map(|client| {
        let (cache, call) = (cache.clone(), provider.call());
        let query = AccessTokenQuery::for_account(client, &account("alice")).scopes(["read"]);
        thread::spawn(move || cache.acquire(&query, call).unwrap())
    });
    provider.wait_for_calls(1);
    thread::sleep(SHORT);
    assert_eq!(provider.calls(), 1, "one at a time");
    provider.let_go();
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!(provider.sent(), ["of the family", "rotated-1"]);
    assert!(!provider.is_revoked());
}

#[test]
fn after_a_transient_failure_the_tokens_stay_and_nobody_tries_too_soon() {
    let (bench, provider) = (Bench::new(), Rotating::new());
    let cache = bench.open();
    sign_in_expired(&cache);
    let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
    provider.next_fails(RefreshFailure::transient(refused).retry_after(Duration::from_secs(30)));
    let error = cache.acquire(&wanted("read"), provider.call()).unwrap_err();
    assert!(error.is_transient() && !error.is_sign_in_required());
    let cause = error.source().unwrap().source().unwrap();
    assert_eq!(cause.downcast_ref::<std::io::Error>().unwrap().kind(), std::io::ErrorKind::ConnectionRefused);
    // Nor for other scopes, nor by another handle.
    for (cache, scope) in [(&cache, "read"), (&bench.open(), "write")] {
        let error = cache.acquire(&wanted(scope), never()).unwrap_err();
        let left = error.retry_after().unwrap();
        assert!((Duration::from_secs(20)..=Duration::from_secs(30)).contains(&left), "{left:?}");
    }
    assert_eq!(kept(&cache), ["original"]);
    // A new sign-in is another token: nothing is known of it.
    thread::sleep(Duration::from_millis(1_100));
    cache.add(&signed_in("newer", "read", r#","expires_in":0"#)).unwrap();
    assert_eq!(cache.acquire(&wanted("read"), provider.call()).unwrap().token().expose(), "renewed-2");
    assert!(
        bench.files().iter().all(|name| !name.ends_with(".refresh.note")),
        "all is well, nothing is noted"
    );
}

#[test]
fn back_off_ends_by_itself_and_grows() {
    let (bench, provider) = (Bench::new(), Rotating::new());
    let cache = bench.open();
    sign_in_expired(&cache);
    let started = Instant::now();
    for _ in 0..2 {
        provider.next_fails(RefreshFailure::transient("down"));
    }
    let acquired = loop {
        match cache.acquire(&wanted("read"), provider.call()) {
            Ok(acquired) => break acquired,
            Err(error) => assert!(error.is_transient(), "{error}"),
        }
        thread::sleep(Duration::from_millis(20));
    };
    let took = started.elapsed();
    assert!((Duration::from_secs(3)..Duration::from_secs(8)).contains(&took), "1 and 2 seconds: {took:?}");
    assert_eq!((provider.calls(), acquired.token().expose()), (3, "renewed-3"));
}

#[test]
fn while_the_provider_is_down_a_valid_token_is_served_and_an_extended_one_if_allowed() {
    let (bench, provider) = (Bench::new(), Rotating::new());
    let cache = bench.open();
    let down = || RefreshFailure::transient("down");
    let expired = signed_in("original", "write", r#","expires_in":0,"ext_expires_in":3600"#);
    cache.add(&expired).unwrap();
    // Valid for two minutes more, of an hour: stale by the usual skew.
    let received = std::time::SystemTime::now() - Duration::from_secs(3_480);
    cache.add(&signed_in("original", "read", r#","expires_in":3600"#).received_at(received)).unwrap();
    provider.next_fails(down());
    let acquired = cache.acquire(&wanted("read"), provider.call()).unwrap();
    assert_eq!((acquired.token().expose(), acquired.origin()), ("first-read", TokenSource::StillValid));
    assert!(acquired.failure().unwrap().is_transient());

    let error = cache.acquire(&wanted("write"), provider.call()).unwrap_err();
    assert!(error.is_transient());
    let query = wanted("write");
    let allowing = AcquireRequest::new(&query).allow_extended_lifetime(true);
    let acquired = cache.acquire(allowing, provider.call()).unwrap();
    assert_eq!(
        (acquired.token().expose(), acquired.origin()),
        ("first-write", TokenSource::ExtendedLifetime)
    );
    assert_eq!(provider.calls(), 1, "the back-off holds all the while");
}

#[test]
fn an_early_refresh_is_made_by_one_and_the_others_keep_the_valid_token() {
    let (bench, provider) = (Bench::new(), Rotating::new());
    let cache = bench.open();
    // Due since long ago, whatever the jitter.
    let received = std::time::SystemTime::now() - Duration::from_secs(1_800);
    let due = || signed_in("original", "read", r#","expires_in":3600,"refresh_in":60"#).received_at(received);
    cache.add(&due()).unwrap();
    provider.hold();
    let first = thread::spawn({
        let (cache, call) = (cache.clone(), provider.call());
        move || cache.acquire(&wanted("read"), call).unwrap()
    });
    provider.wait_for_calls(1);
    for cache in [&cache, &bench.open()] {
        let acquired = cache.acquire(&wanted("read"), never()).unwrap();
        assert_eq!((acquired.token().expose(), acquired.origin()), ("first-read", TokenSource::StillValid));
    }
    let first = first.join().unwrap();
    assert_eq!(
        (first.token().expose(), first.origin()),
        ("first-read", TokenSource::StillValid),
        "nobody waits"
    );
    provider.let_go();
    cache.settle(LONG).unwrap();
    assert_eq!(cache.acquire(&wanted("read"), never()).unwrap().token().expose(), "renewed-1");

    // One that fails gives the old one, and is not tried again at once.
    cache.add(&due()).unwrap();
    provider.next_fails(RefreshFailure::transient("down"));
    for attempt in 0..3 {
        let acquired = cache.acquire(&wanted("read"), provider.call()).unwrap();
        assert_eq!((acquired.token().expose(), acquired.origin()), ("first-read", TokenSource::StillValid));
        assert_eq!(acquired.failure().is_some_and(AcquireError::is_transient), attempt > 0);
        cache.settle(LONG).unwrap();
    }
    assert_eq!(provider.calls(), 2);
}

#[test]
fn a_token_is_not_refreshed_early_before_the_server_asks() {
    let bench = Bench::new();
    let cache = bench.open();
    cache.add(&signed_in("original", "read", r#","expires_in":3600,"refresh_in":1800"#)).unwrap();
    assert_eq!(cache.acquire(&wanted("read"), never()).unwrap().origin(), TokenSource::Cache);
}

#[test]
fn short_lived_tokens_are_not_refreshed_at_each_call() {
    let (bench, provider) = (Bench::new(), Rotating::new());
    let cache = bench.open();
    sign_in_expired(&cache);
    provider.set_lifetime(120); // Less than the usual skew of five minutes.
    for _ in 0..5 {
        assert_eq!(cache.acquire(&wanted("read"), provider.call()).unwrap().token().expose(), "renewed-1");
    }
    assert_eq!(provider.calls(), 1);
    let late = wanted("read").at(std::time::SystemTime::now() + Duration::from_secs(61));
    assert_eq!(cache.acquire(&late, provider.call()).unwrap().token().expose(), "renewed-2");
}

#[test]
fn a_token_that_the_service_refused_is_replaced_once() {
    let (bench, provider) = (Bench::new(), Rotating::new());
    let cache = bench.open();
    cache.add(&signed_in("original", "read", r#","expires_in":3600"#)).unwrap();
    let query = wanted("read");
    let refused = cache.acquire(&query, never()).unwrap().into_token();
    for _ in 0..3 {
        let request = AcquireRequest::new(&query).replacing(&refused);
        assert_eq!(cache.acquire(request, provider.call()).unwrap().token().expose(), "renewed-1");
    }
    assert_eq!(provider.calls(), 1, "whoever comes later takes the newer one");
}

#[test]
fn whoever_stops_waiting_does_not_stop_the_call_and_its_save() {
    let (bench, provider) = (Bench::new(), Rotating::new());
    let cache = bench.open();
    sign_in_expired(&cache);
    let leader = refresh_under_way(&cache, &provider);
    let query = wanted("read");
    let error = cache.acquire(AcquireRequest::new(&query).wait_timeout(SHORT), never()).unwrap_err();
    let AcquireError::WaitTimedOut { holder, lock, .. } = &error else { panic!("{error:?}") };
    assert_eq!(*holder, Some(std::process::id()));
    assert!(lock.ends_with(".refresh.lock") && error.to_string().contains(&std::process::id().to_string()));
    provider.let_go();
    // This one waits for the call that is under way and takes what comes of it.
    let acquired = cache.acquire(&query, never()).unwrap();
    assert_eq!((acquired.token().expose(), provider.calls()), ("renewed-1", 1));
    assert_eq!(kept(&bench.open()), ["rotated-1"]);
    assert_eq!(leader.join().unwrap().unwrap().token().expose(), "renewed-1");
}

#[test]
fn a_call_that_hangs_is_an_error_in_time_and_what_it_brings_in_the_end_is_saved() {
    let (bench, provider) = (Bench::new(), Rotating::new());
    let cache = bench.open();
    sign_in_expired(&cache);
    provider.hold();
    let query = wanted("read");
    let started = Instant::now();
    for _ in 0..2 {
        let request = AcquireRequest::new(&query).call_timeout(SHORT);
        let error = cache.acquire(request, provider.call()).unwrap_err();
        assert!(matches!(error, AcquireError::CallTimedOut { waited, .. } if waited == SHORT), "{error:?}");
        assert!(error.is_transient());
    }
    assert!(started.elapsed() < Duration::from_secs(5));
    assert_eq!(provider.calls(), 1, "its token may have been used: nobody sends it again");
    provider.let_go();
    provider.wait_until_idle();
    let acquired = cache.acquire(&query, never()).unwrap();
    assert_eq!(acquired.token().expose(), "renewed-1");
}

#[test]
fn a_call_that_panics_is_an_error_and_the_next_one_works() {
    let (bench, provider) = (Bench::new(), Rotating::new());
    let cache = bench.open();
    sign_in_expired(&cache);
    provider.next(|| panic!("told to"));
    let error = cache.acquire(&wanted("read"), provider.call()).unwrap_err();
    assert!(error.is_transient(), "{error:?}");
    thread::sleep(error.retry_after().unwrap());
    assert_eq!(cache.acquire(&wanted("read"), provider.call()).unwrap().token().expose(), "renewed-2");
}

#[test]
fn an_answer_that_is_none_is_a_failed_call() {
    let (bench, provider) = (Bench::new(), Rotating::new());
    let cache = bench.open();
    sign_in_expired(&cache);
    let json = r#"{"access_token":{"not":"secret-text"},"expires_in":3600}"#;
    provider.next(move || Ok(TokenResponse::from_json(json)?));
    let error = cache.acquire(&wanted("read"), provider.call()).unwrap_err();
    assert!(error.is_transient(), "{error:?}");
    let mut shown = format!("{error} {error:?}");
    let mut cause = error.source();
    while let Some(error) = cause {
        shown = format!("{shown} {error} {error:?}");
        cause = error.source();
    }
    assert!(shown.contains("access_token") && !shown.contains("secret-text"), "{shown}");
    assert_eq!(kept(&cache), ["original"]);
}

#[test]
fn a_save_that_fails_keeps_the_rotated_token_and_is_made_up_for() {
    let (bench, provider) = (Bench::new(), Rotating::new());
    let full = bench.builder().size_limit(2_500).open().unwrap();
    sign_in_expired(&full);
    // Too long for the limit, as a disk may be too full.
    let long = |name: &str| {
        let json = format!(
            r#"{{"access_token":"{name}","refresh_token":"rotated to {name}{}","expires_in":3600}}"#,
            "x".repeat(2_000)
        );
        move || Ok(TokenResponse::from_json(json)?)
    };
    provider.next(long("first"));
    let acquired = full.acquire(&wanted("read"), provider.call()).unwrap();
    assert!(acquired.token().expose().starts_with("first"));
    assert!(!acquired.is_persisted() && acquired.save_failure().unwrap().is_too_large());
    assert_eq!(kept(&full), ["original"], "nothing is on disk");

    // Others of this process get it, marked as well, and it is no second call.
    let again = full.acquire(&wanted("read"), never()).unwrap();
    assert!(again.token().expose().starts_with("first") && !again.is_persisted());
    // What is sent next is the rotated token, though it is in memory only.
    provider.next(long("second"));
    assert!(!full.acquire(&wanted("write"), provider.call()).unwrap().is_persisted());
    let sent = provider.sent();
    assert!(sent.len() == 2 && sent[1].starts_with("rotated to first"), "{sent:?}");
    // A guard would let its holder send the old one.
    let query = RefreshTokenQuery::new(CLIENT, &account("alice"));
    assert!(matches!(full.refresh_guard(&query, SHORT), Err(AcquireError::NotSaved { .. })));

    // There is room again: the next call saves both, whatever it asks for, and waits for neither.
    let roomy = bench.open();
    let started = Instant::now();
    while !roomy.acquire(&wanted("read"), never()).unwrap().is_persisted() {
        assert!(started.elapsed() < Duration::from_secs(10), "it was never saved");
    }
    let kept = kept(&bench.open());
    assert!(kept.len() == 1 && kept[0].starts_with("rotated to second"), "{kept:?}");
    drop(roomy.refresh_guard(&query, SHORT).unwrap());
}

#[test]
fn what_could_not_be_saved_is_saved_without_another_call() {
    let (bench, provider) = (Bench::new(), Rotating::new());
    let cache = bench.builder().lock_timeout(Duration::from_millis(50)).open().unwrap();
    sign_in_expired(&cache);
    let other = bench.open();
    provider.hold();
    let (blocked, is_blocked) = std::sync::mpsc::channel();
    let (release, is_released) = std::sync::mpsc::channel::<()>();
    let other_change = thread::spawn(move || {
        other.try_update(|_| {
            blocked.send(()).unwrap();
            is_released.recv().unwrap();
            Ok::<_, tokenseal::Error>(())
        })
    });
    is_blocked.recv().unwrap();
    provider.let_go();
    // Nobody can write for as long as the other change takes.
    let acquired = cache.acquire(&wanted("read"), provider.call()).unwrap();
    assert!(!acquired.is_persisted() && acquired.save_failure().unwrap().is_lock_timeout());
    release.send(()).unwrap();
    other_change.join().unwrap().unwrap();
    let started = Instant::now();
    while kept(&cache) != ["rotated-1"] {
        assert!(started.elapsed() < Duration::from_secs(10), "it was never saved");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_sign_out_during_the_call_is_final() {
    let (bench, provider) = (Bench::new(), Rotating::new());
    let cache = bench.open();
    sign_in_expired(&cache);
    let waiting = refresh_under_way(&cache, &provider);
    bench.open().remove_account(&account("alice")).unwrap();
    provider.let_go();
    let error = waiting.join().unwrap().unwrap_err();
    assert!(
        matches!(error, AcquireError::SignInRequired { reason: SignInReason::SignedOut, .. }),
        "{error:?}"
    );
    assert!(kept(&cache).is_empty() && cache.accounts().unwrap().is_empty());
    assert!(cache.read(|tokens| tokens.access_tokens().count()).unwrap() == 0);
    assert!(cache.acquire(&wanted("read"), never()).unwrap_err().is_sign_in_required());
}

#[test]
fn a_sign_out_before_a_late_save_is_final_too() {
    let (bench, provider) = (Bench::new(), Rotating::new());
    let full = bench.builder().size_limit(2_500).open().unwrap();
    sign_in_expired(&full);
    let json =
        format!(r#"{{"access_token":"at","refresh_token":"{}","expires_in":3600}}"#, "x".repeat(2_000));
    provider.next(move || Ok(TokenResponse::from_json(json)?));
    assert!(!full.acquire(&wanted("read"), provider.call()).unwrap().is_persisted());
    bench.open().remove_account(&account("alice")).unwrap();
    for cache in [&full, &bench.open()] {
        assert!(cache.acquire(&wanted("read"), never()).unwrap_err().is_sign_in_required());
        assert!(kept(cache).is_empty() && cache.accounts().unwrap().is_empty());
    }
}

#[test]
fn a_newer_sign_in_during_the_call_keeps_its_refresh_token() {
    let (bench, provider) = (Bench::new(), Rotating::new());
    let cache = bench.open();
    sign_in_expired(&cache);
    let waiting = refresh_under_way(&cache, &provider);
    cache.add(&signed_in("newer", "read", r#","expires_in":3600"#)).unwrap();
    provider.let_go();
    waiting.join().unwrap().unwrap();
    assert_eq!(kept(&cache), ["newer"]);
}

#[test]
fn a_guard_keeps_everybody_else_out_until_it_is_dropped_wherever_that_is() {
    fn is_owned<T: Send + 'static>(_: &T) {}
    let (bench, provider) = (Bench::new(), Rotating::new());
    let cache = bench.open();
    sign_in_expired(&cache);
    let query = RefreshTokenQuery::new(CLIENT, &account("alice"));
    let guard: RefreshGuard = cache.refresh_guard(&query, SHORT).unwrap();
    is_owned(&guard);
    assert!(guard.covers_other_processes());
    let wanted = wanted("read");
    let request = AcquireRequest::new(&wanted).wait_timeout(SHORT);
    let error = bench.open().acquire(request, never()).unwrap_err();
    assert!(matches!(error, AcquireError::WaitTimedOut { holder: Some(_), .. }), "{error:?}");
    assert!(matches!(cache.refresh_guard(&query, SHORT), Err(AcquireError::WaitTimedOut { .. })));
    // Load and save by oneself, which takes another lock.
    let sent = cache.find_refresh_tokens(&query).unwrap().remove(0).secret();
    let answer = provider
        .refresh_with(sent.expose())
        .unwrap()
        .client_id(CLIENT)
        .environment(ENVIRONMENT)
        .realm("tenant");
    cache.add(&answer.requested_scopes(["read"]).sent_refresh_token(sent)).unwrap();
    thread::spawn(move || drop(guard)).join().unwrap();
    assert_eq!(cache.acquire(request, never()).unwrap().token().expose(), "renewed-1");
    drop(cache.refresh_guard(&query, SHORT).unwrap());
}

#[test]
fn inside_a_change_of_the_same_cache_it_is_an_error_at_once() {
    let (bench, provider) = (Bench::new(), Rotating::new());
    let cache = bench.open();
    sign_in_expired(&cache);
    let started = Instant::now();
    let inner = cache.update(|_| cache.acquire(&wanted("read"), provider.call()));
    let AcquireError::Cache(error) = inner.unwrap().into_value().unwrap_err() else { panic!() };
    assert!(error.is_nested_change());
    assert!(started.elapsed() < Duration::from_secs(5) && provider.calls() == 0);
}

#[test]
fn without_an_account_or_a_refresh_token_the_error_says_so() {
    let bench = Bench::new();
    let cache = bench.open();
    let error =
        cache.acquire(&AccessTokenQuery::for_application(CLIENT).scopes(["read"]), never()).unwrap_err();
    assert!(matches!(error, AcquireError::NoAccount), "{error:?}");
    let error = cache.acquire(&wanted("read"), never()).unwrap_err();
    let AcquireError::SignInRequired { reason: SignInReason::NoRefreshToken, .. } = error else {
        panic!("{error}")
    };
}

#[test]
fn what_was_granted_instead_is_told() {
    let (bench, provider) = (Bench::new(), Rotating::new());
    let cache = bench.open();
    sign_in_expired(&cache);
    let json = r#"{"access_token":"at","refresh_token":"rt","expires_in":3600,"scope":"less"}"#;
    provider.next(move || Ok(TokenResponse::from_json(json)?));
    let error = cache.acquire(&wanted("read"), provider.call()).unwrap_err();
    assert!(matches!(&error, AcquireError::NotGranted { granted, .. } if granted == "less"), "{error:?}");
    assert_eq!(kept(&cache), ["rt"], "what came is saved all the same");
    assert_eq!(cache.acquire(&wanted("less"), never()).unwrap().token().expose(), "at");
}

#[test]
fn tokens_are_kept_under_the_environment_and_realm_that_were_asked_for() {
    let (bench, provider) = (Bench::new(), Rotating::new());
    let cache = bench.open();
    sign_in_expired(&cache);
    // The endpoint's host is an alias, or names no port, and its path says `common`.
    provider.next(|| {
        let answer =
            TokenResponse::from_json(r#"{"access_token":"at","refresh_token":"rt","expires_in":3600}"#)?;
        Ok(answer.token_endpoint("https://other.example/common/token"))
    });
    let query = wanted("read").realm("tenant");
    let token = cache.acquire(&query, provider.call()).unwrap().into_token();
    assert_eq!((token.environment(), token.realm()), (ENVIRONMENT, Some("tenant")));
    assert_eq!(cache.acquire(&query, never()).unwrap().token().expose(), "at");
}

#[test]
fn a_cache_in_memory_has_one_refresh_at_a_time_as_well() {
    let provider = Rotating::new();
    let cache = SharedTokenCache::new(TokenCache::new());
    cache.try_update(|tokens| tokens.add(&signed_in("original", "read", r#","expires_in":0"#))).unwrap();
    provider.hold();
    let threads: Vec<_> = (0..16)
        .map(|_| {
            let (cache, call) = (cache.clone(), provider.call());
            thread::spawn(move || cache.acquire(&wanted("read"), call).unwrap())
        })
        .collect();
    provider.wait_for_calls(1);
    provider.let_go();
    for thread in threads {
        let acquired = thread.join().unwrap();
        assert_eq!(acquired.token().expose(), "renewed-1");
    }
    assert_eq!(provider.calls(), 1);
    let query = RefreshTokenQuery::new(CLIENT, &account("alice"));
    let guard = cache.refresh_guard(&query, SHORT).unwrap();
    assert!(!guard.covers_other_processes());
    let (wanted, refused) = (wanted("read"), cache.acquire(&wanted("read"), never()).unwrap().into_token());
    let request = AcquireRequest::new(&wanted).replacing(&refused).wait_timeout(SHORT);
    assert!(matches!(cache.acquire(request, never()), Err(AcquireError::WaitTimedOut { .. })));
    drop(guard);
    provider.next_fails(RefreshFailure::transient("down"));
    let request = AcquireRequest::new(&wanted).replacing(&refused);
    for _ in 0..3 {
        assert!(cache.acquire(request, provider.call()).unwrap_err().is_transient());
    }
    assert_eq!(provider.calls(), 2, "the back-off is remembered");
}

#[cfg(unix)]
#[test]
fn two_paths_to_one_cache_share_the_lock() {
    let (bench, provider) = (Bench::new(), Rotating::new());
    let cache = bench.open();
    sign_in_expired(&cache);
    let link = bench.base.path().join("link");
    std::os::unix::fs::symlink(bench.directory(), &link).unwrap();
    let query = RefreshTokenQuery::new(CLIENT, &account("alice"));
    let linked = bench.builder().directory(link).open().unwrap();
    let guard = linked.refresh_guard(&query, SHORT).unwrap();
    assert!(matches!(cache.refresh_guard(&query, SHORT), Err(AcquireError::WaitTimedOut { .. })));
    drop(guard);
    assert_eq!(cache.acquire(&wanted("read"), provider.call()).unwrap().token().expose(), "renewed-1");
}

#[test]
fn nothing_that_is_shown_or_left_beside_the_cache_has_a_token_in_it() {
    let (bench, provider) = (Bench::new(), Rotating::new());
    let cache = bench.open();
    sign_in_expired(&cache);
    provider.next_fails(RefreshFailure::transient("original").retry_after(Duration::from_secs(1)));
    let error = cache.acquire(&wanted("read"), provider.call()).unwrap_err();
    assert!(!format!("{error} {error:?}").contains("original"));
    let note = bench.files().into_iter().find(|name| name.ends_with(".refresh.note")).unwrap();
    let note = std::fs::read_to_string(bench.directory().join(note)).unwrap();
    for secret in ["original", "alice", "read", "first"] {
        assert!(!note.contains(secret), "{note}");
    }
    thread::sleep(Duration::from_millis(1_100));
    let acquired = cache.acquire(&wanted("read"), provider.call()).unwrap();
    assert!(!format!("{acquired:?}").contains("renewed-2"), "{acquired:?}");

    // Every other type of this part of the crate, with a token in it.
    let query = wanted("read");
    let request = AcquireRequest::new(&query).replacing(acquired.token());
    let guard = cache.refresh_guard(&RefreshTokenQuery::new(CLIENT, &account("alice")), SHORT).unwrap();
    let mut tokens = TokenCache::new();
    tokens.add(&signed_in("original", "read", "")).unwrap();
    let shared = SharedTokenCache::new(tokens);
    let failures = [
        RefreshFailure::transient("original"),
        RefreshFailure::rejected("original renewed-2"),
        RefreshFailure::rejected("invalid_grant").sub_error("first read of original"),
        RefreshFailure::refused("renewed-2\noriginal"),
        RefreshFailure::from_error_response(400, r#"{"error":"original renewed-2","suberror":"first read"}"#),
    ];
    let shown = format!("{request:?} {guard:?} {shared:?} {failures:?} {:?}", acquired.origin());
    for secret in ["original", "renewed-2", "first-read", "rotated-2"] {
        assert!(!shown.contains(secret), "{shown}");
    }
    drop(guard);
    for failure in failures {
        // Within a second a sign-in is not told from the one before, whose refusal is remembered.
        thread::sleep(Duration::from_millis(1_100));
        cache.add(&signed_in("original", "read", r#","expires_in":0"#)).unwrap();
        provider.next_fails(failure);
        let calls = provider.calls();
        let error = cache.acquire(AcquireRequest::new(&query).replacing(acquired.token()), provider.call());
        let error = error.unwrap_err();
        assert_eq!(provider.calls(), calls + 1, "the server was asked: {error:?}");
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains("original") && !shown.contains("renewed-2"), "{shown}");
        thread::sleep(error.retry_after().unwrap_or_default());
    }
}
