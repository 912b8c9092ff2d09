//! Reads what a facilitator is asked: requirements, and the payloads that servers write themselves.
//!
//! What clients write is read by the schemes. Source: `scheme_batch_settlement_evm.md`, "Facilitator Interface".

use std::sync::Arc;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::codes;
use crate::amount::{Amount, Asset};
use crate::chain::evm::abi::batch::VoucherClaim;
use crate::facilitator::interface::InterfaceError;
use crate::scheme::Refused;
use crate::scheme::batch_settlement_evm::payload::EvmClaimRow;
use crate::scheme::evm::authorization::EvmOffer;
use crate::scheme::evm::eip712::{ChannelConfig, Domain};
use crate::scheme::evm::{EvmSeller, TransferMethod};
use crate::x402::evm::{Address, AnySignature, U256};
use crate::x402::v1::{PaymentPayloadV1, PaymentRequirementsV1};
use crate::x402::wire::{PaymentPayload, PaymentRequirements};
use crate::x402::{Network, Reason};

/// The most claims of one batch (the reference server's limit too).
pub(super) const CLAIMS_MAX: usize = 100;

/// What the schemes put into `extra`, as far as a facilitator reads it.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Extra {
    name: Option<String>,
    version: Option<String>,
    receiver_authorizer: Option<Address>,
    withdraw_delay: Option<u64>,
    asset_transfer_method: Option<TransferMethod>,
}

/// A refusal in the protocol's words.
pub(super) fn refused(reason: &str, detail: impl Into<String>) -> InterfaceError {
    InterfaceError::Refused { reason: reason.to_owned(), detail: Some(detail.into()) }
}

impl From<Refused> for InterfaceError {
    fn from(Refused { reason, detail }: Refused) -> Self {
        refused(reason.as_str(), detail)
    }
}

fn read<T: DeserializeOwned>(value: &Value, what: &str, reason: Reason) -> Result<T, InterfaceError> {
    T::deserialize(value).map_err(|error| refused(reason.as_str(), format!("the {what} cannot be read: {error}")))
}

/// A payment of version 2.
pub(super) fn payment(
    payload: &Value,
    requirements: &Value,
) -> Result<(PaymentPayload, PaymentRequirements), InterfaceError> {
    let requirements = read(requirements, "requirements", Reason::InvalidRequirements)?;
    Ok((read(payload, "payload", Reason::InvalidPayload)?, requirements))
}

/// A payment of version 1.
pub(super) fn payment_v1(
    payload: &Value,
    requirements: &Value,
) -> Result<(PaymentPayloadV1, PaymentRequirementsV1), InterfaceError> {
    let requirements = read(requirements, "requirements", Reason::InvalidRequirements)?;
    Ok((read(payload, "payload", Reason::InvalidPayload)?, requirements))
}

fn extra(extra: &serde_json::Map<String, Value>) -> Result<Extra, InterfaceError> {
    read(&Value::Object(extra.clone()), "requirements' extra", Reason::InvalidRequirements)
}

fn address(text: &str, field: &str) -> Result<Address, InterfaceError> {
    let wrong = |error| refused(Reason::InvalidRequirements.as_str(), format!("{field} is no address: {error}"));
    text.parse().map_err(wrong)
}

/// The token's domain, which EIP-3009 cannot do without.
fn domain(
    name: Option<String>,
    version: Option<String>,
    method: TransferMethod,
    missing: &str,
) -> Result<(Arc<str>, Arc<str>), InterfaceError> {
    match (name, version) {
        (Some(name), Some(version)) => Ok((name.into(), version.into())),
        (name, version) if method == TransferMethod::Permit2 => {
            Ok((name.unwrap_or_default().into(), version.unwrap_or_default().into()))
        }
        _ => Err(refused(missing, "requirements.extra has no name or no version of the token's EIP-712 domain")),
    }
}

/// The seller of a channel. `sent` is the kind of authorization that came with a deposit.
pub(super) fn seller(
    requirements: &PaymentRequirements,
    chain_id: u64,
    sent: Option<TransferMethod>,
) -> Result<EvmSeller, InterfaceError> {
    let extra = extra(&requirements.extra)?;
    let transfer_method = extra.asset_transfer_method.or(sent).unwrap_or(TransferMethod::Eip3009);
    let missing = Reason::EvmBatchMissingEip712Domain.as_str();
    // A channel's terms do not depend on the token's domain, but a deposit's signature does.
    let needed = if sent.is_some() { transfer_method } else { TransferMethod::Permit2 };
    let (token_name, token_version) = domain(extra.name, extra.version, needed, missing)?;
    let authorizer = extra.receiver_authorizer.ok_or_else(|| {
        let reason = Reason::EvmBatchReceiverAuthorizerMismatch.as_str();
        refused(reason, "requirements.extra has no receiverAuthorizer")
    })?;
    let delay = extra.withdraw_delay.ok_or_else(|| {
        refused(Reason::InvalidRequirements.as_str(), "requirements.extra has no withdrawDelay in whole seconds")
    })?;
    let asset = Asset { address: requirements.asset.as_str().into(), symbol: Arc::clone(&token_name), decimals: 0 };
    Ok(EvmSeller {
        network: requirements.network.clone(),
        chain_id,
        token: address(&requirements.asset, "asset")?,
        asset: Arc::new(asset),
        token_name,
        token_version,
        transfer_method,
        pay_to: address(&requirements.pay_to, "payTo")?,
        receiver_authorizer: authorizer,
        withdraw_delay: delay,
        domain: Domain::batch_settlement(chain_id),
    })
}

