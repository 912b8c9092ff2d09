//! One field wrong at a time, and each has its code; nothing that is right is refused.

use ed25519_dalek::{Signer, SigningKey};
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::amount::Asset;
use crate::scheme::svm::{TOKEN_PROGRAM, USDC_DEVNET};
use crate::x402::Key;
use crate::x402::key::Signature;
use crate::x402::network::SOLANA_DEVNET;

fn key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

fn address(seed: u8) -> Key {
    Key(key(seed).verifying_key().to_bytes())
}

fn seller() -> Arc<Seller> {
    Arc::new(Seller {
        network: SOLANA_DEVNET.parse().unwrap(),
        asset: Arc::new(Asset { address: "x".into(), symbol: "USDC".into(), decimals: 6 }),
        mint: USDC_DEVNET,
        token_program: TOKEN_PROGRAM,
        pay_to: address(1),
        fee_payer: address(2),
        receiver_authorizer: address(2),
        withdraw_delay: 3600,
        treasury_owner: address(3),
    })
}

fn sign(channel: &Key, cumulative: u64, expires_at: i64, by: u8) -> Signature {
    Signature(key(by).sign(&voucher_message(channel, cumulative, expires_at)).to_bytes())
}

/// Payer 7 with authorizer 8, and a voucher over 5000.
fn payment() -> (ChannelConfig, BatchVoucher) {
    let terms = Terms::derive(seller(), address(7), address(8), 42, 341_000_000);
    let voucher = BatchVoucher {
        channel_id: terms.id,
        max_claimable_amount: Amount::new(5000),
        expires_at: 0,
        signature: sign(&terms.id, 5000, 0, 8),
    };
    (terms.config(), voucher)
}

#[test]
fn a_right_voucher_passes_with_and_without_its_channel_known() {
    let (config, voucher) = payment();
    let verified = verify(&seller(), &config, &voucher, None).unwrap();
    assert_eq!(verified.cumulative(), Amount::new(5000));
    assert_eq!(verified.terms().id, voucher.channel_id);
    let known = verified.terms().clone();
    let (terms, accepted) = verify(&seller(), &config, &voucher, Some(&known)).unwrap().into_parts();
    assert_eq!((terms, accepted.signature), (known, voucher.signature));
    let named = ChannelConfig { voucher_signer: Some("client".to_owned()), ..config };
    assert!(verify(&seller(), &named, &voucher, None).is_ok());
}

