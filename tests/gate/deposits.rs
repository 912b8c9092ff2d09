//! Deposits through the layer: accepted before the upstream, settled after it.

use http::StatusCode;
use turnpike::amount::Amount;
use turnpike::facilitator::FacilitatorError;
use turnpike::scheme::svm::program::ChannelStatus;
use turnpike::x402::Reason;
use turnpike::x402::key::Signature;

use crate::doubles::{Client, House};
use crate::upstream::{BODY, Behaviour, Site};

#[tokio::test]
async fn a_deposit_opens_the_channel_after_the_upstream_has_answered() {
    let (house, client) = (House::new().await, Client::new(7));
    let site = Site::new(&house);
    let answer = site.quote(&client.deposits(20_000, 1000)).await;
    assert_eq!((answer.status, &*answer.body), (StatusCode::OK, BODY));
    let settlement = answer.settlement().unwrap();
    assert_eq!(settlement.transaction, Signature([1; 64]).to_string());
    assert_eq!(settlement.amount.as_deref(), Some("20000"));
    assert_eq!(settlement.extra["chargedAmount"], "1000");
    assert_eq!(settlement.extra["channelState"]["balance"], "20000");
    assert_eq!(settlement.extra["channelState"]["chargedCumulativeAmount"], "1000");
    assert_eq!(*house.facilitator.calls.lock(), ["read_channel", "accept_deposit", "settle_deposit"]);
    assert_eq!(site.quote(&client.pays(2000)).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_deposit_tops_up_a_channel() {
    let (house, client) = (House::new().await, Client::new(7));
    house.facilitator.open(&client.terms, 1_500);
    let site = Site::new(&house);
    site.quote(&client.pays(1000)).await;
    let answer = site.quote(&client.deposits(10_000, 2000)).await;
    assert_eq!(answer.settlement().unwrap().extra["channelState"]["balance"], "11500");
    assert_eq!(house.ledger.channel(&client.terms.id).unwrap().charged, Amount::new(2000));
}

#[tokio::test]
async fn a_failing_upstream_sends_no_deposit_and_the_same_one_may_come_again() {
    let (house, client) = (House::new().await, Client::new(7));
    let site = Site::new(&house);
    site.answers(500, &[]);
    assert_eq!(site.quote(&client.deposits(20_000, 1000)).await.status, StatusCode::INTERNAL_SERVER_ERROR);
    site.behave(Behaviour::Fails);
    assert!(site.pay("/quote", &client.deposits(20_000, 1000)).await.is_err());
    assert_eq!(house.facilitator.count("settle_deposit"), 0);
    site.answers(200, &[]);
    assert!(site.quote(&client.deposits(20_000, 1000)).await.settlement().unwrap().success);
}

#[tokio::test]
async fn a_deposit_that_is_refused_does_not_reach_the_upstream() {
    let (house, client) = (House::new().await, Client::new(7));
    let site = Site::new(&house);
    for reason in [Reason::BatchSetupTransaction, Reason::BatchSettlementSimulation, Reason::InsufficientFunds] {
        house.facilitator.refuse("accept_deposit", reason);
        let answer = site.quote(&client.deposits(20_000, 1000)).await;
        assert_eq!((answer.status, answer.error().as_str()), (StatusCode::PAYMENT_REQUIRED, reason.as_str()));
        assert!(answer.settlement().is_none());
    }
    house.facilitator.unavailable("accept_deposit", 1);
    assert_eq!(site.quote(&client.deposits(20_000, 1000)).await.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(site.calls(), 0);
    // A voucher above what is put in, or one that leaves a gap.
    let answer = site.quote(&client.deposits(500, 1000)).await;
    assert_eq!(answer.error(), Reason::BatchCumulativeExceedsDeposit.as_str());
    assert_eq!(site.calls(), 0);
    assert!(site.quote(&client.deposits(20_000, 1000)).await.settlement().unwrap().success);
}

#[tokio::test]
async fn what_cannot_be_settled_is_not_delivered() {
    let pending = FacilitatorError::Pending { transaction: Signature([9; 64]) };
    let refused = FacilitatorError::Refused { reason: Reason::BatchChannelState, detail: "other".to_owned() };
    let unavailable = FacilitatorError::Unavailable("secret-endpoint".to_owned());
    for (error, status, reason, transaction) in [
        (refused, 402, Reason::BatchChannelState, String::new()),
        (unavailable, 503, Reason::ChainUnavailable, String::new()),
        (pending, 500, Reason::SettlementPending, Signature([9; 64]).to_string()),
    ] {
        let (house, client) = (House::new().await, Client::new(7));
        let site = Site::new(&house);
        house.facilitator.fail("settle_deposit", error);
        let answer = site.quote(&client.deposits(20_000, 1000)).await;
        assert_eq!(answer.status.as_u16(), status);
        assert_eq!(site.calls(), 1, "the upstream did answer");
        assert!(!answer.body.windows(BODY.len()).any(|window| window == BODY));
        assert!(!String::from_utf8_lossy(&answer.body).contains("secret-endpoint"));
        let settlement = answer.settlement().unwrap();
        assert!(!settlement.success);
        assert_eq!(settlement.error_reason.as_deref(), Some(reason.as_str()));
        assert_eq!(settlement.transaction, transaction);
        assert_eq!(answer.required().is_some(), status == 402);
        assert_eq!(house.ledger.counts().1, 0);
    }
}

#[tokio::test]
async fn a_deposit_that_was_sent_is_not_taken_again() {
    let (house, client) = (House::new().await, Client::new(7));
    let site = Site::new(&house);
    house.facilitator.fail("settle_deposit", FacilitatorError::Pending { transaction: Signature([9; 64]) });
    site.quote(&client.deposits(20_000, 1000)).await;
    let answer = site.quote(&client.deposits(20_000, 1000)).await;
    assert_eq!(answer.error(), Reason::DuplicateSettlement.as_str());
    assert_eq!(house.facilitator.count("settle_deposit"), 1);
    // It landed after all: the channel is found on chain, and nothing was charged on it.
    house.facilitator.open(&client.terms, 20_000);
    assert!(site.quote(&client.pays(1000)).await.settlement().unwrap().success);
}

#[tokio::test]
async fn one_deposit_in_flight_is_served_once() {
    let (house, client) = (House::new().await, Client::new(7));
    let site = Site::new(&house);
    site.behave(Behaviour::Hangs);
    let (first, payload) = (site.clone(), client.deposits(20_000, 1000));
    let task = tokio::spawn(async move { first.quote(&payload).await });
    while site.calls() == 0 {
        tokio::task::yield_now().await;
    }
    site.answers(200, &[]);
    let answer = site.quote(&client.deposits(20_000, 1000)).await;
    assert_eq!(answer.error(), Reason::DuplicateSettlement.as_str());
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    assert!(site.quote(&client.deposits(20_000, 1000)).await.settlement().unwrap().success);
}

#[tokio::test]
async fn a_replayed_deposit_is_answered_with_the_channels_state() {
    let (house, client) = (House::new().await, Client::new(7));
    let site = Site::new(&house);
    site.quote(&client.deposits(20_000, 1000)).await;
    let answer = site.quote(&client.deposits(20_000, 1000)).await;
    assert_eq!(answer.error(), Reason::BatchCumulativeAmountMismatch.as_str());
    assert_eq!(answer.required().unwrap().accepts[0].extra["channelState"]["balance"], "20000");
    // The same transaction under a new voucher would count one deposit twice.
    let answer = site.quote(&client.deposits(20_000, 2000)).await;
    assert_eq!(answer.error(), Reason::DuplicateSettlement.as_str());
    assert_eq!(house.facilitator.count("settle_deposit"), 1);
}

#[tokio::test]
async fn a_deposit_into_a_closing_channel_is_refused() {
    let (house, client) = (House::new().await, Client::new(7));
    house.facilitator.put(client.terms.id, ChannelStatus::Closing, Amount::new(5000), Amount::ZERO);
    let answer = Site::new(&house).quote(&client.deposits(20_000, 1000)).await;
    assert_eq!(answer.error(), Reason::BatchChannelClosing.as_str());
    assert_eq!(house.facilitator.count("accept_deposit"), 0);
}

#[tokio::test]
async fn a_deposit_that_does_not_cover_its_voucher_is_not_charged() {
    let (house, client) = (House::new().await, Client::new(7));
    let site = Site::new(&house);
    *house.facilitator.brings_to.lock() = Some(Amount::new(999));
    let answer = site.quote(&client.deposits(20_000, 1000)).await;
    assert_eq!(answer.error(), Reason::BatchChannelState.as_str());
    assert_eq!(answer.settlement().unwrap().transaction, Signature([1; 64]).to_string());
    assert!(house.ledger.channel(&client.terms.id).is_none_or(|channel| channel.charged.is_zero()));
    assert_eq!(house.ledger.counts().1, 0);
}
