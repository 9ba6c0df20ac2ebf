//! Looks accounts up: their rows gathered, and a name to show.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use super::TokenCache;
use super::account::Account;
use super::claims::Claims;
use super::fields::{Field, Fields};
use super::issuer;
use super::query::AccountQuery;
use super::rows::{Kind, Lookup, RowId};

impl TokenCache {
    /// All accounts, in the order they were added.
    #[must_use]
    pub fn accounts(&self) -> Vec<Account> {
        self.find_accounts(&AccountQuery::new())
    }

    /// Finds accounts: one for each `home_account_id`, environment and (where that tells users apart)
    /// issuer, its realms gathered. Where the rows of one account differ, the last one counts.
    #[must_use]
    pub fn find_accounts(&self, query: &AccountQuery) -> Vec<Account> {
        let mut accounts: Vec<Account> = Vec::new();
        let rows: Vec<RowId> = match (&query.home_account_id, &query.username) {
            (Some(owner), _) => self.rows.candidates(Lookup::Owner(Kind::Account, owner)).collect(),
            (None, Some(username)) => self.owners_named(username),
            (None, None) => self.rows.all(Kind::Account).collect(),
        };
        let mut numbers = HashMap::<(String, String, String), usize>::new();
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
            let issuer = fields.text(Field::Issuer);
            let own = issuer.as_deref().map(issuer::canonical).unwrap_or_default().into_owned();
            let key = (id.into_owned(), self.aliases.canonical(&environment), own);
            let at = *numbers.entry(key).or_insert_with_key(|(id, ..)| {
                let account = Account::new(id, &*environment);
                accounts.push(Account { issuer: issuer.map(Cow::into_owned), ..account });
                accounts.len() - 1
            });
            if let Some(realm) = fields.text(Field::Realm)
                && realms.insert((at, realm.clone().into_owned()))
            {
                accounts[at].realms.push(realm.into_owned());
            }
            merge_account(&mut accounts[at], &fields);
        }
        self.merge_accounts_without_issuer(&mut accounts);
        for account in accounts.iter_mut().filter(|account| account.username.is_empty()) {
            account.username = self.name_to_show(account).unwrap_or_default();
        }
        if let Some(username) = &query.username {
            let username = username.to_lowercase();
            accounts.retain(|account| account.username.to_lowercase() == username);
        }
        accounts
    }

    /// Whose rows there are: each `home_account_id` and environment, for each row.
    #[cfg(feature = "file")]
    pub(super) fn owners(&self) -> impl Iterator<Item = (String, String)> {
        let rows = self.rows.all(Kind::Account).chain(self.rows.all(Kind::RefreshToken));
        rows.map(|row| self.rows.fields(row)).filter_map(|fields| {
            let owner = fields.text(Field::HomeAccountId)?.into_owned();
            Some((owner, fields.text(Field::Environment)?.into_owned()))
        })
    }

    /// Rows that name no issuer, as other SDKs write them, are of the one account that there is.
    fn merge_accounts_without_issuer(&self, accounts: &mut Vec<Account>) {
        let key = |account: &Account| {
            (account.home_account_id.clone(), self.aliases.canonical(&account.environment))
        };
        let mut with_issuer = HashMap::<_, Option<usize>>::new();
        for (number, account) in accounts.iter().enumerate().filter(|(_, account)| account.issuer.is_some()) {
            with_issuer.entry(key(account)).and_modify(|only| *only = None).or_insert(Some(number));
        }
        if with_issuer.is_empty() {
            return;
        }
        let mut is_merged = vec![false; accounts.len()];
        for number in 0..accounts.len() {
            let Some(Some(only)) = with_issuer.get(&key(&accounts[number])).copied() else { continue };
            if accounts[number].issuer.is_some() {
                continue;
            }
            is_merged[number] = true;
            let Account { realms, username, .. } = accounts[number].clone();
            let into = &mut accounts[only];
            for realm in realms {
                if !into.realms.contains(&realm) {
                    into.realms.push(realm);
                }
            }
            if into.username.is_empty() {
                into.username = username;
            }
        }
        let mut is_merged = is_merged.into_iter();
        accounts.retain(|_| !is_merged.next().unwrap_or_default());
    }

    /// What the id token of an account has in the place of a user name.
    fn name_to_show(&self, account: &Account) -> Option<String> {
        let Account { home_account_id, environment, issuer, .. } = account;
        let rows = self.rows_of(Kind::IdToken, home_account_id, environment, issuer.as_deref());
        rows.into_iter().find_map(|row| {
            let claims = Claims::of_id_token(self.rows.fields(row).secret()?.expose()).ok()?;
            let text = |name| claims.text(name);
            let email = text("email").or_else(|| claims.first_text("emails"));
            email.or_else(|| text("unique_name")).or_else(|| text("name")).or_else(|| text("sub"))
        })
    }

    /// All account rows of the users who have a row with this user name.
    fn owners_named(&self, username: &str) -> Vec<RowId> {
        let username = username.to_lowercase();
        let mut owners: Vec<String> = Vec::new();
        // Those without a user name may be shown under this one.
        let candidates = self.rows.candidates(Lookup::Username(&username));
        for row in candidates.chain(self.rows.candidates(Lookup::Username(""))) {
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

    /// The account with the id, the environment and the issuer of `account`.
    pub(crate) fn find_account(&self, account: &Account) -> Option<Account> {
        let query = AccountQuery::new()
            .home_account_id(account.home_account_id.as_str())
            .environment(account.environment.as_str());
        let is_it = |found: &Account| match (&found.issuer, &account.issuer) {
            (Some(a), Some(b)) => issuer::same(a, b),
            // Rows of other SDKs do not say.
            (None, _) => true,
            (Some(_), None) => false,
        };
        let mut found = self.find_accounts(&query);
        found.sort_by_key(|account| account.issuer.is_none());
        found.into_iter().find(is_it)
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
