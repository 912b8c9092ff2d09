//! A channel's state machine: a function of state, entry and a given time (invariants L1, L2, L3).
//!
//! Nothing here waits, stores or reads a clock. The ledger applies these functions under a channel's lock.

#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::amount::{Amount, Asset};
use crate::clock::UnixMillis;
use crate::scheme::svm::program::{self, ChannelAccount, ChannelAccounts, ChannelStatus};
use crate::x402::key::Signature;
use crate::x402::wire::ChannelConfig;
use crate::x402::{Key, Network};

/// What all channels of one merchant account on one network have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seller {
    /// Where the money moves.
    pub network: Network,
    /// What is paid with.
    pub asset: Arc<Asset>,
    /// The asset's mint.
    pub mint: Key,
    /// The program that owns the mint.
    pub token_program: Key,
    /// Where the money goes.
    pub pay_to: Key,
    /// Pays fees and rent; the channels' payee.
    pub fee_payer: Key,
    /// Consents to cooperative closes.
    pub receiver_authorizer: Key,
    /// Seconds between a payer's `request_close` and its end.
    pub withdraw_delay: u32,
    /// Who receives rounding dust.
    pub treasury_owner: Key,
}

/// What never changes of a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// The channel's address.
    pub id: Key,
    /// Who deposits.
    pub payer: Key,
    /// Whose signature a voucher needs.
    pub authorizer: Key,
    /// Part of the address.
    pub salt: u64,
    /// Part of the address.
    pub open_slot: u64,
    /// Shared with all other channels of the merchant's account.
    pub seller: Arc<Seller>,
}

impl Terms {
    /// The terms of a channel of `seller`; its address is derived.
    #[must_use]
    pub fn derive(seller: Arc<Seller>, payer: Key, authorizer: Key, salt: u64, open_slot: u64) -> Self {
        let id = program::channel_address(&payer, &seller.fee_payer, &seller.mint, &authorizer, salt, open_slot).0;
        Self { id, payer, authorizer, salt, open_slot, seller }
    }

    /// The accounts that the channel's instructions name.
    #[must_use]
    pub fn accounts(&self) -> ChannelAccounts {
        ChannelAccounts {
            channel: self.id,
            payer: self.payer,
            payee: self.seller.fee_payer,
            rent_payer: self.seller.fee_payer,
            mint: self.seller.mint,
            token_program: self.seller.token_program,
        }
    }

    /// The channel's terms as clients write them.
    #[must_use]
    pub fn config(&self) -> ChannelConfig {
        ChannelConfig {
            payer: self.payer,
            payer_authorizer: self.authorizer,
            receiver: self.seller.pay_to,
            receiver_authorizer: self.seller.receiver_authorizer,
            token: self.seller.mint,
            withdraw_delay: self.seller.withdraw_delay,
            salt: self.salt,
            open_slot: self.open_slot,
            voucher_signer: None,
        }
    }

    /// Whether an account on chain is this channel (specification, section 5, phase 3, step 3).
    #[must_use]
    pub fn matches(&self, account: &ChannelAccount) -> bool {
        let seller = &self.seller;
        account.payer == self.payer
            && account.payee == seller.fee_payer
            && account.rent_payer == seller.fee_payer
            && account.authorized_signer == self.authorizer
            && account.mint == seller.mint
            && account.salt == self.salt
            && account.open_slot == self.open_slot
            && account.grace_period == seller.withdraw_delay
            && account.distribution_hash == program::distribution_hash(&program::all_to(seller.pay_to))
    }
}

/// A channel's changing part as the chain held it at some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OnChain {
    /// Where the channel stands.
    pub status: ChannelStatus,
    /// All that was deposited.
    pub deposit: Amount,
    /// All that was claimed.
    pub claimed: Amount,
    /// All that was paid out.
    pub distributed: Amount,
    /// Unix seconds of the payer's `request_close`, or 0.
    pub closing_since: i64,
    /// When this was read.
    pub read_at: UnixMillis,
}

impl OnChain {
    /// The changing part of a channel account. The program leaves the payout watermark where it was when it drains a
    /// sealed channel, so a drained channel has paid out all that was claimed.
    #[must_use]
    pub fn of(account: &ChannelAccount, read_at: UnixMillis) -> Self {
        let drained = account.status == ChannelStatus::Distributed;
        let distributed = if drained { account.settled } else { account.payout_watermark };
        Self {
            status: account.status,
            deposit: account.deposit.into(),
            claimed: account.settled.into(),
            distributed: distributed.into(),
            closing_since: account.closure_started_at,
            read_at,
        }
    }

    /// Whether the program could have written this: paid out <= claimed <= deposited.
    #[must_use]
    pub fn plausible(&self) -> bool {
        self.distributed <= self.claimed && self.claimed <= self.deposit
    }

    /// Whether the watermark can never move again.
    #[must_use]
    pub const fn is_final(&self) -> bool {
        matches!(self.status, ChannelStatus::Sealed | ChannelStatus::Distributed)
    }

