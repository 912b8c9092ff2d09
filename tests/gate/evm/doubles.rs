//! Doubles for EVM networks: a facilitator over channels and nonces in a map, an authorizer, and clients with real
//! keys.
//!
//! The facilitator does what the reference one does as far as the gate can tell, and can be told to fail before it does
//! anything, or after, or to wait.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use secp256k1::ecdsa::RecoverableSignature;
use secp256k1::{Message, PublicKey, SecretKey};
use serde_json::{Map, Value, json};
use tokio::sync::Semaphore;
use turnpike::amount::Amount;
use turnpike::clock::{Clock, ManualClock};
use turnpike::facilitator::FacilitatorError;
use turnpike::facilitator::authorizer::{ReceiverAuthorizer, Refund, RefundAuthorization};
use turnpike::facilitator::interface::{InterfaceError, Payment, Settled, Supported, Verified, X402Facilitator};
use turnpike::gate::charge::{Meter, Missing};
use turnpike::gate::evm::{EvmNetwork, EvmSide, Served};
use turnpike::gate::route::{EvmScheme, Offer, Payee, Pricing, Route};
use turnpike::gate::{Gate, Options, Retry};
use turnpike::ledger::answers::AnswerLimits;
use turnpike::ledger::channel::Evm;
use turnpike::ledger::memory::MemoryStore;
use turnpike::ledger::store::RecordOf;
use turnpike::ledger::{Ledger, Limits, Purse};
use turnpike::scheme::evm::eip712::{
    Domain, Permit2Transfer, TransferAuthorization, Witness, deposit_nonce, permit2_digest,
    receive_with_authorization_digest, transfer_with_authorization_digest, voucher_digest,
};
use turnpike::scheme::evm::signature::address_of;
use turnpike::scheme::evm::{EvmSeller, EvmTerms, TransferMethod, assets, contracts};
use turnpike::x402::Network;
use turnpike::x402::evm::{Address, AnySignature, B256, EvmSignature, U256};

use crate::doubles::{CEILING, House, MemoryStore as SvmStore, PRICE, START, offer as solana_offer, route};
use crate::upstream::Site;

/// How long before the end of a withdrawal no more credit is given.
pub const MARGIN: Duration = Duration::from_secs(300);
pub const DELAY: u64 = 3600;

pub struct Wallet(SecretKey);

impl Wallet {
    pub fn new(seed: u8) -> Self {
        Self(SecretKey::from_secret_bytes([seed; 32]).unwrap())
    }

    pub fn address(&self) -> Address {
        address_of(&PublicKey::from_secret_key(&self.0))
    }

    pub fn sign(&self, digest: &B256) -> AnySignature {
        let signature = RecoverableSignature::sign_ecdsa_recoverable(Message::from_digest(digest.0), &self.0);
        let (id, compact) = signature.serialize_compact();
        let mut bytes = [27 + id.to_u8(); 65];
        bytes[..64].copy_from_slice(&compact);
        EvmSignature(bytes).into()
    }
}

pub fn seller(transfer_method: TransferMethod) -> Arc<EvmSeller> {
    let network = Network::of_short_name("base-sepolia").unwrap();
    let usdc = assets::by_symbol(&network, "USDC").unwrap();
    Arc::new(EvmSeller {
        network,
        chain_id: usdc.chain_id,
        asset: Arc::new(usdc.asset()),
        token: usdc.address,
        token_name: usdc.name.into(),
        token_version: usdc.version.into(),
        transfer_method,
        pay_to: Wallet::new(1).address(),
        receiver_authorizer: Wallet::new(2).address(),
        withdraw_delay: DELAY,
        domain: Domain::batch_settlement(usdc.chain_id),
    })
}

/// Who settles `upto`.
pub fn settler() -> Address {
    Wallet::new(3).address()
}

pub fn offer(scheme: EvmScheme, method: TransferMethod, amount: u64) -> Offer {
    Offer {
        payee: Payee::Evm(seller(method), scheme),
        amount: amount.into(),
        min_deposit: Some(Amount::new(20_000)),
        max_timeout_seconds: 60,
        memo: None,
    }
}

