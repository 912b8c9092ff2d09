//! Buying packs of calls, and spending their passes.
//!
//! Promises: a pack is bought only where the server offers one below the owner's limit; its pass is taken from an answer
//! whose charge was checked like any other's, and is sent to nobody but the address that it was bought at. A pass that is
//! refused is thrown away, and the next pack is bought. Source: `docs/decisions/0014-call-packs.md`.

use std::fmt;

use http::{HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};

use super::http::{Request, Response};
use super::{Client, ClientError, Paid, client_signed, payment_required};
use crate::amount::Amount;
use crate::x402::call_pack::{self, PAYMENT_PASS, PAYMENT_PASS_CALLS_LEFT, PackSold, PassToken};
use crate::x402::wire::{PaymentRequired, PaymentRequirements};

/// A pass as its buyer keeps it: a secret, like the wallet.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClientPass {
    /// What it was bought for: method and address.
    pub place: String,
    /// The pass.
    pub pass: String,
    /// How many calls are left, as far as is known.
    pub calls_left: u32,
    /// Until when it is good, in Unix seconds.
    pub expires_at: i64,
}

impl fmt::Debug for ClientPass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, pass: _, calls_left, expires_at } = self;
        write!(f, "ClientPass {{ place: {place:?}, calls_left: {calls_left}, expires_at: {expires_at}, .. }}")
    }
}

impl Client {
    /// Requests on a pass, and buys a pack of calls for at most `pack_max` where there is none, or it is refused. Where the
    /// server asks for no payment, its answer is given like any other.
    ///
    /// # Errors
    /// [`ClientError::NoOffer`] where no pack is offered, [`ClientError::TooExpensive`] where it costs more; else as
    /// [`Client::call`].
    pub async fn call_on_pack(&self, request: &Request, pack_max: Amount) -> Result<Paid, ClientError> {
        let place = request.place();
        let pass = self.passes.lock().await.get(&place).cloned();
        let response = match pass {
            Some(pass) => self.http.send(&on_pass(request, &pass)?, None).await?,
            None => self.http.send(request, None).await?,
        };
        if response.status() != 402 {
            return Ok(self.spent(&place, response).await);
        }
        self.passes.lock().await.remove(&place);
        self.buy(request, &payment_required(&response)?, pack_max).await
    }

    /// The passes that are left, to be kept and given back with [`Client::restore_pass`].
    pub async fn passes(&self) -> Vec<ClientPass> {
        self.passes.lock().await.values().cloned().collect()
    }

    /// Takes up a pass that was bought earlier.
    pub async fn restore_pass(&self, pass: ClientPass) {
        self.passes.lock().await.insert(pass.place.clone(), pass);
    }

    /// An answer to a call on a pass, with what it says of the pass.
    async fn spent(&self, place: &str, response: Response) -> Paid {
        let left = response.header(PAYMENT_PASS_CALLS_LEFT).and_then(|value| std::str::from_utf8(value).ok());
        let calls_left = left.and_then(|text| text.parse().ok());
        let mut passes = self.passes.lock().await;
        match (passes.get_mut(place), calls_left) {
            (Some(_), Some(0)) => drop(passes.remove(place)),
            (Some(pass), Some(left)) => pass.calls_left = left,
            (Some(_) | None, _) => {}
        }
        Paid { response, settlement: None, charged: Amount::ZERO, calls_left }
    }

    async fn buy(&self, request: &Request, required: &PaymentRequired, pack_max: Amount) -> Result<Paid, ClientError> {
        let offer = choose(required)?;
        if offer.amount > pack_max {
            let (amount, limit) = (offer.amount, pack_max);
            return Err(ClientError::TooExpensive { what: "a pack", amount, limit });
        }
        let mut paid = self.pay_from_channel(request, required, &offer).await?;
        let bought = paid.settlement.as_ref().and_then(|settlement| call_pack::bought(&settlement.extensions));
        if let Some(PackSold { pass, calls_left, expires_at, .. }) = bought {
            if PassToken::parse(pass.as_bytes()).is_none() {
                return Err(ClientError::Dishonest("a pack was charged, and its pass is none".into()));
            }
            let place = request.place();
            self.restore_pass(ClientPass { place, pass, calls_left, expires_at }).await;
            paid.calls_left = Some(calls_left);
        } else if paid.charged == offer.amount {
            return Err(ClientError::Dishonest("a pack was charged, and no pass came with the answer".into()));
        }
        Ok(paid)
    }
}

/// The way to pay for a pack that this client knows.
fn choose(required: &PaymentRequired) -> Result<PaymentRequirements, ClientError> {
    let offered = call_pack::offered(&required.extensions);
    let pack = offered.ok_or_else(|| ClientError::NoOffer("the server offers no pack of calls".into()))?;
    let known = |offer: &PaymentRequirements| {
        offer.scheme == "batch-settlement" && offer.network.is_solana() && client_signed(offer)
    };
    pack.accepts
        .into_iter()
        .find(known)
        .ok_or_else(|| ClientError::NoOffer("the pack is not paid by batch-settlement on Solana".into()))
}

/// The same request on a pass.
fn on_pass(request: &Request, pass: &ClientPass) -> Result<Request, ClientError> {
    let mut value = HeaderValue::from_str(&pass.pass).map_err(super::http::HttpError::from)?;
    value.set_sensitive(true);
    let mut on_pass = request.clone();
    on_pass.headers.insert(HeaderName::from_static(PAYMENT_PASS), value);
    Ok(on_pass)
}
