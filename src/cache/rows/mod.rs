//! The unified cache as it is kept: sections of rows in their written order, with an index.

mod slots;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::sync::OnceLock;

use super::fields::{Field, Fields, Shape};
use super::index::Index;
use super::json::{Malformed, Scanner, Span};
use super::json_text;
use super::text::{Place, Texts};
use crate::secret::SecretBytes;

/// The five sections that the schema knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    AccessToken,
    RefreshToken,
    IdToken,
    Account,
    AppMetadata,
}

impl Kind {
    pub(crate) const ALL: [Self; 5] =
        [Self::AccessToken, Self::RefreshToken, Self::IdToken, Self::Account, Self::AppMetadata];

    /// The section's name, which is the rows' credential type as well.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::AccessToken => "AccessToken",
            Self::RefreshToken => "RefreshToken",
            Self::IdToken => "IdToken",
            Self::Account => "Account",
            Self::AppMetadata => "AppMetadata",
        }
    }

    fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// The number of a row, for as long as the row stands.
pub(crate) type RowId = u32;

#[derive(Debug, Clone, Copy)]
struct Row {
    /// The text from the key's opening quote to the value's end.
    place: Place,
    /// Where in the segment the key ends and the value starts.
    key_end: u32,
    value_start: u32,
    /// Where the raw secret stands in the value.
    secret: (u32, u32),
    has_escapes: bool,
    live: bool,
}

impl Row {
    #[allow(clippy::cast_possible_truncation)] // All text is shorter than 4 GiB.
    fn new(segment: u32, key: Span, value: Span, shape: Shape) -> Self {
        Self {
            place: Place { segment, start: key.start as u32, end: value.end as u32 },
            key_end: key.end as u32,
            value_start: value.start as u32,
            secret: (shape.secret.start as u32, shape.secret.end as u32),
            has_escapes: shape.has_escapes,
            live: true,
        }
    }

    fn shape(&self) -> Shape {
        let secret = Span { start: self.secret.0 as usize, end: self.secret.1 as usize };
        Shape { secret, has_escapes: self.has_escapes }
    }
}

/// One member of the root object.
#[derive(Debug, Clone)]
struct Section {
    /// The member's name as raw JSON.
    raw_name: String,
    /// Its rows, if it is one of the five and an object; otherwise the one row is all of it.
    kind: Option<Kind>,
    rows: Vec<RowId>,
}

/// More rows than this of one user are looked up by their realm.
const MANY: usize = 32;

