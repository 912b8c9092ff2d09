//! A compliance list behind HTTP: a service is asked about each payer, and what it says is kept for a while.
//!
//! `GET` of the service's URL with the payer's address in it; the answer is JSON in which one place says whether the
//! payer is listed: `true` or `false`, or a list of findings that is empty where there are none. Anything else is no
//! answer. Promises: one question about a payer at a time and [`LANES`] in all; an answer within twice the timeout; a
//! service that keeps failing is left alone for a moment. A payer that was listed stays so while nobody can be asked.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{ACCEPT, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::Empty;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioTimer;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::time::{Instant, timeout};

use super::{PAYER, Screen, Verdict};
use crate::http_client::endpoint::Endpoint;
use crate::http_client::home::Home;
use crate::http_client::{Connector, RETRY_AFTER_DEFAULT, causes, connector, read, retry_after};
use crate::telemetry::Telemetry;
use crate::x402::Account;

/// How many questions may be asked at once.
pub const LANES: usize = 64;
/// The longest answer that is read.
const ANSWER_BYTES_MAX: usize = 256 * 1024;
/// How many answers are kept.
const KEPT_MAX: usize = 100_000;
/// After so many failures in a row the service is left alone for [`COOL_DOWN`].
const FAILURES_MAX: u32 = 3;
const COOL_DOWN: Duration = Duration::from_secs(5);

/// How a service is asked.
pub struct HttpScreenOptions {
    /// Its URL, with [`PAYER`] in it.
    pub url: String,
    /// What goes with each request.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// How long an answer may take.
    pub timeout: Duration,
    /// How long an answer holds.
    pub keep: Duration,
    /// The place in the answer that says it, as a JSON pointer (RFC 6901).
    pub listed_at: String,
    /// Whether payers are refused while nobody can be asked.
    pub refuse_unknown: bool,
}

/// A service that cannot be asked. The text says what is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the screening service {0}")]
pub struct HttpScreenError(String);

/// A service.
pub struct HttpScreen {
    client: Client<Connector, Empty<Bytes>>,
    endpoint: Endpoint,
    /// What stands before and behind the payer's address.
    address: (String, String),
    headers: HeaderMap,
    options: HttpScreenOptions,
    kept: Mutex<HashMap<Account, Kept>>,
    /// Who asks about a payer holds its lane.
    lanes: Vec<tokio::sync::Mutex<()>>,
    hasher: RandomState,
    telemetry: Arc<Telemetry>,
}

#[derive(Clone, Copy)]
struct Kept {
    listed: bool,
    until: Instant,
}

