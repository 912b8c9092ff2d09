//! A 32-byte public key or address with its base58 text, as Solana writes it, and a 64-byte signature likewise.
//!
//! Every paid request reads and writes a dozen of these, so both lengths are known beforehand to what converts: `five8`
//! reads them. They are written by what is here, in a fraction of what `five8` takes where it is built without vectors.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::recent::{Recent, recent};

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
        let text = recent(&WRITTEN, &self.0, || KeyText::of(self)).ok_or(fmt::Error)?;
        f.pad(text.as_str().ok_or(fmt::Error)?)
    }
}

thread_local! {
    /// A paid request's two keys are written seven times, in its answer, to the upstream and in the audit record.
    static WRITTEN: Recent<32, KeyText> = const { Recent::new(1024) };
}

/// A key's text, which has at most 44 digits.
#[derive(Clone, Copy)]
struct KeyText {
    digits: [u8; 45],
    length: u8,
}

impl KeyText {
    fn of(key: &Key) -> Option<Self> {
        let mut room = [[0; GROUP]; 9];
        let written = encode::<8, 9>(&key.0, &mut room)?;
        let mut digits = [0; 45];
        digits.get_mut(..written.len())?.copy_from_slice(written);
        Some(Self { digits, length: u8::try_from(written.len()).ok()? })
    }

    fn as_str(&self) -> Option<&str> {
        std::str::from_utf8(self.digits.get(..self.length.into())?).ok()
    }
}

const DIGITS: &[u8; 58] = b"123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";
/// As many digits as always fit into 32 bits.
const GROUP: usize = 5;
const GROUP_BASE: u64 = 58_u64.pow(5);

/// The base58 text of `LIMBS` times four bytes, which are at most `GROUPS` groups of digits.
fn encode<'t, const LIMBS: usize, const GROUPS: usize>(
    bytes: &[u8],
    text: &'t mut [[u8; GROUP]; GROUPS],
) -> Option<&'t [u8]> {
    let number = divide::<LIMBS, GROUPS>(bytes, text);
    // Each zero byte in front is a digit of its own; the number's own zeros in front are none.
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    let start = number.iter().take_while(|digit| **digit == DIGITS[0]).count().saturating_sub(zeros);
    number.get(start..)
}

/// All digits of a number, zeros in front included: it is divided, a group of digits at a time.
fn divide<'t, const LIMBS: usize, const GROUPS: usize>(bytes: &[u8], text: &'t mut [[u8; GROUP]; GROUPS]) -> &'t [u8] {
    let mut limbs = [0_u64; LIMBS];
    for (limb, bytes) in limbs.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *limb = u64::from(u32::from_be_bytes(*bytes));
    }
    let mut first = 0;
    for group in text.iter_mut().rev() {
        let mut rest = 0;
        for limb in limbs.iter_mut().skip(first) {
            let sum = (rest << 32) | *limb;
            (*limb, rest) = (sum / GROUP_BASE, sum % GROUP_BASE);
        }
        // A group is a little less than a limb, so at most one limb more is empty now.
        first += usize::from(limbs.get(first) == Some(&0));
        for digit in group.iter_mut().rev() {
            // Below 58, as an index has to be.
            *digit = DIGITS[usize::try_from(rest % 58).unwrap_or_default()];
            rest /= 58;
        }
    }
    text.as_flattened()
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
        let mut digits = [[0; GROUP]; 18];
        let text = encode::<16, 18>(&self.0, &mut digits).ok_or(fmt::Error)?;
        f.pad(std::str::from_utf8(text).map_err(|_| fmt::Error)?)
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
            // One in whose place it is kept, and itself again.
            let mut other = key;
            other.0[0] ^= 1;
            for key in [other, key, key] {
                prop_assert_eq!(key.to_string(), bs58::encode(key.0).into_string());
            }
        }

        #[test]
        fn any_text_is_read_as_base58_reads_it(text in "1{0,3}([1-9A-HJ-NP-Za-km-z]{0,90}|.{0,50}|[1-9A-HJ-NP-Za-km-z]{43,44})") {
            prop_assert_eq!(text.parse().ok(), decoded(&text).map(Key));
            prop_assert_eq!(text.parse().ok(), decoded(&text).map(Signature));
        }
    }
}
