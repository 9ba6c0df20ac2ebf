//! Whatever a cache reads it writes again unchanged, and every operation on it ends.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tokenseal::{AccessTokenQuery, Account, RefreshTokenQuery, TokenCache, TokenResponse};

fuzz_target!(|data: &[u8]| {
    let mut cache = TokenCache::new();
    if cache.deserialize(data).is_err() {
        return;
    }
    let written = cache.serialize();
    let mut again = TokenCache::new();
    again.deserialize(written.json().expose()).expect("what was written is a cache");
    assert_eq!(again.serialize().json().expose(), written.json().expose());

    let accounts = cache.accounts();
    for account in accounts.iter().take(3) {
        for token in cache.access_tokens().take(3).collect::<Vec<_>>() {
            let wanted = AccessTokenQuery::for_account(token.client_id(), account).scopes(token.scopes());
            let _ = cache.find_access_token(&wanted);
            let _ = cache.find_refresh_tokens(&RefreshTokenQuery::new(token.client_id(), account));
            let _ = cache.find_id_token(token.client_id(), account, token.realm());
        }
    }
    let response = TokenResponse::from_json(r#"{"access_token":"at","refresh_token":"rt","expires_in":60}"#);
    let response = response.unwrap().client_id("c").environment("e").realm("r").home_account_id("u");
    // A section that is no object refuses it, and is kept.
    if cache.add(&response).is_ok() {
        let wanted = AccessTokenQuery::for_account("c", &Account::new("u", "e")).realm("r");
        let wanted = wanted.skew(std::time::Duration::ZERO);
        assert!(cache.find_access_token(&wanted).is_some());
    }
    for account in &accounts {
        cache.remove_account(account);
        assert!(cache.find_accounts(&tokenseal::cache::AccountQuery::new().home_account_id(account.home_account_id()).environment(account.environment())).is_empty());
    }
    cache.purge_expired(std::time::SystemTime::now());
    cache.clear();
    assert_eq!(cache.serialize().json().expose(), b"{}");
});
