//! Against signatures of the reference client and server on a chain (chain id 84532): who is recovered from our digest
//! has signed the same one. `tests/evm_golden.rs` has the digests themselves.

use super::*;
use crate::scheme::evm::signature::signer;
use crate::x402::evm::EvmSignature;

const CHAIN_ID: u64 = 84_532;
const PAYER: Address = Address::literal("0x70997970C51812dc3A010C7d01b50e0d17dc79C8");
const RECEIVER: Address = Address::literal("0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC");
const AUTHORIZER: Address = Address::literal("0x90F79bf6EB2c4f870365E785982E1f101E93b906");
const USDC: Address = Address::literal("0x036CbD53842c5426634e7929541eC2318f3dCF7e");
const CHANNEL: B256 = B256::literal("0x4d4db9b68f41d215d4c79aad0de7bd1e41fe61f85441749c9415b78d1f9f4db7");

fn config() -> ChannelConfig {
    ChannelConfig {
        payer: PAYER,
        payer_authorizer: PAYER,
        receiver: RECEIVER,
        receiver_authorizer: AUTHORIZER,
        token: USDC,
        withdraw_delay: 900,
        salt: B256::literal("0xd8a0748701a738eb5d903effdc1cf1b88ca7d480fa630eb0e7eae22a7f60c214"),
    }
}

fn signed_by(digest: B256, signature: &str) -> Option<Address> {
    signer(&digest, &signature.parse::<EvmSignature>().unwrap())
}

#[test]
fn a_channel_has_the_id_that_the_reference_gives_it() {
    let domain = Domain::batch_settlement(CHAIN_ID);
    assert_eq!(channel_id(&domain, &config()), CHANNEL);
    let text = serde_json::to_string(&config()).unwrap();
    assert_eq!(serde_json::from_str::<ChannelConfig>(&text).unwrap(), config());
    let changes: [fn(&mut ChannelConfig); 7] = [
        |c| c.payer.0[0] ^= 1,
        |c| c.payer_authorizer.0[0] ^= 1,
        |c| c.receiver.0[0] ^= 1,
        |c| c.receiver_authorizer.0[0] ^= 1,
        |c| c.token.0[0] ^= 1,
        |c| c.withdraw_delay += 1,
        |c| c.salt.0[0] ^= 1,
    ];
    for (n, change) in changes.into_iter().enumerate() {
        let mut other = config();
        change(&mut other);
        assert_ne!(channel_id(&domain, &other), CHANNEL, "{n}");
    }
    assert_ne!(channel_id(&Domain::batch_settlement(8453), &config()), CHANNEL);
}

#[test]
fn a_withdrawal_delay_is_a_uint40() {
    let with = |delay: u64| {
        let text = serde_json::to_string(&config()).unwrap().replace(":900", &format!(":{delay}"));
        serde_json::from_str::<ChannelConfig>(&text).map(|config| config.withdraw_delay)
    };
    assert_eq!(with(1_099_511_627_775).unwrap(), 1_099_511_627_775);
    assert!(with(1_099_511_627_776).is_err());
}

#[test]
fn a_payers_signatures_are_over_our_digests() {
    let domain = Domain::batch_settlement(CHAIN_ID);
    let voucher = "0xeeec4a57fb20b86496ac82b1a02f2217b9204a1bc5d521f9d5b4e7ae42a155fb253aa909091e93d0146d8440bb3ceeacb789767b2cc49cd92055838f3998dbed1c";
    assert_eq!(signed_by(voucher_digest(&domain, &CHANNEL, Amount::new(1000)), voucher), Some(PAYER));
    assert_ne!(signed_by(voucher_digest(&domain, &CHANNEL, Amount::new(1001)), voucher), Some(PAYER));

    let deposit = TransferAuthorization {
        from: PAYER,
        to: contracts::EIP3009_COLLECTOR,
        value: Amount::new(10_000),
        valid_after: U256::ZERO,
        valid_before: 1_795_461_862_u64.into(),
        nonce: deposit_nonce(
            &CHANNEL,
            "0xf11b80ea37ee844a36e8e2949bc8dee8bff93da460efcf3fc5ae17a84eda8814".parse().unwrap(),
        ),
    };
    let signature = "0x5585bd4f6d58561054ee1bb4774ad6ba22dc95bd94bc93964fe6b7de2ce752525a73d9d959947731cc4a7a22d2a1a564e59164667d4e8099bcfa3c374f1357e61b";
    let usdc = Domain::new("USDC", "2", CHAIN_ID, USDC);
    assert_eq!(signed_by(receive_with_authorization_digest(&usdc, &deposit), signature), Some(PAYER));
    assert_ne!(signed_by(transfer_with_authorization_digest(&usdc, &deposit), signature), Some(PAYER));
}

#[test]
fn a_receiver_authorizers_signatures_are_over_our_digests() {
    let domain = Domain::batch_settlement(CHAIN_ID);
    let amount = Amount::new(8300);
    let claim = ClaimEntry { channel_id: CHANNEL, max_claimable_amount: amount, total_claimed: amount };
    let claimed = "0x150ab50f7a76ddff92323e4f2d8b01ba962e1a7e3dd2e12148d7e99c1c46a3904d67e023e0e0c79070f4bb229feed188bf3cf494a9c3b6e8efe3042598d984be1c";
    assert_eq!(signed_by(claim_batch_digest(&domain, &[claim]), claimed), Some(AUTHORIZER));
    assert_ne!(signed_by(claim_batch_digest(&domain, &[claim, claim]), claimed), Some(AUTHORIZER));

    let refunded = "0xec041231b7511679335272854de4dab3d8c9644b76fde1cb7801d2a1f9a9659c18ecea4d23442710592cf1ab9aafe695ab05fedc78f0e38269a51c645754aa2b1b";
    let digest = |nonce: u64| refund_digest(&domain, &CHANNEL, nonce.into(), Amount::new(1700));
    assert_eq!(signed_by(digest(0), refunded), Some(AUTHORIZER));
    assert_ne!(signed_by(digest(1), refunded), Some(AUTHORIZER));
}
