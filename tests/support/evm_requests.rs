//! Requests to a receiver authorizer as a healthy proxy makes them, open to mutation.

#![allow(dead_code, reason = "each test binary uses its own part")]

use secp256k1::ecdsa::RecoverableSignature;
use secp256k1::{Message, PublicKey, SecretKey};
use turnpike::amount::Amount;
use turnpike::policy::EvmPolicy;
use turnpike::scheme::evm::contracts::BATCH_SETTLEMENT;
use turnpike::scheme::evm::eip712::{self, ChannelConfig, ClaimEntry, Domain};
use turnpike::scheme::evm::signature;
use turnpike::signer::rules::evm::{EVM_KINDS, EvmRules};
use turnpike::signer::{Approved, Deployment, EvmClaim, EvmRefund, EvmRequest};
use turnpike::x402::evm::{Address, AnySignature, B256, EvmSignature, U256};

pub const CHAIN_ID: u64 = 84_532;
pub const CHANNEL_MAX: u128 = 10_000_000;
pub const CLAIM_MAX: u128 = 50_000_000;
pub const PAY_TO: Address = Address([0xA0; 20]);
pub const TOKEN: Address = Address([0x70; 20]);
pub const CONTRACT: Deployment = Deployment { chain_id: CHAIN_ID, address: BATCH_SETTLEMENT };

pub fn rules() -> EvmRules {
    EvmRules {
        chain_id: CHAIN_ID,
        pay_to: vec![PAY_TO, Address([0xA1; 20])],
        tokens: vec![TOKEN],
        channel_max: Amount::new(CHANNEL_MAX),
        claim_max: Amount::new(CLAIM_MAX),
        kinds: EVM_KINDS.to_vec(),
    }
}

/// The request, as a policy lets it through that pays the same recipients.
pub fn approved(request: EvmRequest) -> Approved<EvmRequest> {
    EvmPolicy::unlimited(rules().pay_to).approve(request, Amount::ZERO).unwrap()
}

/// What the contract computes for a request, without the signer's own code path.
pub fn digest(request: &EvmRequest) -> B256 {
    let domain = Domain::batch_settlement(CHAIN_ID);
    match request {
        EvmRequest::ClaimBatch { claims, .. } => {
            let entries: Vec<ClaimEntry> = claims
                .iter()
                .map(|claim| ClaimEntry {
                    channel_id: eip712::channel_id(&domain, &claim.config),
                    max_claimable_amount: claim.max_claimable,
                    total_claimed: claim.total_claimed,
                })
                .collect();
            eip712::claim_batch_digest(&domain, &entries)
        }
        EvmRequest::Refund { refund, .. } => {
            let channel = eip712::channel_id(&domain, &refund.config);
            eip712::refund_digest(&domain, &channel, refund.nonce, refund.amount)
        }
        EvmRequest::AuditCheckpoint(checkpoint) => checkpoint.evm_digest(),
    }
}

/// Those who take part: the authorizer, and a payer with one channel for each salt.
pub struct Cast {
    pub authorizer: Address,
    pub payer: SecretKey,
}

impl Cast {
    pub fn new(authorizer: Address) -> Self {
        Self { authorizer, payer: SecretKey::from_secret_bytes([0x11; 32]).unwrap() }
    }

    pub fn payer_address(&self) -> Address {
        signature::address_of(&PublicKey::from_secret_key(&self.payer))
    }

    pub fn config(&self, salt: u8) -> ChannelConfig {
        ChannelConfig {
            payer: Address([0x33; 20]),
            payer_authorizer: self.payer_address(),
            receiver: PAY_TO,
            receiver_authorizer: self.authorizer,
            token: TOKEN,
            withdraw_delay: 86_400,
            salt: B256([salt; 32]),
        }
    }

    /// A claim with the payer's signature.
    pub fn claim(&self, salt: u8, max_claimable: u128, total_claimed: u128) -> EvmClaim {
        let (config, max_claimable) = (self.config(salt), Amount::new(max_claimable));
        let voucher = self.voucher(&config, max_claimable);
        EvmClaim { config, max_claimable, total_claimed: Amount::new(total_claimed), voucher }
    }

    pub fn voucher(&self, config: &ChannelConfig, max_claimable: Amount) -> AnySignature {
        let domain = Domain::batch_settlement(CHAIN_ID);
        let digest = eip712::voucher_digest(&domain, &eip712::channel_id(&domain, config), max_claimable);
        sign(&self.payer, &digest).into()
    }

    /// A batch of `count` claims, of 1,000,000 and less each.
    pub fn batch(&self, count: u8) -> EvmRequest {
        let claims = (0..count).map(|salt| self.claim(salt, 1_000_000, 400_000 + u128::from(salt))).collect();
        EvmRequest::ClaimBatch { contract: CONTRACT, claims }
    }

    pub fn refund(&self) -> EvmRequest {
        let refund = EvmRefund {
            config: self.config(1),
            nonce: U256::from(3_u64),
            amount: Amount::new(600_000),
            balance: Amount::new(1_000_000),
            total: Amount::new(400_000),
        };
        EvmRequest::Refund { contract: CONTRACT, refund }
    }
}

pub fn sign(key: &SecretKey, digest: &B256) -> EvmSignature {
    let (id, compact) =
        RecoverableSignature::sign_ecdsa_recoverable(Message::from_digest(digest.0), key).serialize_compact();
    let mut signature = [0; 65];
    signature[..64].copy_from_slice(&compact);
    signature[64] = 27 + id.to_u8();
    EvmSignature(signature)
}
