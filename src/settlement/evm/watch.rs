//! The chain's side: read now and then, so that a payer who withdraws is seen in time.

use std::collections::{BinaryHeap, HashSet};
use std::time::Duration;

use tokio::time::sleep;

use super::EvmSettlement;
use super::plan;
use crate::clock::UnixMillis;
use crate::facilitator::interface::InterfaceError;
use crate::ledger::channel::Evm;
use crate::ledger::store::{RecordOf, StoreError};
use crate::x402::evm::B256;

/// How many channels are read at once.
const READ_CHANNELS: usize = 200;

/// Why the chain's side could not be taken up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvmHalt {
    /// Nobody tells the channels' state.
    #[error(transparent)]
    Channels(#[from] InterfaceError),
    /// The ledger's store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl EvmSettlement {
    pub(super) async fn watch_loop(&self) {
        let mut stop = self.stop.subscribe();
        loop {
            match self.watch().await {
                Ok(0) => {}
                Ok(_) => self.wake.notify_one(),
                Err(error) => tracing::warn!(%error, "the state of channels on chain cannot be read"),
            }
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return,
                () = sleep(self.options.watch_interval.max(Duration::from_millis(10))) => {}
            }
        }
    }

    /// Reads channels with something to claim, those first that were not read for longest, and takes up what the chain
    /// says. Returns from how many a payer is withdrawing what is not claimed.
    ///
    /// # Errors
    /// [`EvmHalt`].
    pub async fn watch(&self) -> Result<usize, EvmHalt> {
        let busy: HashSet<B256> =
            self.open_batches().iter().flat_map(|batch| batch.lines.iter().map(|(id, _)| *id)).collect();
        let mut oldest: BinaryHeap<(UnixMillis, B256)> = BinaryHeap::new();
        self.parts.ledger.for_each(&mut |record| {
            let id = record.terms.id;
            if self.is_ours(record) && !busy.contains(&id) && plan::claimable(record).is_some() {
                oldest.push((record.on_chain.read_at, id));
                if oldest.len() > self.options.watch_channels_max {
                    oldest.pop();
                }
            }
        });
        let ids: Vec<B256> = oldest.into_sorted_vec().into_iter().map(|(_, id)| id).collect();
        let mut withdrawing = 0_usize;
        for some in ids.chunks(READ_CHANNELS) {
            for record in self.refresh(some).await? {
                if record.on_chain.is_withdrawing() && plan::claimable(&record).is_some() {
                    withdrawing = withdrawing.saturating_add(1);
                    tracing::warn!(
                        channel = %record.terms.id, ends_at = record.on_chain.withdraw_ends_at,
                        "a payer is withdrawing; what was charged is claimed at once"
                    );
                }
            }
        }
        Ok(withdrawing)
    }

    /// Reads channels and takes up what the chain says; as they are afterwards, those that are still known.
    pub(super) async fn refresh(&self, ids: &[B256]) -> Result<Vec<RecordOf<Evm>>, EvmHalt> {
        let ledger = &self.parts.ledger;
        let records: Vec<_> = ids.iter().filter_map(|id| ledger.channel(id)).collect();
        let readings = self.parts.channels.read(&records).await?;
        for (record, reading) in records.iter().zip(readings) {
            if let Some(on_chain) = reading {
                ledger.observe(&record.terms.id, on_chain).await?;
            }
        }
        Ok(ids.iter().filter_map(|id| ledger.channel(id)).collect())
    }
}
