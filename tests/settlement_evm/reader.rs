//! Where no chain endpoint is there: channels are read by asking the facilitator to verify their vouchers.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use turnpike::amount::Amount;
use turnpike::clock::Clock;
use turnpike::facilitator::channels::{ByFacilitator, EvmChannels};
use turnpike::facilitator::interface::{InterfaceError, X402Facilitator};
use turnpike::ledger::channel::{ChainState, EvmOnChain};
use turnpike::settlement::Trigger;
use turnpike::settlement::evm::EvmSettlement;

use crate::ports::Fault;
use crate::world::{DELAY, DEPOSIT, World};
use crate::{settle, settle_until_done};

fn by_facilitator(world: &World) -> Arc<ByFacilitator> {
    let facilitator: Arc<dyn X402Facilitator> = Arc::<crate::ports::Facilitator>::clone(&world.life.facilitator);
    let clock: Arc<dyn Clock> = Arc::<crate::chance::SimulatedClock>::clone(&world.clock);
    Arc::new(ByFacilitator::new(facilitator, clock))
}

fn settlement(world: &World) -> EvmSettlement {
    EvmSettlement::new(world.parts(by_facilitator(world), None), world.options())
}

#[tokio::test(start_paused = true)]
async fn it_tells_what_the_facilitator_tells() {
    let world = World::new().await;
    let terms = world.terms(1);
    world.charge_part(&terms, 1, 30, 100).await;
    let reader = by_facilitator(&world);
    let read = async |n| reader.read(&[world.record(n)]).await.unwrap()[0];
    let told = read(1).await.unwrap();
    assert_eq!((told.balance, told.claimed, told.withdraw_since), (Amount::new(DEPOSIT), Amount::ZERO, 0));
    assert_eq!((told.block, told.read_at), (0, world.clock.now()));
    world.contract.initiate_withdraw(&terms.config(), 500).unwrap();
    let told = read(1).await.unwrap();
    assert_eq!(told.withdraw_ends_at, world.now() + i64::try_from(DELAY).unwrap());
    assert_eq!(told.withdrawal, Amount::new(DEPOSIT), "how much is not told: all of it");
    assert_eq!(reader.unsettled(&terms.seller).await, Ok(None));

    // Where all of the voucher was charged and claimed, the facilitator says so in its refusal.
    world.charge(2, 50).await;
    let before = read(2).await.unwrap();
    world.life.ledger.observe(&world.id(2), before).await.unwrap();
    world.pass(40).await;
    settlement(&world).settle_now(&Some([world.id(2)].into())).await;
    let after = reader.read(&[world.record(2)]).await.unwrap()[0].unwrap();
    assert_eq!(after, EvmOnChain { claimed: Amount::new(50), ..before }, "what else is known is as old as it was");

    // A channel that never was charged has no voucher to ask about; one that its payer emptied is empty.
    world
        .life
        .ledger
        .adopt(world.terms(3), EvmOnChain { balance: Amount::new(9), ..EvmOnChain::none(world.clock.now()) });
    assert_eq!(read(3).await, None);
    world.charge(4, 50).await;
    world.facilitator.lags.store(true, Ordering::Relaxed);
    world.charge(5, 50).await;
    assert_eq!(read(5).await, None, "a node that does not know the channel yet is behind");
    world.facilitator.mend();
    world.contract.initiate_withdraw(&world.terms(4).config(), DEPOSIT).unwrap();
    world.pass(DELAY).await;
    world.contract.finalize_withdraw(&world.terms(4).config()).unwrap();
    let emptied = read(4).await.unwrap();
    assert_eq!((emptied.balance, emptied.claimed, emptied.is_withdrawing()), (Amount::ZERO, Amount::ZERO, false));
}

#[tokio::test(start_paused = true)]
async fn what_was_told_is_kept_where_the_facilitator_then_fails() {
    let world = World::new().await;
    for n in 1..=3 {
        world.charge(n, 50).await;
    }
    let reader = by_facilitator(&world);
    let records = [1, 2, 3].map(|n| world.record(n));
    world.facilitator.unverified.lock().insert(world.id(2));
    let read = reader.read(&records).await.unwrap();
    assert_eq!(read.iter().map(Option::is_some).collect::<Vec<_>>(), [true, false, false]);
    world.facilitator.unverified.lock().insert(world.id(1));
    assert!(matches!(reader.read(&records).await, Err(InterfaceError::Unavailable(_))), "nobody answers");
}

