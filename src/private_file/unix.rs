//! Private files on Unix: modes and owners, no links followed, directories made durable.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::{Checked, FileError};

pub(super) const LINK: &str = "a symbolic link";

/// Neither follows a link, nor waits for the other end of a pipe.
fn refuse_links(options: &mut OpenOptions) -> &mut OpenOptions {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    options.custom_flags(i32::try_from(flags.bits()).expect("open flags are small"))
}

pub(super) fn open(path: &Path) -> io::Result<File> {
    refuse_links(OpenOptions::new().read(true)).open(path)
}

/// Opening never contends on Unix.
pub(super) fn open_once(path: &Path) -> io::Result<File> {
    open(path)
}

pub(super) fn open_lock_file(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let file = refuse_links(&mut options).open(path)?;
    // Where the umask took the owner's own rights away, give them back before they are checked.
    if file.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.len() == 0) {
        restore_owner_rights(&file)?;
    }
    Ok(file)
}

pub(super) fn create_new(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(0o600);
    let file = refuse_links(&mut options).open(path)?;
    restore_owner_rights(&file)?;
    Ok(file)
}

/// The umask may have taken more away than others' rights.
fn restore_owner_rights(file: &File) -> io::Result<()> {
    let metadata = file.metadata()?;
    let is_ours = metadata.uid() == rustix::process::geteuid().as_raw();
    if is_ours && metadata.mode() & 0o777 & !0o600 == 0 && metadata.mode() & 0o777 != 0o600 {
        file.set_permissions(Permissions::from_mode(0o600))?;
    }
    Ok(())
}

pub(super) fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(own), Ok(found)) => (own.dev(), own.ino()) == (found.dev(), found.ino()),
        _ => false,
    }
}

pub(super) fn identity(file: &File) -> Option<(u64, u64)> {
    file.metadata().ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

pub(super) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)
}

pub(super) fn remove(path: &Path) -> io::Result<()> {
    fs::remove_file(path)
}

pub(super) fn check_file(_: &File, metadata: &Metadata, path: &Path) -> Checked<()> {
    check_owner(metadata, path)?;
    check_mode(metadata, path, 0o077, 0o600)
}

pub(super) fn check_directory(metadata: &Metadata, path: &Path) -> Checked<()> {
    check_owner(metadata, path)?;
    check_mode(metadata, path, 0o022, 0o700)
}

fn check_owner(metadata: &Metadata, path: &Path) -> Checked<()> {
    if metadata.uid() == rustix::process::geteuid().as_raw() {
        return Ok(());
    }
    Err(FileError::ForeignOwner { path: path.to_owned(), owner: format!("user {}", metadata.uid()) })
}

fn check_mode(metadata: &Metadata, path: &Path, refused: u32, allowed: u32) -> Checked<()> {
    let mode = metadata.mode() & 0o7777;
    if mode & refused == 0 {
        return Ok(());
    }
    Err(FileError::LoosePermissions {
        path: path.to_owned(),
        permissions: format!("mode {mode:o}"),
        remedy: format!("chmod {allowed:o} -- {}", quoted(path)),
    })
}

/// A path as every shell reads it, whatever is in it: in single quotes, or, where it is no text, as `printf`
/// writes it.
fn quoted(path: &Path) -> String {
    let bytes = path.as_os_str().as_bytes();
    if let Ok(text) = std::str::from_utf8(bytes) {
        return format!("'{}'", text.replace('\'', r"'\''"));
    }
    let escaped = bytes.iter().fold(String::new(), |text, &byte| match byte {
        b'%' => format!("{text}%%"),
        b' '..=b'~' if byte != b'\'' && byte != b'\\' => format!("{text}{}", char::from(byte)),
        _ => format!("{text}\\{byte:03o}"),
    });
    format!("\"$(printf '{escaped}')\"")
}

/// What Kubernetes and Docker mount: files of root, which others may read.
pub(super) fn check_mounted_file(_: &File, metadata: &Metadata, path: &Path) -> Checked<()> {
    check_owner_or_root(metadata, path)?;
    check_writers(metadata, path, 0o022)
}

pub(super) fn check_mounted_directory(metadata: &Metadata, path: &Path) -> Checked<()> {
    check_owner_or_root(metadata, path)?;
    // Where the sticky bit is set nobody replaces what is root's.
    let refused = if metadata.mode() & 0o1000 == 0 { 0o022 } else { 0 };
    check_writers(metadata, path, refused)
}

fn check_writers(metadata: &Metadata, path: &Path, refused: u32) -> Checked<()> {
    check_mode(metadata, path, refused, 0).map_err(|error| match error {
        FileError::LoosePermissions { path, permissions, .. } => {
            let remedy = format!("chmod go-w -- {}", quoted(&path));
            FileError::LoosePermissions { path, permissions, remedy }
        }
        error => error,
    })
}

fn check_owner_or_root(metadata: &Metadata, path: &Path) -> Checked<()> {
    if metadata.uid() == 0 { Ok(()) } else { check_owner(metadata, path) }
}

/// Nothing is made in a directory that belongs to somebody else: root under `sudo` would lock the user out
/// of a home of the user's own. Directories of root are nobody's home, unless they lie in one.
pub(super) fn check_ancestors(path: &Path) -> Checked<()> {
    let absolute = std::path::absolute(path).map_err(super::failed("find the directory", path))?;
    if fs::symlink_metadata(&absolute).is_ok() {
        // What is there already is judged by whoever opens it.
        return Ok(());
    }
    check_existing_ancestors(&absolute)
}

