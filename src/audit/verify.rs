//! Verifying a record: every entry's hash, every link, every segment, every checkpoint's signature.
//!
//! A function of the segments' readers, the keys and what the record must hold. Finds the first place where the record is
//! not what was written ([`Broken`] names segment, line, entry and what is wrong), and says of an intact one how far
//! signatures vouch for it ([`Report`]). What came after the last checkpoint is chained and not signed: who has the disk
//! could have written it anew, and [`Report::unsigned`] counts it. Whether entries are missing at the end only somebody
//! can say who knows where the record ended: the ledger does, see [`Demands::holds`].

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io::{self, BufRead};

use serde_json::{Map, Value};

use super::checkpoint::{Checkpoint, Keys, RecordId, Signed};
use super::entry::{Fault, Line};
use super::segment::{self, Header, Lines};
use super::{EntryHash, Kind, Position};
use crate::clock::UnixMillis;

/// How far back the head of a checkpoint may lie. With a checkpoint every ten minutes it is a few thousand entries.
const HASHES_MAX: usize = 1 << 20;
/// How often progress is told.
const PROGRESS_ENTRIES: u64 = 50_000;

/// What a record is held to.
#[derive(Clone, Debug, Default)]
pub struct Demands {
    /// Whose checkpoints count.
    pub keys: Keys,
    /// A place that must be in the record: where the ledger stands.
    pub holds: Option<Position>,
}

/// An intact record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The record.
    pub record: RecordId,
    /// How many segments there are.
    pub segments: u64,
    /// The entry by which the segments before the first were retired, where they were.
    pub retired: Option<u64>,
    /// How many entries.
    pub entries: u64,
    /// The first entry's number; above 1 where segments were retired.
    pub first: u64,
    /// The last entry.
    pub head: Position,
    /// When the first and the last entry were written.
    pub times: (UnixMillis, UnixMillis),
    /// How many entries there are of each kind.
    pub kinds: BTreeMap<String, u64>,
    /// How far a signature by one of the keys vouches, and when it was made.
    pub signed: Option<(u64, UnixMillis)>,
    /// How many checkpoints are by one of the keys.
    pub checkpoints: u64,
    /// The keys of further checkpoints; whose they are, the caller has not said.
    pub other_keys: BTreeMap<String, u64>,
    /// Entries that did not take effect, by number.
    pub voided: Vec<u64>,
    /// The numbers of the entries that tell of a cut tail or a lost part.
    pub remarks: Vec<(u64, String)>,
}

impl Report {
    /// Whether a signature vouches for the retirement of what came before the first entry. Where none does, who has the
    /// disk could have removed it.
    #[must_use]
    pub fn retirement_is_signed(&self) -> bool {
        self.retired.is_none_or(|seq| self.signed.is_some_and(|(signed, _)| seq <= signed))
    }

    /// How many of the last entries no signature vouches for.
    #[must_use]
    pub fn unsigned(&self) -> u64 {
        self.head.seq.saturating_sub(self.signed.map_or(self.first.saturating_sub(1), |(seq, _)| seq))
    }
}

/// The first place where a record is not what was written.
#[derive(Debug)]
pub struct Broken {
    /// The segment's file.
    pub segment: String,
    /// The line in it, from 1 on; 0 where it is about the whole segment.
    pub line: u64,
    /// The number of the entry that stands there, or should.
    pub seq: u64,
    /// What is wrong.
    pub what: Problem,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.segment, self.what),
            line => write!(f, "{}, line {line}, entry {}: {}", self.segment, self.seq, self.what),
        }
    }
}

impl std::error::Error for Broken {}

/// What is wrong.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// With an entry.
    #[error(transparent)]
    Entry(#[from] Fault),
    /// The last line is not whole, or stands in the room behind the others.
    #[error("the line is not whole: it is being written, a crash cut it off, or its end was removed")]
    Unfinished,
    /// A segment does not begin with its own first entry.
    #[error("the segment does not begin with the entry that says which one it is")]
    NoHeader,
    /// Another entry says that a segment begins.
    #[error("a segment begins in the middle of another")]
    HeaderInside,
    /// A segment of another record.
    #[error("the segment is of another record, {0}")]
    OtherRecord(RecordId),
    /// A segment between others is not there.
    #[error("the segment is missing")]
    Missing,
    /// The record has no entry.
    #[error("there is no record here")]
    Empty,
    /// The first segments are gone, and nothing in the record says so.
    #[error("the record begins here, and no entry says that what came before was retired")]
    BeginsLate,
    /// A checkpoint that cannot be read.
    #[error("the checkpoint is malformed")]
    Malformed,
    /// A checkpoint whose signature is not good.
    #[error("the checkpoint's signature does not verify")]
    Signature,
    /// A checkpoint that vouches for other entries than stand before it.
    #[error("the checkpoint was made over other entries than stand before it: they were written anew")]
    OtherChain,
    /// A place that must be in the record is not.
    #[error("the ledger stands on entry {0}, which the record does not hold: its end was removed, or it is another's")]
    NotHeld(Position),
    /// The file cannot be read.
    #[error("cannot be read: {0}")]
    Unread(io::Error),
}

