//! Encrypted share files.
//!
//! Owns [`KeyShare`] (one share of a threshold key, in memory), [`Passphrase`] and the file format below. Promises: a
//! share or passphrase is never printed, logged or cloned and is wiped when dropped; a file is created with mode 0600
//! and never overwritten; the clear fields cannot be exchanged without the passphrase; a hostile file cannot take more
//! than [`FILE_BYTES_MAX`] bytes or the bounds of [`Kdf`] to read. Refuses a share of another curve than the one that is
//! asked for. Knows nothing of the signature schemes' arithmetic.
//!
//! Format: one JSON object, exactly these fields, bytes as standard base64, points as their curve writes them. A file is
//! written in the oldest version that can say what it holds, so that the shares of a new key are read by every release.
//!
//! | field | content |
//! |---|---|
//! | `version` | `1` for the first shares of a key, `2` for those that a refresh or a replacement has made |
//! | `scheme` | the curve, and what its shares are: see below |
//! | `group` | the group's public key |
//! | `identifier` | which share this is: 1, 2 or 3 |
//! | `verifying_shares` | the public part of each share, in the order of their identifiers |
//! | `generation` | in version 2 only: 2 after the first refresh, 3 after the second, and so on |
//! | `kdf` | `name` `"argon2id"` (version 0x13), `memory_kib`, `passes`, `lanes`, `salt` (16 bytes) |
//! | `cipher` | `"xchacha20-poly1305"` |
//! | `nonce` | 24 bytes |
//! | `ciphertext` | the encrypted share and its 16-byte tag |
//! | `checksum` | SHA-256 over associated data and ciphertext: tells a damaged file from a wrong passphrase |
//!
//! | `scheme` | points | the share |
//! |---|---|---|
//! | `frost-ed25519-2-of-3`: FROST(Ed25519, SHA-512), RFC 9591 | base58 of 32 bytes; `group` is a Solana address | 32 bytes: a scalar, little endian |
//! | `dkls23-secp256k1-2-of-3`: DKLs23 | `0x` and the digits of 33 bytes, compressed | a `Party` of dkls23-core 0.6, in postcard |
//! | `rehearsal-` and one of these: made in a rehearsal, no signer takes it | as above | as above |
//!
//! The associated data are, in this order and without separators: the 20 bytes `turnpike share file\0`, `version`
//! (u32), length (u16) and bytes of `scheme`, `group`, `identifier` (u16), the three `verifying_shares`, in version 2
//! `generation` (u32), length and bytes of `kdf.name`, `memory_kib`, `passes`, `lanes` (u32 each), `salt`, length and bytes of `cipher`, `nonce`.
//! Integers are little endian, points in bytes.

mod curve;
mod file;
mod passphrase;
mod public;
mod sealed;

use std::io;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chacha20poly1305::XNonce;
use chacha20poly1305::aead::{Aead, Payload};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

pub use self::curve::{Curve, Ed25519, Point, Secp256k1};
pub use self::passphrase::{PASSPHRASE_CHARS_MIN, Passphrase};
pub use self::public::{AnyPublicPart, PublicPart, peek, public_part};
pub use self::sealed::{FileKey, Kdf, Sealed};

pub(crate) use self::file::write_new;
pub(super) use self::file::{read_text, write_over};
use self::sealed::{CIPHER, KDF, KdfFields, NONCE_BYTES, SALT_BYTES, cipher, derive};

/// How many shares a key has.
pub const SHARES: usize = 3;
/// The largest share file that is read: some more than the base64 of the longest share.
pub const FILE_BYTES_MAX: u64 = 256 * 1024;

/// Of the first shares of a key.
const VERSION: u32 = 1;
/// Of later generations.
const VERSION_WITH_GENERATION: u32 = 2;
const REHEARSAL: &str = "rehearsal-";
const LABEL: &[u8] = b"turnpike share file\0";
const TAG_BYTES: usize = 16;

