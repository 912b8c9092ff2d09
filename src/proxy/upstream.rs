//! The innermost service: sends a request to an upstream and gives back what it answers.
//!
//! Owns the choice among an upstream's endpoints and the waits for them. Header hygiene is applied here, on the
//! way up and on the way down, so that no layer in front can forget it. Promises:
//!
//! - What an upstream answers comes back as `Ok`, whatever its status; everything else is `Err(Failure)`.
//! - A request is sent to a second endpoint only where the first could not be connected to, so that nothing of it was
//!   sent, and nothing of its body was taken. A connection that breaks later may have delivered the request: that is
//!   `Err(Failure::Broke)`, and repeating is the caller's decision. (A kept-alive connection that turns out to be closed
//!   before the request was begun on it is replaced; that too sends nothing twice.)
//! - Of several endpoints the less loaded of two random ones is taken (`tower::balance::p2c` over requests under way,
//!   response bodies included).
//! - Bodies stream both ways at once; an answer may begin before the request has ended.
//!
//! Of interim answers only `101 Switching Protocols` is passed on. Trailers pass; over HTTP/1.1 they need to be
//! announced by `Trailer`, and towards a client asked for by `TE: trailers`, because hyper writes no others.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, TE, UPGRADE};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version};
use http_body::Body as HttpBody;
use hyper::upgrade::OnUpgrade;
use parking_lot::Mutex;
use tower::Service;
use tower::balance::p2c::Balance;
use tower::discover::ServiceList;
use tower::load::TrackCompletion;
use tower::load::pending_requests::{Handle, PendingRequests};

use super::body::{Body, BoxError};
use super::drain::Tracker;
use super::endpoint::{Attempt, Connections, Endpoint, Health, NeedsHttp1, Pool};
use super::failure::{Failure, chain};
use super::front::Peer;
use super::headers::{self, Injected};
use super::lent::lend;
use super::upgrade;

/// How many endpoints a request is tried on.
const ATTEMPTS_MAX: usize = 3;

/// Where a request goes, as a request extension, where that is not the default upstream in the default time.
#[derive(Clone, Debug, Default)]
pub struct Destination {
    /// The upstream's name.
    pub upstream: Option<Arc<str>>,
    /// How long it may take to begin its answer.
    pub timeout: Option<Duration>,
}

/// One upstream: several endpoints that answer alike.
#[derive(Clone, Debug)]
pub struct UpstreamSettings {
    /// Its endpoints; at least one.
    pub endpoints: Vec<Endpoint>,
    /// Whether the upstream reads the client's `Host` or its own. `None` keeps the client's where all endpoints are
    /// `http://`, for those are neighbours, and gives them their own elsewhere, for those are found by it. The client's
    /// can be kept over HTTP/1.1 only, so `Some(true)` makes `https://` speak that, and `h2c://` always reads its own.
    pub preserve_host: Option<bool>,
    /// Whether what a client says of itself in `X-Forwarded-*` is believed.
    pub trust_forwarded: bool,
    /// For a connection: name, TCP and TLS.
    pub connect_timeout: Duration,
    /// For the head of the answer, from when the upstream has the whole request or takes no more of it.
    pub response_timeout: Duration,
    /// Between two pieces of a response body.
    pub response_idle: Duration,
    /// For an upgraded connection over which nothing moves.
    pub upgrade_idle: Duration,
    /// How long a connection is kept for the next request. Less than the 5 s after which Node.js closes it.
    pub keep_alive_idle: Duration,
    /// How many idle connections are kept, for each endpoint and thread.
    pub idle_connections_max: usize,
    /// The header fields of an answer, together.
    pub headers_bytes_max: usize,
    /// How long an endpoint that fails is left alone.
    pub eject_for: Duration,
    /// What is trusted under TLS; see [`client_config`](super::tls::client_config).
    pub tls: Arc<rustls::ClientConfig>,
}

impl UpstreamSettings {
    /// The defaults.
    #[must_use]
    pub fn new(endpoints: Vec<Endpoint>, tls: Arc<rustls::ClientConfig>) -> Self {
        Self {
            endpoints,
            preserve_host: None,
            trust_forwarded: false,
            connect_timeout: Duration::from_secs(3),
            response_timeout: Duration::from_secs(60),
            response_idle: Duration::from_secs(60),
            upgrade_idle: Duration::from_secs(600),
            keep_alive_idle: Duration::from_secs(4),
            idle_connections_max: 256,
            headers_bytes_max: 64 << 10,
            eject_for: Duration::from_secs(5),
            tls,
        }
    }
}

/// No upstream, or one without endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an upstream needs at least one endpoint")]
pub struct NoEndpoint;

