//! The receiver authorizer with our own threshold key behind it.
//!
//! Makes of a refund that is due the two requests that the signer knows, a claim of what was charged and the refund
//! itself, has the policy approve each, and hands back the signatures. Decides nothing by itself.
//!
//! Source: `scheme_batch_settlement_evm.md`, "Cooperative refund flow".

use std::sync::Arc;

use async_trait::async_trait;

use super::{ReceiverAuthorizer, Refund, RefundAuthorization};
use crate::amount::Amount;
use crate::facilitator::FacilitatorError;
use crate::policy::{Deployment, EvmClaim, EvmPolicy, EvmRefund, EvmRequest};
use crate::scheme::evm::contracts::BATCH_SETTLEMENT;
use crate::signer::{EvmSigner, SignerError};
use crate::x402::Reason;
use crate::x402::evm::EvmSignature;

/// Signs refunds with a threshold key, within a policy.
pub struct ThresholdAuthorizer {
    signer: Arc<dyn EvmSigner>,
    policy: Arc<EvmPolicy>,
}

impl ThresholdAuthorizer {
    /// An authorizer for the channels whose `receiverAuthorizer` is the signer's address.
    #[must_use]
    pub fn new(signer: Arc<dyn EvmSigner>, policy: Arc<EvmPolicy>) -> Self {
        Self { signer, policy }
    }

    async fn sign(&self, request: EvmRequest, moving: Amount) -> Result<EvmSignature, FacilitatorError> {
        let approved = self.policy.approve(request, moving).map_err(|error| refused(error.to_string()))?;
        self.signer.sign(approved).await.map_err(|error| match error {
            SignerError::Refused { .. } => refused(error.to_string()),
            SignerError::NoQuorum(_) | SignerError::Broken(_) => FacilitatorError::Unavailable(error.to_string()),
        })
    }
}

#[async_trait]
impl ReceiverAuthorizer for ThresholdAuthorizer {
    async fn authorize_refund(&self, refund: &Refund) -> Result<RefundAuthorization, FacilitatorError> {
        let Refund { terms, on_chain, charged, voucher, amount } = refund;
        let contract = Deployment { chain_id: terms.seller.chain_id, address: BATCH_SETTLEMENT };
        let config = terms.config();
        let claim = match voucher {
            Some(voucher) => {
                let claims = vec![EvmClaim {
                    config,
                    max_claimable: voucher.cumulative,
                    total_claimed: *charged,
                    voucher: voucher.signature.clone(),
                }];
                let moving = charged.saturating_sub(on_chain.claimed);
                Some(self.sign(EvmRequest::ClaimBatch { contract, claims }, moving).await?.into())
            }
            None => None,
        };
        let nonce = on_chain.refund_nonce.into();
        let refund = EvmRefund { config, nonce, amount: *amount, balance: on_chain.balance, total: *charged };
        let refund = self.sign(EvmRequest::Refund { contract, refund }, Amount::ZERO).await?.into();
        Ok(RefundAuthorization { claim, refund })
    }
}

fn refused(detail: String) -> FacilitatorError {
    FacilitatorError::Refused { reason: Reason::UnexpectedSettleError, detail }
}
