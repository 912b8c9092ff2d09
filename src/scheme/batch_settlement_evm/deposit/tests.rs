use std::sync::Arc;

use super::super::payload::DepositWitness;
use super::*;
use crate::scheme::evm::authorization::TokenPermissions;
use crate::scheme::evm::testing::{self, TestKey};
use crate::x402::evm::{Address, AnySignature, B256, U256};

const NOW: u64 = 1_740_672_000;

/// A channel of payer 7, with key 7 or 8 for its vouchers.
fn terms(method: TransferMethod, authorizer: u8) -> EvmTerms {
    let (payer, authorizer) = (TestKey::new(7).address(), TestKey::new(authorizer).address());
    EvmTerms::derive(Arc::new(testing::seller(method)), payer, authorizer, B256([42; 32]))
}

fn eip3009_signed(terms: &EvmTerms, valid_after: u64, valid_before: u64, by: u8) -> EvmDeposit {
    let salt = B256([9; 32]);
    let transfer = TransferAuthorization {
        from: terms.payer,
        to: contracts::EIP3009_COLLECTOR,
        value: Amount::new(10_000),
        valid_after: valid_after.into(),
        valid_before: valid_before.into(),
        nonce: deposit_nonce(&terms.id, salt.into()),
    };
    let digest = receive_with_authorization_digest(&terms.seller.token_domain(), &transfer);
    let authorization = Eip3009Deposit {
        valid_after: valid_after.into(),
        valid_before: valid_before.into(),
        salt,
        signature: TestKey::new(by).sign(&digest).into(),
    };
    EvmDeposit { amount: Amount::new(10_000), authorization: DepositAuthorization::Eip3009(authorization) }
}

fn permit2_signed(terms: &EvmTerms, deadline: u64, by: u8) -> EvmDeposit {
    let transfer = Permit2Transfer {
        token: terms.seller.token,
        amount: Amount::new(10_000),
        spender: contracts::PERMIT2_COLLECTOR,
        nonce: U256::from(5_u64),
        deadline: deadline.into(),
        witness: Witness::Deposit { channel_id: terms.id },
    };
    let digest = permit2_digest(&Domain::permit2(terms.seller.chain_id), &transfer);
    let authorization = Permit2Deposit {
        from: terms.payer,
        permitted: TokenPermissions { token: transfer.token, amount: transfer.amount },
        spender: transfer.spender,
        nonce: transfer.nonce,
        deadline: transfer.deadline,
        witness: DepositWitness { channel_id: terms.id },
        signature: TestKey::new(by).sign(&digest).into(),
    };
    EvmDeposit { amount: Amount::new(10_000), authorization: DepositAuthorization::Permit2(authorization) }
}

fn checked(terms: &EvmTerms, deposit: &EvmDeposit) -> Result<Signed, Reason> {
    check(terms, deposit, NOW).map(|deposit| deposit.signed()).map_err(|refused| refused.reason)
}

#[test]
fn a_right_deposit_passes() {
    let channel = terms(TransferMethod::Eip3009, 8);
    let deposit = eip3009_signed(&channel, NOW, NOW + 6, 7);
    let passed = check(&channel, &deposit, NOW).unwrap();
    assert_eq!((passed.amount(), passed.signed()), (Amount::new(10_000), Signed::ByKey));
    assert_eq!(*passed.authorization(), deposit.authorization);
    let channel = terms(TransferMethod::Permit2, 8);
    assert_eq!(checked(&channel, &permit2_signed(&channel, NOW + 6, 7)), Ok(Signed::ByKey));
}

