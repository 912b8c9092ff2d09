//! A 32-byte public key or address with its base58 text, as Solana writes it, and a 64-byte signature likewise.
//!
//! Every paid request reads and writes a dozen of these, so both lengths are known beforehand to what converts: `five8`
//! reads them. They are written by what is here, in a fraction of what `five8` takes where it is built without vectors.

use std::cell::RefCell;
use std::fmt;
use std::str::FromStr;

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
        let place = usize::from(self.0[PLACE_BY]);
        let is_known = |known: &&KeyText| known.length > 0 && known.key == *self;
        let known = WRITTEN.try_with(|written| written.borrow().get(place).filter(is_known).copied());
        let text = match known {
            Ok(Some(known)) => known,
            Ok(None) | Err(_) => self.write(place).ok_or(fmt::Error)?,
        };
        f.pad(text.as_str().ok_or(fmt::Error)?)
    }
}

impl Key {
    /// Makes the text, and keeps it for the next time.
    fn write(&self, place: usize) -> Option<KeyText> {
        let mut digits = [[0; GROUP]; 9];
        let number = encode::<8, 9>(&self.0, &mut digits)?;
        let mut text = KeyText { key: *self, length: number.len(), ..KeyText::NONE };
        text.text.get_mut(..number.len())?.copy_from_slice(number);
        // A thread that is about to end keeps nothing.
        let _kept = WRITTEN.try_with(|written| {
            let mut written = written.borrow_mut();
            if written.is_empty() {
                written.resize(PLACES, KeyText::NONE);
            }
            if let Some(kept) = written.get_mut(place) {
                *kept = text;
            }
        });
        Some(text)
    }
}

/// Of how many keys a thread keeps the text. A paid request's two keys are written seven times, in its answer, to the
/// upstream and in the audit record.
const PLACES: usize = 256;
/// The byte that says where. Most keys are digests, or as good as random.
const PLACE_BY: usize = 16;

thread_local! {
    static WRITTEN: RefCell<Vec<KeyText>> = const { RefCell::new(Vec::new()) };
}

/// A key and its text; of length 0 where nothing is kept.
#[derive(Clone, Copy)]
struct KeyText {
    key: Key,
    text: [u8; 45],
    length: usize,
}

impl KeyText {
    const NONE: Self = Self { key: Key([0; 32]), text: [0; 45], length: 0 };

    fn as_str(&self) -> Option<&str> {
        std::str::from_utf8(self.text.get(..self.length)?).ok()
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
