//! The tables, their migrations, and what rows have in common.
//!
//! Each family of chains has tables of its own, of the same kinds: its sellers, channels, batches, metered requests and
//! kept answers (`tables/svm.rs`, `tables/evm.rs`), which are the one place where rows become records and back.
//!
//! Amounts are 16-byte big-endian blobs: SQLite's integers are signed and end at 2^63, a mint's amounts at 2^64 and
//! `Amount` at 2^128; a blob of fixed size holds them all exactly, is cheap to read, and sorts as the numbers do. A
//! `u64` that is no amount (salt, slot, height) is kept as the signed integer with the same bits. To read an amount by
//! hand: `SELECT hex(charged) FROM channels`.

mod evm;
mod passes;
mod svm;

use std::collections::HashMap;
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, Params, Row, ToSql, TransactionBehavior, params};

use crate::amount::Amount;
use crate::audit::{EntryHash, Position};
use crate::clock::{Day, UnixMillis};
use crate::ledger::channel::{ChannelTerms, Family};
use crate::ledger::payers::Spend;
use crate::ledger::store::{
    Answer, AnswerId, AnswerMark, AnswerRecord, BatchState, RecordOf, Snapshot, SpentRecord, Write,
};
use crate::x402::evm::Address;
use crate::x402::{Account, Key};

/// Marks the file as a ledger: "Tpke" in the header's application id.
const APPLICATION_ID: i32 = 0x5470_6B65;

/// How the tables came to be what they are. A step that was released is never changed; another is added. The file's
/// `user_version` says how many it has.
pub(super) const STEPS: &[&str] = &[svm::FIRST, ANSWERS, evm::FIRST, SPENT, AUDIT, passes::PASSES];

/// How a family's records are rows.
pub(super) trait Tables: Family {
    /// What is said to its tables.
    const TEXTS: Texts;

