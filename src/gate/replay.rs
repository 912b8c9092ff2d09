//! Lost answers, had again: extension `payment-identifier`.
//!
//! A payment that carries an id is known by it: the same payment for the same request gets the answer that was sent,
//! looked up before the payment is verified, for it may not verify any more; anything else under that id is a conflict.
//! While the first request is being served, its repeats wait for it. What is refused or released is not remembered: its
//! id is free.
//!
//! Promises: a repeat that is answered from here never reaches the upstream and never charges; an answer is given to
//! nobody but who sends the exact payment that it was given to, for the same method, host, path and query. The lookup
//! is unauthenticated, so it says nothing to anybody else but that an id is taken; ids are scoped by host and by the
//! payer that the payment names, and only a charge keeps one, so nobody can take another payer's.
//!
//! Source: `extensions/payment_identifier.md`, "Idempotency Behavior" and "Recovering a Lost Response".

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use parking_lot::Mutex;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::refusal::Denial;
use super::reply;
use super::{AdmitRequest, Charged};
use crate::ledger::answers::KeptAnswers;
use crate::ledger::store::{Answer, AnswerId, AnswerMark};
use crate::scheme::exact_evm::Version;
use crate::x402::payment_identifier;
use crate::x402::wire::PaymentPayload;

/// How many repeats may wait for one request.
const WAITERS_MAX: usize = 8;
/// How many requests with an id may be served at once.
const IN_FLIGHT_MAX: usize = 65_536;
/// The longest head that is kept.
const HEAD_BYTES_MAX: usize = 32 * 1024;

/// How lost answers are kept and given again. For how long and how many: [`crate::ledger::answers::AnswerLimits`].
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The longest body that is kept.
    pub body_bytes_max: usize,
    /// How long a repeat waits for the request that is still being served.
    pub wait_max: Duration,
}

impl Default for Options {
    /// 64 KiB, 10 seconds.
    fn default() -> Self {
        Self { body_bytes_max: 64 * 1024, wait_max: Duration::from_secs(10) }
    }
}

/// An answer that is to be kept, and what by. Boxed, for it is carried through much that most requests need not.
pub(super) type Keep = Box<(AnswerId, Draft)>;

/// An answer that is whole and about to be sent, but for what the payment adds.
#[derive(Clone, Debug)]
pub struct Draft {
    /// Its status.
    pub status: StatusCode,
    /// Its headers, as they will be sent.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

impl Draft {
    /// As it is sent.
    pub(super) fn answer(mut self, charged: &Charged) -> Answer {
        // Version 1 has no extensions, so no id.
        reply::paid(&mut self.headers, charged, Version::V2);
        Answer { status: self.status.as_u16(), head: reply::head(&self.headers), body: self.body }
    }

    /// Its size, without what the payment adds; `None` where its head is too long to be kept.
    pub(super) fn bytes(&self) -> Option<u64> {
        let head = reply::head(&self.headers).len();
        u64::try_from(head.saturating_add(self.body.len())).ok().filter(|_| head <= HEAD_BYTES_MAX)
    }
}

/// Requests with an id: those that are being served, and through the ledger those that were.
pub(super) struct Replays {
    /// Where answers are kept: the ledgers.
    kept: Vec<Arc<dyn KeptAnswers>>,
    in_flight: Mutex<HashMap<[u8; 32], InFlight>>,
    options: Options,
}

struct InFlight {
    fingerprint: [u8; 32],
    /// Dropped when the request has ended.
    ended: watch::Sender<()>,
}

/// What is known of an id.
pub(super) enum Known {
    /// Nothing: the request is to be served, and holds its id while it is.
    New(Claim),
    /// Its answer.
    Answer(Box<Answer>),
}

/// An id that is being served. Dropped, it is free again, or found through the ledger.
pub(super) struct Claim {
    replays: Arc<Replays>,
    pub(super) id: AnswerId,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.replays.in_flight.lock().remove(&self.id.key);
    }
}

impl Claim {
    /// The longest body that is kept.
    pub(super) fn body_bytes_max(&self) -> usize {
        self.replays.options.body_bytes_max
    }
}

/// What to do next with a request that has an id.
enum Next {
    Serve(Claim),
    Read(Arc<dyn KeptAnswers>, AnswerMark),
    Wait(watch::Receiver<()>),
}

