//! Metered calls through the released program, run by hand on a quiet machine: `cargo bench --bench metered`. Each opens a
//! channel on the chain, asks the upstream, and closes the channel at what that reported. Figures and how to read them:
//! `docs/performance.md`; requests of the other kinds are `turnpike bench`'s.

#![allow(clippy::float_arithmetic, reason = "milliseconds for people to read")]
#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs, reason = "a program for people, run by hand")]

#[allow(dead_code, clippy::print_stderr, reason = "shared with the end-to-end tests")]
#[path = "../tests/end_to_end/support.rs"]
mod support;

use std::io::Write;
use std::time::{Duration, Instant};

use http::Method;
use support::{Turnpike, Upstream, client, directory};
use turnpike::client::Client;
use turnpike::client::http::{Http, Request};

const METERED_CALLS: usize = 400;
const METERED_BUDGET: Duration = Duration::from_millis(150);
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nX-Usage: 0.0042\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let upstream = Upstream::start(|_, mut stream| stream.write_all(ANSWER).unwrap());
    let place = directory();
    let turnpike = Turnpike::serve(
        place.path(),
        &format!(
            "upstream: http://{}\nnetwork: sandbox\nsandbox: {{ rpc_listen: '127.0.0.1:0' }}\n\
             store: {{ path: turnpike.db }}\nroutes:\n  \
             - {{ path: /metered, price: '$0.01', metering: {{ header: X-Usage }} }}",
            upstream.address
        ),
    );
    let payer = client(turnpike.rpc_url.as_deref().unwrap(), 1, 10_000_000, 500_000).await;
    metered(&turnpike, &payer).await;
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
