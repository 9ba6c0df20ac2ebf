//! Every field that a program can read of what is in the cache, and every part of a query.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64ct::{Base64UrlUnpadded, Encoding as _};
use tokenseal::{
    AccessTokenQuery, Account, RefreshToken, RefreshTokenQuery, TokenCache, TokenResponse,
    cache::{AccountQuery, EnvironmentAliases},
};

const NOW: u64 = 1_700_000_000;
const ENDPOINT: &str = "https://idp.example/tenant/token";

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

fn base64url(text: &str) -> String {
    Base64UrlUnpadded::encode_string(text.as_bytes())
}

fn id_token(claims: &str) -> String {
    format!("{}.{}.sig", base64url(r#"{"alg":"none"}"#), base64url(claims))
}

fn response(json: &str) -> TokenResponse {
    TokenResponse::from_json(json).unwrap().client_id("app").token_endpoint(ENDPOINT).received_at(at(NOW))
}

/// A sign-in with these claims in its id token.
fn sign_in(claims: &str) -> TokenResponse {
    response(&format!(
        r#"{{"access_token":"at","refresh_token":"rt","expires_in":600,"id_token":"{}"}}"#,
        id_token(claims)
    ))
}

const CLAIMS: &str = r#"{"sub":"alice","oid":"object","preferred_username":"alice@x","upn":"upn"}"#;

#[test]
fn an_account_has_what_the_sign_in_said() {
    let mut cache = TokenCache::new();
    let added = cache.add(&sign_in(CLAIMS).grant_type("authorization_code")).unwrap();
    let account = added.account().unwrap();
    assert_eq!((account.home_account_id(), account.environment()), ("alice", "idp.example"));
    assert_eq!((account.realms(), account.username()), (&["tenant".to_owned()][..], "alice@x"));
    assert_eq!((account.local_account_id(), account.name()), (Some("object"), None));
    assert_eq!(account.authority_type(), Some("MSSTS"));
    assert_eq!(account.account_source(), Some("authorization_code"));
    assert_eq!(&cache.accounts()[0], account);

    let claims = r#"{"sub":"bob","upn":"bob@x"}"#;
    let bob = sign_in(claims).username("named").authority_type("OTHER").grant_type("refresh_token");
    let bob = cache.add(&bob).unwrap().account().unwrap().clone();
    assert_eq!((bob.username(), bob.local_account_id()), ("bob@x", Some("bob")));
    assert_eq!((bob.authority_type(), bob.account_source()), (Some("OTHER"), None));

    let adfs = sign_in(r#"{"sub":"carol"}"#).username("named").realm("adfs");
    let carol = cache.add(&adfs).unwrap().account().unwrap().clone();
    assert_eq!((carol.username(), carol.authority_type()), ("named", Some("ADFS")));
}

#[test]
fn what_a_later_sign_in_does_not_say_stays() {
    let mut cache = TokenCache::new();
    cache.add(&sign_in(CLAIMS)).unwrap();
    cache.add(&sign_in(r#"{"sub":"alice"}"#)).unwrap();
    assert_eq!((cache.accounts().len(), cache.accounts()[0].username()), (1, "alice@x"));
    assert_eq!(cache.accounts()[0].local_account_id(), Some("alice"));
}

#[test]
fn an_account_of_another_sdk_has_its_name() {
    let json = r#"{"Account":{"k":{"home_account_id":"u","environment":"e","realm":"r","username":"U@x",
        "name":"Ursula","local_account_id":"l","authority_type":"MSSTS","account_source":"password"},
        "l":{"home_account_id":"u","environment":"E","realm":"s","name":""}}}"#;
    let mut cache = TokenCache::new();
    cache.deserialize(json).unwrap();
    let account = &cache.accounts()[0];
    assert_eq!(cache.accounts().len(), 1);
    assert_eq!((account.name(), account.username()), (Some("Ursula"), "U@x"));
    assert_eq!((account.local_account_id(), account.account_source()), (Some("l"), Some("password")));
    assert_eq!(account.realms(), ["r", "s"]);
    for (query, found) in [
        (AccountQuery::new().username("u@X"), 1),
        (AccountQuery::new().username("v@x"), 0),
        (AccountQuery::new().home_account_id("u"), 1),
        (AccountQuery::new().home_account_id("U"), 0),
        (AccountQuery::new().environment("E"), 1),
        (AccountQuery::new().environment("f"), 0),
        (AccountQuery::new().home_account_id("u").username("v@x"), 0),
    ] {
        assert_eq!(cache.find_accounts(&query).len(), found, "{query:?}");
    }
}

#[test]
fn a_refresh_without_an_account_row_still_says_whose_it_is() {
    let refresh = |realm: &str| {
        response(r#"{"access_token":"at","expires_in":600}"#)
            .environment("e")
            .realm(realm)
            .home_account_id("u")
            .sent_refresh_token("rt")
    };
    let json =
        r#"{"RefreshToken":{"k":{"secret":"rt","home_account_id":"u","environment":"e","client_id":"app"}}}"#;
    for (realm, realms) in [("r", &["r".to_owned()][..]), ("", &[])] {
        let mut cache = TokenCache::new();
        cache.deserialize(json).unwrap();
        let added = cache.add(&refresh(realm)).unwrap();
        let account = added.account().unwrap();
        assert_eq!((account.home_account_id(), account.environment()), ("u", "e"));
        assert_eq!((account.realms(), account.username()), (realms, ""));
        assert!(cache.accounts().is_empty());
    }
}

#[test]
fn an_access_token_says_all_about_itself() {
    let json = r#"{"access_token":"at","token_type":"pop","expires_in":600,"ext_expires_in":"1200",
        "refresh_in":300,"scope":"b a"}"#;
    let mut cache = TokenCache::new();
    cache
        .add(&response(json).home_account_id("u").parameter("key_id", "first").parameter("key_id", "k"))
        .unwrap();
    let account = Account::new("u", "IDP.example");
    let query = AccessTokenQuery::for_account("app", &account).any_scope().at(at(NOW));
    assert!(cache.find_access_token(&query).is_none(), "it is bound to a key");
    assert!(cache.find_access_token(&query.clone().key_id("first")).is_none());
    let token = cache.find_access_token(&query.key_id("k")).unwrap();
    assert_eq!((token.expose(), token.secret().expose()), ("at", "at"));
    assert_eq!((token.home_account_id(), token.environment()), (Some("u"), "idp.example"));
    assert_eq!((token.client_id(), token.realm()), ("app", Some("tenant")));
    assert_eq!((token.token_type(), token.key_id()), ("pop", Some("k")));
    assert_eq!(token.scopes().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!((token.expires_on(), token.extended_expires_on()), (at(NOW + 600), at(NOW + 1200)));
    assert_eq!(token.refresh_on(), Some(at(NOW + 300)));
    assert_eq!(cache.access_tokens().count(), 1);
}

#[test]
fn what_a_response_leaves_out_is_made_up_for() {
    for (json, lifetime, extended) in [
        (r#"{"access_token":"at"}"#, 600, 600),
        (r#"{"access_token":"at","expires_on":"1700001000"}"#, 1_000, 1_000),
        (r#"{"access_token":"at","expires_on":0}"#, 600, 600),
        (r#"{"access_token":"at","expires_in":30,"expires_on":1700001000}"#, 30, 30),
        (r#"{"access_token":"at","expires_in":"","ext_expires_in":90}"#, 600, 90),
    ] {
        let mut cache = TokenCache::new();
        cache.add(&response(json).grant_type("client_credentials").requested_scopes(["b", "a"])).unwrap();
        let token = cache.access_tokens().next().unwrap();
        assert_eq!((token.home_account_id(), token.key_id(), token.token_type()), (None, None, "Bearer"));
        assert_eq!(token.expires_on(), at(NOW + lifetime), "{json}");
        assert_eq!((token.extended_expires_on(), token.refresh_on()), (at(NOW + extended), None), "{json}");
        assert_eq!(token.scopes().collect::<Vec<_>>(), ["a", "b"]);
    }
}

#[test]
fn the_other_tokens_say_all_about_themselves() {
    let json = format!(
        r#"{{"access_token":"at","refresh_token":"rt","expires_in":600,"foci":1,"id_token":"{}"}}"#,
        id_token(CLAIMS)
    );
    let mut cache = TokenCache::new();
    let added =
        cache.add(&response(&json).requested_scopes(["read"]).granted_scopes(["write", "all"])).unwrap();
    let account = added.account().unwrap();

    let refresh = cache.find_refresh_token(&RefreshTokenQuery::new("app", account)).unwrap();
    assert_eq!((refresh.expose(), refresh.secret().expose()), ("rt", "rt"));
    assert_eq!((refresh.home_account_id(), refresh.environment()), (Some("alice"), "idp.example"));
    assert_eq!((refresh.client_id(), refresh.family_id()), ("app", Some("1")));
    assert_eq!(refresh.scopes().collect::<Vec<_>>(), ["all", "write"]);
    assert_eq!(cache.refresh_tokens().count(), 1);

    let id = cache.find_id_token("app", account, Some("tenant")).unwrap();
    assert_eq!((id.expose(), id.secret().expose()), (id_token(CLAIMS).as_str(), id_token(CLAIMS).as_str()));
    assert_eq!((id.home_account_id(), id.environment()), (Some("alice"), "idp.example"));
    assert_eq!((id.client_id(), id.realm()), ("app", Some("tenant")));
    assert!(cache.find_id_token("app", account, Some("other")).is_none());
    assert!(cache.find_id_token("other", account, None).is_none());
    assert_eq!(cache.id_tokens().map(|token| token.expose().to_owned()).collect::<Vec<_>>(), [id.expose()]);

    let metadata = cache.find_app_metadata("app", "IDP.example").unwrap();
    assert_eq!((metadata.client_id(), metadata.environment()), ("app", "idp.example"));
    assert_eq!(metadata.family_id(), Some("1"));
    assert!(cache.find_app_metadata("app", "other.example").is_none());
}

#[test]
fn parameters_of_the_request_are_taken_for_what_they_are() {
    let mut cache = TokenCache::new();
    let body = r#"{"access_token":"at","expires_in":600,"refresh_token":"rt"}"#;
    let sign_in =
        response(body).home_account_id("u").parameter("username", "sent").requested_scopes(["read"]);
    assert_eq!(cache.add(&sign_in).unwrap().account().unwrap().username(), "sent");
    let named = response(body).home_account_id("v").username("named").parameter("username", "sent");
    assert_eq!(cache.add(&named).unwrap().account().unwrap().username(), "named");
    let body = r#"{"access_token":"at","expires_in":600,"refresh_token":"rotated"}"#;
    let refresh = response(body).home_account_id("u").parameter("refresh_token", "rt");
    cache.add(&refresh.requested_scopes(["other"])).unwrap();
    let found = cache.find_refresh_tokens(&RefreshTokenQuery::new("app", &Account::new("u", "idp.example")));
    assert_eq!(found.iter().map(RefreshToken::expose).collect::<Vec<_>>(), ["rotated"]);
}

#[test]
fn a_query_finds_what_it_names_and_nothing_else() {
    let mut cache = TokenCache::new();
    for (environment, realm, path) in
        [("e", "r", ""), ("e", "s", ""), ("f", "r", ""), ("e", "r", "agent-app-id")]
    {
        let secret = format!("{environment}{realm}{path}");
        let app = response(&format!(r#"{{"access_token":"{secret}","expires_in":6000}}"#));
        let app = app.environment(environment).realm(realm).parameter("fmi_path", path);
        cache.add(&app.parameter("client_secret", "is not kept")).unwrap();
    }
    let of = |environment: &str, realm: &str| {
        AccessTokenQuery::for_application("app").environment(environment).realm(realm).at(at(NOW))
    };
    let found =
        |query: AccessTokenQuery| cache.find_access_token(&query).map(|token| token.expose().to_owned());
    assert_eq!(found(of("E", "r")).as_deref(), Some("er"));
    assert_eq!(found(of("e", "s")).as_deref(), Some("es"));
    assert_eq!(found(of("f", "r")).as_deref(), Some("fr"));
    assert_eq!(found(of("f", "s")), None);
    assert_eq!(
        found(of("e", "r").parameters([("fmi_path", "agent-app-id")])).as_deref(),
        Some("eragent-app-id")
    );
    assert_eq!(found(of("e", "r").parameters([("fmi_path", "other")])), None);
    // As msal (Python) hashes the parameter.
    let hashed = "a0ry_zl4gccsdp7gnw927x8s0mrmnodv6tyilt0u07m";
    assert_eq!(found(of("e", "r").ext_cache_key(hashed)).as_deref(), Some("eragent-app-id"));
    assert_eq!(found(AccessTokenQuery::for_application("app").at(at(NOW)).realm("s")).as_deref(), Some("es"));
    assert_eq!(found(AccessTokenQuery::for_application("other").at(at(NOW))), None);
    let mut query = RefreshTokenQuery::new("app", &Account::new("u", "e"));
    assert!(cache.find_refresh_token(&query).is_none());
    query = query.family_id("1");
    assert!(format!("{query:?}").contains("family_id: Some(\"1\")"));
}

#[test]
fn aliases_that_a_program_names_are_kept_by_a_clone() {
    let mut cache = TokenCache::new();
    cache.set_environment_aliases(EnvironmentAliases::none().with(["one.example", "Two.example"]));
    cache.add(&sign_in(CLAIMS).environment("one.example")).unwrap();
    cache.add(&sign_in(CLAIMS).environment("TWO.example").realm("other")).unwrap();
    let clone = cache.clone();
    assert_eq!((clone.has_state_changed(), clone.accounts().len()), (true, 1));
    assert_eq!(clone.accounts()[0].realms(), ["tenant", "other"]);
    cache.set_environment_aliases(EnvironmentAliases::none());
    assert_eq!(cache.accounts().len(), 2);
}

#[test]
fn what_is_shown_for_debugging_counts_and_tells_no_secret() {
    let mut cache = TokenCache::new();
    let response = sign_in(CLAIMS);
    cache.add(&response).unwrap();
    let shown = format!("{cache:?}");
    for counted in ["AccessToken: 1", "RefreshToken: 1", "IdToken: 1", "Account: 1", "AppMetadata: 1"] {
        assert!(shown.contains(counted), "{shown}");
    }
    assert!(shown.contains("has_state_changed: true"), "{shown}");
    let shown = format!("{response:?}");
    for told in ["client_id: Some(\"app\")", "idp.example", "has_access_token: true", "has_id_token: true"] {
        assert!(shown.contains(told), "{shown}");
    }
    let shown = format!("{:?}", TokenResponse::from_json("{}").unwrap());
    assert!(
        shown.contains("has_access_token: false") && shown.contains("has_refresh_token: false"),
        "{shown}"
    );
}
