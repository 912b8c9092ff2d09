//! The digests that are signed on EVM networks (EIP-712): channels, vouchers, claims, refunds, and transfers of tokens.
//!
//! Pure, and without the heap but for a domain's making. Types and domains are those of
//! `scheme_batch_settlement_evm.md`, EIP-3009, Permit2's `permitWitnessTransferFrom`, and the witnesses of
//! `scheme_exact_evm.md` and `scheme_upto_evm.md`.

use std::sync::LazyLock;

use serde::{Deserialize, Deserializer, Serialize};

use super::contracts;
use crate::amount::Amount;
use crate::x402::evm::{Address, B256, U256, keccak256, keccak256_words};

/// The greatest `uint40`, in which the contract counts the seconds of a withdrawal delay.
pub const WITHDRAW_DELAY_SECONDS_TYPE_MAX: u64 = (1 << 40) - 1;

/// The hash of a type's text, computed once.
macro_rules! types {
    ($($name:ident = $text:literal;)*) => {
        $(static $name: LazyLock<B256> = LazyLock::new(|| keccak256($text.as_bytes()));)*
    };
}

types! {
    DOMAIN = "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)";
    DOMAIN_WITHOUT_VERSION = "EIP712Domain(string name,uint256 chainId,address verifyingContract)";
    CHANNEL_CONFIG = "ChannelConfig(address payer,address payerAuthorizer,address receiver,address receiverAuthorizer,address token,uint40 withdrawDelay,bytes32 salt)";
    VOUCHER = "Voucher(bytes32 channelId,uint128 maxClaimableAmount)";
    REFUND = "Refund(bytes32 channelId,uint256 nonce,uint128 amount)";
    CLAIM_BATCH = "ClaimBatch(ClaimEntry[] claims)ClaimEntry(bytes32 channelId,uint128 maxClaimableAmount,uint128 totalClaimed)";
    CLAIM_ENTRY = "ClaimEntry(bytes32 channelId,uint128 maxClaimableAmount,uint128 totalClaimed)";
    TRANSFER_WITH_AUTHORIZATION = "TransferWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)";
    RECEIVE_WITH_AUTHORIZATION = "ReceiveWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)";
    TOKEN_PERMISSIONS = "TokenPermissions(address token,uint256 amount)";
    PERMIT_DEPOSIT = "PermitWitnessTransferFrom(TokenPermissions permitted,address spender,uint256 nonce,uint256 deadline,DepositWitness witness)DepositWitness(bytes32 channelId)TokenPermissions(address token,uint256 amount)";
    PERMIT_EXACT = "PermitWitnessTransferFrom(TokenPermissions permitted,address spender,uint256 nonce,uint256 deadline,Witness witness)TokenPermissions(address token,uint256 amount)Witness(address to,uint256 validAfter)";
    PERMIT_UPTO = "PermitWitnessTransferFrom(TokenPermissions permitted,address spender,uint256 nonce,uint256 deadline,Witness witness)TokenPermissions(address token,uint256 amount)Witness(address to,address facilitator,uint256 validAfter)";
    DEPOSIT_WITNESS = "DepositWitness(bytes32 channelId)";
    EXACT_WITNESS = "Witness(address to,uint256 validAfter)";
    UPTO_WITNESS = "Witness(address to,address facilitator,uint256 validAfter)";
}

/// Where a signature is good: one contract on one chain. Made once, since it costs three hashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Domain(B256);

impl Domain {
    /// The domain of a contract.
    #[must_use]
    pub fn new(name: &str, version: &str, chain_id: u64, contract: Address) -> Self {
        Self(keccak256_words([
            *DOMAIN,
            keccak256(name.as_bytes()),
            keccak256(version.as_bytes()),
            U256::from(chain_id).word(),
            contract.word(),
        ]))
    }

    /// The settlement contract's domain.
    #[must_use]
    pub fn batch_settlement(chain_id: u64) -> Self {
        Self::new("x402 Batch Settlement", "1", chain_id, contracts::BATCH_SETTLEMENT)
    }

