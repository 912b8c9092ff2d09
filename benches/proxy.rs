//! The whole proxy side by side with a bare one, run by hand on a quiet machine: `cargo bench --bench proxy`.
//!
//! Everything is on loopback, each piece in a process of its own: an upstream that answers 200 bytes, a bare hyper
//! reverse proxy as the yardstick, and `turnpike serve` on the sandbox with its ledger on disk. The contenders take
//! turns, in an order that moves on by one each round. Then metered calls, one after the other. Figures and how to read
//! them: `docs/performance.md`.

#![allow(clippy::float_arithmetic, clippy::as_conversions, reason = "ratios for people to read")]
#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs, reason = "a program for people, run by hand")]

#[path = "proxy/bare.rs"]
mod bare;
#[path = "proxy/load.rs"]
mod load;
#[allow(dead_code, clippy::print_stderr, reason = "shared with the end-to-end tests")]
#[path = "../tests/end_to_end/support.rs"]
mod support;

use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use http::Method;
use load::{Load, Sample};
use support::{Process, Turnpike, client, directory};
use turnpike::client::Client;
use turnpike::client::http::{Http, Request};

const CONNECTIONS: u8 = 32;
/// Of each connection, in each round.
const REQUESTS: usize = 500;
const ROUNDS: usize = 7;
const METERED_CALLS: usize = 400;
const METERED_BUDGET: Duration = Duration::from_millis(150);

fn main() {
    // The other pieces are this same program, started again.
    match std::env::args().nth(1).as_deref() {
        Some("upstream") => bare::upstream(),
        Some("bare") => bare::proxy(std::env::args().nth(2).unwrap().parse().unwrap()),
        _ => tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(compare()),
    }
}

/// Starts one of the other pieces.
fn piece(arguments: &[&str]) -> (Process, SocketAddr) {
    let process = Process::start(Command::new(std::env::current_exe().unwrap()).args(arguments));
    let address = process.wait_for("an address", |line| line.strip_prefix("listening on ")?.parse().ok());
    (process, address)
}

struct Contender {
    name: &'static str,
    pid: u32,
    address: SocketAddr,
    path: &'static str,
    status: &'static str,
    samples: Vec<Sample>,
}

async fn compare() {
    println!("{}", machine());
    let (upstream, upstream_address) = piece(&["upstream"]);
    let (bare, bare_address) = piece(&["bare", &upstream_address.to_string()]);
    let place = directory();
    let turnpike = Turnpike::serve(
        place.path(),
        &format!(
            "upstream: http://{upstream_address}\nnetwork: sandbox\nsandbox: {{ rpc_listen: '127.0.0.1:0' }}\n\
             store: {{ path: turnpike.db }}\nroutes:\n  - {{ path: /free, free: true }}\n  \
             - {{ path: /paid, price: '$0.000001' }}\n  \
             - {{ path: /metered, price: '$0.01', metering: {{ header: X-Usage }} }}"
        ),
    );
    let rpc_url = turnpike.rpc_url.clone().unwrap();
    let paid = Request::get(turnpike.url("/paid"));
    let mut payers = Vec::new();
    for number in 0..CONNECTIONS {
        let payer = client(&rpc_url, number + 1, 10_000_000, 500_000).await;
        payer.call(&paid).await.unwrap();
        payers.push(payer);
    }

    let contender = |name, pid, address, path, status| Contender { name, pid, address, path, status, samples: vec![] };
    let (ours, at) = (turnpike.process.child.id(), turnpike.address);
    let mut contenders = [
        contender("the upstream itself", upstream.child.id(), upstream_address, "/free", "200"),
        contender("bare hyper proxy", bare.child.id(), bare_address, "/free", "200"),
        contender("turnpike, free route", ours, at, "/free", "200"),
        contender("turnpike, unpaid: 402", ours, at, "/paid", "402"),
        contender("turnpike, paid by voucher", ours, at, "/paid", "200"),
    ];
    for round in 0..=ROUNDS {
        for turn in 0..contenders.len() {
            let which = (round + turn) % contenders.len();
            let contender = &mut contenders[which];
            let pays = contender.path == "/paid" && contender.status == "200";
            let mut requests = Vec::new();
            for payer in &payers {
                let payments = if pays { payer.sign_ahead(&paid, REQUESTS).await.unwrap() } else { Vec::new() };
                requests.push(Load::new(contender.path, payments, REQUESTS));
            }
            let sample = load::run(contender.pid, contender.address, contender.status, requests).await;
            // The first round warms up.
            if round > 0 {
                contender.samples.push(sample);
            }
        }
    }
    table(&contenders);
    metered(&turnpike, &payers[0]).await;
    println!("\nload average at the end: {}", load_average());
}

