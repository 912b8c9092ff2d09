//! What is due: never more than was charged, signed and is there, the urgent first, and each channel once.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::ledger::channel::{ChainState, EvmOnChain, Voucher};
use crate::ledger::store::ChannelRecord;
use crate::scheme::evm::{EvmTerms, TransferMethod, testing};
use crate::x402::evm::{Address, AnySignature, B256, EvmSignature};

const RULES: EvmRules = EvmRules { min_amount: Amount::new(100), max_age: Duration::from_secs(60), worth_multiple: 10 };

fn record(number: u8, balance: u64, claimed: u64, charged: u64, signed: u64) -> RecordOf<Evm> {
    let seller = Arc::new(testing::seller(TransferMethod::Eip3009));
    let claimed = claimed.min(balance);
    let on_chain = EvmOnChain { balance: balance.into(), claimed: claimed.into(), ..EvmOnChain::none(UnixMillis(0)) };
    let signature = AnySignature::Key(EvmSignature([1; 65]));
    ChannelRecord {
        terms: EvmTerms::derive(seller, Address([number; 20]), Address([9; 20]), B256([number; 32])),
        on_chain,
        charged: charged.into(),
        voucher: Some(Voucher { cumulative: signed.into(), signature }),
        unclaimed_since: Some(UnixMillis(0)),
        last_used: UnixMillis(0),
        closed: false,
    }
}

/// A line that claims all that was charged.
fn line(record: RecordOf<Evm>, urgency: Urgency) -> EvmLine {
    let due = due(&record, &RULES, EvmMoment { until: Some(UnixMillis(i64::MAX)), ..at(1) }).unwrap();
    EvmLine { due: EvmDue { urgency, ..due }, record }
}

fn at(seconds: i64) -> EvmMoment {
    EvmMoment { now: UnixMillis(seconds * 1000), sweeping: false, until: None }
}

#[test]
fn a_channel_is_due_for_the_most_urgent_reason() {
    let small = record(1, 1_000, 0, 50, 60);
    let large = record(1, 1_000, 0, 500, 600);
    let sweep = EvmMoment { sweeping: true, ..at(1) };
    let press = EvmMoment { until: Some(UnixMillis(i64::MAX)), ..at(1) };
    let mut leaving = small.clone();
    leaving.on_chain.withdraw_since = 1;
    for (record, moment, urgency) in [
        (&small, at(1), None),
        (&large, at(1), None),
        (&small, sweep, None),
        (&large, sweep, Some(Urgency::Amount)),
        (&small, press, Some(Urgency::Pressed)),
        (&small, at(60), Some(Urgency::Age)),
        (&leaving, at(1), Some(Urgency::Withdrawal)),
    ] {
        assert_eq!(due(record, &RULES, moment).map(|due| due.urgency), urgency, "{moment:?}");
    }
    let gone = record(1, 50, 50, 500, 600);
    assert!(due(&gone, &RULES, press).is_none(), "the payer has taken it out");
}

#[test]
fn a_batch_waits_until_it_is_worth_its_cost_unless_it_presses() {
    let line = |urgency| line(record(1, 1_000, 0, 500, 600), urgency);
    for (urgency, cost, worth) in [
        (Urgency::Amount, 50u64, true),
        (Urgency::Amount, 51, false),
        (Urgency::Pressed, 1_000_000, true),
        (Urgency::Age, 1_000_000, true),
        (Urgency::Withdrawal, 1_000_000, true),
    ] {
        assert_eq!(worth_it(&[line(urgency)], cost.into(), 10), worth, "{urgency:?} at {cost}");
    }
    assert!(worth_it(&[line(Urgency::Amount), line(Urgency::Amount)], 100u64.into(), 10), "together they are");
}

proptest! {
    #[test]
    fn no_claim_is_above_what_was_charged_signed_and_is_there(
        balance in 0u64..50, claimed in 0u64..50, charged in 0u64..50, signed in 0u64..50, now in 0i64..100,
    ) {
        let record = record(1, balance, claimed, charged, signed);
        if let Some(due) = due(&record, &RULES, EvmMoment { until: Some(UnixMillis(i64::MAX)), ..at(now) }) {
            prop_assert!(due.total <= charged.into() && due.total <= signed.into() && due.total <= balance.into());
            prop_assert!(due.total > record.on_chain.claimed && !due.moving().is_zero());
        }
    }

    #[test]
    fn every_channel_is_in_one_batch_and_the_urgent_come_first(
        lines in proptest::collection::vec((0usize..4, 1u64..50, any::<bool>()), 0..40),
        max in 1usize..7,
        total_max in 40u128..300,
    ) {
        let urgencies = [Urgency::Withdrawal, Urgency::Age, Urgency::Pressed, Urgency::Amount];
        let due: Vec<EvmLine> = (1u8..)
            .zip(&lines)
            .map(|(number, (urgency, charged, _))| line(record(number, 1_000, 0, *charged, 60), urgencies[*urgency]))
            .collect();
        let lone: Vec<B256> =
            due.iter().zip(&lines).filter(|(_, (_, _, alone))| *alone).map(|(due, _)| due.record.terms.id).collect();
        let total_max = Amount::new(total_max);
        let share = |due: &EvmDue| if lone.contains(&due.channel) { 1 } else { max };
        let batches = pack(due.clone(), total_max, &share);
        let mut ids: Vec<B256> = batches.iter().flatten().map(|line| line.record.terms.id).collect();
        ids.sort();
        let mut all: Vec<B256> = due.iter().map(|line| line.record.terms.id).collect();
        all.sort();
        prop_assert_eq!(ids, all);
        prop_assert!(batches.iter().all(|batch| batch.len() <= max && !batch.is_empty()));
        prop_assert!(batches.iter().all(|b| b.len() == 1 || b.iter().all(|l| !lone.contains(&l.record.terms.id))));
        prop_assert!(batches.iter().map(|batch| batch[0].due.urgency).is_sorted());
        let total = |batch: &Vec<EvmLine>| batch.iter().map(|line| line.due.total.get()).sum::<u128>();
        prop_assert!(batches.iter().all(|batch| batch.len() == 1 || total(batch) <= total_max.get()));
    }
}
