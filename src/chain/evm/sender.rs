//! Sends transactions for one gas key and sees each to its end.
//!
//! Owns the account's nonces. A transaction goes through three steps, each of which the caller takes: it is prepared
//! and signed ([`Sender::prepare`]) and may be written down, it is sent ([`Sender::send`]), and it is waited for
//! ([`Sender::wait`]). Promises:
//!
//! - no two transactions of one sender share a nonce, but for replacements of one and the same;
//! - a nonce that nothing was sent with is given to the next transaction, and a gap that holds up later ones is closed;
//! - a transaction that is not mined in time is sent again with a higher fee under the same nonce, up to the operator's
//!   cap, and whichever of them is mined counts as that transaction;
//! - [`Fate::Superseded`] and [`NotSent`] say that a transaction has not run and never will. What is doubtful is
//!   [`Fate::Unknown`], is looked after all the same, and can be waited for again.
//!
//! Nothing is kept on disk. After a restart the nonces are read from the chain, and a transaction that was written down
//! before can be taken up again ([`Sender::adopt`]). One key must not be used by two processes at once: they would keep
//! using up each other's nonces, which costs time and gas but never runs anything twice.

mod outcome;
mod upkeep;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

pub use self::outcome::{Fate, NotSent, PrepareError};
use super::fees::{FeeLimits, Fees};
use super::key::GasKey;
use super::nonces::Nonces;
use super::transaction::{NotATransaction, Signed, Unsigned};
use super::{Call, Counted, EvmChain, EvmError, Receipt, Refusal, SendError};
use crate::x402::evm::{Address, B256};

/// What is added to an estimate of gas, in percent: the state may have changed when the transaction runs.
const GAS_MARGIN_PERCENT: u64 = 25;
/// How often in a row a nonce has to be used up without a receipt of ours, before ours is said to be superseded.
const SUPERSEDED_LOOKS: u32 = 3;

/// How a sender works.
#[derive(Clone, Copy, Debug)]
pub struct SenderOptions {
    /// What may be paid for gas.
    pub fees: FeeLimits,
    /// The most gas that one transaction may use.
    pub gas_limit_max: u64,
    /// How many blocks deep a transaction must be; 1 is the block that holds it.
    pub confirmations: u64,
    /// The most transactions that may be unmined at once.
    pub in_flight_max: usize,
    /// After how long the first unmined transaction is sent again.
    pub resend_after: Duration,
    /// After how long the first unmined transaction is replaced by one that pays more.
    pub bump_after: Duration,
    /// After how long a transaction that is not ours is replaced, where it holds up ours: it was sent before a restart.
    pub orphan_after: Duration,
    /// The first pause between two looks at a transaction; it grows by half each time.
    pub poll_min: Duration,
    /// The longest pause between two looks at a transaction.
    pub poll_max: Duration,
}

impl SenderOptions {
    /// What fits public chains.
    pub const DEFAULT: Self = Self {
        fees: FeeLimits::DEFAULT,
        gas_limit_max: 15_000_000,
        confirmations: 1,
        in_flight_max: 16,
        resend_after: Duration::from_secs(6),
        bump_after: Duration::from_secs(30),
        orphan_after: Duration::from_secs(120),
        poll_min: Duration::from_millis(250),
        poll_max: Duration::from_secs(2),
    };
}

/// A transaction and its replacements, all of one nonce, of which at most one ever runs.
#[derive(Clone)]
pub struct Submission(Arc<Tracked>);

struct Tracked {
    nonce: u64,
    versions: Mutex<Vec<Signed>>,
}

impl Submission {
    fn new(signed: Signed) -> Self {
        Self(Arc::new(Tracked { nonce: signed.unsigned().nonce, versions: Mutex::new(vec![signed]) }))
    }

    /// The nonce that all versions share.
    #[must_use]
    pub fn nonce(&self) -> u64 {
        self.0.nonce
    }

    /// The hashes of all versions, the first one first.
    #[must_use]
    pub fn hashes(&self) -> Vec<B256> {
        self.0.versions.lock().iter().map(Signed::hash).collect()
    }

    /// The hash of the version that was sent last.
    #[must_use]
    pub fn hash(&self) -> B256 {
        self.0.versions.lock().last().map_or(B256::ZERO, Signed::hash)
    }

