//! What stands around the gate in the standalone proxy: a request id, metrics and a log line outside; outside's route
//! and the payer's headers handed to the upstream inside.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use http::request::Parts;
use http::{HeaderName, HeaderValue, Method, Request, Response};
use parking_lot::RwLock;
use pin_project_lite::pin_project;
use tower::Service;

use crate::amount::Amount;
use crate::gate::route::{Match, Pricing, Route, RouteTable, Unlisted};
use crate::layer::{Paid, ResponseBody, RouteMatch, Routes, Simple, Verdict};
use crate::proxy::{Body, Destination, Failure, Injected};
use crate::telemetry::{Counter, Outcome, RequestId, RouteMetrics, Scoped, Telemetry};
use crate::x402::Network;

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

/// Metrics by route, made once. Each request looks its route up twice, by a name that the operator chose, so the map's
/// hasher is a quick one.
pub(super) struct Metrics {
    telemetry: Arc<Telemetry>,
    routes: HashMap<Arc<str>, Counted>,
    unlisted: Counted,
}

/// What is counted of one route. No handle is looked up by its labels twice.
struct Counted {
    of_route: RouteMetrics,
    name: Arc<str>,
    /// Of priced routes.
    challenges: Option<Counter>,
    /// By network and scheme, for those that somebody has paid by.
    paid: RwLock<Vec<PaidCounters>>,
}

struct PaidCounters {
    network: Network,
    scheme: &'static str,
    revenue: Counter,
    payments: Counter,
}

impl Counted {
    fn new(telemetry: &Telemetry, name: &Arc<str>, is_priced: bool) -> Self {
        let challenges = is_priced.then(|| telemetry.challenges.with_label_values(&[&**name]));
        Self { of_route: telemetry.route(name), name: Arc::clone(name), challenges, paid: RwLock::default() }
    }

    fn charged(&self, telemetry: &Telemetry, route: Option<&Route>, paid: &Paid, charged: Amount) {
        let is_ours = |counters: &&PaidCounters| counters.network == paid.network && counters.scheme == paid.scheme;
        let count = |counters: &PaidCounters| {
            Telemetry::add_amount(&counters.revenue, charged);
            counters.payments.inc();
        };
        if let Some(counters) = self.paid.read().iter().find(is_ours) {
            return count(counters);
        }
        let asset = route.and_then(|route| symbol(route, paid)).unwrap_or_default();
        let counters = PaidCounters {
            network: paid.network.clone(),
            scheme: paid.scheme,
            revenue: telemetry.revenue.with_label_values(&[&*self.name, paid.network.as_str(), &asset]),
            payments: telemetry.payments.with_label_values(&[&*self.name, paid.scheme]),
        };
        count(&counters);
        let mut all = self.paid.write();
        if !all.iter().any(|counters| is_ours(&counters)) {
            all.push(counters);
        }
    }
}

impl Metrics {
    pub(super) fn new(telemetry: Arc<Telemetry>, routes: &[Route]) -> Arc<Self> {
        let counted = |route: &Route| {
            let is_priced = !matches!(route.pricing, Pricing::Free);
            (Arc::clone(&route.name), Counted::new(&telemetry, &route.name, is_priced))
        };
        let routes = routes.iter().map(counted).collect();
        Arc::new(Self { unlisted: Counted::new(&telemetry, &Arc::from(UNLISTED), false), telemetry, routes })
    }

    fn of(&self, route: Option<&Route>) -> &Counted {
        route.and_then(|route| self.routes.get(&route.name)).unwrap_or(&self.unlisted)
    }

