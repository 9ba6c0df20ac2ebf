//! The lease of a refresh token, for one thread or task of one process at a time: a lock within the process,
//! and a lock file among processes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use super::registry::{Credential, Registry};
use super::source::Source;
use super::status_file;
use crate::deadline::{self, InLane};
use crate::persisted::Error;
use crate::private_file::FileError;
use crate::process::Process;
use crate::refresh::error::AcquireError;
use crate::refresh::plan::back_off::unix_millis;
use crate::refresh::plan::held::Held;
use crate::refresh::plan::names::LeaseName;
use crate::refresh::plan::status::Status;
use crate::store::{FileLock, LockFile, StoreError};

/// The intervals between attempts to save, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

impl Registry {
    /// Waits for the lease of a refresh token.
    pub(crate) fn lease(
        &self,
        source: &Source,
        name: &LeaseName,
        within: Duration,
        deadline: Instant,
    ) -> Result<Lease, AcquireError> {
        let home = Home::of(source, name);
        let timed_out = || home.timed_out(within);
        let credential = self.credential(name);
        let in_lane = credential.lane.enter(deadline).ok_or_else(timed_out)?;
        let lock = |file: &LockFile| match file.acquire(deadline::left(deadline)) {
            Err(StoreError::LockTimedOut { .. }) => Err(timed_out()),
            other => Ok(other.map(Some)),
        };
        match Lease::take(name, credential, home.clone(), in_lane, lock)? {
            Ok(lease) => Ok(lease),
            Err(_in_lane) => Err(timed_out()),
        }
    }

    /// Takes the lease if it is free; `None` if it is taken.
    pub(crate) fn lease_if_free(
        &self,
        source: &Source,
        name: &LeaseName,
    ) -> Result<Option<Lease>, AcquireError> {
        let credential = self.credential(name);
        let Some(in_lane) = credential.lane.enter(deadline::after(Duration::ZERO)) else { return Ok(None) };
        Ok(self.lease_in_lane(source, name, in_lane)?.ok())
    }

    /// Takes the lease from within the lane; returns the lane if another process has the lease.
    pub(crate) fn lease_in_lane(
        &self,
        source: &Source,
        name: &LeaseName,
        in_lane: InLane,
    ) -> Result<Result<Lease, InLane>, AcquireError> {
        let home = Home::of(source, name);
        Lease::take(name, self.credential(name), home, in_lane, |file| Ok(file.try_acquire()))
    }
}

/// Where a lease lives.
#[derive(Debug, Clone)]
pub(crate) enum Home {
    /// In a lock file, with the status beside it.
    File {
        lock: PathBuf,
        status: PathBuf,
    },
    Memory,
}

impl Home {
    pub(crate) fn of(source: &Source, name: &LeaseName) -> Self {
        match source {
            Source::File(cache) => {
                let beside = |ending| cache.store().beside(&format!("{}.refresh.{ending}", name.as_str()));
                Self::File { lock: beside("lock"), status: beside("note") }
            }
            Source::Memory(_) => Self::Memory,
        }
    }

    fn status_path(&self) -> Option<&Path> {
        match self {
            Self::File { status, .. } => Some(status),
            Self::Memory => None,
        }
    }

    /// Returns the timeout error, naming the holder if it was recorded.
    pub(crate) fn timed_out(&self, waited: Duration) -> AcquireError {
        match self {
            Self::File { lock, status } => AcquireError::WaitTimedOut {
                waited,
                holder: status_file::read(status).holder,
                lock: lock.display().to_string(),
            },
            Self::Memory => AcquireError::WaitTimedOut {
                waited,
                holder: Some(std::process::id()),
                lock: "a lock in memory".to_owned(),
            },
        }
    }
}

/// The right to use a refresh token, until it is dropped.
#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) held: Held,
    credential: Arc<Credential>,
    home: Home,
    process: Process,
    /// Whether a save was attempted under this lease.
    has_tried: bool,
    /// Whether the status names a holder: this process, or one that was killed.
    is_noted: bool,
    // Dropped in this order: the lock among processes, then the one within.
    lock: Option<FileLock>,
    _in_lane: InLane,
}

