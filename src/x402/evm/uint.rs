//! A number of 256 bits, as contracts count: times, nonces, and what does not fit an `Amount`.
//!
//! Read from decimal digits or from `0x` and hexadecimal ones, as the reference packages read it; written in decimal
//! digits. There is no arithmetic: nothing here is money.

use std::fmt;
use std::str::FromStr;

use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{B256, text};
use crate::amount::Amount;

/// The most decimal digits that are read: enough for any number of 256 bits.
pub const U256_DIGITS_MAX: usize = 78;

/// A number of 256 bits. Its bytes are big-endian, so they are ordered as the numbers are.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct U256([u8; 32]);

impl U256 {
    /// Nothing.
    pub const ZERO: Self = Self([0; 32]);

    /// The number as a word of the ABI.
    #[must_use]
    pub const fn word(&self) -> B256 {
        B256(self.0)
    }

    /// The number as a `u64`, or `None` where it does not fit.
    #[must_use]
    pub fn to_u64(&self) -> Option<u64> {
        let (high, low) = self.0.split_last_chunk::<8>()?;
        high.iter().all(|byte| *byte == 0).then(|| u64::from_be_bytes(*low))
    }
}

impl From<u64> for U256 {
    fn from(number: u64) -> Self {
        u128::from(number).into()
    }
}

impl From<u128> for U256 {
    fn from(number: u128) -> Self {
        let mut bytes = [0; 32];
        bytes[16..].copy_from_slice(&number.to_be_bytes());
        Self(bytes)
    }
}

impl From<Amount> for U256 {
    fn from(amount: Amount) -> Self {
        amount.get().into()
    }
}

impl From<B256> for U256 {
    fn from(word: B256) -> Self {
        Self(word.0)
    }
}

impl fmt::Display for U256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0;
        let mut digits = [b'0'; U256_DIGITS_MAX];
        for place in digits.iter_mut().rev() {
            *place = b'0'.saturating_add(divide_by_ten(&mut rest));
        }
        let text = std::str::from_utf8(&digits).map_err(|_| fmt::Error)?.trim_start_matches('0');
        f.pad(if text.is_empty() { "0" } else { text })
    }
}

/// Divides in place and gives the remainder.
fn divide_by_ten(number: &mut [u8; 32]) -> u8 {
    let mut remainder: u16 = 0;
    for byte in number {
        let part = (remainder << 8) | u16::from(*byte);
        *byte = u8::try_from(part / 10).unwrap_or(u8::MAX);
        remainder = part % 10;
    }
    u8::try_from(remainder).unwrap_or(u8::MAX)
}

/// Multiplies in place and adds a digit; `None` where the number grows out of 256 bits.
fn append(number: &mut [u8; 32], digit: u8) -> Option<()> {
    let mut carry = u16::from(digit);
    for byte in number.iter_mut().rev() {
        let [high, low] = (u16::from(*byte) * 10 + carry).to_be_bytes();
        *byte = low;
        carry = u16::from(high);
    }
    (carry == 0).then_some(())
}

/// Why a text is no number of 256 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a whole number of at most 256 bits in decimal digits, or in hexadecimal ones after 0x")]
pub struct U256Error;

impl FromStr for U256 {
    type Err = U256Error;

    fn from_str(text: &str) -> Result<Self, U256Error> {
        let mut bytes = [0; 32];
        if let Some(digits) = text.strip_prefix("0x") {
            let missing = 64_usize.checked_sub(digits.len()).filter(|missing| *missing < 64).ok_or(U256Error)?;
            let mut padded = [b'0'; 64];
            padded[missing..].copy_from_slice(digits.as_bytes());
            let all_digits = digits.bytes().all(|b| b.is_ascii_hexdigit());
            const_hex::decode_to_slice(padded, &mut bytes).ok().filter(|()| all_digits).ok_or(U256Error)?;
            return Ok(Self(bytes));
        }
        if !(1..=U256_DIGITS_MAX).contains(&text.len()) {
            return Err(U256Error);
        }
        for digit in text.bytes() {
            let digit = digit.checked_sub(b'0').filter(|digit| *digit < 10).ok_or(U256Error)?;
            append(&mut bytes, digit).ok_or(U256Error)?;
        }
        Ok(Self(bytes))
    }
}

text!(U256, "a whole number as text, in decimal digits or in hexadecimal ones after 0x");
