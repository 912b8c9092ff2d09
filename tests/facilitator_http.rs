//! The client of facilitators elsewhere against real ones on loopback that answer what a test scripted: every answer,
//! and who is asked next, for `verify` and for `settle`.

#![allow(clippy::unwrap_used, reason = "a test that cannot build its own fixture should stop")]

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use turnpike::facilitator::http::{HttpFacilitator, HttpFacilitatorError, Observer, Outcome, RemoteOptions};
use turnpike::facilitator::interface::{InterfaceError, Payment, X402Facilitator};

/// What a double does with `/verify` and `/settle`.
#[derive(Clone, Debug)]
enum Does {
    Json(u16, Value),
    /// A status, headers and a body.
    Raw(u16, Vec<(&'static str, &'static str)>, Vec<u8>),
    /// A header that promises more than comes.
    CutShort,
    /// Takes the request and never answers.
    Silence,
    /// Takes the request and closes the connection.
    HangUp,
}

/// A facilitator that remembers what it was asked.
struct Double {
    address: SocketAddr,
    asked: Mutex<Vec<(String, HeaderMap, Value)>>,
    told: Notify,
}

impl Double {
    async fn start(does: Does) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let double = Arc::new(Self { address, asked: Mutex::default(), told: Notify::new() });
        let served = Arc::clone(&double);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (double, does) = (Arc::clone(&served), does.clone());
                let service =
                    hyper::service::service_fn(move |request| answer(Arc::clone(&double), does.clone(), request));
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        double
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn asked(&self, path: &str) -> usize {
        self.asked.lock().iter().filter(|(asked, ..)| asked == path).count()
    }
}

type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, std::io::Error>;

fn whole(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never: Infallible| match never {}).boxed_unsync()
}

async fn answer(double: Arc<Double>, does: Does, request: Request<Incoming>) -> std::io::Result<Response<Body>> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
    let body = serde_json::from_slice(&body).unwrap_or_default();
    double.asked.lock().push((parts.uri.path().to_owned(), parts.headers, body));
    double.told.notify_one();
    if parts.uri.path().ends_with("/supported") && !matches!(does, Does::Raw(..)) {
        return Ok(Response::new(whole(supported().to_string())));
    }
    let mut response = match does {
        Does::Json(status, body) => {
            let mut response = Response::new(whole(body.to_string()));
            *response.status_mut() = status.try_into().unwrap();
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            response
        }
        Does::Raw(status, headers, body) => {
            let mut response = Response::new(whole(body));
            *response.status_mut() = status.try_into().unwrap();
            for (name, value) in headers {
                response.headers_mut().insert(name, HeaderValue::from_static(value));
            }
            response
        }
        Does::CutShort => {
            let frames = [
                Ok(Frame::data(Bytes::from_static(b"{\"success\":true,\"transaction\":\"0x1\""))),
                Err(std::io::Error::other("cut")),
            ];
            Response::new(StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync())
        }
        Does::Silence => std::future::pending().await,
        Does::HangUp => return Err(std::io::Error::other("hang up")),
    };
    response.headers_mut().insert("x-double", HeaderValue::from_static("1"));
    Ok(response)
}

fn supported() -> Value {
    json!({ "kinds": [{ "x402Version": 2, "scheme": "batch-settlement", "network": "eip155:84532" }],
            "extensions": [], "signers": {} })
}

fn payment() -> Payment {
    Payment {
        x402_version: 2,
        payload: json!({ "x402Version": 2, "payload": { "type": "voucher" }, "unknown": [1, 2] }),
        requirements: json!({ "scheme": "batch-settlement", "network": "eip155:84532", "amount": "1000" }),
    }
}

fn valid() -> Does {
    Does::Json(
        200,
        json!({ "isValid": true, "success": true, "payer": "0xpayer", "transaction": "0xhash",
        "network": "eip155:84532", "amount": "1000", "extra": { "channelId": "0x1" }, "news": {} }),
    )
}

fn client(urls: &[String]) -> HttpFacilitator {
    let quick = |url: &String| RemoteOptions {
        verify_timeout: Duration::from_millis(300),
        settle_timeout: Duration::from_millis(300),
        ..RemoteOptions::at(url)
    };
    HttpFacilitator::new(&urls.iter().map(quick).collect::<Vec<_>>(), Arc::new(())).unwrap()
}

/// An address at which connections are refused.
async fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

/// A server that takes connections and talks no TLS, or nothing at all: what it is sent must never be the payment.
async fn deaf(says: &'static [u8]) -> (String, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/", listener.local_addr().unwrap());
    let heard = Arc::new(Mutex::new(Vec::new()));
    let hears = Arc::clone(&heard);
    tokio::spawn(async move {
        let mut open = Vec::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut bytes = [0; 4096];
            let count = stream.read(&mut bytes).await.unwrap_or_default();
            hears.lock().extend_from_slice(&bytes[..count]);
            let _ = stream.write_all(says).await;
            if says.is_empty() {
                open.push(stream);
            }
        }
    });
    (url, heard)
}

