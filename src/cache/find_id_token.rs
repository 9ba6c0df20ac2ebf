//! Lookups of id tokens.

use super::TokenCache;
use super::account::Account;
use super::fields::Field;
#[cfg(feature = "file")]
use super::fields::Fields;
#[cfg(feature = "file")]
use super::find::{Issuers, Life, Realms};
#[cfg(feature = "file")]
use super::query::AccessTokenQuery;
use super::rows::{Kind, Lookup};
use super::token::IdToken;
#[cfg(feature = "file")]
use crate::secret::Secret;

impl TokenCache {
    /// Finds the id token that a client got for a user, in one realm or in any.
    #[must_use]
    pub fn find_id_token(&self, client_id: &str, account: &Account, realm: Option<&str>) -> Option<IdToken> {
        let Account { home_account_id, environment, issuer, .. } = account;
        let lookup = match realm {
            Some(realm) => Lookup::OwnerInRealm(Kind::IdToken, home_account_id, client_id, realm),
            None => Lookup::Owner(Kind::IdToken, home_account_id),
        };
        self.rows.candidates(lookup).map(|row| self.rows.fields(row)).find_map(|fields| {
            let is_wanted = fields.is(Field::ClientId, client_id)
                && self.belongs_to(&fields, home_account_id, environment)
                && self.is_issued_by(Kind::IdToken, &fields, issuer.as_deref())
                && realm.is_none_or(|realm| fields.is(Field::Realm, realm));
            is_wanted.then(|| IdToken::read(&fields))?
        })
    }

    /// Finds the id token of a query's client and account that has this much life left. Its scopes count for
    /// nothing.
    #[cfg(feature = "file")]
    pub(crate) fn find_living_id_token(&self, query: &AccessTokenQuery, life: Life) -> Option<IdToken> {
        let (now, valid_at) = query.now_and_valid_at();
        self.best_id_token(query, |token, expires_on| match life {
            Life::Fresh if expires_on > valid_at => true,
            Life::Fresh => {
                let lifetime = token.issued_at_seconds().map_or(0, |from| expires_on.saturating_sub(from));
                lifetime > 0 && expires_on.saturating_sub(now) > lifetime / 2
            }
            Life::Extended => expires_on > now,
        })
    }

    /// Finds the very id token that has this secret, if the query describes it and it has not expired.
    #[cfg(feature = "file")]
    pub(crate) fn find_this_id_token(&self, query: &AccessTokenQuery, secret: &Secret) -> Option<IdToken> {
        let (now, _) = query.now_and_valid_at();
        self.best_id_token(query, |token, expires_on| expires_on > now && token.secret() == *secret)
    }

    /// Returns when the id token with this secret expires.
    #[cfg(feature = "file")]
    pub(crate) fn expiry_of_id_token(&self, home_account_id: &str, secret: &Secret) -> Option<i64> {
        let candidates = self.rows.candidates(Lookup::Owner(Kind::IdToken, home_account_id));
        let mut tokens = candidates.filter_map(|row| IdToken::read(&self.rows.fields(row)));
        tokens.find(|token| token.secret() == *secret)?.expires_on_seconds()
    }

    /// Finds the id token that lasts longest of those that are good. Where the query does not say which user or
    /// realm of several it is for, there is none.
    #[cfg(feature = "file")]
    fn best_id_token(
        &self,
        query: &AccessTokenQuery,
        is_good: impl Fn(&IdToken, i64) -> bool,
    ) -> Option<IdToken> {
        let owner = query.owner.home_account_id.as_deref()?;
        let environment = query.owner.environment.as_deref()?;
        let issuer = query.owner.issuer.as_deref();
        let mut issuers = Issuers::default();
        let mut realms =
            Realms { are_compared: query.realm.is_none() && !query.any_realm, ..Realms::default() };
        let lookup = match query.realm.as_deref() {
            Some(realm) => Lookup::OwnerInRealm(Kind::IdToken, owner, &query.client_id, realm),
            None => Lookup::Owner(Kind::IdToken, owner),
        };
        let is_wanted = |fields: &Fields<'_>| {
            fields.is(Field::ClientId, &query.client_id)
                && self.belongs_to(fields, owner, environment)
                && self.is_issued_by(Kind::IdToken, fields, issuer)
                && query.realm.as_ref().is_none_or(|realm| fields.is(Field::Realm, realm))
        };
        let mut best: Option<(i64, IdToken)> = None;
        for fields in self.rows.candidates(lookup).map(|row| self.rows.fields(row)).filter(is_wanted) {
            issuers.meet(&fields);
            if realms.are_compared {
                realms.meet(&fields);
            }
            let Some(token) = IdToken::read(&fields) else { continue };
            let Some(expires_on) = token.expires_on_seconds().filter(|&end| is_good(&token, end)) else {
                continue;
            };
            if best.as_ref().is_none_or(|(end, _)| expires_on > *end) {
                best = Some((expires_on, token));
            }
        }
        let is_ambiguous = realms.are_several
            || issuer.is_none()
                && (issuers.are_several || self.are_several(&[Kind::Account], owner, Some(environment)));
        best.filter(|_| !is_ambiguous).map(|(_, token)| token)
    }
}
