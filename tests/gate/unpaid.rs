//! Challenges, malformed payments, header hygiene and browsers: what needs no money.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body::{Body, Frame};
use http_body_util::Full;
use serde_json::{Value, json};
use turnpike::layer::{Cors, LayerOptions, Verdict};
use turnpike::x402::Reason;
use turnpike::x402::header::PAYMENT_HEADER_BYTES_MAX;

use crate::doubles::{Client, House, encode, header};
use crate::upstream::{BODY, Behaviour, Site};

#[tokio::test]
async fn a_challenge_says_how_to_pay() {
    let site = Site::new(&House::new().await);
    let answer = site.get("/quote?a=1", None).await.unwrap();
    assert_eq!((answer.status, &answer.verdict), (StatusCode::PAYMENT_REQUIRED, &Verdict::Challenged));
    assert_eq!(answer.headers["cache-control"], "no-store");
    assert!(answer.settlement().is_none());
    let required = answer.required().unwrap();
    assert_eq!(answer.json(), serde_json::to_value(&required).unwrap(), "the body shows the same to people");
    let value = answer.json();
    assert_eq!(value["x402Version"], 2);
    assert_eq!(value["error"], Reason::PaymentRequired.as_str());
    assert_eq!(value["resource"]["url"], "http://api.example.com/quote?a=1");
    assert_eq!(value["resource"]["description"], "a quote");
    let offer = &value["accepts"][0];
    assert_eq!(offer["scheme"], "batch-settlement");
    assert_eq!(offer["amount"], "1000");
    assert_eq!(offer["maxTimeoutSeconds"], 300);
    let extra = &offer["extra"];
    assert_eq!(extra["withdrawDelay"], 3600);
    assert_eq!(extra["minDeposit"], "20000");
    assert_eq!(extra["feePayer"], extra["receiverAuthorizer"]);
    assert_eq!(extra["recentSlot"], 341_000_000);
    assert!(extra["recentBlockhash"].is_string());
    assert!(extra.get("paymentFlow").is_none() && extra.get("lastValidBlockHeight").is_none());
    assert_eq!(site.calls(), 0);
}

#[tokio::test]
async fn a_metered_challenge_is_an_escrow() {
    let site = Site::new(&House::new().await);
    let offer = site.offer("/metered").await;
    assert_eq!((offer.scheme.as_str(), offer.amount.get()), ("upto", 10_000));
    assert_eq!(offer.extra["paymentFlow"], "escrow");
    assert_eq!(offer.extra["lastValidBlockHeight"], "999");
    assert!(!offer.extra.contains_key("minDeposit"));
}

#[tokio::test]
async fn a_public_url_stands_before_the_path() {
    let house = House::new().await;
    let options = LayerOptions { public_url: Some("https://pay.example/".into()), ..LayerOptions::default() };
    let answer = Site::with(&house, options).get("/quote?a=1", None).await.unwrap();
    assert_eq!(answer.required().unwrap().resource.url, "https://pay.example/quote?a=1");
}

#[tokio::test]
async fn malformed_payments_are_400_and_never_reach_the_upstream() {
    let site = Site::new(&House::new().await);
    for payment in [
        b"".to_vec(),
        b"%%%".to_vec(),
        b"e30".to_vec(),
        encode(&json!(null)),
        encode(&json!({})),
        encode(&json!({ "x402Version": 2 })),
        encode(&json!({ "x402Version": -1 })),
        encode(&json!({ "x402Version": 2, "accepted": {}, "payload": {} })),
        vec![b'A'; PAYMENT_HEADER_BYTES_MAX + 4],
        b"\xff\xfe".to_vec(),
    ] {
        let answer = site.get("/quote", Some(payment.clone())).await.unwrap();
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{:?}", String::from_utf8_lossy(&payment));
        assert_eq!(answer.json()["error"], "invalid_payload");
        assert_eq!(answer.headers["cache-control"], "no-store");
        assert!(answer.required().is_none());
    }
    assert_eq!(site.calls(), 0);
}

