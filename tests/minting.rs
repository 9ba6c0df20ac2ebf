//! Tokens that need no refresh token: one call among all, with the deadlines, the back-off and the memory of a
//! refresh.
#![cfg(feature = "file")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use base64ct::Encoding as _;
use common::rotating::expire;
use common::{Bench, CLIENT, ENVIRONMENT, account, wanted};
use tokenseal::{
    AccessTokenQuery, AcquireError, SharedTokenCache, TokenCache, TokenResponse,
    refresh::{AcquireRequest, MintCall, RefreshFailure, TokenSource},
};

fn app() -> AccessTokenQuery {
    AccessTokenQuery::for_application(CLIENT).environment(ENVIRONMENT).realm("tenant").scopes(["read"])
}

/// A source of tokens that counts.
#[derive(Default)]
struct Mint(AtomicUsize);

impl Mint {
    fn calls(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }

    fn call(
        self: &Arc<Self>,
        answer: fn(&MintCall, usize) -> Result<TokenResponse, RefreshFailure>,
    ) -> impl FnMut(MintCall) -> Result<TokenResponse, RefreshFailure> + Send + use<> + 'static {
        let this = Arc::clone(self);
        move |call| {
            let number = this.0.fetch_add(1, Ordering::SeqCst) + 1;
            std::thread::sleep(Duration::from_millis(20));
            answer(&call, number)
        }
    }
}

