//! Caches of the five SDKs are read, searched, signed out of and written back unchanged.
//!
//! The caches of Python and Node are real. Those of .NET, Go and Java are synthetic: written by hand
//! from the documented shapes of their keys and fields.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use tokenseal::{
    AccessTokenQuery, Account, CacheError, RefreshTokenQuery, TokenCache, TokenResponse,
    cache::{AccountQuery, EnvironmentAliases},
};

const CLIENT: &str = "d3adb33f-c0de-ed0c-c0de-deadb33fc0d3";
const TENANT: &str = "11111111-aaaa-4aaa-8aaa-111111111111";

fn fixture(name: &str) -> String {
    std::fs::read_to_string(format!("{}/tests/fixtures/{name}.json", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

fn load(json: &str) -> TokenCache {
    let mut cache = TokenCache::new();
    cache.deserialize(json).unwrap();
    cache
}

fn written(cache: &TokenCache) -> Value {
    serde_json::from_slice(cache.serialize().json().expose()).unwrap()
}

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

/// Every token and account of a dialect is found, and goes at a sign-out.
fn check_dialect(json: &str, environment: &str, now: u64, access: &str, refresh: &str) {
    let mut cache = load(json);
    let printed = |value: &Value| serde_json::to_string(value).unwrap();
    let original: Value = serde_json::from_str(json).unwrap();
    assert_eq!(printed(&written(&cache)), printed(&original), "a round trip changes nothing");

    let account = cache.accounts().remove(0);
    assert_eq!(account.environment(), environment);
    assert_eq!(account.username(), "alice@contoso.com");
    let wanted =
        AccessTokenQuery::for_account(CLIENT, &account).realm(TENANT).scopes(["User.Read"]).at(at(now));
    assert_eq!(cache.find_access_token(&wanted).unwrap().expose(), access);
    let found = cache.find_refresh_token(&RefreshTokenQuery::new(CLIENT, &account)).unwrap();
    assert_eq!(found.expose(), refresh);
    assert!(cache.find_id_token(CLIENT, &account, Some(TENANT)).is_some());

    // A renewed token takes the place of the row, whatever its key looks like.
    let rows = cache.access_tokens().count();
    let response =
        TokenResponse::from_json(r#"{"access_token":"renewed","expires_in":3600,"refresh_token":"rotated"}"#)
            .unwrap()
            .client_id(CLIENT)
            .environment(environment)
            .realm(TENANT)
            .home_account_id(account.home_account_id())
            .granted_scopes(
                cache.find_access_token(&wanted).unwrap().scopes().map(str::to_owned).collect::<Vec<_>>(),
            )
            .sent_refresh_token(refresh)
            .grant_type("refresh_token")
            .received_at(at(now));
    cache.add(&response).unwrap();
    assert_eq!(cache.access_tokens().count(), rows, "no second row for the same token");
    assert_eq!(cache.find_access_token(&wanted).unwrap().expose(), "renewed");
    let refresh_tokens: Vec<_> = cache.refresh_tokens().map(|token| token.expose().to_owned()).collect();
    assert_eq!(refresh_tokens, ["rotated"], "the token that was sent is nowhere any more");
    let rows = written(&cache)["RefreshToken"].as_object().unwrap().clone();
    let renewed = rows.values().find(|row| row["secret"] == "rotated").unwrap();
    assert_eq!(renewed["last_modification_time"], now.to_string());

    let removed = cache.remove_account(&account);
    assert!(removed.access_tokens() >= 1 && removed.refresh_tokens() == 1 && removed.accounts() == 1);
    let left = written(&cache);
    for section in ["AccessToken", "RefreshToken", "IdToken", "Account"] {
        assert_eq!(left[section].as_object().map_or(0, serde_json::Map::len), 0, "{section}");
    }
    assert!(cache.accounts().is_empty());
}

#[test]
fn python() {
    let json = fixture("01_single_account_aad");
    check_dialect(
        &json,
        "login.microsoftonline.com",
        1_700_000_000,
        "at-secret-uid-alice-11111111-aaaa-4aaa-8aaa-111111111111",
        "rt-secret-uid-alice",
    );
}

#[test]
fn node() {
    check_dialect(
        &fixture("20_msal_node_user"),
        "login.windows.net",
        1_795_185_576,
        "node-user-at",
        "node-user-rt",
    );
}

#[test]
fn dotnet() {
    check_dialect(&fixture("synthetic_dotnet"), "login.windows.net", 1_700_000_000, "dotnet+at", "dotnet-rt");
}

#[test]
fn go() {
    check_dialect(&fixture("synthetic_go"), "login.microsoftonline.com", 1_700_000_000, "go-at", "go-rt");
}

#[test]
fn java() {
    check_dialect(
        &fixture("synthetic_java"),
        "login.microsoftonline.com",
        1_700_000_000,
        "java-at",
        "java-rt",
    );
}

#[test]
fn app_tokens_without_an_account_are_found_however_that_is_written() {
    for home_account_id in [r#""home_account_id":null,"#, r#""home_account_id":"","#, ""] {
        let json = format!(
            r#"{{"AccessToken":{{"k":{{"secret":"s",{home_account_id}"environment":"e","client_id":"c",
               "realm":"r","target":"t","expires_on":"2000000000"}}}}}}"#
        );
        let mut cache = load(&json);
        let wanted = AccessTokenQuery::for_application("c").scopes(["t"]).at(at(1_700_000_000));
        assert!(cache.find_access_token(&wanted).is_some(), "{home_account_id}");
        assert!(cache.find_access_token(&wanted.clone().realm("r")).is_some());
        assert!(cache.find_access_token(&wanted.clone().realm("other")).is_none());
        assert!(
            cache
                .find_access_token(
                    &AccessTokenQuery::for_account("c", &Account::new("u", "e"))
                        .scopes(["t"])
                        .at(at(1_700_000_000))
                )
                .is_none()
        );
        assert_eq!(cache.remove_app_tokens("c").access_tokens(), 1);
    }
}

