//! What the answers of token endpoints mean: which are served, which are remembered, and for how long.
#![cfg(feature = "file")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use common::rotating::{kept, never, sign_in_expired, signed_in, wanted};
use common::{Bench, CLIENT, account};
use tokenseal::{
    AccessTokenQuery, AcquireError, PersistedTokenCache, TokenResponse,
    refresh::{AcquireRequest, RefreshCall, RefreshFailure, TokenSource},
};

const LONG: Duration = Duration::from_secs(20);

/// A token endpoint that answers everything alike; `N` in its body is the number of the request.
#[derive(Clone)]
struct Endpoint {
    status: u16,
    body: String,
    calls: Arc<AtomicUsize>,
}

impl Endpoint {
    fn new(status: u16, body: &str) -> Self {
        Self { status, body: body.into(), calls: Arc::default() }
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    fn call(&self) -> impl FnMut(RefreshCall) -> Result<TokenResponse, RefreshFailure> + Send + 'static {
        let endpoint = self.clone();
        move |call| {
            let number = endpoint.calls.fetch_add(1, Ordering::SeqCst) + 1;
            let _sent = call.form();
            call.answer(endpoint.status, None, None, endpoint.body.replace('N', &number.to_string()))
        }
    }
}

/// Signs alice in with a token for `read` that lives for so many seconds more, of an hour.
fn sign_in_with(cache: &PersistedTokenCache, left: u64, further: &str) {
    let received = SystemTime::now() - Duration::from_secs(3_600 - left);
    let response = signed_in("original", "read", &format!(r#","expires_in":3600{further}"#));
    cache.add(&response.received_at(received)).unwrap();
}

/// Two hundred callers, through two handles, of one request: what each got.
fn two_hundred(bench: &Bench, endpoint: &Endpoint, request: AcquireRequest<'_>) -> Vec<Option<TokenSource>> {
    let handles = [bench.open(), bench.open()];
    (0..200)
        .map(|number| {
            let cache = &handles[number % 2];
            let acquired = cache.acquire(request, endpoint.call());
            cache.settle(LONG).unwrap();
            acquired.ok().map(|acquired| {
                assert_eq!(acquired.token().expose(), "first-read", "{number}: {}", endpoint.body);
                // A handle that has to read the file again first finds it fresh, if it is.
                let is_marked = acquired.origin() == TokenSource::StillValid && acquired.failure().is_some();
                assert!(is_marked || number < 2, "{number}: {acquired:?}");
                acquired.origin()
            })
        })
        .collect()
}

/// F1: what brings nothing for the request is not asked for again at each call.
#[test]
fn an_answer_that_brings_no_token_for_the_request_is_asked_for_once() {
    let early = r#","refresh_in":60"#;
    for (left, further, body) in [
        (1_800, early, r#"{"error":"bad_refresh_token"}"#),
        (1_800, early, r#"{"access_token":"at-N","expires_in":3600,"scope":"less","refresh_token":"rt-N"}"#),
        (240, "", r#"{"error":"bad_refresh_token"}"#),
        (240, "", "{}"),
        (240, "", r#"{"refresh_token":"rt-N"}"#),
        (240, "", r#"{"access_token":"at-N","expires_in":3600,"scope":"less","refresh_token":"rt-N"}"#),
        (240, "", r#"{"access_token":"at-N","expires_in":0,"refresh_token":"rt-N"}"#),
    ] {
        let (bench, endpoint) = (Bench::new(), Endpoint::new(200, body));
        sign_in_with(&bench.open(), left, further);
        let query = wanted("read");
        let got = two_hundred(&bench, &endpoint, AcquireRequest::new(&query));
        // An outage is tried again after its back-off, a second at first.
        let most = if body == "{}" { 3 } else { 1 };
        assert!((1..=most).contains(&endpoint.calls()), "{body} with {left} s: {}", endpoint.calls());
        assert!(got.iter().all(Option::is_some), "the valid token is served: {body}");
        if body.contains("rt-N") {
            let newest = format!("rt-{}", endpoint.calls());
            assert_eq!(kept(&bench.open()), [newest.as_str()], "the rotated token is saved: {body}");
        }
    }
}

#[test]
fn the_same_token_again_is_no_replacement_and_asked_for_once() {
    let (bench, endpoint) =
        (Bench::new(), Endpoint::new(200, r#"{"access_token":"first-read","expires_in":7200}"#));
    let cache = bench.open();
    sign_in_with(&cache, 3_000, "");
    let query = wanted("read");
    let refused = cache.find_access_token(&query).unwrap().unwrap();
    let request = AcquireRequest::new(&query).replacing(&refused);
    assert!(two_hundred(&bench, &endpoint, request).iter().all(Option::is_none));
    assert_eq!(endpoint.calls(), 1);
}

#[test]
fn the_same_token_again_will_do_if_it_lasts_longer_now() {
    for (lifetime, origin, calls) in [(3_600, TokenSource::Refreshed, 1), (100, TokenSource::StillValid, 1)] {
        let body = format!(r#"{{"access_token":"first-read","expires_in":{lifetime}}}"#);
        let (bench, endpoint) = (Bench::new(), Endpoint::new(200, &body));
        let cache = bench.open();
        sign_in_with(&cache, 240, "");
        let acquired = cache.acquire(&wanted("read"), endpoint.call()).unwrap();
        assert_eq!((acquired.token().expose(), acquired.origin()), ("first-read", origin));
        drop(cache.acquire(&wanted("read"), endpoint.call()).unwrap());
        assert_eq!(endpoint.calls(), calls);
    }
}

#[test]
fn nine_refused_scopes_in_turn_are_nine_requests() {
    let (bench, endpoint) = (Bench::new(), Endpoint::new(400, r#"{"error":"invalid_scope"}"#));
    let cache = bench.open();
    sign_in_expired(&cache);
    for number in 0..90 {
        let error = cache.acquire(&wanted(&format!("scope-{}", number % 9)), endpoint.call()).unwrap_err();
        assert!(matches!(error, AcquireError::Refused { .. }), "{error:?}");
    }
    assert_eq!(endpoint.calls(), 9);
}

#[test]
fn refusals_of_256_requests_are_remembered_by_another_process_too() {
    let (bench, endpoint) = (Bench::new(), Endpoint::new(400, r#"{"error":"invalid_target"}"#));
    sign_in_expired(&bench.open());
    for _ in 0..2 {
        let cache = bench.open();
        for number in 0..256 {
            drop(cache.acquire(&wanted(&format!("scope-{number}")), endpoint.call()).unwrap_err());
        }
    }
    assert_eq!(endpoint.calls(), 256);
}

/// F7: a refusal concerns its own request only, and so does a 4xx without a code.
#[test]
fn what_is_refused_for_one_request_holds_up_no_other() {
    for (status, body) in
        [(400, r#"{"error":"invalid_target"}"#), (403, "<html>"), (400, r#"{"error":"mfa_required"}"#)]
    {
        let (bench, bad) = (Bench::new(), Endpoint::new(status, body));
        let good = Endpoint::new(200, r#"{"access_token":"at","expires_in":3600}"#);
        let cache = bench.open();
        sign_in_expired(&cache);
        for _ in 0..5 {
            drop(cache.acquire(&wanted("bad"), bad.call()).unwrap_err());
        }
        assert_eq!(
            cache.acquire(&wanted("read"), good.call()).unwrap().origin(),
            TokenSource::Refreshed,
            "{body}"
        );
        drop(cache.acquire(&wanted("bad"), never()).unwrap_err());
        assert_eq!((bad.calls(), good.calls()), (1, 1), "{body}");
        assert_eq!(kept(&cache), ["original"]);
    }
}

#[test]
fn an_outage_holds_up_every_request_of_the_token() {
    for (status, body) in
        [(503, ""), (404, r#"{"error":"invalid_grant"}"#), (200, "{}"), (400, r#"{"error":"rate_limited"}"#)]
    {
        let (bench, endpoint) = (Bench::new(), Endpoint::new(status, body));
        let cache = bench.open();
        sign_in_expired(&cache);
        let error = cache.acquire(&wanted("read"), endpoint.call()).unwrap_err();
        assert!(error.is_transient() && error.retry_after().is_some(), "{status} {body}: {error:?}");
        let error = bench.open().acquire(&wanted("write"), never()).unwrap_err();
        assert!(error.is_transient(), "{error:?}");
        assert_eq!(kept(&cache), ["original"], "{status} {body}");
    }
}

#[test]
fn refusals_survive_a_rotation_and_end_with_a_sign_in() {
    // One that brings the same token, one that brings another, one that brings none; all in one second.
    for further in [r#","refresh_token":"original""#, r#","refresh_token":"another""#, ""] {
        let (bench, refusing) = (Bench::new(), Endpoint::new(400, r#"{"error":"invalid_scope"}"#));
        let rotating =
            Endpoint::new(200, r#"{"access_token":"at-N","expires_in":3600,"refresh_token":"rt-N"}"#);
        let cache = bench.open();
        // A while ago, so that the rotation shows in the time of the row.
        let past = SystemTime::now() - Duration::from_secs(100);
        cache.add(&signed_in("original", "read", r#","expires_in":0"#).received_at(past)).unwrap();
        drop(cache.acquire(&wanted("bad"), refusing.call()).unwrap_err());
        drop(cache.acquire(&wanted("read"), rotating.call()).unwrap());
        assert_eq!(kept(&cache), ["rt-1"]);
        drop(cache.acquire(&wanted("bad"), refusing.call()).unwrap_err());
        assert_eq!(refusing.calls(), 1, "it survives the rotation");
        let json = format!(r#"{{"access_token":"again","expires_in":3600{further}}}"#);
        let again =
            TokenResponse::from_json(json).unwrap().client_id(CLIENT).environment(common::ENVIRONMENT);
        let again = again.realm("tenant").home_account_id("alice").grant_type("authorization_code");
        cache.add(&again.requested_scopes(["read"])).unwrap();
        drop(cache.acquire(&wanted("bad"), refusing.call()).unwrap_err());
        assert_eq!(refusing.calls(), 2, "it ends with the sign-in: {further}");
    }
}

#[test]
fn whoever_asks_to_try_now_passes_what_is_remembered() {
    for (status, body) in [(400, r#"{"error":"invalid_scope"}"#), (503, "")] {
        let (bench, failing) = (Bench::new(), Endpoint::new(status, body));
        let cache = bench.open();
        sign_in_expired(&cache);
        let query = wanted("read");
        drop(cache.acquire(&query, failing.call()).unwrap_err());
        drop(cache.acquire(&query, never()).unwrap_err());
        let good = Endpoint::new(200, r#"{"access_token":"at","expires_in":3600}"#);
        let acquired = cache.acquire(AcquireRequest::new(&query).try_now(), good.call()).unwrap();
        assert_eq!(acquired.token().expose(), "at");
        assert_eq!(cache.acquire(&query, never()).unwrap().origin(), TokenSource::Cache);
    }
}

/// F2: a token that may do for another tenant or scope is kept.
#[test]
fn a_refresh_token_is_removed_only_when_it_is_surely_dead() {
    for (status, body, dies) in [
        (400, r#"{"error":"invalid_grant"}"#, true),
        (401, r#"{"error":"Invalid_Grant","error_description":"revoked"}"#, true),
        (400, r#"{"error":"invalid_grant","suberror":"bad_token","error_codes":[70000]}"#, true),
        (400, r#"{"error":"invalid_grant","error_codes":[50057]}"#, false),
        (400, r#"{"error":"invalid_grant","error_subtype":"invalid_rapt"}"#, false),
        (400, r#"{"error":"invalid_grant","suberror":"device_authentication_failed"}"#, false),
        (400, r#"{"error":"bad_refresh_token"}"#, false),
        (200, r#"{"error":"invalid_grant"}"#, false),
    ] {
        let (bench, endpoint) = (Bench::new(), Endpoint::new(status, body));
        let cache = bench.open();
        sign_in_expired(&cache);
        let error = cache.acquire(&wanted("guest"), endpoint.call()).unwrap_err();
        assert!(error.is_sign_in_required(), "{body}: {error:?}");
        assert_eq!(kept(&bench.open()).is_empty(), dies, "{body}");
        if !dies {
            let good = Endpoint::new(200, r#"{"access_token":"at","expires_in":3600}"#);
            assert_eq!(cache.acquire(&wanted("home"), good.call()).unwrap().token().expose(), "at");
        }
    }
    let (bench, endpoint) =
        (Bench::new(), Endpoint::new(400, r#"{"error":"invalid_grant","error_subtype":"invalid_rapt"}"#));
    sign_in_expired(&bench.open());
    let error = bench.open().acquire(&wanted("read"), endpoint.call()).unwrap_err();
    assert!(error.to_string().contains("invalid_rapt"), "the sub-error is shown: {error}");
}

#[test]
fn only_the_row_of_the_client_that_sent_a_dead_token_goes() {
    let (bench, endpoint) = (Bench::new(), Endpoint::new(400, r#"{"error":"invalid_grant"}"#));
    let cache = bench.open();
    for client in ["one", "two"] {
        cache.add(&signed_in("shared", "read", r#","expires_in":0,"foci":"1""#).client_id(client)).unwrap();
    }
    let of = |client: &str| AccessTokenQuery::for_account(client, &account("alice")).scopes(["read"]);
    assert!(cache.acquire(&of("one"), endpoint.call()).unwrap_err().is_sign_in_required());
    let clients: Vec<String> = cache
        .read(|tokens| tokens.refresh_tokens().map(|token| token.client_id().to_owned()).collect())
        .unwrap();
    assert_eq!(clients, ["two"]);
}

/// R13: whatever the failure, a token that is still valid is served.
#[test]
fn a_valid_token_is_served_after_any_failure() {
    for (status, body) in [
        (401, r#"{"error":"invalid_client"}"#),
        (400, r#"{"error":"invalid_grant"}"#),
        (400, r#"{"error":"interaction_required"}"#),
        (503, ""),
        (400, ""),
        (200, "{}"),
    ] {
        let (bench, endpoint) = (Bench::new(), Endpoint::new(status, body));
        let cache = bench.open();
        sign_in_with(&cache, 120, "");
        for _ in 0..2 {
            let acquired = cache.acquire(&wanted("read"), endpoint.call()).unwrap();
            assert_eq!(
                (acquired.token().expose(), acquired.origin()),
                ("first-read", TokenSource::StillValid)
            );
            assert!(acquired.failure().is_some());
        }
        assert_eq!(endpoint.calls(), 1, "{body}");
    }
}

/// R14: whoever has a valid token does not wait for a better one.
#[test]
fn an_early_refresh_makes_nobody_wait() {
    let bench = Bench::new();
    let cache = bench.open();
    sign_in_with(&cache, 1_800, r#","refresh_in":60"#);
    let (go_on, may_go_on) = std::sync::mpsc::channel::<()>();
    let started = std::time::Instant::now();
    let acquired = cache.acquire(&wanted("read"), move |call: RefreshCall| {
        may_go_on.recv().unwrap();
        call.answer(200, None, None, r#"{"access_token":"new","expires_in":3600,"scope":"read"}"#)
    });
    assert_eq!(acquired.unwrap().origin(), TokenSource::StillValid);
    assert!(started.elapsed() < LONG, "{:?}", started.elapsed());
    let error = cache.settle(Duration::from_millis(50)).unwrap_err();
    assert!(matches!(error, AcquireError::NotSettled { .. }), "{error:?}");
    go_on.send(()).unwrap();
    cache.settle(LONG).unwrap();
    assert_eq!(bench.open().acquire(&wanted("read"), never()).unwrap().token().expose(), "new");
}

/// A scopeless answer to a request that sent no scopes is one for those of the sign-in.
#[test]
fn an_answer_without_scopes_has_those_that_were_sent_or_those_of_the_sign_in() {
    let body = r#"{"access_token":"at","expires_in":3600}"#;
    let bench = Bench::new();
    let cache = bench.open();
    sign_in_expired(&cache);
    let error = cache.acquire(&wanted("admin"), move |call| call.answer(200, None, None, body)).unwrap_err();
    assert!(matches!(&error, AcquireError::NotGranted { granted, .. } if granted == "read"), "{error:?}");
    assert_eq!(cache.acquire(&wanted("read"), never()).unwrap().token().expose(), "at");
    let sent = Endpoint::new(200, r#"{"access_token":"for admin","expires_in":3600}"#);
    let query = wanted("admin");
    let again = AcquireRequest::new(&query).try_now();
    assert_eq!(cache.acquire(again, sent.call()).unwrap().token().expose(), "for admin");
}

/// D5: the machine may sleep between the answer and its bookkeeping.
#[test]
fn a_lifetime_counts_from_before_the_call() {
    let bench = Bench::new();
    let cache = bench.open();
    sign_in_expired(&cache);
    let began = SystemTime::now();
    let slow = |call: RefreshCall| {
        std::thread::sleep(Duration::from_millis(2_100));
        call.answer(200, None, None, r#"{"access_token":"at","expires_in":3600,"scope":"read"}"#)
    };
    let acquired = cache.acquire(&wanted("read"), slow).unwrap();
    let until = acquired.token().expires_on().duration_since(began).unwrap();
    assert!(until <= Duration::from_secs(3_600), "{until:?}");
    // Whatever the program does with the answer.
    let bench = Bench::new();
    let cache = bench.open();
    sign_in_expired(&cache);
    let began = SystemTime::now();
    let slow = |_| {
        std::thread::sleep(Duration::from_millis(2_100));
        Ok(TokenResponse::from_json(r#"{"access_token":"at","expires_in":3600,"scope":"read"}"#)?)
    };
    let acquired = cache.acquire(&wanted("read"), slow).unwrap();
    assert!(acquired.token().expires_on().duration_since(began).unwrap() <= Duration::from_secs(3_600));
}

/// F10: a token that had expired when it came is told apart, and costs no token that lives.
#[test]
fn a_token_that_had_expired_when_it_came_has_an_error_of_its_own() {
    let body = r#"{"access_token":"at","expires_in":0,"scope":"read","refresh_token":"rotated"}"#;
    let (bench, endpoint) = (Bench::new(), Endpoint::new(200, body));
    let cache = bench.open();
    sign_in_expired(&cache);
    for _ in 0..3 {
        let error = cache.acquire(&wanted("read"), endpoint.call()).unwrap_err();
        assert!(matches!(error, AcquireError::ExpiredToken { .. }) && error.is_transient(), "{error:?}");
    }
    assert_eq!((endpoint.calls(), kept(&cache)), (1, vec!["rotated".to_owned()]));
}

/// F6: a token that does not expire is served until the service says no.
#[test]
fn a_token_without_end_ends_when_it_is_to_be_replaced() {
    let bench = Bench::new();
    let cache = bench.open();
    let body = r#"{"access_token":"gho_x","scope":"repo,gist","token_type":"bearer"}"#;
    let response = TokenResponse::from_json(body).unwrap().client_id(CLIENT).environment(common::ENVIRONMENT);
    cache.add(&response.home_account_id("alice").grant_type("authorization_code")).unwrap();
    let far = wanted("gist").at(SystemTime::now() + Duration::from_secs(10 * 365 * 24 * 3_600));
    let token = cache.acquire(&far, never()).unwrap().into_token();
    assert_eq!(token.expose(), "gho_x");
    let error = cache.acquire(AcquireRequest::new(&far).replacing(&token), never()).unwrap_err();
    assert!(error.is_sign_in_required(), "{error:?}");
    assert!(bench.open().acquire(&far, never()).unwrap_err().is_sign_in_required(), "it has ended for all");
}

/// Rule 12: claims pass the cache by, are sent, and those of the server come back.
#[test]
fn claims_are_sent_and_pass_the_cache_by() {
    let bench = Bench::new();
    let cache = bench.open();
    sign_in_with(&cache, 3_000, "");
    let (query, claims) = (wanted("read"), r#"{"access_token":{"acrs":{"value":"c1"}}}"#);
    let request = AcquireRequest::new(&query).claims(claims);
    let stepped_up = cache.acquire(request, move |call: RefreshCall| {
        assert_eq!(call.claims(), Some(claims));
        assert!(call.form().expose().contains("&claims=%7B%22access_token%22"));
        call.answer(200, None, None, r#"{"access_token":"stepped up","expires_in":3600,"scope":"read"}"#)
    });
    assert_eq!(stepped_up.unwrap().token().expose(), "stepped up");
    // The user is needed, with what the server says; and no token of before is served instead.
    let refusal = r#"{"error":"interaction_required","claims":"{\"access_token\":{\"polids\":{}}}"}"#;
    let refusing = Endpoint::new(400, refusal);
    for cache in [&cache, &bench.open()] {
        let error = cache.acquire(request, refusing.call()).unwrap_err();
        assert_eq!(error.claims(), Some(r#"{"access_token":{"polids":{}}}"#));
        assert!(error.is_sign_in_required() && !format!("{error} {error:?}").contains("polids"));
    }
    assert_eq!(refusing.calls(), 1);
    assert_eq!(cache.acquire(&query, never()).unwrap().token().expose(), "stepped up", "without claims");
}

#[test]
fn a_refresh_token_that_comes_with_an_error_is_not_lost() {
    let body = r#"{"error":"invalid_scope","refresh_token":"rotated","access_token":"at"}"#;
    let (bench, endpoint) = (Bench::new(), Endpoint::new(200, body));
    let cache = bench.open();
    sign_in_expired(&cache);
    for _ in 0..3 {
        let error = cache.acquire(&wanted("read"), endpoint.call()).unwrap_err();
        assert!(matches!(error, AcquireError::Refused { .. }), "{error:?}");
    }
    assert_eq!((endpoint.calls(), kept(&cache)), (1, vec!["rotated".to_owned()]));
}

#[test]
fn the_call_knows_what_is_asked_for() {
    let bench = Bench::new();
    let cache = bench.open();
    sign_in_expired(&cache);
    let query = AccessTokenQuery::for_account(CLIENT, &account("alice")).scopes(["a b"]);
    let request = AcquireRequest::new(&query).token_endpoint("https://idp.example/token");
    let acquired = cache.acquire(request, |call: RefreshCall| {
        assert_eq!(
            (call.client_id(), call.environment(), call.realm()),
            (CLIENT, common::ENVIRONMENT, Some("tenant"))
        );
        assert_eq!(
            (call.scopes(), call.refresh_token().expose()),
            (&["a".to_owned(), "b".to_owned()][..], "original")
        );
        assert_eq!(call.token_endpoint(), Some("https://idp.example/token"));
        call.answer(200, None, None, r#"{"access_token":"at","expires_in":"3599","scope":["b","a"]}"#)
    });
    assert_eq!(acquired.unwrap().token().expose(), "at");
}

/// Not a test by itself: a process that asks a hundred times, and counts its requests in a file.
#[test]
fn as_a_process_that_asks() {
    let Some(base) = std::env::var_os("TOKENSEAL_CHILD_BASE") else { return };
    let base = std::path::PathBuf::from(base);
    let body = std::env::var("TOKENSEAL_CHILD_BODY").unwrap();
    let cache = common::with_key_file(&base).open().unwrap();
    for _ in 0..100 {
        let (base, body) = (base.clone(), body.clone());
        let acquired = cache.acquire(&wanted("read"), move |call: RefreshCall| {
            use std::io::Write as _;
            let mut requests =
                std::fs::OpenOptions::new().append(true).create(true).open(base.join("requests")).unwrap();
            requests.write_all(b".").unwrap();
            let _sent = call.form();
            call.answer(200, None, None, body.as_str())
        });
        cache.settle(LONG).unwrap();
        drop(acquired.unwrap());
    }
}

#[test]
fn two_processes_that_get_nothing_for_their_request_make_one() {
    for (left, further) in [(1_800, r#","refresh_in":60"#), (240, "")] {
        for body in [
            r#"{"error":"bad_refresh_token"}"#,
            r#"{"access_token":"at","expires_in":3600,"scope":"less","refresh_token":"rotated"}"#,
        ] {
            let base = tempfile::tempdir().unwrap();
            sign_in_with(&common::with_key_file(base.path()).open().unwrap(), left, further);
            let children: Vec<_> = (0..2)
                .map(|_| {
                    std::process::Command::new(std::env::current_exe().unwrap())
                        .args(["--exact", "as_a_process_that_asks", "--nocapture"])
                        .env("TOKENSEAL_CHILD_BASE", base.path())
                        .env("TOKENSEAL_CHILD_BODY", body)
                        .stdout(std::process::Stdio::null())
                        .spawn()
                        .unwrap()
                })
                .collect();
            for mut child in children {
                assert!(child.wait().unwrap().success());
            }
            let requests = std::fs::read(base.path().join("requests")).unwrap().len();
            assert_eq!(requests, 1, "{body} with {left} s left");
        }
    }
}
