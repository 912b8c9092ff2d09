//! The EVM chain, its sender and our own facilitator on a real node: npm's anvil, with contracts that have the
//! canonical addresses and the reference interface (`tests/interop/evm.mjs`).

#![allow(clippy::unwrap_used, reason = "a test that cannot build its own fixture should stop")]

mod client;
mod node;

use std::sync::Arc;
use std::time::Duration;

use client::{
    Claim, Merchant, Payer, USDC, eip3009_deposit, exact, exact_permit2, permit2_deposit, upto, voucher_payload,
};
use node::{Node, Ours, ask, chain, options};
use serde_json::{Value, json};
use turnpike::chain::evm::revert::Revert;
use turnpike::chain::evm::sender::{Fate, Sender, SenderOptions};
use turnpike::chain::evm::{Call, EvmChain, EvmError, abi};
use turnpike::clock::{ManualClock, UnixMillis};
use turnpike::facilitator::interface::{InterfaceError, Payment, Settled, X402Facilitator};
use turnpike::scheme::evm::eip712::{Domain, channel_id};
use turnpike::x402::evm::{Address, B256};

const LONG: Duration = Duration::from_secs(120);

fn reason<T: std::fmt::Debug>(result: Result<T, InterfaceError>) -> String {
    match result {
        Err(InterfaceError::Refused { reason, .. }) => reason,
        other => panic!("not refused: {other:?}"),
    }
}

async fn settle(ours: &Ours, payment: &Payment) -> Settled {
    let settled = ours.facilitator.settle(payment).await;
    settled.unwrap_or_else(|error| panic!("{error}: {}", payment.payload["payload"]))
}

async fn verify(ours: &Ours, payment: &Payment) -> Value {
    let verified = ours.facilitator.verify(payment).await;
    Value::Object(verified.unwrap_or_else(|error| panic!("{error}")).extra)
}

