//! Payouts: one transfer of all that is claimed of a token.
//!
//! Whether something may be owed is told by what the ledger knows to be claimed: a claim of ours raises it, and so does a
//! refund, which claims what was charged by the way. It is owed until a payout was made and, where somebody can tell what
//! is not paid out, until that was seen. A payout sweeps what is there, so asking twice pays once. Nodes lag: that nothing
//! is found to pay out is believed when it was found a few times.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::EvmSettlement;
use super::carry::payment;
use super::report::{EvmBatchReport, EvmReport};
use super::wait::Vain;
use crate::amount::Amount;
use crate::clock::UnixMillis;
use crate::facilitator::interface::{InterfaceError, Settled};
use crate::ledger::channel::Evm;
use crate::ledger::channel::evm::{EvmBatch, EvmBatchKind};
use crate::ledger::store::{BatchState, GlanceOf};
use crate::scheme::evm::EvmSeller;
use crate::x402::Reason;
use crate::x402::evm::Address;

/// How often nothing has to be found to pay out before that is believed.
const EMPTY_LOOKS: u32 = 3;

/// How far a token is paid out.
#[derive(Clone, Debug, Default)]
pub(super) struct Payout {
    /// What was claimed of all channels when it was last found paid out; `None` in the beginning.
    done_at: Option<Amount>,
    /// How often in a row nothing was found.
    empty: u32,
    /// How often in a row it failed.
    attempts: u32,
    /// Not looked at again before then.
    pub(super) until: UnixMillis,
}

impl EvmSettlement {
    /// Pays out what is claimed and not paid out, each token by itself.
    pub(super) async fn pay_out(&self, report: &mut EvmReport) {
        let claimed = self.claimed();
        report.looks = report.looks.saturating_add(1);
        self.state.lock().paid_out_at = self.parts.clock.now();
        for seller in &self.options.sellers {
            let claimed = claimed.get(&seller.token).copied().unwrap_or(Amount::ZERO);
            let due = self.may_owe(seller.token, claimed) && self.may_look(seller.token);
            if !due || self.stopping() || self.is_held() {
                continue;
            }
            match self.parts.channels.unsettled(seller).await {
                Ok(Some(amount)) if amount.is_zero() => self.found_nothing(seller.token, claimed),
                // Where nobody can tell, a payout of nothing costs nothing if the facilitator simulates it, as it must.
                Ok(told) => match self.make_payout(seller).await {
                    Ok(batch) => report.batches.push(self.send_settle(batch, seller, claimed, told.is_some()).await),
                    Err(error) => self.hold(&error),
                },
                Err(error) => self.payout_failed(seller.token, &error.to_string()),
            }
        }
    }

    /// Finds out what became of a payout of an earlier round.
    pub(super) async fn follow_settle(&self, batch: EvmBatch) -> EvmBatchReport {
        let Some(seller) = self.seller(&batch) else {
            return self.dropped(batch, "no configured seller has its token".to_owned()).await;
        };
        let claimed = self.claimed().get(&seller.token).copied().unwrap_or(Amount::ZERO);
        match self.parts.channels.unsettled(&seller).await {
            Ok(Some(owed)) if owed.is_zero() => {
                let token = batch.token;
                let report = self.confirmed(batch, Amount::ZERO).await;
                self.found_nothing(token, claimed);
                report
            }
            Ok(_) if !self.may_ask(&batch) => {
                self.unknown(batch, "it was not answered for; it is asked for again".to_owned())
            }
            Ok(told) => self.send_settle(batch, &seller, claimed, told.is_some()).await,
            Err(error) => self.unknown(batch, error.to_string()),
        }
    }

    /// Whether it was long enough ago that anything was paid out to do so though there is more to claim.
    pub(super) fn may_pay_out_between(&self) -> bool {
        let now = self.parts.clock.now();
        now.since(self.state.lock().paid_out_at) >= self.options.tick
    }

    /// Of how many tokens something may be claimed and not paid out.
    pub(super) fn unpaid(&self, claimed: &HashMap<Address, Amount>) -> usize {
        let claimed = |token| claimed.get(token).copied().unwrap_or(Amount::ZERO);
        self.options.sellers.iter().filter(|seller| self.may_owe(seller.token, claimed(&seller.token))).count()
    }

    /// Whether something may not be paid out of a token of which this much is claimed.
    fn may_owe(&self, token: Address, claimed: Amount) -> bool {
        self.state.lock().payouts.get(&token).and_then(|payout| payout.done_at) != Some(claimed)
    }

    /// Whether it is time to look after a token that is not known to be paid out; none is in the beginning, as a crash
    /// may have come between a claim and its payout.
    pub(super) fn payout_is_due(&self) -> bool {
        let now = self.parts.clock.now();
        let state = self.state.lock();
        let due = |payout: &Payout| payout.done_at.is_none() && payout.until <= now;
        self.options.sellers.iter().any(|seller| state.payouts.get(&seller.token).is_none_or(due))
    }

    fn may_look(&self, token: Address) -> bool {
        let now = self.parts.clock.now();
        self.state.lock().payouts.get(&token).is_none_or(|payout| payout.until <= now)
    }

    /// All that is known to be claimed of our channels, by token. Looks through the ledger.
    fn claimed(&self) -> HashMap<Address, Amount> {
        let mut claimed = HashMap::new();
        self.parts.ledger.glance(
            |channel| {
                self.add_claimed(channel, &mut claimed);
                None
            },
            |()| (),
        );
        claimed
    }

