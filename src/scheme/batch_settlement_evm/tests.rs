//! One field wrong at a time, and each has its code; nothing that is right is refused.

use proptest::prelude::*;
use serde_json::json;

use super::payload::DepositAuthorization;
use super::*;
use crate::scheme::evm::eip712::Domain;
use crate::scheme::evm::testing::{self, TestKey};
use crate::x402::evm::{Address, B256};

fn seller() -> Arc<EvmSeller> {
    Arc::new(testing::seller(TransferMethod::Eip3009))
}

fn sign(seller: &EvmSeller, id: &B256, cumulative: u128, by: u8) -> AnySignature {
    TestKey::new(by).sign(&voucher_digest(&seller.domain, id, Amount::new(cumulative))).into()
}

/// Payer 7 with authorizer 8, and a voucher over 5000.
fn payment() -> (ChannelConfig, EvmVoucher) {
    let seller = seller();
    let (payer, authorizer) = (TestKey::new(7).address(), TestKey::new(8).address());
    let terms = EvmTerms::derive(Arc::clone(&seller), payer, authorizer, B256([42; 32]));
    let voucher = EvmVoucher {
        channel_id: terms.id,
        max_claimable_amount: Amount::new(5000),
        signature: sign(&seller, &terms.id, 5000, 8),
    };
    (terms.config(), voucher)
}

#[test]
fn a_right_voucher_passes_with_and_without_its_channel_known() {
    let (config, voucher) = payment();
    let Checked::Verified(verified) = verify(&seller(), &config, &voucher, None).unwrap() else { panic!("by a key") };
    assert_eq!(verified.cumulative(), Amount::new(5000));
    assert_eq!(verified.terms().config(), config);
    let known = verified.terms().clone();
    let Checked::Verified(verified) = verify(&seller(), &config, &voucher, Some(&known)).unwrap() else {
        panic!("by a key")
    };
    let expected = Voucher { cumulative: Amount::new(5000), signature: voucher.signature };
    assert_eq!(verified.into_parts(), (known, expected));
}

#[test]
fn a_channel_that_is_not_the_voucher_s_does_not_help() {
    let (config, voucher) = payment();
    let other = EvmTerms::derive(seller(), config.payer, config.payer_authorizer, B256([43; 32]));
    assert!(matches!(verify(&seller(), &config, &voucher, Some(&other)), Ok(Checked::Verified(_))));
    let elsewhere = EvmSeller {
        chain_id: 8453,
        domain: Domain::batch_settlement(8453),
        ..testing::seller(TransferMethod::Eip3009)
    };
    let mut same_terms = EvmTerms::derive(Arc::new(elsewhere), config.payer, config.payer_authorizer, config.salt);
    same_terms.id = voucher.channel_id;
    assert!(matches!(verify(&seller(), &config, &voucher, Some(&same_terms)), Ok(Checked::Verified(_))));
}

