//! An axum application that is paid per call, with Turnpike embedded as a tower layer instead of standing in front.
//!
//! ```text
//! cargo run --example axum
//! curl -i http://127.0.0.1:3000/health      # free
//! curl -i http://127.0.0.1:3000/quote       # 402, and how to pay
//! ```
//!
//! Two parts here are stand-ins, so that the example runs without a chain, a key or a file: [`Forgetful`] keeps nothing
//! over a restart, and [`Offline`] reaches no chain, so a payment is answered with 503. An application that means to be
//! paid puts a durable store and a facilitator with its signer there; nothing else changes.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::extract::Extension;
use axum::routing::get;
use axum::{Json, Router};
use http::request::Parts;
use serde_json::{Value, json};
use turnpike::amount::{Amount, Asset};
use turnpike::chain::Blockhash;
use turnpike::clock::SystemClock;
use turnpike::facilitator::{
    AcceptedDeposit, CloseRequest, DepositRequest, Facilitator, FacilitatorError, SettledClose, SettledDeposit,
};
use turnpike::gate::route::{Offer, Pricing, Route};
use turnpike::gate::{Gate, Options};
use turnpike::layer::{LayerOptions, Paid, RouteMatch, TurnpikeLayer};
use turnpike::ledger::channel::{OnChain, Seller, Terms};
use turnpike::ledger::store::{BatchRecord, Snapshot, Store, StoreError, Write};
use turnpike::ledger::{Ledger, Limits};
use turnpike::scheme::svm::{TOKEN_PROGRAM, TREASURY_PLACEHOLDER, USDC_DEVNET};
use turnpike::x402::Key;
use turnpike::x402::network::SOLANA_DEVNET;

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    tracing_subscriber::fmt().init();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
    tracing::info!(address = %listener.local_addr()?, "listening");
    axum::serve(listener, app(turnpike().await?)).await?;
    Ok(())
}

/// The application itself. What the layer wraps is paid for by the routes that it is given.
fn app(turnpike: TurnpikeLayer) -> Router {
    Router::new().route("/health", get(|| async { "ok" })).route("/quote", get(quote)).layer(turnpike)
}

/// A handler learns from the layer who paid.
async fn quote(Extension(paid): Extension<Paid>) -> Json<Value> {
    Json(json!({ "quote": "42.17", "paid_by": paid.payer.to_string() }))
}

/// The layer: who is paid, what costs what, and what both stand on.
async fn turnpike() -> Result<TurnpikeLayer, Failure> {
    let seller = seller()?;
    let network = seller.network.clone();
    let offer = Offer {
        seller: Arc::new(seller),
        amount: Amount::new(1_000),
        min_deposit: Some(Amount::new(50_000)),
        max_timeout_seconds: 300,
        memo: None,
    };
    let quote = Arc::new(Route {
        name: "/quote".into(),
        host: None,
        methods: Vec::new(),
        path: "/quote".into(),
        pricing: Pricing::Fixed(vec![offer]),
        upstream: None,
        timeout: None,
        description: Some("a price, fresh from the market".into()),
        mime_type: Some("application/json".into()),
    });
    let routes = move |parts: &Parts| match parts.uri.path() {
        "/quote" => RouteMatch::Route(Arc::clone(&quote)),
        "/health" => RouteMatch::Free,
        _ => RouteMatch::Unlisted,
    };
    let limits = Limits {
        exposure_max: Some(Amount::new(10_000_000)),
        channel_exposure_max: Some(Amount::new(1_000_000)),
        channel_charged_max: None,
        waiters_per_channel_max: 64,
        wait_max: Duration::from_secs(30),
        gap_wait_max: Duration::from_millis(500),
        reservation_max: Duration::from_secs(120),
        answers: None,
    };
    let ledger = Ledger::open(Arc::new(Forgetful), Arc::new(SystemClock), limits).await?;
    let facilitator: Arc<dyn Facilitator> = Arc::new(Offline);
    let gate = Gate::new(ledger, [(network, facilitator)], Arc::new(SystemClock), Options::default());
    Ok(TurnpikeLayer::new(gate, routes, LayerOptions::default()))
}

