//! Policies through the layer: what is refused, when nothing has happened yet, and what it costs whom.

mod evm;
mod sums;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http::{HeaderName, StatusCode};
use parking_lot::Mutex;
use serde_json::{Value, json};
use turnpike::amount::Amount;
use turnpike::gate::policy::calendar::{Days, Window, Zone};
use turnpike::gate::policy::glob::Glob;
use turnpike::gate::policy::patterns::BlockPattern;
use turnpike::gate::policy::rate::Rate;
use turnpike::gate::policy::{Accounts, DailyRule, Decision, Mode, Observer, Policy, RateLimit, Rule};
use turnpike::gate::route::Route;
use turnpike::gate::{Gate, Options, PolicyOptions};
use turnpike::layer::Verdict;
use turnpike::screening::{Screen, Verdict as Screened};
use turnpike::telemetry::Telemetry;
use turnpike::x402::{Account, Reason};

use crate::doubles::{Client, House, MemoryStore, PRICE, START, address, fixed, header, identified, metered};
use crate::upstream::{Answer, Site};

/// What was told of, by rule, mode and payer.
#[derive(Default)]
struct Told(Mutex<Vec<(Rule, Mode, Option<Account>)>>);

impl Observer for Told {
    fn on_decision(&self, decision: &Decision<'_>) {
        assert!(!decision.detail.is_empty() && decision.route.starts_with('/'));
        assert_eq!(decision.payer.is_some(), decision.amount.is_some());
        self.0.lock().push((decision.rule, decision.mode, decision.payer));
    }
}

impl Told {
    fn rules(&self) -> Vec<Rule> {
        self.0.lock().drain(..).map(|(rule, _, _)| rule).collect()
    }
}

/// A compliance list that says what it is told to, and whom it was asked about.
struct FakeScreen(Mutex<Screened>, Mutex<Vec<Account>>);

#[async_trait]
impl Screen for FakeScreen {
    async fn screen(&self, payer: &Account) -> Screened {
        self.1.lock().push(*payer);
        *self.0.lock()
    }
}

fn under(route: &Route, policy: Policy) -> Arc<Route> {
    Arc::new(Route { policy: Some(Arc::new(policy)), ..route.clone() })
}

fn list(payers: &[Account]) -> Option<Accounts> {
    Some(payers.iter().copied().collect())
}

fn daily(max: u64) -> Policy {
    let rule = DailyRule { scope: "".into(), max: max.into(), zone: Zone::default() };
    Policy { daily_limit: Some(rule), ..Policy::default() }
}

fn every(count: u32, period: Duration) -> Policy {
    let rate = Rate::new(count, period).unwrap();
    Policy { rate_limit: Some(RateLimit { scope: "".into(), rate }), ..Policy::default() }
}

fn blocks(pattern: BlockPattern) -> Policy {
    Policy { block_patterns: Arc::from([pattern.prepared()]), ..Policy::default() }
}

/// Never open at the time that the tests begin, which is a Friday.
fn closed() -> Policy {
    let window = Window { days: Days::span(6, 6), from: 0, to: 60, zone: Zone::default() };
    Policy { time_window: Arc::from([window]), ..Policy::default() }
}

/// A quote's and a metered route under a policy, and the same without.
fn sites(gate: &Arc<Gate>, policy: &Policy) -> (Site, Site) {
    let routes = |policy: &dyn Fn(&Route) -> Arc<Route>| {
        vec![("/quote", policy(&fixed())), ("/metered", policy(&metered())), ("/plain", fixed())]
    };
    let under_policy = Site::of_routes(gate, routes(&|route| under(route, policy.clone())));
    (under_policy, Site::of_routes(gate, routes(&|route| Arc::new(route.clone()))))
}

struct Shop {
    house: House,
    told: Arc<Told>,
    telemetry: Arc<Telemetry>,
    site: Site,
    plain: Site,
}

impl Shop {
    async fn new(policy: Policy) -> Self {
        Self::with(policy, PolicyOptions::default(), Arc::new(MemoryStore::default())).await
    }

