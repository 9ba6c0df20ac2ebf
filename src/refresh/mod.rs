//! One refresh at a time: among threads, tasks and processes.
//!
//! ```text
//! look into the cache (caller) ─ fresh ──────────────────────────────────────► the token
//!        │ stale
//! join the flight (single_flight): one caller of this process leads, the others wait
//!        │
//! take the lease (lease): one process at a time, by a lock file for each refresh token
//!        │
//! look again (plan, look) ─ somebody else refreshed it ───────────────────────► the token
//!        │ still stale
//! call ─ rejected: retire that token if it is surely dead, look again
//!      ─ refused: remember it for this request (refusal), beside the lease (status), for all processes
//!      ─ transient: back off (back_off), remembered there too
//!        │ tokens, for the same user
//! save; what cannot be saved is kept (pending), and so is the lock ───────────► the token
//! ```
//!
//! `plan` and the files beside it decide, without I/O. `driver` and the files beside it read, save, take leases,
//! make the call and wait. The other files are what programs see.
//!
//! The lock on the cache file is taken for the save only, never across the call.

#[cfg(feature = "tokio")]
mod asynchronous;
mod call;
mod driver;
mod error;
mod failure;
mod guard;
mod meaning;
mod once;
mod plan;
mod request;
mod synchronous;

pub use call::{MintCall, RefreshCall};
pub use error::{AcquireError, FailedCall, SignInReason};
pub use failure::RefreshFailure;
pub use guard::RefreshGuard;
pub use once::OnceRequest;
pub use request::{AcquireRequest, Acquired, TokenSource};
