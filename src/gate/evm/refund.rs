//! Refunds on EVM networks: what is left of a channel, or a part of it, goes back to its payer.
//!
//! The resource is bypassed. All that was charged is claimed in the same transaction, so a refund never takes what the
//! merchant has earned. Once it may be on chain it is followed to its end even where the client is gone, and the channel
//! takes no payments meanwhile; afterwards it lives on. A refund can land only while its nonce is the channel's next, so
//! a channel whose nonce has moved on is one whose refund is over. Source: `scheme_batch_settlement_evm.md`,
//! "Cooperative refund flow".

use std::sync::Arc;

use serde_json::Map;
use tokio::sync::oneshot;

use super::super::recent::{Remembered, Shut};
use super::super::refusal::Denial;
use super::super::{Context, Gate, Retry};
use super::batch::{Presented, ask, busy};
use super::{EvmGate, EvmNetwork, asked, state};
use crate::amount::Amount;
use crate::clock::Clock;
use crate::facilitator::FacilitatorError;
use crate::facilitator::authorizer::{Refund, RefundAuthorization};
use crate::facilitator::interface::{InterfaceError, Payment, Settled};
use crate::ledger::channel::{ChainState, Evm, EvmOnChain};
use crate::ledger::store::RecordOf;
use crate::ledger::{CloseGuard, Ledger};
use crate::scheme::batch_settlement_evm::payload::{EvmClaimRow, EvmClaimVoucher};
use crate::scheme::batch_settlement_evm::state::EvmChannelState;
use crate::scheme::evm::EvmTerms;
use crate::x402::evm::B256;
use crate::x402::wire::{PaymentPayload, SettlementResponse};
use crate::x402::{Network, Reason};

/// How often a refund of unknown fate is looked up; with the waits that grow, for about an hour.
const FOLLOW_LOOKS: u32 = 64;

/// Full refunds that were done lately, by channel.
pub(super) type Refunds = Remembered<B256, SettlementResponse>;

impl Gate {
    /// Returns what is left, or `amount` of it.
    pub(super) async fn refund_evm(
        self: &Arc<Self>,
        evm: &EvmGate,
        network: &EvmNetwork,
        context: &Context,
        payment: PaymentPayload,
        presented: Presented,
        amount: Option<Amount>,
    ) -> Result<Box<SettlementResponse>, Denial> {
        let payment = asked(context, &payment)?;
        let Presented { checked, known } = presented;
        let (terms, cumulative) = (checked.terms().clone(), checked.cumulative());
        if let Some(record) = known
            && record.charged != cumulative
        {
            return Err(unequal().correcting(record));
        }
        let on_chain = ask(self, network, &payment, &terms).await?;
        self.take_up_evm(evm, &terms, on_chain).await?;
        let entered = evm.settling.enter(terms.id, self.clock.now()).map_err(|shut| match shut {
            Shut::Seen => busy("a deposit or a refund of this channel is being settled"),
            Shut::Full => Denial::busy("too many channels are being settled"),
        })?;
        let refunding = Refunding {
            ledger: Arc::clone(&evm.ledger),
            network: network.clone(),
            refunds: Arc::clone(&evm.refunds),
            clock: Arc::clone(&self.clock),
            retry: self.options.retry,
            name: context.network().clone(),
            terms,
            payment,
            cumulative,
            amount,
        };
        let payer = refunding.terms.payer;
        let (sender, receiver) = oneshot::channel();
        self.tasks.spawn(async move {
            let _entered = entered;
            refunding.run(sender).await;
        });
        match receiver.await {
            Ok(Ok(answer)) => Ok(Box::new(answer)),
            Ok(Err(Failed::Denied(denial))) => Err(denial),
            Ok(Err(Failed::Interface(error))) => Err(context.not_settled(payer, error)),
            Err(_) => Err(Denial::ours("a refund ended without an answer")),
        }
    }
}

fn unequal() -> Denial {
    let detail = "a refund's voucher must be over what was charged, channelState.chargedCumulativeAmount";
    Denial::payment(Reason::EvmBatchCumulativeAmountMismatch, detail)
}

enum Failed {
    Denied(Denial),
    Interface(InterfaceError),
}

impl From<Denial> for Failed {
    fn from(denial: Denial) -> Self {
        Self::Denied(denial)
    }
}

type Answer = oneshot::Sender<Result<SettlementResponse, Failed>>;

