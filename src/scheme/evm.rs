//! What the schemes on EVM networks stand on: terms of a seller and of a channel, digests, signatures, known contracts
//! and known tokens.
//!
//! Source: `scheme_batch_settlement_evm.md`, `scheme_exact_evm.md`, `scheme_upto_evm.md`.

pub mod assets;
pub mod authorization;
pub mod contracts;
pub mod eip712;
pub mod signature;
#[cfg(test)]
pub(crate) mod testing;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::amount::Asset;
use crate::x402::Network;
use crate::x402::evm::{Address, B256};
use eip712::{ChannelConfig, Domain};

/// The least time that an authorization must still be good for, so that its transaction can be mined in it. The
/// reference facilitator has the same.
pub const AUTHORIZATION_SECONDS_LEFT_MIN: u64 = 6;

/// How a token moves on its owner's signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TransferMethod {
    /// The token's own `transferWithAuthorization` and `receiveWithAuthorization`.
    Eip3009,
    /// The Permit2 contract, which the owner has allowed to move the token.
    Permit2,
}

impl TransferMethod {
    /// As `extra.assetTransferMethod` has it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Eip3009 => "eip3009",
            Self::Permit2 => "permit2",
        }
    }
}

/// What all channels of one merchant account on one EVM network have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EvmSeller {
    /// Where the money moves.
    pub network: Network,
    /// The network's chain id.
    pub chain_id: u64,
    /// What is paid with.
    pub asset: Arc<Asset>,
    /// The asset's contract.
    pub token: Address,
    /// The name in the token's EIP-712 domain.
    pub token_name: Arc<str>,
    /// The version in the token's EIP-712 domain.
    pub token_version: Arc<str>,
    /// How deposits move.
    pub transfer_method: TransferMethod,
    /// Where the money goes.
    pub pay_to: Address,
    /// Signs claims and refunds; not zero.
    pub receiver_authorizer: Address,
    /// Seconds between a payer's `initiateWithdraw` and its end.
    pub withdraw_delay: u64,
    /// The settlement contract's domain on this network.
    pub domain: Domain,
}

impl EvmSeller {
    /// The domain under which the token's owners sign.
    #[must_use]
    pub fn token_domain(&self) -> Domain {
        Domain::new(&self.token_name, &self.token_version, self.chain_id, self.token)
    }
}

/// What never changes of a channel on an EVM network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EvmTerms {
    /// The channel's id.
    pub id: B256,
    /// Who deposits.
    pub payer: Address,
    /// Whose signature a voucher needs; zero where the payer is a contract that judges for itself.
    pub payer_authorizer: Address,
    /// Tells channels with the same parameters apart.
    pub salt: B256,
    /// Shared with all other channels of the merchant's account.
    pub seller: Arc<EvmSeller>,
}

impl EvmTerms {
    /// The terms of a channel of `seller`; its id is derived.
    #[must_use]
    pub fn derive(seller: Arc<EvmSeller>, payer: Address, payer_authorizer: Address, salt: B256) -> Self {
        let mut terms = Self { id: B256::ZERO, payer, payer_authorizer, salt, seller };
        terms.id = eip712::channel_id(&terms.seller.domain, &terms.config());
        terms
    }

    /// The channel's terms as clients and the contract write them.
    #[must_use]
    pub fn config(&self) -> ChannelConfig {
        ChannelConfig {
            payer: self.payer,
            payer_authorizer: self.payer_authorizer,
            receiver: self.seller.pay_to,
            receiver_authorizer: self.seller.receiver_authorizer,
            token: self.seller.token,
            withdraw_delay: self.seller.withdraw_delay,
            salt: self.salt,
        }
    }
}
