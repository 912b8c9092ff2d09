//! Scheme `upto` on Solana: its terms and the checks of its payload that need neither chain nor transaction.
//!
//! Promises that a [`VerifiedOpen`] has the seller's own terms, a deposit of exactly the ceiling, the derived channel
//! address and a life that has begun, is not over, and is no longer than was offered. The open transaction itself is
//! the facilitator's to check. Source: `scheme_upto_svm.md` sections 4.1, 4.2 and 5, phase 3, steps 0 to 3, 5 and 7.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::{Refused, ensure};
use crate::amount::Amount;
use crate::ledger::channel::{Seller, Terms};
use crate::x402::Reason;
use crate::x402::wire::UptoPayload;

/// The scheme's name on the wire.
pub const SCHEME: &str = "upto";

/// How far a client's clock may run ahead of ours where it sets the deadline.
pub const CLOCK_SKEW_SECONDS: i64 = 60;

/// The least time that must be left to serve a request and close its channel; half of what was offered where that is
/// less.
pub const LIFE_SECONDS_MIN: i64 = 10;

/// What the scheme adds to the requirements.
#[must_use]
pub fn extra(seller: &Seller, memo: Option<&str>) -> Map<String, Value> {
    let mut extra = seller_extra(seller, memo);
    extra.insert("paymentFlow".to_owned(), "escrow".into());
    extra
}

/// What both Solana schemes say of a seller.
pub(super) fn seller_extra(seller: &Seller, memo: Option<&str>) -> Map<String, Value> {
    let mut extra = Map::new();
    extra.insert("feePayer".to_owned(), seller.fee_payer.to_string().into());
    extra.insert("receiverAuthorizer".to_owned(), seller.receiver_authorizer.to_string().into());
    extra.insert("withdrawDelay".to_owned(), seller.withdraw_delay.into());
    extra.insert("tokenProgram".to_owned(), seller.token_program.to_string().into());
    if let Some(memo) = memo {
        extra.insert("memo".to_owned(), memo.into());
    }
    extra
}

/// Reads a payload.
///
/// # Errors
/// [`Reason::UptoUnexpectedVoucher`] where it holds `voucherSignature`, whatever its value;
/// [`Reason::InvalidPayload`] where it is malformed.
pub fn parse(payload: Value) -> Result<UptoPayload, Refused> {
    ensure(
        payload.get("voucherSignature").is_none(),
        Reason::UptoUnexpectedVoucher,
        "payload.voucherSignature is the server's to add",
    )?;
    serde_json::from_value(payload)
        .map_err(|error| Refused::new(Reason::InvalidPayload, format!("the payload cannot be read: {error}")))
}

/// What was offered, as far as a deadline depends on it.
#[derive(Clone, Copy, Debug)]
pub struct Offered {
    /// The ceiling.
    pub amount: Amount,
    /// The advertised completion window.
    pub timeout_seconds: u64,
    /// The longest that any one-request channel may live.
    pub lifetime_seconds_max: u64,
}

/// A one-request channel that may be opened once the facilitator has accepted its transaction. Only [`verify`] makes
/// one.
#[derive(Clone, Debug)]
pub struct VerifiedOpen {
    terms: Terms,
    deposit: Amount,
    expires_at: i64,
    transaction: String,
}

impl VerifiedOpen {
    /// The channel.
    #[must_use]
    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    /// What is put in: exactly the ceiling.
    #[must_use]
    pub fn deposit(&self) -> Amount {
        self.deposit
    }

    /// Unix seconds at which the charge can no longer be claimed.
    #[must_use]
    pub fn expires_at(&self) -> i64 {
        self.expires_at
    }

    /// The channel and its open transaction, undecoded.
    #[must_use]
    pub fn into_parts(self) -> (Terms, String) {
        (self.terms, self.transaction)
    }
}

/// Checks a payload against what was offered. `now` is in Unix seconds.
///
/// # Errors
/// [`Refused`] with the first check that failed, in the order of phase 3.
pub fn verify(seller: &Arc<Seller>, offered: Offered, payload: UptoPayload, now: i64) -> Result<VerifiedOpen, Refused> {
    ensure(
        payload.voucher_signature.is_none(),
        Reason::UptoUnexpectedVoucher,
        "payload.voucherSignature is the server's to add",
    )?;
    ensure(
        payload.max_amount == offered.amount && payload.max_amount.to_u64().is_some(),
        Reason::UptoAmountMismatch,
        "payload.maxAmount is not the offered amount",
    )?;
    ensure(
        payload.deposit == payload.max_amount,
        Reason::UptoDepositNotCeiling,
        "payload.deposit must equal payload.maxAmount",
    )?;
    ensure(
        payload.authorized_signer == seller.receiver_authorizer,
        Reason::UptoReceiverAuthorizer,
        "payload.authorizedSigner is not the offered extra.receiverAuthorizer",
    )?;
    ensure(payload.from != seller.fee_payer, Reason::UptoPayerMismatch, "payload.from must not be extra.feePayer")?;
    let authorizer = seller.receiver_authorizer;
    let terms = Terms::derive(Arc::clone(seller), payload.from, authorizer, payload.nonce, payload.open_slot);
    ensure(
        terms.id == payload.channel_id,
        Reason::UptoChannelId,
        "payload.channelId is not the address that from, nonce and openSlot derive",
    )?;
    check_life(offered, &payload, now)?;
    Ok(VerifiedOpen {
        terms,
        deposit: payload.deposit,
        expires_at: payload.expires_at,
        transaction: payload.open_transaction,
    })
}

/// Step 7: begun, not over, and not longer than offered.
fn check_life(offered: Offered, payload: &UptoPayload, now: i64) -> Result<(), Refused> {
    let timeout = i64::try_from(offered.timeout_seconds).unwrap_or(i64::MAX);
    let lifetime_max = i64::try_from(offered.lifetime_seconds_max).unwrap_or(i64::MAX);
    ensure(payload.valid_after <= now, Reason::UptoNotYetActive, "payload.validAfter lies ahead of our clock")?;
    let least = LIFE_SECONDS_MIN.min(timeout / 2).max(0);
    ensure(
        payload.expires_at > 0 && payload.expires_at.saturating_sub(now) > least,
        Reason::UptoExpired,
        "payload.expiresAt has passed or leaves no time to serve the request",
    )?;
    let latest = |span: i64| now.saturating_add(span).saturating_add(CLOCK_SKEW_SECONDS);
    ensure(
        timeout <= lifetime_max && payload.expires_at <= latest(lifetime_max),
        Reason::UptoLifetimeExceeded,
        "payload.expiresAt keeps the channel open longer than is allowed here",
    )?;
    ensure(
        payload.expires_at <= latest(timeout),
        Reason::UptoExpiresAtMismatch,
        "payload.expiresAt is later than maxTimeoutSeconds from now",
    )
}

#[cfg(test)]
mod tests;
