//! Whose a token is: no token of one user, tenant, realm or issuer is stored or served as another's.

use base64ct::{Base64UrlUnpadded, Encoding as _};
use tokenseal::{AccessTokenQuery, Account, CacheError, TokenCache, TokenResponse, cache::AccountQuery};

const HOST: &str = "https://idp.example";
const TENANT: &str = "11111111-aaaa-4aaa-8aaa-111111111111";
const OTHER_TENANT: &str = "22222222-bbbb-4bbb-8bbb-222222222222";

fn base64(json: &str) -> String {
    Base64UrlUnpadded::encode_string(json.as_bytes())
}

fn id_token(claims: &str) -> String {
    format!("{}.{}.x", base64(r#"{"alg":"none"}"#), base64(claims))
}

/// A response with an access token, a refresh token and these further members.
fn response(name: &str, further: &str) -> TokenResponse {
    let json =
        format!(r#"{{"access_token":"at-{name}","refresh_token":"rt-{name}","expires_in":3600{further}}}"#);
    TokenResponse::from_json(json).unwrap().client_id("app").requested_scopes(["read"])
}

/// A response with an id token.
fn with_id_token(name: &str, claims: &str) -> TokenResponse {
    response(name, &format!(r#","id_token":"{}""#, id_token(claims)))
}

fn keycloak(realm: &str, name: &str, sub: &str) -> TokenResponse {
    let claims = format!(r#"{{"iss":"{HOST}/realms/{realm}","sub":"{sub}","preferred_username":"{name}"}}"#);
    with_id_token(name, &claims)
        .token_endpoint(format!("{HOST}/realms/{realm}/protocol/openid-connect/token"))
}

fn secret(cache: &TokenCache, account: &Account) -> Option<String> {
    let query = AccessTokenQuery::for_account("app", account).scopes(["read"]);
    cache.find_access_token(&query).map(|token| token.expose().to_owned())
}

fn refresh_tokens(cache: &TokenCache) -> Vec<String> {
    cache.refresh_tokens().map(|token| token.expose().to_owned()).collect()
}

/// R6, D7: two realms of one host, one `sub`.
#[test]
fn two_issuers_on_one_host_are_two_users() {
    let mut cache = TokenCache::new();
    let prod = cache.add(&keycloak("prod", "ada", "1")).unwrap().account().unwrap().clone();
    let staging = cache.add(&keycloak("staging", "bob", "1")).unwrap().account().unwrap().clone();
    assert_eq!(prod.environment(), "idp.example", "the endpoint's host");
    assert_ne!(prod.issuer(), staging.issuer());
    assert_eq!(cache.accounts(), [prod.clone(), staging.clone()]);
    assert_eq!(
        (secret(&cache, &prod).as_deref(), secret(&cache, &staging).as_deref()),
        (Some("at-ada"), Some("at-bob"))
    );
    assert_eq!(refresh_tokens(&cache), ["rt-ada", "rt-bob"], "each has a row of its own");
    assert_eq!(secret(&cache, &Account::new("1", "idp.example")), None, "which of them is not guessed");
    // A renewal stays within its issuer, whichever came first.
    for (realm, name) in [("prod", "ada-2"), ("staging", "bob-2")] {
        cache.add(&keycloak(realm, name, "1")).unwrap();
    }
    assert_eq!(refresh_tokens(&cache), ["rt-ada-2", "rt-bob-2"]);
    // So does an answer to a refresh, which need not say who it is for.
    let answer =
        response("ada-3", "").token_endpoint(format!("{HOST}/realms/prod/protocol/openid-connect/token"));
    cache.add(&answer.sent_refresh_token("rt-ada-2")).unwrap();
    assert_eq!(secret(&cache, &prod).as_deref(), Some("at-ada-3"));
    assert_eq!(secret(&cache, &staging).as_deref(), Some("at-bob-2"));
    // And a sign-out.
    cache.remove_account(&prod);
    assert_eq!((secret(&cache, &prod), secret(&cache, &staging).as_deref()), (None, Some("at-bob-2")));
    assert_eq!(cache.accounts().len(), 1);
    let read = |json: &[u8]| serde_json::from_slice::<serde_json::Value>(json).unwrap();
    assert!(
        read(cache.serialize().json().expose())
            .to_string()
            .contains(r#""iss":"https://idp.example/realms/staging""#)
    );
}

#[test]
fn what_survives_serialization_is_told_apart_as_before() {
    let mut cache = TokenCache::new();
    let prod = cache.add(&keycloak("prod", "ada", "1")).unwrap().account().unwrap().clone();
    cache.add(&keycloak("staging", "bob", "1")).unwrap();
    let mut copy = TokenCache::new();
    copy.deserialize(cache.serialize().into_json()).unwrap();
    assert_eq!(copy.accounts(), cache.accounts());
    assert_eq!(secret(&copy, &prod).as_deref(), Some("at-ada"));
}

#[test]
fn google_s_two_issuers_and_entra_s_two_versions_are_one() {
    let entra = |host: &str, end: &str| format!("https://{host}/{TENANT}{end}");
    for (endpoint, one, other) in [
        (
            "https://oauth2.googleapis.com/token",
            "accounts.google.com".to_owned(),
            "https://accounts.google.com".to_owned(),
        ),
        (
            &*format!("https://login.microsoftonline.com/{TENANT}/oauth2/v2.0/token"),
            entra("sts.windows.net", "/"),
            entra("login.microsoftonline.com", "/v2.0"),
        ),
    ] {
        let mut cache = TokenCache::new();
        for (name, issuer) in [("first", one), ("second", other)] {
            let claims = format!(r#"{{"iss":"{issuer}","sub":"7"}}"#);
            cache.add(&with_id_token(name, &claims).token_endpoint(endpoint)).unwrap();
        }
        assert_eq!(refresh_tokens(&cache), ["rt-second"], "{endpoint}");
        assert_eq!(cache.accounts().len(), 1);
    }
}

/// With `client_info`, and without: the same user.
#[test]
fn b2c_users_are_told_apart_by_oid_and_policy_never_by_sub() {
    let sub = "Not supported currently. Use oid claim.";
    for (policy, id) in
        [(r#""tfp":"B2C_1_SignIn""#, "b2c_1_signin"), (r#""acr":"b2c_1a_edit""#, "b2c_1a_edit")]
    {
        let claims = |oid: &str| {
            format!(
                r#"{{"iss":"https://contoso.b2clogin.com/{TENANT}/v2.0/","oid":"{oid}","sub":"{sub}",{policy}}}"#
            )
        };
        let mut cache = TokenCache::new();
        for oid in ["ada", "bob"] {
            let endpoint = "https://contoso.b2clogin.com/contoso.onmicrosoft.com/oauth2/v2.0/token";
            let added = cache.add(&with_id_token(oid, &claims(oid)).token_endpoint(endpoint)).unwrap();
            assert_eq!(added.account().unwrap().home_account_id(), format!("{oid}-{id}.{TENANT}"));
        }
        assert_eq!(refresh_tokens(&cache), ["rt-ada", "rt-bob"]);
    }
    let nobody = format!(r#"{{"iss":"https://contoso.b2clogin.com/{TENANT}/v2.0/","sub":"{sub}"}}"#);
    let response = with_id_token("x", &nobody).token_endpoint("https://contoso.b2clogin.com/t/token");
    assert!(matches!(TokenCache::new().add(&response), Err(CacheError::NoAccount)));
}

fn client_info(uid: &str, tenant: &str) -> String {
    format!(r#","client_info":"{}""#, base64(&format!(r#"{{"uid":"{uid}","utid":"{tenant}"}}"#)))
}

/// R7: OpenID Connect Core section 12.2.
#[test]
fn an_answer_about_another_user_is_not_stored() {
    let endpoint = || format!("{HOST}/realms/a/protocol/openid-connect/token");
    let alice = || keycloak("a", "alice", "1");
    let refused = |signed_in: TokenResponse, answer: TokenResponse, what: &str| {
        let mut cache = TokenCache::new();
        cache.add(&signed_in).unwrap();
        let before = cache.serialize().into_json();
        let error = cache.add(&answer.sent_refresh_token("rt-alice")).unwrap_err();
        assert!(matches!(error, CacheError::OtherAccount), "{what}: {error}");
        assert_eq!(cache.serialize().json().expose(), before.expose(), "{what}");
    };
    refused(alice(), keycloak("a", "bob", "2"), "another sub");
    refused(alice(), keycloak("b", "alice", "1"), "another issuer");
    let with_info = |name: &str, uid: &str| response(name, &client_info(uid, "t")).token_endpoint(endpoint());
    refused(with_info("alice", "a"), with_info("bob", "b"), "another uid.utid");
    let claims = |sub: &str| format!(r#"{{"iss":"{HOST}","sub":"{sub}"}}"#);
    let both = |name: &str, uid: &str, sub: &str| {
        let id_token = format!(r#","id_token":"{}"{}"#, id_token(&claims(sub)), client_info(uid, "t"));
        response(name, &id_token).token_endpoint(endpoint())
    };
    let without_info = with_id_token("bob", &claims("2")).token_endpoint(endpoint());
    refused(both("alice", "a", "1"), without_info, "another sub than that of the stored id token");
}

#[test]
fn an_answer_about_the_same_user_is_stored_however_it_says_so() {
    let endpoint = || format!("{HOST}/realms/a/protocol/openid-connect/token");
    let stored = |signed_in: TokenResponse, answer: TokenResponse, what: &str| {
        let mut cache = TokenCache::new();
        cache.add(&signed_in).unwrap();
        cache.add(&answer.sent_refresh_token("rt-alice")).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(refresh_tokens(&cache), ["rt-new"], "{what}");
        assert_eq!(cache.accounts().len(), 1, "{what}");
    };
    let alice = || keycloak("a", "alice", "1");
    stored(alice(), response("new", "").token_endpoint(endpoint()), "nothing said");
    stored(alice(), keycloak("a", "new", "1"), "the same sub");
    let encrypted = response("new", r#","id_token":"a.b.c.d.e""#).token_endpoint(endpoint());
    stored(alice(), encrypted, "an encrypted id token");
    let claims = |iss: &str, sub: &str| format!(r#"{{"iss":"{HOST}/{iss}","sub":"{sub}"}}"#);
    let both = |name: &str, iss: &str, sub: &str| {
        let further = format!(r#","id_token":"{}"{}"#, id_token(&claims(iss, sub)), client_info("a", TENANT));
        response(name, &further).token_endpoint(endpoint())
    };
    stored(both("alice", "home", "1"), both("new", "guest", "2"), "a guest: `sub` is pairwise");
    let guest = with_id_token("new", &claims("guest", "2")).token_endpoint(endpoint());
    stored(
        both("alice", "home", "1"),
        guest,
        "a guest, without client_info: another issuer's sub says nothing",
    );
    let named = || alice().home_account_id("alice@example.com");
    stored(named(), both("new", "home", "2"), "an account that the program named is not compared");
    let named = || response("alice", "").token_endpoint(endpoint()).home_account_id("alice.smith");
    stored(named(), both("new", "home", "2"), "named, with a dot in it");
}

/// R2: whatever a manual refresh says of itself, it belongs where the token came from that was sent.
#[test]
fn a_manual_refresh_keeps_what_the_server_sent() {
    let endpoint = format!("https://login.microsoftonline.com/{TENANT}/oauth2/v2.0/token");
    let mut cache = TokenCache::new();
    let added =
        cache.add(&response("alice", &client_info("a", TENANT)).token_endpoint(endpoint.as_str())).unwrap();
    let account = added.account().unwrap().clone();
    // It has an id token and no client_info, names no environment, and another client.
    let claims = format!(r#"{{"iss":"https://login.microsoftonline.com/{TENANT}/v2.0","sub":"pairwise"}}"#);
    let answer = with_id_token("new", &claims).client_id("misnamed");
    let added = cache.add(&answer.sent_refresh_token("rt-alice")).unwrap();
    assert!(!added.is_signed_out());
    assert_eq!(refresh_tokens(&cache), ["rt-new"]);
    assert_eq!(secret(&cache, &account).as_deref(), Some("at-new"));
    assert_eq!(cache.accounts().len(), 1);
    // Without a realm, and with several to choose from, nothing is guessed.
    cache
        .add(
            &response("guest", &client_info("a", TENANT))
                .token_endpoint(endpoint.replace(TENANT, OTHER_TENANT)),
        )
        .unwrap();
    let error = cache.add(&response("newer", "").sent_refresh_token("rt-guest")).unwrap_err();
    assert!(matches!(error, CacheError::NotNamed { what: "realm", .. }), "{error}");
}

/// R20: what nobody would find is an error.
#[test]
fn a_response_that_names_no_client_or_no_provider_is_an_error() {
    let named = || TokenResponse::from_json(r#"{"access_token":"at"}"#).unwrap().realm("r");
    let mut cache = TokenCache::new();
    for (response, what) in [
        (named().environment("idp.example"), "client"),
        (named().environment("idp.example").client_id(""), "client"),
        (named().client_id("app"), "environment"),
        (named().client_id("app").environment(""), "environment"),
    ] {
        let error = cache.add(&response).unwrap_err();
        assert!(matches!(error, CacheError::NotNamed { what: missing, .. } if missing == what), "{error}");
        assert!(error.to_string().contains("name it with"), "{error}");
    }
    assert_eq!(cache.serialize().json().expose(), b"{}");
}

/// D4: an encrypted id token need not be read where something else says whose it is.
#[test]
fn an_encrypted_id_token_is_no_error_where_the_account_is_known() {
    let encrypted = |further: &str| {
        response("x", &format!(r#","id_token":"a.b.c.d.e"{further}"#))
            .token_endpoint(format!("{HOST}/t/token"))
    };
    assert!(TokenCache::new().add(&encrypted(&client_info("a", "t"))).is_ok());
    assert!(TokenCache::new().add(&encrypted("").home_account_id("alice")).is_ok());
    let error = TokenCache::new().add(&encrypted("")).unwrap_err();
    assert!(error.to_string().contains("home_account_id"), "{error}");
}

/// D6: Google and B2C have no `preferred_username`.
#[test]
fn a_user_without_a_user_name_is_shown_by_what_the_id_token_has() {
    for (claims, shown) in [
        (r#""email":"ada@gmail.com","name":"Ada""#, "ada@gmail.com"),
        (r#""emails":["ada@b2c.example"],"name":"Ada""#, "ada@b2c.example"),
        (r#""unique_name":"CONTOSO\\ada","name":"Ada""#, "CONTOSO\\ada"),
        (r#""name":"Ada""#, "Ada"),
        (r#""email":"""#, "1"),
        (r#""preferred_username":"ada","email":"other@example.com""#, "ada"),
    ] {
        let mut cache = TokenCache::new();
        let claims = format!(r#"{{"iss":"{HOST}","sub":"1",{claims}}}"#);
        cache.add(&with_id_token("x", &claims).token_endpoint(format!("{HOST}/t/token"))).unwrap();
        assert_eq!(cache.accounts()[0].username(), shown);
        let found = cache.find_accounts(&AccountQuery::new().username(shown.to_uppercase()));
        assert_eq!(found.len(), 1, "{shown}");
        let json: serde_json::Value = serde_json::from_slice(cache.serialize().json().expose()).unwrap();
        let row = json["Account"].as_object().unwrap().values().next().unwrap();
        assert_eq!(row["username"] == "", shown != "ada", "the row stays msal's");
    }
}

/// R21: the same parameters, in a response and in a query.
#[test]
fn parameters_of_a_query_are_those_of_a_response() {
    let mut cache = TokenCache::new();
    let parameters = [("fmi_path", "a/b"), ("key_id", "k"), ("client_secret", "s"), ("scope", "read")];
    let mut response = TokenResponse::from_json(r#"{"access_token":"at","expires_in":60}"#).unwrap();
    for (name, value) in parameters {
        response = response.parameter(name, value);
    }
    cache.add(&response.client_id("app").environment("e").realm("r")).unwrap();
    let query =
        AccessTokenQuery::for_application("app").parameters(parameters).skew(std::time::Duration::ZERO);
    assert_eq!(cache.find_access_token(&query).unwrap().expose(), "at");
    assert!(cache.find_access_token(&query.key_id("other")).is_none());
}

#[cfg(feature = "file")]
mod refreshing {
    use std::time::Duration;

    use super::*;
    use tokenseal::{
        AcquireError, SharedTokenCache,
        refresh::{RefreshCall, SignInReason, TokenSource},
    };

    fn guest_and_home() -> (SharedTokenCache, Account) {
        let mut cache = TokenCache::new();
        let mut account = None;
        for tenant in [TENANT, OTHER_TENANT] {
            let endpoint = format!("https://login.microsoftonline.com/{tenant}/oauth2/v2.0/token");
            let response = response(tenant, &client_info("a", TENANT)).token_endpoint(endpoint);
            let past = std::time::SystemTime::now() - Duration::from_secs(7_200);
            account = cache.add(&response.received_at(past)).unwrap().account().cloned();
        }
        (SharedTokenCache::new(cache), account.unwrap())
    }

    fn wanted(account: &Account) -> AccessTokenQuery {
        AccessTokenQuery::for_account("app", account).scopes(["read"])
    }

    /// R4: which tenant is meant is not guessed.
    #[test]
    fn a_request_without_a_realm_for_an_account_of_several_is_an_error_before_anything_is_sent() {
        let (cache, account) = guest_and_home();
        let never = |_: RefreshCall| panic!("nothing is sent");
        let error = cache.acquire(&wanted(&account), never).unwrap_err();
        assert!(
            matches!(error, AcquireError::Ambiguous { .. }) && error.to_string().contains("realm"),
            "{error}"
        );
        for tenant in [TENANT, OTHER_TENANT] {
            let acquired = cache.acquire(&wanted(&account).realm(tenant), move |call: RefreshCall| {
                assert_eq!(call.realm(), Some(tenant));
                let endpoint = format!("https://login.microsoftonline.com/{tenant}/oauth2/v2.0/token");
                assert_eq!(call.token_endpoint(), Some(endpoint.as_str()));
                assert!(call.form().expose().ends_with("&client_info=1"));
                call.answer(
                    200,
                    None,
                    None,
                    format!(r#"{{"access_token":"new-{tenant}","expires_in":3600}}"#),
                )
            });
            assert_eq!(acquired.unwrap().token().realm(), Some(tenant));
        }
    }

    /// What the answer says itself counts more than what was asked for.
    #[test]
    fn a_token_of_one_tenant_is_never_kept_as_another_s() {
        let of_other =
            format!(r#","id_token":"{}""#, id_token(&format!(r#"{{"tid":"{OTHER_TENANT}","sub":"x"}}"#)));
        for (endpoint, further) in [(Some(OTHER_TENANT), String::new()), (None, of_other)] {
            let (cache, account) = guest_and_home();
            let error = cache.acquire(&wanted(&account).realm(TENANT), move |call: RefreshCall| {
                let json = format!(r#"{{"access_token":"other's","expires_in":3600{further}}}"#);
                let answer = call.answer(200, None, None, json)?;
                let url = |tenant| format!("https://login.microsoftonline.com/{tenant}/oauth2/v2.0/token");
                Ok(match endpoint {
                    Some(tenant) => answer.token_endpoint(url(tenant)),
                    None => answer,
                })
            });
            assert!(matches!(error, Err(AcquireError::NotGranted { .. })), "{error:?}");
            let served = |realm: &str| cache.find_access_token(&wanted(&account).realm(realm)).unwrap();
            assert!(served(TENANT).is_none());
            assert_eq!(served(OTHER_TENANT).unwrap().expose(), "other's");
        }
    }

    /// R7: nothing is stored or served, and the token that was sent is kept and not sent again for that.
    #[test]
    fn an_answer_about_another_user_asks_for_a_sign_in() {
        let mut tokens = TokenCache::new();
        let past = std::time::SystemTime::now() - Duration::from_secs(7_200);
        let added = tokens.add(&keycloak("a", "alice", "1").received_at(past)).unwrap();
        let account = added.account().unwrap().clone();
        let cache = SharedTokenCache::new(tokens);
        let mixed_up = |call: RefreshCall| {
            let _sent = call.form();
            let json = format!(
                r#"{{"access_token":"bob's","refresh_token":"rt-bob","expires_in":3600,"id_token":"{}"}}"#,
                id_token(&format!(r#"{{"iss":"{HOST}/realms/a","sub":"2"}}"#))
            );
            call.answer(200, None, None, json)
        };
        let error = cache.acquire(&wanted(&account), mixed_up).unwrap_err();
        assert!(
            matches!(error, AcquireError::SignInRequired { reason: SignInReason::OtherUser, .. }),
            "{error:?}"
        );
        assert_eq!(cache.read(refresh_tokens).unwrap(), ["rt-alice"]);
        assert_eq!(cache.read(|tokens| tokens.access_tokens().count()).unwrap(), 1);
        let never = |_: RefreshCall| panic!("it is not sent again");
        assert!(cache.acquire(&wanted(&account), never).unwrap_err().is_sign_in_required());
        // Another request may do, and a sign-in ends it.
        let good = |call: RefreshCall| {
            let _sent = call.form();
            call.answer(200, None, None, r#"{"access_token":"at","expires_in":3600}"#)
        };
        let other = AccessTokenQuery::for_account("app", &account).scopes(["write"]);
        assert_eq!(cache.acquire(&other, good).unwrap().origin(), TokenSource::Refreshed);
        let signed_in = keycloak("a", "alice", "1").requested_scopes(["calendar"]);
        cache.try_update(|tokens| tokens.add(&signed_in)).unwrap();
        assert_eq!(cache.acquire(&wanted(&account), good).unwrap().token().expose(), "at");
    }

    #[test]
    fn a_request_for_one_of_several_users_of_an_id_is_an_error() {
        let mut tokens = TokenCache::new();
        let past = std::time::SystemTime::now() - Duration::from_secs(7_200);
        let accounts = ["prod", "staging"].map(|realm| {
            tokens.add(&keycloak(realm, realm, "1").received_at(past)).unwrap().account().unwrap().clone()
        });
        let cache = SharedTokenCache::new(tokens);
        let never = |_: RefreshCall| panic!("nothing is sent");
        let error = cache.acquire(&wanted(&Account::new("1", "idp.example")), never).unwrap_err();
        assert!(
            matches!(error, AcquireError::Ambiguous { .. }) && error.to_string().contains("issuer"),
            "{error}"
        );
        for (account, sent) in accounts.iter().zip(["rt-prod", "rt-staging"]) {
            let acquired = cache.acquire(&wanted(account), move |call: RefreshCall| {
                assert_eq!(call.refresh_token().expose(), sent);
                let json = format!(r#"{{"access_token":"new {sent}","expires_in":3600,"scope":"read"}}"#);
                call.answer(200, None, None, json)
            });
            assert_eq!(acquired.unwrap().token().expose(), format!("new {sent}"));
        }
    }
}
