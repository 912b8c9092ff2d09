//! Schemes `exact` and `upto`: one authorization, one delivery, one settlement.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use turnpike::audit::{AuditError, Entry, Kind, Position, Recorder};
use turnpike::facilitator::interface::InterfaceError;
use turnpike::gate::Options;
use turnpike::gate::evm::Served;
use turnpike::layer::Verdict;
use turnpike::x402::Reason;

use super::doubles::{Client, EvmHouse, Goes, Wallet, refused, settler, unavailable, unknown};
use crate::doubles::{CEILING, PRICE, identified};
use crate::upstream::{Answer, BODY, Behaviour};

const ID: &str = "pay_7d5d747be160e280504c099d984bcfe0";
const SENT: &str = "0x00000000000000000000000000000000000000000000000000000000000000aa";

#[tokio::test]
async fn an_authorization_is_verified_served_and_settled() {
    let client = Client::new(7);
    for (path, payload) in [("/exact", client.exact(PRICE, 1)), ("/exact/permit2", client.exact_permit2(PRICE, 1))] {
        let house = EvmHouse::new().await;
        let answer = house.site.pay(path, &payload).await.unwrap();
        assert_eq!((answer.status, &*answer.body), (StatusCode::OK, BODY));
        assert_eq!(answer.headers["cache-control"], "private");
        assert!(answer.settlement_v1().is_none());
        let settlement = serde_json::to_value(answer.settlement().unwrap()).unwrap();
        assert_eq!(
            settlement,
            json!({
                "success": true,
                "payer": client.wallet.address(),
                "transaction": format!("0x{:064x}", 2),
                "network": "eip155:84532",
                "amount": "1000",
            })
        );
        assert_eq!(*house.facilitator.calls.lock(), ["verify exact", "settle exact"]);
        assert!(house.facilitator.asked.lock().iter().all(|asked| asked.x402_version == 2));
        assert_eq!(*house.facilitator.moved.lock(), ["1000"]);
        let seen = house.site.seen.lock()[0].clone();
        assert_eq!(seen.headers["turnpike-payer"], client.wallet.address().to_string());
        assert_eq!(
            (&seen.headers["turnpike-amount"], seen.headers.get("turnpike-channel")),
            (&"1000".parse().unwrap(), None)
        );
        assert!(matches!(answer.verdict, Verdict::Charged { charged, .. } if charged.get() == 1000));
    }
}

#[tokio::test]
async fn the_offers_are_the_schemes_own() {
    let house = EvmHouse::new().await;
    let offer = |path: &'static str| {
        let site = house.site.clone();
        async move { serde_json::to_value(site.offer(path).await).unwrap() }
    };
    let exact = offer("/exact").await;
    assert_eq!((&exact["scheme"], &exact["amount"]), (&json!("exact"), &json!("1000")));
    assert_eq!(exact["extra"], json!({ "name": "USDC", "version": "2" }));
    let permit2 = offer("/exact/permit2").await;
    assert_eq!(permit2["extra"], json!({ "name": "USDC", "version": "2", "assetTransferMethod": "permit2" }));
    let upto = offer("/upto").await;
    assert_eq!((&upto["scheme"], &upto["amount"]), (&json!("upto"), &json!("10000")));
    assert_eq!(upto["extra"]["facilitatorAddress"], json!(settler()));
    let house = EvmHouse::with(Options::default(), Served::default()).await;
    assert_eq!(house.site.get("/upto", None).await.unwrap().required().unwrap().accepts, [], "nobody would settle it");
}

