//! A store in memory, for tests and simulation: it can be told to fail, to be slow, and to crash.
//!
//! It forgets everything with the process. Its writes are durable in the sense of the port: a crash
//! ([`MemoryStore::crash`]) keeps what was durable and forgets the rest, as a disk would.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::channel::{ChannelTerms, Family, Journalled, Svm};
use super::passes::{PassId, PassRecord};
use super::store::{Answer as KeptAnswer, AnswerRecord, RecordOf, Snapshot, SpentRecord, Store, StoreError, Write};
use crate::amount::Amount;
use crate::clock::Day;
use crate::x402::Account;

/// What goes wrong at a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It and all later ones fail.
    Fail,
    /// The process dies before it is durable: it is lost, and neither it nor a later one is ever answered.
    CrashBefore,
    /// The process dies after it is durable: it is kept, and neither it nor a later one is ever answered.
    CrashAfter,
}

/// A store in memory.
#[derive(Debug)]
pub struct MemoryStore<F: Family = Svm> {
    state: Mutex<State<F>>,
    writes: AtomicU64,
}

impl<F: Family> Default for MemoryStore<F> {
    fn default() -> Self {
        Self { state: Mutex::default(), writes: AtomicU64::new(0) }
    }
}

/// Takes a write's outcome, when it has one.
type Answer = oneshot::Sender<Result<(), StoreError>>;

#[derive(Debug)]
struct State<F: Family> {
    durable: Durable<F>,
    held: bool,
    waiting: VecDeque<(Vec<Write<F>>, Answer)>,
    fault: Option<(u64, Fault)>,
    failing: bool,
    crashed: bool,
}

impl<F: Family> Default for State<F> {
    fn default() -> Self {
        Self {
            durable: Durable::default(),
            held: false,
            waiting: VecDeque::new(),
            fault: None,
            failing: false,
            crashed: false,
        }
    }
}

#[derive(Clone, Debug)]
struct Durable<F: Family> {
    channels: HashMap<F::Id, RecordOf<F>>,
    batches: BTreeMap<u64, F::Batch>,
    metered: HashMap<F::Id, F::Metered>,
    answers: BTreeMap<u64, AnswerRecord>,
    spent: HashMap<(Account, Arc<str>), (Day, Amount)>,
    passes: BTreeMap<PassId, PassRecord>,
}

impl<F: Family> Default for Durable<F> {
    fn default() -> Self {
        Self {
            channels: HashMap::new(),
            batches: BTreeMap::new(),
            metered: HashMap::new(),
            answers: BTreeMap::new(),
            spent: HashMap::new(),
            passes: BTreeMap::new(),
        }
    }
}

impl<F: Family> Durable<F> {
    fn apply(&mut self, writes: Vec<Write<F>>) {
        for write in writes {
            match write {
                Write::Channel(channel) => drop(self.channels.insert(channel.terms.id(), *channel)),
                Write::About(_) => {}
                Write::ForgetChannel(id) => drop(self.channels.remove(&id)),
                Write::Batch(batch) => drop(self.batches.insert(batch.key(), *batch)),
                Write::Metered(metered) => drop(self.metered.insert(metered.key(), *metered)),
                Write::ForgetMetered(id) => drop(self.metered.remove(&id)),
                Write::Answer(answer) => drop(self.answers.insert(answer.place, *answer)),
                Write::ForgetAnswers(places) => self.answers.retain(|place, _| !places.contains(place)),
                Write::Spend(spend) => {
                    let of = (spend.payer, Arc::clone(&spend.scope));
                    let after = spend.after(self.spent.get(&of).copied());
                    self.spent.insert(of, after);
                }
                Write::ForgetSpent(before) => self.spent.retain(|_, (day, _)| *day >= before),
                Write::Pass(pass) => drop(self.passes.insert(pass.id, *pass)),
                Write::PassUsed(call) => {
                    if let Some(pass) = self.passes.get_mut(&call.id) {
                        pass.used = pass.used.saturating_add(1);
                        pass.last_used = pass.last_used.max(call.at);
                    }
                }
                Write::RevokePass(revoked) => {
                    if let Some(pass) = self.passes.get_mut(&revoked.id) {
                        pass.revoked_at = revoked.revoked_at;
                    }
                }
                Write::ForgetPasses(ids) => self.passes.retain(|id, _| !ids.contains(id)),
            }
        }
    }
}

impl<F: Family> Durable<F> {
    fn spent(&self) -> Vec<SpentRecord> {
        let record = |((payer, scope), (day, amount)): (&(Account, Arc<str>), &(Day, Amount))| SpentRecord {
            payer: *payer,
            scope: Arc::clone(scope),
            day: *day,
            amount: *amount,
        };
        self.spent.iter().map(record).collect()
    }
}

