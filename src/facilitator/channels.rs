//! The port through which the state of EVM channels is read, and an adapter of it that needs no chain: it asks a
//! facilitator.
//!
//! Where a chain endpoint is configured, `facilitator/evm.rs` reads many channels at one block. A facilitator tells a
//! channel's state when it verifies a voucher on it (`scheme_batch_settlement_evm.md`, "POST /verify"), so without an
//! endpoint each channel is a question of its own, and only channels with a voucher can be asked about.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::json;

use super::interface::{InterfaceError, Payment, X402Facilitator};
use crate::amount::Amount;
use crate::clock::Clock;
use crate::ledger::channel::{Evm, EvmOnChain};
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
            // Nothing is claimed beyond what was charged, and that is within the voucher: so all of it is claimed.
            Err(InterfaceError::Refused { reason, .. })
                if reason == Reason::EvmBatchCumulativeBelowClaimed.as_str()
                    && voucher.cumulative == record.charged =>
            {
                Ok(Some(EvmOnChain { claimed: voucher.cumulative, block: 0, read_at, ..record.on_chain }))
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
            read.push(self.ask(record).await?);
        }
        Ok(read)
    }

    async fn unsettled(&self, _seller: &EvmSeller) -> Result<Option<Amount>, InterfaceError> {
        Ok(None)
    }
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
