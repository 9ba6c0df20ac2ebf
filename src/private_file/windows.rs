//! Private files on Windows: access lists, no links followed, others' short use of a file sat out.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::windows::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Component, Path, PathBuf, Prefix};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use windows_sys::Win32::Foundation::{
    ERROR_ACCESS_DENIED, ERROR_DELETE_PENDING, ERROR_LOCK_VIOLATION, ERROR_SHARING_VIOLATION,
    ERROR_USER_MAPPED_FILE, GENERIC_READ, GENERIC_WRITE, WIN32_ERROR,
};
use windows_sys::Win32::Storage::FileSystem::{
    CREATE_NEW, FILE_ATTRIBUTE_REPARSE_POINT, FILE_FLAG_BACKUP_SEMANTICS, FILE_FLAG_OPEN_REPARSE_POINT,
    FILE_SHARE_DELETE, FILE_SHARE_READ, FILE_SHARE_WRITE, OPEN_ALWAYS, READ_CONTROL,
};

use super::access_list::{self, AccessList};
use super::windows_security::{self, Descriptor};
use super::{Checked, FileError, failed, is_device, wrong_type};

pub(super) const LINK: &str = "a symbolic link or junction";

/// How long a file that somebody else uses is tried again: virus scanners and indexers open what was
/// just written, and a reader may be in the way of a replacement.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long a refusal is doubted: a file that is being deleted looks like one that may not be opened.
const DOUBT: Duration = Duration::from_millis(500);

/// Errors that may pass, and how long each is waited for.
type Passing = [(WIN32_ERROR, Duration)];

/// Somebody uses the file.
const IN_USE: [(WIN32_ERROR, Duration); 2] =
    [(ERROR_SHARING_VIOLATION, PATIENCE), (ERROR_LOCK_VIOLATION, PATIENCE)];

/// Somebody uses the file, or it is being deleted.
const IN_USE_OR_GOING: [(WIN32_ERROR, Duration); 5] = [
    (ERROR_SHARING_VIOLATION, PATIENCE),
    (ERROR_LOCK_VIOLATION, PATIENCE),
    (ERROR_USER_MAPPED_FILE, PATIENCE),
    (ERROR_DELETE_PENDING, PATIENCE),
    (ERROR_ACCESS_DENIED, DOUBT),
];

/// A reader in the way of a replacement looks like a refusal, too.
const IN_THE_WAY: [(WIN32_ERROR, Duration); 4] = [
    (ERROR_SHARING_VIOLATION, PATIENCE),
    (ERROR_USER_MAPPED_FILE, PATIENCE),
    (ERROR_DELETE_PENDING, PATIENCE),
    (ERROR_ACCESS_DENIED, PATIENCE),
];

