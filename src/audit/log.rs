//! The record as files: opened once, written by one thread, read by whoever may.
//!
//! Owns [`AuditLog`]. An entry that was answered is on the disk. A tail that a crash has left is cut off when the record
//! is opened, put aside in a file of its own, and that it was is recorded. From the first failed write on every entry is
//! refused, until a restart. Refuses: a directory that another process has open, and a record that is damaged.

pub mod folder;
mod reconcile;
mod recover;
mod writer;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};

use self::folder::{Directory, Folder};
use self::writer::{Job, Writer};
use super::checkpoint::RecordId;
use super::{AuditError, Entry, Position, Recorder};
use crate::clock::{Clock, SystemClock, UnixMillis};
use crate::telemetry::Telemetry;

/// How the record works.
#[derive(Clone, Debug)]
pub struct Options {
    /// From this size on a segment is followed by another.
    pub segment_bytes_max: u64,
    /// How much room the segment that is written has behind its last entry, at first; at most 16 MiB. It is given back
    /// at the end of a segment, and of an orderly stop.
    pub room_bytes: u64,
    /// How many calls may wait to be written; more wait to be let in.
    pub waiting_max: usize,
    /// Tells the entries' time.
    pub clock: Arc<dyn Clock>,
    /// Where writes are timed.
    pub telemetry: Option<Arc<Telemetry>>,
}

impl Default for Options {
    /// Segments of 64 MiB, a hundred thousand charges or so, made longer by 1 MiB; 4096 waiting calls; the machine's clock.
    fn default() -> Self {
        Self {
            segment_bytes_max: 64 * 1024 * 1024,
            room_bytes: 1024 * 1024,
            waiting_max: 4096,
            clock: Arc::new(SystemClock),
            telemetry: None,
        }
    }
}

/// How the record is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// The last entry on the disk.
    pub head: Position,
    /// How far the newest checkpoint reaches; 0 where there is none.
    pub checkpoint: u64,
    /// Why nothing more is taken, where that is so.
    pub failed: Option<AuditError>,
}

/// A record that is open. Closed when dropped: what was handed over is written first.
pub struct AuditLog {
    /// Locked by whoever writes: the record's own thread, or one that may block and writes by itself.
    writer: Arc<Mutex<Writer>>,
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    state: Arc<watch::Sender<State>>,
    dropped: Arc<AtomicU64>,
    record: RecordId,
    folder: Arc<dyn Folder>,
}

impl AuditLog {
    /// Opens the record in a directory, and begins one where there is none. Reads the last segment.
    ///
    /// # Errors
    /// [`AuditError::Unusable`] or [`AuditError::Failed`] with the file and what to do.
    pub fn open(directory: &Path, options: Options) -> Result<Self, AuditError> {
        let directory = Directory::open(directory).map_err(AuditError::Unusable)?;
        Self::open_in(Arc::new(directory), options)
    }

    /// The same, in a folder that is given.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_in(folder: Arc<dyn Folder>, options: Options) -> Result<Self, AuditError> {
        let found = recover::recover(&*folder).map_err(AuditError::Unusable)?;
        let mut fresh = [0; 16];
        getrandom::fill(&mut fresh).map_err(|why| AuditError::Unusable(why.to_string()))?;
        let (jobs, queue) = mpsc::channel(options.waiting_max.max(1));
        let state = Arc::new(watch::Sender::new(State::default()));
        let writer = Writer::open(Arc::clone(&folder), options, found, RecordId(fresh), Arc::clone(&state))?;
        let (record, dropped) = (writer.record_id(), writer.dropped());
        let writer = Arc::new(Mutex::new(writer));
        let of_thread = Arc::clone(&writer);
        let thread = std::thread::Builder::new()
            .name("audit-writer".to_owned())
            .spawn(move || writer::run(&of_thread, queue))
            .map_err(|why| AuditError::Unusable(format!("no thread for its writer: {why}")))?;
        Ok(Self { writer, jobs: Some(jobs), thread: Some(thread), state, dropped, record, folder })
    }

    /// The record's name.
    #[must_use]
    pub const fn record_id(&self) -> RecordId {
        self.record
    }

    /// How the record is now.
    #[must_use]
    pub fn state(&self) -> State {
        self.state.borrow().clone()
    }

    /// Follows how the record is. Whoever waits is woken by a failure and by a checkpoint, and not by every entry.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// Where it is, for people.
    #[must_use]
    pub fn place(&self) -> String {
        self.folder.place()
    }

    /// Adds an entry. It is on the disk when this returns; it is written even if the caller goes away meanwhile.
    ///
    /// # Errors
    /// [`AuditError`]; what was to be recorded must not happen.
    pub async fn append(&self, entry: Entry) -> Result<Position, AuditError> {
        let (answer, durable) = oneshot::channel();
        let jobs = self.jobs.as_ref().ok_or_else(super::ended)?;
        jobs.send(Job::Append(entry, answer)).await.map_err(|_| super::ended())?;
        durable.await.unwrap_or_else(|_| Err(super::ended()))
    }

    /// Hands an entry over without waiting for it: for what may happen too often to be waited for, such as refusals. Where
    /// too much waits already the entry is dropped, and how many were is recorded in their place.
    pub fn note(&self, entry: Entry) {
        let (answer, _durable) = oneshot::channel();
        let taken = self.jobs.as_ref().is_some_and(|jobs| jobs.try_send(Job::Append(entry, answer)).is_ok());
        if !taken {
            self.pass_over();
        }
    }

    /// Counts an entry that is not handed over, as one that was dropped.
    pub fn pass_over(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// The same on a thread that may block. Not to be called on a runtime's thread.
    ///
    /// # Errors
    /// As [`Self::append`].
    pub fn append_blocking(&self, entry: Entry) -> Result<Position, AuditError> {
        self.record_blocking(&[entry])
    }

    /// Removes whole segments that ended before a time and that a checkpoint vouches for; how many they were.
    ///
    /// # Errors
    /// [`AuditError`].
    pub async fn retire(&self, before: UnixMillis) -> Result<u64, AuditError> {
        let (answer, outcome) = oneshot::channel();
        let jobs = self.jobs.as_ref().ok_or_else(super::ended)?;
        jobs.send(Job::Retire(before, answer)).await.map_err(|_| super::ended())?;
        outcome.await.unwrap_or_else(|_| Err(super::ended()))
    }
}

#[async_trait]
impl Recorder for AuditLog {
    async fn record(&self, entry: Entry) -> Result<Position, AuditError> {
        self.append(entry).await
    }

    fn record_blocking(&self, entries: &[Entry]) -> Result<Position, AuditError> {
        self.writer.lock().record(entries)
    }

    fn reconcile(&self, at: Position) -> Result<Position, AuditError> {
        let head = self.state.borrow().head;
        match reconcile::reconcile(&*self.folder, &at, &head).map_err(AuditError::Unusable)? {
            Some(voided) => {
                tracing::warn!(record = %self.place(), what = voided.members(), "the audit record holds entries that never took effect; they are void");
                self.append_blocking(voided)
            }
            None => Ok(at),
        }
    }

    fn health(&self) -> Result<(), AuditError> {
        self.state.borrow().failed.clone().map_or(Ok(()), Err)
    }
}

impl Drop for AuditLog {
    fn drop(&mut self) {
        // Without a sender the writer finishes what waits and ends.
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!(record = %self.folder.place(), "the audit record's writer panicked");
        }
    }
}

impl fmt::Debug for AuditLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuditLog")
            .field("place", &self.place())
            .field("head", &self.state.borrow().head.seq)
            .finish_non_exhaustive()
    }
}
