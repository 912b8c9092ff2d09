//! Our own facilitator: accepts, co-signs, sends and confirms in this process, with the threshold signer behind it.
//!
//! Promises that nothing is signed before the whole acceptance policy and the chain's present state allow it, that one
//! job is settled once at a time, that nothing is sent a second time before the first is known never to land, and that
//! what it reports was read from the chain afterwards. An error before anything was sent says so; after that there is
//! an answer from the chain, or [`FacilitatorError::Pending`].
//!
//! **No `CloseAuthorization` is made here.** The specification has a server prove to a facilitator, over an
//! unauthenticated HTTP interface, that it wants a close (sections 3 and 4.5). Here both are one process and one key:
//! the same quorum that would sign the authorization sees the same channel and amount in `SigningRequest::Close`, under
//! its own policy, and signs the transaction itself. A second signature by the same shares over the same facts would
//! prove nothing and cost one more round of threshold signing. A remote facilitator needs it, and
//! `SigningRequest::CloseAuthorization` is there for that adapter. The voucher of a metered request is different: it
//! is signed even for a charge of zero, because `scheme_upto_svm.md` (phase 4) makes it the record of the charge.

mod close;
mod closing;
mod deposit;
mod in_flight;
mod token;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use self::in_flight::{InFlight, Job, Taken, Turn};
use self::token::Expected;
use super::{
    AcceptedDeposit, CloseRequest, DepositRequest, DepositScheme, Facilitator, FacilitatorError, SettledClose,
    SettledDeposit,
};
use crate::amount::Amount;
use crate::chain::{Account, Blockhash, Chain, ChainError, Confirmation};
use crate::clock::Clock;
use crate::ledger::channel::{OnChain, Seller, Terms};
use crate::policy::{Policy, PolicyError};
use crate::scheme::svm::acceptance::Rejected;
use crate::scheme::svm::program::ChannelAccount;
use crate::scheme::svm::transaction::Transaction;
use crate::scheme::svm::{PAYMENT_CHANNELS, SYSTEM_PROGRAM, associated_token_account};
use crate::signer::{Signer, SignerError, SigningRequest};
use crate::x402::key::Signature;
use crate::x402::{Key, Reason};

/// How long a transaction is waited for before its fate is called unknown.
pub const CONFIRM_TIMEOUT_DEFAULT: Duration = Duration::from_secs(60);

/// Why there is no facilitator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LocalFacilitatorError {
    /// The seller's terms name a key that the signer does not hold.
    #[error("the seller's {role} is {named}, but the signer signs as {signs}")]
    ForeignKey {
        /// `fee payer` or `receiver authorizer`.
        role: &'static str,
        /// What the terms say.
        named: Key,
        /// What the signer is.
        signs: Key,
    },
}

/// Our own facilitator for one seller's account on one network.
pub struct LocalFacilitator {
    chain: Arc<dyn Chain>,
    signer: Arc<dyn Signer>,
    policy: Arc<Policy>,
    clock: Arc<dyn Clock>,
    seller: Arc<Seller>,
    pay_to_ata: Key,
    treasury_ata: Key,
    in_flight: InFlight,
    confirm_timeout: Duration,
}

