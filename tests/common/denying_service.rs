//! A Secret Service that answers "no entry" whatever it is asked for, as `oo7-daemon` does while its
//! collection is locked; and that counts what it is asked to make.
#![allow(clippy::unused_self, clippy::used_underscore_binding)] // The interface and its macro ask for them.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use zbus::blocking::{Connection, connection};
use zbus::fdo;
use zbus::zvariant::{ObjectPath, OwnedObjectPath, OwnedValue, Value};

const SERVICE: &str = "/org/freedesktop/secrets";
const COLLECTION: &str = "/org/freedesktop/secrets/collection/login";

/// The service, until it is dropped.
pub(crate) struct DenyingService {
    _connection: Connection,
    asked_to_make: Arc<AtomicUsize>,
}

impl DenyingService {
    /// Takes the name of the Secret Service on the session bus, which nobody may have. `says_locked`:
    /// whether it admits that the collection is locked.
    pub(crate) fn start(says_locked: bool) -> Self {
        let asked_to_make = Arc::new(AtomicUsize::new(0));
        let collection = Collection { says_locked, asked_to_make: Arc::clone(&asked_to_make) };
        let connection = connection::Builder::session()
            .and_then(|builder| builder.serve_at(SERVICE, Service))
            .and_then(|builder| builder.serve_at(COLLECTION, collection))
            .and_then(|builder| builder.name("org.freedesktop.secrets"))
            .and_then(connection::Builder::build);
        Self { _connection: connection.unwrap(), asked_to_make }
    }

    /// How often it was asked to make an entry.
    pub(crate) fn asked_to_make(&self) -> usize {
        self.asked_to_make.load(Ordering::SeqCst)
    }
}

fn path(path: &str) -> OwnedObjectPath {
    ObjectPath::try_from(path).unwrap().into()
}

struct Service;

#[zbus::interface(name = "org.freedesktop.Secret.Service")]
impl Service {
    /// No secret ever passes, so that any public key will do.
    fn open_session(&self, algorithm: &str, _input: OwnedValue) -> (OwnedValue, OwnedObjectPath) {
        let output = if algorithm == "plain" { Value::from("") } else { Value::from(vec![3_u8; 128]) };
        (output.try_into().unwrap(), path("/org/freedesktop/secrets/session/s1"))
    }

    fn search_items(
        &self,
        _attributes: HashMap<String, String>,
    ) -> (Vec<OwnedObjectPath>, Vec<OwnedObjectPath>) {
        (Vec::new(), Vec::new())
    }

    /// Nothing is unlocked, and no prompt is shown.
    fn unlock(&self, _objects: Vec<OwnedObjectPath>) -> (Vec<OwnedObjectPath>, OwnedObjectPath) {
        (Vec::new(), path("/"))
    }

    fn read_alias(&self, _name: &str) -> OwnedObjectPath {
        path(COLLECTION)
    }

    #[zbus(property)]
    fn collections(&self) -> Vec<OwnedObjectPath> {
        vec![path(COLLECTION)]
    }
}

struct Collection {
    says_locked: bool,
    asked_to_make: Arc<AtomicUsize>,
}

#[zbus::interface(name = "org.freedesktop.Secret.Collection")]
impl Collection {
    fn search_items(&self, _attributes: HashMap<String, String>) -> Vec<OwnedObjectPath> {
        Vec::new()
    }

    fn create_item(
        &self,
        _properties: HashMap<String, OwnedValue>,
        _secret: (OwnedObjectPath, Vec<u8>, Vec<u8>, String),
        _replace: bool,
    ) -> fdo::Result<(OwnedObjectPath, OwnedObjectPath)> {
        self.asked_to_make.fetch_add(1, Ordering::SeqCst);
        Err(fdo::Error::AccessDenied("the collection is locked".into()))
    }

    #[zbus(property)]
    fn locked(&self) -> bool {
        self.says_locked
    }

    #[zbus(property)]
    fn label(&self) -> String {
        "Login".into()
    }

    #[zbus(property)]
    fn items(&self) -> Vec<OwnedObjectPath> {
        Vec::new()
    }
}
