//! Who goes when: voucher order, deadlines, lost predecessors, callers that go away.

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::*;

#[tokio::test(start_paused = true)]
async fn whatever_order_they_come_in_they_go_in_voucher_order() {
    let (ledger, _) = ledger().await;
    let served = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let mut requests = JoinSet::new();
    for step in [7u64, 2, 9, 1, 4, 8, 3, 6, 5, 10] {
        let (ledger, served) = (Arc::clone(&ledger), Arc::clone(&served));
        requests.spawn(async move {
            let held = ledger.reserve(entry(1, step * 10, 10)).await.unwrap();
            served.lock().push(step);
            tokio::time::sleep(Duration::from_millis(100)).await;
            held.commit(None).await.unwrap();
        });
    }
    while let Some(done) = requests.join_next().await {
        done.unwrap();
    }
    assert_eq!(*served.lock(), (1..=10).collect::<Vec<_>>());
    assert_eq!((charged(&ledger, 1), ledger.counts()), (100, (1, 0)));
}

/// Waits for the outcome and says how long that took.
async fn timed(ledger: &Arc<Ledger>, cumulative: u64) -> (Result<Reservation, Refused>, Duration) {
    let start = Instant::now();
    let outcome = ledger.reserve(entry(1, cumulative, 10)).await;
    (outcome, start.elapsed())
}