#[test]
fn one_field_wrong_is_refused_with_its_code() {
    type Tamper = fn(&mut ChannelConfig, &mut BatchVoucher);
    let table: &[(&str, Tamper, Reason)] = &[
        ("server signs", |c, _| c.voucher_signer = Some("server".to_owned()), Reason::BatchPayloadType),
        ("other signer word", |c, _| c.voucher_signer = Some(String::new()), Reason::BatchPayloadType),
        ("receiver", |c, _| c.receiver = address(9), Reason::InvalidRequirements),
        ("authorizer", |c, _| c.receiver_authorizer = address(9), Reason::BatchReceiverAuthorizerMismatch),
        ("token", |c, _| c.token = address(9), Reason::InvalidRequirements),
        ("delay", |c, _| c.withdraw_delay += 1, Reason::BatchWithdrawDelayMismatch),
        ("fee payer pays", |c, _| c.payer = address(2), Reason::BatchFeePayerMismatch),
        ("fee payer signs", |c, _| c.payer_authorizer = address(2), Reason::BatchFeePayerMismatch),
        ("payer", |c, _| c.payer = address(9), Reason::BatchChannelIdMismatch),
        ("payer authorizer", |c, _| c.payer_authorizer = address(9), Reason::BatchChannelIdMismatch),
        ("salt", |c, _| c.salt += 1, Reason::BatchChannelIdMismatch),
        ("open slot", |c, _| c.open_slot += 1, Reason::BatchChannelIdMismatch),
        ("channel", |_, v| v.channel_id = address(9), Reason::BatchChannelIdMismatch),
        ("expiry", |_, v| v.expires_at = 1, Reason::BatchVoucherExpiry),
        (
            "signed expiry",
            |_, v| {
                v.expires_at = i64::MAX;
                v.signature = sign(&v.channel_id, 5000, i64::MAX, 8);
            },
            Reason::BatchVoucherExpiry,
        ),
        ("amount", |_, v| v.max_claimable_amount = Amount::new(5001), Reason::BatchVoucherSignature),
        (
            "amount beyond u64",
            |_, v| v.max_claimable_amount = Amount::new(1 << 64),
            Reason::BatchCumulativeExceedsDeposit,
        ),
        ("signed by the payer", |_, v| v.signature = sign(&v.channel_id, 5000, 0, 7), Reason::BatchVoucherSignature),
        (
            "signed for another channel",
            |_, v| v.signature = sign(&address(9), 5000, 0, 8),
            Reason::BatchVoucherSignature,
        ),
        ("no signature", |_, v| v.signature = Signature([0; 64]), Reason::BatchVoucherSignature),
    ];
    let (config, voucher) = payment();
    let known = verify(&seller(), &config, &voucher, None).unwrap().terms().clone();
    for (name, tamper, reason) in table {
        let (mut config, mut voucher) = payment();
        tamper(&mut config, &mut voucher);
        for known in [None, Some(&known)] {
            let refused = verify(&seller(), &config, &voucher, known).unwrap_err();
            assert_eq!(refused.reason, *reason, "{name}");
            assert!(!refused.detail.is_empty(), "{name}");
        }
    }
}

#[test]
fn a_channel_from_before_a_change_of_the_seller_is_refused() {
    type Change = fn(&mut Seller);
    let table: &[(&str, Change, Reason)] = &[
        ("pay to", |s| s.pay_to = address(11), Reason::BatchChannelState),
        ("delay", |s| s.withdraw_delay = 7200, Reason::BatchWithdrawDelayMismatch),
        ("authorizer", |s| s.receiver_authorizer = address(11), Reason::BatchReceiverAuthorizerMismatch),
        ("fee payer", |s| s.fee_payer = address(11), Reason::BatchFeePayerMismatch),
    ];
    let (config, voucher) = payment();
    for (name, change, reason) in table {
        let mut old = Seller::clone(&seller());
        change(&mut old);
        let mut known =
            Terms::derive(Arc::new(old), config.payer, config.payer_authorizer, config.salt, config.open_slot);
        known.id = voucher.channel_id;
        assert_eq!(verify(&seller(), &config, &voucher, Some(&known)).unwrap_err().reason, *reason, "{name}");
    }
}

#[test]
fn a_signature_is_held_to_the_strict_rules() {
    let (config, mut voucher) = payment();
    // The group order added to `s`: the same signature to a lenient verifier, another and invalid one to the chain.
    const ORDER: [u8; 32] = [
        0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14, 0, 0, 0, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
    ];
    let mut carry = 0_u16;
    for (byte, order) in voucher.signature.0[32..].iter_mut().zip(ORDER) {
        let sum = u16::from(*byte) + u16::from(order) + carry;
        *byte = u8::try_from(sum & 0xff).unwrap();
        carry = sum >> 8;
    }
    assert_eq!(verify(&seller(), &config, &voucher, None).unwrap_err().reason, Reason::BatchVoucherSignature);
    // The identity as key and as R, with s = 0, verifies any message by the plain equation.
    let mut identity = [0; 32];
    identity[0] = 1;
    let terms = Terms::derive(seller(), address(7), Key(identity), 42, 341_000_000);
    let mut signature = [0; 64];
    signature[..32].copy_from_slice(&identity);
    let voucher = BatchVoucher { channel_id: terms.id, signature: Signature(signature), ..voucher };
    assert_eq!(verify(&seller(), &terms.config(), &voucher, None).unwrap_err().reason, Reason::BatchVoucherSignature);
}

