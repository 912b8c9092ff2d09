//! The channels in memory: a sharded map, and the totals over it.
//!
//! Owns where a channel's state lives and what it weighs: one box of 320 bytes for an idle channel, 336 on EVM
//! networks, and a second one only while a request is in flight, waits, or the channel is being written or closed. A
//! shard's lock is held for a few hundred nanoseconds, for as long as a shard is looked through by who visits all, and
//! never across an await; whoever is woken is woken after it is given back. Totals are kept from the difference that
//! each visit makes, so no path can forget them. Measured in `docs/decisions/0003`.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hashbrown::HashTable;
use hashbrown::hash_table::{Entry, OccupiedEntry};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::changes::Pen;
use super::channel::{BidOf, Channel, ChannelOf, ChannelTerms, Family, Voucher};
use super::payers::Payers;
use super::purse::Purse;
use super::queue::Queue;
use super::store::{ChannelRecord, Glance, GlanceOf, RecordOf};
use super::{CloseGuard, Exposure, Limits, Refused, Reservation};
use crate::amount::Amount;
use crate::clock::UnixMillis;
use crate::x402::Account;

/// How many parts the map has, each with its own lock: enough that two of a machine's cores seldom meet, and that a
/// visit to all of a part stays short with millions of channels.
const SHARDS: usize = 1024;
/// From this share of a limit on, settlement is asked to hurry: four fifths.
const PRESSED: (u128, u128) = (4, 5);

/// A channel in memory: its state, packed, and what is going on with it.
pub(super) struct Slot<F: Family> {
    /// What never changes, but for the shared seller's texts.
    pub(super) terms: F::Terms,
    on_chain: F::OnChain,
    charged: Amount,
    signed: Amount,
    signature: Option<F::Signature>,
    unclaimed_since: UnixMillis,
    last_used: UnixMillis,
    has_unclaimed: bool,
    closed: bool,
    known: bool,
    work: Option<Box<Work<F>>>,
}

/// Takes the answer to a request that waits.
type Turn<F> = oneshot::Sender<Result<Reservation<F>, Refused<F>>>;

/// What is going on with a channel.
pub(super) struct Work<F: Family> {
    /// The request in flight.
    pub(super) held: Option<Held<F>>,
    /// The requests that wait.
    pub(super) queue: Queue<Turn<F>, F::Signature>,
    /// Our close.
    pub(super) closing: Option<Closing<F>>,
    /// Whether the channel is being written.
    pub(super) pen_out: bool,
    /// Who waits to write it.
    pub(super) pens: VecDeque<oneshot::Sender<Pen<F>>>,
}

impl<F: Family> Default for Work<F> {
    fn default() -> Self {
        Self { held: None, queue: Queue::default(), closing: None, pen_out: false, pens: VecDeque::new() }
    }
}

/// A request in flight.
pub(super) struct Held<F: Family> {
    /// Names it.
    pub(super) ticket: u64,
    /// What it pays.
    pub(super) bid: BidOf<F>,
    /// When it is released if nobody does it before.
    pub(super) expires: Instant,
    /// Whether its charge is being made durable. From then on only the outcome ends it.
    pub(super) committing: bool,
}

/// A close of ours.
pub(super) enum Closing<F: Family> {
    /// It waits for the request in flight.
    Awaited {
        /// Names it.
        ticket: u64,
        /// Takes the guard.
        answer: oneshot::Sender<CloseGuard<F>>,
    },
    /// It holds the channel.
    Held {
        /// Names it.
        ticket: u64,
    },
}

impl<F: Family> Slot<F> {
    /// A channel and nothing going on with it.
    pub(super) fn new(terms: F::Terms, channel: &ChannelOf<F>) -> Self {
        let mut slot = Self {
            terms,
            on_chain: channel.on_chain,
            charged: Amount::ZERO,
            signed: Amount::ZERO,
            signature: None,
            unclaimed_since: UnixMillis(0),
            last_used: UnixMillis(0),
            has_unclaimed: false,
            closed: false,
            known: false,
            work: None,
        };
        slot.put(channel);
        slot
    }

    /// The channel's state.
    pub(super) fn channel(&self) -> ChannelOf<F> {
        let work = self.work.as_deref();
        let signature = self.signature.clone();
        Channel {
            on_chain: self.on_chain,
            known: self.known,
            charged: self.charged,
            voucher: signature.map(|signature| Voucher { cumulative: self.signed, signature }),
            unclaimed_since: self.has_unclaimed.then_some(self.unclaimed_since),
            last_used: self.last_used,
            closed: self.closed,
            reserved: work.and_then(|w| w.held.as_ref()).map(|held| held.bid.clone()),
            leaving: work.is_some_and(|w| w.closing.is_some()),
        }
    }