    /// What both readings together say. On chain nothing ever goes back: amounts rise, and the status moves on from
    /// open over closing and sealed to distributed. So readings may arrive in any order, and more than once.
    #[must_use]
    pub fn join(self, other: Self) -> Self {
        let (ours, theirs) = (rank(self.status), rank(other.status));
        let closing_since = match ours.cmp(&theirs) {
            std::cmp::Ordering::Less => other.closing_since,
            std::cmp::Ordering::Equal => self.closing_since.max(other.closing_since),
            std::cmp::Ordering::Greater => self.closing_since,
        };
        Self {
            status: if ours < theirs { other.status } else { self.status },
            deposit: self.deposit.max(other.deposit),
            claimed: self.claimed.max(other.claimed),
            distributed: self.distributed.max(other.distributed),
            closing_since,
            read_at: self.read_at.max(other.read_at),
        }
    }
}

/// A status's place in a channel's life.
const fn rank(status: ChannelStatus) -> u8 {
    match status {
        ChannelStatus::Open => 0,
        ChannelStatus::Closing => 1,
        ChannelStatus::Sealed => 2,
        ChannelStatus::Distributed => 3,
    }
}

/// A voucher whose signature and channel have been checked by the scheme.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Voucher {
    /// The cumulative total that it allows to claim.
    pub cumulative: Amount,
    /// By the channel's authorizer.
    pub signature: Signature,
}

/// A request's price and the voucher that pays it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bid {
    /// The voucher.
    pub voucher: Voucher,
    /// The price.
    pub amount: Amount,
    /// The channel's whole deposit once a deposit that came along is confirmed.
    pub deposit_after: Option<Amount>,
}