    async fn with(policy: Policy, options: PolicyOptions, store: Arc<MemoryStore>) -> Self {
        let (told, telemetry) = (Arc::<Told>::default(), Telemetry::new().unwrap());
        let options = PolicyOptions { observer: Some(Arc::clone(&told) as _), ..options };
        let options = Options { policy: options, telemetry: Some(Arc::clone(&telemetry)), ..Options::default() };
        let house = House::with(store, options).await;
        let (site, plain) = sites(&house.gate, &policy);
        Self { house, told, telemetry, site, plain }
    }

    /// Pays by an offer that was had elsewhere.
    async fn pay(&self, path: &str, payload: &Value) -> Answer {
        let offer = self.plain.offer(path).await;
        self.site.get(path, Some(header(&offer, payload))).await.unwrap()
    }

    fn counted(&self, rule: Rule, mode: Mode) -> u64 {
        self.telemetry.policy_refusals.with_label_values(&[rule.as_str(), mode.as_str()]).get()
    }

    fn calls(&self) -> Vec<String> {
        self.house.facilitator.calls.lock().clone()
    }
}

fn payer(client: &Client) -> Account {
    Account::Svm(client.terms.payer)
}

#[track_caller]
fn assert_refused(answer: &Answer, status: u16, rule: Rule) {
    assert_eq!((answer.status.as_u16(), &answer.verdict), (status, &Verdict::Refused(rule.reason())));
    assert_eq!(answer.json()["error"], format!("policy_{rule}"));
    assert!(answer.required().is_none() && answer.settlement().is_none(), "it invites to no payment");
    assert_eq!(answer.headers["cache-control"], "no-store");
}

fn retry_after(answer: &Answer) -> Option<u64> {
    answer.headers.get("retry-after").map(|value| value.to_str().unwrap().parse().unwrap())
}

#[tokio::test]
async fn what_the_request_is_refused_for_is_refused_before_anything_is_verified() {
    let header_pattern = |glob: &str| Some((HeaderName::from_static("host"), Glob::parse(glob).unwrap()));
    for (policy, rule) in [
        (blocks(BlockPattern { path: Glob::parse("/*quote").ok(), ..BlockPattern::default() }), Rule::BlockPatterns),
        (blocks(BlockPattern { host: Glob::parse("API.*").ok(), ..BlockPattern::default() }), Rule::BlockPatterns),
        (blocks(BlockPattern { header: header_pattern("*example*"), ..BlockPattern::default() }), Rule::BlockPatterns),
        (closed(), Rule::TimeWindow),
    ] {
        let shop = Shop::new(policy).await;
        let client = Client::new(7);
        shop.house.facilitator.open(&client.terms, 5_000);
        let wait = (rule == Rule::TimeWindow).then_some(144_000);
        for payload in [None, Some(client.pays(PRICE)), Some(json!({ "type": "voucher" }))] {
            let answer = match payload {
                Some(payload) => shop.pay("/quote", &payload).await,
                None => shop.site.get("/quote", None).await.unwrap(),
            };
            assert_refused(&answer, 403, rule);
            assert_eq!(retry_after(&answer), wait);
        }
        assert_eq!((shop.calls(), shop.site.calls(), shop.house.ledger.counts()), (vec![], 0, (0, 0)));
        assert_eq!(shop.told.0.lock().drain(..).collect::<Vec<_>>(), [(rule, Mode::Enforced, None); 3]);
        assert_eq!(shop.counted(rule, Mode::Enforced), 3);
        let other = shop.plain.pay("/plain", &client.pays(PRICE)).await.unwrap();
        assert_eq!(other.status, StatusCode::OK, "a route without a policy has none");
    }
}

