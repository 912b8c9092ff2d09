//! A crash at every step: at every write of the store, before and after it, and at every call of facilitator, reader and
//! signer, before and after it took effect. The next life completes what was begun, once.

use std::future::poll_fn;
use std::task::Poll;

use turnpike::amount::Amount;
use turnpike::ledger::channel::{ChainState, Evm, EvmOnChain};
use turnpike::ledger::memory::Fault as StoreFault;
use turnpike::ledger::store::RecordOf;
use turnpike::scheme::evm::EvmTerms;
use turnpike::scheme::evm::eip712::{ClaimEntry, claim_batch_digest, refund_digest};
use turnpike::settlement::evm::EvmOptions;

use crate::contract::{Contract, Revert, Row};
use crate::ports::Fault;
use crate::world::{World, authorizer, voucher};
use crate::{settle, settle_until_done};

/// More than a settlement of two batches has.
const STEPS_MAX: u64 = 200;

async fn charged() -> World {
    let world = World::new().await;
    for n in 1..=5 {
        world.charge_part(&world.terms(n), n, u128::from(n) * 100, 900).await;
    }
    world
}

fn options(world: &World) -> EvmOptions {
    EvmOptions { batch_claims: 3, ..world.options() }
}

/// A life settles until it dies; a second one dies too, somewhere else; the third completes it.
async fn survive(mut world: World, arm_second: impl Fn(&World), faults: &[Fault]) -> bool {
    world.facilitator.fault("claim", faults.iter().copied());
    world.facilitator.fault("settle", faults.iter().copied());
    let settlement = world.settlement_with(options(&world));
    let ended = world.runs(async move { drop(settle(&settlement).await) }).await;
    world.contract.check();
    world.restart().await;
    world.check();
    arm_second(&world);
    let settlement = world.settlement_with(options(&world));
    world.runs(async move { drop(settle(&settlement).await) }).await;
    world.facilitator.release(&world.contract);
    world.restart().await;
    // What was charged meanwhile changes nothing of what was begun.
    world.charge(1, 11).await;
    let settlement = world.settlement_with(options(&world));
    settle_until_done(&world, &settlement).await;
    world.assert_tied(1_511);
    ended
}

