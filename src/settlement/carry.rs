//! One batch's way: blockhash, approval, signature, journal, send, confirm, reconcile.
//!
//! Promises that the signed bytes are durable before a node sees them, and that a batch ends as confirmed only when the
//! channels have been read back and the ledger has taken them up. A crash between any two steps leaves either nothing,
//! or a journalled batch whose fate the next start finds out; resending the same bytes cannot do a thing twice.

use std::time::Duration;

use tokio::time::Instant;

use super::Settlement;
use super::batch::Draft;
use super::plan::{self, Action};
use super::report::{BatchReport, Outcome, Timings};
use super::run::Halt;
use super::trouble::{self, Blame};
use crate::amount::Amount;
use crate::chain::{ChainError, Confirmation};
use crate::ledger::CloseGuard;
use crate::ledger::store::{BatchKind, BatchRecord, BatchState};
use crate::scheme::svm::transaction::Transaction;
use crate::signer::SignerError;
use crate::x402::Key;

/// Why a batch was not made.
enum Unmade {
    /// A rule of policy forbids this batch; a smaller one may pass.
    Forbidden(String),
    /// No channel's fault.
    Halted(String),
}

impl From<Halt> for Unmade {
    fn from(halt: Halt) -> Self {
        Self::Halted(halt.to_string())
    }
}

impl Settlement {
    /// Makes a batch of a draft and takes it as far as it goes.
    pub(super) async fn carry(&self, mut draft: Draft) -> BatchReport {
        let mut timings = Timings::default();
        // Held to the end: nothing is charged on a channel between its last voucher and its seal.
        let _closing = match self.close(&mut draft).await {
            Ok(guard) => guard,
            Err(unmade) => return self.refused(&draft, unmade, timings),
        };
        match self.make(&draft, &mut timings).await {
            Ok(batch) => self.send(batch, timings).await,
            Err(unmade) => self.refused(&draft, unmade, timings),
        }
    }

    /// Takes a channel that is to be sealed out of service, and its last voucher into the draft. Waits for requests
    /// that are being served, unless the deadline is near.
    async fn close(&self, draft: &mut Draft) -> Result<Option<CloseGuard>, Unmade> {
        let Some(line) = draft.lines().first().filter(|line| line.action == Action::Seal) else {
            return Ok(None);
        };
        match self.ledger.begin_close(&line.channel()).await {
            Ok(guard) => {
                let line = line.with(guard.channel()).map_err(|error| Unmade::Forbidden(error.to_string()))?;
                *draft = Draft::of(line);
                Ok(Some(guard))
            }
            Err(_) if plan::overdue(&line.record, &self.options.rules, self.clock.now()) => Ok(None),
            Err(refused) => Err(Unmade::Forbidden(format!("the channel cannot be closed now: {refused}"))),
        }
    }

    /// Builds, approves, signs and journals.
    async fn make(&self, draft: &Draft, timings: &mut Timings) -> Result<BatchRecord, Unmade> {
        let started = Instant::now();
        let blockhash = self.chain.latest_blockhash().await.map_err(Halt::from)?;
        timings.blockhash = started.elapsed();
        let started = Instant::now();
        let id = self.ledger.next_batch();
        let transaction = draft.transaction(self.fee_payer, self.options.compute_unit_price, blockhash.hash, id);
        let mut transaction = transaction.map_err(|error| Unmade::Halted(error.to_string()))?;
        let request = draft.request(transaction.clone()).ok_or_else(|| Unmade::Halted("an empty batch".to_owned()))?;
        let approved = self.policy.approve(request, draft.moving());
        let approved = approved.map_err(|error| Unmade::Forbidden(error.to_string()))?;
        let signature = self.signer.sign(approved).await.map_err(|error| match error {
            SignerError::Refused { .. } => Unmade::Forbidden(error.to_string()),
            SignerError::NoQuorum(_) | SignerError::Broken(_) => Unmade::Halted(error.to_string()),
        })?;
        let placed = transaction.set_signature(&self.fee_payer, signature);
        placed.map_err(|error| Unmade::Halted(error.to_string()))?;
        timings.sign = started.elapsed();
        let started = Instant::now();
        let batch = BatchRecord {
            id,
            kind: draft.kind,
            lines: draft.journal(),
            transaction: transaction.encode(),
            signature,
            last_valid_block_height: blockhash.last_valid_block_height,
            state: BatchState::Signed,
            created_at: self.clock.now(),
        };
        self.journal(batch.clone()).await.map_err(Halt::from)?;
        timings.journal = started.elapsed();
        self.observer.signed(&batch, timings.sign);
        Ok(batch)
    }

    fn refused(&self, draft: &Draft, unmade: Unmade, timings: Timings) -> BatchReport {
        let lines = draft.journal();
        let why = match unmade {
            Unmade::Forbidden(why) => {
                // A limit on the whole may let each pass alone.
                match lines.as_slice() {
                    [(channel, _)] => self.blame(*channel, draft.kind, &why),
                    _ => self.split(&lines, draft.kind, &why),
                }
                why
            }
            Unmade::Halted(why) => {
                self.hold(&why);
                why
            }
        };
        self.observer.refused(draft.kind, &lines, &why);
        let outcome = Outcome::Refused { why };
        BatchReport { id: 0, kind: draft.kind, lines, signature: None, outcome, timings }
    }