/// What the index is asked for.
#[derive(Debug, Clone, Copy, Hash)]
pub(crate) enum Lookup<'a> {
    /// The rows of this `home_account_id`.
    Owner(Kind, &'a str),
    /// Of these, the credentials of a client in a realm.
    OwnerInRealm(Kind, &'a str, &'a str, &'a str),
    /// The access tokens of an application itself.
    App(&'a str),
    /// The same, in one realm and with this extended cache key.
    AppInRealm(&'a str, &'a str, Option<&'a str>),
    /// The metadata of a client id.
    Client(&'a str),
    /// The accounts of a user name in lower case.
    Username(&'a str),
}

/// Why a text is not a unified cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unreadable {
    NotUtf8,
    Malformed(Malformed),
    NotAnObject,
    TooLarge,
}

impl From<Malformed> for Unreadable {
    fn from(malformed: Malformed) -> Self {
        Self::Malformed(malformed)
    }
}

/// The text of a row to be kept: its raw key, a colon, its raw value.
#[derive(Debug)]
pub(crate) struct RowText {
    pub(crate) text: SecretBytes,
    pub(crate) key_len: usize,
}

impl RowText {
    fn str(&self) -> &str {
        std::str::from_utf8(self.text.expose()).expect("rows are made of text")
    }

    pub(crate) fn value(&self) -> &str {
        &self.str()[self.key_len + 1..]
    }
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Rows {
    texts: Texts,
    rows: Vec<Row>,
    sections: Vec<Section>,
    index: Index,
    /// The rows by map key and by identity: only adding asks for that, so it is made by the first
    /// one that does.
    slots: Option<Index>,
    /// The credentials of users by client and realm: made by the first lookup that meets a user with many.
    by_realm: OnceLock<Index>,
    /// Whether a row was ever kept that names its issuer.
    name_issuers: bool,
    dead_rows: usize,
}

impl Rows {
    /// Reads the JSON text of a unified cache and keeps it. Empty text is an empty cache.
    pub(crate) fn parse(json: SecretBytes) -> Result<Self, Unreadable> {
        let json = json_text::without_byte_order_mark(json);
        if u32::try_from(json.len()).is_err() {
            return Err(Unreadable::TooLarge);
        }
        let text = String::from_utf8(json.into_vec()).map_err(|error| {
            drop(SecretBytes::from(error.into_bytes()));
            Unreadable::NotUtf8
        })?;
        let mut rows = Self::default();
        // The buffer moves into the rows first, so that it is wiped on the error paths too.
        let segment = rows.texts.push(text);
        let texts = rows.texts.clone();
        let text = texts.whole(segment);
        let mut scanner = Scanner::new(text);
        match scanner.peek() {
            None => return Ok(Self::default()),
            Some(b'{') => {}
            // Malformed text is told apart from well-formed text of the wrong shape.
            Some(_) => {
                scanner.value()?;
                scanner.finish()?;
                return Err(Unreadable::NotAnObject);
            }
        }
        // A row is rarely shorter than this; a wrong guess costs one more growth of the tables.
        let expected = text.len() / 1024;
        rows.rows.reserve(expected);
        rows.index.reserve(expected * 2);
        scanner.object(|scanner, name| rows.parse_section(scanner, text, segment, name))?;
        scanner.finish()?;
        drop(texts);
        Ok(rows)
    }

    fn parse_section(
        &mut self,
        scanner: &mut Scanner<'_>,
        text: &str,
        segment: u32,
        name: Span,
    ) -> Result<(), Malformed> {
        let raw_name = &text[name.start..name.end];
        let kind = json_text::decode(raw_name).and_then(|name| Kind::named(&name));
        let number = self.sections.len();
        if let Some(kind) = kind.filter(|_| scanner.peek() == Some(b'{')) {
            self.sections.push(Section { raw_name: raw_name.into(), kind: Some(kind), rows: Vec::new() });
            scanner.object(|scanner, key| {
                let mut fields = Fields::EMPTY;
                scanner.take_has_escapes();
                let value = if scanner.peek() == Some(b'{') {
                    let start = scanner.offset();
                    scanner.object(|scanner, field| {
                        let value = scanner.value()?;
                        fields.put(&text[field.start..field.end], &text[value.start..value.end]);
                        Ok(())
                    })?;
                    Span { start, end: scanner.offset() }
                } else {
                    scanner.value()?
                };
                let secret = fields.secret_place(&text[value.start..value.end]);
                let shape = Shape { secret, has_escapes: scanner.take_has_escapes() };
                let row = self.push_row(number, Row::new(segment, key, value, shape));
                self.name_issuers |= fields.text(Field::Issuer).is_some();
                for hash in self.hashes(kind, &fields).into_iter().flatten() {
                    self.index.insert(hash, row);
                }
                Ok(())
            })
        } else {
            let value = scanner.value()?;
            self.sections.push(Section { raw_name: raw_name.into(), kind: None, rows: Vec::new() });
            self.push_row(number, Row::new(segment, name, value, Shape::UNKNOWN));
            Ok(())
        }
    }

    fn push_row(&mut self, section: usize, row: Row) -> RowId {
        let number = RowId::try_from(self.rows.len()).expect("fewer rows than bytes of text");
        self.texts.hold(row.place);
        self.rows.push(row);
        self.sections[section].rows.push(number);
        number
    }

    /// The hashes under which a row is found.
    fn hashes(&self, kind: Kind, fields: &Fields<'_>) -> [Option<u64>; 3] {
        let hash = |lookup: Lookup<'_>| Some(self.index.hash(&lookup));
        let text = |field| fields.text(field).unwrap_or_default();
        let owner = text(Field::HomeAccountId);
        let mut hashes = [None; 3];
        if !owner.is_empty() {
            hashes[0] = hash(Lookup::Owner(kind, &owner));
        } else if kind == Kind::AccessToken {
            let client = text(Field::ClientId);
            hashes[0] = hash(Lookup::App(&client));
            let ext_cache_key = fields.ext_cache_key();
            hashes[1] = hash(Lookup::AppInRealm(&client, &text(Field::Realm), ext_cache_key.as_deref()));
        }
        hashes[2] = match kind {
            Kind::AppMetadata => hash(Lookup::Client(&text(Field::ClientId))),
            Kind::Account => Some(self.username_hash(fields)),
            _ => None,
        };
        hashes
    }

    fn username_hash(&self, fields: &Fields<'_>) -> u64 {
        let username = fields.text(Field::Username).unwrap_or_default();
        self.index.hash(&Lookup::Username(&username.to_lowercase()))
    }

    /// The rows that the index gives for `lookup`. Their fields must still be compared.
    pub(crate) fn candidates(&self, lookup: Lookup<'_>) -> impl Iterator<Item = RowId> {
        let (index, start) = self.start_of(lookup);
        index.rows_from(start).filter(|&row| self.rows[row as usize].live)
    }

    /// The index to look into, and where in it.
    fn start_of(&self, lookup: Lookup<'_>) -> (&Index, u32) {
        let Lookup::OwnerInRealm(kind, owner, ..) = lookup else {
            return (&self.index, self.index.start(self.index.hash(&lookup)));
        };
        let of_owner = self.index.start(self.index.hash(&Lookup::Owner(kind, owner)));
        if self.index.rows_from(of_owner).nth(MANY).is_none() {
            return (&self.index, of_owner);
        }
        let index = self.by_realm.get_or_init(|| self.index_by_realm());
        (index, index.start(index.hash(&lookup)))
    }

    fn index_by_realm(&self) -> Index {
        let mut index = Index::default();
        for kind in [Kind::AccessToken, Kind::IdToken] {
            self.all(kind).for_each(|row| self.enter_realm(&mut index, kind, row));
        }
        index
    }

    fn enter_realm(&self, index: &mut Index, kind: Kind, row: RowId) {
        if !matches!(kind, Kind::AccessToken | Kind::IdToken) {
            return;
        }
        let fields = self.fields(row);
        let text = |field| fields.text(field).unwrap_or_default();
        let (owner, client, realm) = (text(Field::HomeAccountId), text(Field::ClientId), text(Field::Realm));
        if !owner.is_empty() {
            index.insert(index.hash(&Lookup::OwnerInRealm(kind, &owner, &client, &realm)), row);
        }
    }

    /// All rows of a kind, in their order.
    pub(crate) fn all(&self, kind: Kind) -> impl Iterator<Item = RowId> {
        let sections = self.sections.iter().filter(move |section| section.kind == Some(kind));
        sections.flat_map(|s| s.rows.iter().copied()).filter(|&row| self.rows[row as usize].live)
    }

    /// Whether any row may name its issuer. Where none does, no account has several.
    pub(crate) fn name_issuers(&self) -> bool {
        self.name_issuers
    }

    /// Whether there is neither a row nor a member of any other kind.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.iter().all(|row| !row.live)
    }

    /// The raw JSON of a row's value.
    pub(crate) fn value(&self, row: RowId) -> &str {
        let row = self.rows[row as usize];
        self.texts.get(Place { start: row.value_start, ..row.place })
    }

    /// The fields of a row.
    pub(crate) fn fields(&self, row: RowId) -> Fields<'_> {
        Fields::read_known(self.value(row), self.rows[row as usize].shape())
    }

    /// The key under which a row stands, as raw JSON.
    pub(crate) fn raw_key(&self, row: RowId) -> &str {
        let row = self.rows[row as usize];
        self.texts.get(Place { end: row.key_end, ..row.place })
    }

    /// The map key under which a row stands.
    fn map_key(&self, row: RowId) -> Option<Cow<'_, str>> {
        json_text::decode(self.raw_key(row))
    }

    /// Whether the section of `kind` holds something that is no object, so that no row can be put
    /// into it without losing that.
    pub(crate) fn is_unusable(&self, kind: Kind) -> bool {
        self.sections.iter().any(|section| {
            section.kind.is_none()
                && json_text::decode(&section.raw_name).is_some_and(|name| name == kind.name())
                && section.rows.iter().any(|&row| self.rows[row as usize].live && self.value(row) != "null")
        })
    }

    /// Appends a row.
    pub(crate) fn insert(&mut self, kind: Kind, text: RowText) {
        let section = self.section_for(kind);
        let hashes = self.hashes(kind, &Fields::read(text.value()));
        let row = self.keep_text(text);
        let row = self.push_row(section, row);
        for hash in hashes.into_iter().flatten() {
            self.index.insert(hash, row);
        }
        if let Some(mut slots) = self.slots.take() {
            self.enter_slots(&mut slots, kind, row);
            self.slots = Some(slots);
        }
        if let Some(mut by_realm) = self.by_realm.take() {
            self.enter_realm(&mut by_realm, kind, row);
            self.by_realm = by_realm.into();
        }
    }

    /// Puts new text in the place of a row; what the row is looked up by must be the same, save for
    /// an account's user name.
    pub(crate) fn replace(&mut self, kind: Kind, row: RowId, text: RowText) {
        let username = |fields: &Fields<'_>| (kind == Kind::Account).then(|| self.username_hash(fields));
        let old_username = username(&self.fields(row));
        let new_username = username(&Fields::read(text.value()));
        let new = self.keep_text(text);
        self.texts.hold(new.place);
        let old = std::mem::replace(&mut self.rows[row as usize], new);
        self.texts.release(old.place);
        if let Some(hash) = new_username.filter(|_| new_username != old_username) {
            self.index.insert(hash, row);
        }
    }

    fn keep_text(&mut self, text: RowText) -> Row {
        assert!(u32::try_from(text.text.len()).is_ok(), "a row is shorter than 4 GiB");
        let key = Span { start: 0, end: text.key_len };
        let value = Span { start: text.key_len + 1, end: text.text.len() };
        let fields = Fields::read(text.value());
        self.name_issuers |= fields.text(Field::Issuer).is_some();
        let secret = fields.secret_place(text.value());
        let has_escapes = text.value().contains('\\');
        let text = String::from_utf8(text.text.into_vec()).expect("rows are made of text");
        Row::new(self.texts.push(text), key, value, Shape { secret, has_escapes })
    }

    fn section_for(&mut self, kind: Kind) -> usize {
        if let Some(number) = self.sections.iter().position(|section| section.kind == Some(kind)) {
            return number;
        }
        // A section that is `null` becomes an object where it stands.
        let null = self.sections.iter().position(|section| {
            section.kind.is_none() && json_text::decode(&section.raw_name).is_some_and(|n| n == kind.name())
        });
        if let Some(number) = null {
            for row in std::mem::take(&mut self.sections[number].rows) {
                self.remove(row);
            }
            self.sections[number].kind = Some(kind);
            return number;
        }
        let raw_name = format!("\"{}\"", kind.name());
        self.sections.push(Section { raw_name, kind: Some(kind), rows: Vec::new() });
        self.sections.len() - 1
    }

    /// Removes a row and wipes its text.
    pub(crate) fn remove(&mut self, row: RowId) {
        let row = &mut self.rows[row as usize];
        if row.live {
            row.live = false;
            self.dead_rows += 1;
            self.texts.release(row.place);
        }
    }

    /// Removes every member `name` of the root object, unless it is one of the five sections, and
    /// gives the raw value of the last.
    #[cfg(feature = "file")]
    pub(crate) fn take_member(&mut self, name: &str) -> Option<String> {
        let is_it = |section: &Section| {
            section.kind.is_none() && json_text::decode(&section.raw_name).is_some_and(|n| n == name)
        };
        let mut last = None;
        while let Some(number) = self.sections.iter().position(is_it) {
            for row in self.sections.remove(number).rows {
                last = Some(self.value(row).to_owned());
                self.remove(row);
            }
        }
        last
    }

    /// The number of bytes that [`Rows::write`] writes at the most.
    pub(crate) fn written_len(&self) -> usize {
        let names: usize = self.sections.iter().map(|section| section.raw_name.len() + 4).sum();
        self.texts.live_bytes() + self.rows.len() + names + 2
    }

    /// Writes the cache as compact JSON, each row as it stands. `extra` is one more member for the
    /// root object, with its key.
    pub(crate) fn write(&self, out: &mut SecretBytes, extra: Option<&str>) {
        out.extend(b"{");
        let mut first_section = true;
        for section in &self.sections {
            if !std::mem::take(&mut first_section) {
                out.extend(b",");
            }
            if section.kind.is_some() {
                out.extend(section.raw_name.as_bytes());
                out.extend(b":{");
            }
            let mut first_row = true;
            for &row in section.rows.iter().filter(|&&row| self.rows[row as usize].live) {
                if !std::mem::take(&mut first_row) {
                    out.extend(b",");
                }
                out.extend(self.texts.get(self.rows[row as usize].place).as_bytes());
            }
            if section.kind.is_some() {
                out.extend(b"}");
            }
        }
        if let Some(extra) = extra {
            if !first_section {
                out.extend(b",");
            }
            out.extend(extra.as_bytes());
        }
        out.extend(b"}");
    }

    /// A copy that shares the text. What it removes is wiped when [`Rows::end_fork`] says that the
    /// original is gone.
    #[cfg(feature = "file")]
    pub(crate) fn fork(&self) -> Self {
        let mut fork = self.clone();
        fork.texts.set_fork(true);
        fork
    }

    /// Says that the original is gone.
    #[cfg(feature = "file")]
    pub(crate) fn end_fork(&mut self) {
        self.texts.set_fork(false);
        self.tidy();
    }

    /// Wipes what was removed while another snapshot shared it, and gives memory back when more of
    /// it is spent on removed rows than on present ones.
    pub(crate) fn tidy(&mut self) {
        if self.texts.is_fork() {
            return;
        }
        self.texts.wipe_released();
        if self.dead_rows > 64 + self.rows.len() / 2 || self.texts.is_wasteful(self.rows.len()) {
            let mut json = SecretBytes::with_capacity(self.written_len());
            self.write(&mut json, None);
            *self = Self::parse(json).expect("what was written is a cache");
        }
    }
}
