//! The books: reading channels back after a batch, taking up what the chain says, and comparing everything.
//!
//! Promises that the ledger takes up only accounts that are the channels it knows, that a node which lags behind is
//! never believed over a newer reading, and that a loss is said aloud, once. [`tie_out`] compares ledger and chain for
//! every channel: the books tie out where what was charged is what was signed, nothing is claimed that was not charged,
//! and both sides hold the same claimed and paid amounts.

use std::future::Future;

use futures_util::stream::{FuturesUnordered, StreamExt};

use super::Settlement;
use super::plan::{self, unclaimed};
use super::run::Halt;
use crate::amount::Amount;
use crate::chain::{Account, Chain, ChainError};
use crate::clock::UnixMillis;
use crate::ledger::Ledger;
use crate::ledger::channel::{OnChain, Terms};
use crate::ledger::store::{BatchKind, BatchRecord, ChannelRecord, StoreError};
use crate::scheme::svm::PAYMENT_CHANNELS;
use crate::scheme::svm::program::{ChannelAccount, ChannelStatus, OPEN_SLOT_WINDOW};
use crate::x402::Key;

/// How many channels are read at once.
pub(super) const READ_CHANNELS: usize = 1_000;
/// How much a settlement makes durable at once, over all its batches: a request's charge waits for what shares its flush.
pub(super) const WRITES_AT_ONCE_MAX: usize = 8;

/// Makes readings durable, some side by side, so that they share a flush of the ledger's store. Ends with the first error;
/// what was begun by then is carried through.
pub(super) async fn side_by_side<T>(
    jobs: Vec<impl Future<Output = Result<T, StoreError>>>,
    mut done: impl FnMut(T),
) -> Result<(), StoreError> {
    let mut waiting = jobs.into_iter();
    let mut running = FuturesUnordered::new();
    loop {
        while running.len() < WRITES_AT_ONCE_MAX {
            let Some(job) = waiting.next() else { break };
            running.push(job);
        }
        let Some(ended) = running.next().await else { return Ok(()) };
        done(ended?);
    }
}

/// What a channel's address holds.
enum Reading {
    /// The channel.
    Channel(Box<ChannelAccount>),
    /// Nothing, or nothing of the program's.
    Gone,
    /// Something that is not the channel that we know.
    Foreign,
}

fn read(terms: &Terms, account: Option<&Account>) -> Reading {
    let Some(account) = account.filter(|account| account.owner == PAYMENT_CHANNELS) else {
        return Reading::Gone;
    };
    match ChannelAccount::decode(&account.data) {
        Ok(account) if is_same(terms, &account) => Reading::Channel(Box::new(account)),
        _ => Reading::Foreign,
    }
}

/// Whether an account is the channel of these terms. Once it is sealed, its grace period no longer matters: a channel
/// of another scheme is cleaned up here too.
pub(super) fn is_same(terms: &Terms, account: &ChannelAccount) -> bool {
    match account.status {
        ChannelStatus::Open | ChannelStatus::Closing => terms.matches(account),
        ChannelStatus::Sealed | ChannelStatus::Distributed => {
            let as_agreed = ChannelAccount { grace_period: terms.seller.withdraw_delay, ..account.clone() };
            terms.matches(&as_agreed)
        }
    }
}

/// Whether a channel's account can be gone at this slot: it occupies its address for a window of slots at least.
fn can_be_gone(terms: &Terms, slot: u64) -> bool {
    slot > terms.open_slot.saturating_add(OPEN_SLOT_WINDOW)
}

impl Settlement {
    /// Reads channels and takes up what the chain says of them.
    pub(super) async fn refresh(&self, keys: &[Key]) -> Result<(), Halt> {
        for keys in keys.chunks(READ_CHANNELS) {
            let read_at = self.clock.now();
            let accounts = self.chain.accounts(keys).await?;
            let pairs = keys.iter().zip(accounts);
            let taken_up = pairs.map(|(key, account)| self.take_up_account(key, account, read_at)).collect();
            side_by_side(taken_up, |()| ()).await?;
        }
        Ok(())
    }

