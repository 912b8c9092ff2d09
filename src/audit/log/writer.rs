//! Who writes the record: group commit, rotation, retention.
//!
//! A thread of the record's own writes for tasks: everything that waits is written at once and made durable by one flush,
//! then answered together. A thread that may block writes by itself, which spares it two changes of threads for each
//! flush. From the first failed write on nothing is taken: what is on the disk then is for a restart to find out.
//!
//! The segment that is written has room behind its last entry, which entries are written into: a flush that changes a
//! file's length takes several times as long as one that does not (measured in `docs/decisions/0017`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};

use super::folder::{Folder, Tail};
use super::recover::{self, Found};
use super::{Options, State};
use crate::audit::checkpoint::RecordId;
use crate::audit::entry::{self, Line};
use crate::audit::segment::{self, Lines};
use crate::audit::{AuditError, Entry, Kind, Position};
use crate::clock::UnixMillis;

/// How much is written at once at most, but for one job more.
const FLUSH_BYTES_MAX: usize = 1024 * 1024;
/// The most room that is made at once.
pub(super) const ROOM_BYTES_MAX: u64 = 16 * 1024 * 1024;

type Answer = oneshot::Sender<Result<Position, AuditError>>;

/// What the writer is asked for.
#[derive(Debug)]
pub(super) enum Job {
    /// Adds an entry.
    Append(Entry, Answer),
    /// Removes segments that ended before a time; answers how many.
    Retire(UnixMillis, oneshot::Sender<Result<u64, AuditError>>),
}

/// The record's end.
#[derive(Debug)]
pub(super) struct Writer {
    folder: Arc<dyn Folder>,
    options: Options,
    record: RecordId,
    segment: u64,
    /// Where the segment's entries end, what is buffered included.
    bytes: u64,
    /// Where its room ends.
    room: u64,
    tail: Box<dyn Tail>,
    /// Whether the segment's name is yet to be made durable.
    fresh: bool,
    head: Position,
    /// The last entry that is on the disk.
    durable: Position,
    checkpoint: Option<(u64, String)>,
    buffer: Vec<u8>,
    failed: Option<AuditError>,
    dropped: Arc<AtomicU64>,
    state: Arc<watch::Sender<State>>,
}

/// Works until nobody can ask any more.
pub(super) fn run(writer: &Mutex<Writer>, mut queue: mpsc::Receiver<Job>) {
    let mut answers: Vec<(Result<Position, AuditError>, Answer)> = Vec::new();
    while let Some(first) = queue.blocking_recv() {
        let started = Instant::now();
        let mut writer = writer.lock();
        let mut retire = None;
        let mut job = Some(first);
        while let Some(next) = job {
            match next {
                Job::Append(entry, answer) => answers.push((writer.take(std::slice::from_ref(&entry)), answer)),
                Job::Retire(before, answer) => retire = Some((before, answer)),
            }
            let full = writer.buffer.len() >= FLUSH_BYTES_MAX || retire.is_some();
            job = if full { None } else { queue.try_recv().ok() };
        }
        writer.settle(started);
        for (position, answer) in answers.drain(..) {
            // Whoever asked may be gone.
            drop(answer.send(writer.failed.clone().map_or(position, Err)));
        }
        if let Some((before, answer)) = retire {
            drop(answer.send(writer.retire(before)));
        }
    }
}

impl Writer {
    /// Goes on where the record ends, and writes down at once what opening it has changed.
    pub fn open(
        folder: Arc<dyn Folder>,
        options: Options,
        found: Found,
        fresh_id: RecordId,
        state: Arc<watch::Sender<State>>,
    ) -> Result<Self, AuditError> {
        let name = segment::name(found.segment);
        let tail =
            folder.open(&name).map_err(|why| AuditError::Unusable(format!("{}/{name}: {why}", folder.place())))?;
        let mut writer = Self {
            record: found.record.unwrap_or(fresh_id),
            segment: found.segment,
            bytes: found.bytes,
            room: found.room,
            tail,
            fresh: found.bytes == 0,
            head: found.head,
            durable: found.head,
            checkpoint: found.checkpoint,
            buffer: Vec::new(),
            failed: None,
            dropped: Arc::default(),
            folder,
            options,
            state,
        };
        if found.bytes == 0 {
            writer.begin_segment()?;
        }
        if let Some(repaired) = &found.repaired {
            tracing::warn!(record = %writer.folder.place(), what = repaired.members(), "the audit record ended in the middle of an entry; the tail was cut off and put aside");
            writer.add(repaired)?;
        }
        writer.flush()?;
        writer.show();
        Ok(writer)
    }

