//! The admin side: metrics, health, and what operators ask of a running Turnpike. It listens on loopback by default and
//! asks for no credentials: who can reach it can read balances, start a settlement and end passes, and can move no money
//! anywhere.
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
//! | `GET /api/passes` | passes that were sold, newest first (`?limit=`) |
//! | `POST /api/passes/{id}/revoke` | ends a pass: it takes no more calls |

mod passes;

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
use crate::ledger::channel::evm::EvmBatch;
use crate::ledger::channel::{ChannelTerms, Evm, Family};
use crate::ledger::store::{BatchRecord, ChannelRecord, RecordOf, StoreError};
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
    /// All balances on EVM networks, where there are any.
    pub evm: Option<Arc<Ledger<Evm>>>,
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
            .route("/api/passes", get(passes::list))
            .route("/api/passes/{id}/revoke", post(passes::revoke))
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
    let limit = rows.limit();
    let (mut total, mut all) = largest(&admin.ledger, limit, channel);
    if let Some(evm) = &admin.evm {
        let (more, rows) = largest(evm, limit, evm_channel);
        total = total.saturating_add(more);
        all.extend(rows);
        all.sort_by_key(|(exposure, _)| std::cmp::Reverse(*exposure));
        all.truncate(limit);
    }
    let exposure = admin.ledger.exposure();
    Json(json!({
        "total": total,
        "exposure": exposure.total,
        "channels": all.into_iter().map(|(_, row)| row).collect::<Vec<_>>(),
    }))
}

/// How many channels a ledger has, and those with the largest exposure.
fn largest<F: Family>(
    ledger: &Ledger<F>,
    limit: usize,
    show: impl Fn(&RecordOf<F>, Amount) -> Value,
) -> (usize, Vec<(Amount, Value)>) {
    let mut all: Vec<(Amount, RecordOf<F>)> = Vec::new();
    let mut total: usize = 0;
    ledger.for_each(&mut |record| {
        total = total.saturating_add(1);
        all.push((record.exposure(), record.clone()));
        // Keeps memory bounded with a million channels: now and then only the largest stay.
        if all.len() > ROWS_MAX.saturating_mul(2) {
            shorten(&mut all, ROWS_MAX);
        }
    });
    shorten(&mut all, limit);
    (total, all.iter().map(|(exposure, record)| (*exposure, show(record, *exposure))).collect())
}

fn shorten<T: ChannelTerms, O, S>(all: &mut Vec<(Amount, ChannelRecord<T, O, S>)>, limit: usize)
where
    T::Id: Ord,
{
    all.sort_by(|(left, a), (right, b)| right.cmp(left).then_with(|| a.terms.id().cmp(&b.terms.id())));
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

fn evm_channel(record: &RecordOf<Evm>, exposure: Amount) -> Value {
    let status = match (record.on_chain.is_withdrawing(), record.closed) {
        (true, _) => "withdrawing",
        (false, true) => "refunding",
        (false, false) => "open",
    };
    json!({
        "channel": record.terms.id,
        "network": record.terms.seller.network,
        "asset": &*record.terms.seller.asset.address,
        "payer": record.terms.payer,
        "deposit": record.on_chain.balance,
        "charged": record.charged,
        "claimed": record.on_chain.claimed,
        "exposure": exposure,
        "closingSince": record.on_chain.withdraw_since,
        "status": status,
        "lastUsed": record.last_used.seconds(),
    })
}

async fn batches(State(admin): State<Arc<Admin>>, Query(rows): Query<Rows>) -> Response {
    match newest(&admin, rows.limit()).await {
        Ok(batches) => Json(json!({ "batches": batches })).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// The newest batches of all ledgers, newest first. Each ledger counts its own.
async fn newest(admin: &Admin, limit: usize) -> Result<Vec<Value>, StoreError> {
    let svm = admin.ledger.batches(limit).await?;
    let mut all: Vec<_> = svm.iter().map(|record| (record.created_at, batch(record))).collect();
    if let Some(evm) = &admin.evm {
        let evm = evm.batches(limit).await?;
        all.extend(evm.iter().map(|record| (record.created_at, evm_batch(record))));
        all.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
        all.truncate(limit);
    }
    Ok(all.into_iter().map(|(_, row)| row).collect())
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

fn evm_batch(record: &EvmBatch) -> Value {
    json!({
        "id": record.id,
        "network": record.network,
        "kind": format!("{:?}", record.kind).to_lowercase(),
        "state": format!("{:?}", record.state),
        "transaction": record.transaction,
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
