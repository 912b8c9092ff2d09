//! The loop and its rounds: follow up, plan, claim, pay out.
//!
//! One batch is under way at a time: a payout must find its claims mined, and facilitators that send one transaction
//! after the other refuse what overtakes.

use tokio::time::sleep;

use super::super::Trigger;
use super::plan::{self, EvmDue, EvmMoment};
use super::report::EvmReport;
use super::{EvmFilter, EvmSettlement, Wait};
use crate::amount::Amount;
use crate::ledger::channel::evm::EvmBatch;
use crate::x402::evm::B256;

impl EvmSettlement {
    pub(super) async fn settle_loop(&self) {
        let mut stop = self.stop.subscribe();
        // After a round for pressing exposure that led nowhere, pressure is not listened to until the next tick.
        let mut listen = true;
        loop {
            let trigger = tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return,
                () = self.parts.ledger.pressed(), if listen => Trigger::Pressed,
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
    pub(super) async fn round(&self, trigger: Trigger, filter: &EvmFilter) -> EvmReport {
        let mut report = EvmReport { rounds: 1, ..EvmReport::default() };
        self.begin_sweep();
        for batch in self.open_batches() {
            let done = self.follow(batch).await;
            report.batches.push(done);
        }
        // What is of unknown fate is found out before anything is made that could meet it on chain.
        if self.open_batches().is_empty() && !self.is_held() {
            self.claim(trigger, filter, &mut report).await;
        }
        if self.open_batches().is_empty() && !self.is_held() {
            self.pay_out(&mut report).await;
        }
        let now = self.parts.clock.now();
        let state = self.state.lock();
        report.held = state.hold.as_ref().filter(|hold| hold.until > now).map(|hold| hold.error.clone());
        let waiting = state.waits.iter().filter(|(_, wait)| wait.until > now);
        report.stuck = waiting.map(|(channel, wait)| (*channel, wait.error.clone())).collect();
        report.stuck.sort();
        report
    }

    fn begin_sweep(&self) {
        let now = self.parts.clock.now();
        let mut state = self.state.lock();
        if now.since(state.last_sweep) >= self.options.interval {
            state.last_sweep = now;
            state.sweeping = true;
        }
    }

    pub(super) fn open_batches(&self) -> Vec<EvmBatch> {
        let mut open = self.parts.ledger.open_batches();
        open.retain(|batch| self.options.sellers.iter().any(|seller| seller.network == batch.network));
        open
    }

    async fn claim(&self, trigger: Trigger, filter: &EvmFilter, report: &mut EvmReport) {
        let batches = self.plan(trigger, filter);
        let more = batches.len() > self.options.round_batches_max;
        let mut waited = false;
        for batch in batches.into_iter().take(self.options.round_batches_max) {
            if self.stopping() || self.is_held() {
                break;
            }
            match self.is_worth_it(&batch).await {
                Some(true) => {
                    let done = self.carry(batch).await;
                    let unknown = matches!(done.outcome, super::super::Outcome::Unknown { .. });
                    report.batches.push(done);
                    if unknown {
                        break;
                    }
                }
                // It stays due, and is looked at again with what comes to it.
                Some(false) => waited = true,
                None => break,
            }
        }
        report.more = more;
        if trigger == Trigger::Clock && !more && !waited && !self.is_held() {
            self.state.lock().sweeping = false;
        }
    }

    fn plan(&self, trigger: Trigger, filter: &EvmFilter) -> Vec<Vec<EvmDue>> {
        let now = self.parts.clock.now();
        let everything = matches!(trigger, Trigger::Pressed | Trigger::Demand);
        let mut due = Vec::new();
        {
            let (sweeping, waiting): (bool, Vec<B256>) = {
                let state = self.state.lock();
                let waits = state.waits.iter().filter(|(_, wait)| wait.until > now);
                (state.sweeping, waits.map(|(channel, _)| *channel).collect())
            };
            let moment = EvmMoment { now, sweeping, everything };
            self.parts.ledger.for_each(&mut |record| {
                let id = &record.terms.id;
                let wanted = filter.as_ref().is_none_or(|wanted| wanted.contains(id));
                if wanted && self.is_ours(record) && !waiting.contains(id) {
                    due.extend(plan::due(record, &self.options.rules, moment));
                }
            });
        }
        let state = self.state.lock();
        let alone = |line: &EvmDue| state.waits.get(&line.record.terms.id).is_some_and(|wait| wait.alone);
        let fit = self.parts.cost.as_ref().map_or(super::CLAIMS_MAX, |cost| cost.claims_max());
        let claims_max = self.options.batch_claims.min(fit).clamp(1, super::CLAIMS_MAX);
        plan::pack(due, claims_max, self.options.batch_total_max, &alone)
    }

    /// Whether a batch is worth its cost; `None` where that cannot be found out, and it does not press.
    async fn is_worth_it(&self, batch: &[EvmDue]) -> Option<bool> {
        let multiple = self.options.rules.worth_multiple;
        let Some(cost) = self.parts.cost.as_ref().filter(|_| multiple > 0) else { return Some(true) };
        if plan::worth_it(batch, Amount::new(u128::MAX), multiple) {
            return Some(true);
        }
        match cost.cost(batch.len()).await {
            Ok(cost) => Some(plan::worth_it(batch, cost, multiple)),
            Err(error) => {
                tracing::warn!(%error, "what a claim costs cannot be found out; what does not press waits");
                None
            }
        }
    }

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
        state.hold = Some(Wait { attempts, until: now.plus(delay), alone: false, error: error.to_owned() });
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
        state.waits.insert(channel, Wait { attempts, until: now.plus(delay), alone: true, error: error.to_owned() });
        state.last_error = Some(format!("channel {channel}: {error}"));
        tracing::error!(%channel, error, wait = ?delay, "a channel cannot be claimed; it is tried again");
    }

    /// Nobody knows which channel is at fault: each stands alone the next time.
    pub(super) fn split(&self, channels: impl Iterator<Item = B256>, error: &str) {
        let mut state = self.state.lock();
        for channel in channels {
            let wait = state.waits.entry(channel).or_insert_with(|| Wait {
                attempts: 0,
                until: crate::clock::UnixMillis(0),
                alone: true,
                error: error.to_owned(),
            });
            wait.alone = true;
        }
        state.sweeping = true;
        state.last_error = Some(error.to_owned());
    }
}
