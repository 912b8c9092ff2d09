//! The port through which the state of EVM channels is read, and two ways to do it.
//!
//! Where a chain endpoint is configured, many channels are read at one block ([`ByChain`]). A facilitator tells a
//! channel's state ([`ByFacilitator`]) when it verifies a voucher on it (`scheme_batch_settlement_evm.md`, "POST
//! /verify"), so without an endpoint each channel is a question of its own, and only channels with a voucher can be asked
//! about. A refusal tells little: that all of a voucher is claimed, or that a channel is empty. How much is left where a
//! payer took a part of it out, so that the voucher is above what is there, cannot be found out in this way.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::json;

use super::interface::{InterfaceError, Payment, X402Facilitator};
use crate::amount::Amount;
use crate::chain::evm::{ChannelState, EvmChain};
use crate::clock::{Clock, UnixMillis};
use crate::ledger::channel::{ChainState, Evm, EvmOnChain};
use crate::ledger::store::RecordOf;
use crate::scheme::batch_settlement_evm::state::EvmChannelState;
use crate::scheme::batch_settlement_evm::{SCHEME, extra};
use crate::scheme::evm::EvmSeller;
use crate::x402::Reason;
use crate::x402::wire::X402_VERSION;

/// Reads channels.
#[async_trait]
pub trait EvmChannels: Send + Sync {
    /// The channels as they are now, in order; `None` for what cannot be told at the moment.
    ///
    /// # Errors
    /// [`InterfaceError::Unavailable`] where nobody answers.
    async fn read(&self, channels: &[RecordOf<Evm>]) -> Result<Vec<Option<EvmOnChain>>, InterfaceError>;

    /// What is claimed for the seller's receiver and token and not paid out yet; `None` where it cannot be told.
    ///
    /// # Errors
    /// As above.
    async fn unsettled(&self, seller: &EvmSeller) -> Result<Option<Amount>, InterfaceError>;
}

/// Reads channels by asking a facilitator to verify their last vouchers.
pub struct ByFacilitator {
    facilitator: Arc<dyn X402Facilitator>,
    clock: Arc<dyn Clock>,
}

impl ByFacilitator {
    /// A reader that asks this facilitator.
    #[must_use]
    pub fn new(facilitator: Arc<dyn X402Facilitator>, clock: Arc<dyn Clock>) -> Self {
        Self { facilitator, clock }
    }

    async fn ask(&self, record: &RecordOf<Evm>) -> Result<Option<EvmOnChain>, InterfaceError> {
        let Some(voucher) = &record.voucher else { return Ok(None) };
        let read_at = self.clock.now();
        match self.facilitator.verify(&question(record)).await {
            Ok(verified) => Ok(EvmChannelState::read(&verified.extra, &record.terms, read_at)),
            // Nothing is claimed beyond what was charged, and that is within the voucher: so all of it is claimed. What else
            // is known is as old as it was.
            Err(InterfaceError::Refused { reason, .. })
                if reason == Reason::EvmBatchCumulativeBelowClaimed.as_str()
                    && voucher.cumulative == record.charged =>
            {
                Ok(Some(EvmOnChain { claimed: voucher.cumulative, ..record.on_chain }))
            }
            Err(InterfaceError::Refused { reason, .. })
                if reason == Reason::EvmBatchChannelNotFound.as_str() && may_be_empty(record, read_at) =>
            {
                let none = EvmOnChain::none(read_at);
                Ok(Some(EvmOnChain { refund_nonce: record.on_chain.refund_nonce, ..none }))
            }
            Err(InterfaceError::Refused { .. } | InterfaceError::Unknown { .. }) => Ok(None),
            Err(error @ InterfaceError::Unavailable(_)) => Err(error),
        }
    }
}

#[async_trait]
impl EvmChannels for ByFacilitator {
    async fn read(&self, channels: &[RecordOf<Evm>]) -> Result<Vec<Option<EvmOnChain>>, InterfaceError> {
        let mut read = Vec::with_capacity(channels.len());
        for record in channels {
            match self.ask(record).await {
                Ok(told) => read.push(told),
                // What was told before counts, and the rest is not waited for one by one.
                Err(_) if read.iter().any(Option::is_some) => break,
                Err(error) => return Err(error),
            }
        }
        read.resize(channels.len(), None);
        Ok(read)
    }