#[tokio::test]
async fn what_is_asked_is_the_protocols_and_what_is_answered_is_kept() {
    let double = Double::start(valid()).await;
    let client = client(&[format!("{}/x402/", double.url())]);
    let verified = client.verify(&payment()).await.unwrap();
    assert_eq!((verified.payer.as_deref(), &verified.extra["channelId"]), (Some("0xpayer"), &json!("0x1")));
    let settled = client.settle(&payment()).await.unwrap();
    assert_eq!((settled.transaction.as_str(), settled.amount.as_deref()), ("0xhash", Some("1000")));
    let asked = double.asked.lock();
    let [(verify, headers, body), (settle, _, again)] = &asked[..] else { panic!("{asked:?}") };
    assert_eq!((verify.as_str(), settle.as_str()), ("/x402/verify", "/x402/settle"));
    assert_eq!(headers[CONTENT_TYPE], "application/json");
    let Payment { x402_version, payload, requirements } = payment();
    let expected =
        json!({ "x402Version": x402_version, "paymentPayload": payload, "paymentRequirements": requirements });
    assert_eq!((body, again), (&expected, &expected));
}

/// What an error is, for the tables.
fn kind(error: &InterfaceError) -> &'static str {
    match error {
        InterfaceError::Refused { .. } => "refused",
        InterfaceError::Unavailable(_) => "unavailable",
        InterfaceError::Unknown { .. } => "unknown",
    }
}

/// Every answer: what it does, then what `verify` and `settle` make of it.
fn answers() -> Vec<(Does, &'static str, &'static str)> {
    let raw = |status, body: &'static str| Does::Raw(status, vec![("content-type", "text/html")], body.into());
    let with = |status, header| Does::Raw(status, vec![header], Vec::new());
    let refusal = || {
        json!({ "isValid": false, "invalidReason": "insufficient_funds", "success": false,
                "errorReason": "insufficient_funds", "transaction": "", "network": "eip155:84532" })
    };
    let pending = json!({ "isValid": false, "invalidReason": "unexpected_verify_error", "success": false,
        "errorReason": "settlement_pending", "transaction": "0xhash" });
    vec![
        (Does::Json(200, refusal()), "refused", "refused"),
        (Does::Json(400, refusal()), "refused", "refused"),
        (Does::Json(500, refusal()), "refused", "refused"),
        (Does::Json(401, refusal()), "refused", "refused"),
        (Does::Json(200, pending), "refused", "unknown"),
        (Does::Json(200, json!({})), "unavailable", "unknown"),
        (Does::Json(200, json!({ "isValid": "yes", "success": "yes" })), "unavailable", "unknown"),
        (Does::Json(200, json!([true])), "unavailable", "unknown"),
        (Does::Json(500, json!({ "isValid": true, "success": true, "transaction": "0x1" })), "unavailable", "unknown"),
        (Does::Json(500, json!({ "error": "inner" })), "unavailable", "unknown"),
        (raw(200, "<html>welcome</html>"), "unavailable", "unknown"),
        (raw(502, "<html>bad gateway</html>"), "unavailable", "unknown"),
        (raw(503, ""), "unavailable", "unknown"),
        (raw(400, "what?"), "unavailable", "unknown"),
        (raw(401, "who?"), "unavailable", "unavailable"),
        (raw(403, "no"), "unavailable", "unavailable"),
        (raw(404, "where?"), "unavailable", "unavailable"),
        (with(429, ("retry-after", "30")), "unavailable", "unavailable"),
        (with(308, ("location", "/elsewhere")), "unavailable", "unavailable"),
        (with(302, ("location", "/elsewhere")), "unavailable", "unknown"),
        (Does::Raw(200, vec![], vec![b' '; 300 * 1024]), "unavailable", "unknown"),
        (Does::CutShort, "unavailable", "unknown"),
        (Does::Silence, "unavailable", "unknown"),
        (Does::HangUp, "unavailable", "unknown"),
    ]
}

