//! What is wrong with a file or a directory.

use std::io;
use std::path::{Path, PathBuf};

use crate::error_kind::ErrorKind;

/// What is wrong with a file or a directory.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    /// The operating system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },

    /// Something else stands where the file should be: a symbolic link, a junction, a directory, a
    /// pipe, a device.
    #[error(
        "{} is {found} and not a {expected}; nothing was read or written; see what it is before you move it",
        path.display()
    )]
    WrongType {
        /// Where.
        path: PathBuf,
        /// What stands there.
        found: &'static str,
        /// What should.
        expected: &'static str,
    },

    /// The file or directory belongs to somebody else.
    #[error(
        "{} belongs to {owner} and not to the current user; nothing was read or written; run the program as \
         its owner, or see what it is before you move it",
        path.display()
    )]
    ForeignOwner {
        /// Which one.
        path: PathBuf,
        /// The owner: a user id, or on Windows a security identifier.
        owner: String,
    },

    /// A directory is to be made in one that belongs to somebody else, such as a home under `sudo`.
    #[cfg(unix)]
    #[error(
        "{} belongs to {owner} and not to the current user, and nothing is made in there; run the program as \
         its owner, set HOME to a home of your own (`sudo -H`), or name another directory",
        path.display()
    )]
    ForeignParent {
        /// The directory that is there.
        path: PathBuf,
        /// Its owner: a user id.
        owner: String,
    },

    /// Others may read the file or write to the directory.
    #[error("{} has {permissions}, which lets others in; run: {remedy}", path.display())]
    LoosePermissions {
        /// Which one.
        path: PathBuf,
        /// Its mode, or on Windows its access list.
        permissions: String,
        /// The command that mends it.
        remedy: String,
    },

    /// The path has a part that Windows takes for a device, or does not keep as it is written.
    #[cfg(windows)]
    #[error("{} has a part that Windows reserves; choose another directory", path.display())]
    ReservedName {
        /// The path.
        path: PathBuf,
    },
}

impl FileError {
    pub(crate) fn kind(&self) -> ErrorKind {
        match self {
            Self::Io { .. } => ErrorKind::Io,
            Self::WrongType { .. } => ErrorKind::WrongFileType,
            Self::ForeignOwner { .. } => ErrorKind::ForeignOwner,
            #[cfg(unix)]
            Self::ForeignParent { .. } => ErrorKind::ForeignParent,
            Self::LoosePermissions { .. } => ErrorKind::LoosePermissions,
            #[cfg(windows)]
            Self::ReservedName { .. } => ErrorKind::ReservedPath,
        }
    }

    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::Io { path, .. }
            | Self::WrongType { path, .. }
            | Self::ForeignOwner { path, .. }
            | Self::LoosePermissions { path, .. } => path,
            #[cfg(unix)]
            Self::ForeignParent { path, .. } => path,
            #[cfg(windows)]
            Self::ReservedName { path } => path,
        }
    }
}
