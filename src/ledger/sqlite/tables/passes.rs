//! Passes as rows, of both families.

use rusqlite::{Connection, Row, params};

use super::{Texts, account, account_bytes, amount, bad, blob, run};
use crate::clock::UnixMillis;
use crate::ledger::passes::{PassId, PassRecord, PassUse};

/// Passes. `id` is the SHA-256 of the token that a client holds, which is nowhere in the file; `route` is what the pass is
/// good for. Times are milliseconds of Unix time. No call is ever counted that was not paid for.
pub(super) const PASSES: &str = "
CREATE TABLE passes (
    id BLOB PRIMARY KEY NOT NULL,
    payer BLOB NOT NULL,
    network TEXT NOT NULL,
    route TEXT NOT NULL,
    calls INTEGER NOT NULL,
    used INTEGER NOT NULL CHECK (used <= calls),
    price BLOB NOT NULL,
    sold_at INTEGER NOT NULL,
    last_used INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    revoked_at INTEGER
) STRICT, WITHOUT ROWID;
CREATE TABLE evm_passes (
    id BLOB PRIMARY KEY NOT NULL,
    payer BLOB NOT NULL,
    network TEXT NOT NULL,
    route TEXT NOT NULL,
    calls INTEGER NOT NULL,
    used INTEGER NOT NULL CHECK (used <= calls),
    price BLOB NOT NULL,
    sold_at INTEGER NOT NULL,
    last_used INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    revoked_at INTEGER
) STRICT, WITHOUT ROWID;
";

pub(super) fn insert(connection: &Connection, texts: &Texts, pass: &PassRecord) -> rusqlite::Result<()> {
    run(
        connection,
        texts.insert_pass,
        params![
            pass.id.0,
            account_bytes(&pass.payer),
            pass.network.as_str(),
            &*pass.scope,
            pass.calls,
            pass.used,
            blob(pass.price),
            pass.sold_at.0,
            pass.last_used.0,
            pass.expires_at.0,
            pass.revoked_at.map(|at| at.0),
        ],
    )
}

/// Counts one more call.
pub(super) fn count(connection: &Connection, texts: &Texts, call: &PassUse) -> rusqlite::Result<()> {
    run(connection, texts.use_pass, params![call.id.0, call.at.0])
}

pub(super) fn load(connection: &Connection, texts: &Texts) -> rusqlite::Result<Vec<PassRecord>> {
    let mut statement = connection.prepare(texts.passes)?;
    statement.query_map([], pass)?.collect()
}

fn pass(row: &Row<'_>) -> rusqlite::Result<PassRecord> {
    let (payer, network, scope): (Vec<u8>, String, String) =
        (row.get("payer")?, row.get("network")?, row.get("route")?);
    let time = |column: &str| row.get(column).map(UnixMillis);
    Ok(PassRecord {
        id: PassId(row.get("id")?),
        payer: account(&payer).ok_or_else(|| bad("payer"))?,
        network: network.parse().map_err(|_| bad("network"))?,
        scope: scope.into(),
        calls: row.get("calls")?,
        used: row.get("used")?,
        price: amount(row.get("price")?),
        sold_at: time("sold_at")?,
        last_used: time("last_used")?,
        expires_at: time("expires_at")?,
        revoked_at: row.get::<_, Option<i64>>("revoked_at")?.map(UnixMillis),
    })
}
