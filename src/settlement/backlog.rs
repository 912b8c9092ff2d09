//! What is due and was not taken up yet, over several rounds: the most urgent first, in bounded memory.
//!
//! Owns how much one look through the ledger yields, so that a hundred thousand channels that are due at once are not
//! looked for anew in every round. Promises that what is kept is the most urgent of all that was found, and that
//! something left off is said to be; then the ledger is looked through again once the rest is worked off. What is kept
//! may be out of date: whoever takes it looks at the channel once more.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::clock::UnixMillis;

/// How many due channels one look through the ledger keeps: a hundred bytes each.
pub const BACKLOG_CHANNELS_MAX: usize = 16_384;

/// The most urgent of what is due.
#[derive(Clone, Debug)]
pub struct Backlog<D> {
    most: usize,
    due: BTreeSet<D>,
    left_off: bool,
}

impl<D: Ord> Backlog<D> {
    /// An empty one that keeps at most `most`.
    #[must_use]
    pub const fn new(most: usize) -> Self {
        Self { most, due: BTreeSet::new(), left_off: false }
    }

    /// Takes one in, and leaves the least urgent off where there are too many.
    pub fn push(&mut self, due: D) {
        if self.due.len() >= self.most && self.due.last().is_none_or(|last| *last < due) {
            self.left_off = true;
            return;
        }
        self.due.insert(due);
        if self.due.len() > self.most {
            self.due.pop_last();
            self.left_off = true;
        }
    }

    /// Takes the most urgent out.
    pub fn pop(&mut self) -> Option<D> {
        self.due.pop_first()
    }

    /// Whether nothing is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.due.is_empty()
    }

    /// Whether there is more to do: something is kept, or was left off.
    #[must_use]
    pub fn has_more(&self) -> bool {
        self.left_off || !self.is_empty()
    }

    /// Whether only what was left off is to do.
    #[must_use]
    pub fn is_used_up(&self) -> bool {
        self.left_off && self.is_empty()
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.due.clear();
        self.left_off = false;
    }
}

/// What the ledger was looked through for last, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// When.
    pub at: UnixMillis,
    /// Whether for everything that was charged until then.
    pub until: Option<UnixMillis>,
    /// Whether for what is worth claiming at the interval.
    pub sweep: bool,
}

impl Look {
    /// Whether what it found is still good: it was for the same, and not so long ago that something more urgent may
    /// have come up unseen.
    #[must_use]
    pub fn serves(&self, now: Self, age_max: Duration) -> bool {
        (self.until, self.sweep) == (now.until, now.sweep) && now.at.since(self.at) < age_max && now.at >= self.at
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_most_urgent_are_kept_in_order(all in prop::collection::vec(any::<u16>(), 0..60), most in 1_usize..20) {
            let mut backlog = Backlog::new(most);
            all.iter().for_each(|due| backlog.push(*due));
            let mut sorted = all;
            sorted.sort_unstable();
            sorted.dedup();
            let left_off = sorted.len() > most;
            prop_assert_eq!(backlog.has_more(), !sorted.is_empty());
            sorted.truncate(most);
            let kept: Vec<_> = std::iter::from_fn(|| backlog.pop()).collect();
            prop_assert_eq!(kept, sorted);
            prop_assert_eq!((backlog.is_used_up(), backlog.has_more()), (left_off, left_off));
        }
    }

    #[test]
    fn a_look_serves_the_same_question_for_a_while() {
        let look = |seconds: i64, until: Option<i64>, sweep| Look {
            at: UnixMillis(seconds * 1000),
            until: until.map(UnixMillis),
            sweep,
        };
        let first = look(100, None, true);
        let age_max = Duration::from_secs(5);
        for (now, serves) in [
            (look(100, None, true), true),
            (look(104, None, true), true),
            (look(105, None, true), false),
            (look(99, None, true), false),
            (look(100, Some(i64::MAX), true), false),
            (look(100, None, false), false),
        ] {
            assert_eq!(first.serves(now, age_max), serves, "{now:?}");
        }
    }
}
