//! The settlement loop against doubles of chain, signer and store, and the real ledger: a normal round, every failure,
//! a crash at every step, and money tied out each time.

#[path = "settlement/world.rs"]
mod world;

use std::sync::atomic::Ordering;
use std::time::Duration;

use turnpike::amount::Amount;
use turnpike::clock::Clock;
use turnpike::ledger::store::{BatchKind, BatchState};
use turnpike::policy::Policy;
use turnpike::scheme::svm::program::ChannelStatus;
use turnpike::settlement::reconcile::{Verdict, tie_out};
use turnpike::settlement::{Filter, Outcome, Report, Settlement, Trigger};

use world::{DELAY, DEPOSIT, Fault, World};

/// A world with `channels` channels, channel `n` charged `100 * n`. Returns the sum.
async fn charged(channels: u32) -> (World, u64) {
    let world = World::new().await;
    for n in 1..=channels {
        world.charge(n, u64::from(n) * 100).await;
    }
    (world, (1..=u64::from(channels)).sum::<u64>() * 100)
}

async fn settle(settlement: &Settlement) -> Report {
    settlement.settle_now(&Filter::All).await
}

fn confirmed(report: &Report, kind: BatchKind) -> usize {
    let done = |outcome: &Outcome| matches!(outcome, Outcome::Confirmed { .. });
    report.batches.iter().filter(|batch| batch.kind == kind && done(&batch.outcome)).count()
}

/// Settles, with time passing, until everything that was charged is paid out.
async fn settle_until_done(world: &World, settlement: &Settlement) {
    for _ in 0..20 {
        let report = settle(settlement).await;
        if report.unknown() == 0 && report.stuck.is_empty() && report.held.is_none() {
            break;
        }
        world.pass(70);
    }
}

async fn assert_tied(world: &World, sum: u64) {
    world.check();
    assert_eq!(world.chain.pay_to_balance(), sum);
    let tie = tie_out(&world.ledger, world.chain.as_ref()).await.unwrap();
    assert!(tie.ties(), "{:?}", tie.faults().collect::<Vec<_>>());
    let (totals, sum) = (tie.totals, Amount::from(sum));
    assert_eq!((totals.charged, totals.claimed, totals.distributed), (sum, sum, sum));
    assert_eq!((totals.chain_claimed, totals.chain_distributed), (sum, sum));
    assert!(world.ledger.open_batches().is_empty());
}

#[tokio::test]
async fn a_normal_round() {
    let (world, sum) = charged(9).await;
    let settlement = world.settlement();
    assert_eq!(settlement.status().unclaimed, Amount::from(sum));
    let report = settle(&settlement).await;
    assert_eq!((confirmed(&report, BatchKind::Claim), confirmed(&report, BatchKind::Distribute)), (3, 3));
    assert_eq!(report.moved(BatchKind::Claim), Amount::from(sum));
    assert_eq!(report.moved(BatchKind::Distribute), Amount::from(sum));
    assert_tied(&world, sum).await;
    let journal = world.store.batches_now();
    assert!(journal.iter().all(|batch| batch.state == BatchState::Confirmed));
    // The largest is claimed first.
    assert_eq!(journal[0].lines[0], (world.id(9), Amount::from(900_u64)));
    let status = settlement.status();
    assert_eq!((status.confirmed, status.unclaimed, status.unpaid), (6, Amount::ZERO, Amount::ZERO));
    assert_eq!(status.last_success, Some(world.clock.now()));
    assert_eq!(["signed", "sent", "confirmed", "dropped"].map(|event| world.watcher.count(event)), [6, 6, 6, 0]);

    // Nothing is due: nothing is sent. After another charge, only that channel is.
    assert!(settle(&settlement).await.batches.is_empty());
    world.charge(3, 50).await;
    let report = settle(&settlement).await;
    assert_eq!(report.moved(BatchKind::Claim), Amount::from(50_u64));
    assert_tied(&world, sum + 50).await;
}

