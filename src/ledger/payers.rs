//! What each payer has spent today and has at risk: one sum over all its channels, schemes and networks.
//!
//! Their assets must count alike, as for the [`Purse`](super::Purse). What a request may cost is held back before
//! anything is reserved on a channel, and becomes spent by what was charged, or is given back: so however requests come
//! together, what is spent and what is held are never above a limit in sum. A request counts for the day on which it was
//! let in.
//!
//! What was spent is written in the same write as its charge ([`super::Reservation::counting`]). A charge that is made on
//! chain is counted before it is asked for and given back where it is known not to have been made, so a crash in between
//! counts too much and never too little. A day is over when a later one is seen; a clock that goes back does not begin an
//! earlier one again.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::Ledger;
use super::channel::Family;
use super::store::{SpentRecord, StoreError, Write};
use crate::amount::Amount;
use crate::clock::Day;
use crate::x402::Account;

/// From how many payers on those are forgotten of whom nothing is known any more.
const PAYERS_MIN: usize = 1024;
/// How far apart the dates of two time zones may be: from 12 hours behind UTC to 14 before it is more than one day.
const ZONES_APART_DAYS_MAX: i32 = 2;

/// The most that a payer may spend in a day.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DailyLimit {
    /// Names what is counted together; a payer has a sum for each.
    pub scope: Arc<str>,
    /// Today.
    pub day: Day,
    /// The most.
    pub max: Amount,
}

/// What holds for a payer's request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PayerLimits {
    /// The most that it may spend today.
    pub daily: Option<DailyLimit>,
    /// The most that may be charged and not yet claimed over all its channels; for what is paid by a channel.
    pub exposure_max: Option<Amount>,
}

/// Which limit would be passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// The day's.
    Daily,
    /// That of what is at risk.
    Exposure,
}

/// All payers.
#[derive(Debug, Default)]
pub struct Payers {
    /// Whether what payers have at risk is summed up.
    by_exposure: bool,
    book: Mutex<Book>,
}

#[derive(Debug, Default)]
struct Book {
    payers: HashMap<Account, Sums>,
    /// The latest day that was seen.
    newest: Option<Day>,
    /// At so many payers it is time to forget some.
    tidy_at: usize,
}

/// One payer's.
#[derive(Debug, Default)]
struct Sums {
    exposed: Amount,
    /// Held back for requests in flight that add to it.
    reserved: Amount,
    days: Vec<Spent>,
}

/// What was spent in a day, of what one limit counts.
#[derive(Debug)]
struct Spent {
    scope: Arc<str>,
    day: Day,
    spent: Amount,
    held: Amount,
}

impl Payers {
    pub(super) fn new(by_exposure: bool) -> Self {
        Self { by_exposure, book: Mutex::default() }
    }

    pub(super) const fn by_exposure(&self) -> bool {
        self.by_exposure
    }

    /// Holds back what a request may cost.
    ///
    /// # Errors
    /// [`Over`] where a limit would be passed; nothing is held then.
    pub fn hold(self: &Arc<Self>, payer: Account, amount: Amount, limits: &PayerLimits) -> Result<Allowance, Over> {
        let mut book = self.book.lock();
        book.tidy();
        let sums = book.payers.entry(payer).or_default();
        let fits = |max: Amount, parts: [Amount; 2]| {
            let sum = parts.into_iter().try_fold(amount, Amount::checked_add);
            sum.is_some_and(|sum| sum <= max)
        };
        let over_day = limits.daily.as_ref().is_some_and(|limit| {
            let today = sums.today(&limit.scope, limit.day);
            !fits(limit.max, [today.spent, today.held])
        });
        let over_exposure = limits.exposure_max.is_some_and(|max| !fits(max, [sums.exposed, sums.reserved]));
        match (over_day, over_exposure) {
            (true, _) => Err(Over::Daily),
            (false, true) => Err(Over::Exposure),
            (false, false) => Ok(self.enter(&mut book, payer, amount, limits)),
        }
    }

    /// The same whatever the limits are: what is spent is counted where nothing is refused, too.
    pub fn hold_anyway(self: &Arc<Self>, payer: Account, amount: Amount, limits: &PayerLimits) -> Allowance {
        let mut book = self.book.lock();
        book.tidy();
        self.enter(&mut book, payer, amount, limits)
    }

    fn enter(self: &Arc<Self>, book: &mut Book, payer: Account, amount: Amount, limits: &PayerLimits) -> Allowance {
        if let Some(limit) = &limits.daily {
            book.newest = book.newest.max(Some(limit.day));
        }
        let sums = book.payers.entry(payer).or_default();
        let daily = limits.daily.as_ref().map(|limit| {
            let today = sums.today(&limit.scope, limit.day);
            today.held = today.held.saturating_add(amount);
            (Arc::clone(&limit.scope), today.day)
        });
        let exposes = limits.exposure_max.is_some();
        if exposes {
            sums.reserved = sums.reserved.saturating_add(amount);
        }
        Allowance { payers: Arc::clone(self), payer, amount, charge: None, daily, exposes }
    }

