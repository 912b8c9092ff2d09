//! Clients of protocol version 1: `X-PAYMENT`, a JSON body that says how to pay, and `X-PAYMENT-RESPONSE`.

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Full;
use serde_json::{Value, json};
use turnpike::gate::Options;
use turnpike::gate::evm::Served;
use turnpike::layer::Verdict;
use turnpike::x402::Reason;
use turnpike::x402::v1::PaymentRequiredV1;

use super::doubles::{Client, EvmHouse, Goes, refused, settler, unknown};
use crate::doubles::{PRICE, encode, header};
use crate::upstream::{Answer, BODY, Site};

fn payment(payload: &Value) -> Value {
    json!({ "x402Version": 1, "scheme": "exact", "network": "base-sepolia", "payload": payload })
}

async fn send(site: &Site, path: &str, headers: &[(&str, Vec<u8>)]) -> Answer {
    let mut request = Request::get(path).header("host", "api.example.com");
    for (name, value) in headers {
        request = request.header(*name, &**value);
    }
    site.send(request.body(Full::<Bytes>::default()).unwrap()).await.unwrap()
}

async fn pay(site: &Site, path: &str, payment: &Value) -> Answer {
    send(site, path, &[("X-PAYMENT", encode(payment))]).await
}

#[tokio::test]
async fn the_body_says_how_to_pay_in_version_1_and_the_header_in_version_2() {
    let house = EvmHouse::new().await;
    let answer = house.site.get("/exact?a=1", None).await.unwrap();
    assert_eq!(answer.status, StatusCode::PAYMENT_REQUIRED);
    let required = answer.required().unwrap();
    assert_eq!((required.x402_version, required.accepts[0].scheme.as_str()), (2, "exact"));
    let usdc = &required.accepts[0].asset;
    assert_eq!(
        answer.json(),
        json!({
            "x402Version": 1,
            "error": Reason::PaymentRequired.as_str(),
            "accepts": [{
                "scheme": "exact",
                "network": "base-sepolia",
                "maxAmountRequired": "1000",
                "resource": "http://api.example.com/exact?a=1",
                "description": "a quote",
                "mimeType": "application/json",
                "asset": usdc,
                "payTo": required.accepts[0].pay_to,
                "maxTimeoutSeconds": 60,
                "extra": { "name": "USDC", "version": "2" },
            }],
        })
    );
    for path in ["/exact/permit2", "/upto", "/batch"] {
        let answer = house.site.get(path, None).await.unwrap();
        assert_eq!(answer.json()["x402Version"], 2, "{path}: version 1 has no words for it");
    }
    let served = Served { upto_facilitator: Some(settler()), exact_v1: false };
    let house = EvmHouse::with(Options::default(), served).await;
    let answer = house.site.get("/exact", None).await.unwrap();
    assert_eq!(answer.json()["x402Version"], 2, "no facilitator would take it");
}

#[tokio::test]
async fn a_payment_is_served_settled_and_answered_in_its_own_version() {
    let (house, client) = (EvmHouse::new().await, Client::new(7));
    let sent = payment(&client.exact(PRICE, 1));
    let answer = pay(&house.site, "/exact", &sent).await;
    assert_eq!((answer.status, &*answer.body), (StatusCode::OK, BODY));
    assert_eq!(answer.headers["cache-control"], "private");
    assert!(answer.settlement().is_none());
    assert_eq!(
        serde_json::to_value(answer.settlement_v1().unwrap()).unwrap(),
        json!({
            "success": true,
            "transaction": format!("0x{:064x}", 2),
            "network": "base-sepolia",
            "payer": client.wallet.address(),
        })
    );
    assert!(matches!(answer.verdict, Verdict::Charged { charged, .. } if charged.get() == 1000));
    assert_eq!(*house.facilitator.moved.lock(), ["1000"]);
    for asked in house.facilitator.asked.lock().iter() {
        assert_eq!((asked.x402_version, &asked.payload), (1, &sent));
        assert_eq!(asked.requirements["maxAmountRequired"], "1000");
        assert_eq!(asked.requirements["network"], "base-sepolia");
    }
    let seen = house.site.seen.lock()[0].clone();
    assert!(!seen.headers.contains_key("x-payment"), "the payment is not the upstream's to see");
    assert_eq!(seen.headers["turnpike-amount"], "1000");
    let answer = pay(&house.site, "/exact", &sent).await;
    assert_eq!((answer.status, house.site.calls()), (StatusCode::PAYMENT_REQUIRED, 1), "it pays once");
}

