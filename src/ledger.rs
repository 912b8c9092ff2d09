//! Balances: what each channel has deposited, promised, been charged, claimed and paid out.
//!
//! The gate and the settlement meet here and nowhere else. The gate reserves, commits and releases; the settlement asks
//! what is due and reports what the chain did. Every commit is durable before [`Reservation::commit`] returns, and
//! restart restores every commit that a client was told of (invariant L5).

pub mod channel;
pub mod store;

use std::sync::Arc;
use std::time::Duration;

use self::channel::{OnChain, Terms, Voucher};
use self::store::{BatchRecord, ChannelRecord, MeteredRecord, Store, StoreError};
use crate::amount::Amount;
use crate::clock::Clock;
use crate::x402::Key;

/// The ledger's own bounds.
#[derive(Clone, Debug)]
pub struct Limits {
    /// The most that may be charged and not yet claimed, over all channels.
    pub exposure_max: Option<Amount>,
    /// The most that may be charged and not yet claimed on one channel.
    pub channel_exposure_max: Option<Amount>,
    /// How many requests of one channel may wait for their turn.
    pub waiters_per_channel_max: usize,
    /// How long a request waits for predecessors that are being served.
    pub wait_max: Duration,
    /// How long a request waits for a predecessor that has not arrived.
    pub gap_wait_max: Duration,
    /// How long a reservation lives that is neither committed nor released.
    pub reservation_max: Duration,
}

/// A request's payment, ready to be reserved: its signature, channel and price have been checked.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The channel.
    pub terms: Terms,
    /// The voucher that pays.
    pub voucher: Voucher,
    /// The price.
    pub amount: Amount,
    /// The channel's whole deposit once a deposit that came along is confirmed; `None` where none came.
    pub deposit_after: Option<Amount>,
}

/// Why nothing was reserved. Nothing was changed either.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The channel is not known here; read it from the chain, [`Ledger::adopt`] it, and try again.
    #[error("the channel is not known")]
    Unknown,
    /// The voucher's total is not what was charged plus the price: stale, replayed, or ahead.
    #[error("the voucher's total {got} is not the expected {expected}")]
    CumulativeMismatch {
        /// What was charged plus the price.
        expected: Amount,
        /// What the voucher says.
        got: Amount,
        /// The channel as it is now, for the corrective answer.
        channel: Box<ChannelRecord>,
    },
    /// The voucher's total is above the deposit.
    #[error("the voucher's total is above the deposit of {deposit}")]
    ExceedsDeposit {
        /// The deposit that counts.
        deposit: Amount,
    },
    /// The payer has started to close the channel, or it is closed.
    #[error("the channel is closing or closed")]
    Closing,
    /// The limit of unclaimed charges is reached; settlement has been asked to hurry.
    #[error("the limit of unredeemed charges is reached")]
    Exposure,
    /// Too many requests wait on this channel, or this one has waited too long.
    #[error("the channel is busy")]
    Busy,
    /// The ledger has stopped: its store failed or a promise of its own was broken.
    #[error("the ledger has stopped: {0}")]
    Stopped(String),
}

/// What is charged and not yet claimed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exposure {
    /// Over all channels.
    pub total: Amount,
    /// On the channel where it is largest.
    pub largest: Amount,
}

/// Balances in memory over a durable store.
pub struct Ledger {
    _store: Arc<dyn Store>,
    _clock: Arc<dyn Clock>,
    _limits: Limits,
}

impl Ledger {
    /// Restores the ledger from its store.
    ///
    /// # Errors
    /// [`StoreError`] where the store cannot be read.
    pub async fn open(store: Arc<dyn Store>, clock: Arc<dyn Clock>, limits: Limits) -> Result<Arc<Self>, StoreError> {
        store.load().await?;
        Ok(Arc::new(Self { _store: store, _clock: clock, _limits: limits }))
    }

    /// A channel as it is now.
    #[must_use]
    pub fn channel(&self, _id: &Key) -> Option<ChannelRecord> {
        todo!()
    }

    /// Takes up a channel that the chain has and the ledger does not: what was claimed counts as charged.
    pub fn adopt(&self, _terms: Terms, _on_chain: OnChain) {
        todo!()
    }

