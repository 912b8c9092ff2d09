//! Call packs: buying one, and calls on its pass.
//!
//! A pack is bought by a payment for one of its offers (`challenge.rs`), which goes the way of every such payment; the buying
//! request is the pack's first call. Its charge and its pass become durable in one write, once the upstream has answered with
//! a success, so nobody is charged without a pass, and nobody has a pass who was not charged.
//!
//! The pass's token is made of 32 random bytes and of the payment that buys it, by SHA-256, and is kept nowhere. A kept answer
//! holds the random bytes in its place (a seal), so that the token can be made again for who sends the very same payment
//! again (`replay.rs`), and by nobody from what is stored. Where a purchase has an id but its answer cannot be kept, a
//! receipt is kept in its stead, so that the pass can be had again whatever the upstream answers.
//!
//! A call on a pass is looked up and held back, and counted where a price would be charged; a pass is refused before policy
//! is asked about its payer, whom nobody else can use up the limits of. Source: `docs/decisions/0014-call-packs.md`.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, StatusCode};
use sha2::{Digest, Sha256};

use super::admission::{Admission, Held};
use super::challenge::PreparedOffer;
use super::challenge::Way;
use super::refusal::Denial;
use super::replay::Draft;
use super::route::Pack;
use super::{AdmitRequest, Context, Finished, Gate, Outcome, Paid};
use crate::amount::Amount;
use crate::clock::UnixMillis;
use crate::ledger::Reservation;
use crate::ledger::channel::{Evm, Family, Svm};
use crate::ledger::passes::{PassCall, PassId, PassRecord, PassRefused, PassRoom};
use crate::ledger::store::Answer;
use crate::scheme::exact_evm::Version;
use crate::x402::call_pack::{self, PASS_CHARS, PackSold, PassToken};
use crate::x402::header::PAYMENT_RESPONSE;
use crate::x402::{Network, Reason};

/// What stands in a kept answer's head for the token: what it was made of beside the payment.
const SEAL: &str = "turnpike-pass-seal";

/// A pack that is being bought.
pub(super) struct Sale {
    pack: Arc<Pack>,
    token: PassToken,
    nonce: [u8; 32],
    sold_at: UnixMillis,
    room: Arc<PassRoom>,
}

impl Sale {
    fn new(pack: &Arc<Pack>, payment: &[u8], room: Arc<PassRoom>, sold_at: UnixMillis) -> Result<Self, Denial> {
        let mut nonce = [0; 32];
        getrandom::fill(&mut nonce).map_err(Denial::ours)?;
        Ok(Self { pack: Arc::clone(pack), token: token(&nonce, payment), nonce, sold_at, room })
    }

    fn expires_at(&self) -> UnixMillis {
        self.sold_at.plus(self.pack.lifetime)
    }

    fn record(&self, paid: &Paid, scope: &Arc<str>) -> PassRecord {
        PassRecord {
            id: PassId(self.token.digest()),
            payer: paid.payer,
            network: paid.network.clone(),
            scope: Arc::clone(scope),
            calls: self.pack.calls,
            used: 1,
            price: paid.amount,
            sold_at: self.sold_at,
            last_used: self.sold_at,
            expires_at: self.expires_at(),
            revoked_at: None,
        }
    }

    /// What the buyer is told.
    pub(super) fn told(&self) -> PackSold {
        self.telling(self.token.reveal())
    }

    /// The same as it may be kept.
    pub(super) fn sealed(&self) -> PackSold {
        self.telling(sealed())
    }

    fn telling(&self, pass: String) -> PackSold {
        let calls = self.pack.calls;
        PackSold { pass, calls, calls_left: calls.saturating_sub(1), expires_at: self.expires_at().seconds() }
    }

    /// An answer as it is kept: with what makes the token again.
    pub(super) fn seal(&self, mut draft: Draft) -> Draft {
        // Base64 is always a header's value.
        if let Ok(seal) = HeaderValue::try_from(URL_SAFE_NO_PAD.encode(self.nonce)) {
            draft.headers.insert(SEAL, seal);
        }
        draft
    }

