//! What belongs to one process: a child that is forked has its parent's memory, and neither its threads nor
//! its locks.

use std::sync::OnceLock;

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

/// Which process something was made in.
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
