//! JSON-RPC calls over several endpoints: order, time-outs, retries, limits, and what an error answer means.
//!
//! Shared by the adapters of both families of chains, each of which brings its own reading of error codes.
//! Every call made through here may be repeated: reads change nothing, and sending the same signed bytes again is the
//! same transaction to a chain. A call ends with the first usable answer, or when its time or its rounds are used up.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, USER_AGENT};
use http::{Request, StatusCode};
use http_body_util::Full;
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::rt::TokioTimer;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::time::Instant;

pub use crate::http_client::endpoint::EndpointHealth;
use crate::http_client::endpoint::{BadEndpoint, Endpoint};
use crate::http_client::home::Home;
use crate::http_client::{Connector, RETRY_AFTER_DEFAULT, causes, connector, read, retry_after};

/// The first pause between rounds; it doubles.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// Where a chain is asked, and how patiently.
#[derive(Clone)]
pub struct Endpoints {
    /// URLs in order of preference. They may hold secrets.
    pub urls: Vec<String>,
    /// How long one endpoint may take to answer.
    pub attempt_timeout: Duration,
    /// How long all attempts of one call may take together.
    pub call_timeout: Duration,
    /// How often every endpoint is tried before a call fails.
    pub rounds_max: u32,
    /// After how many failures in a row an endpoint goes to the end of the order.
    pub failures_max: u32,
    /// For how long.
    pub cool_down: Duration,
}

impl Endpoints {
    /// What fits public chains.
    #[must_use]
    pub const fn public(urls: Vec<String>) -> Self {
        Self {
            urls,
            attempt_timeout: Duration::from_secs(5),
            call_timeout: Duration::from_secs(15),
            rounds_max: 3,
            failures_max: 2,
            cool_down: Duration::from_secs(30),
        }
    }
}

impl fmt::Debug for Endpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoints").field("urls", &self.urls.len()).finish_non_exhaustive()
    }
}

/// What an error answer is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The request: no other endpoint would say otherwise.
    Request,
    /// The endpoint, which is behind what we have seen; it will catch up.
    Behind,
    /// The endpoint, which wants to be left alone for a while.
    Limited,
    /// The endpoint, which does not serve this method. It did not carry the request out.
    NotServed,
    /// The endpoint, which failed inside and may have carried the request out.
    Failed,
}

/// Why there is no client. Never repeats a URL.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RpcSetupError {
    /// None is configured.
    #[error("no chain endpoint is configured: name at least one URL")]
    NoEndpoint,
    /// One cannot be used.
    #[error("chain endpoint {number} {what}")]
    Endpoint {
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
    /// With a result.
    Answered,
    /// With an error about the request.
    Refused,
    /// Rate limited.
    Limited,
    /// The node is behind what we have seen.
    Behind,
    /// No answer in time.
    TimedOut,
    /// Not reached, broken off, or failed inside.
    Failed,
    /// Unreadable.
    Malformed,
}

impl Outcome {
    /// The value of a metric's label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Refused => "refused",
            Self::Limited => "limited",
            Self::Behind => "behind",
            Self::TimedOut => "timed_out",
            Self::Failed => "failed",
            Self::Malformed => "malformed",
        }
    }
}

