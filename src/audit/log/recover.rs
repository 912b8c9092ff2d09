//! What an existing record's end looks like when it is opened.
//!
//! Reads the last segment (and the one before, where a crash left the last without its first entry) and says where to go
//! on. What a crash leaves is a tail: bytes after the last whole entry, with no entry among them unless something before
//! it was never written. That is cut off, once a copy is put aside. Anything else that does not fit is damage, and the
//! record is not opened for it: to go on would bury the place.

use std::io::Read;

use sha2::{Digest, Sha256};

use super::folder::Folder;
use super::writer::ROOM_BYTES_MAX;
use crate::audit::checkpoint::RecordId;
use crate::audit::entry::{Fault, Line};
use crate::audit::segment::{self, Header, Lines};
use crate::audit::{Entry, EntryHash, Kind, Position};

/// The longest tail that a crash can leave: what is written at once, an entry more, and some.
const TORN_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// What a disk writes whole or not at all, at least.
const SECTOR_BYTES: u64 = 512;

/// Where a record goes on.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// `None` where nothing was ever written.
    pub record: Option<RecordId>,
    /// The segment that is written next.
    pub segment: u64,
    /// Where its entries end; 0 where it has not begun.
    pub bytes: u64,
    /// Where the room behind them ends.
    pub room: u64,
    /// The last entry.
    pub head: Position,
    /// The newest checkpoint: how far it reaches, and its members.
    pub checkpoint: Option<(u64, String)>,
    /// What was cut off and is not yet recorded.
    pub repaired: Option<Entry>,
}

/// A segment as far as its entries are whole.
#[derive(Default)]
struct Scan {
    header: Option<Header>,
    head: Option<Position>,
    bytes: u64,
    room: u64,
    checkpoint: Option<(u64, String)>,
    torn: Vec<u8>,
}

/// Finds the end of a record and cuts off what a crash has left behind it.
pub(super) fn recover(folder: &dyn Folder) -> Result<Found, String> {
    let numbers = numbers(folder)?;
    let Some(&last) = numbers.last() else { return Ok(Found { segment: 1, ..Found::default() }) };
    let scanned = scan(folder, last)?;
    let mut found = Found { segment: last, bytes: scanned.bytes, room: scanned.room, ..Found::default() };
    match (scanned.head, numbers.iter().rev().nth(1)) {
        (Some(head), _) => found.go_on(scanned.header, head, scanned.checkpoint),
        (None, Some(&before)) => {
            let before_it = scan(folder, before)?;
            match before_it.head {
                Some(head) if before_it.torn.is_empty() => found.go_on(before_it.header, head, before_it.checkpoint),
                _ => return Err(damaged(folder, before, "it ends in the middle of an entry, and another follows it")),
            }
        }
        (None, None) if last == 1 => {}
        (None, None) => return Err(damaged(folder, last, "it has no entry, and the segments before it are gone")),
    }
    if !scanned.torn.is_empty() {
        put_aside(folder, &found.head, &scanned.torn)?;
        let name = segment::name(last);
        folder.cut(&name, scanned.bytes).map_err(|why| format!("{}/{name}: {why}", folder.place()))?;
    }
    found.repaired = repaired(folder, &found.head)?;
    Ok(found)
}

impl Found {
    fn go_on(&mut self, header: Option<Header>, head: Position, checkpoint: Option<(u64, String)>) {
        self.record = header.map(|header| header.record);
        self.head = head;
        self.checkpoint = checkpoint;
    }
}

/// The segments' numbers, without a gap.
pub(super) fn numbers(folder: &dyn Folder) -> Result<Vec<u64>, String> {
    let names = folder.names().map_err(|why| format!("{}: {why}", folder.place()))?;
    let mut numbers: Vec<_> = names.iter().filter_map(|name| segment::number(name)).collect();
    numbers.sort_unstable();
    let gap = numbers.windows(2).find(|pair| pair[0].saturating_add(1) != pair[1]);
    match gap {
        Some(pair) => Err(damaged(folder, pair[0].saturating_add(1), "it is missing, and others follow it")),
        None => Ok(numbers),
    }
}

fn damaged(folder: &dyn Folder, number: u64, what: &str) -> String {
    let name = segment::name(number);
    format!(
        "{}/{name}: {what}. Run `turnpike audit verify` for the place, and restore the directory from a copy",
        folder.place()
    )
}

/// Reads a segment as far as its entries follow one another.
fn scan(folder: &dyn Folder, number: u64) -> Result<Scan, String> {
    let name = segment::name(number);
    let unread = |why: std::io::Error| format!("{}/{name}: {why}", folder.place());
    let mut lines = Lines::new(folder.read(&name).map_err(unread)?);
    let mut scan = Scan::default();
    let mut count: u64 = 0;
    while let Some(raw) = lines.read().map_err(unread)? {
        count = count.saturating_add(1);
        if !raw.whole {
            break;
        }
        match Line::parse(raw.bytes) {
            Ok(line) => {
                scan.take(&line, number).map_err(|fault| damaged(folder, number, &format!("line {count}: {fault}")))?
            }
            Err(_) => break,
        }
        scan.bytes = lines.offset();
    }
    (scan.torn, scan.room) = torn(folder, number, scan.bytes)?;
    Ok(scan)
}