impl Bid {
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
pub struct Channel {
    /// The chain's side, as last read.
    pub on_chain: OnChain,
    /// Whether the chain has confirmed the channel. Until then it is there only for the request that opens it.
    pub known: bool,
    /// All that was charged.
    pub charged: Amount,
    /// The voucher accepted last.
    pub voucher: Option<Voucher>,
    /// When the oldest charge that is not yet claimed was made.
    pub unclaimed_since: Option<UnixMillis>,
    /// When the channel was last charged.
    pub last_used: UnixMillis,
    /// Whether it takes no more payments: it is closed, or a close of ours may land.
    pub closed: bool,
    /// The request in flight. In client-signed mode there is at most one: the next voucher builds on its outcome.
    pub reserved: Option<Bid>,
    /// Whether we are closing it: no request is let in, unless the close is given up.
    pub leaving: bool,
}

impl Channel {
    /// A channel that a first deposit is about to open.
    #[must_use]
    pub fn proposed(now: UnixMillis) -> Self {
        let none = Amount::ZERO;
        let on_chain = OnChain {
            status: ChannelStatus::Open,
            deposit: none,
            claimed: none,
            distributed: none,
            closing_since: 0,
            read_at: now,
        };
        Self {
            on_chain,
            known: false,
            charged: none,
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
    pub fn adopted(on_chain: OnChain) -> Result<Self, Denied> {
        Self::proposed(on_chain.read_at).observe(on_chain)
    }

    /// The deposit that counts for a request.
    #[must_use]
    pub fn deposit_for(&self, bid: &Bid) -> Amount {
        self.on_chain.deposit.max(bid.deposit_after.unwrap_or(Amount::ZERO))
    }

    /// What is charged, not yet claimed, and can still be claimed.
    #[must_use]
    pub fn exposure(&self) -> Amount {
        if self.on_chain.is_final() { Amount::ZERO } else { self.charged.saturating_sub(self.on_chain.claimed) }
    }

    /// What was charged and can never be claimed, because the watermark became final below it.
    #[must_use]
    pub fn lost(&self) -> Amount {
        if self.on_chain.is_final() { self.charged.saturating_sub(self.on_chain.claimed) } else { Amount::ZERO }
    }

    /// The voucher to redeem, where there is something to redeem (invariant L3: the chain sets its watermark to the
    /// voucher's total, so a voucher is redeemed only when all of it was charged).
    #[must_use]
    pub fn redeemable(&self) -> Option<Voucher> {
        self.voucher.filter(|v| v.cumulative > self.on_chain.claimed && v.cumulative <= self.charged)
    }

    /// Holds a request's price back. Refusals in order of precedence: closing, behind, occupied, ahead, unknown,
    /// above the deposit.
    ///
    /// # Errors
    /// [`Denied`].
    pub fn reserve(self, bid: Bid) -> Result<Self, Denied> {
        if self.closed || self.leaving || self.on_chain.status != ChannelStatus::Open {
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
        let deposit = self.deposit_for(&bid);
        if bid.voucher.cumulative > deposit {
            return Err(Denied::ExceedsDeposit { deposit });
        }
        Self { reserved: Some(bid), ..self }.checked()
    }

    /// Gives the price in flight back.
    #[must_use]
    pub const fn release(self) -> Self {
        Self { reserved: None, ..self }
    }

    /// Charges the price in flight; where a deposit came along, `on_chain` is the channel after it.
    ///
    /// The payer may have put the very voucher in flight on chain (anyone may send `settle`). Then the charge is
    /// already claimed and the request is paid. A claim beyond that voucher means that it had been used before.
    ///
    /// # Errors
    /// [`Denied`]: nothing is in flight, the deposit is not there, the channel's watermark is final so that nothing
    /// charged now could be claimed, or the voucher has been overtaken.
    pub fn commit(self, on_chain: Option<OnChain>, now: UnixMillis) -> Result<Self, Denied> {
        let bid = self.reserved.ok_or(Denied::NotReserved)?;
        let next = match on_chain {
            Some(on_chain) => self.observe(on_chain)?,
            None => self,
        };
        let total = bid.voucher.cumulative;
        if !next.known {
            return Err(Denied::Unknown);
        }
        if next.on_chain.is_final() {
            return Err(Denied::Closing);
        }
        if total > next.on_chain.deposit {
            return Err(Denied::ExceedsDeposit { deposit: next.on_chain.deposit });
        }
        if total < next.charged {
            return Err(Denied::Behind { expected: next.charged.saturating_add(bid.amount) });
        }
        let unclaimed = total > next.on_chain.claimed;
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
    pub fn observe(self, on_chain: OnChain) -> Result<Self, Denied> {
        if !on_chain.plausible() {
            return Err(Denied::Implausible);
        }
        let on_chain = if self.known { self.on_chain.join(on_chain) } else { on_chain };
        let unclaimed_since = if on_chain.claimed >= self.charged {
            None
        } else if on_chain.claimed > self.on_chain.claimed {
            // Everything up to some voucher is claimed; what is left was charged later, at the latest with the last
            // one.
            Some(self.last_used)
        } else {
            self.unclaimed_since
        };
        Self {
            on_chain,
            known: true,
            charged: self.charged.max(on_chain.claimed),
            unclaimed_since,
            closed: self.closed || on_chain.status != ChannelStatus::Open,
            ..self
        }
        .checked()
    }

    /// Lets no more requests in, so as to close the channel. A channel that its payer is closing can be closed by us
    /// too, with the last voucher, and one that was shut for a close whose fate nobody knows any more can be closed
    /// again.
    ///
    /// # Errors
    /// [`Denied::Closing`] where we are closing it already, or where it is closed; [`Denied::Unknown`].
    pub fn begin_close(self) -> Result<Self, Denied> {
        let closable = match self.on_chain.status {
            ChannelStatus::Open | ChannelStatus::Closing => true,
            ChannelStatus::Sealed | ChannelStatus::Distributed => false,
        };
        if self.leaving || !closable {
            return Err(Denied::Closing);
        }
        if !self.known {
            return Err(Denied::Unknown);
        }
        Ok(Self { leaving: true, ..self })
    }

    /// Gives the close up: requests are let in again.
    #[must_use]
    pub const fn abandon_close(self) -> Self {
        Self { leaving: false, ..self }
    }

    /// Takes no more payments, whatever becomes of us, before a close of ours is sent: what was charged beyond it would
    /// be lost where it lands after a crash.
    #[must_use]
    pub const fn shut(self) -> Self {
        Self { closed: true, ..self }
    }

    /// Takes payments again where the chain does: the close that it was shut for can no longer land.
    #[must_use]
    pub fn reopen(self) -> Self {
        Self { closed: self.on_chain.status != ChannelStatus::Open, ..self }
    }

    /// Closes the channel for good, with the state that the chain confirmed.
    ///
    /// # Errors
    /// [`Denied::Occupied`] while a request is in flight; [`Denied::Implausible`].
    pub fn finish_close(self, on_chain: OnChain) -> Result<Self, Denied> {
        if self.reserved.is_some() {
            return Err(Denied::Occupied);
        }
        Ok(Self { closed: true, leaving: false, ..self.observe(on_chain)? })
    }

    /// The state itself, if it keeps what the ledger promises.
    ///
    /// # Errors
    /// [`Denied::Broken`] with the promise.
    pub fn checked(self) -> Result<Self, Denied> {
        let claimed = self.on_chain.claimed;
        let signed = self.voucher.map_or(Amount::ZERO, |v| v.cumulative);
        if claimed > self.charged {
            return Err(Denied::Broken("L1: more is claimed than was charged"));
        }
        if self.charged > signed.max(claimed) {
            return Err(Denied::Broken("L2: more is charged than was signed or claimed"));
        }
        if self.known && self.charged > self.on_chain.deposit {
            return Err(Denied::Broken("L2: more is charged than was deposited"));
        }
        if let Some(bid) = self.reserved
            && bid.voucher.cumulative > self.deposit_for(&bid)
        {
            return Err(Denied::Broken("L2: more is reserved than was deposited"));
        }
        if self.redeemable().is_some_and(|v| v.cumulative > self.charged || v.cumulative > self.on_chain.deposit) {
            return Err(Denied::Broken("L3: more would be redeemed than was charged or deposited"));
        }
        Ok(self)
    }
}
