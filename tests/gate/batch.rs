//! Vouchers through the layer.

use std::time::Duration;

use http::{HeaderMap, Method, StatusCode};
use serde_json::json;
use turnpike::amount::Amount;
use turnpike::gate::{AdmitRequest, Outcome, PaymentHeader};
use turnpike::layer::{LayerOptions, Verdict};
use turnpike::scheme::svm::program::ChannelStatus;
use turnpike::x402::{Account, Reason};

use crate::doubles::{Client, House, PRICE, address, fixed, header, seller};
use crate::upstream::{BODY, Behaviour, Site};

async fn house_with(client: &Client, deposit: u64) -> (House, Site) {
    let house = House::new().await;
    house.facilitator.open(&client.terms, deposit);
    let site = Site::new(&house);
    (house, site)
}

#[tokio::test]
async fn a_voucher_is_charged_and_says_so() {
    let client = Client::new(7);
    let (house, site) = house_with(&client, 5_000).await;
    for n in 1..=3_u64 {
        let answer = site.quote(&client.pays(n * 1000)).await;
        assert_eq!((answer.status, &*answer.body), (StatusCode::OK, BODY));
        assert_eq!(answer.headers["cache-control"], "private");
        let settlement = serde_json::to_value(answer.settlement().unwrap()).unwrap();
        assert_eq!(
            settlement,
            json!({
                "success": true,
                "payer": client.terms.payer,
                "transaction": "",
                "network": seller().network,
                "amount": "",
                "extra": {
                    "commitmentId": format!("{}:{}", client.terms.id, n * 1000),
                    "chargedAmount": "1000",
                    "channelState": {
                        "channelId": client.terms.id,
                        "balance": "5000",
                        "totalClaimed": "0",
                        "withdrawRequestedAt": 0,
                        "chargedCumulativeAmount": (n * 1000).to_string(),
                    },
                },
            })
        );
        assert!(matches!(answer.verdict, Verdict::Charged { paid, .. } if paid.amount == Amount::new(1000)));
    }
    assert_eq!(house.ledger.channel(&client.terms.id).unwrap().charged, Amount::new(3000));
    assert_eq!(house.facilitator.count("read_channel"), 1, "the chain is asked once for a fresh channel");
}

#[tokio::test]
async fn the_upstream_learns_who_paid_and_sees_no_payment() {
    let client = Client::new(7);
    let (_house, site) = house_with(&client, 5_000).await;
    site.answers(200, &[("payment-response", "forged"), ("turnpike-payer", "forged"), ("x-own", "kept")]);
    let offer = site.offer("/quote").await;
    let request = http::Request::post("/quote")
        .header("PAYMENT-SIGNATURE", header(&offer, &client.pays(1000)))
        .header("turnpike-payer", "forged")
        .body(http_body_util::Full::new(bytes::Bytes::from_static(BODY)))
        .unwrap();
    let answer = site.send(request).await.unwrap();
    assert!(answer.settlement().unwrap().success, "the upstream's own payment headers are not passed on");
    assert!(!answer.headers.contains_key("turnpike-payer"));
    assert_eq!(answer.headers["x-own"], "kept");
    let seen = site.seen.lock().pop().unwrap();
    assert!(!seen.headers.contains_key("payment-signature"));
    let payers: Vec<_> = seen.headers.get_all("turnpike-payer").iter().collect();
    assert_eq!(payers, [client.terms.payer.to_string().as_str()]);
    assert_eq!(seen.headers["turnpike-amount"], "1000");
    assert_eq!(seen.headers["turnpike-channel"], client.terms.id.to_string());
    assert_eq!(seen.headers["turnpike-network"], seller().network.as_str());
    assert_eq!(seen.paid.unwrap().payer, Account::Svm(client.terms.payer));
    assert_eq!(&*seen.body, BODY);
}

#[tokio::test]
async fn who_paid_can_be_left_to_the_extension() {
    let client = Client::new(7);
    let (house, _) = house_with(&client, 5_000).await;
    let site = Site::with(&house, LayerOptions { extension_only: true, ..LayerOptions::default() });
    let offer = site.offer("/quote").await;
    let request = http::Request::get("/quote")
        .header("PAYMENT-SIGNATURE", header(&offer, &client.pays(1000)))
        .header("turnpike-payer", "forged")
        .body(http_body_util::Full::new(bytes::Bytes::new()))
        .unwrap();
    assert!(site.send(request).await.unwrap().settlement().unwrap().success);
    let seen = site.seen.lock().pop().unwrap();
    assert!(!seen.headers.keys().any(|name| name.as_str().starts_with("turnpike-")), "{:?}", seen.headers);
    assert_eq!(seen.paid.unwrap().payer, Account::Svm(client.terms.payer));
}