/// A refund that is under way.
struct Refunding {
    ledger: Arc<Ledger<Evm>>,
    network: EvmNetwork,
    refunds: Arc<Refunds>,
    clock: Arc<dyn Clock>,
    retry: Retry,
    name: Network,
    terms: EvmTerms,
    payment: Payment,
    /// The voucher's total.
    cumulative: Amount,
    /// How much; `None` for all that is left.
    amount: Option<Amount>,
}

impl Refunding {
    async fn run(self, answer: Answer) {
        let guard = match self.ledger.begin_close(&self.terms.id).await {
            Ok(guard) => guard,
            Err(refused) => return send(answer, Err(Denial::from(refused).into())),
        };
        let channel = guard.channel();
        match self.prepare(&guard, &channel).await {
            Ok(Prepared::Again(again)) => send(answer, Ok(*again)),
            Ok(Prepared::Settle(payment, amount)) => self.settle(guard, &channel, &payment, amount, answer).await,
            Err(denial) => send(answer, Err(denial.into())),
        }
    }

    /// Decides how much goes back, has it signed, and shuts the channel: from here on nothing more may be charged that
    /// the refund does not claim.
    async fn prepare(&self, guard: &CloseGuard<Evm>, channel: &RecordOf<Evm>) -> Result<Prepared, Denial> {
        if channel.charged != self.cumulative {
            return Err(unequal().correcting(channel.clone()));
        }
        let left = channel.on_chain.balance.saturating_sub(channel.charged);
        let amount = self.amount.unwrap_or(left).min(left);
        if amount.is_zero() {
            return match self.refunds.get(&self.terms.id).filter(|_| self.amount.is_none()) {
                Some(done) => Ok(Prepared::Again(Box::new(done))),
                None => Err(Denial::payment(Reason::EvmBatchRefundNoBalance, "nothing is left to refund")),
            };
        }
        let refund = Refund {
            terms: self.terms.clone(),
            on_chain: channel.on_chain,
            charged: channel.charged,
            voucher: channel.redeemable(),
            amount,
        };
        let authorization = self.network.authorizer.authorize_refund(&refund).await.map_err(|error| match error {
            // What our own signer refuses is ours to explain, in our log.
            FacilitatorError::Refused { detail, .. } => Denial::ours(detail),
            FacilitatorError::Unavailable(_) | FacilitatorError::Pending { .. } => Denial::from(error),
        })?;
        let payment = complete(&self.payment, &refund, &authorization)
            .ok_or_else(|| Denial::ours("a refund's payload could not be completed"))?;
        guard.shut().await.map_err(|error| Denial::stopped(&error))?;
        Ok(Prepared::Settle(Box::new(payment), amount))
    }

    async fn settle(
        &self,
        guard: CloseGuard<Evm>,
        channel: &RecordOf<Evm>,
        payment: &Payment,
        amount: Amount,
        answer: Answer,
    ) {
        match self.network.facilitator.settle(payment).await {
            Ok(settled) => {
                let response = self.done(guard, channel, &settled, amount).await;
                send(answer, Ok(response));
            }
            Err(error @ InterfaceError::Unknown { .. }) => {
                send(answer, Err(Failed::Interface(error)));
                self.follow(guard, channel, payment, amount).await;
            }
            // It was not sent, or has failed and can no longer land.
            Err(error) => {
                if let Err(error) = guard.reopen().await {
                    tracing::error!(channel = %self.terms.id, %error, "a channel whose refund failed takes no payments");
                }
                send(answer, Err(Failed::Interface(error)));
            }
        }
    }

    /// Takes up a refund that is confirmed.
    async fn done(
        &self,
        guard: CloseGuard<Evm>,
        channel: &RecordOf<Evm>,
        settled: &Settled,
        amount: Amount,
    ) -> SettlementResponse {
        let after = EvmChannelState::read(&settled.extra, &self.terms, self.clock.now());
        let after = after.unwrap_or_else(|| expected(channel, amount, self.clock.as_ref()));
        let response = self.response(settled, amount, channel, &after);
        if self.amount.is_none() {
            self.refunds.remember(self.terms.id, response.clone());
        }
        self.finish(guard, after).await;
        response
    }