pub fn metered(path: &str, scheme: EvmScheme, missing: Option<Missing>) -> Arc<Route> {
    let meter = Meter { missing, ..Meter::charge(http::HeaderName::from_static("x-cost")) };
    let offers = vec![offer(scheme, TransferMethod::Eip3009, CEILING)];
    route(path, Pricing::Metered { offers, meter: Some(meter) })
}

pub fn fixed(path: &str, scheme: EvmScheme, method: TransferMethod) -> Arc<Route> {
    route(path, Pricing::Fixed(vec![offer(scheme, method, PRICE)]))
}

/// Sold on Solana first, and then here.
fn both() -> Arc<Route> {
    let here = offer(EvmScheme::BatchSettlement, TransferMethod::Eip3009, PRICE);
    route("/both", Pricing::Fixed(vec![solana_offer(PRICE), here]))
}

/// One route for each way to pay.
fn routes() -> Vec<(&'static str, Arc<Route>)> {
    use EvmScheme::{BatchSettlement, Exact, Upto};
    vec![
        ("/batch", fixed("/batch", BatchSettlement, TransferMethod::Eip3009)),
        ("/batch/metered", metered("/batch/metered", BatchSettlement, None)),
        ("/batch/strict", metered("/batch/strict", BatchSettlement, Some(Missing::Refuse))),
        ("/both", both()),
        ("/exact", fixed("/exact", Exact, TransferMethod::Eip3009)),
        ("/exact/permit2", fixed("/exact/permit2", Exact, TransferMethod::Permit2)),
        ("/upto", metered("/upto", Upto, None)),
        ("/upto/strict", metered("/upto/strict", Upto, Some(Missing::Refuse))),
        ("/upto/fixed", fixed("/upto/fixed", Upto, TransferMethod::Eip3009)),
    ]
}

/// What goes wrong at a call.
pub enum Goes {
    /// Nothing.
    Well,
    /// Nothing is done.
    Before(InterfaceError),
    /// It is done, and then this is said.
    After(InterfaceError),
    /// It is done, and nothing is said of the channel.
    Silent,
    /// It never comes back.
    Hangs,
}

pub fn refused(reason: &str) -> InterfaceError {
    InterfaceError::Refused { reason: reason.to_owned(), detail: None }
}

pub fn unavailable() -> InterfaceError {
    InterfaceError::Unavailable("https://secret-endpoint".to_owned())
}

pub fn unknown(transaction: Option<&str>) -> InterfaceError {
    InterfaceError::Unknown { transaction: transaction.map(str::to_owned), detail: "secret-endpoint broke off".into() }
}

/// A channel on chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OnChain {
    pub balance: u128,
    pub claimed: u128,
    pub withdraw_requested_at: i64,
    pub refund_nonce: u64,
}

#[derive(Default)]
pub struct FakeX402 {
    pub channels: Mutex<HashMap<String, OnChain>>,
    /// Nonces that are used, of deposits too.
    pub used: Mutex<HashSet<String>>,
    /// What moved by `exact` and `upto`.
    pub moved: Mutex<Vec<String>>,
    /// What was asked: `verify voucher`, `settle upto 4200`.
    pub calls: Mutex<Vec<String>>,
    pub asked: Mutex<Vec<Payment>>,
    goes: Mutex<HashMap<&'static str, VecDeque<Goes>>>,
    /// Settlements wait for it, where there is one.
    pub lets: Mutex<Option<Arc<Semaphore>>>,
    /// Whether contracts accept what they are said to have signed.
    pub contracts_refuse: Mutex<bool>,
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn number(value: &Value, pointer: &str) -> u128 {
    text(value, pointer).parse().unwrap_or(0)
}

impl FakeX402 {
    /// Something goes wrong at the next call of `method`; what was said before comes first.
    pub fn goes(&self, method: &'static str, what: Goes) {
        self.goes.lock().entry(method).or_default().push_back(what);
    }