    /// Takes up what the chain says of a channel, when its turn to write comes.
    async fn observe(&self, id: &Key, on_chain: OnChain) -> Result<(), StoreError> {
        // Never closed; and if it were, a write too many does no harm.
        let _turn = self.writes.acquire().await;
        self.ledger.observe(id, on_chain).await
    }

    /// Journals a batch, when its turn to write comes.
    pub(super) async fn journal(&self, batch: BatchRecord) -> Result<(), StoreError> {
        let _turn = self.writes.acquire().await;
        self.ledger.journal_batch(batch).await
    }

    async fn take_up_account(
        &self,
        key: &Key,
        account: Option<Account>,
        read_at: UnixMillis,
    ) -> Result<(), StoreError> {
        let Some(record) = self.ledger.channel(key) else { return Ok(()) };
        let reading = read(&record.terms, account.as_ref());
        self.take_up(&record, reading, read_at).await
    }

    async fn take_up(&self, record: &ChannelRecord, reading: Reading, read_at: UnixMillis) -> Result<(), StoreError> {
        let id = &record.terms.id;
        if record.on_chain.read_at > read_at {
            return Ok(());
        }
        match reading {
            Reading::Channel(account) => {
                let on_chain = OnChain::of(&account, read_at);
                self.state.lock().gone.remove(id);
                let started_closing =
                    on_chain.status == ChannelStatus::Closing && record.on_chain.status == ChannelStatus::Open;
                self.observe(id, on_chain).await?;
                if on_chain.status == ChannelStatus::Closing {
                    self.note(id);
                }
                if started_closing {
                    tracing::warn!(channel = %id, at_risk = %unclaimed(record), "a payer is closing a channel; it is sealed");
                    self.wake.notify_one();
                }
                if let Some(record) = self.ledger.channel(id) {
                    self.note_loss(id, plan::lost(&record, self.clock.now()));
                }
            }
            Reading::Gone if can_be_gone(&record.terms, self.state.lock().slot) => {
                self.note_loss(id, unclaimed(record));
                self.forget(id).await?;
            }
            // A node that lags behind has not seen it yet.
            Reading::Gone => {}
            Reading::Foreign => {
                tracing::error!(channel = %id, "the account at a channel's address is not that channel; it is left alone");
            }
        }
        Ok(())
    }

    async fn forget(&self, id: &Key) -> Result<(), StoreError> {
        self.ledger.forget(id).await?;
        // One that owes is kept for good. One that is in use is left alone, and forgotten with a later reading.
        let owes = self.ledger.channel(id).is_some_and(|record| !unclaimed(&record).is_zero());
        let mut state = self.state.lock();
        state.troubles.clear(id);
        if owes {
            state.gone.insert(*id);
        } else {
            state.gone.remove(id);
        }
        Ok(())
    }

    fn note_loss(&self, channel: &Key, amount: Amount) {
        if amount.is_zero() || self.state.lock().lost.insert(*channel, amount) == Some(amount) {
            return;
        }
        self.observer.lost(channel, amount);
        tracing::error!(%channel, %amount, "charged and never claimed: the channel was closed before its last voucher \
            was applied. Raise withdraw_delay or lower the settlement interval");
    }

    /// Takes up what a confirmed batch did, and says how much it moved. An error says why it cannot be seen yet.
    pub(super) async fn reconcile(&self, batch: &BatchRecord, slot: u64) -> Result<Amount, String> {
        self.see_slot(slot);
        let keys: Vec<Key> = batch.lines.iter().map(|(channel, _)| *channel).collect();
        let read_at = self.clock.now();
        let accounts = self.chain.accounts(&keys).await.map_err(|error| error.to_string())?;
        if accounts.len() != keys.len() {
            return Err("the chain answered for other channels than were asked for".to_owned());
        }
        let mut seen = Vec::with_capacity(keys.len());
        for ((channel, amount), account) in batch.lines.iter().zip(&accounts) {
            let Some(record) = self.ledger.channel(channel) else { continue };
            let reading = read(&record.terms, account.as_ref());
            let newest = self.state.lock().slot;
            if !shows(batch.kind, *amount, &record.terms, &reading, slot, newest) {
                return Err(format!("the chain's answer for channel {channel} is older than the confirmed batch"));
            }
            seen.push((record, reading, *amount));
        }
        let line = |(record, reading, amount)| self.take_up_line(batch.kind, record, reading, amount, read_at);
        let taken_up = seen.into_iter().map(line).collect();
        let mut moved = Amount::ZERO;
        let taken_up = side_by_side(taken_up, |more| moved = moved.saturating_add(more)).await;
        taken_up.map_err(|error| error.to_string())?;
        Ok(moved)
    }