#[tokio::test]
async fn whatever_is_not_a_success_costs_nothing() {
    let client = Client::new(7);
    let (house, site) = house_with(&client, 5_000).await;
    for status in [400, 402, 404, 429, 500, 503] {
        site.answers(status, &[("payment-response", "forged")]);
        let answer = site.quote(&client.pays(1000)).await;
        assert_eq!(answer.status.as_u16(), status);
        assert_eq!(&*answer.body, BODY);
        assert!(!answer.headers.contains_key("payment-response"));
        assert!(matches!(answer.verdict, Verdict::Released(_)));
    }
    site.behave(Behaviour::Fails);
    assert_eq!(site.pay("/quote", &client.pays(1000)).await.unwrap_err().to_string(), "connection reset");

    site.behave(Behaviour::Panics);
    let panicking = site.clone();
    let payload = client.pays(1000);
    assert!(tokio::spawn(async move { panicking.quote(&payload).await }).await.unwrap_err().is_panic());

    site.behave(Behaviour::Hangs);
    let calls = site.calls();
    let hanging = site.clone();
    let payload = client.pays(1000);
    let task = tokio::spawn(async move { hanging.quote(&payload).await });
    while site.calls() == calls {
        tokio::task::yield_now().await;
    }
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());

    assert_eq!(house.ledger.channel(&client.terms.id).unwrap().charged, Amount::ZERO);
    assert_eq!(house.ledger.counts().1, 0, "nothing is left reserved");
    for status in [200, 204, 301, 304] {
        site.answers(status, &[]);
        let charged = house.ledger.channel(&client.terms.id).unwrap().charged;
        let next = u64::try_from(charged.get()).unwrap() + 1000;
        assert!(site.quote(&client.pays(next)).await.settlement().unwrap().success, "{status}");
    }
}

#[tokio::test]
async fn a_replay_is_answered_with_the_channels_state() {
    let client = Client::new(7);
    let (_house, site) = house_with(&client, 5_000).await;
    site.quote(&client.pays(1000)).await;
    site.quote(&client.pays(2000)).await;
    for wrong in [1000, 2000, 2999, 3001] {
        let answer = site.quote(&client.pays(wrong)).await;
        assert_eq!(answer.status, StatusCode::PAYMENT_REQUIRED);
        assert_eq!(answer.error(), Reason::BatchCumulativeAmountMismatch.as_str());
        assert!(answer.settlement().is_none(), "a corrective answer has none");
        let extra = &answer.required().unwrap().accepts[0].extra;
        assert_eq!(extra["channelState"]["chargedCumulativeAmount"], "2000");
        assert_eq!(extra["channelState"]["balance"], "5000");
        assert_eq!(extra["voucherState"]["signedMaxClaimable"], "2000");
        assert_eq!(extra["voucherState"]["expiresAt"], 0);
        assert_eq!(extra["voucherState"]["signature"], client.voucher(2000)["signature"]);
    }
    assert_eq!(site.calls(), 2);
    // What the client took from the corrective answer is still what we offer.
    let corrected = site.quote(&client.pays(2000)).await.required().unwrap().accepts.remove(0);
    let answer = site.get("/quote", Some(header(&corrected, &client.pays(3000)))).await.unwrap();
    assert_eq!(answer.status, StatusCode::OK);
}

#[tokio::test]
async fn without_an_accepted_voucher_the_corrective_answer_has_none() {
    let client = Client::new(7);
    let (_house, site) = house_with(&client, 5_000).await;
    let answer = site.quote(&client.pays(2000)).await;
    assert_eq!(answer.error(), Reason::BatchCumulativeAmountMismatch.as_str());
    let extra = &answer.required().unwrap().accepts[0].extra;
    assert_eq!(extra["channelState"]["chargedCumulativeAmount"], "0");
    assert!(!extra.contains_key("voucherState"));
}

#[tokio::test]
async fn a_voucher_above_the_deposit_is_refused() {
    let client = Client::new(7);
    let (_house, site) = house_with(&client, 1_500).await;
    assert_eq!(site.quote(&client.pays(1000)).await.status, StatusCode::OK);
    let answer = site.quote(&client.pays(2000)).await;
    assert_eq!(answer.error(), Reason::BatchCumulativeExceedsDeposit.as_str());
    assert_eq!(answer.status, StatusCode::PAYMENT_REQUIRED);
}

#[tokio::test]
async fn tampering_is_refused_before_the_chain_is_asked() {
    let client = Client::new(7);
    let (house, site) = house_with(&client, 5_000).await;
    let mut forged = client.pays(1000);
    forged["voucher"]["signature"] = Client::new(8).voucher(1000)["signature"].clone();
    let mut receiver = client.pays(1000);
    receiver["channelConfig"]["receiver"] = json!(address(9));
    let mut expires = client.pays(1000);
    expires["voucher"]["expiresAt"] = json!(1);
    for (payload, reason) in [
        (forged, Reason::BatchVoucherSignature),
        (receiver, Reason::InvalidRequirements),
        (expires, Reason::BatchVoucherExpiry),
    ] {
        assert_eq!(site.quote(&payload).await.error(), reason.as_str());
    }
    assert_eq!(house.facilitator.count("read_channel"), 0);
}

