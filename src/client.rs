//! A paying client: for `turnpike pay`, the demo, tests and benches.
//!
//! It can pay for several calls at once, where a pack of them is offered (`client/pack.rs`).
//!
//! Speaks x402 version 2 over HTTP with scheme `batch-settlement` in client-signed mode and scheme `upto`, both on
//! Solana. It does what the specifications ask of a client: it believes no answer that it has not checked, never signs
//! above its own limits, moves its books on only by a verified answer, and recovers from a corrective 402 by its own
//! earlier signature (`scheme_batch_settlement_svm.md`, sections 4.6 and 5). Where the server offers it, every payment
//! has an id, and a lost answer is asked for again with the very same payment (`extensions/payment_identifier.md`).
//!
//! One request of a channel is in flight at a time; a second caller waits for the first.

pub mod channel;
pub mod http;
pub mod pack;
mod resend;

use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use ed25519_dalek::{Signer as _, SigningKey};
use serde_json::json;
use tokio::sync::Mutex;
use tokio::time::Instant;

use self::channel::{ClientChannel, SellerTerms};
use self::http::{Http, HttpError, Request, Response};
use self::pack::ClientPass;
use self::resend::{Books, MISSED_MAX, Sent, identified_header};
use crate::amount::Amount;
use crate::chain::{Chain, ChainError};
use crate::scheme::svm::program::ChannelAccount;
use crate::scheme::svm::transaction::TransactionError;
use crate::x402::header::{self, HeaderError, PAYMENT_REQUIRED, PAYMENT_RESPONSE};
use crate::x402::wire::{
    BatchPayload, ChannelState, PaymentPayload, PaymentRequired, PaymentRequirements, SettlementResponse, VoucherState,
    X402_VERSION,
};
use crate::x402::{Key, Reason};

/// What the client may do with its owner's money.
#[derive(Clone, Copy, Debug)]
pub struct Spending {
    /// The most that one call may cost.
    pub call_max: Amount,
    /// What a channel is opened or topped up with, unless the server proposes more.
    pub deposit: Amount,
    /// The most that a channel is ever filled with in one deposit.
    pub deposit_max: Amount,
}

/// Why a call did not succeed. Where nothing else is said, nothing was paid.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The server cannot be reached, or broke off.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// The chain cannot be reached.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// A payment header of the server cannot be read.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// A transaction cannot be built.
    #[error(transparent)]
    Transaction(#[from] TransactionError),
    /// The server wants to be paid in no way that this client knows.
    #[error("the server offers no way to pay that this client knows: {0}")]
    NoOffer(String),
    /// The price or the deposit is above the client's own limit.
    #[error("{what} of {amount} is above the limit of {limit}; raise the limit to allow it")]
    TooExpensive {
        /// What is too much.
        what: &'static str,
        /// How much it is.
        amount: Amount,
        /// How much it may be.
        limit: Amount,
    },
    /// The server refused the payment.
    #[error("the server refused the payment: {reason}")]
    Refused {
        /// The server's code.
        reason: String,
    },
    /// The answer was lost on its way, and the server does not have it any more. The payment was taken.
    #[error("the answer was lost on its way and the server has not kept it; its charge stands")]
    AnswerLost,
    /// The server's answer does not fit what was signed. The payment may have been taken: keep the channel's state.
    #[error("the server's answer does not fit the payment: {0}")]
    Dishonest(String),
}

/// An answer that was paid for, or was free.
#[derive(Debug)]
pub struct Paid {
    /// The server's answer, body not yet read.
    pub response: Response,
    /// What became of the payment; `None` where the server did not ask for one or charged nothing.
    pub settlement: Option<SettlementResponse>,
    /// What was charged.
    pub charged: Amount,
    /// How many calls are left on the pass, where this was a call on one or bought one.
    pub calls_left: Option<u32>,
}

