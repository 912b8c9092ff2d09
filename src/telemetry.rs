//! Every metric's name, labels and help, and how logs are written.
//!
//! Metrics follow Prometheus' conventions: base units, `_total` for counters, amounts in atomic units with their asset
//! as a label. Per-route handles are made once ([`Telemetry::route`]), so that counting on the request path costs an
//! atomic addition. Logs are JSON lines on standard error; no field ever holds a secret.

mod request;

use std::sync::Arc;
use std::time::Duration;

use prometheus::core::{AtomicI64, AtomicU64};
use prometheus::core::{Collector, GenericCounter, GenericCounterVec, GenericGauge, GenericGaugeVec};
use prometheus::{Encoder, Histogram, HistogramOpts, HistogramVec, Opts, Registry, TextEncoder};

use self::request::WithRequest;
pub use self::request::{RequestId, Scoped};
use crate::amount::Amount;

/// Counts up.
pub type Counter = GenericCounter<AtomicU64>;
type CounterVec = GenericCounterVec<AtomicU64>;
type Gauge = GenericGauge<AtomicI64>;
type GaugeVec = GenericGaugeVec<AtomicI64>;

/// Buckets for what happens on the request path: 10 microseconds to 2.5 seconds.
const FAST_BUCKETS: &[f64] = &[
    0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25,
    1.0, 2.5,
];
/// Buckets for what crosses a network: a millisecond to a minute.
const SLOW_BUCKETS: &[f64] =
    &[0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
/// Buckets for counts of things done together.
const COUNT_BUCKETS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A free route, passed on.
    Free,
    /// Paid, delivered and charged.
    Paid,
    /// Came without payment and was answered with a challenge.
    Unpaid,
    /// Came with a payment that was refused.
    Refused,
    /// Paid for, but the upstream failed: nothing was charged.
    Released,
    /// A refund, answered.
    Refund,
    /// Answered before, and given that answer again.
    Replayed,
    /// A call on a pass, delivered and counted.
    OnPass,
    /// Not listed, or not with this method.
    NotListed,
    /// Something of ours failed.
    Failed,
}

impl Outcome {
    const ALL: [Self; 10] = [
        Self::Free,
        Self::Paid,
        Self::Unpaid,
        Self::Refused,
        Self::Released,
        Self::Refund,
        Self::Replayed,
        Self::OnPass,
        Self::NotListed,
        Self::Failed,
    ];

    /// The label's value.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Paid => "paid",
            Self::Unpaid => "unpaid",
            Self::Refused => "refused",
            Self::Released => "released",
            Self::Refund => "refund",
            Self::Replayed => "replayed",
            Self::OnPass => "on_pass",
            Self::NotListed => "not_listed",
            Self::Failed => "failed",
        }
    }
}

/// One route's own counters.
#[derive(Clone, Debug)]
pub struct RouteMetrics {
    outcomes: [Counter; 10],
    /// Seconds from the request's arrival to its response header.
    pub seconds: Histogram,
    /// Seconds that the upstream took to its response header.
    pub upstream_seconds: Histogram,
}

impl RouteMetrics {
    /// Counts a request.
    pub fn count(&self, outcome: Outcome) {
        let index = Outcome::ALL.iter().position(|other| *other == outcome);
        if let Some(counter) = index.and_then(|index| self.outcomes.get(index)) {
            counter.inc();
        }
    }
}

macro_rules! telemetry {
    ($($field:ident: $type:ty = $make:expr;)*) => {
        /// All metrics of one running Turnpike.
        #[derive(Clone, Debug)]
        #[allow(missing_docs, reason = "each metric's help text says what it is")]
        pub struct Telemetry {
            registry: Registry,
            $(pub $field: $type,)*
        }

        impl Telemetry {
            /// Makes and registers every metric.
            ///
            /// # Errors
            /// Where a metric's own definition is wrong, which a test would have found.
            pub fn new() -> Result<Arc<Self>, prometheus::Error> {
                let registry = Registry::new();
                $(let $field: $type = register(&registry, $make?)?;)*
                Ok(Arc::new(Self { registry, $($field,)* }))
            }
        }
    };
}

