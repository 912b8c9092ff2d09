//! Clients: what they sign, and what they do with the answers.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signer as _, SigningKey};
use http::{HeaderMap, Method, StatusCode};
use serde_json::{Value, json};
use turnpike::chain::Blockhash;
use turnpike::gate::route::Route;
use turnpike::gate::{AdmitRequest, Finished, Gate, Outcome, PaymentHeader};
use turnpike::ledger::channel::{Seller, Terms};
use turnpike::scheme::svm::program::{self, Call};
use turnpike::scheme::svm::transaction::{Instruction, Transaction};
use turnpike::x402::Key;
use turnpike::x402::header;
use turnpike::x402::key::Signature;
use turnpike::x402::wire::{BatchPayload, BatchVoucher, Deposit, PaymentRequirements, UptoPayload};

use crate::books::Books;
use crate::{CEILING, DELAY, DEPOSIT};

/// The header in which the upstream says what a metered call costs.
pub const COST: &str = "x-cost";

pub struct Client {
    pub key: SigningKey,
    pub address: Key,
    seller: Arc<Seller>,
    /// Counts what must not be used twice: salts and memos.
    used: u64,
    /// Its channels, in the order of their opening.
    pub channels: Vec<Terms>,
    /// What it sent last, to be sent again.
    pub sent: Option<Payment>,
}

/// A payment as it can be sent, and sent again.
#[derive(Clone)]
pub struct Payment {
    pub channel: Key,
    pub payload: Value,
    pub kind: Kind,
}

#[derive(Clone, Copy, Debug)]
pub enum Kind {
    Voucher { total: u64 },
    Metered,
    Refund,
}

impl Client {
    pub fn new(key: SigningKey, seller: Arc<Seller>) -> Self {
        let address = Key(key.verifying_key().to_bytes());
        Self { key, address, seller, used: 0, channels: Vec::new(), sent: None }
    }

    fn voucher(&self, channel: Key, total: u64) -> BatchVoucher {
        let signature = self.key.sign(&program::voucher_message(&channel, total, 0));
        let signature = Signature(signature.to_bytes());
        BatchVoucher { channel_id: channel, max_claimable_amount: total.into(), expires_at: 0, signature }
    }

    /// A transaction of `call` that is signed but for its fee payer.
    fn setup(&mut self, call: Instruction, memo: Option<String>, blockhash: &Blockhash) -> String {
        self.used += 1;
        let mut instructions = vec![call, program::memo(&format!("{:032x}", self.used))];
        instructions.extend(memo.map(|text| program::memo(&text)));
        self.signed(self.seller.fee_payer, &instructions, blockhash)
    }

    fn signed(&self, fee_payer: Key, instructions: &[Instruction], blockhash: &Blockhash) -> String {
        let mut transaction = Transaction::build(fee_payer, instructions, blockhash.hash).unwrap();
        let signature = Signature(self.key.sign(transaction.message()).to_bytes());
        transaction.set_signature(&self.address, signature).unwrap();
        STANDARD.encode(transaction.encode())
    }

    fn opening(&mut self, authorizer: Key, deposit: u64, blockhash: &Blockhash) -> (Terms, Instruction) {
        self.used += 1;
        let (salt, open_slot) = (self.used, blockhash.slot);
        let terms = Terms::derive(Arc::clone(&self.seller), self.address, authorizer, salt, open_slot);
        let recipients = program::all_to(self.seller.pay_to).to_vec();
        let call = Call::Open { salt, deposit, grace_period: DELAY, open_slot, recipients };
        let open = program::open(&terms.accounts(), authorizer, &call);
        (terms, open)
    }

    /// Opens a channel and pays one call of `price` with it.
    pub fn open(&mut self, price: u64, blockhash: &Blockhash) -> Payment {
        let (terms, open) = self.opening(self.address, DEPOSIT, blockhash);
        let memo = program::receiver_authorizer_memo(&self.seller.receiver_authorizer);
        let transaction = self.setup(open, Some(memo), blockhash);
        self.channels.push(terms.clone());
        self.deposit(&terms, price, transaction)
    }

    /// Tops a channel up and pays one call that brings it to `total`.
    pub fn top_up(&mut self, terms: &Terms, total: u64, blockhash: &Blockhash) -> Payment {
        let call = program::top_up(&terms.accounts(), DEPOSIT);
        let transaction = self.setup(call, None, blockhash);
        self.deposit(terms, total, transaction)
    }

    fn deposit(&self, terms: &Terms, total: u64, transaction: String) -> Payment {
        let payload = BatchPayload::Deposit {
            channel_config: terms.config(),
            voucher: self.voucher(terms.id, total),
            deposit: Deposit { amount: DEPOSIT.into(), transaction },
        };
        Payment { channel: terms.id, payload: json!(payload), kind: Kind::Voucher { total } }
    }

    /// Pays one call that brings a channel to `total`.
    pub fn pay(&self, terms: &Terms, total: u64) -> Payment {
        let voucher = self.voucher(terms.id, total);
        let payload = BatchPayload::Voucher { channel_config: terms.config(), voucher };
        Payment { channel: terms.id, payload: json!(payload), kind: Kind::Voucher { total } }
    }

