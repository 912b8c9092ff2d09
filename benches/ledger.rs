//! The ledger's costs, run by hand: `cargo bench --bench ledger`. Part of it alone:
//! `cargo bench --bench ledger -- restore`.
//!
//! - `charge`: one request's way through the ledger, over a store in memory: what the ledger itself costs.
//! - `flush`: charges made durable by SQLite, one after the other and 64 at once, without and with an audit record that
//!   is told of them first; the disk decides. `TMPDIR` says which.
//! - `restore`: a million channels from a file, and what each then weighs.
//! - `weight`: what an idle channel weighs in memory, of a million, on Solana and on EVM networks.

#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs, reason = "a program for people, run by hand")]

#[path = "../tests/support/ledger.rs"]
mod support;

use std::cell::{Cell, OnceCell};
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use support::{entry, on_chain, terms, voucher};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use turnpike::amount::Asset;
use turnpike::audit::Recorder;
use turnpike::audit::log::{AuditLog, Options};
use turnpike::clock::{SystemClock, UnixMillis};
use turnpike::ledger::channel::{ChainState, Evm, EvmOnChain, Family, Svm};
use turnpike::ledger::memory::MemoryStore;
use turnpike::ledger::sqlite::{Settings, SqliteStore};
use turnpike::ledger::store::{ChannelRecord, Store, Write};
use turnpike::ledger::{Entry, Ledger, Limits};
use turnpike::scheme::evm::eip712::Domain;
use turnpike::scheme::evm::{EvmSeller, EvmTerms, TransferMethod};
use turnpike::x402::evm::{Address, B256};

const MANY: u64 = 1_000_000;

async fn open(store: Arc<dyn Store>) -> Arc<Ledger> {
    Ledger::open(store, Arc::new(SystemClock), Limits::default()).await.unwrap()
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
}

async fn pay(ledger: &Arc<Ledger>, entry: Entry) {
    ledger.reserve(entry).await.unwrap().commit(None).await.unwrap();
}

/// The same request with the next voucher, made outside of what is measured.
fn requests(number: impl Fn(u64) -> u64, count: u64, totals: &mut [u64]) -> Vec<Entry> {
    let seller = support::seller();
    let request = |at| {
        let number = number(at);
        let total = &mut totals[usize::try_from(number).unwrap()];
        *total += 1;
        let mut entry = entry(number, *total, 1);
        entry.terms.seller = Arc::clone(&seller);
        entry
    };
    (0..count).map(request).collect()
}

fn charge(c: &mut Criterion) {
    let mut group = c.benchmark_group("charge");
    for channels in [1u64, 1024, 100_000] {
        group.bench_function(format!("reserve+commit, {channels} channels"), |b| {
            let runtime = runtime();
            let ledger = runtime.block_on(open(Arc::new(MemoryStore::new())));
            for number in 0..channels {
                ledger.adopt(terms(number), on_chain(u64::MAX, 0));
            }
            let mut totals = vec![0; usize::try_from(channels).unwrap()];
            b.iter_custom(|count| {
                // A stride that is prime to all of the counts: the next channel is never the one beside it.
                let requests = requests(|at| at * 7919 % channels, count, &mut totals);
                runtime.block_on(async {
                    let start = Instant::now();
                    for request in requests {
                        pay(&ledger, request).await;
                    }
                    start.elapsed()
                })
            });
        });
        group.bench_function(format!("reserve+release, {channels} channels"), |b| {
            let runtime = runtime();
            let ledger = runtime.block_on(open(Arc::new(MemoryStore::new())));
            for number in 0..channels {
                ledger.adopt(terms(number), on_chain(u64::MAX, 0));
            }
            b.iter_custom(|count| {
                let mut totals = vec![0; usize::try_from(channels).unwrap()];
                let mut requests = requests(|at| at * 7919 % channels, count.min(channels), &mut totals);
                runtime.block_on(async {
                    let start = Instant::now();
                    for at in 0..count {
                        let at = usize::try_from(at % channels).unwrap();
                        black_box(ledger.reserve(requests[at].clone()).await.unwrap()).release();
                    }
                    let took = start.elapsed();
                    requests.clear();
                    took
                })
            });
        });
    }
    group.finish();
}

fn flush(c: &mut Criterion) {
    let mut group = c.benchmark_group("flush");
    group.sample_size(10).measurement_time(Duration::from_secs(10));
    for (at_once, told) in [1u64, 8, 64, 512].into_iter().flat_map(|at_once| [(at_once, false), (at_once, true)]) {
        group.throughput(criterion::Throughput::Elements(1));
        let name = if told { "durable charges, recorded" } else { "durable charges" };
        group.bench_function(format!("{name}, {at_once} at once"), |b| {
            let folder = tempfile::tempdir().unwrap();
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
            let recorder = told.then(|| -> Arc<dyn Recorder> {
                let log = AuditLog::open(&folder.path().join("audit"), Options::default()).unwrap();
                Arc::new(log)
            });
            let settings = Settings { recorder, ..Settings::default() };
            let store = SqliteStore::open(&folder.path().join("ledger.db"), settings).unwrap();
            let ledger = runtime.block_on(open(Arc::new(store)));
            for number in 0..at_once {
                ledger.adopt(terms(number), on_chain(u64::MAX, 0));
            }
            let mut totals = vec![0u64; usize::try_from(at_once).unwrap()];
            b.iter_custom(|count| {
                // `count` charges in all, spread over the channels.
                let each = count.div_ceil(at_once);
                let start = Instant::now();
                runtime.block_on(async {
                    let mut tasks = JoinSet::new();
                    for number in 0..at_once {
                        let ledger = Arc::clone(&ledger);
                        let total = &mut totals[usize::try_from(number).unwrap()];
                        let from = *total;
                        *total += each;
                        tasks.spawn(async move {
                            for step in 1..=each {
                                pay(&ledger, entry(number, from + step, 1)).await;
                            }
                        });
                    }
                    while let Some(done) = tasks.join_next().await {
                        done.unwrap();
                    }
                });
                // A few more than asked for, so that all channels have as many.
                start.elapsed() * u32::try_from(count).unwrap() / u32::try_from(each * at_once).unwrap()
            });
        });
    }
    group.finish();
}

