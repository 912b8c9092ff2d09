//! The port to an EVM chain: what flows and adapters may ask of it, whoever answers.
//!
//! Adapter: [`rpc`] speaks JSON-RPC to one or several endpoints. Here too is all that is built on the port and not on
//! JSON-RPC: the contracts' interfaces ([`abi`]), transactions ([`transaction`]), the key that pays for them ([`key`])
//! and their sender ([`sender`]), so that tests can put a chain of their own under it.
//!
//! Promises that what is read at once is of one block, which the answer names, and that a revert is told apart from a
//! chain that gave no answer. Source: the Ethereum JSON-RPC specification (`execution-apis`).

pub mod abi;
pub mod fees;
pub mod key;
mod nonces;
pub mod revert;
pub mod rpc;
pub mod sender;
pub mod transaction;

use async_trait::async_trait;

use self::revert::Revert;
use crate::amount::Amount;
use crate::scheme::evm::contracts::PERMIT2;
use crate::x402::evm::{Address, B256, U256};

/// A call of a contract, without value: nothing here ever sends the chain's own coin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// The contract.
    pub to: Address,
    /// Selector and arguments.
    pub data: Vec<u8>,
}

/// A block, as far as anybody here asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Block {
    /// Its number.
    pub number: u64,
    /// Unix seconds.
    pub timestamp: u64,
    /// Wei per gas that each of its transactions burnt; absent before EIP-1559.
    pub base_fee_per_gas: Option<u128>,
    /// The most gas that all of its transactions may use together.
    pub gas_limit: u64,
}

/// What was read, and of which block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AtBlock<T> {
    /// The block's number.
    pub block: u64,
    /// What was read.
    pub value: T,
}

/// An event of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// The contract.
    pub address: Address,
    /// The event's hash and its indexed arguments.
    pub topics: Vec<B256>,
    /// Its other arguments.
    pub data: Vec<u8>,
}

/// A transaction that is in a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The transaction's hash.
    pub transaction: B256,
    /// The block's number.
    pub block_number: u64,
    /// Whether it did what it was sent for; else it reverted and changed nothing but its fee.
    pub succeeded: bool,
    /// Gas that it used.
    pub gas_used: u64,
    /// Its events, in order.
    pub logs: Vec<Log>,
}

/// A channel of the settlement contract. One that nobody ever paid into is all zeros.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChannelState {
    /// Deposited, less what was paid back. Claims do not lower it.
    pub balance: Amount,
    /// Claimed in all.
    pub total_claimed: Amount,
    /// What the payer asked to withdraw.
    pub withdraw_amount: Amount,
    /// Unix seconds of that; zero where nothing is asked.
    pub withdraw_requested_at: u64,
    /// The nonce of the next refund.
    pub refund_nonce: U256,
}

/// What a receiver has of one token in the settlement contract.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReceiverState {
    /// Claimed in all.
    pub total_claimed: Amount,
    /// Paid out in all.
    pub total_settled: Amount,
}

/// Which of an account's transactions are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// Those in blocks.
    Mined,
    /// Those that the node knows, mined or not.
    Known,
}

/// Why the chain gave no answer, or none that can be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvmError {
    /// No endpoint answered in time.
    #[error("no chain endpoint answered: {0}")]
    Unavailable(String),
    /// The call ran and reverted.
    #[error("{0}")]
    Reverted(Revert),
    /// The answer is not what the method promises.
    #[error("the chain's answer to {method} cannot be read: {what}")]
    Malformed {
        /// The method or function that was called.
        method: &'static str,
        /// What is wrong.
        what: String,
    },
}

/// Why a node did not take a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A transaction with this nonce, or a later one, is in a block.
    NonceTooLow,
    /// A transaction with this nonce is waiting, and ours pays too little to take its place.
    Underpriced,
    /// The gas key's account cannot pay.
    InsufficientFunds,
    /// Its fee is below the block's, or below what the node takes at all.
    FeeTooLow,
    /// Anything else.
    Other,
}

/// How sending went wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// It is not known whether a node took it.
    #[error("it is not known whether the transaction was sent: {0}")]
    Doubtful(String),
    /// No node took it.
    #[error("the chain refused the transaction: {text}")]
    Refused {
        /// Why.
        refusal: Refusal,
        /// In the node's words.
        text: String,
    },
}

