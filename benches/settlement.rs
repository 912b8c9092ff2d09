//! What settlement of very many channels does to requests, run by hand on a quiet machine:
//! `cargo bench --bench settlement`, or `-- 20000` for another number of channels than a hundred thousand.
//!
//! Everything is on loopback, each piece in a process of its own: an upstream that answers 200 bytes, a sandbox chain that
//! has the channels, and `turnpike serve` with a threshold key and a ledger on disk in which something is owed on every
//! one of them. The chain gives way to everybody, as if it were on a machine of its own. Requests are paid at an even
//! pace, below what the machine can do: first without settlement, then while it claims and pays out every channel, and
//! then without it again.

#![allow(clippy::float_arithmetic, clippy::as_conversions, reason = "ratios for people to read")]
#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs, reason = "a program for people, run by hand")]

#[path = "../tests/support/channels.rs"]
mod channels;
#[allow(dead_code, clippy::print_stderr, reason = "shared with the end-to-end tests")]
#[path = "../tests/end_to_end/support.rs"]
mod support;

use std::cell::Cell;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Method;
use serde_json::Value;
use support::{Process, Turnpike, address, client, directory, keygen, wallet};
use turnpike::amount::Asset;
use turnpike::chain::sandbox::{Options, Sandbox};
use turnpike::cli::bench::load::{self, Load, Sample};
use turnpike::cli::bench::pieces::Piece;
use turnpike::client::Client;
use turnpike::client::http::{Http, Request};
use turnpike::clock::{Clock, SystemClock};
use turnpike::ledger::channel::{Seller, Svm, Terms};
use turnpike::ledger::sqlite::{Settings, SqliteStore};
use turnpike::ledger::store::{Store, Write};
use turnpike::scheme::svm::{TOKEN_PROGRAM, USDC_DEVNET, treasury_owner};
use turnpike::x402::Key;

const CHANNELS: u64 = 100_000;
const NETWORK: &str = "solana:EtWTRABZaYq6iMfeYKouRu166VU2xqa1";
const WITHDRAW_DELAY: u32 = 86_400;
const OPEN_SLOT: u64 = 9_000;
/// What each channel holds, and what is owed on it.
const DEPOSIT: u64 = 1_000_000;
const OWED: u64 = 20_000;
/// Who opened all of them, and where the money goes.
const PAYER: u8 = 250;
const PAY_TO: u8 = 251;

const CONNECTIONS: u8 = 32;
/// Requests a second, over all connections.
const RATE: u32 = 1_000;
/// Of each connection, in each slice.
const REQUESTS: usize = 100;
/// Before settlement, and after it.
const SLICES: usize = 12;

fn main() {
    let argument = |at: usize| std::env::args().nth(at);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // The other pieces are this same program, started again.
    match argument(1).as_deref() {
        Some("upstream") => Piece::Upstream.serve(|address| println!("listening on {address}")).unwrap(),
        Some("sandbox") => {
            runtime.block_on(sandbox(argument(2).unwrap().parse().unwrap(), argument(3).unwrap().parse().unwrap()))
        }
        count => runtime.block_on(compare(count.and_then(|count| count.parse().ok()).unwrap_or(CHANNELS))),
    }
}

fn seller(fee_payer: Key) -> Arc<Seller> {
    let network: turnpike::x402::Network = NETWORK.parse().unwrap();
    Arc::new(Seller {
        asset: Arc::new(Asset { address: USDC_DEVNET.to_string().into(), symbol: "USDC".into(), decimals: 6 }),
        mint: USDC_DEVNET,
        token_program: TOKEN_PROGRAM,
        pay_to: address(&wallet(PAY_TO)),
        fee_payer,
        receiver_authorizer: fee_payer,
        withdraw_delay: WITHDRAW_DELAY,
        treasury_owner: treasury_owner(&network),
        network,
    })
}

fn terms(seller: &Arc<Seller>, number: u64) -> Terms {
    let payer = address(&wallet(PAYER));
    Terms::derive(Arc::clone(seller), payer, payer, number, OPEN_SLOT)
}

/// A chain that has the channels.
async fn sandbox(count: u64, fee_payer: Key) {
    let sandbox = Sandbox::start(Options::new(NETWORK.parse().unwrap())).await.unwrap();
    let seller = seller(fee_payer);
    sandbox.airdrop(&fee_payer, 1_000_000_000_000_000).unwrap();
    for owner in [PAYER, PAY_TO] {
        sandbox.mint_to(&address(&wallet(owner)), 0).unwrap();
    }
    for number in 0..count {
        let terms = terms(&seller, number);
        sandbox.mint_to(&terms.id, DEPOSIT).unwrap();
        sandbox.set_account(terms.id, channels::on_chain(&channels::account(&terms, DEPOSIT)));
    }
    println!("listening on {}", sandbox.address());
    std::future::pending::<()>().await;
}

/// A ledger that has them, with something owed on each.
async fn fill(path: &Path, count: u64, fee_payer: Key) {
    let store = SqliteStore::open(path, Settings::default()).unwrap();
    let (seller, payer, now) = (seller(fee_payer), wallet(PAYER), SystemClock.now());
    let record = |number| {
        let record = channels::owing(terms(&seller, number), &payer, DEPOSIT, OWED, now);
        Write::<Svm>::Channel(Box::new(record))
    };
    for from in (0..count).step_by(10_000) {
        store.write((from..count.min(from + 10_000)).map(record).collect()).await.unwrap();
    }
}