    /// What a payer has spent in what is counted together, and what is held for it, as of the day that was seen last.
    #[must_use]
    pub fn spent(&self, payer: &Account, scope: &str) -> (Amount, Amount) {
        let book = self.book.lock();
        let days = book.payers.get(payer).map_or(&[][..], |sums| &sums.days);
        let found = days.iter().find(|spent| &*spent.scope == scope);
        found.map_or_else(Default::default, |spent| (spent.spent, spent.held))
    }

    /// Takes up what the store holds.
    pub(super) fn restore(&self, records: Vec<SpentRecord>) {
        let mut book = self.book.lock();
        for SpentRecord { payer, scope, day, amount } in records {
            book.newest = book.newest.max(Some(day));
            let today = book.payers.entry(payer).or_default().today(&scope, day);
            // A record of an earlier day than what is here would be none that counts.
            if today.day == day {
                today.spent = today.spent.saturating_add(amount);
            }
        }
    }

    /// Takes up what a channel has at risk.
    pub(super) fn expose(&self, payer: Account, before: Amount, after: Amount) {
        let mut book = self.book.lock();
        let sums = book.payers.entry(payer).or_default();
        sums.exposed = sums.exposed.saturating_sub(before).saturating_add(after);
    }

    /// The first day that is not over in every time zone: what is stored of earlier ones serves no more.
    pub(super) fn kept_from(&self) -> Option<Day> {
        self.book.lock().kept_from()
    }

    fn end(&self, held: &Allowance, spent: Amount) {
        let mut book = self.book.lock();
        let Some(sums) = book.payers.get_mut(&held.payer) else { return };
        if held.exposes {
            sums.reserved = sums.reserved.saturating_sub(held.amount);
        }
        // Of a day that is over nothing is known any more.
        if let Some(today) = held.daily.as_ref().and_then(|(scope, day)| sums.on(scope, *day)) {
            today.held = today.held.saturating_sub(held.amount);
            today.spent = today.spent.saturating_add(spent);
        }
    }

    fn take_back(&self, spend: &Spend) {
        let mut book = self.book.lock();
        if let Some(today) = book.payers.get_mut(&spend.payer).and_then(|sums| sums.on(&spend.scope, spend.day)) {
            today.spent = today.spent.saturating_sub(spend.amount);
        }
    }
}

impl Book {
    fn kept_from(&self) -> Option<Day> {
        self.newest.map(|newest| newest.minus(ZONES_APART_DAYS_MAX))
    }

    /// Forgets payers of whom nothing is known that would still count. Costs little on average, for it waits until
    /// there are twice as many as it left.
    fn tidy(&mut self) {
        if self.payers.len() < self.tidy_at.max(PAYERS_MIN) {
            return;
        }
        let kept_from = self.kept_from();
        self.payers.retain(|_, sums| {
            let counts = |spent: &Spent| !spent.spent.is_zero() && Some(spent.day) >= kept_from;
            sums.days.retain(|spent| !spent.held.is_zero() || counts(spent));
            !sums.exposed.is_zero() || !sums.reserved.is_zero() || !sums.days.is_empty()
        });
        self.tidy_at = self.payers.len().saturating_mul(2);
    }
}

impl Sums {
    /// The sum of today, which begins at nothing. Where a later day than `day` has been seen, that one goes on.
    fn today(&mut self, scope: &Arc<str>, day: Day) -> &mut Spent {
        let at = self.days.iter().position(|spent| spent.scope == *scope);
        let at = at.unwrap_or_else(|| {
            self.days.push(Spent { scope: Arc::clone(scope), day, spent: Amount::ZERO, held: Amount::ZERO });
            self.days.len().saturating_sub(1)
        });
        let today = &mut self.days[at];
        if today.day < day {
            (today.day, today.spent, today.held) = (day, Amount::ZERO, Amount::ZERO);
        }
        today
    }

    fn on(&mut self, scope: &Arc<str>, day: Day) -> Option<&mut Spent> {
        self.days.iter_mut().find(|spent| spent.scope == *scope && spent.day == day)
    }
}

/// What is held back of a payer's limits for one request. Dropped, it is given back.
#[derive(Debug)]
#[must_use = "what is not counted is given back"]
pub struct Allowance {
    payers: Arc<Payers>,
    payer: Account,
    amount: Amount,
    charge: Option<Amount>,
    daily: Option<(Arc<str>, Day)>,
    exposes: bool,
}

impl Allowance {
    /// Counts this much of what is held.
    pub const fn charging(mut self, charge: Amount) -> Self {
        self.charge = Some(charge);
        self
    }

