//! What a sealed record refuses, and the vectors of `docs/format.md`.

use super::*;

const JSON: &[u8] = br#"{"AccessToken":{}}"#;

fn key(byte: u8) -> SealingKey {
    SealingKey::from_bytes(KeyId::from_bytes([byte; 16]), &[byte; 32])
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

/// Seals with a fixed nonce, as the vectors of the format do.
fn vector(key: &SealingKey, context: &Context, generation: u64, json: &[u8]) -> Vec<u8> {
    let mut record = SecretBytes::with_capacity(sealed_len(json.len()));
    record.extend(&[0; HEADER_LEN]);
    record.extend(json);
    seal_with_nonce(key, context, generation, *b"ABCDEFGHIJKLMNOPQRSTUVWX", record)
}

#[test]
fn the_vectors_of_the_format() {
    let document = include_str!("../../docs/format.md");
    for (context, generation, json) in [
        (Context::file("contoso-cli", "default"), 1, JSON),
        (Context::file("contoso-cli", "default"), u64::MAX, b"{}".as_slice()),
        (Context::partition("shop", "sessions", "alice"), 7, JSON),
    ] {
        let record = vector(&key(1), &context, generation, json);
        let shown: Vec<String> = hex(&record)
            .as_bytes()
            .chunks(64)
            .map(|line| String::from_utf8(line.to_vec()).unwrap())
            .collect();
        assert!(
            document.contains(&shown.join("\n")),
            "the document lacks this vector:\n{}",
            shown.join("\n")
        );
        assert_eq!(open(&key(1), &context, record).unwrap().expose().trim_ascii(), json);
    }
}

#[test]
fn the_length_says_little() {
    let context = Context::file("a", "b");
    for length in 0..600 {
        let json = vec![b' '; length];
        let record = seal(&key(1), &context, 1, &json).unwrap();
        assert_eq!((record.len() - HEADER_LEN - TAG_LEN) % PADDING, 0);
        assert_eq!(record.len(), sealed_len(length));
        assert!(record.len() < HEADER_LEN + TAG_LEN + PADDING + length);
    }
}

#[test]
fn no_altered_bit_truncation_or_extension_is_accepted() {
    let context = Context::file("app", "cache");
    let record = seal(&key(1), &context, 3, &[b'x'; 1000]).unwrap();
    let opens = |record: &[u8]| open(&key(1), &context, record.to_vec()).is_ok();
    assert!(opens(&record));
    for bit in 0..record.len() * 8 {
        let mut altered = record.clone();
        altered[bit / 8] ^= 1 << (bit % 8);
        assert!(!opens(&altered), "bit {bit}");
    }
    for length in 0..record.len() {
        assert!(!opens(&record[..length]), "cut to {length}");
    }
    for byte in 0..=255 {
        let mut extended = record.clone();
        extended.push(byte);
        assert!(!opens(&extended), "extended by {byte}");
    }
}

#[test]
fn every_refusal_is_told_apart() {
    let context = Context::file("app", "cache");
    let record = seal(&key(1), &context, 3, JSON).unwrap();
    let with = |at: usize, byte: u8| {
        let mut altered = record.clone();
        altered[at] = byte;
        open(&key(1), &context, altered).unwrap_err()
    };
    assert!(matches!(with(0, b'{'), SealError::NotAnEnvelope));
    assert!(matches!(with(3, 2), SealError::Unsupported { field: "version", found: 2 }));
    assert!(matches!(with(4, 0), SealError::Unsupported { field: "algorithm", found: 0 }));
    assert!(matches!(with(5, 3), SealError::Unsupported { field: "kind", found: 3 }));
    assert!(matches!(with(6, 1), SealError::Unsupported { field: "reserved byte", found: 1 }));
    assert!(matches!(with(7, 9), SealError::Unsupported { field: "reserved byte", found: 9 }));
    assert!(matches!(with(5, 2), SealError::WrongContextKind { found: Kind::Partition, .. }));
    assert!(matches!(with(8, 9), SealError::UnknownKeyId { .. }));
    assert!(matches!(with(24, 9), SealError::Tampered), "the generation is authenticated");
    assert!(matches!(with(32, 9), SealError::WrongKey { .. }), "the commitment covers the nonce");
    assert!(matches!(with(56, record[56] ^ 1), SealError::WrongKey { .. }));
    assert!(matches!(with(88, record[88] ^ 1), SealError::Tampered));
    let last = record.len() - 1;
    assert!(matches!(with(last, record[last] ^ 1), SealError::Tampered));
    let cut = |length: usize| open(&key(1), &context, record[..length].to_vec()).unwrap_err();
    for length in [0, 1, 3, 4, 5, 8, 87, 88, 103] {
        assert!(matches!(cut(length), SealError::Truncated { length: found } if found == length));
    }
    let other = SealingKey::from_bytes(key(1).id(), &[2; 32]);
    assert!(matches!(open(&other, &context, record.clone()), Err(SealError::WrongKey { .. })));
    assert!(matches!(open(&key(2), &context, record), Err(SealError::UnknownKeyId { .. })));
}

#[test]
fn plaintext_is_refused() {
    for plaintext in [&b"{}"[..], b"{\"AccessToken\":{}}", b" {}", b"[]", b"\xef\xbb\xbf{}"] {
        let error = open(&key(1), &Context::file("a", "b"), plaintext.to_vec()).unwrap_err();
        assert!(matches!(error, SealError::NotAnEnvelope), "{error:?}");
    }
}

#[test]
fn nothing_opens_in_another_context() {
    let contexts: Vec<Context> =
        [("a", "b", "c"), ("ab", "", "c"), ("", "ab", "c"), ("a", "bc", ""), ("a", "b", "")]
            .iter()
            .flat_map(|(a, c, p)| [Context::partition(*a, *c, *p), Context::file(*a, *c)])
            .collect();
    for sealed_in in &contexts {
        let record = seal(&key(1), sealed_in, 1, JSON).unwrap();
        for opened_in in &contexts {
            let opened = open(&key(1), opened_in, record.clone());
            assert_eq!(opened.is_ok(), sealed_in == opened_in, "{sealed_in:?} {opened_in:?}");
        }
    }
}

#[test]
fn every_seal_has_a_nonce_of_its_own() {
    let nonces: std::collections::HashSet<[u8; 24]> = (0..1_000_000)
        .map(|_| seal(&key(1), &Context::file("a", "b"), 1, b"{}").unwrap()[32..56].try_into().unwrap())
        .collect();
    assert_eq!(nonces.len(), 1_000_000);
}

#[test]
fn a_key_id_is_32_hexadecimal_digits() {
    let id = KeyId::from_bytes(*b"0123456789abcdef");
    assert_eq!(id.to_string(), "30313233343536373839616263646566");
    #[cfg(feature = "file")]
    {
        assert_eq!(KeyId::from_hex(&id.to_string()), Some(id));
        for wrong in [
            "",
            "30",
            "3031323334353637383961626364656g",
            "+0313233343536373839616263646566",
            "ééééééééééééééééé",
        ] {
            assert_eq!(KeyId::from_hex(wrong), None);
        }
    }
}

#[test]
fn debug_of_a_key_shows_its_id_only() {
    let key = SealingKey::from_bytes(KeyId::from_bytes([7; 16]), &[0xAB; 32]);
    let shown = format!("{key:?}");
    assert!(shown.contains("KeyId") && !shown.contains("171") && !shown.to_lowercase().contains("abab"));
}

#[test]
fn a_record_does_not_move_once_there_is_plaintext_in_it() {
    let context = Context::file("a", "b");
    for length in [0, 1, 255, 256, 257, 5_000] {
        let mut record = SecretBytes::with_capacity(sealed_len(length));
        record.extend(&[0; HEADER_LEN]);
        record.extend(&vec![b' '; length]);
        let place = record.expose().as_ptr();
        let sealed = seal_in_place(&key(1), &context, 1, record).unwrap();
        assert_eq!((sealed.as_ptr(), sealed.capacity()), (place, sealed_len(length)), "{length}");
        // Without room it moves once, and is as long as it must be.
        let mut tight = SecretBytes::with_capacity(HEADER_LEN + length);
        tight.extend(&[0; HEADER_LEN]);
        tight.extend(&vec![b' '; length]);
        let sealed = seal_in_place(&key(1), &context, 1, tight).unwrap();
        assert_eq!(sealed.capacity(), sealed_len(length), "{length}");
    }
}

#[test]
fn ids_and_kinds_are_shown_and_given_out_as_they_are() {
    let id = KeyId::from_bytes([9; 16]);
    assert_eq!(id.as_bytes(), &[9; 16]);
    assert_eq!((Kind::File.to_string(), Kind::Partition.to_string()), ("file".into(), "partition".into()));
    #[cfg(feature = "file")]
    {
        let record = seal(&key(9), &Context::file("a", "b"), 1, JSON).unwrap();
        assert_eq!(Header::read_key_id(record.first_chunk().unwrap()), Some(id));
        assert_eq!(Header::read_key_id(&[0; HEADER_LEN]), None);
        let made = SealingKey::from_parts(id, |bytes| {
            bytes.fill(5);
            Ok::<_, ()>(())
        })
        .unwrap();
        assert_eq!((made.id(), made.bytes()), (id, &[5; 32]));
        assert!(SealingKey::from_parts(id, |_| Err(())).is_err());
    }
}
