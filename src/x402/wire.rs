//! The JSON objects of x402 version 2, section 5, with what the Solana schemes add under `extra` and `payload`.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Map;
pub use serde_json::Value;

use super::Network;
use super::key::{Key, Signature};
use crate::amount::Amount;

/// The protocol version that is spoken here.
pub const X402_VERSION: u32 = 2;

/// Reads JSON of any shape; nesting is bounded by the parser.
///
/// # Errors
/// The parser's own.
pub fn read_json(bytes: &[u8]) -> Result<Value, serde_json::Error> {
    serde_json::from_slice(bytes)
}

/// Reads a scheme's own object out of [`PaymentPayload::payload`].
///
/// # Errors
/// The parser's own, naming the field.
pub fn read_payload<T: DeserializeOwned>(payload: Value) -> Result<T, serde_json::Error> {
    serde_json::from_value(payload)
}

/// How to pay for a resource (section 5.1).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PaymentRequired {
    /// Always [`X402_VERSION`].
    pub x402_version: u32,
    /// Why the request was not served: a sentence for an unpaid one, a reason code for a refused payment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What is paid for.
    pub resource: ResourceInfo,
    /// The ways to pay, the merchant's favourite first.
    pub accepts: Vec<PaymentRequirements>,
    /// Protocol extensions by name.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub extensions: Map<String, Value>,
}

/// What is paid for (section 5.1.2).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResourceInfo {
    /// The resource's address as the client asked for it.
    pub url: String,
    /// For people and agents that choose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The media type of the answer to expect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mime_type: Option<String>,
}

/// One way to pay (section 5.1.2).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PaymentRequirements {
    /// The scheme's name, such as `batch-settlement`.
    pub scheme: String,
    /// Where the money moves.
    pub network: Network,
    /// The price, or for metered schemes the most that will be charged.
    pub amount: Amount,
    /// The token's address.
    pub asset: String,
    /// Where the money goes.
    pub pay_to: String,
    /// How long the exchange may take.
    pub max_timeout_seconds: u64,
    /// What the scheme adds.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub extra: Map<String, Value>,
}

/// A payment as the client sends it (section 5.2). The payload stays unread until the scheme is known.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PaymentPayload {
    /// Must be [`X402_VERSION`].
    pub x402_version: u32,
    /// What the client believes it pays for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource: Option<ResourceInfo>,
    /// The way to pay that the client chose from our offer.
    pub accepted: PaymentRequirements,
    /// The scheme's own object.
    pub payload: Value,
    /// Extensions that the client echoes.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub extensions: Map<String, Value>,
}

/// What became of a payment (section 5.3).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SettlementResponse {
    /// Whether it was accepted or settled.
    pub success: bool,
    /// The reason code of a failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_reason: Option<String>,
    /// Who paid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payer: Option<String>,
    /// The transaction's name on chain; empty where nothing was sent.
    pub transaction: String,
    /// Where.
    pub network: Network,
    /// What moved on chain; empty text where nothing did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub amount: Option<String>,
    /// What the scheme adds.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub extra: Map<String, Value>,
    /// What extensions of the protocol add, by name.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub extensions: Map<String, Value>,
}

/// The constant terms of a channel, as a client sends them (`scheme_batch_settlement_svm.md`, section 4.2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChannelConfig {
    /// The client's wallet.
    pub payer: Key,
    /// The key that signs vouchers.
    pub payer_authorizer: Key,
    /// Must equal `payTo`.
    pub receiver: Key,
    /// Must equal `extra.receiverAuthorizer`.
    pub receiver_authorizer: Key,
    /// The mint; must equal `asset`.
    pub token: Key,
    /// Seconds between a payer's `request_close` and its end; must equal `extra.withdrawDelay`.
    pub withdraw_delay: u32,
    /// Decimal text of a `u64`.
    #[serde(with = "decimal_u64")]
    pub salt: u64,
    /// The slot that the channel's address is derived with.
    #[serde(with = "number_or_text_u64")]
    pub open_slot: u64,
    /// `client` where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub voucher_signer: Option<String>,
}