#[tokio::test]
async fn every_answer_is_what_the_table_says() {
    for (does, verify, settle) in answers() {
        let double = Double::start(does.clone()).await;
        let error = client(&[double.url()]).verify(&payment()).await.unwrap_err();
        assert_eq!(kind(&error), verify, "verify: {does:?}: {error}");
        let error = client(&[double.url()]).settle(&payment()).await.unwrap_err();
        assert_eq!(kind(&error), settle, "settle: {does:?}: {error}");
        assert_eq!((double.asked("/verify"), double.asked("/settle")), (1, 1), "{does:?}");
        assert_eq!(double.asked("/elsewhere"), 0, "redirects are not followed");
    }
    // A JSON answer is one whatever it calls itself.
    let body = br#"{"isValid":true,"success":true,"transaction":""}"#.to_vec();
    let double = Double::start(Does::Raw(200, vec![("content-type", "text/html")], body)).await;
    assert!(client(&[double.url()]).verify(&payment()).await.is_ok());
    assert_eq!(client(&[double.url()]).settle(&payment()).await.unwrap().transaction, "");
}

#[tokio::test]
async fn a_pending_settlement_keeps_its_transaction() {
    let pending = json!({ "success": false, "errorReason": "settlement_pending", "transaction": "0xabc" });
    let double = Double::start(Does::Json(200, pending)).await;
    let error = client(&[double.url()]).settle(&payment()).await.unwrap_err();
    assert!(matches!(&error, InterfaceError::Unknown { transaction: Some(hash), .. } if hash == "0xabc"), "{error}");
}

#[tokio::test]
async fn verify_asks_the_next_until_one_answers() {
    for (does, verify, _) in answers() {
        let first = Double::start(does.clone()).await;
        let second = Double::start(valid()).await;
        let result = client(&[first.url(), second.url()]).verify(&payment()).await;
        // A firm refusal is an answer; where the first could not tell, the second is asked.
        let firm = verify == "refused" && !format!("{does:?}").contains("unexpected_verify_error");
        assert_eq!(result.is_err(), firm, "{does:?}: {result:?}");
        assert_eq!(second.asked("/verify"), usize::from(!firm), "{does:?}");
    }
    let second = Double::start(valid()).await;
    assert!(client(&[nobody().await, second.url()]).verify(&payment()).await.is_ok());
    let undecided = Does::Json(200, json!({ "isValid": false, "invalidReason": "unexpected_verify_error" }));
    let unsure = Double::start(undecided).await;
    let error = client(&[unsure.url(), nobody().await]).verify(&payment()).await.unwrap_err();
    assert_eq!(kind(&error), "refused", "nobody knows better");
}

#[tokio::test]
async fn settle_never_reaches_a_second_once_a_first_has_it() {
    for (does, _, settle) in answers() {
        let (first, second) = (Double::start(does.clone()).await, Double::start(valid()).await);
        let client = client(&[first.url(), second.url()]);
        let error = client.settle(&payment()).await.unwrap_err();
        assert_eq!(kind(&error), settle, "{does:?}: {error}");
        assert_eq!((first.asked("/settle"), second.asked("/settle")), (1, 0), "{does:?}");
    }
}

#[tokio::test]
async fn settle_asks_the_next_where_the_first_cannot_have_it() {
    let (plain, heard_plain) = deaf(b"220 no TLS here\r\n").await;
    let (mute, heard_mute) = deaf(b"").await;
    let no_host = "http://facilitator.invalid".to_owned();
    for first in [nobody().await, no_host, plain, mute] {
        let second = Double::start(valid()).await;
        let settled = client(&[first.clone(), second.url()]).settle(&payment()).await;
        assert_eq!(settled.as_ref().map(|settled| settled.transaction.as_str()), Ok("0xhash"), "{first}");
        assert_eq!(second.asked("/settle"), 1, "{first}");
    }
    for heard in [heard_plain, heard_mute] {
        let heard = heard.lock();
        assert!(!heard.is_empty(), "a handshake was begun");
        assert!(!String::from_utf8_lossy(&heard).contains("paymentPayload"));
    }
    let error = client(&[nobody().await, nobody().await]).settle(&payment()).await.unwrap_err();
    assert_eq!(kind(&error), "unavailable", "nothing was sent: {error}");
}

#[tokio::test]
async fn who_asks_for_a_pause_gets_it() {
    let limited = Double::start(Does::Raw(429, vec![("retry-after", "60")], Vec::new())).await;
    let second = Double::start(valid()).await;
    let client = client(&[limited.url(), second.url()]);
    for _ in 0..3 {
        assert!(client.verify(&payment()).await.is_ok());
    }
    assert!(client.settle(&payment()).await.is_ok(), "the first is known not to be asked");
    assert_eq!((limited.asked("/verify"), limited.asked("/settle")), (1, 0));
    assert_eq!(second.asked("/verify"), 3);
    assert!(!client.health()[0].endpoint.healthy && client.health()[1].endpoint.healthy);
}

