//! The SQLite store with channels on EVM networks: what is written is what a restart finds, beside Solana's.

use std::sync::Arc;

use proptest::prelude::*;
use turnpike::amount::{Amount, Asset};
use turnpike::clock::{Day, SystemClock, UnixMillis};
use turnpike::ledger::channel::evm::{EvmBatch, EvmBatchKind};
use turnpike::ledger::channel::{Evm, EvmOnChain, Svm, Voucher};
use turnpike::ledger::payers::Spend;
use turnpike::ledger::sqlite::{Settings, SqliteStore};
use turnpike::ledger::store::{
    Answer, AnswerId, AnswerRecord, BatchState, ChannelRecord, RecordOf, SpentRecord, Store, Write,
};
use turnpike::ledger::{Entry, Ledger, Limits};
use turnpike::scheme::evm::eip712::Domain;
use turnpike::scheme::evm::{EvmSeller, EvmTerms, TransferMethod};
use turnpike::x402::Account;
use turnpike::x402::evm::{Address, AnySignature, B256};

fn seller(token: u8, transfer_method: TransferMethod) -> Arc<EvmSeller> {
    let token = Address([token; 20]);
    Arc::new(EvmSeller {
        network: "eip155:84532".parse().unwrap(),
        chain_id: 84532,
        asset: Arc::new(Asset { address: token.to_string().into(), symbol: "USDC".into(), decimals: 6 }),
        token,
        token_name: "USDC".into(),
        token_version: "2".into(),
        transfer_method,
        pay_to: Address([0x33; 20]),
        receiver_authorizer: Address([0x44; 20]),
        withdraw_delay: 900,
        domain: Domain::batch_settlement(84532),
    })
}

fn terms(number: u8) -> EvmTerms {
    let method = if number.is_multiple_of(2) { TransferMethod::Eip3009 } else { TransferMethod::Permit2 };
    EvmTerms::derive(seller(number % 3, method), Address([number; 20]), Address([9; 20]), B256([number; 32]))
}

prop_compose! {
    fn record()(
        number in any::<u8>(),
        (balance, claimed, charged, signed) in any::<(u64, u64, u64, u64)>(),
        (withdrawal, since, nonce, block) in (any::<u64>(), any::<u32>(), any::<u64>(), any::<u64>()),
        signature in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..200)),
        (unclaimed, used, read, closed) in any::<(Option<u32>, u32, u32, bool)>(),
        token_version in "[12]",
    ) -> RecordOf<Evm> {
        // Is configured, and no part of a channel's id.
        let mut terms = terms(number);
        Arc::make_mut(&mut terms.seller).token_version = token_version.into();
        let claimed = claimed.min(balance);
        let charged = charged.max(claimed);
        let signature = signature.map(|bytes| AnySignature::from_bytes(&bytes).unwrap());
        let voucher = signature.map(|signature| Voucher { cumulative: signed.max(charged).into(), signature });
        ChannelRecord {
            terms,
            on_chain: EvmOnChain {
                balance: balance.into(),
                claimed: claimed.into(),
                withdrawal: withdrawal.into(),
                withdraw_since: since.into(),
                withdraw_ends_at: i64::from(since) + 900,
                refund_nonce: nonce,
                block,
                read_at: UnixMillis(read.into()),
            },
            charged: if voucher.is_some() { charged.into() } else { claimed.into() },
            voucher,
            unclaimed_since: unclaimed.map(|at| UnixMillis(at.into())),
            last_used: UnixMillis(used.into()),
            closed,
        }
    }
}

fn open(path: &std::path::Path) -> SqliteStore {
    SqliteStore::open(path, Settings::default()).unwrap()
}