/// What is paid once, of either version.
pub(super) struct Once<'a> {
    /// Where.
    pub(super) network: Network,
    /// The token.
    pub(super) asset: &'a str,
    /// Who is paid.
    pub(super) pay_to: &'a str,
    /// How much, or at most how much.
    pub(super) amount: Amount,
    /// What the scheme adds.
    pub(super) extra: &'a serde_json::Map<String, Value>,
}

/// An offer to whoever pays once. `sent` is the kind of authorization that came.
pub(super) fn offer(once: &Once<'_>, chain_id: u64, sent: TransferMethod) -> Result<EvmOffer, InterfaceError> {
    let extra = extra(once.extra)?;
    let transfer_method = extra.asset_transfer_method.unwrap_or(sent);
    let missing = codes::EXACT_MISSING_DOMAIN;
    let (token_name, token_version) = domain(extra.name, extra.version, transfer_method, missing)?;
    Ok(EvmOffer {
        network: once.network.clone(),
        chain_id,
        token: address(once.asset, "asset")?,
        token_name,
        token_version,
        transfer_method,
        pay_to: address(once.pay_to, "payTo")?,
        amount: once.amount,
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ClaimPayload {
    claims: Vec<EvmClaimRow>,
    claim_authorizer_signature: Option<AnySignature>,
}

/// A server's batch of claims, and the receiver authorizer's signature over it.
pub(super) struct Claims {
    /// The claims, in the order that is signed.
    pub(super) rows: Vec<VoucherClaim>,
    /// The signature, where there are claims.
    pub(super) authorizer_signature: AnySignature,
}

fn unsigned(what: &str) -> InterfaceError {
    let detail = format!("the payload has no {what}: this facilitator holds no receiver authorizer's key");
    refused(codes::AUTHORIZER_NOT_CONFIGURED, detail)
}

fn rows(rows: Vec<EvmClaimRow>, reason: Reason) -> Result<Vec<VoucherClaim>, InterfaceError> {
    if rows.len() > CLAIMS_MAX {
        let detail = format!("there are {} claims, and at most {CLAIMS_MAX} may be", rows.len());
        return Err(refused(reason.as_str(), detail));
    }
    let row = |row: EvmClaimRow| VoucherClaim {
        config: row.voucher.channel,
        max_claimable_amount: row.voucher.max_claimable_amount,
        signature: row.signature.as_slice().to_vec(),
        total_claimed: row.total_claimed,
    };
    Ok(rows.into_iter().map(row).collect())
}

/// Reads a `claim`.
pub(super) fn claims(payload: &Value) -> Result<Claims, InterfaceError> {
    let payload: ClaimPayload = read(payload, "claim", Reason::EvmBatchClaimPayload)?;
    if payload.claims.is_empty() {
        return Err(refused(Reason::EvmBatchClaimPayload.as_str(), "there is no claim in it"));
    }
    let authorizer_signature =
        payload.claim_authorizer_signature.ok_or_else(|| unsigned("claimAuthorizerSignature"))?;
    Ok(Claims { rows: rows(payload.claims, Reason::EvmBatchClaimPayload)?, authorizer_signature })
}

/// A server's order to pay out.
#[derive(Deserialize)]
pub(super) struct Payout {
    /// Who is paid.
    pub(super) receiver: Address,
    /// In which token.
    pub(super) token: Address,
}

/// Reads a `settle`.
pub(super) fn payout(payload: &Value) -> Result<Payout, InterfaceError> {
    read(payload, "settle", Reason::EvmBatchSettlePayload)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RefundPayload {
    channel_config: ChannelConfig,
    amount: Amount,
    refund_nonce: U256,
    #[serde(default)]
    claims: Vec<EvmClaimRow>,
    refund_authorizer_signature: Option<AnySignature>,
    claim_authorizer_signature: Option<AnySignature>,
}

/// A refund that the server has completed.
pub(super) struct Refund {
    /// The channel's terms.
    pub(super) config: ChannelConfig,
    /// At most how much goes back.
    pub(super) amount: Amount,
    /// The channel's refund nonce.
    pub(super) nonce: U256,
    /// The receiver authorizer's signature over the three.
    pub(super) signature: AnySignature,
    /// What is claimed before, if anything.
    pub(super) claims: Option<Claims>,
}

/// Reads a completed `refund`.
pub(super) fn refund(payload: &Value) -> Result<Refund, InterfaceError> {
    let payload: RefundPayload = read(payload, "refund", Reason::EvmBatchRefundPayload)?;
    if payload.amount.is_zero() {
        return Err(refused(Reason::EvmBatchRefundAmount.as_str(), "amount must be above zero"));
    }
    let signature = payload.refund_authorizer_signature.ok_or_else(|| unsigned("refundAuthorizerSignature"))?;
    let rows = rows(payload.claims, Reason::EvmBatchRefundPayload)?;
    let claims = match payload.claim_authorizer_signature {
        _ if rows.is_empty() => None,
        Some(authorizer_signature) => Some(Claims { rows, authorizer_signature }),
        None => return Err(unsigned("claimAuthorizerSignature")),
    };
    let (config, amount, nonce) = (payload.channel_config, payload.amount, payload.refund_nonce);
    Ok(Refund { config, amount, nonce, signature, claims })
}
