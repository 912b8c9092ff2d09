//! Passes: sold with their charge or not at all, never good for more calls than were paid for, and still there after a
//! restart.

use std::future::Future;
use std::pin::Pin;

use proptest::prelude::*;
use turnpike::clock::{Clock, UnixMillis};
use turnpike::ledger::channel::Svm;
use turnpike::ledger::passes::{PassCall, PassId, PassRecord, PassRefused, PassState};
use turnpike::ledger::store::StoreError;
use turnpike::x402::Account;

use super::*;

const CALLS: u32 = 6;
const PASS: PassId = PassId([7; 32]);

fn record() -> PassRecord {
    PassRecord {
        id: PASS,
        payer: Account::Svm(terms(1).payer),
        network: terms(1).seller.network.clone(),
        scope: "/quote".into(),
        calls: CALLS,
        used: 1,
        price: Amount::new(40),
        sold_at: UnixMillis(0),
        last_used: UnixMillis(0),
        expires_at: UnixMillis(1_000_000),
        revoked_at: None,
    }
}

async fn sell(ledger: &Arc<Ledger>) -> Result<(), StoreError> {
    let room = ledger.pass_room().unwrap();
    let reservation = ledger.reserve(entry(1, 40, 40)).await.unwrap();
    reservation.selling(record(), room).commit(None).await.map(drop)
}

fn take(ledger: &Arc<Ledger>) -> Result<PassCall<Svm>, PassRefused> {
    ledger.take_pass(&PASS, "/quote")
}

#[tokio::test(start_paused = true)]
async fn a_pass_is_there_when_its_charge_is_and_not_before() {
    let (ledger, store) = ledger().await;
    store.hold();
    let mut sale = Box::pin(sell(&ledger));
    assert!(once(&mut sale.as_mut()).await.is_none());
    assert_eq!(take(&ledger).unwrap_err(), PassRefused::Unknown);
    store.flush();
    sale.await.unwrap();
    assert_eq!((charged(&ledger, 1), ledger.pass(&PASS)), (40, Some(record())));
    assert_eq!(store.durable_passes(), [record()]);
    assert_eq!(ledger.passes(10), [(record(), PassState::Open)]);
    let dropped = ledger.reserve(entry(1, 80, 40)).await.unwrap();
    drop(dropped.selling(PassRecord { id: PassId([8; 32]), ..record() }, ledger.pass_room().unwrap()));
    assert_eq!(ledger.pass_count(), 1, "what is not charged is not sold");
}