/// One share of a threshold key. It cannot be printed or cloned, and is wiped when dropped.
///
/// ```compile_fail
/// fn twice(share: turnpike::signer::keystore::KeyShare) {
///     let copy = share.clone();
/// }
/// ```
/// ```compile_fail
/// fn shown(share: turnpike::signer::keystore::KeyShare) -> String {
///     format!("{share:?}")
/// }
/// ```
pub struct KeyShare<C: Curve = Ed25519> {
    pub(super) group: C::Point,
    pub(super) identifier: u16,
    pub(super) verifying_shares: [C::Point; SHARES],
    pub(super) generation: u32,
    pub(super) rehearsal: bool,
    pub(super) secret: Zeroizing<Vec<u8>>,
    pub(super) origin: String,
}

impl<C: Curve> KeyShare<C> {
    /// The public key of the group that this share belongs to.
    #[must_use]
    pub const fn group(&self) -> C::Point {
        self.group
    }

    /// Which share this is: 1, 2 or 3.
    #[must_use]
    pub const fn identifier(&self) -> u16 {
        self.identifier
    }

    /// How often the key's shares were made when this one was: 1 for those of a new key.
    #[must_use]
    pub const fn generation(&self) -> u32 {
        self.generation
    }

    /// Where it came from, for messages: its file, or how it was made.
    #[must_use]
    pub fn origin(&self) -> &str {
        &self.origin
    }
}

/// Why a share is not read or written.
#[derive(Debug, thiserror::Error)]
pub enum KeystoreError {
    /// The file cannot be read.
    #[error("{path}: cannot be read: {source}", path = .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The file cannot be written.
    #[error("{path}: cannot be written: {source}", path = .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The file is there already, and a share is never overwritten.
    #[error("{path}: exists already; move it away or choose another directory", path = .0.display())]
    Exists(PathBuf),
    /// Not a share file.
    #[error("{path}: is not a share file ({what}); give the path of a file that `turnpike keygen` wrote", path = .path.display())]
    NotAShare {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A share of a key on another curve.
    #[error("{path}: holds a share of a key on {found}, and one on {expected} is needed; give a share that `turnpike keygen --curve {expected}` made", path = .path.display())]
    WrongCurve {
        /// The file.
        path: PathBuf,
        /// Its curve.
        found: &'static str,
        /// The curve that is needed.
        expected: &'static str,
    },
    /// A share of a rehearsal, where one of a real key is needed, or the other way round.
    #[error("{path}: holds a share of {found}, and one of {expected} is needed; give the right file", path = .path.display())]
    Rehearsal {
        /// The file.
        path: PathBuf,
        /// What it is of.
        found: &'static str,
        /// What is needed.
        expected: &'static str,
    },
    /// A share file of another version, or for another scheme.
    #[error("{path}: has {field} {found}, this release reads {expected}; use the release that wrote it", path = .path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// Which field.
        field: &'static str,
        /// Its value.
        found: String,
        /// What is supported.
        expected: String,
    },
    /// A share file that is not as it was written.
    #[error("{path}: is damaged ({what}); restore it from its backup", path = .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
    /// The passphrase does not open the file.
    #[error("{path}: the passphrase does not open it; check that it is the one of share {identifier}", path = .path.display())]
    Passphrase {
        /// The file.
        path: PathBuf,
        /// Which share it holds.
        identifier: u16,
    },
    /// The system gives no random bytes.
    #[error("the system gives no random bytes: {0}")]
    Random(String),
    /// The library refuses parameters that are ours: never seen.
    #[error("encrypting the share failed: {0}")]
    Cipher(&'static str),
}

/// The clear fields of a share file, and the ciphertext.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, bound = "")]
struct ShareFile<C: Curve> {
    version: u32,
    scheme: String,
    group: C::Point,
    identifier: u16,
    verifying_shares: [C::Point; SHARES],
    #[serde(default, skip_serializing_if = "Option::is_none")]
    generation: Option<u32>,
    kdf: KdfFields,
    cipher: String,
    nonce: String,
    ciphertext: String,
    checksum: String,
}

impl<C: Curve> ShareFile<C> {
    fn generation(&self) -> u32 {
        self.generation.unwrap_or(1)
    }

