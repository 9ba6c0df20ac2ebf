//! Removal: whole accounts, an application's own tokens, single tokens, what has expired, all.

use std::time::SystemTime;

use super::account::Account;
use super::fields::Field;
use super::rows::{Kind, Lookup, RowId};
use super::token::{AccessToken, RefreshToken};
use super::{TokenCache, unix_seconds};

/// How many rows of each kind were removed.
///
/// ```
/// # use tokenseal::{TokenCache, TokenResponse};
/// # let response = TokenResponse::from_json(
/// #     r#"{"access_token":"at","expires_in":3600,"refresh_token":"rt"}"#)?
/// #     .client_id("app").environment("idp.example").realm("r").home_account_id("alice")
/// #     .requested_scopes(["read"]);
/// let mut cache = TokenCache::new();
/// let added = cache.add(&response)?;
/// let removed = cache.remove_account(added.account().unwrap());
/// assert_eq!((removed.access_tokens(), removed.refresh_tokens(), removed.accounts()), (1, 1, 1));
/// # Ok::<(), tokenseal::CacheError>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Removed {
    access_tokens: usize,
    refresh_tokens: usize,
    id_tokens: usize,
    accounts: usize,
    app_metadata: usize,
}

impl Removed {
    /// Access tokens removed.
    pub fn access_tokens(&self) -> usize {
        self.access_tokens
    }

    /// Refresh tokens removed.
    pub fn refresh_tokens(&self) -> usize {
        self.refresh_tokens
    }

    /// Id tokens removed.
    pub fn id_tokens(&self) -> usize {
        self.id_tokens
    }

    /// Account rows removed: one for each realm that a user signed in to.
    pub fn accounts(&self) -> usize {
        self.accounts
    }

    /// Application metadata rows removed.
    pub fn app_metadata(&self) -> usize {
        self.app_metadata
    }

    /// Rows removed in all.
    pub fn total(&self) -> usize {
        self.access_tokens + self.refresh_tokens + self.id_tokens + self.accounts + self.app_metadata
    }

    fn count(&mut self, kind: Kind) {
        *match kind {
            Kind::AccessToken => &mut self.access_tokens,
            Kind::RefreshToken => &mut self.refresh_tokens,
            Kind::IdToken => &mut self.id_tokens,
            Kind::Account => &mut self.accounts,
            Kind::AppMetadata => &mut self.app_metadata,
        } += 1;
    }
}

impl TokenCache {
    /// Signs a user out: removes every row of the account, in its environment and all aliases of it,
    /// for every client, whichever SDK wrote the row and whatever its map key looks like. An account that
    /// names no [issuer](Account::issuer) is the user of every issuer there.
    pub fn remove_account(&mut self, account: &Account) -> Removed {
        let mut removed = Removed::default();
        for kind in [Kind::AccessToken, Kind::RefreshToken, Kind::IdToken, Kind::Account] {
            let candidates = self.rows.candidates(Lookup::Owner(kind, &account.home_account_id));
            let is_the_accounts = |&row: &RowId| {
                let fields = self.rows.fields(row);
                // A row that does not say where it belongs goes too, rather than stay for ever.
                let is_there = self.belongs_to(&fields, &account.home_account_id, &account.environment)
                    || fields.is(Field::HomeAccountId, &account.home_account_id)
                        && fields.text(Field::Environment).is_none();
                is_there && self.is_issued_by(kind, &fields, account.issuer.as_deref())
            };
            let rows: Vec<RowId> = candidates.filter(is_the_accounts).collect();
            self.remove_rows(kind, rows, &mut removed);
        }
        self.sign_outs += u64::from(removed.total() > 0);
        removed
    }

    /// Removes the access tokens that a client holds for itself (client credentials), in every realm
    /// and environment. Tokens of users stay.
    pub fn remove_app_tokens(&mut self, client_id: &str) -> Removed {
        let mut removed = Removed::default();
        let candidates = self.rows.candidates(Lookup::App(client_id));
        let is_the_client = |&row: &RowId| self.rows.fields(row).is(Field::ClientId, client_id);
        let rows: Vec<RowId> = candidates.filter(is_the_client).collect();
        self.remove_rows(Kind::AccessToken, rows, &mut removed);
        removed
    }

    /// Removes one access token: every row that holds this very token.
    pub fn remove_access_token(&mut self, token: &AccessToken) -> Removed {
        let mut removed = Removed::default();
        let lookup = match token.home_account_id() {
            Some(owner) => Lookup::Owner(Kind::AccessToken, owner),
            None => Lookup::App(token.client_id()),
        };
        let holds_it =
            |&row: &RowId| self.rows.fields(row).secret().is_some_and(|secret| secret == token.secret());
        let rows: Vec<RowId> = self.rows.candidates(lookup).filter(holds_it).collect();
        self.remove_rows(Kind::AccessToken, rows, &mut removed);
        removed
    }

    /// Removes one refresh token: every row of its account that holds this very token. A newer token
    /// that took its place meanwhile stays.
    pub fn remove_refresh_token(&mut self, token: &RefreshToken) -> Removed {
        let mut removed = Removed::default();
        let secret = token.secret();
        let rows = if let Some(owner) = token.home_account_id() {
            self.refresh_tokens_with_secret(owner, token.environment(), &secret)
        } else {
            // Some libraries write a token without saying whose it is.
            let holds_it = |&row: &RowId| self.rows.fields(row).secret().is_some_and(|own| own == secret);
            self.rows.all(Kind::RefreshToken).filter(holds_it).collect()
        };
        self.remove_rows(Kind::RefreshToken, rows, &mut removed);
        removed
    }

    /// Removes a refresh token that the server does not take from its client any more. Where another client
    /// of its family has it, it may be alive.
    #[cfg(feature = "file")]
    pub(crate) fn retire_refresh_token(&mut self, token: &RefreshToken) {
        let owner = token.home_account_id().unwrap_or_default();
        let mut rows = self.refresh_tokens_with_secret(owner, token.environment(), &token.secret());
        rows.retain(|&row| self.rows.fields(row).is(Field::ClientId, token.client_id()));
        self.remove_rows(Kind::RefreshToken, rows, &mut Removed::default());
    }

    /// Removes the access tokens that have expired by `now`, their extended lifetime included. A
    /// token of which no expiry can be read stays, though no lookup returns it.
    pub fn purge_expired(&mut self, now: SystemTime) -> Removed {
        let mut removed = Removed::default();
        let now = unix_seconds(now);
        let has_expired = |&row: &RowId| {
            let fields = self.rows.fields(row);
            let expires_on = fields.time(Field::ExpiresOn);
            expires_on.is_some_and(|time| time.max(fields.extended_expires_on().unwrap_or(time)) <= now)
        };
        let rows: Vec<RowId> = self.rows.all(Kind::AccessToken).filter(has_expired).collect();
        self.remove_rows(Kind::AccessToken, rows, &mut removed);
        removed
    }

    /// Removes everything, unknown sections included.
    pub fn clear(&mut self) -> Removed {
        let mut removed = Removed::default();
        for kind in Kind::ALL {
            self.rows.all(kind).for_each(|_| removed.count(kind));
        }
        if !self.rows.is_empty() {
            self.rows = super::rows::Rows::default();
            self.sign_outs += 1;
            self.changed();
        }
        removed
    }

    fn remove_rows(&mut self, kind: Kind, rows: Vec<RowId>, removed: &mut Removed) {
        if rows.is_empty() {
            return;
        }
        for row in rows {
            self.rows.remove(row);
            removed.count(kind);
        }
        self.changed();
    }
}