    /// Asks for the end of a channel of which `total` was charged.
    pub fn refund(&self, terms: &Terms, total: u64) -> Payment {
        let voucher = self.voucher(terms.id, total);
        let payload = BatchPayload::Refund { channel_config: terms.config(), voucher, amount: None, transaction: None };
        Payment { channel: terms.id, payload: json!(payload), kind: Kind::Refund }
    }

    /// Opens a channel for one metered call, until `expires_at`.
    pub fn metered(&mut self, now: i64, expires_at: i64, blockhash: &Blockhash) -> Payment {
        let authorizer = self.seller.receiver_authorizer;
        let (terms, open) = self.opening(authorizer, CEILING, blockhash);
        let payload = UptoPayload {
            from: self.address,
            max_amount: CEILING.into(),
            expires_at,
            valid_after: now,
            nonce: terms.salt,
            open_slot: terms.open_slot,
            channel_id: terms.id,
            deposit: CEILING.into(),
            authorized_signer: authorizer,
            open_transaction: self.setup(open, None, blockhash),
            voucher_signature: None,
        };
        Payment { channel: terms.id, payload: json!(payload), kind: Kind::Metered }
    }

    /// Begins to close a channel on chain, behind the server's back.
    pub fn request_close(&self, channel: Key, blockhash: &Blockhash) -> Vec<u8> {
        let close = program::request_close(self.address, channel);
        STANDARD.decode(self.signed(self.address, &[close], blockhash)).unwrap()
    }
}

/// What the upstream does with a request.
#[derive(Clone, Debug)]
pub struct Upstream {
    pub status: StatusCode,
    pub takes: Duration,
    /// What it says a metered call costs, and what that comes to.
    pub report: Option<&'static str>,
    pub cost: u64,
}

static NO_HEADERS: LazyLock<HeaderMap> = LazyLock::new(HeaderMap::new);

/// A request for the shop's one resource.
pub fn ask<'a>(route: &'a Arc<Route>, payment_header: Option<&'a [u8]>) -> AdmitRequest<'a> {
    let (method, host, target) = (&Method::GET, Some("shop"), "/x");
    let payment_header = payment_header.map(PaymentHeader::V2);
    AdmitRequest { route, method, host, target, headers: &NO_HEADERS, url: "http://shop/x", payment_header }
}

/// A request's whole way: through the gate to the upstream and back. Dropped, its client has left.
pub async fn call(
    gate: Arc<Gate>,
    route: Arc<Route>,
    accepted: PaymentRequirements,
    payment: Payment,
    upstream: Upstream,
    books: Rc<RefCell<Books>>,
) {
    let Payment { channel, payload, kind } = payment;
    let value = header::encode(&json!({ "x402Version": 2, "accepted": accepted, "payload": payload })).unwrap();
    let admission = match gate.admit(ask(&route, Some(value.as_bytes()))).await {
        Outcome::Admitted(admission) => admission,
        Outcome::Refused(_) => {
            books.borrow_mut().counts.refused += 1;
            return;
        }
        Outcome::Answered(_) => {
            assert!(matches!(kind, Kind::Refund), "a {kind:?} was answered without the upstream");
            books.borrow_mut().counts.refunds += 1;
            return;
        }
        Outcome::Replayed(_) => panic!("a payment without an id was taken for one that was made before"),
        Outcome::Free | Outcome::Challenge(_) => panic!("a paid request was taken for another"),
    };
    if !upstream.takes.is_zero() {
        tokio::time::sleep(upstream.takes).await;
    }
    let success = upstream.status.as_u16() < 400;
    let mut headers = HeaderMap::new();
    if let Some(report) = upstream.report {
        headers.insert(COST, report.parse().unwrap());
    }
    match (success, kind) {
        (false, _) => books.borrow_mut().counts.failed += 1,
        (true, Kind::Voucher { total }) => books.borrow_mut().earned(&channel, total),
        (true, Kind::Metered) => books.borrow_mut().earned_metered(&channel, upstream.cost),
        (true, Kind::Refund) => panic!("a refund reached the upstream"),
    }
    match (admission.finish(upstream.status, &headers).await, kind) {
        (Finished::Charged(_), _) if !success => panic!("a failed call was charged"),
        (Finished::Released(_), _) if success => panic!("a delivered call was not charged"),
        (Finished::Charged(charged), Kind::Metered) => {
            let settlement = charged.settlement().unwrap();
            let told = settlement.amount.as_deref().unwrap().parse().unwrap();
            books.borrow_mut().delivered_metered(&channel, told);
        }
        (Finished::Charged(charged), Kind::Voucher { total }) => {
            let settlement = charged.settlement().unwrap();
            let told = &settlement.extra["channelState"]["chargedCumulativeAmount"];
            books.borrow_mut().delivered(&channel, total, told.as_str().unwrap().parse().unwrap());
        }
        (Finished::Charged(_), Kind::Refund) => panic!("a refund reached the upstream"),
        (Finished::Released(_), _) => {}
        (Finished::Counted { .. }, _) => panic!("no route of this world has passes"),
        (Finished::Unmetered(_), _) => panic!("no route of this world refuses"),
        (Finished::Refused(_), _) => books.borrow_mut().counts.withheld += 1,
    }
}
