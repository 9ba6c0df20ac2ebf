//! No record opens but the one that was sealed. The input is a record as it is, or says how to alter a
//! genuine one: random bytes alone would never get past the header.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use tokenseal::seal::{self, Context, KeyId, SealingKey};

static KEY: LazyLock<SealingKey> = LazyLock::new(|| SealingKey::from_bytes(KeyId::from_bytes([7; 16]), &[42; 32]));

fuzz_target!(|data: &[u8]| {
    let context = Context::file("contoso-cli", "default");
    let Some((&how, rest)) = data.split_first() else { return };
    if how % 2 == 0 {
        assert!(seal::open(&KEY, &context, rest.to_vec()).is_err());
        return;
    }
    let (changes, json) = rest.split_at(rest.len().min(usize::from(how) / 8 * 3));
    let genuine = seal::seal(&KEY, &context, 1, json).unwrap();
    let mut altered = genuine.clone();
    for change in changes.chunks_exact(3) {
        let at = usize::from(u16::from_be_bytes([change[0], change[1]]));
        match change[2] {
            0 => altered.truncate(at),
            1 => altered.push(change[0]),
            mask => {
                let length = altered.len().max(1);
                if let Some(byte) = altered.get_mut(at % length) {
                    *byte ^= mask;
                }
            }
        }
    }
    let is_genuine = altered == genuine;
    match seal::open(&KEY, &context, altered) {
        Ok(opened) => {
            assert!(is_genuine);
            assert_eq!(opened.expose().trim_ascii(), json.trim_ascii());
        }
        Err(_) => assert!(!is_genuine),
    }
});
