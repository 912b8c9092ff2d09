//! The flow of scheme `batch-settlement` on EVM networks: vouchers, and deposits that come with them.
//!
//! A voucher of a plain key is checked here while what is known of its channel is fresh; a contract's voucher, and any
//! on a channel of which too little is known, is put to the facilitator, whose answer tells the channel's state. A
//! deposit is verified before the upstream is called and settled after it has answered. What is charged is what the
//! upstream reports, up to the advertised amount. Source: `scheme_batch_settlement_evm.md`, "Request Processing".

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::pack::Sale;
use super::super::recent::{Entered, Shut};
use super::super::refusal::Denial;
use super::super::replay::Keep;
use super::super::{Charged, Context, Gate, Held, Paid, Passed};
use super::{EvmGate, EvmNetwork, LOOKS, asked, state};
use crate::amount::Amount;
use crate::facilitator::interface::{InterfaceError, Payment, Settled};
use crate::ledger::channel::{Evm, EvmOnChain};
use crate::ledger::store::RecordOf;
use crate::ledger::{Entry, Receipt, Reservation};
use crate::scheme::batch_settlement_evm::deposit::{self, CheckedDeposit};
use crate::scheme::batch_settlement_evm::payload::{EvmBatchPayload, EvmDeposit, EvmVoucher};
use crate::scheme::batch_settlement_evm::state::EvmChannelState;
use crate::scheme::batch_settlement_evm::{self as scheme, Checked, VerifiedVoucher};
use crate::scheme::evm::eip712::ChannelConfig;
use crate::scheme::evm::{EvmSeller, EvmTerms};
use crate::telemetry::Waiting;
use crate::x402::call_pack::PackSold;
use crate::x402::evm::B256;
use crate::x402::wire::PaymentPayload;
use crate::x402::{Account, ChannelId, Reason};

/// A reserved price, with the deposit that came along.
pub(in crate::gate) struct Hold {
    reservation: Reservation<Evm>,
    terms: EvmTerms,
    /// The voucher's total.
    cumulative: Amount,
    deposit: Option<Box<HeldDeposit>>,
}

/// A voucher whose own checks passed, and what was known of its channel then.
pub(super) struct Presented {
    pub(super) checked: Checked,
    pub(super) known: Option<RecordOf<Evm>>,
}

/// A deposit that passed and is settled once the upstream has answered.
struct HeldDeposit {
    payment: Payment,
    amount: Amount,
    /// The channel before it.
    before: EvmOnChain,
    _channel: Entered<B256>,
}

impl Gate {
    /// Checks a payload of the scheme and reserves its price, or handles its refund.
    pub(in crate::gate) async fn admit_evm_batch(
        self: &Arc<Self>,
        context: &Context,
        seller: &Arc<EvmSeller>,
        mut payment: PaymentPayload,
    ) -> Result<Passed, Denial> {
        let evm = self.evm()?;
        let network = evm.network(&context.offer)?;
        match scheme::parse(&payment.payload)? {
            EvmBatchPayload::Voucher { channel_config, voucher } => {
                let presented = self.check_evm(evm, seller, &channel_config, &voucher)?;
                let verified = self.verify_evm(evm, network, context, &payment, presented).await?;
                let reserved = self.reserve_evm(evm, context, verified, None).await?;
                Ok(reserved.pass(None))
            }
            EvmBatchPayload::Deposit { channel_config, voucher, deposit } => {
                let presented = self.check_evm(evm, seller, &channel_config, &voucher)?;
                let payment = asked(context, &payment)?;
                self.admit_evm_deposit(evm, network, context, payment, presented, &deposit).await
            }
            EvmBatchPayload::Refund { channel_config, voucher, amount } => {
                let presented = self.check_evm(evm, seller, &channel_config, &voucher)?;
                // It pays for no resource, so none is told of.
                payment.extensions.clear();
                self.refund_evm(evm, network, context, payment, presented, amount).await.map(Passed::Answered)
            }
        }
    }

