//! The proxy is killed between each two steps of settlement. Started again, it completes the batch by itself, once.

use super::line::Hold;
use super::world::{EAGER, Setup, World, until};
use serde_json::json;

/// Longer than any test: what waits so long never comes.
const NEVER_MS: u64 = 3_600_000;

/// How often something was claimed and paid out.
async fn counts(world: &World) -> (usize, usize) {
    (world.claimed().await.0, world.paid_out().await.0)
}

/// The killed proxy starts again and completes what it had begun: one claim and one payout more than `before`.
async fn completes(world: &mut World, before: (usize, usize), at: &str) {
    world.is_settled().await;
    assert_eq!(counts(world).await, (before.0 + 1, before.1 + 1), "once, killed at: {at}");
    eprintln!("killed at: {at}; completed once");
}

/// Whether a batch of this kind is journalled and not over.
async fn is_open(world: &World, kind: &str) -> bool {
    let (_, body) = world.turnpike.admin(http::Method::GET, "/api/batches").await;
    let batches: serde_json::Value = serde_json::from_str(&body).unwrap();
    batches["batches"].as_array().unwrap().iter().any(|batch| batch["kind"] == kind && batch["state"] == "Signed")
}

/// No block comes while the claim (or, where `then`, the payout) waits for one.
async fn killed_before_mining(world: &mut World, then: bool) {
    let before = counts(world).await;
    world.stop_mining().await;
    world.pay("/quote");
    world.demand();
    until("the claim to be sent", async || world.unmined().await == 1).await;
    if then {
        world.mine_one().await;
        until("the payout to be sent", async || world.claimed().await.0 == before.0 + 1 && world.unmined().await == 1)
            .await;
    }
    world.kill();
    world.serve(EAGER);
    // It cannot know of the first one, and asks again.
    until("it to be sent again", async || world.unmined().await == 2).await;
    world.mine().await;
    completes(world, before, if then { "payout sent, not mined" } else { "claim sent, not mined" }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn settlement_with_the_reference_facilitator() {
    let mut world =
        World::open(&Setup { local: false, block_seconds: None, settle_timeout_seconds: 60, settlement: EAGER });
    world.pay("/quote");
    world.is_settled().await;

    for kind in ["claim", "settle"] {
        // Journalled; nobody is there to be asked.
        let before = counts(&world).await;
        if kind == "claim" {
            world.facilitator().kill();
            world.pay("/quote");
        } else {
            world.facilitator().misbehave(json!([{ "kind": "claim", "when": "answered", "do": "exit" }])).await;
            world.pay("/quote");
            world.demand();
            world.facilitator().ends().await;
        }
        world.demand();
        until("the batch to be journalled", async || is_open(&world, kind).await).await;
        world.kill();
        world.facilitator().restart();
        world.serve(EAGER);
        completes(&mut world, before, &format!("{kind} journalled, nobody asked")).await;

        for when in ["before", "after"] {
            let before = counts(&world).await;
            let rule = json!([{ "kind": kind, "when": when, "do": "wait", "ms": NEVER_MS, "count": 1 }]);
            world.facilitator().misbehave(rule).await;
            world.pay("/quote");
            world.demand();
            world.facilitator().misbehaves().await;
            world.kill();
            world.serve(EAGER);
            let at = if when == "before" { "asked, not sent" } else { "mined, not answered" };
            completes(&mut world, before, &format!("{kind} {at}")).await;
        }
        world.facilitator().misbehave(json!([])).await;
        killed_before_mining(&mut world, kind == "settle").await;
    }

    // The claim is mined and answered, and its channel is not read back.
    let before = counts(&world).await;
    world.facilitator().misbehave(json!([])).await;
    world.line.hold(Hold::Reading);
    world.pay("/quote");
    world.demand();
    until("the claim to be answered", async || {
        let calls = world.facilitator.as_ref().unwrap().calls().await;
        world.line.holds() && calls.iter().any(|call| call["kind"] == "claim" && call["answer"]["success"] == true)
    })
    .await;
    world.kill();
    world.line.open();
    world.serve(EAGER);
    completes(&mut world, before, "claim answered, not read back").await;
    world.tie_out().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn settlement_with_our_own_facilitator() {
    let mut world =
        World::open(&Setup { local: true, block_seconds: None, settle_timeout_seconds: 60, settlement: EAGER });
    world.pay("/quote");
    world.is_settled().await;
    for (kind, after) in [("claim", 0), ("payout", 1)] {
        let holds = [
            (Hold::Sending { after }, "signed, not sent"),
            (Hold::Sent { after }, "sent, not known to be"),
            (Hold::Receipt { after }, "mined, not read"),
        ];
        for (hold, at) in holds {
            let before = counts(&world).await;
            world.line.hold(hold);
            world.pay("/quote");
            world.demand();
            until("the step to be reached", async || world.line.holds()).await;
            world.kill();
            world.line.open();
            world.serve(EAGER);
            completes(&mut world, before, &format!("{kind} {at}")).await;
        }
        killed_before_mining(&mut world, kind == "payout").await;
    }
    world.tie_out().await;
}

/// What of a deposit or a refund is still to come when the proxy is killed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Point {
    Sending,
    Mining,
    Answering,
}

/// Arms a point, has the client ask, kills the proxy there, and starts it again.
async fn killed_while(world: &mut World, kind: &str, command: &str, point: Point) {
    let local = world.facilitator.is_none();
    match point {
        Point::Mining => world.stop_mining().await,
        Point::Sending if local => world.line.hold(Hold::Sending { after: 0 }),
        Point::Answering if local => world.line.hold(Hold::Receipt { after: 0 }),
        Point::Sending | Point::Answering => {
            let when = if point == Point::Sending { "before" } else { "after" };
            let rule = json!([{ "kind": kind, "when": when, "do": "wait", "ms": NEVER_MS, "count": 1 }]);
            world.facilitator().misbehave(rule).await;
        }
    }
    let url = world.url("/quote");
    if kind == "deposit" {
        // It may not know what the refund before has left it.
        world.payer.ask(&json!({ "do": "forget" }));
    }
    world.payer.send(&json!({ "do": command, "url": url }));
    match point {
        Point::Mining => until("it to be sent", async || world.unmined().await == 1).await,
        Point::Sending | Point::Answering if local => {
            until("the step to be reached", async || world.line.holds()).await;
        }
        Point::Sending | Point::Answering => world.facilitator().misbehaves().await,
    }
    world.kill();
    let answer = world.payer.line();
    assert!(answer["error"].is_string(), "the proxy died while the client waited: {answer}");
    world.line.open();
    if point == Point::Mining {
        world.mine().await;
        until("it to be mined", async || world.unmined().await == 0).await;
    }
    world.serve(EAGER);
}

async fn deposits_and_refunds(local: bool) {
    let mut world = World::open(&Setup { local, block_seconds: None, settle_timeout_seconds: 60, settlement: EAGER });
    for point in [Point::Sending, Point::Mining, Point::Answering] {
        // What was not answered was not charged; whether the deposit is there or not, the client goes on.
        killed_while(&mut world, "deposit", "pay", point).await;
        world.pay("/quote");
        world.is_settled().await;
        eprintln!("killed: deposit, {point:?}; {:?} deposits so far", world.deposited().await);
        world.pay("/quote");
        killed_while(&mut world, "refund", "refund", point).await;
        let (_, deposited) = world.deposited().await;
        until("the refund", async || {
            let url = world.url("/quote");
            let answer = world.payer.ask(&json!({ "do": "refund", "url": url }));
            if world.refunded().await.1 == deposited - world.told {
                return true;
            }
            eprintln!("not yet: {}", answer["error"]);
            false
        })
        .await;
        world.is_settled().await;
        world.ties_out().await;
        eprintln!("killed: refund, {point:?}; {:?} refunds so far", world.refunded().await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn deposits_and_refunds_with_the_reference_facilitator() {
    deposits_and_refunds(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn deposits_and_refunds_with_our_own_facilitator() {
    deposits_and_refunds(true).await;
}