fn token(call: &MintCall, number: usize) -> Result<TokenResponse, RefreshFailure> {
    call.answer(200, None, None, format!(r#"{{"access_token":"minted-{number}","expires_in":3600}}"#))
}

#[test]
fn an_application_s_token_is_got_once_and_kept_where_a_query_finds_it() {
    let (bench, mint) = (Bench::new(), Arc::<Mint>::default());
    let cache = bench.open();
    let handles: Vec<_> = (0..20)
        .map(|number| {
            let (cache, call) =
                (if number % 2 == 0 { cache.clone() } else { bench.open() }, mint.call(token));
            std::thread::spawn(move || cache.acquire_for_application(&app(), call).unwrap())
        })
        .collect();
    for handle in handles {
        assert_eq!(handle.join().unwrap().token().expose(), "minted-1");
    }
    assert_eq!(mint.calls(), 1);
    let found = bench.open().find_access_token(&app()).unwrap().unwrap();
    assert_eq!(found.expose(), "minted-1");
    assert_eq!(found.scopes().collect::<Vec<_>>(), ["read"]);
    assert_eq!(found.home_account_id(), None);
    assert!(cache.accounts().unwrap().is_empty());
    // Another resource is another token.
    let other = cache.acquire_for_application(&app().scopes(["write"]), mint.call(token)).unwrap();
    assert_eq!((other.token().expose(), other.origin()), ("minted-2", TokenSource::Refreshed));
    let again = cache.acquire_for_application(&app(), mint.call(token)).unwrap();
    assert_eq!((again.token().expose(), again.origin(), mint.calls()), ("minted-1", TokenSource::Cache, 2));
    expire(&cache);
    let renewed = cache.acquire_for_application(&app(), mint.call(token)).unwrap();
    assert_eq!((renewed.token().expose(), mint.calls()), ("minted-3", 3));
    let query = app();
    let replaced = AcquireRequest::new(&query).replacing(renewed.token());
    assert_eq!(
        cache.acquire_for_application(replaced, mint.call(token)).unwrap().token().expose(),
        "minted-4"
    );
}

#[test]
fn failures_and_refusals_are_remembered_for_all_and_hold_up_no_other_request() {
    let (bench, mint) = (Bench::new(), Arc::<Mint>::default());
    for _ in 0..50 {
        let error = bench
            .open()
            .acquire_for_application(&app(), mint.call(|call, _| call.answer(503, None, Some("7"), "")))
            .unwrap_err();
        assert!(error.is_transient(), "{error:?}");
    }
    assert_eq!(mint.calls(), 1);
    let refuse = |call: &MintCall, _: usize| call.answer(400, None, None, r#"{"error":"invalid_scope"}"#);
    let other = app().scopes(["write"]);
    for _ in 0..50 {
        let error = bench.open().acquire_for_application(&other, mint.call(refuse)).unwrap_err();
        assert!(matches!(error, AcquireError::Refused { .. }), "{error:?}");
    }
    assert_eq!(mint.calls(), 2);
    let at_once = AcquireRequest::new(&other).try_now();
    assert_eq!(
        bench.open().acquire_for_application(at_once, mint.call(token)).unwrap().token().expose(),
        "minted-3"
    );
}

#[test]
fn what_a_request_must_name_is_an_error_at_once() {
    let bench = Bench::new();
    let cache = bench.open();
    let never = |_: MintCall| -> Result<TokenResponse, RefreshFailure> { std::process::abort() };
    let error = cache.acquire_for_application(&AccessTokenQuery::for_application(CLIENT), never).unwrap_err();
    assert!(matches!(error, AcquireError::NoEnvironment), "{error:?}");
    let error = cache.acquire_for_application(&wanted("alice", "read"), never).unwrap_err();
    assert!(matches!(error, AcquireError::NamesAccount), "{error:?}");
}

#[test]
fn a_user_s_token_that_another_program_keeps_is_that_user_s() {
    let (bench, mint) = (Bench::new(), Arc::<Mint>::default());
    let cache = bench.open();
    let acquired = cache.acquire_with(&wanted("alice", "read"), mint.call(token)).unwrap();
    assert_eq!(acquired.token().home_account_id(), Some("alice"));
    assert!(cache.find_access_token(&wanted("bob", "read")).unwrap().is_none());
    assert!(
        cache.find_access_token(&app().scopes(["read"])).unwrap().is_none(),
        "it is not the application's"
    );
    assert_eq!(
        cache.acquire_with(&wanted("alice", "read"), mint.call(token)).unwrap().origin(),
        TokenSource::Cache
    );
}

/// As far as the provider made the ids, they are compared.
#[test]
fn an_answer_about_another_user_is_neither_stored_nor_asked_for_again() {
    let (bench, mint) = (Bench::new(), Arc::<Mint>::default());
    let cache = bench.open();
    let alice = "00000000-0000-0000-0000-00000000000a.10000000-0000-0000-0000-000000000001";
    let about_bob = |call: &MintCall, _: usize| {
        let uid = "00000000-0000-0000-0000-00000000000b";
        let client_info = format!(r#"{{"uid":"{uid}","utid":"10000000-0000-0000-0000-000000000001"}}"#);
        let client_info = base64ct::Base64UrlUnpadded::encode_string(client_info.as_bytes());
        let body = format!(r#"{{"access_token":"bobs","expires_in":3600,"client_info":"{client_info}"}}"#);
        call.answer(200, None, None, body)
    };
    for _ in 0..5 {
        let error = cache.acquire_with(&wanted(alice, "read"), mint.call(about_bob)).unwrap_err();
        assert!(error.is_sign_in_required(), "{error:?}");
    }
    assert_eq!(mint.calls(), 1);
    assert_eq!(cache.read(|tokens| tokens.access_tokens().count()).unwrap(), 0);
}

#[test]
fn a_sign_out_during_the_call_is_final() {
    let bench = Bench::new();
    let cache = bench.open();
    cache.add(&common::response("alice", "write")).unwrap();
    let signed_out = {
        let cache = cache.clone();
        move |call: MintCall| {
            cache.remove_account(&account("alice")).unwrap();
            token(&call, 1)
        }
    };
    let error = cache.acquire_with(&wanted("alice", "read"), signed_out).unwrap_err();
    assert!(error.is_sign_in_required(), "{error:?}");
    assert_eq!(cache.read(|tokens| tokens.access_tokens().count()).unwrap(), 0);
}

#[test]
fn a_cache_in_memory_does_the_same() {
    let mint = Arc::<Mint>::default();
    let cache = SharedTokenCache::new(TokenCache::new());
    for _ in 0..3 {
        let acquired = cache.acquire_for_application(&app(), mint.call(token)).unwrap();
        assert_eq!(acquired.token().expose(), "minted-1");
    }
    assert_eq!(mint.calls(), 1);
}

#[cfg(feature = "tokio")]
#[tokio::test]
async fn tasks_do_the_same() {
    let (bench, mint) = (Bench::new(), Arc::<Mint>::default());
    let cache = bench.open();
    let tasks: Vec<_> = (0..200)
        .map(|_| {
            let (cache, mint) = (cache.clone(), Arc::clone(&mint));
            tokio::spawn(async move {
                let call = move |call: MintCall| {
                    let number = mint.0.fetch_add(1, Ordering::SeqCst) + 1;
                    async move {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        token(&call, number)
                    }
                };
                cache.acquire_for_application_async(&app(), call).await.unwrap()
            })
        })
        .collect();
    for task in tasks {
        assert_eq!(task.await.unwrap().token().expose(), "minted-1");
    }
    assert_eq!(mint.calls(), 1);
}
