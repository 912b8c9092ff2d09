//! Refunds through the layer.

use std::time::Duration;

use http::StatusCode;
use serde_json::json;
use turnpike::amount::Amount;
use turnpike::layer::Verdict;
use turnpike::scheme::svm::program::ChannelStatus;
use turnpike::x402::Reason;
use turnpike::x402::key::Signature;

use crate::doubles::{Client, House};
use crate::upstream::Site;

async fn spent(client: &Client, charged: u64) -> (House, Site) {
    let house = House::new().await;
    house.facilitator.open(&client.terms, 5_000);
    let site = Site::new(&house);
    for n in 1..=charged / 1000 {
        assert_eq!(site.quote(&client.pays(n * 1000)).await.status, StatusCode::OK);
    }
    (house, site)
}

#[tokio::test]
async fn a_refund_returns_what_is_left_and_bypasses_the_upstream() {
    let client = Client::new(7);
    let (house, site) = spent(&client, 2000).await;
    let answer = site.quote(&client.refund(2000)).await;
    assert_eq!((answer.status, &answer.verdict), (StatusCode::OK, &Verdict::Refunded));
    assert_eq!(answer.headers["cache-control"], "private");
    let settlement = answer.settlement().unwrap();
    assert!(settlement.success);
    assert_eq!(settlement.amount.as_deref(), Some("3000"));
    assert_eq!(settlement.transaction, Signature([1; 64]).to_string());
    assert_eq!(
        settlement.extra["channelState"],
        json!({
            "channelId": client.terms.id,
            "balance": "5000",
            "totalClaimed": "2000",
            "withdrawRequestedAt": 0,
            "chargedCumulativeAmount": "2000",
        })
    );
    assert_eq!(site.calls(), 2);
    assert_eq!(house.facilitator.count("close 2000"), 1);

    let again = site.quote(&client.refund(2000)).await;
    assert_eq!(again.settlement(), Some(settlement), "a repeat gets the same answer");
    assert_eq!(house.facilitator.count("close"), 1);
    assert_eq!(site.quote(&client.refund(3000)).await.error(), Reason::BatchCloseState.as_str());
    let answer = site.quote(&client.pays(3000)).await;
    assert_eq!(answer.status, StatusCode::PAYMENT_REQUIRED, "a closed channel takes no payments");
}

#[tokio::test]
async fn an_unused_channel_is_refunded_whole_by_a_voucher_of_nothing() {
    let client = Client::new(7);
    let (house, site) = spent(&client, 0).await;
    let answer = site.quote(&client.refund(0)).await;
    assert_eq!(answer.settlement().unwrap().amount.as_deref(), Some("5000"));
    assert_eq!(house.facilitator.count("close 0"), 1);
}

#[tokio::test]
async fn a_refund_that_is_not_right_changes_nothing() {
    let client = Client::new(7);
    let (house, site) = spent(&client, 2000).await;
    let with = |name: &str, value: serde_json::Value| {
        let mut payload = client.refund(2000);
        payload[name] = value;
        payload
    };
    let mut forged = client.refund(2000);
    forged["voucher"]["signature"] = client.voucher(1000)["signature"].clone();
    for (payload, reason) in [
        (client.refund(1000), Reason::BatchCloseState),
        (client.refund(3000), Reason::BatchCloseState),
        (client.refund(0), Reason::BatchCloseState),
        (with("amount", json!("100")), Reason::BatchCloseAmountUnsupported),
        (with("amount", json!(0)), Reason::BatchCloseAmountUnsupported),
        (with("transaction", json!("AAAA")), Reason::BatchRefundTransaction),
        (with("authorization", json!({})), Reason::BatchPayloadType),
        (forged, Reason::BatchVoucherSignature),
    ] {
        let answer = site.quote(&payload).await;
        assert_eq!((answer.status, answer.error().as_str()), (StatusCode::PAYMENT_REQUIRED, reason.as_str()));
        assert!(answer.settlement().is_none());
    }
    assert_eq!(house.facilitator.count("close"), 0);
    assert_eq!(site.quote(&client.pays(3000)).await.status, StatusCode::OK);
    let stranger = Client::new(9);
    assert_eq!(site.quote(&stranger.refund(0)).await.error(), Reason::BatchCloseState.as_str());
}

#[tokio::test]
async fn a_refund_that_fails_leaves_the_channel_in_service() {
    let client = Client::new(7);
    let (house, site) = spent(&client, 2000).await;
    house.facilitator.unavailable("close", 1);
    let answer = site.quote(&client.refund(2000)).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(!answer.settlement().unwrap().success);
    house.facilitator.refuse("close", Reason::BatchCloseState);
    let answer = site.quote(&client.refund(2000)).await;
    assert_eq!(answer.status, StatusCode::PAYMENT_REQUIRED);
    assert_eq!(answer.settlement().unwrap().error_reason.as_deref(), Some(Reason::BatchCloseState.as_str()));
    house.gate.settled().await;
    assert_eq!(site.quote(&client.pays(3000)).await.status, StatusCode::OK);
    assert_eq!(site.quote(&client.refund(3000)).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_refund_that_is_pending_is_followed_to_its_end() {
    let client = Client::new(7);
    let (house, site) = spent(&client, 2000).await;
    house.facilitator.pending.lock().push("close");
    let answer = site.quote(&client.refund(2000)).await;
    assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
    let settlement = answer.settlement().unwrap();
    assert_eq!(settlement.error_reason.as_deref(), Some(Reason::SettlementPending.as_str()));
    assert_eq!(settlement.transaction, Signature([1; 64]).to_string());
    house.gate.settled().await;
    let settlement = site.quote(&client.refund(2000)).await.settlement().unwrap();
    assert!(settlement.success);
    assert_eq!(settlement.amount.as_deref(), Some("3000"));
    assert_eq!(house.facilitator.count("close"), 1);
}

#[tokio::test]
async fn a_refund_whose_client_is_gone_is_finished() {
    let client = Client::new(7);
    let (house, site) = spent(&client, 2000).await;
    house.facilitator.pending.lock().push("close");
    let (gone, payload) = (site.clone(), client.refund(2000));
    let task = tokio::spawn(async move { gone.quote(&payload).await });
    while house.facilitator.count("close") == 0 {
        tokio::task::yield_now().await;
    }
    task.abort();
    let _ = task.await;
    house.gate.settled().await;
    assert!(house.ledger.channel(&client.terms.id).is_none_or(|channel| channel.closed));
}

#[tokio::test]
async fn a_forced_close_is_reported_as_it_is_seen() {
    let client = Client::new(7);
    let (house, site) = spent(&client, 2000).await;
    let closing = house.facilitator.put(client.terms.id, ChannelStatus::Closing, Amount::new(5000), Amount::ZERO);
    house.clock.advance(Duration::from_secs(61));
    let settlement = site.quote(&client.refund(2000)).await.settlement().unwrap();
    assert!(settlement.success);
    assert_eq!(settlement.amount.as_deref(), Some(""), "nothing has moved yet");
    assert_eq!(settlement.extra["channelState"]["withdrawRequestedAt"], closing.closing_since);
    assert_eq!(house.facilitator.count("close"), 0);
}
