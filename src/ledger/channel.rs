//! A channel's state machine: a function of state, entry and a given time (invariants L1, L2, L3).
//!
//! Nothing here waits, stores or reads a clock. The ledger applies these functions under a channel's lock. What a
//! channel is made of depends on the chain: a [`Family`] says it, and the rules are the same for all of them, but for
//! the few that [`ChainState`] answers.

pub mod evm;
pub mod svm;
#[cfg(test)]
mod tests;

use std::fmt;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

pub use self::evm::{Evm, EvmOnChain};
pub use self::svm::{OnChain, Seller, Svm, Terms};
use crate::amount::Amount;
use crate::clock::UnixMillis;
use crate::x402::Account;
use crate::x402::key::Signature;

/// A family of chains: what its channels are made of.
pub trait Family: Copy + fmt::Debug + Eq + Send + Sync + 'static {
    /// Names a channel.
    type Id: Copy + Eq + Ord + Hash + fmt::Debug + fmt::Display + Send + Sync + 'static;
    /// What all channels of one merchant account have in common.
    type Seller: fmt::Debug + PartialEq + Send + Sync + 'static;
    /// What never changes of a channel.
    type Terms: ChannelTerms<Id = Self::Id, Seller = Self::Seller>;
    /// A channel's changing part as the chain held it at some time.
    type OnChain: ChainState;
    /// A voucher's signature.
    type Signature: Clone + fmt::Debug + PartialEq + Send + Sync + 'static;
    /// A settlement batch as it is journalled, by its number.
    type Batch: Journalled<Key = u64>;
    /// A payment that is no channel's and not finished, as it is journalled.
    type Metered: Journalled<Key = Self::Id>;
}

/// What never changes of a channel.
pub trait ChannelTerms: Clone + fmt::Debug + PartialEq + Send + Sync + 'static {
    /// Names the channel.
    type Id;
    /// What it shares with the merchant's other channels.
    type Seller;
    /// The channel's name.
    fn id(&self) -> Self::Id;
    /// Whose deposit it is.
    fn payer(&self) -> Account;
    /// The merchant's account.
    fn seller(&self) -> &Arc<Self::Seller>;
    /// Puts an equal seller in its place, so that all channels share one copy.
    fn set_seller(&mut self, seller: Arc<Self::Seller>);
    /// Whether a channel of the one seller's is a channel of the other's: all that its name or its opening fixed is
    /// the same. A channel from before a change of `pay_to` pays the old receiver, so it does not pay for new offers.
    fn same_deal(ours: &Self::Seller, theirs: &Self::Seller) -> bool;
}

/// What the rules need to know of a channel's state on chain.
pub trait ChainState: Copy + fmt::Debug + PartialEq + Send + Sync + 'static {
    /// Whether a claim sets the chain's watermark to the voucher's whole total. Then all of a voucher is charged or
    /// nothing, and a voucher is redeemed only when all of it was charged. Else a claim names what was charged of it.
    const CLAIMS_WHOLE_VOUCHERS: bool;
    /// Whether what was deposited once can only leave by a claim or the channel's end. Else a payer may withdraw it,
    /// and what was charged can come to stand above it.
    const DEPOSIT_STAYS: bool;
    /// Whether a close ends a channel for good. Else it can be filled and used again.
    const CLOSE_ENDS: bool;

    /// A channel that is not on chain yet.
    fn none(now: UnixMillis) -> Self;
    /// When this was read.
    fn read_at(&self) -> UnixMillis;
    /// Whether this is the same state, whenever either was read.
    fn same_as(&self, other: &Self) -> bool;
    /// What vouchers can be claimed against, what was claimed included.
    fn deposit(&self) -> Amount;
    /// All that was claimed.
    fn claimed(&self) -> Amount;
    /// What the claims can reach at most as things stand.
    fn claimable_max(&self) -> Amount;
    /// What may be charged at most at a time: the deposit, less what its payer may have taken out before we claim.
    fn spendable(&self, moment: Moment) -> Amount;
    /// Whether the chain's program could have written this.
    fn plausible(&self) -> bool;
    /// Whether new vouchers are taken.
    fn is_open(&self) -> bool;
    /// Whether what was claimed can never rise again.
    fn is_final(&self) -> bool;
    /// What both readings together say, in whatever order they were made.
    #[must_use]
    fn join(self, other: Self) -> Self;
    /// Whether a close of ours that was sent at this state can no longer land, now that the chain has come to `later`.
    fn ends_close(&self, later: &Self) -> bool;
    /// The state of a channel that the chain no longer has.
    #[must_use]
    fn gone(self) -> Self;
}

/// What is journalled until it is over.
pub trait Journalled: Clone + fmt::Debug + PartialEq + Send + Sync + 'static {
    /// Names it.
    type Key: Copy + Ord + Send + Sync;
    /// Its name.
    fn key(&self) -> Self::Key;
    /// Whether its end is still to come.
    fn is_open(&self) -> bool;
}

