//! The tables of channels on EVM networks.

use std::sync::Arc;

use rusqlite::{Connection, Row, params};

use super::{
    Sellers, Tables, Texts, amount, bad, blob, lines, lines_blob, run, signed, state, state_columns, texts, unsigned,
    update_or_replace,
};
use crate::amount::Asset;
use crate::clock::UnixMillis;
use crate::ledger::channel::evm::{EvmBatch, EvmBatchKind, NoPayment};
use crate::ledger::channel::{Evm, EvmOnChain, Voucher};
use crate::ledger::store::{ChannelRecord, RecordOf};
use crate::scheme::evm::eip712::Domain;
use crate::scheme::evm::{EvmSeller, EvmTerms, TransferMethod};
use crate::x402::evm::{Address, AnySignature, B256};

/// Channels, batches, kept answers. A voucher's signature is 65 bytes of a key's, or any number of a contract's.
pub(super) const FIRST: &str = "
CREATE TABLE evm_sellers (
    row INTEGER PRIMARY KEY,
    network TEXT NOT NULL,
    chain_id INTEGER NOT NULL,
    asset_symbol TEXT NOT NULL,
    asset_decimals INTEGER NOT NULL,
    token BLOB NOT NULL,
    token_name TEXT NOT NULL,
    token_version TEXT NOT NULL,
    transfer_method TEXT NOT NULL,
    pay_to BLOB NOT NULL,
    receiver_authorizer BLOB NOT NULL,
    withdraw_delay INTEGER NOT NULL
) STRICT;
CREATE TABLE evm_channels (
    id BLOB PRIMARY KEY NOT NULL,
    seller INTEGER NOT NULL REFERENCES evm_sellers,
    payer BLOB NOT NULL,
    payer_authorizer BLOB NOT NULL,
    salt BLOB NOT NULL,
    balance BLOB NOT NULL,
    claimed BLOB NOT NULL,
    withdrawal BLOB NOT NULL,
    withdraw_since INTEGER NOT NULL,
    withdraw_ends_at INTEGER NOT NULL,
    refund_nonce INTEGER NOT NULL,
    block INTEGER NOT NULL,
    read_at INTEGER NOT NULL,
    charged BLOB NOT NULL,
    voucher_cumulative BLOB,
    voucher_signature BLOB,
    unclaimed_since INTEGER,
    last_used INTEGER NOT NULL,
    closed INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE evm_batches (
    id INTEGER PRIMARY KEY NOT NULL,
    kind INTEGER NOT NULL,
    state INTEGER NOT NULL,
    why TEXT,
    network TEXT NOT NULL,
    token BLOB NOT NULL,
    lines BLOB NOT NULL,
    request TEXT NOT NULL,
    transaction_hash BLOB,
    created_at INTEGER NOT NULL
) STRICT;
CREATE INDEX evm_batches_open ON evm_batches (id) WHERE state = 0;
CREATE TABLE evm_metered (
    id BLOB PRIMARY KEY NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE evm_answers (
    place INTEGER PRIMARY KEY NOT NULL,
    key BLOB NOT NULL,
    fingerprint BLOB NOT NULL,
    kept_at INTEGER NOT NULL,
    status INTEGER NOT NULL,
    head BLOB NOT NULL,
    body BLOB NOT NULL
) STRICT;
";

impl Tables for Evm {
    const TEXTS: Texts = texts!("evm_");

    fn insert_seller(connection: &Connection, seller: &EvmSeller) -> rusqlite::Result<()> {
        run(
            connection,
            "INSERT INTO evm_sellers VALUES (NULL, ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
            params![
                seller.network.as_str(),
                signed(seller.chain_id),
                &*seller.asset.symbol,
                seller.asset.decimals,
                seller.token.0,
                &*seller.token_name,
                &*seller.token_version,
                seller.transfer_method.as_str(),
                seller.pay_to.0,
                seller.receiver_authorizer.0,
                signed(seller.withdraw_delay),
            ],
        )
    }

    fn seller(row: &Row<'_>) -> rusqlite::Result<EvmSeller> {
        let (network, method): (String, String) = (row.get("network")?, row.get("transfer_method")?);
        let chain_id = unsigned(row.get("chain_id")?);
        let token = Address(row.get("token")?);
        let asset = Asset {
            address: token.to_string().into(),
            symbol: row.get::<_, String>("asset_symbol")?.into(),
            decimals: row.get("asset_decimals")?,
        };
        Ok(EvmSeller {
            network: network.parse().map_err(|_| bad("evm_sellers.network"))?,
            chain_id,
            asset: Arc::new(asset),
            token,
            token_name: row.get::<_, String>("token_name")?.into(),
            token_version: row.get::<_, String>("token_version")?.into(),
            transfer_method: match method.as_str() {
                "eip3009" => TransferMethod::Eip3009,
                "permit2" => TransferMethod::Permit2,
                _ => return Err(bad("evm_sellers.transfer_method")),
            },
            pay_to: Address(row.get("pay_to")?),
            receiver_authorizer: Address(row.get("receiver_authorizer")?),
            withdraw_delay: unsigned(row.get("withdraw_delay")?),
            domain: Domain::batch_settlement(chain_id),
        })
    }

    fn write_channel(connection: &Connection, seller: i64, channel: &RecordOf<Self>) -> rusqlite::Result<()> {
        let ChannelRecord { terms, on_chain, charged, voucher, unclaimed_since, last_used, closed } = channel;
        update_or_replace(
            connection,
            "UPDATE evm_channels SET balance = ?6, claimed = ?7, withdrawal = ?8, withdraw_since = ?9,
                withdraw_ends_at = ?10, refund_nonce = ?11, block = ?12, read_at = ?13, charged = ?14,
                voucher_cumulative = ?15, voucher_signature = ?16, unclaimed_since = ?17,
                last_used = ?18, closed = ?19
             WHERE id = ?1 AND seller = ?2",
            "INSERT OR REPLACE INTO evm_channels VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19)",
            params![
                terms.id.0,
                seller,
                terms.payer.0,
                terms.payer_authorizer.0,
                terms.salt.0,
                blob(on_chain.balance),
                blob(on_chain.claimed),
                blob(on_chain.withdrawal),
                on_chain.withdraw_since,
                on_chain.withdraw_ends_at,
                signed(on_chain.refund_nonce),
                signed(on_chain.block),
                on_chain.read_at.0,
                blob(*charged),
                voucher.as_ref().map(|v| blob(v.cumulative)),
                voucher.as_ref().map(|v| v.signature.as_slice()),
                unclaimed_since.map(|since| since.0),
                last_used.0,
                closed,
            ],
        )
    }

    /// Columns by place, as for Solana's.
    fn channel(row: &Row<'_>, sellers: &Sellers<Self>) -> rusqlite::Result<RecordOf<Self>> {
        let voucher = match (row.get::<_, Option<[u8; 16]>>(14)?, row.get::<_, Option<Vec<u8>>>(15)?) {
            (Some(cumulative), Some(signature)) => {
                Some(Voucher { cumulative: amount(cumulative), signature: read_signature(&signature)? })
            }
            (None, None) => None,
            _ => return Err(bad("evm_channels.voucher_signature")),
        };
        Ok(ChannelRecord {
            terms: EvmTerms {
                id: B256(row.get(0)?),
                seller: sellers.get(row.get(1)?)?,
                payer: Address(row.get(2)?),
                payer_authorizer: Address(row.get(3)?),
                salt: B256(row.get(4)?),
            },
            on_chain: EvmOnChain {
                balance: amount(row.get(5)?),
                claimed: amount(row.get(6)?),
                withdrawal: amount(row.get(7)?),
                withdraw_since: row.get(8)?,
                withdraw_ends_at: row.get(9)?,
                refund_nonce: unsigned(row.get(10)?),
                block: unsigned(row.get(11)?),
                read_at: UnixMillis(row.get(12)?),
            },
            charged: amount(row.get(13)?),
            voucher,
            unclaimed_since: row.get::<_, Option<i64>>(16)?.map(UnixMillis),
            last_used: UnixMillis(row.get(17)?),
            closed: row.get(18)?,
        })
    }

    fn write_batch(connection: &Connection, batch: &EvmBatch) -> rusqlite::Result<()> {
        let EvmBatch { id, kind, network, token, lines, request, transaction, state, created_at } = batch;
        let (state, why) = state_columns(state);
        let kind = match kind {
            EvmBatchKind::Claim => 0,
            EvmBatchKind::Settle => 1,
        };
        run(
            connection,
            "INSERT OR REPLACE INTO evm_batches VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
            params![
                signed(*id),
                kind,
                state,
                why,
                network.as_str(),
                token.0,
                lines_blob(lines.iter().map(|(channel, total)| (channel.0, *total))),
                request,
                transaction.map(|hash| hash.0),
                created_at.0,
            ],
        )
    }

    fn batch(row: &Row<'_>) -> rusqlite::Result<EvmBatch> {
        let network: String = row.get("network")?;
        Ok(EvmBatch {
            id: unsigned(row.get("id")?),
            kind: match row.get("kind")? {
                0 => EvmBatchKind::Claim,
                1 => EvmBatchKind::Settle,
                _ => return Err(bad("evm_batches.kind")),
            },
            network: network.parse().map_err(|_| bad("evm_batches.network"))?,
            token: Address(row.get("token")?),
            lines: lines(row, B256)?,
            request: row.get("request")?,
            transaction: row.get::<_, Option<_>>("transaction_hash")?.map(B256),
            state: state(row)?,
            created_at: UnixMillis(row.get("created_at")?),
        })
    }

    fn write_metered(_: &Connection, _: &mut Sellers<Self>, metered: &NoPayment) -> rusqlite::Result<()> {
        match *metered {}
    }

    fn metered(_: &Row<'_>, _: &Sellers<Self>) -> rusqlite::Result<NoPayment> {
        Err(bad("evm_metered"))
    }

    fn id_bytes(id: &B256) -> &[u8; 32] {
        &id.0
    }
}

fn read_signature(bytes: &[u8]) -> rusqlite::Result<AnySignature> {
    AnySignature::from_bytes(bytes).map_err(|_| bad("signature"))
}