    /// Takes over the durable part of a state. What is in flight and closing is [`Work`]'s.
    pub(super) fn put(&mut self, channel: &ChannelOf<F>) {
        self.on_chain = channel.on_chain;
        self.known = channel.known;
        self.charged = channel.charged;
        self.signed = channel.voucher.as_ref().map_or(Amount::ZERO, |voucher| voucher.cumulative);
        self.signature = channel.voucher.as_ref().map(|voucher| voucher.signature.clone());
        self.has_unclaimed = channel.unclaimed_since.is_some();
        self.unclaimed_since = channel.unclaimed_since.unwrap_or_default();
        self.last_used = channel.last_used;
        self.closed = channel.closed;
    }

    /// The channel as others see it.
    pub(super) fn record(&self) -> RecordOf<F> {
        ChannelRecord::of(self.terms.clone(), &self.channel())
    }

    /// The channel in passing.
    fn glance(&self) -> GlanceOf<'_, F> {
        Glance {
            terms: &self.terms,
            on_chain: &self.on_chain,
            charged: self.charged,
            signed: self.signature.is_some().then_some(self.signed),
            unclaimed_since: self.has_unclaimed.then_some(self.unclaimed_since),
            closed: self.closed,
        }
    }

    /// What is going on, if anything.
    pub(super) fn going_on(&mut self) -> Option<&mut Work<F>> {
        self.work.as_deref_mut()
    }

    /// What is going on, to add to it.
    pub(super) fn work(&mut self) -> &mut Work<F> {
        self.work.get_or_insert_default()
    }

    fn tidy(&mut self) {
        let over = self.work.as_ref().is_some_and(|w| {
            w.held.is_none() && w.queue.is_empty() && w.closing.is_none() && !w.pen_out && w.pens.is_empty()
        });
        if over {
            self.work = None;
        }
    }

    fn exposure(&self) -> Amount {
        if self.known { self.channel().exposure() } else { Amount::ZERO }
    }

    fn tally(&self) -> Tally {
        let held = self.work.as_deref().and_then(|w| w.held.as_ref()).map(|held| (held.ticket, held.bid.amount));
        Tally { known: self.known, exposure: self.exposure(), held }
    }
}

/// What a channel adds to the totals.
#[derive(Default)]
struct Tally {
    known: bool,
    exposure: Amount,
    held: Option<(u64, Amount)>,
}

struct Shard<F: Family> {
    slots: HashTable<Box<Slot<F>>>,
    /// No channel's exposure is above this; the largest is exactly this unless `stale`.
    largest: Amount,
    stale: bool,
}

impl<F: Family> Default for Shard<F> {
    fn default() -> Self {
        Self { slots: HashTable::new(), largest: Amount::ZERO, stale: false }
    }
}

/// All channels.
pub(super) struct Book<F: Family> {
    shards: Box<[Mutex<Shard<F>>]>,
    hasher: RandomState,
    /// What is at risk here and in the merchant's other ledgers.
    purse: Arc<Purse>,
    /// Requests in flight, and known channels.
    held: AtomicUsize,
    known: AtomicUsize,
    sellers: Mutex<Vec<Arc<F::Seller>>>,
    limits: Limits,
    /// Told when the exposure comes near a limit.
    pub(super) pressed: Arc<Notify>,
}

impl<F: Family> Book<F> {
    /// An empty book.
    pub(super) fn new(limits: Limits, purse: Arc<Purse>) -> Self {
        Self {
            shards: std::iter::repeat_with(Mutex::default).take(SHARDS).collect(),
            hasher: RandomState::new(),
            held: AtomicUsize::new(0),
            known: AtomicUsize::new(0),
            sellers: Mutex::default(),
            limits,
            pressed: purse.listen(),
            purse,
        }
    }

    /// What payers have spent and have at risk.
    pub(super) fn payers(&self) -> &Arc<Payers> {
        self.purse.payers()
    }

    /// Tells every settlement that exposure presses.
    pub(super) fn press(&self) {
        self.purse.press();
    }

    /// Whose exposure a channel's is, where that is summed up.
    fn exposed(&self, terms: &F::Terms) -> Option<Account> {
        self.payers().by_exposure().then(|| terms.payer())
    }

