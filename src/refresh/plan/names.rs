//! Names of leases, refresh tokens and requests, without secrets or user ids.

use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};

use super::credential::Purpose;
use crate::cache::{AccessToken, AccessTokenQuery, Account, RefreshToken, RefreshTokenQuery, TokenCache};

/// Names a refresh token without its secret: by its environment, its account, and its family or else
/// its client. 32 hexadecimal digits, for a file name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct LeaseName(String);

impl LeaseName {
    /// `environment` is the one in the cache, not a common name for its aliases: aliases are configured for each
    /// handle, and all handles must find the same lock.
    pub(crate) fn new(
        environment: &str,
        home_account_id: &str,
        family_id: Option<&str>,
        client_id: &str,
    ) -> Self {
        let (kind, holder) = family_id.map_or(("client", client_id), |family| ("family", family));
        let environment = environment.to_ascii_lowercase();
        let parts = ["tokenseal refresh 1", &environment, home_account_id, kind, holder];
        Self(digest(parts.map(str::as_bytes)))
    }

    pub(crate) fn of(token: &RefreshToken) -> Self {
        let owner = token.home_account_id().unwrap_or_default();
        Self::new(token.environment(), owner, token.family_id(), token.client_id())
    }

    /// Returns the name of the lease for a request that needs no refresh token.
    pub(crate) fn of_mint(request: &RequestId) -> Self {
        Self(digest(["tokenseal mint 1", request.as_str()].map(str::as_bytes)))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// Identifies a refresh token under a [`LeaseName`] without its secret: by its row, and the time at which that
/// was last modified. A sign-in always changes it. So does a rotation, which carries the refusals over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TokenMark(String);

impl TokenMark {
    pub(crate) fn of(token: &RefreshToken) -> Self {
        let scopes: Vec<&str> = token.scopes().collect();
        let issuer = token.issuer.as_deref().unwrap_or_default();
        let row = digest([token.client_id(), issuer, &scopes.join(" ")].map(str::as_bytes));
        Self(format!("{}.{}", token.last_modification_time, &row[..8]))
    }

    /// The mark for requests without a refresh token.
    pub(crate) fn none() -> Self {
        Self("none".to_owned())
    }

    /// Parses a mark, a text without blanks.
    pub(crate) fn parse(text: &str) -> Self {
        Self(text.to_owned())
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether failures of this token count for `other`: the same token, or an older one in the same row, which
    /// other processes see until the newer one is saved.
    pub(crate) fn covers(&self, other: &Self) -> bool {
        self == other || self.is_of_row(other) && self.is_as_late_as(other)
    }

    /// Whether `other` is at least as old, in whatever row: there was no sign-in since.
    pub(crate) fn is_as_late_as(&self, other: &Self) -> bool {
        let time = |mark: &Self| mark.0.split_once('.').and_then(|(time, _)| time.parse::<i64>().ok());
        let is_older = || Some(time(other)? <= time(self)?);
        self == other || is_older().unwrap_or(false)
    }

    /// Whether it is in the same row, at whatever time.
    pub(crate) fn is_of_row(&self, other: &Self) -> bool {
        let row = |mark: &Self| mark.0.rsplit_once('.').map(|(_, row)| row.to_owned());
        row(self) == row(other)
    }
}

/// Identifies a flight. A request that ignores back-offs does not join one that heeds them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct FlightKey {
    pub(crate) request: RequestId,
    pub(crate) needs_refresh_token: bool,
    pub(crate) tries_now: bool,
    /// The digest of the access token to replace. Callers that accept that token do not join this flight.
    pub(crate) replaces: Option<String>,
}

/// Identifies a request. Callers with the same request join the same flight.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct RequestId(String);

impl RequestId {
    pub(crate) fn new(
        purpose: &Purpose,
        query: &AccessTokenQuery,
        family_id: Option<&str>,
        claims: Option<&str>,
    ) -> Self {
        if let Purpose::Once(once) = purpose {
            return Self(digest(["tokenseal once 1", &once.name].map(str::as_bytes)));
        }
        let mut scopes: Vec<&str> = query.scopes.iter().map(String::as_str).collect();
        scopes.sort_unstable();
        scopes.dedup();
        let optional = [
            query.owner.home_account_id.as_deref(),
            query.owner.environment.as_deref(),
            query.realm.as_deref(),
            query.key_id.as_deref(),
            query.ext_cache_key.as_deref(),
            family_id,
            query.owner.issuer.as_deref(),
            claims,
        ];
        // The prefix distinguishes an empty part from an absent one.
        let optional = optional.map(|part| part.map_or_else(String::new, |part| format!("={part}")));
        let parts = ["tokenseal request 1", &query.client_id].into_iter();
        // Scopes have no blanks, so these are not scopes.
        let any = [
            (query.any_scope, "any scope"),
            (query.any_realm, "any realm"),
            (matches!(purpose, Purpose::IdToken), "id token"),
        ];
        let any = any.into_iter().filter_map(|(is_asked_for, name)| is_asked_for.then_some(name));
        let parts = parts.chain(optional.iter().map(String::as_str)).chain(scopes).chain(any);
        Self(digest(parts.map(str::as_bytes)))
    }

    /// The request of a guard, which may be any.
    pub(crate) fn of_guard(query: &RefreshTokenQuery) -> Self {
        Self(digest(["tokenseal guard 1", &query.client_id].map(str::as_bytes)))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// Returns the query for the refresh token of a request.
pub(crate) fn refresh_token_query(
    query: &AccessTokenQuery,
    account: &Account,
    family_id: Option<&str>,
) -> RefreshTokenQuery {
    let wanted = RefreshTokenQuery::new(&query.client_id, account);
    match family_id {
        Some(family_id) => wanted.family_id(family_id),
        None => wanted,
    }
}

/// Returns the lease name of the refresh token that a client would use.
pub(crate) fn lease_name(cache: &TokenCache, wanted: &RefreshTokenQuery) -> LeaseName {
    if let Some(token) = cache.find_refresh_token(wanted) {
        return LeaseName::of(&token);
    }
    let RefreshTokenQuery { account, client_id, family_id } = wanted;
    LeaseName::new(account.environment(), account.home_account_id(), family_id.as_deref(), client_id)
}

/// Names an access token, within this process.
pub(crate) fn access_token_name(token: &AccessToken) -> String {
    digest(["tokenseal access token 1", token.expose()].map(str::as_bytes))
}

/// Half of a SHA-256 over the parts, each with its length before it.
fn digest<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize()[..16].iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").expect("a String takes everything");
        hex
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_counts_and_a_family_shares() {
        let name = LeaseName::new("idp", "alice", None, "app");
        assert_eq!(name.as_str().len(), 32);
        for other in [
            LeaseName::new("idp2", "alice", None, "app"),
            LeaseName::new("idp", "bob", None, "app"),
            LeaseName::new("idp", "alice", None, "app2"),
            LeaseName::new("idp", "alice", Some("app"), "app"),
            LeaseName::new("idpa", "lice", None, "app"),
        ] {
            assert_ne!(name, other);
        }
        let of_family = |client| LeaseName::new("idp", "alice", Some("1"), client);
        assert_eq!(of_family("app"), of_family("app2"));
    }

    #[test]
    fn what_is_known_of_a_token_is_known_of_older_ones_in_its_row() {
        let mark = TokenMark::parse;
        assert!(mark("7.a").covers(&mark("7.a")) && mark("7.a").covers(&mark("6.a")));
        assert!(mark("7.a").covers(&mark("-1.a")) && TokenMark::none().covers(&TokenMark::none()));
        for other in ["8.a", "7.b", "6.b", "none", "x.a"] {
            assert!(!mark("7.a").covers(&mark(other)), "{other}");
        }
    }

    /// Other versions of this crate must find the same lock.
    #[test]
    fn the_name_of_a_lock_never_changes() {
        let name = LeaseName::new("idp.example", "alice", None, "app");
        assert_eq!(name.as_str(), "c59c32c32b4691e24efcaa7c4d3b8bab");
    }

    #[test]
    fn requests_for_the_same_are_one_and_others_are_not() {
        let query = || AccessTokenQuery::for_account("app", &Account::new("alice", "idp"));
        let id = |query: &AccessTokenQuery| RequestId::new(&Purpose::AccessToken, query, None, None);
        assert_eq!(id(&query().scopes(["a", "b"])), id(&query().scopes(["b", "a", "b"])));
        let plain = query().scopes(["a"]);
        for other in [
            query().scopes(["a", "b"]),
            query().scopes(["a"]).realm("r"),
            query().scopes(["a"]).realm(""),
            query().scopes(["a"]).key_id("k"),
            AccessTokenQuery::for_account("app", &Account::new("bob", "idp")).scopes(["a"]),
            AccessTokenQuery::for_account("app2", &Account::new("alice", "idp")).scopes(["a"]),
        ] {
            assert_ne!(id(&plain), id(&other));
        }
        assert_ne!(id(&plain), RequestId::new(&Purpose::AccessToken, &plain, Some("1"), None));
        assert_ne!(id(&plain), RequestId::new(&Purpose::AccessToken, &plain, None, Some("{}")));
        assert_ne!(id(&plain), RequestId::new(&Purpose::IdToken, &plain, None, None));
        assert_ne!(id(&plain), id(&plain.clone().any_realm()));
        assert_ne!(id(&plain), id(&plain.clone().any_scope()));
        let alice = Account::new("alice", "idp").with_issuer("https://idp/b");
        assert_ne!(id(&plain), id(&AccessTokenQuery::for_account("app", &alice).scopes(["a"])));
    }
}
