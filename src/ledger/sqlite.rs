//! The embedded store: one SQLite file, one writer thread, one disk flush for all who write at once.
//!
//! Owns the file, its lock and its thread; the tables are `sqlite/tables.rs`. Beside the writer kept answers are read
//! (`sqlite/reader.rs`) and the log is folded (`sqlite/folding.rs`); who waits is answered through `sqlite/bell.rs`. The
//! file is in write-ahead mode with `synchronous=FULL`, so a write that was answered is on the disk. All writes that have
//! come in while the disk was busy go into one transaction and are answered together, so writers do not pay for a flush
//! each; where many come, a flush waits a moment for company (measured in `docs/decisions/0016`).
//!
//! Refuses: a file that another process has open, one that a newer Turnpike has written, one that is not a ledger, and,
//! from the first failed write on, every other write: what is on the disk then is for a restart to find out.

mod bell;
mod folding;
mod reader;
mod tables;

use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;

use async_trait::async_trait;
use rusqlite::{Connection, OpenFlags, TransactionBehavior};
use tokio::sync::{mpsc, oneshot};

use self::bell::{Bell, Due};
use self::folding::Folding;
use self::reader::Reader;
use self::tables::{Sellers, Tables};
use super::channel::{Evm, Svm};
use super::store::{Answer, RecordOf, Snapshot, Store, StoreError, TakeChannel, Write};
use super::told::{self, Told};
use crate::audit::{Entry, Position, Recorder};
use crate::telemetry::Telemetry;

/// Channels that a load hands over at a time.
const LOAD_CHANNELS: usize = 1024;
/// Such handfuls that wait to be taken.
const LOAD_WAITING_MAX: usize = 4;

/// Where a flush has served so many calls, the next one waits a little for those that are on their way: one flush more
/// costs all of them more than the wait does. Where fewer come, nobody waits.
pub(crate) const COMPANY: usize = 4;
/// How long. A flush takes several times as long.
pub(crate) const COMPANY_WAIT: Duration = Duration::from_micros(50);

/// How the store works.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How many writes may wait for the disk; more wait to be let in.
    pub writes_waiting_max: usize,
    /// How many writes one transaction takes at most.
    pub writes_per_flush_max: usize,
    /// Pages of the write-ahead log after which the writer folds it into the file by itself, which holds up a flush. Every
    /// second it is folded beside the writer.
    pub checkpoint_pages: u32,
    /// Whether the whole file is checked when it is opened; takes seconds for each million of channels.
    pub check: bool,
    /// Where flushes are timed.
    pub telemetry: Option<Arc<Telemetry>>,
    /// The audit record that is told of everything before it takes effect. With one, the store is to be opened on a
    /// thread that may block.
    pub recorder: Option<Arc<dyn Recorder>>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            writes_waiting_max: 4096,
            writes_per_flush_max: 1024,
            checkpoint_pages: 16_000,
            check: false,
            telemetry: None,
            recorder: None,
        }
    }
}

/// A ledger's file. Closed when dropped.
#[derive(Debug)]
pub struct SqliteStore {
    reader: Option<Reader>,
    folding: Option<Folding>,
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    path: PathBuf,
    tells: bool,
}

/// A family whose records this store keeps.
trait Kept: Tables + Told {
    /// Its writes among those of all families.
    fn writes(writes: Vec<Write<Self>>) -> Writes;
    /// Its sellers among those of all families.
    fn sellers(known: &mut Known) -> &mut Sellers<Self>;
}

/// One call's writes.
enum Writes {
    Svm(Vec<Write<Svm>>),
    Evm(Vec<Write<Evm>>),
}

/// The sellers that the file knows.
#[derive(Default)]
struct Known {
    svm: Sellers<Svm>,
    evm: Sellers<Evm>,
}

impl Kept for Svm {
    fn writes(writes: Vec<Write>) -> Writes {
        Writes::Svm(writes)
    }

    fn sellers(known: &mut Known) -> &mut Sellers<Self> {
        &mut known.svm
    }
}

impl Kept for Evm {
    fn writes(writes: Vec<Write<Self>>) -> Writes {
        Writes::Evm(writes)
    }

    fn sellers(known: &mut Known) -> &mut Sellers<Self> {
        &mut known.evm
    }
}