/// Starts one of the other pieces, where `nice` says so with less priority than the rest.
fn piece(nice: bool, arguments: &[&str]) -> (Process, SocketAddr) {
    let this = std::env::current_exe().unwrap();
    let mut command = if nice { Command::new("nice") } else { Command::new(&this) };
    if nice {
        command.args(["-n", "19"]).arg(&this);
    }
    let process = Process::start(command.args(arguments));
    let address = process.wait_for("an address", |line| line.strip_prefix("listening on ")?.parse().ok());
    (process, address)
}

async fn compare(count: u64) {
    let place = directory();
    let (signer, fee_payer) = keygen(place.path());
    println!("{count} channels; made in: {}", place.path().display());
    let (_upstream, upstream) = piece(false, &["upstream"]);
    let (_chain, chain) = piece(true, &["sandbox", &count.to_string(), &fee_payer.to_string()]);
    fill(&place.path().join("turnpike.db"), count, fee_payer).await;
    let turnpike = Turnpike::serve(
        place.path(),
        &format!(
            "upstream: http://{upstream}\nnetwork: solana-devnet\nrpc_url: http://{chain}\npay_to: {}\n{signer}\
             store: {{ path: turnpike.db }}\nwithdraw_delay: {WITHDRAW_DELAY}s\n\
             settlement: {{ interval: 1h, max_age: 1h, exposure_max: $1000000 }}\n\
             routes: [{{ path: /paid, price: '$0.000001' }}]",
            address(&wallet(PAY_TO)),
        ),
    );
    let paid = Request::get(turnpike.url("/paid"));
    let mut payers = Vec::new();
    for number in 0..CONNECTIONS {
        let payer = client(&format!("http://{chain}"), number + 1, 10_000_000, 500_000).await;
        payer.call(&paid).await.unwrap();
        payers.push(payer);
    }

    let bench = Bench { turnpike: &turnpike, paid, payers };
    println!("resident before: {} MiB", bench.resident_kib() >> 10);
    bench.slice().await;
    let mut without = Vec::new();
    for _ in 0..SLICES {
        without.push(bench.slice().await);
    }
    let settled = Cell::new(None);
    let settle = async {
        let started = Instant::now();
        let report = settle(&turnpike).await;
        settled.set(Some(started.elapsed()));
        report
    };
    let measure = async {
        let mut during = Vec::new();
        loop {
            let slice = bench.slice().await;
            // The last one has the end of it inside.
            match settled.get() {
                Some(took) => break (during, took),
                None => during.push(slice),
            }
        }
    };
    let (report, (during, took)) = tokio::join!(settle, measure);
    println!("resident after: {} MiB, at most {} MiB", bench.resident_kib() >> 10, turnpike.process.peak_kib() >> 10);
    let mut after = Vec::new();
    for _ in 0..SLICES {
        after.push(bench.slice().await);
    }

    println!("settled in {:.0} s, {:.0} channels/s", took.as_secs_f64(), count as f64 / took.as_secs_f64());
    println!("{} failures; {}", report["failures"], report["lines"].as_array().unwrap().last().unwrap());
    println!("\n{:<10} {:>7} {:>9} {:>24} {:>24} {:>16}", "", "slices", "req/s", "p50 us", "p99 us", "CPU us/request");
    let (mut base, mut met) = (Vec::new(), Vec::new());
    for (name, slices) in [("without", &without), ("during", &during), ("after", &after)] {
        let of = |figure: fn(&Sample) -> f64| spread(slices.iter().map(figure).collect());
        println!(
            "{name:<10} {:>7} {:>9.0} {:>24} {:>24} {:>16}",
            slices.len(),
            of(|s| s.per_second).0,
            of(|s| s.p50).1,
            of(|s| s.p99).1,
            of(|s| s.cpu).1
        );
        let into = if name == "during" { &mut met } else { &mut base };
        into.extend(slices.iter().map(|slice| slice.p99));
    }
    println!("\np99 during settlement / without: {:.2}", spread(met).0 / spread(base).0);
}

/// Settles now, however long it takes; the report's lines.
async fn settle(turnpike: &Turnpike) -> Value {
    let uri = format!("http://{}/api/settle", turnpike.admin).parse().unwrap();
    let request = Request { method: Method::POST, ..Request::get(uri) };
    let http = Http::waiting(Duration::from_secs(3600)).unwrap();
    let answer = http.send(&request, None).await.unwrap().bytes(1 << 26).await.unwrap();
    serde_json::from_slice(&answer).unwrap()
}

struct Bench<'a> {
    turnpike: &'a Turnpike,
    paid: Request,
    payers: Vec<Client>,
}

impl Bench<'_> {
    /// A few seconds of paid requests.
    async fn slice(&self) -> Sample {
        let every = Duration::from_secs(1) * u32::from(CONNECTIONS) / RATE;
        let mut loads = Vec::new();
        for (payer, place) in self.payers.iter().zip(0..) {
            let payments = payer.sign_ahead(&self.paid, REQUESTS).await.unwrap();
            let payments: Vec<_> = payments.iter().map(|value| load::paying(value)).collect();
            let first = every * place / u32::from(CONNECTIONS);
            loads.push(Load::new("/paid", REQUESTS, &payments).paced(every, first));
        }
        load::run(self.turnpike.process.child.id(), self.turnpike.address, 200, loads).await.unwrap()
    }

    fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.turnpike.process.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

/// The middle of some figures, and how far they lie apart.
fn spread(mut values: Vec<f64>) -> (f64, String) {
    values.sort_by(f64::total_cmp);
    let Some(middle) = values.get(values.len() / 2).copied() else { return (0.0, "-".to_owned()) };
    (middle, format!("{middle:.0} ({:.0}-{:.0})", values[0], values[values.len() - 1]))
}
