//! One account's nonces: which is next, and which were taken and given back unused.
//!
//! Promises that no nonce is out twice at once, and that one that is given back is the next to be taken, so that gaps
//! close by themselves as long as there is something to send. A function of what it is told; the sender keeps it.

use std::collections::BTreeSet;

/// One account's nonces.
#[derive(Debug, Default)]
pub(super) struct Nonces {
    next: u64,
    free: BTreeSet<u64>,
}

impl Nonces {
    /// The chain has this many transactions of the account: no nonce below is of use to anybody.
    pub(super) fn used_below(&mut self, count: u64) {
        self.next = self.next.max(count);
        self.free = self.free.split_off(&count);
    }

    /// The nonce for the next transaction.
    pub(super) fn take(&mut self) -> u64 {
        if let Some(nonce) = self.free.pop_first() {
            return nonce;
        }
        let nonce = self.next;
        self.next = self.next.saturating_add(1);
        nonce
    }

    /// No transaction with this nonce was sent after all.
    pub(super) fn give_back(&mut self, nonce: u64) {
        if nonce >= self.next {
            return;
        }
        self.free.insert(nonce);
        while let Some(last) = self.next.checked_sub(1)
            && self.free.remove(&last)
        {
            self.next = last;
        }
    }

    /// A transaction with this nonce was sent before a restart. Nonces before it that nobody took are free.
    pub(super) fn claim(&mut self, nonce: u64) {
        if nonce >= self.next {
            self.free.extend(self.next..nonce);
            self.next = nonce.saturating_add(1);
        } else {
            self.free.remove(&nonce);
        }
    }

    /// Takes this nonce where it was given back, to close the gap that it is.
    pub(super) fn take_free(&mut self, nonce: u64) -> bool {
        self.free.remove(&nonce)
    }

    /// The nonce that was never taken.
    pub(super) const fn next(&self) -> u64 {
        self.next
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_given_back_is_taken_first_and_the_end_shrinks() {
        let mut nonces = Nonces::default();
        nonces.used_below(7);
        assert_eq!([nonces.take(), nonces.take(), nonces.take()], [7, 8, 9]);
        nonces.give_back(8);
        assert_eq!([nonces.take(), nonces.take()], [8, 10]);
        nonces.give_back(9);
        nonces.give_back(10);
        assert_eq!((nonces.next(), nonces.take_free(9)), (9, false));
        nonces.give_back(7);
        nonces.used_below(8);
        assert_eq!(nonces.take(), 9, "the chain has used 7 meanwhile");
        nonces.claim(12);
        nonces.claim(10);
        assert_eq!([nonces.take(), nonces.take()], [11, 13]);
    }

    proptest! {
        #[test]
        fn no_nonce_is_out_twice(steps in prop::collection::vec((0_u8..4, any::<prop::sample::Index>()), 1..200)) {
            let mut nonces = Nonces::default();
            let mut out: Vec<u64> = Vec::new();
            let mut mined = 0;
            for (step, which) in steps {
                match step {
                    0 | 1 => {
                        let nonce = nonces.take();
                        prop_assert!(!out.contains(&nonce) && nonce >= mined, "{nonce}");
                        out.push(nonce);
                    }
                    2 if !out.is_empty() => nonces.give_back(out.swap_remove(which.index(out.len()))),
                    _ => {
                        // A chain mines in order, so only what is out without a gap before it.
                        while let Some(at) = out.iter().position(|nonce| *nonce == mined) {
                            out.swap_remove(at);
                            mined += 1;
                        }
                        nonces.used_below(mined);
                    }
                }
            }
        }
    }
}
