//! The loop that turns charged vouchers into money: due, batch, approved, signed, journalled, sent, confirmed,
//! reconciled.
//!
//! Owns when and in what order channels are claimed, paid out, sealed and cleaned up. Promises: nothing is claimed that
//! was not charged and signed (invariant L3); a batch is journalled before it is sent, so that a crash at any point
//! neither loses nor doubles a claim; while one batch of a channel is of unknown fate, no second one is made; a payer
//! who closes a channel is answered with the last voucher before the deadline. Refuses: to name the gate, to read any
//! clock but the given one, to hold a lock of the request path while it waits.
//!
//! [`plan`] decides (pure), [`batch`] builds (pure), `pick` finds what is due and keeps what a round does not take in a
//! [`backlog`], `run` makes a round, `carry` takes one batch through its steps, `watch` reads the chain's side,
//! [`reconcile`] compares the books. Source: `scheme_batch_settlement_svm.md`,
//! section 5, phase 4, and section 6.

pub mod backlog;
pub mod batch;
pub mod batches;
mod carry;
pub mod destination;
pub mod evm;
mod pick;
pub mod plan;
pub mod reconcile;
pub mod report;
mod run;
#[cfg(test)]
mod testing;
pub mod trouble;
mod watch;

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore, watch as flag};

pub use self::report::{BatchReport, NoObserver, Observer, Outcome, Report, Status, Stuck, Timings};
pub use self::run::Halt;
pub use self::watch::Watched;

use self::backlog::BACKLOG_CHANNELS_MAX;
use self::pick::Found;
use self::plan::Rules;
use self::trouble::{Backoff, Troubles};
use crate::amount::Amount;
use crate::chain::Chain;
use crate::clock::{Clock, UnixMillis};
use crate::ledger::Ledger;
use crate::ledger::channel::Seller;
use crate::ledger::store::Glance;
use crate::policy::Policy;
use crate::signer::Signer;
use crate::x402::Key;

/// The settlement's own bounds and times.
#[derive(Clone, Debug)]
pub struct Options {
    /// The merchant's accounts on this chain, one per asset: what unknown channels are compared with.
    pub sellers: Vec<Arc<Seller>>,
    /// How often everything worth claiming is claimed.
    pub interval: Duration,
    /// When a channel is due.
    pub rules: Rules,
    /// How many channels share a transaction, 1 to 4.
    pub batch_channels: usize,
    /// How many batches are under way at once.
    pub in_flight_max: usize,
    /// The least time between the beginnings of two batches, so that very many leave the processors to requests in between.
    /// Not kept by what closes a channel, where exposure presses, and once something is due for longer than twice
    /// [`Rules::max_age`]. Zero for none, and then no timer is needed.
    pub pace: Duration,
    /// How many channels one round takes in each of its two phases.
    pub round_channels_max: usize,
    /// How many due channels of each phase one look through the ledger keeps for the rounds to come.
    pub backlog_channels_max: usize,
    /// How long a transaction is waited for before it counts as of unknown fate.
    pub confirm_wait: Duration,
    /// What is paid above the base fee, in millionths of a lamport per compute unit; 0 for nothing.
    pub compute_unit_price: u64,
    /// How waits grow after failures.
    pub backoff: Backoff,
    /// How often the loop looks for what is due, and for how long at most it works off what one look found.
    pub tick: Duration,
    /// How often the chain's side of the channels is read.
    pub watch_interval: Duration,
    /// How many channels one such pass reads, those first that were not read for longest.
    pub watch_channels_max: usize,
    /// How often the chain is asked for channels that the ledger does not know.
    pub discover_interval: Duration,
}

