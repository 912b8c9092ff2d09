//! The contracts' interfaces: what is sent to them, and what they answer.
//!
//! Each function here makes a [`Call`] or reads an answer, in this project's own words; alloy's types stay inside.
//! Signed structures are those of `scheme::evm::eip712`. Source: `scheme_batch_settlement_evm.md`, EIP-20, EIP-3009,
//! ERC-1271, and the interfaces of Permit2, its proxies (`scheme_exact_evm.md`, `scheme_upto_evm.md`) and Multicall3.

pub mod batch;
pub mod multicall;
pub mod permit2;
pub mod token;
pub mod wallet;

use alloy_sol_types::SolCall;

use super::Call;
use crate::amount::Amount;
use crate::x402::evm::{Address, B256, U256};

fn call_of(to: Address, call: &impl SolCall) -> Call {
    Call { to, data: call.abi_encode() }
}

fn address(address: Address) -> alloy_primitives::Address {
    address.0.into()
}

fn word(word: &B256) -> alloy_primitives::B256 {
    word.0.into()
}

fn uint(number: U256) -> alloy_primitives::U256 {
    alloy_primitives::U256::from_be_bytes(number.word().0)
}

fn amount(amount: Amount) -> alloy_primitives::U256 {
    alloy_primitives::U256::from(amount.get())
}

/// The one number that an answer is. Longer answers are read too, as contracts do.
#[must_use]
pub fn number(answer: &[u8]) -> Option<U256> {
    answer.first_chunk().map(|word| U256::from(B256(*word)))
}
