//! Doubles behind the settlement's ports: a facilitator in front of the contract, a reader of channels, a signer, each with
//! faults, and with points at which the power may fail.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use parking_lot::Mutex;
use secp256k1::ecdsa::RecoverableSignature;
use secp256k1::{Message, PublicKey, SecretKey};
use serde::Deserialize;
use serde_json::Value;
use turnpike::amount::Amount;
use turnpike::clock::Clock;
use turnpike::facilitator::channels::EvmChannels;
use turnpike::facilitator::interface::{InterfaceError, Payment, Settled, Supported, Verified, X402Facilitator};
use turnpike::ledger::channel::{Evm, EvmOnChain};
use turnpike::ledger::store::RecordOf;
use turnpike::scheme::batch_settlement_evm::state::EvmChannelState;
use turnpike::scheme::evm::eip712::{ChannelConfig, Domain, channel_id};
use turnpike::scheme::evm::{EvmSeller, signature};
use turnpike::signer::rules::evm::EvmJudge;
use turnpike::signer::{Approved, EvmRequest, EvmSigner, SignerError};
use turnpike::x402::evm::{Address, AnySignature, B256, EvmSignature};

use crate::chance::Power;
use crate::contract::{Contract, Revert, Row};

/// A plain key.
#[derive(Clone)]
pub struct Key(SecretKey);

impl Key {
    pub fn new(n: u32) -> Self {
        let mut secret = [7; 32];
        secret[..4].copy_from_slice(&n.to_be_bytes());
        Self(SecretKey::from_secret_bytes(secret).unwrap())
    }

    pub fn address(&self) -> Address {
        signature::address_of(&PublicKey::from_secret_key(&self.0))
    }

    pub fn sign(&self, digest: &B256) -> EvmSignature {
        let signature = RecoverableSignature::sign_ecdsa_recoverable(Message::from_digest(digest.0), &self.0);
        let (id, compact) = signature.serialize_compact();
        let mut signed = [27 + id.to_u8(); 65];
        signed[..64].copy_from_slice(&compact);
        EvmSignature(signed)
    }
}

/// A signer with one whole key in place of a threshold key, behind the same rules.
pub struct OneKey {
    pub key: Key,
    pub judge: Arc<EvmJudge>,
    pub power: Arc<Power>,
    /// Says that it has no quorum.
    pub down: AtomicBool,
}

#[async_trait]
impl EvmSigner for OneKey {
    fn address(&self) -> Address {
        self.key.address()
    }

    async fn sign(&self, approved: Approved<EvmRequest>) -> Result<EvmSignature, SignerError> {
        self.power.point().await;
        if self.down.load(Ordering::Relaxed) {
            return Err(SignerError::NoQuorum("one share of two".to_owned()));
        }
        let signature = self.key.sign(self.judge.judge(approved.request())?.digest());
        self.power.point().await;
        Ok(signature)
    }

    fn health(&self) -> Result<(), String> {
        Ok(())
    }
}

/// What goes wrong when a facilitator is asked to settle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It refuses, and sends nothing.
    Refuse,
    /// It refuses because its own node fails it.
    RefuseUnread,
    /// It cannot be asked.
    Unavailable,
    /// It breaks off before it has sent anything.
    BreakBefore,
    /// It breaks off after the transaction was mined.
    BreakAfter,
    /// It breaks off, and the transaction is mined much later: at [`Facilitator::release`].
    Late,
    /// It refuses what it has carried out.
    RefuseAfter,
    /// It says that all is done, and has not done it.
    Lie,
}

/// A facilitator in front of the contract.
pub struct Facilitator {
    contract: Arc<Contract>,
    domain: Domain,
    power: Arc<Power>,
    shared: Arc<Shared>,
}

