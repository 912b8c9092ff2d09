//! A payer who takes its deposit back without asking: what it owes is claimed long before it can.

use super::support::rpc;
use super::world::{DEPOSIT, Setup, World, until};
use http::Method;
use serde_json::{Value, json};
use turnpike::x402::Reason;

/// Nothing is claimed for its amount or age while the test runs. The watch looks as often as `close_margin` is long.
const ONLY_WITHDRAWALS: &str = "{ interval: 1s, min_amount: '$5', max_age: 10m, close_margin: 2s }";
/// The margin begins a second after the payer's request.
const WITHIN_MARGIN: &str = "{ interval: 1s, min_amount: '$5', max_age: 1s, close_margin: 899s }";
const DELAY_SECONDS: u64 = 15 * 60;

async fn status(world: &World) -> Value {
    let (_, body) = world.turnpike.admin(Method::GET, "/api/channels").await;
    let channels: Value = serde_json::from_str(&body).unwrap();
    channels["channels"][0]["status"].clone()
}

async fn a_withdrawal(local: bool) {
    let setup = Setup { local, block_seconds: None, settle_timeout_seconds: 60, settlement: ONLY_WITHDRAWALS };
    let mut world = World::open(&setup);
    for _ in 0..3 {
        world.pay("/quote");
    }
    let left = DEPOSIT - world.told;
    assert_eq!(world.claimed().await.0, 0, "nothing asks for a claim yet");
    let started = world.payer.ask(&json!({ "do": "initiate_withdraw", "amount": left.to_string() }));
    assert_eq!(started["status"], "success", "{started}");
    world.is_settled().await;
    assert_eq!((world.claimed().await.0, world.paid_out().await.0), (1, 1));
    assert_eq!(status(&world).await, "withdrawing");

    // Until the margin begins the payer has credit, and what it is charged is claimed too.
    world.pay("/quote");
    world.is_settled().await;
    assert_eq!(world.claimed().await.0, 2);

    // In the margin it has none.
    world.turnpike.process.signal("-TERM");
    until("the proxy to end", async || world.turnpike.process.child.try_wait().unwrap().is_some()).await;
    world.serve(WITHIN_MARGIN);
    let url = world.url("/quote");
    let refused = world.payer.ask(&json!({ "do": "pay", "url": url }));
    assert!(!world.took(&refused));
    assert_eq!(refused["required"]["error"], Reason::EvmBatchCumulativeExceedsBalance.as_str(), "{refused}");

    rpc(&world.rpc_url, "evm_increaseTime", json!([DELAY_SECONDS + 1])).await;
    rpc(&world.rpc_url, "anvil_mine", json!([1])).await;
    let over = world.payer.ask(&json!({ "do": "finalize_withdraw" }));
    assert_eq!(over["status"], "success", "{over}");
    world.ties_out().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn with_the_reference_facilitator() {
    a_withdrawal(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn with_our_own_facilitator() {
    a_withdrawal(true).await;
}
