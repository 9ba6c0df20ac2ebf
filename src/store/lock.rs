//! The lock on a cache: between the threads of a process, then between processes.

use std::collections::HashMap;
use std::fs::{File, TryLockError};
use std::path::PathBuf;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Condvar, LazyLock, Mutex, PoisonError, Weak};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use super::error::StoreError;
use crate::private_file::{self, failed};

/// The lock file of a cache. It is made when it is first needed, stays empty and is never removed:
/// whoever removes a lock file lets two processes hold it.
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
}

/// The turns of all caches that are open, by the path of their lock file.
static TURNS: LazyLock<Mutex<HashMap<PathBuf, Weak<Turn>>>> = LazyLock::new(Mutex::default);

/// The lock, until it is dropped. A killed process lets go of it as well.
#[derive(Debug)]
pub(crate) struct StoreLock {
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

    pub(crate) fn acquire(&self, within: Duration) -> Result<StoreLock, StoreError> {
        let deadline = Instant::now() + within;
        let timed_out = || StoreError::LockTimedOut { path: self.path.clone(), waited: within };
        let turn = self.take_turn(deadline, timed_out)?;
        let file = private_file::open_or_create(&self.path)?;
        match file.try_lock() {
            Ok(()) => return Ok(StoreLock { _file: file, _turn: turn }),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(source)) => {
                return Err(StoreError::CannotLock { path: self.path.clone(), source });
            }
        }
        // The system queues those who wait fairly and wakes them at once, but knows no deadline. The
        // thread that outlives one gives the lock back as soon as it gets it.
        let (locked, answer) = sync_channel(1);
        thread::Builder::new()
            .name("tokenseal-lock".into())
            .spawn(move || drop(locked.send(file.lock().map(|()| file))))
            .map_err(failed("wait for", &self.path))?;
        match answer.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Ok(file)) => Ok(StoreLock { _file: file, _turn: turn }),
            Ok(Err(source)) => Err(StoreError::CannotLock { path: self.path.clone(), source }),
            Err(_) => Err(timed_out()),
        }
    }

    fn take_turn(&self, deadline: Instant, timed_out: impl Fn() -> StoreError) -> Result<MyTurn, StoreError> {
        let me = thread::current().id();
        let mut holder = self.turn.holder.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(other) = *holder {
            if other == me {
                return Err(StoreError::Nested { path: self.path.clone() });
            }
            let left = deadline.checked_duration_since(Instant::now()).ok_or_else(&timed_out)?;
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
    fn a_lock_held_elsewhere_is_waited_for_and_given_back_after_a_deadline() {
        let directory = tempfile::tempdir().unwrap();
        let lock = lock_file(&directory);
        // Another open file is to the system what another process is.
        let other = private_file::open_or_create(&lock.path).unwrap();
        other.lock().unwrap();
        assert!(matches!(lock.acquire(SHORT), Err(StoreError::LockTimedOut { .. })));
        other.unlock().unwrap();
        drop(lock.acquire(LONG).unwrap());
        // The thread that waited in vain does not keep the lock.
        other.lock().unwrap();
        other.unlock().unwrap();
        assert_eq!(std::fs::metadata(&lock.path).unwrap().len(), 0, "nothing is written to a lock file");
    }
}
