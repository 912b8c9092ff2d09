//! Balances: what each channel has deposited, promised, been charged, claimed and paid out.
//!
//! The gate and the settlement meet here and nowhere else. The gate reserves, commits and releases; the settlement asks
//! what is due and reports what the chain did. Every commit is durable before [`Reservation::commit`] returns, and
//! restart restores every commit that a client was told of (invariant L5).
//!
//! How it is made: [`channel`] is the state machine, pure; `book` holds the channels in memory; `turns` decides who
//! goes when; `changes` makes changes durable through the port in [`store`]; [`answers`] keeps what clients may ask for
//! again; [`passes`] counts down what was paid for ahead. Every future given out here may be dropped at any time: what it waited for is given back, and what was
//! already handed to the store is carried through.
//!
//! A request is refused for the first of these that holds: the ledger has stopped, its total is above what any channel
//! may be charged, the channel is not known (or is
//! another seller's), closing, behind, above the deposit that can be there when its turn comes, too many wait, the
//! limit of exposure, waited too long.

pub mod answers;
mod book;
mod changes;
pub mod channel;
pub mod memory;
pub mod passes;
pub mod payers;
mod purse;
mod queue;
pub mod sqlite;
pub mod store;
pub mod told;
mod turns;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use self::answers::AnswerLimits;
use self::book::Slot;
use self::changes::{Also, Keep, Plan, carry};
use self::channel::{ChannelTerms, Family, Journalled, Svm, VoucherOf};
use self::passes::{PASSES_MAX, PassRecord, PassRoom};
use self::payers::Allowance;
pub use self::purse::Purse;
use self::store::{Answer, AnswerId, Charged, GlanceOf, RecordOf, Store, StoreError, Write};
use self::turns::{Core, Entered};
use crate::amount::Amount;
use crate::clock::Clock;

/// The ledger's own bounds.
#[derive(Clone, Debug)]
pub struct Limits {
    /// The most that may be charged and not yet claimed, over all channels of all ledgers in the same [`Purse`].
    pub exposure_max: Option<Amount>,
    /// The most that may be charged and not yet claimed on one channel.
    pub channel_exposure_max: Option<Amount>,
    /// The most that may be charged on one channel over its whole life: what a signer lets one claim name. More could
    /// be served and never be claimed, even where the payer has deposited it.
    pub channel_charged_max: Option<Amount>,
    /// How long before the deadline of a payer's withdrawal no more credit is given, so that there is time to claim.
    /// For chains where a payer may withdraw while the channel stays open.
    pub withdraw_margin: Duration,
    /// How many requests of one channel may wait for their turn.
    pub waiters_per_channel_max: usize,
    /// How long a request waits for predecessors that are being served.
    pub wait_max: Duration,
    /// How long a request waits for a predecessor that has not arrived.
    pub gap_wait_max: Duration,
    /// How long a reservation lives that is neither committed nor released. Longer than the longest request: what is
    /// committed later is an error, and its answer must not be delivered.
    pub reservation_max: Duration,
    /// Which answers are kept for clients that lost theirs; `None` for none.
    pub answers: Option<AnswerLimits>,
    /// How many passes may be known at once; where there are so many, none is sold.
    pub passes_max: usize,
}

impl Default for Limits {
    /// No limit of exposure; no credit in the last 5 minutes of a withdrawal; 64 waiting requests for each channel, 10 s behind predecessors, 250 ms at a gap; 10
    /// minutes for a request; answers by their own default; 100,000 passes.
    fn default() -> Self {
        Self {
            exposure_max: None,
            channel_exposure_max: None,
            channel_charged_max: None,
            withdraw_margin: Duration::from_secs(300),
            waiters_per_channel_max: 64,
            wait_max: Duration::from_secs(10),
            gap_wait_max: Duration::from_millis(250),
            reservation_max: Duration::from_secs(600),
            answers: Some(AnswerLimits::default()),
            passes_max: PASSES_MAX,
        }
    }
}

/// A request's payment, ready to be reserved: its signature, channel and price have been checked.
#[derive(Clone, Debug)]
pub struct Entry<F: Family = Svm> {
    /// The channel.
    pub terms: F::Terms,
    /// The voucher that pays.
    pub voucher: VoucherOf<F>,
    /// The price.
    pub amount: Amount,
    /// The channel's whole deposit once a deposit that came along is confirmed; `None` where none came.
    pub deposit_after: Option<Amount>,
}

