//! A seeded simulation: clients, crashes and faults against the real gate, ledger, facilitator and settlement over the
//! sandbox chain, in one process and in simulated time.
//!
//! Several things go on at once and are polled in an order of chance; any of them may be dropped at any poll, and the
//! power may fail at any call of the chain, the disk or the signer, so that a life ends between any two steps. The next
//! one finds what was durable. The invariants are checked whenever something has ended; at the end every unit of money
//! is where it belongs.
//!
//! One number makes a world: `TURNPIKE_SEED=k` runs one again, `TURNPIKE_SEEDS=n` chooses how many (10,000). The signer
//! is a double: one Ed25519 key in place of the threshold key, which is tested elsewhere; the signer's own rules judge
//! every request, as they do in the threshold signer.

mod books;
#[path = "../support/chance.rs"]
mod chance;
mod client;
mod ports;
mod steps;
mod world;
#[path = "../support/worlds.rs"]
mod worlds;

use std::cell::RefCell;
use std::hash::Hasher;
use std::rc::Rc;

use books::Counts;
use world::{Told, World};
use worlds::{enough_happened, no_task_panicked, run_world, run_worlds};

/// What a call costs, and the most that a metered one does.
const PRICE: u64 = 1_000;
const CEILING: u64 = 10_000;
/// What a channel is opened and topped up with.
const DEPOSIT: u64 = 8_000;
/// What each client has in the beginning.
const FUNDS: u64 = 10_000_000;
/// Seconds between a payer's wish to close a channel and its end.
const DELAY: u32 = 3_600;
/// How long a metered channel may live.
const METERED_SECONDS: u64 = 240;
const CLIENTS: usize = 3;
const STEPS: u64 = 24;

/// Runs one world; answers what happened in it, and a digest of all its steps.
fn world(seed: u64) -> Result<(Counts, u64), String> {
    let told = Rc::new(RefCell::new(Told::default()));
    let run = async {
        let mut world = World::new(seed, Rc::clone(&told)).await;
        for _ in 0..STEPS {
            world.step().await;
            world.check();
            no_task_panicked();
        }
        world.finish().await;
        no_task_panicked();
        let counts = world.books.borrow().counts;
        (counts, told.borrow().digest.finish())
    };
    run_world(seed, run, || Vec::from(std::mem::take(&mut told.borrow_mut().last)).join("\n"))
}

#[test]
fn money_ties_out_in_every_world() {
    let (worlds, counts) = run_worlds(10_000, |seed| world(seed).map(|(counts, _)| counts));
    println!("{worlds} worlds: {counts:?}");
    enough_happened(
        worlds,
        &[
            ("calls delivered", counts.delivered, 700),
            ("metered calls charged", counts.metered, 70),
            ("upstreams failed", counts.failed, 150),
            ("vouchers refused", counts.refused, 300),
            ("answers withheld", counts.withheld, 40),
            ("things dropped halfway", counts.dropped, 50),
            ("crashes", counts.crashes, 150),
            ("crashes halfway", counts.crashes_halfway, 100),
            ("metered calls found open by the next life", counts.recovered, 50),
            ("channels closed by their payers", counts.forced, 40),
            ("refunds", counts.refunds, 20),
        ],
    );
}

#[test]
fn one_seed_makes_one_world() {
    for seed in 0..8 {
        let digests = [(); 2].map(|()| world(seed).unwrap().1);
        assert_eq!(digests[0], digests[1], "seed {seed} made two worlds: its failures could not be repeated");
    }
}