#[tokio::test]
async fn the_clock_decides_what_is_due() {
    let world = World::new().await;
    world.charge(1, 20_000).await;
    world.charge(2, 5).await;
    let settlement = world.settlement();
    assert!(settlement.step(Trigger::Clock).await.batches.is_empty());
    world.pass(599);
    assert!(settlement.step(Trigger::Clock).await.batches.is_empty());
    world.pass(1);
    let report = settlement.step(Trigger::Clock).await;
    assert_eq!(report.moved(BatchKind::Claim), Amount::from(20_000_u64), "what is worth it goes with the interval");
    assert_eq!(report.moved(BatchKind::Distribute), Amount::from(20_000_u64));
    world.pass(2_999);
    assert!(settlement.step(Trigger::Clock).await.batches.is_empty());
    world.pass(1);
    let report = settlement.step(Trigger::Clock).await;
    assert_eq!(report.moved(BatchKind::Claim), Amount::from(5_u64), "and the rest by its age");
    world.charge(1, 1).await;
    let report = settlement.step(Trigger::Pressed).await;
    assert_eq!(report.moved(BatchKind::Claim), Amount::from(1_u64), "and everything where exposure presses");
    assert_tied(&world, 20_006).await;
}

#[tokio::test]
async fn only_the_channels_asked_for() {
    let (world, _) = charged(3).await;
    let report = world.settlement().settle_now(&Filter::Channels([world.id(2)].into())).await;
    assert_eq!(report.moved(BatchKind::Distribute), Amount::from(200_u64));
    assert_eq!(world.chain.pay_to_balance(), 200);
}

#[tokio::test]
async fn every_failure_of_sending_is_survived() {
    use Fault::{Drop, ErrorAfter, ErrorBefore, Late, Refuse};
    let scripts: [&[Fault]; 10] = [
        &[Drop],
        &[Drop, Drop, Drop, Drop],
        &[Late],
        &[Late, Late, Late],
        &[ErrorBefore],
        &[ErrorBefore, ErrorBefore],
        &[ErrorAfter],
        &[ErrorAfter, ErrorAfter, ErrorAfter],
        &[Refuse],
        &[Drop, Late, ErrorBefore, ErrorAfter, Refuse, Late, Drop],
    ];
    for script in scripts {
        let (world, sum) = charged(6).await;
        let settlement = world.settlement();
        world.chain.fault(script.iter().copied());
        settle(&settlement).await;
        world.check();
        world.chain.release();
        settle_until_done(&world, &settlement).await;
        assert_tied(&world, sum).await;
    }
}

#[tokio::test]
async fn what_expires_is_dropped_and_made_anew() {
    let (world, sum) = charged(2).await;
    let settlement = world.settlement();
    world.chain.fault([Fault::Drop; 2]);
    assert_eq!(settle(&settlement).await.unknown(), 1);
    world.chain.advance(151);
    let report = settle(&settlement).await;
    assert!(matches!(report.batches[0].outcome, Outcome::Dropped { .. }));
    let states: Vec<_> = world.store.batches_now().into_iter().map(|batch| batch.state).collect();
    assert!(matches!(states[0], BatchState::Dropped { .. }), "{states:?}");
    assert_tied(&world, sum).await;
}

#[tokio::test]
async fn what_expired_is_made_anew_without_waiting_for_the_interval() {
    let world = World::new().await;
    world.charge(1, 20_000).await;
    let settlement = world.settlement();
    world.pass(600);
    world.chain.fault([Fault::Drop; 2]);
    assert_eq!(settlement.step(Trigger::Clock).await.unknown(), 1);
    world.chain.advance(151);
    let report = settlement.step(Trigger::Clock).await;
    assert_eq!(report.moved(BatchKind::Distribute), Amount::from(20_000_u64));
    assert_tied(&world, 20_000).await;
}

#[tokio::test]
async fn no_second_batch_while_the_first_is_of_unknown_fate() {
    let (world, sum) = charged(3).await;
    let settlement = world.settlement();
    world.chain.fault([Fault::Late, Fault::Drop, Fault::Drop, Fault::Drop]);
    assert_eq!(settle(&settlement).await.unknown(), 1);
    world.charge(1, 7).await;
    let sent = world.chain.sent().len();
    let report = settle(&settlement).await;
    assert_eq!((report.unknown(), report.batches.len()), (1, 1));
    let ids: Vec<_> = world.chain.sent().iter().map(|transaction| transaction.id()).collect();
    assert!(ids.len() > sent, "it is sent again");
    assert!(ids.iter().all(|id| *id == ids[0]), "and it is the same");
    world.chain.release();
    settle(&settlement).await;
    assert_tied(&world, sum + 7).await;
}

#[tokio::test]
async fn as_many_of_unknown_fate_as_may_be_under_way_and_no_more() {
    let (world, sum) = charged(40).await;
    let settlement = world.settlement();
    world.chain.silence(false);
    world.chain.fault([Fault::Drop; 100]);
    let report = settle(&settlement).await;
    assert!(report.more);
    // While four are carried, three others may turn out unknown before the last of them does.
    assert!((4..=7).contains(&report.unknown()), "{}", report.unknown());
    world.chain.fault([]);
    settle_until_done(&world, &settlement).await;
    assert_tied(&world, sum).await;
}

