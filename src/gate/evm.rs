//! The flows of the schemes on EVM networks.
//!
//! Owns what they have in common: a network's facilitator, and what it tells of channels. Promises that a settlement is
//! asked for after the upstream has answered, and that an answer is delivered where it is known to have been made and
//! nowhere else. What is not known to have happened is looked for: a deposit or a refund in its channel, and a payment
//! by an authorization, which leaves no trace that a facilitator could show, by asking for the very same again
//! (`evm/once.rs`). Source: `scheme_batch_settlement_evm.md`, `scheme_exact_evm.md`, `scheme_upto_evm.md`.

mod batch;
mod once;
mod refund;
pub(super) mod state;

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::{Map, Value};
use tokio::sync::Semaphore;

pub(super) use self::batch::Hold;
pub(super) use self::once::OnceHold;
use super::challenge::PreparedOffer;
use super::recent::Recent;
use super::refusal::Denial;
use super::{Context, RECENT_MAX, SETUP_TTL};
use crate::facilitator::authorizer::ReceiverAuthorizer;
use crate::facilitator::interface::{InterfaceError, Kind, Payment, Supported, X402Facilitator};
use crate::ledger::Ledger;
use crate::ledger::channel::Evm;
use crate::scheme::{exact_evm, upto_evm};
use crate::x402::evm::{Address, B256};
use crate::x402::v1::{self, PaymentPayloadV1, PaymentRequirementsV1};
use crate::x402::wire::{PaymentPayload, SettlementResponse, X402_VERSION};
use crate::x402::{Network, Reason};

/// What payments on one EVM network go through.
#[derive(Clone)]
pub struct EvmNetwork {
    /// Verifies and settles.
    pub facilitator: Arc<dyn X402Facilitator>,
    /// Signs refunds.
    pub authorizer: Arc<dyn ReceiverAuthorizer>,
    /// What else the facilitator serves.
    pub served: Served,
}

/// What a facilitator serves on one network beyond `batch-settlement` and `exact` of version 2, which a route that
/// offers them takes for granted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// Who settles `upto`, which is part of what payers sign; without it no route offers `upto` there.
    pub upto_facilitator: Option<Address>,
    /// Whether it takes `exact` of version 1; without it clients of that version are offered nothing there.
    pub exact_v1: bool,
}

impl Served {
    /// What a facilitator says that it serves on `network`.
    #[must_use]
    pub fn of(supported: &Supported, network: &Network) -> Self {
        let upto = |kind: &&Kind| {
            kind.x402_version == X402_VERSION && kind.scheme == upto_evm::SCHEME && kind.network == network.as_str()
        };
        let address = |kind: &Kind| kind.extra.get("facilitatorAddress")?.as_str()?.parse().ok();
        let exact_v1 = |kind: &Kind| {
            kind.x402_version == v1::X402_VERSION
                && kind.scheme == exact_evm::SCHEME
                && Network::of_short_name(&kind.network).as_ref() == Some(network)
        };
        Self {
            upto_facilitator: supported.kinds.iter().filter(upto).find_map(address),
            exact_v1: supported.kinds.iter().any(exact_v1),
        }
    }
}

/// Everything that payments on EVM networks need.
pub struct EvmSide {
    /// The balances.
    pub ledger: Arc<Ledger<Evm>>,
    /// The networks that routes are paid on.
    pub networks: HashMap<Network, EvmNetwork>,
}

/// The gate's own part of it.
pub(super) struct EvmGate {
    pub(super) ledger: Arc<Ledger<Evm>>,
    networks: HashMap<Network, EvmNetwork>,
    /// Channels that a deposit or a refund is in flight for, and that are being read.
    settling: Arc<Recent<B256>>,
    reading: Arc<Recent<B256>>,
    refunds: Arc<refund::Refunds>,
    /// Authorizations that pay once: those in flight, and those that were lately delivered for.
    once: Arc<Recent<once::Nonce>>,
    once_open: Arc<Semaphore>,
}

impl EvmGate {
    pub(super) fn new(side: EvmSide, once_open_max: usize) -> Self {
        let EvmSide { ledger, networks } = side;
        Self {
            ledger,
            networks,
            settling: Recent::new(SETUP_TTL, RECENT_MAX),
            reading: Recent::new(SETUP_TTL, RECENT_MAX),
            refunds: Arc::default(),
            once: Recent::new(SETUP_TTL, RECENT_MAX),
            once_open: Arc::new(Semaphore::new(once_open_max)),
        }
    }

    /// What an offer's payments go through.
    fn network(&self, offer: &PreparedOffer) -> Result<&EvmNetwork, Denial> {
        let network = &offer.requirements.network;
        self.networks.get(network).ok_or_else(|| {
            Denial::ours(format!("no facilitator is configured for {network}; check `network` and `facilitator`"))
        })
    }
}

/// How often a settlement whose fate is unknown is looked after before the client is told so.
const LOOKS: u32 = 5;

/// A payment as a facilitator is asked about it: all that the client sent, and what we offered.
pub(super) fn asked(context: &Context, payment: &PaymentPayload) -> Result<Payment, Denial> {
    let written = |what: serde_json::Result<Value>| what.map_err(Denial::ours);
    Ok(Payment {
        x402_version: X402_VERSION,
        payload: written(serde_json::to_value(payment))?,
        requirements: written(serde_json::to_value(&context.offer.requirements))?,
    })
}

/// The same of a payment in version 1.
pub(super) fn asked_v1(payment: &PaymentPayloadV1, requirements: &PaymentRequirementsV1) -> Result<Payment, Denial> {
    let written = |what: serde_json::Result<Value>| what.map_err(Denial::ours);
    Ok(Payment {
        x402_version: v1::X402_VERSION,
        payload: written(serde_json::to_value(payment))?,
        requirements: written(serde_json::to_value(requirements))?,
    })
}

impl From<InterfaceError> for Denial {
    fn from(error: InterfaceError) -> Self {
        match error {
            InterfaceError::Refused { reason, detail } => match Reason::parse(&reason) {
                Some(reason) => {
                    Self::payment(reason, detail.unwrap_or_else(|| "the facilitator refuses the payment".to_owned()))
                }
                // A code that we do not know is still the client's to read.
                None => Self::payment(Reason::UnexpectedVerifyError, format!("the facilitator refuses: {reason}")),
            },
            InterfaceError::Unavailable(why) => {
                tracing::warn!(%why, "the facilitator is unavailable");
                Self::unavailable()
            }
            InterfaceError::Unknown { transaction, detail } => {
                tracing::warn!(?transaction, %detail, "it is not known whether a payment was settled");
                Self::pending(transaction.as_deref())
            }
        }
    }
}

impl Context {
    /// A settlement on an EVM network that the facilitator did not bring about.
    fn not_settled(&self, payer: Address, error: InterfaceError) -> Denial {
        let transaction = error.transaction().map(str::to_owned);
        let denial = Denial::from(error);
        let failed = self.evm_failed(payer, denial.reason, transaction);
        denial.settling(failed)
    }

    /// A settlement that failed, for the refusal that says so.
    fn evm_failed(&self, payer: Address, reason: Reason, transaction: Option<String>) -> Box<SettlementResponse> {
        Box::new(SettlementResponse {
            success: false,
            error_reason: Some(reason.as_str().to_owned()),
            payer: Some(payer.to_string()),
            transaction: transaction.unwrap_or_default(),
            network: self.network().clone(),
            amount: None,
            extra: Map::new(),
            extensions: Map::new(),
        })
    }
}
