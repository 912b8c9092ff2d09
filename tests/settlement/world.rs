//! A small world for the settlement's tests: doubles of the chain, the signer, the store and the crash.
//!
//! Every call to a double passes two points, before and after its effect; a crash is scheduled for one of them,
//! where the caller is left hanging and then dropped.

mod chain;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use ed25519_dalek::{Signer as _, SigningKey};
use parking_lot::Mutex;
use tokio::sync::Notify;

use turnpike::amount::{Amount, Asset};
use turnpike::clock::{Clock, ManualClock, UnixMillis};
use turnpike::ledger::channel::{OnChain, Seller, Terms, Voucher};
use turnpike::ledger::store::{BatchKind, BatchRecord, BatchState, ChannelRecord, Snapshot, Store, StoreError, Write};
use turnpike::ledger::{Entry, Ledger, Limits, Reservation};
use turnpike::policy::Policy;
use turnpike::scheme::svm::program::{ChannelStatus, voucher_message};
use turnpike::scheme::svm::{TOKEN_PROGRAM, TREASURY_PLACEHOLDER, USDC_DEVNET};
use turnpike::settlement::{Observer, Options, Settlement};
use turnpike::signer::{Approved, Signer, SignerError, SigningRequest};
use turnpike::x402::Key;
use turnpike::x402::key::Signature;

use chain::verified;
pub use chain::{Fault, TestChain};

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
            spent: Vec::new(),
            passes: Vec::new(),
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
                    Write::Metered(_)
                    | Write::ForgetMetered(_)
                    | Write::Answer(_)
                    | Write::ForgetAnswers(_)
                    | Write::Spend(_)
                    | Write::ForgetSpent(_)
                    | Write::Pass(_)
                    | Write::PassUsed(_)
                    | Write::RevokePass(_)
                    | Write::ForgetPasses(_)
                    | Write::About(_) => {}
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
        let chain = TestChain::new(&crash, &clock, &seller, &store);
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
        withdraw_margin: Duration::ZERO,
        waiters_per_channel_max: 4,
        wait_max: Duration::from_secs(1),
        gap_wait_max: Duration::from_secs(1),
        reservation_max: Duration::from_secs(60),
        answers: None,
        passes_max: 0,
    };
    Ledger::open(Arc::<TestStore>::clone(store), Arc::<ManualClock>::clone(clock), limits).await.unwrap()
}
