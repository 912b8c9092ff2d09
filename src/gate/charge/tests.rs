//! Every report, and that none overcharges.

use http::HeaderValue;
use proptest::prelude::*;

use super::*;

const HEADER: HeaderName = HeaderName::from_static("x-usage");
const PRICE: Amount = Amount::new(10_000);

fn usdc() -> Asset {
    Asset { address: "x".into(), symbol: "USDC".into(), decimals: 6 }
}

fn headers(values: &[&[u8]]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for value in values {
        headers.append(HEADER, HeaderValue::from_bytes(value).unwrap());
    }
    headers
}

fn decided(meter: &Meter, answered: &Answered<'_>) -> Charge {
    decide("/x", Some(meter), answered, &usdc(), PRICE)
}

fn take(units: u128) -> Charge {
    Charge::Take(Amount::new(units))
}

fn price(text: &str) -> UnitPrice {
    UnitPrice::parse(text, 0).unwrap()
}

fn term(count: Count, unit_price: &str) -> Term {
    Term { count, unit_price: price(unit_price) }
}

/// Prompt and completion tokens, at 0.15 and 0.60 dollars a million, and at least 5 units.
fn tokens() -> Meter {
    let json = |pointer: &str| Count::Json(pointer.into());
    let terms =
        vec![term(json("/usage/prompt_tokens"), "0.00000015"), term(json("/usage/completion_tokens"), "0.0000006")];
    Meter { minimum: Amount::new(5), ..Meter::of(Report::Counts(terms)) }
}

#[test]
fn a_charge_is_read_exactly_or_not_at_all() {
    let meter = Meter::charge(HEADER);
    let charge = |values: &[&[u8]]| decided(&meter, &Answered::head(&headers(values)));
    for (report, expected) in [
        ("0.0042", 4_200),
        ("0.01", 10_000),
        (" 0.0042 ", 4_200),
        ("0", 0),
        ("0.00420099", 4_200),
        ("0.0000009", 0),
        ("0.010001", 10_000),
        ("5", 10_000),
        ("99999999999999999999999999999999999999999999", 10_000),
        ("", 0),
        ("-0.001", 0),
        ("1e-3", 0),
        ("0,01", 0),
        ("$0.01", 0),
        ("0.001 USDC", 0),
        ("NaN", 0),
        ("00000000000000000000000000000000000000000000000000000000000000.001", 0),
    ] {
        assert_eq!(charge(&[report.as_bytes()]), take(expected), "{report:?}");
    }
    assert_eq!(charge(&[]), take(10_000), "no report charges the whole price");
    assert_eq!(charge(&[b"0.001", b"0.001"]), take(0), "two reports are none");
    assert_eq!(charge(&[b"\xff"]), take(0));
    let empty = HeaderMap::new();
    assert_eq!(decide("/x", None, &Answered::head(&empty), &usdc(), PRICE), Charge::Take(PRICE));
}

#[test]
fn a_count_is_a_whole_number() {
    let meter = Meter::of(Report::Counts(vec![term(Count::Header(HEADER), "0.0000025")]));
    for (report, expected) in
        [("0", 0), ("1", 2), ("2", 5), (" 400 ", 1_000), ("99999999999999999999999999", 10_000), ("007", 17)]
    {
        assert_eq!(decided(&meter, &Answered::head(&headers(&[report.as_bytes()]))), take(expected), "{report}");
    }
    for report in ["", "1.5", "-1", "1e3", "0x10", "12 tokens"] {
        assert_eq!(decided(&meter, &Answered::head(&headers(&[report.as_bytes()]))), take(0), "{report}");
    }
}