fn on_runtime<T>(job: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(job)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_restart_finds_what_was_written(records in proptest::collection::vec(record(), 0..12)) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.db");
        let mut expected: Vec<RecordOf<Evm>> = Vec::new();
        on_runtime(async {
            let store = open(&path);
            for record in records {
                expected.retain(|old| old.terms.id != record.terms.id);
                expected.push(record.clone());
                store.write(vec![Write::<Evm>::Channel(Box::new(record))]).await.unwrap();
            }
        });
        let mut found = on_runtime(async { Store::<Evm>::load(&open(&path)).await.unwrap().channels });
        found.sort_by_key(|record| record.terms.id);
        expected.sort_by_key(|record| record.terms.id);
        prop_assert_eq!(found, expected);
    }
}

fn batch(id: u64, state: BatchState) -> EvmBatch {
    EvmBatch {
        id,
        kind: if id.is_multiple_of(2) { EvmBatchKind::Settle } else { EvmBatchKind::Claim },
        network: "eip155:84532".parse().unwrap(),
        token: Address([1; 20]),
        lines: vec![(B256([1; 32]), 7u64.into()), (B256([2; 32]), Amount::new(u128::MAX))],
        request: "{}".to_owned(),
        transaction: id.is_multiple_of(2).then_some(B256([6; 32])),
        state,
        created_at: UnixMillis(id.try_into().unwrap()),
    }
}

#[tokio::test]
async fn batches_and_answers_are_each_familys_own() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.db");
    let store = open(&path);
    let dropped = BatchState::Dropped { why: "reverted".to_owned() };
    for batch in [batch(1, BatchState::Signed), batch(2, BatchState::Confirmed), batch(3, dropped)] {
        store.write(vec![Write::<Evm>::Batch(Box::new(batch))]).await.unwrap();
    }
    let answer = AnswerRecord {
        place: 1,
        id: AnswerId { key: [1; 32], fingerprint: [2; 32] },
        kept_at: UnixMillis(3),
        answer: Answer { status: 200, head: "head".into(), body: "body".into() },
    };
    store.write(vec![Write::<Evm>::Answer(Box::new(answer.clone()))]).await.unwrap();
    drop(store);
    let store = open(&path);
    let snapshot = Store::<Evm>::load(&store).await.unwrap();
    assert_eq!(snapshot.batches, [batch(1, BatchState::Signed)], "the others are over");
    assert_eq!((snapshot.last_batch, snapshot.answers), (3, vec![answer.mark()]));
    assert_eq!(Store::<Evm>::batches(&store, 2).await.unwrap()[1], batch(2, BatchState::Confirmed));
    assert_eq!(Store::<Evm>::answer(&store, 1).await.unwrap(), Some(answer.answer));
    let solana = Store::<Svm>::load(&store).await.unwrap();
    assert_eq!((solana.batches.len(), solana.answers.len(), solana.last_batch), (0, 0, 0));
    assert_eq!(Store::<Svm>::answer(&store, 1).await.unwrap(), None);
}

#[tokio::test]
async fn what_payers_spend_is_each_familys_own() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.db");
    let payer = Account::Evm(Address([7; 20]));
    let spend = |day, amount: u64, back| {
        let spend = Spend { payer, scope: "/v1".into(), day: Day(day), amount: amount.into(), back };
        Write::<Evm>::Spend(Box::new(spend))
    };
    let store = open(&path);
    store.write(vec![spend(5, 70, false), spend(5, 7, true), spend(4, 1000, false)]).await.unwrap();
    drop(store);
    let store = open(&path);
    let record = |day, amount: u64| SpentRecord { payer, scope: "/v1".into(), day: Day(day), amount: amount.into() };
    assert_eq!(Store::<Evm>::load(&store).await.unwrap().spent, [record(5, 63)]);
    assert_eq!(Store::<Svm>::load(&store).await.unwrap().spent, []);
    store.write(vec![spend(6, 1, false)]).await.unwrap();
    store.write(vec![Write::<Evm>::ForgetSpent(Day(6))]).await.unwrap();
    assert_eq!(Store::<Evm>::load(&store).await.unwrap().spent, [record(6, 1)]);
    store.write(vec![Write::<Evm>::ForgetSpent(Day(7))]).await.unwrap();
    assert_eq!(Store::<Evm>::load(&store).await.unwrap().spent, []);
}

