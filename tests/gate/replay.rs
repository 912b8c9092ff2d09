//! Lost answers, had again: who gets which answer for an id, and that nobody is charged or served twice for it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::Full;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use turnpike::amount::Amount;
use turnpike::gate::Options;
use turnpike::gate::replay;
use turnpike::layer::Verdict;
use turnpike::ledger::answers::AnswerLimits;
use turnpike::x402::Reason;
use turnpike::x402::payment_identifier;

use crate::doubles::{Client, House, MemoryStore, PRICE, identified};
use crate::upstream::{Answer, BODY, Behaviour, Piece, Site};

const ID: &str = "pay_7d5d747be160e280504c099d984bcfe0";

async fn house() -> (House, Site, Client) {
    let house = House::new().await;
    let client = Client::new(7);
    house.facilitator.open(&client.terms, 50_000);
    let site = Site::new(&house);
    (house, site, client)
}

fn charged(house: &House, client: &Client) -> Amount {
    house.ledger.channel(&client.terms.id).map_or(Amount::ZERO, |channel| channel.charged)
}

/// A payment header with an id.
async fn payment(site: &Site, path: &str, payload: &Value, id: &str) -> Vec<u8> {
    identified(&site.offer(path).await, payload, &json!(id))
}

async fn get(site: &Site, payment: &[u8]) -> Answer {
    site.get("/quote", Some(payment.to_vec())).await.unwrap()
}

fn without_replay(answer: &Answer) -> HeaderMap {
    let mut headers = answer.headers.clone();
    headers.remove("turnpike-replay");
    headers
}

fn assert_replayed(first: &Answer, again: &Answer) {
    assert_eq!(again.verdict, Verdict::Replayed);
    assert_eq!(again.headers["turnpike-replay"], "true");
    assert!(!first.headers.contains_key("turnpike-replay"), "the first is no replay");
    assert_eq!((again.status, &again.body), (first.status, &first.body));
    assert_eq!(without_replay(again), first.headers, "as it was sent, PAYMENT-RESPONSE included");
    assert!(first.settlement().unwrap().success);
}

fn assert_corrective(answer: &Answer) {
    assert_eq!(
        (answer.status, answer.error().as_str()),
        (StatusCode::PAYMENT_REQUIRED, Reason::BatchCumulativeAmountMismatch.as_str())
    );
}

#[tokio::test]
async fn a_challenge_offers_it_as_the_reference_implementation_does() {
    let (_house, site, _) = house().await;
    let required = site.get("/quote", None).await.unwrap().required().unwrap();
    assert_eq!(required.extensions["payment-identifier"], payment_identifier::declaration());
    assert_eq!(required.extensions["payment-identifier"]["info"], json!({ "required": false }));
}

#[tokio::test]
async fn the_same_payment_gets_the_same_answer_and_is_charged_once() {
    for (status, headers) in [
        (200, vec![("content-type", "application/json"), ("x-twice", "1"), ("x-twice", "2"), ("connection", "x")]),
        (200, vec![("set-cookie", "a=b"), ("turnpike-replay", "forged"), ("payment-response", "forged")]),
        (204, vec![]),
        (301, vec![("location", "/elsewhere")]),
    ] {
        let (house, site, client) = house().await;
        site.answers(status, &headers);
        let payment = payment(&site, "/quote", &client.pays(PRICE), ID).await;
        let mut first = get(&site, &payment).await;
        first.headers.remove("connection");
        assert_eq!((first.status.as_u16(), &*first.body), (status, BODY));
        site.behave(Behaviour::Fails);
        for _ in 0..3 {
            assert_replayed(&first, &get(&site, &payment).await);
        }
        assert_eq!((site.calls(), charged(&house, &client)), (1, PRICE.into()));
        assert_eq!(house.ledger.counts().1, 0, "nothing is reserved");
    }
}

