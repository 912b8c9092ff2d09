//! The ledger's file: what was acknowledged is in it whatever happens, and it is opened by one process and understood
//! or refused.

#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

#[path = "support/ledger.rs"]
mod support;

use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use proptest::prelude::*;
use support::{deposit, entry, key, on_chain, seller, terms, voucher};
use turnpike::amount::Amount;
use turnpike::clock::{Day, SystemClock, UnixMillis};
use turnpike::ledger::channel::{OnChain, Seller, Svm, Terms, Voucher};
use turnpike::ledger::passes::{PassId, PassRecord, PassUse};
use turnpike::ledger::payers::Spend;
use turnpike::ledger::sqlite::{Settings, SqliteStore};
use turnpike::ledger::store::{
    Answer, AnswerId, AnswerRecord, BatchKind, BatchRecord, BatchState, ChannelRecord, MeteredRecord, Snapshot,
    SpentRecord, Store, StoreError, Write,
};
use turnpike::ledger::{Ledger, Limits};
use turnpike::scheme::svm::program::ChannelStatus;
use turnpike::x402::Account;
use turnpike::x402::key::Signature;

fn store(path: &Path) -> SqliteStore {
    SqliteStore::open(path, Settings { check: true, ..Settings::default() }).unwrap()
}

fn refused(path: &Path) -> String {
    SqliteStore::open(path, Settings::default()).unwrap_err().to_string()
}

fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.db");
    (folder, path)
}

async fn ledger(store: SqliteStore) -> Arc<Ledger> {
    Ledger::open(Arc::new(store), Arc::new(SystemClock), Limits::default()).await.unwrap()
}

fn charged(ledger: &Ledger, number: u64) -> u64 {
    ledger.channel(&terms(number).id).map_or(0, |channel| channel.charged.to_u64().unwrap())
}

fn record(number: u64, charged: u64) -> ChannelRecord {
    ChannelRecord {
        terms: terms(number),
        on_chain: on_chain(1000, 0),
        charged: charged.into(),
        voucher: (charged > 0).then(|| voucher(charged)),
        unclaimed_since: (charged > 0).then_some(UnixMillis(5)),
        last_used: UnixMillis(6),
        closed: false,
    }
}

fn batch(id: u64, kind: BatchKind, state: BatchState) -> BatchRecord {
    BatchRecord {
        id,
        kind,
        lines: vec![(terms(1).id, Amount::new(u128::MAX)), (terms(2).id, Amount::ZERO)],
        transaction: vec![0, 255, 7],
        signature: Signature([8; 64]),
        last_valid_block_height: u64::MAX,
        state,
        created_at: UnixMillis(-3),
    }
}

fn answer(place: u64, body: &[u8]) -> AnswerRecord {
    AnswerRecord {
        place,
        id: AnswerId { key: key(20, place).0, fingerprint: key(21, place).0 },
        kept_at: UnixMillis(i64::MAX),
        answer: Answer { status: 599, head: "a: b\r\n".into(), body: body.to_vec().into() },
    }
}

fn counted(tag: u8, at: i64) -> Write {
    let PassRecord { id, payer, scope, .. } = pass(tag);
    Write::PassUsed(Box::new(PassUse { id, payer, scope, number: 1, at: UnixMillis(at) }))
}

fn spend(record: &SpentRecord, back: bool) -> Write {
    let SpentRecord { payer, scope, day, amount } = record.clone();
    Write::Spend(Box::new(Spend { payer, scope, day, amount, back }))
}

fn pass(tag: u8) -> PassRecord {
    PassRecord {
        id: PassId([tag; 32]),
        payer: Account::Svm(key(10, 1)),
        network: seller().network.clone(),
        scope: "GET api.example.com/v1/*".into(),
        calls: u32::MAX,
        used: u32::MAX - 2,
        price: Amount::new(u128::MAX),
        sold_at: UnixMillis(-1),
        last_used: UnixMillis(5),
        expires_at: UnixMillis(i64::MAX),
        revoked_at: None,
    }
}

