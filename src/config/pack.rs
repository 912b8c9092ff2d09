//! `pack`: several calls of a route for one price.
//!
//! ```yaml
//! pack: { calls: 50, price: "$0.04" }                # good for 30 days
//! pack: { calls: 1000, price: "$0.60", expires: 7d }
//! ```
//!
//! Refuses what could never be bought, or not be told from a single call; and a pack on a route that cannot have one,
//! which is every route where nothing is paid by `batch-settlement` at a fixed price.

use std::time::Duration;

use super::reader::{Complaint, Map, Value};
use super::route::{NetworkPrice, PackConfig, RoutePricing};
use super::routes::Surroundings;
use super::server::or;
use super::{NetworkConfig, Scheme};
use crate::amount::Amount;

/// The fewest calls that are more than one.
const CALLS_MIN: u32 = 2;
/// The most calls of a pack.
const CALLS_MAX: u32 = 1_000_000;
/// How long a pack is good for where nothing is said.
const EXPIRES: Duration = Duration::from_secs(30 * 24 * 3600);
const EXPIRES_MIN: Duration = Duration::from_secs(60);
const EXPIRES_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

/// Reads `pack` in a route; `Some(None)` where there is none.
pub(super) fn read(
    map: &mut Map<'_, '_>,
    pricing: Option<&RoutePricing>,
    around: &Surroundings<'_>,
) -> Option<Option<PackConfig>> {
    let singles = match pricing {
        Some(RoutePricing::Fixed(prices)) => prices.as_slice(),
        Some(RoutePricing::Free) => {
            map.inert("pack", "on a free route", "Leave it out, or give the route a price.");
            return Some(None);
        }
        Some(RoutePricing::Metered { .. }) => {
            let why = "on a route without a fixed price: each call costs something else";
            map.inert("pack", why, "Leave it out, or leave metering out.");
            return Some(None);
        }
        // What is wrong there is told already.
        None => {
            map.take("pack");
            return Some(None);
        }
    };
    let singles: Vec<_> = singles.iter().filter(|price| price.scheme == Scheme::BatchSettlement).collect();
    if singles.is_empty() {
        let why = "where nothing is paid by batch-settlement: a pack is charged together with its pass, from a balance";
        map.inert("pack", why, "Leave it out, or write batch-settlement in schemes.");
        return Some(None);
    }
    let Some(value) = map.take("pack") else { return (!map.has("pack")).then_some(None) };
    let want = "a mapping such as {calls: 50, price: \"$0.04\"}";
    value.map(want, |map| pack(map, &singles, around)).flatten().map(Some)
}

fn pack(map: &mut Map<'_, '_>, singles: &[&NetworkPrice], around: &Surroundings<'_>) -> Option<PackConfig> {
    let calls = map.require("calls", "Write how many calls it holds, such as 50.");
    let calls = calls.and_then(|value| value.number(CALLS_MIN, CALLS_MAX));
    let lifetime = or(map.take("expires"), EXPIRES, |value| value.duration(EXPIRES_MIN, EXPIRES_MAX));
    let price = map.require("price", "Write what all its calls cost together, such as \"$0.04\".")?;
    let amounts = around.assets.price(&price);
    let (calls, lifetime, amounts) = (calls?, lifetime?, amounts?);
    let prices = singles.iter().map(|single| of_network(&price, single, calls, &amounts, around));
    let prices: Vec<_> = prices.collect::<Option<_>>()?;
    let saves = |(single, pack): (&&NetworkPrice, &NetworkPrice)| pack.amount < of_all(single, calls);
    if !singles.iter().zip(&prices).all(saves) {
        price.warn(format!("is as much as {calls} single calls, so a pack saves nothing."), "Lower it.");
    }
    Some(PackConfig { calls, lifetime, prices })
}

/// The pack's price on one network, checked against that of one call there.
fn of_network(
    price: &Value<'_, '_>,
    single: &NetworkPrice,
    calls: u32,
    amounts: &[(&NetworkConfig, Amount)],
    around: &Surroundings<'_>,
) -> Option<NetworkPrice> {
    let here = amounts.iter().find(|(network, _)| network.network == single.network);
    let Some((_, amount)) = here.copied() else {
        price.reject(Complaint::new("is not in the currency of the route's price", "Write both in the same currency."));
        return None;
    };
    let one = around.assets.show(single.amount);
    if amount <= single.amount {
        let what = format!("is not above the price of one call ({one}), so a payment could mean either");
        price.reject(Complaint::new(what, format!("Write more than {one}.")));
        return None;
    }
    let all = of_all(single, calls);
    if amount > all {
        let all = around.assets.show(all);
        let what = format!("is above the price of {calls} single calls ({all}), so nobody would buy it");
        price.reject(Complaint::new(what, "Write less."));
        return None;
    }
    let limits =
        [("signer.deposit_max", around.deposit_max), ("settlement.channel_exposure_max", around.channel_exposure_max)];
    for (name, limit) in limits {
        if let Some(limit) = limit.filter(|limit| amount > *limit) {
            let what = format!("is above {name} ({}), so it could never be paid", around.assets.show(limit));
            price.reject(Complaint::new(what, "Lower the price, or raise the limit."));
            return None;
        }
    }
    let min_deposit = single.min_deposit.map(|deposit| deposit.max(amount));
    Some(NetworkPrice { amount, min_deposit, ..single.clone() })
}

/// What so many single calls cost; more than can be counted is as much as can be.
fn of_all(single: &NetworkPrice, calls: u32) -> Amount {
    Amount::new(single.amount.get().saturating_mul(u128::from(calls)))
}
