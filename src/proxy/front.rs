//! The outermost layer around a request: limits before, failures after.
//!
//! Owns the checks that need no knowledge of routes or payments, and the bounds on a request's body. Promises that
//! the service inside sees only requests within the limits, each with exactly one `Host` that can be believed and with
//! a [`Peer`] (and, where it may upgrade, a [`Tracker`]) among its extensions, and that every failure becomes a response
//! here and nowhere else.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, UPGRADE};
use http::{Method, Request, Response, Version};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use tower::Service;

use super::activity::{Activity, Busy};
use super::body::{Body, Bounded, BoxError, Sender};
use super::drain::Tracker;
use super::failure::{Failure, chain};
use super::headers;

/// Who is at the other end of the connection; an extension of every request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its address, as the socket has it.
    pub address: SocketAddr,
    /// Whether the connection is under TLS.
    pub tls: bool,
}

/// What a request may measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The request target.
    pub uri_bytes_max: usize,
    /// All header fields together, as HTTP/1 writes them.
    pub headers_bytes_max: usize,
    /// The number of header fields.
    pub headers_max: usize,
    /// The body; `None` for no limit.
    pub body_bytes_max: Option<u64>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { uri_bytes_max: 8 << 10, headers_bytes_max: 64 << 10, headers_max: 100, body_bytes_max: Some(1 << 30) }
    }
}

/// The requests under way in the whole process, and how many may be.
#[derive(Clone, Debug)]
pub(crate) struct InFlight {
    count: Arc<AtomicUsize>,
    max: usize,
}

impl InFlight {
    pub(crate) fn new(max: usize) -> Self {
        Self { count: Arc::default(), max }
    }
}

/// A request's place among those under way. It holds what its connection has in common, which no other thread touches,
/// so that the one number that all threads share is touched twice for a request and not four times.
struct Place(Arc<Front>);

impl Place {
    fn take(front: &Arc<Front>) -> Result<Self, Failure> {
        let InFlight { count, max } = &front.in_flight;
        let place = Self(Arc::clone(front));
        let before = count.fetch_add(1, Ordering::Relaxed);
        if before < *max { Ok(place) } else { Err(Failure::Overloaded { max: *max }) }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.in_flight.count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What the requests of one connection have in common.
#[derive(Clone, Debug)]
pub(crate) struct Front {
    pub(crate) peer: Peer,
    pub(crate) limits: Limits,
    pub(crate) body_idle: Duration,
    pub(crate) in_flight: InFlight,
    pub(crate) tracker: Tracker,
    pub(crate) activity: Activity,
}

impl Front {
    /// Answers one request through `service`.
    pub(crate) async fn answer<S, B>(
        self: Arc<Self>,
        mut service: S,
        request: Request<Incoming>,
    ) -> Result<Response<Outgoing>, Infallible>
    where
        S: Service<Request<Body>, Response = Response<B>>,
        S::Error: Into<Failure>,
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let busy = self.activity.begin(request.version() == Version::HTTP_2);
        let (place, admitted) = match Place::take(&self) {
            Ok(place) => (Some(place), self.admit(request)),
            Err(failure) => (None, Err(failure)),
        };
        let answer = match admitted {
            Err(failure) => Err(failure),
            Ok(request) => {
                let ready = std::future::poll_fn(|cx| service.poll_ready(cx).map_err(Into::<Failure>::into)).await;
                match ready {
                    Ok(()) => service.call(request).await.map_err(Into::into),
                    Err(failure) => Err(failure),
                }
            }
        };
        let response = answer.map_or_else(Failure::into_response, |response| response.map(Body::wrap));
        Ok(response.map(|body| Outgoing { body, busy, _place: place }))
    }

    /// Checks a request's head and bounds its body.
    fn admit(&self, request: Request<Incoming>) -> Result<Request<Body>, Failure> {
        let (mut head, body) = request.into_parts();
        let limits = &self.limits;
        if head.method == Method::CONNECT {
            return Err(Failure::MethodNotAllowed);
        }
        let target = head.uri.path_and_query().map_or(0, |target| target.as_str().len());
        if target > limits.uri_bytes_max {
            return Err(Failure::UriTooLong { max: limits.uri_bytes_max });
        }
        if !head.uri.path().starts_with('/') {
            return Err(Failure::BadRequest("the request target is not a path"));
        }
        if climbs(head.uri.path()) {
            return Err(Failure::BadRequest("the request target has a segment . or .."));
        }
        if head.headers.len() > limits.headers_max || headers::size(&head.headers) > limits.headers_bytes_max {
            let (max_bytes, max_fields) = (limits.headers_bytes_max, limits.headers_max);
            return Err(Failure::HeadersTooLarge { max_bytes, max_fields });
        }
        headers::settle_host(&mut head.headers, &head.uri, head.version).map_err(Failure::BadRequest)?;
        if let Some(max) = limits.body_bytes_max {
            let length = head.headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
            if length.is_some_and(|length| length > max) || body.size_hint().lower() > max {
                return Err(Failure::BodyTooLarge { max });
            }
        }
        head.extensions.insert(self.peer);
        if head.headers.contains_key(UPGRADE) {
            head.extensions.insert(self.tracker.clone());
        }
        Ok(Request::from_parts(head, self.bound(body)))
    }

    fn bound(&self, body: Incoming) -> Body {
        if body.is_end_stream() {
            return Body::empty();
        }
        Body::wrap(Bounded::new(body, Sender::Client, self.limits.body_bytes_max, self.body_idle))
    }
}

/// Whether some server could take a part of the path for `.` or `..`, and so for another path than the one that is
/// matched, priced and paid for. Clients resolve such segments before they send.
fn climbs(path: &str) -> bool {
    if !path.bytes().any(|byte| matches!(byte, b'.' | b'%')) {
        return false;
    }
    let dots =
        |path: &str| path.split(['/', '\\']).any(|segment| matches!(segment.split(';').next(), Some("." | "..")));
    if !path.contains('%') {
        return dots(path);
    }
    let path = path.to_ascii_lowercase().replace("%2e", ".").replace("%2f", "/").replace("%5c", "\\");
    dots(&path.replace("%3b", ";"))
}

/// A response body on its way to the client. The request is under way until it is dropped.
pub(crate) struct Outgoing {
    body: Body,
    busy: Busy,
    _place: Option<Place>,
}

impl HttpBody for Outgoing {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.busy.handed(false);
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        match &frame {
            Poll::Ready(Some(Ok(_))) => self.busy.handed(true),
            Poll::Ready(Some(Err(error))) => {
                tracing::warn!(cause = chain(&**error), "a response was cut short: look into the upstream's own log");
            }
            Poll::Ready(None) | Poll::Pending => {}
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::climbs;

    #[test]
    fn paths_that_could_be_another() {
        for path in [
            "/a/..",
            "/a/../b",
            "/./a",
            "/a/%2E./b",
            "/a/..%2fb",
            "/a/..;/b",
            "/a/.%2e%3bx/b",
            "/a\\..\\b",
            "/a%5c..%5Cb",
        ] {
            assert!(climbs(path), "{path}");
        }
        for path in ["/", "/a..b/c.", "/...", "/.well-known/x", "/a/%2e%2e%2e", "/v1/quote/BTC%2FUSD", "/a;b=.."] {
            assert!(!climbs(path), "{path}");
        }
    }
}