/// What of a facilitator outlives the process that asks it.
#[derive(Default)]
pub struct Shared {
    faults: Mutex<VecDeque<(&'static str, Fault)>>,
    always: Mutex<Vec<(&'static str, Fault)>>,
    late: Mutex<Vec<Step>>,
    asked: Mutex<Vec<Value>>,
    /// Pays out nothing with a transaction and `"0"`, instead of refusing it.
    pub pays_nothing: AtomicBool,
    /// Answers to `verify` and payouts are of one block ago.
    pub lags: AtomicBool,
    /// `verify` cannot be asked for these channels.
    pub unverified: Mutex<HashSet<B256>>,
}

impl Shared {
    /// The next requests of this type fail so, one by one.
    pub fn fault(&self, kind: &'static str, faults: impl IntoIterator<Item = Fault>) {
        self.faults.lock().extend(faults.into_iter().map(|fault| (kind, fault)));
    }

    /// Every request of this type fails so.
    pub fn always(&self, kind: &'static str, fault: Option<Fault>) {
        let mut always = self.always.lock();
        always.retain(|(of, _)| *of != kind);
        always.extend(fault.map(|fault| (kind, fault)));
    }

    /// Nothing goes wrong any more.
    pub fn mend(&self) {
        self.faults.lock().clear();
        self.always.lock().clear();
        self.lags.store(false, Ordering::Relaxed);
        self.pays_nothing.store(false, Ordering::Relaxed);
        self.unverified.lock().clear();
    }

    /// What it was asked for, of one type.
    pub fn asked(&self, kind: &str) -> Vec<Value> {
        self.asked.lock().iter().filter(|asked| asked["type"] == kind).cloned().collect()
    }

    /// Transactions that were held back are mined now; those that revert change nothing.
    pub fn release(&self, contract: &Contract) {
        for step in std::mem::take(&mut *self.late.lock()) {
            let _ = step.carry_out(contract);
        }
    }

    fn next_fault(&self, kind: &str) -> Option<Fault> {
        let always = self.always.lock().iter().find(|(of, _)| *of == kind).map(|(_, fault)| *fault);
        let mut faults = self.faults.lock();
        let place = faults.iter().position(|(of, _)| *of == kind);
        place.and_then(|place| faults.remove(place)).map(|(_, fault)| fault).or(always)
    }
}

#[derive(Clone, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase")]
enum Step {
    Claim { claims: Vec<ClaimRow>, claim_authorizer_signature: EvmSignature },
    Settle { receiver: Address, token: Address },
    Voucher { channel_config: ChannelConfig, voucher: Voucher },
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ClaimRow {
    voucher: RowVoucher,
    signature: AnySignature,
    total_claimed: Amount,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RowVoucher {
    channel: ChannelConfig,
    max_claimable_amount: Amount,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Voucher {
    channel_id: B256,
    max_claimable_amount: Amount,
    signature: AnySignature,
}

impl Step {
    fn rows(claims: &[ClaimRow]) -> Vec<Row> {
        let row = |claim: &ClaimRow| Row {
            config: claim.voucher.channel,
            max_claimable: claim.voucher.max_claimable_amount,
            signature: claim.signature.clone(),
            total: claim.total_claimed,
        };
        claims.iter().map(row).collect()
    }

    fn carry_out(&self, contract: &Contract) -> Result<(String, B256), Revert> {
        match self {
            Self::Claim { claims, claim_authorizer_signature } => {
                let (_, hash) = contract.claim(&Self::rows(claims), claim_authorizer_signature)?;
                Ok((String::new(), hash))
            }
            Self::Settle { receiver, token } => {
                let (paid, hash) = contract.settle(*receiver, *token)?;
                Ok((paid.to_string(), hash))
            }
            Self::Voucher { .. } => Err("not a step of settlement"),
        }
    }
}

fn refused(reason: &str) -> InterfaceError {
    InterfaceError::Refused { reason: format!("invalid_batch_settlement_evm_{reason}"), detail: None }
}

fn broken(transaction: Option<B256>) -> InterfaceError {
    let transaction = transaction.map(|hash| hash.to_string());
    InterfaceError::Unknown { transaction, detail: "the connection broke".to_owned() }
}

impl Facilitator {
    pub fn new(contract: &Arc<Contract>, domain: Domain, power: &Arc<Power>, shared: &Arc<Shared>) -> Self {
        let (contract, power) = (Arc::clone(contract), Arc::clone(power));
        Self { contract, domain, power, shared: Arc::clone(shared) }
    }

    /// What every request must be, whatever it asks for.
    fn read(payment: &Payment) -> Step {
        assert_eq!((payment.x402_version, &payment.payload["x402Version"]), (2, &2.into()));
        assert_eq!(payment.payload["accepted"], payment.requirements);
        assert_eq!(payment.requirements["scheme"], "batch-settlement");
        let step: Step = serde_json::from_value(payment.payload["payload"].clone()).unwrap();
        let asset: Address = serde_json::from_value(payment.requirements["asset"].clone()).unwrap();
        match &step {
            Step::Claim { claims, .. } => {
                assert!(!claims.is_empty() && claims.iter().all(|claim| claim.voucher.channel.token == asset));
            }
            Step::Settle { token, .. } => assert_eq!(*token, asset),
            Step::Voucher { channel_config, .. } => assert_eq!(channel_config.token, asset),
        }
        step
    }

    fn settle_now(&self, step: &Step, fault: Option<Fault>) -> Result<Settled, InterfaceError> {
        match fault {
            Some(Fault::Refuse) => return Err(refused("claim_simulation_failed")),
            Some(Fault::RefuseUnread) => return Err(refused("rpc_read_failed")),
            Some(Fault::Unavailable) => return Err(InterfaceError::Unavailable("nobody listens".to_owned())),
            Some(Fault::BreakBefore) => return Err(broken(None)),
            Some(Fault::Late) => {
                self.shared.late.lock().push(step.clone());
                return Err(broken(None));
            }
            Some(Fault::Lie) => {
                let transaction = B256([0xEE; 32]).to_string();
                return Ok(Settled { transaction, amount: Some("1".to_owned()), ..Settled::default() });
            }
            Some(Fault::BreakAfter | Fault::RefuseAfter) | None => {}
        }
        if let Step::Settle { receiver, token } = step {
            let lags = self.shared.lags.load(Ordering::Relaxed);
            if self.contract.unsettled(*receiver, *token, lags) == 0
                && !self.shared.pays_nothing.load(Ordering::Relaxed)
            {
                return Err(refused("nothing_to_settle"));
            }
        }
        let (amount, hash) = step.carry_out(&self.contract).map_err(|revert| match step {
            Step::Claim { .. } => refused("claim_simulation_failed"),
            _ => refused(&format!("settle_simulation_failed: {revert}")),
        })?;
        match fault {
            Some(Fault::BreakAfter) => return Err(broken(Some(hash))),
            Some(Fault::RefuseAfter) => return Err(refused("transaction_reverted")),
            _ => {}
        }
        Ok(Settled { transaction: hash.to_string(), amount: Some(amount), ..Settled::default() })
    }
}

#[async_trait]
impl X402Facilitator for Facilitator {
    async fn supported(&self) -> Result<Supported, InterfaceError> {
        Ok(Supported::default())
    }

    /// "Verification Rules" 1 to 10 of a voucher.
    async fn verify(&self, payment: &Payment) -> Result<Verified, InterfaceError> {
        self.power.point().await;
        let Step::Voucher { channel_config: config, voucher } = Self::read(payment) else {
            panic!("only vouchers are verified here")
        };
        let id = channel_id(&self.domain, &config);
        assert_eq!(id, voucher.channel_id);
        let extra = &payment.requirements["extra"];
        assert_eq!(extra["receiverAuthorizer"], config.receiver_authorizer.to_string());
        assert_eq!(extra["withdrawDelay"], config.withdraw_delay);
        if self.shared.unverified.lock().contains(&id) {
            return Err(InterfaceError::Unavailable("nobody listens".to_owned()));
        }
        if !self.contract.accepts(&config, voucher.max_claimable_amount, &voucher.signature) {
            return Err(refused("voucher_signature"));
        }
        let (account, _) = self.contract.account(&id, self.shared.lags.load(Ordering::Relaxed));
        let cumulative = voucher.max_claimable_amount.get();
        if account.balance == 0 {
            return Err(refused("channel_not_found"));
        }
        if cumulative > account.balance {
            return Err(refused("cumulative_exceeds_balance"));
        }
        if cumulative <= account.claimed {
            return Err(refused("cumulative_below_claimed"));
        }
        let state = EvmChannelState {
            channel_id: id,
            balance: Amount::new(account.balance),
            total_claimed: Amount::new(account.claimed),
            withdraw_requested_at: account.withdraw_since,
            refund_nonce: account.refund_nonce,
            charged_cumulative_amount: None,
        };
        let Ok(Value::Object(extra)) = serde_json::to_value(state) else { panic!("a state is an object") };
        self.power.point().await;
        Ok(Verified { payer: Some(config.payer.to_string()), extra })
    }

    async fn settle(&self, payment: &Payment) -> Result<Settled, InterfaceError> {
        self.power.point().await;
        let step = Self::read(payment);
        let asked = payment.payload["payload"].clone();
        let fault = self.shared.next_fault(asked["type"].as_str().unwrap());
        self.shared.asked.lock().push(asked);
        let settled = self.settle_now(&step, fault);
        self.power.point().await;
        settled
    }
}

/// Reads the contract as a chain's endpoint does.
pub struct Reader {
    pub contract: Arc<Contract>,
    pub clock: Arc<dyn Clock>,
    pub power: Arc<Power>,
    pub shared: Arc<ReaderFaults>,
}

/// How a reader fails.
#[derive(Default)]
pub struct ReaderFaults {
    /// Nobody answers.
    pub down: AtomicBool,
    /// The answers are of one block ago.
    pub lags: AtomicBool,
    /// Only what is said of payouts is of one block ago.
    pub unsettled_lags: AtomicBool,
    /// It cannot tell these.
    pub untold: Mutex<HashSet<B256>>,
    /// It cannot tell what is not paid out.
    pub no_unsettled: AtomicBool,
    /// What was asked about.
    pub read: Mutex<Vec<B256>>,
}

impl ReaderFaults {
    pub fn mend(&self) {
        self.down.store(false, Ordering::Relaxed);
        self.lags.store(false, Ordering::Relaxed);
        self.unsettled_lags.store(false, Ordering::Relaxed);
        self.untold.lock().clear();
    }
}

/// A channel's state as a reader tells it.
pub fn reading(contract: &Contract, record: &RecordOf<Evm>, lags: bool, clock: &dyn Clock) -> EvmOnChain {
    let (account, block) = contract.account(&record.terms.id, lags);
    let delay = i64::try_from(record.terms.seller.withdraw_delay).unwrap();
    EvmOnChain {
        balance: Amount::new(account.balance),
        claimed: Amount::new(account.claimed),
        withdrawal: Amount::new(account.withdrawal),
        withdraw_since: account.withdraw_since,
        withdraw_ends_at: if account.withdraw_since == 0 { 0 } else { account.withdraw_since + delay },
        refund_nonce: account.refund_nonce,
        block,
        read_at: clock.now(),
    }
}

#[async_trait]
impl EvmChannels for Reader {
    async fn read(&self, channels: &[RecordOf<Evm>]) -> Result<Vec<Option<EvmOnChain>>, InterfaceError> {
        self.power.point().await;
        if self.shared.down.load(Ordering::Relaxed) {
            return Err(InterfaceError::Unavailable("the endpoint is down".to_owned()));
        }
        self.shared.read.lock().extend(channels.iter().map(|record| record.terms.id));
        let lags = self.shared.lags.load(Ordering::Relaxed);
        let untold = self.shared.untold.lock().clone();
        let tell = |record: &RecordOf<Evm>| {
            (!untold.contains(&record.terms.id)).then(|| reading(&self.contract, record, lags, self.clock.as_ref()))
        };
        let read = channels.iter().map(tell).collect();
        self.power.point().await;
        Ok(read)
    }

    async fn unsettled(&self, seller: &EvmSeller) -> Result<Option<Amount>, InterfaceError> {
        self.power.point().await;
        if self.shared.down.load(Ordering::Relaxed) {
            return Err(InterfaceError::Unavailable("the endpoint is down".to_owned()));
        }
        if self.shared.no_unsettled.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let lags = [&self.shared.lags, &self.shared.unsettled_lags].iter().any(|lags| lags.load(Ordering::Relaxed));
        Ok(Some(Amount::new(self.contract.unsettled(seller.pay_to, seller.token, lags))))
    }
}
