//! Requests through the layer to an upstream that does as it is told.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Full};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tower::{BoxError, Layer, ServiceExt, service_fn};
use turnpike::gate::Gate;
use turnpike::gate::charge::Missing;
use turnpike::gate::route::{Pricing, Route};
use turnpike::layer::{Cors, LayerOptions, RouteMatch, TurnpikeLayer, Verdict};
use turnpike::x402::v1::SettlementResponseV1;
use turnpike::x402::wire::{PaymentRequired, PaymentRequirements, SettlementResponse};

use crate::doubles::{House, bytes, fixed, header, metered, route, tokens};

/// What the upstream saw of a request.
#[derive(Clone, Debug)]
pub struct Seen {
    pub headers: HeaderMap,
    pub paid: Option<turnpike::layer::Paid>,
    pub body: Bytes,
}

/// How the upstream answers.
#[derive(Clone)]
pub enum Behaviour {
    Answers(StatusCode, Vec<(&'static str, &'static str)>),
    Fails,
    /// Never answers.
    Hangs,
    Panics,
    /// Answers once it is let.
    Waits(Arc<tokio::sync::Semaphore>),
    /// Answers with these headers and with a body in these pieces, of a size that nobody knows.
    Streams(Vec<(&'static str, &'static str)>, Vec<Piece>),
}

/// A piece of a streamed body.
#[derive(Clone, Copy, Debug)]
pub enum Piece {
    Bytes(&'static [u8]),
    Pause(Duration),
    Trailers,
    Break,
}

/// A body in pieces, or one of a known size.
pub struct Pieces {
    left: std::collections::VecDeque<Piece>,
    known: bool,
    pause: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl Pieces {
    fn whole(bytes: &'static [u8]) -> Self {
        Self { left: [Piece::Bytes(bytes)].into(), known: true, pause: None }
    }
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some(pause) = &mut self.pause {
            std::task::ready!(pause.as_mut().poll(context));
            self.pause = None;
        }
        match self.left.pop_front() {
            None => Poll::Ready(None),
            Some(Piece::Bytes(bytes)) => Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(bytes))))),
            Some(Piece::Trailers) => Poll::Ready(Some(Ok(Frame::trailers(HeaderMap::new())))),
            Some(Piece::Break) => Poll::Ready(Some(Err(BoxError::from("the upstream is gone")))),
            Some(Piece::Pause(time)) => {
                self.pause = Some(Box::pin(tokio::time::sleep(time)));
                self.poll_frame(context)
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match (self.known, self.left.front()) {
            (true, Some(Piece::Bytes(bytes))) => SizeHint::with_exact(u64::try_from(bytes.len()).unwrap()),
            (true, _) => SizeHint::with_exact(0),
            (false, _) => SizeHint::default(),
        }
    }
}

pub const BODY: &[u8] = b"\x00\xffquote\r\n";

/// Ours, with an upstream behind it.
#[derive(Clone)]
pub struct Site {
    layer: TurnpikeLayer,
    pub behaviour: Arc<Mutex<Behaviour>>,
    pub seen: Arc<Mutex<Vec<Seen>>>,
}

/// An answer, read whole.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub verdict: Verdict,
}

