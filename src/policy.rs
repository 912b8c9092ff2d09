//! What the proxy asks its signer to sign: pure rules and caps, and the only maker of an approved request.
//!
//! Owns [`Policy`] with its requests ([`SigningRequest`]), [`EvmPolicy`] with its own ([`EvmRequest`]), and [`Approved`],
//! without which no signer can be asked. It stands on the proxy's side and knows what the signer cannot: how much a
//! request newly moves by the ledger's books. The signer does not trust it and judges each request again by its own
//! rules.

mod evm;
mod request;

pub use self::evm::{Deployment, EvmClaim, EvmPolicy, EvmRefund, EvmRequest};
pub use self::request::{ClaimLine, Setup, SigningRequest};

use crate::amount::Amount;
use crate::scheme::svm::PAYMENT_CHANNELS;
use crate::scheme::svm::program::{BPS_ALL, Call, Share};
use crate::scheme::svm::transaction::Transaction;
use crate::x402::Key;
use crate::x402::evm::Address;

/// What may be asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Who may be paid.
    pub pay_to: Vec<Key>,
    /// The most that one `open` or `top_up` may deposit.
    pub deposit_cap: Amount,
    /// The most that one request may newly move by the ledger's books. It is also the most that a channel may hold: a
    /// signer counts a channel's whole cumulative amount, so what is charged above this could never be claimed.
    pub claim_cap: Amount,
}

/// A request that passed the policy. Nobody else can make one, and it is used once.
#[derive(Debug)]
pub struct Approved<R = SigningRequest>(R);

impl<R> Approved<R> {
    /// The request, to be handed to the signer.
    #[must_use]
    pub fn into_request(self) -> R {
        self.0
    }

    /// The request, to be logged.
    #[must_use]
    pub const fn request(&self) -> &R {
        &self.0
    }
}

/// Why a request is not made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// Somebody else would be paid.
    #[error("{0} is not an allowed pay_to")]
    Recipient(Key),
    /// A channel on an EVM network pays somebody else.
    #[error("{0} is not an allowed pay_to")]
    Receiver(Address),
    /// A distribution that does not give everything to one recipient, or that cannot be read.
    #[error("the transaction does not pay everything to one recipient")]
    Distribution,
    /// More than a request may move. Splitting it helps.
    #[error("the request moves {moving}, one request may move {cap} (signer.claim_max)")]
    ClaimCap {
        /// What it moves.
        moving: Amount,
        /// The cap.
        cap: Amount,
    },
    /// More than may be deposited at once.
    #[error("{deposit} would be deposited at once, the limit is {cap} (signer.deposit_max)")]
    DepositCap {
        /// The deposit.
        deposit: Amount,
        /// The cap.
        cap: Amount,
    },
    /// More than a channel may hold.
    #[error(
        "the channel would hold {deposit}, the limit is {cap} (signer.claim_max): have it refunded and open another"
    )]
    ChannelCap {
        /// The whole deposit.
        deposit: Amount,
        /// The cap.
        cap: Amount,
    },
    /// The request claims less than the books say it moves: one of the two is wrong.
    #[error("the books say that {moving} moves, the request names only {named}")]
    Books {
        /// By the books.
        moving: Amount,
        /// By the request.
        named: Amount,
    },
}

impl Policy {
    /// A policy that has no limits but whom it pays.
    #[must_use]
    pub const fn unlimited(pay_to: Vec<Key>) -> Self {
        Self { pay_to, deposit_cap: Amount::new(u128::MAX), claim_cap: Amount::new(u128::MAX) }
    }

    /// Whether a channel may be given `deposit`, after which it holds `deposit_after`. To be asked before anything is
    /// served on the strength of it.
    ///
    /// # Errors
    /// [`PolicyError::DepositCap`] or [`PolicyError::ChannelCap`].
    pub fn admit_deposit(&self, deposit: Amount, deposit_after: Amount) -> Result<(), PolicyError> {
        if deposit > self.deposit_cap {
            return Err(PolicyError::DepositCap { deposit, cap: self.deposit_cap });
        }
        if deposit_after > self.claim_cap {
            return Err(PolicyError::ChannelCap { deposit: deposit_after, cap: self.claim_cap });
        }
        Ok(())
    }

    /// Approves a request that newly moves `moving` by the ledger's books: for a claim or a close what it claims above
    /// the chain's watermark, for a distribution what it pays out, for a voucher the charge, else nothing.
    ///
    /// # Errors
    /// [`PolicyError`] with the rule that forbids it.
    pub fn approve(&self, request: SigningRequest, moving: Amount) -> Result<Approved, PolicyError> {
        if moving > self.claim_cap {
            return Err(PolicyError::ClaimCap { moving, cap: self.claim_cap });
        }
        if let Some(named) = named_amount(&request)
            && moving > named
        {
            return Err(PolicyError::Books { moving, named });
        }
        if let Some(transaction) = transaction(&request) {
            self.calls(transaction)?;
        }
        Ok(Approved(request))
    }

    /// Everyone whom the transaction's channel calls pay must be allowed, and so must be what they deposit.
    fn calls(&self, transaction: &Transaction) -> Result<(), PolicyError> {
        for instruction in transaction.instructions() {
            if instruction.program != PAYMENT_CHANNELS {
                continue;
            }
            match Call::decode(&instruction.data).map_err(|_| PolicyError::Distribution)? {
                Call::Open { recipients, deposit, .. } => {
                    self.recipients(&recipients)?;
                    self.admit_deposit(deposit.into(), deposit.into())?;
                }
                Call::Distribute { recipients } => self.recipients(&recipients)?,
                Call::TopUp { amount } => self.admit_deposit(amount.into(), amount.into())?,
                Call::Settle
                | Call::SettleAndSeal { .. }
                | Call::RequestClose
                | Call::Seal
                | Call::WithdrawPayer
                | Call::Reclaim => {}
            }
        }
        Ok(())
    }

    fn recipients(&self, recipients: &[Share]) -> Result<(), PolicyError> {
        match recipients {
            [Share { recipient, bps: BPS_ALL }] if self.pay_to.contains(recipient) => Ok(()),
            [Share { recipient, bps: BPS_ALL }] => Err(PolicyError::Recipient(*recipient)),
            _ => Err(PolicyError::Distribution),
        }
    }
}

/// The most that a request can move by its own words; `None` where it names no amounts.
fn named_amount(request: &SigningRequest) -> Option<Amount> {
    match request {
        SigningRequest::Claim { lines, .. } => {
            Some(lines.iter().fold(Amount::ZERO, |sum, line| sum.saturating_add(line.cumulative.into())))
        }
        SigningRequest::Close { cumulative: Some(cumulative), .. }
        | SigningRequest::Voucher { cumulative, .. }
        | SigningRequest::CloseAuthorization { cumulative, .. } => Some((*cumulative).into()),
        SigningRequest::AuditCheckpoint(_) => Some(Amount::ZERO),
        // What a close without a voucher pays out was claimed before; it names no amount.
        SigningRequest::Sponsor { .. } | SigningRequest::Distribute { .. } | SigningRequest::Close { .. } => None,
    }
}

const fn transaction(request: &SigningRequest) -> Option<&Transaction> {
    match request {
        SigningRequest::Sponsor { transaction, .. }
        | SigningRequest::Claim { transaction, .. }
        | SigningRequest::Distribute { transaction, .. }
        | SigningRequest::Close { transaction, .. } => Some(transaction),
        SigningRequest::Voucher { .. }
        | SigningRequest::CloseAuthorization { .. }
        | SigningRequest::AuditCheckpoint(_) => None,
    }
}
