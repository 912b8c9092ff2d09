//! Calls whose upstream says what they cost, in its body: paid on the sandbox's chain, to the unit.

use std::io::Write;

use turnpike::amount::Amount;
use turnpike::client::http::Request;
use turnpike::x402::header::{self, PAYMENT_RESPONSE};
use turnpike::x402::wire::SettlementResponse;

use super::support::{Turnpike, Upstream, address, balance, client, directory, wallet};

const FUNDS: u64 = 5_000_000;
const USAGE: &str = r#""usage":{"prompt_tokens":1000,"completion_tokens":500}"#;

/// What a path is answered with: its head's last lines, and its body.
fn answered(path: &str) -> (&'static str, String) {
    match path {
        "/chat/whole" => ("Content-Type: application/json", format!(r#"{{"text":"hello",{USAGE}}}"#)),
        "/chat/stream" => (
            "Content-Type: text/event-stream",
            format!(
                "data: {{\"text\":\"hel\",\"usage\":null}}\n\ndata: {{\"text\":\"lo\",{USAGE}}}\n\ndata: [DONE]\n\n"
            ),
        ),
        "/chat/large" => ("Content-Type: application/json", format!(r#"{{"text":"{}",{USAGE}}}"#, "x".repeat(1 << 20))),
        "/bytes" => ("Content-Type: text/plain", "x".repeat(1234)),
        _ => ("Content-Type: application/json", r#"{"text":"hello"}"#.to_owned()),
    }
}

/// Answers with chunks, or with a known length where the path says so.
fn upstream() -> Upstream {
    Upstream::start(|head, mut stream| {
        let path = head.split(' ').nth(1).unwrap_or_default();
        let (path, known) = path.strip_suffix("?known").map_or((path, false), |path| (path, true));
        let (kind, body) = answered(path);
        let sent = if known {
            write!(
                stream,
                "HTTP/1.1 200 OK\r\n{kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            )
        } else {
            let begun =
                write!(stream, "HTTP/1.1 200 OK\r\n{kind}\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n");
            let chunks = body.as_bytes().chunks(40_000).try_for_each(|chunk| {
                write!(stream, "{:x}\r\n", chunk.len())?;
                stream.write_all(chunk)?;
                stream.write_all(b"\r\n")
            });
            begun.and(chunks).and_then(|()| stream.write_all(b"0\r\n\r\n"))
        };
        let _gone = sent;
    })
}

#[tokio::test]
async fn what_an_answer_says_in_its_body_is_paid_to_the_unit() {
    let (upstream, place) = (upstream(), directory());
    let tokens = "sum: [{ json: /usage/prompt_tokens, unit_price: $0.15, per: 1000000 }, \
                  { json: /usage/completion_tokens, unit_price: $0.60, per: 1000000 }]";
    let turnpike = Turnpike::serve(
        place.path(),
        &format!(
            "upstream: http://{}\nnetwork: sandbox\nsandbox: {{ rpc_listen: '127.0.0.1:0' }}\npay_to: {}\nroutes:\n\
             - {{ path: /chat/*, price: $0.05, metering: {{ {tokens} }} }}\n\
             - {{ path: /strict/*, price: $0.05, metering: {{ {tokens}, missing: refuse }} }}\n\
             - {{ path: /bytes, price: $0.05, metering: {{ response_bytes: true, unit_price: $0.0000025 }} }}",
            upstream.address,
            address(&wallet(61)),
        ),
    );
    let rpc_url = turnpike.rpc_url.clone().unwrap();
    let payer = client(&rpc_url, 60, FUNDS, 100_000).await;
    let mut paid_in_all = 0;
    for (path, charged) in [
        ("/chat/whole", 450),
        ("/chat/whole?known", 450),
        ("/chat/stream", 450),
        // Longer than is held: charged by the rule, and delivered whole.
        ("/chat/large", 50_000),
        ("/chat/silent", 50_000),
        ("/bytes", 3_085),
        ("/bytes?known", 3_085),
    ] {
        let request = Request::get(turnpike.url(path));
        let paid = payer.call(&request).await.unwrap();
        assert_eq!((paid.response.status(), paid.charged), (200, Amount::from(charged)), "{path}");
        let settlement: SettlementResponse = header::decode(paid.response.header(PAYMENT_RESPONSE).unwrap()).unwrap();
        assert_eq!(settlement.amount.as_deref(), Some(charged.to_string().as_str()), "{path}");
        let body = paid.response.bytes(1 << 22).await.unwrap();
        assert_eq!(body, answered(path.trim_end_matches("?known")).1, "{path}");
        paid_in_all += charged;
        assert_eq!(balance(&rpc_url, &address(&wallet(61))).await, paid_in_all, "{path}");
    }
    let refused = payer.call(&Request::get(turnpike.url("/strict/silent"))).await.unwrap();
    assert_eq!((refused.response.status(), refused.charged), (502, Amount::ZERO));
    let body = refused.response.bytes(1 << 16).await.unwrap();
    assert!(String::from_utf8_lossy(&body).contains("upstream_unmetered"));
    assert_eq!(balance(&rpc_url, &payer.address()).await, FUNDS - paid_in_all);
}
