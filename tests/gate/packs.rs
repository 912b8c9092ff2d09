//! Call packs through the layer: bought with their charge or not at all, counted down, given back, refused, had again.

mod evm;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use turnpike::amount::Amount;
use turnpike::gate::Options;
use turnpike::gate::policy::rate::Rate;
use turnpike::gate::policy::{Accounts, DailyRule, Policy, RateLimit};
use turnpike::gate::route::{Pack, Route};
use turnpike::layer::Verdict;
use turnpike::ledger::passes::{PassId, PassState};
use turnpike::telemetry::Telemetry;
use turnpike::x402::call_pack::{self, PackSold, PassToken};
use turnpike::x402::wire::PaymentRequirements;
use turnpike::x402::{Account, Reason};

use crate::doubles::{Client, House, MemoryStore, PRICE, encode, fixed, header, offer};
use crate::upstream::{Answer, BODY, Behaviour, Piece, Site};

const CALLS: u32 = 3;
const PACK_PRICE: u64 = 2_500;
const LIFETIME: Duration = Duration::from_secs(600);
const ID: &str = "pay_7d5d747be160e280504c099d984bcfe0";

fn pack() -> Arc<Pack> {
    Arc::new(Pack { calls: CALLS, lifetime: LIFETIME, offers: vec![offer(PACK_PRICE)] })
}

fn with_pack(route: &Route) -> Arc<Route> {
    Arc::new(Route { pack: Some(pack()), ..route.clone() })
}

fn other() -> Arc<Route> {
    let other = Route { name: "/other".into(), path: "/other".into(), scope: "/other".into(), ..(*fixed()).clone() };
    with_pack(&other)
}

/// A site that sells packs on two routes, one payer with a channel of 50,000, and a route that sells none any more.
async fn shop() -> (House, Site, Client) {
    of_house(House::new().await)
}

fn of_house(house: House) -> (House, Site, Client) {
    let client = Client::new(7);
    house.facilitator.open(&client.terms, 50_000);
    let routes = vec![("/quote", with_pack(&fixed())), ("/other", other()), ("/plain", fixed())];
    let site = Site::of_routes(&house.gate, routes);
    (house, site, client)
}

/// What a challenge offers as a pack.
async fn offered(site: &Site, path: &str) -> PaymentRequirements {
    let required = site.get(path, None).await.unwrap().required().unwrap();
    call_pack::offered(&required.extensions).unwrap().accepts.remove(0)
}

/// A payment for a pack, with an id where one is given.
pub fn buys(accepted: &PaymentRequirements, payload: &Value, id: Option<&str>) -> Vec<u8> {
    let mut extensions = json!({ "call-pack": { "info": {} } });
    if let Some(id) = id {
        extensions["payment-identifier"] = json!({ "info": { "required": false, "id": id } });
    }
    encode(&json!({ "x402Version": 2, "accepted": accepted, "payload": payload, "extensions": extensions }))
}

/// A call on a pass.
pub async fn call(site: &Site, path: &str, pass: &str) -> Answer {
    let request = Request::builder().method(Method::GET).uri(path).header("host", "api.example.com");
    let request = request.header("payment-pass", pass).body(Full::new(Bytes::new())).unwrap();
    site.send(request).await.unwrap()
}

/// What an answer tells of a pass that was bought.
pub fn sold(answer: &Answer) -> PackSold {
    call_pack::bought(&answer.settlement().unwrap().extensions).unwrap()
}

pub fn id_of(pass: &str) -> PassId {
    PassId(PassToken::parse(pass.as_bytes()).unwrap().digest())
}

pub fn left(answer: &Answer) -> Option<u32> {
    answer.headers.get("payment-pass-calls-left").map(|value| value.to_str().unwrap().parse().unwrap())
}

async fn buy(site: &Site, client: &Client, total: u64) -> PackSold {
    let payment = buys(&offered(site, "/quote").await, &client.pays(total), None);
    let answer = site.get("/quote", Some(payment)).await.unwrap();
    assert_eq!((answer.status, &*answer.body), (StatusCode::OK, BODY));
    sold(&answer)
}

