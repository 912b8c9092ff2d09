//! The gate as a tower [`Layer`] and [`Service`]: the proxy is built from it, and so is a Rust merchant's own app.
//!
//! Promises: the request's body is not polled before the request is admitted, and its bytes and the answer's are passed
//! through untouched, at once unless the client asks by an id that the answer be kept or its charge is in its body
//! (`layer/collect.rs`); a price is charged when the inner service's answer has a header with a status below 400, and
//! its body is whole where it is to be kept, before that header is handed out; an error, a status of 400 or more, a
//! panic or a dropped future gives everything back. A request with a payment in each protocol version pays with the
//! second's; one with a payment and a pass pays, and the pass is not counted. The inner service can trust `Turnpike-*` headers and the [`Paid`]
//! extension: what came from outside is taken away.

mod body;
mod collect;
mod cors;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, HOST};
use http::request::Parts;
use http::response;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body::Body;
use pin_project_lite::pin_project;
use tower::util::Oneshot;
use tower::{Layer, Service, ServiceExt};

pub use self::body::{ResponseBody, Simple};
use self::collect::{Collected, collect, is_collectable, succeeded, wait_to_keep};
pub use self::cors::Cors;
use self::cors::Origin;
use crate::amount::Amount;
pub use crate::gate::Paid;
use crate::gate::charge::{Answered, Meter};
use crate::gate::replay::Draft;
use crate::gate::route::{Pricing, Route};
use crate::gate::{Admission, AdmitRequest, Finished, Gate, Outcome, PaymentHeader, reply};
use crate::scheme::exact_evm::Version;
use crate::x402::Reason;
use crate::x402::call_pack::{PAYMENT_PASS, PAYMENT_PASS_CALLS_LEFT};
use crate::x402::header::{PAYMENT_REQUIRED, PAYMENT_RESPONSE, PAYMENT_SIGNATURE};
use crate::x402::v1::{X_PAYMENT, X_PAYMENT_RESPONSE};

/// Which route a request matches.
#[derive(Clone, Debug)]
pub enum RouteMatch {
    /// This one.
    Route(Arc<Route>),
    /// None, and what is not listed is free.
    Free,
    /// None, and what is not listed is refused.
    Unlisted,
    /// One by its path, but not with this method; the value is for `Allow`.
    MethodNotAllowed(HeaderValue),
    /// None: the path can be read in more than one way. Why, for the client.
    BadPath(String),
}

/// Finds a request's route. Payment headers and `Turnpike-*` headers have been taken away by then.
pub trait Routes: Send + Sync + 'static {
    /// The route that a request matches.
    fn find(&self, parts: &Parts) -> RouteMatch;
}

impl<F: Fn(&Parts) -> RouteMatch + Send + Sync + 'static> Routes for F {
    fn find(&self, parts: &Parts) -> RouteMatch {
        self(parts)
    }
}

/// The layer's own choices.
#[derive(Clone, Debug, Default)]
pub struct LayerOptions {
    /// Where clients reach us, such as `https://api.example.com`: stands before the path in a challenge's
    /// `resource.url`. Without it, the request's own scheme and host do.
    pub public_url: Option<Arc<str>>,
    /// Whose scripts may pay.
    pub cors: Cors,
    /// Whether the inner service reads who paid from the [`Paid`] extension, and gets no `Turnpike-*` headers.
    pub extension_only: bool,
}

/// What became of a request: an extension of the response, for metrics and logs outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It cost nothing.
    Free,
    /// No route matched.
    Unlisted,
    /// It came without payment.
    Challenged,
    /// Its payment did not pass, or could not be settled.
    Refused(Reason),
    /// It was a refund.
    Refunded,
    /// It was answered before, and got that answer again.
    Replayed,
    /// It was charged.
    Charged {
        /// By whom, and from where.
        paid: Paid,
        /// How much; for a metered request not always the price.
        charged: Amount,
    },
    /// It was a call on a pass, by whom, and was counted.
    OnPass(Paid),
    /// It was admitted, and not charged.
    Released(Paid),
}

/// Makes services pay-per-call.
#[derive(Clone)]
pub struct TurnpikeLayer {
    shared: Arc<Shared>,
}

struct Shared {
    gate: Arc<Gate>,
    routes: Box<dyn Routes>,
    options: LayerOptions,
}

