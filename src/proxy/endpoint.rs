//! One address of an upstream: its connections, and whether it can be relied on.
//!
//! Owns the address syntax and what connects to it. `http://` is HTTP/1.1 with keep-alive (`direct.rs`); `https://` is
//! HTTP/2 or HTTP/1.1 as ALPN decides; `h2c://` is HTTP/2 in the clear with prior knowledge. Promises that a failure
//! to connect is told from a failure after something was sent, and that an endpoint which fails is left alone for a
//! while.

use std::future::Future;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_util::TryFutureExt;
use futures_util::future::Either;
use http::header::{CONNECTION, HOST, TE};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Request, Response, Uri, Version};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Client, Error as ClientError};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use parking_lot::Mutex;
use tokio::time::{Instant, Sleep};
use tower::Service;

use super::body::{Body, Bounded, BoxError, Sender};
use super::direct::{Direct, DirectError, Keeping, Received};
use super::failure::Failure;
use super::lent::Loan;
use super::reading_on::ReadingOn;

/// Failures in a row, other than to connect, after which an endpoint is left alone.
const FAILURES_MAX: u32 = 5;

/// Where an upstream is: `http://`, `https://` or `h2c://`, host, port, and optionally a path that goes in front.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    scheme: Scheme,
    prior_knowledge: bool,
    authority: Authority,
    prefix: Arc<str>,
    text: Arc<str>,
}

/// Why a text is not an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no upstream: {problem}. Write http://host:port, https://host or h2c://host:port")]
pub struct EndpointError {
    text: String,
    problem: &'static str,
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let refuse = |problem| EndpointError { text: text.to_owned(), problem };
        let uri: Uri = text.parse().map_err(|_| refuse("it is no URL"))?;
        let (scheme, prior_knowledge) = match uri.scheme_str() {
            Some("http") => (Scheme::HTTP, false),
            Some("https") => (Scheme::HTTPS, false),
            Some("h2c") => (Scheme::HTTP, true),
            Some(_) => return Err(refuse("its scheme is not known")),
            None => return Err(refuse("it has no scheme")),
        };
        let authority = uri.authority().filter(|authority| !authority.host().is_empty());
        let authority = authority.ok_or_else(|| refuse("it has no host"))?.clone();
        if authority.as_str().contains('@') {
            return Err(EndpointError {
                text: "(not shown)".into(),
                problem: "it carries a user or password, which are not sent",
            });
        }
        if uri.query().is_some() || text.contains('#') {
            return Err(refuse("a query or fragment has no place in it"));
        }
        let prefix = uri.path().trim_end_matches('/').into();
        Ok(Self { scheme, prior_knowledge, authority, prefix, text: text.into() })
    }
}

impl Endpoint {
    /// Whether it is reached in the clear with HTTP/1.1, as a neighbour of the proxy usually is.
    #[must_use]
    pub fn is_plain_http1(&self) -> bool {
        self.scheme == Scheme::HTTP && !self.prior_knowledge
    }

    /// As it was written.
    #[must_use]
    pub fn text(&self) -> Arc<str> {
        self.text.clone()
    }

    /// The request target at this endpoint.
    fn target(&self, uri: &Uri) -> Result<PathAndQuery, Failure> {
        match (&*self.prefix, uri.path_and_query()) {
            ("", Some(target)) => Ok(target.clone()),
            (prefix, target) => {
                let target = target.map_or("/", PathAndQuery::as_str);
                let target = format!("{prefix}{target}").parse::<PathAndQuery>();
                target.map_err(|_| Failure::BadRequest("the request target is malformed"))
            }
        }
    }

    /// The same with where the endpoint is.
    fn absolute(&self, target: PathAndQuery) -> Result<Uri, Failure> {
        let uri = Uri::builder().scheme(self.scheme.clone()).authority(self.authority.clone()).path_and_query(target);
        uri.build().map_err(|_| Failure::BadRequest("the request target is malformed"))
    }

    /// Its own name in `Host`; the port is said where it is not the usual one.
    fn host(&self) -> Option<HeaderValue> {
        let authority = match self.authority.port_u16() {
            Some(80) => self.authority.host(),
            _ => self.authority.as_str(),
        };
        HeaderValue::from_str(authority).ok()
    }
}

