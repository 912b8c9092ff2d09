//! Scheme `exact` on EVM networks, in both protocol versions: its terms and the checks of its payload that need no
//! chain.
//!
//! Promises that a [`CheckedExact`] pays exactly the price to the seller in the offered token, is good now and for a
//! while, and says whose signature it has. Whether the payer holds that much, whether the authorization was used before,
//! and whether a contract accepts the signature, is the facilitator's to find out. Refuses ERC-7710 delegations, which
//! only a simulation can judge. Source: `scheme_exact_evm.md` sections 1 and 2; `x402-specification-v1.md` section 6.1.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::evm::authorization::{EvmOffer, PaymentWitness, Permit2Payment};
use super::evm::eip712::{TransferAuthorization, Witness, transfer_with_authorization_digest};
use super::evm::signature::{Signed, signed_by};
use super::evm::{AUTHORIZATION_SECONDS_LEFT_MIN, TransferMethod, contracts};
use super::{Refused, ensure};
use crate::amount::Amount;
use crate::x402::Reason;
use crate::x402::evm::{Address, AnySignature, B256, U256};
use crate::x402::v1::PaymentRequirementsV1;
use crate::x402::wire::ResourceInfo;

/// The scheme's name on the wire.
pub const SCHEME: &str = "exact";

/// What a client sends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum ExactPayload {
    /// The token's own `transferWithAuthorization`.
    Eip3009(Eip3009Payment),
    /// A transfer through Permit2 and the scheme's proxy.
    Permit2(Permit2Payment<ExactWitness>),
}

/// A payment by EIP-3009: the authorization and its signature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Eip3009Payment {
    /// The payer's.
    pub signature: AnySignature,
    /// What it signs.
    pub authorization: Eip3009Authorization,
}

/// A `transferWithAuthorization`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Eip3009Authorization {
    /// The payer.
    pub from: Address,
    /// Who is paid.
    pub to: Address,
    /// How much.
    pub value: Amount,
    /// Unix seconds after which it is good.
    pub valid_after: U256,
    /// Unix seconds before which it is good.
    pub valid_before: U256,
    /// Used once per payer.
    pub nonce: B256,
}

/// What a payment through Permit2 is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExactWitness {
    /// Who is paid.
    pub to: Address,
    /// Unix seconds from which it is good.
    pub valid_after: U256,
}

impl PaymentWitness for ExactWitness {
    fn to(&self) -> Address {
        self.to
    }

    fn valid_after(&self) -> U256 {
        self.valid_after
    }

    fn signed(&self) -> Witness {
        Witness::Exact { to: self.to, valid_after: self.valid_after }
    }
}

/// Reads a payload of either version.
///
/// # Errors
/// [`Reason::InvalidPayload`] where it is malformed, holds both kinds of authorization, or is a delegation.
pub fn parse(payload: Value) -> Result<ExactPayload, Refused> {
    let has = |field: &str| payload.get(field).is_some();
    let malformed = |error| Refused::new(Reason::InvalidPayload, format!("the payload cannot be read: {error}"));
    ensure(
        !has("delegationManager"),
        Reason::InvalidPayload,
        "ERC-7710 delegations are not offered; send an authorization or a permit2Authorization",
    )?;
    match (has("authorization"), has("permit2Authorization")) {
        (true, true) => {
            let detail = "the payload must hold one of authorization and permit2Authorization, not both";
            Err(Refused::new(Reason::InvalidPayload, detail))
        }
        (_, true) => serde_json::from_value(payload).map(ExactPayload::Permit2).map_err(malformed),
        (_, false) => serde_json::from_value(payload).map(ExactPayload::Eip3009).map_err(malformed),
    }
}

