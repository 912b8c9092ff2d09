//! Requests of one channel that wait for their turn, in voucher order.
//!
//! Owns who waits and whose turn it is; waits, wakes and times nothing. A request is *led* when vouchers that are in
//! flight or queued lead up to it without a gap from what is charged; only then can it expect to be served. A request
//! that was led and is no more has lost its predecessor.

use std::time::Duration;

use tokio::time::Instant;

use super::channel::Bid;
use crate::amount::Amount;

/// One waiting request; `T` is how it is answered.
#[derive(Debug)]
pub(super) struct Waiter<T, S> {
    /// Names it.
    pub(super) ticket: u64,
    /// What it wants to pay.
    pub(super) bid: Bid<S>,
    /// What must be charged before it.
    pub(super) base: Amount,
    /// When it began to wait.
    pub(super) since: Instant,
    /// Whether it was ever led.
    pub(super) was_led: bool,
    led: bool,
    /// Takes the answer.
    pub(super) answer: T,
}

impl<T, S> Waiter<T, S> {
    /// A request that begins to wait.
    pub(super) fn new(ticket: u64, bid: Bid<S>, base: Amount, since: Instant, answer: T) -> Self {
        Self { ticket, bid, base, since, was_led: false, led: false, answer }
    }

    /// When it is answered at the latest: a request that no other leads up to waits for the shorter time.
    pub(super) fn deadline(&self, wait_max: Duration, gap_wait_max: Duration) -> Instant {
        let wait = if self.was_led { wait_max } else { gap_wait_max.min(wait_max) };
        // A wait too long to add is one that never ends; a day stands in for it.
        self.since.checked_add(wait).unwrap_or_else(|| self.since + Duration::from_secs(86_400))
    }
}

/// The waiting requests of one channel.
#[derive(Debug)]
pub(super) struct Queue<T, S>(Vec<Waiter<T, S>>);

impl<T, S> Default for Queue<T, S> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T, S> Queue<T, S> {
    /// How many wait.
    pub(super) const fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nobody waits.
    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Joins the queue: by base, and among equals behind those that came before.
    pub(super) fn join(&mut self, waiter: Waiter<T, S>) {
        let at = self.0.partition_point(|w| w.base <= waiter.base);
        self.0.insert(at, waiter);
    }

    /// A waiting request.
    pub(super) fn get(&self, ticket: u64) -> Option<&Waiter<T, S>> {
        self.0.iter().find(|w| w.ticket == ticket)
    }

    /// Leaves the queue.
    pub(super) fn leave(&mut self, ticket: u64) -> Option<Waiter<T, S>> {
        let at = self.0.iter().position(|w| w.ticket == ticket)?;
        Some(self.0.remove(at))
    }

    /// The greatest deposit that a waiting request brings along.
    pub(super) fn deposit_after(&self) -> Option<Amount> {
        self.0.iter().filter_map(|w| w.bid.deposit_after).max()
    }

    /// Finds anew who is led, from what is charged and the voucher in flight.
    pub(super) fn mark(&mut self, charged: Amount, in_flight: Option<Amount>) {
        let mut reached = vec![charged];
        reached.extend(in_flight);
        for waiter in &mut self.0 {
            waiter.led = reached.contains(&waiter.base);
            if waiter.led {
                waiter.was_led = true;
                reached.push(waiter.bid.voucher.cumulative);
            }
        }
    }

    /// Takes out the request whose turn it is once `charged` is charged and nothing is in flight.
    pub(super) fn next(&mut self, charged: Amount) -> Option<Waiter<T, S>> {
        let at = self.0.iter().position(|w| w.base == charged)?;
        Some(self.0.remove(at))
    }

    /// Takes out the requests that can never fit again.
    pub(super) fn take_behind(&mut self, charged: Amount) -> Vec<Waiter<T, S>> {
        let upto = self.0.partition_point(|w| w.base < charged);
        self.0.drain(..upto).collect()
    }

    /// Takes out the requests whose predecessors have failed: they were led, and by the last [`Self::mark`] are no
    /// more.
    pub(super) fn take_stranded(&mut self) -> Vec<Waiter<T, S>> {
        self.0.extract_if(.., |w| w.was_led && !w.led).collect()
    }

    /// Takes out everyone.
    pub(super) fn take_all(&mut self) -> Vec<Waiter<T, S>> {
        std::mem::take(&mut self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ledger::channel::Voucher;
    use crate::x402::key::Signature;

    fn waiter(ticket: u64, base: u64, total: u64) -> Waiter<(), Signature> {
        let voucher = Voucher { cumulative: total.into(), signature: Signature([0; 64]) };
        let bid = Bid { voucher, amount: (total - base).into(), deposit_after: None };
        Waiter::new(ticket, bid, base.into(), Instant::now(), ())
    }

    fn led(queue: &Queue<(), Signature>) -> Vec<u64> {
        queue.0.iter().filter(|w| w.led).map(|w| w.ticket).collect()
    }

    #[test]
    fn led_without_a_gap_only() {
        let mut queue = Queue::default();
        for (ticket, base, total) in [(1, 30, 40), (2, 20, 30), (3, 50, 60)] {
            queue.join(waiter(ticket, base, total));
        }
        queue.mark(10u64.into(), None);
        assert_eq!(led(&queue), Vec::<u64>::new(), "20 is missing");
        queue.mark(10u64.into(), Some(20u64.into()));
        assert_eq!(led(&queue), [2, 1], "the one in flight leads up to 20, and so on to 40; 50 is missing");
        queue.mark(10u64.into(), None);
        assert_eq!(queue.take_stranded().iter().map(|w| w.ticket).collect::<Vec<_>>(), [2, 1]);
        assert_eq!(queue.len(), 1, "what was never led did not lose anything");
    }

    proptest! {
        #[test]
        fn order_and_partition(pairs in proptest::collection::vec((0u64..20, 0u64..5), 0..40), charged in 0u64..20) {
            let mut queue = Queue::default();
            for (ticket, (base, price)) in (0u64..).zip(&pairs) {
                queue.join(waiter(ticket, *base, base + price));
            }
            prop_assert!(queue.0.is_sorted_by_key(|w| (w.base, w.ticket)));
            let behind = queue.take_behind(charged.into());
            prop_assert_eq!(behind.len(), pairs.iter().filter(|(base, _)| *base < charged).count());
            prop_assert!(queue.0.iter().all(|w| w.base >= charged.into()));
            let first = pairs.iter().position(|(base, _)| *base == charged);
            let next = queue.next(charged.into()).map(|w| w.ticket);
            prop_assert_eq!(next, first.map(|at| u64::try_from(at).unwrap()), "the first to come of those whose turn it is");
        }
    }
}
