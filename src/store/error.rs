//! Why a sealed file cannot be read, replaced or locked.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::duration_text::InWords;
use crate::private_file::FileError;
use crate::seal::SealError;

/// Why the file of a cache was not read or not replaced.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// A file or directory cannot be used.
    #[error(transparent)]
    File(#[from] FileError),

    /// Another process or thread holds the lock.
    #[error(
        "{} was not free within {}: another process is changing the cache, or hangs while it does; try again",
        path.display(),
        InWords(*waited)
    )]
    LockTimedOut {
        /// The lock file.
        path: PathBuf,
        /// How long was waited.
        waited: Duration,
    },

    /// This thread is changing the same cache already.
    #[error("a change of the cache at {} was begun inside another change of it; make one change of both", path.display())]
    Nested {
        /// The lock file.
        path: PathBuf,
    },

    /// A lock was taken by the process that this one was forked from, which has it still.
    #[error("the cache at {} was locked when this process was forked; open the cache in the child", path.display())]
    Forked {
        /// The lock file.
        path: PathBuf,
    },

    /// The lock file was removed while it was held, so that others may be making a change as well. Nothing
    /// was written.
    #[error("{} was removed while it was locked; leave lock files where they are, and try again", path.display())]
    LockRemoved {
        /// The lock file.
        path: PathBuf,
    },

    /// The file was replaced each time before it could be opened.
    #[error("{} is replaced so often that it cannot be read; try again", path.display())]
    NeverStill {
        /// The sealed file.
        path: PathBuf,
    },

    /// The file system cannot lock.
    #[error("{} cannot be locked; keep the cache on a file system that has locks", path.display())]
    CannotLock {
        /// The lock file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },

    /// The file is, or would become, larger than allowed.
    #[error("{}: {seal}", path.display())]
    TooLarge {
        /// The sealed file.
        path: PathBuf,
        /// How large.
        seal: SealError,
    },

    /// The operating system gives no random bytes.
    #[error(transparent)]
    Seal(#[from] SealError),
}

impl StoreError {
    pub(crate) fn path(&self) -> Option<&Path> {
        match self {
            Self::File(error) => Some(error.path()),
            Self::LockTimedOut { path, .. }
            | Self::Nested { path }
            | Self::Forked { path }
            | Self::LockRemoved { path }
            | Self::NeverStill { path }
            | Self::CannotLock { path, .. }
            | Self::TooLarge { path, .. } => Some(path),
            Self::Seal(_) => None,
        }
    }
}