    /// Checks a voucher of a plain key on a channel of which enough is known, and reserves its price; `None` where
    /// somebody else has to be asked.
    pub(in crate::gate) async fn admit_evm_voucher(
        &self,
        context: &Context,
        seller: &Arc<EvmSeller>,
        config: &ChannelConfig,
        voucher: &EvmVoucher,
    ) -> Result<Option<Passed>, Denial> {
        let evm = self.evm()?;
        let Presented { checked, known } = self.check_evm(evm, seller, config, voucher)?;
        match checked {
            Checked::Verified(verified) if self.is_enough(known.as_ref(), verified.cumulative()) => {
                let reserved = self.reserve_evm(evm, context, verified, None).await?;
                Ok(Some(reserved.pass(None)))
            }
            Checked::Verified(_) | Checked::Contract(_) => Ok(None),
        }
    }

    /// Whether what is known of a channel is enough to go by for a voucher.
    fn is_enough(&self, known: Option<&RecordOf<Evm>>, cumulative: Amount) -> bool {
        !outgrows(known, cumulative) && matches!(self.usable(known), Usable::Fresh)
    }

    fn check_evm(
        &self,
        evm: &EvmGate,
        seller: &Arc<EvmSeller>,
        config: &ChannelConfig,
        voucher: &EvmVoucher,
    ) -> Result<Presented, Denial> {
        let started = Instant::now();
        let known = evm.ledger.channel(&voucher.channel_id);
        let checked = scheme::verify(seller, config, voucher, known.as_ref().map(|record| &record.terms));
        if let Some(telemetry) = &self.options.telemetry {
            telemetry.verify_seconds.observe(started.elapsed().as_secs_f64());
        }
        Ok(Presented { checked: checked?, known })
    }

    /// A voucher on a channel whose state is fresh enough to go by. A facilitator is asked where it is not, and where
    /// only the chain can judge the signature.
    pub(super) async fn verify_evm(
        &self,
        evm: &EvmGate,
        network: &EvmNetwork,
        context: &Context,
        payment: &PaymentPayload,
        presented: Presented,
    ) -> Result<VerifiedVoucher, Denial> {
        let Presented { checked, known } = presented;
        match checked {
            Checked::Verified(verified) => {
                if self.is_enough(known.as_ref(), verified.cumulative()) {
                    return Ok(verified);
                }
                refuse_stale(known, verified.cumulative())?;
                self.look_evm(evm, network, asked(context, payment)?, verified.terms()).await?;
                Ok(verified)
            }
            Checked::Contract(_) => {
                refuse_stale(known, checked.cumulative())?;
                let on_chain = ask(self, network, &asked(context, payment)?, checked.terms()).await?;
                self.take_up_evm(evm, checked.terms(), on_chain).await?;
                Ok(checked.verified_on_chain())
            }
        }
    }

    /// Whether what is known of a channel is fresh enough to go by.
    fn usable(&self, known: Option<&RecordOf<Evm>>) -> Usable {
        let Some(record) = known else { return Usable::No };
        let age = self.clock.now().since(record.on_chain.read_at);
        let hard = self.options.staleness_max.min(Duration::from_secs(record.terms.seller.withdraw_delay / 4));
        if age <= self.options.freshness.min(hard) {
            Usable::Fresh
        } else if age <= hard {
            Usable::IfNeeded
        } else {
            Usable::No
        }
    }

    /// Asks for a channel's state, and takes it up. Where nobody can be asked, what is known serves for a while.
    async fn look_evm(
        &self,
        evm: &EvmGate,
        network: &EvmNetwork,
        payment: Payment,
        terms: &EvmTerms,
    ) -> Result<(), Denial> {
        let or_usable = |denial: Denial| match self.usable(evm.ledger.channel(&terms.id).as_ref()) {
            Usable::Fresh | Usable::IfNeeded => Ok(()),
            Usable::No => Err(denial),
        };
        // One question per channel.
        let Ok(_reading) = evm.reading.enter(terms.id, self.clock.now()) else {
            return or_usable(Denial::busy("the channel is being read; try again"));
        };
        match ask(self, network, &payment, terms).await {
            Ok(on_chain) => self.take_up_evm(evm, terms, on_chain).await,
            Err(denial) if denial.fault.is_payments() => Err(denial),
            Err(denial) => or_usable(denial),
        }
    }

