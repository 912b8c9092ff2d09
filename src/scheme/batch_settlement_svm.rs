//! Scheme `batch-settlement` on Solana, client-signed mode: its terms and the checks of its payloads.
//!
//! Promises that a [`VerifiedVoucher`] has the seller's own terms, the derived channel address, no expiry, an amount
//! that the program can count, and a signature that the chain would accept (invariant L4). Refuses server-signed mode,
//! which is not offered. Source: `scheme_batch_settlement_svm.md` sections 4.1 to 4.3 and 5, phase 3, steps 1 to 4.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::svm::program::voucher_message;
use super::svm::verify_strict;
use super::{Refused, ensure};
use crate::amount::Amount;
use crate::ledger::channel::{Seller, Terms, Voucher};
use crate::x402::Reason;
use crate::x402::wire::{BatchPayload, BatchVoucher, ChannelConfig};

/// The scheme's name on the wire.
pub const SCHEME: &str = "batch-settlement";

/// What the scheme adds to the requirements; `paymentFlow` is left to its default, `authorization`.
#[must_use]
pub fn extra(seller: &Seller, min_deposit: Option<Amount>, memo: Option<&str>) -> Map<String, Value> {
    let mut extra = super::upto_svm::seller_extra(seller, memo);
    if let Some(min_deposit) = min_deposit {
        extra.insert("minDeposit".to_owned(), min_deposit.to_string().into());
    }
    extra
}

/// Checks the one field of an accepted offer that we leave to its default.
///
/// # Errors
/// [`Reason::BatchPaymentFlow`] where it is there and is not `authorization`.
pub fn check_payment_flow(accepted_extra: &Map<String, Value>) -> Result<(), Refused> {
    ensure(
        accepted_extra.get("paymentFlow").is_none_or(|flow| flow == "authorization"),
        Reason::BatchPaymentFlow,
        "accepted.extra.paymentFlow must be absent or authorization",
    )
}

/// Reads a payload.
///
/// # Errors
/// [`Reason::BatchPayloadType`] for another `type` than deposit, voucher and refund and for server-signed mode,
/// [`Reason::InvalidPayload`] for one that is malformed.
pub fn parse(payload: Value) -> Result<BatchPayload, Refused> {
    let known = payload.get("type").and_then(Value::as_str).is_some_and(|kind| KINDS.contains(&kind));
    ensure(known, Reason::BatchPayloadType, "payload.type is none of deposit, voucher and refund")?;
    ensure(
        payload.get("authorization").is_none(),
        Reason::BatchPayloadType,
        "payload.authorization belongs to server-signed vouchers, which are not offered",
    )?;
    serde_json::from_value(payload)
        .map_err(|error| Refused::new(Reason::InvalidPayload, format!("the payload cannot be read: {error}")))
}

/// What a client may send.
const KINDS: [&str; 3] = ["deposit", "voucher", "refund"];

/// A voucher that the chain would accept on a channel with the seller's terms. Only [`verify`] makes one.
#[derive(Clone, Debug)]
pub struct VerifiedVoucher {
    terms: Terms,
    voucher: Voucher,
}

impl VerifiedVoucher {
    /// The channel.
    #[must_use]
    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    /// The cumulative total that it allows to claim.
    #[must_use]
    pub fn cumulative(&self) -> Amount {
        self.voucher.cumulative
    }

    /// The channel and its voucher.
    #[must_use]
    pub fn into_parts(self) -> (Terms, Voucher) {
        (self.terms, self.voucher)
    }
}

