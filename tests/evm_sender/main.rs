//! The sender of transactions on a chain that misbehaves, in time that a test moves: whatever it says of a transaction
//! must be what the chain did, and nothing may run twice.

#![allow(clippy::unwrap_used, reason = "a test that cannot build its own fixture should stop")]

mod chain;

use std::sync::Arc;
use std::time::Duration;

use chain::{Rng, World};
use turnpike::chain::evm::fees::FeeLimits;
use turnpike::chain::evm::key::GasKey;
use turnpike::chain::evm::sender::{Fate, PrepareError, Sender, SenderOptions, Submission};
use turnpike::chain::evm::{Call, EvmError, Refusal};
use turnpike::x402::evm::Address;

const GAS: u64 = 100_000;
const LONG: Duration = Duration::from_secs(24 * 3600);

fn options() -> SenderOptions {
    SenderOptions {
        fees: FeeLimits { max_fee_per_gas_max: 1 << 60, ..FeeLimits::DEFAULT },
        confirmations: 2,
        ..SenderOptions::DEFAULT
    }
}

fn key() -> GasKey {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "07".repeat(32)).unwrap();
    GasKey::from_file(file.path()).unwrap()
}

fn call(data: impl Into<Vec<u8>>) -> Call {
    Call { to: Address([9; 20]), data: data.into() }
}

/// Runs a test in time that moves only when all wait.
fn run<F: Future>(test: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(test)
}

/// A quiet chain and a sender on it.
fn quiet() -> (Arc<World>, Sender) {
    let world = Arc::new(World::new(1));
    let sender = Sender::new(world.clone(), key(), options());
    (world, sender)
}

async fn send(sender: &Sender, data: &[u8]) -> Submission {
    sender.send(sender.prepare(call(data), GAS).await.unwrap()).await.unwrap()
}

/// What a task did with one call.
struct Done {
    data: Vec<u8>,
    /// Of the last attempt; those before it must not have run.
    last: Last,
}

enum Last {
    NotSent,
    Sent(Submission, Fate),
}

/// Prepares, sends and waits as a caller would, in any order and with any pauses.
async fn one(sender: Sender, world: Arc<World>, mut rng: Rng, data: Vec<u8>) -> Done {
    let mut last = Last::NotSent;
    for _ in 0..3 {
        rng.pause(20_000).await;
        let Ok(prepared) = sender.prepare(call(&*data), GAS).await else { continue };
        rng.pause(3_000).await;
        if rng.one_in(4) {
            continue;
        }
        let hash = prepared.signed().hash();
        match sender.send(prepared).await {
            Ok(submission) => {
                assert_eq!(submission.hashes()[0], hash, "what is written down is what is sent");
                let fate = sender.wait(&submission, Duration::from_millis(rng.below(90_000))).await;
                let again = fate == Fate::Superseded;
                last = Last::Sent(submission, fate);
                if !again {
                    break;
                }
                assert_eq!(world.runs(&data), 0, "superseded, and yet it ran");
            }
            Err(not_sent) => assert!(!matches!(not_sent.refusal, Refusal::Other), "{not_sent}"),
        }
    }
    Done { data, last }
}

async fn world_of(seed: u64) -> [usize; 4] {
    let world = Arc::new(World::new(seed));
    let mut rng = Rng::new(seed ^ 0xA5A5);
    let sender = Sender::new(world.clone(), key(), options());
    world.misbehave(true);
    let blocks = tokio::spawn(Arc::clone(&world).make_blocks());
    let tasks: Vec<_> = (0..10_u8)
        .map(|n| {
            // One of four reverts.
            let data = vec![if n % 4 == 0 { 0xFF } else { 0 }, n];
            tokio::spawn(one(sender.clone(), world.clone(), Rng::new(rng.next()), data))
        })
        .collect();
    let mut done = Vec::new();
    for task in tasks {
        done.push(task.await.unwrap());
    }
    world.misbehave(false);
    let mut count = [0; 4];
    for Done { data, last } in done {
        let runs = world.runs(&data);
        match last {
            Last::NotSent => {
                assert_eq!(runs, 0, "seed {seed}: never sent, and yet it ran");
                count[0] += 1;
            }
            Last::Sent(submission, mut fate) => {
                if fate == Fate::Unknown {
                    count[3] += 1;
                    fate = sender.wait(&submission, LONG).await;
                }
                let (expected, receipt) = match &fate {
                    Fate::Confirmed(receipt) => (1, Some((receipt, true))),
                    Fate::Reverted(receipt) => (1, Some((receipt, false))),
                    Fate::Superseded => (0, None),
                    Fate::Unknown => panic!("seed {seed}: never decided: {submission:?}"),
                };
                assert_eq!(world.runs(&data), expected, "seed {seed}: {fate:?}");
                if let Some((receipt, succeeded)) = receipt {
                    assert!(submission.hashes().contains(&receipt.transaction));
                    assert_eq!(receipt.succeeded, succeeded);
                    assert_eq!(succeeded, data[0] != 0xFF);
                }
                count[if expected == 1 { 1 } else { 2 }] += 1;
            }
        }
    }
    // Somebody else may have used the next nonce, which the sender learns when it is refused.
    let settled = match sender.send(sender.prepare(call(*b"after all"), GAS).await.unwrap()).await {
        Ok(submission) => submission,
        Err(not_sent) if not_sent.is_nonce() => send(&sender, b"after all").await,
        Err(not_sent) => panic!("seed {seed}: {not_sent}"),
    };
    assert!(matches!(sender.wait(&settled, LONG).await, Fate::Confirmed(_)), "seed {seed}: a gap stayed open");
    blocks.abort();
    count
}

