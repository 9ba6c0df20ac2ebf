//! The tokens that a lookup hands out: owned copies, their secrets wiped when dropped.

use std::time::SystemTime;

use super::claims::Claims;
use super::fields::{Field, Fields};
use super::from_unix_seconds;
use super::scopes::split_scopes;
use crate::secret::Secret;

/// When a token expires that does not: the last second of the year 9999.
pub(crate) const ENDLESS: i64 = 253_402_300_799;

/// A token and what it says about itself, in one block: made by one allocation, wiped in one pass.
#[derive(Debug, Clone)]
struct Issued {
    /// The texts of [`PARTS`], one after the other, the secret first.
    texts: Secret,
    /// Where each of them ends.
    ends: [u32; PARTS.len()],
}

const PARTS: [Field; 8] = [
    Field::Secret,
    Field::HomeAccountId,
    Field::Environment,
    Field::ClientId,
    Field::Realm,
    Field::TokenType,
    Field::KeyId,
    Field::Target,
];

impl Issued {
    fn read(fields: &Fields<'_>) -> Option<Self> {
        let (texts, ends) = fields.joined(PARTS)?;
        (ends[0] > 0).then_some(Self { texts, ends })
    }

    /// The text of a part; `None` if there is none.
    fn part(&self, part: Field) -> Option<&str> {
        let number = PARTS.iter().position(|&other| other == part)?;
        let start = number.checked_sub(1).map_or(0, |before| self.ends[before]);
        let text = &self.texts.expose()[start as usize..self.ends[number] as usize];
        (!text.is_empty()).then_some(text)
    }

    fn scopes(&self) -> impl Iterator<Item = &str> {
        split_scopes(self.part(Field::Target).unwrap_or_default())
    }
}

macro_rules! credential {
    ($name:ident) => {
        impl $name {
            /// The token. Send it; do not print it, and do not keep a copy that is not wiped.
            pub fn expose(&self) -> &str {
                self.issued.part(Field::Secret).unwrap_or_default()
            }

            /// The token as a [`Secret`] of its own.
            pub fn secret(&self) -> Secret {
                Secret::from(self.expose())
            }

            /// The account it belongs to; `None` for a token of the application itself.
            pub fn home_account_id(&self) -> Option<&str> {
                self.issued.part(Field::HomeAccountId)
            }

            /// The identity provider's host.
            pub fn environment(&self) -> &str {
                self.issued.part(Field::Environment).unwrap_or_default()
            }

            /// The client that it was issued to.
            pub fn client_id(&self) -> &str {
                self.issued.part(Field::ClientId).unwrap_or_default()
            }
        }
    };
}

/// An access token that has not expired.
///
/// ```
/// # use tokenseal::{TokenCache, TokenResponse};
/// # let response = TokenResponse::from_json(
/// #     r#"{"access_token":"at","expires_in":3600,"refresh_token":"rt"}"#)?
/// #     .client_id("app").environment("idp.example").realm("r").home_account_id("alice")
/// #     .requested_scopes(["read"]);
/// use tokenseal::AccessTokenQuery;
///
/// let mut cache = TokenCache::new();
/// let added = cache.add(&response)?;
/// let wanted = AccessTokenQuery::for_account("app", added.account().unwrap()).scopes(["read"]);
/// let token = cache.find_access_token(&wanted).unwrap();
/// let header = format!("Authorization: {} {}", token.token_type(), token.expose());
/// assert!(token.expires_on() > std::time::SystemTime::now());
/// # assert_eq!(header, "Authorization: Bearer at");
/// # Ok::<(), tokenseal::CacheError>(())
/// ```
#[derive(Debug, Clone)]
pub struct AccessToken {
    issued: Issued,
    expires_on: i64,
    extended_expires_on: i64,
    refresh_on: Option<i64>,
}

credential!(AccessToken);

impl AccessToken {
    pub(crate) fn read(fields: &Fields<'_>) -> Option<Self> {
        let expires_on = fields.time(Field::ExpiresOn)?;
        Some(Self {
            issued: Issued::read(fields)?,
            expires_on,
            extended_expires_on: fields.extended_expires_on().unwrap_or(expires_on),
            refresh_on: fields.time(Field::RefreshOn),
        })
    }

    /// The tenant that issued it.
    pub fn realm(&self) -> Option<&str> {
        self.issued.part(Field::Realm)
    }

    /// How it is to be presented (RFC 6749 section 7.1): `Bearer` unless it says otherwise.
    pub fn token_type(&self) -> &str {
        self.issued.part(Field::TokenType).unwrap_or("Bearer")
    }

    /// The scopes it grants.
    pub fn scopes(&self) -> impl Iterator<Item = &str> {
        self.issued.scopes()
    }

    /// The key that it is bound to, for proof-of-possession tokens and SSH certificates.
    pub fn key_id(&self) -> Option<&str> {
        self.issued.part(Field::KeyId)
    }

    /// When it expires: at the end of the year 9999 if it does not, as far as anybody knows.
    pub fn expires_on(&self) -> SystemTime {
        from_unix_seconds(self.expires_on)
    }

    /// When it expires, in Unix seconds.
    #[cfg(feature = "file")]
    pub(crate) fn expires_on_seconds(&self) -> i64 {
        self.expires_on
    }

    /// Whether it does not expire as far as anybody knows.
    #[cfg(feature = "file")]
    pub(crate) fn is_endless(&self) -> bool {
        self.expires_on >= ENDLESS
    }

