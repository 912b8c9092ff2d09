//! Prices and limits: `$0.001`, `0.001 USDC` or `1000 USDC-atomic` to atomic units. Never a float, never rounded.
//!
//! A dollar is one token of a dollar stablecoin ([`DOLLAR_SYMBOLS`]). A price counts on every network whose asset it
//! names. Limits are single numbers that hold over all networks, so all assets of one file must count alike.

use super::reader::{Complaint, Map, Value};
use super::{Family, NetworkConfig};
use crate::amount::{Amount, AmountError, Asset};
use crate::gate::charge::{DIGITS_MAX, SCALE_MAX, UnitPrice, UnitPriceError};

/// The symbols of tokens that count as dollars.
pub(super) const DOLLAR_SYMBOLS: [&str; 11] =
    ["USDC", "USDT", "PYUSD", "USDG", "USDS", "USDC.e", "USDT0", "USAT", "MegaUSD", "mUSD", "SBC"];

/// Whether an asset's whole token counts as one dollar.
pub(super) fn is_dollar(asset: &Asset) -> bool {
    DOLLAR_SYMBOLS.contains(&asset.symbol.as_ref())
}

/// A text that names a number and what it counts.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Money<'t> {
    Dollars(&'t str),
    Whole(&'t str, &'t str),
    Atomic(&'t str, &'t str),
}

const EXAMPLE: &str = "Write \"$0.001\", \"0.001 USDC\" or \"1000 USDC-atomic\".";

/// Takes a text apart. `asset` serves the suggestion.
fn parse<'t>(text: &'t str, asset: &Asset) -> Result<Money<'t>, Complaint> {
    let decimal =
        |text: &str| text.bytes().any(|b| b.is_ascii_digit()) && text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    if let Some(dollars) = text.strip_prefix('$') {
        return if decimal(dollars) {
            Ok(Money::Dollars(dollars))
        } else {
            Err(Complaint::new("is not a price", EXAMPLE))
        };
    }
    if decimal(text) {
        let complaint = Complaint::new("names no currency", EXAMPLE);
        return Err(match asset.parse_decimal(text) {
            Ok(amount) if is_dollar(asset) => {
                complaint.suggest(format!("Write \"${text}\" or \"{amount} {}-atomic\".", asset.symbol))
            }
            Ok(amount) => complaint.suggest(format!("Write \"{text} {0}\" or \"{amount} {0}-atomic\".", asset.symbol)),
            Err(_) => complaint,
        });
    }
    match text.split_once(' ') {
        Some((number, unit)) if decimal(number) && !unit.is_empty() && !unit.contains(' ') => {
            Ok(match unit.strip_suffix("-atomic") {
                Some(symbol) => Money::Atomic(number, symbol),
                None => Money::Whole(number, unit),
            })
        }
        _ => Err(Complaint::new("is not a price", EXAMPLE)),
    }
}

impl Money<'_> {
    /// Whether it counts this asset.
    fn counts(&self, asset: &Asset) -> bool {
        match self {
            Self::Dollars(_) => is_dollar(asset),
            Self::Whole(_, symbol) | Self::Atomic(_, symbol) => asset.symbol.as_ref() == *symbol,
        }
    }

    /// In this asset's atomic units.
    fn amount(&self, asset: &Asset) -> Result<Amount, Complaint> {
        let amount = match self {
            Self::Dollars(number) | Self::Whole(number, _) => asset.parse_decimal(number),
            Self::Atomic(number, _) => number.parse(),
        };
        amount.map_err(|why| match why {
            AmountError::NotDigits => Complaint::new("is not a plain number of its currency", EXAMPLE),
            AmountError::TooLarge => Complaint::new("is more than can be counted", "Write less."),
            AmountError::TooFine => Complaint::new(
                format!("is finer than the smallest unit of {}", asset.symbol),
                format!("Write at most {} digits after the point.", asset.decimals),
            ),
        })
    }
}

