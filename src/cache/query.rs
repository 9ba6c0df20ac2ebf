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

/// Describes the access token to find: whose it is, and what it grants.
///
/// ```
/// use tokenseal::{AccessTokenQuery, Account, TokenCache};
///
/// let account = Account::new("alice", "idp.example.com");
/// let wanted = AccessTokenQuery::for_account("my-client", &account).scopes(["orders.read"]);
/// assert!(TokenCache::new().find_access_token(&wanted).is_none());
/// ```
#[derive(Debug, Clone)]
#[must_use]
pub struct AccessTokenQuery {
    pub(crate) client_id: String,
    pub(crate) owner: Owner,
    pub(crate) realm: Option<String>,
    /// Whether a token of any realm will do, where none is named.
    pub(crate) any_realm: bool,
    pub(crate) scopes: Vec<String>,
    /// Whether a token will do whatever it grants, where no scopes are named.
    pub(crate) any_scope: bool,
    pub(crate) key_id: Option<String>,
    pub(crate) ext_cache_key: Option<String>,
    pub(crate) skew: Duration,
    pub(crate) now: Option<SystemTime>,
}

impl AccessTokenQuery {
    /// Finds tokens that were issued to this client for this user.
    pub fn for_account(client_id: impl Into<String>, account: &Account) -> Self {
        let owner = Owner {
            home_account_id: Some(account.home_account_id.clone()),
            environment: Some(account.environment.clone()),
            issuer: account.issuer.clone(),
        };
        Self::new(client_id.into(), owner)
    }

    /// Finds tokens of the application itself (client credentials, a managed identity), never a user's.
    /// If there may be tokens of several identity providers, name its
    /// [`environment`](Self::environment).
    pub fn for_application(client_id: impl Into<String>) -> Self {
        Self::new(client_id.into(), Owner::default())
    }

    fn new(client_id: String, owner: Owner) -> Self {
        Self {
            client_id,
            owner,
            realm: None,
            any_realm: false,
            scopes: Vec::new(),
            any_scope: false,
            key_id: None,
            ext_cache_key: None,
            skew: DEFAULT_SKEW,
            now: None,
        }
    }

    /// Finds tokens from this identity provider or an alias of it.
    pub fn environment(mut self, environment: impl Into<String>) -> Self {
        self.owner.environment = Some(environment.into());
        self
    }

    /// Finds tokens of this tenant. Without it, and without [`any_realm`](Self::any_realm), nothing is
    /// found where the client has tokens of several tenants for the same user.
    pub fn realm(mut self, realm: impl Into<String>) -> Self {
        self.realm = Some(realm.into());
        self
    }

    /// Finds tokens of any tenant. A refresh still needs to know which.
    pub fn any_realm(mut self) -> Self {
        self.realm = None;
        self.any_realm = true;
        self
    }

    /// Finds tokens that grant at least these scopes. A text with blanks in it is several scopes. Without
    /// it, and without [`any_scope`](Self::any_scope), only tokens are found that were granted no scope.
    ///
    /// `offline_access` is in no comparison. `openid`, `profile` and `email` count as granted where the
    /// client has an id token of the user and something else is asked for as well. At Microsoft scopes are
    /// compared without regard to case, everywhere else with (RFC 6749 section 3.3).
    pub fn scopes<S: Into<String>>(mut self, scopes: impl IntoIterator<Item = S>) -> Self {
        self.scopes = listed(scopes);
        self.any_scope = false;
        self
    }

    /// Finds tokens whatever they grant. A refresh asks for the scopes of the sign-in.
    pub fn any_scope(mut self) -> Self {
        self.scopes.clear();
        self.any_scope = true;
        self
    }

    /// Finds tokens bound to this key. Without it, tokens that are bound to any key are left out.
    pub fn key_id(mut self, key_id: impl Into<String>) -> Self {
        self.key_id = Some(key_id.into());
        self
    }

    /// Finds tokens requested with just these further parameters, such as `fmi_path`; they are taken as
    /// [`TokenResponse::parameter`](crate::TokenResponse::parameter) takes them. Without it, tokens
    /// that were requested with any are left out.
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

    /// Finds tokens under this extended cache key, where it is known rather than the parameters.
    pub fn ext_cache_key(mut self, ext_cache_key: impl Into<String>) -> Self {
        self.ext_cache_key = Some(ext_cache_key.into());
        self
    }

    /// How long before its end a token counts as expired: 5 minutes by default. Choose a shorter time for a
    /// provider whose tokens live no longer than that, and for a lookup right after a sign-in.
    pub fn skew(mut self, skew: Duration) -> Self {
        self.skew = skew;
        self
    }

    /// The time to judge expiry by: by default, the time of the lookup.
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
#[must_use]
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
    pub fn family_id(mut self, family_id: impl Into<String>) -> Self {
        self.family_id = Some(family_id.into());
        self
    }
}

/// Which accounts to find: all of them, unless narrowed.
///
/// ```
/// use tokenseal::TokenCache;
/// use tokenseal::cache::AccountQuery;
///
/// let wanted = AccountQuery::new().username("alice@contoso.com");
/// assert!(TokenCache::new().find_accounts(&wanted).is_empty());
/// ```
#[derive(Debug, Clone, Default)]
#[must_use]
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
    pub fn home_account_id(mut self, home_account_id: impl Into<String>) -> Self {
        self.home_account_id = Some(home_account_id.into());
        self
    }

    /// Accounts at this identity provider or an alias of it.
    pub fn environment(mut self, environment: impl Into<String>) -> Self {
        self.environment = Some(environment.into());
        self
    }

    /// Accounts with this user name, in whatever case.
    pub fn username(mut self, username: impl Into<String>) -> Self {
        self.username = Some(username.into());
        self
    }
}
