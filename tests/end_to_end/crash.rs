//! Killed under load, again and again: what clients were told that they were charged is exactly what the ledger holds,
//! no answer is sold twice and none that was paid for is missing, and the settlement that follows pays the merchant
//! exactly that. And an answer that is cut off on its way costs its client nothing but a second request.

use std::collections::HashSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{HeaderMap, Method};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::timeout;
use turnpike::client::http::{Http, Request};
use turnpike::client::{Client, ClientError};
use turnpike::x402::header::{self, PAYMENT_REQUIRED};
use turnpike::x402::wire::PaymentRequired;
use turnpike::x402::{Key, Reason};

use super::audit;
use super::support::{Chain, PATIENCE, Turnpike, Upstream, address, balance, client, directory, keygen, rpc, wallet};

/// How often the proxy is killed.
const KILLS: u64 = 20;
const PRICE: u64 = 1000;
const PAYERS: u8 = 4;
const FUNDS: u64 = 100_000_000;

/// A pseudo-random sequence: the moments differ from each other, and the test can be repeated.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

/// A shop whose parts outlive the proxy.
struct Shop {
    chain: Chain,
    place: TempDir,
    configuration: String,
    pay_to: Key,
    /// How often the upstream was called. Each answer is a number of its own.
    calls: Arc<AtomicU64>,
}

impl Shop {
    async fn open() -> Self {
        let calls = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&calls);
        let upstream = Upstream::start(move |head, mut stream| {
            let number = counted.fetch_add(1, Ordering::SeqCst).to_string();
            let length = number.len();
            let kind = if head.starts_with("GET /events") { "text/event-stream" } else { "text/plain" };
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
            );
            let _gone = stream.write_all((head + &number).as_bytes());
        });
        let chain = Chain::start();
        let place = directory();
        let (signer, group) = keygen(place.path());
        let pay_to = address(&wallet(200));
        rpc(&chain.url, "requestAirdrop", json!([group, 10_000_000_000_u64])).await;
        rpc(&chain.url, "sandbox_mintTo", json!([pay_to, 0])).await;
        let configuration = format!(
            "upstream: http://{}\nnetwork: solana-devnet\nrpc_url: {}\npay_to: {pay_to}\n{signer}\
             settlement: {{ interval: 1s, min_amount: '$0.000001' }}\nroutes: [{{ path: /*, price: '$0.001' }}]",
            upstream.address, chain.url
        );
        Self { chain, place, configuration, pay_to, calls }
    }

    fn serve(&self) -> Turnpike {
        Turnpike::serve(self.place.path(), &self.configuration)
    }

    fn calls(&self) -> u64 {
        self.calls.load(Ordering::SeqCst)
    }
}

/// A request. After a restart the proxy listens elsewhere, and is the same host all the same.
fn request(address: SocketAddr) -> Request {
    let mut request = Request::get(format!("http://{address}/x").parse().unwrap());
    request.headers.insert("host", "api.example.com".parse().unwrap());
    request
}

/// What a client got for a call.
#[derive(Debug)]
struct Got {
    /// All that it was charged, as it was told.
    total: u64,
    body: String,
    again: bool,
}

