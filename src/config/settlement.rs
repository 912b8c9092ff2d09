//! Settlement: when charges become money, and how much may be at risk until then.

use std::time::Duration;

use super::SettlementConfig;
use super::money::Assets;
use super::network::Families;
use super::reader::{Complaint, Map};
use super::server::or;
use super::value::show_duration;
use crate::amount::Amount;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
/// Defaults in cents.
const MIN_AMOUNT_CENTS: u64 = 10;
const EXPOSURE_MAX_CENTS: u64 = 10_000;
const CHANNEL_EXPOSURE_MAX_CENTS: u64 = 1_000;

/// How many claims one transaction holds at most on EVM networks.
const CLAIMS_MAX: usize = 100;
/// How many transactions are under way at once on Solana by default.
const BATCHES_IN_FLIGHT: usize = 16;
/// The most that can be asked for.
const BATCHES_IN_FLIGHT_MAX: usize = 64;
/// The highest multiple of a batch's cost that can be asked for.
const MIN_WORTH_MAX: u32 = 1000;

/// What the keys are checked against.
pub(super) struct Around<'a> {
    pub assets: &'a Assets<'a>,
    /// `withdraw_delay`, within which everything must be over.
    pub delay: Duration,
    /// Where the networks are known.
    pub families: Option<Families>,
}

/// Reads `settlement`.
pub(super) fn read(root: &mut Map<'_, '_>, around: &Around<'_>) -> Option<SettlementConfig> {
    if let Some(value) = root.take("settlement") {
        return value.map("a mapping of keys", |map| section(map, around)).flatten();
    }
    let defaults = Defaults::of(around);
    let (Some(exposure_max), Some(channel_exposure_max)) = (defaults.exposure_max, defaults.channel_exposure_max)
    else {
        let remedy = "The asset is no dollar, so there is no default: write exposure_max and channel_exposure_max.";
        let _ = root.require("settlement", remedy);
        return None;
    };
    Some(SettlementConfig {
        interval: defaults.interval,
        min_amount: defaults.min_amount,
        max_age: defaults.max_age,
        exposure_max,
        channel_exposure_max,
        close_margin: defaults.close_margin,
        batch_channels: defaults.batch_channels,
        batches_in_flight: BATCHES_IN_FLIGHT,
        claims_per_batch: defaults.claims_per_batch,
        min_worth: None,
    })
}

struct Defaults {
    interval: Duration,
    min_amount: Amount,
    max_age: Duration,
    exposure_max: Option<Amount>,
    channel_exposure_max: Option<Amount>,
    close_margin: Duration,
    batch_channels: usize,
    claims_per_batch: usize,
}

impl Defaults {
    fn of(around: &Around<'_>) -> Self {
        let (assets, delay) = (around.assets, around.delay);
        let quarter = delay.checked_div(4).unwrap_or(SECOND).min(HOUR);
        Self {
            interval: Duration::from_secs(60),
            min_amount: assets.cents(MIN_AMOUNT_CENTS).unwrap_or(Amount::ZERO),
            max_age: quarter,
            exposure_max: assets.cents(EXPOSURE_MAX_CENTS),
            channel_exposure_max: assets.cents(CHANNEL_EXPOSURE_MAX_CENTS),
            close_margin: quarter,
            batch_channels: 4,
            claims_per_batch: CLAIMS_MAX,
        }
    }
}

fn section(map: &mut Map<'_, '_>, around: &Around<'_>) -> Option<SettlementConfig> {
    let &Around { assets, delay, families, .. } = around;
    let defaults = Defaults::of(around);
    if families.is_some_and(|families| !families.svm) {
        map.inert("batch_channels", "without a Solana network", "Write claims_per_batch, which is for EVM networks.");
        map.inert("batches_in_flight", "without a Solana network", "Leave it out.");
    }
    if families.is_some_and(|families| !families.evm) {
        map.inert("claims_per_batch", "without an EVM network", "Write batch_channels, which is for Solana.");
        map.inert("min_worth", "without an EVM network", "Leave it out.");
    }
    let close_margin = or(map.take("close_margin"), defaults.close_margin, |value| value.duration(SECOND, delay));
    let max_age = or(map.take("max_age"), defaults.max_age, |value| value.duration(SECOND, delay));
    let interval = or(map.take("interval"), defaults.interval, |value| value.duration(SECOND, HOUR));
    let batch_channels = or(map.take("batch_channels"), defaults.batch_channels, |value| value.number(1, 4));
    let batches_in_flight =
        or(map.take("batches_in_flight"), BATCHES_IN_FLIGHT, |value| value.number(1, BATCHES_IN_FLIGHT_MAX));
    let claims_per_batch =
        or(map.take("claims_per_batch"), defaults.claims_per_batch, |value| value.number(1, CLAIMS_MAX));
    let min_worth = or(map.take("min_worth"), None, |value| value.number(1, MIN_WORTH_MAX).map(Some));
    let exposure = assets.limit_or(map, "exposure_max", defaults.exposure_max);
    let channel = assets.limit_or(map, "channel_exposure_max", defaults.channel_exposure_max);
    let min_value = map.take("min_amount");
    let min_amount = match &min_value {
        Some(value) => assets.limit(value),
        None => Some(defaults.min_amount),
    };
    let settlement = SettlementConfig {
        interval: interval?,
        min_amount: min_amount?,
        max_age: max_age?,
        exposure_max: exposure?,
        channel_exposure_max: channel?,
        close_margin: close_margin?,
        batch_channels: batch_channels?,
        batches_in_flight: batches_in_flight?,
        claims_per_batch: claims_per_batch?,
        min_worth: min_worth?,
    };
    check_times(map, &settlement, delay);
    if settlement.channel_exposure_max > settlement.exposure_max {
        let what = format!("channel_exposure_max is above exposure_max ({}).", assets.show(settlement.exposure_max));
        map.whole.problem(what, "Lower the one or raise the other.");
    }
    if settlement.min_amount > settlement.channel_exposure_max {
        let limit = assets.show(settlement.channel_exposure_max);
        let what = format!("is above channel_exposure_max ({limit}), so a channel would stop before it is settled");
        match min_value {
            Some(value) => value.reject(Complaint::new(what, format!("Write at most {limit}."))),
            None => map.whole.problem(
                format!("min_amount ({}) {what}.", assets.show(settlement.min_amount)),
                format!("Write a min_amount of at most {limit}."),
            ),
        }
    }
    Some(settlement)
}

fn check_times(map: &Map<'_, '_>, settlement: &SettlementConfig, delay: Duration) {
    let SettlementConfig { interval, max_age, close_margin, .. } = *settlement;
    if max_age.saturating_add(close_margin) > delay {
        let (age, margin, delay) = (show_duration(max_age), show_duration(close_margin), show_duration(delay));
        map.whole.problem(
            format!("max_age ({age}) and close_margin ({margin}) together are longer than withdraw_delay ({delay})."),
            "Shorten them, or raise withdraw_delay.",
        );
    }
    for (name, other) in [("max_age", max_age), ("close_margin", close_margin)] {
        if interval > other {
            let (interval, other) = (show_duration(interval), show_duration(other));
            map.whole.problem(
                format!("interval ({interval}) is longer than {name} ({other}), which would be missed."),
                format!("Write an interval of at most {other}."),
            );
        }
    }
}