    pub fn count(&self, call: &str) -> usize {
        self.calls.lock().iter().filter(|made| made.starts_with(call)).count()
    }

    pub fn open(&self, terms: &EvmTerms, balance: u128) {
        self.put(terms, OnChain { balance, ..OnChain::default() });
    }

    pub fn put(&self, terms: &EvmTerms, channel: OnChain) {
        self.channels.lock().insert(terms.id.to_string(), channel);
    }

    pub fn channel(&self, terms: &EvmTerms) -> OnChain {
        self.channels.lock().get(&terms.id.to_string()).copied().unwrap_or_default()
    }

    fn kind(payment: &Payment) -> String {
        let scheme = text(&payment.requirements, "/scheme");
        let kind = text(&payment.payload, "/payload/type");
        if scheme == "batch-settlement" { kind.to_owned() } else { scheme.to_owned() }
    }

    fn state(&self, id: &str) -> Map<String, Value> {
        let channel = self.channels.lock().get(id).copied().unwrap_or_default();
        let state = json!({
            "channelId": id,
            "balance": channel.balance.to_string(),
            "totalClaimed": channel.claimed.to_string(),
            "withdrawRequestedAt": channel.withdraw_requested_at,
            "refundNonce": channel.refund_nonce.to_string(),
        });
        state.as_object().unwrap().clone()
    }

    /// The nonce of a payment that an authorization makes, by the contract that counts it.
    fn nonce(payload: &Value) -> String {
        let eip3009 = text(payload, "/payload/authorization/nonce");
        format!("{eip3009}{}", text(payload, "/payload/permit2Authorization/nonce"))
    }

    fn check(&self, payment: &Payment) -> Result<(), InterfaceError> {
        let payload = &payment.payload;
        let id = text(payload, "/payload/voucher/channelId");
        let channel = self.channels.lock().get(id).copied().unwrap_or_default();
        let cumulative = number(payload, "/payload/voucher/maxClaimableAmount");
        let code = |what: &str| refused(&format!("invalid_batch_settlement_evm_{what}"));
        if *self.contracts_refuse.lock() {
            return Err(code("voucher_signature"));
        }
        match Self::kind(payment).as_str() {
            "deposit" if cumulative > channel.balance + number(payload, "/payload/deposit/amount") => {
                Err(code("cumulative_exceeds_balance"))
            }
            "deposit" => Ok(()),
            "voucher" | "refund" if channel.balance == 0 => Err(code("channel_not_found")),
            "voucher" | "refund" if cumulative > channel.balance => Err(code("cumulative_exceeds_balance")),
            "voucher" | "refund" => Ok(()),
            _ if self.used.lock().contains(&Self::nonce(payload)) => Err(used(payload)),
            _ => Ok(()),
        }
    }

    fn perform(&self, payment: &Payment) -> Result<Settled, InterfaceError> {
        let payload = &payment.payload;
        let id = text(payload, "/payload/voucher/channelId");
        let amount = match Self::kind(payment).as_str() {
            "deposit" => {
                let salt = text(payload, "/payload/deposit/authorization/erc3009Authorization/salt");
                if !self.used.lock().insert(salt.to_owned()) {
                    return Err(refused("invalid_batch_settlement_evm_deposit_simulation_failed"));
                }
                let amount = number(payload, "/payload/deposit/amount");
                self.channels.lock().entry(id.to_owned()).or_default().balance += amount;
                amount
            }
            "refund" => {
                let amount = number(payload, "/payload/amount");
                let mut channels = self.channels.lock();
                let channel = channels.get_mut(id).unwrap();
                assert_eq!(text(payload, "/payload/refundNonce"), channel.refund_nonce.to_string());
                channel.claimed = channel.claimed.max(number(payload, "/payload/claims/0/totalClaimed"));
                channel.balance -= amount;
                assert!(channel.claimed <= channel.balance, "a refund took what was charged");
                channel.refund_nonce += 1;
                amount
            }
            _ => {
                if !self.used.lock().insert(Self::nonce(payload)) {
                    return Err(used(payload));
                }
                let asked = &payment.requirements;
                let amount = number(asked, "/amount").max(number(asked, "/maxAmountRequired"));
                let mut moved = self.moved.lock();
                moved.push(amount.to_string());
                amount
            }
        };
        let state = if id.is_empty() { Map::new() } else { self.state(id) };
        let extra = [("channelState".to_owned(), Value::Object(state))].into_iter().filter(|_| !id.is_empty());
        Ok(Settled {
            transaction: format!("0x{:064x}", self.calls.lock().len()),
            payer: None,
            amount: Some(amount.to_string()),
            extra: extra.collect(),
        })
    }

