//! Scheme `batch-settlement` on EVM networks: its terms and the checks of what clients send.
//!
//! Promises that a [`VerifiedVoucher`] is on a channel with the seller's own terms, whose id is derived from them, and
//! has a signature that the contract would accept (invariant L4), unless the payer is a contract: then nobody but the
//! chain can say so, and [`Checked::Contract`] has to be asked of a facilitator. What depends on the channel's state is
//! the ledger's. Source: `scheme_batch_settlement_evm.md`, "402 Response", "Payment Construction" and "Verification
//! Rules" 1 to 6.

pub mod deposit;
pub mod payload;
pub mod state;

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::evm::eip712::{ChannelConfig, channel_id, voucher_digest};
use super::evm::signature::signer;
use super::evm::{EvmSeller, EvmTerms, TransferMethod};
use super::{Refused, ensure};
use crate::amount::Amount;
use crate::ledger::channel::Voucher;
use crate::x402::Reason;
use crate::x402::evm::AnySignature;
use payload::{EvmBatchPayload, EvmVoucher};

/// The scheme's name on the wire.
pub const SCHEME: &str = "batch-settlement";
/// The shortest withdrawal delay that the contract takes.
pub const WITHDRAW_DELAY_SECONDS_MIN: u64 = 900;
/// The longest withdrawal delay that the contract takes.
pub const WITHDRAW_DELAY_SECONDS_MAX: u64 = 2_592_000;

/// What the scheme adds to the requirements. The transfer method is left out where it is the default, EIP-3009.
#[must_use]
pub fn extra(seller: &EvmSeller, min_deposit: Option<Amount>) -> Map<String, Value> {
    let mut extra = Map::new();
    extra.insert("name".to_owned(), (&*seller.token_name).into());
    extra.insert("version".to_owned(), (&*seller.token_version).into());
    extra.insert("receiverAuthorizer".to_owned(), seller.receiver_authorizer.to_string().into());
    extra.insert("withdrawDelay".to_owned(), seller.withdraw_delay.into());
    if seller.transfer_method != TransferMethod::Eip3009 {
        extra.insert("assetTransferMethod".to_owned(), seller.transfer_method.as_str().into());
    }
    if let Some(min_deposit) = min_deposit {
        extra.insert("minDeposit".to_owned(), min_deposit.to_string().into());
    }
    extra
}

/// Reads a payload.
///
/// # Errors
/// [`Reason::EvmBatchPayloadType`] for another `type` than deposit, voucher and refund,
/// [`Reason::EvmBatchRefundAmount`] for a refund's amount that is no number above zero, and the type's own code for a
/// payload that is malformed.
pub fn parse(payload: &Value) -> Result<EvmBatchPayload, Refused> {
    let malformed = match payload.get("type").and_then(Value::as_str) {
        Some("deposit") => Reason::EvmBatchDepositPayload,
        Some("voucher") => Reason::EvmBatchVoucherPayload,
        Some("refund") => {
            check_refund_amount(payload.get("amount"))?;
            Reason::EvmBatchRefundPayload
        }
        _ => {
            let detail = "payload.type is none of deposit, voucher and refund";
            return Err(Refused::new(Reason::EvmBatchPayloadType, detail));
        }
    };
    EvmBatchPayload::deserialize(payload)
        .map_err(|error| Refused::new(malformed, format!("the payload cannot be read: {error}")))
}

fn check_refund_amount(amount: Option<&Value>) -> Result<(), Refused> {
    let positive = |amount: &Value| {
        let amount = amount.as_str().and_then(|text| text.parse::<Amount>().ok());
        amount.is_some_and(|amount| !amount.is_zero())
    };
    ensure(
        amount.is_none_or(positive),
        Reason::EvmBatchRefundAmount,
        "payload.amount must be decimal text above zero, or absent for all that is left",
    )
}

/// A voucher whose terms hold. Only [`verify`] makes one.
#[derive(Clone, Debug)]
pub enum Checked {
    /// The contract would accept its signature.
    Verified(VerifiedVoucher),
    /// The payer is its own authorizer, and perhaps a contract (ERC-1271).
    Contract(ContractVoucher),
}

impl Checked {
    /// The channel.
    #[must_use]
    pub const fn terms(&self) -> &EvmTerms {
        &self.voucher().terms
    }

    /// The cumulative total that the voucher allows to claim, or would.
    #[must_use]
    pub const fn cumulative(&self) -> Amount {
        self.voucher().voucher.cumulative
    }

