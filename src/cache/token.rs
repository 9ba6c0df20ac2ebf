//! The tokens that a lookup hands out: owned copies, their secrets wiped when dropped.

use std::time::SystemTime;

use super::fields::{Field, Fields};
use super::from_unix_seconds;
use crate::secret::Secret;

/// What every credential says about itself.
#[derive(Debug, Clone)]
struct Issued {
    secret: Secret,
    home_account_id: Option<String>,
    environment: String,
    client_id: String,
}

impl Issued {
    fn read(fields: &Fields<'_>) -> Option<Self> {
        let text = |field| fields.text(field).map(std::borrow::Cow::into_owned);
        Some(Self {
            secret: fields.secret()?,
            home_account_id: text(Field::HomeAccountId),
            environment: text(Field::Environment).unwrap_or_default(),
            client_id: text(Field::ClientId).unwrap_or_default(),
        })
    }
}

macro_rules! credential {
    ($name:ident) => {
        impl $name {
            /// The token. Send it; do not print or store it.
            pub fn secret(&self) -> &Secret {
                &self.issued.secret
            }

            /// The account it belongs to; `None` for a token of the application itself.
            pub fn home_account_id(&self) -> Option<&str> {
                self.issued.home_account_id.as_deref()
            }

            /// The identity provider's host.
            pub fn environment(&self) -> &str {
                &self.issued.environment
            }

            /// The client that it was issued to.
            pub fn client_id(&self) -> &str {
                &self.issued.client_id
            }
        }
    };
}

/// An access token that has not expired.
#[derive(Debug, Clone)]
pub struct AccessToken {
    issued: Issued,
    pub(crate) realm: Option<String>,
    token_type: Option<String>,
    scopes: Vec<String>,
    key_id: Option<String>,
    expires_on: i64,
    extended_expires_on: i64,
    refresh_on: Option<i64>,
}

credential!(AccessToken);

impl AccessToken {
    pub(crate) fn read(fields: &Fields<'_>) -> Option<Self> {
        let text = |field| fields.text(field).map(std::borrow::Cow::into_owned);
        let expires_on = fields.time(Field::ExpiresOn)?;
        Some(Self {
            issued: Issued::read(fields)?,
            realm: text(Field::Realm),
            token_type: text(Field::TokenType),
            scopes: fields.scopes(),
            key_id: text(Field::KeyId),
            expires_on,
            extended_expires_on: fields.extended_expires_on().unwrap_or(expires_on),
            refresh_on: fields.time(Field::RefreshOn),
        })
    }

    /// The tenant that issued it.
    pub fn realm(&self) -> Option<&str> {
        self.realm.as_deref()
    }

    /// How it is to be presented (RFC 6749 section 7.1): `Bearer` unless it says otherwise.
    pub fn token_type(&self) -> &str {
        self.token_type.as_deref().unwrap_or("Bearer")
    }

    /// The scopes it grants.
    pub fn scopes(&self) -> &[String] {
        &self.scopes
    }

    /// The key that it is bound to, for proof-of-possession tokens and SSH certificates.
    pub fn key_id(&self) -> Option<&str> {
        self.key_id.as_deref()
    }

    /// When it expires.
    pub fn expires_on(&self) -> SystemTime {
        from_unix_seconds(self.expires_on)
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
#[derive(Debug, Clone)]
pub struct RefreshToken {
    issued: Issued,
    family_id: Option<String>,
    scopes: Vec<String>,
    pub(crate) last_modification_time: i64,
}

credential!(RefreshToken);

impl RefreshToken {
    pub(crate) fn read(fields: &Fields<'_>) -> Option<Self> {
        Some(Self {
            issued: Issued::read(fields)?,
            family_id: fields.text(Field::FamilyId).map(std::borrow::Cow::into_owned),
            scopes: fields.scopes(),
            last_modification_time: fields.time(Field::LastModificationTime).unwrap_or(0),
        })
    }

    /// The family of client ids that may use it ("FOCI"), if it is not the client's alone.
    pub fn family_id(&self) -> Option<&str> {
        self.family_id.as_deref()
    }

    /// The scopes of the request that it came with; empty if another SDK wrote it.
    pub fn scopes(&self) -> &[String] {
        &self.scopes
    }
}

/// An id token, as it was issued. The cache has not validated it.
#[derive(Debug, Clone)]
pub struct IdToken {
    issued: Issued,
    realm: Option<String>,
}

credential!(IdToken);

impl IdToken {
    pub(crate) fn read(fields: &Fields<'_>) -> Option<Self> {
        let realm = fields.text(Field::Realm).map(std::borrow::Cow::into_owned);
        Some(Self { issued: Issued::read(fields)?, realm })
    }

    /// The tenant that issued it.
    pub fn realm(&self) -> Option<&str> {
        self.realm.as_deref()
    }
}

/// What the cache knows about a client id.
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