    fn called(&self, method: &'static str, payment: &Payment) -> Option<Goes> {
        let kind = Self::kind(payment);
        let amount = match (method, kind.as_str()) {
            ("settle", "upto") => format!(" {}", text(&payment.requirements, "/amount")),
            ("settle", "refund") => format!(" {}", text(&payment.payload, "/payload/amount")),
            _ => String::new(),
        };
        self.calls.lock().push(format!("{method} {kind}{amount}"));
        self.asked.lock().push(payment.clone());
        self.goes.lock().get_mut(method).and_then(VecDeque::pop_front)
    }
}

fn used(payload: &Value) -> InterfaceError {
    let permit2 = payload.pointer("/payload/permit2Authorization").is_some();
    refused(if permit2 { "permit2_invalid_nonce" } else { "invalid_exact_evm_nonce_already_used" })
}

#[async_trait]
impl X402Facilitator for FakeX402 {
    async fn supported(&self) -> Result<Supported, InterfaceError> {
        Ok(Supported::default())
    }

    async fn verify(&self, payment: &Payment) -> Result<Verified, InterfaceError> {
        let goes = self.called("verify", payment);
        if let Some(Goes::Before(error) | Goes::After(error)) = goes {
            return Err(error);
        }
        self.check(payment)?;
        let id = text(&payment.payload, "/payload/voucher/channelId");
        let extra = if id.is_empty() || matches!(goes, Some(Goes::Silent)) { Map::new() } else { self.state(id) };
        Ok(Verified { payer: None, extra })
    }

    async fn settle(&self, payment: &Payment) -> Result<Settled, InterfaceError> {
        let goes = self.called("settle", payment);
        let lets = self.lets.lock().clone();
        if let Some(lets) = lets {
            lets.acquire().await.unwrap().forget();
        }
        match goes {
            Some(Goes::Before(error)) => Err(error),
            Some(Goes::After(error)) => self.perform(payment).and(Err(error)),
            Some(Goes::Silent) => self.perform(payment).map(|settled| Settled { extra: Map::new(), ..settled }),
            Some(Goes::Hangs) => std::future::pending().await,
            Some(Goes::Well) | None => self.perform(payment),
        }
    }
}

/// Signs whatever it is shown, and keeps it.
#[derive(Default)]
pub struct FakeAuthorizer {
    pub refunds: Mutex<Vec<Refund>>,
    pub fails: Mutex<Option<FacilitatorError>>,
}

#[async_trait]
impl ReceiverAuthorizer for FakeAuthorizer {
    async fn authorize_refund(&self, refund: &Refund) -> Result<RefundAuthorization, FacilitatorError> {
        if let Some(error) = self.fails.lock().take() {
            return Err(error);
        }
        self.refunds.lock().push(refund.clone());
        let signature: AnySignature = EvmSignature([7; 65]).into();
        let claim = refund.voucher.is_some().then(|| signature.clone());
        Ok(RefundAuthorization { claim, refund: signature })
    }
}

/// A gate that is paid on an EVM network, and a site before it.
pub struct EvmHouse {
    pub clock: Arc<ManualClock>,
    pub ledger: Arc<Ledger<Evm>>,
    pub facilitator: Arc<FakeX402>,
    pub authorizer: Arc<FakeAuthorizer>,
    pub gate: Arc<Gate>,
    pub site: Site,
}

impl EvmHouse {
    pub async fn new() -> Self {
        Self::with(Options::default(), Served { upto_facilitator: Some(settler()), exact_v1: true }).await
    }

