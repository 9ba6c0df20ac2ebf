//! The highest generation that this process has seen under each key.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};

use crate::seal::KeyId;

/// Shared by all caches of the process: a key is never used by two of them.
static SEEN: LazyLock<Mutex<HashMap<KeyId, u64>>> = LazyLock::new(Mutex::default);

/// The highest generation seen under this key; 0 if none was.
pub(super) fn seen(key_id: KeyId) -> u64 {
    SEEN.lock().unwrap_or_else(PoisonError::into_inner).get(&key_id).copied().unwrap_or(0)
}

/// Remembers a generation that was read or written.
pub(super) fn see(key_id: KeyId, generation: u64) {
    let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    let highest = seen.entry(key_id).or_insert(0);
    *highest = generation.max(*highest);
}
