//! How preparing, sending and waiting end.

use crate::chain::evm::{EvmError, Receipt, Refusal};

/// Why a transaction cannot be prepared. Nothing was sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrepareError {
    /// The chain gave no answer.
    #[error(transparent)]
    Chain(#[from] EvmError),
    /// The base fee is above the operator's cap.
    #[error("gas costs {base_fee} wei, more than the cap of {cap}: wait, or raise the cap")]
    FeeAboveCap {
        /// Wei per gas.
        base_fee: u128,
        /// Wei per gas.
        cap: u128,
    },
    /// It would need more gas than a transaction may use.
    #[error("the transaction needs {gas} gas, more than the limit of {limit}")]
    GasAboveLimit {
        /// What it needs.
        gas: u64,
        /// What it may use.
        limit: u64,
    },
    /// Too many transactions are unmined.
    #[error("{0} transactions are not mined yet; try again when they are")]
    Busy(usize),
}

/// No node took the transaction: it has not run and never will.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct NotSent {
    /// Why.
    pub refusal: Refusal,
    /// What the node said, or what to do.
    pub text: String,
}

impl NotSent {
    /// Whether the same call, prepared again, may be taken: somebody else used the nonce.
    #[must_use]
    pub const fn is_nonce(&self) -> bool {
        matches!(self.refusal, Refusal::NonceTooLow | Refusal::Underpriced)
    }
}

/// How waiting for a transaction ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It ran and did what it was sent for, and is as deep as wanted.
    Confirmed(Receipt),
    /// It ran and reverted, and is as deep as wanted. It changed nothing but its fee.
    Reverted(Receipt),
    /// Something else used its nonce: it has not run and never will.
    Superseded,
    /// None of these in time. It may still run.
    Unknown,
}
