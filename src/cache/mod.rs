//! The token cache itself: MSAL's unified cache in memory, with no I/O and no cryptography.

mod account;
mod accounts;
mod add;
mod claims;
mod derive;
mod environment;
mod error;
mod error_response;
mod fields;
mod find;
mod find_id_token;
mod form;
mod index;
mod issuer;
mod json;
mod json_text;
mod map_key;
mod owner;
mod query;
mod remove;
mod response;
mod row_text;
mod rows;
mod scopes;
mod text;
mod time_text;
mod token;

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub use account::Account;
pub use add::Added;
pub use environment::EnvironmentAliases;
#[cfg(feature = "file")]
pub(crate) use environment::{is_microsoft, token_endpoint_of};
pub use error::CacheError;
#[cfg(feature = "file")]
pub(crate) use error_response::{ErrorResponse, code};
#[cfg(feature = "file")]
pub(crate) use find::Life;
#[cfg(feature = "file")]
pub(crate) use form::{append as append_to_form, to_json as form_to_json};
pub use query::{AccessTokenQuery, AccountQuery, RefreshTokenQuery};
pub use remove::Removed;
#[cfg(feature = "file")]
pub(crate) use response::Body;
pub use response::TokenResponse;
pub use token::{AccessToken, AppMetadata, IdToken, RefreshToken};

use crate::secret::SecretBytes;
use rows::{Rows, Unreadable};

/// MSAL's unified token cache, in memory.
///
/// It reads what the MSAL libraries for Python, .NET, Node, Go and Java write, and writes what msal
/// (Python) writes. Rows, fields and sections that it does not know it keeps unchanged and in order.
/// Nothing here touches a file or a keyring: for a cache that lasts, open a `PersistedTokenCache`, or
/// carry the bytes of [`TokenCache::serialize`] yourself.
///
/// A clone is a cache of its own.
///
/// ```
/// use tokenseal::{AccessTokenQuery, TokenCache, TokenResponse};
///
/// let mut cache = TokenCache::new();
/// let response = TokenResponse::from_json(r#"{"access_token":"at","expires_in":3600}"#)?
///     .client_id("my-service")
///     .token_endpoint("https://login.microsoftonline.com/contoso.com/oauth2/v2.0/token")
///     .grant_type("client_credentials")
///     .requested_scopes(["https://graph.microsoft.com/.default"]);
/// cache.add(&response)?;
///
/// let wanted = AccessTokenQuery::for_application("my-service").scopes(["https://graph.microsoft.com/.default"]);
/// assert_eq!(cache.find_access_token(&wanted).unwrap().expose(), "at");
/// # Ok::<(), tokenseal::CacheError>(())
/// ```
#[derive(Default)]
pub struct TokenCache {
    rows: Rows,
    aliases: EnvironmentAliases,
    /// Counts every change.
    revision: u64,
    /// The revision that the caller said is safe.
    saved_revision: u64,
    /// Counts removed accounts.
    sign_outs: u64,
    /// Tells this cache from one that a program puts in its place; 0 for any but the one handed out.
    #[cfg(feature = "file")]
    lineage: u64,
}

/// A serialized cache, and which state of the cache it is.
///
/// ```
/// # use tokenseal::{TokenCache, TokenResponse};
/// # let response = TokenResponse::from_json(
/// #     r#"{"access_token":"at","expires_in":3600,"refresh_token":"rt"}"#)?
/// #     .client_id("app").environment("idp.example").realm("r").home_account_id("alice")
/// #     .requested_scopes(["read"]);
/// let mut cache = TokenCache::new();
/// cache.add(&response)?;
/// let saved = cache.serialize();
/// assert!(saved.json().expose().starts_with(b"{\"AccessToken\":"));
/// assert!(cache.has_state_changed());
/// // Store it, sealed; and when that is done:
/// cache.mark_saved(&saved);
/// assert!(!cache.has_state_changed());
/// # Ok::<(), tokenseal::CacheError>(())
/// ```
#[derive(Debug)]
#[must_use = "store it, and pass it to `mark_saved`"]
pub struct Serialized {
    json: SecretBytes,
    revision: u64,
}

