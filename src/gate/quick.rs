//! The short way of a payment that comes again and again: a voucher for an offer, in the very words of the offer.
//!
//! Owns [`read`], which recognizes such a payment in the text of its header without building what the general way
//! builds: trees of values, and texts of its own. Promises that it understands what it recognizes as the general way
//! does. Refuses nothing: whatever is spelled otherwise, asks for more or is malformed is left to the general way, which
//! alone tells clients what is wrong.

mod again;

use std::borrow::Cow;
use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;

use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use self::again::Again;
use super::challenge::{Prepared, PreparedOffer, Way};
use crate::scheme::batch_settlement_evm::payload::EvmVoucher;
use crate::scheme::evm::eip712;
use crate::scheme::offer::HINTS;
use crate::x402::wire::{BatchVoucher, ChannelConfig, PaymentRequirements, X402_VERSION};

thread_local! {
    static AGAIN: RefCell<Again> = const { RefCell::new(Again::new()) };
}

/// A voucher, and the offer that it pays for.
#[derive(Clone)]
pub(super) struct Quick {
    pub(super) offer: Arc<PreparedOffer>,
    pub(super) voucher: QuickVoucher,
}

/// A voucher with its channel's terms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum QuickVoucher {
    Svm(Box<(ChannelConfig, BatchVoucher)>),
    Evm(Box<(eip712::ChannelConfig, EvmVoucher)>),
}

/// The payment in a header's JSON, where it is one that is recognized.
pub(super) fn read(prepared: &Arc<Prepared>, json: &[u8]) -> Option<Quick> {
    AGAIN.with_borrow_mut(|again| again.read(prepared, json, read_anew))
}

fn read_anew(prepared: &Prepared, json: &[u8]) -> Option<Quick> {
    let text = std::str::from_utf8(json).ok()?;
    let payment: Payment<'_> = serde_json::from_str(text).ok()?;
    let extensions = payment.extensions.map(RawValue::get);
    // An echo of what every challenge says asks for nothing.
    if payment.x402_version != X402_VERSION || extensions.is_some_and(|text| text != prepared.extensions_text()) {
        return None;
    }
    let offer = prepared.offers().iter().find(|offer| payment.accepted.is(offer))?;
    let payload = payment.payload.get();
    let voucher = match &offer.way {
        Way::SvmBatch(_) if !payment.accepted.extra.has("paymentFlow") => {
            let Paid { kind, channel_config, voucher, authorization } = serde_json::from_str(payload).ok()?;
            let is_plain = kind == "voucher" && authorization.is_none();
            is_plain.then(|| QuickVoucher::Svm(Box::new((channel_config, voucher))))
        }
        Way::EvmBatch(_) => {
            let Paid { kind, channel_config, voucher, .. } = serde_json::from_str(payload).ok()?;
            (kind == "voucher").then(|| QuickVoucher::Evm(Box::new((channel_config, voucher))))
        }
        Way::SvmBatch(_) | Way::SvmUpto(_) | Way::EvmExact(_) | Way::EvmUpto(..) => None,
    };
    Some(Quick { offer: Arc::clone(offer), voucher: voucher? })
}

/// An offer's terms as they are written, each on its own.
#[derive(Debug)]
pub(super) struct Words {
    amount: String,
    /// Without hints.
    extra: Vec<(String, String)>,
}

impl Words {
    pub(super) fn of(requirements: &PaymentRequirements) -> Self {
        // Our own words always can be written as JSON.
        let written = |value: &serde_json::Value| serde_json::to_string(value).unwrap_or_default();
        let terms = requirements.extra.iter().filter(|(name, _)| !HINTS.contains(&name.as_str()));
        Self {
            amount: requirements.amount.to_string(),
            extra: terms.map(|(name, value)| (name.clone(), written(value))).collect(),
        }
    }
}

/// A payment, as [`crate::x402::wire::PaymentPayload`] reads it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Payment<'a> {
    x402_version: u32,
    #[serde(borrow, default, rename = "resource")]
    _resource: Option<Resource<'a>>,
    #[serde(borrow)]
    accepted: Accepted<'a>,
    #[serde(borrow)]
    payload: &'a RawValue,
    #[serde(borrow, default, deserialize_with = "present")]
    extensions: Option<&'a RawValue>,
}

/// Of no interest here, but malformed it is to be refused.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Resource<'a> {
    #[serde(borrow, rename = "url")]
    _url: Cow<'a, str>,
    #[serde(borrow, default, rename = "description")]
    _description: Option<Cow<'a, str>>,
    #[serde(borrow, default, rename = "mimeType")]
    _mime_type: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Accepted<'a> {
    #[serde(borrow)]
    scheme: Cow<'a, str>,
    #[serde(borrow)]
    network: Cow<'a, str>,
    #[serde(borrow)]
    amount: Cow<'a, str>,
    #[serde(borrow)]
    asset: Cow<'a, str>,
    #[serde(borrow)]
    pay_to: Cow<'a, str>,
    max_timeout_seconds: u64,
    #[serde(borrow, default)]
    extra: Extra<'a>,
}

impl Accepted<'_> {
    /// Whether it is this offer, word for word but for hints and what the client adds.
    fn is(&self, offer: &PreparedOffer) -> bool {
        let ours = &offer.requirements;
        self.amount == offer.words.amount
            && self.network == ours.network.as_str()
            && self.scheme == ours.scheme
            && self.asset == ours.asset
            && self.pay_to == ours.pay_to
            && self.max_timeout_seconds == ours.max_timeout_seconds
            && offer.words.extra.iter().all(|(name, value)| self.extra.says(name, value))
    }
}

/// An object's members, unread.
#[derive(Default)]
struct Extra<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl Extra<'_> {
    fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(member, _)| member == name)
    }

    /// Whether it has this member once, with this value.
    fn says(&self, name: &str, value: &str) -> bool {
        let mut found = self.0.iter().filter(|(member, _)| member == name);
        found.next().is_some_and(|(_, found)| found.get() == value) && found.next().is_none()
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Extra<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members<'a>(std::marker::PhantomData<&'a ()>);

        impl<'de: 'a, 'a> Visitor<'de> for Members<'a> {
            type Value = Extra<'a>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Extra<'a>, A::Error> {
                let mut members = Vec::with_capacity(8);
                while let Some((Name(name), value)) = map.next_entry::<Name<'a>, &'a RawValue>()? {
                    members.push((name, value));
                }
                Ok(Extra(members))
            }
        }

        deserializer.deserialize_map(Members(std::marker::PhantomData))
    }
}

#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

/// A payload that is a voucher.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", bound = "C: Deserialize<'de>, V: Deserialize<'de>")]
struct Paid<'a, C, V> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    channel_config: C,
    voucher: V,
    /// Belongs to server-signed vouchers.
    #[serde(default, deserialize_with = "present")]
    authorization: Option<IgnoredAny>,
}

/// Keeps `null` apart from a field that is absent.
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// Extensions as every challenge offers them.
pub(super) fn written(extensions: &impl Serialize) -> String {
    serde_json::to_string(extensions).unwrap_or_default()
}

#[cfg(test)]
mod tests;
