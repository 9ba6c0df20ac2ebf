//! A request, and how the cache is searched for what it asks for.

use std::time::{Duration, SystemTime};

use super::credential::{Credential, Purpose};
use super::names::{LeaseName, RequestId, TokenMark, lease_name, refresh_token_query};
use crate::cache::{
    AccessToken, AccessTokenQuery, Account, Life, RefreshToken, TokenCache, TokenResponse, is_microsoft,
    unix_seconds,
};
use crate::secret::Secret;

const SEVERAL_REALMS: &str =
    "the account has tokens of several realms: name one with `AccessTokenQuery::realm`";
pub(crate) const SEVERAL_ISSUERS: &str = "the environment has several users of this id, told apart by their issuer: take the \
                               account from `accounts`, or name it with `Account::with_issuer`";
const NO_SCOPES: &str = "no scopes are named, and the sign-in was for some: name them with `AccessTokenQuery::scopes`, or ask for \
     `any_scope`";

/// A request for a token, or for work to be done once.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) purpose: Purpose,
    pub(crate) request: RequestId,
    pub(crate) query: AccessTokenQuery,
    pub(crate) means: Means,
    pub(crate) family_id: Option<String>,
    pub(crate) token_endpoint: Option<String>,
    pub(crate) claims: Option<String>,
    pub(crate) tries_now: bool,
    /// The access token that is to be replaced.
    pub(crate) refused: Option<AccessToken>,
    #[cfg_attr(not(feature = "tokio"), allow(dead_code))] // A blocking call is never given up.
    pub(crate) call_timeout: Duration,
    /// An early refresh: a valid token is left, and nobody waits.
    pub(crate) is_early: bool,
}

/// How a token is obtained.
#[derive(Debug, Clone)]
pub(crate) enum Means {
    /// By a refresh token of this account.
    RefreshToken(Box<Account>),
    /// By a call that needs none: client credentials, a managed identity, another program's token, a sign-in.
    Mint,
}

/// The result of a lookup.
#[derive(Debug)]
pub(crate) enum Look {
    /// A fresh credential.
    Fresh(Credential),
    /// No fresh credential; this call can be made.
    Send(Box<Candidate>),
    /// The request is ambiguous. The text says what to add to it.
    Ambiguous(&'static str),
    /// Neither a fresh credential nor a refresh token.
    Nothing,
}

/// A call to make.
#[derive(Debug, Clone)]
pub(crate) struct Candidate {
    /// The refresh token to send; `None` if the call needs none.
    pub(crate) token: Option<RefreshToken>,
    pub(crate) name: LeaseName,
    pub(crate) environment: String,
    /// The realm to keep the tokens under, if nothing else names one.
    pub(crate) realm: Option<String>,
    pub(crate) mark: TokenMark,
    /// Whether the row belongs to this client. The server may reject another client's token for that reason.
    pub(crate) is_own: bool,
    /// Whether the cache knew the account.
    pub(crate) knew_owner: bool,
}

impl Candidate {
    /// Whose tokens they are; empty for the application's own.
    pub(crate) fn owner(&self) -> &str {
        self.token.as_ref().and_then(RefreshToken::home_account_id).unwrap_or_default()
    }

    /// The scopes of the sign-in.
    pub(crate) fn scopes(&self) -> String {
        self.token.iter().flat_map(RefreshToken::scopes).collect::<Vec<_>>().join(" ")
    }
}

/// The token of a response, as the cache returns it.
#[derive(Debug)]
pub(crate) struct Came {
    pub(crate) token: Credential,
    is_fresh: bool,
}

impl Came {
    /// Whether the cache already had this very token, with this expiry or a later one.
    pub(crate) fn is_no_better_than(&self, known_until: Option<i64>) -> bool {
        known_until.is_some_and(|until| !self.is_fresh || self.token.expires_on_seconds() <= until)
    }
}

impl Wanted {
    /// Searches the cache. `spent` refresh tokens are not considered.
    pub(crate) fn look(&self, cache: &TokenCache, spent: &[Secret], now: SystemTime) -> Look {
        let query = self.query_at(now);
        let fresh = self.purpose.find(cache, &query, Life::Fresh, self.refused().as_ref());
        // A service that asks for claims rejects the tokens issued before.
        if let Some(token) = fresh.filter(|_| self.claims.is_none())
            && !(self.is_early && token.is_due(&query))
        {
            return Look::Fresh(token);
        }
        match &self.means {
            Means::RefreshToken(account) => self.look_for_refresh_token(cache, account, spent),
            Means::Mint => Look::Send(Box::new(Candidate {
                token: None,
                name: LeaseName::of_mint(&self.request),
                environment: self.query.owner.environment.clone().unwrap_or_default(),
                realm: self.query.realm.clone(),
                mark: TokenMark::none(),
                is_own: true,
                knew_owner: self.knows_owner(cache),
            })),
        }
    }

