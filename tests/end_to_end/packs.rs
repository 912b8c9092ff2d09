//! `turnpike pay --pack` against `turnpike serve`: one payment, many calls, and the operator's side of it.

use std::io::Write;
use std::path::Path;
use std::process::Command;

use http::Method;
use serde_json::Value;

use super::support::{BINARY, Turnpike, Upstream, address, balance, directory, wallet};

fn upstream() -> Upstream {
    Upstream::start(|head, mut stream| {
        let lower = head.to_ascii_lowercase();
        // Nothing of a payment or a pass reaches the merchant's API; who pays does.
        let clean = !lower.contains("payment-") && (!lower.contains("/v1/") || lower.contains("turnpike-payer"));
        let answer: &[u8] = match (clean, head.starts_with("GET /v1/broken")) {
            (false, _) => b"HTTP/1.1 400 Dirty\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            (true, true) => b"HTTP/1.1 503 Down\r\nContent-Length: 4\r\nConnection: close\r\n\r\ndown",
            (true, false) => b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello",
        };
        let _gone = stream.write_all(answer);
    })
}

/// Runs a command; its standard output's lines as JSON.
fn run(place: &Path, arguments: &[&str]) -> Vec<Value> {
    let run = Command::new(BINARY).args(arguments).current_dir(place).output().unwrap();
    assert!(run.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&run.stderr));
    String::from_utf8(run.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn pay(place: &Path, turnpike: &Turnpike, path: &str, calls: &str) -> Vec<(u64, String, Option<u64>)> {
    let url = turnpike.url(path).to_string();
    let rpc_url = turnpike.rpc_url.clone().unwrap();
    let lines = run(place, &["pay", &url, "--rpc-url", &rpc_url, "-n", calls, "--pack", "--json"]);
    let call = |line: &Value| {
        let charged = line["charged"].as_str().unwrap().to_owned();
        (line["status"].as_u64().unwrap(), charged, line["callsLeft"].as_u64())
    };
    lines.iter().map(call).collect()
}

#[tokio::test]
async fn a_pack_is_bought_spent_listed_and_revoked() {
    let (upstream, place) = (upstream(), directory());
    let pay_to = address(&wallet(51));
    let turnpike = Turnpike::serve(
        place.path(),
        &format!(
            "upstream: http://{}\nnetwork: sandbox\nsandbox: {{ rpc_listen: '127.0.0.1:0' }}\npay_to: {pay_to}\nroutes:\n  \
             - {{ path: /v1/*, price: '$0.001', pack: {{ calls: 4, price: '$0.003' }} }}",
            upstream.address
        ),
    );
    let rpc_url = turnpike.rpc_url.clone().unwrap();
    let paid = |charged: &str, left: u64| (200, charged.to_owned(), Some(left));

    // Six calls: a pack of four, and half of another.
    let calls = pay(place.path(), &turnpike, "/v1/quote", "6");
    assert_eq!(calls[..4], [paid("3000", 3), paid("0", 2), paid("0", 1), paid("0", 0)]);
    assert_eq!(calls[4..], [paid("3000", 3), paid("0", 2)]);
    // What is left is spent by the next run, from a file that only its owner can read.
    let kept = place.path().join("turnpike-wallet.passes.json");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&kept).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(pay(place.path(), &turnpike, "/v1/quote", "1"), [paid("0", 1)]);
    // An answer that is an error takes no call.
    assert_eq!(pay(place.path(), &turnpike, "/v1/broken", "1"), [(503, "0".to_owned(), None)]);

    // The operator sees both, none of their tokens, and ends the one that is open: the client buys again.
    let admin = format!("http://{}", turnpike.admin);
    let listed = run(place.path(), &["passes", "--admin", &admin, "--json"]).remove(0);
    let rows = listed["passes"].as_array().unwrap();
    let states: Vec<_> = rows.iter().map(|row| (row["state"].as_str().unwrap(), row["callsLeft"].as_u64())).collect();
    assert_eq!((states, listed["total"].as_u64()), (vec![("open", Some(1)), ("spent", Some(0))], Some(2)));
    let token = serde_json::from_slice::<Value>(&std::fs::read(&kept).unwrap()).unwrap()[0]["pass"].clone();
    assert!(!listed.to_string().contains(token.as_str().unwrap()));
    let name = rows[0]["pass"].as_str().unwrap();
    let revoked = run(place.path(), &["passes", "revoke", name, "--admin", &admin, "--json"]).remove(0);
    assert_eq!((revoked["state"].as_str(), revoked["callsLeft"].as_u64()), (Some("revoked"), Some(1)));
    assert_eq!(pay(place.path(), &turnpike, "/v1/quote", "1"), [paid("3000", 3)]);
    let table = Command::new(BINARY).args(["passes", "--admin", &admin]).output().unwrap();
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(table.contains("revoked") && table.contains("3 of 3 passes"), "{table}");
    let unknown = Command::new(BINARY).args(["passes", "revoke", &"0".repeat(64), "--admin", &admin]).output().unwrap();
    assert_eq!(unknown.status.code(), Some(1));

    // Metrics and money.
    let (_, metrics) = turnpike.admin(Method::GET, "/metrics").await;
    for line in [
        "turnpike_passes_sold_total{route=\"/v1/*\"} 3",
        "turnpike_pass_calls_total{route=\"/v1/*\"} 5",
        "turnpike_passes 3",
        "turnpike_refusals_total{reason=\"call_pack_revoked\"} 1",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} is not in\n{metrics}");
    }
    assert!(!turnpike.process.said().contains(token.as_str().unwrap()), "a pass is in the log");
    turnpike.settle().await;
    assert_eq!(balance(&rpc_url, &pay_to).await, 9000);
}