impl Answer {
    fn decoded<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        let value = self.headers.get(name)?;
        Some(serde_json::from_slice(&STANDARD.decode(value).unwrap()).unwrap())
    }

    pub fn required(&self) -> Option<PaymentRequired> {
        self.decoded("payment-required")
    }

    pub fn settlement_v1(&self) -> Option<SettlementResponseV1> {
        self.decoded("x-payment-response")
    }

    pub fn settlement(&self) -> Option<SettlementResponse> {
        self.decoded("payment-response")
    }

    pub fn error(&self) -> String {
        self.required().and_then(|required| required.error).unwrap_or_default()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

impl Site {
    pub fn new(house: &House) -> Self {
        Self::with(house, LayerOptions::default())
    }

    pub fn with_cors(house: &House, cors: Cors) -> Self {
        Self::with(house, LayerOptions { cors, ..LayerOptions::default() })
    }

    pub fn with(house: &House, options: LayerOptions) -> Self {
        let table = vec![
            ("/quote", fixed()),
            ("/metered", metered()),
            ("/free", route("/free", Pricing::Free)),
            ("/tokens", tokens("/tokens", None)),
            ("/strict", tokens("/strict", Some(Missing::Refuse))),
            ("/bytes", bytes("/bytes")),
        ];
        Self::over(&house.gate, table, options)
    }

    /// A site with these routes, by their paths.
    pub fn of_routes(gate: &Arc<Gate>, table: Vec<(&'static str, Arc<Route>)>) -> Self {
        Self::over(gate, table, LayerOptions::default())
    }

    fn over(gate: &Arc<Gate>, table: Vec<(&'static str, Arc<Route>)>, options: LayerOptions) -> Self {
        let routes = move |parts: &http::request::Parts| {
            if parts.uri.path() == "/open" {
                return RouteMatch::Free;
            }
            let found = table.iter().find(|(path, _)| *path == parts.uri.path());
            found.map_or(RouteMatch::Unlisted, |(_, route)| RouteMatch::Route(Arc::clone(route)))
        };
        Self {
            layer: TurnpikeLayer::new(Arc::clone(gate), routes, options),
            behaviour: Arc::new(Mutex::new(Behaviour::Answers(StatusCode::OK, Vec::new()))),
            seen: Arc::default(),
        }
    }

    pub fn behave(&self, behaviour: Behaviour) {
        *self.behaviour.lock() = behaviour;
    }

    pub fn answers(&self, status: u16, headers: &[(&'static str, &'static str)]) {
        self.behave(Behaviour::Answers(StatusCode::from_u16(status).unwrap(), headers.to_vec()));
    }

    /// Sends any request; its body must be a success to read.
    pub async fn send<B>(&self, request: Request<B>) -> Result<Answer, BoxError>
    where
        B: Body<Data = Bytes, Error = Infallible> + Send + 'static,
    {
        let (behaviour, seen) = (Arc::clone(&self.behaviour), Arc::clone(&self.seen));
        let upstream = service_fn(move |request: Request<B>| {
            let (behaviour, seen) = (behaviour.lock().clone(), Arc::clone(&seen));
            async move {
                let (parts, body) = request.into_parts();
                let paid = parts.extensions.get().cloned();
                let body = body.collect().await.unwrap_or_else(|never| match never {}).to_bytes();
                seen.lock().push(Seen { headers: parts.headers, paid, body });
                match behaviour {
                    Behaviour::Answers(status, headers) => {
                        let mut response = Response::new(Pieces::whole(BODY));
                        *response.status_mut() = status;
                        for (name, value) in headers {
                            response.headers_mut().append(name, value.parse().unwrap());
                        }
                        Ok(response)
                    }
                    Behaviour::Fails => Err(BoxError::from("connection reset")),
                    Behaviour::Hangs => std::future::pending().await,
                    Behaviour::Panics => panic!("the upstream's own panic"),
                    Behaviour::Waits(let_go) => {
                        let_go.acquire().await?.forget();
                        Ok(Response::new(Pieces::whole(BODY)))
                    }
                    Behaviour::Streams(headers, pieces) => {
                        let body = Pieces { left: pieces.into(), known: false, pause: None };
                        let mut response = Response::new(body);
                        for (name, value) in headers {
                            response.headers_mut().append(name, value.parse().unwrap());
                        }
                        Ok(response)
                    }
                }
            }
        });
        let response = self.layer.layer(upstream).oneshot(request).await?;
        let (mut parts, body) = response.into_parts();
        let verdict = parts.extensions.remove().expect("every answer has a verdict");
        let body = body.collect().await?.to_bytes();
        Ok(Answer { status: parts.status, headers: parts.headers, body, verdict })
    }

    /// Gets a path, with a payment header or without.
    pub async fn get(&self, path: &str, payment: Option<Vec<u8>>) -> Result<Answer, BoxError> {
        let mut request = Request::builder().method(Method::GET).uri(path).header("host", "api.example.com");
        if let Some(payment) = payment {
            request = request.header("PAYMENT-SIGNATURE", payment);
        }
        self.send(request.body(Full::new(Bytes::from_static(BODY)))?).await
    }

    /// The only offer of a path.
    pub async fn offer(&self, path: &str) -> PaymentRequirements {
        let challenge = self.get(path, None).await.unwrap();
        challenge.required().unwrap().accepts.remove(0)
    }

    /// Pays for a path, as a client does: on the offer of a challenge.
    pub async fn pay(&self, path: &str, payload: &Value) -> Result<Answer, BoxError> {
        let offer = self.offer(path).await;
        self.get(path, Some(header(&offer, payload))).await
    }

    /// Pays for a quote; the upstream does not fail.
    pub async fn quote(&self, payload: &Value) -> Answer {
        self.pay("/quote", payload).await.unwrap()
    }

    /// How often the upstream was called.
    pub fn calls(&self) -> usize {
        self.seen.lock().len()
    }
}
