//! What is tried again after a failure, and when: everything, a channel, or an open batch.
//!
//! Promises that one bad channel does not hold up the others: a batch that fails is tried again in halves, until the
//! channel at fault stands alone and waits, longer each time. A channel whose payer is withdrawing waits for no long time
//! whatever happened to it before: a deadline runs.

use std::time::Duration;

use super::EvmSettlement;
use crate::clock::UnixMillis;
use crate::ledger::channel::evm::EvmBatch;
use crate::x402::evm::B256;

/// How often a batch is asked for in vain before it is given up.
const ASKED_MAX: u32 = 6;

/// Everything new waits.
#[derive(Clone, Debug)]
pub(super) struct Hold {
    pub(super) attempts: u32,
    pub(super) until: UnixMillis,
    pub(super) error: String,
}

/// A channel that waits after a failure, or is claimed with fewer others.
#[derive(Clone, Debug)]
pub(super) struct Wait {
    attempts: u32,
    since: UnixMillis,
    pub(super) until: UnixMillis,
    /// How many claims its next batch may have.
    pub(super) claims_max: usize,
    pub(super) error: String,
}

impl Wait {
    /// Whether it still waits; `urgent` where its payer is withdrawing, which it may not have been when the wait began.
    pub(super) fn holds(&self, now: UnixMillis, urgent: bool, longest_urgent: Duration) -> bool {
        now < self.until && !(urgent && now.since(self.since) >= longest_urgent)
    }
}

/// An open batch that was asked for.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Asked {
    /// How often, with no end to it.
    attempts: u32,
    /// How often of these it may have been sent.
    doubtful: u32,
    /// Whether it was told to be done when it was asked for last.
    pub(super) answered: bool,
    /// Not asked for again before then.
    pub(super) until: UnixMillis,
}

/// How asking for a batch went that has not come to its end by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Vain {
    /// It was not sent.
    NotSent,
    /// Nobody knows.
    Unanswered,
    /// It is said to be done, and cannot be seen yet.
    Unseen,
}

impl EvmSettlement {
    pub(super) fn is_held(&self) -> bool {
        let now = self.parts.clock.now();
        self.state.lock().hold.as_ref().is_some_and(|hold| hold.until > now)
    }

    /// Everything new waits a while.
    pub(super) fn hold(&self, error: &str) {
        let now = self.parts.clock.now();
        let mut state = self.state.lock();
        let attempts = state.hold.as_ref().map_or(0, |hold| hold.attempts).saturating_add(1);
        let delay = self.options.backoff.delay(&[0; 32], attempts, self.options.backoff.longest_urgent);
        state.hold = Some(Hold { attempts, until: now.plus(delay), error: error.to_owned() });
        state.last_error = Some(error.to_owned());
        tracing::error!(error, wait = ?delay, "settlement waits; nothing is lost");
    }

    /// A channel waits a while, longer each time; `urgent` where a deadline runs.
    pub(super) fn blame(&self, channel: B256, error: &str, urgent: bool) {
        let now = self.parts.clock.now();
        let backoff = &self.options.backoff;
        let mut state = self.state.lock();
        let attempts = state.waits.get(&channel).map_or(0, |wait| wait.attempts).saturating_add(1);
        let longest = if urgent { backoff.longest_urgent } else { backoff.longest };
        let delay = backoff.delay(&channel.0, attempts, longest);
        let error = error.to_owned();
        state.last_error = Some(format!("channel {channel}: {error}"));
        tracing::error!(%channel, error, wait = ?delay, "a channel cannot be claimed; it is tried again");
        state.waits.insert(channel, Wait { attempts, since: now, until: now.plus(delay), claims_max: 1, error });
    }

    /// Nobody knows which channel is at fault, or a limit on the whole may let the parts pass: they are tried again in
    /// halves, at once.
    pub(super) fn split(&self, channels: &[B256], error: &str) {
        let now = self.parts.clock.now();
        let half = channels.len().div_ceil(2);
        let mut state = self.state.lock();
        for channel in channels {
            let fresh = || Wait { attempts: 0, since: now, until: now, claims_max: half, error: error.to_owned() };
            let wait = state.waits.entry(*channel).or_insert_with(fresh);
            wait.claims_max = wait.claims_max.min(half);
        }
        state.last_error = Some(error.to_owned());
    }

    /// How an open batch was asked for in this life.
    pub(super) fn asked(&self, batch: &EvmBatch) -> Asked {
        self.state.lock().asked.get(&batch.id).copied().unwrap_or_default()
    }

    /// Whether an open batch may be asked for now.
    pub(super) fn may_ask(&self, batch: &EvmBatch) -> bool {
        self.parts.clock.now() >= self.asked(batch).until
    }

    /// A batch was asked for and is not at its end: it is asked for again after a wait, unless that is hopeless. To give
    /// it up is safe: should it land later, it claims what was charged and signed, and a claim of more passes over it; a
    /// payout pays what is there.
    pub(super) fn asked_in_vain(&self, batch: &EvmBatch, how: Vain) -> bool {
        let now = self.parts.clock.now();
        let backoff = &self.options.backoff;
        let mut state = self.state.lock();
        let asked = state.asked.entry(batch.id).or_default();
        asked.attempts = asked.attempts.saturating_add(1);
        asked.answered = how == Vain::Unseen;
        let delay = match how {
            // What is sent again for want of patience costs its fee again.
            Vain::Unseen => backoff.longest_urgent,
            Vain::NotSent | Vain::Unanswered => backoff.delay(&[0; 32], asked.attempts, backoff.longest_urgent),
        };
        asked.until = now.plus(delay);
        if how != Vain::NotSent {
            asked.doubtful = asked.doubtful.saturating_add(1);
        }
        asked.doubtful >= ASKED_MAX
    }
}
