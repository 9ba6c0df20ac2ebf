//! Whose tokens a response holds, and whether it may answer for the refresh token that was sent.

use std::borrow::Cow;

use super::TokenCache;
use super::account::Account;
use super::claims::Claims;
use super::derive::Derived;
use super::environment::is_microsoft;
use super::error::CacheError;
use super::fields::{Field, Fields};
use super::issuer;
use super::response::TokenResponse;
use super::rows::{Kind, Lookup, RowId};
use crate::secret::Secret;

/// How the row of a refresh token says that a program named its account: nothing that the provider
/// says is then comparable with that name.
pub(super) const NAMED: &str = "named";

/// The user whom a response names.
pub(super) struct Owner {
    pub(super) home_account_id: String,
    /// Tells accounts apart that share an environment, where `client_info` does not.
    pub(super) issuer: Option<String>,
    /// Whether only the program said so.
    pub(super) is_named: bool,
}

/// The row of the refresh token that was sent, as far as the cache still has it.
pub(super) struct SentToken {
    pub(super) row: RowId,
    pub(super) home_account_id: Option<String>,
    pub(super) environment: Option<String>,
    pub(super) client_id: Option<String>,
    pub(super) is_of_a_family: bool,
    pub(super) issuer: Option<String>,
    is_named: bool,
}

/// What a response says of its user.
pub(super) struct Identification {
    /// `uid.utid`, where both are there.
    client_info: Option<String>,
    pub(super) claims: Option<Claims>,
}

impl Identification {
    /// Reads `client_info` and the id token. Where the owner `is_known` without them, what cannot be
    /// read counts as absent.
    pub(super) fn read(response: &TokenResponse, is_known: bool) -> Result<Self, CacheError> {
        let client_info = match response.body.text_of("client_info") {
            Ok(Some(text)) => Claims::of_client_info(&text).map(Some),
            Ok(None) => Ok(None),
            Err(error) => Err(error),
        };
        let client_info = match client_info {
            Ok(claims) => {
                claims.and_then(|claims| Some(format!("{}.{}", claims.text("uid")?, claims.text("utid")?)))
            }
            Err(_) if is_known => None,
            Err(error) => return Err(error),
        };
        let id_token = response.body.secret_of("id_token")?;
        let claims = match id_token.map(|token| Claims::of_id_token(token.expose())) {
            // An encrypted one cannot be read, and need not be.
            Some(Err(_)) if is_known || client_info.is_some() => None,
            claims => claims.transpose()?,
        };
        Ok(Self { client_info, claims })
    }

    /// The user, named by the program or by the provider.
    pub(super) fn owner(&self, response: &TokenResponse) -> Option<Owner> {
        let by_provider = self.by_provider();
        let named = response.home_account_id.clone().filter(|named| !named.is_empty());
        match named {
            Some(named) if by_provider.as_ref().is_none_or(|owner| owner.home_account_id != named) => {
                let by_endpoint = || issuer::of_token_endpoint(response.token_endpoint.as_deref()?);
                let issuer = response.issuer.clone().or_else(by_endpoint);
                Some(Owner { home_account_id: named, issuer, is_named: true })
            }
            _ => by_provider,
        }
    }

    fn by_provider(&self) -> Option<Owner> {
        if let Some(client_info) = &self.client_info {
            return Some(Owner { home_account_id: client_info.clone(), issuer: None, is_named: false });
        }
        let claims = self.claims.as_ref()?;
        let home_account_id = id_of(claims)?;
        Some(Owner { home_account_id, issuer: claims.text("iss"), is_named: false })
    }
}