/// A time, and how much of a payer's withdrawal delay is kept to claim in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Now.
    pub now: UnixMillis,
    /// How long before a withdrawal's deadline no more credit is given.
    pub margin: Duration,
}

impl Moment {
    /// A time, with no margin.
    #[must_use]
    pub const fn at(now: UnixMillis) -> Self {
        Self { now, margin: Duration::ZERO }
    }
}

/// A voucher whose signature and channel have been checked by the scheme.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Voucher<S = Signature> {
    /// The cumulative total that it allows to claim.
    pub cumulative: Amount,
    /// By the channel's authorizer.
    pub signature: S,
}

/// A request's price and the voucher that pays it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bid<S = Signature> {
    /// The voucher.
    pub voucher: Voucher<S>,
    /// The price.
    pub amount: Amount,
    /// The channel's whole deposit once a deposit that came along is confirmed.
    pub deposit_after: Option<Amount>,
}

impl<S> Bid<S> {
    /// What must have been charged before for the voucher to fit; `None` where the price is above the whole voucher.
    #[must_use]
    pub const fn base(&self) -> Option<Amount> {
        self.voucher.cumulative.checked_sub(self.amount)
    }
}

/// Why a channel stays as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// The chain has not confirmed the channel, and no deposit came along that would open it.
    #[error("the channel is not on chain")]
    Unknown,
    /// The channel takes no more payments.
    #[error("the channel is closing or closed")]
    Closing,
    /// The voucher lies behind: it can never fit again.
    #[error("the voucher lies behind: {expected} is due")]
    Behind {
        /// What was charged plus the price.
        expected: Amount,
    },
    /// The voucher lies ahead: it may fit after others.
    #[error("the voucher lies ahead: {expected} is due")]
    Ahead {
        /// What was charged plus the price.
        expected: Amount,
    },
    /// Another request is in flight; whether this voucher fits depends on how that ends.
    #[error("another request is in flight")]
    Occupied,
    /// The voucher is above the deposit.
    #[error("the voucher is above the deposit of {deposit}")]
    ExceedsDeposit {
        /// The deposit that counts.
        deposit: Amount,
    },
    /// There is nothing to commit.
    #[error("no request is in flight")]
    NotReserved,
    /// The charge is none that the reservation allows: above it, or a part of a voucher that is charged whole.
    #[error("the charge is not one that was reserved")]
    NotTheCharge,
    /// What the chain is said to hold cannot be.
    #[error("the chain is said to hold what its program cannot have written")]
    Implausible,
    /// A promise of our own would be broken. Nothing was changed; the ledger must stop.
    #[error("a promise of the ledger would be broken: {0}")]
    Broken(&'static str),
}

/// A channel's state: what the chain holds, what was charged, and what is in flight.
///
/// Every verb takes a state and gives the next one, or says why there is none; a refused verb changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Channel<O = OnChain, S = Signature> {
    /// The chain's side, as last read.
    pub on_chain: O,
    /// Whether the chain has confirmed the channel. Until then it is there only for the request that opens it.
    pub known: bool,
    /// All that was charged.
    pub charged: Amount,
    /// The voucher accepted last.
    pub voucher: Option<Voucher<S>>,
    /// When the oldest charge that is not yet claimed was made.
    pub unclaimed_since: Option<UnixMillis>,
    /// When the channel was last charged.
    pub last_used: UnixMillis,
    /// Whether it takes no more payments: it is closed, or a close of ours may land.
    pub closed: bool,
    /// The request in flight. In client-signed mode there is at most one: the next voucher builds on its outcome.
    pub reserved: Option<Bid<S>>,
    /// Whether we are closing it: no request is let in, unless the close is given up.
    pub leaving: bool,
}

/// A family's channel.
pub type ChannelOf<F> = Channel<<F as Family>::OnChain, <F as Family>::Signature>;
/// A family's voucher.
pub type VoucherOf<F> = Voucher<<F as Family>::Signature>;
/// A family's bid.
pub type BidOf<F> = Bid<<F as Family>::Signature>;

impl<O: ChainState, S: Clone + PartialEq> Channel<O, S> {
    /// A channel that a first deposit is about to open.
    #[must_use]
    pub fn proposed(now: UnixMillis) -> Self {
        Self {
            on_chain: O::none(now),
            known: false,
            charged: Amount::ZERO,
            voucher: None,
            unclaimed_since: None,
            last_used: now,
            closed: false,
            reserved: None,
            leaving: false,
        }
    }

    /// A channel that the chain has and we have no record of: what was claimed counts as charged.
    ///
    /// # Errors
    /// [`Denied::Implausible`].
    pub fn adopted(on_chain: O) -> Result<Self, Denied> {
        Self::proposed(on_chain.read_at()).observe(on_chain)
    }