/// A paying client with one wallet.
pub struct Client {
    key: SigningKey,
    http: Http,
    chain: Arc<dyn Chain>,
    spending: Spending,
    channels: Mutex<HashMap<SellerTerms, Arc<Mutex<Books>>>>,
    offers: Mutex<HashMap<String, PaymentRequired>>,
    /// Passes that are left, by what they were bought for.
    passes: Mutex<HashMap<String, ClientPass>>,
}

/// The most offers that are remembered.
const OFFERS_MAX: usize = 1024;

impl Client {
    /// A client that pays from `key`'s token account.
    ///
    /// # Errors
    /// [`HttpError`] where no TLS configuration can be made.
    pub fn new(key: SigningKey, chain: Arc<dyn Chain>, spending: Spending) -> Result<Self, HttpError> {
        let (channels, offers, passes) = (Mutex::default(), Mutex::default(), Mutex::default());
        Ok(Self { key, http: Http::new()?, chain, spending, channels, offers, passes })
    }

    /// The wallet's address.
    #[must_use]
    pub fn address(&self) -> Key {
        Key(self.key.verifying_key().to_bytes())
    }

    /// Requests without paying.
    ///
    /// # Errors
    /// [`ClientError::Http`].
    pub async fn ask(&self, request: &Request) -> Result<Response, ClientError> {
        Ok(self.http.send(request, None).await?)
    }

