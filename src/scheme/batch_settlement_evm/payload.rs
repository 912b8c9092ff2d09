//! What a client sends in scheme `batch-settlement` on EVM networks, as JSON.
//!
//! Source: `scheme_batch_settlement_evm.md`, "Client: Payment Construction"; for Permit2, which the specification does
//! not spell out, what the reference client (npm's `@x402/evm` 2.27.0) writes.

use serde::{Deserialize, Serialize};

use crate::amount::Amount;
use crate::scheme::evm::authorization::TokenPermissions;
use crate::scheme::evm::eip712::ChannelConfig;
use crate::x402::evm::{Address, AnySignature, B256, U256};

/// The payload of scheme `batch-settlement` on EVM networks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase", rename_all_fields = "camelCase")]
pub enum EvmBatchPayload {
    /// Fills a channel and pays for this request.
    Deposit {
        /// The channel's terms.
        channel_config: ChannelConfig,
        /// Pays for this request.
        voucher: EvmVoucher,
        /// Fills the channel.
        deposit: Box<EvmDeposit>,
    },
    /// Pays for this request from what the channel holds.
    Voucher {
        /// The channel's terms.
        channel_config: ChannelConfig,
        /// Pays for this request.
        voucher: EvmVoucher,
    },
    /// Asks for what the channel holds to be given back.
    Refund {
        /// The channel's terms.
        channel_config: ChannelConfig,
        /// Its total is what was charged so far, no more.
        voucher: EvmVoucher,
        /// How much; all that is left where absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        amount: Option<Amount>,
    },
}

/// A signed promise of a channel's cumulative total.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EvmVoucher {
    /// The channel's id.
    pub channel_id: B256,
    /// The cumulative total that may be claimed.
    pub max_claimable_amount: Amount,
    /// By the channel's `payerAuthorizer`, or where that is zero as its `payer` would have it.
    pub signature: AnySignature,
}

/// A deposit and the payer's leave to take it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvmDeposit {
    /// How much is put in.
    pub amount: Amount,
    /// The leave.
    pub authorization: DepositAuthorization,
}

/// A payer's leave to take a deposit: exactly one of two.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DepositAuthorization {
    /// From a token that knows EIP-3009.
    #[serde(rename = "erc3009Authorization")]
    Eip3009(Eip3009Deposit),
    /// From any token, by Permit2.
    #[serde(rename = "permit2Authorization")]
    Permit2(Permit2Deposit),
}

/// A `receiveWithAuthorization` to the collector; what it does not say follows from the channel and the amount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Eip3009Deposit {
    /// Unix seconds after which it is good.
    pub valid_after: U256,
    /// Unix seconds before which it is good.
    pub valid_before: U256,
    /// Makes the nonce, together with the channel's id.
    pub salt: B256,
    /// The payer's.
    pub signature: AnySignature,
}

/// A `permitWitnessTransferFrom` to the collector.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Permit2Deposit {
    /// The payer.
    pub from: Address,
    /// What may be taken.
    pub permitted: TokenPermissions,
    /// The collector.
    pub spender: Address,
    /// Used once per payer.
    pub nonce: U256,
    /// Unix seconds until which it is good, these included.
    pub deadline: U256,
    /// The channel.
    pub witness: DepositWitness,
    /// The payer's.
    pub signature: AnySignature,
}

/// What a deposit through Permit2 is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DepositWitness {
    /// The channel's id.
    pub channel_id: B256,
}

/// What a server asks to be claimed from one channel, in a batch of claims or with a refund ("POST /settle").
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EvmClaimRow {
    /// What the payer has signed.
    pub voucher: EvmClaimVoucher,
    /// The payer's signature of it.
    pub signature: AnySignature,
    /// What the channel will have been claimed of, at most what was signed.
    pub total_claimed: Amount,
}

/// A voucher with its channel's terms in place of the id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EvmClaimVoucher {
    /// The channel's terms.
    pub channel: ChannelConfig,
    /// The cumulative total that may be claimed.
    pub max_claimable_amount: Amount,
}
