//! The tables, their migrations, and the one place where rows become records and back.
//!
//! Amounts are 16-byte big-endian blobs: SQLite's integers are signed and end at 2^63, a mint's amounts at 2^64 and
//! `Amount` at 2^128; a blob of fixed size holds them all exactly, is cheap to read, and sorts as the numbers do. A
//! `u64` that is no amount (salt, slot, height) is kept as the signed integer with the same bits. To read an amount by
//! hand: `SELECT hex(charged) FROM channels`.

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, Params, Row, ToSql, TransactionBehavior, named_params, params};

use super::Sellers;
use crate::amount::{Amount, Asset};
use crate::clock::UnixMillis;
use crate::ledger::channel::{OnChain, Seller, Terms, Voucher};
use crate::ledger::store::{
    Answer, AnswerId, AnswerMark, AnswerRecord, BatchKind, BatchRecord, BatchState, ChannelRecord, MeteredRecord,
    Snapshot, Write,
};
use crate::scheme::svm::program::ChannelStatus;
use crate::x402::Key;
use crate::x402::key::Signature;

/// Marks the file as a ledger: "Tpke" in the header's application id.
const APPLICATION_ID: i32 = 0x5470_6B65;

/// How the tables came to be what they are. A step that was released is never changed; another is added. The file's
/// `user_version` says how many it has.
pub(super) const STEPS: &[&str] = &[FIRST, ANSWERS];

