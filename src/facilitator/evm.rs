//! Our own x402 facilitator for one EVM network: verifies and settles in this process, with a gas key of its own.
//!
//! Serves `batch-settlement` (deposit, claim, settle, refund), `exact` (EIP-3009 and Permit2, and version 1 of the
//! protocol) and `upto`. Promises:
//!
//! - nothing is sent that the schemes' checks, the chain's state and a simulation do not all let pass;
//! - the same asked twice, at once or within a while, is the same transaction; and to settle what the chain says was used
//!   already is never called refused, for something may have come of it;
//! - an error says where it stands: [`InterfaceError::Refused`] and [`InterfaceError::Unavailable`] when nothing is on
//!   chain and nothing will be, [`InterfaceError::Unknown`] with the hash when something was sent and is not confirmed;
//! - a caller that goes away leaves no settlement half done.
//!
//! Refuses what it would need a receiver authorizer's key for: claims and refunds come signed, by the threshold signer.
//! Not served: ERC-6492 (wallets that are not deployed yet), ERC-7710, and sponsored approvals. Source:
//! `x402-specification-v2.md` section 7, and the three EVM schemes.

mod batch;
mod claims;
mod codes;
mod jobs;
mod once;
mod wire;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Map, Value};
use tokio::sync::Semaphore;

use self::jobs::{Job, Jobs, Slot, Taken, Turn};
use self::wire::refused;
use super::interface::{InterfaceError, Kind, Payment, Settled, Supported, Verified, X402Facilitator};
use crate::chain::evm::revert::Revert;
use crate::chain::evm::sender::{Fate, PrepareError, Sender, Submission};
use crate::chain::evm::{Call, ChannelState, EvmChain, EvmError, Receipt};
use crate::clock::Clock;
use crate::scheme::evm::signature::Signed;
use crate::scheme::{batch_settlement_evm, exact_evm, upto_evm};
use crate::x402::evm::{Address, B256, keccak256};
use crate::x402::wire::PaymentRequirements;
use crate::x402::{Network, Reason};

/// How often a transaction is made anew because something else used its nonce.
const TRIES_MAX: u32 = 3;
const NONCES_USED_UP: &str = "something else keeps using the gas account's nonces: is its key in use elsewhere?";
/// Gas of one claim, on the safe side: 100 of them took 25,722 each on the tests' contract, whose channels share a
/// receiver.
const CLAIM_GAS: u64 = 100_000;
/// Gas of a transaction with claims, beside them.
const CLAIM_BASE_GAS: u64 = 60_000;

/// How a facilitator works.
#[derive(Clone, Copy, Debug)]
pub struct EvmFacilitatorOptions {
    /// How long a transaction is waited for before its fate is called unknown.
    pub confirm_timeout: Duration,
    /// The most payments that are verified or settled at once.
    pub concurrent_max: usize,
    /// The most gas that a payer's payment or deposit may take: a payer that is a contract decides how much work its
    /// signature is.
    pub payment_gas_max: u64,
}

impl EvmFacilitatorOptions {
    /// What fits public chains.
    pub const DEFAULT: Self =
        Self { confirm_timeout: Duration::from_secs(120), concurrent_max: 64, payment_gas_max: 1_000_000 };
}

/// Our own facilitator for one EVM network. Cheap to clone.
#[derive(Clone)]
pub struct LocalEvmFacilitator(Arc<Inner>);

struct Inner {
    chain: Arc<dyn EvmChain>,
    sender: Sender,
    clock: Arc<dyn Clock>,
    network: Network,
    options: EvmFacilitatorOptions,
    jobs: Jobs,
    places: Semaphore,
    gas_per_claim: AtomicU64,
}

impl fmt::Debug for LocalEvmFacilitator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalEvmFacilitator").field("network", &self.0.network).finish_non_exhaustive()
    }
}

impl LocalEvmFacilitator {
    /// A facilitator that sends by `sender`, which must be on the same chain.
    #[must_use]
    pub fn new(
        chain: Arc<dyn EvmChain>,
        sender: Sender,
        clock: Arc<dyn Clock>,
        options: EvmFacilitatorOptions,
    ) -> Self {
        let network = Network::eip155(chain.chain_id());
        let places = Semaphore::new(options.concurrent_max.max(1));
        let gas_per_claim = AtomicU64::new(CLAIM_GAS);
        let jobs = Jobs::default();
        Self(Arc::new(Inner { chain, sender, clock, network, options, jobs, places, gas_per_claim }))
    }

    /// The account that sends and pays for gas; `upto` payments name it as their facilitator.
    #[must_use]
    pub fn address(&self) -> Address {
        self.0.sender.address()
    }

    /// Gas that one claim of a batch takes: a guess on the safe side, or what the dearest batch so far took, if that is
    /// more.
    #[must_use]
    pub fn gas_per_claim(&self) -> u64 {
        self.0.gas_per_claim.load(Ordering::Relaxed)
    }