/// An amount above zero of this asset.
pub(super) fn in_asset(value: &Value<'_, '_>, asset: &Asset) -> Option<Amount> {
    value.parse("an amount such as \"$3000\"", |text| {
        let money = parse(text, asset)?;
        if !money.counts(asset) {
            let symbol = &asset.symbol;
            let remedy = format!("Write it in {symbol}, such as \"3000 {symbol}\".");
            return Err(Complaint::new("is not in the token that is paid with here", remedy));
        }
        let amount = money.amount(asset)?;
        if amount.is_zero() { Err(nothing()) } else { Ok(amount) }
    })
}

fn nothing() -> Complaint {
    Complaint::new("is nothing", "Write an amount above zero.")
}

/// The assets that a file's money counts.
pub(super) struct Assets<'a> {
    networks: &'a [NetworkConfig],
}

impl<'a> Assets<'a> {
    /// Of these networks; there is at least one.
    pub(super) const fn of(networks: &'a [NetworkConfig]) -> Self {
        Self { networks }
    }

    fn first(&self) -> Option<&Asset> {
        self.networks.first().map(|network| network.asset.as_ref())
    }

    /// Whether money counts alike on all networks, so that one number can limit their sum.
    pub(super) fn alike(&self) -> bool {
        let Some(first) = self.first() else { return true };
        self.networks.iter().all(|network| {
            let asset = network.asset.as_ref();
            let same_unit = asset.symbol == first.symbol || (is_dollar(asset) && is_dollar(first));
            same_unit && asset.decimals == first.decimals
        })
    }

    /// A price above zero on every network whose asset it names.
    pub(super) fn price(&self, value: &Value<'_, '_>) -> Option<Vec<(&'a NetworkConfig, Amount)>> {
        let first = self.first()?;
        let text = value.text("a price such as \"$0.001\"")?;
        let read = || -> Result<Vec<(&'a NetworkConfig, Amount)>, Complaint> {
            let money = parse(&text, first)?;
            let counted: Vec<_> = self.networks.iter().filter(|network| money.counts(&network.asset)).collect();
            if counted.is_empty() {
                return Err(self.not_taken());
            }
            let on = |network: &'a NetworkConfig| Ok((network, fits(network, money.amount(&network.asset)?)?));
            counted.into_iter().map(on).collect()
        };
        let amounts = read().map_err(|complaint| value.reject(complaint)).ok()?;
        if amounts.iter().any(|(_, amount)| amount.is_zero()) {
            value.reject(nothing());
            return None;
        }
        Some(amounts)
    }

    /// The complaint about a currency that no network takes.
    fn not_taken(&self) -> Complaint {
        let mut symbols: Vec<&str> = self.networks.iter().map(|network| network.asset.symbol.as_ref()).collect();
        symbols.dedup();
        let symbol = symbols.first().copied().unwrap_or("USDC");
        Complaint::new(
            "is in a currency that no network of this file takes",
            format!("Taken here: {}. Write for example \"0.001 {symbol}\".", symbols.join(", ")),
        )
    }

    /// The price of one of something, or of `10^scale`, in the assets that a price counts. It may be finer than they
    /// are, and nothing.
    pub(super) fn unit_price(
        &self,
        value: &Value<'_, '_>,
        scale: u8,
        priced: &[(&NetworkConfig, Amount)],
    ) -> Option<UnitPrice> {
        let first = self.first()?;
        value.parse("a price such as \"$0.0000025\"", |text| {
            let money = parse(text, first)?;
            if !priced.iter().all(|(network, _)| money.counts(&network.asset)) {
                return Err(Complaint::new("is not in the currency of the price", "Write both in the same currency."));
            }
            let (number, scale) = match money {
                Money::Dollars(number) | Money::Whole(number, _) => (number, scale),
                Money::Atomic(number, _) => (number, scale.saturating_add(first.decimals)),
            };
            UnitPrice::parse(number, scale).map_err(|why| match why {
                UnitPriceError::NotDecimal => Complaint::new("is not a plain number of its currency", EXAMPLE),
                UnitPriceError::TooManyDigits => {
                    Complaint::new(format!("has more than {DIGITS_MAX} digits"), "Write a rounder price.")
                }
                UnitPriceError::TooFine => Complaint::new(
                    format!("has more than {SCALE_MAX} digits after the point"),
                    "Write a rounder price.",
                ),
            })
        })
    }

