//! The loop that turns charged vouchers on an EVM network into money: due, batch, approved, signed, journalled, asked,
//! read back; then paid out.
//!
//! Owns when and in what order channels are claimed (`claimWithSignature`, many channels at once, no money moves) and
//! what is claimed is paid out (`settle`, one transfer per token). Promises: nothing is claimed that was not charged and
//! signed (invariant L3); a batch is journalled before anybody is asked to send it; what became of it is read from the
//! channels and never believed, so that a crash or an answer lost at any point neither loses nor doubles a claim. A
//! claim names totals and a payout sweeps what is there, so either can be asked for again once it was looked at. A payer
//! who starts a withdrawal is answered with the last voucher at once. Refuses: to name the gate, to read any clock but
//! the given one.
//!
//! [`plan`] decides (pure), `pick` finds what is due and keeps what a round does not take, `carry` takes a claim through
//! its steps, `payout` pays out, `wait` says what is tried again and when, `watch` reads the chain's side. Source:
//! `scheme_batch_settlement_evm.md`, "Claim & Settlement Strategy" and "POST /settle".

mod carry;
mod payout;
mod pick;
pub mod plan;
pub mod report;
mod run;
mod wait;
mod watch;

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch as flag};

use self::payout::Payout;
use self::pick::Found;
use self::plan::EvmRules;
pub use self::report::{EvmBatchReport, EvmObserver, EvmReport, EvmStatus, NoEvmObserver};
use self::wait::{Asked, Hold, Wait};
pub use self::watch::EvmHalt;
use super::Trigger;
use super::backlog::BACKLOG_CHANNELS_MAX;
use super::trouble::Backoff;
use crate::amount::Amount;
use crate::clock::{Clock, UnixMillis};
use crate::facilitator::channels::EvmChannels;
use crate::facilitator::interface::{InterfaceError, X402Facilitator};
use crate::ledger::Ledger;
use crate::ledger::channel::Evm;
use crate::ledger::store::GlanceOf;
use crate::policy::EvmPolicy;
use crate::scheme::evm::EvmSeller;
use crate::signer::EvmSigner;
use crate::x402::evm::{Address, B256};

/// The most claims that one transaction takes, as the reference facilitator has it.
pub const CLAIMS_MAX: usize = 100;

/// The settlement's own bounds and times.
#[derive(Clone, Debug)]
pub struct EvmOptions {
    /// The merchant's accounts on this network, one per token.
    pub sellers: Vec<Arc<EvmSeller>>,
    /// How often everything worth claiming is claimed.
    pub interval: Duration,
    /// When a channel is due.
    pub rules: EvmRules,
    /// How many channels share a claim, 1 to [`CLAIMS_MAX`].
    pub batch_claims: usize,
    /// The most that the totals of one claim may come to: what the signer lets one signature name.
    pub batch_total_max: Amount,
    /// How many claim batches one round makes.
    pub round_batches_max: usize,
    /// How many due channels one look through the ledger keeps for the rounds to come.
    pub backlog_channels_max: usize,
    /// How waits grow after failures.
    pub backoff: Backoff,
    /// How often the loop looks for what is due, and for how long at most it works off what one look found.
    pub tick: Duration,
    /// How often the chain's side of the channels is read.
    pub watch_interval: Duration,
    /// How many channels one such pass reads, those first that were not read for longest.
    pub watch_channels_max: usize,
}

impl EvmOptions {
    /// The defaults, for these accounts.
    #[must_use]
    pub fn new(sellers: Vec<Arc<EvmSeller>>) -> Self {
        Self {
            sellers,
            interval: Duration::from_secs(600),
            rules: EvmRules { min_amount: Amount::new(10_000), max_age: Duration::from_secs(3_600), worth_multiple: 0 },
            batch_claims: CLAIMS_MAX,
            batch_total_max: Amount::new(u128::MAX),
            round_batches_max: 16,
            backlog_channels_max: BACKLOG_CHANNELS_MAX,
            backoff: Backoff {
                first: Duration::from_secs(2),
                longest: Duration::from_secs(1_800),
                longest_urgent: Duration::from_secs(15),
                seed: 0,
            },
            tick: Duration::from_secs(5),
            watch_interval: Duration::from_secs(60),
            watch_channels_max: 10_000,
        }
    }
}

/// What a claim takes and costs, so that a batch fits a transaction and can wait until it is worth it.
#[async_trait]
pub trait ClaimCost: Send + Sync {
    /// How many claims fit a transaction.
    fn claims_max(&self) -> usize {
        CLAIMS_MAX
    }

    /// The cost of one claim of so many channels and its payout, in the seller's token.
    ///
    /// # Errors
    /// Where it cannot be found out now.
    async fn cost(&self, claims: usize) -> Result<Amount, InterfaceError>;
}

/// What is kept between rounds, in memory only: a restart begins with an empty one.
struct State {
    waits: HashMap<B256, Wait>,
    hold: Option<Hold>,
    last_sweep: UnixMillis,
    sweeping: bool,
    found: Found,
    /// When payouts were looked into last; in the beginning, when this was made.
    paid_out_at: UnixMillis,
    /// How far each token is paid out.
    payouts: HashMap<Address, Payout>,
    /// Open batches that were asked for, by number.
    asked: HashMap<u64, Asked>,
    /// Channels whose state could not be told when it was asked for last, and when that was.
    untold: HashMap<B256, UnixMillis>,
    last_success: Option<UnixMillis>,
    confirmed: u64,
    dropped: u64,
    last_error: Option<String>,
}