    /// The most claims that fit a transaction of `gas_limit`, at least one and at most what a payload may hold.
    #[must_use]
    pub fn claims_in(&self, gas_limit: u64) -> usize {
        let fit = gas_limit.saturating_sub(CLAIM_BASE_GAS) / self.gas_per_claim().max(1);
        usize::try_from(fit).unwrap_or(usize::MAX).clamp(1, wire::CLAIMS_MAX)
    }
}

#[async_trait]
impl X402Facilitator for LocalEvmFacilitator {
    async fn supported(&self) -> Result<Supported, InterfaceError> {
        let kind = |x402_version, scheme: &str, network: &str, extra| Kind {
            x402_version,
            scheme: scheme.to_owned(),
            network: network.to_owned(),
            extra,
        };
        let network = self.0.network.as_str();
        let facilitator = Map::from_iter([("facilitatorAddress".to_owned(), self.address().to_string().into())]);
        let mut kinds = vec![
            kind(2, batch_settlement_evm::SCHEME, network, Map::new()),
            kind(2, exact_evm::SCHEME, network, Map::new()),
            kind(2, upto_evm::SCHEME, network, facilitator),
        ];
        kinds.extend(self.0.network.short_name().map(|name| kind(1, exact_evm::SCHEME, name, Map::new())));
        Ok(Supported { kinds })
    }

    async fn verify(&self, payment: &Payment) -> Result<Verified, InterfaceError> {
        let _place = self.0.place()?;
        self.0.verify(payment).await
    }

    async fn settle(&self, payment: &Payment) -> Result<Settled, InterfaceError> {
        let (inner, payment) = (Arc::clone(&self.0), payment.clone());
        // In a task of its own: the caller may go away, and what was sent is seen to its end all the same.
        let settling = tokio::spawn(async move {
            let _place = inner.place()?;
            inner.settle(&payment).await
        });
        settling.await.unwrap_or_else(|error| {
            let detail = format!("the settlement broke off: {error}");
            Err(InterfaceError::Unknown { transaction: None, detail })
        })
    }
}

/// The codes that a kind of transaction has for its mishaps.
#[derive(Clone, Copy)]
struct Codes {
    simulation: &'static str,
    transaction: &'static str,
}

/// One transaction that is to be sent once.
struct Order {
    job: Job,
    call: Call,
    codes: Codes,
}

impl Order {
    fn hash(&self) -> B256 {
        keccak256(&[&self.call.to.0, &*self.call.data].concat())
    }

    /// Nothing was sent: because it could not succeed, or because it cannot be sent now.
    fn not_prepared(&self, error: &PrepareError) -> InterfaceError {
        match error {
            PrepareError::Chain(EvmError::Reverted(revert)) => refused(self.codes.simulation, revert.to_string()),
            PrepareError::GasAboveLimit { .. } => refused(self.codes.simulation, error.to_string()),
            PrepareError::Chain(_) | PrepareError::FeeAboveCap { .. } | PrepareError::Busy(_) => {
                InterfaceError::Unavailable(error.to_string())
            }
        }
    }
}