#[tokio::test]
async fn channels_live_from_both_kinds_of_deposit_to_their_refund() {
    let (alice, bob, merchant) = (Payer::new(1), Payer::new(2), Merchant::new());
    let node = Node::start(&[&alice, &bob], false);
    let ours = node.facilitator();
    let first = merchant.config(alice.address(), alice.address(), 1);
    let second = merchant.config(bob.address(), bob.address(), 2);
    let deposits = [
        merchant.payment(eip3009_deposit(&first, &alice, 10_000, 1_000, 7), "eip3009"),
        merchant.payment(permit2_deposit(&second, &bob, 20_000, 2_000, 7), "permit2"),
    ];
    for (deposit, balance) in deposits.iter().zip(["10000", "20000"]) {
        let before = verify(&ours, deposit).await;
        assert_eq!((&before["balance"], &before["refundNonce"]), (&json!("0"), &json!("0")));
        // Four at once are one.
        let (a, b, c, d) = tokio::join!(
            settle(&ours, deposit),
            settle(&ours, deposit),
            settle(&ours, deposit),
            settle(&ours, deposit)
        );
        assert!(a == b && b == c && c == d);
        assert_eq!(settle(&ours, deposit).await, a, "asked again");
        assert_eq!(a.amount.as_deref(), Some(balance));
        let state = &a.extra["channelState"];
        assert_eq!((&state["balance"], &state["withdrawRequestedAt"]), (&json!(balance), &json!(0)));
        assert!(ours.facilitator.verify(deposit).await.is_err(), "its nonce is used");
    }
    let restarted = node.facilitator();
    for deposit in &deposits {
        let again = restarted.facilitator.settle(deposit).await;
        assert!(matches!(again, Err(InterfaceError::Unknown { transaction: None, .. })), "{again:?}");
    }

    let voucher = |config, by, total| merchant.payment(voucher_payload(config, by, total), "eip3009");
    assert_eq!(verify(&ours, &voucher(&first, &alice, 8_300)).await["balance"], "10000");
    let over = ours.facilitator.verify(&voucher(&first, &alice, 10_001)).await;
    assert_eq!(reason(over), "invalid_batch_settlement_evm_cumulative_exceeds_balance");
    let nothing = merchant.config(alice.address(), alice.address(), 9);
    let unknown = ours.facilitator.verify(&voucher(&nothing, &alice, 1)).await;
    assert_eq!(reason(unknown), "invalid_batch_settlement_evm_channel_not_found");

    let rows = [
        Claim { config: first, by: &alice, signed: 8_300, total: 8_000 },
        Claim { config: second, by: &bob, signed: 5_000, total: 5_000 },
    ];
    let too_much = Claim { total: 8_301, ..rows[0].clone() };
    let refused = ours.facilitator.settle(&merchant.claim(&[too_much])).await;
    assert_eq!(reason(refused), "invalid_batch_settlement_evm_claim_simulation_failed");
    let claimed = settle(&ours, &merchant.claim(&rows)).await;
    assert_eq!((claimed.payer.as_deref(), claimed.amount.as_deref()), (None, Some("")));
    assert_eq!(settle(&ours, &merchant.claim(&rows)).await, claimed);
    let nothing_sent = settle(&restarted, &merchant.claim(&rows)).await;
    assert_eq!(nothing_sent.transaction, "", "all of it is claimed");
    assert_eq!(verify(&ours, &voucher(&first, &alice, 8_300)).await["totalClaimed"], "8000");
    let below = ours.facilitator.verify(&voucher(&first, &alice, 8_000)).await;
    assert_eq!(reason(below), "invalid_batch_settlement_evm_cumulative_below_claimed");

    let paid = settle(&ours, &merchant.payout()).await;
    assert_eq!(paid.amount.as_deref(), Some("13000"));
    assert_eq!(ours.balance(merchant.receiver).await, 13_000);
    let again = ours.facilitator.settle(&merchant.payout()).await;
    assert_eq!(reason(again), "invalid_batch_settlement_evm_nothing_to_settle");

    let refund = merchant.refund(&Claim { total: 8_300, ..rows[0].clone() }, 1_000, 0);
    let refunded = settle(&ours, &refund).await;
    assert_eq!(refunded.amount.as_deref(), Some("1000"));
    let state = &refunded.extra["channelState"];
    assert_eq!(
        (&state["balance"], &state["totalClaimed"], &state["refundNonce"]),
        (&json!("9000"), &json!("8300"), &json!("1"))
    );
    assert_eq!(settle(&ours, &refund).await, refunded);
    let restarted_too = restarted.facilitator.settle(&refund).await;
    assert!(matches!(restarted_too, Err(InterfaceError::Unknown { .. })), "{restarted_too:?}");
    let all = settle(&ours, &merchant.refund(&Claim { total: 8_300, ..rows[0].clone() }, 5_000, 1)).await;
    assert_eq!(all.amount.as_deref(), Some("700"), "as much as is left");
    let none = ours.facilitator.settle(&merchant.refund(&Claim { total: 8_300, ..rows[0].clone() }, 1, 2)).await;
    assert_eq!(reason(none), "invalid_batch_settlement_evm_refund_no_balance");
}