    fn insert_seller(connection: &Connection, seller: &Self::Seller) -> rusqlite::Result<()>;
    fn seller(row: &Row<'_>) -> rusqlite::Result<Self::Seller>;
    fn write_channel(connection: &Connection, seller: i64, channel: &RecordOf<Self>) -> rusqlite::Result<()>;
    fn channel(row: &Row<'_>, sellers: &Sellers<Self>) -> rusqlite::Result<RecordOf<Self>>;
    fn write_batch(connection: &Connection, batch: &Self::Batch) -> rusqlite::Result<()>;
    fn batch(row: &Row<'_>) -> rusqlite::Result<Self::Batch>;
    fn write_metered(
        connection: &Connection,
        sellers: &mut Sellers<Self>,
        metered: &Self::Metered,
    ) -> rusqlite::Result<()>;
    fn metered(row: &Row<'_>, sellers: &Sellers<Self>) -> rusqlite::Result<Self::Metered>;
    fn id_bytes(id: &Self::Id) -> &[u8; 32];
}

/// What is said to a family's tables, whose names differ in how they begin.
pub(super) struct Texts {
    sellers: &'static str,
    channels: &'static str,
    forget_channel: &'static str,
    open_batches: &'static str,
    newest_batches: &'static str,
    last_batch: &'static str,
    metered: &'static str,
    forget_metered: &'static str,
    marks: &'static str,
    insert_answer: &'static str,
    forget_answer: &'static str,
    spent: &'static str,
    spent_before: &'static str,
    insert_spent: &'static str,
    forget_spent: &'static str,
    passes: &'static str,
    insert_pass: &'static str,
    use_pass: &'static str,
    revoke_pass: &'static str,
    forget_pass: &'static str,
    /// Reads an answer by its place.
    pub(super) answer: &'static str,
}

macro_rules! texts {
    ($prefix:literal) => {
        Texts {
            sellers: concat!("SELECT * FROM ", $prefix, "sellers"),
            channels: concat!("SELECT * FROM ", $prefix, "channels"),
            forget_channel: concat!("DELETE FROM ", $prefix, "channels WHERE id = ?1"),
            open_batches: concat!("SELECT * FROM ", $prefix, "batches WHERE state = 0 ORDER BY id"),
            newest_batches: concat!("SELECT * FROM ", $prefix, "batches ORDER BY id DESC LIMIT ?1"),
            last_batch: concat!("SELECT id FROM ", $prefix, "batches ORDER BY id DESC LIMIT 1"),
            metered: concat!("SELECT * FROM ", $prefix, "metered"),
            forget_metered: concat!("DELETE FROM ", $prefix, "metered WHERE id = ?1"),
            marks: concat!(
                "SELECT place, key, fingerprint, kept_at, length(head) + length(body) FROM ",
                $prefix,
                "answers ORDER BY place"
            ),
            insert_answer: concat!("INSERT INTO ", $prefix, "answers VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)"),
            forget_answer: concat!("DELETE FROM ", $prefix, "answers WHERE place = ?1"),
            spent: concat!("SELECT payer, scope, day, amount FROM ", $prefix, "spent ORDER BY payer, scope"),
            spent_before: concat!("SELECT day, amount FROM ", $prefix, "spent WHERE payer = ?1 AND scope = ?2"),
            insert_spent: concat!("INSERT OR REPLACE INTO ", $prefix, "spent VALUES (?1, ?2, ?3, ?4)"),
            forget_spent: concat!("DELETE FROM ", $prefix, "spent WHERE day < ?1"),
            passes: concat!("SELECT * FROM ", $prefix, "passes"),
            insert_pass: concat!(
                "INSERT INTO ",
                $prefix,
                "passes VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)"
            ),
            use_pass: concat!(
                "UPDATE ",
                $prefix,
                "passes SET used = used + 1, last_used = max(last_used, ?2) WHERE id = ?1"
            ),
            revoke_pass: concat!("UPDATE ", $prefix, "passes SET revoked_at = ?2 WHERE id = ?1"),
            forget_pass: concat!("DELETE FROM ", $prefix, "passes WHERE id = ?1"),
            answer: concat!("SELECT status, head, body FROM ", $prefix, "answers WHERE place = ?1"),
        }
    };
}
use texts;

/// Kept answers. The body is last, so that reading the rest of a row does not read it.
const ANSWERS: &str = "
CREATE TABLE answers (
    place INTEGER PRIMARY KEY NOT NULL,
    key BLOB NOT NULL,
    fingerprint BLOB NOT NULL,
    kept_at INTEGER NOT NULL,
    status INTEGER NOT NULL,
    head BLOB NOT NULL,
    body BLOB NOT NULL
) STRICT;
";

/// What payers have spent, of the latest day on which they did. `scope` is empty for the limit of all routes that have
/// none of their own; `day` counts from 1970-01-01 in the limit's time zone.
const SPENT: &str = "
CREATE TABLE spent (
    payer BLOB NOT NULL,
    scope TEXT NOT NULL,
    day INTEGER NOT NULL,
    amount BLOB NOT NULL,
    PRIMARY KEY (payer, scope)
) STRICT, WITHOUT ROWID;
CREATE TABLE evm_spent (
    payer BLOB NOT NULL,
    scope TEXT NOT NULL,
    day INTEGER NOT NULL,
    amount BLOB NOT NULL,
    PRIMARY KEY (payer, scope)
) STRICT, WITHOUT ROWID;
";

/// The place in the audit record that the file stands on: the last entry that was written with what is in it.
const AUDIT: &str = "
CREATE TABLE audit (
    one INTEGER PRIMARY KEY NOT NULL CHECK (one = 1),
    seq INTEGER NOT NULL,
    hash BLOB NOT NULL
) STRICT;
";

/// Whether the file is of a form that stands on audit records.
pub(super) fn knows_records(connection: &Connection) -> rusqlite::Result<bool> {
    connection.query_row("SELECT count(*) FROM sqlite_schema WHERE name = 'audit'", [], |row| row.get::<_, bool>(0))
}

/// The place in the audit record that the file stands on; that before the first entry where it never stood on one.
pub(super) fn stands_on(connection: &Connection) -> rusqlite::Result<Position> {
    let read = |row: &Row<'_>| Ok(Position { seq: unsigned(row.get(0)?), hash: EntryHash(row.get(1)?) });
    let place = connection.query_row("SELECT seq, hash FROM audit", [], read).optional()?;
    Ok(place.unwrap_or_default())
}

/// Keeps the place in the audit record that the file stands on.
pub(super) fn stand_on(connection: &Connection, place: &Position) -> rusqlite::Result<()> {
    run(connection, "INSERT OR REPLACE INTO audit VALUES (1, ?1, ?2)", params![signed(place.seq), place.hash.0])
}

/// Makes sure that the file is empty or a ledger, before anything is written to it.
pub(super) fn recognize(connection: &Connection) -> Result<(), String> {
    let number = |pragma: &str| connection.query_row(pragma, [], |row| row.get::<_, i32>(0));
    let found = number("PRAGMA application_id").and_then(|id| {
        let tables = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0))?;
        Ok((id, tables))
    });
    match found {
        Ok((APPLICATION_ID, _) | (_, 0)) => Ok(()),
        Ok(_) => Err("this is an SQLite file, but not a ledger; give the ledger a file of its own".to_owned()),
        Err(why) => Err(format!("this file cannot be read as a ledger ({why}); give another, or restore a backup")),
    }
}

/// Brings the tables to the present form, each step whole or not at all.
pub(super) fn migrate(connection: &mut Connection, steps: &[&str]) -> Result<(), String> {
    let text = |error: rusqlite::Error| format!("the tables cannot be brought up to date: {error}");
    let has: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(text)?;
    let done = usize::try_from(has).unwrap_or(usize::MAX);
    if done > steps.len() {
        return Err(format!(
            "written by a newer Turnpike (form {has}; this one knows {}). Run that version, or restore a backup",
            steps.len()
        ));
    }
    for (version, step) in (1i64..).zip(steps).skip(done) {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(text)?;
        transaction.execute_batch(step).map_err(text)?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID).map_err(text)?;
        transaction.pragma_update(None, "user_version", version).map_err(text)?;
        transaction.commit().map_err(text)?;
    }
    Ok(())
}

/// Carries out one write.
pub(super) fn write<F: Tables>(
    connection: &Connection,
    sellers: &mut Sellers<F>,
    write: &Write<F>,
) -> rusqlite::Result<()> {
    match write {
        Write::Channel(channel) => {
            let seller = sellers.row(connection, channel.terms.seller())?;
            F::write_channel(connection, seller, channel)
        }
        // It went to the audit record before.
        Write::About(_) => Ok(()),
        Write::ForgetChannel(id) => run(connection, F::TEXTS.forget_channel, params![F::id_bytes(id)]),
        Write::Batch(batch) => F::write_batch(connection, batch),
        Write::Metered(metered) => F::write_metered(connection, sellers, metered),
        Write::ForgetMetered(id) => run(connection, F::TEXTS.forget_metered, params![F::id_bytes(id)]),
        Write::Answer(record) => write_answer(connection, F::TEXTS.insert_answer, record),
        Write::ForgetAnswers(places) => {
            places.iter().try_for_each(|place| run(connection, F::TEXTS.forget_answer, params![signed(*place)]))
        }
        Write::Spend(spend) => write_spend(connection, &F::TEXTS, spend),
        Write::ForgetSpent(before) => run(connection, F::TEXTS.forget_spent, params![before.0]),
        Write::Pass(pass) => passes::insert(connection, &F::TEXTS, pass),
        Write::PassUsed(call) => passes::count(connection, &F::TEXTS, call),
        Write::RevokePass(pass) => {
            run(connection, F::TEXTS.revoke_pass, params![pass.id.0, pass.revoked_at.map(|at| at.0)])
        }
        Write::ForgetPasses(ids) => ids.iter().try_for_each(|id| run(connection, F::TEXTS.forget_pass, params![id.0])),
    }
}

fn run(connection: &Connection, sql: &str, params: impl Params) -> rusqlite::Result<()> {
    connection.prepare_cached(sql)?.execute(params).map(drop)
}

/// Writes a row that most often is there already, which costs less to update than to insert and find there. Both statements
/// take the same values by their places, which a table's columns have: looking names up takes as long as the rest.
///
/// The update leaves a reference to another table as it is, and finds no row where that differs. To write one, SQLite
/// looks the other row up and copies each page first, in case there is none.
fn update_or_replace(
    connection: &Connection,
    update: &str,
    replace: &str,
    values: &[&dyn ToSql],
) -> rusqlite::Result<()> {
    match connection.prepare_cached(update)?.execute(values)? {
        0 => run(connection, replace, values),
        _ => Ok(()),
    }
}

fn write_answer(connection: &Connection, sql: &'static str, record: &AnswerRecord) -> rusqlite::Result<()> {
    let AnswerRecord { place, id, kept_at, answer: Answer { status, head, body } } = record;
    run(
        connection,
        sql,
        params![signed(*place), id.key, id.fingerprint, kept_at.0, status, head.as_ref(), body.as_ref()],
    )
}

fn write_spend(connection: &Connection, texts: &Texts, spend: &Spend) -> rusqlite::Result<()> {
    let payer = account_bytes(&spend.payer);
    let read = |row: &Row<'_>| Ok((Day(row.get(0)?), amount(row.get(1)?)));
    let mut statement = connection.prepare_cached(texts.spent_before)?;
    let before = statement.query_row(params![payer, &*spend.scope], read).optional()?;
    let (day, amount) = spend.after(before);
    run(connection, texts.insert_spent, params![payer, &*spend.scope, day.0, blob(amount)])
}

fn spent(row: &Row<'_>) -> rusqlite::Result<SpentRecord> {
    let (payer, scope): (Vec<u8>, String) = (row.get(0)?, row.get(1)?);
    let payer = account(&payer).ok_or_else(|| bad("payer"))?;
    Ok(SpentRecord { payer, scope: scope.into(), day: Day(row.get(2)?), amount: amount(row.get(3)?) })
}

/// Reads one kept answer, by [`Texts::answer`].
pub(super) fn answer(connection: &Connection, sql: &'static str, place: u64) -> Result<Option<Answer>, String> {
    let read = |row: &Row<'_>| {
        let (head, body): (Vec<u8>, Vec<u8>) = (row.get(1)?, row.get(2)?);
        Ok(Answer { status: row.get(0)?, head: head.into(), body: body.into() })
    };
    let read = || {
        let mut statement = connection.prepare_cached(sql)?;
        statement.query_row([signed(place)], read).optional()
    };
    read().map_err(|error: rusqlite::Error| format!("an answer cannot be read: {error}"))
}

