//! The gate as a tower [`Layer`] and [`Service`]: the proxy is built from it, and so is a Rust merchant's own app.
//!
//! Promises: the request's body is not polled before the request is admitted, and its bytes and the answer's are passed
//! through untouched, at once unless the client asks by an id that the answer be kept or its charge is in its body
//! (`layer/collect.rs`); a price is charged when the inner service's answer has a header with a status below 400, and
//! its body is whole where it is to be kept, before that header is handed out; an error, a status of 400 or more, a
//! panic or a dropped future gives everything back. A request with a payment in each protocol version pays with the
//! second's. The inner service can trust `Turnpike-*` headers and the [`Paid`]
//! extension: what came from outside is taken away.

mod body;
mod collect;
mod cors;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, HOST};
use http::request::Parts;
use http::response;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body::Body;
use tower::{Layer, Service, ServiceExt};

pub use self::body::ResponseBody;
use self::collect::{Collected, collect, is_collectable, succeeded, wait_to_keep};
pub use self::cors::Cors;
use self::cors::Origin;
use crate::amount::Amount;
pub use crate::gate::Paid;
use crate::gate::charge::{Answered, Meter};
use crate::gate::replay::Draft;
use crate::gate::route::Route;
use crate::gate::{Admission, AdmitRequest, Finished, Gate, Outcome, PaymentHeader, reply};
use crate::scheme::exact_evm::Version;
use crate::x402::Reason;
use crate::x402::header::{PAYMENT_REQUIRED, PAYMENT_RESPONSE, PAYMENT_SIGNATURE};
use crate::x402::v1::{X_PAYMENT, X_PAYMENT_RESPONSE};
use crate::x402::wire::SettlementResponse;

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
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    /// Always ready: a challenge needs no inner service, and whose request is admitted waits for it then.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let inner = self.inner.clone();
        let shared = Arc::clone(&self.shared);
        Box::pin(async move { shared.serve(inner, request).await })
    }
}

impl Shared {
    async fn serve<S, B, R>(&self, inner: S, request: Request<B>) -> Result<Response<ResponseBody<R>>, S::Error>
    where
        S: Service<Request<B>, Response = Response<R>>,
        R: Body<Data = Bytes>,
    {
        let (mut parts, body) = request.into_parts();
        let origin = self.options.cors.origin(&parts);
        let mut served = match self.decide(&mut parts, origin.as_ref()).await {
            Decision::Answer(response, verdict) => ours(response, verdict),
            Decision::Pass(verdict) => {
                let response = inner.oneshot(Request::from_parts(parts, body)).await?;
                let mut response = response.map(ResponseBody::inner);
                response.extensions_mut().insert(verdict);
                response
            }
            Decision::Admit(admission) => {
                introduce(&mut parts, admission.paid());
                if admission.meter().is_some_and(Meter::reads_json) {
                    // What is compressed cannot be read.
                    parts.headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
                }
                match inner.oneshot(Request::from_parts(parts, body)).await {
                    Ok(response) => finish(*admission, response).await,
                    Err(error) => {
                        admission.release();
                        return Err(error);
                    }
                }
            }
        };
        if let Some(origin) = origin {
            origin.expose(served.headers_mut());
        }
        Ok(served)
    }

    async fn decide(&self, parts: &mut Parts, origin: Option<&Origin>) -> Decision {
        let payment = take(&parts.headers, PAYMENT_SIGNATURE);
        let payment_v1 = take(&parts.headers, X_PAYMENT);
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
        let target = parts.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        let host = host(parts);
        let url = self.url(parts, host, target);
        let payment_header = match (&payment, &payment_v1) {
            (Some(payment), _) => Some(PaymentHeader::V2(payment)),
            (None, Some(payment)) => Some(PaymentHeader::V1(payment)),
            (None, None) => None,
        };
        let request = AdmitRequest {
            route: &route,
            method: &parts.method,
            host,
            target,
            headers: &parts.headers,
            url: &url,
            payment_header,
        };
        match self.gate.admit(request).await {
            Outcome::Free => Decision::Pass(Verdict::Free),
            Outcome::Admitted(admission) => Decision::Admit(admission),
            Outcome::Challenge(required) => Decision::Answer(reply::challenge(&required), Verdict::Challenged),
            Outcome::Refused(refusal) => Decision::Answer(reply::refusal(&refusal), Verdict::Refused(refusal.reason)),
            Outcome::Replayed(answer) => Decision::Answer(reply::replayed(&answer), Verdict::Replayed),
            Outcome::Answered(settlement) => Decision::Answer(reply::refunded(&settlement), Verdict::Refunded),
        }
    }

