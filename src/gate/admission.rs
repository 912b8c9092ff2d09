//! A request that may pass, and its end: charged for what the upstream answered, or given back.
//!
//! Owns what an answer costs and which flow ends how. Promises that nothing is charged for a status of 400 or more, and
//! that an admission that is dropped gives everything back.

use std::sync::Arc;

use http::{HeaderMap, StatusCode};
use tokio::sync::oneshot;

use super::charge::{Answered, Charge, Meter};
use super::pack::{PassHold, Sale};
use super::refusal::Denial;
use super::replay::{Claim, Draft};
use super::{Charged, Context, Finished, Gate, Paid, batch, evm, metered};
use crate::amount::Amount;
use crate::ledger::store::StoreError;
use crate::scheme::exact_evm::Version;

/// What an answer costs.
#[derive(Clone, Copy)]
enum Cost {
    Amount(Amount),
    Nothing,
    /// Nothing, and the answer must not be delivered.
    Withheld,
}

/// What an admission holds back until it is finished.
pub(super) enum Held {
    Batch(batch::Hold),
    Metered(Box<metered::Hold>),
    Evm(evm::Hold),
    EvmOnce(Box<evm::OnceHold>),
    Pass(PassHold),
}

/// A request that may pass. Dropped, it gives everything back.
#[must_use = "an admission that is not finished is released"]
pub struct Admission {
    pub(super) gate: Arc<Gate>,
    pub(super) context: Context,
    pub(super) paid: Paid,
    pub(super) held: Held,
    /// The request's id, where it has one.
    pub(super) claim: Option<Claim>,
}

impl Admission {
    /// Who paid what.
    #[must_use]
    pub fn paid(&self) -> &Paid {
        &self.paid
    }

    /// The protocol version that the client speaks, and is to be answered in.
    #[must_use]
    pub fn version(&self) -> Version {
        self.context.version
    }

    /// The longest body with which [`Self::finish_whole`] keeps the answer; `None` where it is not to be kept, so that
    /// nobody needs to wait for the body.
    #[must_use]
    pub fn keeps(&self) -> Option<usize> {
        self.claim.as_ref().map(Claim::body_bytes_max)
    }

    /// The route's meter, where the request is metered: for who reads the body, which it may need.
    #[must_use]
    pub fn meter(&self) -> Option<&Meter> {
        self.is_metered().then(|| self.context.prepared.meter()).flatten()
    }

    fn is_metered(&self) -> bool {
        match &self.held {
            Held::Batch(_) | Held::Pass(_) => false,
            Held::Metered(_) | Held::Evm(_) => true,
            Held::EvmOnce(hold) => hold.is_metered(),
        }
    }

    /// Charges for an answer with a status below 400, durably, and gives everything back for any other. To be called
    /// when the upstream's response header has arrived and before it leaves. `headers` may say a metered charge.
    pub async fn finish(self: Box<Self>, status: StatusCode, headers: &HeaderMap) -> Finished {
        self.finish_read(status, &Answered::head(headers)).await
    }

    /// The same for an answer of which more than the header is there, which may say a metered charge.
    pub async fn finish_read(self: Box<Self>, status: StatusCode, answered: &Answered<'_>) -> Finished {
        let cost = self.cost(status, answered);
        let receipt = self.receipt(cost);
        self.end(cost, receipt).await
    }

    /// The same for an answer that is there whole: it is kept, with its charge, so that the client can ask for it
    /// again. Goes on to the end where the client has gone meanwhile. What cannot be kept is charged as by
    /// [`Self::finish_read`].
    pub async fn finish_whole(self: Box<Self>, headers: &HeaderMap, draft: Draft) -> Finished {
        let cost = self.cost(draft.status, &Answered::whole(headers, &draft.body));
        let keeps = matches!(cost, Cost::Amount(_))
            && self.claim.is_some()
            && draft.bytes().is_some_and(|bytes| self.has_room(bytes));
        if !keeps {
            let receipt = self.receipt(cost);
            return self.end(cost, receipt).await;
        }
        let (tasks, version) = (self.gate.tasks.clone(), self.context.version);
        let (sender, ended) = oneshot::channel();
        // A task's future is moved about as it is, and this one is large.
        tasks.spawn(Box::pin(async move {
            // The client may be gone; then its answer waits for it.
            let _ = sender.send(self.end(cost, Some(draft)).await);
        }));
        let lost =
            || Finished::Refused(Box::new(Denial::ours("a request's charge ended without an answer").bare(version)));
        ended.await.unwrap_or_else(|_| lost())
    }

    /// What is kept of a purchase whose answer is not, so that its pass can be had again.
    fn receipt(&self, cost: Cost) -> Option<Draft> {
        let buys = matches!(cost, Cost::Amount(_)) && self.context.sale.is_some() && self.claim.is_some();
        let receipt = buys.then(Sale::receipt)?;
        receipt.bytes().is_some_and(|bytes| self.has_room(bytes)).then_some(receipt)
    }