#[cfg(feature = "file")]
impl TokenResponse {
    /// Whether the response says that it is about another user than `home_account_id`. Only an id that the
    /// provider made (`uid.utid`) can be compared with what the provider says, not one that a program made.
    pub(crate) fn is_about_another(&self, home_account_id: &str) -> bool {
        let Some((user, home_tenant)) = home_account_id.split_once('.') else { return false };
        let Ok(said) = Identification::read(self, true) else { return false };
        if !issuer::is_guid(home_tenant) {
            return false;
        }
        if let Some(client_info) = &said.client_info {
            return !client_info.eq_ignore_ascii_case(home_account_id);
        }
        // In a tenant that the user is a guest of, `oid` is another one.
        let Some(claims) = said.claims.filter(|claims| !is_by(claims, home_account_id)) else { return false };
        let is_home = claims.text("tid").is_some_and(|tenant| tenant.eq_ignore_ascii_case(home_tenant));
        is_home && claims.text("oid").is_some_and(|oid| !oid.eq_ignore_ascii_case(user))
    }
}

/// The user whom an id token names, where there is no `client_info`.
///
/// At Azure AD B2C that is the `oid` with the policy, as `client_info` has it there: `sub` may be one
/// fixed sentence for all users.
fn id_of(claims: &Claims) -> Option<String> {
    let issuer = claims.text("iss").unwrap_or_default();
    let acr = claims.text("acr").filter(|acr| acr.to_ascii_lowercase().starts_with("b2c_1"));
    let policy = claims.text("tfp").or(acr);
    if policy.is_none() && !issuer::is_b2c(&issuer) {
        return claims.text("sub");
    }
    let mut id = claims.text("oid")?;
    if let Some(policy) = policy {
        id = format!("{id}-{}", policy.to_lowercase());
    }
    if let Some(tenant) = claims.text("tid").or_else(|| issuer::tenant(&issuer).map(str::to_owned)) {
        id = format!("{id}.{tenant}");
    }
    Some(id)
}

impl TokenCache {
    /// The row of the refresh token that was sent. Of several, one of the environment that the
    /// response names comes first.
    pub(super) fn sent_token(&self, response: &TokenResponse) -> Option<SentToken> {
        let sent = response.sent_refresh_token.as_ref()?;
        let mut rows = self.rows_that_hold(sent, response);
        if rows.is_empty()
            && let Some(came) = response.body.secret_of("refresh_token").ok().flatten()
        {
            // An answer that was added before, in whole or in part, belongs where it did then.
            rows = self.rows_that_hold(&came, response);
        }
        let is_named = |&&row: &&RowId| {
            let fields = self.rows.fields(row);
            response.environment.as_deref().is_none_or(|named| self.is_in(&fields, Some(named)))
                && response.client_id.as_deref().is_none_or(|named| fields.is(Field::ClientId, named))
        };
        let row = *rows.iter().find(is_named).or_else(|| rows.first())?;
        let fields = self.rows.fields(row);
        let text = |field| fields.text(field).map(Cow::into_owned);
        Some(SentToken {
            row,
            home_account_id: text(Field::HomeAccountId),
            environment: text(Field::Environment),
            client_id: text(Field::ClientId),
            is_of_a_family: fields.text(Field::FamilyId).is_some(),
            issuer: self.issuer_of(Kind::RefreshToken, &fields),
            is_named: fields.is(Field::HomeAccountIdSource, NAMED),
        })
    }

    /// Fails if a response to a refresh is about another user than the one whose token was sent
    /// (OpenID Connect Core section 12.2).
    pub(super) fn check_same_user(
        &self,
        sent: &SentToken,
        client_id: Option<&str>,
        said: &Identification,
    ) -> Result<(), CacheError> {
        let Some(owner) = sent.home_account_id.as_deref().filter(|_| !sent.is_named) else { return Ok(()) };
        // `sub` is another one for each client of a family.
        let is_same_client = client_id.is_none_or(|client_id| sent.client_id.as_deref() == Some(client_id));
        let stored = self.stored_claims(sent, client_id.or(sent.client_id.as_deref()), said);
        let is_the_id = |stored: &Claims| is_by(stored, owner);
        let came_from_sub = is_same_client
            && (self.rows.fields(sent.row).text(Field::Issuer).is_some()
                || stored.as_ref().is_some_and(is_the_id));
        if let Some(client_info) = &said.client_info {
            // An id that has no second part is of no `client_info`.
            let told_by_issuer = self.rows.fields(sent.row).text(Field::Issuer).is_some();
            if !told_by_issuer && owner.contains('.') {
                return if client_info == owner { Ok(()) } else { Err(CacheError::OtherAccount) };
            }
        }
        let Some(claims) = &said.claims else { return Ok(()) };
        let issuer = claims.text("iss");
        let same_issuer = |stored: &str| issuer.as_deref().is_none_or(|issuer| issuer::same(issuer, stored));
        if came_from_sub {
            let is_same = is_by(claims, owner) && sent.issuer.as_deref().is_none_or(same_issuer);
            return if is_same { Ok(()) } else { Err(CacheError::OtherAccount) };
        }
        // Of another issuer, a tenant that the user is a guest of, `sub` is another one.
        match stored.filter(|stored| stored.text("iss").is_some_and(|stored| same_issuer(&stored))) {
            Some(stored) if stored.text("sub") != claims.text("sub") => Err(CacheError::OtherAccount),
            _ => Ok(()),
        }
    }

