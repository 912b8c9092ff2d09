//! Payouts: once for what was claimed, found out where nobody answers, and never in the way of claims.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use turnpike::amount::Amount;
use turnpike::ledger::channel::evm::EvmBatchKind;
use turnpike::settlement::{Outcome, Trigger};

use crate::ports::Fault;
use crate::world::{DEPOSIT, DOLLAR, EURO, PAY_TO, World};
use crate::{confirmed, settle, settle_until_done};

#[tokio::test(start_paused = true)]
async fn two_tokens_are_claimed_apart_and_paid_out_apart() {
    let world = World::new().await;
    for n in 1..=3 {
        world.charge(n, 100).await;
        world.charge_part(&world.terms_in(1, n), n, 10, 10).await;
    }
    let report = settle(&world.settlement()).await;
    assert_eq!((confirmed(&report, EvmBatchKind::Claim), confirmed(&report, EvmBatchKind::Settle)), (2, 2));
    world.assert_tied(300);
    assert_eq!(world.contract.tokens(EURO, PAY_TO), 30);
}

#[tokio::test(start_paused = true)]
async fn a_token_that_cannot_be_paid_out_does_not_hold_up_the_other() {
    let world = World::new().await;
    world.charge(1, 100).await;
    world.charge_part(&world.terms_in(1, 2), 2, 10, 10).await;
    let settlement = world.settlement();
    world.facilitator.fault("settle", [Fault::Refuse; 2]);
    settle(&settlement).await;
    // Dollars come first, and are refused each time; euros are claimed and paid out none the less.
    world.pass(1).await;
    for _ in 0..3 {
        settlement.step(Trigger::Pressed).await;
        world.pass(1).await;
    }
    settle_until_done(&world, &settlement).await;
    assert_eq!(world.contract.tokens(EURO, PAY_TO), 10);
    world.assert_tied(100);
}

#[tokio::test(start_paused = true)]
async fn a_payout_that_is_refused_for_good_does_not_hold_up_claims() {
    let world = World::new().await;
    world.contract.bar(PAY_TO, true);
    world.charge(1, 100).await;
    let settlement = world.settlement();
    settle(&settlement).await;
    world.charge(2, 100).await;
    settlement.step(Trigger::Pressed).await;
    assert_eq!(world.contract.claimed(&world.id(2)), 100, "what is claimed is safe");
    for _ in 0..60 {
        settlement.step(Trigger::Pressed).await;
        world.pass(1).await;
    }
    let asked = world.facilitator.asked("settle").len();
    assert!((2..15).contains(&asked), "it is tried again with waits that grow: {asked} times in a minute");
    assert!(settlement.status().last_error.is_some());
    world.contract.bar(PAY_TO, false);
    world.pass(3_600).await;
    settle_until_done(&world, &settlement).await;
    world.assert_tied(200);
}

#[tokio::test(start_paused = true)]
async fn a_payout_that_nobody_answers_for_is_given_up_and_made_anew() {
    for reader_tells in [true, false] {
        let world = World::new().await;
        world.reader.no_unsettled.store(!reader_tells, Ordering::Relaxed);
        world.charge(1, 100).await;
        let settlement = world.settlement();
        world.facilitator.always("settle", Some(Fault::BreakBefore));
        for _ in 0..40 {
            settlement.step(Trigger::Pressed).await;
            world.pass(5).await;
        }
        // Claims go on meanwhile.
        world.charge(2, 50).await;
        for _ in 0..40 {
            settlement.step(Trigger::Pressed).await;
            world.pass(5).await;
        }
        assert_eq!(world.contract.claimed(&world.id(2)), 50);
        world.facilitator.mend();
        world.pass(3_600).await;
        settle_until_done(&world, &settlement).await;
        world.assert_tied(150);
    }
}