/// Verifies a record, given its segments by number in ascending order. `progress` is told how many entries are done.
///
/// # Errors
/// The first [`Broken`] place.
pub fn verify<R: BufRead>(
    segments: impl IntoIterator<Item = (u64, io::Result<R>)>,
    demands: &Demands,
    progress: &mut dyn FnMut(u64),
) -> Result<Report, Broken> {
    let mut check = Check::new(demands);
    for (number, reader) in segments {
        check.segment(number, reader, progress)?;
    }
    check.finish()
}

struct Check<'a> {
    demands: &'a Demands,
    report: Report,
    /// The segment that is read, and the line in it.
    number: u64,
    line: u64,
    first_segment: u64,
    /// The hashes of the newest entries, that of the head last.
    hashes: VecDeque<EntryHash>,
    /// Whether an entry says that the place that must be held is lost.
    excused: bool,
    held: bool,
}

impl<'a> Check<'a> {
    fn new(demands: &'a Demands) -> Self {
        let held = demands.holds.is_none_or(|place| place.seq == 0);
        let report = Report::default();
        let hashes = VecDeque::new();
        Self { demands, report, number: 0, line: 0, first_segment: 0, hashes, excused: false, held }
    }

    fn broken(&self, what: impl Into<Problem>) -> Broken {
        let seq = self.report.head.seq.saturating_add(1);
        Broken { segment: segment::name(self.number), line: self.line, seq, what: what.into() }
    }

    fn segment<R: BufRead>(
        &mut self,
        number: u64,
        reader: io::Result<R>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), Broken> {
        let expected = self.number.saturating_add(1);
        self.line = 0;
        if self.number != 0 && number != expected {
            self.number = expected;
            return Err(self.broken(Problem::Missing));
        }
        if self.first_segment == 0 {
            self.first_segment = number;
        }
        self.number = number;
        self.report.segments = self.report.segments.saturating_add(1);
        let mut lines = Lines::new(reader.map_err(|why| self.broken(Problem::Unread(why)))?);
        loop {
            self.line = self.line.saturating_add(1);
            let raw = match lines.read() {
                Ok(Some(raw)) => raw,
                Ok(None) if self.line == 1 => return Err(self.broken(Problem::NoHeader)),
                Ok(None) => return Ok(()),
                Err(why) => return Err(self.broken(Problem::Unread(why))),
            };
            let is_whole = raw.whole;
            let line = match Line::parse(raw.bytes) {
                Ok(line) if is_whole => line,
                Ok(_) => return Err(self.broken(Problem::Unfinished)),
                Err(fault) => {
                    let is_last = !is_whole || lines.has_room() || matches!(lines.read(), Ok(None)) && lines.has_room();
                    return Err(if is_last { self.broken(Problem::Unfinished) } else { self.broken(fault) });
                }
            };
            self.entry(&line).map_err(|what| self.broken(what))?;
            if self.report.entries.is_multiple_of(PROGRESS_ENTRIES) {
                progress(self.report.entries);
            }
        }
    }

    fn entry(&mut self, line: &Line<'_>) -> Result<(), Problem> {
        let begins = self.report.entries == 0;
        if begins {
            // What came before is for the end to judge.
            let before = Position { seq: line.position.seq.saturating_sub(1), hash: line.prev };
            if line.position.seq == 0 || (before.seq == 0 && before.hash != EntryHash::NONE) {
                return Err(Fault::NotLinked.into());
            }
            (self.report.first, self.report.times.0) = (line.position.seq, line.time);
            (self.report.head, self.hashes) = (before, VecDeque::from([before.hash]));
        }
        line.follows(&self.report.head)?;
        let fields = line.fields()?;
        if self.line == 1 {
            self.header(line)?;
        } else if line.is(Kind::Segment) {
            return Err(Problem::HeaderInside);
        }
        self.meaning(line, &fields)?;
        self.take(line);
        Ok(())
    }

