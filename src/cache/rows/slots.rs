//! Finds the row that a new one renews: by its map key, or by what its fields say it is.

use super::{Kind, RowId, Rows};
use crate::cache::fields::Field;
use crate::cache::index::Index;
use crate::cache::map_key::KeyParts;

impl Rows {
    fn slots(&mut self) -> &Index {
        let slots = self.slots.take().unwrap_or_else(|| {
            let mut slots = Index::default();
            slots.reserve(self.rows.len() * 2);
            for kind in Kind::ALL {
                self.all(kind).for_each(|row| self.enter_slots(&mut slots, kind, row));
            }
            slots
        });
        self.slots.insert(slots)
    }

    pub(super) fn enter_slots(&self, slots: &mut Index, kind: Kind, row: RowId) {
        if let Some(key) = self.map_key(row) {
            slots.insert(slots.hash(&(kind, &*key)), row);
        }
        let fields = self.fields(row);
        let text = |field| fields.text(field).unwrap_or_default();
        let (owner, client, realm) = (text(Field::HomeAccountId), text(Field::ClientId), text(Field::Realm));
        let (target, ext_cache_key) = (text(Field::Target), fields.ext_cache_key());
        let identity = KeyParts {
            home_account_id: &owner,
            environment: "",
            client_id: &client,
            realm: &realm,
            target: &target,
            ext_cache_key: ext_cache_key.as_deref(),
            issuer: None,
        };
        slots.insert(identity.hash(kind, slots), row);
    }

    /// The row of `kind` that stands under this map key.
    pub(crate) fn under_map_key(&mut self, kind: Kind, key: &str) -> Option<RowId> {
        let slots = self.slots();
        let rows: Vec<RowId> = slots.rows(slots.hash(&(kind, key))).collect();
        rows.into_iter()
            .find(|&row| self.rows[row as usize].live && self.map_key(row).is_some_and(|found| found == key))
    }

    /// The rows of `kind` that may be the one that `parts` name, whatever their map keys are.
    pub(crate) fn of_identity(&mut self, kind: Kind, parts: &KeyParts<'_>) -> Vec<RowId> {
        let slots = self.slots();
        let mut rows: Vec<RowId> = slots.rows(parts.hash(kind, slots)).collect();
        if kind == Kind::RefreshToken && !parts.target.is_empty() {
            // Most SDKs write no target.
            let without_target = KeyParts { target: "", ..*parts };
            rows.extend(slots.rows(without_target.hash(kind, slots)));
        }
        rows.retain(|&row| self.rows[row as usize].live);
        rows
    }
}
