//! Entries for others: which are wanted, and how they are written.
//!
//! Pure. As JSON Lines an entry is the line that stands in the record, byte for byte, so that its hash can still be
//! checked. As CSV (RFC 4180) it is a row of [`COLUMNS`]: what has no column stands in the last one, as JSON. Every cell
//! that a spreadsheet would take for a formula begins with an apostrophe, which it takes for "this is text".

use std::fmt::Write;

use serde_json::{Map, Value};

use super::Kind;
use super::entry::Line;
use crate::clock::UnixMillis;

/// The columns of a CSV file.
pub const COLUMNS: [&str; 18] = [
    "seq",
    "time",
    "kind",
    "network",
    "asset",
    "channel",
    "payer",
    "route",
    "amount",
    "total",
    "voucher",
    "step",
    "transaction",
    "signature",
    "rule",
    "outcome",
    "void",
    "other",
];

/// Which entries are wanted.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// From this time on.
    pub from: Option<UnixMillis>,
    /// Before this time.
    pub to: Option<UnixMillis>,
    /// Only of these kinds; of all where there are none.
    pub kinds: Vec<Kind>,
    /// Only of this payer.
    pub payer: Option<String>,
}

impl Filter {
    /// Whether an entry is wanted.
    #[must_use]
    pub fn admits(&self, line: &Line<'_>, fields: &Map<String, Value>) -> bool {
        self.from.is_none_or(|from| line.time >= from)
            && self.to.is_none_or(|to| line.time < to)
            && (self.kinds.is_empty() || self.kinds.iter().any(|kind| line.is(*kind)))
            && self.payer.as_ref().is_none_or(|payer| {
                fields.get("payer").and_then(Value::as_str).is_some_and(|there| there.eq_ignore_ascii_case(payer))
            })
    }
}

/// The heading of a CSV file, with its line break.
#[must_use]
pub fn heading() -> String {
    format!("{}\r\n", COLUMNS.join(","))
}

/// An entry as a row of a CSV file, with its line break.
#[must_use]
pub fn row(line: &Line<'_>, fields: &Map<String, Value>, void: bool) -> String {
    let mut other = fields.clone();
    let mut cells = Vec::with_capacity(COLUMNS.len());
    for column in COLUMNS {
        cells.push(match column {
            "seq" => line.position.seq.to_string(),
            "time" => utc(line.time),
            "kind" => cell(line.kind),
            "void" => if void { "yes" } else { "" }.to_owned(),
            "other" if other.is_empty() => String::new(),
            "other" => cell(&Value::Object(std::mem::take(&mut other)).to_string()),
            field => match other.remove(field) {
                Some(Value::String(text)) => cell(&text),
                Some(value) => cell(&value.to_string()),
                None => String::new(),
            },
        });
    }
    format!("{}\r\n", cells.join(","))
}

/// A text as a cell.
fn cell(text: &str) -> String {
    let formula = text.starts_with(['=', '+', '-', '@', '\t', '\r']);
    let guard = if formula { "'" } else { "" };
    if text.contains(['"', ',', '\n', '\r']) {
        format!("\"{guard}{}\"", text.replace('"', "\"\""))
    } else {
        format!("{guard}{text}")
    }
}

const DAY_MILLIS: i64 = 86_400_000;

/// A time as `2026-11-28T22:28:19.123Z`.
#[must_use]
pub fn utc(time: UnixMillis) -> String {
    let (days, millis) = (time.0.div_euclid(DAY_MILLIS), time.0.rem_euclid(DAY_MILLIS));
    let (year, month, day) = civil(days);
    let (hours, minutes, seconds) = (millis / 3_600_000, millis / 60_000 % 60, millis / 1000 % 60);
    let mut text = String::with_capacity(24);
    let _ = write!(text, "{year:04}-{month:02}-{day:02}T{hours:02}:{minutes:02}:{seconds:02}.{:03}Z", millis % 1000);
    text
}

