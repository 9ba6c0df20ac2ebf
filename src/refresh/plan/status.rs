//! The status beside a lease, which processes share: its holder, and the recent failures. It is best effort:
//! no guarantee depends on it, and unreadable parts are ignored.

use std::fmt::Write as _;

use base64ct::{Base64UrlUnpadded, Encoding as _};

use super::back_off::BackOff;
use super::names::TokenMark;
use super::refusal::{Refusal, Verdict};
use crate::cache::code;
use crate::refresh::failure::Rejection;
use crate::secret::Secret;

/// The first line, with the version. Unknown lines are ignored.
const FIRST_LINE: &str = "tokenseal refresh 2";

/// The longest status that is read, in bytes.
pub(crate) const LONGEST: u64 = 1024 * 1024;

/// The number of refusals kept, newest first.
const MOST_REFUSALS: usize = 512;

/// The longest list of granted scopes that is kept, in bytes.
const MOST_GRANTED: usize = 512;

#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Status {
    /// The process that holds the lock.
    pub(crate) holder: Option<u32>,
    pub(crate) back_off: Option<BackOff>,
    pub(crate) refusals: Vec<Refusal>,
}

impl Status {
    /// Chooses between a status that could not be written and the written one: the former is newer, unless
    /// another process has recorded a failure since.
    pub(crate) fn newer_of(unwritten: Option<Self>, written: Self) -> Self {
        let newest = |status: &Self| {
            let refused_at = status.refusals.iter().map(|refusal| refusal.at).max();
            status.back_off.as_ref().map(|back_off| back_off.failed_at).max(refused_at)
        };
        unwritten.filter(|status| newest(status) >= newest(&written)).unwrap_or(written)
    }

    /// Whether nothing needs to be kept once the lease is released.
    pub(crate) fn is_empty(&self) -> bool {
        self.back_off.is_none() && self.refusals.is_empty()
    }

    /// Records a refusal, replacing those of the same request.
    pub(crate) fn refuse(&mut self, refusal: Refusal) {
        self.forget(&refusal.request);
        self.refusals.push(refusal);
        let oldest = self.refusals.len().saturating_sub(MOST_REFUSALS);
        self.refusals.drain(..oldest);
    }

    /// Removes what no longer counts.
    pub(crate) fn forget_what_is_over(&mut self, now: u64) {
        self.back_off.take_if(|back_off| !back_off.is_in_a_row(now));
        self.refusals.retain(|refusal| refusal.is_in_a_row(now));
    }

    /// Whether nothing in it counts any longer.
    pub(crate) fn is_over(&self, now: u64) -> bool {
        let mut rest = self.clone();
        rest.forget_what_is_over(now);
        rest.is_empty()
    }

    /// Carries the refusals of a refresh token over to the one that replaced it.
    pub(crate) fn carry(&mut self, from: &TokenMark, to: &TokenMark) {
        for refusal in self.refusals.iter_mut().filter(|refusal| refusal.mark == *from) {
            refusal.mark = to.clone();
        }
    }

    /// Removes the refusals of a request.
    pub(crate) fn forget(&mut self, request: &str) {
        self.refusals.retain(|known| known.request != request);
    }

    pub(crate) fn to_text(&self) -> String {
        let mut text = format!("{FIRST_LINE}\n");
        let mut line =
            |line: std::fmt::Arguments<'_>| writeln!(text, "{line}").expect("a String takes everything");
        if let Some(holder) = self.holder {
            line(format_args!("holder {holder}"));
        }
        if let Some(BackOff { failed_at, until, failures, mark }) = &self.back_off {
            line(format_args!("failed {failed_at} {until} {failures} {}", mark.as_str()));
        }
        let mut refusals: Vec<String> = Vec::new();
        let mut length = 0;
        for refusal in self.refusals.iter().rev() {
            refusals.push(refusal_line(refusal));
            length += refusals.last().map_or(0, String::len);
            if length as u64 > LONGEST / 2 {
                // There is no room for older ones.
                break;
            }
        }
        refusals.iter().rev().for_each(|refusal| line(format_args!("{refusal}")));
        text
    }

