//! Siblings of what attack and public bug reports found, each by its rule.
#![cfg(feature = "file")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, SystemTime};

use base64ct::{Base64UrlUnpadded, Encoding as _};
use tokenseal::{
    AccessTokenQuery, Account, AcquireError, RefreshTokenQuery, SharedTokenCache, TokenCache, TokenResponse,
    refresh::{AcquireRequest, RefreshCall, RefreshFailure, TokenSource},
};

const T1: &str = "11111111-aaaa-4aaa-8aaa-111111111111";
const T2: &str = "22222222-bbbb-4bbb-8bbb-222222222222";

fn b64(json: &str) -> String {
    Base64UrlUnpadded::encode_string(json.as_bytes())
}
fn idt(claims: &str) -> String {
    format!("{}.{}.x", b64(r#"{"alg":"none"}"#), b64(claims))
}
fn resp(json: &str) -> TokenResponse {
    TokenResponse::from_json(json).unwrap().client_id("app")
}
/// A sign-in at a Keycloak realm.
fn keycloak(realm: &str, name: &str, scope: &str, expires_in: i64) -> TokenResponse {
    let claims = idt(&format!(
        r#"{{"iss":"https://idp.example/realms/{realm}","sub":"1","preferred_username":"{name}"}}"#
    ));
    resp(&format!(
        r#"{{"access_token":"at-{name}","refresh_token":"rt-{name}","expires_in":{expires_in},"id_token":"{claims}"}}"#
    ))
    .requested_scopes([scope])
    .grant_type("authorization_code")
    .token_endpoint(format!("https://idp.example/realms/{realm}/protocol/openid-connect/token"))
}
fn plain(name: &str, scope: &str, expires_in: i64) -> TokenResponse {
    resp(&format!(r#"{{"access_token":"at-{name}","refresh_token":"rt-{name}","expires_in":{expires_in}}}"#))
        .environment("idp.example")
        .realm("r")
        .home_account_id("alice")
        .grant_type("authorization_code")
        .requested_scopes([scope])
}
fn alice() -> Account {
    Account::new("alice", "idp.example")
}
fn want(account: &Account, scope: &str) -> AccessTokenQuery {
    AccessTokenQuery::for_account("app", account).scopes([scope])
}
fn rts(cache: &SharedTokenCache) -> Vec<String> {
    cache.read(|c| c.refresh_tokens().map(|t| t.expose().to_owned()).collect()).unwrap()
}
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);
impl Log {
    fn push(&self, call: &RefreshCall) {
        self.0.lock().unwrap().push(call.refresh_token().expose().to_owned());
    }
    fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

#[test]
fn a_row_that_names_no_issuer_is_nobody_s_where_an_id_has_several() {
    let mut cache = TokenCache::new();
    let a = cache.add(&keycloak("a", "ada", "read", 3600)).unwrap().account().unwrap().clone();
    let b = cache.add(&keycloak("b", "bob", "read", 3600)).unwrap().account().unwrap().clone();
    // ada's further grant, by a program that names the id and nothing else: of the two users of that id.
    let extra = || {
        let response =
            resp(r#"{"access_token":"at-ada-extra","refresh_token":"rt-ada-extra","expires_in":3600}"#);
        response
            .home_account_id(a.home_account_id())
            .requested_scopes(["extra"])
            .grant_type("authorization_code")
    };
    assert!(cache.add(&extra().environment("idp.example").realm("a")).is_err(), "whose it is, nobody says");
    let endpoint = "https://idp.example/realms/a/protocol/openid-connect/token";
    cache.add(&extra().token_endpoint(endpoint)).unwrap();
    cache.add(&extra().environment("idp.example").realm("a").issuer("https://idp.example/realms/a")).unwrap();
    assert!(cache.find_access_token(&want(&a, "extra").any_realm()).is_some());
    let bobs = cache.find_access_token(&want(&b, "extra").any_realm()).map(|t| t.expose().to_owned());
    let next = cache.find_refresh_token(&RefreshTokenQuery::new("app", &b)).map(|t| t.expose().to_owned());
    let shared = SharedTokenCache::new(cache);
    let log = Log::default();
    let l = log.clone();
    let other = shared.acquire(&want(&b, "other"), move |call| {
        l.push(&call);
        let _ = call.form();
        call.answer(200, None, None, r#"{"access_token":"bob's","expires_in":3600}"#)
    });
    assert_eq!((other.unwrap().token().expose(), log.all()), ("bob's", vec!["rt-bob".to_owned()]));
    assert_eq!(bobs, None, "ada's token is served as bob's");
    assert_eq!(next.as_deref(), Some("rt-bob"));
}

#[test]
fn an_account_without_issuer_is_ambiguous_whoever_s_token_is_valid() {
    let mut cache = TokenCache::new();
    cache
        .add(&keycloak("a", "ada", "read", 3600).received_at(SystemTime::now() - Duration::from_secs(7200)))
        .unwrap();
    cache.add(&keycloak("b", "bob", "read", 3600)).unwrap();
    // What a program of before has stored of ada.
    let ada = Account::new("1", "idp.example");
    let found = cache.find_access_token(&want(&ada, "read")).map(|t| t.expose().to_owned());
    let shared = SharedTokenCache::new(cache);
    let got = shared.acquire(&want(&ada, "read"), |_| Err(RefreshFailure::refused("x")));
    assert!(found.is_none() && matches!(got, Err(AcquireError::Ambiguous { .. })));
}

#[test]
fn a_guard_asks_whose_refresh_token_is_meant() {
    let mut cache = TokenCache::new();
    cache
        .add(&keycloak("a", "ada", "read", 3600).received_at(SystemTime::now() - Duration::from_secs(7200)))
        .unwrap();
    cache.add(&keycloak("b", "bob", "read", 3600)).unwrap();
    let shared = SharedTokenCache::new(cache);
    let guard = shared.refresh_guard(
        &RefreshTokenQuery::new("app", &Account::new("1", "idp.example")),
        Duration::from_secs(1),
    );
    let sent = guard.as_ref().ok().and_then(|g| g.refresh_token()).map(|t| t.expose().to_owned());
    assert!(guard.is_err(), "{sent:?}");
}

#[test]
fn an_answer_is_compared_with_the_id_token_of_its_own_issuer() {
    for order in [[T1, T2], [T2, T1]] {
        let mut cache = TokenCache::new();
        let info = b64(&format!(r#"{{"uid":"alice","utid":"{T1}"}}"#));
        for (n, t) in order.iter().enumerate() {
            let id = idt(&format!(
                r#"{{"iss":"https://login.microsoftonline.com/{t}/v2.0","tid":"{t}","sub":"alice-at-{t}"}}"#
            ));
            cache.add(&resp(&format!(r#"{{"access_token":"at-{n}","refresh_token":"rt","expires_in":3600,"id_token":"{id}","client_info":"{info}"}}"#))
                .token_endpoint(format!("https://login.microsoftonline.com/{t}/oauth2/v2.0/token"))
                .grant_type("authorization_code").requested_scopes(["read"])).unwrap();
        }
        let account = cache.accounts()[0].clone();
        let shared = SharedTokenCache::new(cache);
        for t in [T1, T2] {
            let got = shared.acquire(&want(&account, "mail").realm(t), move |call| {
                let _ = call.form();
                // bob's, whose session was mixed up with hers; no client_info
                let id = idt(&format!(
                    r#"{{"iss":"https://login.microsoftonline.com/{t}/v2.0","tid":"{t}","sub":"bob-at-{t}"}}"#
                ));
                call.answer(
                    200,
                    None,
                    None,
                    format!(r#"{{"access_token":"at-bob-{t}","expires_in":3600,"id_token":"{id}"}}"#),
                )
            });
            assert!(got.is_err_and(|error| error.is_sign_in_required()), "order {order:?}, answer of {t}");
        }
    }
    // asserted apart, so that all is shown
    let mut cache = TokenCache::new();
    let info = b64(&format!(r#"{{"uid":"alice","utid":"{T1}"}}"#));
    for t in [T1, T2] {
        let id = idt(&format!(
            r#"{{"iss":"https://login.microsoftonline.com/{t}/v2.0","tid":"{t}","sub":"alice-at-{t}"}}"#
        ));
        cache.add(&resp(&format!(r#"{{"access_token":"at","refresh_token":"rt","expires_in":3600,"id_token":"{id}","client_info":"{info}"}}"#))
            .token_endpoint(format!("https://login.microsoftonline.com/{t}/oauth2/v2.0/token"))
            .grant_type("authorization_code").requested_scopes(["read"])).unwrap();
    }
    for t in [T1, T2] {
        let id = idt(&format!(
            r#"{{"iss":"https://login.microsoftonline.com/{t}/v2.0","tid":"{t}","sub":"bob-at-{t}"}}"#
        ));
        let answer = resp(&format!(r#"{{"access_token":"at-bob","expires_in":3600,"id_token":"{id}"}}"#))
            .sent_refresh_token("rt")
            .realm(t);
        assert!(cache.add(&answer).is_err(), "bob's token is kept as alice's in {t}");
    }
}

fn b2c(oid: &str, policy: &str) -> (String, String) {
    let id = idt(&format!(
        r#"{{"iss":"https://contoso.b2clogin.com/{T1}/v2.0/","oid":"{oid}","sub":"{oid}","tfp":"{policy}","tid":"{T1}"}}"#
    ));
    let info = b64(&format!(r#"{{"uid":"{oid}-{}","utid":"{T1}"}}"#, policy.to_lowercase()));
    (id, info)
}

#[test]
fn where_both_sides_have_client_info_it_alone_decides_at_b2c_too() {
    let mut cache = TokenCache::new();
    let (id, info) = b2c("ada", "B2C_1_in");
    cache.add(&resp(&format!(r#"{{"access_token":"at","refresh_token":"rt","expires_in":3600,"id_token":"{id}","client_info":"{info}"}}"#))
        .token_endpoint("https://contoso.b2clogin.com/contoso.onmicrosoft.com/oauth2/v2.0/token")
        .grant_type("authorization_code").requested_scopes(["read"])).unwrap();
    let (_, bob) = b2c("bob", "B2C_1_in");
    let answer = resp(&format!(
        r#"{{"access_token":"at-bob","refresh_token":"rt-bob","expires_in":3600,"client_info":"{bob}"}}"#
    ))
    .sent_refresh_token("rt");
    let added = cache.add(&answer);
    let held: Vec<_> = cache.refresh_tokens().map(|t| t.expose().to_owned()).collect();
    assert!(added.is_err(), "bob's tokens are kept as ada's: {held:?}");
}

#[test]
fn the_shape_of_an_id_token_does_not_count_beside_client_info() {
    let mut cache = TokenCache::new();
    let (id, info) = b2c("ada", "B2C_1_in");
    cache.add(&resp(&format!(r#"{{"access_token":"at","refresh_token":"rt","expires_in":3600,"id_token":"{id}","client_info":"{info}"}}"#))
        .token_endpoint("https://contoso.b2clogin.com/contoso.onmicrosoft.com/oauth2/v2.0/token")
        .grant_type("authorization_code").requested_scopes(["read"])).unwrap();
    // The same user by client_info; the id token now says `sub` only (pairwise, to be ignored).
    let id = idt(&format!(
        r#"{{"iss":"https://contoso.b2clogin.com/{T1}/v2.0/","sub":"Not supported currently. Use oid claim.","tfp":"B2C_1_in"}}"#
    ));
    let answer = resp(&format!(r#"{{"access_token":"at-2","refresh_token":"rt-2","expires_in":3600,"client_info":"{info}","id_token":"{id}"}}"#)).sent_refresh_token("rt");
    let added = cache.add(&answer);
    assert!(added.is_ok(), "client_info is the same on both sides");
}

#[test]
fn a_failure_of_the_old_token_does_not_count_for_a_sign_in_made_meanwhile() {
    let mut bad = Vec::new();
    for (status, body) in [
        (400, r#"{"error":"invalid_grant","error_codes":[50173]}"#),
        (400, r#"{"error":"invalid_grant","error_subtype":"invalid_rapt"}"#),
        (400, r#"{"error":"login_required"}"#),
        (200, r#"{"error":"bad_refresh_token"}"#),
        (400, r#"{"error":"invalid_scope"}"#),
        (503, ""),
        (400, r#"{"error":"invalid_grant"}"#),
    ] {
        let shared = SharedTokenCache::new(TokenCache::new());
        shared
            .try_update(|c| {
                c.add(&plain("old", "read", 3600).received_at(SystemTime::now() - Duration::from_secs(7200)))
            })
            .unwrap();
        let log = Log::default();
        let (l, s) = (log.clone(), shared.clone());
        let call = move |call: RefreshCall| {
            l.push(&call);
            let _ = call.form();
            if call.refresh_token().expose() == "rt-old" {
                // A sign-in meanwhile, whose access token is for something else.
                s.try_update(|c| c.add(&resp(r#"{"access_token":"at-new","refresh_token":"rt-new","expires_in":1,"scope":"read"}"#)
                    .environment("idp.example").realm("r").home_account_id("alice").grant_type("authorization_code")
                    .received_at(SystemTime::now() - Duration::from_secs(2)))).unwrap();
                return call.answer(status, None, None, body);
            }
            call.answer(200, None, None, r#"{"access_token":"good","expires_in":3600}"#)
        };
        let _of_the_old_token = shared.acquire(&want(&alice(), "read"), call.clone());
        if shared.acquire(&want(&alice(), "read"), call).is_err() {
            bad.push(body);
        }
    }
    assert!(bad.is_empty(), "a sign-in does not end these: {bad:?}");
}

#[test]
fn a_guard_remembers_errors_that_come_with_a_status_of_success() {
    for (body, needs_user) in [
        (r#"{"error":"bad_refresh_token"}"#, true),
        (r#"{"ok":false,"error":"invalid_refresh_token"}"#, true),
        (r#"{"error":"invalid_scope"}"#, false),
        ("{}", false),
        ("<html>", false),
    ] {
        let shared = SharedTokenCache::new(TokenCache::new());
        shared.try_update(|c| c.add(&plain("old", "read", 3600))).unwrap();
        let mut requests = 0;
        for _ in 0..20 {
            let query = RefreshTokenQuery::new("app", &alice());
            let error = match shared.refresh_guard(&query, Duration::from_secs(1)) {
                Ok(mut guard) => {
                    requests += 1;
                    match TokenResponse::from_json(body) {
                        Ok(response) => guard.save(response).unwrap_err(),
                        Err(error) => guard.rejected(error.into()),
                    }
                }
                Err(error) => error,
            };
            assert_eq!(error.is_sign_in_required(), needs_user, "{body}: {error}");
        }
        assert_eq!((requests, rts(&shared)), (1, vec!["rt-old".to_owned()]), "{body}");
    }
    // Another user's answer.
    let mut cache = TokenCache::new();
    let a = cache.add(&keycloak("a", "ada", "read", 3600)).unwrap().account().unwrap().clone();
    let shared = SharedTokenCache::new(cache);
    let mut requests = 0;
    for _ in 0..20 {
        let query = RefreshTokenQuery::new("app", &a);
        let error = match shared.refresh_guard(&query, Duration::from_secs(1)) {
            Ok(mut guard) => {
                requests += 1;
                let id = idt(r#"{"iss":"https://idp.example/realms/a","sub":"2"}"#);
                let json = format!(r#"{{"access_token":"x","expires_in":60,"id_token":"{id}"}}"#);
                guard.save(resp(&json)).unwrap_err()
            }
            Err(error) => error,
        };
        assert!(error.is_sign_in_required(), "{error}");
    }
    assert_eq!(requests, 1);
}

#[test]
fn the_refresh_token_of_the_wanted_scopes_comes_first_where_it_is_for_these_only() {
    let mut bad = Vec::new();
    for kind in ["invalid_scope", "less"] {
        let shared = SharedTokenCache::new(TokenCache::new());
        let ago = |s| SystemTime::now() - Duration::from_secs(s);
        shared.try_update(|c| c.add(&plain("mail", "mail", 3600).received_at(ago(8000)))).unwrap();
        shared.try_update(|c| c.add(&plain("files", "files", 3600).received_at(ago(7000)))).unwrap();
        let log = Log::default();
        let l = log.clone();
        let got = shared.acquire(&want(&alice(), "mail"), move |call| {
            l.push(&call);
            let _ = call.form();
            match (call.refresh_token().expose(), kind) {
                ("rt-mail", _) => call.answer(
                    200,
                    None,
                    None,
                    r#"{"access_token":"good","expires_in":3600,"scope":"mail"}"#,
                ),
                (_, "less") => call.answer(
                    200,
                    None,
                    None,
                    r#"{"access_token":"other","expires_in":3600,"scope":"files"}"#,
                ),
                _ => call.answer(400, None, None, r#"{"error":"invalid_scope"}"#),
            }
        });
        if got.is_err() {
            bad.push(kind);
        }
    }
    assert!(bad.is_empty(), "{bad:?}");
}

#[test]
fn whoever_has_a_use_for_a_token_is_served_it_beside_one_who_replaces_it() {
    let shared = SharedTokenCache::new(TokenCache::new());
    shared
        .try_update(|c| {
            c.add(
                &plain("old", "read", 3600).received_at(SystemTime::now() - Duration::from_secs(3600 - 240)),
            )
        })
        .unwrap();
    let query = want(&alice(), "read");
    let old = shared.find_access_token(&query.clone().skew(Duration::ZERO)).unwrap().unwrap();
    let (s, q) = (shared.clone(), query.clone());
    let replacing = thread::spawn(move || {
        s.acquire(AcquireRequest::new(&q).replacing(&old), |call| {
            thread::sleep(Duration::from_millis(600));
            call.answer(503, None, None, "")
        })
        .map(|g| g.token().expose().to_owned())
        .map_err(|e| e.to_string())
    });
    thread::sleep(Duration::from_millis(200));
    let follower = shared.acquire(&query, |call| call.answer(503, None, None, ""));
    assert_eq!(follower.unwrap().token().expose(), "at-old", "a valid token, 240 s left");
    assert!(replacing.join().unwrap().is_err());
}

#[test]
fn a_token_that_expires_during_the_call_has_expired() {
    let shared = SharedTokenCache::new(TokenCache::new());
    shared
        .try_update(|c| {
            c.add(&plain("old", "read", 3600).received_at(SystemTime::now() - Duration::from_secs(7200)))
        })
        .unwrap();
    let query = want(&alice(), "read");
    let log = Log::default();
    let l = log.clone();
    let call = move |call: RefreshCall| {
        l.push(&call);
        let _ = call.form();
        if l.all().len() == 1 {
            thread::sleep(Duration::from_millis(2_300));
        }
        call.answer(200, None, None, r#"{"access_token":"at","expires_in":2,"refresh_token":"rt-2"}"#)
    };
    let first = shared.acquire(&query, call);
    assert!(first.as_ref().err().is_some_and(AcquireError::is_transient), "{first:?}");
}

#[test]
fn a_refresh_in_below_zero_counts_as_absent() {
    let mut bad = Vec::new();
    for refresh_in in ["-1000", "\"-3600\"", "-1", "0"] {
        let shared = SharedTokenCache::new(TokenCache::new());
        shared.try_update(|c| c.add(&resp(&format!(r#"{{"access_token":"at","refresh_token":"rt","expires_in":3600,"refresh_in":{refresh_in}}}"#))
            .environment("idp.example").realm("r").home_account_id("alice").requested_scopes(["read"]).grant_type("authorization_code"))).unwrap();
        let calls = Arc::new(AtomicUsize::new(0));
        for _ in 0..50 {
            let c = calls.clone();
            let _ = shared.acquire(&want(&alice(), "read"), move |call| {
                let n = c.fetch_add(1, Ordering::SeqCst);
                let _ = call.form();
                call.answer(200, None, None, format!(r#"{{"access_token":"at-{n}","refresh_token":"rt-{n}","expires_in":3600,"refresh_in":{refresh_in}}}"#))
            });
            thread::sleep(Duration::from_millis(5));
        }
        let n = calls.load(Ordering::SeqCst);
        if n > 1 {
            bad.push((refresh_in, n));
        }
    }
    assert!(bad.is_empty(), "{bad:?}");
}

#[test]
fn the_same_token_is_not_remembered_past_its_own_end() {
    let shared = SharedTokenCache::new(TokenCache::new());
    shared
        .try_update(|c| {
            c.add(&plain("same", "read", 10).received_at(SystemTime::now() - Duration::from_secs(7)))
        })
        .unwrap();
    let query = want(&alice(), "read");
    let end = SystemTime::now() + Duration::from_secs(3);
    let call = move |call: RefreshCall| {
        let _ = call.form();
        match end.duration_since(SystemTime::now()) {
            Ok(left) => call.answer(
                200,
                None,
                None,
                format!(r#"{{"access_token":"at-same","expires_in":{}}}"#, left.as_secs()),
            ),
            Err(_) => call.answer(200, None, None, r#"{"access_token":"at-fresh","expires_in":3600}"#),
        }
    };
    assert_eq!(shared.acquire(&query, call).unwrap().origin(), TokenSource::StillValid);
    thread::sleep(Duration::from_millis(4_200));
    let then = shared.acquire(&query, call);
    assert!(then.is_ok(), "the server would give another one now");
}

#[test]
fn only_the_member_error_ends_a_refresh_token() {
    let mut removed = Vec::new();
    for body in [
        r#"{"error":{"code":"invalid_grant","message":"m"}}"#,
        r#"{"error":{"code":"invalid_grant","error_subtype":"invalid_rapt"}}"#,
        r#"{"error":{"code":"invalid_grant","error_codes":[50057],"suberror":"basic_action"}}"#,
        r#"{"error":"Bad Request","code":"invalid_grant"}"#,
        r#"{"error_code":"invalid_grant"}"#,
        r#"{"code":"InvalidGrant"}"#,
        r#"{"error":"invalid-grant"}"#,
        r#"{"error":"in.valid.grant"}"#,
        r#"{"error":"invalid_grant","error_codes":"50057"}"#,
        r#"{"error":"invalid_grant","suberror":" "}"#,
    ] {
        let shared = SharedTokenCache::new(TokenCache::new());
        shared
            .try_update(|c| {
                c.add(&plain("old", "read", 3600).received_at(SystemTime::now() - Duration::from_secs(7200)))
            })
            .unwrap();
        let answered =
            shared.acquire(&want(&alice(), "read"), move |call| call.answer(400, None, None, body));
        assert!(answered.is_err());
        if rts(&shared).is_empty() {
            removed.push(body);
        }
    }
    assert!(removed.is_empty(), "{removed:#?}");
}

#[test]
fn refusals_survive_a_rotation_that_comes_with_an_error() {
    let shared = SharedTokenCache::new(TokenCache::new());
    shared
        .try_update(|c| {
            c.add(&plain("old", "read", 3600).received_at(SystemTime::now() - Duration::from_secs(7200)))
        })
        .unwrap();
    let log = Log::default();
    let l = log.clone();
    let call = move |call: RefreshCall| {
        l.push(&call);
        let _ = call.form();
        if call.scopes() == ["b"] {
            return call.answer(400, None, None, r#"{"error":"invalid_scope"}"#);
        }
        thread::sleep(Duration::from_millis(1_100));
        call.answer(200, None, None, r#"{"error":"invalid_target","refresh_token":"rt-2"}"#)
    };
    for scope in ["b", "b", "read", "b", "b"] {
        assert!(shared.acquire(&want(&alice(), scope), call.clone()).is_err());
    }
    let sent = log.all();
    assert_eq!(sent.len(), 2, "{sent:?}");
}

#[test]
fn users_of_two_issuers_are_told_apart_by_the_endpoint_where_there_is_no_id_token() {
    let mut cache = TokenCache::new();
    for server in ["aus1", "aus2"] {
        cache.add(&resp(&format!(r#"{{"access_token":"at-{server}","refresh_token":"rt-{server}","expires_in":3600,"scope":"read"}}"#))
            .token_endpoint(format!("https://org.okta.com/oauth2/{server}/v1/token"))
            .home_account_id("00u1").grant_type("authorization_code")).unwrap();
    }
    let held: Vec<_> = cache.refresh_tokens().map(|t| t.expose().to_owned()).collect();
    assert_eq!(held.len(), 2, "a live refresh token is thrown away: {held:?}");
}

#[test]
fn retry_after_is_read_in_odd_forms() {
    let mut bad = Vec::new();
    for (header, least) in [
        ("120.5", 100),
        ("99999999999999999999999", 299),
        ("120s", 0),
        ("+120", 100),
        ("120, 120", 0),
        ("Fri, 27 Nov 2099 05:00:00 GMT", 299),
    ] {
        let shared = SharedTokenCache::new(TokenCache::new());
        shared
            .try_update(|c| {
                c.add(&plain("old", "read", 3600).received_at(SystemTime::now() - Duration::from_secs(7200)))
            })
            .unwrap();
        let got =
            shared.acquire(&want(&alice(), "read"), move |call| call.answer(429, None, Some(header), ""));
        let waits = got.err().and_then(|e| e.retry_after());
        if waits.is_none_or(|w| w < Duration::from_secs(least)) {
            bad.push(header);
        }
    }
    assert!(bad.is_empty(), "{bad:?}");
}

#[test]
fn what_servers_write_for_no_token_costs_no_other() {
    let mut bad = Vec::new();
    for further in [
        r#""id_token":false"#,
        r#""id_token":{}"#,
        r#""id_token":[]"#,
        r#""refresh_token":false"#,
        r#""refresh_token":[]"#,
        r#""client_info":{}"#,
        r#""foci":[1]"#,
        r#""refresh_in":{}"#,
        r#""expires_on":{}"#,
    ] {
        let shared = SharedTokenCache::new(TokenCache::new());
        shared
            .try_update(|c| {
                c.add(&plain("old", "read", 3600).received_at(SystemTime::now() - Duration::from_secs(7200)))
            })
            .unwrap();
        let got = shared.acquire(&want(&alice(), "read"), move |call| {
            let _ = call.form();
            call.answer(200, None, None, format!(r#"{{"access_token":"new","expires_in":3600,{further}}}"#))
        });
        if got.is_err() {
            bad.push(further);
        }
    }
    assert!(bad.is_empty(), "{bad:?}");
}

#[test]
fn forms_are_read_with_blanks_before_them_and_under_other_names() {
    let mut bad = Vec::new();
    for (content_type, body) in [
        (Some("text/plain"), "\u{feff}error=bad_refresh_token&error_description=x"),
        (None, "\nerror=bad_refresh_token&error_description=x"),
        (Some("text/html; charset=utf-8"), "error_description=x&error=bad_refresh_token\r\n"),
        (Some("application/x-www-form-urlencoded;charset=\"UTF-8\""), " error=bad_refresh_token"),
        (Some("application/json"), "error=bad_refresh_token&error_description=x"),
        (None, "refresh_token=rt-2&error=bad_refresh_token"),
    ] {
        let shared = SharedTokenCache::new(TokenCache::new());
        shared
            .try_update(|c| {
                c.add(&plain("old", "read", 3600).received_at(SystemTime::now() - Duration::from_secs(7200)))
            })
            .unwrap();
        let got =
            shared.acquire(&want(&alice(), "read"), move |call| call.answer(200, content_type, None, body));
        let e = got.err().unwrap();
        if !e.is_sign_in_required() {
            bad.push(body);
        }
    }
    assert!(bad.is_empty(), "{bad:?}");
}

#[test]
fn a_request_shows_no_claims_and_no_credentials() {
    let query = want(&alice(), "read");
    let request = AcquireRequest::new(&query)
        .claims(r#"{"id_token":{"sub":{"value":"user-secret-claim"}}}"#)
        .token_endpoint("https://client:pa55word@idp.example/token");
    let shown = format!("{request:?}");
    assert!(!shown.contains("user-secret-claim") && !shown.contains("pa55word"));
}

#[test]
fn a_sign_in_dated_in_the_future_does_not_come_before_a_newer_one() {
    let shared = SharedTokenCache::new(TokenCache::new());
    let year = Duration::from_secs(365 * 24 * 3600);
    shared.try_update(|c| c.add(&plain("old", "read", 3600).received_at(SystemTime::now() + year))).unwrap();
    shared
        .try_update(|c| {
            c.add(
                &plain("new", "read write", 3600).received_at(SystemTime::now() - Duration::from_secs(7200)),
            )
        })
        .unwrap();
    let log = Log::default();
    let l = log.clone();
    let _ = shared.acquire(&want(&alice(), "read"), move |call| {
        l.push(&call);
        call.answer(503, None, None, "")
    });
    assert_eq!(log.all(), ["rt-new"]);
}

#[test]
fn codes_mean_what_providers_mean_by_them() {
    let later = [
        "RequestLimitExceeded",
        "LimitExceededException",
        "rate_exceeded",
        "api_limit_exceeded",
        "too_many_login_attempts",
        "too_many_logins",
        "request_rate_too_high",
        "server_busy",
        "try_again",
    ];
    let user = [
        "session_terminated",
        "invalid_session",
        "user_disabled",
        "grant_revoked",
        "reauth_needed",
        "mfa_enrollment_required",
        "step_up_required",
        "password_change_required",
        "device_authentication_required",
        "bad_token",
        "invalid_refreshToken",
        "user_authentication_required",
        "registration_required",
    ];
    for (code, needs_user) in later.map(|code| (code, false)).into_iter().chain(user.map(|code| (code, true)))
    {
        let shared = SharedTokenCache::new(TokenCache::new());
        let ago = SystemTime::now() - Duration::from_secs(7200);
        shared.try_update(|c| c.add(&plain("old", "read", 3600).received_at(ago))).unwrap();
        let body = format!(r#"{{"error":"{code}"}}"#);
        let refused = move |call: RefreshCall| call.answer(400, None, None, body.as_str());
        let error = shared.acquire(&want(&alice(), "read"), refused).unwrap_err();
        assert_eq!((error.is_sign_in_required(), error.is_transient()), (needs_user, !needs_user), "{code}");
        assert_eq!(rts(&shared), ["rt-old"], "{code}");
    }
}

#[test]
fn a_tenant_in_another_case_is_the_same_realm() {
    let mut cache = TokenCache::new();
    let info = b64(&format!(r#"{{"uid":"alice","utid":"{T1}"}}"#));
    cache
        .add(
            &resp(&format!(
                r#"{{"access_token":"at","refresh_token":"rt","expires_in":3600,"client_info":"{info}"}}"#
            ))
            .token_endpoint(format!("https://login.microsoftonline.com/{T1}/oauth2/v2.0/token"))
            .grant_type("authorization_code")
            .requested_scopes(["read"]),
        )
        .unwrap();
    let account = cache.accounts()[0].clone();
    let shared = SharedTokenCache::new(cache);
    let upper = T1.to_uppercase();
    let in_capitals = shared.acquire(&want(&account, "mail").realm(&upper), |call| {
        let _ = call.form();
        call.answer(200, None, None, r#"{"access_token":"m","expires_in":3600}"#)
    });
    assert!(in_capitals.is_ok());
    let got = shared.acquire(&want(&account, "files"), |call| {
        let _ = call.form();
        call.answer(200, None, None, r#"{"access_token":"f","expires_in":3600}"#)
    });
    assert!(got.is_ok(), "there is one tenant only");
}

#[test]
fn numbers_at_their_limits_do_no_harm() {
    let query = want(&alice(), "read").skew(Duration::MAX);
    for n in [
        "9223372036854775807",
        "-9223372036854775808",
        "1e308",
        "\"1e400\"",
        "0.4",
        "true",
        "\"0x10\"",
        "\"NaN\"",
    ] {
        for field in ["expires_in", "expires_on", "refresh_in", "ext_expires_in"] {
            let shared = SharedTokenCache::new(TokenCache::new());
            shared
                .try_update(|c| {
                    c.add(
                        &plain("old", "read", 3600)
                            .received_at(SystemTime::now() - Duration::from_secs(7200)),
                    )
                })
                .unwrap();
            for _ in 0..2 {
                let got = shared.acquire(
                    AcquireRequest::new(&query)
                        .wait_timeout(Duration::MAX)
                        .call_timeout(Duration::MAX)
                        .allow_extended_lifetime(true),
                    move |call| {
                        let _ = call.form();
                        call.answer(200, None, None, format!(r#"{{"access_token":"new","{field}":{n}}}"#))
                    },
                );
                if let Ok(g) = &got {
                    let _ = (g.token().expires_on(), g.token().extended_expires_on(), format!("{g:?}"));
                }
            }
            shared.settle(Duration::MAX).unwrap();
        }
    }
}

#[test]
fn a_guard_of_a_named_family_goes_on_with_what_came() {
    let mut cache = TokenCache::new();
    cache
        .add(
            &resp(r#"{"access_token":"at","refresh_token":"rt-f","foci":"9","expires_in":3600}"#)
                .client_id("other")
                .environment("idp.example")
                .realm("r")
                .home_account_id("alice")
                .grant_type("authorization_code")
                .requested_scopes(["read"]),
        )
        .unwrap();
    let shared = SharedTokenCache::new(cache);
    let mut guard = shared
        .refresh_guard(&RefreshTokenQuery::new("app", &alice()).family_id("9"), Duration::from_secs(1))
        .unwrap();
    assert_eq!(guard.refresh_token().unwrap().expose(), "rt-f");
    guard
        .save(
            TokenResponse::from_json(r#"{"access_token":"x","refresh_token":"rt-f2","expires_in":3600}"#)
                .unwrap()
                .realm("r"),
        )
        .unwrap();
    let next = guard.refresh_token().map(|t| t.expose().to_owned());
    assert_eq!(next.as_deref(), Some("rt-f2"));
}

#[test]
fn nobody_sends_the_refresh_token_of_another_issuer_s_user() {
    let mut cache = TokenCache::new();
    let a = cache.add(&keycloak("a", "ada", "read", 3600)).unwrap().account().unwrap().clone();
    let b = cache.add(&keycloak("b", "bob", "read", 3600)).unwrap().account().unwrap().clone();
    cache
        .add(
            &resp(r#"{"access_token":"at-ada-extra","refresh_token":"rt-ada-extra","expires_in":3600}"#)
                .home_account_id(a.home_account_id())
                .requested_scopes(["extra"])
                .grant_type("authorization_code")
                .token_endpoint("https://idp.example/realms/a/protocol/openid-connect/token"),
        )
        .unwrap();
    let shared = SharedTokenCache::new(cache);
    let got = shared.acquire(&want(&b, "other"), move |call| {
        let _ = call.form();
        call.answer(
            200,
            None,
            None,
            format!(r#"{{"access_token":"by-{}","expires_in":3600}}"#, call.refresh_token().expose()),
        )
    });
    assert_ne!(got.unwrap().token().expose(), "by-rt-ada-extra");
}

#[test]
fn a_sign_in_at_another_issuer_takes_no_other_row() {
    let mut cache = TokenCache::new();
    let a = cache.add(&keycloak("a", "ada", "read", 3600)).unwrap().account().unwrap().clone();
    cache
        .add(
            &resp(r#"{"access_token":"at-ada2","refresh_token":"rt-ada2","expires_in":3600}"#)
                .home_account_id(a.home_account_id())
                .requested_scopes(["read"])
                .grant_type("authorization_code")
                .token_endpoint("https://idp.example/realms/a/protocol/openid-connect/token"),
        )
        .unwrap();
    let b = cache.add(&keycloak("b", "bob", "read", 3600)).unwrap().account().unwrap().clone();
    let held: Vec<_> = cache.refresh_tokens().map(|t| t.expose().to_owned()).collect();
    let find = |account| cache.find_access_token(&want(account, "read")).map(|t| t.expose().to_owned());
    assert_eq!(held.len(), 2, "{held:?}");
    assert_eq!((find(&a).as_deref(), find(&b).as_deref()), (Some("at-ada2"), Some("at-bob")));
}

#[test]
fn an_outage_is_that_of_the_token_not_of_the_row() {
    let mut cache = TokenCache::new();
    for client in ["app", "app2"] {
        cache
            .add(
                &resp(r#"{"access_token":"at","refresh_token":"rt-f","foci":"1","expires_in":3600}"#)
                    .client_id(client)
                    .environment("login.microsoftonline.com")
                    .realm(T1)
                    .home_account_id("alice")
                    .grant_type("authorization_code")
                    .requested_scopes(["read"]),
            )
            .unwrap();
    }
    let shared = SharedTokenCache::new(cache);
    let log = Log::default();
    for client in ["app", "app2"] {
        let l = log.clone();
        let query =
            AccessTokenQuery::for_account(client, &Account::new("alice", "login.microsoftonline.com"))
                .scopes(["mail"]);
        let _ = shared.acquire(&query, move |call| {
            l.push(&call);
            call.answer(503, None, Some("60"), "")
        });
    }
    assert_eq!(log.all().len(), 1);
}

#[test]
fn an_account_without_issuer_gets_nobody_s_token() {
    let mut cache = TokenCache::new();
    cache.add(&keycloak("a", "ada", "read", 3600)).unwrap();
    cache.add(&keycloak("b", "bob", "admin", 3600)).unwrap();
    let found = cache
        .find_access_token(&want(&Account::new("1", "idp.example"), "admin"))
        .map(|t| t.expose().to_owned());
    assert_eq!(found, None);
}

#[test]
fn what_another_handle_signed_in_meanwhile_is_not_refused() {
    let directory = tempfile::tempdir().unwrap();
    let keys = Arc::new(tokenseal::key_store::MemoryKeyStore::new());
    let open = || {
        tokenseal::PersistedTokenCache::builder("attack")
            .directory(directory.path().join("t"))
            .key_store(keys.clone())
            .open()
            .unwrap()
    };
    let cache = open();
    cache
        .add(&plain("old", "read", 3600).received_at(SystemTime::now() - Duration::from_secs(7200)))
        .unwrap();
    let other = open();
    let _of_the_old_token = cache.acquire(&want(&alice(), "mail"), move |call| {
        if call.refresh_token().expose() == "rt-old" {
            other.add(&plain("new", "read", 3600)).unwrap();
            return call.answer(400, None, None, r#"{"error":"invalid_grant","error_codes":[50173]}"#);
        }
        let _ = call.form();
        call.answer(200, None, None, r#"{"access_token":"good","expires_in":3600}"#)
    });
    let calls = Arc::new(AtomicUsize::new(0));
    let c = calls.clone();
    let second = open().acquire(&want(&alice(), "mail"), move |call| {
        c.fetch_add(1, Ordering::SeqCst);
        let _ = call.form();
        call.answer(200, None, None, r#"{"access_token":"good","expires_in":3600}"#)
    });
    assert!(second.is_ok());
}

#[test]
fn sequences_that_hold() {
    let ago = SystemTime::now() - Duration::from_secs(7200);
    // Sign-out, and sign-in again, while the call is under way: the newer session stays.
    let shared = SharedTokenCache::new(TokenCache::new());
    shared.try_update(|c| c.add(&plain("old", "read", 3600).received_at(ago))).unwrap();
    let s = shared.clone();
    let got = shared.acquire(&want(&alice(), "mail"), move |call| {
        let _ = call.form();
        if call.refresh_token().expose() == "rt-old" {
            s.try_update(|c| {
                c.remove_account(&alice());
                c.add(&plain("new", "read", 3600)).map(drop)
            })
            .unwrap();
            return call.answer(
                200,
                None,
                None,
                r#"{"access_token":"x","expires_in":3600,"refresh_token":"rt-x"}"#,
            );
        }
        call.answer(200, None, None, r#"{"access_token":"y","expires_in":3600,"refresh_token":"rt-y"}"#)
    });
    assert_eq!((got.unwrap().token().expose(), rts(&shared)), ("y", vec!["rt-y".to_owned()]));
    // Rotated, then dead: no older token comes back.
    let shared = SharedTokenCache::new(TokenCache::new());
    shared.try_update(|c| c.add(&plain("old", "read", 3600).received_at(ago))).unwrap();
    shared
        .acquire(&want(&alice(), "a"), |call| {
            let _ = call.form();
            call.answer(200, None, None, r#"{"access_token":"x","expires_in":3600,"refresh_token":"rt-2"}"#)
        })
        .unwrap();
    let log = Log::default();
    let l = log.clone();
    let e = shared
        .acquire(&want(&alice(), "b"), move |call| {
            l.push(&call);
            call.answer(400, None, None, "\u{feff}{\"error\":\"invalid_grant\"}\r\n\t ")
        })
        .unwrap_err();
    assert!(e.is_sign_in_required() && log.all() == ["rt-2"] && rts(&shared).is_empty());
    // Another user's answer that rotates.
    let mut cache = TokenCache::new();
    let a = cache.add(&keycloak("a", "ada", "read", 3600)).unwrap().account().unwrap().clone();
    let shared = SharedTokenCache::new(cache);
    let log = Log::default();
    for _ in 0..3 {
        let l = log.clone();
        let e = shared
            .acquire(&want(&a, "mail"), move |call| {
                l.push(&call);
                let _ = call.form();
                call.answer(
                    200,
                    None,
                    None,
                    format!(
                        r#"{{"access_token":"x","expires_in":60,"refresh_token":"rt-bob","id_token":"{}"}}"#,
                        idt(r#"{"iss":"https://idp.example/realms/a","sub":"2"}"#)
                    ),
                )
            })
            .unwrap_err();
        assert!(e.is_sign_in_required());
    }
    assert_eq!((log.all().len(), rts(&shared)), (1, vec!["rt-ada".to_owned()]));
    // Duplicate members: the last one counts, for the token and its successor alike.
    let shared = SharedTokenCache::new(TokenCache::new());
    shared.try_update(|c| c.add(&plain("old", "read", 3600).received_at(ago))).unwrap();
    let got = shared.acquire(&want(&alice(), "a"), |call| { let _ = call.form(); call.answer(200, None, None, r#"{"access_token":"1","access_token":"2","refresh_token":"r1","refresh_token":"r2","expires_in":"3600.5"}"#) }).unwrap();
    assert_eq!((got.token().expose(), rts(&shared)), ("2", vec!["r2".to_owned()]));
}