/// All upstreams. A service for requests with any body; clones share the connections.
///
/// One is made for each serving thread, inside its runtime. From a request's extensions it reads [`Peer`],
/// [`Destination`], [`Injected`] and [`Tracker`]; each may be missing.
#[derive(Clone)]
pub struct Upstreams {
    default: Arc<Upstream>,
    named: Arc<HashMap<Arc<str>, Arc<Upstream>>>,
}

impl Upstreams {
    /// Prepares the upstreams; nothing is connected yet.
    ///
    /// # Errors
    /// Where one has no endpoint.
    pub fn new(
        default: &UpstreamSettings,
        named: impl IntoIterator<Item = (Arc<str>, UpstreamSettings)>,
    ) -> Result<Self, NoEndpoint> {
        let named: Result<HashMap<_, _>, NoEndpoint> = named
            .into_iter()
            .map(|(name, settings)| Upstream::new(&settings).map(|upstream| (name, Arc::new(upstream))))
            .collect();
        Ok(Self { default: Arc::new(Upstream::new(default)?), named: Arc::new(named?) })
    }

    fn find(&self, destination: &Destination) -> Result<Arc<Upstream>, Failure> {
        match &destination.upstream {
            None => Ok(self.default.clone()),
            Some(name) => self.named.get(name).cloned().ok_or_else(|| Failure::UnknownUpstream(name.clone())),
        }
    }
}

impl<B> Service<Request<B>> for Upstreams
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = Failure;
    type Future = Answering;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let mut request = request.map(Body::wrap);
        let destination: Destination = request.extensions_mut().remove().unwrap_or_default();
        match self.find(&destination) {
            Ok(upstream) => upstream.answer(request, destination.timeout),
            Err(failure) => Box::pin(std::future::ready(Err(failure))),
        }
    }
}

type Answering = Pin<Box<dyn Future<Output = Result<Response<Body>, Failure>> + Send>>;

/// One upstream with its connections.
struct Upstream {
    settings: UpstreamSettings,
    endpoints: Endpoints,
    can_upgrade: bool,
}

enum Endpoints {
    One(Box<Pool>),
    Several(Arc<Mutex<Balanced>>, Arc<[Arc<Health>]>),
}

type Balanced = Balance<ServiceList<Vec<PendingRequests<Pool, UntilTheBodyEnds>>>, Request<Body>>;

impl Upstream {
    fn new(settings: &UpstreamSettings) -> Result<Self, NoEndpoint> {
        let neighbours = settings.endpoints.iter().all(Endpoint::is_plain_http1);
        let connections = Connections {
            preserve_host: settings.preserve_host.unwrap_or(neighbours),
            connect_timeout: settings.connect_timeout,
            response_idle: settings.response_idle,
            idle: settings.keep_alive_idle,
            idle_max: settings.idle_connections_max,
            headers_max_bytes: settings.headers_bytes_max,
            eject_for: settings.eject_for,
            tls: settings.tls.clone(),
        };
        let mut pools: Vec<Pool> =
            settings.endpoints.iter().map(|endpoint| Pool::new(endpoint.clone(), &connections)).collect();
        let can_upgrade = pools.iter().all(Pool::can_upgrade);
        let health: Arc<[_]> = pools.iter().map(Pool::health).collect();
        let endpoints = match pools.pop() {
            None => return Err(NoEndpoint),
            Some(only) if pools.is_empty() => Endpoints::One(Box::new(only)),
            Some(last) => {
                pools.push(last);
                let counted = pools.into_iter().map(|pool| PendingRequests::new(pool, UntilTheBodyEnds)).collect();
                Endpoints::Several(
                    Arc::new(Mutex::new(Balance::new(ServiceList::new::<Request<Body>>(counted)))),
                    health,
                )
            }
        };
        Ok(Self { settings: settings.clone(), endpoints, can_upgrade })
    }

    /// Sends a request on its way at once, so that what waits for the answer need not hold it.
    fn answer(self: Arc<Self>, mut request: Request<Body>, timeout: Option<Duration>) -> Answering {
        let tracker = request.extensions().get::<Tracker>().cloned();
        let client = self.prepare(&mut request);
        let timeout = timeout.unwrap_or(self.settings.response_timeout);
        match &self.endpoints {
            Endpoints::One(pool) => {
                let (request, attempt) = attempt(request, timeout);
                let sent = pool.send(request, Some(attempt));
                Box::pin(async move { self.receive(sent.await?, client, tracker.as_ref()) })
            }
            Endpoints::Several(balance, health) => {
                let (balance, health) = (Arc::clone(balance), Arc::clone(health));
                Box::pin(async move {
                    let response = send(&balance, &health, request, timeout).await?;
                    self.receive(response, client, tracker.as_ref())
                })
            }
        }
    }