/// Is told of every attempt.
pub trait Observer: Send + Sync {
    /// One attempt at one endpoint, which is named without secrets.
    fn observe(&self, endpoint: &str, method: &'static str, outcome: Outcome, took: Duration);
}

/// Tells nobody.
impl Observer for () {
    fn observe(&self, _: &str, _: &'static str, _: Outcome, _: Duration) {}
}

/// An error answer that is about the request.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct RpcError {
    pub(super) code: i64,
    #[serde(default)]
    pub(super) message: String,
    #[serde(default)]
    pub(super) data: Option<Value>,
}

/// Why a call has no result.
#[derive(Debug)]
pub(super) enum CallError {
    /// Nobody gave a usable answer.
    Unavailable(String),
    /// An endpoint judged the request itself.
    Rpc {
        error: RpcError,
        /// Whether another endpoint may have carried the request out before.
        doubtful: bool,
    },
    /// The last answer cannot be read.
    Malformed(String),
}

/// How one attempt at one endpoint went wrong.
enum AttemptError {
    /// It is limited, and asks for a pause.
    Limited(Duration),
    /// It is behind what we have seen; it will catch up.
    Behind(String),
    /// It could not be reached, took too long, or failed.
    Failed {
        detail: String,
        /// Whether it may have carried the request out all the same.
        sent: bool,
        outcome: Outcome,
    },
    /// It answered with something else.
    Malformed(String),
    /// It judged the request.
    Rpc(RpcError),
}

/// A JSON-RPC client over ordered endpoints.
pub(super) struct Client {
    http: HttpClient<Connector, Full<Bytes>>,
    endpoints: Vec<Endpoint>,
    observer: Arc<dyn Observer>,
    next_id: AtomicU64,
    attempt_timeout: Duration,
    call_timeout: Duration,
    rounds_max: u32,
    failures_max: u32,
    cool_down: Duration,
    judge: fn(&RpcError) -> Verdict,
}

impl Client {
    /// `judge` says what the family's error answers mean.
    pub(super) fn new(
        options: &Endpoints,
        judge: fn(&RpcError) -> Verdict,
        observer: Arc<dyn Observer>,
    ) -> Result<Self, RpcSetupError> {
        if options.urls.is_empty() {
            return Err(RpcSetupError::NoEndpoint);
        }
        let mut endpoints: Vec<Endpoint> = Vec::with_capacity(options.urls.len());
        for (index, text) in options.urls.iter().enumerate() {
            let number = index.saturating_add(1);
            let wrong = |BadEndpoint(what)| RpcSetupError::Endpoint { number, what };
            let mut endpoint = Endpoint::parse(text).map_err(wrong)?;
            if endpoints.iter().any(|other| other.name == endpoint.name) {
                endpoint.name = format!("{}#{number}", endpoint.name);
            }
            endpoints.push(endpoint);
        }
        Ok(Self {
            http: http_client(options.attempt_timeout)?,
            endpoints,
            observer,
            next_id: AtomicU64::new(1),
            attempt_timeout: options.attempt_timeout,
            call_timeout: options.call_timeout,
            rounds_max: options.rounds_max.max(1),
            failures_max: options.failures_max.max(1),
            cool_down: options.cool_down,
            judge,
        })
    }

    pub(super) fn health(&self) -> Vec<EndpointHealth> {
        self.endpoints.iter().map(Endpoint::health).collect()
    }