    /// The resource as the client asked for it.
    fn url(&self, parts: &Parts, host: Option<&str>, target: &str) -> String {
        if let Some(base) = &self.options.public_url {
            return format!("{}{target}", base.trim_end_matches('/'));
        }
        let scheme = parts.uri.scheme_str().unwrap_or("http");
        match host {
            Some(host) => format!("{scheme}://{host}{target}"),
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
    Admit(Box<Admission>),
}

/// Charges for the inner service's answer, or gives the price back. An answer that is to be kept, or that says in its
/// body what it costs, is collected first.
async fn finish<R: Body<Data = Bytes>>(admission: Admission, response: Response<R>) -> Response<ResponseBody<R>> {
    let (parts, body) = response.into_parts();
    let known = body.size_hint().exact();
    let keeps = admission.keeps().filter(|_| is_collectable(&parts));
    let meters = admission.meter().filter(|meter| succeeded(&parts) && meter.needs_body(known.is_some()));
    let (bytes_max, wait) = match (keeps, meters) {
        (None, None) => return charge(admission, parts, known, ResponseBody::inner(body)).await,
        (Some(bytes_max), None) => (bytes_max, wait_to_keep(&body)),
        (_, Some(meter)) => (meter.body_bytes_max, meter.body_wait),
    };
    match collect(body, bytes_max, wait).await {
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
                Finished::Charged(_) | Finished::Refused(_) => None,
            };
            ours(reply::broke_off(settlement.as_deref()), Verdict::Released(paid))
        }
    }
}

/// Charges for an answer whose body is not read, or not to its end.
async fn charge<R>(
    admission: Admission,
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
        Finished::Charged(settlement) => {
            strip(&mut parts.headers);
            reply::paid(&mut parts.headers, &settlement, version);
            Verdict::Charged { paid, charged: charged(&settlement) }
        }
        Finished::Released(settlement) => {
            strip(&mut parts.headers);
            if let Some(settlement) = settlement {
                reply::paid(&mut parts.headers, &settlement, version);
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

/// What a settlement says was charged: a voucher's in `extra`, a metered request's as its amount.
fn charged(settlement: &SettlementResponse) -> Amount {
    let voucher = settlement.extra.get("chargedAmount").and_then(|value| value.as_str());
    voucher.or(settlement.amount.as_deref()).and_then(|text| text.parse().ok()).unwrap_or_default()
}

fn ours<R>(response: Response<Bytes>, verdict: Verdict) -> Response<ResponseBody<R>> {
    let mut response = response.map(ResponseBody::own);
    response.extensions_mut().insert(verdict);
    response
}

/// The payment. Several headers are one list to HTTP, and a list is no payment, so they are joined and will not decode.
fn take(headers: &HeaderMap, name: &str) -> Option<Vec<u8>> {
    let mut values = headers.get_all(name).iter();
    let mut payment = values.next()?.as_bytes().to_vec();
    for value in values {
        payment.extend_from_slice(b", ");
        payment.extend_from_slice(value.as_bytes());
    }
    Some(payment)
}

/// Headers that are ours, or the protocol's, and never pass.
const OURS: [&str; 5] = [PAYMENT_SIGNATURE, PAYMENT_REQUIRED, PAYMENT_RESPONSE, X_PAYMENT, X_PAYMENT_RESPONSE];
const TURNPIKE: &str = "turnpike-";

fn strip(headers: &mut HeaderMap) {
    for name in OURS {
        headers.remove(name);
    }
    let forged: Vec<HeaderName> = headers.keys().filter(|name| name.as_str().starts_with(TURNPIKE)).cloned().collect();
    for name in forged {
        headers.remove(name);
    }
}

/// Tells the inner service who paid: as an extension for a service in this process, as headers for one behind it.
fn introduce(parts: &mut Parts, paid: &Paid) {
    paid.write(&mut parts.headers);
    parts.extensions.insert(paid.clone());
}

impl Paid {
    /// Writes the `Turnpike-*` headers. The amount is in the asset's atomic units.
    pub fn write(&self, headers: &mut HeaderMap) {
        let values = [
            ("turnpike-payer", Some(self.payer.to_string())),
            ("turnpike-amount", Some(self.amount.to_string())),
            ("turnpike-channel", self.channel.map(|channel| channel.to_string())),
            ("turnpike-network", Some(self.network.to_string())),
        ];
        for (name, value) in values {
            // Base58, hexadecimal, digits and CAIP-2 names are always a header's value.
            if let Some(Ok(value)) = value.map(HeaderValue::try_from) {
                headers.insert(HeaderName::from_static(name), value);
            }
        }
    }
}
