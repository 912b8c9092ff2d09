//! What is due: a function of a channel, the rules and a moment. Nothing here waits or reads a clock.
//!
//! Owns the rules by which a channel is claimed, paid out, sealed and cleaned up (`scheme_batch_settlement_svm.md`,
//! section 5, phase 4, and section 6.2), and the order of urgency between channels. Promises that a channel has at
//! most one action at a time, so that no two batches ever race for one channel.

use std::cmp::Reverse;
use std::time::Duration;

use crate::amount::Amount;
use crate::clock::UnixMillis;
use crate::ledger::store::{BatchKind, Glance};
use crate::scheme::svm::program::{ChannelStatus, OPEN_SLOT_WINDOW};
use crate::x402::Key;

/// Seconds by which the chain's clock may lag behind ours. A last voucher is tried that long after the deadline: where
/// the chain's clock has passed it too, the attempt is refused and costs nothing.
pub const CLOCK_SKEW_SECONDS: i64 = 30;

/// When a channel is due.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The least that the interval's sweep claims on a channel.
    pub min_amount: Amount,
    /// The age at which even less is claimed.
    pub max_age: Duration,
    /// How long before a payer's deadline a channel that is not yet sealed counts as overdue. From then on its seal no
    /// longer waits for requests that are being served.
    pub seal_margin: Duration,
}

/// The moment that is planned for.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// The present time.
    pub now: UnixMillis,
    /// The chain's slot as last seen; 0 where it is not known.
    pub slot: u64,
    /// Whether the interval has come.
    pub sweep: bool,
    /// Whatever was charged until then is due: exposure presses, or an operator asked.
    pub until: Option<UnixMillis>,
}

/// What is to be done with a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// Apply the last voucher to a channel that its payer is closing, and pay out.
    Seal,
    /// Advance the watermark.
    Claim,
    /// Pay out what was claimed.
    Distribute,
    /// Seal at the watermark, after the grace period, and pay out.
    CloseOut,
    /// Take back the rent of a drained channel.
    Reclaim,
}

impl Action {
    /// The kind of batch that does this.
    #[must_use]
    pub const fn kind(self) -> BatchKind {
        match self {
            Self::Seal => BatchKind::Seal,
            Self::Claim => BatchKind::Claim,
            Self::Distribute => BatchKind::Distribute,
            Self::CloseOut | Self::Reclaim => BatchKind::CleanUp,
        }
    }

    /// The phase of a round in which this is done.
    #[must_use]
    pub const fn phase(self) -> Phase {
        match self {
            Self::Seal | Self::Claim => Phase::Claims,
            Self::Distribute | Self::CloseOut | Self::Reclaim => Phase::Payouts,
        }
    }
}

/// A round claims first, and pays out once the claims are confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// `settle` and `settle_and_seal`: vouchers become money.
    Claims,
    /// `distribute`, `seal`, `reclaim`: money goes where it belongs.
    Payouts,
}

impl Phase {
    /// Both, in order.
    pub const ALL: [Self; 2] = [Self::Claims, Self::Payouts];
}

/// What comes first: what is lost soonest, then what is oldest, then what is largest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// After this Unix second the payer may take it back.
    Deadline(i64),
    /// Unclaimed since then, longer than the rules allow.
    Overdue(UnixMillis),
    /// This much can be claimed.
    Unclaimed(Reverse<Amount>),
    /// This much can be paid out.
    Unpaid(Reverse<Amount>),
    /// Only rent is left.
    Rent,
}

/// A channel that is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Due {
    /// How urgent it is; the least comes first.
    pub urgency: Urgency,
    /// The channel.
    pub channel: Key,
    /// What is due.
    pub action: Action,
}

/// What was charged and not yet claimed.
#[must_use]
pub fn unclaimed<'a>(channel: impl Into<Glance<'a>>) -> Amount {
    let channel = channel.into();
    channel.charged.saturating_sub(channel.on_chain.claimed)
}

/// What was claimed and not yet paid out.
#[must_use]
pub fn unpaid<'a>(channel: impl Into<Glance<'a>>) -> Amount {
    let channel = channel.into();
    channel.on_chain.claimed.saturating_sub(channel.on_chain.distributed)
}

/// The Unix second from which the payer may take back what was not claimed, where the channel is closing.
#[must_use]
pub fn deadline<'a>(channel: impl Into<Glance<'a>>) -> Option<i64> {
    let channel = channel.into();
    let delay = i64::from(channel.terms.seller.withdraw_delay);
    (channel.on_chain.status == ChannelStatus::Closing).then(|| channel.on_chain.closing_since.saturating_add(delay))
}

/// What was charged and can no longer be claimed: the channel was sealed below it, or the payer's deadline has passed.
#[must_use]
pub fn lost<'a>(channel: impl Into<Glance<'a>>, now: UnixMillis) -> Amount {
    let channel = channel.into();
    let gone = match channel.on_chain.status {
        ChannelStatus::Open => false,
        ChannelStatus::Closing => past_hope(channel, now),
        ChannelStatus::Sealed | ChannelStatus::Distributed => true,
    };
    if gone { unclaimed(channel) } else { Amount::ZERO }
}