#[tokio::test]
async fn a_deposits_answer_and_a_metered_one_are_kept_too() {
    let house = House::new().await;
    let site = Site::new(&house);
    let client = Client::new(7);
    let deposit = payment(&site, "/quote", &client.deposits(20_000, PRICE), ID).await;
    let first = get(&site, &deposit).await;
    assert_eq!(first.settlement().unwrap().amount.as_deref(), Some("20000"));
    assert_replayed(&first, &get(&site, &deposit).await);
    assert_eq!((house.facilitator.count("settle_deposit"), charged(&house, &client)), (1, PRICE.into()));

    site.answers(200, &[("x-cost", "0.0042")]);
    let metered = payment(&site, "/metered", &Client::metered(8).opens(), ID).await;
    let first = site.get("/metered", Some(metered.clone())).await.unwrap();
    assert_eq!(first.settlement().unwrap().amount.as_deref(), Some("4200"));
    assert_replayed(&first, &site.get("/metered", Some(metered)).await.unwrap());
    assert_eq!((house.facilitator.count("close_metered"), site.calls()), (1, 2));
}

#[tokio::test]
async fn an_id_is_for_one_payment_of_one_request() {
    let (house, site, client) = house().await;
    let first = payment(&site, "/quote", &client.pays(PRICE), ID).await;
    assert_eq!(get(&site, &first).await.status, StatusCode::OK);

    let send = |method: Method, uri: &'static str, host: &'static str, payment: Vec<u8>| {
        let request = Request::builder().method(method).uri(uri).header("host", host);
        let request = request.header("PAYMENT-SIGNATURE", payment).body(Full::new(Bytes::new())).unwrap();
        let site = site.clone();
        async move { site.send(request).await.unwrap() }
    };
    let host = "api.example.com";
    let next = payment(&site, "/quote", &client.pays(2 * PRICE), ID).await;
    for conflict in [
        send(Method::GET, "/quote", host, next.clone()).await,
        send(Method::POST, "/quote", host, first.clone()).await,
        send(Method::GET, "/quote?other", host, first.clone()).await,
        send(Method::GET, "/metered", host, first.clone()).await,
    ] {
        assert_eq!(conflict.status, StatusCode::CONFLICT);
        assert_eq!(conflict.json()["error"], Reason::PaymentIdentifierConflict.as_str());
        assert_eq!(conflict.headers["cache-control"], "no-store");
        assert!(conflict.required().is_none() && conflict.settlement().is_none());
        assert_eq!(conflict.verdict, Verdict::Refused(Reason::PaymentIdentifierConflict));
    }
    let case = send(Method::GET, "/quote", "API.example.com", first.clone()).await;
    assert_eq!(case.verdict, Verdict::Replayed, "a host is the same in any case");
    assert_corrective(&send(Method::GET, "/quote", "other.example.com", first).await);
    assert_eq!((site.calls(), charged(&house, &client), house.ledger.counts().1), (1, PRICE.into(), 0));

    let fresh = payment(&site, "/quote", &client.pays(2 * PRICE), "another_id_of_mine").await;
    assert_eq!(get(&site, &fresh).await.status, StatusCode::OK, "the voucher is still good");
}

#[tokio::test]
async fn another_payer_may_use_the_same_id() {
    let (house, site, client) = house().await;
    let other = Client::new(8);
    house.facilitator.open(&other.terms, 50_000);
    // Who does not pay cannot take an id: this names the payer and has no right to.
    let mut forged = client.pays(PRICE);
    forged["voucher"]["signature"] = other.voucher(PRICE)["signature"].clone();
    let forged = payment(&site, "/quote", &forged, ID).await;
    assert_eq!(get(&site, &forged).await.error(), Reason::BatchVoucherSignature.as_str());
    // Nor can who pays and names another besides.
    let mut two_faced = other.pays(PRICE);
    two_faced["from"] = json!(client.terms.payer);
    let two_faced = payment(&site, "/quote", &two_faced, ID).await;
    assert!(matches!(get(&site, &two_faced).await.verdict, Verdict::Charged { .. }));
    for (payer, total) in [(&client, PRICE), (&other, 2 * PRICE)] {
        let answer = get(&site, &payment(&site, "/quote", &payer.pays(total), ID).await).await;
        assert!(matches!(answer.verdict, Verdict::Charged { .. }));
    }
    let answer = get(&site, &forged).await;
    assert_eq!(answer.status, StatusCode::CONFLICT);
    assert_ne!(&*answer.body, BODY, "an answer is for its exact payment");
}