    fn look_for_refresh_token(&self, cache: &TokenCache, account: &Account, spent: &[Secret]) -> Look {
        if cache.has_several_issuers(account) {
            return Look::Ambiguous(SEVERAL_ISSUERS);
        }
        let wanted = refresh_token_query(&self.query, account, self.family_id.as_deref());
        let mut refresh_tokens = cache.find_refresh_tokens(&wanted);
        refresh_tokens.retain(|token| !spent.contains(&token.secret()));
        // A refresh token is limited to the scopes of its grant (RFC 6749 section 6), so one that has them
        // comes first. Microsoft's are not limited.
        if !is_microsoft(account.environment()) {
            refresh_tokens.sort_by_key(|token| token.family_id().is_none() && !self.is_granted(token));
        }
        let Some(first) = refresh_tokens.first().map(RefreshToken::secret) else { return Look::Nothing };
        // Clients of a family may share one token; the client's own row comes first.
        refresh_tokens.retain(|token| token.secret() == first);
        // A failure counts for all rows of a token: the newest shows when the last sign-in was.
        let newest = refresh_tokens.iter().max_by_key(|token| token.last_modification_time);
        let mark = newest.map_or_else(TokenMark::none, TokenMark::of);
        let own = refresh_tokens.iter().position(|token| token.client_id() == self.query.client_id);
        let token = refresh_tokens.swap_remove(own.unwrap_or(0));
        let names_no_scopes = self.query.scopes.is_empty() && !self.query.any_scope;
        let needs_scopes = matches!(self.purpose, Purpose::AccessToken);
        if names_no_scopes && needs_scopes && token.scopes().next().is_some() {
            return Look::Ambiguous(NO_SCOPES);
        }
        let realm = match &self.query.realm {
            Some(realm) => Some(realm.clone()),
            None => match cache.known_realm(&self.query.client_id, account) {
                Ok(realm) => realm,
                Err(_several) => return Look::Ambiguous(SEVERAL_REALMS),
            },
        };
        Look::Send(Box::new(Candidate {
            name: LeaseName::of(&token),
            mark,
            environment: token.environment().to_owned(),
            is_own: token.client_id() == self.query.client_id,
            token: Some(token),
            realm,
            knew_owner: true,
        }))
    }

    /// Whether the grant of a refresh token covers the requested scopes.
    fn is_granted(&self, token: &RefreshToken) -> bool {
        let standard = ["openid", "profile", "email", "offline_access"];
        let mut wanted = self.query.scopes.iter().filter(|scope| !standard.contains(&scope.as_str()));
        wanted.all(|scope| token.scopes().any(|granted| granted == scope))
    }

    /// Returns the name of the lease for this request.
    pub(crate) fn lease_name(&self, cache: &TokenCache) -> LeaseName {
        match &self.means {
            Means::RefreshToken(account) => {
                lease_name(cache, &refresh_token_query(&self.query, account, self.family_id.as_deref()))
            }
            Means::Mint => LeaseName::of_mint(&self.request),
        }
    }

    /// The query, at this time unless the program named another.
    fn query_at(&self, now: SystemTime) -> AccessTokenQuery {
        let mut query = self.query.clone();
        query.now.get_or_insert(now);
        query
    }

    /// Returns the best remaining token, valid or within its extended lifetime.
    pub(crate) fn leftover(&self, cache: &TokenCache, now: SystemTime) -> Option<Credential> {
        // A service that asks for claims rejects the tokens issued before.
        let query = self.claims.is_none().then(|| self.query_at(now))?;
        self.purpose.find(cache, &query, Life::Extended, self.refused().as_ref())
    }

