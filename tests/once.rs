//! Id tokens that are asked for, and what is done once under a name.
#![cfg(feature = "file")]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64ct::Encoding as _;
use common::{Bench, CLIENT, ENVIRONMENT, account};
use tokenseal::refresh::{OnceRequest, RefreshCall, RefreshFailure, TokenSource};
use tokenseal::{
    AccessTokenQuery, Account, AcquireError, PersistedTokenCache, SharedTokenCache, TokenCache, TokenResponse,
};

const SHORT: Duration = Duration::from_millis(300);

fn id_token(user: &str, lives: i64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let end = i64::try_from(now).unwrap() + lives;
    let claims = format!(
        r#"{{"iss":"https://{ENVIRONMENT}","sub":"{user}","iat":{},"exp":{end}}}"#,
        end - lives.max(3_600)
    );
    format!("e30.{}.sig", base64ct::Base64UrlUnpadded::encode_string(claims.as_bytes()))
}

fn sign_in(user: &str, refresh_token: &str, id_token: &str) -> TokenResponse {
    let json = format!(
        r#"{{"access_token":"at-{user}","refresh_token":"{refresh_token}","id_token":"{id_token}",
        "expires_in":3600,"scope":"openid read"}}"#
    );
    let response = TokenResponse::from_json(json).unwrap().client_id(CLIENT).environment(ENVIRONMENT);
    response.realm("tenant").home_account_id(user)
}

fn wanted(user: &str) -> AccessTokenQuery {
    AccessTokenQuery::for_account(CLIENT, &account(user)).realm("tenant").scopes(["openid"])
}

/// Answers with an id token that lives this long, and counts.
fn provider(
    lives: i64,
) -> (
    Arc<AtomicUsize>,
    impl FnMut(RefreshCall) -> Result<TokenResponse, RefreshFailure> + Send + Clone + 'static,
) {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    (calls, move |call: RefreshCall| {
        let number = counted.fetch_add(1, Ordering::SeqCst) + 1;
        assert!(call.form().expose().contains("scope=openid"));
        let json = format!(
            r#"{{"access_token":"at-{number}","refresh_token":"rt-{number}","id_token":"{}","expires_in":3600}}"#,
            id_token("alice", lives + i64::try_from(number).unwrap())
        );
        call.answer(200, None, None, json)
    })
}

fn never(_: RefreshCall) -> Result<TokenResponse, RefreshFailure> {
    panic!("no call was to be made")
}

#[test]
fn an_id_token_is_served_while_it_is_fresh_and_refreshed_when_it_is_not() {
    let bench = Bench::new();
    let cache = bench.open();
    let fresh = id_token("alice", 3_600);
    cache.add(&sign_in("alice", "rt", &fresh)).unwrap();
    let acquired = cache.acquire_id_token(&wanted("alice"), never).unwrap();
    assert_eq!((acquired.token().expose(), acquired.origin()), (&*fresh, TokenSource::Cache));
    assert!(acquired.token().expires_on().unwrap() > SystemTime::now());

    // Its access token is still good; what is asked for is not.
    cache.add(&sign_in("alice", "rt", &id_token("alice", -10))).unwrap();
    let (calls, refresh) = provider(3_600);
    let acquired = cache.acquire_id_token(&wanted("alice"), refresh.clone()).unwrap();
    assert_eq!((acquired.origin(), calls.load(Ordering::SeqCst)), (TokenSource::Refreshed, 1));
    assert!(acquired.token().expires_on().unwrap() > SystemTime::now());
    let kept = bench.open().find_id_token(CLIENT, &account("alice"), Some("tenant")).unwrap().unwrap();
    assert_eq!(kept.expose(), acquired.token().expose(), "on disk before it is returned");
    let again = cache.acquire_id_token(&wanted("alice"), never).unwrap();
    assert_eq!(again.token().expose(), acquired.token().expose());
}

