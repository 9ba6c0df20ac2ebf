//! Writes the text of a row: its map key and its fields.

use super::fields::Field;
use super::json;
use super::json_text;
use super::rows::RowText;
use crate::secret::SecretBytes;

/// A field's value.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Value<'a> {
    Text(&'a str),
    Null,
}

impl<'a> From<Option<&'a str>> for Value<'a> {
    fn from(text: Option<&'a str>) -> Self {
        text.map_or(Self::Null, Self::Text)
    }
}

/// The fields of a row to write, in order.
#[derive(Debug, Default)]
pub(crate) struct RowFields<'a>(Vec<(&'static str, Value<'a>)>);

impl<'a> RowFields<'a> {
    pub(crate) fn put(&mut self, name: &'static str, value: impl Into<Value<'a>>) {
        self.0.push((name, value.into()));
    }

    /// Writes a row with just these fields under the map key `raw_key`.
    pub(crate) fn write(&self, raw_key: &str) -> RowText {
        self.merge(raw_key, "{}")
    }

    /// Writes a row with these fields, and after the manner of an object update: a field that the
    /// row `old` has keeps its place, what these fields do not name stays as it was, and null or
    /// empty text never takes the place of a value.
    pub(crate) fn merge(&self, raw_key: &str, old: &str) -> RowText {
        let fields: usize = self.0.iter().map(|(name, value)| name.len() + value.len() + 6).sum();
        // Twice the room: escapes make text longer, and growing would only cost time.
        let mut out = SecretBytes::with_capacity(raw_key.len() + old.len() + fields * 2 + 3);
        out.extend(raw_key.as_bytes());
        out.extend(b":{");
        let mut first = true;
        let mut written = vec![false; self.0.len()];
        let mut separate = |out: &mut SecretBytes| {
            if !std::mem::take(&mut first) {
                out.extend(b",");
            }
        };
        json::members(old, |key, old_value| {
            separate(&mut out);
            out.extend(key.as_bytes());
            out.extend(b":");
            let new = json_text::decode(key).and_then(|key| self.0.iter().position(|(name, _)| *name == key));
            match new.map(|number| (number, self.0[number].1)) {
                Some((number, value)) => {
                    written[number] = true;
                    if value.is_empty() {
                        out.extend(old_value.as_bytes());
                    } else {
                        value.write(&mut out);
                    }
                }
                None => out.extend(old_value.as_bytes()),
            }
        });
        for ((name, value), _) in self.0.iter().zip(written).filter(|(_, written)| !written) {
            separate(&mut out);
            json_text::encode(name, &mut out);
            out.extend(b":");
            value.write(&mut out);
        }
        out.extend(b"}");
        RowText { text: out, key_len: raw_key.len() }
    }
}

impl Value<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Null => 4,
        }
    }

    fn is_empty(&self) -> bool {
        matches!(self, Self::Null | Self::Text(""))
    }

    fn write(&self, out: &mut SecretBytes) {
        match self {
            Self::Text(text) => json_text::encode(text, out),
            Self::Null => out.extend(b"null"),
        }
    }
}

/// Writes the row `old` again with new values for some of its text fields, whatever their spelling;
/// a field that is not there is added under `name`.
pub(crate) fn with_fields(raw_key: &str, old: &str, new: &[(Field, &'static str, &str)]) -> RowText {
    let length: usize = new.iter().map(|(_, name, text)| name.len() + text.len() * 2 + 6).sum();
    let mut out = SecretBytes::with_capacity(raw_key.len() + old.len() + length + 3);
    out.extend(raw_key.as_bytes());
    out.extend(b":{");
    let mut written = vec![false; new.len()];
    let mut first = true;
    json::members(old, |key, value| {
        if !std::mem::take(&mut first) {
            out.extend(b",");
        }
        out.extend(key.as_bytes());
        out.extend(b":");
        match new.iter().position(|(field, ..)| Field::of_raw(key) == Some(*field)) {
            Some(number) => {
                written[number] = true;
                json_text::encode(new[number].2, &mut out);
            }
            None => out.extend(value.as_bytes()),
        }
    });
    for ((_, name, text), _) in new.iter().zip(written).filter(|(_, written)| !written) {
        if !std::mem::take(&mut first) {
            out.extend(b",");
        }
        json_text::encode(name, &mut out);
        out.extend(b":");
        json_text::encode(text, &mut out);
    }
    out.extend(b"}");
    RowText { text: out, key_len: raw_key.len() }
}
