//! Tokens: EIP-20, and transfers on their owner's signature (EIP-3009).

use alloy_sol_types::sol;

use super::batch::events;
use super::{address, amount, call_of, uint, word};
use crate::amount::Amount;
use crate::chain::evm::{Call, Receipt};
use crate::scheme::evm::eip712::TransferAuthorization;
use crate::x402::evm::{Address, AnySignature, B256};

mod contract {
    use super::sol;

    sol! {
        function balanceOf(address account) returns (uint256);
        function allowance(address owner, address spender) returns (uint256);
        function authorizationState(address authorizer, bytes32 nonce) returns (bool);

        event Transfer(address indexed from, address indexed to, uint256 value);
    }

    /// The overload for a signature of a key.
    pub(super) mod by_key {
        use super::sol;

        sol! {
            function transferWithAuthorization(address from, address to, uint256 value, uint256 validAfter,
                uint256 validBefore, bytes32 nonce, uint8 v, bytes32 r, bytes32 s);
        }
    }

    /// The overload for any signature.
    pub(super) mod by_any {
        use super::sol;

        sol! {
            function transferWithAuthorization(address from, address to, uint256 value, uint256 validAfter,
                uint256 validBefore, bytes32 nonce, bytes signature);
        }
    }
}

/// Moves a token on its owner's signature. A signature of 65 bytes goes to the overload that all EIP-3009 tokens have.
#[must_use]
pub fn transfer_with_authorization(token: Address, transfer: &TransferAuthorization, signature: &AnySignature) -> Call {
    let (from, to, value) = (address(transfer.from), address(transfer.to), amount(transfer.value));
    let (after, before) = (uint(transfer.valid_after), uint(transfer.valid_before));
    let nonce = word(&transfer.nonce);
    match signature {
        AnySignature::Key(signature) => {
            let (mut r, mut s) = (B256::ZERO, B256::ZERO);
            r.0.copy_from_slice(&signature.0[..32]);
            s.0.copy_from_slice(&signature.0[32..64]);
            let (v, r, s) = (signature.0[64], word(&r), word(&s));
            let call = contract::by_key::transferWithAuthorizationCall {
                from,
                to,
                value,
                validAfter: after,
                validBefore: before,
                nonce,
                v,
                r,
                s,
            };
            call_of(token, &call)
        }
        AnySignature::Contract(bytes) => {
            let signature = bytes.as_slice().to_vec().into();
            let call = contract::by_any::transferWithAuthorizationCall {
                from,
                to,
                value,
                validAfter: after,
                validBefore: before,
                nonce,
                signature,
            };
            call_of(token, &call)
        }
    }
}

/// Reads how much an account has.
#[must_use]
pub fn balance_of(token: Address, account: Address) -> Call {
    call_of(token, &contract::balanceOfCall { account: address(account) })
}

/// Reads how much an owner lets a spender take.
#[must_use]
pub fn allowance(token: Address, owner: Address, spender: Address) -> Call {
    call_of(token, &contract::allowanceCall { owner: address(owner), spender: address(spender) })
}

/// Reads whether an authorization's nonce is used.
#[must_use]
pub fn authorization_state(token: Address, owner: Address, nonce: &B256) -> Call {
    call_of(token, &contract::authorizationStateCall { authorizer: address(owner), nonce: word(nonce) })
}

/// Whether a transaction moved exactly this, by the token's own event.
#[must_use]
pub fn transferred(receipt: &Receipt, token: Address, from: Address, to: Address, value: Amount) -> bool {
    events::<contract::Transfer>(receipt, token)
        .any(|event| event.from == address(from) && event.to == address(to) && event.value == amount(value))
}