    pub async fn with(options: Options, served: Served) -> Self {
        let svm = House::over(Arc::new(SvmStore::default())).await;
        let clock = svm.clock;
        let limits = Limits {
            withdraw_margin: MARGIN,
            waiters_per_channel_max: 8,
            wait_max: Duration::from_millis(500),
            gap_wait_max: Duration::from_millis(100),
            reservation_max: Duration::from_secs(60),
            answers: Some(AnswerLimits::default()),
            ..Limits::default()
        };
        let store = Arc::new(MemoryStore::<Evm>::default());
        let ledger = Ledger::open_in(store, Arc::clone(&clock) as _, limits, Purse::by_payer()).await.unwrap();
        let (facilitator, authorizer) = (Arc::new(FakeX402::default()), Arc::new(FakeAuthorizer::default()));
        let network =
            EvmNetwork { facilitator: Arc::clone(&facilitator) as _, authorizer: Arc::clone(&authorizer) as _, served };
        let networks = [(seller(TransferMethod::Eip3009).network.clone(), network)].into();
        let evm = Some(EvmSide { ledger: Arc::clone(&ledger), networks });
        let (wait_min, wait_max) = (Duration::from_millis(1), Duration::from_millis(2));
        let retry = Retry { wait_min, wait_max, tries_in_request_max: 3, landing_max: Duration::from_secs(120) };
        let options = Options { retry, ..options };
        let gate = Gate::with_evm(svm.ledger, [], evm, Arc::clone(&clock) as _, options);
        let site = Site::of_routes(&gate, routes());
        Self { clock, ledger, facilitator, authorizer, gate, site }
    }

    pub fn record(&self, client: &Client) -> Option<RecordOf<Evm>> {
        self.ledger.channel(&client.terms.id)
    }

    /// What a client was charged in all.
    pub fn charged(&self, client: &Client) -> Option<u128> {
        self.record(client).map(|record| record.charged.get())
    }

    pub fn now(&self) -> u64 {
        u64::try_from(self.clock.now().seconds()).unwrap()
    }
}

/// A paying client with one channel.
pub struct Client {
    pub wallet: Wallet,
    pub terms: EvmTerms,
}

impl Client {
    pub fn new(seed: u8) -> Self {
        let wallet = Wallet::new(seed);
        let address = wallet.address();
        let terms = EvmTerms::derive(seller(TransferMethod::Eip3009), address, address, B256([seed; 32]));
        Self { wallet, terms }
    }

    /// One whose payer judges vouchers for itself (ERC-1271).
    pub fn contract(seed: u8) -> Self {
        let wallet = Wallet::new(seed);
        let seller = seller(TransferMethod::Eip3009);
        let terms = EvmTerms::derive(seller, wallet.address(), Address::ZERO, B256([seed; 32]));
        Self { wallet, terms }
    }

    pub fn voucher(&self, cumulative: u64) -> Value {
        let digest = voucher_digest(&self.terms.seller.domain, &self.terms.id, cumulative.into());
        json!({
            "channelId": self.terms.id,
            "maxClaimableAmount": cumulative.to_string(),
            "signature": self.wallet.sign(&digest),
        })
    }

    pub fn pays(&self, cumulative: u64) -> Value {
        json!({ "type": "voucher", "channelConfig": self.terms.config(), "voucher": self.voucher(cumulative) })
    }

    pub fn refund(&self, cumulative: u64, amount: Option<u64>) -> Value {
        let mut payload = json!({
            "type": "refund", "channelConfig": self.terms.config(), "voucher": self.voucher(cumulative),
        });
        if let Some(amount) = amount {
            payload["amount"] = amount.to_string().into();
        }
        payload
    }

