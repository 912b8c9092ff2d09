//! What the settlement tells: a report for each round, a status for health, events for an observer.

use std::time::Duration;

use super::batches::{Batches, Told};
use crate::amount::Amount;
use crate::clock::UnixMillis;
use crate::ledger::store::{BatchKind, BatchRecord};
use crate::x402::Key;
use crate::x402::key::Signature;

/// How long each step of a batch took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timings {
    /// To get a blockhash.
    pub blockhash: Duration,
    /// To build, approve and sign.
    pub sign: Duration,
    /// To make the signed batch durable.
    pub journal: Duration,
    /// To send and confirm.
    pub confirm: Duration,
    /// To read the channels back and make the result durable.
    pub reconcile: Duration,
}

/// How a batch ended, for now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The chain has it and the ledger has taken it up.
    Confirmed {
        /// What it moved: claimed by a claim, paid out by every other batch.
        moved: Amount,
    },
    /// It changed nothing and never will.
    Dropped {
        /// Why.
        why: String,
    },
    /// Signed and journalled; whether the chain has it is looked up again later.
    Unknown {
        /// Why it is not known.
        why: String,
    },
    /// Not approved or not signed; nothing was sent.
    Refused {
        /// Why.
        why: String,
    },
}

/// One batch of a round.
#[derive(Clone, Debug)]
pub struct BatchReport {
    /// Its number in the journal; 0 where it was never journalled.
    pub id: u64,
    /// What it does.
    pub kind: BatchKind,
    /// The channels, each with the cumulative amount that it is brought to.
    pub lines: Vec<(Key, Amount)>,
    /// Its name on chain, where it was signed.
    pub signature: Option<Signature>,
    /// How it ended.
    pub outcome: Outcome,
    /// How long each step took.
    pub timings: Timings,
}

impl Told for BatchReport {
    type Kind = BatchKind;

    fn id(&self) -> u64 {
        self.id
    }

    fn kind(&self) -> BatchKind {
        self.kind
    }

    fn outcome(&self) -> &Outcome {
        &self.outcome
    }
}

/// How many channels in trouble a report lists.
pub const STUCK_LISTED_MAX: usize = 1_000;

/// A channel that was due and could not be put into a batch, or waits after a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stuck {
    /// The channel.
    pub channel: Key,
    /// What failed.
    pub kind: BatchKind,
    /// How often.
    pub attempts: u32,
    /// The last error.
    pub error: String,
}

/// What one round did, or several.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// How many rounds.
    pub rounds: usize,
    /// How often the whole ledger was looked through for what is due.
    pub looks: usize,
    /// The batches that were followed up or made.
    pub batches: Batches<BatchReport>,
    /// Channels that are in trouble now, up to [`STUCK_LISTED_MAX`] of them.
    pub stuck: Vec<Stuck>,
    /// How many more are.
    pub stuck_left_off: usize,
    /// Why nothing new was started, where that is so.
    pub held: Option<String>,
    /// Whether more was due than one round takes.
    pub more: bool,
}

impl Report {
    /// Whether a batch was confirmed or dropped.
    #[must_use]
    pub const fn progressed(&self) -> bool {
        self.batches.ends().confirmed > 0 || self.batches.ends().dropped > 0
    }

    /// How many batches are signed and of unknown fate.
    #[must_use]
    pub const fn unknown(&self) -> usize {
        self.batches.ends().unknown
    }

    /// What confirmed batches of this kind moved.
    #[must_use]
    pub fn moved(&self, kind: BatchKind) -> Amount {
        self.batches.ends().moved(kind)
    }

    /// Takes up a later round. What is true only of the moment is taken from the later one.
    pub fn append(&mut self, later: Self) {
        self.rounds = self.rounds.saturating_add(later.rounds);
        self.looks = self.looks.saturating_add(later.looks);
        self.batches.append(later.batches);
        self.stuck = later.stuck;
        self.stuck_left_off = later.stuck_left_off;
        self.held = later.held;
        self.more = later.more;
    }
}

/// The settlement's health, for people and metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// When a batch was last confirmed.
    pub last_success: Option<UnixMillis>,
    /// How long the oldest charge has been unclaimed.
    pub oldest_unclaimed: Option<Duration>,
    /// Charged and not claimed, over all channels that can still be claimed.
    pub unclaimed: Amount,
    /// Claimed and not paid out.
    pub unpaid: Amount,
    /// Charged and never to be claimed, as far as this process has seen.
    pub lost: Amount,
    /// Channels that their payers are closing.
    pub closing: usize,
    /// Closing channels with something to lose whose deadline is nearer than the margin.
    pub overdue: usize,
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

/// Is told what happens, for metrics and the audit log. It must not block.
pub trait Observer: Send + Sync {
    /// A batch is signed and journalled; getting the signature took that long.
    fn signed(&self, _batch: &BatchRecord, _took: Duration) {}
    /// A node took the transaction.
    fn sent(&self, _batch: &BatchRecord) {}
    /// The chain has confirmed it and the ledger has taken it up; it moved that much.
    fn confirmed(&self, _batch: &BatchRecord, _moved: Amount, _took: Duration) {}
    /// It changed nothing and never will.
    fn dropped(&self, _batch: &BatchRecord, _why: &str) {}
    /// A batch was not approved or not signed.
    fn refused(&self, _kind: BatchKind, _lines: &[(Key, Amount)], _why: &str) {}
    /// A channel was closed with that much charged and unclaimed.
    fn lost(&self, _channel: &Key, _amount: Amount) {}
}

/// An observer that looks away.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoObserver;

impl Observer for NoObserver {}
