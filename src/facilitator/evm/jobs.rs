//! What is being settled or was a while ago, so that whoever asks again gets the same transaction.
//!
//! Promises one transaction for one job: the first to ask sends it, all others wait for that one. A job is forgotten
//! when it came to nothing, or a while after it was last asked for; by then its nonce is used on chain. Bounded.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;

use crate::chain::evm::sender::Submission;
use crate::clock::UnixMillis;
use crate::x402::evm::{Address, B256, U256};

/// How long a job that is done is remembered after it was last asked for.
pub(super) const REMEMBERED: Duration = Duration::from_secs(600);
/// How long a job is remembered of which it is not known whether it is done.
pub(super) const UNDECIDED_REMEMBERED: Duration = Duration::from_secs(24 * 3600);
/// The most jobs that are remembered.
pub(super) const JOBS_MAX: usize = 10_000;

/// Something that the chain lets happen once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Job {
    /// A token's transfer by the nonce of an EIP-3009 authorization.
    Authorization { token: Address, owner: Address, nonce: B256 },
    /// A transfer by a nonce of Permit2.
    Permit2 { owner: Address, nonce: U256 },
    /// A batch of claims, by the hash of the call.
    Claim(B256),
    /// A payout to a receiver.
    Payout { receiver: Address, token: Address },
    /// A refund of a channel, by its nonce.
    Refund { channel: B256, nonce: U256 },
}

/// Why a job cannot be taken up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// The same nonce is being used, or was, for something else.
    ByAnother,
    /// [`JOBS_MAX`] are remembered.
    Full,
}

/// What was sent for a job; nothing yet where it is `None`.
pub(super) type Slot = Arc<tokio::sync::Mutex<Option<Submission>>>;
/// A slot that is locked.
pub(super) type Turn = OwnedMutexGuard<Option<Submission>>;

struct Entry {
    call: B256,
    slot: Slot,
    since: UnixMillis,
    done: bool,
}

impl Entry {
    fn is_over(&self, now: UnixMillis) -> bool {
        let remembered = if self.done { REMEMBERED } else { UNDECIDED_REMEMBERED };
        now.since(self.since) >= remembered && Arc::strong_count(&self.slot) == 1
    }
}

#[derive(Default)]
struct Entries {
    by_job: HashMap<Job, Entry>,
    swept: UnixMillis,
}

/// The jobs that are remembered.
#[derive(Default)]
pub(super) struct Jobs(Mutex<Entries>);

impl Jobs {
    /// Whether the very same is being settled or was a while ago: then its payment need not be checked again.
    ///
    /// # Errors
    /// [`Taken::ByAnother`].
    pub(super) fn knows(&self, job: &Job, call: &B256, now: UnixMillis) -> Result<bool, Taken> {
        match self.0.lock().by_job.get(job).filter(|entry| !entry.is_over(now)) {
            Some(entry) if entry.call != *call => Err(Taken::ByAnother),
            entry => Ok(entry.is_some()),
        }
    }

    /// The job's slot. Whoever has locked it and finds it empty is to send the transaction.
    pub(super) fn slot(&self, job: Job, call: B256, now: UnixMillis) -> Result<Slot, Taken> {
        let mut entries = self.0.lock();
        if entries.by_job.len() >= JOBS_MAX || now.since(entries.swept) >= REMEMBERED {
            entries.by_job.retain(|_, entry| !entry.is_over(now));
            entries.swept = now;
        }
        let full = entries.by_job.len() >= JOBS_MAX;
        match entries.by_job.get_mut(&job) {
            Some(entry) if entry.call != call => Err(Taken::ByAnother),
            Some(entry) => {
                entry.since = now;
                Ok(Arc::clone(&entry.slot))
            }
            None if full => Err(Taken::Full),
            None => {
                let slot = Slot::default();
                entries.by_job.insert(job, Entry { call, slot: Arc::clone(&slot), since: now, done: false });
                Ok(slot)
            }
        }
    }

    /// The job's transaction is confirmed.
    pub(super) fn done(&self, job: &Job) {
        if let Some(entry) = self.0.lock().by_job.get_mut(job) {
            entry.done = true;
        }
    }

    /// Whether this is still the job's slot, and not one that was forgotten while its lock was waited for.
    pub(super) fn is_current(&self, job: &Job, slot: &Turn) -> bool {
        self.0.lock().by_job.get(job).is_some_and(|entry| Arc::ptr_eq(&entry.slot, Turn::mutex(slot)))
    }

    /// Nothing is on chain for this job and nothing will be, or it may be done again: the next to ask starts anew.
    pub(super) fn forget(&self, job: &Job, mut slot: Turn) {
        *slot = None;
        let mut entries = self.0.lock();
        if entries.by_job.get(job).is_some_and(|entry| Arc::ptr_eq(&entry.slot, Turn::mutex(&slot))) {
            entries.by_job.remove(job);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMillis = UnixMillis(1_000_000);
    const JOB: Job = Job::Claim(B256([1; 32]));
    const CALL: B256 = B256([2; 32]);

    #[test]
    fn the_same_job_has_the_same_slot_and_another_call_none() {
        let jobs = Jobs::default();
        let first = jobs.slot(JOB, CALL, NOW).unwrap();
        assert!(Arc::ptr_eq(&first, &jobs.slot(JOB, CALL, NOW).unwrap()));
        assert_eq!(jobs.knows(&JOB, &CALL, NOW), Ok(true));
        assert_eq!(jobs.knows(&JOB, &B256([3; 32]), NOW), Err(Taken::ByAnother));
        assert_eq!(jobs.slot(JOB, B256([3; 32]), NOW).unwrap_err(), Taken::ByAnother);
        let second = jobs.slot(JOB, CALL, NOW).unwrap();
        let turn = first.try_lock_owned().unwrap();
        assert!(jobs.is_current(&JOB, &turn));
        jobs.forget(&JOB, turn);
        assert!(!jobs.is_current(&JOB, &second.try_lock_owned().unwrap()), "whoever waited for it has to ask again");
        assert_eq!(jobs.knows(&JOB, &CALL, NOW), Ok(false));
        assert!(jobs.slot(JOB, B256([3; 32]), NOW).is_ok());
    }

    #[test]
    fn there_is_a_limit_and_time_makes_room_but_not_of_what_is_under_way() {
        let jobs = Jobs::default();
        let held = jobs.slot(JOB, CALL, NOW).unwrap();
        for n in 1..JOBS_MAX {
            let mut id = [0; 32];
            id[..8].copy_from_slice(&n.to_le_bytes());
            jobs.slot(Job::Claim(B256(id)), CALL, NOW).unwrap();
            jobs.done(&Job::Claim(B256(id)));
        }
        let more = Job::Refund { channel: CALL, nonce: U256::ZERO };
        assert_eq!(jobs.slot(more, CALL, NOW).unwrap_err(), Taken::Full);
        let later = NOW.plus(REMEMBERED);
        assert!(jobs.slot(more, CALL, later).is_ok());
        assert!(Arc::ptr_eq(&held, &jobs.slot(JOB, CALL, later).unwrap()));
        drop(held);
        assert_eq!(jobs.knows(&more, &CALL, later.plus(REMEMBERED)), Ok(true), "it is not known whether it is done");
        assert_eq!(jobs.knows(&more, &CALL, later.plus(UNDECIDED_REMEMBERED)), Ok(false));
    }
}
