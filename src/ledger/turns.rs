//! Whose turn it is on a channel: reserving, waiting in voucher order, releasing, and taking a channel out of service.
//!
//! Everything is decided under the channel's shard lock; answers go out after it is given back. An answer *is* what it
//! grants (a [`Reservation`], a [`CloseGuard`]): if whoever waited is gone, the answer is dropped, which releases it
//! and lets the next one go. So nothing is lost when a waiting future is dropped, at whatever moment.
//!
//! How long a request waits:
//!
//! | when | at most | then |
//! |---|---|---|
//! | vouchers in flight or queued lead up to it | `wait_max` | busy while one is in flight, else a mismatch |
//! | none does | `gap_wait_max` | the same |
//! | its predecessor is released, or charged so that it cannot follow | no longer | a mismatch |

use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::answers::Answers;
use super::book::{Book, Closing, Held, Slot};
use super::changes::Pen;
use super::channel::{Bid, BidOf, Channel, ChannelTerms, Denied, Family, Moment};
use super::passes::Passes;
use super::purse::Purse;
use super::queue::Waiter;
use super::store::{Store, StoreError, Write};
use super::{CloseGuard, Entry, Limits, Refused, Reservation};
use crate::amount::Amount;
use crate::clock::Clock;

/// What the ledger's parts share.
pub(super) struct Core<F: Family> {
    pub(super) book: Book<F>,
    pub(super) store: Arc<dyn Store<F>>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) answers: Answers,
    pub(super) passes: Arc<Passes>,
    limits: Limits,
    stopped: OnceLock<String>,
    tickets: AtomicU64,
    /// Before which day nothing is stored of what payers spent.
    spent_forgotten: AtomicI32,
}

/// Something to hand out once no lock is held.
pub(super) enum Answer<F: Family> {
    Turn(oneshot::Sender<Result<Reservation<F>, Refused<F>>>, Result<Reservation<F>, Refused<F>>),
    Close(oneshot::Sender<CloseGuard<F>>, CloseGuard<F>),
    Pen(oneshot::Sender<Pen<F>>, Pen<F>),
    Stop(Arc<Core<F>>, &'static str),
}

/// Hands answers out. What nobody takes is dropped here, which gives it back.
pub(super) fn hand_out<F: Family>(answers: Vec<Answer<F>>) {
    for answer in answers {
        match answer {
            Answer::Turn(to, answer) => drop(to.send(answer)),
            Answer::Close(to, guard) => drop(to.send(guard)),
            Answer::Pen(to, pen) => drop(to.send(pen)),
            Answer::Stop(core, why) => core.stop(why),
        }
    }
}

/// How a request came in.
pub(super) enum Entered<F: Family> {
    /// Its price is reserved.
    Served(Reservation<F>),
    /// It waits.
    Waits(Waiting<F>),
}

/// Why a price is not reserved now.
enum NotNow {
    Denied(Denied),
    Exposure,
}

impl<F: Family> Core<F> {
    pub(super) fn new(store: Arc<dyn Store<F>>, clock: Arc<dyn Clock>, limits: Limits, purse: Arc<Purse>) -> Self {
        Self {
            book: Book::new(limits.clone(), purse),
            store,
            clock,
            answers: Answers::new(limits.answers),
            passes: Passes::new(limits.passes_max),
            limits,
            stopped: OnceLock::new(),
            tickets: AtomicU64::new(1),
            spent_forgotten: AtomicI32::new(i32::MIN),
        }
    }

    /// Whether the ledger runs.
    pub(super) fn running(&self) -> Result<(), String> {
        self.stopped.get().map_or(Ok(()), |why| Err(why.clone()))
    }

    /// The same, for what would write.
    pub(super) fn writable(&self) -> Result<(), StoreError> {
        self.running().map_err(|why| StoreError(format!("the ledger has stopped: {why}")))
    }

