//! What payers spend, with their charges: in one write, whoever goes away meanwhile, and however requests come together.

use parking_lot::Mutex;
use proptest::prelude::*;
use tokio::time::timeout;
use turnpike::clock::Day;
use turnpike::ledger::payers::{Allowance, DailyLimit, PayerLimits};
use turnpike::ledger::store::MeteredRecord;
use turnpike::scheme::svm::program::ChannelStatus as Status;
use turnpike::x402::Account;

use super::*;

const PAYER: u64 = 77;
const TODAY: Day = Day(20_000);

fn payer() -> Account {
    Account::Svm(key(10, PAYER))
}

/// A channel of the one payer.
fn theirs(number: u64) -> turnpike::ledger::channel::Terms {
    turnpike::ledger::channel::Terms { payer: key(10, PAYER), ..terms(number) }
}

fn pays(number: u64, cumulative: u64, amount: u64) -> Entry {
    Entry { terms: theirs(number), ..entry(number, cumulative, amount) }
}

fn daily(max: u64) -> PayerLimits {
    PayerLimits { daily: Some(DailyLimit { scope: "".into(), day: TODAY, max: max.into() }), exposure_max: None }
}

fn hold(ledger: &Ledger, amount: u64) -> Option<Allowance> {
    ledger.payers().hold(payer(), amount.into(), &daily(1_000)).ok()
}

fn spent(ledger: &Ledger) -> (u64, u64) {
    let (spent, held) = ledger.payers().spent(&payer(), "");
    (spent.to_u64().unwrap(), held.to_u64().unwrap())
}

fn durable(store: &MemoryStore) -> u64 {
    store.durable_spent().iter().map(|record| record.amount.to_u64().unwrap()).sum()
}

fn metered(charge: Option<u64>) -> MeteredRecord {
    let charge = charge.map(Amount::from);
    MeteredRecord { terms: theirs(9), deposit: 50u64.into(), expires_at: 4, charge, close: None }
}

/// What is charged outside of channels, as of its last acknowledged step.
#[derive(Default)]
struct Elsewhere {
    counted: u64,
    in_doubt: u64,
}