fn mark(row: &Row<'_>) -> rusqlite::Result<AnswerMark> {
    Ok(AnswerMark {
        place: unsigned(row.get(0)?),
        id: AnswerId { key: row.get(1)?, fingerprint: row.get(2)? },
        kept_at: UnixMillis(row.get(3)?),
        bytes: unsigned(row.get(4)?),
    })
}

/// Reads everything that a restart needs; channels in handfuls of `size`, until `take` wants no more.
pub(super) fn load<F: Tables>(
    connection: &Connection,
    sellers: &mut Sellers<F>,
    size: usize,
    mut take: impl FnMut(Vec<RecordOf<F>>) -> bool,
) -> Result<Snapshot<F>, String> {
    let text = |error: rusqlite::Error| format!("it cannot be read ({error}); restore a backup");
    sellers.load(connection).map_err(text)?;
    let mut statement = connection.prepare(F::TEXTS.channels).map_err(text)?;
    let mut rows = statement.query([]).map_err(text)?;
    let mut handful = Vec::with_capacity(size);
    while let Some(row) = rows.next().map_err(text)? {
        handful.push(F::channel(row, sellers).map_err(text)?);
        if handful.len() == size && !take(std::mem::replace(&mut handful, Vec::with_capacity(size))) {
            return Ok(Snapshot::default());
        }
    }
    take(handful);
    let collect = |sql: &str, read: &dyn Fn(&Row<'_>) -> rusqlite::Result<F::Batch>| {
        connection.prepare(sql)?.query_map([], read)?.collect::<rusqlite::Result<Vec<_>>>()
    };
    let batches = collect(F::TEXTS.open_batches, &F::batch).map_err(text)?;
    let mut statement = connection.prepare(F::TEXTS.metered).map_err(text)?;
    let metered = statement.query_map([], |row| F::metered(row, sellers)).map_err(text)?;
    let metered = metered.collect::<rusqlite::Result<_>>().map_err(text)?;
    let mut statement = connection.prepare(F::TEXTS.marks).map_err(text)?;
    let answers = statement.query_map([], mark).map_err(text)?.collect::<rusqlite::Result<_>>().map_err(text)?;
    let mut statement = connection.prepare(F::TEXTS.spent).map_err(text)?;
    let spent = statement.query_map([], spent).map_err(text)?.collect::<rusqlite::Result<_>>().map_err(text)?;
    let passes = passes::load(connection, &F::TEXTS).map_err(text)?;
    let last: Option<i64> = connection.query_row(F::TEXTS.last_batch, [], |row| row.get(0)).optional().map_err(text)?;
    Ok(Snapshot {
        channels: Vec::new(),
        batches,
        metered,
        last_batch: last.map_or(0, unsigned),
        answers,
        spent,
        passes,
    })
}