/// An EVM chain.
#[async_trait]
pub trait EvmChain: Send + Sync {
    /// The chain's id, which every transaction is bound to.
    fn chain_id(&self) -> u64;
    /// The newest block.
    async fn head(&self) -> Result<Block, EvmError>;
    /// Runs a call without effect at the newest block, as if `from` sent it.
    ///
    /// # Errors
    /// [`EvmError::Reverted`] where it would revert.
    async fn call(&self, from: Address, call: &Call) -> Result<Vec<u8>, EvmError>;
    /// Runs many calls without effect at one block. Any number: the adapter splits what is too many.
    async fn call_many(&self, calls: &[Call]) -> Result<AtBlock<Vec<Result<Vec<u8>, Revert>>>, EvmError>;
    /// The bytes of code at an address: 0 where no contract stands.
    async fn code_bytes(&self, address: Address) -> Result<usize, EvmError>;
    /// The account's own coin, in wei.
    async fn coin_balance(&self, address: Address) -> Result<U256, EvmError>;
    /// Gas that a call would use at the newest block if `from` sent it.
    ///
    /// # Errors
    /// [`EvmError::Reverted`] where it would revert.
    async fn estimate_gas(&self, from: Address, call: &Call) -> Result<u64, EvmError>;
    /// What one gives to a block's maker at present, in wei per gas.
    async fn priority_fee(&self) -> Result<u128, EvmError>;
    /// How many transactions an account has sent: the nonce of its next one.
    async fn transaction_count(&self, address: Address, counted: Counted) -> Result<u64, EvmError>;
    /// Sends a signed transaction; its return says only that a node took it, or had it already.
    async fn send(&self, transaction: &[u8]) -> Result<(), SendError>;
    /// The receipt of a transaction that is in a block.
    async fn receipt(&self, transaction: &B256) -> Result<Option<Receipt>, EvmError>;

    /// Channels by id, in order, all of one block.
    async fn channels(&self, ids: &[B256]) -> Result<AtBlock<Vec<ChannelState>>, EvmError> {
        let calls: Vec<Call> = ids.iter().flat_map(abi::batch::read_channel).collect();
        let AtBlock { block, value } = self.call_many(&calls).await?;
        let (parts, rest) = value.as_chunks::<3>();
        if parts.len() != ids.len() || !rest.is_empty() {
            return Err(malformed("channels", "another number of answers"));
        }
        let value = parts.iter().map(abi::batch::channel).collect::<Result<_, _>>()?;
        Ok(AtBlock { block, value })
    }

    /// What a receiver has of a token: claimed, and paid out.
    async fn receiver(&self, receiver: Address, token: Address) -> Result<AtBlock<ReceiverState>, EvmError> {
        let read = self.call_many(&[abi::batch::receivers(receiver, token)]).await?;
        read.one("receivers").and_then(|at| at.and_then(|data| abi::batch::receiver(&data)))
    }

    /// How much of a token an account has.
    async fn token_balance(&self, token: Address, account: Address) -> Result<U256, EvmError> {
        self.call_many(&[abi::token::balance_of(token, account)]).await?.one_number("balanceOf")
    }

    /// How much of a token its owner lets `spender` take.
    async fn allowance(&self, token: Address, owner: Address, spender: Address) -> Result<U256, EvmError> {
        self.call_many(&[abi::token::allowance(token, owner, spender)]).await?.one_number("allowance")
    }

    /// Whether the nonce of an EIP-3009 authorization is used, or was cancelled.
    async fn authorization_used(&self, token: Address, owner: Address, nonce: &B256) -> Result<bool, EvmError> {
        let read = self.call_many(&[abi::token::authorization_state(token, owner, nonce)]).await?;
        Ok(read.one_number("authorizationState")? != U256::ZERO)
    }

    /// Whether a nonce of a Permit2 transfer is used, or was invalidated.
    async fn permit2_nonce_used(&self, owner: Address, nonce: U256) -> Result<bool, EvmError> {
        let read = self.call_many(&[abi::permit2::nonce_bitmap(owner, nonce)]).await?;
        Ok(abi::permit2::is_used(read.one_number("nonceBitmap")?, nonce))
    }

    /// Whether a contract says that it signed a digest (ERC-1271). One that reverts or answers otherwise did not.
    async fn signed_by_contract(&self, wallet: Address, digest: &B256, signature: &[u8]) -> Result<bool, EvmError> {
        let read = self.call_many(&[abi::wallet::is_valid_signature(wallet, digest, signature)]).await?;
        let answer = read.value.into_iter().next().ok_or_else(|| malformed("isValidSignature", "no answer"))?;
        Ok(answer.is_ok_and(|data| abi::wallet::is_magic(&data)))
    }

    /// Whether Permit2 may take `amount` of a token from its owner.
    async fn permit2_may_take(&self, token: Address, owner: Address, amount: Amount) -> Result<bool, EvmError> {
        Ok(self.allowance(token, owner, PERMIT2).await? >= U256::from(amount))
    }
}

fn malformed(method: &'static str, what: impl Into<String>) -> EvmError {
    EvmError::Malformed { method, what: what.into() }
}

impl<T> AtBlock<T> {
    fn and_then<U>(self, read: impl FnOnce(T) -> Result<U, EvmError>) -> Result<AtBlock<U>, EvmError> {
        Ok(AtBlock { block: self.block, value: read(self.value)? })
    }
}

impl AtBlock<Vec<Result<Vec<u8>, Revert>>> {
    /// The answer to the one call that was made.
    fn one(self, method: &'static str) -> Result<AtBlock<Vec<u8>>, EvmError> {
        let block = self.block;
        let answer = self.value.into_iter().next().ok_or_else(|| malformed(method, "no answer"))?;
        Ok(AtBlock { block, value: answer.map_err(EvmError::Reverted)? })
    }

    fn one_number(self, method: &'static str) -> Result<U256, EvmError> {
        abi::number(&self.one(method)?.value).ok_or_else(|| malformed(method, "not a number"))
    }
}
