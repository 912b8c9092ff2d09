//! What stands around the gate in the standalone proxy: a request id, metrics and a log line outside; outside's route
//! and the payer's headers handed to the upstream inside.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Instant;

use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use tower::Service;
use tracing::Instrument;

use crate::gate::route::{Match, Pricing, Route, RouteTable, Unlisted};
use crate::layer::{Paid, RouteMatch, Routes, Verdict};
use crate::proxy::{Body, Destination, Failure, Injected};
use crate::telemetry::{Outcome, RouteMetrics, Telemetry};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The name of requests that no route lists, in metrics.
const UNLISTED: &str = "(unlisted)";

/// Where the route is noted once it is found, for those outside and inside of the gate.
#[derive(Clone, Debug, Default)]
struct Found(Arc<OnceLock<Arc<Route>>>);

/// The route table, as the layer asks it.
pub(super) struct Table(pub(super) Arc<RouteTable>);

impl Routes for Table {
    fn find(&self, parts: &Parts) -> RouteMatch {
        let host =
            parts.uri.host().or_else(|| parts.headers.get(http::header::HOST).and_then(|host| host.to_str().ok()));
        match self.0.find(host, &parts.method, parts.uri.path()) {
            Match::Matched(route) => {
                if let Some(found) = parts.extensions.get::<Found>() {
                    let _first = found.0.set(Arc::clone(route));
                }
                RouteMatch::Route(Arc::clone(route))
            }
            Match::NotListed(Unlisted::Free) => RouteMatch::Free,
            Match::NotListed(Unlisted::Deny) => RouteMatch::Unlisted,
            Match::MethodNotAllowed { allow } => RouteMatch::MethodNotAllowed(allow.clone()),
            Match::BadPath(why) => RouteMatch::BadPath(why.to_string()),
        }
    }
}

/// Metrics by route, made once.
pub(super) struct Metrics {
    telemetry: Arc<Telemetry>,
    routes: HashMap<Arc<str>, RouteMetrics>,
    unlisted: RouteMetrics,
}

impl Metrics {
    pub(super) fn new(telemetry: Arc<Telemetry>, routes: &[Route]) -> Arc<Self> {
        let by_name = routes.iter().map(|route| (Arc::clone(&route.name), telemetry.route(&route.name))).collect();
        for route in routes {
            if !matches!(route.pricing, Pricing::Free) {
                telemetry.challenges.with_label_values(&[&*route.name]);
            }
        }
        Arc::new(Self { unlisted: telemetry.route(UNLISTED), telemetry, routes: by_name })
    }

    fn of<'a>(&'a self, route: Option<&'a Arc<Route>>) -> (&'a RouteMetrics, &'a str) {
        let named = route.and_then(|route| self.routes.get(&route.name).map(|metrics| (metrics, &*route.name)));
        named.unwrap_or((&self.unlisted, UNLISTED))
    }

    /// Counts what became of a request.
    fn count(&self, route: Option<&Arc<Route>>, verdict: Option<&Verdict>) -> &'static str {
        let (metrics, name) = self.of(route);
        let outcome = match verdict {
            Some(Verdict::Free) => Outcome::Free,
            Some(Verdict::Unlisted) => Outcome::NotListed,
            Some(Verdict::Refunded) => Outcome::Refund,
            Some(Verdict::Replayed) => Outcome::Replayed,
            Some(Verdict::Released(_)) => Outcome::Released,
            Some(Verdict::Challenged) => {
                self.telemetry.challenges.with_label_values(&[name]).inc();
                Outcome::Unpaid
            }
            Some(Verdict::Refused(reason)) => {
                self.telemetry.refusals.with_label_values(&[reason.as_str()]).inc();
                Outcome::Refused
            }
            Some(Verdict::Charged { paid, charged }) => {
                let asset = route.and_then(|route| symbol(route, paid)).unwrap_or_default();
                let revenue = self.telemetry.revenue.with_label_values(&[name, paid.network.as_str(), &asset]);
                Telemetry::add_amount(&revenue, *charged);
                self.telemetry.payments.with_label_values(&[name, paid.scheme]).inc();
                Outcome::Paid
            }
            None => Outcome::Failed,
        };
        metrics.count(outcome);
        outcome.as_str()
    }
}

