//! The port to the durable store: what must survive a crash, and when it does.
//!
//! A write is durable when its future resolves, not before. Adapter: `ledger/sqlite.rs`; tests also use a store in
//! memory that can be told to fail or to forget what was not yet durable.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::channel::{ChainState, Channel, Family, Journalled, OnChain, Svm, Terms, Voucher, lost, redeems};
use super::passes::{PassId, PassRecord, PassUse};
use super::payers::Spend;
use crate::amount::Amount;
use crate::clock::{Day, UnixMillis};
use crate::x402::key::Signature;
use crate::x402::{Account, Key};

/// A channel as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChannelRecord<T = Terms, O = OnChain, S = Signature> {
    /// What never changes.
    pub terms: T,
    /// The chain's side, as last read.
    pub on_chain: O,
    /// All that was charged.
    pub charged: Amount,
    /// The voucher accepted last; `None` where nothing was ever charged.
    pub voucher: Option<Voucher<S>>,
    /// When the oldest charge that is not yet claimed was made; the age that settlement goes by.
    pub unclaimed_since: Option<UnixMillis>,
    /// When the channel was last charged.
    pub last_used: UnixMillis,
    /// Whether the channel takes no more payments: it is closing, or closed.
    pub closed: bool,
}

/// What is looked at of a channel in passing, with no copy of it made.
#[derive(Debug)]
pub struct Glance<'a, T = Terms, O = OnChain> {
    /// What never changes.
    pub terms: &'a T,
    /// The chain's side, as last read.
    pub on_chain: &'a O,
    /// All that was charged.
    pub charged: Amount,
    /// The total of the voucher accepted last.
    pub signed: Option<Amount>,
    /// When the oldest charge that is not yet claimed was made.
    pub unclaimed_since: Option<UnixMillis>,
    /// Whether the channel takes no more payments.
    pub closed: bool,
}

/// A family's channel in passing.
pub type GlanceOf<'a, F> = Glance<'a, <F as Family>::Terms, <F as Family>::OnChain>;

impl<T, O> Clone for Glance<'_, T, O> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T, O> Copy for Glance<'_, T, O> {}

impl<T, O: ChainState> Glance<'_, T, O> {
    /// The total of the voucher to redeem, where there is something to redeem (invariant L3).
    #[must_use]
    pub fn redeemable(&self) -> Option<Amount> {
        self.signed.filter(|signed| redeems(self.on_chain, self.charged, *signed))
    }

    /// What was charged and cannot be claimed as things stand.
    #[must_use]
    pub fn lost(&self) -> Amount {
        lost(self.on_chain, self.charged)
    }
}

impl<'a, T, O, S> From<&'a ChannelRecord<T, O, S>> for Glance<'a, T, O> {
    fn from(record: &'a ChannelRecord<T, O, S>) -> Self {
        Self {
            terms: &record.terms,
            on_chain: &record.on_chain,
            charged: record.charged,
            signed: record.voucher.as_ref().map(|voucher| voucher.cumulative),
            unclaimed_since: record.unclaimed_since,
            closed: record.closed,
        }
    }
}

/// A family's channel as it is kept.
pub type RecordOf<F> = ChannelRecord<<F as Family>::Terms, <F as Family>::OnChain, <F as Family>::Signature>;

impl<T, O: ChainState, S: Clone + PartialEq> ChannelRecord<T, O, S> {
    /// A channel's record.
    #[must_use]
    pub fn of(terms: T, channel: &Channel<O, S>) -> Self {
        Self {
            terms,
            on_chain: channel.on_chain,
            charged: channel.charged,
            voucher: channel.voucher.clone(),
            unclaimed_since: channel.unclaimed_since,
            last_used: channel.last_used,
            closed: channel.closed,
        }
    }

    /// The channel, with nothing in flight.
    #[must_use]
    pub fn channel(&self) -> Channel<O, S> {
        Channel {
            on_chain: self.on_chain,
            known: true,
            charged: self.charged,
            voucher: self.voucher.clone(),
            unclaimed_since: self.unclaimed_since,
            last_used: self.last_used,
            closed: self.closed,
            reserved: None,
            leaving: false,
        }
    }

    /// What is charged, not yet claimed, and can still be claimed.
    #[must_use]
    pub fn exposure(&self) -> Amount {
        self.channel().exposure()
    }

    /// The voucher to redeem, where there is something to redeem (invariant L3).
    #[must_use]
    pub fn redeemable(&self) -> Option<Voucher<S>> {
        self.channel().redeemable()
    }
}