    /// Calls `method` until an endpoint answers it. The answer has at most `bytes_max` bytes.
    pub(super) async fn call<T: DeserializeOwned>(
        &self,
        method: &'static str,
        params: Value,
        bytes_max: usize,
    ) -> Result<T, CallError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let body = json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params });
        let body = Bytes::from(body.to_string());
        let mut call = Call::new(self.call_timeout);
        loop {
            for endpoint in self.in_order() {
                if call.is_over() {
                    return Err(call.end());
                }
                let timeout = self.attempt_timeout.min(call.left());
                match self.observed(endpoint, method, &body, bytes_max, timeout).await {
                    Ok(result) => return Ok(result),
                    Err(AttemptError::Rpc(error)) => return Err(CallError::Rpc { error, doubtful: call.sent }),
                    Err(error) => call.note(&endpoint.name, error),
                }
            }
            call.round = call.round.saturating_add(1);
            let pause = match self.shortest_bar() {
                Some(bar) => bar,
                None if call.behind || call.round < self.rounds_max => call.backoff(),
                None => return Err(call.end()),
            };
            if pause >= call.left() {
                return Err(call.end());
            }
            call.behind = false;
            tokio::time::sleep(pause).await;
        }
    }

    /// The endpoints that may be asked now: the healthy in the operator's order, then those that rest.
    fn in_order(&self) -> Vec<&Endpoint> {
        let now = Instant::now();
        let mut order: Vec<_> = self.endpoints.iter().filter(|endpoint| endpoint.barred_for(now).is_none()).collect();
        order.sort_by_key(|endpoint| !endpoint.is_healthy(now));
        order
    }

    /// How long until one may be asked again, where none may be asked now.
    fn shortest_bar(&self) -> Option<Duration> {
        let now = Instant::now();
        let bars: Option<Vec<Duration>> = self.endpoints.iter().map(|endpoint| endpoint.barred_for(now)).collect();
        bars?.into_iter().min()
    }

    /// One attempt, with its outcome told to the endpoint's health and to the observer.
    async fn observed<T: DeserializeOwned>(
        &self,
        endpoint: &Endpoint,
        method: &'static str,
        body: &Bytes,
        bytes_max: usize,
        timeout: Duration,
    ) -> Result<T, AttemptError> {
        let started = Instant::now();
        let attempt = self.attempt(endpoint, body, bytes_max);
        let result = tokio::time::timeout(timeout, attempt).await.unwrap_or_else(|_| {
            Err(AttemptError::Failed {
                detail: format!("no answer to {method} within {} ms", timeout.as_millis()),
                sent: true,
                outcome: Outcome::TimedOut,
            })
        });
        let outcome = match &result {
            Ok(_) => Outcome::Answered,
            Err(AttemptError::Rpc(_)) => Outcome::Refused,
            Err(AttemptError::Limited(_)) => Outcome::Limited,
            Err(AttemptError::Behind(_)) => Outcome::Behind,
            Err(AttemptError::Failed { outcome, .. }) => *outcome,
            Err(AttemptError::Malformed(_)) => Outcome::Malformed,
        };
        self.observer.observe(&endpoint.name, method, outcome, started.elapsed());
        match &result {
            Ok(_) | Err(AttemptError::Rpc(_)) => endpoint.succeeded(),
            Err(AttemptError::Limited(pause)) => endpoint.bar(*pause),
            Err(AttemptError::Behind(_)) => {}
            Err(AttemptError::Failed { detail, .. } | AttemptError::Malformed(detail)) => {
                tracing::warn!(endpoint = endpoint.name, method, detail, "chain endpoint failed");
                endpoint.failed(detail, self.failures_max, self.cool_down);
            }
        }
        result
    }

    async fn attempt<T: DeserializeOwned>(
        &self,
        endpoint: &Endpoint,
        body: &Bytes,
        bytes_max: usize,
    ) -> Result<T, AttemptError> {
        let failed = |detail: &str, sent| AttemptError::Failed {
            detail: endpoint.scrub(detail),
            sent,
            outcome: Outcome::Failed,
        };
        let mut request = Request::post(&endpoint.uri)
            .header(CONTENT_TYPE, "application/json")
            .header(USER_AGENT, concat!("turnpike/", env!("CARGO_PKG_VERSION")));
        if let Some(authorization) = &endpoint.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let request = request.body(Full::new(body.clone())).map_err(|error| failed(&error.to_string(), false))?;
        let response = match self.http.request(request).await {
            Ok(response) => response,
            Err(error) => return Err(failed(&causes(&error), !error.is_connect())),
        };
        match response.status() {
            StatusCode::OK => {}
            StatusCode::TOO_MANY_REQUESTS => {
                return Err(AttemptError::Limited(retry_after(response.headers()).unwrap_or(RETRY_AFTER_DEFAULT)));
            }
            // Nodes answer a bad request with an error object; the bodies of all others are gateways' pages.
            StatusCode::BAD_REQUEST => {
                let bytes = read(response, bytes_max).await.unwrap_or_default();
                return match parse(&bytes).map_err(|error| self.judged(endpoint, error)) {
                    Err(AttemptError::Malformed(_)) => Err(failed("HTTP 400 Bad Request", false)),
                    judged => judged,
                };
            }
            status => return Err(failed(&format!("HTTP {status}"), status.is_server_error())),
        }
        let bytes = read(response, bytes_max).await.map_err(|detail| failed(&detail, true))?;
        parse(&bytes).map_err(|error| self.judged(endpoint, error))
    }

    /// Tells errors about the endpoint from errors about the request.
    fn judged(&self, endpoint: &Endpoint, error: AttemptError) -> AttemptError {
        let mut error = match error {
            AttemptError::Rpc(error) => error,
            AttemptError::Malformed(what) => return AttemptError::Malformed(endpoint.scrub(&what)),
            other => return other,
        };
        error.message = endpoint.scrub(&error.message);
        let failed = |sent| AttemptError::Failed {
            detail: format!("error {}: {}", error.code, error.message),
            sent,
            outcome: Outcome::Failed,
        };
        match (self.judge)(&error) {
            Verdict::Behind => AttemptError::Behind(error.message),
            Verdict::Limited => AttemptError::Limited(RETRY_AFTER_DEFAULT),
            Verdict::NotServed => failed(false),
            Verdict::Failed => failed(true),
            Verdict::Request => AttemptError::Rpc(error),
        }
    }
}