    /// Permit2's domain, which has no version.
    #[must_use]
    pub fn permit2(chain_id: u64) -> Self {
        let chain_id = U256::from(chain_id).word();
        Self(keccak256_words([*DOMAIN_WITHOUT_VERSION, keccak256(b"Permit2"), chain_id, contracts::PERMIT2.word()]))
    }

    /// The domain's own hash, `DOMAIN_SEPARATOR` of the contract.
    #[must_use]
    pub const fn separator(&self) -> B256 {
        self.0
    }

    /// What is signed for a structure with this hash.
    fn digest(&self, structure: B256) -> B256 {
        let mut message = [0; 66];
        message[0] = 0x19;
        message[1] = 0x01;
        message[2..34].copy_from_slice(&self.0.0);
        message[34..].copy_from_slice(&structure.0);
        keccak256(&message)
    }
}

/// An amount as a word of the ABI.
fn word(amount: Amount) -> B256 {
    U256::from(amount).word()
}

/// The constant terms of a channel, as the contract and its clients write them ("Channel creation and deposits").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChannelConfig {
    /// The client's wallet, a key or a contract.
    pub payer: Address,
    /// The key that signs vouchers; zero where the payer is a contract that judges for itself.
    pub payer_authorizer: Address,
    /// Must equal `payTo`.
    pub receiver: Address,
    /// Must equal `extra.receiverAuthorizer`.
    pub receiver_authorizer: Address,
    /// Must equal `asset`.
    pub token: Address,
    /// Seconds; must equal `extra.withdrawDelay`. At most [`WITHDRAW_DELAY_SECONDS_TYPE_MAX`], which reading checks.
    #[serde(deserialize_with = "uint40")]
    pub withdraw_delay: u64,
    /// Tells channels with the same parameters apart.
    pub salt: B256,
}

fn uint40<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let seconds = u64::deserialize(deserializer)?;
    if seconds > WITHDRAW_DELAY_SECONDS_TYPE_MAX {
        return Err(serde::de::Error::custom("withdrawDelay does not fit a uint40"));
    }
    Ok(seconds)
}

/// A channel's id: the digest of its terms.
#[must_use]
pub fn channel_id(domain: &Domain, config: &ChannelConfig) -> B256 {
    domain.digest(keccak256_words([
        *CHANNEL_CONFIG,
        config.payer.word(),
        config.payer_authorizer.word(),
        config.receiver.word(),
        config.receiver_authorizer.word(),
        config.token.word(),
        U256::from(config.withdraw_delay).word(),
        config.salt,
    ]))
}

/// What a payer signs: that up to `cumulative` in all may be claimed from the channel.
#[must_use]
pub fn voucher_digest(domain: &Domain, channel_id: &B256, cumulative: Amount) -> B256 {
    domain.digest(keccak256_words([*VOUCHER, *channel_id, word(cumulative)]))
}

/// One channel of a batch that the receiver authorizer signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClaimEntry {
    /// The channel.
    pub channel_id: B256,
    /// What its voucher allows.
    pub max_claimable_amount: Amount,
    /// What shall have been claimed in all, at most the former.
    pub total_claimed: Amount,
}

/// What the receiver authorizer signs to claim from channels at once, in the order of the claims.
#[must_use]
pub fn claim_batch_digest(domain: &Domain, claims: &[ClaimEntry]) -> B256 {
    let entries = claims.iter().map(|claim| {
        keccak256_words([*CLAIM_ENTRY, claim.channel_id, word(claim.max_claimable_amount), word(claim.total_claimed)])
    });
    domain.digest(keccak256_words([*CLAIM_BATCH, keccak256_words(entries)]))
}

/// What the receiver authorizer signs to return `amount` to the payer. The nonce is a `uint256` in the contract; it
/// counts up from zero, but whoever reads it from elsewhere must be able to sign what was read.
#[must_use]
pub fn refund_digest(domain: &Domain, channel_id: &B256, nonce: U256, amount: Amount) -> B256 {
    domain.digest(keccak256_words([*REFUND, *channel_id, nonce.word(), word(amount)]))
}

