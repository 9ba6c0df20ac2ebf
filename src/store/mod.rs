//! Where sealed bytes live: one file, replaced whole, shared under a lock.

mod error;
mod lock;
mod watch;

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub(crate) use error::StoreError;
pub(crate) use lock::{FileLock, LockFile};
pub(crate) use watch::Watch;

use crate::private_file::{self, failed};
use crate::seal::{HEADER_LEN, SealError};

/// The file of one cache, with its lock file beside it.
///
/// | name | what it is |
/// |---|---|
/// | `<cache>.sealed` | the sealed record |
/// | `<cache>.lock` | empty; locked while a change is made, and never removed |
/// | `.<cache>.tmp` | the next record, until it is renamed |
/// | `<cache>@<hash>.refresh.lock` | empty; locked while a refresh token is used, and never removed |
/// | `<cache>@<hash>.refresh.note` | who holds that lock, and until when not to try again |
/// | `<cache>.sealed.aside-<seconds>-<random>` | a record that `reset` set aside |
#[derive(Debug)]
pub(crate) struct FileStore {
    directory: PathBuf,
    name: String,
    path: PathBuf,
    lock: LockFile,
    has_reliable_identity: bool,
    size_limit: u64,
}

/// The lock on the file of a cache.
#[derive(Debug)]
pub(crate) struct StoreLock {
    lock: FileLock,
}

/// A record that was read, and the file it came from.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) bytes: Vec<u8>,
    pub(crate) watch: Watch,
}

