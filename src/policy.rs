//! What the proxy asks its signer to sign: pure rules and caps, and the only maker of an approved request.
//!
//! Owns [`Policy`] and [`Approved`]. It stands on the proxy's side and knows what the signer cannot: how much a request
//! newly moves by the ledger's books. The signer does not trust it and judges each request again by its own rules.

use crate::amount::Amount;
use crate::scheme::svm::PAYMENT_CHANNELS;
use crate::scheme::svm::program::{BPS_ALL, Call, Share};
use crate::scheme::svm::transaction::Transaction;
use crate::signer::{Setup, SigningRequest};
use crate::x402::Key;

/// What settlement may ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The kinds of requests that are allowed, as [`SigningRequest::kind`] names them.
    pub kinds: Vec<&'static str>,
    /// Who may be paid.
    pub pay_to: Vec<Key>,
    /// The most that one request may newly move by the ledger's books.
    pub batch_cap: Amount,
    /// The most that one channel may be opened with.
    pub deposit_cap: Amount,
}

/// A request that passed the policy. Nobody else can make one, and it is used once.
#[derive(Debug)]
pub struct Approved(SigningRequest);

impl Approved {
    /// The request, to be handed to the signer.
    #[must_use]
    pub fn into_request(self) -> SigningRequest {
        self.0
    }

    /// The request, to be logged.
    #[must_use]
    pub const fn request(&self) -> &SigningRequest {
        &self.0
    }
}

/// Why a request is not made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// The kind is switched off.
    #[error("the policy does not allow requests of kind {0}")]
    Kind(&'static str),
    /// Somebody else would be paid.
    #[error("{0} is not an allowed pay_to")]
    Recipient(Key),
    /// A distribution that does not give everything to one recipient, or that cannot be read.
    #[error("the transaction does not pay everything to one recipient")]
    Distribution,
    /// More than a batch may move. Splitting it helps.
    #[error("the request moves {moving}, one request may move {cap}")]
    BatchCap {
        /// What it moves.
        moving: Amount,
        /// The cap.
        cap: Amount,
    },
    /// More than a channel may be opened with.
    #[error("the channel would be opened with up to {deposit}, the cap is {cap}")]
    DepositCap {
        /// The deposit.
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
    /// Approves a request that newly moves `moving` by the ledger's books: for a claim or a close what it claims above
    /// the chain's watermark, for a distribution what it pays out, for a voucher the charge, else nothing.
    ///
    /// # Errors
    /// [`PolicyError`] with the rule that forbids it.
    pub fn approve(&self, request: SigningRequest, moving: Amount) -> Result<Approved, PolicyError> {
        let kind = request.kind();
        if !self.kinds.contains(&kind) {
            return Err(PolicyError::Kind(kind));
        }
        if moving > self.batch_cap {
            return Err(PolicyError::BatchCap { moving, cap: self.batch_cap });
        }
        if let Some(named) = named_amount(&request)
            && moving > named
        {
            return Err(PolicyError::Books { moving, named });
        }
        if let SigningRequest::Sponsor { setup: Setup::Open { deposit }, .. } = request
            && Amount::from(deposit) > self.deposit_cap
        {
            return Err(PolicyError::DepositCap { deposit: deposit.into(), cap: self.deposit_cap });
        }
        if let Some(transaction) = transaction(&request) {
            self.recipients(transaction)?;
        }
        Ok(Approved(request))
    }

    /// Everyone whom the transaction's channel calls pay must be allowed.
    fn recipients(&self, transaction: &Transaction) -> Result<(), PolicyError> {
        for instruction in transaction.instructions() {
            if instruction.program != PAYMENT_CHANNELS {
                continue;
            }
            match Call::decode(&instruction.data).map_err(|_| PolicyError::Distribution)? {
                Call::Open { recipients, .. } | Call::Distribute { recipients } => match recipients.as_slice() {
                    [Share { recipient, bps: BPS_ALL }] if self.pay_to.contains(recipient) => {}
                    [Share { recipient, bps: BPS_ALL }] => return Err(PolicyError::Recipient(*recipient)),
                    _ => return Err(PolicyError::Distribution),
                },
                Call::Settle
                | Call::TopUp { .. }
                | Call::SettleAndSeal { .. }
                | Call::RequestClose
                | Call::Seal
                | Call::WithdrawPayer
                | Call::Reclaim => {}
            }
        }
        Ok(())
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
        SigningRequest::Voucher { .. } | SigningRequest::CloseAuthorization { .. } => None,
    }
}