impl Inner {
    fn place(&self) -> Result<tokio::sync::SemaphorePermit<'_>, InterfaceError> {
        let busy = |_| InterfaceError::Unavailable("too many payments are being verified and settled".into());
        self.places.try_acquire().map_err(busy)
    }

    async fn verify(&self, payment: &Payment) -> Result<Verified, InterfaceError> {
        match payment.x402_version {
            1 => self.verify_v1(payment).await,
            2 => {
                let (payload, requirements) = self.read(payment)?;
                match requirements.scheme.as_str() {
                    batch_settlement_evm::SCHEME => self.verify_batch(payload, &requirements).await,
                    exact_evm::SCHEME => self.verify_exact(payload, &requirements).await,
                    upto_evm::SCHEME => self.verify_upto(payload, &requirements).await,
                    _ => Err(other_scheme(&requirements.scheme)),
                }
            }
            version => Err(other_version(version)),
        }
    }

    async fn settle(&self, payment: &Payment) -> Result<Settled, InterfaceError> {
        match payment.x402_version {
            1 => self.settle_v1(payment).await,
            2 => {
                let (payload, requirements) = self.read(payment)?;
                match requirements.scheme.as_str() {
                    batch_settlement_evm::SCHEME => self.settle_batch(payload, &requirements).await,
                    exact_evm::SCHEME => self.settle_exact(payload, &requirements).await,
                    upto_evm::SCHEME => self.settle_upto(payload, &requirements).await,
                    _ => Err(other_scheme(&requirements.scheme)),
                }
            }
            version => Err(other_version(version)),
        }
    }

    /// A payment of version 2 on our network, whose payload accepts the scheme and network of its requirements.
    fn read(&self, payment: &Payment) -> Result<(Value, PaymentRequirements), InterfaceError> {
        let (payload, requirements) = wire::payment(&payment.payload, &payment.requirements)?;
        let batch = requirements.scheme == batch_settlement_evm::SCHEME;
        if payload.accepted.scheme != requirements.scheme {
            let reason = if batch { Reason::EvmBatchScheme } else { Reason::UnsupportedScheme };
            return Err(refused(reason.as_str(), "payload.accepted.scheme is not the requirements' scheme"));
        }
        if payload.accepted.network != requirements.network {
            let reason = if batch { Reason::EvmBatchNetworkMismatch } else { Reason::InvalidNetwork };
            return Err(refused(reason.as_str(), "payload.accepted.network is not the requirements' network"));
        }
        if requirements.network != self.network {
            let detail = format!("this facilitator serves {}", self.network);
            return Err(refused(Reason::InvalidNetwork.as_str(), detail));
        }
        Ok((payload.payload, requirements))
    }

    /// Unix seconds.
    fn now(&self) -> u64 {
        u64::try_from(self.clock.now().seconds()).unwrap_or(0)
    }

    /// Whether the very same is being settled or was a while ago. Refuses what uses the same nonce for something else.
    fn knows(&self, order: &Order) -> Result<bool, InterfaceError> {
        self.jobs.knows(&order.job, &order.hash(), self.clock.now()).map_err(taken)
    }

    /// Whether an account signed a digest, as a contract that checks it would find out: an account with code is asked,
    /// any other is recovered.
    async fn is_signed(
        &self,
        account: Address,
        digest: &B256,
        signed: Signed,
        signature: &[u8],
    ) -> Result<bool, InterfaceError> {
        if self.chain.code_bytes(account).await.map_err(|error| unread(&error))? == 0 {
            return Ok(signed == Signed::ByKey);
        }
        match self.chain.signed_by_contract(account, digest, signature).await {
            // It used up all the gas of the call that it was asked in.
            Err(EvmError::Reverted(_)) => Ok(false),
            answer => answer.map_err(|error| unread(&error)),
        }
    }

    /// Refuses an authorization that no key of the payer's made, unless the payer is a contract: then the simulation
    /// tells.
    async fn may_be_signed(&self, payer: Address, signed: Signed, reason: Reason) -> Result<(), InterfaceError> {
        if signed == Signed::ByKey || self.chain.code_bytes(payer).await.map_err(|error| unread(&error))? > 0 {
            return Ok(());
        }
        Err(refused(reason.as_str(), format!("the authorization is not signed by {payer}, which is no contract")))
    }

    /// Runs an order without effect, and tells the gas that it is given.
    async fn simulate(&self, order: &Order) -> Result<u64, InterfaceError> {
        let gas = self.sender.gas_for(&order.call).await.map_err(|error| order.not_prepared(&error))?;
        let limit = match order.job {
            Job::Authorization { .. } | Job::Permit2 { .. } => self.options.payment_gas_max,
            Job::Claim(_) | Job::Payout { .. } | Job::Refund { .. } => u64::MAX,
        };
        if gas > limit {
            return Err(order.not_prepared(&PrepareError::GasAboveLimit { gas, limit }));
        }
        Ok(gas)
    }

    /// The order's turn: two that ask at once come here one after the other.
    async fn turn(&self, order: &Order) -> Result<Turn, InterfaceError> {
        loop {
            let slot = self.jobs.slot(order.job, order.hash(), self.clock.now()).map_err(taken)?;
            let turn = slot.lock_owned().await;
            if self.jobs.is_current(&order.job, &turn) {
                return Ok(turn);
            }
        }
    }

    /// The order's transaction: the one that was sent already, or else a new one.
    async fn submission(&self, order: &Order) -> Result<(Slot, Submission), InterfaceError> {
        let mut turn = self.turn(order).await?;
        let mut sent = turn.clone();
        for _ in 0..TRIES_MAX {
            if sent.is_none() {
                sent = match self.send(order).await {
                    Ok(sent) => sent,
                    Err(error) => {
                        self.jobs.forget(&order.job, turn);
                        return Err(error);
                    }
                };
            }
        }
        match sent {
            Some(submission) => {
                *turn = Some(submission.clone());
                Ok((Arc::clone(Turn::mutex(&turn)), submission))
            }
            None => {
                self.jobs.forget(&order.job, turn);
                Err(InterfaceError::Unavailable(NONCES_USED_UP.into()))
            }
        }
    }

    /// Sends an order's transaction, unless it was sent already, and waits for it.
    async fn carry(&self, order: &Order) -> Result<Receipt, InterfaceError> {
        for _ in 0..TRIES_MAX {
            let (slot, submission) = self.submission(order).await?;
            let fate = self.sender.wait(&submission, self.options.confirm_timeout).await;
            match fate {
                Fate::Confirmed(receipt) => {
                    match order.job {
                        // There may be more to pay out the next time.
                        Job::Payout { .. } => self.give_up(order, slot, &submission).await,
                        _ => self.jobs.done(&order.job),
                    }
                    return Ok(receipt);
                }
                Fate::Reverted(receipt) => {
                    self.give_up(order, slot, &submission).await;
                    let why = self.why(&order.call).await;
                    let detail = format!("transaction {} reverted{why}", receipt.transaction);
                    return Err(refused(order.codes.transaction, detail));
                }
                Fate::Unknown => {
                    let (transaction, seconds) = (submission.hash(), self.options.confirm_timeout.as_secs());
                    let detail = format!("it was not confirmed within {seconds} s");
                    return Err(InterfaceError::Unknown { transaction: Some(transaction.to_string()), detail });
                }
                Fate::Superseded => self.give_up(order, slot, &submission).await,
            }
        }
        Err(InterfaceError::Unavailable(NONCES_USED_UP.into()))
    }

    /// Forgets what became of an order, unless somebody who waited for the same has done so, and perhaps sent another.
    async fn give_up(&self, order: &Order, slot: Slot, submission: &Submission) {
        let turn = slot.lock_owned().await;
        if turn.as_ref().is_some_and(|sent| sent.is(submission)) {
            self.jobs.forget(&order.job, turn);
        }
    }

    /// Makes and sends a transaction; `None` where something else used its nonce.
    async fn send(&self, order: &Order) -> Result<Option<Submission>, InterfaceError> {
        let gas = self.simulate(order).await?;
        let prepared = self.sender.prepare(order.call.clone(), gas).await;
        let prepared = prepared.map_err(|error| order.not_prepared(&error))?;
        match self.sender.send(prepared).await {
            Ok(submission) => Ok(Some(submission)),
            Err(not_sent) if not_sent.is_nonce() => Ok(None),
            Err(not_sent) => Err(InterfaceError::Unavailable(not_sent.text)),
        }
    }

    /// Why a transaction reverted, as far as running its call again tells.
    async fn why(&self, call: &Call) -> String {
        match self.chain.call(self.sender.address(), call).await {
            Err(EvmError::Reverted(revert)) => format!(": {}", Revert::text(&revert)),
            Ok(_) | Err(_) => String::new(),
        }
    }

    async fn channel(&self, id: &B256) -> Result<ChannelState, EvmError> {
        let read = self.chain.channels(std::slice::from_ref(id)).await?.value;
        read.first().copied().ok_or(EvmError::Malformed { method: "channels", what: "no answer".into() })
    }

    /// The channel after a transaction that is confirmed. Whoever asks again gets another try at reading it.
    async fn channel_after(&self, id: &B256, receipt: &Receipt) -> Result<ChannelState, InterfaceError> {
        self.channel(id).await.map_err(|error| InterfaceError::Unknown {
            transaction: Some(receipt.transaction.to_string()),
            detail: format!("the transaction is confirmed, but the channel cannot be read: {error}"),
        })
    }
}

