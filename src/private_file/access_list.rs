//! Who a Windows security descriptor lets in, read from its text form (SDDL).
//!
//! Source: "Security Descriptor Definition Language" and "ACE Strings" of the Windows documentation.

/// What may be done without being a danger: to look at a file from outside.
const HARMLESS_TO_A_FILE: u32 = SYNCHRONIZE | READ_CONTROL | 0x80 | 0x08;

/// What changes a directory or what is in it: to add files and directories, to write extended
/// attributes, to delete children, to write attributes; to delete it, to change its list or its owner.
const CHANGES_A_DIRECTORY: u32 =
    0x02 | 0x04 | 0x10 | 0x40 | 0x100 | 0x000D_0000 | GENERIC_WRITE | GENERIC_ALL;

const READ_CONTROL: u32 = 0x0002_0000;
const SYNCHRONIZE: u32 = 0x0010_0000;
const GENERIC_ALL: u32 = 0x1000_0000;
const GENERIC_WRITE: u32 = 0x4000_0000;

/// Who can do everything anyway: the system, administrators (of the machine, the domain, the forest),
/// the system's installer; and who stands for the owner.
const TRUSTED: [&str; 9] = [
    "SY",
    "S-1-5-18",
    "BA",
    "S-1-5-32-544",
    "DA",
    "EA",
    "OW",
    "S-1-3-4",
    "S-1-5-80-956008885-3418522649-1831038044-1853292631-2271478464",
];

/// A security descriptor in its text form.
#[derive(Debug)]
pub(super) struct AccessList<'a> {
    owner: Option<&'a str>,
    /// `None` where there is no list, which lets everybody in.
    entries: Option<Vec<Entry<'a>>>,
}

#[derive(Debug)]
struct Entry<'a> {
    trustee: &'a str,
    rights: u32,
}

impl<'a> AccessList<'a> {
    pub(super) fn parse(sddl: &'a str) -> Self {
        let mut list = Self { owner: None, entries: None };
        for (name, content) in sections(sddl) {
            match name {
                'O' => list.owner = Some(content),
                'D' if !content.starts_with("NO_ACCESS_CONTROL") => {
                    // A condition with text in it may have anything there, parentheses too.
                    let text = content.contains('"').then_some(Entry::UNKNOWN);
                    list.entries = Some(entries(content).filter_map(Entry::parse).chain(text).collect());
                }
                _ => {}
            }
        }
        list
    }

    /// The owner.
    #[cfg(windows)]
    pub(super) fn owner(&self) -> Option<&'a str> {
        self.owner
    }

    /// The owner, if that is neither `user` nor somebody who can do everything anyway.
    pub(super) fn foreign_owner(&self, user: &str) -> Option<&'a str> {
        let owner = self.owner.unwrap_or("nobody");
        (owner != user && !TRUSTED.contains(&owner)).then_some(owner)
    }

    /// Whether others than `user` can do more to a file than look at it from outside.
    pub(super) fn opens_a_file(&self, user: &str) -> bool {
        self.lets_in(user, !HARMLESS_TO_A_FILE)
    }

    /// Whether others than `user` can change a directory or what is in it.
    pub(super) fn opens_a_directory(&self, user: &str) -> bool {
        self.lets_in(user, CHANGES_A_DIRECTORY)
    }

    fn lets_in(&self, user: &str, rights: u32) -> bool {
        self.entries.as_ref().is_none_or(|entries| {
            entries.iter().any(|entry| {
                entry.rights & rights != 0 && entry.trustee != user && !TRUSTED.contains(&entry.trustee)
            })
        })
    }
}

impl<'a> Entry<'a> {
    /// Lets everybody do everything: what is not understood.
    const UNKNOWN: Self = Self { trustee: "", rights: u32::MAX };

