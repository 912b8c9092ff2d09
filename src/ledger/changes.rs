//! Durable changes: planned under the lock, written without it, applied when they are durable.
//!
//! Memory shows a change when the store holds it, not before, so what a client is told survives a crash (L5). Three
//! things make that hold:
//!
//! - **One pen for each channel.** A write replaces the channel's whole record, so two at once could undo one another.
//!   Whoever changes a channel durably holds its [`Pen`] from planning to applying; others wait.
//! - **A change is carried through.** Once its write is given to the store it may become durable whatever we do, so a
//!   caller that goes away leaves the rest to a task of its own ([`Carried`]).
//! - **What cannot be carried through stops the ledger**: a store that fails, or a runtime that shuts down between
//!   write and outcome. Restart reads what became of it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::Sold;
use super::book::{Closing, Slot};
use super::channel::{ChainState, Channel, ChannelOf, ChannelTerms, Denied, Family};
use super::payers::Allowance;
use super::store::{About, AnswerRecord, ChannelRecord, Charged, RecordOf, StoreError, Write};
use super::turns::{Answer, Core, hand_out};
use crate::amount::Amount;

/// A durable change of a channel.
#[derive(Clone, Copy, Debug)]
pub(super) enum Plan<F: Family> {
    /// Charges the request in flight.
    Commit { ticket: u64, on_chain: Option<F::OnChain>, charge: Option<Amount> },
    /// Takes up what the chain says.
    Observe(F::OnChain),
    /// Takes no more payments before a close of ours is sent, or takes them again where it can no longer land.
    Shut { ticket: u64, shut: bool },
    /// Closes it for good.
    Finish { ticket: u64, on_chain: F::OnChain },
    /// Forgets it.
    Forget,
}

/// Makes, from the channel as it will be, an answer that becomes durable together with it.
pub(super) type Keep<F> = Box<dyn FnOnce(&RecordOf<F>) -> AnswerRecord + Send>;

/// What becomes durable together with a change.
pub(super) struct Also<F: Family> {
    /// What a charge is for.
    pub(super) charged: Option<Charged>,
    /// An answer.
    pub(super) keep: Option<Keep<F>>,
    /// What the payer spends by it.
    pub(super) held: Option<Allowance>,
    /// A pass that is sold by it.
    pub(super) sold: Option<Box<Sold>>,
}

/// The rest of a charge, once it is on its way to the store.
struct With {
    kept: Option<AnswerRecord>,
    held: Option<Allowance>,
    sold: Option<Box<Sold>>,
}

/// What a plan came to.
#[allow(clippy::large_enum_variant, reason = "lives on the stack, for one call")]
enum Planned<F: Family> {
    /// There is nothing to write.
    Nothing,
    /// The channel's next state, what to write, and its state before.
    Change(ChannelOf<F>, Write<F>, ChannelOf<F>),
    /// Another change is under way.
    Wait(oneshot::Receiver<Pen<F>>),
}

/// A change on its way to the store.
struct Writing<F: Family> {
    write: Write<F>,
    before: ChannelOf<F>,
    charged: Option<Charged>,
}

impl<F: Family> Writing<F> {
    /// All that is written together.
    fn writes(self, kept: Option<AnswerRecord>, tells: bool) -> Vec<Write<F>> {
        let Self { write, before, charged } = self;
        let about = (tells && matches!(write, Write::Channel(_))).then(|| {
            let (charged_before, closed) = (before.charged, before.closed);
            let known = |amount: Amount| if before.known { amount } else { Amount::ZERO };
            let (deposit, claimed) = (known(before.on_chain.deposit()), known(before.on_chain.claimed()));
            Write::About(Box::new(About { charge: charged, charged: charged_before, deposit, claimed, closed }))
        });
        let answer = kept.map(|kept| Write::Answer(Box::new(kept)));
        [Some(write), about, answer].into_iter().flatten().collect()
    }
}

impl<F: Family> Core<F> {
    /// Changes a channel durably; `None` where there was nothing to change. Once the write is given to the store the
    /// change is made even if the caller goes away; before that, nothing has happened.
    pub(super) async fn change(
        self: &Arc<Self>,
        id: F::Id,
        plan: Plan<F>,
        begun: impl FnOnce(),
    ) -> Result<Option<RecordOf<F>>, StoreError> {
        self.change_also(id, plan, Also { charged: None, keep: None, held: None, sold: None }, begun).await
    }

