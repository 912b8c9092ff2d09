//! HTTP beyond the plain request, through the paid gate of `turnpike serve` with nginx behind it: bodies that wait to
//! be asked for, trailers, HTTP/2 on both sides, upgrades.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use bytes::Bytes;
use http::Method;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use turnpike::client::Client;
use turnpike::client::http::Request;
use turnpike::x402::header::{self, PAYMENT_RESPONSE, PAYMENT_SIGNATURE};
use turnpike::x402::wire::SettlementResponse;

use super::nginx::{Nginx, PRICE, echo, sells};
use super::support::{PATIENCE, Turnpike, Upstream, client, directory};

/// A connection on which a test says every byte itself.
pub struct Raw {
    pub reader: BufReader<TcpStream>,
    pub writer: TcpStream,
}

impl Raw {
    pub fn connect(turnpike: &Turnpike) -> Self {
        let writer = TcpStream::connect(turnpike.address).unwrap();
        writer.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { reader: BufReader::new(writer.try_clone().unwrap()), writer }
    }

    pub fn send(&mut self, text: &str) {
        self.writer.write_all(text.as_bytes()).unwrap();
    }

    /// The head of an answer, in lower case.
    pub fn head(&mut self) -> String {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(self.reader.read_line(&mut head).unwrap() > 0, "closed after {head:?}");
        }
        head.to_ascii_lowercase()
    }

    pub fn exactly(&mut self, length: usize) -> String {
        let mut bytes = vec![0; length];
        self.reader.read_exact(&mut bytes).unwrap();
        String::from_utf8(bytes).unwrap()
    }
}

/// A turnpike in front of `upstream`, and payments for the next calls from a channel that one call has opened.
async fn paid(directory: &std::path::Path, upstream: &str, calls: usize) -> (Turnpike, Client, Vec<String>) {
    let turnpike = Turnpike::serve(directory, &sells(upstream));
    let payer = client(turnpike.rpc_url.as_ref().unwrap(), 1, 5_000_000, 1_000_000).await;
    let request = Request::get(turnpike.url("/file.txt"));
    payer.call(&request).await.unwrap();
    let payments = payer.sign_ahead(&request, calls).await.unwrap();
    (turnpike, payer, payments)
}

/// What the ledger says was charged in all.
async fn charged(turnpike: &Turnpike) -> u64 {
    let (_, body) = turnpike.admin(Method::GET, "/api/channels").await;
    let channels: Value = serde_json::from_str(&body).unwrap();
    channels["channels"][0]["charged"].as_str().unwrap().parse().unwrap()
}

fn file(directory: &std::path::Path) {
    std::fs::write(directory.join("file.txt"), "some text").unwrap();
}

#[tokio::test]
async fn a_body_is_asked_for_once_it_is_paid_for() {
    let files = directory();
    file(files.path());
    // A location that is proxied reads its body; here to the same nginx, which answers with how long it was.
    let nginx = Nginx::start(
        files.path(),
        "location /length { proxy_pass $scheme://$server_addr:$server_port/said; } \
         location /said { return 200 $http_content_length; }",
    );
    let place = directory();
    let (turnpike, _, payments) = paid(place.path(), &nginx.http1, 1).await;
    let head = "POST /length HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n";

    let mut unpaid = Raw::connect(&turnpike);
    unpaid.send(&format!("{head}\r\n"));
    assert!(unpaid.head().starts_with("http/1.1 402"), "the body is not asked for");

    let mut raw = Raw::connect(&turnpike);
    raw.send(&format!("{head}{PAYMENT_SIGNATURE}: {}\r\n\r\n", payments[0]));
    assert_eq!(raw.head(), "http/1.1 100 continue\r\n\r\n");
    raw.send("hello");
    assert!(raw.head().starts_with("http/1.1 200"));
    assert_eq!(raw.exactly(1), "5");
    assert_eq!(charged(&turnpike).await, 2 * PRICE);
}

