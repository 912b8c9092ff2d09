//! The port to a Solana-like chain: what flows and adapters may ask of it, whoever answers.
//!
//! Adapters: [`svm`] speaks JSON-RPC to one or several endpoints; `sandbox` is a chain of our own that answers the same
//! JSON-RPC, so nothing here knows which of them is at the other end.

pub mod evm;
pub mod rpc;
pub mod sandbox;
pub mod svm;

use std::time::Duration;

use async_trait::async_trait;

use crate::scheme::svm::program::{ChannelAccount, FormatError};
use crate::x402::Key;
use crate::x402::key::Signature;

/// A blockhash and how long it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blockhash {
    /// The hash.
    pub hash: [u8; 32],
    /// The last block height at which a transaction with this hash is taken.
    pub last_valid_block_height: u64,
    /// The slot of the answer.
    pub slot: u64,
}

/// An account as the chain holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Lamports.
    pub lamports: u64,
    /// The program that owns it.
    pub owner: Key,
    /// Its data.
    pub data: Vec<u8>,
}

/// What simulating a transaction told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Simulation {
    /// The transaction's error in the chain's words, or `None` where it would succeed.
    pub error: Option<String>,
    /// The programs' log lines.
    pub logs: Vec<String>,
}

/// Where a transaction stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransactionStatus {
    /// The slot that holds it.
    pub slot: u64,
    /// Whether at least a supermajority has voted for that slot.
    pub confirmed: bool,
    /// The transaction's error in the chain's words, where it ran and failed.
    pub error: Option<String>,
}

/// How waiting for a transaction ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Confirmation {
    /// It ran and succeeded.
    Confirmed {
        /// The slot that holds it.
        slot: u64,
    },
    /// It ran and failed; it changed nothing but its fee.
    Failed {
        /// The chain's words.
        error: String,
    },
    /// Its blockhash has expired and it is in no block: it never ran and never will.
    Expired,
}

/// Why the chain gave no answer, or none that can be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// No endpoint answered in time. The request may or may not have been carried out.
    #[error("no chain endpoint answered: {0}")]
    Unavailable(String),
    /// The chain refused the transaction before running it (preflight, bad signature, unknown blockhash).
    #[error("the chain refused the transaction: {0}")]
    Refused(String),
    /// The answer is not what the method promises.
    #[error("the chain's answer to {method} cannot be read: {what}")]
    Malformed {
        /// The method that was called.
        method: &'static str,
        /// What is wrong.
        what: String,
    },
    /// An account's data is not what its owner promises.
    #[error(transparent)]
    Format(#[from] FormatError),
}

impl ChainError {
    /// Whether the transaction was refused because its blockhash is too old or not known yet. It did not run, and the
    /// same instructions may be tried at once with a fresh blockhash.
    #[must_use]
    pub fn is_stale_blockhash(&self) -> bool {
        matches!(self, Self::Refused(error) if error.contains("BlockhashNotFound"))
    }
}

/// A Solana-like chain.
#[async_trait]
pub trait Chain: Send + Sync {
    /// A fresh blockhash.
    async fn latest_blockhash(&self) -> Result<Blockhash, ChainError>;
    /// A blockhash that is at hand without waiting and still good for a while.
    fn cached_blockhash(&self) -> Option<Blockhash> {
        None
    }
    /// The present slot.
    async fn slot(&self) -> Result<u64, ChainError>;
    /// The present block height, which blockhashes are bounded by.
    async fn block_height(&self) -> Result<u64, ChainError>;
    /// Accounts by address, in order; `None` for what does not exist. Any number: the adapter splits what is too many.
    async fn accounts(&self, keys: &[Key]) -> Result<Vec<Option<Account>>, ChainError>;
    /// The channel accounts that hold `key` at `offset` (`getProgramAccounts` with `dataSize` and `memcmp`).
    async fn channels_by(&self, offset: usize, key: &Key) -> Result<Vec<(Key, ChannelAccount)>, ChainError>;
    /// Runs a transaction without effect. Signatures are not checked.
    async fn simulate(&self, transaction: &[u8]) -> Result<Simulation, ChainError>;
    /// Sends a transaction; its return says only that a node took it.
    async fn send(&self, transaction: &[u8]) -> Result<(), ChainError>;
    /// Where transactions stand, in order; `None` for those that no node knows.
    async fn statuses(&self, ids: &[Signature]) -> Result<Vec<Option<TransactionStatus>>, ChainError>;
    /// Waits until a transaction is confirmed, failed or expired; sends it again while it is unknown and alive.
    ///
    /// # Errors
    /// [`ChainError::Unavailable`] after `deadline`, which says nothing about the transaction.
    async fn confirm(
        &self,
        transaction: &[u8],
        id: &Signature,
        last_valid_block_height: u64,
        deadline: Duration,
    ) -> Result<Confirmation, ChainError>;
    /// Lamports that an account of `bytes` must hold.
    async fn rent(&self, bytes: usize) -> Result<u64, ChainError>;

    /// One account.
    async fn account(&self, key: &Key) -> Result<Option<Account>, ChainError> {
        Ok(self.accounts(std::slice::from_ref(key)).await?.pop().flatten())
    }
}
