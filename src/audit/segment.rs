//! Segments: their names, their first entry, and reading one line by line.
//!
//! Pure but for the reader that it is given. A segment's first entry says which record it is of and, once there is one,
//! repeats the newest checkpoint: what remains of a record when old segments are removed begins with what it stands on.
//! Behind its last entry there may be room: line feeds, in whose place the next entries are written.

use std::io::{self, BufRead, Read};

use super::checkpoint::RecordId;
use super::entry::{ENTRY_BYTES_MAX, Line};
use super::{Entry, Kind};

/// What stands where nothing is written yet.
pub const ROOM: u8 = b'\n';

/// A segment's file name.
#[must_use]
pub fn name(number: u64) -> String {
    format!("{number:06}.jsonl")
}

/// The number of the segment with this file name; `None` for any other file.
#[must_use]
pub fn number(file: &str) -> Option<u64> {
    let number = file.strip_suffix(".jsonl")?.parse().ok()?;
    (name(number) == file).then_some(number)
}

/// The entry that a segment begins with.
#[must_use]
pub fn header(record: &RecordId, number: u64, checkpoint: Option<&str>) -> Entry {
    let entry = Entry::new(Kind::Segment).text("record", record).number("segment", number);
    match checkpoint.and_then(|members| serde_json::value::RawValue::from_string(object(members)).ok()) {
        Some(checkpoint) => entry.json("checkpoint", &checkpoint),
        None => entry,
    }
}

/// Members with a comma before each, as an object.
fn object(members: &str) -> String {
    format!("{{{}}}", members.strip_prefix(',').unwrap_or(members))
}

/// What a segment's first entry says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The record.
    pub record: RecordId,
    /// Which of its segments this is, from 1 on.
    pub number: u64,
    /// The members of the checkpoint that it repeats.
    pub checkpoint: Option<serde_json::Map<String, serde_json::Value>>,
}

impl Header {
    /// Reads a segment's first entry; `None` where it is something else.
    #[must_use]
    pub fn read(line: &Line<'_>) -> Option<Self> {
        let mut fields = line.is(Kind::Segment).then(|| line.fields().ok())??;
        let checkpoint = match fields.remove("checkpoint") {
            Some(serde_json::Value::Object(checkpoint)) => Some(checkpoint),
            Some(_) => return None,
            None => None,
        };
        let record = RecordId::parse(fields.get("record")?.as_str()?)?;
        Some(Self { record, number: fields.get("segment")?.as_u64()?, checkpoint })
    }
}

/// A segment's lines, with where each begins.
#[derive(Debug)]
pub struct Lines<R> {
    reader: R,
    offset: u64,
    line: Vec<u8>,
    has_room: bool,
}

/// One line.
#[derive(Clone, Copy, Debug)]
pub struct Raw<'a> {
    /// Where it begins in its file.
    pub offset: u64,
    /// Its bytes, without the line feed. Of one that is too long, as many as an entry may have.
    pub bytes: &'a [u8],
    /// Whether a line feed ends it.
    pub whole: bool,
}

impl<R: BufRead> Lines<R> {
    /// Reads from the beginning of a segment.
    pub const fn new(reader: R) -> Self {
        Self { reader, offset: 0, line: Vec::new(), has_room: false }
    }

    /// The next line; `None` at the end, or where nothing follows but room. An empty line with something behind it is a
    /// line.
    ///
    /// # Errors
    /// Where the file cannot be read.
    pub fn read(&mut self) -> io::Result<Option<Raw<'_>>> {
        self.line.clear();
        let offset = self.offset;
        let most = u64::try_from(ENTRY_BYTES_MAX).unwrap_or(u64::MAX);
        let read = (&mut self.reader).take(most).read_until(b'\n', &mut self.line)?;
        if read == 0 {
            return Ok(None);
        }
        self.offset = offset.saturating_add(u64::try_from(read).unwrap_or(u64::MAX));
        let whole = self.line.last() == Some(&b'\n');
        if whole {
            self.line.pop();
        }
        if whole && self.line.is_empty() && self.ends_in_room()? {
            return Ok(None);
        }
        Ok(Some(Raw { offset, bytes: &self.line, whole }))
    }

    /// Reads on while there is room; whether there is nothing else.
    fn ends_in_room(&mut self) -> io::Result<bool> {
        self.has_room = true;
        loop {
            let bytes = self.reader.fill_buf()?;
            let room = bytes.iter().take_while(|byte| **byte == ROOM).count();
            let ends = bytes.is_empty();
            let goes_on = room == bytes.len();
            self.reader.consume(room);
            self.offset = self.offset.saturating_add(u64::try_from(room).unwrap_or(u64::MAX));
            if ends || !goes_on {
                return Ok(ends);
            }
        }
    }

    /// Where the next line begins.
    pub const fn offset(&self) -> u64 {
        self.offset
    }

    /// Whether an empty line was read: who reads may be overtaken by who writes there.
    pub const fn has_room(&self) -> bool {
        self.has_room
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_one_spelling() {
        assert_eq!(name(1), "000001.jsonl");
        assert_eq!(number("000001.jsonl"), Some(1));
        assert_eq!(number("1234567.jsonl"), Some(1_234_567));
        for other in ["1.jsonl", "0000001.jsonl", "000001.json", "lock", "+00001.jsonl", ".jsonl"] {
            assert_eq!(number(other), None, "{other}");
        }
    }

    #[test]
    fn lines_say_where_they_begin_and_whether_they_are_whole() {
        let mut lines = Lines::new(&b"a\n\nbc"[..]);
        let mut seen = Vec::new();
        while let Some(raw) = lines.read().unwrap() {
            seen.push((raw.offset, raw.bytes.to_vec(), raw.whole));
        }
        assert_eq!(seen, [(0, b"a".to_vec(), true), (2, vec![], true), (3, b"bc".to_vec(), false)]);
    }

    #[test]
    fn room_is_no_line_and_ends_a_segment() {
        for (text, count) in [("", 0), ("\n", 0), ("a\n", 1), ("a\n\n\n\n", 1), ("a\n\n\nb\n\n", 3)] {
            let mut lines = Lines::new(io::BufReader::with_capacity(2, text.as_bytes()));
            let mut seen = 0;
            while lines.read().unwrap().is_some() {
                seen += 1;
            }
            assert_eq!(seen, count, "{text:?}");
            assert_eq!(lines.has_room(), text.contains("\n\n") || text == "\n", "{text:?}");
            assert_eq!(lines.offset(), u64::try_from(text.len()).unwrap(), "{text:?}");
        }
    }
}