    /// Counts what became of a request.
    fn count<R>(&self, route: Option<&Route>, answer: &Result<Response<R>, Failure>, took: Duration) -> Outcome {
        let counted = self.of(route);
        counted.of_route.seconds.observe(took.as_secs_f64());
        let outcome = match answer.as_ref().map(|response| response.extensions().get::<Verdict>()) {
            Err(failure) if failure.is_upstreams() => {
                self.telemetry.upstream_errors.with_label_values(&[failure.code()]).inc();
                Outcome::Released
            }
            Err(_) | Ok(None) => Outcome::Failed,
            Ok(Some(Verdict::Free)) => Outcome::Free,
            Ok(Some(Verdict::Unlisted)) => Outcome::NotListed,
            Ok(Some(Verdict::Refunded)) => Outcome::Refund,
            Ok(Some(Verdict::Replayed)) => Outcome::Replayed,
            Ok(Some(Verdict::OnPass(_))) => Outcome::OnPass,
            Ok(Some(Verdict::Released(_))) => Outcome::Released,
            Ok(Some(Verdict::Challenged)) => {
                if let Some(challenges) = &counted.challenges {
                    challenges.inc();
                }
                Outcome::Unpaid
            }
            Ok(Some(Verdict::Refused(reason))) => {
                self.telemetry.refusals.with_label_values(&[reason.as_str()]).inc();
                Outcome::Refused
            }
            Ok(Some(Verdict::Charged { paid, charged })) => {
                counted.charged(&self.telemetry, route, paid, *charged);
                Outcome::Paid
            }
        };
        counted.of_route.count(outcome);
        outcome
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

impl<S> Service<Request<Body>> for Outer<S>
where
    S: Service<Request<Body>, Response = Response<ResponseBody<Body>>, Error = Failure>,
{
    type Response = Response<Body>;
    type Error = Failure;
    type Future = Scoped<Answering<S::Future>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let started = Instant::now();
        let id = RequestId::next();
        // An id of our own: what a client sends could be anything, and would end in our logs.
        let value = HeaderValue::from_str(id.as_str()).unwrap_or_else(|_| HeaderValue::from_static("none"));
        request.headers_mut().insert(REQUEST_ID, value.clone());
        let found = Found::default();
        request.extensions_mut().insert(found.clone());
        let logged = tracing::enabled!(tracing::Level::DEBUG)
            .then(|| Box::new((request.method().clone(), request.uri().path().to_owned())));
        let metrics = Arc::clone(&self.metrics);
        id.scope(Answering { answer: self.inner.call(request), started, value, found, logged, metrics })
    }
}

pin_project! {
    /// A request that is being answered.
    pub(super) struct Answering<F> {
        #[pin]
        answer: F,
        started: Instant,
        value: HeaderValue,
        found: Found,
        logged: Option<Box<(Method, String)>>,
        metrics: Arc<Metrics>,
    }
}

impl<F> Future for Answering<F>
where
    F: Future<Output = Result<Response<ResponseBody<Body>>, Failure>>,
{
    type Output = Result<Response<Body>, Failure>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut answer = ready!(this.answer.poll(context));
        let took = this.started.elapsed();
        let outcome = this.metrics.count(this.found.0.get().map(Arc::as_ref), &answer, took).as_str();
        if let Some(logged) = this.logged {
            let (method, path) = &**logged;
            let status = answer.as_ref().map_or_else(Failure::status, Response::status).as_u16();
            let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
            tracing::debug!(%method, path, status, outcome, micros, "answered");
        }
        if let Ok(response) = &mut answer {
            response.headers_mut().insert(REQUEST_ID, this.value.clone());
        }
        Poll::Ready(answer.map(|response| response.map(unwrapped)))
    }
}

/// The body without the layer's wrapping, which costs memory for each answer.
fn unwrapped(body: ResponseBody<Body>) -> Body {
    match body.simplify() {
        Ok(Simple::Inner(body)) => body,
        Ok(Simple::Own(bytes)) => bytes.into(),
        Err(body) => Body::wrap(body),
    }
}

/// The service between the gate and the upstreams.
#[derive(Clone)]
pub(super) struct Inner<S> {
    pub(super) inner: S,
    pub(super) metrics: Arc<Metrics>,
}

impl<S> Service<Request<Body>> for Inner<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Failure>,
{
    type Response = Response<Body>;
    type Error = Failure;
    type Future = Asking<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let extensions = request.extensions_mut();
        let route = extensions.get::<Found>().and_then(|found| found.0.get().cloned());
        if let Some(route) = route.as_ref().filter(|route| route.upstream.is_some() || route.timeout.is_some()) {
            extensions.insert(Destination { upstream: route.upstream.clone(), timeout: route.timeout });
        }
        if let Some(paid) = extensions.remove::<Paid>() {
            extensions.insert(Injected(paid.headers().collect()));
        }
        let (started, metrics) = (Instant::now(), Arc::clone(&self.metrics));
        Asking { answer: self.inner.call(request), started, route, metrics }
    }
}

pin_project! {
    /// A request that the upstream is asked.
    pub(super) struct Asking<F> {
        #[pin]
        answer: F,
        started: Instant,
        route: Option<Arc<Route>>,
        metrics: Arc<Metrics>,
    }
}

impl<F: Future<Output = Result<Response<Body>, Failure>>> Future for Asking<F> {
    type Output = Result<Response<Body>, Failure>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let answer = ready!(this.answer.poll(context));
        let seconds = this.started.elapsed().as_secs_f64();
        this.metrics.of(this.route.as_deref()).of_route.upstream_seconds.observe(seconds);
        Poll::Ready(answer)
    }
}
