//! Adds a token response: the rows that msal (Python) 1.39 would write, without its defects.

use std::borrow::Cow;

use super::TokenCache;
use super::account::Account;
use super::derive::Derived;
use super::error::CacheError;
use super::fields::{Field, Fields};
use super::issuer;
use super::json_text;
use super::map_key::KeyParts;
use super::owner::{NAMED, SentToken};
use super::response::{Seconds, TokenResponse};
use super::row_text::{RowFields, Value, with_fields};
use super::rows::{Kind, RowId, RowText};
use crate::secret::Secret;

/// The grant types by which a user signs in, as opposed to one that only refreshes.
const SIGN_IN_GRANTS: [&str; 5] =
    ["broker", "authorization_code", "password", "urn:ietf:params:oauth:grant-type:device_code", "user_fic"];

/// What [`TokenCache::add`] wrote.
///
/// ```
/// # use tokenseal::{TokenCache, TokenResponse};
/// # let response = TokenResponse::from_json(
/// #     r#"{"access_token":"at","expires_in":3600,"refresh_token":"rt"}"#)?
/// #     .client_id("app").environment("idp.example").realm("r").home_account_id("alice")
/// #     .requested_scopes(["read"]);
/// let added = TokenCache::new().add(&response)?;
/// assert_eq!(added.account().unwrap().environment(), "idp.example");
/// # Ok::<(), tokenseal::CacheError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Added {
    account: Option<Account>,
    is_signed_out: bool,
    has_expired: bool,
}

impl Added {
    /// The account that the tokens belong to; `None` for tokens of the application itself.
    pub fn account(&self) -> Option<&Account> {
        self.account.as_ref()
    }

    /// Whether nothing was added: the response answers a refresh, and its account was signed out
    /// since the refresh began.
    pub fn is_signed_out(&self) -> bool {
        self.is_signed_out
    }

    /// Whether the access token had expired when it came.
    pub fn has_expired(&self) -> bool {
        self.has_expired
    }
}

impl TokenCache {
    /// Adds the tokens of a response: rows for the access token, refresh token, id token, account
    /// and application, each in the place of the one it renews.
    ///
    /// The rows and their keys are those of msal (Python) 1.39; `docs/msal.md` lists the
    /// differences.
    ///
    /// An access token without a lifetime gets msal's 600 seconds, unless it is a user's and there is no
    /// refresh token, in the response or the cache: then it does not expire as far as anybody knows, as at
    /// GitHub. [`TokenResponse::lifetime`] and its like say otherwise. One that has expired when it comes
    /// does not take the place of one that has not.
    ///
    /// If the response answers a refresh ([`TokenResponse::sent_refresh_token`]), the account, the
    /// environment and the client are those of the refresh token that was sent.
    ///
    /// # Errors
    /// [`CacheError`] if the response cannot be understood or is an error, if nothing says whose tokens
    /// they are, if they are another user's than the refresh token that was sent, or if the cache cannot
    /// take them. Nothing is changed then.
    pub fn add(&mut self, response: &TokenResponse) -> Result<Added, CacheError> {
        let derived = Derived::of(response, self)?;
        let is_refresh = response.is_refresh();
        if is_refresh && self.is_signed_out(&derived) {
            return Ok(Added { account: None, is_signed_out: true, has_expired: false });
        }
        let account_is_written = derived.home_account_id.is_some() && !is_refresh;
        for (kind, is_written) in [
            (Kind::AccessToken, derived.access_token.is_some()),
            (Kind::Account, account_is_written),
            (Kind::IdToken, derived.id_token.is_some()),
            (Kind::RefreshToken, derived.refresh_token.is_some()),
            (Kind::AppMetadata, true),
        ] {
            if is_written && self.rows.is_unusable(kind) {
                return Err(CacheError::UnusableSection { section: kind.name() });
            }
        }

        let mut has_expired = false;
        if let Some(access_token) = &derived.access_token {
            let has_refresh_token = derived.refresh_token.is_some() || self.has_refresh_token(&derived);
            let (expires_on, extended_expires_on) = derived.expiry(has_refresh_token);
            let refresh_on = match response.body.seconds_of("refresh_in") {
                // When the token comes, nothing is due: whoever believed that would refresh at each call.
                Seconds::Read(seconds) if seconds > 0 => {
                    Some(derived.now.saturating_add(seconds).to_string())
                }
                Seconds::Read(_) | Seconds::Absent | Seconds::Unreadable => None,
            };
            let times = AccessTokenTimes {
                cached_at: derived.now.to_string(),
                expires_on: expires_on.to_string(),
                extended_expires_on: extended_expires_on.to_string(),
                refresh_on,
                has_expired: expires_on <= derived.now,
            };
            has_expired = times.has_expired;
            let token_type = response.body.hint("token_type");
            let token_type = token_type.as_deref().unwrap_or("Bearer");
            self.add_access_token(&derived, access_token, token_type, &times);
        }
        if account_is_written {
            self.add_account(&derived);
        }
        if let Some(id_token) = &derived.id_token {
            self.add_id_token(&derived, id_token);
        }
        match &derived.refresh_token {
            Some(refresh_token) => self.add_refresh_token(&derived, refresh_token),
            None if account_is_written => self.touch_refresh_tokens(&derived),
            None => {}
        }
        self.add_app_metadata(&derived);
        self.changed();
        let account = derived.home_account_id.as_ref().map(|home_account_id| {
            let bare = Account {
                realms: derived.realm.iter().filter(|realm| !realm.is_empty()).cloned().collect(),
                issuer: derived.issuer.clone(),
                ..Account::new(home_account_id, &derived.environment)
            };
            self.find_account(&bare).unwrap_or(bare)
        });
        Ok(Added { account, is_signed_out: false, has_expired })
    }

