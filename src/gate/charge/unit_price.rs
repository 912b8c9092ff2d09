//! What one of something costs, finer than any token can be paid in: exact fractions until the very end.
//!
//! A unit price is a decimal of whole tokens. Counts times their unit prices are added up as fractions over one power of
//! ten and rounded down once, to the atomic unit of the total: never more than the exact sum, and less by less than one
//! unit. No overflow can be charged wrongly: a total that no amount holds is more than any amount, and said to be so.

use crate::amount::{Amount, Asset};

/// The most digits that a unit price may have, without zeros in front: any count of them fits 128 bits.
pub const DIGITS_MAX: usize = 18;
/// The most digits after the point.
pub const SCALE_MAX: u8 = 36;
/// The most terms of one total.
pub const TERMS_MAX: usize = 16;

/// A price for one: `digits / 10^scale` whole tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnitPrice {
    digits: u64,
    scale: u8,
}

/// Why a text is not a unit price.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitPriceError {
    /// No plain decimal.
    #[error("not a plain decimal")]
    NotDecimal,
    /// More than [`DIGITS_MAX`] digits.
    #[error("more digits than can be counted with")]
    TooManyDigits,
    /// More than [`SCALE_MAX`] digits after the point.
    #[error("finer than can be counted with")]
    TooFine,
}

impl UnitPrice {
    /// Reads plain decimal text such as `0.0000025`. `scale` moves the point to the left: 6 for a price of a million.
    ///
    /// # Errors
    /// [`UnitPriceError`].
    pub fn parse(text: &str, scale: u8) -> Result<Self, UnitPriceError> {
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || !digits(whole) || !digits(fraction) || (text.contains('.') && fraction.is_empty()) {
            return Err(UnitPriceError::NotDecimal);
        }
        let fraction = fraction.trim_end_matches('0');
        let significant = format!("{whole}{fraction}");
        let significant = significant.trim_start_matches('0');
        if significant.len() > DIGITS_MAX {
            return Err(UnitPriceError::TooManyDigits);
        }
        let places = u8::try_from(fraction.len()).ok().and_then(|places| places.checked_add(scale));
        let scale = places.filter(|scale| *scale <= SCALE_MAX).ok_or(UnitPriceError::TooFine)?;
        let digits = if significant.is_empty() { Ok(0) } else { significant.parse() };
        Ok(Self { digits: digits.map_err(|_| UnitPriceError::TooManyDigits)?, scale })
    }

    /// Whether it is nothing.
    #[must_use]
    pub const fn is_zero(self) -> bool {
        self.digits == 0
    }
}

/// The sum of counts times their prices in an asset's atomic units, rounded down. More than an amount holds, or more
/// than [`TERMS_MAX`] terms, is the greatest amount.
pub(super) fn total(terms: &[(u64, UnitPrice)], asset: &Asset) -> Amount {
    let most = Amount::new(u128::MAX);
    if terms.len() > TERMS_MAX {
        return most;
    }
    checked_total(terms, asset).map_or(most, Amount::new)
}

/// Whole units and the fractions of one, apart: 16 fractions over 10^36 fit 128 bits, so only the whole can overflow,
/// and then it is more than any amount.
fn checked_total(terms: &[(u64, UnitPrice)], asset: &Asset) -> Option<u128> {
    let (mut whole, mut parts) = (0_u128, 0_u128);
    for (count, price) in terms {
        let product = u128::from(*count).checked_mul(u128::from(price.digits))?;
        if product == 0 {
            continue;
        }
        match price.scale.checked_sub(asset.decimals) {
            // As fine as the asset, or coarser.
            None | Some(0) => {
                let factor = power(asset.decimals.saturating_sub(price.scale))?;
                whole = whole.checked_add(product.checked_mul(factor)?)?;
            }
            Some(finer) => {
                let denominator = power(finer)?;
                whole = whole.checked_add(product.checked_div(denominator)?)?;
                let part = product.checked_rem(denominator)?;
                parts = parts.checked_add(part.checked_mul(power(SCALE_MAX.checked_sub(finer)?)?)?)?;
            }
        }
    }
    whole.checked_add(parts.checked_div(power(SCALE_MAX)?)?)
}