    /// Looks after a refund of unknown fate until its nonce is used. While it is not, the very same is asked for again:
    /// the nonce lets it land once, and one that was never sent would otherwise keep the channel shut.
    async fn follow(&self, guard: CloseGuard<Evm>, channel: &RecordOf<Evm>, payment: &Payment, amount: Amount) {
        let mut wait = self.retry.wait_min;
        for _ in 0..FOLLOW_LOOKS {
            tokio::time::sleep(wait).await;
            wait = wait.saturating_mul(2).min(self.retry.wait_max);
            let read_at = self.clock.now();
            match self.network.facilitator.verify(&self.payment).await {
                Ok(verified) => {
                    if let Some(now) = EvmChannelState::read(&verified.extra, &self.terms, read_at) {
                        if channel.on_chain.ends_close(&now) {
                            return self.finish(guard, now).await;
                        }
                        if let Ok(settled) = self.network.facilitator.settle(payment).await {
                            self.done(guard, channel, &settled, amount).await;
                            return;
                        }
                    }
                }
                // A channel without a balance is one that was refunded whole.
                Err(InterfaceError::Refused { reason, .. })
                    if reason == Reason::EvmBatchChannelNotFound.as_str() && channel.charged.is_zero() =>
                {
                    let empty = expected(channel, channel.on_chain.balance, self.clock.as_ref());
                    return self.finish(guard, empty).await;
                }
                Err(_) => {}
            }
        }
        tracing::error!(
            channel = %self.terms.id,
            "the fate of a refund is still not known: the channel takes no payments until its refund nonce moves on"
        );
    }

    async fn finish(&self, guard: CloseGuard<Evm>, after: EvmOnChain) {
        if let Err(error) = guard.finish(after).await {
            tracing::error!(channel = %self.terms.id, %error, "a refund could not be recorded");
        }
    }

    fn response(
        &self,
        settled: &Settled,
        amount: Amount,
        channel: &RecordOf<Evm>,
        after: &EvmOnChain,
    ) -> SettlementResponse {
        let record = RecordOf::<Evm> { on_chain: *after, ..channel.clone() };
        let mut extra = Map::new();
        if let Ok(state) = serde_json::to_value(state::channel_state(&record)) {
            extra.insert("channelState".to_owned(), state);
        }
        let told = settled.amount.clone().filter(|told| !told.is_empty());
        SettlementResponse {
            success: true,
            error_reason: None,
            payer: Some(self.terms.payer.to_string()),
            transaction: settled.transaction.clone(),
            network: self.name.clone(),
            amount: Some(told.unwrap_or_else(|| amount.to_string())),
            extra,
            extensions: Map::new(),
        }
    }
}

enum Prepared {
    /// It was done before; this was its answer.
    Again(Box<SettlementResponse>),
    Settle(Box<Payment>, Amount),
}

/// The channel after a refund, where nobody tells it.
fn expected(channel: &RecordOf<Evm>, amount: Amount, clock: &dyn Clock) -> EvmOnChain {
    let before = channel.on_chain;
    EvmOnChain {
        balance: before.balance.saturating_sub(amount),
        claimed: before.claimed.max(channel.charged),
        withdrawal: before.withdrawal.saturating_sub(amount),
        refund_nonce: before.refund_nonce.saturating_add(1),
        block: 0,
        read_at: clock.now(),
        ..before
    }
}

/// The client's refund with what the server adds before it is settled.
fn complete(payment: &Payment, refund: &Refund, authorization: &RefundAuthorization) -> Option<Payment> {
    let mut payment = payment.clone();
    let payload = payment.payload.get_mut("payload")?.as_object_mut()?;
    let claim = refund.voucher.as_ref().map(|voucher| EvmClaimRow {
        voucher: EvmClaimVoucher { channel: refund.terms.config(), max_claimable_amount: voucher.cumulative },
        signature: voucher.signature.clone(),
        total_claimed: refund.charged,
    });
    payload.insert("amount".to_owned(), refund.amount.to_string().into());
    payload.insert("refundNonce".to_owned(), refund.on_chain.refund_nonce.to_string().into());
    payload.insert("claims".to_owned(), serde_json::to_value(Vec::from_iter(claim)).ok()?);
    payload.insert("refundAuthorizerSignature".to_owned(), authorization.refund.to_string().into());
    if let Some(claim) = &authorization.claim {
        payload.insert("claimAuthorizerSignature".to_owned(), claim.to_string().into());
    }
    Some(payment)
}

/// Nobody may be left to hear it.
fn send(answer: Answer, what: Result<SettlementResponse, Failed>) {
    let _ = answer.send(what);
}