#[tokio::test(start_paused = true)]
async fn at_every_write() {
    for fault in [StoreFault::CrashBefore, StoreFault::CrashAfter] {
        for faults in [&[][..], &[Fault::BreakAfter], &[Fault::Late], &[Fault::BreakBefore]] {
            for nth in 1.. {
                assert!(nth < STEPS_MAX);
                let world = charged().await;
                world.store.fault_at(nth, fault);
                let ended = survive(world, |world| world.store.fault_at(1 + nth % 4, fault), faults).await;
                if ended {
                    assert!(nth > 12 || !faults.is_empty(), "a settlement writes more often than {nth} times");
                    break;
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn at_every_call_before_and_after_it_took_effect() {
    for faults in [&[][..], &[Fault::BreakAfter], &[Fault::Late], &[Fault::Unavailable]] {
        for nth in 1.. {
            assert!(nth < STEPS_MAX);
            let world = charged().await;
            world.life.power.fails_after(nth);
            let ended = survive(world, |world| world.life.power.fails_after(1 + nth % 7), faults).await;
            if ended {
                assert!(nth > 40 || !faults.is_empty(), "a settlement has more steps than {nth}");
                break;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_running_loop_may_be_dropped_at_any_poll() {
    for polls in 1..60 {
        let mut world = charged().await;
        let settlement = world.settlement_with(options(&world));
        let mut step = Box::pin(settle(&settlement));
        for _ in 0..polls {
            if poll_fn(|cx| Poll::Ready(step.as_mut().poll(cx).is_ready())).await {
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(step);
        // In the same life: no turn is held, and nothing is forgotten.
        settle_until_done(&world, &settlement).await;
        world.assert_tied(1_500);
        drop(settlement);
        world.restart().await;
        settle(&world.settlement()).await;
        world.assert_tied(1_500);
    }
}

/// Refunds all that is left, as the gate does it: takes the channel out of service, has the chain claim and return, and
/// takes up what it says.
pub async fn refund(world: &World, terms: &EvmTerms) {
    let guard = world.life.ledger.begin_close(&terms.id).await.unwrap();
    guard.shut().await.unwrap();
    let record = guard.channel();
    let left = record.on_chain.balance.get() - record.charged.get();
    assert_eq!(sign_refund(&world.contract, &record, left), Ok(left));
    guard.finish(world.read_now(terms)).await.unwrap();
}

/// A refund's transaction: claims what was charged, and returns up to `amount`.
pub fn sign_refund(contract: &Contract, record: &RecordOf<Evm>, amount: u128) -> Result<u128, Revert> {
    let (key, terms) = (authorizer(), &record.terms);
    let domain = terms.seller.domain;
    let row = record.redeemable().map(|voucher| Row {
        config: terms.config(),
        max_claimable: voucher.cumulative,
        signature: voucher.signature,
        total: record.charged,
    });
    let rows = row.as_slice();
    let entry = |row: &Row| ClaimEntry {
        channel_id: terms.id,
        max_claimable_amount: row.max_claimable,
        total_claimed: row.total,
    };
    let entries: Vec<ClaimEntry> = rows.iter().map(entry).collect();
    let claim = key.sign(&claim_batch_digest(&domain, &entries));
    let (amount, nonce) = (Amount::new(amount), record.on_chain.refund_nonce);
    let signed = key.sign(&refund_digest(&domain, &terms.id, nonce.into(), amount));
    let claims = (!rows.is_empty()).then_some((rows, &claim));
    contract.refund(claims, &terms.config(), amount, nonce, &signed)
}

/// The double is worth what it refuses.
#[tokio::test(start_paused = true)]
async fn the_double_of_the_contract_refuses_what_the_contract_refuses() {
    let world = World::new().await;
    let terms = world.terms(1);
    let (key, domain) = (authorizer(), terms.seller.domain);
    world.deposit(&terms, 1_000);
    let row = |max: u128, total: u128| Row {
        config: terms.config(),
        max_claimable: Amount::new(max),
        signature: voucher(&terms, 1, max).signature,
        total: Amount::new(total),
    };
    let sign = |row: &Row| {
        let entry =
            ClaimEntry { channel_id: terms.id, max_claimable_amount: row.max_claimable, total_claimed: row.total };
        key.sign(&claim_batch_digest(&domain, &[entry]))
    };
    let claim = |row: Row| world.contract.claim(std::slice::from_ref(&row), &sign(&row)).map(|(moved, _)| moved);
    assert_eq!(claim(row(500, 501)), Err("ClaimExceedsCeiling"));
    assert_eq!(claim(row(2_000, 1_001)), Err("ClaimExceedsBalance"));
    let forged = Row { signature: voucher(&terms, 2, 500).signature, ..row(500, 400) };
    assert_eq!(claim(forged), Err("InvalidSignature"));
    let (good, other) = (row(500, 400), row(500, 300));
    assert_eq!(world.contract.claim(std::slice::from_ref(&good), &sign(&other)).map(drop), Err("InvalidSignature"));
    assert_eq!(world.contract.claim(&[], &sign(&other)).map(drop), Err("EmptyBatch"));
    assert_eq!(claim(good.clone()), Ok(400));
    let forged = Row { signature: voucher(&terms, 2, 500).signature, ..row(9_999, 300) };
    assert_eq!(claim(forged), Ok(0), "a row at or below the watermark is passed over unread");
    assert_eq!(claim(good), Ok(0));
    let refund = |nonce: u64| {
        let signed = key.sign(&refund_digest(&domain, &terms.id, nonce.into(), Amount::new(100)));
        world.contract.refund(None, &terms.config(), Amount::new(100), nonce, &signed)
    };
    assert_eq!((refund(1), refund(0), refund(0)), (Err("InvalidRefundNonce"), Ok(100), Err("InvalidRefundNonce")));
    assert_eq!(world.contract.initiate_withdraw(&terms.config(), 501), Err("WithdrawAmountExceedsAvailable"));
    assert_eq!(world.contract.initiate_withdraw(&terms.config(), 500), Ok(()));
    assert_eq!(world.contract.initiate_withdraw(&terms.config(), 1), Err("WithdrawalAlreadyPending"));
    assert_eq!(world.contract.finalize_withdraw(&terms.config()), Err("WithdrawDelayNotElapsed"));
    assert_eq!(claim(row(600, 600)), Ok(200), "a withdrawal reserves nothing");
    world.pass(900).await;
    assert_eq!(world.contract.finalize_withdraw(&terms.config()), Ok(300));
    let settle = || world.contract.settle(terms.seller.pay_to, terms.seller.token).map(|(paid, _)| paid);
    assert_eq!((settle(), settle()), (Ok(600), Ok(0)));
    world.contract.check();
    let none = EvmOnChain::none(world.read_now(&terms).read_at());
    assert_eq!(
        world.read_now(&terms),
        EvmOnChain {
            balance: Amount::new(600),
            claimed: Amount::new(600),
            refund_nonce: 1,
            block: world.read_now(&terms).block,
            ..none
        }
    );
}