/// How connections to an endpoint are made and kept.
#[derive(Clone, Debug)]
pub(crate) struct Connections {
    pub(crate) preserve_host: bool,
    pub(crate) connect_timeout: Duration,
    pub(crate) response_idle: Duration,
    pub(crate) idle: Duration,
    pub(crate) idle_max: usize,
    pub(crate) headers_max_bytes: usize,
    pub(crate) eject_for: Duration,
    pub(crate) tls: Arc<rustls::ClientConfig>,
}

pub(crate) type Connector = ConnectTimeout<HttpsConnector<HttpConnector>>;

/// An endpoint with its pool. Ready unless it is left alone; see [`Health`].
pub(crate) struct Pool {
    endpoint: Endpoint,
    preserve_host: bool,
    response_idle: Duration,
    always_http1: bool,
    way: Way,
    health: Arc<Health>,
    timer: Option<Pin<Box<Sleep>>>,
}

/// What connects to an endpoint.
enum Way {
    /// In the clear over HTTP/1.1.
    Direct(Direct),
    /// Over TLS or HTTP/2.
    Client(Box<Clients>),
}

struct Clients {
    client: Client<Connector, Body>,
    /// For upgrades, which HTTP/2 does not have; the same one where HTTP/1.1 is all it speaks.
    http1: Option<Client<Connector, Body>>,
}

/// What a request brings along for the endpoint that it is tried on; a request extension.
#[derive(Clone, Debug)]
pub(crate) struct Attempt {
    pub(crate) loan: Loan,
    pub(crate) timeout: Duration,
}

/// A request to switch protocols needs an HTTP/1.1 connection; a request extension.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NeedsHttp1;

impl Pool {
    pub(crate) fn new(endpoint: Endpoint, connections: &Connections) -> Self {
        // HTTP/2 says the host once, as `:authority`, by which connections are pooled too. So a foreign Host can be
        // kept over HTTP/1.1 only.
        let may_http2 = endpoint.scheme == Scheme::HTTPS && !connections.preserve_host;
        let way = match direct(&endpoint, connections) {
            Some(direct) => Way::Direct(direct),
            None => {
                let client = client(connections, may_http2, endpoint.prior_knowledge);
                let http1 = match (may_http2, endpoint.prior_knowledge) {
                    (true, _) => Some(self::client(connections, false, false)),
                    (false, false) => Some(client.clone()),
                    (false, true) => None,
                };
                Way::Client(Box::new(Clients { client, http1 }))
            }
        };
        let preserve_host = connections.preserve_host && !endpoint.prior_knowledge;
        let health = Arc::new(Health { eject_for: connections.eject_for, state: Mutex::default() });
        let always_http1 = !may_http2 && !endpoint.prior_knowledge;
        let response_idle = connections.response_idle;
        Self { endpoint, preserve_host, response_idle, always_http1, way, health, timer: None }
    }

    pub(crate) fn health(&self) -> Arc<Health> {
        self.health.clone()
    }

    pub(crate) fn can_upgrade(&self) -> bool {
        match &self.way {
            Way::Direct(_) => true,
            Way::Client(clients) => clients.http1.is_some(),
        }
    }

    /// Makes the request one for this endpoint, but for its target.
    fn address(&self, mut request: Request<Body>) -> Request<Body> {
        if !self.preserve_host {
            request.headers_mut().remove(HOST);
        }
        // HTTP/2 connections are made to speak it by the client; what the request says counts for HTTP/1 only.
        *request.version_mut() = Version::HTTP_11;
        if self.always_http1 && request.headers().contains_key(TE) {
            request.headers_mut().insert(CONNECTION, HeaderValue::from_static("te"));
        }
        request
    }
}

impl Service<Request<Body>> for Pool {
    type Response = Response<Body>;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Failure>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        let Some(until) = self.health.ejected_until(cx) else { return Poll::Ready(Ok(())) };
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        timer.as_mut().reset(until);
        timer.as_mut().poll(cx).map(Ok)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let attempt: Option<Attempt> = request.extensions_mut().remove();
        Box::pin(self.send(request, attempt))
    }
}

