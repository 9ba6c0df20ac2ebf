//! What is written beside a lock file: who holds it, and what the last call said. Best effort: no
//! promise rests on it, and what cannot be read counts as not there.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use super::back_off::{BackOff, Refusal, Verdict};
use super::failure::{Rejection, code};
use crate::private_file;

/// The first line. Other versions of the crate read what they understand.
const FIRST_LINE: &str = "tokenseal refresh 1";

/// More than a note is ever long.
const LONGEST: u64 = 16 * 1024;

/// How many refusals are remembered: the newest.
const MOST_REFUSALS: usize = 8;

/// How much of what was granted is remembered, in bytes.
const MOST_GRANTED: usize = 512;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Note {
    /// The process that holds the lock.
    pub(super) holder: Option<u32>,
    pub(super) back_off: Option<BackOff>,
    pub(super) refusals: Vec<Refusal>,
}

impl Note {
    /// Whether there is nothing that others should know when the lock is free.
    pub(super) fn is_empty(&self) -> bool {
        self.back_off.is_none() && self.refusals.is_empty()
    }

    /// Remembers a refusal instead of what was known of the same request.
    pub(super) fn refuse(&mut self, refusal: Refusal) {
        self.forget(&refusal.request);
        self.refusals.push(refusal);
        let oldest = self.refusals.len().saturating_sub(MOST_REFUSALS);
        self.refusals.drain(..oldest);
    }

    /// Forgets what counts no more.
    pub(super) fn forget_what_is_over(&mut self, now: u64) {
        self.back_off = self.back_off.filter(|back_off| back_off.is_in_a_row(now));
        self.refusals.retain(|refusal| refusal.is_recent(now));
    }

    /// Whether nothing in it counts any more.
    pub(super) fn is_over(&self, now: u64) -> bool {
        let mut rest = self.clone();
        rest.forget_what_is_over(now);
        rest.is_empty()
    }

    /// Forgets what is known of a request.
    pub(super) fn forget(&mut self, request: &str) {
        self.refusals.retain(|known| known.request != request);
    }

    pub(super) fn read(path: &Path) -> Self {
        let Ok(Some(file)) = private_file::open(path) else { return Self::default() };
        let mut text = String::new();
        file.take(LONGEST).read_to_string(&mut text).map_or_else(|_| Self::default(), |_| Self::parse(&text))
    }

    /// Replaces the file, which the lock must be held for.
    pub(super) fn write(&self, path: &Path) -> std::io::Result<()> {
        let temporary = temporary(path);
        // Of a process that was killed just here.
        let _ = private_file::remove(&temporary);
        let mut file = private_file::create_new(&temporary).map_err(std::io::Error::other)?;
        let written =
            file.write_all(self.to_text().as_bytes()).and_then(|()| private_file::rename(&temporary, path));
        if written.is_err() {
            let _ = private_file::remove(&temporary);
        }
        written
    }

    fn to_text(&self) -> String {
        let mut text = format!("{FIRST_LINE}\n");
        let mut line =
            |line: std::fmt::Arguments<'_>| writeln!(text, "{line}").expect("a String takes everything");
        if let Some(holder) = self.holder {
            line(format_args!("holder {holder}"));
        }
        if let Some(BackOff { failed_at, until, failures, renewed_at }) = self.back_off {
            line(format_args!("failed {failed_at} {until} {failures} {renewed_at}"));
        }
        for Refusal { at, request, renewed_at, verdict } in &self.refusals {
            let known = format!("{at} {request} {renewed_at}");
            match verdict {
                Verdict::Rejected(Rejection { error, sub_error }) => {
                    let sub_error = sub_error.as_deref().unwrap_or_default();
                    line(format_args!("rejected {known} {error} {sub_error}"));
                }
                Verdict::Refused(error) => line(format_args!("refused {known} {error}")),
                Verdict::NotGranted(granted) => {
                    // Scopes are printable ASCII (RFC 6749 section 3.3); this is one line of them.
                    let scopes = granted.chars().map(|c| if c.is_ascii_graphic() { c } else { ' ' });
                    let granted: String = scopes.take(MOST_GRANTED).collect();
                    line(format_args!("granted {known} {granted}"));
                }
            }
        }
        text
    }

