//! What became of transactions, newest last: their standing for long, their details for a while.

use std::collections::{HashMap, VecDeque};

use sha2::{Digest, Sha256};
use solana_transaction_error::TransactionError;

use super::runtime::{Inner, Log};
use crate::x402::Key;
use crate::x402::key::Signature;

/// Transactions whose standing is known.
const TRANSACTIONS_MAX: usize = 131_072;
/// Transactions whose bytes, balances and logs are known.
const DETAILS_MAX: usize = 8_192;

/// A transaction that is in a block.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// The slot that holds it.
    pub(super) slot: u64,
    /// The slot's time in Unix seconds.
    pub(super) time: i64,
    /// How it failed, where it did.
    pub(super) error: Option<TransactionError>,
    /// More, while it is kept.
    pub(super) details: Option<Box<Details>>,
}

/// What a transaction did.
#[derive(Clone, Debug)]
pub(super) struct Details {
    /// Its bytes.
    pub(super) wire: Vec<u8>,
    /// The accounts that it names.
    pub(super) keys: Vec<Key>,
    /// What it paid for being taken.
    pub(super) fee: u64,
    /// Compute units that it took.
    pub(super) units: u64,
    /// Its log.
    pub(super) logs: Vec<Log>,
    /// Calls between programs.
    pub(super) inner: Vec<Inner>,
    /// Lamports of its accounts before and after.
    pub(super) lamports: Vec<(u64, u64)>,
    /// Tokens of its accounts before.
    pub(super) tokens_before: Vec<TokenBalance>,
    /// Tokens of its accounts after.
    pub(super) tokens_after: Vec<TokenBalance>,
}

/// What a token account held.
#[derive(Clone, Debug)]
pub(super) struct TokenBalance {
    /// Its place among the transaction's accounts.
    pub(super) index: usize,
    /// Its mint.
    pub(super) mint: Key,
    /// Its owner.
    pub(super) owner: Key,
    /// Its token program.
    pub(super) program: Key,
    /// How much.
    pub(super) amount: u64,
    /// The mint's decimals.
    pub(super) decimals: u8,
}

/// The transactions that were executed.
#[derive(Debug, Default)]
pub(super) struct History {
    entries: HashMap<Signature, Entry>,
    messages: HashMap<[u8; 32], Signature>,
    order: VecDeque<(Signature, [u8; 32])>,
    stripped: usize,
}

impl History {
    /// Whether a transaction with this message was executed, whoever signed it again.
    pub(super) fn has_message(&self, message: &[u8]) -> bool {
        self.messages.contains_key(&<[u8; 32]>::from(Sha256::digest(message)))
    }

    /// Where a transaction stands.
    pub(super) fn get(&self, id: &Signature) -> Option<&Entry> {
        self.entries.get(id)
    }

    /// Remembers an executed transaction.
    pub(super) fn push(&mut self, id: Signature, message: &[u8], entry: Entry) {
        let digest = Sha256::digest(message).into();
        self.entries.insert(id, entry);
        self.messages.insert(digest, id);
        self.order.push_back((id, digest));
        while self.order.len().saturating_sub(self.stripped) > DETAILS_MAX {
            if let Some((old, _)) = self.order.get(self.stripped)
                && let Some(entry) = self.entries.get_mut(old)
            {
                entry.details = None;
            }
            self.stripped = self.stripped.saturating_add(1);
        }
        while self.order.len() > TRANSACTIONS_MAX {
            if let Some((old, digest)) = self.order.pop_front() {
                self.entries.remove(&old);
                self.messages.remove(&digest);
                self.stripped = self.stripped.saturating_sub(1);
            }
        }
    }

    /// The transactions whose details are known, newest first.
    pub(super) fn newest_first(&self) -> impl Iterator<Item = (&Signature, &Entry)> {
        self.order.iter().rev().filter_map(|(id, _)| self.entries.get_key_value(id))
    }

    /// How many transactions are known.
    pub(super) fn len(&self) -> usize {
        self.order.len()
    }
}