fn past_hope(channel: Glance<'_>, now: UnixMillis) -> bool {
    let skew = if unclaimed(channel).is_zero() { 0 } else { CLOCK_SKEW_SECONDS };
    deadline(channel).is_some_and(|deadline| now.seconds() >= deadline.saturating_add(skew))
}

/// What is due for a channel, if anything. `retry` says that its claim was due and has failed.
#[must_use]
pub fn due<'a>(channel: impl Into<Glance<'a>>, rules: &Rules, moment: &Moment, retry: bool) -> Option<Due> {
    let channel = channel.into();
    let (action, urgency) = match channel.on_chain.status {
        ChannelStatus::Open => open(channel, rules, moment, retry)?,
        ChannelStatus::Closing => closing(channel, moment)?,
        ChannelStatus::Sealed => (Action::Distribute, Urgency::Unpaid(Reverse(unpaid(channel)))),
        ChannelStatus::Distributed => {
            let unlocked = moment.slot > channel.terms.open_slot.saturating_add(OPEN_SLOT_WINDOW);
            unlocked.then_some((Action::Reclaim, Urgency::Rent))?
        }
    };
    Some(Due { urgency, channel: channel.terms.id, action })
}

fn open(channel: Glance<'_>, rules: &Rules, moment: &Moment, retry: bool) -> Option<(Action, Urgency)> {
    let unclaimed = unclaimed(channel);
    if !unclaimed.is_zero() {
        // A charge without a time counts as old: better claimed too early than too late.
        let since = channel.unclaimed_since.unwrap_or(UnixMillis(i64::MIN));
        if moment.now.since(since) >= rules.max_age {
            return Some((Action::Claim, Urgency::Overdue(since)));
        }
        if charged_until(since, moment.until, moment.now) || retry || (moment.sweep && unclaimed >= rules.min_amount) {
            return Some((Action::Claim, Urgency::Unclaimed(Reverse(unclaimed))));
        }
    }
    let unpaid = unpaid(channel);
    (!unpaid.is_zero()).then_some((Action::Distribute, Urgency::Unpaid(Reverse(unpaid))))
}

/// Whether the oldest charge of a channel was made by a moment up to which everything is due. One that is younger than the
/// present tells of a clock that was set back, and is not waited for.
pub(super) fn charged_until(since: UnixMillis, until: Option<UnixMillis>, now: UnixMillis) -> bool {
    until.is_some_and(|until| since <= until || since > now)
}

fn closing(channel: Glance<'_>, moment: &Moment) -> Option<(Action, Urgency)> {
    if past_hope(channel, moment.now) {
        return Some((Action::CloseOut, Urgency::Unpaid(Reverse(unpaid(channel)))));
    }
    deadline(channel).map(|deadline| (Action::Seal, Urgency::Deadline(deadline)))
}

