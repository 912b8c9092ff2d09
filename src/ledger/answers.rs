//! Which answers are kept, for clients that lost theirs: an index in memory over bodies in the store.
//!
//! Owns who is found and who has to go. Promises: never more than the limits, the oldest go first, and an answer is
//! found from the moment that it is durable until its time is over. What has to go is not found any more at once and is
//! deleted behind the requests, a few records at a time (`tidy`); what waits to be deleted counts too (`has_room`), so
//! the file stays bounded even where deleting falls behind.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::Ledger;
use super::channel::Family;
use super::store::{Answer, AnswerId, AnswerMark, AnswerRecord, StoreError, Write};
use super::turns::Core;
use crate::clock::UnixMillis;

/// How many answers are kept at most. By the sizes of its types, the index of so many takes 21 MB.
pub const ANSWERS_MAX: usize = 100_000;
/// What an answer counts beyond its head and body: its row.
const OVERHEAD_BYTES: u64 = 256;
/// How many records one step deletes.
const STEP_ANSWERS: usize = 64;

/// How long and how much is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnswerLimits {
    /// For how long an answer can be had again.
    pub keep: Duration,
    /// How much all answers may hold.
    pub bytes_max: u64,
}

impl Default for AnswerLimits {
    /// 10 minutes, 256 MiB.
    fn default() -> Self {
        Self { keep: Duration::from_secs(600), bytes_max: 256 * 1024 * 1024 }
    }
}

impl<F: Family> Ledger<F> {
    /// Whether answers are kept.
    #[must_use]
    pub fn keeps_answers(&self) -> bool {
        self.core.answers.limits().is_some()
    }

    /// Whether an answer with a head and body of `bytes` can be kept now.
    #[must_use]
    pub fn has_room_for_answer(&self, bytes: u64) -> bool {
        self.core.answers.has_room(bytes)
    }

    /// What is kept under a key, while its time is not over.
    #[must_use]
    pub fn find_answer(&self, key: &[u8; 32]) -> Option<AnswerMark> {
        self.core.answers.find(key, self.core.clock.now())
    }

    /// A kept answer by its mark; `None` where it had to go meanwhile.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn read_answer(&self, mark: &AnswerMark) -> Result<Option<Answer>, StoreError> {
        self.core.store.answer(mark.place).await
    }

    /// Keeps an answer whose charge is durable elsewhere: on chain. A charge of ours is kept together with its answer,
    /// by [`super::Reservation::commit_with_answer`].
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn keep_answer(&self, id: AnswerId, answer: Answer) -> Result<(), StoreError> {
        let record = self.core.answers.record(id, self.core.clock.now(), answer);
        let (core, mark) = (Arc::clone(&self.core), record.mark());
        self.journalled(vec![Write::Answer(Box::new(record))], move |_| core.answers.put(mark)).await
    }

    /// How many answers are kept, and how many bytes they count.
    #[must_use]
    pub fn answers(&self) -> (usize, u64) {
        self.core.answers.counts()
    }
}

/// Kept answers of a ledger of whatever family.
#[async_trait]
pub trait KeptAnswers: Send + Sync {
    /// [`Ledger::find_answer`].
    fn find(&self, key: &[u8; 32]) -> Option<AnswerMark>;
    /// [`Ledger::read_answer`].
    async fn read(&self, mark: &AnswerMark) -> Result<Option<Answer>, StoreError>;
}

#[async_trait]
impl<F: Family> KeptAnswers for Ledger<F> {
    fn find(&self, key: &[u8; 32]) -> Option<AnswerMark> {
        self.find_answer(key)
    }

    async fn read(&self, mark: &AnswerMark) -> Result<Option<Answer>, StoreError> {
        self.read_answer(mark).await
    }
}

/// The index.
pub(super) struct Answers {
    limits: Option<AnswerLimits>,
    index: Mutex<Index>,
    next_place: AtomicU64,
    pressed: Arc<Notify>,
}

#[derive(Default)]
struct Index {
    by_key: HashMap<[u8; 32], AnswerMark>,
    /// Oldest first; what was replaced or taken out meanwhile is skipped.
    order: VecDeque<([u8; 32], u64)>,
    bytes: u64,
    /// Not found any more, and still in the store.
    doomed: VecDeque<AnswerMark>,
    doomed_bytes: u64,
}

impl Answers {
    pub(super) fn new(limits: Option<AnswerLimits>) -> Self {
        Self { limits, index: Mutex::default(), next_place: AtomicU64::new(1), pressed: Arc::default() }
    }