impl Lease {
    /// `lock` locks a file: `Ok(Ok(None))` means that another process has the lease.
    fn take(
        name: &LeaseName,
        credential: Arc<Credential>,
        home: Home,
        in_lane: InLane,
        lock: impl FnOnce(&LockFile) -> Result<Result<Option<FileLock>, StoreError>, AcquireError>,
    ) -> Result<Result<Self, InLane>, AcquireError> {
        let kept = credential.remembered().lock.take();
        let lock = match (&home, kept) {
            (Home::Memory, _) => None,
            (Home::File { .. }, Some(kept)) => Some(kept),
            (Home::File { lock: path, .. }, None) => match lock(&LockFile::new(path.clone()))? {
                Ok(Some(lock)) => Some(lock),
                Ok(None) => return Ok(Err(in_lane)),
                // Then only the threads of this process can be excluded.
                Err(error) if is_read_only(&error, path) => None,
                Err(error) => return Err(Error::from(error).into()),
            },
        };
        let remembered = credential.remembered();
        // Callers that time out read it from the registry.
        let pending = remembered.pending.clone();
        let unwritten = remembered.status.clone();
        drop(remembered);
        let written = home.status_path().map(status_file::read).unwrap_or_default();
        let is_noted = written.holder.is_some();
        let mut status = Status::newer_of(unwritten, written);
        status.holder = None;
        status.forget_what_is_over(unix_millis(SystemTime::now()));
        let held = Held { name: name.clone(), status, pending };
        let process = Process::current();
        Ok(Ok(Self { held, credential, home, process, has_tried: false, is_noted, lock, _in_lane: in_lane }))
    }

    /// Whether other processes are excluded as well.
    pub(crate) fn covers_other_processes(&self) -> bool {
        self.lock.is_some() && self.process.is_current()
    }

    /// Fails in a forked child: the lease is its parent's.
    pub(crate) fn check_process(&self) -> Result<(), AcquireError> {
        if self.process.is_current() {
            return Ok(());
        }
        let path = match &self.home {
            Home::File { lock, .. } => lock.clone(),
            Home::Memory => PathBuf::from("(in memory)"),
        };
        Err(Error::from(StoreError::Forked { path }).into())
    }

    /// Saves pending changes. Those that cannot be saved remain visible to all threads.
    pub(crate) fn save(&mut self, source: &Source) {
        if !self.process.is_current() {
            return;
        }
        self.has_tried = true;
        self.held.pending.save(|change| source.update(change));
        self.credential.remembered().pending = self.held.pending.clone();
    }

    /// Saves the changes that an earlier holder could not save.
    pub(crate) fn save_leftover(&mut self, source: &Source) {
        if !self.has_tried {
            self.save(source);
        }
    }

    /// Keeps trying to save pending changes in the background.
    pub(crate) fn save_later(&self, source: &Source, registry: &Arc<Registry>) {
        let mut remembered = self.credential.remembered();
        if self.held.pending.is_empty() || remembered.has_saver {
            return;
        }
        let (source, registry, name) = (source.clone(), Arc::clone(registry), self.held.name.clone());
        let saver = thread::Builder::new().name("tokenseal-save".into());
        remembered.has_saver = saver.spawn(move || save_when_possible(&source, &registry, &name)).is_ok();
    }

    /// Records the holder, for the errors of callers that time out.
    pub(crate) fn begin_use(&mut self) {
        self.held.status.holder = Some(std::process::id());
        self.is_noted = true;
        self.write_status();
    }

    /// Publishes the status, or removes it if it is empty.
    fn end_use(&mut self) {
        if !std::mem::take(&mut self.is_noted) {
            return;
        }
        self.held.status.holder = None;
        if self.held.status.is_empty() {
            if let Some(path) = self.home.status_path() {
                status_file::remove(path);
            }
            self.credential.remembered().status = None;
        } else {
            self.write_status();
        }
    }

    fn write_status(&self) {
        let status = &self.held.status;
        let is_written = self
            .home
            .status_path()
            .is_some_and(|path| self.lock.is_some() && status_file::write(status, path).is_ok());
        // A status that cannot be written is kept in this process.
        self.credential.remembered().status = (!is_written && !status.is_empty()).then(|| status.clone());
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if !self.process.is_current() {
            return;
        }
        let keeps_lock = self.held.pending.has_renewed_tokens();
        if keeps_lock {
            // Waiters that time out need to see the holder and the outcome of the call.
            self.begin_use();
        } else {
            self.end_use();
        }
        self.credential.remembered().lock = if keeps_lock { self.lock.take() } else { None };
    }
}

fn save_when_possible(source: &Source, registry: &Registry, name: &LeaseName) {
    let mut pause = FIRST_PAUSE;
    loop {
        thread::sleep(pause);
        pause = LONGEST_PAUSE.min(pause * 2);
        let Ok(mut lease) = registry.lease(source, name, LONGEST_PAUSE, deadline::after(LONGEST_PAUSE))
        else {
            continue;
        };
        lease.save(source);
        if lease.held.pending.is_empty() {
            lease.credential.remembered().has_saver = false;
            return;
        }
    }
}

/// Whether a lock file cannot be created because the directory is not writable. An existing file that cannot
/// be opened may be held.
fn is_read_only(error: &StoreError, path: &Path) -> bool {
    use std::io::ErrorKind;
    let StoreError::File(FileError::Io { source, .. }) = error else { return false };
    let is_missing = std::fs::symlink_metadata(path).is_err_and(|error| error.kind() == ErrorKind::NotFound);
    match source.kind() {
        ErrorKind::ReadOnlyFilesystem => true,
        ErrorKind::PermissionDenied => is_missing,
        _ => false,
    }
}
