//! The same on EVM networks.

use turnpike::gate::evm::Served;
use turnpike::gate::route::EvmScheme::{BatchSettlement, Exact, Upto};
use turnpike::scheme::evm::TransferMethod;

use super::*;
use crate::doubles::CEILING;
use crate::evm::doubles::{self, EvmHouse, Goes, refused, settler, unknown};
use crate::upstream::BODY;

struct EvmShop {
    house: EvmHouse,
    told: Arc<Told>,
    site: Site,
}

impl EvmShop {
    async fn new(policy: Policy) -> Self {
        let told = Arc::<Told>::default();
        let options = PolicyOptions { observer: Some(Arc::clone(&told) as _), ..PolicyOptions::default() };
        let options = Options { policy: options, ..Options::default() };
        let served = Served { upto_facilitator: Some(settler()), exact_v1: true };
        let house = EvmHouse::with(options, served).await;
        let method = TransferMethod::Eip3009;
        let routes = vec![
            ("/batch", doubles::fixed("/batch", BatchSettlement, method)),
            ("/batch/metered", doubles::metered("/batch/metered", BatchSettlement, None)),
            ("/exact", doubles::fixed("/exact", Exact, method)),
            ("/upto", doubles::metered("/upto", Upto, None)),
        ];
        let routes = routes.into_iter().map(|(path, route)| (path, under(&route, policy.clone()))).collect();
        let site = Site::of_routes(&house.gate, routes);
        Self { house, told, site }
    }

    async fn pay(&self, path: &str, payload: &Value) -> Answer {
        self.site.pay(path, payload).await.unwrap()
    }

    fn spent(&self, client: &doubles::Client) -> (u64, u64) {
        let payer = Account::Evm(client.wallet.address());
        let (spent, held) = self.house.ledger.payers().spent(&payer, "");
        (spent.to_u64().unwrap(), held.to_u64().unwrap())
    }
}

#[tokio::test]
async fn one_limit_holds_over_all_schemes() {
    let shop = EvmShop::new(daily(CEILING + 6_200)).await;
    let client = doubles::Client::new(7);
    shop.site.answers(200, &[("x-cost", "0.0042")]);
    let deposit = shop.pay("/batch", &client.deposits(50_000, PRICE, 99)).await;
    assert_eq!((deposit.status, &*deposit.body, shop.spent(&client)), (StatusCode::OK, BODY, (1_000, 0)));
    let exact = shop.pay("/exact", &client.exact(PRICE, 1)).await;
    assert_eq!((exact.status, shop.spent(&client)), (StatusCode::OK, (2_000, 0)));
    let metered = shop.pay("/batch/metered", &client.pays(PRICE + CEILING)).await;
    assert_eq!((metered.status, shop.spent(&client)), (StatusCode::OK, (6_200, 0)));
    let upto = shop.pay("/upto", &client.upto(CEILING, 1)).await;
    assert_eq!((upto.status, shop.spent(&client)), (StatusCode::OK, (10_400, 0)));
    let settled = shop.house.facilitator.count("settle");
    assert_refused(&shop.pay("/upto", &client.upto(CEILING, 2)).await, 429, Rule::DailyLimit);
    assert_refused(&shop.pay("/batch/metered", &client.pays(5_200 + CEILING)).await, 429, Rule::DailyLimit);
    assert_eq!(shop.house.facilitator.count("settle"), settled);
    assert_eq!(shop.pay("/exact", &client.exact(PRICE, 2)).await.status, StatusCode::OK);
    let stranger = doubles::Client::new(8);
    assert_eq!(shop.pay("/upto", &stranger.upto(CEILING, 9)).await.status, StatusCode::OK);
}

#[tokio::test]
async fn what_is_known_not_to_have_been_charged_does_not_count() {
    let shop = EvmShop::new(daily(10 * CEILING)).await;
    let client = doubles::Client::new(7);
    shop.house.facilitator.goes("settle", Goes::Before(refused("insufficient_funds")));
    assert_eq!(shop.pay("/exact", &client.exact(PRICE, 1)).await.status, StatusCode::PAYMENT_REQUIRED);
    assert_eq!(shop.spent(&client), (0, 0));
    shop.site.answers(500, &[]);
    assert_eq!(shop.pay("/exact", &client.exact(PRICE, 1)).await.status.as_u16(), 500);
    assert_eq!(shop.spent(&client), (0, 0));
    shop.site.answers(200, &[("x-cost", "0")]);
    assert_eq!(shop.pay("/upto", &client.upto(CEILING, 1)).await.status, StatusCode::OK);
    assert_eq!(shop.spent(&client), (0, 0));
    // Of unknown fate to the end: the money may have moved.
    (0..6).for_each(|_| shop.house.facilitator.goes("settle", Goes::Before(unknown(None))));
    assert_eq!(shop.pay("/exact", &client.exact(PRICE, 3)).await.status.as_u16(), 500);
    assert_eq!(shop.spent(&client), (1_000, 0));
}

#[tokio::test]
async fn nobody_uses_up_the_limits_of_whom_they_only_name() {
    let shop = EvmShop::new(every(1, Duration::from_secs(100))).await;
    let client = doubles::Client::new(7);
    // Nothing is on chain of the channel, so its signature proves nothing of its payer.
    for _ in 0..3 {
        let answer = shop.pay("/batch", &client.pays(PRICE)).await;
        assert_eq!(answer.error(), Reason::EvmBatchChannelNotFound.as_str());
    }
    shop.house.facilitator.goes("verify", Goes::Before(refused("invalid_exact_evm_payload_signature")));
    assert_eq!(shop.pay("/exact", &client.exact(PRICE, 1)).await.status, StatusCode::PAYMENT_REQUIRED);
    assert_eq!(shop.told.rules(), []);
    assert_eq!(shop.pay("/batch", &client.deposits(50_000, PRICE, 99)).await.status, StatusCode::OK);
    // A voucher that was charged is to be seen on chain.
    let stale = shop.pay("/batch", &client.pays(PRICE)).await;
    assert_eq!(stale.error(), Reason::EvmBatchCumulativeAmountMismatch.as_str());
    assert_eq!(shop.told.rules(), []);
    assert_refused(&shop.pay("/batch", &client.pays(2 * PRICE)).await, 429, Rule::RateLimit);
    assert_refused(&shop.pay("/exact", &client.exact(PRICE, 1)).await, 429, Rule::RateLimit);
    let refund = shop.pay("/batch", &client.refund(PRICE, None)).await;
    assert_eq!(refund.verdict, Verdict::Refunded);
}

#[tokio::test]
async fn what_is_paid_on_chain_at_once_is_never_at_risk() {
    let shop = EvmShop::new(Policy { payer_exposure_max: Some(CEILING.into()), ..Policy::default() }).await;
    let client = doubles::Client::new(7);
    for nonce in 1..=12 {
        assert_eq!(shop.pay("/exact", &client.exact(PRICE, nonce)).await.status, StatusCode::OK);
    }
    assert_eq!(shop.pay("/batch/metered", &client.deposits(50_000, CEILING, 99)).await.status, StatusCode::OK);
    assert_refused(&shop.pay("/batch", &client.pays(CEILING + PRICE)).await, 503, Rule::PayerExposure);
}
