//! What has been begun and is to be used once: bounded in number and in time, gone when it is taken.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Things that are each used once, by name.
pub(super) struct Sessions<K, V> {
    most: usize,
    life: Duration,
    open: Mutex<BTreeMap<K, (Instant, V)>>,
}

/// Too many have been begun; those that are not used go by themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Full;

impl<K: Ord, V> Sessions<K, V> {
    pub(super) const fn new(most: usize, life: Duration) -> Self {
        Self { most, life, open: Mutex::new(BTreeMap::new()) }
    }

    /// Keeps something for as long as it may be used.
    pub(super) fn keep(&self, key: K, value: V) -> Result<(), Full> {
        let mut open = self.open.lock();
        open.retain(|_, (begun, _)| begun.elapsed() < self.life);
        if open.len() >= self.most {
            return Err(Full);
        }
        open.insert(key, (Instant::now(), value));
        Ok(())
    }

    /// Hands something out, once.
    pub(super) fn take(&self, key: &K) -> Option<V> {
        let (begun, value) = self.open.lock().remove(key)?;
        (begun.elapsed() < self.life).then_some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_or_too_old_is_gone() {
        let sessions = Sessions::new(2, Duration::from_secs(3600));
        assert_eq!(sessions.keep(1, "a"), Ok(()));
        assert_eq!(sessions.keep(2, "b"), Ok(()));
        assert_eq!(sessions.keep(3, "c"), Err(Full));
        assert_eq!(sessions.take(&1), Some("a"));
        assert_eq!(sessions.take(&1), None);
        assert_eq!(sessions.keep(3, "c"), Ok(()));
        let short = Sessions::new(1, Duration::ZERO);
        assert_eq!(short.keep(1, "a"), Ok(()));
        assert_eq!(short.take(&1), None, "its time is over");
        assert_eq!(short.keep(1, "a"), Ok(()));
        assert_eq!(short.keep(2, "b"), Ok(()), "what is too old makes room");
    }
}
