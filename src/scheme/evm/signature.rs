//! Signatures by keys on EVM networks, by the rules of the contracts that will check them (invariant L4).
//!
//! The settlement contract and the tokens use OpenZeppelin's `ECDSA` or its like: 65 bytes, `s` in the lower half of
//! the order, `v` 27 or 28, and a recovered address that is not zero. Anything else is refused here as it would be there.
//! Permit2 is laxer on `s`; no wallet makes such signatures, and they are refused here too.
//!
//! A signature is always checked by recovery. Plain ECDSA verification under a remembered key would be a sixth faster,
//! but it says nothing of `v`: a voucher with the other `v` would pass here, and the contract would recover somebody
//! else's address. The point whose parity `v` is comes out of the whole computation only.

use secp256k1::ecdsa::{RecoverableSignature, RecoveryId};
use secp256k1::{Message, PublicKey};

use crate::x402::evm::{Address, AnySignature, B256, EvmSignature, keccak256};
use crate::x402::recent::{Recent, recent};

/// Half of the curve's order: the greatest `s` that is not refused as malleable.
const S_MAX: [u8; 32] = B256::literal("0x7fffffffffffffffffffffffffffffff5d576e7357a4501ddfe92f46681b20a0").0;

/// The key that made `signature` over `digest`, or `None` where a contract would refuse it.
#[must_use]
pub fn recover(digest: &B256, signature: &EvmSignature) -> Option<PublicKey> {
    let (compact, v) = signature.0.split_first_chunk::<64>()?;
    let id = match v {
        [27] => RecoveryId::Zero,
        [28] => RecoveryId::One,
        _ => return None,
    };
    if compact[32..] > S_MAX[..] {
        return None;
    }
    RecoverableSignature::from_compact(compact, id).ok()?.recover(Message::from_digest(digest.0)).ok()
}

/// The address of a key.
#[must_use]
pub fn address_of(key: &PublicKey) -> Address {
    let [_, point @ ..] = key.serialize_uncompressed();
    recent(&KEPT, &point, || keccak256(&point).0.last_chunk().copied().map(Address)).unwrap_or_default()
}

thread_local! {
    /// Of whoever signed lately.
    static KEPT: Recent<64, Address> = const { Recent::new(1024) };
}

/// The address that a contract would recover, never [`Address::ZERO`].
#[must_use]
pub fn signer(digest: &B256, signature: &EvmSignature) -> Option<Address> {
    recover(digest, signature).map(|key| address_of(&key)).filter(|address| !address.is_zero())
}

/// What is known of a signature by whom it should be, without asking the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signed {
    /// That account's key made it. A contract accepts it, unless the account has code of its own (EIP-7702).
    ByKey,
    /// Not its key: the account may be a contract that accepts it (ERC-1271), which only the chain can say.
    AskTheChain,
}

/// Whether an account's key made a signature.
#[must_use]
pub fn signed_by(account: &Address, digest: &B256, signature: &AnySignature) -> Signed {
    match signature {
        AnySignature::Key(signature) if signer(digest, signature) == Some(*account) => Signed::ByKey,
        AnySignature::Key(_) | AnySignature::Contract(_) => Signed::AskTheChain,
    }
}

#[cfg(test)]
mod tests;
