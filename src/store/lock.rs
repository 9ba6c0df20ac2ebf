//! A lock file: a lock between the threads of a process, then between processes.
//!
//! The system's lock belongs to an open file, which a child that is forked has as well: it is unlocked by
//! the process that locked it, never by a child, and a child closes the files that it inherited.

use std::collections::HashMap;
use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use super::error::StoreError;
use crate::deadline;
use crate::private_file;
use crate::process::{PerProcess, Process};

/// A lock file: of a cache, or of one of its refresh tokens. It is made when it is first needed, stays
/// empty and is never removed: whoever removes a lock file lets two processes hold it.
#[derive(Debug)]
pub(crate) struct LockFile {
    path: PathBuf,
}

/// Whose turn it is among the threads of this process. On some file systems a process does not
/// exclude itself by locking a file twice.
#[derive(Debug, Default)]
struct Turn {
    holder: Mutex<Option<ThreadId>>,
    freed: Condvar,
    /// Of the file that stands at the path, as far as was seen.
    queue: Mutex<Arc<Queue>>,
}

impl Turn {
    /// The queue for `file`. If somebody removed the file that a thread waits for, that one is left alone.
    fn queue(&self, file: &File) -> Arc<Queue> {
        let identity = private_file::identity(file);
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.identity != identity {
            *queue = Arc::new(Queue { identity, ..Queue::default() });
        }
        Arc::clone(&queue)
    }
}

/// This process's place in the system's queue for the lock: one thread that waits without a
/// deadline, for whoever has the turn. When a deadline passes the thread stays where it is, and the
/// next one who wants the lock waits for it instead of starting another.
#[derive(Debug, Default)]
struct Queue {
    /// Which file the thread waits for.
    identity: Option<(u64, u64)>,
    place: Mutex<Place>,
    called: Condvar,
}

#[derive(Debug, Default)]
enum Place {
    /// No thread waits.
    #[default]
    None,
    /// A thread waits; `is_wanted` while somebody still wants what it waits for.
    Waiting { is_wanted: bool },
    /// The thread came back, and somebody wants this.
    Called(io::Result<File>),
}

