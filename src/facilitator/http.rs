//! Facilitators elsewhere: the adapter of [`X402Facilitator`] over HTTP, several in the operator's order.
//!
//! Owns order, waits, limits, rests and health; what an answer means is in `answer.rs`. Promises that a settlement
//! reaches two facilitators only if the first certainly never got it (`handover.rs`), that it is never sent again to
//! one that may have it, that no redirect is followed, and that no secret of a URL or header is shown. Refuses to guess:
//! what may have happened is [`InterfaceError::Unknown`], and whether to ask again is the caller's to decide.
//!
//! | what became of the attempt | `verify` | `settle` |
//! |---|---|---|
//! | connection refused, no such host, TLS failed, no connection in time | asks the next | asks the next |
//! | turned away: 401, 403, 404, 405, 413, 415, 429, 307, 308 | asks the next | `Unavailable` |
//! | anything else that is no answer | asks the next | `Unknown` |
//! | refused because the facilitator could not tell | asks the next; stands where nobody knows better | `Unknown` or `Refused` |
//! | refused | `Refused` | `Refused` |
//!
//! Where nobody is left to ask it is `Unavailable`. A facilitator that said what it serves is asked for nothing else;
//! one that failed goes to the end of the order for a while; one that asked for a pause is not asked at all meanwhile.
//! Source: `x402-specification-v2.md` and version 1, section 7 of both.

mod answer;
mod handover;
mod remote;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::join_all;
use http::{HeaderName, HeaderValue};
use serde_json::json;
use tokio::time::Instant;

use self::answer::{Answered, Failure, Reached};
use self::remote::{Call, Http, Remote};
use super::interface::{InterfaceError, Payment, Settled, Supported, Verified, X402Facilitator};
use crate::http_client::endpoint::EndpointHealth;

/// How long `verify` may take, where nothing else is said.
pub const VERIFY_TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);
/// How long `settle` may take, which waits for the chain.
pub const SETTLE_TIMEOUT_DEFAULT: Duration = Duration::from_secs(60);
/// How long a connection may take, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const SUPPORTED_TIMEOUT: Duration = Duration::from_secs(10);
/// How often facilitators are asked what they serve.
const SUPPORTED_INTERVAL: Duration = Duration::from_secs(600);
/// The same while one of them has not said it yet.
const SUPPORTED_RETRY_INTERVAL: Duration = Duration::from_secs(30);
/// After how many failures in a row a facilitator goes to the end of the order, and for how long.
const FAILURES_MAX: u32 = 2;
const COOL_DOWN: Duration = Duration::from_secs(30);

/// One facilitator, as configured.
#[derive(Clone)]
pub struct RemoteOptions {
    /// Where it is; `/verify` and the others are added to its path.
    pub url: String,
    /// Headers that go with each request, such as an API key. They are secrets.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// How long `verify` may take.
    pub verify_timeout: Duration,
    /// How long `settle` may take.
    pub settle_timeout: Duration,
}

impl fmt::Debug for RemoteOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.headers.iter().map(|(name, _)| name).collect();
        f.debug_struct("RemoteOptions").field("headers", &names).finish_non_exhaustive()
    }
}

/// Why there is no client. Never repeats a URL.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HttpFacilitatorError {
    /// None is configured.
    #[error("no facilitator is configured: name at least one URL")]
    NoFacilitator,
    /// One cannot be used.
    #[error("the URL of facilitator {number} {what}")]
    Facilitator {
        /// Counted from one.
        number: usize,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The TLS library does not start.
    #[error("TLS cannot be set up: {0}")]
    Tls(String),
}

/// How one attempt ended, for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// With what was asked for.
    Answered,
    /// The payment was refused.
    Refused,
    /// It limits our rate, or asks for a pause.
    Limited,
    /// It does not serve us: credentials, path, redirect.
    TurnedAway,
    /// No connection.
    Unreachable,
    /// No answer in time.
    TimedOut,
    /// It broke off, failed inside, or cannot be understood.
    Failed,
}

impl Outcome {
    /// The value of a metric's label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Refused => "refused",
            Self::Limited => "limited",
            Self::TurnedAway => "turned_away",
            Self::Unreachable => "unreachable",
            Self::TimedOut => "timed_out",
            Self::Failed => "failed",
        }
    }
}