/// Tries again while somebody else is in the way, but not where something else than a file is.
fn patiently<T>(path: &Path, passing: &Passing, mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let patience = |error: &io::Error| {
        let code = error.raw_os_error()?.cast_unsigned();
        passing.iter().find(|(passing, _)| *passing == code).map(|(_, patience)| *patience)
    };
    let started = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        let error = match attempt() {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        let is_in_the_way = fs::symlink_metadata(path).is_ok_and(|found| !found.is_file());
        if is_in_the_way || patience(&error).is_none_or(|patience| started.elapsed() >= patience) {
            return Err(error);
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

pub(super) fn open(path: &Path) -> io::Result<File> {
    patiently(path, &IN_USE_OR_GOING, || open_once(path))
}

/// Opens a file for reading, or fails at once.
pub(super) fn open_once(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(FILE_FLAG_OPEN_REPARSE_POINT).open(path)?;
    let metadata = file.metadata()?;
    // Not a link, but a file that a service keeps elsewhere or in another form: only without the
    // flag are its bytes read.
    let is_kept_elsewhere =
        metadata.file_attributes() & FILE_ATTRIBUTE_REPARSE_POINT != 0 && metadata.is_file();
    if is_kept_elsewhere { File::open(path) } else { Ok(file) }
}

/// Nobody can delete or rename a lock file while somebody has it open. As it is never deleted, a refusal
/// is one: the directory is read-only.
pub(super) fn open_lock_file(path: &Path) -> io::Result<File> {
    let descriptor = private_file()?;
    let share = FILE_SHARE_READ | FILE_SHARE_WRITE;
    let path = verbatim(&std::path::absolute(path)?);
    patiently(&path, &IN_USE, || {
        windows_security::create_file(&path, &descriptor, GENERIC_READ | GENERIC_WRITE, share, OPEN_ALWAYS)
    })
}

pub(super) fn create_new(path: &Path) -> io::Result<File> {
    let share = FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE;
    let access = GENERIC_READ | GENERIC_WRITE;
    let path = verbatim(&std::path::absolute(path)?);
    windows_security::create_file(&path, &private_file()?, access, share, CREATE_NEW)
}

fn private_file() -> io::Result<Descriptor> {
    Descriptor::parse(&access_list::private_file(&user()?.sid))
}

/// The user that this process runs as.
#[derive(Debug)]
struct User {
    sid: String,
    /// As Windows prints it in descriptors: some have names of two letters there, such as `LA`, the
    /// machine's own administrator.
    as_printed: String,
}

fn user() -> io::Result<&'static User> {
    static USER: OnceLock<User> = OnceLock::new();
    if let Some(user) = USER.get() {
        return Ok(user);
    }
    let sid = windows_security::current_user()?;
    let printed = Descriptor::parse(&format!("O:{sid}"))?.to_text()?;
    let as_printed = AccessList::parse(&printed).owner().unwrap_or(&sid).to_owned();
    Ok(USER.get_or_init(|| User { sid, as_printed }))
}

/// It cannot have been removed: see [`open_lock_file`].
pub(super) fn is_at(_: &File, _: &Path) -> bool {
    true
}

/// See [`is_at`].
pub(super) fn identity(_: &File) -> Option<(u64, u64)> {
    None
}

pub(super) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    patiently(to, &IN_THE_WAY, || fs::rename(from, to))
}

pub(super) fn remove(path: &Path) -> io::Result<()> {
    patiently(path, &IN_USE_OR_GOING, || fs::remove_file(path))
}

pub(super) fn check_file(file: &File, _: &Metadata, path: &Path) -> Checked<()> {
    let (user, text) = examine(file, path)?;
    let list = AccessList::parse(&text);
    check_owner(&list, user, path)?;
    if list.opens_a_file(&user.as_printed) { Err(loose(path, &text, user, "F")) } else { Ok(()) }
}

pub(super) fn check_directory(_: &Metadata, path: &Path) -> Checked<()> {
    let flags = FILE_FLAG_BACKUP_SEMANTICS | FILE_FLAG_OPEN_REPARSE_POINT;
    let opened = OpenOptions::new().access_mode(READ_CONTROL).custom_flags(flags).open(path);
    let (user, text) = examine(&opened.map_err(failed("examine", path))?, path)?;
    let list = AccessList::parse(&text);
    check_owner(&list, user, path)?;
    if list.opens_a_directory(&user.as_printed) {
        return Err(loose(path, &text, user, "(OI)(CI)F"));
    }
    Ok(())
}

/// Docker and Kubernetes on Windows mount what the container's user may read; nobody else is in there.
#[allow(clippy::unnecessary_wraps)] // Elsewhere it is not so.
pub(super) fn check_mounted_file(_: &File, _: &Metadata, _: &Path) -> Checked<()> {
    Ok(())
}

#[allow(clippy::unnecessary_wraps)] // Elsewhere it is not so.
pub(super) fn check_mounted_directory(_: &Metadata, _: &Path) -> Checked<()> {
    Ok(())
}

/// There is no `sudo` that keeps another user's home.
#[allow(clippy::unnecessary_wraps)] // Elsewhere it is not so.
pub(super) fn check_ancestors(_: &Path) -> Checked<()> {
    Ok(())
}

/// The current user, and the text form of the security descriptor.
fn examine(file: &File, path: &Path) -> Checked<(&'static User, String)> {
    user()
        .and_then(|user| Ok((user, Descriptor::of(file)?.to_text()?)))
        .map_err(failed("examine the access list of", path))
}

fn check_owner(list: &AccessList<'_>, user: &User, path: &Path) -> Checked<()> {
    let foreign = list.foreign_owner(&user.as_printed);
    foreign.map_or(Ok(()), |owner| {
        Err(FileError::ForeignOwner { path: path.to_owned(), owner: owner.to_owned() })
    })
}

fn loose(path: &Path, list: &str, user: &User, rights: &str) -> FileError {
    FileError::LoosePermissions {
        path: path.to_owned(),
        permissions: format!("the access list {list}"),
        // The first takes away what was granted by name, which the second would leave.
        remedy: format!(
            "icacls \"{0}\" /reset & icacls \"{0}\" /inheritance:r /grant:r *{1}:{rights}",
            path.display(),
            user.sid
        ),
    }
}

/// Refuses a link or junction in the place of the directory, names of devices, and names that are not
/// kept as they are written.
pub(super) fn check_path(path: &Path) -> Checked<()> {
    let is_reserved = path.components().any(|component| match component {
        Component::Prefix(prefix) => matches!(prefix.kind(), Prefix::DeviceNS(_)),
        Component::Normal(name) => is_reserved(&name.to_string_lossy()),
        _ => false,
    });
    if is_reserved {
        return Err(FileError::ReservedName { path: path.to_owned() });
    }
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_symlink() => Err(wrong_type(path, &found, "directory")),
        _ => Ok(()),
    }
}

