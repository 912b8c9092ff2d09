//! One field wrong at a time, and each has its code. Payments of the reference client: `tests/evm_golden.rs`.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::scheme::evm::authorization::{Permit2Authorization, TokenPermissions};
use crate::scheme::evm::eip712::{Domain, Permit2Transfer, permit2_digest};
use crate::scheme::evm::testing::{TestKey, offer};

const NOW: u64 = 1_740_672_000;

/// By key 7, good from `valid_after` to `valid_before`.
fn eip3009_paid(valid_after: u64, valid_before: u64) -> Eip3009Payment {
    let offer = offer(TransferMethod::Eip3009);
    let (from, to, value, nonce) = (TestKey::new(7).address(), offer.pay_to, offer.amount, B256([5; 32]));
    let (valid_after, valid_before) = (valid_after.into(), valid_before.into());
    let transfer = TransferAuthorization { from, to, value, valid_after, valid_before, nonce };
    let digest = transfer_with_authorization_digest(&offer.token_domain(), &transfer);
    let authorization = Eip3009Authorization { from, to, value, valid_after, valid_before, nonce };
    Eip3009Payment { signature: TestKey::new(7).sign(&digest).into(), authorization }
}

fn permit2_paid() -> Permit2Payment<ExactWitness> {
    let offer = offer(TransferMethod::Permit2);
    let witness = ExactWitness { to: offer.pay_to, valid_after: NOW.into() };
    let authorization = Permit2Authorization {
        permitted: TokenPermissions { token: offer.token, amount: offer.amount },
        from: TestKey::new(7).address(),
        spender: contracts::EXACT_PERMIT2_PROXY,
        nonce: B256([5; 32]).into(),
        deadline: (NOW + 6).into(),
        witness,
    };
    let transfer = Permit2Transfer {
        token: offer.token,
        amount: offer.amount,
        spender: authorization.spender,
        nonce: authorization.nonce,
        deadline: authorization.deadline,
        witness: witness.signed(),
    };
    let digest = permit2_digest(&Domain::permit2(offer.chain_id), &transfer);
    Permit2Payment { signature: TestKey::new(7).sign(&digest).into(), permit2_authorization: authorization }
}

fn checked(method: TransferMethod, payload: ExactPayload) -> Result<Signed, Reason> {
    check(&offer(method), payload, NOW, Version::V2).map(|payment| payment.signed()).map_err(|refused| refused.reason)
}

#[test]
fn a_right_payment_passes() {
    let payload = ExactPayload::Eip3009(eip3009_paid(NOW, NOW + 6));
    let passed = check(&offer(TransferMethod::Eip3009), payload.clone(), NOW, Version::V2).unwrap();
    assert_eq!((passed.payer(), passed.signed()), (TestKey::new(7).address(), Signed::ByKey));
    assert_eq!(*passed.payload(), payload);
    let payload = ExactPayload::Permit2(permit2_paid());
    assert_eq!(checked(TransferMethod::Permit2, payload.clone()), Ok(Signed::ByKey));
    let passed = check(&offer(TransferMethod::Permit2), payload, NOW, Version::V2).unwrap();
    assert_eq!(passed.payer(), TestKey::new(7).address());
}

#[test]
fn an_eip3009_payment_that_is_wrong_is_refused_with_its_code() {
    type Change = fn(&mut Eip3009Payment);
    let table: &[(Change, Result<Signed, Reason>)] = &[
        (|p| p.authorization.to.0[0] ^= 1, Err(Reason::ExactEvmRecipient)),
        (|p| p.authorization.valid_before = (NOW + 5).into(), Err(Reason::ExactEvmValidBefore)),
        (|p| p.authorization.valid_after = (NOW + 1).into(), Err(Reason::ExactEvmValidAfter)),
        (|p| p.authorization.value = Amount::new(9_999), Err(Reason::ExactEvmValueMismatch)),
        (|p| p.authorization.value = Amount::new(10_001), Err(Reason::ExactEvmValueMismatch)),
        // Whoever did not sign may be a contract.
        (|p| p.authorization.from.0[0] ^= 1, Ok(Signed::AskTheChain)),
        (|p| p.authorization.nonce.0[0] ^= 1, Ok(Signed::AskTheChain)),
        (|p| p.authorization.valid_before = (NOW + 61).into(), Ok(Signed::AskTheChain)),
        (|p| p.signature = "0x1234".parse().unwrap(), Ok(Signed::AskTheChain)),
    ];
    for (n, (change, expected)) in table.iter().enumerate() {
        let mut payment = eip3009_paid(0, NOW + 60);
        change(&mut payment);
        assert_eq!(checked(TransferMethod::Eip3009, ExactPayload::Eip3009(payment)), *expected, "row {n}");
    }
    let mut payment = eip3009_paid(0, NOW + 60);
    payment.authorization.value = Amount::new(9_999);
    let refused = check(&offer(TransferMethod::Eip3009), ExactPayload::Eip3009(payment), NOW, Version::V1);
    assert_eq!(refused.unwrap_err().reason, Reason::ExactEvmValue, "version 1 has its own code");
}

