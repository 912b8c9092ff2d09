//! `metering`: how the charge of a route is found, up to its price.
//!
//! ```yaml
//! metering: { header: X-Charge }                                    # the charge, in whole tokens
//! metering: { header: X-Rows, unit_price: "$0.0001" }               # a count, each at this price
//! metering: { json: /usage/total_tokens, unit_price: "$0.15", per: 1000000 }
//! metering: { response_bytes: true, unit_price: "$0.02", per: 1000000 }
//! metering:
//!   sum:                                                            # several counts
//!     - { json: /usage/prompt_tokens, unit_price: "$0.15", per: 1000000 }
//!     - { json: /usage/completion_tokens, unit_price: "$0.60", per: 1000000 }
//!   minimum: "$0.0001"
//!   missing: charge_minimum
//!   body_bytes_max: 1MiB
//!   body_wait: 30s
//! ```
//!
//! Refuses what could never be charged, and keys that would do nothing.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;

use super::NetworkConfig;
use super::money::Assets;
use super::reader::{Complaint, Map, Value};
use super::server::{or, within_client};
use crate::amount::Amount;
use crate::gate::charge::{Count, Meter, Missing, POINTER_BYTES_MAX, Report, TERMS_MAX, Term, is_pointer};

const BODY_BYTES_MAX_MAX: u64 = 4 * 1024 * 1024;
const BODY_WAIT_MIN: Duration = Duration::from_millis(100);
/// Powers of ten that a unit price may be for.
const PER: [(&str, u8); 10] = [
    ("1", 0),
    ("10", 1),
    ("100", 2),
    ("1000", 3),
    ("10000", 4),
    ("100000", 5),
    ("1000000", 6),
    ("10000000", 7),
    ("100000000", 8),
    ("1000000000", 9),
];
const COUNT_REMEDY: &str = "Write header: X-Charge, json: /usage/total_tokens with unit_price, response_bytes: true with unit_price, or sum: [...].";
const UNIT_PRICE_REMEDY: &str = "Write what one of them costs, such as \"$0.0000025\".";

/// What the keys are checked against.
struct Around<'a> {
    assets: &'a Assets<'a>,
    /// The route's price, where it could be read.
    prices: &'a [(&'a NetworkConfig, Amount)],
}

/// Reads the value.
pub(super) fn read(
    value: &Value<'_, '_>,
    assets: &Assets<'_>,
    prices: Option<&[(&NetworkConfig, Amount)]>,
    max_timeout: Duration,
) -> Option<Meter> {
    let around = Around { assets, prices: prices.unwrap_or_default() };
    value.map("a mapping such as {header: X-Charge}", |map| meter(map, &around, max_timeout))?
}

fn meter(map: &mut Map<'_, '_>, around: &Around<'_>, max_timeout: Duration) -> Option<Meter> {
    let report = report(map, around);
    let minimum = or(map.take("minimum"), Amount::ZERO, |value| minimum(value, around));
    let has_minimum = map.has("minimum");
    let missing_value = map.take("missing");
    let choices = [
        ("charge_maximum", Missing::ChargeMaximum),
        ("charge_minimum", Missing::ChargeMinimum),
        ("charge_nothing", Missing::ChargeNothing),
        ("refuse", Missing::Refuse),
    ];
    let missing = or(missing_value.clone(), None, |value| value.choice(&choices).map(Some));
    let needs_body = report.as_ref().is_none_or(|report| Meter::of(report.clone()).needs_body(false));
    if !needs_body {
        for key in ["body_bytes_max", "body_wait"] {
            map.inert(key, "where the report is in a header", "Leave it out.");
        }
    }
    let (bytes_value, wait_value) = (map.take("body_bytes_max"), map.take("body_wait"));
    if let (Some(Some(Missing::ChargeMinimum)), Some(value), false) = (missing, &missing_value, has_minimum) {
        value.reject(Complaint::new("needs a minimum, and there is none", "Write minimum, or charge_nothing."));
        return None;
    }
    let defaults = Meter::of(report?);
    let body_bytes_max = or(bytes_value.filter(|_| needs_body), defaults.body_bytes_max, |value| {
        usize::try_from(value.bytes(1, BODY_BYTES_MAX_MAX)?).ok()
    });
    let default_wait = defaults.body_wait.min(max_timeout.checked_div(2).unwrap_or(max_timeout));
    let body_wait = or(wait_value.filter(|_| needs_body), default_wait, |value| {
        let wait = value.duration(BODY_WAIT_MIN, Duration::from_secs(3600))?;
        within_client(value, wait, max_timeout)
    });
    Some(Meter {
        minimum: minimum?,
        missing: missing?,
        body_bytes_max: body_bytes_max?,
        body_wait: body_wait?,
        ..defaults
    })
}