#[tokio::test]
async fn the_versions_share_their_nonces() {
    let (house, client) = (EvmHouse::new().await, Client::new(7));
    assert_eq!(pay(&house.site, "/exact", &payment(&client.exact(PRICE, 1))).await.status, StatusCode::OK);
    let answer = house.site.pay("/exact", &client.exact(PRICE, 1)).await.unwrap();
    assert_eq!(answer.error(), Reason::DuplicateSettlement.as_str());
}

#[tokio::test]
async fn refusals_say_why_in_the_body() {
    type Change = fn(&mut Value);
    let (house, client) = (EvmHouse::new().await, Client::new(7));
    let table: &[(Change, Reason)] = &[
        (|p| p["x402Version"] = json!(2), Reason::InvalidVersion),
        (|p| p["scheme"] = json!("upto"), Reason::UnsupportedScheme),
        (|p| p["network"] = json!("base"), Reason::InvalidNetwork),
        (|p| p["network"] = json!("eip155:84532"), Reason::InvalidNetwork),
        (|p| p["payload"]["authorization"]["value"] = json!("999"), Reason::ExactEvmValue),
    ];
    for (n, (change, reason)) in table.iter().enumerate() {
        let mut sent = payment(&client.exact(PRICE, 1));
        change(&mut sent);
        let answer = pay(&house.site, "/exact", &sent).await;
        assert_eq!(answer.status, StatusCode::PAYMENT_REQUIRED, "{n}");
        let body: PaymentRequiredV1 = serde_json::from_value(answer.json()).unwrap();
        assert_eq!((body.error.as_str(), body.accepts.len()), (reason.as_str(), 1), "{n}");
        assert!(answer.json()["detail"].is_string());
        assert_eq!(answer.error(), reason.as_str(), "version 2's header says the same");
    }
    for sent in [json!({}), json!(null), json!({ "x402Version": 1 }), payment(&json!({}))] {
        let answer = pay(&house.site, "/exact", &sent).await;
        assert_eq!(
            (answer.status, answer.json()["error"].as_str()),
            (StatusCode::BAD_REQUEST, Some("invalid_payload"))
        );
    }
    for path in ["/batch", "/upto", "/exact/permit2"] {
        let answer = pay(&house.site, path, &payment(&client.exact(PRICE, 1))).await;
        assert_eq!(answer.error(), Reason::InvalidVersion.as_str(), "{path}");
    }
    assert_eq!((house.site.calls(), house.facilitator.calls.lock().len()), (0, 0));
}

#[tokio::test]
async fn a_settlement_that_failed_says_so_in_its_own_version() {
    let (house, client) = (EvmHouse::new().await, Client::new(7));
    for (goes, status, reason) in [
        (Goes::Before(refused("insufficient_funds")), 402, Reason::InsufficientFunds),
        (Goes::After(unknown(None)), 500, Reason::SettlementPending),
    ] {
        house.facilitator.goes("settle", goes);
        let answer = pay(&house.site, "/exact", &payment(&client.exact(PRICE, 1))).await;
        assert_eq!((answer.status.as_u16(), answer.settlement()), (status, None));
        let settlement = answer.settlement_v1().unwrap();
        assert_eq!((settlement.success, settlement.error_reason.as_deref()), (false, Some(reason.as_str())));
        assert_eq!(settlement.network, "base-sepolia");
    }
}

#[tokio::test]
async fn version_2_wins_where_both_come() {
    let (house, client) = (EvmHouse::new().await, Client::new(7));
    let second = header(&house.site.offer("/exact").await, &client.exact(PRICE, 2));
    let first = encode(&payment(&client.exact(PRICE, 1)));
    let headers = [("X-PAYMENT", first), ("PAYMENT-SIGNATURE", second), ("Turnpike-Payer", b"forged".to_vec())];
    let answer = send(&house.site, "/exact", &headers).await;
    assert!(answer.settlement().unwrap().success && answer.settlement_v1().is_none());
    assert_eq!(house.facilitator.asked.lock()[0].x402_version, 2);
    let seen = house.site.seen.lock()[0].clone();
    assert_eq!(seen.headers["turnpike-payer"], client.wallet.address().to_string());
    assert!(!seen.headers.contains_key("x-payment") && !seen.headers.contains_key("payment-signature"));
}
