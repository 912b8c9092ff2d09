//! What a cosigner has signed, on disk: so that neither a restart nor a crash makes it forget.
//!
//! Owns the file (SQLite in write-ahead mode, `synchronous=FULL`). [`Store::authorize`] is the one way to a signature: in
//! one transaction it compares the request with the limits, counts it, and writes down that its nonce is used, by which
//! request; when it has returned `Ok`, all of this is on the disk, and only then may a share of a signature leave. A nonce
//! that is written down already is refused, whatever the request. Refusals and what waits for an approval are kept beside
//! it, within limits. The commands of the operator open the same file while the cosigner runs.
//!
//! | table | holds |
//! |---|---|
//! | `signed` | a row for each signature that was allowed: when, by which entry of the policy, kind, digest, nonce, what it counted |
//! | `totals` | the highest total signed, for each channel |
//! | `counted` | what was counted, for each minute of the last day |
//! | `approvals` | what waits for an approval, and what has one |
//! | `refusals` | the last refusals |
//!
//! Amounts are decimal text, as they may be greater than SQLite's integers.

use std::path::{Path, PathBuf};
use std::time::Duration;

use parking_lot::Mutex;
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::policy::{self, DAY_MINUTES, HOUR_MINUTES, Limits, Moves, Tally, Verdict, minute_of};
use crate::amount::Amount;
use crate::clock::UnixMillis;
use crate::signer::rules::rule;

/// What the file says that it is: "TCos".
const APPLICATION_ID: i64 = 0x5443_6f73;
const VERSION: i64 = 1;
/// For how long signatures are remembered. Nonces live for seconds, so what is older can come back from nowhere.
const SIGNED_KEEP: Duration = Duration::from_secs(400 * 24 * 60 * 60);
/// For how long an approval may be used, and a request for one waits.
pub const APPROVAL_LIFE: Duration = Duration::from_secs(24 * 60 * 60);
/// The most refusals that are kept.
const REFUSALS_MAX: i64 = 10_000;
/// The most requests that wait for an approval; the oldest goes.
const APPROVALS_MAX: i64 = 1_000;
/// The longest text of a refusal that is kept.
const DETAIL_CHARS_MAX: usize = 500;
/// Signatures between two clearings of what is old.
const CLEARING_EVERY: i64 = 1024;
/// How long another process may hold the file.
const BUSY_WAIT: Duration = Duration::from_secs(2);
const MINUTE: Duration = Duration::from_secs(60);

/// The file.
#[derive(Debug)]
pub struct Store {
    connection: Mutex<Connection>,
    path: PathBuf,
}

/// A request that its judge has accepted, on its way to a signature.
#[derive(Clone, Debug)]
pub struct Ask<'a> {
    /// The entry of the policy that allows it.
    pub entry: &'a str,
    /// The request's kind.
    pub kind: &'static str,
    /// The hash of what would be signed.
    pub digest: [u8; 32],
    /// What may never serve a second time.
    pub nonce: [u8; 32],
    /// What it moves.
    pub moves: &'a Moves,
    /// The entry's limits.
    pub limits: &'a Limits,
    /// The time.
    pub now: UnixMillis,
}

/// Why a request is not signed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// A limit forbids it.
    #[error("{rule}: {detail}")]
    Refused {
        /// The rule's stable name.
        rule: &'static str,
        /// What was asked and what is allowed.
        detail: String,
    },
    /// The nonce has served before.
    #[error("the nonce has been used, for the request of {0}")]
    Used(String),
    /// The file cannot be read or written: nothing is signed.
    #[error("{0}")]
    File(String),
}

/// What waits for an approval, or has one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Approval {
    /// What the operator calls it by.
    pub id: String,
    /// The entry of the policy.
    pub entry: String,
    /// The request's kind.
    pub kind: String,
    /// The channels that it moves money of.
    pub channels: String,
    /// How much it would newly move, when it was last asked for.
    pub amount: String,
    /// When it was last asked for, in Unix milliseconds.
    pub asked_at: i64,
    /// Up to how much it is approved.
    pub approved: Option<String>,
}

