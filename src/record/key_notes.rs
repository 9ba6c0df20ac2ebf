//! What the sealed content remembers about keys, so that a rotation that was cut short is finished.

use crate::cache::TokenCache;
use crate::seal::KeyId;

/// The member of the root object that holds the notes. It is no part of the cache that a program
/// sees.
const MEMBER: &str = "tokenseal";

/// At most this many keys of either kind are remembered.
const LIMIT: usize = 16;

/// Keys besides the one that seals the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct KeyNotes {
    /// A sign-out asked for a new key, and the file is still sealed under the old one.
    pub(crate) is_rotation_due: bool,
    /// Keys that may have been made and do not seal the file (yet).
    pub(crate) prepared: Vec<KeyId>,
    /// Keys that sealed the file once, and may still be in the key store.
    pub(crate) retiring: Vec<KeyId>,
}

impl KeyNotes {
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    pub(crate) fn prepare(&mut self, key_id: KeyId) {
        remember(&mut self.prepared, key_id);
    }

    pub(crate) fn retire(&mut self, key_id: KeyId) {
        remember(&mut self.retiring, key_id);
    }

    /// Takes the notes out of a cache that was just opened.
    pub(crate) fn take_from(cache: &mut TokenCache) -> Self {
        let mut notes = Self::default();
        let Some(raw) = cache.take_member(MEMBER) else { return notes };
        let Ok(member) = serde_json::from_str::<std::collections::HashMap<String, String>>(&raw) else {
            return notes;
        };
        let ids = |name: &str| {
            let ids = member.get(name).map(String::as_str).unwrap_or_default();
            ids.split_ascii_whitespace().filter_map(KeyId::from_hex).take(LIMIT).collect()
        };
        notes.is_rotation_due = member.get("rotation").is_some_and(|state| state == "due");
        notes.prepared = ids("prepared");
        notes.retiring = ids("retiring");
        notes
    }

    /// The notes as a member of the root object; `None` if there is nothing to remember.
    pub(crate) fn to_member(&self) -> Option<String> {
        if self.is_empty() {
            return None;
        }
        let ids = |ids: &[KeyId]| ids.iter().map(KeyId::to_string).collect::<Vec<_>>().join(" ");
        let (prepared, retiring) = (ids(&self.prepared), ids(&self.retiring));
        let rotation = if self.is_rotation_due { "due" } else { "done" };
        Some(format!(
            r#""{MEMBER}":{{"rotation":"{rotation}","prepared":"{prepared}","retiring":"{retiring}"}}"#
        ))
    }
}

fn remember(ids: &mut Vec<KeyId>, key_id: KeyId) {
    ids.retain(|known| *known != key_id);
    ids.push(key_id);
    if ids.len() > LIMIT {
        ids.remove(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_survive_and_stay_out_of_the_cache() {
        let mut notes = KeyNotes { is_rotation_due: true, ..KeyNotes::default() };
        notes.prepare(KeyId::from_bytes([1; 16]));
        notes.prepare(KeyId::from_bytes([2; 16]));
        notes.retire(KeyId::from_bytes([3; 16]));
        let mut cache = TokenCache::new();
        cache.deserialize(r#"{"Other":1,"AccessToken":{}}"#).unwrap();
        let mut json = crate::secret::SecretBytes::default();
        cache.write(&mut json, notes.to_member().as_deref());
        cache.deserialize(json).unwrap();
        assert_eq!(KeyNotes::take_from(&mut cache), notes);
        assert_eq!(cache.serialize().json().expose(), br#"{"Other":1,"AccessToken":{}}"#);
        assert_eq!(KeyNotes::take_from(&mut cache), KeyNotes::default());
    }

    #[test]
    fn what_is_no_note_is_ignored_and_the_number_is_bounded() {
        let mut cache = TokenCache::new();
        cache.deserialize(r#"{"tokenseal":{"prepared":"zz 01","retiring":7}}"#).unwrap();
        assert!(KeyNotes::take_from(&mut cache).is_empty());
        let mut notes = KeyNotes::default();
        for byte in 0..100 {
            notes.prepare(KeyId::from_bytes([byte; 16]));
        }
        assert_eq!(notes.prepared.len(), LIMIT);
        assert_eq!(notes.prepared.last(), Some(&KeyId::from_bytes([99; 16])));
    }
}
