//! Doubles of the gate's ports, and a client. The ledger and the gate are the real ones.
//!
//! The facilitator double keeps channels in a map, believes every transaction it can decode, and can be told to fail.
//! The store double keeps nothing but what a restart needs.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signer, SigningKey};
use parking_lot::Mutex;
use serde_json::{Value, json};
use turnpike::amount::{Amount, Asset};
use turnpike::chain::Blockhash;
use turnpike::clock::{Clock, ManualClock, UnixMillis};
use turnpike::facilitator::{
    AcceptedDeposit, CloseRequest, DepositRequest, DepositScheme, Facilitator, FacilitatorError, SettledClose,
    SettledDeposit,
};
use turnpike::gate::charge::{Count, Meter, Missing, Report, Term, UnitPrice};
use turnpike::gate::route::{Offer, Payee, Pricing, Route};
use turnpike::gate::{Gate, Options, Retry};
use turnpike::ledger::answers::AnswerLimits;
use turnpike::ledger::channel::{OnChain, Seller, Terms};
use turnpike::ledger::passes::{PassId, PassRecord};
use turnpike::ledger::store::{
    Answer, AnswerRecord, BatchRecord, ChannelRecord, MeteredRecord, Snapshot, SpentRecord, Store, StoreError, Write,
};
use turnpike::ledger::{Ledger, Limits, Purse};
use turnpike::scheme::svm::program::{self, Call, ChannelStatus, voucher_message};
use turnpike::scheme::svm::transaction::Transaction;
use turnpike::scheme::svm::{TOKEN_PROGRAM, USDC_DEVNET};
use turnpike::x402::key::Signature;
use turnpike::x402::network::SOLANA_DEVNET;
use turnpike::x402::wire::PaymentRequirements;
use turnpike::x402::{Key, Reason};

pub const PRICE: u64 = 1_000;
pub const CEILING: u64 = 10_000;
pub const START: UnixMillis = UnixMillis(1_800_000_000_000);

pub fn signing_key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

pub fn address(seed: u8) -> Key {
    Key(signing_key(seed).verifying_key().to_bytes())
}

pub fn seller() -> Arc<Seller> {
    Arc::new(Seller {
        network: SOLANA_DEVNET.parse().unwrap(),
        asset: Arc::new(Asset { address: USDC_DEVNET.to_string().into(), symbol: "USDC".into(), decimals: 6 }),
        mint: USDC_DEVNET,
        token_program: TOKEN_PROGRAM,
        pay_to: address(1),
        fee_payer: address(2),
        receiver_authorizer: address(2),
        withdraw_delay: 3600,
        treasury_owner: address(3),
    })
}

pub fn offer(amount: u64) -> Offer {
    Offer {
        payee: Payee::Svm(seller()),
        amount: amount.into(),
        min_deposit: Some(Amount::new(20_000)),
        max_timeout_seconds: 300,
        memo: None,
    }
}

pub fn route(path: &str, pricing: Pricing) -> Arc<Route> {
    Arc::new(Route {
        name: path.into(),
        host: None,
        methods: Vec::new(),
        path: path.into(),
        pricing,
        upstream: None,
        timeout: None,
        description: Some("a quote".into()),
        mime_type: Some("application/json".into()),
        policy: None,
        scope: path.into(),
        pack: None,
    })
}

pub fn fixed() -> Arc<Route> {
    route("/quote", Pricing::Fixed(vec![offer(PRICE)]))
}

pub fn metered() -> Arc<Route> {
    metered_by("/metered", Meter::charge(http::HeaderName::from_static("x-cost")))
}

/// A route that is charged by two counts in the body.
pub fn tokens(path: &str, missing: Option<Missing>) -> Arc<Route> {
    let term = |pointer: &str, price| Term {
        count: Count::Json(pointer.into()),
        unit_price: UnitPrice::parse(price, 6).unwrap(),
    };
    let terms = vec![term("/usage/prompt_tokens", "0.15"), term("/usage/completion_tokens", "0.60")];
    let meter = Meter { minimum: Amount::new(5), missing, body_bytes_max: 200, ..Meter::of(Report::Counts(terms)) };
    metered_by(path, meter)
}