    async fn unsettled(&self, _seller: &EvmSeller) -> Result<Option<Amount>, InterfaceError> {
        Ok(None)
    }
}

/// Whether a channel that we know can be without a balance: its payer had the time to take it out since it was last read,
/// and nothing of it was ever claimed, for that stays. Else whoever says so is behind.
fn may_be_empty(record: &RecordOf<Evm>, now: UnixMillis) -> bool {
    let before = &record.on_chain;
    let delay = Duration::from_secs(record.terms.seller.withdraw_delay);
    let withdrawn = before.is_withdrawing() && now.seconds() >= before.withdraw_ends_at;
    before.claimed.is_zero() && (withdrawn || now.since(before.read_at) >= delay)
}

/// Reads channels from the chain, many at one block.
pub struct ByChain {
    chain: Arc<dyn EvmChain>,
    clock: Arc<dyn Clock>,
}

impl ByChain {
    /// A reader of this chain.
    #[must_use]
    pub fn new(chain: Arc<dyn EvmChain>, clock: Arc<dyn Clock>) -> Self {
        Self { chain, clock }
    }
}

#[async_trait]
impl EvmChannels for ByChain {
    async fn read(&self, channels: &[RecordOf<Evm>]) -> Result<Vec<Option<EvmOnChain>>, InterfaceError> {
        let read_at = self.clock.now();
        let ids: Vec<_> = channels.iter().map(|record| record.terms.id).collect();
        let read = self.chain.channels(&ids).await.map_err(|error| InterfaceError::Unavailable(error.to_string()))?;
        let states = channels.iter().zip(&read.value);
        Ok(states.map(|(record, state)| on_chain(record, state, read.block, read_at)).collect())
    }

    async fn unsettled(&self, seller: &EvmSeller) -> Result<Option<Amount>, InterfaceError> {
        let read = self.chain.receiver(seller.pay_to, seller.token).await;
        let state = read.map_err(|error| InterfaceError::Unavailable(error.to_string()))?.value;
        Ok(Some(state.total_claimed.saturating_sub(state.total_settled)))
    }
}

/// A channel as the chain has it; `None` for one that no contract can have written.
fn on_chain(record: &RecordOf<Evm>, state: &ChannelState, block: u64, read_at: UnixMillis) -> Option<EvmOnChain> {
    let since = i64::try_from(state.withdraw_requested_at).unwrap_or(i64::MAX);
    let delay = i64::try_from(record.terms.seller.withdraw_delay).unwrap_or(i64::MAX);
    let read = EvmOnChain {
        balance: state.balance,
        claimed: state.total_claimed,
        withdrawal: state.withdraw_amount,
        withdraw_since: since,
        withdraw_ends_at: if since == 0 { 0 } else { since.saturating_add(delay) },
        refund_nonce: state.refund_nonce.to_u64()?,
        block,
        read_at,
    };
    Some(read).filter(EvmOnChain::plausible)
}

/// A voucher payment of nothing, on the channel's own terms.
fn question(record: &RecordOf<Evm>) -> Payment {
    let seller = &record.terms.seller;
    let requirements = json!({
        "scheme": SCHEME,
        "network": seller.network,
        "amount": "0",
        "asset": seller.token,
        "payTo": seller.pay_to,
        "maxTimeoutSeconds": 60,
        "extra": extra(seller, None),
    });
    let voucher = record.voucher.as_ref().map(|voucher| {
        json!({
            "channelId": record.terms.id,
            "maxClaimableAmount": voucher.cumulative,
            "signature": voucher.signature,
        })
    });
    let payload = json!({
        "x402Version": X402_VERSION,
        "accepted": requirements,
        "payload": { "type": "voucher", "channelConfig": record.terms.config(), "voucher": voucher },
    });
    Payment { x402_version: X402_VERSION, payload, requirements }
}
