//! A double of the settlement contract, in memory: the semantics of `tests/interop/contracts/BatchSettlement.sol`, with
//! real digests and signatures.
//!
//! Every transaction takes effect as a whole or not at all, and makes a block. The state before the newest block is kept,
//! so that a reading can lag. It also counts every unit of money: [`Contract::check`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::Mutex;
use turnpike::amount::Amount;
use turnpike::clock::Clock;
use turnpike::scheme::evm::eip712::{
    ChannelConfig, ClaimEntry, Domain, channel_id, claim_batch_digest, refund_digest, voucher_digest,
};
use turnpike::scheme::evm::signature;
use turnpike::x402::evm::{Address, AnySignature, B256, EvmSignature, keccak256};

/// An error of the contract's, by its name there.
pub type Revert = &'static str;

/// A channel as the contract keeps it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    pub balance: u128,
    pub claimed: u128,
    pub withdrawal: u128,
    pub withdraw_since: i64,
    pub refund_nonce: u64,
}

/// One row of a claim.
#[derive(Clone, Debug)]
pub struct Row {
    pub config: ChannelConfig,
    pub max_claimable: Amount,
    pub signature: AnySignature,
    pub total: Amount,
}

#[derive(Clone, Default)]
struct State {
    block: u64,
    accounts: BTreeMap<B256, Account>,
    /// What was claimed for a receiver in a token, and what of it was paid out.
    receivers: BTreeMap<(Address, Address), (u128, u128)>,
    /// Tokens, by token and holder; the contract's own are under [`Address::ZERO`].
    tokens: BTreeMap<(Address, Address), u128>,
    /// All that was ever brought into the contract.
    deposited: u128,
}

#[derive(Default)]
struct Chain {
    now: State,
    /// One block ago.
    before: State,
    /// Payers that are contracts, and whether they accept their vouchers now.
    wallets: BTreeMap<Address, bool>,
    /// How often each channel was brought to each total.
    claims: BTreeMap<(B256, u128), u32>,
    /// How often a claim or a payout was mined, those that moved nothing among them.
    claim_transactions: u32,
    payouts: Vec<u128>,
    /// Receivers whose token transfers fail.
    barred: BTreeSet<Address>,
}

/// The contract on one chain.
pub struct Contract {
    domain: Domain,
    clock: Arc<dyn Clock>,
    chain: Mutex<Chain>,
}

fn units(amount: Amount) -> u128 {
    amount.get()
}

