//! The token cache in memory: providers of every kind, lookups, families, removal, saved state.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokenseal::{
    AccessTokenQuery, Account, CacheError, RefreshTokenQuery, Secret, TokenCache, TokenResponse,
};

const NOW: u64 = 1_700_000_000;

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

fn response(json: &str) -> TokenResponse {
    TokenResponse::from_json(json).unwrap().client_id("app").received_at(at(NOW))
}

/// An id token with this `sub`, unsigned.
fn id_token(sub: &str) -> String {
    use base64ct::Encoding as _;
    let part = |text: &str| base64ct::Base64UrlUnpadded::encode_string(text.as_bytes());
    format!(
        "{}.{}.sig",
        part(r#"{"alg":"none"}"#),
        part(&format!(r#"{{"sub":"{sub}","preferred_username":"{sub}@x"}}"#))
    )
}

fn secret(cache: &TokenCache, query: AccessTokenQuery) -> Option<String> {
    cache.find_access_token(&query.at(at(NOW))).map(|token| token.expose().to_owned())
}

#[test]
fn two_realms_of_one_server() {
    let mut cache = TokenCache::new();
    for realm in ["shop", "Shop", "staff"] {
        let json = format!(
            r#"{{"access_token":"at-{realm}","expires_in":600,"refresh_token":"rt-{realm}","id_token":"{}"}}"#,
            id_token("f:1:alice")
        );
        let endpoint = format!("https://sso.example.com/realms/{realm}/protocol/openid-connect/token");
        let added = cache.add(&response(&json).token_endpoint(endpoint).realm(realm)).unwrap();
        assert_eq!(added.account().unwrap().home_account_id(), "f:1:alice");
    }
    let account = &cache.accounts()[0];
    assert_eq!(account.realms(), ["shop", "Shop", "staff"]);
    for realm in ["shop", "Shop", "staff"] {
        let wanted = AccessTokenQuery::for_account("app", account).realm(realm);
        assert_eq!(secret(&cache, wanted), Some(format!("at-{realm}")));
        assert!(cache.find_id_token("app", account, Some(realm)).is_some());
    }
}

#[test]
fn two_ports_of_one_host() {
    let mut cache = TokenCache::new();
    for port in [8080, 8443] {
        let json =
            format!(r#"{{"access_token":"at-{port}","expires_in":600,"id_token":"{}"}}"#, id_token("alice"));
        let response = response(&json)
            .token_endpoint(format!("http://localhost:{port}/realms/x/token"))
            .environment(format!("localhost:{port}"));
        cache.add(&response).unwrap();
    }
    assert_eq!(cache.accounts().len(), 2, "one name, two providers");
    for port in [8080, 8443] {
        let account = Account::new("alice", format!("LOCALHOST:{port}"));
        assert_eq!(
            secret(&cache, AccessTokenQuery::for_account("app", &account)),
            Some(format!("at-{port}"))
        );
    }
    let removed = cache.remove_account(&Account::new("alice", "localhost:8080"));
    assert_eq!((removed.access_tokens(), removed.id_tokens(), removed.accounts()), (1, 1, 1));
    assert_eq!(cache.accounts().len(), 1);
}

#[test]
fn a_provider_without_id_tokens() {
    let endpoint = "https://github.example/login/oauth/access_token";
    let json = r#"{"access_token":"gho","scope":"repo user","token_type":"bearer","refresh_token":"ghr"}"#;
    let mut cache = TokenCache::new();
    let error = cache.add(&response(json).token_endpoint(endpoint)).unwrap_err();
    assert!(matches!(error, CacheError::NoAccount), "{error}");
    let code =
        response(r#"{"access_token":"gho"}"#).token_endpoint(endpoint).grant_type("authorization_code");
    assert!(matches!(cache.add(&code), Err(CacheError::NoAccount)));
    assert!(!cache.has_state_changed() && cache.serialize().json().expose() == b"{}", "nothing was written");

    for user in ["octocat", "hubot"] {
        let json = json.replace("gho", &format!("gho-{user}"));
        let added = cache
            .add(&response(&json).token_endpoint(endpoint).home_account_id(user).username(user))
            .unwrap();
        assert_eq!(added.account().unwrap().username(), user);
    }
    for account in cache.accounts() {
        let wanted = AccessTokenQuery::for_account("app", &account).scopes(["repo"]);
        assert_eq!(secret(&cache, wanted), Some(format!("gho-{}", account.home_account_id())));
    }
    assert_eq!(
        secret(&cache, AccessTokenQuery::for_application("app")),
        None,
        "a user's token is not the application's"
    );
}

#[test]
fn accounts_that_differ_in_case_only_do_not_overwrite_each_other() {
    let mut cache = TokenCache::new();
    let subs = ["AbC", "aBc", "abC", "ABC"];
    for sub in subs {
        let json = format!(
            r#"{{"access_token":"at-{sub}","refresh_token":"rt-{sub}","expires_in":600,"id_token":"{}"}}"#,
            id_token(sub)
        );
        for _again in 0..2 {
            cache.add(&response(&json).token_endpoint("https://idp.example/t/token")).unwrap();
        }
    }
    assert_eq!(cache.accounts().len(), subs.len());
    assert_eq!(cache.refresh_tokens().count(), subs.len());
    for account in cache.accounts() {
        let id = account.home_account_id();
        assert_eq!(secret(&cache, AccessTokenQuery::for_account("app", &account)), Some(format!("at-{id}")));
    }
    let json = cache.serialize().into_json();
    let text: serde_json::Value = serde_json::from_slice(json.expose()).unwrap();
    for section in ["AccessToken", "RefreshToken", "IdToken", "Account"] {
        // Of two members of one name, this reader keeps the last.
        assert_eq!(text[section].as_object().unwrap().len(), subs.len(), "{section}");
    }
    let mut again = TokenCache::new();
    again.deserialize(json).unwrap();
    assert_eq!(again.accounts().len(), subs.len(), "the keys differ");
}

#[test]
fn parts_that_join_to_one_key_are_two_rows() {
    let mut cache = TokenCache::new();
    for (client, realm) in [("a-b", "c"), ("a", "b-c")] {
        let response = response(r#"{"access_token":"x","expires_in":600}"#);
        let response = response.client_id(client).environment("e").realm(realm);
        cache.add(&response).unwrap();
    }
    assert_eq!(cache.access_tokens().count(), 2);
}

#[test]
fn an_expired_token_is_never_found_and_the_skew_counts() {
    let mut cache = TokenCache::new();
    let _ = cache
        .add(&response(r#"{"access_token":"x","expires_in":1000}"#).environment("e").realm("r"))
        .unwrap();
    let found = |now, skew| {
        let query = AccessTokenQuery::for_application("app").at(at(now)).skew(Duration::from_secs(skew));
        cache.find_access_token(&query).is_some()
    };
    let by_default =
        |now| cache.find_access_token(&AccessTokenQuery::for_application("app").at(at(now))).is_some();
    assert!(by_default(NOW + 699) && !by_default(NOW + 700));
    assert!(found(NOW + 999, 0) && !found(NOW + 1000, 0) && !found(NOW + 5000, 0));
    assert!(found(NOW, 999) && !found(NOW, 1000));
    assert!(!found(NOW, u64::MAX), "no overflow");
}

#[test]
fn the_token_that_lasts_longest_comes_first_and_the_very_environment_before_it() {
    let row = |key: &str, environment: &str, expires_on: u64| {
        format!(
            r#""{key}":{{"secret":"{key}","home_account_id":"u","environment":"{environment}","client_id":"app","realm":"r","target":"a b","expires_on":"{expires_on}"}}"#
        )
    };
    let json = format!(
        r#"{{"AccessToken":{{{},{},{}}}}}"#,
        row("short", "login.microsoftonline.com", NOW + 1000),
        row("long", "login.microsoftonline.com", NOW + 2000),
        row("alias", "login.windows.net", NOW + 3000),
    );
    let mut cache = TokenCache::new();
    cache.deserialize(json).unwrap();
    let at_environment =
        |environment| AccessTokenQuery::for_account("app", &Account::new("u", environment)).scopes(["a"]);
    assert_eq!(secret(&cache, at_environment("login.microsoftonline.com")).as_deref(), Some("long"));
    assert_eq!(secret(&cache, at_environment("login.windows.net")).as_deref(), Some("alias"));
    assert_eq!(secret(&cache, at_environment("sts.windows.net")).as_deref(), Some("alias"));
    assert_eq!(secret(&cache, at_environment("login.microsoftonline.us")), None);
    let scopes = |scopes: &[&str]| at_environment("login.windows.net").scopes(scopes.iter().copied());
    assert!(secret(&cache, scopes(&["b"])).is_some() && secret(&cache, scopes(&["b", "a"])).is_some());
    assert!(secret(&cache, scopes(&["b", "c"])).is_none());
}

fn family_response(client: &str, foci: &str, refresh_token: &str, now: u64) -> TokenResponse {
    let json = format!(r#"{{"access_token":"a","expires_in":600,"refresh_token":"{refresh_token}"{foci}}}"#);
    response(&json).client_id(client).environment("e").realm("r").home_account_id("u").received_at(at(now))
}

fn refresh_tokens(cache: &TokenCache, client: &str) -> Vec<String> {
    let found = cache.find_refresh_tokens(&RefreshTokenQuery::new(client, &Account::new("u", "e")));
    found.iter().map(|token| token.expose().to_owned()).collect()
}

#[test]
fn refresh_tokens_come_in_the_order_of_msal() {
    let mut cache = TokenCache::new();
    let family = r#","foci":"1""#;
    cache.add(&family_response("one", family, "family-old", NOW)).unwrap();
    cache.add(&family_response("two", family, "family-new", NOW + 10)).unwrap();
    cache.add(&family_response("orphan", "", "orphan's own", NOW + 20)).unwrap();
    assert_eq!(refresh_tokens(&cache, "one"), ["family-new", "family-old"]);
    assert_eq!(refresh_tokens(&cache, "two"), ["family-new", "family-old"]);
    assert_eq!(refresh_tokens(&cache, "orphan"), ["orphan's own"], "it is known to be in no family");
    assert_eq!(refresh_tokens(&cache, "unknown"), ["family-new", "family-old"], "it may be in the family");
    let own = family_response("two", "", "own", NOW + 30).requested_scopes(["other"]);
    cache.add(&own).unwrap();
    assert_eq!(refresh_tokens(&cache, "two"), ["family-new", "family-old", "own"]);
    let query = RefreshTokenQuery::new("orphan", &Account::new("u", "e")).family_id("1");
    assert_eq!(cache.find_refresh_tokens(&query).len(), 3, "the caller knows better");
}

#[test]
fn an_answer_without_foci_keeps_the_family() {
    let mut cache = TokenCache::new();
    cache.add(&family_response("one", r#","foci":"1""#, "f", NOW)).unwrap();
    cache.add(&family_response("one", "", "g", NOW + 1)).unwrap();
    assert_eq!(cache.find_app_metadata("one", "E").unwrap().family_id(), Some("1"));
    assert!(cache.find_app_metadata("two", "e").is_none());
}

#[test]
fn a_rotated_refresh_token_is_gone_from_every_row() {
    let mut cache = TokenCache::new();
    for scope in ["a", "b"] {
        cache.add(&family_response("app", "", "old", NOW).requested_scopes([scope])).unwrap();
    }
    assert_eq!(refresh_tokens(&cache, "app"), ["old", "old"]);
    let rotated =
        family_response("app", "", "new", NOW + 5).requested_scopes(["c"]).sent_refresh_token("old");
    cache.add(&rotated).unwrap();
    assert_eq!(refresh_tokens(&cache, "app"), ["new", "new"]);
    let text = cache.serialize().into_json();
    assert!(!std::str::from_utf8(text.expose()).unwrap().contains("\"old\""));
}

#[test]
fn removing_one_token_leaves_a_newer_one() {
    let mut cache = TokenCache::new();
    cache.add(&family_response("app", "", "old", NOW)).unwrap();
    let account = Account::new("u", "e");
    let old = cache.find_refresh_token(&RefreshTokenQuery::new("app", &account)).unwrap();
    let old_access = cache.access_tokens().next().unwrap();
    let newer = family_response("app", "", "new", NOW + 5).sent_refresh_token("old");
    cache.add(&newer).unwrap();
    assert_eq!(cache.remove_refresh_token(&old).total(), 0);
    assert_eq!(refresh_tokens(&cache, "app"), ["new"]);
    assert_eq!(cache.remove_access_token(&old_access).access_tokens(), 1, "its secret is the same");
    assert_eq!(cache.remove_access_token(&old_access).total(), 0);
}

#[test]
fn each_removal_says_what_it_removed() {
    let mut cache = TokenCache::new();
    cache.add(&family_response("app", "", "rt", NOW)).unwrap();
    let app = response(r#"{"access_token":"app","expires_in":10}"#).environment("e").realm("r");
    cache.add(&app.grant_type("client_credentials")).unwrap();
    assert_eq!(cache.remove_app_tokens("other").total(), 0);
    let removed = cache.remove_app_tokens("app");
    assert_eq!((removed.access_tokens(), removed.total()), (1, 1));
    assert_eq!(cache.purge_expired(at(NOW + 599)).total(), 0);
    assert_eq!(cache.purge_expired(at(NOW + 600)).access_tokens(), 1);
    for user in ["one", "two"] {
        let json = format!(r#"{{"access_token":"{user}","id_token":"{}"}}"#, id_token(user));
        cache.add(&response(&json).environment("e").realm("r")).unwrap();
    }
    let removed = cache.remove_account(&Account::new("one", "e"));
    assert_eq!((removed.id_tokens(), removed.accounts(), removed.total()), (1, 1, 3));
    let removed = cache.remove_account(&Account::new("two", "e"));
    assert_eq!((removed.access_tokens(), removed.app_metadata(), removed.total()), (1, 0, 3));
    let removed = cache.clear();
    assert_eq!((removed.access_tokens(), removed.id_tokens()), (0, 0));
    assert_eq!(
        (removed.refresh_tokens(), removed.accounts(), removed.app_metadata(), removed.total()),
        (1, 1, 1, 3)
    );
    assert_eq!(cache.serialize().json().expose(), b"{}");
    assert_eq!(cache.clear().total(), 0);
}

#[test]
fn an_extended_lifetime_keeps_a_token_from_being_purged() {
    let mut cache = TokenCache::new();
    let json = r#"{"access_token":"x","expires_in":"100","ext_expires_in":"900"}"#;
    cache.add(&response(json).environment("e").realm("r")).unwrap();
    assert_eq!(cache.purge_expired(at(NOW + 899)).total(), 0);
    assert_eq!(cache.purge_expired(at(NOW + 900)).total(), 1);
}

#[test]
fn only_the_caller_says_that_a_change_is_safe() {
    let mut cache = TokenCache::new();
    assert!(!cache.has_state_changed());
    cache.add(&family_response("app", "", "one", NOW)).unwrap();
    let saved = cache.serialize();
    assert!(cache.has_state_changed(), "a save that fails after this is not forgotten");
    cache.add(&family_response("app", "", "two", NOW + 1)).unwrap();
    cache.mark_saved(&saved);
    assert!(cache.has_state_changed(), "the second change is not in what was saved");
    let saved = cache.serialize();
    cache.mark_saved(&saved);
    assert!(!cache.has_state_changed());
    cache.deserialize(saved.into_json()).unwrap();
    assert!(!cache.has_state_changed());
    let _ = cache.remove_account(&Account::new("nobody", "e"));
    assert!(!cache.has_state_changed(), "nothing was removed");
    let _ = cache.remove_account(&Account::new("u", "e"));
    assert!(cache.has_state_changed());
}

#[test]
fn of_two_tokens_that_last_as_long_the_first_is_found_and_none_without_a_secret() {
    let row = |key: &str, secret: &str, expires_on: u64| {
        format!(
            r#""{key}":{{"secret":"{secret}","environment":"e","client_id":"app","realm":"r","target":"['odd a","expires_on":"{expires_on}"}}"#
        )
    };
    let rows = [row("1", "", NOW + 3_000), row("2", "first", NOW + 2_000), row("3", "second", NOW + 2_000)]
        .join(",");
    let mut cache = TokenCache::new();
    cache.deserialize(format!(r#"{{"AccessToken":{{{rows}}}}}"#)).unwrap();
    assert_eq!(
        secret(&cache, AccessTokenQuery::for_application("app").any_scope()).as_deref(),
        Some("first")
    );
    assert_eq!(cache.access_tokens().count(), 2);
    // A printed list ends as it begins.
    assert!(secret(&cache, AccessTokenQuery::for_application("app").scopes(["['odd"])).is_some());
}

#[test]
fn a_clone_is_a_cache_of_its_own() {
    let mut cache = TokenCache::new();
    cache.add(&family_response("app", "", "one", NOW)).unwrap();
    let clone = cache.clone();
    let _ = cache.clear();
    assert_eq!(clone.refresh_tokens().count(), 1);
    assert_eq!(cache.refresh_tokens().count(), 0);
}

#[test]
fn responses_that_cannot_be_used_are_errors_that_quote_nothing() {
    let mut cache = TokenCache::new();
    for body in ["", "[]", "null", "{\"access_token\":\"planted\"", "planted", "{\"a\":planted}"] {
        let error = TokenResponse::from_json(body).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("planted"));
    }
    for body in [
        r#"{"access_token":7}"#,
        r#"{"access_token":["planted"]}"#,
        r#"{"access_token":"a","id_token":"planted"}"#,
        r#"{"access_token":"a","client_info":"planted!"}"#,
        r#"{"access_token":"a","refresh_token":{"a":"planted"}}"#,
    ] {
        let error = cache.add(&response(body).environment("e").realm("r")).unwrap_err();
        assert!(matches!(error, CacheError::UnusableField { .. }), "{body}: {error}");
        assert!(!format!("{error} {error:?}").contains("planted"), "{error:?}");
    }
    for url in ["http://example.com/t/token", "idp.example/t", "https://idp.example/"] {
        let response = response(r#"{"access_token":"a"}"#).token_endpoint(url);
        assert!(matches!(cache.add(&response), Err(CacheError::TokenEndpoint { .. })), "{url}");
    }
    assert!(!cache.has_state_changed());
}

#[test]
fn an_id_token_that_cannot_be_read_is_taken_where_the_account_is_named() {
    let encrypted = response(r#"{"access_token":"a","id_token":"e.n.c.r.y"}"#).environment("e").realm("r");
    let mut cache = TokenCache::new();
    cache.add(&encrypted.home_account_id("u")).unwrap();
    assert!(cache.find_id_token("app", &Account::new("u", "e"), None).is_some());
}

#[test]
fn oauth2_responses_are_taken_as_they_are() {
    use oauth2::basic::BasicTokenType;
    use oauth2::{AccessToken, EmptyExtraTokenFields, RefreshToken, Scope, StandardTokenResponse};
    let mut answer = StandardTokenResponse::new(
        AccessToken::new("at".into()),
        BasicTokenType::Bearer,
        EmptyExtraTokenFields {},
    );
    answer.set_expires_in(Some(&Duration::from_secs(3600)));
    answer.set_refresh_token(Some(RefreshToken::new("rt".into())));
    answer.set_scopes(Some(vec![Scope::new("b".into()), Scope::new("a".into())]));
    let response = TokenResponse::from_serialize(&answer).unwrap().client_id("app").received_at(at(NOW));
    let mut cache = TokenCache::new();
    cache.add(&response.environment("e").realm("r").home_account_id("u")).unwrap();
    let wanted = AccessTokenQuery::for_account("app", &Account::new("u", "e")).scopes(["a", "b"]).at(at(NOW));
    let token = cache.find_access_token(&wanted).unwrap();
    assert_eq!((token.expose(), token.expires_on()), ("at", at(NOW + 3600)));
    assert_eq!(refresh_tokens(&cache, "app"), ["rt"]);
}

#[test]
fn no_secret_is_in_any_debug() {
    let json = format!(
        r#"{{"access_token":"planted-a","refresh_token":"planted-r","id_token":"{}","expires_in":600}}"#,
        id_token("alice")
    );
    let response = response(&json)
        .environment("e")
        .realm("r")
        .token_endpoint("https://user:planted-u@idp.example/t")
        .parameter("subject_token", "planted-t")
        .parameter("client_secret", "planted-c")
        .parameter("password", "planted-p");
    let mut cache = TokenCache::new();
    let refused = cache.add(&response).unwrap_err();
    let sent = TokenResponse::from_json("{}").unwrap().sent_refresh_token("planted-s");
    let response = response.token_endpoint("https://idp.example/t");
    let added = cache.add(&response).unwrap();
    let account = added.account().unwrap();
    let query = AccessTokenQuery::for_account("app", account).at(at(NOW));
    let token = cache.find_access_token(&query.parameters([("subject_token", "planted-t")])).unwrap();
    let refresh = cache.find_refresh_token(&RefreshTokenQuery::new("app", account)).unwrap();
    let id = cache.find_id_token("app", account, None).unwrap();
    let shown = format!(
        "{refused:?} {refused} {sent:?} {response:?} {cache:?} {added:?} {token:?} {refresh:?} {id:?} {:?} {:#?}",
        cache.serialize(),
        cache
    );
    assert!(!shown.contains("planted") && !shown.contains("eyJ"), "{shown}");
    let kept = cache.serialize().into_json();
    let kept = std::str::from_utf8(kept.expose()).unwrap();
    assert!(!kept.contains("planted-c") && !kept.contains("planted-p") && !kept.contains("planted-s"));
    assert!(!kept.contains("planted-t"), "only its hash is kept");
}

#[test]
fn many_changes_leave_the_cache_as_a_fresh_one_would_be() {
    let mut cache = TokenCache::new();
    for round in 0..2_000_u64 {
        let user = format!("user-{}", round % 7);
        let json =
            format!(r#"{{"access_token":"at-{round}","refresh_token":"rt-{round}","expires_in":600}}"#);
        let response = response(&json).environment("e").realm("r").home_account_id(user.as_str());
        cache.add(&response.username(format!("name-{}", round % 11))).unwrap();
        if round % 5 == 0 {
            let _ = cache.remove_account(&Account::new(format!("user-{}", (round + 3) % 7), "e"));
        }
        let saved = cache.serialize();
        let mut fresh = TokenCache::new();
        fresh.deserialize(saved.into_json()).unwrap();
        assert_eq!(cache.serialize().json().expose(), fresh.serialize().json().expose());
        assert_eq!(cache.accounts(), fresh.accounts());
        let account = Account::new(user, "e");
        let query = AccessTokenQuery::for_account("app", &account);
        assert_eq!(secret(&cache, query.clone()), Some(format!("at-{round}")));
        assert_eq!(secret(&fresh, query), Some(format!("at-{round}")));
        let name = format!("name-{}", round % 11);
        let named = tokenseal::cache::AccountQuery::new().username(name);
        assert_eq!(cache.find_accounts(&named), fresh.find_accounts(&named));
    }
}

#[test]
fn a_refresh_does_not_bring_a_signed_out_account_back() {
    let mut cache = TokenCache::new();
    let _ = cache.add(&family_response("app", "", "rt0", NOW)).unwrap();
    let late = || family_response("app", "", "rt1", NOW + 9).sent_refresh_token("rt0");
    assert!(!cache.clone().add(&late()).unwrap().is_signed_out());
    cache.remove_account(&Account::new("u", "e"));
    let before = cache.serialize();
    for late in [late(), family_response("app", "", "rt1", NOW + 9).without_account()] {
        let added = cache.add(&late).unwrap();
        assert!(added.is_signed_out() && added.account().is_none());
    }
    assert_eq!(cache.serialize().json().expose(), before.json().expose());
    assert_eq!((cache.refresh_tokens().count(), cache.access_tokens().count()), (0, 0));
}

#[test]
fn a_refresh_token_comes_back_to_an_account_that_lost_only_it() {
    let mut cache = TokenCache::new();
    cache.add(&family_response("app", "", "rt0", NOW)).unwrap();
    cache.add(&family_response("other", "", "other's", NOW)).unwrap();
    let query = RefreshTokenQuery::new("app", &Account::new("u", "e"));
    let lost = cache.find_refresh_token(&query).unwrap();
    assert_eq!(cache.remove_refresh_token(&lost).total(), 1);
    let added = cache.add(&family_response("app", "", "rt1", NOW + 9).sent_refresh_token("rt0")).unwrap();
    assert!(!added.is_signed_out());
    assert_eq!(refresh_tokens(&cache, "app"), ["rt1"]);
    assert_eq!(refresh_tokens(&cache, "other"), ["other's"]);
}

#[test]
fn a_refresh_of_an_old_session_leaves_the_token_of_a_newer_sign_in() {
    let mut cache = TokenCache::new();
    let _ = cache.add(&family_response("app", "", "rt0", NOW)).unwrap();
    cache.remove_account(&Account::new("u", "e"));
    let _ = cache.add(&family_response("app", "", "newer", NOW + 5)).unwrap();
    let _ = cache.add(&family_response("app", "", "rt1", NOW + 9).sent_refresh_token("rt0")).unwrap();
    assert_eq!(refresh_tokens(&cache, "app"), ["newer"]);
}

#[test]
fn an_odd_foci_harms_nothing() {
    let deep = format!(r#","foci":{}1{}"#, "[".repeat(120), "]".repeat(120));
    for (foci, family) in [
        (deep.as_str(), Some("1")),
        (r#","foci":"""#, Some("1")),
        (r#","foci":false"#, Some("1")),
        (r#","foci":null"#, Some("1")),
        (r#","foci":2"#, Some("2")),
    ] {
        let mut cache = TokenCache::new();
        let _ = cache.add(&family_response("one", r#","foci":"1""#, "f", NOW)).unwrap();
        let _ = cache.add(&family_response("one", foci, "g", NOW + 1)).unwrap();
        assert_eq!(cache.clone().find_app_metadata("one", "e").unwrap().family_id(), family, "{foci}");
    }
}

#[test]
fn rows_that_do_not_say_whose_or_where_they_are_can_be_removed() {
    let json = r#"{"RefreshToken":{
        "a":{"secret":"ownerless","home_account_id":null,"environment":"e","client_id":"app"},
        "b":{"secret":"placeless","home_account_id":"u","client_id":"app"},
        "c":{"secret":"elsewhere","home_account_id":"u","environment":"f","client_id":"app"}}}"#;
    let mut cache = TokenCache::new();
    cache.deserialize(json).unwrap();
    let ownerless = cache.refresh_tokens().next().unwrap();
    assert_eq!(cache.remove_refresh_token(&ownerless).refresh_tokens(), 1);
    assert_eq!(cache.remove_account(&Account::new("u", "e")).refresh_tokens(), 1);
    assert_eq!(
        cache.refresh_tokens().map(|token| token.expose().to_owned()).collect::<Vec<_>>(),
        ["elsewhere"]
    );
}

#[test]
fn adding_costs_the_same_with_many_tokens_of_one_owner() {
    let mut cache = TokenCache::new();
    let mut add = |count: usize, from: usize| {
        let started = std::time::Instant::now();
        for number in from..from + count {
            let app = response(r#"{"access_token":"x","expires_in":600}"#).environment("e").realm("r");
            let _ = cache.add(&app.parameter("fmi_path", number.to_string())).unwrap();
            let user = response(r#"{"access_token":"x","expires_in":600}"#).environment("e").realm("r");
            let _ = cache.add(&user.home_account_id("u").requested_scopes([number.to_string()])).unwrap();
        }
        started.elapsed()
    };
    let first = add(500, 0);
    add(7_000, 500);
    let last = add(500, 7_500);
    assert!(
        last < first * 20 + Duration::from_millis(200),
        "{first:?} for the first 500, {last:?} for the last"
    );
}

#[test]
fn a_refresh_that_does_not_say_whose_it_is_belongs_to_the_owner_of_the_token_sent() {
    let mut cache = TokenCache::new();
    for user in ["alice", "bob"] {
        let json = format!(r#"{{"access_token":"a","expires_in":600,"refresh_token":"rt-{user}"}}"#);
        let response = response(&json).environment("e").realm("r").home_account_id(user);
        cache.add(&response).unwrap();
    }
    let refresh = |body: &str| response(body).environment("e").realm("r").sent_refresh_token("rt-alice");
    let rotated = r#"{"access_token":"new","expires_in":900,"refresh_token":"rt2-alice"}"#;
    cache.add(&refresh(rotated).grant_type("refresh_token")).unwrap();
    let mut held: Vec<_> = cache.refresh_tokens().map(|token| token.expose().to_owned()).collect();
    held.sort();
    assert_eq!(held, ["rt-bob", "rt2-alice"]);
    let alice = AccessTokenQuery::for_account("app", &Account::new("alice", "e"));
    assert_eq!(secret(&cache, alice).as_deref(), Some("new"));
    assert_eq!(
        secret(&cache, AccessTokenQuery::for_application("app")),
        None,
        "nobody's token is the application's"
    );
    // The token that was sent is known no more: then nothing says whose the new ones are.
    let unknown = r#"{"access_token":"new","expires_in":900}"#;
    assert!(matches!(cache.add(&refresh(unknown)), Err(CacheError::NoAccount)));
}

#[test]
fn an_answer_to_a_refresh_that_is_added_again_belongs_where_it_did() {
    let mut cache = TokenCache::new();
    let sign_in = r#"{"access_token":"first","refresh_token":"rt1","expires_in":1,"scope":"read"}"#;
    let sign_in = response(sign_in).environment("idp.example").realm("tenant").home_account_id("alice");
    cache.add(&sign_in).unwrap();
    let answer = response(r#"{"access_token":"second","refresh_token":"rt2","expires_in":3600}"#);
    let answer = answer.sent_refresh_token(Secret::from("rt1"));
    for _ in 0..2 {
        cache.add(&answer).unwrap();
        let account = Account::new("alice", "idp.example");
        let wanted = AccessTokenQuery::for_account("app", &account).realm("tenant").scopes(["read"]);
        assert_eq!(secret(&cache, wanted).as_deref(), Some("second"));
        assert_eq!(cache.access_tokens().count(), 1);
    }
}