impl FileStore {
    /// Prepares the directory, and makes it where there is none.
    pub(crate) fn new(directory: &Path, name: &str, size_limit: u64) -> Result<Self, StoreError> {
        let directory = private_file::prepare_directory(directory)?;
        Ok(Self {
            path: directory.join(format!("{name}.sealed")),
            lock: LockFile::new(directory.join(format!("{name}.lock"))),
            has_reliable_identity: watch::has_reliable_identity(&directory),
            name: name.to_owned(),
            directory,
            size_limit,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for the lock: first for the other threads of this process, then for other processes.
    pub(crate) fn lock(&self, within: Duration) -> Result<StoreLock, StoreError> {
        Ok(StoreLock { lock: self.lock.acquire(within)? })
    }

    /// Whether this thread is in the middle of a change.
    pub(crate) fn is_locked_by_this_thread(&self) -> bool {
        self.lock.is_mine()
    }

    /// The path of a file that belongs to the cache. No cache has a name with an `@` in it, so that it
    /// is no other cache's file either.
    pub(crate) fn beside(&self, what: &str) -> PathBuf {
        self.directory.join(format!("{}@{what}", self.name))
    }

    /// Reads the record, without a lock: it is only ever replaced whole.
    pub(crate) fn read(&self) -> Result<Option<Record>, StoreError> {
        let Some(mut file) = private_file::open(&self.path)? else { return Ok(None) };
        let length = file.metadata().map_err(failed("examine", &self.path))?.len();
        self.check_size(length)?;
        // In one block. What a file that is none of ours grows by meanwhile is not read.
        let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or_default());
        (&mut file).take(length).read_to_end(&mut bytes).map_err(failed("read", &self.path))?;
        let watch =
            Watch::new(file, &bytes, self.has_reliable_identity).map_err(failed("examine", &self.path))?;
        Ok(Some(Record { bytes, watch }))
    }

    /// Reads the first bytes of the record; `None` if there is no file or it is too short.
    pub(crate) fn read_header(&self) -> Result<Option<[u8; HEADER_LEN]>, StoreError> {
        let Some(mut file) = private_file::open(&self.path)? else { return Ok(None) };
        let mut header = [0; HEADER_LEN];
        match file.read_exact(&mut header) {
            Ok(()) => Ok(Some(header)),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(failed("read", &self.path)(error).into()),
        }
    }

    /// Whether there is a file, or anything else in its place. What cannot be examined is no "no".
    pub(crate) fn is_there(&self) -> Result<bool, StoreError> {
        match fs::symlink_metadata(&self.path) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(failed("examine", &self.path)(error).into()),
        }
    }

    /// Whether the file is still the one that was read or written.
    pub(crate) fn is_current(&self, watch: &Watch) -> Result<bool, StoreError> {
        Ok(watch.is_current(&self.path).map_err(failed("examine", &self.path))?)
    }

    /// Fails if a record of this many bytes is over the limit.
    pub(crate) fn check_size(&self, length: u64) -> Result<(), StoreError> {
        let limit = self.size_limit;
        if length <= limit {
            return Ok(());
        }
        Err(StoreError::TooLarge { path: self.path.clone(), seal: SealError::TooLarge { length, limit } })
    }

    /// Replaces the record. When this returns, the new one survives a power cut; when it fails, the
    /// old one is untouched, or (where only the last step failed) the new one is in its place.
    pub(crate) fn replace(&self, lock: &StoreLock, record: &[u8]) -> Result<Watch, StoreError> {
        self.check_size(record.len() as u64)?;
        self.check_lock(lock)?;
        let (temporary, mut file) = self.create_temporary()?;
        let written = file.write_all(record).map_err(failed("write", &temporary));
        let written =
            written.and_then(|()| private_file::sync(&file).map_err(failed("make durable", &temporary)));
        let replaced = written.map_err(StoreError::from).and_then(|()| {
            self.refuse_to_replace_what_is_no_file()?;
            // Where the lock does not keep others out they may have put a file of their own in its place.
            if !private_file::is_at(&file, &temporary) || !lock.lock.is_at(self.lock.path()) {
                return Err(StoreError::LockRemoved { path: self.lock.path().to_owned() });
            }
            Ok(private_file::rename(&temporary, &self.path).map_err(failed("replace", &self.path))?)
        });
        if let Err(error) = replaced {
            // What went wrong is told; litter that stays is swept by the next save.
            if private_file::is_at(&file, &temporary) {
                let _ = private_file::remove(&temporary);
            }
            return Err(error);
        }
        private_file::make_rename_durable(&self.path, Some(&file))?;
        Ok(Watch::new(file, record, self.has_reliable_identity).map_err(failed("examine", &self.path))?)
    }

    /// Makes the file to write to. Under the lock no other save is under way: one that is there was left by
    /// a process that was killed. So it costs the same whatever else is in the directory.
    fn create_temporary(&self) -> Result<(PathBuf, File), StoreError> {
        let usual = self.directory.join(format!(".{}.tmp", self.name));
        match private_file::remove(&usual) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(_) => {
                // Something else stands there. Others that did not come to use their names either are litter.
                self.sweep();
                let other = self.directory.join(format!(".{}.{}.tmp", self.name, random_hex()?));
                let file = private_file::create_new(&other)?;
                return Ok((other, file));
            }
        }
        let file = private_file::create_new(&usual)?;
        Ok((usual, file))
    }

    fn sweep(&self) {
        let prefix = format!(".{}.", self.name);
        let Ok(entries) = fs::read_dir(&self.directory) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let random = name.to_str().and_then(|name| name.strip_prefix(&prefix)?.strip_suffix(".tmp"));
            if random
                .is_some_and(|random| random.len() == 16 && random.bytes().all(|b| b.is_ascii_hexdigit()))
            {
                let _ = private_file::remove(&entry.path());
            }
        }
    }

    /// A rename would put the record in the place of a planted link or pipe: better to say so.
    fn refuse_to_replace_what_is_no_file(&self) -> Result<(), private_file::FileError> {
        private_file::open(&self.path).map(drop)
    }

    /// Makes whatever replacement was made last durable.
    pub(crate) fn make_durable(&self, _lock: &StoreLock) -> Result<(), StoreError> {
        Ok(private_file::make_rename_durable(&self.path, None)?)
    }

    /// Renames the file to a name that no cache uses, and gives that name; `None` if there is none.
    pub(crate) fn set_aside(&self, lock: &StoreLock) -> Result<Option<PathBuf>, StoreError> {
        self.check_lock(lock)?;
        if !self.is_there()? {
            return Ok(None);
        }
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let aside = self.directory.join(format!("{}.sealed.aside-{seconds}-{}", self.name, random_hex()?));
        private_file::rename(&self.path, &aside).map_err(failed("set aside", &self.path))?;
        if let Err(error) = private_file::make_rename_durable(&aside, None) {
            // What cannot be made durable is undone, so that the error tells what is there.
            private_file::rename(&aside, &self.path).map_err(failed("put back", &aside))?;
            return Err(error.into());
        }
        Ok(Some(aside))
    }

    /// Puts back what was set aside.
    pub(crate) fn put_back(&self, _lock: &StoreLock, aside: &Path) -> Result<(), StoreError> {
        private_file::rename(aside, &self.path).map_err(failed("put back", aside))?;
        Ok(private_file::make_rename_durable(&self.path, None)?)
    }

    /// A child that was forked in the middle of a change has not got the lock.
    pub(crate) fn check_lock(&self, lock: &StoreLock) -> Result<(), StoreError> {
        if lock.lock.is_of_this_process() {
            return Ok(());
        }
        Err(StoreError::Forked { path: self.lock.path().to_owned() })
    }
}