#[test]
fn an_answer_without_an_id_token_is_remembered_and_the_old_one_served_while_it_is_valid() {
    let bench = Bench::new();
    let cache = bench.open();
    // Valid for less than the skew, and for less than half of its life.
    let nearly_over = id_token("alice", 60);
    cache.add(&sign_in("alice", "rt", &nearly_over)).unwrap();
    let calls = Arc::new(AtomicUsize::new(0));
    for _ in 0..20 {
        let calls = Arc::clone(&calls);
        let acquired = cache.acquire_id_token(&wanted("alice"), move |call| {
            calls.fetch_add(1, Ordering::SeqCst);
            let _ = call.form();
            call.answer(200, None, None, r#"{"access_token":"new","expires_in":3600}"#)
        });
        let acquired = acquired.unwrap();
        assert_eq!((acquired.token().expose(), acquired.origin()), (&*nearly_over, TokenSource::StillValid));
        assert!(matches!(acquired.failure(), Some(AcquireError::NoIdToken)), "{:?}", acquired.failure());
    }
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

#[test]
fn an_id_token_of_another_user_or_realm_is_never_served() {
    let bench = Bench::new();
    let cache = bench.open();
    cache.add(&sign_in("alice", "rt-a", &id_token("alice", 3_600))).unwrap();
    cache.add(&sign_in("bob", "rt-b", &id_token("bob", 3_600))).unwrap();
    let bobs = cache.acquire_id_token(&wanted("bob"), never).unwrap();
    assert_eq!(bobs.token().home_account_id(), Some("bob"));
    let elsewhere = wanted("alice").realm("another");
    let refused = |_: RefreshCall| Err(RefreshFailure::refused("invalid_scope"));
    assert!(matches!(cache.acquire_id_token(&elsewhere, refused), Err(AcquireError::Refused { .. })));
    // Of two realms it must be said which.
    cache.add(&sign_in("alice", "rt-a", &id_token("alice", 3_600)).realm("another")).unwrap();
    let unnamed = AccessTokenQuery::for_account(CLIENT, &account("alice")).scopes(["openid"]);
    let error = cache.acquire_id_token(&unnamed, never).unwrap_err();
    assert!(matches!(error, AcquireError::Ambiguous { .. }), "{error:?}");
    assert!(cache.acquire_id_token(&unnamed.any_realm(), never).is_ok());
    let application = AccessTokenQuery::for_application(CLIENT).scopes(["openid"]);
    assert!(matches!(cache.acquire_id_token(&application, never), Err(AcquireError::NoAccount)));
}

#[test]
fn an_id_token_and_an_access_token_of_one_request_are_two_requests() {
    let cache = SharedTokenCache::new(TokenCache::new());
    cache.add(&sign_in("alice", "rt", &id_token("alice", -10))).unwrap();
    let (calls, refresh) = provider(3_600);
    let access = cache.acquire(&wanted("alice"), never).unwrap();
    assert_eq!(access.token().expose(), "at-alice");
    let threads: Vec<_> = (0..50)
        .map(|_| {
            let (cache, refresh) = (cache.clone(), refresh.clone());
            thread::spawn(move || cache.acquire_id_token(&wanted("alice"), refresh).unwrap())
        })
        .collect();
    for thread in threads {
        assert!(thread.join().unwrap().token().expires_on().unwrap() > SystemTime::now());
    }
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

fn first_account(tokens: &TokenCache) -> Option<Account> {
    tokens.accounts().into_iter().next()
}

#[test]
fn threads_share_one_run_and_its_failure() {
    let bench = Bench::new();
    let cache = bench.open();
    let runs = Arc::new(AtomicUsize::new(0));
    let start = Arc::new(Barrier::new(30));
    let run = |fails: bool| {
        let threads: Vec<_> = (0..30)
            .map(|_| {
                let (cache, runs, start) = (cache.clone(), Arc::clone(&runs), Arc::clone(&start));
                thread::spawn(move || {
                    start.wait();
                    cache.run_once("sign-in", first_account, move || {
                        runs.fetch_add(1, Ordering::SeqCst);
                        thread::sleep(Duration::from_millis(50));
                        if fails {
                            return Err(RefreshFailure::transient("the browser was closed"));
                        }
                        Ok(Some(sign_in("alice", "rt", &id_token("alice", 3_600))))
                    })
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    };
    for result in run(true) {
        assert!(result.unwrap_err().is_transient());
    }
    assert_eq!(runs.load(Ordering::SeqCst), 1, "a failure holds everybody up for a while");
    let wait = cache.run_once("sign-in", first_account, || panic!("it is not run now")).unwrap_err();
    thread::sleep(wait.retry_after().unwrap());
    for result in run(false) {
        assert_eq!(result.unwrap().home_account_id(), "alice");
    }
    assert_eq!(runs.load(Ordering::SeqCst), 2);
    assert_eq!(bench.open().accounts().unwrap().len(), 1, "on disk before it is returned");
    // Another name is another thing.
    let other = cache.run_once("registration", |_| None::<()>, || Ok(None)).unwrap_err();
    assert!(matches!(other, AcquireError::NotDone), "{other:?}");
}

#[test]
fn what_is_done_need_not_be_in_the_cache() {
    let bench = Bench::new();
    let cache = bench.open();
    let registered = bench.base.path().join("client_id");
    let found = registered.clone();
    let look = move |_: &TokenCache| std::fs::read_to_string(&found).ok();
    for _ in 0..3 {
        let place = registered.clone();
        let id = cache.run_once("registration", look.clone(), move || {
            assert!(!place.exists(), "it is done once");
            std::fs::write(&place, "client-1").map_err(RefreshFailure::transient)?;
            Ok(None)
        });
        assert_eq!(id.unwrap(), "client-1");
    }
}

#[test]
fn a_refusal_is_remembered_try_now_passes_it_and_a_panic_is_a_failure() {
    let cache = SharedTokenCache::new(TokenCache::new());
    let refused = || Err(RefreshFailure::refused("access_denied"));
    let error = cache.run_once("sign-in", first_account, refused).unwrap_err();
    assert!(matches!(error, AcquireError::Refused { .. } | AcquireError::SignInRequired { .. }), "{error:?}");
    let again = cache.run_once("sign-in", first_account, || panic!("it was refused")).unwrap_err();
    assert_eq!(again.to_string(), error.to_string());
    let request = OnceRequest::new("sign-in").try_now();
    let account =
        cache.run_once(request, first_account, || Ok(Some(sign_in("bob", "rt", &id_token("bob", 60)))));
    assert_eq!(account.unwrap().home_account_id(), "bob");
    let panicked = cache.run_once("panic", |_| None::<()>, || panic!("in the middle")).unwrap_err();
    assert!(panicked.is_transient(), "{panicked:?}");
}

#[test]
fn whoever_waits_in_vain_gets_an_error_and_the_run_goes_on() {
    let bench = Bench::new();
    let cache = bench.open();
    let request = OnceRequest::new("sign-in").call_timeout(SHORT);
    let started = Instant::now();
    let slow = cache.run_once(request, first_account, || {
        thread::sleep(SHORT * 4);
        Ok(Some(sign_in("alice", "rt", &id_token("alice", 3_600))))
    });
    assert!(matches!(slow, Err(AcquireError::CallTimedOut { .. })), "{slow:?}");
    assert!(started.elapsed() < SHORT * 4);
    let short = OnceRequest::new("sign-in").wait_timeout(Duration::from_millis(50));
    let waited = cache.run_once(short, first_account, || panic!("somebody runs it")).unwrap_err();
    assert!(waited.is_transient(), "{waited:?}");
    cache.settle(Duration::from_secs(20)).unwrap();
    assert_eq!(bench.open().accounts().unwrap().len(), 1);
}

/// Not a test by itself: one process of the storm below.
#[test]
fn as_one_process_of_many() {
    let Some(base) = std::env::var_os("TOKENSEAL_ONCE_BASE").map(PathBuf::from) else { return };
    let cache = open(&base);
    let hangs = std::env::var_os("TOKENSEAL_ONCE_HANGS").is_some();
    let account = cache.run_once("sign-in", first_account, move || {
        let log = std::fs::OpenOptions::new().append(true).create(true).open(base.join("runs"));
        std::io::Write::write_all(&mut log.unwrap(), b"run\n").unwrap();
        if hangs {
            thread::sleep(Duration::from_secs(3_600));
        }
        thread::sleep(Duration::from_millis(100));
        Ok(Some(sign_in("alice", "rt", &id_token("alice", 3_600))))
    });
    println!("signed in: {}", account.unwrap().home_account_id());
}

fn open(base: &Path) -> PersistedTokenCache {
    common::with_key_file(base).open().unwrap()
}

fn process(base: &Path, hangs: bool) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "as_one_process_of_many", "--nocapture"]);
    command.env("TOKENSEAL_ONCE_BASE", base).stdout(Stdio::piped()).stderr(Stdio::piped());
    if hangs {
        command.env("TOKENSEAL_ONCE_HANGS", "1");
    }
    command
}

#[test]
fn sixteen_processes_sign_in_once_and_one_that_is_killed_keeps_nobody_waiting() {
    let base = tempfile::tempdir().unwrap();
    drop(open(base.path()));
    let mut killed = process(base.path(), true).spawn().unwrap();
    let started = Instant::now();
    while !base.path().join("runs").exists() {
        assert!(started.elapsed() < Duration::from_secs(20), "it never began");
        thread::sleep(Duration::from_millis(5));
    }
    let waiting: Vec<_> = (0..16).map(|_| process(base.path(), false).spawn().unwrap()).collect();
    thread::sleep(SHORT);
    killed.kill().unwrap();
    killed.wait().unwrap();
    for child in waiting {
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(said.contains("signed in: alice"), "{said}");
    }
    assert_eq!(std::fs::read_to_string(base.path().join("runs")).unwrap(), "run\nrun\n");
}

#[cfg(feature = "tokio")]
#[tokio::test]
async fn tasks_share_one_run_and_one_refresh() {
    let bench = Bench::new();
    let cache = bench.open();
    let runs = Arc::new(AtomicUsize::new(0));
    let tasks: Vec<_> = (0..200)
        .map(|_| {
            let (cache, runs) = (cache.clone(), Arc::clone(&runs));
            tokio::spawn(async move {
                let work = move || {
                    let runs = Arc::clone(&runs);
                    async move {
                        runs.fetch_add(1, Ordering::SeqCst);
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        Ok(Some(sign_in("alice", "rt", &id_token("alice", -10))))
                    }
                };
                cache.run_once_async("sign-in", first_account, work).await.unwrap()
            })
        })
        .collect();
    for task in tasks {
        assert_eq!(task.await.unwrap().home_account_id(), "alice");
    }
    assert_eq!(runs.load(Ordering::SeqCst), 1);

    let (calls, refresh) = provider(3_600);
    let tasks: Vec<_> = (0..200)
        .map(|_| {
            let (cache, mut refresh) = (cache.clone(), refresh.clone());
            tokio::spawn(async move {
                let call = move |call| std::future::ready(refresh(call));
                cache.acquire_id_token_async(&wanted("alice"), call).await.unwrap()
            })
        })
        .collect();
    for task in tasks {
        assert!(task.await.unwrap().token().expires_on().unwrap() > SystemTime::now());
    }
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}