    fn header(&mut self, line: &Line<'_>) -> Result<(), Problem> {
        let header = Header::read(line).filter(|header| header.number == self.number).ok_or(Problem::NoHeader)?;
        if self.report.entries == 0 {
            self.report.record = header.record;
        } else if header.record != self.report.record {
            return Err(Problem::OtherRecord(header.record));
        }
        match &header.checkpoint {
            Some(fields) => self.checkpoint(fields),
            None => Ok(()),
        }
    }

    /// What an entry says about the record itself.
    fn meaning(&mut self, line: &Line<'_>, fields: &Map<String, Value>) -> Result<(), Problem> {
        let number = |name: &str| fields.get(name).and_then(Value::as_u64).unwrap_or(0);
        if line.is(Kind::Checkpoint) {
            self.checkpoint(fields)?;
        } else if line.is(Kind::Retired) {
            // The first that speaks of all that is gone: a later one only repeats it.
            let before = self.report.first.saturating_sub(1);
            if before > 0 && number("through_seq") >= before && self.report.retired.is_none() {
                self.report.retired = Some(line.position.seq);
            }
        } else if line.is(Kind::Voided) {
            let seqs = fields.get("entries").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
            self.report.voided.extend(seqs.iter().filter_map(Value::as_u64));
        } else if line.is(Kind::Loss) {
            let excuses = self.demands.holds.is_some_and(|place| {
                number("lost_seq") == place.seq
                    && fields.get("lost_hash").and_then(Value::as_str) == Some(&*place.hash.to_string())
            });
            self.excused |= excuses;
        }
        if line.is(Kind::Repaired) || line.is(Kind::Loss) {
            self.report.remarks.push((line.position.seq, line.kind.to_owned()));
        }
        Ok(())
    }

    fn checkpoint(&mut self, fields: &Map<String, Value>) -> Result<(), Problem> {
        let (checkpoint, signed) = Checkpoint::read(fields).ok_or(Problem::Malformed)?;
        if checkpoint.record != self.report.record {
            return Err(Problem::OtherRecord(checkpoint.record));
        }
        if !signed.verifies(&checkpoint) {
            return Err(Problem::Signature);
        }
        let head = checkpoint.head;
        let back = self.report.head.seq.checked_sub(head.seq).ok_or(Problem::OtherChain)?;
        let known = usize::try_from(back).ok().and_then(|back| {
            let last = self.hashes.len().checked_sub(1)?;
            self.hashes.get(last.checked_sub(back)?)
        });
        match known {
            Some(hash) if *hash == head.hash => {}
            Some(_) => return Err(Problem::OtherChain),
            // Its entry is gone with its segment, or it lies too far back to be compared: it vouches for nothing here.
            None => return Ok(()),
        }
        if self.demands.keys.know(&signed) {
            self.report.checkpoints = self.report.checkpoints.saturating_add(1);
            if self.report.signed.is_none_or(|(seq, _)| seq <= head.seq) {
                self.report.signed = Some((head.seq, checkpoint.time));
            }
        } else {
            let key = match signed {
                Signed::Ed25519 { key, .. } => key.to_string(),
                Signed::Secp256k1 { address, .. } => address.to_string(),
            };
            *self.report.other_keys.entry(key).or_default() += 1;
        }
        Ok(())
    }

    fn take(&mut self, line: &Line<'_>) {
        self.report.head = line.position;
        self.report.times.1 = line.time;
        self.report.entries = self.report.entries.saturating_add(1);
        *self.report.kinds.entry(line.kind.to_owned()).or_default() += 1;
        self.held |= self.demands.holds == Some(line.position);
        self.hashes.push_back(line.position.hash);
        if self.hashes.len() > HASHES_MAX {
            self.hashes.pop_front();
        }
    }

    fn finish(mut self) -> Result<Report, Broken> {
        self.line = 0;
        if self.report.entries == 0 {
            return Err(Broken { segment: segment::name(1), line: 0, seq: 1, what: Problem::Empty });
        }
        let before = self.report.first.saturating_sub(1);
        if before > 0 && self.report.retired.is_none() {
            let segment = segment::name(self.first_segment);
            return Err(Broken { segment, line: 0, seq: self.report.first, what: Problem::BeginsLate });
        }
        match self.demands.holds {
            // What was retired was there.
            Some(place) if !self.held && !self.excused && place.seq > before => {
                Err(self.broken(Problem::NotHeld(place)))
            }
            _ => Ok(self.report),
        }
    }
}
