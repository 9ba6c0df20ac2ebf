//! Lookups. Each asks the index for a few rows and compares their fields.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
#[cfg(feature = "file")]
use std::time::Duration;

use super::TokenCache;
use super::account::Account;
use super::fields::{Field, Fields};
use super::query::{AccessTokenQuery, AccountQuery, RefreshTokenQuery};
#[cfg(feature = "file")]
use super::response::TokenResponse;
use super::rows::{Kind, Lookup, RowId};
use super::token::{AccessToken, AppMetadata, IdToken, RefreshToken};
use crate::secret::Secret;

/// The family of Microsoft's own clients: the one that an unknown client is tried in.
const FIRST_PARTY_FAMILY: &str = "1";

/// How much life a token must have left.
#[cfg(feature = "file")]
#[derive(Debug, Clone, Copy)]
pub(crate) enum Life {
    /// More than the query's skew, or more than half of its whole life: where tokens live no longer
    /// than the skew, each lookup would ask for another.
    Fresh,
    /// Any.
    Valid,
    /// Any, the extended lifetime included.
    Extended,
}

impl TokenCache {
    /// Finds an access token that is valid for longer than the query's skew. Of several, one of the
    /// query's very environment comes before one of an alias, and then the one that lasts longest.
    pub fn find_access_token(&self, query: &AccessTokenQuery) -> Option<AccessToken> {
        let valid_at = query.valid_at(query.skew);
        self.best_access_token(query, |_, expires_on| expires_on > valid_at)
    }