#[test]
fn extended_tokens_of_every_sdk_are_found_by_their_parameters_and_hidden_otherwise() {
    for extended in [
        r#""ext_cache_key":"n_lucewkadzv_nybtg-2wtorgf2nrns6ihlfa7vbuzg""#,
        r#""ext":{"fmi_path":"value"}"#,
        r#""additionalCacheKeyComponents":{"fmi_path":"value"}"#,
    ] {
        let json = format!(
            r#"{{"AccessToken":{{"k":{{"secret":"s","environment":"e","client_id":"c","realm":"r",
               "target":"t","expires_on":"2000000000",{extended}}}}}}}"#
        );
        let cache = load(&json);
        let plain = AccessTokenQuery::for_application("c").any_scope().at(at(1_700_000_000));
        assert!(cache.find_access_token(&plain).is_none(), "{extended}");
        assert!(
            cache.find_access_token(&plain.clone().parameters([("fmi_path", "value")])).is_some(),
            "{extended}"
        );
        assert!(
            cache.find_access_token(&plain.clone().parameters([("fmi_path", "other")])).is_none(),
            "{extended}"
        );
    }
}

#[test]
fn every_spelling_of_the_key_id_is_one() {
    for spelling in ["key_id", "kid", "keyid"] {
        let json = format!(
            r#"{{"AccessToken":{{"k":{{"secret":"s","environment":"e","client_id":"c","realm":"r",
               "target":"t","expires_on":"2000000000","{spelling}":"K"}}}}}}"#
        );
        let cache = load(&json);
        let plain = AccessTokenQuery::for_application("c").any_scope().at(at(1_700_000_000));
        assert!(cache.find_access_token(&plain).is_none(), "a bound token is not for everyone: {spelling}");
        assert!(cache.find_access_token(&plain.clone().key_id("K")).is_some(), "{spelling}");
        assert!(cache.find_access_token(&plain.clone().key_id("L")).is_none(), "{spelling}");
    }
}

