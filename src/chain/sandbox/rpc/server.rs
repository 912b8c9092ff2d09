//! The HTTP endpoint: POST a call or a batch to `/`, GET `/health`.

use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::chain::sandbox::SandboxChain;

/// The largest request.
const BODY_BYTES_MAX: usize = 512 * 1024;

/// Serves until `stopped` ends.
pub(in crate::chain::sandbox) async fn serve(
    listener: TcpListener,
    chain: SandboxChain,
    stopped: oneshot::Receiver<()>,
) {
    let router = Router::new()
        .route("/", post(answer))
        .route("/health", get(|| async { "ok" }))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(chain);
    let stopped = async move {
        // Sent or dropped, both mean the end.
        let _ = stopped.await;
    };
    if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(stopped).await {
        tracing::warn!(%error, "the sandbox chain stopped serving");
    }
}

async fn answer(State(chain): State<SandboxChain>, body: Bytes) -> impl IntoResponse {
    let delay = chain.with(|bank| bank.faults.delay_ms);
    if delay > 0 {
        tokio::time::sleep(Duration::from_millis(delay)).await;
    }
    ([(CONTENT_TYPE, "application/json")], chain.answer(&body).to_string())
}