#[tokio::test]
async fn who_pays_is_judged_once_it_is_proved_and_before_anything_is_reserved_or_sent() {
    let client = Client::new(7);
    let someone = Account::Svm(address(9));
    for (policy, rule) in [
        (Policy { blocklist: list(&[payer(&client)]), ..Policy::default() }, Rule::Blocklist),
        (Policy { allowlist: list(&[someone]), ..Policy::default() }, Rule::Allowlist),
        (Policy { per_request_cap: Some((PRICE - 1).into()), ..Policy::default() }, Rule::PerRequestCap),
        (
            blocks(BlockPattern {
                payer: Glob::parse(&client.terms.payer.to_string()).ok(),
                ..BlockPattern::default()
            }),
            Rule::BlockPatterns,
        ),
    ] {
        let shop = Shop::new(policy).await;
        let answer = shop.pay("/quote", &client.deposits(20_000, PRICE)).await;
        assert_refused(&answer, 403, rule);
        let opener = Client::metered(7);
        let answer = shop.pay("/metered", &opener.opens()).await;
        assert_refused(&answer, 403, rule);
        assert_eq!(shop.calls(), ["read_channel", "accept_deposit", "accept_deposit"], "no deposit is settled");
        shop.house.facilitator.open(&client.terms, 5_000);
        let answer = shop.pay("/quote", &client.pays(PRICE)).await;
        assert_refused(&answer, 403, rule);
        assert_eq!(shop.told.0.lock().drain(..).collect::<Vec<_>>(), [(rule, Mode::Enforced, Some(payer(&client))); 3]);
        assert_eq!((shop.site.calls(), shop.house.ledger.counts().1), (0, 0));
        // Whoever does not prove to be somebody is refused for that, and nothing is told.
        let mut forged = client.pays(PRICE);
        forged["voucher"]["signature"] = Client::new(8).pays(PRICE)["voucher"]["signature"].clone();
        let answer = shop.pay("/quote", &forged).await;
        assert_eq!(answer.error(), Reason::BatchVoucherSignature.as_str());
        assert_eq!(shop.told.rules(), []);
    }
}

#[tokio::test]
async fn refunds_and_lost_answers_are_never_refused() {
    let client = Client::new(7);
    let shop = Shop::new(Policy { blocklist: list(&[payer(&client)]), ..closed() }).await;
    shop.house.facilitator.open(&client.terms, 5_000);
    // Paid for on a route that has no policy, by the same gate.
    let offer = shop.plain.offer("/quote").await;
    let payment = identified(&offer, &client.pays(PRICE), &json!("pay_7d5d747be160e280504c099d984bcfe0"));
    let first = shop.plain.get("/quote", Some(payment.clone())).await.unwrap();
    assert_eq!(first.status, StatusCode::OK);
    let again = shop.site.get("/quote", Some(payment)).await.unwrap();
    assert_eq!((again.status, again.verdict), (StatusCode::OK, Verdict::Replayed));
    let refund = shop.pay("/quote", &client.refund(PRICE)).await;
    assert_eq!((refund.status, refund.verdict), (StatusCode::OK, Verdict::Refunded));
    assert_eq!(shop.told.rules(), []);
    // What only says that it is one is not one.
    let mut opener = Client::metered(8).opens();
    opener["type"] = json!("refund");
    assert_refused(&shop.pay("/metered", &opener).await, 403, Rule::TimeWindow);
}

#[tokio::test]
async fn a_rate_is_used_up_by_nobody_but_its_payer() {
    let (client, stranger) = (Client::new(7), Client::new(8));
    let shop = Shop::new(every(2, Duration::from_secs(10))).await;
    for client in [&client, &stranger] {
        shop.house.facilitator.open(&client.terms, 50_000);
    }
    assert_eq!(shop.pay("/quote", &client.pays(PRICE)).await.status, StatusCode::OK);
    // The first voucher is to be seen on chain by now; the others nobody has signed.
    let mut forged = client.pays(2 * PRICE);
    forged["voucher"]["signature"] = stranger.pays(2 * PRICE)["voucher"]["signature"].clone();
    let mut nobody = stranger.pays(PRICE);
    nobody["channelConfig"]["payer"] = json!(client.terms.payer);
    for _ in 0..3 {
        let stale = shop.pay("/quote", &client.pays(PRICE)).await;
        assert_eq!(stale.error(), Reason::BatchCumulativeAmountMismatch.as_str());
        assert_eq!(shop.pay("/quote", &forged).await.error(), Reason::BatchVoucherSignature.as_str());
        assert_eq!(shop.pay("/quote", &nobody).await.status, StatusCode::PAYMENT_REQUIRED);
    }
    assert_eq!(shop.pay("/quote", &client.pays(2 * PRICE)).await.status, StatusCode::OK);
    let refused = shop.pay("/quote", &client.pays(3 * PRICE)).await;
    assert_refused(&refused, 429, Rule::RateLimit);
    assert_eq!(retry_after(&refused), Some(5));
    assert_eq!(shop.pay("/quote", &stranger.pays(PRICE)).await.status, StatusCode::OK);
    shop.house.clock.advance(Duration::from_millis(4_999));
    assert_refused(&shop.pay("/quote", &client.pays(3 * PRICE)).await, 429, Rule::RateLimit);
    shop.house.clock.advance(Duration::from_millis(1));
    assert_eq!(shop.pay("/quote", &client.pays(3 * PRICE)).await.status, StatusCode::OK);
}

