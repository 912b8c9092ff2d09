//! Entries and their lines: how one is made, written and read back.
//!
//! Pure. An entry is made by whoever knows what happened; number, time and hashes are given when it is written. A line has
//! exactly one spelling for what frames it (`seq`, `time`, `kind`, `prev`, `hash`), and [`Line::parse`] takes no other.

use std::fmt::{self, Write};

use serde::Serialize;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::{EntryHash, Position};
use crate::amount::Amount;
use crate::clock::UnixMillis;
use crate::x402::evm::hex_digits;

/// The longest line: a batch of a hundred channels, or the signature of a contract, several times over.
pub const ENTRY_BYTES_MAX: usize = 256 * 1024;

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// What an entry is about.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Kind {
            $($(#[$doc])* $name,)*
        }

        impl Kind {
            /// All kinds.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The kind as it stands in an entry.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

kinds! {
    /// A segment begins. Written by the record itself, like the next five.
    Segment = "segment",
    /// A line that a crash had left unfinished was cut off; it had been answered to nobody.
    Repaired = "repaired",
    /// Whole segments were removed because their time was over.
    Retired = "retired",
    /// Entries that the ledger's store never took up: what they say did not happen.
    Voided = "voided",
    /// A part of the record that the ledger stands on is gone, and an operator has said so.
    Loss = "loss",
    /// Notes that could not be taken because too many waited; how many.
    Dropped = "dropped",
    /// A threshold signature over the chain's head.
    Checkpoint = "checkpoint",
    /// The process has started.
    Start = "start",
    /// The process was asked to stop.
    Stop = "stop",
    /// A configuration was loaded.
    Config = "config",
    /// A request was charged.
    Charge = "charge",
    /// A payment is about to be settled for a request, which is charged if that succeeds.
    Payment = "payment",
    /// A channel's deposit was taken up.
    Deposit = "deposit",
    /// What a channel holds became less by other ways than a claim.
    Withdrawal = "withdrawal",
    /// The chain has claimed what was charged.
    Claimed = "claimed",
    /// The chain has claimed more than was charged, and that was taken up as charged.
    Raised = "raised",
    /// A channel takes no more payments, or takes them again.
    Channel = "channel",
    /// A step of a settlement batch.
    Settlement = "settlement",
    /// A step of a metered request's channel.
    Metered = "metered",
    /// A pass was sold, by the charge that stands before.
    PassSold = "pass_sold",
    /// A call was counted on a pass.
    PassUsed = "pass_used",
    /// An operator has ended a pass.
    PassRevoked = "pass_revoked",
    /// A request was refused by policy, or would have been.
    Refusal = "refusal",
    /// A signature was asked for.
    SigningRequest = "signing_request",
    /// What came of it.
    SigningAnswer = "signing_answer",
    /// An operator's act.
    Admin = "admin",
}

impl Kind {
    /// Whether the ledger's store writes it: such an entry takes effect with the store's transaction, and is void where
    /// that never was.
    #[must_use]
    pub const fn is_stores(self) -> bool {
        matches!(
            self,
            Self::Charge
                | Self::Deposit
                | Self::Withdrawal
                | Self::Claimed
                | Self::Raised
                | Self::Channel
                | Self::Settlement
                | Self::Metered
                | Self::PassSold
                | Self::PassUsed
                | Self::PassRevoked
        )
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Something that happened, as it will stand in the record. Field names are ours and plain; values may be anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    kind: Kind,
    /// JSON members, each with a comma before it.
    members: String,
}

impl Entry {
    /// An entry without fields.
    #[must_use]
    pub fn new(kind: Kind) -> Self {
        // What a charge needs, so that it is allocated once.
        Self { kind, members: String::with_capacity(640) }
    }

    /// A refusal by policy, or what would have been one where the rule is only being watched (`mode`). The payer and the
    /// amount stand there where they were known.
    #[must_use]
    pub fn refusal(
        rule: &str,
        mode: &str,
        route: &str,
        payer: Option<&dyn fmt::Display>,
        amount: Option<Amount>,
    ) -> Self {
        let entry = Self::new(Kind::Refusal).text("rule", rule).text("mode", mode).text("route", route);
        entry.text_if("payer", payer).text_if("amount", amount)
    }

    /// What it is about.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// Its fields as JSON members, each with a comma before it.
    #[must_use]
    pub fn members(&self) -> &str {
        &self.members
    }

    /// Adds a text: an amount, a key, a name, or words.
    #[must_use]
    pub fn text(mut self, name: &str, value: impl fmt::Display) -> Self {
        self.name(name);
        self.members.push('"');
        // Writing to a string does not fail.
        let _ = write!(Escaped(&mut self.members), "{value}");
        self.members.push('"');
        self
    }

    /// Adds a text where there is one.
    #[must_use]
    pub fn text_if(self, name: &str, value: Option<impl fmt::Display>) -> Self {
        match value {
            Some(value) => self.text(name, value),
            None => self,
        }
    }

    /// Adds a whole number. Amounts are texts: they may be greater than what JSON's readers keep exact.
    #[must_use]
    pub fn number(mut self, name: &str, value: impl Into<i128>) -> Self {
        self.name(name);
        let _ = write!(self.members, "{}", value.into());
        self
    }

    /// Adds a yes or no.
    #[must_use]
    pub fn flag(mut self, name: &str, value: bool) -> Self {
        self.name(name);
        self.members.push_str(if value { "true" } else { "false" });
        self
    }

    /// Adds a list or a structure.
    #[must_use]
    pub fn json(mut self, name: &str, value: &impl Serialize) -> Self {
        // What cannot be JSON is a mistake of ours that a reader shall see.
        let text = serde_json::to_string(value).unwrap_or_else(|_| "null".to_owned());
        self.name(name);
        self.members.push_str(&text);
        self
    }

    fn name(&mut self, name: &str) {
        debug_assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_' || b.is_ascii_digit()), "{name}");
        debug_assert!(!["seq", "time", "kind", "prev", "hash"].contains(&name), "{name} frames every entry");
        self.members.push_str(",\"");
        self.members.push_str(name);
        self.members.push_str("\":");
    }
}

/// Escapes what is written as the inside of a JSON string.
struct Escaped<'a>(&'a mut String);

impl Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // All bytes, whatever the first ones are: so they are looked at sixteen at a time.
        let is_special = |byte: u8| (byte < 0x20) | (byte == b'"') | (byte == b'\\');
        if !text.bytes().fold(false, |found, byte| found | is_special(byte)) {
            self.0.push_str(text);
            return Ok(());
        }
        for char in text.chars() {
            match char {
                '"' => self.0.push_str("\\\""),
                '\\' => self.0.push_str("\\\\"),
                '\n' => self.0.push_str("\\n"),
                control if u32::from(control) < 0x20 => write!(self.0, "\\u{:04x}", u32::from(control))?,
                plain => self.0.push(plain),
            }
        }
        Ok(())
    }
}