/// What is remembered between the attempts of one call.
struct Call {
    deadline: Instant,
    round: u32,
    backoff: Duration,
    /// Whether an endpoint may have carried the request out.
    sent: bool,
    /// Whether an endpoint was behind in this round.
    behind: bool,
    detail: String,
    malformed: bool,
}

impl Call {
    fn new(timeout: Duration) -> Self {
        let now = Instant::now();
        let deadline = now.checked_add(timeout).unwrap_or(now);
        let detail = "every endpoint asks to be left alone".to_owned();
        Self { deadline, round: 0, backoff: BACKOFF_MIN, sent: false, behind: false, detail, malformed: false }
    }

    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    fn is_over(&self) -> bool {
        self.left().is_zero()
    }

    fn backoff(&mut self) -> Duration {
        let pause = self.backoff;
        self.backoff = pause.saturating_mul(2).min(BACKOFF_MAX);
        pause
    }

    fn note(&mut self, endpoint: &str, error: AttemptError) {
        self.malformed = matches!(error, AttemptError::Malformed(_));
        let detail = match error {
            AttemptError::Limited(pause) => format!("rate limited for {} ms", pause.as_millis()),
            AttemptError::Behind(detail) => {
                self.behind = true;
                detail
            }
            AttemptError::Failed { detail, sent, .. } => {
                self.sent |= sent;
                detail
            }
            AttemptError::Malformed(detail) => {
                self.sent = true;
                detail
            }
            AttemptError::Rpc(error) => error.message,
        };
        self.detail = format!("{endpoint}: {detail}");
    }

    fn end(self) -> CallError {
        if self.malformed { CallError::Malformed(self.detail) } else { CallError::Unavailable(self.detail) }
    }
}

fn http_client(connect_timeout: Duration) -> Result<HttpClient<Connector, Full<Bytes>>, RpcSetupError> {
    let connector = connector(connect_timeout).map_err(RpcSetupError::Tls)?;
    Ok(HttpClient::builder(Home::here())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(Duration::from_secs(60))
        .build(connector))
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow, default, deserialize_with = "present")]
    result: Option<&'a RawValue>,
    error: Option<RpcError>,
}

/// A result of `null` is one: a transaction that is not mined has that for a receipt.
fn present<'de: 'a, 'a, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'a RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, AttemptError> {
    let malformed = |error: serde_json::Error| AttemptError::Malformed(error.to_string());
    match serde_json::from_slice(bytes).map_err(malformed)? {
        Envelope { error: Some(error), .. } => Err(AttemptError::Rpc(error)),
        Envelope { result: Some(result), .. } => serde_json::from_str(result.get()).map_err(malformed),
        Envelope { .. } => Err(AttemptError::Malformed("neither a result nor an error".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_is_an_answer_and_silence_is_none() {
        assert_eq!(parse::<Option<u8>>(br#"{"jsonrpc":"2.0","id":1,"result":null}"#).ok(), Some(None));
        assert_eq!(parse::<Option<u8>>(br#"{"jsonrpc":"2.0","id":1,"result":7}"#).ok(), Some(Some(7)));
        assert!(matches!(parse::<u8>(br#"{"result":null}"#), Err(AttemptError::Malformed(_))));
        assert!(matches!(parse::<Option<u8>>(br#"{"jsonrpc":"2.0","id":1}"#), Err(AttemptError::Malformed(_))));
        let failed = br#"{"result":null,"error":{"code":-32000,"message":"no"}}"#;
        assert!(matches!(parse::<Option<u8>>(failed), Err(AttemptError::Rpc(_))));
    }
}