#[tokio::test]
async fn a_silent_chain_costs_nothing() {
    let (world, sum) = charged(5).await;
    let settlement = world.settlement();
    world.chain.silence(true);
    let report = settle(&settlement).await;
    assert!(report.batches.is_empty() && report.held.is_some());
    assert!(settlement.status().last_error.is_some());
    assert!(settlement.step(Trigger::Pressed).await.held.is_some());
    world.chain.silence(false);
    world.pass(30);
    settle(&settlement).await;
    assert_tied(&world, sum).await;
}

#[tokio::test]
async fn one_bad_channel_does_not_hold_up_the_rest() {
    for wordless in [false, true] {
        let (world, sum) = charged(8).await;
        let settlement = world.settlement();
        if wordless {
            world.chain.wordless();
        }
        let bad = world.id(7);
        world.chain.poison(bad, true);
        let report = settle(&settlement).await;
        world.check();
        assert_eq!(world.chain.pay_to_balance(), sum - 700, "wordless: {wordless}");
        assert_eq!(report.stuck.len(), 1);
        assert_eq!((report.stuck[0].channel, report.stuck[0].kind), (bad, BatchKind::Claim));
        assert_eq!(settlement.status().stuck, 1);
        // It waits, and is tried again by itself.
        world.chain.poison(bad, false);
        assert!(settlement.step(Trigger::Clock).await.batches.is_empty());
        world.pass(4);
        settlement.step(Trigger::Clock).await;
        settlement.step(Trigger::Clock).await;
        assert_tied(&world, sum).await;
        assert_eq!(settlement.status().stuck, 0);
    }
}

#[tokio::test]
async fn a_policy_that_forbids_the_whole_may_allow_the_parts() {
    // Once by the proxy's own policy, once by the signer's.
    let (mut world, sum) = charged(4).await;
    let largest = (1..=4).filter_map(|n| world.ledger.channel(&world.id(n))).map(|record| record.charged).max();
    world.policy = std::sync::Arc::new(Policy { claim_cap: largest.unwrap(), ..(*world.policy).clone() });
    world.signer.channels_max.store(1, Ordering::SeqCst);
    let refused = settle(&world.settlement()).await;
    assert!(matches!(&refused.batches[0].outcome, Outcome::Refused { why } if why.contains("one request may move")));
    world.policy = std::sync::Arc::new(Policy::unlimited(vec![world.seller.pay_to]));
    let settlement = world.settlement();
    let report = settle(&settlement).await;
    assert!(matches!(&report.batches[0].outcome, Outcome::Refused { why } if why.contains("claim_channels")));
    settle_until_done(&world, &settlement).await;
    assert_tied(&world, sum).await;
    assert!(world.store.batches_now().iter().all(|batch| batch.lines.len() == 1));
}

#[tokio::test]
async fn what_policy_does_not_approve_is_neither_signed_nor_sent() {
    let (mut world, _) = charged(2).await;
    world.policy = std::sync::Arc::new(Policy { claim_cap: Amount::new(1), ..(*world.policy).clone() });
    let settlement = world.settlement();
    settle(&settlement).await;
    let report = settle(&settlement).await;
    assert!(report.stuck.iter().all(|stuck| stuck.error.contains("one request may move 1 (")));
    assert_eq!(report.stuck.len(), 2);
    assert!(world.chain.sent().is_empty() && world.store.batches_now().is_empty());
    assert_eq!((world.watcher.count("signed"), world.watcher.count("refused") > 0), (0, true));
}

#[tokio::test]
async fn nothing_is_paid_to_an_account_that_cannot_take_it() {
    let (world, sum) = charged(3).await;
    world.chain.pay_to_exists(false);
    world.request_close(3);
    let settlement = world.settlement();
    let report = settle(&settlement).await;
    assert_eq!(world.chain.forfeited(), 0);
    assert_eq!(confirmed(&report, BatchKind::Claim), 1, "claims do not need it");
    assert_eq!(confirmed(&report, BatchKind::Seal), 1, "a seal does without its payout");
    assert_eq!(world.chain.channel(&world.id(3)).unwrap().status, ChannelStatus::Sealed);
    assert!(report.stuck.iter().all(|stuck| stuck.error.contains("does not exist; create it")));
    assert_eq!(report.stuck.len(), 3);
    world.chain.pay_to_exists(true);
    settle(&settlement).await;
    assert_tied(&world, sum).await;
}