/// The least charge, in the price's currency and not above it.
fn minimum(value: &Value<'_, '_>, around: &Around<'_>) -> Option<Amount> {
    let minimums = around.assets.price(value)?;
    let same = |(network, price): &(&NetworkConfig, Amount)| {
        let of = minimums.iter().find(|(other, _)| std::ptr::eq(*other, *network));
        of.map(|(_, minimum)| minimum <= price)
    };
    let fits: Vec<_> = around.prices.iter().map(same).collect();
    if fits.contains(&None) {
        value.reject(Complaint::new("is not in the currency of the price", "Write both in the same currency."));
        return None;
    }
    if fits.contains(&Some(false)) {
        value.reject(Complaint::new(
            "is above the price",
            "Write at most the price, which is the most that is charged.",
        ));
        return None;
    }
    // Assets of one file count alike, so one number serves for all.
    minimums.first().map(|(_, minimum)| *minimum)
}

fn report(map: &mut Map<'_, '_>, around: &Around<'_>) -> Option<Report> {
    if let Some(value) = map.take("sum") {
        for key in ["header", "json", "response_bytes", "unit_price", "per"] {
            map.inert(key, "beside sum", "Write it in an entry of sum.");
        }
        let items = value.items("a list of counts, each with unit_price")?;
        if items.is_empty() || items.len() > TERMS_MAX {
            value.problem(format!("holds {} counts.", items.len()), format!("Write 1 to {TERMS_MAX}."));
            return None;
        }
        let want = "a mapping such as {json: /usage/prompt_tokens, unit_price: \"$0.0000025\"}";
        let terms: Vec<_> = items.iter().map(|item| item.map(want, |map| entry(map, around)).flatten()).collect();
        return terms.into_iter().collect::<Option<Vec<_>>>().map(Report::Counts);
    }
    let count = count(map);
    if map.has("unit_price") {
        let unit_price = unit_price(map, around);
        return Some(Report::Counts(vec![Term { count: count?, unit_price: unit_price? }]));
    }
    match count {
        Some(Count::Header(header)) => {
            map.take("unit_price");
            map.inert("per", "without unit_price", "Leave it out, or write unit_price.");
            Some(Report::Charge(header))
        }
        // The price is missed, unless it is not even known what is counted.
        Some(Count::Json(_) | Count::ResponseBytes) => {
            unit_price(map, around);
            None
        }
        None => {
            map.take("unit_price");
            map.take("per");
            None
        }
    }
}

fn entry(map: &mut Map<'_, '_>, around: &Around<'_>) -> Option<Term> {
    let (count, unit_price) = (count(map), unit_price(map, around));
    Some(Term { count: count?, unit_price: unit_price? })
}

fn unit_price(map: &mut Map<'_, '_>, around: &Around<'_>) -> Option<crate::gate::charge::UnitPrice> {
    let scale = or(map.take("per"), 0, |value| value.choice(&PER));
    let value = map.require("unit_price", UNIT_PRICE_REMEDY)?;
    let price = around.assets.unit_price(&value, scale?, around.prices)?;
    if price.is_zero() {
        value.reject(Complaint::new("is nothing", "Write a price above zero, or leave this count out."));
        return None;
    }
    Some(price)
}

/// What is counted: exactly one of the three keys.
fn count(map: &mut Map<'_, '_>) -> Option<Count> {
    let written = [map.take("header"), map.take("json"), map.take("response_bytes")];
    let has = ["header", "json", "response_bytes"].map(|key| map.has(key));
    let mut values = written.into_iter().enumerate().filter_map(|(i, value)| value.map(|value| (i, value)));
    let Some((kind, value)) = values.next() else {
        if !has.contains(&true) {
            map.whole.problem("does not say what is reported.", COUNT_REMEDY);
        }
        return None;
    };
    if let Some((_, other)) = values.next() {
        other.problem("stands beside another count.", "Keep one of the two, or write both in sum.");
        return None;
    }
    match kind {
        0 => header(&value).map(Count::Header),
        1 => pointer(&value).map(Count::Json),
        _ => match value.boolean()? {
            true => Some(Count::ResponseBytes),
            false => {
                value.problem("does nothing where it is false.", "Leave it out.");
                None
            }
        },
    }
}

fn header(value: &Value<'_, '_>) -> Option<HeaderName> {
    value.parse("a header name such as X-Usage", |text| {
        let complaint = |what| Complaint::new(what, "Write a name such as X-Usage.");
        let name = HeaderName::try_from(text).map_err(|_| complaint("is not a header name"))?;
        let taken = ["payment-required", "payment-signature", "payment-response", "content-length", "connection"];
        let taken = taken.contains(&name.as_str());
        if taken { Err(complaint("has a meaning of its own")) } else { Ok(name) }
    })
}

fn pointer(value: &Value<'_, '_>) -> Option<Arc<str>> {
    value.parse("a JSON pointer such as /usage/total_tokens", |text| {
        if is_pointer(text) {
            return Ok(text.into());
        }
        let remedy = format!("Write one such as /usage/total_tokens, up to {POINTER_BYTES_MAX} bytes.");
        let complaint = Complaint::new("is not a JSON pointer", remedy);
        let path = format!("/{}", text.trim_start_matches(['$', '.']).replace('.', "/"));
        let plain = text.contains('.') && is_pointer(&path) && !path.contains(['[', ' ']);
        Err(if plain { complaint.suggest(format!("Did you mean {path}?")) } else { complaint })
    })
}
