//! Contracts that sign (ERC-1271).

use alloy_sol_types::{SolCall, sol};

use super::{call_of, word};
use crate::chain::evm::Call;
use crate::x402::evm::{Address, B256};

mod contract {
    use super::sol;

    sol! {
        function isValidSignature(bytes32 digest, bytes signature) returns (bytes4);
    }
}

/// Asks a contract whether a signature is its own.
#[must_use]
pub fn is_valid_signature(wallet: Address, digest: &B256, signature: &[u8]) -> Call {
    let signature = signature.to_vec().into();
    call_of(wallet, &contract::isValidSignatureCall { digest: word(digest), signature })
}

/// Whether an answer is ERC-1271's word for yes: the function's selector and nothing after it.
#[must_use]
pub fn is_magic(answer: &[u8]) -> bool {
    let selector = contract::isValidSignatureCall::SELECTOR;
    answer.first_chunk::<32>().is_some_and(|word| word[..4] == selector && word[4..].iter().all(|byte| *byte == 0))
}