    /// Returns the token of a response, if it is the one that was asked for.
    pub(crate) fn came(&self, cache: &TokenCache, token: &Secret, now: SystemTime) -> Option<Came> {
        let mut query = self.query_at(now);
        // The response answers this very request, so its realm is not ambiguous.
        query.any_realm = true;
        let token = self.purpose.find_this(cache, &query, token)?;
        let fresh = self.purpose.find(cache, &query, Life::Fresh, None);
        let is_fresh = fresh.is_some_and(|fresh| fresh.secret() == token.secret());
        Some(Came { token, is_fresh })
    }

    fn refused(&self) -> Option<Secret> {
        self.refused.as_ref().map(AccessToken::secret)
    }

    pub(crate) fn is_refused(&self, token: &Secret) -> bool {
        self.refused.as_ref().is_some_and(|refused| refused.secret() == *token)
    }

    /// Whether the cache has any row of the requested account.
    pub(crate) fn knows_owner(&self, cache: &TokenCache) -> bool {
        let owner = &self.query.owner;
        let (Some(home_account_id), Some(environment)) = (&owner.home_account_id, &owner.environment) else {
            return false;
        };
        cache.knows_account(home_account_id, environment)
    }

    /// Whether a response names another user than the requested one. The response to a refresh is compared
    /// with the refresh token instead.
    pub(crate) fn is_of_another_user(&self, answer: &TokenResponse, sent: &Candidate) -> bool {
        let owner = self.query.owner.home_account_id.as_deref();
        sent.token.is_none() && owner.is_some_and(|owner| answer.is_about_another(owner))
    }

    /// Returns the remaining lifetime of a token, under whatever scopes it is cached.
    pub(crate) fn left_of(
        &self,
        cache: &TokenCache,
        token: &Secret,
        owner: &str,
        now: SystemTime,
    ) -> Option<Duration> {
        let expires_on = self.purpose.expiry(cache, owner, token)?;
        let now = unix_seconds(self.query.now.unwrap_or(now));
        Some(Duration::from_secs(u64::try_from(expires_on.saturating_sub(now)).unwrap_or(0)))
    }

    /// Whether a cached token has expired.
    pub(crate) fn has_expired(
        &self,
        cache: &TokenCache,
        token: &Secret,
        owner: &str,
        now: SystemTime,
    ) -> bool {
        self.left_of(cache, token, owner, now).is_some_and(|left| left.is_zero())
    }

    /// Completes a response with what it may omit.
    pub(crate) fn completed(&self, mut answer: TokenResponse, sent: &Candidate) -> TokenResponse {
        if matches!(self.purpose, Purpose::Once(_)) {
            // A sign-in names its own account.
            return answer;
        }
        answer.client_id.get_or_insert_with(|| self.query.client_id.clone());
        // The tokens belong to the environment of the refresh token, whatever the response says.
        answer.environment = Some(sent.environment.clone());
        if let Some(token) = &sent.token {
            answer.sent_refresh_token = Some(token.secret());
            answer.home_account_id = token.home_account_id().map(str::to_owned);
            answer.grant_type.get_or_insert_with(|| "refresh_token".to_owned());
        } else {
            let owner = &self.query.owner.home_account_id;
            answer.home_account_id.clone_from(owner);
            if owner.is_none() {
                answer.grant_type.get_or_insert_with(|| "client_credentials".to_owned());
            }
            if answer.realm.is_none() && answer.token_endpoint.is_none() {
                answer.realm.clone_from(&sent.realm);
            }
            if answer.requested_scopes.is_empty() {
                answer.requested_scopes.clone_from(&self.query.scopes);
            }
        }
        answer.expected_realm.clone_from(&sent.realm);
        answer.named_ext_cache_key.clone_from(&self.query.ext_cache_key);
        match &self.query.key_id {
            Some(key_id) if answer.key_id().is_none() => answer.parameter("key_id", key_id),
            _ => answer,
        }
    }

    /// Returns the mark of the refresh token that replaced the one that was sent.
    pub(crate) fn mark_after(
        &self,
        sent: &Candidate,
        answer: &TokenResponse,
        cache: &TokenCache,
    ) -> Option<TokenMark> {
        let came = answer.body.secret_of("refresh_token").ok().flatten()?;
        let account = Account::new(sent.owner(), &*sent.environment);
        let wanted = refresh_token_query(&self.query, &account, self.family_id.as_deref());
        let rows = cache.find_refresh_tokens(&wanted).into_iter();
        let mut marks = rows.filter(|row| came == row.secret()).map(|row| TokenMark::of(&row));
        marks.find(|mark| mark.is_of_row(&sent.mark))
    }
}