    /// Turns the client's request into ours. Where it asks to switch protocols, returns the client's side of that.
    fn prepare(&self, request: &mut Request<Body>) -> Option<OnUpgrade> {
        let extensions = request.extensions_mut();
        let peer: Option<Peer> = extensions.remove();
        let injected: Option<Injected> = extensions.remove();
        let client: Option<OnUpgrade> = extensions.remove();
        extensions.clear();
        let may_switch = self.can_upgrade && client.is_some() && request.version() == Version::HTTP_11;
        let protocol = may_switch.then(|| headers::upgrade_of(request.headers())).flatten();

        let headers = request.headers_mut();
        headers::strip_request(headers);
        if let Some(peer) = peer {
            headers::forwarded(headers, peer.address.ip(), peer.tls, self.settings.trust_forwarded);
        }
        for (name, value) in injected.into_iter().flat_map(|Injected(fields)| fields) {
            headers.insert(name, value);
        }
        let protocol = protocol?;
        headers.remove(TE);
        switch_to(headers, protocol);
        request.extensions_mut().insert(NeedsHttp1);
        client
    }

    /// Turns the upstream's response into ours.
    fn receive(
        &self,
        mut response: Response<Body>,
        client: Option<OnUpgrade>,
        tracker: Option<&Tracker>,
    ) -> Result<Response<Body>, Failure> {
        let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        let protocol = response.headers().get(UPGRADE).cloned();
        let upstream = switched.then(|| hyper::upgrade::on(&mut response));
        headers::strip_response(response.headers_mut());
        response.extensions_mut().clear();
        *response.version_mut() = Version::HTTP_11;
        let Some(upstream) = upstream else { return Ok(response) };
        let (Some(client), Some(protocol)) = (client, protocol) else {
            let upstream = self.settings.endpoints.first().map_or_else(Arc::default, Endpoint::text);
            return Err(Failure::Broke { upstream, source: "it switched protocols without being asked".into() });
        };
        switch_to(response.headers_mut(), protocol);
        upgrade::join(client, upstream, self.settings.upgrade_idle, tracker);
        Ok(response)
    }
}

fn switch_to(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, protocol);
}

/// Sends a request to one of several endpoints, and to another too where the first did not get to see it.
async fn send(
    balance: &Mutex<Balanced>,
    health: &[Arc<Health>],
    request: Request<Body>,
    timeout: Duration,
) -> Result<Response<Body>, Failure> {
    let (head, mut body) = request.into_parts();
    let mut left = health.len().min(ATTEMPTS_MAX);
    loop {
        left = left.saturating_sub(1);
        let (mut request, attempt) = attempt(Request::from_parts(head.clone(), body), timeout);
        let loan = attempt.loan.clone();
        request.extensions_mut().insert(attempt);
        let failure = match choose(balance, health, request).await {
            Err(failure) if failure.is_unsent() && left > 0 => failure,
            answer => return answer,
        };
        body = match loan.reclaim() {
            Some(body) => body,
            None => return Err(failure),
        };
        tracing::warn!(cause = chain(&failure), "an endpoint is left alone for a while: check that it runs");
    }
}

/// Lends the body to an endpoint.
fn attempt(request: Request<Body>, timeout: Duration) -> (Request<Body>, Attempt) {
    let (head, body) = request.into_parts();
    let (body, loan) = lend(body);
    (Request::from_parts(head, body), Attempt { loan, timeout })
}

/// Sends a request to an endpoint that is not left alone, or to any if all are.
async fn choose(
    balance: &Mutex<Balanced>,
    health: &[Arc<Health>],
    request: Request<Body>,
) -> Result<Response<Body>, Failure> {
    let mut request = Some(request);
    let call = std::future::poll_fn(|cx| {
        let mut balance = balance.lock();
        let mut ready = balance.poll_ready(cx);
        if ready.is_pending() {
            health.iter().for_each(|health| health.restore());
            ready = balance.poll_ready(cx);
        }
        let call = match (ready, request.take()) {
            (Poll::Ready(Ok(())), Some(request)) => Ok(balance.call(request)),
            (Poll::Ready(Err(error)), _) => Err(error),
            (Poll::Pending, _) | (_, None) => Err("no endpoint is ready, which cannot be".into()),
        };
        Poll::Ready(call)
    });
    Ok(call.await?.await?)
}

/// Counts a request as under way until its response body has ended.
#[derive(Clone, Copy)]
struct UntilTheBodyEnds;

impl TrackCompletion<Handle, Response<Body>> for UntilTheBodyEnds {
    type Output = Response<Body>;

    fn track_completion(&self, handle: Handle, response: Response<Body>) -> Response<Body> {
        response.map(|body| body.holding(handle))
    }
}