fn charged(house: &House, client: &Client) -> Amount {
    house.ledger.channel(&client.terms.id).map_or(Amount::ZERO, |channel| channel.charged)
}

pub fn assert_refused(answer: &Answer, reason: Reason) {
    assert_eq!((answer.status, answer.error().as_str()), (StatusCode::PAYMENT_REQUIRED, reason.as_str()));
    assert_eq!(answer.verdict, Verdict::Refused(reason));
    assert!(answer.settlement().is_none() && left(answer).is_none());
    assert!(!answer.required().unwrap().accepts.is_empty(), "it says how to pay instead");
}

#[tokio::test]
async fn a_challenge_offers_the_pack_beside_the_single_price() {
    let (_house, site, _) = shop().await;
    let required = site.get("/quote", None).await.unwrap().required().unwrap();
    assert_eq!(required.accepts.iter().map(|offer| offer.amount).collect::<Vec<_>>(), [PRICE.into()]);
    let pack = call_pack::offered(&required.extensions).unwrap();
    assert_eq!((pack.calls, pack.expires_after_seconds, &*pack.header), (CALLS, 600, "Payment-Pass"));
    assert_eq!(pack.accepts.iter().map(|offer| offer.amount).collect::<Vec<_>>(), [PACK_PRICE.into()]);
    assert_eq!(required.extensions["call-pack"]["schema"]["required"][0], "calls");
    let plain = site.get("/plain", None).await.unwrap().required().unwrap();
    assert!(!plain.extensions.contains_key("call-pack"));
}

#[tokio::test]
async fn the_buying_request_is_the_first_call_and_the_pass_is_good_for_the_others() {
    let (house, site, client) = shop().await;
    let sold = buy(&site, &client, PACK_PRICE).await;
    assert_eq!((sold.calls, sold.calls_left), (CALLS, CALLS - 1));
    assert_eq!(sold.expires_at, turnpike::clock::Clock::now(&*house.clock).plus(LIFETIME).seconds());
    assert_eq!(charged(&house, &client), PACK_PRICE.into());
    let reads = house.facilitator.count("read_channel");
    for expected in [1, 0] {
        let answer = call(&site, "/quote", &sold.pass).await;
        assert_eq!((answer.status, &*answer.body, left(&answer)), (StatusCode::OK, BODY, Some(expected)));
        assert_eq!(answer.headers["cache-control"], "private");
        assert!(matches!(&answer.verdict, Verdict::OnPass(paid) if paid.payer == Account::Svm(client.terms.payer)));
        assert!(answer.settlement().is_none());
    }
    let seen = site.seen.lock()[2].clone();
    assert_eq!(seen.headers["turnpike-payer"], client.terms.payer.to_string());
    assert_eq!(seen.headers["turnpike-amount"], "0");
    assert!(seen.headers.keys().all(|name| !name.as_str().starts_with("payment")), "{:?}", seen.headers);
    assert_refused(&call(&site, "/quote", &sold.pass).await, Reason::CallPackSpent);
    assert_eq!((site.calls(), charged(&house, &client)), (3, PACK_PRICE.into()));
    assert_eq!(house.facilitator.count("read_channel"), reads, "a call on a pass asks nobody");
    assert_eq!(house.store.passes.lock()[&id_of(&sold.pass)].used, CALLS);
}

#[tokio::test]
async fn a_client_that_echoes_and_pays_the_single_price_pays_for_one_call() {
    let (house, site, client) = shop().await;
    let single = site.offer("/quote").await;
    let answer = site.get("/quote", Some(buys(&single, &client.pays(PRICE), None))).await.unwrap();
    assert!(matches!(answer.verdict, Verdict::Charged { charged, .. } if charged == PRICE.into()));
    assert!(answer.settlement().unwrap().extensions.is_empty());
    assert_eq!(house.ledger.pass_count(), 0);
    // The pack's price without the extension is no price.
    let payment = header(&offered(&site, "/quote").await, &client.pays(PRICE + PACK_PRICE));
    let answer = site.get("/quote", Some(payment)).await.unwrap();
    assert_eq!(answer.error(), Reason::InvalidRequirements.as_str());
}