fn symbol(route: &Route, paid: &Paid) -> Option<Arc<str>> {
    let (Pricing::Fixed(offers) | Pricing::Metered { offers, .. }) = &route.pricing else { return None };
    let offer = offers.iter().find(|offer| *offer.payee.network() == paid.network)?;
    Some(Arc::clone(&offer.payee.asset().symbol))
}

/// The outermost service of a connection.
#[derive(Clone)]
pub(super) struct Outer<S> {
    pub(super) inner: S,
    pub(super) metrics: Arc<Metrics>,
}

impl<S, R> Service<Request<Body>> for Outer<S>
where
    S: Service<Request<Body>, Response = Response<R>, Error = Failure> + Clone + Send + 'static,
    S::Future: Send,
    R: Send + 'static,
{
    type Response = Response<R>;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Failure>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let started = Instant::now();
        let found = Found::default();
        request.extensions_mut().insert(found.clone());
        let id = request_id(request.headers_mut());
        let span = tracing::info_span!("request", id = id.to_str().unwrap_or_default());
        let method = request.method().clone();
        let path = request.uri().path().to_owned();
        let metrics = Arc::clone(&self.metrics);
        let answer = self.inner.call(request);
        let answered = async move {
            let mut answer = answer.await;
            let route = found.0.get();
            let verdict = answer.as_ref().ok().and_then(|response| response.extensions().get::<Verdict>());
            let outcome = match &answer {
                Err(failure) if failure.is_upstreams() => {
                    metrics.telemetry.upstream_errors.with_label_values(&[failure.code()]).inc();
                    metrics.of(route).0.count(Outcome::Released);
                    Outcome::Released.as_str()
                }
                _ => metrics.count(route, verdict),
            };
            let took = started.elapsed();
            metrics.of(route).0.seconds.observe(took.as_secs_f64());
            let status = answer.as_ref().map_or_else(Failure::status, Response::status).as_u16();
            tracing::debug!(%method, path, status, outcome, micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX), "answered");
            if let Ok(response) = &mut answer {
                response.headers_mut().insert(REQUEST_ID, id);
            }
            answer
        };
        Box::pin(answered.instrument(span))
    }
}

/// An id of our own for each request: what a client sends could be anything, and would end in our logs.
fn request_id(headers: &mut HeaderMap) -> HeaderValue {
    let mut bytes = [0_u8; 8];
    let _without = getrandom::fill(&mut bytes);
    let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let id = HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("none"));
    headers.insert(REQUEST_ID, id.clone());
    id
}

/// The service between the gate and the upstreams.
#[derive(Clone)]
pub(super) struct Inner<S> {
    pub(super) inner: S,
    pub(super) metrics: Arc<Metrics>,
}

impl<S> Service<Request<Body>> for Inner<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Failure> + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Failure>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let extensions = request.extensions_mut();
        let route = extensions.get::<Found>().and_then(|found| found.0.get().cloned());
        if let Some(route) = &route {
            extensions.insert(Destination { upstream: route.upstream.clone(), timeout: route.timeout });
        }
        if let Some(paid) = extensions.remove::<Paid>() {
            let mut headers = HeaderMap::new();
            paid.write(&mut headers);
            extensions.insert(Injected(headers));
        }
        let started = Instant::now();
        let answer = self.inner.call(request);
        let metrics = Arc::clone(&self.metrics);
        Box::pin(async move {
            let answer = answer.await;
            metrics.of(route.as_ref()).0.upstream_seconds.observe(started.elapsed().as_secs_f64());
            answer
        })
    }
}