    /// Takes up what a confirmed batch did to one channel, and says how much it moved.
    async fn take_up_line(
        &self,
        kind: BatchKind,
        record: ChannelRecord,
        reading: Reading,
        amount: Amount,
        read_at: UnixMillis,
    ) -> Result<Amount, StoreError> {
        let before = reached(kind, &record.on_chain);
        match reading {
            Reading::Gone => self.take_up_end(&record, amount, read_at).await,
            reading => self.take_up(&record, reading, read_at).await,
        }?;
        let after = self.ledger.channel(&record.terms.id);
        Ok(after.map_or(amount, |record| reached(kind, &record.on_chain)).saturating_sub(before))
    }

    /// The channel was drained, by this batch or after it, and the account is gone: what it held at the end is known
    /// from the batch.
    async fn take_up_end(&self, record: &ChannelRecord, amount: Amount, read_at: UnixMillis) -> Result<(), StoreError> {
        let claimed = record.on_chain.claimed.max(amount);
        let end = OnChain {
            status: ChannelStatus::Distributed,
            claimed,
            distributed: claimed,
            closing_since: 0,
            read_at,
            ..record.on_chain
        };
        self.observe(&record.terms.id, end).await?;
        self.note_loss(&record.terms.id, record.charged.saturating_sub(claimed));
        self.forget(&record.terms.id).await
    }

    pub(super) fn see_slot(&self, slot: u64) {
        let mut state = self.state.lock();
        state.slot = state.slot.max(slot);
    }
}

/// How far a channel has come in what a kind of batch moves.
const fn reached(kind: BatchKind, on_chain: &OnChain) -> Amount {
    match kind {
        BatchKind::Claim => on_chain.claimed,
        BatchKind::Distribute | BatchKind::Seal | BatchKind::CleanUp => on_chain.distributed,
    }
}

/// Whether a reading shows what a batch did that was confirmed in `slot`; a lagging node's does not. The account may be
/// gone since, long after the batch: that is judged by the newest slot that was `seen`.
fn shows(kind: BatchKind, amount: Amount, terms: &Terms, reading: &Reading, slot: u64, seen: u64) -> bool {
    let account = match reading {
        Reading::Channel(account) => account,
        Reading::Gone => return can_be_gone(terms, seen),
        // It will not become ours by waiting; it is told of where it is taken up.
        Reading::Foreign => return true,
    };
    let on_chain = OnChain::of(account, UnixMillis(0));
    let sealed = matches!(account.status, ChannelStatus::Sealed | ChannelStatus::Distributed);
    match kind {
        BatchKind::Claim => on_chain.claimed >= amount,
        BatchKind::Distribute => on_chain.distributed >= amount,
        BatchKind::Seal => sealed && on_chain.claimed >= amount,
        // A reclaim leaves nothing: where the account is still there, it is drained at most if this was a close.
        BatchKind::CleanUp => account.status == ChannelStatus::Distributed && !can_be_gone(terms, slot),
    }
}

/// How a channel's books compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Both sides agree.
    Ties,
    /// The chain is ahead of what the ledger last read; the next pass takes it up.
    Behind,
    /// The channel is gone from the chain, and the ledger does not know how it ended.
    Missing,
    /// Something is unclaimed, and the last voucher is not over what was charged.
    VoucherMismatch,
    /// More was claimed than was charged: a broken promise (invariant L1).
    Overclaimed,
    /// The chain holds less than the ledger knows, or something else: a broken promise, or another chain.
    Contradiction,
}

/// One channel's books.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TieLine {
    /// The channel.
    pub channel: Key,
    /// All that was charged.
    pub charged: Amount,
    /// What the last voucher allows to claim.
    pub signed: Option<Amount>,
    /// The ledger's claimed amount.
    pub claimed: Amount,
    /// The ledger's paid amount.
    pub distributed: Amount,
    /// The chain's side, where it has the channel.
    pub on_chain: Option<OnChain>,
    /// How they compare.
    pub verdict: Verdict,
}

