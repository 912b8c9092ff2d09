//! The audit record: what happened to money and keys, in a chain that shows every later change to it.
//!
//! Owns the record's words ([`Entry`], [`Kind`], [`Position`]), the port through which others write to it ([`Recorder`]),
//! and its adapter ([`log`]: files, a thread, group commit). Promises: an entry that was answered is on the disk and stays in the chain; what cannot be written is an error
//! for whoever asked and for everyone after, never silence. Refuses to hold a secret: nobody but the writer of an entry
//! decides what stands in it, and every entry can be exported.
//!
//! # The record
//!
//! A directory of segments, `000001.jsonl` and on, each of entries, one JSON object a line:
//!
//! ```text
//! {"seq":7,"time":1764368899123,"kind":"charge","channel":"…","amount":"1000",…,"prev":"…","hash":"…"}
//! ```
//!
//! `seq` counts up from 1 over all segments, `time` is in Unix milliseconds, amounts are decimal texts in atomic units.
//! `hash` is the SHA-256 of the line's bytes before `,"hash":`, and `prev` the hash of the entry before; that of the first
//! is all zeros. So `sed 's/,"hash":".*//' | tr -d '\n' | sha256sum` on one line gives its hash. A segment begins with an
//! entry of kind `segment`. From time to time a `checkpoint` holds a threshold signature over the chain's head
//! ([`checkpoint`]): who has the disk and not the key can rewrite only what came after the last one.

pub mod checkpoint;
pub mod entry;
pub mod export;
pub mod log;
pub mod segment;
pub mod verify;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use self::entry::{Entry, Kind};
use crate::x402::evm::hex_digits;

/// An entry's hash.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct EntryHash(pub [u8; 32]);

impl EntryHash {
    /// What stands before the first entry.
    pub const NONE: Self = Self([0; 32]);
}

impl fmt::Display for EntryHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(std::str::from_utf8(&hex_digits(&self.0)).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for EntryHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not 64 hexadecimal digits in lower case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not 64 hexadecimal digits in lower case")]
pub struct NoHash;

impl FromStr for EntryHash {
    type Err = NoHash;

    /// One spelling for each hash, so that a change of spelling is a change.
    fn from_str(text: &str) -> Result<Self, NoHash> {
        let mut hash = [0; 32];
        let digits = text.as_bytes();
        if digits.len() != 64 {
            return Err(NoHash);
        }
        for (pair, byte) in digits.chunks_exact(2).zip(&mut hash) {
            let [high, low] = pair else { return Err(NoHash) };
            *byte = digit(*high)?.wrapping_shl(4) | digit(*low)?;
        }
        Ok(Self(hash))
    }
}

impl From<EntryHash> for String {
    fn from(hash: EntryHash) -> Self {
        hash.to_string()
    }
}

impl TryFrom<String> for EntryHash {
    type Error = NoHash;

    fn try_from(text: String) -> Result<Self, NoHash> {
        text.parse()
    }
}

const fn digit(byte: u8) -> Result<u8, NoHash> {
    match byte {
        b'0'..=b'9' => Ok(byte.wrapping_sub(b'0')),
        b'a'..=b'f' => Ok(byte.wrapping_sub(b'a').wrapping_add(10)),
        _ => Err(NoHash),
    }
}

/// A place in the record: an entry's number and its hash, which stands for all entries up to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The entry's number; 0 before the first.
    pub seq: u64,
    /// The entry's hash.
    pub hash: EntryHash,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.seq, self.hash)
    }
}

/// Why something is not in the record. The text says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuditError {
    /// The entry is longer than [`entry::ENTRY_BYTES_MAX`]. It alone was not taken.
    #[error("the audit record takes no entry of {0} bytes")]
    TooLong(usize),
    /// The record cannot be written; nothing more is taken until a restart.
    #[error("the audit record cannot be written: {0}")]
    Failed(String),
    /// The record cannot be opened.
    #[error("the audit record cannot be opened: {0}")]
    Unusable(String),
}

fn ended() -> AuditError {
    AuditError::Failed("its writer has ended; restart".to_owned())
}

/// Takes entries.
#[async_trait::async_trait]
pub trait Recorder: fmt::Debug + Send + Sync {
    /// Adds an entry; it is on the disk when this returns. Carried through if the caller goes away after the first poll
    /// that was not told to wait.
    ///
    /// # Errors
    /// [`AuditError`]; what was to be recorded must not happen.
    async fn record(&self, entry: Entry) -> Result<Position, AuditError>;

    /// Adds entries, next to one another and in order, on this thread, which must be one that may block: no runtime's. The
    /// position is that of the last of them.
    ///
    /// # Errors
    /// [`AuditError`]; what was to be recorded must not happen.
    fn record_blocking(&self, entries: &[Entry]) -> Result<Position, AuditError>;

    /// Clears up between the record and a store whose last transaction stands on `at`: what was recorded for it behind that
    /// place and never took effect is said to be void. Gives the place that the store stands on now; to be kept before
    /// anything else is written. To be called once, on a thread that may block.
    ///
    /// # Errors
    /// [`AuditError::Unusable`] where the record does not hold that place, or goes further than the store.
    fn reconcile(&self, at: Position) -> Result<Position, AuditError>;

    /// Whether entries can be written.
    ///
    /// # Errors
    /// What is wrong.
    fn health(&self) -> Result<(), AuditError>;
}