const PREV: &str = ",\"prev\":\"";
const HASH: &str = ",\"hash\":\"";
/// How long a line's end is: both hashes with their names, and the closing brace.
const TRAILER: usize = PREV.len() + 64 + 1 + HASH.len() + 64 + 2;

/// Appends an entry's line to `out`, as the one that follows `after`; gives its place. The line ends with a line feed.
///
/// # Errors
/// The line's length, where that is above [`ENTRY_BYTES_MAX`]; `out` is as it was.
pub fn write_line(out: &mut Vec<u8>, after: &Position, now: UnixMillis, entry: &Entry) -> Result<Position, usize> {
    use std::io::Write as _;
    let start = out.len();
    let seq = after.seq.saturating_add(1);
    // Writing to memory does not fail.
    let _ = write!(out, "{{\"seq\":{seq},\"time\":{},\"kind\":\"{}\"", now.0.max(0), entry.kind.as_str());
    out.extend_from_slice(entry.members.as_bytes());
    out.extend_from_slice(PREV.as_bytes());
    out.extend_from_slice(&hex_digits(&after.hash.0));
    out.push(b'"');
    let hash = EntryHash(Sha256::digest(out.get(start..).unwrap_or_default()).into());
    out.extend_from_slice(HASH.as_bytes());
    out.extend_from_slice(&hex_digits(&hash.0));
    out.extend_from_slice(b"\"}\n");
    let length = out.len().saturating_sub(start);
    if length > ENTRY_BYTES_MAX {
        out.truncate(start);
        return Err(length);
    }
    Ok(Position { seq, hash })
}

