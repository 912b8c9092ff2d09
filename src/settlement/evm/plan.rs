//! What is due on an EVM network, and in what order: pure.
//!
//! | channel | is claimed |
//! |---|---|
//! | its payer is withdrawing | at once |
//! | its oldest unclaimed charge is older than `max_age` | at once |
//! | at least `min_amount` is unclaimed | at the next sweep, in a batch that is worth its cost |
//! | anything is unclaimed | when exposure presses, or on demand |

use std::cmp::Reverse;
use std::time::Duration;

use crate::amount::Amount;
use crate::clock::UnixMillis;
use crate::ledger::channel::Evm;
use crate::ledger::store::{GlanceOf, RecordOf};
use crate::settlement::plan::charged_until;
use crate::x402::evm::B256;

/// When a channel is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EvmRules {
    /// A channel with less to claim waits until `max_age`.
    pub min_amount: Amount,
    /// How old the oldest unclaimed charge of a channel may become.
    pub max_age: Duration,
    /// How many times its cost a batch must bring, unless a deadline or exposure presses; 0 asks for nothing.
    pub worth_multiple: u32,
}

/// Why a channel is claimed, the most urgent first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// Its payer is withdrawing: what is not claimed before the deadline may be gone.
    Withdrawal,
    /// It has waited long enough.
    Age,
    /// Exposure presses, or somebody asked.
    Pressed,
    /// It is worth claiming.
    Amount,
}

/// A channel that is due. The least comes first: the most urgent, then whose withdrawal ends soonest, then the largest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EvmDue {
    /// Why.
    pub urgency: Urgency,
    withdraw_ends_at: i64,
    moving: Reverse<Amount>,
    /// The channel.
    pub channel: B256,
    /// The total that it is brought to: what was charged, as far as the chain has the money.
    pub total: Amount,
}

impl EvmDue {
    /// What the claim newly claims.
    #[must_use]
    pub const fn moving(&self) -> Amount {
        self.moving.0
    }
}

/// A channel's part of a batch.
#[derive(Clone, Debug)]
pub struct EvmLine {
    /// The channel as it was when it was looked at.
    pub record: RecordOf<Evm>,
    /// What is claimed of it, and why.
    pub due: EvmDue,
}

/// What a round looks for.
#[derive(Clone, Copy, Debug)]
pub struct EvmMoment {
    /// Now.
    pub now: UnixMillis,
    /// Whether everything worth claiming is looked for.
    pub sweeping: bool,
    /// Whatever was charged until then is looked for too.
    pub until: Option<UnixMillis>,
}

/// What can be claimed of a channel: the total to name. `None` where nothing can. Never above what was charged, what was
/// signed, or what the chain holds (invariant L3).
#[must_use]
pub fn claimable<'a>(channel: impl Into<GlanceOf<'a, Evm>>) -> Option<Amount> {
    let channel = channel.into();
    let total = channel.charged.min(channel.redeemable()?).min(channel.on_chain.balance);
    (total > channel.on_chain.claimed).then_some(total)
}

/// Whether a channel is due, and why.
#[must_use]
pub fn due<'a>(channel: impl Into<GlanceOf<'a, Evm>>, rules: &EvmRules, moment: EvmMoment) -> Option<EvmDue> {
    let channel = channel.into();
    let total = claimable(channel)?;
    let moving = total.saturating_sub(channel.on_chain.claimed);
    // A charge without a time counts as old.
    let since = channel.unclaimed_since.unwrap_or(UnixMillis(i64::MIN));
    let old = channel.unclaimed_since.is_some_and(|since| moment.now.since(since) >= rules.max_age);
    let urgency = if channel.on_chain.is_withdrawing() {
        Urgency::Withdrawal
    } else if old {
        Urgency::Age
    } else if charged_until(since, moment.until, moment.now) {
        Urgency::Pressed
    } else if moment.sweeping && moving >= rules.min_amount {
        Urgency::Amount
    } else {
        return None;
    };
    let withdraw_ends_at = channel.on_chain.withdraw_ends_at;
    Some(EvmDue { urgency, withdraw_ends_at, moving: Reverse(moving), channel: channel.terms.id, total })
}

/// Puts what is due into batches whose totals come to no more than `total_max`, those that must not wait and then the
/// largest first. Channels of one seller only share a batch, and of one limit: `claims_max` says with how many others a
/// channel may share one, itself included.
#[must_use]
pub fn pack(mut due: Vec<EvmLine>, total_max: Amount, claims_max: &dyn Fn(&EvmDue) -> usize) -> Vec<Vec<EvmLine>> {
    due.sort_by_key(|line| line.due);
    let mut batches: Vec<Vec<EvmLine>> = Vec::new();
    let mut open: Vec<Open> = Vec::new();
    for line in due {
        let claims_max = claims_max(&line.due).max(1);
        let fits = |open: &Open| {
            let first = batches.get(open.place).and_then(|batch| batch.first());
            open.claims_max == claims_max
                && open.total.saturating_add(line.due.total) <= total_max
                && first.is_some_and(|first| first.record.terms.seller == line.record.terms.seller)
        };
        let at = open.iter().position(fits).unwrap_or_else(|| {
            open.push(Open { place: batches.len(), claims_max, total: Amount::ZERO });
            batches.push(Vec::new());
            open.len().saturating_sub(1)
        });
        let Some(of) = open.get_mut(at) else { continue };
        of.total = of.total.saturating_add(line.due.total);
        let Some(batch) = batches.get_mut(of.place) else { continue };
        batch.push(line);
        if batch.len() >= claims_max {
            open.remove(at);
        }
    }
    batches
}

/// A batch that is not full.
struct Open {
    place: usize,
    claims_max: usize,
    total: Amount,
}

/// Whether a batch is worth its cost, or must not wait for that.
#[must_use]
pub fn worth_it(batch: &[EvmLine], cost: Amount, multiple: u32) -> bool {
    let urgent = batch.iter().any(|line| line.due.urgency < Urgency::Amount);
    let brings = batch.iter().fold(Amount::ZERO, |sum, line| sum.saturating_add(line.due.moving()));
    urgent || brings.get() >= cost.get().saturating_mul(multiple.into())
}

#[cfg(test)]
mod tests;