impl Serialized {
    /// The JSON. It holds every token in the clear: seal it before it is stored.
    pub fn json(&self) -> &SecretBytes {
        &self.json
    }

    /// Consumes `self`, returning the JSON.
    pub fn into_json(self) -> SecretBytes {
        self.json
    }
}

impl TokenCache {
    /// An empty cache that knows the aliases of Microsoft's hosts.
    pub fn new() -> Self {
        Self::default()
    }

    /// Uses other aliases of identity providers' hosts.
    pub fn set_environment_aliases(&mut self, aliases: EnvironmentAliases) {
        self.aliases = aliases;
    }

    /// Writes the cache as the JSON that the MSAL libraries share.
    ///
    /// [`has_state_changed`](Self::has_state_changed) stays as it is, unlike in MSAL, where a save
    /// that fails after this call is forgotten: call [`mark_saved`](Self::mark_saved) when the bytes
    /// are safe.
    pub fn serialize(&self) -> Serialized {
        let mut json = SecretBytes::with_capacity(self.rows.written_len());
        self.rows.write(&mut json, None);
        Serialized { json, revision: self.revision }
    }

    /// Says that `saved` is stored safely. Changes made since it was serialized still count as
    /// unsaved.
    pub fn mark_saved(&mut self, saved: &Serialized) {
        self.saved_revision = self.saved_revision.max(saved.revision);
    }

    /// Whether the cache holds changes that nobody has said are safe.
    #[must_use]
    pub fn has_state_changed(&self) -> bool {
        self.revision > self.saved_revision
    }

    /// Replaces the content by that of a serialized cache; no bytes at all are an empty cache. The
    /// new content counts as saved.
    ///
    /// Hand over a `Vec<u8>` or a `String` rather than a slice: it is kept, not copied, and wiped
    /// when it is no longer needed.
    ///
    /// # Errors
    /// [`CacheError::NotACache`] if the bytes are no JSON object. The content is then as before. A
    /// single row or section that cannot be understood is no error: it is kept as it is.
    pub fn deserialize(&mut self, json: impl Into<SecretBytes>) -> Result<(), CacheError> {
        let rows = Rows::parse(json.into()).map_err(|unreadable| match unreadable {
            Unreadable::NotUtf8 => CacheError::NotACache { reason: "expected UTF-8 text", offset: 0 },
            Unreadable::Malformed(malformed) => {
                CacheError::NotACache { reason: "expected JSON", offset: malformed.offset }
            }
            Unreadable::NotAnObject => CacheError::NotACache { reason: "expected a JSON object", offset: 0 },
            Unreadable::TooLarge => CacheError::NotACache { reason: "expected less than 4 GiB", offset: 0 },
        })?;
        #[cfg(feature = "file")]
        {
            // Whether that is a sign-out is up to what it holds.
            self.lineage = 0;
        }
        self.rows = rows;
        self.revision += 1;
        self.saved_revision = self.revision;
        Ok(())
    }

    /// Ends a change. Row numbers do not outlive it.
    fn changed(&mut self) {
        self.revision += 1;
        self.rows.tidy();
    }
}

/// What `persisted` needs, and no program.
#[cfg(feature = "file")]
impl TokenCache {
    /// A copy that shares the text with this one, so that each secret stays in memory once.
    pub(crate) fn fork(&self) -> Self {
        Self { rows: self.rows.fork(), aliases: self.aliases.clone(), ..*self }
    }

    pub(crate) fn environment_aliases(&self) -> &EnvironmentAliases {
        &self.aliases
    }

    /// Marks this cache, so that it is noticed if a program puts another one in its place.
    pub(crate) fn begin_lineage(&mut self) -> u64 {
        static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
        self.lineage = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.lineage
    }

    pub(crate) fn lineage(&self) -> u64 {
        self.lineage
    }

