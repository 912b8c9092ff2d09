//! Where the parts' events become metrics, and some of them entries of the audit record: small adapters, so that the parts
//! themselves name neither.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;

use crate::amount::Amount;
use crate::audit::log::AuditLog;
use crate::audit::{Entry, Kind};
use crate::chain::svm;
use crate::clock::{Clock, SystemClock};
use crate::facilitator::http;
use crate::ledger::channel::Seller;
use crate::ledger::channel::evm::{EvmBatch, EvmBatchKind};
use crate::ledger::store::{BatchKind, BatchRecord};
use crate::scheme::evm::EvmSeller;
use crate::settlement;
use crate::settlement::evm::EvmStatus;
use crate::signer::{Approved, EvmRequest, EvmSigner, Signer, SignerError};
use crate::telemetry::{Telemetry, seconds_value};
use crate::x402::Key;
use crate::x402::evm::{Address, B256, EvmSignature};
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
    pub(super) audit: Option<Arc<AuditLog>>,
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

    fn refused(&self, kind: BatchKind, lines: &[(Key, Amount)], why: &str) {
        self.count(kind, "refused");
        tell_refused(self.audit.as_deref(), kind_label(kind), lines, why);
    }
}

/// Tells the audit record of a batch that was not signed. Where its signer was asked, that is recorded too.
fn tell_refused<Id: fmt::Display>(log: Option<&AuditLog>, what: &str, lines: &[(Id, Amount)], why: &str) {
    let Some(log) = log else { return };
    let lines: Vec<_> = lines.iter().map(|(id, amount)| (id.to_string(), amount.to_string())).collect();
    let entry = Entry::new(Kind::Refusal).text("rule", "settlement").text("mode", "enforced").text("what", what);
    log.note(entry.json("channels", &lines).text("why", why));
}

/// What the settlements of all networks tell, put together.
#[derive(Default)]
pub(super) struct SettlementStatus {
    open_batches: usize,
    closing: usize,
    oldest_unclaimed: Option<Duration>,
}

impl SettlementStatus {
    pub(super) fn add(&mut self, status: &settlement::Status) {
        // The open batches are the whole ledger's.
        self.open_batches = self.open_batches.max(status.open_batches);
        self.closing = self.closing.saturating_add(status.closing);
        self.oldest_unclaimed = self.oldest_unclaimed.max(status.oldest_unclaimed);
    }

    pub(super) fn add_evm(&mut self, status: &EvmStatus) {
        self.open_batches = self.open_batches.saturating_add(status.open_batches);
        self.closing = self.closing.saturating_add(status.withdrawing);
        self.oldest_unclaimed = self.oldest_unclaimed.max(status.oldest_unclaimed);
    }

    /// Brings the gauges up to date.
    pub(super) fn show(&self, telemetry: &Telemetry) {
        telemetry.batches_open.set(i64::try_from(self.open_batches).unwrap_or(i64::MAX));
        telemetry.closing_channels.set(i64::try_from(self.closing).unwrap_or(i64::MAX));
        telemetry.oldest_unclaimed.set(seconds_value(self.oldest_unclaimed.unwrap_or_default()));
    }
}

/// Counts settlement batches of an EVM network.
pub(super) struct EvmBatches {
    pub(super) telemetry: Arc<Telemetry>,
    pub(super) sellers: Vec<Arc<EvmSeller>>,
    pub(super) audit: Option<Arc<AuditLog>>,
}

const fn evm_kind_label(kind: EvmBatchKind) -> &'static str {
    match kind {
        EvmBatchKind::Claim => "claim",
        EvmBatchKind::Settle => "settle",
    }
}

impl EvmBatches {
    fn count(&self, kind: EvmBatchKind, state: &str) {
        self.telemetry.batches.with_label_values(&[evm_kind_label(kind), state]).inc();
    }
}

impl settlement::evm::EvmObserver for EvmBatches {
    fn signed(&self, batch: &EvmBatch, _took: Duration) {
        self.count(batch.kind, "signed");
    }

    fn confirmed(&self, batch: &EvmBatch, moved: Amount) {
        self.count(batch.kind, "confirmed");
        let now = SystemClock.now();
        let took = now.since(batch.created_at);
        self.telemetry.batch_seconds.with_label_values(&[evm_kind_label(batch.kind)]).observe(took.as_secs_f64());
        self.telemetry.last_settlement.set(now.seconds());
        let seller = self.sellers.iter().find(|seller| seller.token == batch.token);
        if let (EvmBatchKind::Claim, Some(seller)) = (batch.kind, seller) {
            let labels = [seller.network.as_str(), &seller.asset.symbol];
            Telemetry::add_amount(&self.telemetry.claimed.with_label_values(&labels), moved);
        }
    }

    fn dropped(&self, batch: &EvmBatch, _why: &str) {
        self.count(batch.kind, "dropped");
    }

    fn refused(&self, kind: EvmBatchKind, lines: &[(B256, Amount)], why: &str) {
        self.count(kind, "refused");
        tell_refused(self.audit.as_deref(), evm_kind_label(kind), lines, why);
    }
}

/// Counts and times calls of facilitators elsewhere.
pub(super) struct Facilitators(pub(super) Arc<Telemetry>);

impl http::Observer for Facilitators {
    fn observe(&self, facilitator: &str, call: &'static str, outcome: http::Outcome, took: Duration) {
        self.0.facilitator_requests.with_label_values(&[facilitator, call, outcome.as_str()]).inc();
        self.0.facilitator_seconds.with_label_values(&[facilitator, call]).observe(took.as_secs_f64());
    }
}

/// Tells of a signer's refusal: what asks and what judges do not have the same rules.
fn refused(telemetry: &Telemetry, kind: &str, rule: &str, detail: &str) {
    telemetry.signing_refusals.with_label_values(&[rule]).inc();
    tracing::error!(
        kind,
        rule,
        detail,
        "the signer refuses what the proxy asks: compare signer and routes in the configuration"
    );
}

/// An EVM network's signer whose work is timed and whose refusals are counted.
pub(super) struct TimedEvm {
    pub(super) telemetry: Arc<Telemetry>,
    pub(super) inner: Arc<dyn EvmSigner>,
}

#[async_trait]
impl EvmSigner for TimedEvm {
    fn address(&self) -> Address {
        self.inner.address()
    }

    async fn sign(&self, approved: Approved<EvmRequest>) -> Result<EvmSignature, SignerError> {
        let kind = approved.request().kind();
        let started = Instant::now();
        let signed = self.inner.sign(approved).await;
        self.telemetry.signing_seconds.with_label_values(&[kind]).observe(started.elapsed().as_secs_f64());
        if let Err(SignerError::Refused { rule, detail }) = &signed {
            refused(&self.telemetry, kind, rule, detail);
        }
        signed
    }

    fn health(&self) -> Result<(), String> {
        self.inner.health()
    }
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
            refused(&self.telemetry, kind, rule, detail);
        }
        signed
    }

    fn health(&self) -> Result<(), String> {
        self.inner.health()
    }
}
