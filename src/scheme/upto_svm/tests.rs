//! One field wrong at a time, and each has its code; nothing that is right is refused.

use serde_json::json;

use super::*;
use crate::amount::Asset;
use crate::scheme::svm::{TOKEN_PROGRAM, USDC_DEVNET};
use crate::x402::Key;
use crate::x402::network::SOLANA_DEVNET;

const NOW: i64 = 1_800_000_000;
const OFFERED: Offered = Offered { amount: Amount::new(10_000), timeout_seconds: 300, lifetime_seconds_max: 600 };

fn seller() -> Arc<Seller> {
    Arc::new(Seller {
        network: SOLANA_DEVNET.parse().unwrap(),
        asset: Arc::new(Asset { address: "x".into(), symbol: "USDC".into(), decimals: 6 }),
        mint: USDC_DEVNET,
        token_program: TOKEN_PROGRAM,
        pay_to: Key([1; 32]),
        fee_payer: Key([2; 32]),
        receiver_authorizer: Key([2; 32]),
        withdraw_delay: 3600,
        treasury_owner: Key([3; 32]),
    })
}

fn payload() -> UptoPayload {
    let terms = Terms::derive(seller(), Key([7; 32]), Key([2; 32]), 42, 341_000_000);
    UptoPayload {
        from: Key([7; 32]),
        max_amount: Amount::new(10_000),
        expires_at: NOW + 300,
        valid_after: NOW,
        nonce: 42,
        open_slot: 341_000_000,
        channel_id: terms.id,
        deposit: Amount::new(10_000),
        authorized_signer: Key([2; 32]),
        open_transaction: "AAAA".to_owned(),
        voucher_signature: None,
    }
}

#[test]
fn a_right_payload_passes() {
    let verified = verify(&seller(), OFFERED, payload(), NOW).unwrap();
    assert_eq!((verified.deposit(), verified.expires_at()), (Amount::new(10_000), NOW + 300));
    let (terms, transaction) = verified.into_parts();
    assert_eq!(terms.id, payload().channel_id);
    assert_eq!(terms.authorizer, seller().receiver_authorizer);
    assert_eq!(transaction, "AAAA");
}

#[test]
fn one_field_wrong_is_refused_with_its_code() {
    type Tamper = fn(&mut UptoPayload);
    let table: &[(&str, Tamper, Reason)] = &[
        ("voucher", |p| p.voucher_signature = Some(json!("")), Reason::UptoUnexpectedVoucher),
        ("ceiling above", |p| p.max_amount = Amount::new(10_001), Reason::UptoAmountMismatch),
        ("ceiling below", |p| p.max_amount = Amount::new(9_999), Reason::UptoAmountMismatch),
        ("deposit", |p| p.deposit = Amount::new(20_000), Reason::UptoDepositNotCeiling),
        ("authorizer", |p| p.authorized_signer = Key([9; 32]), Reason::UptoReceiverAuthorizer),
        ("fee payer pays", |p| p.from = Key([2; 32]), Reason::UptoPayerMismatch),
        ("payer", |p| p.from = Key([9; 32]), Reason::UptoChannelId),
        ("nonce", |p| p.nonce += 1, Reason::UptoChannelId),
        ("slot", |p| p.open_slot += 1, Reason::UptoChannelId),
        ("channel", |p| p.channel_id = Key([9; 32]), Reason::UptoChannelId),
        ("not yet", |p| p.valid_after = NOW + 1, Reason::UptoNotYetActive),
        ("never expires", |p| p.expires_at = 0, Reason::UptoExpired),
        ("negative", |p| p.expires_at = -1, Reason::UptoExpired),
        ("expired", |p| p.expires_at = NOW, Reason::UptoExpired),
        ("about to expire", |p| p.expires_at = NOW + LIFE_SECONDS_MIN, Reason::UptoExpired),
        ("later than offered", |p| p.expires_at = NOW + 361, Reason::UptoExpiresAtMismatch),
        ("later than allowed", |p| p.expires_at = NOW + 661, Reason::UptoLifetimeExceeded),
        ("forever", |p| p.expires_at = i64::MAX, Reason::UptoLifetimeExceeded),
    ];
    for (name, tamper, reason) in table {
        let mut payload = payload();
        tamper(&mut payload);
        assert_eq!(verify(&seller(), OFFERED, payload, NOW).unwrap_err().reason, *reason, "{name}");
    }
}

#[test]
fn deadlines_are_exact() {
    for (expires_at, passes) in [(NOW + 11, true), (NOW + 10, false), (NOW + 360, true), (NOW + 361, false)] {
        let verified = verify(&seller(), OFFERED, UptoPayload { expires_at, ..payload() }, NOW);
        assert_eq!(verified.is_ok(), passes, "{}", expires_at - NOW);
    }
    let brief = Offered { timeout_seconds: 4, ..OFFERED };
    assert!(verify(&seller(), brief, UptoPayload { expires_at: NOW + 3, ..payload() }, NOW).is_ok());
    let endless = Offered { timeout_seconds: u64::MAX, lifetime_seconds_max: u64::MAX, ..OFFERED };
    assert!(verify(&seller(), endless, UptoPayload { expires_at: i64::MAX, ..payload() }, i64::MAX - 20).is_ok());
}

#[test]
fn payloads_are_read_or_refused_with_their_code() {
    let right = serde_json::to_value(payload()).unwrap();
    assert_eq!(parse(right.clone()).unwrap(), payload());
    let with = |name: &str, value: Value| {
        let mut payload = right.clone();
        payload[name] = value;
        parse(payload)
    };
    assert_eq!(with("openSlot", json!("341000000")).unwrap(), payload(), "the reference client writes text");
    for voucher in [json!(""), json!(null), json!("x"), json!({})] {
        assert_eq!(with("voucherSignature", voucher).unwrap_err().reason, Reason::UptoUnexpectedVoucher);
    }
    for (name, value) in [
        ("from", json!("x")),
        ("maxAmount", json!(10_000)),
        ("maxAmount", json!("-1")),
        ("expiresAt", json!("1")),
        ("nonce", json!(42)),
        ("nonce", json!("18446744073709551616")),
        ("openSlot", json!(-1)),
        ("openTransaction", json!(null)),
    ] {
        assert_eq!(with(name, value.clone()).unwrap_err().reason, Reason::InvalidPayload, "{name} {value}");
    }
    assert_eq!(parse(json!(null)).unwrap_err().reason, Reason::InvalidPayload);
}