#[tokio::test]
async fn a_charge_of_a_part_survives_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.db");
    let terms = terms(1);
    let read_at = UnixMillis(1);
    let on_chain =
        EvmOnChain { balance: 1_000u64.into(), block: 1, ..turnpike::ledger::channel::ChainState::none(read_at) };
    let signature = AnySignature::from_bytes(&[7; 65]).unwrap();
    let voucher = Voucher { cumulative: 100u64.into(), signature };
    let entry = Entry { terms: terms.clone(), voucher: voucher.clone(), amount: 100u64.into(), deposit_after: None };
    let charged = {
        let ledger =
            Ledger::<Evm>::open(Arc::new(open(&path)), Arc::new(SystemClock), Limits::default()).await.unwrap();
        ledger.adopt(terms.clone(), on_chain);
        let receipt = ledger.reserve(entry.clone()).await.unwrap().charging(30u64.into()).commit(None).await.unwrap();
        assert_eq!(receipt.charged, 30u64.into());
        receipt.channel
    };
    let ledger = Ledger::<Evm>::open(Arc::new(open(&path)), Arc::new(SystemClock), Limits::default()).await.unwrap();
    let found = ledger.channel(&terms.id).unwrap();
    assert_eq!(found, charged);
    assert_eq!((found.charged, found.voucher), (30u64.into(), Some(voucher)));
    assert_eq!(ledger.exposure().total, 30u64.into());
    let again = ledger.reserve(entry).await.unwrap_err();
    assert!(
        matches!(again, turnpike::ledger::Refused::CumulativeMismatch { expected, .. } if expected == 130u64.into())
    );
}

/// What the fixture of the third form holds of EVM networks.
fn kept() -> Vec<RecordOf<Evm>> {
    let on_chain = |number: u64| EvmOnChain {
        balance: (number * 1_000).into(),
        claimed: (number * 10).into(),
        withdrawal: number.into(),
        withdraw_since: 5,
        withdraw_ends_at: 905,
        refund_nonce: number,
        block: number,
        read_at: UnixMillis(6),
    };
    let record = |number: u8, signature: Option<&[u8]>| ChannelRecord {
        terms: terms(number),
        on_chain: on_chain(number.into()),
        charged: (u64::from(number) * 10 + u64::from(signature.is_some())).into(),
        voucher: signature.map(|bytes| Voucher {
            cumulative: (u64::from(number) * 100).into(),
            signature: AnySignature::from_bytes(bytes).unwrap(),
        }),
        unclaimed_since: signature.map(|_| UnixMillis(7)),
        last_used: UnixMillis(8),
        closed: number == 2,
    };
    vec![record(1, Some(&[1; 65])), record(2, Some(&[2; 130])), record(3, None)]
}

fn fixture() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ledger-v3.sqlite")
}

#[tokio::test]
async fn what_the_third_form_kept_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.db");
    std::fs::copy(fixture(), &path).unwrap();
    let store = open(&path);
    let snapshot = Store::<Evm>::load(&store).await.unwrap();
    let mut found = snapshot.channels;
    found.sort_by_key(|record| record.on_chain.block);
    assert_eq!(found, kept());
    assert_eq!((snapshot.batches, snapshot.last_batch), (vec![batch(1, BatchState::Signed)], 1));
    assert_eq!(Store::<Svm>::load(&store).await.unwrap().channels.len(), 0);
}

#[tokio::test]
#[ignore = "writes the fixture; to be run once for each form of the tables, under a new name"]
async fn write_fixture() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger.db");
    let store = open(&path);
    for record in kept() {
        store.write(vec![Write::<Evm>::Channel(Box::new(record))]).await.unwrap();
    }
    store.write(vec![Write::<Evm>::Batch(Box::new(batch(1, BatchState::Signed)))]).await.unwrap();
    drop(store);
    std::fs::copy(&path, fixture()).unwrap();
}