/// A request that was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Refusal {
    /// When, in Unix milliseconds.
    pub at: i64,
    /// The network that it was for.
    pub network: String,
    /// The request's kind.
    pub kind: String,
    /// The rule's stable name.
    pub rule: String,
    /// What was asked and what is allowed.
    pub detail: String,
}

impl Store {
    /// Opens the file, and makes it where it is not there.
    ///
    /// # Errors
    /// [`StoreError::File`] with the file and what to do.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        create(path)?;
        let connection = connect(path).map_err(|why| at(path, why))?;
        Ok(Self { connection: Mutex::new(connection), path: path.to_owned() })
    }

    /// Allows a request, or says why not. Once it has returned `Ok`, the request is counted and its nonce used, for good.
    ///
    /// # Errors
    /// [`StoreError`]; nothing is counted then.
    pub fn authorize(&self, ask: &Ask<'_>) -> Result<(), StoreError> {
        let mut connection = self.connection.lock();
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate);
        let transaction = transaction.map_err(|error| self.failed(&error))?;
        let verdict = decide(&transaction, ask).map_err(|error| self.failed(&error))?;
        // What waits for an approval is written down with the refusal; a refusal counts nothing else.
        transaction.commit().map_err(|error| self.failed(&error))?;
        verdict
    }

    /// Keeps a refusal for the operator.
    ///
    /// # Errors
    /// [`StoreError::File`].
    pub fn refused(
        &self,
        network: &str,
        kind: &str,
        rule: &str,
        detail: &str,
        now: UnixMillis,
    ) -> Result<(), StoreError> {
        let detail: String = detail.chars().take(DETAIL_CHARS_MAX).collect();
        let connection = self.connection.lock();
        let write = || {
            connection.execute(
                "INSERT INTO refusals (at, network, kind, rule, detail) VALUES (?1, ?2, ?3, ?4, ?5)",
                params![now.0, network, kind, rule, detail],
            )?;
            let newest = connection.last_insert_rowid();
            connection.execute("DELETE FROM refusals WHERE id <= ?1", [newest.saturating_sub(REFUSALS_MAX)])
        };
        write().map(|_| ()).map_err(|error| self.failed(&error))
    }

    /// The last refusals, newest first.
    ///
    /// # Errors
    /// [`StoreError::File`].
    pub fn refusals(&self, most: u32) -> Result<Vec<Refusal>, StoreError> {
        let connection = self.connection.lock();
        let read = || {
            let mut rows =
                connection.prepare("SELECT at, network, kind, rule, detail FROM refusals ORDER BY id DESC LIMIT ?1")?;
            let rows = rows.query_map([most], |row| {
                Ok(Refusal {
                    at: row.get(0)?,
                    network: row.get(1)?,
                    kind: row.get(2)?,
                    rule: row.get(3)?,
                    detail: row.get(4)?,
                })
            })?;
            rows.collect::<Row<_>>()
        };
        read().map_err(|error| self.failed(&error))
    }

    /// What waits for an approval or has one, newest first.
    ///
    /// # Errors
    /// [`StoreError::File`].
    pub fn approvals(&self, now: UnixMillis) -> Result<Vec<Approval>, StoreError> {
        let connection = self.connection.lock();
        let read = || {
            let mut rows = connection.prepare(
                "SELECT id, entry, kind, channels, amount, asked_at, approved FROM approvals
                 WHERE max(asked_at, ifnull(approved_at, 0)) >= ?1 ORDER BY asked_at DESC",
            )?;
            let rows = rows.query_map([oldest(now, APPROVAL_LIFE)], |row| {
                Ok(Approval {
                    id: row.get(0)?,
                    entry: row.get(1)?,
                    kind: row.get(2)?,
                    channels: row.get(3)?,
                    amount: row.get(4)?,
                    asked_at: row.get(5)?,
                    approved: row.get(6)?,
                })
            })?;
            rows.collect::<Row<_>>()
        };
        read().map_err(|error| self.failed(&error))
    }

    /// Approves what waits under this name, once, up to `up_to` or else what was last asked for. `None` where nothing does.
    ///
    /// # Errors
    /// [`StoreError::File`].
    pub fn approve(&self, id: &str, up_to: Option<Amount>, now: UnixMillis) -> Result<Option<Amount>, StoreError> {
        let mut connection = self.connection.lock();
        let mut write = || {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let asked: Option<String> = transaction
                .query_row(
                    "SELECT amount FROM approvals WHERE id = ?1 AND asked_at >= ?2",
                    params![id, oldest(now, APPROVAL_LIFE)],
                    |row| row.get(0),
                )
                .optional()?;
            let Some(asked) = asked else { return Ok(None) };
            let approved = up_to.unwrap_or(amount(&asked)?);
            transaction.execute(
                "UPDATE approvals SET approved = ?2, approved_at = ?3 WHERE id = ?1",
                params![id, approved.to_string(), now.0],
            )?;
            transaction.commit()?;
            Ok(Some(approved))
        };
        write().map_err(|error: rusqlite::Error| self.failed(&error))
    }

    fn failed(&self, error: &rusqlite::Error) -> StoreError {
        at(&self.path, error.to_string())
    }
}

