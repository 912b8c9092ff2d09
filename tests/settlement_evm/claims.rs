//! Claims: what is due, in which batches, and what becomes of a batch that fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use turnpike::amount::Amount;
use turnpike::facilitator::interface::InterfaceError;
use turnpike::ledger::channel::evm::EvmBatchKind;
use turnpike::ledger::store::{BatchState, Store};
use turnpike::ledger::{Entry, Limits};
use turnpike::settlement::evm::{ClaimCost, EvmOptions, EvmSettlement};
use turnpike::settlement::{Outcome, Trigger};
use turnpike::signer::EvmSigner;
use turnpike::signer::ecdsa::EcdsaSigner;
use turnpike::x402::evm::Address;

use crate::ports::Fault;
use crate::world::{DEPOSIT, DOLLAR, EURO, PAY_TO, World, rules, voucher};
use crate::{confirmed, settle, settle_until_done};

/// A world with `channels` channels, channel `n` charged `100 * n`, and the sum.
async fn charged(channels: u32) -> (World, u128) {
    let world = World::new().await;
    for n in 1..=channels {
        world.charge(n, u128::from(n) * 100).await;
    }
    (world, (1..=u128::from(channels)).sum::<u128>() * 100)
}

#[tokio::test(start_paused = true)]
async fn many_channels_are_claimed_in_batches_and_paid_out_once() {
    let (world, sum) = charged(25).await;
    let settlement = world.settlement_with(EvmOptions { batch_claims: 10, ..world.options() });
    assert_eq!(settlement.status().unclaimed, Amount::new(sum));
    let report = settle(&settlement).await;
    assert_eq!((confirmed(&report, EvmBatchKind::Claim), confirmed(&report, EvmBatchKind::Settle)), (3, 1));
    assert_eq!(report.moved(EvmBatchKind::Claim), Amount::new(sum));
    assert_eq!(report.moved(EvmBatchKind::Settle), Amount::new(sum));
    world.assert_tied(sum);
    assert_eq!((world.contract.claim_transactions(), world.contract.payouts()), (3, vec![sum]));
    let asked = world.facilitator.asked("claim");
    assert_eq!(asked.iter().map(|asked| asked["claims"].as_array().unwrap().len()).collect::<Vec<_>>(), [10, 10, 5]);
    assert_eq!(asked[0]["claims"][0]["totalClaimed"], "2500", "the largest is claimed first");
    let journal = world.store.batches(9).await.unwrap();
    assert!(journal.iter().all(|batch| batch.state == BatchState::Confirmed && batch.request.is_empty()));
    assert!(journal.iter().all(|batch| batch.transaction.is_some()));
    let status = settlement.status();
    assert_eq!((status.confirmed, status.dropped, status.unclaimed), (4, 0, Amount::ZERO));

    // Nothing is due: nothing is asked for. After another charge, only that channel is.
    assert!(settle(&settlement).await.batches.is_empty());
    world.charge(3, 50).await;
    assert_eq!(settle(&settlement).await.moved(EvmBatchKind::Claim), Amount::new(50));
    world.assert_tied(sum + 50);
}

#[tokio::test(start_paused = true)]
async fn many_rounds_are_made_of_a_few_looks_and_paid_out_once() {
    let (world, sum) = charged(400).await;
    let options = EvmOptions { batch_claims: 10, round_batches_max: 4, backlog_channels_max: 100, ..world.options() };
    let settlement = world.settlement_with(options);
    let report = settle(&settlement).await;
    assert_eq!((confirmed(&report, EvmBatchKind::Claim), confirmed(&report, EvmBatchKind::Settle)), (40, 1));
    // One look for each backlog and one that finds no more, and one for the payout; the ten rounds need none of their own.
    assert!(report.rounds >= 10 && report.looks <= 6, "{} rounds, {} looks", report.rounds, report.looks);
    let asked = world.facilitator.asked("claim");
    let totals = asked.iter().flat_map(|asked| asked["claims"].as_array().unwrap().iter());
    let totals: Vec<u128> = totals.map(|claim| claim["totalClaimed"].as_str().unwrap().parse().unwrap()).collect();
    assert!(totals.len() == 400 && totals.is_sorted_by(|a, b| a >= b), "the largest are claimed first: {totals:?}");
    assert_eq!(world.contract.payouts(), [sum]);
    world.assert_tied(sum);
}

