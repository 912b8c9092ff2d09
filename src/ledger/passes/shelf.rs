//! All passes of a ledger, in memory: who is found, how many calls are held back, and who has to go.
//!
//! Promises that calls used and calls held back are never more than were paid for, and that no more passes are here than
//! there is room for. What is durable is its callers' business.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{ENDED_KEEP, PassId, PassRecord, PassRefused, PassState};
use crate::clock::UnixMillis;
use crate::x402::{Account, Network};

/// How many passes one step forgets.
const STEP_PASSES: usize = 64;

/// Room for a pass that is about to be sold. Dropped, it is given back.
pub struct PassRoom {
    passes: Arc<Passes>,
}

impl Drop for PassRoom {
    fn drop(&mut self) {
        let mut shelf = self.passes.shelf.lock();
        shelf.promised = shelf.promised.saturating_sub(1);
    }
}

impl fmt::Debug for PassRoom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PassRoom")
    }
}

/// All passes of a ledger.
pub(in crate::ledger) struct Passes {
    max: usize,
    shelf: Mutex<Shelf>,
}

#[derive(Default)]
struct Shelf {
    by_id: HashMap<PassId, Slot>,
    /// When each is to be forgotten.
    by_end: BTreeSet<(UnixMillis, PassId)>,
    /// Room that was taken for passes that are not here yet.
    promised: usize,
}

struct Slot {
    record: PassRecord,
    /// Calls that are held back, those included whose write is under way.
    in_flight: u32,
    /// Calls whose write has begun, whether it is durable or not.
    begun: u32,
    forget_at: UnixMillis,
}

impl Passes {
    pub(in crate::ledger) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max, shelf: Mutex::default() })
    }

    /// Takes up what the store holds.
    pub(in crate::ledger) fn restore(&self, records: Vec<PassRecord>) {
        records.into_iter().for_each(|record| self.put(record));
    }

    /// Enters a pass that is durable.
    pub(in crate::ledger) fn put(&self, record: PassRecord) {
        let mut shelf = self.shelf.lock();
        let (id, forget_at, begun) = (record.id, record.forget_at(), record.used);
        shelf.by_end.insert((forget_at, id));
        shelf.by_id.insert(id, Slot { record, in_flight: 0, begun, forget_at });
    }

    pub(super) fn room(self: &Arc<Self>) -> Option<Arc<PassRoom>> {
        let mut shelf = self.shelf.lock();
        if shelf.by_id.len().saturating_add(shelf.promised) >= self.max {
            return None;
        }
        shelf.promised = shelf.promised.saturating_add(1);
        Some(Arc::new(PassRoom { passes: Arc::clone(self) }))
    }

    pub(super) fn take(
        &self,
        id: &PassId,
        scope: &str,
        now: UnixMillis,
    ) -> Result<(Account, Network, Arc<str>), PassRefused> {
        let mut shelf = self.shelf.lock();
        let Slot { record, in_flight, .. } = shelf.by_id.get_mut(id).ok_or(PassRefused::Unknown)?;
        if *record.scope != *scope {
            return Err(PassRefused::OtherRoute);
        }
        match record.state(now) {
            PassState::Open => {}
            PassState::Spent => return Err(PassRefused::Spent),
            PassState::Expired => return Err(PassRefused::Expired),
            PassState::Revoked => return Err(PassRefused::Revoked),
        }
        if *in_flight >= record.left() {
            return Err(PassRefused::Busy);
        }
        *in_flight = in_flight.saturating_add(1);
        Ok((record.payer, record.network.clone(), Arc::clone(&record.scope)))
    }

    pub(super) fn release(&self, id: &PassId) {
        if let Some(slot) = self.shelf.lock().by_id.get_mut(id) {
            slot.in_flight = slot.in_flight.saturating_sub(1);
        }
    }

    /// A call's write begins: which call it is.
    pub(super) fn begin(&self, id: &PassId) -> u32 {
        self.shelf.lock().by_id.get_mut(id).map_or(0, |slot| {
            slot.begun = slot.begun.saturating_add(1);
            slot.begun
        })
    }

    /// A call is durable: how many are left.
    pub(super) fn used(&self, id: &PassId, at: UnixMillis) -> u32 {
        self.change(id, |slot| {
            slot.in_flight = slot.in_flight.saturating_sub(1);
            slot.record.used = slot.record.used.saturating_add(1).min(slot.record.calls);
            slot.record.last_used = slot.record.last_used.max(at);
            slot.record.left()
        })
        .unwrap_or(0)
    }

    /// Takes no more calls.
    pub(super) fn revoke(&self, id: &PassId, now: UnixMillis) -> Option<PassRecord> {
        self.change(id, |slot| {
            slot.record.revoked_at.get_or_insert(now);
            slot.record.clone()
        })
    }

    /// Changes a pass, and sees to when it is to be forgotten.
    fn change<T>(&self, id: &PassId, change: impl FnOnce(&mut Slot) -> T) -> Option<T> {
        let mut shelf = self.shelf.lock();
        let slot = shelf.by_id.get_mut(id)?;
        let changed = change(slot);
        let (before, after) = (slot.forget_at, slot.record.forget_at());
        if before != after {
            slot.forget_at = after;
            shelf.by_end.remove(&(before, *id));
            shelf.by_end.insert((after, *id));
        }
        Some(changed)
    }

    pub(super) fn find(&self, id: &PassId) -> Option<PassRecord> {
        self.shelf.lock().by_id.get(id).map(|slot| slot.record.clone())
    }

    pub(super) fn len(&self) -> usize {
        self.shelf.lock().by_id.len()
    }

    /// Nothing is sorted under the lock.
    pub(super) fn newest(&self, limit: usize) -> Vec<PassRecord> {
        let sold = |(id, slot): (&PassId, &Slot)| (slot.record.sold_at, *id);
        let mut all: Vec<_> = self.shelf.lock().by_id.iter().map(sold).collect();
        all.sort_unstable_by(|left, right| right.cmp(left));
        all.iter().take(limit).filter_map(|(_, id)| self.find(id)).collect()
    }

    /// Takes a few out whose time to be remembered is over. None of them has a call in flight.
    pub(super) fn step(&self, now: UnixMillis) -> Vec<PassId> {
        let mut shelf = self.shelf.lock();
        let due: Vec<_> = shelf.by_end.iter().take_while(|(at, _)| *at <= now).take(STEP_PASSES).copied().collect();
        let mut gone = Vec::with_capacity(due.len());
        for (at, id) in due {
            shelf.by_end.remove(&(at, id));
            match shelf.by_id.get_mut(&id).filter(|slot| slot.in_flight > 0) {
                Some(slot) => {
                    let later = now.plus(ENDED_KEEP);
                    slot.forget_at = later;
                    shelf.by_end.insert((later, id));
                }
                None => {
                    shelf.by_id.remove(&id);
                    gone.push(id);
                }
            }
        }
        gone
    }
}

#[cfg(test)]
mod tests;