impl TurnpikeLayer {
    /// A layer that asks `gate` for what `routes` find.
    #[must_use]
    pub fn new(gate: Arc<Gate>, routes: impl Routes, options: LayerOptions) -> Self {
        Self { shared: Arc::new(Shared { gate, routes: Box::new(routes), options }) }
    }
}

impl<S> Layer<S> for TurnpikeLayer {
    type Service = TurnpikeService<S>;

    fn layer(&self, inner: S) -> TurnpikeService<S> {
        TurnpikeService { inner, shared: Arc::clone(&self.shared) }
    }
}

/// A service whose calls are paid for.
#[derive(Clone)]
pub struct TurnpikeService<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl<S, B, R> Service<Request<B>> for TurnpikeService<S>
where
    S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send,
    B: Send + 'static,
    R: Body<Data = Bytes> + Send + 'static,
{
    type Response = Response<ResponseBody<R>>;
    type Error = S::Error;
    type Future = TurnpikeFuture<S, B, R>;

    /// Always ready: a challenge needs no inner service, and whose request is admitted waits for it then.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (mut parts, body) = request.into_parts();
        let origin = self.shared.options.cors.origin(&parts);
        let decision = self.shared.decide(&mut parts, origin.as_ref());
        let (inner, request) = (self.inner.clone(), Request::from_parts(parts, body));
        let served = match decision {
            Decision::Answer(response, verdict) => Served::Answered { answer: Some((response, verdict)) },
            Decision::Pass(verdict) => Served::Passes { inner: inner.oneshot(request), verdict: Some(verdict) },
            Decision::Pay(route, payment) => {
                let shared = Arc::clone(&self.shared);
                Served::Pays { served: Box::pin(async move { shared.serve(inner, request, &route, payment).await }) }
            }
        };
        TurnpikeFuture { served, origin }
    }
}

pin_project! {
    /// A request on its way through the layer.
    pub struct TurnpikeFuture<S, B, R>
    where
        S: Service<Request<B>, Response = Response<R>>,
    {
        #[pin]
        served: Served<S, B, R>,
        origin: Option<Origin>,
    }
}

pin_project! {
    #[project = ServedProjection]
    enum Served<S, B, R>
    where
        S: Service<Request<B>, Response = Response<R>>,
    {
        /// By us, at once.
        Answered { answer: Option<(Response<Bytes>, Verdict)> },
        /// By the inner service, for nothing.
        Passes {
            #[pin]
            inner: Oneshot<S, Request<B>>,
            verdict: Option<Verdict>,
        },
        /// Apart from the others, which are many and small, in memory of its own.
        Pays { served: Serving<R, S::Error> },
    }
}

type Serving<R, E> = Pin<Box<dyn Future<Output = Result<Response<ResponseBody<R>>, E>> + Send>>;

impl<S, B, R> Future for TurnpikeFuture<S, B, R>
where
    S: Service<Request<B>, Response = Response<R>>,
{
    type Output = Result<Response<ResponseBody<R>>, S::Error>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut response = match this.served.project() {
            ServedProjection::Answered { answer } => match answer.take() {
                Some((response, verdict)) => ours(response, verdict),
                None => return Poll::Pending,
            },
            ServedProjection::Passes { inner, verdict } => {
                let mut response = ready!(inner.poll(context))?.map(ResponseBody::inner);
                if let Some(verdict) = verdict.take() {
                    response.extensions_mut().insert(verdict);
                }
                response
            }
            ServedProjection::Pays { served } => ready!(served.as_mut().poll(context))?,
        };
        if let Some(origin) = this.origin {
            origin.expose(response.headers_mut());
        }
        Poll::Ready(Ok(response))
    }
}

