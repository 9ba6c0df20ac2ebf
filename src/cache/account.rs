//! An account: one user at one identity provider.

/// A user whose tokens are in the cache, with the realms (tenants) that the user signed in to.
///
/// One account gathers all rows with its `home_account_id` in its environment and that
/// environment's aliases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    pub(crate) home_account_id: String,
    pub(crate) environment: String,
    pub(crate) issuer: Option<String>,
    pub(crate) realms: Vec<String>,
    pub(crate) username: String,
    pub(crate) name: Option<String>,
    pub(crate) local_account_id: Option<String>,
    pub(crate) authority_type: Option<String>,
    pub(crate) account_source: Option<String>,
}

impl Account {
    /// An account of which only the identity is known: enough to look for its tokens or to sign it
    /// out.
    ///
    /// ```
    /// let account = tokenseal::Account::new("alice", "idp.example.com");
    /// assert_eq!(account.home_account_id(), "alice");
    /// ```
    pub fn new(home_account_id: impl Into<String>, environment: impl Into<String>) -> Self {
        Self {
            home_account_id: home_account_id.into(),
            environment: environment.into(),
            issuer: None,
            realms: Vec::new(),
            username: String::new(),
            name: None,
            local_account_id: None,
            authority_type: None,
            account_source: None,
        }
    }

    /// Says who issued the user's id tokens, where one environment has several issuers: the `iss` claim.
    ///
    /// ```
    /// let account = tokenseal::Account::new("alice", "idp.example.com");
    /// let account = account.with_issuer("https://idp.example.com/realms/shop");
    /// assert_eq!(account.issuer(), Some("https://idp.example.com/realms/shop"));
    /// ```
    #[must_use]
    pub fn with_issuer(mut self, issuer: impl Into<String>) -> Self {
        self.issuer = Some(issuer.into());
        self
    }

    /// What tells this user from every other one in the environment: `uid.utid` at Microsoft, the
    /// `sub` claim elsewhere, or what the program named.
    pub fn home_account_id(&self) -> &str {
        &self.home_account_id
    }

    /// The identity provider's host, as it was written.
    pub fn environment(&self) -> &str {
        &self.environment
    }

    /// Who issued the user's id tokens (the `iss` claim), where that tells accounts apart: Keycloak's
    /// realms and Okta's custom servers share one host. `None` where `client_info` or the program says whose
    /// the tokens are.
    pub fn issuer(&self) -> Option<&str> {
        self.issuer.as_deref()
    }

    /// The realms (tenants) that the user signed in to, in the order they were added.
    pub fn realms(&self) -> &[String] {
        &self.realms
    }

    /// The name the user signs in with, to show: the user name, or else what the id token has of `email`,
    /// `emails`, `unique_name`, `name` and `sub`, in this order. Empty if nothing is known.
    pub fn username(&self) -> &str {
        &self.username
    }

    /// The name to show, if another SDK wrote one.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// The user's id in the realm last added: the `oid` claim, or else `sub`.
    pub fn local_account_id(&self) -> Option<&str> {
        self.local_account_id.as_deref()
    }

    /// `MSSTS`, `ADFS` or another kind of authority.
    pub fn authority_type(&self) -> Option<&str> {
        self.authority_type.as_deref()
    }

    /// The grant type that the user signed in by.
    pub fn account_source(&self) -> Option<&str> {
        self.account_source.as_deref()
    }
}