    /// The rows of refresh tokens that hold this very token.
    fn rows_that_hold(&self, token: &Secret, response: &TokenResponse) -> Vec<RowId> {
        let holds_it = |&row: &RowId| self.rows.fields(row).secret().is_some_and(|own| own == *token);
        // Nearly always the owner is known, and its rows are found at once.
        let owner = response.home_account_id.as_deref().unwrap_or_default();
        let rows: Vec<RowId> =
            self.rows.candidates(Lookup::Owner(Kind::RefreshToken, owner)).filter(holds_it).collect();
        if rows.is_empty() { self.rows.all(Kind::RefreshToken).filter(holds_it).collect() } else { rows }
    }

    /// The realm that the answer to a refresh belongs to: the one that was asked for, unless the answer
    /// shows that it is another's.
    pub(super) fn realm_of_refresh(&self, derived: &Derived<'_>) -> Result<Option<String>, CacheError> {
        let Some(owner) = &derived.home_account_id else { return Ok(derived.realm.clone()) };
        let account = Account { issuer: derived.issuer.clone(), ..Account::new(owner, &derived.environment) };
        let by_endpoint = derived.realm.as_deref();
        let tenant = derived.id_claims.as_ref().and_then(|claims| claims.text("tid"));
        let expected = match &derived.response.expected_realm {
            Some(expected) => Some(expected.clone()),
            None => match (self.known_realm(&derived.client_id, &account), by_endpoint) {
                (Ok(known), _) => known,
                (Err(_several), Some(_)) => None,
                (Err(_several), None) => {
                    return Err(CacheError::NotNamed { what: "realm", how: "token_endpoint` or `realm" });
                }
            },
        };
        let is_expected =
            |realm: &str| expected.as_deref().is_some_and(|expected| realm.eq_ignore_ascii_case(expected));
        // Tenants of Microsoft's are ids, which can be compared; `common` and names of domains cannot.
        let is_comparable =
            is_microsoft(&derived.environment) && expected.as_deref().is_none_or(issuer::is_guid);
        let is_other_tenant = |realm: &&str| is_comparable && issuer::is_guid(realm) && !is_expected(realm);
        let is_other_realm =
            |realm: &&str| is_other_tenant(realm) || !is_expected(realm) && self.has_rows_in(&account, realm);
        let shown = tenant.as_deref().filter(is_other_tenant).or(by_endpoint.filter(is_other_realm));
        Ok(shown.map(str::to_owned).or(expected).or_else(|| derived.realm.clone()))
    }

    /// Whether an account signed in to a realm.
    fn has_rows_in(&self, account: &Account, realm: &str) -> bool {
        let Account { home_account_id, environment, issuer, .. } = account;
        let rows = self.rows.candidates(Lookup::Owner(Kind::Account, home_account_id));
        rows.map(|row| self.rows.fields(row)).any(|fields| {
            fields.is(Field::Realm, realm)
                && self.belongs_to(&fields, home_account_id, environment)
                && self.is_issued_by(Kind::Account, &fields, issuer.as_deref())
        })
    }