/// Why nothing was reserved. Nothing was changed either.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Refused<F: Family = Svm> {
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
        channel: Box<RecordOf<F>>,
    },
    /// The voucher's total is above the deposit, or above [`Limits::channel_charged_max`].
    #[error("the voucher's total is above the {deposit} that this channel can pay: top it up, or open another")]
    ExceedsDeposit {
        /// What counts.
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

/// What is charged, not yet claimed, and can still be claimed. What a channel's end left behind is lost, not at risk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exposure {
    /// Over all channels, those of ledgers in the same [`Purse`] included.
    pub total: Amount,
    /// On the channel where it is largest.
    pub largest: Amount,
}

/// Balances in memory over a durable store.
pub struct Ledger<F: Family = Svm> {
    core: Arc<Core<F>>,
    next_batch: AtomicU64,
    journal: Arc<Journal<F>>,
}

/// What was journalled and is still open, in an order that does not change from run to run: a simulation repeats.
struct Journal<F: Family> {
    batches: Mutex<BTreeMap<u64, F::Batch>>,
    metered: Mutex<BTreeMap<F::Id, F::Metered>>,
}

impl<F: Family> Journal<F> {
    fn enter(&self, metered: impl IntoIterator<Item = F::Metered>) {
        self.metered.lock().extend(metered.into_iter().map(|metered| (metered.key(), metered)));
    }
}

impl<F: Family> Ledger<F> {
    /// Restores the ledger from its store. To be called on a tokio runtime that lives as long as the ledger is used.
    ///
    /// # Errors
    /// [`StoreError`] where the store cannot be read, or holds what the ledger can never have written.
    pub async fn open(
        store: Arc<dyn Store<F>>,
        clock: Arc<dyn Clock>,
        limits: Limits,
    ) -> Result<Arc<Self>, StoreError> {
        Self::open_in(store, clock, limits, Purse::new()).await
    }