#[tokio::test]
async fn a_deposit_buys_a_pack_too_and_a_stale_voucher_is_corrected() {
    let (house, site, _) = shop().await;
    let client = Client::new(8);
    let pack = offered(&site, "/quote").await;
    let deposit = buys(&pack, &client.deposits(20_000, PACK_PRICE), None);
    let answer = site.get("/quote", Some(deposit)).await.unwrap();
    assert_eq!(answer.settlement().unwrap().amount.as_deref(), Some("20000"));
    assert_eq!(left(&call(&site, "/quote", &sold(&answer).pass).await), Some(1));
    let stale = site.get("/quote", Some(buys(&pack, &client.pays(PACK_PRICE), None))).await.unwrap();
    assert_eq!(stale.error(), Reason::BatchCumulativeAmountMismatch.as_str());
    let offer = stale.required().unwrap().accepts.remove(0);
    assert_eq!(offer.extra["channelState"]["chargedCumulativeAmount"], PACK_PRICE.to_string());
    assert_eq!((house.ledger.pass_count(), charged(&house, &client)), (1, PACK_PRICE.into()));
}

#[tokio::test]
async fn refusals() {
    let (house, site, client) = shop().await;
    let sold = buy(&site, &client, PACK_PRICE).await;
    let unknown = PassToken::new([9; 32]).reveal();
    for text in ["", "x", &unknown, &sold.pass[1..], &format!("{0}, {0}", sold.pass)] {
        assert_refused(&call(&site, "/quote", text).await, Reason::CallPackUnknown);
    }
    for path in ["/other"] {
        assert_refused(&call(&site, path, &sold.pass).await, Reason::CallPackOtherRoute);
    }
    assert_eq!(left(&call(&site, "/plain", &sold.pass).await), Some(1), "of the same scope, and sells no packs now");
    house.clock.advance(LIFETIME);
    assert_refused(&call(&site, "/quote", &sold.pass).await, Reason::CallPackExpired);
    let second = buy(&site, &client, 2 * PACK_PRICE).await;
    house.ledger.revoke_pass(&id_of(&second.pass)).await.unwrap().unwrap();
    assert_refused(&call(&site, "/quote", &second.pass).await, Reason::CallPackRevoked);
    let states: Vec<_> = house.ledger.passes(9).iter().map(|(_, state)| *state).collect();
    assert_eq!(states, [PassState::Revoked, PassState::Expired]);
    assert_eq!((site.calls(), charged(&house, &client)), (3, (2 * PACK_PRICE).into()));
}

#[tokio::test]
async fn a_payment_that_comes_with_a_pass_pays_and_free_routes_take_it_away() {
    let (house, site, client) = shop().await;
    let sold = buy(&site, &client, PACK_PRICE).await;
    let single = header(&site.offer("/quote").await, &client.pays(PACK_PRICE + PRICE));
    let request = Request::builder().uri("/quote").header("PAYMENT-SIGNATURE", single);
    let request = request.header("Payment-Pass", &sold.pass).body(Full::new(Bytes::new())).unwrap();
    let answer = site.send(request).await.unwrap();
    assert!(matches!(answer.verdict, Verdict::Charged { .. }));
    assert_eq!(house.ledger.pass(&id_of(&sold.pass)).unwrap().left(), CALLS - 1);
    assert_eq!(call(&site, "/open", &sold.pass).await.verdict, Verdict::Free);
    assert!(site.seen.lock().iter().all(|seen| !seen.headers.contains_key("payment-pass")));
}