/// A route that is charged by the body's bytes, a unit each.
pub fn bytes(path: &str) -> Arc<Route> {
    let unit_price = UnitPrice::parse("1", 6).unwrap();
    let report = Report::Counts(vec![Term { count: Count::ResponseBytes, unit_price }]);
    metered_by(path, Meter { body_bytes_max: 200, ..Meter::of(report) })
}

pub fn metered_by(path: &str, meter: Meter) -> Arc<Route> {
    route(path, Pricing::Metered { offers: vec![offer(CEILING)], meter: Some(meter) })
}

/// A store in memory that can be told to fail.
#[derive(Default)]
pub struct MemoryStore {
    pub metered: Mutex<HashMap<Key, MeteredRecord>>,
    pub channels: Mutex<HashMap<Key, ChannelRecord>>,
    pub answers: Mutex<BTreeMap<u64, AnswerRecord>>,
    pub spent: Mutex<Vec<SpentRecord>>,
    pub passes: Mutex<BTreeMap<PassId, PassRecord>>,
    pub failing: Mutex<bool>,
    /// Writes wait for it, where somebody holds it.
    pub disk: tokio::sync::Mutex<()>,
    /// How many writes were asked for.
    pub writes: AtomicUsize,
}

#[async_trait]
impl Store for MemoryStore {
    async fn load(&self) -> Result<Snapshot, StoreError> {
        let metered = self.metered.lock().values().cloned().collect();
        let channels = self.channels.lock().values().cloned().collect();
        let answers = self.answers.lock().values().map(AnswerRecord::mark).collect();
        let spent = self.spent.lock().clone();
        let passes = self.passes.lock().values().cloned().collect();
        Ok(Snapshot { metered, channels, answers, spent, passes, ..Snapshot::default() })
    }

    async fn write(&self, writes: Vec<Write>) -> Result<(), StoreError> {
        if *self.failing.lock() {
            return Err(StoreError("disk full".to_owned()));
        }
        self.writes.fetch_add(1, Ordering::SeqCst);
        drop(self.disk.lock().await);
        for write in writes {
            match write {
                Write::Metered(record) => _ = self.metered.lock().insert(record.terms.id, *record),
                Write::ForgetMetered(id) => _ = self.metered.lock().remove(&id),
                Write::Channel(record) => _ = self.channels.lock().insert(record.terms.id, *record),
                Write::Answer(record) => _ = self.answers.lock().insert(record.place, *record),
                Write::ForgetAnswers(places) => self.answers.lock().retain(|place, _| !places.contains(place)),
                Write::Spend(spend) => {
                    let mut spent = self.spent.lock();
                    let is_this = |record: &SpentRecord| record.payer == spend.payer && record.scope == spend.scope;
                    let before = spent.iter().find(|record| is_this(record)).map(|record| (record.day, record.amount));
                    let (day, amount) = spend.after(before);
                    spent.retain(|record| !is_this(record));
                    spent.push(SpentRecord { payer: spend.payer, scope: spend.scope, day, amount });
                }
                Write::ForgetSpent(before) => self.spent.lock().retain(|record| record.day >= before),
                Write::Pass(pass) => _ = self.passes.lock().insert(pass.id, *pass),
                Write::PassUsed(call) => self.passes.lock().get_mut(&call.id).unwrap().used += 1,
                Write::RevokePass(pass) => self.passes.lock().get_mut(&pass.id).unwrap().revoked_at = pass.revoked_at,
                Write::ForgetPasses(ids) => self.passes.lock().retain(|id, _| !ids.contains(id)),
                Write::ForgetChannel(_) | Write::Batch(_) | Write::About(_) => {}
            }
        }
        Ok(())
    }

    async fn batches(&self, _limit: usize) -> Result<Vec<BatchRecord>, StoreError> {
        Ok(Vec::new())
    }

