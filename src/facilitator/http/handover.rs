//! A request's body that can be withdrawn until the connection takes it.
//!
//! Promises that exactly one of two things happens: the connection takes the body, or [`Handover::withdraw`] says `true`
//! and no connection ever will. A facilitator that did not get the body cannot have settled it, so this decides whether
//! another one may be asked, and needs no word of the HTTP library for it.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

/// The connection's end.
pub(super) struct Payload {
    left: Option<Bytes>,
    decided: Arc<AtomicBool>,
}

/// The asker's end.
pub(super) struct Handover(Arc<AtomicBool>);

/// The body was withdrawn: the request must not be sent.
#[derive(Debug, thiserror::Error)]
#[error("the request was withdrawn")]
pub(super) struct Withdrawn;

impl Payload {
    /// A body, and the asker's end of it. An empty one cannot be withdrawn: nobody could tell whether it was taken.
    pub(super) fn new(bytes: Bytes) -> (Self, Handover) {
        let decided = Arc::new(AtomicBool::new(bytes.is_empty()));
        (Self { left: Some(bytes).filter(|bytes| !bytes.is_empty()), decided: Arc::clone(&decided) }, Handover(decided))
    }
}

impl Handover {
    /// Whether no connection took the body, and from now on none can.
    pub(super) fn withdraw(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }
}

impl Body for Payload {
    type Data = Bytes;
    type Error = Withdrawn;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Withdrawn>>> {
        let Some(bytes) = self.left.take() else { return Poll::Ready(None) };
        let withdrawn = self.decided.swap(true, Ordering::AcqRel);
        Poll::Ready(Some(if withdrawn { Err(Withdrawn) } else { Ok(Frame::data(bytes)) }))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left.as_ref().map_or(0, |bytes| u64::try_from(bytes.len()).unwrap_or(u64::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    fn poll(payload: &mut Payload) -> Poll<Option<Result<Frame<Bytes>, Withdrawn>>> {
        Pin::new(payload).poll_frame(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn a_body_is_taken_or_withdrawn_and_never_both() {
        let (mut payload, handover) = Payload::new(Bytes::from_static(b"x"));
        assert_eq!(payload.size_hint().exact(), Some(1));
        assert!(matches!(poll(&mut payload), Poll::Ready(Some(Ok(_)))));
        assert!(!handover.withdraw(), "it was taken");
        assert!(payload.is_end_stream() && matches!(poll(&mut payload), Poll::Ready(None)));

        let (mut payload, handover) = Payload::new(Bytes::from_static(b"x"));
        assert!(handover.withdraw());
        assert!(matches!(poll(&mut payload), Poll::Ready(Some(Err(Withdrawn)))), "it cannot be taken any more");

        let (payload, handover) = Payload::new(Bytes::new());
        assert!(payload.is_end_stream() && !handover.withdraw());
    }
}