    fn is_of_rehearsal(&self) -> bool {
        self.scheme.starts_with(REHEARSAL)
    }
}

/// What says how the rest is to be read. Every version has the first of these.
#[derive(Deserialize)]
struct Head {
    version: u32,
    scheme: Option<String>,
}

/// Encrypts a share and writes it to a new file of mode 0600.
///
/// # Errors
/// [`KeystoreError::Exists`] or [`KeystoreError::Write`]; nothing is left behind then.
pub fn create<C: Curve>(
    path: &Path,
    share: &KeyShare<C>,
    passphrase: &Passphrase,
    kdf: Kdf,
) -> Result<(), KeystoreError> {
    write_new(path, &seal_anew(share, passphrase, kdf)?)
}

/// Encrypts a share and writes it to a file of mode 0600 in place of the one that is there, whole at every moment.
///
/// # Errors
/// [`KeystoreError::Write`]; what was there is there still then.
pub fn replace<C: Curve>(
    path: &Path,
    share: &KeyShare<C>,
    passphrase: &Passphrase,
    kdf: Kdf,
) -> Result<(), KeystoreError> {
    write_over(path, &seal_anew(share, passphrase, kdf)?)
}

/// Reads and decrypts a share of a key on the curve `C`. A share of a rehearsal is refused.
///
/// # Errors
/// [`KeystoreError`], which names the file and what to do.
pub fn open<C: Curve>(path: &Path, passphrase: &Passphrase) -> Result<KeyShare<C>, KeystoreError> {
    open_of(path, passphrase, false)
}

/// [`open`], of a rehearsal where `rehearsal`, and only then.
///
/// # Errors
/// As [`open`].
pub fn open_of<C: Curve>(path: &Path, passphrase: &Passphrase, rehearsal: bool) -> Result<KeyShare<C>, KeystoreError> {
    let file: ShareFile<C> = parse(path, &read_text(path, FILE_BYTES_MAX)?)?;
    let name = |rehearsal| if rehearsal { "a rehearsal" } else { "a real key" };
    if file.is_of_rehearsal() != rehearsal {
        let (found, expected) = (name(!rehearsal), name(rehearsal));
        return Err(KeystoreError::Rehearsal { path: path.to_owned(), found, expected });
    }
    decrypt(path, &file, passphrase)
}

/// Reads the text of a share file of the curve `C`, and refuses what it cannot read whole.
fn parse<C: Curve>(path: &Path, text: &str) -> Result<ShareFile<C>, KeystoreError> {
    let not_a_share = |what: String| KeystoreError::NotAShare { path: path.to_owned(), what };
    let head: Head = serde_json::from_str(text).map_err(|error| not_a_share(error.to_string()))?;
    if head.version != VERSION_WITH_GENERATION {
        let known = format!("{VERSION} and {VERSION_WITH_GENERATION}");
        supported(path, "version", head.version == VERSION, &head.version.to_string(), &known)?;
    }
    if let Some(scheme) = head.scheme {
        let real = scheme.strip_prefix(REHEARSAL).unwrap_or(&scheme);
        if let Some(found) = curve::name_of(real).filter(|found| *found != C::NAME) {
            return Err(KeystoreError::WrongCurve { path: path.to_owned(), found, expected: C::NAME });
        }
        supported(path, "scheme", real == C::SCHEME, &scheme, C::SCHEME)?;
    }
    let file: ShareFile<C> = serde_json::from_str(text).map_err(|error| not_a_share(error.to_string()))?;
    supported(path, "kdf", file.kdf.name == KDF, &file.kdf.name, KDF)?;
    supported(path, "cipher", file.cipher == CIPHER, &file.cipher, CIPHER)?;
    match (file.version, file.generation) {
        (VERSION, None) | (VERSION_WITH_GENERATION, Some(2..)) => Ok(file),
        _ => Err(not_a_share("its generation is not one of its version".to_owned())),
    }
}

fn decrypt<C: Curve>(path: &Path, file: &ShareFile<C>, passphrase: &Passphrase) -> Result<KeyShare<C>, KeystoreError> {
    let damaged = |what| KeystoreError::Damaged { path: path.to_owned(), what };
    let salt: [u8; SALT_BYTES] = bytes(&file.kdf.salt).ok_or_else(|| damaged("the salt is not 16 bytes"))?;
    let nonce: [u8; NONCE_BYTES] = bytes(&file.nonce).ok_or_else(|| damaged("the nonce is not 24 bytes"))?;
    let ciphertext = STANDARD.decode(&file.ciphertext).map_err(|_| damaged("the ciphertext is not base64"))?;
    if !ciphertext.len().checked_sub(TAG_BYTES).is_some_and(|length| C::SECRET_BYTES.contains(&length)) {
        return Err(damaged("the ciphertext is too short or too long"));
    }
    let associated = associated_data(file, &salt, &nonce);
    if bytes(&file.checksum) != Some(checksum(&associated, &ciphertext)) {
        return Err(damaged("the checksum does not match"));
    }
    if !(1..=SHARES).contains(&usize::from(file.identifier)) {
        return Err(damaged("the identifier is not 1, 2 or 3"));
    }
    if file.kdf.cost().is_excessive() {
        return Err(damaged("the key derivation would take more than any share file of ours"));
    }
    let key =
        derive(passphrase, &salt, file.kdf.cost()).map_err(|_| damaged("the key derivation has no such parameters"))?;
    let payload = Payload { msg: &ciphertext, aad: &associated };
    let secret = cipher(&key)
        .decrypt(XNonce::from_slice(&nonce), payload)
        .map(Zeroizing::new)
        .map_err(|_| KeystoreError::Passphrase { path: path.to_owned(), identifier: file.identifier })?;
    Ok(KeyShare {
        group: file.group,
        identifier: file.identifier,
        verifying_shares: file.verifying_shares,
        generation: file.generation(),
        rehearsal: file.is_of_rehearsal(),
        secret,
        origin: path.display().to_string(),
    })
}

/// The text of a share file with a salt and a nonce of its own.
fn seal_anew<C: Curve>(share: &KeyShare<C>, passphrase: &Passphrase, kdf: Kdf) -> Result<String, KeystoreError> {
    let mut salt = [0; SALT_BYTES];
    let mut nonce = [0; NONCE_BYTES];
    fill(&mut salt)?;
    fill(&mut nonce)?;
    seal(share, passphrase, kdf, salt, nonce)
}

/// The text of a share file. Salt and nonce are given so that the format can be fixed by a test.
fn seal<C: Curve>(
    share: &KeyShare<C>,
    passphrase: &Passphrase,
    kdf: Kdf,
    salt: [u8; SALT_BYTES],
    nonce: [u8; NONCE_BYTES],
) -> Result<String, KeystoreError> {
    let generation = Some(share.generation).filter(|generation| *generation > 1);
    let mut file = ShareFile::<C> {
        version: if generation.is_some() { VERSION_WITH_GENERATION } else { VERSION },
        scheme: if share.rehearsal { [REHEARSAL, C::SCHEME].concat() } else { C::SCHEME.to_owned() },
        group: share.group,
        identifier: share.identifier,
        verifying_shares: share.verifying_shares,
        generation,
        kdf: KdfFields::new(kdf, salt),
        cipher: CIPHER.to_owned(),
        nonce: STANDARD.encode(nonce),
        ciphertext: String::new(),
        checksum: String::new(),
    };
    let associated = associated_data(&file, &salt, &nonce);
    let key = derive(passphrase, &salt, kdf)?;
    let payload = Payload { msg: &share.secret, aad: &associated };
    let ciphertext = cipher(&key)
        .encrypt(XNonce::from_slice(&nonce), payload)
        .map_err(|_| KeystoreError::Cipher("the cipher refused"))?;
    file.checksum = STANDARD.encode(checksum(&associated, &ciphertext));
    file.ciphertext = STANDARD.encode(ciphertext);
    let text = serde_json::to_string_pretty(&file).map_err(|_| KeystoreError::Cipher("the file has no text"))?;
    Ok(text + "\n")
}

fn associated_data<C: Curve>(file: &ShareFile<C>, salt: &[u8; SALT_BYTES], nonce: &[u8; NONCE_BYTES]) -> Vec<u8> {
    let mut data = LABEL.to_vec();
    let text = |data: &mut Vec<u8>, text: &str| {
        data.extend(u16::try_from(text.len()).unwrap_or(u16::MAX).to_le_bytes());
        data.extend(text.as_bytes());
    };
    data.extend(file.version.to_le_bytes());
    text(&mut data, &file.scheme);
    data.extend(file.group.as_ref());
    data.extend(file.identifier.to_le_bytes());
    for share in &file.verifying_shares {
        data.extend(share.as_ref());
    }
    if let Some(generation) = file.generation {
        data.extend(generation.to_le_bytes());
    }
    text(&mut data, &file.kdf.name);
    for number in [file.kdf.memory_kib, file.kdf.passes, file.kdf.lanes] {
        data.extend(number.to_le_bytes());
    }
    data.extend(salt);
    text(&mut data, &file.cipher);
    data.extend(nonce);
    data
}

fn checksum(associated: &[u8], ciphertext: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update(associated).chain_update(ciphertext).finalize().into()
}

fn supported(path: &Path, field: &'static str, is: bool, found: &str, expected: &str) -> Result<(), KeystoreError> {
    if is {
        return Ok(());
    }
    let found = found.chars().take(40).collect();
    Err(KeystoreError::Unsupported { path: path.to_owned(), field, found, expected: expected.to_owned() })
}

fn bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    STANDARD.decode(text).ok()?.try_into().ok()
}

