//! About the least that a paid proxy on hyper does for a request: the bare proxy, one signature's check and one durable
//! line.
//!
//! Takes the same requests as Turnpike's paid route and answers with as many bytes of headers, but reads nothing of a
//! payment and keeps no balances. What is between this and Turnpike is Turnpike's own; what is between this and the bare
//! proxy is what paying by the call costs any proxy that is built so.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use http::{HeaderName, HeaderValue, Request, Response};
use hyper::body::Incoming;
use tokio::sync::oneshot;

use super::BenchError;
use super::compare::Signed;
use crate::ledger::sqlite::{COMPANY, COMPANY_WAIT};
use crate::x402::header::{PAYMENT_RESPONSE, PAYMENT_SIGNATURE};

/// What is kept of each request, in bytes: as much as a charge's entry in the audit record.
const LINE_BYTES: usize = 590;
/// Room that lines are written into, again and again: a file that grows takes longer to flush.
const ROOM_BYTES: u64 = 16 << 20;
/// The value of `PAYMENT-RESPONSE`, in bytes: about as many as a charge's.
const RESPONSE_BYTES: usize = 600;

/// What one thread checks requests with.
pub(super) struct Checks {
    signed: Vec<Signed>,
    next: AtomicUsize,
}

impl Checks {
    pub(super) fn new() -> Self {
        Self { signed: Signed::all(), next: AtomicUsize::new(0) }
    }

    /// Checks one signature, in turn.
    pub(super) fn check(&self) -> bool {
        let at = self.next.fetch_add(1, Ordering::Relaxed);
        at.checked_rem(self.signed.len()).and_then(|at| self.signed.get(at)).is_some_and(Signed::verifies)
    }
}

/// Where each request leaves a line before it is answered.
#[derive(Clone)]
pub(super) struct Lines(Sender<oneshot::Sender<()>>);

impl Lines {
    /// Starts the thread that writes, to a file that is made here.
    pub(super) fn start(path: &Path) -> Result<Self, BenchError> {
        let file = File::create(path)?;
        file.write_all_at(&vec![b'\n'; usize::try_from(ROOM_BYTES)?], 0)?;
        file.sync_all()?;
        let (sender, queue) = channel();
        std::thread::Builder::new().name("lines".to_owned()).spawn(move || write(&file, &queue))?;
        Ok(Self(sender))
    }

    /// Leaves a line; it is on the disk when this returns.
    pub(super) async fn keep(&self) -> Result<(), BenchError> {
        let (kept, is_kept) = oneshot::channel();
        self.0.send(kept)?;
        Ok(is_kept.await?)
    }
}

/// One write and one flush for all that wait, and a moment for company as the ledger's store has it. Ends where a flush
/// fails, and whoever waits is told by that.
fn write(file: &File, queue: &Receiver<oneshot::Sender<()>>) -> std::io::Result<()> {
    let (mut at, mut company) = (0, 0);
    let mut waiting = Vec::new();
    while let Ok(first) = queue.recv() {
        if company >= COMPANY {
            std::thread::sleep(COMPANY_WAIT);
        }
        waiting.push(first);
        waiting.extend(queue.try_iter());
        company = waiting.len();
        let lines = vec![b'x'; waiting.len().saturating_mul(LINE_BYTES)];
        file.write_all_at(&lines, at)?;
        file.sync_data()?;
        // What is written at once never reaches from the room's middle to its end.
        at = at.saturating_add(lines.len() as u64) % (ROOM_BYTES / 2);
        for kept in waiting.drain(..) {
            let _gone = kept.send(());
        }
    }
    Ok(())
}

/// Takes the payment off a request.
pub(super) fn strip(mut request: Request<Incoming>) -> Request<Incoming> {
    request.headers_mut().remove(PAYMENT_SIGNATURE);
    request
}

/// Puts what was charged on an answer.
pub(super) fn told<B>(mut response: Response<B>) -> Result<Response<B>, BenchError> {
    let value = HeaderValue::from_maybe_shared(vec![b'x'; RESPONSE_BYTES])?;
    response.headers_mut().insert(HeaderName::from_static(PAYMENT_RESPONSE), value);
    Ok(response)
}
