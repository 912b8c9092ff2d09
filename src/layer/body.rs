//! The body of an answer: the upstream's own, untouched, what was collected of it, or a short one of ours.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

pin_project! {
    /// The upstream's body, passed through frame by frame, or a short one of ours.
    pub struct ResponseBody<B> {
        #[pin]
        kind: Kind<B>,
    }
}

pin_project! {
    #[project = Projected]
    enum Kind<B> {
        Inner {
            #[pin]
            body: B,
        },
        Rest {
            ahead: VecDeque<Frame<Bytes>>,
            body: Pin<Box<B>>,
        },
        Own {
            left: Option<Bytes>,
        },
    }
}

/// A body without the layer around it.
#[derive(Debug)]
pub enum Simple<B> {
    /// The upstream's own.
    Inner(B),
    /// A short one of ours.
    Own(Bytes),
}

impl<B> ResponseBody<B> {
    pub(super) fn inner(body: B) -> Self {
        Self { kind: Kind::Inner { body } }
    }

    /// What was collected of a body, then the rest of it.
    pub(super) fn rest(ahead: VecDeque<Frame<Bytes>>, body: Pin<Box<B>>) -> Self {
        Self { kind: Kind::Rest { ahead, body } }
    }

    /// The upstream's own body where that is all of it, or a short one of ours: whoever has bodies of its own need not
    /// wrap these.
    ///
    /// # Errors
    /// The body itself where it is neither.
    pub fn simplify(self) -> Result<Simple<B>, Self> {
        match self.kind {
            Kind::Inner { body } => Ok(Simple::Inner(body)),
            Kind::Own { left } => Ok(Simple::Own(left.unwrap_or_default())),
            kind @ Kind::Rest { .. } => Err(Self { kind }),
        }
    }

    pub(super) fn own(bytes: Bytes) -> Self {
        Self { kind: Kind::Own { left: Some(bytes).filter(|bytes| !bytes.is_empty()) } }
    }
}

impl<B: Body<Data = Bytes>> Body for ResponseBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match self.project().kind.project() {
            Projected::Inner { body } => body.poll_frame(context),
            Projected::Rest { ahead, body } => match ahead.pop_front() {
                Some(frame) => Poll::Ready(Some(Ok(frame))),
                None => body.as_mut().poll_frame(context),
            },
            Projected::Own { left } => Poll::Ready(left.take().map(|bytes| Ok(Frame::data(bytes)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Inner { body } => body.is_end_stream(),
            Kind::Rest { ahead, body } => ahead.is_empty() && body.is_end_stream(),
            Kind::Own { left } => left.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Inner { body } => body.size_hint(),
            Kind::Rest { ahead, body } => {
                let ahead = ahead.iter().filter_map(Frame::data_ref).map(Bytes::len).sum::<usize>();
                let ahead = u64::try_from(ahead).unwrap_or(u64::MAX);
                let rest = body.size_hint();
                let mut hint = SizeHint::new();
                hint.set_lower(rest.lower().saturating_add(ahead));
                if let Some(upper) = rest.upper() {
                    hint.set_upper(upper.saturating_add(ahead));
                }
                hint
            }
            Kind::Own { left } => {
                let length = left.as_ref().map_or(0, Bytes::len);
                SizeHint::with_exact(u64::try_from(length).unwrap_or(u64::MAX))
            }
        }
    }
}
