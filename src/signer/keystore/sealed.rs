//! A secret under a passphrase: what makes guessing slow, and the cipher.
//!
//! Promises: parameters that a hostile file gives cannot take more than the bounds of [`Kdf`] to try; a nonce is random and
//! long enough never to come twice.

use argon2::{Algorithm, Argon2, Params, Version};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::passphrase::Passphrase;
use super::{KeystoreError, fill};

pub(super) const KDF: &str = "argon2id";
pub(super) const CIPHER: &str = "xchacha20-poly1305";
pub(super) const SALT_BYTES: usize = 16;
pub(super) const NONCE_BYTES: usize = 24;
const MEMORY_KIB_MAX: u32 = 1024 * 1024;
const PASSES_MAX: u32 = 16;
const LANES_MAX: u32 = 4;

/// What makes guessing a passphrase slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kdf {
    pub(super) memory_kib: u32,
    pub(super) passes: u32,
    pub(super) lanes: u32,
}

impl Kdf {
    /// Argon2id with 64 MiB and 3 passes: for every real key.
    pub const STANDARD: Self = Self { memory_kib: 64 * 1024, passes: 3, lanes: 1 };
    /// Argon2id with 64 KiB and 1 pass: for tests only. No command line reaches it.
    pub const FAST_FOR_TESTS: Self = Self { memory_kib: 64, passes: 1, lanes: 1 };

    /// Whether it would take more than any file of ours.
    pub(super) const fn is_excessive(self) -> bool {
        self.memory_kib > MEMORY_KIB_MAX || self.passes > PASSES_MAX || self.lanes > LANES_MAX
    }
}

/// A key derivation as a file has it.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KdfFields {
    pub(super) name: String,
    pub(super) memory_kib: u32,
    pub(super) passes: u32,
    pub(super) lanes: u32,
    pub(super) salt: String,
}

impl KdfFields {
    pub(super) fn new(kdf: Kdf, salt: [u8; SALT_BYTES]) -> Self {
        let Kdf { memory_kib, passes, lanes } = kdf;
        Self { name: KDF.to_owned(), memory_kib, passes, lanes, salt: STANDARD.encode(salt) }
    }

    pub(super) const fn cost(&self) -> Kdf {
        Kdf { memory_kib: self.memory_kib, passes: self.passes, lanes: self.lanes }
    }
}

/// A secret of some bytes, encrypted: the part of a file that needs the passphrase.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sealed {
    kdf: KdfFields,
    cipher: String,
    nonce: String,
    ciphertext: String,
}

/// A key that was derived from a passphrase, for the several times that one file is written.
pub struct FileKey {
    key: Zeroizing<[u8; 32]>,
    kdf: KdfFields,
}

impl FileKey {
    /// A key for a new file.
    ///
    /// # Errors
    /// [`KeystoreError::Random`] where the system gives no random bytes.
    pub fn new(passphrase: &Passphrase, kdf: Kdf) -> Result<Self, KeystoreError> {
        let mut salt = [0; SALT_BYTES];
        fill(&mut salt)?;
        Ok(Self { key: derive(passphrase, &salt, kdf)?, kdf: KdfFields::new(kdf, salt) })
    }

    /// The key of a file that is there, and what the file holds. `None` where the passphrase is another, or the file or what
    /// was said beside it is not as it was written.
    #[must_use]
    pub fn open(passphrase: &Passphrase, sealed: &Sealed, associated: &[u8]) -> Option<(Self, Zeroizing<Vec<u8>>)> {
        let Sealed { kdf, cipher: name, nonce, ciphertext } = sealed;
        if kdf.name != KDF || name != CIPHER || kdf.cost().is_excessive() {
            return None;
        }
        let salt: [u8; SALT_BYTES] = STANDARD.decode(&kdf.salt).ok()?.try_into().ok()?;
        let nonce: [u8; NONCE_BYTES] = STANDARD.decode(nonce).ok()?.try_into().ok()?;
        let key = derive(passphrase, &salt, kdf.cost()).ok()?;
        let ciphertext = STANDARD.decode(ciphertext).ok()?;
        let payload = Payload { msg: &ciphertext, aad: associated };
        let secret = cipher(&key).decrypt(XNonce::from_slice(&nonce), payload).map(Zeroizing::new).ok()?;
        Some((Self { key, kdf: kdf.clone() }, secret))
    }

    /// Encrypts a secret. `associated` is what the file says in the clear, and cannot be exchanged.
    ///
    /// # Errors
    /// [`KeystoreError::Random`] where the system gives no random bytes.
    pub fn seal(&self, secret: &[u8], associated: &[u8]) -> Result<Sealed, KeystoreError> {
        let mut nonce = [0; NONCE_BYTES];
        fill(&mut nonce)?;
        let payload = Payload { msg: secret, aad: associated };
        let ciphertext = cipher(&self.key)
            .encrypt(XNonce::from_slice(&nonce), payload)
            .map_err(|_| KeystoreError::Cipher("the cipher refused"))?;
        Ok(Sealed {
            kdf: self.kdf.clone(),
            cipher: CIPHER.to_owned(),
            nonce: STANDARD.encode(nonce),
            ciphertext: STANDARD.encode(ciphertext),
        })
    }
}

pub(super) fn derive(passphrase: &Passphrase, salt: &[u8], kdf: Kdf) -> Result<Zeroizing<[u8; 32]>, KeystoreError> {
    let mut key = Zeroizing::new([0; 32]);
    let params = Params::new(kdf.memory_kib, kdf.passes, kdf.lanes, Some(key.len()))
        .map_err(|_| KeystoreError::Cipher("no such key derivation parameters"))?;
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into(passphrase.0.as_bytes(), salt, key.as_mut())
        .map_err(|_| KeystoreError::Cipher("the key derivation refused"))?;
    Ok(key)
}

pub(super) fn cipher(key: &Zeroizing<[u8; 32]>) -> XChaCha20Poly1305 {
    XChaCha20Poly1305::new(chacha20poly1305::Key::from_slice(key.as_ref()))
}
