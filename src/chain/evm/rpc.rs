//! An EVM chain over JSON-RPC: the adapter of [`EvmChain`].
//!
//! Owns several endpoints in the operator's order, with the time-outs, limits, retries and secrecy of
//! [`crate::chain::rpc`], and what a node's error answers mean. Promises that what is read at once is of one block, and
//! that what is read after a receipt is not older than it. Source: the Ethereum JSON-RPC specification, and the words
//! of geth, reth and anvil where it leaves errors open.

mod wire;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::Instant;

use self::wire::{BlockShape, Hex, Quantity, ReceiptShape};
use super::revert::Revert;
use super::{AtBlock, Block, Call, Counted, EvmChain, EvmError, Receipt, Refusal, SendError, abi, malformed};
use crate::chain::rpc::{CallError, Client, EndpointHealth, Endpoints, Observer, RpcError, RpcSetupError, Verdict};
use crate::x402::evm::{Address, B256, U256};

/// How long a receipt's block is asked of nodes. A chain that starts over must not stay locked out.
const SEEN_BLOCK_KEPT: Duration = Duration::from_secs(60);
/// The pause before a node that is behind is asked again.
const BEHIND_PAUSE: Duration = Duration::from_millis(200);
/// How often it is.
const BEHIND_TRIES_MAX: u32 = 10;

/// How to reach a chain. Shows nothing of its endpoints but their number.
#[derive(Clone, Debug)]
pub struct EvmRpcOptions {
    /// The chain's id, which the endpoints have to agree to ([`EvmRpc::check_chain`]).
    pub chain_id: u64,
    /// Where it is asked.
    pub endpoints: Endpoints,
    /// The longest answer that is read.
    pub answer_bytes_max: usize,
    /// The most reads that go into one call of Multicall3.
    pub reads_per_call_max: usize,
}

impl EvmRpcOptions {
    /// What fits public chains.
    #[must_use]
    pub const fn new(chain_id: u64, urls: Vec<String>) -> Self {
        Self {
            chain_id,
            endpoints: Endpoints::public(urls),
            answer_bytes_max: 4 * 1024 * 1024,
            reads_per_call_max: 300,
        }
    }
}

/// A chain over JSON-RPC. Cheap to clone: clones share connections.
#[derive(Clone)]
pub struct EvmRpc(Arc<Inner>);

struct Inner {
    client: Client,
    options: EvmRpcOptions,
    seen_block: Mutex<Option<(Instant, u64)>>,
}

impl fmt::Debug for EvmRpc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.health()).finish()
    }
}

/// Tells errors about the endpoint from errors about the request.
fn judge(error: &RpcError) -> Verdict {
    let says = |words: &[&str]| {
        let message = error.message.to_ascii_lowercase();
        words.iter().any(|word| message.contains(word))
    };
    if says(&["header not found", "block not found", "unknown block", "missing trie node", "blockoutofrange"]) {
        return Verdict::Behind;
    }
    match error.code {
        429 | -32429 | -32005 | -32016 | -32029 => Verdict::Limited,
        -32601 | -32004 => Verdict::NotServed,
        // Some nodes judge transactions and calls under the code of an inner failure.
        -32603 | -32002 if revert_data(error).is_none() && refusal_of(error) == Refusal::Other && !is_known(error) => {
            Verdict::Failed
        }
        _ => Verdict::Request,
    }
}

/// What a call gave back as it reverted, where the error says that it did.
fn revert_data(error: &RpcError) -> Option<Vec<u8>> {
    let data = error.data.as_ref().and_then(|data| data.as_str().or_else(|| data.get("data")?.as_str()));
    let data = data.and_then(|data| wire::bytes(data.strip_prefix("Reverted ").unwrap_or(data)));
    let reverted = error.code == 3 || error.message.contains("revert");
    data.or_else(|| reverted.then(Vec::new))
}

/// Whether the node has the transaction already.
fn is_known(error: &RpcError) -> bool {
    let message = error.message.to_ascii_lowercase();
    ["already known", "already imported", "known transaction", "already in mempool", "alreadyexists"]
        .iter()
        .any(|words| message.contains(words))
}

fn refusal_of(error: &RpcError) -> Refusal {
    let message = error.message.to_ascii_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| message.contains(word));
    if says(&["nonce too low", "nonce is too low"]) {
        Refusal::NonceTooLow
    } else if says(&["replacement", "could not replace"]) {
        Refusal::Underpriced
    } else if says(&["insufficient funds", "insufficient balance"]) {
        Refusal::InsufficientFunds
    } else if says(&["underpriced", "base fee", "fee too low", "gas price too low", "tip too low"]) {
        Refusal::FeeTooLow
    } else {
        Refusal::Other
    }
}

impl EvmRpc {
    /// A chain that tells `observer` of every attempt; `()` listens to nothing.
    ///
    /// # Errors
    /// [`RpcSetupError`] where an endpoint cannot be used.
    pub fn new(options: EvmRpcOptions, observer: Arc<dyn Observer>) -> Result<Self, RpcSetupError> {
        let client = Client::new(&options.endpoints, judge, observer)?;
        Ok(Self(Arc::new(Inner { client, options, seen_block: Mutex::new(None) })))
    }