#[test]
fn an_eip3009_deposit_that_is_wrong_is_refused_with_its_code() {
    let channel = terms(TransferMethod::Eip3009, 7);
    let refused = |deposit: &EvmDeposit| checked(&channel, deposit).unwrap_err();
    assert_eq!(refused(&eip3009_signed(&channel, 0, NOW + 5, 7)), Reason::EvmBatchValidBefore);
    assert_eq!(refused(&eip3009_signed(&channel, NOW + 1, NOW + 60, 7)), Reason::EvmBatchValidAfter);
    assert_eq!(refused(&eip3009_signed(&channel, 0, NOW + 60, 6)), Reason::EvmBatchReceiveSignature);
    assert_eq!(refused(&permit2_signed(&channel, NOW + 60, 7)), Reason::EvmBatchErc3009Required);

    type Change = fn(&mut EvmDeposit, &mut Eip3009Deposit);
    let table: &[(Change, Reason)] = &[
        (|d, _| d.amount = Amount::ZERO, Reason::EvmBatchDepositPayload),
        (|d, _| d.amount = Amount::new(10_001), Reason::EvmBatchReceiveSignature),
        (|_, a| a.salt.0[0] ^= 1, Reason::EvmBatchReceiveSignature),
        (|_, a| a.valid_before = (NOW + 61).into(), Reason::EvmBatchReceiveSignature),
        (|_, a| a.signature = "0x1234".parse().unwrap(), Reason::EvmBatchReceiveSignature),
    ];
    for (n, (change, reason)) in table.iter().enumerate() {
        let mut deposit = eip3009_signed(&channel, 0, NOW + 60, 7);
        let DepositAuthorization::Eip3009(mut authorization) = deposit.authorization.clone() else { panic!("it is") };
        change(&mut deposit, &mut authorization);
        deposit.authorization = DepositAuthorization::Eip3009(authorization);
        assert_eq!(refused(&deposit), *reason, "row {n}");
    }
    let other = terms(TransferMethod::Eip3009, 8);
    let of_another = eip3009_signed(&other, 0, NOW + 60, 7);
    assert_eq!(refused(&of_another), Reason::EvmBatchReceiveSignature, "another channel's");
}

#[test]
fn a_permit2_deposit_that_is_wrong_is_refused_with_its_code() {
    type Change = fn(&mut Permit2Deposit);
    let table: &[(Change, Reason)] = &[
        (|a| a.from.0[0] ^= 1, Reason::EvmBatchPermit2Signature),
        (|a| a.spender = contracts::EXACT_PERMIT2_PROXY, Reason::EvmBatchPermit2Spender),
        (|a| a.permitted.token = Address::ZERO, Reason::EvmBatchTokenMismatch),
        (|a| a.permitted.amount = Amount::new(9_999), Reason::EvmBatchPermit2Amount),
        (|a| a.witness.channel_id.0[0] ^= 1, Reason::EvmBatchChannelIdMismatch),
        (|a| a.deadline = (NOW + 5).into(), Reason::EvmBatchPermit2Expired),
        (|a| a.deadline = (NOW + 61).into(), Reason::EvmBatchPermit2Signature),
        (|a| a.nonce = U256::ZERO, Reason::EvmBatchPermit2Signature),
        (|a| a.signature = "0x".parse().unwrap(), Reason::EvmBatchPermit2Signature),
    ];
    let channel = terms(TransferMethod::Permit2, 7);
    for (n, (change, reason)) in table.iter().enumerate() {
        let mut deposit = permit2_signed(&channel, NOW + 60, 7);
        let DepositAuthorization::Permit2(authorization) = &mut deposit.authorization else { panic!("it is") };
        change(authorization);
        assert_eq!(checked(&channel, &deposit), Err(*reason), "row {n}");
    }
    let eip3009 = eip3009_signed(&channel, 0, NOW + 60, 7);
    assert_eq!(checked(&channel, &eip3009), Err(Reason::EvmBatchPermit2Required));
}

#[test]
fn a_payer_that_may_be_a_contract_is_for_the_chain_to_judge() {
    let channel = terms(TransferMethod::Eip3009, 8);
    assert_eq!(checked(&channel, &eip3009_signed(&channel, 0, NOW + 60, 6)), Ok(Signed::AskTheChain));
    let mut deposit = eip3009_signed(&channel, 0, NOW + 60, 6);
    let DepositAuthorization::Eip3009(authorization) = &mut deposit.authorization else { panic!("it is") };
    authorization.signature = format!("0x{}", "ab".repeat(300)).parse::<AnySignature>().unwrap();
    assert_eq!(checked(&channel, &deposit), Ok(Signed::AskTheChain));
    let channel = terms(TransferMethod::Permit2, 8);
    assert_eq!(checked(&channel, &permit2_signed(&channel, NOW + 60, 6)), Ok(Signed::AskTheChain));
}

#[test]
fn times_beyond_any_clock_are_compared_as_numbers() {
    let channel = terms(TransferMethod::Eip3009, 8);
    let mut deposit = eip3009_signed(&channel, 0, NOW + 60, 7);
    let DepositAuthorization::Eip3009(authorization) = &mut deposit.authorization else { panic!("it is") };
    authorization.valid_before = B256([0xFF; 32]).into();
    assert!(check(&channel, &deposit, u64::MAX).is_ok(), "it never ends");
    let DepositAuthorization::Eip3009(authorization) = &mut deposit.authorization else { panic!("it is") };
    authorization.valid_after = B256([0xFF; 32]).into();
    assert_eq!(checked(&channel, &deposit), Err(Reason::EvmBatchValidAfter));
}
