//! The ledger's store and the record: no charge without its entry, no entry that stands for nothing unsaid.

use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use turnpike::amount::{Amount, Asset};
use turnpike::audit::entry::Line;
use turnpike::audit::log::{AuditLog, Options};
use turnpike::audit::{AuditError, Entry, Kind, Position, Recorder};
use turnpike::clock::{SystemClock, UnixMillis};
use turnpike::ledger::channel::evm::{EvmBatch, EvmBatchKind};
use turnpike::ledger::channel::{ChainState, Evm, EvmOnChain, Voucher};
use turnpike::ledger::passes::{PassId, PassRecord};
use turnpike::ledger::sqlite::{self, Settings, SqliteStore};
use turnpike::ledger::store::{About, BatchState, Charged, RecordOf, StoreError, Write};
use turnpike::ledger::told::tell;
use turnpike::ledger::{Ledger, Limits};
use turnpike::scheme::evm::eip712::Domain;
use turnpike::scheme::evm::{EvmSeller, EvmTerms, TransferMethod};
use turnpike::x402::Account;
use turnpike::x402::evm::{Address, AnySignature, B256};

use crate::disk::{Fault, Left, MemoryFolder};
use crate::log::chain;
use crate::support::{deposit, entry, on_chain, terms};

/// Opens a store with a record, on a thread that may block.
async fn open(path: &Path, recorder: Arc<dyn Recorder>) -> Result<SqliteStore, StoreError> {
    let path = path.to_owned();
    let settings = Settings { recorder: Some(recorder), ..Settings::default() };
    tokio::task::spawn_blocking(move || SqliteStore::open(&path, settings)).await.unwrap()
}

async fn ledger(store: SqliteStore) -> Arc<Ledger> {
    Ledger::open(Arc::new(store), Arc::new(SystemClock), Limits::default()).await.unwrap()
}

fn record(folder: &MemoryFolder) -> Result<Arc<AuditLog>, AuditError> {
    AuditLog::open_in(Arc::new(folder.clone()), Options::default()).map(Arc::new)
}

/// The entries of a kind, as JSON.
fn entries(folder: &MemoryFolder, kind: Kind) -> Vec<serde_json::Value> {
    chain(&folder.segments());
    let segments = folder.segments();
    let lines = segments.iter().flat_map(|(_, text)| text.split(|byte| *byte == b'\n'));
    let lines = lines.filter_map(|line| Line::parse(line).ok());
    let of_kind = lines.filter(|line| line.is(kind));
    of_kind
        .map(|line| {
            let mut fields = line.fields().unwrap();
            fields.insert("seq".into(), line.position.seq.into());
            fields.into()
        })
        .collect()
}

#[tokio::test]
async fn a_charge_is_told_with_all_that_proves_it() {
    let (folder, place) = (MemoryFolder::default(), tempfile::tempdir().unwrap());
    let path = place.path().join("ledger.db");
    let log = record(&folder).unwrap();
    let ledger = ledger(open(&path, log.clone()).await.unwrap()).await;
    let opening = ledger.reserve(deposit(1, 10, 10, 1000)).await.unwrap().on_route(&"/v1/*".into());
    opening.commit(Some(on_chain(1000, 0))).await.unwrap();
    ledger.reserve(entry(1, 25, 15)).await.unwrap().commit(None).await.unwrap();
    ledger.observe(&terms(1).id, on_chain(1500, 25)).await.unwrap();
    // The payer has put a voucher on chain that was not charged here.
    ledger.observe(&terms(1).id, on_chain(1500, 40)).await.unwrap();
    let stands_on = sqlite::stands_on(&path).unwrap().unwrap();
    assert_eq!(log.state().head, stands_on);

    let charges = entries(&folder, Kind::Charge);
    let of = |n: usize, name: &str| charges[n][name].as_str().unwrap_or_default().to_owned();
    assert_eq!(charges.len(), 2);
    assert_eq!(
        (of(0, "amount"), of(0, "total"), of(0, "voucher"), of(0, "route")),
        ("10".into(), "10".into(), "10".into(), "/v1/*".into())
    );
    assert_eq!((of(1, "amount"), of(1, "total")), ("15".into(), "25".into()));
    assert_eq!(of(1, "channel"), terms(1).id.to_string());
    assert_eq!(of(1, "payer"), terms(1).payer.to_string());
    assert_eq!(of(1, "network"), terms(1).seller.network.as_str());
    assert!(of(1, "signature").len() > 80);
    let deposits = entries(&folder, Kind::Deposit);
    let amounts: Vec<_> = deposits.iter().map(|deposit| deposit["amount"].as_str().unwrap()).collect();
    assert_eq!(amounts, ["1000", "500"]);
    let claimed = entries(&folder, Kind::Claimed);
    assert_eq!((claimed.len(), claimed[0]["to"].as_str()), (2, Some("25")));
    assert_eq!(entries(&folder, Kind::Raised)[0]["amount"], "15");
}

