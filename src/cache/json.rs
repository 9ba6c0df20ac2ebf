//! Finds where things stand in a JSON text, copying nothing.
//!
//! `serde_json` parses into values; the cache needs the place of each row in the one buffer that
//! holds it, so that every secret stands in memory once and unknown rows can be written back byte
//! for byte. `serde_json` would also copy escaped strings through a buffer that it does not wipe,
//! and quote them in its errors. This scanner accepts what `serde_json` accepts (a property test
//! holds it to that), and its only error is an offset.

use super::json_text;

/// How deep arrays and objects may nest, as in `serde_json`.
const MAX_DEPTH: usize = 127;

/// The text is not JSON. Carries the place, never the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed {
    pub(crate) offset: usize,
}

/// A range of bytes in the scanned text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) start: usize,
    pub(crate) end: usize,
}

/// Walks over one JSON text.
#[derive(Debug)]
pub(crate) struct Scanner<'a> {
    text: &'a [u8],
    at: usize,
    depth: usize,
    has_escapes: bool,
    /// A value that was scanned before and need not be looked at again.
    known: Span,
}

type Scanned<T> = Result<T, Malformed>;

impl<'a> Scanner<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        Self { text: text.as_bytes(), at: 0, depth: 0, has_escapes: false, known: Span::default() }
    }

    /// Whether a string with an escape was walked over since this was last asked.
    pub(crate) fn take_has_escapes(&mut self) -> bool {
        std::mem::take(&mut self.has_escapes)
    }

    /// The next byte that is no white space, which stays where it is.
    pub(crate) fn peek(&mut self) -> Option<u8> {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.text.get(self.at) {
            self.at += 1;
        }
        self.text.get(self.at).copied()
    }

    /// How many bytes were walked over.
    pub(crate) fn offset(&self) -> usize {
        self.at
    }

    /// Fails unless only white space is left.
    pub(crate) fn finish(&mut self) -> Scanned<()> {
        match self.peek() {
            None => Ok(()),
            Some(_) => self.malformed(),
        }
    }

    /// Walks an object, calling `member` with the span of each key (its quotes included) and the
    /// scanner in front of the value. `member` must consume exactly that value.
    pub(crate) fn object(&mut self, mut member: impl FnMut(&mut Self, Span) -> Scanned<()>) -> Scanned<()> {
        self.enter(b'{')?;
        if self.take(b'}') {
            return self.leave();
        }
        loop {
            self.peek();
            let key = self.string()?;
            if !self.take(b':') {
                return self.malformed();
            }
            member(self, key)?;
            if self.take(b'}') {
                return self.leave();
            }
            if !self.take(b',') {
                return self.malformed();
            }
        }
    }

    /// Skips one value of any kind and tells where it stood.
    pub(crate) fn value(&mut self) -> Scanned<Span> {
        let first = self.peek();
        let start = self.at;
        if start == self.known.start && self.known.end > start {
            self.at = self.known.end;
            return Ok(self.known);
        }
        match first {
            Some(b'"') => {
                self.string()?;
            }
            Some(b'{') => self.object(|scanner, _| scanner.value().map(drop))?,
            Some(b'[') => self.array()?,
            Some(b't') => self.literal(b"true")?,
            Some(b'f') => self.literal(b"false")?,
            Some(b'n') => self.literal(b"null")?,
            Some(b'-' | b'0'..=b'9') => self.number()?,
            _ => return self.malformed(),
        }
        Ok(Span { start, end: self.at })
    }

    fn array(&mut self) -> Scanned<()> {
        self.enter(b'[')?;
        if self.take(b']') {
            return self.leave();
        }
        loop {
            self.value()?;
            if self.take(b']') {
                return self.leave();
            }
            if !self.take(b',') {
                return self.malformed();
            }
        }
    }

    fn string(&mut self) -> Scanned<Span> {
        let start = self.at;
        if self.text.get(self.at) != Some(&b'"') {
            return self.malformed();
        }
        self.at += 1;
        loop {
            self.skip_plain();
            match self.text.get(self.at) {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(Span { start, end: self.at });
                }
                Some(b'\\') => {
                    self.has_escapes = true;
                    self.at += 1;
                    match self.text.get(self.at) {
                        Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.at += 1,
                        Some(b'u') => {
                            self.at += 1;
                            for _ in 0..4 {
                                if !self.text.get(self.at).is_some_and(u8::is_ascii_hexdigit) {
                                    return self.malformed();
                                }
                                self.at += 1;
                            }
                        }
                        _ => return self.malformed(),
                    }
                }
                _ => return self.malformed(),
            }
        }
    }

    /// Moves to the next quote, backslash or control character: eight bytes at a time, and where the
    /// text is long (a token) in blocks that the compiler turns into vector instructions.
    #[inline]
    fn skip_plain(&mut self) {
        const ONES: u64 = u64::MAX / 255;
        const HIGH: u64 = ONES * 0x80;
        const SHORT: usize = 64;
        /// Sets the high bit of the lowest byte of `x` that is below `bound`, and of none before.
        #[inline]
        fn below(x: u64, bound: u8) -> u64 {
            x.wrapping_sub(ONES * u64::from(bound)) & !x & HIGH
        }
        let is_stop = |byte: u8| byte < 0x20 || byte == b'"' || byte == b'\\';
        let start = self.at;
        loop {
            let rest = &self.text[self.at..];
            if self.at - start >= SHORT {
                let (blocks, _) = rest.as_chunks::<32>();
                let plain = |block: &&[u8; 32]| {
                    block.iter().fold(0, |stop, &byte| stop | u8::from(is_stop(byte))) == 0
                };
                self.at += blocks.iter().take_while(plain).count() * 32;
            }
            let rest = &self.text[self.at..];
            let (words, _) = rest.as_chunks::<8>();
            for (n, word) in words.iter().take(SHORT / 8).enumerate() {
                let word = u64::from_le_bytes(*word);
                let stops = below(word, 0x20)
                    | below(word ^ (ONES * u64::from(b'"')), 1)
                    | below(word ^ (ONES * u64::from(b'\\')), 1);
                if stops != 0 {
                    self.at += n * 8 + (stops.trailing_zeros() / 8) as usize;
                    return;
                }
            }
            if words.len() < SHORT / 8 {
                let tail = &rest[words.len() * 8..];
                self.at +=
                    words.len() * 8 + tail.iter().position(|&byte| is_stop(byte)).unwrap_or(tail.len());
                return;
            }
            self.at += SHORT;
        }
    }

    fn number(&mut self) -> Scanned<()> {
        let _negative = self.accept(b'-');
        if !self.accept(b'0') {
            self.digits()?;
        }
        if self.accept(b'.') {
            self.digits()?;
        }
        if self.accept(b'e') || self.accept(b'E') {
            let _sign = self.accept(b'+') || self.accept(b'-');
            self.digits()?;
        }
        Ok(())
    }

    fn digits(&mut self) -> Scanned<()> {
        let start = self.at;
        while self.text.get(self.at).is_some_and(u8::is_ascii_digit) {
            self.at += 1;
        }
        if self.at == start { self.malformed() } else { Ok(()) }
    }

    fn literal(&mut self, literal: &[u8]) -> Scanned<()> {
        if self.text[self.at..].starts_with(literal) {
            self.at += literal.len();
            Ok(())
        } else {
            self.malformed()
        }
    }

    fn accept(&mut self, byte: u8) -> bool {
        let found = self.text.get(self.at) == Some(&byte);
        self.at += usize::from(found);
        found
    }

    fn take(&mut self, byte: u8) -> bool {
        self.peek();
        self.accept(byte)
    }

    fn enter(&mut self, open: u8) -> Scanned<()> {
        if self.depth == MAX_DEPTH || !self.take(open) {
            return self.malformed();
        }
        self.depth += 1;
        Ok(())
    }

    #[allow(clippy::unnecessary_wraps)] // It ends a walk: every caller returns it.
    fn leave(&mut self) -> Scanned<()> {
        self.depth -= 1;
        Ok(())
    }

    fn malformed<T>(&self) -> Scanned<T> {
        Err(Malformed { offset: self.at })
    }
}