/// The nonce that binds an EIP-3009 deposit to its channel: `keccak256(abi.encode(channelId, salt))`.
#[must_use]
pub fn deposit_nonce(channel_id: &B256, salt: U256) -> B256 {
    keccak256_words([*channel_id, salt.word()])
}

/// A transfer that a token's owner signs (EIP-3009).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransferAuthorization {
    /// The owner.
    pub from: Address,
    /// Who is paid.
    pub to: Address,
    /// How much.
    pub value: Amount,
    /// Unix seconds after which it is good.
    pub valid_after: U256,
    /// Unix seconds before which it is good.
    pub valid_before: U256,
    /// Used once per owner.
    pub nonce: B256,
}

impl TransferAuthorization {
    fn hash(&self, kind: B256) -> B256 {
        keccak256_words([
            kind,
            self.from.word(),
            self.to.word(),
            word(self.value),
            self.valid_after.word(),
            self.valid_before.word(),
            self.nonce,
        ])
    }
}

/// What is signed for `transferWithAuthorization`, which anybody may send. `token` is the token's own domain.
#[must_use]
pub fn transfer_with_authorization_digest(token: &Domain, transfer: &TransferAuthorization) -> B256 {
    token.digest(transfer.hash(*TRANSFER_WITH_AUTHORIZATION))
}

/// What is signed for `receiveWithAuthorization`, which only `to` may send. `token` is the token's own domain.
#[must_use]
pub fn receive_with_authorization_digest(token: &Domain, transfer: &TransferAuthorization) -> B256 {
    token.digest(transfer.hash(*RECEIVE_WITH_AUTHORIZATION))
}

/// A transfer that a token's owner signs for Permit2 (`PermitWitnessTransferFrom`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permit2Transfer {
    /// The token.
    pub token: Address,
    /// The most that may move.
    pub amount: Amount,
    /// The contract that may move it.
    pub spender: Address,
    /// Used once per owner.
    pub nonce: U256,
    /// Unix seconds until which it is good, these included.
    pub deadline: U256,
    /// What the spender is bound to.
    pub witness: Witness,
}

/// What a Permit2 transfer binds its spender to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Witness {
    /// A deposit into one channel (scheme `batch-settlement`).
    Deposit {
        /// The channel.
        channel_id: B256,
    },
    /// A payment of the whole amount (scheme `exact`).
    Exact {
        /// Who is paid.
        to: Address,
        /// Unix seconds from which it is good.
        valid_after: U256,
    },
    /// A payment of at most the amount (scheme `upto`).
    Upto {
        /// Who is paid.
        to: Address,
        /// The only one that may settle.
        facilitator: Address,
        /// Unix seconds from which it is good.
        valid_after: U256,
    },
}

/// What is signed for a transfer through Permit2. `permit2` is [`Domain::permit2`].
#[must_use]
pub fn permit2_digest(permit2: &Domain, transfer: &Permit2Transfer) -> B256 {
    let (kind, witness) = match transfer.witness {
        Witness::Deposit { channel_id } => (*PERMIT_DEPOSIT, keccak256_words([*DEPOSIT_WITNESS, channel_id])),
        Witness::Exact { to, valid_after } => {
            (*PERMIT_EXACT, keccak256_words([*EXACT_WITNESS, to.word(), valid_after.word()]))
        }
        Witness::Upto { to, facilitator, valid_after } => {
            (*PERMIT_UPTO, keccak256_words([*UPTO_WITNESS, to.word(), facilitator.word(), valid_after.word()]))
        }
    };
    let permitted = keccak256_words([*TOKEN_PERMISSIONS, transfer.token.word(), word(transfer.amount)]);
    let (nonce, deadline) = (transfer.nonce.word(), transfer.deadline.word());
    permit2.digest(keccak256_words([kind, permitted, transfer.spender.word(), nonce, deadline, witness]))
}

#[cfg(test)]
mod tests;
