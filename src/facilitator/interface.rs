//! The x402 facilitator interface as a port: `supported`, `verify` and `settle`, whoever answers.
//!
//! Adapters: `facilitator/http.rs` asks a facilitator elsewhere, `facilitator/evm.rs` is our own in this process. Both
//! take the same JSON objects, so what one of them accepts can be handed to the other. Payloads and requirements are
//! kept as they are on the wire, because a facilitator checks what the client signed and not what we made of it; both
//! protocol versions go this way. Source: `x402-specification-v2.md`, section 7; version 1, section 7 likewise.

use async_trait::async_trait;
use serde_json::{Map, Value};

use crate::x402::Network;

/// What a facilitator is asked about: a payment and the terms that it is meant to fulfil.
#[derive(Clone, Debug, PartialEq)]
pub struct Payment {
    /// The protocol version that both objects are written in: 1 or 2.
    pub x402_version: u32,
    /// The whole `PaymentPayload`.
    pub payload: Value,
    /// The `PaymentRequirements`.
    pub requirements: Value,
}

/// A payment that would settle now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verified {
    /// Who pays, as the facilitator writes it.
    pub payer: Option<String>,
    /// What the scheme adds: of `batch-settlement`, the channel on chain.
    pub extra: Map<String, Value>,
}

/// A payment, or a step of settlement, that the chain has confirmed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settled {
    /// The transaction's hash; empty where there was nothing to send.
    pub transaction: String,
    /// Who paid.
    pub payer: Option<String>,
    /// What moved, in atomic units; empty or absent where nothing did.
    pub amount: Option<String>,
    /// What the scheme adds: of `batch-settlement`, `channelState`.
    pub extra: Map<String, Value>,
}

/// One kind of payment that a facilitator serves.
#[derive(Clone, Debug, PartialEq)]
pub struct Kind {
    /// 1 or 2.
    pub x402_version: u32,
    /// The scheme's name.
    pub scheme: String,
    /// Where; version 1 has names of its own, such as `base-sepolia`.
    pub network: String,
    /// What the scheme adds.
    pub extra: Map<String, Value>,
}

/// All that a facilitator serves.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Supported {
    /// The kinds of payment.
    pub kinds: Vec<Kind>,
}

impl Supported {
    /// Whether version 2 of a scheme is served on a network.
    #[must_use]
    pub fn serves(&self, scheme: &str, network: &Network) -> bool {
        self.kinds
            .iter()
            .any(|kind| kind.x402_version == 2 && kind.scheme == scheme && kind.network == network.as_str())
    }
}

/// Why a facilitator did not do it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InterfaceError {
    /// It is refused, in the protocol's words. Nothing is on chain, or what was sent reverted and changed nothing.
    #[error("the facilitator refuses: {reason}{}", .detail.as_deref().map(|text| format!(" ({text})")).unwrap_or_default())]
    Refused {
        /// The protocol's code, as the facilitator wrote it.
        reason: String,
        /// What it says to people, shortened.
        detail: Option<String>,
    },
    /// It cannot be asked. Nothing was sent.
    #[error("no facilitator can be asked: {0}")]
    Unavailable(String),
    /// It was asked to settle, and whether it did is not known. The very same may be asked for again, since the chain
    /// takes it once; anything else that depends on the outcome has to wait until it is known.
    #[error("it is not known whether the facilitator settled{}: {detail}", .transaction.as_deref().map(|hash| format!(" by transaction {hash}")).unwrap_or_default())]
    Unknown {
        /// The transaction, where the facilitator named it.
        transaction: Option<String>,
        /// What happened.
        detail: String,
    },
}

impl InterfaceError {
    /// The transaction that may have settled, where one was named.
    #[must_use]
    pub fn transaction(&self) -> Option<&str> {
        match self {
            Self::Unknown { transaction, .. } => transaction.as_deref(),
            Self::Refused { .. } | Self::Unavailable(_) => None,
        }
    }
}

/// Whoever verifies and settles payments.
#[async_trait]
pub trait X402Facilitator: Send + Sync {
    /// What it serves.
    ///
    /// # Errors
    /// [`InterfaceError::Unavailable`].
    async fn supported(&self) -> Result<Supported, InterfaceError>;

    /// Whether a payment would settle now. Changes nothing.
    ///
    /// # Errors
    /// [`InterfaceError::Refused`] or [`InterfaceError::Unavailable`].
    async fn verify(&self, payment: &Payment) -> Result<Verified, InterfaceError>;

    /// Settles a payment, or takes a step of settlement, and waits until the chain has confirmed it. Asked twice for
    /// the same, it does it once: nonces and cumulative totals see to that on chain.
    ///
    /// # Errors
    /// [`InterfaceError`]; after [`InterfaceError::Unknown`] it may still come to pass.
    async fn settle(&self, payment: &Payment) -> Result<Settled, InterfaceError>;
}