#[tokio::test(start_paused = true)]
async fn a_payout_whose_answer_is_lost_is_not_made_twice() {
    for reader_tells in [true, false] {
        let world = World::new().await;
        world.reader.no_unsettled.store(!reader_tells, Ordering::Relaxed);
        world.charge(1, 100).await;
        let settlement = world.settlement();
        world.facilitator.fault("settle", [Fault::BreakAfter]);
        let report = settle(&settlement).await;
        assert!(matches!(report.batches.last().unwrap().outcome, Outcome::Unknown { .. }));
        settle_until_done(&world, &settlement).await;
        world.assert_tied(100);
        assert_eq!(world.contract.payouts(), [100]);
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_crash_left_claimed_is_paid_out_by_the_next_life() {
    for reader_tells in [true, false] {
        let mut world = World::new().await;
        world.reader.no_unsettled.store(!reader_tells, Ordering::Relaxed);
        world.charge(1, 100).await;
        world.facilitator.fault("settle", [Fault::Refuse]);
        settle(&world.settlement()).await;
        assert_eq!((world.paid(), world.contract.claimed(&world.id(1))), (0, 100));
        assert!(world.life.ledger.open_batches().is_empty(), "the journal knows nothing of it any more");
        world.restart().await;
        let settlement = world.settlement();
        settlement.step(Trigger::Clock).await;
        world.assert_tied(100);
        // It does not ask for ever.
        for _ in 0..20 {
            world.pass(60).await;
            settlement.step(Trigger::Clock).await;
        }
        assert!(world.facilitator.asked("settle").len() <= 10);
        assert_eq!(world.contract.payouts(), [100]);
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_refund_claimed_is_paid_out_too() {
    let world = World::new().await;
    let terms = world.terms(1);
    world.charge(1, 100).await;
    let settlement = world.settlement();
    for _ in 0..20 {
        settlement.step(Trigger::Clock).await;
        world.pass(5).await;
    }
    assert_eq!(world.paid(), 0);
    // A refund claims what was charged in the same transaction; the ledger hears of it, the settlement does not.
    crate::crashes::refund(&world, &terms).await;
    assert_eq!(world.contract.unsettled(PAY_TO, DOLLAR, false), 100);
    world.pass(600).await;
    settlement.step(Trigger::Clock).await;
    world.assert_tied(100);
    assert_eq!(world.contract.tokens(DOLLAR, terms.payer), DEPOSIT - 100);
}

#[tokio::test(start_paused = true)]
async fn a_payout_that_finds_nothing_because_its_node_lags_is_tried_again() {
    // By the reader, or by the facilitator's own simulation.
    for reader_tells in [true, false] {
        let world = World::new().await;
        let settlement = world.settlement();
        settle_until_done(&world, &settlement).await;
        world.reader.no_unsettled.store(!reader_tells, Ordering::Relaxed);
        world.charge(1, 100).await;
        world.contract.mine();
        let lag = |on| {
            if !reader_tells {
                world.facilitator.lags.store(on, Ordering::Relaxed);
            }
        };
        lag(true);
        if reader_tells {
            // Only what is not paid out lags: the claim is seen.
            world.facilitator.lags.store(false, Ordering::Relaxed);
            world.reader.unsettled_lags.store(true, Ordering::Relaxed);
        }
        settlement.step(Trigger::Pressed).await;
        assert_eq!((world.contract.claimed(&world.id(1)), world.paid()), (100, 0));
        lag(false);
        world.reader.unsettled_lags.store(false, Ordering::Relaxed);
        for _ in 0..6 {
            world.pass(5).await;
            settlement.step(Trigger::Clock).await;
        }
        world.assert_tied(100);
    }
}

#[tokio::test(start_paused = true)]
async fn a_facilitator_that_pays_out_nothing_is_believed_in_the_end() {
    let world = World::new().await;
    world.reader.no_unsettled.store(true, Ordering::Relaxed);
    world.facilitator.pays_nothing.store(true, Ordering::Relaxed);
    let settlement = Arc::new(world.settlement());
    for _ in 0..100 {
        settlement.step(Trigger::Clock).await;
        world.pass(60).await;
    }
    let asked = world.facilitator.asked("settle").len();
    assert!(asked <= 8, "each may cost somebody a fee: {asked}");
    world.charge(1, 100).await;
    let report = settle(&settlement).await;
    assert_eq!(report.moved(EvmBatchKind::Settle), Amount::new(100));
    world.assert_tied(100);
}
