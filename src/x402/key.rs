//! A 32-byte public key or address with its base58 text, as Solana writes it, and a 64-byte signature likewise.
//!
//! Every paid request reads and writes a dozen of these, so it is `five8` that converts: it knows both lengths
//! beforehand.

use std::fmt;
use std::str::FromStr;

use five8::{BASE58_ENCODED_32_MAX_LEN, BASE58_ENCODED_64_MAX_LEN};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// 32 bytes that name an account, a program, a mint or a channel.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(pub [u8; 32]);

impl Key {
    /// The bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl AsRef<[u8]> for Key {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0; BASE58_ENCODED_32_MAX_LEN];
        let length = five8::encode_32(&self.0, &mut text);
        pad(f, &text, length)
    }
}

/// Writes the first `length` bytes of a base58 text.
fn pad(f: &mut fmt::Formatter<'_>, text: &[u8], length: u8) -> fmt::Result {
    let text = text.get(..usize::from(length)).ok_or(fmt::Error)?;
    f.pad(std::str::from_utf8(text).map_err(|_| fmt::Error)?)
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not the base58 of exactly 32 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the base58 text of 32 bytes")]
pub struct KeyError;

impl FromStr for Key {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let mut bytes = [0; 32];
        five8::decode_32(text, &mut bytes).map_err(|_| KeyError)?;
        Ok(Self(bytes))
    }
}

impl Serialize for Key {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A 64-byte Ed25519 signature with its base58 text: a voucher's, or the name of a Solana transaction.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Signature(pub [u8; 64]);

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0; BASE58_ENCODED_64_MAX_LEN];
        let length = five8::encode_64(&self.0, &mut text);
        pad(f, &text, length)
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Signature {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let mut bytes = [0; 64];
        five8::decode_64(text, &mut bytes).map_err(|_| KeyError)?;
        Ok(Self(bytes))
    }
}

impl Serialize for Signature {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Signature {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decoded<const N: usize>(text: &str) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        (bs58::decode(text).onto(&mut bytes) == Ok(N)).then_some(bytes)
    }

    proptest! {
        /// With any number of leading zeros, which base58 writes as ones.
        #[test]
        fn texts_are_those_of_base58(mut bytes in any::<[u8; 64]>(), zeros in 0..=64_usize) {
            bytes[..zeros].fill(0);
            let signature = Signature(bytes);
            prop_assert_eq!(signature.to_string(), bs58::encode(bytes).into_string());
            prop_assert_eq!(signature.to_string().parse(), Ok(signature));
            let key = Key(bytes[..32].try_into().unwrap());
            prop_assert_eq!(key.to_string(), bs58::encode(key.0).into_string());
            prop_assert_eq!(key.to_string().parse(), Ok(key));
        }

        #[test]
        fn any_text_is_read_as_base58_reads_it(text in "1{0,3}([1-9A-HJ-NP-Za-km-z]{0,90}|.{0,50}|[1-9A-HJ-NP-Za-km-z]{43,44})") {
            prop_assert_eq!(text.parse().ok(), decoded(&text).map(Key));
            prop_assert_eq!(text.parse().ok(), decoded(&text).map(Signature));
        }
    }
}
