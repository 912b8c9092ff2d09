//! The ledger as its callers see it, over a store in memory: who is served when, what is charged, what survives.

#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

#[path = "support/ledger.rs"]
mod support;

#[path = "ledger/crash.rs"]
mod crash;
#[path = "ledger/model.rs"]
mod model;
#[path = "ledger/passes.rs"]
mod passes;
#[path = "ledger/payers.rs"]
mod payers;
#[path = "ledger/turns.rs"]
mod turns;

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use support::{deposit, entry, key, on_chain, terms};
use turnpike::amount::Amount;
use turnpike::clock::ManualClock;
use turnpike::ledger::channel::OnChain;
use turnpike::ledger::memory::{Fault, MemoryStore};
use turnpike::ledger::store::Store;
use turnpike::ledger::{Entry, Exposure, Ledger, Limits, Refused, Reservation};
use turnpike::scheme::svm::program::ChannelStatus;

fn limits() -> Limits {
    Limits {
        wait_max: Duration::from_secs(10),
        gap_wait_max: Duration::from_secs(1),
        reservation_max: Duration::from_secs(3600),
        ..Limits::default()
    }
}

async fn open(store: &Arc<MemoryStore>, limits: Limits) -> Arc<Ledger> {
    let store: Arc<dyn Store> = Arc::<MemoryStore>::clone(store);
    Ledger::open(store, Arc::new(ManualClock::default()), limits).await.unwrap()
}

/// A ledger with channel 1 of a deposit of 1000.
async fn ledger() -> (Arc<Ledger>, Arc<MemoryStore>) {
    let store = Arc::new(MemoryStore::new());
    let ledger = open(&store, limits()).await;
    ledger.adopt(terms(1), on_chain(1000, 0));
    (ledger, store)
}

fn charged(ledger: &Ledger, number: u64) -> u64 {
    ledger.channel(&terms(number).id).unwrap().charged.to_u64().unwrap()
}

async fn pay(ledger: &Arc<Ledger>, number: u64, cumulative: u64, amount: u64) {
    ledger.reserve(entry(number, cumulative, amount)).await.unwrap().commit(None).await.unwrap();
}