#[test]
fn what_is_wrong_is_refused_with_its_code() {
    type Change = fn(&mut ChannelConfig, &mut EvmVoucher);
    /// Signs for the changed terms, so that they alone are wrong.
    fn resign(config: &ChannelConfig, voucher: &mut EvmVoucher) {
        voucher.channel_id = channel_id(&seller().domain, config);
        voucher.signature = sign(&seller(), &voucher.channel_id, voucher.max_claimable_amount.get(), 8);
    }
    let table: &[(&str, Change, Reason)] = &[
        ("id", |_, v| v.channel_id.0[0] ^= 1, Reason::EvmBatchChannelIdMismatch),
        ("salt", |c, _| c.salt.0[31] ^= 1, Reason::EvmBatchChannelIdMismatch),
        ("payer", |c, _| c.payer.0[19] ^= 1, Reason::EvmBatchChannelIdMismatch),
        (
            "token",
            |c, v| {
                c.token.0[0] ^= 1;
                resign(c, v);
            },
            Reason::EvmBatchTokenMismatch,
        ),
        (
            "receiver",
            |c, v| {
                c.receiver.0[0] ^= 1;
                resign(c, v);
            },
            Reason::EvmBatchReceiverMismatch,
        ),
        (
            "receiver authorizer",
            |c, v| {
                c.receiver_authorizer.0[0] ^= 1;
                resign(c, v);
            },
            Reason::EvmBatchReceiverAuthorizerMismatch,
        ),
        (
            "delay",
            |c, v| {
                c.withdraw_delay += 1;
                resign(c, v);
            },
            Reason::EvmBatchWithdrawDelayMismatch,
        ),
        (
            "authorizer",
            |c, v| {
                c.payer_authorizer.0[0] ^= 1;
                resign(c, v);
            },
            Reason::EvmBatchVoucherSignature,
        ),
        ("amount", |_, v| v.max_claimable_amount = Amount::new(5001), Reason::EvmBatchVoucherSignature),
        (
            "by the payer",
            |_, v| v.signature = sign(&seller(), &v.channel_id, 5000, 7),
            Reason::EvmBatchVoucherSignature,
        ),
        ("short", |_, v| v.signature = "0x1234".parse().unwrap(), Reason::EvmBatchVoucherSignature),
        (
            "wrapped",
            |_, v| v.signature = format!("{}00", v.signature).parse().unwrap(),
            Reason::EvmBatchVoucherSignature,
        ),
    ];
    for (name, change, reason) in table {
        let (mut config, mut voucher) = payment();
        let known = EvmTerms::derive(seller(), config.payer, config.payer_authorizer, config.salt);
        change(&mut config, &mut voucher);
        for known in [None, Some(&known)] {
            let refused = verify(&seller(), &config, &voucher, known).map(|_| ()).unwrap_err();
            assert_eq!(refused.reason, *reason, "{name}");
        }
    }
}

#[test]
fn terms_that_no_contract_takes_are_refused_even_where_they_are_ours() {
    let with = |change: fn(&mut EvmSeller)| {
        let mut seller = testing::seller(TransferMethod::Eip3009);
        change(&mut seller);
        let seller = Arc::new(seller);
        let (config, mut voucher) = payment();
        let terms = EvmTerms::derive(Arc::clone(&seller), config.payer, config.payer_authorizer, config.salt);
        voucher.channel_id = terms.id;
        voucher.signature = sign(&seller, &terms.id, 5000, 8);
        verify(&seller, &terms.config(), &voucher, None).map(|_| ()).map_err(|refused| refused.reason)
    };
    assert_eq!(with(|_| {}), Ok(()));
    assert_eq!(with(|s| s.withdraw_delay = 2_592_000), Ok(()));
    assert_eq!(with(|s| s.withdraw_delay = 899), Err(Reason::EvmBatchWithdrawDelayOutOfRange));
    assert_eq!(with(|s| s.withdraw_delay = 2_592_001), Err(Reason::EvmBatchWithdrawDelayOutOfRange));
    assert_eq!(with(|s| s.receiver_authorizer = Address::ZERO), Err(Reason::EvmBatchReceiverAuthorizerMismatch));
}

#[test]
fn a_payer_without_authorizer_is_for_the_chain_to_judge() {
    let (config, mut voucher) = payment();
    let terms = EvmTerms::derive(seller(), config.payer, Address::ZERO, config.salt);
    voucher.channel_id = terms.id;
    for signature in ["0x", "0x1234", &*sign(&seller(), &terms.id, 5000, 7).to_string()] {
        voucher.signature = signature.parse().unwrap();
        let asked = verify(&seller(), &terms.config(), &voucher, None).unwrap();
        assert!(matches!(asked, Checked::Contract(_)), "{signature}");
        assert_eq!((asked.terms(), asked.cumulative()), (&terms, Amount::new(5000)));
        assert_eq!(asked.verified_on_chain().into_parts().1.signature, voucher.signature);
    }
    voucher.channel_id.0[0] ^= 1;
    assert!(verify(&seller(), &terms.config(), &voucher, None).is_err(), "the terms are ours to check");
}

