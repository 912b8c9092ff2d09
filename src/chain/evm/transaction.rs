//! Transactions of EIP-1559: their bytes, their hash and their signature.
//!
//! `0x02 || rlp([chain_id, nonce, max_priority_fee_per_gas, max_fee_per_gas, gas_limit, to, value, data, access_list,
//! y_parity, r, s])`; what is signed is the same without the last three. The value is always nothing and the access
//! list always empty: the gas key's account pays for gas and moves no coin.

use std::fmt;

use alloy_rlp::{Decodable, Encodable, Header};

use super::Call;
use super::fees::Fees;
use super::key::GasKey;
use crate::scheme::evm::signature;
use crate::x402::evm::{Address, B256, EvmSignature, keccak256};

/// The type of EIP-1559.
const TYPE: u8 = 2;
/// The longest signed transaction that is read back.
pub const TRANSACTION_BYTES_MAX: usize = 128 * 1024;

/// A transaction before it is signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsigned {
    /// The chain's id.
    pub chain_id: u64,
    /// How many transactions the account sent before.
    pub nonce: u64,
    /// What it pays for gas.
    pub fees: Fees,
    /// The most gas that it may use.
    pub gas_limit: u64,
    /// What it does.
    pub call: Call,
}

/// A signed transaction, fit to be sent and to be kept until its fate is known.
#[derive(Clone, PartialEq, Eq)]
pub struct Signed {
    unsigned: Unsigned,
    raw: Vec<u8>,
    hash: B256,
}

/// The bytes are no transaction that this sender could have signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a signed transaction of EIP-1559 without value and access list")]
pub struct NotATransaction;

impl Unsigned {
    /// Signs the transaction.
    #[must_use]
    pub fn sign(self, key: &GasKey) -> Signed {
        let (odd, compact) = key.sign(&keccak256(&self.encode(None)));
        let raw = self.encode(Some((odd, &compact)));
        Signed { hash: keccak256(&raw), raw, unsigned: self }
    }

    fn encode(&self, signature: Option<(bool, &[u8; 64])>) -> Vec<u8> {
        let mut fields = Vec::with_capacity(self.call.data.len().saturating_add(256));
        self.chain_id.encode(&mut fields);
        self.nonce.encode(&mut fields);
        self.fees.max_priority_fee_per_gas.encode(&mut fields);
        self.fees.max_fee_per_gas.encode(&mut fields);
        self.gas_limit.encode(&mut fields);
        self.call.to.0.as_slice().encode(&mut fields);
        0_u64.encode(&mut fields);
        self.call.data.as_slice().encode(&mut fields);
        Header { list: true, payload_length: 0 }.encode(&mut fields);
        if let Some((odd, compact)) = signature {
            odd.encode(&mut fields);
            let (r, s) = compact.split_at(32);
            without_leading_zeros(r).encode(&mut fields);
            without_leading_zeros(s).encode(&mut fields);
        }
        let mut raw = Vec::with_capacity(fields.len().saturating_add(8));
        raw.push(TYPE);
        Header { list: true, payload_length: fields.len() }.encode(&mut raw);
        raw.extend_from_slice(&fields);
        raw
    }
}

/// A number as RLP has it.
fn without_leading_zeros(bytes: &[u8]) -> &[u8] {
    let first = bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len());
    &bytes[first..]
}

impl Signed {
    /// What was signed.
    #[must_use]
    pub const fn unsigned(&self) -> &Unsigned {
        &self.unsigned
    }

    /// The bytes to send.
    #[must_use]
    pub fn raw(&self) -> &[u8] {
        &self.raw
    }

    /// The transaction's name on chain.
    #[must_use]
    pub const fn hash(&self) -> B256 {
        self.hash
    }

    /// Reads a transaction that was kept, and who signed it.
    ///
    /// # Errors
    /// [`NotATransaction`].
    pub fn decode(raw: &[u8]) -> Result<(Self, Address), NotATransaction> {
        let (unsigned, signature) = fields(raw).ok_or(NotATransaction)?;
        let signer = signature::signer(&keccak256(&unsigned.encode(None)), &signature).ok_or(NotATransaction)?;
        let signed = Self { hash: keccak256(raw), raw: raw.to_vec(), unsigned };
        Ok((signed, signer))
    }
}

/// The fields, where writing them again gives the same bytes.
fn fields(raw: &[u8]) -> Option<(Unsigned, EvmSignature)> {
    let (first, mut rest) = raw.split_first()?;
    if *first != TYPE || raw.len() > TRANSACTION_BYTES_MAX {
        return None;
    }
    let mut fields = Header::decode_bytes(&mut rest, true).ok().filter(|_| rest.is_empty())?;
    let chain_id = u64::decode(&mut fields).ok()?;
    let nonce = u64::decode(&mut fields).ok()?;
    let max_priority_fee_per_gas = u128::decode(&mut fields).ok()?;
    let max_fee_per_gas = u128::decode(&mut fields).ok()?;
    let gas_limit = u64::decode(&mut fields).ok()?;
    let to = Address(Header::decode_bytes(&mut fields, false).ok()?.try_into().ok()?);
    let value = u64::decode(&mut fields).ok()?;
    let data = Header::decode_bytes(&mut fields, false).ok()?.to_vec();
    let access_list = Header::decode_bytes(&mut fields, true).ok()?;
    let odd = bool::decode(&mut fields).ok()?;
    let mut compact = [0; 64];
    for half in compact.chunks_mut(32) {
        let number = Header::decode_bytes(&mut fields, false).ok()?;
        half[32_usize.checked_sub(number.len())?..].copy_from_slice(number);
    }
    let fees = Fees { max_fee_per_gas, max_priority_fee_per_gas };
    let unsigned = Unsigned { chain_id, nonce, fees, gas_limit, call: Call { to, data } };
    let ours = value == 0 && access_list.is_empty() && unsigned.encode(Some((odd, &compact))) == raw;
    let mut signature = [if odd { 28 } else { 27 }; 65];
    signature[..64].copy_from_slice(&compact);
    ours.then_some((unsigned, EvmSignature(signature)))
}

impl fmt::Debug for Signed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signed").field("hash", &self.hash).field("nonce", &self.unsigned.nonce).finish_non_exhaustive()
    }
}