/// The calls that the record counts on a pass are those that the ledger counts.
#[tokio::test]
async fn a_pass_is_told_of_with_its_charge_and_each_call_on_it() {
    let (folder, place) = (MemoryFolder::default(), tempfile::tempdir().unwrap());
    let log = record(&folder).unwrap();
    let ledger = ledger(open(&place.path().join("ledger.db"), log).await.unwrap()).await;
    ledger.adopt(terms(1), on_chain(1000, 0));
    let pass = PassRecord {
        id: PassId([7; 32]),
        payer: Account::Svm(terms(1).payer),
        network: terms(1).seller.network.clone(),
        scope: "/v1/*".into(),
        calls: 5,
        used: 1,
        price: Amount::new(40),
        sold_at: UnixMillis(1),
        last_used: UnixMillis(1),
        expires_at: UnixMillis(i64::MAX),
        revoked_at: None,
    };
    let (held, room) = (ledger.reserve(entry(1, 40, 40)).await.unwrap(), ledger.pass_room().unwrap());
    held.selling(pass.clone(), room).commit(None).await.unwrap();
    for _ in 0..2 {
        drop(ledger.take_pass(&pass.id, "/v1/*").unwrap());
        ledger.take_pass(&pass.id, "/v1/*").unwrap().commit().await.unwrap();
    }
    ledger.revoke_pass(&pass.id).await.unwrap().unwrap();
    let (charge, sold) = (&entries(&folder, Kind::Charge)[0], &entries(&folder, Kind::PassSold)[0]);
    assert!(charge["seq"].as_u64() < sold["seq"].as_u64());
    assert_eq!(
        (&sold["channel"], &sold["payer"], &sold["amount"]),
        (&charge["channel"], &charge["payer"], &charge["amount"])
    );
    assert_eq!((sold["pass"].as_str(), sold["calls"].as_u64()), (Some(&*"07".repeat(32)), Some(5)));
    let used = entries(&folder, Kind::PassUsed);
    assert_eq!(used.iter().map(|call| call["call"].as_u64().unwrap()).collect::<Vec<_>>(), [2, 3]);
    assert!(used.iter().all(|call| call["pass"] == sold["pass"] && call["route"] == "/v1/*"));
    assert_eq!(entries(&folder, Kind::PassRevoked)[0]["left"], 2);
}