/// 16 random hexadecimal digits.
fn random_hex() -> Result<String, StoreError> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|source| SealError::NoRandomness { source })?;
    Ok(format!("{:016x}", u64::from_ne_bytes(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temporary_names_cannot_be_foreseen() {
        let names: std::collections::HashSet<String> = (0..100).map(|_| random_hex().unwrap()).collect();
        assert_eq!(names.len(), 100);
        assert!(names.iter().all(|name| name.len() == 16 && name.bytes().all(|b| b.is_ascii_hexdigit())));
    }

    #[test]
    fn the_header_is_read_alone_and_a_short_file_has_none() {
        let directory = tempfile::tempdir().unwrap();
        let store = FileStore::new(&directory.path().join("tokens"), "default", 1 << 20).unwrap();
        assert!(store.read_header().unwrap().is_none(), "no file");
        let lock = store.lock(Duration::from_secs(20)).unwrap();
        assert!(store.is_locked_by_this_thread());
        store.replace(&lock, &[7; HEADER_LEN - 1]).unwrap();
        assert!(store.read_header().unwrap().is_none(), "too short");
        store.replace(&lock, &[7; HEADER_LEN + 1]).unwrap();
        assert_eq!(store.read_header().unwrap(), Some([7; HEADER_LEN]));
        assert_eq!(store.read().unwrap().unwrap().bytes, [7; HEADER_LEN + 1]);
        drop(lock);
        assert!(!store.is_locked_by_this_thread());
        fs::remove_file(store.path()).unwrap();
        fs::create_dir(store.path()).unwrap();
        assert!(store.read_header().is_err(), "a directory is no file that is too short");
        assert_eq!(store.beside("x.note"), store.path().with_file_name("default@x.note"));
    }

    /// Else a file that cannot be examined would be taken for none, and replaced.
    #[cfg(unix)]
    #[test]
    fn what_cannot_be_examined_is_not_taken_for_none() {
        let base = tempfile::tempdir().unwrap();
        let directory = base.path().join("tokens");
        let store = FileStore::new(&directory, "default", 1 << 20).unwrap();
        assert!(!store.is_there().unwrap());
        let lock = store.lock(Duration::from_secs(20)).unwrap();
        assert!(store.set_aside(&lock).unwrap().is_none());
        let watch = store.replace(&lock, b"record").unwrap();
        assert!(store.is_there().unwrap() && store.is_current(&watch).unwrap());
        store.make_durable(&lock).unwrap();
        fs::rename(&directory, base.path().join("elsewhere")).unwrap();
        fs::write(&directory, "no directory").unwrap();
        assert!(store.is_there().is_err() && store.set_aside(&lock).is_err());
        // By its header it is a change, which the reading after it reports.
        assert!(store.is_current(&watch).map_or(true, |is_current| !is_current));
        #[cfg(target_os = "linux")]
        assert_eq!(store.is_current(&watch).is_err(), store.has_reliable_identity);
        fs::remove_file(&directory).unwrap();
        assert!(store.make_durable(&lock).is_err());
    }
}
