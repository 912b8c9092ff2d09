//! The batches that a report tells of: every one is counted, and a bounded number is listed.
//!
//! Promises that counts and sums are over all batches, each once and by how it ended last, and that those of unknown fate
//! are all listed; they are few, as nothing new is made while they are many. Of the others, what went wrong is listed
//! rather than what went well.

use std::ops::Deref;

use super::report::Outcome;
use crate::amount::Amount;

/// How many batches a report lists, beside those of unknown fate.
pub const BATCHES_LISTED_MAX: usize = 1_000;

/// What is told of one batch.
pub trait Told {
    /// What a batch can do.
    type Kind: Copy + PartialEq;
    /// Its number in the journal; 0 where it was never journalled.
    fn id(&self) -> u64;
    /// What it does.
    fn kind(&self) -> Self::Kind;
    /// How it ended, for now.
    fn outcome(&self) -> &Outcome;
}

/// How many batches ended how, and what they moved.
#[derive(Clone, Debug)]
pub struct Ends<K> {
    /// Confirmed.
    pub confirmed: usize,
    /// Dropped.
    pub dropped: usize,
    /// Signed and of unknown fate.
    pub unknown: usize,
    /// Not approved or not signed.
    pub refused: usize,
    moved: Vec<(K, Amount)>,
}

impl<K> Default for Ends<K> {
    fn default() -> Self {
        Self { confirmed: 0, dropped: 0, unknown: 0, refused: 0, moved: Vec::new() }
    }
}

impl<K: Copy + PartialEq> Ends<K> {
    /// How many batches there were.
    #[must_use]
    pub const fn total(&self) -> usize {
        self.confirmed.saturating_add(self.unsettled())
    }

    /// How many of them were not confirmed.
    #[must_use]
    pub const fn unsettled(&self) -> usize {
        self.dropped.saturating_add(self.unknown).saturating_add(self.refused)
    }

    /// What confirmed batches of this kind moved.
    #[must_use]
    pub fn moved(&self, kind: K) -> Amount {
        self.moved.iter().find(|(of, _)| *of == kind).map_or(Amount::ZERO, |(_, sum)| *sum)
    }

    fn of(&mut self, outcome: &Outcome) -> &mut usize {
        match outcome {
            Outcome::Confirmed { .. } => &mut self.confirmed,
            Outcome::Dropped { .. } => &mut self.dropped,
            Outcome::Unknown { .. } => &mut self.unknown,
            Outcome::Refused { .. } => &mut self.refused,
        }
    }

    fn add(&mut self, kind: K, outcome: &Outcome) {
        let count = self.of(outcome);
        *count = count.saturating_add(1);
        if let Outcome::Confirmed { moved } = outcome {
            self.add_moved(kind, *moved);
        }
    }

    fn add_moved(&mut self, kind: K, amount: Amount) {
        match self.moved.iter_mut().find(|(of, _)| *of == kind) {
            Some((_, sum)) => *sum = sum.saturating_add(amount),
            None => self.moved.push((kind, amount)),
        }
    }

    fn join(&mut self, later: Self) {
        self.confirmed = self.confirmed.saturating_add(later.confirmed);
        self.dropped = self.dropped.saturating_add(later.dropped);
        self.unknown = self.unknown.saturating_add(later.unknown);
        self.refused = self.refused.saturating_add(later.refused);
        later.moved.into_iter().for_each(|(kind, amount)| self.add_moved(kind, amount));
    }
}

/// The batches of a round, or of several. Dereferences to those that are listed.
#[derive(Clone, Debug)]
pub struct Batches<B: Told> {
    listed: Vec<B>,
    ends: Ends<B::Kind>,
}

impl<B: Told> Default for Batches<B> {
    fn default() -> Self {
        Self { listed: Vec::new(), ends: Ends::default() }
    }
}

impl<B: Told> Deref for Batches<B> {
    type Target = [B];

    fn deref(&self) -> &[B] {
        &self.listed
    }
}

impl<B: Told> Batches<B> {
    /// Takes up a batch.
    pub fn push(&mut self, batch: B) {
        self.ends.add(batch.kind(), batch.outcome());
        self.list(batch);
    }