fn taken(taken: Taken) -> InterfaceError {
    match taken {
        Taken::ByAnother => {
            let reason = Reason::DuplicateSettlement.as_str();
            refused(reason, "the same nonce is being settled with other terms, or was just now")
        }
        Taken::Full => InterfaceError::Unavailable("too many settlements are remembered".into()),
    }
}

/// The chain gave no answer, before anything was sent.
fn unread(error: &EvmError) -> InterfaceError {
    InterfaceError::Unavailable(error.to_string())
}

/// A nonce is used on chain, and not by anything that is remembered here: perhaps before a restart, by the same.
fn used(what: &str) -> InterfaceError {
    let detail = format!("{what} is used on chain already, perhaps by this very settlement before a restart");
    InterfaceError::Unknown { transaction: None, detail }
}

fn other_scheme(scheme: &str) -> InterfaceError {
    refused(Reason::UnsupportedScheme.as_str(), format!("{scheme:?} is not served here"))
}

fn other_version(version: u32) -> InterfaceError {
    refused(Reason::InvalidVersion.as_str(), format!("version {version} of the protocol is not served here"))
}

/// A channel as facilitators write it.
fn channel_state(id: &B256, channel: &ChannelState) -> Map<String, Value> {
    Map::from_iter([
        ("channelId".to_owned(), id.to_string().into()),
        ("balance".to_owned(), channel.balance.to_string().into()),
        ("totalClaimed".to_owned(), channel.total_claimed.to_string().into()),
        ("withdrawRequestedAt".to_owned(), channel.withdraw_requested_at.into()),
        ("refundNonce".to_owned(), channel.refund_nonce.to_string().into()),
    ])
}
