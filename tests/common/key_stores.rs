//! Key stores that behave awkwardly.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokenseal::{
    Secret,
    key_store::{KeyName, KeyStore, KeyStoreError, MemoryKeyStore},
};

/// A store that gives every cache the same keys, so that only the context tells files apart.
#[derive(Debug)]
pub(crate) struct OneForAll(pub(crate) MemoryKeyStore, pub(crate) Mutex<Option<KeyName>>);

impl KeyStore for OneForAll {
    fn description(&self) -> String {
        "one for all".into()
    }
    fn create(&self, name: &KeyName, text: &Secret) -> Result<(), KeyStoreError> {
        *self.1.lock().unwrap() = Some(name.clone());
        self.0.create(name, text)
    }
    fn read(&self, _: &KeyName) -> Result<Option<Secret>, KeyStoreError> {
        self.0.read(self.1.lock().unwrap().as_ref().unwrap())
    }
    fn delete(&self, name: &KeyName) -> Result<(), KeyStoreError> {
        self.0.delete(name)
    }
}

/// Refuses, or fails at a certain call, when told to.
#[derive(Debug)]
pub(crate) struct Refusing {
    inner: MemoryKeyStore,
    fails: Mutex<Vec<&'static str>>,
    log: Mutex<Vec<&'static str>>,
}

impl Refusing {
    pub(crate) fn new(inner: &MemoryKeyStore) -> Self {
        Self { inner: inner.clone(), fails: Mutex::default(), log: Mutex::default() }
    }

    pub(crate) fn refuses(&self, all: bool) {
        *self.fails.lock().unwrap() =
            if all { vec!["prepare", "create", "read", "delete"] } else { Vec::new() };
    }

    pub(crate) fn fails_at(&self, calls: &[&'static str]) {
        *self.fails.lock().unwrap() = calls.to_vec();
    }

    pub(crate) fn calls(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.log.lock().unwrap())
    }

    fn behave(&self, call: &'static str) -> Result<(), KeyStoreError> {
        self.log.lock().unwrap().push(call);
        if !self.fails.lock().unwrap().contains(&call) {
            return Ok(());
        }
        Err(KeyStoreError::unavailable("the test's store", "let it be", "it refuses"))
    }
}

impl KeyStore for Refusing {
    fn description(&self) -> String {
        "the test's store".into()
    }
    fn prepare(&self) -> Result<(), KeyStoreError> {
        self.behave("prepare")
    }
    fn create(&self, name: &KeyName, text: &Secret) -> Result<(), KeyStoreError> {
        self.behave("create")?;
        self.inner.create(name, text)
    }
    fn read(&self, name: &KeyName) -> Result<Option<Secret>, KeyStoreError> {
        self.behave("read")?;
        self.inner.read(name)
    }
    fn delete(&self, name: &KeyName) -> Result<(), KeyStoreError> {
        self.behave("delete")?;
        self.inner.delete(name)
    }
}

/// Says that it has no entry while it is locked, and that deleting one worked.
#[derive(Debug)]
pub(crate) struct Forgetful(pub(crate) MemoryKeyStore, pub(crate) AtomicBool);

impl KeyStore for Forgetful {
    fn description(&self) -> String {
        "the forgetful store".into()
    }
    fn create(&self, name: &KeyName, text: &Secret) -> Result<(), KeyStoreError> {
        self.0.create(name, text)
    }
    fn read(&self, name: &KeyName) -> Result<Option<Secret>, KeyStoreError> {
        if self.1.load(Ordering::SeqCst) { Ok(None) } else { self.0.read(name) }
    }
    fn delete(&self, name: &KeyName) -> Result<(), KeyStoreError> {
        if self.1.load(Ordering::SeqCst) { Ok(()) } else { self.0.delete(name) }
    }
}

/// Does not answer calls at which it hangs, until it is told not to: then they have their effect.
#[derive(Debug)]
pub(crate) struct Hanging {
    inner: MemoryKeyStore,
    hangs: Mutex<Vec<&'static str>>,
    /// Calls that were held up, and had their effect late.
    late: AtomicUsize,
}

impl Hanging {
    pub(crate) fn new(inner: &MemoryKeyStore) -> Self {
        Self { inner: inner.clone(), hangs: Mutex::default(), late: AtomicUsize::new(0) }
    }

    pub(crate) fn hangs_at(&self, calls: &[&'static str]) {
        *self.hangs.lock().unwrap() = calls.to_vec();
    }

    pub(crate) fn hangs(&self, at_all: bool) {
        self.hangs_at(if at_all { &["create", "read", "delete"] } else { &[] });
    }

    pub(crate) fn late(&self) -> usize {
        self.late.load(Ordering::SeqCst)
    }

    fn call<T>(&self, name: &'static str, call: impl FnOnce() -> T) -> T {
        let mut was_held_up = false;
        while self.hangs.lock().unwrap().contains(&name) {
            was_held_up = true;
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let came = call();
        self.late.fetch_add(usize::from(was_held_up), Ordering::SeqCst);
        came
    }
}

impl KeyStore for Hanging {
    fn description(&self) -> String {
        "the hanging store".into()
    }
    fn create(&self, name: &KeyName, text: &Secret) -> Result<(), KeyStoreError> {
        self.call("create", || self.inner.create(name, text))
    }
    fn read(&self, name: &KeyName) -> Result<Option<Secret>, KeyStoreError> {
        self.call("read", || self.inner.read(name))
    }
    fn delete(&self, name: &KeyName) -> Result<(), KeyStoreError> {
        self.call("delete", || self.inner.delete(name))
    }
}