#[tokio::test]
async fn what_is_not_delivered_gives_the_call_back_and_sells_no_pack() {
    let (house, site, client) = shop().await;
    let pack = offered(&site, "/quote").await;
    let payment = || buys(&pack, &client.pays(PACK_PRICE), None);
    for status in [400, 404, 500, 503] {
        site.answers(status, &[]);
        let answer = site.get("/quote", Some(payment())).await.unwrap();
        assert!(matches!(answer.verdict, Verdict::Released(_)) && answer.settlement().is_none(), "{status}");
    }
    site.behave(Behaviour::Fails);
    site.get("/quote", Some(payment())).await.unwrap_err();
    assert_eq!((house.ledger.pass_count(), charged(&house, &client)), (0, Amount::ZERO));
    site.answers(200, &[]);
    let sold = sold(&site.get("/quote", Some(payment())).await.unwrap());

    for status in [400, 404, 500, 503] {
        site.answers(status, &[("payment-pass-calls-left", "99")]);
        let answer = call(&site, "/quote", &sold.pass).await;
        assert!(matches!(answer.verdict, Verdict::Released(_)) && left(&answer).is_none(), "{status}");
    }
    site.behave(Behaviour::Hangs);
    let hangs = {
        let (site, pass) = (site.clone(), sold.pass.clone());
        tokio::spawn(async move { call(&site, "/quote", &pass).await })
    };
    let before = site.calls();
    while site.calls() == before {
        tokio::task::yield_now().await;
    }
    hangs.abort();
    assert!(hangs.await.unwrap_err().is_cancelled());
    site.answers(301, &[("payment-pass-calls-left", "99")]);
    assert_eq!(left(&call(&site, "/quote", &sold.pass).await), Some(1), "all of them were given back");
    assert_eq!(house.ledger.pass(&id_of(&sold.pass)).unwrap().used, 2);
}

#[tokio::test]
async fn no_more_calls_are_in_flight_than_are_left() {
    let (house, site, client) = shop().await;
    let sold = buy(&site, &client, PACK_PRICE).await;
    let let_go = Arc::new(Semaphore::new(0));
    site.behave(Behaviour::Waits(Arc::clone(&let_go)));
    let go = || {
        let (site, pass) = (site.clone(), sold.pass.clone());
        tokio::spawn(async move { call(&site, "/quote", &pass).await })
    };
    let both = [go(), go()];
    while site.calls() < 3 {
        tokio::task::yield_now().await;
    }
    let busy = call(&site, "/quote", &sold.pass).await;
    assert_eq!((busy.status, busy.json()["error"].as_str()), (StatusCode::SERVICE_UNAVAILABLE, Some("call_pack_busy")));
    assert_eq!(busy.headers["retry-after"], "1");
    let_go.add_permits(2);
    for one in both {
        assert_eq!(one.await.unwrap().status, StatusCode::OK);
    }
    assert_refused(&call(&site, "/quote", &sold.pass).await, Reason::CallPackSpent);
    assert_eq!((site.calls(), house.ledger.pass(&id_of(&sold.pass)).unwrap().used), (3, CALLS));
}

#[tokio::test]
async fn a_count_that_is_not_durable_lets_no_answer_go() {
    let (house, site, client) = shop().await;
    let sold = buy(&site, &client, PACK_PRICE).await;
    *house.store.failing.lock() = true;
    let answer = call(&site, "/quote", &sold.pass).await;
    assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_ne!(&*answer.body, BODY);
    assert_eq!(call(&site, "/quote", &sold.pass).await.status, StatusCode::INTERNAL_SERVER_ERROR, "the ledger stopped");
}

#[tokio::test]
async fn passes_are_there_after_a_restart() {
    let (house, site, client) = shop().await;
    let sold = buy(&site, &client, PACK_PRICE).await;
    assert_eq!(left(&call(&site, "/quote", &sold.pass).await), Some(1));
    let store = Arc::clone(&house.store);
    drop((house, site));
    let (_house, site, _) = of_house(House::over(store).await);
    assert_eq!(left(&call(&site, "/quote", &sold.pass).await), Some(0));
    assert_refused(&call(&site, "/quote", &sold.pass).await, Reason::CallPackSpent);
}

