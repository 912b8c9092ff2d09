//! Sums of a payer: what it spends in a day, and what it has at risk.

use tokio::sync::Semaphore;
use turnpike::clock::Day;
use turnpike::ledger::channel::{OnChain, Terms};

use super::*;
use crate::doubles::{CEILING, seller};
use crate::upstream::Behaviour;

/// Another channel of the same payer.
fn channel(seed: u8, salt: u64) -> Client {
    let client = Client::new(seed);
    let payer = address(seed);
    Client { terms: Terms::derive(seller(), payer, payer, salt, 341_000_000), ..client }
}

fn spent(shop: &Shop, client: &Client) -> (u64, u64) {
    let (spent, held) = shop.house.ledger.payers().spent(&payer(client), "");
    (spent.to_u64().unwrap(), held.to_u64().unwrap())
}

#[tokio::test]
async fn a_daily_limit_is_met_exactly_and_ends_at_midnight() {
    let client = Client::new(7);
    let store = Arc::<MemoryStore>::default();
    let shop = Shop::with(daily(3 * PRICE), PolicyOptions::default(), Arc::clone(&store)).await;
    shop.house.facilitator.open(&client.terms, 50_000);
    shop.site.answers(500, &[]);
    assert_eq!(shop.pay("/quote", &client.pays(PRICE)).await.status.as_u16(), 500);
    assert_eq!(spent(&shop, &client), (0, 0), "a failing upstream spends nothing");
    shop.site.answers(200, &[]);
    for n in 1..=3 {
        assert_eq!(shop.pay("/quote", &client.pays(n * PRICE)).await.status, StatusCode::OK);
    }
    let refused = shop.pay("/quote", &client.pays(4 * PRICE)).await;
    assert_refused(&refused, 429, Rule::DailyLimit);
    // The tests begin at 8:00 in the morning.
    assert_eq!((START.seconds().rem_euclid(86_400), retry_after(&refused)), (28_800, Some(57_600)));
    assert_eq!(spent(&shop, &client), (3 * PRICE, 0));

    // A restart forgets nothing, and midnight everything.
    drop(shop);
    let shop = Shop::with(daily(3 * PRICE), PolicyOptions::default(), store).await;
    shop.house.facilitator.open(&client.terms, 50_000);
    assert_eq!(spent(&shop, &client), (3 * PRICE, 0));
    assert_refused(&shop.pay("/quote", &client.pays(4 * PRICE)).await, 429, Rule::DailyLimit);
    shop.house.clock.advance(Duration::from_secs(57_600) - Duration::from_millis(1));
    assert_refused(&shop.pay("/quote", &client.pays(4 * PRICE)).await, 429, Rule::DailyLimit);
    shop.house.clock.advance(Duration::from_millis(1));
    assert_eq!(shop.pay("/quote", &client.pays(4 * PRICE)).await.status, StatusCode::OK);
    assert_eq!(spent(&shop, &client), (PRICE, 0));
    let today = Day(i32::try_from(START.seconds() / 86_400 + 1).unwrap());
    let stored = shop.house.store.spent.lock().iter().map(|record| (record.day, record.amount)).collect::<Vec<_>>();
    assert_eq!(stored, [(today, PRICE.into())]);
}

#[tokio::test]
async fn an_answer_that_is_had_again_is_counted_once() {
    let client = Client::new(7);
    let shop = Shop::new(daily(2 * PRICE)).await;
    shop.house.facilitator.open(&client.terms, 50_000);
    let offer = shop.site.offer("/quote").await;
    let payment = identified(&offer, &client.pays(PRICE), &json!("pay_7d5d747be160e280504c099d984bcfe0"));
    for _ in 0..4 {
        assert_eq!(shop.site.get("/quote", Some(payment.clone())).await.unwrap().status, StatusCode::OK);
    }
    assert_eq!((shop.site.calls(), spent(&shop, &client)), (1, (PRICE, 0)));
    assert_eq!(shop.pay("/quote", &client.pays(2 * PRICE)).await.status, StatusCode::OK);
}