impl HttpScreen {
    /// A client of a service.
    ///
    /// # Errors
    /// [`HttpScreenError`].
    pub fn new(options: HttpScreenOptions, telemetry: Arc<Telemetry>) -> Result<Arc<Self>, HttpScreenError> {
        let wrong = |what: &str| HttpScreenError(what.to_owned());
        let (before, behind) = options.url.split_once(PAYER).ok_or_else(|| wrong("has no {payer} in its URL"))?;
        let address = (before.to_owned(), behind.to_owned());
        let mut endpoint = Endpoint::parse(&options.url.replace(PAYER, "payer")).map_err(|bad| wrong(bad.0))?;
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("turnpike/", env!("CARGO_PKG_VERSION"))));
        for (name, value) in &options.headers {
            if let Ok(text) = value.to_str() {
                text.split(' ').for_each(|part| endpoint.hide(part));
            }
            headers.insert(name, value.clone());
        }
        let connector = connector(options.timeout).map_err(|why| HttpScreenError(format!("has no TLS: {why}")))?;
        let mut builder = Client::builder(Home::here());
        let client = builder.pool_timer(TokioTimer::new()).build(connector);
        Ok(Arc::new(Self {
            client,
            endpoint,
            address,
            headers,
            options,
            kept: Mutex::default(),
            lanes: std::iter::repeat_with(tokio::sync::Mutex::default).take(LANES).collect(),
            hasher: RandomState::new(),
            telemetry,
        }))
    }

    /// What is known of a payer, or why it is not.
    async fn listed(&self, payer: &Account) -> Result<bool, String> {
        if let Some(listed) = self.fresh(payer) {
            return Ok(listed);
        }
        let lane = usize::try_from(self.hasher.hash_one(payer)).unwrap_or_default() % LANES;
        let lane = timeout(self.options.timeout, self.lanes[lane].lock()).await;
        let _lane = lane.map_err(|_| "too many payers are being asked about".to_owned())?;
        // Who had the lane before may have asked about the same.
        if let Some(listed) = self.fresh(payer) {
            return Ok(listed);
        }
        let now = Instant::now();
        if !self.endpoint.is_healthy(now) || self.endpoint.barred_for(now).is_some() {
            return Err("it failed a moment ago and is left alone".to_owned());
        }
        let asked = timeout(self.options.timeout, self.ask(payer)).await;
        let asked = asked.unwrap_or_else(|_| Err(format!("no answer in {} ms", self.options.timeout.as_millis())));
        match asked {
            Ok(listed) => {
                self.endpoint.succeeded();
                self.keep(*payer, listed);
                Ok(listed)
            }
            Err(why) => {
                let why = self.endpoint.scrub(&why);
                self.endpoint.failed(&why, FAILURES_MAX, COOL_DOWN);
                Err(why)
            }
        }
    }

    async fn ask(&self, payer: &Account) -> Result<bool, String> {
        let (before, behind) = &self.address;
        let uri: Uri = format!("{before}{payer}{behind}").parse().map_err(|_| "its URL cannot be asked".to_owned())?;
        let mut request = Request::new(Empty::new());
        *request.method_mut() = Method::GET;
        *request.uri_mut() = uri;
        *request.headers_mut() = self.headers.clone();
        let response = self.client.request(request).await.map_err(|error| causes(&error))?;
        let status = response.status();
        if status == StatusCode::TOO_MANY_REQUESTS {
            self.endpoint.bar(retry_after(response.headers()).unwrap_or(RETRY_AFTER_DEFAULT));
        }
        if status != StatusCode::OK {
            return Err(format!("answered {status}"));
        }
        let body = read(response, ANSWER_BYTES_MAX).await?;
        let answer: Value = serde_json::from_slice(&body).map_err(|_| "its answer is not JSON".to_owned())?;
        match answer.pointer(&self.options.listed_at) {
            Some(Value::Bool(listed)) => Ok(*listed),
            Some(Value::Array(findings)) => Ok(!findings.is_empty()),
            Some(_) | None => {
                Err(format!("its answer has neither true, false nor a list at {}", self.options.listed_at))
            }
        }
    }

    fn fresh(&self, payer: &Account) -> Option<bool> {
        let kept = self.kept.lock().get(payer).copied()?;
        (kept.until > Instant::now()).then_some(kept.listed)
    }

    fn was_listed(&self, payer: &Account) -> bool {
        self.kept.lock().get(payer).is_some_and(|kept| kept.listed)
    }

    fn keep(&self, payer: Account, listed: bool) {
        let now = Instant::now();
        let mut kept = self.kept.lock();
        if kept.len() >= KEPT_MAX && !kept.contains_key(&payer) {
            kept.retain(|_, kept| kept.listed || kept.until > now);
            if kept.len() >= KEPT_MAX {
                // What is not kept is asked again.
                kept.retain(|_, kept| kept.listed);
            }
            if kept.len() >= KEPT_MAX {
                return;
            }
        }
        let until = now.checked_add(self.options.keep).unwrap_or(now);
        kept.insert(payer, Kept { listed, until });
    }
}

#[async_trait]
impl Screen for HttpScreen {
    async fn screen(&self, payer: &Account) -> Verdict {
        let (outcome, verdict) = match self.listed(payer).await {
            Ok(false) => ("clear", Verdict::Clear),
            Ok(true) => ("listed", Verdict::Listed),
            Err(why) => {
                let verdict = match (self.was_listed(payer), self.options.refuse_unknown) {
                    (true, _) => Verdict::Listed,
                    (false, true) => Verdict::Unknown,
                    (false, false) => Verdict::Clear,
                };
                tracing::warn!(service = %self.endpoint.name, %payer, ?verdict, %why, "a payer could not be screened");
                ("unavailable", verdict)
            }
        };
        self.telemetry.screenings.with_label_values(&["service", outcome]).inc();
        verdict
    }
}
