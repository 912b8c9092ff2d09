//! What schemes `exact` and `upto` have in common: what is offered to whoever pays once, and the authorizations that
//! pay it, as they come over the wire.
//!
//! Source: `scheme_exact_evm.md` sections 1 and 2, `scheme_upto_evm.md` section 1.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::eip712::{Domain, Permit2Transfer, Witness, permit2_digest};
use super::signature::{Signed, signed_by};
use super::{AUTHORIZATION_SECONDS_LEFT_MIN, EvmSeller, TransferMethod};
use crate::amount::Amount;
use crate::scheme::{Refused, ensure};
use crate::x402::evm::{Address, AnySignature, U256};
use crate::x402::{Network, Reason};

/// What is offered to whoever pays once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EvmOffer {
    /// Where the money moves.
    pub network: Network,
    /// The network's chain id.
    pub chain_id: u64,
    /// The token.
    pub token: Address,
    /// The name in the token's EIP-712 domain.
    pub token_name: Arc<str>,
    /// The version in the token's EIP-712 domain.
    pub token_version: Arc<str>,
    /// How the token moves on its owner's signature.
    pub transfer_method: TransferMethod,
    /// Where the money goes.
    pub pay_to: Address,
    /// The price, or the most that will be charged.
    pub amount: Amount,
}

impl EvmOffer {
    /// A seller's offer at a price, or up to one.
    #[must_use]
    pub fn new(seller: &EvmSeller, amount: Amount) -> Self {
        Self {
            network: seller.network.clone(),
            chain_id: seller.chain_id,
            token: seller.token,
            token_name: Arc::clone(&seller.token_name),
            token_version: Arc::clone(&seller.token_version),
            transfer_method: seller.transfer_method,
            pay_to: seller.pay_to,
            amount,
        }
    }

    /// The domain under which the token's owners sign.
    #[must_use]
    pub fn token_domain(&self) -> Domain {
        Domain::new(&self.token_name, &self.token_version, self.chain_id, self.token)
    }

    /// What both schemes say of the token. The transfer method is left out where it is the default, EIP-3009.
    #[must_use]
    pub fn extra(&self) -> Map<String, Value> {
        let mut extra = Map::new();
        extra.insert("name".to_owned(), (&*self.token_name).into());
        extra.insert("version".to_owned(), (&*self.token_version).into());
        if self.transfer_method != TransferMethod::Eip3009 {
            extra.insert("assetTransferMethod".to_owned(), self.transfer_method.as_str().into());
        }
        extra
    }
}

/// How much of which token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenPermissions {
    /// The token.
    pub token: Address,
    /// How much.
    pub amount: Amount,
}

/// A payment through Permit2: the authorization and its signature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Permit2Payment<W> {
    /// The payer's.
    pub signature: AnySignature,
    /// What it signs.
    pub permit2_authorization: Permit2Authorization<W>,
}

/// A `permitWitnessTransferFrom`, bound to a payment by its witness.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Permit2Authorization<W> {
    /// What may be taken.
    pub permitted: TokenPermissions,
    /// The payer.
    pub from: Address,
    /// The scheme's proxy.
    pub spender: Address,
    /// Used once per payer.
    pub nonce: U256,
    /// Unix seconds until which it is good, these included.
    pub deadline: U256,
    /// What the proxy is bound to.
    pub witness: W,
}

/// A witness of one of the two schemes.
pub trait PaymentWitness: Copy {
    /// Who is paid.
    fn to(&self) -> Address;
    /// Unix seconds from which it is good.
    fn valid_after(&self) -> U256;
    /// As it is signed.
    fn signed(&self) -> Witness;
}

impl<W: PaymentWitness> Permit2Payment<W> {
    /// Checks all that both schemes ask of such a payment, in the reference facilitator's order. `spender` is the
    /// scheme's proxy, `now` in Unix seconds.
    pub(in crate::scheme) fn check(&self, offer: &EvmOffer, spender: Address, now: u64) -> Result<Signed, Refused> {
        let authorization = &self.permit2_authorization;
        ensure(
            authorization.spender == spender,
            Reason::Permit2Spender,
            "permit2Authorization.spender is not the scheme's proxy",
        )?;
        ensure(
            authorization.witness.to() == offer.pay_to,
            Reason::Permit2Recipient,
            "permit2Authorization.witness.to is not the offered payTo",
        )?;
        ensure(
            authorization.deadline >= now.saturating_add(AUTHORIZATION_SECONDS_LEFT_MIN).into(),
            Reason::Permit2Expired,
            "permit2Authorization.deadline has passed or leaves no time to send the payment",
        )?;
        ensure(
            authorization.witness.valid_after() <= now.into(),
            Reason::Permit2NotYetValid,
            "permit2Authorization.witness.validAfter lies ahead of our clock",
        )?;
        let TokenPermissions { token, amount } = authorization.permitted;
        ensure(
            amount == offer.amount,
            Reason::Permit2Amount,
            "permit2Authorization.permitted.amount is not the offered amount",
        )?;
        ensure(
            token == offer.token,
            Reason::Permit2Token,
            "permit2Authorization.permitted.token is not the offered asset",
        )?;
        let (nonce, deadline, witness) = (authorization.nonce, authorization.deadline, authorization.witness.signed());
        let transfer = Permit2Transfer { token, amount, spender, nonce, deadline, witness };
        let digest = permit2_digest(&Domain::permit2(offer.chain_id), &transfer);
        Ok(signed_by(&authorization.from, &digest, &self.signature))
    }
}
