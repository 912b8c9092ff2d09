//! Many worlds of a simulation, on all processors, until one fails.
//!
//! `TURNPIKE_SEED=k` runs one world again, `TURNPIKE_SEEDS=n` chooses how many.

use std::cell::Cell;
use std::ops::AddAssign;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};

thread_local! {
    /// Whether anything panicked on this thread: what panics in a task behind a request would pass unseen.
    static PANICKED: Cell<bool> = const { Cell::new(false) };
}

/// Fails where a task behind the world's own has panicked.
pub fn no_task_panicked() {
    assert!(!PANICKED.get(), "a task behind something panicked");
}

/// Runs one world in simulated time. `last` tells its last steps, should it fail.
pub fn run_world<T>(seed: u64, world: impl Future<Output = T>, last: impl FnOnce() -> String) -> Result<T, String> {
    PANICKED.set(false);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    catch_unwind(AssertUnwindSafe(|| runtime.block_on(world)))
        .map_err(|_| format!("its last steps:\n{}\nseed {seed} failed; run it again with TURNPIKE_SEED={seed}", last()))
}

/// Runs the worlds that the environment asks for, else `unasked` many. Answers how many, and the sum of what they count.
pub fn run_worlds<C>(unasked: u64, world: impl Fn(u64) -> Result<C, String> + Sync) -> (u64, C)
where
    C: AddAssign + Default + Send,
{
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        PANICKED.set(true);
        hook(info);
    }));
    let (first, end) = match number("TURNPIKE_SEED") {
        Some(seed) => (seed, seed + 1),
        None => (0, number("TURNPIKE_SEEDS").unwrap_or(unasked)),
    };
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let failed = AtomicBool::new(false);
    let results: Vec<_> = std::thread::scope(|scope| {
        let (world, failed) = (&world, &failed);
        let start = |part| {
            let part = u64::try_from(part).unwrap();
            scope.spawn(move || in_turn((first + part..end).step_by(threads), world, failed))
        };
        let running: Vec<_> = (0..threads).map(start).collect();
        running.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let mut counts = C::default();
    for result in results {
        counts += result.unwrap_or_else(|why| panic!("{why}"));
    }
    (end - first, counts)
}

fn in_turn<C: AddAssign + Default>(
    seeds: impl Iterator<Item = u64>,
    world: &impl Fn(u64) -> Result<C, String>,
    failed: &AtomicBool,
) -> Result<C, String> {
    let mut counts = C::default();
    for seed in seeds {
        if failed.load(Ordering::Relaxed) {
            break;
        }
        counts += world(seed).inspect_err(|_| failed.store(true, Ordering::Relaxed))?;
    }
    Ok(counts)
}

/// A simulation in which little happens shows little: so often in a hundred worlds at least, seldom enough to be sure.
pub fn enough_happened(worlds: u64, seen: &[(&str, u64, u64)]) {
    for (what, count, in_a_hundred) in seen {
        assert!(worlds < 100 || count * 100 > worlds * in_a_hundred, "hardly any {what}: {count} in {worlds} worlds");
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} must be a number")))
}