    /// Finds the best access token that `is_good`, judged by its fields and when it expires.
    fn best_access_token(
        &self,
        query: &AccessTokenQuery,
        is_good: impl Fn(&Fields<'_>, i64) -> bool,
    ) -> Option<AccessToken> {
        let lookup = match (&query.owner.home_account_id, &query.realm) {
            (Some(owner), _) => Lookup::Owner(Kind::AccessToken, owner),
            (None, Some(realm)) => {
                Lookup::AppInRealm(&query.client_id, realm, query.ext_cache_key.as_deref())
            }
            (None, None) => Lookup::App(&query.client_id),
        };
        let found = self.rows.candidates(lookup).filter_map(|row| {
            let fields = self.rows.fields(row);
            let expires_on = fields.time(Field::ExpiresOn).filter(|&time| is_good(&fields, time))?;
            let is_wanted = self.is_wanted(&fields, query) && fields.has_secret();
            is_wanted.then(|| ((is_exact_environment(&fields, query), expires_on), fields))
        });
        let best = found.reduce(|best, next| if next.0 > best.0 { next } else { best });
        AccessToken::read(&best?.1)
    }

    fn is_wanted(&self, fields: &Fields<'_>, query: &AccessTokenQuery) -> bool {
        let owner = query.owner.home_account_id.as_deref();
        fields.is(Field::ClientId, &query.client_id)
            && fields.text(Field::HomeAccountId).as_deref() == owner
            && query.realm.as_ref().is_none_or(|realm| fields.is(Field::Realm, realm))
            && self.is_in(fields, query.owner.environment.as_deref())
            && fields.covers(&query.scopes)
            && fields.text(Field::KeyId).as_deref() == query.key_id.as_deref()
            && fields.ext_cache_key().as_deref() == query.ext_cache_key.as_deref()
            && fields.text(Field::UserAssertionHash).is_none()
    }

    /// Whether a row belongs to `environment` or an alias of it.
    pub(crate) fn is_in(&self, fields: &Fields<'_>, environment: Option<&str>) -> bool {
        let own = fields.text(Field::Environment).unwrap_or_default();
        environment.is_none_or(|wanted| self.aliases.same(&own, wanted))
    }

    /// Whether a row belongs to this account.
    pub(crate) fn belongs_to(&self, fields: &Fields<'_>, home_account_id: &str, environment: &str) -> bool {
        fields.is(Field::HomeAccountId, home_account_id) && self.is_in(fields, Some(environment))
    }

    /// The rows of `kind` that belong to this account.
    pub(crate) fn rows_of(&self, kind: Kind, home_account_id: &str, environment: &str) -> Vec<RowId> {
        let candidates = self.rows.candidates(Lookup::Owner(kind, home_account_id));
        candidates
            .filter(|&row| self.belongs_to(&self.rows.fields(row), home_account_id, environment))
            .collect()
    }

    /// The refresh token rows of an account that hold this very token.
    pub(crate) fn refresh_tokens_with_secret(
        &self,
        home_account_id: &str,
        environment: &str,
        secret: &Secret,
    ) -> Vec<RowId> {
        let mut rows = self.rows_of(Kind::RefreshToken, home_account_id, environment);
        rows.retain(|&row| self.rows.fields(row).secret().is_some_and(|own| own == *secret));
        rows
    }

    /// Finds an access token that has this much life left, and is not the one that was `refused`.
    #[cfg(feature = "file")]
    pub(crate) fn find_living_access_token(
        &self,
        query: &AccessTokenQuery,
        life: Life,
        refused: Option<&Secret>,
    ) -> Option<AccessToken> {
        let now = query.valid_at(Duration::ZERO);
        let valid_at = now.saturating_add(i64::try_from(query.skew.as_secs()).unwrap_or(i64::MAX));
        self.best_access_token(query, |fields, expires_on| {
            let is_alive = match life {
                Life::Fresh if expires_on > valid_at => true,
                Life::Fresh => {
                    let lifetime =
                        fields.time(Field::CachedAt).map_or(0, |from| expires_on.saturating_sub(from));
                    lifetime > 0 && expires_on.saturating_sub(now) > lifetime / 2
                }
                Life::Valid => expires_on > now,
                Life::Extended => fields.extended_expires_on().unwrap_or(expires_on).max(expires_on) > now,
            };
            is_alive && refused.is_none_or(|refused| fields.secret().is_none_or(|secret| secret != *refused))
        })
    }

    /// Whether what answers a refresh still belongs here: the cache has the refresh token that was
    /// sent, or has the answer already.
    #[cfg(feature = "file")]
    pub(crate) fn awaits(&self, answer: &TokenResponse) -> bool {
        let (Some(owner), Some(environment)) = (&answer.home_account_id, &answer.environment) else {
            return false;
        };
        let came = answer.body.secret_of("refresh_token").ok().flatten();
        [answer.sent_refresh_token.as_ref(), came.as_ref()]
            .into_iter()
            .flatten()
            .any(|token| !self.refresh_tokens_with_secret(owner, environment, token).is_empty())
    }

    /// The realm of any token that a client has of a user for these scopes, expired or not.
    #[cfg(feature = "file")]
    pub(crate) fn known_realm(&self, query: &AccessTokenQuery) -> Option<String> {
        let token = self.best_access_token(query, |_, _| true)?;
        token.realm().map(str::to_owned)
    }

    /// Whether a refresh token is the client's own, or of the family that the client is known to be in.
    #[cfg(feature = "file")]
    pub(crate) fn may_use(&self, client_id: &str, token: &RefreshToken) -> bool {
        token.client_id() == client_id
            || token.family_id().is_some_and(|family| {
                let known = self.find_app_metadata(client_id, token.environment());
                known.is_some_and(|known| known.family_id() == Some(family))
            })
    }

    /// Finds refresh tokens in the order in which MSAL tries them: those of the client's family
    /// first, then the client's own, each newest first. A client that the cache does not know is
    /// tried in Microsoft's first-party family as well; one known to be in no family is not.
    pub fn find_refresh_tokens(&self, query: &RefreshTokenQuery) -> Vec<RefreshToken> {
        let Account { home_account_id, environment, .. } = &query.account;
        let family =
            query.family_id.clone().or_else(|| match self.find_app_metadata(&query.client_id, environment) {
                Some(known) => known.family_id().map(str::to_owned),
                None => Some(FIRST_PARTY_FAMILY.to_owned()),
            });
        let rows = self.rows_of(Kind::RefreshToken, home_account_id, environment);
        let mut found: Vec<_> = rows
            .into_iter()
            .map(|row| self.rows.fields(row))
            .filter(|fields| fields.text(Field::UserAssertionHash).is_none())
            .filter_map(|fields| {
                let is_family = family.as_ref().is_some_and(|family| fields.is(Field::FamilyId, family));
                let is_own = fields.is(Field::ClientId, &query.client_id);
                (is_family || is_own).then(|| Some((is_family, RefreshToken::read(&fields)?)))?
            })
            .collect();
        found.sort_by_key(|(is_family, token)| Reverse((*is_family, token.last_modification_time)));
        found.into_iter().map(|(_, token)| token).collect()
    }

    /// Finds the refresh token to try first.
    pub fn find_refresh_token(&self, query: &RefreshTokenQuery) -> Option<RefreshToken> {
        self.find_refresh_tokens(query).into_iter().next()
    }

    /// Finds the id token that a client got for a user, in one realm or in any.
    pub fn find_id_token(&self, client_id: &str, account: &Account, realm: Option<&str>) -> Option<IdToken> {
        let rows = self.rows_of(Kind::IdToken, &account.home_account_id, &account.environment);
        rows.into_iter().map(|row| self.rows.fields(row)).find_map(|fields| {
            let is_wanted = fields.is(Field::ClientId, client_id)
                && realm.is_none_or(|realm| fields.is(Field::Realm, realm));
            is_wanted.then(|| IdToken::read(&fields))?
        })
    }

    /// Finds what is known about a client id at an identity provider or an alias of it.
    pub fn find_app_metadata(&self, client_id: &str, environment: &str) -> Option<AppMetadata> {
        let candidates = self.rows.candidates(Lookup::Client(client_id));
        let mut known: Vec<_> = candidates
            .map(|row| self.rows.fields(row))
            .filter(|fields| fields.is(Field::ClientId, client_id) && self.is_in(fields, Some(environment)))
            .map(|fields| AppMetadata::read(&fields))
            .collect();
        // A row that knows the family says more than one that does not.
        known.sort_by_key(|metadata| metadata.family_id().is_none());
        known.into_iter().next()
    }

    /// All accounts, in the order they were added.
    pub fn accounts(&self) -> Vec<Account> {
        self.find_accounts(&AccountQuery::new())
    }

    /// Finds accounts: one for each `home_account_id` and environment, its realms gathered. Where
    /// the rows of one account differ, the last one counts.
    pub fn find_accounts(&self, query: &AccountQuery) -> Vec<Account> {
        let mut accounts: Vec<Account> = Vec::new();
        let rows: Vec<RowId> = match (&query.home_account_id, &query.username) {
            (Some(owner), _) => self.rows.candidates(Lookup::Owner(Kind::Account, owner)).collect(),
            (None, Some(username)) => self.owners_named(username),
            (None, None) => self.rows.all(Kind::Account).collect(),
        };
        let mut numbers = HashMap::<(String, String), usize>::new();
        let mut realms = HashSet::<(usize, String)>::new();
        for row in rows {
            let fields = self.rows.fields(row);
            let Some(id) = fields.text(Field::HomeAccountId) else { continue };
            let is_wanted = query.home_account_id.as_ref().is_none_or(|wanted| id == *wanted)
                && self.is_in(&fields, query.environment.as_deref());
            if !is_wanted {
                continue;
            }
            let environment = fields.text(Field::Environment).unwrap_or_default();
            let key = (id.into_owned(), self.aliases.canonical(&environment));
            let at = *numbers.entry(key).or_insert_with_key(|(id, _)| {
                accounts.push(Account::new(id, &*environment));
                accounts.len() - 1
            });
            if let Some(realm) = fields.text(Field::Realm)
                && realms.insert((at, realm.clone().into_owned()))
            {
                accounts[at].realms.push(realm.into_owned());
            }
            merge_account(&mut accounts[at], &fields);
        }
        if let Some(username) = &query.username {
            let username = username.to_lowercase();
            accounts.retain(|account| account.username.to_lowercase() == username);
        }
        accounts
    }

    /// All account rows of the users who have a row with this user name.
    fn owners_named(&self, username: &str) -> Vec<RowId> {
        let username = username.to_lowercase();
        let mut owners: Vec<String> = Vec::new();
        for row in self.rows.candidates(Lookup::Username(&username)) {
            if let Some(owner) = self.rows.fields(row).text(Field::HomeAccountId)
                && !owners.iter().any(|known| *known == owner)
            {
                owners.push(owner.into_owned());
            }
        }
        let rows_of =
            |owner: &String| self.rows.candidates(Lookup::Owner(Kind::Account, owner)).collect::<Vec<_>>();
        owners.iter().flat_map(rows_of).collect()
    }

    pub(crate) fn find_account(&self, home_account_id: &str, environment: &str) -> Option<Account> {
        let query = AccountQuery::new().home_account_id(home_account_id).environment(environment);
        self.find_accounts(&query).into_iter().next()
    }

    /// All access tokens, expired ones too, that can be read.
    pub fn access_tokens(&self) -> impl Iterator<Item = AccessToken> {
        self.rows.all(Kind::AccessToken).filter_map(|row| AccessToken::read(&self.rows.fields(row)))
    }

    /// All refresh tokens that can be read.
    pub fn refresh_tokens(&self) -> impl Iterator<Item = RefreshToken> {
        self.rows.all(Kind::RefreshToken).filter_map(|row| RefreshToken::read(&self.rows.fields(row)))
    }

    /// All id tokens that can be read.
    pub fn id_tokens(&self) -> impl Iterator<Item = IdToken> {
        self.rows.all(Kind::IdToken).filter_map(|row| IdToken::read(&self.rows.fields(row)))
    }
}

fn merge_account(account: &mut Account, fields: &Fields<'_>) {
    let text = |field| fields.text(field).map(std::borrow::Cow::into_owned);
    account.username = text(Field::Username).unwrap_or(std::mem::take(&mut account.username));
    let last = |old: &mut Option<String>, field| *old = text(field).or(old.take());
    last(&mut account.name, Field::Name);
    last(&mut account.local_account_id, Field::LocalAccountId);
    last(&mut account.authority_type, Field::AuthorityType);
    last(&mut account.account_source, Field::AccountSource);
}

fn is_exact_environment(fields: &Fields<'_>, query: &AccessTokenQuery) -> bool {
    let environment = fields.text(Field::Environment).unwrap_or_default();
    query.owner.environment.as_ref().is_none_or(|wanted| environment.eq_ignore_ascii_case(wanted))
}

#[cfg(all(test, feature = "file"))]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    fn cache(cached_at: u64) -> TokenCache {
        let mut cache = TokenCache::new();
        let row = format!(
            r#"{{"secret":"at","environment":"e","client_id":"app","realm":"r","cached_at":"{cached_at}",
            "expires_on":"1000","extended_expires_on":"1100"}}"#
        );
        cache.deserialize(format!(r#"{{"AccessToken":{{"k":{row}}}}}"#)).unwrap();
        cache
    }

    #[test]
    fn life_ends_on_the_second() {
        for (life, skew, last) in [
            (Life::Fresh, 50, 949),
            // Longer than it lives at all: half of its life counts.
            (Life::Fresh, 300, 949),
            (Life::Fresh, 10, 989),
            (Life::Valid, 300, 999),
            (Life::Extended, 300, 1099),
        ] {
            let alive = |now: u64| {
                let query = AccessTokenQuery::new("app").skew(Duration::from_secs(skew));
                let query = query.at(UNIX_EPOCH + Duration::from_secs(now));
                let found = cache(900).find_living_access_token(&query, life, None);
                let refused = cache(900).find_living_access_token(&query, life, Some(&Secret::from("at")));
                assert!(refused.is_none());
                let other = cache(900).find_living_access_token(&query, life, Some(&Secret::from("other")));
                assert_eq!(other.is_some(), found.is_some());
                found.is_some()
            };
            assert!(alive(last) && !alive(last + 1), "{life:?} with {skew} s");
        }
    }

    #[test]
    fn a_family_s_token_is_used_by_those_who_are_known_to_be_in_it() {
        let mut cache = TokenCache::new();
        let json = r#"{"RefreshToken":{
            "1":{"secret":"x","home_account_id":"u","environment":"e","client_id":"a","family_id":"1"},
            "2":{"secret":"y","home_account_id":"u","environment":"e","client_id":"a"}},
            "AppMetadata":{"b":{"client_id":"b","environment":"e","family_id":"1"},
            "c":{"client_id":"c","environment":"e","family_id":"2"},"d":{"client_id":"d","environment":"e"}}}"#;
        cache.deserialize(json).unwrap();
        let tokens: Vec<RefreshToken> = cache.refresh_tokens().collect();
        for (client_id, may_use) in [("a", true), ("b", true), ("c", false), ("d", false), ("unknown", false)]
        {
            assert_eq!(cache.may_use(client_id, &tokens[0]), may_use, "{client_id}");
            assert_eq!(cache.may_use(client_id, &tokens[1]), client_id == "a", "{client_id}, no family");
        }
    }

    #[test]
    fn a_token_that_never_lived_is_not_fresh() {
        let query = AccessTokenQuery::new("app").at(UNIX_EPOCH + Duration::from_secs(900));
        assert!(cache(1000).find_living_access_token(&query, Life::Fresh, None).is_none());
        assert!(cache(1000).find_living_access_token(&query, Life::Valid, None).is_some());
    }
}