/// Reads `2026-11-28`, `2026-11-28T22:28:19Z` (with or without the `Z`, always UTC), or Unix seconds.
#[must_use]
pub fn parse_utc(text: &str) -> Option<UnixMillis> {
    if text.bytes().all(|b| b.is_ascii_digit()) && text.len() > 4 {
        return Some(UnixMillis(text.parse::<i64>().ok()?.checked_mul(1000)?));
    }
    let (date, time) = text.split_once('T').unwrap_or((text, "00:00:00"));
    let numbers = |text: &str, by: char| -> Option<[i64; 3]> {
        let parts: Option<Vec<i64>> = text.split(by).map(|part| part.parse().ok().filter(|n| *n >= 0)).collect();
        parts?.try_into().ok()
    };
    let [year, month, day] = numbers(date, '-')?;
    let [hours, minutes, seconds] = numbers(time.trim_end_matches('Z'), ':')?;
    if !(1970..=9999).contains(&year) || hours > 23 || minutes > 59 || seconds > 59 {
        return None;
    }
    // Searched for from below: there are at most 31 days between the first of the month and the day.
    let first = days_before(year, month)?;
    let days = first.checked_add(day.checked_sub(1)?)?;
    if civil(days) != (year, month, day) {
        return None;
    }
    let seconds = hours * 3600 + minutes * 60 + seconds;
    Some(UnixMillis(days.checked_mul(DAY_MILLIS)?.checked_add(seconds * 1000)?))
}

/// Days from the epoch to the first of a month.
fn days_before(year: i64, month: i64) -> Option<i64> {
    const BEFORE: [i64; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
    let before = *BEFORE.get(usize::try_from(month.checked_sub(1)?).ok()?)?;
    let leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    let last = year - 1;
    let leaps = last / 4 - last / 100 + last / 400 - 477;
    Some((year - 1970) * 365 + leaps + before + i64::from(leap && month > 2))
}

/// Year, month and day of a day since the epoch (the Gregorian calendar, in eras of 400 years that begin in March).
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let (era, of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march + 2) / 5 + 1;
    let month = if march < 10 { march + 3 } else { march - 9 };
    (year + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn times_are_read_and_written() {
        for (text, millis) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29", 951_782_400_000),
            ("2026-11-28T22:28:19Z", 1_795_904_899_000),
            ("1795904899", 1_795_904_899_000),
        ] {
            assert_eq!(parse_utc(text), Some(UnixMillis(millis)), "{text}");
        }
        assert_eq!(utc(UnixMillis(1_795_904_899_007)), "2026-11-28T22:28:19.007Z");
        for bad in
            ["", "2026", "2026-02-29", "2026-13-01", "2026-11-28T24:00:00", "yesterday", "2026-11-28 10:00", "-1"]
        {
            assert_eq!(parse_utc(bad), None, "{bad}");
        }
    }

    #[test]
    fn no_cell_is_a_formula_and_quotes_are_doubled() {
        assert_eq!(cell("=1+1"), "'=1+1");
        assert_eq!(cell("@x,\"y\""), "\"'@x,\"\"y\"\"\"");
        assert_eq!(cell("+4\n"), "\"'+4\n\"");
        assert_eq!(cell("a-b"), "a-b");
    }

    proptest! {
        #[test]
        fn every_second_is_read_as_it_is_written(second in 0..253_402_300_799_i64) {
            let time = UnixMillis(second * 1000);
            let text = utc(time);
            prop_assert_eq!(parse_utc(&text.replace(".000", "")), Some(time));
        }

        #[test]
        fn a_reader_of_csv_finds_the_text(text in any::<String>()) {
            let written = cell(&text);
            let inner = match written.strip_prefix('"') {
                Some(quoted) => quoted.strip_suffix('"').unwrap().replace("\"\"", "\""),
                None => written,
            };
            let guarded = inner.strip_prefix('\'').filter(|_| !text.starts_with('\'')).unwrap_or(&inner);
            prop_assert_eq!(guarded, &text);
            prop_assert!(!inner.starts_with(['=', '+', '-', '@', '\t', '\r']));
        }

        #[test]
        fn no_time_panics(text in ".{0,30}", millis in any::<i64>()) {
            let _ = parse_utc(&text);
            let _ = utc(UnixMillis(millis / 4));
        }
    }
}