impl Writes {
    fn tell(&self, stands_on: u64, entries: &mut Vec<Entry>) {
        match self {
            Self::Svm(writes) => told::tell(writes, stands_on, entries),
            Self::Evm(writes) => told::tell(writes, stands_on, entries),
        }
    }

    fn carry_out(&self, connection: &Connection, known: &mut Known) -> rusqlite::Result<()> {
        match self {
            Self::Svm(writes) => writes.iter().try_for_each(|write| tables::write(connection, &mut known.svm, write)),
            Self::Evm(writes) => writes.iter().try_for_each(|write| tables::write(connection, &mut known.evm, write)),
        }
    }
}

/// One call's writes, and who waits for them.
struct Call {
    writes: Writes,
    answer: oneshot::Sender<Result<(), StoreError>>,
    /// Where the answer is left; `None` to wake whoever waits.
    bell: Option<Arc<Bell>>,
}

/// A question to the file.
type Read = Box<dyn FnOnce(&Connection, &mut Known, &Path) + Send>;

enum Job {
    Write(Call),
    /// Reads, and answers whoever waits for it.
    Read(Read),
}

impl SqliteStore {
    /// Opens the file, and makes it where it is not there. Blocks for as long as a migration takes.
    ///
    /// # Errors
    /// [`StoreError`] with the file and what to do.
    pub fn open(path: &Path, settings: Settings) -> Result<Self, StoreError> {
        let lock = lock(path)?;
        create(path)?;
        let connection = connect(path, &settings).map_err(|why| at(path, &why))?;
        let reader = Some(Reader::open(path)?);
        let (jobs, queue) = mpsc::channel(settings.writes_waiting_max.max(1));
        let (tells, stands_on) = (settings.recorder.is_some(), reconcile(&connection, &settings, path)?);
        let (path_of, known) = (path.to_owned(), Known::default());
        let writer = Writer { connection, known, settings, path: path_of, stands_on, failed: None };
        let thread = std::thread::Builder::new()
            .name("ledger-writer".to_owned())
            .spawn(move || {
                writer.run(queue);
                // Held for as long as the file is open.
                drop(lock);
            })
            .map_err(|error| StoreError(format!("no thread for the ledger's writer: {error}")))?;
        let folding = Some(Folding::start(path, &jobs)?);
        Ok(Self { reader, folding, jobs: Some(jobs), thread: Some(thread), path: path.to_owned(), tells })
    }