telemetry! {
    build_info: GaugeVec = gauges("turnpike_build_info", "Always 1; the version is a label.", &["version"]);
    requests: CounterVec = counters("turnpike_requests_total", "Requests by route and what became of them.", &["route", "outcome"]);
    request_seconds: HistogramVec = histograms("turnpike_request_duration_seconds", "Seconds from a request's arrival to its response header.", &["route"], FAST_BUCKETS);
    upstream_seconds: HistogramVec = histograms("turnpike_upstream_duration_seconds", "Seconds that the upstream took to its response header.", &["route"], SLOW_BUCKETS);
    upstream_errors: CounterVec = counters("turnpike_upstream_errors_total", "Requests that the upstream did not answer, by kind of failure.", &["kind"]);
    revenue: CounterVec = counters("turnpike_revenue_atomic_total", "What was charged, in the asset's atomic units.", &["route", "network", "asset"]);
    challenges: CounterVec = counters("turnpike_challenges_total", "Challenges (402) that offered ways to pay, by route.", &["route"]);
    payments: CounterVec = counters("turnpike_payments_total", "Payments that were accepted, by route and scheme; over challenges: the conversion.", &["route", "scheme"]);
    refusals: CounterVec = counters("turnpike_refusals_total", "Payments that were refused, by reason code.", &["reason"]);
    policy_refusals: CounterVec = counters("turnpike_policy_refusals_total", "Requests that were refused by policy (enforced) or would have been (shadow), by rule.", &["rule", "mode"]);
    screenings: CounterVec = counters("turnpike_screenings_total", "Payers that were looked up in compliance lists, and readings of the list's file, by what came of it.", &["source", "outcome"]);
    verify_seconds: Histogram = histogram("turnpike_verify_duration_seconds", "Seconds to decode and verify a payment.", FAST_BUCKETS);
    reserve_seconds: Histogram = histogram("turnpike_reserve_duration_seconds", "Seconds to reserve a price, waiting for predecessors included.", FAST_BUCKETS);
    commit_seconds: Histogram = histogram("turnpike_commit_duration_seconds", "Seconds until a charge was durable.", FAST_BUCKETS);
    channels: Gauge = gauge("turnpike_channels", "Channels that the ledger knows.");
    reservations: Gauge = gauge("turnpike_reservations", "Prices held back for requests in flight.");
    waiting: Gauge = gauge("turnpike_queue_waiting", "Requests that wait for their predecessor on a channel.");
    exposure: Gauge = gauge("turnpike_exposure_atomic", "Charged and not yet claimed, over all channels.");
    exposure_largest: Gauge = gauge("turnpike_exposure_largest_atomic", "Charged and not yet claimed on the channel where it is largest.");
    exposure_max: Gauge = gauge("turnpike_exposure_limit_atomic", "The configured limit of exposure; 0 where there is none.");
    store_seconds: Histogram = histogram("turnpike_store_commit_duration_seconds", "Seconds that a group of writes took to be durable.", FAST_BUCKETS);
    store_writes: Histogram = histogram("turnpike_store_commit_writes", "Writes that shared one flush to disk.", COUNT_BUCKETS);
    audit_up: Gauge = gauge("turnpike_audit_up", "1 while the audit record can be written.");
    audit_entries: Gauge = gauge("turnpike_audit_entries", "The number of the audit record's last entry.");
    audit_signed: Gauge = gauge("turnpike_audit_signed_entries", "The number of the last audit entry that a checkpoint vouches for.");
    audit_seconds: Histogram = histogram("turnpike_audit_commit_duration_seconds", "Seconds that a group of audit entries took to be durable.", FAST_BUCKETS);
    answers: Gauge = gauge("turnpike_answers_kept", "Answers that are kept for clients that lost theirs.");
    answers_bytes: Gauge = gauge("turnpike_answers_kept_bytes", "What the kept answers hold.");
    passes: Gauge = gauge("turnpike_passes", "Passes that are known: outstanding, or ended within the hour.");
    passes_sold: CounterVec = counters("turnpike_passes_sold_total", "Packs of calls that were sold, by route.", &["route"]);
    pass_calls: CounterVec = counters("turnpike_pass_calls_total", "Calls that were counted on a pass, by route; the one that buys it is not among them.", &["route"]);
    batches: CounterVec = counters("turnpike_settlement_batches_total", "Settlement batches by kind and the state they reached.", &["kind", "state"]);
    batches_open: Gauge = gauge("turnpike_settlement_batches_open", "Settlement batches that were signed and are not yet confirmed or dropped.");
    batch_seconds: HistogramVec = histograms("turnpike_settlement_batch_duration_seconds", "Seconds from a batch's signature to its confirmation.", &["kind"], SLOW_BUCKETS);
    claimed: CounterVec = counters("turnpike_settlement_claimed_atomic_total", "Claimed on chain, in atomic units.", &["network", "asset"]);
    oldest_unclaimed: Gauge = gauge("turnpike_settlement_oldest_unclaimed_seconds", "Age of the oldest charge that is not yet claimed.");
    last_settlement: Gauge = gauge("turnpike_settlement_last_success_timestamp_seconds", "Unix time of the last batch that was confirmed; 0 before the first.");
    closing_channels: Gauge = gauge("turnpike_channels_closing", "Channels whose payer has asked to close and that still owe the merchant.");
    signing_seconds: HistogramVec = histograms("turnpike_signing_duration_seconds", "Seconds that a threshold signature took.", &["kind"], SLOW_BUCKETS);
    signing_refusals: CounterVec = counters("turnpike_signing_refusals_total", "Signing requests that the signer refused, by rule.", &["rule"]);
    signer_up: Gauge = gauge("turnpike_signer_quorum", "1 while a quorum of shares can sign.");
    cosigner_up: GaugeVec = gauges("turnpike_cosigner_up", "1 while a cosigner on another machine answers.", &["name"]);
    cosigner_faults: CounterVec = counters("turnpike_cosigner_faults_total", "Calls that a cosigner did not do, by what was wrong: unreachable, refused, failed, lied.", &["name", "fault"]);
    cosigner_refusals: CounterVec = counters("turnpike_cosigner_refusals_total", "Requests that a cosigner's own policy forbade, by rule.", &["name", "rule"]);
    cosigner_seconds: HistogramVec = histograms("turnpike_cosigner_duration_seconds", "Seconds that calls of cosigners took.", &["name", "call"], SLOW_BUCKETS);
    rpc_requests: CounterVec = counters("turnpike_rpc_requests_total", "Calls of the chain's JSON-RPC.", &["endpoint", "method", "outcome"]);
    facilitator_requests: CounterVec = counters("turnpike_facilitator_requests_total", "Calls of facilitators elsewhere.", &["facilitator", "call", "outcome"]);
    facilitator_seconds: HistogramVec = histograms("turnpike_facilitator_duration_seconds", "Seconds that calls of facilitators elsewhere took.", &["facilitator", "call"], SLOW_BUCKETS);
    rpc_seconds: HistogramVec = histograms("turnpike_rpc_duration_seconds", "Seconds that calls of the chain's JSON-RPC took.", &["endpoint"], SLOW_BUCKETS);
    draining: Gauge = gauge("turnpike_draining", "1 once shutdown has begun.");
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, metric: C) -> Result<C, prometheus::Error> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn counters(name: &str, help: &str, labels: &[&str]) -> Result<CounterVec, prometheus::Error> {
    CounterVec::new(Opts::new(name, help), labels)
}