#[tokio::test]
async fn a_closing_payer_gets_the_last_voucher_and_the_rest_back() {
    let (world, sum) = charged(3).await;
    let settlement = world.settlement();
    world.request_close(2);
    settlement.watch().await.unwrap();
    let report = settlement.step(Trigger::Clock).await;
    assert_eq!(report.moved(BatchKind::Seal), Amount::from(200_u64));
    assert_eq!(world.chain.balance(2), DEPOSIT - 200);
    assert_eq!(world.chain.pay_to_balance(), 200);
    assert!(world.ledger.channel(&world.id(2)).unwrap().closed);
    settle(&settlement).await;
    assert_tied(&world, sum).await;
    // Its rent comes back when the program allows it, and then the ledger lets go of it.
    world.pass(800);
    settlement.watch().await.unwrap();
    let report = settle(&settlement).await;
    assert_eq!(confirmed(&report, BatchKind::CleanUp), 1);
    assert!(world.chain.channel(&world.id(2)).is_none());
    assert!(world.ledger.channel(&world.id(2)).is_none());
    assert!(settle(&settlement).await.batches.is_empty());
    assert_eq!(settlement.status().lost, Amount::ZERO);
}

#[tokio::test]
async fn a_seal_waits_for_the_request_that_is_being_served() {
    let (world, sum) = charged(1).await;
    let settlement = world.settlement();
    let served = world.reserve(1, 11).await;
    world.request_close(1);
    settlement.watch().await.unwrap();
    let (report, receipt) = tokio::join!(settle(&settlement), async {
        tokio::task::yield_now().await;
        served.commit(None).await
    });
    assert_eq!(receipt.unwrap().charged, Amount::from(11_u64));
    assert_eq!(report.moved(BatchKind::Seal), Amount::from(sum + 11));
    assert_tied(&world, sum + 11).await;
}

#[tokio::test]
async fn a_confirmed_batch_is_not_believed_reconciled_by_an_old_reading() {
    let (world, sum) = charged(2).await;
    let settlement = world.settlement();
    world.chain.freeze(true);
    let report = settle(&settlement).await;
    assert!(matches!(&report.batches[0].outcome, Outcome::Unknown { why } if why.contains("older")));
    assert_eq!(settle(&settlement).await.batches.len(), 1, "nothing new is made of what is stale");
    world.chain.freeze(false);
    settle(&settlement).await;
    assert_tied(&world, sum).await;
}

#[tokio::test]
async fn a_channel_that_is_gone_since_does_not_keep_its_batch_open() {
    let (world, _) = charged(2).await;
    let settlement = world.settlement();
    world.chain.freeze(true);
    assert_eq!(settle(&settlement).await.unknown(), 1, "claimed, and not seen to be");
    world.chain.remove(&world.id(1));
    world.chain.freeze(false);
    // An address that was just opened cannot be empty: the node that says so lags behind.
    assert_eq!(settle(&settlement).await.unknown(), 1);
    world.pass(700);
    settlement.watch().await.unwrap();
    world.charge(2, 7).await;
    settle_until_done(&world, &settlement).await;
    assert!(world.ledger.open_batches().is_empty());
    let other = world.ledger.channel(&world.id(2)).unwrap();
    assert_eq!((other.on_chain.claimed, other.on_chain.distributed), (Amount::from(207_u64), Amount::from(207_u64)));
    world.check();
}

#[tokio::test]
async fn what_we_sign_for_ourselves_is_left_to_whoever_opened_it() {
    let world = World::new().await;
    let mut terms = world.terms(1);
    let operator = world::public(world::FEE_PAYER);
    terms = turnpike::ledger::channel::Terms::derive(terms.seller, terms.payer, operator, 1, 990);
    world.chain.open(&terms, 1);
    let settlement = world.settlement();
    assert_eq!(settlement.discover().await.unwrap().adopted, 0);
    // Once it is drained, its rent is taken back here, whatever its grace period was.
    world.chain.edit(&terms.id, |account| {
        account.status = ChannelStatus::Distributed;
        account.grace_period = 60;
    });
    assert_eq!(settlement.discover().await.unwrap().adopted, 1);
    world.pass(800);
    settlement.watch().await.unwrap();
    assert_eq!(confirmed(&settle(&settlement).await, BatchKind::CleanUp), 1);
    assert!(world.chain.channel(&terms.id).is_none() && world.ledger.channel(&terms.id).is_none());
}

