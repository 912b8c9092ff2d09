//! One facilitator elsewhere: where it is, how long it may take, and one exchange with it.

use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioTimer;
use parking_lot::Mutex;
use tokio::time::timeout;

use super::answer::{Answered, Failure, Reached};
use super::handover::Payload;
use super::{CONNECT_TIMEOUT, HttpFacilitatorError, Outcome, RemoteOptions, SUPPORTED_TIMEOUT};
use crate::facilitator::interface::{Payment, Supported};
use crate::http_client::endpoint::Endpoint;
use crate::http_client::home::Home;
use crate::http_client::{Connector, causes, connector, read, retry_after};

/// The longest answer that is read.
const ANSWER_BYTES_MAX: usize = 256 * 1024;

/// What a facilitator is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    Supported,
    Verify,
    Settle,
}

impl Call {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Supported => "supported",
            Self::Verify => "verify",
            Self::Settle => "settle",
        }
    }
}

/// Connections to all facilitators.
pub(super) struct Http {
    /// Connections that are kept open.
    kept: Client<Connector, Payload>,
    /// A connection of its own for each request: one that is kept may have been closed by the other side unseen, and a
    /// settlement that is written to it is in doubt for nothing.
    fresh: Client<Connector, Payload>,
}

impl Http {
    pub(super) fn new() -> Result<Self, HttpFacilitatorError> {
        let connector = connector(CONNECT_TIMEOUT).map_err(HttpFacilitatorError::Tls)?;
        let mut builder = Client::builder(Home::here());
        builder.pool_timer(TokioTimer::new()).pool_idle_timeout(Duration::from_secs(60));
        let kept = builder.build(connector.clone());
        let fresh = builder.pool_max_idle_per_host(0).build(connector);
        Ok(Self { kept, fresh })
    }
}

/// One facilitator.
pub(super) struct Remote {
    pub endpoint: Endpoint,
    /// `/supported`, `/verify` and `/settle` below its URL.
    addresses: [Uri; 3],
    headers: HeaderMap,
    verify_timeout: Duration,
    settle_timeout: Duration,
    /// What it said last that it serves.
    pub supported: Mutex<Option<Supported>>,
}

impl Remote {
    /// Checks where a facilitator is and what is sent along. `number` counts from one.
    pub(super) fn new(number: usize, options: &RemoteOptions) -> Result<Self, HttpFacilitatorError> {
        let wrong = |what| HttpFacilitatorError::Facilitator { number, what };
        let mut endpoint = Endpoint::parse(&options.url).map_err(|bad| wrong(bad.0))?;
        if endpoint.uri.query().is_some() {
            return Err(wrong("has a query, to which no path can be added"));
        }
        let base = endpoint.uri.to_string();
        let address = |call: Call| format!("{}/{}", base.trim_end_matches('/'), call.as_str()).parse();
        let address = |call| address(call).map_err(|_| wrong("is not a URL to which a path can be added"));
        let addresses = [address(Call::Supported)?, address(Call::Verify)?, address(Call::Settle)?];
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("turnpike/", env!("CARGO_PKG_VERSION"))));
        if let Some(authorization) = &endpoint.authorization {
            headers.insert(http::header::AUTHORIZATION, authorization.clone());
        }
        for (name, value) in &options.headers {
            let mut value = value.clone();
            value.set_sensitive(true);
            if let Ok(text) = value.to_str() {
                // A token as well as its scheme and token, since either may be echoed.
                text.split(' ').for_each(|part| endpoint.hide(part));
            }
            headers.insert(name, value);
        }
        let (verify_timeout, settle_timeout) = (options.verify_timeout, options.settle_timeout);
        Ok(Self { endpoint, addresses, headers, verify_timeout, settle_timeout, supported: Mutex::default() })
    }

    /// Whether it may serve a payment: it does, or it has not said what it serves.
    pub(super) fn may_serve(&self, payment: &Payment) -> bool {
        let text = |key: &str| payment.requirements.get(key).and_then(|value| value.as_str()).unwrap_or_default();
        let (scheme, network) = (text("scheme"), text("network"));
        self.supported.lock().as_ref().is_none_or(|supported| {
            supported.kinds.iter().any(|kind| {
                kind.x402_version == payment.x402_version && kind.scheme == scheme && kind.network == network
            })
        })
    }

    /// One exchange. An answer of whatever kind is `Ok`.
    pub(super) async fn exchange(&self, http: &Http, call: Call, body: Bytes) -> Result<Answered, Failure> {
        let (method, client, whole) = match call {
            Call::Supported => (Method::GET, &http.kept, SUPPORTED_TIMEOUT),
            Call::Verify => (Method::POST, &http.kept, self.verify_timeout),
            Call::Settle => (Method::POST, &http.fresh, self.settle_timeout),
        };
        let [supported, verify, settle] = &self.addresses;
        let address = match call {
            Call::Supported => supported,
            Call::Verify => verify,
            Call::Settle => settle,
        };
        let (payload, handover) = Payload::new(body);
        let mut request = Request::new(payload);
        *request.method_mut() = method;
        *request.uri_mut() = address.clone();
        *request.headers_mut() = self.headers.clone();
        if call != Call::Supported {
            request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        let exchange = async {
            let response = client.request(request).await.map_err(|error| causes(&error))?;
            let (status, retry_after) = (response.status(), retry_after(response.headers()));
            Ok::<_, String>(Answered { status, retry_after, body: read(response, ANSWER_BYTES_MAX).await })
        };
        let mut exchange = pin!(exchange);
        let connecting = CONNECT_TIMEOUT.min(whole);
        let unsent = |outcome, detail| Err(Failure::of(Reached::No, outcome, detail));
        let result = match timeout(connecting, &mut exchange).await {
            Ok(result) => result,
            Err(_) if handover.withdraw() => {
                return unsent(Outcome::Unreachable, format!("no connection within {} ms", connecting.as_millis()));
            }
            Err(_) => timeout(whole.saturating_sub(connecting), &mut exchange).await.map_err(|_| {
                let detail = format!("no answer within {} ms", whole.as_millis());
                Failure::of(Reached::Perhaps, Outcome::TimedOut, detail)
            })?,
        };
        match result {
            Ok(answered) => Ok(answered),
            Err(detail) if handover.withdraw() => unsent(Outcome::Unreachable, detail),
            Err(detail) => Err(Failure::of(Reached::Perhaps, Outcome::Failed, detail)),
        }
    }
}

impl RemoteOptions {
    /// A facilitator at a URL, with the default waits and no headers.
    #[must_use]
    pub fn at(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            headers: Vec::new(),
            verify_timeout: super::VERIFY_TIMEOUT_DEFAULT,
            settle_timeout: super::SETTLE_TIMEOUT_DEFAULT,
        }
    }

    /// The same, with a header that is sent along.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }
}
