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

use std::cell::{Cell, RefCell};
use std::hash::Hasher;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};

use books::Counts;
use world::{Told, World};

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

thread_local! {
    /// Whether anything panicked on this thread: what panics in a task behind a request would pass unseen.
    static PANICKED: Cell<bool> = const { Cell::new(false) };
}

/// Runs one world; answers what happened in it, and a digest of all its steps.
fn world(seed: u64) -> Result<(Counts, u64), String> {
    PANICKED.set(false);
    let told = Rc::new(RefCell::new(Told::default()));
    let run = async {
        let mut world = World::new(seed, Rc::clone(&told)).await;
        for _ in 0..STEPS {
            world.step().await;
            world.check();
            assert!(!PANICKED.get(), "a task behind a request panicked");
        }
        world.finish().await;
        assert!(!PANICKED.get(), "a task behind a request panicked");
        let counts = world.books.borrow().counts;
        (counts, told.borrow().digest.finish())
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    catch_unwind(AssertUnwindSafe(|| runtime.block_on(run))).map_err(|_| {
        let last = Vec::from(std::mem::take(&mut told.borrow_mut().last)).join("\n");
        format!("its last steps:\n{last}\nseed {seed} failed; run it again with TURNPIKE_SEED={seed}")
    })
}

fn worlds(seeds: impl Iterator<Item = u64>, failed: &AtomicBool) -> Result<Counts, String> {
    let mut counts = Counts::default();
    for seed in seeds {
        if failed.load(Ordering::Relaxed) {
            break;
        }
        let (some, _) = world(seed).inspect_err(|_| failed.store(true, Ordering::Relaxed))?;
        counts += some;
    }
    Ok(counts)
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} must be a number")))
}

#[test]
fn money_ties_out_in_every_world() {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        PANICKED.set(true);
        hook(info);
    }));
    let (first, end) = match number("TURNPIKE_SEED") {
        Some(seed) => (seed, seed + 1),
        None => (0, number("TURNPIKE_SEEDS").unwrap_or(10_000)),
    };
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let failed = AtomicBool::new(false);
    let results: Vec<_> = std::thread::scope(|scope| {
        let start = |part| {
            let part = u64::try_from(part).unwrap();
            let failed = &failed;
            scope.spawn(move || worlds((first + part..end).step_by(threads), failed))
        };
        let running: Vec<_> = (0..threads).map(start).collect();
        running.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let mut counts = Counts::default();
    for result in results {
        match result {
            Ok(some) => counts += some,
            Err(why) => panic!("{why}"),
        }
    }
    println!("{} worlds: {counts:?}", end - first);
    // A simulation in which little happens shows little: so often in a hundred worlds at least, seldom enough to be
    // sure.
    let worlds = end - first;
    for (what, count, in_a_hundred) in [
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
    ] {
        assert!(worlds < 100 || count * 100 > worlds * in_a_hundred, "hardly any {what}: {count} in {worlds} worlds");
    }
}

#[test]
fn one_seed_makes_one_world() {
    for seed in 0..8 {
        let digests = [(); 2].map(|()| world(seed).unwrap().1);
        assert_eq!(digests[0], digests[1], "seed {seed} made two worlds: its failures could not be repeated");
    }
}
