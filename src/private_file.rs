//! Files and directories that only their owner can reach, opened so that nothing planted in their
//! place is followed, written to or waited for.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

/// What is wrong with a file or a directory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    #[non_exhaustive]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },

    /// Something else stands where the file should be: a symbolic link, a directory, a pipe, a device.
    #[error("{} is {found} and not a {expected}; nothing was read or written, move it away", path.display())]
    #[non_exhaustive]
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
        "{} belongs to user {owner} and not to the current user; nothing was read or written, move it away",
        path.display()
    )]
    #[non_exhaustive]
    ForeignOwner {
        /// Which one.
        path: PathBuf,
        /// The owner's user id.
        owner: u32,
    },

    /// Others may read the file or write to the directory.
    #[error("{} has mode {mode:o}, which lets others in; run: chmod {allowed:o} {}", path.display(), path.display())]
    #[non_exhaustive]
    LoosePermissions {
        /// Which one.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
        /// What they should be.
        allowed: u32,
    },
}

type Checked<T> = Result<T, FileError>;

pub(crate) fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
    move |source| FileError::Io { action, path: path.to_owned(), source }
}

/// Opens a file for reading; `None` if there is none.
pub(crate) fn open(path: &Path) -> Checked<Option<File>> {
    let mut options = OpenOptions::new();
    options.read(true);
    platform::refuse_links(&mut options);
    match options.open(path) {
        Ok(file) => {
            check_file(&file, path)?;
            Ok(Some(file))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(explain("open", path, error)),
    }
}

/// Opens a file for reading and writing, and makes an empty one where there is none.
pub(crate) fn open_or_create(path: &Path) -> Checked<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    platform::refuse_links(&mut options);
    platform::owner_only(&mut options);
    let file = options.open(path).map_err(|error| explain("open", path, error))?;
    // Where the umask took the owner's own rights away, give them back before they are checked.
    if file.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.len() == 0) {
        platform::restore_owner_rights(&file).map_err(failed("set the permissions of", path))?;
    }
    check_file(&file, path)?;
    Ok(file)
}

/// Whether an open file is the one that stands at `path` now.
pub(crate) fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(own), Ok(found)) => platform::is_same(&own, &found),
        _ => false,
    }
}

/// Makes a file that did not exist.
pub(crate) fn create_new(path: &Path) -> Checked<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true);
    platform::refuse_links(&mut options);
    platform::owner_only(&mut options);
    let file = options.open(path).map_err(|error| explain("create", path, error))?;
    platform::restore_owner_rights(&file).map_err(failed("set the permissions of", path))?;
    Ok(file)
}

/// An open failed: says so if that is because something else stands there.
fn explain(action: &'static str, path: &Path, error: io::Error) -> FileError {
    match fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.is_file() => wrong_type(path, &metadata, "regular file"),
        _ => failed(action, path)(error),
    }
}

fn check_file(file: &File, path: &Path) -> Checked<()> {
    let metadata = file.metadata().map_err(failed("examine", path))?;
    if !metadata.is_file() {
        return Err(wrong_type(path, &metadata, "regular file"));
    }
    platform::check_owner(&metadata, path)?;
    platform::check_mode(&metadata, path, 0o077, 0o600)
}

fn wrong_type(path: &Path, metadata: &fs::Metadata, expected: &'static str) -> FileError {
    let found = match metadata.file_type() {
        kind if kind.is_symlink() => "a symbolic link",
        kind if kind.is_dir() => "a directory",
        kind if kind.is_file() => "a regular file",
        _ => "a pipe, socket or device",
    };
    FileError::WrongType { path: path.to_owned(), found, expected }
}

/// Makes a directory for its owner only, and those above it, or checks the one that is there: it
/// must belong to the current user, and nobody else may write to it. Gives its canonical path, so
/// that two ways to one directory are seen to be one.
pub(crate) fn prepare_directory(path: &Path) -> Checked<PathBuf> {
    platform::create_directories(path).map_err(|error| match fs::metadata(path) {
        Ok(metadata) if !metadata.is_dir() => wrong_type(path, &metadata, "directory"),
        _ => failed("create the directory", path)(error),
    })?;
    let path = fs::canonicalize(path).map_err(failed("find the directory", path))?;
    let metadata = fs::symlink_metadata(&path).map_err(failed("examine", &path))?;
    if !metadata.is_dir() {
        return Err(wrong_type(&path, &metadata, "directory"));
    }
    platform::check_owner(&metadata, &path)?;
    platform::check_mode(&metadata, &path, 0o022, 0o700)?;
    Ok(path)
}

