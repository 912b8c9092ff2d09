//! What operators ask about passes, and their end.
//!
//! A pass is named by the SHA-256 of its token, so nothing here can be used to make a call.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::{Admin, Rows};
use crate::ledger::passes::{PassId, PassRecord, PassState};
use crate::ledger::store::StoreError;

/// Passes of all ledgers, newest first.
pub(super) async fn list(State(admin): State<Arc<Admin>>, Query(rows): Query<Rows>) -> Json<Value> {
    let limit = rows.limit();
    let (mut total, mut all) = (admin.ledger.pass_count(), admin.ledger.passes(limit));
    if let Some(evm) = &admin.evm {
        total = total.saturating_add(evm.pass_count());
        all.extend(evm.passes(limit));
        all.sort_by_key(|(pass, _)| std::cmp::Reverse(pass.sold_at));
        all.truncate(limit);
    }
    let rows: Vec<_> = all.iter().map(|(pass, state)| row(pass, *state)).collect();
    Json(json!({ "total": total, "passes": rows }))
}

/// Ends a pass, durably.
pub(super) async fn revoke(State(admin): State<Arc<Admin>>, Path(id): Path<String>) -> Response {
    let id: PassId = match id.parse() {
        Ok(id) => id,
        Err(error) => return failed(StatusCode::BAD_REQUEST, &format!("{error}; GET /api/passes lists them")),
    };
    match end(&admin, &id).await {
        Ok(Some(pass)) => Json(row(&pass, PassState::Revoked)).into_response(),
        Ok(None) => {
            failed(StatusCode::NOT_FOUND, "there is no such pass; one that has ended is forgotten after an hour")
        }
        Err(error) => failed(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

/// The pass is known to one of the ledgers.
async fn end(admin: &Admin, id: &PassId) -> Result<Option<PassRecord>, StoreError> {
    if let Some(pass) = admin.ledger.revoke_pass(id).await? {
        return Ok(Some(pass));
    }
    match &admin.evm {
        Some(evm) => evm.revoke_pass(id).await,
        None => Ok(None),
    }
}

fn failed(status: StatusCode, why: &str) -> Response {
    (status, Json(json!({ "error": why }))).into_response()
}

fn row(pass: &PassRecord, state: PassState) -> Value {
    json!({
        "pass": pass.id.to_string(),
        "payer": pass.payer.to_string(),
        "network": pass.network,
        "route": &*pass.scope,
        "calls": pass.calls,
        "callsLeft": pass.left(),
        "price": pass.price,
        "soldAt": pass.sold_at.seconds(),
        "lastUsed": pass.last_used.seconds(),
        "expiresAt": pass.expires_at.seconds(),
        "state": state.as_str(),
    })
}