impl Queue {
    fn place(&self) -> MutexGuard<'_, Place> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the lock on `file`; `None` after the deadline.
    ///
    /// The thread keeps the `turn`, so that everybody who wants the lock meanwhile finds this very queue.
    fn wait(self: &Arc<Self>, turn: &Arc<Turn>, file: File, deadline: Instant) -> Option<io::Result<File>> {
        let mut place = self.place();
        if let Place::Waiting { is_wanted } = &mut *place {
            *is_wanted = true;
        } else {
            let (queue, turn) = (Arc::clone(self), Arc::clone(turn));
            let waiting = thread::Builder::new().name("tokenseal-lock".into()).spawn(move || {
                queue.come_back(file.lock().map(|()| file));
                drop(turn);
            });
            if let Err(error) = waiting {
                return Some(Err(error));
            }
            *place = Place::Waiting { is_wanted: true };
        }
        loop {
            match std::mem::take(&mut *place) {
                Place::Called(locked) => return Some(locked),
                waiting => *place = waiting,
            }
            let left = deadline::left(deadline);
            if left.is_zero() {
                *place = Place::Waiting { is_wanted: false };
                return None;
            }
            place = self.called.wait_timeout(place, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The waiting thread has the lock, and gives it back at once if nobody wants it any more.
    fn come_back(&self, locked: io::Result<File>) {
        let mut place = self.place();
        if matches!(*place, Place::Waiting { is_wanted: true }) {
            *place = Place::Called(locked);
            self.called.notify_one();
            return;
        }
        *place = Place::None;
        drop(place);
        // Closing it unlocks it only if no child has a copy.
        let _ = locked.map(|file| file.unlock());
    }
}

/// What a process knows of lock files.
#[derive(Debug, Default)]
struct Locks {
    /// The turns of all lock files in use, by their path.
    turns: Mutex<HashMap<PathBuf, Weak<Turn>>>,
    held: Mutex<Vec<Weak<HeldFile>>>,
}

/// A file that is locked, until it is taken out.
type HeldFile = Mutex<Option<File>>;

static LOCKS: PerProcess<Locks> = PerProcess::new(Locks::of_child);

impl Locks {
    /// A child holds no lock. It closes what it inherited, without waiting for threads that it has not: a
    /// killed parent's locks are free then.
    fn of_child(parent: Option<&Self>) -> Self {
        let held = parent.and_then(|parent| parent.held.try_lock().ok());
        for file in held.iter().flat_map(|held| held.iter()).filter_map(Weak::upgrade) {
            drop(file.try_lock().ok().and_then(|mut file| file.take()));
        }
        Self::default()
    }
}

/// The lock, until it is dropped. A killed process lets go of it as well.
#[derive(Debug)]
pub(crate) struct FileLock {
    file: Arc<HeldFile>,
    process: Process,
    // Dropped after the file is unlocked.
    _turn: MyTurn,
}

impl FileLock {
    fn new(file: File, turn: MyTurn) -> Self {
        let file = Arc::new(Mutex::new(Some(file)));
        let mut held = LOCKS.get().held.lock().unwrap_or_else(PoisonError::into_inner);
        held.retain(|file| file.strong_count() > 0);
        held.push(Arc::downgrade(&file));
        Self { file, process: Process::current(), _turn: turn }
    }

    /// Whether the file that is locked stands at `path` still, so that others find it.
    pub(crate) fn is_at(&self, path: &Path) -> bool {
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.as_ref().is_some_and(|file| private_file::is_at(file, path))
    }

    /// Whether it is this process that has it, and not the parent that this one was forked from.
    pub(crate) fn is_of_this_process(&self) -> bool {
        self.process.is_current()
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        // In a child this only closes its copy, if that is still open.
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(file) = file.filter(|_| self.process.is_current()) {
            // Closing it unlocks it only if no child has a copy.
            let _ = file.unlock();
        }
    }
}

#[derive(Debug)]
struct MyTurn {
    turn: Arc<Turn>,
    process: Process,
}

impl Drop for MyTurn {
    fn drop(&mut self) {
        // In a child it is the parent's, and perhaps in somebody's hand there.
        if self.process.is_current() {
            *self.turn.holder.lock().unwrap_or_else(PoisonError::into_inner) = None;
            self.turn.freed.notify_one();
        }
    }
}

impl LockFile {
    /// `path` must be canonical: two paths to one file would be two locks within the process.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn turn(&self) -> Arc<Turn> {
        let mut turns = LOCKS.get().turns.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(turn) = turns.get(&self.path).and_then(Weak::upgrade) {
            return turn;
        }
        turns.retain(|_, turn| turn.strong_count() > 0);
        let turn = Arc::new(Turn::default());
        turns.insert(self.path.clone(), Arc::downgrade(&turn));
        turn
    }

    pub(crate) fn acquire(&self, within: Duration) -> Result<FileLock, StoreError> {
        let deadline = deadline::after(within);
        let timed_out = || StoreError::LockTimedOut { path: self.path.clone(), waited: within };
        let turn = self.take_turn(deadline, timed_out)?;
        let cannot_lock = |source| StoreError::CannotLock { path: self.path.clone(), source };
        loop {
            let file = private_file::open_lock_file(&self.path)?;
            let file = match file.try_lock() {
                Ok(()) => file,
                Err(TryLockError::Error(source)) => return Err(cannot_lock(source)),
                // The system queues those who wait fairly and wakes them at once, but knows no deadline.
                Err(TryLockError::WouldBlock) => {
                    match turn.turn.queue(&file).wait(&turn.turn, file, deadline) {
                        Some(locked) => locked.map_err(cannot_lock)?,
                        None => return Err(timed_out()),
                    }
                }
            };
            // Nothing of ours removes a lock file, but a person or a cleaner may: what is locked then
            // is a file that nobody else can find.
            if private_file::is_at(&file, &self.path) {
                return Ok(FileLock::new(file, turn));
            }
            let _ = file.unlock();
            if deadline::left(deadline).is_zero() {
                return Err(timed_out());
            }
        }
    }

    /// Takes the lock if nobody has it.
    pub(crate) fn try_acquire(&self) -> Result<Option<FileLock>, StoreError> {
        let timed_out = || StoreError::LockTimedOut { path: self.path.clone(), waited: Duration::ZERO };
        let turn = match self.take_turn(deadline::after(Duration::ZERO), timed_out) {
            Ok(turn) => turn,
            Err(StoreError::LockTimedOut { .. } | StoreError::Nested { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let file = private_file::open_lock_file(&self.path)?;
        match file.try_lock() {
            Ok(()) if private_file::is_at(&file, &self.path) => Ok(Some(FileLock::new(file, turn))),
            Ok(()) => {
                let _ = file.unlock();
                Ok(None)
            }
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(source)) => {
                Err(StoreError::CannotLock { path: self.path.clone(), source })
            }
        }
    }

    /// Whether this very thread has the lock.
    pub(crate) fn is_mine(&self) -> bool {
        let turns = LOCKS.get().turns.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = turns.get(&self.path).and_then(Weak::upgrade);
        drop(turns);
        turn.is_some_and(|turn| {
            *turn.holder.lock().unwrap_or_else(PoisonError::into_inner) == Some(thread::current().id())
        })
    }

    fn take_turn(&self, deadline: Instant, timed_out: impl Fn() -> StoreError) -> Result<MyTurn, StoreError> {
        let (me, turn) = (thread::current().id(), self.turn());
        let mut holder = turn.holder.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(other) = *holder {
            if other == me {
                return Err(StoreError::Nested { path: self.path.clone() });
            }
            let left = deadline::left(deadline);
            if left.is_zero() {
                return Err(timed_out());
            }
            holder = turn.freed.wait_timeout(holder, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        *holder = Some(me);
        drop(holder);
        Ok(MyTurn { turn, process: Process::current() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(50);
    const LONG: Duration = Duration::from_secs(20);

    fn lock_file(directory: &tempfile::TempDir) -> LockFile {
        LockFile::new(directory.path().canonicalize().unwrap().join("x.lock"))
    }

    #[test]
    fn one_at_a_time_and_nested_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let (one, other) = (lock_file(&directory), lock_file(&directory));
        let held = one.acquire(LONG).unwrap();
        assert!(matches!(other.acquire(LONG), Err(StoreError::Nested { .. })));
        thread::scope(|scope| {
            let waiter = scope.spawn(|| other.acquire(SHORT).map(drop));
            assert!(matches!(waiter.join().unwrap(), Err(StoreError::LockTimedOut { .. })));
            let waiter = scope.spawn(|| other.acquire(LONG).map(drop));
            drop(held);
            waiter.join().unwrap().unwrap();
        });
    }

    #[test]
    #[cfg(unix)]
    fn whoever_waited_for_a_lock_file_that_was_removed_locks_the_new_one() {
        let directory = tempfile::tempdir().unwrap();
        let lock = lock_file(&directory);
        let removed = private_file::open_lock_file(&lock.path).unwrap();
        removed.lock().unwrap();
        thread::scope(|scope| {
            let waiter = scope.spawn(|| lock.acquire(LONG));
            thread::sleep(SHORT);
            std::fs::remove_file(&lock.path).unwrap();
            let new = private_file::open_lock_file(&lock.path).unwrap();
            new.lock().unwrap();
            removed.unlock().unwrap();
            thread::sleep(SHORT);
            assert!(!waiter.is_finished(), "the new file is locked by somebody else");
            new.unlock().unwrap();
            drop(waiter.join().unwrap().unwrap());
        });
    }

    #[test]
    fn a_lock_held_elsewhere_is_waited_for_and_given_back_after_a_deadline() {
        let directory = tempfile::tempdir().unwrap();
        let lock = lock_file(&directory);
        // Another open file is to the system what another process is.
        let other = private_file::open_lock_file(&lock.path).unwrap();
        other.lock().unwrap();
        for _ in 0..5 {
            assert!(matches!(lock.acquire(SHORT), Err(StoreError::LockTimedOut { .. })));
        }
        #[cfg(target_os = "linux")]
        {
            let threads = std::fs::read_dir("/proc/self/task").unwrap().filter(|task| {
                let name = task.as_ref().unwrap().path().join("comm");
                std::fs::read_to_string(name).is_ok_and(|name| name.trim() == "tokenseal-lock")
            });
            // Other tests of this process may have one each.
            assert!((1..=2).contains(&threads.count()), "one thread waits, however often it was in vain");
        }
        drop(other);
        drop(lock.acquire(LONG).unwrap());
        // The thread that waited in vain does not keep the lock, and no others were started.
        private_file::open_lock_file(&lock.path).unwrap().lock().unwrap();
        assert_eq!(std::fs::metadata(&lock.path).unwrap().len(), 0, "nothing is written to a lock file");
    }
}
