//! A participant's state file: what it needs to go on with a ceremony, encrypted under the passphrase of its share.
//!
//! Promises: the file is replaced whole, so that after a crash it is the one before the step or the one after it; the secret part
//! cannot be read without the passphrase, nor put beside other clear fields; a ceremony that is over has no secret part.
//!
//! Format, version 1: one JSON object with the fields of [`StateFile`]. `sealed` holds [`Secrets`] in postcard, encrypted as
//! share files are; associated data are `turnpike ceremony state\0` and `clear` as compact JSON. It is good for the release that
//! wrote it: a ceremony is ended, or begun again, before the release is changed.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::DeskError;
use crate::signer::ceremony::card::{Cards, Identity};
use crate::signer::ceremony::{Kind, decode, encode};
use crate::signer::keystore::{FileKey, Kdf, Passphrase, Sealed, read_text, write_over};

const VERSION: u32 = 1;
const LABEL: &[u8] = b"turnpike ceremony state\0";
/// The largest state that is read. The file of a secp256k1 key has some 700,000 bytes at its largest.
const STATE_BYTES_MAX: u64 = 4 * 1024 * 1024;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StateFile {
    version: u32,
    clear: Clear,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sealed: Option<Sealed>,
}

/// What everybody may know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Clear {
    pub(super) ceremony: Kind,
    pub(super) curve: String,
    pub(super) rehearsal: bool,
    pub(super) participant: u16,
    /// Where the new share is written.
    pub(super) share: PathBuf,
    pub(super) stage: Stage,
}

/// How far a participant has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Stage {
    /// Its card is made; it waits for those of the others, and for the code.
    Cards,
    /// It waits for the letters of a round.
    Round(u8),
    /// All three new shares are in their files, and its old one is destroyed.
    Done {
        /// The key's address on its chain.
        address: String,
        /// The generation of the new shares.
        generation: u32,
    },
    /// Somebody broke the protocol. The ceremony is begun again.
    Failed(String),
}

/// What only this participant may know.
#[derive(Serialize, Deserialize)]
pub(super) struct Secrets {
    pub(super) identity: Identity,
    /// This participant's card, as its file has it.
    pub(super) card: String,
    pub(super) cards: Option<Cards>,
    /// Before the first round the share that is renewed, then the state between two rounds.
    pub(super) machine: Zeroizing<Vec<u8>>,
    /// The letters of the last step, by their files' names: written again where a crash came between.
    pub(super) letters: Vec<(String, String)>,
    /// The key's address, once the new share is in its place.
    pub(super) address: String,
}

/// An open state file.
pub(super) struct State {
    path: PathBuf,
    key: FileKey,
    pub(super) clear: Clear,
    pub(super) secrets: Secrets,
}

pub(super) fn path_in(directory: &Path) -> PathBuf {
    directory.join("state.json")
}

/// What everybody may know of the ceremony in a directory.
pub(super) fn peek(directory: &Path) -> Result<Clear, DeskError> {
    read(&path_in(directory)).map(|file| file.clear)
}

impl State {
    /// Writes the state of a new ceremony.
    pub(super) fn create(
        directory: &Path,
        passphrase: &Passphrase,
        kdf: Kdf,
        clear: Clear,
        secrets: Secrets,
    ) -> Result<Self, DeskError> {
        let path = path_in(directory);
        if path.symlink_metadata().is_ok() {
            return Err(DeskError::Exists(directory.to_owned()));
        }
        let state = Self { path, key: FileKey::new(passphrase, kdf)?, clear, secrets };
        state.write()?;
        Ok(state)
    }

    /// Opens the state of a ceremony that is going on.
    pub(super) fn open(directory: &Path, passphrase: &Passphrase) -> Result<Self, DeskError> {
        let path = path_in(directory);
        let StateFile { clear, sealed, .. } = read(&path)?;
        let bad = |what| DeskError::BadState { path: path.clone(), what };
        let sealed = sealed.ok_or_else(|| bad("its secret part is missing"))?;
        let opened = FileKey::open(passphrase, &sealed, &associated(&clear)?);
        let (key, secret) = opened.ok_or_else(|| DeskError::Passphrase(path.clone()))?;
        let secrets = decode(&secret).ok_or_else(|| bad("another release has written it"))?;
        Ok(Self { path, key, clear, secrets })
    }

    /// Writes what has changed, and waits until the disk has it.
    pub(super) fn write(&self) -> Result<(), DeskError> {
        let sealed = self.key.seal(&encode(&self.secrets)?, &associated(&self.clear)?)?;
        write(&self.path, self.clear.clone(), Some(sealed))
    }

    /// Writes how it ended. Nothing secret is left.
    pub(super) fn end(self, stage: Stage) -> Result<Clear, DeskError> {
        let clear = Clear { stage, ..self.clear };
        write(&self.path, clear.clone(), None)?;
        Ok(clear)
    }
}

fn read(path: &Path) -> Result<StateFile, DeskError> {
    let bad = |what| DeskError::BadState { path: path.to_owned(), what };
    if path.symlink_metadata().is_err() {
        return Err(DeskError::NoCeremony(path.parent().unwrap_or(path).to_owned()));
    }
    let text = read_text(path, STATE_BYTES_MAX)?;
    let file: StateFile = serde_json::from_str(&text).map_err(|_| bad("it is not as it was written"))?;
    if file.version == VERSION { Ok(file) } else { Err(bad("another release has written it")) }
}

fn write(path: &Path, clear: Clear, sealed: Option<Sealed>) -> Result<(), DeskError> {
    let bad = |_| DeskError::BadState { path: path.to_owned(), what: "it has no text" };
    let text = serde_json::to_string_pretty(&StateFile { version: VERSION, clear, sealed }).map_err(bad)?;
    Ok(write_over(path, &(text + "\n"))?)
}

fn associated(clear: &Clear) -> Result<Vec<u8>, DeskError> {
    let text = serde_json::to_vec(clear)
        .map_err(|_| DeskError::BadState { path: clear.share.clone(), what: "it has no text" })?;
    Ok([LABEL, &text].concat())
}