/// What version 1 of the protocol says of an offer; `None` where that version has no word for the network or the
/// transfer method.
#[must_use]
pub fn requirements_v1(
    offer: &EvmOffer,
    resource: &ResourceInfo,
    max_timeout_seconds: u64,
) -> Option<PaymentRequirementsV1> {
    if offer.transfer_method != TransferMethod::Eip3009 {
        return None;
    }
    Some(PaymentRequirementsV1 {
        scheme: SCHEME.to_owned(),
        network: offer.network.short_name()?.to_owned(),
        max_amount_required: offer.amount,
        resource: resource.url.clone(),
        description: resource.description.clone().unwrap_or_default(),
        mime_type: resource.mime_type.clone().unwrap_or_default(),
        asset: offer.token.to_string(),
        pay_to: offer.pay_to.to_string(),
        max_timeout_seconds,
        extra: offer.extra(),
    })
}

/// The protocol version that a payment came in; the versions differ in one reason code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// `X-PAYMENT`.
    V1,
    /// `PAYMENT-SIGNATURE`.
    V2,
}

/// A payment that the chain may accept. Only [`check`] makes one.
#[derive(Clone, Debug)]
pub struct CheckedExact {
    payload: ExactPayload,
    signed: Signed,
}

impl CheckedExact {
    /// Who pays.
    #[must_use]
    pub fn payer(&self) -> Address {
        match &self.payload {
            ExactPayload::Eip3009(payment) => payment.authorization.from,
            ExactPayload::Permit2(payment) => payment.permit2_authorization.from,
        }
    }

    /// What was sent.
    #[must_use]
    pub fn payload(&self) -> &ExactPayload {
        &self.payload
    }

    /// Whether the payer's key signed it, or only a contract can say.
    #[must_use]
    pub fn signed(&self) -> Signed {
        self.signed
    }
}

/// Checks a payment against what was offered. `now` is in Unix seconds.
///
/// # Errors
/// [`Refused`] with the first check that failed.
pub fn check(offer: &EvmOffer, payload: ExactPayload, now: u64, version: Version) -> Result<CheckedExact, Refused> {
    let signed = match (offer.transfer_method, &payload) {
        (TransferMethod::Eip3009, ExactPayload::Eip3009(payment)) => eip3009(offer, payment, now, version)?,
        (TransferMethod::Permit2, ExactPayload::Permit2(payment)) => {
            payment.check(offer, contracts::EXACT_PERMIT2_PROXY, now)?
        }
        (TransferMethod::Eip3009, ExactPayload::Permit2(_)) => {
            return Err(Refused::new(Reason::InvalidPayload, "this token is paid with an EIP-3009 authorization"));
        }
        (TransferMethod::Permit2, ExactPayload::Eip3009(_)) => {
            return Err(Refused::new(Reason::InvalidPayload, "this token is paid with a permit2Authorization"));
        }
    };
    Ok(CheckedExact { payload, signed })
}

fn eip3009(offer: &EvmOffer, payment: &Eip3009Payment, now: u64, version: Version) -> Result<Signed, Refused> {
    let Eip3009Authorization { from, to, value, valid_after, valid_before, nonce } = payment.authorization;
    ensure(to == offer.pay_to, Reason::ExactEvmRecipient, "authorization.to is not the offered payTo")?;
    ensure(
        valid_before >= now.saturating_add(AUTHORIZATION_SECONDS_LEFT_MIN).into(),
        Reason::ExactEvmValidBefore,
        "authorization.validBefore has passed or leaves no time to send the payment",
    )?;
    ensure(valid_after <= now.into(), Reason::ExactEvmValidAfter, "authorization.validAfter lies ahead of our clock")?;
    let reason = match version {
        Version::V1 => Reason::ExactEvmValue,
        Version::V2 => Reason::ExactEvmValueMismatch,
    };
    ensure(value == offer.amount, reason, "authorization.value is not the offered amount")?;
    let transfer = TransferAuthorization { from, to, value, valid_after, valid_before, nonce };
    let digest = transfer_with_authorization_digest(&offer.token_domain(), &transfer);
    Ok(signed_by(&from, &digest, &payment.signature))
}

#[cfg(test)]
mod tests;
