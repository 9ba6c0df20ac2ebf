//! **The token cache that never logs your user out and never writes a token in the clear.**
//!
//! A program that signs its user in with OAuth 2.0 or OpenID Connect gets tokens that must outlive
//! the process. `tokenseal` keeps them:
//!
//! - in the data model and JSON of Microsoft's MSAL libraries ([`TokenCache`], in memory, usable by
//!   itself and with any provider);
//! - sealed with AES-256-GCM in a file, with nothing but the key in the platform keyring
//!   (`PersistedTokenCache`);
//! - shared safely: any number of processes and threads add, find and sign out at once, and no
//!   update is lost;
//! - refreshed by one caller at a time, among all threads, tasks and processes
//!   (`PersistedTokenCache::acquire`), so that no refresh token is sent twice;
//! - wiped from memory when they are no longer needed, and never printed.
//!
//! ```no_run
//! # #[cfg(feature = "keyring")] fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use tokenseal::{AccessTokenQuery, PersistedTokenCache, RefreshCall, RefreshFailure, TokenResponse};
//! # fn sign_in() -> Result<String, std::io::Error> { std::io::read_to_string(std::io::stdin()) }
//! # fn refresh(_: RefreshCall) -> Result<TokenResponse, RefreshFailure> { Err(RefreshFailure::transient("no client")) }
//!
//! let cache = PersistedTokenCache::open("contoso-cli")?;
//! for account in cache.accounts()? {
//!     let wanted = AccessTokenQuery::new("my-client").account(&account).scopes(["User.Read"]);
//!     match cache.acquire(&wanted, refresh) { // `refresh` sends the request that it is given
//!         Err(error) if error.is_sign_in_required() => continue,
//!         acquired => {
//!             println!("signed in as {}, until {:?}", account.username(), acquired?.token().expires_on());
//!             return Ok(());
//!         }
//!     }
//! }
//! let body = sign_in()?; // any OAuth client
//! let response = TokenResponse::from_json(body)?
//!     .client_id("my-client")
//!     .token_endpoint("https://login.microsoftonline.com/common/oauth2/v2.0/token")
//!     .grant_type("authorization_code");
//! cache.add(&response)?; // on disk, sealed, before this returns
//! # Ok(()) }
//! # #[cfg(not(feature = "keyring"))] fn main() {}
//! ```
//!
//! # Which part to use
//!
//! | you have | use |
//! |---|---|
//! | a desktop program or a command-line tool | `PersistedTokenCache::open` |
//! | a machine without a keyring | the same, with `KeyFileStore` or a `KeyStore` of your own |
//! | no need to keep the tokens | `SharedTokenCache`, with the same `acquire` |
//! | a place of your own for the bytes | [`TokenCache`] and the functions of [`seal`] |
//!
//! # Features
//!
//! | feature | what it adds |
//! |---|---|
//! | `keyring` (default) | the platform keyring; implies `file` |
//! | `file` | `PersistedTokenCache`, `acquire`, and keys in memory or in key files |
//! | `tokio` | `acquire_async` and the like: nothing blocks the runtime; implies `file` |
//! | none | [`TokenCache`] and [`seal`]: no I/O, no operating system keyring |
//!
//! # Where tokenseal differs from msal (Python)
//!
//! The rows that [`TokenCache::add`] writes are those of msal (Python) 1.39.0, field by field and key
//! by key. On purpose it differs where msal loses or cannot find something:
//!
//! | msal (Python) 1.39.0 | tokenseal |
//! |---|---|
//! | an `add` without `foci` erases the family of the client | the family stays until another is named |
//! | a renewed account loses its `account_source` and fields of other SDKs | they stay; null or empty text never replaces a value |
//! | an environment with upper-case letters is never found | environments are compared without regard to case |
//! | one row without a readable expiry breaks every lookup | such a row is not returned, and the others are |
//! | an exact hit is returned although it has expired | expired tokens are never returned |
//! | `home_account_id: null` finds Python's app tokens only | null, empty and missing are one |
//! | a token bound to a key is returned to a query that names none | only to a query that names the key |
//! | user tokens without an account are stored without an owner | that is an error: name the account |
//! | a response without a token, or that is an error, writes a row | that is an error, and nothing is written |
//! | a response that names no client or no environment is stored where nobody finds it | that is an error |
//! | two issuers on one host (Keycloak's realms, Okta's servers) with one `sub` are one user | where there is no `client_info`, the rows have one more member, `iss`, and a second issuer a key of its own; a row that does not say is nobody's where an id has several, and a query that does not say finds none |
//! | B2C users without `client_info` are told apart by `sub`, which may be one text for all | by `oid` and policy |
//! | the answer to a refresh may be about another user | it is compared (OpenID Connect Core section 12.2), and refused |
//! | the row of a refresh token does not say that the program named its account | it has one more member, `home_account_id_source`, and is not compared |
//! | a sign-in without a refresh token leaves the old one as it was | its `last_modification_time` is that of the sign-in |
//! | a token that does not say how long it lives expires after 600 seconds | one of a user with no refresh token, in the response or the cache, has no end |
//! | an `expires_in` of zero or less replaces a living token | it replaces none that lives |
//! | an `expires_in`, `refresh_in` or `scope` that cannot be read is an error | it counts as absent; lists of scopes, milliseconds and dates with a zone are read |
//! | a token that was cached in the future is returned | one from more than five minutes ahead is not fresh |
//! | scopes are compared as they are | without `offline_access`; without `openid profile email` where there is an id token; at Microsoft without regard to case; Google's long forms and GitHub's commas are read |
//! | a user without `preferred_username` and `upn` has no name | `email`, `emails`, `unique_name`, `name` or `sub` is shown; the row is the same |
//! | rows whose ids, realms, client ids or scopes differ in case only, or join to one key, overwrite each other | each has a row of its own |
//! | a refresh without an `id_token` is stored without an owner | the owner of the refresh token that was sent is taken |
//! | a silent refresh fills an empty cache | it adds nothing where the account is not known |
//! | `foci: 1` stays a number, and an empty `foci` is written | text, and no family |
//! | an empty claim hides the one to fall back to | it counts as absent |
//! | `client_info` without `utid` or with a number in it is used as it is | both must be text, or the `id_token` counts |
//! | `id_token_claims` (from a broker) are read | only the `id_token` is |
//! | odd numbers (`"3600.7"`, null) in a response are errors | they are read, or count as absent |
//! | a rejected refresh token stays | one that is surely dead is removed, from the row of the client that sent it |
//! | rows of other SDKs are doubled, and stay at a sign-out | they are renewed in place, and removed |
//! | a rotated refresh token is replaced in one row | in every row that holds it |
//! | signing out leaves rows under aliases of the environment, or without one | they go too |
//! | a refresh that ends after a sign-out brings tokens back | it adds nothing ([`Added::is_signed_out`]) |
//! | a refresh of an old session replaces the token of a newer sign-in | the newer one stays |
//! | `serialize` forgets that a change is unsaved | only [`TokenCache::mark_saved`] does |
//! | only https token endpoints | plain http to this machine as well |
//! | a `refresh_in` given as text is an error | it is read; one below zero counts as absent |
//! | a sign-in dated in the future by a wrong clock hides all later ones | it comes last |
//!
//! # What is promised, and what is not
//!
//! `SECURITY.md` says what the crate defends against and what it does not. The sealed format is
//! described byte by byte in `docs/format.md`.