    /// What is kept where the answer itself is not.
    pub(super) fn receipt() -> Draft {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let body: &[u8] =
            br#"{"message":"the answer was not kept; PAYMENT-RESPONSE tells the pass that was bought with it"}"#;
        Draft { status: StatusCode::OK, headers, body: Bytes::from_static(body) }
    }
}

impl Context {
    /// A reservation that sells what is being bought.
    pub(super) fn selling<F: Family>(&self, reservation: Reservation<F>, paid: &Paid) -> Reservation<F> {
        match &self.sale {
            Some(sale) => reservation.selling(sale.record(paid, self.prepared.scope()), Arc::clone(&sale.room)),
            None => reservation,
        }
    }
}

/// The token that a payment buys.
fn token(nonce: &[u8; 32], payment: &[u8]) -> PassToken {
    let hash = Sha256::new().chain_update(b"turnpike call-pack pass").chain_update(nonce).chain_update(payment);
    PassToken::new(hash.finalize().into())
}

/// What stands for a token where it is kept: no token's text.
fn sealed() -> String {
    ".".repeat(PASS_CHARS)
}

/// A kept answer as it was sent, for who sent the very payment again that bought a pass.
pub(super) fn unsealed(mut answer: Box<Answer>, payment: &[u8]) -> Box<Answer> {
    let lines = || answer.head.split_inclusive(|byte| *byte == b'\n');
    let Some(nonce) = lines().find_map(|line| value(line, SEAL)).and_then(nonce) else { return answer };
    let pass = token(&nonce, payment).reveal();
    let mut head = Vec::with_capacity(answer.head.len());
    for line in lines() {
        if value(line, SEAL).is_some() {
            continue;
        }
        match value(line, PAYMENT_RESPONSE).and_then(|text| revealed(text, &pass)) {
            Some(text) => {
                head.extend_from_slice(PAYMENT_RESPONSE.as_bytes());
                head.extend_from_slice(b": ");
                head.extend_from_slice(text.as_bytes());
                head.extend_from_slice(b"\r\n");
            }
            None => head.extend_from_slice(line),
        }
    }
    answer.head = head.into();
    answer
}

/// The value of a header line, where it is this header's.
fn value<'a>(line: &'a [u8], name: &str) -> Option<&'a [u8]> {
    line.strip_prefix(name.as_bytes())?.strip_prefix(b": ").map(<[u8]>::trim_ascii_end)
}

fn nonce(text: &[u8]) -> Option<[u8; 32]> {
    URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()
}

/// A `PAYMENT-RESPONSE` with its token.
fn revealed(text: &[u8], pass: &str) -> Option<String> {
    let json = String::from_utf8(STANDARD.decode(text).ok()?).ok()?;
    let (before, after) = (format!("\"pass\":\"{}\"", sealed()), format!("\"pass\":\"{pass}\""));
    Some(STANDARD.encode(json.replacen(&before, &after, 1)))
}

/// A call on a pass that is held back.
pub(super) enum PassHold {
    Svm(PassCall<Svm>),
    Evm(PassCall<Evm>),
}

impl PassHold {
    fn paid(&self) -> Paid {
        let (payer, network): (_, &Network) = match self {
            Self::Svm(call) => (*call.payer(), call.network()),
            Self::Evm(call) => (*call.payer(), call.network()),
        };
        Paid { payer, amount: Amount::ZERO, channel: None, network: network.clone(), scheme: call_pack::NAME }
    }

    /// Counts the call.
    pub(super) async fn commit(self, gate: &Gate, context: &Context) -> Result<Finished, Denial> {
        let counted = match self {
            Self::Svm(call) => call.commit().await,
            Self::Evm(call) => call.commit().await,
        };
        let left = counted.map_err(|error| Denial::stopped(&error))?;
        if let Some(telemetry) = &gate.options.telemetry {
            telemetry.pass_calls.with_label_values(&[&**context.prepared.name()]).inc();
        }
        Ok(Finished::Counted { left })
    }
}

