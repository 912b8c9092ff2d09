//! Permit2's nonces, and the two proxies that spend through it.

use alloy_sol_types::sol;

use super::{address, amount, call_of, uint};
use crate::amount::Amount;
use crate::chain::evm::Call;
use crate::scheme::evm::contracts::{EXACT_PERMIT2_PROXY, PERMIT2, UPTO_PERMIT2_PROXY};
use crate::scheme::evm::eip712::Permit2Transfer;
use crate::x402::evm::{Address, U256};

mod contract {
    use super::sol;

    sol! {
        struct TokenPermissions {
            address token;
            uint256 amount;
        }

        struct PermitTransferFrom {
            TokenPermissions permitted;
            uint256 nonce;
            uint256 deadline;
        }

        struct ExactWitness {
            address to;
            uint256 validAfter;
        }

        struct UptoWitness {
            address to;
            address facilitator;
            uint256 validAfter;
        }

        function nonceBitmap(address owner, uint256 word) returns (uint256);

        interface Exact {
            function settle(PermitTransferFrom permit, address owner, ExactWitness witness, bytes signature);
        }

        interface Upto {
            function settle(PermitTransferFrom permit, uint256 amount, address owner, UptoWitness witness,
                bytes signature);
        }
    }
}

fn permit_of(transfer: &Permit2Transfer) -> contract::PermitTransferFrom {
    contract::PermitTransferFrom {
        permitted: contract::TokenPermissions { token: address(transfer.token), amount: amount(transfer.amount) },
        nonce: uint(transfer.nonce),
        deadline: uint(transfer.deadline),
    }
}

/// Moves the whole signed amount to the witness's receiver (scheme `exact`).
#[must_use]
pub fn exact(transfer: &Permit2Transfer, owner: Address, to: Address, valid_after: U256, signature: &[u8]) -> Call {
    let call = contract::Exact::settleCall {
        permit: permit_of(transfer),
        owner: address(owner),
        witness: contract::ExactWitness { to: address(to), validAfter: uint(valid_after) },
        signature: signature.to_vec().into(),
    };
    call_of(EXACT_PERMIT2_PROXY, &call)
}

/// What a payer lets one facilitator take (scheme `upto`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UptoWitness {
    /// Who is paid.
    pub to: Address,
    /// The only one that may settle.
    pub facilitator: Address,
    /// Unix seconds from which it is good.
    pub valid_after: U256,
}

/// Moves `charge`, at most the signed amount, to the witness's receiver (scheme `upto`).
#[must_use]
pub fn upto(
    transfer: &Permit2Transfer,
    charge: Amount,
    owner: Address,
    witness: &UptoWitness,
    signature: &[u8],
) -> Call {
    let call = contract::Upto::settleCall {
        permit: permit_of(transfer),
        amount: amount(charge),
        owner: address(owner),
        witness: contract::UptoWitness {
            to: address(witness.to),
            facilitator: address(witness.facilitator),
            validAfter: uint(witness.valid_after),
        },
        signature: signature.to_vec().into(),
    };
    call_of(UPTO_PERMIT2_PROXY, &call)
}

/// Reads the word of 256 nonces that a nonce is in.
#[must_use]
pub fn nonce_bitmap(owner: Address, nonce: U256) -> Call {
    call_of(PERMIT2, &contract::nonceBitmapCall { owner: address(owner), word: uint(nonce) >> 8 })
}

/// Whether a nonce is used, by the word that it is in.
#[must_use]
pub fn is_used(bitmap: U256, nonce: U256) -> bool {
    uint(bitmap).bit(usize::from(nonce.word().0[31]))
}