#[tokio::test]
async fn the_reference_stack_s_calls_have_the_reference_facilitator_s_answers() {
    let calls: Value = serde_json::from_str(include_str!("../vectors/evm/facilitator.json")).unwrap();
    let node = Node::start(&[], false);
    // When the reference client signed.
    let then = 1_795_461_000;
    node.ask("evm_setTime", json!([then])).await;
    node.ask("evm_mine", json!([])).await;
    let ours = node.facilitator_with(options(), Arc::new(ManualClock::new(UnixMillis(then * 1000))));
    ours.mint(Address::literal("0x70997970C51812dc3A010C7d01b50e0d17dc79C8"), 10_000).await;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    for call in calls["calls"].as_array().unwrap() {
        let request = &call["request"];
        let payment = Payment {
            x402_version: 2,
            payload: request["paymentPayload"].clone(),
            requirements: request["paymentRequirements"].clone(),
        };
        let expected = &call["response"];
        let kind = &request["paymentPayload"]["payload"]["type"];
        let (payer, extra) = if call["op"] == "verify" {
            let verified = ours.facilitator.verify(&payment).await.unwrap();
            (verified.payer, verified.extra)
        } else {
            let settled = settle(&ours, &payment).await;
            assert_eq!(settled.amount.unwrap_or_default(), text(&expected["amount"]), "{kind}");
            assert!(settled.transaction.parse::<B256>().is_ok());
            (settled.payer, settled.extra)
        };
        assert_eq!(payer.unwrap_or_default(), text(&expected["payer"]), "{kind}");
        assert_eq!(Value::Object(extra), expected.get("extra").cloned().unwrap_or(json!({})), "{kind}");
    }
}

#[tokio::test]
async fn payments_of_one_request_settle_once() {
    let (alice, to) = (Payer::new(1), Payer::new(0x51).address());
    let node = Node::start(&[&alice], false);
    let ours = node.facilitator();
    let (by_3009, _) = exact(&alice, alice.address(), to, 100, 1);
    let (_, version_1) = exact(&alice, alice.address(), to, 200, 2);
    let by_permit2 = exact_permit2(&alice, to, 300, 5);
    let mut received = 0;
    for (payment, amount) in [(&by_3009, 100), (&version_1, 200), (&by_permit2, 300)] {
        let verified = ours.facilitator.verify(payment).await.unwrap();
        assert_eq!(verified.payer, Some(alice.address().to_string()));
        let (a, b) = tokio::join!(settle(&ours, payment), settle(&ours, payment));
        assert_eq!(a, b);
        assert_eq!(settle(&ours, payment).await, a);
        assert_eq!((a.payer, a.amount), (Some(alice.address().to_string()), Some(amount.to_string())));
        received += amount;
        assert_eq!(ours.balance(to).await, received);
        let again = reason(ours.facilitator.verify(payment).await);
        assert!(again.ends_with("nonce_already_used") || again == "permit2_invalid_nonce", "{again}");
        let restarted = node.facilitator().facilitator.settle(payment).await;
        assert!(matches!(restarted, Err(InterfaceError::Unknown { .. })), "{restarted:?}");
    }
    // What paid for one thing does not pay for a dearer one, though it is remembered.
    let mut dearer = by_3009.clone();
    dearer.requirements["amount"] = json!("101");
    let refused = reason(ours.facilitator.settle(&dearer).await);
    assert_eq!(refused, "invalid_exact_evm_payload_authorization_value_mismatch");

    let metered = upto(&alice, to, ours.facilitator.address(), 500, 6);
    ours.facilitator.verify(&metered(500)).await.unwrap();
    let above = reason(ours.facilitator.settle(&metered(501)).await);
    assert_eq!(above, "invalid_upto_evm_payload_settlement_exceeds_amount");
    let free = settle(&ours, &metered(0)).await;
    assert_eq!((&*free.transaction, free.amount.as_deref()), ("", Some("0")));
    let charged = settle(&ours, &metered(123)).await;
    assert_eq!(charged.amount.as_deref(), Some("123"));
    assert_eq!(settle(&ours, &metered(123)).await, charged);
    assert_eq!(reason(ours.facilitator.settle(&metered(124)).await), "duplicate_settlement");
    assert_eq!(ours.balance(to).await, received + 123);
    let other = upto(&alice, to, Address([9; 20]), 500, 7);
    assert_eq!(reason(ours.facilitator.verify(&other(500)).await), "upto_facilitator_mismatch");
}

