//! A double of the chain: a model of the payment-channels program over decoded transactions (`docs/003`), with a script
//! of faults.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use turnpike::chain::{Account, Blockhash, Chain, ChainError, Confirmation, Simulation, TransactionStatus};
use turnpike::clock::{Clock, ManualClock};
use turnpike::ledger::channel::{Seller, Terms};
use turnpike::ledger::store::{BatchRecord, BatchState};
use turnpike::scheme::svm::program::{
    self, Call, ChannelAccount, ChannelStatus, OPEN_SLOT_WINDOW, all_to, distribution_hash,
};
use turnpike::scheme::svm::transaction::{Instruction, Transaction};
use turnpike::scheme::svm::{
    COMPUTE_BUDGET_PROGRAM, ED25519_PROGRAM, PAYMENT_CHANNELS, TOKEN_PROGRAM, USDC_DEVNET, associated_token_account,
    verify_strict,
};
use turnpike::x402::Key;
use turnpike::x402::key::Signature;

use super::{Crash, DELAY, DEPOSIT, PAY_TO, TestStore, public};

/// What happens to one sending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Taken and lost.
    Drop,
    /// Taken, and in a block only when [`TestChain::release`] is called.
    Late,
    /// No answer, and not taken.
    ErrorBefore,
    /// No answer, and in a block.
    ErrorAfter,
    /// Refused by the node, not run.
    Refuse,
}

#[derive(Clone, Default)]
struct State {
    channels: HashMap<Key, ChannelAccount>,
    tokens: HashMap<Key, (Key, u64)>,
    forfeited: u64,
    claims: HashMap<(Key, u64), usize>,
}

#[derive(Default)]
struct Inner {
    state: State,
    slot: u64,
    /// The slot that each transaction landed in, and its error.
    done: HashMap<Signature, (u64, Option<String>)>,
    late: Vec<Vec<u8>>,
    faults: VecDeque<Fault>,
    poisoned: HashSet<Key>,
    wordless: bool,
    silent: bool,
    sent: Vec<Vec<u8>>,
    frozen: Option<HashMap<Key, ChannelAccount>>,
}

/// The chain.
pub struct TestChain {
    inner: Mutex<Inner>,
    crash: Arc<Crash>,
    clock: Arc<ManualClock>,
    seller: Arc<Seller>,
    store: Arc<TestStore>,
}

impl TestChain {
    pub fn new(crash: &Arc<Crash>, clock: &Arc<ManualClock>, seller: &Arc<Seller>, store: &Arc<TestStore>) -> Self {
        let chain = Self {
            inner: Mutex::new(Inner { slot: 1_000, ..Inner::default() }),
            crash: Arc::clone(crash),
            clock: Arc::clone(clock),
            seller: Arc::clone(seller),
            store: Arc::clone(store),
        };
        chain.pay_to_exists(true);
        chain
    }
    pub fn fault(&self, faults: impl IntoIterator<Item = Fault>) {
        self.inner.lock().faults = faults.into_iter().collect();
    }
    /// Every instruction on this channel fails.
    pub fn poison(&self, channel: Key, on: bool) {
        let mut inner = self.inner.lock();
        if on {
            inner.poisoned.insert(channel)
        } else {
            inner.poisoned.remove(&channel)
        };
    }
    /// Failures no longer say which instruction failed.
    pub fn wordless(&self) {
        self.inner.lock().wordless = true;
    }
    /// Nothing is answered.
    pub fn silence(&self, on: bool) {
        self.inner.lock().silent = on;
    }
    /// Readings of channels stay as they are now, as from a node that lags behind.
    pub fn freeze(&self, on: bool) {
        let mut inner = self.inner.lock();
        inner.frozen = on.then(|| inner.state.channels.clone());
    }
    pub fn advance(&self, slots: u64) {
        self.inner.lock().slot += slots;
    }
    pub fn release(&self) {
        let late = std::mem::take(&mut self.inner.lock().late);
        for bytes in late {
            self.land(&bytes);
        }
    }
    pub fn channel(&self, key: &Key) -> Option<ChannelAccount> {
        self.inner.lock().state.channels.get(key).cloned()
    }
    pub fn edit(&self, key: &Key, edit: impl FnOnce(&mut ChannelAccount)) {
        edit(self.inner.lock().state.channels.get_mut(key).unwrap());
    }
    /// The channel's account is gone, as after a close and a reclaim by somebody else.
    pub fn remove(&self, key: &Key) {
        self.inner.lock().state.channels.remove(key);
    }
    pub fn balance(&self, owner: u32) -> u64 {
        let ata = associated_token_account(&public(owner), &USDC_DEVNET, &TOKEN_PROGRAM);
        self.inner.lock().state.tokens.get(&ata).map_or(0, |(_, amount)| *amount)
    }
    pub fn pay_to_balance(&self) -> u64 {
        self.balance(PAY_TO)
    }
    pub fn forfeited(&self) -> u64 {
        self.inner.lock().state.forfeited
    }
    /// Makes or removes the token account of `pay_to`.
    pub fn pay_to_exists(&self, on: bool) {
        let seller = &self.seller;
        let ata = associated_token_account(&seller.pay_to, &seller.mint, &seller.token_program);
        let mut inner = self.inner.lock();
        if on {
            inner.state.tokens.entry(ata).or_insert((seller.pay_to, 0));
        } else {
            inner.state.tokens.remove(&ata);
        }
    }
    pub fn sent(&self) -> Vec<Transaction> {
        self.inner.lock().sent.iter().map(|bytes| Transaction::decode(bytes).unwrap()).collect()
    }
    /// How often each voucher was claimed.
    pub fn claims(&self) -> HashMap<(Key, u64), usize> {
        self.inner.lock().state.claims.clone()
    }