fn at(path: &Path, why: String) -> StoreError {
    StoreError::File(format!("{}: {why}; nothing is signed until this is mended", path.display()))
}

fn oldest(now: UnixMillis, life: Duration) -> i64 {
    now.0.saturating_sub(i64::try_from(life.as_millis()).unwrap_or(i64::MAX))
}

/// Makes the file readable by its owner only.
fn create(path: &Path) -> Result<(), StoreError> {
    let mut options = std::fs::OpenOptions::new();
    options.create(true).append(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path).map(|_| ()).map_err(|error| at(path, format!("cannot be opened: {error}")))
}

fn connect(path: &Path) -> Result<Connection, String> {
    let text = |error: rusqlite::Error| error.to_string();
    let connection = Connection::open(path).map_err(text)?;
    connection.busy_timeout(BUSY_WAIT).map_err(text)?;
    connection.pragma_update(None, "journal_mode", "wal").map_err(text)?;
    connection.pragma_update(None, "synchronous", "full").map_err(text)?;
    let number = |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let (application, version) = (number("application_id").map_err(text)?, number("user_version").map_err(text)?);
    match (application, version) {
        (0, 0) => connection.execute_batch(SCHEMA).map_err(text)?,
        (APPLICATION_ID, VERSION) => {}
        (APPLICATION_ID, newer) => {
            return Err(format!("was written by a newer Turnpike (version {newer}); use that one"));
        }
        _ => return Err("is no cosigner's record; give the path of another file".to_owned()),
    }
    Ok(connection)
}

const SCHEMA: &str = "
BEGIN IMMEDIATE;
CREATE TABLE signed (
    id INTEGER PRIMARY KEY, at INTEGER NOT NULL, entry TEXT NOT NULL, kind TEXT NOT NULL, digest BLOB NOT NULL,
    nonce BLOB NOT NULL UNIQUE, counted TEXT NOT NULL, approval TEXT
) STRICT;
CREATE INDEX signed_digest ON signed (digest);
CREATE INDEX signed_at ON signed (entry, at);
CREATE TABLE totals (
    entry TEXT NOT NULL, channel TEXT NOT NULL, total TEXT NOT NULL, PRIMARY KEY (entry, channel)
) STRICT, WITHOUT ROWID;
CREATE TABLE counted (
    entry TEXT NOT NULL, minute INTEGER NOT NULL, amount TEXT NOT NULL, PRIMARY KEY (entry, minute)
) STRICT, WITHOUT ROWID;
CREATE TABLE approvals (
    id TEXT PRIMARY KEY, entry TEXT NOT NULL, kind TEXT NOT NULL, channels TEXT NOT NULL, amount TEXT NOT NULL,
    asked_at INTEGER NOT NULL, approved TEXT, approved_at INTEGER
) STRICT, WITHOUT ROWID;
CREATE TABLE refusals (
    id INTEGER PRIMARY KEY AUTOINCREMENT, at INTEGER NOT NULL, network TEXT NOT NULL, kind TEXT NOT NULL,
    rule TEXT NOT NULL, detail TEXT NOT NULL
) STRICT;
PRAGMA application_id = 0x54436f73;
PRAGMA user_version = 1;
COMMIT;
";