    /// The one copy of a seller that all its channels share.
    pub(super) fn seller(&self, seller: &Arc<F::Seller>) -> Arc<F::Seller> {
        let mut sellers = self.sellers.lock();
        if let Some(known) = sellers.iter().find(|known| Arc::ptr_eq(known, seller) || *known == seller) {
            return Arc::clone(known);
        }
        sellers.push(Arc::clone(seller));
        Arc::clone(seller)
    }

    /// Visits a channel under its shard's lock, and keeps the totals.
    pub(super) fn with<T>(&self, id: &F::Id, visit: impl FnOnce(&mut Slot<F>) -> T) -> Option<T> {
        let hash = self.hasher.hash_one(id);
        let mut shard = self.shard(hash).lock();
        let entry = shard.slots.find_entry(hash, |slot| slot.terms.id() == *id).ok()?;
        let (before, payer) = (entry.get().tally(), self.exposed(&entry.get().terms));
        let (answer, after) = visited(entry, visit);
        self.account(&mut shard, &before, &after, payer);
        Some(answer)
    }

    /// Visits a channel, and enters it first where it is not there. It stays only if it is known or something goes on
    /// with it afterwards.
    pub(super) fn with_or_enter<T>(
        &self,
        id: &F::Id,
        enter: impl FnOnce() -> Slot<F>,
        visit: impl FnOnce(&mut Slot<F>) -> T,
    ) -> T {
        let hash = self.hasher.hash_one(id);
        let mut shard = self.shard(hash).lock();
        let entry =
            shard.slots.entry(hash, |slot| slot.terms.id() == *id, |slot| self.hasher.hash_one(slot.terms.id()));
        let (entry, before) = match entry {
            Entry::Occupied(entry) => {
                let before = entry.get().tally();
                (entry, before)
            }
            Entry::Vacant(entry) => (entry.insert(Box::new(enter())), Tally::default()),
        };
        let payer = self.exposed(&entry.get().terms);
        let (answer, after) = visited(entry, visit);
        self.account(&mut shard, &before, &after, payer);
        answer
    }

    /// Holds an amount's room under the limits, on a channel that has so much exposure; the totals give it back when
    /// the request in flight has ended.
    pub(super) fn room(&self, amount: Amount, exposure: Amount) -> bool {
        let fits = |max: Option<Amount>, sum: Option<Amount>| max.is_none_or(|max| sum.is_some_and(|sum| sum <= max));
        let fits = self.purse.with(|sums| {
            let total = sums.exposed.checked_add(sums.reserved).and_then(|sum| sum.checked_add(amount));
            let fits = fits(self.limits.exposure_max, total)
                && fits(self.limits.channel_exposure_max, exposure.checked_add(amount))
                && total.is_some();
            if fits {
                sums.reserved = sums.reserved.saturating_add(amount);
            }
            fits
        });
        if fits {
            self.held.fetch_add(1, Ordering::Relaxed);
        } else {
            self.purse.press();
        }
        fits
    }

    /// What is at risk.
    pub(super) fn exposure(&self) -> Exposure {
        let mut largest = Amount::ZERO;
        for shard in &self.shards {
            let mut shard = shard.lock();
            if shard.stale {
                shard.largest = shard.slots.iter().map(|slot| slot.exposure()).max().unwrap_or_default();
                shard.stale = false;
            }
            largest = largest.max(shard.largest);
        }
        Exposure { total: self.purse.with(|sums| sums.exposed), largest }
    }