    pub(crate) fn parse(text: &str) -> Self {
        let mut status = Self::default();
        let mut lines = text.lines();
        if lines.next() != Some(FIRST_LINE) {
            return status;
        }
        for line in lines {
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            match &words[..] {
                ["holder", pid] => status.holder = pid.parse().ok(),
                ["failed", failed_at, until, failures, mark] => {
                    if let (Ok(failed_at), Ok(until), Ok(failures)) =
                        (failed_at.parse(), until.parse(), failures.parse())
                    {
                        let mark = TokenMark::parse(mark);
                        status.back_off = Some(BackOff { failed_at, until, failures, mark });
                    }
                }
                [kind, at, until, times, request, mark, said @ ..] => {
                    let (Ok(at), Ok(until), Ok(times)) = (at.parse(), until.parse(), times.parse()) else {
                        continue;
                    };
                    let Some(verdict) = verdict(kind, said) else { continue };
                    let (request, mark) = ((*request).to_owned(), TokenMark::parse(mark));
                    status.refuse(Refusal { at, until, times, request, mark, verdict });
                }
                _ => {}
            }
        }
        status
    }
}

/// Formats a refusal as one line.
fn refusal_line(refusal: &Refusal) -> String {
    let Refusal { at, until, times, request, mark, verdict } = refusal;
    let (kind, said) = match verdict {
        Verdict::Rejected(Rejection { error, sub_error, claims, .. }) => {
            let claims =
                claims.as_ref().map(|claims| Base64UrlUnpadded::encode_string(claims.expose().as_bytes()));
            let or_none = |text: Option<&str>| text.unwrap_or(NONE).to_owned();
            let said = format!("{error} {} {}", or_none(sub_error.as_deref()), or_none(claims.as_deref()));
            ("rejected", said)
        }
        Verdict::OtherUser => ("other-user", String::new()),
        Verdict::Refused(error) => ("refused", error.clone()),
        Verdict::NotGranted(granted) => {
            // Scopes are printable ASCII (RFC 6749 section 3.3), and fit on one line.
            let scopes = granted.chars().map(|c| if c.is_ascii_graphic() { c } else { ' ' });
            ("granted", scopes.take(MOST_GRANTED).collect())
        }
        Verdict::NoAccessToken => ("no-access-token", String::new()),
        Verdict::NoIdToken => ("no-id-token", String::new()),
        Verdict::NotDone => ("not-done", String::new()),
        Verdict::SameToken => ("same-token", String::new()),
        Verdict::Expired => ("expired", String::new()),
        Verdict::Unexplained(status) => ("unexplained", status.to_string()),
    };
    format!("{kind} {at} {until} {times} {request} {} {said}", mark.as_str()).trim_end().to_owned()
}

/// The placeholder for an absent value.
const NONE: &str = ":";