type Row<T> = rusqlite::Result<T>;

/// An amount that this file holds.
fn amount(text: &str) -> Row<Amount> {
    text.parse().map_err(|error: crate::amount::AmountError| {
        rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(error))
    })
}

/// Judges, and where it is allowed, counts.
fn decide(transaction: &Transaction<'_>, ask: &Ask<'_>) -> Row<Result<(), StoreError>> {
    let used = transaction.query_row("SELECT at FROM signed WHERE nonce = ?1", [ask.nonce], |row| row.get::<_, i64>(0));
    if let Some(at) = used.optional()? {
        return Ok(Err(StoreError::Used(format!("{at} (Unix milliseconds)"))));
    }
    let id = approval_id(ask);
    let tally = Tally { approved: approved(transaction, &id, ask)?, ..tally(transaction, ask)? };
    let approval = match policy::judge(ask.limits, &tally, ask.now) {
        Verdict::Within => None,
        Verdict::ByApproval => Some(id),
        Verdict::Above { rule, detail } => return Ok(Err(StoreError::Refused { rule, detail })),
        Verdict::NeedsApproval { free } => {
            wait(transaction, &id, ask, tally.counts)?;
            let counts = tally.counts;
            let detail = format!(
                "{counts} would newly move, and more than {free} needs an approval: on the cosigner's machine run turnpike \
                 cosigner approve {id}"
            );
            return Ok(Err(StoreError::Refused { rule: rule::APPROVAL, detail }));
        }
    };
    count(transaction, ask, tally.counts, approval.as_deref())?;
    Ok(Ok(()))
}

/// What the request counts, and what was counted before.
fn tally(transaction: &Transaction<'_>, ask: &Ask<'_>) -> Row<Tally> {
    let mut counts = Amount::ZERO;
    for (channel, total) in &ask.moves.totals {
        let newly = total.checked_sub(signed_total(transaction, ask.entry, channel)?).unwrap_or(Amount::ZERO);
        counts = counts.saturating_add(newly);
    }
    let again = transaction
        .query_row("SELECT 1 FROM signed WHERE digest = ?1 AND entry = ?2", params![ask.digest, ask.entry], |_| Ok(()))
        .optional()?;
    if again.is_none() {
        counts = ask.moves.outright.iter().fold(counts, |sum, (_, amount)| sum.saturating_add(*amount));
    }
    let minute = minute_of(ask.now);
    // Nothing bounds these from above: a clock that was set back frees nothing.
    let signatures = transaction.query_row(
        "SELECT count(*) FROM signed WHERE entry = ?1 AND at > ?2",
        params![ask.entry, oldest(ask.now, MINUTE)],
        |row| row.get(0),
    )?;
    Ok(Tally {
        counts,
        hour: counted_since(transaction, ask.entry, minute.saturating_sub(HOUR_MINUTES))?,
        day: counted_since(transaction, ask.entry, minute.saturating_sub(DAY_MINUTES))?,
        signatures,
        approved: None,
    })
}

fn signed_total(transaction: &Transaction<'_>, entry: &str, channel: &str) -> Row<Amount> {
    let total = transaction
        .prepare_cached("SELECT total FROM totals WHERE entry = ?1 AND channel = ?2")?
        .query_row(params![entry, channel], |row| row.get::<_, String>(0))
        .optional()?;
    total.map_or(Ok(Amount::ZERO), |text| amount(&text))
}

/// From a minute on, that one included.
fn counted_since(transaction: &Transaction<'_>, entry: &str, minute: i64) -> Row<Amount> {
    let mut rows = transaction.prepare_cached("SELECT amount FROM counted WHERE entry = ?1 AND minute >= ?2")?;
    let mut sum = Amount::ZERO;
    for text in rows.query_map(params![entry, minute], |row| row.get::<_, String>(0))? {
        sum = sum.saturating_add(amount(&text?)?);
    }
    Ok(sum)
}

