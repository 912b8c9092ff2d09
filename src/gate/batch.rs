//! The flow of scheme `batch-settlement`: vouchers, and deposits that come with them.
//!
//! A voucher is checked here while what is known of its channel is fresh, and asks the chain otherwise. A deposit is
//! accepted before the upstream is called and settled after it has answered, so a failing upstream costs the payer
//! nothing. Source: `scheme_batch_settlement_svm.md`, section 5, phases 1, 3 and 5.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use serde_json::Value;

use super::pack::Sale;
use super::recent::{Entered, Shut};
use super::refusal::Denial;
use super::replay::Keep;
use super::{Charged, Context, Gate, Held, Paid, Passed};
use crate::amount::Amount;
use crate::facilitator::{AcceptedDeposit, DepositRequest, DepositScheme, Facilitator, FacilitatorError};
use crate::ledger::channel::{OnChain, Seller, Terms};
use crate::ledger::store::{ChannelRecord, StoreError};
use crate::ledger::{Entry, Receipt, Reservation};
use crate::scheme::batch_settlement_svm::{self as scheme, VerifiedVoucher};
use crate::scheme::svm::program::ChannelStatus;
use crate::telemetry::Waiting;
use crate::x402::call_pack::PackSold;
use crate::x402::key::Signature;
use crate::x402::wire::{BatchPayload, BatchVoucher, ChannelConfig, Deposit};
use crate::x402::{Account, ChannelId, Key, Reason};

/// A reserved price, with the deposit that came along.
pub(super) struct Hold {
    reservation: Reservation,
    /// The voucher's total.
    cumulative: Amount,
    deposit: Option<Box<HeldDeposit>>,
}

/// A deposit that passed and is settled once the upstream has answered.
struct HeldDeposit {
    facilitator: Arc<dyn Facilitator>,
    accepted: AcceptedDeposit,
    setup: Entered<Signature>,
    _channel: Entered<Key>,
}

impl Gate {
    /// Checks a payload of the scheme and reserves its price, or handles its refund.
    pub(super) async fn admit_batch(
        self: &Arc<Self>,
        context: &Context,
        seller: &Arc<Seller>,
        payload: Value,
    ) -> Result<Passed, Denial> {
        let facilitator = self.facilitator(&context.offer)?;
        match scheme::parse(payload)? {
            BatchPayload::Voucher { channel_config, voucher } => {
                self.admit_voucher(context, seller, &channel_config, &voucher).await
            }
            BatchPayload::Deposit { channel_config, voucher, deposit } => {
                let verified = self.verify(seller, &channel_config, &voucher)?;
                Box::pin(self.admit_deposit(context, facilitator, verified, deposit)).await
            }
            BatchPayload::Refund { channel_config, voucher, amount, transaction } => {
                if amount.is_some() {
                    let detail = "payload.amount must be absent: a refund returns all that is left";
                    return Err(Denial::payment(Reason::BatchCloseAmountUnsupported, detail));
                }
                if transaction.is_some() {
                    let detail = "payload.transaction must be absent: the cooperative refund is available";
                    return Err(Denial::payment(Reason::BatchRefundTransaction, detail));
                }
                let verified = self.verify(seller, &channel_config, &voucher)?;
                Box::pin(self.refund(context, facilitator, verified)).await.map(Passed::Answered)
            }
        }
    }

    /// Checks a voucher and reserves its price.
    pub(super) async fn admit_voucher(
        &self,
        context: &Context,
        seller: &Arc<Seller>,
        config: &ChannelConfig,
        voucher: &BatchVoucher,
    ) -> Result<Passed, Denial> {
        let facilitator = self.facilitator(&context.offer)?;
        let verified = self.verify(seller, config, voucher)?;
        open_channel(self.look(&facilitator, verified.terms()).await?)?;
        let reserved = self.reserve(context, verified, None).await?;
        Ok(reserved.pass(None))
    }

    fn verify(
        &self,
        seller: &Arc<Seller>,
        config: &ChannelConfig,
        voucher: &BatchVoucher,
    ) -> Result<VerifiedVoucher, Denial> {
        let started = Instant::now();
        let known = self.ledger.channel(&voucher.channel_id);
        let known = known.as_ref().map(|record| &record.terms);
        let verified = scheme::verify(seller, config, voucher, known);
        if let Some(telemetry) = &self.options.telemetry {
            telemetry.verify_seconds.observe(started.elapsed().as_secs_f64());
        }
        Ok(verified?)
    }