/// Channels, batches, metered requests.
const FIRST: &str = "
CREATE TABLE sellers (
    row INTEGER PRIMARY KEY,
    network TEXT NOT NULL,
    asset_address TEXT NOT NULL,
    asset_symbol TEXT NOT NULL,
    asset_decimals INTEGER NOT NULL,
    mint BLOB NOT NULL,
    token_program BLOB NOT NULL,
    pay_to BLOB NOT NULL,
    fee_payer BLOB NOT NULL,
    receiver_authorizer BLOB NOT NULL,
    withdraw_delay INTEGER NOT NULL,
    treasury_owner BLOB NOT NULL
) STRICT;
CREATE TABLE channels (
    id BLOB PRIMARY KEY NOT NULL,
    seller INTEGER NOT NULL REFERENCES sellers,
    payer BLOB NOT NULL,
    authorizer BLOB NOT NULL,
    salt INTEGER NOT NULL,
    open_slot INTEGER NOT NULL,
    status INTEGER NOT NULL,
    deposit BLOB NOT NULL,
    claimed BLOB NOT NULL,
    distributed BLOB NOT NULL,
    closing_since INTEGER NOT NULL,
    read_at INTEGER NOT NULL,
    charged BLOB NOT NULL,
    voucher_cumulative BLOB,
    voucher_signature BLOB,
    unclaimed_since INTEGER,
    last_used INTEGER NOT NULL,
    closed INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE batches (
    id INTEGER PRIMARY KEY NOT NULL,
    kind INTEGER NOT NULL,
    state INTEGER NOT NULL,
    why TEXT,
    lines BLOB NOT NULL,
    transaction_bytes BLOB NOT NULL,
    signature BLOB NOT NULL,
    last_valid_block_height INTEGER NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;
CREATE INDEX batches_open ON batches (id) WHERE state = 0;
CREATE TABLE metered (
    id BLOB PRIMARY KEY NOT NULL,
    seller INTEGER NOT NULL REFERENCES sellers,
    payer BLOB NOT NULL,
    authorizer BLOB NOT NULL,
    salt INTEGER NOT NULL,
    open_slot INTEGER NOT NULL,
    deposit BLOB NOT NULL,
    expires_at INTEGER NOT NULL,
    charge BLOB,
    close_signature BLOB,
    close_height INTEGER
) STRICT, WITHOUT ROWID;
";

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
pub(super) fn write(connection: &Connection, sellers: &mut Sellers, write: &Write) -> rusqlite::Result<()> {
    match write {
        Write::Channel(channel) => write_channel(connection, sellers, channel),
        Write::ForgetChannel(id) => run(connection, "DELETE FROM channels WHERE id = ?1", params![id.0]),
        Write::Batch(batch) => write_batch(connection, batch),
        Write::Metered(metered) => write_metered(connection, sellers, metered),
        Write::ForgetMetered(id) => run(connection, "DELETE FROM metered WHERE id = ?1", params![id.0]),
        Write::Answer(record) => write_answer(connection, record),
        Write::ForgetAnswers(places) => places
            .iter()
            .try_for_each(|place| run(connection, "DELETE FROM answers WHERE place = ?1", params![signed(*place)])),
    }
}

fn run(connection: &Connection, sql: &str, params: impl Params) -> rusqlite::Result<()> {
    connection.prepare_cached(sql)?.execute(params).map(drop)
}

fn write_channel(connection: &Connection, sellers: &mut Sellers, channel: &ChannelRecord) -> rusqlite::Result<()> {
    let ChannelRecord { terms, on_chain, charged, voucher, unclaimed_since, last_used, closed } = channel;
    let seller = sellers.row(connection, &terms.seller)?;
    run(
        connection,
        "INSERT INTO channels VALUES (:id, :seller, :payer, :authorizer, :salt, :open_slot, :status, :deposit, :claimed,
            :distributed, :closing_since, :read_at, :charged, :voucher_cumulative, :voucher_signature, :unclaimed_since,
            :last_used, :closed)
         ON CONFLICT (id) DO UPDATE SET seller = :seller, status = :status, deposit = :deposit, claimed = :claimed,
            distributed = :distributed, closing_since = :closing_since, read_at = :read_at, charged = :charged,
            voucher_cumulative = :voucher_cumulative, voucher_signature = :voucher_signature,
            unclaimed_since = :unclaimed_since, last_used = :last_used, closed = :closed",
        named_params! {
            ":id": terms.id.0,
            ":seller": seller,
            ":payer": terms.payer.0,
            ":authorizer": terms.authorizer.0,
            ":salt": signed(terms.salt),
            ":open_slot": signed(terms.open_slot),
            ":status": status_number(on_chain.status),
            ":deposit": blob(on_chain.deposit),
            ":claimed": blob(on_chain.claimed),
            ":distributed": blob(on_chain.distributed),
            ":closing_since": on_chain.closing_since,
            ":read_at": on_chain.read_at.0,
            ":charged": blob(*charged),
            ":voucher_cumulative": voucher.map(|v| blob(v.cumulative)),
            ":voucher_signature": voucher.map(|v| v.signature.0),
            ":unclaimed_since": unclaimed_since.map(|since| since.0),
            ":last_used": last_used.0,
            ":closed": closed,
        },
    )
}

fn write_batch(connection: &Connection, batch: &BatchRecord) -> rusqlite::Result<()> {
    let BatchRecord { id, kind, lines, transaction, signature, last_valid_block_height, state, created_at } = batch;
    let (state, why) = match state {
        BatchState::Signed => (0, None),
        BatchState::Confirmed => (1, None),
        BatchState::Dropped { why } => (2, Some(why)),
    };
    let kind = match kind {
        BatchKind::Claim => 0,
        BatchKind::Distribute => 1,
        BatchKind::Seal => 2,
        BatchKind::CleanUp => 3,
    };
    let lines: Vec<u8> = lines.iter().flat_map(|(key, amount)| key.0.into_iter().chain(blob(*amount))).collect();
    run(
        connection,
        "INSERT OR REPLACE INTO batches VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        params![
            signed(*id),
            kind,
            state,
            why,
            lines,
            transaction,
            signature.0,
            signed(*last_valid_block_height),
            created_at.0
        ],
    )
}