/// What is approved is not one transaction, as the next try has another blockhash and perhaps another total: it is a kind
/// of request that moves money of these channels, once, up to an amount.
fn approval_id(ask: &Ask<'_>) -> String {
    let mut hash = Sha256::new().chain_update(ask.entry).chain_update([0]).chain_update(ask.kind);
    for channel in ask.moves.channels() {
        hash.update([0]);
        hash.update(channel);
    }
    hash.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

/// Up to how much somebody has approved exactly this. The name is short enough to be typed, so two requests with one name
/// can be made; what else the row says is compared as well.
fn approved(transaction: &Transaction<'_>, id: &str, ask: &Ask<'_>) -> Row<Option<Amount>> {
    let approved = transaction
        .query_row(
            "SELECT approved FROM approvals WHERE id = ?1 AND approved IS NOT NULL AND approved_at >= ?2
             AND entry = ?3 AND kind = ?4 AND channels = ?5",
            params![id, oldest(ask.now, APPROVAL_LIFE), ask.entry, ask.kind, ask.moves.channels().join(" ")],
            |row| row.get::<_, String>(0),
        )
        .optional()?;
    approved.map(|text| amount(&text)).transpose()
}

fn wait(transaction: &Transaction<'_>, id: &str, ask: &Ask<'_>, counts: Amount) -> Row<()> {
    let channels = ask.moves.channels().join(" ");
    transaction.execute(
        "INSERT INTO approvals (id, entry, kind, channels, amount, asked_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
         ON CONFLICT (id) DO UPDATE SET amount = excluded.amount, asked_at = excluded.asked_at
         WHERE entry = excluded.entry AND kind = excluded.kind AND channels = excluded.channels",
        params![id, ask.entry, ask.kind, channels, counts.to_string(), ask.now.0],
    )?;
    transaction.execute(
        "DELETE FROM approvals WHERE id IN
         (SELECT id FROM approvals WHERE approved IS NULL ORDER BY asked_at DESC LIMIT -1 OFFSET ?1)",
        [APPROVALS_MAX],
    )?;
    Ok(())
}

fn count(transaction: &Transaction<'_>, ask: &Ask<'_>, counts: Amount, approval: Option<&str>) -> Row<()> {
    transaction.execute(
        "INSERT INTO signed (at, entry, kind, digest, nonce, counted, approval) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        params![ask.now.0, ask.entry, ask.kind, ask.digest, ask.nonce, counts.to_string(), approval],
    )?;
    let row = transaction.last_insert_rowid();
    for (channel, total) in &ask.moves.totals {
        if *total > signed_total(transaction, ask.entry, channel)? {
            transaction.execute(
                "INSERT INTO totals (entry, channel, total) VALUES (?1, ?2, ?3)
                 ON CONFLICT (entry, channel) DO UPDATE SET total = excluded.total",
                params![ask.entry, channel, total.to_string()],
            )?;
        }
    }
    let minute = minute_of(ask.now);
    if !counts.is_zero() {
        let before = transaction
            .query_row(
                "SELECT amount FROM counted WHERE entry = ?1 AND minute = ?2",
                params![ask.entry, minute],
                |row| row.get::<_, String>(0),
            )
            .optional()?;
        let sum = before.map_or(Ok(Amount::ZERO), |text| amount(&text))?.saturating_add(counts);
        transaction.execute(
            "INSERT OR REPLACE INTO counted (entry, minute, amount) VALUES (?1, ?2, ?3)",
            params![ask.entry, minute, sum.to_string()],
        )?;
    }
    if let Some(id) = approval {
        transaction.execute("DELETE FROM approvals WHERE id = ?1", [id])?;
    }
    if row.checked_rem(CLEARING_EVERY) == Some(0) {
        transaction.execute("DELETE FROM signed WHERE at < ?1", [oldest(ask.now, SIGNED_KEEP)])?;
        transaction.execute("DELETE FROM counted WHERE minute < ?1", [minute.saturating_sub(2 * DAY_MINUTES)])?;
    }
    Ok(())
}