    /// The same, together with what else is to be durable.
    pub(super) async fn change_also(
        self: &Arc<Self>,
        id: F::Id,
        plan: Plan<F>,
        also: Also<F>,
        begun: impl FnOnce(),
    ) -> Result<Option<RecordOf<F>>, StoreError> {
        let mut pen = None;
        let (pen, next, write) = loop {
            self.writable()?;
            let has_pen = pen.is_some();
            let mut broken = None;
            let planned = self.book.with(&id, |slot| self.plan(slot, &plan, has_pen, &mut broken));
            if let Some(what) = broken {
                self.stop(what);
            }
            match planned.unwrap_or_else(|| absent(&plan))? {
                Planned::Nothing => return Ok(None),
                // A change that ends without handing its pen on leaves the channel unwritten: then it is our turn.
                Planned::Wait(turn) => pen = turn.await.ok(),
                Planned::Change(next, write, before) => {
                    let pen = pen.unwrap_or_else(|| Pen { core: Arc::clone(self), id, writing: false });
                    break (pen, next, Writing { write, before, charged: also.charged });
                }
            }
        };
        // Before the point of no return, so that a fault in it changes nothing.
        let kept = match (&write.write, also.keep) {
            (Write::Channel(record), Some(keep)) => Some(keep(record)),
            _ => None,
        };
        begun();
        let with = With { kept, held: also.held, sold: also.sold };
        carry(self.carry_out(pen, plan, next, write, with)).await.map(Some)
    }

    /// Writes and applies.
    fn carry_out(
        self: &Arc<Self>,
        mut pen: Pen<F>,
        plan: Plan<F>,
        next: ChannelOf<F>,
        write: Writing<F>,
        with: With,
    ) -> impl Future<Output = Result<RecordOf<F>, StoreError>> + Send + use<F> {
        pen.writing = true;
        let core = Arc::clone(self);
        async move {
            let With { kept, held, sold } = with;
            let mark = kept.as_ref().map(AnswerRecord::mark);
            let mut writes = write.writes(kept, core.store.tells());
            writes.extend(sold.as_ref().map(|sold| Write::Pass(Box::new(sold.pass.clone()))));
            writes.extend(held.as_ref().and_then(Allowance::spend).map(|spend| Write::Spend(Box::new(spend))));
            let written = core.store.write(writes).await;
            if let Err(error) = &written {
                core.stop(&error.0);
            }
            let mut answers = Vec::new();
            let applied = core.book.with(&pen.id, |slot| match written {
                Ok(()) => {
                    if let Some(mark) = mark {
                        core.answers.put(mark);
                    }
                    // The room that was taken for it is given back once it is here.
                    if let Some(Sold { pass, room }) = sold.map(|sold| *sold) {
                        core.passes.put(pass);
                        drop(room);
                    }
                    Ok(core.apply(slot, &plan, &next, &mut answers))
                }
                Err(error) => {
                    core.undo(slot, &plan, &mut answers);
                    Err(error)
                }
            });
            // After the channel shows it, so that it is counted twice for a moment and never not at all.
            match held {
                Some(held) if matches!(applied, Some(Ok(_))) => held.counted(),
                Some(_) | None => {}
            }
            pen.writing = false;
            drop(pen);
            hand_out(answers);
            // A channel cannot vanish while its pen is out.
            applied.unwrap_or_else(|| {
                Err(StoreError("the channel is gone; this is a fault of ours, report it".to_owned()))
            })
        }
    }

    /// Says what a plan comes to now, and takes the pen for it.
    fn plan(
        &self,
        slot: &mut Slot<F>,
        plan: &Plan<F>,
        has_pen: bool,
        broken: &mut Option<&'static str>,
    ) -> Result<Planned<F>, StoreError> {
        let work = slot.work();
        if work.pen_out && !has_pen {
            let (answer, turn) = oneshot::channel();
            work.pens.push_back(answer);
            return Ok(Planned::Wait(turn));
        }
        let channel = slot.channel();
        let next = match self.next(slot, &channel, plan) {
            Ok(Some(next)) => next,
            Ok(None) => return Ok(Planned::Nothing),
            Err(why) => {
                if let Denied::Broken(what) = why {
                    *broken = Some(what);
                }
                return ignored(slot, plan, why);
            }
        };
        let work = slot.work();
        work.pen_out = true;
        if let (Plan::Commit { .. }, Some(held)) = (plan, &mut work.held) {
            held.committing = true;
        }
        if next.known {
            let record = ChannelRecord::of(slot.terms.clone(), &next);
            return Ok(Planned::Change(next, Write::Channel(Box::new(record)), channel));
        }
        // No request may come in while it is being forgotten.
        slot.put(&Channel { closed: true, ..channel.clone() });
        Ok(Planned::Change(next, Write::ForgetChannel(slot.terms.id()), channel))
    }