    /// The deposit that counts for a request.
    #[must_use]
    pub fn deposit_for(&self, bid: &Bid<S>, moment: Moment) -> Amount {
        self.on_chain.spendable(moment).max(bid.deposit_after.unwrap_or(Amount::ZERO))
    }

    /// What is charged, not yet claimed, and can still be claimed.
    #[must_use]
    pub fn exposure(&self) -> Amount {
        self.charged.min(self.on_chain.claimable_max()).saturating_sub(self.on_chain.claimed())
    }

    /// What was charged and cannot be claimed as things stand: the watermark became final below it, or the payer has
    /// taken the deposit out.
    #[must_use]
    pub fn lost(&self) -> Amount {
        lost(&self.on_chain, self.charged)
    }

    /// The voucher to redeem, where there is something to redeem (invariant L3). Where the chain sets its watermark to
    /// the voucher's total, a voucher is redeemed only when all of it was charged.
    #[must_use]
    pub fn redeemable(&self) -> Option<Voucher<S>> {
        self.voucher.as_ref().filter(|voucher| redeems(&self.on_chain, self.charged, voucher.cumulative)).cloned()
    }

    /// Holds a request's price back. Refusals in order of precedence: closing, behind, occupied, ahead, unknown,
    /// above the deposit.
    ///
    /// # Errors
    /// [`Denied`].
    pub fn reserve(self, bid: Bid<S>, moment: Moment) -> Result<Self, Denied> {
        if self.closed || self.leaving || !self.on_chain.is_open() {
            return Err(Denied::Closing);
        }
        let expected = self.charged.saturating_add(bid.amount);
        match bid.base() {
            Some(base) if base >= self.charged => {}
            _ => return Err(Denied::Behind { expected }),
        }
        if self.reserved.is_some() {
            return Err(Denied::Occupied);
        }
        if bid.voucher.cumulative != expected {
            return Err(Denied::Ahead { expected });
        }
        if !self.known && bid.deposit_after.is_none() {
            return Err(Denied::Unknown);
        }
        let deposit = self.deposit_for(&bid, moment);
        if bid.voucher.cumulative > deposit {
            return Err(Denied::ExceedsDeposit { deposit });
        }
        Self { reserved: Some(bid), ..self }.checked()
    }

    /// Gives the price in flight back.
    #[must_use]
    pub fn release(self) -> Self {
        Self { reserved: None, ..self }
    }

    /// Charges the price in flight, or `charge` of it where the scheme lets a part be charged; where a deposit came
    /// along, `on_chain` is the channel after it.
    ///
    /// The payer may have put the very voucher in flight on chain (where anyone may). Then the charge is already
    /// claimed and the request is paid. A claim beyond that voucher means that it had been used before.
    ///
    /// # Errors
    /// [`Denied`]: nothing is in flight, the deposit is not there, the channel's watermark is final so that nothing
    /// charged now could be claimed, or the voucher has been overtaken.
    pub fn commit(self, on_chain: Option<O>, charge: Option<Amount>, now: UnixMillis) -> Result<Self, Denied> {
        let bid = self.reserved.clone().ok_or(Denied::NotReserved)?;
        let charge = charge.unwrap_or(bid.amount);
        if charge > bid.amount || (O::CLAIMS_WHOLE_VOUCHERS && charge != bid.amount) {
            return Err(Denied::NotTheCharge);
        }
        let next = match on_chain {
            Some(on_chain) => self.observe(on_chain)?,
            None => self,
        };
        let total = bid.base().and_then(|base| base.checked_add(charge)).ok_or(Denied::NotTheCharge)?;
        if !next.known {
            return Err(Denied::Unknown);
        }
        if next.on_chain.is_final() {
            return Err(Denied::Closing);
        }
        if total > next.on_chain.deposit() {
            return Err(Denied::ExceedsDeposit { deposit: next.on_chain.deposit() });
        }
        if total < next.charged {
            return Err(Denied::Behind { expected: next.charged.saturating_add(bid.amount) });
        }
        let unclaimed = total > next.on_chain.claimed();
        Self {
            charged: total,
            voucher: Some(bid.voucher),
            unclaimed_since: if unclaimed { next.unclaimed_since.or(Some(now)) } else { None },
            last_used: now,
            reserved: None,
            ..next
        }
        .checked()
    }