/// Why a line is not an entry that follows another.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The line is not framed as an entry is, or its fields are not JSON.
    #[error("the line is not an entry")]
    NotAnEntry,
    /// The entry's hash is not that of its bytes: one of the two was changed.
    #[error("the entry was changed: its hash is not that of its bytes")]
    Changed,
    /// The entry follows another than the one before it.
    #[error("entry {found} stands where {expected} belongs: entries were removed, inserted or moved")]
    OutOfOrder {
        /// The number that belongs here.
        expected: u64,
        /// The number that stands here.
        found: u64,
    },
    /// The number is right, and the hash of the entry before is another.
    #[error("the entry follows another one than stands before it: the one before was replaced")]
    NotLinked,
}

/// A line of the record, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// Its place.
    pub position: Position,
    /// When it was written.
    pub time: UnixMillis,
    /// What it is about; a newer Turnpike may write kinds that this one does not know.
    pub kind: &'a str,
    /// The hash of the entry before.
    pub prev: EntryHash,
    members: &'a str,
}

impl<'a> Line<'a> {
    /// Reads a line, without its line feed, and checks its own hash.
    ///
    /// # Errors
    /// [`Fault::NotAnEntry`] or [`Fault::Changed`].
    pub fn parse(line: &'a [u8]) -> Result<Self, Fault> {
        let text = std::str::from_utf8(line).map_err(|_| Fault::NotAnEntry)?;
        Self::frame(text).ok_or(Fault::NotAnEntry).and_then(|(entry, hashed)| {
            let hash = EntryHash(Sha256::digest(hashed.as_bytes()).into());
            if hash == entry.position.hash { Ok(entry) } else { Err(Fault::Changed) }
        })
    }

    /// Takes the frame off; gives what is hashed too.
    fn frame(text: &'a str) -> Option<(Self, &'a str)> {
        let (front, trailer) = text.split_at_checked(text.len().checked_sub(TRAILER)?)?;
        let (prev, rest) = trailer.strip_prefix(PREV)?.split_at_checked(64)?;
        let (hash, end) = rest.strip_prefix('"')?.strip_prefix(HASH)?.split_at_checked(64)?;
        if end != "\"}" {
            return None;
        }
        let hashed = text.get(..text.len().checked_sub(HASH.len() + 64 + 2)?)?;
        let (seq, rest) = digits(front.strip_prefix("{\"seq\":")?)?;
        let (time, rest) = digits(rest.strip_prefix(",\"time\":")?)?;
        let (kind, members) = rest.strip_prefix(",\"kind\":\"")?.split_once('"')?;
        if kind.is_empty() || !kind.bytes().all(|b| b.is_ascii_lowercase() || b == b'_') {
            return None;
        }
        let time = UnixMillis(i64::try_from(time).ok()?);
        let position = Position { seq, hash: hash.parse().ok()? };
        Some((Self { position, time, kind, prev: prev.parse().ok()?, members }, hashed))
    }

    /// Checks that it follows the entry at `before`.
    ///
    /// # Errors
    /// [`Fault::OutOfOrder`] or [`Fault::NotLinked`].
    pub fn follows(&self, before: &Position) -> Result<(), Fault> {
        let expected = before.seq.saturating_add(1);
        if self.position.seq != expected {
            return Err(Fault::OutOfOrder { expected, found: self.position.seq });
        }
        if self.prev == before.hash { Ok(()) } else { Err(Fault::NotLinked) }
    }

