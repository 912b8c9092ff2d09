//! The reference client (npm's `@x402/fetch` with `@x402/svm`, scheme `upto`), unchanged but for its RPC's address, and
//! its extension `payment-identifier` (`@x402/extensions`).

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

/// Runs a script of `tests/interop` with the payer's key; one JSON object for each answer.
fn run(script: &str, turnpike: &Turnpike, path: &str, more: &[&str]) -> Vec<Value> {
    let key: String = wallet(50).to_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    let run = Command::new("node")
        .arg(project("tests/interop").join(script))
        .args([turnpike.url(path).to_string().as_str(), turnpike.rpc_url.as_deref().unwrap(), &key])
        .args(more)
        .output()
        .unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    String::from_utf8(run.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Installs what the scripts need, once: tests of one process may ask for it at the same time.
fn install() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        // The last of what was added: a folder from before it is brought up to date.
        if project("tests/interop/node_modules/x402-fetch").exists() {
            return;
        }
        let installed = Command::new("npm")
            .args(["ci", "--no-audit", "--no-fund", "--silent", "--prefix"])
            .arg(project("tests/interop"))
            .status()
            .unwrap();
        assert!(installed.success(), "npm ci in tests/interop failed");
    });
}

/// A metered shop on a sandbox; its proxy, and the sandbox's address.
async fn shop(place: &std::path::Path, upstream: &Upstream) -> (Turnpike, String) {
    let pay_to = address(&wallet(51));
    let turnpike = Turnpike::serve(
        place,
        &format!(
            "upstream: http://{}\nnetwork: sandbox\nsandbox: {{ rpc_listen: '127.0.0.1:0' }}\npay_to: {pay_to}\n\
             routes:\n  - {{ path: /v1/*, price: '$0.01', metering: {{ header: X-Usage }} }}",
            upstream.address
        ),
    );
    let rpc_url = turnpike.rpc_url.clone().unwrap();
    super::support::rpc(&rpc_url, "sandbox_mintTo", serde_json::json!([address(&wallet(50)), FUNDS])).await;
    (turnpike, rpc_url)
}

/// It takes our offer of the extension, and finds its answer again by the id of its own making.
#[tokio::test]
async fn the_reference_extension_gets_a_lost_answer_again() {
    install();
    let (upstream, place) = (upstream(), directory());
    let (turnpike, rpc_url) = shop(place.path(), &upstream).await;
    let answers = run("replay.mjs", &turnpike, "/v1/render", &[]);
    let [first, again, other] = answers.as_slice() else { panic!("{answers:?}") };
    assert_eq!(first["valid"]["valid"], true, "by the reference's own check: {first}");
    assert_eq!((first["status"].as_u64(), &first["replay"]), (Some(200), &Value::Null), "{first}");
    assert_eq!((again["status"].as_u64(), again["replay"].as_str()), (Some(200), Some("true")), "{again}");
    assert_eq!((&again["body"], &again["settlement"]), (&first["body"], &first["settlement"]));
    assert_eq!(first["settlement"]["amount"], "4200");
    assert_eq!(other["status"], 409, "{other}");
    assert_eq!(balance(&rpc_url, &address(&wallet(51))).await, 4200, "paid once");
}

#[tokio::test]
async fn the_reference_client_pays_a_metered_route() {
    install();
    let (upstream, place) = (upstream(), directory());
    let (turnpike, rpc_url) = shop(place.path(), &upstream).await;
    let (payer, pay_to) = (address(&wallet(50)), address(&wallet(51)));

    let calls = run("pay.mjs", &turnpike, "/v1/render", &["10"]);
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
    let failed = run("pay.mjs", &turnpike, "/v1/broken", &["2"]);
    for call in &failed {
        assert_eq!(call["status"], 503, "{call}");
    }
    assert_eq!(balance(&rpc_url, &pay_to).await, 42_000);
    assert_eq!(balance(&rpc_url, &payer).await, FUNDS - 42_000);
}
