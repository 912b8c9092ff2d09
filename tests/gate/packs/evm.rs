//! The same on an EVM network: another ledger, the same passes.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use turnpike::gate::route::{EvmScheme, Pack, Pricing, Route};
use turnpike::layer::Verdict;
use turnpike::scheme::evm::TransferMethod;
use turnpike::x402::{Account, Reason, call_pack};

use super::{assert_refused, buys, call, id_of, left, sold};
use crate::doubles::{PRICE, header, offer as solana_offer, route};
use crate::evm::doubles::{Client, EvmHouse, offer};
use crate::upstream::{BODY, Site};

const PACK_PRICE: u64 = 2_500;

/// Sold on Solana and here, and once by an authorization, which buys no packs.
fn everywhere() -> Arc<Route> {
    let ways = |amount: u64| {
        let here = |scheme| offer(scheme, TransferMethod::Eip3009, amount);
        vec![solana_offer(amount), here(EvmScheme::BatchSettlement), here(EvmScheme::Exact)]
    };
    let pack = Pack { calls: 3, lifetime: Duration::from_secs(600), offers: ways(PACK_PRICE) };
    let plain = route("/packs", Pricing::Fixed(ways(PRICE)));
    Arc::new(Route { pack: Some(Arc::new(pack)), ..(*plain).clone() })
}

async fn shop() -> (EvmHouse, Site, Client) {
    let house = EvmHouse::new().await;
    let client = Client::new(7);
    house.facilitator.open(&client.terms, 50_000);
    let site = Site::of_routes(&house.gate, vec![("/packs", everywhere())]);
    (house, site, client)
}

#[tokio::test]
async fn a_pack_is_offered_where_a_channel_pays_and_bought_there() {
    let (house, site, client) = shop().await;
    let required = site.get("/packs", None).await.unwrap().required().unwrap();
    let pack = call_pack::offered(&required.extensions).unwrap();
    let offered: Vec<_> = pack.accepts.iter().map(|offer| (&*offer.scheme, offer.network.is_solana())).collect();
    assert_eq!(offered, [("batch-settlement", true), ("batch-settlement", false)]);
    let here = &pack.accepts[1];
    let answer = site.get("/packs", Some(buys(here, &client.pays(PACK_PRICE), None))).await.unwrap();
    assert_eq!((answer.status, &*answer.body), (StatusCode::OK, BODY));
    let bought = sold(&answer);
    assert_eq!((bought.calls, bought.calls_left), (3, 2));
    assert_eq!((house.charged(&client), house.ledger.pass_count()), (Some(PACK_PRICE.into()), 1));
    let asked = house.facilitator.calls.lock().len();
    for expected in [1, 0] {
        let answer = call(&site, "/packs", &bought.pass).await;
        assert_eq!((answer.status, left(&answer)), (StatusCode::OK, Some(expected)));
        assert!(matches!(answer.verdict, Verdict::OnPass(paid) if paid.payer == Account::Evm(client.terms.payer)));
    }
    assert_refused(&call(&site, "/packs", &bought.pass).await, Reason::CallPackSpent);
    assert_eq!(house.facilitator.calls.lock().len(), asked, "a call on a pass asks nobody");
    assert_eq!(house.ledger.pass(&id_of(&bought.pass)).unwrap().used, 3);
}

#[tokio::test]
async fn a_failed_purchase_costs_nothing_and_a_lost_one_is_had_again() {
    let (house, site, client) = shop().await;
    let required = site.get("/packs", None).await.unwrap().required().unwrap();
    let here = call_pack::offered(&required.extensions).unwrap().accepts.remove(1);
    let payment = buys(&here, &client.pays(PACK_PRICE), Some("pay_7d5d747be160e280504c099d984bcfe0"));
    site.answers(500, &[]);
    let failed = site.get("/packs", Some(payment.clone())).await.unwrap();
    assert!(matches!(failed.verdict, Verdict::Released(_)));
    assert_eq!((house.ledger.pass_count(), house.charged(&client).unwrap_or(0)), (0, 0));
    site.answers(200, &[]);
    let first = site.get("/packs", Some(payment.clone())).await.unwrap();
    let again = site.get("/packs", Some(payment)).await.unwrap();
    assert_eq!((again.verdict.clone(), sold(&again).pass), (Verdict::Replayed, sold(&first).pass));
    assert_eq!(left(&call(&site, "/packs", &sold(&again).pass).await), Some(1));
}

#[tokio::test]
async fn a_deposit_buys_a_pack_and_a_stale_voucher_is_corrected_in_the_plain_offer() {
    let (house, site, _) = shop().await;
    let client = Client::new(8);
    let required = site.get("/packs", None).await.unwrap().required().unwrap();
    let here = call_pack::offered(&required.extensions).unwrap().accepts.remove(1);
    let answer = site.get("/packs", Some(buys(&here, &client.deposits(20_000, PACK_PRICE, 1), None))).await.unwrap();
    assert_eq!(answer.settlement().unwrap().amount.as_deref(), Some("20000"));
    let asked = house.facilitator.asked.lock()[0].clone();
    assert_eq!(asked.requirements["amount"], PACK_PRICE.to_string(), "the facilitator sees what is paid");
    assert_eq!(left(&call(&site, "/packs", &sold(&answer).pass).await), Some(1));
    let stale = site.get("/packs", Some(buys(&here, &client.pays(PACK_PRICE), None))).await.unwrap();
    let first = stale.required().unwrap().accepts.remove(0);
    assert_eq!(
        (stale.error().as_str(), first.network.is_solana()),
        (Reason::EvmBatchCumulativeAmountMismatch.as_str(), false)
    );
    assert_eq!(first.extra["channelState"]["chargedCumulativeAmount"], PACK_PRICE.to_string());
    // A single call on the same channel.
    let single = required.accepts.into_iter().find(|offer| !offer.network.is_solana()).unwrap();
    let answer = site.get("/packs", Some(header(&single, &client.pays(PACK_PRICE + PRICE)))).await.unwrap();
    assert_eq!(answer.status, StatusCode::OK);
}
