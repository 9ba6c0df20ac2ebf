//! What to look for: queries for access tokens, refresh tokens and accounts.

use std::time::{Duration, SystemTime};

use super::account::Account;
use super::fields::ext_cache_key;
use super::response::is_standard_parameter;
use super::scopes::listed;
use super::unix_seconds;

/// How close to its end an access token counts as expired, unless the query says otherwise.
pub(crate) const DEFAULT_SKEW: Duration = Duration::from_secs(5 * 60);

/// Whose token is looked for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Owner {
    /// `None`: the application itself.
    pub(crate) home_account_id: Option<String>,
    /// `None`: any.
    pub(crate) environment: Option<String>,
    /// `None`: the only one there is.
    pub(crate) issuer: Option<String>,
}

/// Which access token to find.
///
/// Without an account it finds tokens of the application itself (client credentials), never a
/// user's.
///
/// ```
/// use tokenseal::{AccessTokenQuery, Account, TokenCache};
///
/// let account = Account::new("alice", "idp.example.com");
/// let wanted = AccessTokenQuery::new("my-client").account(&account).scopes(["orders.read"]);
/// assert!(TokenCache::new().find_access_token(&wanted).is_none());
/// ```
#[derive(Debug, Clone)]
pub struct AccessTokenQuery {
    pub(crate) client_id: String,
    pub(crate) owner: Owner,
    pub(crate) realm: Option<String>,
    pub(crate) scopes: Vec<String>,
    pub(crate) key_id: Option<String>,
    pub(crate) ext_cache_key: Option<String>,
    pub(crate) skew: Duration,
    pub(crate) now: Option<SystemTime>,
}

impl AccessTokenQuery {
    /// Tokens that were issued to this client.
    pub fn new(client_id: impl Into<String>) -> Self {
        Self {
            client_id: client_id.into(),
            owner: Owner::default(),
            realm: None,
            scopes: Vec::new(),
            key_id: None,
            ext_cache_key: None,
            skew: DEFAULT_SKEW,
            now: None,
        }
    }

    /// Tokens of this user.
    #[must_use]
    pub fn account(mut self, account: &Account) -> Self {
        self.owner.home_account_id = Some(account.home_account_id.clone());
        self.owner.environment = Some(account.environment.clone());
        self.owner.issuer.clone_from(&account.issuer);
        self
    }

    /// Tokens from this identity provider or an alias of it.
    #[must_use]
    pub fn environment(mut self, environment: impl Into<String>) -> Self {
        self.owner.environment = Some(environment.into());
        self
    }

    /// Tokens from this tenant. Name it wherever a user may sign in to more than one.
    #[must_use]
    pub fn realm(mut self, realm: impl Into<String>) -> Self {
        self.realm = Some(realm.into());
        self
    }

    /// Tokens that grant at least these scopes. A text with blanks in it is several scopes.
    ///
    /// `offline_access` is in no comparison. `openid`, `profile` and `email` count as granted where the
    /// client has an id token of the user and something else is asked for as well. At Microsoft scopes are
    /// compared without regard to case, everywhere else with (RFC 6749 section 3.3).
    #[must_use]
    pub fn scopes<S: Into<String>>(mut self, scopes: impl IntoIterator<Item = S>) -> Self {
        self.scopes = listed(scopes);
        self
    }

    /// Tokens bound to this key. Without it, tokens that are bound to any key are left out.
    #[must_use]
    pub fn key_id(mut self, key_id: impl Into<String>) -> Self {
        self.key_id = Some(key_id.into());
        self
    }

    /// Tokens requested with just these further parameters, such as `fmi_path`; they are taken as
    /// [`TokenResponse::parameter`](crate::TokenResponse::parameter) takes them. Without it, tokens
    /// that were requested with any are left out.
    #[must_use]
    pub fn parameters<K: Into<String>, V: Into<String>>(
        mut self,
        parameters: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        let mut extended: Vec<(String, String)> = Vec::new();
        for (name, value) in parameters.into_iter().map(|(name, value)| (name.into(), value.into())) {
            // As for a response: what tells no tokens apart does not count here either.
            if name == "key_id" {
                self.key_id = Some(value);
            } else if !is_standard_parameter(&name) {
                extended.push((name, value));
            }
        }
        let extended = extended.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        self.ext_cache_key = ext_cache_key(extended);
        self
    }

    /// Tokens under this extended cache key, where it is known rather than the parameters.
    #[must_use]
    pub fn ext_cache_key(mut self, ext_cache_key: impl Into<String>) -> Self {
        self.ext_cache_key = Some(ext_cache_key.into());
        self
    }

    /// How long before its end a token counts as expired: 5 minutes unless named. A provider whose
    /// tokens live no longer than that asks for a shorter one, and so does a lookup right after a
    /// sign-in.
    #[must_use]
    pub fn skew(mut self, skew: Duration) -> Self {
        self.skew = skew;
        self
    }

    /// The time to judge expiry by; the time of the lookup unless named.
    #[must_use]
    pub fn at(mut self, now: SystemTime) -> Self {
        self.now = Some(now);
        self
    }

    /// The Unix second to judge by, and the one after which a token must expire to count as valid.
    pub(crate) fn now_and_valid_at(&self) -> (i64, i64) {
        let now = unix_seconds(self.now.unwrap_or_else(SystemTime::now));
        (now, now.saturating_add(i64::try_from(self.skew.as_secs()).unwrap_or(i64::MAX)))
    }
}

/// Which refresh tokens to find.
///
/// ```
/// use tokenseal::{Account, RefreshTokenQuery, TokenCache};
///
/// let account = Account::new("alice", "idp.example.com");
/// let wanted = RefreshTokenQuery::new("my-client", &account);
/// assert!(TokenCache::new().find_refresh_tokens(&wanted).is_empty());
/// ```
#[derive(Debug, Clone)]
pub struct RefreshTokenQuery {
    pub(crate) client_id: String,
    pub(crate) account: Account,
    pub(crate) family_id: Option<String>,
}

impl RefreshTokenQuery {
    /// Refresh tokens with which this client can get tokens for this user.
    pub fn new(client_id: impl Into<String>, account: &Account) -> Self {
        Self { client_id: client_id.into(), account: account.clone(), family_id: None }
    }

    /// The family that the client belongs to, where it is known better than from the cache.
    #[must_use]
    pub fn family_id(mut self, family_id: impl Into<String>) -> Self {
        self.family_id = Some(family_id.into());
        self
    }
}

/// Which accounts to find: all of them, unless narrowed.
///
/// ```
/// use tokenseal::{AccountQuery, TokenCache};
///
/// let wanted = AccountQuery::new().username("alice@contoso.com");
/// assert!(TokenCache::new().find_accounts(&wanted).is_empty());
/// ```
#[derive(Debug, Clone, Default)]
pub struct AccountQuery {
    pub(crate) home_account_id: Option<String>,
    pub(crate) environment: Option<String>,
    pub(crate) username: Option<String>,
}

impl AccountQuery {
    /// All accounts.
    pub fn new() -> Self {
        Self::default()
    }

    /// The account with this id.
    #[must_use]
    pub fn home_account_id(mut self, home_account_id: impl Into<String>) -> Self {
        self.home_account_id = Some(home_account_id.into());
        self
    }

    /// Accounts at this identity provider or an alias of it.
    #[must_use]
    pub fn environment(mut self, environment: impl Into<String>) -> Self {
        self.environment = Some(environment.into());
        self
    }

    /// Accounts with this user name, in whatever case.
    #[must_use]
    pub fn username(mut self, username: impl Into<String>) -> Self {
        self.username = Some(username.into());
        self
    }
}