/// What a settlement batch does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BatchKind {
    /// Advances watermarks (`settle`).
    Claim,
    /// Pays out what was claimed (`distribute`).
    Distribute,
    /// Applies the last voucher to a channel that the payer is closing, and pays out (`settle_and_seal`, `distribute`).
    Seal,
    /// Finishes a closed channel: `seal` after the grace period, `distribute`, or `reclaim` of its rent.
    CleanUp,
}

/// How far a settlement batch has come. Each step is journalled before the next is taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BatchState {
    /// Signed and journalled; from here on it may be on chain.
    Signed,
    /// The chain has confirmed it and the ledger has taken it up.
    Confirmed,
    /// It ran and failed, or expired unseen: it changed nothing and never will.
    Dropped {
        /// Why, for the operator.
        why: String,
    },
}

/// A settlement batch as it is journalled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchRecord {
    /// Counts up.
    pub id: u64,
    /// What it does.
    pub kind: BatchKind,
    /// The channels, each with the cumulative amount that it is brought to.
    pub lines: Vec<(Key, Amount)>,
    /// The signed transaction.
    pub transaction: Vec<u8>,
    /// Its name on chain.
    pub signature: Signature,
    /// When it can no longer land.
    pub last_valid_block_height: u64,
    /// How far it has come.
    pub state: BatchState,
    /// When it was signed.
    pub created_at: UnixMillis,
}

/// A metered request's channel as it is journalled, from before its `open` is sent until it is closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeteredRecord {
    /// The one-request channel.
    pub terms: Terms,
    /// The ceiling that the payer put in.
    pub deposit: Amount,
    /// Unix seconds.
    pub expires_at: i64,
    /// The charge once it was decided and its close was about to be sent; until then a crash closes at nothing.
    pub charge: Option<Amount>,
    /// The close that was signed, so that a restart waits for it instead of making another.
    pub close: Option<(Signature, u64)>,
}

impl Journalled for BatchRecord {
    type Key = u64;

    fn key(&self) -> u64 {
        self.id
    }

    fn is_open(&self) -> bool {
        self.state == BatchState::Signed
    }
}

impl Journalled for MeteredRecord {
    type Key = Key;

    fn key(&self) -> Key {
        self.terms.id
    }

    /// It is forgotten at its end.
    fn is_open(&self) -> bool {
        true
    }
}

/// What an answer is kept by, in digests: nothing of a client is kept twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnswerId {
    /// The client's own name for its request.
    pub key: [u8; 32],
    /// All that must be the same for the answer to be given again.
    pub fingerprint: [u8; 32],
}

/// An answer as it was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// Header lines as on the wire of HTTP/1.1.
    pub head: Bytes,
    /// The whole body.
    pub body: Bytes,
}

/// An answer as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnswerRecord {
    /// Counts up; names the record.
    pub place: u64,
    /// What it is found by.
    pub id: AnswerId,
    /// When it was kept; its age ends it.
    pub kept_at: UnixMillis,
    /// The answer.
    pub answer: Answer,
}

impl AnswerRecord {
    /// What of it is held in memory.
    #[must_use]
    pub fn mark(&self) -> AnswerMark {
        let bytes = self.answer.head.len().saturating_add(self.answer.body.len());
        AnswerMark {
            place: self.place,
            id: self.id,
            kept_at: self.kept_at,
            bytes: u64::try_from(bytes).unwrap_or(u64::MAX),
        }
    }
}

/// A kept answer without itself: what the index holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnswerMark {
    /// Where it is.
    pub place: u64,
    /// What it is found by.
    pub id: AnswerId,
    /// When it was kept.
    pub kept_at: UnixMillis,
    /// The size of its head and body.
    pub bytes: u64,
}

/// What a payer has spent in a day, as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpentRecord {
    /// Who.
    pub payer: Account,
    /// What is counted together.
    pub scope: Arc<str>,
    /// When.
    pub day: Day,
    /// How much.
    pub amount: Amount,
}

/// A request's charge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Charged {
    /// How much.
    pub amount: Amount,
    /// What was paid for, where whoever charged has said so.
    pub route: Option<Arc<str>>,
}

/// What a change of a channel means: what was charged, and how the channel was before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    /// The charge, where it is one.
    pub charge: Option<Charged>,
    /// All that was charged before.
    pub charged: Amount,
    /// What was deposited before; nothing on a channel that was not known.
    pub deposit: Amount,
    /// What was claimed before.
    pub claimed: Amount,
    /// Whether it took no payments before.
    pub closed: bool,
}