/// Makes what was renamed, created or removed in a directory survive a power cut.
pub(crate) fn sync_directory(path: &Path) -> Checked<()> {
    platform::sync_directory(path).map_err(failed("make durable", path))
}

#[cfg(unix)]
mod platform {
    use std::fs::{DirBuilder, File, Metadata, OpenOptions, Permissions};
    use std::io;
    use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
    use std::path::Path;

    use rustix::fs::OFlags;

    use super::{Checked, FileError};

    /// Neither follows a link, nor waits for the other end of a pipe.
    pub(super) fn refuse_links(options: &mut OpenOptions) {
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
        options.custom_flags(i32::try_from(flags.bits()).expect("open flags are small"));
    }

    pub(super) fn owner_only(options: &mut OpenOptions) {
        options.mode(0o600);
    }

    /// The umask may have taken more away than others' rights.
    pub(super) fn restore_owner_rights(file: &File) -> io::Result<()> {
        let metadata = file.metadata()?;
        let is_ours = metadata.uid() == rustix::process::geteuid().as_raw();
        if is_ours && metadata.mode() & 0o777 & !0o600 == 0 && metadata.mode() & 0o777 != 0o600 {
            file.set_permissions(Permissions::from_mode(0o600))?;
        }
        Ok(())
    }

    pub(super) fn is_same(one: &Metadata, other: &Metadata) -> bool {
        (one.dev(), one.ino()) == (other.dev(), other.ino())
    }

    pub(super) fn check_owner(metadata: &Metadata, path: &Path) -> Checked<()> {
        if metadata.uid() == rustix::process::geteuid().as_raw() {
            return Ok(());
        }
        Err(FileError::ForeignOwner { path: path.to_owned(), owner: metadata.uid() })
    }

    pub(super) fn check_mode(metadata: &Metadata, path: &Path, refused: u32, allowed: u32) -> Checked<()> {
        let mode = metadata.mode() & 0o7777;
        if mode & refused == 0 {
            return Ok(());
        }
        Err(FileError::LoosePermissions { path: path.to_owned(), mode, allowed })
    }

    pub(super) fn create_directories(path: &Path) -> io::Result<()> {
        if path.is_dir() {
            return Ok(());
        }
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            create_directories(parent)?;
        }
        match DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
            Err(error) => Err(error),
            Ok(()) => {
                // Whatever the umask is.
                std::fs::set_permissions(path, Permissions::from_mode(0o700))?;
                // A file in a directory that a power cut takes away was not saved.
                path.parent().filter(|parent| !parent.as_os_str().is_empty()).map_or(Ok(()), sync_directory)
            }
        }
    }

    pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }
}

#[cfg(not(unix))]
mod platform {
    use std::fs::{File, Metadata, OpenOptions};
    use std::io;
    use std::path::Path;

    use super::Checked;

    pub(super) fn refuse_links(_: &mut OpenOptions) {}

    pub(super) fn owner_only(_: &mut OpenOptions) {}

    pub(super) fn restore_owner_rights(_: &File) -> io::Result<()> {
        Ok(())
    }

    /// An open file cannot be removed here.
    pub(super) fn is_same(_: &Metadata, _: &Metadata) -> bool {
        true
    }

    pub(super) fn check_owner(_: &Metadata, _: &Path) -> Checked<()> {
        Ok(())
    }

    pub(super) fn check_mode(_: &Metadata, _: &Path, _: u32, _: u32) -> Checked<()> {
        Ok(())
    }

    pub(super) fn create_directories(path: &Path) -> io::Result<()> {
        std::fs::create_dir_all(path)
    }

    /// There is no such call here: a rename is as durable as the file system makes it.
    pub(super) fn sync_directory(_: &Path) -> io::Result<()> {
        Ok(())
    }
}