/// Whether a closing channel's deadline is nearer than the margin.
#[must_use]
pub fn overdue<'a>(channel: impl Into<Glance<'a>>, rules: &Rules, now: UnixMillis) -> bool {
    let margin = i64::try_from(rules.seal_margin.as_secs()).unwrap_or(i64::MAX);
    deadline(channel).is_some_and(|deadline| now.seconds() >= deadline.saturating_sub(margin))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{record, seller};
    use super::*;
    use crate::ledger::store::ChannelRecord;

    const DELAY: i64 = 900;

    fn rules() -> Rules {
        Rules {
            min_amount: Amount::new(100),
            max_age: Duration::from_secs(3600),
            seal_margin: Duration::from_secs(300),
        }
    }

    fn moment(seconds: i64) -> Moment {
        Moment { now: UnixMillis(seconds * 1000), slot: 0, sweep: false, until: None }
    }

    fn action(record: &ChannelRecord, moment: Moment) -> Option<Action> {
        due(record, &rules(), &moment, false).map(|due| due.action)
    }

    #[test]
    fn open_channels_at_the_edges() {
        let sweep = |m: Moment| Moment { sweep: true, ..m };
        let all = |m: Moment| Moment { until: Some(m.now), ..m };
        let asked = |at: i64, m: Moment| Moment { until: Some(UnixMillis(at * 1000)), ..m };
        // charged, claimed, distributed, moment, expected; unclaimed since second 1000.
        let table = [
            (0, 0, 0, all(sweep(moment(99_999))), None),
            (99, 0, 0, sweep(moment(1000)), None),
            (100, 0, 0, sweep(moment(1000)), Some(Action::Claim)),
            (100, 0, 0, moment(1000), None),
            (100, 0, 0, moment(4599), None),
            (1, 0, 0, moment(4600), Some(Action::Claim)),
            (1, 0, 0, all(moment(1000)), Some(Action::Claim)),
            (150, 51, 51, sweep(moment(1000)), None),
            (150, 50, 50, sweep(moment(1000)), Some(Action::Claim)),
            (150, 150, 149, moment(1000), Some(Action::Distribute)),
            (150, 150, 150, all(sweep(moment(99_999))), None),
            (151, 150, 149, moment(1000), Some(Action::Distribute)),
            (151, 150, 149, all(moment(1000)), Some(Action::Claim)),
            // Asked for before the charge was made; and with a clock that was set back since.
            (150, 0, 0, asked(999, moment(1001)), None),
            (150, 0, 0, asked(1000, moment(1001)), Some(Action::Claim)),
            (150, 0, 0, asked(500, moment(999)), Some(Action::Claim)),
            (150, 50, 40, asked(999, moment(1001)), Some(Action::Distribute)),
        ];
        for (index, (charged, claimed, distributed, moment, expected)) in table.into_iter().enumerate() {
            let record = record(&seller(), 1, charged, claimed, distributed);
            assert_eq!(action(&record, moment), expected, "row {index}");
        }
    }

    #[test]
    fn a_failed_claim_stays_due() {
        let record = record(&seller(), 1, 5, 0, 0);
        assert_eq!(due(&record, &rules(), &moment(1000), true).map(|due| due.action), Some(Action::Claim));
    }

    #[test]
    fn closing_channels_at_the_edges() {
        let since = 10_000;
        // charged, now, expected, overdue
        let table = [
            (5, since, Action::Seal, false),
            (0, since, Action::Seal, false),
            (5, since + DELAY - 301, Action::Seal, false),
            (5, since + DELAY - 300, Action::Seal, true),
            (5, since + DELAY - 1, Action::Seal, true),
            (0, since + DELAY - 1, Action::Seal, true),
            (0, since + DELAY, Action::CloseOut, true),
            // Where there is something to lose, it is tried for as long as the chain's clock may lag behind.
            (5, since + DELAY, Action::Seal, true),
            (5, since + DELAY + CLOCK_SKEW_SECONDS - 1, Action::Seal, true),
            (5, since + DELAY + CLOCK_SKEW_SECONDS, Action::CloseOut, true),
        ];
        for (index, (charged, now, expected, late)) in table.into_iter().enumerate() {
            let mut record = record(&seller(), 1, charged, 0, 0);
            record.on_chain.status = ChannelStatus::Closing;
            record.on_chain.closing_since = since;
            assert_eq!(action(&record, moment(now)), Some(expected), "row {index}");
            assert_eq!(overdue(&record, &rules(), UnixMillis(now * 1000)), late, "row {index}");
            let hopeless = expected == Action::CloseOut;
            assert_eq!(lost(&record, UnixMillis(now * 1000)).is_zero(), !hopeless || charged == 0, "row {index}");
        }
    }

    #[test]
    fn closed_channels() {
        let mut record = record(&seller(), 1, 5, 5, 3);
        record.on_chain.status = ChannelStatus::Sealed;
        assert_eq!(action(&record, moment(0)), Some(Action::Distribute));
        record.on_chain.status = ChannelStatus::Distributed;
        let gate = record.terms.open_slot + OPEN_SLOT_WINDOW;
        assert_eq!(action(&record, Moment { slot: gate, ..moment(0) }), None);
        assert_eq!(action(&record, Moment { slot: gate + 1, ..moment(0) }), Some(Action::Reclaim));
    }

    proptest! {
        #[test]
        fn nothing_is_claimed_that_was_not_charged(
            charged in 0_u64..1000, claimed in 0_u64..1000, distributed in 0_u64..1000,
            status in 0..4, now in 0_i64..20_000, sweep: bool, until in prop::option::of(0_i64..20_000), retry: bool,
        ) {
            let (claimed, distributed) = (claimed.min(charged), distributed.min(claimed).min(charged));
            let mut record = record(&seller(), 1, charged, claimed, distributed);
            record.on_chain.status = match status {
                0 => ChannelStatus::Open,
                1 => ChannelStatus::Sealed,
                2 => ChannelStatus::Closing,
                _ => ChannelStatus::Distributed,
            };
            record.on_chain.closing_since = 10_000;
            let moment = Moment { slot: 5_000, sweep, until: until.map(|until| UnixMillis(until * 1000)), ..moment(now) };
            match due(&record, &rules(), &moment, retry).map(|due| due.action) {
                Some(Action::Claim) => {
                    prop_assert!(charged > claimed);
                    prop_assert_eq!(record.on_chain.status, ChannelStatus::Open);
                }
                Some(Action::Seal | Action::CloseOut) => {
                    prop_assert_eq!(record.on_chain.status, ChannelStatus::Closing);
                }
                Some(Action::Distribute) => prop_assert!(claimed > distributed || status == 1),
                Some(Action::Reclaim) => prop_assert_eq!(record.on_chain.status, ChannelStatus::Distributed),
                None => {}
            }
        }
    }
}