/// Some of everything, with the greatest numbers.
fn everything() -> (Vec<Write>, Snapshot) {
    let dropped = BatchState::Dropped { why: "blockhash expired".to_owned() };
    let batches = [
        batch(1, BatchKind::Claim, BatchState::Confirmed),
        batch(2, BatchKind::Distribute, dropped),
        batch(3, BatchKind::Seal, BatchState::Signed),
        batch(4, BatchKind::CleanUp, BatchState::Signed),
    ];
    let closed = ChannelRecord {
        terms: Terms { salt: u64::MAX, open_slot: u64::MAX - 1, ..terms(2) },
        on_chain: OnChain {
            status: ChannelStatus::Distributed,
            deposit: Amount::new(u128::MAX),
            claimed: Amount::new(u128::MAX),
            distributed: Amount::new(1 << 127),
            closing_since: i64::MIN,
            read_at: UnixMillis(i64::MAX),
        },
        charged: Amount::new(u128::MAX),
        voucher: Some(Voucher { cumulative: Amount::new(u128::MAX), signature: Signature([255; 64]) }),
        unclaimed_since: None,
        last_used: UnixMillis(-1),
        closed: true,
    };
    let other = Arc::new(Seller { withdraw_delay: u32::MAX, pay_to: key(66, 6), ..(*seller()).clone() });
    let metered = [
        MeteredRecord { terms: terms(7), deposit: 5u64.into(), expires_at: i64::MAX, charge: None, close: None },
        MeteredRecord {
            terms: Terms { seller: other, ..terms(8) },
            deposit: 5u64.into(),
            expires_at: 1,
            charge: Some(Amount::ZERO),
            close: Some((Signature([3; 64]), u64::MAX)),
        },
    ];
    let channels = vec![record(1, 10), closed];
    let mut writes: Vec<_> = channels.iter().cloned().map(|channel| Write::<Svm>::Channel(Box::new(channel))).collect();
    writes.extend(batches.iter().cloned().map(|batch| Write::<Svm>::Batch(Box::new(batch))));
    writes.extend(metered.iter().cloned().map(|metered| Write::<Svm>::Metered(Box::new(metered))));
    // One that needs several pages, and one of nothing at the last place.
    let answers = [answer(1, &[0xA5; 9000]), answer(u64::from(u32::MAX), b"")];
    writes.extend(answers.iter().cloned().map(|answer| Write::<Svm>::Answer(Box::new(answer))));
    let answers = answers.iter().map(AnswerRecord::mark).collect();
    let open = batches.into_iter().filter(|batch| batch.state == BatchState::Signed).collect();
    let spent = [("", 20_000, Amount::new(u128::MAX)), ("GET,POST api.example.com/v1/*", -1, Amount::new(1))];
    let spent = spent.map(|(scope, day, amount)| SpentRecord {
        payer: Account::Svm(key(10, 1)),
        scope: scope.into(),
        day: Day(day),
        amount,
    });
    writes.extend(spent.iter().map(|record| spend(record, false)));
    let spent = spent.into();
    let passes = vec![pass(1), PassRecord { revoked_at: Some(UnixMillis(7)), ..pass(2) }];
    writes.extend(passes.iter().cloned().map(|pass| Write::<Svm>::Pass(Box::new(pass))));
    (writes, Snapshot { channels, batches: open, metered: metered.into(), last_batch: 4, answers, spent, passes })
}

fn assert_same(found: Snapshot, expected: &Snapshot) {
    let sorted = |channels: &[ChannelRecord]| {
        let mut channels = channels.to_vec();
        channels.sort_by_key(|channel| channel.terms.id);
        channels
    };
    assert_eq!(sorted(&found.channels), sorted(&expected.channels));
    assert_eq!(found.batches, expected.batches);
    assert_eq!(found.metered, expected.metered);
    assert_eq!(found.last_batch, expected.last_batch);
    assert_eq!(found.answers, expected.answers);
    assert_eq!(found.spent, expected.spent);
    assert_eq!(found.passes, expected.passes);
}