impl Shared {
    /// Serves a request that comes with a payment.
    async fn serve<S, B, R>(
        &self,
        inner: S,
        request: Request<B>,
        route: &Arc<Route>,
        payment: Payment,
    ) -> Result<Response<ResponseBody<R>>, S::Error>
    where
        S: Service<Request<B>, Response = Response<R>>,
        R: Body<Data = Bytes>,
    {
        let (mut parts, body) = request.into_parts();
        let target = target(&parts);
        let host = host(&parts);
        let url = self.url(&parts, host, target);
        let request = AdmitRequest {
            route,
            method: &parts.method,
            host,
            target,
            headers: &parts.headers,
            url: &url,
            payment_header: Some(payment.header()),
        };
        let admission = match self.gate.admit(request).await {
            Outcome::Admitted(admission) => admission,
            Outcome::Free => {
                let response = Box::pin(inner.oneshot(Request::from_parts(parts, body))).await?;
                let mut response = response.map(ResponseBody::inner);
                response.extensions_mut().insert(Verdict::Free);
                return Ok(response);
            }
            Outcome::Challenge(challenge) => return Ok(ours(reply::challenge(&challenge), Verdict::Challenged)),
            Outcome::Refused(refusal) => return Ok(ours(reply::refusal(&refusal), Verdict::Refused(refusal.reason))),
            Outcome::Replayed(answer) => return Ok(ours(reply::replayed(&answer), Verdict::Replayed)),
            Outcome::Answered(settlement) => return Ok(ours(reply::refunded(&settlement), Verdict::Refunded)),
        };
        if !self.options.extension_only {
            admission.paid().write(&mut parts.headers);
        }
        parts.extensions.insert(admission.paid().clone());
        if admission.meter().is_some_and(Meter::reads_json) {
            // What is compressed cannot be read.
            parts.headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        }
        match inner.oneshot(Request::from_parts(parts, body)).await {
            Ok(response) => Ok(finish(admission, response).await),
            Err(error) => {
                admission.release();
                Err(error)
            }
        }
    }

    /// What to do with a request, as far as that needs no waiting.
    fn decide(&self, parts: &mut Parts, origin: Option<&Origin>) -> Decision {
        let payment = match (take(&parts.headers, &SIGNATURE), take(&parts.headers, &PAYMENT_V1)) {
            (Some(value), _) => Some(Payment::V2(value)),
            (None, Some(value)) => Some(Payment::V1(value)),
            (None, None) => take(&parts.headers, &PASS).map(Payment::pass),
        };
        strip(&mut parts.headers);
        if parts.method == Method::OPTIONS {
            return match origin.and_then(|origin| origin.preflight(&parts.headers)) {
                Some(headers) => {
                    let mut response = Response::new(Bytes::new());
                    *response.status_mut() = StatusCode::NO_CONTENT;
                    *response.headers_mut() = headers;
                    Decision::Answer(response, Verdict::Free)
                }
                None => Decision::Pass(Verdict::Free),
            };
        }
        let route = match self.routes.find(parts) {
            RouteMatch::Route(route) => route,
            RouteMatch::Free => return Decision::Pass(Verdict::Free),
            RouteMatch::Unlisted => return Decision::Answer(reply::unlisted(), Verdict::Unlisted),
            RouteMatch::MethodNotAllowed(allow) => {
                return Decision::Answer(reply::method_not_allowed(allow), Verdict::Unlisted);
            }
            RouteMatch::BadPath(why) => return Decision::Answer(reply::bad_path(&why), Verdict::Unlisted),
        };
        if matches!(route.pricing, Pricing::Free) {
            return Decision::Pass(Verdict::Free);
        }
        if let Some(payment) = payment {
            return Decision::Pay(route, payment);
        }
        let (host, target) = (host(parts), target(parts));
        let url = self.url(parts, host, target);
        let (method, headers) = (&parts.method, &parts.headers);
        let request = AdmitRequest { route: &route, method, host, target, headers, url: &url, payment_header: None };
        match self.gate.challenge(&request) {
            Ok(challenge) => Decision::Answer(reply::challenge(&challenge), Verdict::Challenged),
            Err(refusal) => Decision::Answer(reply::refusal(&refusal), Verdict::Refused(refusal.reason)),
        }
    }

    /// The resource as the client asked for it.
    fn url(&self, parts: &Parts, host: Option<&str>, target: &str) -> String {
        if let Some(base) = &self.options.public_url {
            return [base.trim_end_matches('/'), target].concat();
        }
        let scheme = parts.uri.scheme_str().unwrap_or("http");
        match host {
            Some(host) => [scheme, "://", host, target].concat(),
            None => target.to_owned(),
        }
    }
}

/// The host that a request was sent to, with its port where it names one.
fn host(parts: &Parts) -> Option<&str> {
    let authority = parts.uri.authority().map(http::uri::Authority::as_str);
    authority.or_else(|| parts.headers.get(HOST).and_then(|host| host.to_str().ok()))
}

