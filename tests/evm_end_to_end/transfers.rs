//! A transfer for each request: `exact` by EIP-3009 and by Permit2, metered `upto`, and `exact` of protocol version 1 by
//! the legacy client.

use serde_json::{Value, json};

use super::client::Payer;
use super::node::Node;
use super::world::{FUNDS, Facilitator, PERMIT2, Script, Shop, with_both};

with_both!(exact_is_paid_in_both_versions, exact_and_upto_go_by_permit2);

const ROUTES: &str = "
  - { path: /once, price: '$0.002', schemes: [exact] }
  - { path: /fail, price: '$0.002', schemes: [exact] }";

async fn exact_is_paid_in_both_versions(facilitator: Facilitator) {
    let payer = Payer::new(1);
    let shop = Shop::open(Node::start(&[&payer], false), facilitator, "", ROUTES);
    let mut client = shop.client(&payer, &json!({}));
    for _ in 0..2 {
        let paid = client.pay("/once");
        assert_eq!(paid["payment"]["accepted"]["scheme"], "exact");
        assert!(paid["payment"]["payload"]["authorization"].is_object(), "{paid}");
        assert_eq!((&paid["settlement"]["success"], &paid["settlement"]["amount"]), (&json!(true), &json!("2000")));
    }
    let failed = client.ask(json!({ "do": "pay", "url": "/fail" }));
    assert_eq!(failed["status"], 503, "{failed}");
    assert_eq!(shop.balances(payer.address()).await, [FUNDS - 4000, 4000, 0], "what failed was not charged");

    let url = shop.turnpike.url("/once").to_string();
    let legacy = Script::node("pay_v1.mjs", &[&url, &payer.key().to_string(), "2"], &[]);
    for _ in 0..2 {
        let paid: Value = legacy.line();
        assert_eq!((&paid["status"], &paid["body"]), (&json!(200), &json!("hello")), "{paid}");
        assert_eq!(paid["settlement"]["success"], true, "{paid}");
    }
    assert_eq!(shop.balances(payer.address()).await, [FUNDS - 8000, 8000, 0]);
}

async fn exact_and_upto_go_by_permit2(facilitator: Facilitator) {
    let payer = Payer::new(1);
    let routes = format!(
        "{ROUTES}
  - {{ path: /usage, price: '$0.001', metering: {{ header: X-Cost }}, schemes: [upto] }}
  - {{ path: /fail/usage, price: '$0.001', metering: {{ header: X-Cost }}, schemes: [upto] }}"
    );
    let shop = Shop::open(Node::start(&[&payer], false), facilitator, PERMIT2, &routes);
    let mut client = shop.client(&payer, &json!({}));
    let exact = client.pay("/once");
    assert!(exact["payment"]["payload"]["permit2Authorization"].is_object(), "{exact}");
    let upto = client.pay("/usage");
    assert_eq!(upto["payment"]["accepted"]["scheme"], "upto");
    assert_eq!((&upto["settlement"]["success"], &upto["settlement"]["amount"]), (&json!(true), &json!("300")));
    for path in ["/fail", "/fail/usage"] {
        let failed = client.ask(json!({ "do": "pay", "url": path }));
        assert_eq!(failed["status"], 503, "{failed}");
    }
    assert_eq!(shop.balances(payer.address()).await, [FUNDS - 2300, 2300, 0], "what failed was not charged");
}