/// The same of a directory in what HOME says is home, there already or not.
pub(crate) fn check_home(path: &Path) -> Checked<()> {
    if rustix::process::geteuid().is_root() { check_existing_ancestors(path) } else { Ok(()) }
}

fn check_existing_ancestors(path: &Path) -> Checked<()> {
    // In a user namespace what lies above the user's own directories may seem to be nobody's.
    let all = rustix::process::geteuid().is_root();
    let mut existing = path.ancestors().filter(|path| fs::metadata(path).is_ok());
    for existing in existing.by_ref().take(if all { usize::MAX } else { 1 }) {
        let metadata = fs::metadata(existing).map_err(super::failed("examine", existing))?;
        if metadata.uid() != 0 && check_owner(&metadata, existing).is_err() {
            let owner = format!("user {}", metadata.uid());
            return Err(FileError::ForeignParent { path: existing.to_owned(), owner });
        }
    }
    Ok(())
}

/// Whether the program runs with the rights of another user than the one who started it (setuid).
pub(crate) fn has_foreign_rights() -> bool {
    rustix::process::getuid() != rustix::process::geteuid()
        || rustix::process::getgid() != rustix::process::getegid()
}

/// Every name is allowed, and the directory itself may be reached by a link.
#[allow(clippy::unnecessary_wraps)] // Elsewhere it is not so.
pub(super) fn check_path(_: &Path) -> Checked<()> {
    Ok(())
}

pub(super) fn create_directories(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = parent(path) {
        create_directories(parent)?;
    }
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(error),
        Ok(()) => {
            // Whatever the umask is.
            fs::set_permissions(path, Permissions::from_mode(0o700))?;
            // A file in a directory that a power cut takes away was not saved.
            parent(path).map_or(Ok(()), sync_directory)
        }
    }
}

pub(super) fn canonicalize(path: &Path) -> io::Result<PathBuf> {
    fs::canonicalize(path)
}

fn parent(path: &Path) -> Option<&Path> {
    path.parent().filter(|parent| !parent.as_os_str().is_empty())
}

pub(super) fn make_rename_durable(path: &Path, _: Option<&File>) -> io::Result<()> {
    parent(path).map_or(Ok(()), sync_directory)
}

pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    sync(&File::open(path)?)
}

/// On Apple's systems `sync_all` is `F_FULLFSYNC`, which empties the disk's own buffer too. Volumes of
/// other systems do not know it; what they know is `fsync`.
pub(super) fn sync(file: &File) -> io::Result<()> {
    let synced = file.sync_all();
    #[cfg(target_vendor = "apple")]
    if let Err(error) = &synced {
        use rustix::io::Errno;
        let unknown = [Errno::NOTSUP, Errno::INVAL, Errno::NOTTY].map(Errno::raw_os_error);
        if error.raw_os_error().is_some_and(|code| unknown.contains(&code)) {
            return Ok(rustix::fs::fsync(file)?);
        }
    }
    synced
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_path_in_a_command_is_one_word_whatever_is_in_it() {
        use std::os::unix::ffi::OsStringExt as _;
        let base = tempfile::tempdir().unwrap();
        for name in [
            &b"plain"[..],
            b"two words",
            b"it's $HOME `x` \"y\" \\n",
            b"-rf",
            b"new\nline",
            b"no\xff%utf \\ '",
        ] {
            let path = base.path().join(std::ffi::OsString::from_vec(name.to_vec()));
            fs::create_dir(&path).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(0o775)).unwrap();
            let error = check_directory(&fs::metadata(&path).unwrap(), &path).unwrap_err();
            let FileError::LoosePermissions { remedy, .. } = error else { panic!("{error:?}") };
            let status = std::process::Command::new("sh").args(["-c", &remedy]).status().unwrap();
            assert!(status.success(), "{remedy}");
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700, "{remedy}");
        }
    }

    /// Whatever stands where a new file is to be made, foreseen or not.
    #[test]
    fn a_new_file_is_made_in_the_place_of_nothing() {
        let base = tempfile::tempdir().unwrap();
        let (victim, place) = (base.path().join("victim"), base.path().join("place"));
        fs::write(&victim, "precious").unwrap();
        let plants: [&dyn Fn() -> io::Result<()>; 6] = [
            &|| symlink(&victim, &place),
            &|| symlink(base.path().join("nothing"), &place),
            &|| fs::hard_link(&victim, &place),
            &|| fs::create_dir(&place),
            &|| fs::write(&place, "another"),
            &|| {
                let made = std::process::Command::new("mkfifo").arg(&place).status()?;
                if made.success() { Ok(()) } else { Err(io::Error::other("no pipe")) }
            },
        ];
        for (number, plant) in plants.iter().enumerate() {
            plant().unwrap();
            let error = create_new(&place).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::AlreadyExists, "{number}");
            assert_eq!(fs::read(&victim).unwrap(), b"precious", "{number}");
            assert!(!base.path().join("nothing").exists());
            fs::remove_file(&place).or_else(|_| fs::remove_dir(&place)).unwrap();
        }
        create_new(&place).unwrap().write_all(b"new").unwrap();
        assert_eq!(fs::metadata(&place).unwrap().mode() & 0o7777, 0o600);
    }
}
