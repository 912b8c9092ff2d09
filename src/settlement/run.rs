//! The loop and its rounds: follow up, plan, read again, build, carry.
//!
//! Promises bounded work: a round takes up to `round_channels_max` channels in each phase, the most urgent first, and
//! keeps at most `in_flight_max` batches under way; where that many are of unknown fate, nothing new is started but
//! seals, whose deadline does not wait.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::time::{Instant, sleep};

use super::batch::{Draft, Line, LineError, pack};
use super::plan::{self, Action, Due, Phase, Urgency};
use super::report::{Outcome, Report, STUCK_LISTED_MAX, Stuck, Timings};
use super::trouble::{Trouble, advice};
use super::{Filter, Settlement, Trigger, destination};
use crate::chain::ChainError;
use crate::ledger::channel::Seller;
use crate::ledger::store::{BatchKind, ChannelRecord, StoreError};
use crate::scheme::svm::associated_token_account;
use crate::x402::Key;

/// Why something could not go on that is no channel's fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Halt {
    /// The chain gave no answer.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The ledger's store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Settlement {
    pub(super) async fn settle_loop(&self) {
        let mut stop = self.stop.subscribe();
        // After a round for pressing exposure that led nowhere, pressure is not listened to until the next tick.
        let mut listen = true;
        loop {
            let trigger = tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return,
                () = self.ledger.pressed(), if listen => Trigger::Pressed,
                () = self.wake.notified() => Trigger::Clock,
                () = sleep(self.options.tick) => Trigger::Clock,
            };
            let mut report = self.step(trigger).await;
            listen = trigger != Trigger::Pressed || report.progressed();
            while trigger == Trigger::Clock && report.more && report.progressed() && !self.stopping() {
                report = self.step(trigger).await;
            }
        }
    }

    /// One round, by whoever holds the turn.
    pub(super) async fn round(&self, trigger: Trigger, filter: &Filter) -> Report {
        let mut report = Report { rounds: 1, ..Report::default() };
        self.begin_sweep();
        self.follow_up(&mut report).await;
        for phase in Phase::ALL {
            if self.stopping() {
                break;
            }
            if let Err(halt) = self.work(phase, trigger, filter, &mut report).await {
                self.hold(&halt.to_string());
                break;
            }
        }
        let now = self.clock.now();
        let state = self.state.lock();
        report.held = state.troubles.held(now).map(str::to_owned);
        let stuck = |(channel, trouble): (&Key, &Trouble)| Stuck {
            channel: *channel,
            kind: trouble.kind,
            attempts: trouble.attempts,
            error: trouble.error.clone(),
        };
        let mut troubled = state.troubles.iter().filter(|(_, trouble)| trouble.until > now);
        report.stuck = troubled.by_ref().take(STUCK_LISTED_MAX).map(stuck).collect();
        report.stuck_left_off = troubled.count();
        report
    }

    fn begin_sweep(&self) {
        let now = self.clock.now();
        let mut state = self.state.lock();
        if now.since(state.last_sweep) >= self.options.interval {
            state.last_sweep = now;
            state.sweeping = true;
        }
    }

    /// Finds out what became of the batches that are signed and of unknown fate: those of before a crash, and those
    /// that the chain did not tell of in time.
    async fn follow_up(&self, report: &mut Report) {
        let mut waiting = self.ledger.open_batches().into_iter();
        let mut running = FuturesUnordered::new();
        loop {
            while running.len() < self.options.in_flight_max.max(1) {
                let Some(batch) = waiting.next() else { break };
                running.push(self.follow(batch, Timings::default()));
            }
            let Some(done) = running.next().await else { return };
            report.batches.push(done);
        }
    }

    async fn work(&self, phase: Phase, trigger: Trigger, filter: &Filter, report: &mut Report) -> Result<(), Halt> {
        if self.is_held() {
            return Ok(());
        }
        let open = self.ledger.open_batches();
        let (planned, more) = self.pick(phase, trigger, filter, &open, report);
        report.more |= more;
        let mut unsettled = false;
        if !planned.is_empty() {
            let keys: Vec<Key> = planned.iter().map(|due| due.channel).collect();
            self.refresh(&keys).await?;
            let lines = self.lines(phase, trigger, &planned).await?;
            let drafts = self.pack(lines);
            let before = report.batches.ends().unsettled();
            let left = self.carry_all(drafts, open.len(), self.pace(trigger, &planned), report).await;
            report.more |= left;
            unsettled = left || report.batches.ends().unsettled() > before;
        }
        if phase == Phase::Claims && matches!(filter, Filter::All) {
            // What was dropped, or waits, is still part of the sweep.
            let mut state = self.state.lock();
            state.sweeping &= more || unsettled || !open.is_empty();
        }
        Ok(())
    }

    /// Makes lines of what is still due after the channels were read again (specification, section 6.2, step 2).
    async fn lines(&self, phase: Phase, trigger: Trigger, planned: &[Due]) -> Result<Vec<Line>, Halt> {
        let moment = self.moment(trigger);
        let still_due = |due: &Due| {
            let record = self.ledger.channel(&due.channel)?;
            let failed = self.state.lock().troubles.of(&due.channel, BatchKind::Claim).is_some();
            // It was due when it was looked at; what it is due for may have changed.
            let due = plan::due(&record, &self.options.rules, &moment, failed)?;
            (due.action.phase() == phase).then_some((due.action, record))
        };
        let dues: Vec<(Action, ChannelRecord)> = planned.iter().filter_map(still_due).collect();
        let payable = self.payable(&dues).await?;
        let mut lines = Vec::with_capacity(dues.len());
        for (action, record) in dues {
            let (channel, kind) = (record.terms.id, action.kind());
            let unpayable = payable.get(&record.terms.seller.pay_to).and_then(Option::as_deref);
            let line = match (action, unpayable) {
                (Action::Distribute | Action::CloseOut, Some(why)) => Err(why.to_owned()),
                (_, unpayable) => {
                    Line::new(action, record, unpayable.is_none()).map_err(|error: LineError| error.to_string())
                }
            };
            match line {
                Ok(line) => lines.push(line),
                Err(error) => self.blame(channel, kind, &error),
            }
        }
        Ok(lines)
    }

    /// For each `pay_to` of these channels, why nothing can be paid there now.
    async fn payable(&self, dues: &[(Action, ChannelRecord)]) -> Result<HashMap<Key, Option<String>>, ChainError> {
        let pays = |action: &Action| matches!(action, Action::Distribute | Action::CloseOut | Action::Seal);
        let mut sellers: Vec<&Seller> = Vec::new();
        for (_, record) in dues.iter().filter(|(action, _)| pays(action)) {
            if !sellers.contains(&record.terms.seller.as_ref()) {
                sellers.push(&record.terms.seller);
            }
        }
        if sellers.is_empty() {
            return Ok(HashMap::new());
        }
        let address = |seller: &&Seller| associated_token_account(&seller.pay_to, &seller.mint, &seller.token_program);
        let keys: Vec<Key> = sellers.iter().map(address).collect();
        let accounts = self.chain.accounts(&keys).await?;
        let verdict = |((seller, key), account): ((&&Seller, &Key), Option<_>)| {
            let fault = destination::usable(account, &seller.pay_to, &seller.mint, &seller.token_program).err();
            let why =
                |fault| format!("the token account {key} of pay_to {} {fault}; nothing is paid out", seller.pay_to);
            (seller.pay_to, fault.map(why))
        };
        let accounts = accounts.iter().map(Option::as_ref).chain(std::iter::repeat(None));
        Ok(sellers.iter().zip(&keys).zip(accounts).map(verdict).collect())
    }

    fn pack(&self, lines: Vec<Line>) -> Vec<Draft> {
        let alone: HashSet<Key> = {
            let state = self.state.lock();
            lines.iter().map(Line::channel).filter(|channel| state.troubles.alone(channel)).collect()
        };
        let options = &self.options;
        let (drafts, misfits) =
            pack(lines, options.batch_channels, self.fee_payer, options.compute_unit_price, &|key| alone.contains(key));
        for line in misfits {
            self.blame(line.channel(), line.action.kind(), &LineError::TooLong.to_string());
        }
        drafts
    }

    /// Carries batches through their steps, so many at a time and none too soon after the one before. `open` are of
    /// unknown fate already. Says whether any were left.
    async fn carry_all(&self, drafts: Vec<Draft>, open: usize, pace: Duration, report: &mut Report) -> bool {
        let most = self.options.in_flight_max.max(1);
        let mut unknown = open;
        let mut waiting = drafts.into_iter().peekable();
        let mut running = FuturesUnordered::new();
        let mut begun: Option<Instant> = None;
        loop {
            let held = unknown >= most || self.is_held();
            let has_room = running.len() < most && !self.stopping();
            let next = waiting.peek().map(|draft| draft.kind).filter(|kind| !held || *kind == BatchKind::Seal);
            let next = next.filter(|_| has_room);
            let pause = begun.map_or(Duration::ZERO, |begun| pace.saturating_sub(begun.elapsed()));
            if let Some(kind) = next
                && (pause.is_zero() || kind == BatchKind::Seal)
                && let Some(draft) = waiting.next()
            {
                begun = Some(Instant::now());
                running.push(self.carry(draft));
                continue;
            }
            tokio::select! {
                Some(done) = running.next() => {
                    if matches!(done.outcome, Outcome::Unknown { .. }) {
                        unknown = unknown.saturating_add(1);
                    }
                    report.batches.push(done);
                }
                // Made only where it is waited for: without a pace there may be no timer.
                () = async { sleep(pause).await }, if next.is_some() => {}
                else => break,
            }
        }
        waiting.next().is_some()
    }

    /// What presses does not wait for requests; nor does anything where the pace is too slow for what is due.
    fn pace(&self, trigger: Trigger, planned: &[Due]) -> Duration {
        let (now, age_max) = (self.clock.now(), self.options.rules.max_age.saturating_mul(2));
        let is_late = |due: &Due| matches!(due.urgency, Urgency::Overdue(since) if now.since(since) >= age_max);
        if trigger == Trigger::Pressed || planned.iter().any(is_late) { Duration::ZERO } else { self.options.pace }
    }

    fn is_held(&self) -> bool {
        self.state.lock().troubles.held(self.clock.now()).is_some()
    }

    /// Everything new waits a while.
    pub(super) fn hold(&self, error: &str) {
        let mut state = self.state.lock();
        let delay = state.troubles.hold(error, self.clock.now());
        state.last_error = Some(error.to_owned());
        tracing::error!(error, wait = ?delay, "settlement waits; nothing is lost");
    }

    /// A channel waits a while, longer each time.
    pub(super) fn blame(&self, channel: Key, kind: BatchKind, error: &str) {
        let mut state = self.state.lock();
        let delay = state.troubles.blame(channel, kind, error, self.clock.now());
        state.last_error = Some(format!("channel {channel}: {error}"));
        let advice = advice(error);
        tracing::error!(%channel, ?kind, error, wait = ?delay, advice, "a channel cannot be settled");
    }
}
