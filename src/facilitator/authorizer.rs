//! The port to the receiver authorizer of EVM channels, for refunds: who signs what goes back to a payer.
//!
//! The gate decides that a refund is due and says which; whoever implements this decides whether it is signed. The key
//! stays behind it. Adapter: `facilitator/authorizer/threshold.rs`, our own key. Source:
//! `scheme_batch_settlement_evm.md`, "Cooperative refund flow".

pub mod threshold;

use async_trait::async_trait;

use super::FacilitatorError;
use crate::amount::Amount;
use crate::ledger::channel::{EvmOnChain, Voucher};
use crate::scheme::evm::EvmTerms;
use crate::x402::evm::AnySignature;

/// A refund that is due.
#[derive(Clone, Debug)]
pub struct Refund {
    /// The channel.
    pub terms: EvmTerms,
    /// The channel on chain; the refund is good for its nonce.
    pub on_chain: EvmOnChain,
    /// All that was charged; it is claimed first.
    pub charged: Amount,
    /// The voucher that allows that claim; `None` where nothing was charged beyond what is claimed.
    pub voucher: Option<Voucher<AnySignature>>,
    /// How much goes back: never more than the balance less all that was charged.
    pub amount: Amount,
}

/// The receiver authorizer's consent to a refund.
#[derive(Clone, Debug)]
pub struct RefundAuthorization {
    /// Over the claim, where there is one.
    pub claim: Option<AnySignature>,
    /// Over the refund.
    pub refund: AnySignature,
}

/// Signs refunds.
#[async_trait]
pub trait ReceiverAuthorizer: Send + Sync {
    /// Consents to a refund.
    ///
    /// # Errors
    /// [`FacilitatorError::Refused`] where a rule forbids it, [`FacilitatorError::Unavailable`] where there is no quorum.
    async fn authorize_refund(&self, refund: &Refund) -> Result<RefundAuthorization, FacilitatorError>;
}