    /// Requests, pays where the server asks for it, and checks what the server says of the payment. A status of 400 or
    /// more that comes without a payment request is an answer like any other: it costs nothing.
    ///
    /// A request whose answer was lost a moment ago gets that answer, and is not paid for again.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn call(&self, request: &Request) -> Result<Paid, ClientError> {
        let place = request.place();
        let remembered = self.offers.lock().await.get(&place).cloned();
        let required = match remembered {
            Some(required) => required,
            None => {
                let response = self.http.send(request, None).await?;
                if response.status() != 402 {
                    return Ok(Paid { response, settlement: None, charged: Amount::ZERO, calls_left: None });
                }
                let required = payment_required(&response)?;
                let mut offers = self.offers.lock().await;
                if offers.len() >= OFFERS_MAX {
                    offers.clear();
                }
                offers.insert(place.clone(), required.clone());
                required
            }
        };
        let paid = self.pay(request, &required).await;
        if paid.is_err() {
            self.offers.lock().await.remove(&place);
        }
        paid
    }

    /// The ways to pay that this client knows, its favourite first.
    fn choose(required: &PaymentRequired) -> Result<&PaymentRequirements, ClientError> {
        let by_scheme = |scheme: &str| {
            required
                .accepts
                .iter()
                .find(|offer| offer.scheme == scheme && offer.network.is_solana() && client_signed(offer))
        };
        by_scheme("batch-settlement").or_else(|| by_scheme("upto")).ok_or_else(|| {
            let schemes: Vec<_> = required.accepts.iter().map(|o| format!("{} on {}", o.scheme, o.network)).collect();
            ClientError::NoOffer(schemes.join(", "))
        })
    }

    /// The same, where its price is within the owner's limit.
    fn choose_affordable<'r>(&self, required: &'r PaymentRequired) -> Result<&'r PaymentRequirements, ClientError> {
        let offer = Self::choose(required)?;
        if offer.amount > self.spending.call_max {
            let (amount, limit) = (offer.amount, self.spending.call_max);
            return Err(ClientError::TooExpensive { what: "a price", amount, limit });
        }
        Ok(offer)
    }

    async fn pay(&self, request: &Request, required: &PaymentRequired) -> Result<Paid, ClientError> {
        let offer = self.choose_affordable(required)?;
        if offer.scheme == "upto" {
            return self.pay_metered(request, required, offer, &SellerTerms::of(offer)?).await;
        }
        self.pay_from_channel(request, required, offer).await
    }

    /// Pays what an offer of scheme `batch-settlement` asks for.
    async fn pay_from_channel(
        &self,
        request: &Request,
        required: &PaymentRequired,
        offer: &PaymentRequirements,
    ) -> Result<Paid, ClientError> {
        let seller = SellerTerms::of(offer)?;
        let books = Arc::clone(self.channels.lock().await.entry(seller.clone()).or_default());
        let mut books = books.lock().await;
        let missed = |sent: &Sent| !sent.answered && sent.is_for(request) && sent.at.elapsed() < MISSED_MAX;
        if let Some(sent) = books.last.take_if(|sent| missed(sent)) {
            if let Some(paid) = self.exchange(request, sent, &mut books, true).await? {
                return Ok(paid);
            }
        } else {
            let sent = self.payment(request, required, offer, &seller, &books).await?;
            if let Some(paid) = self.exchange(request, sent, &mut books, false).await? {
                return Ok(paid);
            }
        }
        // Once corrected, the books are right or the server is wrong.
        let sent = self.payment(request, required, offer, &seller, &books).await?;
        let refused = || ClientError::Refused { reason: Reason::BatchCumulativeAmountMismatch.as_str().to_owned() };
        self.exchange(request, sent, &mut books, false).await?.ok_or_else(refused)
    }

    /// Asks again for the answer to the last call of this request, where it was lost after all: its body broke off.
    /// `None` where the server keeps no answers, or another call came after it.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn again(&self, request: &Request) -> Result<Option<Paid>, ClientError> {
        let all: Vec<_> = self.channels.lock().await.values().cloned().collect();
        for books in all {
            let mut books = books.lock().await;
            if let Some(sent) = books.last.take_if(|sent| sent.is_for(request)) {
                return self.exchange(request, sent, &mut books, true).await?.map(Some).ok_or(ClientError::AnswerLost);
            }
        }
        Ok(None)
    }

    /// Makes the next payment.
    async fn payment(
        &self,
        request: &Request,
        required: &PaymentRequired,
        offer: &PaymentRequirements,
        seller: &SellerTerms,
        books: &Books,
    ) -> Result<Sent, ClientError> {
        let (payload, next) = self.batch_payment(books.channel.as_ref(), offer, seller).await?;
        let (header, identified) = identified_header(required, offer, json!(payload))?;
        let (request, offer) = (request.clone(), offer.clone());
        Ok(Sent { request, header, offer, next, identified, at: Instant::now(), answered: false })
    }

    /// Sends a payment and takes up what the server says of it; `None` where it has corrected the books, and another
    /// payment is to be made. `resent` says that it was sent before.
    async fn exchange(
        &self,
        request: &Request,
        sent: Sent,
        books: &mut Books,
        resent: bool,
    ) -> Result<Option<Paid>, ClientError> {
        // Noted before it is sent: what goes wrong from here on, the caller's giving up included, loses the answer
        // only.
        books.last = sent.identified.then(|| sent.clone());
        let (response, resent) = self.send_paid(request, &sent.header, sent.identified, resent).await?;
        let free = |response| Ok(Some(Paid { response, settlement: None, charged: Amount::ZERO, calls_left: None }));
        if resent && response.status() == 503 {
            return free(response);
        }
        let last = books.last.take();
        if response.status() == 402 {
            let refusal = payment_required(&response)?;
            let reason = refusal.error.clone().unwrap_or_default();
            if reason != Reason::BatchCumulativeAmountMismatch.as_str() {
                let landed = if resent { self.landed(&sent, books).await? } else { None };
                books.channel = Some(landed.ok_or(ClientError::Refused { reason })?);
                return Ok(None);
            }
            let channel = self.recover(&sent.next, &refusal).await?;
            let lost = resent && channel.charged >= sent.next.promised;
            books.channel = Some(channel);
            return if lost { Err(ClientError::AnswerLost) } else { Ok(None) };
        }
        let Some(value) = response.header(PAYMENT_RESPONSE) else {
            // The server served without charging (its upstream failed, or the route became free).
            return free(response);
        };
        let settlement: SettlementResponse = header::decode(value)?;
        let (channel, charged) = sent.next.accept(&sent.offer, &settlement)?;
        books.channel = Some(channel);
        books.last = last.map(|last| Sent { answered: true, ..last });
        Ok(Some(Paid { response, settlement: Some(settlement), charged, calls_left: None }))
    }

    /// A payment for the next call, and the channel as it will be once the server has taken it.
    async fn batch_payment(
        &self,
        channel: Option<&ClientChannel>,
        offer: &PaymentRequirements,
        seller: &SellerTerms,
    ) -> Result<(BatchPayload, ClientChannel), ClientError> {
        let Some(channel) = channel else {
            let deposit = self.deposit_for(offer, offer.amount)?;
            return channel::open(&self.key, self.chain.as_ref(), seller, offer, deposit).await;
        };
        let total = channel.charged.checked_add(offer.amount).ok_or_else(|| overflow(channel))?;
        if total <= channel.deposit {
            let next = channel.promise(&self.key, total);
            let voucher = next.voucher();
            return Ok((BatchPayload::Voucher { channel_config: next.config(), voucher }, next));
        }
        let deposit = self.deposit_for(offer, total.saturating_sub(channel.deposit))?;
        channel::top_up(&self.key, self.chain.as_ref(), channel, offer, deposit).await
    }

    /// How much to deposit so that at least `needed` is there.
    fn deposit_for(&self, offer: &PaymentRequirements, needed: Amount) -> Result<Amount, ClientError> {
        let proposed = offer.extra.get("minDeposit").and_then(|v| v.as_str()).and_then(|text| text.parse().ok());
        let wanted = proposed.unwrap_or(Amount::ZERO).max(self.spending.deposit).min(self.spending.deposit_max);
        if needed > self.spending.deposit_max {
            let limit = self.spending.deposit_max;
            return Err(ClientError::TooExpensive { what: "a deposit", amount: needed, limit });
        }
        Ok(wanted.max(needed))
    }

    /// Takes up what the server says was charged, if our own signature proves that we promised at least that
    /// (section 4.6).
    async fn recover(&self, channel: &ClientChannel, refusal: &PaymentRequired) -> Result<ClientChannel, ClientError> {
        let extra = refusal
            .accepts
            .iter()
            .map(|offer| &offer.extra)
            .find(|extra| extra.contains_key("channelState"))
            .ok_or_else(|| ClientError::Dishonest("a corrective 402 without channelState".into()))?;
        let read = |field: &str| extra.get(field).cloned().unwrap_or_default();
        let state: ChannelState = serde_json::from_value(read("channelState")).map_err(HeaderError::from)?;
        if state.channel_id != channel.id {
            return Err(ClientError::Dishonest(format!("a corrective 402 for channel {}", state.channel_id)));
        }
        let claimed = self.account(&channel.id).await?;
        let claimed = claimed.ok_or_else(|| ClientError::Refused { reason: "the channel is not on chain".into() })?;
        let charged = match extra.get("voucherState") {
            Some(proof) => {
                let proof: VoucherState = serde_json::from_value(proof.clone()).map_err(HeaderError::from)?;
                let charged = state.charged_cumulative_amount.unwrap_or(proof.signed_max_claimable);
                if proof.expires_at != 0
                    || charged > proof.signed_max_claimable
                    || !channel.signed(proof.signed_max_claimable, &proof.signature)
                {
                    return Err(ClientError::Dishonest("the corrective 402 proves nothing with our signature".into()));
                }
                charged
            }
            None => claimed.settled.into(),
        };
        Ok(channel.corrected(charged, claimed.deposit.into()))
    }

    /// A channel as the chain has it.
    async fn account(&self, id: &Key) -> Result<Option<ChannelAccount>, ClientError> {
        let Some(account) = self.chain.account(id).await? else { return Ok(None) };
        Ok(Some(ChannelAccount::decode(&account.data).map_err(ChainError::from)?))
    }

    async fn pay_metered(
        &self,
        request: &Request,
        required: &PaymentRequired,
        offer: &PaymentRequirements,
        seller: &SellerTerms,
    ) -> Result<Paid, ClientError> {
        let (payload, channel) = channel::open_metered(&self.key, self.chain.as_ref(), seller, offer).await?;
        let (header, identified) = identified_header(required, offer, json!(payload))?;
        let (response, _) = self.send_paid(request, &header, identified, false).await?;
        let Some(value) = response.header(PAYMENT_RESPONSE) else {
            if response.status() == 402 {
                let reason = payment_required(&response)?.error.unwrap_or_default();
                return Err(ClientError::Refused { reason });
            }
            return Ok(Paid { response, settlement: None, charged: Amount::ZERO, calls_left: None });
        };
        let settlement: SettlementResponse = header::decode(value)?;
        if !settlement.success {
            return Err(ClientError::Refused { reason: settlement.error_reason.unwrap_or_default() });
        }
        let charged = settlement.amount.as_deref().and_then(|text| text.parse().ok());
        let charged = charged.ok_or_else(|| ClientError::Dishonest("a settled amount is missing".into()))?;
        if charged > offer.amount {
            return Err(ClientError::Dishonest(format!("{charged} was charged of at most {}", offer.amount)));
        }
        if settlement.transaction.is_empty() {
            return Err(ClientError::Dishonest(format!("no transaction closed channel {channel}")));
        }
        Ok(Paid { response, settlement: Some(settlement), charged, calls_left: None })
    }

    /// Signs the payments of the next `calls` calls without sending them: values of `PAYMENT-SIGNATURE`, over any
    /// connection. Those of scheme `batch-settlement` are to be sent in this order, from a channel that is open and
    /// holds enough. They are taken to be charged from here on; where one is not, the server's corrective answer to the
    /// next call says so. Those of scheme `upto` open a channel each and soon expire.
    ///
    /// # Errors
    /// [`ClientError::NoOffer`] where no channel is open, [`ClientError::TooExpensive`] where it does not hold enough;
    /// else as [`Client::call`].
    pub async fn sign_ahead(&self, request: &Request, calls: usize) -> Result<Vec<String>, ClientError> {
        let required = payment_required(&self.http.send(request, None).await?)?;
        let offer = self.choose_affordable(&required)?;
        let seller = SellerTerms::of(offer)?;
        let mut headers = Vec::new();
        if offer.scheme == "upto" {
            for _ in 0..calls {
                let (payload, _) = channel::open_metered(&self.key, self.chain.as_ref(), &seller, offer).await?;
                headers.push(payment_header(&required, offer, json!(payload))?);
            }
            return Ok(headers);
        }
        let books = Arc::clone(self.channels.lock().await.entry(seller).or_default());
        let mut books = books.lock().await;
        let channel = books.channel.clone();
        let mut channel = channel.ok_or_else(|| ClientError::NoOffer("no channel is open here".into()))?;
        for _ in 0..calls {
            let total = channel.charged.checked_add(offer.amount).ok_or_else(|| overflow(&channel))?;
            if total > channel.deposit {
                let limit = channel.deposit;
                return Err(ClientError::TooExpensive { what: "the sum of all calls", amount: total, limit });
            }
            channel = ClientChannel { charged: total, ..channel.promise(&self.key, total) };
            let payload = BatchPayload::Voucher { channel_config: channel.config(), voucher: channel.voucher() };
            headers.push(payment_header(&required, offer, json!(payload))?);
        }
        books.channel = Some(channel);
        Ok(headers)
    }

    /// Asks the server to close the channel that pays for this resource and to return what is left.
    ///
    /// # Errors
    /// [`ClientError::NoOffer`] where no channel is open; else as [`Client::call`].
    pub async fn refund(&self, request: &Request) -> Result<SettlementResponse, ClientError> {
        let required = payment_required(&self.http.send(request, None).await?)?;
        let offer = Self::choose(&required)?;
        let seller = SellerTerms::of(offer)?;
        let books = Arc::clone(self.channels.lock().await.entry(seller).or_default());
        let mut books = books.lock().await;
        let Some(channel) = books.channel.as_ref() else {
            return Err(ClientError::NoOffer("no channel is open here".into()));
        };
        let last = channel.promise(&self.key, channel.charged);
        let payload = BatchPayload::Refund {
            channel_config: last.config(),
            voucher: last.voucher(),
            amount: None,
            transaction: None,
        };
        let header = payment_header(&required, offer, json!(payload))?;
        let response = self.http.send(request, Some(&header)).await?;
        let Some(value) = response.header(PAYMENT_RESPONSE) else {
            let reason = payment_required(&response).ok().and_then(|refusal| refusal.error);
            return Err(ClientError::Refused { reason: reason.unwrap_or_else(|| response.status().to_string()) });
        };
        let settlement: SettlementResponse = header::decode(value)?;
        if !settlement.success {
            return Err(ClientError::Refused { reason: settlement.error_reason.unwrap_or_default() });
        }
        *books = Books::default();
        self.offers.lock().await.clear();
        Ok(settlement)
    }

    /// The open channels, to be kept and given back with [`Client::restore`].
    pub async fn channels(&self) -> Vec<ClientChannel> {
        let all: Vec<_> = self.channels.lock().await.values().cloned().collect();
        let mut channels = Vec::new();
        for books in all {
            channels.extend(books.lock().await.channel.clone());
        }
        channels
    }

    /// Takes up a channel that was opened earlier.
    pub async fn restore(&self, channel: ClientChannel) {
        let seller = channel.seller.clone();
        let books = Books { channel: Some(channel), last: None };
        self.channels.lock().await.insert(seller, Arc::new(Mutex::new(books)));
    }
}

