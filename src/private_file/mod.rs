//! Files and directories that only their owner can reach, opened so that nothing planted in their
//! place is followed, written to or waited for.

#[cfg(any(windows, test))]
mod access_list;
mod device_names;
mod error;
#[cfg(unix)]
mod unix;
#[cfg(windows)]
mod windows;
#[cfg(windows)]
mod windows_security;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

pub(crate) use device_names::is_device;
pub(crate) use error::FileError;
#[cfg(unix)]
use unix as platform;
#[cfg(unix)]
pub(crate) use unix::{check_home, has_foreign_rights};
#[cfg(windows)]
use windows as platform;

type Checked<T> = Result<T, FileError>;

pub(crate) fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
    move |source| FileError::Io { action, path: path.to_owned(), source }
}

/// Opens a file for reading; `None` if there is none.
pub(crate) fn open(path: &Path) -> Checked<Option<File>> {
    match platform::open(path) {
        Ok(file) => {
            check_file(&file, path)?;
            Ok(Some(file))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(explain("open", path, error)),
    }
}

/// Opens a file in a directory of mounted secrets for reading; `None` if there is none. Links within the
/// directory are followed.
pub(crate) fn open_mounted(path: &Path, directory: &Path) -> Checked<Option<File>> {
    let resolved = match platform::canonicalize(path) {
        Ok(resolved) => resolved,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("find", path)(error)),
    };
    let directory = platform::canonicalize(directory).map_err(failed("find the directory", directory))?;
    if !resolved.starts_with(&directory) {
        return Err(FileError::WrongType {
            path: path.to_owned(),
            found: "a link that leads out of the directory",
            expected: "regular file",
        });
    }
    let mut above = resolved.parent();
    while let Some(parent) = above.filter(|parent| parent.starts_with(&directory)) {
        let metadata = fs::symlink_metadata(parent).map_err(failed("examine", parent))?;
        platform::check_mounted_directory(&metadata, parent)?;
        above = parent.parent();
    }
    let file = platform::open(&resolved).map_err(|error| explain("open", &resolved, error))?;
    let metadata = file.metadata().map_err(failed("examine", &resolved))?;
    if !metadata.is_file() {
        return Err(wrong_type(&resolved, &metadata, "regular file"));
    }
    platform::check_mounted_file(&file, &metadata, &resolved)?;
    Ok(Some(file))
}

/// Opens a file for a glance at it: at once or not at all, and whoever may read or change it.
pub(crate) fn glance(path: &Path) -> io::Result<File> {
    platform::open_once(path)
}

/// Opens a lock file, and makes an empty one where there is none.
pub(crate) fn open_lock_file(path: &Path) -> Checked<File> {
    let file = platform::open_lock_file(path).map_err(|error| explain("open", path, error))?;
    check_file(&file, path)?;
    Ok(file)
}

/// Whether an open lock file is the one that stands at `path` now.
pub(crate) fn is_at(file: &File, path: &Path) -> bool {
    platform::is_at(file, path)
}

/// What tells an open file from others, where the system says so.
pub(crate) fn identity(file: &File) -> Option<(u64, u64)> {
    platform::identity(file)
}

/// Makes a file that did not exist.
pub(crate) fn create_new(path: &Path) -> Checked<File> {
    platform::create_new(path).map_err(|error| explain("create", path, error))
}

/// Puts one file in the place of another, in one step that others see whole or not at all.
pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    platform::rename(from, to)
}

/// Removes a file.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    platform::remove(path)
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
    platform::check_file(file, &metadata, path)
}

fn wrong_type(path: &Path, metadata: &fs::Metadata, expected: &'static str) -> FileError {
    let found = match metadata.file_type() {
        kind if kind.is_symlink() => platform::LINK,
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
    platform::check_path(path)?;
    platform::check_ancestors(path)?;
    platform::create_directories(path).map_err(|error| match fs::metadata(path) {
        Ok(metadata) if !metadata.is_dir() => wrong_type(path, &metadata, "directory"),
        _ => failed("create the directory", path)(error),
    })?;
    let path = platform::canonicalize(path).map_err(failed("find the directory", path))?;
    let metadata = fs::symlink_metadata(&path).map_err(failed("examine", &path))?;
    if !metadata.is_dir() {
        return Err(wrong_type(&path, &metadata, "directory"));
    }
    platform::check_directory(&metadata, &path)?;
    Ok(path)
}

/// Makes what was written to a file survive a power cut.
pub(crate) fn sync(file: &File) -> io::Result<()> {
    platform::sync(file)
}

/// Makes what was renamed to `path` survive a power cut; `renamed` is that file, if it is open for writing.
pub(crate) fn make_rename_durable(path: &Path, renamed: Option<&File>) -> Checked<()> {
    platform::make_rename_durable(path, renamed).map_err(failed("make durable", path))
}

/// Makes what was created or removed in a directory survive a power cut.
pub(crate) fn sync_directory(path: &Path) -> Checked<()> {
    platform::sync_directory(path).map_err(failed("make durable", path))
}