/// At every call that changes something on the record's disk: what was charged is told, and what was told and not
/// charged is void.
#[tokio::test]
async fn a_crash_between_record_and_store_leaves_nothing_unsaid() {
    let mut voided = 0;
    for fault in [Fault::Crash, Fault::Fail] {
        for at in 1.. {
            let place = tempfile::tempdir().unwrap();
            let path = place.path().join("ledger.db");
            let folder = MemoryFolder::with_fault(at, fault);
            let mut told = 0;
            if let Ok(log) = record(&folder)
                && let Ok(store) = open(&path, log).await
            {
                let ledger = ledger(store).await;
                ledger.adopt(terms(1), on_chain(1000, 0));
                for number in 1..=4 {
                    let Ok(reservation) = ledger.reserve(entry(1, number * 10, 10)).await else { break };
                    match reservation.commit(None).await {
                        Ok(_) => told = number,
                        Err(_) => {
                            assert!(ledger.health().is_err(), "a charge that cannot be recorded stops the ledger")
                        }
                    }
                }
            }
            if told == 4 {
                assert!(at > 10);
                break;
            }
            for left in [Left::Nothing, Left::Half, Left::All] {
                // The store as the crash left it, each time anew.
                let copy = place.path().join(format!("{left:?}.db"));
                if path.exists() {
                    std::fs::copy(&path, &copy).unwrap();
                    let wal = path.with_extension("db-wal");
                    if wal.exists() {
                        std::fs::copy(&wal, copy.with_extension("db-wal")).unwrap();
                    }
                }
                let found = folder.crash(left, None);
                let log = record(&found).unwrap();
                let ledger = ledger(open(&copy, log).await.unwrap()).await;
                let charged = ledger.channel(&terms(1).id).map_or(0, |channel| channel.charged.to_u64().unwrap());
                assert!(charged >= told * 10, "call {at}, {left:?}");
                let void: Vec<_> = entries(&found, Kind::Voided)
                    .iter()
                    .flat_map(|entry| entry["entries"].as_array().unwrap().clone())
                    .collect();
                let charges = entries(&found, Kind::Charge);
                let effective = charges.iter().filter(|charge| !void.contains(&charge["seq"]));
                let sum: u64 = effective.map(|charge| charge["amount"].as_str().unwrap().parse::<u64>().unwrap()).sum();
                assert_eq!(sum, charged, "call {at}, {left:?}: the record and the books tie out");
                voided += void.len();
            }
        }
    }
    assert!(voided > 0);
}

/// Charges once, and once more while nothing can be written to a table of the ledger's file, which fails.
async fn charge_and_fail(path: &Path, folder: &MemoryFolder, table: &str) {
    let first = ledger(open(path, record(folder).unwrap()).await.unwrap()).await;
    first.adopt(terms(1), on_chain(1000, 0));
    first.reserve(entry(1, 10, 10)).await.unwrap().commit(None).await.unwrap();
    let breaker = rusqlite::Connection::open(path).unwrap();
    for (name, what) in [("no", "UPDATE"), ("nor", "INSERT")] {
        let trigger = format!("CREATE TRIGGER {name} BEFORE {what} ON {table} BEGIN SELECT RAISE(ABORT, 'no'); END");
        breaker.execute_batch(&trigger).unwrap();
    }
    assert!(first.reserve(entry(1, 20, 10)).await.unwrap().commit(None).await.is_err());
    drop(first);
    breaker.execute_batch("DROP TRIGGER no; DROP TRIGGER nor").unwrap();
}

/// A statement fails before anything is told: nothing is void.
#[tokio::test]
async fn what_the_store_refuses_is_not_told() {
    let (folder, place) = (MemoryFolder::default(), tempfile::tempdir().unwrap());
    let path = place.path().join("ledger.db");
    charge_and_fail(&path, &folder, "channels").await;
    drop(open(&path, record(&folder).unwrap()).await.unwrap());
    assert_eq!(entries(&folder, Kind::Charge).len(), 1);
    assert_eq!(entries(&folder, Kind::Voided).len(), 0);
}

/// The transaction fails after its entries are durable: told, not charged, and void after the restart.
#[tokio::test]
async fn what_the_store_did_not_take_is_void() {
    let (folder, place) = (MemoryFolder::default(), tempfile::tempdir().unwrap());
    let path = place.path().join("ledger.db");
    // What says where the file stands comes last of all.
    charge_and_fail(&path, &folder, "audit").await;
    for _ in 0..3 {
        // However often it is opened, it is said once.
        drop(open(&path, record(&folder).unwrap()).await.unwrap());
    }
    let voided = entries(&folder, Kind::Voided);
    assert_eq!(voided.len(), 1);
    assert_eq!(voided[0]["entries"].as_array().unwrap().len(), 1);
    let again = ledger(open(&path, record(&folder).unwrap()).await.unwrap()).await;
    again.reserve(entry(1, 20, 10)).await.unwrap().commit(None).await.unwrap();
    drop(again);
    drop(open(&path, record(&folder).unwrap()).await.unwrap());
    assert_eq!(entries(&folder, Kind::Voided).len(), 1);
}