    /// The state after a plan; `None` where nothing durable changes.
    fn next(&self, slot: &mut Slot<F>, channel: &ChannelOf<F>, plan: &Plan<F>) -> Result<Option<ChannelOf<F>>, Denied> {
        match *plan {
            Plan::Commit { ticket, on_chain, charge } => {
                let ours =
                    slot.going_on().and_then(|work| work.held.as_ref()).is_some_and(|held| held.ticket == ticket);
                if !ours {
                    return Err(Denied::NotReserved);
                }
                channel.clone().commit(on_chain, charge, self.clock.now()).map(Some)
            }
            Plan::Observe(_) if !channel.known => Ok(None),
            Plan::Observe(on_chain) => {
                let next = channel.clone().observe(on_chain)?;
                let same = Channel { on_chain: next.on_chain, ..channel.clone() } == next;
                if same && channel.on_chain.same_as(&next.on_chain) {
                    slot.put(&next);
                    return Ok(None);
                }
                Ok(Some(next))
            }
            Plan::Shut { ticket, shut } => {
                close_of(slot, ticket)?;
                let next = if shut { channel.clone().shut() } else { channel.clone().reopen() };
                Ok(Some(next).filter(|next| next != channel))
            }
            Plan::Finish { ticket, on_chain } => {
                close_of(slot, ticket)?;
                channel.clone().finish_close(on_chain).map(Some)
            }
            Plan::Forget => Ok(forgotten(slot, channel)),
        }
    }

    /// Applies a change that is durable.
    fn apply(
        self: &Arc<Self>,
        slot: &mut Slot<F>,
        plan: &Plan<F>,
        next: &ChannelOf<F>,
        answers: &mut Vec<Answer<F>>,
    ) -> RecordOf<F> {
        report(slot, next);
        slot.put(next);
        self.ended(slot, plan);
        let record = slot.record();
        self.advance(slot, matches!(plan, Plan::Commit { .. }), answers);
        record
    }

    /// Ends a change that did not become durable.
    fn undo(self: &Arc<Self>, slot: &mut Slot<F>, plan: &Plan<F>, answers: &mut Vec<Answer<F>>) {
        self.ended(slot, plan);
        self.advance(slot, matches!(plan, Plan::Commit { .. }), answers);
    }

    fn ended(&self, slot: &mut Slot<F>, plan: &Plan<F>) {
        let Some(work) = slot.going_on() else { return };
        match plan {
            Plan::Commit { .. } => work.held = None,
            Plan::Finish { .. } => work.closing = None,
            Plan::Observe(_) | Plan::Shut { .. } | Plan::Forget => {}
        }
    }

    /// Takes up a channel that the chain has, in memory only: a restart can read it from the chain again.
    pub(super) fn adopt(self: &Arc<Self>, terms: F::Terms, on_chain: F::OnChain) {
        let id = terms.id();
        let fresh = match Channel::adopted(on_chain) {
            Ok(fresh) => fresh,
            Err(why) => return tracing::warn!(channel = %id, %why, "a channel was not taken up from the chain"),
        };
        let seller = self.book.seller(terms.seller());
        let mut answers = Vec::new();
        let enter = || Slot::new(terms, &Channel::proposed(on_chain.read_at()));
        self.book.with_or_enter(&id, enter, |slot| {
            let channel = slot.channel();
            if slot.going_on().is_some_and(|work| work.pen_out) {
                return;
            }
            let next = if channel.known {
                channel.clone().observe(on_chain).unwrap_or(channel)
            } else {
                Channel { reserved: channel.reserved, leaving: channel.leaving, ..fresh }
            };
            if next.reserved.is_none() {
                slot.terms.set_seller(seller);
            }
            report(slot, &next);
            slot.put(&next);
            self.advance(slot, false, &mut answers);
        });
        hand_out(answers);
    }
}

/// Whether a close of ours is the one that `ticket` names.
fn close_of<F: Family>(slot: &mut Slot<F>, ticket: u64) -> Result<(), Denied> {
    match slot.going_on().and_then(|work| work.closing.as_ref()) {
        Some(Closing::Held { ticket: held }) if *held == ticket => Ok(()),
        Some(_) | None => Err(Denied::Closing),
    }
}