    /// What is to be made durable with the charge; nothing where no day counts it.
    pub(super) fn spend(&self) -> Option<Spend> {
        let (scope, day) = self.daily.clone()?;
        let amount = self.charge.unwrap_or(self.amount);
        (!amount.is_zero()).then_some(Spend { payer: self.payer, scope, day, amount, back: false })
    }

    /// The charge is durable.
    pub(super) fn counted(mut self) {
        let charge = self.charge.unwrap_or(self.amount);
        self.payers.end(&self, charge);
        // What is dropped now holds nothing any more.
        (self.daily, self.exposes) = (None, false);
    }
}

impl Drop for Allowance {
    fn drop(&mut self) {
        if self.daily.is_some() || self.exposes {
            self.payers.end(self, Amount::ZERO);
        }
    }
}

/// A part of what a payer spent in a day, to be added to what is stored of it or taken back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spend {
    /// Who.
    pub payer: Account,
    /// What it is counted with.
    pub scope: Arc<str>,
    /// When.
    pub day: Day,
    /// How much.
    pub amount: Amount,
    /// Whether it is taken back.
    pub back: bool,
}

impl Spend {
    /// What is stored after it, of what was stored before. Of an earlier day than the stored one nothing counts.
    #[must_use]
    pub fn after(&self, before: Option<(Day, Amount)>) -> (Day, Amount) {
        let (day, spent) = match before {
            Some((day, _)) if day < self.day => (self.day, Amount::ZERO),
            Some(stored) => stored,
            None => (self.day, Amount::ZERO),
        };
        match (day == self.day, self.back) {
            (false, _) => (day, spent),
            (true, false) => (day, spent.saturating_add(self.amount)),
            (true, true) => (day, spent.saturating_sub(self.amount)),
        }
    }
}

/// Something that was counted before it was known to be charged. Dropped, it stays counted.
#[derive(Debug)]
pub struct Counted {
    payers: Arc<Payers>,
    spend: Spend,
}

impl<F: Family> Ledger<F> {
    /// What payers have spent and have at risk, those of other ledgers in the same [`super::Purse`] included.
    #[must_use]
    pub fn payers(&self) -> &Arc<Payers> {
        self.core.book.payers()
    }

    /// Asks settlement to hurry: something is refused that it could make room for.
    pub fn press(&self) {
        self.core.book.press();
    }

    /// Counts a charge that is about to be made on chain; durable when this returns. `None` where no day counts it.
    ///
    /// # Errors
    /// [`StoreError`]: nothing is counted.
    pub async fn count(&self, held: Allowance) -> Result<Option<Counted>, StoreError> {
        self.count_with(Vec::new(), Some(held)).await
    }

    /// The same together with the journal of a metered request's channel that is about to be closed at its charge.
    ///
    /// # Errors
    /// As [`Self::count`]; nothing is journalled.
    pub async fn journal_charge(
        &self,
        metered: F::Metered,
        held: Option<Allowance>,
    ) -> Result<Option<Counted>, StoreError> {
        self.count_with(vec![metered], held).await
    }

    async fn count_with(
        &self,
        metered: Vec<F::Metered>,
        held: Option<Allowance>,
    ) -> Result<Option<Counted>, StoreError> {
        let spend = held.as_ref().and_then(Allowance::spend);
        let mut writes: Vec<_> = metered.iter().cloned().map(|record| Write::Metered(Box::new(record))).collect();
        writes.extend(spend.clone().map(|spend| Write::Spend(Box::new(spend))));
        let payers = Arc::clone(self.payers());
        self.journalled(writes, move |journal| {
            journal.enter(metered);
            if let Some(held) = held {
                held.counted();
            }
        })
        .await?;
        Ok(spend.map(|spend| Counted { payers, spend }))
    }

    /// Gives back what was counted and is known not to have been charged; durable when this returns.
    ///
    /// # Errors
    /// [`StoreError`]: it stays counted.
    pub async fn give_back(&self, counted: Counted) -> Result<(), StoreError> {
        self.give_back_with(Vec::new(), Some(counted)).await
    }

    /// The same together with the journal of a metered request's channel whose charge is forgone.
    ///
    /// # Errors
    /// As [`Self::give_back`]; nothing is journalled.
    pub async fn journal_forgone(&self, metered: F::Metered, counted: Option<Counted>) -> Result<(), StoreError> {
        self.give_back_with(vec![metered], counted).await
    }

    async fn give_back_with(&self, metered: Vec<F::Metered>, counted: Option<Counted>) -> Result<(), StoreError> {
        let mut writes: Vec<_> = metered.iter().cloned().map(|record| Write::Metered(Box::new(record))).collect();
        let back = counted.as_ref().map(|counted| Spend { back: true, ..counted.spend.clone() });
        writes.extend(back.map(|spend| Write::Spend(Box::new(spend))));
        self.journalled(writes, move |journal| {
            journal.enter(metered);
            if let Some(counted) = counted {
                counted.payers.take_back(&counted.spend);
            }
        })
        .await
    }
}

#[cfg(test)]
mod tests;
