//! An axum application that is paid per call, with Turnpike embedded as a tower layer instead of standing in front.
//!
//! ```text
//! cargo run --example axum
//! curl -i http://127.0.0.1:3000/health                       # free
//! curl -i http://127.0.0.1:3000/quote                        # 402, and how to pay
//! cargo run -- pay http://127.0.0.1:3000/quote               # paid
//! ```
//!
//! It is paid on the sandbox: a chain inside this process, a threshold key made on the spot, and a ledger in a SQLite
//! file that ends with the process. With `network: solana-devnet`, `pay_to`, `rpc_url` and the shares of
//! `turnpike keygen` the same lines are paid for real; `config/example.yaml` has every key.

use axum::extract::Extension;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};
use turnpike::app::Merchant;
use turnpike::config::Config;
use turnpike::layer::{Paid, TurnpikeLayer};
use turnpike::telemetry::{LogFormat, init_logs};

/// What a route costs. `upstream` is asked by a proxy only; here the application itself is behind the layer.
const CONFIGURATION: &str = "
upstream: http://127.0.0.1:3000
network: sandbox
routes:
  - { path: /quote, price: '$0.001', description: 'a price, fresh from the market' }
  - { path: /health, free: true }
";

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    init_logs(LogFormat::Text, "info");
    let (config, _) = Config::parse("axum.yaml".as_ref(), CONFIGURATION, &|_| None)?;
    let merchant = Merchant::start(&config).await?;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
    tracing::info!(address = %listener.local_addr()?, "listening");
    let interrupted = async { drop(tokio::signal::ctrl_c().await) };
    axum::serve(listener, app(merchant.layer())).with_graceful_shutdown(interrupted).await?;
    merchant.drain().await;
    Ok(())
}

/// The application itself. What the layer wraps is paid for by the routes of the configuration.
fn app(turnpike: TurnpikeLayer) -> Router {
    Router::new().route("/health", get(|| async { "ok" })).route("/quote", get(quote)).layer(turnpike)
}

/// A handler learns from the layer who paid.
async fn quote(Extension(paid): Extension<Paid>) -> Json<Value> {
    Json(json!({ "quote": "42.17", "paid_by": paid.payer.to_string() }))
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::SigningKey;
    use turnpike::amount::Amount;
    use turnpike::client::http::{Http, Request, Response};
    use turnpike::client::{Client, Spending};
    use turnpike::x402::header::{PAYMENT_REQUIRED, decode};
    use turnpike::x402::wire::PaymentRequired;

    use super::*;

    /// The application on a free port, with its merchant; everything else on free ports too.
    async fn serve() -> (Merchant, String) {
        let text =
            format!("{CONFIGURATION}sandbox: {{ rpc_listen: '127.0.0.1:0' }}\nadmin: {{ listen: '127.0.0.1:0' }}\n");
        let (config, _) = Config::parse("axum.yaml".as_ref(), &text, &|_| None).unwrap();
        let merchant = Merchant::start(&config).await.unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = app(merchant.layer());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        (merchant, url)
    }

    async fn ask(url: &str, payment: Option<&str>) -> Response {
        Http::new().unwrap().send(&Request::get(url.parse().unwrap()), payment).await.unwrap()
    }

    #[tokio::test]
    async fn a_free_route_is_axums_own_and_a_priced_one_says_how_to_pay() {
        let (merchant, url) = serve().await;
        let free = ask(&format!("{url}/health"), None).await;
        assert_eq!((free.status(), free.bytes(100).await.unwrap().as_ref()), (200, &b"ok"[..]));
        let unpaid = ask(&format!("{url}/quote"), None).await;
        assert_eq!(unpaid.status(), 402);
        let required: PaymentRequired = decode(unpaid.header(PAYMENT_REQUIRED).unwrap()).unwrap();
        assert_eq!(required.accepts[0].amount, Amount::new(1_000));
        assert_eq!(ask(&format!("{url}/quote"), Some("AAAA")).await.status(), 400);
        merchant.drain().await;
    }

    #[tokio::test]
    async fn a_paid_call_reaches_the_handler_and_the_merchant_is_paid() {
        let (merchant, url) = serve().await;
        let deposit = Amount::new(100_000);
        let spending = Spending { call_max: deposit, deposit, deposit_max: deposit };
        let payer = Client::new(SigningKey::from_bytes(&[7; 32]), merchant.chain().unwrap(), spending).unwrap();
        let chain = merchant.sandbox().unwrap().chain().clone();
        chain.mint_to(&payer.address(), 1_000_000).unwrap();
        let quote = Request::get(format!("{url}/quote").parse().unwrap());
        for _ in 0..3 {
            let paid = payer.call(&quote).await.unwrap();
            assert_eq!(paid.charged, Amount::new(1_000));
            let answer: Value = serde_json::from_slice(&paid.response.bytes(1000).await.unwrap()).unwrap();
            assert_eq!(answer["paid_by"], payer.address().to_string());
        }

        // On the chain: what was charged goes to the merchant, and the rest of the deposit back.
        let pay_to = payer.channels().await[0].seller.pay_to;
        let settled = merchant.settle_now().await;
        assert_eq!(settled.failures, 0, "{:?}", settled.lines);
        assert_eq!(chain.token_balance(&pay_to), 3_000);
        payer.refund(&quote).await.unwrap();
        assert_eq!(chain.token_balance(&payer.address()), 1_000_000 - 3_000);
        merchant.drain().await;
    }
}
