//! Digests and signatures against what viem makes of the same (`tests/vectors/evm/golden.json`, by
//! `tests/interop/golden.mjs`): channels, vouchers, claims, refunds and deposits, with the greatest and least numbers
//! among them.

use serde::Deserialize;
use turnpike::amount::Amount;
use turnpike::scheme::evm::contracts;
use turnpike::scheme::evm::eip712::{
    ChannelConfig, ClaimEntry, Domain, Permit2Transfer, TransferAuthorization, Witness, channel_id, claim_batch_digest,
    deposit_nonce, permit2_digest, receive_with_authorization_digest, refund_digest, voucher_digest,
};
use turnpike::scheme::evm::signature::signer;
use turnpike::x402::evm::{Address, B256, EvmSignature, U256};

#[derive(Deserialize)]
struct Golden {
    channels: Vec<Channel>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Channel {
    chain_id: String,
    verifying_contract: Address,
    config: Config,
    channel_id: B256,
    voucher: Voucher,
    claim_batch: ClaimBatch,
    refund: Refund,
    erc3009_deposit: Eip3009Deposit,
    permit2_deposit: Permit2Deposit,
}

/// A `ChannelConfig`, but for the number, which the file has as text.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    payer: Address,
    payer_authorizer: Address,
    receiver: Address,
    receiver_authorizer: Address,
    token: Address,
    withdraw_delay: String,
    salt: B256,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Voucher {
    max_claimable_amount: Amount,
    digest: B256,
    signature: EvmSignature,
}

#[derive(Deserialize)]
struct ClaimBatch {
    claims: Vec<Claim>,
    digest: B256,
    signature: EvmSignature,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Claim {
    salt: B256,
    channel_id: B256,
    max_claimable_amount: Amount,
    total_claimed: Amount,
    signature: EvmSignature,
}

#[derive(Deserialize)]
struct Refund {
    nonce: U256,
    amount: Amount,
    digest: B256,
    signature: EvmSignature,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Eip3009Deposit {
    amount: Amount,
    valid_after: U256,
    valid_before: U256,
    salt: U256,
    name: String,
    version: String,
    nonce: B256,
    digest: B256,
    signature: EvmSignature,
}

#[derive(Deserialize)]
struct Permit2Deposit {
    amount: Amount,
    nonce: U256,
    deadline: U256,
    digest: B256,
    signature: EvmSignature,
}

impl Channel {
    fn config(&self, salt: B256) -> ChannelConfig {
        let config = &self.config;
        ChannelConfig {
            payer: config.payer,
            payer_authorizer: config.payer_authorizer,
            receiver: config.receiver,
            receiver_authorizer: config.receiver_authorizer,
            token: config.token,
            withdraw_delay: config.withdraw_delay.parse().unwrap(),
            salt,
        }
    }

    /// Who signs vouchers: the payer itself where it names nobody.
    fn authorizer(&self) -> Address {
        if self.config.payer_authorizer.is_zero() { self.config.payer } else { self.config.payer_authorizer }
    }

    fn chain_id(&self) -> u64 {
        self.chain_id.parse().unwrap()
    }

    fn domain(&self) -> Domain {
        Domain::batch_settlement(self.chain_id())
    }
}

fn channels() -> Vec<Channel> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/evm/golden.json");
    let golden: Golden = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert!(golden.channels.len() >= 100, "the vectors were not found");
    golden.channels
}

#[test]
fn channels_have_their_ids() {
    for channel in channels() {
        assert_eq!(channel.verifying_contract, contracts::BATCH_SETTLEMENT);
        assert_eq!(channel_id(&channel.domain(), &channel.config(channel.config.salt)), channel.channel_id);
    }
}

#[test]
fn vouchers_are_signed_over_our_digests() {
    for channel in channels() {
        let voucher = &channel.voucher;
        let digest = voucher_digest(&channel.domain(), &channel.channel_id, voucher.max_claimable_amount);
        assert_eq!(digest, voucher.digest);
        assert_eq!(signer(&digest, &voucher.signature), Some(channel.authorizer()));
    }
}

#[test]
fn claims_are_signed_over_our_digests() {
    for channel in channels() {
        let mut entries = Vec::new();
        for claim in &channel.claim_batch.claims {
            let id = channel_id(&channel.domain(), &channel.config(claim.salt));
            assert_eq!(id, claim.channel_id);
            let digest = voucher_digest(&channel.domain(), &id, claim.max_claimable_amount);
            assert_eq!(signer(&digest, &claim.signature), Some(channel.authorizer()));
            entries.push(ClaimEntry {
                channel_id: id,
                max_claimable_amount: claim.max_claimable_amount,
                total_claimed: claim.total_claimed,
            });
        }
        let digest = claim_batch_digest(&channel.domain(), &entries);
        assert_eq!(digest, channel.claim_batch.digest);
        assert_eq!(signer(&digest, &channel.claim_batch.signature), Some(channel.config.receiver_authorizer));
    }
}

#[test]
fn refunds_are_signed_over_our_digests() {
    for channel in channels() {
        let refund = &channel.refund;
        let digest = refund_digest(&channel.domain(), &channel.channel_id, refund.nonce, refund.amount);
        assert_eq!(digest, refund.digest);
        assert_eq!(signer(&digest, &refund.signature), Some(channel.config.receiver_authorizer));
    }
}

#[test]
fn deposits_by_eip_3009_are_signed_over_our_digests() {
    for channel in channels() {
        let deposit = &channel.erc3009_deposit;
        let nonce = deposit_nonce(&channel.channel_id, deposit.salt);
        assert_eq!(nonce, deposit.nonce);
        let transfer = TransferAuthorization {
            from: channel.config.payer,
            to: contracts::EIP3009_COLLECTOR,
            value: deposit.amount,
            valid_after: deposit.valid_after,
            valid_before: deposit.valid_before,
            nonce,
        };
        let token = Domain::new(&deposit.name, &deposit.version, channel.chain_id(), channel.config.token);
        let digest = receive_with_authorization_digest(&token, &transfer);
        assert_eq!(digest, deposit.digest);
        assert_eq!(signer(&digest, &deposit.signature), Some(channel.config.payer));
    }
}

#[test]
fn deposits_by_permit2_are_signed_over_our_digests() {
    for channel in channels() {
        let deposit = &channel.permit2_deposit;
        let transfer = Permit2Transfer {
            token: channel.config.token,
            amount: deposit.amount,
            spender: contracts::PERMIT2_COLLECTOR,
            nonce: deposit.nonce,
            deadline: deposit.deadline,
            witness: Witness::Deposit { channel_id: channel.channel_id },
        };
        let digest = permit2_digest(&Domain::permit2(channel.chain_id()), &transfer);
        assert_eq!(digest, deposit.digest);
        assert_eq!(signer(&digest, &deposit.signature), Some(channel.config.payer));
    }
}