impl Gate {
    /// Begins the sale of a pack, where the offer is one of a pack.
    pub(super) fn sale(&self, offer: &PreparedOffer, payment: &[u8]) -> Result<Option<Sale>, Denial> {
        let Some(pack) = &offer.pack else { return Ok(None) };
        let room = match offer.way {
            Way::EvmBatch(_) => self.evm()?.ledger.pass_room(),
            Way::SvmBatch(_) | Way::SvmUpto(_) | Way::EvmExact(_) | Way::EvmUpto(..) => self.ledger.pass_room(),
        };
        let room = room.ok_or_else(Denial::no_room_for_pass)?;
        Sale::new(pack, payment, room, self.clock.now()).map(Some)
    }

    /// Decides whether a call on a pass may go on.
    pub(super) async fn admit_pass(self: &Arc<Self>, request: &AdmitRequest<'_>, value: &[u8]) -> Outcome {
        let prepared = self.challenges.of(request.route);
        let refused =
            |denial| Outcome::Refused(Box::new(self.refuse(&prepared, None, Version::V2, request.url, denial)));
        let judged = match self.judge(request) {
            Ok(judged) => judged,
            Err(denial) => return refused(denial),
        };
        let Some(offer) = prepared.offers().first().cloned() else {
            return refused(Denial::ours("a route with a pass has no way to be paid any more; check `network`"));
        };
        let hold = match self.take_pass(value, &request.route.scope) {
            Ok(hold) => hold,
            Err(denial) => return refused(denial),
        };
        let paid = hold.paid();
        if let Err(denial) = self.clear_pass(&prepared, judged, &paid).await {
            return refused(denial);
        }
        let context =
            Context { prepared, offer, version: Version::V2, url: request.url.to_owned(), judged, sale: None };
        let held = Held::Pass(hold);
        Outcome::Admitted(Box::new(Admission { gate: Arc::clone(self), context, paid, held, claim: None }))
    }

    /// The pass may be of either family; it is known to one of them.
    fn take_pass(&self, value: &[u8], scope: &str) -> Result<PassHold, Denial> {
        let token = PassToken::parse(value).ok_or(PassRefused::Unknown)?;
        let id = PassId(token.digest());
        match (self.ledger.take_pass(&id, scope), &self.evm) {
            (Err(PassRefused::Unknown), Some(evm)) => Ok(PassHold::Evm(evm.ledger.take_pass(&id, scope)?)),
            (taken, _) => Ok(PassHold::Svm(taken?)),
        }
    }
}

impl From<PassRefused> for Denial {
    fn from(refused: PassRefused) -> Self {
        let detail = refused.to_string();
        let reason = match refused {
            PassRefused::Unknown => Reason::CallPackUnknown,
            PassRefused::OtherRoute => Reason::CallPackOtherRoute,
            PassRefused::Revoked => Reason::CallPackRevoked,
            PassRefused::Spent => Reason::CallPackSpent,
            PassRefused::Expired => Reason::CallPackExpired,
            PassRefused::Busy => return Self::pass_is_busy(detail),
            PassRefused::Stopped(why) => return Self::ours(why),
        };
        Self::payment(reason, detail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_of_a_pass_does_not_make_it_and_the_payment_does() {
        let nonce = [9; 32];
        let pass = token(&nonce, b"payment").reveal();
        let told = |pass: &str| STANDARD.encode(format!("{{\"extensions\":{{\"pass\":\"{pass}\"}}}}"));
        let head = |lines: &[String]| Bytes::from(lines.concat());
        let plain = "x: turnpike-pass-seal: no\r\n".to_owned();
        let kept = head(&[
            plain.clone(),
            format!("payment-response: {}\r\n", told(&sealed())),
            format!("{SEAL}: {}\r\n", URL_SAFE_NO_PAD.encode(nonce)),
        ]);
        let answer = |head: &Bytes| Box::new(Answer { status: 200, head: head.clone(), body: Bytes::new() });
        let sent = head(&[plain, format!("payment-response: {}\r\n", told(&pass))]);
        assert_eq!(unsealed(answer(&kept), b"payment").head, sent);
        assert_ne!(unsealed(answer(&kept), b"another").head, sent);
        assert_eq!(unsealed(answer(&sent), b"payment").head, sent, "what has no seal is left alone");
        assert_eq!(PassToken::parse(sealed().as_bytes()), None);
    }
}
