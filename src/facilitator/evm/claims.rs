//! What servers of scheme `batch-settlement` send: claims, payouts and completed refunds.
//!
//! None of them moves money to anybody but the receiver and the payer that the channels name, whoever sends it; so all
//! that is checked here is whether it would do anything. Source: `scheme_batch_settlement_evm.md`, "POST /settle" and
//! "Cooperative refund flow".

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use serde_json::{Map, Value};

use super::jobs::Job;
use super::wire::{self, Claims, Refund, refused};
use super::{CLAIM_BASE_GAS, Codes, Inner, Order, channel_state, unread, used};
use crate::amount::Amount;
use crate::chain::evm::abi::batch;
use crate::chain::evm::{Call, ChannelState};
use crate::facilitator::interface::{InterfaceError, Settled};
use crate::scheme::evm::eip712::{Domain, channel_id};
use crate::x402::Reason;
use crate::x402::evm::{B256, keccak256};
use crate::x402::wire::PaymentRequirements;

const CLAIM: Codes = Codes {
    simulation: Reason::EvmBatchClaimSimulation.as_str(),
    transaction: Reason::EvmBatchClaimTransaction.as_str(),
};
const PAYOUT: Codes = Codes {
    simulation: Reason::EvmBatchSettleSimulation.as_str(),
    transaction: Reason::EvmBatchSettleTransaction.as_str(),
};
const REFUND: Codes = Codes {
    simulation: Reason::EvmBatchRefundSimulation.as_str(),
    transaction: Reason::EvmBatchRefundTransaction.as_str(),
};

fn claim_call(claims: &Claims) -> Call {
    batch::claim_with_signature(&claims.rows, claims.authorizer_signature.as_slice())
}

impl Inner {
    pub(super) async fn settle_claims(&self, payload: &Value) -> Result<Settled, InterfaceError> {
        let claims = wire::claims(payload)?;
        let call = claim_call(&claims);
        let order = Order { job: Job::Claim(keccak256(&call.data)), call, codes: CLAIM };
        if !self.knows(&order)? && self.are_claimed(&claims).await? {
            // A restart forgot it, or another batch went further: there is nothing to send.
            return Ok(Settled { amount: Some(String::new()), ..Settled::default() });
        }
        let receipt = self.carry(&order).await?;
        let count = u64::try_from(claims.rows.len()).unwrap_or(u64::MAX).max(1);
        let each = receipt.gas_used.saturating_sub(CLAIM_BASE_GAS / 2) / count;
        self.gas_per_claim.fetch_max(each, Ordering::Relaxed);
        Ok(Settled { transaction: receipt.transaction.to_string(), amount: Some(String::new()), ..Settled::default() })
    }

    /// Whether nothing would come of these claims.
    async fn are_claimed(&self, claims: &Claims) -> Result<bool, InterfaceError> {
        let domain = Domain::batch_settlement(self.chain.chain_id());
        let mut wanted: HashMap<B256, Amount> = HashMap::new();
        for row in &claims.rows {
            let total = wanted.entry(channel_id(&domain, &row.config)).or_default();
            *total = row.total_claimed.max(*total);
        }
        let (ids, totals): (Vec<B256>, Vec<Amount>) = wanted.into_iter().unzip();
        let channels = self.chain.channels(&ids).await.map_err(|error| unread(&error))?.value;
        Ok(channels.iter().zip(totals).all(|(channel, total)| channel.total_claimed >= total))
    }

    pub(super) async fn pay_out(&self, payload: &Value) -> Result<Settled, InterfaceError> {
        let wire::Payout { receiver, token } = wire::payout(payload)?;
        let job = Job::Payout { receiver, token };
        let order = Order { job, call: batch::settle(receiver, token), codes: PAYOUT };
        if !self.knows(&order)? {
            let state = self.chain.receiver(receiver, token).await.map_err(|error| unread(&error))?.value;
            if state.total_claimed <= state.total_settled {
                let detail = format!("all that was claimed for {receiver} is paid out");
                return Err(refused(Reason::EvmBatchNothingToSettle.as_str(), detail));
            }
        }
        let receipt = self.carry(&order).await?;
        let amount = batch::settled(&receipt, receiver, token).unwrap_or_default();
        Ok(Settled {
            transaction: receipt.transaction.to_string(),
            amount: Some(amount.to_string()),
            ..Settled::default()
        })
    }

    pub(super) async fn settle_refund(
        &self,
        payload: &Value,
        requirements: &PaymentRequirements,
    ) -> Result<Settled, InterfaceError> {
        let refund = wire::refund(payload)?;
        let Refund { config, amount, nonce, .. } = &refund;
        let token = requirements.asset.parse().ok();
        if token != Some(config.token) {
            let detail = "channelConfig.token is not the requirements' asset";
            return Err(refused(Reason::EvmBatchTokenMismatch.as_str(), detail));
        }
        let id = channel_id(&Domain::batch_settlement(self.chain.chain_id()), config);
        let mut call = batch::refund_with_signature(config, *amount, *nonce, refund.signature.as_slice());
        if let Some(claims) = &refund.claims {
            call = batch::together(vec![claim_call(claims), call]);
        }
        let order = Order { job: Job::Refund { channel: id, nonce: *nonce }, call, codes: REFUND };
        if !self.knows(&order)? {
            let channel = self.channel(&id).await.map_err(|error| unread(&error))?;
            if channel.refund_nonce > *nonce {
                return Err(used("the refund's nonce"));
            }
            if refundable(&channel, &refund).is_zero() {
                let detail = "nothing is left that is not claimed";
                return Err(refused(Reason::EvmBatchRefundNoBalance.as_str(), detail));
            }
        }
        let receipt = self.carry(&order).await?;
        let channel = self.channel_after(&id, &receipt).await?;
        let returned = batch::refunded(&receipt, &id).unwrap_or_default();
        let state = Value::Object(channel_state(&id, &channel));
        Ok(Settled {
            transaction: receipt.transaction.to_string(),
            payer: Some(config.payer.to_string()),
            amount: Some(returned.to_string()),
            extra: Map::from_iter([("channelState".to_owned(), state)]),
        })
    }
}

/// What is left of a channel once the refund's own claims are made.
fn refundable(channel: &ChannelState, refund: &Refund) -> Amount {
    let rows = refund.claims.as_ref().map_or(&[][..], |claims| &claims.rows);
    let of_channel = rows.iter().filter(|row| row.config == refund.config);
    let claimed = of_channel.map(|row| row.total_claimed).max().unwrap_or_default();
    channel.balance.saturating_sub(claimed.max(channel.total_claimed))
}
