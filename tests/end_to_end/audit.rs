//! The audit record of a running Turnpike: told of everything, signed, and in the way of charges that it cannot be told
//! of. That it ties out after kills is part of the test of the kills.

use std::collections::HashMap;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output};

use http::Method;
use serde_json::{Value, json};
use turnpike::client::http::Request;

use super::support::{BINARY, Chain, Process, Turnpike, Upstream, address, client, directory, keygen, rpc, wallet};

/// Runs `turnpike audit`.
pub fn audit(place: &Path, args: &[&str]) -> Output {
    Command::new(BINARY).arg("audit").args(args).current_dir(place).output().unwrap()
}

/// The entries of a record, one JSON object each, up to the room behind them; a last line that is not whole is none yet.
pub fn entries(place: &Path) -> Vec<Value> {
    let mut files: Vec<_> =
        std::fs::read_dir(place.join("turnpike.audit")).unwrap().map(|e| e.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "jsonl"));
    files.sort();
    let text: String = files.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect();
    let text = text.trim_end_matches('\n');
    let last = text.rfind('\n').map_or(0, |end| end + 1);
    let read = |line| serde_json::from_str(line).unwrap();
    text[..last].lines().map(read).chain(serde_json::from_str(&text[last..]).ok()).collect()
}

/// Verifies a record against its ledger and keys; the report.
pub fn verified(place: &Path) -> Value {
    let output = audit(place, &["verify", "turnpike.yaml", "--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// What the record says that each channel was charged.
pub fn charged(place: &Path) -> HashMap<String, u64> {
    let output = audit(place, &["export", "turnpike.yaml", "--format", "jsonl", "--kind", "charge"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut sums: HashMap<String, u64> = HashMap::new();
    for line in String::from_utf8(output.stdout).unwrap().lines() {
        let entry: Value = serde_json::from_str(line).unwrap();
        let text = |name: &str| entry[name].as_str().unwrap().to_owned();
        let sum = sums.entry(text("channel")).or_default();
        *sum += text("amount").parse::<u64>().unwrap();
        assert_eq!(text("total"), sum.to_string(), "each entry's total is the sum of those up to it");
    }
    sums
}

/// A shop whose answers are all the same.
struct Shop {
    chain: Chain,
    place: tempfile::TempDir,
    configuration: String,
}

impl Shop {
    async fn open() -> Self {
        let upstream = Upstream::start(|_, mut stream| {
            let _gone = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok");
        });
        let (chain, place) = (Chain::start(), directory());
        let (signer, group) = keygen(place.path());
        let pay_to = address(&wallet(200));
        rpc(&chain.url, "requestAirdrop", json!([group, 10_000_000_000_u64])).await;
        rpc(&chain.url, "sandbox_mintTo", json!([pay_to, 0])).await;
        let configuration = format!(
            "upstream: http://{}\nnetwork: solana-devnet\nrpc_url: {}\npay_to: {pay_to}\n{signer}\
             routes: [{{ path: /*, price: '$0.001' }}]",
            upstream.address, chain.url
        );
        Self { chain, place, configuration }
    }
}

fn stopped(turnpike: &mut Turnpike) {
    turnpike.process.signal("-TERM");
    assert!(turnpike.process.child.wait().unwrap().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_is_told_signed_and_verified() {
    let shop = Shop::open().await;
    let place = shop.place.path();
    let mut turnpike = Turnpike::serve(place, &shop.configuration);
    let payer = client(&shop.chain.url, 1, 5_000_000, 1_000_000).await;
    for _ in 0..3 {
        assert_eq!(payer.call(&Request::get(turnpike.url("/v1/x"))).await.unwrap().response.status(), 200);
    }
    turnpike.settle().await;
    // While it is written, and after it has stopped.
    assert_eq!(verified(place)["ok"], true);
    let (_, channels) = turnpike.admin(Method::GET, "/api/channels").await;
    stopped(&mut turnpike);
    let report = verified(place);
    for kind in [
        "start",
        "config",
        "deposit",
        "charge",
        "signing_request",
        "signing_answer",
        "settlement",
        "claimed",
        "admin",
        "stop",
        "checkpoint",
    ] {
        assert!(report["kinds"][kind].as_u64() > Some(0), "{kind}: {report}");
    }
    // All but the checkpoint itself is signed for, by the key of the shares.
    assert_eq!(report["unsigned"], 1, "{report}");
    assert_eq!((&report["checkpoints"], &report["otherKeys"]), (&json!(1), &json!({})));
    let channels: Value = serde_json::from_str(&channels).unwrap();
    let sums = charged(place);
    assert_eq!(sums.len(), 1);
    for channel in channels["channels"].as_array().unwrap() {
        assert_eq!(sums[channel["channel"].as_str().unwrap()].to_string(), channel["charged"].as_str().unwrap());
    }
    let entries = entries(place);
    let charge = entries.iter().find(|entry| entry["kind"] == "charge").unwrap();
    assert_eq!((&charge["amount"], &charge["route"]), (&json!("1000"), &json!("/*")));
    assert!(!entries.iter().any(|entry| entry.to_string().contains("passphrase")), "no secret is in it");

    // As CSV: a heading, and a row for each charge.
    let csv = audit(place, &["export", "--kind", "charge", "--payer", &payer.address().to_string()]);
    let csv = String::from_utf8(csv.stdout).unwrap();
    assert_eq!(csv.lines().count(), 4, "{csv}");
    assert!(csv.starts_with("seq,time,kind,network,"), "{csv}");
    let none = audit(place, &["export", "--from", "2099-01-01"]);
    assert_eq!(String::from_utf8(none.stdout).unwrap().lines().count(), 1);
    assert_eq!(audit(place, &["export", "--kind", "charges"]).status.code(), Some(2));
    assert_eq!(audit(place, &["verify", "nowhere.yaml"]).status.code(), Some(2));

    // One byte changed is found and placed, and nothing is exported then; nor does Turnpike go on from it.
    let file = place.join("turnpike.audit/000001.jsonl");
    let text = std::fs::read_to_string(&file).unwrap();
    let at = text.find("\"amount\":\"1000\"").unwrap();
    std::fs::write(&file, text.replacen("\"amount\":\"1000\"", "\"amount\":\"9000\"", 1)).unwrap();
    let line = text[..at].lines().count();
    let broken = audit(place, &["verify"]);
    assert_eq!(broken.status.code(), Some(1));
    let said = String::from_utf8(broken.stderr).unwrap();
    assert!(said.contains(&format!("000001.jsonl, line {line}, entry {line}")), "{said}");
    assert_eq!(audit(place, &["export"]).status.code(), Some(1));
    let serve = Command::new(BINARY).args(["serve", "turnpike.yaml"]).current_dir(place).output().unwrap();
    assert!(!serve.status.success());
    assert!(String::from_utf8(serve.stderr).unwrap().contains("turnpike audit verify"));
    std::fs::write(&file, text).unwrap();
    drop(Turnpike::serve(place, &shop.configuration));
}

/// The record's file may not grow any more: nothing is charged, it is said everywhere, and a restart heals.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_cannot_be_written_stops_new_charges() {
    let shop = Shop::open().await;
    let place = shop.place.path();
    let text = format!(
        "{}\nlisten: 127.0.0.1:0\nadmin: {{ listen: '127.0.0.1:0' }}\nlog: {{ format: json, level: info }}\n",
        shop.configuration
    );
    std::fs::write(place.join("turnpike.yaml"), text).unwrap();
    // A write beyond the limit is an error to be answered, not a signal that ends the process.
    let start = format!("trap '' XFSZ; exec {BINARY} serve turnpike.yaml");
    let process = Process::start(Command::new("sh").args(["-c", &start]).current_dir(place));
    let ready = process.wait_for("turnpike to be ready", |line| {
        let line: Value = serde_json::from_str(line).ok()?;
        (line["message"] == "turnpike is ready").then_some(line)
    });
    let address = |field: &str| ready[field].as_str().unwrap().parse().unwrap();
    let mut turnpike = Turnpike { address: address("listen"), admin: address("admin"), rpc_url: None, process };
    let payer = client(&shop.chain.url, 2, 5_000_000, 1_000_000).await;
    let request = Request::get(turnpike.url("/v1/x"));
    payer.call(&request).await.unwrap();
    assert_eq!(turnpike.admin(Method::GET, "/health/ready").await.0, 200);

    let text = std::fs::read_to_string(place.join("turnpike.audit/000001.jsonl")).unwrap();
    let size = text.trim_end_matches('\n').len();
    let pid = turnpike.process.child.id().to_string();
    // Half a line more fits.
    let limited = Command::new("prlimit").args(["--pid", &pid, &format!("--fsize={}", size + 100)]).status().unwrap();
    assert!(limited.success());
    let refused = payer.call(&request).await;
    assert!(!refused.is_ok_and(|paid| paid.response.status() == 200), "an answer was delivered that is not recorded");
    let (status, why) = turnpike.admin(Method::GET, "/health/ready").await;
    assert!(status == 503 && why.contains("audit: the audit record cannot be written"), "{status} {why}");
    let (_, metrics) = turnpike.admin(Method::GET, "/metrics").await;
    assert!(metrics.contains("turnpike_audit_up 0"), "{metrics}");
    assert!(
        turnpike.process.said().contains("the audit record cannot be written; nothing is charged or signed any more")
    );
    turnpike.process.child.kill().unwrap();
    turnpike.process.child.wait().unwrap();

    let mut turnpike = Turnpike::serve(place, &shop.configuration);
    let request = Request::get(turnpike.url("/v1/x"));
    assert_eq!(payer.call(&request).await.unwrap().response.status(), 200);
    stopped(&mut turnpike);
    let report = verified(place);
    assert_eq!(report["kinds"]["repaired"], 1, "{report}");
    assert_eq!(charged(place).values().sum::<u64>(), 2000);
}