#[test]
fn bad_rows_break_nothing() {
    let good = r#""good":{"secret":"s","environment":"e","client_id":"c","realm":"r","target":"t","expires_on":2e9}"#;
    let bad = [
        r#""b1":null"#,
        r#""b2":[]"#,
        r#""b3":"text""#,
        r#""b4":{}"#,
        r#""b5":{"secret":7,"environment":"e","client_id":"c","realm":"r","target":"t","expires_on":"2000000000"}"#,
        r#""b6":{"secret":"x","environment":"e","client_id":"c","realm":"r","target":null,"expires_on":"2000000000"}"#,
        r#""b7":{"secret":"x","environment":"e","client_id":"c","realm":"r","target":"t"}"#,
        r#""b8":{"secret":"x","environment":"e","client_id":"c","realm":"r","target":"t","expires_on":"soon"}"#,
        r#""b9":{"secret":"x","environment":null,"client_id":"c","realm":[],"target":"t","expires_on":{}}"#,
        r#""b10":{"secret":"\ud800","environment":"e","client_id":"c","realm":"r","target":"t","expires_on":"2000000000"}"#,
    ];
    for row in bad {
        for json in [
            format!(r#"{{"AccessToken":{{{row},{good}}}}}"#),
            format!(r#"{{"AccessToken":{{{good},{row}}}}}"#),
        ] {
            let mut cache = load(&json);
            let wanted =
                AccessTokenQuery::for_application("c").realm("r").scopes(["t"]).at(at(1_700_000_000));
            assert_eq!(cache.find_access_token(&wanted).unwrap().expose(), "s", "{row}");
            assert_eq!(
                std::str::from_utf8(cache.serialize().json().expose()).unwrap(),
                json,
                "it is kept as it is"
            );
            let _ = cache.purge_expired(at(1_700_000_000));
            assert_eq!(
                std::str::from_utf8(cache.serialize().json().expose()).unwrap(),
                json,
                "and not purged"
            );
        }
    }
}

#[test]
fn what_is_unknown_survives_in_order() {
    let json = fixture("10_unknown_fields_roundtrip");
    let mut cache = load(&json);
    let account = cache.accounts().remove(0);
    let response = TokenResponse::from_json(r#"{"access_token":"new","expires_in":3600}"#)
        .unwrap()
        .client_id(CLIENT)
        .environment(account.environment())
        .realm(TENANT)
        .home_account_id(account.home_account_id())
        .requested_scopes(["Other.Read"]);
    cache.add(&response).unwrap();
    let written = written(&cache);
    let original: Value = serde_json::from_str(&json).unwrap();
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&written), keys(&original));
    for section in ["FutureSection", "EmptyArrayNode", "EmptyNode", "NullNode", "customized"] {
        assert_eq!(written[section], original[section]);
    }
    let account = written["Account"].as_object().unwrap().values().next().unwrap();
    assert_eq!(account["x_unknown_number"].to_string(), "12345678901234567890");
    assert_eq!(
        written["AccessToken"]["an-entry-without-expiry"],
        original["AccessToken"]["an-entry-without-expiry"]
    );
}

#[test]
fn sections_that_are_no_objects_are_kept_and_never_overwritten() {
    let response = || {
        TokenResponse::from_json(r#"{"access_token":"a","expires_in":60}"#)
            .unwrap()
            .client_id("c")
            .token_endpoint("https://h/t")
    };
    let mut cache = load(r#"{"AccessToken":[1,2],"Account":"x"}"#);
    let error = cache.add(&response()).unwrap_err();
    assert!(matches!(error, CacheError::UnusableSection { section: "AccessToken", .. }), "{error}");
    assert_eq!(cache.serialize().json().expose(), br#"{"AccessToken":[1,2],"Account":"x"}"#);
    assert!(!cache.has_state_changed());
    // Null is as good as absent.
    let mut cache = load(r#"{"AccessToken":null,"Z":1}"#);
    cache.add(&response()).unwrap();
    assert!(
        std::str::from_utf8(cache.serialize().json().expose())
            .unwrap()
            .starts_with(r#"{"AccessToken":{"-h-"#)
    );
}

#[test]
fn a_cache_may_hold_one_key_twice() {
    let row = |secret: &str| {
        format!(r#""k":{{"secret":"{secret}","home_account_id":"u","environment":"e","client_id":"c"}}"#)
    };
    let mut cache = load(&format!(r#"{{"RefreshToken":{{{},{}}}}}"#, row("one"), row("two")));
    let account = Account::new("u", "e");
    assert_eq!(cache.find_refresh_tokens(&RefreshTokenQuery::new("c", &account)).len(), 2);
    assert_eq!(cache.remove_account(&account).refresh_tokens(), 2);
    assert_eq!(cache.serialize().json().expose(), br#"{"RefreshToken":{}}"#);
}

#[test]
fn accounts_are_grouped_by_id_and_alias() {
    let row = |key: &str, id: &str, environment: &str, realm: &str| {
        format!(
            r#""{key}":{{"home_account_id":"{id}","environment":"{environment}","realm":"{realm}","username":"U@x"}}"#
        )
    };
    let json = format!(
        r#"{{"Account":{{{},{},{},{}}}}}"#,
        row("1", "u", "login.microsoftonline.com", "t1"),
        row("2", "u", "LOGIN.windows.net", "t2"),
        row("3", "u", "idp.example", "t1"),
        row("4", "v", "idp.example", "t1"),
    );
    let mut cache = load(&json);
    let accounts = cache.accounts();
    assert_eq!(accounts.len(), 3);
    assert_eq!(accounts[0].realms(), ["t1", "t2"]);
    assert_eq!(cache.find_accounts(&AccountQuery::new().username("u@X")).len(), 3);
    assert_eq!(cache.find_accounts(&AccountQuery::new().username("w@x")).len(), 0);
    let at_example = AccountQuery::new().environment("IDP.example");
    assert_eq!(cache.find_accounts(&at_example).len(), 2);
    assert_eq!(cache.find_accounts(&at_example.home_account_id("v")).len(), 1);
    // Another user with the same id at another provider stays.
    assert_eq!(cache.remove_account(&accounts[0]).accounts(), 2);
    assert_eq!(cache.accounts().len(), 2);
    cache.set_environment_aliases(EnvironmentAliases::none().with(["idp.example", "sso.example"]));
    assert_eq!(cache.find_accounts(&AccountQuery::new().environment("sso.example")).len(), 2);
}

#[test]
fn what_is_no_cache_is_an_error_that_quotes_nothing() {
    let mut cache = load(r#"{"AccessToken":{"k":{"secret":"s"}}}"#);
    for bytes in [
        &b"[]"[..],
        b"null",
        b"\"planted-secret\"",
        b"{\"planted-secret\"",
        b"{\"a\":planted-secret}",
        b"\xff",
        b"{}x",
    ] {
        let error = cache.deserialize(bytes).unwrap_err();
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains("planted"), "{shown}");
    }
    assert_eq!(
        cache.serialize().json().expose(),
        br#"{"AccessToken":{"k":{"secret":"s"}}}"#,
        "it is as before"
    );
    for empty in ["", "  \n"] {
        cache.deserialize(empty).unwrap();
        assert_eq!(cache.serialize().json().expose(), b"{}");
    }
}

/// Adds a token response to a cache with one row of each kind that another SDK wrote under a key of its
/// own, the access token's with some fields besides; how many access, refresh and id tokens there are then.
fn rows_after_adding(fields: &str, response: &TokenResponse) -> (usize, usize, usize) {
    let common = r#""home_account_id":"u","environment":"e","client_id":"app""#;
    let mut cache = load(&format!(
        r#"{{"AccessToken":{{"a":{{"secret":"at",{common},"realm":"r","target":"b a","expires_on":"9999999999"{fields}}}}},
        "RefreshToken":{{"r":{{"secret":"rt",{common}{fields}}}}},
        "IdToken":{{"i":{{"secret":"it",{common},"realm":"r"{fields}}}}}}}"#
    ));
    cache.add(response).unwrap();
    (cache.access_tokens().count(), cache.refresh_tokens().count(), cache.id_tokens().count())
}

#[test]
fn a_row_of_another_sdk_is_renewed_only_by_the_same_token() {
    let response = |fields: &str| {
        let json = format!(
            r#"{{"access_token":"new","refresh_token":"new","id_token":"e.n.c.r.y","expires_in":60{fields}}}"#
        );
        let response = TokenResponse::from_json(json).unwrap().client_id("app").environment("e").realm("r");
        response.home_account_id("u").granted_scopes(["a", "b"])
    };
    // The order of the scopes does not count, nor does how the type is written.
    assert_eq!(rows_after_adding("", &response("")), (1, 1, 1));
    assert_eq!(rows_after_adding(r#","token_type":"bearer""#, &response("")), (1, 1, 1));
    assert_eq!(rows_after_adding("", &response("").granted_scopes(["b"])), (2, 1, 1));
    // A token of another type, bound to a key, of another family, or on behalf of an assertion is another.
    assert_eq!(rows_after_adding(r#","token_type":"pop""#, &response("")), (2, 1, 1));
    assert_eq!(rows_after_adding("", &response(r#","token_type":"pop""#)), (2, 1, 1));
    assert_eq!(rows_after_adding(r#","key_id":"k""#, &response("")), (2, 1, 1));
    assert_eq!(rows_after_adding(r#","key_id":"k""#, &response("").parameter("key_id", "k")), (1, 1, 1));
    assert_eq!(rows_after_adding(r#","family_id":"1""#, &response("")), (1, 2, 1));
    assert_eq!(rows_after_adding(r#","family_id":"1""#, &response(r#","foci":"1""#)), (1, 1, 1));
    assert_eq!(rows_after_adding(r#","user_assertion_hash":"h""#, &response("")), (2, 2, 2));
}