    async fn ask<T>(&self, job: Job, answer: oneshot::Receiver<Result<T, StoreError>>) -> Result<T, StoreError> {
        let gone = || StoreError(format!("the writer of {} has ended; restart", self.path.display()));
        self.jobs.as_ref().ok_or_else(gone)?.send(job).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

impl Drop for SqliteStore {
    fn drop(&mut self) {
        // First, so that nobody else has the file when its log is folded.
        drop(self.reader.take());
        drop(self.folding.take());
        // Without a sender the writer finishes what waits, folds its log and ends.
        drop(self.jobs.take());
        join(self.thread.take(), &self.path);
    }
}

#[async_trait]
impl<F: Kept> Store<F> for SqliteStore {
    async fn load(&self) -> Result<Snapshot<F>, StoreError> {
        let mut channels = Vec::new();
        let mut take = |channel| {
            channels.push(channel);
            Ok(())
        };
        let snapshot = self.load_each(&mut take).await?;
        Ok(Snapshot { channels, ..snapshot })
    }

    async fn load_each(&self, take: &mut TakeChannel<'_, F>) -> Result<Snapshot<F>, StoreError> {
        let (handfuls, mut received) = mpsc::channel::<Vec<RecordOf<F>>>(LOAD_WAITING_MAX);
        let (answer, outcome) = oneshot::channel();
        let job = move |connection: &Connection, known: &mut Known, path: &Path| {
            let hand_over = |channels| handfuls.blocking_send(channels).is_ok();
            let loaded = tables::load(connection, F::sellers(known), LOAD_CHANNELS, hand_over);
            drop(handfuls);
            drop(answer.send(loaded.map_err(|why| at(path, &why))));
        };
        let asked = self.ask(Job::Read(Box::new(job)), outcome);
        let taken = async {
            while let Some(handful) = received.recv().await {
                handful.into_iter().try_for_each(&mut *take)?;
            }
            Ok(())
        };
        // If taking ends early, dropping the receiver ends the load.
        let (snapshot, ()) = tokio::try_join!(asked, taken)?;
        Ok(snapshot)
    }

    async fn write(&self, writes: Vec<Write<F>>) -> Result<(), StoreError> {
        let (answer, outcome) = oneshot::channel();
        let call = Call { writes: F::writes(writes), answer, bell: Bell::here() };
        self.ask(Job::Write(call), outcome).await
    }

    async fn batches(&self, limit: usize) -> Result<Vec<F::Batch>, StoreError> {
        let (answer, outcome) = oneshot::channel();
        let job = move |connection: &Connection, _known: &mut Known, path: &Path| {
            drop(answer.send(tables::batches::<F>(connection, limit).map_err(|why| at(path, &why))));
        };
        self.ask(Job::Read(Box::new(job)), outcome).await
    }

    fn tells(&self) -> bool {
        self.tells
    }

    async fn answer(&self, place: u64) -> Result<Option<Answer>, StoreError> {
        match &self.reader {
            Some(reader) => reader.answer(F::TEXTS.answer, place).await,
            None => Ok(None),
        }
    }
}

/// The thread that has the file.
struct Writer {
    connection: Connection,
    known: Known,
    settings: Settings,
    path: PathBuf,
    /// The place in the audit record of the last transaction.
    stands_on: Position,
    failed: Option<StoreError>,
}

impl Writer {
    fn run(mut self, mut queue: mpsc::Receiver<Job>) {
        let mut writes = Vec::new();
        let mut reads = Vec::new();
        let mut company = 0;
        while let Some(first) = queue.blocking_recv() {
            if company >= COMPANY {
                std::thread::sleep(COMPANY_WAIT);
            }
            let mut job = Some(first);
            while let Some(next) = job {
                match next {
                    Job::Write(call) => writes.push(call),
                    Job::Read(read) => reads.push(read),
                }
                let full = writes.len() >= self.settings.writes_per_flush_max || !reads.is_empty();
                job = if full { None } else { queue.try_recv().ok() };
            }
            company = writes.len();
            self.flush(&mut writes);
            reads.drain(..).for_each(|read| read(&self.connection, &mut self.known, &self.path));
        }
        if let Err(error) = self.connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)") {
            tracing::warn!(%error, file = %self.path.display(), "the ledger's log was not folded into its file");
        }
    }

    /// One transaction for all writes that wait, then all their answers.
    fn flush(&mut self, writes: &mut Vec<Call>) {
        if writes.is_empty() {
            return;
        }
        let started = Instant::now();
        let flushed = if self.failed.is_none() { self.transact(writes) } else { Ok(()) };
        if let Some(telemetry) = &self.settings.telemetry {
            telemetry.store_seconds.observe(started.elapsed().as_secs_f64());
            telemetry.store_writes.observe(u32::try_from(writes.len()).unwrap_or(u32::MAX).into());
        }
        if let Err(error) = flushed {
            let why = at(&self.path, &format!("{error}. Check the disk and its space, then restart"));
            tracing::error!(error = %why, "the ledger's store failed");
            self.failed = Some(why);
        }
        // By bell: there are as many as serving threads.
        let mut due: Vec<(Arc<Bell>, Vec<Due>)> = Vec::new();
        for Call { answer, bell, .. } in writes.drain(..) {
            let outcome = self.failed.clone().map_or(Ok(()), Err);
            let Some(bell) = bell else {
                // Whoever asked may be gone.
                drop(answer.send(outcome));
                continue;
            };
            match due.iter_mut().find(|(of, _)| Arc::ptr_eq(of, &bell)) {
                Some((_, due)) => due.push((answer, outcome)),
                None => due.push((bell, vec![(answer, outcome)])),
            }
        }
        due.into_iter().for_each(|(bell, due)| bell.ring(due));
    }

    /// The entries are on the disk before the transaction is committed. So no charge is without its entry; an entry without
    /// its charge is what [`Recorder::reconcile`] finds.
    fn transact(&mut self, calls: &[Call]) -> Result<(), String> {
        let text = |error: rusqlite::Error| error.to_string();
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(text)?;
        for Call { writes, .. } in calls {
            writes.carry_out(&transaction, &mut self.known).map_err(text)?;
        }
        if let Some(recorder) = &self.settings.recorder {
            let mut entries = Vec::with_capacity(calls.len());
            calls.iter().for_each(|call| call.writes.tell(self.stands_on.seq, &mut entries));
            if !entries.is_empty() {
                let place = recorder.record_blocking(&entries).map_err(|error| error.to_string())?;
                tables::stand_on(&transaction, &place).map_err(text)?;
                self.stands_on = place;
            }
        }
        transaction.commit().map_err(text)
    }
}