#[tokio::test(start_paused = true)]
async fn a_withdrawal_in_the_middle_of_many_rounds_comes_first() {
    let (world, sum) = charged(100).await;
    let options = EvmOptions { batch_claims: 10, round_batches_max: 1, ..world.options() };
    let settlement = world.settlement_with(options);
    assert!(settlement.step(Trigger::Pressed).await.more);
    // The smallest, far down the list.
    world.contract.initiate_withdraw(&world.terms(1).config(), DEPOSIT).unwrap();
    assert_eq!(settlement.watch().await.unwrap(), 1);
    let report = settlement.step(Trigger::Pressed).await;
    assert_eq!((report.looks, report.batches[0].lines[0]), (0, (world.id(1), Amount::new(100))));
    // What fails is tried again in halves before the rest of the list.
    world.facilitator.fault("claim", [Fault::Refuse]);
    let refused = settlement.step(Trigger::Pressed).await.batches[0].lines.clone();
    let again = settlement.step(Trigger::Pressed).await.batches[0].lines.clone();
    assert_eq!(again, refused[..5]);
    settle(&settlement).await;
    world.assert_tied(sum);
}

#[tokio::test(start_paused = true)]
async fn a_threshold_key_signs_what_the_contract_takes() {
    let signer = tokio::task::spawn_blocking(|| EcdsaSigner::ephemeral(rules()).unwrap()).await.unwrap();
    let mut world = World::new().await;
    let seller = |token| {
        Arc::new(turnpike::scheme::evm::EvmSeller {
            receiver_authorizer: signer.address(),
            ..crate::world::seller(token)
        })
    };
    world.sellers = [DOLLAR, EURO].map(seller);
    world.charge(1, 700).await;
    world.charge(2, 300).await;
    let settlement = EvmSettlement::new(world.parts_signed_by(Arc::new(signer)), world.options());
    settle(&settlement).await;
    world.assert_tied(1_000);
}

#[tokio::test(start_paused = true)]
async fn what_is_charged_is_claimed_of_a_larger_voucher_and_no_more() {
    let world = World::new().await;
    let terms = world.terms(1);
    world.charge_part(&terms, 1, 30, 100).await;
    let settlement = world.settlement();
    settle(&settlement).await;
    world.assert_tied(30);
    let asked = world.facilitator.asked("claim");
    assert_eq!(asked[0]["claims"][0]["totalClaimed"], "30");
    assert_eq!(asked[0]["claims"][0]["voucher"]["maxClaimableAmount"], "100");
    // A smaller voucher than the one before, and a call that costs nothing.
    world.charge_part(&terms, 1, 20, 40).await;
    world.charge_part(&terms, 1, 0, 40).await;
    settle(&settlement).await;
    world.assert_tied(50);
    // What is only reserved is not claimed.
    let serving = world.reserve(&terms, 1, 500, None).await.unwrap();
    assert!(settle(&settlement).await.batches.is_empty());
    drop(serving);
    world.assert_tied(50);
}