    /// Reserves a request's price, in voucher order; waits for predecessors within the limits. A deposit that opens a
    /// channel reserves on one that is not yet known.
    ///
    /// # Errors
    /// [`Refused`]; nothing is changed.
    pub async fn reserve(self: &Arc<Self>, _entry: Entry) -> Result<Reservation, Refused> {
        todo!()
    }

    /// Takes the channel out of service to close it: waits until no request is in flight, then lets none in. Dropped
    /// without [`CloseGuard::finish`], it lets them in again.
    ///
    /// # Errors
    /// [`Refused::Unknown`], [`Refused::Closing`], [`Refused::Busy`] or [`Refused::Stopped`].
    pub async fn begin_close(self: &Arc<Self>, _id: &Key) -> Result<CloseGuard, Refused> {
        todo!()
    }

    /// Takes up what the chain says of a channel: a rising watermark, a new status. Durable before it returns where it
    /// changed anything but the time of reading.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn observe(&self, _id: &Key, _on_chain: OnChain) -> Result<(), StoreError> {
        todo!()
    }

    /// Forgets a channel that the chain no longer has and that owes nothing; keeps and reports one that still does.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn forget(&self, _id: &Key) -> Result<(), StoreError> {
        todo!()
    }

    /// Visits every channel, a shard at a time; what changes meanwhile may be seen before or after.
    pub fn for_each(&self, _visit: &mut dyn FnMut(&ChannelRecord)) {
        todo!()
    }

    /// What is at risk now.
    #[must_use]
    pub fn exposure(&self) -> Exposure {
        todo!()
    }

    /// How many channels are known, and how many reservations are held.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        todo!()
    }

    /// Resolves when the exposure has come near a limit: settlement need not wait for its interval.
    pub async fn pressed(&self) {
        todo!()
    }

    /// The next batch's id.
    #[must_use]
    pub fn next_batch(&self) -> u64 {
        todo!()
    }

    /// Journals a settlement batch.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn journal_batch(&self, _batch: BatchRecord) -> Result<(), StoreError> {
        todo!()
    }

    /// The batches that were journalled and are neither confirmed nor dropped.
    #[must_use]
    pub fn open_batches(&self) -> Vec<BatchRecord> {
        todo!()
    }

    /// The newest batches, newest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn batches(&self, _limit: usize) -> Result<Vec<BatchRecord>, StoreError> {
        todo!()
    }

    /// Journals a metered request's channel.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn journal_metered(&self, _metered: MeteredRecord) -> Result<(), StoreError> {
        todo!()
    }

    /// Forgets a metered request's channel that is closed.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn forget_metered(&self, _id: &Key) -> Result<(), StoreError> {
        todo!()
    }

    /// The metered requests' channels that are not yet closed.
    #[must_use]
    pub fn open_metered(&self) -> Vec<MeteredRecord> {
        todo!()
    }

    /// `Err` with what is wrong where the ledger has stopped.
    ///
    /// # Errors
    /// What made it stop.
    pub fn health(&self) -> Result<(), String> {
        todo!()
    }
}

/// A price held back on a channel while its request is served. Dropped, it is released.
pub struct Reservation {
    _ledger: Arc<Ledger>,
}

/// What a commit did.
#[derive(Clone, Debug)]
pub struct Receipt {
    /// What was charged.
    pub charged: Amount,
    /// The channel after it.
    pub channel: ChannelRecord,
}

impl Reservation {
    /// What is reserved.
    #[must_use]
    pub fn amount(&self) -> Amount {
        todo!()
    }

    /// Charges the reserved price and makes it durable; with a deposit, takes up the channel as the chain confirmed it.
    ///
    /// # Errors
    /// [`StoreError`]: nothing was charged, and the ledger has stopped.
    pub async fn commit(self, _on_chain: Option<OnChain>) -> Result<Receipt, StoreError> {
        todo!()
    }

    /// Gives the price back. The same as dropping, said aloud.
    pub fn release(self) {}
}

/// A channel that is being closed and takes no payments.
pub struct CloseGuard {
    _ledger: Arc<Ledger>,
}

impl CloseGuard {
    /// The channel as it stands, final but for the chain's side.
    #[must_use]
    pub fn channel(&self) -> ChannelRecord {
        todo!()
    }

    /// Closes it for good, with the final state that the chain confirmed; durable when this returns.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn finish(self, _on_chain: OnChain) -> Result<(), StoreError> {
        todo!()
    }
}