    /// Adds what is claimed of a channel of ours to its token's sum.
    pub(super) fn add_claimed(&self, channel: GlanceOf<'_, Evm>, claimed: &mut HashMap<Address, Amount>) {
        if let Some(seller) = self.seller_of(channel) {
            let sum = claimed.entry(seller.token).or_insert(Amount::ZERO);
            *sum = sum.saturating_add(channel.on_chain.claimed);
        }
    }

    async fn make_payout(&self, seller: &EvmSeller) -> Result<EvmBatch, String> {
        let batch = EvmBatch {
            id: self.parts.ledger.next_batch(),
            kind: EvmBatchKind::Settle,
            network: seller.network.clone(),
            token: seller.token,
            lines: Vec::new(),
            request: settle_request(seller).to_string(),
            transaction: None,
            state: BatchState::Signed,
            created_at: self.parts.clock.now(),
        };
        self.parts.ledger.journal_batch(batch.clone()).await.map_err(|error| error.to_string())?;
        Ok(batch)
    }

    /// Asks for a payout, when this much is claimed; `seen` where somebody can tell afterwards what is not paid out.
    async fn send_settle(
        &self,
        mut batch: EvmBatch,
        seller: &EvmSeller,
        claimed: Amount,
        seen: bool,
    ) -> EvmBatchReport {
        let token = batch.token;
        let payload = match serde_json::from_str(&batch.request) {
            Ok(payload) => payload,
            Err(error) => return self.dropped(batch, format!("its journal entry: {error}")).await,
        };
        match self.parts.facilitator.settle(&payment(seller, payload)).await {
            Ok(settled) => {
                let told = paid_out(&settled);
                self.name(&mut batch, &settled.transaction).await;
                let report = self.confirmed(batch, told.unwrap_or(Amount::ZERO)).await;
                if told.is_some_and(Amount::is_zero) {
                    self.told_nothing(token, claimed, seen);
                } else {
                    self.paid(token, claimed, seen);
                }
                report
            }
            Err(InterfaceError::Refused { reason, .. }) if reason == Reason::EvmBatchNothingToSettle.as_str() => {
                let report = self.confirmed(batch, Amount::ZERO).await;
                self.told_nothing(token, claimed, seen);
                report
            }
            Err(error @ InterfaceError::Refused { .. }) => self.dropped(batch, error.to_string()).await,
            Err(error) => {
                let mut how = Vain::NotSent;
                if let InterfaceError::Unknown { transaction, .. } = &error {
                    how = Vain::Unanswered;
                    self.name(&mut batch, transaction.as_deref().unwrap_or_default()).await;
                }
                let why = error.to_string();
                if self.asked_in_vain(&batch, how) {
                    return self.dropped(batch, why).await;
                }
                self.hold(&why);
                self.unknown(batch, why)
            }
        }
    }

    /// Something was claimed: there is something to pay out now, unless that fails for reasons of its own.
    pub(super) fn claimed_more(&self, token: Address) {
        let mut state = self.state.lock();
        let payout = state.payouts.entry(token).or_default();
        (payout.done_at, payout.empty) = (None, 0);
        if payout.attempts == 0 {
            payout.until = UnixMillis(0);
        }
    }

    /// A payout was told. Where it can be looked up, that is done after a while.
    fn paid(&self, token: Address, claimed: Amount, seen: bool) {
        let until = self.parts.clock.now().plus(self.options.backoff.longest_urgent);
        let mut state = self.state.lock();
        let payout = state.payouts.entry(token).or_default();
        *payout = if seen {
            Payout { done_at: None, empty: EMPTY_LOOKS.saturating_sub(1), attempts: 0, until }
        } else {
            Payout { done_at: Some(claimed), ..Payout::default() }
        };
    }

    /// A facilitator says that there was nothing to pay out; `seen` where the chain says that there is something.
    fn told_nothing(&self, token: Address, claimed: Amount, seen: bool) {
        if seen {
            self.payout_failed(token, "the facilitator finds nothing to pay out where the chain has something");
        } else {
            self.found_nothing(token, claimed);
        }
    }

    /// There was nothing to pay out.
    fn found_nothing(&self, token: Address, claimed: Amount) {
        let now = self.parts.clock.now();
        let backoff = &self.options.backoff;
        let mut state = self.state.lock();
        let payout = state.payouts.entry(token).or_default();
        payout.empty = payout.empty.saturating_add(1);
        payout.until = now.plus(backoff.delay(&token.word().0, payout.empty, backoff.longest_urgent));
        if payout.empty >= EMPTY_LOOKS {
            *payout = Payout { done_at: Some(claimed), ..Payout::default() };
        }
    }

    /// A payout failed: its token waits, longer each time. What is claimed is safe in the contract.
    pub(super) fn payout_failed(&self, token: Address, error: &str) {
        let now = self.parts.clock.now();
        let backoff = &self.options.backoff;
        let mut state = self.state.lock();
        let payout = state.payouts.entry(token).or_default();
        payout.done_at = None;
        payout.attempts = payout.attempts.saturating_add(1);
        let delay = backoff.delay(&token.word().0, payout.attempts, backoff.longest);
        payout.until = now.plus(delay);
        state.last_error = Some(format!("payout of {token}: {error}"));
        tracing::error!(%token, error, wait = ?delay, "what is claimed cannot be paid out; it is tried again");
    }
}

/// "POST /settle", `type: "settle"`.
fn settle_request(seller: &EvmSeller) -> Value {
    json!({ "type": "settle", "receiver": seller.pay_to, "token": seller.token })
}

/// What a payout moved, where it is told.
fn paid_out(settled: &Settled) -> Option<Amount> {
    settled.amount.as_deref().and_then(|text| text.parse().ok())
}