#[tokio::test]
async fn everything_comes_back_as_it_was() {
    let (_folder, path) = folder();
    let (writes, expected) = everything();
    let first = store(&path);
    assert_same(first.load().await.unwrap(), &Snapshot::default());
    first.write(writes).await.unwrap();
    assert_same(first.load().await.unwrap(), &expected);
    drop(first);
    let second = store(&path);
    assert_same(second.load().await.unwrap(), &expected);
    let newest = Store::<Svm>::batches(&second, 3).await.unwrap();
    assert_eq!(newest.iter().map(|batch| batch.id).collect::<Vec<_>>(), [4, 3, 2]);
    let updated = ChannelRecord { charged: 30u64.into(), voucher: Some(voucher(30)), ..record(1, 30) };
    let signed = batch(3, BatchKind::Seal, BatchState::Confirmed);
    let forget = vec![
        Write::<Svm>::ForgetChannel(terms(2).id),
        Write::<Svm>::ForgetMetered(terms(7).id),
        Write::<Svm>::ForgetMetered(terms(8).id),
        Write::<Svm>::Channel(Box::new(updated.clone())),
        Write::<Svm>::Batch(Box::new(signed)),
        Write::<Svm>::ForgetAnswers(vec![1, 77]),
        Write::<Svm>::ForgetSpent(Day(20_000)),
        spend(&SpentRecord { amount: 1u64.into(), ..expected.spent[0].clone() }, true),
        counted(1, 3),
        counted(1, 9),
        Write::RevokePass(Box::new(PassRecord { revoked_at: Some(UnixMillis(8)), ..pass(1) })),
        Write::ForgetPasses(vec![pass(2).id, pass(3).id]),
    ];
    assert_eq!(Store::<Svm>::answer(&second, 1).await.unwrap(), Some(answer(1, &[0xA5; 9000]).answer));
    assert_eq!(Store::<Svm>::answer(&second, 77).await.unwrap(), None);
    second.write(forget).await.unwrap();
    let left = batch(4, BatchKind::CleanUp, BatchState::Signed);
    let kept = answer(u64::from(u32::MAX), b"");
    let answers = vec![kept.mark()];
    let spent = vec![SpentRecord { amount: Amount::new(u128::MAX - 1), ..expected.spent[0].clone() }];
    let (channels, batches, metered) = (vec![updated], vec![left], Vec::new());
    let (used, last_used, revoked_at) = (u32::MAX, UnixMillis(9), Some(UnixMillis(8)));
    let passes = vec![PassRecord { used, last_used, revoked_at, ..pass(1) }];
    let expected = Snapshot { channels, batches, metered, last_batch: 4, answers, spent, passes };
    assert_same(second.load().await.unwrap(), &expected);
    assert_eq!(Store::<Svm>::answer(&second, 1).await.unwrap(), None);
    assert_eq!(Store::<Svm>::answer(&second, kept.place).await.unwrap(), Some(kept.answer));
}

/// What is configured of a seller may change, and its channels stay.
#[tokio::test]
async fn a_channel_goes_over_to_what_its_seller_is_now() {
    let (_folder, path) = folder();
    let store = store(&path);
    let renamed = Arc::new(Seller { withdraw_delay: 7, ..(*seller()).clone() });
    let mut channel = record(1, 10);
    for seller in [seller(), renamed.clone(), renamed, seller()] {
        channel.terms.seller = seller;
        channel.last_used = UnixMillis(channel.last_used.0 + 1);
        store.write(vec![Write::<Svm>::Channel(Box::new(channel.clone()))]).await.unwrap();
        let found: Snapshot = store.load().await.unwrap();
        assert_eq!(found.channels, [channel.clone()]);
    }
}

/// A count that was not paid for is no state that the file can have.
#[tokio::test]
async fn no_call_is_counted_that_was_not_paid_for() {
    let (_folder, path) = folder();
    let store = store(&path);
    store.write(vec![Write::<Svm>::Pass(Box::new(pass(1))), counted(1, 1), counted(1, 1)]).await.unwrap();
    store.write(vec![counted(1, 1)]).await.unwrap_err();
}

