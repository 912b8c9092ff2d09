//! What is being settled now or was a moment ago, so that nothing is settled twice at once (specification, section 5,
//! phase 5; `scheme_upto_svm.md`, "Duplicate Settlement Mitigation").
//!
//! Promises one turn for each job. A turn that is given up before anything was sent frees its job; one that ends, or is
//! dropped, after something was sent holds it for [`HELD`], in which the transaction's blockhash runs out. Bounded.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::UnixMillis;
use crate::facilitator::SettledClose;
use crate::x402::Key;

/// How long a job is held after its transaction was sent: about twice a blockhash's life.
pub(super) const HELD: Duration = Duration::from_secs(120);
/// The most jobs that are held at once.
pub(super) const JOBS_MAX: usize = 10_000;

/// Something that must not be settled twice at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Job {
    /// An `open`, by its channel: another transaction that opens the same one could only fail, at our cost.
    Open(Key),
    /// A `top_up`, by the hash of its message.
    TopUp([u8; 32]),
    /// A cooperative close.
    Close { channel: Key, cumulative: u64 },
    /// The close of a metered request's channel.
    Meter(Key),
}

/// Why a job cannot begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// It is being settled, or was just now.
    Held,
    /// It was a close, and this is what came of it.
    Done(Box<SettledClose>),
    /// [`JOBS_MAX`] are held.
    Full,
}

struct Entry {
    since: UnixMillis,
    done: Option<SettledClose>,
}

#[derive(Default)]
struct Jobs {
    entries: HashMap<Job, Entry>,
    swept: UnixMillis,
}

/// The jobs that are held.
#[derive(Default)]
pub(super) struct InFlight(Mutex<Jobs>);

impl InFlight {
    /// Takes the job's turn.
    pub(super) fn take(&self, job: Job, now: UnixMillis) -> Result<Turn<'_>, Taken> {
        let mut jobs = self.0.lock();
        if jobs.entries.len() >= JOBS_MAX || now.since(jobs.swept) >= HELD {
            jobs.entries.retain(|_, entry| now.since(entry.since) < HELD);
            jobs.swept = now;
        }
        match jobs.entries.get(&job) {
            Some(entry) if now.since(entry.since) < HELD => {
                return Err(entry.done.clone().map_or(Taken::Held, |close| Taken::Done(Box::new(close))));
            }
            None if jobs.entries.len() >= JOBS_MAX => return Err(Taken::Full),
            _ => {}
        }
        jobs.entries.insert(job, Entry { since: now, done: None });
        Ok(Turn { in_flight: self, job, held: false })
    }
}

/// One job's turn.
pub(super) struct Turn<'a> {
    in_flight: &'a InFlight,
    job: Job,
    held: bool,
}

impl Turn<'_> {
    /// A transaction is about to be sent: for [`HELD`] from `now` the job is held, whatever becomes of this turn.
    pub(super) fn hold(&mut self, now: UnixMillis) {
        self.held = true;
        self.in_flight.0.lock().entries.insert(self.job, Entry { since: now, done: None });
    }

    /// The transaction is known to have changed nothing and never will: the job may be taken up again at once.
    pub(super) const fn free(&mut self) {
        self.held = false;
    }

    /// Remembers what came of a close, for whoever asks again.
    pub(super) fn done(self, close: &SettledClose) {
        if let Some(entry) = self.in_flight.0.lock().entries.get_mut(&self.job) {
            entry.done = Some(close.clone());
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if !self.held {
            self.in_flight.0.lock().entries.remove(&self.job);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amount::Amount;
    use crate::x402::key::Signature;

    const JOB: Job = Job::Open(Key([1; 32]));
    const NOW: UnixMillis = UnixMillis(1_000_000);

    fn refused(in_flight: &InFlight, job: Job, now: UnixMillis) -> Option<Taken> {
        in_flight.take(job, now).err()
    }

    #[test]
    fn a_turn_given_up_before_sending_frees_the_job() {
        let in_flight = InFlight::default();
        let turn = in_flight.take(JOB, NOW).unwrap_or_else(|_| panic!("free"));
        assert_eq!(refused(&in_flight, JOB, NOW), Some(Taken::Held));
        drop(turn);
        assert_eq!(refused(&in_flight, JOB, NOW), None);
    }

    #[test]
    fn a_turn_dropped_after_sending_holds_the_job_for_a_while() {
        let in_flight = InFlight::default();
        in_flight.take(JOB, NOW).unwrap_or_else(|_| panic!("free")).hold(NOW);
        assert_eq!(refused(&in_flight, JOB, NOW.plus(HELD - Duration::from_millis(1))), Some(Taken::Held));
        assert_eq!(refused(&in_flight, JOB, NOW.plus(HELD)), None);
    }

    #[test]
    fn the_time_counts_from_the_last_sending() {
        let in_flight = InFlight::default();
        let later = NOW.plus(Duration::from_secs(90));
        let mut turn = in_flight.take(JOB, NOW).unwrap_or_else(|_| panic!("free"));
        turn.hold(NOW);
        turn.free();
        turn.hold(later);
        drop(turn);
        assert_eq!(refused(&in_flight, JOB, NOW.plus(HELD)), Some(Taken::Held));
        assert_eq!(refused(&in_flight, JOB, later.plus(HELD)), None);
    }

    #[test]
    fn a_finished_close_is_told_again() {
        let in_flight = InFlight::default();
        let job = Job::Close { channel: Key([1; 32]), cumulative: 5 };
        let close = SettledClose {
            transaction: Signature([1; 64]),
            returned: Amount::new(1),
            claimed: Amount::new(2),
            deposit: Amount::new(3),
        };
        let mut turn = in_flight.take(job, NOW).unwrap_or_else(|_| panic!("free"));
        turn.hold(NOW);
        turn.done(&close);
        assert_eq!(refused(&in_flight, job, NOW), Some(Taken::Done(Box::new(close))));
        assert_eq!(refused(&in_flight, Job::Meter(Key([1; 32])), NOW), None, "another job of the same channel");
    }

    #[test]
    fn there_is_a_limit_and_time_makes_room() {
        let in_flight = InFlight::default();
        for n in 0..JOBS_MAX {
            let mut hash = [0; 32];
            hash[..8].copy_from_slice(&n.to_le_bytes());
            in_flight.take(Job::TopUp(hash), NOW).unwrap_or_else(|_| panic!("free")).hold(NOW);
        }
        assert_eq!(refused(&in_flight, JOB, NOW), Some(Taken::Full));
        assert_eq!(refused(&in_flight, JOB, NOW.plus(HELD)), None);
    }
}
