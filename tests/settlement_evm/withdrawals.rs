//! Payers who take their money out.

use std::time::Duration;

use turnpike::amount::Amount;
use turnpike::ledger::Refused;
use turnpike::settlement::Trigger;

use crate::ports::Fault;
use crate::world::{DELAY, DEPOSIT, DOLLAR, World};
use crate::{settle, settle_until_done};

#[tokio::test(start_paused = true)]
async fn a_payer_who_withdraws_is_claimed_from_at_once_and_gets_the_rest() {
    let world = World::new().await;
    let terms = world.terms(1);
    world.charge(1, 5).await;
    world.charge(2, 5).await;
    let settlement = world.settlement();
    settlement.step(Trigger::Clock).await;
    assert_eq!(world.contract.claimed(&terms.id), 0, "nobody hurries otherwise");
    world.contract.initiate_withdraw(&terms.config(), DEPOSIT).unwrap();
    assert_eq!(settlement.watch().await.unwrap(), 1);
    assert_eq!(settlement.status().withdrawing, 1);
    settlement.step(Trigger::Clock).await;
    assert_eq!((world.paid(), world.contract.claimed(&terms.id)), (5, 5));
    assert_eq!(settlement.watch().await.unwrap(), 0, "there is nothing more to hurry for");

    // What it still spends is claimed too, before its deadline; in the margin it has no credit.
    world.charge(1, 7).await;
    settlement.step(Trigger::Clock).await;
    assert_eq!(world.paid(), 12);
    world.pass(DELAY - 300).await;
    let refused = world.reserve(&terms, 1, 5, None).await.unwrap_err();
    assert!(matches!(refused, Refused::ExceedsDeposit { .. }), "{refused:?}");
    world.pass(300).await;
    assert_eq!(world.contract.finalize_withdraw(&terms.config()), Ok(DEPOSIT - 12));
    world.contract.check();
    assert_eq!(settlement.status().lost, Amount::ZERO);
}

#[tokio::test(start_paused = true)]
async fn the_running_loop_sees_a_withdrawal_in_time() {
    let world = World::new().await;
    let terms = world.terms(1);
    world.charge(1, 5).await;
    let settlement = std::sync::Arc::new(world.settlement());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn({
        let settlement = std::sync::Arc::clone(&settlement);
        async move { settlement.run(async { drop(stopped.await) }).await }
    });
    tokio::time::sleep(Duration::from_secs(90)).await;
    assert_eq!(world.paid(), 0);
    world.contract.initiate_withdraw(&terms.config(), DEPOSIT).unwrap();
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(world.paid(), 5);
    drop(stop);
    running.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_channel_that_waits_after_failures_is_tried_before_its_payer_can_withdraw() {
    let world = World::new().await;
    let terms = world.terms(1);
    world.charge(1, 500).await;
    let settlement = world.settlement();
    world.facilitator.always("claim", Some(Fault::Refuse));
    // It has failed so often that it waits for half an hour by now.
    for _ in 0..20 {
        settle(&settlement).await;
        world.pass(1).await;
    }
    world.facilitator.mend();
    world.contract.initiate_withdraw(&terms.config(), DEPOSIT).unwrap();
    settlement.watch().await.unwrap();
    for _ in 0..12 {
        settlement.step(Trigger::Clock).await;
        world.pass(5).await;
    }
    assert_eq!(world.paid(), 500, "half an hour is longer than the {DELAY} seconds that the payer waits");
}

#[tokio::test(start_paused = true)]
async fn what_a_payer_withdrew_unclaimed_is_reported_lost_and_nothing_loops() {
    let world = World::new().await;
    let terms = world.terms(1);
    world.charge(1, 500).await;
    world.charge(2, 100).await;
    world.contract.initiate_withdraw(&terms.config(), DEPOSIT).unwrap();
    world.pass(DELAY).await;
    assert_eq!(world.contract.finalize_withdraw(&terms.config()), Ok(DEPOSIT));
    let settlement = world.settlement();
    settle(&settlement).await;
    settle_until_done(&world, &settlement).await;
    assert_eq!(world.paid(), 100, "the others of its batch are claimed");
    let status = settlement.status();
    assert_eq!((status.lost, status.unclaimed, status.stuck), (Amount::new(500), Amount::ZERO, 0));
    let asked = world.facilitator.asked("claim").len();
    for _ in 0..10 {
        world.pass(3_600).await;
        settlement.step(Trigger::Clock).await;
        settlement.watch().await.unwrap();
    }
    assert_eq!(world.facilitator.asked("claim").len(), asked, "it is not asked for any more");

    // The old voucher is good again where the payer comes back, even past our gate.
    world.contract.deposit(&terms.config(), 2_000);
    settlement.watch().await.unwrap();
    assert_eq!(settlement.status().lost, Amount::ZERO);
    settle_until_done(&world, &settlement).await;
    world.assert_tied(600);
}

#[tokio::test(start_paused = true)]
async fn as_much_as_is_there_is_claimed_where_the_payer_took_a_part() {
    let world = World::new().await;
    let terms = world.terms(1);
    world.charge(1, 500).await;
    world.contract.initiate_withdraw(&terms.config(), DEPOSIT - 200).unwrap();
    world.pass(DELAY).await;
    world.contract.finalize_withdraw(&terms.config()).unwrap();
    let settlement = world.settlement();
    settle(&settlement).await;
    settle_until_done(&world, &settlement).await;
    assert_eq!((world.paid(), settlement.status().lost), (200, Amount::new(300)));
    assert_eq!(world.contract.tokens(DOLLAR, terms.payer), DEPOSIT - 200);
    world.check();
}

#[tokio::test(start_paused = true)]
async fn a_channel_shut_for_a_refund_is_watched_until_the_refund_has_landed() {
    let mut world = World::new().await;
    let terms = world.terms(1);
    world.charge(1, 100).await;
    settle(&world.settlement()).await;
    // The process dies when the refund has landed and its answer has not.
    let guard = world.life.ledger.begin_close(&terms.id).await.unwrap();
    guard.shut().await.unwrap();
    assert_eq!(crate::crashes::sign_refund(&world.contract, &guard.channel(), 1_000), Ok(1_000));
    drop(guard);
    world.restart().await;
    assert!(world.record(1).closed);
    let settlement = world.settlement();
    settlement.watch().await.unwrap();
    assert!(!world.record(1).closed, "its nonce has moved on");
    assert!(world.reserve(&terms, 1, 5, None).await.is_ok());
}