    /// Stops for good and answers everyone who waits. Charging nothing is the safe thing to do until someone has
    /// looked.
    pub(super) fn stop(&self, why: &str) {
        if self.stopped.set(why.to_owned()).is_err() {
            return;
        }
        tracing::error!(why, "the ledger has stopped: nothing more is charged; find the cause, then restart");
        let mut waiters = Vec::new();
        let mut closers = Vec::new();
        for part in 0..self.book.parts() {
            self.book.for_each_busy(part, |_, work| {
                waiters.extend(work.queue.take_all());
                if let Some(Closing::Awaited { .. }) = &work.closing {
                    closers.extend(work.closing.take());
                }
            });
        }
        for waiter in waiters {
            drop(waiter.answer.send(Err(Refused::Stopped(why.to_owned()))));
        }
    }

    fn moment(&self) -> Moment {
        Moment { now: self.clock.now(), margin: self.limits.withdraw_margin }
    }

    pub(super) fn ticket(&self) -> u64 {
        self.tickets.fetch_add(1, Ordering::Relaxed)
    }

    /// Reserves a request's price or lets it wait.
    pub(super) fn enter(self: &Arc<Self>, entry: &Entry<F>) -> Result<Entered<F>, Refused<F>> {
        self.running().map_err(Refused::Stopped)?;
        let bid = Bid { voucher: entry.voucher.clone(), amount: entry.amount, deposit_after: entry.deposit_after };
        if let Some(max) = self.limits.channel_charged_max.filter(|max| bid.voucher.cumulative > *max) {
            return Err(Refused::ExceedsDeposit { deposit: max });
        }
        let id = entry.terms.id();
        let mut answers = Vec::new();
        let arrive = |slot: &mut Slot<F>| self.arrive(slot, entry.terms.seller(), bid, &mut answers);
        let entered = if entry.deposit_after.is_some() {
            let mut terms = entry.terms.clone();
            let seller = self.book.seller(terms.seller());
            terms.set_seller(seller);
            let now = self.clock.now();
            Some(self.book.with_or_enter(&id, || Slot::new(terms, &Channel::proposed(now)), arrive))
        } else {
            self.book.with(&id, arrive)
        };
        hand_out(answers);
        entered.unwrap_or(Err(Refused::Unknown))
    }

    fn arrive(
        self: &Arc<Self>,
        slot: &mut Slot<F>,
        seller: &Arc<F::Seller>,
        bid: BidOf<F>,
        answers: &mut Vec<Answer<F>>,
    ) -> Result<Entered<F>, Refused<F>> {
        if !Arc::ptr_eq(slot.terms.seller(), seller) && !F::Terms::same_deal(slot.terms.seller(), seller) {
            return Err(Refused::Unknown);
        }
        self.end_lapsed(slot, answers);
        match self.grant(slot, bid.clone()) {
            Ok(reservation) => {
                self.mark(slot);
                Ok(Entered::Served(reservation))
            }
            Err(NotNow::Denied(Denied::Occupied | Denied::Ahead { .. })) => self.line_up(slot, bid).map(Entered::Waits),
            Err(why) => Err(self.refused(slot, &bid, why, answers)),
        }
    }

    fn line_up(self: &Arc<Self>, slot: &mut Slot<F>, bid: BidOf<F>) -> Result<Waiting<F>, Refused<F>> {
        let channel = slot.channel();
        let id = slot.terms.id();
        let work = slot.work();
        let brought = [channel.reserved.as_ref().and_then(|held| held.deposit_after), work.queue.deposit_after()];
        let deposit = brought.into_iter().flatten().fold(channel.deposit_for(&bid, self.moment()), Amount::max);
        if bid.voucher.cumulative > deposit {
            return Err(Refused::ExceedsDeposit { deposit });
        }
        if work.queue.len() >= self.limits.waiters_per_channel_max {
            return Err(Refused::Busy);
        }
        let (answer, receiver) = oneshot::channel();
        let ticket = self.ticket();
        // Behind was refused before, so there is a base.
        let base = bid.base().unwrap_or(channel.charged);
        work.queue.join(Waiter::new(ticket, bid, base, Instant::now(), answer));
        self.mark(slot);
        let deadline = self.deadline(slot, ticket);
        Ok(Waiting { core: Arc::clone(self), id, ticket, deadline, receiver, over: false })
    }

