//! One field wrong at a time, and each has its code. A payment of the reference client: `tests/evm_golden.rs`.

use serde_json::json;

use super::*;
use crate::scheme::evm::TransferMethod;
use crate::scheme::evm::authorization::{Permit2Authorization, TokenPermissions};
use crate::scheme::evm::eip712::{Domain, Permit2Transfer, permit2_digest};
use crate::scheme::evm::testing::{TestKey, offer};

const NOW: u64 = 1_740_672_000;

fn facilitator() -> Address {
    TestKey::new(9).address()
}

fn paid() -> UptoEvmPayload {
    let offer = offer(TransferMethod::Permit2);
    let witness = UptoWitness { to: offer.pay_to, facilitator: facilitator(), valid_after: NOW.into() };
    let authorization = Permit2Authorization {
        permitted: TokenPermissions { token: offer.token, amount: offer.amount },
        from: TestKey::new(7).address(),
        spender: contracts::UPTO_PERMIT2_PROXY,
        nonce: U256::from(5_u64),
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

fn checked(payload: UptoEvmPayload) -> Result<Signed, Reason> {
    let checked = check(&offer(TransferMethod::Permit2), facilitator(), payload, NOW);
    checked.map(|payment| payment.signed()).map_err(|refused| refused.reason)
}

#[test]
fn a_right_payment_passes_and_is_charged_at_most_its_ceiling() {
    let payload = parse(serde_json::to_value(paid()).unwrap()).unwrap();
    assert_eq!(payload, paid());
    let passed = check(&offer(TransferMethod::Permit2), facilitator(), payload, NOW).unwrap();
    assert_eq!((passed.payer(), passed.signed()), (TestKey::new(7).address(), Signed::ByKey));
    assert_eq!(*passed.payload(), paid());
    for charge in [0, 1, 10_000] {
        assert_eq!(passed.check_charge(Amount::new(charge)), Ok(()));
    }
    let refused = passed.check_charge(Amount::new(10_001)).unwrap_err();
    assert_eq!(refused.reason, Reason::UptoEvmSettlementExceedsAmount);
}

#[test]
fn what_is_wrong_is_refused_with_its_code() {
    type Change = fn(&mut Permit2Authorization<UptoWitness>);
    let table: &[(Change, Result<Signed, Reason>)] = &[
        (|a| a.witness.facilitator.0[0] ^= 1, Err(Reason::UptoEvmFacilitator)),
        (|a| a.spender = contracts::EXACT_PERMIT2_PROXY, Err(Reason::Permit2Spender)),
        (|a| a.witness.to.0[0] ^= 1, Err(Reason::Permit2Recipient)),
        (|a| a.deadline = (NOW + 5).into(), Err(Reason::Permit2Expired)),
        (|a| a.witness.valid_after = (NOW + 1).into(), Err(Reason::Permit2NotYetValid)),
        (|a| a.permitted.amount = Amount::new(9_999), Err(Reason::Permit2Amount)),
        (|a| a.permitted.token.0[0] ^= 1, Err(Reason::Permit2Token)),
        (|a| a.nonce = U256::ZERO, Ok(Signed::AskTheChain)),
        (|a| a.from.0[0] ^= 1, Ok(Signed::AskTheChain)),
    ];
    for (n, (change, expected)) in table.iter().enumerate() {
        let mut payload = paid();
        change(&mut payload.permit2_authorization);
        assert_eq!(checked(payload), *expected, "row {n}");
    }
}

#[test]
fn malformed_payloads_are_refused() {
    let good = serde_json::to_value(paid()).unwrap();
    for field in ["/signature", "/permit2Authorization/witness/facilitator", "/permit2Authorization/nonce"] {
        let mut bad = good.clone();
        *bad.pointer_mut(field).unwrap() = json!(7);
        assert_eq!(parse(bad).unwrap_err().reason, Reason::InvalidPayload, "{field}");
    }
    for bad in [json!(null), json!({}), json!([1]), json!("0x")] {
        assert_eq!(parse(bad.clone()).unwrap_err().reason, Reason::InvalidPayload, "{bad}");
    }
}

#[test]
fn an_offer_names_the_facilitator() {
    let expected = json!({
        "name": "USDC",
        "version": "2",
        "assetTransferMethod": "permit2",
        "facilitatorAddress": facilitator(),
    });
    assert_eq!(Value::from(extra(&offer(TransferMethod::Eip3009), facilitator())), expected);
}