    /// The record's name.
    pub const fn record_id(&self) -> RecordId {
        self.record
    }

    /// How many notes were not taken since the last that was; to be counted up.
    pub fn dropped(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.dropped)
    }

    /// Adds entries, all or none, and makes them durable.
    pub fn record(&mut self, entries: &[Entry]) -> Result<Position, AuditError> {
        let started = Instant::now();
        let position = self.take(entries);
        self.settle(started);
        self.failed.clone().map_or(position, Err)
    }

    /// Makes durable what was taken.
    fn settle(&mut self, started: Instant) {
        if self.failed.is_none()
            && let Err(error) = self.flush()
        {
            self.fail(error);
        }
        if let Some(telemetry) = &self.options.telemetry {
            telemetry.audit_seconds.observe(started.elapsed().as_secs_f64());
        }
        self.show();
    }

    fn fail(&mut self, error: AuditError) {
        tracing::error!(record = %self.folder.place(), %error, "the audit record cannot be written; nothing is charged or signed any more. Free or repair the disk, then restart");
        self.failed = Some(error);
    }

    fn show(&self) {
        let checkpoint = self.checkpoint.as_ref().map_or(0, |(reach, _)| *reach);
        let state = State { head: self.durable, checkpoint, failed: self.failed.clone() };
        if let Some(telemetry) = &self.options.telemetry {
            telemetry.audit_up.set(i64::from(self.failed.is_none()));
            telemetry.audit_signed.set(i64::try_from(checkpoint).unwrap_or(i64::MAX));
            telemetry.audit_entries.set(i64::try_from(self.durable.seq).unwrap_or(i64::MAX));
        }
        self.state.send_if_modified(|shown| {
            // Not for each flush: whoever follows waits for what is rare.
            let tells = shown.failed != state.failed || shown.checkpoint != state.checkpoint;
            *shown = state;
            tells
        });
    }

    /// Puts entries into the buffer, all or none.
    fn take(&mut self, entries: &[Entry]) -> Result<Position, AuditError> {
        if let Some(failed) = &self.failed {
            return Err(failed.clone());
        }
        if self.buffer.is_empty() && self.bytes >= self.options.segment_bytes_max {
            self.rotate().inspect_err(|error| self.fail(error.clone()))?;
        }
        match self.dropped.swap(0, Ordering::Relaxed) {
            0 => {}
            count => self.add(&Entry::new(Kind::Dropped).number("notes", count))?,
        }
        let (length, bytes, head) = (self.buffer.len(), self.bytes, self.head);
        let checkpoint = self.checkpoint.clone();
        for entry in entries {
            if let Err(error) = self.add(entry) {
                self.buffer.truncate(length);
                (self.bytes, self.head, self.checkpoint) = (bytes, head, checkpoint);
                return Err(error);
            }
        }
        Ok(self.head)
    }

    fn add(&mut self, entry: &Entry) -> Result<(), AuditError> {
        let before = self.buffer.len();
        let now = self.options.clock.now();
        self.head = entry::write_line(&mut self.buffer, &self.head, now, entry).map_err(AuditError::TooLong)?;
        let added = self.buffer.len().saturating_sub(before);
        self.bytes = self.bytes.saturating_add(u64::try_from(added).unwrap_or(u64::MAX));
        if entry.kind() == Kind::Checkpoint
            && let Some(reach) = reach(entry)
        {
            self.checkpoint = Some((reach, entry.members().to_owned()));
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), AuditError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let name = segment::name(self.segment);
        let failed = |why: std::io::Error| AuditError::Failed(format!("{}/{name}: {why}", self.folder.place()));
        let length = u64::try_from(self.buffer.len()).unwrap_or(u64::MAX);
        self.tail.write(self.bytes.saturating_sub(length), &self.buffer).map_err(failed)?;
        if self.bytes > self.room {
            let room = self.options.room_bytes.min(ROOM_BYTES_MAX);
            let newlines = vec![segment::ROOM; usize::try_from(room).unwrap_or(0)];
            self.tail.write(self.bytes, &newlines).map_err(failed)?;
            self.room = self.bytes.saturating_add(room);
        }
        self.tail.sync().map_err(failed)?;
        if self.fresh {
            self.folder.sync().map_err(failed)?;
            self.fresh = false;
        }
        self.buffer.clear();
        self.durable = self.head;
        Ok(())
    }

    /// Begins the next segment. The one before is whole on the disk by now.
    fn rotate(&mut self) -> Result<(), AuditError> {
        self.give_room_back().map_err(AuditError::Failed)?;
        let next = self.segment.saturating_add(1);
        let name = segment::name(next);
        self.tail = self
            .folder
            .open(&name)
            .map_err(|why| AuditError::Failed(format!("{}/{name}: {why}", self.folder.place())))?;
        (self.segment, self.room) = (next, 0);
        self.begin_segment()
    }

    /// Shortens the segment to its entries, all of which are on the disk.
    fn give_room_back(&mut self) -> Result<(), String> {
        if self.room > self.bytes {
            let name = segment::name(self.segment);
            let at = |why: std::io::Error| format!("{}/{name}: {why}", self.folder.place());
            self.folder.cut(&name, self.bytes).map_err(at)?;
        }
        self.room = self.bytes;
        Ok(())
    }

    fn begin_segment(&mut self) -> Result<(), AuditError> {
        (self.bytes, self.fresh) = (0, true);
        let checkpoint = self.checkpoint.as_ref().map(|(_, members)| members.as_str());
        let header = segment::header(&self.record, self.segment, checkpoint);
        self.add(&header)
    }

    /// Removes whole segments that ended before a time and that a checkpoint vouches for. That they are removed is
    /// recorded first.
    fn retire(&mut self, before: UnixMillis) -> Result<u64, AuditError> {
        if let Some(failed) = &self.failed {
            return Err(failed.clone());
        }
        let due = self.due(before).map_err(AuditError::Failed)?;
        let (Some(first), Some((last, through))) = (due.first(), due.last()) else { return Ok(0) };
        let entry = Entry::new(Kind::Retired)
            .number("first_segment", first.0)
            .number("last_segment", *last)
            .number("through_seq", through.seq)
            .text("through_hash", through.hash);
        let retired = self.add(&entry).and_then(|()| self.flush());
        retired.inspect_err(|error| self.fail(error.clone()))?;
        self.show();
        for (number, _) in &due {
            let name = segment::name(*number);
            // What stays behind is removed the next time.
            if let Err(error) = self.folder.remove(&name) {
                tracing::warn!(file = name, %error, "an old segment of the audit record cannot be removed");
                break;
            }
        }
        if let Err(error) = self.folder.sync() {
            tracing::warn!(%error, "that old segments of the audit record are removed may not be durable");
        }
        Ok(u64::try_from(due.len()).unwrap_or(u64::MAX))
    }

    /// The segments whose time is over, each with its last entry's place.
    fn due(&self, before: UnixMillis) -> Result<Vec<(u64, Position)>, String> {
        let reach = self.checkpoint.as_ref().map_or(0, |(reach, _)| *reach);
        let numbers = recover::numbers(&*self.folder)?;
        let mut due = Vec::new();
        for pair in numbers.windows(2) {
            let [number, next] = pair else { continue };
            let name = segment::name(*next);
            let unread = |why: std::io::Error| format!("{}/{name}: {why}", self.folder.place());
            let mut lines = Lines::new(self.folder.read(&name).map_err(unread)?);
            let first = lines.read().map_err(unread)?.and_then(|raw| {
                let line = Line::parse(raw.bytes).ok()?;
                Some((line.time, Position { seq: line.position.seq.checked_sub(1)?, hash: line.prev }))
            });
            match first {
                Some((ended, last)) if ended < before && last.seq <= reach => due.push((*number, last)),
                _ => break,
            }
        }
        Ok(due)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // After a failure the file stays as it is, for a restart to find out.
        if self.failed.is_none()
            && self.buffer.is_empty()
            && let Err(error) = self.give_room_back()
        {
            tracing::warn!(%error, "the room at the end of the audit record was not given back; the next start uses it");
        }
    }
}

/// How far a checkpoint reaches.
fn reach(entry: &Entry) -> Option<u64> {
    let (_, rest) = entry.members().split_once("\"head_seq\":")?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}
