//! What the sandbox does when it is told to go wrong.

use std::time::Duration;

use serde_json::json;
use turnpike::chain::sandbox::{Faults, InjectedFailure, RpcFault};
use turnpike::chain::{Chain, ChainError, Confirmation};
use turnpike::scheme::svm::program;
use turnpike::x402::key::Signature;

use crate::world::{World, custom, public};

fn status(w: &World, id: &Signature) -> serde_json::Value {
    w.chain.call("getSignatureStatuses", &json!([[id]])).unwrap()["value"][0].clone()
}

#[test]
fn dropped_transactions_are_answered_and_never_run_until_sent_again() {
    let w = World::new();
    w.chain.set_faults(Faults { drop_next: 1, ..Faults::default() });
    let memo = w.transaction(&[program::memo("x")], &[]);
    let id = w.submit(&memo).unwrap();
    assert!(status(&w, &id).is_null());
    assert_eq!(w.submit(&memo), Ok(id));
    assert_eq!(status(&w, &id)["err"], json!(null));
}

#[test]
fn a_lost_answer_was_executed() {
    let mut w = World::new();
    let opened = w.open();
    w.chain.set_faults(Faults { lose_answers: 1, ..Faults::default() });
    assert_eq!(w.settle(&opened, 10), Err(json!(-32603)));
    assert_eq!(w.state(&opened).unwrap().settled, 10);
}

#[test]
fn held_transactions_run_when_released_unless_they_have_expired() {
    let mut w = World::new();
    let opened = w.open();
    w.chain.set_faults(Faults { hold: true, ..Faults::default() });
    w.settle(&opened, 10).unwrap();
    assert_eq!(w.state(&opened).unwrap().settled, 0);
    assert_eq!(w.chain.release_held(), 1);
    assert_eq!(w.state(&opened).unwrap().settled, 10);
    w.settle(&opened, 20).unwrap();
    w.chain.expire_blockhashes();
    assert_eq!(w.chain.release_held(), 0);
    assert_eq!(w.state(&opened).unwrap().settled, 10);
}

#[test]
fn expired_blockhashes_are_not_found_and_new_ones_are_others() {
    let w = World::new();
    let before = w.blockhash();
    let memo = w.transaction(&[program::memo("x")], &[]);
    w.chain.expire_blockhashes();
    assert_eq!(w.submit(&memo), Err(json!("BlockhashNotFound")));
    assert_ne!(w.blockhash(), before);
    w.send(&[program::memo("x")], &[]).unwrap();
}

#[test]
fn an_injected_failure_lands_and_costs_its_fee() {
    let mut w = World::new();
    let opened = w.open();
    let failure = InjectedFailure { count: 1, instruction: 1, code: 234 };
    w.chain.set_faults(Faults { fail_next: Some(failure), ..Faults::default() });
    let before = w.chain.lamports(&public(&w.operator));
    let id = w.settle(&opened, 10).unwrap();
    assert_eq!(status(&w, &id)["err"], custom(1, 234));
    assert_eq!(w.state(&opened).unwrap().settled, 0);
    assert_eq!(w.chain.lamports(&public(&w.operator)), before - 10_000);
    w.settle(&opened, 10).unwrap();
    assert_eq!(w.state(&opened).unwrap().settled, 10);
}

#[test]
fn a_method_can_be_told_to_answer_with_an_error() {
    let w = World::new();
    let fault = RpcFault { method: "getSlot".into(), count: 2, code: -32005, message: "Node is behind".into() };
    let faults = serde_json::to_value(Faults { rpc_errors: vec![fault], ..Faults::default() }).unwrap();
    w.chain.call("sandbox_setFaults", &json!([faults])).unwrap();
    for _ in 0..2 {
        assert_eq!(w.chain.call("getSlot", &json!([])).unwrap_err().code, -32005);
    }
    w.chain.call("getSlot", &json!([])).unwrap();
    let misspelt = w.chain.call("sandbox_setFaults", &json!([{ "dropNxt": 1 }])).unwrap_err();
    assert_eq!(misspelt.code, -32602);
    assert!(misspelt.message.contains("dropNxt"), "{misspelt}");
}

#[tokio::test]
async fn the_port_sends_again_until_a_transaction_lands_fails_or_expires() {
    let mut w = World::new();
    let opened = w.open();
    let deadline = Duration::from_secs(5);
    let chain = w.chain.clone();
    let hash = chain.latest_blockhash().await.unwrap();

    w.chain.set_faults(Faults { drop_next: 2, ..Faults::default() });
    let settle =
        w.transaction(&[w.voucher(&opened.accounts.channel, 9, 0), program::settle(opened.accounts.channel)], &[]);
    chain.send(&settle.encode()).await.unwrap();
    let outcome = chain.confirm(&settle.encode(), &settle.id(), hash.last_valid_block_height, deadline).await;
    assert_eq!(outcome, Ok(Confirmation::Confirmed { slot: w.chain.current_slot() }));
    assert_eq!(w.state(&opened).unwrap().settled, 9);

    let lost = w.transaction(&[program::memo("x")], &[]);
    w.chain.set_faults(Faults { drop_next: u32::MAX, ..Faults::default() });
    chain.send(&lost.encode()).await.unwrap();
    w.chain.advance_slots(151);
    let outcome = chain.confirm(&lost.encode(), &lost.id(), hash.last_valid_block_height, deadline).await;
    assert_eq!(outcome, Ok(Confirmation::Expired));

    let fresh = chain.latest_blockhash().await.unwrap();
    let stuck = w.transaction(&[program::memo("y")], &[]);
    let outcome = chain.confirm(&stuck.encode(), &stuck.id(), fresh.last_valid_block_height, Duration::ZERO).await;
    assert!(matches!(outcome, Err(ChainError::Unavailable(_))), "{outcome:?}");

    w.chain.set_faults(Faults::default());
    let outcome = chain.send(&settle.encode()).await;
    assert!(matches!(outcome, Err(ChainError::Refused(ref text)) if text.contains("BlockhashNotFound")), "{outcome:?}");
    let found = chain.channels_by(program::PAYER_OFFSET, &public(&w.payer)).await.unwrap();
    assert_eq!(found, vec![(opened.accounts.channel, w.state(&opened).unwrap())]);
}