impl Scan {
    fn take(&mut self, line: &Line<'_>, number: u64) -> Result<(), Fault> {
        match self.head {
            Some(head) => line.follows(&head)?,
            None => {
                let header = Header::read(line).filter(|header| header.number == number).ok_or(Fault::NotAnEntry)?;
                self.checkpoint = header.checkpoint.as_ref().and_then(|fields| {
                    let reach = fields.get("head_seq")?.as_u64()?;
                    Some((reach, members(&serde_json::to_string(fields).ok()?)))
                });
                self.header = Some(header);
            }
        }
        if line.is(Kind::Checkpoint)
            && let Some(reach) = line.fields()?.get("head_seq").and_then(serde_json::Value::as_u64)
        {
            self.checkpoint = Some((reach, line.members().to_owned()));
        }
        self.head = Some(line.position);
        Ok(())
    }
}

/// An object's members, with a comma before the first.
fn members(object: &str) -> String {
    format!(",{}", object.trim_start_matches('{').trim_end_matches('}'))
}

/// What stands behind a segment's last whole entry and is not room, and where the room ends that can be written into.
///
/// There must be no entry in it; one that lacks only its line feed is none, for it was never flushed whole. What was
/// flushed when the power went may be there but for any of its sectors: behind such a gap there may be entries. Nobody was
/// told of them, for a flush begins when the one before it has ended.
fn torn(folder: &dyn Folder, number: u64, from: u64) -> Result<(Vec<u8>, u64), String> {
    let name = segment::name(number);
    let unread = |why: std::io::Error| format!("{}/{name}: {why}", folder.place());
    let mut reader = folder.read(&name).map_err(unread)?;
    std::io::copy(&mut (&mut reader).take(from), &mut std::io::sink()).map_err(unread)?;
    let mut torn = Vec::new();
    let most = TORN_BYTES_MAX.saturating_add(ROOM_BYTES_MAX);
    reader.take(most.saturating_add(1)).read_to_end(&mut torn).map_err(unread)?;
    let length = |bytes: &[u8]| u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    let room = from.saturating_add(length(&torn));
    let Some(last) = torn.iter().rposition(|byte| *byte != segment::ROOM) else { return Ok((Vec::new(), room)) };
    // With the line feed that ends it.
    torn.truncate(last.saturating_add(2));
    if length(&torn) > TORN_BYTES_MAX {
        return Err(damaged(folder, number, "behind its last whole entry stands more than a crash can leave"));
    }
    let mut before = 0;
    for line in torn.split_inclusive(|byte| *byte == b'\n') {
        let is_entry = line.strip_suffix(b"\n").is_some_and(|line| Line::parse(line).is_ok());
        if is_entry && !has_gap(torn.get(..before).unwrap_or_default(), from) {
            return Err(damaged(folder, number, "an entry was changed or removed, and others follow it"));
        }
        before = before.saturating_add(line.len());
    }
    Ok((torn, from))
}

/// Whether in what stands from a place on there is a sector that was never written: it shows room, or zeros where the file
/// was made longer.
fn has_gap(bytes: &[u8], from: u64) -> bool {
    let unwritten = |sector: &[u8]| sector.iter().all(|byte| matches!(*byte, segment::ROOM | 0));
    let first = SECTOR_BYTES.saturating_sub(from % SECTOR_BYTES);
    let first = usize::try_from(first).unwrap_or(0).min(bytes.len());
    let (first, rest) = bytes.split_at(first);
    let sector = usize::try_from(SECTOR_BYTES).unwrap_or(1);
    (!first.is_empty() && unwritten(first)) || rest.chunks_exact(sector).any(unwritten)
}

/// The name of a tail that was cut off behind an entry; there can be several.
fn aside(head: &Position, count: usize) -> String {
    format!("cut-{:012}-{count}.bin", head.seq)
}

fn put_aside(folder: &dyn Folder, head: &Position, torn: &[u8]) -> Result<(), String> {
    let unwritten = |why: std::io::Error| format!("{}: a torn tail cannot be put aside: {why}", folder.place());
    let names = folder.names().map_err(unwritten)?;
    let free = (1..).map(|count| aside(head, count)).find(|name| !names.contains(name)).unwrap_or_default();
    folder.put(&free, torn).map_err(unwritten)?;
    folder.sync().map_err(unwritten)
}

/// The entry about everything that was cut off behind the present head. Once it is written, the head is another.
fn repaired(folder: &dyn Folder, head: &Position) -> Result<Option<Entry>, String> {
    let unread = |why: std::io::Error| format!("{}: {why}", folder.place());
    let names = folder.names().map_err(unread)?;
    let mut cuts = Vec::new();
    for name in (1..).map(|count| aside(head, count)).take_while(|name| names.contains(name)) {
        let mut bytes = Vec::new();
        folder.read(&name).map_err(unread)?.read_to_end(&mut bytes).map_err(unread)?;
        let hash = EntryHash(Sha256::digest(&bytes).into()).to_string();
        cuts.push(serde_json::json!({ "file": name, "bytes": bytes.len(), "sha256": hash }));
    }
    Ok((!cuts.is_empty()).then(|| Entry::new(Kind::Repaired).json("cut", &cuts)))
}
