//! The admin side: metrics, health, and what operators ask of a running Turnpike. It listens on loopback by default and
//! asks for no credentials: who can reach it can read balances and start a settlement, and can move no money anywhere.
//!
//! | path | answers |
//! |---|---|
//! | `GET /metrics` | Prometheus' text format |
//! | `GET /health/live` | 200 while the process runs |
//! | `GET /health/ready` | 200 while requests are taken and charges can be made, else 503 |
//! | `GET /health` | each part with what is wrong with it |
//! | `GET /api/channels` | channels, largest exposure first (`?limit=`) |
//! | `GET /api/batches` | settlement batches, newest first (`?limit=`) |
//! | `POST /api/settle` | settles what is owed now and answers with what was done |

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::amount::Amount;
use crate::ledger::Ledger;
use crate::ledger::store::{BatchRecord, ChannelRecord};
use crate::telemetry::Telemetry;

/// The most rows of one answer.
const ROWS_MAX: usize = 10_000;
/// How many rows are answered where nothing is said.
const ROWS: usize = 100;

/// One part's state.
#[derive(Clone, Debug)]
pub struct Part {
    /// Its name.
    pub name: &'static str,
    /// Whether charges can go on without it.
    pub vital: bool,
    /// What is wrong, where something is.
    pub state: Result<(), String>,
}

/// A settlement on demand.
pub type Settled = Pin<Box<dyn Future<Output = Result<Value, String>> + Send>>;

/// What the admin side shows and starts.
pub struct Admin {
    /// All metrics.
    pub telemetry: Arc<Telemetry>,
    /// All balances.
    pub ledger: Arc<Ledger>,
    /// Asks every part how it is.
    pub parts: Box<dyn Fn() -> Vec<Part> + Send + Sync>,
    /// Brings the gauges up to date before they are read.
    pub refresh: Box<dyn Fn() + Send + Sync>,
    /// Settles what is owed now.
    pub settle: Box<dyn Fn() -> Settled + Send + Sync>,
}

impl Admin {
    /// Starts to answer on `address`; the returned address has the port that was chosen. Ends when `shutdown` resolves.
    ///
    /// # Errors
    /// Where the address cannot be had.
    pub async fn listen(
        self,
        address: SocketAddr,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> std::io::Result<SocketAddr> {
        let router = Router::new()
            .route("/metrics", get(metrics))
            .route("/health", get(health))
            .route("/health/live", get(|| async { "live\n" }))
            .route("/health/ready", get(ready))
            .route("/api/channels", get(channels))
            .route("/api/batches", get(batches))
            .route("/api/settle", post(settle))
            .with_state(Arc::new(self));
        let listener = tokio::net::TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(shutdown).await {
                tracing::error!(%error, "the admin side has stopped; metrics and health are not answered");
            }
        });
        Ok(address)
    }
}

async fn metrics(State(admin): State<Arc<Admin>>) -> Response {
    (admin.refresh)();
    match admin.telemetry.render() {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn ready(State(admin): State<Arc<Admin>>) -> Response {
    let wrong: Vec<_> = (admin.parts)()
        .into_iter()
        .filter(|part| part.vital)
        .filter_map(|part| part.state.err().map(|why| format!("{}: {why}\n", part.name)))
        .collect();
    if wrong.is_empty() {
        "ready\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, wrong.concat()).into_response()
    }
}

async fn health(State(admin): State<Arc<Admin>>) -> Response {
    let parts = (admin.parts)();
    let well = parts.iter().all(|part| part.state.is_ok());
    let rows: serde_json::Map<_, _> = parts
        .into_iter()
        .map(|part| {
            let state = part.state.as_ref().err().map_or("ok", String::as_str);
            (part.name.to_owned(), json!(state))
        })
        .collect();
    let status = if well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({ "status": if well { "ok" } else { "impaired" }, "parts": rows }))).into_response()
}

#[derive(Deserialize)]
struct Rows {
    limit: Option<usize>,
}

impl Rows {
    fn limit(&self) -> usize {
        self.limit.unwrap_or(ROWS).min(ROWS_MAX)
    }
}

async fn channels(State(admin): State<Arc<Admin>>, Query(rows): Query<Rows>) -> Json<Value> {
    let mut all: Vec<(Amount, ChannelRecord)> = Vec::new();
    let limit = rows.limit();
    let mut total: usize = 0;
    admin.ledger.for_each(&mut |record| {
        total = total.saturating_add(1);
        let exposure = record.charged.saturating_sub(record.on_chain.claimed);
        all.push((exposure, record.clone()));
        // Keeps memory bounded with a million channels: now and then only the largest stay.
        if all.len() > ROWS_MAX.saturating_mul(2) {
            shorten(&mut all, ROWS_MAX);
        }
    });
    shorten(&mut all, limit);
    let exposure = admin.ledger.exposure();
    Json(json!({
        "total": total,
        "exposure": exposure.total,
        "channels": all.iter().map(|(exposure, record)| channel(record, *exposure)).collect::<Vec<_>>(),
    }))
}

fn shorten(all: &mut Vec<(Amount, ChannelRecord)>, limit: usize) {
    all.sort_by(|(left, a), (right, b)| right.cmp(left).then_with(|| a.terms.id.cmp(&b.terms.id)));
    all.truncate(limit);
}

fn channel(record: &ChannelRecord, exposure: Amount) -> Value {
    json!({
        "channel": record.terms.id,
        "network": record.terms.seller.network,
        "asset": &*record.terms.seller.asset.address,
        "payer": record.terms.payer,
        "deposit": record.on_chain.deposit,
        "charged": record.charged,
        "claimed": record.on_chain.claimed,
        "distributed": record.on_chain.distributed,
        "exposure": exposure,
        "closingSince": record.on_chain.closing_since,
        "status": format!("{:?}", record.on_chain.status).to_lowercase(),
        "lastUsed": record.last_used.seconds(),
    })
}

async fn batches(State(admin): State<Arc<Admin>>, Query(rows): Query<Rows>) -> Response {
    match admin.ledger.batches(rows.limit()).await {
        Ok(batches) => Json(json!({ "batches": batches.iter().map(batch).collect::<Vec<_>>() })).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

fn batch(record: &BatchRecord) -> Value {
    json!({
        "id": record.id,
        "kind": format!("{:?}", record.kind).to_lowercase(),
        "state": format!("{:?}", record.state),
        "transaction": record.signature,
        "channels": record.lines.iter().map(|(id, amount)| json!({ "channel": id, "cumulative": amount })).collect::<Vec<_>>(),
        "createdAt": record.created_at.seconds(),
    })
}

async fn settle(State(admin): State<Arc<Admin>>) -> Response {
    match (admin.settle)().await {
        Ok(report) => Json(report).into_response(),
        Err(why) => (StatusCode::INTERNAL_SERVER_ERROR, Json(json!({ "error": why }))).into_response(),
    }
}