#[tokio::test]
async fn trailers_and_http2_pass_the_gate_on_both_sides() {
    let files = directory();
    file(files.path());
    // Over HTTP/1.1 trailers need an answer without a length, and nginx knows none of what it changes on the way.
    let nginx = Nginx::start(
        files.path(),
        "add_trailer X-Sum $server_protocol; add_header Trailer X-Sum; sub_filter some any; sub_filter_types text/plain;",
    );
    for (upstream, spoken) in [(&nginx.http1, "HTTP/1.1"), (&nginx.http2, "HTTP/2.0")] {
        for http2 in [false, true] {
            let place = directory();
            let (turnpike, _, payments) = paid(place.path(), upstream, 1).await;
            let browser: HyperClient<_, Full<Bytes>> =
                HyperClient::builder(TokioExecutor::new()).http2_only(http2).build_http();
            let request = http::Request::get(turnpike.url("/file.txt"))
                .header(PAYMENT_SIGNATURE, &payments[0])
                .header("te", "trailers")
                .body(Full::default())
                .unwrap();
            let answer = browser.request(request).await.unwrap();
            assert_eq!(answer.status(), 200);
            let version = if http2 { http::Version::HTTP_2 } else { http::Version::HTTP_11 };
            assert_eq!(answer.version(), version);
            let settlement: SettlementResponse = header::decode(answer.headers()[PAYMENT_RESPONSE].as_bytes()).unwrap();
            assert!(settlement.success);
            let body = answer.into_body().collect().await.unwrap();
            assert_eq!(
                body.trailers().map(|trailers| &trailers["x-sum"]),
                Some(&spoken.parse().unwrap()),
                "{version:?} in front of {upstream}"
            );
            assert_eq!(body.to_bytes(), "any text");
            assert_eq!(charged(&turnpike).await, 2 * PRICE);
        }
    }
}

#[tokio::test]
async fn an_upgrade_is_paid_once() {
    let server = Upstream::start(echo);
    let files = directory();
    file(files.path());
    let nginx = Nginx::start(
        files.path(),
        &format!(
            "location /socket {{ proxy_pass http://{}; proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; \
             proxy_set_header Connection upgrade; }}",
            server.address
        ),
    );
    let place = directory();
    let (turnpike, payer, payments) = paid(place.path(), &nginx.http1, 2).await;
    let head = "GET /socket HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

    let mut unpaid = Raw::connect(&turnpike);
    unpaid.send(&format!("{head}\r\n"));
    assert!(unpaid.head().starts_with("http/1.1 402"));

    let mut raw = Raw::connect(&turnpike);
    raw.send(&format!("{head}{PAYMENT_SIGNATURE}: {}\r\n\r\n", payments[0]));
    let answer = raw.head();
    assert!(answer.starts_with("http/1.1 101") && answer.contains("upgrade: websocket"), "{answer}");
    assert!(answer.contains(PAYMENT_RESPONSE), "{answer}");
    for word in ["one\n", "two\n", "three\n"] {
        raw.send(word);
        assert_eq!(raw.exactly(word.len()), word);
    }
    assert_eq!(charged(&turnpike).await, 2 * PRICE, "one call opened the channel, and the upgrade is one call");

    // An upgrade that the upstream does not agree to costs nothing, and its voucher still serves.
    let mut refused = Raw::connect(&turnpike);
    refused.send(&format!("GET /socket HTTP/1.1\r\nHost: a\r\n{PAYMENT_SIGNATURE}: {}\r\n\r\n", payments[1]));
    assert!(refused.head().starts_with("http/1.1 426"));
    assert_eq!(charged(&turnpike).await, 2 * PRICE);
    let paid = payer.call(&Request::get(turnpike.url("/file.txt"))).await.unwrap();
    assert_eq!(paid.charged.to_u64(), Some(PRICE));
    assert_eq!(charged(&turnpike).await, 3 * PRICE);
}