    /// A deposit with a voucher; `salt` makes it another one.
    pub fn deposits(&self, amount: u64, cumulative: u64, salt: u8) -> Value {
        let seller = &self.terms.seller;
        let (valid_after, valid_before) = (U256::from(0_u64), U256::from(seconds() + 600));
        let salt = B256([salt; 32]);
        let transfer = TransferAuthorization {
            from: self.terms.payer,
            to: contracts::EIP3009_COLLECTOR,
            value: amount.into(),
            valid_after,
            valid_before,
            nonce: deposit_nonce(&self.terms.id, salt.into()),
        };
        let digest = receive_with_authorization_digest(&seller.token_domain(), &transfer);
        json!({
            "type": "deposit",
            "channelConfig": self.terms.config(),
            "voucher": self.voucher(cumulative),
            "deposit": {
                "amount": amount.to_string(),
                "authorization": { "erc3009Authorization": {
                    "validAfter": valid_after, "validBefore": valid_before, "salt": salt,
                    "signature": self.wallet.sign(&digest),
                } },
            },
        })
    }

    /// A payment of scheme `exact` by EIP-3009.
    pub fn exact(&self, value: u64, nonce: u8) -> Value {
        self.exact_until(value, nonce, seconds() + 60)
    }

    pub fn exact_until(&self, value: u64, nonce: u8, valid_before: u64) -> Value {
        let seller = &self.terms.seller;
        let transfer = TransferAuthorization {
            from: self.wallet.address(),
            to: seller.pay_to,
            value: value.into(),
            valid_after: U256::from(seconds() - 600),
            valid_before: valid_before.into(),
            nonce: B256([nonce; 32]),
        };
        let digest = transfer_with_authorization_digest(&seller.token_domain(), &transfer);
        json!({
            "signature": self.wallet.sign(&digest),
            "authorization": {
                "from": transfer.from, "to": transfer.to, "value": value.to_string(),
                "validAfter": transfer.valid_after, "validBefore": transfer.valid_before, "nonce": transfer.nonce,
            },
        })
    }

    /// A payment of scheme `exact` through Permit2.
    pub fn exact_permit2(&self, amount: u64, nonce: u64) -> Value {
        let (to, valid_after) = (self.terms.seller.pay_to, U256::from(0_u64));
        let witness = Witness::Exact { to, valid_after };
        let words = json!({ "to": to, "validAfter": valid_after });
        self.permit2(contracts::EXACT_PERMIT2_PROXY, amount, nonce, witness, words)
    }

    /// A payment of scheme `upto`.
    pub fn upto(&self, amount: u64, nonce: u64) -> Value {
        let (to, facilitator, valid_after) = (self.terms.seller.pay_to, settler(), U256::from(0_u64));
        let witness = Witness::Upto { to, facilitator, valid_after };
        let words = json!({ "to": to, "facilitator": facilitator, "validAfter": valid_after });
        self.permit2(contracts::UPTO_PERMIT2_PROXY, amount, nonce, witness, words)
    }

    fn permit2(&self, spender: Address, amount: u64, nonce: u64, witness: Witness, words: Value) -> Value {
        let seller = &self.terms.seller;
        let (nonce, deadline) = (U256::from(nonce), U256::from(seconds() + 60));
        let transfer =
            Permit2Transfer { token: seller.token, amount: amount.into(), spender, nonce, deadline, witness };
        let digest = permit2_digest(&Domain::permit2(seller.chain_id), &transfer);
        json!({
            "signature": self.wallet.sign(&digest),
            "permit2Authorization": {
                "permitted": { "token": seller.token, "amount": amount.to_string() },
                "from": self.wallet.address(), "spender": spender, "nonce": nonce, "deadline": deadline,
                "witness": words,
            },
        })
    }
}

fn seconds() -> u64 {
    u64::try_from(START.seconds()).unwrap()
}