#[tokio::test]
async fn upto_settles_what_the_upstream_reports_and_never_more() {
    for (path, report, charged) in [
        ("/upto", vec![("x-cost", "0.0042")], "4200"),
        ("/upto", vec![("x-cost", "7")], "10000"),
        ("/upto", vec![], "10000"),
    ] {
        let (house, client) = (EvmHouse::new().await, Client::new(7));
        house.site.answers(200, &report);
        let answer = house.site.pay(path, &client.upto(CEILING, 1)).await.unwrap();
        assert_eq!(answer.settlement().unwrap().amount.as_deref(), Some(charged), "{report:?}");
        assert_eq!(*house.facilitator.calls.lock(), ["verify upto", &format!("settle upto {charged}")]);
        let asked = house.facilitator.asked.lock();
        assert_eq!(asked[0].requirements["amount"], "10000", "verified at the ceiling");
        assert_eq!(asked[1].payload["accepted"]["amount"], "10000", "what the client signed is as it was");
    }
    let (house, client) = (EvmHouse::new().await, Client::new(7));
    let answer = house.site.pay("/upto/fixed", &client.upto(PRICE, 1)).await.unwrap();
    assert_eq!(answer.settlement().unwrap().amount.as_deref(), Some("1000"), "a price is charged whole");
}

#[tokio::test]
async fn a_charge_of_nothing_settles_nothing() {
    for report in [("x-cost", "0"), ("x-cost", "free")] {
        let (house, client) = (EvmHouse::new().await, Client::new(7));
        house.site.answers(200, &[report]);
        let answer = house.site.pay("/upto", &client.upto(CEILING, 1)).await.unwrap();
        let settlement = answer.settlement().unwrap();
        assert_eq!((answer.status, settlement.success), (StatusCode::OK, true));
        assert_eq!((settlement.transaction.as_str(), settlement.amount.as_deref()), ("", Some("0")));
        assert_eq!(house.facilitator.count("settle"), 0);
    }
    let (house, client) = (EvmHouse::new().await, Client::new(7));
    let answer = house.site.pay("/upto/strict", &client.upto(CEILING, 1)).await.unwrap();
    assert_eq!((answer.status, answer.json()["error"].as_str()), (StatusCode::BAD_GATEWAY, Some("upstream_unmetered")));
    assert_eq!((house.facilitator.count("settle"), answer.settlement()), (0, None));
}

/// The audit record of a gate, or one that cannot be written.
#[derive(Debug, Default)]
struct Told {
    entries: parking_lot::Mutex<Vec<Entry>>,
    full: bool,
}

#[async_trait::async_trait]
impl Recorder for Told {
    async fn record(&self, entry: Entry) -> Result<Position, AuditError> {
        if self.full {
            return Err(AuditError::Failed("disk full".to_owned()));
        }
        let mut entries = self.entries.lock();
        entries.push(entry);
        Ok(Position { seq: u64::try_from(entries.len()).unwrap(), ..Position::default() })
    }

    fn record_blocking(&self, _entries: &[Entry]) -> Result<Position, AuditError> {
        unreachable!("the ledger's store asks for it")
    }

    fn reconcile(&self, at: Position) -> Result<Position, AuditError> {
        Ok(at)
    }

    fn health(&self) -> Result<(), AuditError> {
        Ok(())
    }
}

#[tokio::test]
async fn a_settlement_is_recorded_before_and_after_and_not_made_where_it_cannot_be() {
    let served = || Served { upto_facilitator: Some(settler()), exact_v1: true };
    let client = Client::new(7);
    let told = Arc::new(Told::default());
    let options = Options { recorder: Some(told.clone()), ..Options::default() };
    let house = EvmHouse::with(options, served()).await;
    assert_eq!(house.site.pay("/exact", &client.exact(PRICE, 1)).await.unwrap().status, StatusCode::OK);
    house.facilitator.goes("settle", Goes::Before(refused("insufficient_funds")));
    assert_ne!(house.site.pay("/exact", &client.exact(PRICE, 2)).await.unwrap().status, StatusCode::OK);
    let said: Vec<_> = told.entries.lock().iter().map(|entry| (entry.kind(), entry.members().to_owned())).collect();
    assert_eq!(said.len(), 4, "{said:?}");
    assert!(said.iter().all(|(kind, _)| *kind == Kind::Payment));
    let payer = client.wallet.address().to_string();
    for (at, parts) in [
        (0, vec!["\"step\":\"settling\"", "\"amount\":\"1000\"", "\"scheme\":\"exact\"", "\"route\":", &payer]),
        (1, vec!["\"step\":\"charged\"", "\"amount\":\"1000\"", "\"begun\":1,", "\"transaction\":\"0x"]),
        (2, vec!["\"step\":\"settling\""]),
        (3, vec!["\"step\":\"not_charged\"", "\"begun\":3,"]),
    ] {
        assert!(parts.iter().all(|part| said[at].1.contains(part)), "{}", said[at].1);
    }

    let full = Arc::new(Told { full: true, ..Told::default() });
    let house = EvmHouse::with(Options { recorder: Some(full), ..Options::default() }, served()).await;
    let answer = house.site.pay("/exact", &client.exact(PRICE, 1)).await.unwrap();
    assert_eq!((answer.status, house.facilitator.count("settle")), (StatusCode::INTERNAL_SERVER_ERROR, 0));
}

