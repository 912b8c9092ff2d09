//! Letters: messages of a ceremony that any courier may carry.
//!
//! Promises: nobody but its receiver reads a letter; it opens only as what it is, by whom it is and for the round it is of, so
//! that it cannot be altered, swapped or sent in another ceremony; a letter that does not open is refused and the ceremony waits
//! for the right one, as a courier's fault is none of the participants'.
//!
//! Format, version 1: one JSON object with the fields of `Letter`, bytes as standard base64. The header is `turnpike ceremony
//! letter\0`, `version` (u32), the session (32 bytes), `round` (u8), `from` and `to` (u16 each); integers are little endian. The
//! text is encrypted by XChaCha20-Poly1305 with the header as associated data, under the SHA-256 of `turnpike ceremony seal\0`,
//! the header less its version and round, the sealing keys of sender and receiver, and their X25519 secret. The signature is
//! the sender's, by Ed25519, of the header, the nonce and the ciphertext.

use std::fmt;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use ed25519_dalek::Signer;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::card::{Cards, Identity};
use super::{Fault, MESSAGE_BYTES_MAX};

const VERSION: u32 = 1;
/// The largest letter that is read: base64 of the longest message, and some more.
pub const LETTER_BYTES_MAX: u64 = 512 * 1024;

/// A sealed and signed message.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Letter {
    version: u32,
    /// The ceremony's name, 32 bytes.
    session: String,
    round: u8,
    from: u16,
    to: u16,
    /// 24 bytes.
    nonce: String,
    ciphertext: String,
    /// 64 bytes.
    signature: String,
}

/// A place in a ceremony: which letter this is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The ceremony's name.
    pub session: [u8; 32],
    /// The round.
    pub round: u8,
    /// Who writes.
    pub from: u16,
    /// Who reads.
    pub to: u16,
}

impl Address {
    /// How the letter's file is called.
    #[must_use]
    pub fn file_name(&self) -> String {
        format!("round-{}-from-{}-to-{}.json", self.round, self.from, self.to)
    }
}

/// A letter that is not the one that is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LetterError {
    /// The file.
    pub file: String,
    /// Who was to have written it.
    pub from: u16,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for LetterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, from, what } = self;
        write!(f, "{file}: {what}; have participant {from} send the letter of this name again")
    }
}

impl std::error::Error for LetterError {}

/// Seals and signs a message.
///
/// # Errors
/// A [`Fault`] where a card has no usable key, or the system gives no random bytes.
pub fn seal(mine: &Identity, cards: &Cards, address: &Address, message: &[u8]) -> Result<String, Fault> {
    let header = header(VERSION, address);
    let key = pair_key(mine, cards, address, address.to)
        .ok_or_else(|| Fault::of(address.to, "the key on its card cannot be sealed for"))?;
    let mut nonce = [0; 24];
    getrandom::fill(&mut nonce).map_err(Fault::somewhere)?;
    let payload = Payload { msg: message, aad: &header };
    let ciphertext = cipher(&key).encrypt(XNonce::from_slice(&nonce), payload);
    let ciphertext = ciphertext.map_err(|_| Fault::somewhere("the cipher refused a letter"))?;
    let signature = mine.signing().sign(&[&header[..], &nonce, &ciphertext].concat());
    let letter = Letter {
        version: VERSION,
        session: STANDARD.encode(address.session),
        round: address.round,
        from: address.from,
        to: address.to,
        nonce: STANDARD.encode(nonce),
        ciphertext: STANDARD.encode(ciphertext),
        signature: STANDARD.encode(signature.to_bytes()),
    };
    serde_json::to_string_pretty(&letter).map(|text| text + "\n").map_err(Fault::somewhere)
}

/// Opens the letter that is waited for.
///
/// # Errors
/// [`LetterError`], which names the file, its writer and what to do.
pub fn open(
    file: &Path,
    text: &str,
    mine: &Identity,
    cards: &Cards,
    address: &Address,
) -> Result<Zeroizing<Vec<u8>>, LetterError> {
    let from = address.from;
    let refuse = |what: String| LetterError { file: file.display().to_string(), from, what };
    let letter: Letter = serde_json::from_str(text).map_err(|error| refuse(format!("is no letter ({error})")))?;
    if letter.version != VERSION {
        return Err(refuse(format!("is of version {}, this release reads {VERSION}", letter.version)));
    }
    if letter.session != STANDARD.encode(address.session) {
        return Err(refuse("belongs to another ceremony".to_owned()));
    }
    if (letter.round, letter.from, letter.to) != (address.round, address.from, address.to) {
        let Letter { round, from, to, .. } = letter;
        return Err(refuse(format!("is in truth the letter of round {round} from {from} to {to}")));
    }
    let altered = || refuse(format!("is not as participant {from} wrote it"));
    let header = header(VERSION, address);
    let nonce: [u8; 24] =
        STANDARD.decode(&letter.nonce).ok().and_then(|nonce| nonce.try_into().ok()).ok_or_else(altered)?;
    let ciphertext = STANDARD.decode(&letter.ciphertext).map_err(|_| altered())?;
    let signature: Option<[u8; 64]> = STANDARD.decode(&letter.signature).ok().and_then(|bytes| bytes.try_into().ok());
    let signature = ed25519_dalek::Signature::from_bytes(&signature.ok_or_else(altered)?);
    let key = cards.of(from).and_then(|card| card.signing_key()).ok_or_else(altered)?;
    key.verify_strict(&[&header[..], &nonce, &ciphertext].concat(), &signature).map_err(|_| altered())?;
    let key = pair_key(mine, cards, address, from).ok_or_else(altered)?;
    let payload = Payload { msg: &ciphertext, aad: &header };
    let message =
        cipher(&key).decrypt(XNonce::from_slice(&nonce), payload).map(Zeroizing::new).map_err(|_| altered())?;
    if message.len() > MESSAGE_BYTES_MAX {
        return Err(refuse(format!("holds more than {MESSAGE_BYTES_MAX} bytes")));
    }
    Ok(message)
}

fn header(version: u32, address: &Address) -> Vec<u8> {
    let Address { session, round, from, to } = address;
    let (version, from, to) = (version.to_le_bytes(), from.to_le_bytes(), to.to_le_bytes());
    [b"turnpike ceremony letter\0", &version[..], session, &[*round], &from, &to].concat()
}

/// The key of one direction between this participant and `other`.
fn pair_key(mine: &Identity, cards: &Cards, address: &Address, other: u16) -> Option<Zeroizing<[u8; 32]>> {
    let secret = mine.sealing().diffie_hellman(&cards.of(other)?.sealing_key()?);
    if !secret.was_contributory() {
        return None;
    }
    let (from, to) = (cards.of(address.from)?.sealing_key()?, cards.of(address.to)?.sealing_key()?);
    let hash = Sha256::new().chain_update(b"turnpike ceremony seal\0").chain_update(address.session);
    let hash = hash.chain_update(address.from.to_le_bytes()).chain_update(address.to.to_le_bytes());
    let hash = hash.chain_update(from).chain_update(to).chain_update(secret.as_bytes());
    Some(Zeroizing::new(hash.finalize().into()))
}

fn cipher(key: &Zeroizing<[u8; 32]>) -> XChaCha20Poly1305 {
    XChaCha20Poly1305::new(chacha20poly1305::Key::from_slice(key.as_ref()))
}