#[test]
fn whatever_the_chain_does_nothing_runs_twice_and_all_is_told_as_it_was() {
    let seeds: u64 = std::env::var("TURNPIKE_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(200);
    let mut sums = [0; 4];
    for seed in 0..seeds {
        let count = run(world_of(seed));
        for (sum, count) in sums.iter_mut().zip(count) {
            *sum += count;
        }
    }
    println!("never sent {}, ran {}, superseded {}, unknown at first {}", sums[0], sums[1], sums[2], sums[3]);
    assert!(sums.iter().all(|sum| *sum > 0), "the worlds did not meet every case: {sums:?}");
}

#[test]
fn concurrent_submissions_have_nonces_in_a_row() {
    run(async {
        let (world, sender) = quiet();
        let sent: Vec<_> = futures_util::future::join_all((0..10_u8).map(|n| {
            let sender = sender.clone();
            async move { send(&sender, &[n]).await }
        }))
        .await;
        let mut nonces: Vec<_> = sent.iter().map(Submission::nonce).collect();
        nonces.sort_unstable();
        assert_eq!(nonces, (0..10).collect::<Vec<_>>());
        world.block();
        world.block();
        for submission in &sent {
            assert!(matches!(sender.wait(submission, LONG).await, Fate::Confirmed(_)));
        }
    });
}

#[test]
fn a_transaction_that_pays_too_little_is_bumped_and_either_version_counts() {
    run(async {
        let (world, sender) = quiet();
        let submission = send(&sender, b"x").await;
        world.set_base_fee(1 << 40);
        let blocks = tokio::spawn(Arc::clone(&world).make_blocks());
        let Fate::Confirmed(receipt) = sender.wait(&submission, LONG).await else { panic!("confirmed") };
        blocks.abort();
        let hashes = submission.hashes();
        assert!(hashes.len() > 1 && hashes.contains(&receipt.transaction), "{hashes:?}");
        assert_eq!(world.runs(b"x"), 1);
    });
}

#[test]
fn no_bump_goes_above_the_cap() {
    run(async {
        let world = Arc::new(World::new(1));
        let fees = FeeLimits { max_fee_per_gas_max: 5_000, ..FeeLimits::DEFAULT };
        let sender = Sender::new(world.clone(), key(), SenderOptions { fees, ..options() });
        let submission = send(&sender, b"x").await;
        world.set_base_fee(6_000);
        let blocks = tokio::spawn(Arc::clone(&world).make_blocks());
        assert_eq!(sender.wait(&submission, Duration::from_secs(3600)).await, Fate::Unknown);
        assert!(world.highest_fee() <= 5_000, "{}", world.highest_fee());
        let refused = sender.prepare(call(*b"y"), GAS).await.unwrap_err();
        assert!(matches!(refused, PrepareError::FeeAboveCap { base_fee: 6_000, cap: 5_000 }), "{refused}");
        world.set_base_fee(1);
        assert!(matches!(sender.wait(&submission, LONG).await, Fate::Confirmed(_)));
        blocks.abort();
    });
}

#[test]
fn what_is_prepared_and_not_sent_leaves_no_gap() {
    run(async {
        let (world, sender) = quiet();
        let first = sender.prepare(call(*b"a"), GAS).await.unwrap();
        let second = send(&sender, b"b").await;
        assert_eq!((first.signed().unsigned().nonce, second.nonce()), (0, 1));
        let blocks = tokio::spawn(Arc::clone(&world).make_blocks());
        // As long as it is held, the second one waits for it.
        assert_eq!(sender.wait(&second, Duration::from_secs(3600)).await, Fate::Unknown);
        drop(first);
        assert!(matches!(sender.wait(&second, LONG).await, Fate::Confirmed(_)));
        blocks.abort();
        assert_eq!((world.runs(b"a"), world.runs(b"b"), world.runs(b"")), (0, 1, 1));
    });
}

#[test]
fn a_transaction_that_all_nodes_forgot_is_sent_again() {
    run(async {
        let (world, sender) = quiet();
        let submission = send(&sender, b"x").await;
        world.forget_all();
        let blocks = tokio::spawn(Arc::clone(&world).make_blocks());
        assert!(matches!(sender.wait(&submission, LONG).await, Fate::Confirmed(_)));
        blocks.abort();
    });
}

#[test]
fn what_nobody_waits_for_is_looked_after_all_the_same() {
    run(async {
        let (world, sender) = quiet();
        let keeper = sender.keep_looking_after();
        send(&sender, b"x").await;
        world.forget_all();
        world.set_base_fee(1 << 40);
        let blocks = tokio::spawn(Arc::clone(&world).make_blocks());
        while world.runs(b"x") == 0 {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        blocks.abort();
        drop(sender);
        keeper.await.unwrap();
    });
}

#[test]
fn after_a_restart_what_was_written_down_is_taken_up() {
    run(async {
        let (world, sender) = quiet();
        let prepared = sender.prepare(call(*b"kept"), GAS).await.unwrap();
        let kept = prepared.signed().raw().to_vec();
        let sent = sender.send(prepared).await.unwrap();
        let lost = send(&sender, b"not kept").await;
        world.forget_all();

        let sender = Sender::new(world.clone(), key(), options());
        let other = send(&sender, b"new").await;
        assert_eq!(other.nonce(), sent.nonce(), "the chain does not know of the one that was sent before");
        let adopted = sender.adopt(&kept).await.unwrap();
        let blocks = tokio::spawn(Arc::clone(&world).make_blocks());
        assert!(matches!(sender.wait(&other, LONG).await, Fate::Confirmed(_)));
        assert_eq!(sender.wait(&adopted, LONG).await, Fate::Superseded);
        blocks.abort();
        assert_eq!((world.runs(b"kept"), world.runs(b"new")), (0, 1));
        drop(lost);

        let third = Sender::new(world.clone(), key(), options());
        let prepared = third.prepare(call(*b"later"), GAS).await.unwrap();
        let kept = prepared.signed().raw().to_vec();
        third.send(prepared).await.unwrap();
        let fourth = Sender::new(world.clone(), key(), options());
        let adopted = fourth.adopt(&kept).await.unwrap();
        let again = fourth.adopt(&kept).await.unwrap();
        assert_eq!(adopted.hash(), again.hash());
        let blocks = tokio::spawn(Arc::clone(&world).make_blocks());
        assert!(matches!(fourth.wait(&adopted, LONG).await, Fate::Confirmed(_)));
        blocks.abort();
        assert_eq!(world.runs(b"later"), 1);
        assert!(fourth.adopt(b"no transaction").await.is_err());
    });
}

#[test]
fn what_a_restart_left_in_the_pool_holds_nothing_up_for_ever() {
    run(async {
        let (world, sender) = quiet();
        let orphan = send(&sender, b"orphan").await;
        world.set_base_fee(1 << 40);
        let sender = Sender::new(world.clone(), key(), options());
        let next = send(&sender, b"next").await;
        assert_eq!(next.nonce(), orphan.nonce() + 1, "the pool's transaction is counted");
        let blocks = tokio::spawn(Arc::clone(&world).make_blocks());
        assert!(matches!(sender.wait(&next, LONG).await, Fate::Confirmed(_)));
        blocks.abort();
    });
}

#[test]
fn an_account_without_coin_is_told_and_its_nonce_is_kept() {
    run(async {
        let (world, sender) = quiet();
        world.set_poor(true);
        let prepared = sender.prepare(call(*b"x"), GAS).await.unwrap();
        let not_sent = sender.send(prepared).await.unwrap_err();
        assert_eq!(not_sent.refusal, Refusal::InsufficientFunds);
        assert!(not_sent.text.contains(&sender.address().to_string()), "{not_sent}");
        world.set_poor(false);
        assert_eq!(send(&sender, b"y").await.nonce(), 0);
    });
}

#[test]
fn there_is_a_limit_to_what_is_unmined() {
    run(async {
        let (world, sender) = quiet();
        for n in 0..16_u8 {
            send(&sender, &[n]).await;
        }
        assert!(matches!(sender.prepare(call(*b"x"), GAS).await, Err(PrepareError::Busy(16))));
        world.block();
        assert!(sender.prepare(call(*b"x"), GAS).await.is_ok());
        let limit = SenderOptions::DEFAULT.gas_limit_max;
        let above = sender.prepare(call(*b"x"), limit + 1).await;
        assert!(matches!(above, Err(PrepareError::GasAboveLimit { .. })));
    });
}

#[test]
fn a_chain_that_cannot_be_reached_prepares_nothing() {
    run(async {
        let (world, sender) = quiet();
        world.set_down(true);
        let error = sender.prepare(call(*b"x"), GAS).await.unwrap_err();
        assert!(matches!(error, PrepareError::Chain(EvmError::Unavailable(_))), "{error}");
        world.set_down(false);
        assert_eq!(send(&sender, b"x").await.nonce(), 0);
    });
}