fn overflow(channel: &ClientChannel) -> ClientError {
    ClientError::Dishonest(format!("the charges of channel {} pass every limit", channel.id))
}

/// Whether the offer is one that this client acts on: no operator signs in its stead.
fn client_signed(offer: &PaymentRequirements) -> bool {
    offer.extra.get("voucherSigner").is_none_or(|signer| signer == "client")
}

fn payment_required(response: &Response) -> Result<PaymentRequired, ClientError> {
    let value = response.header(PAYMENT_REQUIRED).ok_or_else(|| ClientError::Refused {
        reason: format!("status {} without a {PAYMENT_REQUIRED} header", response.status()),
    })?;
    let required: PaymentRequired = header::decode(value)?;
    if required.x402_version != X402_VERSION {
        return Err(ClientError::NoOffer(format!("x402 version {}", required.x402_version)));
    }
    Ok(required)
}

/// The value of the `PAYMENT-SIGNATURE` header.
///
/// # Errors
/// [`HeaderError`], which wire types never meet.
pub fn payment_header(
    required: &PaymentRequired,
    offer: &PaymentRequirements,
    payload: serde_json::Value,
) -> Result<String, HeaderError> {
    header::encode(&PaymentPayload {
        x402_version: X402_VERSION,
        resource: Some(required.resource.clone()),
        accepted: offer.clone(),
        payload,
        extensions: required.extensions.clone(),
    })
}

/// Signs a message with the wallet's key.
fn sign(key: &SigningKey, message: &[u8]) -> crate::x402::key::Signature {
    crate::x402::key::Signature(key.sign(message).to_bytes())
}

/// A transaction's bytes as clients send them.
fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// A whole body in memory, up to `limit` bytes.
///
/// # Errors
/// [`HttpError`] where the body is longer or breaks off.
pub async fn read_body(response: Response, limit: usize) -> Result<Bytes, HttpError> {
    response.bytes(limit).await
}