impl LocalFacilitator {
    /// A facilitator that signs for `seller`.
    ///
    /// # Errors
    /// [`LocalFacilitatorError`] where the signer's key is not the seller's fee payer and receiver authorizer.
    pub fn new(
        chain: Arc<dyn Chain>,
        signer: Arc<dyn Signer>,
        policy: Arc<Policy>,
        seller: Arc<Seller>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, LocalFacilitatorError> {
        let signs = signer.public_key();
        for (role, named) in [("fee payer", seller.fee_payer), ("receiver authorizer", seller.receiver_authorizer)] {
            if named != signs {
                return Err(LocalFacilitatorError::ForeignKey { role, named, signs });
            }
        }
        let ata = |owner| associated_token_account(owner, &seller.mint, &seller.token_program);
        let (pay_to_ata, treasury_ata) = (ata(&seller.pay_to), ata(&seller.treasury_owner));
        Ok(Self {
            chain,
            signer,
            policy,
            clock,
            seller,
            pay_to_ata,
            treasury_ata,
            in_flight: InFlight::default(),
            confirm_timeout: CONFIRM_TIMEOUT_DEFAULT,
        })
    }

    /// The same facilitator, waiting otherwise than [`CONFIRM_TIMEOUT_DEFAULT`].
    #[must_use]
    pub const fn confirm_within(mut self, timeout: Duration) -> Self {
        self.confirm_timeout = timeout;
        self
    }

    fn payer_ata(&self, terms: &Terms) -> Key {
        associated_token_account(&terms.payer, &self.seller.mint, &self.seller.token_program)
    }

    fn is_ours(&self, terms: &Terms) -> Result<(), FacilitatorError> {
        if Arc::ptr_eq(&self.seller, &terms.seller) || self.seller == terms.seller {
            return Ok(());
        }
        Err(refused(Reason::InvalidRequirements, "the channel's terms are another seller's"))
    }

    /// Has the policy approve a request, and the signer sign it.
    async fn sign(&self, request: SigningRequest, moving: Amount) -> Result<Signature, FacilitatorError> {
        let approved = self.policy.approve(request, moving).map_err(|error| forbidden(&error))?;
        self.signer.sign(approved).await.map_err(|error| not_signed(&error))
    }

    fn take(&self, job: Job) -> Result<Turn<'_>, Taken> {
        self.in_flight.take(job, self.clock.now())
    }

    fn usable(&self, whose: &str, owner: Key, account: Option<&Account>) -> Result<u64, String> {
        let expected = Expected { owner, mint: self.seller.mint, token_program: self.seller.token_program };
        token::balance(account, &expected).map_err(|what| format!("the {whose} token account of {owner} {what}"))
    }
}

fn refused(reason: Reason, detail: impl Into<String>) -> FacilitatorError {
    FacilitatorError::Refused { reason, detail: detail.into() }
}

fn not_taken(taken: &Taken) -> FacilitatorError {
    match taken {
        Taken::Held | Taken::Done(_) => {
            refused(Reason::DuplicateSettlement, "the same is being settled, or was just now")
        }
        Taken::Full => FacilitatorError::Unavailable("too many settlements are under way".into()),
    }
}

impl From<Rejected> for FacilitatorError {
    fn from(Rejected { reason, detail }: Rejected) -> Self {
        Self::Refused { reason, detail }
    }
}

/// Before anything was sent, whatever the chain could not do leaves nothing behind.
fn nothing_sent(error: &ChainError) -> FacilitatorError {
    FacilitatorError::Unavailable(error.to_string())
}

fn forbidden(error: &PolicyError) -> FacilitatorError {
    refused(Reason::UnexpectedSettleError, error.to_string())
}

fn not_signed(error: &SignerError) -> FacilitatorError {
    match error {
        SignerError::Refused { .. } => refused(Reason::UnexpectedSettleError, error.to_string()),
        SignerError::NoQuorum(_) | SignerError::Broken(_) => FacilitatorError::Unavailable(error.to_string()),
    }
}

/// The codes that a scheme has for the same mishap.
#[derive(Clone, Copy)]
struct Codes {
    setup: Reason,
    simulation: Reason,
    broadcast: Reason,
    state: Reason,
    close: Reason,
}

const BATCH: Codes = Codes {
    setup: Reason::BatchSetupTransaction,
    simulation: Reason::BatchSettlementSimulation,
    broadcast: Reason::BatchSettlementSimulation,
    state: Reason::BatchChannelState,
    close: Reason::BatchCloseState,
};
const UPTO: Codes = Codes {
    setup: Reason::UptoOpenTransaction,
    simulation: Reason::UptoSettlementSimulation,
    broadcast: Reason::UptoChannelBroadcast,
    state: Reason::UptoChannelState,
    close: Reason::UptoChannelState,
};

impl DepositScheme {
    const fn codes(self) -> Codes {
        match self {
            Self::BatchSettlement => BATCH,
            Self::Upto => UPTO,
        }
    }
}