impl Contract {
    pub fn new(chain_id: u64, clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self { domain: Domain::batch_settlement(chain_id), clock, chain: Mutex::default() })
    }

    fn transact<T>(
        &self,
        work: impl FnOnce(&mut State, &BTreeMap<Address, bool>) -> Result<T, Revert>,
    ) -> Result<(T, B256), Revert> {
        let mut chain = self.chain.lock();
        let mut next = chain.now.clone();
        let done = work(&mut next, &chain.wallets)?;
        next.block += 1;
        let hash = keccak256(&next.block.to_be_bytes());
        chain.before = std::mem::replace(&mut chain.now, next);
        Ok((done, hash))
    }

    /// A block without a transaction of ours: readings that lag have caught up.
    pub fn mine(&self) {
        let done = self.transact(|_, _| Ok(()));
        assert!(done.is_ok());
    }

    pub fn deposit(&self, config: &ChannelConfig, amount: u128) {
        let id = channel_id(&self.domain, config);
        let done = self.transact(|state, _| {
            state.accounts.entry(id).or_default().balance += amount;
            *state.tokens.entry((config.token, Address::ZERO)).or_default() += amount;
            state.deposited += amount;
            Ok(())
        });
        assert!(done.is_ok());
    }

    /// `claimWithSignature`: what it newly claims, and its hash.
    pub fn claim(&self, rows: &[Row], authorizer: &EvmSignature) -> Result<(u128, B256), Revert> {
        let mut brought = Vec::new();
        let done = self.transact(|state, wallets| self.claim_rows(state, wallets, rows, authorizer, &mut brought))?;
        let mut chain = self.chain.lock();
        chain.claim_transactions += 1;
        for line in brought {
            *chain.claims.entry(line).or_default() += 1;
        }
        Ok(done)
    }

    fn claim_rows(
        &self,
        state: &mut State,
        wallets: &BTreeMap<Address, bool>,
        rows: &[Row],
        signed: &EvmSignature,
        brought: &mut Vec<(B256, u128)>,
    ) -> Result<u128, Revert> {
        let authorizer = rows.first().ok_or("EmptyBatch")?.config.receiver_authorizer;
        let entry = |row: &Row| ClaimEntry {
            channel_id: channel_id(&self.domain, &row.config),
            max_claimable_amount: row.max_claimable,
            total_claimed: row.total,
        };
        let entries: Vec<_> = rows.iter().map(entry).collect();
        if signature::signer(&claim_batch_digest(&self.domain, &entries), signed) != Some(authorizer) {
            return Err("InvalidSignature");
        }
        let mut moved = 0;
        for row in rows {
            if row.config.receiver_authorizer != authorizer {
                return Err("NotReceiverAuthorizer");
            }
            let more = self.claim_row(state, wallets, row)?;
            if more > 0 {
                brought.push((channel_id(&self.domain, &row.config), units(row.total)));
            }
            moved += more;
        }
        Ok(moved)
    }

    /// What is claimed already is passed over before anything else of the row is looked at.
    fn claim_row(&self, state: &mut State, wallets: &BTreeMap<Address, bool>, row: &Row) -> Result<u128, Revert> {
        let id = channel_id(&self.domain, &row.config);
        let account = state.accounts.entry(id).or_default();
        let total = units(row.total);
        if total <= account.claimed {
            return Ok(0);
        }
        if row.total > row.max_claimable {
            return Err("ClaimExceedsCeiling");
        }
        if total > account.balance {
            return Err("ClaimExceedsBalance");
        }
        if !self.is_signed(wallets, &row.config, row.max_claimable, &row.signature) {
            return Err("InvalidSignature");
        }
        let more = total - account.claimed;
        account.claimed = total;
        state.receivers.entry((row.config.receiver, row.config.token)).or_default().0 += more;
        Ok(more)
    }

    fn is_signed(
        &self,
        wallets: &BTreeMap<Address, bool>,
        config: &ChannelConfig,
        cumulative: Amount,
        signature: &AnySignature,
    ) -> bool {
        let digest = voucher_digest(&self.domain, &channel_id(&self.domain, config), cumulative);
        let by = match signature {
            AnySignature::Key(signature) => signature::signer(&digest, signature),
            AnySignature::Contract(_) => None,
        };
        if config.payer_authorizer.is_zero() {
            wallets.get(&config.payer).copied().unwrap_or(by == Some(config.payer))
        } else {
            by == Some(config.payer_authorizer)
        }
    }

    /// Whether the contract would take a voucher now.
    pub fn accepts(&self, config: &ChannelConfig, cumulative: Amount, signature: &AnySignature) -> bool {
        self.is_signed(&self.chain.lock().wallets, config, cumulative, signature)
    }

    /// `settle`: what it paid out. Of nothing it does nothing.
    pub fn settle(&self, receiver: Address, token: Address) -> Result<(u128, B256), Revert> {
        if self.chain.lock().barred.contains(&receiver) {
            return Err("transfer failed");
        }
        let done = self.transact(|state, _| {
            let account = state.receivers.entry((receiver, token)).or_default();
            let due = account.0 - account.1;
            account.1 = account.0;
            pay(state, token, receiver, due);
            Ok(due)
        })?;
        self.chain.lock().payouts.push(done.0);
        Ok(done)
    }

    /// `initiateWithdraw` by the payer.
    pub fn initiate_withdraw(&self, config: &ChannelConfig, amount: u128) -> Result<(), Revert> {
        let now = self.clock.now().seconds();
        let id = channel_id(&self.domain, config);
        self.transact(|state, _| {
            let account = state.accounts.entry(id).or_default();
            if account.withdraw_since != 0 {
                return Err("WithdrawalAlreadyPending");
            }
            if amount == 0 || amount > account.balance - account.claimed {
                return Err("WithdrawAmountExceedsAvailable");
            }
            (account.withdrawal, account.withdraw_since) = (amount, now);
            Ok(())
        })
        .map(drop)
    }

    /// `finalizeWithdraw` by the payer: what it took out.
    pub fn finalize_withdraw(&self, config: &ChannelConfig) -> Result<u128, Revert> {
        let now = self.clock.now().seconds();
        let id = channel_id(&self.domain, config);
        let done = self.transact(|state, _| {
            let account = state.accounts.entry(id).or_default();
            if account.withdraw_since == 0 {
                return Err("WithdrawalNotPending");
            }
            if now < account.withdraw_since + i64::try_from(config.withdraw_delay).unwrap() {
                return Err("WithdrawDelayNotElapsed");
            }
            let amount = account.withdrawal.min(account.balance - account.claimed);
            account.balance -= amount;
            (account.withdrawal, account.withdraw_since) = (0, 0);
            pay(state, config.token, config.payer, amount);
            Ok(amount)
        });
        done.map(|(amount, _)| amount)
    }

    /// `multicall` of `claimWithSignature`, where there are rows, and `refundWithSignature`: what went back.
    pub fn refund(
        &self,
        claims: Option<(&[Row], &EvmSignature)>,
        config: &ChannelConfig,
        amount: Amount,
        nonce: u64,
        signed: &EvmSignature,
    ) -> Result<u128, Revert> {
        let id = channel_id(&self.domain, config);
        let mut brought = Vec::new();
        let done = self.transact(|state, wallets| {
            if let Some((rows, authorizer)) = claims {
                self.claim_rows(state, wallets, rows, authorizer, &mut brought)?;
            }
            let account = state.accounts.entry(id).or_default();
            if nonce != account.refund_nonce {
                return Err("InvalidRefundNonce");
            }
            let digest = refund_digest(&self.domain, &id, nonce.into(), amount);
            if signature::signer(&digest, signed) != Some(config.receiver_authorizer) {
                return Err("InvalidSignature");
            }
            if amount.is_zero() {
                return Err("ZeroRefund");
            }
            account.refund_nonce += 1;
            let paid = units(amount).min(account.balance - account.claimed);
            account.balance -= paid;
            if paid >= account.withdrawal {
                (account.withdrawal, account.withdraw_since) = (0, 0);
            } else {
                account.withdrawal -= paid;
            }
            pay(state, config.token, config.payer, paid);
            Ok(paid)
        });
        let (paid, _) = done?;
        for line in brought {
            *self.chain.lock().claims.entry(line).or_default() += 1;
        }
        Ok(paid)
    }

    /// A channel as it is, or as it was one block ago, and the block that this is of.
    pub fn account(&self, id: &B256, lagging: bool) -> (Account, u64) {
        let chain = self.chain.lock();
        let state = if lagging { &chain.before } else { &chain.now };
        (state.accounts.get(id).copied().unwrap_or_default(), state.block)
    }

    pub fn claimed(&self, id: &B256) -> u128 {
        self.account(id, false).0.claimed
    }

    /// What is claimed for a receiver and not paid out.
    pub fn unsettled(&self, receiver: Address, token: Address, lagging: bool) -> u128 {
        let chain = self.chain.lock();
        let state = if lagging { &chain.before } else { &chain.now };
        state.receivers.get(&(receiver, token)).map_or(0, |(claimed, settled)| claimed - settled)
    }

    pub fn tokens(&self, token: Address, holder: Address) -> u128 {
        self.chain.lock().now.tokens.get(&(token, holder)).copied().unwrap_or(0)
    }

    /// A payer that is a contract accepts its vouchers, or does not any more.
    pub fn wallet(&self, payer: Address, accepts: bool) {
        self.chain.lock().wallets.insert(payer, accepts);
    }

    /// A receiver that the token's issuer bars.
    pub fn bar(&self, receiver: Address, barred: bool) {
        let mut chain = self.chain.lock();
        if barred {
            chain.barred.insert(receiver)
        } else {
            chain.barred.remove(&receiver)
        };
    }

    /// How many claims were mined.
    pub fn claim_transactions(&self) -> u32 {
        self.chain.lock().claim_transactions
    }

    /// What every payout paid.
    pub fn payouts(&self) -> Vec<u128> {
        self.chain.lock().payouts.clone()
    }

    /// Every unit is somewhere, and no channel was brought to the same total twice.
    pub fn check(&self) {
        let chain = self.chain.lock();
        let state = &chain.now;
        assert_eq!(state.tokens.values().sum::<u128>(), state.deposited, "money was made or lost");
        let kept: u128 = state.accounts.values().map(|account| account.balance - account.claimed).sum();
        let unpaid: u128 = state.receivers.values().map(|(claimed, settled)| claimed - settled).sum();
        let held: u128 =
            state.tokens.iter().filter(|((_, holder), _)| holder.is_zero()).map(|(_, amount)| amount).sum();
        assert_eq!(held, kept + unpaid, "the contract holds what it owes");
        assert!(chain.claims.values().all(|times| *times == 1), "a channel was brought to the same total twice");
    }
}

fn pay(state: &mut State, token: Address, to: Address, amount: u128) {
    let held = state.tokens.entry((token, Address::ZERO)).or_default();
    *held = held.checked_sub(amount).unwrap();
    *state.tokens.entry((token, to)).or_default() += amount;
}