    /// How each endpoint does, in the operator's order.
    #[must_use]
    pub fn health(&self) -> Vec<EndpointHealth> {
        self.0.client.health()
    }

    /// Whether the endpoint that answers is of the configured chain.
    ///
    /// # Errors
    /// [`EvmError::Malformed`] where it is of another, or [`EvmError::Unavailable`].
    pub async fn check_chain(&self) -> Result<(), EvmError> {
        let found = self.quantity("eth_chainId", json!([])).await?;
        let wanted = self.0.options.chain_id;
        if found == u128::from(wanted) {
            return Ok(());
        }
        Err(malformed("eth_chainId", format!("the endpoint is of chain {found}, the configuration of chain {wanted}")))
    }

    async fn ask<T: DeserializeOwned>(&self, method: &'static str, params: Value) -> Result<T, CallError> {
        self.0.client.call(method, params, self.0.options.answer_bytes_max).await
    }

    async fn read<T: DeserializeOwned>(&self, method: &'static str, params: Value) -> Result<T, EvmError> {
        self.ask(method, params).await.map_err(|error| match error {
            CallError::Unavailable(detail) => EvmError::Unavailable(detail),
            CallError::Malformed(what) => malformed(method, what),
            CallError::Rpc { error, .. } => match revert_data(&error) {
                Some(data) if data.is_empty() => EvmError::Reverted(Revert::said(&error.message)),
                Some(data) => EvmError::Reverted(Revert::of(&data)),
                None => malformed(method, format!("error {}: {}", error.code, error.message)),
            },
        })
    }

    async fn quantity(&self, method: &'static str, params: Value) -> Result<u128, EvmError> {
        self.read::<Quantity>(method, params).await.map(|quantity| quantity.0)
    }

    async fn quantity_u64(&self, method: &'static str, params: Value) -> Result<u64, EvmError> {
        let number = self.quantity(method, params).await?;
        u64::try_from(number).map_err(|_| malformed(method, "a number that cannot be"))
    }

    /// Remembers a block that we saw a receipt of: what is read from now on must not be older.
    fn seen(&self, block: u64) {
        let still = self.seen_block().unwrap_or_default();
        *self.0.seen_block.lock() = Some((Instant::now(), block.max(still)));
    }

    fn seen_block(&self) -> Option<u64> {
        self.0.seen_block.lock().filter(|(at, _)| at.elapsed() < SEEN_BLOCK_KEPT).map(|(_, block)| block)
    }
}

#[async_trait]
impl EvmChain for EvmRpc {
    fn chain_id(&self) -> u64 {
        self.0.options.chain_id
    }

    async fn head(&self) -> Result<Block, EvmError> {
        const METHOD: &str = "eth_getBlockByNumber";
        for _ in 0..BEHIND_TRIES_MAX {
            let block: BlockShape = self.read(METHOD, json!(["latest", false])).await?;
            let block = block.read().ok_or_else(|| malformed(METHOD, "a block with numbers that cannot be"))?;
            if self.seen_block().is_none_or(|seen| seen <= block.number) {
                return Ok(block);
            }
            tokio::time::sleep(BEHIND_PAUSE).await;
        }
        Err(EvmError::Unavailable("the endpoints are behind a block that was seen already".into()))
    }

    async fn call(&self, from: Address, call: &Call) -> Result<Vec<u8>, EvmError> {
        let answer: Hex = self.read("eth_call", json!([wire::call(Some(from), call), "latest"])).await?;
        Ok(answer.0)
    }

    async fn call_many(&self, calls: &[Call]) -> Result<AtBlock<Vec<Result<Vec<u8>, Revert>>>, EvmError> {
        let block = self.head().await?.number;
        let mut value = Vec::with_capacity(calls.len());
        for part in calls.chunks(self.0.options.reads_per_call_max.max(1)) {
            let together = wire::call(None, &abi::multicall::aggregate(part));
            let answer: Hex = self.read("eth_call", json!([together, wire::number(block)])).await?;
            value.extend(abi::multicall::answers(&answer.0, part.len())?);
        }
        Ok(AtBlock { block, value })
    }

    async fn code_bytes(&self, address: Address) -> Result<usize, EvmError> {
        let code: Hex = self.read("eth_getCode", json!([address, "latest"])).await?;
        Ok(code.0.len())
    }

    async fn coin_balance(&self, address: Address) -> Result<U256, EvmError> {
        let text: String = self.read("eth_getBalance", json!([address, "latest"])).await?;
        text.parse().map_err(|_| malformed("eth_getBalance", "not a number"))
    }

    async fn estimate_gas(&self, from: Address, call: &Call) -> Result<u64, EvmError> {
        self.quantity_u64("eth_estimateGas", json!([wire::call(Some(from), call)])).await
    }