    /// The same, beside other ledgers with which it shares the limit of exposure.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn open_in(
        store: Arc<dyn Store<F>>,
        clock: Arc<dyn Clock>,
        limits: Limits,
        purse: Arc<Purse>,
    ) -> Result<Arc<Self>, StoreError> {
        let core = Arc::new(Core::new(store, clock, limits, purse));
        let snapshot = core.store.load_each(&mut |record| restore(&core, record)).await?;
        let journal = Journal {
            batches: Mutex::new(snapshot.batches.into_iter().map(|batch| (batch.key(), batch)).collect()),
            metered: Mutex::new(snapshot.metered.into_iter().map(|metered| (metered.key(), metered)).collect()),
        };
        core.answers.restore(snapshot.answers, core.clock.now());
        core.book.payers().restore(snapshot.spent);
        core.passes.restore(snapshot.passes);
        drop(tokio::spawn(Core::sweep(Arc::downgrade(&core))));
        drop(tokio::spawn(answers::tidy(Arc::downgrade(&core))));
        let next_batch = AtomicU64::new(snapshot.last_batch.saturating_add(1));
        Ok(Arc::new(Self { core, next_batch, journal: Arc::new(journal) }))
    }

    /// A channel as it is now.
    #[must_use]
    pub fn channel(&self, id: &F::Id) -> Option<RecordOf<F>> {
        self.core.book.with(id, |slot| Some(slot.record()).filter(|_| slot.channel().known)).flatten()
    }

    /// Takes up a channel that the chain has and the ledger does not: what was claimed counts as charged. It is written
    /// with its first charge; until then a restart takes it up from the chain again.
    pub fn adopt(&self, terms: F::Terms, on_chain: F::OnChain) {
        self.core.adopt(terms, on_chain);
    }

    /// Reserves a request's price, in voucher order; waits for predecessors within the limits. A deposit that opens a
    /// channel reserves on one that is not yet known.
    ///
    /// A voucher equal to the one in flight waits for its outcome: it goes if that is released, and is a mismatch if it
    /// is charged. So one voucher pays for one delivery, however often it is sent.
    ///
    /// # Errors
    /// [`Refused`]; nothing is changed.
    pub async fn reserve(self: &Arc<Self>, entry: Entry<F>) -> Result<Reservation<F>, Refused<F>> {
        match self.core.enter(&entry)? {
            Entered::Served(reservation) => Ok(reservation),
            Entered::Waits(waiting) => Box::pin(waiting.answer()).await,
        }
    }

    /// Takes the channel out of service to close it: waits until no request is in flight, then lets none in. Dropped
    /// without [`CloseGuard::shut`], it lets them in again. A channel that its payer is closing can be taken too.
    ///
    /// # Errors
    /// [`Refused::Unknown`], [`Refused::Closing`], [`Refused::Busy`] or [`Refused::Stopped`].
    pub async fn begin_close(self: &Arc<Self>, id: &F::Id) -> Result<CloseGuard<F>, Refused<F>> {
        self.core.begin_close(id).await
    }

    /// Takes up what the chain says of a channel: a rising watermark, a new status. Durable before it returns where it
    /// changed anything but the time of reading. Readings may come in any order; of a channel that is not known, and
    /// what the chain's program cannot have written, is ignored.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn observe(&self, id: &F::Id, on_chain: F::OnChain) -> Result<(), StoreError> {
        self.core.change(*id, Plan::Observe(on_chain), || ()).await.map(drop)
    }

    /// Forgets a channel that the chain no longer has and that owes nothing; keeps and reports one that still does. One
    /// that is in use is left alone: ask again.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn forget(&self, id: &F::Id) -> Result<(), StoreError> {
        self.core.change(*id, Plan::Forget, || ()).await.map(drop)
    }

    /// Visits every channel, a shard at a time; what changes meanwhile may be seen before or after. No lock is held
    /// while `visit` runs.
    pub fn for_each(&self, visit: &mut dyn FnMut(&RecordOf<F>)) {
        self.core.book.for_each(visit);
    }

    /// Looks at every channel in passing, a shard at a time, and copies none: for what comes again and again. `pick` runs
    /// under the shard's lock, which requests wait for: it decides by what it sees, quickly, and asks this ledger
    /// nothing. What it picks is handed to `take` with no lock held.
    pub fn glance<T>(&self, mut pick: impl FnMut(GlanceOf<'_, F>) -> Option<T>, mut take: impl FnMut(T)) {
        self.core.book.glance(&mut pick, &mut take);
    }

    /// What is at risk now. The largest is searched for where channels were claimed since it was last asked for: for
    /// metrics and the dashboard, not for every request.
    #[must_use]
    pub fn exposure(&self) -> Exposure {
        self.core.book.exposure()
    }

    /// How many channels are known, and how many reservations are held.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        self.core.book.counts()
    }

    /// Resolves when the exposure has come near a limit (four fifths of it), or a request was refused for it:
    /// settlement need not wait for its interval. For one listener; what happened while it was not listening counts
    /// once.
    pub async fn pressed(&self) {
        self.core.book.pressed.notified().await;
    }

    /// The next batch's id. Each is given once.
    #[must_use]
    pub fn next_batch(&self) -> u64 {
        self.next_batch.fetch_add(1, Ordering::Relaxed)
    }

    /// Journals a settlement batch.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn journal_batch(&self, batch: F::Batch) -> Result<(), StoreError> {
        let write = Write::Batch(Box::new(batch.clone()));
        self.journalled(vec![write], move |journal| {
            let mut open = journal.batches.lock();
            if batch.is_open() {
                drop(open.insert(batch.key(), batch));
            } else {
                drop(open.remove(&batch.key()));
            }
        })
        .await
    }

    /// The batches that were journalled and are neither confirmed nor dropped, oldest first.
    #[must_use]
    pub fn open_batches(&self) -> Vec<F::Batch> {
        self.journal.batches.lock().values().cloned().collect()
    }

    /// The newest batches, newest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn batches(&self, limit: usize) -> Result<Vec<F::Batch>, StoreError> {
        self.core.store.batches(limit).await
    }

    /// Journals a metered request's channel.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn journal_metered(&self, metered: F::Metered) -> Result<(), StoreError> {
        let write = Write::Metered(Box::new(metered.clone()));
        self.journalled(vec![write], move |journal| journal.enter([metered])).await
    }

    /// Forgets a metered request's channel that is closed.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn forget_metered(&self, id: &F::Id) -> Result<(), StoreError> {
        let id = *id;
        self.journalled(vec![Write::ForgetMetered(id)], move |journal| drop(journal.metered.lock().remove(&id))).await
    }

    /// The metered requests' channels that are not yet closed.
    #[must_use]
    pub fn open_metered(&self) -> Vec<F::Metered> {
        self.journal.metered.lock().values().cloned().collect()
    }

    /// Stops for good: nothing more is charged, and whoever waits is told. For what makes charging unsafe from outside.
    pub fn stop(&self, why: &str) {
        self.core.stop(why);
    }

    /// `Err` with what is wrong where the ledger has stopped.
    ///
    /// # Errors
    /// What made it stop.
    pub fn health(&self) -> Result<(), String> {
        self.core.running()
    }

    async fn journalled(
        &self,
        writes: Vec<Write<F>>,
        then: impl FnOnce(&Journal<F>) + Send + 'static,
    ) -> Result<(), StoreError> {
        self.core.writable()?;
        if writes.is_empty() {
            then(&self.journal);
            return Ok(());
        }
        let (core, journal) = (Arc::clone(&self.core), Arc::clone(&self.journal));
        carry(async move {
            match core.store.write(writes).await {
                Ok(()) => then(&journal),
                Err(error) => {
                    core.stop(&error.0);
                    return Err(error);
                }
            }
            Ok(())
        })
        .await
    }
}

