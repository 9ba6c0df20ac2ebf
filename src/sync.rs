//! The locks that threads meet at: the standard library's, or loom's where a model is checked.

#[cfg(not(all(test, tokenseal_model)))]
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard};

#[cfg(all(test, tokenseal_model))]
pub(crate) use loom::sync::{Condvar, Mutex, MutexGuard};
