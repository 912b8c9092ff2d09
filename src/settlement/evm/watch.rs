//! The chain's side: read now and then, so that a payer who withdraws is seen in time.

use std::collections::{BinaryHeap, HashSet};
use std::time::Duration;

use tokio::time::sleep;

use super::super::reconcile::side_by_side;
use super::EvmSettlement;
use super::plan;
use crate::clock::UnixMillis;
use crate::facilitator::interface::InterfaceError;
use crate::ledger::store::StoreError;
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

    /// Reads channels of which not all is claimed that was charged, or that a refund may be on its way for, those first
    /// that were not read for longest, and takes up what the chain says. Returns from how many a payer is withdrawing
    /// what is not claimed.
    ///
    /// # Errors
    /// [`EvmHalt`].
    pub async fn watch(&self) -> Result<usize, EvmHalt> {
        let busy: HashSet<B256> =
            self.open_batches().iter().flat_map(|batch| batch.lines.iter().map(|(id, _)| *id)).collect();
        let mut oldest: BinaryHeap<(UnixMillis, B256)> = BinaryHeap::new();
        self.parts.ledger.glance(
            |channel| {
                // What a payer took out unclaimed can come back, and a channel that is shut opens when its refund is over.
                let open = channel.charged > channel.on_chain.claimed || channel.closed;
                let watched = open && self.is_ours(channel);
                watched.then_some((channel.on_chain.read_at, channel.terms.id))
            },
            |(read_at, id)| {
                if busy.contains(&id) {
                    return;
                }
                let untold = self.state.lock().untold.get(&id).copied();
                oldest.push((untold.map_or(read_at, |at| read_at.max(at)), id));
                if oldest.len() > self.options.watch_channels_max {
                    oldest.pop();
                }
            },
        );
        let ids: Vec<B256> = oldest.into_sorted_vec().into_iter().map(|(_, id)| id).collect();
        let mut withdrawing = 0_usize;
        for some in ids.chunks(READ_CHANNELS) {
            self.refresh(some).await?;
            for record in some.iter().filter_map(|id| self.parts.ledger.channel(id)) {
                if record.on_chain.is_withdrawing() && plan::claimable(&record).is_some() {
                    withdrawing = withdrawing.saturating_add(1);
                    self.note(&record.terms.id);
                    tracing::warn!(
                        channel = %record.terms.id, ends_at = record.on_chain.withdraw_ends_at,
                        "a payer is withdrawing; what was charged is claimed at once"
                    );
                }
            }
        }
        Ok(withdrawing)
    }

    /// Reads channels and takes up what the chain says; answers which of them could be told.
    pub(super) async fn refresh(&self, ids: &[B256]) -> Result<HashSet<B256>, EvmHalt> {
        let ledger = &self.parts.ledger;
        let asked_at = self.parts.clock.now();
        let records: Vec<_> = ids.iter().filter_map(|id| ledger.channel(id)).collect();
        let readings = self.parts.channels.read(&records).await?;
        let mut told = HashSet::new();
        let mut observed = Vec::new();
        for (record, reading) in records.iter().zip(readings) {
            let id = record.terms.id;
            match reading {
                Some(on_chain) => observed.push(async move { ledger.observe(&id, on_chain).await.map(|()| id) }),
                None => drop(self.state.lock().untold.insert(id, asked_at)),
            }
        }
        let took_up = |id| {
            self.state.lock().untold.remove(&id);
            told.insert(id);
        };
        side_by_side(observed, took_up).await?;
        Ok(told)
    }
}