#[tokio::test]
async fn a_lost_record_and_an_old_store_are_refused() {
    let (folder, place) = (MemoryFolder::default(), tempfile::tempdir().unwrap());
    let path = place.path().join("ledger.db");
    let charge = async |ledger: Arc<Ledger>, to: u64| {
        ledger.adopt(terms(1), on_chain(1000, 0));
        ledger.reserve(entry(1, to, 10)).await.unwrap().commit(None).await.unwrap();
    };
    charge(ledger(open(&path, record(&folder).unwrap()).await.unwrap()).await, 10).await;
    let old = place.path().join("old.db");
    std::fs::copy(&path, &old).unwrap();
    for to in [20, 30] {
        charge(ledger(open(&path, record(&folder).unwrap()).await.unwrap()).await, to).await;
    }
    let error = open(&old, record(&folder).unwrap()).await.unwrap_err().to_string();
    assert!(error.contains("old copy"), "{error}");
    // Once it is said, the old one goes on; and is an old copy again the next time.
    let lost = sqlite::stands_on(&old).unwrap().unwrap();
    let loss = Entry::new(Kind::Loss).number("lost_seq", lost.seq).text("lost_hash", lost.hash);
    record(&folder).unwrap().append(loss).await.unwrap();
    let older = place.path().join("older.db");
    std::fs::copy(&old, &older).unwrap();
    charge(ledger(open(&old, record(&folder).unwrap()).await.unwrap()).await, 20).await;
    charge(ledger(open(&old, record(&folder).unwrap()).await.unwrap()).await, 30).await;
    assert!(open(&older, record(&folder).unwrap()).await.unwrap_err().to_string().contains("old copy"));

    let fresh = MemoryFolder::default();
    let error = open(&path, record(&fresh).unwrap()).await.unwrap_err().to_string();
    assert!(error.contains("does not hold") && error.contains("accept-loss"), "{error}");
    let lost = sqlite::stands_on(&path).unwrap().unwrap();
    let loss = Entry::new(Kind::Loss).number("lost_seq", lost.seq).text("lost_hash", lost.hash);
    record(&fresh).unwrap().append(loss).await.unwrap();
    charge(ledger(open(&path, record(&fresh).unwrap()).await.unwrap()).await, 40).await;
    drop(open(&path, record(&fresh).unwrap()).await.unwrap());
    assert_eq!(entries(&fresh, Kind::Charge).len(), 1);
}

/// A record that answers when it is told to.
#[derive(Debug, Default)]
struct Slow {
    waiting: Mutex<Vec<std::sync::mpsc::Sender<Result<Position, AuditError>>>>,
}

#[async_trait::async_trait]
impl Recorder for Slow {
    async fn record(&self, _entry: Entry) -> Result<Position, AuditError> {
        unreachable!()
    }

    fn record_blocking(&self, _entries: &[Entry]) -> Result<Position, AuditError> {
        let (answer, told) = std::sync::mpsc::channel();
        self.waiting.lock().push(answer);
        told.recv().unwrap()
    }

    fn reconcile(&self, at: Position) -> Result<Position, AuditError> {
        Ok(at)
    }

    fn health(&self) -> Result<(), AuditError> {
        Ok(())
    }
}