fn fill(bytes: &mut [u8]) -> Result<(), KeystoreError> {
    getrandom::fill(bytes).map_err(|error| KeystoreError::Random(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A committed file opens, and writing its share again with the same salt and nonce gives the same bytes.
    fn stays(directory: &str, generation: u32) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support").join(directory).join("share-1.json");
        let passphrase = Passphrase::new("correct horse battery 1".to_owned());
        let share = open::<Ed25519>(&path, &passphrase).unwrap();
        assert_eq!(share.generation(), generation);
        let text = std::fs::read_to_string(&path).unwrap();
        let file: ShareFile<Ed25519> = serde_json::from_str(&text).unwrap();
        let salt = bytes(&file.kdf.salt).unwrap();
        let again = seal(&share, &passphrase, file.kdf.cost(), salt, bytes(&file.nonce).unwrap()).unwrap();
        assert_eq!(again, text);
    }

    #[test]
    fn the_format_of_version_1_stays() {
        stays("shares-v1", 1);
    }

    #[test]
    fn the_format_of_version_2_stays() {
        stays("shares-v2", 2);
    }

    /// The generation is bound to the share like all that is in the clear.
    #[test]
    fn a_share_does_not_pass_as_one_of_another_generation() {
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/shares-v2/share-1.json");
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("share.json");
        let text = std::fs::read_to_string(fixture).unwrap().replace("\"generation\": 2", "\"generation\": 3");
        let file: ShareFile<Ed25519> = serde_json::from_str(&text).unwrap();
        // As who can compute a checksum would write it.
        let (salt, nonce) = (bytes(&file.kdf.salt).unwrap(), bytes(&file.nonce).unwrap());
        let ciphertext = STANDARD.decode(&file.ciphertext).unwrap();
        let right = STANDARD.encode(checksum(&associated_data(&file, &salt, &nonce), &ciphertext));
        std::fs::write(&path, text.replace(&file.checksum, &right)).unwrap();
        let error = open::<Ed25519>(&path, &Passphrase::new("correct horse battery 1".to_owned())).err().unwrap();
        assert!(matches!(error, KeystoreError::Passphrase { identifier: 1, .. }), "{error}");
    }
}