    /// Takes up what the store holds, oldest first.
    pub(super) fn restore(&self, marks: Vec<AnswerMark>, now: UnixMillis) {
        for mark in marks {
            self.next_place.fetch_max(mark.place.saturating_add(1), Ordering::Relaxed);
            if self.is_over(&mark, now) {
                self.index.lock().doom(mark);
            } else {
                self.put(mark);
            }
        }
        self.pressed.notify_one();
    }

    pub(super) const fn limits(&self) -> Option<AnswerLimits> {
        self.limits
    }

    pub(super) fn record(&self, id: AnswerId, kept_at: UnixMillis, answer: Answer) -> AnswerRecord {
        AnswerRecord { place: self.next_place.fetch_add(1, Ordering::Relaxed), id, kept_at, answer }
    }

    /// Whether an answer of this size can be kept at all, and deleting keeps up.
    pub(super) fn has_room(&self, bytes: u64) -> bool {
        let Some(limits) = self.limits else { return false };
        let index = self.index.lock();
        weight(bytes) <= limits.bytes_max && index.doomed_bytes <= limits.bytes_max && index.doomed.len() <= ANSWERS_MAX
    }

    /// Enters an answer that is durable.
    pub(super) fn put(&self, mark: AnswerMark) {
        let mut index = self.index.lock();
        if let Some(replaced) = index.by_key.insert(mark.id.key, mark) {
            index.bytes = index.bytes.saturating_sub(weight(replaced.bytes));
            index.doom(replaced);
        }
        index.order.push_back((mark.id.key, mark.place));
        index.bytes = index.bytes.saturating_add(weight(mark.bytes));
        let bytes_max = self.limits.map_or(0, |limits| limits.bytes_max);
        while index.bytes > bytes_max || index.by_key.len() > ANSWERS_MAX {
            if !index.drop_oldest() {
                break;
            }
        }
        if !index.doomed.is_empty() {
            self.pressed.notify_one();
        }
    }

    /// The answer under a key, while its time is not over.
    pub(super) fn find(&self, key: &[u8; 32], now: UnixMillis) -> Option<AnswerMark> {
        let mark = self.index.lock().by_key.get(key).copied()?;
        (!self.is_over(&mark, now)).then_some(mark)
    }

    /// How many are kept, and what they count.
    pub(super) fn counts(&self) -> (usize, u64) {
        let index = self.index.lock();
        (index.by_key.len(), index.bytes)
    }

    fn is_over(&self, mark: &AnswerMark, now: UnixMillis) -> bool {
        self.limits.is_none_or(|limits| now.since(mark.kept_at) >= limits.keep)
    }

    fn expire(&self, now: UnixMillis) {
        let mut index = self.index.lock();
        while let Some((key, place)) = index.order.front().copied() {
            let current = index.by_key.get(&key).copied().filter(|mark| mark.place == place);
            if current.is_some_and(|mark| !self.is_over(&mark, now)) || !index.drop_oldest() {
                return;
            }
        }
    }

    fn step(&self) -> Vec<u64> {
        self.index.lock().doomed.iter().take(STEP_ANSWERS).map(|mark| mark.place).collect()
    }

    fn deleted(&self, count: usize) {
        let mut index = self.index.lock();
        let bytes: u64 = index.doomed.drain(..count).map(|mark| weight(mark.bytes)).sum();
        index.doomed_bytes = index.doomed_bytes.saturating_sub(bytes);
    }
}

impl Index {
    fn doom(&mut self, mark: AnswerMark) {
        self.doomed_bytes = self.doomed_bytes.saturating_add(weight(mark.bytes));
        self.doomed.push_back(mark);
    }

    /// Takes the oldest out, or what is left of one that was replaced; whether there was anything.
    fn drop_oldest(&mut self) -> bool {
        let Some((key, place)) = self.order.pop_front() else { return false };
        if self.by_key.get(&key).is_some_and(|mark| mark.place == place)
            && let Some(mark) = self.by_key.remove(&key)
        {
            self.bytes = self.bytes.saturating_sub(weight(mark.bytes));
            self.doom(mark);
        }
        true
    }
}

const fn weight(bytes: u64) -> u64 {
    bytes.saturating_add(OVERHEAD_BYTES)
}