#[tokio::test]
async fn a_close_between_plan_and_claim_is_answered_with_a_seal() {
    let (world, sum) = charged(3).await;
    let settlement = world.settlement();
    // The ledger still takes it for open; reading again before acting tells.
    world.request_close(1);
    let report = settle(&settlement).await;
    assert_eq!((confirmed(&report, BatchKind::Seal), confirmed(&report, BatchKind::Claim)), (1, 1));
    assert_tied(&world, sum).await;
}

#[tokio::test]
async fn the_most_pressing_deadline_is_first() {
    let (world, sum) = charged(4).await;
    for n in [3, 1, 4, 2] {
        world.request_close(n);
        world.pass(10);
    }
    let settlement = world.settlement();
    settlement.watch().await.unwrap();
    settle(&settlement).await;
    let order: Vec<_> = world.store.batches_now().iter().map(|batch| batch.lines[0].0).collect();
    assert_eq!(order, [3, 1, 4, 2].map(|n| world.id(n)));
    assert_tied(&world, sum).await;
}

#[tokio::test]
async fn after_the_grace_period_the_loss_is_reported_and_the_channel_cleaned_up() {
    let (world, _) = charged(2).await;
    let settlement = world.settlement();
    world.request_close(2);
    world.chain.silence(true);
    settle(&settlement).await;
    world.pass(u64::from(DELAY) + 30);
    world.chain.silence(false);
    settlement.watch().await.unwrap();
    settle(&settlement).await;
    world.check();
    assert_eq!((settlement.status().lost, world.watcher.count("lost")), (Amount::from(200_u64), 1));
    assert_eq!(world.chain.balance(2), DEPOSIT, "the payer has it all back");
    assert_eq!(world.chain.pay_to_balance(), 100);
    // The ledger keeps what it lost, and it is not tried again.
    assert!(settle(&settlement).await.batches.is_empty());
    assert_eq!(world.ledger.channel(&world.id(2)).unwrap().charged, Amount::from(200_u64));
}

#[tokio::test]
async fn a_lost_ledger_finds_its_channels_and_invents_nothing() {
    let (mut world, _) = charged(3).await;
    settle(&world.settlement()).await;
    world.charge(1, 40).await;
    world.request_close(3);
    world.store.lose_everything();
    world.restart().await;
    let settlement = world.settlement();
    let found = settlement.discover().await.unwrap();
    assert_eq!((found.seen, found.adopted, found.foreign), (3, 3, 0));
    assert_eq!(settlement.discover().await.unwrap().adopted, 0);
    for (n, charged) in [(1, 100), (2, 200), (3, 300_u64)] {
        assert_eq!(world.ledger.channel(&world.id(n)).unwrap().charged, Amount::from(charged));
    }
    settle(&settlement).await;
    assert_eq!(world.chain.channel(&world.id(3)).unwrap().status, ChannelStatus::Distributed);
    assert_eq!(world.chain.balance(3), DEPOSIT - 300);
    assert_tied(&world, 600).await;
}

#[tokio::test]
async fn a_node_that_lags_behind_is_not_believed() {
    let (world, sum) = charged(1).await;
    let settlement = world.settlement();
    settle(&settlement).await;
    // The node does not know the channel: it is far too young to be gone.
    let account = world.chain.channel(&world.id(1)).unwrap();
    world.chain.edit(&world.id(1), |account| account.status = ChannelStatus::Open);
    let hidden = world::public(77);
    world.chain.edit(&world.id(1), |account| account.payer = hidden);
    settlement.watch().await.unwrap();
    let tie = tie_out(&world.ledger, world.chain.as_ref()).await.unwrap();
    assert_eq!(tie.faults().map(|line| line.verdict).collect::<Vec<_>>(), [Verdict::Contradiction]);
    assert_eq!(world.ledger.channel(&world.id(1)).unwrap().on_chain.claimed, Amount::from(sum));
    world.chain.edit(&world.id(1), |now| *now = account);
    assert_tied(&world, sum).await;
}

#[tokio::test]
async fn many_channels_are_taken_in_bounded_rounds() {
    let (world, sum) = charged(300).await;
    let mut options = world.options();
    options.round_channels_max = 64;
    let settlement = world.settlement_with(options);
    let first = settlement.step(Trigger::Demand(world.clock.now())).await;
    assert!(first.more);
    assert_eq!(first.batches.len(), 32, "64 channels are claimed and paid, four at a time");
    settle(&settlement).await;
    assert_tied(&world, sum).await;
}

