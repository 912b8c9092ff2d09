//! The chain's side: read now and then, so that a closing payer is seen in time and a lost ledger finds its channels.
//!
//! Promises that discovery never invents a charge: of a channel that the ledger does not know, what was claimed counts
//! as charged, and no more (`scheme_batch_settlement_svm.md`, section 6.2).

use std::collections::{BinaryHeap, HashSet};
use std::sync::Arc;

use tokio::time::{Instant, sleep_until};

use super::Settlement;
use super::plan;
use super::reconcile::is_same;
use super::run::Halt;
use crate::clock::UnixMillis;
use crate::ledger::channel::{OnChain, Terms};
use crate::scheme::svm::program::{ChannelAccount, ChannelStatus, RENT_PAYER_OFFSET};
use crate::x402::Key;

/// What discovery found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Watched {
    /// Channels that pay our rent back, known or not.
    pub seen: usize,
    /// Channels that the ledger did not know and has taken up.
    pub adopted: usize,
    /// Channels of ours on terms that no seller of the configuration has; they are left alone.
    pub foreign: usize,
}

impl Settlement {
    pub(super) async fn watch_loop(&self) {
        let mut stop = self.stop.subscribe();
        let mut discover_at = Instant::now();
        loop {
            if Instant::now() >= discover_at {
                discover_at = self.discover_once().await;
            }
            if let Err(error) = self.watch().await {
                tracing::warn!(%error, "the chain's side of the channels cannot be read");
            }
            let next = Instant::now() + self.options.watch_interval;
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return,
                () = sleep_until(next) => {}
            }
        }
    }

    async fn discover_once(&self) -> Instant {
        match self.discover().await {
            Ok(found) => {
                tracing::info!(
                    seen = found.seen,
                    adopted = found.adopted,
                    foreign = found.foreign,
                    "channels discovered"
                );
                Instant::now() + self.options.discover_interval
            }
            Err(error) => {
                tracing::warn!(%error, "channels cannot be discovered; tried again with the next reading");
                Instant::now()
            }
        }
    }

    /// Reads the channels that were not read for longest, and takes up what the chain says. Three quarters of them are
    /// such on which something is unclaimed, where there are so many: a payer who closes must be seen in time there,
    /// however many other channels are known.
    ///
    /// # Errors
    /// Where the chain gives no answer, or the ledger's store fails.
    pub async fn watch(&self) -> Result<(), Halt> {
        self.see_slot(self.chain.slot().await?);
        // Channels under way are read by their batch; an older reading must not come in between.
        let busy: HashSet<Key> =
            self.ledger.open_batches().iter().flat_map(|batch| batch.lines.iter().map(|(key, _)| *key)).collect();
        let most = self.options.watch_channels_max;
        let (mut owing, mut others) = (Oldest::default(), Oldest::default());
        self.ledger.glance(
            |channel| {
                let owes = !plan::unclaimed(channel).is_zero();
                self.is_ours(channel).then_some((owes, channel.on_chain.read_at, channel.terms.id))
            },
            |(owes, read_at, id)| {
                if !busy.contains(&id) {
                    if owes { &mut owing } else { &mut others }.push(read_at, id, most);
                }
            },
        );
        let (owing, others) = (owing.finish(), others.finish());
        let room = most.saturating_sub(most / 4).max(most.saturating_sub(others.len()));
        let keys: Vec<Key> = owing.into_iter().take(room).chain(others).take(most).collect();
        self.refresh(&keys).await
    }

    /// Asks the chain for every channel whose rent we paid, and takes up those that the ledger does not know.
    ///
    /// # Errors
    /// Where the chain gives no answer.
    pub async fn discover(&self) -> Result<Watched, Halt> {
        let read_at = self.clock.now();
        let channels = self.chain.channels_by(RENT_PAYER_OFFSET, &self.fee_payer).await?;
        let metered: HashSet<Key> = self.ledger.open_metered().iter().map(|metered| metered.terms.id).collect();
        let mut found = Watched { seen: channels.len(), ..Watched::default() };
        for (key, account) in channels {
            // The metered requests' own channels are closed by whoever opened them.
            if self.ledger.channel(&key).is_some() || metered.contains(&key) {
                continue;
            }
            // A channel that we sign for ourselves was a metered request's: while it is open it may be in the making.
            let open = matches!(account.status, ChannelStatus::Open | ChannelStatus::Closing);
            if account.authorized_signer == self.fee_payer && open {
                continue;
            }
            match self.terms_of(&key, &account) {
                Some(terms) => {
                    tracing::warn!(channel = %key, claimed = account.settled, status = ?account.status,
                        "a channel that the ledger did not know is taken up; what was charged above is not known");
                    self.ledger.adopt(terms, OnChain::of(&account, read_at));
                    found.adopted = found.adopted.saturating_add(1);
                }
                None => found.foreign = found.foreign.saturating_add(1),
            }
        }
        if found.foreign > 0 {
            tracing::warn!(
                count = found.foreign,
                "channels whose rent we paid are on terms that no configured seller \
                has; they are left alone. Configure their pay_to and withdraw_delay to clean them up"
            );
        }
        Ok(found)
    }

    /// The terms of an unknown channel, where it is one of ours: its address is derived from its fields.
    fn terms_of(&self, key: &Key, account: &ChannelAccount) -> Option<Terms> {
        self.options.sellers.iter().find_map(|seller| {
            let (payer, authorizer) = (account.payer, account.authorized_signer);
            let terms = Terms::derive(Arc::clone(seller), payer, authorizer, account.salt, account.open_slot);
            (terms.id == *key && is_same(&terms, account)).then_some(terms)
        })
    }
}

/// The channels that were not read for longest, in bounded memory.
#[derive(Default)]
struct Oldest(BinaryHeap<(UnixMillis, Key)>);

impl Oldest {
    fn push(&mut self, read_at: UnixMillis, id: Key, most: usize) {
        self.0.push((read_at, id));
        if self.0.len() > most {
            self.0.pop();
        }
    }

    /// The oldest first.
    fn finish(self) -> Vec<Key> {
        self.0.into_sorted_vec().into_iter().map(|(_, key)| key).collect()
    }
}