fn verdict(kind: &str, said: &[&str]) -> Option<Verdict> {
    Some(match (kind, said) {
        ("rejected", [error, sub_error, claims]) => {
            let claims = Some(*claims).filter(|claims| *claims != NONE).and_then(|claims| {
                String::from_utf8(Base64UrlUnpadded::decode_vec(claims).ok()?).ok().map(Secret::from)
            });
            let sub_error = Some(*sub_error).filter(|sub_error| *sub_error != NONE).map(code);
            Verdict::Rejected(Rejection { error: code(error), sub_error, ends_token: false, claims })
        }
        ("other-user", []) => Verdict::OtherUser,
        ("refused", [error]) => Verdict::Refused(code(error)),
        ("granted", scopes) => Verdict::NotGranted(scopes.join(" ")),
        ("no-access-token", []) => Verdict::NoAccessToken,
        ("no-id-token", []) => Verdict::NoIdToken,
        ("not-done", []) => Verdict::NotDone,
        ("same-token", []) => Verdict::SameToken,
        ("expired", []) => Verdict::Expired,
        ("unexplained", [status]) => Verdict::Unexplained(status.parse().ok()?),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(request: &str, verdict: Verdict) -> Refusal {
        let mark = TokenMark::parse("-6.0a1b2c3d");
        Refusal { at: 5, until: 7, times: 3, request: request.into(), mark, verdict }
    }

    fn full() -> Status {
        let rejected = |sub_error, claims: Option<&str>| {
            let claims = claims.map(Secret::from);
            Verdict::Rejected(Rejection {
                error: "invalid_grant".into(),
                sub_error,
                ends_token: false,
                claims,
            })
        };
        let mark = TokenMark::parse("4.0a1b2c3d");
        Status {
            holder: Some(4711),
            back_off: Some(BackOff { failed_at: 1, until: 2, failures: 3, mark }),
            refusals: vec![
                refusal("a", rejected(Some("consent_required".into()), Some(r#"{"a": "b c"}"#))),
                refusal("b", rejected(None, None)),
                refusal("c", Verdict::Refused("invalid_scope".into())),
                refusal("d", Verdict::NotGranted("less and less".into())),
                refusal("e", Verdict::NotGranted(String::new())),
                refusal("f", Verdict::OtherUser),
                refusal("g", Verdict::NoAccessToken),
                refusal("h", Verdict::SameToken),
                refusal("k", Verdict::NoIdToken),
                refusal("l", Verdict::NotDone),
                refusal("i", Verdict::Expired),
                refusal("j", Verdict::Unexplained(401)),
            ],
        }
    }

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(Status::parse(&full().to_text()), full());
    }

    #[test]
    fn a_note_keeps_the_newest_of_many_refusals_within_its_length() {
        let mut status = Status::default();
        for number in 0..2 * MOST_REFUSALS {
            status.refuse(refusal(&number.to_string(), Verdict::NotGranted("é ".repeat(10_000))));
        }
        let last = (2 * MOST_REFUSALS - 1).to_string();
        status.refuse(refusal(&last, Verdict::Refused("invalid_scope".into())));
        let text = status.to_text();
        assert!((text.len() as u64) < LONGEST && status.refusals.len() == MOST_REFUSALS, "{}", text.len());
        let read = Status::parse(&text);
        assert_eq!(read.refusals.len(), MOST_REFUSALS);
        assert_eq!(read.refusals.last(), status.refusals.last());
        assert_eq!(read.refusals.first().unwrap().request, MOST_REFUSALS.to_string());
        status.forget(&last);
        assert_eq!(status.refusals.len(), MOST_REFUSALS - 1);
        let claims = Some(Secret::from("x".repeat(4_000)));
        let rejection = Rejection { error: "e".into(), sub_error: None, ends_token: false, claims };
        for number in 0..MOST_REFUSALS {
            status.refuse(refusal(&number.to_string(), Verdict::Rejected(rejection.clone())));
        }
        let text = status.to_text();
        assert!((text.len() as u64) < LONGEST, "{}", text.len());
        assert_eq!(Status::parse(&text).refusals.last(), status.refusals.last());
    }

    #[test]
    fn what_is_known_of_a_token_goes_over_to_the_one_it_was_rotated_to() {
        let mut status = full();
        let (from, to) = (TokenMark::parse("-6.0a1b2c3d"), TokenMark::parse("9.0a1b2c3d"));
        status.carry(&TokenMark::parse("1.0a1b2c3d"), &to);
        assert_eq!(status, full());
        status.carry(&from, &to);
        assert!(status.refusals.iter().all(|refusal| refusal.mark == to));
        assert_eq!(status.back_off, full().back_off);
    }

    #[test]
    fn what_is_no_note_counts_as_none() {
        for text in
            ["", "tokenseal refresh 1\nholder 1", "\u{0}\u{1}", "holder 1", "tokenseal refresh 2\nholder x"]
        {
            assert_eq!(Status::parse(text), Status::default(), "{text}");
        }
        let newer = format!(
            "{}what a later version knows 1 2 3\nfailed 1\nfailed a b c d\nrefused 1 x\nrejected x y z e f g\nexpired 1 2 3 r m more\n",
            full().to_text()
        );
        assert_eq!(Status::parse(&newer), full());
    }
}
