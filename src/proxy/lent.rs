//! A request body that is lent to an upstream, and can be had back as long as nothing was taken from it.
//!
//! Owns [`Lent`] and its other end, [`Loan`]. Promises that a body comes back whole or not at all, which is what makes
//! sending a request to a second upstream safe; and tells an upstream that does not answer from a client that is
//! still sending.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::body::{Body, BoxError};
use super::failure::Failure;

#[derive(Debug)]
pub(crate) struct State {
    body: Body,
    touched: bool,
    /// The client has to send before anything can go on.
    waiting: bool,
    /// What the client did wrong. It is kept here, because over HTTP/2 the error that comes back has lost its cause.
    fault: Option<Failure>,
    /// When the upstream last took a frame or was handed the end.
    since: Instant,
}

/// The lender's end.
#[derive(Clone, Debug)]
pub(crate) enum Loan {
    /// There is no body.
    Empty,
    Body(Arc<Mutex<State>>),
}

/// Lends a body: the body to send, and the lender's end.
pub(crate) fn lend(body: Body) -> (Body, Loan) {
    if body.is_end_stream() {
        return (Body::empty(), Loan::Empty);
    }
    let state = State { body, touched: false, waiting: false, fault: None, since: Instant::now() };
    let state = Arc::new(Mutex::new(state));
    (Body::wrap(Lent(state.clone())), Loan::Body(state))
}

impl Loan {
    /// Takes the body back, where nothing was taken from it.
    pub(crate) fn reclaim(self) -> Option<Body> {
        match self {
            Self::Empty => Some(Body::empty()),
            Self::Body(state) => {
                let mut state = state.lock();
                (!state.touched).then(|| {
                    state.touched = true;
                    std::mem::take(&mut state.body)
                })
            }
        }
    }

    /// What the client did wrong with the body, if it did; asked once.
    pub(crate) fn fault(&self) -> Option<Failure> {
        match self {
            Self::Empty => None,
            Self::Body(state) => state.lock().fault.take(),
        }
    }

    /// Waits until the upstream has had the move for `patience` without making one.
    pub(crate) async fn exhausted(&self, patience: Duration) {
        let start = Instant::now();
        let Some(mut until) = start.checked_add(patience) else { return std::future::pending().await };
        loop {
            // Only then is it asked what has happened: most answers are there long before.
            tokio::time::sleep_until(until).await;
            let since = match self {
                Self::Empty => return,
                Self::Body(state) => {
                    let state = state.lock();
                    if state.waiting { Instant::now() } else { state.since.max(start) }
                }
            };
            until = match since.checked_add(patience) {
                Some(next) if next > Instant::now() => next,
                Some(_) | None => return,
            };
        }
    }
}

struct Lent(Arc<Mutex<State>>);

impl HttpBody for Lent {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut state = self.0.lock();
        state.touched = true;
        let frame = Pin::new(&mut state.body).poll_frame(cx);
        state.waiting = frame.is_pending();
        if let Poll::Ready(frame) = &frame {
            state.since = Instant::now();
            if let Some(Err(error)) = frame {
                state.fault = Failure::from_body(&**error);
            }
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.0.lock().body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.lock().body.size_hint()
    }
}