/// One thing to make durable.
#[derive(Clone, Debug, PartialEq)]
pub enum Write<F: Family = Svm> {
    /// Inserts or replaces a channel.
    Channel(Box<RecordOf<F>>),
    /// What the change of the channel written just before means; for the audit record, where the store keeps one.
    About(Box<About>),
    /// Forgets a channel that is gone from the chain and owes nothing.
    ForgetChannel(F::Id),
    /// Inserts or replaces a batch.
    Batch(Box<F::Batch>),
    /// Inserts or replaces a metered request's payment.
    Metered(Box<F::Metered>),
    /// Forgets a metered request's payment that is over.
    ForgetMetered(F::Id),
    /// Keeps an answer.
    Answer(Box<AnswerRecord>),
    /// Forgets answers by their places.
    ForgetAnswers(Vec<u64>),
    /// Adds to what a payer has spent in a day, as [`Spend::after`] says.
    Spend(Box<Spend>),
    /// Forgets what payers spent before a day.
    ForgetSpent(Day),
    /// Keeps a pass that was sold by the charge of the channel written just before.
    Pass(Box<PassRecord>),
    /// Counts one more call on a pass. Calls on one pass may be written in any order.
    PassUsed(Box<PassUse>),
    /// Keeps that a pass takes no more calls.
    RevokePass(Box<PassRecord>),
    /// Forgets passes that are over.
    ForgetPasses(Vec<PassId>),
}

/// Why something is not durable. The text says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("nothing was made durable: {0}")]
pub struct StoreError(pub String);

/// All that a store holds.
#[derive(Debug)]
pub struct Snapshot<F: Family = Svm> {
    /// Every channel.
    pub channels: Vec<RecordOf<F>>,
    /// The batches that are not yet confirmed or dropped.
    pub batches: Vec<F::Batch>,
    /// The metered requests' payments that are not yet over.
    pub metered: Vec<F::Metered>,
    /// The greatest batch id ever used.
    pub last_batch: u64,
    /// The kept answers, oldest place first.
    pub answers: Vec<AnswerMark>,
    /// What payers have spent, of the last days.
    pub spent: Vec<SpentRecord>,
    /// The passes that were sold and are not forgotten.
    pub passes: Vec<PassRecord>,
}

impl<F: Family> Default for Snapshot<F> {
    fn default() -> Self {
        Self {
            channels: Vec::new(),
            batches: Vec::new(),
            metered: Vec::new(),
            last_batch: 0,
            answers: Vec::new(),
            spent: Vec::new(),
            passes: Vec::new(),
        }
    }
}

/// Takes the channels that a store loads.
pub type TakeChannel<'a, F = Svm> = dyn FnMut(RecordOf<F>) -> Result<(), StoreError> + Send + 'a;

/// A durable store.
#[async_trait]
pub trait Store<F: Family = Svm>: Send + Sync {
    /// Everything that is needed to go on after a restart.
    async fn load(&self) -> Result<Snapshot<F>, StoreError>;
    /// The same, with the channels handed over one by one instead of in the snapshot, so that a million of them need
    /// not be in memory twice. Ends with the first error that `take` answers.
    async fn load_each(&self, take: &mut TakeChannel<'_, F>) -> Result<Snapshot<F>, StoreError> {
        let mut snapshot = self.load().await?;
        for channel in std::mem::take(&mut snapshot.channels) {
            take(channel)?;
        }
        Ok(snapshot)
    }
    /// Makes all of `writes` durable, or none. Concurrent calls share one disk flush. Writes of one channel are applied
    /// in the order in which the calls were made.
    async fn write(&self, writes: Vec<Write<F>>) -> Result<(), StoreError>;
    /// The newest batches, newest first, for people and reconciliation.
    async fn batches(&self, limit: usize) -> Result<Vec<F::Batch>, StoreError>;
    /// Whether it tells an audit record of what it writes, so that each change must come with what it means.
    fn tells(&self) -> bool {
        false
    }
    /// A kept answer; `None` where it is not there. Does not wait for writes and does not hold them up. A store that
    /// keeps none says `None`: then a client that asks for a lost answer is served like any other.
    async fn answer(&self, _place: u64) -> Result<Option<Answer>, StoreError> {
        Ok(None)
    }
}