/// A call; `None` where its answer is missing.
async fn call(payer: &Client, request: &Request) -> Option<Got> {
    let mut paid = payer.call(request).await.ok()?;
    loop {
        let total = paid.settlement?.extra["channelState"]["chargedCumulativeAmount"].as_str()?.parse().ok()?;
        let again = paid.response.header("turnpike-replay").is_some();
        match paid.response.bytes(100).await {
            Ok(body) => return Some(Got { total, body: String::from_utf8(body.to_vec()).unwrap(), again }),
            // The head came and the body did not.
            Err(_) => paid = payer.again(request).await.ok()??,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_charge_is_lost_none_is_doubled_and_every_answer_arrives() {
    let shop = Shop::open().await;
    let mut payers = Vec::new();
    for number in 0..PAYERS {
        payers.push(Arc::new(client(&shop.chain.url, 100 + number, FUNDS, FUNDS / 2).await));
    }
    let mut got: Vec<Vec<Got>> = payers.iter().map(|_| Vec::new()).collect();
    let mut moment = 7;
    for life in 0..=KILLS {
        let last = life == KILLS;
        let mut turnpike = shop.serve();
        let done = Arc::new(AtomicBool::new(false));
        let mut load = Vec::new();
        for payer in &payers {
            let (payer, done, request) = (Arc::clone(payer), Arc::clone(&done), request(turnpike.address));
            load.push(tokio::spawn(async move {
                let mut got = Vec::new();
                // In the last life each client gets the answer that it misses, or one more.
                while !done.load(Ordering::SeqCst) && (!last || got.is_empty()) {
                    match call(&payer, &request).await {
                        Some(answer) => got.push(answer),
                        // The proxy is gone, or going.
                        None => tokio::task::yield_now().await,
                    }
                }
                got
            }));
        }
        if !last {
            // Not a wait for something: the moment of the kill is what is random here. The first lives are short, so
            // that some end while channels are being opened.
            let longest = if life < 5 { 60 } else { 400 };
            tokio::time::sleep(Duration::from_millis(5 + next(&mut moment) % longest)).await;
            turnpike.process.child.kill().unwrap();
            turnpike.process.child.wait().unwrap();
            done.store(true, Ordering::SeqCst);
        }
        for (got, task) in got.iter_mut().zip(load) {
            got.extend(timeout(PATIENCE, task).await.unwrap().unwrap());
        }
        if !last {
            told_is_recorded(&shop, &payers, &got);
        }
        if last {
            record_ties_out(&shop, &turnpike).await;
            ties_out(&shop, &turnpike, &payers, &got).await;
        }
    }
}

/// As the kill has left it, the audit record holds every charge that a client was told of.
fn told_is_recorded(shop: &Shop, payers: &[Arc<Client>], got: &[Vec<Got>]) {
    let entries = audit::entries(shop.place.path());
    for (payer, got) in payers.iter().zip(got) {
        let Some(last) = got.last() else { continue };
        let (payer, total) = (payer.address().to_string(), last.total.to_string());
        let recorded = entries.iter().any(|entry| {
            entry["kind"] == "charge" && entry["payer"] == payer.as_str() && entry["total"] == total.as_str()
        });
        assert!(recorded, "{payer} was told of {total}");
    }
}

/// Every charge of the ledger is in the audit record, and no more than those.
async fn record_ties_out(shop: &Shop, turnpike: &Turnpike) {
    let (_, body) = turnpike.admin(Method::GET, "/api/channels").await;
    let channels: Value = serde_json::from_str(&body).unwrap();
    let report = audit::verified(shop.place.path());
    let sums = audit::charged(shop.place.path());
    eprintln!("audit record: {} entries, void: {}, {}", report["entries"], report["voided"], report["remarks"]);
    let mut charged = 0;
    for channel in channels["channels"].as_array().unwrap() {
        let id = channel["channel"].as_str().unwrap();
        let sum = sums.get(id).copied().unwrap_or(0);
        assert_eq!(sum.to_string(), channel["charged"].as_str().unwrap(), "channel {id}");
        charged += usize::from(sum > 0);
    }
    assert_eq!(sums.len(), charged);
}

/// What clients got, what the ledger holds, what the upstream did and what the chain pays: one and the same.
async fn ties_out(shop: &Shop, turnpike: &Turnpike, payers: &[Arc<Client>], got: &[Vec<Got>]) {
    let (_, body) = turnpike.admin(Method::GET, "/api/channels").await;
    let channels: Value = serde_json::from_str(&body).unwrap();
    let mut charged_in_all = 0;
    for (payer, got) in payers.iter().zip(got) {
        let mine = channels["channels"].as_array().unwrap().iter().filter(|c| c["payer"] == json!(payer.address()));
        let charged: u64 = mine.map(|c| c["charged"].as_str().unwrap().parse::<u64>().unwrap()).sum();
        assert!(got.len() > 1, "no client got through between the kills");
        for (call, got) in (1..).zip(got) {
            assert_eq!(got.total, call * PRICE, "each answer tells of one charge more: {got:?}");
        }
        assert_eq!(charged, got.last().unwrap().total, "the ledger holds what the client was told");
        charged_in_all += charged;
    }
    // No call of the upstream was sold twice. One that a kill struck before its charge was made for nothing: at most
    // one for each client and kill.
    let bodies: HashSet<&str> = got.iter().flatten().map(|got| got.body.as_str()).collect();
    let sold = u64::try_from(got.iter().map(Vec::len).sum::<usize>()).unwrap();
    assert_eq!(u64::try_from(bodies.len()).unwrap(), sold, "an answer was sold twice");
    let for_nothing = shop.calls() - sold;
    assert!(for_nothing <= KILLS * u64::from(PAYERS), "{for_nothing} calls of the upstream were not sold");
    let again = got.iter().flatten().filter(|got| got.again).count();
    eprintln!("{sold} answers, {again} of them after they were lost; {for_nothing} calls of the upstream not sold");

    let report = turnpike.settle().await;
    assert_eq!(report["failures"], 0, "{report}");
    assert_eq!(balance(&shop.chain.url, &shop.pay_to).await, charged_in_all);
    // Every client goes on by itself, and gets back exactly what it was not charged.
    for payer in payers {
        let request = request(turnpike.address);
        let paid = payer.call(&request).await.unwrap();
        assert_eq!(paid.charged.to_u64(), Some(PRICE));
        charged_in_all += PRICE;
        payer.refund(&request).await.unwrap();
    }
    assert_eq!(balance(&shop.chain.url, &shop.pay_to).await, charged_in_all);
    let mut left = 0;
    for payer in payers {
        left += balance(&shop.chain.url, &payer.address()).await;
    }
    assert_eq!(left + charged_in_all, u64::from(PAYERS) * FUNDS);
}

/// A wire between a client and the proxy that cuts off the answers to payments, as often as it is told to.
struct Wire {
    address: SocketAddr,
    to: Arc<Mutex<SocketAddr>>,
    cuts: Arc<AtomicU64>,
    /// The last payment that went over it.
    payment: Arc<Mutex<String>>,
}

impl Wire {
    fn lay(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let wire = Self { address, to: Arc::new(Mutex::new(to)), cuts: Arc::default(), payment: Arc::default() };
        let (to, cuts, payment) = (Arc::clone(&wire.to), Arc::clone(&wire.cuts), Arc::clone(&wire.payment));
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let _broken = carry(client, *to.lock().unwrap(), &cuts, &payment);
            }
        });
        wire
    }
}

