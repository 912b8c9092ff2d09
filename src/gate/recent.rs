//! What is in flight and what was done a short while ago, so that it is not done twice.
//!
//! Bounded: an entry in flight stays until its guard is dropped, one that is kept stays for the time to live; when all
//! places are taken nothing new is let in (`scheme_batch_settlement_svm.md`, section 5, phase 5; `scheme_upto_svm.md`,
//! "Duplicate Settlement Mitigation").

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::UnixMillis;

/// Why something was not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shut {
    /// It is in flight, or was done a short while ago.
    Seen,
    /// All places are taken.
    Full,
}

/// What is in flight and what was done recently.
pub(super) struct Recent<K: Eq + Hash + Clone> {
    /// When an entry was kept; `None` while it is in flight.
    entries: Mutex<HashMap<K, Option<UnixMillis>>>,
    ttl: Duration,
    entries_max: usize,
}

impl<K: Eq + Hash + Clone> Recent<K> {
    pub(super) fn new(ttl: Duration, entries_max: usize) -> Arc<Self> {
        Arc::new(Self { entries: Mutex::default(), ttl, entries_max })
    }

    /// Lets `key` in, or says why not.
    pub(super) fn enter(self: &Arc<Self>, key: K, now: UnixMillis) -> Result<Entered<K>, Shut> {
        let mut entries = self.entries.lock();
        let seen = entries.get(&key).is_some_and(|kept| kept.is_none_or(|at| now.since(at) < self.ttl));
        if seen {
            return Err(Shut::Seen);
        }
        if entries.len() >= self.entries_max {
            entries.retain(|_, kept| kept.is_none_or(|at| now.since(at) < self.ttl));
        }
        if entries.len() >= self.entries_max {
            return Err(Shut::Full);
        }
        entries.insert(key.clone(), None);
        Ok(Entered { recent: Arc::clone(self), key, kept: None })
    }
}

/// A place in flight. Dropped, it is free again, unless it is kept.
pub(super) struct Entered<K: Eq + Hash + Clone> {
    recent: Arc<Recent<K>>,
    key: K,
    kept: Option<UnixMillis>,
}

impl<K: Eq + Hash + Clone> Entered<K> {
    /// From here on it may have been done: remember it after it is dropped.
    pub(super) fn keep(&mut self, now: UnixMillis) {
        self.kept = Some(now);
    }

    /// It was not done after all.
    pub(super) fn forget(&mut self) {
        self.kept = None;
    }
}

impl<K: Eq + Hash + Clone> Drop for Entered<K> {
    fn drop(&mut self) {
        let mut entries = self.recent.entries.lock();
        match self.kept {
            Some(at) => entries.insert(self.key.clone(), Some(at)),
            None => entries.remove(&self.key),
        };
    }
}

/// How many answers are remembered for those who ask again.
const REMEMBERED_MAX: usize = 4_096;

/// What was answered lately. When all places are taken, what was first remembered the longest ago goes.
pub(super) struct Remembered<K, V>(Mutex<Lately<K, V>>);

struct Lately<K, V> {
    values: HashMap<K, V>,
    order: VecDeque<K>,
}

impl<K, V> Default for Remembered<K, V> {
    fn default() -> Self {
        Self(Mutex::new(Lately { values: HashMap::new(), order: VecDeque::new() }))
    }
}

impl<K: Eq + Hash + Clone, V: Clone> Remembered<K, V> {
    pub(super) fn get(&self, key: &K) -> Option<V> {
        self.0.lock().values.get(key).cloned()
    }

    pub(super) fn remember(&self, key: K, value: V) {
        let mut lately = self.0.lock();
        if lately.values.insert(key.clone(), value).is_none() {
            lately.order.push_back(key);
        }
        while lately.order.len() > REMEMBERED_MAX {
            if let Some(oldest) = lately.order.pop_front() {
                lately.values.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(120);

    #[test]
    fn an_entry_is_held_in_flight_and_remembered_only_when_kept() {
        let recent = Recent::new(TTL, 8);
        let start = UnixMillis(0);
        let later = start.plus(Duration::from_secs(1000));
        let mut first = recent.enter(1, start).unwrap();
        assert_eq!(recent.enter(1, later).err(), Some(Shut::Seen), "in flight never ages");
        drop(recent.enter(2, start).unwrap());
        assert!(recent.enter(2, start).is_ok(), "a dropped entry is free");
        first.keep(later);
        drop(first);
        assert_eq!(recent.enter(1, later).err(), Some(Shut::Seen));
        assert!(recent.enter(1, later.plus(TTL)).is_ok(), "a kept entry ages");
        let mut third = recent.enter(3, start).unwrap();
        third.keep(start);
        third.forget();
        drop(third);
        assert!(recent.enter(3, start).is_ok());
    }

    #[test]
    fn it_is_bounded_and_makes_room_from_what_has_aged() {
        let recent = Recent::new(TTL, 2);
        let start = UnixMillis(0);
        recent.enter(1, start).unwrap().keep(start);
        let held = recent.enter(2, start).unwrap();
        assert_eq!(recent.enter(3, start).err(), Some(Shut::Full));
        assert!(recent.enter(3, start.plus(TTL)).is_ok());
        drop(held);
    }

    #[test]
    fn answers_are_remembered_until_many_have_followed() {
        let lately = Remembered::default();
        for key in 0..=REMEMBERED_MAX {
            lately.remember(key, "first");
            lately.remember(key, "last");
        }
        assert_eq!((lately.get(&0), lately.get(&1), lately.get(&REMEMBERED_MAX)), (None, Some("last"), Some("last")));
    }
}