fn fill(path: &Path) {
    let store = SqliteStore::open(path, Settings::default()).unwrap();
    let seller = support::seller();
    runtime().block_on(async {
        for block in 0..MANY / 10_000 {
            let writes = (block * 10_000..(block + 1) * 10_000).map(|number| {
                // Addresses are spread like hashes, as on chain.
                let mut terms = terms(number.wrapping_mul(0x9E37_79B9_7F4A_7C15));
                terms.seller = Arc::clone(&seller);
                let record = ChannelRecord {
                    terms,
                    on_chain: on_chain(1000, 0),
                    charged: 10u64.into(),
                    voucher: Some(voucher(10)),
                    unclaimed_since: Some(UnixMillis(1)),
                    last_used: UnixMillis(1),
                    closed: false,
                };
                Write::<Svm>::Channel(Box::new(record))
            });
            store.write(writes.collect()).await.unwrap();
        }
    });
}

/// Bytes of this process that are in memory.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4096
}

fn restore(c: &mut Criterion) {
    let mut group = c.benchmark_group("restore");
    group.sample_size(10);
    let file = OnceCell::new();
    group.bench_function("a million channels", |b| {
        let (_, path) = file.get_or_init(|| {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("ledger.db");
            let start = Instant::now();
            fill(&path);
            println!("filled {} MB in {:?}", std::fs::metadata(&path).unwrap().len() >> 20, start.elapsed());
            (folder, path)
        });
        let mut told = false;
        b.iter_custom(|count| {
            let mut took = Duration::ZERO;
            for _ in 0..count {
                let before = resident();
                let start = Instant::now();
                let store = SqliteStore::open(path, Settings::default()).unwrap();
                let ledger = runtime().block_on(open(Arc::new(store)));
                took += start.elapsed();
                assert_eq!(ledger.counts().0, usize::try_from(MANY).unwrap());
                if !told {
                    let each = resident().saturating_sub(before) / MANY;
                    println!("{each} bytes of resident memory for each channel, SQLite's cache included");
                    told = true;
                }
                let start = Instant::now();
                let mut seen = 0u64;
                ledger.for_each(&mut |_| seen += 1);
                let visit = start.elapsed();
                let start = Instant::now();
                ledger.glance(|channel| channel.closed.then_some(()), |()| ());
                let glance = start.elapsed();
                let start = Instant::now();
                black_box(ledger.exposure());
                println!("{seen} visited in {visit:?}, glanced at in {glance:?}, exposure in {:?}", start.elapsed());
            }
            took
        });
    });
    group.finish();
}

/// Not timed: a million channels are taken up as if the chain had them, and the memory is looked at.
fn weight(c: &mut Criterion) {
    let mut group = c.benchmark_group("weight");
    let told = Cell::new(false);
    group.sample_size(10).bench_function("nothing", |b| {
        if !told.replace(true) {
            let svm = |number: u64| (terms(number.wrapping_mul(0x9E37_79B9_7F4A_7C15)), on_chain(1000, 0));
            // Kept, so that the other one does not move into the memory that it leaves.
            let _solana = weigh::<Svm>("Solana", svm);
            let seller = evm_seller();
            let evm = move |number: u64| {
                let (mut payer, mut salt) = ([1; 20], [2; 32]);
                payer[..8].copy_from_slice(&number.to_be_bytes());
                salt[..8].copy_from_slice(&number.to_be_bytes());
                let terms = EvmTerms::derive(Arc::clone(&seller), Address(payer), Address(payer), B256(salt));
                let on_chain = EvmOnChain { balance: 1000_u64.into(), ..EvmOnChain::none(UnixMillis(1)) };
                (terms, on_chain)
            };
            let _evm = weigh::<Evm>("EVM", evm);
        }
        b.iter(|| ());
    });
    group.finish();
}

fn weigh<F: Family>(name: &str, channel: impl Fn(u64) -> (F::Terms, F::OnChain)) -> Arc<Ledger<F>> {
    let store: Arc<dyn Store<F>> = Arc::new(MemoryStore::new());
    let ledger = runtime().block_on(Ledger::open(store, Arc::new(SystemClock), Limits::default())).unwrap();
    let before = resident();
    for number in 0..MANY {
        let (terms, on_chain) = channel(number);
        ledger.adopt(terms, on_chain);
    }
    let bytes = resident().saturating_sub(before) / MANY;
    assert_eq!(ledger.counts().0, usize::try_from(MANY).unwrap());
    println!("{bytes} bytes of resident memory for each idle channel on {name}");
    ledger
}

fn evm_seller() -> Arc<EvmSeller> {
    Arc::new(EvmSeller {
        network: "eip155:84532".parse().unwrap(),
        chain_id: 84_532,
        asset: Arc::new(Asset { address: "0x70".into(), symbol: "USDC".into(), decimals: 6 }),
        token: Address([0x70; 20]),
        token_name: "USDC".into(),
        token_version: "2".into(),
        transfer_method: TransferMethod::Eip3009,
        pay_to: Address([0xA0; 20]),
        receiver_authorizer: Address([0xA1; 20]),
        withdraw_delay: 86_400,
        domain: Domain::batch_settlement(84_532),
    })
}

criterion_group!(benches, charge, flush, restore, weight);
criterion_main!(benches);