fn is_reserved(name: &str) -> bool {
    is_device(name) || name.ends_with(['.', ' ']) || name.contains([':', '*', '?', '"', '<', '>', '|'])
}

pub(super) fn create_directories(path: &Path) -> io::Result<()> {
    let path = verbatim(&std::path::absolute(path)?);
    if path.is_dir() {
        return Ok(());
    }
    // Those above it may be the program's own, and inherit what its installer relies on.
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let descriptor = Descriptor::parse(&access_list::private_directory(&user()?.sid))?;
    match windows_security::create_directory(&path, &descriptor) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        result => result,
    }
}

/// The form of an absolute path that may be longer than 260 characters.
fn verbatim(path: &Path) -> PathBuf {
    let mut components = path.components();
    let Some(Component::Prefix(prefix)) = components.next() else { return path.to_owned() };
    let mut start = match prefix.kind() {
        Prefix::Disk(letter) => format!(r"\\?\{}:\", char::from(letter)).into(),
        Prefix::UNC(server, share) => {
            let mut start = std::ffi::OsString::from(r"\\?\UNC\");
            start.push(server);
            start.push(r"\");
            start.push(share);
            start.push(r"\");
            PathBuf::from(start)
        }
        _ => return path.to_owned(),
    };
    start.extend(components.filter(|component| !matches!(component, Component::RootDir)));
    start
}

/// NTFS writes a rename to its journal, and a flush of the file is understood to write the journal up to
/// there. What cannot be opened for that is as durable as the file system makes it.
pub(super) fn make_rename_durable(path: &Path, renamed: Option<&File>) -> io::Result<()> {
    if let Some(file) = renamed {
        return file.sync_all();
    }
    let flags = FILE_FLAG_OPEN_REPARSE_POINT;
    let open = || OpenOptions::new().write(true).custom_flags(flags).open(path);
    patiently(path, &IN_USE_OR_GOING, open).map_or(Ok(()), |file| file.sync_all())
}

/// Volumes without a letter, and some that are kept in memory, do not tell the paths of their files.
pub(super) fn canonicalize(path: &Path) -> io::Result<PathBuf> {
    match fs::canonicalize(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            std::path::absolute(path).map(|path| verbatim(&path))
        }
        result => result,
    }
}

/// There is no such call here: what was created or removed is as durable as the file system makes it.
#[allow(clippy::unnecessary_wraps)] // Elsewhere it is not so.
pub(super) fn sync_directory(_: &Path) -> io::Result<()> {
    Ok(())
}

pub(super) fn sync(file: &File) -> io::Result<()> {
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Windows was handed, read back by Windows.
    #[test]
    fn the_descriptors_that_are_handed_over_are_protected_and_for_the_user_alone() {
        let User { sid, as_printed: user } = user().unwrap();
        assert!(sid.starts_with("S-1-"), "{sid}");
        for (sddl, flags) in
            [(access_list::private_file(sid), ""), (access_list::private_directory(sid), "OICI")]
        {
            let read_back = Descriptor::parse(&sddl).unwrap().to_text().unwrap();
            assert_eq!(read_back, format!("O:{user}D:P(A;{flags};FA;;;{user})"));
        }
        // Whoever is printed by a name of two letters is told apart by it.
        for (sid, name) in [("S-1-5-18", "SY"), ("S-1-5-19", "LS"), ("S-1-5-20", "NS")] {
            let printed = Descriptor::parse(&format!("O:{sid}")).unwrap().to_text().unwrap();
            assert_eq!(AccessList::parse(&printed).owner(), Some(name));
        }
        assert!(Descriptor::parse("no descriptor").is_err());
    }

    #[test]
    fn what_was_made_passes_the_check_and_what_lets_others_in_does_not() {
        let base = tempfile::tempdir().unwrap();
        let directory = super::super::prepare_directory(&base.path().join(r"a\b")).unwrap();
        assert!(directory.is_absolute());
        let path = directory.join("file");
        let file = create_new(&path).unwrap();
        check_file(&file, &file.metadata().unwrap(), &path).unwrap();
        assert!(create_new(&path).is_err(), "there is one");
    }

    /// Wine may drop what its own user's umask takes away, and then there is nothing to refuse.
    #[test]
    fn a_file_that_lets_others_in_is_refused() {
        let base = tempfile::tempdir().unwrap();
        let loose = format!("O:{0}D:P(A;;FA;;;{0})(A;;FR;;;WD)", user().unwrap().sid);
        let path = base.path().join("loose");
        let (loose, access) = (Descriptor::parse(&loose).unwrap(), GENERIC_READ | GENERIC_WRITE);
        let file = windows_security::create_file(&path, &loose, access, 0, CREATE_NEW).unwrap();
        if !Descriptor::of(&file).unwrap().to_text().unwrap().contains(";WD)") {
            assert!(std::env::var_os("TOKENSEAL_REQUIRE_ACCESS_LISTS").is_none(), "the list was not kept");
            // What a macro prints, the test harness keeps to itself.
            let _ = io::Write::write_all(&mut io::stderr(), b"SKIPPED: the access list was not kept\n");
            return;
        }
        let refused = check_file(&file, &file.metadata().unwrap(), &path);
        assert!(matches!(&refused, Err(FileError::LoosePermissions { .. })), "{refused:?}");
        assert!(refused.unwrap_err().to_string().contains("/reset"));
    }

    #[test]
    fn a_lock_file_that_is_open_cannot_be_taken_away() {
        let base = tempfile::tempdir().unwrap();
        let (path, other) = (base.path().join("x.lock"), base.path().join("y"));
        let lock = open_lock_file(&path).unwrap();
        assert!(fs::remove_file(&path).is_err() && fs::rename(&path, other).is_err());
        drop(lock);
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_file_in_use_is_tried_again_and_not_for_ever() {
        let base = tempfile::tempdir().unwrap();
        let (path, next) = (base.path().join("a"), base.path().join("b"));
        let exclusive = || {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false).share_mode(0).open(&path).unwrap()
        };
        let in_use = exclusive();
        thread::scope(|scope| {
            let opened = scope.spawn(|| open(&path));
            thread::sleep(Duration::from_millis(200));
            drop(in_use);
            drop(opened.join().unwrap().unwrap());
            fs::write(&next, "next").unwrap();
            let in_use = exclusive();
            let renamed = scope.spawn(|| rename(&next, &path));
            thread::sleep(Duration::from_millis(200));
            drop(in_use);
            renamed.join().unwrap().unwrap();
        });
        assert_eq!(fs::read(&path).unwrap(), b"next");
        let in_use = exclusive();
        thread::scope(|scope| {
            let opened = scope.spawn(|| open_lock_file(&path));
            thread::sleep(Duration::from_millis(200));
            drop(in_use);
            drop(opened.join().unwrap().unwrap());
        });
        let _in_use = exclusive();
        let started = Instant::now();
        assert!(open(&path).is_err());
        assert!((PATIENCE..PATIENCE * 3).contains(&started.elapsed()));
    }

    #[test]
    fn names_of_devices_are_refused() {
        for name in ["nul", "CON.txt", "com1", "LPT³", "Aux ", "a.", "a ", "a:b", "conin$", "nul:x", "a?"] {
            assert!(check_path(Path::new(&format!(r"C:\x\{name}\y"))).is_err(), "{name}");
        }
        for name in ["console", "com", "com10", "null", ".x", "a b", "é"] {
            check_path(&Path::new(r"C:\x").join(name)).unwrap();
        }
        assert!(check_path(Path::new(r"\\.\pipe\x")).is_err());
        let error = super::super::prepare_directory(Path::new(r"C:\users\nul")).unwrap_err();
        assert!(matches!(error, FileError::ReservedName { .. }), "{error}");
    }

    #[test]
    fn a_directory_in_the_place_of_a_file_is_told_at_once() {
        let base = tempfile::tempdir().unwrap();
        let started = Instant::now();
        for attempt in
            [super::super::open(base.path()).map(drop), super::super::open_lock_file(base.path()).map(drop)]
        {
            assert!(matches!(attempt, Err(FileError::WrongType { found: "a directory", .. })), "{attempt:?}");
        }
        assert!(started.elapsed() < Duration::from_secs(1));
    }

    #[test]
    fn paths_may_be_long() {
        assert_eq!(verbatim(Path::new(r"C:\a\b")), Path::new(r"\\?\C:\a\b"));
        assert_eq!(verbatim(Path::new(r"\\server\share\a")), Path::new(r"\\?\UNC\server\share\a"));
        assert_eq!(verbatim(Path::new(r"\\?\C:\a")), Path::new(r"\\?\C:\a"));
        let base = tempfile::tempdir().unwrap();
        let long = base.path().join("x".repeat(120)).join("y".repeat(120)).join("z".repeat(60));
        create_directories(&long).unwrap();
        create_new(&verbatim(&long).join("file")).unwrap();
    }
}