impl Pool {
    fn ask(
        &self,
        request: Request<Body>,
    ) -> Result<impl Future<Output = Result<Response<Received>, Unanswered>> + Send + use<>, Failure> {
        let target = self.endpoint.target(request.uri())?;
        let mut request = self.address(request);
        let Clients { client, http1 } = match &self.way {
            Way::Direct(direct) => {
                let answer = direct.clone().request(request, target);
                return Ok(Either::Left(answer.map_err(Unanswered::Direct)));
            }
            Way::Client(clients) => &**clients,
        };
        *request.uri_mut() = self.endpoint.absolute(target)?;
        let client = match (request.extensions().get::<NeedsHttp1>(), http1) {
            (Some(_), Some(client)) => client,
            _ => client,
        };
        let answer = client.request(request).map_ok(|response| response.map(Received::from));
        Ok(Either::Right(answer.map_err(Unanswered::Client)))
    }

    /// Sends a request, whether the endpoint is left alone or not.
    pub(crate) fn send(
        &self,
        request: Request<Body>,
        attempt: Option<Attempt>,
    ) -> impl Future<Output = Result<Response<Body>, Failure>> + Send + use<> {
        let health = self.health.clone();
        let upstream = self.endpoint.text.clone();
        let answer = self.ask(request);
        let idle = self.response_idle;
        async move {
            let answer = answer?;
            let answer = tokio::select! {
                biased;
                answer = answer => answer.map_err(|error| {
                    let faulty = attempt.as_ref().and_then(|attempt| attempt.loan.fault());
                    faulty.unwrap_or_else(|| error.at(upstream))
                }),
                after = exhausted(attempt.as_ref()) => Err(Failure::ResponseTimeout { upstream, after }),
            };
            match &answer {
                Ok(_) => health.succeeded(),
                Err(failure) if failure.is_upstreams() => health.failed(failure.is_unsent()),
                Err(_) => {}
            }
            Ok(answer?.map(|body| Body::wrap(Bounded::new(body, Sender::Upstream, None, idle))))
        }
    }
}

/// Ends when an endpoint has been given enough time.
async fn exhausted(attempt: Option<&Attempt>) -> Duration {
    let Some(&Attempt { ref loan, timeout }) = attempt else { return std::future::pending().await };
    loan.exhausted(timeout).await;
    timeout
}

/// Whether an endpoint can be relied on.
///
/// An endpoint to which no connection can be made is left alone for a time, and so is one that breaks off or does not
/// answer several times in a row. After that it is tried again. If all are left alone, all are tried.
#[derive(Debug)]
pub(crate) struct Health {
    eject_for: Duration,
    state: Mutex<HealthState>,
}

#[derive(Debug, Default)]
struct HealthState {
    failures: u32,
    until: Option<Instant>,
    waker: Option<Waker>,
}

impl Health {
    fn ejected_until(&self, cx: &Context<'_>) -> Option<Instant> {
        let mut state = self.state.lock();
        let until = state.until.filter(|until| Instant::now() < *until)?;
        state.waker = Some(cx.waker().clone());
        Some(until)
    }

    fn succeeded(&self) {
        self.state.lock().failures = 0;
    }

    /// Notes a failure; `unreachable` ejects at once.
    pub(crate) fn failed(&self, unreachable: bool) {
        let mut state = self.state.lock();
        state.failures = state.failures.saturating_add(1);
        if unreachable || state.failures >= FAILURES_MAX {
            state.failures = 0;
            state.until = Instant::now().checked_add(self.eject_for);
        }
    }

    /// Ends the time for which it is left alone.
    pub(crate) fn restore(&self) {
        let mut state = self.state.lock();
        state.until = None;
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
    }
}

/// Bounds the whole way to a connection: name, TCP and TLS.
#[derive(Clone)]
pub(crate) struct ConnectTimeout<C> {
    inner: C,
    after: Duration,
}

#[derive(Debug, thiserror::Error)]
#[error("no connection within {0:?}")]
struct ConnectTimedOut(Duration);

impl<C> Service<Uri> for ConnectTimeout<C>
where
    C: Service<Uri, Error = BoxError>,
    C::Future: Send + 'static,
{
    type Response = ReadingOn<C::Response>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<ReadingOn<C::Response>, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (connect, after) = (self.inner.call(uri), self.after);
        Box::pin(async move {
            let connected = tokio::time::timeout(after, connect).await.map_err(|_| ConnectTimedOut(after))?;
            connected.map(ReadingOn::new)
        })
    }
}

fn connector(connections: &Connections, may_http2: bool) -> Connector {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(Duration::from_secs(60)));
    let builder = HttpsConnectorBuilder::new().with_tls_config((*connections.tls).clone()).https_or_http();
    let inner = if may_http2 {
        builder.enable_all_versions().wrap_connector(tcp)
    } else {
        builder.enable_http1().wrap_connector(tcp)
    };
    ConnectTimeout { inner, after: connections.connect_timeout }
}

