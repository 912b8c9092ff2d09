//! Metered requests through the layer: open, serve, close at the charge, whatever happens between.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use serde_json::json;
use turnpike::amount::Amount;
use turnpike::facilitator::FacilitatorError;
use turnpike::gate::Options;
use turnpike::layer::Verdict;
use turnpike::ledger::store::MeteredRecord;
use turnpike::scheme::svm::program::ChannelStatus;
use turnpike::x402::Reason;
use turnpike::x402::key::Signature;

use crate::doubles::{CEILING, Client, House, MemoryStore, START, seller};
use crate::upstream::{BODY, Behaviour, Piece, Site};

async fn house() -> (House, Site, Client) {
    let house = House::new().await;
    let site = Site::new(&house);
    (house, site, Client::metered(7))
}

fn journalled(house: &House) -> usize {
    house.store.metered.lock().len()
}

#[tokio::test]
async fn the_upstreams_report_is_charged_before_its_answer_leaves() {
    for (report, charged) in [
        (vec![("x-cost", "0.0042")], "4200"),
        (vec![("x-cost", "0")], "0"),
        (vec![("x-cost", "7")], "10000"),
        (vec![("x-cost", "free")], "0"),
        (vec![("x-cost", "0.001"), ("x-cost", "0.002")], "0"),
        (vec![], "10000"),
    ] {
        let (house, site, client) = house().await;
        site.answers(200, &report);
        let answer = site.pay("/metered", &client.opens()).await.unwrap();
        assert_eq!((answer.status, &*answer.body), (StatusCode::OK, BODY));
        assert_eq!(answer.headers["cache-control"], "private");
        assert_eq!(
            serde_json::to_value(answer.settlement().unwrap()).unwrap(),
            json!({
                "success": true,
                "payer": client.terms.payer,
                "transaction": Signature([2; 64]),
                "network": seller().network,
                "amount": charged,
            })
        );
        assert_eq!(
            *house.facilitator.calls.lock(),
            ["accept_deposit", "settle_deposit", format!("close_metered {charged}").as_str()]
        );
        assert_eq!(site.seen.lock()[0].headers["turnpike-amount"], CEILING.to_string());
        house.gate.settled().await;
        assert_eq!(journalled(&house), 0);
    }
}

const USAGE: &[u8] = br#"{"text":"...","usage":{"prompt_tokens":1000,"completion_tokens":500}}"#;
const EVENTS: &[u8] = b"data: {\"usage\":null}\n\ndata: {\"usage\":{\"prompt_tokens\":1000,\"completion_tokens\":";
const LAST_EVENTS: &[u8] = b"500}}\n\ndata: [DONE]\n\n";
/// Longer than the routes here hold.
const LONG: &[u8] = &[b' '; 201];
const STREAM: (&str, &str) = ("content-type", "text/event-stream");

/// Answers in these pieces, pays, and says what was charged; the body must come through whole.
async fn charged(path: &str, headers: &[(&'static str, &'static str)], pieces: &[Piece]) -> Option<String> {
    let (house, site, client) = house().await;
    site.behave(Behaviour::Streams(headers.to_vec(), pieces.to_vec()));
    let answer = site.pay(path, &client.opens()).await.unwrap();
    assert_eq!(answer.status, StatusCode::OK);
    let bytes = |piece: &Piece| if let Piece::Bytes(bytes) = piece { *bytes } else { &[] };
    assert_eq!(answer.body, pieces.iter().map(bytes).collect::<Vec<_>>().concat());
    house.gate.settled().await;
    assert_eq!(journalled(&house), 0);
    answer.settlement().unwrap().amount
}