/// What a plan comes to for a channel that is not here.
fn absent<F: Family>(plan: &Plan<F>) -> Result<Planned<F>, StoreError> {
    match plan {
        Plan::Commit { .. } | Plan::Shut { .. } | Plan::Finish { .. } => Err(lapsed()),
        Plan::Observe(_) | Plan::Forget => Ok(Planned::Nothing),
    }
}

/// What a plan comes to that the channel's state refuses.
fn ignored<F: Family>(slot: &Slot<F>, plan: &Plan<F>, why: Denied) -> Result<Planned<F>, StoreError> {
    match (plan, why) {
        (Plan::Observe(_), Denied::Implausible) => {
            tracing::warn!(channel = %slot.terms.id(), %why, "a reading of the chain was ignored; check the endpoints");
            Ok(Planned::Nothing)
        }
        (Plan::Commit { .. }, Denied::NotReserved) => Err(lapsed()),
        (Plan::Commit { .. }, why) => Err(StoreError(format!("nothing was charged, because {why}"))),
        (Plan::Observe(_) | Plan::Shut { .. } | Plan::Finish { .. } | Plan::Forget, why) => {
            Err(StoreError(why.to_string()))
        }
    }
}

fn lapsed() -> StoreError {
    StoreError("the reservation has lapsed and nothing was charged; do not deliver the answer".to_owned())
}

/// The state of a channel that the chain no longer has: unknown, where it owes nothing; else closed for good.
fn forgotten<F: Family>(slot: &mut Slot<F>, channel: &ChannelOf<F>) -> Option<ChannelOf<F>> {
    let busy =
        slot.going_on().is_some_and(|work| work.held.is_some() || work.closing.is_some() || !work.queue.is_empty());
    if !channel.known || busy {
        return None;
    }
    if channel.charged <= channel.on_chain.claimed() {
        return Some(Channel { known: false, closed: true, ..channel.clone() });
    }
    let next = Channel { on_chain: channel.on_chain.gone(), closed: true, ..channel.clone() };
    (next != *channel).then_some(next)
}

/// Tells the operator what should not happen: money lost, or a record that was behind the chain.
fn report<F: Family>(slot: &Slot<F>, next: &ChannelOf<F>) {
    let before = slot.channel();
    let channel = &slot.terms.id();
    if next.lost() > before.lost() {
        let (charged, claimed, lost) = (next.charged, next.on_chain.claimed(), next.lost());
        tracing::error!(%channel, %charged, %claimed, %lost, "a channel ended before all that was charged was claimed");
    }
    let raised =
        next.charged == next.on_chain.claimed() && next.charged > before.charged && next.voucher == before.voucher;
    if raised && before.charged > Amount::ZERO {
        let (charged, claimed) = (before.charged, next.on_chain.claimed());
        tracing::warn!(%channel, %charged, %claimed, "the chain has claimed more than was charged; taken up as charged");
    }
}

/// The right to write a channel. Dropped, it goes to whoever waits next.
pub(super) struct Pen<F: Family> {
    core: Arc<Core<F>>,
    id: F::Id,
    writing: bool,
}

impl<F: Family> Drop for Pen<F> {
    fn drop(&mut self) {
        if self.writing {
            self.core.stop("a change was given up between its write and the outcome; restart reads what became of it");
        }
        let mut answers = Vec::new();
        self.core.book.with(&self.id, |slot| {
            let Some(work) = slot.going_on() else { return };
            match work.pens.pop_front() {
                Some(next) => {
                    let pen = Self { core: Arc::clone(&self.core), id: self.id, writing: false };
                    answers.push(Answer::Pen(next, pen));
                }
                None => work.pen_out = false,
            }
        });
        hand_out(answers);
    }
}

/// Runs `job` to its end, even if the future returned here is dropped once it was polled.
pub(super) fn carry<T: Send + 'static>(job: impl Future<Output = T> + Send + 'static) -> Carried<T> {
    Carried { job: Some(Box::pin(job)), home: Handle::try_current().ok() }
}

/// A change under way.
pub(super) struct Carried<T: Send + 'static> {
    job: Option<Pin<Box<dyn Future<Output = T> + Send>>>,
    home: Option<Handle>,
}

impl<T: Send + 'static> Future for Carried<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let Some(job) = &mut self.job else { return Poll::Pending };
        let outcome = job.as_mut().poll(cx);
        if outcome.is_ready() {
            self.job = None;
        }
        outcome
    }
}

impl<T: Send + 'static> Drop for Carried<T> {
    fn drop(&mut self) {
        if let (Some(job), Some(home)) = (self.job.take(), &self.home) {
            drop(home.spawn(job));
        }
    }
}
