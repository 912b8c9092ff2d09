//! What is at risk over all ledgers of a merchant, so that one limit holds over the families of chains together.
//!
//! Their assets must count alike; the configuration sees to that. Whoever comes near the limit wakes every settlement,
//! as it may be another ledger's claims that make room.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::payers::Payers;
use crate::amount::Amount;

/// What several ledgers have at risk together.
#[derive(Debug, Default)]
pub struct Purse {
    sums: Mutex<Sums>,
    listeners: Mutex<Vec<Arc<Notify>>>,
    payers: Arc<Payers>,
}

/// Charged and not claimed, and held back for requests in flight.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sums {
    pub(super) exposed: Amount,
    pub(super) reserved: Amount,
}

impl Purse {
    /// Nothing at risk.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// The same, where what each payer has at risk is summed up too.
    #[must_use]
    pub fn by_payer() -> Arc<Self> {
        Arc::new(Self { payers: Arc::new(Payers::new(true)), ..Self::default() })
    }

    /// What each payer has spent and, by [`Self::by_payer`], has at risk.
    pub(super) const fn payers(&self) -> &Arc<Payers> {
        &self.payers
    }

    /// A listener for pressing exposure.
    pub(super) fn listen(&self) -> Arc<Notify> {
        let listener = Arc::new(Notify::new());
        self.listeners.lock().push(Arc::clone(&listener));
        listener
    }

    /// Tells every listener that exposure presses.
    pub(super) fn press(&self) {
        self.listeners.lock().iter().for_each(|listener| listener.notify_one());
    }

    /// Changes the sums under their lock.
    pub(super) fn with<T>(&self, change: impl FnOnce(&mut Sums) -> T) -> T {
        change(&mut self.sums.lock())
    }
}