    /// Whether this is the very same, and not another transaction for the same purpose.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    fn latest(&self) -> Option<Signed> {
        self.0.versions.lock().last().cloned()
    }
}

impl fmt::Debug for Submission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Submission").field("nonce", &self.0.nonce).field("hashes", &self.hashes()).finish()
    }
}

/// A transaction that is signed and not sent. Dropped, it gives its nonce back.
pub struct Prepared {
    sender: Sender,
    signed: Signed,
    sent: bool,
}

impl Prepared {
    /// The signed transaction, to be written down before it is sent.
    #[must_use]
    pub const fn signed(&self) -> &Signed {
        &self.signed
    }
}

impl fmt::Debug for Prepared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Prepared").field(&self.signed).finish()
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        if !self.sent {
            self.sender.0.state.lock().release(self.signed.unsigned().nonce);
        }
    }
}

/// What of the account's nonces is where.
#[derive(Default)]
struct State {
    nonces: Nonces,
    /// Taken, and not sent yet.
    reserved: BTreeSet<u64>,
    /// Sent, and not known to be mined for good.
    pending: BTreeMap<u64, Pending>,
    /// The first nonce that is in no block, and since when it is the first.
    first: Option<(u64, Instant)>,
}

struct Pending {
    submission: Submission,
    sent_at: Instant,
    bumped_at: Instant,
    /// A node said that this version pays too little.
    too_cheap: bool,
    /// The newest block when its nonce was first seen to be used.
    used_at: Option<u64>,
}

impl Pending {
    fn new(submission: Submission) -> Self {
        let now = Instant::now();
        Self { submission, sent_at: now, bumped_at: now, too_cheap: false, used_at: None }
    }
}

impl State {
    fn release(&mut self, nonce: u64) {
        self.reserved.remove(&nonce);
        self.pending.remove(&nonce);
        self.nonces.give_back(nonce);
    }

    fn in_flight(&self) -> usize {
        let unmined = self.pending.values().filter(|pending| pending.used_at.is_none()).count();
        unmined.saturating_add(self.reserved.len())
    }
}

/// Sends transactions for one gas key. Cheap to clone: clones share the account's nonces.
#[derive(Clone)]
pub struct Sender(Arc<Inner>);

struct Inner {
    chain: Arc<dyn EvmChain>,
    key: GasKey,
    options: SenderOptions,
    state: Mutex<State>,
    /// Whether the nonces were read from the chain; held while they are.
    started: tokio::sync::Mutex<bool>,
    /// Held while the first unmined transaction is looked after, which one task at a time does for all.
    upkeep: tokio::sync::Mutex<()>,
}

impl fmt::Debug for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").field("key", &self.0.key).finish_non_exhaustive()
    }
}

impl Sender {
    /// A sender for the account of `key`. It asks the chain for the account's nonces when it first needs one.
    #[must_use]
    pub fn new(chain: Arc<dyn EvmChain>, key: GasKey, options: SenderOptions) -> Self {
        let (state, started) = (Mutex::default(), tokio::sync::Mutex::new(false));
        Self(Arc::new(Inner { chain, key, options, state, started, upkeep: tokio::sync::Mutex::default() }))
    }

    /// The account that pays for gas.
    #[must_use]
    pub fn address(&self) -> Address {
        self.0.key.address()
    }

    /// The gas that a call is given: an estimate and a margin.
    ///
    /// # Errors
    /// [`EvmError::Reverted`] where the call would revert, in [`PrepareError::Chain`], and [`PrepareError`] else.
    pub async fn gas_for(&self, call: &Call) -> Result<u64, PrepareError> {
        let gas = self.0.chain.estimate_gas(self.address(), call).await?;
        let gas = gas.saturating_add(gas / 100 * GAS_MARGIN_PERCENT);
        let limit = self.0.options.gas_limit_max;
        if gas > limit { Err(PrepareError::GasAboveLimit { gas, limit }) } else { Ok(gas) }
    }

    /// Takes a nonce and signs a transaction. Nothing is sent.
    ///
    /// # Errors
    /// [`PrepareError`].
    pub async fn prepare(&self, call: Call, gas_limit: u64) -> Result<Prepared, PrepareError> {
        let limit = self.0.options.gas_limit_max;
        if gas_limit > limit {
            return Err(PrepareError::GasAboveLimit { gas: gas_limit, limit });
        }
        let fees = self.quote().await?;
        self.start().await?;
        let nonce = match self.reserve() {
            Ok(nonce) => nonce,
            // Perhaps they are mined and nobody has looked.
            Err(PrepareError::Busy(_)) => {
                self.look_after().await;
                self.reserve()?
            }
            Err(error) => return Err(error),
        };
        Ok(Prepared { sender: self.clone(), signed: self.sign(nonce, fees, gas_limit, call), sent: false })
    }

