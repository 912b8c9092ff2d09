//! What a metered answer costs: the upstream's report, held to what the payer agreed to.
//!
//! A report is either the charge itself, in a response header, or counts (in headers, in fields of a JSON body or of the
//! events of a stream, of the body's bytes), each with the price of one. No report can overcharge: the route's price is
//! the ceiling that the payer signed, so
//!
//! | report | charge |
//! |---|---|
//! | the route has no meter | the whole price |
//! | plain decimal text of whole tokens, or whole numbers of what is counted | as reported, rounded down once to the asset's smallest unit, at least the minimum, at most the price |
//! | above the price | the price, and a warning |
//! | missing: no such header or field; a body that is no JSON, is too long or takes too long | by the rule, or the whole price where there is none |
//! | unreadable: several values, or no plain number | by the rule, or nothing where there is none: we do not guess |
//!
//! Pure: [`decide`] is a function of the meter, the answer and the price.

mod fields;
mod unit_price;

use std::sync::Arc;
use std::time::Duration;

use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, HeaderName};

use self::fields::{Field, read};
pub use self::fields::{POINTER_BYTES_MAX, is_pointer};
pub use self::unit_price::{DIGITS_MAX, SCALE_MAX, TERMS_MAX, UnitPrice, UnitPriceError};
use crate::amount::{Amount, AmountError, Asset};

/// The longest report that is read of a header.
pub const REPORT_BYTES_MAX: usize = 64;

/// How a route's charge is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meter {
    /// What the upstream reports.
    pub report: Report,
    /// The least that a reported charge comes to.
    pub minimum: Amount,
    /// What is charged without a usable report; `None` charges the price where it is missing, and nothing where it is
    /// unreadable.
    pub missing: Option<Missing>,
    /// How much of a body is held until it is charged for, where the report is in it.
    pub body_bytes_max: usize,
    /// How long a body is waited for, where the report is in it.
    pub body_wait: Duration,
}

/// What the upstream reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// The charge in whole tokens, such as `0.0042`, in a response header.
    Charge(HeaderName),
    /// Counts, each with the price of one; the charge is their sum. At most [`TERMS_MAX`].
    Counts(Vec<Term>),
}

/// Something that is counted, and what one of it costs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Term {
    /// Where the count is.
    pub count: Count,
    /// The price of one.
    pub unit_price: UnitPrice,
}

/// Where a count is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Count {
    /// A whole number in a response header.
    Header(HeaderName),
    /// A whole number in a JSON body, or in an event of a stream, by its JSON pointer.
    Json(Arc<str>),
    /// The response body's bytes, as the upstream sends them.
    ResponseBytes,
}

/// What is charged where the report is missing or unreadable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// The price.
    ChargeMaximum,
    /// The minimum.
    ChargeMinimum,
    /// Nothing; the answer is delivered.
    ChargeNothing,
    /// Nothing, and the answer is not delivered.
    Refuse,
}

/// An answer, as far as it has been read.
#[derive(Clone, Copy, Debug)]
pub struct Answered<'a> {
    /// Its headers.
    pub headers: &'a HeaderMap,
    /// Its body, where it is there whole.
    pub body: Option<&'a [u8]>,
    /// How long its body is, where that is known.
    pub body_bytes: Option<u64>,
}

impl<'a> Answered<'a> {
    /// An answer whose body has not been read.
    #[must_use]
    pub const fn head(headers: &'a HeaderMap) -> Self {
        Self { headers, body: None, body_bytes: None }
    }

    /// An answer that is there whole.
    #[must_use]
    pub fn whole(headers: &'a HeaderMap, body: &'a [u8]) -> Self {
        Self { headers, body: Some(body), body_bytes: u64::try_from(body.len()).ok() }
    }
}

/// What a metered answer costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Charge {
    /// This much, at most the price.
    Take(Amount),
    /// Nothing, and it must not be delivered.
    Refuse,
}

/// What a report comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reported {
    Amount(Amount),
    Missing,
    Unreadable,
}

impl Meter {
    /// A meter that reads the charge from a header.
    #[must_use]
    pub fn charge(header: HeaderName) -> Self {
        Self::of(Report::Charge(header))
    }

    /// A meter with no minimum, no rule of its own, and the default limits: 1 MiB and 30 seconds.
    #[must_use]
    pub const fn of(report: Report) -> Self {
        let body_wait = Duration::from_secs(30);
        Self { report, minimum: Amount::ZERO, missing: None, body_bytes_max: 1024 * 1024, body_wait }
    }

    /// Whether the body must be there before the charge is known. `known` says that its length is.
    #[must_use]
    pub fn needs_body(&self, known: bool) -> bool {
        let needs = |term: &Term| match term.count {
            Count::Header(_) => false,
            Count::Json(_) => true,
            Count::ResponseBytes => !known,
        };
        matches!(&self.report, Report::Counts(terms) if terms.iter().any(needs))
    }

