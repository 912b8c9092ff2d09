//! The shapes of JSON-RPC results that are read, and nothing of them that is not used.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::Value;

use crate::chain::{Account, TransactionStatus};
use crate::x402::Key;

/// A result with the slot that it is of.
#[derive(Deserialize)]
pub(super) struct InContext<T> {
    pub(super) context: Context,
    pub(super) value: T,
}

#[derive(Deserialize)]
pub(super) struct Context {
    pub(super) slot: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct LatestBlockhash {
    pub(super) blockhash: Key,
    pub(super) last_valid_block_height: u64,
}

#[derive(Deserialize)]
pub(super) struct AccountShape {
    lamports: u64,
    owner: Key,
    data: (String, String),
}

impl AccountShape {
    /// The account, or what is wrong with it.
    pub(super) fn read(self) -> Result<Account, String> {
        let (text, encoding) = self.data;
        if encoding != "base64" {
            return Err("account data is not in base64".into());
        }
        let data = STANDARD.decode(text).map_err(|_| "account data is no base64".to_owned())?;
        Ok(Account { lamports: self.lamports, owner: self.owner, data })
    }
}

#[derive(Deserialize)]
pub(super) struct KeyedAccount {
    pub(super) pubkey: Key,
    pub(super) account: AccountShape,
}

#[derive(Deserialize)]
pub(super) struct SimulationShape {
    pub(super) err: Option<Value>,
    pub(super) logs: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct StatusShape {
    slot: u64,
    #[serde(default)]
    confirmations: Option<u64>,
    #[serde(default)]
    confirmation_status: Option<String>,
    #[serde(default)]
    err: Option<Value>,
}

impl StatusShape {
    pub(super) fn read(self) -> TransactionStatus {
        let confirmed = match self.confirmation_status.as_deref() {
            Some(status) => matches!(status, "confirmed" | "finalized"),
            // Nodes that say no status count confirmations, and stop counting at the root.
            None => self.confirmations.is_none(),
        };
        TransactionStatus { slot: self.slot, confirmed, error: self.err.map(|error| error.to_string()) }
    }
}