    /// How many channels are known, and how many requests are in flight.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.known.load(Ordering::Relaxed), self.held.load(Ordering::Relaxed))
    }

    /// Visits every known channel's record, with no lock held.
    pub(super) fn for_each(&self, visit: &mut dyn FnMut(&RecordOf<F>)) {
        let mut records = Vec::new();
        for shard in &self.shards {
            let shard = shard.lock();
            if shard.slots.is_empty() {
                continue;
            }
            records.extend(shard.slots.iter().filter(|slot| slot.known).map(|slot| slot.record()));
            drop(shard);
            records.iter().for_each(&mut *visit);
            records.clear();
        }
    }

    /// Looks at every known channel in passing. `pick` runs under a shard's lock; what it picks of a shard is handed to
    /// `take` once the lock is given back.
    pub(super) fn glance<T>(&self, pick: &mut dyn FnMut(GlanceOf<'_, F>) -> Option<T>, take: &mut dyn FnMut(T)) {
        let mut picked = Vec::new();
        for shard in &self.shards {
            let shard = shard.lock();
            let known = shard.slots.iter().filter(|slot| slot.known);
            picked.extend(known.filter_map(|slot| pick(slot.glance())));
            drop(shard);
            picked.drain(..).for_each(&mut *take);
        }
    }

    /// How many parts [`Self::for_each_busy`] can visit.
    pub(super) const fn parts(&self) -> usize {
        self.shards.len()
    }

    /// Visits what is going on in one part of the book. Does not keep the totals: nothing in flight may be ended here.
    pub(super) fn for_each_busy(&self, part: usize, mut visit: impl FnMut(&F::Terms, &mut Work<F>)) {
        let Some(shard) = self.shards.get(part) else { return };
        for slot in &mut shard.lock().slots {
            let slot = &mut **slot;
            if let Some(work) = slot.work.as_deref_mut() {
                visit(&slot.terms, work);
            }
        }
    }

    fn shard(&self, hash: u64) -> &Mutex<Shard<F>> {
        // Not the bits that the table itself uses first: its low ones, and the top seven.
        let part = usize::try_from(hash >> 40).unwrap_or(0) % SHARDS;
        &self.shards[part]
    }

    fn account(&self, shard: &mut Shard<F>, before: &Tally, after: &Tally, payer: Option<Account>) {
        if after.exposure > before.exposure {
            shard.largest = shard.largest.max(after.exposure);
        } else if after.exposure < before.exposure && before.exposure == shard.largest {
            shard.stale = true;
        }
        let ended = before.held.filter(|(ticket, _)| after.held.is_none_or(|(now, _)| now != *ticket));
        if ended.is_none() && before.exposure == after.exposure && before.known == after.known {
            return;
        }
        if let Some(payer) = payer.filter(|_| before.exposure != after.exposure) {
            self.payers().expose(payer, before.exposure, after.exposure);
        }
        let (was, is) = self.purse.with(|sums| {
            if let Some((_, amount)) = ended {
                sums.reserved = sums.reserved.saturating_sub(amount);
            }
            let was = sums.exposed;
            sums.exposed = was.saturating_sub(before.exposure).saturating_add(after.exposure);
            (was, sums.exposed)
        });
        if ended.is_some() {
            self.held.fetch_sub(1, Ordering::Relaxed);
        }
        match (before.known, after.known) {
            (false, true) => drop(self.known.fetch_add(1, Ordering::Relaxed)),
            (true, false) => drop(self.known.fetch_sub(1, Ordering::Relaxed)),
            (true, true) | (false, false) => {}
        }
        if crossed(self.limits.exposure_max, was, is)
            || crossed(self.limits.channel_exposure_max, before.exposure, after.exposure)
        {
            self.purse.press();
        }
    }
}

/// Visits an entry, and removes it where nothing is left of it.
fn visited<F: Family, T>(
    mut entry: OccupiedEntry<'_, Box<Slot<F>>>,
    visit: impl FnOnce(&mut Slot<F>) -> T,
) -> (T, Tally) {
    let slot = entry.get_mut();
    let answer = visit(slot);
    slot.tidy();
    let after = slot.tally();
    if !slot.known && slot.work.is_none() {
        drop(entry.remove());
    }
    (answer, after)
}

/// Whether an exposure has come near its limit and was not near it before.
fn crossed(max: Option<Amount>, was: Amount, is: Amount) -> bool {
    let near = |amount: Amount, max: Amount| {
        amount.get().saturating_mul(PRESSED.1) >= max.get().saturating_mul(PRESSED.0) && !amount.is_zero()
    };
    max.is_some_and(|max| near(is, max) && !near(was, max))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::channel::{Evm, Svm};

    #[test]
    fn an_idle_channel_is_one_small_box() {
        assert_eq!(size_of::<Slot<Svm>>(), 320);
        assert_eq!(size_of::<Slot<Evm>>(), 336);
    }

    #[test]
    fn near_is_four_fifths_and_told_once() {
        let amount = Amount::new;
        assert!(crossed(Some(amount(100)), amount(79), amount(80)));
        assert!(!crossed(Some(amount(100)), amount(80), amount(99)));
        assert!(!crossed(Some(amount(100)), amount(99), amount(80)));
        assert!(!crossed(None, amount(0), amount(u128::MAX)));
        assert!(crossed(Some(amount(u128::MAX)), amount(0), amount(u128::MAX)));
    }
}
