//! Durations as people say them.

use std::fmt;
use std::time::Duration;

/// A duration for a message: "250 ms", "30 seconds", "5 minutes", "3 days".
pub(crate) struct InWords(pub(crate) Duration);

impl fmt::Display for InWords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let milliseconds = self.0.as_millis();
        if milliseconds < 1_000 {
            return write!(f, "{milliseconds} ms");
        }
        let seconds = milliseconds.div_ceil(1_000);
        let (number, unit) = match seconds {
            0..120 => (seconds, "second"),
            120..7_200 => (seconds.div_ceil(60), "minute"),
            7_200..172_800 => (seconds.div_ceil(3_600), "hour"),
            _ => (seconds.div_ceil(86_400), "day"),
        };
        write!(f, "{number} {unit}{}", if number == 1 { "" } else { "s" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_told_in_its_largest_unit_and_rounded_up() {
        let told = |milliseconds| InWords(Duration::from_millis(milliseconds)).to_string();
        assert_eq!(told(0), "0 ms");
        assert_eq!(told(250), "250 ms");
        assert_eq!(told(1_000), "1 second");
        assert_eq!(told(29_001), "30 seconds");
        assert_eq!(told(119_500), "2 minutes");
        assert_eq!(told(3_600_000), "60 minutes");
        assert_eq!(told(10 * 3_600_000), "10 hours");
        assert_eq!(told(72 * 3_600_000), "3 days");
        assert!(InWords(Duration::MAX).to_string().ends_with(" days"));
    }
}