#[tokio::test]
async fn a_failing_upstream_settles_nothing_and_the_authorization_stays_good() {
    let (house, client) = (EvmHouse::new().await, Client::new(7));
    for status in [400, 404, 500] {
        house.site.answers(status, &[]);
        let answer = house.site.pay("/exact", &client.exact(PRICE, 1)).await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.settlement()), (status, None));
    }
    house.site.behave(Behaviour::Fails);
    assert!(house.site.pay("/exact", &client.exact(PRICE, 1)).await.is_err());
    assert_eq!(house.facilitator.count("settle"), 0);
    house.site.answers(200, &[]);
    assert_eq!(house.site.pay("/exact", &client.exact(PRICE, 1)).await.unwrap().status, StatusCode::OK);
    assert_eq!(*house.facilitator.moved.lock(), ["1000"]);
}

#[tokio::test]
async fn what_was_signed_otherwise_asks_nobody() {
    type Change = fn(&mut Value);
    let (house, client, other) = (EvmHouse::new().await, Client::new(7), Wallet::new(9).address());
    let exact: &[(Change, Reason)] = &[
        (|p| p["authorization"]["to"] = json!(Wallet::new(9).address()), Reason::ExactEvmRecipient),
        (|p| p["authorization"]["value"] = json!("999"), Reason::ExactEvmValueMismatch),
        (|p| p["authorization"]["value"] = json!("1001"), Reason::ExactEvmValueMismatch),
        (|p| p["authorization"]["validBefore"] = json!("1800000001"), Reason::ExactEvmValidBefore),
        (|p| p["authorization"]["validAfter"] = json!("1800000001"), Reason::ExactEvmValidAfter),
    ];
    for (n, (change, reason)) in exact.iter().enumerate() {
        let mut payload = client.exact(PRICE, 1);
        change(&mut payload);
        let answer = house.site.pay("/exact", &payload).await.unwrap();
        assert_eq!((answer.status, answer.error().as_str()), (StatusCode::PAYMENT_REQUIRED, reason.as_str()), "{n}");
    }
    let upto: &[(Change, Reason)] = &[
        (
            |p| p["permit2Authorization"]["witness"]["facilitator"] = json!(Wallet::new(9).address()),
            Reason::UptoEvmFacilitator,
        ),
        (|p| p["permit2Authorization"]["permitted"]["amount"] = json!("10001"), Reason::Permit2Amount),
        (|p| p["permit2Authorization"]["spender"] = json!(Wallet::new(9).address()), Reason::Permit2Spender),
    ];
    for (n, (change, reason)) in upto.iter().enumerate() {
        let mut payload = client.upto(CEILING, 1);
        change(&mut payload);
        let answer = house.site.pay("/upto", &payload).await.unwrap();
        assert_eq!((answer.status, answer.error().as_str()), (StatusCode::PAYMENT_REQUIRED, reason.as_str()), "{n}");
    }
    for payload in [json!({}), json!({ "delegationManager": other }), client.pays(PRICE)] {
        assert_eq!(house.site.pay("/exact", &payload).await.unwrap().status, StatusCode::BAD_REQUEST);
    }
    assert_eq!(
        house.site.pay("/exact", &client.exact_permit2(PRICE, 1)).await.unwrap().status,
        StatusCode::BAD_REQUEST
    );
    assert_eq!((house.facilitator.calls.lock().len(), house.site.calls()), (0, 0));
}