/// A signed promise of a channel's cumulative total (section 4.2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BatchVoucher {
    /// The channel's address.
    pub channel_id: Key,
    /// The cumulative total that may be claimed.
    pub max_claimable_amount: Amount,
    /// Must be 0.
    pub expires_at: i64,
    /// By the channel's `payerAuthorizer`, over the 50-byte voucher message.
    pub signature: Signature,
}

/// A deposit's transaction, made and signed by the client (section 4.3).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deposit {
    /// How much is put in.
    pub amount: Amount,
    /// Base64 of the partly signed `open` or `top_up`.
    pub transaction: String,
}

/// The payload of scheme `batch-settlement` on Solana (section 4.3), client-signed mode.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase", rename_all_fields = "camelCase")]
pub enum BatchPayload {
    /// Opens or tops up a channel and pays for this request.
    Deposit {
        /// The channel's terms.
        channel_config: ChannelConfig,
        /// Pays for this request.
        voucher: BatchVoucher,
        /// Fills the channel.
        deposit: Deposit,
    },
    /// Pays for this request from what the channel holds.
    Voucher {
        /// The channel's terms.
        channel_config: ChannelConfig,
        /// Pays for this request.
        voucher: BatchVoucher,
    },
    /// Closes the channel and returns what is left.
    Refund {
        /// The channel's terms.
        channel_config: ChannelConfig,
        /// The voucher that was accepted last, or one of zero where none was.
        voucher: BatchVoucher,
        /// Must be absent: only all of what is left can be returned.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        amount: Option<Value>,
        /// A payer-signed `request_close`; only after our key binding was unavailable.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        transaction: Option<String>,
    },
}

/// A channel as the server sees it (section 4.2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChannelState {
    /// The channel's address.
    pub channel_id: Key,
    /// What was deposited.
    pub balance: Amount,
    /// What was claimed on chain.
    pub total_claimed: Amount,
    /// Unix seconds of a pending forced close, or 0.
    pub withdraw_requested_at: i64,
    /// What was charged; the base of the next voucher.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub charged_cumulative_amount: Option<Amount>,
}

/// The client's own last voucher, as proof in a corrective 402 (section 4.6).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VoucherState {
    /// The cumulative total of the voucher accepted last.
    pub signed_max_claimable: Amount,
    /// Always 0.
    pub expires_at: i64,
    /// The client's signature over it.
    pub signature: Signature,
}

/// The payload of scheme `upto` on Solana (`scheme_upto_svm.md`, section 4.2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UptoPayload {
    /// The client's wallet.
    pub from: Key,
    /// The ceiling that the client signed; equals the advertised amount.
    pub max_amount: Amount,
    /// Unix seconds; never 0.
    pub expires_at: i64,
    /// Unix seconds.
    pub valid_after: i64,
    /// The salt of the channel's address, decimal text of a `u64`.
    #[serde(with = "decimal_u64")]
    pub nonce: u64,
    /// The slot of the channel's address. The reference client writes text, the specification a number: both are read.
    #[serde(with = "number_or_text_u64")]
    pub open_slot: u64,
    /// The channel's address.
    pub channel_id: Key,
    /// Equals `max_amount`.
    pub deposit: Amount,
    /// Equals `extra.receiverAuthorizer`.
    pub authorized_signer: Key,
    /// Base64 of the partly signed `open`.
    pub open_transaction: String,
    /// Belongs to the server; a client that sends it is refused.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub voucher_signature: Option<Value>,
}

/// Keeps `null` apart from a field that is absent.
fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

mod decimal_u64 {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(value: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
            return Err(D::Error::custom("expected decimal digits"));
        }
        text.parse().map_err(D::Error::custom)
    }
}

mod number_or_text_u64 {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(value: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(*value)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Number(u64),
            Text(String),
        }
        match Either::deserialize(deserializer)? {
            Either::Number(number) => Ok(number),
            Either::Text(text) if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) => {
                text.parse().map_err(D::Error::custom)
            }
            Either::Text(_) => Err(D::Error::custom("expected decimal digits")),
        }
    }
}