    /// A limit above zero; one number for all networks.
    pub(super) fn limit(&self, value: &Value<'_, '_>) -> Option<Amount> {
        self.price(value)?.first().map(|(_, amount)| *amount)
    }

    /// A limit that has a default where the asset is a dollar, and must be written otherwise.
    pub(super) fn limit_or(&self, map: &mut Map<'_, '_>, key: &'static str, default: Option<Amount>) -> Option<Amount> {
        let value = match default {
            Some(_) => map.take(key),
            None => map.require(key, "The asset is no dollar, so there is no default: write an amount."),
        };
        value.map_or(default, |value| self.limit(&value))
    }

    /// A number of dollar cents as a default, or `None` where the asset is no dollar.
    pub(super) fn cents(&self, cents: u64) -> Option<Amount> {
        let asset = self.first().filter(|asset| is_dollar(asset))?;
        let whole = cents.checked_div(100)?;
        let rest = cents.checked_rem(100)?;
        asset.parse_decimal(&format!("{whole}.{rest:02}")).ok()
    }

    /// An amount for people: `$0.001` or `0.001 EURC`.
    pub(super) fn show(&self, amount: Amount) -> String {
        self.first().map_or_else(|| amount.to_string(), |asset| show(asset, amount))
    }
}

/// Passes an amount that a network's tokens can count.
fn fits(network: &NetworkConfig, amount: Amount) -> Result<Amount, Complaint> {
    match network.family {
        Family::Svm(_) if amount.to_u64().is_none() => {
            Err(Complaint::new("is more than a Solana token can count", "Write less."))
        }
        Family::Svm(_) | Family::Evm(_) => Ok(amount),
    }
}

/// An amount for people: `$0.001` or `0.001 EURC`.
pub(super) fn show(asset: &Asset, amount: Amount) -> String {
    let number = asset.format_decimal(amount);
    if is_dollar(asset) { format!("${number}") } else { format!("{number} {}", asset.symbol) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn asset(symbol: &str, decimals: u8) -> Asset {
        Asset { address: "mint".into(), symbol: symbol.into(), decimals }
    }

    fn units(text: &str, asset: &Asset) -> Option<u128> {
        let money = parse(text, asset).ok()?;
        money.counts(asset).then(|| money.amount(asset).ok().map(Amount::get)).flatten()
    }

    #[test]
    fn the_three_spellings() {
        let usdc = asset("USDC", 6);
        for text in ["$0.001", "0.001 USDC", "1000 USDC-atomic"] {
            assert_eq!(units(text, &usdc), Some(1000), "{text}");
        }
        assert_eq!(units("$18446744073709.551615", &usdc), Some(u128::from(u64::MAX)));
        for text in [
            "",
            "$",
            "$ 1",
            "1",
            "0.001",
            "$1.0000001",
            "$1e3",
            "$-1",
            "1 EURC",
            "1.5 USDC-atomic",
            "1  USDC",
            "1 US DC",
            "$1.2.3",
            "$1.",
        ] {
            assert_eq!(units(text, &usdc), None, "{text}");
        }
        let bonk = asset("BONK", 5);
        assert_eq!(units("2 BONK", &bonk), Some(200_000));
        assert_eq!(units("$2", &bonk), None);
    }

    #[test]
    fn a_bare_number_is_told_both_spellings() {
        let suggestion = |asset| parse("0.001", &asset).unwrap_err().suggestion.unwrap();
        assert_eq!(suggestion(asset("USDC", 6)), "Write \"$0.001\" or \"1000 USDC-atomic\".");
        assert_eq!(suggestion(asset("BONK", 5)), "Write \"0.001 BONK\" or \"100 BONK-atomic\".");
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_back(amount in 1_u64.., decimals in 0_u8..=18, dollar in any::<bool>()) {
            let asset = asset(if dollar { "USDC" } else { "BONK" }, decimals);
            prop_assert_eq!(units(&show(&asset, Amount::from(amount)), &asset), Some(u128::from(amount)));
        }

        #[test]
        fn no_text_panics(text in "[$ 0-9.a-zA-Z-]{0,50}", decimals in 0_u8..=255) {
            let _ = units(&text, &asset("USDC", decimals));
        }
    }
}