#[tokio::test(start_paused = true)]
async fn a_crash_leaves_charge_and_pass_or_neither() {
    for (fault, left) in [(Fault::CrashBefore, (0, 0)), (Fault::CrashAfter, (40, 1))] {
        let (ledger, store) = ledger().await;
        store.fault_at(1, fault);
        let mut sale = Box::pin(sell(&ledger));
        assert!(once(&mut sale.as_mut()).await.is_none());
        let after = open(&Arc::new(store.crash()), limits()).await;
        let charged = after.channel(&terms(1).id).map_or(0, |channel| channel.charged.to_u64().unwrap());
        assert_eq!((charged, after.pass_count()), left, "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_ledger_sells_no_pass() {
    let store = Arc::new(MemoryStore::new());
    let ledger = open(&store, Limits { passes_max: 1, ..limits() }).await;
    ledger.adopt(terms(1), on_chain(1000, 0));
    let room = ledger.pass_room().unwrap();
    assert!(ledger.pass_room().is_none());
    drop(room);
    sell(&ledger).await.unwrap();
    assert!(ledger.pass_room().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_revoked_pass_takes_no_call_and_stays_revoked() {
    let (ledger, store) = ledger().await;
    sell(&ledger).await.unwrap();
    let in_flight = take(&ledger).unwrap();
    assert_eq!(ledger.revoke_pass(&PassId([9; 32])).await.unwrap(), None);
    let revoked = ledger.revoke_pass(&PASS).await.unwrap().unwrap();
    assert!(revoked.revoked_at.is_some());
    assert_eq!(take(&ledger).unwrap_err(), PassRefused::Revoked);
    assert_eq!(in_flight.commit().await.unwrap(), CALLS - 2, "what was let in is counted");
    let after = open(&Arc::new(store.crash()), limits()).await;
    assert_eq!(take(&after).unwrap_err(), PassRefused::Revoked);
    assert_eq!(after.pass(&PASS).unwrap().used, 2);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_stops_the_ledger_and_counts_nothing() {
    let (ledger, store) = ledger().await;
    sell(&ledger).await.unwrap();
    let call = take(&ledger).unwrap();
    store.fault_at(1, Fault::Fail);
    call.commit().await.unwrap_err();
    assert_eq!(ledger.pass(&PASS).unwrap().used, 1);
    assert!(matches!(take(&ledger), Err(PassRefused::Stopped(_))));
}

#[tokio::test(start_paused = true)]
async fn a_call_whose_caller_goes_away_is_carried_through() {
    let (ledger, store) = ledger().await;
    sell(&ledger).await.unwrap();
    drop(take(&ledger).unwrap().commit());
    assert_eq!(ledger.pass(&PASS).unwrap().used, 1, "one that never began is given back");
    store.hold();
    let mut commit = Box::pin(take(&ledger).unwrap().commit());
    assert!(once(&mut commit.as_mut()).await.is_none());
    drop(commit);
    store.flush();
    tokio::task::yield_now().await;
    assert_eq!(ledger.pass(&PASS).unwrap().used, 2);
    ledger.health().unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_is_over_is_forgotten_in_the_store_too() {
    let store = Arc::new(MemoryStore::new());
    let clock = Arc::new(ManualClock::default());
    let (shared, time): (Arc<dyn Store>, Arc<dyn Clock>) =
        (Arc::<MemoryStore>::clone(&store), Arc::<ManualClock>::clone(&clock));
    let ledger = Ledger::open(shared, time, limits()).await.unwrap();
    ledger.adopt(terms(1), on_chain(1000, 0));
    sell(&ledger).await.unwrap();
    clock.advance(Duration::from_secs(2_000));
    assert_eq!(take(&ledger).unwrap_err(), PassRefused::Expired);
    clock.advance(Duration::from_secs(3_600));
    tokio::time::sleep(limits().reservation_max).await;
    assert_eq!((ledger.pass_count(), store.durable_passes()), (0, vec![]));
    assert_eq!(take(&ledger).unwrap_err(), PassRefused::Unknown);
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Take,
    /// Begins to count one of the calls in flight, by chance.
    Commit(usize),
    /// Gives one back, whether it is being counted or not.
    Drop(usize),
    /// Writes wait from here on.
    Hold,
    Flush,
    /// Whoever waits is asked whether it has an answer.
    Poll,
    Crash,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => Just(Step::Take),
        8 => any::<usize>().prop_map(Step::Commit),
        3 => any::<usize>().prop_map(Step::Drop),
        1 => Just(Step::Hold),
        2 => Just(Step::Flush),
        4 => Just(Step::Poll),
        1 => Just(Step::Crash),
    ];
    proptest::collection::vec(step, 1..80)
}

enum InFlight {
    Held(PassCall<Svm>),
    Counting(Pin<Box<dyn Future<Output = Result<u32, StoreError>>>>),
}

#[derive(Default)]
struct World {
    in_flight: Vec<InFlight>,
    /// Counts that went on without their caller, which may be durable or not.
    in_doubt: u32,
    /// Calls whose answers were let go, in all lives.
    told: u32,
    held: bool,
}

impl World {
    async fn step(&mut self, step: Step, ledger: &mut Arc<Ledger>, store: &mut Arc<MemoryStore>) {
        let index = |at: usize, len: usize| (len > 0).then(|| at % len);
        match step {
            Step::Take => match take(ledger) {
                Ok(call) => self.in_flight.push(InFlight::Held(call)),
                Err(PassRefused::Busy) => assert!(!self.in_flight.is_empty() || self.in_doubt > 0),
                Err(refused) => assert_eq!((refused, ledger.pass(&PASS).unwrap().used), (PassRefused::Spent, CALLS)),
            },
            Step::Commit(at) => {
                let Some(at) = index(at, self.in_flight.len()) else { return };
                match self.in_flight.swap_remove(at) {
                    InFlight::Held(call) => {
                        let mut counting: Pin<Box<dyn Future<Output = _>>> = Box::pin(call.commit());
                        match once(&mut Pin::new(&mut counting)).await {
                            Some(counted) => self.count(counted),
                            None => self.in_flight.push(InFlight::Counting(counting)),
                        }
                    }
                    counting @ InFlight::Counting(_) => self.in_flight.push(counting),
                }
            }
            Step::Drop(at) => {
                let Some(at) = index(at, self.in_flight.len()) else { return };
                if let InFlight::Counting(_) = self.in_flight.swap_remove(at) {
                    self.in_doubt += 1;
                }
            }
            Step::Hold => {
                store.hold();
                self.held = true;
            }
            Step::Flush => {
                store.flush();
                self.held = false;
                tokio::task::yield_now().await;
            }
            Step::Poll => {
                for one in std::mem::take(&mut self.in_flight) {
                    match one {
                        InFlight::Held(call) => self.in_flight.push(InFlight::Held(call)),
                        InFlight::Counting(mut counting) => match once(&mut Pin::new(&mut counting)).await {
                            Some(counted) => self.count(counted),
                            None => self.in_flight.push(InFlight::Counting(counting)),
                        },
                    }
                }
            }
            Step::Crash => {
                let after = Arc::new(store.crash());
                self.in_flight.clear();
                *ledger = open(&after, limits()).await;
                *store = after;
                self.held = false;
            }
        }
    }

    fn count(&mut self, counted: Result<u32, StoreError>) {
        assert!(counted.unwrap() < CALLS - 1, "the buying request was one, and this is another");
        self.told += 1;
    }

    /// The buying request is a call too.
    fn check(&self, ledger: &Ledger, store: &MemoryStore) {
        let durable = store.durable_passes()[0].used;
        let shown = ledger.pass(&PASS).unwrap().used;
        assert!(self.told < shown, "a call that was told of is forgotten");
        assert!(shown <= durable && durable <= CALLS, "shown {shown}, durable {durable}");
        let in_flight = u32::try_from(self.in_flight.len()).unwrap();
        assert!(1 + self.told + in_flight <= CALLS, "more calls than were paid for");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]
    /// In whatever order calls are taken, counted, given back, given up half-way and struck by crashes.
    #[test]
    fn no_order_of_things_is_good_for_more_calls_than_were_paid_for(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let (mut ledger, mut store) = ledger().await;
            sell(&ledger).await.unwrap();
            let mut world = World::default();
            for step in steps {
                world.step(step, &mut ledger, &mut store).await;
                world.check(&ledger, &store);
            }
            // What nobody holds any more can all be had.
            store.flush();
            world.step(Step::Poll, &mut ledger, &mut store).await;
            world.in_flight.clear();
            tokio::task::yield_now().await;
            while let Ok(call) = take(&ledger) {
                call.commit().await.unwrap();
                world.told += 1;
            }
            assert_eq!(take(&ledger).unwrap_err(), PassRefused::Spent);
            world.check(&ledger, &store);
            assert_eq!(store.durable_passes()[0].used, CALLS);
        });
    }
}