    /// To be called when a facilitator has verified the same payload, and at no other time.
    #[must_use]
    pub fn verified_on_chain(self) -> VerifiedVoucher {
        match self {
            Self::Verified(voucher) | Self::Contract(ContractVoucher(voucher)) => voucher,
        }
    }

    const fn voucher(&self) -> &VerifiedVoucher {
        match self {
            Self::Verified(voucher) | Self::Contract(ContractVoucher(voucher)) => voucher,
        }
    }
}

/// A voucher that the contract would accept on a channel with the seller's terms.
#[derive(Clone, Debug)]
pub struct VerifiedVoucher {
    terms: EvmTerms,
    voucher: Voucher<AnySignature>,
}

impl VerifiedVoucher {
    /// The channel.
    #[must_use]
    pub fn terms(&self) -> &EvmTerms {
        &self.terms
    }

    /// The cumulative total that it allows to claim.
    #[must_use]
    pub fn cumulative(&self) -> Amount {
        self.voucher.cumulative
    }

    /// The channel and its voucher.
    #[must_use]
    pub fn into_parts(self) -> (EvmTerms, Voucher<AnySignature>) {
        (self.terms, self.voucher)
    }
}

/// A voucher of which everything holds but the signature, which only the chain can judge.
#[derive(Clone, Debug)]
pub struct ContractVoucher(VerifiedVoucher);

/// Checks a channel's terms and a voucher on it. `known` are the terms of the channel that the voucher names, where the
/// ledger has it: they save deriving its id again, and are trusted to have the id that they derive.
///
/// # Errors
/// [`Refused`] with the first check that failed: id, token, receiver, authorizer, delay, signature.
pub fn verify(
    seller: &Arc<EvmSeller>,
    config: &ChannelConfig,
    voucher: &EvmVoucher,
    known: Option<&EvmTerms>,
) -> Result<Checked, Refused> {
    let is_known = |known: &&EvmTerms| {
        known.id == voucher.channel_id && known.seller.domain == seller.domain && known.config() == *config
    };
    let id = match known.filter(is_known) {
        Some(known) => known.id,
        None => channel_id(&seller.domain, config),
    };
    ensure(
        id == voucher.channel_id,
        Reason::EvmBatchChannelIdMismatch,
        "voucher.channelId is not the EIP-712 hash of channelConfig on this network",
    )?;
    check_config(seller, config)?;
    let ChannelConfig { payer, payer_authorizer, salt, .. } = *config;
    let terms = EvmTerms { id, payer, payer_authorizer, salt, seller: Arc::clone(seller) };
    let cumulative = voucher.max_claimable_amount;
    let verified = VerifiedVoucher { terms, voucher: Voucher { cumulative, signature: voucher.signature.clone() } };
    if payer_authorizer.is_zero() {
        return Ok(Checked::Contract(ContractVoucher(verified)));
    }
    let by = match &voucher.signature {
        AnySignature::Key(signature) => signer(&voucher_digest(&seller.domain, &id, cumulative), signature),
        AnySignature::Contract(_) => None,
    };
    ensure(
        by == Some(payer_authorizer),
        Reason::EvmBatchVoucherSignature,
        "voucher.signature is not 65 bytes by channelConfig.payerAuthorizer over the EIP-712 Voucher",
    )?;
    Ok(Checked::Verified(verified))
}

/// The terms that both sides must have in common.
fn check_config(seller: &EvmSeller, config: &ChannelConfig) -> Result<(), Refused> {
    ensure(
        config.token == seller.token,
        Reason::EvmBatchTokenMismatch,
        "channelConfig.token is not the offered asset",
    )?;
    ensure(
        config.receiver == seller.pay_to,
        Reason::EvmBatchReceiverMismatch,
        "channelConfig.receiver is not the offered payTo",
    )?;
    ensure(
        config.receiver_authorizer == seller.receiver_authorizer && !config.receiver_authorizer.is_zero(),
        Reason::EvmBatchReceiverAuthorizerMismatch,
        "channelConfig.receiverAuthorizer is not the offered extra.receiverAuthorizer",
    )?;
    ensure(
        config.withdraw_delay == seller.withdraw_delay,
        Reason::EvmBatchWithdrawDelayMismatch,
        "channelConfig.withdrawDelay is not the offered extra.withdrawDelay",
    )?;
    ensure(
        (WITHDRAW_DELAY_SECONDS_MIN..=WITHDRAW_DELAY_SECONDS_MAX).contains(&config.withdraw_delay),
        Reason::EvmBatchWithdrawDelayOutOfRange,
        "channelConfig.withdrawDelay must be 900 to 2592000 seconds",
    )
}

#[cfg(test)]
mod tests;
