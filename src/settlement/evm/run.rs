//! The loop and its rounds: follow up, plan, claim, pay out.
//!
//! One batch is under way at a time: a payout must find its claims mined, and facilitators that send one transaction
//! after the other refuse what overtakes.

use tokio::time::sleep;

use super::super::report::STUCK_LISTED_MAX;
use super::super::{Outcome, Trigger};
use super::plan::{self, EvmLine};
use super::report::EvmReport;
use super::{EvmFilter, EvmSettlement};
use crate::amount::Amount;
use crate::ledger::channel::evm::EvmBatch;

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
        let swept = self.begin_sweep();
        for batch in self.open_batches() {
            let done = self.follow(batch).await;
            report.batches.push(done);
        }
        // What is of unknown fate is found out before anything is made that could meet it on chain.
        if self.open_batches().is_empty() && !self.is_held() {
            self.claim(trigger, filter, &mut report).await;
        }
        // Every channel is looked at for it, so not at every tick. A refund's claim is found with the next sweep.
        let claimed = report.batches.ends().confirmed > 0;
        let look = swept || claimed || matches!(trigger, Trigger::Demand(_)) || self.payout_is_due();
        // While there is more to claim, one payout of what many rounds claimed will do.
        let look = look && (!report.more || self.may_pay_out_between());
        if look && self.open_batches().is_empty() && !self.is_held() {
            self.pay_out(&mut report).await;
        }
        let now = self.parts.clock.now();
        let state = self.state.lock();
        report.held = state.hold.as_ref().filter(|hold| hold.until > now).map(|hold| hold.error.clone());
        let mut waiting = state.waits.iter().filter(|(_, wait)| wait.until > now);
        let listed = waiting.by_ref().take(STUCK_LISTED_MAX);
        report.stuck = listed.map(|(channel, wait)| (*channel, wait.error.clone())).collect();
        report.stuck.sort();
        report.stuck_left_off = waiting.count();
        report
    }

    /// Whether a sweep begins with this round.
    fn begin_sweep(&self) -> bool {
        let now = self.parts.clock.now();
        let mut state = self.state.lock();
        let due = now.since(state.last_sweep) >= self.options.interval;
        if due {
            state.last_sweep = now;
            state.sweeping = true;
        }
        due
    }

    pub(super) fn open_batches(&self) -> Vec<EvmBatch> {
        let mut open = self.parts.ledger.open_batches();
        open.retain(|batch| self.options.sellers.iter().any(|seller| seller.network == batch.network));
        open
    }

    async fn claim(&self, trigger: Trigger, filter: &EvmFilter, report: &mut EvmReport) {
        let (lines, more) = self.pick(trigger, filter, report);
        let share = self.shares(&lines);
        let batches = plan::pack(lines, self.options.batch_total_max, &|due| share(&due.channel));
        report.more = more || batches.len() > self.options.round_batches_max;
        // Whether something stays due that the sweep has not claimed.
        let mut left = report.more;
        let mut batches = batches.into_iter();
        for batch in batches.by_ref().take(self.options.round_batches_max) {
            if self.stopping() || self.is_held() {
                left = true;
                self.put_back(batch);
                break;
            }
            match self.is_worth_it(&batch).await {
                Some(true) => {
                    let done = self.carry(batch).await;
                    let unknown = matches!(done.outcome, Outcome::Unknown { .. });
                    // What failed is tried again in parts, without waiting for the next sweep.
                    report.more |= matches!(done.outcome, Outcome::Dropped { .. } | Outcome::Refused { .. });
                    left |= unknown || report.more;
                    report.batches.push(done);
                    if unknown {
                        break;
                    }
                }
                // It stays due, and is looked at again with what comes to it.
                Some(false) => left = true,
                None => {
                    left = true;
                    self.put_back(batch);
                    break;
                }
            }
        }
        batches.for_each(|batch| self.put_back(batch));
        if trigger == Trigger::Clock && !left {
            self.state.lock().sweeping = false;
        }
    }

    /// Whether a batch is worth its cost; `None` where that cannot be found out, and it does not press.
    async fn is_worth_it(&self, batch: &[EvmLine]) -> Option<bool> {
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
}
