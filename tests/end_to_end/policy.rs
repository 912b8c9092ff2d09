//! What an operator does with a policy: try it in shadow mode, let it hold, change a compliance list, lose the service
//! that knows one, restart.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use http::Method;
use serde_json::{Value, json};
use tempfile::TempDir;
use turnpike::client::Client;
use turnpike::client::http::Request;

use super::support::{Chain, PATIENCE, Turnpike, Upstream, address, client, directory, keygen, rpc, wallet};

const FUNDS: u64 = 5_000_000;

fn upstream() -> Upstream {
    Upstream::start(|_, mut stream| {
        let _gone = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok");
    })
}

/// A shop on the sandbox, with a policy.
struct Shop {
    turnpike: Turnpike,
    _upstream: Upstream,
    place: TempDir,
}

impl Shop {
    fn open(place: TempDir, policy: &str) -> Self {
        let upstream = upstream();
        let configuration = format!(
            "upstream: http://{}\nnetwork: sandbox\nsandbox: {{ rpc_listen: '127.0.0.1:0' }}\n\
             routes:\n  - {{ path: /v1/*, price: '$0.001' }}\n  - {{ path: /free, free: true }}\npolicy:\n{policy}",
            upstream.address
        );
        let turnpike = Turnpike::serve(place.path(), &configuration);
        Self { turnpike, _upstream: upstream, place }
    }

    async fn payer(&self, number: u8) -> Client {
        client(self.turnpike.rpc_url.as_ref().unwrap(), number, FUNDS, 100_000).await
    }

    async fn calls(&self, payer: &Client) -> (u16, Value) {
        call(payer, &self.turnpike, "/v1/a").await
    }

    /// A counter's value, summed over the labels that are not named; 0 where there is none.
    async fn metric(&self, name: &str, labels: &[&str]) -> u64 {
        let (status, text) = self.turnpike.admin(Method::GET, "/metrics").await;
        assert_eq!(status, 200);
        let lines =
            text.lines().filter(|line| line.starts_with(name) && labels.iter().all(|label| line.contains(label)));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    }
}

/// Pays for a path: the status, and the answer where it is JSON.
async fn call(payer: &Client, turnpike: &Turnpike, path: &str) -> (u16, Value) {
    let response = payer.call(&Request::get(turnpike.url(path))).await.unwrap().response;
    let status = response.status();
    let body = response.bytes(1 << 16).await.unwrap();
    (status, serde_json::from_slice(&body).unwrap_or_default())
}

