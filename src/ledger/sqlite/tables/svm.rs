//! The tables of Solana's channels.

use std::sync::Arc;

use rusqlite::{Connection, Row, ToSql, params};

use super::{
    Sellers, Tables, Texts, amount, bad, blob, lines, lines_blob, run, signed, state, state_columns, texts, unsigned,
    update_or_replace,
};
use crate::amount::Asset;
use crate::clock::UnixMillis;
use crate::ledger::channel::{OnChain, Seller, Svm, Terms, Voucher};
use crate::ledger::store::{BatchKind, BatchRecord, ChannelRecord, MeteredRecord};
use crate::scheme::svm::program::ChannelStatus;
use crate::x402::Key;
use crate::x402::key::Signature;

/// Channels, batches, metered requests.
pub(super) const FIRST: &str = "
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

impl Tables for Svm {
    const TEXTS: Texts = texts!("");

    fn insert_seller(connection: &Connection, seller: &Seller) -> rusqlite::Result<()> {
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
        )
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

    fn write_channel(connection: &Connection, seller: i64, channel: &ChannelRecord) -> rusqlite::Result<()> {
        let ChannelRecord { terms, on_chain, charged, voucher, unclaimed_since, last_used, closed } = channel;
        update_or_replace(
            connection,
            "UPDATE channels SET status = ?7, deposit = ?8, claimed = ?9, distributed = ?10, closing_since = ?11,
                read_at = ?12, charged = ?13, voucher_cumulative = ?14, voucher_signature = ?15,
                unclaimed_since = ?16, last_used = ?17, closed = ?18
             WHERE id = ?1 AND seller = ?2",
            "INSERT OR REPLACE INTO channels VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18)",
            params![
                terms.id.0,
                seller,
                terms.payer.0,
                terms.authorizer.0,
                signed(terms.salt),
                signed(terms.open_slot),
                status_number(on_chain.status),
                blob(on_chain.deposit),
                blob(on_chain.claimed),
                blob(on_chain.distributed),
                on_chain.closing_since,
                on_chain.read_at.0,
                blob(*charged),
                voucher.map(|v| blob(v.cumulative)),
                voucher.map(|v| v.signature.0),
                unclaimed_since.map(|since| since.0),
                last_used.0,
                closed,
            ],
        )
    }

    /// Columns by place: a million rows are read at start, and looking names up would take longer than reading them.
    fn channel(row: &Row<'_>, sellers: &Sellers<Svm>) -> rusqlite::Result<ChannelRecord> {
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

    fn write_batch(connection: &Connection, batch: &BatchRecord) -> rusqlite::Result<()> {
        let BatchRecord { id, kind, lines, transaction, signature, last_valid_block_height, state, created_at } = batch;
        let (state, why) = state_columns(state);
        let kind = match kind {
            BatchKind::Claim => 0,
            BatchKind::Distribute => 1,
            BatchKind::Seal => 2,
            BatchKind::CleanUp => 3,
        };
        run(
            connection,
            "INSERT OR REPLACE INTO batches VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            params![
                signed(*id),
                kind,
                state,
                why,
                lines_blob(lines.iter().map(|(channel, total)| (channel.0, *total))),
                transaction,
                signature.0,
                signed(*last_valid_block_height),
                created_at.0
            ],
        )
    }

    fn batch(row: &Row<'_>) -> rusqlite::Result<BatchRecord> {
        Ok(BatchRecord {
            id: unsigned(row.get("id")?),
            kind: match row.get("kind")? {
                0 => BatchKind::Claim,
                1 => BatchKind::Distribute,
                2 => BatchKind::Seal,
                3 => BatchKind::CleanUp,
                _ => return Err(bad("batches.kind")),
            },
            lines: lines(row, Key)?,
            transaction: row.get("transaction_bytes")?,
            signature: Signature(row.get("signature")?),
            last_valid_block_height: unsigned(row.get("last_valid_block_height")?),
            state: state(row)?,
            created_at: UnixMillis(row.get("created_at")?),
        })
    }

    fn write_metered(
        connection: &Connection,
        sellers: &mut Sellers<Svm>,
        metered: &MeteredRecord,
    ) -> rusqlite::Result<()> {
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

    fn metered(row: &Row<'_>, sellers: &Sellers<Svm>) -> rusqlite::Result<MeteredRecord> {
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

    fn id_bytes(id: &Key) -> &[u8; 32] {
        &id.0
    }
}

/// The columns that channels and metered requests share: the first six.
fn terms(row: &Row<'_>, sellers: &Sellers<Svm>) -> rusqlite::Result<Terms> {
    let seller = sellers.get(row.get(1)?)?;
    Ok(Terms {
        id: Key(row.get(0)?),
        payer: Key(row.get(2)?),
        authorizer: Key(row.get(3)?),
        salt: unsigned(row.get(4)?),
        open_slot: unsigned(row.get(5)?),
        seller,
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
