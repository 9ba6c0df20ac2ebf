//! Caches to measure: one account is one access token (2 kB), one refresh token, one id token, one
//! account row and one application row, 7 kB of JSON.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use tokenseal::{
    AccessTokenQuery, Account, PersistedTokenCache, TokenCache, key_store::KeyFileStore,
    persisted::PersistedTokenCacheBuilder,
};

pub(crate) const CLIENT: &str = "d3adb33f-c0de-ed0c-c0de-deadb33fc0d3";
const TENANT: &str = "11111111-aaaa-4aaa-8aaa-111111111111";
const ENVIRONMENT: &str = "login.microsoftonline.com";

fn text(seed: usize, length: usize) -> String {
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut state = seed as u64 * 2 + 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(alphabet[(state >> 58) as usize])
    };
    (0..length).map(|_| next()).collect()
}

fn home_account_id(number: usize) -> String {
    format!("uid-{number:08}.{TENANT}")
}

pub(crate) fn account(number: usize) -> Account {
    Account::new(home_account_id(number), ENVIRONMENT)
}

pub(crate) fn username(number: usize) -> String {
    format!("user{number}@contoso.com")
}

pub(crate) fn wanted(number: usize) -> AccessTokenQuery {
    let at = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    AccessTokenQuery::for_account(CLIENT, &account(number)).scopes(["User.Read"]).at(at)
}

/// The JSON of a cache of this many accounts, in the order of sections that msal (Python) writes.
pub(crate) fn json(accounts: usize) -> String {
    let section = |name: &str, row: &dyn Fn(usize) -> String| {
        let rows: Vec<String> = (0..accounts).map(row).collect();
        format!(r#""{name}":{{{}}}"#, rows.join(","))
    };
    let access_token = |n: usize| {
        let id = home_account_id(n);
        let secret = text(n * 3, 2_048);
        format!(
            r#""{id}-{ENVIRONMENT}-accesstoken-{CLIENT}-{TENANT}-user.read":{{"credential_type":"AccessToken","secret":"{secret}","home_account_id":"{id}","environment":"{ENVIRONMENT}","client_id":"{CLIENT}","target":"User.Read","realm":"{TENANT}","token_type":"Bearer","cached_at":"1700000000","expires_on":"1700003599","extended_expires_on":"1700007199"}}"#
        )
    };
    let account = |n: usize| {
        let (id, username) = (home_account_id(n), username(n));
        format!(
            r#""{id}-{ENVIRONMENT}-{TENANT}":{{"home_account_id":"{id}","environment":"{ENVIRONMENT}","realm":"{TENANT}","local_account_id":"uid-{n:08}","username":"{username}","authority_type":"MSSTS","account_source":"authorization_code"}}"#
        )
    };
    let id_token = |n: usize| {
        let id = home_account_id(n);
        let secret = text(n * 3 + 1, 1_300);
        format!(
            r#""{id}-{ENVIRONMENT}-idtoken-{CLIENT}-{TENANT}-":{{"credential_type":"IdToken","secret":"{secret}","home_account_id":"{id}","environment":"{ENVIRONMENT}","realm":"{TENANT}","client_id":"{CLIENT}"}}"#
        )
    };
    let refresh_token = |n: usize| {
        let id = home_account_id(n);
        let secret = text(n * 3 + 2, 1_600);
        format!(
            r#""{id}-{ENVIRONMENT}-refreshtoken-{CLIENT}--user.read":{{"credential_type":"RefreshToken","secret":"{secret}","home_account_id":"{id}","environment":"{ENVIRONMENT}","client_id":"{CLIENT}","target":"User.Read","last_modification_time":"1700000000"}}"#
        )
    };
    let app_metadata = |n: usize| {
        format!(r#""appmetadata-{ENVIRONMENT}-{n}":{{"client_id":"{n}","environment":"{ENVIRONMENT}"}}"#)
    };
    [
        section("AccessToken", &access_token),
        section("Account", &account),
        section("IdToken", &id_token),
        section("RefreshToken", &refresh_token),
        section("AppMetadata", &app_metadata),
    ]
    .join(",")
    .replacen('"', "{\"", 1)
        + "}"
}

pub(crate) fn builder(base: &Path) -> PersistedTokenCacheBuilder {
    PersistedTokenCache::builder("tokenseal-bench")
        .directory(base.join("tokens"))
        .key_store(Arc::new(KeyFileStore::new(base.join("keys"))))
        .size_limit(256 * 1024 * 1024)
}

/// A sealed cache of this many accounts.
pub(crate) fn sealed(base: &Path, accounts: usize) -> PersistedTokenCache {
    let cache = builder(base).open().expect("the directory is empty");
    let mut tokens = TokenCache::new();
    tokens.deserialize(json(accounts)).expect("the JSON is a cache");
    cache
        .try_update(|empty| {
            *empty = tokens;
            Ok::<_, tokenseal::Error>(())
        })
        .expect("the cache can be written");
    cache
}