/// What to do with a request.
enum Decision {
    Answer(Response<Bytes>, Verdict),
    Pass(Verdict),
    Pay(Arc<Route>, Payment),
}

/// The value of a payment's header.
enum Payment {
    V1(HeaderValue),
    V2(HeaderValue),
    Pass(HeaderValue),
}

impl Payment {
    /// A pass, which is not to be printed from here on.
    fn pass(mut value: HeaderValue) -> Self {
        value.set_sensitive(true);
        Self::Pass(value)
    }

    fn header(&self) -> PaymentHeader<'_> {
        match self {
            Self::V1(value) => PaymentHeader::V1(value.as_bytes()),
            Self::V2(value) => PaymentHeader::V2(value.as_bytes()),
            Self::Pass(value) => PaymentHeader::Pass(value.as_bytes()),
        }
    }
}

fn target(parts: &Parts) -> &str {
    parts.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str)
}

/// Charges for the inner service's answer, or gives the price back. An answer that is to be kept, or that says in its
/// body what it costs, is collected first.
async fn finish<R: Body<Data = Bytes>>(admission: Box<Admission>, response: Response<R>) -> Response<ResponseBody<R>> {
    let (parts, body) = response.into_parts();
    let known = body.size_hint().exact();
    let keeps = admission.keeps().filter(|_| is_collectable(&parts));
    let meters = admission.meter().filter(|meter| succeeded(&parts) && meter.needs_body(known.is_some()));
    let (bytes_max, wait) = match (keeps, meters) {
        (None, None) => return charge(admission, parts, known, ResponseBody::inner(body)).await,
        (Some(bytes_max), None) => (bytes_max, wait_to_keep(&body)),
        (_, Some(meter)) => (meter.body_bytes_max, meter.body_wait),
    };
    let collected = Box::pin(collect(body, bytes_max, wait)).await;
    Box::pin(finish_collected(admission, parts, known, keeps, collected)).await
}

/// The same for an answer that was collected, as far as it could be.
async fn finish_collected<R: Body<Data = Bytes>>(
    admission: Box<Admission>,
    parts: response::Parts,
    known: Option<u64>,
    keeps: Option<usize>,
    collected: Collected<R>,
) -> Response<ResponseBody<R>> {
    match collected {
        Collected::Whole(body) => {
            let whose = Whose::of(&admission);
            let finished = if keeps.is_some_and(|bytes_max| body.len() <= bytes_max) {
                let mut headers = parts.headers.clone();
                strip(&mut headers);
                let draft = Draft { status: parts.status, headers, body: body.clone() };
                admission.finish_whole(&parts.headers, draft).await
            } else {
                admission.finish_read(parts.status, &Answered::whole(&parts.headers, &body)).await
            };
            conclude(finished, whose, parts, ResponseBody::own(body))
        }
        Collected::Partly(ahead, body) => charge(admission, parts, known, ResponseBody::rest(ahead, body)).await,
        Collected::Broken => {
            tracing::warn!(status = %parts.status, "an upstream's answer broke off while it was collected");
            let paid = admission.paid().clone();
            let settlement = match admission.finish(StatusCode::BAD_GATEWAY, &parts.headers).await {
                Finished::Released(settlement) | Finished::Unmetered(settlement) => settlement,
                Finished::Charged(_) | Finished::Counted { .. } | Finished::Refused(_) => None,
            };
            ours(reply::broke_off(settlement.as_deref()), Verdict::Released(paid))
        }
    }
}

/// Charges for an answer whose body is not read, or not to its end.
async fn charge<R>(
    admission: Box<Admission>,
    parts: response::Parts,
    body_bytes: Option<u64>,
    body: ResponseBody<R>,
) -> Response<ResponseBody<R>> {
    let whose = Whose::of(&admission);
    let answered = Answered { headers: &parts.headers, body: None, body_bytes };
    let finished = admission.finish_read(parts.status, &answered).await;
    conclude(finished, whose, parts, body)
}

/// Whose answer it is, and in which protocol version they are told of its payment.
struct Whose {
    paid: Paid,
    version: Version,
}

impl Whose {
    fn of(admission: &Admission) -> Self {
        Self { paid: admission.paid().clone(), version: admission.version() }
    }
}