impl<F: Family> MemoryStore<F> {
    /// An empty store that works.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes something go wrong at the `nth` write from now on, counted from 1.
    pub fn fault_at(&self, nth: u64, fault: Fault) {
        self.state.lock().fault = Some((self.writes().saturating_add(nth), fault));
    }

    /// Keeps writes waiting until [`Self::flush`].
    pub fn hold(&self) {
        self.state.lock().held = true;
    }

    /// Makes what waits durable, in order, and answers it; later writes do not wait any more.
    pub fn flush(&self) {
        let mut state = self.state.lock();
        state.held = false;
        let waiting = std::mem::take(&mut state.waiting);
        for (writes, answer) in waiting {
            state.durable.apply(writes);
            drop(answer.send(Ok(())));
        }
    }

    /// Ends this store's life, as a crash of the process would, and gives the one that a restart finds: with all that
    /// was durable and nothing else. Writes that wait are never answered.
    #[must_use]
    pub fn crash(&self) -> Self {
        let mut state = self.state.lock();
        state.crashed = true;
        let durable = state.durable.clone();
        Self { state: Mutex::new(State { durable, ..State::default() }), writes: AtomicU64::new(0) }
    }

    /// How many writes were asked for.
    #[must_use]
    pub fn writes(&self) -> u64 {
        self.writes.load(Ordering::SeqCst)
    }

    /// How many writes wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.state.lock().waiting.len()
    }

    /// A channel as it would be found after a crash now.
    #[must_use]
    pub fn durable_channel(&self, id: &F::Id) -> Option<RecordOf<F>> {
        self.state.lock().durable.channels.get(id).cloned()
    }

    /// The answers as they would be found after a crash now, oldest first.
    #[must_use]
    pub fn durable_answers(&self) -> Vec<AnswerRecord> {
        self.state.lock().durable.answers.values().cloned().collect()
    }

    /// The passes as they would be found after a crash now.
    #[must_use]
    pub fn durable_passes(&self) -> Vec<PassRecord> {
        self.state.lock().durable.passes.values().cloned().collect()
    }

    /// What payers have spent as it would be found after a crash now.
    #[must_use]
    pub fn durable_spent(&self) -> Vec<SpentRecord> {
        self.state.lock().durable.spent()
    }

    /// Takes a write up: `Ok(None)` is durable, a receiver waits, `Err(None)` is never answered.
    #[allow(clippy::type_complexity, reason = "said in the line above, used once below")]
    fn take(
        &self,
        writes: Vec<Write<F>>,
    ) -> Result<Option<oneshot::Receiver<Result<(), StoreError>>>, Option<StoreError>> {
        let mut state = self.state.lock();
        if state.crashed {
            return Err(None);
        }
        let nth = self.writes.fetch_add(1, Ordering::SeqCst).saturating_add(1);
        match state.fault.filter(|(at, _)| *at == nth) {
            Some((_, Fault::Fail)) => state.failing = true,
            Some((_, fault)) => {
                state.crashed = true;
                if fault == Fault::CrashAfter {
                    state.durable.apply(writes);
                }
                return Err(None);
            }
            None => {}
        }
        if state.failing {
            return Err(Some(StoreError("the store was told to fail".to_owned())));
        }
        if state.held {
            let (answer, receiver) = oneshot::channel();
            state.waiting.push_back((writes, answer));
            return Ok(Some(receiver));
        }
        state.durable.apply(writes);
        Ok(None)
    }
}

#[async_trait]
impl<F: Family> Store<F> for MemoryStore<F> {
    async fn load(&self) -> Result<Snapshot<F>, StoreError> {
        let durable = self.state.lock().durable.clone();
        let spent = durable.spent();
        Ok(Snapshot {
            last_batch: durable.batches.keys().next_back().copied().unwrap_or(0),
            channels: durable.channels.into_values().collect(),
            batches: durable.batches.into_values().filter(Journalled::is_open).collect(),
            metered: durable.metered.into_values().collect(),
            answers: durable.answers.values().map(AnswerRecord::mark).collect(),
            spent,
            passes: durable.passes.into_values().collect(),
        })
    }

    async fn write(&self, writes: Vec<Write<F>>) -> Result<(), StoreError> {
        match self.take(writes) {
            Ok(None) => Ok(()),
            Ok(Some(receiver)) => match receiver.await {
                Ok(outcome) => outcome,
                Err(_) => std::future::pending().await,
            },
            Err(Some(error)) => Err(error),
            Err(None) => std::future::pending().await,
        }
    }

    async fn batches(&self, limit: usize) -> Result<Vec<F::Batch>, StoreError> {
        Ok(self.state.lock().durable.batches.values().rev().take(limit).cloned().collect())
    }

    async fn answer(&self, place: u64) -> Result<Option<KeptAnswer>, StoreError> {
        Ok(self.state.lock().durable.answers.get(&place).map(|record| record.answer.clone()))
    }
}