    pub(super) async fn take_up_evm(
        &self,
        evm: &EvmGate,
        terms: &EvmTerms,
        on_chain: EvmOnChain,
    ) -> Result<(), Denial> {
        if evm.ledger.channel(&terms.id).is_some() {
            return evm.ledger.observe(&terms.id, on_chain).await.map_err(|error| Denial::stopped(&error));
        }
        if !on_chain.balance.is_zero() {
            evm.ledger.adopt(terms.clone(), on_chain);
        }
        Ok(())
    }

    async fn reserve_evm(
        &self,
        evm: &EvmGate,
        context: &Context,
        verified: VerifiedVoucher,
        deposit_after: Option<Amount>,
    ) -> Result<Reserved, Denial> {
        let amount = context.offer.offer.amount;
        let (terms, voucher) = verified.into_parts();
        let cumulative = voucher.cumulative;
        let paid = Paid {
            payer: Account::Evm(terms.payer),
            amount,
            channel: Some(ChannelId::Evm(terms.id)),
            network: context.network().clone(),
            scheme: context.offer.way.scheme(),
        };
        let hopeless = is_hopeless(evm, context, &terms, cumulative, deposit_after.is_some());
        let held = if hopeless { None } else { self.clear(context, evm.ledger.payers(), paid.payer, true).await? };
        let started = Instant::now();
        let waiting = self.options.telemetry.as_ref().map(|telemetry| Waiting::begin(&telemetry.waiting));
        let reservation = evm.ledger.reserve(Entry { terms: terms.clone(), voucher, amount, deposit_after }).await;
        drop(waiting);
        if let Some(telemetry) = &self.options.telemetry {
            telemetry.reserve_seconds.observe(started.elapsed().as_secs_f64());
        }
        let reservation = reservation?.on_route(context.prepared.name()).counting(held);
        if hopeless {
            return Err(Denial::busy("the channel's record changed meanwhile; try again"));
        }
        Ok(Reserved { paid, reservation, terms, cumulative })
    }

    async fn admit_evm_deposit(
        &self,
        evm: &EvmGate,
        network: &EvmNetwork,
        context: &Context,
        payment: Payment,
        presented: Presented,
        deposit: &EvmDeposit,
    ) -> Result<Passed, Denial> {
        let Presented { checked, known } = presented;
        let terms = checked.terms().clone();
        let now = self.clock.now();
        let seconds = u64::try_from(now.seconds()).unwrap_or(0);
        let deposit: CheckedDeposit = deposit::check(&terms, deposit, seconds)?;
        let channel = evm.settling.enter(terms.id, now).map_err(|shut| match shut {
            Shut::Seen => busy("a deposit or a refund of this channel is being settled"),
            Shut::Full => Denial::busy("too many deposits are being settled"),
        })?;
        refuse_stale(known, checked.cumulative())?;
        let before = ask(self, network, &payment, &terms).await?;
        self.take_up_evm(evm, &terms, before).await?;
        let after = before.balance.checked_add(deposit.amount()).ok_or_else(|| {
            Denial::payment(Reason::EvmBatchDepositPayload, "deposit.amount is more than any channel holds")
        })?;
        let reserved = self.reserve_evm(evm, context, checked.verified_on_chain(), Some(after)).await?;
        Ok(reserved.pass(Some(HeldDeposit { payment, amount: deposit.amount(), before, _channel: channel })))
    }
}

/// Whether what is known of a channel can be gone by.
enum Usable {
    Fresh,
    IfNeeded,
    No,
}

/// The channel of a payment as the facilitator finds it, which refuses what would not settle. Anybody can make us ask,
/// so there is a bound on how many ask at once.
pub(super) async fn ask(
    gate: &Gate,
    network: &EvmNetwork,
    payment: &Payment,
    terms: &EvmTerms,
) -> Result<EvmOnChain, Denial> {
    let Ok(_permit) = gate.chain_reads.try_acquire() else {
        return Err(Denial::busy("too many channels are being read; try again"));
    };
    // From before the question, so that what happens meanwhile counts as later.
    let read_at = gate.clock.now();
    let verified = network.facilitator.verify(payment).await?;
    EvmChannelState::read(&verified.extra, terms, read_at).ok_or_else(|| {
        Denial::ours(
            "the facilitator's answer to verify tells no state of the channel; is it one for batch-settlement?",
        )
    })
}