/// Carries one request and its answer, then hangs up.
fn carry(mut client: TcpStream, to: SocketAddr, cuts: &AtomicU64, payment: &Mutex<String>) -> std::io::Result<()> {
    let mut head = String::new();
    let mut reader = BufReader::new(client.try_clone()?);
    while reader.read_line(&mut head)? > 0 && !head.ends_with("\r\n\r\n") {}
    let paid = head.lines().find_map(|line| line.strip_prefix("payment-signature: "));
    let mut server = TcpStream::connect(to)?;
    server.write_all(head.replacen("\r\n", "\r\nconnection: close\r\n", 1).as_bytes())?;
    let mut answer = Vec::new();
    server.read_to_end(&mut answer)?;
    if let Some(paid) = paid {
        *payment.lock().unwrap() = paid.to_owned();
        // The proxy has said all that it had to say, and nothing of it arrives.
        if cuts.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
            return client.shutdown(Shutdown::Both);
        }
    }
    client.write_all(&answer)?;
    client.shutdown(Shutdown::Both)
}

/// Sends a payment as it stands.
async fn send(turnpike: &Turnpike, path: &str, payment: &str) -> turnpike::client::http::Response {
    let mut headers = HeaderMap::new();
    headers.insert("host", "api.example.com".parse().unwrap());
    let request = Request { method: Method::GET, uri: turnpike.url(path), headers, body: bytes::Bytes::new() };
    Http::new().unwrap().send(&request, Some(payment)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_cut_off_is_had_again_and_paid_once() {
    let shop = Shop::open().await;
    let mut turnpike = shop.serve();
    let wire = Wire::lay(turnpike.address);
    let request = request(wire.address);
    let payer = client(&shop.chain.url, 110, FUNDS, FUNDS / 2).await;

    // The first opens the channel. Each is cut off once, and the client asks again by itself.
    for number in 0..3 {
        wire.cuts.store(1, Ordering::SeqCst);
        let got = call(&payer, &request).await.unwrap();
        assert_eq!((got.total, got.body, got.again), ((number + 1) * PRICE, number.to_string(), true));
    }
    assert_eq!(shop.calls(), 3);

    // Cut off for good, and the proxy dies after it has charged: the answer is on its disk.
    wire.cuts.store(u64::MAX, Ordering::SeqCst);
    assert!(call(&payer, &request).await.is_none());
    turnpike.process.child.kill().unwrap();
    turnpike.process.child.wait().unwrap();
    let turnpike = shop.serve();
    *wire.to.lock().unwrap() = turnpike.address;
    wire.cuts.store(0, Ordering::SeqCst);
    let got = call(&payer, &request).await.unwrap();
    assert_eq!((got.total, got.body.as_str(), got.again), (4 * PRICE, "3", true));
    assert_eq!(shop.calls(), 4, "the upstream is not asked again");

    // For another request, and without its id, the same payment buys nothing.
    let payment = wire.payment.lock().unwrap().clone();
    assert_eq!(send(&turnpike, "/x", &payment).await.header("turnpike-replay"), Some(&b"true"[..]));
    assert_eq!(send(&turnpike, "/y", &payment).await.status(), 409);
    let mut anonymous: Value = header::decode(payment.as_bytes()).unwrap();
    anonymous["extensions"]["payment-identifier"]["info"].as_object_mut().unwrap().remove("id");
    let refused = send(&turnpike, "/x", &header::encode(&anonymous).unwrap()).await;
    assert_eq!(refused.status(), 402);
    let required: PaymentRequired = header::decode(refused.header(PAYMENT_REQUIRED).unwrap()).unwrap();
    assert_eq!(required.error.as_deref(), Some(Reason::BatchCumulativeAmountMismatch.as_str()));
    assert_eq!(shop.calls(), 4);

    let got = call(&payer, &request).await.unwrap();
    assert_eq!((got.total, got.body.as_str(), got.again), (5 * PRICE, "4", false), "and so it goes on");

    // What streams is not kept: its client is told so, is not charged again unasked, and goes on.
    let mut events = request.clone();
    events.uri = format!("http://{}/events", wire.address).parse().unwrap();
    wire.cuts.store(1, Ordering::SeqCst);
    assert!(matches!(payer.call(&events).await, Err(ClientError::AnswerLost)));
    assert_eq!(shop.calls(), 6);
    let got = call(&payer, &events).await.unwrap();
    assert_eq!((got.total, got.body.as_str(), got.again), (7 * PRICE, "6", false));
    let report = turnpike.settle().await;
    assert_eq!(report["failures"], 0, "{report}");
    assert_eq!(balance(&shop.chain.url, &shop.pay_to).await, 7 * PRICE);
}
