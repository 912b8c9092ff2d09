//! Vouchers and deposits of scheme `batch-settlement` on EVM networks.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use turnpike::x402::Reason;
use turnpike::x402::wire::PaymentRequirements;

use super::doubles::{Client, DELAY, EvmHouse, Goes, MARGIN, OnChain, Wallet, refused, unavailable, unknown};
use crate::doubles::{CEILING, PRICE, START, header};
use crate::upstream::{Answer, BODY, Behaviour};

async fn house() -> (EvmHouse, Client) {
    (EvmHouse::new().await, Client::new(7))
}

/// A house where the client has a channel of 50000 that the ledger does not know yet.
async fn opened() -> (EvmHouse, Client) {
    let (house, client) = house().await;
    house.facilitator.open(&client.terms, 50_000);
    (house, client)
}

async fn pay(house: &EvmHouse, payload: &Value) -> Answer {
    house.site.pay("/batch", payload).await.unwrap()
}

fn assert_refused(answer: &Answer, reason: Reason) {
    assert_eq!((answer.status, answer.error().as_str()), (StatusCode::PAYMENT_REQUIRED, reason.as_str()));
}

/// A corrective 402: the channel as it is, and no `PAYMENT-RESPONSE`.
fn assert_corrective(answer: &Answer, charged: u64, signed: Option<u64>, client: &Client) {
    assert_refused(answer, Reason::EvmBatchCumulativeAmountMismatch);
    assert!(answer.settlement().is_none());
    let extra = Value::Object(answer.required().unwrap().accepts.remove(0).extra);
    assert_eq!(extra["channelState"]["channelId"], json!(client.terms.id));
    assert_eq!(extra["channelState"]["chargedCumulativeAmount"], charged.to_string());
    match signed {
        Some(signed) => {
            assert_eq!(extra["voucherState"]["signedMaxClaimable"], signed.to_string());
            assert_eq!(extra["voucherState"]["signature"], client.voucher(signed)["signature"]);
        }
        None => assert!(extra.get("voucherState").is_none()),
    }
}

#[tokio::test]
async fn a_deposit_opens_the_channel_after_the_upstream_has_answered() {
    let (house, client) = house().await;
    let answer = pay(&house, &client.deposits(20_000, PRICE, 1)).await;
    assert_eq!((answer.status, &*answer.body), (StatusCode::OK, BODY));
    assert_eq!(
        serde_json::to_value(answer.settlement().unwrap()).unwrap(),
        json!({
            "success": true,
            "payer": client.terms.payer,
            "transaction": format!("0x{:064x}", 2),
            "network": "eip155:84532",
            "amount": "20000",
            "extra": {
                "chargedAmount": "1000",
                "channelState": {
                    "channelId": client.terms.id, "balance": "20000", "totalClaimed": "0",
                    "withdrawRequestedAt": 0, "refundNonce": "0", "chargedCumulativeAmount": "1000",
                },
            },
        })
    );
    assert_eq!(*house.facilitator.calls.lock(), ["verify deposit", "settle deposit"]);
    let answer = pay(&house, &client.pays(2 * PRICE)).await;
    let settlement = answer.settlement().unwrap();
    assert_eq!((settlement.transaction.as_str(), settlement.amount.as_deref()), ("", Some("")));
    assert_eq!(settlement.extra["chargedAmount"], "1000");
    assert_eq!(house.facilitator.calls.lock().len(), 2, "a voucher on a channel that is known asks nobody");
    let seen = house.site.seen.lock()[1].clone();
    assert_eq!(seen.headers["turnpike-channel"], client.terms.id.to_string());
}

