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
//! use tokenseal::{AccessTokenQuery, PersistedTokenCache, TokenResponse};
//! use tokenseal::refresh::{RefreshCall, RefreshFailure};
//! # fn sign_in() -> Result<String, std::io::Error> { std::io::read_to_string(std::io::stdin()) }
//! # fn refresh(_: RefreshCall) -> Result<TokenResponse, RefreshFailure> { Err(RefreshFailure::transient("no client")) }
//!
//! let cache = PersistedTokenCache::open("contoso-cli")?;
//! for account in cache.accounts()? {
//!     let wanted = AccessTokenQuery::for_account("my-client", &account).scopes(["User.Read"]);
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
//! | `conformance` | `key_store::conformance`: checks for a `KeyStore` of your own; implies `file` |
//! | `tokio` | `acquire_async` and the like: nothing blocks the runtime; implies `file` |
//! | `tracing` | spans and events for an operator, without secrets or names; implies `file` |
//! | none | [`TokenCache`] and [`seal`]: no I/O, no operating system keyring |
//!
//! # What is promised, and what is not
//!
//! `docs/msal.md` lists where tokenseal differs from msal (Python), on purpose.
//! `SECURITY.md` says what the crate defends against and what it does not. The sealed format is
//! described byte by byte in `docs/format.md`.

#![cfg_attr(docsrs, feature(doc_cfg))]
// On Windows one module has some: `private_file::windows_security`.
#![cfg_attr(not(windows), forbid(unsafe_code))]

pub mod cache;
#[cfg(feature = "file")]
mod deadline;
#[cfg(feature = "file")]
mod duration_text;
#[cfg(feature = "file")]
mod error_kind;
#[cfg(feature = "file")]
pub mod key_store;
#[cfg(feature = "file")]
pub mod persisted;
#[cfg(feature = "file")]
mod private_file;
#[cfg(feature = "file")]
mod process;
#[cfg(feature = "file")]
mod record;
#[cfg(feature = "file")]
pub mod refresh;
pub mod seal;
mod secret;
#[cfg(feature = "file")]
mod shared;
#[cfg(feature = "file")]
mod store;
#[cfg(feature = "file")]
mod sync;
#[cfg(feature = "file")]
mod trace;
#[cfg(feature = "tokio")]
mod workers;

#[doc(inline)]
pub use cache::{
    AccessToken, AccessTokenQuery, Account, CacheError, IdToken, RefreshToken, RefreshTokenQuery, TokenCache,
    TokenResponse,
};
#[cfg(feature = "file")]
#[doc(inline)]
pub use persisted::{Error, ErrorKind, PersistedTokenCache};
#[cfg(feature = "file")]
#[doc(inline)]
pub use refresh::AcquireError;
pub use secret::Secret;
#[cfg(feature = "file")]
pub use shared::SharedTokenCache;
