//! The reference client (npm's `@x402/fetch` with `@x402/svm`, scheme `upto`), unchanged but for its RPC's address.

use std::io::Write;
use std::process::Command;

use serde_json::Value;

use super::support::{Turnpike, Upstream, address, balance, directory, project, wallet};

const FUNDS: u64 = 5_000_000;

fn upstream() -> Upstream {
    Upstream::start(|head, mut stream| {
        let answer: &[u8] = if head.starts_with("GET /v1/broken") {
            b"HTTP/1.1 503 Down\r\nContent-Length: 4\r\nConnection: close\r\n\r\ndown"
        } else {
            // The call's price in whole tokens, below the maximum of 0.01.
            b"HTTP/1.1 200 OK\r\nX-Usage: 0.0042\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello"
        };
        let _gone = stream.write_all(answer);
    })
}

/// Runs the reference client; one JSON object for each call.
fn pay(turnpike: &Turnpike, path: &str, calls: usize) -> Vec<Value> {
    let key: String = wallet(50).to_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    let run = Command::new("node")
        .arg(project("tests/interop/pay.mjs"))
        .args([turnpike.url(path).to_string().as_str(), turnpike.rpc_url.as_deref().unwrap(), &key, &calls.to_string()])
        .output()
        .unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    String::from_utf8(run.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn the_reference_client_pays_a_metered_route() {
    if !project("tests/interop/node_modules/@x402/svm").exists() {
        let installed = Command::new("npm")
            .args(["ci", "--no-audit", "--no-fund", "--silent", "--prefix"])
            .arg(project("tests/interop"))
            .status()
            .unwrap();
        assert!(installed.success(), "npm ci in tests/interop failed");
    }
    let upstream = upstream();
    let place = directory();
    let pay_to = address(&wallet(51));
    let turnpike = Turnpike::serve(
        place.path(),
        &format!(
            "upstream: http://{}\nnetwork: sandbox\nsandbox: {{ rpc_listen: '127.0.0.1:0' }}\npay_to: {pay_to}\n\
             routes:\n  - {{ path: /v1/*, price: '$0.01', metering: {{ header: X-Usage }} }}",
            upstream.address
        ),
    );
    let rpc_url = turnpike.rpc_url.clone().unwrap();
    let payer = address(&wallet(50));
    super::support::rpc(&rpc_url, "sandbox_mintTo", serde_json::json!([payer, FUNDS])).await;

    let calls = pay(&turnpike, "/v1/render", 10);
    assert_eq!(calls.len(), 10);
    for call in &calls {
        assert_eq!((call["status"].as_u64(), call["bytes"].as_u64()), (Some(200), Some(5)), "{call}");
        assert_eq!(call["settlement"]["success"], true, "{call}");
        assert_eq!(call["settlement"]["amount"], "4200", "{call}");
        assert_ne!(call["settlement"]["transaction"], "", "{call}");
    }
    assert_eq!(balance(&rpc_url, &pay_to).await, 42_000);
    assert_eq!(balance(&rpc_url, &payer).await, FUNDS - 42_000);

    // The upstream fails: the deposit comes back whole.
    let failed = pay(&turnpike, "/v1/broken", 2);
    for call in &failed {
        assert_eq!(call["status"], 503, "{call}");
    }
    assert_eq!(balance(&rpc_url, &pay_to).await, 42_000);
    assert_eq!(balance(&rpc_url, &payer).await, FUNDS - 42_000);
}
