//! The JSON objects of x402 version 1, which older clients speak: scheme `exact` only, networks by short names.
//!
//! Source: `x402-specification-v1.md` section 5, `transports-v1/http.md`. Written so that the older clients' own schemas
//! take it: npm's `x402` insists on `description` and `mimeType`, and takes no `outputSchema` of `null`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Network;
use super::wire::SettlementResponse;
use crate::amount::Amount;

/// Client to server: the payment.
pub const X_PAYMENT: &str = "x-payment";
/// Server to client: what became of the payment.
pub const X_PAYMENT_RESPONSE: &str = "x-payment-response";
/// The protocol version that is spoken here.
pub const X402_VERSION: u32 = 1;

/// The body of a 402 answer (section 5.1).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PaymentRequiredV1 {
    /// Always [`X402_VERSION`].
    pub x402_version: u32,
    /// Why the request was not served.
    #[serde(default)]
    pub error: String,
    /// The ways to pay.
    pub accepts: Vec<PaymentRequirementsV1>,
}

/// One way to pay (section 5.1.2).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PaymentRequirementsV1 {
    /// `exact`.
    pub scheme: String,
    /// A short name, such as `base-sepolia`.
    pub network: String,
    /// The price.
    pub max_amount_required: Amount,
    /// The address of what is paid for.
    pub resource: String,
    /// For people and agents that choose; may be empty.
    pub description: String,
    /// The media type of the answer to expect; may be empty.
    #[serde(default)]
    pub mime_type: String,
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

/// A payment as the client sends it (section 5.2). It does not say which terms it accepts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PaymentPayloadV1 {
    /// Must be [`X402_VERSION`].
    pub x402_version: u32,
    /// The scheme's name.
    pub scheme: String,
    /// The network's short name.
    pub network: String,
    /// The scheme's own object.
    pub payload: Value,
}

impl PaymentPayloadV1 {
    /// The network, where its name is a known one.
    #[must_use]
    pub fn known_network(&self) -> Option<Network> {
        Network::of_short_name(&self.network)
    }
}

/// What became of a payment (section 5.3).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SettlementResponseV1 {
    /// Whether it was settled.
    pub success: bool,
    /// The reason code of a failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_reason: Option<String>,
    /// The transaction's name on chain; empty where nothing was sent.
    pub transaction: String,
    /// The network's short name.
    pub network: String,
    /// Who paid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payer: Option<String>,
}

impl From<&SettlementResponse> for SettlementResponseV1 {
    /// What version 1 has no word for is left out.
    fn from(settlement: &SettlementResponse) -> Self {
        let network = &settlement.network;
        Self {
            success: settlement.success,
            error_reason: settlement.error_reason.clone(),
            transaction: settlement.transaction.clone(),
            network: network.short_name().unwrap_or(network.as_str()).to_owned(),
            payer: settlement.payer.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The examples of the specification.
    #[test]
    fn what_the_specification_shows_is_read() {
        let required = json!({
            "x402Version": 1,
            "error": "X-PAYMENT header is required",
            "accepts": [{
                "scheme": "exact",
                "network": "base-sepolia",
                "maxAmountRequired": "10000",
                "asset": "0x036CbD53842c5426634e7929541eC2318f3dCF7e",
                "payTo": "0x209693Bc6afc0C5328bA36FaF03C514EF312287C",
                "resource": "https://api.example.com/premium-data",
                "description": "Access to premium market data",
                "mimeType": "application/json",
                "outputSchema": null,
                "maxTimeoutSeconds": 60,
                "extra": { "name": "USDC", "version": "2" },
            }],
        });
        let read: PaymentRequiredV1 = serde_json::from_value(required.clone()).unwrap();
        assert_eq!(read.accepts[0].max_amount_required, Amount::new(10_000));
        let mut written = required;
        written["accepts"][0].as_object_mut().unwrap().remove("outputSchema");
        assert_eq!(serde_json::to_value(read).unwrap(), written);

        let payment = json!({ "x402Version": 1, "scheme": "exact", "network": "base-sepolia", "payload": {} });
        let read: PaymentPayloadV1 = serde_json::from_value(payment).unwrap();
        assert_eq!(read.known_network().unwrap().as_str(), "eip155:84532");
        let settled = json!({ "success": true, "transaction": "0x12", "network": "base-sepolia", "payer": "0x34" });
        let read: SettlementResponseV1 = serde_json::from_value(settled.clone()).unwrap();
        assert_eq!(serde_json::to_value(read).unwrap(), settled);
    }
}
