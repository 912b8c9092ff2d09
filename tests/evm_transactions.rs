//! Transactions and calldata of EVM chains against what viem makes of the same (`tests/interop/golden.mjs`).

#![allow(clippy::unwrap_used, reason = "a test that cannot build its own fixture should stop")]

use std::str::FromStr;

use serde_json::Value;
use turnpike::chain::evm::Call;
use turnpike::chain::evm::abi::{batch, permit2, wallet};
use turnpike::chain::evm::fees::Fees;
use turnpike::chain::evm::key::GasKey;
use turnpike::chain::evm::revert::Revert;
use turnpike::chain::evm::transaction::{NotATransaction, Signed, Unsigned};
use turnpike::scheme::evm::contracts::{EIP3009_COLLECTOR, PERMIT2_COLLECTOR};
use turnpike::scheme::evm::eip712::ChannelConfig;
use turnpike::x402::evm::{Address, AnySignature, U256};

fn golden() -> Value {
    serde_json::from_str(include_str!("vectors/evm/golden.json")).unwrap()
}

fn at<T: FromStr>(value: &Value, field: &str) -> T
where
    T::Err: std::fmt::Debug,
{
    value[field].as_str().unwrap_or_else(|| panic!("{field} is no text")).parse().unwrap()
}

fn bytes(text: &str) -> Vec<u8> {
    let digits = text.strip_prefix("0x").unwrap().as_bytes();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn bytes_at(value: &Value, field: &str) -> Vec<u8> {
    bytes(value[field].as_str().unwrap())
}

fn key(text: &str) -> GasKey {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    GasKey::from_file(file.path()).unwrap()
}

#[test]
fn transactions_are_signed_and_read_as_viem_signs_them() {
    let mut without_value = 0;
    for vector in golden()["transactions"].as_array().unwrap() {
        let raw = bytes_at(vector, "raw");
        if vector["value"] != "0" {
            assert_eq!(Signed::decode(&raw).map(|_| ()), Err(NotATransaction), "we never send the chain's coin");
            continue;
        }
        without_value += 1;
        let key = key(vector["key"].as_str().unwrap());
        assert_eq!(key.address(), at(vector, "from"));
        let unsigned = Unsigned {
            chain_id: at(vector, "chainId"),
            nonce: at(vector, "nonce"),
            fees: Fees {
                max_fee_per_gas: at(vector, "maxFeePerGas"),
                max_priority_fee_per_gas: at(vector, "maxPriorityFeePerGas"),
            },
            gas_limit: at(vector, "gas"),
            call: Call { to: at(vector, "to"), data: bytes_at(vector, "data") },
        };
        let signed = unsigned.clone().sign(&key);
        assert_eq!((signed.raw(), signed.hash()), (&*raw, at(vector, "hash")));
        let (read, signer) = Signed::decode(&raw).unwrap();
        assert_eq!((read.unsigned(), signer), (&unsigned, key.address()));
        for cut in 0..raw.len() {
            assert!(Signed::decode(&raw[..cut]).is_err());
        }
        assert!(Signed::decode(&[&*raw, &[0]].concat()).is_err());
    }
    assert!(without_value >= 5, "only {without_value} vectors");
}

fn config(channel: &Value) -> ChannelConfig {
    let config = &channel["config"];
    ChannelConfig {
        payer: at(config, "payer"),
        payer_authorizer: at(config, "payerAuthorizer"),
        receiver: at(config, "receiver"),
        receiver_authorizer: at(config, "receiverAuthorizer"),
        token: at(config, "token"),
        withdraw_delay: at(config, "withdrawDelay"),
        salt: at(config, "salt"),
    }
}

fn signature(value: &Value) -> Vec<u8> {
    at::<AnySignature>(value, "signature").as_slice().to_vec()
}

#[test]
fn calldata_is_encoded_as_viem_encodes_it() {
    for channel in golden()["channels"].as_array().unwrap() {
        let config = config(channel);
        let batch_of = &channel["claimBatch"];
        let claims: Vec<_> = batch_of["claims"]
            .as_array()
            .unwrap()
            .iter()
            .map(|claim| batch::VoucherClaim {
                config: ChannelConfig { salt: at(claim, "salt"), ..config },
                max_claimable_amount: at(claim, "maxClaimableAmount"),
                signature: signature(claim),
                total_claimed: at(claim, "totalClaimed"),
            })
            .collect();
        assert_eq!(batch::claim_with_signature(&claims, &signature(batch_of)).data, bytes_at(batch_of, "calldata"));

        let refund = &channel["refund"];
        let call = batch::refund_with_signature(&config, at(refund, "amount"), at(refund, "nonce"), &signature(refund));
        assert_eq!(call.data, bytes_at(refund, "calldata"));
        assert_eq!(batch::settle(config.receiver, config.token).data, bytes_at(&channel["settle"], "calldata"));

        let deposit = &channel["erc3009Deposit"];
        let (after, before): (U256, U256) = (at(deposit, "validAfter"), at(deposit, "validBefore"));
        let data = batch::eip3009_collector_data(after, before, at(deposit, "salt"), &signature(deposit));
        let call = batch::deposit(&config, at(deposit, "amount"), EIP3009_COLLECTOR, data);
        assert_eq!(call.data, bytes_at(deposit, "calldata"));

        let deposit = &channel["permit2Deposit"];
        let data =
            batch::permit2_collector_data(at(deposit, "nonce"), at(deposit, "deadline"), &signature(deposit), &[]);
        let call = batch::deposit(&config, at(deposit, "amount"), PERMIT2_COLLECTOR, data);
        assert_eq!(call.data, bytes_at(deposit, "calldata"));
    }
}

#[test]
fn a_permit2_nonce_is_a_bit_of_a_word() {
    let nonce: U256 = "0x0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcd05".parse().unwrap();
    let call = permit2::nonce_bitmap(Address([7; 20]), nonce);
    let word = "000123456789abcdef0123456789abcdef0123456789abcdef0123456789abcd";
    assert_eq!(call.data[36..], bytes(&format!("0x{word}")));
    assert!(permit2::is_used(U256::from(0b10_0000_u64), nonce));
    assert!(!permit2::is_used(U256::from(0b1101_1111_u64), nonce));
}

#[test]
fn only_the_magic_word_is_a_contract_s_yes() {
    let yes = bytes(&format!("0x1626ba7e{}", "0".repeat(56)));
    assert!(wallet::is_magic(&yes));
    let mut other = yes.clone();
    other[31] = 1;
    for no in [&other[..], &yes[..4], &[], &[0; 32], &[0xff; 32]] {
        assert!(!wallet::is_magic(no), "{no:?}");
    }
}

#[test]
fn reverts_are_told_by_name_by_text_or_by_selector() {
    let of = |text: &str| Revert::of(&bytes(text));
    // Selectors by an independent implementation of keccak.
    assert_eq!(of("0x8baa579f").name(), Some("InvalidSignature"));
    assert_eq!(of("0x756688fe").name(), Some("InvalidNonce"));
    let text = "FiatTokenV2: authorization is used or canceled";
    let reason = format!(
        "0x08c379a0{:064x}{:064x}{}{}",
        32,
        text.len(),
        text.bytes().map(|byte| format!("{byte:02x}")).collect::<String>(),
        "0".repeat(64 - text.len() * 2 % 64)
    );
    assert_eq!(of(&reason).text(), text);
    assert_eq!(of("0x12345678").text(), "an unknown error with selector 0x12345678");
    assert_eq!(of("0x").text(), "no reason was given");
    assert_eq!(of("0x08c379a0ff").text(), "an unknown error with selector 0x08c379a0");
    let said = Revert::said(&"\n\u{e9}".repeat(1_000));
    assert!(said.text().len() <= 200 && !said.text().contains('\n'));
}