    /// Its fields.
    ///
    /// # Errors
    /// [`Fault::NotAnEntry`] where they are not JSON.
    pub fn fields(&self) -> Result<Map<String, Value>, Fault> {
        if self.members.is_empty() {
            return Ok(Map::new());
        }
        let members = self.members.strip_prefix(',').ok_or(Fault::NotAnEntry)?;
        serde_json::from_str(&format!("{{{members}}}")).map_err(|_| Fault::NotAnEntry)
    }

    /// Its fields as they stand in it: JSON members, each with a comma before it.
    #[must_use]
    pub const fn members(&self) -> &'a str {
        self.members
    }

    /// Whether it is of a kind that this version knows.
    #[must_use]
    pub fn is(&self, kind: Kind) -> bool {
        self.kind == kind.as_str()
    }
}

/// A whole number in its one spelling, and what comes after it.
fn digits(text: &str) -> Option<(u64, &str)> {
    let (number, rest) = text.split_at_checked(text.bytes().take_while(u8::is_ascii_digit).count())?;
    if number.len() > 1 && number.starts_with('0') {
        return None;
    }
    Some((number.parse().ok()?, rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn line(entry: &Entry, after: &Position) -> (Vec<u8>, Position) {
        let mut out = Vec::new();
        let position = write_line(&mut out, after, UnixMillis(1_764_368_899_123), entry).unwrap();
        assert_eq!(out.pop(), Some(b'\n'));
        (out, position)
    }

    #[test]
    fn a_line_is_what_the_format_says() {
        let entry = Entry::new(Kind::Charge).text("amount", 1000).number("n", -3).flag("known", true);
        let (line, position) = line(&entry, &Position::default());
        let zeros = "0".repeat(64);
        let hashed = format!(
            r#"{{"seq":1,"time":1764368899123,"kind":"charge","amount":"1000","n":-3,"known":true,"prev":"{zeros}""#
        );
        let hash = EntryHash(Sha256::digest(&hashed).into());
        assert_eq!(String::from_utf8(line).unwrap(), format!(r#"{hashed},"hash":"{hash}"}}"#));
        assert_eq!(position, Position { seq: 1, hash });
        // So that the format does not change unseen.
        assert_eq!(hash.to_string(), "fd0080e78675889bd0a420b1bd7d91e476838099fb57e15010a6e05ff7d1fef5");
    }

    #[test]
    fn too_long_an_entry_leaves_nothing_behind() {
        let entry = Entry::new(Kind::Admin).text("what", "x".repeat(ENTRY_BYTES_MAX));
        let mut out = b"before".to_vec();
        assert!(write_line(&mut out, &Position::default(), UnixMillis(0), &entry).is_err());
        assert_eq!(out, b"before");
    }

    proptest! {
        #[test]
        fn any_words_are_read_back(words in any::<String>(), number in any::<i64>(), seq in 0..u64::MAX, prev in any::<[u8; 32]>()) {
            let entry = Entry::new(Kind::Refusal).text("words", &words).number("number", number).json("list", &[&words]);
            let after = Position { seq, hash: EntryHash(prev) };
            let (bytes, position) = line(&entry, &after);
            prop_assert!(!bytes.contains(&b'\n'));
            let read = Line::parse(&bytes).unwrap();
            read.follows(&after).unwrap();
            prop_assert_eq!(read.position, position);
            let fields = read.fields().unwrap();
            prop_assert_eq!(fields["words"].as_str(), Some(&*words));
            prop_assert_eq!(fields["number"].as_i64(), Some(number));
            prop_assert_eq!(fields["list"][0].as_str(), Some(&*words));
            // The whole line is JSON too.
            serde_json::from_slice::<Value>(&bytes).unwrap();
        }

        #[test]
        fn no_line_panics(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = Line::parse(&bytes);
        }
    }
}