/// The answer with what became of its payment.
fn conclude<R>(
    finished: Finished,
    whose: Whose,
    mut parts: response::Parts,
    body: ResponseBody<R>,
) -> Response<ResponseBody<R>> {
    let Whose { paid, version } = whose;
    let verdict = match finished {
        Finished::Charged(charged) => {
            strip(&mut parts.headers);
            reply::paid(&mut parts.headers, &charged, version);
            Verdict::Charged { paid, charged: charged.amount }
        }
        Finished::Counted { left } => {
            strip(&mut parts.headers);
            reply::counted(&mut parts.headers, left);
            Verdict::OnPass(paid)
        }
        Finished::Released(settlement) => {
            strip(&mut parts.headers);
            if let Some(settlement) = settlement {
                reply::released(&mut parts.headers, &settlement, version);
            }
            Verdict::Released(paid)
        }
        Finished::Refused(refusal) => return ours(reply::refusal(&refusal), Verdict::Refused(refusal.reason)),
        Finished::Unmetered(settlement) => {
            return ours(reply::unmetered(settlement.as_deref()), Verdict::Released(paid));
        }
    };
    parts.extensions.insert(verdict);
    Response::from_parts(parts, body)
}

fn ours<R>(response: Response<Bytes>, verdict: Verdict) -> Response<ResponseBody<R>> {
    let mut response = response.map(ResponseBody::own);
    response.extensions_mut().insert(verdict);
    response
}

/// The payment. Several headers are one list to HTTP, and a list is no payment, so they are joined and will not decode.
fn take(headers: &HeaderMap, name: &HeaderName) -> Option<HeaderValue> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?;
    let mut values = values.peekable();
    if values.peek().is_none() {
        return Some(first.clone());
    }
    let mut list = first.as_bytes().to_vec();
    for value in values {
        list.extend_from_slice(b", ");
        list.extend_from_slice(value.as_bytes());
    }
    // Of what headers hold, joined by what they may hold, a header can always be made.
    HeaderValue::from_maybe_shared(Bytes::from(list)).ok()
}

const SIGNATURE: HeaderName = HeaderName::from_static(PAYMENT_SIGNATURE);
const PAYMENT_V1: HeaderName = HeaderName::from_static(X_PAYMENT);
const PASS: HeaderName = HeaderName::from_static(PAYMENT_PASS);

/// Headers that are ours, or the protocol's, and never pass.
const OURS: [&str; 7] = [
    PAYMENT_SIGNATURE,
    PAYMENT_REQUIRED,
    PAYMENT_RESPONSE,
    PAYMENT_PASS,
    PAYMENT_PASS_CALLS_LEFT,
    X_PAYMENT,
    X_PAYMENT_RESPONSE,
];
const TURNPIKE: &str = "turnpike-";

const PAYER: HeaderName = HeaderName::from_static("turnpike-payer");
const AMOUNT: HeaderName = HeaderName::from_static("turnpike-amount");
const CHANNEL: HeaderName = HeaderName::from_static("turnpike-channel");
const NETWORK: HeaderName = HeaderName::from_static("turnpike-network");

fn strip(headers: &mut HeaderMap) {
    let is_ours = |name: &&HeaderName| OURS.contains(&name.as_str()) || name.as_str().starts_with(TURNPIKE);
    let ours: Vec<HeaderName> = headers.keys().filter(is_ours).cloned().collect();
    for name in ours {
        headers.remove(name);
    }
}

impl Paid {
    /// Writes the `Turnpike-*` headers. The amount is in the asset's atomic units.
    pub fn write(&self, headers: &mut HeaderMap) {
        for (name, value) in self.headers() {
            headers.insert(name, value);
        }
    }

    /// The `Turnpike-*` headers, as [`Paid::write`] writes them.
    pub fn headers(&self) -> impl Iterator<Item = (HeaderName, HeaderValue)> + use<> {
        let values = [
            (PAYER, Some(self.payer.to_string())),
            (AMOUNT, Some(self.amount.to_string())),
            (CHANNEL, self.channel.map(|channel| channel.to_string())),
            (NETWORK, Some(self.network.to_string())),
        ];
        // Base58, hexadecimal, digits and CAIP-2 names are always a header's value.
        values.into_iter().filter_map(|(name, value)| Some((name, HeaderValue::try_from(value?).ok()?)))
    }
}