#[tokio::test]
async fn an_id_that_cannot_be_one_is_malformed() {
    let (house, site, client) = house().await;
    let offer = site.offer("/quote").await;
    for id in [json!("short"), json!("x".repeat(129)), json!("has spaces in it, so"), json!(7), json!(null)] {
        let answer = get(&site, &identified(&offer, &client.pays(PRICE), &id)).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{id}");
        assert_eq!(answer.json()["error"], Reason::InvalidPayload.as_str());
    }
    assert_eq!((site.calls(), house.ledger.counts().1), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_repeat_waits_for_the_first_and_gets_its_answer() {
    let (house, site, client) = house().await;
    let let_go = Arc::new(Semaphore::new(0));
    site.behave(Behaviour::Waits(Arc::clone(&let_go)));
    let payment = payment(&site, "/quote", &client.pays(PRICE), ID).await;
    let go = || {
        let (site, payment) = (site.clone(), payment.clone());
        tokio::spawn(async move { get(&site, &payment).await })
    };
    let first = go();
    while site.calls() == 0 {
        tokio::task::yield_now().await;
    }
    let repeats = [go(), go()];
    // The deadline of a repeat passes by itself: time stands still but for waits.
    let late = go().await.unwrap();
    assert_eq!(
        (late.status, late.json()["error"].as_str()),
        (StatusCode::SERVICE_UNAVAILABLE, Some("payment_in_process"))
    );
    assert_eq!(late.headers["retry-after"], "1");
    for repeat in repeats {
        assert_eq!(repeat.await.unwrap().status, StatusCode::SERVICE_UNAVAILABLE);
    }
    let other = identified(&site.offer("/quote").await, &client.pays(2 * PRICE), &json!(ID));
    assert_eq!(get(&site, &other).await.status, StatusCode::CONFLICT, "while it is served, too");
    let repeats = [go(), go()];
    tokio::task::yield_now().await;
    let_go.add_permits(1);
    let first = first.await.unwrap();
    for repeat in repeats {
        assert_replayed(&first, &repeat.await.unwrap());
    }
    assert_eq!((site.calls(), charged(&house, &client)), (1, PRICE.into()));
}

#[tokio::test(start_paused = true)]
async fn not_everybody_can_wait_for_one_request() {
    let (_house, site, client) = house().await;
    site.behave(Behaviour::Hangs);
    let payment = payment(&site, "/quote", &client.pays(PRICE), ID).await;
    let mut repeats = tokio::task::JoinSet::new();
    for _ in 0..12 {
        let (site, payment) = (site.clone(), payment.clone());
        repeats.spawn(async move { get(&site, &payment).await });
    }
    let mut details = Vec::new();
    for _ in 0..11 {
        details.push(repeats.join_next().await.unwrap().unwrap().json()["detail"].as_str().unwrap().to_owned());
    }
    assert_eq!(details.iter().filter(|detail| detail.starts_with("too many wait")).count(), 3);
    assert_eq!(site.calls(), 1);
}

#[tokio::test]
async fn where_the_first_is_given_up_a_repeat_is_served_itself() {
    let (house, site, client) = house().await;
    site.behave(Behaviour::Hangs);
    let payment = payment(&site, "/quote", &client.pays(PRICE), ID).await;
    let go = || {
        let (site, payment) = (site.clone(), payment.clone());
        tokio::spawn(async move { get(&site, &payment).await })
    };
    let first = go();
    while site.calls() == 0 {
        tokio::task::yield_now().await;
    }
    site.answers(200, &[]);
    let repeat = go();
    tokio::task::yield_now().await;
    first.abort();
    let answer = repeat.await.unwrap();
    assert!(matches!(answer.verdict, Verdict::Charged { .. }));
    assert_eq!((site.calls(), charged(&house, &client)), (2, PRICE.into()));
}

#[tokio::test]
async fn a_client_that_leaves_when_the_upstream_has_answered_finds_its_answer() {
    let (house, site, client) = house().await;
    let payment = payment(&site, "/quote", &client.pays(PRICE), ID).await;
    let disk = house.store.disk.lock().await;
    let writes = house.store.writes.load(Ordering::SeqCst);
    let gone = {
        let (site, payment) = (site.clone(), payment.clone());
        tokio::spawn(async move { get(&site, &payment).await })
    };
    while house.store.writes.load(Ordering::SeqCst) == writes {
        tokio::task::yield_now().await;
    }
    gone.abort();
    assert!(gone.await.unwrap_err().is_cancelled());
    let again = {
        let (site, payment) = (site.clone(), payment.clone());
        tokio::spawn(async move { get(&site, &payment).await })
    };
    tokio::task::yield_now().await;
    drop(disk);
    let again = again.await.unwrap();
    assert_eq!((&again.verdict, &*again.body), (&Verdict::Replayed, BODY));
    assert_eq!((site.calls(), charged(&house, &client)), (1, PRICE.into()));
}

#[tokio::test]
async fn what_is_not_charged_is_not_kept() {
    let (house, site, client) = house().await;
    let payment = payment(&site, "/quote", &client.pays(PRICE), ID).await;
    for status in [404, 500] {
        site.answers(status, &[]);
        for _ in 0..2 {
            assert!(matches!(get(&site, &payment).await.verdict, Verdict::Released(_)), "{status}");
        }
    }
    site.behave(Behaviour::Fails);
    site.get("/quote", Some(payment.clone())).await.unwrap_err();
    site.behave(Behaviour::Streams(vec![], vec![Piece::Bytes(b"half of"), Piece::Break]));
    for _ in 0..2 {
        let answer = get(&site, &payment).await;
        assert_eq!(
            (answer.status, answer.json()["error"].as_str()),
            (StatusCode::BAD_GATEWAY, Some("upstream_broke_off"))
        );
        assert!(matches!(answer.verdict, Verdict::Released(_)) && answer.settlement().is_none());
    }
    assert_eq!((charged(&house, &client), house.ledger.answers().0), (Amount::ZERO, 0));
    *house.store.failing.lock() = true;
    site.answers(200, &[]);
    assert_eq!(get(&site, &payment).await.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!((charged(&house, &client), house.ledger.answers().0), (Amount::ZERO, 0));
}

#[tokio::test]
async fn a_metered_answer_that_breaks_off_closes_at_nothing() {
    let house = House::new().await;
    let site = Site::new(&house);
    site.behave(Behaviour::Streams(vec![("x-cost", "0.0042")], vec![Piece::Break]));
    let metered = payment(&site, "/metered", &Client::metered(8).opens(), ID).await;
    let answer = site.get("/metered", Some(metered)).await.unwrap();
    assert_eq!((answer.status, answer.settlement().unwrap().amount.as_deref()), (StatusCode::BAD_GATEWAY, Some("0")));
    assert_eq!(house.facilitator.count("close_metered 0"), 1);
}

#[tokio::test]
async fn an_answer_that_says_its_charge_in_its_body_is_kept_with_it() {
    let usage = br#"{"usage":{"prompt_tokens":1000,"completion_tokens":500}}"#;
    let events = b"data: {\"usage\":{\"prompt_tokens\":1000,\"completion_tokens\":500}}\n\n";
    let stream = vec![("content-type", "text/event-stream")];
    for (headers, body, kept) in [(vec![], &usage[..], 1), (stream, &events[..], 0)] {
        let house = House::new().await;
        let site = Site::new(&house);
        site.behave(Behaviour::Streams(headers, vec![Piece::Bytes(body)]));
        let paid = payment(&site, "/tokens", &Client::metered(8).opens(), ID).await;
        let first = site.get("/tokens", Some(paid.clone())).await.unwrap();
        assert_eq!((&*first.body, first.settlement().unwrap().amount.as_deref()), (body, Some("450")));
        assert_eq!(house.ledger.answers().0, kept);
        let again = site.get("/tokens", Some(paid)).await.unwrap();
        if kept == 1 {
            assert_replayed(&first, &again);
        } else {
            assert_eq!(again.status, StatusCode::PAYMENT_REQUIRED, "a stream is not kept");
        }
        assert_eq!((site.calls(), house.facilitator.count("close_metered")), (1, 1));
    }
}

/// Delivered and charged as ever; a repeat is corrected.
#[tokio::test(start_paused = true)]
async fn what_is_long_or_goes_on_is_streamed_and_not_kept() {
    static LONG: [u8; 70_000] = [7; 70_000];
    let pause = |seconds| Piece::Pause(Duration::from_secs(seconds));
    let (start, end) = (Piece::Bytes(b"start"), Piece::Bytes(b"end"));
    let long = "x".repeat(33 * 1024).leak();
    for (headers, pieces, kept) in [
        (vec![], vec![start, end], true),
        (vec![], vec![], true),
        (vec![], vec![start, Piece::Pause(Duration::from_millis(900)), end], true),
        (vec![], vec![start, pause(2), end], false),
        (vec![], vec![start, pause(20), end], false),
        (vec![], vec![start, Piece::Bytes(&LONG), end], false),
        (vec![], vec![start, end, Piece::Trailers], false),
        (vec![("content-type", "text/event-stream")], vec![start, end], false),
        (vec![("content-type", "Text/Event-Stream; charset=utf-8")], vec![start, end], false),
        (vec![("x-long", &*long)], vec![start, end], false),
    ] {
        let (house, site, client) = house().await;
        let expected: Vec<u8> = pieces
            .iter()
            .filter_map(|piece| if let Piece::Bytes(bytes) = piece { Some(*bytes) } else { None })
            .flatten()
            .copied()
            .collect();
        site.behave(Behaviour::Streams(headers, pieces));
        let payment = payment(&site, "/quote", &client.pays(PRICE), ID).await;
        let first = get(&site, &payment).await;
        assert!(first.body == expected, "nothing is lost or doubled");
        assert!(first.settlement().unwrap().success);
        assert_eq!(charged(&house, &client), PRICE.into());
        let again = get(&site, &payment).await;
        if kept {
            assert_replayed(&first, &again)
        } else {
            assert_corrective(&again)
        }
        assert_eq!(site.calls(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_kept_for_its_time_and_within_the_limits() {
    let limits = AnswerLimits { keep: Duration::from_secs(60), bytes_max: 3_000 };
    let house = House::keeping(Arc::default(), Options::default(), Some(limits)).await;
    let client = Client::new(7);
    house.facilitator.open(&client.terms, 50_000);
    let site = Site::new(&house);
    let mut payments = Vec::new();
    for call in 1..=6 {
        let payment = payment(&site, "/quote", &client.pays(call * PRICE), &format!("{ID}-{call}")).await;
        assert!(matches!(get(&site, &payment).await.verdict, Verdict::Charged { .. }));
        payments.push(payment);
    }
    let (count, bytes) = house.ledger.answers();
    assert!((1..6).contains(&count) && bytes <= 3_000, "{count} answers with {bytes} bytes");
    for (call, payment) in payments.iter().enumerate() {
        let again = get(&site, payment).await;
        if call < 6 - count {
            assert_corrective(&again)
        } else {
            assert_eq!(again.verdict, Verdict::Replayed, "{call}")
        }
    }
    house.clock.advance(Duration::from_millis(59_999));
    assert_eq!(get(&site, &payments[5]).await.verdict, Verdict::Replayed);
    house.clock.advance(Duration::from_millis(1));
    assert_corrective(&get(&site, &payments[5]).await);
    while !house.store.answers.lock().is_empty() {
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    assert_eq!(house.ledger.answers(), (0, 0), "what is over is deleted in the background");
}

#[tokio::test]
async fn after_a_restart_the_answer_is_still_there() {
    let store = Arc::new(MemoryStore::default());
    let client = Client::new(7);
    let (payment, first) = {
        let house = House::over(Arc::clone(&store)).await;
        house.facilitator.open(&client.terms, 50_000);
        let site = Site::new(&house);
        let payment = payment(&site, "/quote", &client.pays(PRICE), ID).await;
        let first = get(&site, &payment).await;
        (payment, first)
    };
    let house = House::over(store).await;
    let site = Site::new(&house);
    assert_replayed(&first, &get(&site, &payment).await);
    assert_eq!((site.calls(), charged(&house, &client)), (0, PRICE.into()));
}

#[tokio::test]
async fn switched_off_it_is_not_offered_and_ids_mean_nothing() {
    let off = Options { replay: None, ..Options::default() };
    for (options, limits) in [(off, Some(AnswerLimits::default())), (Options::default(), None)] {
        let house = House::keeping(Arc::default(), options, limits).await;
        let client = Client::new(7);
        house.facilitator.open(&client.terms, 50_000);
        let site = Site::new(&house);
        assert!(site.get("/quote", None).await.unwrap().required().unwrap().extensions.is_empty());
        let paid = payment(&site, "/quote", &client.pays(PRICE), ID).await;
        assert_eq!(get(&site, &paid).await.status, StatusCode::OK);
        assert_corrective(&get(&site, &paid).await);
        let malformed = payment(&site, "/quote", &client.pays(2 * PRICE), "short").await;
        assert_eq!(get(&site, &malformed).await.status, StatusCode::OK);
        assert_eq!((house.ledger.answers(), house.store.answers.lock().len()), ((0, 0), 0));
    }
}

#[tokio::test]
async fn without_an_id_nothing_is_kept() {
    let (house, site, client) = house().await;
    site.quote(&client.pays(PRICE)).await;
    assert_corrective(&site.quote(&client.pays(PRICE)).await);
    let offer = site.offer("/quote").await;
    let echo = json!({ "payment-identifier": payment_identifier::declaration() });
    let payment = json!({ "x402Version": 2, "accepted": offer, "payload": client.pays(2 * PRICE), "extensions": echo });
    assert_eq!(get(&site, &crate::doubles::encode(&payment)).await.status, StatusCode::OK, "a client that only echoes");
    assert_eq!(house.ledger.answers(), (0, 0));
}

#[tokio::test]
async fn a_body_limit_of_the_operators_holds() {
    for (bytes_max, kept) in [(BODY.len(), true), (BODY.len() - 1, false)] {
        let replay = Some(replay::Options { body_bytes_max: bytes_max, ..replay::Options::default() });
        let house = House::with(Arc::default(), Options { replay, ..Options::default() }).await;
        let client = Client::new(7);
        house.facilitator.open(&client.terms, 50_000);
        let site = Site::new(&house);
        let payment = payment(&site, "/quote", &client.pays(PRICE), ID).await;
        assert_eq!(&*get(&site, &payment).await.body, BODY);
        assert_eq!(house.ledger.answers().0, usize::from(kept));
    }
}
