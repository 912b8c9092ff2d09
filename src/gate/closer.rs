//! Closes metered channels: within a request's time, and behind it until it is done.
//!
//! A channel that is journalled is followed until the chain has closed it or never opened it. It is closed at its
//! charge only where the answer was delivered and the charge has not expired, and at nothing otherwise
//! (`scheme_upto_svm.md`, section 6.2: never charge on a guess). After a restart, a close that was sent is given the
//! time to land before another is made.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::Semaphore;

use super::Retry;
use super::tasks::Tasks;
use crate::amount::Amount;
use crate::clock::{Clock, UnixMillis};
use crate::facilitator::{Facilitator, FacilitatorError};
use crate::ledger::Ledger;
use crate::ledger::store::MeteredRecord;
use crate::scheme::svm::program::ChannelStatus;
use crate::x402::key::Signature;
use crate::x402::{Key, Network};

/// How many channels are closed at once behind requests.
const CLOSES_MAX: usize = 8;

/// A close that was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Closed {
    pub(super) transaction: Signature,
    /// What it charges.
    pub(super) charged: Amount,
    /// Whether the chain has confirmed it; else it is followed in the background.
    pub(super) confirmed: bool,
}

/// When what may be done with a channel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    /// Until then a channel that the chain does not have may still come to be.
    may_open_until: UnixMillis,
    /// Until then a close that was sent may still land, so no other is made.
    close_not_before: UnixMillis,
}

impl Plan {
    /// The channel is open and nothing was sent.
    pub(super) const fn close_now() -> Self {
        Self { may_open_until: UnixMillis(0), close_not_before: UnixMillis(0) }
    }
}

/// Closes metered channels.
pub(super) struct MeteredCloser {
    ledger: Arc<Ledger>,
    facilitators: HashMap<Network, Arc<dyn Facilitator>>,
    clock: Arc<dyn Clock>,
    retry: Retry,
    at_once: Semaphore,
    tasks: Tasks,
}

/// What an attempt came to.
enum Attempt {
    Done,
    Again,
}

impl MeteredCloser {
    pub(super) fn new(
        ledger: Arc<Ledger>,
        facilitators: HashMap<Network, Arc<dyn Facilitator>>,
        clock: Arc<dyn Clock>,
        retry: Retry,
        tasks: Tasks,
    ) -> Self {
        Self { ledger, facilitators, clock, retry, at_once: Semaphore::new(CLOSES_MAX), tasks }
    }

    /// An open was sent and its fate is unknown.
    pub(super) fn may_still_open(&self) -> Plan {
        Plan { may_open_until: self.clock.now().plus(self.retry.landing_max), ..Plan::close_now() }
    }

    /// A close was sent and its fate is unknown.
    pub(super) fn was_sent(&self) -> Plan {
        Plan { close_not_before: self.clock.now().plus(self.retry.landing_max), ..Plan::close_now() }
    }

    /// Takes up what was journalled and not closed.
    pub(super) fn recover(self: &Arc<Self>) {
        for record in self.ledger.open_metered() {
            let plan = if record.charge.is_some() { self.was_sent() } else { self.may_still_open() };
            tracing::info!(channel = %record.terms.id, charge = ?record.charge, "a metered request was left open");
            self.follow(record, plan);
        }
    }

    /// Follows a channel until it is closed, behind the request.
    pub(super) fn follow(self: &Arc<Self>, record: MeteredRecord, plan: Plan) {
        let closer = Arc::clone(self);
        self.tasks.spawn(async move { closer.run(record, plan).await });
    }

    /// Forgets a channel that is closed or was never opened.
    pub(super) async fn forget(&self, id: &Key) {
        if let Err(error) = self.ledger.forget_metered(id).await {
            tracing::error!(channel = %id, %error, "a closed metered channel could not be recorded");
        }
    }

    async fn run(&self, mut record: MeteredRecord, mut plan: Plan) {
        let Some(facilitator) = self.facilitators.get(&record.terms.seller.network) else {
            let (channel, network) = (record.terms.id, &record.terms.seller.network);
            tracing::error!(%channel, %network, "a metered channel is open on a network that is not configured");
            return;
        };
        let mut wait = self.retry.wait_min;
        loop {
            let attempt = match self.at_once.acquire().await {
                Ok(_permit) => self.attempt(facilitator, &mut record, &mut plan).await,
                Err(_) => return,
            };
            match attempt {
                Attempt::Done => return,
                Attempt::Again => tokio::time::sleep(wait).await,
            }
            wait = wait.saturating_mul(2).min(self.retry.wait_max);
        }
    }

