//! Packs of calls, before the reference client: unchanged it pays for each call as ever, and with a few lines it buys a
//! pack.

use serde_json::{Value, json};

use super::client::Payer;
use super::node::Node;
use super::world::{Client, FUNDS, Facilitator, Shop, with_both};

with_both!(who_does_not_know_packs_pays_for_each_call, who_knows_them_pays_once);

const ROUTES: &str = "
  - { path: /quote, price: '$0.001', pack: { calls: 4, price: '$0.003' } }";

async fn who_does_not_know_packs_pays_for_each_call(facilitator: Facilitator) {
    let payer = Payer::new(1);
    let shop = Shop::open(Node::start(&[&payer], false), facilitator, "", ROUTES);
    let mut client = shop.client(&payer, &json!({ "deposit": "5000" }));
    let unpaid = client.ask(json!({ "do": "unpaid", "url": "/quote" }));
    let pack = &unpaid["required"]["extensions"]["call-pack"]["info"];
    assert_eq!((pack["calls"].as_u64(), pack["accepts"][0]["amount"].as_str()), (Some(4), Some("3000")), "{unpaid}");
    assert_eq!(unpaid["required"]["accepts"].as_array().unwrap().len(), 1);
    for _ in 0..5 {
        let answer = client.pay("/quote");
        assert_eq!(answer["payment"]["accepted"]["amount"], "1000", "{answer}");
        assert_eq!(answer["settlement"]["extra"]["chargedAmount"], "1000");
        assert!(answer["settlement"].get("extensions").is_none());
    }
    shop.settle().await;
    assert_eq!(shop.balances(payer.address()).await, [FUNDS - 5000, 5000, 0]);
}

async fn who_knows_them_pays_once(facilitator: Facilitator) {
    let payer = Payer::new(1);
    let shop = Shop::open(Node::start(&[&payer], false), facilitator, "", ROUTES);
    let mut client = shop.client(&payer, &json!({ "deposit": "8000", "pack": true }));
    let bought = client.pay("/quote");
    assert_eq!(bought["payment"]["accepted"]["amount"], "3000", "{bought}");
    let info = bought["settlement"]["extensions"]["call-pack"]["info"].clone();
    assert_eq!((info["calls"].as_u64(), info["callsLeft"].as_u64()), (Some(4), Some(3)), "{bought}");
    for left in ["2", "1", "0"] {
        let answer = on_pass(&mut client, &info["pass"]);
        assert_eq!((answer["status"].as_u64(), answer["body"].as_str()), (Some(200), Some("hello")), "{answer}");
        assert_eq!(answer["headers"]["payment-pass-calls-left"], left, "{answer}");
    }
    let spent = on_pass(&mut client, &info["pass"]);
    assert_eq!((spent["status"].as_u64(), spent["required"]["error"].as_str()), (Some(402), Some("call_pack_spent")));
    // The next pack is a voucher on the same channel, and single calls go on beside it.
    assert_eq!(client.pay("/quote")["settlement"]["extra"]["channelState"]["chargedCumulativeAmount"], "6000");
    client.ask(json!({ "do": "options", "pack": false }));
    assert_eq!(client.pay("/quote")["settlement"]["extra"]["channelState"]["chargedCumulativeAmount"], "7000");
    shop.settle().await;
    assert_eq!(client.refund("/quote", None)["amount"], "1000");
    assert_eq!(shop.balances(payer.address()).await, [FUNDS - 7000, 7000, 0]);
}

fn on_pass(client: &mut Client<'_>, pass: &Value) -> Value {
    client.ask(json!({ "do": "unpaid", "url": "/quote", "headers": { "Payment-Pass": pass } }))
}