fn client_payload(kind: &str) -> Value {
    let (config, voucher) = payment();
    let mut payload = json!({ "type": kind, "channelConfig": config, "voucher": voucher });
    if kind == "deposit" {
        payload["deposit"] = json!({
            "amount": "10000",
            "authorization": { "erc3009Authorization": {
                "validAfter": "0",
                "validBefore": "1795461862",
                "salt": "0xf11b80ea37ee844a36e8e2949bc8dee8bff93da460efcf3fc5ae17a84eda8814",
                "signature": voucher.signature,
            } },
        });
    }
    payload
}

#[test]
fn payloads_are_read_and_written_as_the_reference_writes_them() {
    for kind in ["deposit", "voucher", "refund"] {
        let payload = client_payload(kind);
        let read = parse(&payload).unwrap();
        assert_eq!(serde_json::to_value(read).unwrap(), payload, "{kind}");
    }
    let mut refund = client_payload("refund");
    refund["amount"] = json!("1500");
    assert!(matches!(parse(&refund), Ok(EvmBatchPayload::Refund { amount: Some(amount), .. }) if amount.get() == 1500));
    let mut lower = client_payload("voucher");
    lower["channelConfig"]["payer"] = json!(lower["channelConfig"]["payer"].as_str().unwrap().to_lowercase());
    assert!(parse(&lower).is_ok(), "an address in lower case");
}

#[test]
fn a_permit2_deposit_is_read_as_the_reference_client_writes_it() {
    let mut deposit = client_payload("deposit");
    let payer = deposit["channelConfig"]["payer"].clone();
    let authorization = json!({ "permit2Authorization": {
        "from": payer,
        "permitted": { "token": "0x036CbD53842c5426634e7929541eC2318f3dCF7e", "amount": "10000" },
        "spender": "0x4020425FAf3B746C082C2f942b4E5159887B0005",
        "nonce": "33247007178036348590600198031289925668252061821958005840077069883511451257277",
        "deadline": "1795461862",
        "witness": { "channelId": deposit["voucher"]["channelId"] },
        "signature": deposit["voucher"]["signature"],
    } });
    deposit["deposit"]["authorization"] = authorization;
    let read = parse(&deposit).unwrap();
    assert_eq!(serde_json::to_value(&read).unwrap(), deposit);
    let EvmBatchPayload::Deposit { deposit, .. } = read else { panic!("a deposit") };
    assert!(matches!(deposit.authorization, DepositAuthorization::Permit2(_)));
}