#[test]
fn a_permit2_payment_that_is_wrong_is_refused_with_its_code() {
    type Change = fn(&mut Permit2Authorization<ExactWitness>);
    let table: &[(Change, Result<Signed, Reason>)] = &[
        (|a| a.spender = contracts::UPTO_PERMIT2_PROXY, Err(Reason::Permit2Spender)),
        (|a| a.witness.to.0[0] ^= 1, Err(Reason::Permit2Recipient)),
        (|a| a.deadline = (NOW + 5).into(), Err(Reason::Permit2Expired)),
        (|a| a.witness.valid_after = (NOW + 1).into(), Err(Reason::Permit2NotYetValid)),
        (|a| a.permitted.amount = Amount::new(10_001), Err(Reason::Permit2Amount)),
        (|a| a.permitted.token.0[0] ^= 1, Err(Reason::Permit2Token)),
        (|a| a.nonce = U256::ZERO, Ok(Signed::AskTheChain)),
        (|a| a.from.0[0] ^= 1, Ok(Signed::AskTheChain)),
    ];
    for (n, (change, expected)) in table.iter().enumerate() {
        let mut payment = permit2_paid();
        change(&mut payment.permit2_authorization);
        assert_eq!(checked(TransferMethod::Permit2, ExactPayload::Permit2(payment)), *expected, "row {n}");
    }
}

#[test]
fn a_payment_by_another_method_than_the_offered_is_refused() {
    let (eip3009, permit2) = (ExactPayload::Eip3009(eip3009_paid(0, NOW + 60)), ExactPayload::Permit2(permit2_paid()));
    assert_eq!(checked(TransferMethod::Permit2, eip3009), Err(Reason::InvalidPayload));
    assert_eq!(checked(TransferMethod::Eip3009, permit2), Err(Reason::InvalidPayload));
}

#[test]
fn payloads_are_read_or_refused_as_malformed() {
    let eip3009 = serde_json::to_value(ExactPayload::Eip3009(eip3009_paid(0, NOW + 60))).unwrap();
    let permit2 = serde_json::to_value(ExactPayload::Permit2(permit2_paid())).unwrap();
    for payload in [&eip3009, &permit2] {
        assert_eq!(serde_json::to_value(parse(payload.clone()).unwrap()).unwrap(), *payload);
    }
    let mut both = eip3009.clone();
    both["permit2Authorization"] = permit2["permit2Authorization"].clone();
    let mut unsigned = eip3009.clone();
    unsigned.as_object_mut().unwrap().remove("signature");
    let delegated = json!({ "delegationManager": "0x", "permissionContext": "0x", "delegator": "0x" });
    for bad in [both, unsigned, delegated, json!(null), json!("x"), json!({}), json!([]), json!({"authorization": 1})] {
        assert_eq!(parse(bad.clone()).unwrap_err().reason, Reason::InvalidPayload, "{bad}");
    }
}

#[test]
fn version_1_says_what_it_can() {
    let resource = ResourceInfo { url: "http://x/y".to_owned(), ..ResourceInfo::default() };
    let requirements = requirements_v1(&offer(TransferMethod::Eip3009), &resource, 60).unwrap();
    assert_eq!(
        serde_json::to_value(requirements).unwrap(),
        json!({
            "scheme": "exact",
            "network": "base-sepolia",
            "maxAmountRequired": "10000",
            "resource": "http://x/y",
            "description": "",
            "mimeType": "",
            "asset": "0x036CbD53842c5426634e7929541eC2318f3dCF7e",
            "payTo": TestKey::new(1).address(),
            "maxTimeoutSeconds": 60,
            "extra": { "name": "USDC", "version": "2" },
        })
    );
    assert_eq!(requirements_v1(&offer(TransferMethod::Permit2), &resource, 60), None);
    let mut nameless = offer(TransferMethod::Eip3009);
    nameless.network = crate::x402::Network::eip155(7);
    assert_eq!(requirements_v1(&nameless, &resource, 60), None);
}

proptest! {
    #[test]
    fn no_payload_panics(
        permit2 in any::<bool>(),
        field in prop::sample::select(vec![
            "/signature", "/authorization/from", "/authorization/value", "/authorization/validAfter",
            "/authorization/nonce", "/permit2Authorization/nonce", "/permit2Authorization/permitted/amount",
            "/permit2Authorization/witness", "/authorization", "",
        ]),
        text in "(0x)?[0-9a-fA-F]{0,140}|.{0,40}|[0-9]{70,80}",
        shape in 0..4_u8,
        now in any::<u64>(),
    ) {
        let paid = if permit2 { ExactPayload::Permit2(permit2_paid()) } else { ExactPayload::Eip3009(eip3009_paid(0, NOW)) };
        let mut payload = serde_json::to_value(paid).unwrap();
        if let Some(place) = payload.pointer_mut(field) {
            *place = match shape {
                0 => json!(text),
                1 => json!(now),
                2 => json!({ text: now }),
                _ => json!(null),
            };
        }
        if let Ok(payload) = parse(payload) {
            let method = if permit2 { TransferMethod::Permit2 } else { TransferMethod::Eip3009 };
            _ = check(&offer(method), payload, now, Version::V2);
        }
    }
}
