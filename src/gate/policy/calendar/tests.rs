use proptest::prelude::*;

use super::*;

fn zone(name: &str) -> Zone {
    TimeZone::get(name).unwrap().into()
}

fn at(text: &str) -> UnixMillis {
    UnixMillis(text.parse::<Timestamp>().unwrap().as_millisecond())
}

#[test]
fn a_day_begins_at_midnight_in_its_zone() {
    for (name, last, first) in [
        ("UTC", "2026-03-01T23:59:59.999Z", "2026-03-02T00:00:00Z"),
        ("Europe/Berlin", "2026-03-01T22:59:59.999Z", "2026-03-01T23:00:00Z"),
        ("America/New_York", "2026-03-02T04:59:59.999Z", "2026-03-02T05:00:00Z"),
        ("Asia/Kathmandu", "2026-03-01T18:14:59.999Z", "2026-03-01T18:15:00Z"),
        ("Pacific/Kiritimati", "2026-03-01T09:59:59.999Z", "2026-03-01T10:00:00Z"),
    ] {
        let (zone, last, first) = (zone(name), at(last), at(first));
        assert_eq!(zone.day(first).0, zone.day(last).0 + 1, "{name}");
        assert_eq!(zone.until_tomorrow(last), Duration::from_millis(1), "{name}");
        assert_eq!(zone.until_tomorrow(first), DAY, "{name}");
    }
    assert_eq!(Zone::default().day(at("1970-01-01T00:00:00Z")), Day(0));
    assert_eq!(Zone::default().day(at("1969-12-31T23:59:59Z")), Day(-1));
    assert_eq!(zone("Europe/Berlin").day(at("2026-03-02T00:00:00Z")), Day(20_514));
}

/// In Berlin clocks went from 02:00 to 03:00 on 29 March 2026, and from 03:00 to 02:00 on 25 October.
#[test]
fn a_day_on_which_clocks_change_has_23_or_25_hours() {
    let berlin = zone("Europe/Berlin");
    for (midnight, hours) in [("2026-03-28T23:00:00Z", 23), ("2026-10-24T22:00:00Z", 25), ("2026-06-01T22:00:00Z", 24)]
    {
        let midnight = at(midnight);
        let length = Duration::from_secs(hours * 3600);
        assert_eq!(berlin.until_tomorrow(midnight), length);
        let last = midnight.plus(length - Duration::from_millis(1));
        assert_eq!(berlin.day(last), berlin.day(midnight));
        assert_eq!(berlin.day(midnight.plus(length)).0, berlin.day(midnight).0 + 1);
    }
    // In Santiago it is midnight itself that is skipped: 6 September 2026 begins at 01:00.
    let santiago = zone("America/Santiago");
    let first = at("2026-09-06T04:00:00Z");
    assert_eq!(santiago.day(first).0, santiago.day(at("2026-09-06T03:59:59.999Z")).0 + 1);
    assert_eq!(santiago.until_tomorrow(at("2026-09-06T03:00:00Z")), Duration::from_secs(3600));
    assert_eq!(santiago.until_tomorrow(first), Duration::from_secs(23 * 3600));
}

/// In St. John's clocks went from 00:01 on 30 October 1988 to 22:01 on the day before.
#[test]
fn a_day_that_is_gone_back_to_ends_again() {
    let zone = zone("America/St_Johns");
    let midnight = Window { days: Days::ALL, from: 0, to: 60, zone: zone.clone() };
    for (now, day, minutes) in [
        ("1988-10-30T01:29:00Z", 29, 1),
        ("1988-10-30T01:31:00Z", 29, 119),
        ("1988-10-30T03:29:00Z", 29, 1),
        ("1988-10-30T03:30:00Z", 30, 24 * 60),
    ] {
        let now = at(now);
        assert_eq!(zone.local(now).day(), day);
        assert_eq!(zone.until_tomorrow(now), Duration::from_secs(minutes * 60));
        assert_eq!(midnight.until_open(now), Duration::from_secs(minutes * 60));
    }
}

fn window(days: Days, from: u16, to: u16, name: &str) -> Window {
    Window { days, from, to, zone: zone(name) }
}