#[test]
fn tokens_are_charged_by_their_kind() {
    let meter = tokens();
    let empty = HeaderMap::new();
    let charge = |body: &str| decided(&meter, &Answered::whole(&empty, body.as_bytes()));
    // 1000 * 0.15 + 500 * 0.6 units.
    assert_eq!(charge(r#"{"usage":{"prompt_tokens":1000,"completion_tokens":500}}"#), take(450));
    // 1 * 0.15 + 1 * 0.6 = 0.75 units, which is nothing, and the minimum is 5.
    assert_eq!(charge(r#"{"usage":{"prompt_tokens":1,"completion_tokens":1}}"#), take(5));
    assert_eq!(charge(r#"{"usage":{"prompt_tokens":100000000,"completion_tokens":0}}"#), take(10_000));
    assert_eq!(charge(r#"{"usage":{"prompt_tokens":1000}}"#), take(10_000), "one that is missing is none");
    assert_eq!(charge(r#"{"usage":{"prompt_tokens":1000,"completion_tokens":"x"}}"#), take(0));
    assert_eq!(charge(r#"{"usage":{"completion_tokens":-1}}"#), take(0), "unreadable before missing");
    assert_eq!(decided(&meter, &Answered::head(&empty)), take(10_000), "a body that was not read is missing");

    let mut stream = HeaderMap::new();
    stream.insert(CONTENT_TYPE, HeaderValue::from_static("Text/Event-Stream; charset=utf-8"));
    let body = b"data: {\"usage\":null}\n\ndata: {\"usage\":{\"prompt_tokens\":1000,\"completion_tokens\":500}}\n\ndata: [DONE]\n\n";
    assert_eq!(decided(&meter, &Answered::whole(&stream, body)), take(450));
    let mut packed = HeaderMap::new();
    packed.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    let body = br#"{"usage":{"prompt_tokens":1000,"completion_tokens":500}}"#;
    assert_eq!(decided(&meter, &Answered::whole(&packed, body)), take(10_000), "what is compressed is not read");
}

#[test]
fn bytes_are_charged_where_their_number_is_known() {
    let meter = Meter::of(Report::Counts(vec![term(Count::ResponseBytes, "0.000001")]));
    let empty = HeaderMap::new();
    assert_eq!(decided(&meter, &Answered::whole(&empty, b"12345")), take(5));
    assert_eq!(decided(&meter, &Answered { body_bytes: Some(700), ..Answered::head(&empty) }), take(700));
    assert_eq!(decided(&meter, &Answered::head(&empty)), take(10_000));
    assert!(meter.needs_body(false) && !meter.needs_body(true) && !meter.reads_json());
    assert!(tokens().needs_body(true) && tokens().reads_json());
    assert!(!Meter::charge(HEADER).needs_body(false));
}

#[test]
fn the_rule_says_what_a_missing_or_unreadable_report_costs() {
    let empty = HeaderMap::new();
    for (missing, expected) in [
        (Missing::ChargeMaximum, Charge::Take(PRICE)),
        (Missing::ChargeMinimum, take(5)),
        (Missing::ChargeNothing, take(0)),
        (Missing::Refuse, Charge::Refuse),
    ] {
        let meter = Meter { missing: Some(missing), ..tokens() };
        for body in ["", r#"{"usage":{}}"#, r#"{"usage":{"prompt_tokens":"x","completion_tokens":1}}"#] {
            assert_eq!(decided(&meter, &Answered::whole(&empty, body.as_bytes())), expected, "{missing:?}: {body}");
        }
        let report = br#"{"usage":{"prompt_tokens":1000,"completion_tokens":500}}"#;
        assert_eq!(decided(&meter, &Answered::whole(&empty, report)), take(450), "a usable report needs no rule");
    }
}

/// A body that may hold a report.
fn bodies() -> impl Strategy<Value = Vec<u8>> {
    let value = prop_oneof![
        any::<u64>().prop_map(|count| count.to_string()),
        Just("null".to_owned()),
        Just("-1".to_owned()),
        Just("\"7\"".to_owned()),
    ];
    let report = (value.clone(), value).prop_map(|(prompt, completion)| {
        format!(r#"{{"usage":{{"prompt_tokens":{prompt},"completion_tokens":{completion}}}}}"#).into_bytes()
    });
    prop_oneof![report, proptest::collection::vec(any::<u8>(), 0..40)]
}

fn missing() -> impl Strategy<Value = Option<Missing>> {
    proptest::sample::select(vec![
        None,
        Some(Missing::ChargeMaximum),
        Some(Missing::ChargeMinimum),
        Some(Missing::ChargeNothing),
        Some(Missing::Refuse),
    ])
}

proptest! {
    #[test]
    fn no_report_overcharges(
        report in proptest::collection::vec(any::<u8>(), 0..40),
        body in bodies(),
        price in any::<u64>(),
        minimum in any::<u64>(),
        missing in missing(),
    ) {
        let mut headers = HeaderMap::new();
        if let Ok(value) = HeaderValue::from_bytes(&report) {
            headers.insert(HEADER, value);
        }
        let price = Amount::from(price);
        let reports = [
            Report::Charge(HEADER),
            Report::Counts(vec![term(Count::Header(HEADER), "0.5"), term(Count::ResponseBytes, "3")]),
            tokens().report,
        ];
        for report in reports {
            let meter = Meter { minimum: minimum.into(), missing, ..Meter::of(report) };
            for answered in [Answered::head(&headers), Answered::whole(&headers, &body)] {
                match decide("/x", Some(&meter), &answered, &usdc(), price) {
                    Charge::Take(charge) => prop_assert!(charge <= price),
                    Charge::Refuse => prop_assert_eq!(missing, Some(Missing::Refuse)),
                }
            }
        }
    }

    #[test]
    fn more_never_costs_less(low in any::<u64>(), more in any::<u64>(), other in any::<u64>(), minimum in 0_u64..20_000) {
        let meter = Meter { minimum: minimum.into(), ..tokens() };
        let empty = HeaderMap::new();
        let charge = |prompt: u64| {
            let body = format!(r#"{{"usage":{{"prompt_tokens":{prompt},"completion_tokens":{other}}}}}"#);
            match decided(&meter, &Answered::whole(&empty, body.as_bytes())) {
                Charge::Take(charge) => charge,
                Charge::Refuse => panic!("a usable report is refused"),
            }
        };
        prop_assert!(charge(low) <= charge(low.saturating_add(more)));
    }

    #[test]
    fn a_plain_charge_is_taken_as_it_stands(units in any::<u64>(), price in any::<u64>()) {
        let mut headers = HeaderMap::new();
        headers.insert(HEADER, usdc().format_decimal(units.into()).parse().unwrap());
        let charged = decide("/x", Some(&Meter::charge(HEADER)), &Answered::head(&headers), &usdc(), price.into());
        prop_assert_eq!(charged, Charge::Take(Amount::from(units.min(price))));
    }
}