    /// Reserves, and makes the reservation that says so.
    fn grant(self: &Arc<Self>, slot: &mut Slot<F>, bid: BidOf<F>) -> Result<Reservation<F>, NotNow> {
        let channel = slot.channel();
        let (amount, exposure) = (bid.amount, channel.exposure());
        channel.reserve(bid.clone(), self.moment()).map_err(NotNow::Denied)?;
        if !self.book.room(amount, exposure) {
            return Err(NotNow::Exposure);
        }
        let ticket = self.ticket();
        let now = Instant::now();
        let expires = now.checked_add(self.limits.reservation_max).unwrap_or(now);
        slot.work().held = Some(Held { ticket, bid, expires, committing: false });
        Ok(Reservation {
            core: Arc::clone(self),
            id: slot.terms.id(),
            ticket,
            amount,
            charge: None,
            held: None,
            route: None,
            sold: None,
            over: false,
        })
    }

    fn refused(
        self: &Arc<Self>,
        slot: &Slot<F>,
        bid: &BidOf<F>,
        why: NotNow,
        answers: &mut Vec<Answer<F>>,
    ) -> Refused<F> {
        match why {
            NotNow::Exposure => Refused::Exposure,
            NotNow::Denied(Denied::Unknown) => Refused::Unknown,
            NotNow::Denied(Denied::Closing) => Refused::Closing,
            NotNow::Denied(Denied::ExceedsDeposit { deposit }) => Refused::ExceedsDeposit { deposit },
            NotNow::Denied(
                Denied::Behind { .. }
                | Denied::Ahead { .. }
                | Denied::Occupied
                | Denied::NotReserved
                | Denied::NotTheCharge
                | Denied::Implausible,
            ) => mismatch(slot, bid),
            NotNow::Denied(Denied::Broken(what)) => {
                answers.push(Answer::Stop(Arc::clone(self), what));
                Refused::Stopped(what.to_owned())
            }
        }
    }

    /// Lets those go whose turn has come, and refuses those who can no longer have one. `settled` says that a request
    /// in flight has ended, so that whoever was led only by it has lost its predecessor.
    pub(super) fn advance(self: &Arc<Self>, slot: &mut Slot<F>, mut settled: bool, answers: &mut Vec<Answer<F>>) {
        loop {
            let channel = slot.channel();
            let Some(work) = slot.going_on() else { return };
            let mut refused = work.queue.take_behind(channel.charged);
            let mut turn = None;
            if channel.closed || channel.leaving {
                refused.extend(work.queue.take_all());
            } else {
                if channel.reserved.is_none() {
                    turn = work.queue.next(channel.charged);
                }
                let leads = channel.reserved.as_ref().or(turn.as_ref().map(|w| &w.bid));
                work.queue.mark(channel.charged, leads.map(|bid| bid.voucher.cumulative));
                if settled {
                    refused.extend(work.queue.take_stranded());
                }
            }
            for waiter in refused {
                let why = if channel.closed || channel.leaving {
                    Refused::Closing
                } else if channel.known {
                    mismatch(slot, &waiter.bid)
                } else {
                    Refused::Unknown
                };
                answers.push(Answer::Turn(waiter.answer, Err(why)));
            }
            let Some(waiter) = turn else { break };
            let granted =
                self.grant(slot, waiter.bid.clone()).map_err(|why| self.refused(slot, &waiter.bid, why, answers));
            // A request that is refused when its turn comes ends there, and so leads nobody.
            settled |= granted.is_err();
            answers.push(Answer::Turn(waiter.answer, granted));
        }
        self.let_closer_in(slot, answers);
    }

    fn let_closer_in(self: &Arc<Self>, slot: &mut Slot<F>, answers: &mut Vec<Answer<F>>) {
        let id = slot.terms.id();
        let Some(work) = slot.going_on() else { return };
        if work.held.is_some() {
            return;
        }
        match work.closing.take() {
            Some(Closing::Awaited { ticket, answer }) => {
                work.closing = Some(Closing::Held { ticket });
                let guard =
                    CloseGuard { core: Arc::clone(self), id, ticket, last: Box::new(slot.record()), over: false };
                answers.push(Answer::Close(answer, guard));
            }
            other => work.closing = other,
        }
    }

    fn mark(&self, slot: &mut Slot<F>) {
        let channel = slot.channel();
        if let Some(work) = slot.going_on()
            && !work.queue.is_empty()
        {
            work.queue.mark(channel.charged, channel.reserved.map(|bid| bid.voucher.cumulative));
        }
    }