#[tokio::test]
async fn what_cannot_settle_is_refused_in_the_protocol_s_words_and_nothing_is_sent() {
    let (alice, poor, to) = (Payer::new(1), Payer::new(3), Payer::new(0x51).address());
    let merchant = Merchant::new();
    let node = Node::start(&[&alice], false);
    let ours = node.facilitator();
    let config = merchant.config(alice.address(), alice.address(), 1);
    let poor_config = merchant.config(poor.address(), poor.address(), 1);
    let deposit = |payload, method: &str| merchant.payment(payload, method);
    let mut wrong_network = exact(&alice, alice.address(), to, 1, 1).0;
    wrong_network.requirements["network"] = json!("eip155:8453");
    wrong_network.payload["accepted"]["network"] = json!("eip155:8453");
    let mut wrong_scheme = exact(&alice, alice.address(), to, 1, 1).0;
    wrong_scheme.payload["accepted"]["scheme"] = json!("upto");
    let mut unsigned = merchant.claim(&[Claim { config, by: &alice, signed: 1, total: 1 }]);
    unsigned.payload["payload"].as_object_mut().unwrap().remove("claimAuthorizerSignature");
    let mut other_asset = deposit(eip3009_deposit(&config, &alice, 10, 1, 1), "eip3009");
    other_asset.requirements["asset"] = json!(Address([1; 20]));
    let table: Vec<(Payment, &str)> = vec![
        (exact(&poor, poor.address(), to, 1, 1).0, "insufficient_funds"),
        (exact(&poor, alice.address(), to, 1, 1).0, "invalid_exact_evm_payload_signature"),
        (exact_permit2(&poor, to, 1, 1), "permit2_allowance_required"),
        (wrong_network, "invalid_network"),
        (wrong_scheme, "unsupported_scheme"),
        (
            deposit(eip3009_deposit(&poor_config, &poor, 10, 1, 1), "eip3009"),
            "invalid_batch_settlement_evm_insufficient_balance",
        ),
        (
            deposit(permit2_deposit(&poor_config, &poor, 10, 1, 1), "permit2"),
            "invalid_batch_settlement_evm_permit2_allowance_required",
        ),
        (
            deposit(eip3009_deposit(&config, &alice, 10, 11, 1), "eip3009"),
            "invalid_batch_settlement_evm_cumulative_exceeds_balance",
        ),
        (
            deposit(eip3009_deposit(&config, &poor, 10, 1, 1), "eip3009"),
            "invalid_batch_settlement_evm_voucher_signature",
        ),
        (other_asset, "invalid_batch_settlement_evm_token_mismatch"),
        (unsigned, "invalid_batch_settlement_evm_authorizer_not_configured"),
        (deposit(json!({ "type": "voucher" }), "eip3009"), "invalid_batch_settlement_evm_payload_type"),
        (merchant.payout(), "invalid_batch_settlement_evm_nothing_to_settle"),
    ];
    for (payment, expected) in table {
        assert_eq!(reason(ours.facilitator.settle(&payment).await), expected);
    }
    let other_version = Payment { x402_version: 3, payload: json!({}), requirements: json!({}) };
    assert_eq!(reason(ours.facilitator.verify(&other_version).await), "invalid_x402_version");
    let sent = ours.chain.transaction_count(ours.sender.address(), turnpike::chain::evm::Counted::Known).await;
    assert_eq!(sent, Ok(0));
    let kinds = ours.facilitator.supported().await.unwrap().kinds;
    assert_eq!(kinds.len(), 4);
    assert_eq!(kinds[2].extra["facilitatorAddress"], ours.sender.address().to_string());
}