#[tokio::test]
async fn a_small_deposit_is_taken_for_the_minimum_is_advice() {
    let (house, client) = house().await;
    assert_eq!(house.site.offer("/batch").await.extra["minDeposit"], "20000");
    assert_eq!(pay(&house, &client.deposits(PRICE, PRICE, 1)).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_deposit_tops_a_channel_up() {
    let (house, client) = house().await;
    house.facilitator.open(&client.terms, 1_500);
    assert_eq!(pay(&house, &client.pays(PRICE)).await.status, StatusCode::OK);
    let answer = pay(&house, &client.deposits(10_000, 2 * PRICE, 1)).await;
    assert_eq!(answer.settlement().unwrap().extra["channelState"]["balance"], "11500");
    assert_eq!(house.charged(&client), Some(2000));
}

#[tokio::test]
async fn a_voucher_is_charged_once() {
    let (house, client) = opened().await;
    assert_eq!(pay(&house, &client.pays(PRICE)).await.status, StatusCode::OK);
    assert_corrective(&pay(&house, &client.pays(PRICE)).await, PRICE, Some(PRICE), &client);
    // One that leaves a gap, and one that is lost with an old memory.
    assert_corrective(&pay(&house, &client.pays(5 * PRICE)).await, PRICE, Some(PRICE), &client);
    assert_corrective(&pay(&house, &client.deposits(10_000, PRICE, 1)).await, PRICE, Some(PRICE), &client);
    assert_eq!((house.charged(&client), house.site.calls()), (Some(1000), 1));
    assert_eq!(house.facilitator.count("settle"), 0);
}

/// The reference client looks for its channel in the first offer of the scheme, whatever the network.
#[tokio::test]
async fn a_corrective_answer_begins_with_the_offer_that_it_corrects() {
    let (house, client) = opened().await;
    let networks = |accepts: &[PaymentRequirements]| -> Vec<bool> {
        accepts.iter().map(|offer| offer.network.is_solana()).collect()
    };
    let offers = house.site.get("/both", None).await.unwrap().required().unwrap().accepts;
    assert_eq!(networks(&offers), [true, false]);
    let payment = Some(header(&offers[1], &client.pays(PRICE)));
    assert_eq!(house.site.get("/both", payment.clone()).await.unwrap().status, StatusCode::OK);
    let corrected = house.site.get("/both", payment).await.unwrap();
    assert_corrective(&corrected, PRICE, Some(PRICE), &client);
    let offers = corrected.required().unwrap().accepts;
    assert_eq!(networks(&offers), [false, true]);
    assert!(!offers[1].extra.contains_key("channelState"), "the other is as ever");
}

#[tokio::test]
async fn a_channel_that_is_taken_up_from_the_chain_goes_on_at_what_was_claimed() {
    let (house, client) = house().await;
    house.facilitator.put(&client.terms, OnChain { balance: 50_000, claimed: 3_000, ..OnChain::default() });
    assert_corrective(&pay(&house, &client.pays(PRICE)).await, 3_000, None, &client);
    assert_eq!(pay(&house, &client.pays(4_000)).await.status, StatusCode::OK);
    assert_eq!(house.charged(&client), Some(4_000));
}

#[tokio::test]
async fn what_was_tampered_with_asks_nobody() {
    type Change = fn(&mut Value);
    let (house, client) = opened().await;
    let table: &[(Change, Reason)] = &[
        (|p| p["voucher"]["maxClaimableAmount"] = json!("1001"), Reason::EvmBatchVoucherSignature),
        (
            |p| p["voucher"]["signature"] = Client::new(8).voucher(PRICE)["signature"].clone(),
            Reason::EvmBatchVoucherSignature,
        ),
        (|p| p["voucher"]["channelId"] = json!(Client::new(8).terms.id), Reason::EvmBatchChannelIdMismatch),
        (|p| p["channelConfig"]["receiver"] = json!(Wallet::new(9).address()), Reason::EvmBatchChannelIdMismatch),
        (|p| p["channelConfig"]["withdrawDelay"] = json!(900), Reason::EvmBatchChannelIdMismatch),
        (|p| p["type"] = json!("claim"), Reason::EvmBatchPayloadType),
    ];
    for (n, (change, reason)) in table.iter().enumerate() {
        let mut payload = client.pays(PRICE);
        change(&mut payload);
        let answer = pay(&house, &payload).await;
        assert_eq!(answer.error(), reason.as_str(), "{n}");
    }
    let mut deposit = client.deposits(20_000, PRICE, 1);
    deposit["deposit"]["amount"] = json!("10000");
    house
        .facilitator
        .goes("verify", Goes::Before(refused("invalid_batch_settlement_evm_receive_authorization_signature")));
    assert_refused(&pay(&house, &deposit).await, Reason::EvmBatchReceiveSignature);
    assert_eq!((house.site.calls(), house.facilitator.count("settle")), (0, 0));
    assert_eq!(house.facilitator.count("verify voucher"), 0);
}

#[tokio::test]
async fn a_part_is_charged_and_the_next_voucher_builds_on_it() {
    let (house, client) = opened().await;
    let pay = |payload: Value| {
        let site = house.site.clone();
        async move { site.pay("/batch/metered", &payload).await.unwrap() }
    };
    house.site.answers(200, &[("x-cost", "0.0042")]);
    let answer = pay(client.pays(CEILING)).await;
    assert_eq!(answer.settlement().unwrap().extra["chargedAmount"], "4200");
    assert_corrective(&pay(client.pays(CEILING)).await, 4_200, Some(CEILING), &client);
    assert_corrective(&pay(client.pays(2 * CEILING)).await, 4_200, Some(CEILING), &client);
    house.site.answers(200, &[("x-cost", "0")]);
    let answer = pay(client.pays(4_200 + CEILING)).await;
    assert_eq!(answer.settlement().unwrap().extra["chargedAmount"], "0");
    house.site.answers(200, &[]);
    let answer = pay(client.pays(4_200 + CEILING)).await;
    assert_eq!(answer.settlement().unwrap().extra["chargedAmount"], "10000", "no report charges the ceiling");
    assert_eq!(house.charged(&client), Some(14_200));
    let record = house.record(&client).unwrap();
    assert_eq!(record.redeemable().unwrap().cumulative.get(), 14_200);
}

#[tokio::test]
async fn a_strict_route_charges_nothing_without_a_report() {
    let (house, client) = opened().await;
    let answer = house.site.pay("/batch/strict", &client.pays(CEILING)).await.unwrap();
    assert_eq!((answer.status, answer.json()["error"].as_str()), (StatusCode::BAD_GATEWAY, Some("upstream_unmetered")));
    assert_eq!((house.charged(&client), house.ledger.counts().1), (Some(0), 0));
}

#[tokio::test]
async fn a_failing_upstream_charges_nothing_and_settles_no_deposit() {
    let (house, client) = house().await;
    house.site.answers(500, &[]);
    assert_eq!(pay(&house, &client.deposits(20_000, PRICE, 1)).await.status, StatusCode::INTERNAL_SERVER_ERROR);
    house.site.behave(Behaviour::Fails);
    assert!(house.site.pay("/batch", &client.deposits(20_000, PRICE, 1)).await.is_err());
    assert_eq!(house.facilitator.count("settle"), 0);
    house.site.answers(200, &[]);
    assert_eq!(pay(&house, &client.deposits(20_000, PRICE, 1)).await.status, StatusCode::OK);
    assert_eq!(house.charged(&client), Some(1000));
}

#[tokio::test]
async fn a_deposit_that_is_refused_does_not_reach_the_upstream() {
    let (house, client) = house().await;
    house.facilitator.goes("verify", Goes::Before(refused("invalid_batch_settlement_evm_insufficient_balance")));
    assert_refused(&pay(&house, &client.deposits(20_000, PRICE, 1)).await, Reason::EvmBatchInsufficientBalance);
    house.facilitator.goes("verify", Goes::Before(unavailable()));
    assert_eq!(pay(&house, &client.deposits(20_000, PRICE, 1)).await.status, StatusCode::SERVICE_UNAVAILABLE);
    house.facilitator.goes("verify", Goes::Silent);
    assert_eq!(pay(&house, &client.deposits(20_000, PRICE, 1)).await.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_refused(&pay(&house, &client.deposits(500, PRICE, 1)).await, Reason::EvmBatchCumulativeExceedsBalance);
    assert_eq!((house.site.calls(), house.facilitator.count("settle"), house.ledger.counts().1), (0, 0, 0));
}

#[tokio::test]
async fn a_deposit_that_is_not_settled_is_not_delivered_or_charged() {
    for (goes, status, reason) in [
        (refused("invalid_batch_settlement_evm_deposit_transaction_failed"), 402, Reason::EvmBatchDepositTransaction),
        (unavailable(), 503, Reason::ChainUnavailable),
        (unknown(Some("0xaa")), 500, Reason::SettlementPending),
    ] {
        let (house, client) = house().await;
        let named = if status == 500 { "0xaa" } else { "" };
        house.facilitator.goes("settle", Goes::Before(goes));
        let answer = pay(&house, &client.deposits(20_000, PRICE, 1)).await;
        assert_eq!((answer.status.as_u16(), answer.json()["error"].as_str()), (status, Some(reason.as_str())));
        let settlement = answer.settlement().unwrap();
        assert_eq!((settlement.success, settlement.transaction.as_str()), (false, named));
        assert!(!answer.body.windows(BODY.len()).any(|window| window == BODY));
        assert_eq!((house.charged(&client), house.ledger.counts().1), (None, 0));
        assert_eq!(house.facilitator.count("settle"), 1, "it is looked for, and not asked for again");
        assert_eq!(pay(&house, &client.deposits(20_000, PRICE, 1)).await.status, StatusCode::OK);
    }
}

#[tokio::test]
async fn a_deposit_of_unknown_fate_that_is_found_is_delivered() {
    for goes in [Goes::After(unknown(Some("0xaa"))), Goes::After(unknown(None)), Goes::Silent] {
        let (house, client) = house().await;
        house.facilitator.goes("settle", goes);
        // Verified, and then the first look finds nobody.
        house.facilitator.goes("verify", Goes::Well);
        house.facilitator.goes("verify", Goes::Before(unavailable()));
        let answer = pay(&house, &client.deposits(20_000, PRICE, 1)).await;
        assert_eq!((answer.status, &*answer.body), (StatusCode::OK, BODY));
        assert_eq!(answer.settlement().unwrap().amount.as_deref(), Some("20000"));
        assert_eq!((house.charged(&client), house.facilitator.count("settle")), (Some(1000), 1));
        let asked = house.facilitator.asked.lock();
        let question = asked.last().unwrap();
        assert_eq!(question.payload["payload"]["type"], "voucher");
        assert!(question.payload["payload"].get("deposit").is_none(), "what looks does not settle");
    }
}

#[tokio::test]
async fn a_deposit_that_was_missed_is_found_by_the_next_voucher() {
    let (house, client) = house().await;
    house.facilitator.open(&client.terms, 1_500);
    assert_eq!(pay(&house, &client.pays(PRICE)).await.status, StatusCode::OK);
    house.facilitator.open(&client.terms, 21_500);
    assert_eq!(pay(&house, &client.pays(2 * PRICE)).await.status, StatusCode::OK, "though what is known is fresh");
    house.facilitator.open(&client.terms, 2_500);
    assert_refused(&pay(&house, &client.pays(22 * PRICE)).await, Reason::EvmBatchCumulativeExceedsBalance);
}

#[tokio::test]
async fn one_deposit_of_a_channel_is_under_way_at_a_time() {
    let (house, client) = house().await;
    let let_go = Arc::new(Semaphore::new(0));
    house.site.behave(Behaviour::Waits(Arc::clone(&let_go)));
    let (site, payload) = (house.site.clone(), client.deposits(20_000, PRICE, 1));
    let first = tokio::spawn(async move { site.pay("/batch", &payload).await.map_err(|error| error.to_string()) });
    while house.site.calls() == 0 {
        tokio::task::yield_now().await;
    }
    assert_refused(&pay(&house, &client.deposits(20_000, PRICE, 2)).await, Reason::EvmBatchChannelBusy);
    let_go.add_permits(1);
    assert_eq!(first.await.unwrap().unwrap().status, StatusCode::OK);
    assert_eq!(house.facilitator.count("settle"), 1);
}

#[tokio::test]
async fn what_is_old_is_asked_for_again() {
    let (house, client) = opened().await;
    assert_eq!(pay(&house, &client.pays(PRICE)).await.status, StatusCode::OK);
    house.clock.advance(Duration::from_secs(61));
    assert_eq!(pay(&house, &client.pays(2 * PRICE)).await.status, StatusCode::OK);
    assert_eq!(house.facilitator.count("verify voucher"), 2);
    // Where nobody can be asked, what is known serves for a while.
    house.clock.advance(Duration::from_secs(61));
    house.facilitator.goes("verify", Goes::Before(unavailable()));
    assert_eq!(pay(&house, &client.pays(3 * PRICE)).await.status, StatusCode::OK);
    house.clock.advance(Duration::from_secs(600));
    house.facilitator.goes("verify", Goes::Before(unavailable()));
    assert_eq!(pay(&house, &client.pays(4 * PRICE)).await.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(house.charged(&client), Some(3000));
    // Nor is it gone by where the facilitator's word is that it would not settle.
    house.facilitator.goes("verify", Goes::Before(refused("invalid_batch_settlement_evm_channel_not_found")));
    assert_refused(&pay(&house, &client.pays(4 * PRICE)).await, Reason::EvmBatchChannelNotFound);
}

#[tokio::test]
async fn a_channel_that_nobody_has_is_refused_by_the_facilitators_word() {
    let (house, client) = house().await;
    assert_refused(&pay(&house, &client.pays(PRICE)).await, Reason::EvmBatchChannelNotFound);
    assert_eq!((house.site.calls(), house.ledger.counts().0), (0, 0));
}

#[tokio::test]
async fn a_contracts_voucher_is_asked_about_each_time() {
    let (house, client) = (EvmHouse::new().await, Client::contract(7));
    house.facilitator.open(&client.terms, 50_000);
    for number in 1..=3 {
        assert_eq!(pay(&house, &client.pays(number * PRICE)).await.status, StatusCode::OK);
    }
    assert_eq!(house.facilitator.count("verify voucher"), 3);
    *house.facilitator.contracts_refuse.lock() = true;
    assert_refused(&pay(&house, &client.pays(4 * PRICE)).await, Reason::EvmBatchVoucherSignature);
    assert_eq!(house.charged(&client), Some(3000));
    assert_corrective(&pay(&house, &client.pays(PRICE)).await, 3_000, Some(3_000), &client);
}

#[tokio::test]
async fn requests_of_one_channel_are_served_in_their_vouchers_order() {
    let (house, client) = opened().await;
    assert_eq!(pay(&house, &client.pays(PRICE)).await.status, StatusCode::OK);
    let offer = house.site.offer("/batch").await;
    let get = |number: u64| {
        let (site, payment) = (house.site.clone(), header(&offer, &client.pays(number * PRICE)));
        async move { site.get("/batch", Some(payment)).await.unwrap() }
    };
    let (third, second) = tokio::join!(get(3), get(2));
    assert_eq!((second.status, third.status), (StatusCode::OK, StatusCode::OK));
    assert_eq!(third.settlement().unwrap().extra["channelState"]["chargedCumulativeAmount"], "3000");
    assert_eq!(house.charged(&client), Some(3000));
    let (one, other) = tokio::join!(get(4), get(4));
    let statuses = [one.status.as_u16(), other.status.as_u16()];
    assert!(statuses.contains(&200) && statuses.contains(&402), "{statuses:?}: one voucher pays for one delivery");
}

#[tokio::test]
async fn a_withdrawing_payer_gets_no_credit_within_the_margin() {
    let (house, client) = house().await;
    let put = |requested: i64| {
        let withdraw_requested_at = START.seconds() + requested;
        house.facilitator.put(&client.terms, OnChain { balance: 50_000, withdraw_requested_at, ..OnChain::default() });
    };
    put(0);
    assert_eq!(pay(&house, &client.pays(PRICE)).await.status, StatusCode::OK, "there is time to claim");
    house.clock.advance(Duration::from_secs(DELAY) - MARGIN - Duration::from_secs(1));
    assert_eq!(pay(&house, &client.pays(2 * PRICE)).await.status, StatusCode::OK);
    house.clock.advance(Duration::from_secs(1));
    assert_refused(&pay(&house, &client.pays(3 * PRICE)).await, Reason::EvmBatchCumulativeExceedsBalance);
    assert_eq!((house.charged(&client), house.site.calls()), (Some(2000), 2));
}
