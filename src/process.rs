//! What belongs to one process: a child that is forked has its parent's memory, and neither its threads nor
//! its locks.

use std::sync::{OnceLock, PoisonError, RwLock};

/// A value for each process: a child of a fork makes one of its own, and never waits for a lock that a
/// thread of its parent held when it was forked.
#[derive(Debug)]
pub(crate) struct PerProcess<T: 'static> {
    first: OnceLock<Node<T>>,
    /// Makes the value, in a child with a look at its parent's.
    make: fn(Option<&T>) -> T,
}

/// The value of one process, and behind it that of the child that was forked from it.
#[derive(Debug)]
struct Node<T> {
    process: u32,
    value: T,
    next: OnceLock<Box<Node<T>>>,
}

impl<T> PerProcess<T> {
    pub(crate) const fn new(make: fn(Option<&T>) -> T) -> Self {
        Self { first: OnceLock::new(), make }
    }

    /// The value of this process.
    pub(crate) fn get(&self) -> &T {
        let process = std::process::id();
        let new = |parent| Node { process, value: (self.make)(parent), next: OnceLock::new() };
        let mut node = self.first.get_or_init(|| new(None));
        while node.process != process {
            node = node.next.get_or_init(|| Box::new(new(Some(&node.value))));
        }
        &node.value
    }
}

/// A value that threads share, and that no child waits for: a child of a fork takes it over as it was, unless
/// a thread of its parent was just changing it.
#[derive(Debug)]
pub(crate) struct Shared<T: 'static> {
    process: Process,
    value: RwLock<T>,
    /// That of a child, in the child's memory.
    child: OnceLock<Box<Self>>,
    /// What a child begins with that cannot take it over.
    make: fn() -> T,
}

impl<T: Clone> Shared<T> {
    pub(crate) fn new(value: T, make: fn() -> T) -> Self {
        Self { process: Process::current(), value: RwLock::new(value), child: OnceLock::new(), make }
    }

    /// The value. The process is asked for only where somebody is changing it.
    pub(crate) fn get(&self) -> T {
        let mut own = self;
        while let Some(child) = own.child.get() {
            own = child;
        }
        match own.value.try_read() {
            Ok(value) => value.clone(),
            Err(std::sync::TryLockError::Poisoned(value)) => value.into_inner().clone(),
            Err(std::sync::TryLockError::WouldBlock) => {
                self.own().value.read().unwrap_or_else(PoisonError::into_inner).clone()
            }
        }
    }

    /// Calls `change` with the value.
    pub(crate) fn change<R>(&self, change: impl FnOnce(&mut T) -> R) -> R {
        change(&mut self.own().value.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// That of this process.
    fn own(&self) -> &Self {
        let mut own = self;
        while !own.process.is_current() {
            own = own.child.get_or_init(|| {
                let inherited = own.value.try_read().map(|value| value.clone());
                Box::new(Self::new(inherited.unwrap_or_else(|_| (own.make)()), own.make))
            });
        }
        own
    }
}

/// Which process something was made in. A child in a process namespace of its own may have the number of its
/// parent: it is not told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Process(u32);

impl Process {
    pub(crate) fn current() -> Self {
        Self(std::process::id())
    }

    /// Whether this is that process, and no child of it.
    pub(crate) fn is_current(self) -> bool {
        self == Self::current()
    }
}
