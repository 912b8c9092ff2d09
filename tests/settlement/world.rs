//! A small world for the settlement's tests: doubles of the chain, the signer, the store and the crash.
//!
//! The chain is a model of the payment-channels program over decoded transactions (`docs/003`), with a script of
//! faults. Every call to a double passes two points, before and after its effect; a crash is scheduled for one of them,
//! where the caller is left hanging and then dropped.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use ed25519_dalek::{Signer as _, SigningKey};
use parking_lot::Mutex;
use tokio::sync::Notify;

use turnpike::amount::{Amount, Asset};
use turnpike::chain::{Account, Blockhash, Chain, ChainError, Confirmation, Simulation, TransactionStatus};
use turnpike::clock::{Clock, ManualClock, UnixMillis};
use turnpike::ledger::channel::{OnChain, Seller, Terms, Voucher};
use turnpike::ledger::store::{BatchKind, BatchRecord, BatchState, ChannelRecord, Snapshot, Store, StoreError, Write};
use turnpike::ledger::{Entry, Ledger, Limits, Reservation};
use turnpike::policy::Policy;
use turnpike::scheme::svm::program::{
    self, Call, ChannelAccount, ChannelStatus, OPEN_SLOT_WINDOW, all_to, distribution_hash, voucher_message,
};
use turnpike::scheme::svm::transaction::{Instruction, Transaction};
use turnpike::scheme::svm::{
    COMPUTE_BUDGET_PROGRAM, ED25519_PROGRAM, PAYMENT_CHANNELS, TOKEN_PROGRAM, TREASURY_PLACEHOLDER, USDC_DEVNET,
    associated_token_account, verify_strict,
};
use turnpike::settlement::{Observer, Options, Settlement};
use turnpike::signer::{Approved, Signer, SignerError, SigningRequest};
use turnpike::x402::Key;
use turnpike::x402::key::Signature;

pub const DEPOSIT: u64 = 1_000_000;
pub const DELAY: u32 = 900;
pub const START: i64 = 1_800_000_000;

pub fn signing_key(n: u32) -> SigningKey {
    let mut seed = [9; 32];
    seed[..4].copy_from_slice(&n.to_le_bytes());
    SigningKey::from_bytes(&seed)
}

pub fn public(n: u32) -> Key {
    Key(signing_key(n).verifying_key().to_bytes())
}

pub const FEE_PAYER: u32 = 900_001;
const PAY_TO: u32 = 900_002;

/// Counts calls, and leaves one of them hanging.
#[derive(Default)]
pub struct Crash {
    passed: AtomicUsize,
    at: Mutex<Option<usize>>,
    pub hit: Notify,
}

impl Crash {
    pub fn schedule(&self, at: Option<usize>) {
        self.passed.store(0, Ordering::SeqCst);
        *self.at.lock() = at;
    }

    async fn point(&self) {
        let here = self.passed.fetch_add(1, Ordering::SeqCst);
        let at = *self.at.lock();
        if at.is_some_and(|at| here >= at) {
            self.hit.notify_one();
            std::future::pending::<()>().await;
        }
    }
}

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
        let mut inner = self.inner.lock();
        inner.state.channels.remove(key);
        if let Some(frozen) = &mut inner.frozen {
            frozen.remove(key);
        }
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