    async fn answer(&self, place: u64) -> Result<Option<Answer>, StoreError> {
        Ok(self.answers.lock().get(&place).map(|record| record.answer.clone()))
    }
}

/// A facilitator over channels in a map.
pub struct FakeFacilitator {
    clock: Arc<ManualClock>,
    pub channels: Mutex<HashMap<Key, OnChain>>,
    /// What was asked, by the method's name; `close_metered` with its charge.
    pub calls: Mutex<Vec<String>>,
    failures: Mutex<HashMap<&'static str, VecDeque<FacilitatorError>>>,
    /// Methods that do what they do and then say that it is pending.
    pub pending: Mutex<Vec<&'static str>>,
    /// What a deposit brings a channel to, where it is not what was asked.
    pub brings_to: Mutex<Option<Amount>>,
    transactions: AtomicU8,
}

impl FakeFacilitator {
    fn new(clock: Arc<ManualClock>) -> Self {
        Self {
            clock,
            channels: Mutex::default(),
            calls: Mutex::default(),
            failures: Mutex::default(),
            pending: Mutex::default(),
            brings_to: Mutex::default(),
            transactions: AtomicU8::new(1),
        }
    }

    /// The next call of `method` fails.
    pub fn fail(&self, method: &'static str, error: FacilitatorError) {
        self.failures.lock().entry(method).or_default().push_back(error);
    }

    pub fn unavailable(&self, method: &'static str, times: usize) {
        for _ in 0..times {
            self.fail(method, FacilitatorError::Unavailable("http://secret-endpoint".to_owned()));
        }
    }

    pub fn refuse(&self, method: &'static str, reason: Reason) {
        self.fail(method, FacilitatorError::Refused { reason, detail: "as told".to_owned() });
    }

    pub fn count(&self, method: &str) -> usize {
        self.calls.lock().iter().filter(|call| call.starts_with(method)).count()
    }

    pub fn open(&self, terms: &Terms, deposit: u64) {
        self.put(terms.id, ChannelStatus::Open, deposit.into(), Amount::ZERO);
    }

    pub fn put(&self, id: Key, status: ChannelStatus, deposit: Amount, claimed: Amount) -> OnChain {
        let closing_since = if status == ChannelStatus::Closing { START.seconds() } else { 0 };
        let channel =
            OnChain { status, deposit, claimed, distributed: Amount::ZERO, closing_since, read_at: self.clock.now() };
        self.channels.lock().insert(id, channel);
        channel
    }

    fn called(&self, method: &'static str, what: &str) -> Result<(), FacilitatorError> {
        self.calls.lock().push(format!("{method}{what}"));
        let error = self.failures.lock().get_mut(method).and_then(VecDeque::pop_front);
        error.map_or(Ok(()), Err)
    }

    fn sent(&self, method: &'static str) -> Result<Signature, FacilitatorError> {
        let transaction = Signature([self.transactions.fetch_add(1, Ordering::SeqCst); 64]);
        if self.pending.lock().contains(&method) {
            return Err(FacilitatorError::Pending { transaction });
        }
        Ok(transaction)
    }
}

#[async_trait]
impl Facilitator for FakeFacilitator {
    async fn accept_deposit(&self, request: DepositRequest) -> Result<AcceptedDeposit, FacilitatorError> {
        self.called("accept_deposit", "")?;
        if request.scheme == DepositScheme::Upto && self.channels.lock().contains_key(&request.terms.id) {
            let detail = "exists".to_owned();
            return Err(FacilitatorError::Refused { reason: Reason::UptoChannelAlreadyOpen, detail });
        }
        let bytes = STANDARD.decode(&request.transaction).unwrap_or_default();
        let transaction = Transaction::decode(&bytes).map_err(|error| FacilitatorError::Refused {
            reason: Reason::BatchSetupTransaction,
            detail: error.to_string(),
        })?;
        let before = request.known.map_or(Amount::ZERO, |known| known.deposit);
        let deposit_after = before.checked_add(request.amount).unwrap();
        Ok(AcceptedDeposit { opens: request.known.is_none(), request, transaction, deposit_after })
    }