impl<F: Family> fmt::Debug for Ledger<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (channels, reservations) = self.counts();
        f.debug_struct("Ledger")
            .field("channels", &channels)
            .field("reservations", &reservations)
            .finish_non_exhaustive()
    }
}

/// Enters a channel that the store holds.
fn restore<F: Family>(core: &Core<F>, mut record: RecordOf<F>) -> Result<(), StoreError> {
    let id = record.terms.id();
    let channel = record.channel();
    channel.clone().checked().map_err(|why| {
        StoreError(format!("channel {id} in the store is not one that the ledger wrote ({why}); restore a backup"))
    })?;
    let seller = core.book.seller(record.terms.seller());
    record.terms.set_seller(seller);
    core.book.with_or_enter(&id, || Slot::new(record.terms, &channel), |slot| slot.put(&channel));
    Ok(())
}

/// A price held back on a channel while its request is served. Dropped, it is released.
pub struct Reservation<F: Family = Svm> {
    core: Arc<Core<F>>,
    id: F::Id,
    ticket: u64,
    amount: Amount,
    charge: Option<Amount>,
    held: Option<Box<Allowance>>,
    route: Option<Arc<str>>,
    sold: Option<Box<Sold>>,
    over: bool,
}

/// A pass that becomes durable with its charge, and the room for it.
struct Sold {
    pass: PassRecord,
    room: Arc<PassRoom>,
}

/// What a commit did.
#[derive(Clone, Debug)]
pub struct Receipt<F: Family = Svm> {
    /// What was charged.
    pub charged: Amount,
    /// The channel after it.
    pub channel: RecordOf<F>,
}

impl<F: Family> Reservation<F> {
    /// What is reserved.
    #[must_use]
    pub const fn amount(&self) -> Amount {
        self.amount
    }

    /// What will be charged.
    #[must_use]
    pub fn charge(&self) -> Amount {
        self.charge.unwrap_or(self.amount)
    }

    /// Charges this much of what is reserved, where the chain can claim a part of a voucher.
    #[must_use]
    pub fn charging(self, charge: Amount) -> Self {
        let mut charging = self;
        charging.charge = Some(charge);
        charging
    }

    /// Counts the charge for its payer, in the same durable write; what was held for it is given back where nothing is
    /// charged.
    #[must_use]
    pub fn counting(self, held: Option<Allowance>) -> Self {
        let mut counting = self;
        counting.held = held.map(Box::new);
        counting
    }

    /// Says what is paid for, for the audit record.
    #[must_use]
    pub fn on_route(self, name: &Arc<str>) -> Self {
        let mut on_route = self;
        on_route.route = Some(Arc::clone(name));
        on_route
    }

    /// Sells a pass for the charge, in the same durable write.
    #[must_use]
    pub fn selling(self, pass: PassRecord, room: Arc<PassRoom>) -> Self {
        let mut selling = self;
        selling.sold = Some(Box::new(Sold { pass, room }));
        selling
    }

    /// Charges the reserved price, or what [`Self::charging`] said of it, and makes it durable; with a deposit, takes up the channel as the chain confirmed it.
    /// The request's answer may be delivered when this has returned a receipt, and not otherwise: after an error the
    /// same voucher may pay for another request. Dropped before it returns, it charges or releases, whichever is true
    /// by then.
    ///
    /// # Errors
    /// [`StoreError`]: nothing was charged. The store failed and the ledger has stopped, or this one charge cannot be
    /// made: the reservation has lapsed, the deposit is not there, the channel has ended; see [`Ledger::health`].
    pub fn commit(self, on_chain: Option<F::OnChain>) -> impl Future<Output = Result<Receipt<F>, StoreError>> + Send {
        self.commit_keeping(on_chain, None)
    }

