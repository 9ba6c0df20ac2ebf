//! The names that Windows keeps for devices, in every directory and with any ending.
//!
//! Source: "Naming Files, Paths, and Namespaces" of the Windows documentation.

const DEVICES: [&str; 6] = ["CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"];
const PORTS: [&str; 2] = ["COM", "LPT"];

/// Whether a file of this name would be a device.
pub(crate) fn is_device(name: &str) -> bool {
    let stem = name.split(['.', ':']).next().unwrap_or_default().trim_end_matches(' ').to_uppercase();
    let is_port = PORTS.iter().any(|port| {
        let number = stem.strip_prefix(port);
        number.is_some_and(|number| {
            let mut digits = number.chars();
            matches!((digits.next(), digits.next()), (Some('1'..='9' | '¹' | '²' | '³'), None))
        })
    });
    DEVICES.contains(&stem.as_str()) || is_port
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_known_with_any_ending() {
        for name in ["nul", "CON.txt", "com1", "LPT³", "Aux ", "conin$", "nul:x", "prn.a.b"] {
            assert!(is_device(name), "{name}");
        }
        for name in ["", "console", "com", "com0", "com10", "null", ".nul", "x.con", "é"] {
            assert!(!is_device(name), "{name}");
        }
    }
}
