//! Stopping without losing anybody.
//!
//! Owns the signal that starts a drain, and the count of what is still under way. Promises that whatever entered
//! before the deadline may finish, that nothing outlives the deadline, and that the [`Report`] says what became of
//! each connection. A dropped [`Signal`] starts the drain too: an owner that is gone cannot start it later.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// Longer ones are cut to this, so that time can always be added.
const GRACE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// Starts a drain.
#[derive(Debug)]
pub struct Signal {
    sender: watch::Sender<Option<Instant>>,
    grace: Duration,
}

/// Learns of a drain; clones are cheap.
#[derive(Clone, Debug)]
pub struct Watch {
    receiver: watch::Receiver<Option<Instant>>,
    grace: Duration,
}

/// A signal and its watch. `grace` is how long after the signal the last connection is cut.
#[must_use]
pub fn channel(grace: Duration) -> (Signal, Watch) {
    let (sender, receiver) = watch::channel(None);
    (Signal { sender, grace }, Watch { receiver, grace })
}

impl Signal {
    /// Starts the drain; a second call changes nothing.
    pub fn drain(&self) {
        let deadline = after(self.grace);
        self.sender.send_if_modified(|state| {
            let first = state.is_none();
            state.get_or_insert(deadline);
            first
        });
    }
}

impl Drop for Signal {
    fn drop(&mut self) {
        self.drain();
    }
}

impl Watch {
    /// Waits for the drain to start; returns the time at which whatever is left is cut.
    pub async fn started(&mut self) -> Instant {
        let seen = self.receiver.wait_for(Option::is_some).await.ok().and_then(|state| *state);
        seen.unwrap_or_else(|| after(self.grace))
    }

    /// Waits for the time at which whatever is left is cut.
    pub async fn deadline(&mut self) {
        let deadline = self.started().await;
        tokio::time::sleep_until(deadline).await;
    }

    fn has_started(&self) -> bool {
        self.receiver.borrow().is_some()
    }
}

fn after(grace: Duration) -> Instant {
    Instant::now() + grace.min(GRACE_MAX)
}

/// What became of the connections that were open when the drain began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Ended by themselves, with all their requests answered.
    pub drained: usize,
    /// Were still busy at the deadline and were cut.
    pub cut: usize,
}

impl Report {
    /// Both reports in one.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self { drained: self.drained.saturating_add(other.drained), cut: self.cut.saturating_add(other.cut) }
    }
}

/// Counts what is under way. It travels with each request as an extension, so that an upgrade can enter too.
#[derive(Clone, Debug)]
pub struct Tracker(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    watch: Watch,
    live: AtomicUsize,
    drained: AtomicUsize,
    cut: AtomicUsize,
    left: Notify,
}

impl Tracker {
    pub(crate) fn new(watch: Watch) -> Self {
        let zero = AtomicUsize::default;
        Self(Arc::new(Shared { watch, live: zero(), drained: zero(), cut: zero(), left: Notify::new() }))
    }

    /// Enters something that a drain waits for, until the token is dropped.
    #[must_use]
    pub fn enter(&self) -> Token {
        self.0.live.fetch_add(1, Ordering::Relaxed);
        Token { shared: self.0.clone(), cut: AtomicBool::new(false) }
    }

    /// Waits until all have left.
    pub(crate) async fn empty(&self) -> Report {
        loop {
            let left = self.0.left.notified();
            if self.0.live.load(Ordering::Acquire) == 0 {
                return self.report();
            }
            left.await;
        }
    }

    /// What has become of what has entered; whatever has not left counts as cut.
    pub(crate) fn report(&self) -> Report {
        let load = |count: &AtomicUsize| count.load(Ordering::Relaxed);
        let cut = load(&self.0.cut).saturating_add(load(&self.0.live));
        Report { drained: load(&self.0.drained), cut }
    }
}

/// One thing under way.
#[derive(Debug)]
pub struct Token {
    shared: Arc<Shared>,
    cut: AtomicBool,
}

impl Token {
    /// The drain that it has to heed.
    #[must_use]
    pub fn watch(&self) -> Watch {
        self.shared.watch.clone()
    }

    /// Says that it did not end by itself.
    pub fn cut(&self) {
        self.cut.store(true, Ordering::Relaxed);
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        if self.shared.watch.has_started() {
            let count = if self.cut.load(Ordering::Relaxed) { &self.shared.cut } else { &self.shared.drained };
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.shared.live.fetch_sub(1, Ordering::Release);
        self.shared.left.notify_one();
    }
}
