//! Checkpoints: what a threshold key signs of the record, how it stands in it, and how it is verified.
//!
//! Pure. A signature over the chain's head vouches for every entry up to it. The message begins with a domain of its own
//! whose first byte, 0xFF, begins no Solana transaction (it would be one of a version that does not exist; the chain
//! reserves it for messages that are none) and no preimage of an EVM digest that could move money: a typed transaction
//! begins below 0x80, EIP-191 and EIP-712 with 0x19, and a list with that first byte would be longer than any
//! transaction. A voucher's message has 50 bytes, a close authorization's 32; this one is longer than both.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Entry, EntryHash, Kind, Position};
use crate::clock::UnixMillis;
use crate::scheme::evm::signature;
use crate::scheme::svm::verify_strict;
use crate::x402::Key;
use crate::x402::evm::{Address, B256, EvmSignature, keccak256};
use crate::x402::key::Signature;

/// What the message begins with.
pub const DOMAIN: &[u8] = b"\xffturnpike audit checkpoint v1\n";

/// Names a record for good, so that a checkpoint of one is none of another.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct RecordId(pub [u8; 16]);

impl fmt::Display for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl RecordId {
    /// Reads the text of [`fmt::Display`] and no other.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        // The second half is nothing; a hash's text is read strictly.
        let hash: EntryHash = format!("{text}{:032}", 0).parse().ok()?;
        let (id, _) = hash.0.split_first_chunk::<16>()?;
        (text.len() == 32).then_some(Self(*id))
    }
}

impl From<RecordId> for String {
    fn from(id: RecordId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for RecordId {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text).ok_or("not 32 hexadecimal digits in lower case")
    }
}

/// What is signed: the head of a record at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The record.
    pub record: RecordId,
    /// Its head.
    pub head: Position,
    /// When.
    pub time: UnixMillis,
}

/// A key's signature over a [`Checkpoint`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signed {
    /// By a key for Solana networks, over the message.
    Ed25519 {
        /// The key.
        key: Key,
        /// The signature.
        signature: Signature,
    },
    /// By a key for EVM networks, over the message's Keccak-256 hash.
    Secp256k1 {
        /// The key's address.
        address: Address,
        /// The signature.
        signature: EvmSignature,
    },
}

impl Checkpoint {
    /// The bytes that an Ed25519 key signs.
    #[must_use]
    pub fn message(&self) -> Vec<u8> {
        let Self { record, head: Position { seq, hash }, time } = self;
        let mut message = DOMAIN.to_vec();
        message.extend_from_slice(format!("record {record}\nseq {seq}\nhash {hash}\ntime {}\n", time.0).as_bytes());
        message
    }

    /// The digest that a secp256k1 key signs.
    #[must_use]
    pub fn evm_digest(&self) -> B256 {
        keccak256(&self.message())
    }

    /// The entry that holds it with its signature.
    #[must_use]
    pub fn entry(&self, signed: &Signed) -> Entry {
        let entry = Entry::new(Kind::Checkpoint)
            .text("record", self.record)
            .number("head_seq", self.head.seq)
            .text("head_hash", self.head.hash)
            .number("head_time", self.time.0);
        match signed {
            Signed::Ed25519 { key, signature } => {
                entry.text("scheme", "ed25519").text("key", key).text("signature", signature)
            }
            Signed::Secp256k1 { address, signature } => {
                entry.text("scheme", "secp256k1").text("key", address).text("signature", signature)
            }
        }
    }

    /// Reads what [`Self::entry`] wrote; `None` where it is something else.
    #[must_use]
    pub fn read(fields: &Map<String, Value>) -> Option<(Self, Signed)> {
        let text = |name: &str| fields.get(name).and_then(Value::as_str);
        let head = Position { seq: fields.get("head_seq")?.as_u64()?, hash: text("head_hash")?.parse().ok()? };
        let time = UnixMillis(fields.get("head_time")?.as_i64()?);
        let record = RecordId::parse(text("record")?)?;
        let (key, signature) = (text("key")?, text("signature")?);
        let signed = match text("scheme")? {
            "ed25519" => Signed::Ed25519 { key: key.parse().ok()?, signature: signature.parse().ok()? },
            "secp256k1" => Signed::Secp256k1 { address: key.parse().ok()?, signature: signature.parse().ok()? },
            _ => return None,
        };
        Some((Self { record, head, time }, signed))
    }
}

impl Signed {
    /// Whether the signature is one over `checkpoint` by the key that it names.
    #[must_use]
    pub fn verifies(&self, checkpoint: &Checkpoint) -> bool {
        match self {
            Self::Ed25519 { key, signature } => verify_strict(key, &checkpoint.message(), signature),
            Self::Secp256k1 { address, signature } => {
                signature::signer(&checkpoint.evm_digest(), signature) == Some(*address)
            }
        }
    }
}

/// The keys whose checkpoints count. One that was replaced stays good for what it has signed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keys {
    /// Of Solana networks.
    pub ed25519: Vec<Key>,
    /// Of EVM networks.
    pub secp256k1: Vec<Address>,
}

impl Keys {
    /// Whether the key that a signature names is among them.
    #[must_use]
    pub fn know(&self, signed: &Signed) -> bool {
        match signed {
            Signed::Ed25519 { key, .. } => self.ed25519.contains(key),
            Signed::Secp256k1 { address, .. } => self.secp256k1.contains(address),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.ed25519.is_empty() && self.secp256k1.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint() -> Checkpoint {
        let head = Position { seq: 12, hash: EntryHash([0xAB; 32]) };
        Checkpoint { record: RecordId([7; 16]), head, time: UnixMillis(1_764_368_899_123) }
    }

    #[test]
    fn the_message_is_its_own_kind() {
        let message = checkpoint().message();
        let text = format!(
            "turnpike audit checkpoint v1\nrecord {}\nseq 12\nhash {}\ntime 1764368899123\n",
            "07".repeat(16),
            "ab".repeat(32)
        );
        assert_eq!(message.split_first(), Some((&0xFF, text.as_bytes())));
        let shortest = Checkpoint { head: Position::default(), time: UnixMillis(0), ..checkpoint() };
        assert!(shortest.message().len() > 50, "no voucher and no digest is as long");
    }

    #[test]
    fn it_is_read_as_it_was_written_and_verifies() {
        let key = ed25519_dalek::SigningKey::from_bytes(&[3; 32]);
        let signature = ed25519_dalek::Signer::sign(&key, &checkpoint().message());
        let signed =
            Signed::Ed25519 { key: Key(key.verifying_key().to_bytes()), signature: Signature(signature.to_bytes()) };
        let entry = checkpoint().entry(&signed);
        let fields = serde_json::from_str(&format!("{{{}}}", &entry.members()[1..])).unwrap();
        assert_eq!(Checkpoint::read(&fields), Some((checkpoint(), signed)));
        assert!(signed.verifies(&checkpoint()));
        for other in [
            Checkpoint { record: RecordId([8; 16]), ..checkpoint() },
            Checkpoint { time: UnixMillis(0), ..checkpoint() },
            Checkpoint { head: Position { seq: 11, ..checkpoint().head }, ..checkpoint() },
        ] {
            assert!(!signed.verifies(&other));
        }
    }
}