/// Clears up between the file and its audit record, and gives the place that the file stands on.
fn reconcile(connection: &Connection, settings: &Settings, path: &Path) -> Result<Position, StoreError> {
    let place = tables::stands_on(connection).map_err(|why| at(path, &why))?;
    let Some(recorder) = &settings.recorder else { return Ok(place) };
    let now = recorder.reconcile(place).map_err(|error| StoreError(error.to_string()))?;
    if now != place {
        tables::stand_on(connection, &now).map_err(|why| at(path, &why))?;
    }
    Ok(now)
}

/// The place in the audit record that a ledger's file stands on; `None` where it never stood on one. The file is only
/// read, and may be in use.
///
/// # Errors
/// [`StoreError`] where it cannot be read.
pub fn stands_on(path: &Path) -> Result<Option<Position>, StoreError> {
    let connection =
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(|why| at(path, &why))?;
    connection.busy_timeout(Duration::from_secs(5)).map_err(|why| at(path, &why))?;
    tables::recognize(&connection).map_err(|why| at(path, &why))?;
    if !tables::knows_records(&connection).map_err(|why| at(path, &why))? {
        return Ok(None);
    }
    let place = tables::stands_on(&connection).map_err(|why| at(path, &why))?;
    Ok(Some(place).filter(|place| place.seq > 0))
}

/// Waits for the end of a thread that has been told to end.
fn join(thread: Option<JoinHandle<()>>, path: &Path) {
    let name = thread.as_ref().and_then(|thread| thread.thread().name()).unwrap_or_default().to_owned();
    if thread.is_some_and(|thread| thread.join().is_err()) {
        tracing::error!(file = %path.display(), thread = name, "a thread of the ledger's store panicked");
    }
}

fn at(path: &Path, why: &impl std::fmt::Display) -> StoreError {
    StoreError(format!("{}: {why}", path.display()))
}

/// Takes the lock that keeps a second process out. It goes with the process, however that ends.
fn lock(path: &Path) -> Result<File, StoreError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let name = PathBuf::from(name);
    let file = private().truncate(false).open(&name).map_err(|why| at(&name, &why))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(at(path, &"in use by another process. Stop that one, or give this one a file of its own"))
        }
        Err(TryLockError::Error(why)) => Err(at(&name, &why)),
    }
}

/// Makes the file where it is not there, readable by its owner only; SQLite gives its log the same mode.
fn create(path: &Path) -> Result<(), StoreError> {
    let fresh = !path.exists();
    private().open(path).and_then(|file| file.sync_all()).map_err(|why| at(path, &why))?;
    if fresh && let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(|why| at(folder, &why))?;
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(|why| at(path, &why))?;
    }
    Ok(())
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600);
    }
    options
}

fn connect(path: &Path, settings: &Settings) -> Result<Connection, String> {
    let text = |error: rusqlite::Error| error.to_string();
    let mut connection = Connection::open(path).map_err(text)?;
    // Before anything is written: what this file is.
    tables::recognize(&connection)?;
    connection.busy_timeout(Duration::from_secs(5)).map_err(text)?;
    connection.set_prepared_statement_cache_capacity(32);
    let mode: String = connection.query_row("PRAGMA journal_mode=WAL", [], |row| row.get(0)).map_err(text)?;
    if mode != "wal" {
        return Err(format!("the file system does not allow write-ahead mode (got {mode}); use a local disk"));
    }
    connection
        .execute_batch("PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON; PRAGMA cache_size=-16384")
        .map_err(text)?;
    connection.pragma_update(None, "wal_autocheckpoint", settings.checkpoint_pages).map_err(text)?;
    if settings.check {
        let verdict: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(text)?;
        if verdict != "ok" {
            return Err(format!("the file is damaged ({verdict}); restore a backup"));
        }
    }
    tables::migrate(&mut connection, tables::STEPS)?;
    Ok(connection)
}