impl Replays {
    pub(super) fn new(kept: Vec<Arc<dyn KeptAnswers>>, options: Options) -> Arc<Self> {
        Arc::new(Self { kept, in_flight: Mutex::default(), options })
    }

    /// What is known of a payment's id; `None` where it has none.
    pub(super) async fn look(
        self: &Arc<Self>,
        request: &AdmitRequest<'_>,
        header: &[u8],
        payment: &PaymentPayload,
    ) -> Result<Option<Known>, Denial> {
        let id = payment_identifier::id(&payment.extensions).map_err(|error| Denial::malformed(error.to_string()))?;
        let Some(id) = id else { return Ok(None) };
        self.known(answer_id(id, request, header, payment)).await.map(Some)
    }

    async fn known(self: &Arc<Self>, id: AnswerId) -> Result<Known, Denial> {
        let now = Instant::now();
        let deadline = now.checked_add(self.options.wait_max).unwrap_or(now);
        let mut unreadable = None;
        loop {
            match self.next(id, unreadable)? {
                Next::Serve(claim) => return Ok(Known::New(claim)),
                Next::Read(kept, mark) => match kept.read(&mark).await {
                    Ok(Some(answer)) => return Ok(Known::Answer(Box::new(answer))),
                    // It had to go a moment ago.
                    Ok(None) => unreadable = Some(mark.place),
                    Err(error) => {
                        tracing::warn!(%error, "a kept answer cannot be read");
                        return Err(Denial::in_process("the answer cannot be read at the moment; send the same again"));
                    }
                },
                // Nothing is ever sent: the wait ends when the other end is dropped.
                Next::Wait(mut ended) => {
                    if timeout_at(deadline, ended.changed()).await.is_err() {
                        let detail = "the first request with this id is still being served; send the same again";
                        return Err(Denial::in_process(detail));
                    }
                }
            }
        }
    }

    /// Claims an id that is free, under one lock: of two equal requests, one waits for the other.
    fn next(self: &Arc<Self>, id: AnswerId, unreadable: Option<u64>) -> Result<Next, Denial> {
        let mut in_flight = self.in_flight.lock();
        if let Some(first) = in_flight.get(&id.key) {
            if first.fingerprint != id.fingerprint {
                return Err(Denial::conflict());
            }
            if first.ended.receiver_count() >= WAITERS_MAX {
                return Err(Denial::in_process(
                    "too many wait for the first request with this id; send the same again",
                ));
            }
            return Ok(Next::Wait(first.ended.subscribe()));
        }
        // The ledger has it before its claim is dropped, so it is never in neither place.
        for kept in &self.kept {
            match kept.find(&id.key) {
                Some(mark) if mark.id.fingerprint != id.fingerprint => return Err(Denial::conflict()),
                Some(mark) if unreadable != Some(mark.place) => return Ok(Next::Read(Arc::clone(kept), mark)),
                Some(_) | None => {}
            }
        }
        if in_flight.len() >= IN_FLIGHT_MAX {
            return Err(Denial::in_process("too many requests with an id are being served; try again"));
        }
        in_flight.insert(id.key, InFlight { fingerprint: id.fingerprint, ended: watch::Sender::new(()) });
        Ok(Next::Serve(Claim { replays: Arc::clone(self), id }))
    }
}

/// The digests of a request with an id.
fn answer_id(id: &str, request: &AdmitRequest<'_>, header: &[u8], payment: &PaymentPayload) -> AnswerId {
    let host = request.host.unwrap_or_default().to_ascii_lowercase();
    // Who pays, as each scheme's payload says it; whether it is true shows when it is verified, and only then is
    // anything kept. Both count, so that nobody passes for another by naming two.
    let named = |pointer: &str| payment.payload.pointer(pointer).and_then(Value::as_str).unwrap_or_default().as_bytes();
    let payer = named("/channelConfig/payer");
    let from = ["/from", "/authorization/from", "/permit2Authorization/from"].map(named).concat();
    AnswerId {
        key: digest(&[b"turnpike answer key", host.as_bytes(), payer, &from, id.as_bytes()]),
        fingerprint: digest(&[
            b"turnpike answer fingerprint",
            request.method.as_str().as_bytes(),
            host.as_bytes(),
            request.target.as_bytes(),
            header,
        ]),
    }
}

/// SHA-256 over parts, each behind its length, so that no two lists are alike.
fn digest(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}