    /// Whether the account has neither an account row nor a refresh token: so a sign-out leaves it.
    fn is_signed_out(&self, derived: &Derived<'_>) -> bool {
        let Some(owner) = &derived.home_account_id else { return false };
        [Kind::Account, Kind::RefreshToken]
            .into_iter()
            .all(|kind| self.rows_of(kind, owner, &derived.environment, derived.issuer.as_deref()).is_empty())
    }

    /// The scopes that a refresh token came with, as far as its row says.
    pub(super) fn scopes_of_sign_in(&self, sent: Option<&SentToken>) -> Option<String> {
        self.rows.fields(sent?.row).text(Field::Target).map(Cow::into_owned)
    }

    fn add_access_token(
        &mut self,
        derived: &Derived<'_>,
        secret: &Secret,
        token_type: &str,
        times: &AccessTokenTimes,
    ) {
        let ext_cache_key = derived.response.ext_cache_key();
        let key_id = derived.response.key_id();
        let parts = KeyParts { ext_cache_key: ext_cache_key.as_deref(), ..derived.parts() };
        let mut row = RowFields::default();
        row.put("credential_type", Value::Text("AccessToken"));
        row.put("secret", Value::Text(secret.expose()));
        row.put("home_account_id", derived.home_account_id.as_deref());
        row.put("environment", Value::Text(&derived.environment));
        row.put("client_id", Value::Text(&derived.client_id));
        row.put("target", Value::Text(&derived.target));
        row.put("realm", derived.realm.as_deref());
        row.put("token_type", Value::Text(token_type));
        row.put("cached_at", Value::Text(&times.cached_at));
        row.put("expires_on", Value::Text(&times.expires_on));
        row.put("extended_expires_on", Value::Text(&times.extended_expires_on));
        if let Some(key_id) = key_id {
            row.put("key_id", Value::Text(key_id));
        }
        if let Some(ext_cache_key) = &ext_cache_key {
            row.put("ext_cache_key", Value::Text(ext_cache_key));
        }
        if let Some(refresh_on) = &times.refresh_on {
            row.put("refresh_on", Value::Text(refresh_on));
        }
        put_issuer(&mut row, derived);
        // Under its own key msal lets a token of another type replace this one. In a row that another
        // SDK wrote under another key, the type and key must be the same.
        let is_same_token = |fields: &Fields<'_>| {
            fields.text(Field::KeyId).as_deref() == key_id
                && fields
                    .text(Field::TokenType)
                    .as_deref()
                    .unwrap_or("Bearer")
                    .eq_ignore_ascii_case(token_type)
                && fields.text(Field::UserAssertionHash).is_none()
        };
        match self.slot(Kind::AccessToken, &parts, is_same_token) {
            Slot::Taken(old) if times.has_expired && self.lives(old, derived.now) => {}
            Slot::Taken(old) => self.rewrite(Kind::AccessToken, old, |key, _| row.write(key)),
            Slot::Free(key) => self.rows.insert(Kind::AccessToken, row.write(&key)),
        }
    }

    /// Whether an access token has not expired.
    fn lives(&self, row: RowId, now: i64) -> bool {
        self.rows.fields(row).time(Field::ExpiresOn).is_some_and(|expires_on| expires_on > now)
    }

    fn add_account(&mut self, derived: &Derived<'_>) {
        let claim = |name| derived.id_claims.as_ref().and_then(|claims| claims.text(name));
        let local_account_id = claim("oid").or_else(|| claim("sub"));
        let username = claim("preferred_username").or_else(|| claim("upn"));
        let is_adfs = derived.realm.as_deref() == Some("adfs");
        let authority_type = derived.response.authority_type.as_deref();
        let grant_type = derived.response.grant_type.as_deref();
        let mut row = RowFields::default();
        row.put("home_account_id", derived.home_account_id.as_deref());
        row.put("environment", Value::Text(&derived.environment));
        row.put("realm", derived.realm.as_deref());
        row.put("local_account_id", local_account_id.as_deref());
        row.put("username", Value::Text(username.as_deref().unwrap_or(derived.username())));
        row.put(
            "authority_type",
            Value::Text(authority_type.unwrap_or(if is_adfs { "ADFS" } else { "MSSTS" })),
        );
        if let Some(grant_type) = grant_type.filter(|grant_type| SIGN_IN_GRANTS.contains(grant_type)) {
            row.put("account_source", Value::Text(grant_type));
        }
        put_issuer(&mut row, derived);
        match self.slot(Kind::Account, &derived.parts(), |_| true) {
            Slot::Taken(old) => self.rewrite(Kind::Account, old, |key, value| row.merge(key, value)),
            Slot::Free(key) => self.rows.insert(Kind::Account, row.write(&key)),
        }
    }

    fn add_id_token(&mut self, derived: &Derived<'_>, secret: &Secret) {
        let mut row = RowFields::default();
        row.put("credential_type", Value::Text("IdToken"));
        row.put("secret", Value::Text(secret.expose()));
        row.put("home_account_id", derived.home_account_id.as_deref());
        row.put("environment", Value::Text(&derived.environment));
        row.put("realm", derived.realm.as_deref());
        row.put("client_id", Value::Text(&derived.client_id));
        put_issuer(&mut row, derived);
        let is_same_token = |fields: &Fields<'_>| fields.text(Field::UserAssertionHash).is_none();
        match self.slot(Kind::IdToken, &derived.parts(), is_same_token) {
            Slot::Taken(old) => self.rewrite(Kind::IdToken, old, |key, _| row.write(key)),
            Slot::Free(key) => self.rows.insert(Kind::IdToken, row.write(&key)),
        }
    }

    fn add_refresh_token(&mut self, derived: &Derived<'_>, secret: &Secret) {
        if self.renew_sent_refresh_token(derived, secret) {
            return;
        }
        if derived.response.sent_refresh_token.is_some() && self.has_refresh_token(derived) {
            // The one that was sent is gone and another came: a newer sign-in, which this must not undo.
            return;
        }
        // The other SDKs write no target: their one row for the client is the one that is renewed.
        let is_same_token = |fields: &Fields<'_>| {
            fields.text(Field::FamilyId).as_deref() == derived.family.as_deref()
                && fields.text(Field::UserAssertionHash).is_none()
        };
        let slot = self.slot(Kind::RefreshToken, &derived.parts(), is_same_token);
        let modified = match &slot {
            Slot::Taken(old) => self.modified_after(*old, derived),
            Slot::Free(_) => derived.now.to_string(),
        };
        let mut row = RowFields::default();
        row.put("credential_type", Value::Text("RefreshToken"));
        row.put("secret", Value::Text(secret.expose()));
        row.put("home_account_id", derived.home_account_id.as_deref());
        row.put("environment", Value::Text(&derived.environment));
        row.put("client_id", Value::Text(&derived.client_id));
        row.put("target", Value::Text(&derived.target));
        row.put("last_modification_time", Value::Text(&modified));
        if let Some(family) = &derived.family {
            row.put("family_id", Value::Text(family));
        }
        put_issuer(&mut row, derived);
        if derived.is_named {
            row.put("home_account_id_source", Value::Text(NAMED));
        }
        match slot {
            Slot::Taken(old) => self.rewrite(Kind::RefreshToken, old, |key, _| row.write(key)),
            Slot::Free(key) => self.rows.insert(Kind::RefreshToken, row.write(&key)),
        }
    }

    /// The refresh tokens that the client has of this user, its family's not among them.
    fn own_refresh_tokens(&self, derived: &Derived<'_>) -> Vec<RowId> {
        let Some(owner) = &derived.home_account_id else { return Vec::new() };
        let mut rows =
            self.rows_of(Kind::RefreshToken, owner, &derived.environment, derived.issuer.as_deref());
        rows.retain(|&row| self.rows.fields(row).is(Field::ClientId, &derived.client_id));
        rows
    }

    fn has_refresh_token(&self, derived: &Derived<'_>) -> bool {
        !self.own_refresh_tokens(derived).is_empty()
    }

    /// A sign-in without a refresh token, as Google's second one, leaves the old one: that it was seen to
    /// work again shows in the time of the row, by which refusals of before are known to be over.
    fn touch_refresh_tokens(&mut self, derived: &Derived<'_>) {
        for row in self.own_refresh_tokens(derived) {
            let before = self.rows.fields(row).time(Field::LastModificationTime).unwrap_or(derived.now);
            let is_named = derived.response.received_at.is_some();
            let modified = if is_named {
                derived.now.max(before).to_string()
            } else {
                self.modified_after(row, derived)
            };
            self.rewrite(Kind::RefreshToken, row, |key, value| {
                with_fields(key, value, &[(Field::LastModificationTime, "last_modification_time", &modified)])
            });
        }
    }

    /// The time of a sign-in that renews a row: unless the program says when that was, it is later than the
    /// row's own, so that the two are told apart though they come within one second.
    fn modified_after(&self, row: RowId, derived: &Derived<'_>) -> String {
        let before = self.rows.fields(row).time(Field::LastModificationTime);
        let before = before.filter(|_| derived.response.received_at.is_none());
        before.map_or(derived.now, |before| derived.now.max(before.saturating_add(1))).to_string()
    }

    /// Puts a rotated refresh token in every row that holds the one it replaces.
    fn renew_sent_refresh_token(&mut self, derived: &Derived<'_>, secret: &Secret) -> bool {
        let (Some(sent), Some(owner)) = (&derived.response.sent_refresh_token, &derived.home_account_id)
        else {
            return false;
        };
        let holders = self.refresh_tokens_with_secret(owner, &derived.environment, sent);
        for &row in &holders {
            let before = self.rows.fields(row).time(Field::LastModificationTime).unwrap_or(derived.now);
            let modified = derived.now.max(before).to_string();
            self.rewrite(Kind::RefreshToken, row, |key, value| {
                let secret = (Field::Secret, "secret", secret.expose());
                let modified = (Field::LastModificationTime, "last_modification_time", modified.as_str());
                with_fields(key, value, &[secret, modified])
            });
        }
        !holders.is_empty()
    }

    fn add_app_metadata(&mut self, derived: &Derived<'_>) {
        let mut row = RowFields::default();
        row.put("client_id", Value::Text(&derived.client_id));
        row.put("environment", Value::Text(&derived.environment));
        if let Some(family) = &derived.family {
            row.put("family_id", Value::Text(family));
        }
        match self.slot(Kind::AppMetadata, &derived.parts(), |_| true) {
            Slot::Taken(old) => self.rewrite(Kind::AppMetadata, old, |key, value| row.merge(key, value)),
            Slot::Free(key) => self.rows.insert(Kind::AppMetadata, row.write(&key)),
        }
    }

    /// Finds the row that a new one renews, whichever SDK wrote it, or a key that is free.
    fn slot(
        &mut self,
        kind: Kind,
        parts: &KeyParts<'_>,
        is_same_token: impl Fn(&Fields<'_>) -> bool,
    ) -> Slot {
        let plain = parts.map_key(kind);
        let in_the_way = self.rows.under_map_key(kind, &plain);
        let mut same = self.rows.of_identity(kind, parts);
        same.retain(|&row| {
            self.is_same_row(kind, row, parts)
                && (in_the_way == Some(row) || is_same_token(&self.rows.fields(row)))
        });
        if let Some(row) = in_the_way.filter(|&row| self.is_same_row(kind, row, parts)) {
            // Before all others, where both are of one issuer.
            same.retain(|&other| other != row);
            same.insert(0, row);
        }
        if let Some(row) = self.of_issuer(kind, &same, parts.issuer) {
            return Slot::Taken(row);
        }
        let key = if in_the_way.is_none() { plain } else { parts.distinct_map_key(kind) };
        self.rows.under_map_key(kind, &key).map_or_else(|| Slot::Free(json_text::encoded(&key)), Slot::Taken)
    }

    /// Of rows that differ in who issued what they are about, the one of this issuer. A row that says
    /// nothing is of the one that comes first.
    fn of_issuer(&self, kind: Kind, rows: &[RowId], wanted: Option<&str>) -> Option<RowId> {
        let issuer = |&row: &RowId| {
            let fields = self.rows.fields(row);
            let own = fields.text(Field::Issuer).map(Cow::into_owned);
            own.or_else(|| wanted.and_then(|_| self.issuer_of(kind, &fields)))
        };
        let issuers: Vec<Option<String>> = rows.iter().map(issuer).collect();
        let find =
            |is_it: &dyn Fn(&Option<String>) -> bool| issuers.iter().position(is_it).map(|at| rows[at]);
        let silent = find(&Option::is_none);
        match wanted {
            Some(wanted) => {
                let is_its = |own: &Option<String>| own.as_ref().is_some_and(|own| issuer::same(own, wanted));
                find(&is_its).or(silent)
            }
            None => silent.or_else(|| {
                let mut known = issuers.iter().flatten();
                let first = known.next()?;
                known.all(|other| issuer::same(first, other)).then(|| rows[0])
            }),
        }
    }

    /// Whether a row is the one that `parts` name, by its fields.
    fn is_same_row(&self, kind: Kind, row: RowId, parts: &KeyParts<'_>) -> bool {
        let fields = self.rows.fields(row);
        let text = |field| fields.text(field).unwrap_or_default();
        let same = |field, wanted: &str| text(field) == wanted;
        let environment = text(Field::Environment).eq_ignore_ascii_case(parts.environment);
        let owner = same(Field::HomeAccountId, parts.home_account_id);
        let client = same(Field::ClientId, parts.client_id);
        let realm = same(Field::Realm, parts.realm);
        environment
            && match kind {
                Kind::AccessToken => {
                    owner
                        && client
                        && realm
                        && fields.has_scopes_of(parts.target)
                        && fields.ext_cache_key().as_deref() == parts.ext_cache_key
                }
                Kind::RefreshToken => {
                    let target = text(Field::Target);
                    owner && client && (target.is_empty() || fields.has_scopes_of(parts.target))
                }
                Kind::IdToken => owner && client && realm,
                Kind::Account => owner && realm,
                Kind::AppMetadata => client,
            }
    }

    /// Replaces a row's text, unless it stays the same.
    fn rewrite(&mut self, kind: Kind, row: RowId, write: impl FnOnce(&str, &str) -> RowText) {
        let text = write(self.rows.raw_key(row), self.rows.value(row));
        if text.value() != self.rows.value(row) {
            self.rows.replace(kind, row, text);
        }
    }
}

struct AccessTokenTimes {
    cached_at: String,
    expires_on: String,
    extended_expires_on: String,
    refresh_on: Option<String>,
    has_expired: bool,
}

/// Says who issued what a row is about, where that tells accounts apart.
fn put_issuer<'a>(row: &mut RowFields<'a>, derived: &'a Derived<'_>) {
    if let Some(issuer) = &derived.issuer {
        row.put("iss", Value::Text(issuer));
    }
}

/// Where a new row goes.
enum Slot {
    /// Into the place of this row.
    Taken(RowId),
    /// Under this raw key, which no row has.
    Free(String),
}
