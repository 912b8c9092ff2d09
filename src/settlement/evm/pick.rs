//! Finding what is due on an EVM network, and handing it to rounds, with the promises of [`backlog`].
//!
//! [`backlog`]: super::super::backlog

use std::collections::HashSet;

use super::super::Trigger;
use super::super::backlog::{Backlog, Look};
use super::plan::{self, EvmDue, EvmLine, EvmMoment};
use super::report::EvmReport;
use super::{EvmFilter, EvmSettlement};
use crate::x402::evm::B256;

/// What the last look through the ledger found, less what rounds have taken, and with what was seen since.
pub(super) struct Found {
    look: Option<Look>,
    due: Backlog<EvmDue>,
}

impl Found {
    pub(super) const fn new(most: usize) -> Self {
        Self { look: None, due: Backlog::new(most) }
    }

    /// The ledger is looked through anew.
    pub(super) fn forget(&mut self) {
        self.look = None;
    }
}

impl EvmSettlement {
    /// What a round claims, the most urgent first, and whether more is due.
    pub(super) fn pick(&self, trigger: Trigger, filter: &EvmFilter, report: &mut EvmReport) -> (Vec<EvmLine>, bool) {
        if let Some(channels) = filter {
            return self.among(channels, trigger);
        }
        let looked = self.look(trigger, false, report);
        let (lines, more) = self.take(trigger);
        // What was left of an earlier look may all be out of date.
        if lines.is_empty() && !looked && self.look(trigger, true, report) {
            return self.take(trigger);
        }
        (lines, more)
    }

    fn moment(&self, trigger: Trigger) -> EvmMoment {
        let sweeping = self.state.lock().sweeping;
        EvmMoment { now: self.parts.clock.now(), sweeping, until: trigger.until() }
    }

    /// Looks through the ledger for what is due, where what is known of that does not serve; says whether it has.
    fn look(&self, trigger: Trigger, anew: bool, report: &mut EvmReport) -> bool {
        let moment = self.moment(trigger);
        let look = Look { at: moment.now, until: moment.until, sweep: moment.sweeping };
        {
            let found = &mut self.state.lock().found;
            let serves = found.look.is_some_and(|last| last.serves(look, self.options.tick)) && !found.due.is_empty();
            if serves && !anew {
                return false;
            }
            found.look = Some(look);
            found.due.clear();
        }
        report.looks = report.looks.saturating_add(1);
        let rules = &self.options.rules;
        self.parts.ledger.glance(
            |channel| self.is_ours(channel).then(|| plan::due(channel, rules, moment)).flatten(),
            |due| {
                if !self.waits(&due, moment) {
                    self.state.lock().found.due.push(due);
                }
            },
        );
        true
    }

    /// Takes a round's worth of what was found, each channel as it is now.
    fn take(&self, trigger: Trigger) -> (Vec<EvmLine>, bool) {
        let moment = self.moment(trigger);
        let most = self.claims_max().saturating_mul(self.options.round_batches_max).max(1);
        let (mut lines, mut seen) = (Vec::new(), HashSet::new());
        while lines.len() < most {
            let Some(due) = self.state.lock().found.due.pop() else { break };
            let line = self.due_now(&due.channel, moment).filter(|line| !self.waits(&line.due, moment));
            if let Some(line) = line
                && seen.insert(due.channel)
            {
                lines.push(line);
            }
        }
        (lines, self.state.lock().found.due.has_more())
    }

    /// The same among a few channels.
    fn among(&self, channels: &HashSet<B256>, trigger: Trigger) -> (Vec<EvmLine>, bool) {
        let moment = self.moment(trigger);
        let most = self.claims_max().saturating_mul(self.options.round_batches_max).max(1);
        let mut found = Backlog::new(most);
        let lines = channels.iter().filter_map(|channel| self.due_now(channel, moment));
        lines.filter(|line| !self.waits(&line.due, moment)).for_each(|line| found.push(line.due));
        let picked = std::iter::from_fn(|| found.pop());
        let lines = picked.filter_map(|due| self.due_now(&due.channel, moment)).collect();
        (lines, found.has_more())
    }

    /// What a batch was not made of is still due.
    pub(super) fn put_back(&self, batch: Vec<EvmLine>) {
        let found = &mut self.state.lock().found;
        batch.into_iter().for_each(|line| found.due.push(line.due));
    }

    /// Something has become of a channel: where it is due now, the next round knows it without looking for it.
    pub(super) fn note(&self, channel: &B256) {
        let Some(look) = self.state.lock().found.look else { return };
        let moment = EvmMoment { now: self.parts.clock.now(), sweeping: look.sweep, until: look.until };
        if let Some(line) = self.due_now(channel, moment) {
            self.state.lock().found.due.push(line.due);
        }
    }

    fn due_now(&self, channel: &B256, moment: EvmMoment) -> Option<EvmLine> {
        let record = self.parts.ledger.channel(channel).filter(|record| self.is_ours(record))?;
        let due = plan::due(&record, &self.options.rules, moment)?;
        Some(EvmLine { record, due })
    }

    fn waits(&self, due: &EvmDue, moment: EvmMoment) -> bool {
        let urgent = due.urgency == plan::Urgency::Withdrawal;
        let longest_urgent = self.options.backoff.longest_urgent;
        let state = self.state.lock();
        state.waits.get(&due.channel).is_some_and(|wait| wait.holds(moment.now, urgent, longest_urgent))
    }

    /// How many claims a transaction takes.
    fn claims_max(&self) -> usize {
        let fit = self.parts.cost.as_ref().map_or(super::CLAIMS_MAX, |cost| cost.claims_max());
        self.options.batch_claims.min(fit).clamp(1, super::CLAIMS_MAX)
    }

    /// With how many others each of these may share a batch, itself included.
    pub(super) fn shares(&self, lines: &[EvmLine]) -> impl Fn(&B256) -> usize + use<> {
        let most = self.claims_max();
        let state = self.state.lock();
        let fewer = lines.iter().filter_map(|line| {
            let wait = state.waits.get(&line.due.channel)?;
            Some((line.due.channel, wait.claims_max.min(most)))
        });
        let fewer: std::collections::HashMap<B256, usize> = fewer.collect();
        move |channel| fewer.get(channel).copied().unwrap_or(most)
    }
}
