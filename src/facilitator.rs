//! The port to the facilitator: who checks, co-signs, sends and confirms what clients sign for the chain.
//!
//! Adapter: `facilitator/local.rs`, our own. The gate calls this; the key that signs stays behind it. Facilitators elsewhere
//! have a port of their own, [`interface`], and the adapter `facilitator/http.rs`.

pub mod authorizer;
pub mod channels;
pub mod evm;
pub mod http;
pub mod interface;
pub mod local;

use async_trait::async_trait;

use crate::amount::Amount;
use crate::ledger::channel::{OnChain, Terms, Voucher};
use crate::scheme::svm::transaction::Transaction;
use crate::x402::Reason;
use crate::x402::key::Signature;

/// A client's deposit as it came with a request.
#[derive(Clone, Debug)]
pub struct DepositRequest {
    /// The channel that it opens or tops up.
    pub terms: Terms,
    /// How much.
    pub amount: Amount,
    /// The client's partly signed transaction, undecoded base64.
    pub transaction: String,
    /// The seller's memo that the transaction must carry, where one was advertised.
    pub memo: Option<String>,
    /// The channel as the ledger knows it; `None` for a new one.
    pub known: Option<OnChain>,
    /// Whose acceptance policy applies.
    pub scheme: DepositScheme,
}

/// Which scheme a deposit belongs to: their acceptance policies differ in memos and channel state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DepositScheme {
    /// `scheme_batch_settlement_svm.md`, section 5: a binding memo, and `open` or `top_up`.
    BatchSettlement,
    /// `scheme_upto_svm.md`, section 5: always an `open`, of a channel that does not exist yet.
    Upto,
}

/// A deposit that passed the whole acceptance policy and would succeed now. Only a facilitator makes one.
#[derive(Clone, Debug)]
pub struct AcceptedDeposit {
    /// What was asked.
    pub request: DepositRequest,
    /// The client's transaction, decoded.
    pub transaction: Transaction,
    /// Whether it opens the channel; else it tops it up.
    pub opens: bool,
    /// The channel's whole deposit once it is confirmed.
    pub deposit_after: Amount,
}

/// A deposit that the chain has confirmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettledDeposit {
    /// The transaction.
    pub transaction: Signature,
    /// The channel, read again after the confirmation.
    pub channel: OnChain,
}

/// A cooperative close: a refund that the client asked for, or a seal before a forced close ends.
#[derive(Clone, Debug)]
pub struct CloseRequest {
    /// The channel.
    pub terms: Terms,
    /// The voucher accepted last; `None` where nothing was ever charged.
    pub voucher: Option<Voucher>,
    /// Unix seconds at which the voucher expires: 0 but for `upto`.
    pub voucher_expires_at: i64,
}

/// A close that the chain has confirmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettledClose {
    /// The transaction.
    pub transaction: Signature,
    /// What went back to the payer.
    pub returned: Amount,
    /// The final watermark: all that the merchant ever received from this channel.
    pub claimed: Amount,
    /// All that was ever deposited.
    pub deposit: Amount,
}

/// Why a facilitator did not do it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FacilitatorError {
    /// The payment is at fault; the code says how.
    #[error("{reason}: {detail}")]
    Refused {
        /// The protocol's code.
        reason: Reason,
        /// For the operator's log and the client's developer.
        detail: String,
    },
    /// The chain or the signer is out of reach. Nothing was sent.
    #[error("unavailable: {0}")]
    Unavailable(String),
    /// A transaction was sent and its fate is unknown. It must be looked up, never repeated blindly.
    #[error("transaction {transaction} was sent but not confirmed in time")]
    Pending {
        /// The transaction.
        transaction: Signature,
    },
}

/// Checks and settles what clients sign for the chain.
#[async_trait]
pub trait Facilitator: Send + Sync {
    /// Checks a deposit by the scheme's whole acceptance policy and simulates it. Signs and sends nothing.
    async fn accept_deposit(&self, request: DepositRequest) -> Result<AcceptedDeposit, FacilitatorError>;
    /// Co-signs, sends and confirms a deposit, then reads the channel again and compares it with its terms.
    async fn settle_deposit(&self, deposit: AcceptedDeposit) -> Result<SettledDeposit, FacilitatorError>;
    /// Reads a channel; `None` where the chain has none at this address. Refuses one with other terms.
    async fn read_channel(&self, terms: &Terms) -> Result<Option<OnChain>, FacilitatorError>;
    /// Closes a channel cooperatively: applies the voucher, pays the merchant, returns the rest, all in one
    /// transaction.
    async fn close(&self, request: CloseRequest) -> Result<SettledClose, FacilitatorError>;
    /// Closes a metered request's channel at its charge, which may be nothing (`upto`, phase 4): signs the voucher too.
    async fn close_metered(
        &self,
        terms: &Terms,
        charge: Amount,
        deposit: Amount,
        expires_at: i64,
    ) -> Result<SettledClose, FacilitatorError>;
    /// A recent blockhash and slot that a challenge may offer as hints, where they are at hand without waiting.
    fn hints(&self) -> Option<crate::chain::Blockhash>;
}
