//! Refunds: a client's cooperative close of its channel.
//!
//! The resource is bypassed. Once a close may be on chain it is followed to its end even where the client is gone, and
//! the channel takes no payments meanwhile. A repeat of a refund that was done gets the same answer. Source:
//! `scheme_batch_settlement_svm.md`, sections 3, 4.5 and 5, phase 5.

use std::sync::Arc;

use serde_json::{Map, Value};
use tokio::sync::oneshot;

use super::batch::duplicate;
use super::recent::{Remembered, Shut};
use super::refusal::Denial;
use super::{Context, Gate};
use crate::amount::Amount;
use crate::clock::Clock;
use crate::facilitator::{CloseRequest, Facilitator, FacilitatorError, SettledClose};
use crate::ledger::channel::{OnChain, Terms, Voucher};
use crate::ledger::store::ChannelRecord;
use crate::ledger::{CloseGuard, Ledger};
use crate::scheme::batch_settlement_svm::VerifiedVoucher;
use crate::scheme::svm::program::ChannelStatus;
use crate::x402::key::Signature;
use crate::x402::wire::{ChannelState, SettlementResponse};
use crate::x402::{Key, Network, Reason};

/// Refunds that were done lately, by channel, each with the total that it closed at.
pub(super) type Refunds = Remembered<Key, (Amount, SettlementResponse)>;

impl Gate {
    /// Closes the channel at what was charged and returns the rest.
    pub(super) async fn refund(
        self: &Arc<Self>,
        context: &Context,
        facilitator: Arc<dyn Facilitator>,
        verified: VerifiedVoucher,
    ) -> Result<Box<SettlementResponse>, Denial> {
        let id = verified.terms().id;
        match self.refunds.get(&id) {
            Some((cumulative, answer)) if cumulative == verified.cumulative() => return Ok(Box::new(answer)),
            Some(_) => return Err(close_state("the channel was refunded at another total")),
            None => {}
        }
        let Some(on_chain) = self.look(&facilitator, verified.terms()).await? else {
            return Err(close_state("the channel does not exist"));
        };
        match on_chain.status {
            ChannelStatus::Open => {}
            ChannelStatus::Closing => return Ok(Box::new(self.observed(context, verified.terms(), on_chain))),
            ChannelStatus::Sealed | ChannelStatus::Distributed => return Err(close_state("the channel is closed")),
        }
        if let Some(record) = self.ledger.channel(&id)
            && verified.cumulative() < record.charged
        {
            return Err(unequal().correcting(record));
        }
        self.close(context, facilitator, verified).await
    }

    /// Runs the close behind the request and waits for its answer.
    async fn close(
        self: &Arc<Self>,
        context: &Context,
        facilitator: Arc<dyn Facilitator>,
        verified: VerifiedVoucher,
    ) -> Result<Box<SettlementResponse>, Denial> {
        let (terms, voucher) = verified.into_parts();
        let entered = self.depositing.enter(terms.id, self.clock.now()).map_err(|shut| match shut {
            Shut::Seen => duplicate("a deposit or a refund of this channel is being settled"),
            Shut::Full => Denial::busy("too many channels are being settled"),
        })?;
        let payer = terms.payer;
        let close = Close {
            ledger: Arc::clone(&self.ledger),
            facilitator,
            clock: Arc::clone(&self.clock),
            retry: self.options.retry,
            network: context.network().clone(),
            terms,
            voucher,
        };
        let done = Arc::clone(&self.refunds);
        let (sender, receiver) = oneshot::channel();
        self.tasks.spawn(async move {
            let _entered = entered;
            close.run(&done, sender).await;
        });
        match receiver.await {
            Ok(Ok(answer)) => Ok(Box::new(answer)),
            Ok(Err(Failed::Denied(denial))) => Err(denial),
            Ok(Err(Failed::Facilitator(error))) => Err(context.unsettled(payer, error)),
            Err(_) => Err(Denial::ours("a refund ended without an answer")),
        }
    }

    /// A channel that its payer is closing already: the close is reported as it is seen (section 3).
    fn observed(&self, context: &Context, terms: &Terms, on_chain: OnChain) -> SettlementResponse {
        let charged = self.ledger.channel(&terms.id).map(|record| record.charged);
        let state = ChannelState {
            channel_id: terms.id,
            balance: on_chain.deposit,
            total_claimed: on_chain.claimed,
            withdraw_requested_at: on_chain.closing_since,
            charged_cumulative_amount: charged,
        };
        settled(terms, context.network(), None, String::new(), &state)
    }
}

fn close_state(detail: &'static str) -> Denial {
    Denial::payment(Reason::BatchCloseState, detail)
}

fn unequal() -> Denial {
    close_state("the voucher is not what was charged; sign one over channelState.chargedCumulativeAmount")
}

/// A close that is under way.
struct Close {
    ledger: Arc<Ledger>,
    facilitator: Arc<dyn Facilitator>,
    clock: Arc<dyn Clock>,
    retry: super::Retry,
    network: Network,
    terms: Terms,
    voucher: Voucher,
}

enum Failed {
    Denied(Denial),
    Facilitator(FacilitatorError),
}

type Answer = oneshot::Sender<Result<SettlementResponse, Failed>>;