/// Is told of every attempt.
pub trait Observer: Send + Sync {
    /// One attempt at one facilitator, which is named without secrets; `call` is `supported`, `verify` or `settle`.
    fn observe(&self, facilitator: &str, call: &'static str, outcome: Outcome, took: Duration);
}

/// Tells nobody.
impl Observer for () {
    fn observe(&self, _: &str, _: &'static str, _: Outcome, _: Duration) {}
}

/// How a facilitator does, for the status page.
#[derive(Clone, Debug, PartialEq)]
pub struct RemoteHealth {
    /// Its host and how it does.
    pub endpoint: EndpointHealth,
    /// What it says that it serves; `None` where it has not said it yet.
    pub supported: Option<Supported>,
}

/// Facilitators elsewhere, as one.
pub struct HttpFacilitator {
    http: Http,
    remotes: Vec<Remote>,
    observer: Arc<dyn Observer>,
}

impl HttpFacilitator {
    /// A client of these facilitators, in order of preference.
    ///
    /// # Errors
    /// [`HttpFacilitatorError`].
    pub fn new(facilitators: &[RemoteOptions], observer: Arc<dyn Observer>) -> Result<Self, HttpFacilitatorError> {
        if facilitators.is_empty() {
            return Err(HttpFacilitatorError::NoFacilitator);
        }
        let mut remotes: Vec<Remote> = Vec::with_capacity(facilitators.len());
        for (index, options) in facilitators.iter().enumerate() {
            let number = index.saturating_add(1);
            let mut remote = Remote::new(number, options)?;
            if remotes.iter().any(|other| other.endpoint.name == remote.endpoint.name) {
                remote.endpoint.name = format!("{}#{number}", remote.endpoint.name);
            }
            remotes.push(remote);
        }
        Ok(Self { http: Http::new()?, remotes, observer })
    }

    /// How each of them does, in the operator's order.
    #[must_use]
    pub fn health(&self) -> Vec<RemoteHealth> {
        let health = |remote: &Remote| RemoteHealth {
            endpoint: remote.endpoint.health(),
            supported: remote.supported.lock().clone(),
        };
        self.remotes.iter().map(health).collect()
    }

    /// Asks all of them again and again what they serve, at once for the first time. Never ends; to be spawned.
    pub async fn keep_informed(&self) {
        loop {
            // What failed is in the log and in `health`.
            let _ = self.supported().await;
            let all = self.remotes.iter().all(|remote| remote.supported.lock().is_some());
            tokio::time::sleep(if all { SUPPORTED_INTERVAL } else { SUPPORTED_RETRY_INTERVAL }).await;
        }
    }

    /// Those who may be asked about a payment now: the healthy in the operator's order, then those that rest.
    fn in_order(&self, payment: &Payment) -> Result<Vec<&Remote>, InterfaceError> {
        let now = Instant::now();
        let serving: Vec<_> = self.remotes.iter().filter(|remote| remote.may_serve(payment)).collect();
        let mut order: Vec<_> =
            serving.iter().copied().filter(|remote| remote.endpoint.barred_for(now).is_none()).collect();
        order.sort_by_key(|remote| !remote.endpoint.is_healthy(now));
        if !order.is_empty() {
            return Ok(order);
        }
        Err(InterfaceError::Unavailable(if serving.is_empty() {
            "none of them serves this scheme on this network; see GET /supported of each".to_owned()
        } else {
            "every one of them asks to be left alone for a while".to_owned()
        }))
    }