/// Many requests of one payer at once, on channels of its own for each, while the upstream takes its time: as many are
/// let in as the limit allows, whoever they are, and those that fail make room.
#[tokio::test]
async fn requests_on_many_channels_at_once_do_not_pass_a_limit() {
    let shop = Arc::new(Shop::new(daily(5 * PRICE)).await);
    let channels: Vec<_> = (0..12).map(|salt| Arc::new(channel(7, salt))).collect();
    for client in &channels {
        shop.house.facilitator.open(&client.terms, 50_000);
    }
    let let_go = Arc::new(Semaphore::new(0));
    shop.site.behave(Behaviour::Waits(Arc::clone(&let_go)));
    let send = |client: &Arc<Client>| {
        let (shop, client) = (Arc::clone(&shop), Arc::clone(client));
        tokio::spawn(async move { shop.pay("/quote", &client.pays(PRICE)).await.status.as_u16() })
    };
    let requests: Vec<_> = channels.iter().map(send).collect();
    while shop.site.calls() < 5 || requests.iter().filter(|request| request.is_finished()).count() < 7 {
        tokio::task::yield_now().await;
    }
    assert_eq!(spent(&shop, &channels[0]), (0, 5 * PRICE));
    // One of them goes away, and its room is another's.
    let gone = requests.iter().find(|request| !request.is_finished()).unwrap();
    gone.abort();
    while spent(&shop, &channels[0]).1 > 4 * PRICE {
        tokio::task::yield_now().await;
    }
    let late = Arc::new(channel(7, 99));
    shop.house.facilitator.open(&late.terms, 50_000);
    let late = send(&late);
    let_go.add_permits(100);
    let mut statuses = vec![late.await.unwrap()];
    for request in requests {
        statuses.extend(request.await);
    }
    statuses.sort_unstable();
    assert_eq!(statuses, [vec![200; 5], vec![429; 7]].concat());
    assert_eq!(spent(&shop, &channels[0]), (5 * PRICE, 0));
}

#[tokio::test]
async fn a_metered_request_holds_its_most_and_counts_its_charge() {
    let shop = Shop::new(daily(CEILING + 4_200)).await;
    shop.site.answers(200, &[("x-cost", "0.0042")]);
    let client = Client::metered(7);
    assert_eq!(shop.pay("/metered", &client.opens()).await.status, StatusCode::OK);
    assert_eq!(spent(&shop, &client), (4_200, 0));
    let stored = |shop: &Shop| shop.house.store.spent.lock().iter().map(|record| record.amount.get()).sum::<u128>();
    assert_eq!(stored(&shop), 4_200);

    // Its close does not go through, so nothing is charged, and nothing stays counted.
    let again = Client { terms: Terms { salt: 43, ..client.terms.clone() }, ..Client::metered(7) };
    let terms = Terms::derive(seller(), address(7), seller().receiver_authorizer, 43, 341_000_000);
    let again = Client { terms, ..again };
    shop.house.facilitator.refuse("close_metered", Reason::UptoSettlementSimulation);
    let answer = shop.pay("/metered", &again.opens()).await;
    assert_eq!(answer.status, StatusCode::PAYMENT_REQUIRED);
    assert_eq!((spent(&shop, &client), stored(&shop)), ((4_200, 0), 4_200));

    shop.site.answers(500, &[]);
    let third =
        Client { terms: Terms::derive(seller(), address(7), seller().receiver_authorizer, 44, 341_000_000), ..again };
    assert_eq!(shop.pay("/metered", &third.opens()).await.status.as_u16(), 500);
    assert_eq!((spent(&shop, &client), stored(&shop)), ((4_200, 0), 4_200));

    // One more than fits: no channel is opened.
    shop.site.answers(200, &[("x-cost", "0.0042")]);
    let fourth =
        Client { terms: Terms::derive(seller(), address(7), seller().receiver_authorizer, 45, 341_000_000), ..third };
    assert_eq!(shop.pay("/metered", &fourth.opens()).await.status, StatusCode::OK);
    let fifth =
        Client { terms: Terms::derive(seller(), address(7), seller().receiver_authorizer, 46, 341_000_000), ..fourth };
    let opened = shop.house.facilitator.count("settle_deposit");
    assert_refused(&shop.pay("/metered", &fifth.opens()).await, 429, Rule::DailyLimit);
    assert_eq!(shop.house.facilitator.count("settle_deposit"), opened);
}

#[tokio::test]
async fn what_a_payer_owes_is_limited_over_all_its_channels_until_it_is_claimed() {
    let policy = Policy { payer_exposure_max: Some((2 * PRICE).into()), ..Policy::default() };
    let shop = Shop::new(policy).await;
    let channels: Vec<_> = (0..3).map(|salt| channel(7, salt)).collect();
    for client in &channels {
        shop.house.facilitator.open(&client.terms, 50_000);
    }
    for client in &channels[..2] {
        assert_eq!(shop.pay("/quote", &client.pays(PRICE)).await.status, StatusCode::OK);
    }
    let refused = shop.pay("/quote", &channels[2].pays(PRICE)).await;
    assert_refused(&refused, 503, Rule::PayerExposure);
    assert_eq!(retry_after(&refused), Some(5));
    let stranger = Client::new(8);
    shop.house.facilitator.open(&stranger.terms, 50_000);
    assert_eq!(shop.pay("/quote", &stranger.pays(PRICE)).await.status, StatusCode::OK);
    let record = shop.house.ledger.channel(&channels[0].terms.id).unwrap();
    let claimed = OnChain { claimed: PRICE.into(), ..record.on_chain };
    shop.house.ledger.observe(&channels[0].terms.id, claimed).await.unwrap();
    assert_eq!(shop.pay("/quote", &channels[2].pays(PRICE)).await.status, StatusCode::OK);
    assert_refused(&shop.pay("/quote", &channels[0].pays(2 * PRICE)).await, 503, Rule::PayerExposure);
}