#[tokio::test]
async fn contracts_pay_by_their_own_word() {
    let (owner, other, merchant) = (Payer::new(1), Payer::new(2), Merchant::new());
    let node = Node::start(&[&owner], true);
    let ours = node.facilitator();
    let wallet = node.wallets[0];
    ours.mint(wallet, 50_000).await;
    let config = merchant.config(wallet, Address::ZERO, 1);
    let forged = merchant.payment(eip3009_deposit(&config, &other, 10_000, 1_000, 1), "eip3009");
    assert_eq!(reason(ours.facilitator.verify(&forged).await), "invalid_batch_settlement_evm_voucher_signature");
    let deposit = merchant.payment(eip3009_deposit(&config, &owner, 10_000, 1_000, 1), "eip3009");
    verify(&ours, &deposit).await;
    let settled = settle(&ours, &deposit).await;
    assert_eq!(settled.payer, Some(wallet.to_string()));
    let voucher = |by| merchant.payment(voucher_payload(&config, by, 4_000), "eip3009");
    assert_eq!(verify(&ours, &voucher(&owner)).await["balance"], "10000");
    assert_eq!(
        reason(ours.facilitator.verify(&voucher(&other)).await),
        "invalid_batch_settlement_evm_voucher_signature"
    );
    settle(&ours, &merchant.claim(&[Claim { config, by: &owner, signed: 4_000, total: 4_000 }])).await;
    // An account without code is its own authorizer as well.
    let plain = merchant.config(owner.address(), Address::ZERO, 1);
    settle(&ours, &merchant.payment(eip3009_deposit(&plain, &owner, 10_000, 1_000, 1), "eip3009")).await;

    // A contract that pays for one request: its signature has 65 bytes, like a key's.
    let (payment, _) = exact(&owner, wallet, merchant.receiver, 100, 1);
    settle(&ours, &payment).await;
    let (forged, _) = exact(&other, wallet, merchant.receiver, 100, 2);
    assert_eq!(reason(ours.facilitator.settle(&forged).await), "invalid_exact_evm_transaction_simulation_failed");
}

#[tokio::test]
async fn a_stuck_transaction_is_bumped_and_receipts_are_awaited_to_their_depth() {
    let (alice, merchant) = (Payer::new(1), Merchant::new());
    let node = Node::start(&[&alice], false);
    let ours =
        node.facilitator_with(SenderOptions { confirmations: 2, ..options() }, Arc::new(turnpike::clock::SystemClock));
    node.ask("evm_setAutomine", json!([false])).await;
    let config = merchant.config(alice.address(), alice.address(), 1);
    let deposit = merchant.payment(eip3009_deposit(&config, &alice, 10_000, 1_000, 1), "eip3009");
    let settling = {
        let (facilitator, deposit) = (ours.facilitator.clone(), deposit.clone());
        tokio::spawn(async move { facilitator.settle(&deposit).await })
    };
    // Until a replacement of the first version waits in the pool.
    let fee = || async {
        let pool = node.ask("txpool_content", json!([])).await;
        let waiting = pool["pending"].as_object()?.values().next()?.as_object()?.values().next().cloned()?;
        let fee = waiting["maxFeePerGas"].as_str()?.trim_start_matches("0x").to_owned();
        u128::from_str_radix(&fee, 16).ok()
    };
    let mut first = None;
    let bumped = loop {
        match (first, fee().await) {
            (None, seen) => first = seen,
            (Some(first), Some(fee)) if fee > first => break (first, fee),
            _ => {}
        }
    };
    assert!(bumped.1 >= bumped.0 + bumped.0 / 8, "{bumped:?}");
    node.ask("anvil_mine", json!(["0x1"])).await;
    let mined = loop {
        let read =
            ours.chain.channels(&[channel_id(&Domain::batch_settlement(node::CHAIN_ID), &config)]).await.unwrap();
        if !read.value[0].balance.is_zero() {
            break read.block;
        }
    };
    assert!(!settling.is_finished(), "one block is not deep enough");
    node.ask("anvil_mine", json!(["0x1"])).await;
    let settled = settling.await.unwrap().unwrap();
    let receipt = ours.chain.receipt(&settled.transaction.parse().unwrap()).await.unwrap().unwrap();
    assert_eq!(receipt.block_number, mined);
    assert_eq!(settle(&ours, &deposit).await, settled);
}