fn write_metered(connection: &Connection, sellers: &mut Sellers, metered: &MeteredRecord) -> rusqlite::Result<()> {
    let MeteredRecord { terms, deposit, expires_at, charge, close } = metered;
    let seller = sellers.row(connection, &terms.seller)?;
    run(
        connection,
        "INSERT OR REPLACE INTO metered VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
        params![
            terms.id.0,
            seller,
            terms.payer.0,
            terms.authorizer.0,
            signed(terms.salt),
            signed(terms.open_slot),
            blob(*deposit),
            expires_at,
            charge.map(blob),
            close.map(|(signature, _)| signature.0),
            close.map(|(_, height)| signed(height)),
        ],
    )
}

fn write_answer(connection: &Connection, record: &AnswerRecord) -> rusqlite::Result<()> {
    let AnswerRecord { place, id, kept_at, answer: Answer { status, head, body } } = record;
    run(
        connection,
        "INSERT INTO answers VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        params![signed(*place), id.key, id.fingerprint, kept_at.0, status, head.as_ref(), body.as_ref()],
    )
}

/// Reads one kept answer.
pub(super) fn answer(connection: &Connection, place: u64) -> Result<Option<Answer>, String> {
    let read = |row: &Row<'_>| {
        let (head, body): (Vec<u8>, Vec<u8>) = (row.get(1)?, row.get(2)?);
        Ok(Answer { status: row.get(0)?, head: head.into(), body: body.into() })
    };
    let read = || {
        let mut statement = connection.prepare_cached("SELECT status, head, body FROM answers WHERE place = ?1")?;
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
pub(super) fn load(
    connection: &Connection,
    sellers: &mut Sellers,
    size: usize,
    mut take: impl FnMut(Vec<ChannelRecord>) -> bool,
) -> Result<Snapshot, String> {
    let text = |error: rusqlite::Error| format!("it cannot be read ({error}); restore a backup");
    sellers.load(connection).map_err(text)?;
    let mut statement = connection.prepare("SELECT * FROM channels").map_err(text)?;
    let mut rows = statement.query([]).map_err(text)?;
    let mut handful = Vec::with_capacity(size);
    while let Some(row) = rows.next().map_err(text)? {
        handful.push(channel(row, sellers).map_err(text)?);
        if handful.len() == size && !take(std::mem::replace(&mut handful, Vec::with_capacity(size))) {
            return Ok(Snapshot::default());
        }
    }
    take(handful);
    let collect = |sql: &str, read: &dyn Fn(&Row<'_>) -> rusqlite::Result<BatchRecord>| {
        connection.prepare(sql)?.query_map([], read)?.collect::<rusqlite::Result<Vec<_>>>()
    };
    let batches = collect("SELECT * FROM batches WHERE state = 0 ORDER BY id", &batch).map_err(text)?;
    let mut statement = connection.prepare("SELECT * FROM metered").map_err(text)?;
    let metered = statement.query_map([], |row| metered(row, sellers)).map_err(text)?;
    let metered = metered.collect::<rusqlite::Result<_>>().map_err(text)?;
    let mut statement = connection
        .prepare("SELECT place, key, fingerprint, kept_at, length(head) + length(body) FROM answers ORDER BY place")
        .map_err(text)?;
    let answers = statement.query_map([], mark).map_err(text)?.collect::<rusqlite::Result<_>>().map_err(text)?;
    let last: Option<i64> = connection
        .query_row("SELECT id FROM batches ORDER BY id DESC LIMIT 1", [], |row| row.get(0))
        .optional()
        .map_err(text)?;
    Ok(Snapshot { channels: Vec::new(), batches, metered, last_batch: last.map_or(0, unsigned), answers })
}

/// Reads the newest batches.
pub(super) fn batches(connection: &Connection, limit: usize) -> Result<Vec<BatchRecord>, String> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let read = || {
        let mut statement = connection.prepare_cached("SELECT * FROM batches ORDER BY id DESC LIMIT ?1")?;
        statement.query_map([limit], batch)?.collect::<rusqlite::Result<_>>()
    };
    read().map_err(|error| format!("the batches cannot be read: {error}"))
}