    /// One attempt, with its outcome told to the facilitator's health and to the observer.
    async fn attempt<T>(
        &self,
        remote: &Remote,
        call: Call,
        body: Bytes,
        read: fn(&Answered) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let started = Instant::now();
        let answered = remote.exchange(&self.http, call, body).await;
        let result = answered.and_then(|answered| read(&answered)).map_err(|failure| scrubbed(remote, failure));
        let endpoint = &remote.endpoint;
        let outcome = match &result {
            Ok(_) => Outcome::Answered,
            Err(Failure::Refused { .. }) => Outcome::Refused,
            Err(Failure::Failed { outcome, .. }) => *outcome,
        };
        self.observer.observe(&endpoint.name, call.as_str(), outcome, started.elapsed());
        match &result {
            Ok(_) | Err(Failure::Refused { .. }) => endpoint.succeeded(),
            Err(Failure::Failed { rest: Some(rest), .. }) => endpoint.bar(*rest),
            Err(Failure::Failed { detail, .. }) => {
                tracing::warn!(facilitator = endpoint.name, call = call.as_str(), detail, "a facilitator failed");
                endpoint.failed(detail, FAILURES_MAX, COOL_DOWN);
            }
        }
        result
    }
}

#[async_trait]
impl X402Facilitator for HttpFacilitator {
    /// What all of them serve together; the first that serves a kind says its `extra`. Asks each of them, and counts
    /// what one said earlier where it does not answer now.
    async fn supported(&self) -> Result<Supported, InterfaceError> {
        let asked = self.remotes.iter().map(|remote| async move {
            let answer = self.attempt(remote, Call::Supported, Bytes::new(), answer::supported).await;
            answer.map(|supported| *remote.supported.lock() = Some(supported))
        });
        let failures: Vec<_> = join_all(asked).await.into_iter().filter_map(Result::err).collect();
        let mut all = Supported::default();
        let mut known = false;
        for remote in &self.remotes {
            for kind in remote.supported.lock().iter().inspect(|_| known = true).flat_map(|supported| &supported.kinds)
            {
                let same = |other: &super::interface::Kind| {
                    (other.x402_version, &other.scheme, &other.network)
                        == (kind.x402_version, &kind.scheme, &kind.network)
                };
                if !all.kinds.iter().any(same) {
                    all.kinds.push(kind.clone());
                }
            }
        }
        match failures.into_iter().next() {
            Some(failure) if !known => Err(InterfaceError::Unavailable(text(failure))),
            Some(_) | None => Ok(all),
        }
    }

    async fn verify(&self, payment: &Payment) -> Result<Verified, InterfaceError> {
        let body = body(payment);
        let mut undecided = None;
        let mut last = InterfaceError::Unavailable("nobody was asked".to_owned());
        for remote in self.in_order(payment)? {
            match self.attempt(remote, Call::Verify, body.clone(), answer::verified).await {
                Ok(verified) => return Ok(verified),
                Err(Failure::Refused { reason, detail, undecided: true }) => {
                    undecided.get_or_insert(InterfaceError::Refused { reason, detail });
                }
                Err(Failure::Refused { reason, detail, undecided: false }) => {
                    return Err(InterfaceError::Refused { reason, detail });
                }
                Err(Failure::Failed { detail, .. }) => last = InterfaceError::Unavailable(detail),
            }
        }
        Err(undecided.unwrap_or(last))
    }

    async fn settle(&self, payment: &Payment) -> Result<Settled, InterfaceError> {
        let body = body(payment);
        let mut last = "nobody was asked".to_owned();
        for remote in self.in_order(payment)? {
            match self.attempt(remote, Call::Settle, body.clone(), answer::settled).await {
                Ok(settled) => return Ok(settled),
                Err(Failure::Refused { reason, detail, .. }) => return Err(InterfaceError::Refused { reason, detail }),
                Err(Failure::Failed { reached, detail, transaction, .. }) => match reached {
                    Reached::No => last = detail,
                    Reached::TurnedAway => return Err(InterfaceError::Unavailable(detail)),
                    Reached::Perhaps => return Err(InterfaceError::Unknown { transaction, detail }),
                },
            }
        }
        Err(InterfaceError::Unavailable(last))
    }
}

/// What `verify` and `settle` are asked (section 7.1).
fn body(payment: &Payment) -> Bytes {
    let body = json!({
        "x402Version": payment.x402_version,
        "paymentPayload": payment.payload,
        "paymentRequirements": payment.requirements,
    });
    Bytes::from(body.to_string())
}

/// A failure whose words name the facilitator and hold no secret of its.
fn scrubbed(remote: &Remote, failure: Failure) -> Failure {
    let endpoint = &remote.endpoint;
    match failure {
        Failure::Refused { reason, detail, undecided } => {
            let detail = detail.map(|detail| endpoint.scrub(&detail));
            Failure::Refused { reason: endpoint.scrub(&reason), detail, undecided }
        }
        Failure::Failed { reached, detail, rest, transaction, outcome } => {
            let detail = format!("{}: {}", endpoint.name, endpoint.scrub(&detail));
            Failure::Failed { reached, detail, rest, transaction, outcome }
        }
    }
}

fn text(failure: Failure) -> String {
    match failure {
        Failure::Refused { reason, .. } => reason,
        Failure::Failed { detail, .. } => detail,
    }
}
