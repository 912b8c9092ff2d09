//! Solana transactions as values: decoded whole, built, and signed slot by slot.
//!
//! The only file that names Solana's message and transaction crates. Decoding takes legacy and version 0 messages of
//! at most [`TRANSACTION_BYTES_MAX`] bytes, refuses trailing bytes and any encoding but the canonical one, and never
//! panics; whether a transaction is safe to sign is for its reader to judge.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use solana_address::Address;
use solana_message::{Message as LegacyMessage, VersionedMessage};
use solana_transaction::versioned::VersionedTransaction;

use crate::x402::Key;
use crate::x402::key::Signature;

/// The largest transaction that a cluster takes.
pub const TRANSACTION_BYTES_MAX: usize = 1232;

/// An account as an instruction names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AccountMeta {
    /// Its address.
    pub key: Key,
    /// Whether its owner must have signed.
    pub is_signer: bool,
    /// Whether it may change.
    pub is_writable: bool,
}

impl AccountMeta {
    /// An account that is only read.
    #[must_use]
    pub const fn readonly(key: Key) -> Self {
        Self { key, is_signer: false, is_writable: false }
    }
    /// An account that may change.
    #[must_use]
    pub const fn writable(key: Key) -> Self {
        Self { key, is_signer: false, is_writable: true }
    }
    /// The same account, signing.
    #[must_use]
    pub const fn signer(mut self) -> Self {
        self.is_signer = true;
        self
    }
}

/// An instruction with its accounts resolved. In a decoded transaction, an account's flags are the message's own: the
/// union over all instructions that name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// Which program runs.
    pub program: Key,
    /// What it may touch.
    pub accounts: Vec<AccountMeta>,
    /// What it is told.
    pub data: Vec<u8>,
}

/// Why bytes are no transaction that we handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransactionError {
    /// More than [`TRANSACTION_BYTES_MAX`] bytes.
    #[error("the transaction is longer than {TRANSACTION_BYTES_MAX} bytes")]
    TooLong,
    /// Not a canonical legacy or version 0 transaction.
    #[error("the bytes are not a legacy or version 0 transaction")]
    Malformed,
    /// The message loads addresses from a table, which hides what is signed.
    #[error("the transaction uses address lookup tables")]
    LookupTables,
    /// The key is none of the required signers.
    #[error("the key is not a required signer of the transaction")]
    NotASigner,
}

/// A transaction: a message and its signature slots, in the order of its required signers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    inner: VersionedTransaction,
    keys: Vec<Key>,
    message: Vec<u8>,
}

impl Transaction {
    /// Reads a transaction.
    ///
    /// # Errors
    /// [`TransactionError`] where the bytes are too long, malformed, not canonical, or use lookup tables.
    pub fn decode(bytes: &[u8]) -> Result<Self, TransactionError> {
        if bytes.len() > TRANSACTION_BYTES_MAX {
            return Err(TransactionError::TooLong);
        }
        let inner: VersionedTransaction = wincode::deserialize(bytes).map_err(|_| TransactionError::Malformed)?;
        if matches!(inner.message, VersionedMessage::V1(_)) || inner.sanitize().is_err() {
            return Err(TransactionError::Malformed);
        }
        if inner.message.address_table_lookups().is_some_and(|lookups| !lookups.is_empty()) {
            return Err(TransactionError::LookupTables);
        }
        let transaction = Self::from_inner(inner);
        if transaction.encode() != bytes {
            return Err(TransactionError::Malformed);
        }
        Ok(transaction)
    }

    /// Builds an unsigned legacy transaction.
    ///
    /// # Errors
    /// [`TransactionError::TooLong`] where it would not fit a packet.
    pub fn build(fee_payer: Key, instructions: &[Instruction], blockhash: [u8; 32]) -> Result<Self, TransactionError> {
        let instructions: Vec<_> = instructions
            .iter()
            .map(|instruction| solana_instruction::Instruction {
                program_id: instruction.program.0.into(),
                accounts: instruction
                    .accounts
                    .iter()
                    .map(|meta| solana_instruction::AccountMeta {
                        pubkey: meta.key.0.into(),
                        is_signer: meta.is_signer,
                        is_writable: meta.is_writable,
                    })
                    .collect(),
                data: instruction.data.clone(),
            })
            .collect();
        let payer = Address::from(fee_payer.0);
        let message = LegacyMessage::new_with_blockhash(&instructions, Some(&payer), &blockhash.into());
        let transaction = Self::from_inner(VersionedTransaction::new_unsigned(VersionedMessage::Legacy(message)));
        if transaction.encode().len() > TRANSACTION_BYTES_MAX {
            return Err(TransactionError::TooLong);
        }
        Ok(transaction)
    }