#[tokio::test]
async fn what_the_facilitator_refuses_does_not_reach_the_upstream() {
    let (house, client) = (EvmHouse::new().await, Client::new(7));
    for (goes, status, reason) in [
        (refused("insufficient_funds"), 402, "insufficient_funds"),
        (refused("invalid_exact_evm_payload_signature"), 402, "invalid_exact_evm_payload_signature"),
        (refused("a_code_of_its_own"), 402, "unexpected_verify_error"),
        (unavailable(), 503, "chain_unavailable"),
    ] {
        house.facilitator.goes("verify", Goes::Before(goes));
        let answer = house.site.pay("/exact", &client.exact(PRICE, 1)).await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.json()["error"].as_str()), (status, Some(reason)));
        assert!(!String::from_utf8_lossy(&answer.body).contains("secret"));
        assert!(answer.settlement().is_none());
    }
    assert_eq!((house.site.calls(), house.facilitator.count("settle")), (0, 0));
    assert_eq!(house.site.pay("/exact", &client.exact(PRICE, 1)).await.unwrap().status, StatusCode::OK);
}

#[tokio::test]
async fn what_cannot_be_settled_is_not_delivered() {
    for (goes, status, reason) in [
        (refused("invalid_exact_evm_nonce_already_used"), 402, Reason::ExactEvmNonceUsed),
        (refused("insufficient_funds"), 402, Reason::InsufficientFunds),
        (unavailable(), 503, Reason::ChainUnavailable),
    ] {
        let (house, client) = (EvmHouse::new().await, Client::new(7));
        house.facilitator.goes("settle", Goes::Before(goes));
        let answer = house.site.pay("/exact", &client.exact(PRICE, 1)).await.unwrap();
        assert_undelivered(&answer, status, reason, "");
        assert_eq!((house.facilitator.count("settle"), house.site.calls()), (1, 1), "it is not asked for again");
        // Nothing was sent: the same authorization may come again.
        assert_eq!(house.site.pay("/exact", &client.exact(PRICE, 1)).await.unwrap().status, StatusCode::OK);
    }
}

fn assert_undelivered(answer: &Answer, status: u16, reason: Reason, transaction: &str) {
    assert_eq!((answer.status.as_u16(), answer.json()["error"].as_str()), (status, Some(reason.as_str())));
    let settlement = answer.settlement().unwrap();
    assert_eq!((settlement.success, settlement.error_reason.as_deref()), (false, Some(reason.as_str())));
    assert_eq!(settlement.transaction, transaction);
    assert!(!answer.body.windows(BODY.len()).any(|window| window == BODY));
    assert!(!String::from_utf8_lossy(&answer.body).contains("secret"));
}