    async fn priority_fee(&self) -> Result<u128, EvmError> {
        self.quantity("eth_maxPriorityFeePerGas", json!([])).await
    }

    async fn transaction_count(&self, address: Address, counted: Counted) -> Result<u64, EvmError> {
        let tag = match counted {
            Counted::Mined => "latest",
            Counted::Known => "pending",
        };
        self.quantity_u64("eth_getTransactionCount", json!([address, tag])).await
    }

    async fn send(&self, transaction: &[u8]) -> Result<(), SendError> {
        let params = json!([Hex(transaction.to_vec())]);
        match self.ask::<String>("eth_sendRawTransaction", params).await {
            Ok(_) => Ok(()),
            Err(CallError::Rpc { error, .. }) if is_known(&error) => Ok(()),
            // Another endpoint may have passed it on before this one judged it.
            Err(CallError::Rpc { error, doubtful: true }) => {
                Err(SendError::Doubtful(format!("one endpoint did not answer, another said: {}", error.message)))
            }
            Err(CallError::Rpc { error, doubtful: false }) => {
                Err(SendError::Refused { refusal: refusal_of(&error), text: error.message })
            }
            Err(CallError::Unavailable(detail) | CallError::Malformed(detail)) => Err(SendError::Doubtful(detail)),
        }
    }

    async fn receipt(&self, transaction: &B256) -> Result<Option<Receipt>, EvmError> {
        const METHOD: &str = "eth_getTransactionReceipt";
        let shape: Option<ReceiptShape> = self.read(METHOD, json!([transaction])).await?;
        let Some(shape) = shape else { return Ok(None) };
        let receipt = shape.read().map_err(|what| malformed(METHOD, what))?;
        let receipt = receipt.filter(|receipt| receipt.transaction == *transaction);
        if let Some(receipt) = &receipt {
            self.seen(receipt.block_number);
        }
        Ok(receipt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(code: i64, message: &str, data: Option<Value>) -> RpcError {
        RpcError { code, message: message.to_owned(), data }
    }

    /// In the words of geth, reth, anvil and of providers.
    #[test]
    fn what_nodes_say_of_transactions_is_understood() {
        let table = [
            (-32000, "nonce too low: next nonce 5, tx nonce 3", Refusal::NonceTooLow),
            (-32003, "nonce too low", Refusal::NonceTooLow),
            (-32000, "replacement transaction underpriced", Refusal::Underpriced),
            (-32603, "replacement transaction underpriced", Refusal::Underpriced),
            (-32000, "insufficient funds for gas * price + value: have 0 want 1", Refusal::InsufficientFunds),
            (-32003, "Insufficient funds for gas * price + value", Refusal::InsufficientFunds),
            (-32000, "max fee per gas less than block base fee", Refusal::FeeTooLow),
            (-32000, "transaction underpriced: gas tip cap 1, minimum needed 2", Refusal::FeeTooLow),
            (-32000, "exceeds block gas limit", Refusal::Other),
        ];
        for (code, message, refusal) in table {
            let error = error(code, message, None);
            assert_eq!((judge(&error), refusal_of(&error)), (Verdict::Request, refusal), "{message}");
            assert!(!is_known(&error));
        }
        for message in ["already known", "transaction already imported", "ALREADY_EXISTS: already known"] {
            let error = error(-32603, message, None);
            assert!(is_known(&error) && judge(&error) == Verdict::Request, "{message}");
        }
    }

    #[test]
    fn what_nodes_say_of_themselves_is_not_taken_for_the_request_s_fault() {
        let table = [
            (-32601, "the method eth_x does not exist/is not available", Verdict::NotServed),
            (-32005, "daily request count exceeded, request rate limited", Verdict::Limited),
            (-32016, "over rate limit", Verdict::Limited),
            (-32603, "Internal error", Verdict::Failed),
            (-32000, "header not found", Verdict::Behind),
            (-32602, "BlockOutOfRangeError: block height is 2 but requested was 65535", Verdict::Behind),
            (-32602, "invalid argument 0", Verdict::Request),
        ];
        for (code, message, verdict) in table {
            assert_eq!(judge(&error(code, message, None)), verdict, "{message}");
        }
    }

    #[test]
    fn a_revert_is_found_wherever_a_node_puts_it() {
        let data = Some(vec![0x8b, 0xaa, 0x57, 0x9f]);
        let found = [
            error(3, "execution reverted", Some(json!("0x8baa579f"))),
            error(-32000, "execution reverted", Some(json!("Reverted 0x8baa579f"))),
            error(-32603, "Internal error", Some(json!({ "data": "0x8baa579f" }))),
        ];
        for error in found {
            assert_eq!((revert_data(&error), judge(&error)), (data.clone(), Verdict::Request));
        }
        assert_eq!(revert_data(&error(-32000, "execution reverted", None)), Some(Vec::new()));
        assert_eq!(revert_data(&error(-32000, "nonce too low", None)), None);
    }
}