    /// Until when it may still be served while the identity provider is out of reach.
    pub fn extended_expires_on(&self) -> SystemTime {
        from_unix_seconds(self.extended_expires_on)
    }

    /// From when on it should be refreshed although it is still valid.
    pub fn refresh_on(&self) -> Option<SystemTime> {
        self.refresh_on.map(from_unix_seconds)
    }
}

/// A refresh token.
///
/// ```
/// # use tokenseal::{TokenCache, TokenResponse};
/// # let response = TokenResponse::from_json(
/// #     r#"{"access_token":"at","expires_in":3600,"refresh_token":"rt"}"#)?
/// #     .client_id("app").environment("idp.example").realm("r").home_account_id("alice")
/// #     .requested_scopes(["read"]);
/// use tokenseal::RefreshTokenQuery;
///
/// let mut cache = TokenCache::new();
/// let added = cache.add(&response)?;
/// let wanted = RefreshTokenQuery::new("app", added.account().unwrap());
/// let refresh_token = cache.find_refresh_token(&wanted).unwrap();
/// assert_eq!(refresh_token.expose(), "rt");
/// # Ok::<(), tokenseal::CacheError>(())
/// ```
#[derive(Debug, Clone)]
pub struct RefreshToken {
    issued: Issued,
    family_id: Option<String>,
    #[cfg_attr(not(feature = "file"), allow(dead_code))] // The model alone makes no refresh.
    pub(crate) issuer: Option<String>,
    pub(crate) last_modification_time: i64,
}

credential!(RefreshToken);

impl RefreshToken {
    pub(crate) fn read(fields: &Fields<'_>) -> Option<Self> {
        Some(Self {
            issued: Issued::read(fields)?,
            family_id: fields.text(Field::FamilyId).map(std::borrow::Cow::into_owned),
            issuer: fields.text(Field::Issuer).map(std::borrow::Cow::into_owned),
            last_modification_time: fields.time(Field::LastModificationTime).unwrap_or(0),
        })
    }

    /// The family of client ids that may use it ("FOCI"), if it is not the client's alone.
    pub fn family_id(&self) -> Option<&str> {
        self.family_id.as_deref()
    }

    /// The scopes of the request that it came with; empty if another SDK wrote it.
    pub fn scopes(&self) -> impl Iterator<Item = &str> {
        self.issued.scopes()
    }
}

/// An id token, as it was issued. The cache has not validated it.
///
/// ```
/// use tokenseal::{Account, TokenCache};
///
/// let account = Account::new("alice", "idp.example");
/// assert!(TokenCache::new().find_id_token("app", &account, None).is_none());
/// ```
#[derive(Debug, Clone)]
pub struct IdToken {
    issued: Issued,
}

credential!(IdToken);

impl IdToken {
    pub(crate) fn read(fields: &Fields<'_>) -> Option<Self> {
        Some(Self { issued: Issued::read(fields)? })
    }

    /// The tenant that issued it.
    pub fn realm(&self) -> Option<&str> {
        self.issued.part(Field::Realm)
    }

    /// When it expires, by its claim `exp` (OpenID Connect Core section 2). `None` if that cannot be read.
    pub fn expires_on(&self) -> Option<SystemTime> {
        self.expires_on_seconds().map(from_unix_seconds)
    }

    pub(crate) fn expires_on_seconds(&self) -> Option<i64> {
        Claims::of_id_token(self.expose()).ok()?.seconds("exp").filter(|&seconds| seconds > 0)
    }

    /// When it was issued, in Unix seconds, by its claim `iat`.
    #[cfg(feature = "file")]
    pub(crate) fn issued_at_seconds(&self) -> Option<i64> {
        Claims::of_id_token(self.expose()).ok()?.seconds("iat")
    }
}

/// What the cache knows about a client id.
///
/// ```
/// # use tokenseal::{TokenCache, TokenResponse};
/// # let response = TokenResponse::from_json(
/// #     r#"{"access_token":"at","expires_in":3600,"refresh_token":"rt"}"#)?
/// #     .client_id("app").environment("idp.example").realm("r").home_account_id("alice")
/// #     .requested_scopes(["read"]);
/// let mut cache = TokenCache::new();
/// cache.add(&response)?;
/// let known = cache.find_app_metadata("app", "idp.example").unwrap();
/// assert_eq!(known.family_id(), None);
/// # Ok::<(), tokenseal::CacheError>(())
/// ```
#[derive(Debug, Clone)]
pub struct AppMetadata {
    client_id: String,
    environment: String,
    family_id: Option<String>,
}

impl AppMetadata {
    pub(crate) fn read(fields: &Fields<'_>) -> Self {
        let text = |field| fields.text(field).map(std::borrow::Cow::into_owned);
        Self {
            client_id: text(Field::ClientId).unwrap_or_default(),
            environment: text(Field::Environment).unwrap_or_default(),
            family_id: text(Field::FamilyId),
        }
    }

    /// The client id.
    pub fn client_id(&self) -> &str {
        &self.client_id
    }

    /// The identity provider's host.
    pub fn environment(&self) -> &str {
        &self.environment
    }

    /// The family of client ids it belongs to; `None` if it is known to belong to none.
    pub fn family_id(&self) -> Option<&str> {
        self.family_id.as_deref()
    }
}