/// Reads the newest batches.
pub(super) fn batches<F: Tables>(connection: &Connection, limit: usize) -> Result<Vec<F::Batch>, String> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let read = || {
        let mut statement = connection.prepare_cached(F::TEXTS.newest_batches)?;
        statement.query_map([limit], F::batch)?.collect::<rusqlite::Result<_>>()
    };
    read().map_err(|error| format!("the batches cannot be read: {error}"))
}

/// The sellers that a family's tables know, by their row.
pub(super) struct Sellers<F: Family> {
    by_row: HashMap<i64, Arc<F::Seller>>,
}

impl<F: Family> Default for Sellers<F> {
    fn default() -> Self {
        Self { by_row: HashMap::new() }
    }
}

impl<F: Tables> Sellers<F> {
    fn load(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        let mut statement = connection.prepare(F::TEXTS.sellers)?;
        for seller in statement.query_map([], |row| Ok((row.get("row")?, F::seller(row)?)))? {
            let (row, seller) = seller?;
            self.by_row.entry(row).or_insert_with(|| Arc::new(seller));
        }
        Ok(())
    }

    /// A seller's row, which is made where it is not there.
    fn row(&mut self, connection: &Connection, seller: &Arc<F::Seller>) -> rusqlite::Result<i64> {
        if self.by_row.is_empty() {
            self.load(connection)?;
        }
        if let Some((row, _)) = self.by_row.iter().find(|(_, known)| Arc::ptr_eq(known, seller) || *known == seller) {
            return Ok(*row);
        }
        F::insert_seller(connection, seller)?;
        let row = connection.last_insert_rowid();
        self.by_row.insert(row, Arc::clone(seller));
        Ok(row)
    }

