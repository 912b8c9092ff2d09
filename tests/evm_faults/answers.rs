//! A facilitator that answers late, fails, hangs up or dies, before and after it has sent what it was asked for.

use super::world::{EAGER, Setup, World, until};
use serde_json::{Value, json};

/// The proxy waits for no settlement longer than this.
const TIMEOUT_SECONDS: u32 = 1;
const LATE_MS: u64 = 2_500;
/// (when, what): the rules of `facilitator.mjs`.
const FAULTS: [(&str, &str); 11] = [
    ("before", "wait"),
    ("after", "wait"),
    ("before", "error"),
    ("sent", "error"),
    ("after", "error"),
    ("before", "hangup"),
    ("after", "hangup"),
    ("before", "exit"),
    ("sent", "exit"),
    ("after", "exit"),
    ("answered", "exit"),
];

fn rule(kind: &str, (when, what): (&str, &str)) -> Value {
    let ms = if what == "wait" { LATE_MS } else { 0 };
    json!([{ "kind": kind, "when": when, "do": what, "ms": ms, "count": 1 }])
}

fn open() -> World {
    World::open(&Setup {
        local: false,
        block_seconds: None,
        settle_timeout_seconds: TIMEOUT_SECONDS,
        settlement: EAGER,
    })
}

/// The fault happens, and a facilitator that has died is started again in its place.
async fn happens(world: &mut World, fault: (&str, &str)) {
    if fault.1 == "exit" {
        world.facilitator().ends().await;
        world.facilitator().restart();
    } else {
        world.facilitator().misbehaves().await;
    }
}

async fn settlement_survives(kind: &str) {
    let mut world = open();
    world.pay("/quote");
    world.is_settled().await;
    for fault in FAULTS {
        let (claims, payouts) = (world.claimed().await.0, world.paid_out().await.0);
        world.facilitator().misbehave(rule(kind, fault)).await;
        world.pay("/quote");
        world.demand();
        happens(&mut world, fault).await;
        world.is_settled().await;
        assert_eq!(world.claimed().await.0, claims + 1, "{kind} {fault:?}");
        assert_eq!(world.paid_out().await.0, payouts + 1, "{kind} {fault:?}");
        eprintln!("{kind} {fault:?}: completed once");
    }
    world.tie_out().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn claims() {
    settlement_survives("claim").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn payouts() {
    settlement_survives("settle").await;
}

/// Asks until the client has what it wants.
async fn pay_until_charged(world: &mut World) {
    until("a payment to succeed", async || {
        let url = world.url("/quote");
        let answer = world.payer.ask(&json!({ "do": "pay", "url": url }));
        answer["error"].is_null() && world.took(&answer)
    })
    .await;
}

async fn refund_until_returned(world: &mut World) {
    until("the refund", async || {
        let (_, deposited) = world.deposited().await;
        if world.refunded().await.1 == deposited - world.told {
            return true;
        }
        let url = world.url("/quote");
        let _refused = world.payer.ask(&json!({ "do": "refund", "url": url }));
        false
    })
    .await;
}

/// Each fault strikes a deposit and then the refund of what is left of it.
async fn channels_survive(kind: &str) {
    let mut world = open();
    for (round, fault) in (1..).zip(FAULTS) {
        if kind == "deposit" {
            world.facilitator().misbehave(rule(kind, fault)).await;
        } else {
            // It may not know what became of the refund before.
            world.payer.ask(&json!({ "do": "forget" }));
        }
        let url = world.url("/quote");
        let answer = world.payer.ask(&json!({ "do": "pay", "url": url }));
        let at_once = answer["error"].is_null() && world.took(&answer);
        if kind == "deposit" {
            happens(&mut world, fault).await;
        }
        // A channel whose refund is not known to be over takes no payments meanwhile.
        if !at_once {
            pay_until_charged(&mut world).await;
        }
        if kind == "refund" {
            world.facilitator().misbehave(rule(kind, fault)).await;
            let url = world.url("/quote");
            let _perhaps = world.payer.ask(&json!({ "do": "refund", "url": url }));
            happens(&mut world, fault).await;
        }
        refund_until_returned(&mut world).await;
        world.is_settled().await;
        world.ties_out().await;
        let (deposits, refunds) = (world.deposited().await, world.refunded().await);
        assert_eq!(refunds.0, round, "what is left goes back once");
        eprintln!("{kind} {fault:?}: charged at once: {at_once}; so far {deposits:?} deposited, {refunds:?} refunded");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn deposits() {
    channels_survive("deposit").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn refunds() {
    channels_survive("refund").await;
}