#[tokio::test]
async fn a_channel_that_takes_no_vouchers_is_refused() {
    let table = [
        (None, Reason::BatchChannelState),
        (Some(ChannelStatus::Closing), Reason::BatchChannelClosing),
        (Some(ChannelStatus::Sealed), Reason::BatchChannelState),
        (Some(ChannelStatus::Distributed), Reason::BatchChannelState),
    ];
    for (status, reason) in table {
        let house = House::new().await;
        let client = Client::new(7);
        if let Some(status) = status {
            house.facilitator.put(client.terms.id, status, Amount::new(5000), Amount::ZERO);
        }
        let answer = Site::new(&house).quote(&client.pays(1000)).await;
        assert_eq!(
            (answer.status, answer.error().as_str()),
            (StatusCode::PAYMENT_REQUIRED, reason.as_str()),
            "{status:?}"
        );
    }
}

#[tokio::test]
async fn a_forced_close_is_seen_when_the_channel_is_read_again() {
    let client = Client::new(7);
    let (house, site) = house_with(&client, 5_000).await;
    site.quote(&client.pays(1000)).await;
    house.facilitator.put(client.terms.id, ChannelStatus::Closing, Amount::new(5000), Amount::ZERO);
    assert_eq!(site.quote(&client.pays(2000)).await.status, StatusCode::OK, "what is fresh is gone by");
    house.clock.advance(Duration::from_secs(61));
    let answer = site.quote(&client.pays(3000)).await;
    assert_eq!(answer.error(), Reason::BatchChannelClosing.as_str());
}

#[tokio::test]
async fn without_the_chain_what_is_known_serves_for_a_while() {
    let client = Client::new(7);
    let (house, site) = house_with(&client, 5_000).await;
    house.facilitator.unavailable("read_channel", 1);
    let answer = site.quote(&client.pays(1000)).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "an unknown channel cannot be served");
    assert!(answer.headers.contains_key("retry-after"));
    assert!(!String::from_utf8_lossy(&answer.body).contains("secret-endpoint"));

    site.quote(&client.pays(1000)).await;
    house.clock.advance(Duration::from_secs(600));
    house.facilitator.unavailable("read_channel", 1);
    assert_eq!(site.quote(&client.pays(2000)).await.status, StatusCode::OK);
    house.clock.advance(Duration::from_secs(1));
    house.facilitator.unavailable("read_channel", 1);
    let answer = site.quote(&client.pays(3000)).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.json()["error"], Reason::ChainUnavailable.as_str());
    assert_eq!(site.quote(&client.pays(3000)).await.status, StatusCode::OK, "the chain is back");
}

#[tokio::test]
async fn a_store_that_fails_charges_nothing_and_delivers_nothing() {
    let client = Client::new(7);
    let (house, site) = house_with(&client, 5_000).await;
    site.quote(&client.pays(1000)).await;
    *house.store.failing.lock() = true;
    let answer = site.quote(&client.pays(2000)).await;
    assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(!String::from_utf8_lossy(&answer.body).contains("disk full"), "ours to know");
    assert_ne!(&*answer.body, BODY);
    assert!(answer.settlement().is_none());
}

#[tokio::test]
async fn requests_in_flight_are_served_in_voucher_order() {
    let client = Client::new(7);
    let (house, site) = house_with(&client, 20_000).await;
    site.quote(&client.pays(1000)).await;
    let tasks: Vec<_> = [4_u64, 2, 3]
        .map(|n| {
            let (site, payload) = (site.clone(), client.pays(n * 1000));
            tokio::spawn(async move { site.quote(&payload).await.status })
        })
        .into_iter()
        .collect();
    for task in tasks {
        assert_eq!(task.await.unwrap(), StatusCode::OK);
    }
    assert_eq!(house.ledger.channel(&client.terms.id).unwrap().charged, Amount::new(4000));
}

/// They are allocated, moved and cleared for each request: what is seldom waited for is to live apart.
#[tokio::test]
async fn what_waits_for_a_paid_request_is_small() {
    let client = Client::new(7);
    let (house, _) = house_with(&client, 5_000).await;
    let (route, method, headers) = (fixed(), Method::GET, HeaderMap::new());
    let request = |payment_header| AdmitRequest {
        route: &route,
        method: &method,
        host: Some("api.example.com"),
        target: "/quote",
        headers: &headers,
        url: "https://api.example.com/quote",
        payment_header,
    };
    let Outcome::Challenge(challenge) = house.gate.admit(request(None)).await else { panic!("it is unpaid") };
    let payment = header(&challenge.demand.v2.accepts[0], &client.pays(PRICE));
    let admitting = house.gate.admit(request(Some(PaymentHeader::V2(&payment))));
    let admitting_bytes = size_of_val(&admitting);
    let Outcome::Admitted(admission) = admitting.await else { panic!("it is paid") };
    let finishing = admission.finish(StatusCode::OK, &headers);
    let bytes = (admitting_bytes, size_of_val(&finishing));
    drop(finishing);
    assert!(bytes.0 <= 3072 && bytes.1 <= 5120, "{bytes:?}");
}