    fn reserve(&self) -> Result<u64, PrepareError> {
        let mut state = self.0.state.lock();
        let in_flight = state.in_flight();
        if in_flight >= self.0.options.in_flight_max {
            return Err(PrepareError::Busy(in_flight));
        }
        let nonce = state.nonces.take();
        state.reserved.insert(nonce);
        Ok(nonce)
    }

    /// Sends a prepared transaction. From the first poll on its nonce is used, even where this future is dropped.
    ///
    /// # Errors
    /// [`NotSent`] where no node took it. What is doubtful is no error: waiting tells.
    pub async fn send(&self, mut prepared: Prepared) -> Result<Submission, NotSent> {
        prepared.sent = true;
        let signed = prepared.signed.clone();
        let nonce = signed.unsigned().nonce;
        let submission = Submission::new(signed.clone());
        {
            let mut state = self.0.state.lock();
            state.reserved.remove(&nonce);
            state.pending.insert(nonce, Pending::new(submission.clone()));
        }
        match self.0.chain.send(signed.raw()).await {
            Ok(()) => Ok(submission),
            Err(SendError::Doubtful(detail)) => {
                tracing::warn!(hash = %signed.hash(), detail, "it is not known whether the transaction was sent");
                Ok(submission)
            }
            Err(SendError::Refused { refusal, text }) => Err(self.refused(nonce, refusal, text).await),
        }
    }

    /// A node refused a first version, and no other was asked.
    async fn refused(&self, nonce: u64, refusal: Refusal, text: String) -> NotSent {
        let address = self.address();
        match refusal {
            // Somebody else's transaction has the nonce: it is neither pending with us nor free.
            Refusal::NonceTooLow | Refusal::Underpriced => {
                self.0.state.lock().pending.remove(&nonce);
                if let Err(error) = self.learn().await {
                    tracing::debug!(%error, "the account's nonces cannot be read");
                }
            }
            Refusal::InsufficientFunds | Refusal::FeeTooLow | Refusal::Other => self.0.state.lock().release(nonce),
        }
        let text = match refusal {
            Refusal::InsufficientFunds => {
                format!("the gas account {address} cannot pay ({text}): send it some of the chain's coin")
            }
            _ => text,
        };
        NotSent { refusal, text }
    }

    /// Waits for a transaction, and meanwhile looks after all that the account has sent. May be called again after
    /// [`Fate::Unknown`], by any number of tasks.
    pub async fn wait(&self, submission: &Submission, deadline: Duration) -> Fate {
        let waiting = async {
            let mut pause = self.0.options.poll_min;
            let mut used = Used::default();
            loop {
                match self.look(submission, &mut used).await {
                    Ok(Some(fate)) => return fate,
                    Ok(None) => {}
                    Err(error) => tracing::debug!(hash = %submission.hash(), %error, "the receipt is not known"),
                }
                self.look_after().await;
                tokio::time::sleep(pause).await;
                pause = pause.saturating_add(pause / 2).min(self.0.options.poll_max);
            }
        };
        tokio::time::timeout(deadline, waiting).await.unwrap_or(Fate::Unknown)
    }

    /// Takes up a transaction that was written down before a restart, and sends it if it is not mined.
    ///
    /// # Errors
    /// [`NotATransaction`] where the bytes are none of this key's on this chain.
    pub async fn adopt(&self, raw: &[u8]) -> Result<Submission, NotATransaction> {
        let (signed, signer) = Signed::decode(raw)?;
        if signer != self.address() || signed.unsigned().chain_id != self.0.chain.chain_id() {
            return Err(NotATransaction);
        }
        let nonce = signed.unsigned().nonce;
        if let Err(error) = self.start().await {
            tracing::debug!(%error, "the account's nonces cannot be read");
        }
        let submission = Submission::new(signed.clone());
        {
            let mut state = self.0.state.lock();
            if let Some(known) = state.pending.get(&nonce).map(|pending| pending.submission.clone())
                && known.hashes().contains(&signed.hash())
            {
                return Ok(known);
            }
            if state.pending.contains_key(&nonce) || state.reserved.contains(&nonce) {
                // The nonce went to another transaction since: waiting tells which of them ran.
                return Ok(submission);
            }
            state.nonces.claim(nonce);
            state.pending.insert(nonce, Pending::new(submission.clone()));
        }
        let sent = self.0.chain.send(signed.raw()).await;
        tracing::debug!(hash = %signed.hash(), ?sent, "took up a transaction");
        Ok(submission)
    }

