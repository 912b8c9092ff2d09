//! Reads kept answers from the ledger's file, beside the writer and without holding it up.
//!
//! A thread and a read-only connection of its own: in write-ahead mode readers and the writer do not wait for one
//! another, so however often answers are asked for again, charges are not slower for it. Refuses to queue more than
//! [`READS_WAITING_MAX`] reads; who asks then comes again.

use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};
use tokio::sync::{mpsc, oneshot};

use super::{at, join, tables};
use crate::ledger::store::{Answer, StoreError};

/// How many reads may wait.
const READS_WAITING_MAX: usize = 256;

/// One read: what to say, the place, and who waits for it.
type Read = (&'static str, u64, oneshot::Sender<Result<Option<Answer>, StoreError>>);

/// The reading side of a ledger's file. Closed when dropped.
#[derive(Debug)]
pub(super) struct Reader {
    reads: Option<mpsc::Sender<Read>>,
    thread: Option<JoinHandle<()>>,
    path: PathBuf,
}

impl Reader {
    /// Opens a file that is there and whose tables are up to date.
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags).map_err(|why| at(path, &why))?;
        connection.busy_timeout(Duration::from_secs(5)).map_err(|why| at(path, &why))?;
        let (reads, mut queue) = mpsc::channel::<Read>(READS_WAITING_MAX);
        let file = path.to_owned();
        let thread = std::thread::Builder::new()
            .name("ledger-reader".to_owned())
            .spawn(move || {
                while let Some((sql, place, answer)) = queue.blocking_recv() {
                    // Whoever asked may be gone.
                    drop(answer.send(tables::answer(&connection, sql, place).map_err(|why| at(&file, &why))));
                }
            })
            .map_err(|error| StoreError(format!("no thread for the ledger's reader: {error}")))?;
        Ok(Self { reads: Some(reads), thread: Some(thread), path: path.to_owned() })
    }

    pub(super) async fn answer(&self, sql: &'static str, place: u64) -> Result<Option<Answer>, StoreError> {
        let (answer, outcome) = oneshot::channel();
        let full = || at(&self.path, &"too many kept answers are being read; try again");
        self.reads.as_ref().and_then(|reads| reads.try_send((sql, place, answer)).ok()).ok_or_else(full)?;
        outcome.await.map_err(|_| at(&self.path, &"the reader has ended; restart"))?
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        drop(self.reads.take());
        join(self.thread.take(), &self.path);
    }
}
