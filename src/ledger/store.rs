//! The port to the durable store: what must survive a crash, and when it does.
//!
//! A write is durable when its future resolves, not before. Adapter: `ledger/sqlite.rs`; tests also use a store in
//! memory that can be told to fail or to forget what was not yet durable.

use async_trait::async_trait;

use super::channel::{OnChain, Terms, Voucher};
use crate::amount::Amount;
use crate::clock::UnixMillis;
use crate::x402::Key;
use crate::x402::key::Signature;

/// A channel as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChannelRecord {
    /// What never changes.
    pub terms: Terms,
    /// The chain's side, as last read.
    pub on_chain: OnChain,
    /// All that was charged.
    pub charged: Amount,
    /// The voucher accepted last; `None` where nothing was ever charged.
    pub voucher: Option<Voucher>,
    /// When the oldest charge that is not yet claimed was made; the age that settlement goes by.
    pub unclaimed_since: Option<UnixMillis>,
    /// When the channel was last charged.
    pub last_used: UnixMillis,
    /// Whether the channel takes no more payments: it is closing, or closed.
    pub closed: bool,
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

/// One thing to make durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Inserts or replaces a channel.
    Channel(Box<ChannelRecord>),
    /// Forgets a channel that is gone from the chain and owes nothing.
    ForgetChannel(Key),
    /// Inserts or replaces a batch.
    Batch(Box<BatchRecord>),
    /// Inserts or replaces a metered request's channel.
    Metered(Box<MeteredRecord>),
    /// Forgets a metered request's channel that is closed.
    ForgetMetered(Key),
}

/// Why something is not durable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the store failed: {0}. Charges stop until it works; check the disk and restart")]
pub struct StoreError(pub String);

/// All that a store holds.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Every channel.
    pub channels: Vec<ChannelRecord>,
    /// The batches that are not yet confirmed or dropped.
    pub batches: Vec<BatchRecord>,
    /// The metered requests' channels that are not yet closed.
    pub metered: Vec<MeteredRecord>,
    /// The greatest batch id ever used.
    pub last_batch: u64,
}

/// A durable store.
#[async_trait]
pub trait Store: Send + Sync {
    /// Everything that is needed to go on after a restart.
    async fn load(&self) -> Result<Snapshot, StoreError>;
    /// Makes all of `writes` durable, or none. Concurrent calls share one disk flush. Writes of one channel are applied
    /// in the order in which the calls were made.
    async fn write(&self, writes: Vec<Write>) -> Result<(), StoreError>;
    /// The newest batches, newest first, for people and reconciliation.
    async fn batches(&self, limit: usize) -> Result<Vec<BatchRecord>, StoreError>;
}
