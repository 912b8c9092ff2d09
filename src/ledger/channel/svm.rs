//! Channels of the Solana payment-channels program: what is fixed of one, and what the chain says of it.
//!
//! On chain nothing ever goes back: amounts rise, and the status moves on from open over closing and sealed to
//! distributed. So readings are joined, in whatever order they arrive. A claim sets the watermark to exactly the
//! voucher's total. Source: `scheme_batch_settlement_svm.md`; the program's `docs/001`.

use std::sync::Arc;

use super::{ChainState, ChannelTerms, Family, Moment};
use crate::amount::{Amount, Asset};
use crate::clock::UnixMillis;
use crate::ledger::store::{BatchRecord, MeteredRecord};
use crate::scheme::svm::program::{self, ChannelAccount, ChannelAccounts, ChannelStatus};
use crate::x402::key::Signature;
use crate::x402::wire::ChannelConfig;
use crate::x402::{Account, Key, Network};

/// Solana and what is like it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Svm {}

impl Family for Svm {
    type Id = Key;
    type Seller = Seller;
    type Terms = Terms;
    type OnChain = OnChain;
    type Signature = Signature;
    type Batch = BatchRecord;
    type Metered = MeteredRecord;
}

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
}

impl ChainState for OnChain {
    const CLAIMS_WHOLE_VOUCHERS: bool = true;
    const DEPOSIT_STAYS: bool = true;
    const CLOSE_ENDS: bool = true;

    fn none(now: UnixMillis) -> Self {
        let none = Amount::ZERO;
        Self {
            status: ChannelStatus::Open,
            deposit: none,
            claimed: none,
            distributed: none,
            closing_since: 0,
            read_at: now,
        }
    }

    fn read_at(&self) -> UnixMillis {
        self.read_at
    }

    fn same_as(&self, other: &Self) -> bool {
        Self { read_at: other.read_at, ..*self } == *other
    }

    fn deposit(&self) -> Amount {
        self.deposit
    }

    fn claimed(&self) -> Amount {
        self.claimed
    }

    fn claimable_max(&self) -> Amount {
        if self.is_final() { self.claimed } else { self.deposit.max(self.claimed) }
    }

    /// A payer who wants money back closes the channel, and a closing one takes no vouchers.
    fn spendable(&self, _moment: Moment) -> Amount {
        self.deposit
    }

    /// Paid out <= claimed <= deposited.
    fn plausible(&self) -> bool {
        self.distributed <= self.claimed && self.claimed <= self.deposit
    }

    fn is_open(&self) -> bool {
        self.status == ChannelStatus::Open
    }

    fn is_final(&self) -> bool {
        matches!(self.status, ChannelStatus::Sealed | ChannelStatus::Distributed)
    }

    /// On chain nothing ever goes back, so readings may arrive in any order, and more than once.
    fn join(self, other: Self) -> Self {
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

    /// What ends a close shows in the channel's status.
    fn ends_close(&self, _later: &Self) -> bool {
        false
    }

    fn gone(self) -> Self {
        Self { status: ChannelStatus::Distributed, ..self }
    }
}

impl ChannelTerms for Terms {
    type Id = Key;
    type Seller = Seller;

    fn id(&self) -> Key {
        self.id
    }

    fn payer(&self) -> Account {
        Account::Svm(self.payer)
    }

    fn seller(&self) -> &Arc<Seller> {
        &self.seller
    }

    fn set_seller(&mut self, seller: Arc<Seller>) {
        self.seller = seller;
    }

    fn same_deal(ours: &Seller, theirs: &Seller) -> bool {
        ours.network == theirs.network
            && ours.mint == theirs.mint
            && ours.token_program == theirs.token_program
            && ours.pay_to == theirs.pay_to
            && ours.fee_payer == theirs.fee_payer
            && ours.receiver_authorizer == theirs.receiver_authorizer
            && ours.withdraw_delay == theirs.withdraw_delay
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
