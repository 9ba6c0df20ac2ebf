//! The names of key files: application, cache and the key's id.

use super::KeyName;
use crate::seal::KeyId;

const ENDING: &str = ".key";

/// The name of a key's file. The names of applications and caches were checked: neither has a separator in
/// it.
pub(super) fn of(name: &KeyName) -> String {
    format!("{}{}{ENDING}", prefix(name.service(), name.cache()), name.key_id())
}

/// The id of the key of this cache that a file of this name holds.
pub(super) fn key_id(file_name: &str, service: &str, cache: &str) -> Option<KeyId> {
    let rest = file_name.strip_prefix(&prefix(service, cache))?;
    KeyId::from_hex(rest.strip_suffix(ENDING)?)
}

/// Whether a file of this name is a key's.
pub(super) fn is_key(file_name: &str) -> bool {
    let id = file_name.strip_suffix(ENDING).and_then(|rest| rest.rsplit('.').next());
    id.is_some_and(|id| KeyId::from_hex(id).is_some())
}

fn prefix(service: &str, cache: &str) -> String {
    format!("{service}.{cache}.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_as_it_was_written() {
        let id = KeyId::from_bytes([7; 16]);
        let name = of(&KeyName::new("com.example", "default", id));
        assert_eq!(key_id(&name, "com.example", "default"), Some(id));
        for (file_name, service, cache) in [
            (name.as_str(), "com", "example.default"),
            (name.as_str(), "com.example", "other"),
            ("..data", "com.example", "default"),
            (&name[..name.len() - 1], "com.example", "default"),
        ] {
            let is_same = format!("{service}.{cache}") == "com.example.default";
            assert_eq!(
                key_id(file_name, service, cache).is_some(),
                is_same && file_name == name,
                "{file_name}"
            );
        }
    }
}