/// Polls a future once.
async fn once<F: Future>(future: &mut std::pin::Pin<&mut F>) -> Option<F::Output> {
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

/// The expected total of a mismatch.
fn expected(outcome: &Result<Reservation, Refused>) -> Option<u64> {
    match outcome {
        Err(Refused::CumulativeMismatch { expected, .. }) => expected.to_u64(),
        _ => None,
    }
}

#[tokio::test(start_paused = true)]
async fn refusals() {
    let (ledger, _) = ledger().await;
    pay(&ledger, 1, 100, 100).await;
    ledger.adopt(terms(2), OnChain { status: ChannelStatus::Closing, closing_since: 5, ..on_chain(1000, 0) });
    let mut other_seller = entry(1, 110, 10);
    other_seller.terms.seller =
        Arc::new(turnpike::ledger::channel::Seller { pay_to: key(77, 0), ..(*other_seller.terms.seller).clone() });
    let table = [
        ("not known", entry(3, 10, 10), "the channel is not known"),
        ("another seller's", other_seller, "the channel is not known"),
        ("closing", entry(2, 10, 10), "the channel is closing or closed"),
        ("stale", entry(1, 90, 10), "the voucher's total 90 is not the expected 110"),
        ("replayed", entry(1, 100, 100), "the voucher's total 100 is not the expected 200"),
        ("short", entry(1, 105, 10), "the voucher's total 105 is not the expected 110"),
        ("price above the voucher", entry(1, 10, 20), "the voucher's total 10 is not the expected 120"),
        ("ahead", entry(1, 130, 10), "the voucher's total 130 is not the expected 110"),
        (
            "above the deposit",
            entry(1, 1100, 1000),
            "the voucher's total is above the 1000 that this channel can pay: top it up, or open another",
        ),
        (
            "ahead, above the deposit",
            entry(1, 1101, 10),
            "the voucher's total is above the 1000 that this channel can pay: top it up, or open another",
        ),
        (
            "above the new deposit",
            deposit(3, 20, 20, 15),
            "the voucher's total is above the 15 that this channel can pay: top it up, or open another",
        ),
    ];
    for (name, entry, text) in table {
        assert_eq!(ledger.reserve(entry).await.unwrap_err().to_string(), text, "{name}");
    }
    assert_eq!(charged(&ledger, 1), 100);
    assert_eq!(ledger.counts(), (2, 0), "a refused deposit leaves no channel behind");
    assert_eq!(ledger.reserve(entry(1, 110, 10)).await.unwrap().amount(), Amount::new(10));
}

#[tokio::test(start_paused = true)]
async fn a_price_of_nothing_does_no_harm() {
    let (ledger, _) = ledger().await;
    pay(&ledger, 1, 0, 0).await;
    pay(&ledger, 1, 10, 10).await;
    pay(&ledger, 1, 10, 0).await;
    assert_eq!(charged(&ledger, 1), 10);
}

#[tokio::test(start_paused = true)]
async fn a_charge_shows_when_it_is_durable_and_not_before() {
    let (ledger, store) = ledger().await;
    store.hold();
    let commit = ledger.reserve(entry(1, 10, 10)).await.unwrap().commit(None);
    let mut commit = pin!(commit);
    assert!(once(&mut commit).await.is_none());
    assert_eq!((charged(&ledger, 1), ledger.counts()), (0, (1, 1)));
    let mut next = pin!(ledger.reserve(entry(1, 20, 10)));
    assert!(once(&mut next).await.is_none(), "the next voucher waits for the outcome");
    store.flush();
    let receipt = commit.await.unwrap();
    assert_eq!((receipt.charged, receipt.channel.charged), (Amount::new(10), Amount::new(10)));
    assert_eq!(receipt.channel.voucher, Some(support::voucher(10)));
    assert_eq!(store.durable_channel(&terms(1).id), ledger.channel(&terms(1).id));
    next.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_commit_whose_caller_goes_away_is_carried_through() {
    let (ledger, store) = ledger().await;
    store.hold();
    {
        let mut commit = pin!(ledger.reserve(entry(1, 10, 10)).await.unwrap().commit(None));
        assert!(once(&mut commit).await.is_none());
    }
    assert_eq!(ledger.counts(), (1, 1), "it may become durable, so nothing is given back");
    store.flush();
    let next = ledger.reserve(entry(1, 20, 10)).await.unwrap();
    assert_eq!(charged(&ledger, 1), 10);
    drop(next.commit(None));
    assert_eq!((charged(&ledger, 1), ledger.counts()), (10, (1, 0)), "a commit that never began is a release");
    ledger.health().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_stops_the_ledger() {
    let (ledger, store) = ledger().await;
    let commit = ledger.reserve(entry(1, 10, 10)).await.unwrap();
    let mut waiting = pin!(ledger.reserve(entry(1, 20, 10)));
    assert!(once(&mut waiting).await.is_none());
    store.fault_at(1, Fault::Fail);
    let error = commit.commit(None).await.unwrap_err();
    assert!(error.to_string().contains("told to fail"), "{error}");
    assert!(matches!(waiting.await, Err(Refused::Stopped(_))));
    assert_eq!(charged(&ledger, 1), 0);
    assert!(ledger.health().unwrap_err().contains("told to fail"));
    assert!(matches!(ledger.reserve(entry(1, 10, 10)).await, Err(Refused::Stopped(_))));
    assert!(matches!(ledger.begin_close(&terms(1).id).await, Err(Refused::Stopped(_))));
    ledger.observe(&terms(1).id, on_chain(1000, 5)).await.unwrap_err();
}

#[tokio::test(start_paused = true)]
async fn a_runtime_that_ends_between_write_and_outcome_stops_the_ledger() {
    let (ledger, store) = ledger().await;
    store.hold();
    let commit = ledger.reserve(entry(1, 10, 10)).await.unwrap().commit(None);
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async move {
            tokio::spawn(commit);
            tokio::task::yield_now().await;
        });
    })
    .join()
    .unwrap();
    assert!(ledger.health().unwrap_err().contains("given up"));
}