#[tokio::test(start_paused = true)]
async fn claims_and_payouts_work_without_an_endpoint() {
    let world = World::new().await;
    for n in 1..=3 {
        world.charge_part(&world.terms(n), n, 100, 300).await;
        world.charge(n + 10, 100).await;
    }
    let settlement = settlement(&world);
    settle(&settlement).await;
    world.assert_tied(600);
    world.facilitator.fault("claim", [Fault::BreakAfter]);
    world.facilitator.fault("settle", [Fault::BreakAfter]);
    for n in [1, 2, 3, 11] {
        world.charge_part(&world.terms(n), n, 10, 30).await;
    }
    settle(&settlement).await;
    settle_until_done(&world, &settlement).await;
    world.assert_tied(640);
    assert_eq!(world.contract.payouts(), [600, 40]);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_told_afterwards_is_taken_as_it_was_answered_and_not_sent_for_ever() {
    let world = World::new().await;
    let terms = world.terms(1);
    // Charged 500 of a voucher over 600; then the payer takes out all that is not claimed, so that no voucher of theirs
    // can be verified any more.
    world.charge_part(&terms, 1, 500, 600).await;
    world.charge(2, 100).await;
    let settlement = settlement(&world);
    world.contract.initiate_withdraw(&terms.config(), DEPOSIT).unwrap();
    world.pass(DELAY).await;
    world.facilitator.fault("claim", [Fault::BreakAfter]);
    settle(&settlement).await;
    let read_at = world.record(1).on_chain.read_at;
    assert_eq!(world.contract.claimed(&terms.id), 500);
    world.contract.finalize_withdraw(&terms.config()).unwrap();
    settle_until_done(&world, &settlement).await;
    world.assert_tied(600);
    assert!(world.facilitator.asked("claim").len() <= 3);
    assert_eq!(world.record(1).on_chain.read_at, read_at, "so that nobody goes by a balance that was not read");
}

#[tokio::test(start_paused = true)]
async fn a_channel_that_its_payer_emptied_is_seen_as_lost() {
    let world = World::new().await;
    let terms = world.terms(1);
    world.charge(1, 500).await;
    world.charge(2, 100).await;
    world.contract.initiate_withdraw(&terms.config(), DEPOSIT).unwrap();
    world.pass(DELAY).await;
    world.contract.finalize_withdraw(&terms.config()).unwrap();
    let settlement = settlement(&world);
    settle(&settlement).await;
    settle_until_done(&world, &settlement).await;
    assert_eq!((world.paid(), settlement.status().lost), (100, Amount::new(500)));
    world.contract.check();
}

#[tokio::test(start_paused = true)]
async fn a_channel_that_cannot_be_told_does_not_keep_others_from_being_watched() {
    let world = World::new().await;
    for n in 1..=4 {
        world.charge(n, 50).await;
        world.pass(1).await;
    }
    let mut options = world.options();
    options.watch_channels_max = 2;
    world.reader.untold.lock().extend([world.id(1), world.id(2)]);
    let settlement = world.settlement_with(options);
    for _ in 0..4 {
        settlement.watch().await.unwrap();
        world.pass(60).await;
    }
    let read = world.reader.read.lock().clone();
    assert!((1..=4).all(|n| read.contains(&world.id(n))), "each in its turn");
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_is_down_is_nobody_s_fault() {
    let world = World::new().await;
    world.charge(1, 50).await;
    let settlement = world.settlement();
    world.reader.down.store(true, Ordering::Relaxed);
    assert!(settlement.watch().await.is_err());
    let report = settle(&settlement).await;
    assert!(report.stuck.is_empty());
    assert_eq!(world.contract.claim_transactions(), 1);
    for _ in 0..30 {
        settlement.step(Trigger::Clock).await;
        world.pass(5).await;
    }
    assert_eq!(world.contract.claim_transactions(), 1, "what was answered for is not sent again while nobody can look");
    world.reader.mend();
    settle_until_done(&world, &settlement).await;
    world.assert_tied(50);
}