#[tokio::test(start_paused = true)]
async fn deadlines() {
    let (ledger, _) = ledger().await;
    let (outcome, took) = timed(&ledger, 20).await;
    assert_eq!((expected(&outcome), took.as_secs()), (Some(10), 1), "no predecessor came");

    let held = ledger.reserve(entry(1, 10, 10)).await.unwrap();
    let ((led, led_took), (gap, gap_took)) = tokio::join!(timed(&ledger, 20), timed(&ledger, 50));
    assert_eq!((led.unwrap_err(), led_took.as_secs()), (Refused::Busy, 10), "its predecessor took too long");
    assert_eq!(
        (gap.unwrap_err(), gap_took.as_secs()),
        (Refused::Busy, 1),
        "one is in flight, but does not lead up to it"
    );

    let late = async {
        tokio::time::sleep(Duration::from_millis(900)).await;
        timed(&ledger, 20).await
    };
    let ((third, third_took), _) = tokio::join!(timed(&ledger, 30), late);
    assert_eq!((third.unwrap_err(), third_took.as_secs()), (Refused::Busy, 10), "led once the gap was filled");
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn followers_of_a_request_that_fails_are_told_at_once() {
    let (ledger, _) = ledger().await;
    let held = ledger.reserve(entry(1, 10, 10)).await.unwrap();
    let start = Instant::now();
    let release = async {
        tokio::time::sleep(Duration::from_millis(10)).await;
        drop(held);
    };
    let (second, third, gap, ()) = tokio::join!(timed(&ledger, 20), timed(&ledger, 30), timed(&ledger, 60), release);
    assert_eq!((expected(&second.0), second.1.as_millis()), (Some(10), 10));
    assert_eq!((expected(&third.0), third.1.as_millis()), (Some(10), 10));
    assert_eq!((expected(&gap.0), gap.1.as_secs()), (Some(10), 1), "it had no predecessor to lose");
    assert_eq!(start.elapsed().as_secs(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_same_voucher_again_waits_for_the_outcome() {
    let (ledger, _) = ledger().await;
    for charge in [false, true] {
        let held = ledger.reserve(entry(1, 10, 10)).await.unwrap();
        let mut again = pin!(ledger.reserve(entry(1, 10, 10)));
        let mut follower = pin!(ledger.reserve(entry(1, 20, 10)));
        assert!(once(&mut again).await.is_none());
        assert!(once(&mut follower).await.is_none());
        if charge {
            held.commit(None).await.unwrap();
            assert_eq!(expected(&again.await), Some(20), "paid once, served once");
            follower.await.unwrap();
        } else {
            drop(held);
            drop(again.await.expect("the first was released, so this one goes"));
            assert_eq!(expected(&follower.await), Some(10));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_waiting_request_that_goes_away_leaves_the_queue() {
    let (ledger, _) = ledger().await;
    let held = ledger.reserve(entry(1, 10, 10)).await.unwrap();
    let mut second = Box::pin(ledger.reserve(entry(1, 20, 10)));
    let mut third = pin!(ledger.reserve(entry(1, 30, 10)));
    assert!(once(&mut second.as_mut()).await.is_none());
    assert!(once(&mut third).await.is_none());
    drop(second);
    assert!(once(&mut third).await.is_none(), "the second may be sent again while the first is in flight");
    let mut second = pin!(ledger.reserve(entry(1, 20, 10)));
    assert!(once(&mut second).await.is_none());
    held.commit(None).await.unwrap();
    second.await.unwrap().commit(None).await.unwrap();
    third.await.unwrap().commit(None).await.unwrap();
    assert_eq!(charged(&ledger, 1), 30);
}

#[tokio::test(start_paused = true)]
async fn a_grant_that_nobody_picks_up_goes_to_the_next() {
    let (ledger, _) = ledger().await;
    let held = ledger.reserve(entry(1, 10, 10)).await.unwrap();
    let mut first = Box::pin(ledger.reserve(entry(1, 10, 10)));
    let mut second = Box::pin(ledger.reserve(entry(1, 10, 10)));
    assert!(once(&mut first.as_mut()).await.is_none());
    assert!(once(&mut second.as_mut()).await.is_none());
    drop(held);
    assert_eq!(ledger.counts(), (1, 1), "granted to the first");
    drop(first);
    let granted = second.await.unwrap();
    assert_eq!(ledger.counts(), (1, 1));
    drop(granted);
    assert_eq!(ledger.counts(), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn so_many_wait_and_no_more() {
    let store = Arc::new(MemoryStore::new());
    let ledger = open(&store, Limits { waiters_per_channel_max: 2, ..limits() }).await;
    ledger.adopt(terms(1), on_chain(1000, 0));
    let held = ledger.reserve(entry(1, 10, 10)).await.unwrap();
    let mut second = pin!(ledger.reserve(entry(1, 20, 10)));
    let mut third = pin!(ledger.reserve(entry(1, 30, 10)));
    assert!(once(&mut second).await.is_none());
    assert!(once(&mut third).await.is_none());
    assert_eq!(ledger.reserve(entry(1, 40, 10)).await.unwrap_err(), Refused::Busy);
    held.commit(None).await.unwrap();
    second.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn one_that_is_refused_in_its_turn_does_not_block_the_rest() {
    let store = Arc::new(MemoryStore::new());
    let ledger = open(&store, Limits { exposure_max: Some(100u64.into()), ..limits() }).await;
    ledger.adopt(terms(1), on_chain(1000, 0));
    let held = ledger.reserve(entry(1, 90, 90)).await.unwrap();
    let mut dear = pin!(ledger.reserve(entry(1, 110, 20)));
    let mut follower = pin!(ledger.reserve(entry(1, 120, 10)));
    let mut cheap = pin!(ledger.reserve(entry(1, 100, 10)));
    assert!(once(&mut dear).await.is_none());
    assert!(once(&mut follower).await.is_none());
    assert!(once(&mut cheap).await.is_none());
    held.commit(None).await.unwrap();
    assert_eq!(dear.await.unwrap_err(), Refused::Exposure);
    let cheap = cheap.await.unwrap();
    assert_eq!(expected(&follower.await), Some(100), "the one that led up to it will not be charged");
    drop(cheap);
}

#[tokio::test(start_paused = true)]
async fn a_deposit_ahead_counts_for_those_behind_it() {
    let (ledger, _) = ledger().await;
    pay(&ledger, 1, 1000, 1000).await;
    let top_up = ledger.reserve(deposit(1, 1010, 10, 1500)).await.unwrap();
    let mut next = pin!(ledger.reserve(entry(1, 1020, 10)));
    assert!(once(&mut next).await.is_none(), "the deposit is on its way");
    top_up.commit(Some(on_chain(1500, 0))).await.unwrap();
    next.await.unwrap().commit(None).await.unwrap();
    let unconfirmed = ledger.reserve(deposit(1, 1600, 580, 2000)).await.unwrap();
    let mut next = pin!(ledger.reserve(deposit(1, 1600, 580, 2000)));
    let mut beyond = pin!(ledger.reserve(entry(1, 1610, 10)));
    assert!(once(&mut next).await.is_none());
    assert!(once(&mut beyond).await.is_none());
    unconfirmed.commit(None).await.unwrap_err();
    drop(next.await.unwrap());
    assert_eq!(expected(&beyond.await), Some(1030));
    ledger.health().unwrap();
}

/// Many requests on few channels from many tasks on two threads; some are given up at random moments. Every voucher
/// pays for one delivery at most, and what the ledger charged is what was delivered or given up after the charge had
/// begun.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_or_served_twice_under_load() {
    let store = Arc::new(MemoryStore::new());
    let ledger = open(&store, limits()).await;
    let delivered = Arc::new(parking_lot::Mutex::new(std::collections::HashSet::new()));
    let mut tasks = JoinSet::new();
    for number in 0..4u64 {
        ledger.adopt(terms(number), on_chain(1_000_000, 0));
        for worker in 0..8u64 {
            let (ledger, delivered) = (Arc::clone(&ledger), Arc::clone(&delivered));
            tasks.spawn(async move {
                for round in 0..200u64 {
                    let cumulative = charged(&ledger, number) + 10 * (1 + (worker + round) % 3);
                    let attempt = async {
                        let Ok(held) = ledger.reserve(entry(number, cumulative, 10)).await else { return };
                        if (worker + round).is_multiple_of(5) {
                            tokio::task::yield_now().await;
                            return held.release();
                        }
                        if held.commit(None).await.is_ok() {
                            assert!(delivered.lock().insert((number, cumulative)), "served twice");
                        }
                    };
                    if (worker * 7 + round).is_multiple_of(4) {
                        // Polled a few times at most, then dropped wherever it is.
                        let mut attempt = pin!(attempt);
                        for _ in 0..round % 3 {
                            if once(&mut attempt).await.is_some() {
                                break;
                            }
                            tokio::task::yield_now().await;
                        }
                    } else {
                        let _ = tokio::time::timeout(Duration::from_millis(5), attempt).await;
                    }
                }
            });
        }
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    ledger.health().unwrap();
    assert_eq!(ledger.counts(), (4, 0), "every reservation has ended");
    let delivered = delivered.lock();
    let mut total = 0;
    for number in 0..4u64 {
        let charged = charged(&ledger, number);
        total += charged;
        let paid = u64::try_from(delivered.iter().filter(|(n, _)| *n == number).count()).unwrap() * 10;
        assert!(paid <= charged && charged.is_multiple_of(10), "{paid} delivered, {charged} charged");
        assert_eq!(store.durable_channel(&terms(number).id), ledger.channel(&terms(number).id));
    }
    assert!(delivered.len() > 100, "{}", delivered.len());
    assert_eq!(ledger.exposure().total, total.into());
}
