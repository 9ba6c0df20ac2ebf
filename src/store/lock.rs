//! A lock file: a lock between the threads of a process, then between processes.

use std::collections::HashMap;
use std::fs::{File, TryLockError};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use super::error::StoreError;
use crate::deadline;
use crate::private_file;

/// A lock file: of a cache, or of one of its refresh tokens. It is made when it is first needed, stays
/// empty and is never removed: whoever removes a lock file lets two processes hold it.
#[derive(Debug)]
pub(crate) struct LockFile {
    path: PathBuf,
    turn: Arc<Turn>,
}

/// Whose turn it is among the threads of this process. On some file systems a process does not
/// exclude itself by locking a file twice.
#[derive(Debug, Default)]
struct Turn {
    holder: Mutex<Option<ThreadId>>,
    freed: Condvar,
    queue: Arc<Queue>,
}

/// This process's place in the system's queue for the lock: one thread that waits without a
/// deadline, for whoever has the turn. When a deadline passes the thread stays where it is, and the
/// next one who wants the lock waits for it instead of starting another.
#[derive(Debug, Default)]
struct Queue {
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
    fn wait(self: &Arc<Self>, file: File, deadline: Instant) -> Option<io::Result<File>> {
        let mut place = self.place();
        if let Place::Waiting { is_wanted } = &mut *place {
            *is_wanted = true;
        } else {
            let queue = Arc::clone(self);
            let waiting = thread::Builder::new()
                .name("tokenseal-lock".into())
                .spawn(move || queue.come_back(file.lock().map(|()| file)));
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
        match *place {
            Place::Waiting { is_wanted: true } => {
                *place = Place::Called(locked);
                self.called.notify_one();
            }
            _ => *place = Place::None,
        }
    }
}

/// The turns of all lock files in use, by their path.
static TURNS: LazyLock<Mutex<HashMap<PathBuf, Weak<Turn>>>> = LazyLock::new(Mutex::default);

/// The lock, until it is dropped. A killed process lets go of it as well.
#[derive(Debug)]
pub(crate) struct FileLock {
    // Dropped in this order: the file first, then the turn.
    _file: File,
    _turn: MyTurn,
}

#[derive(Debug)]
struct MyTurn(Arc<Turn>);

impl Drop for MyTurn {
    fn drop(&mut self) {
        *self.0.holder.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.0.freed.notify_one();
    }
}

impl LockFile {
    /// `path` must be canonical: two paths to one file would be two locks within the process.
    pub(crate) fn new(path: PathBuf) -> Self {
        let mut turns = TURNS.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| turn.strong_count() > 0);
        let known = turns.get(&path).and_then(Weak::upgrade);
        let turn = known.unwrap_or_else(|| {
            let turn = Arc::new(Turn::default());
            turns.insert(path.clone(), Arc::downgrade(&turn));
            turn
        });
        Self { path, turn }
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
                Err(TryLockError::WouldBlock) => match self.turn.queue.wait(file, deadline) {
                    Some(locked) => locked.map_err(cannot_lock)?,
                    None => return Err(timed_out()),
                },
            };
            // Nothing of ours removes a lock file, but a person or a cleaner may: what is locked then
            // is a file that nobody else can find.
            if private_file::is_at(&file, &self.path) {
                return Ok(FileLock { _file: file, _turn: turn });
            }
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
            Ok(()) if private_file::is_at(&file, &self.path) => {
                Ok(Some(FileLock { _file: file, _turn: turn }))
            }
            Ok(()) | Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(source)) => {
                Err(StoreError::CannotLock { path: self.path.clone(), source })
            }
        }
    }

    /// Whether this very thread has the lock.
    pub(crate) fn is_mine(&self) -> bool {
        let holder = self.turn.holder.lock().unwrap_or_else(PoisonError::into_inner);
        *holder == Some(thread::current().id())
    }

    fn take_turn(&self, deadline: Instant, timed_out: impl Fn() -> StoreError) -> Result<MyTurn, StoreError> {
        let me = thread::current().id();
        let mut holder = self.turn.holder.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(other) = *holder {
            if other == me {
                return Err(StoreError::Nested { path: self.path.clone() });
            }
            let left = deadline::left(deadline);
            if left.is_zero() {
                return Err(timed_out());
            }
            holder = self.turn.freed.wait_timeout(holder, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        *holder = Some(me);
        Ok(MyTurn(Arc::clone(&self.turn)))
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