/// The answer as it was sent, pass and all, though the pass is nowhere in what is kept.
#[tokio::test]
async fn a_lost_purchase_is_had_again_by_who_made_it() {
    let (house, site, client) = shop().await;
    let pack = offered(&site, "/quote").await;
    let payment = buys(&pack, &client.pays(PACK_PRICE), Some(ID));
    site.answers(200, &[("turnpike-pass-seal", "forged"), ("x-y", "z")]);
    let first = site.get("/quote", Some(payment.clone())).await.unwrap();
    let pass = sold(&first).pass;
    assert!(!first.headers.contains_key("turnpike-pass-seal"));
    for _ in 0..2 {
        let again = site.get("/quote", Some(payment.clone())).await.unwrap();
        assert_eq!((&again.verdict, &again.body), (&Verdict::Replayed, &first.body));
        let mut headers = again.headers.clone();
        headers.remove("turnpike-replay");
        assert_eq!(headers, first.headers);
        assert_eq!(sold(&again).pass, pass);
    }
    let kept = house.store.answers.lock().values().next().unwrap().answer.clone();
    let head = String::from_utf8(kept.head.to_vec()).unwrap();
    let response = head.lines().find_map(|line| line.strip_prefix("payment-response: ")).unwrap();
    let response = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, response).unwrap();
    assert!(!String::from_utf8(response).unwrap().contains(&pass) && !head.contains(&pass));
    assert_eq!((site.calls(), charged(&house, &client), house.ledger.pass_count()), (1, PACK_PRICE.into(), 1));
    assert_eq!(left(&call(&site, "/quote", &pass).await), Some(1));
    // The very same voucher, which is to be seen on chain, is not enough.
    let other = buys(&pack, &client.pays(PACK_PRICE), Some("another_id_of_mine"));
    let answer = site.get("/quote", Some(other)).await.unwrap();
    assert_eq!(answer.error(), Reason::BatchCumulativeAmountMismatch.as_str());
}

#[tokio::test]
async fn where_the_answer_cannot_be_kept_a_receipt_tells_the_pass() {
    static LONG: [u8; 70_000] = [7; 70_000];
    let events = vec![("content-type", "text/event-stream")];
    for (headers, body) in [(events, &b"data: 1\n\n"[..]), (vec![], &LONG[..])] {
        let (house, site, client) = shop().await;
        site.behave(Behaviour::Streams(headers, vec![Piece::Bytes(body)]));
        let payment = buys(&offered(&site, "/quote").await, &client.pays(PACK_PRICE), Some(ID));
        let first = site.get("/quote", Some(payment.clone())).await.unwrap();
        assert!(first.body == body);
        let again = site.get("/quote", Some(payment)).await.unwrap();
        assert_eq!((&again.verdict, again.status), (&Verdict::Replayed, StatusCode::OK));
        assert!(again.json()["message"].as_str().unwrap().contains("PAYMENT-RESPONSE"));
        assert_eq!(sold(&again).pass, sold(&first).pass);
        assert_eq!((site.calls(), charged(&house, &client)), (1, PACK_PRICE.into()));
    }
}

#[tokio::test]
async fn a_buyer_that_leaves_while_it_is_charged_finds_its_pass() {
    let (house, site, client) = shop().await;
    let payment = buys(&offered(&site, "/quote").await, &client.pays(PACK_PRICE), Some(ID));
    let disk = house.store.disk.lock().await;
    let writes = house.store.writes.load(Ordering::SeqCst);
    let gone = {
        let (site, payment) = (site.clone(), payment.clone());
        tokio::spawn(async move { site.get("/quote", Some(payment)).await.unwrap() })
    };
    while house.store.writes.load(Ordering::SeqCst) == writes {
        tokio::task::yield_now().await;
    }
    gone.abort();
    assert!(gone.await.unwrap_err().is_cancelled());
    drop(disk);
    let again = site.get("/quote", Some(payment)).await.unwrap();
    assert_eq!((&again.verdict, charged(&house, &client)), (&Verdict::Replayed, PACK_PRICE.into()));
    assert_eq!(left(&call(&site, "/quote", &sold(&again).pass).await), Some(1));
}

