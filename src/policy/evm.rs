//! What a signer can be asked on EVM networks, and the proxy's own rules for it.
//!
//! The receiver authorizer signs two structures, a batch of claims and a refund. A request holds all that they are made
//! of, and the channels' whole terms with the payers' signatures, so that a signer can derive every id and digest itself.
//! As on Solana, [`EvmPolicy`] compares a request with the books, and the signer judges it again.
//!
//! Source: `scheme_batch_settlement_evm.md`, "Claim and settle" and "Refund and withdrawal".

use serde::{Deserialize, Serialize};

use super::{Approved, PolicyError};
use crate::amount::Amount;
use crate::audit::checkpoint::Checkpoint;
use crate::scheme::evm::eip712::ChannelConfig;
use crate::x402::evm::{Address, AnySignature, U256};

/// What a receiver authorizer is asked to sign.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum EvmRequest {
    /// Claims from channels, for `claimWithSignature`.
    ClaimBatch {
        /// Where the signature is good.
        contract: Deployment,
        /// The claims, in the order in which they are signed.
        claims: Vec<EvmClaim>,
    },
    /// Money back to a payer, for `refundWithSignature`.
    Refund {
        /// Where the signature is good.
        contract: Deployment,
        /// What is refunded.
        refund: EvmRefund,
    },
    /// The head of our own audit record. Its digest can be nothing that moves money.
    AuditCheckpoint(Checkpoint),
}

/// The settlement contract on one chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deployment {
    /// The chain.
    pub chain_id: u64,
    /// The contract.
    pub address: Address,
}

/// One channel's part of a batch of claims.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvmClaim {
    /// The channel's terms, from which its id is derived.
    pub config: ChannelConfig,
    /// What the payer's voucher allows in all.
    pub max_claimable: Amount,
    /// What was charged in all, and shall have been claimed after this.
    pub total_claimed: Amount,
    /// The payer's signature over the voucher.
    pub voucher: AnySignature,
}

/// Money back to a payer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvmRefund {
    /// The channel's terms, from which its id is derived.
    pub config: ChannelConfig,
    /// The channel's refund nonce on chain; a signature is good for one.
    pub nonce: U256,
    /// How much goes back.
    pub amount: Amount,
    /// What the channel holds by the chain: deposits less withdrawals and refunds.
    pub balance: Amount,
    /// What of that is ours, claimed already or charged and to be claimed. It stays.
    pub total: Amount,
}

impl EvmRequest {
    /// The request's kind, for metrics, logs and policy.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::ClaimBatch { .. } => "claim_batch",
            Self::Refund { .. } => "refund",
            Self::AuditCheckpoint(_) => "audit_checkpoint",
        }
    }

    fn configs(&self) -> impl Iterator<Item = &ChannelConfig> {
        let (claims, refund) = match self {
            Self::ClaimBatch { claims, .. } => (claims.as_slice(), None),
            Self::Refund { refund, .. } => (&[][..], Some(&refund.config)),
            Self::AuditCheckpoint(_) => (&[][..], None),
        };
        claims.iter().map(|claim| &claim.config).chain(refund)
    }
}

/// What may be asked for on EVM networks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EvmPolicy {
    /// Who may be paid.
    pub pay_to: Vec<Address>,
    /// The most that one request may newly move by the ledger's books.
    pub claim_cap: Amount,
}

impl EvmPolicy {
    /// A policy that has no limits but whom it pays.
    #[must_use]
    pub const fn unlimited(pay_to: Vec<Address>) -> Self {
        Self { pay_to, claim_cap: Amount::new(u128::MAX) }
    }

    /// Approves a request that newly moves `moving` by the ledger's books: for claims what they claim above the chain's
    /// watermarks, for a refund nothing.
    ///
    /// # Errors
    /// [`PolicyError`] with the rule that forbids it.
    pub fn approve(&self, request: EvmRequest, moving: Amount) -> Result<Approved<EvmRequest>, PolicyError> {
        if moving > self.claim_cap {
            return Err(PolicyError::ClaimCap { moving, cap: self.claim_cap });
        }
        let named = match &request {
            EvmRequest::ClaimBatch { claims, .. } => {
                claims.iter().fold(Amount::ZERO, |sum, claim| sum.saturating_add(claim.total_claimed))
            }
            EvmRequest::Refund { .. } | EvmRequest::AuditCheckpoint(_) => Amount::ZERO,
        };
        if moving > named {
            return Err(PolicyError::Books { moving, named });
        }
        if let Some(config) = request.configs().find(|config| !self.pay_to.contains(&config.receiver)) {
            return Err(PolicyError::Receiver(config.receiver));
        }
        Ok(Approved(request))
    }
}