#[tokio::test]
async fn nothing_is_charged_before_it_is_told() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("ledger.db");
    let slow = Arc::new(Slow::default());
    let ledger = ledger(open(&path, slow.clone()).await.unwrap()).await;
    ledger.adopt(terms(1), on_chain(1000, 0));
    let reservation = ledger.reserve(entry(1, 10, 10)).await.unwrap();
    let charging = tokio::spawn(reservation.commit(None));
    while slow.waiting.lock().is_empty() {
        tokio::task::yield_now().await;
    }
    assert!(!charging.is_finished());
    assert_eq!(sqlite::stands_on(&path).unwrap(), None);
    let place = Position { seq: 7, ..Position::default() };
    slow.waiting.lock().pop().unwrap().send(Ok(place)).unwrap();
    charging.await.unwrap().unwrap();
    assert_eq!(sqlite::stands_on(&path).unwrap(), Some(place));
}

/// The other family, whose channels can lose what they hold, and its batches.
#[test]
fn evm_channels_and_batches_are_told_too() {
    let network = turnpike::x402::Network::of_short_name("base-sepolia").unwrap();
    let token = Address([7; 20]);
    let seller = Arc::new(EvmSeller {
        network: network.clone(),
        chain_id: 84532,
        asset: Arc::new(Asset { address: token.to_string().into(), symbol: "USDC".into(), decimals: 6 }),
        token,
        token_name: "USDC".into(),
        token_version: "2".into(),
        transfer_method: TransferMethod::Eip3009,
        pay_to: Address([3; 20]),
        receiver_authorizer: Address([4; 20]),
        withdraw_delay: 900,
        domain: Domain::batch_settlement(84532),
    });
    let terms = EvmTerms::derive(seller, Address([1; 20]), Address([1; 20]), B256([2; 32]));
    let state = |balance: u64, claimed: u64| EvmOnChain {
        balance: balance.into(),
        claimed: claimed.into(),
        ..EvmOnChain::none(UnixMillis(1))
    };
    let record = RecordOf::<Evm> {
        terms: terms.clone(),
        on_chain: state(60, 20),
        charged: 35_u64.into(),
        voucher: Some(Voucher { cumulative: 50_u64.into(), signature: AnySignature::from_bytes(&[1; 65]).unwrap() }),
        unclaimed_since: None,
        last_used: UnixMillis(2),
        closed: true,
    };
    let about = About {
        charge: Some(Charged { amount: 5_u64.into(), route: None }),
        charged: 30_u64.into(),
        deposit: 100_u64.into(),
        claimed: Amount::ZERO,
        closed: false,
    };
    let batch = EvmBatch {
        id: 3,
        kind: EvmBatchKind::Claim,
        network,
        token,
        lines: vec![(terms.id, 20_u64.into())],
        request: "signatures stand in it".to_owned(),
        transaction: None,
        state: BatchState::Signed,
        created_at: UnixMillis(3),
    };
    let writes = [
        Write::<Evm>::Channel(Box::new(record)),
        Write::About(Box::new(about)),
        Write::Batch(Box::new(batch)),
        Write::ForgetChannel(terms.id),
    ];
    let mut told = Vec::new();
    tell(&writes, 41, &mut told);
    let kinds: Vec<_> = told.iter().map(|entry| entry.kind().as_str()).collect();
    assert_eq!(kinds, ["withdrawal", "charge", "claimed", "channel", "settlement", "channel"]);
    let object = |at: usize| -> serde_json::Value {
        let entry: &Entry = &told[at];
        serde_json::from_str(&format!("{{{}}}", &entry.members()[1..])).unwrap()
    };
    assert_eq!((&object(0)["amount"], &object(0)["to"]), (&"40".into(), &"60".into()));
    let charge = object(1);
    assert_eq!((&charge["amount"], &charge["total"], &charge["voucher"]), (&"5".into(), &"35".into(), &"50".into()));
    assert_eq!(charge["payer"], terms.payer.to_string());
    assert_eq!(object(4)["channels"][0][1], "20");
    assert!(!told[4].members().contains("signatures stand"), "what a facilitator is sent is not copied");
    assert!((0..told.len()).all(|at| object(at)["after"] == 41));
    assert!(told.iter().all(|entry| entry.kind().is_stores()));
}