    /// Takes up the batches of a later round.
    pub fn append(&mut self, later: Self) {
        self.ends.join(later.ends);
        later.listed.into_iter().for_each(|batch| self.list(batch));
    }

    /// All of them, counted.
    #[must_use]
    pub const fn ends(&self) -> &Ends<B::Kind> {
        &self.ends
    }

    /// How many of them are not listed.
    #[must_use]
    pub const fn left_off(&self) -> usize {
        self.ends.total().saturating_sub(self.listed.len())
    }

    fn list(&mut self, batch: B) {
        let id = batch.id();
        // One of unknown fate that was looked up again is told of once. What was never journalled has no number to know
        // it by.
        let again = |known: &&mut B| is_unknown(*known) && known.id() == id;
        if id != 0
            && self.ends.unknown > 0
            && let Some(known) = self.listed.iter_mut().find(again)
        {
            self.ends.unknown = self.ends.unknown.saturating_sub(1);
            *known = batch;
            return;
        }
        if self.listed.len() < BATCHES_LISTED_MAX || is_unknown(&batch) {
            self.listed.push(batch);
        } else if !is_confirmed(&batch)
            && let Some(at) = self.listed.iter().rposition(is_confirmed)
        {
            self.listed.remove(at);
            self.listed.push(batch);
        }
    }
}

fn is_unknown<B: Told>(batch: &B) -> bool {
    matches!(batch.outcome(), Outcome::Unknown { .. })
}

fn is_confirmed<B: Told>(batch: &B) -> bool {
    matches!(batch.outcome(), Outcome::Confirmed { .. })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Debug)]
    struct One(u64, Outcome);

    impl Told for One {
        type Kind = ();

        fn id(&self) -> u64 {
            self.0
        }

        fn kind(&self) {}

        fn outcome(&self) -> &Outcome {
            &self.1
        }
    }

    fn confirmed(moved: u64) -> Outcome {
        Outcome::Confirmed { moved: moved.into() }
    }

    fn why() -> String {
        "why".to_owned()
    }

    fn round(batches: impl IntoIterator<Item = One>) -> Batches<One> {
        let mut round = Batches::default();
        batches.into_iter().for_each(|batch| round.push(batch));
        round
    }

    #[test]
    fn one_of_unknown_fate_counts_once_and_by_its_end() {
        let mut all = round([One(1, Outcome::Unknown { why: why() }), One(0, Outcome::Refused { why: why() })]);
        all.append(round([One(1, Outcome::Unknown { why: why() })]));
        assert_eq!((all.len(), all.ends().unknown, all.ends().refused), (2, 1, 1));
        all.append(round([One(1, confirmed(7)), One(0, Outcome::Refused { why: why() })]));
        assert_eq!((all.len(), all.ends().unknown, all.ends().refused, all.ends().confirmed), (3, 0, 2, 1));
        assert_eq!((all.ends().moved(()), all.left_off()), (Amount::from(7_u64), 0));
    }

    #[test]
    fn the_list_is_bounded_and_the_sums_are_not() {
        let mut all = Batches::default();
        let many = BATCHES_LISTED_MAX * 3;
        for id in 1..=u64::try_from(many).unwrap() {
            all.append(round([One(id, confirmed(2))]));
        }
        all.append(round([One(90_000, Outcome::Unknown { why: why() }), One(90_001, Outcome::Dropped { why: why() })]));
        all.append(round([One(90_000, confirmed(5))]));
        assert_eq!((all.ends().total(), all.ends().confirmed, all.ends().unsettled()), (many + 2, many + 1, 1));
        assert_eq!(all.ends().moved(()), Amount::from(u64::try_from(many * 2 + 5).unwrap()));
        assert_eq!((all.len(), all.left_off()), (BATCHES_LISTED_MAX + 1, many + 1 - BATCHES_LISTED_MAX));
        assert_eq!(all.iter().filter(|batch| !is_confirmed(*batch)).count(), 1, "what went wrong is listed");
    }
}
