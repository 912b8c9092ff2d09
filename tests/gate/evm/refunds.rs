//! Refunds on EVM networks: all that is left, or a part, whatever the facilitator says of it.

use std::sync::Arc;

use http::StatusCode;
use serde_json::json;
use tokio::sync::Semaphore;
use turnpike::facilitator::FacilitatorError;
use turnpike::layer::Verdict;
use turnpike::x402::Reason;

use super::doubles::{Client, EvmHouse, Goes, refused, unavailable, unknown};
use crate::doubles::{CEILING, PRICE};
use crate::upstream::{Answer, Behaviour};

/// A channel of 50000 of which 4200 are charged by a voucher of 10000.
async fn house() -> (EvmHouse, Client) {
    let (house, client) = (EvmHouse::new().await, Client::new(7));
    house.facilitator.open(&client.terms, 50_000);
    house.site.answers(200, &[("x-cost", "0.0042")]);
    let answer = house.site.pay("/batch/metered", &client.pays(CEILING)).await.unwrap();
    assert_eq!(answer.status, StatusCode::OK);
    house.site.answers(200, &[]);
    house.facilitator.calls.lock().clear();
    (house, client)
}

async fn refund(house: &EvmHouse, client: &Client, cumulative: u64, amount: Option<u64>) -> Answer {
    house.site.pay("/batch", &client.refund(cumulative, amount)).await.unwrap()
}

fn assert_refused(answer: &Answer, reason: Reason) {
    assert_eq!((answer.status, answer.error().as_str()), (StatusCode::PAYMENT_REQUIRED, reason.as_str()));
}

#[tokio::test]
async fn all_that_is_left_goes_back_and_what_was_charged_is_claimed() {
    let (house, client) = house().await;
    let answer = refund(&house, &client, 4_200, None).await;
    assert_eq!((answer.status, answer.verdict.clone()), (StatusCode::OK, Verdict::Refunded));
    let settlement = answer.settlement().unwrap();
    assert_eq!((settlement.success, settlement.amount.as_deref()), (true, Some("45800")));
    assert_eq!(settlement.extra["channelState"]["balance"], "4200");
    assert_eq!(settlement.extra["channelState"]["refundNonce"], "1");
    assert_eq!(*house.facilitator.calls.lock(), ["verify refund", "settle refund 45800"]);
    let asked = house.facilitator.asked.lock().last().unwrap().payload["payload"].clone();
    assert_eq!((&asked["refundNonce"], &asked["claims"][0]["totalClaimed"]), (&json!("0"), &json!("4200")));
    assert_eq!(asked["claims"][0]["voucher"]["maxClaimableAmount"], "10000");
    assert!(asked["refundAuthorizerSignature"].is_string() && asked["claimAuthorizerSignature"].is_string());
    let signed = house.authorizer.refunds.lock()[0].clone();
    assert_eq!((signed.charged.get(), signed.amount.get(), signed.on_chain.refund_nonce), (4_200, 45_800, 0));
    assert_eq!(house.facilitator.channel(&client.terms).claimed, 4_200);
    assert_eq!(house.site.calls(), 1, "the upstream sees nothing of it");

    // Asked again: it is done. The channel lives on, empty, until it is filled.
    let again = refund(&house, &client, 4_200, None).await;
    assert_eq!(again.settlement().unwrap().transaction, settlement.transaction);
    assert_eq!(house.facilitator.count("settle refund"), 1);
    assert_refused(
        &house.site.pay("/batch", &client.pays(5_200)).await.unwrap(),
        Reason::EvmBatchCumulativeExceedsBalance,
    );
    let filled = house.site.pay("/batch", &client.deposits(20_000, 5_200, 9)).await.unwrap();
    assert_eq!(filled.settlement().unwrap().extra["channelState"]["balance"], "24200");
}