fn gauges(name: &str, help: &str, labels: &[&str]) -> Result<GaugeVec, prometheus::Error> {
    GaugeVec::new(Opts::new(name, help), labels)
}

fn gauge(name: &str, help: &str) -> Result<Gauge, prometheus::Error> {
    Gauge::with_opts(Opts::new(name, help))
}

fn histogram(name: &str, help: &str, buckets: &[f64]) -> Result<Histogram, prometheus::Error> {
    Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec()))
}

fn histograms(name: &str, help: &str, labels: &[&str], buckets: &[f64]) -> Result<HistogramVec, prometheus::Error> {
    HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), labels)
}

/// Somebody who waits, counted until dropped.
pub struct Waiting(Gauge);

impl Waiting {
    /// Counts one more.
    #[must_use]
    pub fn begin(gauge: &GenericGauge<AtomicI64>) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// An amount as a metric's value; what does not fit is shown as the greatest value.
#[must_use]
pub fn amount_value(amount: Amount) -> i64 {
    i64::try_from(amount.get()).unwrap_or(i64::MAX)
}

/// Seconds as a metric's value.
#[must_use]
pub fn seconds_value(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

impl Telemetry {
    /// One route's handles.
    #[must_use]
    pub fn route(&self, name: &str) -> RouteMetrics {
        RouteMetrics {
            outcomes: Outcome::ALL.map(|outcome| self.requests.with_label_values(&[name, outcome.as_str()])),
            seconds: self.request_seconds.with_label_values(&[name]),
            upstream_seconds: self.upstream_seconds.with_label_values(&[name]),
        }
    }

    /// Adds to a counter of atomic units.
    pub fn add_amount(counter: &GenericCounter<AtomicU64>, amount: Amount) {
        counter.inc_by(amount.to_u64().unwrap_or(u64::MAX));
    }

    /// All metrics in Prometheus' text format.
    ///
    /// # Errors
    /// Where a metric cannot be written, which a test would have found.
    pub fn render(&self) -> Result<Vec<u8>, prometheus::Error> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// A JSON object per line.
    #[default]
    Json,
    /// For people.
    Text,
}

/// Sends logs to standard error. `filter` is a level or a list of `target=level`; the environment's `RUST_LOG` wins.
/// Does nothing where logs go somewhere already.
pub fn init_logs(format: LogFormat, filter: &str) {
    use tracing_subscriber::EnvFilter;
    use tracing_subscriber::fmt::format as lines;
    let filter = EnvFilter::try_from_default_env()
        .or_else(|_| EnvFilter::try_new(filter))
        .unwrap_or_else(|_| EnvFilter::new("info"));
    // Colours are for people at a terminal, not for files.
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours);
    let _already_set = match format {
        LogFormat::Json => {
            let inner = lines().json().flatten_event(true).with_span_list(false);
            builder.json().event_format(WithRequest { inner, json: true }).try_init()
        }
        LogFormat::Text => {
            let inner = lines().compact().with_target(false);
            builder.event_format(WithRequest { inner, json: false }).try_init()
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_well_defined_and_rendered() {
        let telemetry = Telemetry::new().unwrap();
        telemetry.route("/v1/*").count(Outcome::Paid);
        telemetry.build_info.with_label_values(&["1.2.3"]).set(1);
        let text = String::from_utf8(telemetry.render().unwrap()).unwrap();
        assert!(text.contains(r#"turnpike_requests_total{outcome="paid",route="/v1/*"} 1"#), "{text}");
        assert!(text.contains("# HELP turnpike_exposure_atomic "));
    }
}
