//! What rows keep, write, and give back.

use super::*;
use crate::cache::row_text::{RowFields, Value};

fn row(key: &str, secret: &str) -> RowText {
    let mut fields = RowFields::default();
    fields.put("home_account_id", Value::Text("u"));
    fields.put("secret", Value::Text(secret));
    fields.write(&json_text::encoded(key))
}

fn written(rows: &Rows, extra: Option<&str>) -> String {
    let length = rows.written_len() + extra.map_or(0, |extra| extra.len() + 1);
    let mut out = SecretBytes::with_capacity(length);
    let place = out.expose().as_ptr();
    rows.write(&mut out, extra);
    // A buffer that grows leaves a copy behind until it is wiped, and secrets are in it.
    assert_eq!(out.expose().as_ptr(), place, "the buffer was too small");
    assert!(length < out.len() + 32, "{length} bytes for {}", out.len());
    String::from_utf8(out.expose().to_vec()).unwrap()
}

#[test]
fn as_much_room_is_made_as_is_needed() {
    let mut rows = Rows::default();
    assert_eq!(written(&rows, None), "{}");
    assert_eq!(written(&rows, Some("\"x\":1")), "{\"x\":1}");
    for number in 0..5 {
        rows.insert(Kind::AccessToken, row(&format!("k{number}"), "s\"ecret"));
        rows.insert(Kind::RefreshToken, row(&format!("k{number}"), "secret"));
        let text = written(&rows, None);
        assert_eq!(written(&Rows::parse(SecretBytes::from(text.clone())).unwrap(), None), text);
        let extended = written(&rows, Some("\"x\":1"));
        assert_eq!(extended, format!("{},\"x\":1}}", &text[..text.len() - 1]));
        assert!(serde_json::from_str::<serde_json::Value>(&extended).is_ok());
    }
    let unknown = r#"{"Other":[1,2],"AccessToken":{},"Last":null}"#;
    assert_eq!(written(&Rows::parse(SecretBytes::from(unknown.to_owned())).unwrap(), None), unknown);
}

#[test]
fn what_was_removed_takes_no_memory_for_long() {
    let mut rows = Rows::default();
    rows.insert(Kind::AccessToken, row("stays", "secret"));
    let (mut most_rows, mut tidied) = (0, 0);
    for number in 0..2_000 {
        rows.insert(Kind::AccessToken, row(&format!("goes-{number}"), &"x".repeat(100)));
        let last = rows.all(Kind::AccessToken).last().unwrap();
        rows.remove(last);
        let before = rows.rows.len();
        rows.tidy();
        tidied += usize::from(rows.rows.len() < before);
        most_rows = most_rows.max(rows.rows.len());
        assert_eq!(rows.all(Kind::AccessToken).count(), 1);
    }
    // Twice what is removed at the most, and not at each change either.
    assert!((100..200).contains(&most_rows), "{most_rows} rows");
    assert!((10..50).contains(&tidied), "tidied {tidied} times");
}

#[cfg(feature = "file")]
#[test]
fn what_a_fork_removed_is_wiped_when_the_original_is_gone() {
    let mut rows = Rows::default();
    rows.insert(Kind::AccessToken, row("a", "first-secret"));
    rows.insert(Kind::AccessToken, row("b", "other-secret"));
    let rows = Rows::parse(SecretBytes::from(written(&rows, None))).unwrap();
    let mut fork = rows.fork();
    let removed = fork.under_map_key(Kind::AccessToken, "a").unwrap();
    let segment = fork.rows[removed as usize].place.segment;
    fork.remove(removed);
    fork.tidy();
    assert!(rows.texts.whole(segment).contains("first-secret"), "the original still reads it");
    drop(rows);
    fork.tidy();
    assert!(fork.texts.whole(segment).contains("first-secret"), "nobody said that it is gone");
    fork.end_fork();
    assert!(!fork.texts.whole(segment).contains("first-secret"));
    assert!(fork.texts.whole(segment).contains("other-secret"));
}

#[test]
fn a_row_is_found_under_its_map_key_until_it_is_removed() {
    let mut rows = Rows::default();
    rows.insert(Kind::AccessToken, row("a", "1"));
    rows.insert(Kind::AccessToken, row("b", "2"));
    rows.insert(Kind::RefreshToken, row("a", "3"));
    let under = |rows: &mut Rows, kind, key| {
        let found = rows.under_map_key(kind, key)?;
        rows.fields(found).secret().map(|secret| secret.expose().to_owned())
    };
    assert_eq!(under(&mut rows, Kind::AccessToken, "a").as_deref(), Some("1"));
    assert_eq!(under(&mut rows, Kind::AccessToken, "b").as_deref(), Some("2"));
    assert_eq!(under(&mut rows, Kind::RefreshToken, "a").as_deref(), Some("3"));
    assert_eq!(under(&mut rows, Kind::RefreshToken, "b"), None);
    let first = rows.under_map_key(Kind::AccessToken, "a").unwrap();
    rows.remove(first);
    assert_eq!(under(&mut rows, Kind::AccessToken, "a"), None);
}

#[test]
fn a_section_that_is_null_is_used_and_an_unknown_one_is_not() {
    let json = r#"{"Unknown":{"a":1},"Null":null,"AccessToken":null}"#;
    let mut rows = Rows::parse(SecretBytes::from(json.to_owned())).unwrap();
    rows.insert(Kind::AccessToken, row("k", "s"));
    let expected =
        r#"{"Unknown":{"a":1},"Null":null,"AccessToken":{"k":{"home_account_id":"u","secret":"s"}}}"#;
    assert_eq!(written(&rows, None), expected);
}
