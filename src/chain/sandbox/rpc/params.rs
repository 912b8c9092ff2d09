//! Reads a call's parameters; what cannot be read is refused with its place.

use std::str::FromStr;

use serde_json::Value;

use super::RpcError;
use crate::chain::sandbox::bank::{Bank, FINALITY_SLOTS};
use crate::x402::Key;

/// A call's parameters, by place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Params<'a>(&'a [Value]);

const NULL: &Value = &Value::Null;

impl<'a> Params<'a> {
    /// An array, or nothing at all.
    pub(super) fn new(params: &'a Value) -> Result<Self, RpcError> {
        match params {
            Value::Null => Ok(Self(&[])),
            Value::Array(values) => Ok(Self(values)),
            _ => Err(RpcError::invalid_params("params must be an array")),
        }
    }

    /// The value at `place`; null where there is none.
    pub(super) fn at(&self, place: usize) -> &'a Value {
        self.0.get(place).unwrap_or(NULL)
    }

    /// The text at `place`.
    pub(super) fn text(&self, place: usize) -> Result<&'a str, RpcError> {
        self.at(place)
            .as_str()
            .ok_or_else(|| RpcError::invalid_params(format_args!("params[{place}] must be a string")))
    }

    /// The number at `place`.
    pub(super) fn number(&self, place: usize) -> Result<u64, RpcError> {
        let wanted = || RpcError::invalid_params(format_args!("params[{place}] must be a non-negative integer"));
        self.at(place).as_u64().ok_or_else(wanted)
    }

    /// The address at `place`.
    pub(super) fn key(&self, place: usize) -> Result<Key, RpcError> {
        parse(self.text(place)?)
    }

    /// The options at `place`, which may be missing.
    pub(super) fn config(&self, place: usize) -> Result<Config<'a>, RpcError> {
        match self.at(place) {
            value @ (Value::Null | Value::Object(_)) => Ok(Config(value)),
            _ => Err(RpcError::invalid_params(format_args!("params[{place}] must be an object"))),
        }
    }
}

/// Reads an address or a signature.
pub(super) fn parse<T: FromStr>(text: &str) -> Result<T, RpcError> {
    text.parse().map_err(|_| RpcError::new(-32602, format!("Invalid param: {text:?} is not valid base58 of its size")))
}

/// How sure an answer must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Commitment {
    Present,
    Finalized,
}

impl Commitment {
    /// The slot that this commitment has reached.
    pub(super) fn slot(self, bank: &mut Bank) -> u64 {
        match self {
            Self::Present => bank.slot(),
            Self::Finalized => bank.slot().saturating_sub(FINALITY_SLOTS),
        }
    }
}

/// A call's options.
#[derive(Clone, Copy, Debug)]
pub(super) struct Config<'a>(&'a Value);

impl<'a> Config<'a> {
    /// The value named `name`; null where there is none.
    pub(super) fn get(&self, name: &str) -> &'a Value {
        self.0.get(name).unwrap_or(NULL)
    }

    /// Whether `name` is set and true.
    pub(super) fn flag(&self, name: &str) -> bool {
        self.get(name).as_bool().unwrap_or(false)
    }

    /// The text named `name`, where there is one.
    pub(super) fn text(&self, name: &str) -> Option<&'a str> {
        self.get(name).as_str()
    }

    /// The commitment; a cluster's default is the surest.
    pub(super) fn commitment(&self) -> Result<Commitment, RpcError> {
        match self.get("commitment") {
            Value::Null => Ok(Commitment::Finalized),
            Value::String(text) if text == "finalized" => Ok(Commitment::Finalized),
            Value::String(text) if text == "confirmed" || text == "processed" => Ok(Commitment::Present),
            other => Err(RpcError::invalid_params(format_args!("unknown commitment {other}"))),
        }
    }

    /// Refuses where the caller has seen a later slot than this chain's.
    pub(super) fn check_context(&self, slot: u64) -> Result<(), RpcError> {
        self.commitment()?;
        match self.get("minContextSlot").as_u64() {
            Some(wanted) if wanted > slot => Err(RpcError {
                data: Some(serde_json::json!({ "contextSlot": slot })),
                ..RpcError::new(-32016, "Minimum context slot has not been reached")
            }),
            _ => Ok(()),
        }
    }
}
