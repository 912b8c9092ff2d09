//! Random lives of three channels against a model that only counts. After each step everything that the ledger shows is
//! compared, and what it shows is what its store holds.

use std::collections::HashMap;

use proptest::prelude::*;
use turnpike::clock::UnixMillis;
use turnpike::ledger::CloseGuard;

use super::*;

const CHANNELS: u64 = 3;
const EXPOSURE_MAX: u64 = 120;

#[derive(Clone, Debug)]
enum Step {
    Adopt { number: u64, deposit: u64, claimed: u64 },
    Reserve { number: u64, off: i64, price: u64, deposit_after: Option<u64> },
    Commit { number: u64 },
    Release { number: u64 },
    Observe { number: u64, deposit: u64, claimed: u64, closing: bool },
    BeginClose { number: u64 },
    GiveUpClose { number: u64 },
    FinishClose { number: u64 },
    Forget { number: u64 },
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let number = || 1..=CHANNELS;
    let step = prop_oneof![
        4 => (number(), 0..100u64, prop_oneof![3 => Just(0u64), 1 => 0..40u64])
            .prop_map(|(number, deposit, claimed)| Step::Adopt { number, deposit, claimed: claimed.min(deposit) }),
        12 => (number(), prop_oneof![6 => Just(0i64), 1 => -20i64..20], 0..20u64, proptest::option::weighted(0.2, 0..100u64))
            .prop_map(|(number, off, price, deposit_after)| Step::Reserve { number, off, price, deposit_after }),
        8 => number().prop_map(|number| Step::Commit { number }),
        3 => number().prop_map(|number| Step::Release { number }),
        4 => (number(), 0..120u64, 0..60u64, prop::bool::weighted(0.1))
            .prop_map(|(number, deposit, claimed, closing)| Step::Observe { number, deposit, claimed, closing }),
        1 => number().prop_map(|number| Step::BeginClose { number }),
        1 => number().prop_map(|number| Step::GiveUpClose { number }),
        1 => number().prop_map(|number| Step::FinishClose { number }),
        1 => number().prop_map(|number| Step::Forget { number }),
        1 => Just(Step::Restart),
    ];
    proptest::collection::vec(step, 1..50)
}

#[derive(Clone, Debug, Default)]
struct Model {
    deposit: u64,
    charged: u64,
    claimed: u64,
    closed: bool,
    fin: bool,
    /// Whether the store has it.
    durable: bool,
}

impl Model {
    fn exposure(&self) -> u64 {
        if self.fin { 0 } else { self.charged - self.claimed }
    }
}

#[derive(Default)]
struct World {
    channels: HashMap<u64, Model>,
    held: HashMap<u64, (Reservation, u64, u64, Option<u64>)>,
    guards: HashMap<u64, CloseGuard>,
}

impl World {
    fn at_risk(&self) -> u64 {
        self.channels.values().map(Model::exposure).sum()
    }

    /// What the ledger must answer to a request.
    fn foretell(&self, number: u64, total: u64, price: u64, deposit_after: Option<u64>) -> &'static str {
        let held = self.held.get(&number);
        let unknown = Model::default();
        let Some(model) =
            self.channels.get(&number).or(Some(&unknown).filter(|_| deposit_after.is_some() || held.is_some()))
        else {
            return "unknown";
        };
        let deposit = model.deposit.max(deposit_after.unwrap_or(0));
        let waits_below = deposit.max(held.and_then(|(.., brought)| *brought).unwrap_or(0));
        let reserved: u64 = self.held.values().map(|(_, _, price, _)| *price).sum();
        match total.checked_sub(price) {
            _ if model.closed || self.guards.contains_key(&number) => "closing",
            Some(base) if base >= model.charged => {
                if held.is_some() || base > model.charged {
                    if total > waits_below {
                        "exceeds"
                    } else if held.is_some() {
                        "busy"
                    } else {
                        "mismatch"
                    }
                } else if total > deposit {
                    "exceeds"
                } else if self.at_risk() + reserved + price > EXPOSURE_MAX {
                    "exposure"
                } else {
                    "ok"
                }
            }
            _ => "mismatch",
        }
    }
}

fn word(outcome: &Result<Reservation, Refused>) -> &'static str {
    match outcome {
        Ok(_) => "ok",
        Err(Refused::Unknown) => "unknown",
        Err(Refused::CumulativeMismatch { .. }) => "mismatch",
        Err(Refused::ExceedsDeposit { .. }) => "exceeds",
        Err(Refused::Closing) => "closing",
        Err(Refused::Exposure) => "exposure",
        Err(Refused::Busy) => "busy",
        Err(Refused::Stopped(_)) => "stopped",
    }
}

fn bounded() -> Limits {
    Limits { exposure_max: Some(EXPOSURE_MAX.into()), reservation_max: Duration::from_secs(1_000_000), ..limits() }
}

