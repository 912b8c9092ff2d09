//! Money: integers in atomic units, checked arithmetic, and their decimal text.
//!
//! Owns [`Amount`] (a count of an asset's atomic units), [`Asset`] (what is counted) and [`Price`] (both together).
//! Nothing here touches a float, and no operation wraps: what would overflow answers `None` and the caller decides.
//! Atomic amounts travel as decimal strings (x402 v2, section 5.1.2).

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The most digits that are read of an amount's decimal text: enough for any `u128`.
pub const AMOUNT_DIGITS_MAX: usize = 39;

/// A count of atomic units of one asset. Which asset is known by whoever holds the amount.
///
/// Aligned to 8 bytes, where a bare `u128` wants 16: the ledger holds several for each of very many channels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(Rust, packed(8))]
pub struct Amount(u128);

impl Amount {
    /// Nothing.
    pub const ZERO: Self = Self(0);

    /// An amount of `units` atomic units.
    #[must_use]
    pub const fn new(units: u128) -> Self {
        Self(units)
    }

    /// The number of atomic units.
    #[must_use]
    pub const fn get(self) -> u128 {
        self.0
    }

    /// The amount as the `u64` that Solana's programs count in, or `None` where it does not fit.
    #[must_use]
    pub fn to_u64(self) -> Option<u64> {
        u64::try_from(self.0).ok()
    }

    /// Whether this is nothing.
    #[must_use]
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// The sum, or `None` on overflow.
    #[must_use]
    pub const fn checked_add(self, other: Self) -> Option<Self> {
        match self.0.checked_add(other.0) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }

    /// The difference, or `None` where `other` is greater.
    #[must_use]
    pub const fn checked_sub(self, other: Self) -> Option<Self> {
        match self.0.checked_sub(other.0) {
            Some(difference) => Some(Self(difference)),
            None => None,
        }
    }

    /// The difference, or nothing where `other` is greater.
    #[must_use]
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// The sum, or the greatest amount where it does not fit. For totals that are shown, never for balances.
    #[must_use]
    pub const fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl From<u64> for Amount {
    fn from(units: u64) -> Self {
        Self(u128::from(units))
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

/// Why a text is not an amount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AmountError {
    /// Empty, signed, fractional or otherwise not plain digits.
    #[error("not a whole number of atomic units written in plain digits")]
    NotDigits,
    /// More than a `u128` holds, or more digits than [`AMOUNT_DIGITS_MAX`].
    #[error("greater than any amount")]
    TooLarge,
    /// A decimal with more fractional digits than the asset has.
    #[error("finer than the asset's smallest unit")]
    TooFine,
}

impl FromStr for Amount {
    type Err = AmountError;

    /// Plain decimal digits only: no sign, no spaces, no leading zero but in `"0"` itself.
    fn from_str(text: &str) -> Result<Self, AmountError> {
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) || (text.len() > 1 && text.starts_with('0')) {
            return Err(AmountError::NotDigits);
        }
        if text.len() > AMOUNT_DIGITS_MAX {
            return Err(AmountError::TooLarge);
        }
        text.parse().map(Self).map_err(|_| AmountError::TooLarge)
    }
}

impl Serialize for Amount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.get())
    }
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// What an amount counts: a token on a network.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Asset {
    /// The token's address in its network's own text form.
    pub address: Arc<str>,
    /// The symbol that people read, such as `USDC`.
    pub symbol: Arc<str>,
    /// How many decimal digits one whole token has.
    pub decimals: u8,
}

impl Asset {
    /// Atomic units of a decimal text such as `0.001`. Exact: what the asset cannot hold is an error, never rounded.
    ///
    /// # Errors
    /// [`AmountError`] where the text is not a plain decimal, is too fine or too large.
    pub fn parse_decimal(&self, text: &str) -> Result<Amount, AmountError> {
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
        if whole.is_empty() || !digits(whole) || !digits(fraction) || (text.contains('.') && fraction.is_empty()) {
            return Err(AmountError::NotDigits);
        }
        let fraction = fraction.trim_end_matches('0');
        let missing = usize::from(self.decimals).checked_sub(fraction.len()).ok_or(AmountError::TooFine)?;
        let text = format!("{}{fraction}{}", whole.trim_start_matches('0'), "0".repeat(missing));
        let text = text.trim_start_matches('0');
        if text.is_empty() { Ok(Amount::ZERO) } else { text.parse() }
    }

    /// The decimal text of an amount, with as many fractional digits as it needs: `1000` units of six decimals are
    /// `0.001`.
    #[must_use]
    pub fn format_decimal(&self, amount: Amount) -> String {
        let places = usize::from(self.decimals);
        let digits = format!("{:0>width$}", amount.get(), width = places.saturating_add(1));
        let (whole, fraction) = digits.split_at(digits.len().saturating_sub(places));
        match fraction.trim_end_matches('0') {
            "" => whole.to_owned(),
            fraction => format!("{whole}.{fraction}"),
        }
    }
}

/// An amount together with what it counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Price {
    /// How much.
    pub amount: Amount,
    /// Of what.
    pub asset: Arc<Asset>,
}

impl fmt::Display for Price {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.asset.format_decimal(self.amount), self.asset.symbol)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn usdc() -> Asset {
        Asset { address: "x".into(), symbol: "USDC".into(), decimals: 6 }
    }

    #[test]
    fn decimal_text_is_exact() {
        let asset = usdc();
        assert_eq!(asset.parse_decimal("0.001"), Ok(Amount::new(1000)));
        assert_eq!(asset.parse_decimal("12"), Ok(Amount::new(12_000_000)));
        assert_eq!(asset.parse_decimal("0"), Ok(Amount::ZERO));
        assert_eq!(asset.parse_decimal("0.0000010"), Ok(Amount::new(1)));
        assert_eq!(asset.parse_decimal("0.0000001"), Err(AmountError::TooFine));
        for bad in ["", ".", "1.", ".5", "-1", "+1", "1e3", "1,0", " 1", "0x1"] {
            assert_eq!(asset.parse_decimal(bad), Err(AmountError::NotDigits), "{bad:?}");
        }
    }

    #[test]
    fn atomic_text_is_plain_digits() {
        assert_eq!("340282366920938463463374607431768211455".parse(), Ok(Amount::new(u128::MAX)));
        assert_eq!("340282366920938463463374607431768211456".parse::<Amount>(), Err(AmountError::TooLarge));
        for bad in ["", "01", "-1", "1.0", "1 ", "١"] {
            assert_eq!(bad.parse::<Amount>(), Err(AmountError::NotDigits), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn decimal_round_trip(units in any::<u64>()) {
            let asset = usdc();
            let amount = Amount::from(units);
            prop_assert_eq!(asset.parse_decimal(&asset.format_decimal(amount)), Ok(amount));
        }
    }
}