fn seller() -> Result<Seller, Failure> {
    let settlement_key = Key([7; 32]);
    Ok(Seller {
        network: SOLANA_DEVNET.parse()?,
        asset: Arc::new(Asset { address: USDC_DEVNET.to_string().into(), symbol: "USDC".into(), decimals: 6 }),
        mint: USDC_DEVNET,
        token_program: TOKEN_PROGRAM,
        pay_to: Key([9; 32]),
        fee_payer: settlement_key,
        receiver_authorizer: settlement_key,
        withdraw_delay: 86_400,
        treasury_owner: TREASURY_PLACEHOLDER,
    })
}

/// Stands where a durable store goes.
struct Forgetful;

#[async_trait]
impl Store for Forgetful {
    async fn load(&self) -> Result<Snapshot, StoreError> {
        Ok(Snapshot::default())
    }

    async fn write(&self, _writes: Vec<Write>) -> Result<(), StoreError> {
        Ok(())
    }

    async fn batches(&self, _limit: usize) -> Result<Vec<BatchRecord>, StoreError> {
        Ok(Vec::new())
    }
}

/// Stands where a facilitator goes that can reach a chain and a signer.
struct Offline;

impl Offline {
    fn answer<T>(&self) -> Result<T, FacilitatorError> {
        Err(FacilitatorError::Unavailable("this example has no chain".to_owned()))
    }
}

#[async_trait]
impl Facilitator for Offline {
    async fn accept_deposit(&self, _request: DepositRequest) -> Result<AcceptedDeposit, FacilitatorError> {
        self.answer()
    }

    async fn settle_deposit(&self, _deposit: AcceptedDeposit) -> Result<SettledDeposit, FacilitatorError> {
        self.answer()
    }

    async fn read_channel(&self, _terms: &Terms) -> Result<Option<OnChain>, FacilitatorError> {
        self.answer()
    }

    async fn close(&self, _request: CloseRequest) -> Result<SettledClose, FacilitatorError> {
        self.answer()
    }

    async fn close_metered(
        &self,
        _terms: &Terms,
        _charge: Amount,
        _deposit: Amount,
        _expires_at: i64,
    ) -> Result<SettledClose, FacilitatorError> {
        self.answer()
    }

    fn hints(&self) -> Option<Blockhash> {
        None
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use http::{Request, Response, StatusCode};
    use http_body_util::BodyExt;
    use tower::ServiceExt;
    use turnpike::x402::header;
    use turnpike::x402::wire::PaymentRequired;

    use super::*;

    async fn get(path: &str, payment: Option<&str>) -> Response<Body> {
        let mut request = Request::get(path);
        if let Some(payment) = payment {
            request = request.header(header::PAYMENT_SIGNATURE, payment);
        }
        let request = request.body(Body::empty()).unwrap();
        app(turnpike().await.unwrap()).oneshot(request).await.unwrap()
    }

    #[tokio::test]
    async fn free_routes_are_axums_own() {
        let response = get("/health", None).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "ok");
    }

    #[tokio::test]
    async fn a_priced_route_says_how_to_pay() {
        let response = get("/quote", None).await;
        assert_eq!(response.status(), StatusCode::PAYMENT_REQUIRED);
        let value = &response.headers()[header::PAYMENT_REQUIRED];
        let required: PaymentRequired = header::decode(value.as_bytes()).unwrap();
        assert_eq!(required.accepts[0].amount, Amount::new(1_000));
        assert_eq!(required.accepts[0].pay_to, Key([9; 32]).to_string());
    }

    #[tokio::test]
    async fn what_is_no_payment_does_not_reach_the_handler() {
        assert_eq!(get("/quote", Some("AAAA")).await.status(), StatusCode::BAD_REQUEST);
    }
}
