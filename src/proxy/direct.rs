//! Connections in the clear to one HTTP/1.1 upstream, as a neighbour of the proxy usually is.
//!
//! Owns the connections of one serving thread, idle ones included. Spares what a pool for every protocol (`hyper_util`'s)
//! does for each request: a key, a place in a queue, a task that watches for the end. Here a connection goes along with its
//! answer's body and is idle when that has ended. Promises that a connection carries one exchange at a time, that one whose exchange was broken off is not used again, that idle ones are
//! few and not kept for long, and that a request is sent again only where hyper gives it back whole: not begun, on a
//! connection that had been idle.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::HOST;
use http::uri::PathAndQuery;
use http::{HeaderValue, Request, Response, Uri};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use parking_lot::Mutex;
use tokio::time::Instant;
use tower::Service;

use super::body::{Body, BoxError};
use super::endpoint::Connector;

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum DirectError {
    /// There is no connection, so nothing was sent.
    Connect(BoxError),
    /// The exchange failed.
    Broke(hyper::Error),
}

/// How connections are kept.
#[derive(Clone, Debug)]
pub(crate) struct Keeping {
    /// How long one may be idle.
    pub(crate) idle: Duration,
    /// How many may be idle.
    pub(crate) idle_max: usize,
    /// The head of an answer, in bytes.
    pub(crate) head_bytes_max: usize,
}

/// The connections to an upstream. Clones share them.
#[derive(Clone)]
pub(crate) struct Direct {
    shared: Arc<Shared>,
}

struct Shared {
    connector: Connector,
    /// Where to connect to.
    address: Uri,
    /// The upstream's own name.
    host: HeaderValue,
    keeping: Keeping,
    idle: Mutex<Idle>,
}

#[derive(Default)]
struct Idle {
    /// The one that was used last is at the end.
    connections: VecDeque<(SendRequest<Body>, Instant)>,
    /// Whether a task ends those that are idle for too long.
    is_watched: bool,
}

impl Direct {
    /// No connection yet.
    pub(crate) fn new(connector: Connector, address: Uri, host: HeaderValue, keeping: Keeping) -> Self {
        Self { shared: Arc::new(Shared { connector, address, host, keeping, idle: Mutex::default() }) }
    }

    /// Sends a request for `target`, and gives back the answer with its body on the way.
    pub(crate) async fn request(
        self,
        mut request: Request<Body>,
        target: PathAndQuery,
    ) -> Result<Response<Received>, DirectError> {
        *request.uri_mut() = Uri::from(target);
        let headers = request.headers_mut();
        if !headers.contains_key(HOST) {
            headers.insert(HOST, self.shared.host.clone());
        }
        loop {
            let kept = self.shared.take();
            let was_idle = kept.is_some();
            let mut connection = match kept {
                Some(kept) => kept,
                // Seldom, and large: what waits for an answer is moved for every request.
                None => Box::pin(self.shared.connect()).await?,
            };
            match connection.try_send_request(request).await {
                Ok(response) => return Ok(response.map(|body| Received::new(body, Some((self.shared, connection))))),
                Err(mut error) => match error.take_message().filter(|_| was_idle) {
                    Some(unsent) => request = unsent,
                    None => return Err(DirectError::Broke(error.into_error())),
                },
            }
        }
    }
}

impl Shared {
    /// An idle connection that can take a request at once: the one that was used last.
    fn take(&self) -> Option<SendRequest<Body>> {
        let connections = &mut self.idle.lock().connections;
        let fresh = Instant::now().checked_sub(self.keeping.idle);
        for place in (0..connections.len()).rev() {
            let (connection, since) = connections.get(place)?;
            // Those in front were used earlier still.
            if fresh.is_some_and(|fresh| *since <= fresh) {
                return None;
            }
            // One that has answered before it had the whole request takes no other yet.
            let (is_closed, is_ready) = (connection.is_closed(), connection.is_ready());
            if is_closed || is_ready {
                let taken = connections.remove(place);
                if !is_closed {
                    return taken.map(|(connection, _)| connection);
                }
            }
        }
        None
    }

    async fn connect(&self) -> Result<SendRequest<Body>, DirectError> {
        let stream = self.connector.clone().call(self.address.clone()).await.map_err(DirectError::Connect)?;
        let mut builder = http1::Builder::new();
        builder.max_buf_size(self.keeping.head_bytes_max);
        let connected = builder.handshake(stream).await;
        let (mut connection, serving) = connected.map_err(|error| DirectError::Connect(error.into()))?;
        drop(tokio::spawn(async move {
            // Whoever waits for an answer is told too.
            if let Err(error) = serving.with_upgrades().await {
                tracing::debug!(%error, "a connection to an upstream failed");
            }
        }));
        connection.ready().await.map_err(|error| DirectError::Connect(error.into()))?;
        Ok(connection)
    }

    /// Takes a connection back whose exchange is over.
    fn put_back(self: Arc<Self>, connection: SendRequest<Body>) {
        if connection.is_closed() || self.keeping.idle_max == 0 {
            return;
        }
        let mut idle = self.idle.lock();
        if idle.connections.len() >= self.keeping.idle_max {
            drop(idle.connections.pop_front());
        }
        idle.connections.push_back((connection, Instant::now()));
        if !idle.is_watched {
            idle.is_watched = true;
            drop(tokio::spawn(watch(Arc::downgrade(&self), self.keeping.idle)));
        }
    }

    /// Ends what is idle for too long; says whether anything is left.
    fn end_old(&self) -> bool {
        let idle = &mut *self.idle.lock();
        if let Some(fresh) = Instant::now().checked_sub(self.keeping.idle) {
            idle.connections.retain(|(connection, since)| *since > fresh && !connection.is_closed());
        }
        idle.is_watched = !idle.connections.is_empty();
        idle.is_watched
    }
}

/// Ends idle connections for as long as there are any.
async fn watch(shared: Weak<Shared>, every: Duration) {
    loop {
        tokio::time::sleep(every).await;
        let Some(shared) = shared.upgrade() else { return };
        if !shared.end_old() {
            return;
        }
    }
}

/// An answer's body, with the connection that it comes over where that is ours. Dropped before its end, it takes the
/// connection along.
pub(crate) struct Received {
    body: Incoming,
    over: Option<(Arc<Shared>, SendRequest<Body>)>,
}

impl Received {
    fn new(body: Incoming, over: Option<(Arc<Shared>, SendRequest<Body>)>) -> Self {
        let mut received = Self { body, over };
        received.end_where_it_ends();
        received
    }

    fn end_where_it_ends(&mut self) {
        if self.body.is_end_stream() {
            self.end();
        }
    }

    fn end(&mut self) {
        if let Some((shared, connection)) = self.over.take() {
            shared.put_back(connection);
        }
    }
}

impl From<Incoming> for Received {
    fn from(body: Incoming) -> Self {
        Self { body, over: None }
    }
}

impl HttpBody for Received {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        match &frame {
            Poll::Ready(Some(Ok(_))) => self.end_where_it_ends(),
            Poll::Ready(None) => self.end(),
            Poll::Ready(Some(Err(_))) | Poll::Pending => {}
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
