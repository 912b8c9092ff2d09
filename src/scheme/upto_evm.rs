//! Scheme `upto` on EVM networks: its terms and the checks of its payload that need no chain.
//!
//! Promises that a [`CheckedUpto`] lets the offered facilitator take at most the ceiling for the seller, in the offered
//! token, now and for a while, that no charge above the ceiling is settled, and says whose signature it has. Whether the
//! payer holds that much and lets Permit2 move it, whether the nonce was used before, and whether a contract accepts the
//! signature, is the facilitator's to find out. Source: `scheme_upto_evm.md` sections 1 and 4.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::evm::authorization::{EvmOffer, PaymentWitness, Permit2Payment};
use super::evm::contracts;
use super::evm::eip712::Witness;
use super::evm::signature::Signed;
use super::{Refused, ensure};
use crate::amount::Amount;
use crate::x402::Reason;
use crate::x402::evm::{Address, U256};

/// The scheme's name on the wire.
pub const SCHEME: &str = "upto";

/// What the scheme adds to the requirements. `facilitator` is who will settle; its address is part of what is signed.
#[must_use]
pub fn extra(offer: &EvmOffer, facilitator: Address) -> Map<String, Value> {
    let mut extra = offer.extra();
    extra.insert("assetTransferMethod".to_owned(), "permit2".into());
    extra.insert("facilitatorAddress".to_owned(), facilitator.to_string().into());
    extra
}

/// What a payment is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UptoWitness {
    /// Who is paid.
    pub to: Address,
    /// The only one that may settle.
    pub facilitator: Address,
    /// Unix seconds from which it is good.
    pub valid_after: U256,
}

impl PaymentWitness for UptoWitness {
    fn to(&self) -> Address {
        self.to
    }

    fn valid_after(&self) -> U256 {
        self.valid_after
    }

    fn signed(&self) -> Witness {
        Witness::Upto { to: self.to, facilitator: self.facilitator, valid_after: self.valid_after }
    }
}

/// What a client sends.
pub type UptoEvmPayload = Permit2Payment<UptoWitness>;

/// Reads a payload.
///
/// # Errors
/// [`Reason::InvalidPayload`] where it is malformed.
pub fn parse(payload: Value) -> Result<UptoEvmPayload, Refused> {
    serde_json::from_value(payload)
        .map_err(|error| Refused::new(Reason::InvalidPayload, format!("the payload cannot be read: {error}")))
}

/// A payment that the chain may accept. Only [`check`] makes one.
#[derive(Clone, Debug)]
pub struct CheckedUpto {
    payload: UptoEvmPayload,
    signed: Signed,
}

impl CheckedUpto {
    /// Who pays.
    #[must_use]
    pub fn payer(&self) -> Address {
        self.payload.permit2_authorization.from
    }

    /// What was sent.
    #[must_use]
    pub fn payload(&self) -> &UptoEvmPayload {
        &self.payload
    }

    /// Whether the payer's key signed it, or only a contract can say.
    #[must_use]
    pub fn signed(&self) -> Signed {
        self.signed
    }

    /// Passes where a charge may be settled: at most the ceiling. Zero needs no transaction.
    ///
    /// # Errors
    /// [`Reason::UptoEvmSettlementExceedsAmount`].
    pub fn check_charge(&self, charge: Amount) -> Result<(), Refused> {
        ensure(
            charge <= self.payload.permit2_authorization.permitted.amount,
            Reason::UptoEvmSettlementExceedsAmount,
            "the charge is above permit2Authorization.permitted.amount",
        )
    }
}

/// Checks a payment against what was offered. `offer.amount` is the ceiling, `facilitator` was offered with it, `now` is
/// in Unix seconds.
///
/// # Errors
/// [`Refused`] with the first check that failed.
pub fn check(
    offer: &EvmOffer,
    facilitator: Address,
    payload: UptoEvmPayload,
    now: u64,
) -> Result<CheckedUpto, Refused> {
    ensure(
        payload.permit2_authorization.witness.facilitator == facilitator,
        Reason::UptoEvmFacilitator,
        "permit2Authorization.witness.facilitator is not the offered extra.facilitatorAddress",
    )?;
    let signed = payload.check(offer, contracts::UPTO_PERMIT2_PROXY, now)?;
    Ok(CheckedUpto { payload, signed })
}

#[cfg(test)]
mod tests;