    /// Wipes what a change of a fork removed, now that the original is gone.
    pub(crate) fn end_fork(&mut self) {
        self.rows.end_fork();
    }

    /// Says that everything in it is stored safely.
    pub(crate) fn set_saved(&mut self) {
        self.saved_revision = self.revision;
    }

    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    pub(crate) fn sign_outs(&self) -> u64 {
        self.sign_outs
    }

    /// Whether an account of `before` is not there any more, or nothing at all.
    pub(crate) fn has_lost_an_account(&self, before: &Self) -> bool {
        let is_known = |(owner, environment): &(String, String)| self.knows_account(owner, environment);
        self.is_empty() && !before.is_empty() || !before.owners().all(|owner| is_known(&owner))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Takes a member that is not MSAL's out of the root object: its raw JSON.
    pub(crate) fn take_member(&mut self, name: &str) -> Option<String> {
        self.rows.take_member(name)
    }

    /// The most bytes that [`write`](Self::write) writes, without the member.
    pub(crate) fn written_len(&self) -> usize {
        self.rows.written_len()
    }

    /// Writes the cache with one more member (its key and value) in the root object.
    pub(crate) fn write(&self, out: &mut SecretBytes, member: Option<&str>) {
        self.rows.write(out, member);
    }
}

impl Clone for TokenCache {
    fn clone(&self) -> Self {
        let mut clone = Self { aliases: self.aliases.clone(), ..Self::default() };
        clone.rows = Rows::parse(self.serialize().json).expect("what was written is a cache");
        (clone.revision, clone.saved_revision) = (self.revision, self.saved_revision);
        clone.sign_outs = self.sign_outs;
        clone
    }
}

impl fmt::Debug for TokenCache {
    /// Shows counts only.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("TokenCache");
        for kind in rows::Kind::ALL {
            shown.field(kind.name(), &self.rows.all(kind).count());
        }
        shown.field("has_state_changed", &self.has_state_changed()).finish_non_exhaustive()
    }
}

/// Unix seconds, rounded down.
pub(crate) fn unix_seconds(time: SystemTime) -> i64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        Err(before) => {
            let before = before.duration();
            let whole = i64::try_from(before.as_secs()).unwrap_or(i64::MAX);
            -whole - i64::from(before.subsec_nanos() > 0)
        }
    }
}

/// A time that never comes.
#[cfg(feature = "file")]
pub(crate) fn end_of_time() -> SystemTime {
    from_unix_seconds(token::ENDLESS)
}

/// The time of a positive number of Unix seconds, as near as the system's clock can hold it.
fn from_unix_seconds(seconds: i64) -> SystemTime {
    let mut since = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    loop {
        match UNIX_EPOCH.checked_add(since) {
            Some(time) => return time,
            None => since /= 2,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(feature = "file")]
    #[test]
    fn the_length_is_known_before_it_is_written() {
        let mut cache = TokenCache::new();
        cache.deserialize(r#"{"AccessToken":{"k":{"secret":"s"}},"Other":[]}"#).unwrap();
        let length = cache.serialize().json().len();
        assert!((length..length + 32).contains(&cache.written_len()), "{} for {length}", cache.written_len());
    }

    #[test]
    fn seconds_are_rounded_down_before_the_epoch_too() {
        for (milliseconds, seconds) in [(0_i64, 0), (1, 0), (1_999, 1), (-1, -1), (-1_000, -1), (-1_001, -2)]
        {
            let distance = Duration::from_millis(milliseconds.unsigned_abs());
            let time = if milliseconds < 0 { UNIX_EPOCH - distance } else { UNIX_EPOCH + distance };
            assert_eq!(unix_seconds(time), seconds, "{milliseconds}");
        }
        assert_eq!(from_unix_seconds(1_700_000_000), UNIX_EPOCH + Duration::from_secs(1_700_000_000));
        assert_eq!(from_unix_seconds(-5), UNIX_EPOCH);
        assert!(from_unix_seconds(i64::MAX) > UNIX_EPOCH + Duration::from_secs(1 << 33));
    }
}