#[tokio::test(start_paused = true)]
async fn a_deposit_opens_its_channel_when_it_is_charged() {
    let (ledger, _) = ledger().await;
    let id = terms(2).id;
    let opening = ledger.reserve(deposit(2, 10, 10, 50)).await.unwrap();
    assert_eq!((ledger.channel(&id), ledger.counts()), (None, (1, 1)));
    let mut next = pin!(ledger.reserve(entry(2, 20, 10)));
    assert!(once(&mut next).await.is_none());
    drop(opening);
    assert_eq!(next.await.unwrap_err(), Refused::Unknown, "there is no channel after all");
    assert_eq!(ledger.counts(), (1, 0));

    let opening = ledger.reserve(deposit(2, 10, 10, 50)).await.unwrap();
    let mut next = pin!(ledger.reserve(entry(2, 20, 10)));
    assert!(once(&mut next).await.is_none());
    opening.commit(Some(on_chain(50, 0))).await.unwrap();
    next.await.unwrap();
    assert_eq!((charged(&ledger, 2), ledger.counts()), (10, (2, 0)));

    let unconfirmed = ledger.reserve(deposit(3, 10, 10, 50)).await.unwrap().commit(None).await.unwrap_err();
    assert!(unconfirmed.to_string().contains("not on chain"), "{unconfirmed}");
    assert_eq!(ledger.channel(&terms(3).id), None);
    ledger.health().expect("one charge that cannot be made does not stop the others");
}

#[tokio::test(start_paused = true)]
async fn a_reservation_lapses_and_cannot_be_charged_later() {
    let store = Arc::new(MemoryStore::new());
    let limits = Limits { reservation_max: Duration::from_secs(60), wait_max: Duration::from_secs(600), ..limits() };
    let ledger = open(&store, limits).await;
    ledger.adopt(terms(1), on_chain(1000, 0));
    let first = ledger.reserve(entry(1, 10, 10)).await.unwrap();
    let second = ledger.reserve(entry(1, 10, 10)).await.unwrap();
    let late = first.commit(None).await.unwrap_err();
    assert!(late.to_string().contains("do not deliver"), "{late}");
    assert_eq!(charged(&ledger, 1), 0);
    second.commit(None).await.unwrap();
    assert_eq!((charged(&ledger, 1), ledger.counts()), (10, (1, 0)), "one voucher, one charge, one delivery");
    let _forgotten = ledger.reserve(entry(1, 20, 10)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(80)).await;
    assert_eq!(ledger.counts(), (1, 0), "swept though nobody asked");
}

#[tokio::test(start_paused = true)]
async fn exposure_is_bounded_and_presses_before_it_is_reached() {
    let store = Arc::new(MemoryStore::new());
    let max = |units: u64| Some(units.into());
    let ledger = open(&store, Limits { exposure_max: max(100), channel_exposure_max: max(70), ..limits() }).await;
    for number in 1..=3 {
        ledger.adopt(terms(number), on_chain(1000, 0));
    }
    let mut pressed = pin!(ledger.pressed());
    pay(&ledger, 1, 40, 40).await;
    assert!(once(&mut pressed).await.is_none());
    pay(&ledger, 1, 60, 20).await;
    assert!(once(&mut pressed).await.is_some(), "60 is more than four fifths of 70");
    assert_eq!(ledger.reserve(entry(1, 71, 11)).await.unwrap_err(), Refused::Exposure);
    ledger.pressed().await;

    let held = ledger.reserve(entry(2, 30, 30)).await.unwrap();
    assert_eq!(ledger.reserve(entry(3, 11, 11)).await.unwrap_err(), Refused::Exposure, "what is held counts");
    ledger.pressed().await;
    drop(held);
    let held = ledger.reserve(entry(3, 11, 11)).await.unwrap();
    held.commit(None).await.unwrap();
    assert_eq!(ledger.exposure(), Exposure { total: Amount::new(71), largest: Amount::new(60) });

    ledger.observe(&terms(1).id, on_chain(1000, 55)).await.unwrap();
    assert_eq!(ledger.exposure(), Exposure { total: Amount::new(16), largest: Amount::new(11) });
    let sealed = OnChain { status: ChannelStatus::Sealed, ..on_chain(1000, 55) };
    ledger.observe(&terms(1).id, sealed).await.unwrap();
    assert_eq!(ledger.exposure().total, Amount::new(11), "what can never be claimed is lost and no longer at risk");
}

