//! Killed under load, again and again: every charge that a client was told of is there afterwards, none twice, and the
//! settlement that follows pays the merchant exactly what the clients were charged.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::json;
use turnpike::client::http::Request;

use super::support::{Chain, Turnpike, Upstream, address, balance, client, directory, keygen, rpc, wallet};

/// How often the proxy is killed.
const KILLS: u64 = 20;
const PRICE: u64 = 1000;
const PAYERS: u8 = 4;

/// A pseudo-random sequence: the moments differ from each other, and the test can be repeated.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_charge_is_lost_and_none_is_doubled() {
    let upstream = Upstream::start(|_, mut stream| {
        let _gone = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok");
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

    let mut payers = Vec::new();
    for number in 0..PAYERS {
        payers.push(Arc::new(client(&chain.url, 100 + number, 100_000_000, 50_000_000).await));
    }
    // What each client was told that it was charged, by the last total that the server acknowledged.
    let told: Vec<Arc<AtomicU64>> = (0..PAYERS).map(|_| Arc::new(AtomicU64::new(0))).collect();
    let mut moment = 7;
    for _ in 0..KILLS {
        let mut turnpike = Turnpike::serve(place.path(), &configuration);
        let done = Arc::new(AtomicBool::new(false));
        let mut load = Vec::new();
        for (payer, told) in payers.iter().zip(&told) {
            let (payer, told, done) = (Arc::clone(payer), Arc::clone(told), Arc::clone(&done));
            let request = Request::get(turnpike.url("/x"));
            load.push(tokio::spawn(async move {
                while !done.load(Ordering::SeqCst) {
                    match payer.call(&request).await {
                        Ok(paid) => {
                            let total = &paid.settlement.unwrap().extra["channelState"]["chargedCumulativeAmount"];
                            let total: u64 = total.as_str().unwrap().parse().unwrap();
                            let before = told.swap(total, Ordering::SeqCst);
                            assert!(total >= before + PRICE, "a total that fell: {before} then {total}");
                        }
                        // The proxy is gone, or going.
                        Err(_) => tokio::task::yield_now().await,
                    }
                }
            }));
        }
        // Not a wait for something: the moment of the kill is what is random here.
        tokio::time::sleep(Duration::from_millis(50 + next(&mut moment) % 400)).await;
        turnpike.process.child.kill().unwrap();
        turnpike.process.child.wait().unwrap();
        done.store(true, Ordering::SeqCst);
        for task in load {
            task.await.unwrap();
        }
    }

    // One last life, without load: what the ledger holds is at least what clients were told, and at most one call more
    // for each kill that struck between the durable charge and its answer.
    let turnpike = Turnpike::serve(place.path(), &configuration);
    let (_, body) = turnpike.admin(http::Method::GET, "/api/channels").await;
    let channels: serde_json::Value = serde_json::from_str(&body).unwrap();
    let mut charged_in_all = 0;
    for (payer, told) in payers.iter().zip(&told) {
        let mine = channels["channels"].as_array().unwrap().iter().filter(|c| c["payer"] == json!(payer.address()));
        let charged: u64 = mine.map(|c| c["charged"].as_str().unwrap().parse::<u64>().unwrap()).sum();
        let told = told.load(Ordering::SeqCst);
        assert!(told > 0, "no client got through between the kills");
        assert!(charged >= told, "the client was told of {told}, the ledger holds {charged}");
        assert!(charged <= told + KILLS * PRICE, "the client was told of {told}, the ledger holds {charged}");
        charged_in_all += charged;
    }
    let report = turnpike.settle().await;
    assert_eq!(report["failures"], 0, "{report}");
    assert_eq!(balance(&chain.url, &pay_to).await, charged_in_all);

    // Every client goes on by itself, and gets back exactly what it was not charged.
    for payer in &payers {
        let request = Request::get(turnpike.url("/x"));
        let paid = payer.call(&request).await.unwrap();
        assert_eq!(paid.charged.to_u64(), Some(PRICE));
        charged_in_all += PRICE;
        payer.refund(&request).await.unwrap();
    }
    assert_eq!(balance(&chain.url, &pay_to).await, charged_in_all);
    let mut left = 0;
    for payer in &payers {
        left += balance(&chain.url, &payer.address()).await;
    }
    assert_eq!(left + charged_in_all, u64::from(PAYERS) * 100_000_000);
}