    async fn send(&self, batch: BatchRecord, timings: Timings) -> BatchReport {
        match self.chain.send(&batch.transaction).await {
            Ok(()) => self.observer.sent(&batch),
            Err(ChainError::Refused(why)) => {
                // The node has not passed it on. Only where another way led to the chain is it known there; and even
                // if it came to run later, the program takes no voucher and no payout twice.
                let known = self.chain.statuses(&[batch.signature]).await;
                if known.is_ok_and(|statuses| statuses.iter().all(Option::is_none)) {
                    return self.dropped(batch, why, false, timings).await;
                }
            }
            // Whether it was taken is for the confirmation to find out.
            Err(error) => tracing::warn!(batch = batch.id, %error, "sending a batch gave no answer"),
        }
        self.follow(batch, timings).await
    }

    /// Finds out what became of a journalled batch; it is sent again while it is unknown and alive.
    pub(super) async fn follow(&self, batch: BatchRecord, mut timings: Timings) -> BatchReport {
        let started = Instant::now();
        let (bytes, wait) = (&batch.transaction, self.options.confirm_wait);
        let fate = self.chain.confirm(bytes, &batch.signature, batch.last_valid_block_height, wait).await;
        timings.confirm = started.elapsed();
        match fate {
            Ok(Confirmation::Confirmed { slot }) => self.confirmed(batch, slot, timings).await,
            Ok(Confirmation::Failed { error }) => self.dropped(batch, error, false, timings).await,
            Ok(Confirmation::Expired) => {
                let why = "its blockhash expired before any block held it".to_owned();
                self.dropped(batch, why, true, timings).await
            }
            Err(error) => self.unknown(batch, error.to_string(), timings),
        }
    }

    async fn confirmed(&self, batch: BatchRecord, slot: u64, mut timings: Timings) -> BatchReport {
        let started = Instant::now();
        let moved = match self.reconcile(&batch, slot).await {
            Ok(moved) => moved,
            Err(why) => return self.unknown(batch, why, timings),
        };
        let batch = BatchRecord { state: BatchState::Confirmed, ..batch };
        if let Err(error) = self.journal(batch.clone()).await {
            return self.unknown(batch, error.to_string(), timings);
        }
        timings.reconcile = started.elapsed();
        {
            let mut state = self.state.lock();
            for (channel, _) in &batch.lines {
                state.troubles.clear(channel);
            }
            state.troubles.release();
            state.last_success = Some(self.clock.now());
            state.confirmed = state.confirmed.saturating_add(1);
            state.last_error = None;
        }
        for (channel, _) in &batch.lines {
            self.note(channel);
        }
        let took: Duration = [timings.sign, timings.journal, timings.confirm, timings.reconcile].iter().sum();
        self.observer.confirmed(&batch, moved, took);
        tracing::info!(batch = batch.id, kind = ?batch.kind, channels = batch.lines.len(), %moved,
            signature = %batch.signature, "settlement batch confirmed");
        report(batch, Outcome::Confirmed { moved }, timings)
    }

    async fn dropped(&self, batch: BatchRecord, why: String, expired: bool, timings: Timings) -> BatchReport {
        let batch = BatchRecord { state: BatchState::Dropped { why: why.clone() }, ..batch };
        if let Err(error) = self.journal(batch.clone()).await {
            return self.unknown(batch, error.to_string(), timings);
        }
        {
            let mut state = self.state.lock();
            state.dropped = state.dropped.saturating_add(1);
            state.last_error = Some(format!("batch {}: {why}", batch.id));
            // It was due and still is.
            state.sweeping |= batch.kind == BatchKind::Claim;
        }
        tracing::warn!(batch = batch.id, kind = ?batch.kind, why, "settlement batch dropped; it changed nothing");
        if expired {
            let channels = batch.lines.iter().map(|(channel, _)| *channel);
            self.state.lock().troubles.expire(channels, batch.kind, &why, self.clock.now());
        } else {
            self.find_fault(&batch, &why);
            // What failed may have failed because the chain has moved on; the next plan should know.
            let keys: Vec<_> = batch.lines.iter().map(|(channel, _)| *channel).collect();
            if let Err(halt) = self.refresh(&keys).await {
                tracing::warn!(error = %halt, "the channels of a dropped batch cannot be read");
            }
        }
        self.observer.dropped(&batch, &why);
        report(batch, Outcome::Dropped { why }, timings)
    }

    fn find_fault(&self, batch: &BatchRecord, why: &str) {
        let transaction = Transaction::decode(&batch.transaction);
        let blame = transaction.map_or(Blame::Someone, |transaction| trouble::blame(why, &transaction, &batch.lines));
        match (blame, batch.lines.as_slice()) {
            (Blame::Channel(channel), _) => self.blame(channel, batch.kind, why),
            (Blame::Someone, [(channel, _)]) => self.blame(*channel, batch.kind, why),
            (Blame::Someone, lines) => self.split(lines, batch.kind, why),
            (Blame::Nobody, _) => self.hold(&format!("{why}: {}", trouble::advice(why))),
        }
    }

    fn split(&self, lines: &[(Key, Amount)], kind: BatchKind, why: &str) {
        let channels = lines.iter().map(|(channel, _)| *channel);
        self.state.lock().troubles.split(channels, kind, why, self.clock.now());
    }

    fn unknown(&self, batch: BatchRecord, why: String, timings: Timings) -> BatchReport {
        self.state.lock().last_error = Some(format!("batch {}: {why}", batch.id));
        tracing::warn!(batch = batch.id, kind = ?batch.kind, why, "the fate of a settlement batch is not known yet");
        report(batch, Outcome::Unknown { why }, timings)
    }
}

fn report(batch: BatchRecord, outcome: Outcome, timings: Timings) -> BatchReport {
    BatchReport {
        id: batch.id,
        kind: batch.kind,
        lines: batch.lines,
        signature: Some(batch.signature),
        outcome,
        timings,
    }
}