#[tokio::test(start_paused = true)]
async fn no_channel_is_charged_more_than_a_claim_may_name() {
    let limits = Limits { channel_charged_max: Some(100_u64.into()), ..limits() };
    let ledger = open(&Arc::new(MemoryStore::new()), limits).await;
    ledger.adopt(terms(1), on_chain(1000, 0));
    pay(&ledger, 1, 100, 100).await;
    let refused = ledger.reserve(entry(1, 101, 1)).await.unwrap_err();
    assert_eq!(refused, Refused::ExceedsDeposit { deposit: Amount::new(100) });
    let with_deposit = Entry { deposit_after: Some(2000_u64.into()), ..entry(2, 101, 101) };
    assert!(matches!(ledger.reserve(with_deposit).await, Err(Refused::ExceedsDeposit { .. })));
}

#[tokio::test(start_paused = true)]
async fn readings_of_the_chain() {
    let (ledger, store) = ledger().await;
    let id = terms(1).id;
    pay(&ledger, 1, 100, 100).await;
    let writes = store.writes();
    ledger.observe(&id, OnChain { read_at: turnpike::clock::UnixMillis(9), ..on_chain(1000, 0) }).await.unwrap();
    assert_eq!(
        (store.writes(), ledger.channel(&id).unwrap().on_chain.read_at.0),
        (writes, 9),
        "time alone is not written"
    );
    ledger.observe(&id, on_chain(1000, 60)).await.unwrap();
    ledger.observe(&id, on_chain(1000, 40)).await.unwrap();
    assert_eq!(store.writes(), writes + 1, "an older reading changes nothing");
    ledger.observe(&id, on_chain(50, 60)).await.unwrap();
    assert_eq!(ledger.channel(&id).unwrap().on_chain.deposit, Amount::new(1000), "an impossible one is ignored");
    ledger.observe(&terms(9).id, on_chain(5, 5)).await.unwrap();
    assert_eq!(ledger.channel(&terms(9).id), None);
    ledger.observe(&id, on_chain(1000, 150)).await.unwrap();
    assert_eq!(charged(&ledger, 1), 150, "what was claimed counts as charged");
    assert_eq!(store.durable_channel(&id), ledger.channel(&id));
    ledger
        .observe(&id, OnChain { status: ChannelStatus::Closing, closing_since: 3, ..on_chain(1000, 150) })
        .await
        .unwrap();
    assert!(ledger.channel(&id).unwrap().closed);
    assert_eq!(ledger.reserve(entry(1, 160, 10)).await.unwrap_err(), Refused::Closing);
}

#[tokio::test(start_paused = true)]
async fn a_channel_that_was_shut_for_a_close_stays_shut_after_a_crash_and_can_be_closed() {
    let (ledger, store) = ledger().await;
    let id = terms(1).id;
    pay(&ledger, 1, 10, 10).await;
    let guard = ledger.begin_close(&id).await.unwrap();
    guard.shut().await.unwrap();

    let store = Arc::new(store.crash());
    let ledger = open(&store, limits()).await;
    // The close may have been sent, and would settle 10 whenever it lands.
    assert_eq!(ledger.reserve(entry(1, 20, 10)).await.unwrap_err(), Refused::Closing);
    ledger.observe(&id, on_chain(2000, 0)).await.unwrap();
    assert_eq!(ledger.reserve(entry(1, 20, 10)).await.unwrap_err(), Refused::Closing, "a reading does not reopen it");
    drop(ledger.begin_close(&id).await.unwrap());
    assert_eq!(ledger.reserve(entry(1, 20, 10)).await.unwrap_err(), Refused::Closing, "nor does a close given up");
    let guard = ledger.begin_close(&id).await.unwrap();
    guard.finish(OnChain { status: ChannelStatus::Distributed, ..on_chain(2000, 10) }).await.unwrap();
    assert_eq!(ledger.begin_close(&id).await.unwrap_err(), Refused::Closing);
}

#[tokio::test(start_paused = true)]
async fn a_reading_and_a_charge_at_once_undo_nothing() {
    let (ledger, store) = ledger().await;
    let id = terms(1).id;
    pay(&ledger, 1, 10, 10).await;
    store.hold();
    let mut commit = pin!(ledger.reserve(entry(1, 20, 10)).await.unwrap().commit(None));
    let mut observe = pin!(ledger.observe(&id, on_chain(1000, 10)));
    let mut given_up = Box::pin(ledger.observe(&id, on_chain(2000, 10)));
    assert!(once(&mut commit).await.is_none());
    assert!(once(&mut given_up.as_mut()).await.is_none());
    assert!(once(&mut observe).await.is_none());
    assert_eq!(store.waiting(), 1, "one write of a channel at a time");
    drop(given_up);
    store.flush();
    commit.await.unwrap();
    observe.await.unwrap();
    let durable = store.durable_channel(&id).unwrap();
    assert_eq!((durable.charged, durable.on_chain.claimed), (Amount::new(20), Amount::new(10)));
    assert_eq!(ledger.channel(&id), Some(durable));
}