/// Calls `member` with the raw key and the raw value of each member of `object`, an object that
/// was scanned before. Anything else has no members.
pub(crate) fn members<'a>(object: &'a str, member: impl FnMut(&'a str, &'a str)) {
    members_around(object, Span::default(), member);
}

/// Like [`members`], where the place of one long value is known already.
pub(crate) fn members_around<'a>(object: &'a str, known: Span, mut member: impl FnMut(&'a str, &'a str)) {
    let mut scanner = Scanner { known, ..Scanner::new(object) };
    if scanner.peek() == Some(b'{') {
        let _scanned_before = scanner.object(|scanner, key| {
            let value = scanner.value()?;
            member(&object[key.start..key.end], &object[value.start..value.end]);
            Ok(())
        });
    }
}

/// The raw value of the last member of `object` with this name.
pub(crate) fn member<'a>(object: &'a str, name: &str) -> Option<&'a str> {
    let mut found = None;
    members(object, |key, value| {
        if json_text::decode(key).is_some_and(|key| key == name) {
            found = Some(value);
        }
    });
    found
}

/// The raw elements of `array`, an array that was scanned before. Anything else has none.
pub(crate) fn elements(array: &str) -> impl Iterator<Item = &str> {
    let mut scanner = Scanner::new(array);
    let mut is_open = scanner.take(b'[');
    std::iter::from_fn(move || {
        is_open = is_open && !scanner.take(b']');
        if !is_open {
            return None;
        }
        let value = scanner.value().ok()?;
        is_open = scanner.take(b',') || scanner.peek() == Some(b']');
        Some(&array[value.start..value.end])
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn accepts(text: &str) -> bool {
        let mut scanner = Scanner::new(text);
        scanner.value().and_then(|_| scanner.finish()).is_ok()
    }

    fn serde_accepts(text: &str) -> bool {
        serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok()
    }

    #[test]
    fn agrees_with_serde_json_on_the_awkward_cases() {
        for text in [
            "",
            " ",
            "{}",
            "[]",
            "[ ]",
            "{ }",
            "[1,]",
            "{\"a\":1,}",
            "{\"a\"}",
            "{a:1}",
            "nul",
            "null",
            "truefalse",
            "01",
            "-",
            "-0",
            "1.",
            ".1",
            "1e",
            "1e+",
            "1E-2",
            "-1.5e+9",
            "\"",
            "\"\\\"",
            "\"\\x\"",
            "\"\\u12\"",
            "\"\\u12g4\"",
            "\"\\ud800\"",
            "\"a\nb\"",
            "\"a\u{7f}\"",
            "[1 2]",
            "{\"a\":1 \"b\":2}",
            "1 1",
            "\u{feff}{}",
            "{\"a\":{\"b\":[null,true,-1e9]}}  ",
            "+1",
            "NaN",
            "\"\u{e9}\u{1f600}\"",
            "{\"a\":1}}",
            "[[]",
            "12345678901234567890123",
        ] {
            assert_eq!(accepts(text), serde_accepts(text), "{text:?}");
        }
    }

    #[test]
    fn a_control_character_is_found_at_every_place() {
        for length in (0..40).chain([63, 64, 65, 71, 95, 96, 97, 128, 129, 200]) {
            for at in 0..length {
                for byte in [0u8, 0x1f, b'"', b'\\'] {
                    let mut text = vec![b'x'; length];
                    text[at] = byte;
                    let text = format!("\"{}\"", String::from_utf8(text).unwrap());
                    assert_eq!(accepts(&text), serde_accepts(&text), "{text:?}");
                }
            }
        }
    }

    #[test]
    fn elements_of_an_array_come_in_their_order() {
        let all = |array| elements(array).collect::<Vec<_>>();
        assert_eq!(all(r#" [ "a" , {"b":[1,2]},3 ] "#), [r#""a""#, r#"{"b":[1,2]}"#, "3"]);
        for none in ["[]", "[ ]", "{}", "1", r#""a""#, ""] {
            assert!(all(none).is_empty(), "{none}");
        }
        assert_eq!(member(r#"{"a":1,"b":2,"\u0061":3}"#, "a"), Some("3"));
    }

    #[test]
    fn nesting_is_bounded() {
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        let serde_accepts = |text: &str| serde_json::from_str::<serde_json::Value>(text).is_ok();
        assert!(accepts(&nested(MAX_DEPTH)) && serde_accepts(&nested(MAX_DEPTH)));
        assert!(!accepts(&nested(MAX_DEPTH + 1)) && !serde_accepts(&nested(MAX_DEPTH + 1)));
        assert!(!accepts(&nested(100_000)));
        let beside_each_other = format!("[{}{{}}]", "[],{},".repeat(MAX_DEPTH));
        assert!(accepts(&beside_each_other) && serde_accepts(&beside_each_other));
    }

    proptest! {
        #[test]
        fn any_text_is_judged_as_serde_json_judges_it(text in r#"[\[\]{}:,"\\0-9eE.+\-truefalsn ud\u{0}-\u{20}é]{0,24}"#) {
            prop_assert_eq!(accepts(&text), serde_accepts(&text));
        }

    }
}
