//! The words of EVM networks: addresses, 32-byte words, signatures, and the hash that all of them stand on.
//!
//! Every text is `0x` and hexadecimal digits of either case; an address is written with the checksum of EIP-55. What
//! comes over the wire in another case is read all the same, as wallets and the reference packages do; what an operator
//! typed is held to its checksum ([`Address::parse_checked`]). Nothing here knows a scheme.

mod uint;

use std::fmt;
use std::str::FromStr;

use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha3::{Digest, Keccak256};

pub use uint::{U256, U256Error};

use super::recent::{Recent, recent};

/// The longest signature of a contract (ERC-1271, ERC-6492) that is read; it has to fit a payment header thrice.
pub const SIGNATURE_BYTES_MAX: usize = 4096;

/// The Keccak-256 hash, which is not NIST's SHA3-256.
#[must_use]
pub fn keccak256(bytes: &[u8]) -> B256 {
    B256(Keccak256::digest(bytes).into())
}

/// The Keccak-256 hash of words in a row, without laying them out first.
#[must_use]
pub fn keccak256_words(words: impl IntoIterator<Item = B256>) -> B256 {
    let mut hasher = Keccak256::new();
    for word in words {
        hasher.update(word.0);
    }
    B256(hasher.finalize().into())
}

/// The text is not `0x` and the right number of hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HexError {
    /// No `0x`, other characters, or another length.
    #[error("not 0x and {0} hexadecimal digits")]
    NotHex(usize),
    /// Not whole bytes, or more than [`SIGNATURE_BYTES_MAX`].
    #[error("not 0x and the hexadecimal digits of at most {SIGNATURE_BYTES_MAX} bytes")]
    NotBytes,
    /// An address in mixed case whose case is not that of its checksum (EIP-55).
    #[error("the upper and lower case of the address do not fit its checksum: a character is wrong")]
    Checksum,
}

/// The hexadecimal digits of 32 bytes, in lower case and with nothing before them.
#[must_use]
pub fn hex_digits(bytes: &[u8; 32]) -> [u8; 64] {
    let mut digits = [b'0'; 64];
    // There are two for each byte.
    let _filled = const_hex::encode_to_slice(bytes, &mut digits);
    digits
}

fn read<const N: usize>(text: &str) -> Result<[u8; N], HexError> {
    let mut bytes = [0; N];
    let digits = text.strip_prefix("0x").ok_or(HexError::NotHex(N * 2))?;
    const_hex::decode_to_slice(digits.as_bytes(), &mut bytes).map_err(|_| HexError::NotHex(N * 2))?;
    // A second prefix is no digit, though the decoder would skip it.
    if digits.len() == N * 2 { Ok(bytes) } else { Err(HexError::NotHex(N * 2)) }
}

/// Serde by the type's own text, without a copy of the text where the format lends it.
macro_rules! text {
    ($name:ident, $expecting:literal) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;
                impl Visitor<'_> for Text {
                    type Value = $name;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expecting)
                    }
                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$name, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                deserializer.deserialize_str(Text)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}
use text;

/// 20 bytes that name an account, a contract or a token.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(pub [u8; 20]);

impl Address {
    /// Nobody's: the schemes use it for "none".
    pub const ZERO: Self = Self([0; 20]);

    /// An address that is written in this source.
    ///
    /// # Panics
    /// While compiling, where the text is no address.
    #[must_use]
    pub const fn literal(text: &str) -> Self {
        match const_hex::const_decode_to_array(text.as_bytes()) {
            Ok(bytes) => Self(bytes),
            Err(_) => panic!("not an address"),
        }
    }

    /// Reads an address that a person typed: in mixed case its checksum must hold.
    ///
    /// # Errors
    /// [`HexError`].
    pub fn parse_checked(text: &str) -> Result<Self, HexError> {
        let address: Self = text.parse()?;
        let digits = text.trim_start_matches("0x");
        let mixed = digits.bytes().any(|b| b.is_ascii_uppercase()) && digits.bytes().any(|b| b.is_ascii_lowercase());
        if mixed && address.to_string() != text { Err(HexError::Checksum) } else { Ok(address) }
    }

    /// Whether this is [`Address::ZERO`].
    #[must_use]
    pub fn is_zero(&self) -> bool {
        *self == Self::ZERO
    }

    /// The address as a word of the ABI.
    #[must_use]
    pub fn word(&self) -> B256 {
        let mut word = [0; 32];
        word[12..].copy_from_slice(&self.0);
        B256(word)
    }
}