/// Each fixture was written by [`write_fixture`] when its form of the tables was the newest. The first had no answers, none
/// before the fourth what payers spent, and none before the sixth passes.
#[tokio::test]
async fn files_of_earlier_forms_are_understood() {
    let without_passes = || Snapshot { passes: Vec::new(), ..everything().1 };
    let without_spent = || Snapshot { spent: Vec::new(), ..without_passes() };
    let first = Snapshot { answers: Vec::new(), ..without_spent() };
    let forms = [(1, first), (2, without_spent()), (4, without_passes()), (5, without_passes()), (6, everything().1)];
    for (form, expected) in forms {
        let (_folder, path) = folder();
        let fixture = format!("tests/fixtures/ledger-v{form}.sqlite");
        std::fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join(fixture), &path).unwrap();
        let store = store(&path);
        assert_same(store.load().await.unwrap(), &expected);
        let new = answer(7, b"written by this form");
        let (kept, sold) = (Write::<Svm>::Answer(Box::new(new.clone())), Write::<Svm>::Pass(Box::new(pass(9))));
        store.write(vec![kept, sold]).await.unwrap();
        assert_eq!(
            Store::<Svm>::answer(&store, 7).await.unwrap(),
            Some(new.answer),
            "form {form} was brought up to date"
        );
    }
}

/// A charge and its answer are in one transaction, and come back together.
#[tokio::test]
async fn an_answer_is_there_after_a_restart() {
    let (_folder, path) = folder();
    let id = AnswerId { key: [1; 32], fingerprint: [2; 32] };
    let make = |channel: &ChannelRecord| Answer {
        status: 200,
        head: format!("x-charged: {}\r\n", channel.charged).into(),
        body: vec![7; 65_536].into(),
    };
    let first = ledger(store(&path)).await;
    first.adopt(terms(1), on_chain(1000, 0));
    first.reserve(entry(1, 10, 10)).await.unwrap().commit_with_answer(None, id, make).await.unwrap();
    drop(first);
    let second = ledger(store(&path)).await;
    assert_eq!(charged(&second, 1), 10);
    let mark = second.find_answer(&id.key).unwrap();
    assert_eq!(mark.id, id);
    let answer = second.read_answer(&mark).await.unwrap().unwrap();
    assert_eq!((&*answer.head, answer.body.len()), (&b"x-charged: 10\r\n"[..], 65_536));
    let (count, bytes) = second.answers();
    assert!(count == 1 && bytes > 65_536);
}

/// A pass comes back with its charge, and the calls on it are counted.
#[tokio::test]
async fn a_pass_is_there_after_a_restart() {
    let (_folder, path) = folder();
    let record = PassRecord { calls: 5, used: 1, ..pass(1) };
    let first = ledger(store(&path)).await;
    first.adopt(terms(1), on_chain(1000, 0));
    let (held, room) = (first.reserve(entry(1, 10, 10)).await.unwrap(), first.pass_room().unwrap());
    held.selling(record.clone(), room).commit(None).await.unwrap();
    let calls: Vec<_> = (0..3).map(|_| first.take_pass(&record.id, &record.scope).unwrap()).collect();
    let [one, two, three] = calls.try_into().unwrap();
    let (one, two) = tokio::join!(one.commit(), two.commit());
    assert_eq!([one.unwrap(), two.unwrap()].into_iter().min(), Some(2));
    drop(three);
    drop(first);
    let second = ledger(store(&path)).await;
    assert_eq!((charged(&second, 1), second.pass(&record.id).unwrap().used), (10, 3));
    second.take_pass(&record.id, &record.scope).unwrap().commit().await.unwrap();
    second.revoke_pass(&record.id).await.unwrap().unwrap();
    drop(second);
    let third = ledger(store(&path)).await;
    let found = third.pass(&record.id).unwrap();
    assert!(found.used == 4 && found.revoked_at.is_some(), "{found:?}");
}

