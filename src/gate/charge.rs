//! What a metered answer costs: the upstream's report, held to what the payer agreed to.
//!
//! No report can overcharge. The route's price is the ceiling that the payer signed, so
//!
//! | report | charge |
//! |---|---|
//! | the route names no header, or the answer does not carry it | the whole price |
//! | plain decimal text of whole tokens, up to the price | as reported, rounded down to the asset's smallest unit |
//! | above the price | the price, and a warning |
//! | several values, or text that is no plain decimal | nothing, and an error in the log: we do not guess |

use http::{HeaderMap, HeaderName};

use crate::amount::{Amount, AmountError, Asset};

/// The longest report that is read.
pub const REPORT_BYTES_MAX: usize = 64;

/// The charge for an answer with these headers.
#[must_use]
pub fn decide(route: &str, header: Option<&HeaderName>, headers: &HeaderMap, asset: &Asset, price: Amount) -> Amount {
    let Some(header) = header else { return price };
    let mut values = headers.get_all(header).iter();
    let Some(value) = values.next() else { return price };
    let single = values.next().is_none();
    let text = value.to_str().ok().map(str::trim).filter(|text| single && text.len() <= REPORT_BYTES_MAX);
    match text.and_then(|text| read(asset, text)) {
        Some(charge) if charge <= price => charge,
        Some(charge) => {
            tracing::warn!(route, %header, %charge, %price, "the upstream reports more than the price; the price is charged");
            price
        }
        None => {
            tracing::error!(
                route, %header, ?value,
                "the upstream's charge is no single decimal such as 0.0042; nothing is charged"
            );
            Amount::ZERO
        }
    }
}

/// Decimal text in atomic units; what is finer than the asset is cut off, which is never more than was reported.
fn read(asset: &Asset, text: &str) -> Option<Amount> {
    match asset.parse_decimal(text) {
        Ok(amount) => Some(amount),
        // More than any amount is above every price.
        Err(AmountError::TooLarge) => Some(Amount::new(u128::MAX)),
        Err(AmountError::TooFine) => {
            let (whole, fraction) = text.split_once('.')?;
            let kept = fraction.get(..usize::from(asset.decimals))?;
            let coarse = if kept.is_empty() { whole.to_owned() } else { format!("{whole}.{kept}") };
            read(asset, &coarse)
        }
        Err(AmountError::NotDigits) => None,
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    const HEADER: HeaderName = HeaderName::from_static("x-usage-cost");

    fn usdc() -> Asset {
        Asset { address: "x".into(), symbol: "USDC".into(), decimals: 6 }
    }

    fn charge(values: &[&str]) -> u128 {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(HEADER, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        decide("/x", Some(&HEADER), &headers, &usdc(), Amount::new(10_000)).get()
    }

    #[test]
    fn a_report_is_read_exactly_or_not_at_all() {
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
            assert_eq!(charge(&[report]), expected, "{report:?}");
        }
        assert_eq!(charge(&[]), 10_000, "no report charges the whole price");
        assert_eq!(charge(&["0.001", "0.001"]), 0, "two reports are none");
        assert_eq!(decide("/x", None, &HeaderMap::new(), &usdc(), Amount::new(7)), Amount::new(7));
    }

    proptest! {
        #[test]
        fn no_report_overcharges(report in proptest::collection::vec(any::<u8>(), 0..40), price in any::<u64>()) {
            let mut headers = HeaderMap::new();
            if let Ok(value) = HeaderValue::from_bytes(&report) {
                headers.insert(HEADER, value);
            }
            let price = Amount::from(price);
            prop_assert!(decide("/x", Some(&HEADER), &headers, &usdc(), price) <= price);
        }

        #[test]
        fn a_plain_report_is_charged_as_it_stands(units in any::<u64>(), price in any::<u64>()) {
            let mut headers = HeaderMap::new();
            headers.insert(HEADER, usdc().format_decimal(units.into()).parse().unwrap());
            let charged = decide("/x", Some(&HEADER), &headers, &usdc(), price.into());
            prop_assert_eq!(charged, Amount::from(units.min(price)));
        }
    }
}