impl Sellers {
    fn load(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        let mut statement = connection.prepare("SELECT * FROM sellers")?;
        for seller in statement.query_map([], |row| Ok((row.get("row")?, seller(row)?)))? {
            let (row, seller) = seller?;
            self.by_row.entry(row).or_insert_with(|| Arc::new(seller));
        }
        Ok(())
    }

    /// A seller's row, which is made where it is not there.
    fn row(&mut self, connection: &Connection, seller: &Arc<Seller>) -> rusqlite::Result<i64> {
        if self.by_row.is_empty() {
            self.load(connection)?;
        }
        if let Some((row, _)) = self.by_row.iter().find(|(_, known)| Arc::ptr_eq(known, seller) || *known == seller) {
            return Ok(*row);
        }
        run(
            connection,
            "INSERT INTO sellers VALUES (NULL, ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
            params![
                seller.network.as_str(),
                &*seller.asset.address,
                &*seller.asset.symbol,
                seller.asset.decimals,
                seller.mint.0,
                seller.token_program.0,
                seller.pay_to.0,
                seller.fee_payer.0,
                seller.receiver_authorizer.0,
                seller.withdraw_delay,
                seller.treasury_owner.0,
            ],
        )?;
        let row = connection.last_insert_rowid();
        self.by_row.insert(row, Arc::clone(seller));
        Ok(row)
    }
}

fn seller(row: &Row<'_>) -> rusqlite::Result<Seller> {
    let network: String = row.get("network")?;
    let asset = Asset {
        address: row.get::<_, String>("asset_address")?.into(),
        symbol: row.get::<_, String>("asset_symbol")?.into(),
        decimals: row.get("asset_decimals")?,
    };
    Ok(Seller {
        network: network.parse().map_err(|_| bad("sellers.network"))?,
        asset: Arc::new(asset),
        mint: Key(row.get("mint")?),
        token_program: Key(row.get("token_program")?),
        pay_to: Key(row.get("pay_to")?),
        fee_payer: Key(row.get("fee_payer")?),
        receiver_authorizer: Key(row.get("receiver_authorizer")?),
        withdraw_delay: row.get("withdraw_delay")?,
        treasury_owner: Key(row.get("treasury_owner")?),
    })
}

/// The columns that channels and metered requests share: the first six.
fn terms(row: &Row<'_>, sellers: &Sellers) -> rusqlite::Result<Terms> {
    let seller = sellers.by_row.get(&row.get(1)?).ok_or_else(|| bad("seller"))?;
    Ok(Terms {
        id: Key(row.get(0)?),
        payer: Key(row.get(2)?),
        authorizer: Key(row.get(3)?),
        salt: unsigned(row.get(4)?),
        open_slot: unsigned(row.get(5)?),
        seller: Arc::clone(seller),
    })
}

/// Columns by place: a million rows are read at start, and looking names up would take longer than reading them.
fn channel(row: &Row<'_>, sellers: &Sellers) -> rusqlite::Result<ChannelRecord> {
    let voucher = match (row.get::<_, Option<[u8; 16]>>(13)?, row.get::<_, Option<[u8; 64]>>(14)?) {
        (Some(cumulative), Some(signature)) => {
            Some(Voucher { cumulative: amount(cumulative), signature: Signature(signature) })
        }
        (None, None) => None,
        _ => return Err(bad("channels.voucher_signature")),
    };
    Ok(ChannelRecord {
        terms: terms(row, sellers)?,
        on_chain: OnChain {
            status: status(row.get(6)?)?,
            deposit: amount(row.get(7)?),
            claimed: amount(row.get(8)?),
            distributed: amount(row.get(9)?),
            closing_since: row.get(10)?,
            read_at: UnixMillis(row.get(11)?),
        },
        charged: amount(row.get(12)?),
        voucher,
        unclaimed_since: row.get::<_, Option<i64>>(15)?.map(UnixMillis),
        last_used: UnixMillis(row.get(16)?),
        closed: row.get(17)?,
    })
}