pub(super) fn busy(detail: &'static str) -> Denial {
    Denial::payment(Reason::EvmBatchChannelBusy, detail)
}

/// A voucher that was charged already is answered with the channel's state before anybody is troubled: its client has
/// lost an answer, or its memory.
fn refuse_stale(known: Option<RecordOf<Evm>>, cumulative: Amount) -> Result<(), Denial> {
    match known {
        Some(record) if cumulative <= record.charged => {
            let detail = "the voucher lies behind what was charged";
            Err(Denial::payment(Reason::EvmBatchCumulativeAmountMismatch, detail).correcting(record))
        }
        Some(_) | None => Ok(()),
    }
}

/// Whether the ledger will refuse a voucher of a route with a policy. Neither by a channel that nobody has filled, of
/// whomever it says to be, nor by a voucher that was charged before, which is to be seen on chain, may anybody use up a
/// payer's limits.
fn is_hopeless(evm: &EvmGate, context: &Context, terms: &EvmTerms, cumulative: Amount, deposits: bool) -> bool {
    let base = cumulative.checked_sub(context.offer.offer.amount);
    context.policy().is_some()
        && match evm.ledger.channel(&terms.id) {
            Some(record) => base.is_none_or(|base| base < record.charged),
            None => !deposits,
        }
}

/// Whether a voucher is above what its channel is known to hold: a deposit may have come that we know nothing of, such
/// as one of unknown fate.
fn outgrows(known: Option<&RecordOf<Evm>>, cumulative: Amount) -> bool {
    known.is_some_and(|record| record.on_chain.balance < cumulative)
}

struct Reserved {
    paid: Paid,
    reservation: Reservation<Evm>,
    terms: EvmTerms,
    cumulative: Amount,
}

impl Reserved {
    fn pass(self, deposit: Option<HeldDeposit>) -> Passed {
        let deposit = deposit.map(Box::new);
        let Self { paid, reservation, terms, cumulative } = self;
        Passed::Paid { paid, held: Held::Evm(Hold { reservation, terms, cumulative, deposit }) }
    }
}

impl Hold {
    /// Charges; with a deposit, settles that first. Where there is an answer to keep, it is kept in the same write.
    pub(in crate::gate) async fn commit(
        self,
        gate: &Gate,
        context: &Context,
        paid: &Paid,
        charge: Amount,
        keep: Option<Keep>,
    ) -> Result<Charged, Denial> {
        let Self { reservation, terms, cumulative, deposit } = self;
        let reservation = context.selling(reservation, paid);
        let sold = context.sale.as_ref().map(Sale::told);
        let keep = keep.map(|keep| (keep, context.sale.as_ref().map(Sale::sealed)));
        let started = Instant::now();
        let mut settled = None;
        let mut on_chain = None;
        if let Some(deposit) = &deposit {
            let (transaction, after) = Box::pin(deposit.settle(gate, context, &terms, cumulative)).await?;
            settled = Some((transaction, deposit.amount));
            on_chain = Some(after);
        }
        let reservation = reservation.charging(charge);
        let receipt = commit(reservation, on_chain, paid, settled.clone(), keep).await.map_err(|error| {
            let denial = gate.uncommitted(&error);
            match settled.clone() {
                Some((transaction, _)) => {
                    let reason = Reason::UnexpectedSettleError;
                    denial.settling(context.evm_failed(terms.payer, reason, Some(transaction)))
                }
                None => denial,
            }
        })?;
        if let (Some(telemetry), None) = (&gate.options.telemetry, &settled) {
            telemetry.commit_seconds.observe(started.elapsed().as_secs_f64());
        }
        Ok(response(paid, settled, receipt.charged, &receipt.channel, sold.as_ref()))
    }

    pub(in crate::gate) fn release(self) {
        self.reservation.release();
    }
}