    /// The claims of the id token that a client has of the user of a refresh token: of the issuer that the
    /// answer is of, if there is one.
    fn stored_claims(
        &self,
        sent: &SentToken,
        client_id: Option<&str>,
        said: &Identification,
    ) -> Option<Claims> {
        let (owner, client_id) = (sent.home_account_id.as_deref()?, client_id?);
        let rows = self.rows.candidates(Lookup::Owner(Kind::IdToken, owner));
        let mut stored = rows.map(|row| self.rows.fields(row)).filter(|fields| {
            fields.is(Field::ClientId, client_id)
                && self.belongs_to(fields, owner, sent.environment.as_deref().unwrap_or_default())
                && self.is_issued_by(Kind::IdToken, fields, sent.issuer.as_deref())
        });
        let mut stored: Vec<Claims> = stored
            .by_ref()
            .filter_map(|fields| Claims::of_id_token(fields.secret()?.expose()).ok())
            .collect();
        let wanted = said.claims.as_ref().and_then(|claims| claims.text("iss"));
        let is_of_it = |claims: &Claims| {
            wanted
                .as_ref()
                .is_some_and(|wanted| claims.text("iss").is_some_and(|own| issuer::same(&own, wanted)))
        };
        let at = stored.iter().position(is_of_it).unwrap_or(0);
        (at < stored.len()).then(|| stored.swap_remove(at))
    }

    /// Who issued what a row is about: as it says, or as the id token beside it says.
    pub(super) fn issuer_of(&self, kind: Kind, fields: &Fields<'_>) -> Option<String> {
        if let Some(issuer) = fields.text(Field::Issuer) {
            return Some(issuer.into_owned());
        }
        let owner = fields.text(Field::HomeAccountId)?;
        let read = |fields: &Fields<'_>| Claims::of_id_token(fields.secret()?.expose()).ok();
        // Only an id that is the id token's `sub` depends on who issued that.
        let issuer = |claims: Claims| is_by(&claims, &owner).then(|| claims.text("iss"))?;
        if kind == Kind::IdToken {
            return read(fields).and_then(issuer);
        }
        let environment = fields.text(Field::Environment).unwrap_or_default();
        let client_id = fields.text(Field::ClientId);
        let rows =
            self.rows.candidates(Lookup::Owner(Kind::IdToken, &owner)).map(|row| self.rows.fields(row));
        let mut beside = rows.filter(|beside| {
            self.belongs_to(beside, &owner, &environment)
                && client_id.as_ref().is_none_or(|client_id| beside.is(Field::ClientId, client_id))
        });
        // Those of one user say the same.
        let mut told = None;
        for beside in beside.by_ref().take(16) {
            match beside.text(Field::Issuer) {
                None => {
                    if let Some(issuer) = read(&beside).and_then(issuer) {
                        return Some(issuer);
                    }
                }
                // That one is of an account that is told apart already: of which, where there are several,
                // this row does not say.
                Some(own) => match &told {
                    None => told = Some(own.into_owned()),
                    Some(told) if issuer::same(told, &own) => {}
                    Some(_) => return None,
                },
            }
        }
        told
    }

    /// Whether a row may be of an account of this issuer. A row that says nothing may be, if there is only one
    /// user of this id.
    pub(super) fn is_issued_by(&self, kind: Kind, fields: &Fields<'_>, wanted: Option<&str>) -> bool {
        let Some(wanted) = wanted else { return true };
        let own = fields.text(Field::Issuer).map(Cow::into_owned);
        if let Some(issuer) = own.or_else(|| self.issuer_of(kind, fields)) {
            return issuer::same(&issuer, wanted);
        }
        // Of several users, a row that does not say whose it is is nobody's.
        let owner = fields.text(Field::HomeAccountId).unwrap_or_default();
        let environment = fields.text(Field::Environment).unwrap_or_default();
        !self.has_users_of_several_issuers(&owner, &environment)
    }
}

/// Whether claims are about the user with this id.
fn is_by(claims: &Claims, home_account_id: &str) -> bool {
    id_of(claims).is_some_and(|id| id == home_account_id)
        || claims.text("sub").is_some_and(|sub| sub == home_account_id)
}
