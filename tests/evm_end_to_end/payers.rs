//! Payers of other kinds: one whose deposits go by Permit2, and a contract wallet (ERC-1271).

use serde_json::json;

use super::client::Payer;
use super::node::Node;
use super::world::{FUNDS, Facilitator, PERMIT2, Shop, with_both};

with_both!(deposits_go_by_permit2, a_contract_wallet_pays);

const ROUTES: &str = "
  - { path: /quote, price: '$0.001' }";

async fn deposits_go_by_permit2(facilitator: Facilitator) {
    let payer = Payer::new(1);
    let shop = Shop::open(Node::start(&[&payer], false), facilitator, PERMIT2, ROUTES);
    let mut client = shop.client(&payer, &json!({ "deposit": "2000" }));
    for _ in 0..3 {
        let opened = client.pay("/quote");
        if opened["payment"]["payload"]["type"] == "deposit" {
            let by = &opened["payment"]["payload"]["deposit"]["authorization"];
            assert!(by["permit2Authorization"].is_object(), "{opened}");
        }
    }
    assert_eq!(shop.balances(payer.address()).await, [FUNDS - 4000, 0, 4000], "a deposit and a top-up");
    shop.settle().await;
    assert_eq!(client.refund("/quote", None)["amount"], "1000");
    assert_eq!(shop.balances(payer.address()).await, [FUNDS - 3000, 3000, 0]);
}

async fn a_contract_wallet_pays(facilitator: Facilitator) {
    let owner = Payer::new(1);
    let node = Node::start(&[&owner], true);
    let wallet = node.wallets[0];
    node.facilitator().mint(wallet, FUNDS.into()).await;
    let shop = Shop::open(node, facilitator, "", ROUTES);
    let mut client = shop.client(&owner, &json!({ "wallet": wallet, "deposit": "2000" }));
    let opened = client.pay("/quote");
    let config = &opened["payment"]["payload"]["channelConfig"];
    assert_eq!((&config["payer"], config["payerAuthorizer"].as_str()), (&json!(wallet), Some(NOBODY)));
    client.pay("/quote");
    // A top-up.
    client.pay("/quote");
    assert_eq!(shop.balances(wallet).await, [FUNDS - 4000, 0, 4000]);
    shop.settle().await;
    assert_eq!(client.refund("/quote", None)["amount"], "1000");
    assert_eq!(shop.balances(wallet).await, [FUNDS - 3000, 3000, 0]);
    assert_eq!(shop.balance(owner.address()).await, FUNDS, "the owner only signs");
}

const NOBODY: &str = "0x0000000000000000000000000000000000000000";