    async fn settle_deposit(&self, deposit: AcceptedDeposit) -> Result<SettledDeposit, FacilitatorError> {
        self.called("settle_deposit", "")?;
        let after = self.brings_to.lock().unwrap_or(deposit.deposit_after);
        let channel = self.put(deposit.request.terms.id, ChannelStatus::Open, after, Amount::ZERO);
        Ok(SettledDeposit { transaction: self.sent("settle_deposit")?, channel })
    }

    async fn read_channel(&self, terms: &Terms) -> Result<Option<OnChain>, FacilitatorError> {
        self.called("read_channel", "")?;
        let channel = self.channels.lock().get(&terms.id).copied();
        Ok(channel.map(|channel| OnChain { read_at: self.clock.now(), ..channel }))
    }

    async fn close(&self, request: CloseRequest) -> Result<SettledClose, FacilitatorError> {
        let claimed = request.voucher.map_or(Amount::ZERO, |voucher| voucher.cumulative);
        self.called("close", &format!(" {claimed}"))?;
        let deposit = self.channels.lock().get(&request.terms.id).map_or(Amount::ZERO, |channel| channel.deposit);
        self.put(request.terms.id, ChannelStatus::Distributed, deposit, claimed);
        let transaction = self.sent("close")?;
        Ok(SettledClose { transaction, returned: deposit.saturating_sub(claimed), claimed, deposit })
    }

    async fn close_metered(
        &self,
        terms: &Terms,
        charge: Amount,
        deposit: Amount,
        _expires_at: i64,
    ) -> Result<SettledClose, FacilitatorError> {
        self.called("close_metered", &format!(" {charge}"))?;
        self.put(terms.id, ChannelStatus::Distributed, deposit, charge);
        let transaction = self.sent("close_metered")?;
        Ok(SettledClose { transaction, returned: deposit.saturating_sub(charge), claimed: charge, deposit })
    }

    fn hints(&self) -> Option<Blockhash> {
        Some(Blockhash { hash: [4; 32], last_valid_block_height: 999, slot: 341_000_000 })
    }
}

/// A gate over doubles, and what it stands on.
pub struct House {
    pub clock: Arc<ManualClock>,
    pub store: Arc<MemoryStore>,
    pub ledger: Arc<Ledger>,
    pub facilitator: Arc<FakeFacilitator>,
    pub gate: Arc<Gate>,
}

impl House {
    pub async fn new() -> Self {
        Self::over(Arc::new(MemoryStore::default())).await
    }

    pub async fn over(store: Arc<MemoryStore>) -> Self {
        Self::with(store, Options::default()).await
    }

    /// With options of its own, but for how often it tries again.
    pub async fn with(store: Arc<MemoryStore>, options: Options) -> Self {
        Self::keeping(store, options, Some(AnswerLimits::default())).await
    }

    /// The same, with limits of its own for kept answers.
    pub async fn keeping(store: Arc<MemoryStore>, options: Options, answers: Option<AnswerLimits>) -> Self {
        let clock = Arc::new(ManualClock::new(START));
        let limits = Limits {
            exposure_max: None,
            channel_exposure_max: None,
            channel_charged_max: None,
            withdraw_margin: Duration::ZERO,
            waiters_per_channel_max: 8,
            wait_max: Duration::from_millis(200),
            gap_wait_max: Duration::from_millis(20),
            reservation_max: Duration::from_secs(60),
            answers,
            passes_max: 100,
        };
        let ledger = Ledger::open_in(Arc::clone(&store) as _, Arc::clone(&clock) as _, limits, Purse::by_payer());
        let ledger = ledger.await.unwrap();
        let facilitator = Arc::new(FakeFacilitator::new(Arc::clone(&clock)));
        let retry = Retry {
            wait_min: Duration::from_millis(1),
            wait_max: Duration::from_millis(2),
            tries_in_request_max: 3,
            landing_max: Duration::from_secs(120),
        };
        let gate = Gate::new(
            Arc::clone(&ledger),
            [(seller().network.clone(), Arc::clone(&facilitator) as _)],
            Arc::clone(&clock) as _,
            Options { retry, ..options },
        );
        Self { clock, store, ledger, facilitator, gate }
    }
}

