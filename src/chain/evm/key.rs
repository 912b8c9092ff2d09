//! The key that pays for gas: read from a file or the environment, never shown, never copied, wiped when dropped.
//!
//! It is one machine's key and not a threshold one, on purpose: it can spend nothing but the gas money on its account.
//! No claim, refund or payment is authorized by it; `upto` alone names its address, as the one that may settle.

use std::fmt;
use std::path::Path;

use secp256k1::ecdsa::{RecoverableSignature, RecoveryId};
use secp256k1::{Message, SecretKey};
use zeroize::Zeroizing;

use crate::scheme::evm::signature::address_of;
use crate::x402::evm::{Address, B256};

/// The longest key file that is read.
const KEY_FILE_BYTES_MAX: u64 = 1024;

/// Why there is no gas key. Never repeats what was read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GasKeyError {
    /// It is not there, or cannot be read.
    #[error("the gas key cannot be read from {place}: {what}")]
    Unreadable {
        /// The file's path, or the variable's name.
        place: String,
        /// What the system says.
        what: String,
    },
    /// It is no key.
    #[error(
        "the gas key in {place} is no key of secp256k1: write 64 hexadecimal digits, with or without 0x before them"
    )]
    NotAKey {
        /// The file's path, or the variable's name.
        place: String,
    },
}

/// The key that pays for gas.
pub struct GasKey {
    secret: SecretKey,
    address: Address,
}

impl GasKey {
    /// Reads the key from a file that holds it in hexadecimal digits.
    ///
    /// # Errors
    /// [`GasKeyError`].
    pub fn from_file(path: &Path) -> Result<Self, GasKeyError> {
        let place = path.display().to_string();
        let unreadable = |what: String| GasKeyError::Unreadable { place: place.clone(), what };
        let bytes = std::fs::metadata(path).map_err(|error| unreadable(error.to_string()))?.len();
        if bytes > KEY_FILE_BYTES_MAX {
            return Err(unreadable(format!("it has {bytes} bytes, too many for a key")));
        }
        let text = std::fs::read_to_string(path).map_err(|error| unreadable(error.kind().to_string()))?;
        Self::read(place, &Zeroizing::new(text))
    }

    /// Reads the key from an environment variable.
    ///
    /// # Errors
    /// [`GasKeyError`].
    pub fn from_env(name: &str) -> Result<Self, GasKeyError> {
        let unreadable = |what: &str| GasKeyError::Unreadable { place: name.to_owned(), what: what.to_owned() };
        let text = std::env::var(name).map_err(|error| match error {
            std::env::VarError::NotPresent => unreadable("the variable is not set"),
            std::env::VarError::NotUnicode(_) => unreadable("it is no text"),
        })?;
        Self::read(name.to_owned(), &Zeroizing::new(text))
    }

    /// Reads the key from hexadecimal digits that came from `place`, such as a key of the configuration.
    ///
    /// # Errors
    /// [`GasKeyError::NotAKey`].
    pub fn from_hex(place: &str, text: &str) -> Result<Self, GasKeyError> {
        Self::read(place.to_owned(), text)
    }

    fn read(place: String, text: &str) -> Result<Self, GasKeyError> {
        let digits = text.trim();
        let digits = digits.strip_prefix("0x").unwrap_or(digits);
        let mut bytes = Zeroizing::new([0; 32]);
        let read = const_hex::decode_to_slice(digits, bytes.as_mut_slice());
        // A second prefix is no digit, though the decoder would skip it.
        if read.is_err() || digits.len() != 64 {
            return Err(GasKeyError::NotAKey { place });
        }
        let secret = SecretKey::from_secret_bytes(*bytes).map_err(|_| GasKeyError::NotAKey { place })?;
        Ok(Self { address: address_of(&secret.public_key()), secret })
    }

    /// The account that pays.
    #[must_use]
    pub const fn address(&self) -> Address {
        self.address
    }

    /// Signs a transaction's hash: the parity of the point, `r` and `s`. `s` is always the lower of the two.
    pub(super) fn sign(&self, digest: &B256) -> (bool, [u8; 64]) {
        let message = Message::from_digest(digest.0);
        let signature = RecoverableSignature::sign_ecdsa_recoverable(message, &self.secret);
        let (id, compact) = signature.serialize_compact();
        (matches!(id, RecoveryId::One | RecoveryId::Three), compact)
    }
}

impl Drop for GasKey {
    fn drop(&mut self) {
        self.secret.non_secure_erase();
    }
}

impl fmt::Debug for GasKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("GasKey").field(&self.address).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80";

    #[test]
    fn a_key_is_read_with_or_without_its_prefix_and_never_shown() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for text in [format!("{KEY}\n"), format!("0x{KEY}")] {
            std::fs::write(file.path(), text).unwrap();
            let key = GasKey::from_file(file.path()).unwrap();
            assert_eq!(key.address().to_string(), "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266");
            assert_eq!(format!("{key:?}"), "GasKey(0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266)");
        }
    }

    #[test]
    fn what_is_no_key_is_refused_without_being_repeated() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for text in ["", "0x", &KEY[1..], &"f".repeat(64), &"0".repeat(64), &format!("0x0x{KEY}")] {
            std::fs::write(file.path(), text).unwrap();
            let shown = GasKey::from_file(file.path()).unwrap_err().to_string();
            assert!(shown.contains("64 hexadecimal digits") && (text.len() < 8 || !shown.contains(text)), "{shown}");
        }
        std::fs::write(file.path(), KEY.repeat(40)).unwrap();
        assert!(matches!(GasKey::from_file(file.path()), Err(GasKeyError::Unreadable { .. })));
        assert!(matches!(GasKey::from_env("TURNPIKE_NO_SUCH_KEY"), Err(GasKeyError::Unreadable { .. })));
    }
}
