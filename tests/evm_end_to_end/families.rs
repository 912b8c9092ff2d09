//! One merchant on a Solana network and an EVM network: both are offered for the same route, either is paid by its
//! family's clients, and what is at risk is one sum.

use std::process::Command;

use serde_json::{Value, json};
use turnpike::amount::Amount;
use turnpike::client::http::Request;

use super::client::Payer;
use super::node::Node;
use super::support::{BINARY, Chain, address, balance, client, directory, keygen, project, rpc, wallet};
use super::world::{FUNDS, Facilitator, Shop, evm_shares, with_both};

with_both!(solana_and_evm_are_paid_side_by_side);

const SOLANA_DEVNET: &str = "solana:EtWTRABZaYq6iMfeYKouRu166VU2xqa1";
const BASE_SEPOLIA: &str = "eip155:84532";
const ROUTES: &str = "
  - { path: /quote, price: '$0.001' }
  - { path: /usage, price: '$0.001', metering: { header: X-Cost }, schemes: [upto, batch-settlement] }";

/// The networks and schemes of a 402.
fn offers(answer: &Value) -> Vec<(&str, &str)> {
    let accepts = answer["required"]["accepts"].as_array().unwrap();
    accepts.iter().map(|offer| (offer["network"].as_str().unwrap(), offer["scheme"].as_str().unwrap())).collect()
}

async fn exposure(shop: &Shop) -> Value {
    let (status, body) = shop.turnpike.admin(http::Method::GET, "/api/channels").await;
    assert_eq!(status, 200, "{body}");
    serde_json::from_str::<Value>(&body).unwrap()["exposure"].clone()
}

async fn solana_and_evm_are_paid_side_by_side(facilitator: Facilitator) {
    // The Solana side: a chain, the merchant's key with gas, and two payers.
    let (chain, place) = (Chain::start(), directory());
    let (signer, group) = keygen(place.path());
    let (solana_pay_to, solana_payer) = (address(&wallet(51)), wallet(50));
    rpc(&chain.url, "requestAirdrop", json!([group, 10_000_000_000_u64])).await;
    rpc(&chain.url, "sandbox_mintTo", json!([solana_pay_to, 0])).await;
    rpc(&chain.url, "sandbox_mintTo", json!([address(&solana_payer), FUNDS])).await;
    let on_balance = client(&chain.url, 2, FUNDS, 5_000).await;

    let payer = Payer::new(1);
    let solana = format!("{{ network: solana-devnet, pay_to: {solana_pay_to}, rpc_url: '{}' }}", chain.url);
    let signer = format!("{signer}{}", evm_shares(&place));
    let mut shop = Shop::open_beside(&solana, &signer, "", place, Node::start(&[&payer], false), facilitator, ROUTES);
    let mut evm = shop.client(&payer, &json!({ "deposit": "5000" }));

    let quote = evm.ask(json!({ "do": "unpaid", "url": "/quote" }));
    assert_eq!(offers(&quote), [(SOLANA_DEVNET, "batch-settlement"), (BASE_SEPOLIA, "batch-settlement")]);
    let usage = evm.ask(json!({ "do": "unpaid", "url": "/usage" }));
    assert!(offers(&usage).contains(&(SOLANA_DEVNET, "upto")), "{usage}");
    assert!(offers(&usage).contains(&(BASE_SEPOLIA, "batch-settlement")), "{usage}");

    // From balances, until they are claimed: both count.
    evm.pay("/quote");
    // Without its state it is corrected, though Solana's offer of the same scheme comes before its own.
    evm.ask(json!({ "do": "forget" }));
    evm.pay("/quote");
    assert_eq!(exposure(&shop).await, "2000");
    let paid = on_balance.call(&Request::get(shop.turnpike.url("/quote"))).await.unwrap();
    assert_eq!((paid.response.status(), paid.charged), (200, Amount::from(1000_u64)));
    assert_eq!(exposure(&shop).await, "3000");

    // The Solana reference client, which knows `upto`: paid when it is answered.
    let key: String = solana_payer.to_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    let run = Command::new("node")
        .arg(project("tests/interop/pay.mjs"))
        .args([&shop.turnpike.url("/usage").to_string(), &chain.url, &key, "2"])
        .output()
        .unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    for line in String::from_utf8(run.stdout).unwrap().lines() {
        let call: Value = serde_json::from_str(line).unwrap();
        assert_eq!(
            (call["status"].as_u64(), call["settlement"]["amount"].as_str()),
            (Some(200), Some("300")),
            "{call}"
        );
    }
    assert_eq!(balance(&chain.url, &solana_pay_to).await, 600);
    assert_eq!(balance(&chain.url, &address(&solana_payer)).await, FUNDS - 600);

    shop.settle().await;
    assert_eq!(exposure(&shop).await, "0");
    assert_eq!(balance(&chain.url, &solana_pay_to).await, 1600);
    // The reference client asks the first offer of the scheme for it, whatever its network: here that is its own.
    assert_eq!(evm.refund("/usage", None)["amount"], "3000");
    assert_eq!(shop.balances(payer.address()).await, [FUNDS - 2000, 2000, 0]);
    is_recorded(&mut shop);
}

/// The audit record of it all, once it is stopped: intact, signed by the keys of both families, and every charge in it.
fn is_recorded(shop: &mut Shop) {
    shop.turnpike.process.signal("-TERM");
    assert!(shop.turnpike.process.child.wait().unwrap().success());
    let audit = |args: &[&str]| {
        let output = Command::new(BINARY).arg("audit").args(args).current_dir(shop.place.path()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let report: Value = serde_json::from_str(&audit(&["verify", "--json"])).unwrap();
    assert_eq!((&report["checkpoints"], &report["otherKeys"]), (&json!(2), &json!({})), "{report}");
    let exported = audit(&["export", "--format", "jsonl"]);
    let entries: Vec<Value> = exported.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let charged = |network: &str, kind: &str, step: Option<&str>| -> u64 {
        let of = entries.iter().filter(|entry| entry["network"] == network && entry["kind"] == kind);
        let of = of.filter(|entry| step.is_none_or(|step| entry["step"] == step));
        of.map(|entry| entry["amount"].as_str().unwrap().parse::<u64>().unwrap()).sum()
    };
    assert_eq!(charged(BASE_SEPOLIA, "charge", None), 2000);
    assert_eq!(charged(SOLANA_DEVNET, "charge", None), 1000);
    assert_eq!(charged(SOLANA_DEVNET, "metered", Some("charged")), 600);
    for network in [BASE_SEPOLIA, SOLANA_DEVNET] {
        assert_eq!(charged(network, "claimed", None), charged(network, "charge", None), "{network}");
    }
    for what in ["claim_batch", "refund", "claim", "distribute", "open", "voucher"] {
        let asked = entries.iter().find(|entry| entry["kind"] == "signing_request" && entry["what"] == what);
        let asked = &asked.unwrap_or_else(|| panic!("{what} was signed"))["seq"];
        let answer = entries.iter().find(|entry| entry["kind"] == "signing_answer" && entry["request"] == *asked);
        assert_eq!(answer.unwrap()["outcome"], "signed", "{what}");
    }
}
