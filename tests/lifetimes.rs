//! How long a token lives, as its response says, or does not say, or says in ways of its own.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokenseal::{AccessTokenQuery, Account, CacheError, TokenCache, TokenResponse};

const NOW: u64 = 1_700_000_000;
const NEVER: u64 = 253_402_300_799;

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

fn response(json: &str) -> TokenResponse {
    TokenResponse::from_json(json)
        .unwrap()
        .client_id("app")
        .environment("idp.example")
        .realm("r")
        .requested_scopes(["read"])
        .received_at(at(NOW))
}

fn of_alice(json: &str) -> TokenResponse {
    response(json).home_account_id("alice").grant_type("authorization_code")
}

/// When the one access token of a cache expires.
fn expires_on(cache: &TokenCache) -> u64 {
    let tokens: Vec<_> = cache.access_tokens().collect();
    assert_eq!(tokens.len(), 1);
    tokens[0].expires_on().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn lifetime(response: &TokenResponse) -> u64 {
    let mut cache = TokenCache::new();
    cache.add(response).unwrap();
    expires_on(&cache) - NOW
}

fn wanted() -> AccessTokenQuery {
    AccessTokenQuery::for_account("app", &Account::new("alice", "idp.example")).scopes(["read"])
}

/// F6: there is nothing to renew it by, for it does not end.
#[test]
fn a_user_s_token_without_a_lifetime_and_without_a_refresh_token_has_no_end() {
    for further in ["", r#","expires_in":null"#, r#","expires_in":"""#] {
        let mut cache = TokenCache::new();
        cache.add(&of_alice(&format!(r#"{{"access_token":"at"{further}}}"#))).unwrap();
        assert_eq!(expires_on(&cache), NEVER, "{further}");
        assert!(cache.find_access_token(&wanted().at(at(NOW + 1_000_000_000))).is_some());
        assert_eq!(cache.purge_expired(at(NOW + 1_000_000_000)).total(), 0);
    }
    assert_eq!(lifetime(&of_alice(r#"{"access_token":"at","refresh_token":"rt"}"#)), 600);
    assert_eq!(lifetime(&response(r#"{"access_token":"at"}"#)), 600, "an application's own");
    let mut cache = TokenCache::new();
    cache.add(&of_alice(r#"{"refresh_token":"rt"}"#)).unwrap();
    cache.add(&of_alice(r#"{"access_token":"at"}"#)).unwrap();
    assert_eq!(expires_on(&cache), NOW + 600, "the cache has a refresh token");
}

#[test]
fn a_lifetime_that_cannot_be_read_is_msal_s_default() {
    for unreadable in [r#""3599s""#, r#""PT1H""#, r#""3,599""#, "true", "[1]", "{}", r#""Infinity""#] {
        assert_eq!(
            lifetime(&of_alice(&format!(r#"{{"access_token":"at","expires_in":{unreadable}}}"#))),
            600
        );
    }
    assert_eq!(lifetime(&of_alice(r#"{"access_token":"at","expires_on":"soon"}"#)), 600);
    assert_eq!(lifetime(&of_alice(r#"{"access_token":"at","expires_in":"x","expires_on":1700000900}"#)), 900);
    for readable in [r#""3599""#, "3599.9", r#"" 3599 ""#, "3.599e3"] {
        assert_eq!(
            lifetime(&of_alice(&format!(r#"{{"access_token":"at","expires_in":{readable}}}"#))),
            3_599
        );
    }
}

/// D3: Azure App Service, and libraries that count milliseconds.
#[test]
fn a_point_in_time_is_read_in_seconds_milliseconds_and_as_a_date() {
    for expires_on in [
        "1700000900",
        r#""1700000900""#,
        "1700000900000",
        r#""11/14/2023 22:28:20 +00:00""#,
        r#""2023-11-14T23:28:20+01:00""#,
    ] {
        let json = format!(r#"{{"access_token":"at","expires_on":{expires_on},"refresh_token":"rt"}}"#);
        assert_eq!(lifetime(&of_alice(&json)), 900, "{expires_on}");
    }
}

#[test]
fn the_program_may_name_a_lifetime_an_end_or_none() {
    let json = r#"{"access_token":"at","expires_in":60,"refresh_token":"rt"}"#;
    assert_eq!(lifetime(&of_alice(json).lifetime(Duration::from_secs(7_200))), 7_200);
    assert_eq!(lifetime(&of_alice(json).expires_on(at(NOW + 5))), 5);
    assert_eq!(lifetime(&of_alice(json).without_expiry()), NEVER - NOW);
}

/// F9: hints never cost tokens.
#[test]
fn what_is_only_a_hint_counts_as_absent_where_it_cannot_be_read() {
    for hint in [
        r#""refresh_in":"PT30M""#,
        r#""ext_expires_in":{}"#,
        r#""token_type":["Bearer"]"#,
        r#""scope":7"#,
        r#""scope":{}"#,
        r#""foci":{}"#,
    ] {
        let mut cache = TokenCache::new();
        cache.add(&of_alice(&format!(r#"{{"access_token":"at","expires_in":3600,{hint}}}"#))).unwrap();
        let token = cache.find_access_token(&wanted().at(at(NOW))).unwrap();
        assert_eq!((token.token_type(), token.refresh_on()), ("Bearer", None), "{hint}");
    }
    let mut cache = TokenCache::new();
    cache.add(&of_alice(r#"{"access_token":"at","expires_in":3600,"scope":["write","read"]}"#)).unwrap();
    assert!(
        cache.find_access_token(&wanted().scopes(["write", "read"]).at(at(NOW))).is_some(),
        "Twitch's list"
    );
    // Whatever the response says, where the program knows better.
    let named = of_alice(r#"{"access_token":"at","scope":{}}"#).granted_scopes(["read"]);
    assert!(TokenCache::new().add(&named).is_ok());
}

/// F10: an expired one is kept only where none lives.
#[test]
fn a_token_that_has_expired_takes_the_place_of_no_living_one() {
    for expires_in in ["0", "-99", r#""0""#] {
        let mut cache = TokenCache::new();
        cache.add(&of_alice(r#"{"access_token":"living","expires_in":3600,"refresh_token":"rt"}"#)).unwrap();
        let json =
            format!(r#"{{"access_token":"expired","expires_in":{expires_in},"refresh_token":"rotated"}}"#);
        let added = cache.add(&of_alice(&json)).unwrap();
        assert!(added.has_expired());
        assert_eq!(cache.find_access_token(&wanted().at(at(NOW))).unwrap().expose(), "living");
        assert_eq!(cache.refresh_tokens().next().unwrap().expose(), "rotated");
        assert!(cache.add(&of_alice(&json).received_at(at(NOW + 3_600))).unwrap().has_expired());
        assert_eq!(cache.access_tokens().next().unwrap().expose(), "expired", "nothing lives there any more");
    }
}

/// F8: a clock that was ahead at the sign-in.
#[test]
fn a_token_that_was_cached_in_the_future_is_not_fresh() {
    let year = 365 * 24 * 3_600;
    for (ahead, is_found) in [(5 * year, false), (24 * 3_600, false), (301, false), (300, true), (0, true)] {
        let mut cache = TokenCache::new();
        let response = of_alice(r#"{"access_token":"at","expires_in":3600}"#).received_at(at(NOW + ahead));
        cache.add(&response).unwrap();
        assert_eq!(cache.find_access_token(&wanted().at(at(NOW))).is_some(), is_found, "{ahead} s ahead");
    }
}

/// F5: an error is no grant.
#[test]
fn a_response_without_a_token_or_with_an_error_writes_nothing() {
    let mut cache = TokenCache::new();
    for body in [
        r#"{"error":"authorization_pending"}"#,
        r#"{"ok":false,"error":"invalid_code"}"#,
        r#"{"ok":false,"access_token":"at"}"#,
        r#"{"error":{"code":"x y"},"access_token":"at"}"#,
    ] {
        let error = cache.add(&of_alice(body)).unwrap_err();
        assert!(matches!(error, CacheError::ErrorResponse { .. }), "{body}: {error}");
    }
    for body in ["{}", r#"{"access_token":""}"#, r#"{"access_token":null,"scope":"read"}"#] {
        assert!(matches!(cache.add(&of_alice(body)), Err(CacheError::NoTokens)), "{body}");
    }
    assert!(!cache.has_state_changed() && cache.accounts().is_empty());
    assert_eq!(cache.serialize().json().expose(), b"{}");
    let error = cache.add(&of_alice(r#"{"error":"authorization_pending"}"#)).unwrap_err().to_string();
    assert!(error.contains("authorization_pending"), "{error}");
    let error = cache.add(&of_alice(r#"{"error":"the token eyJplanted is bad"}"#)).unwrap_err().to_string();
    assert!(!error.contains("planted"), "{error}");
}

/// D8: RFC 8259 section 8.1 lets a reader skip it.
#[test]
fn a_byte_order_mark_is_skipped() {
    let mut cache = TokenCache::new();
    cache.add(&of_alice("\u{feff}{\"access_token\":\"at\",\"expires_in\":60}")).unwrap();
    let mut copy = TokenCache::new();
    let json = String::from_utf8(cache.serialize().json().expose().to_vec()).unwrap();
    copy.deserialize(format!("\u{feff}{json}")).unwrap();
    assert_eq!(copy.access_tokens().count(), 1);
    assert_eq!(copy.serialize().json().expose(), json.as_bytes(), "and not written back");
}

/// R12, D1, D2, through the cache.
#[test]
fn scopes_are_compared_as_their_providers_mean_them() {
    let found = |environment: &str, granted: &str, asked: &[&str], further: &str| {
        let mut cache = TokenCache::new();
        let json = format!(r#"{{"access_token":"at","expires_in":3600,"scope":"{granted}"{further}}}"#);
        cache.add(&of_alice(&json).environment(environment)).unwrap();
        let account = Account::new("alice", environment);
        let query = AccessTokenQuery::for_account("app", &account).scopes(asked.iter().copied()).at(at(NOW));
        cache.find_access_token(&query).is_some()
    };
    let entra = "login.microsoftonline.com";
    assert!(found(entra, "User.Read", &["user.read", "offline_access"], ""));
    assert!(!found("idp.example", "User.Read", &["user.read"], ""));
    assert!(found("idp.example", "read write", &["read write"], ""), "two scopes in one text");
    assert!(found("github.com", "repo,gist", &["gist"], ""));
    let id_token = r#","id_token":"e30.eyJzdWIiOiJ4In0.x""#;
    assert!(found("idp.example", "read", &["openid", "profile", "read"], id_token));
    assert!(!found("idp.example", "read", &["openid", "profile", "read"], ""));
    assert!(!found("idp.example", "read", &["openid"], id_token));
}