    fn deadline(&self, slot: &mut Slot<F>, ticket: u64) -> Option<Instant> {
        let waiter = slot.going_on()?.queue.get(ticket)?;
        Some(waiter.deadline(self.limits.wait_max, self.limits.gap_wait_max))
    }

    /// Ends the request in flight that `ticket` names, uncharged.
    pub(super) fn release(self: &Arc<Self>, id: &F::Id, ticket: u64) {
        let mut answers = Vec::new();
        self.book.with(id, |slot| {
            let held = slot.going_on().and_then(|work| work.held.take_if(|held| held.ticket == ticket));
            if held.is_some() {
                self.advance(slot, true, &mut answers);
            }
        });
        hand_out(answers);
    }

    fn end_lapsed(self: &Arc<Self>, slot: &mut Slot<F>, answers: &mut Vec<Answer<F>>) {
        let Some(work) = slot.going_on() else { return };
        let now = Instant::now();
        if work.held.take_if(|held| !held.committing && held.expires <= now).is_some() {
            tracing::warn!(channel = %slot.terms.id(), "a request in flight was neither committed nor released in time");
            self.advance(slot, true, answers);
        }
    }

    /// Removes a request that no longer waits; whoever it led keeps waiting until the request in flight ends.
    fn leave(&self, id: &F::Id, ticket: u64) {
        self.book.with(id, |slot| {
            if slot.going_on().and_then(|work| work.queue.leave(ticket)).is_some() {
                self.mark(slot);
            }
        });
    }

    /// A waiting request's time is up: how much longer it may wait after all, or what it is answered.
    fn overdue(&self, id: &F::Id, ticket: u64) -> Overdue<F> {
        let overdue = self.book.with(id, |slot| {
            let Some(deadline) = self.deadline(slot, ticket) else { return Overdue::Answered };
            if deadline > Instant::now() {
                return Overdue::Later(deadline);
            }
            let Some(work) = slot.going_on() else { return Overdue::Answered };
            let Some(waiter) = work.queue.leave(ticket) else { return Overdue::Answered };
            let in_flight = work.held.is_some();
            self.mark(slot);
            Overdue::Refused(if in_flight { Refused::Busy } else { mismatch(slot, &waiter.bid) })
        });
        match (overdue.unwrap_or(Overdue::Answered), self.running()) {
            (Overdue::Refused(_), Err(why)) => Overdue::Refused(Refused::Stopped(why)),
            (overdue, _) => overdue,
        }
    }

    /// Releases requests in flight that nobody committed or released in time, and forgets what is over, for as long as the
    /// ledger lives.
    pub(super) async fn sweep(core: Weak<Self>) {
        loop {
            let Some(every) = core.upgrade().map(|core| core.limits.reservation_max / 4) else { return };
            tokio::time::sleep(every.max(Duration::from_millis(100))).await;
            if let Some(core) = core.upgrade() {
                core.forget_spent().await;
                core.forget_passes().await;
            }
            // What is not in flight cannot have lapsed.
            if core.upgrade().is_some_and(|core| core.book.counts().1 == 0) {
                continue;
            }
            for part in 0.. {
                let Some(core) = core.upgrade().filter(|core| part < core.book.parts()) else { break };
                core.sweep_part(part);
                drop(core);
                if part % 64 == 63 {
                    tokio::task::yield_now().await;
                }
            }
        }
    }

    /// Forgets what payers spent on days that are over.
    async fn forget_spent(&self) {
        let Some(before) = self.book.payers().kept_from() else { return };
        let done = self.spent_forgotten.swap(before.0, Ordering::Relaxed) >= before.0;
        if done || self.writable().is_err() {
            return;
        }
        if let Err(error) = self.store.write(vec![Write::ForgetSpent(before)]).await {
            self.stop(&error.0);
        }
    }

    fn sweep_part(self: &Arc<Self>, part: usize) {
        let now = Instant::now();
        let mut lapsed = Vec::new();
        self.book.for_each_busy(part, |terms, work| {
            if work.held.as_ref().is_some_and(|held| !held.committing && held.expires <= now) {
                lapsed.push(terms.id());
            }
        });
        for id in lapsed {
            let mut answers = Vec::new();
            self.book.with(&id, |slot| self.end_lapsed(slot, &mut answers));
            hand_out(answers);
        }
    }