#[tokio::test]
async fn two_payments_are_none() {
    let site = Site::new(&House::new().await);
    let payment = header(&site.offer("/quote").await, &Client::new(7).pays(1000));
    let request = Request::get("/quote").header("payment-signature", &*payment).header("payment-signature", &*payment);
    let answer = site.send(request.body(Full::<Bytes>::default()).unwrap()).await.unwrap();
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn terms_that_were_not_offered_are_refused_with_their_code() {
    type Change = fn(&mut Value);
    let site = Site::new(&House::new().await);
    let offer = serde_json::to_value(site.offer("/quote").await).unwrap();
    let table: &[(Change, Reason)] = &[
        (|p| p["x402Version"] = json!(1), Reason::InvalidVersion),
        (|p| p["x402Version"] = json!(3), Reason::InvalidVersion),
        (|p| p["accepted"]["scheme"] = json!("exact"), Reason::UnsupportedScheme),
        (|p| p["accepted"]["scheme"] = json!("upto"), Reason::UnsupportedScheme),
        (|p| p["accepted"]["network"] = json!("eip155:8453"), Reason::InvalidNetwork),
        (|p| p["accepted"]["amount"] = json!("1"), Reason::InvalidRequirements),
        (|p| p["accepted"]["asset"] = json!("x"), Reason::InvalidRequirements),
        (|p| p["accepted"]["payTo"] = json!("x"), Reason::InvalidRequirements),
        (|p| p["accepted"]["extra"]["withdrawDelay"] = json!(900), Reason::InvalidRequirements),
        (|p| p["accepted"]["extra"]["paymentFlow"] = json!("escrow"), Reason::BatchPaymentFlow),
        (|p| p["payload"]["type"] = json!("seal"), Reason::BatchPayloadType),
        (|p| p["payload"]["authorization"] = json!({}), Reason::BatchPayloadType),
    ];
    for (n, (change, reason)) in table.iter().enumerate() {
        let mut payment = json!({ "x402Version": 2, "accepted": offer, "payload": Client::new(7).pays(1000) });
        change(&mut payment);
        let answer = site.get("/quote", Some(encode(&payment))).await.unwrap();
        assert_eq!(
            (answer.status, answer.error().as_str()),
            (StatusCode::PAYMENT_REQUIRED, reason.as_str()),
            "row {n}"
        );
        assert_eq!(answer.verdict, Verdict::Refused(*reason));
        assert!(answer.settlement().is_none());
        assert!(answer.json()["detail"].is_string());
    }
    let answer = site.get("/quote", Some(encode(&json!({ "x402Version": 1, "scheme": "exact" })))).await.unwrap();
    assert_eq!(answer.error(), Reason::InvalidVersion.as_str(), "a version 1 payment has another shape");
    assert_eq!(site.calls(), 0);
}

#[tokio::test]
async fn free_and_unlisted_requests_cost_nothing() {
    let site = Site::new(&House::new().await);
    for path in ["/free", "/open"] {
        let answer = site.get(path, None).await.unwrap();
        assert_eq!((answer.status, &*answer.body, answer.verdict), (StatusCode::OK, BODY, Verdict::Free));
        assert!(!answer.headers.contains_key("payment-response"));
    }
    let answer = site.get("/elsewhere", None).await.unwrap();
    assert_eq!((answer.status, answer.verdict), (StatusCode::NOT_FOUND, Verdict::Unlisted));
    assert_eq!(site.calls(), 2);
    site.behave(Behaviour::Fails);
    assert_eq!(site.get("/free", None).await.unwrap_err().to_string(), "connection reset");
}

#[tokio::test]
async fn what_is_ours_does_not_come_in_from_outside() {
    let site = Site::new(&House::new().await);
    let request = Request::get("/free")
        .header("turnpike-payer", "forged")
        .header("Turnpike-Anything", "forged")
        .header("payment-signature", "AAAA")
        .header("x-payment", "AAAA")
        .header("authorization", "Bearer kept");
    site.send(request.body(Full::<Bytes>::default()).unwrap()).await.unwrap();
    let seen = site.seen.lock().pop().unwrap();
    let names: Vec<_> = seen.headers.keys().map(http::HeaderName::as_str).collect();
    assert_eq!(names, ["authorization"]);
    assert!(seen.paid.is_none());
}

/// A body that must not be asked for.
struct Untouched;

impl Body for Untouched {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        panic!("the body was polled before the request was admitted")
    }
}