fn batch(row: &Row<'_>) -> rusqlite::Result<BatchRecord> {
    let lines: Vec<u8> = row.get("lines")?;
    let (lines, rest) = lines.as_chunks::<48>();
    if !rest.is_empty() {
        return Err(bad("batches.lines"));
    }
    let line = |bytes: &[u8; 48]| {
        let (key, total) = bytes.split_at(32);
        let key = key.try_into().map_err(|_| bad("batches.lines"))?;
        let total = total.try_into().map_err(|_| bad("batches.lines"))?;
        Ok((Key(key), amount(total)))
    };
    Ok(BatchRecord {
        id: unsigned(row.get("id")?),
        kind: match row.get("kind")? {
            0 => BatchKind::Claim,
            1 => BatchKind::Distribute,
            2 => BatchKind::Seal,
            3 => BatchKind::CleanUp,
            _ => return Err(bad("batches.kind")),
        },
        lines: lines.iter().map(line).collect::<rusqlite::Result<_>>()?,
        transaction: row.get("transaction_bytes")?,
        signature: Signature(row.get("signature")?),
        last_valid_block_height: unsigned(row.get("last_valid_block_height")?),
        state: match row.get("state")? {
            0 => BatchState::Signed,
            1 => BatchState::Confirmed,
            2 => BatchState::Dropped { why: row.get("why")? },
            _ => return Err(bad("batches.state")),
        },
        created_at: UnixMillis(row.get("created_at")?),
    })
}

fn metered(row: &Row<'_>, sellers: &Sellers) -> rusqlite::Result<MeteredRecord> {
    let close = match (row.get("close_signature")?, row.get::<_, Option<i64>>("close_height")?) {
        (Some(signature), Some(height)) => Some((Signature(signature), unsigned(height))),
        _ => None,
    };
    Ok(MeteredRecord {
        terms: terms(row, sellers)?,
        deposit: amount(row.get("deposit")?),
        expires_at: row.get("expires_at")?,
        charge: row.get::<_, Option<_>>("charge")?.map(amount),
        close,
    })
}

fn status_number(status: ChannelStatus) -> impl ToSql {
    match status {
        ChannelStatus::Open => 0,
        ChannelStatus::Sealed => 1,
        ChannelStatus::Closing => 2,
        ChannelStatus::Distributed => 3,
    }
}

fn status(number: i64) -> rusqlite::Result<ChannelStatus> {
    match number {
        0 => Ok(ChannelStatus::Open),
        1 => Ok(ChannelStatus::Sealed),
        2 => Ok(ChannelStatus::Closing),
        3 => Ok(ChannelStatus::Distributed),
        _ => Err(bad("channels.status")),
    }
}

const fn blob(amount: Amount) -> [u8; 16] {
    amount.get().to_be_bytes()
}

const fn amount(bytes: [u8; 16]) -> Amount {
    Amount::new(u128::from_be_bytes(bytes))
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
        FIRST,
        ANSWERS,
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
        migrate(&mut connection, &WIDER[..3]).unwrap();
        assert_eq!(number(&connection, "SELECT count(*) FROM channels WHERE note = 'kept'"), 1);
        assert_eq!(number(&connection, "PRAGMA user_version"), 3);
        assert!(migrate(&mut connection, WIDER).unwrap_err().contains("nowhere"));
        assert_eq!(number(&connection, "PRAGMA user_version"), 3);
        assert_eq!(number(&connection, "SELECT count(*) FROM sqlite_schema WHERE name = 'more'"), 0);
        assert!(migrate(&mut connection, STEPS).unwrap_err().contains("newer Turnpike"));
        recognize(&connection).unwrap();
    }
}