/// What was kept while answers were kept is deleted once they are not any more.
#[tokio::test]
async fn switched_off_kept_answers_are_deleted() {
    let (_folder, path) = folder();
    let first = store(&path);
    let many = (1..=150).map(|place| Write::<Svm>::Answer(Box::new(answer(place, b"x")))).collect();
    first.write(many).await.unwrap();
    let limits = Limits { answers: None, ..Limits::default() };
    let store: Arc<dyn Store> = Arc::new(first);
    let ledger = Ledger::open(Arc::clone(&store), Arc::new(SystemClock), limits).await.unwrap();
    assert!(ledger.find_answer(&key(20, 1).0).is_none());
    while !store.load().await.unwrap().answers.is_empty() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
#[ignore = "writes the fixture; to be run once for each form of the tables, under a new name"]
async fn write_fixture() {
    let (_folder, path) = folder();
    store(&path).write(everything().0).await.unwrap();
    std::fs::copy(&path, Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ledger-v6.sqlite")).unwrap();
}

#[tokio::test]
async fn one_process_at_a_time() {
    let (_folder, path) = folder();
    let first = store(&path);
    let error = refused(&path);
    assert!(error.contains("ledger.db") && error.contains("in use by another process"), "{error}");
    first.write(everything().0).await.unwrap();
    drop(first);
    Store::<Svm>::load(&store(&path)).await.unwrap();
}

#[test]
fn what_is_not_a_ledger_of_ours_is_refused_and_left_alone() {
    let (folder, path) = folder();
    drop(store(&path));
    let newer = rusqlite::Connection::open(&path).unwrap();
    newer.pragma_update(None, "user_version", 99).unwrap();
    drop(newer);
    let error = refused(&path);
    assert!(error.contains("newer Turnpike") && error.contains("form 99"), "{error}");

    let foreign = folder.path().join("foreign.db");
    rusqlite::Connection::open(&foreign).unwrap().execute_batch("CREATE TABLE mine (a)").unwrap();
    let before = std::fs::read(&foreign).unwrap();
    assert!(refused(&foreign).contains("not a ledger"));
    assert_eq!(std::fs::read(&foreign).unwrap(), before);

    let garbage = folder.path().join("garbage.db");
    std::fs::write(&garbage, "these are not the bytes you are looking for".repeat(100)).unwrap();
    assert!(refused(&garbage).contains("cannot be read as a ledger"));

    let nowhere = folder.path().join("no/such/folder.db");
    assert!(refused(&nowhere).contains("no/such/folder.db"));
}

#[tokio::test]
async fn a_damaged_file_is_refused_when_it_is_checked() {
    let (_folder, path) = folder();
    let first = store(&path);
    let many = (0..200).map(|number| Write::<Svm>::Channel(Box::new(record(number, 10)))).collect();
    first.write(many).await.unwrap();
    drop(first);
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.len() - 4096;
    bytes[at..at + 100].fill(0x55);
    std::fs::write(&path, bytes).unwrap();
    let error = SqliteStore::open(&path, Settings { check: true, ..Settings::default() }).unwrap_err().to_string();
    assert!(error.contains("damaged") && error.contains("backup"), "{error}");
}

#[cfg(unix)]
#[tokio::test]
async fn only_the_owner_can_read_it() {
    use std::os::unix::fs::PermissionsExt;
    let (folder, path) = folder();
    std::fs::write(&path, "").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let store = store(&path);
    store.write(everything().0).await.unwrap();
    let mut files = 0;
    for file in std::fs::read_dir(folder.path()).unwrap() {
        let file = file.unwrap();
        files += 1;
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", file.path());
    }
    assert!(files >= 3, "file, log and lock");
}

#[tokio::test]
async fn after_a_failure_nothing_is_written_any_more() {
    let (_folder, path) = folder();
    let ledger = ledger(store(&path)).await;
    ledger.adopt(terms(1), on_chain(1000, 0));
    let held = ledger.reserve(entry(1, 10, 10)).await.unwrap();
    rusqlite::Connection::open(&path).unwrap().execute_batch("ALTER TABLE channels RENAME TO elsewhere").unwrap();
    let error = held.commit(None).await.unwrap_err().to_string();
    assert!(error.contains("ledger.db") && error.contains("then restart"), "{error}");
    rusqlite::Connection::open(&path).unwrap().execute_batch("ALTER TABLE elsewhere RENAME TO channels").unwrap();
    assert_eq!(charged(&ledger, 1), 0);
    assert!(ledger.health().is_err());
    ledger.observe(&terms(1).id, on_chain(1000, 1)).await.unwrap_err();
    drop(ledger);
    assert!(Store::<Svm>::load(&store(&path)).await.unwrap().channels.is_empty());
}

#[tokio::test]
async fn writes_of_one_channel_keep_their_order() {
    let (_folder, path) = folder();
    let store = SqliteStore::open(&path, Settings { writes_waiting_max: 8, ..Settings::default() }).unwrap();
    let mut writes = Vec::new();
    for charged in 1..=300u64 {
        let mut write = Box::pin(store.write(vec![Write::<Svm>::Channel(Box::new(record(1, charged)))]));
        // The first poll is the call.
        let polled = std::future::poll_fn(|cx| std::task::Poll::Ready(write.as_mut().poll(cx))).await;
        if polled.is_pending() {
            writes.push(write);
        }
    }
    for write in writes {
        write.await.unwrap();
    }
    assert_eq!(Store::<Svm>::load(&store).await.unwrap().channels[0].charged, 300u64.into());
}

#[tokio::test]
async fn loading_stops_when_nobody_wants_more() {
    let (_folder, path) = folder();
    let store = store(&path);
    let many = (0..20_000).map(|number| Write::<Svm>::Channel(Box::new(record(number, 10)))).collect();
    store.write(many).await.unwrap();
    let mut seen = 0;
    let mut take = |_| {
        seen += 1;
        if seen == 5 { Err(StoreError("enough".to_owned())) } else { Ok(()) }
    };
    assert_eq!(Store::<Svm>::load_each(&store, &mut take).await.unwrap_err(), StoreError("enough".to_owned()));
    assert_eq!(seen, 5);
    assert_eq!(Store::<Svm>::load(&store).await.unwrap().channels.len(), 20_000);
}

fn numbered_id(number: u64, total: u64) -> AnswerId {
    AnswerId { key: key(u8::try_from(number).unwrap(), total).0, fingerprint: [0; 32] }
}

fn numbered(number: u64, total: Amount) -> Answer {
    let line = format!("answer {number} {total} ");
    Answer { status: 200, head: "".into(), body: line.repeat(300).into() }
}

/// Charges six channels as fast as it can, and says so after each charge, until it is killed.
#[test]
#[ignore = "run as a process of its own by killed_while_charging"]
fn a_process_that_charges() {
    let Ok(path) = std::env::var("TURNPIKE_TEST_LEDGER") else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
    runtime.block_on(async {
        let ledger = ledger(store(Path::new(&path))).await;
        let mut tasks = tokio::task::JoinSet::new();
        for number in 1..=6 {
            let ledger = Arc::clone(&ledger);
            tasks.spawn(async move {
                if ledger.channel(&terms(number).id).is_none() {
                    let opening = ledger.reserve(deposit(number, 1, 1, 1_000_000)).await.unwrap();
                    opening.commit(Some(on_chain(1_000_000, 0))).await.unwrap();
                }
                loop {
                    let next = charged(&ledger, number) + 1;
                    let held = ledger.reserve(entry(number, next, 1)).await.unwrap();
                    let make = move |channel: &ChannelRecord| numbered(number, channel.charged);
                    let receipt = held.commit_with_answer(None, numbered_id(number, next), make).await.unwrap();
                    let line = format!("told {number} {}\n", receipt.channel.charged);
                    std::io::stdout().write_all(line.as_bytes()).unwrap();
                }
            });
        }
        tasks.join_next().await
    });
}

#[tokio::test]
async fn killed_while_charging() {
    let (_folder, path) = folder();
    let mut told = [0u64; 7];
    for round in 0..4 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_process_that_charges", "--ignored", "--nocapture", "--quiet"])
            .env("TURNPIKE_TEST_LEDGER", &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut heard = 0;
        // The lines that were on their way when it died were told too.
        for line in lines {
            let line = line.unwrap();
            let mut words = line.split_whitespace().skip_while(|word| *word != "told").skip(1);
            let Some(number) = words.next().and_then(|word| word.parse::<usize>().ok()) else { continue };
            told[number] = words.next().unwrap().parse().unwrap();
            heard += 1;
            if heard == 40 + 37 * round {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        assert!(heard >= 40, "it charged");
        let ledger = ledger(store(&path)).await;
        for number in 1..=6u64 {
            let told = told[usize::try_from(number).unwrap()];
            let charged = charged(&ledger, number);
            assert!(charged == told || charged == told + 1, "channel {number}: told {told}, found {charged}");
            // The answer to the last charge is there if the charge is, told or not; the next one's is not. The first
            // charge was a deposit's, which has none here.
            for total in [charged, charged + 1] {
                let mark = ledger.find_answer(&numbered_id(number, total).key);
                assert_eq!(
                    mark.is_some(),
                    total == charged && total > 1,
                    "channel {number}, answer {total} of {charged}"
                );
                if let Some(mark) = mark {
                    let answer = ledger.read_answer(&mark).await.unwrap();
                    assert!(answer == Some(numbered(number, total.into())), "the answer is whole");
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// The power goes at any byte of the log: every charge that was acknowledged while the log was shorter is there,
    /// each with its answer and none without, and the channels are as they were at some moment.
    #[test]
    fn power_lost_at_any_byte(cut in 0u64..=1000, torn in any::<u8>()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let (folder, path) = folder();
            let log = folder.path().join("ledger.db-wal");
            let first = ledger(store(&path)).await;
            let base = std::fs::metadata(&log).map_or(0, |file| file.len());
            let mut told = Vec::new();
            for number in 1..=3 {
                first.adopt(terms(number), on_chain(1000, 0));
            }
            for step in 1..=8u64 {
                for number in 1..=3 {
                    let next = first.reserve(entry(number, step, 1)).await.unwrap();
                    let make = move |channel: &ChannelRecord| numbered(number, channel.charged);
                    next.commit_with_answer(None, numbered_id(number, step), make).await.unwrap();
                    told.push((std::fs::metadata(&log).unwrap().len(), number, step));
                }
            }
            let image = std::fs::read(&log).unwrap();
            let length = u64::try_from(image.len()).unwrap();
            let at = base + (length - base) * cut / 1000;
            let after = folder.path().join("after.db");
            std::fs::copy(&path, &after).unwrap();
            let mut image = image[..usize::try_from(at).unwrap()].to_vec();
            image.extend([torn; 100]);
            std::fs::write(folder.path().join("after.db-wal"), image).unwrap();
            let after = ledger(store(&after)).await;
            let found: Vec<u64> = (1..=3).map(|number| charged(&after, number)).collect();
            for (length, number, step) in told {
                if length <= at {
                    let found = found[usize::try_from(number - 1).unwrap()];
                    prop_assert!(found >= step, "channel {number}: {step} was told at {length} of {at}, {found} found");
                }
            }
            prop_assert!(found.is_sorted_by(|a, b| a >= b) && found[0] - found[2] <= 1, "one moment: {found:?}");
            for (number, charged) in (1..).zip(found) {
                for step in 1..=8 {
                    let Some(mark) = after.find_answer(&numbered_id(number, step).key) else {
                        prop_assert!(step > charged, "channel {number}: {step} of {charged} was charged without its answer");
                        continue;
                    };
                    prop_assert!(step <= charged, "channel {number}: the answer to {step} of {charged} without its charge");
                    prop_assert!(after.read_answer(&mark).await.unwrap() == Some(numbered(number, step.into())));
                }
            }
            Ok::<(), TestCaseError>(())
        })?;
    }
}
