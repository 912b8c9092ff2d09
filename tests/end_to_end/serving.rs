//! `turnpike serve` in front of servers that were not written for it.

use std::io::Write;
use std::net::Shutdown;
use std::process::Command;

use http::Method;
use serde_json::Value;
use turnpike::amount::Amount;
use turnpike::client::http::Request;
use turnpike::x402::header::{self, PAYMENT_REQUIRED, PAYMENT_RESPONSE};
use turnpike::x402::wire::{PaymentRequired, SettlementResponse};

use super::support::{Process, Turnpike, Upstream, balance, client, directory, keygen, rpc};

/// Python's `http.server` on a directory; its address.
fn python(directory: &std::path::Path) -> (Process, String) {
    let process = Process::start(
        Command::new("python3").args(["-u", "-m", "http.server", "0", "--bind", "127.0.0.1"]).current_dir(directory),
    );
    // "Serving HTTP on 127.0.0.1 port 41234 (http://127.0.0.1:41234/) ..."
    let address = process.wait_for("python's server", |line| {
        let from = line.find("http://")?;
        Some(line[from..].split('/').take(3).collect::<Vec<_>>().join("/"))
    });
    (process, address)
}

#[tokio::test]
async fn a_file_server_is_sold_by_the_file() {
    let files = directory();
    let bytes: Vec<u8> =
        (0..1_000_003_u32).map(|n| u8::try_from(n.wrapping_mul(2_654_435_761) >> 24).unwrap()).collect();
    std::fs::write(files.path().join("paid.bin"), &bytes).unwrap();
    std::fs::write(files.path().join("free.txt"), "for all").unwrap();
    let (_python, upstream) = python(files.path());
    let place = directory();
    let turnpike = Turnpike::serve(
        place.path(),
        &format!(
            "upstream: {upstream}\nnetwork: sandbox\nsandbox: {{ rpc_listen: '127.0.0.1:0' }}\nroutes:\n  \
             - {{ path: /free.txt, free: true }}\n  - {{ path: /*, price: '$0.001', methods: [GET] }}"
        ),
    );
    let rpc_url = turnpike.rpc_url.clone().unwrap();
    let payer = client(&rpc_url, 1, 5_000_000, 10_000).await;
    let ask = |path: &str| Request::get(turnpike.url(path));

    // Unpaid: a challenge that any client can read, and nothing of the file.
    let unpaid = payer.ask(&ask("/paid.bin")).await.unwrap();
    assert_eq!(unpaid.status(), 402);
    assert_eq!(unpaid.header("cache-control"), Some(&b"no-store"[..]));
    let required: PaymentRequired = header::decode(unpaid.header(PAYMENT_REQUIRED).unwrap()).unwrap();
    assert_eq!(required.x402_version, 2);
    assert_eq!(required.accepts[0].amount, Amount::from(1000_u64));
    assert!(required.resource.url.ends_with("/paid.bin"));

    // Free: passed on.
    let free = payer.ask(&ask("/free.txt")).await.unwrap();
    assert_eq!((free.status(), free.bytes(100).await.unwrap().as_ref()), (200, &b"for all"[..]));

    // Paid: the upstream's bytes unchanged, ten times from one deposit, then a top-up by itself.
    for call in 1..=11_u64 {
        let paid = payer.call(&ask("/paid.bin")).await.unwrap();
        assert_eq!(paid.charged, Amount::from(1000_u64));
        let settlement: SettlementResponse = header::decode(paid.response.header(PAYMENT_RESPONSE).unwrap()).unwrap();
        assert!(settlement.success);
        assert_eq!(settlement.extra["channelState"]["chargedCumulativeAmount"], Value::from((call * 1000).to_string()));
        assert_eq!(paid.response.bytes(1 << 24).await.unwrap(), bytes);
    }
    assert_eq!(balance(&rpc_url, &payer.address()).await, 5_000_000 - 20_000);

    // A file that is not there: 404 from the upstream, and nothing charged.
    let missing = payer.call(&ask("/missing")).await.unwrap();
    assert_eq!((missing.response.status(), missing.charged), (404, Amount::ZERO));

    // Not offered with this method.
    let mut post = ask("/paid.bin");
    post.method = Method::POST;
    assert_eq!(payer.ask(&post).await.unwrap().status(), 405);

    // The refund returns all that was not charged.
    let refund = payer.refund(&ask("/paid.bin")).await.unwrap();
    assert_eq!(refund.amount.as_deref(), Some("9000"));
    assert_eq!(balance(&rpc_url, &payer.address()).await, 5_000_000 - 11_000);
}