/// Bytes that were written down once, so that no change of ours can move what clients sign.
#[test]
fn the_voucher_message_is_fixed() {
    let message = voucher_message(&Key([0xAB; 32]), 0x0102_0304_0506_0708, 0);
    let mut expected = vec![0x56, 0x01];
    expected.extend([0xAB; 32]);
    expected.extend([8, 7, 6, 5, 4, 3, 2, 1]);
    expected.extend([0; 8]);
    assert_eq!(message.to_vec(), expected);
    assert_eq!(voucher_message(&Key([0; 32]), 0, -1)[42..], [0xff; 8]);
    let signature = key(8).sign(&voucher_message(&Key([0xAB; 32]), 5000, 0)).to_bytes();
    assert_eq!(Signature(signature).to_string(), GOLDEN_SIGNATURE);
}

/// Made with another implementation (Node.js `crypto`) from the seed of 32 times 8.
const GOLDEN_SIGNATURE: &str =
    "iTJmdoLsmacdN3wzaYyop1Wm9RMhzEhT6dpyK2Ny9qHQjhb9zmLu4R8Tq6i68nzSpqgSptVcGhHXCKhQEDFvbbW";

#[test]
fn payloads_are_read_or_refused_with_their_code() {
    let (config, voucher) = payment();
    let right = json!({ "type": "voucher", "channelConfig": config, "voucher": voucher });
    assert!(matches!(parse(right.clone()), Ok(BatchPayload::Voucher { .. })));
    let with = |name: &str, value: Value| {
        let mut payload = right.clone();
        payload[name] = value;
        parse(payload).unwrap_err().reason
    };
    assert_eq!(with("type", json!("claim")), Reason::BatchPayloadType);
    assert_eq!(with("type", json!("authorization")), Reason::BatchPayloadType);
    assert_eq!(with("type", json!(1)), Reason::BatchPayloadType);
    assert_eq!(with("authorization", json!({ "type": "proof" })), Reason::BatchPayloadType);
    assert_eq!(with("type", json!("deposit")), Reason::InvalidPayload);
    assert_eq!(with("voucher", json!(null)), Reason::InvalidPayload);
    assert_eq!(with("channelConfig", json!({})), Reason::InvalidPayload);
    for payload in [json!(null), json!([]), json!("voucher"), json!({}), json!(7)] {
        assert_eq!(parse(payload).unwrap_err().reason, Reason::BatchPayloadType);
    }
}

#[test]
fn the_payment_flow_may_only_be_the_default() {
    let flow = |flow: Value| check_payment_flow(&Map::from_iter([("paymentFlow".to_owned(), flow)]));
    assert!(check_payment_flow(&Map::new()).is_ok());
    assert!(flow(json!("authorization")).is_ok());
    for other in [json!("escrow"), json!(null), json!(1)] {
        assert_eq!(flow(other).unwrap_err().reason, Reason::BatchPaymentFlow);
    }
}

proptest! {
    /// Invariant L4: what passes is what the chain's own rule accepts, over the very bytes that the chain will see.
    #[test]
    fn no_other_signature_passes(cumulative in any::<u64>(), flip in 0_usize..512) {
        let (config, mut voucher) = payment();
        voucher.max_claimable_amount = cumulative.into();
        voucher.signature = sign(&voucher.channel_id, cumulative, 0, 8);
        prop_assert!(verify(&seller(), &config, &voucher, None).is_ok());
        voucher.signature.0[flip / 8] ^= 1 << (flip % 8);
        prop_assert_eq!(verify(&seller(), &config, &voucher, None).unwrap_err().reason, Reason::BatchVoucherSignature);
    }

    #[test]
    fn no_payload_panics(text in "[ -~]{0,200}") {
        if let Ok(value) = serde_json::from_str::<Value>(&text) {
            let _ = parse(value);
        }
    }
}