impl Close {
    async fn run(self, done: &Refunds, answer: Answer) {
        let guard = match self.ledger.begin_close(&self.terms.id).await {
            Ok(guard) => guard,
            // Gone, or closed by another hand, since it was looked at.
            Err(refused) => return send(answer, Err(Failed::Denied(refused.into()))),
        };
        let channel = guard.channel();
        if channel.charged != self.voucher.cumulative {
            return send(answer, Err(Failed::Denied(unequal().correcting(channel))));
        }
        // A close that lands after a crash of ours settles this total and no more, so nothing more may be charged from
        // here.
        if let Err(error) = guard.shut().await {
            return send(answer, Err(Failed::Denied(Denial::stopped(&error))));
        }
        let voucher = (!channel.charged.is_zero()).then(|| channel.voucher.unwrap_or(self.voucher));
        let request = CloseRequest { terms: self.terms.clone(), voucher, voucher_expires_at: 0 };
        match self.facilitator.close(request).await {
            Ok(closed) => {
                let response = self.closed(&channel, &closed);
                done.remember(self.terms.id, (channel.charged, response.clone()));
                self.finish(guard, self.final_state(closed.deposit, closed.claimed)).await;
                send(answer, Ok(response));
            }
            Err(FacilitatorError::Pending { transaction }) => {
                send(answer, Err(Failed::Facilitator(FacilitatorError::Pending { transaction })));
                self.follow(guard, &channel, transaction, done).await;
            }
            // It was not sent, or can no longer land.
            Err(error) => {
                self.reopen(guard).await;
                send(answer, Err(Failed::Facilitator(error)));
            }
        }
    }

    async fn reopen(&self, guard: CloseGuard) {
        if let Err(error) = guard.reopen().await {
            tracing::error!(channel = %self.terms.id, %error, "a channel whose refund failed takes no more payments");
        }
    }

    /// Watches a close that was sent until it has landed or can no longer land. The channel takes no payments
    /// meanwhile.
    async fn follow(self, guard: CloseGuard, channel: &ChannelRecord, transaction: Signature, done: &Refunds) {
        let sent = self.clock.now();
        let mut wait = self.retry.wait_min;
        loop {
            tokio::time::sleep(wait).await;
            wait = wait.saturating_mul(2).min(self.retry.wait_max);
            let (deposit, claimed) = match self.facilitator.read_channel(&self.terms).await {
                // The account is gone: the close applied the voucher and paid all out.
                Ok(None) => (channel.on_chain.deposit, channel.charged),
                Ok(Some(now)) => match now.status {
                    ChannelStatus::Sealed | ChannelStatus::Distributed => (now.deposit, now.claimed),
                    ChannelStatus::Open | ChannelStatus::Closing => {
                        if self.clock.now().since(sent) > self.retry.landing_max {
                            tracing::warn!(channel = %self.terms.id, %transaction, "a refund did not land");
                            return self.reopen(guard).await;
                        }
                        continue;
                    }
                },
                Err(error) => {
                    tracing::warn!(channel = %self.terms.id, %transaction, %error, "a refund cannot be followed");
                    continue;
                }
            };
            let returned = deposit.saturating_sub(claimed);
            let response = self.closed(channel, &SettledClose { transaction, returned, claimed, deposit });
            done.remember(self.terms.id, (channel.charged, response));
            return self.finish(guard, self.final_state(deposit, claimed)).await;
        }
    }

    async fn finish(&self, guard: CloseGuard, on_chain: OnChain) {
        if let Err(error) = guard.finish(on_chain).await {
            tracing::error!(channel = %self.terms.id, %error, "a closed channel could not be recorded");
        }
    }

    fn final_state(&self, deposit: Amount, claimed: Amount) -> OnChain {
        OnChain {
            status: ChannelStatus::Distributed,
            deposit,
            claimed,
            distributed: claimed,
            closing_since: 0,
            read_at: self.clock.now(),
        }
    }

    fn closed(&self, channel: &ChannelRecord, closed: &SettledClose) -> SettlementResponse {
        let state = ChannelState {
            channel_id: self.terms.id,
            balance: closed.deposit,
            total_claimed: closed.claimed,
            withdraw_requested_at: 0,
            charged_cumulative_amount: Some(channel.charged),
        };
        settled(&self.terms, &self.network, Some(closed.transaction), closed.returned.to_string(), &state)
    }
}

/// The client may be gone; then nobody needs the answer.
fn send(answer: Answer, result: Result<SettlementResponse, Failed>) {
    let _ = answer.send(result);
}

fn settled(
    terms: &Terms,
    network: &Network,
    transaction: Option<Signature>,
    amount: String,
    state: &ChannelState,
) -> SettlementResponse {
    let mut extra = Map::new();
    extra.insert("chargedAmount".to_owned(), Value::from("0"));
    if let Ok(state) = serde_json::to_value(state) {
        extra.insert("channelState".to_owned(), state);
    }
    SettlementResponse {
        success: true,
        error_reason: None,
        payer: Some(terms.payer.to_string()),
        transaction: transaction.map(|transaction| transaction.to_string()).unwrap_or_default(),
        network: network.clone(),
        amount: Some(amount),
        extra,
        extensions: Map::new(),
    }
}
