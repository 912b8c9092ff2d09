//! Days and times of day in a named time zone, as a function of a given time.
//!
//! A day is a date in its zone, so one on which clocks change has 23 or 25 hours. A window is read from the clock on the
//! wall: an hour that is skipped is not there, and one that comes twice is open both times.

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::{Date, DateTime, Time, Weekday, date};
use jiff::tz::TimeZone;

use crate::clock::{Day, UnixMillis};

/// A time zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone(TimeZone);

impl Default for Zone {
    /// UTC.
    fn default() -> Self {
        Self(TimeZone::UTC)
    }
}

impl From<TimeZone> for Zone {
    fn from(zone: TimeZone) -> Self {
        Self(zone)
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.iana_name().unwrap_or("UTC"))
    }
}

impl Zone {
    /// The date.
    #[must_use]
    pub fn day(&self, now: UnixMillis) -> Day {
        let date = self.local(now).date();
        let days = date.duration_since(EPOCH).as_hours().div_euclid(24);
        Day(i32::try_from(days).unwrap_or(i32::MAX))
    }

    /// How long until the next day begins, or begins again: where clocks are put back over midnight, part of a day comes
    /// twice.
    #[must_use]
    pub fn until_tomorrow(&self, now: UnixMillis) -> Duration {
        let tomorrow = self.local(now).date().tomorrow().ok().and_then(|date| self.next(date, 0, now));
        tomorrow.map_or(DAY, |tomorrow| tomorrow.since(now))
    }

    fn local(&self, now: UnixMillis) -> DateTime {
        // A time that no calendar has is the farthest that it has.
        let far = if now.0 < 0 { Timestamp::MIN } else { Timestamp::MAX };
        self.0.to_datetime(Timestamp::from_millisecond(now.0).unwrap_or(far))
    }

    /// When it is next so many minutes past midnight on a date, which may be twice; the first moment after them where they
    /// are skipped.
    fn next(&self, date: Date, minutes: u16, now: UnixMillis) -> Option<UnixMillis> {
        let (hour, minute) = (i8::try_from(minutes / 60).ok()?, i8::try_from(minutes % 60).ok()?);
        let local = date.to_datetime(Time::new(hour, minute, 0, 0).ok()?);
        let when = self.0.to_ambiguous_timestamp(local);
        let times = [when.compatible(), when.later()].into_iter().flatten();
        times.map(|at| UnixMillis(at.as_millisecond())).find(|at| *at > now)
    }
}

const EPOCH: Date = date(1970, 1, 1);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Minutes of a day.
pub const DAY_MINUTES: u16 = 24 * 60;

/// Days of the week.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Days(u8);

impl Days {
    /// All of them.
    pub const ALL: Self = Self(0b111_1111);

    /// From one to another, both included, over the week's end where it has to be. Monday is 0 and Sunday 6.
    #[must_use]
    pub fn span(first: u8, last: u8) -> Self {
        let mut days = Self::default();
        for offset in 0..7 {
            let day = first.saturating_add(offset) % 7;
            days.0 |= 1 << day;
            if day == last % 7 {
                break;
            }
        }
        days
    }

    /// Those of both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    const fn has(self, day: Weekday) -> bool {
        self.0 & (1 << day.to_monday_zero_offset()) != 0
    }
}

/// Times at which requests are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// The days on which it begins.
    pub days: Days,
    /// When it begins, in minutes past midnight.
    pub from: u16,
    /// When it ends, in minutes past midnight, up to [`DAY_MINUTES`]. Not after `from`, it ends on the next day.
    pub to: u16,
    /// Whose clock.
    pub zone: Zone,
}

impl Window {
    /// Whether it is open.
    #[must_use]
    pub fn is_open(&self, now: UnixMillis) -> bool {
        let local = self.zone.local(now);
        let minutes = u16::try_from(i32::from(local.hour()) * 60 + i32::from(local.minute())).unwrap_or(0);
        let today = self.days.has(local.weekday());
        if self.from < self.to {
            return today && (self.from..self.to).contains(&minutes);
        }
        let yesterday = self.days.has(local.weekday().previous());
        (today && minutes >= self.from) || (yesterday && minutes < self.to)
    }

    /// How long until it opens next.
    #[must_use]
    pub fn until_open(&self, now: UnixMillis) -> Duration {
        let mut date = Some(self.zone.local(now).date());
        // A week and a day: today's may be over.
        for _ in 0..8 {
            let Some(day) = date else { break };
            let opens = self.days.has(day.weekday()).then(|| self.zone.next(day, self.from, now));
            if let Some(opens) = opens.flatten() {
                return opens.since(now);
            }
            date = day.tomorrow().ok();
        }
        DAY.saturating_mul(7)
    }
}

#[cfg(test)]
mod tests;