/// One line about where this ran.
fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpus = read("/proc/cpuinfo");
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let rustc = Command::new("rustc").arg("--version").output().map(|o| o.stdout).unwrap_or_default();
    format!(
        "{} x {}, Linux {}, {}, turnpike {}; load average {}\n\
         {CONNECTIONS} connections, {REQUESTS} requests on each in a round, {ROUNDS} rounds after one to warm up\n",
        cpus.matches("processor\t").count(),
        model.trim_start_matches(['\t', ':', ' ']),
        read("/proc/sys/kernel/osrelease").trim(),
        String::from_utf8_lossy(&rustc).trim(),
        env!("CARGO_PKG_VERSION"),
        load_average(),
    )
}

fn load_average() -> String {
    std::fs::read_to_string("/proc/loadavg").unwrap_or_default().split(' ').take(3).collect::<Vec<_>>().join(" ")
}

/// The middle of some figures, and how far they lie apart.
fn spread(mut values: Vec<f64>) -> (f64, String) {
    values.sort_by(f64::total_cmp);
    let (low, middle, high) = (values[0], values[values.len() / 2], values[values.len() - 1]);
    (middle, format!("{middle:.0} ({low:.0}-{high:.0})"))
}

fn table(contenders: &[Contender]) {
    println!("median of the rounds (least-most)\n");
    println!(
        "{:<26} {:>24} {:>20} {:>20} {:>18} {:>9}",
        "", "requests/s", "p50 us", "p99 us", "CPU us/request", "CPU ratio"
    );
    let cpu = |contender: &Contender| spread(contender.samples.iter().map(|s| s.cpu_micros).collect());
    let yardstick = cpu(&contenders[1]).0;
    for contender in contenders {
        let of = |figure: fn(&Sample) -> f64| spread(contender.samples.iter().map(figure).collect()).1;
        let (cpu, cpu_text) = cpu(contender);
        println!(
            "{:<26} {:>24} {:>20} {:>20} {:>18} {:>9.2}",
            contender.name,
            of(|s| s.per_second),
            of(|s| s.p50_micros),
            of(|s| s.p99_micros),
            cpu_text,
            cpu / yardstick
        );
    }
}

/// Metered calls one after the other: from the paid request, whose channel is opened and closed on the chain meanwhile,
/// to the answer's header.
async fn metered(turnpike: &Turnpike, payer: &Client) {
    let request = Request::get(turnpike.url("/metered"));
    let http = Http::new().unwrap();
    let before = signing(turnpike).await;
    let mut took = Vec::new();
    for _ in 0..METERED_CALLS {
        let payment = payer.sign_ahead(&request, 1).await.unwrap().remove(0);
        let started = Instant::now();
        let answer = http.send(&request, Some(&payment)).await.unwrap();
        took.push(started.elapsed());
        assert_eq!(answer.status(), 200, "{:?}", answer.bytes(1 << 16).await);
        answer.bytes(1 << 16).await.unwrap();
    }
    took.sort();
    let at = |percent: usize| took[(took.len() - 1) * percent / 100].as_secs_f64() * 1000.0;
    println!(
        "\n{METERED_CALLS} metered calls (upto), one after the other, channel opened and closed in each: p50 {:.1} ms, \
         p99 {:.1} ms, most {:.1} ms; the budget is {} ms",
        at(50),
        at(99),
        at(100),
        METERED_BUDGET.as_millis()
    );
    for (kind, count, seconds) in signing(turnpike).await {
        let (earlier, spent) = before.iter().find(|(k, ..)| *k == kind).map_or((0.0, 0.0), |(_, c, s)| (*c, *s));
        if count > earlier {
            let mean = (seconds - spent) / (count - earlier) * 1000.0;
            println!("  of that, threshold signatures of kind {kind}: {:.0}, mean {mean:.2} ms", count - earlier);
        }
    }
}

/// Kind, count and seconds of the signatures so far, from the metrics.
async fn signing(turnpike: &Turnpike) -> Vec<(String, f64, f64)> {
    let (_, text) = turnpike.admin(Method::GET, "/metrics").await;
    let value = |line: &str| line.rsplit(' ').next().unwrap().parse().unwrap();
    let mut kinds = Vec::new();
    for line in text.lines() {
        let Some(labels) = line.strip_prefix("turnpike_signing_duration_seconds_count{kind=\"") else { continue };
        let kind = labels.split('"').next().unwrap();
        let sum = format!("turnpike_signing_duration_seconds_sum{{kind=\"{kind}\"}}");
        let seconds = text.lines().find(|line| line.starts_with(&sum)).map_or(0.0, value);
        kinds.push((kind.to_owned(), value(line), seconds));
    }
    kinds
}