/// Checks a channel's terms and a voucher on it. `known` are the terms of the channel that the voucher names, where the
/// ledger has it: they save deriving its address again, and a channel that was opened for another seller is refused.
///
/// # Errors
/// [`Refused`] with the first check that failed: terms, address, expiry, amount, signature.
pub fn verify(
    seller: &Arc<Seller>,
    config: &ChannelConfig,
    voucher: &BatchVoucher,
    known: Option<&Terms>,
) -> Result<VerifiedVoucher, Refused> {
    check_config(seller, config)?;
    let terms = match known {
        Some(known) if known.id == voucher.channel_id && names(known, config) => {
            check_seller(seller, &known.seller)?;
            known.clone()
        }
        _ => Terms::derive(Arc::clone(seller), config.payer, config.payer_authorizer, config.salt, config.open_slot),
    };
    ensure(
        terms.id == voucher.channel_id,
        Reason::BatchChannelIdMismatch,
        "voucher.channelId is not the address that channelConfig derives",
    )?;
    ensure(voucher.expires_at == 0, Reason::BatchVoucherExpiry, "voucher.expiresAt must be 0")?;
    let cumulative = voucher.max_claimable_amount.to_u64().ok_or_else(|| {
        Refused::new(Reason::BatchCumulativeExceedsDeposit, "voucher.maxClaimableAmount is more than any channel holds")
    })?;
    let message = voucher_message(&terms.id, cumulative, voucher.expires_at);
    ensure(
        verify_strict(&terms.authorizer, &message, &voucher.signature),
        Reason::BatchVoucherSignature,
        "voucher.signature does not verify under channelConfig.payerAuthorizer over the 50-byte voucher message",
    )?;
    let voucher = Voucher { cumulative: voucher.max_claimable_amount, signature: voucher.signature };
    Ok(VerifiedVoucher { terms, voucher })
}

/// The terms that both sides must have in common, and the roles that must be apart.
fn check_config(seller: &Seller, config: &ChannelConfig) -> Result<(), Refused> {
    ensure(
        matches!(config.voucher_signer.as_deref(), None | Some("client")),
        Reason::BatchPayloadType,
        "channelConfig.voucherSigner must be absent or client: server-signed vouchers are not offered",
    )?;
    ensure(
        config.receiver == seller.pay_to,
        Reason::InvalidRequirements,
        "channelConfig.receiver is not the offered payTo",
    )?;
    ensure(
        config.receiver_authorizer == seller.receiver_authorizer,
        Reason::BatchReceiverAuthorizerMismatch,
        "channelConfig.receiverAuthorizer is not the offered extra.receiverAuthorizer",
    )?;
    ensure(config.token == seller.mint, Reason::InvalidRequirements, "channelConfig.token is not the offered asset")?;
    ensure(
        config.withdraw_delay == seller.withdraw_delay,
        Reason::BatchWithdrawDelayMismatch,
        "channelConfig.withdrawDelay is not the offered extra.withdrawDelay",
    )?;
    ensure(
        config.payer != seller.fee_payer && config.payer_authorizer != seller.fee_payer,
        Reason::BatchFeePayerMismatch,
        "channelConfig.payer and payerAuthorizer must not be extra.feePayer",
    )
}

/// Whether the terms are those of this configuration, apart from the seller.
fn names(terms: &Terms, config: &ChannelConfig) -> bool {
    terms.payer == config.payer
        && terms.authorizer == config.payer_authorizer
        && terms.salt == config.salt
        && terms.open_slot == config.open_slot
}

/// The address does not bind the receiver and the delay, so a channel from before a change of ours must be told apart.
fn check_seller(ours: &Arc<Seller>, known: &Arc<Seller>) -> Result<(), Refused> {
    if ours == known {
        return Ok(());
    }
    ensure(
        ours.withdraw_delay == known.withdraw_delay,
        Reason::BatchWithdrawDelayMismatch,
        "the channel was opened with another withdrawDelay; open a new one",
    )?;
    ensure(
        ours.fee_payer == known.fee_payer,
        Reason::BatchFeePayerMismatch,
        "the channel was opened with another feePayer; open a new one",
    )?;
    ensure(
        ours.network == known.network && ours.pay_to == known.pay_to && ours.mint == known.mint,
        Reason::BatchChannelState,
        "the channel was opened for another receiver; open a new one",
    )?;
    ensure(
        ours.receiver_authorizer == known.receiver_authorizer,
        Reason::BatchReceiverAuthorizerMismatch,
        "the channel was opened with another receiverAuthorizer; open a new one",
    )
}

#[cfg(test)]
mod tests;