    /// The seller of a row that names it.
    fn get(&self, row: i64) -> rusqlite::Result<Arc<F::Seller>> {
        self.by_row.get(&row).cloned().ok_or_else(|| bad("seller"))
    }
}

/// A batch's lines as one blob: for each the 32 bytes of its channel, then its amount.
fn lines_blob(lines: impl Iterator<Item = ([u8; 32], Amount)>) -> Vec<u8> {
    lines.flat_map(|(channel, total)| channel.into_iter().chain(blob(total))).collect()
}

/// A batch's column `lines`.
fn lines<I>(row: &Row<'_>, channel: impl Fn([u8; 32]) -> I) -> rusqlite::Result<Vec<(I, Amount)>> {
    let bytes: Vec<u8> = row.get("lines")?;
    let (lines, []) = bytes.as_chunks::<48>() else { return Err(bad("lines")) };
    let line = |line: &[u8; 48]| {
        let (id, total) = (line.first_chunk().copied(), line.last_chunk().copied());
        id.zip(total).map(|(id, total)| (channel(id), amount(total))).ok_or_else(|| bad("lines"))
    };
    lines.iter().map(line).collect()
}

/// A batch's columns `state` and `why`.
fn state_columns(state: &BatchState) -> (i64, Option<&str>) {
    match state {
        BatchState::Signed => (0, None),
        BatchState::Confirmed => (1, None),
        BatchState::Dropped { why } => (2, Some(why)),
    }
}

