//! Folds the ledger's log into its file beside the writer.
//!
//! In write-ahead mode what is written goes to a log first, and page by page into the file later. The writer would do that
//! within a flush, every few thousand pages, and whoever waits for that flush would wait for thousands of pages. So a thread
//! with a connection of its own does most of it every second, and the writer only the little that came meanwhile, after
//! which it begins the log anew. Where this thread fails or falls behind, the writer folds by itself as ever.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::Connection;
use tokio::sync::mpsc;

use super::{Job, at, join};
use crate::ledger::store::StoreError;

const EVERY: Duration = Duration::from_secs(1);

/// The thread. Ended when dropped.
#[derive(Debug)]
pub(super) struct Folding {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
    path: PathBuf,
}

impl Folding {
    /// Starts for a file that is there; the writer takes `jobs`.
    pub(super) fn start(path: &Path, jobs: &mpsc::Sender<Job>) -> Result<Self, StoreError> {
        let connection = Connection::open(path).map_err(|why| at(path, &why))?;
        connection.busy_timeout(Duration::from_secs(5)).map_err(|why| at(path, &why))?;
        // Not to keep the writer from its end.
        let (jobs, (stop, stopped), file) = (jobs.downgrade(), channel(), path.to_owned());
        let thread = std::thread::Builder::new()
            .name("ledger-folding".to_owned())
            .spawn(move || {
                let mut before: Folded = (0, 0);
                while stopped.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
                    match fold(&connection) {
                        Ok(now) if now != before => {
                            before = now;
                            let rest = Job::Read(Box::new(|connection, _, path| {
                                drop(fold(connection).inspect_err(|error| tell(path, error)));
                            }));
                            // Where so much waits that nothing more fits, it is for the next time.
                            drop(jobs.upgrade().map(|jobs| jobs.try_send(rest)));
                        }
                        Ok(_) => {}
                        Err(error) => tell(&file, &error),
                    }
                }
            })
            .map_err(|error| StoreError(format!("no thread to fold the ledger's log: {error}")))?;
        Ok(Self { stop: Some(stop), thread: Some(thread), path: path.to_owned() })
    }
}

impl Drop for Folding {
    fn drop(&mut self) {
        drop(self.stop.take());
        join(self.thread.take(), &self.path);
    }
}

/// Pages in the log, and of those the ones that are in the file.
type Folded = (i64, i64);

/// Takes into the file what no reader needs in the log, and waits for nobody.
fn fold(connection: &Connection) -> rusqlite::Result<Folded> {
    connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| Ok((row.get(1)?, row.get(2)?)))
}

fn tell(path: &Path, error: &rusqlite::Error) {
    tracing::warn!(%error, file = %path.display(), "the ledger's log was not folded into its file; the writer does it later");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::sqlite::Known;

    #[test]
    fn the_log_is_folded_beside_the_writer_and_the_rest_by_it() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("ledger.db");
        let writer = Connection::open(&path).unwrap();
        writer.execute_batch("PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0; CREATE TABLE a (b)").unwrap();
        let (jobs, mut queue) = mpsc::channel(1);
        let _folding = Folding::start(&path, &jobs).unwrap();
        let Some(Job::Read(rest)) = queue.blocking_recv() else { panic!("the writer is asked for the rest") };
        // Folded by now: who looks at the file alone finds the table.
        let alone = place.path().join("alone.db");
        std::fs::copy(&path, &alone).unwrap();
        let tables = "SELECT count(*) FROM sqlite_schema";
        let found: i64 = Connection::open(&alone).unwrap().query_row(tables, [], |row| row.get(0)).unwrap();
        assert_eq!(found, 1);
        writer.execute_batch("INSERT INTO a VALUES (1)").unwrap();
        rest(&writer, &mut Known::default(), &path);
        let (log, folded) = fold(&writer).unwrap();
        assert!(log > 0);
        assert_eq!(log, folded);
    }
}
