//! Where the parts' events become metrics: small adapters, so that the parts themselves name no metric.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;

use crate::amount::Amount;
use crate::chain::svm;
use crate::clock::{Clock, SystemClock};
use crate::ledger::channel::Seller;
use crate::ledger::store::{BatchKind, BatchRecord};
use crate::settlement;
use crate::signer::{Approved, Signer, SignerError};
use crate::telemetry::{Telemetry, seconds_value};
use crate::x402::Key;
use crate::x402::key::Signature;

/// Counts and times calls of the chain.
pub(super) struct Rpc(pub(super) Arc<Telemetry>);

impl svm::Observer for Rpc {
    fn observe(&self, endpoint: &str, method: &'static str, outcome: svm::Outcome, took: Duration) {
        self.0.rpc_requests.with_label_values(&[endpoint, method, outcome.as_str()]).inc();
        self.0.rpc_seconds.with_label_values(&[endpoint]).observe(took.as_secs_f64());
    }
}

/// Counts settlement batches.
pub(super) struct Batches {
    pub(super) telemetry: Arc<Telemetry>,
    pub(super) seller: Arc<Seller>,
}

const fn kind_label(kind: BatchKind) -> &'static str {
    match kind {
        BatchKind::Claim => "claim",
        BatchKind::Distribute => "distribute",
        BatchKind::Seal => "seal",
        BatchKind::CleanUp => "clean_up",
    }
}

impl Batches {
    fn count(&self, kind: BatchKind, state: &str) {
        self.telemetry.batches.with_label_values(&[kind_label(kind), state]).inc();
    }
}

impl settlement::Observer for Batches {
    fn signed(&self, batch: &BatchRecord, _took: Duration) {
        self.count(batch.kind, "signed");
    }

    fn sent(&self, batch: &BatchRecord) {
        self.count(batch.kind, "sent");
    }

    fn confirmed(&self, batch: &BatchRecord, moved: Amount, took: Duration) {
        self.count(batch.kind, "confirmed");
        self.telemetry.batch_seconds.with_label_values(&[kind_label(batch.kind)]).observe(took.as_secs_f64());
        self.telemetry.last_settlement.set(SystemClock.now().seconds());
        if matches!(batch.kind, BatchKind::Claim | BatchKind::Seal) {
            let labels = [self.seller.network.as_str(), &self.seller.asset.symbol];
            Telemetry::add_amount(&self.telemetry.claimed.with_label_values(&labels), moved);
        }
    }

    fn dropped(&self, batch: &BatchRecord, _why: &str) {
        self.count(batch.kind, "dropped");
    }

    fn refused(&self, kind: BatchKind, _lines: &[(Key, Amount)], _why: &str) {
        self.count(kind, "refused");
    }
}

/// Brings the gauges of the settlement up to date.
pub(super) fn settlement_status(telemetry: &Telemetry, status: &settlement::Status) {
    telemetry.batches_open.set(i64::try_from(status.open_batches).unwrap_or(i64::MAX));
    telemetry.closing_channels.set(i64::try_from(status.closing).unwrap_or(i64::MAX));
    telemetry.oldest_unclaimed.set(seconds_value(status.oldest_unclaimed.unwrap_or_default()));
}

/// A signer whose work is timed and whose refusals are counted.
pub(super) struct Timed {
    pub(super) telemetry: Arc<Telemetry>,
    pub(super) inner: Arc<dyn Signer>,
}

#[async_trait]
impl Signer for Timed {
    fn public_key(&self) -> Key {
        self.inner.public_key()
    }

    async fn sign(&self, approved: Approved) -> Result<Signature, SignerError> {
        let kind = approved.request().kind();
        let started = Instant::now();
        let signed = self.inner.sign(approved).await;
        self.telemetry.signing_seconds.with_label_values(&[kind]).observe(started.elapsed().as_secs_f64());
        if let Err(SignerError::Refused { rule, detail }) = &signed {
            self.telemetry.signing_refusals.with_label_values(&[rule]).inc();
            tracing::error!(
                kind,
                rule,
                detail,
                "the signer refuses what the proxy asks: compare signer and routes in the configuration"
            );
        }
        signed
    }

    fn health(&self) -> Result<(), String> {
        self.inner.health()
    }
}