    fn parse(text: &str) -> Self {
        let mut note = Self::default();
        let mut lines = text.lines();
        if lines.next() != Some(FIRST_LINE) {
            return note;
        }
        for line in lines {
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            match &words[..] {
                ["holder", pid] => note.holder = pid.parse().ok(),
                ["failed", failed_at, until, failures, renewed_at] => {
                    let parsed = (failed_at.parse(), until.parse(), failures.parse(), renewed_at.parse());
                    if let (Ok(failed_at), Ok(until), Ok(failures), Ok(renewed_at)) = parsed {
                        note.back_off = Some(BackOff { failed_at, until, failures, renewed_at });
                    }
                }
                [kind, at, request, renewed_at, said @ ..] => {
                    let (Ok(at), Ok(renewed_at)) = (at.parse(), renewed_at.parse()) else { continue };
                    let verdict = match (*kind, said) {
                        ("rejected", [error]) => {
                            Verdict::Rejected(Rejection { error: code(error), sub_error: None })
                        }
                        ("rejected", [error, sub_error]) => {
                            let sub_error = Some(code(sub_error));
                            Verdict::Rejected(Rejection { error: code(error), sub_error })
                        }
                        ("refused", [error]) => Verdict::Refused(code(error)),
                        ("granted", scopes) => Verdict::NotGranted(scopes.join(" ")),
                        _ => continue,
                    };
                    note.refuse(Refusal { at, request: (*request).to_owned(), renewed_at, verdict });
                }
                _ => {}
            }
        }
        note
    }
}

/// Removes a note, which the lock must be held for.
pub(super) fn remove(path: &Path) {
    let _ = private_file::remove(path);
}

/// One name for each note: what a killed process leaves, the next one removes.
fn temporary(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.tmp"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn refusal(request: &str, verdict: Verdict) -> Refusal {
        Refusal { at: 5, request: request.into(), renewed_at: -6, verdict }
    }

    fn full() -> Note {
        let rejected = |sub_error| Verdict::Rejected(Rejection { error: "invalid_grant".into(), sub_error });
        Note {
            holder: Some(4711),
            back_off: Some(BackOff { failed_at: 1, until: 2, failures: 3, renewed_at: 4 }),
            refusals: vec![
                refusal("a", rejected(Some("consent_required".into()))),
                refusal("b", rejected(None)),
                refusal("c", Verdict::Refused("invalid_scope".into())),
                refusal("d", Verdict::NotGranted("less and less".into())),
                refusal("e", Verdict::NotGranted(String::new())),
            ],
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x@y.refresh.note");
        assert_eq!(Note::read(&path), Note::default());
        let note = full();
        note.write(&path).unwrap();
        assert_eq!(Note::read(&path), note);
        // What a killed process left does not hinder the next one, and no other litter is made.
        fs::write(temporary(&path), "half").unwrap();
        note.write(&path).unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        remove(&path);
        assert_eq!(Note::read(&path), Note::default());
    }

    #[test]
    fn a_note_stays_short_and_keeps_the_newest() {
        let mut note = Note::default();
        for number in 0..100 {
            note.refuse(refusal(&number.to_string(), Verdict::NotGranted("é ".repeat(10_000))));
        }
        note.refuse(refusal("99", Verdict::Refused("invalid_scope".into())));
        let text = note.to_text();
        assert!(text.len() < 16 * 1024 && note.refusals.len() == MOST_REFUSALS, "{}", text.len());
        let read = Note::parse(&text);
        assert_eq!(read.refusals.last(), note.refusals.last());
        assert_eq!(read.refusals.first().unwrap().request, "92");
        note.forget("99");
        assert_eq!(note.refusals.len(), MOST_REFUSALS - 1);
    }

    #[test]
    fn what_is_no_note_counts_as_none() {
        for text in
            ["", "tokenseal refresh 2\nholder 1", "\u{0}\u{1}", "holder 1", "tokenseal refresh 1\nholder x"]
        {
            assert_eq!(Note::parse(text), Note::default(), "{text}");
        }
        let newer = format!(
            "{}what a later version knows 1 2 3\nfailed 1\nfailed a b c d\nrefused 1 x\nrejected x y z e\n",
            full().to_text()
        );
        assert_eq!(Note::parse(&newer), full());
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("note");
        fs::write(&path, vec![0xff; 100_000]).unwrap();
        assert_eq!(Note::read(&path), Note::default());
    }
}
