//! A crash at every write boundary: what was acknowledged is there afterwards, and nothing that was not asked for.

use parking_lot::Mutex;
use tokio::time::timeout;
use turnpike::ledger::store::{
    Answer, AnswerId, BatchKind, BatchRecord, BatchState, ChannelRecord, MeteredRecord, Write,
};
use turnpike::x402::key::Signature;

use super::*;

/// What callers were told, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Told {
    Charged(u64, u64),
    /// The same, with an answer.
    Answered(u64, u64),
    Claimed(u64, u64),
    Closed(u64),
    Batch(u64, BatchState),
    Metered(u64),
    ForgotMetered(u64),
}

fn batch(id: u64, state: BatchState) -> BatchRecord {
    BatchRecord {
        id,
        kind: BatchKind::Claim,
        lines: vec![(terms(1).id, Amount::new(20))],
        transaction: vec![1, 2, 3],
        signature: Signature([4; 64]),
        last_valid_block_height: 9,
        state,
        created_at: turnpike::clock::UnixMillis(3),
    }
}

fn metered(number: u64) -> MeteredRecord {
    MeteredRecord { terms: terms(number), deposit: 5u64.into(), expires_at: 4, charge: None, close: None }
}

fn answer_id(total: u64) -> AnswerId {
    AnswerId { key: key(20, total).0, fingerprint: key(21, total).0 }
}

/// Charges 10 with an answer that says which total it is for.
async fn pay_for_answer(ledger: &Arc<Ledger>, number: u64, total: u64) {
    let make = |channel: &ChannelRecord| Answer {
        status: 200,
        head: "a: b\r\n".into(),
        body: channel.charged.to_string().into(),
    };
    let held = ledger.reserve(entry(number, total, 10)).await.unwrap();
    held.commit_with_answer(None, answer_id(total), make).await.unwrap();
}

/// Whether the answer for a total is there; if it is, it is the right one.
async fn has_answer(ledger: &Ledger, total: u64) -> bool {
    let Some(mark) = ledger.find_answer(&answer_id(total).key) else { return false };
    assert_eq!(mark.id, answer_id(total));
    let answer = ledger.read_answer(&mark).await.unwrap().unwrap();
    assert_eq!((answer.status, answer.body), (200, total.to_string().into()), "made from the channel as it is then");
    true
}

/// A little of everything that writes, one after the other.
async fn life(ledger: Arc<Ledger>, told: Arc<Mutex<Vec<Told>>>) {
    let tell = |what| told.lock().push(what);
    ledger.adopt(terms(1), on_chain(1000, 0));
    for number in [1u64, 2] {
        if number == 2 {
            let opening = ledger.reserve(deposit(2, 10, 10, 500)).await.unwrap();
            opening.commit(Some(on_chain(500, 0))).await.unwrap();
            tell(Told::Charged(2, 10));
        }
        for step in 1 + u64::from(number == 2)..=3 {
            pay(&ledger, number, step * 10, 10).await;
            tell(Told::Charged(number, step * 10));
        }
    }
    let id = ledger.next_batch();
    ledger.journal_batch(batch(id, BatchState::Signed)).await.unwrap();
    tell(Told::Batch(id, BatchState::Signed));
    ledger.observe(&terms(1).id, on_chain(1000, 20)).await.unwrap();
    tell(Told::Claimed(1, 20));
    ledger.journal_batch(batch(id, BatchState::Confirmed)).await.unwrap();
    tell(Told::Batch(id, BatchState::Confirmed));
    ledger.journal_metered(metered(7)).await.unwrap();
    tell(Told::Metered(7));
    ledger.forget_metered(&terms(7).id).await.unwrap();
    tell(Told::ForgotMetered(7));
    let guard = ledger.begin_close(&terms(2).id).await.unwrap();
    guard.finish(OnChain { status: ChannelStatus::Distributed, ..on_chain(500, 30) }).await.unwrap();
    tell(Told::Closed(2));
    pay(&ledger, 1, 40, 10).await;
    tell(Told::Charged(1, 40));
    for total in [50, 60] {
        pay_for_answer(&ledger, 1, total).await;
        tell(Told::Answered(1, total));
    }
}

fn holds(ledger: &Ledger, told: &[Told]) {
    let last_batch =
        told.iter().rev().find_map(|t| if let Told::Batch(id, state) = t { Some((*id, state)) } else { None });
    for what in told {
        match what {
            Told::Charged(number, total) | Told::Answered(number, total) => {
                assert!(charged(ledger, *number) >= *total, "{what:?} was forgotten")
            }
            Told::Claimed(number, total) => {
                let channel = ledger.channel(&terms(*number).id).unwrap();
                assert!(channel.on_chain.claimed >= Amount::from(*total) && channel.exposure() < channel.charged);
            }
            Told::Closed(number) => assert!(ledger.channel(&terms(*number).id).unwrap().closed),
            Told::Batch(id, _) => assert!(ledger.next_batch() > *id, "an id was given twice"),
            Told::Metered(_) | Told::ForgotMetered(_) => {}
        }
    }
    match last_batch {
        // The next step may have become durable without an answer.
        Some((_, BatchState::Signed)) => assert!(ledger.open_batches().len() <= 1),
        Some((_, BatchState::Confirmed)) => assert_eq!(ledger.open_batches(), []),
        _ => {}
    }
    if told.contains(&Told::ForgotMetered(7)) {
        assert_eq!(ledger.open_metered(), []);
    }
}

