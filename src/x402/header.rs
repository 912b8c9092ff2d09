//! The header codec: standard base64 of JSON, bounded in size and depth.
//!
//! Source: `transports-v2/http.md`. Decoding never panics and never allocates more than the header's own size.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Server to client: how to pay.
pub const PAYMENT_REQUIRED: &str = "payment-required";
/// Client to server: the payment.
pub const PAYMENT_SIGNATURE: &str = "payment-signature";
/// Server to client: what became of the payment.
pub const PAYMENT_RESPONSE: &str = "payment-response";

/// The longest payment header that is decoded.
pub const PAYMENT_HEADER_BYTES_MAX: usize = 16 * 1024;

/// Why a payment header cannot be read. All of these are the sender's to mend.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// Longer than [`PAYMENT_HEADER_BYTES_MAX`].
    #[error("the payment header has {0} bytes, the limit is {PAYMENT_HEADER_BYTES_MAX}")]
    TooLong(usize),
    /// Not standard base64.
    #[error("the payment header is not standard base64: {0}")]
    NotBase64(#[from] base64::DecodeError),
    /// The base64 holds no such JSON.
    #[error("the payment header does not hold the expected JSON: {0}")]
    NotJson(#[from] serde_json::Error),
}

/// Reads a header's value.
///
/// # Errors
/// [`HeaderError`] where the value is too long, is no base64, or holds other JSON than `T`.
pub fn decode<T: DeserializeOwned>(value: &[u8]) -> Result<T, HeaderError> {
    Ok(serde_json::from_slice(&decode_bytes(value)?)?)
}

/// Reads a header's value, but not the JSON in it.
///
/// # Errors
/// [`HeaderError`] where the value is too long or is no base64.
pub fn decode_bytes(value: &[u8]) -> Result<Vec<u8>, HeaderError> {
    if value.len() > PAYMENT_HEADER_BYTES_MAX {
        return Err(HeaderError::TooLong(value.len()));
    }
    // By vectors, in a tenth of the steps; what it does not take, the other says why of.
    base64_simd::STANDARD.decode_to_vec(value).or_else(|_| Ok(STANDARD.decode(value)?))
}

/// Writes a header's value: base64 text, which is always a valid header value.
///
/// # Errors
/// [`HeaderError::NotJson`] where `value` cannot be written as JSON, which our wire types always can.
pub fn encode<T: Serialize>(value: &T) -> Result<String, HeaderError> {
    Ok(encode_bytes(&serde_json::to_vec(value)?))
}

/// Writes a header's value whose JSON is written already.
#[must_use]
pub fn encode_bytes(json: &[u8]) -> String {
    base64_simd::STANDARD.encode_to_string(json)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Two ways of reading, which are to take the same texts for the same bytes.
        #[test]
        fn the_quick_way_reads_what_the_other_reads(
            text in prop_oneof!["[A-Za-z0-9+/]{0,80}={0,3}", "[A-Za-z0-9+/= _-]{0,40}"],
        ) {
            prop_assert_eq!(
                base64_simd::STANDARD.decode_to_vec(&text).ok(),
                STANDARD.decode(&text).ok()
            );
        }

        #[test]
        fn the_quick_way_writes_what_the_other_writes(json in any::<Vec<u8>>()) {
            prop_assert_eq!(encode_bytes(&json), STANDARD.encode(&json));
        }
    }
}