fn verified(instruction: &Instruction) -> Option<(Key, Key, u64)> {
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

/// A signer with the whole key, that checks what a claim says.
pub struct TestSigner {
    crash: Arc<Crash>,
    /// The most channels that it signs for at once.
    pub channels_max: AtomicUsize,
}

#[async_trait]
impl Signer for TestSigner {
    fn public_key(&self) -> Key {
        public(FEE_PAYER)
    }
    async fn sign(&self, approved: Approved) -> Result<Signature, SignerError> {
        self.crash.point().await;
        let (transaction, channels) = match approved.into_request() {
            SigningRequest::Claim { lines, transaction } => {
                let claimed: Vec<_> =
                    transaction.instructions().iter().filter_map(verified).map(|(_, id, sum)| (id, sum)).collect();
                let said: Vec<_> = lines.iter().map(|line| (line.channel, line.cumulative)).collect();
                assert_eq!(claimed, said);
                (transaction, said.len())
            }
            SigningRequest::Distribute { channels, transaction } => (transaction, channels.len()),
            SigningRequest::Close { transaction, .. } => (transaction, 1),
            other => panic!("{} is none of the settlement's", other.kind()),
        };
        if channels > self.channels_max.load(Ordering::SeqCst) {
            return Err(SignerError::Refused { rule: "claim_channels", detail: format!("{channels} channels") });
        }
        let signature = signing_key(FEE_PAYER).sign(transaction.message());
        self.crash.point().await;
        Ok(Signature(signature.to_bytes()))
    }
    fn health(&self) -> Result<(), String> {
        Ok(())
    }
}

#[derive(Default)]
struct Kept {
    channels: HashMap<Key, ChannelRecord>,
    batches: Vec<BatchRecord>,
}

/// A store in memory.
pub struct TestStore {
    kept: Mutex<Kept>,
    crash: Arc<Crash>,
}

impl TestStore {
    pub fn batches_now(&self) -> Vec<BatchRecord> {
        self.kept.lock().batches.clone()
    }
    pub fn lose_everything(&self) {
        *self.kept.lock() = Kept::default();
    }
}

#[async_trait]
impl Store for TestStore {
    async fn load(&self) -> Result<Snapshot, StoreError> {
        let kept = self.kept.lock();
        let open = kept.batches.iter().filter(|batch| batch.state == BatchState::Signed);
        Ok(Snapshot {
            channels: kept.channels.values().cloned().collect(),
            batches: open.cloned().collect(),
            metered: Vec::new(),
            answers: Vec::new(),
            last_batch: kept.batches.iter().map(|batch| batch.id).max().unwrap_or(0),
        })
    }
    async fn write(&self, writes: Vec<Write>) -> Result<(), StoreError> {
        self.crash.point().await;
        {
            let mut kept = self.kept.lock();
            for write in writes {
                match write {
                    Write::Channel(record) => drop(kept.channels.insert(record.terms.id, *record)),
                    Write::ForgetChannel(id) => drop(kept.channels.remove(&id)),
                    Write::Batch(batch) => match kept.batches.iter_mut().find(|known| known.id == batch.id) {
                        Some(known) => *known = *batch,
                        None => kept.batches.push(*batch),
                    },
                    Write::Metered(_) | Write::ForgetMetered(_) | Write::Answer(_) | Write::ForgetAnswers(_) => {}
                }
            }
        }
        self.crash.point().await;
        Ok(())
    }
    async fn batches(&self, limit: usize) -> Result<Vec<BatchRecord>, StoreError> {
        Ok(self.kept.lock().batches.iter().rev().take(limit).cloned().collect())
    }
}

/// Everything together.
pub struct World {
    pub clock: Arc<ManualClock>,
    pub chain: Arc<TestChain>,
    pub store: Arc<TestStore>,
    pub signer: Arc<TestSigner>,
    pub crash: Arc<Crash>,
    pub seller: Arc<Seller>,
    pub ledger: Arc<Ledger>,
    pub policy: Arc<Policy>,
    pub watcher: Arc<Watcher>,
}

/// Counts what the settlement tells.
#[derive(Default)]
pub struct Watcher(Mutex<HashMap<&'static str, usize>>);

impl Watcher {
    pub fn count(&self, event: &str) -> usize {
        self.0.lock().get(event).copied().unwrap_or(0)
    }
    fn add(&self, event: &'static str) {
        *self.0.lock().entry(event).or_default() += 1;
    }
}

impl Observer for Watcher {
    fn signed(&self, _: &BatchRecord, _: Duration) {
        self.add("signed");
    }
    fn sent(&self, _: &BatchRecord) {
        self.add("sent");
    }
    fn confirmed(&self, _: &BatchRecord, _: Amount, _: Duration) {
        self.add("confirmed");
    }
    fn dropped(&self, _: &BatchRecord, _: &str) {
        self.add("dropped");
    }
    fn refused(&self, _: BatchKind, _: &[(Key, Amount)], _: &str) {
        self.add("refused");
    }
    fn lost(&self, _: &Key, _: Amount) {
        self.add("lost");
    }
}

impl World {
    pub async fn new() -> Self {
        let clock = Arc::new(ManualClock::new(UnixMillis(START * 1000)));
        let crash = Arc::new(Crash::default());
        let asset = Asset { address: USDC_DEVNET.to_string().into(), symbol: "USDC".into(), decimals: 6 };
        let seller = Arc::new(Seller {
            network: "solana:EtWTRABZaYq6iMfeYKouRu166VU2xqa1".parse().unwrap(),
            asset: Arc::new(asset),
            mint: USDC_DEVNET,
            token_program: TOKEN_PROGRAM,
            pay_to: public(PAY_TO),
            fee_payer: public(FEE_PAYER),
            receiver_authorizer: public(FEE_PAYER),
            withdraw_delay: DELAY,
            treasury_owner: TREASURY_PLACEHOLDER,
        });
        let store = Arc::new(TestStore { kept: Mutex::default(), crash: Arc::clone(&crash) });
        let chain = TestChain {
            store: Arc::clone(&store),
            inner: Mutex::new(Inner { slot: 1_000, ..Inner::default() }),
            crash: Arc::clone(&crash),
            clock: Arc::clone(&clock),
            seller: Arc::clone(&seller),
        };
        chain.pay_to_exists(true);
        let signer = Arc::new(TestSigner { crash: Arc::clone(&crash), channels_max: AtomicUsize::new(4) });
        let ledger = open(&store, &clock).await;
        let (policy, watcher) = (Arc::new(Policy::unlimited(vec![seller.pay_to])), Arc::default());
        Self { clock, chain: Arc::new(chain), store, signer, crash, seller, ledger, policy, watcher }
    }

    pub fn options(&self) -> Options {
        Options::new(vec![Arc::clone(&self.seller)])
    }

    pub fn settlement(&self) -> Settlement {
        self.settlement_with(self.options())
    }

    pub fn settlement_with(&self, options: Options) -> Settlement {
        Settlement::new(
            Arc::clone(&self.ledger),
            Arc::<TestChain>::clone(&self.chain),
            Arc::<TestSigner>::clone(&self.signer),
            Arc::clone(&self.policy),
            Arc::<ManualClock>::clone(&self.clock),
            options,
            Arc::<Watcher>::clone(&self.watcher),
        )
    }

    /// The process ends, and another one starts on the same store.
    pub async fn restart(&mut self) {
        self.crash.schedule(None);
        self.ledger = open(&self.store, &self.clock).await;
    }

    pub fn terms(&self, n: u32) -> Terms {
        Terms::derive(Arc::clone(&self.seller), public(n), public(n), u64::from(n), 990)
    }

    pub fn id(&self, n: u32) -> Key {
        self.terms(n).id
    }

    /// Opens payer `n`'s channel where it is not open yet, and charges it.
    pub async fn charge(&self, n: u32, amount: u64) {
        let opens = self.ledger.channel(&self.id(n)).is_none();
        if opens {
            self.chain.open(&self.terms(n), n);
        }
        let on_chain = OnChain {
            status: ChannelStatus::Open,
            deposit: DEPOSIT.into(),
            claimed: Amount::ZERO,
            distributed: Amount::ZERO,
            closing_since: 0,
            read_at: self.clock.now(),
        };
        self.reserve(n, amount).await.commit(opens.then_some(on_chain)).await.unwrap();
    }

    /// A request of payer `n` that is being served.
    pub async fn reserve(&self, n: u32, amount: u64) -> Reservation {
        let terms = self.terms(n);
        let known = self.ledger.channel(&terms.id);
        let cumulative = amount + known.as_ref().map_or(0, |record| record.charged.to_u64().unwrap());
        let signature = signing_key(n).sign(&voucher_message(&terms.id, cumulative, 0));
        let voucher = Voucher { cumulative: cumulative.into(), signature: Signature(signature.to_bytes()) };
        let deposit_after = known.is_none().then(|| DEPOSIT.into());
        self.ledger.reserve(Entry { terms, voucher, amount: amount.into(), deposit_after }).await.unwrap()
    }

    pub fn request_close(&self, n: u32) {
        let now = self.clock.now().seconds();
        self.chain.edit(&self.id(n), |account| {
            account.status = ChannelStatus::Closing;
            account.closure_started_at = now;
        });
    }

    pub fn pass(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
        self.chain.advance(seconds * 5 / 2);
    }

    /// No voucher was claimed twice, and nothing more than was charged is on chain.
    pub fn check(&self) {
        for ((channel, amount), times) in self.chain.claims() {
            assert_eq!(times, 1, "{channel} was brought to {amount} more than once");
        }
        self.ledger.for_each(&mut |record| {
            let settled = self.chain.channel(&record.terms.id).map_or(0, |account| account.settled);
            assert!(Amount::from(settled) <= record.charged, "{} is claimed above its charge", record.terms.id);
            assert!(record.on_chain.claimed <= record.charged);
        });
        assert_eq!(self.chain.forfeited(), 0);
    }
}

async fn open(store: &Arc<TestStore>, clock: &Arc<ManualClock>) -> Arc<Ledger> {
    let limits = Limits {
        exposure_max: None,
        channel_exposure_max: None,
        channel_charged_max: None,
        waiters_per_channel_max: 4,
        wait_max: Duration::from_secs(1),
        gap_wait_max: Duration::from_secs(1),
        reservation_max: Duration::from_secs(60),
        answers: None,
    };
    Ledger::open(Arc::<TestStore>::clone(store), Arc::<ManualClock>::clone(clock), limits).await.unwrap()
}