impl Options {
    /// The defaults, for these accounts.
    #[must_use]
    pub fn new(sellers: Vec<Arc<Seller>>) -> Self {
        Self {
            sellers,
            interval: Duration::from_secs(600),
            rules: Rules {
                min_amount: Amount::new(10_000),
                max_age: Duration::from_secs(3_600),
                seal_margin: Duration::from_secs(300),
            },
            batch_channels: batch::BATCH_CHANNELS_MAX,
            in_flight_max: 4,
            pace: Duration::ZERO,
            round_channels_max: 256,
            backlog_channels_max: BACKLOG_CHANNELS_MAX,
            confirm_wait: Duration::from_secs(30),
            compute_unit_price: 0,
            backoff: Backoff {
                first: Duration::from_secs(2),
                longest: Duration::from_secs(1_800),
                longest_urgent: Duration::from_secs(15),
                seed: 0,
            },
            tick: Duration::from_secs(5),
            watch_interval: Duration::from_secs(60),
            watch_channels_max: 10_000,
            discover_interval: Duration::from_secs(3_600),
        }
    }
}

/// Why a round is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// Time has passed: what the rules say is due.
    Clock,
    /// Exposure presses: everything that can be claimed, the largest first.
    Pressed,
    /// Somebody asked, then: everything that was charged until then and can be claimed, and channels in trouble are not
    /// waited for. What is charged meanwhile is for the next time, or it would never end where requests come in.
    Demand(UnixMillis),
}

impl Trigger {
    /// Charges up to which moment are due whatever the rules say; `None` where only the rules count.
    pub(in crate::settlement) const fn until(self) -> Option<UnixMillis> {
        match self {
            Self::Clock => None,
            Self::Pressed => Some(UnixMillis(i64::MAX)),
            Self::Demand(asked) => Some(asked),
        }
    }
}

/// Which channels a round is about.
#[derive(Clone, Debug, Default)]
pub enum Filter {
    /// All.
    #[default]
    All,
    /// Only these.
    Channels(HashSet<Key>),
}

/// What is kept between rounds, in memory only: a restart begins with an empty one.
struct State {
    troubles: Troubles,
    last_sweep: UnixMillis,
    sweeping: bool,
    slot: u64,
    found: Found,
    /// Channels that the chain no longer has and that still owe: kept by the ledger, passed over here.
    gone: HashSet<Key>,
    /// What was lost on each channel, told once.
    lost: HashMap<Key, Amount>,
    last_success: Option<UnixMillis>,
    confirmed: u64,
    dropped: u64,
    last_error: Option<String>,
}

/// The settlement of one merchant key's channels on one chain.
pub struct Settlement {
    ledger: Arc<Ledger>,
    chain: Arc<dyn Chain>,
    signer: Arc<dyn Signer>,
    policy: Arc<Policy>,
    clock: Arc<dyn Clock>,
    options: Options,
    observer: Arc<dyn Observer>,
    fee_payer: Key,
    state: Mutex<State>,
    /// Rounds take turns.
    turn: tokio::sync::Mutex<()>,
    /// Turns to write.
    writes: Semaphore,
    /// Something has become due that does not wait for the tick.
    wake: Notify,
    stop: flag::Sender<bool>,
}

impl Settlement {
    /// A settlement that has done nothing yet. The first sweep comes one interval from now.
    #[must_use]
    pub fn new(
        ledger: Arc<Ledger>,
        chain: Arc<dyn Chain>,
        signer: Arc<dyn Signer>,
        policy: Arc<Policy>,
        clock: Arc<dyn Clock>,
        options: Options,
        observer: Arc<dyn Observer>,
    ) -> Self {
        let state = State {
            troubles: Troubles::new(options.backoff.clone()),
            last_sweep: clock.now(),
            sweeping: false,
            slot: 0,
            found: Found::new(options.backlog_channels_max),
            gone: HashSet::new(),
            lost: HashMap::new(),
            last_success: None,
            confirmed: 0,
            dropped: 0,
            last_error: None,
        };
        Self {
            fee_payer: signer.public_key(),
            ledger,
            chain,
            signer,
            policy,
            clock,
            options,
            observer,
            state: Mutex::new(state),
            turn: tokio::sync::Mutex::new(()),
            writes: Semaphore::new(reconcile::WRITES_AT_ONCE_MAX),
            wake: Notify::new(),
            stop: flag::Sender::new(false),
        }
    }