/// Upstreams that fail in every way that an upstream can.
fn failing(head: &str, mut stream: std::net::TcpStream) {
    let path = head.split(' ').nth(1).unwrap_or_default();
    let _gone = match path {
        "/ok" => stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"),
        "/500" => stream.write_all(b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"),
        "/garbage" => stream.write_all(b"this is no HTTP\r\n\r\n"),
        "/early" => stream.write_all(b"HTTP/1.1 200 OK\r\nContent-"),
        "/closed" => stream.shutdown(Shutdown::Both),
        // Never answers; the connection stays open for as long as the other side keeps it.
        _ => std::io::copy(&mut stream, &mut std::io::sink()).map(|_| ()),
    };
}

#[tokio::test]
async fn what_is_not_delivered_is_not_charged() {
    let upstream = Upstream::start(failing);
    let place = directory();
    let (signer, group) = keygen(place.path());
    let chain = super::support::Chain::start();
    let pay_to = super::support::address(&super::support::wallet(9));
    rpc(&chain.url, "requestAirdrop", serde_json::json!([group, 1_000_000_000_u64])).await;
    rpc(&chain.url, "sandbox_mintTo", serde_json::json!([pay_to, 0])).await;
    let turnpike = Turnpike::serve(
        place.path(),
        &format!(
            "upstream: http://{}\nnetwork: solana-devnet\nrpc_url: {}\npay_to: {pay_to}\n{signer}\
             timeouts: {{ response_header: 1s }}\nroutes: [{{ path: /*, price: '$0.001' }}]",
            upstream.address, chain.url
        ),
    );
    let payer = client(&chain.url, 2, 5_000_000, 1_000_000).await;
    let ask = |path: &str| Request::get(turnpike.url(path));

    // Before a channel is open: the deposit is not even sent.
    let first = payer.call(&ask("/500")).await.unwrap();
    assert_eq!((first.response.status(), first.charged), (500, Amount::ZERO));
    assert_eq!(balance(&chain.url, &payer.address()).await, 5_000_000);

    assert_eq!(payer.call(&ask("/ok")).await.unwrap().charged, Amount::from(1000_u64));
    for (path, status) in [("/500", 500), ("/garbage", 502), ("/early", 502), ("/closed", 502), ("/never", 504)] {
        let failed = payer.call(&ask(path)).await.unwrap();
        assert_eq!((failed.response.status(), failed.charged), (status, Amount::ZERO), "{path}");
        // The same balance serves the next call: nothing is held back.
        assert_eq!(payer.call(&ask("/ok")).await.unwrap().charged, Amount::from(1000_u64), "after {path}");
    }
    // A client that leaves while it waits: its next voucher fits at once, so nothing was charged or is held back.
    let never = ask("/never");
    let left = tokio::time::timeout(std::time::Duration::from_millis(300), payer.call(&never)).await;
    assert!(left.is_err(), "the upstream never answers");
    assert_eq!(payer.call(&ask("/ok")).await.unwrap().charged, Amount::from(1000_u64));

    // Seven calls were delivered, and seven are paid for.
    let report = turnpike.settle().await;
    assert_eq!(report["failures"], 0, "{report}");
    assert_eq!(balance(&chain.url, &pay_to).await, 7000);
}

#[tokio::test]
async fn a_stop_finishes_what_is_under_way() {
    // The upstream answers only once it is told to.
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let (came, arrived) = tokio::sync::mpsc::unbounded_channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let upstream = Upstream::start(move |_, mut stream| {
        let _gone = came.send(());
        let _told = wait.lock().unwrap().recv();
        let _gone = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nlate");
    });
    let mut arrived = arrived;
    let place = directory();
    let mut turnpike = Turnpike::serve(
        place.path(),
        &format!(
            "upstream: http://{}\nnetwork: sandbox\nsandbox: {{ rpc_listen: '127.0.0.1:0' }}\n\
             routes: [{{ path: /*, price: '$0.001' }}]",
            upstream.address
        ),
    );
    let payer = client(turnpike.rpc_url.as_ref().unwrap(), 3, 5_000_000, 1_000_000).await;
    let request = Request::get(turnpike.url("/slow"));
    let call = tokio::spawn(async move { payer.call(&request).await });
    arrived.recv().await.unwrap();
    turnpike.process.signal("-TERM");
    turnpike.process.wait_for("the drain to begin", |line| line.contains("asked to stop").then_some(()));
    go.send(()).unwrap();
    let paid = call.await.unwrap().unwrap();
    assert_eq!(paid.charged, Amount::from(1000_u64));
    assert_eq!(paid.response.bytes(100).await.unwrap().as_ref(), b"late");
    let status = turnpike.process.child.wait().unwrap();
    assert!(status.success(), "{status}");
}

#[tokio::test]
async fn wrong_shares_are_told_at_start() {
    let place = directory();
    let (signer, _) = keygen(place.path());
    std::fs::write(place.path().join("passphrases/passphrase-3.txt"), "this is another passphrase, and long enough")
        .unwrap();
    let text = format!(
        "upstream: http://127.0.0.1:9\nnetwork: solana-devnet\nrpc_url: http://127.0.0.1:9\n\
         pay_to: 7EcDhSYGxXyscszYEp35KHN8vvw3svAuLKTzXwCFLtV\n{signer}routes: [{{ path: /*, price: '$0.001' }}]\n"
    );
    std::fs::write(place.path().join("turnpike.yaml"), text).unwrap();
    let refused = Command::new(super::support::BINARY).args(["serve"]).current_dir(place.path()).output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("share-3.json") && said.contains("passphrase"), "{said}");
}