#[tokio::test]
async fn the_body_is_not_asked_for_before_the_payment() {
    let site = Site::new(&House::new().await);
    for payment in [None, Some("AAAA")] {
        let mut request = Request::post("/quote").header("expect", "100-continue");
        if let Some(payment) = payment {
            request = request.header("payment-signature", payment);
        }
        let answer = site.send(request.body(Untouched).unwrap()).await.unwrap();
        assert!(answer.status.is_client_error());
    }
}

fn preflight(origin: &str) -> Request<Full<Bytes>> {
    Request::builder()
        .method(Method::OPTIONS)
        .uri("/quote")
        .header("origin", origin)
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "content-type")
        .body(Full::default())
        .unwrap()
}

#[tokio::test]
async fn preflights_of_allowed_origins_are_answered_here() {
    let house = House::new().await;
    let allowed = Cors::Origins(vec!["https://app.example".parse().unwrap()]);
    for cors in [allowed.clone(), Cors::Any] {
        let site = Site::with_cors(&house, cors);
        let answer = site.send(preflight("https://app.example")).await.unwrap();
        assert_eq!(answer.status, StatusCode::NO_CONTENT);
        assert_eq!(answer.headers["access-control-allow-origin"], "https://app.example");
        assert_eq!(answer.headers["access-control-allow-methods"], "POST");
        let names: Vec<_> = answer.headers.get_all("access-control-allow-headers").iter().collect();
        let names =
            names.iter().map(|value| value.to_str().unwrap().to_ascii_lowercase()).collect::<Vec<_>>().join(", ");
        for name in ["payment-signature", "access-control-expose-headers", "content-type"] {
            assert!(names.contains(name), "{name} in {names}");
        }
        assert_eq!(site.calls(), 0);
    }
    let site = Site::with_cors(&house, allowed);
    let answer = site.send(preflight("https://evil.example")).await.unwrap();
    assert_eq!((answer.status, site.calls()), (StatusCode::OK, 1), "another origin's is the upstream's, for free");
    assert!(!answer.headers.contains_key("access-control-allow-origin"));
}

#[tokio::test]
async fn scripts_can_read_the_payment_headers() {
    let house = House::new().await;
    let get =
        |path: &str| Request::get(path).header("origin", "https://app.example").body(Full::<Bytes>::default()).unwrap();
    let site = Site::new(&house);
    site.answers(200, &[("access-control-allow-origin", "*"), ("access-control-expose-headers", "x-own")]);
    let exposed = |answer: &crate::upstream::Answer| {
        let values = answer.headers.get_all("access-control-expose-headers");
        values.iter().map(|value| value.to_str().unwrap().to_owned()).collect::<Vec<_>>().join(", ")
    };
    let answer = site.send(get("/free")).await.unwrap();
    assert_eq!(
        exposed(&answer),
        "x-own, PAYMENT-REQUIRED, PAYMENT-RESPONSE, PAYMENT-SIGNATURE, X-PAYMENT-RESPONSE, Payment-Pass-Calls-Left"
    );
    assert_eq!(answer.headers["access-control-allow-origin"], "*", "the upstream's word stands");
    let answer = site.send(get("/quote")).await.unwrap();
    assert!(exposed(&answer).contains("PAYMENT-REQUIRED"));
    assert!(!answer.headers.contains_key("access-control-allow-origin"));
    let answer = Site::with_cors(&house, Cors::Any).send(get("/quote")).await.unwrap();
    assert_eq!(answer.headers["access-control-allow-origin"], "https://app.example");
    assert_eq!(answer.headers["vary"], "origin");
    assert_eq!(exposed(&site.get("/quote", None).await.unwrap()), "", "nothing where there is no origin");
    site.answers(200, &[("access-control-allow-origin", "https://app.example")]);
    let answer = site.send(preflight("https://app.example")).await.unwrap();
    let allowed = &answer.headers["access-control-allow-headers"];
    assert_eq!(allowed, "PAYMENT-SIGNATURE, X-PAYMENT, Payment-Pass, Access-Control-Expose-Headers");
}
