//! Finding what is due, and handing it to rounds.
//!
//! Promises that the ledger is looked through once for as many rounds as what was found lasts, and again when that is
//! used up, when something else is looked for, and at the latest after a tick; so that the work for many channels that
//! are due at once grows with their number, and a deadline that came up meanwhile does not wait. What is seen of single
//! channels between two looks (a payer who closes, a claim that can be paid out) is taken up at once.

use std::collections::HashSet;

use super::backlog::{Backlog, Look};
use super::plan::{self, Due, Moment, Phase};
use super::report::Report;
use super::{Filter, Settlement, State, Trigger};
use crate::ledger::store::{BatchKind, BatchRecord};
use crate::x402::Key;

/// What the last look through the ledger found, less what rounds have taken, and with what was seen since.
pub(super) struct Found {
    look: Option<Look>,
    claims: Backlog<Due>,
    payouts: Backlog<Due>,
}

impl Found {
    pub(super) const fn new(most: usize) -> Self {
        Self { look: None, claims: Backlog::new(most), payouts: Backlog::new(most) }
    }

    /// The ledger is looked through anew.
    pub(super) fn forget(&mut self) {
        self.look = None;
    }

    fn begin(&mut self, look: Look) {
        self.look = Some(look);
        self.claims.clear();
        self.payouts.clear();
    }

    fn of(&mut self, phase: Phase) -> &mut Backlog<Due> {
        match phase {
            Phase::Claims => &mut self.claims,
            Phase::Payouts => &mut self.payouts,
        }
    }

    fn push(&mut self, due: Due) {
        self.of(due.action.phase()).push(due);
    }

    fn is_used_up(&self) -> bool {
        let (claims, payouts) = (&self.claims, &self.payouts);
        claims.is_used_up() || payouts.is_used_up() || (claims.is_empty() && payouts.is_empty())
    }
}

impl Settlement {
    /// What a round does in a phase, the most urgent first, and whether more is due.
    pub(super) fn pick(
        &self,
        phase: Phase,
        trigger: Trigger,
        filter: &Filter,
        open: &[BatchRecord],
        report: &mut Report,
    ) -> (Vec<Due>, bool) {
        let busy: HashSet<Key> =
            open.iter().flat_map(|batch| batch.lines.iter().map(|(channel, _)| *channel)).collect();
        if let Filter::Channels(channels) = filter {
            return self.among(channels, phase, trigger, &busy);
        }
        if phase == Phase::Payouts {
            return self.take(phase, &busy);
        }
        let looked = self.look(trigger, false, report);
        let (picked, more) = self.take(phase, &busy);
        // What was left of an earlier look may all be out of date.
        let nothing_left = !more && !looked && picked.is_empty() && self.state.lock().found.is_used_up();
        if nothing_left && self.look(trigger, true, report) {
            return self.take(phase, &busy);
        }
        (picked, more)
    }

    pub(super) fn moment(&self, trigger: Trigger) -> Moment {
        let now = self.clock.now();
        let state = self.state.lock();
        Moment { now, slot: state.slot, sweep: state.sweeping, until: trigger.until() }
    }

    /// Looks through the ledger for what is due, where what is known of that does not serve; says whether it has.
    fn look(&self, trigger: Trigger, anew: bool, report: &mut Report) -> bool {
        let moment = self.moment(trigger);
        let look = Look { at: moment.now, until: moment.until, sweep: moment.sweep };
        {
            let found = &mut self.state.lock().found;
            let serves = found.look.is_some_and(|last| last.serves(look, self.options.tick)) && !found.is_used_up();
            if serves && !anew {
                return false;
            }
            found.begin(look);
        }
        report.looks = report.looks.saturating_add(1);
        let rules = &self.options.rules;
        // The ledger's shards are visited before our own lock is taken: neither is ever held inside the other.
        self.ledger.glance(
            |channel| {
                let due = self.is_ours(channel).then(|| plan::due(channel, rules, &moment, true)).flatten()?;
                Some((due, plan::due(channel, rules, &moment, false)))
            },
            |(with_retry, without)| {
                let mut state = self.state.lock();
                // A claim that is due only because it failed before needs its failure.
                let trouble = state.troubles.of(&with_retry.channel, with_retry.action.kind());
                let due = if trouble.is_some() { Some(with_retry) } else { without };
                if let Some(due) = due.filter(|due| state.is_ready(due, moment)) {
                    state.found.push(due);
                }
            },
        );
        true
    }

    /// Takes a round's worth of what was found.
    fn take(&self, phase: Phase, busy: &HashSet<Key>) -> (Vec<Due>, bool) {
        let moment = self.moment(Trigger::Clock);
        let most = self.options.round_channels_max.max(1);
        let (mut picked, mut seen) = (Vec::new(), HashSet::new());
        let mut state = self.state.lock();
        while picked.len() < most {
            let Some(due) = state.found.of(phase).pop() else { break };
            let free = !busy.contains(&due.channel) && state.is_ready(&due, moment);
            if free && seen.insert(due.channel) {
                picked.push(due);
            }
        }
        (picked, state.found.of(phase).has_more())
    }

    /// The same among a few channels.
    fn among(&self, channels: &HashSet<Key>, phase: Phase, trigger: Trigger, busy: &HashSet<Key>) -> (Vec<Due>, bool) {
        let moment = self.moment(trigger);
        let mut due = Backlog::new(self.options.round_channels_max.max(1));
        for channel in channels.iter().filter(|channel| !busy.contains(channel)) {
            let Some(found) = self.due_now(channel, &moment) else { continue };
            if found.action.phase() == phase && self.state.lock().is_ready(&found, moment) {
                due.push(found);
            }
        }
        let picked: Vec<Due> = std::iter::from_fn(|| due.pop()).collect();
        (picked, due.has_more())
    }

    /// Something has become of a channel: where it is due now, the next round knows it without looking for it.
    pub(super) fn note(&self, channel: &Key) {
        let Some(look) = self.state.lock().found.look else { return };
        let moment = Moment { until: look.until, sweep: look.sweep, ..self.moment(Trigger::Clock) };
        if let Some(due) = self.due_now(channel, &moment) {
            self.state.lock().found.push(due);
        }
    }

    /// What a channel of ours is due for.
    pub(super) fn due_now(&self, channel: &Key, moment: &Moment) -> Option<Due> {
        let record = self.ledger.channel(channel).filter(|record| self.is_ours(record))?;
        let failed = self.state.lock().troubles.of(channel, BatchKind::Claim).is_some();
        plan::due(&record, &self.options.rules, moment, failed)
    }
}

impl State {
    /// Whether a channel that is due can be taken up now.
    fn is_ready(&self, due: &Due, moment: Moment) -> bool {
        let waits = self.troubles.of(&due.channel, due.action.kind()).is_some_and(|trouble| trouble.until > moment.now);
        !waits && !self.gone.contains(&due.channel)
    }
}