#[tokio::test]
async fn a_part_goes_back_and_the_channel_goes_on() {
    let (house, client) = house().await;
    let answer = refund(&house, &client, 4_200, Some(5_000)).await;
    assert_eq!(answer.settlement().unwrap().amount.as_deref(), Some("5000"));
    assert_eq!(house.site.pay("/batch", &client.pays(5_200)).await.unwrap().status, StatusCode::OK);
    let answer = refund(&house, &client, 5_200, Some(1_000_000)).await;
    assert_eq!(answer.settlement().unwrap().amount.as_deref(), Some("39800"), "no more than is left");
    assert_eq!(
        *house.facilitator.calls.lock(),
        ["verify refund", "settle refund 5000", "verify refund", "settle refund 39800"]
    );
}

#[tokio::test]
async fn nothing_left_is_nothing_to_give_back() {
    let (house, client) = (EvmHouse::new().await, Client::new(7));
    assert_refused(&refund(&house, &client, 0, None).await, Reason::EvmBatchChannelNotFound);
    house.facilitator.open(&client.terms, 1_000);
    assert_eq!(house.site.pay("/batch", &client.pays(PRICE)).await.unwrap().status, StatusCode::OK);
    assert_refused(&refund(&house, &client, PRICE, None).await, Reason::EvmBatchRefundNoBalance);
    assert_eq!((house.facilitator.count("settle"), house.authorizer.refunds.lock().len()), (0, 0));
}

#[tokio::test]
async fn a_channel_of_which_nothing_was_used_goes_back_whole() {
    let (house, client) = (EvmHouse::new().await, Client::new(7));
    house.facilitator.open(&client.terms, 50_000);
    let answer = refund(&house, &client, 0, None).await;
    assert_eq!(answer.settlement().unwrap().amount.as_deref(), Some("50000"));
    assert!(house.authorizer.refunds.lock()[0].voucher.is_none(), "there is nothing to claim");
}

#[tokio::test]
async fn a_refund_over_anything_but_what_was_charged_is_corrected() {
    let (house, client) = house().await;
    for cumulative in [0, 4_199, CEILING] {
        let answer = refund(&house, &client, cumulative, None).await;
        assert_refused(&answer, Reason::EvmBatchCumulativeAmountMismatch);
        let extra = &answer.required().unwrap().accepts[0].extra;
        assert_eq!(extra["channelState"]["chargedCumulativeAmount"], "4200");
        assert!(answer.settlement().is_none());
    }
    let mut forged = client.refund(4_200, None);
    forged["voucher"]["signature"] = Client::new(8).voucher(4_200)["signature"].clone();
    assert_refused(&house.site.pay("/batch", &forged).await.unwrap(), Reason::EvmBatchVoucherSignature);
    assert_eq!(house.facilitator.calls.lock().len(), 0);
}

#[tokio::test]
async fn a_refund_that_is_not_made_leaves_the_channel_in_service() {
    for (goes, status, reason) in [
        (refused("invalid_batch_settlement_evm_refund_transaction_failed"), 402, Reason::EvmBatchRefundTransaction),
        (unavailable(), 503, Reason::ChainUnavailable),
    ] {
        let (house, client) = house().await;
        house.facilitator.goes("settle", Goes::Before(goes));
        let answer = refund(&house, &client, 4_200, None).await;
        assert_eq!((answer.status.as_u16(), answer.json()["error"].as_str()), (status, Some(reason.as_str())));
        assert!(!answer.settlement().unwrap().success);
        assert_eq!(house.site.pay("/batch", &client.pays(5_200)).await.unwrap().status, StatusCode::OK);
    }
    let (house, client) = house().await;
    *house.authorizer.fails.lock() =
        Some(FacilitatorError::Refused { reason: Reason::EvmBatchRefundAmount, detail: "a rule of ours".to_owned() });
    let answer = refund(&house, &client, 4_200, None).await;
    assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(!String::from_utf8_lossy(&answer.body).contains("a rule of ours"));
    assert_eq!(house.facilitator.count("settle"), 0);
    assert_eq!(house.site.pay("/batch", &client.pays(5_200)).await.unwrap().status, StatusCode::OK);
}