#[tokio::test(start_paused = true)]
async fn every_failure_of_asking_is_survived_and_doubles_nothing() {
    use Fault::{BreakAfter, BreakBefore, Late, Lie, Refuse, RefuseAfter, Unavailable};
    let scripts: [&[Fault]; 14] = [
        &[Refuse],
        &[Refuse; 5],
        &[Unavailable],
        &[Unavailable; 9],
        &[BreakBefore],
        &[BreakBefore; 9],
        &[BreakAfter],
        &[BreakAfter; 4],
        &[Late],
        &[Late; 9],
        &[RefuseAfter; 2],
        &[Lie],
        &[Lie; 9],
        &[BreakBefore, Late, Refuse, BreakAfter, Unavailable, Lie, Late, BreakBefore, Refuse],
    ];
    for kind in ["claim", "settle"] {
        for script in scripts {
            let (world, sum) = charged(6).await;
            let settlement = world.settlement_with(EvmOptions { batch_claims: 4, ..world.options() });
            world.facilitator.fault(kind, script.iter().copied());
            settle(&settlement).await;
            world.check();
            world.pass(20).await;
            settle(&settlement).await;
            world.facilitator.release(&world.contract);
            settle_until_done(&world, &settlement).await;
            world.assert_tied(sum);
            world.facilitator.release(&world.contract);
            world.check();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_is_found_out_by_reading() {
    let (world, sum) = charged(3).await;
    let settlement = world.settlement();
    world.facilitator.fault("claim", [Fault::BreakAfter]);
    let report = settle(&settlement).await;
    assert!(matches!(report.batches[0].outcome, Outcome::Unknown { .. }));
    assert!(report.batches[0].transaction.is_some(), "it was named");
    assert_eq!(world.contract.payouts(), [0; 0], "nothing is paid out before it is known");
    settle_until_done(&world, &settlement).await;
    world.assert_tied(sum);
    assert_eq!(world.facilitator.asked("claim").len(), 1, "nothing was asked for again");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_not_believed_where_the_chain_has_the_claim() {
    let (world, sum) = charged(3).await;
    world.facilitator.fault("claim", [Fault::RefuseAfter]);
    let settlement = world.settlement();
    let report = settle(&settlement).await;
    assert_eq!((confirmed(&report, EvmBatchKind::Claim), settlement.status().dropped), (1, 0));
    world.assert_tied(sum);
}

#[tokio::test(start_paused = true)]
async fn what_was_never_sent_is_asked_for_again_unchanged() {
    for fault in [Fault::BreakBefore, Fault::Unavailable] {
        let (mut world, sum) = charged(3).await;
        world.facilitator.fault("claim", [fault, fault]);
        settle(&world.settlement()).await;
        // Whatever is charged meanwhile, and whatever life asks.
        world.charge(1, 77).await;
        world.restart().await;
        let settlement = world.settlement();
        settle_until_done(&world, &settlement).await;
        world.assert_tied(sum + 77);
        let asked = world.facilitator.asked("claim");
        assert_eq!((asked.len(), &asked[0], &asked[0]), (4, &asked[1], &asked[2]), "{fault:?}");
        assert_eq!(asked[3]["claims"].as_array().unwrap().len(), 1, "and then what came to it");
    }
}

#[tokio::test(start_paused = true)]
async fn a_facilitator_whose_node_fails_is_no_channel_s_fault() {
    let (world, sum) = charged(3).await;
    let settlement = world.settlement();
    world.facilitator.fault("claim", [Fault::RefuseUnread; 3]);
    let report = settle(&settlement).await;
    assert!(report.stuck.is_empty() && report.held.is_some());
    settle_until_done(&world, &settlement).await;
    world.assert_tied(sum);
    let asked = world.facilitator.asked("claim");
    assert!(asked.len() == 4 && asked.iter().all(|again| *again == asked[0]), "the same, until it is taken");
}

#[tokio::test(start_paused = true)]
async fn a_batch_is_not_asked_for_at_every_look() {
    let (world, sum) = charged(2).await;
    let settlement = world.settlement();
    world.facilitator.always("claim", Some(Fault::Unavailable));
    for _ in 0..60 {
        settlement.step(Trigger::Pressed).await;
        world.pass(1).await;
    }
    let asked = world.facilitator.asked("claim").len();
    assert!((3..15).contains(&asked), "{asked} times in a minute");
    world.facilitator.mend();
    settle_until_done(&world, &settlement).await;
    world.assert_tied(sum);
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_readings_do_not_show_yet_is_not_sent_again_at_once() {
    let (world, sum) = charged(2).await;
    let settlement = world.settlement();
    world.reader.lags.store(true, Ordering::Relaxed);
    world.reader.no_unsettled.store(true, Ordering::Relaxed);
    let report = settle(&settlement).await;
    assert!(matches!(report.batches[0].outcome, Outcome::Unknown { .. }));
    // Nothing is made that could meet it on chain: no claim of what is charged meanwhile, and no payout.
    world.charge(2, 5).await;
    settlement.step(Trigger::Pressed).await;
    assert_eq!(world.contract.claim_transactions(), 1, "each would cost its fee");
    assert_eq!((world.facilitator.asked("claim").len(), world.facilitator.asked("settle").len()), (1, 0));
    world.reader.mend();
    settle_until_done(&world, &settlement).await;
    world.assert_tied(sum + 5);
    assert_eq!(world.contract.claim_transactions(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_wallet_that_takes_its_voucher_back_does_not_hold_up_the_others() {
    let world = World::new().await;
    for n in 1..=99 {
        world.charge(n, 100).await;
    }
    let poisoned = world.wallet_terms(100);
    world.contract.wallet(poisoned.payer, true);
    world.charge_part(&poisoned, 100, 5_000, 5_000).await;
    world.contract.wallet(poisoned.payer, false);
    let settlement = world.settlement();
    let report = settle(&settlement).await;
    assert_eq!(report.stuck.iter().map(|(channel, _)| *channel).collect::<Vec<_>>(), [poisoned.id]);
    assert_eq!(world.paid(), 9_900, "everybody else is claimed and paid out in the same go");
    let asked = world.facilitator.asked("claim").len();
    assert!(asked <= 16, "halving finds one of a hundred with few transactions, and not {asked}");
    // It waits, longer each time, and holds up nobody; where the wallet signs again, it is claimed.
    world.charge(1, 11).await;
    world.pass(3).await;
    settle(&settlement).await;
    assert_eq!(world.paid(), 9_911);
    world.contract.wallet(poisoned.payer, true);
    settle_until_done(&world, &settlement).await;
    world.assert_tied(14_911);
}

#[tokio::test(start_paused = true)]
async fn the_clock_tries_what_a_refused_batch_left_without_waiting_for_its_interval() {
    let world = World::new().await;
    for n in 1..=7 {
        world.charge(n, 20_000).await;
    }
    let poisoned = world.wallet_terms(8);
    world.contract.wallet(poisoned.payer, true);
    world.charge_part(&poisoned, 8, 20_000, 20_000).await;
    world.contract.wallet(poisoned.payer, false);
    let settlement = world.settlement();
    world.pass(600).await;
    for _ in 0..10 {
        settlement.step(Trigger::Clock).await;
        world.pass(5).await;
    }
    assert_eq!(world.paid(), 140_000);
}

#[tokio::test(start_paused = true)]
async fn the_clock_decides_what_is_due() {
    let world = World::new().await;
    world.charge(1, 20_000).await;
    world.charge(2, 5).await;
    let settlement = world.settlement();
    settlement.step(Trigger::Clock).await;
    world.pass(599).await;
    settlement.step(Trigger::Clock).await;
    assert_eq!(world.paid(), 0);
    world.pass(1).await;
    settlement.step(Trigger::Clock).await;
    assert_eq!(world.paid(), 20_000, "what is at least min_amount goes with the interval");
    world.pass(2_999).await;
    settlement.step(Trigger::Clock).await;
    assert_eq!(world.paid(), 20_000);
    world.pass(1).await;
    settlement.step(Trigger::Clock).await;
    assert_eq!(world.paid(), 20_005, "and the rest by its age");
    world.charge(1, 1).await;
    settlement.step(Trigger::Pressed).await;
    world.assert_tied(20_006);
}

#[tokio::test(start_paused = true)]
async fn only_the_channels_asked_for() {
    let (world, _) = charged(3).await;
    world.settlement().settle_now(&Some([world.id(2)].into())).await;
    assert_eq!(world.paid(), 200);
    assert_eq!(world.contract.claimed(&world.id(1)), 0);
}

/// A cost that a test sets; `None` where it cannot be found out.
struct Cost(Mutex<Option<u128>>);

#[async_trait]
impl ClaimCost for Cost {
    async fn cost(&self, claims: usize) -> Result<Amount, InterfaceError> {
        let cost = self.0.lock().map(|each| Amount::new(each * u128::try_from(claims).unwrap()));
        cost.ok_or_else(|| InterfaceError::Unavailable("no fee is known".to_owned()))
    }
}

#[tokio::test(start_paused = true)]
async fn a_batch_waits_until_it_is_worth_its_cost() {
    let world = World::new().await;
    world.charge(1, 20_000).await;
    let cost = Arc::new(Cost(Mutex::new(None)));
    let mut options = world.options();
    options.rules.worth_multiple = 10;
    let cost_port: Arc<dyn ClaimCost> = Arc::<Cost>::clone(&cost);
    let reader = Arc::clone(&world.life.reader);
    let settlement = EvmSettlement::new(world.parts(reader, Some(cost_port)), options);
    world.pass(600).await;
    settlement.step(Trigger::Clock).await;
    assert_eq!(world.paid(), 0, "what does not press waits for the cost to be known");
    *cost.0.lock() = Some(2_001);
    settlement.step(Trigger::Clock).await;
    assert_eq!(world.paid(), 0);
    *cost.0.lock() = Some(2_000);
    settlement.step(Trigger::Clock).await;
    assert_eq!(world.paid(), 20_000, "as soon as it is worth it");
    *cost.0.lock() = Some(1_000_000);
    world.charge(1, 10).await;
    world.pass(3_600).await;
    settlement.step(Trigger::Clock).await;
    assert_eq!(world.paid(), 20_010, "age does not ask for the cost");
    world.charge(1, 10).await;
    *cost.0.lock() = None;
    settlement.step(Trigger::Pressed).await;
    world.assert_tied(20_020);
}

#[tokio::test(start_paused = true)]
async fn pressing_exposure_wakes_the_loop() {
    let exposure_max = Some(Amount::new(1_000));
    let world = World::limited(Limits { exposure_max, ..Limits::default() }).await;
    let settlement = Arc::new(world.settlement());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn({
        let settlement = Arc::clone(&settlement);
        async move { settlement.run(async { drop(stopped.await) }).await }
    });
    world.charge(1, 900).await;
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(world.paid(), 900, "before any tick of the clock");
    assert!(world.reserve(&world.terms(1), 1, 900, None).await.is_ok(), "so that there is room again");
    stop.send(()).unwrap();
    running.await.unwrap();
    world.assert_tied(900);
}

#[tokio::test(start_paused = true)]
async fn a_cap_on_one_batch_splits_it() {
    // By the policy's cap on what moves, or by the signer's on what one signature names.
    for by_policy in [true, false] {
        let (mut world, sum) = charged(8).await;
        let cap = Amount::new(1_000);
        if by_policy {
            world.policy.claim_cap = cap;
        } else {
            world.rules.claim_max = cap;
            world.restart().await;
        }
        let settlement = world.settlement();
        let report = settle(&settlement).await;
        assert!(report.stuck.is_empty() && report.held.is_none());
        world.assert_tied(sum);
        assert!(world.contract.claim_transactions() < 8, "they are not all claimed alone");
    }
}

#[tokio::test(start_paused = true)]
async fn what_no_rule_allows_is_said_and_tried_again_later() {
    let (mut world, _) = charged(3).await;
    world.policy.claim_cap = Amount::new(250);
    let settlement = world.settlement();
    let report = settle(&settlement).await;
    assert_eq!(report.stuck.len(), 1, "300 alone is too much");
    assert_eq!((report.stuck[0].0, world.paid()), (world.id(3), 300));
    assert!(report.stuck[0].1.contains("250"), "{}", report.stuck[0].1);
    let batches = world.store.batches(9).await.unwrap();
    let claims: Vec<_> = batches.iter().filter(|batch| batch.kind == EvmBatchKind::Claim).collect();
    assert!(claims.iter().all(|batch| batch.state == BatchState::Confirmed), "a refused one is never journalled");

    // A policy that pays somebody else signs nothing at all.
    let (mut world, _) = charged(3).await;
    world.policy.pay_to = vec![Address([9; 20])];
    let report = settle(&world.settlement()).await;
    assert_eq!((report.stuck.len(), world.facilitator.asked("claim").len()), (3, 0));
}

#[tokio::test(start_paused = true)]
async fn without_a_quorum_nothing_is_blamed_and_all_goes_on_with_it() {
    let (world, sum) = charged(3).await;
    let settlement = world.settlement();
    world.life.signer.down.store(true, Ordering::Relaxed);
    let report = settle(&settlement).await;
    assert!(report.stuck.is_empty() && report.held.unwrap().contains("quorum"));
    assert!(settlement.status().held.is_some());
    world.life.signer.down.store(false, Ordering::Relaxed);
    world.pass(2).await;
    settlement.step(Trigger::Pressed).await;
    world.assert_tied(sum);
}

#[tokio::test(start_paused = true)]
async fn one_network_s_settlement_does_not_touch_another_s_channels() {
    let (world, sum) = charged(2).await;
    // The same ledger has a channel of another network, of another authorizer, and of a token that is not configured.
    let here = world.terms(1).seller;
    let other = |change: &dyn Fn(&mut turnpike::scheme::evm::EvmSeller)| {
        let mut seller = (*here).clone();
        change(&mut seller);
        Arc::new(seller)
    };
    let others = [
        other(&|seller| seller.network = "eip155:8453".parse().unwrap()),
        other(&|seller| seller.receiver_authorizer = Address([5; 20])),
        other(&|seller| seller.token = Address([6; 20])),
    ];
    for (n, seller) in (50..).zip(others) {
        let key = crate::ports::Key::new(n).address();
        let terms = turnpike::scheme::evm::EvmTerms::derive(seller, key, key, turnpike::x402::evm::B256::ZERO);
        let on_chain = world.deposit(&terms, DEPOSIT);
        let entry = Entry {
            voucher: voucher(&terms, n, 5_000),
            amount: Amount::new(5_000),
            deposit_after: Some(on_chain.balance),
            terms,
        };
        world.life.ledger.reserve(entry).await.unwrap().commit(Some(on_chain)).await.unwrap();
    }
    let settlement = world.settlement();
    assert_eq!(settlement.status().unclaimed, Amount::new(sum));
    let report = settle(&settlement).await;
    assert!(report.stuck.is_empty() && report.held.is_none());
    assert_eq!((world.paid(), report.moved(EvmBatchKind::Claim)), (sum, Amount::new(sum)));
    world.reader.read.lock().clear();
    settlement.watch().await.unwrap();
    assert!(world.reader.read.lock().is_empty(), "and does not read them");
    assert_eq!(world.contract.unsettled(PAY_TO, DOLLAR, false), 0);
}

#[tokio::test(start_paused = true)]
async fn a_batch_of_a_token_that_is_no_longer_configured_holds_up_nobody() {
    let (mut world, _) = charged(1).await;
    let euro = world.terms_in(1, 9);
    world.charge_part(&euro, 9, 400, 400).await;
    world.facilitator.fault("claim", [Fault::BreakBefore]);
    world.settlement().settle_now(&Some([euro.id].into())).await;
    assert_eq!(world.life.ledger.open_batches().len(), 1);
    world.restart().await;
    let settlement = world.settlement_with(EvmOptions::new(vec![Arc::clone(&world.sellers[0])]));
    settle_until_done(&world, &settlement).await;
    assert_eq!((world.paid(), world.contract.claimed(&euro.id)), (100, 0));
    // Configured again, it is claimed.
    settle_until_done(&world, &world.settlement()).await;
    assert_eq!(world.contract.tokens(EURO, PAY_TO), 400);
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_ends_what_is_under_way_and_starts_nothing() {
    let (world, sum) = charged(3).await;
    let settlement = world.settlement_with(EvmOptions { batch_claims: 1, tick: Duration::ZERO, ..world.options() });
    let stop = AtomicBool::new(true);
    settlement.run(async { assert!(stop.load(Ordering::Relaxed)) }).await;
    world.check();
    assert!(world.life.ledger.open_batches().is_empty());
    let mut world = world;
    world.restart().await;
    settle_until_done(&world, &world.settlement()).await;
    world.assert_tied(sum);
}
