//! The map keys under which rows are written: those of msal (Python) 1.39.
//!
//! The parts are joined by `-` without escaping and in lower case, so different rows can end at one
//! key; and other SDKs make other keys for the same row. A key is therefore only a slot. Which row
//! it is, its fields say.

use std::collections::HashSet;

use sha2::{Digest, Sha256};

use super::index::Index;
use super::rows::Kind;
use super::scopes::split_scopes;

/// The fields that make up a map key.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct KeyParts<'a> {
    pub(crate) home_account_id: &'a str,
    pub(crate) environment: &'a str,
    pub(crate) client_id: &'a str,
    pub(crate) realm: &'a str,
    pub(crate) target: &'a str,
    pub(crate) ext_cache_key: Option<&'a str>,
    /// Who issued the id token, where accounts are told apart by it. No key of msal's has it.
    pub(crate) issuer: Option<&'a str>,
}

impl KeyParts<'_> {
    /// The map key of a row of `kind`.
    pub(crate) fn map_key(&self, kind: Kind) -> String {
        let Self { home_account_id, environment, client_id, realm, target, ext_cache_key, .. } = self;
        match kind {
            Kind::AccessToken => match ext_cache_key {
                None => format!("{home_account_id}-{environment}-accesstoken-{client_id}-{realm}-{target}"),
                Some(hash) => {
                    format!("{home_account_id}-{environment}-atext-{client_id}-{realm}-{target}-{hash}")
                }
            },
            Kind::RefreshToken => {
                format!("{home_account_id}-{environment}-refreshtoken-{client_id}--{target}")
            }
            Kind::IdToken => format!("{home_account_id}-{environment}-idtoken-{client_id}-{realm}-"),
            Kind::Account => format!("{home_account_id}-{environment}-{realm}"),
            // The one key that msal does not turn to lower case.
            Kind::AppMetadata => return format!("appmetadata-{environment}-{client_id}"),
        }
        .to_lowercase()
    }

    /// A hash by which the row is found whatever its map key is and whatever order its scopes have.
    /// The environment does not count, for it is compared without regard to case.
    pub(crate) fn hash(&self, kind: Kind, index: &Index) -> u64 {
        let Self { home_account_id, client_id, realm, target, ext_cache_key, .. } = *self;
        let scopes = || {
            if !target.contains(' ') {
                return split_scopes(target).next().map_or(0, |scope| index.hash(&scope));
            }
            let scopes: HashSet<&str> = split_scopes(target).collect();
            scopes.into_iter().fold(0_u64, |sum, scope| sum.wrapping_add(index.hash(&scope)))
        };
        match kind {
            Kind::AccessToken => {
                index.hash(&(kind, home_account_id, client_id, realm, scopes(), ext_cache_key))
            }
            Kind::RefreshToken => index.hash(&(kind, home_account_id, client_id, scopes())),
            Kind::IdToken => index.hash(&(kind, home_account_id, client_id, realm)),
            Kind::Account => index.hash(&(kind, home_account_id, realm)),
            Kind::AppMetadata => index.hash(&(kind, client_id)),
        }
    }

    /// A key for a row whose own is taken by another row: two accounts whose ids differ in case
    /// only, say. The hash of the exact parts sets it apart.
    pub(crate) fn distinct_map_key(&self, kind: Kind) -> String {
        let mut hash = Sha256::new();
        let ext_cache_key = self.ext_cache_key.unwrap_or_default();
        let Self { home_account_id, environment, client_id, realm, target, .. } = *self;
        for part in [home_account_id, environment, client_id, realm, target, ext_cache_key] {
            hash.update(format!("{}:{part}", part.len()));
        }
        if let Some(issuer) = self.issuer {
            hash.update(format!("iss{}:{issuer}", issuer.len()));
        }
        let hash =
            hash.finalize().iter().take(8).fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
        format!("{}-{hash}", self.map_key(kind))
    }
}