impl fmt::Display for Address {
    /// With the checksum of EIP-55.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = recent(&WRITTEN, &self.0, || self.checksummed()).ok_or(fmt::Error)?;
        f.pad(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

thread_local! {
    /// A paid request's addresses are written four times, and each checksum is a hash.
    static WRITTEN: Recent<20, [u8; 42]> = const { Recent::new(1024) };
}

impl Address {
    fn checksummed(&self) -> Option<[u8; 42]> {
        let mut digits = [0; 40];
        const_hex::encode_to_slice(self.0, &mut digits).ok()?;
        let hash = keccak256(&digits);
        let mut text = *b"0x0000000000000000000000000000000000000000";
        for (n, (digit, place)) in digits.iter().zip(&mut text[2..]).enumerate() {
            let half = hash.0[n / 2] >> (if n % 2 == 0 { 4 } else { 0 }) & 0xF;
            *place = if half >= 8 { digit.to_ascii_uppercase() } else { *digit };
        }
        Some(text)
    }
}

impl FromStr for Address {
    type Err = HexError;

    fn from_str(text: &str) -> Result<Self, HexError> {
        read(text).map(Self)
    }
}

text!(Address, "an address: 0x and 40 hexadecimal digits");

/// 32 bytes: a channel's id, a salt, a digest, a transaction's hash.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct B256(pub [u8; 32]);

impl B256 {
    /// All bits unset.
    pub const ZERO: Self = Self([0; 32]);

    /// A word that is written in this source.
    ///
    /// # Panics
    /// While compiling, where the text is no word.
    #[must_use]
    pub const fn literal(text: &str) -> Self {
        match const_hex::const_decode_to_array(text.as_bytes()) {
            Ok(bytes) => Self(bytes),
            Err(_) => panic!("not 32 bytes"),
        }
    }

    /// The bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for B256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(const_hex::Buffer::<32, true>::new().format(&self.0))
    }
}

impl FromStr for B256 {
    type Err = HexError;

    fn from_str(text: &str) -> Result<Self, HexError> {
        read(text).map(Self)
    }
}

text!(B256, "32 bytes: 0x and 64 hexadecimal digits");

/// A signature by a key: `r`, `s` and `v`, 65 bytes. Whether it is a good one is for `scheme::evm::signature` to say.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct EvmSignature(pub [u8; 65]);

impl fmt::Display for EvmSignature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(const_hex::Buffer::<65, true>::new().format(&self.0))
    }
}

impl FromStr for EvmSignature {
    type Err = HexError;

    fn from_str(text: &str) -> Result<Self, HexError> {
        read(text).map(Self)
    }
}

text!(EvmSignature, "a signature: 0x and 130 hexadecimal digits");

/// At most [`SIGNATURE_BYTES_MAX`] bytes that only a contract can judge.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Bytes(Box<[u8]>);

impl Bytes {
    /// The bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&const_hex::encode_prefixed(&self.0))
    }
}

impl FromStr for Bytes {
    type Err = HexError;

    fn from_str(text: &str) -> Result<Self, HexError> {
        let digits = text.strip_prefix("0x").ok_or(HexError::NotBytes)?;
        if digits.len() > SIGNATURE_BYTES_MAX * 2 || digits.starts_with("0x") {
            return Err(HexError::NotBytes);
        }
        const_hex::decode(digits).map(|bytes| Self(bytes.into())).map_err(|_| HexError::NotBytes)
    }
}

text!(Bytes, "bytes: 0x and hexadecimal digits");

/// A signature as it comes over the wire, before anybody knows whether its signer is a key or a contract.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum AnySignature {
    /// 65 bytes: a key's, or that of a contract which takes such.
    Key(EvmSignature),
    /// Any other length: a contract's.
    Contract(Bytes),
}

impl AnySignature {
    /// A signature of these bytes.
    ///
    /// # Errors
    /// [`HexError::NotBytes`] where there are more than [`SIGNATURE_BYTES_MAX`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, HexError> {
        match bytes.try_into() {
            Ok(signature) => Ok(Self::Key(EvmSignature(signature))),
            Err(_) if bytes.len() <= SIGNATURE_BYTES_MAX => Ok(Self::Contract(Bytes(bytes.into()))),
            Err(_) => Err(HexError::NotBytes),
        }
    }

    /// The bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Self::Key(signature) => &signature.0,
            Self::Contract(bytes) => bytes.as_slice(),
        }
    }
}

impl From<EvmSignature> for AnySignature {
    fn from(signature: EvmSignature) -> Self {
        Self::Key(signature)
    }
}

impl fmt::Display for AnySignature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(signature) => signature.fmt(f),
            Self::Contract(bytes) => fmt::Display::fmt(bytes, f),
        }
    }
}

impl FromStr for AnySignature {
    type Err = HexError;

    fn from_str(text: &str) -> Result<Self, HexError> {
        match text.parse() {
            Ok(signature) => Ok(Self::Key(signature)),
            Err(_) => text.parse().map(Self::Contract),
        }
    }
}

text!(AnySignature, "a signature: 0x and hexadecimal digits");

#[cfg(test)]
mod tests;