#[tokio::test(start_paused = true)]
async fn forgetting() {
    let (ledger, store) = ledger().await;
    let id = terms(1).id;
    pay(&ledger, 1, 10, 10).await;
    ledger.forget(&id).await.unwrap();
    assert!(ledger.channel(&id).unwrap().closed, "it still owes, and is kept");
    assert_eq!(ledger.exposure().total, Amount::ZERO);
    let writes = store.writes();
    ledger.forget(&id).await.unwrap();
    assert_eq!(store.writes(), writes);

    ledger.adopt(terms(2), on_chain(1000, 30));
    let held = ledger.reserve(entry(2, 40, 10)).await.unwrap();
    ledger.forget(&terms(2).id).await.unwrap();
    drop(held);
    assert_eq!(ledger.counts().0, 2, "one in use is left alone");
    ledger.forget(&terms(2).id).await.unwrap();
    ledger.forget(&terms(2).id).await.unwrap();
    assert_eq!((ledger.channel(&terms(2).id), ledger.counts()), (None, (1, 0)));
    assert_eq!(store.durable_channel(&terms(2).id), None);
}

#[tokio::test(start_paused = true)]
async fn closing() {
    let (ledger, store) = ledger().await;
    let id = terms(1).id;
    let held = ledger.reserve(entry(1, 10, 10)).await.unwrap();
    let mut queued = pin!(ledger.reserve(entry(1, 20, 10)));
    assert!(once(&mut queued).await.is_none());
    let mut guard = Box::pin(ledger.begin_close(&id));
    assert!(once(&mut guard.as_mut()).await.is_none(), "one is in flight");
    assert_eq!(queued.await.unwrap_err(), Refused::Closing);
    assert_eq!(ledger.begin_close(&id).await.unwrap_err(), Refused::Closing, "one close at a time");
    held.commit(None).await.unwrap();
    let taken = guard.await.unwrap();
    assert_eq!(taken.channel().charged, Amount::new(10));
    assert_eq!(ledger.reserve(entry(1, 20, 10)).await.unwrap_err(), Refused::Closing);
    drop(taken);
    let held = ledger.reserve(entry(1, 20, 10)).await.unwrap();
    assert_eq!(ledger.begin_close(&id).await.unwrap_err(), Refused::Busy, "the request took too long");
    drop(held);
    drop(ledger.reserve(entry(1, 20, 10)).await.unwrap());

    let mut guard = Box::pin(ledger.begin_close(&id));
    let held = ledger.reserve(entry(1, 20, 10)).await.unwrap();
    assert!(once(&mut guard.as_mut()).await.is_none());
    drop(held);
    drop(guard);
    drop(ledger.reserve(entry(1, 20, 10)).await.expect("a guard that nobody picked up lets them in again"));

    let guard = ledger.begin_close(&id).await.unwrap();
    guard.shut().await.unwrap();
    assert!(store.durable_channel(&id).unwrap().closed, "before anything is sent");
    guard.reopen().await.unwrap();
    assert!(!store.durable_channel(&id).unwrap().closed);
    drop(ledger.reserve(entry(1, 20, 10)).await.expect("a close that cannot land lets them in again"));

    let guard = ledger.begin_close(&id).await.unwrap();
    guard.finish(OnChain { status: ChannelStatus::Distributed, ..on_chain(1000, 10) }).await.unwrap();
    assert!(store.durable_channel(&id).unwrap().closed);
    assert_eq!(ledger.begin_close(&id).await.unwrap_err(), Refused::Closing);
    assert_eq!(ledger.begin_close(&terms(9).id).await.unwrap_err(), Refused::Unknown);
    assert_eq!(ledger.reserve(entry(1, 20, 10)).await.unwrap_err(), Refused::Closing);
}