    pub fn open(&self, terms: &Terms, payer: u32) {
        let account = ChannelAccount {
            bump: 255,
            status: ChannelStatus::Open,
            salt: terms.salt,
            deposit: DEPOSIT,
            settled: 0,
            payout_watermark: 0,
            closure_started_at: 0,
            payer_withdrawn_at: 0,
            grace_period: DELAY,
            distribution_hash: distribution_hash(&all_to(self.seller.pay_to)),
            payer: terms.payer,
            payee: self.seller.fee_payer,
            authorized_signer: terms.authorizer,
            mint: self.seller.mint,
            rent_payer: self.seller.fee_payer,
            open_slot: terms.open_slot,
        };
        let ata = associated_token_account(&public(payer), &USDC_DEVNET, &TOKEN_PROGRAM);
        let mut inner = self.inner.lock();
        inner.state.channels.insert(terms.id, account);
        inner.state.tokens.insert(ata, (public(payer), 0));
    }

    /// Runs a transaction as a block would: once, whole or not at all.
    fn land(&self, bytes: &[u8]) {
        let transaction = Transaction::decode(bytes).unwrap();
        let now = self.clock.now().seconds();
        let mut inner = self.inner.lock();
        let expires = u64::from_le_bytes(*transaction.blockhash().first_chunk().unwrap());
        if inner.slot > expires || inner.done.contains_key(&transaction.id()) {
            return;
        }
        let mut after = inner.state.clone();
        let mut error = None;
        for index in 0..transaction.instructions().len() {
            if let Err(code) = self.run(&mut after, &transaction, index, inner.slot, now, &inner.poisoned) {
                error = Some(match inner.wordless {
                    true => "it did not work".to_owned(),
                    false => format!("{{\"InstructionError\":[{index},{{\"Custom\":{code}}}]}}"),
                });
                break;
            }
        }
        if error.is_none() {
            inner.state = after;
        }
        let slot = inner.slot;
        inner.done.insert(transaction.id(), (slot, error));
    }