async fn take(world: &mut World, ledger: &Arc<Ledger>, step: &Step) -> Result<(), TestCaseError> {
    match *step {
        Step::Adopt { number, deposit, claimed } => {
            ledger.adopt(terms(number), on_chain(deposit, claimed));
            observe(world.channels.entry(number).or_default(), deposit, claimed);
        }
        Step::Reserve { number, off, price, deposit_after } => {
            let charged = world.channels.get(&number).map_or(0, |model| model.charged);
            let total = u64::try_from(i64::try_from(charged + price).unwrap() + off).unwrap_or(0);
            let request = Entry { deposit_after: deposit_after.map(Amount::from), ..entry(number, total, price) };
            let outcome = ledger.reserve(request).await;
            prop_assert_eq!(word(&outcome), world.foretell(number, total, price, deposit_after));
            if let Ok(held) = outcome {
                world.held.insert(number, (held, total, price, deposit_after));
            }
        }
        Step::Commit { number } => {
            let Some((held, total, _, deposit_after)) = world.held.remove(&number) else { return Ok(()) };
            let outcome = held.commit(deposit_after.map(|deposit| on_chain(deposit, 0))).await;
            let known = world.channels.contains_key(&number) || deposit_after.is_some();
            let model = world.channels.get(&number).cloned().unwrap_or_default();
            let deposit = model.deposit.max(deposit_after.unwrap_or(0));
            let fits = known && !model.fin && total <= deposit && total >= model.charged;
            prop_assert_eq!(outcome.is_ok(), fits, "{:?} on {:?}", outcome, model);
            if fits {
                world.channels.insert(number, Model { charged: total, deposit, durable: true, ..model });
            }
        }
        Step::Release { number } => drop(world.held.remove(&number)),
        Step::Observe { number, deposit, claimed, closing } => {
            let status = if closing { ChannelStatus::Closing } else { ChannelStatus::Open };
            ledger.observe(&terms(number).id, OnChain { status, ..on_chain(deposit, claimed) }).await.unwrap();
            if let Some(model) = world.channels.get_mut(&number)
                && claimed <= deposit
            {
                let before = model.clone();
                observe(model, deposit, claimed);
                model.closed |= closing;
                model.durable |= (model.deposit, model.charged, model.claimed, model.closed)
                    != (before.deposit, before.charged, before.claimed, before.closed)
                    || closing && !before.fin;
            }
        }
        Step::BeginClose { number } => {
            let outcome = ledger.begin_close(&terms(number).id).await;
            let known = world.channels.get(&number);
            let busy = world.held.contains_key(&number);
            let status = ledger.channel(&terms(number).id).map(|channel| channel.on_chain.status);
            let closable = known.is_some_and(|m| !m.fin && (!m.closed || status == Some(ChannelStatus::Closing)));
            let may = closable && !busy && !world.guards.contains_key(&number);
            prop_assert_eq!(outcome.is_ok(), may, "{:?}", outcome);
            if let Ok(guard) = outcome {
                world.guards.insert(number, guard);
            }
        }
        Step::GiveUpClose { number } => drop(world.guards.remove(&number)),
        Step::FinishClose { number } => {
            if let Some(guard) = world.guards.remove(&number) {
                let now = guard.channel().on_chain;
                guard
                    .finish(OnChain { status: ChannelStatus::Distributed, claimed: now.claimed, ..now })
                    .await
                    .unwrap();
                let model = world.channels.get_mut(&number).unwrap();
                (model.closed, model.fin, model.durable) = (true, true, true);
            }
        }
        Step::Forget { number } => {
            ledger.forget(&terms(number).id).await.unwrap();
            if world.held.contains_key(&number) || world.guards.contains_key(&number) {
                return Ok(());
            }
            if let Some(model) = world.channels.get_mut(&number) {
                if model.charged == model.claimed {
                    world.channels.remove(&number);
                } else {
                    (model.closed, model.fin, model.durable) = (true, true, true);
                }
            }
        }
        Step::Restart => {}
    }
    Ok(())
}

fn observe(model: &mut Model, deposit: u64, claimed: u64) {
    model.deposit = model.deposit.max(deposit);
    model.claimed = model.claimed.max(claimed);
    model.charged = model.charged.max(model.claimed);
}

fn compare(world: &World, ledger: &Ledger, store: &MemoryStore) -> Result<(), TestCaseError> {
    ledger.health().unwrap();
    prop_assert_eq!(ledger.counts(), (world.channels.len(), world.held.len()));
    let largest = world.channels.values().map(Model::exposure).max().unwrap_or(0);
    prop_assert_eq!(ledger.exposure(), Exposure { total: world.at_risk().into(), largest: largest.into() });
    for number in 1..=CHANNELS {
        let record = ledger.channel(&terms(number).id);
        let Some(model) = world.channels.get(&number) else {
            prop_assert_eq!(record, None);
            continue;
        };
        let record = record.unwrap();
        let shown = (record.on_chain.deposit, record.charged, record.on_chain.claimed, record.closed);
        prop_assert_eq!(shown, (model.deposit.into(), model.charged.into(), model.claimed.into(), model.closed));
        prop_assert!(record.on_chain.claimed <= record.charged && record.charged <= record.on_chain.deposit);
        if let Some(voucher) = record.redeemable() {
            prop_assert_eq!(voucher.cumulative, record.charged);
        }
        let durable = store.durable_channel(&record.terms.id);
        prop_assert_eq!(
            durable.as_ref().map(|d| d.charged.max(record.on_chain.claimed)),
            model.durable.then_some(record.charged)
        );
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn random_lives(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let mut store = Arc::new(MemoryStore::new());
            let mut ledger = open(&store, bounded()).await;
            let mut world = World::default();
            for step in &steps {
                if matches!(step, Step::Restart) {
                    let durable = Arc::new(store.crash());
                    world.held.clear();
                    world.guards.clear();
                    store = durable;
                    ledger = open(&store, bounded()).await;
                    // What was only adopted is taken up from the chain again.
                    for (number, model) in &mut world.channels {
                        if !model.durable {
                            let record = Model { charged: model.claimed, ..model.clone() };
                            *model = record;
                        }
                        let status = match ledger.channel(&terms(*number).id) {
                            Some(channel) => channel.on_chain.status,
                            None => ChannelStatus::Open,
                        };
                        let read_at = UnixMillis(2);
                        ledger.adopt(terms(*number), OnChain { status, read_at, ..on_chain(model.deposit, model.claimed) });
                    }
                } else {
                    take(&mut world, &ledger, step).await?;
                }
                compare(&world, &ledger, &store)?;
            }
            Ok::<(), TestCaseError>(())
        })?;
    }
}