/// The sums over all channels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// All that was charged.
    pub charged: Amount,
    /// The ledger's claimed amounts.
    pub claimed: Amount,
    /// The ledger's paid amounts.
    pub distributed: Amount,
    /// The chain's claimed amounts.
    pub chain_claimed: Amount,
    /// The chain's paid amounts.
    pub chain_distributed: Amount,
}

/// Ledger and chain side by side.
#[derive(Clone, Debug, Default)]
pub struct Tie {
    /// Every channel, in the order of their addresses.
    pub lines: Vec<TieLine>,
    /// The sums.
    pub totals: Totals,
}

impl Tie {
    /// Whether every channel's books tie out.
    #[must_use]
    pub fn ties(&self) -> bool {
        self.lines.iter().all(|line| line.verdict == Verdict::Ties)
    }

    /// The channels whose books do not.
    pub fn faults(&self) -> impl Iterator<Item = &TieLine> {
        self.lines.iter().filter(|line| line.verdict != Verdict::Ties)
    }
}

/// Compares every channel of the ledger with the chain. Changes nothing.
///
/// # Errors
/// [`ChainError`] where the chain cannot be read.
pub async fn tie_out(ledger: &Ledger, chain: &dyn Chain) -> Result<Tie, ChainError> {
    let mut keys = Vec::new();
    ledger.for_each(&mut |record| keys.push(record.terms.id));
    keys.sort_unstable();
    let mut tie = Tie::default();
    for keys in keys.chunks(READ_CHANNELS) {
        let accounts = chain.accounts(keys).await?;
        for (key, account) in keys.iter().zip(accounts) {
            if let Some(record) = ledger.channel(key) {
                tie.add(&record, account.as_ref());
            }
        }
    }
    Ok(tie)
}

impl Tie {
    fn add(&mut self, record: &ChannelRecord, account: Option<&Account>) {
        let reading = read(&record.terms, account);
        let on_chain = match &reading {
            Reading::Channel(account) => Some(OnChain::of(account, record.on_chain.read_at)),
            Reading::Gone | Reading::Foreign => None,
        };
        let line = TieLine {
            channel: record.terms.id,
            charged: record.charged,
            signed: record.voucher.map(|voucher| voucher.cumulative),
            claimed: record.on_chain.claimed,
            distributed: record.on_chain.distributed,
            on_chain,
            verdict: verdict(record, &reading),
        };
        let totals = &mut self.totals;
        totals.charged = totals.charged.saturating_add(line.charged);
        totals.claimed = totals.claimed.saturating_add(line.claimed);
        totals.distributed = totals.distributed.saturating_add(line.distributed);
        // A channel that ended is no longer on chain; what the ledger saw last stands for it.
        let end = on_chain.unwrap_or(record.on_chain);
        totals.chain_claimed = totals.chain_claimed.saturating_add(end.claimed);
        totals.chain_distributed = totals.chain_distributed.saturating_add(end.distributed);
        self.lines.push(line);
    }
}

fn verdict(record: &ChannelRecord, reading: &Reading) -> Verdict {
    let ledger = &record.on_chain;
    if ledger.claimed > record.charged {
        return Verdict::Overclaimed;
    }
    // Where all is claimed, the chain has seen the voucher, whoever sent it, and ours may be an earlier one or none.
    let signed = record.voucher.map(|voucher| voucher.cumulative);
    if record.charged > ledger.claimed && signed != Some(record.charged) {
        return Verdict::VoucherMismatch;
    }
    let chain = match reading {
        Reading::Channel(account) => OnChain::of(account, ledger.read_at),
        Reading::Gone if ledger.status == ChannelStatus::Distributed => return Verdict::Ties,
        Reading::Gone => return Verdict::Missing,
        Reading::Foreign => return Verdict::Contradiction,
    };
    if chain.claimed > record.charged {
        Verdict::Overclaimed
    } else if chain.claimed < ledger.claimed || chain.distributed < ledger.distributed {
        Verdict::Contradiction
    } else if chain.claimed > ledger.claimed || chain.distributed > ledger.distributed || chain.status != ledger.status
    {
        Verdict::Behind
    } else {
        Verdict::Ties
    }
}