    fn run(
        &self,
        state: &mut State,
        transaction: &Transaction,
        index: usize,
        slot: u64,
        now: i64,
        poisoned: &HashSet<Key>,
    ) -> Result<(), u32> {
        let instructions = transaction.instructions();
        let this = &instructions[index];
        if this.program == COMPUTE_BUDGET_PROGRAM {
            return Ok(());
        }
        if this.program == ED25519_PROGRAM {
            return verified(this).map(|_| ()).ok_or(0);
        }
        assert_eq!(this.program, PAYMENT_CHANNELS);
        let call = Call::decode(&this.data).unwrap();
        let at = usize::from(matches!(call, Call::SettleAndSeal { .. }));
        let key = this.accounts[at].key;
        if poisoned.contains(&key) {
            return Err(999);
        }
        let mut channel = state.channels.get(&key).cloned().ok_or(3_u32)?;
        let deadline = channel.closure_started_at + i64::from(channel.grace_period);
        let previous = index.checked_sub(1).and_then(|index| instructions.get(index));
        let voucher = |channel: &ChannelAccount| -> Result<u64, u32> {
            let (signer, id, cumulative) = previous.and_then(verified).ok_or(230_u32)?;
            match () {
                () if id != key => Err(232),
                () if cumulative <= channel.settled => Err(234),
                () if cumulative > channel.deposit => Err(235),
                () if signer != channel.authorized_signer => Err(237),
                () => Ok(cumulative),
            }
        };
        match call {
            Call::Settle => {
                if channel.status != ChannelStatus::Open {
                    return Err(2);
                }
                channel.settled = voucher(&channel)?;
                *state.claims.entry((key, channel.settled)).or_default() += 1;
            }
            Call::SettleAndSeal { has_voucher } => {
                assert_eq!(this.accounts[0].key, channel.payee);
                let closable = match channel.status {
                    ChannelStatus::Open => true,
                    ChannelStatus::Closing => now < deadline,
                    ChannelStatus::Sealed | ChannelStatus::Distributed => false,
                };
                if !closable {
                    return Err(2);
                }
                if has_voucher {
                    channel.settled = voucher(&channel)?;
                    *state.claims.entry((key, channel.settled)).or_default() += 1;
                }
                channel.status = ChannelStatus::Sealed;
                channel.closure_started_at = 0;
            }
            Call::Seal => match channel.status {
                ChannelStatus::Closing if now >= deadline => {
                    channel.status = ChannelStatus::Sealed;
                    channel.closure_started_at = 0;
                }
                ChannelStatus::Closing => return Err(2201),
                _ => return Err(2),
            },
            Call::Distribute { recipients } => {
                assert_eq!(distribution_hash(&recipients), channel.distribution_hash);
                let sealed = channel.status == ChannelStatus::Sealed;
                if !sealed && channel.status != ChannelStatus::Open {
                    return Err(2400);
                }
                if !sealed && channel.settled == channel.payout_watermark {
                    return Err(2408);
                }
                pay(state, this.accounts[11].key, channel.settled - channel.payout_watermark);
                if sealed {
                    pay(state, this.accounts[4].key, channel.deposit - channel.settled);
                    if slot > channel.open_slot + OPEN_SLOT_WINDOW {
                        state.channels.remove(&key);
                        return Ok(());
                    }
                    // The program leaves the payout watermark where it is.
                    channel.status = ChannelStatus::Distributed;
                } else {
                    channel.payout_watermark = channel.settled;
                }
            }
            Call::Reclaim => {
                if channel.status != ChannelStatus::Distributed {
                    return Err(2);
                }
                if slot <= channel.open_slot + OPEN_SLOT_WINDOW {
                    return Err(2414);
                }
                state.channels.remove(&key);
                return Ok(());
            }
            other => panic!("{other:?} is none of the settlement's"),
        }
        state.channels.insert(key, channel);
        Ok(())
    }

    fn answer(&self) -> Result<(), ChainError> {
        if self.inner.lock().silent { Err(ChainError::Unavailable("silence".to_owned())) } else { Ok(()) }
    }

    fn account_now(&self, key: &Key) -> Option<Account> {
        let inner = self.inner.lock();
        if let Some(channel) = inner.frozen.as_ref().unwrap_or(&inner.state.channels).get(key) {
            return Some(Account { lamports: 1, owner: PAYMENT_CHANNELS, data: channel.encode() });
        }
        let (owner, amount) = inner.state.tokens.get(key)?;
        let mut data = [&USDC_DEVNET.0[..], &owner.0, &amount.to_le_bytes()].concat();
        data.resize(165, 0);
        data[108] = 1;
        Some(Account { lamports: 1, owner: TOKEN_PROGRAM, data })
    }

    /// What a node does with a transaction.
    fn take(&self, bytes: &[u8]) -> Result<(), ChainError> {
        let journalled = |batch: &BatchRecord| batch.transaction == bytes && batch.state == BatchState::Signed;
        assert!(self.store.kept.lock().batches.iter().any(journalled), "sent before it was journalled");
        let fault = {
            let mut inner = self.inner.lock();
            inner.sent.push(bytes.to_vec());
            inner.faults.pop_front()
        };
        let nothing = || Err(ChainError::Unavailable("no answer".to_owned()));
        match fault {
            None => self.land(bytes),
            Some(Fault::Drop) => {}
            Some(Fault::Late) => self.inner.lock().late.push(bytes.to_vec()),
            Some(Fault::ErrorBefore) => return nothing(),
            Some(Fault::ErrorAfter) => {
                self.land(bytes);
                return nothing();
            }
            Some(Fault::Refuse) => return Err(ChainError::Refused("node is behind".to_owned())),
        }
        Ok(())
    }
}