/// Charges on two channels, of two kinds elsewhere, and what is given back.
async fn life(ledger: Arc<Ledger>, elsewhere: Arc<Mutex<Elsewhere>>) {
    let step = |counted: u64, in_doubt: u64| *elsewhere.lock() = Elsewhere { counted, in_doubt };
    for number in [1, 2] {
        ledger.adopt(theirs(number), on_chain(1000, 0));
    }
    for (number, total) in [(1, 10), (2, 10), (1, 20)] {
        let reservation = ledger.reserve(pays(number, total, 10)).await.unwrap().counting(hold(&ledger, 10));
        reservation.commit(None).await.unwrap();
    }
    ledger.reserve(pays(2, 20, 10)).await.unwrap().counting(hold(&ledger, 10)).release();
    step(0, 7);
    let first = ledger.count(hold(&ledger, 50).unwrap().charging(7u64.into())).await.unwrap().unwrap();
    step(7, 30);
    let second = ledger.journal_charge(metered(Some(30)), hold(&ledger, 50).map(|held| held.charging(30u64.into())));
    let second = second.await.unwrap();
    step(7, 30);
    ledger.journal_forgone(metered(None), second).await.unwrap();
    step(0, 7);
    ledger.give_back(first).await.unwrap();
    step(0, 0);
    assert!(ledger.count(hold(&ledger, 50).unwrap().charging(Amount::ZERO)).await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn what_is_spent_is_what_was_charged_at_every_write_boundary() {
    let store = Arc::new(MemoryStore::new());
    life(open(&store, limits()).await, Arc::default()).await;
    assert_eq!((store.writes(), durable(&store)), (7, 30));
    for at in 1..=store.writes() {
        for fault in [Fault::CrashBefore, Fault::CrashAfter] {
            let store = Arc::new(MemoryStore::new());
            store.fault_at(at, fault);
            let elsewhere = Arc::<Mutex<Elsewhere>>::default();
            let ledger = open(&store, limits()).await;
            let crashed = timeout(Duration::from_secs(100), life(ledger, Arc::clone(&elsewhere))).await;
            crashed.expect_err("the crash stopped it");
            let store = Arc::new(store.crash());
            let after = open(&store, limits()).await;
            let charged: u64 =
                [1, 2].map(|n| after.channel(&terms(n).id).map_or(0, |c| c.charged.to_u64().unwrap())).iter().sum();
            let (spent, held) = spent(&after);
            let Elsewhere { counted, in_doubt } = *elsewhere.lock();
            assert_eq!((durable(&store), held), (spent, 0));
            let beyond = spent.checked_sub(charged + counted);
            assert!(
                beyond == Some(0) || beyond == Some(in_doubt),
                "at {at}, {fault:?}: {spent} of {charged} and {counted}"
            );
            let journalled = after.open_metered().first().and_then(|open| open.charge).is_some();
            assert!(!journalled || spent >= charged + 30, "a charge that will be made is counted");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_charge_whose_caller_has_gone_is_counted_when_it_is_made() {
    let (ledger, store) = ledger().await;
    ledger.adopt(theirs(2), on_chain(1000, 0));
    store.hold();
    let reservation = ledger.reserve(pays(2, 10, 10)).await.unwrap().counting(hold(&ledger, 10));
    let mut commit = Box::pin(reservation.commit(None));
    poll_fn(|context| {
        assert!(commit.as_mut().poll(context).is_pending());
        Poll::Ready(())
    })
    .await;
    drop(commit);
    assert_eq!(spent(&ledger), (0, 10), "nobody knows yet what becomes of it");
    store.flush();
    while spent(&ledger).1 > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!((spent(&ledger), charged(&ledger, 2), durable(&store)), ((10, 0), 10, 10));
    // One that was not handed to the store yet gives back what it held.
    drop(ledger.reserve(pays(2, 20, 10)).await.unwrap().counting(hold(&ledger, 10)));
    assert_eq!(spent(&ledger), (10, 0));
}

#[tokio::test(start_paused = true)]
async fn a_charge_that_cannot_be_made_counts_nothing() {
    let (ledger, store) = ledger().await;
    ledger.adopt(theirs(2), on_chain(1000, 0));
    let reservation = ledger.reserve(pays(2, 10, 10)).await.unwrap().counting(hold(&ledger, 10));
    let ended = OnChain { status: Status::Distributed, ..on_chain(1000, 0) };
    assert!(reservation.commit(Some(ended)).await.is_err());
    assert_eq!((spent(&ledger), durable(&store)), ((0, 0), 0));
    store.fault_at(1, Fault::Fail);
    ledger.adopt(theirs(3), on_chain(1000, 0));
    let reservation = ledger.reserve(pays(3, 10, 10)).await.unwrap().counting(hold(&ledger, 10));
    assert!(reservation.commit(None).await.is_err());
    assert!(ledger.count(hold(&ledger, 10).unwrap()).await.is_err());
    assert_eq!((spent(&ledger), durable(&store)), ((0, 0), 0));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Requests on many channels of one payer, each a task of its own that takes its turns as chance has it, and either
    /// is charged, in part or whole, or gives up: the limit holds at every moment, and in the end what was spent is what
    /// was charged.
    #[test]
    fn no_interleaving_of_requests_passes_a_limit(
        requests in proptest::collection::vec((1u64..40, 0u8..4, any::<bool>(), 0u8..4), 1..60),
    ) {
        const MAX: u64 = 200;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let store = Arc::new(MemoryStore::new());
            let ledger = open(&store, limits()).await;
            let charged = Arc::new(Mutex::new(0_u64));
            let mut tasks = Vec::new();
            for (number, (amount, waits, served, later)) in (100u64..).zip(requests) {
                let (ledger, charged) = (Arc::clone(&ledger), Arc::clone(&charged));
                ledger.adopt(theirs(number), on_chain(1000, 0));
                tasks.push(tokio::spawn(async move {
                    for _ in 0..waits {
                        tokio::task::yield_now().await;
                    }
                    let Ok(held) = ledger.payers().hold(payer(), amount.into(), &daily(MAX)) else { return };
                    let (spent, in_flight) = spent(&ledger);
                    assert!(spent + in_flight <= MAX);
                    let reservation = ledger.reserve(pays(number, amount, amount)).await.unwrap().counting(Some(held));
                    for _ in 0..later {
                        tokio::task::yield_now().await;
                    }
                    if served {
                        reservation.commit(None).await.unwrap();
                        *charged.lock() += amount;
                    }
                }));
            }
            for task in tasks {
                task.await.unwrap();
            }
            let charged = *charged.lock();
            assert!(charged <= MAX);
            assert_eq!((spent(&ledger), durable(&store)), ((charged, 0), charged));
        });
    }
}
