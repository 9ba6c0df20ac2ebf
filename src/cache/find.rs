//! Lookups. Each asks the index for a few rows and compares their fields.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::time::SystemTime;

use super::TokenCache;
use super::account::Account;
use super::environment::is_microsoft;
use super::fields::{Field, Fields};
use super::issuer;
use super::json_text;
use super::query::{AccessTokenQuery, Owner, RefreshTokenQuery};
#[cfg(feature = "file")]
use super::response::TokenResponse;
use super::rows::{Kind, Lookup, RowId};
use super::scopes::Comparison;
use super::token::{AccessToken, AppMetadata, IdToken, RefreshToken};
use super::unix_seconds;
use crate::secret::Secret;

/// The family of Microsoft's own clients: the one that an unknown client is tried in.
const FIRST_PARTY_FAMILY: &str = "1";

/// How far in the future the moment may lie in which a token was cached. Further on, the clock was wrong
/// then, and when the token expires is not known.
const CLOCK_TOLERANCE: i64 = 5 * 60;

/// How much life a token must have left.
#[cfg(feature = "file")]
#[derive(Debug, Clone, Copy)]
pub(crate) enum Life {
    /// More than the query's skew, or more than half of its whole life: where tokens live no longer
    /// than the skew, each lookup would ask for another.
    Fresh,
    /// Any, the extended lifetime included.
    Extended,
}

impl TokenCache {
    /// Finds an access token that is valid for longer than the query's skew. Of several, one of the
    /// query's very environment comes before one of an alias, and then the one that lasts longest.
    #[must_use]
    pub fn find_access_token(&self, query: &AccessTokenQuery) -> Option<AccessToken> {
        let (now, valid_at) = query.now_and_valid_at();
        self.best_access_token(query, |fields, expires_on| {
            expires_on > valid_at && was_cached_by(fields, now)
        })
    }

