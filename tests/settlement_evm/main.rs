//! The settlement of EVM networks against a double of the settlement contract, and the real ledger: normal rounds, every
//! failure, a crash at every step, seeded worlds, and money tied out each time.
//!
//! Doubles: `contract` (the contract's semantics, real digests and signatures), `ports` (facilitator, reader of channels,
//! signer). Time is simulated. `TURNPIKE_SEED=k` runs one world again, `TURNPIKE_SEEDS=n` chooses how many
//! (500).

mod books;
#[path = "../support/chance.rs"]
mod chance;
mod contract;
mod ports;
mod world;
#[path = "../support/worlds.rs"]
mod worlds;

mod claims;
mod crashes;
mod payouts;
mod reader;
mod simulation;
mod withdrawals;

use turnpike::ledger::channel::evm::EvmBatchKind;
use turnpike::settlement::Outcome;
use turnpike::settlement::evm::{EvmReport, EvmSettlement};

use world::World;

async fn settle(settlement: &EvmSettlement) -> EvmReport {
    settlement.settle_now(&None).await
}

fn confirmed(report: &EvmReport, kind: EvmBatchKind) -> usize {
    let done = |outcome: &Outcome| matches!(outcome, Outcome::Confirmed { .. });
    report.batches.iter().filter(|batch| batch.kind == kind && done(&batch.outcome)).count()
}

/// Settles, with time passing, until nothing is open, owed, waits or is held.
async fn settle_until_done(world: &World, settlement: &EvmSettlement) {
    for _ in 0..24 {
        let report = settle(settlement).await;
        let open = world.life.ledger.open_batches().len();
        if open + settlement.status().unpaid == 0 && report.stuck.is_empty() && report.held.is_none() {
            return;
        }
        world.pass(120).await;
        world.contract.mine();
    }
    panic!("the settlement does not come to rest: {:?}", settlement.status());
}
