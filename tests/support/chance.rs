//! What simulations are made of: chance from one seed, simulated time, a life's power and its disk, and things that go on
//! side by side in an order of chance.
//!
//! A life that has lost its power is never answered again, neither the requests in flight nor the tasks behind them.
//! That is a crash: what was sent and written stays, and nothing more happens.

use std::future::{pending, poll_fn};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Poll, Waker};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::time::Instant;
use turnpike::clock::{Clock, UnixMillis};
use turnpike::ledger::channel::Family;
use turnpike::ledger::memory::MemoryStore;
use turnpike::ledger::store::{Snapshot, Store, StoreError, Write};

/// Everything that a world leaves to chance, from one seed.
#[derive(Clone, Debug)]
pub struct Random(Arc<AtomicU64>);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(AtomicU64::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5555)))
    }

    pub fn below(&self, end: u64) -> u64 {
        let state = self.0.load(Ordering::Relaxed);
        let state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0.store(state, Ordering::Relaxed);
        (state >> 33) % end
    }

    pub fn one_in(&self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub fn index(&self, len: usize) -> usize {
        usize::try_from(self.below(u64::try_from(len).unwrap())).unwrap()
    }

    pub fn shuffle<T>(&self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.index(last + 1));
        }
    }
}

/// One time for everything: the runtime's, which stands still while anybody has something to do.
#[derive(Debug)]
pub struct SimulatedClock(Instant);

impl SimulatedClock {
    pub fn start() -> Self {
        Self(Instant::now())
    }
}

impl Clock for SimulatedClock {
    fn now(&self) -> UnixMillis {
        UnixMillis(1_800_000_000_000).plus(self.0.elapsed())
    }
}

/// One life's power.
pub struct Power {
    random: Random,
    on: AtomicBool,
    /// How many points are passed until it fails; 0 for never.
    left: AtomicU64,
    /// Who is told when it fails.
    told: Mutex<Option<Waker>>,
}

impl Power {
    pub fn new(random: Random) -> Arc<Self> {
        Arc::new(Self { random, on: AtomicBool::new(true), left: AtomicU64::new(0), told: Mutex::new(None) })
    }

    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    pub fn fails_after(&self, points: u64) {
        self.left.store(points, Ordering::Relaxed);
    }

    pub fn tell(&self, waker: &Waker) {
        *self.told.lock() = Some(waker.clone());
    }

    pub fn cut(&self) {
        self.on.store(false, Ordering::Relaxed);
        if let Some(told) = self.told.lock().take() {
            told.wake();
        }
    }

    /// Lets others go on, as often as chance says; does not return where the power has failed.
    pub async fn point(&self) {
        let left = self.left.load(Ordering::Relaxed);
        if left > 0 {
            self.left.store(left - 1, Ordering::Relaxed);
            if left == 1 {
                self.cut();
            }
        }
        for _ in 0..self.random.below(3) {
            tokio::task::yield_now().await;
        }
        if !self.is_on() {
            pending::<()>().await;
        }
    }
}

/// The disk, as a life sees it.
pub struct Disk<F: Family> {
    pub store: Arc<MemoryStore<F>>,
    pub power: Arc<Power>,
}

#[async_trait]
impl<F: Family> Store<F> for Disk<F> {
    async fn load(&self) -> Result<Snapshot<F>, StoreError> {
        self.store.load().await
    }

    async fn write(&self, writes: Vec<Write<F>>) -> Result<(), StoreError> {
        self.power.point().await;
        let mut write = self.store.write(writes);
        let written = poll_fn(|cx| {
            let written = write.as_mut().poll(cx);
            // Nothing holds writes back here, so one that is not answered at once met a crash.
            if written.is_pending() {
                self.power.cut();
            }
            written
        })
        .await;
        self.power.point().await;
        written
    }

    async fn batches(&self, limit: usize) -> Result<Vec<F::Batch>, StoreError> {
        self.store.batches(limit).await
    }
}

/// Polls all of `going` in an order of chance, each time that anybody is woken, until none is left or the power fails.
/// One whose patience ends is dropped right there. `looked` runs whenever one has ended.
pub async fn carry(mut going: Vec<Going>, random: &Random, power: &Power, mut looked: impl FnMut(&str)) {
    poll_fn(|cx| {
        power.tell(cx.waker());
        random.shuffle(&mut going);
        let mut place = 0;
        while place < going.len() && power.is_on() {
            let one = &mut going[place];
            let ended = one.work.as_mut().poll(cx).is_ready();
            one.polls_left = one.polls_left.map(|left| left.saturating_sub(1));
            let left = one.polls_left == Some(0) && !ended;
            if ended || left {
                let one = going.swap_remove(place);
                let line = format!("{} {}", one.name, if left { "was dropped" } else { "ended" });
                drop(one);
                looked(&line);
            } else {
                place += 1;
            }
        }
        if going.is_empty() || !power.is_on() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

/// Something that goes on beside others.
pub struct Going {
    pub name: String,
    pub work: std::pin::Pin<Box<dyn Future<Output = ()>>>,
    /// How often it is polled before it is dropped, where it is not let come to its end.
    pub polls_left: Option<u64>,
}