/// What the chain holds at a channel's address: lamports that somebody sent there beforehand are no channel.
fn channel_in(account: Option<&Account>) -> Result<Option<ChannelAccount>, &'static str> {
    match account {
        None => Ok(None),
        Some(account) if account.owner == SYSTEM_PROGRAM && account.data.is_empty() => Ok(None),
        Some(account) if account.owner != PAYMENT_CHANNELS => {
            Err("the channel's address holds another program's account")
        }
        Some(account) => match ChannelAccount::decode(&account.data) {
            Ok(channel) => Ok(Some(channel)),
            Err(_) => Err("the channel's account is not of the supported version"),
        },
    }
}

/// How a transaction that was sent ended.
enum Fate {
    Confirmed,
    /// It changed nothing and never will.
    Dead {
        detail: String,
        /// Whether building it again with a fresh blockhash is all that it needs.
        expired: bool,
    },
    /// It was never taken, because our fee payer cannot pay for it.
    Unfunded {
        detail: String,
    },
    Unknown,
}

impl LocalFacilitator {
    /// What to do where the chain's words mean that our fee payer cannot pay: it stands first in every transaction.
    fn unfunded(&self, error: &str) -> Option<String> {
        let ours = ["InsufficientFundsForFee", "AccountNotFound", r#""InsufficientFundsForRent":{"account_index":0}"#];
        let fee_payer = self.seller.fee_payer;
        let hint = || format!("the fee payer {fee_payer} cannot pay ({error}): send it some SOL");
        ours.iter().any(|words| error.contains(words)).then(hint)
    }

    /// Sends a signed transaction and waits for its fate.
    async fn broadcast(&self, transaction: &Transaction, last_valid_block_height: u64) -> Fate {
        let bytes = transaction.encode();
        match self.chain.send(&bytes).await {
            Ok(()) => {}
            Err(ref error @ ChainError::Refused(ref text)) => {
                if let Some(detail) = self.unfunded(text) {
                    return Fate::Unfunded { detail };
                }
                return Fate::Dead { expired: error.is_stale_blockhash(), detail: error.to_string() };
            }
            // It may have been sent all the same: only waiting tells.
            Err(error) => tracing::warn!(id = %transaction.id(), %error, "it is not known whether it was sent"),
        }
        let id = transaction.id();
        match self.chain.confirm(&bytes, &id, last_valid_block_height, self.confirm_timeout).await {
            Ok(Confirmation::Confirmed { .. }) => Fate::Confirmed,
            Ok(Confirmation::Failed { error }) => {
                Fate::Dead { detail: format!("it failed on chain: {error}"), expired: false }
            }
            Ok(Confirmation::Expired) => {
                Fate::Dead { detail: "its blockhash expired before it landed".into(), expired: true }
            }
            Err(error) => {
                tracing::warn!(%id, %error, "the transaction's fate is unknown");
                Fate::Unknown
            }
        }
    }
}

#[async_trait]
impl Facilitator for LocalFacilitator {
    async fn accept_deposit(&self, request: DepositRequest) -> Result<AcceptedDeposit, FacilitatorError> {
        self.accept(request).await
    }

    async fn settle_deposit(&self, deposit: AcceptedDeposit) -> Result<SettledDeposit, FacilitatorError> {
        self.settle(deposit).await
    }

    async fn read_channel(&self, terms: &Terms) -> Result<Option<OnChain>, FacilitatorError> {
        self.is_ours(terms)?;
        let codes = if terms.authorizer == self.seller.receiver_authorizer { UPTO } else { BATCH };
        let account = self.chain.account(&terms.id).await.map_err(|error| nothing_sent(&error))?;
        match channel_in(account.as_ref()).map_err(|what| refused(codes.state, what))? {
            Some(channel) if !terms.matches(&channel) => {
                Err(refused(codes.state, "the channel on chain has other terms"))
            }
            channel => Ok(channel.map(|channel| OnChain::of(&channel, self.clock.now()))),
        }
    }

    async fn close(&self, request: CloseRequest) -> Result<SettledClose, FacilitatorError> {
        self.close_cooperatively(request).await
    }

    async fn close_metered(
        &self,
        terms: &Terms,
        charge: Amount,
        deposit: Amount,
        expires_at: i64,
    ) -> Result<SettledClose, FacilitatorError> {
        self.close_at_charge(terms, charge, deposit, expires_at).await
    }

    fn hints(&self) -> Option<Blockhash> {
        self.chain.cached_blockhash()
    }
}