#[tokio::test]
async fn who_fails_again_and_again_goes_to_the_end_of_the_order() {
    let failing = Double::start(Does::HangUp).await;
    let second = Double::start(valid()).await;
    let client = client(&[failing.url(), second.url()]);
    for _ in 0..4 {
        assert!(client.verify(&payment()).await.is_ok());
    }
    assert_eq!((failing.asked("/verify"), second.asked("/verify")), (2, 4));
    let health = client.health();
    assert_eq!((health[0].endpoint.healthy, health[0].endpoint.consecutive_failures), (false, 2));
    assert!(health[0].endpoint.last_error.is_some());
}

#[tokio::test]
async fn what_is_supported_is_asked_of_all_and_decides_who_is_asked() {
    let other =
        Does::Raw(200, vec![], br#"{"kinds":[{"x402Version":2,"scheme":"exact","network":"eip155:1"}]}"#.into());
    let (other, double) = (Double::start(other).await, Double::start(valid()).await);
    let client = client(&[other.url(), double.url(), nobody().await]);
    let kinds = client.supported().await.unwrap().kinds;
    assert_eq!(kinds.iter().map(|kind| kind.scheme.as_str()).collect::<Vec<_>>(), ["exact", "batch-settlement"]);
    assert!(client.verify(&payment()).await.is_ok());
    assert_eq!((other.asked("/verify"), double.asked("/verify")), (0, 1));
    let elsewhere = Payment { requirements: json!({ "scheme": "upto", "network": "eip155:1" }), ..payment() };
    let error = client.settle(&elsewhere).await.unwrap_err();
    assert_eq!(kind(&error), "unavailable", "the third has not said what it serves, and cannot be reached: {error}");
    assert_eq!((other.asked("/settle"), double.asked("/settle")), (0, 0));
    assert_eq!(client.health().iter().filter(|health| health.supported.is_some()).count(), 2);
    let error = self::client(&[nobody().await]).supported().await.unwrap_err();
    assert_eq!(kind(&error), "unavailable");
}

#[tokio::test]
async fn keep_informed_asks_at_once() {
    let double = Double::start(valid()).await;
    let client = Arc::new(client(&[double.url()]));
    let keeps = Arc::clone(&client);
    let task = tokio::spawn(async move { keeps.keep_informed().await });
    double.told.notified().await;
    assert_eq!(double.asked("/supported"), 1);
    task.abort();
}

#[derive(Default)]
struct Seen(Mutex<Vec<(String, &'static str, Outcome)>>);

impl Observer for Seen {
    fn observe(&self, facilitator: &str, call: &'static str, outcome: Outcome, _: Duration) {
        self.0.lock().push((facilitator.to_owned(), call, outcome));
    }
}

#[tokio::test]
async fn no_secret_is_shown_and_every_attempt_is_observed() {
    let token = "sk_live_0123456789abcdef";
    let echo = format!(r#"{{"isValid":false,"invalidReason":"x_{token}","invalidMessage":"{token} pathsecret99"}}"#);
    let double = Double::start(Does::Raw(200, vec![], echo.into_bytes())).await;
    let bearer = HeaderValue::from_str(&format!("Bearer {token}")).unwrap();
    let options = RemoteOptions::at(format!("{}/pathsecret99", double.url()))
        .header(AUTHORIZATION, bearer)
        .header(HeaderName::from_static("x-api-key"), HeaderValue::from_static("another-secret"));
    let seen = Arc::new(Seen::default());
    assert!(!format!("{options:?}").contains("secret") && !format!("{options:?}").contains("sk_live"));
    let observer: Arc<dyn Observer> = Arc::<Seen>::clone(&seen);
    let client = HttpFacilitator::new(&[options], observer).unwrap();
    let error = client.verify(&payment()).await.unwrap_err();
    let shown = format!("{error} {error:?} {:?}", client.health());
    assert!(!shown.contains("0123456789") && !shown.contains("pathsecret"), "{shown}");
    let (_, headers, _) = double.asked.lock()[0].clone();
    assert_eq!(headers[AUTHORIZATION], format!("Bearer {token}"));
    assert_eq!(headers["x-api-key"], "another-secret");
    let seen = seen.0.lock();
    assert_eq!(*seen, [(double.address.to_string(), "verify", Outcome::Refused)]);
}

#[test]
fn what_cannot_be_asked_is_refused_without_being_repeated() {
    let refused = |url: &str| match HttpFacilitator::new(&[RemoteOptions::at(url)], Arc::new(())) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("{url} was taken"),
    };
    for url in ["", "ftp://x/secretsecret", "http://x/?key=secretsecret", "secretsecret"] {
        let shown = refused(url);
        assert!(shown.contains("facilitator 1") && !shown.contains("secret"), "{shown}");
    }
    assert_eq!(HttpFacilitator::new(&[], Arc::new(())).err(), Some(HttpFacilitatorError::NoFacilitator));
}
