//! The shapes of JSON-RPC values that are read and written, and nothing of them that is not used.

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Value, json};

use crate::chain::evm::{Block, Call, Log, Receipt};
use crate::x402::evm::{Address, B256};

/// Bytes as `0x` and hexadecimal digits, of any length: answers are bounded before they are read.
pub(super) struct Hex(pub(super) Vec<u8>);

/// A number as `0x` and hexadecimal digits.
#[derive(Clone, Copy)]
pub(super) struct Quantity(pub(super) u128);

impl Quantity {
    pub(super) fn to_u64(self) -> Option<u64> {
        u64::try_from(self.0).ok()
    }
}

/// Reads a text by a function.
struct Text<T>(fn(&str) -> Option<T>, &'static str);

impl<T> Visitor<'_> for Text<T> {
    type Value = T;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.1)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        (self.0)(text).ok_or_else(|| E::custom(self.1))
    }
}

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Text(|text| bytes(text).map(Self), "0x and hexadecimal digits"))
    }
}

impl Serialize for Hex {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&const_hex::encode_prefixed(&self.0))
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Text(|text| quantity(text).map(Self), "a number: 0x and hexadecimal digits"))
    }
}

/// Bytes of a text, where it is `0x` and their digits.
pub(super) fn bytes(text: &str) -> Option<Vec<u8>> {
    const_hex::decode(text.strip_prefix("0x")?).ok()
}

fn quantity(text: &str) -> Option<u128> {
    let digits = text.strip_prefix("0x").filter(|digits| !digits.starts_with('+'))?;
    u128::from_str_radix(digits, 16).ok()
}

/// A call as `eth_call` takes it.
pub(super) fn call(from: Option<Address>, call: &Call) -> Value {
    let mut object = json!({ "to": call.to, "data": const_hex::encode_prefixed(&call.data) });
    if let (Some(from), Some(fields)) = (from, object.as_object_mut()) {
        fields.insert("from".into(), json!(from));
    }
    object
}

/// A block's number as a parameter.
pub(super) fn number(number: u64) -> String {
    format!("{number:#x}")
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct BlockShape {
    number: Quantity,
    timestamp: Quantity,
    gas_limit: Quantity,
    #[serde(default)]
    base_fee_per_gas: Option<Quantity>,
}

impl BlockShape {
    pub(super) fn read(self) -> Option<Block> {
        Some(Block {
            number: self.number.to_u64()?,
            timestamp: self.timestamp.to_u64()?,
            base_fee_per_gas: self.base_fee_per_gas.map(|fee| fee.0),
            gas_limit: self.gas_limit.to_u64()?,
        })
    }
}

#[derive(Deserialize)]
struct LogShape {
    address: Address,
    topics: Vec<B256>,
    data: Hex,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ReceiptShape {
    transaction_hash: B256,
    #[serde(default)]
    block_number: Option<Quantity>,
    #[serde(default)]
    status: Option<Quantity>,
    gas_used: Quantity,
    logs: Vec<LogShape>,
}

impl ReceiptShape {
    /// The receipt; `None` in it where the transaction is in no block yet.
    pub(super) fn read(self) -> Result<Option<Receipt>, &'static str> {
        let Some(block_number) = self.block_number else { return Ok(None) };
        let status = self.status.ok_or("it has no status")?.0;
        let log = |log: LogShape| Log { address: log.address, topics: log.topics, data: log.data.0 };
        Ok(Some(Receipt {
            transaction: self.transaction_hash,
            block_number: block_number.to_u64().ok_or("its block has no usable number")?,
            succeeded: status == 1,
            gas_used: self.gas_used.to_u64().ok_or("it used more gas than can be")?,
            logs: self.logs.into_iter().map(log).collect(),
        }))
    }
}
