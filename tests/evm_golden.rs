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

/// Payments of the reference client by the schemes that pay once (`tests/vectors/evm/payments.json`, by
/// `tests/interop/payments.mjs`).
mod payments {
    use serde_json::Value;
    use turnpike::scheme::evm::TransferMethod;
    use turnpike::scheme::evm::authorization::EvmOffer;
    use turnpike::scheme::evm::signature::Signed;
    use turnpike::scheme::exact_evm::{self, Version};
    use turnpike::scheme::upto_evm;
    use turnpike::x402::Network;
    use turnpike::x402::v1::PaymentRequirementsV1;
    use turnpike::x402::wire::{PaymentRequirements, ResourceInfo};

    use super::*;

    #[derive(Deserialize)]
    struct Payment {
        version: u32,
        payer: Address,
        now: u64,
        requirements: Value,
        payload: Value,
    }

    fn payments() -> Vec<Payment> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/evm/payments.json");
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    /// The offer that the requirements make.
    fn offer(network: &Network, amount: Amount, requirements: &Value) -> EvmOffer {
        let text = |field: &str| requirements.pointer(field).and_then(Value::as_str).unwrap();
        let permit2 = requirements.pointer("/extra/assetTransferMethod").is_some();
        EvmOffer {
            network: network.clone(),
            chain_id: network.chain_id().unwrap(),
            token: text("/asset").parse().unwrap(),
            token_name: text("/extra/name").into(),
            token_version: text("/extra/version").into(),
            transfer_method: if permit2 { TransferMethod::Permit2 } else { TransferMethod::Eip3009 },
            pay_to: text("/payTo").parse().unwrap(),
            amount,
        }
    }

    #[test]
    fn the_reference_clients_payments_pass() {
        let mut seen = Vec::new();
        for payment in payments().into_iter().filter(|payment| payment.version == 2) {
            let requirements: PaymentRequirements = serde_json::from_value(payment.requirements.clone()).unwrap();
            let offer = offer(&requirements.network, requirements.amount, &payment.requirements);
            let (payer, signed) = if requirements.scheme == upto_evm::SCHEME {
                let facilitator = requirements.extra["facilitatorAddress"].as_str().unwrap().parse().unwrap();
                assert_eq!(upto_evm::extra(&offer, facilitator), requirements.extra);
                let payload = upto_evm::parse(payment.payload.clone()).unwrap();
                assert_eq!(serde_json::to_value(&payload).unwrap(), payment.payload);
                let passed = upto_evm::check(&offer, facilitator, payload, payment.now).unwrap();
                (passed.payer(), passed.signed())
            } else {
                assert_eq!(offer.extra(), requirements.extra);
                let payload = exact_evm::parse(payment.payload.clone()).unwrap();
                assert_eq!(serde_json::to_value(&payload).unwrap(), payment.payload);
                let passed = exact_evm::check(&offer, payload, payment.now, Version::V2).unwrap();
                (passed.payer(), passed.signed())
            };
            assert_eq!((payer, signed), (payment.payer, Signed::ByKey), "{}", payment.requirements);
            seen.push((requirements.scheme, offer.transfer_method));
        }
        for (scheme, method) in
            [("exact", TransferMethod::Eip3009), ("exact", TransferMethod::Permit2), ("upto", TransferMethod::Permit2)]
        {
            assert!(seen.contains(&(scheme.to_owned(), method)), "{scheme} by {method:?}");
        }
    }

    #[test]
    fn the_reference_clients_payments_of_version_1_pass() {
        let of_version_1: Vec<_> = payments().into_iter().filter(|payment| payment.version == 1).collect();
        assert!(!of_version_1.is_empty());
        for payment in of_version_1 {
            let requirements: PaymentRequirementsV1 = serde_json::from_value(payment.requirements.clone()).unwrap();
            let network = Network::of_short_name(&requirements.network).unwrap();
            let offer = offer(&network, requirements.max_amount_required, &payment.requirements);
            let resource = ResourceInfo { url: requirements.resource.clone(), ..ResourceInfo::default() };
            let ours = exact_evm::requirements_v1(&offer, &resource, requirements.max_timeout_seconds).unwrap();
            assert_eq!(ours, requirements);
            let payload = exact_evm::parse(payment.payload).unwrap();
            let passed = exact_evm::check(&offer, payload, payment.now, Version::V1).unwrap();
            assert_eq!((passed.payer(), passed.signed()), (payment.payer, Signed::ByKey));
        }
    }
}