/// A batch's columns `state` and `why`.
fn state(row: &Row<'_>) -> rusqlite::Result<BatchState> {
    match row.get("state")? {
        0 => Ok(BatchState::Signed),
        1 => Ok(BatchState::Confirmed),
        2 => Ok(BatchState::Dropped { why: row.get("why")? }),
        _ => Err(bad("state")),
    }
}

const fn blob(amount: Amount) -> [u8; 16] {
    amount.get().to_be_bytes()
}

const fn amount(bytes: [u8; 16]) -> Amount {
    Amount::new(u128::from_be_bytes(bytes))
}

/// The two families' accounts differ in length.
const fn account_bytes(account: &Account) -> &[u8] {
    match account {
        Account::Svm(key) => &key.0,
        Account::Evm(address) => &address.0,
    }
}

fn account(bytes: &[u8]) -> Option<Account> {
    let svm = bytes.try_into().ok().map(|key| Account::Svm(Key(key)));
    svm.or_else(|| bytes.try_into().ok().map(|address| Account::Evm(Address(address))))
}

const fn signed(number: u64) -> i64 {
    number.cast_signed()
}

const fn unsigned(number: i64) -> u64 {
    number.cast_unsigned()
}

/// A column that holds what this program does not write.
fn bad(column: &'static str) -> rusqlite::Error {
    rusqlite::Error::InvalidColumnName(format!("{column} holds an unknown value"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIDER: &[&str] = &[
        svm::FIRST,
        ANSWERS,
        evm::FIRST,
        SPENT,
        AUDIT,
        passes::PASSES,
        "ALTER TABLE channels ADD COLUMN note TEXT; UPDATE channels SET note = 'kept'",
        "CREATE TABLE more (a); SELECT * FROM nowhere",
    ];

    fn number(connection: &Connection, sql: &str) -> i64 {
        connection.query_row(sql, [], |row| row.get(0)).unwrap()
    }

    #[test]
    fn steps_that_are_missing_are_taken_and_a_failed_one_leaves_nothing() {
        let mut connection = Connection::open_in_memory().unwrap();
        recognize(&connection).unwrap();
        migrate(&mut connection, STEPS).unwrap();
        connection
            .execute_batch(
                "INSERT INTO sellers VALUES (1, 'n', 'a', 's', 6, x'', x'', x'', x'', x'', 1, x'');
                 INSERT INTO channels VALUES (x'01', 1, x'', x'', 1, 1, 0, x'', x'', x'', 0, 0, x'', NULL, NULL, NULL, 0, 0)",
            )
            .unwrap();
        migrate(&mut connection, STEPS).unwrap();
        let one_more = STEPS.len() + 1;
        migrate(&mut connection, &WIDER[..one_more]).unwrap();
        assert_eq!(number(&connection, "SELECT count(*) FROM channels WHERE note = 'kept'"), 1);
        assert_eq!(number(&connection, "PRAGMA user_version"), i64::try_from(one_more).unwrap());
        assert!(migrate(&mut connection, WIDER).unwrap_err().contains("nowhere"));
        assert_eq!(number(&connection, "PRAGMA user_version"), i64::try_from(one_more).unwrap());
        assert_eq!(number(&connection, "SELECT count(*) FROM sqlite_schema WHERE name = 'more'"), 0);
        assert!(migrate(&mut connection, STEPS).unwrap_err().contains("newer Turnpike"));
        recognize(&connection).unwrap();
    }
}
