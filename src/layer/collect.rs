//! Collects an answer's body before it is charged, where the answer is to be kept or says in its body what it costs.
//!
//! Promises: no more than the limit and one frame is held; what is too long, takes too long to end, or ends with
//! trailers comes back with nothing of it lost, to be streamed on.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::response::Parts;
use http_body::{Body, Frame};
use tokio::time::{Instant, timeout_at};

use crate::gate::charge::is_stream;

/// How long a body whose size is known, and within the limit, may take.
const KNOWN_SIZE_WAIT_MAX: Duration = Duration::from_secs(10);
/// How long any other body may take.
const UNKNOWN_SIZE_WAIT_MAX: Duration = Duration::from_secs(1);

/// What became of a body.
pub(super) enum Collected<B> {
    /// All of it.
    Whole(Bytes),
    /// It goes on.
    Partly(VecDeque<Frame<Bytes>>, Pin<Box<B>>),
    /// It broke off.
    Broken,
}

/// Whether an answer is one to wait for in order to keep it.
pub(super) fn is_collectable(parts: &Parts) -> bool {
    succeeded(parts) && !is_stream(&parts.headers)
}

/// Whether an answer is charged for, and may have a body.
pub(super) fn succeeded(parts: &Parts) -> bool {
    (200..400).contains(&parts.status.as_u16())
}

/// How long to wait for a body that is only to be kept: its client sees nothing of it meanwhile.
pub(super) fn wait_to_keep(body: &impl Body) -> Duration {
    if body.size_hint().exact().is_some() { KNOWN_SIZE_WAIT_MAX } else { UNKNOWN_SIZE_WAIT_MAX }
}

/// Collects a body of up to `bytes_max`, for up to `wait`.
pub(super) async fn collect<B: Body<Data = Bytes>>(body: B, bytes_max: usize, wait: Duration) -> Collected<B> {
    let hint = body.size_hint();
    let mut body = Box::pin(body);
    let mut ahead = VecDeque::new();
    let limit = u64::try_from(bytes_max).unwrap_or(u64::MAX);
    if hint.lower() > limit {
        return Collected::Partly(ahead, body);
    }
    let now = Instant::now();
    let deadline = now.checked_add(wait).unwrap_or(now);
    let mut bytes = 0_usize;
    loop {
        match timeout_at(deadline, poll_fn(|context| body.as_mut().poll_frame(context))).await {
            Ok(None) => return Collected::Whole(join(&ahead)),
            Ok(Some(Ok(frame))) => {
                let length = frame.data_ref().map(Bytes::len);
                ahead.push_back(frame);
                bytes = bytes.saturating_add(length.unwrap_or(0));
                if length.is_none() || bytes > bytes_max {
                    return Collected::Partly(ahead, body);
                }
            }
            Ok(Some(Err(_))) => return Collected::Broken,
            Err(_) => return Collected::Partly(ahead, body),
        }
    }
}

/// One piece, copied only where there are several.
fn join(frames: &VecDeque<Frame<Bytes>>) -> Bytes {
    let mut pieces = frames.iter().filter_map(Frame::data_ref);
    match (pieces.next(), pieces.next()) {
        (None, _) => Bytes::new(),
        (Some(only), None) => only.clone(),
        (Some(_), Some(_)) => {
            let mut whole = BytesMut::new();
            frames.iter().filter_map(Frame::data_ref).for_each(|piece| whole.extend_from_slice(piece));
            whole.freeze()
        }
    }
}
