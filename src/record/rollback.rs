//! The highest generation that this process has seen of each file under each key.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::process::PerProcess;
use crate::seal::KeyId;

/// Shared by all handles of the process. A copy of a file elsewhere goes its own way.
type Seen = Mutex<HashMap<(PathBuf, KeyId), u64>>;

static SEEN: PerProcess<Seen> = PerProcess::new(|_parent| Seen::default());

/// The highest generation of this file seen under this key; 0 if none was.
pub(super) fn seen(path: &Path, key_id: KeyId) -> u64 {
    let seen = SEEN.get().lock().unwrap_or_else(PoisonError::into_inner);
    seen.get(&(path.to_owned(), key_id)).copied().unwrap_or(0)
}

/// Remembers a generation that was read or written.
pub(super) fn see(path: &Path, key_id: KeyId, generation: u64) {
    let mut seen = SEEN.get().lock().unwrap_or_else(PoisonError::into_inner);
    let highest = seen.entry((path.to_owned(), key_id)).or_insert(0);
    *highest = generation.max(*highest);
}