    /// `None` for what grants nothing here: refusals, and what only new children inherit (those of this
    /// crate have lists of their own).
    fn parse(entry: &'a str) -> Option<Self> {
        let fields: Vec<&str> = entry.splitn(7, ';').collect();
        let [kind, flags, rights, _, _, trustee, ..] = fields[..] else { return Some(Self::UNKNOWN) };
        if ["D", "OD", "XD", "ZD"].contains(&kind) || pairs(flags).any(|flag| flag == "IO") {
            return None;
        }
        if !["A", "OA", "XA", "ZA"].contains(&kind) {
            return Some(Self::UNKNOWN);
        }
        Some(Self { trustee, rights: mask(rights) })
    }
}

/// The parts of a descriptor: a letter, a colon and what follows. Neither security identifiers nor
/// the flags of a list have a colon in them.
fn sections(sddl: &str) -> impl Iterator<Item = (char, &str)> {
    let mut depth = 0_usize;
    let mut starts = Vec::new();
    for (place, byte) in sddl.bytes().enumerate() {
        match byte {
            b'(' => depth += 1,
            b')' => depth = depth.saturating_sub(1),
            b':' if depth == 0 && place > 0 && sddl.is_char_boundary(place - 1) => starts.push(place - 1),
            _ => {}
        }
    }
    let ends = starts.clone().into_iter().skip(1).chain([sddl.len()]);
    starts.into_iter().zip(ends).filter_map(move |(start, end)| {
        let section = sddl.get(start..end)?;
        Some((section.chars().next()?, section.get(2..)?))
    })
}

/// What stands in the outer parentheses; a condition may have parentheses of its own.
fn entries(list: &str) -> impl Iterator<Item = &str> {
    let mut rest = list;
    std::iter::from_fn(move || {
        let start = rest.find('(')? + 1;
        let mut depth = 1_usize;
        let end = rest[start..].bytes().position(|byte| {
            match byte {
                b'(' => depth += 1,
                b')' => depth -= 1,
                _ => {}
            }
            depth == 0
        });
        let end = end.map_or(rest.len(), |end| start + end);
        let entry = &rest[start..end];
        rest = rest.get(end + 1..).unwrap_or_default();
        Some(entry)
    })
}

fn pairs(codes: &str) -> impl Iterator<Item = &str> {
    (0..codes.len()).step_by(2).map(|start| codes.get(start..start + 2).unwrap_or("?"))
}

/// Rights as a mask; what is not known counts as everything.
fn mask(rights: &str) -> u32 {
    if let Some(digits) = rights.strip_prefix("0x") {
        return u32::from_str_radix(digits, 16).unwrap_or(u32::MAX);
    }
    if rights.starts_with(|c: char| c.is_ascii_digit()) {
        return rights.parse().unwrap_or(u32::MAX);
    }
    pairs(rights).fold(0, |mask, code| {
        mask | match code {
            "GA" => GENERIC_ALL,
            "GR" => 0x8000_0000,
            "GW" => GENERIC_WRITE,
            "GX" => 0x2000_0000,
            "RC" => READ_CONTROL,
            "SD" => 0x0001_0000,
            "WD" => 0x0004_0000,
            "WO" => 0x0008_0000,
            "FA" => 0x001F_01FF,
            "FR" => 0x0012_0089,
            "FW" => 0x0012_0116,
            "FX" => 0x0012_00A0,
            "CC" => 0x01,
            "DC" => 0x02,
            "LC" => 0x04,
            "SW" => 0x08,
            "RP" => 0x10,
            "WP" => 0x20,
            "DT" => 0x40,
            "LO" => 0x80,
            "CR" => 0x100,
            _ => u32::MAX,
        }
    })
}

/// The descriptor of a file for `user` alone, which inherits nothing from its directory.
pub(super) fn private_file(user: &str) -> String {
    format!("O:{user}D:P(A;;FA;;;{user})")
}

/// The descriptor of a directory for `user` alone, which inherits nothing from the one above it and
/// hands its own list down.
pub(super) fn private_directory(user: &str) -> String {
    format!("O:{user}D:P(A;OICI;FA;;;{user})")
}

#[cfg(test)]
mod tests {
    use super::*;

    const USER: &str = "S-1-5-21-1-2-3-1001";

    fn judge(sddl: &str) -> (Option<&str>, bool, bool) {
        let list = AccessList::parse(sddl);
        (list.foreign_owner(USER), list.opens_a_file(USER), list.opens_a_directory(USER))
    }