    /// Looks after what was sent, now and again until the last clone of this is dropped: for what nobody waits for any
    /// more. Must be called within a tokio runtime.
    pub fn keep_looking_after(&self) -> tokio::task::JoinHandle<()> {
        let weak = Arc::downgrade(&self.0);
        let pause = self.0.options.resend_after;
        tokio::spawn(async move {
            while let Some(inner) = weak.upgrade() {
                let sender = Self(inner);
                let in_flight = sender.0.state.lock().in_flight();
                if in_flight > 0 {
                    sender.look_after().await;
                }
                drop(sender);
                tokio::time::sleep(pause).await;
            }
        })
    }

    fn sign(&self, nonce: u64, fees: Fees, gas_limit: u64, call: Call) -> Signed {
        Unsigned { chain_id: self.0.chain.chain_id(), nonce, fees, gas_limit, call }.sign(&self.0.key)
    }

    async fn quote(&self) -> Result<Fees, PrepareError> {
        let base_fee = self.0.chain.head().await?.base_fee_per_gas.unwrap_or_default();
        let priority_fee = self.0.chain.priority_fee().await?;
        let limits = &self.0.options.fees;
        let above = PrepareError::FeeAboveCap { base_fee, cap: limits.max_fee_per_gas_max };
        limits.quote(base_fee, priority_fee).ok_or(above)
    }

    /// Reads the account's nonces once.
    async fn start(&self) -> Result<(), EvmError> {
        let mut started = self.0.started.lock().await;
        if !*started {
            self.learn().await?;
            *started = true;
        }
        Ok(())
    }

    /// Reads from the chain which nonces are used. What waits in a node's pool without being ours was sent before a
    /// restart, so that its nonces are used too.
    async fn learn(&self) -> Result<(), EvmError> {
        let address = self.address();
        let mined = self.0.chain.transaction_count(address, Counted::Mined).await?;
        let known = self.0.chain.transaction_count(address, Counted::Known).await?;
        let mut state = self.0.state.lock();
        state.nonces.used_below(mined);
        if known > state.nonces.next() {
            state.nonces.used_below(known);
        }
        Ok(())
    }

    /// Where a transaction stands, if it is decided.
    async fn look(&self, submission: &Submission, used: &mut Used) -> Result<Option<Fate>, EvmError> {
        let head = self.0.chain.head().await?.number;
        for hash in submission.hashes().iter().rev() {
            if let Some(receipt) = self.0.chain.receipt(hash).await? {
                *used = Used::default();
                if let Some(pending) = self.0.state.lock().pending.get_mut(&submission.nonce()) {
                    pending.used_at.get_or_insert(head);
                }
                return Ok(self.deep_enough(receipt, head));
            }
        }
        let mined = self.0.chain.transaction_count(self.address(), Counted::Mined).await?;
        if mined <= submission.nonce() {
            *used = Used::default();
            return Ok(None);
        }
        // A node may know of the block and not have its receipts at hand yet, and a block may be taken back.
        used.looks = used.looks.saturating_add(1);
        let since = *used.since.get_or_insert(head);
        let deep = head.saturating_sub(since) >= self.0.options.confirmations.max(1);
        Ok((used.looks >= SUPERSEDED_LOOKS && deep).then_some(Fate::Superseded))
    }

    fn deep_enough(&self, receipt: Receipt, head: u64) -> Option<Fate> {
        let depth = head.saturating_add(1).saturating_sub(receipt.block_number);
        if depth < self.0.options.confirmations.max(1) {
            return None;
        }
        Some(if receipt.succeeded { Fate::Confirmed(receipt) } else { Fate::Reverted(receipt) })
    }
}

/// How often in a row, and since which block, a nonce was seen to be used without a receipt of ours.
#[derive(Default)]
struct Used {
    looks: u32,
    since: Option<u64>,
}