/// What the settlement works with.
pub struct EvmParts {
    /// The balances.
    pub ledger: Arc<Ledger<Evm>>,
    /// Sends what is signed here.
    pub facilitator: Arc<dyn X402Facilitator>,
    /// Reads channels.
    pub channels: Arc<dyn EvmChannels>,
    /// Signs claims.
    pub signer: Arc<dyn EvmSigner>,
    /// Approves them.
    pub policy: Arc<EvmPolicy>,
    /// What a claim costs; `None` where batches do not wait to be worth it.
    pub cost: Option<Arc<dyn ClaimCost>>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Is told what happens.
    pub observer: Arc<dyn EvmObserver>,
}

/// The settlement of one merchant key's channels on one EVM network.
pub struct EvmSettlement {
    parts: EvmParts,
    options: EvmOptions,
    state: Mutex<State>,
    /// Rounds take turns.
    turn: tokio::sync::Mutex<()>,
    /// Something has become due that does not wait for the tick.
    wake: Notify,
    stop: flag::Sender<bool>,
}

impl EvmSettlement {
    /// A settlement that has done nothing yet. The first sweep comes one interval from now.
    #[must_use]
    pub fn new(parts: EvmParts, options: EvmOptions) -> Self {
        let state = State {
            waits: HashMap::new(),
            hold: None,
            last_sweep: parts.clock.now(),
            sweeping: false,
            found: Found::new(options.backlog_channels_max),
            paid_out_at: parts.clock.now(),
            // A crash may have come between a claim and its payout: every token is looked at once.
            payouts: HashMap::new(),
            asked: HashMap::new(),
            untold: HashMap::new(),
            last_success: None,
            confirmed: 0,
            dropped: 0,
            last_error: None,
        };
        Self {
            parts,
            options,
            state: Mutex::new(state),
            turn: tokio::sync::Mutex::new(()),
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
    pub async fn step(&self, trigger: Trigger) -> EvmReport {
        let _turn = self.turn.lock().await;
        self.round(trigger, &EvmFilter::default()).await
    }

    /// Makes rounds until nothing of what was charged before is due that does not wait for something, and reports them
    /// together.
    pub async fn settle_now(&self, filter: &EvmFilter) -> EvmReport {
        let _turn = self.turn.lock().await;
        {
            let mut state = self.state.lock();
            state.hold = None;
            state.found.forget();
            state.waits.values_mut().for_each(|wait| wait.until = UnixMillis(0));
            state.payouts.values_mut().for_each(|payout| payout.until = UnixMillis(0));
        }
        let mut report = EvmReport::default();
        let trigger = Trigger::Demand(self.parts.clock.now());
        loop {
            let round = self.round(trigger, filter).await;
            let again = round.progressed() && round.more && !self.stopping();
            report.append(round);
            if !again {
                return report;
            }
        }
    }

    /// The health of it.
    #[must_use]
    pub fn status(&self) -> EvmStatus {
        let now = self.parts.clock.now();
        let open = self.open_batches().len();
        let mut status = EvmStatus { open_batches: open, ..EvmStatus::default() };
        let mut claimed = HashMap::new();
        self.parts.ledger.glance(
            |channel| {
                if self.is_ours(channel) {
                    status.tally(channel, now);
                    self.add_claimed(channel, &mut claimed);
                }
                None
            },
            |()| (),
        );
        status.unpaid = self.unpaid(&claimed);
        let state = self.state.lock();
        status.last_success = state.last_success;
        status.confirmed = state.confirmed;
        status.dropped = state.dropped;
        status.stuck = state.waits.values().filter(|wait| wait.until > now).count();
        status.held = state.hold.as_ref().filter(|hold| hold.until > now).map(|hold| hold.error.clone());
        status.last_error.clone_from(&state.last_error);
        status
    }

    /// Why nothing new is started now, where that is so.
    #[must_use]
    pub fn held(&self) -> Option<String> {
        let now = self.parts.clock.now();
        self.state.lock().hold.as_ref().filter(|hold| hold.until > now).map(|hold| hold.error.clone())
    }

    /// Whether this settlement claims a channel: it is one of our sellers'.
    fn is_ours<'a>(&self, channel: impl Into<GlanceOf<'a, Evm>>) -> bool {
        self.seller_of(channel).is_some()
    }

    fn seller_of<'a>(&self, channel: impl Into<GlanceOf<'a, Evm>>) -> Option<&Arc<EvmSeller>> {
        let theirs = &channel.into().terms.seller;
        self.options
            .sellers
            .iter()
            .find(|ours| ours.network == theirs.network && ours.token == theirs.token)
            .filter(|ours| ours.receiver_authorizer == theirs.receiver_authorizer)
    }

    fn stopping(&self) -> bool {
        *self.stop.borrow()
    }
}

/// Which channels a round is about: all, or only these.
pub type EvmFilter = Option<std::collections::HashSet<B256>>;
