//! A channel's whole life, and what clients do wrong on one.

use serde_json::{Value, json};

use super::client::Payer;
use super::node::Node;
use super::world::{FUNDS, Facilitator, Reference, Shop, with_each};

with_each!(a_channel_lives_from_its_deposit_to_its_refund_and_beyond, misdeeds_are_refused_and_mishaps_mended);

const ROUTES: &str = "
  - { path: /quote, price: '$0.001' }
  - { path: /usage, price: '$0.001', metering: { header: X-Cost } }
  - { path: /fail, price: '$0.001' }";

fn kind(answer: &Value) -> &str {
    answer["payment"]["payload"]["type"].as_str().unwrap()
}

fn charged(answer: &Value) -> (&str, &str) {
    let extra = &answer["settlement"]["extra"];
    let total = extra["channelState"]["chargedCumulativeAmount"].as_str();
    (extra["chargedAmount"].as_str().unwrap(), total.unwrap())
}

async fn a_channel_lives_from_its_deposit_to_its_refund_and_beyond(facilitator: Facilitator, reference: Reference) {
    let payer = Payer::new(1);
    let shop = Shop::open(Node::start(&[&payer], false), facilitator, "", ROUTES);
    let mut client = shop.client_of(reference, &payer, &json!({ "deposit": "3500" }));

    // The deposit of a call that fails is not even sent.
    let failed = client.ask(json!({ "do": "pay", "url": "/fail" }));
    assert_eq!((kind(&failed), failed["status"].as_u64()), ("deposit", Some(503)), "{failed}");
    assert_eq!(shop.balances(payer.address()).await, [FUNDS, 0, 0]);

    let opened = client.pay("/quote");
    assert_eq!((kind(&opened), charged(&opened)), ("deposit", ("1000", "1000")));
    assert_eq!(opened["settlement"]["amount"], "3500");
    assert_eq!(shop.balances(payer.address()).await, [FUNDS - 3500, 0, 3500]);

    let voucher = client.pay("/quote");
    assert_eq!((kind(&voucher), charged(&voucher)), ("voucher", ("1000", "2000")));
    assert_eq!(voucher["settlement"]["transaction"], "");
    let metered = client.pay("/usage");
    assert_eq!(charged(&metered), ("300", "2300"));
    let failed = client.ask(json!({ "do": "pay", "url": "/fail" }));
    assert_eq!((failed["status"].as_u64(), failed["body"].as_str()), (Some(503), Some("down")), "{failed}");
    // Nothing was charged for it.
    assert_eq!(charged(&client.pay("/quote")), ("1000", "3300"));

    let topped_up = client.pay("/quote");
    assert_eq!((kind(&topped_up), charged(&topped_up)), ("deposit", ("1000", "4300")));
    assert_eq!(shop.balances(payer.address()).await, [FUNDS - 7000, 0, 7000]);

    shop.settle().await;
    assert_eq!(shop.balances(payer.address()).await, [FUNDS - 7000, 4300, 2700]);
    assert_eq!(charged(&client.pay("/quote")), ("1000", "5300"));

    assert_eq!(client.refund("/quote", Some("600"))["amount"], "600");
    assert_eq!(shop.balance(payer.address()).await, FUNDS - 6400);
    assert_eq!(client.refund("/quote", None)["amount"], "1100");
    shop.settle().await;
    assert_eq!(shop.balances(payer.address()).await, [FUNDS - 5300, 5300, 0]);

    let again = client.pay("/quote");
    assert_eq!((kind(&again), charged(&again)), ("deposit", ("1000", "6300")));
    assert_eq!(charged(&client.pay("/usage")), ("300", "6600"));
    client.refund("/quote", None);
    shop.settle().await;
    assert_eq!(shop.balances(payer.address()).await, [FUNDS - 6600, 6600, 0]);
}

async fn misdeeds_are_refused_and_mishaps_mended(facilitator: Facilitator, reference: Reference) {
    let payer = Payer::new(1);
    let shop = Shop::open(Node::start(&[&payer], false), facilitator, "", ROUTES);
    let mut client = shop.client_of(reference, &payer, &json!({ "deposit": "20000" }));
    client.pay("/quote");
    assert_eq!(charged(&client.pay("/quote")), ("1000", "2000"));

    // A replayed voucher is answered with where the channel stands.
    let replayed = client.refused(json!({ "do": "replay" }), "invalid_batch_settlement_evm_cumulative_amount_mismatch");
    let stand = &replayed["required"]["accepts"][0]["extra"];
    assert_eq!(stand["channelState"]["chargedCumulativeAmount"], "2000", "{replayed}");
    assert_eq!(stand["voucherState"]["signedMaxClaimable"], "2000", "{replayed}");
    let signature = |how: &str| json!({ "signature": how });
    for spoiled in [signature("flip"), signature("high-s"), signature("v-0-1"), json!({ "maxClaimableAmount": "9000" })]
    {
        client.ask(json!({ "do": "tamper", "change": { "payload": { "voucher": spoiled } } }));
        client.refused(json!({ "do": "pay", "url": "/quote" }), "invalid_batch_settlement_evm_voucher_signature");
    }
    assert_eq!(charged(&client.pay("/quote")), ("1000", "3000"), "nothing was charged for what was refused");

    // Without its state it reads the chain, where nothing is claimed yet; it is corrected, and pays.
    client.ask(json!({ "do": "forget" }));
    let recovered = client.pay("/quote");
    assert_eq!((kind(&recovered), charged(&recovered)), ("voucher", ("1000", "4000")));

    let together = client.ask(json!({ "do": "together", "url": "/quote", "times": 2 }));
    for answer in together["answers"].as_array().unwrap() {
        assert_eq!(answer["status"], 200, "{answer}");
    }
    assert_eq!(charged(&client.pay("/quote")), ("1000", "7000"), "both were charged once");

    shop.settle().await;
    client.refund("/quote", None);
    assert_eq!(shop.balances(payer.address()).await, [FUNDS - 7000, 7000, 0]);
}
