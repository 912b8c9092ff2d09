//! The curves that keys are made on, and what differs between the files of their shares.
//!
//! A share is of one curve by its type, so that a signer of the other cannot be given it.

use std::fmt;
use std::str::FromStr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::x402::Key;

/// The shortest and the longest secret part of a share, in bytes.
pub type SecretBytes = std::ops::RangeInclusive<usize>;

/// A curve that keys are made on. There are two, [`Ed25519`] and [`Secp256k1`].
pub trait Curve: sealed::Sealed + Copy + Eq + fmt::Debug {
    /// A public point: the group's key, or the public part of a share.
    type Point: Copy + Eq + fmt::Debug + fmt::Display + AsRef<[u8]> + Serialize + DeserializeOwned;
    /// Its name, as `turnpike keygen --curve` takes it.
    const NAME: &'static str;
    /// What its share files have as `scheme`.
    const SCHEME: &'static str;
    /// How long the secret part of a share may be.
    const SECRET_BYTES: SecretBytes;
}

/// Solana's curve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ed25519;

impl Curve for Ed25519 {
    type Point = Key;
    const NAME: &'static str = "ed25519";
    const SCHEME: &'static str = "frost-ed25519-2-of-3";
    const SECRET_BYTES: SecretBytes = 32..=32;
}

/// The curve of the EVM chains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Secp256k1;

impl Curve for Secp256k1 {
    type Point = Point;
    const NAME: &'static str = "secp256k1";
    const SCHEME: &'static str = "dkls23-secp256k1-2-of-3";
    /// A share holds its scalar and, for each of the other two, seeds of oblivious transfers: 104,884 bytes.
    const SECRET_BYTES: SecretBytes = 32..=128 * 1024;
}

/// The curve whose share files have this `scheme`.
pub(super) fn name_of(scheme: &str) -> Option<&'static str> {
    [(Ed25519::SCHEME, Ed25519::NAME), (Secp256k1::SCHEME, Secp256k1::NAME)]
        .into_iter()
        .find_map(|(known, name)| (known == scheme).then_some(name))
}

/// A point of secp256k1 in 33 bytes (SEC 1, compressed), as text `0x` and hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Point(pub [u8; 33]);

impl AsRef<[u8]> for Point {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(const_hex::Buffer::<33, true>::new().format(&self.0))
    }
}

impl fmt::Debug for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not that of 33 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not 0x and 66 hexadecimal digits")]
pub struct PointError;

impl FromStr for Point {
    type Err = PointError;

    fn from_str(text: &str) -> Result<Self, PointError> {
        let digits = text.strip_prefix("0x").filter(|digits| digits.len() == 66).ok_or(PointError)?;
        const_hex::decode_to_array(digits).map(Self).map_err(|_| PointError)
    }
}

impl Serialize for Point {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Point {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Ed25519 {}
    impl Sealed for super::Secp256k1 {}
}