    async fn reserve(
        &self,
        context: &Context,
        verified: VerifiedVoucher,
        deposit_after: Option<Amount>,
    ) -> Result<Reserved, Denial> {
        let amount = context.offer.offer.amount;
        let (terms, voucher) = verified.into_parts();
        let paid = Paid {
            payer: Account::Svm(terms.payer),
            amount,
            channel: Some(ChannelId::Svm(terms.id)),
            network: context.network().clone(),
            scheme: context.offer.way.scheme(),
        };
        let hopeless = self.is_hopeless(context, &terms, voucher.cumulative);
        let held = if hopeless { None } else { self.clear(context, self.ledger.payers(), paid.payer, true).await? };
        let started = Instant::now();
        let waiting = self.options.telemetry.as_ref().map(|telemetry| Waiting::begin(&telemetry.waiting));
        let reservation = self.ledger.reserve(Entry { terms, voucher, amount, deposit_after }).await;
        drop(waiting);
        if let Some(telemetry) = &self.options.telemetry {
            telemetry.reserve_seconds.observe(started.elapsed().as_secs_f64());
        }
        let reservation = reservation?.on_route(context.prepared.name()).counting(held);
        if hopeless {
            return Err(Denial::busy("the channel's record changed meanwhile; try again"));
        }
        Ok(Reserved { paid, reservation, cumulative: voucher.cumulative })
    }

    /// Whether the ledger will refuse a voucher of a route with a policy, since it was charged before. Vouchers are to
    /// be seen on chain: by old ones nobody may use up their payer's limits.
    fn is_hopeless(&self, context: &Context, terms: &Terms, cumulative: Amount) -> bool {
        context.policy().is_some()
            && self.ledger.channel(&terms.id).is_some_and(|record| {
                cumulative.checked_sub(context.offer.offer.amount).is_none_or(|base| base < record.charged)
            })
    }

    async fn admit_deposit(
        self: &Arc<Self>,
        context: &Context,
        facilitator: Arc<dyn Facilitator>,
        verified: VerifiedVoucher,
        deposit: Deposit,
    ) -> Result<Passed, Denial> {
        let terms = verified.terms().clone();
        let now = self.clock.now();
        let channel = self.depositing.enter(terms.id, now).map_err(|shut| match shut {
            Shut::Seen => duplicate("a deposit of this channel is being settled"),
            Shut::Full => Denial::busy("too many deposits are being settled"),
        })?;
        let known = self.look(&facilitator, &terms).await?;
        if known.is_some() {
            open_channel(known)?;
            self.refuse_stale(&verified)?;
        }
        let request = DepositRequest {
            terms,
            amount: deposit.amount,
            transaction: deposit.transaction,
            memo: context.offer.offer.memo.as_deref().map(str::to_owned),
            known,
            scheme: DepositScheme::BatchSettlement,
        };
        let accepted = facilitator.accept_deposit(request).await?;
        let setup = accepted.transaction.signature_of(&accepted.request.terms.payer).ok_or_else(|| {
            Denial::payment(Reason::BatchSetupTransaction, "the payer is no signer of the transaction")
        })?;
        let setup = self.setups.enter(setup, now).map_err(|shut| match shut {
            Shut::Seen => duplicate("this transaction is being settled, or was"),
            Shut::Full => Denial::busy("too many deposits were settled lately"),
        })?;
        let reserved = self.reserve(context, verified, Some(accepted.deposit_after)).await?;
        Ok(reserved.pass(Some(HeldDeposit { facilitator, accepted, setup, _channel: channel })))
    }

