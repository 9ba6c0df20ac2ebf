//! When a token that is still valid should be refreshed early.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use crate::cache::{AccessToken, AccessTokenQuery};

/// The longest delay of an early refresh.
const LONGEST_DELAY: Duration = Duration::from_secs(5 * 60);

/// Whether the server asked for a refresh before now (`refresh_in`). Each process adds a delay of its own, so
/// that they do not all refresh at once.
pub(crate) fn is_due(token: &AccessToken, query: &AccessTokenQuery) -> bool {
    let Some(refresh_on) = token.refresh_on() else { return false };
    let now = query.now.unwrap_or_else(SystemTime::now);
    refresh_on <= now && refresh_on + delay(token, refresh_on) <= now
}

/// Constant for one token: with a new random delay at each call, a busy program would soon draw the shortest.
fn delay(token: &AccessToken, refresh_on: SystemTime) -> Duration {
    static PROCESS: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    let left = token.expires_on().duration_since(refresh_on).unwrap_or_default();
    let longest = LONGEST_DELAY.min(left / 4);
    let [high, ..] = PROCESS.hash_one(refresh_on).to_be_bytes();
    longest.mul_f64(f64::from(high) / f64::from(u8::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::{Account, TokenCache, TokenResponse};

    fn token(lifetime: u64, refresh_in: u64) -> AccessToken {
        let json = format!(r#"{{"access_token":"at","expires_in":{lifetime},"refresh_in":{refresh_in}}}"#);
        let response = TokenResponse::from_json(json).unwrap().client_id("c").environment("e").realm("r");
        let mut cache = TokenCache::new();
        cache.add(&response.home_account_id("u")).unwrap();
        cache.access_tokens().next().unwrap()
    }

    #[test]
    fn it_is_never_early_and_at_most_a_quarter_or_five_minutes_late() {
        for (lifetime, refresh_in, longest) in [(3_600, 1_800, 300), (1_000, 200, 200), (100, 100, 0)] {
            let token = token(lifetime, refresh_in);
            let refresh_on = token.refresh_on().unwrap();
            let query = AccessTokenQuery::for_account("c", &Account::new("u", "e"));
            let due = |at: SystemTime| is_due(&token, &query.clone().at(at));
            assert!(!due(refresh_on - Duration::from_secs(1)));
            assert!(due(refresh_on + Duration::from_secs(longest)));
            let delay = delay(&token, refresh_on);
            assert!(delay <= Duration::from_secs(longest) && due(refresh_on + delay));
            assert!(delay.is_zero() || !due(refresh_on + delay - Duration::from_millis(1)));
        }
    }

    #[test]
    fn tokens_have_moments_of_their_own() {
        let delays: std::collections::HashSet<Duration> = (0..50)
            .map(|second| {
                let token = token(3_600, 1_000 + second);
                delay(&token, token.refresh_on().unwrap())
            })
            .collect();
        assert!(delays.len() > 10, "{}", delays.len());
    }
}
