//! Lost answers: which payment was sent last, and sending the very same again.
//!
//! Promises: a payment is sent more than once only with an id, which the server has offered to take, and then byte for
//! byte the same; so it is charged once however often it is sent. Source: `extensions/payment_identifier.md`,
//! "Recovering a Lost Response".

use std::time::Duration;

use tokio::time::Instant;

use super::channel::{self, ClientChannel};
use super::http::{HttpError, Request, Response};
use super::{Client, ClientError, payment_header};
use crate::x402::payment_identifier;
use crate::x402::wire::{PaymentRequired, PaymentRequirements};

/// What is kept of one seller.
#[derive(Default)]
pub(super) struct Books {
    pub(super) channel: Option<ClientChannel>,
    /// The last payment that had an id.
    pub(super) last: Option<Sent>,
}

/// A payment as it was made.
#[derive(Clone)]
pub(super) struct Sent {
    pub(super) request: Request,
    pub(super) header: String,
    pub(super) offer: PaymentRequirements,
    /// The channel once the server has taken it.
    pub(super) next: ClientChannel,
    /// Whether it has an id, so that it can be sent again.
    pub(super) identified: bool,
    pub(super) at: Instant,
    pub(super) answered: bool,
}

impl Sent {
    /// Whether this paid for such a request. The address may be another one: the seller is the same.
    pub(super) fn is_for(&self, request: &Request) -> bool {
        let Request { method, uri, headers, body } = &self.request;
        *method == request.method
            && uri.path_and_query() == request.uri.path_and_query()
            && *headers == request.headers
            && *body == request.body
    }
}

/// After how long a caller that asks again wants a fresh answer rather than the one that it never got.
pub(super) const MISSED_MAX: Duration = Duration::from_secs(60);
/// The waits between sendings of one payment whose answer is lost.
const RESEND_WAITS: [Duration; 3] = [Duration::from_millis(50), Duration::from_millis(200), Duration::from_millis(500)];

impl Client {
    /// Sends a payment. One with an id is sent again, the very same, where its answer is lost. Also says whether it
    /// was.
    pub(super) async fn send_paid(
        &self,
        request: &Request,
        header: &str,
        identified: bool,
        mut resent: bool,
    ) -> Result<(Response, bool), HttpError> {
        for wait in RESEND_WAITS {
            match self.http.send(request, Some(header)).await {
                Err(HttpError::Unreachable { .. } | HttpError::TimedOut { .. }) if identified => {}
                // The first is still being served.
                Ok(response) if resent && response.status() == 503 => {}
                outcome => return Ok((outcome?, resent)),
            }
            resent = true;
            tokio::time::sleep(wait).await;
        }
        Ok((self.http.send(request, Some(header)).await?, true))
    }

    /// A payment that was sent before and is refused now may have brought its deposit: then the chain says what the
    /// channel holds, and the next payment needs none. `None` where it was no deposit, or there is no channel.
    pub(super) async fn landed(&self, sent: &Sent, books: &Books) -> Result<Option<ClientChannel>, ClientError> {
        if books.channel.as_ref().is_some_and(|channel| channel.deposit == sent.next.deposit) {
            return Ok(None);
        }
        let account = self.account(&sent.next.id).await?;
        Ok(account.map(|account| sent.next.corrected(sent.next.charged, account.deposit.into())))
    }
}

/// The value of the `PAYMENT-SIGNATURE` header, with an id of its own where the server offers to take one; whether it
/// has.
pub(super) fn identified_header(
    required: &PaymentRequired,
    offer: &PaymentRequirements,
    payload: serde_json::Value,
) -> Result<(String, bool), ClientError> {
    let id: String = channel::random::<16>()?.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut required = required.clone();
    let identified = payment_identifier::identify(&mut required.extensions, &format!("pay_{id}"));
    Ok((payment_header(&required, offer, payload)?, identified))
}
