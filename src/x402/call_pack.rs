//! The words of extension `call-pack`: several calls of a resource are paid for at once, with a pass that counts them down.
//!
//! A challenge offers a pack under `extensions.call-pack.info`: how many calls, and the payment requirements that buy them.
//! These do not stand among `accepts`, so a client that does not know the extension pays for each call as ever. A client that
//! wants the pack pays with one of them as `accepted` and sends the extension back. The answer to that payment tells the
//! pass in its `PAYMENT-RESPONSE`, under `extensions.call-pack.info`; it is sent with each further call in the header
//! `Payment-Pass`, without a payment. The pass is a secret of its bearer. Nothing here knows what a pass is good for.
//!
//! Source: x402 version 2, section 5.1 (extensions); the extension itself is ours, `docs/decisions/0014-call-packs.md`.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::wire::PaymentRequirements;

/// The extension's name in `extensions`.
pub const NAME: &str = "call-pack";
/// How the header of a call on a pass is written in words to clients.
pub const HEADER: &str = "Payment-Pass";
/// Client to server: the pass that a call is made on.
pub const PAYMENT_PASS: &str = "payment-pass";
/// Server to client: how many calls are left on it.
pub const PAYMENT_PASS_CALLS_LEFT: &str = "payment-pass-calls-left";
/// How long a pass is as text.
pub const PASS_CHARS: usize = 43;

/// What a client holds of a pass. Its text is never printed but on purpose, by [`PassToken::reveal`].
#[derive(PartialEq, Eq)]
pub struct PassToken([u8; 32]);

impl PassToken {
    /// A token of these bytes, which nobody must be able to guess.
    #[must_use]
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Reads a header's value: [`PASS_CHARS`] characters of base64url without padding.
    #[must_use]
    pub fn parse(value: &[u8]) -> Option<Self> {
        if value.len() != PASS_CHARS {
            return None;
        }
        URL_SAFE_NO_PAD.decode(value).ok()?.try_into().ok().map(Self)
    }

    /// The text that a client sends. A secret: for the answer to who bought it and for nobody else.
    #[must_use]
    pub fn reveal(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.0)
    }

    /// What it is known by: its SHA-256.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        Sha256::digest(self.0).into()
    }
}

impl fmt::Debug for PassToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PassToken(...)")
    }
}

/// What a challenge says of a pack.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PackOffer {
    /// How many calls it holds, the buying one included.
    pub calls: u32,
    /// For how long, in seconds.
    pub expires_after_seconds: u64,
    /// The request header that takes the pass.
    pub header: String,
    /// The ways to pay for it.
    pub accepts: Vec<PaymentRequirements>,
}

/// What the answer to a purchase says of the pass.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PackSold {
    /// The pass: a secret.
    pub pass: String,
    /// How many calls were bought.
    pub calls: u32,
    /// How many are left.
    pub calls_left: u32,
    /// Until when, in Unix seconds.
    pub expires_at: i64,
}

impl fmt::Debug for PackSold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pass: _, calls, calls_left, expires_at } = self;
        write!(f, "PackSold {{ calls: {calls}, calls_left: {calls_left}, expires_at: {expires_at}, .. }}")
    }
}

/// What a challenge says under the extension's name.
#[must_use]
pub fn declaration(offer: &PackOffer) -> Value {
    json!({
        "info": offer,
        "schema": {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "type": "object",
            "properties": {
                "calls": { "type": "integer", "minimum": 2 },
                "expiresAfterSeconds": { "type": "integer", "minimum": 1 },
                "header": { "type": "string" },
                "accepts": {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "object",
                        "properties": {
                            "scheme": { "type": "string" },
                            "network": { "type": "string" },
                            "amount": { "type": "string" },
                            "asset": { "type": "string" },
                            "payTo": { "type": "string" },
                            "maxTimeoutSeconds": { "type": "integer" },
                            "extra": { "type": "object" },
                        },
                        "required": ["scheme", "network", "amount", "asset", "payTo", "maxTimeoutSeconds"],
                    },
                },
            },
            "required": ["calls", "expiresAfterSeconds", "header", "accepts"],
        },
    })
}

/// What an answer says under the extension's name.
#[must_use]
pub fn sold(sold: &PackSold) -> Value {
    json!({ "info": sold })
}

/// Whether a payment sends the extension back.
#[must_use]
pub fn is_echoed(extensions: &Map<String, Value>) -> bool {
    extensions.get(NAME).is_some_and(Value::is_object)
}

/// The pack that a challenge offers, where it offers one that can be read.
#[must_use]
pub fn offered(extensions: &Map<String, Value>) -> Option<PackOffer> {
    serde_json::from_value(extensions.get(NAME)?.get("info")?.clone()).ok()
}

/// The pass that an answer tells of.
#[must_use]
pub fn bought(extensions: &Map<String, Value>) -> Option<PackSold> {
    serde_json::from_value(extensions.get(NAME)?.get("info")?.clone()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_has_one_spelling_and_is_not_printed() {
        let token = PassToken::new([7; 32]);
        let text = token.reveal();
        assert_eq!(text.len(), PASS_CHARS);
        assert_eq!(PassToken::parse(text.as_bytes()), Some(PassToken::new([7; 32])));
        assert_eq!(format!("{token:?}"), "PassToken(...)");
        assert_ne!(token.digest(), [7; 32]);
        // Of the last character four bits count.
        let loose = format!("{}d", &text[..42]);
        for wrong in
            ["", &text[..42], &format!("{text}A"), &format!("{text}="), &loose, &"+".repeat(43), &"é".repeat(43)]
        {
            assert_eq!(PassToken::parse(wrong.as_bytes()), None, "{wrong}");
        }
        let sold = PackSold { pass: text.clone(), calls: 50, calls_left: 49, expires_at: 1 };
        assert!(!format!("{sold:?}").contains(&text));
        let extensions = Map::from_iter([(NAME.to_owned(), super::sold(&sold))]);
        assert_eq!(bought(&extensions), Some(sold));
    }

    #[test]
    fn an_offer_is_read_back() {
        let accepts = json!([{
            "scheme": "batch-settlement", "network": "solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp", "amount": "40000",
            "asset": "mint", "payTo": "merchant", "maxTimeoutSeconds": 300,
        }]);
        let offer = PackOffer {
            calls: 50,
            expires_after_seconds: 60,
            header: "Payment-Pass".to_owned(),
            accepts: serde_json::from_value(accepts).unwrap(),
        };
        let extensions = Map::from_iter([(NAME.to_owned(), declaration(&offer))]);
        assert!(is_echoed(&extensions));
        assert_eq!(offered(&extensions), Some(offer));
        assert_eq!((offered(&Map::new()), is_echoed(&Map::new())), (None, false));
        for broken in [json!(null), json!({}), json!({ "info": { "calls": 0 } })] {
            assert_eq!(offered(&Map::from_iter([(NAME.to_owned(), broken)])), None);
        }
    }
}