#[tokio::test]
async fn a_crash_at_any_step_neither_loses_nor_doubles_a_claim() {
    for script in [&[][..], &[Fault::Late], &[Fault::ErrorAfter, Fault::Drop]] {
        for at in 0.. {
            let (mut world, sum) = charged(3).await;
            world.request_close(3);
            world.chain.fault(script.iter().copied());
            world.crash.schedule(Some(at));
            let settlement = world.settlement();
            let crashed = tokio::select! {
                biased;
                () = world.crash.hit.notified() => true,
                _ = settle(&settlement) => false,
            };
            drop(settlement);
            world.check();
            if !crashed {
                assert!(at > 20, "only {at} steps");
                break;
            }
            world.restart().await;
            world.chain.release();
            let settlement = world.settlement();
            settle_until_done(&world, &settlement).await;
            assert_tied(&world, sum).await;
        }
    }
}

#[tokio::test]
async fn a_second_crash_while_recovering_is_no_worse() {
    for (first, second) in (0..60).step_by(4).flat_map(|first| (0..60).step_by(7).map(move |second| (first, second))) {
        let (mut world, sum) = charged(2).await;
        for at in [first, second] {
            world.crash.schedule(Some(at));
            let settlement = world.settlement();
            tokio::select! {
                biased;
                () = world.crash.hit.notified() => {}
                _ = settle(&settlement) => {}
            }
            drop(settlement);
            world.restart().await;
        }
        settle_until_done(&world, &world.settlement()).await;
        assert_tied(&world, sum).await;
    }
}

/// A generator for the simulation: the same seed, the same story.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

fn heal(world: &World) {
    (1..=6).for_each(|n| world.chain.poison(world.id(n), false));
    world.chain.fault([]);
    world.chain.release();
}

#[tokio::test]
async fn a_simulation_with_faults_ties_out() {
    for seed in 1..=25 {
        let mut dice = Dice(0x9E37_79B9_7F4A_7C15_u64.wrapping_mul(seed));
        let mut world = World::new().await;
        let mut settlement = world.settlement();
        let (mut sum, mut closed) = (0, Vec::new());
        for _ in 0..60 {
            let n = u32::try_from(1 + dice.roll(6)).unwrap();
            match dice.roll(12) {
                0..=4 if !closed.contains(&n) => {
                    let amount = 1 + dice.roll(30_000);
                    world.charge(n, amount).await;
                    sum += amount;
                }
                5 => {
                    let faults = [Fault::Drop, Fault::Late, Fault::ErrorBefore, Fault::ErrorAfter, Fault::Refuse];
                    let index = usize::try_from(dice.roll(5)).unwrap();
                    world.chain.fault(vec![faults[index]; usize::try_from(1 + dice.roll(4)).unwrap()]);
                }
                6 => world.chain.release(),
                7 => world.pass(dice.roll(200)),
                8 if !closed.contains(&n) && world.ledger.channel(&world.id(n)).is_some() => {
                    world.request_close(n);
                    closed.push(n);
                    settlement.watch().await.unwrap();
                    // The deadline does not pass here: the loop is given its time.
                    heal(&world);
                    settle_until_done(&world, &settlement).await;
                }
                9 => {
                    drop(settlement);
                    world.restart().await;
                    settlement = world.settlement();
                }
                10 => {
                    world.chain.poison(world.id(n), dice.roll(2) == 0);
                }
                _ => {
                    let trigger = if dice.roll(3) == 0 { Trigger::Pressed } else { Trigger::Clock };
                    settlement.step(trigger).await;
                }
            }
            world.check();
        }
        heal(&world);
        settle_until_done(&world, &settlement).await;
        world.check();
        assert_eq!(world.chain.pay_to_balance(), sum, "seed {seed}");
        assert_eq!(settlement.status().lost, Amount::ZERO, "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_loop_runs_until_it_is_told_to_stop() {
    let (world, sum) = charged(5).await;
    let mut options = world.options();
    options.rules.max_age = Duration::ZERO;
    let settlement = std::sync::Arc::new(world.settlement_with(options));
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = std::sync::Arc::clone(&settlement);
    let task = tokio::spawn(async move {
        running.run(async move { drop(stopped.await) }).await;
    });
    while world.chain.pay_to_balance() < sum {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    stop.send(()).unwrap();
    task.await.unwrap();
    assert_tied(&world, sum).await;
}
