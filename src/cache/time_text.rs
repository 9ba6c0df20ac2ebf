//! Points in time as providers write them: seconds, milliseconds, dates with a zone.

use super::fields::parse_time;

/// From here on a number counts milliseconds: as seconds it lies 30,000 years ahead.
const MILLISECONDS: i64 = 1_000_000_000_000;

/// Unix seconds of a point in time; `None` if it cannot be read.
///
/// Dates are those of RFC 3339 (`2027-11-05T15:18:31Z`) and those of Azure App Service
/// (`11/05/2027 15:18:31 +00:00` and `11/5/2027 3:18:31 PM +00:00`, the month first). A date without a
/// zone says nothing.
pub(crate) fn instant(text: &str) -> Option<i64> {
    let text = text.trim();
    if let Some(mut seconds) = parse_time(text) {
        while seconds >= MILLISECONDS {
            seconds /= 1_000;
        }
        return Some(seconds);
    }
    date(text)
}

fn date(text: &str) -> Option<i64> {
    let (date, rest) = text.split_at(text.find(['T', 't', ' '])?);
    let rest = rest[1..].trim();
    let (year, month, day) = if let Some((month, rest)) = date.split_once('/') {
        let (day, year) = rest.split_once('/')?;
        (number(year, 4..=4)?, number(month, 1..=2)?, number(day, 1..=2)?)
    } else {
        let (year, rest) = date.split_once('-')?;
        let (month, day) = rest.split_once('-')?;
        (number(year, 4..=4)?, number(month, 2..=2)?, number(day, 2..=2)?)
    };
    let (time, zone) = rest.split_at(rest.find([' ', 'Z', 'z', '+', '-'])?);
    let mut parts = time.splitn(3, ':');
    let (mut hour, minute) = (number(parts.next()?, 1..=2)?, number(parts.next()?, 2..=2)?);
    let second = number(parts.next()?.split('.').next()?, 2..=2)?;
    let mut zone = zone.trim();
    for (half, from_noon) in [("AM", 0), ("PM", 12)] {
        if let Some(rest) = zone.strip_prefix(half) {
            zone = rest.trim();
            (1..=12).contains(&hour).then_some(())?;
            hour = hour % 12 + from_noon;
        }
    }
    let is_date = (1..=12).contains(&month) && (1..=days_in(year, month)).contains(&day);
    (is_date && hour < 24 && minute < 60 && second <= 60).then_some(())?;
    Some(days_since_epoch(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second - offset(zone)?)
}

/// Seconds that a zone is ahead of UTC.
fn offset(zone: &str) -> Option<i64> {
    if zone.eq_ignore_ascii_case("z") || zone == "UTC" || zone == "GMT" {
        return Some(0);
    }
    let sign = match zone.as_bytes().first()? {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    let (hours, minutes) = match zone[1..].split_once(':') {
        Some(parts) => parts,
        None => zone.get(1..3).zip(zone.get(3..5)).filter(|_| zone.len() == 5)?,
    };
    let (hours, minutes) = (number(hours, 2..=2)?, number(minutes, 2..=2)?);
    (hours < 24 && minutes < 60).then_some(sign * (hours * 3_600 + minutes * 60))
}

fn number(text: &str, digits: std::ops::RangeInclusive<usize>) -> Option<i64> {
    let is_number = digits.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().ok())?
}

fn days_in(year: i64, month: i64) -> i64 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        _ => 31,
    }
}

/// Days of the Gregorian calendar from 1970-01-01, years counted from March so that leap days come last.
fn days_since_epoch(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_milliseconds_and_dates_with_a_zone_are_read() {
        for (text, expected) in [
            ("1700000000", 1_700_000_000),
            ("1700000000.7", 1_700_000_000),
            ("1700000000123", 1_700_000_000),
            ("1700000000123456", 1_700_000_000),
            ("11/05/2027 15:18:31 +00:00", 1_825_427_911),
            ("11/5/2027 3:18:31 PM +00:00", 1_825_427_911),
            ("2027-11-05T15:18:31Z", 1_825_427_911),
            ("2027-11-05T15:18:31.123z", 1_825_427_911),
            ("2027-11-05 16:18:31+01:00", 1_825_427_911),
            ("2027-11-05T10:18:31-0500", 1_825_427_911),
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T12:00:00Z", 951_825_600),
            ("2024-12-31T23:59:60Z", 1_735_689_600),
            ("1/1/2024 12:00:00 AM +00:00", 1_704_067_200),
        ] {
            assert_eq!(instant(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_point_in_time_is_not_guessed_at() {
        for text in [
            "",
            "soon",
            "2027-11-05T15:18:31",
            "11/05/2027 15:18:31",
            "05.11.2027 15:18:31 +00:00",
            "2027-13-05T15:18:31Z",
            "2027-02-29T15:18:31Z",
            "13/05/2027 15:18:31 +00:00",
            "2027-11-05T25:18:31Z",
            "2027-11-05T15:18Z",
            "11/5/2027 13:18:31 PM +00:00",
            "2027-11-05T15:18:31+é1:00",
            "2027-11-05T15:18:31+25:00",
            "NaN",
        ] {
            assert_eq!(instant(text), None, "{text}");
        }
    }
}