    /// The same, and keeps the request's answer in the same durable write: after a crash either both are there or
    /// neither. `make` makes the answer from the channel as it will be.
    ///
    /// # Errors
    /// As [`Self::commit`]; nothing is kept.
    pub fn commit_with_answer(
        self,
        on_chain: Option<F::OnChain>,
        id: AnswerId,
        make: impl FnOnce(&RecordOf<F>) -> Answer + Send + 'static,
    ) -> impl Future<Output = Result<Receipt<F>, StoreError>> + Send {
        let core = Arc::clone(&self.core);
        let keep = move |channel: &RecordOf<F>| core.answers.record(id, core.clock.now(), make(channel));
        self.commit_keeping(on_chain, Some(Box::new(keep)))
    }

    async fn commit_keeping(
        mut self,
        on_chain: Option<F::OnChain>,
        keep: Option<Keep<F>>,
    ) -> Result<Receipt<F>, StoreError> {
        let (core, id) = (Arc::clone(&self.core), self.id);
        let charge = self.charge;
        let held = self.held.take().map(|held| held.charging(self.charge()));
        let plan = Plan::Commit { ticket: self.ticket, on_chain, charge };
        let charged = Charged { amount: charge.unwrap_or(self.amount), route: self.route.take() };
        let over = &mut self.over;
        let also = Also { charged: Some(charged), keep, held, sold: self.sold.take() };
        let channel = core.change_also(id, plan, also, || *over = true).await?;
        // Only a plan without a change gives no record, and a charge is one.
        let channel = channel.ok_or_else(|| StoreError("nothing was charged".to_owned()))?;
        Ok(Receipt { charged: charge.unwrap_or(self.amount), channel })
    }

    /// Gives the price back. The same as dropping, said aloud.
    pub fn release(self) {}
}

impl<F: Family> Drop for Reservation<F> {
    fn drop(&mut self) {
        if !self.over {
            self.core.release(&self.id, self.ticket);
        }
    }
}

impl<F: Family> fmt::Debug for Reservation<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reservation").field("channel", &self.id).field("amount", &self.amount).finish_non_exhaustive()
    }
}

/// A channel that is being closed and takes no payments.
pub struct CloseGuard<F: Family = Svm> {
    core: Arc<Core<F>>,
    id: F::Id,
    ticket: u64,
    last: Box<RecordOf<F>>,
    over: bool,
}

impl<F: Family> CloseGuard<F> {
    /// The channel as it stands, final but for the chain's side.
    #[must_use]
    pub fn channel(&self) -> RecordOf<F> {
        self.core.book.with(&self.id, |slot| slot.record()).unwrap_or_else(|| (*self.last).clone())
    }

    /// Takes no more payments, durably: to be called before a close is sent. After a crash the channel stays so, and
    /// can be closed again.
    ///
    /// # Errors
    /// [`StoreError`]; the close must not be sent.
    pub async fn shut(&self) -> Result<(), StoreError> {
        self.core.change(self.id, Plan::Shut { ticket: self.ticket, shut: true }, || ()).await.map(drop)
    }

    /// Gives the close up, once it can no longer land: the channel takes payments again, durably.
    ///
    /// # Errors
    /// [`StoreError`]; the channel stays shut.
    pub async fn reopen(self) -> Result<(), StoreError> {
        self.core.change(self.id, Plan::Shut { ticket: self.ticket, shut: false }, || ()).await.map(drop)
    }

    /// Closes it for good, with the final state that the chain confirmed; durable when this returns, and carried
    /// through if the caller goes away.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn finish(mut self, on_chain: F::OnChain) -> Result<(), StoreError> {
        carry(async move {
            let (core, id) = (Arc::clone(&self.core), self.id);
            let plan = Plan::Finish { ticket: self.ticket, on_chain };
            let over = &mut self.over;
            core.change(id, plan, || *over = true).await.map(drop)
        })
        .await
    }
}

impl<F: Family> Drop for CloseGuard<F> {
    fn drop(&mut self) {
        if !self.over {
            self.core.abandon_close(&self.id, self.ticket);
        }
    }
}

impl<F: Family> fmt::Debug for CloseGuard<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CloseGuard").field("channel", &self.id).finish_non_exhaustive()
    }
}