#[test]
fn payloads_that_cannot_be_read_have_their_codes() {
    type Change = fn(&mut Value);
    let table: &[(&str, Change, Reason)] = &[
        ("voucher", |p| p["type"] = json!("claim"), Reason::EvmBatchPayloadType),
        ("voucher", |p| p["type"] = json!(1), Reason::EvmBatchPayloadType),
        ("voucher", |p| *p = json!("voucher"), Reason::EvmBatchPayloadType),
        ("voucher", |p| *p = json!(null), Reason::EvmBatchPayloadType),
        ("voucher", |p| p["voucher"] = json!(null), Reason::EvmBatchVoucherPayload),
        ("voucher", |p| p["voucher"]["maxClaimableAmount"] = json!(5000), Reason::EvmBatchVoucherPayload),
        ("voucher", |p| p["voucher"]["maxClaimableAmount"] = json!("05000"), Reason::EvmBatchVoucherPayload),
        ("voucher", |p| p["voucher"]["signature"] = json!("1234"), Reason::EvmBatchVoucherPayload),
        (
            "voucher",
            |p| p["voucher"]["signature"] = json!(format!("0x{}", "00".repeat(4097))),
            Reason::EvmBatchVoucherPayload,
        ),
        ("voucher", |p| p["channelConfig"]["withdrawDelay"] = json!("900"), Reason::EvmBatchVoucherPayload),
        ("voucher", |p| p["channelConfig"]["withdrawDelay"] = json!(-1), Reason::EvmBatchVoucherPayload),
        ("voucher", |p| p["channelConfig"]["salt"] = json!("0x00"), Reason::EvmBatchVoucherPayload),
        ("deposit", |p| p["deposit"] = json!({}), Reason::EvmBatchDepositPayload),
        ("deposit", |p| p["deposit"]["authorization"] = json!({}), Reason::EvmBatchDepositPayload),
        (
            "deposit",
            |p| p["deposit"]["authorization"]["permit2Authorization"] = json!({}),
            Reason::EvmBatchDepositPayload,
        ),
        ("deposit", |p| p["deposit"]["amount"] = json!("-1"), Reason::EvmBatchDepositPayload),
        ("refund", |p| p["voucher"] = json!({}), Reason::EvmBatchRefundPayload),
        ("refund", |p| p["amount"] = json!("0"), Reason::EvmBatchRefundAmount),
        ("refund", |p| p["amount"] = json!("-1"), Reason::EvmBatchRefundAmount),
        ("refund", |p| p["amount"] = json!(1), Reason::EvmBatchRefundAmount),
        ("refund", |p| p["amount"] = json!(null), Reason::EvmBatchRefundAmount),
        ("refund", |p| p["amount"] = json!("all"), Reason::EvmBatchRefundAmount),
    ];
    for (n, (kind, change, reason)) in table.iter().enumerate() {
        let mut payload = client_payload(kind);
        change(&mut payload);
        assert_eq!(parse(&payload).unwrap_err().reason, *reason, "row {n}");
    }
}

#[test]
fn an_offer_says_what_the_reference_server_says() {
    let expected = json!({
        "name": "USDC",
        "version": "2",
        "receiverAuthorizer": TestKey::new(2).address(),
        "withdrawDelay": 900,
        "minDeposit": "10000",
    });
    assert_eq!(Value::from(extra(&seller(), Some(Amount::new(10_000)))), expected);
    let permit2 = extra(&testing::seller(TransferMethod::Permit2), None);
    assert_eq!(permit2["assetTransferMethod"], "permit2");
    assert!(!permit2.contains_key("minDeposit"));
}

proptest! {
    /// A payload's fields in any shape, and any of its texts changed.
    #[test]
    fn no_payload_panics(
        kind in prop::sample::select(vec!["deposit", "voucher", "refund"]),
        field in prop::sample::select(vec![
            "/channelConfig/payer", "/channelConfig/withdrawDelay", "/channelConfig/salt", "/voucher/channelId",
            "/voucher/maxClaimableAmount", "/voucher/signature", "/deposit/amount", "/deposit/authorization",
            "/deposit/authorization/erc3009Authorization/validAfter", "/voucher", "",
        ]),
        text in "(0x)?[0-9a-fA-F]{0,140}|.{0,40}",
        shape in 0..5_u8,
        number in any::<i64>(),
    ) {
        let mut payload = client_payload(kind);
        if let Some(place) = payload.pointer_mut(field) {
            *place = match shape {
                0 => json!(text),
                1 => json!(number),
                2 => json!(null),
                3 => json!({ text: number }),
                _ => json!([text]),
            };
        }
        if let Ok(EvmBatchPayload::Deposit { channel_config, voucher, deposit }) = parse(&payload) {
            let terms = EvmTerms::derive(seller(), channel_config.payer, channel_config.payer_authorizer, channel_config.salt);
            _ = deposit::check(&terms, &deposit, number.unsigned_abs());
            _ = verify(&seller(), &channel_config, &voucher, None);
        }
        if let Ok(EvmBatchPayload::Voucher { channel_config, voucher }) = parse(&payload) {
            _ = verify(&seller(), &channel_config, &voucher, None);
        }
    }
}