#![cfg_attr(docsrs, feature(doc_cfg))]
// On Windows one module has some: `private_file::windows_security`.
#![cfg_attr(not(windows), forbid(unsafe_code))]

mod cache;
#[cfg(feature = "file")]
mod deadline;
#[cfg(feature = "file")]
mod key_store;
#[cfg(feature = "file")]
mod persisted;
#[cfg(feature = "file")]
mod private_file;
#[cfg(feature = "file")]
mod process;
#[cfg(feature = "file")]
mod record;
#[cfg(feature = "file")]
mod refresh;
pub mod seal;
mod secret;
#[cfg(feature = "file")]
mod store;
#[cfg(feature = "file")]
mod sync;
#[cfg(feature = "tokio")]
mod workers;

pub use cache::{
    AccessToken, AccessTokenQuery, Account, AccountQuery, Added, AppMetadata, CacheError, EnvironmentAliases,
    IdToken, RefreshToken, RefreshTokenQuery, Removed, Serialized, TokenCache, TokenResponse,
};
pub use secret::{Secret, SecretBytes};

#[cfg(feature = "file")]
pub use key_store::{KeyFileStore, KeyName, KeyStore, KeyStoreError, MemoryKeyStore};
#[cfg(feature = "keyring")]
pub use key_store::{KeyringStore, Probe, Surroundings, probe};
#[cfg(feature = "file")]
pub use persisted::{Error, PersistedTokenCache, PersistedTokenCacheBuilder, Rotation, Updated};
#[cfg(feature = "file")]
pub use private_file::FileError;
#[cfg(feature = "file")]
pub use refresh::{
    AcquireError, AcquireRequest, Acquired, FailedCall, MintCall, Origin, RefreshCall, RefreshFailure,
    RefreshGuard, SharedTokenCache, SignInReason,
};
#[cfg(feature = "file")]
pub use store::StoreError;