#[tokio::test]
async fn payers_are_screened_before_they_are_served() {
    let client = Client::new(7);
    let screen = Arc::new(FakeScreen(Mutex::new(Screened::Listed), Mutex::default()));
    let options = PolicyOptions { screen: Some(Arc::clone(&screen) as _), ..PolicyOptions::default() };
    let screened = Policy { screened: true, ..every(1, Duration::from_secs(1000)) };
    let shop = Shop::with(screened, options, Arc::default()).await;
    let deposit = client.deposits(20_000, PRICE);
    assert_refused(&shop.pay("/quote", &deposit).await, 403, Rule::Screening);
    *screen.0.lock() = Screened::Unknown;
    let unknown = shop.pay("/quote", &deposit).await;
    assert_refused(&unknown, 503, Rule::ScreeningUnavailable);
    assert_eq!(retry_after(&unknown), Some(5));
    assert_eq!(shop.house.facilitator.count("settle_deposit"), 0);
    *screen.0.lock() = Screened::Clear;
    assert_eq!(shop.pay("/quote", &deposit).await.status, StatusCode::OK, "what was refused took no token");
    assert_eq!(*screen.1.lock(), [payer(&client); 3]);
    *screen.0.lock() = Screened::Listed;
    let plain = shop.plain.quote(&client.pays(2 * PRICE)).await;
    assert_eq!((plain.status, screen.1.lock().len()), (StatusCode::OK, 3), "not asked where no policy says so");
    let refund = shop.pay("/quote", &client.refund(2 * PRICE)).await;
    assert_eq!((refund.verdict, screen.1.lock().len()), (Verdict::Refunded, 3));
}

#[tokio::test]
async fn in_shadow_mode_everything_is_told_once_and_nothing_is_refused() {
    let client = Client::new(7);
    let options = PolicyOptions { shadow: true, ..PolicyOptions::default() };
    let all = Policy { blocklist: list(&[payer(&client)]), time_window: closed().time_window, ..daily(2 * PRICE) };
    for (policy, told) in [
        (all, vec![Rule::TimeWindow; 3]),
        (Policy { blocklist: list(&[payer(&client)]), ..daily(PRICE) }, vec![Rule::Blocklist; 3]),
        (daily(2 * PRICE), vec![Rule::DailyLimit]),
        (every(1, Duration::from_secs(100)), vec![Rule::RateLimit; 2]),
        (Policy { per_request_cap: Some(Amount::new(1)), ..Policy::default() }, vec![Rule::PerRequestCap; 3]),
    ] {
        let shop = Shop::with(policy, options.clone(), Arc::default()).await;
        shop.house.facilitator.open(&client.terms, 50_000);
        for n in 1..=3 {
            assert_eq!(shop.pay("/quote", &client.pays(n * PRICE)).await.status, StatusCode::OK);
        }
        let rule = told[0];
        assert_eq!(shop.counted(rule, Mode::Shadow), u64::try_from(told.len()).unwrap());
        assert_eq!(shop.counted(rule, Mode::Enforced), 0);
        assert!(shop.told.0.lock().iter().all(|(_, mode, _)| *mode == Mode::Shadow));
        assert_eq!(shop.told.rules(), told);
        if shop.house.store.spent.lock().len() == 1 {
            let spent = shop.house.ledger.payers().spent(&payer(&client), "");
            assert_eq!(spent, (Amount::new(3000), Amount::ZERO), "what is spent is counted all the same");
        }
    }
}
