//! What the settlement of an EVM network tells.

use std::time::Duration;

use super::super::Outcome;
use super::super::batches::{Batches, Told};
use super::plan;
use crate::amount::Amount;
use crate::clock::UnixMillis;
use crate::ledger::channel::Evm;
use crate::ledger::channel::evm::{EvmBatch, EvmBatchKind};
use crate::ledger::store::GlanceOf;
use crate::x402::evm::{Address, B256};

/// One batch of a round.
#[derive(Clone, Debug)]
pub struct EvmBatchReport {
    /// Its number in the journal; 0 where it was never journalled.
    pub id: u64,
    /// What it does.
    pub kind: EvmBatchKind,
    /// What is claimed or paid out.
    pub token: Address,
    /// Of a claim: the channels, each with the total that it is brought to.
    pub lines: Vec<(B256, Amount)>,
    /// The transaction, where somebody named it.
    pub transaction: Option<B256>,
    /// How it ended.
    pub outcome: Outcome,
}

impl Told for EvmBatchReport {
    type Kind = EvmBatchKind;

    fn id(&self) -> u64 {
        self.id
    }

    fn kind(&self) -> EvmBatchKind {
        self.kind
    }

    fn outcome(&self) -> &Outcome {
        &self.outcome
    }
}

/// What one round did, or several.
#[derive(Clone, Debug, Default)]
pub struct EvmReport {
    /// How many rounds.
    pub rounds: usize,
    /// How often the whole ledger was looked through for what is due, or for what is claimed.
    pub looks: usize,
    /// The batches that were followed up or made.
    pub batches: Batches<EvmBatchReport>,
    /// Why nothing new was started, where that is so.
    pub held: Option<String>,
    /// Channels that wait after a failure, with their last error, up to [`STUCK_LISTED_MAX`] of them.
    ///
    /// [`STUCK_LISTED_MAX`]: crate::settlement::report::STUCK_LISTED_MAX
    pub stuck: Vec<(B256, String)>,
    /// How many more do.
    pub stuck_left_off: usize,
    /// Whether more was due than one round takes, or a batch that failed is tried again in parts.
    pub more: bool,
}

impl EvmReport {
    /// Whether the fate of a batch was decided.
    #[must_use]
    pub const fn progressed(&self) -> bool {
        self.batches.ends().total() > self.batches.ends().unknown
    }

    /// What confirmed batches of this kind moved.
    #[must_use]
    pub fn moved(&self, kind: EvmBatchKind) -> Amount {
        self.batches.ends().moved(kind)
    }

    /// Takes up a later round. What is true only of the moment is taken from the later one.
    pub fn append(&mut self, later: Self) {
        self.rounds = self.rounds.saturating_add(later.rounds);
        self.looks = self.looks.saturating_add(later.looks);
        self.batches.append(later.batches);
        self.held = later.held;
        self.stuck = later.stuck;
        self.stuck_left_off = later.stuck_left_off;
        self.more = later.more;
    }
}

/// The settlement's health, for people and metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EvmStatus {
    /// When a batch was last confirmed.
    pub last_success: Option<UnixMillis>,
    /// How long the oldest charge has been unclaimed.
    pub oldest_unclaimed: Option<Duration>,
    /// Charged and not claimed, of what can be claimed.
    pub unclaimed: Amount,
    /// Charged, and not to be claimed as things stand: the payer has taken it out.
    pub lost: Amount,
    /// Channels from which their payers are withdrawing.
    pub withdrawing: usize,
    /// Tokens of which something may be claimed and not paid out, or of which a payout was not looked up yet.
    pub unpaid: usize,
    /// Batches that are signed and neither confirmed nor dropped.
    pub open_batches: usize,
    /// Batches confirmed by this process.
    pub confirmed: u64,
    /// Batches dropped by this process.
    pub dropped: u64,
    /// Channels that wait after a failure.
    pub stuck: usize,
    /// Why nothing new is started now.
    pub held: Option<String>,
    /// The last error, until the next success.
    pub last_error: Option<String>,
}

impl EvmStatus {
    pub(super) fn tally(&mut self, channel: GlanceOf<'_, Evm>, now: UnixMillis) {
        if let Some(total) = plan::claimable(channel) {
            self.unclaimed = self.unclaimed.saturating_add(total.saturating_sub(channel.on_chain.claimed));
            let age = channel.unclaimed_since.map(|since| now.since(since));
            self.oldest_unclaimed = self.oldest_unclaimed.max(age);
        }
        self.lost = self.lost.saturating_add(channel.lost());
        self.withdrawing = self.withdrawing.saturating_add(usize::from(channel.on_chain.is_withdrawing()));
    }
}

/// Is told what happens, for metrics and the audit log. It must not block.
pub trait EvmObserver: Send + Sync {
    /// A batch is signed and journalled; getting the signature took that long.
    fn signed(&self, _batch: &EvmBatch, _took: Duration) {}
    /// The chain has it and the ledger has taken it up; it moved that much.
    fn confirmed(&self, _batch: &EvmBatch, _moved: Amount) {}
    /// It changed nothing.
    fn dropped(&self, _batch: &EvmBatch, _why: &str) {}
    /// A batch was not approved or not signed.
    fn refused(&self, _kind: EvmBatchKind, _lines: &[(B256, Amount)], _why: &str) {}
}

/// An observer that looks away.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoEvmObserver;

impl EvmObserver for NoEvmObserver {}