    /// Whether the body's text is read, so that it should not be compressed.
    #[must_use]
    pub fn reads_json(&self) -> bool {
        let json = |term: &Term| matches!(term.count, Count::Json(_));
        matches!(&self.report, Report::Counts(terms) if terms.iter().any(json))
    }

    fn read(&self, answered: &Answered<'_>, asset: &Asset) -> Reported {
        match &self.report {
            Report::Charge(header) => match single(answered.headers, header) {
                Ok(Some(text)) => charge(asset, text).map_or(Reported::Unreadable, Reported::Amount),
                Ok(None) => Reported::Missing,
                Err(()) => Reported::Unreadable,
            },
            Report::Counts(terms) => {
                let counts = counts(terms, answered);
                if counts.contains(&Field::Unreadable) {
                    return Reported::Unreadable;
                }
                let priced = counts.iter().zip(terms).map(|(count, term)| match count {
                    Field::Count(count) => Some((*count, term.unit_price)),
                    Field::Missing | Field::Unreadable => None,
                });
                let priced: Option<Vec<_>> = priced.collect();
                priced.map_or(Reported::Missing, |terms| Reported::Amount(unit_price::total(&terms, asset)))
            }
        }
    }
}

/// The charge for an answer: at most `price`, whatever it says.
#[must_use]
pub fn decide(route: &str, meter: Option<&Meter>, answered: &Answered<'_>, asset: &Asset, price: Amount) -> Charge {
    let Some(meter) = meter else { return Charge::Take(price) };
    let reported = meter.read(answered, asset);
    let otherwise = match reported {
        Reported::Amount(charge) => {
            if charge > price {
                tracing::warn!(route, %charge, %price, "the upstream reports more than the price; the price is charged");
            }
            return Charge::Take(charge.max(meter.minimum).min(price));
        }
        Reported::Missing => Missing::ChargeMaximum,
        Reported::Unreadable => Missing::ChargeNothing,
    };
    let rule = meter.missing.unwrap_or(otherwise);
    // An upstream that leaves out its charge to have the whole price taken is no mishap.
    if reported != Reported::Missing || meter.missing.is_some() || !matches!(meter.report, Report::Charge(_)) {
        tracing::warn!(route, ?reported, ?rule, report = ?meter.report, "an answer has no usable report of its charge");
    }
    match rule {
        Missing::ChargeMaximum => Charge::Take(price),
        Missing::ChargeMinimum => Charge::Take(meter.minimum.min(price)),
        Missing::ChargeNothing => Charge::Take(Amount::ZERO),
        Missing::Refuse => Charge::Refuse,
    }
}

/// Each term's count.
fn counts(terms: &[Term], answered: &Answered<'_>) -> Vec<Field> {
    let pointers: Vec<&str> = terms
        .iter()
        .filter_map(|term| match &term.count {
            Count::Json(pointer) => Some(&**pointer),
            Count::Header(_) | Count::ResponseBytes => None,
        })
        .collect();
    let body = answered.body.filter(|_| !pointers.is_empty() && is_plain(answered.headers));
    let read = body.map(|body| read(body, is_stream(answered.headers), &pointers)).unwrap_or_default();
    let mut read = read.into_iter();
    let count = |term: &Term| match &term.count {
        Count::Header(header) => match single(answered.headers, header) {
            Ok(Some(text)) => whole_number(text).map_or(Field::Unreadable, Field::Count),
            Ok(None) => Field::Missing,
            Err(()) => Field::Unreadable,
        },
        Count::Json(_) => read.next().unwrap_or(Field::Missing),
        Count::ResponseBytes => answered.body_bytes.map_or(Field::Missing, Field::Count),
    };
    terms.iter().map(count).collect()
}

fn is_plain(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_ENCODING).is_none_or(|encoding| encoding.as_bytes().eq_ignore_ascii_case(b"identity"))
}

/// Whether an answer is a stream of events.
#[must_use]
pub fn is_stream(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("text/event-stream")
}

/// A header's only value; an error where there are several, or it is no short text.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, ()> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let text = value.to_str().map_err(|_| ())?.trim();
    if values.next().is_some() || text.len() > REPORT_BYTES_MAX { Err(()) } else { Ok(Some(text)) }
}

/// Plain digits; what is more than can be counted is as much as can be counted.
fn whole_number(text: &str) -> Option<u64> {
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| text.parse().unwrap_or(u64::MAX))
}

/// Decimal text in atomic units; what is finer than the asset is cut off, which is never more than was reported.
fn charge(asset: &Asset, text: &str) -> Option<Amount> {
    match asset.parse_decimal(text) {
        Ok(amount) => Some(amount),
        // More than any amount is above every price.
        Err(AmountError::TooLarge) => Some(Amount::new(u128::MAX)),
        Err(AmountError::TooFine) => {
            let (whole, fraction) = text.split_once('.')?;
            let kept = fraction.get(..usize::from(asset.decimals))?;
            let coarse = if kept.is_empty() { whole.to_owned() } else { format!("{whole}.{kept}") };
            charge(asset, &coarse)
        }
        Err(AmountError::NotDigits) => None,
    }
}

#[cfg(test)]
mod tests;