/// A power of ten; `None` above 10^38, times which anything is more than an amount holds.
fn power(exponent: u8) -> Option<u128> {
    10_u128.checked_pow(u32::from(exponent))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn asset(decimals: u8) -> Asset {
        Asset { address: "x".into(), symbol: "T".into(), decimals }
    }

    /// Decimal digits, lowest first: arithmetic that cannot overflow, to compare with.
    #[derive(Clone, Default)]
    struct Digits(Vec<u32>);

    impl Digits {
        fn of(number: u128) -> Self {
            Self(number.to_string().bytes().rev().map(|digit| u32::from(digit - b'0')).collect())
        }

        fn times(&self, other: &Self) -> Self {
            let mut product = vec![0; self.0.len() + other.0.len() + 1];
            for (i, a) in self.0.iter().enumerate() {
                for (j, b) in other.0.iter().enumerate() {
                    product[i + j] += a * b;
                    if product[i + j] >= 1_000_000 {
                        Self::carry(&mut product);
                    }
                }
            }
            Self::carry(&mut product);
            Self(product)
        }

        fn plus(&self, other: &Self) -> Self {
            let length = self.0.len().max(other.0.len()) + 1;
            let digit = |digits: &Self, i| digits.0.get(i).copied().unwrap_or(0);
            let mut sum: Vec<_> = (0..length).map(|i| digit(self, i) + digit(other, i)).collect();
            Self::carry(&mut sum);
            Self(sum)
        }

        fn carry(digits: &mut Vec<u32>) {
            let mut carry = 0;
            for digit in digits.iter_mut() {
                *digit += carry;
                carry = *digit / 10;
                *digit %= 10;
            }
            while carry > 0 {
                digits.push(carry % 10);
                carry /= 10;
            }
        }

        fn shifted(mut self, places: usize) -> Self {
            self.0.splice(0..0, std::iter::repeat_n(0, places));
            self
        }

        fn without(&self, places: usize) -> Option<u128> {
            let text: String =
                self.0.iter().skip(places).rev().map(|digit| char::from_digit(*digit, 10).unwrap()).collect();
            let text = text.trim_start_matches('0');
            if text.is_empty() { Some(0) } else { text.parse().ok() }
        }
    }

    /// The exact total, by digits: everything over 10^SCALE_MAX, then cut.
    fn exact(terms: &[(u64, UnitPrice)], decimals: u8) -> Option<u128> {
        let mut sum = Digits::default();
        for (count, price) in terms {
            let product = Digits::of((*count).into()).times(&Digits::of(price.digits.into()));
            sum = sum.plus(&product.shifted(usize::from(SCALE_MAX - price.scale) + usize::from(decimals)));
        }
        sum.without(usize::from(SCALE_MAX))
    }

    fn prices() -> impl Strategy<Value = UnitPrice> {
        (0..=10_u64.pow(18) - 1, 0..=SCALE_MAX).prop_map(|(digits, scale)| UnitPrice { digits, scale })
    }

    #[test]
    fn text_is_read_exactly_or_not_at_all() {
        let price = |text| UnitPrice::parse(text, 0).map(|price| (price.digits, price.scale));
        assert_eq!(price("0.0000025"), Ok((25, 7)));
        assert_eq!(price("2.50"), Ok((25, 1)));
        assert_eq!(price("007"), Ok((7, 0)));
        assert_eq!(price("0.0"), Ok((0, 0)));
        assert_eq!(UnitPrice::parse("0.15", 6), Ok(UnitPrice { digits: 15, scale: 8 }));
        for text in ["", ".", "1.", ".5", "-1", "+1", "1e-3", "1,0", " 1", "$1"] {
            assert_eq!(price(text), Err(UnitPriceError::NotDecimal), "{text:?}");
        }
        assert_eq!(price("1234567890123456789"), Err(UnitPriceError::TooManyDigits));
        assert_eq!(price(&format!("0.{}1", "0".repeat(36))), Err(UnitPriceError::TooFine));
        assert_eq!(UnitPrice::parse("0.1", 255), Err(UnitPriceError::TooFine));
    }

    #[test]
    fn only_the_total_is_rounded() {
        // Two thirds of a unit, twice over, are one.
        let price = UnitPrice::parse("0.0000006", 0).unwrap();
        assert_eq!(total(&[(1, price)], &asset(6)), Amount::ZERO);
        assert_eq!(total(&[(1, price), (1, price)], &asset(6)), Amount::new(1));
        assert_eq!(total(&[(1_000, UnitPrice::parse("0.15", 6).unwrap())], &asset(6)), Amount::new(150));
        assert_eq!(
            total(&[(u64::MAX, UnitPrice { digits: 10_u64.pow(18) - 1, scale: 0 })], &asset(18)),
            Amount::new(u128::MAX)
        );
        assert_eq!(total(&[(0, price); TERMS_MAX + 1], &asset(6)), Amount::new(u128::MAX));
        assert_eq!(total(&[], &asset(6)), Amount::ZERO);
    }

    proptest! {
        #[test]
        fn a_total_is_the_exact_one_rounded_down(
            terms in proptest::collection::vec((any::<u64>(), prices()), 0..=TERMS_MAX),
            decimals in 0_u8..=18,
        ) {
            let expected = exact(&terms, decimals).unwrap_or(u128::MAX);
            prop_assert_eq!(total(&terms, &asset(decimals)), Amount::new(expected));
        }

        #[test]
        fn small_totals_are_exact_too(
            terms in proptest::collection::vec((0_u64..100_000, 0_u64..1_000, 4_u8..=12), 1..=TERMS_MAX),
        ) {
            let terms: Vec<_> = terms.into_iter().map(|(count, digits, scale)| (count, UnitPrice { digits, scale })).collect();
            prop_assert_eq!(Some(total(&terms, &asset(6)).get()), exact(&terms, 6));
        }
    }
}
