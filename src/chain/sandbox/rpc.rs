//! Solana's JSON-RPC as the sandbox answers it: which methods there are, how they are called, how they refuse.
//!
//! Codes are Solana's: -32601 for an unknown method, -32602 for parameters that cannot be read, -32002 for a preflight
//! that failed, -32003 for a signature that does not verify. Methods that begin with `sandbox_` are our own.

mod encode;
mod own;
mod params;
mod reads;
pub(super) mod server;
mod transactions;

use serde::Serialize;
use serde_json::{Value, json};

use super::SandboxChain;
use params::Params;

/// The most calls in one request.
const BATCH_CALLS_MAX: usize = 100;

/// An error answer.
#[derive(Clone, Debug, PartialEq, Serialize, thiserror::Error)]
#[error("{message} ({code})")]
pub struct RpcError {
    /// The JSON-RPC code.
    pub code: i64,
    /// The message.
    pub message: String,
    /// More, such as a failed preflight's result.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<Value>,
}

impl RpcError {
    fn new(code: i64, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), data: None }
    }

    fn invalid_params(message: impl std::fmt::Display) -> Self {
        Self::new(-32602, format!("Invalid params: {message}"))
    }
}

type Answer = Result<Value, RpcError>;

impl SandboxChain {
    /// Answers one call as the HTTP endpoint would, without HTTP: `params` is the array of its parameters.
    ///
    /// # Errors
    /// The JSON-RPC error that the endpoint would answer.
    pub fn call(&self, method: &str, params: &Value) -> Answer {
        if !method.starts_with("sandbox_")
            && let Some((code, message)) = self.with(|bank| bank.faults.take_rpc(method))
        {
            return Err(RpcError::new(code, message));
        }
        let params = Params::new(params)?;
        match method {
            "getHealth" => Ok(json!("ok")),
            "getVersion" => Ok(json!({ "solana-core": "3.0.0", "feature-set": 0 })),
            "getGenesisHash" => reads::genesis_hash(self),
            "getIdentity" => reads::identity(self),
            "getSlot" => reads::slot(self, &params),
            "getBlockHeight" => reads::block_height(self, &params),
            "getBlockTime" => reads::block_time(self, &params),
            "getEpochInfo" => reads::epoch_info(self, &params),
            "getLatestBlockhash" => reads::latest_blockhash(self, &params),
            "isBlockhashValid" => reads::is_blockhash_valid(self, &params),
            "getRecentPrioritizationFees" => Ok(json!([])),
            "getMinimumBalanceForRentExemption" => reads::rent(&params),
            "getAccountInfo" => reads::account_info(self, &params),
            "getMultipleAccounts" => reads::multiple_accounts(self, &params),
            "getProgramAccounts" => reads::program_accounts(self, &params),
            "getBalance" => reads::balance(self, &params),
            "getTokenAccountBalance" => reads::token_account_balance(self, &params),
            "getTokenAccountsByOwner" => reads::token_accounts_by_owner(self, &params),
            "getTokenSupply" => reads::token_supply(self, &params),
            "getFeeForMessage" => transactions::fee_for_message(self, &params),
            "sendTransaction" => transactions::send(self, &params),
            "simulateTransaction" => transactions::simulate(self, &params),
            "getSignatureStatuses" => transactions::signature_statuses(self, &params),
            "getSignaturesForAddress" => transactions::signatures_for_address(self, &params),
            "getTransaction" => transactions::transaction(self, &params),
            "requestAirdrop" => own::airdrop(self, &params),
            _ => own::call(self, method, &params),
        }
    }

    /// Answers a request body: one call or a batch of them.
    pub(super) fn answer(&self, body: &[u8]) -> Value {
        match serde_json::from_slice(body) {
            Err(_) => envelope(Value::Null, Err(RpcError::new(-32700, "Parse error"))),
            Ok(Value::Array(calls)) if calls.is_empty() || calls.len() > BATCH_CALLS_MAX => {
                let message = format!("Invalid request: a batch holds 1 to {BATCH_CALLS_MAX} calls");
                envelope(Value::Null, Err(RpcError::new(-32600, message)))
            }
            Ok(Value::Array(calls)) => calls.iter().map(|call| self.answer_one(call)).collect(),
            Ok(call) => self.answer_one(&call),
        }
    }

    fn answer_one(&self, call: &Value) -> Value {
        let id = call.get("id").cloned().unwrap_or_default();
        let (version, method) = (call.get("jsonrpc"), call.get("method").and_then(Value::as_str));
        let (Some("2.0"), Some(method)) = (version.and_then(Value::as_str), method) else {
            return envelope(id, Err(RpcError::new(-32600, "Invalid request")));
        };
        envelope(id, self.call(method, call.get("params").unwrap_or(&Value::Null)))
    }
}

fn envelope(id: Value, answer: Answer) -> Value {
    match answer {
        Ok(result) => json!({ "jsonrpc": "2.0", "result": result, "id": id }),
        Err(error) => json!({ "jsonrpc": "2.0", "error": error, "id": id }),
    }
}

/// An answer with the slot that it is of.
fn with_context(slot: u64, value: Value) -> Value {
    json!({ "context": { "apiVersion": "3.0.0", "slot": slot }, "value": value })
}