/// What is said after a first "unknown", and whether the answer goes out.
#[tokio::test]
async fn a_settlement_of_unknown_fate_is_delivered_only_where_it_is_known() {
    let used = || refused("invalid_exact_evm_nonce_already_used");
    let table: Vec<(&str, Vec<Goes>, Option<&str>, usize)> = vec![
        ("never sent, then settled", vec![Goes::Before(unknown(None))], Some("0x3"), 2),
        ("unreachable meanwhile", vec![Goes::Before(unknown(None)), Goes::Before(unavailable())], Some("0x4"), 3),
        ("sent by name, then used", vec![Goes::After(unknown(Some(SENT)))], Some(SENT), 2),
        ("the name comes later", vec![Goes::Before(unknown(None)), Goes::After(unknown(Some(SENT)))], Some(SENT), 3),
        // A payer can use a nonce up for nothing, and a facilitator may not be able to say so at first.
        ("used, by whom is not known", vec![Goes::After(unknown(None))], None, 2),
        ("used, and told as such", vec![Goes::Before(unknown(None)), Goes::Before(used())], None, 2),
        (
            "reverted, perhaps the second of two",
            vec![Goes::Before(unknown(Some(SENT))), Goes::Before(refused("invalid_transaction_state"))],
            None,
            2,
        ),
        ("unknown for ever", (0..9).map(|_| Goes::Before(unknown(None))).collect(), None, 6),
    ];
    for (case, goes, transaction, asked) in table {
        let (house, client) = (EvmHouse::new().await, Client::new(7));
        for goes in goes {
            house.facilitator.goes("settle", goes);
        }
        let answer = house.site.pay("/exact", &client.exact(PRICE, 1)).await.unwrap();
        assert_eq!((house.facilitator.count("settle"), house.site.calls()), (asked, 1), "{case}");
        assert!(house.facilitator.moved.lock().len() <= 1, "{case}: settled once at most");
        match transaction {
            Some(transaction) => {
                assert_eq!((answer.status, &*answer.body), (StatusCode::OK, BODY), "{case}");
                let said = answer.settlement().unwrap().transaction;
                let digits = transaction.trim_start_matches("0x").trim_start_matches('0');
                assert_eq!(said.trim_start_matches("0x").trim_start_matches('0'), digits, "{case}");
                assert_eq!(house.facilitator.moved.lock().len(), 1, "{case}: what is delivered is paid");
            }
            None => {
                assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR, "{case}");
                assert_eq!(answer.json()["error"], Reason::SettlementPending.as_str(), "{case}");
                assert!(!answer.settlement().unwrap().success, "{case}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_facilitator_that_never_answers_holds_nobody_beyond_the_offered_time() {
    let (house, client) = (EvmHouse::new().await, Client::new(7));
    house.facilitator.goes("settle", Goes::Hangs);
    let answer = house.site.pay("/exact", &client.exact(PRICE, 1)).await.unwrap();
    assert_undelivered(&answer, 500, Reason::SettlementPending, "");
    assert_eq!(house.facilitator.count("settle"), 1);
}

#[tokio::test]
async fn one_authorization_is_served_once() {
    let (house, client) = (EvmHouse::new().await, Client::new(7));
    let let_go = Arc::new(Semaphore::new(0));
    house.site.behave(Behaviour::Waits(Arc::clone(&let_go)));
    let (site, payload) = (house.site.clone(), client.exact(PRICE, 1));
    let first = tokio::spawn(async move { site.pay("/exact", &payload).await.map_err(|error| error.to_string()) });
    while house.site.calls() == 0 {
        tokio::task::yield_now().await;
    }
    let duplicate = || async {
        let answer = house.site.pay("/exact", &client.exact(PRICE, 1)).await.unwrap();
        assert_eq!(
            (answer.status, answer.error().as_str()),
            (StatusCode::PAYMENT_REQUIRED, Reason::DuplicateSettlement.as_str())
        );
    };
    duplicate().await;
    let_go.add_permits(1);
    assert_eq!(first.await.unwrap().unwrap().status, StatusCode::OK);
    duplicate().await;
    assert_eq!((house.site.calls(), house.facilitator.count("settle")), (1, 1));
    // Later the chain says it.
    house.clock.advance(Duration::from_secs(150));
    let later = house.now() + 60;
    let answer = house.site.pay("/exact", &client.exact_until(PRICE, 1, later)).await.unwrap();
    assert_eq!(answer.error(), Reason::ExactEvmNonceUsed.as_str());
    // Another nonce, and the same nonce of another payer, are other authorizations.
    let_go.add_permits(2);
    for payload in [client.exact_until(PRICE, 2, later), Client::new(8).exact_until(PRICE, 3, later)] {
        assert_eq!(house.site.pay("/exact", &payload).await.unwrap().status, StatusCode::OK);
    }
}

#[tokio::test]
async fn a_settlement_runs_to_its_end_without_its_client() {
    let (house, client) = (EvmHouse::new().await, Client::new(7));
    let lets = Arc::new(Semaphore::new(0));
    *house.facilitator.lets.lock() = Some(Arc::clone(&lets));
    let (site, payload) = (house.site.clone(), client.exact(PRICE, 1));
    let gone = tokio::spawn(async move { site.pay("/exact", &payload).await.map(|_| ()).map_err(|_| ()) });
    while house.facilitator.count("settle") == 0 {
        tokio::task::yield_now().await;
    }
    gone.abort();
    let _ = gone.await;
    assert_eq!(house.facilitator.moved.lock().len(), 0);
    lets.add_permits(1);
    house.gate.settled().await;
    assert_eq!(*house.facilitator.moved.lock(), ["1000"]);
    let answer = house.site.pay("/exact", &client.exact(PRICE, 1)).await.unwrap();
    assert_eq!(answer.error(), Reason::DuplicateSettlement.as_str());
}

#[tokio::test]
async fn an_answer_is_kept_for_who_paid_for_it_with_an_id() {
    let client = Client::new(7);
    for (path, payload) in [("/exact", client.exact(PRICE, 1)), ("/upto", client.upto(CEILING, 1))] {
        let house = EvmHouse::new().await;
        let payment = identified(&house.site.offer(path).await, &payload, &json!(ID));
        let first = house.site.get(path, Some(payment.clone())).await.unwrap();
        assert_eq!(first.status, StatusCode::OK);
        let again = house.site.get(path, Some(payment)).await.unwrap();
        assert_eq!((again.verdict.clone(), &again.body), (Verdict::Replayed, &first.body));
        assert_eq!(again.headers["payment-response"], first.headers["payment-response"]);
        assert_eq!((house.site.calls(), house.facilitator.count("settle"), house.ledger.answers().0), (1, 1, 1));
    }
}

#[tokio::test]
async fn what_is_not_settled_is_not_kept() {
    let (house, client) = (EvmHouse::new().await, Client::new(7));
    let payment = identified(&house.site.offer("/exact").await, &client.exact(PRICE, 1), &json!(ID));
    house.facilitator.goes("settle", Goes::Before(refused("insufficient_funds")));
    let first = house.site.get("/exact", Some(payment.clone())).await.unwrap();
    assert_eq!((first.status, house.ledger.answers().0), (StatusCode::PAYMENT_REQUIRED, 0));
    assert_eq!(house.site.get("/exact", Some(payment)).await.unwrap().status, StatusCode::OK);
}

#[tokio::test]
async fn there_is_a_limit_of_payments_under_way() {
    let served = Served { upto_facilitator: Some(settler()), exact_v1: false };
    let house = EvmHouse::with(Options { once_open_max: 1, ..Options::default() }, served).await;
    let client = Client::new(7);
    let let_go = Arc::new(Semaphore::new(0));
    house.site.behave(Behaviour::Waits(Arc::clone(&let_go)));
    let (site, payload) = (house.site.clone(), client.exact(PRICE, 1));
    let first = tokio::spawn(async move { site.pay("/exact", &payload).await.map_err(|error| error.to_string()) });
    while house.site.calls() == 0 {
        tokio::task::yield_now().await;
    }
    let answer = house.site.pay("/upto", &client.upto(CEILING, 2)).await.unwrap();
    assert_eq!((answer.status, house.facilitator.count("verify upto")), (StatusCode::SERVICE_UNAVAILABLE, 0));
    assert!(answer.headers.contains_key("retry-after"));
    let_go.add_permits(2);
    assert_eq!(first.await.unwrap().unwrap().status, StatusCode::OK);
    assert_eq!(house.site.pay("/upto", &client.upto(CEILING, 2)).await.unwrap().status, StatusCode::OK);
}

#[tokio::test]
async fn a_contracts_signature_is_the_facilitators_to_judge() {
    let (house, client) = (EvmHouse::new().await, Client::new(7));
    let mut payload = client.exact(PRICE, 1);
    payload["signature"] = json!("0x0102030405");
    assert_eq!(house.site.pay("/exact", &payload).await.unwrap().status, StatusCode::OK);
    payload["authorization"]["nonce"] = json!(format!("0x{}", "02".repeat(32)));
    let error = InterfaceError::Refused { reason: "invalid_exact_evm_payload_signature".into(), detail: None };
    house.facilitator.goes("verify", Goes::Before(error));
    let answer = house.site.pay("/exact", &payload).await.unwrap();
    assert_eq!((answer.error().as_str(), house.site.calls()), (Reason::ExactEvmSignature.as_str(), 1));
}