/// hyper reads no head with less than this.
fn head_bytes_max(connections: &Connections) -> usize {
    connections.headers_max_bytes.max(8 << 10)
}

fn client(connections: &Connections, may_http2: bool, prior_knowledge: bool) -> Client<Connector, Body> {
    Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(connections.idle)
        .pool_max_idle_per_host(connections.idle_max)
        .http1_max_buf_size(head_bytes_max(connections))
        .http2_max_header_list_size(u32::try_from(connections.headers_max_bytes).unwrap_or(u32::MAX))
        .http2_only(prior_knowledge)
        .http2_keep_alive_interval(Duration::from_secs(30))
        .http2_keep_alive_timeout(Duration::from_secs(20))
        .build(connector(connections, may_http2))
}

/// For an endpoint that is asked in the clear over HTTP/1.1.
fn direct(endpoint: &Endpoint, connections: &Connections) -> Option<Direct> {
    if !endpoint.is_plain_http1() {
        return None;
    }
    let address = endpoint.absolute(PathAndQuery::from_static("/")).ok()?;
    let keeping =
        Keeping { idle: connections.idle, idle_max: connections.idle_max, head_bytes_max: head_bytes_max(connections) };
    Some(Direct::new(connector(connections, false), address, endpoint.host()?, keeping))
}

/// Why there is no answer.
enum Unanswered {
    Direct(DirectError),
    Client(ClientError),
}

impl Unanswered {
    fn at(self, upstream: Arc<str>) -> Failure {
        let source: BoxError = match self {
            Self::Direct(DirectError::Broke(error)) => return Failure::Broke { upstream, source: error.into() },
            Self::Client(error) if !error.is_connect() => return Failure::Broke { upstream, source: error.into() },
            Self::Direct(DirectError::Connect(error)) => error,
            Self::Client(error) => error.into(),
        };
        let first: &(dyn std::error::Error + 'static) = &*source;
        let mut causes = std::iter::successors(Some(first), |error| error.source());
        match causes.find_map(|cause| cause.downcast_ref::<ConnectTimedOut>()) {
            Some(ConnectTimedOut(after)) => Failure::ConnectTimeout { upstream, after: *after },
            None => Failure::Connect { upstream, source },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_waits_for_an_answer_is_small() {
        let second = Duration::from_secs(1);
        let connections = Connections {
            preserve_host: true,
            connect_timeout: second,
            response_idle: second,
            idle: second,
            idle_max: 1,
            headers_max_bytes: 8 << 10,
            eject_for: second,
            tls: Arc::new(crate::proxy::tls::client_config(None).unwrap()),
        };
        for endpoint in ["http://127.0.0.1:1", "https://127.0.0.1:1"] {
            let pool = Pool::new(endpoint.parse().unwrap(), &connections);
            let bytes = size_of_val(&pool.send(Request::new(Body::empty()), None));
            assert!(bytes <= 3072, "{endpoint}: {bytes}");
        }
    }

    #[test]
    fn endpoints_as_written() {
        let target = |endpoint: &str, path: &str| {
            let endpoint = endpoint.parse::<Endpoint>().unwrap();
            endpoint.absolute(endpoint.target(&path.parse().unwrap()).unwrap()).unwrap().to_string()
        };
        assert_eq!(target("http://127.0.0.1:3000", "/a?b=c"), "http://127.0.0.1:3000/a?b=c");
        assert_eq!(target("http://127.0.0.1:3000/", "/a"), "http://127.0.0.1:3000/a");
        assert_eq!(target("https://api.test/v1/", "/a%2Fb?x"), "https://api.test/v1/a%2Fb?x");
        assert_eq!(target("h2c://[::1]:1", "http://other/a"), "http://[::1]:1/a");
    }

    #[test]
    fn texts_that_are_no_endpoint() {
        for text in ["", "127.0.0.1:3000", "/a", "ftp://a", "http://", "http://a/?q", "http://a/#f", "http:// a"] {
            assert!(text.parse::<Endpoint>().is_err(), "{text}");
        }
        let error = "http://me:secret@a".parse::<Endpoint>().unwrap_err().to_string();
        assert!(!error.contains("secret"), "{error}");
    }
}
