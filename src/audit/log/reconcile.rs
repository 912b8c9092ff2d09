//! The record and the ledger's store after a crash: what was recorded and never taken up is said to be void.
//!
//! The store's entries are durable before its transaction is, and the transaction holds the place that it stands on. So
//! what is found behind that place was in the one group that the crash interrupted, or the store is older than the
//! record: then it has lost charges that clients were told of, and nothing may go on from it.

use serde_json::Value;

use super::folder::Folder;
use super::recover;
use crate::audit::entry::{Fault, Line};
use crate::audit::segment::{self, Lines};
use crate::audit::{Entry, Kind, Position};

/// What stands behind a place.
#[derive(Debug, Default)]
struct Behind {
    /// Whether the place is in the record.
    holds: bool,
    /// Whether it lay in a segment that was retired.
    excused: bool,
    /// Whether an operator has said since that the store or the record is lost there.
    lost: bool,
    /// The store's entries behind it.
    open: Vec<u64>,
    /// Of these, one that was written on top of others.
    newer: Option<u64>,
}

/// The entry that says what is void, where something is, for a store that stands on `at`.
///
/// # Errors
/// Where record and store are not of one another.
pub(super) fn reconcile(folder: &dyn Folder, at: &Position, head: &Position) -> Result<Option<Entry>, String> {
    if at == head {
        return Ok(None);
    }
    let behind = read(folder, at)?;
    let place = folder.place();
    if !behind.holds && !behind.excused && !behind.lost {
        return Err(format!(
            "{place}: the ledger stands on entry {at}, which the record does not hold: the record, or its end, is \
             lost or another's. Restore it. If it is gone for good, `turnpike audit accept-loss` records that it is"
        ));
    }
    if behind.lost {
        // Nothing is void: what was charged was charged, though one of the two does not know of it.
        return Ok(Some(Entry::new(Kind::Voided).json("entries", &[0_u64; 0]).number("lost_seq", at.seq)));
    }
    if let Some(seq) = behind.newer {
        return Err(format!(
            "{place}: entry {seq} is of a ledger that goes further than this one, which stands on entry {}: the \
             store is an old copy. Restore the newest one. If it is gone for good, `turnpike audit accept-loss` \
             records that it is",
            at.seq
        ));
    }
    Ok((!behind.open.is_empty()).then(|| Entry::new(Kind::Voided).json("entries", &behind.open)))
}

fn read(folder: &dyn Folder, at: &Position) -> Result<Behind, String> {
    let mut behind = Behind { holds: at.seq == 0, ..Behind::default() };
    let numbers = recover::numbers(folder)?;
    let mut from = 0;
    for (place, number) in numbers.iter().enumerate().rev() {
        from = place;
        let first = first_seq(folder, *number)?;
        if first <= at.seq {
            break;
        }
        // What was before the first segment is gone by our own doing: verifying says whether that was recorded.
        behind.excused |= place == 0 && first > 1;
    }
    for number in numbers.iter().skip(from) {
        let name = segment::name(*number);
        let unread = |why: &dyn std::fmt::Display| format!("{}/{name}: {why}", folder.place());
        let mut lines = Lines::new(folder.read(&name).map_err(|why| unread(&why))?);
        while let Some(raw) = lines.read().map_err(|why| unread(&why))? {
            let line = Line::parse(raw.bytes).map_err(|fault| unread(&fault))?;
            behind.take(&line, at).map_err(|fault| unread(&fault))?;
        }
    }
    Ok(behind)
}

fn first_seq(folder: &dyn Folder, number: u64) -> Result<u64, String> {
    let name = segment::name(number);
    let unread = |why: &dyn std::fmt::Display| format!("{}/{name}: {why}", folder.place());
    let mut lines = Lines::new(folder.read(&name).map_err(|why| unread(&why))?);
    let raw = lines.read().map_err(|why| unread(&why))?.ok_or_else(|| unread(&"the segment is empty"))?;
    Ok(Line::parse(raw.bytes).map_err(|fault| unread(&fault))?.position.seq)
}

impl Behind {
    fn take(&mut self, line: &Line<'_>, at: &Position) -> Result<(), Fault> {
        self.holds |= line.position == *at;
        let store = Kind::ALL.iter().any(|kind| kind.is_stores() && line.is(*kind));
        if store && line.position.seq > at.seq {
            self.lost = false;
            let after = line.fields()?.get("after").and_then(Value::as_u64).ok_or(Fault::NotAnEntry)?;
            self.open.push(line.position.seq);
            if after > at.seq {
                self.newer = self.newer.or(Some(line.position.seq));
            }
        } else if line.is(Kind::Voided) {
            let fields = line.fields()?;
            let void = fields.get("entries").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
            self.open.retain(|seq| !void.iter().any(|void| void.as_u64() == Some(*seq)));
        } else if line.is(Kind::Loss) {
            let fields = line.fields()?;
            self.lost |= fields.get("lost_seq").and_then(Value::as_u64) == Some(at.seq)
                && fields.get("lost_hash").and_then(Value::as_str) == Some(&*at.hash.to_string());
        }
        Ok(())
    }
}