/// Asks until the answer has this status.
async fn until(shop: &Shop, payer: &Client, status: u16) -> Value {
    let started = Instant::now();
    loop {
        let (found, body) = shop.calls(payer).await;
        if found == status {
            return body;
        }
        assert!(started.elapsed() < PATIENCE, "still {found} {body}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A time zone in which it will not be midnight while a test runs.
fn zone_of_a_long_day() -> &'static str {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() % 86_400;
    if seconds > 22 * 3600 { "Asia/Tokyo" } else { "UTC" }
}

fn daily(limit: &str) -> String {
    format!("  daily_limit: '{limit}'\n  time_zone: {}\n", zone_of_a_long_day())
}

#[tokio::test]
async fn what_is_refused_is_counted_logged_and_not_charged() {
    let blocked = address(&wallet(62));
    let policy = format!(
        "{}  blocklist: [{blocked}]\n  block_patterns:\n    - path: /v1/internal/*\n    - header: 'x-agent: *bot*'\n",
        daily("$0.003")
    );
    let shop = Shop::open(directory(), &policy);
    let payer = shop.payer(61).await;
    for _ in 0..3 {
        assert_eq!(shop.calls(&payer).await.0, 200);
    }
    let (status, body) = shop.calls(&payer).await;
    assert_eq!((status, &body["error"]), (429, &json!("policy_daily_limit")));
    assert_eq!(payer.channels().await[0].charged.to_u64(), Some(3000));
    let line = shop.turnpike.process.wait_for("a line for the operator", |line| {
        let line: Value = serde_json::from_str(line).ok()?;
        (line["message"] == "refused by policy").then_some(line)
    });
    assert_eq!(
        (&line["rule"], &line["payer"], &line["amount"]),
        (&json!("daily_limit"), &json!(payer.address().to_string()), &json!("1000"))
    );

    let other = shop.payer(62).await;
    assert_eq!(
        shop.calls(&other).await,
        (
            403,
            json!({
                "error": "policy_blocklist",
                "detail": "this payer is not served here; nothing was charged",
            })
        )
    );
    let mut request = Request::get(shop.turnpike.url("/v1/a"));
    request.headers.insert("x-agent", "a Robot".parse().unwrap());
    for (request, status) in [
        (Request::get(shop.turnpike.url("/v1/Internal/x")), 403),
        (Request::get(shop.turnpike.url("/v1/%69nternal/x")), 403),
        (request, 403),
        (Request::get(shop.turnpike.url("/v1/b")), 402),
        (Request::get(shop.turnpike.url("/free")), 200),
    ] {
        assert_eq!(payer.ask(&request).await.unwrap().status(), status);
    }
    let refusals = "turnpike_policy_refusals_total";
    for (rule, count) in [("daily_limit", 1), ("blocklist", 1), ("block_patterns", 3)] {
        let labels = [format!("rule=\"{rule}\""), "mode=\"enforced\"".to_owned()];
        assert_eq!(shop.metric(refusals, &labels.each_ref().map(String::as_str)).await, count, "{rule}");
    }
    assert_eq!(shop.metric("turnpike_refusals_total", &["policy_daily_limit"]).await, 1);
    // What it spent is no reason to keep what it has left.
    assert_eq!(payer.refund(&Request::get(shop.turnpike.url("/v1/a"))).await.unwrap().amount.as_deref(), Some("97000"));
}

#[tokio::test]
async fn in_shadow_mode_the_same_is_counted_and_served() {
    let shop = Shop::open(directory(), &format!("  shadow: true\n{}  rate_limit: 1/d\n", daily("$0.002")));
    let payer = shop.payer(63).await;
    for _ in 0..4 {
        assert_eq!(shop.calls(&payer).await.0, 200);
    }
    let shadow = async |rule: &str| {
        let rule = format!("rule=\"{rule}\"");
        shop.metric("turnpike_policy_refusals_total", &[&rule, "mode=\"shadow\""]).await
    };
    assert_eq!((shadow("rate_limit").await, shadow("daily_limit").await), (3, 0), "each request is told of once");
    assert_eq!(shop.metric("turnpike_policy_refusals_total", &["mode=\"enforced\""]).await, 0);
    shop.turnpike
        .process
        .wait_for("a line for the operator", |line| line.contains("would be refused by policy").then_some(()));
}

fn write_list(place: &Path, text: &str) {
    std::fs::write(place.join("list.new"), text).unwrap();
    std::fs::rename(place.join("list.new"), place.join("list.txt")).unwrap();
}

#[tokio::test]
async fn a_compliance_list_holds_as_soon_as_its_file_has_changed() {
    let place = directory();
    write_list(place.path(), "# nobody\n");
    let shop = Shop::open(place, "  screening: { file: list.txt }\n");
    let (payer, other) = (shop.payer(64).await, shop.payer(65).await);
    assert_eq!(shop.calls(&payer).await.0, 200);
    write_list(shop.place.path(), &format!("{} somebody\n", payer.address()));
    assert_eq!(until(&shop, &payer, 403).await["error"], "policy_screening");
    assert_eq!(shop.calls(&other).await.0, 200);
    // What is no list does not take the place of one.
    write_list(shop.place.path(), "not an address\n");
    let started = Instant::now();
    while shop.metric("turnpike_screenings_total", &["source=\"file\"", "outcome=\"unreadable\""]).await == 0 {
        assert!(started.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(shop.calls(&payer).await.0, 403);
    write_list(shop.place.path(), "# nobody again\n");
    until(&shop, &payer, 200).await;
}

/// A service that knows a compliance list, and can be told to fail.
struct Service {
    address: std::net::SocketAddr,
    says: Arc<AtomicU8>,
    asked: Arc<AtomicUsize>,
}

impl Service {
    const CLEAR: u8 = 0;
    const LISTED: u8 = 1;
    const FAILS: u8 = 2;

    fn start() -> Self {
        let (says, asked) = (Arc::new(AtomicU8::new(Self::CLEAR)), Arc::new(AtomicUsize::new(0)));
        let (told, counted) = (Arc::clone(&says), Arc::clone(&asked));
        let server = Upstream::start(move |head, mut stream| {
            counted.fetch_add(1, Ordering::SeqCst);
            let key = head.to_ascii_lowercase().contains("authorization: bearer s3cret");
            let (status, body) = match told.load(Ordering::SeqCst) {
                Self::CLEAR if key => ("200 OK", "{\"identifications\": []}"),
                Self::LISTED if key => ("200 OK", "{\"identifications\": [{\"category\": \"sanctions\"}]}"),
                _ => ("503 Service Unavailable", "{}"),
            };
            let length = body.len();
            let _gone =
                write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
        });
        Self { address: server.address, says, asked }
    }

    fn says(&self, what: u8) {
        self.says.store(what, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn a_screening_service_is_asked_once_in_a_while_and_may_be_down() {
    for (unavailable, status) in [("refuse", 503), ("allow", 200)] {
        let service = Service::start();
        let place = directory();
        std::fs::write(place.path().join("token"), "s3cret\n").unwrap();
        let policy = format!(
            "  screening:\n    service:\n      url: http://{}/v1/address/{{payer}}\n      bearer_token_file: token\n      \
             listed_at: /identifications\n      cache: 1h\n      timeout: 5s\n      unavailable: {unavailable}\n",
            service.address
        );
        let shop = Shop::open(place, &policy);
        let payers = [shop.payer(66).await, shop.payer(67).await, shop.payer(68).await];
        for _ in 0..3 {
            assert_eq!(shop.calls(&payers[0]).await.0, 200);
        }
        assert_eq!(service.asked.load(Ordering::SeqCst), 1, "its answer is kept");
        service.says(Service::LISTED);
        assert_eq!(
            shop.calls(&payers[1]).await,
            (
                403,
                json!({
                    "error": "policy_screening",
                    "detail": "this payer is not served here; nothing was charged",
                })
            )
        );
        service.says(Service::FAILS);
        let (found, body) = shop.calls(&payers[2]).await;
        assert_eq!(found, status, "{body}");
        if unavailable == "refuse" {
            assert_eq!(body["error"], "policy_screening_unavailable");
        }
        assert_eq!(shop.calls(&payers[0]).await.0, 200, "what is known holds while it is down");
        assert_eq!(shop.calls(&payers[1]).await.0, 403);
        let unavailable = ["source=\"service\"", "outcome=\"unavailable\""];
        assert_eq!(shop.metric("turnpike_screenings_total", &unavailable).await, 1);
        service.says(Service::CLEAR);
        until(&shop, &payers[2], 200).await;
        assert!(!shop.turnpike.process.said().contains("s3cret"));
    }
}

#[tokio::test]
async fn a_restart_does_not_forget_what_was_spent_today() {
    let (chain, place, upstream) = (Chain::start(), directory(), upstream());
    let (signer, group) = keygen(place.path());
    let pay_to = address(&wallet(9));
    rpc(&chain.url, "requestAirdrop", json!([group, 10_000_000_000_u64])).await;
    rpc(&chain.url, "sandbox_mintTo", json!([pay_to, 0])).await;
    let configuration = format!(
        "upstream: http://{}\nnetwork: solana-devnet\nrpc_url: {}\npay_to: {pay_to}\n{signer}\
         routes:\n  - {{ path: /v1/*, price: '$0.001' }}\n  - {{ path: /v2/*, price: '$0.001', policy: {{ daily_limit: '$0.001' }} }}\n\
         policy:\n{}",
        upstream.address,
        chain.url,
        daily("$0.003")
    );
    let payer = client(&chain.url, 69, FUNDS, 100_000).await;
    let turnpike = Turnpike::serve(place.path(), &configuration);
    for path in ["/v1/a", "/v2/a", "/v1/a"] {
        assert_eq!(call(&payer, &turnpike, path).await.0, 200);
    }
    turnpike.process.signal("-KILL");
    drop(turnpike);
    let turnpike = Turnpike::serve(place.path(), &configuration);
    assert_eq!(call(&payer, &turnpike, "/v2/a").await.0, 429, "the route's own limit");
    assert_eq!(call(&payer, &turnpike, "/v1/a").await.0, 200);
    assert_eq!(call(&payer, &turnpike, "/v1/a").await.1["error"], "policy_daily_limit");
}