#[tokio::test]
async fn a_refund_of_unknown_fate_is_followed_to_its_end() {
    for amount in [None, Some(5_000)] {
        let (house, client) = house().await;
        house.facilitator.goes("settle", Goes::After(unknown(Some("0xaa"))));
        let answer = refund(&house, &client, 4_200, amount).await;
        assert_eq!(
            (answer.status, answer.json()["error"].as_str()),
            (StatusCode::INTERNAL_SERVER_ERROR, Some(Reason::SettlementPending.as_str()))
        );
        assert_eq!(answer.settlement().unwrap().transaction, "0xaa");
        house.gate.settled().await;
        let record = house.record(&client).unwrap();
        assert_eq!((record.closed, record.on_chain.refund_nonce, record.on_chain.claimed.get()), (false, 1, 4_200));
        assert_eq!(house.facilitator.count("settle refund"), 1, "it is not asked for again");
    }
    // A channel that was never charged, and is gone.
    let (house, client) = (EvmHouse::new().await, Client::new(7));
    house.facilitator.open(&client.terms, 50_000);
    house.facilitator.goes("settle", Goes::After(unknown(None)));
    assert_eq!(refund(&house, &client, 0, None).await.status, StatusCode::INTERNAL_SERVER_ERROR);
    house.gate.settled().await;
    let record = house.record(&client).unwrap();
    assert_eq!((record.closed, record.on_chain.balance.get()), (false, 0));
}

#[tokio::test]
async fn a_channel_takes_no_payments_while_its_refund_may_land() {
    let (house, client) = house().await;
    let lets = Arc::new(Semaphore::new(0));
    *house.facilitator.lets.lock() = Some(Arc::clone(&lets));
    let (site, payload) = (house.site.clone(), client.refund(4_200, None));
    let gone = tokio::spawn(async move { site.pay("/batch", &payload).await.map(|_| ()).map_err(|_| ()) });
    while house.facilitator.count("settle") == 0 {
        tokio::task::yield_now().await;
    }
    gone.abort();
    let _ = gone.await;
    assert!(house.record(&client).unwrap().closed, "durably");
    assert_refused(&house.site.pay("/batch", &client.pays(5_200)).await.unwrap(), Reason::EvmBatchChannelBusy);
    assert_refused(&refund(&house, &client, 4_200, None).await, Reason::EvmBatchChannelBusy);
    assert_refused(
        &house.site.pay("/batch", &client.deposits(20_000, 5_200, 9)).await.unwrap(),
        Reason::EvmBatchChannelBusy,
    );
    lets.add_permits(1);
    house.gate.settled().await;
    assert_eq!(house.facilitator.channel(&client.terms).balance, 4_200, "it went on without its client");
    assert!(!house.record(&client).unwrap().closed);
}

#[tokio::test]
async fn a_refund_waits_for_the_request_that_is_being_served() {
    let (house, client) = house().await;
    let let_go = Arc::new(Semaphore::new(0));
    house.site.behave(Behaviour::Waits(Arc::clone(&let_go)));
    let (site, payload) = (house.site.clone(), client.pays(5_200));
    let served = tokio::spawn(async move { site.pay("/batch", &payload).await.map_err(|error| error.to_string()) });
    while house.site.calls() < 2 {
        tokio::task::yield_now().await;
    }
    let (site, payload) = (house.site.clone(), client.refund(4_200, None));
    let refund = tokio::spawn(async move { site.pay("/batch", &payload).await.map_err(|error| error.to_string()) });
    while house.facilitator.count("verify refund") == 0 {
        tokio::task::yield_now().await;
    }
    let_go.add_permits(1);
    assert_eq!(served.await.unwrap().unwrap().status, StatusCode::OK);
    assert_refused(&refund.await.unwrap().unwrap(), Reason::EvmBatchCumulativeAmountMismatch);
    assert_eq!((house.charged(&client), house.facilitator.count("settle refund")), (Some(5_200), 0));
}