#[test]
fn a_window_opens_and_closes_to_the_moment() {
    // 2 March 2026 was a Monday.
    let office = window(Days::span(0, 4), 8 * 60, 18 * 60, "Europe/Berlin");
    let night = window(Days::span(4, 4), 22 * 60, 6 * 60, "UTC");
    let whole = window(Days::span(5, 6), 0, DAY_MINUTES, "UTC");
    for (window, time, open) in [
        (&office, "2026-03-02T06:59:59.999Z", false),
        (&office, "2026-03-02T07:00:00Z", true),
        (&office, "2026-03-02T16:59:59.999Z", true),
        (&office, "2026-03-02T17:00:00Z", false),
        (&office, "2026-07-01T06:00:00Z", true),
        (&office, "2026-07-01T05:59:59Z", false),
        (&office, "2026-03-06T12:00:00Z", true),
        (&office, "2026-03-07T12:00:00Z", false),
        (&office, "2026-03-01T12:00:00Z", false),
        (&night, "2026-03-06T21:59:59Z", false),
        (&night, "2026-03-06T22:00:00Z", true),
        (&night, "2026-03-07T05:59:59Z", true),
        (&night, "2026-03-07T06:00:00Z", false),
        (&night, "2026-03-06T05:59:59Z", false),
        (&night, "2026-03-07T22:00:00Z", false),
        (&whole, "2026-03-06T23:59:59.999Z", false),
        (&whole, "2026-03-07T00:00:00Z", true),
        (&whole, "2026-03-08T23:59:59.999Z", true),
        (&whole, "2026-03-09T00:00:00Z", false),
    ] {
        assert_eq!(window.is_open(at(time)), open, "{window:?} {time}");
    }
    for (window, time, opens) in [
        (&office, "2026-03-02T17:00:00Z", "2026-03-03T07:00:00Z"),
        (&office, "2026-03-06T17:00:00Z", "2026-03-09T07:00:00Z"),
        (&office, "2026-03-27T17:00:00Z", "2026-03-30T06:00:00Z"),
        (&office, "2026-03-02T00:00:00Z", "2026-03-02T07:00:00Z"),
        (&night, "2026-03-07T06:00:00Z", "2026-03-13T22:00:00Z"),
    ] {
        assert_eq!(window.until_open(at(time)), at(opens).since(at(time)), "{window:?} {time}");
    }
}

#[test]
fn a_skipped_hour_is_not_there_and_a_repeated_one_is_open_twice() {
    let window = window(Days::ALL, 2 * 60, 3 * 60, "Europe/Berlin");
    let minutes = |from: &str, hours: i64| {
        let from = at(from).0;
        let open = (0..hours * 60).filter(|minute| window.is_open(UnixMillis(from + minute * 60_000)));
        open.count()
    };
    assert_eq!(minutes("2026-03-28T23:00:00Z", 23), 0);
    assert_eq!(minutes("2026-10-24T22:00:00Z", 25), 120);
    assert_eq!(minutes("2026-06-01T22:00:00Z", 24), 60);
}

#[test]
fn days_are_spanned_over_the_end_of_the_week() {
    assert_eq!(Days::span(0, 6), Days::ALL);
    assert_eq!(Days::span(5, 1), Days::span(5, 6).and(Days::span(0, 1)));
    assert_eq!(Days::span(3, 3), Days(0b1000));
}

proptest! {
    #[test]
    fn no_time_panics_and_days_follow_one_another(now in any::<i64>(), from in 0u16..DAY_MINUTES, to in 0u16..=DAY_MINUTES) {
        for name in ["UTC", "Europe/Berlin", "America/St_Johns", "Australia/Lord_Howe"] {
            let window = window(Days::ALL, from, to, name);
            let now = UnixMillis(now);
            let _ = (window.is_open(now), window.until_open(now), window.zone.day(now));
            let now = UnixMillis(now.0 % 4_000_000_000_000);
            let tomorrow = now.plus(window.zone.until_tomorrow(now));
            prop_assert_eq!(window.zone.day(tomorrow).0, window.zone.day(now).0 + 1);
            prop_assert_eq!(window.zone.day(UnixMillis(tomorrow.0 - 1)), window.zone.day(now));
        }
    }
}