async fn commit(
    reservation: Reservation<Evm>,
    on_chain: Option<EvmOnChain>,
    paid: &Paid,
    settled: Option<(String, Amount)>,
    keep: Option<(Keep, Option<PackSold>)>,
) -> Result<Receipt<Evm>, crate::ledger::store::StoreError> {
    let Some((keep, sold)) = keep else { return reservation.commit(on_chain).await };
    let (id, draft) = *keep;
    let (paid, charged) = (paid.clone(), reservation.charge());
    let make = move |channel: &RecordOf<Evm>| draft.answer(&response(&paid, settled, charged, channel, sold.as_ref()));
    reservation.commit_with_answer(on_chain, id, make).await
}

/// The answer to a charged request ("Payment Response Contract").
fn response(
    paid: &Paid,
    settled: Option<(String, Amount)>,
    charged: Amount,
    channel: &RecordOf<Evm>,
    sold: Option<&PackSold>,
) -> Charged {
    let deposit = settled.as_ref().map(|(hash, amount)| -> (&dyn fmt::Display, _) { (hash, *amount) });
    Charged::on_channel(paid, charged, deposit, None, &state::channel_state(channel), sold)
}

impl HeldDeposit {
    /// Has the deposit settled and waits for it.
    async fn settle(
        &self,
        gate: &Gate,
        context: &Context,
        terms: &EvmTerms,
        cumulative: Amount,
    ) -> Result<(String, EvmOnChain), Denial> {
        let network = gate.evm()?.network(&context.offer)?;
        let (transaction, on_chain) = match network.facilitator.settle(&self.payment).await {
            Ok(settled) => self.after(gate, network, context, terms, settled).await?,
            Err(error @ InterfaceError::Unknown { .. }) => match self.find(gate, network, terms).await {
                Some(on_chain) => (error.transaction().unwrap_or_default().to_owned(), on_chain),
                None => return Err(context.not_settled(terms.payer, error)),
            },
            Err(error) => return Err(context.not_settled(terms.payer, error)),
        };
        if on_chain.balance < cumulative {
            let reason = Reason::EvmBatchCumulativeExceedsBalance;
            let failed = context.evm_failed(terms.payer, reason, Some(transaction));
            let detail = "the deposit was confirmed, but the channel does not cover the voucher; nothing was charged";
            return Err(Denial::payment(reason, detail).settling(failed));
        }
        Ok((transaction, on_chain))
    }

    /// The channel after a deposit that is confirmed.
    async fn after(
        &self,
        gate: &Gate,
        network: &EvmNetwork,
        context: &Context,
        terms: &EvmTerms,
        settled: Settled,
    ) -> Result<(String, EvmOnChain), Denial> {
        if let Some(on_chain) = EvmChannelState::read(&settled.extra, terms, gate.clock.now()) {
            return Ok((settled.transaction, on_chain));
        }
        match self.find(gate, network, terms).await {
            Some(on_chain) => Ok((settled.transaction, on_chain)),
            None => {
                let failed = context.evm_failed(terms.payer, Reason::ChainUnavailable, Some(settled.transaction));
                Err(Denial::unavailable().settling(failed))
            }
        }
    }

    /// Looks for a deposit of which it is not known whether it was settled: whether the channel has come to hold it.
    async fn find(&self, gate: &Gate, network: &EvmNetwork, terms: &EvmTerms) -> Option<EvmOnChain> {
        let after = self.before.balance.checked_add(self.amount)?;
        let question = as_voucher(&self.payment)?;
        let mut wait = gate.options.retry.wait_min;
        for _ in 0..LOOKS {
            tokio::time::sleep(wait).await;
            wait = wait.saturating_mul(2).min(gate.options.retry.wait_max);
            match ask(gate, network, &question, terms).await {
                Ok(on_chain) if on_chain.balance >= after => return Some(on_chain),
                Ok(_) | Err(_) => {}
            }
        }
        None
    }
}

/// The same payment without its deposit: a facilitator that is asked about it tells the channel's state.
fn as_voucher(payment: &Payment) -> Option<Payment> {
    let mut question = payment.clone();
    let payload = question.payload.get_mut("payload")?.as_object_mut()?;
    payload.insert("type".to_owned(), "voucher".into());
    payload.remove("deposit");
    Some(question)
}