#[tokio::test(start_paused = true)]
async fn the_body_says_the_charge_and_comes_through_whole() {
    let (bytes, pause) = (Piece::Bytes, |seconds| Piece::Pause(Duration::from_secs(seconds)));
    for (path, headers, pieces, expected) in [
        ("/tokens", vec![], vec![bytes(USAGE)], "450"),
        ("/tokens", vec![], vec![bytes(&USAGE[..20]), pause(29), bytes(&USAGE[20..])], "450"),
        ("/tokens", vec![STREAM], vec![bytes(EVENTS), pause(20), bytes(LAST_EVENTS)], "450"),
        ("/strict", vec![], vec![bytes(USAGE)], "450"),
        // No report, or none that can be waited for.
        ("/tokens", vec![], vec![bytes(b"<html>")], "10000"),
        ("/tokens", vec![], vec![], "10000"),
        ("/tokens", vec![], vec![bytes(br#"{"usage":{"prompt_tokens":1,"completion_tokens":-1}}"#)], "0"),
        ("/tokens", vec![("content-encoding", "gzip")], vec![bytes(USAGE)], "10000"),
        ("/tokens", vec![], vec![bytes(&USAGE[..20]), pause(31), bytes(&USAGE[20..])], "10000"),
        ("/tokens", vec![], vec![bytes(LONG), bytes(USAGE)], "10000"),
        ("/tokens", vec![], vec![bytes(USAGE), Piece::Trailers], "10000"),
        ("/bytes", vec![], vec![bytes(b"12345"), pause(1), bytes(b"678")], "8"),
        ("/bytes", vec![], vec![], "0"),
        ("/bytes", vec![], vec![bytes(LONG)], "10000"),
    ] {
        let case = format!("{path} {headers:?} {pieces:?}");
        assert_eq!(charged(path, &headers, &pieces).await.as_deref(), Some(expected), "{case}");
    }
}

#[tokio::test]
async fn a_body_of_known_length_is_charged_by_its_bytes_at_once() {
    let (_house, site, client) = house().await;
    let answer = site.pay("/bytes", &client.opens()).await.unwrap();
    assert_eq!((&*answer.body, answer.settlement().unwrap().amount.as_deref()), (BODY, Some("9")));
}

#[tokio::test]
async fn what_is_to_be_read_is_asked_for_uncompressed() {
    let (_house, site, client) = house().await;
    site.pay("/tokens", &client.opens()).await.unwrap();
    site.pay("/bytes", &Client::metered(8).opens()).await.unwrap();
    let asked: Vec<_> = site.seen.lock().iter().map(|seen| seen.headers.get("accept-encoding").cloned()).collect();
    assert_eq!(asked, [Some("identity".parse().unwrap()), None]);
}

#[tokio::test(start_paused = true)]
async fn without_a_report_a_strict_route_refuses_and_charges_nothing() {
    let late = vec![Piece::Bytes(USAGE), Piece::Pause(Duration::from_secs(31))];
    for pieces in [vec![Piece::Bytes(b"{}")], vec![Piece::Bytes(LONG)], late] {
        let (house, site, client) = house().await;
        site.behave(Behaviour::Streams(vec![], pieces));
        let answer = site.pay("/strict", &client.opens()).await.unwrap();
        assert_eq!(
            (answer.status, answer.json()["error"].as_str()),
            (StatusCode::BAD_GATEWAY, Some("upstream_unmetered"))
        );
        assert_eq!(answer.headers["cache-control"], "no-store");
        let settlement = answer.settlement().unwrap();
        assert_eq!((settlement.success, settlement.amount.as_deref()), (true, Some("0")));
        assert!(matches!(answer.verdict, Verdict::Released(_)));
        assert_eq!((house.facilitator.count("close_metered 0"), house.facilitator.count("close_metered")), (1, 1));
        assert_eq!(journalled(&house), 0);
    }
}

#[tokio::test]
async fn a_metered_body_that_breaks_off_is_not_charged() {
    for path in ["/tokens", "/strict", "/bytes"] {
        let (house, site, client) = house().await;
        site.behave(Behaviour::Streams(vec![], vec![Piece::Bytes(&USAGE[..30]), Piece::Break]));
        let answer = site.pay(path, &client.opens()).await.unwrap();
        assert_eq!(
            (answer.status, answer.json()["error"].as_str()),
            (StatusCode::BAD_GATEWAY, Some("upstream_broke_off"))
        );
        assert_eq!((house.facilitator.count("close_metered 0"), journalled(&house)), (1, 0));
    }
}

#[tokio::test]
async fn an_error_is_not_read_for_its_charge() {
    let (house, site, client) = house().await;
    site.answers(404, &[]);
    let answer = site.pay("/strict", &client.opens()).await.unwrap();
    assert_eq!((answer.status, &*answer.body), (StatusCode::NOT_FOUND, BODY));
    assert_eq!(house.facilitator.count("close_metered 0"), 1);
}

#[tokio::test]
async fn a_client_that_goes_while_its_answer_is_collected_pays_nothing() {
    let (house, site, client) = house().await;
    let endless = Piece::Pause(Duration::from_secs(3600));
    site.behave(Behaviour::Streams(vec![], vec![Piece::Bytes(&USAGE[..30]), endless]));
    let (gone, payload) = (site.clone(), client.opens());
    let task = tokio::spawn(async move { gone.pay("/tokens", &payload).await.map(|_| ()).map_err(|_| ()) });
    while site.calls() == 0 {
        tokio::task::yield_now().await;
    }
    task.abort();
    let _ = task.await;
    house.gate.settled().await;
    assert_eq!((house.facilitator.count("close_metered 0"), journalled(&house)), (1, 0));
}

#[tokio::test]
async fn a_failing_upstream_closes_at_nothing() {
    let (house, site, client) = house().await;
    site.answers(500, &[("x-cost", "0.0042")]);
    let answer = site.pay("/metered", &client.opens()).await.unwrap();
    assert_eq!((answer.status, &*answer.body), (StatusCode::INTERNAL_SERVER_ERROR, BODY));
    assert_eq!(answer.settlement().unwrap().amount.as_deref(), Some("0"), "the payer learns that all went back");
    assert!(matches!(answer.verdict, Verdict::Released(_)));
    assert_eq!(house.facilitator.count("close_metered 0"), 1);
    assert_eq!(journalled(&house), 0);
}

#[tokio::test]
async fn a_request_that_is_gone_closes_at_nothing() {
    for behaviour in [Behaviour::Fails, Behaviour::Panics, Behaviour::Hangs] {
        let (house, site, client) = house().await;
        site.behave(behaviour);
        let (gone, payload) = (site.clone(), client.opens());
        let task = tokio::spawn(async move { gone.pay("/metered", &payload).await.map(|_| ()).map_err(|_| ()) });
        while site.calls() == 0 {
            tokio::task::yield_now().await;
        }
        task.abort();
        let _ = task.await;
        house.gate.settled().await;
        assert_eq!(house.facilitator.count("close_metered 0"), 1);
        assert_eq!((house.facilitator.count("close_metered"), journalled(&house)), (1, 0));
    }
}

#[tokio::test]
async fn a_charge_that_cannot_be_claimed_is_not_delivered_and_goes_back() {
    let refused = || FacilitatorError::Refused { reason: Reason::UptoSettlementSimulation, detail: "no".to_owned() };
    let unavailable = || FacilitatorError::Unavailable("secret-endpoint".to_owned());
    for (errors, status, reason) in [
        (vec![unavailable(), unavailable(), unavailable()], 503, Reason::ChainUnavailable),
        (vec![refused()], 402, Reason::UptoSettlementSimulation),
        (vec![unavailable(), refused()], 402, Reason::UptoSettlementSimulation),
    ] {
        let (house, site, client) = house().await;
        site.answers(200, &[("x-cost", "0.0042")]);
        for error in errors {
            house.facilitator.fail("close_metered", error);
        }
        let answer = site.pay("/metered", &client.opens()).await.unwrap();
        assert_eq!(answer.status.as_u16(), status);
        assert!(!answer.body.windows(BODY.len()).any(|window| window == BODY));
        assert_eq!(answer.settlement().unwrap().error_reason.as_deref(), Some(reason.as_str()));
        house.gate.settled().await;
        let channel = house.facilitator.channels.lock()[&client.terms.id];
        assert_eq!((channel.status, channel.claimed), (ChannelStatus::Distributed, Amount::ZERO));
        assert_eq!(journalled(&house), 0);
    }
}

#[tokio::test]
async fn a_close_that_comes_through_on_a_later_try_is_delivered() {
    let (house, site, client) = house().await;
    house.facilitator.unavailable("close_metered", 2);
    let answer = site.pay("/metered", &client.opens()).await.unwrap();
    assert_eq!(answer.settlement().unwrap().amount.as_deref(), Some("10000"));
}

#[tokio::test]
async fn a_close_that_is_pending_is_delivered_and_followed() {
    let (house, site, client) = house().await;
    house.facilitator.pending.lock().push("close_metered");
    let answer = site.pay("/metered", &client.opens()).await.unwrap();
    assert_eq!((answer.status, &*answer.body), (StatusCode::OK, BODY));
    let settlement = answer.settlement().unwrap();
    assert_eq!((settlement.success, settlement.amount.as_deref()), (true, Some("10000")));
    assert_eq!(settlement.transaction, Signature([2; 64]).to_string());
    house.gate.settled().await;
    assert_eq!((house.facilitator.count("close_metered"), journalled(&house)), (1, 0));
}

#[tokio::test]
async fn a_pending_close_that_never_lands_is_made_again_at_the_charge() {
    let (house, site, client) = house().await;
    house.facilitator.fail("close_metered", FacilitatorError::Pending { transaction: Signature([9; 64]) });
    let answer = site.pay("/metered", &client.opens()).await.unwrap();
    assert_eq!(answer.settlement().unwrap().transaction, Signature([9; 64]).to_string());
    assert_eq!(house.facilitator.count("close_metered"), 1, "not before the first can no longer land");
    assert_eq!(house.store.metered.lock()[&client.terms.id].close.unwrap().0, Signature([9; 64]));
    house.clock.advance(Duration::from_secs(121));
    house.gate.settled().await;
    assert_eq!(house.facilitator.count("close_metered 10000"), 2);
    assert_eq!(journalled(&house), 0);
}

#[tokio::test]
async fn a_charge_that_has_expired_is_forgone() {
    let (house, site, client) = house().await;
    house.facilitator.fail("close_metered", FacilitatorError::Pending { transaction: Signature([9; 64]) });
    site.pay("/metered", &client.opens()).await.unwrap();
    house.clock.advance(Duration::from_secs(301));
    house.gate.settled().await;
    assert_eq!((house.facilitator.count("close_metered 0"), journalled(&house)), (1, 0));
}

#[tokio::test]
async fn what_is_not_opened_is_not_served() {
    let refused = FacilitatorError::Refused { reason: Reason::UptoChannelBroadcast, detail: "no".to_owned() };
    let unavailable = FacilitatorError::Unavailable("secret-endpoint".to_owned());
    for (method, error, status, reason) in [
        ("accept_deposit", refused.clone(), 402, Reason::UptoChannelBroadcast),
        ("settle_deposit", refused, 402, Reason::UptoChannelBroadcast),
        ("settle_deposit", unavailable, 503, Reason::ChainUnavailable),
    ] {
        let (house, site, client) = house().await;
        house.facilitator.fail(method, error);
        let answer = site.pay("/metered", &client.opens()).await.unwrap();
        assert_eq!(answer.status.as_u16(), status);
        assert!(answer.error() == reason.as_str() || answer.json()["error"] == reason.as_str());
        house.clock.advance(Duration::from_secs(121));
        house.gate.settled().await;
        assert_eq!((site.calls(), journalled(&house)), (0, 0));
        assert_eq!(house.facilitator.count("close_metered"), 0);
    }
}

#[tokio::test]
async fn an_open_that_is_pending_is_not_served_and_goes_back_when_it_lands() {
    let (house, site, client) = house().await;
    house.facilitator.pending.lock().push("settle_deposit");
    let answer = site.pay("/metered", &client.opens()).await.unwrap();
    assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(answer.settlement().unwrap().error_reason.as_deref(), Some("settlement_pending"));
    house.gate.settled().await;
    assert_eq!((site.calls(), house.facilitator.count("close_metered 0"), journalled(&house)), (0, 1, 0));
}

#[tokio::test]
async fn a_channel_that_is_not_what_was_agreed_is_not_served_and_goes_back() {
    let (house, site, client) = house().await;
    *house.facilitator.brings_to.lock() = Some(Amount::from(CEILING + 1));
    let answer = site.pay("/metered", &client.opens()).await.unwrap();
    assert_eq!(answer.error(), Reason::UptoChannelState.as_str());
    assert_eq!(answer.settlement().unwrap().transaction, Signature([1; 64]).to_string());
    house.gate.settled().await;
    assert_eq!((site.calls(), house.facilitator.count("close_metered 0"), journalled(&house)), (0, 1, 0));
}

#[tokio::test]
async fn metered_requests_are_bounded() {
    let options = Options { metered_open_max: 1, ..Options::default() };
    let house = House::with(Arc::default(), options).await;
    let site = Site::new(&house);
    site.behave(Behaviour::Hangs);
    let (first, payload) = (site.clone(), Client::metered(7).opens());
    let task = tokio::spawn(async move { first.pay("/metered", &payload).await.map(|_| ()).map_err(|_| ()) });
    while site.calls() == 0 {
        tokio::task::yield_now().await;
    }
    let answer = site.pay("/metered", &Client::metered(8).opens()).await.unwrap();
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    task.abort();
    let _ = task.await;
    house.gate.settled().await;
    site.answers(200, &[]);
    assert_eq!(site.pay("/metered", &Client::metered(8).opens()).await.unwrap().status, StatusCode::OK);
}

#[tokio::test]
async fn one_authorization_is_served_once() {
    let (house, site, client) = house().await;
    site.behave(Behaviour::Hangs);
    let (first, payload) = (site.clone(), client.opens());
    let task = tokio::spawn(async move { first.pay("/metered", &payload).await.map(|_| ()).map_err(|_| ()) });
    while site.calls() == 0 {
        tokio::task::yield_now().await;
    }
    site.answers(200, &[]);
    // The chain has it already; and where it does not yet, the gate remembers.
    let answer = site.pay("/metered", &client.opens()).await.unwrap();
    assert_eq!(answer.error(), Reason::UptoChannelAlreadyOpen.as_str());
    house.facilitator.channels.lock().clear();
    let answer = site.pay("/metered", &client.opens()).await.unwrap();
    assert_eq!(answer.error(), Reason::DuplicateSettlement.as_str());
    assert_eq!((site.calls(), house.facilitator.count("settle_deposit")), (1, 1));
    task.abort();
    let _ = task.await;
}

#[tokio::test]
async fn tampering_is_refused_with_its_code() {
    let (house, site, client) = house().await;
    for (name, value, reason) in [
        ("voucherSignature", json!(""), Reason::UptoUnexpectedVoucher),
        ("maxAmount", json!("9999"), Reason::UptoAmountMismatch),
        ("deposit", json!("10001"), Reason::UptoDepositNotCeiling),
        ("nonce", json!("43"), Reason::UptoChannelId),
        ("expiresAt", json!(0), Reason::UptoExpired),
        ("expiresAt", json!(START.seconds() + 400), Reason::UptoExpiresAtMismatch),
        ("validAfter", json!(START.seconds() + 1), Reason::UptoNotYetActive),
    ] {
        let mut payload = client.opens();
        payload[name] = value;
        let answer = site.pay("/metered", &payload).await.unwrap();
        assert_eq!((answer.status, answer.error().as_str()), (StatusCode::PAYMENT_REQUIRED, reason.as_str()));
    }
    assert!(house.facilitator.calls.lock().is_empty());
    assert_eq!(site.calls(), 0);
}

/// What a crash left in the journal, and what becomes of it.
#[tokio::test]
async fn after_a_restart_what_was_left_open_is_closed() {
    let close = Some((Signature([9; 64]), 7));
    let charge = Some(Amount::new(4200));
    for (name, charge, close, on_chain, wait, expected) in [
        ("serving", None, None, true, 0, vec!["close_metered 0"]),
        ("opening", None, None, false, 121, vec![]),
        ("charge decided", charge, None, true, 121, vec!["close_metered 0"]),
        ("close sent", charge, close, true, 121, vec!["close_metered 4200"]),
        ("close sent, expired", charge, close, true, 301, vec!["close_metered 0"]),
        ("closed", charge, close, false, 0, vec![]),
    ] {
        let store = Arc::new(MemoryStore::default());
        let terms = Client::metered(7).terms;
        let (deposit, expires_at) = (Amount::from(CEILING), START.seconds() + 300);
        let record = MeteredRecord { terms: terms.clone(), deposit, expires_at, charge, close };
        store.metered.lock().insert(terms.id, record);
        let house = House::over(store).await;
        if on_chain {
            house.facilitator.open(&terms, CEILING);
        }
        house.gate.recover();
        house.clock.advance(Duration::from_secs(wait));
        house.gate.settled().await;
        let calls = house.facilitator.calls.lock();
        let closes: Vec<_> = calls.iter().filter(|call| call.starts_with("close_metered")).collect();
        assert_eq!(closes, expected, "{name}");
        assert_eq!(journalled(&house), 0, "{name}");
    }
}