    /// Finds the best access token that `is_good`, judged by its fields and when it expires.
    fn best_access_token(
        &self,
        query: &AccessTokenQuery,
        is_good: impl Fn(&Fields<'_>, i64) -> bool,
    ) -> Option<AccessToken> {
        let lookup = match (&query.owner.home_account_id, &query.realm) {
            (Some(owner), Some(realm)) => {
                Lookup::OwnerInRealm(Kind::AccessToken, owner, &query.client_id, realm)
            }
            (Some(owner), None) => Lookup::Owner(Kind::AccessToken, owner),
            (None, Some(realm)) => {
                Lookup::AppInRealm(&query.client_id, realm, query.ext_cache_key.as_deref())
            }
            (None, None) => Lookup::App(&query.client_id),
        };
        let mut issuers = Issuers::default();
        let mut realms =
            Realms { are_compared: query.realm.is_none() && !query.any_realm, ..Realms::default() };
        let found = self.rows.candidates(lookup).filter_map(|row| {
            let fields = self.rows.fields(row);
            if !self.is_of_owner(&fields, query) {
                return None;
            }
            if realms.are_compared {
                realms.meet(&fields);
            }
            let expires_on = fields.time(Field::ExpiresOn).filter(|&time| is_good(&fields, time))?;
            let is_wanted = self.is_wanted(&fields, query) && fields.has_secret();
            is_wanted.then(|| {
                issuers.meet(&fields);
                ((is_exact_environment(&fields, query), expires_on), fields)
            })
        });
        let best = found.reduce(|best, next| if next.0 > best.0 { next } else { best });
        // Two users of one id, at two issuers: which of them is meant, the query does not say, whichever of
        // them has a token just now.
        let is_ambiguous = || {
            let Owner { home_account_id: Some(owner), environment, issuer: None } = &query.owner else {
                return false;
            };
            issuers.are_several || self.are_several(&[Kind::Account], owner, environment.as_deref())
        };
        let best = best.filter(|_| !realms.are_several && !is_ambiguous())?;
        AccessToken::read(&best.1)
    }

    /// Whether an access token is of the client and the user, or the application, of a query.
    fn is_of_owner(&self, fields: &Fields<'_>, query: &AccessTokenQuery) -> bool {
        let owner = query.owner.home_account_id.as_deref();
        fields.is(Field::ClientId, &query.client_id)
            && fields.text(Field::HomeAccountId).as_deref() == owner
            && self.is_in(fields, query.owner.environment.as_deref())
            && self.is_issued_by(Kind::AccessToken, fields, query.owner.issuer.as_deref())
    }

    /// Whether an access token of the right owner is what a query describes.
    fn is_wanted(&self, fields: &Fields<'_>, query: &AccessTokenQuery) -> bool {
        query.realm.as_ref().is_none_or(|realm| fields.is(Field::Realm, realm))
            && self.covers(fields, query)
            && fields.text(Field::KeyId).as_deref() == query.key_id.as_deref()
            && fields.ext_cache_key().as_deref() == query.ext_cache_key.as_deref()
            && fields.text(Field::UserAssertionHash).is_none()
    }

    /// Whether the target of an access token covers the scopes of a query.
    fn covers(&self, fields: &Fields<'_>, query: &AccessTokenQuery) -> bool {
        if query.any_scope {
            return true;
        }
        let target = fields.text(Field::Target).unwrap_or_default();
        if query.scopes.is_empty() {
            return target.trim_ascii().is_empty();
        }
        if let [scope] = &query.scopes[..]
            && *scope == target
        {
            return true;
        }
        let environment = fields.text(Field::Environment).unwrap_or_default();
        let has_id_token = || {
            let Some(owner) = fields.text(Field::HomeAccountId) else { return false };
            let realm = fields.text(Field::Realm);
            let account =
                Account { issuer: query.owner.issuer.clone(), ..Account::new(owner, &*environment) };
            self.find_id_token(&query.client_id, &account, realm.as_deref()).is_some()
        };
        let comparison = Comparison { ignores_case: is_microsoft(&environment), has_id_token };
        comparison.covers(&target, &query.scopes)
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
    pub(crate) fn rows_of(
        &self,
        kind: Kind,
        home_account_id: &str,
        environment: &str,
        issuer: Option<&str>,
    ) -> Vec<RowId> {
        let candidates = self.rows.candidates(Lookup::Owner(kind, home_account_id));
        candidates
            .filter(|&row| {
                let fields = self.rows.fields(row);
                self.belongs_to(&fields, home_account_id, environment)
                    && self.is_issued_by(kind, &fields, issuer)
            })
            .collect()
    }

    /// Whether there is any row of this account.
    #[cfg(feature = "file")]
    pub(crate) fn knows_account(&self, home_account_id: &str, environment: &str) -> bool {
        [Kind::Account, Kind::RefreshToken, Kind::AccessToken, Kind::IdToken]
            .into_iter()
            .any(|kind| !self.rows_of(kind, home_account_id, environment, None).is_empty())
    }

    /// The refresh token rows of an account that hold this very token.
    pub(crate) fn refresh_tokens_with_secret(
        &self,
        home_account_id: &str,
        environment: &str,
        secret: &Secret,
    ) -> Vec<RowId> {
        let mut rows = self.rows_of(Kind::RefreshToken, home_account_id, environment, None);
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
        let (now, valid_at) = query.now_and_valid_at();
        self.best_access_token(query, |fields, expires_on| {
            let is_alive = match life {
                Life::Fresh if !was_cached_by(fields, now) => false,
                Life::Fresh if expires_on > valid_at => true,
                Life::Fresh => {
                    let lifetime =
                        fields.time(Field::CachedAt).map_or(0, |from| expires_on.saturating_sub(from));
                    lifetime > 0 && expires_on.saturating_sub(now) > lifetime / 2
                }
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

    /// Finds the very access token that has this secret, if the query describes it and it has not expired.
    #[cfg(feature = "file")]
    pub(crate) fn find_this_access_token(
        &self,
        query: &AccessTokenQuery,
        secret: &Secret,
    ) -> Option<AccessToken> {
        let (now, _) = query.now_and_valid_at();
        self.best_access_token(query, |fields, expires_on| {
            expires_on > now && fields.secret().is_some_and(|own| own == *secret)
        })
    }

    /// When the access token with this secret expires, under whatever scopes it stands.
    #[cfg(feature = "file")]
    pub(crate) fn expiry_of_access_token(&self, home_account_id: &str, secret: &Secret) -> Option<i64> {
        let candidates = self.rows.candidates(Lookup::Owner(Kind::AccessToken, home_account_id));
        let fields = candidates.map(|row| self.rows.fields(row));
        let mut held = fields.filter(|fields| fields.secret().is_some_and(|own| own == *secret));
        held.find_map(|fields| fields.time(Field::ExpiresOn))
    }

    /// The one realm that an account has rows in: its own, and those of the client's tokens.
    pub(crate) fn known_realm(&self, client_id: &str, account: &Account) -> Result<Option<String>, Several> {
        let Account { home_account_id, environment, issuer, .. } = account;
        let mut known: Option<Cow<'_, str>> = None;
        for kind in [Kind::Account, Kind::AccessToken, Kind::IdToken] {
            for row in self.rows.candidates(Lookup::Owner(kind, home_account_id)) {
                let fields = self.rows.fields(row);
                let Some(realm) = fields.text(Field::Realm) else { continue };
                if known.as_ref().is_some_and(|known| is_same_realm(known, &realm)) {
                    continue;
                }
                let counts = (kind == Kind::Account || fields.is(Field::ClientId, client_id))
                    && self.belongs_to(&fields, home_account_id, environment)
                    && self.is_issued_by(kind, &fields, issuer.as_deref());
                match (counts, &known) {
                    (false, _) => {}
                    (true, None) => known = Some(realm),
                    (true, Some(_)) => return Err(Several),
                }
            }
        }
        Ok(known.map(Cow::into_owned))
    }

    /// Whether an account that names no issuer may be one of several users.
    #[cfg(feature = "file")]
    pub(crate) fn has_several_issuers(&self, account: &Account) -> bool {
        let Account { home_account_id, environment, .. } = account;
        account.issuer.is_none() && self.has_users_of_several_issuers(home_account_id, environment)
    }

    /// Whether an id is that of several users, told apart by their issuer.
    pub(super) fn has_users_of_several_issuers(&self, home_account_id: &str, environment: &str) -> bool {
        self.are_several(&[Kind::Account, Kind::RefreshToken], home_account_id, Some(environment))
    }

    /// The one issuer that the rows of an id name.
    pub(super) fn only_issuer(&self, home_account_id: &str, environment: &str) -> Option<String> {
        let rows = self.rows_of(Kind::Account, home_account_id, environment, None);
        let mut issuers = Issuers::default();
        for row in rows {
            issuers.meet(&self.rows.fields(row));
        }
        issuers.first.filter(|_| !issuers.are_several).map(Cow::into_owned)
    }

    pub(super) fn are_several(
        &self,
        kinds: &[Kind],
        home_account_id: &str,
        environment: Option<&str>,
    ) -> bool {
        // Few caches name issuers, and no find in the others reads a row more for them.
        if !self.rows.name_issuers() {
            return false;
        }
        let mut issuers = Issuers::default();
        for &kind in kinds {
            for row in self.rows.candidates(Lookup::Owner(kind, home_account_id)) {
                let fields = self.rows.fields(row);
                if fields.is(Field::HomeAccountId, home_account_id) && self.is_in(&fields, environment) {
                    issuers.meet(&fields);
                }
            }
        }
        issuers.are_several
    }

    /// Finds refresh tokens in the order in which MSAL tries them: those of the client's family
    /// first, then the client's own, each newest first. A client that the cache does not know is
    /// tried in Microsoft's first-party family as well; one known to be in no family is not.
    #[must_use]
    pub fn find_refresh_tokens(&self, query: &RefreshTokenQuery) -> Vec<RefreshToken> {
        let Account { home_account_id, environment, issuer, .. } = &query.account;
        let family =
            query.family_id.clone().or_else(|| match self.find_app_metadata(&query.client_id, environment) {
                Some(known) => known.family_id().map(str::to_owned),
                None => Some(FIRST_PARTY_FAMILY.to_owned()),
            });
        if issuer.is_none() && self.has_users_of_several_issuers(home_account_id, environment) {
            // Whose is meant, nobody says.
            return Vec::new();
        }
        let rows = self.rows_of(Kind::RefreshToken, home_account_id, environment, issuer.as_deref());
        // Of two that came within one second the later one comes first.
        let mut found: Vec<_> = rows
            .into_iter()
            .rev()
            .map(|row| self.rows.fields(row))
            .filter(|fields| fields.text(Field::UserAssertionHash).is_none())
            .filter_map(|fields| {
                let is_family = family.as_ref().is_some_and(|family| fields.is(Field::FamilyId, family));
                let is_own = fields.is(Field::ClientId, &query.client_id);
                (is_family || is_own).then(|| Some((is_family, RefreshToken::read(&fields)?)))?
            })
            .collect();
        // A sign-in that is dated in the future was dated by a clock that was wrong.
        let latest = unix_seconds(SystemTime::now()).saturating_add(CLOCK_TOLERANCE);
        found.sort_by_key(|(is_family, token)| {
            let time = token.last_modification_time;
            Reverse((*is_family, time <= latest, time))
        });
        found.into_iter().map(|(_, token)| token).collect()
    }

    /// Finds the refresh token to try first.
    #[must_use]
    pub fn find_refresh_token(&self, query: &RefreshTokenQuery) -> Option<RefreshToken> {
        self.find_refresh_tokens(query).into_iter().next()
    }

    /// Finds what is known about a client id at an identity provider or an alias of it.
    #[must_use]
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

/// Several realms, where one is to be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Several;

/// Whether rows are about users of several issuers.
#[derive(Default)]
pub(super) struct Issuers<'a> {
    pub(super) first: Option<Cow<'a, str>>,
    pub(super) are_several: bool,
}

impl<'a> Issuers<'a> {
    pub(super) fn meet(&mut self, fields: &Fields<'a>) {
        let Some(issuer) = fields.text(Field::Issuer) else { return };
        match &self.first {
            Some(first) => self.are_several |= !issuer::same(first, &issuer),
            None => self.first = Some(issuer),
        }
    }
}

/// The realms that rows name, as far as it matters: whether they are several.
#[derive(Default)]
pub(super) struct Realms<'a> {
    pub(super) are_compared: bool,
    /// As raw JSON, which nearly always is the same.
    pub(super) first: Option<&'a str>,
    pub(super) are_several: bool,
}

impl<'a> Realms<'a> {
    pub(super) fn meet(&mut self, fields: &Fields<'a>) {
        let raw = fields.raw(Field::Realm).unwrap_or("null");
        match self.first {
            None => self.first = Some(raw),
            Some(first) if first == raw => {}
            Some(first) => {
                let text = |raw: &'a str| json_text::decode(raw).unwrap_or_default();
                self.are_several |= !is_same_realm(&text(first), &text(raw));
            }
        }
    }
}

/// Whether two realms are one: tenant ids are compared without regard to case.
fn is_same_realm(one: &str, other: &str) -> bool {
    one == other || issuer::is_guid(one) && one.eq_ignore_ascii_case(other)
}

/// Whether a token was cached by now, as far as its row says, and the clock was right then.
fn was_cached_by(fields: &Fields<'_>, now: i64) -> bool {
    fields.time(Field::CachedAt).is_none_or(|cached_at| cached_at <= now.saturating_add(CLOCK_TOLERANCE))
}

fn is_exact_environment(fields: &Fields<'_>, query: &AccessTokenQuery) -> bool {
    let environment = fields.text(Field::Environment).unwrap_or_default();
    query.owner.environment.as_ref().is_none_or(|wanted| environment.eq_ignore_ascii_case(wanted))
}

#[cfg(all(test, feature = "file"))]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

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
            (Life::Extended, 300, 1099),
        ] {
            let alive = |now: u64| {
                let query = AccessTokenQuery::for_application("app").skew(Duration::from_secs(skew));
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
    fn a_token_that_never_lived_is_not_fresh() {
        let query = AccessTokenQuery::for_application("app").at(UNIX_EPOCH + Duration::from_secs(900));
        assert!(cache(1000).find_living_access_token(&query, Life::Fresh, None).is_none());
        assert!(cache(1000).find_living_access_token(&query, Life::Extended, None).is_some());
    }
}
