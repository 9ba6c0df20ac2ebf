//! Any answer of a token endpoint is taken, or refused without a change; and what is taken is found.
#![no_main]

use std::time::{Duration, SystemTime};

use libfuzzer_sys::fuzz_target;
use tokenseal::{AccessTokenQuery, TokenCache, TokenResponse, refresh::RefreshFailure};

fuzz_target!(|data: &[u8]| {
    for status in [200, 400] {
        let _ = RefreshFailure::from_error_response(status, data);
    }
    if let Ok(response) = TokenResponse::from_form(data) {
        let _ = TokenCache::new().add(&response.client_id("app").environment("idp.example"));
    }
    let Ok(response) = TokenResponse::from_json(data) else { return };
    let response = response
        .client_id("app")
        .token_endpoint("https://idp.example/tenant/token")
        .requested_scopes(["read"])
        .received_at(SystemTime::UNIX_EPOCH);
    let mut cache = TokenCache::new();
    let before = cache.serialize();
    match cache.add(&response) {
        Err(_) => assert_eq!(cache.serialize().json().expose(), before.json().expose()),
        Ok(added) => {
            let mut again = TokenCache::new();
            again.deserialize(cache.serialize().into_json()).expect("what was written is a cache");
            for token in cache.access_tokens() {
                let wanted = match added.account() {
                    Some(account) => AccessTokenQuery::for_account("app", account),
                    None => AccessTokenQuery::for_application("app"),
                };
                let mut wanted = wanted.scopes(token.scopes()).skew(Duration::ZERO);
                if let Some(key_id) = token.key_id() {
                    wanted = wanted.key_id(key_id);
                }
                let is_alive = token.expires_on() > SystemTime::UNIX_EPOCH;
                let found = cache.find_access_token(&wanted.at(SystemTime::UNIX_EPOCH));
                assert_eq!(found.is_some(), is_alive, "{added:?}");
            }
            // Twice is once.
            let once = cache.serialize();
            cache.add(&response).expect("it was taken before");
            assert_eq!(cache.serialize().json().expose(), once.json().expose());
        }
    }
});