    #[test]
    fn what_is_made_lets_its_owner_in_and_nobody_else() {
        for sddl in [private_file(USER), private_directory(USER)] {
            assert_eq!(judge(&sddl), (None, false, false), "{sddl}");
            assert!(sddl.contains("D:P("), "it inherits nothing: {sddl}");
            let stranger = AccessList::parse(&sddl);
            assert_eq!(stranger.foreign_owner("S-1-5-21-1-2-3-1002"), Some(USER));
            assert!(stranger.opens_a_file("S-1-5-21-1-2-3-1002"));
        }
    }

    #[test]
    fn a_directory_of_a_profile_is_private() {
        let sddl = format!(
            "O:{USER}G:S-1-5-21-1-2-3-513D:AI(A;OICIID;FA;;;SY)(A;OICIID;FA;;;BA)(A;OICIID;FA;;;{USER})"
        );
        assert_eq!(judge(&sddl), (None, false, false));
        // Made by an elevated process, and read by sandboxed programs.
        let sddl = format!("O:BAG:DUD:PAI(A;OICI;0x1f01ff;;;{USER})(A;OICI;0x1200a9;;;AC)S:AI");
        assert_eq!(judge(&sddl), (None, true, false));
    }

    #[test]
    fn others_are_noticed_however_they_are_written() {
        for (entry, file, directory) in [
            ("(A;;FA;;;WD)", true, true),
            ("(A;;FR;;;BU)", true, false),
            ("(A;OICIID;0x1301bf;;;AU)", true, true),
            ("(A;;0x1200a9;;;WD)", true, false),
            ("(A;;0x120088;;;WD)", false, false),
            ("(A;;GW;;;S-1-1-0)", true, true),
            ("(A;;DC;;;WD)", true, true),
            ("(A;;WD;;;WD)", true, true),
            ("(A;;1179785;;;WD)", true, false),
            ("(A;;ZZ;;;WD)", true, true),
            ("(A;;F;;;WD)", true, true),
            ("(A;OICIIO;FA;;;WD)", false, false),
            ("(D;;FA;;;WD)", false, false),
            ("(XA;;FA;;;WD;(@User.Title==\"(a;b)\" && (Member_of {SID(BA)})))", true, true),
            ("(OA;;FA;4c164200-20c0-11d0-a768-00aa006e0529;;WD)", true, true),
            ("(A;;FA;;;SY)(A;;FA;;;S-1-5-32-544)(A;;FA;;;OW)", false, false),
            ("(A;;FA;;;SY)(D;;FA;;;BU)(A;;FW;;;BU)", true, true),
        ] {
            let sddl = format!("O:{USER}D:P(A;;FA;;;{USER}){entry}");
            assert_eq!(judge(&sddl), (None, file, directory), "{sddl}");
        }
    }

    #[test]
    fn a_foreign_owner_and_a_missing_list_are_noticed() {
        assert_eq!(judge("O:S-1-5-21-1-2-3-1002D:P"), (Some("S-1-5-21-1-2-3-1002"), false, false));
        assert_eq!(judge("O:SYG:SYD:P"), (None, false, false));
        assert_eq!(judge(&format!("O:{USER}")), (None, true, true), "no list");
        assert_eq!(judge(&format!("O:{USER}D:NO_ACCESS_CONTROL")), (None, true, true));
        assert_eq!(judge(""), (Some("nobody"), true, true));
        assert_eq!(judge("O:WDD:P"), (Some("WD"), false, false), "an empty list lets nobody in");
        for unknown in ["(", "(A;;FA)", "(YA;;FA;;;SY)", "(XA;;FR;;;SY;(@User.T==\"(\"))(A;;FA;;;WD)"] {
            assert_eq!(judge(&format!("O:{USER}D:{unknown}")), (None, true, true), "{unknown}");
        }
    }

    #[test]
    fn what_is_no_descriptor_is_no_panic() {
        for text in ["é:é", ":", "D:)", "D:(;;;;;", "D:((((", "O:D:", "D:(A;é;é;;;é)"] {
            let _ = judge(text);
        }
    }
}