    fn from_inner(inner: VersionedTransaction) -> Self {
        let keys = inner.message.static_account_keys().iter().map(|key| Key(key.to_bytes())).collect();
        let message = inner.message.serialize();
        Self { inner, keys, message }
    }

    /// The bytes on the wire.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(1 + 64 * self.inner.signatures.len() + self.message.len());
        // A decoded or built message has at most 127 signatures: one byte of length, as sanitizing assures.
        bytes.push(u8::try_from(self.inner.signatures.len()).unwrap_or(u8::MAX));
        for signature in &self.inner.signatures {
            bytes.extend_from_slice(signature.as_ref());
        }
        bytes.extend_from_slice(&self.message);
        bytes
    }

    /// The bytes that signers sign.
    #[must_use]
    pub fn message(&self) -> &[u8] {
        &self.message
    }

    /// Who pays the fee: the first required signer.
    #[must_use]
    pub fn fee_payer(&self) -> Key {
        self.keys.first().copied().unwrap_or_default()
    }

    /// The blockhash that bounds the transaction's life.
    #[must_use]
    pub fn blockhash(&self) -> [u8; 32] {
        self.inner.message.recent_blockhash().to_bytes()
    }

    /// Every account that the message names, signers first.
    #[must_use]
    pub fn keys(&self) -> &[Key] {
        &self.keys
    }

    /// Who must sign, in the order of the slots.
    #[must_use]
    pub fn required_signers(&self) -> &[Key] {
        let required = usize::from(self.inner.message.header().num_required_signatures);
        self.keys.get(..required).unwrap_or(&self.keys)
    }

    /// Whether the message lets the account at `index` change.
    #[must_use]
    pub fn is_writable(&self, index: usize) -> bool {
        let header = self.inner.message.header();
        let signed = usize::from(header.num_required_signatures);
        let readonly_signed = usize::from(header.num_readonly_signed_accounts);
        let readonly_unsigned = usize::from(header.num_readonly_unsigned_accounts);
        if index < signed {
            index < signed.saturating_sub(readonly_signed)
        } else {
            index < self.keys.len().saturating_sub(readonly_unsigned)
        }
    }

    /// The instructions, in order, with their accounts resolved.
    #[must_use]
    pub fn instructions(&self) -> Vec<Instruction> {
        let signed = self.required_signers().len();
        let key = |index: u8| self.keys.get(usize::from(index)).copied().unwrap_or_default();
        self.inner
            .message
            .instructions()
            .iter()
            .map(|compiled| Instruction {
                program: key(compiled.program_id_index),
                accounts: compiled
                    .accounts
                    .iter()
                    .map(|index| AccountMeta {
                        key: key(*index),
                        is_signer: usize::from(*index) < signed,
                        is_writable: self.is_writable(usize::from(*index)),
                    })
                    .collect(),
                data: compiled.data.clone(),
            })
            .collect()
    }

    /// The signature slots, in the order of [`Self::required_signers`]; all zero where nobody has signed yet.
    pub fn signatures(&self) -> impl Iterator<Item = Signature> + '_ {
        self.inner.signatures.iter().map(|signature| Signature(*signature.as_array()))
    }

    /// The name of the transaction on chain: its fee payer's signature.
    #[must_use]
    pub fn id(&self) -> Signature {
        self.signatures().next().unwrap_or(Signature([0; 64]))
    }

    /// The signature in `key`'s slot, or `None` where `key` need not sign.
    #[must_use]
    pub fn signature_of(&self, key: &Key) -> Option<Signature> {
        let slot = self.required_signers().iter().position(|signer| signer == key)?;
        self.signatures().nth(slot)
    }

    /// Puts `signature` into `key`'s slot and touches no other.
    ///
    /// # Errors
    /// [`TransactionError::NotASigner`] where `key` has no slot.
    pub fn set_signature(&mut self, key: &Key, signature: Signature) -> Result<(), TransactionError> {
        let slot = self.required_signers().iter().position(|signer| signer == key);
        let slot = slot.and_then(|slot| self.inner.signatures.get_mut(slot)).ok_or(TransactionError::NotASigner)?;
        *slot = solana_signature::Signature::from(signature.0);
        Ok(())
    }

    /// Whether `key` has signed this message, by the strict rules that the chain applies.
    #[must_use]
    pub fn is_signed_by(&self, key: &Key) -> bool {
        self.signature_of(key).is_some_and(|signature| super::verify_strict(key, &self.message, &signature))
    }
}

/// As wallets and RPC write it: base64 of [`Transaction::encode`].
impl Serialize for Transaction {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(self.encode()))
    }
}

impl<'de> Deserialize<'de> for Transaction {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        let bytes = STANDARD.decode(text.as_bytes()).map_err(serde::de::Error::custom)?;
        Self::decode(&bytes).map_err(serde::de::Error::custom)
    }
}