#[tokio::test(start_paused = true)]
async fn at_every_write_boundary() {
    let store = Arc::new(MemoryStore::new());
    let told = Arc::default();
    life(open(&store, limits()).await, Arc::clone(&told)).await;
    let writes = store.writes();
    assert_eq!(told.lock().len(), usize::try_from(writes).unwrap(), "one acknowledgement for each write");
    for at in 1..=writes {
        for fault in [Fault::CrashBefore, Fault::CrashAfter] {
            let store = Arc::new(MemoryStore::new());
            store.fault_at(at, fault);
            let told = Arc::default();
            let ledger = open(&store, limits()).await;
            let crashed = timeout(Duration::from_secs(100), life(Arc::clone(&ledger), Arc::clone(&told))).await;
            crashed.expect_err("the crash stopped it");
            let after = open(&Arc::new(store.crash()), limits()).await;
            let told = told.lock().clone();
            assert_eq!(told.len(), usize::try_from(at - 1).unwrap());
            holds(&after, &told);
            let total: u64 =
                [1, 2].iter().filter_map(|n| after.channel(&terms(*n).id)).map(|c| c.charged.to_u64().unwrap()).sum();
            let acknowledged = |number| {
                told.iter()
                    .filter_map(|t| match t {
                        Told::Charged(n, c) | Told::Answered(n, c) => (*n == number).then_some(*c),
                        _ => None,
                    })
                    .max()
            };
            let acknowledged: u64 = [1, 2].into_iter().filter_map(acknowledged).sum();
            assert!(total - acknowledged <= 10, "at most the charge in doubt: {total} after {acknowledged}");
            if fault == Fault::CrashBefore {
                assert_eq!(total, acknowledged);
            }
            for total in [50, 60] {
                let charged = after.channel(&terms(1).id).is_some_and(|channel| channel.charged >= total.into());
                assert_eq!(has_answer(&after, total).await, charged, "{total}: a charge and its answer, or neither");
            }
            after.health().unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_holds_what_cannot_be_is_refused() {
    let (ledger, store) = ledger().await;
    pay(&ledger, 1, 10, 10).await;
    let mut record = store.durable_channel(&terms(1).id).unwrap();
    record.charged = 11u64.into();
    let store = MemoryStore::<turnpike::ledger::channel::Svm>::new();
    store.write(vec![Write::Channel(Box::new(record))]).await.unwrap();
    let opened = Ledger::open(Arc::new(store), Arc::new(ManualClock::default()), limits()).await;
    assert!(opened.unwrap_err().to_string().contains("restore a backup"));
}

#[tokio::test(start_paused = true)]
async fn restored_channels_share_their_seller() {
    let (ledger, store) = ledger().await;
    ledger.adopt(terms(2), on_chain(1000, 0));
    pay(&ledger, 1, 10, 10).await;
    pay(&ledger, 2, 10, 10).await;
    let after = open(&Arc::new(store.crash()), limits()).await;
    let mut sellers = Vec::new();
    after.for_each(&mut |channel| sellers.push(Arc::clone(&channel.terms.seller)));
    assert_eq!(sellers.len(), 2);
    assert!(Arc::ptr_eq(&sellers[0], &sellers[1]));
    assert_eq!((after.exposure().total, after.counts()), (Amount::new(20), (2, 0)));
}

#[tokio::test(start_paused = true)]
async fn an_answer_without_its_charge_is_never_found() {
    let (ledger, store) = ledger().await;
    let held = ledger.reserve(entry(1, 10, 10)).await.unwrap();
    store.fault_at(1, Fault::Fail);
    let make = |_: &ChannelRecord| Answer { status: 200, head: "".into(), body: "".into() };
    held.commit_with_answer(None, answer_id(10), make).await.unwrap_err();
    assert!(!has_answer(&ledger, 10).await);
    assert!(store.durable_answers().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_answer_whose_caller_has_gone_is_kept() {
    let (ledger, store) = ledger().await;
    store.hold();
    {
        let mut gone = std::pin::pin!(pay_for_answer(&ledger, 1, 10));
        assert!(once(&mut gone).await.is_none());
    }
    assert!(!has_answer(&ledger, 10).await, "not before it is durable");
    tokio::task::yield_now().await;
    store.flush();
    while !has_answer(&ledger, 10).await {
        tokio::task::yield_now().await;
    }
    assert_eq!(charged(&ledger, 1), 10);
}