    /// Runs until `shutdown` resolves, then starts nothing new and returns when what is under way has ended. Dropping
    /// the future at any point is safe too: it is what a crash does.
    pub async fn run(&self, shutdown: impl Future<Output = ()> + Send) {
        let work = async { tokio::join!(self.settle_loop(), self.watch_loop()) };
        tokio::pin!(work, shutdown);
        tokio::select! {
            _ = &mut work => {}
            () = &mut shutdown => {
                self.stop.send_replace(true);
                work.await;
            }
        }
    }

    /// Makes one round: what is open is followed up, then what is due is claimed, then what was claimed is paid out.
    /// Needs no timer, so that a simulation can drive it.
    pub async fn step(&self, trigger: Trigger) -> Report {
        let _turn = self.turn.lock().await;
        self.round(trigger, &Filter::All).await
    }

    /// Makes rounds until nothing of what was charged before is due that does not wait for something, and reports them
    /// together.
    pub async fn settle_now(&self, filter: &Filter) -> Report {
        let _turn = self.turn.lock().await;
        {
            let mut state = self.state.lock();
            state.troubles.forgive();
            state.found.forget();
        }
        let mut report = Report::default();
        let trigger = Trigger::Demand(self.clock.now());
        loop {
            let round = self.round(trigger, filter).await;
            let progressed = round.progressed();
            report.append(round);
            if !progressed || self.stopping() {
                return report;
            }
        }
    }

    /// The health of it.
    #[must_use]
    pub fn status(&self) -> Status {
        let now = self.clock.now();
        let mut status = Status { open_batches: self.ledger.open_batches().len(), ..Status::default() };
        self.ledger.glance(|channel| self.tally(channel, now, &mut status), |()| ());
        let state = self.state.lock();
        status.last_success = state.last_success;
        status.lost = state.lost.values().fold(Amount::ZERO, |sum, lost| sum.saturating_add(*lost));
        status.confirmed = state.confirmed;
        status.dropped = state.dropped;
        status.stuck = state.troubles.iter().filter(|(_, trouble)| trouble.until > now).count();
        status.held = state.troubles.held(now).map(str::to_owned);
        status.last_error.clone_from(&state.last_error);
        status
    }

    /// Why nothing new is started now, where that is so.
    #[must_use]
    pub fn held(&self) -> Option<String> {
        self.state.lock().troubles.held(self.clock.now()).map(str::to_owned)
    }

    fn tally(&self, channel: Glance<'_>, now: UnixMillis, status: &mut Status) -> Option<()> {
        if !self.is_ours(channel) {
            return None;
        }
        status.unpaid = status.unpaid.saturating_add(plan::unpaid(channel));
        let unclaimed = plan::unclaimed(channel);
        let claimable = !unclaimed.is_zero() && plan::lost(channel, now).is_zero();
        if claimable {
            status.unclaimed = status.unclaimed.saturating_add(unclaimed);
            let age = channel.unclaimed_since.map(|since| now.since(since));
            status.oldest_unclaimed = status.oldest_unclaimed.max(age);
        }
        status.closing = status.closing.saturating_add(usize::from(plan::deadline(channel).is_some()));
        let overdue = claimable && plan::overdue(channel, &self.options.rules, now);
        status.overdue = status.overdue.saturating_add(usize::from(overdue));
        None
    }

    /// Whether this settlement's key can act on a channel: it is on our network, and we are its payee.
    fn is_ours<'a>(&self, channel: impl Into<Glance<'a>>) -> bool {
        let seller = &channel.into().terms.seller;
        seller.fee_payer == self.fee_payer && self.options.sellers.iter().any(|ours| ours.network == seller.network)
    }

    fn stopping(&self) -> bool {
        *self.stop.borrow()
    }
}