/// What a voucher's instruction proves: its signer, its channel and its total.
pub fn verified(instruction: &Instruction) -> Option<(Key, Key, u64)> {
    if instruction.program != ED25519_PROGRAM || instruction.data.len() != program::ED25519_DATA_BYTES {
        return None;
    }
    let data = &instruction.data;
    let signer = Key(data[16..48].try_into().unwrap());
    let signature = Signature(data[48..112].try_into().unwrap());
    verify_strict(&signer, &data[112..], &signature).then(|| {
        let id = Key(data[114..146].try_into().unwrap());
        (signer, id, u64::from_le_bytes(data[146..154].try_into().unwrap()))
    })
}

fn pay(state: &mut State, to: Key, amount: u64) {
    match state.tokens.get_mut(&to) {
        Some((_, balance)) => *balance += amount,
        None => state.forfeited += amount,
    }
}

#[async_trait]
impl Chain for TestChain {
    async fn latest_blockhash(&self) -> Result<Blockhash, ChainError> {
        self.crash.point().await;
        self.answer()?;
        let slot = self.inner.lock().slot;
        let last = slot + 150;
        let mut hash = [0; 32];
        hash[..8].copy_from_slice(&last.to_le_bytes());
        // Two transactions that say the same are two all the same.
        hash[8..16].copy_from_slice(&u64::try_from(self.inner.lock().sent.len()).unwrap().to_le_bytes());
        Ok(Blockhash { hash, last_valid_block_height: last, slot })
    }
    async fn slot(&self) -> Result<u64, ChainError> {
        self.answer()?;
        Ok(self.inner.lock().slot)
    }
    async fn block_height(&self) -> Result<u64, ChainError> {
        self.slot().await
    }
    async fn accounts(&self, keys: &[Key]) -> Result<Vec<Option<Account>>, ChainError> {
        self.crash.point().await;
        self.answer()?;
        let accounts = keys.iter().map(|key| self.account_now(key)).collect();
        self.crash.point().await;
        Ok(accounts)
    }
    async fn channels_by(&self, offset: usize, key: &Key) -> Result<Vec<(Key, ChannelAccount)>, ChainError> {
        self.answer()?;
        let matches = |account: &ChannelAccount| account.encode().get(offset..offset + 32) == Some(&key.0[..]);
        let inner = self.inner.lock();
        let found = inner.state.channels.iter().filter(|(_, account)| matches(account));
        Ok(found.map(|(key, account)| (*key, account.clone())).collect())
    }
    async fn simulate(&self, _: &[u8]) -> Result<Simulation, ChainError> {
        panic!("the settlement does not simulate")
    }
    async fn send(&self, transaction: &[u8]) -> Result<(), ChainError> {
        self.crash.point().await;
        self.answer()?;
        let taken = self.take(transaction);
        self.crash.point().await;
        taken
    }
    async fn statuses(&self, ids: &[Signature]) -> Result<Vec<Option<TransactionStatus>>, ChainError> {
        self.answer()?;
        let inner = self.inner.lock();
        let status = |(slot, error): &(u64, Option<String>)| TransactionStatus {
            slot: *slot,
            confirmed: true,
            error: error.clone(),
        };
        Ok(ids.iter().map(|id| inner.done.get(id).map(status)).collect())
    }
    async fn confirm(
        &self,
        transaction: &[u8],
        id: &Signature,
        last_valid_block_height: u64,
        _: Duration,
    ) -> Result<Confirmation, ChainError> {
        self.crash.point().await;
        self.answer()?;
        for resend in [true, false] {
            let (known, slot) = {
                let inner = self.inner.lock();
                (inner.done.get(id).cloned(), inner.slot)
            };
            let fate = match known {
                Some((slot, None)) => Some(Confirmation::Confirmed { slot }),
                Some((_, Some(error))) => Some(Confirmation::Failed { error }),
                None if slot > last_valid_block_height => Some(Confirmation::Expired),
                None => None,
            };
            if let Some(fate) = fate {
                self.crash.point().await;
                return Ok(fate);
            }
            if resend {
                let _ = self.take(transaction);
            }
        }
        Err(ChainError::Unavailable("not seen in time".to_owned()))
    }
    async fn rent(&self, _: usize) -> Result<u64, ChainError> {
        Ok(1)
    }
}