/// A paying client with one channel.
pub struct Client {
    pub key: SigningKey,
    pub terms: Terms,
}

impl Client {
    /// For `batch-settlement`: the payer signs its own vouchers.
    pub fn new(seed: u8) -> Self {
        let payer = address(seed);
        Self { key: signing_key(seed), terms: Terms::derive(seller(), payer, payer, 42, 341_000_000) }
    }

    /// For `upto`: our receiver authorizer signs.
    pub fn metered(seed: u8) -> Self {
        let terms = Terms::derive(seller(), address(seed), seller().receiver_authorizer, 42, 341_000_000);
        Self { key: signing_key(seed), terms }
    }

    pub fn voucher(&self, cumulative: u64) -> Value {
        let signature = self.key.sign(&voucher_message(&self.terms.id, cumulative, 0)).to_bytes();
        json!({
            "channelId": self.terms.id,
            "maxClaimableAmount": cumulative.to_string(),
            "expiresAt": 0,
            "signature": Signature(signature),
        })
    }

    pub fn pays(&self, cumulative: u64) -> Value {
        json!({ "type": "voucher", "channelConfig": self.terms.config(), "voucher": self.voucher(cumulative) })
    }

    pub fn refund(&self, cumulative: u64) -> Value {
        json!({ "type": "refund", "channelConfig": self.terms.config(), "voucher": self.voucher(cumulative) })
    }

    pub fn deposits(&self, amount: u64, cumulative: u64) -> Value {
        json!({
            "type": "deposit",
            "channelConfig": self.terms.config(),
            "voucher": self.voucher(cumulative),
            "deposit": { "amount": amount.to_string(), "transaction": self.transaction(amount) },
        })
    }

    pub fn opens(&self) -> Value {
        json!({
            "from": self.terms.payer,
            "maxAmount": CEILING.to_string(),
            "expiresAt": START.seconds() + 300,
            "validAfter": START.seconds(),
            "nonce": self.terms.salt.to_string(),
            "openSlot": self.terms.open_slot.to_string(),
            "channelId": self.terms.id,
            "deposit": CEILING.to_string(),
            "authorizedSigner": self.terms.authorizer,
            "openTransaction": self.transaction(CEILING),
        })
    }

    /// An `open` that the payer has signed.
    fn transaction(&self, deposit: u64) -> String {
        let seller = seller();
        let call = Call::Open {
            salt: self.terms.salt,
            deposit,
            grace_period: seller.withdraw_delay,
            open_slot: self.terms.open_slot,
            recipients: program::all_to(seller.pay_to).to_vec(),
        };
        let open = program::open(&self.terms.accounts(), self.terms.authorizer, &call);
        let mut transaction = Transaction::build(seller.fee_payer, &[open], [4; 32]).unwrap();
        let signature = Signature(self.key.sign(transaction.message()).to_bytes());
        transaction.set_signature(&self.terms.payer, signature).unwrap();
        STANDARD.encode(transaction.encode())
    }
}

/// The same with an id (extension `payment-identifier`).
pub fn identified(accepted: &PaymentRequirements, payload: &Value, id: &Value) -> Vec<u8> {
    let extensions = json!({ "payment-identifier": { "info": { "required": false, "id": id } } });
    encode(&json!({ "x402Version": 2, "accepted": accepted, "payload": payload, "extensions": extensions }))
}

/// A payment header over the offer that a challenge made.
pub fn header(accepted: &PaymentRequirements, payload: &Value) -> Vec<u8> {
    encode(&json!({ "x402Version": 2, "accepted": accepted, "payload": payload }))
}

pub fn encode(value: &Value) -> Vec<u8> {
    STANDARD.encode(serde_json::to_vec(value).unwrap()).into_bytes()
}