    /// Takes up what the chain says. A watermark above what was charged means that our record is behind (it was lost,
    /// or the payer sent a voucher to the chain that we had not charged yet): then what was claimed counts as charged
    /// (L1).
    ///
    /// # Errors
    /// [`Denied::Implausible`]: the reading is ignored.
    pub fn observe(self, on_chain: O) -> Result<Self, Denied> {
        if !on_chain.plausible() {
            return Err(Denied::Implausible);
        }
        let on_chain = if self.known { self.on_chain.join(on_chain) } else { on_chain };
        let claimed = on_chain.claimed();
        let closed = (self.closed && !self.on_chain.ends_close(&on_chain)) || !on_chain.is_open();
        let unclaimed_since = if claimed >= self.charged {
            None
        } else if claimed > self.on_chain.claimed() {
            // Everything up to some voucher is claimed; what is left was charged later, at the latest with the last
            // one.
            Some(self.last_used)
        } else {
            self.unclaimed_since
        };
        Self { on_chain, known: true, charged: self.charged.max(claimed), unclaimed_since, closed, ..self }.checked()
    }

    /// Lets no more requests in, so as to close the channel. A channel that its payer is closing can be closed by us
    /// too, with the last voucher, and one that was shut for a close whose fate nobody knows any more can be closed
    /// again.
    ///
    /// # Errors
    /// [`Denied::Closing`] where we are closing it already, or where it is closed; [`Denied::Unknown`].
    pub fn begin_close(self) -> Result<Self, Denied> {
        if self.leaving || self.on_chain.is_final() {
            return Err(Denied::Closing);
        }
        if !self.known {
            return Err(Denied::Unknown);
        }
        Ok(Self { leaving: true, ..self })
    }

    /// Gives the close up: requests are let in again.
    #[must_use]
    pub fn abandon_close(self) -> Self {
        Self { leaving: false, ..self }
    }

    /// Takes no more payments, whatever becomes of us, before a close of ours is sent: what was charged beyond it would
    /// be lost where it lands after a crash.
    #[must_use]
    pub fn shut(self) -> Self {
        Self { closed: true, ..self }
    }

    /// Takes payments again where the chain does: the close that it was shut for can no longer land.
    #[must_use]
    pub fn reopen(self) -> Self {
        Self { closed: !self.on_chain.is_open(), ..self }
    }

    /// Closes the channel with the state that the chain confirmed: for good, where a close ends it.
    ///
    /// # Errors
    /// [`Denied::Occupied`] while a request is in flight; [`Denied::Implausible`].
    pub fn finish_close(self, on_chain: O) -> Result<Self, Denied> {
        if self.reserved.is_some() {
            return Err(Denied::Occupied);
        }
        let next = self.observe(on_chain)?;
        let closed = O::CLOSE_ENDS || !next.on_chain.is_open();
        Ok(Self { closed, leaving: false, ..next })
    }

    /// The state itself, if it keeps what the ledger promises.
    ///
    /// # Errors
    /// [`Denied::Broken`] with the promise.
    pub fn checked(self) -> Result<Self, Denied> {
        let (claimed, deposit) = (self.on_chain.claimed(), self.on_chain.deposit());
        let signed = self.voucher.as_ref().map_or(Amount::ZERO, |v| v.cumulative);
        if claimed > self.charged {
            return Err(Denied::Broken("L1: more is claimed than was charged"));
        }
        if self.charged > signed.max(claimed) {
            return Err(Denied::Broken("L2: more is charged than was signed or claimed"));
        }
        if O::DEPOSIT_STAYS {
            if self.known && self.charged > deposit {
                return Err(Denied::Broken("L2: more is charged than was deposited"));
            }
            if let Some(bid) = &self.reserved
                && bid.voucher.cumulative > deposit.max(bid.deposit_after.unwrap_or(Amount::ZERO))
            {
                return Err(Denied::Broken("L2: more is reserved than was deposited"));
            }
        }
        // What is redeemed is the voucher's whole total where the chain takes it whole, else what was charged.
        if let Some(voucher) = self.redeemable() {
            let redeemed = if O::CLAIMS_WHOLE_VOUCHERS { voucher.cumulative } else { self.charged };
            if redeemed > self.charged || redeemed > voucher.cumulative || (O::DEPOSIT_STAYS && redeemed > deposit) {
                return Err(Denied::Broken("L3: more would be redeemed than was charged, signed or deposited"));
            }
        }
        Ok(self)
    }
}

/// Whether a voucher over `signed` redeems something of what was `charged`, and nothing above it (invariant L3).
#[must_use]
pub fn redeems<O: ChainState>(on_chain: &O, charged: Amount, signed: Amount) -> bool {
    let claimed = on_chain.claimed();
    if O::CLAIMS_WHOLE_VOUCHERS {
        signed > claimed && signed <= charged
    } else {
        charged > claimed && signed >= charged
    }
}

/// What was charged and cannot be claimed as things stand.
#[must_use]
pub fn lost<O: ChainState>(on_chain: &O, charged: Amount) -> Amount {
    charged.saturating_sub(on_chain.claimable_max().max(on_chain.claimed()))
}