    /// Takes a channel out of service once no request is in flight.
    pub(super) async fn begin_close(self: &Arc<Self>, id: &F::Id) -> Result<CloseGuard<F>, Refused<F>> {
        self.running().map_err(Refused::Stopped)?;
        let (answer, receiver) = oneshot::channel();
        let ticket = self.ticket();
        let mut answers = Vec::new();
        let begun = self.book.with(id, |slot| {
            self.end_lapsed(slot, &mut answers);
            let channel = slot.channel();
            channel.begin_close().map_err(|why| match why {
                Denied::Unknown => Refused::Unknown,
                _ => Refused::Closing,
            })?;
            slot.work().closing = Some(Closing::Awaited { ticket, answer });
            self.advance(slot, false, &mut answers);
            Ok(())
        });
        let mut waiting = AwaitedClose { core: self, id: *id, ticket, over: false };
        hand_out(answers);
        begun.unwrap_or(Err(Refused::Unknown))?;
        let now = Instant::now();
        let deadline = now.checked_add(self.limits.wait_max).unwrap_or(now);
        match timeout_at(deadline, receiver).await {
            Ok(Ok(guard)) => {
                waiting.over = true;
                Ok(guard)
            }
            Ok(Err(_)) => Err(self.running().map_or_else(Refused::Stopped, |()| Refused::Busy)),
            Err(_) => Err(Refused::Busy),
        }
    }

    /// Gives a close of ours up.
    pub(super) fn abandon_close(self: &Arc<Self>, id: &F::Id, ticket: u64) {
        let given_up = self.book.with(id, |slot| {
            slot.going_on().and_then(|work| {
                work.closing.take_if(|closing| match closing {
                    Closing::Awaited { ticket: t, .. } | Closing::Held { ticket: t } => *t == ticket,
                })
            })
        });
        drop(given_up);
    }
}

/// A request that waits for its turn. Dropped, it leaves the queue.
pub(super) struct Waiting<F: Family> {
    core: Arc<Core<F>>,
    id: F::Id,
    ticket: u64,
    deadline: Option<Instant>,
    receiver: oneshot::Receiver<Result<Reservation<F>, Refused<F>>>,
    over: bool,
}

enum Overdue<F: Family> {
    Later(Instant),
    Refused(Refused<F>),
    /// The answer is on its way.
    Answered,
}

impl<F: Family> Waiting<F> {
    /// Waits for the answer.
    pub(super) async fn answer(mut self) -> Result<Reservation<F>, Refused<F>> {
        loop {
            let answer = match self.deadline {
                Some(deadline) => timeout_at(deadline, &mut self.receiver).await,
                None => Ok((&mut self.receiver).await),
            };
            if let Ok(answer) = answer {
                self.over = true;
                return answer.unwrap_or(Err(Refused::Busy));
            }
            match self.core.overdue(&self.id, self.ticket) {
                Overdue::Later(deadline) => self.deadline = Some(deadline),
                Overdue::Answered => self.deadline = None,
                Overdue::Refused(why) => {
                    self.over = true;
                    return Err(why);
                }
            }
        }
    }
}

impl<F: Family> Drop for Waiting<F> {
    fn drop(&mut self) {
        if !self.over {
            self.core.leave(&self.id, self.ticket);
        }
    }
}

/// A close that waits for the request in flight. Dropped, it is given up.
struct AwaitedClose<'a, F: Family> {
    core: &'a Arc<Core<F>>,
    id: F::Id,
    ticket: u64,
    over: bool,
}

impl<F: Family> Drop for AwaitedClose<'_, F> {
    fn drop(&mut self) {
        if !self.over {
            self.core.abandon_close(&self.id, self.ticket);
        }
    }
}

fn mismatch<F: Family>(slot: &Slot<F>, bid: &BidOf<F>) -> Refused<F> {
    let channel = slot.record();
    let expected = channel.charged.saturating_add(bid.amount);
    Refused::CumulativeMismatch { expected, got: bid.voucher.cumulative, channel: Box::new(channel) }
}
