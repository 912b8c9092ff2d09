//! Bodies: one type for whatever streams through, and the bounds put around it.
//!
//! Owns [`Body`] and [`BodyError`]. Promises that a body is passed on frame by frame (data and trailers), is never
//! collected, and keeps its size hint, so that a `Content-Length` stays one. Refuses a body that is longer than its
//! limit and a body whose sender falls silent.

use std::any::Any;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};

use super::headers;

/// Any error, as hyper and tower pass it.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A message body: nothing, some bytes, or a stream of frames. `Unpin`, so that it needs no pinning to be stored.
pub struct Body(Kind);

enum Kind {
    Empty,
    Full(Option<Bytes>),
    Stream(Pin<Box<dyn HttpBody<Data = Bytes, Error = BoxError> + Send>>),
}

impl Body {
    /// No body at all.
    #[must_use]
    pub const fn empty() -> Self {
        Self(Kind::Empty)
    }

    /// Takes any body for one of ours; a [`Body`] stays what it is, and an empty one costs nothing.
    pub fn wrap<B>(body: B) -> Self
    where
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let mut slot = Some(body);
        let any: &mut dyn Any = &mut slot;
        if let Some(ours) = any.downcast_mut::<Option<Self>>() {
            return ours.take().unwrap_or_default();
        }
        match slot {
            Some(body) if !body.is_end_stream() => Self(Kind::Stream(Box::pin(Boxed { body }))),
            _ => Self::empty(),
        }
    }

    /// Keeps `guard` alive for as long as the body lives.
    pub(crate) fn holding<G: Send + Unpin + 'static>(self, guard: G) -> Self {
        match self.0 {
            Kind::Stream(_) => Self(Kind::Stream(Box::pin(Holding { body: self, _guard: guard }))),
            Kind::Empty | Kind::Full(_) => self,
        }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut self.0 {
            Kind::Empty => Poll::Ready(None),
            Kind::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Kind::Stream(stream) => stream.as_mut().poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Empty => true,
            Kind::Full(bytes) => bytes.is_none(),
            Kind::Stream(stream) => stream.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Empty | Kind::Full(None) => SizeHint::with_exact(0),
            Kind::Full(Some(bytes)) => SizeHint::with_exact(u64::try_from(bytes.len()).unwrap_or(u64::MAX)),
            Kind::Stream(stream) => stream.size_hint(),
        }
    }
}

impl Default for Body {
    fn default() -> Self {
        Self::empty()
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.0 {
            Kind::Empty => "Body(empty)",
            Kind::Full(_) => "Body(bytes)",
            Kind::Stream(_) => "Body(stream)",
        })
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        if bytes.is_empty() { Self::empty() } else { Self(Kind::Full(Some(bytes))) }
    }
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Bytes::from(text).into()
    }
}

impl From<&'static str> for Body {
    fn from(text: &'static str) -> Self {
        Bytes::from_static(text.as_bytes()).into()
    }
}

impl From<Incoming> for Body {
    fn from(incoming: Incoming) -> Self {
        Self::wrap(incoming)
    }
}

/// Why a body ended before its end. It travels as the source of other errors; [`BodyError::within`] finds it there.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The client sent more than is allowed.
    #[error("the request body is longer than {max} bytes")]
    TooLarge {
        /// The limit.
        max: u64,
    },
    /// The client fell silent.
    #[error("the client sent nothing of its request body for {0:?}")]
    ClientIdle(Duration),
    /// The client's connection failed in the middle of its body.
    #[error("the request body ended early")]
    ClientBroke(#[source] BoxError),
    /// The upstream fell silent.
    #[error("the upstream sent nothing of its response body for {0:?}")]
    UpstreamIdle(Duration),
    /// The upstream's connection failed in the middle of its body.
    #[error("the response body ended early")]
    UpstreamBroke(#[source] BoxError),
}

impl BodyError {
    /// Finds the body error that caused another error.
    #[must_use]
    pub fn within<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Self> {
        std::iter::successors(Some(error), |error| error.source()).find_map(|error| error.downcast_ref())
    }
}

/// Whose body is bounded; decides what a failure is called.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Sender {
    Client,
    Upstream,
}

/// A body with a limit on its length and on the silence between two frames, and with its trailers cleaned.
///
/// The clock of the silence runs only while somebody waits for a frame: a slow reader is not the sender's fault.
pub(crate) struct Bounded<B> {
    body: B,
    sender: Sender,
    max: Option<u64>,
    seen: u64,
    idle: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    waiting: bool,
}

impl<B> Bounded<B> {
    pub(crate) fn new(body: B, sender: Sender, max: Option<u64>, idle: Duration) -> Self {
        Self { body, sender, max, seen: 0, idle, timer: None, waiting: false }
    }

    fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<BodyError> {
        let idle = self.idle;
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(idle)));
        if !self.waiting {
            self.waiting = true;
            if let Some(deadline) = Instant::now().checked_add(idle) {
                timer.as_mut().reset(deadline);
            }
        }
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(match self.sender {
            Sender::Client => BodyError::ClientIdle(idle),
            Sender::Upstream => BodyError::UpstreamIdle(idle),
        })
    }

    fn count(&mut self, frame: &Frame<Bytes>) -> Result<(), BodyError> {
        let (Some(max), Some(data)) = (self.max, frame.data_ref()) else { return Ok(()) };
        self.seen = self.seen.saturating_add(u64::try_from(data.len()).unwrap_or(u64::MAX));
        if self.seen > max { Err(BodyError::TooLarge { max }) } else { Ok(()) }
    }
}

impl<B> HttpBody for Bounded<B>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else {
            return self.poll_silence(cx).map(|error| Some(Err(error.into())));
        };
        self.waiting = false;
        Poll::Ready(match frame {
            Some(Ok(mut frame)) => {
                if let Some(trailers) = frame.trailers_mut() {
                    headers::strip_trailers(trailers);
                }
                Some(self.count(&frame).map(|()| frame).map_err(Into::into))
            }
            Some(Err(error)) => Some(Err(match self.sender {
                Sender::Client => BodyError::ClientBroke(error.into()),
                Sender::Upstream => BodyError::UpstreamBroke(error.into()),
            }
            .into())),
            None => None,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

pin_project_lite::pin_project! {
    struct Boxed<B> {
        #[pin]
        body: B,
    }
}

impl<B> HttpBody for Boxed<B>
where
    B: HttpBody<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.project().body.poll_frame(cx).map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

struct Holding<G> {
    body: Body,
    _guard: G,
}

impl<G: Unpin> HttpBody for Holding<G> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
