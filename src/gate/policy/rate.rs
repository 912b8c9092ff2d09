//! How often a payer may ask: a bucket of tokens that fills evenly, as a function of state and a given time.
//!
//! `10/s` lets ten requests through at once and then one every tenth of a second. Kept as one time for each payer, that
//! at which its bucket would be full again (the generic cell rate algorithm). Each payer's count is its own: an
//! estimate over hashes, such as `pingora-limits` keeps, would refuse one payer for what others did.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::UnixMillis;
use crate::x402::Account;

/// How many payers are remembered whose buckets are not full; beyond it nobody new is let in.
const PAYERS_MAX: usize = 1 << 20;
/// From so many on it is looked whose buckets are full again.
const TIDY_MIN: usize = 1024;
/// How often that is looked for at most.
const TIDY_EVERY: Duration = Duration::from_secs(1);
/// When to try again where too many payers are remembered.
const FULL_RETRY: Duration = Duration::from_secs(1);

/// The most requests of one rate.
pub const COUNT_MAX: u32 = 1_000_000;

/// So many requests in so long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    count: u32,
    every: Duration,
    /// How long one token takes to come back.
    step: Duration,
}

impl Rate {
    /// `count` requests in `every`; `None` where either is nothing, or the count is above [`COUNT_MAX`].
    #[must_use]
    pub fn new(count: u32, every: Duration) -> Option<Self> {
        if count == 0 || count > COUNT_MAX || every.is_zero() {
            return None;
        }
        // Rounded up, so that the rate is never passed.
        let step = every.as_nanos().div_ceil(u128::from(count));
        let step = Duration::from_nanos(u64::try_from(step).ok()?);
        Some(Self { count, every, step })
    }

    /// Takes a token of a bucket that is full again at `full_at`, or says how long until there is one.
    fn take(&self, full_at: Duration, now: Duration) -> Result<Duration, Duration> {
        let missing = full_at.saturating_sub(now);
        let missing_max = self.step.saturating_mul(self.count.saturating_sub(1));
        match missing.checked_sub(missing_max) {
            None | Some(Duration::ZERO) => Ok(now.saturating_add(missing).saturating_add(self.step)),
            Some(wait) => Err(wait),
        }
    }
}

impl std::fmt::Display for Rate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} requests in {} s", self.count, self.every.as_secs())
    }
}

/// Every payer's bucket, of every limit; those that are full are not kept.
#[derive(Debug, Default)]
pub(in crate::gate) struct Buckets {
    full_at: Mutex<Book>,
}

#[derive(Debug, Default)]
struct Book {
    full_at: HashMap<(Account, Arc<str>), Duration>,
    tidy_at: usize,
    /// And not before this time, for where nothing can be forgotten looking costs.
    tidy_after: Duration,
}

impl Buckets {
    /// Takes a token of a payer's bucket, of the limit that `scope` names, or says when to try again.
    pub(in crate::gate) fn take(
        &self,
        payer: Account,
        scope: &Arc<str>,
        rate: &Rate,
        now: UnixMillis,
    ) -> Result<(), Duration> {
        let now = now.since(UnixMillis(0));
        let mut book = self.full_at.lock();
        if book.full_at.len() >= book.tidy_at.max(TIDY_MIN) && now >= book.tidy_after {
            book.tidy_after = now.saturating_add(TIDY_EVERY);
            book.full_at.retain(|_, full_at| *full_at > now);
            book.tidy_at = book.full_at.len().saturating_mul(2).min(PAYERS_MAX);
        }
        let key = (payer, Arc::clone(scope));
        let full_at = book.full_at.get(&key).copied();
        if full_at.is_none() && book.full_at.len() >= PAYERS_MAX {
            return Err(FULL_RETRY);
        }
        let full_at = rate.take(full_at.unwrap_or_default(), now)?;
        book.full_at.insert(key, full_at);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::x402::Key;

    fn rate(count: u32, seconds: u64) -> Rate {
        Rate::new(count, Duration::from_secs(seconds)).unwrap()
    }

    fn payer(number: u8) -> Account {
        Account::Svm(Key([number; 32]))
    }

    #[test]
    fn as_many_at_once_as_the_rate_says_and_then_evenly() {
        let buckets = Buckets::default();
        let (rate, scope) = (rate(10, 1), Arc::from(""));
        let take = |at, scope: &Arc<str>, number| buckets.take(payer(number), scope, &rate, UnixMillis(at));
        for _ in 0..10 {
            assert_eq!(take(1_000_000, &scope, 1), Ok(()));
        }
        assert_eq!(take(1_000_000, &scope, 1), Err(Duration::from_millis(100)));
        assert_eq!(take(1_000_000, &scope, 2), Ok(()), "another payer has its own");
        assert_eq!(take(1_000_000, &"/v1".into(), 1), Ok(()), "and another limit");
        assert_eq!(take(1_000_099, &scope, 1), Err(Duration::from_millis(1)));
        assert_eq!(take(1_000_100, &scope, 1), Ok(()), "to the millisecond");
        assert_eq!(take(1_000_100, &scope, 1), Err(Duration::from_millis(100)), "what is refused takes nothing");
        for _ in 0..10 {
            assert_eq!(take(1_001_100, &scope, 1), Ok(()));
        }
        assert!(take(1_001_100, &scope, 1).is_err());
        assert!(take(0, &scope, 1).is_err(), "a clock that goes back gives nothing");
    }

    #[test]
    fn what_is_no_rate() {
        assert!(Rate::new(0, Duration::from_secs(1)).is_none());
        assert!(Rate::new(1, Duration::ZERO).is_none());
        assert!(Rate::new(COUNT_MAX + 1, Duration::from_secs(1)).is_none());
        assert!(Rate::new(COUNT_MAX, Duration::from_secs(86_400)).is_some());
    }

    #[test]
    fn full_buckets_are_forgotten() {
        let buckets = Buckets::default();
        let scope = Arc::from("");
        for number in 0..2 * TIDY_MIN {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&u64::try_from(number).unwrap().to_be_bytes());
            let at = UnixMillis(i64::try_from(number).unwrap() * 10);
            assert_eq!(buckets.take(Account::Svm(Key(key)), &scope, &rate(1, 1), at), Ok(()));
        }
        assert!(buckets.full_at.lock().full_at.len() <= TIDY_MIN);
    }

    proptest! {
        /// In no span of time do more pass than the bucket holds and what comes back in that span.
        #[test]
        fn the_rate_is_never_passed(count in 1u32..20, waits in proptest::collection::vec(0i64..700, 1..200)) {
            let buckets = Buckets::default();
            let (rate, scope) = (rate(count, 1), Arc::from(""));
            let mut at = 1_000_000;
            let mut passed: Vec<i64> = Vec::new();
            for wait in waits {
                at += wait / 7;
                match buckets.take(payer(1), &scope, &rate, UnixMillis(at)) {
                    Ok(()) => passed.push(at),
                    Err(wait) => prop_assert!(wait > Duration::ZERO && wait <= rate.step),
                }
            }
            for (first, from) in passed.iter().enumerate() {
                for (last, to) in passed.iter().enumerate().skip(first) {
                    let span = i64::from(count) * (to - from) / 1000;
                    prop_assert!(i64::try_from(last - first).unwrap() < i64::from(count) + span + 1);
                }
            }
        }
    }
}
