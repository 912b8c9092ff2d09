//! Channels of the `x402BatchSettlement` contract: what the chain says of one, and what is journalled of their claims.
//!
//! What differs from Solana: a claim names what was charged of a voucher, so a voucher may be worth more than is
//! charged of it; a refund, or a payer's withdrawal after its delay, lowers the balance, and the channel lives on and
//! can be filled again. So of two readings the later one counts. Source: `scheme_batch_settlement_evm.md`, "Channel
//! Lifecycle" and "Per-Channel State".

use std::sync::Arc;

use super::{ChainState, ChannelTerms, Family, Journalled, Moment};
use crate::amount::Amount;
use crate::clock::UnixMillis;
use crate::ledger::store::BatchState;
use crate::scheme::evm::{EvmSeller, EvmTerms};
use crate::x402::evm::{Address, AnySignature, B256};
use crate::x402::{Account, Network};

/// EVM networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evm {}

impl Family for Evm {
    type Id = B256;
    type Seller = EvmSeller;
    type Terms = EvmTerms;
    type OnChain = EvmOnChain;
    type Signature = AnySignature;
    type Batch = EvmBatch;
    type Metered = NoPayment;
}

impl ChannelTerms for EvmTerms {
    type Id = B256;
    type Seller = EvmSeller;

    fn id(&self) -> B256 {
        self.id
    }

    fn payer(&self) -> Account {
        Account::Evm(self.payer)
    }

    fn seller(&self) -> &Arc<EvmSeller> {
        &self.seller
    }

    fn set_seller(&mut self, seller: Arc<EvmSeller>) {
        self.seller = seller;
    }

    /// The channel's id binds all of this, so that only the id's own seller can differ in what it does not bind: how
    /// deposits move, and what people call the token.
    fn same_deal(ours: &EvmSeller, theirs: &EvmSeller) -> bool {
        ours.network == theirs.network
            && ours.token == theirs.token
            && ours.pay_to == theirs.pay_to
            && ours.receiver_authorizer == theirs.receiver_authorizer
            && ours.withdraw_delay == theirs.withdraw_delay
            && ours.domain == theirs.domain
    }
}

/// A channel's changing part as the chain held it at some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EvmOnChain {
    /// All that was deposited, less what was refunded and withdrawn.
    pub balance: Amount,
    /// All that was claimed.
    pub claimed: Amount,
    /// How much its payer wants back.
    pub withdrawal: Amount,
    /// Unix seconds at which the payer asked for that; 0 where nothing is pending.
    pub withdraw_since: i64,
    /// Unix seconds from which on the payer can take it.
    pub withdraw_ends_at: i64,
    /// The nonce that the next signed refund needs.
    pub refund_nonce: u64,
    /// The block that this is the state of; 0 where whoever told it did not say.
    pub block: u64,
    /// When this was asked for.
    pub read_at: UnixMillis,
}

impl EvmOnChain {
    /// Whether the payer is taking something out.
    #[must_use]
    pub const fn is_withdrawing(&self) -> bool {
        self.withdraw_since != 0
    }

    /// What the receiver could return to the payer, had nothing been charged beyond what is claimed.
    #[must_use]
    pub fn unclaimed(&self) -> Amount {
        self.balance.saturating_sub(self.claimed)
    }

    /// Whether `other` is the state of a later time.
    fn is_before(&self, other: &Self) -> bool {
        let by_block = (self.block != 0 && other.block != 0).then(|| self.block.cmp(&other.block));
        match by_block {
            Some(std::cmp::Ordering::Less) => true,
            Some(std::cmp::Ordering::Greater) => false,
            Some(std::cmp::Ordering::Equal) | None => {
                // A nonce that has moved on says more than our own clock.
                (self.refund_nonce, self.read_at) <= (other.refund_nonce, other.read_at)
            }
        }
    }
}

impl ChainState for EvmOnChain {
    const CLAIMS_WHOLE_VOUCHERS: bool = false;
    const DEPOSIT_STAYS: bool = false;
    const CLOSE_ENDS: bool = false;

    fn none(now: UnixMillis) -> Self {
        Self {
            balance: Amount::ZERO,
            claimed: Amount::ZERO,
            withdrawal: Amount::ZERO,
            withdraw_since: 0,
            withdraw_ends_at: 0,
            refund_nonce: 0,
            block: 0,
            read_at: now,
        }
    }

    fn read_at(&self) -> UnixMillis {
        self.read_at
    }

    /// The same state at a later block is the same state.
    fn same_as(&self, other: &Self) -> bool {
        Self { block: other.block, read_at: other.read_at, ..*self } == *other
    }

    fn deposit(&self) -> Amount {
        self.balance
    }

    fn claimed(&self) -> Amount {
        self.claimed
    }

    fn claimable_max(&self) -> Amount {
        self.balance
    }

    /// What a payer withdraws is theirs again from the deadline on; the margin before it is there to claim in.
    fn spendable(&self, moment: Moment) -> Amount {
        let margin = i64::try_from(moment.margin.as_secs()).unwrap_or(i64::MAX);
        let last = self.withdraw_ends_at.saturating_sub(margin);
        if self.is_withdrawing() && moment.now.seconds() >= last {
            self.balance.saturating_sub(self.withdrawal)
        } else {
            self.balance
        }
    }

    fn plausible(&self) -> bool {
        self.claimed <= self.balance
    }

    fn is_open(&self) -> bool {
        true
    }

    fn is_final(&self) -> bool {
        false
    }

    /// The later reading; but what was claimed never goes back.
    fn join(self, other: Self) -> Self {
        let later = if self.is_before(&other) { other } else { self };
        let claimed = self.claimed.max(other.claimed);
        Self { claimed, balance: later.balance.max(claimed), ..later }
    }

    /// A refund that we signed can land only while its nonce is the next one.
    fn ends_close(&self, later: &Self) -> bool {
        later.refund_nonce > self.refund_nonce
    }

    fn gone(self) -> Self {
        Self { balance: self.claimed, ..self }
    }
}

/// What a settlement batch does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EvmBatchKind {
    /// Raises what is claimed of channels (`claimWithSignature`); no money moves.
    Claim,
    /// Pays out all that is claimed of one token (`settle`).
    Settle,
}

/// A settlement batch as it is journalled: before a facilitator is asked, and at its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EvmBatch {
    /// Counts up.
    pub id: u64,
    /// What it does.
    pub kind: EvmBatchKind,
    /// Where.
    pub network: Network,
    /// What is claimed or paid out.
    pub token: Address,
    /// Of a claim: the channels, each with the total that it is brought to.
    pub lines: Vec<(B256, Amount)>,
    /// What a facilitator is asked to send, as JSON with all signatures, so that it can be asked for unchanged; empty once
    /// the batch is over.
    pub request: String,
    /// The transaction, once somebody named it.
    pub transaction: Option<B256>,
    /// How far it has come.
    pub state: BatchState,
    /// When it was signed.
    pub created_at: UnixMillis,
}

impl Journalled for EvmBatch {
    type Key = u64;

    fn key(&self) -> u64 {
        self.id
    }

    fn is_open(&self) -> bool {
        self.state == BatchState::Signed
    }
}

/// On EVM networks no payment outlives its request: what was signed for it can be used on chain once, by its nonce, and
/// a payment that was cut off is one that was not delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoPayment {}

impl Journalled for NoPayment {
    type Key = B256;

    fn key(&self) -> B256 {
        match *self {}
    }

    fn is_open(&self) -> bool {
        match *self {}
    }
}

#[cfg(test)]
mod tests;