#[tokio::test]
async fn a_full_house_sells_no_pack_and_still_sells_calls() {
    let (house, site, client) = shop().await;
    let rooms: Vec<_> = (0..100).map(|_| house.ledger.pass_room().unwrap()).collect();
    let payment = buys(&offered(&site, "/quote").await, &client.pays(PACK_PRICE), None);
    let answer = site.get("/quote", Some(payment)).await.unwrap();
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.json()["error"], Reason::CallPackUnavailable.as_str());
    assert_eq!((site.calls(), charged(&house, &client)), (0, Amount::ZERO));
    assert_eq!(site.quote(&client.pays(PRICE)).await.status, StatusCode::OK);
    drop(rooms);
    buy(&site, &client, PRICE + PACK_PRICE).await;
}

fn under(policy: Policy) -> Arc<Route> {
    Arc::new(Route { policy: Some(Arc::new(policy)), ..(*with_pack(&fixed())).clone() })
}

fn only(payers: &[Account]) -> Option<Accounts> {
    Some(payers.iter().copied().collect())
}

#[tokio::test]
async fn policy_holds_for_the_purchase_and_for_each_call() {
    let payer = Account::Svm(Client::new(7).terms.payer);
    let daily = |max: u64| Some(DailyRule { scope: "".into(), max: max.into(), zone: Default::default() });
    for (policy, status, reason) in [
        (
            Policy { per_request_cap: Some((PACK_PRICE - 1).into()), ..Policy::default() },
            403,
            Reason::PolicyPerRequestCap,
        ),
        (Policy { daily_limit: daily(PACK_PRICE - 1), ..Policy::default() }, 429, Reason::PolicyDailyLimit),
        (Policy { blocklist: only(&[payer]), ..Policy::default() }, 403, Reason::PolicyBlocklist),
        (Policy { allowlist: only(&[]), ..Policy::default() }, 403, Reason::PolicyAllowlist),
    ] {
        let (house, _, client) = shop().await;
        let site = Site::of_routes(&house.gate, vec![("/quote", under(policy))]);
        let payment = buys(&offered(&site, "/quote").await, &client.pays(PACK_PRICE), None);
        let answer = site.get("/quote", Some(payment)).await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.json()["error"].as_str()), (status, Some(reason.as_str())));
        assert_eq!((site.calls(), charged(&house, &client), house.ledger.pass_count()), (0, Amount::ZERO, 0));
    }

    let (house, site, client) = shop().await;
    let sold = buy(&site, &client, PACK_PRICE).await;
    let on = |policy| Site::of_routes(&house.gate, vec![("/quote", under(policy))]);
    let site = on(Policy { blocklist: only(&[payer]), ..Policy::default() });
    let answer = call(&site, "/quote", &sold.pass).await;
    assert_eq!((answer.status, answer.json()["error"].as_str()), (StatusCode::FORBIDDEN, Some("policy_blocklist")));
    // What was spent does not matter to a call that costs nothing.
    let rate = Rate::new(1, Duration::from_secs(60)).unwrap();
    let rate_limit = Some(RateLimit { scope: "".into(), rate });
    let spent_up =
        Policy { daily_limit: daily(1), per_request_cap: Some(1_u64.into()), rate_limit, ..Policy::default() };
    let site = on(spent_up);
    assert_eq!(left(&call(&site, "/quote", &sold.pass).await), Some(1));
    let answer = call(&site, "/quote", &sold.pass).await;
    assert_eq!(answer.json()["error"], Reason::PolicyRateLimit.as_str());
    assert_eq!(house.ledger.pass(&id_of(&sold.pass)).unwrap().used, 2, "a call that is refused is given back");
}

#[tokio::test]
async fn what_is_sold_and_called_is_counted_in_metrics() {
    let telemetry = Telemetry::new().unwrap();
    let options = Options { telemetry: Some(Arc::clone(&telemetry)), ..Options::default() };
    let (_house, site, client) = of_house(House::with(Arc::new(MemoryStore::default()), options).await);
    let sold = buy(&site, &client, PACK_PRICE).await;
    for _ in 0..3 {
        call(&site, "/quote", &sold.pass).await;
    }
    assert_eq!(telemetry.passes_sold.with_label_values(&["/quote"]).get(), 1);
    assert_eq!(telemetry.pass_calls.with_label_values(&["/quote"]).get(), 2);
}