    /// A voucher that was charged already is answered with the channel's state before the facilitator is troubled: its
    /// client has lost an answer, not a transaction.
    fn refuse_stale(&self, verified: &VerifiedVoucher) -> Result<(), Denial> {
        match self.ledger.channel(&verified.terms().id) {
            Some(record) if verified.cumulative() <= record.charged => {
                let detail = "the voucher was charged before";
                Err(Denial::payment(Reason::BatchCumulativeAmountMismatch, detail).correcting(record))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// A channel's chain state, fresh enough to go by; `None` where the chain has no such channel. What is read is
    /// taken up by the ledger.
    pub(super) async fn look(
        &self,
        facilitator: &Arc<dyn Facilitator>,
        terms: &Terms,
    ) -> Result<Option<OnChain>, Denial> {
        let known = self.ledger.channel(&terms.id);
        let freshness = self.options.freshness.min(self.staleness_max(terms));
        match &known {
            Some(record) if self.age(record) <= freshness => Ok(Some(record.on_chain)),
            // What asks a chain is large, and lives apart so that the rest is small.
            Some(_) | None => Box::pin(self.read_channel(facilitator, terms, known)).await,
        }
    }

    fn age(&self, record: &ChannelRecord) -> Duration {
        self.clock.now().since(record.on_chain.read_at)
    }

    async fn read_channel(
        &self,
        facilitator: &Arc<dyn Facilitator>,
        terms: &Terms,
        known: Option<ChannelRecord>,
    ) -> Result<Option<OnChain>, Denial> {
        let now = self.clock.now();
        let usable = known.as_ref().filter(|record| self.age(record) <= self.staleness_max(terms));
        let usable = usable.map(|record| record.on_chain);
        // One read per channel, and a bound on all of them: who finds both taken goes by what is known, or comes again.
        let or_usable = |denial: Denial| usable.map(Some).ok_or(denial);
        let Ok(_reading) = self.reading.enter(terms.id, now) else {
            return or_usable(Denial::busy("the channel is being read; try again"));
        };
        let Ok(_permit) = self.chain_reads.try_acquire() else {
            return or_usable(Denial::busy("too many channels are being read; try again"));
        };
        match facilitator.read_channel(terms).await {
            Ok(Some(on_chain)) => {
                self.take_up(terms, known.as_ref(), on_chain).await?;
                Ok(Some(on_chain))
            }
            Ok(None) if known.is_some() => {
                Err(Denial::payment(Reason::BatchChannelState, "the channel no longer exists; open a new one"))
            }
            Ok(None) => Ok(None),
            Err(error @ FacilitatorError::Refused { .. }) => Err(error.into()),
            Err(error @ (FacilitatorError::Unavailable(_) | FacilitatorError::Pending { .. })) => {
                tracing::warn!(channel = %terms.id, %error, "a channel cannot be read");
                or_usable(Denial::unavailable())
            }
        }
    }

    async fn take_up(&self, terms: &Terms, known: Option<&ChannelRecord>, on_chain: OnChain) -> Result<(), Denial> {
        match known {
            Some(_) => self.ledger.observe(&terms.id, on_chain).await.map_err(|error| Denial::stopped(&error)),
            None => {
                if on_chain.status == ChannelStatus::Open {
                    self.ledger.adopt(terms.clone(), on_chain);
                }
                Ok(())
            }
        }
    }

    /// A charge that was not made: the ledger has stopped, or this one came too late.
    pub(super) fn uncommitted(&self, error: &StoreError) -> Denial {
        if self.ledger.health().is_err() {
            return Denial::stopped(error);
        }
        tracing::warn!(%error, "a request was served and could not be charged");
        Denial::busy("the request took too long to be charged, so its answer is withheld; nothing was charged")
    }

    /// Past this age nothing is served on what was read: a payer could have begun to close, and be done, unseen.
    fn staleness_max(&self, terms: &Terms) -> Duration {
        self.options.staleness_max.min(Duration::from_secs(u64::from(terms.seller.withdraw_delay / 4)))
    }
}

/// The channel where it takes vouchers.
fn open_channel(on_chain: Option<OnChain>) -> Result<OnChain, Denial> {
    let on_chain = on_chain.ok_or_else(|| {
        let detail = "the channel does not exist on chain; send a deposit that opens it";
        Denial::payment(Reason::BatchChannelState, detail)
    })?;
    match on_chain.status {
        ChannelStatus::Open => Ok(on_chain),
        ChannelStatus::Closing => {
            Err(Denial::payment(Reason::BatchChannelClosing, "the channel is closing; open a new one"))
        }
        ChannelStatus::Sealed | ChannelStatus::Distributed => {
            Err(Denial::payment(Reason::BatchChannelState, "the channel is closed; open a new one"))
        }
    }
}

pub(super) fn duplicate(detail: &'static str) -> Denial {
    Denial::payment(Reason::DuplicateSettlement, detail)
}

struct Reserved {
    paid: Paid,
    reservation: Reservation,
    cumulative: Amount,
}

impl Reserved {
    fn pass(self, deposit: Option<HeldDeposit>) -> Passed {
        let deposit = deposit.map(Box::new);
        let Self { paid, reservation, cumulative } = self;
        Passed::Paid { paid, held: Held::Batch(Hold { reservation, cumulative, deposit }) }
    }
}

impl Hold {
    /// Charges; with a deposit, settles that first. Where there is an answer to keep, it is kept in the same write.
    pub(super) async fn commit(
        self,
        gate: &Gate,
        context: &Context,
        paid: &Paid,
        keep: Option<Keep>,
    ) -> Result<Charged, Denial> {
        let Self { reservation, cumulative, deposit } = self;
        let reservation = context.selling(reservation, paid);
        let sold = context.sale.as_ref().map(Sale::told);
        let keep = keep.map(|keep| (keep, context.sale.as_ref().map(Sale::sealed)));
        let started = Instant::now();
        let mut settled = None;
        let mut on_chain = None;
        let mut deposit = deposit;
        if let Some(deposit) = &mut deposit {
            // What asks a chain is large, and lives apart so that the rest is small.
            let (transaction, after) = Box::pin(deposit.settle(cumulative, gate, context, paid)).await?;
            settled = Some((transaction, deposit.accepted.request.amount));
            on_chain = Some(after);
        }
        let charge = Charge { cumulative, deposit: settled };
        let receipt = charge.commit(reservation, on_chain, paid, keep).await.map_err(|error| {
            let denial = gate.uncommitted(&error);
            match settled {
                Some((transaction, _)) => {
                    let reason = Reason::UnexpectedSettleError;
                    denial.settling(context.failed(paid.payer, reason, Some(transaction)))
                }
                None => denial,
            }
        })?;
        if let (Some(telemetry), None) = (&gate.options.telemetry, &settled) {
            telemetry.commit_seconds.observe(started.elapsed().as_secs_f64());
        }
        Ok(charge.response(paid, receipt.charged, &receipt.channel, sold.as_ref()))
    }

    pub(super) fn release(self) {
        self.reservation.release();
    }
}

impl HeldDeposit {
    /// Sends the deposit and waits for it. From the first step on, the same transaction is not taken again.
    async fn settle(
        &mut self,
        cumulative: Amount,
        gate: &Gate,
        context: &Context,
        paid: &Paid,
    ) -> Result<(Signature, OnChain), Denial> {
        self.setup.keep(gate.clock.now());
        let settled = match self.facilitator.settle_deposit(self.accepted.clone()).await {
            Ok(settled) => settled,
            Err(error) => {
                if matches!(error, FacilitatorError::Unavailable(_)) {
                    self.setup.forget();
                }
                return Err(context.unsettled(paid.payer, error));
            }
        };
        let on_chain = settled.channel;
        if on_chain.status != ChannelStatus::Open || on_chain.deposit < cumulative {
            let failed = context.failed(paid.payer, Reason::BatchChannelState, Some(settled.transaction));
            let detail = "the deposit was confirmed, but the channel does not cover the voucher; nothing was charged";
            return Err(Denial::payment(Reason::BatchChannelState, detail).settling(failed));
        }
        Ok((settled.transaction, on_chain))
    }
}

/// What a charged request's answer says of it, but for the channel.
#[derive(Clone, Copy)]
struct Charge {
    /// The voucher's total.
    cumulative: Amount,
    /// The deposit that came along, confirmed.
    deposit: Option<(Signature, Amount)>,
}

impl Charge {
    async fn commit(
        self,
        reservation: Reservation,
        on_chain: Option<OnChain>,
        paid: &Paid,
        keep: Option<(Keep, Option<PackSold>)>,
    ) -> Result<Receipt, StoreError> {
        let Some((keep, sold)) = keep else { return reservation.commit(on_chain).await };
        let (id, draft) = *keep;
        let (paid, charged) = (paid.clone(), reservation.amount());
        let make = move |channel: &ChannelRecord| draft.answer(&self.response(&paid, charged, channel, sold.as_ref()));
        reservation.commit_with_answer(on_chain, id, make).await
    }

    /// The answer to a charged request (section 4.4).
    fn response(self, paid: &Paid, charged: Amount, channel: &ChannelRecord, sold: Option<&PackSold>) -> Charged {
        let Self { cumulative, deposit } = self;
        let deposit =
            deposit.as_ref().map(|(transaction, amount)| -> (&dyn fmt::Display, _) { (transaction, *amount) });
        let state = super::challenge::channel_state(channel);
        let commitment = Some(format_args!("{}:{cumulative}", channel.terms.id));
        Charged::on_channel(paid, charged, deposit, commitment, &state, sold)
    }
}
