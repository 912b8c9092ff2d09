//! What a signer can be asked: structured requests, each with what it must turn out to be.
//!
//! A request says what is meant; the transaction beside it is what would be signed. [`super::Policy`] compares it with
//! the books and approves it, the signer compares the two with each other and with its own rules.
//!
//! Its serde form is what a cosigner on another machine is sent (`signer/wire.rs`): a request that has members beside
//! those of its kind is refused.

use serde::{Deserialize, Serialize};

use crate::audit::checkpoint::Checkpoint;
use crate::scheme::svm::transaction::Transaction;
use crate::x402::{Key, Network};

/// What a signer is asked to sign, and what it must turn out to be.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum SigningRequest {
    /// Our fee payer's signature on a client's own `open`, `top_up` or `request_close`.
    Sponsor {
        /// Which of the three the transaction must be.
        setup: Setup,
        /// Signed by the payer already.
        transaction: Transaction,
    },
    /// A transaction of ours that only advances watermarks: Ed25519 and `settle` pairs.
    Claim {
        /// What it claims, in order.
        lines: Vec<ClaimLine>,
        /// The transaction, unsigned.
        transaction: Transaction,
    },
    /// A transaction of ours that pays what was claimed: `distribute` calls.
    Distribute {
        /// The channels it pays out, in order.
        channels: Vec<Key>,
        /// The transaction, unsigned.
        transaction: Transaction,
    },
    /// A transaction of ours that closes one channel: `settle_and_seal` with or without a voucher, then `distribute`.
    /// Also its later clean-up: `seal` and `distribute`, or `reclaim`.
    Close {
        /// The channel.
        channel: Key,
        /// The final voucher's cumulative amount, where one is applied.
        cumulative: Option<u64>,
        /// The transaction, unsigned.
        transaction: Transaction,
    },
    /// A voucher of ours over the charge of a metered request (scheme `upto`).
    Voucher {
        /// The channel.
        channel: Key,
        /// The charge.
        cumulative: u64,
        /// What the payer put in; the charge is never above it.
        deposit: u64,
        /// Unix seconds.
        expires_at: i64,
    },
    /// The receiver authorizer's consent to a cooperative close.
    CloseAuthorization {
        /// The network that the consent is for.
        network: Network,
        /// The channel.
        channel: Key,
        /// The final cumulative amount.
        cumulative: u64,
        /// Unix seconds; the consent ends before.
        valid_before: i64,
    },
    /// The head of our own audit record. Its message can be nothing that moves money.
    AuditCheckpoint(Checkpoint),
}

/// A setup transaction that a client makes and we pay the fee of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Setup {
    /// A new channel.
    Open {
        /// The most that may be deposited; the signer's own bound.
        deposit: u64,
    },
    /// More deposit.
    TopUp,
    /// The payer's forced close.
    RequestClose,
}

/// One channel's part of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClaimLine {
    /// The channel.
    pub channel: Key,
    /// The voucher's cumulative amount.
    pub cumulative: u64,
}

impl SigningRequest {
    /// The request's kind, for metrics, logs and policy.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Sponsor { setup: Setup::Open { .. }, .. } => "open",
            Self::Sponsor { setup: Setup::TopUp, .. } => "top_up",
            Self::Sponsor { setup: Setup::RequestClose, .. } => "request_close",
            Self::Claim { .. } => "claim",
            Self::Distribute { .. } => "distribute",
            Self::Close { .. } => "close",
            Self::Voucher { .. } => "voucher",
            Self::CloseAuthorization { .. } => "close_authorization",
            Self::AuditCheckpoint(_) => "audit_checkpoint",
        }
    }
}