    async fn attempt(
        &self,
        facilitator: &Arc<dyn Facilitator>,
        record: &mut MeteredRecord,
        plan: &mut Plan,
    ) -> Attempt {
        let id = record.terms.id;
        let now = self.clock.now();
        match facilitator.read_channel(&record.terms).await {
            Ok(None) if now < plan.may_open_until => Attempt::Again,
            Ok(None) => {
                self.forget(&id).await;
                Attempt::Done
            }
            Ok(Some(channel)) => match channel.status {
                ChannelStatus::Sealed | ChannelStatus::Distributed => {
                    self.forget(&id).await;
                    Attempt::Done
                }
                ChannelStatus::Open | ChannelStatus::Closing if now < plan.close_not_before => Attempt::Again,
                ChannelStatus::Open | ChannelStatus::Closing => self.close(facilitator, record, plan).await,
            },
            Err(error @ FacilitatorError::Refused { .. }) => {
                tracing::error!(channel = %id, %error, "a metered channel on chain has other terms; close it by hand");
                Attempt::Done
            }
            Err(error @ (FacilitatorError::Unavailable(_) | FacilitatorError::Pending { .. })) => {
                tracing::warn!(channel = %id, %error, "a metered channel cannot be read");
                Attempt::Again
            }
        }
    }

    /// Closes behind the request: at the charge where it was delivered and has not expired, at nothing otherwise.
    async fn close(&self, facilitator: &Arc<dyn Facilitator>, record: &mut MeteredRecord, plan: &mut Plan) -> Attempt {
        let id = record.terms.id;
        let delivered = record.close.is_some() && self.clock.now().seconds() < record.expires_at;
        let charge = record.charge.filter(|_| delivered).unwrap_or(Amount::ZERO);
        match facilitator.close_metered(&record.terms, charge, record.deposit, record.expires_at).await {
            Ok(closed) => {
                tracing::info!(channel = %id, %charge, transaction = %closed.transaction, "a metered channel was closed");
                self.forget(&id).await;
                return Attempt::Done;
            }
            Err(FacilitatorError::Pending { .. }) => *plan = self.was_sent(),
            Err(error @ FacilitatorError::Refused { .. }) if !charge.is_zero() => {
                tracing::error!(channel = %id, %charge, %error, "a charge is forgone: its close is refused");
                record.charge = None;
                record.close = None;
                if let Err(error) = self.ledger.journal_metered(record.clone()).await {
                    tracing::error!(channel = %id, %error, "a forgone charge could not be recorded");
                }
            }
            Err(error) => tracing::warn!(channel = %id, %error, "a metered channel could not be closed"),
        }
        Attempt::Again
    }

    /// Closes while a request waits: several tries to send, and several looks at what was sent.
    ///
    /// # Errors
    /// [`FacilitatorError`] where nothing was sent.
    pub(super) async fn close_in_request(
        &self,
        facilitator: &Arc<dyn Facilitator>,
        record: &mut MeteredRecord,
        charge: Amount,
    ) -> Result<Closed, FacilitatorError> {
        let mut wait = self.retry.wait_min;
        let mut tries = 1;
        loop {
            match facilitator.close_metered(&record.terms, charge, record.deposit, record.expires_at).await {
                Ok(closed) => {
                    return Ok(Closed { transaction: closed.transaction, charged: closed.claimed, confirmed: true });
                }
                Err(FacilitatorError::Pending { transaction }) => {
                    return Ok(self.look_for(facilitator, record, charge, transaction).await);
                }
                Err(FacilitatorError::Unavailable(_)) if tries < self.retry.tries_in_request_max => {
                    tokio::time::sleep(wait).await;
                    wait = wait.saturating_mul(2).min(self.retry.wait_max);
                    tries += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Looks for a close that was sent. Journalled with its charge, it is followed at that charge.
    async fn look_for(
        &self,
        facilitator: &Arc<dyn Facilitator>,
        record: &mut MeteredRecord,
        charge: Amount,
        transaction: Signature,
    ) -> Closed {
        let mut closed = Closed { transaction, charged: charge, confirmed: false };
        if !charge.is_zero() {
            let height = facilitator.hints().map_or(0, |blockhash| blockhash.last_valid_block_height);
            record.close = Some((transaction, height));
            if let Err(error) = self.ledger.journal_metered(record.clone()).await {
                tracing::error!(channel = %record.terms.id, %error, "a sent close could not be recorded");
            }
        }
        let mut wait = self.retry.wait_min;
        for _ in 0..self.retry.tries_in_request_max {
            tokio::time::sleep(wait).await;
            wait = wait.saturating_mul(2).min(self.retry.wait_max);
            match facilitator.read_channel(&record.terms).await {
                Ok(None) => closed.confirmed = true,
                Ok(Some(channel)) => match channel.status {
                    ChannelStatus::Sealed | ChannelStatus::Distributed => {
                        closed.confirmed = true;
                        closed.charged = channel.claimed;
                    }
                    ChannelStatus::Open | ChannelStatus::Closing => {}
                },
                Err(error) => tracing::warn!(channel = %record.terms.id, %error, "a sent close cannot be looked up"),
            }
            if closed.confirmed {
                break;
            }
        }
        closed
    }
}