    fn has_room(&self, bytes: u64) -> bool {
        match (&self.held, &self.gate.evm) {
            (Held::Evm(_) | Held::EvmOnce(_), Some(evm)) => evm.ledger.has_room_for_answer(bytes),
            _ => self.gate.ledger.has_room_for_answer(bytes),
        }
    }

    fn cost(&self, status: StatusCode, answered: &Answered<'_>) -> Cost {
        if status.as_u16() >= 400 {
            return Cost::Nothing;
        }
        if !self.is_metered() {
            return Cost::Amount(self.paid.amount);
        }
        match self.context.prepared.charge(&self.context.offer, answered) {
            Charge::Take(amount) => Cost::Amount(amount),
            Charge::Refuse => Cost::Withheld,
        }
    }

    async fn end(self: Box<Self>, cost: Cost, draft: Option<Draft>) -> Finished {
        // The claim is held until the answer can be found.
        let Self { gate, context, paid, held, claim } = *self;
        let draft = draft.map(|draft| match &context.sale {
            Some(sale) => sale.seal(draft),
            None => draft,
        });
        let keep = claim.as_ref().zip(draft).map(|(claim, draft)| Box::new((claim.id, draft)));
        let finished = match (held, cost) {
            (Held::Pass(hold), Cost::Amount(_)) => hold.commit(&gate, &context).await,
            (Held::Pass(hold), Cost::Nothing | Cost::Withheld) => {
                drop(hold);
                Ok(Finished::Released(None))
            }
            (Held::Batch(hold), Cost::Amount(_)) => {
                hold.commit(&gate, &context, &paid, keep).await.map(Finished::Charged)
            }
            (Held::Batch(hold), Cost::Nothing | Cost::Withheld) => {
                hold.release();
                Ok(Finished::Released(None))
            }
            (Held::Evm(hold), Cost::Amount(charge)) => {
                hold.commit(&gate, &context, &paid, charge, keep).await.map(Finished::Charged)
            }
            (Held::Evm(hold), Cost::Nothing) => {
                hold.release();
                Ok(Finished::Released(None))
            }
            (Held::Evm(hold), Cost::Withheld) => {
                hold.release();
                Ok(Finished::Unmetered(None))
            }
            (Held::EvmOnce(hold), Cost::Amount(charge)) => {
                // What asks a chain is large, and lives apart so that the rest is small.
                let charged = Box::pin(hold.charge(&gate, &context, &paid, charge)).await;
                let charged = charged.map(Charged::settled);
                if let (Ok(charged), Some(keep), Some(evm)) = (&charged, keep, &gate.evm) {
                    let (id, draft) = *keep;
                    let kept = Box::pin(evm.ledger.keep_answer(id, draft.answer(charged))).await;
                    not_kept(&paid, kept);
                }
                charged.map(Finished::Charged)
            }
            (Held::EvmOnce(_), Cost::Nothing) => Ok(Finished::Released(None)),
            (Held::EvmOnce(_), Cost::Withheld) => Ok(Finished::Unmetered(None)),
            (Held::Metered(hold), Cost::Amount(charge)) => {
                let charged = Box::pin(hold.charge(&context, &paid, charge)).await;
                let charged = charged.map(Charged::settled);
                if let (Ok(charged), Some(keep)) = (&charged, keep) {
                    let (id, draft) = *keep;
                    not_kept(&paid, Box::pin(gate.ledger.keep_answer(id, draft.answer(charged))).await);
                }
                charged.map(Finished::Charged)
            }
            (Held::Metered(hold), Cost::Nothing) => {
                Ok(Finished::Released(Box::pin(hold.give_back(&context, &paid)).await))
            }
            (Held::Metered(hold), Cost::Withheld) => {
                Ok(Finished::Unmetered(Box::pin(hold.give_back(&context, &paid)).await))
            }
        };
        if let (Ok(Finished::Charged(_)), Some(_), Some(telemetry)) =
            (&finished, &context.sale, &gate.options.telemetry)
        {
            telemetry.passes_sold.with_label_values(&[&**context.prepared.name()]).inc();
        }
        finished.unwrap_or_else(|denial| Finished::Refused(Box::new(context.refuse(&gate, denial))))
    }

    /// Gives everything back: the upstream did not answer. The same as dropping, said aloud.
    pub fn release(self) {}
}

/// An answer whose charge is on chain goes out whether it could be kept or not.
fn not_kept(paid: &Paid, kept: Result<(), StoreError>) {
    if let Err(error) = kept {
        tracing::error!(payer = %paid.payer, %error, "a charged answer could not be kept");
    }
}