/// Deletes what has to go, for as long as the ledger lives.
pub(super) async fn tidy<F: Family>(core: Weak<Core<F>>) {
    loop {
        let Some((every, pressed)) = core.upgrade().map(|core| {
            let keep = core.answers.limits.map_or(Duration::MAX, |limits| limits.keep);
            ((keep / 16).clamp(Duration::from_secs(1), Duration::from_secs(60)), Arc::clone(&core.answers.pressed))
        }) else {
            return;
        };
        // Either of them is a reason to look.
        let _elapsed = timeout(every, pressed.notified()).await;
        let Some(core) = core.upgrade() else { return };
        core.answers.expire(core.clock.now());
        loop {
            let places = core.answers.step();
            if places.is_empty() {
                break;
            }
            let count = places.len();
            if core.writable().is_err() {
                return;
            }
            if let Err(error) = core.store.write(vec![Write::ForgetAnswers(places)]).await {
                return core.stop(&error.0);
            }
            core.answers.deleted(count);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mark(place: u64, key: u8, at: i64, bytes: u64) -> AnswerMark {
        let id = AnswerId { key: [key; 32], fingerprint: [key; 32] };
        AnswerMark { place, id, kept_at: UnixMillis(at), bytes }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Put { key: u8, bytes: u64 },
        Pass(i64),
        Delete,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let put = (0u8..8, 0u64..3000).prop_map(|(key, bytes)| Step::Put { key, bytes });
        proptest::collection::vec(
            prop_oneof![4 => put, 1 => (0i64..400).prop_map(Step::Pass), 2 => Just(Step::Delete)],
            0..80,
        )
    }

    proptest! {
        /// Against a plain list: the same answers are found, the limits hold, and what is not found is deleted once.
        #[test]
        fn the_oldest_go_first_and_the_limits_hold(steps in steps()) {
            let limits = AnswerLimits { keep: Duration::from_millis(1000), bytes_max: 4096 };
            let answers = Answers::new(Some(limits));
            let mut model: Vec<AnswerMark> = Vec::new();
            let mut stored: Vec<u64> = Vec::new();
            let mut now = 0;
            for (place, step) in (1u64..).zip(steps) {
                match step {
                    Step::Put { key, bytes } => {
                        let new = mark(place, key, now, bytes);
                        answers.put(new);
                        stored.push(place);
                        model.retain(|old| old.id.key != new.id.key);
                        model.push(new);
                        while model.iter().map(|mark| weight(mark.bytes)).sum::<u64>() > limits.bytes_max {
                            model.remove(0);
                        }
                    }
                    Step::Pass(millis) => now += millis,
                    Step::Delete => {
                        answers.expire(UnixMillis(now));
                        model.retain(|mark| now - mark.kept_at.0 < 1000);
                        let places = answers.step();
                        prop_assert!(places.iter().all(|place| stored.contains(place)), "deleted twice, or never stored");
                        stored.retain(|place| !places.contains(place));
                        answers.deleted(places.len());
                    }
                }
                for key in 0u8..8 {
                    let expected = model.iter().find(|mark| mark.id.key == [key; 32] && now - mark.kept_at.0 < 1000);
                    prop_assert_eq!(answers.find(&[key; 32], UnixMillis(now)), expected.copied());
                }
                let (count, bytes) = answers.counts();
                prop_assert_eq!(count, model.len());
                prop_assert_eq!(bytes, model.iter().map(|mark| weight(mark.bytes)).sum::<u64>());
                prop_assert!(bytes <= limits.bytes_max);
                let doomed = answers.index.lock().doomed.len();
                prop_assert_eq!(stored.len(), count + doomed, "what is stored is found or waits to be deleted");
            }
        }
    }

    #[test]
    fn what_was_stored_is_taken_up_and_places_are_not_given_twice() {
        let limits = AnswerLimits { keep: Duration::from_millis(1000), bytes_max: 4096 };
        let marks = vec![mark(3, 1, 0, 10), mark(9, 2, 500, 10)];
        let answers = Answers::new(Some(limits));
        answers.restore(marks.clone(), UnixMillis(1200));
        assert_eq!(answers.find(&[1; 32], UnixMillis(1200)), None);
        assert_eq!(answers.find(&[2; 32], UnixMillis(1200)), Some(marks[1]));
        assert_eq!(answers.step(), [3]);
        let answer = Answer { status: 200, head: "".into(), body: "".into() };
        assert_eq!(answers.record(marks[0].id, UnixMillis(0), answer).place, 10);
        let off = Answers::new(None);
        off.restore(marks, UnixMillis(0));
        assert_eq!((off.step(), off.counts(), off.has_room(0)), (vec![3, 9], (0, 0), false), "switched off, all go");
    }

    #[test]
    fn there_is_no_room_while_deleting_is_far_behind() {
        let answers = Answers::new(Some(AnswerLimits { keep: Duration::from_secs(1), bytes_max: 1000 }));
        assert!(answers.has_room(744) && !answers.has_room(745));
        for place in 1..=5 {
            answers.put(mark(place, 1, 0, 200));
        }
        assert!(!answers.has_room(0), "four wait to be deleted, which is more than all may hold");
        answers.deleted(2);
        assert!(answers.has_room(0));
    }
}
