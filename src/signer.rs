//! The port to the threshold signer: structured requests in, one verified signature out.
//!
//! A signer never signs opaque bytes. It receives what is to be signed together with what that is meant to do, decodes
//! the transaction itself, compares, applies its own policy, and only then signs. Adapters: `signer/frost.rs` (Ed25519,
//! both shares in this process).

pub mod frost;
pub mod keystore;
pub mod rules;

use async_trait::async_trait;

use crate::scheme::svm::transaction::Transaction;
use crate::x402::key::Signature;
use crate::x402::{Key, Network};

/// What a signer is asked to sign, and what it must turn out to be.
#[derive(Clone, Debug)]
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
}

/// A setup transaction that a client makes and we pay the fee of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
        }
    }
}

/// Why there is no signature.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignerError {
    /// The signer's policy forbids it. Asking again will not help.
    #[error("the signer refuses by rule {rule}: {detail}")]
    Refused {
        /// The rule's stable name, such as `pay_to`.
        rule: &'static str,
        /// What was asked and what is allowed.
        detail: String,
    },
    /// Fewer than two shares can sign now.
    #[error("the signer has no quorum: {0}")]
    NoQuorum(String),
    /// The signature that came out does not verify. Never seen unless a share is corrupt.
    #[error("the signer produced a signature that does not verify: {0}")]
    Broken(String),
}

/// A threshold key that signs structured requests.
#[async_trait]
pub trait Signer: Send + Sync {
    /// The group's public key: fee payer, payee and receiver authorizer.
    fn public_key(&self) -> Key;

    /// Signs, or says which rule forbids it. The signature has been verified under [`Self::public_key`].
    async fn sign(&self, request: SigningRequest) -> Result<Signature, SignerError>;

    /// Whether a quorum is there now; the text says what is missing.
    fn health(&self) -> Result<(), String>;
}