#[tokio::test]
async fn an_unconfirmed_settlement_is_unknown_and_asking_again_finds_it() {
    let (alice, to) = (Payer::new(1), Payer::new(0x51).address());
    let node = Node::start(&[&alice], false);
    let chain = node.chain();
    let sender = Sender::new(chain.clone(), node.gas_key(0), options());
    let impatient = turnpike::facilitator::evm::EvmFacilitatorOptions {
        confirm_timeout: Duration::from_millis(100),
        ..turnpike::facilitator::evm::EvmFacilitatorOptions::DEFAULT
    };
    let clock = Arc::new(turnpike::clock::SystemClock);
    let facilitator = turnpike::facilitator::evm::LocalEvmFacilitator::new(chain.clone(), sender, clock, impatient);
    node.ask("evm_setAutomine", json!([false])).await;
    let (payment, _) = exact(&alice, alice.address(), to, 100, 1);
    let Err(InterfaceError::Unknown { transaction: Some(_), .. }) = facilitator.settle(&payment).await else {
        panic!("it cannot be confirmed")
    };
    node.ask("evm_setAutomine", json!([true])).await;
    node.ask("anvil_mine", json!(["0x1"])).await;
    let settled = loop {
        match facilitator.settle(&payment).await {
            Ok(settled) => break settled,
            Err(InterfaceError::Unknown { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    };
    assert!(chain.receipt(&settled.transaction.parse().unwrap()).await.unwrap().unwrap().succeeded);
    assert_eq!(chain.token_balance(USDC, to).await.unwrap().to_u64(), Some(100));
}

#[tokio::test]
async fn an_endpoint_that_dies_is_passed_over() {
    let (alice, to) = (Payer::new(1), Payer::new(0x51).address());
    let node = Node::start(&[&alice], false);
    // Takes connections and never answers; then refuses them.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dead = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let chain = chain(vec![dead, node.url.clone()]);
    chain.check_chain().await.unwrap();
    let sender = Sender::new(chain.clone(), node.gas_key(0), options());
    let options = turnpike::facilitator::evm::EvmFacilitatorOptions::DEFAULT;
    let clock = Arc::new(turnpike::clock::SystemClock);
    let facilitator = turnpike::facilitator::evm::LocalEvmFacilitator::new(chain.clone(), sender, clock, options);
    let (payment, _) = exact(&alice, alice.address(), to, 100, 1);
    facilitator.settle(&payment).await.unwrap();
    let health = chain.health();
    assert_eq!((health[0].healthy, health[1].healthy), (false, true));

    let url = node.url.clone();
    drop(node);
    let (payment, _) = exact(&alice, alice.address(), to, 100, 2);
    let error = facilitator.settle(&payment).await.unwrap_err();
    assert!(matches!(error, InterfaceError::Unavailable(_)), "{error}");
    assert!(tokio::net::TcpStream::connect(url.trim_start_matches("http://")).await.is_err(), "the node has ended");
}

#[tokio::test]
async fn many_channels_are_read_at_one_block_and_reverts_have_names() {
    let (alice, merchant) = (Payer::new(1), Merchant::new());
    let node = Node::start(&[&alice], false);
    let ours = node.facilitator();
    let domain = Domain::batch_settlement(node::CHAIN_ID);
    let deposited = merchant.config(alice.address(), alice.address(), 200);
    settle(&ours, &merchant.payment(eip3009_deposit(&deposited, &alice, 77, 1, 1), "eip3009")).await;
    // More than fit one call.
    let ids: Vec<B256> =
        (0..=255).map(|salt| channel_id(&domain, &merchant.config(alice.address(), alice.address(), salt))).collect();
    let read = ours.chain.channels(&ids).await.unwrap();
    assert_eq!(read.value.len(), 256);
    for (salt, channel) in read.value.iter().enumerate() {
        assert_eq!(channel.balance.get(), if salt == 200 { 77 } else { 0 });
    }
    let head = ask(&node.url, "eth_blockNumber", json!([])).await;
    assert_eq!(format!("{:#x}", read.block), head.as_str().unwrap());

    let zero = abi::batch::deposit(&deposited, turnpike::amount::Amount::ZERO, Address([1; 20]), Vec::new());
    let error = ours.chain.call(Address([1; 20]), &zero).await.unwrap_err();
    assert!(matches!(&error, EvmError::Reverted(revert) if revert.name() == Some("ZeroDeposit")), "{error}");
    let refund = abi::batch::refund_with_signature(&deposited, turnpike::amount::Amount::new(1), 5_u64.into(), &[]);
    let calls = [refund, abi::token::balance_of(USDC, alice.address())];
    let many = ours.chain.call_many(&calls).await.unwrap();
    assert_eq!(many.value[0].as_ref().map_err(Revert::name), Err(Some("InvalidRefundNonce")));
    assert!(many.value[1].is_ok());
    assert_eq!(ours.chain.code_bytes(alice.address()).await, Ok(0));
    assert!(ours.chain.code_bytes(USDC).await.unwrap() > 0);
}

#[tokio::test]
async fn as_many_claims_as_a_batch_may_hold_are_claimed_at_once() {
    let (alice, merchant) = (Payer::new(1), Merchant::new());
    let node = Node::start(&[&alice], false);
    let ours = node.facilitator();
    let configs: Vec<_> = (0..100).map(|salt| merchant.config(alice.address(), alice.address(), salt)).collect();
    for part in configs.chunks(10) {
        let deposits = part.iter().map(|config| {
            let deposit = merchant.payment(eip3009_deposit(config, &alice, 100, 10, 1), "eip3009");
            let ours = &ours;
            async move { settle(ours, &deposit).await }
        });
        futures_util::future::join_all(deposits).await;
    }
    let guess = ours.facilitator.gas_per_claim();
    let row = |config: &_| Claim { config: *config, by: &alice, signed: 10, total: 10 };
    let all: Vec<_> = configs.iter().map(row).collect();
    let claimed = settle(&ours, &merchant.claim(&all)).await;
    let receipt = ours.chain.receipt(&claimed.transaction.parse().unwrap()).await.unwrap().unwrap();
    println!("{} gas for 100 claims, {} each at most by the guess", receipt.gas_used, guess);
    assert!(
        receipt.gas_used / 100 < guess && ours.facilitator.gas_per_claim() == guess,
        "the guess is on the safe side"
    );
    assert_eq!(settle(&ours, &merchant.payout()).await.amount.as_deref(), Some("1000"));
    assert_eq!((ours.facilitator.claims_in(15_000_000), ours.facilitator.claims_in(1)), (100, 1));
    let too_many: Vec<_> = configs.iter().chain(&configs[..1]).map(row).collect();
    let refused = reason(ours.facilitator.settle(&merchant.claim(&too_many)).await);
    assert_eq!(refused, "invalid_batch_settlement_evm_claim_payload");
}

#[tokio::test]
async fn concurrent_transactions_of_one_key_all_run_and_a_revert_is_told() {
    let alice = Payer::new(1);
    let node = Node::start(&[&alice], false);
    let ours = node.facilitator();
    let accounts: Vec<Address> = (1..=12).map(|n| Address([n; 20])).collect();
    futures_util::future::join_all(accounts.iter().map(|account| ours.mint(*account, 5))).await;
    for account in accounts {
        assert_eq!(ours.balance(account).await, 5);
    }
    let nothing = abi::batch::together(vec![Call { to: Address::ZERO, data: vec![1, 2, 3, 4] }]);
    let sent = ours.sender.send(ours.sender.prepare(nothing, 100_000).await.unwrap()).await.unwrap();
    let Fate::Reverted(receipt) = ours.sender.wait(&sent, LONG).await else { panic!("it cannot succeed") };
    assert!(!receipt.succeeded && receipt.gas_used > 21_000);
}
