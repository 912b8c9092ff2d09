//! Our own facilitator against doubles of its ports: a chain that holds accounts, carries out the few instructions that
//! the tests send and fails when told to, and a signer that is one ordinary key.

#![allow(clippy::unwrap_used, reason = "a test that cannot build its own fixture should stop")]

#[path = "facilitator/sandbox.rs"]
mod sandbox;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signer as _, SigningKey};
use parking_lot::Mutex;
use tokio::sync::Notify;
use turnpike::amount::{Amount, Asset};
use turnpike::chain::{Account, Blockhash, Chain, ChainError, Confirmation, Simulation, TransactionStatus};
use turnpike::clock::{Clock, ManualClock, UnixMillis};
use turnpike::facilitator::local::{LocalFacilitator, LocalFacilitatorError};
use turnpike::facilitator::{
    AcceptedDeposit, CloseRequest, DepositRequest, DepositScheme, Facilitator, FacilitatorError, SettledClose,
};
use turnpike::ledger::channel::{Seller, Terms, Voucher};
use turnpike::policy::Policy;
use turnpike::scheme::svm::program::{self, Call, ChannelAccount, ChannelStatus};
use turnpike::scheme::svm::transaction::Transaction;
use turnpike::scheme::svm::{
    ED25519_PROGRAM, PAYMENT_CHANNELS, SYSTEM_PROGRAM, TOKEN_2022_PROGRAM, TOKEN_PROGRAM, TREASURY_PLACEHOLDER,
    USDC_DEVNET, associated_token_account, verify_strict,
};
use turnpike::signer::{Approved, Setup, Signer, SignerError, SigningRequest};
use turnpike::x402::key::Signature;
use turnpike::x402::{Key, Reason, network};

const NOW_SECONDS: i64 = 1_800_000_000;
const EXPIRES_AT: i64 = NOW_SECONDS + 300;
const DEPOSIT: u64 = 100_000;
const CHANNEL_RENT: u64 = 2_672_640;
const ESCROW_RENT: u64 = 2_039_280;

fn signing_key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

fn public(seed: u8) -> Key {
    Key(signing_key(seed).verifying_key().to_bytes())
}

const PAYER: u8 = 1;
const GROUP: u8 = 2;
const AUTHORIZER: u8 = 3;

fn seller() -> Seller {
    Seller {
        network: network::SOLANA_DEVNET.parse().unwrap(),
        asset: Arc::new(Asset { address: USDC_DEVNET.to_string().into(), symbol: "USDC".into(), decimals: 6 }),
        mint: USDC_DEVNET,
        token_program: TOKEN_PROGRAM,
        pay_to: public(4),
        fee_payer: public(GROUP),
        receiver_authorizer: public(GROUP),
        withdraw_delay: 3_600,
        treasury_owner: TREASURY_PLACEHOLDER,
    }
}

/// A double of the chain's port.
#[derive(Default)]
struct FakeChain(Mutex<State>);

#[derive(Default)]
struct State {
    accounts: HashMap<Key, Account>,
    /// Taken in turn; nothing left means that all goes well.
    simulations: VecDeque<Result<Simulation, ChainError>>,
    sends: VecDeque<Result<(), ChainError>>,
    confirmations: VecDeque<Result<Confirmation, ChainError>>,
    reads: VecDeque<Result<(), ChainError>>,
    /// What else happens on chain before the next transaction is carried out.
    meanwhile: Option<fn(&mut HashMap<Key, Account>)>,
    sent: Vec<Transaction>,
    heights: Vec<u64>,
    /// Waits with the confirmation until told.
    gate: Option<(Arc<Notify>, Arc<Notify>)>,
    blockhash: u8,
}

impl State {
    fn channel(&self, key: &Key) -> Option<ChannelAccount> {
        self.accounts.get(key).map(|account| ChannelAccount::decode(&account.data).unwrap())
    }

    fn put_channel(&mut self, key: Key, channel: &ChannelAccount) {
        self.accounts.insert(key, Account { lamports: CHANNEL_RENT, owner: PAYMENT_CHANNELS, data: channel.encode() });
    }

    /// Carries out what a confirmed transaction does to channel accounts.
    fn carry_out(&mut self, transaction: &Transaction) {
        let mut voucher = None;
        for instruction in transaction.instructions() {
            if instruction.program == ED25519_PROGRAM {
                voucher = Some(u64::from_le_bytes(instruction.data[146..154].try_into().unwrap()));
            }
            if instruction.program != PAYMENT_CHANNELS {
                continue;
            }
            let key = |index: usize| instruction.accounts[index].key;
            match Call::decode(&instruction.data).unwrap() {
                Call::Open { salt, deposit, grace_period, open_slot, recipients } => {
                    let channel = ChannelAccount {
                        bump: 255,
                        status: ChannelStatus::Open,
                        salt,
                        deposit,
                        settled: 0,
                        payout_watermark: 0,
                        closure_started_at: 0,
                        payer_withdrawn_at: 0,
                        grace_period,
                        distribution_hash: program::distribution_hash(&recipients),
                        payer: key(0),
                        payee: key(2),
                        authorized_signer: key(4),
                        mint: key(3),
                        rent_payer: key(1),
                        open_slot,
                    };
                    self.put_channel(key(5), &channel);
                }
                Call::TopUp { amount } => self.change(key(1), |channel| channel.deposit += amount),
                Call::SettleAndSeal { has_voucher } => self.change(key(1), |channel| {
                    if has_voucher {
                        channel.settled = voucher.unwrap();
                    }
                    channel.status = ChannelStatus::Sealed;
                }),
                Call::Seal => self.change(key(0), |channel| channel.status = ChannelStatus::Sealed),
                Call::Distribute { .. } => self.change(key(0), |channel| {
                    channel.payout_watermark = channel.settled;
                    channel.status = ChannelStatus::Distributed;
                }),
                other => panic!("the double does not know {other:?}"),
            }
        }
    }

    fn change(&mut self, key: Key, change: impl FnOnce(&mut ChannelAccount)) {
        let mut channel = self.channel(&key).unwrap();
        change(&mut channel);
        self.put_channel(key, &channel);
    }
}

#[async_trait]
impl Chain for FakeChain {
    async fn latest_blockhash(&self) -> Result<Blockhash, ChainError> {
        let mut state = self.0.lock();
        state.blockhash += 1;
        Ok(Blockhash { hash: [state.blockhash; 32], last_valid_block_height: 900, slot: 341_000_010 })
    }

    async fn slot(&self) -> Result<u64, ChainError> {
        Ok(341_000_010)
    }

    async fn block_height(&self) -> Result<u64, ChainError> {
        Ok(700)
    }

    async fn accounts(&self, keys: &[Key]) -> Result<Vec<Option<Account>>, ChainError> {
        let mut state = self.0.lock();
        state.reads.pop_front().unwrap_or(Ok(()))?;
        Ok(keys.iter().map(|key| state.accounts.get(key).cloned()).collect())
    }

    async fn channels_by(&self, _: usize, _: &Key) -> Result<Vec<(Key, ChannelAccount)>, ChainError> {
        panic!("the facilitator does not scan")
    }

    async fn simulate(&self, _: &[u8]) -> Result<Simulation, ChainError> {
        let fine = Ok(Simulation { error: None, logs: Vec::new() });
        self.0.lock().simulations.pop_front().unwrap_or(fine)
    }

    async fn send(&self, transaction: &[u8]) -> Result<(), ChainError> {
        let transaction = Transaction::decode(transaction).unwrap();
        assert!(transaction.is_signed_by(&public(GROUP)), "what is sent is signed by the fee payer");
        let mut state = self.0.lock();
        state.sent.push(transaction);
        state.sends.pop_front().unwrap_or(Ok(()))
    }

    async fn statuses(&self, ids: &[Signature]) -> Result<Vec<Option<TransactionStatus>>, ChainError> {
        Ok(vec![None; ids.len()])
    }

    async fn confirm(
        &self,
        transaction: &[u8],
        id: &Signature,
        last_valid_block_height: u64,
        _: Duration,
    ) -> Result<Confirmation, ChainError> {
        let gate = self.0.lock().gate.clone();
        if let Some((reached, go_on)) = gate {
            reached.notify_one();
            go_on.notified().await;
        }
        let transaction = Transaction::decode(transaction).unwrap();
        assert_eq!(transaction.id(), *id);
        let mut state = self.0.lock();
        state.heights.push(last_valid_block_height);
        let confirmation = state.confirmations.pop_front().unwrap_or(Ok(Confirmation::Confirmed { slot: 341_000_011 }));
        if let Some(meanwhile) = state.meanwhile.take() {
            meanwhile(&mut state.accounts);
        }
        if matches!(confirmation, Ok(Confirmation::Confirmed { .. })) {
            state.carry_out(&transaction);
        }
        confirmation
    }

    async fn rent(&self, bytes: usize) -> Result<u64, ChainError> {
        Ok(match bytes {
            256 => CHANNEL_RENT,
            165 => ESCROW_RENT,
            other => panic!("rent of {other} bytes"),
        })
    }
}

/// A double of the signer's port.
#[derive(Default)]
struct FakeSigner {
    refuses: Mutex<Option<SignerError>>,
    signs_wrongly: Mutex<bool>,
    signed: Mutex<Vec<&'static str>>,
}

#[async_trait]
impl Signer for FakeSigner {
    fn public_key(&self) -> Key {
        public(GROUP)
    }

    async fn sign(&self, approved: Approved) -> Result<Signature, SignerError> {
        let request = approved.into_request();
        if let Some(error) = self.refuses.lock().clone() {
            return Err(error);
        }
        self.signed.lock().push(request.kind());
        let mut message = match request {
            SigningRequest::Sponsor { setup: Setup::Open { deposit }, transaction } => {
                assert_eq!(deposit, DEPOSIT, "the signer's bound is the deposit itself");
                transaction.message().to_vec()
            }
            SigningRequest::Sponsor { transaction, .. } | SigningRequest::Close { transaction, .. } => {
                transaction.message().to_vec()
            }
            SigningRequest::Voucher { channel, cumulative, expires_at, .. } => {
                program::voucher_message(&channel, cumulative, expires_at).to_vec()
            }
            other => panic!("the facilitator does not ask for {other:?}"),
        };
        if *self.signs_wrongly.lock() {
            message.push(0);
        }
        Ok(Signature(signing_key(GROUP).sign(&message).to_bytes()))
    }

    fn health(&self) -> Result<(), String> {
        Ok(())
    }
}

struct World {
    chain: Arc<FakeChain>,
    signer: Arc<FakeSigner>,
    clock: Arc<ManualClock>,
    facilitator: Arc<LocalFacilitator>,
    terms: Terms,
    scheme: DepositScheme,
}

fn token_account(owner: Key, amount: u64) -> Account {
    let mut data = vec![0; 165];
    data[..32].copy_from_slice(&USDC_DEVNET.0);
    data[32..64].copy_from_slice(&owner.0);
    data[64..72].copy_from_slice(&amount.to_le_bytes());
    data[108] = 1;
    Account { lamports: ESCROW_RENT, owner: TOKEN_PROGRAM, data }
}

fn ata(owner: Key) -> Key {
    associated_token_account(&owner, &USDC_DEVNET, &TOKEN_PROGRAM)
}

/// A client's deposit: opens the channel, or tops it up.
fn deposit_request(terms: &Terms, scheme: DepositScheme, opens: bool, blockhash: [u8; 32]) -> DepositRequest {
    let call = Call::Open {
        salt: terms.salt,
        deposit: DEPOSIT,
        grace_period: terms.seller.withdraw_delay,
        open_slot: terms.open_slot,
        recipients: program::all_to(terms.seller.pay_to).to_vec(),
    };
    let main = if opens {
        program::open(&terms.accounts(), terms.authorizer, &call)
    } else {
        program::top_up(&terms.accounts(), DEPOSIT)
    };
    let mut instructions = vec![main, program::memo("00112233445566778899aabbccddeeff")];
    if opens && scheme == DepositScheme::BatchSettlement {
        let binding = program::receiver_authorizer_memo(&terms.seller.receiver_authorizer);
        instructions.push(program::memo(&binding));
    }
    let mut transaction = Transaction::build(terms.seller.fee_payer, &instructions, blockhash).unwrap();
    let signature = Signature(signing_key(PAYER).sign(transaction.message()).to_bytes());
    transaction.set_signature(&terms.payer, signature).unwrap();
    DepositRequest {
        terms: terms.clone(),
        amount: Amount::from(DEPOSIT),
        transaction: STANDARD.encode(transaction.encode()),
        memo: None,
        known: None,
        scheme,
    }
}

/// The payer's voucher.
fn voucher(terms: &Terms, cumulative: u64) -> Voucher {
    let message = program::voucher_message(&terms.id, cumulative, 0);
    let signature = Signature(signing_key(AUTHORIZER).sign(&message).to_bytes());
    Voucher { cumulative: Amount::from(cumulative), signature }
}

impl World {
    fn new(scheme: DepositScheme) -> Self {
        let seller = Arc::new(seller());
        let authorizer = public(if scheme == DepositScheme::Upto { GROUP } else { AUTHORIZER });
        let terms = Terms::derive(Arc::clone(&seller), public(PAYER), authorizer, 42, 341_000_000);
        let chain = Arc::new(FakeChain::default());
        {
            let accounts = &mut chain.0.lock().accounts;
            for (owner, amount) in [(terms.payer, 250_000), (seller.pay_to, 0), (seller.treasury_owner, 0)] {
                accounts.insert(ata(owner), token_account(owner, amount));
            }
            accounts.insert(USDC_DEVNET, Account { lamports: 1, owner: TOKEN_PROGRAM, data: vec![0; 82] });
            let fee_payer = Account { lamports: 1_000_000_000, owner: SYSTEM_PROGRAM, data: vec![] };
            accounts.insert(seller.fee_payer, fee_payer);
        }
        let signer = Arc::new(FakeSigner::default());
        let clock = Arc::new(ManualClock::new(UnixMillis(NOW_SECONDS * 1_000)));
        let policy = Arc::new(Policy::unlimited(vec![seller.pay_to]));
        let facilitator =
            LocalFacilitator::new(chain.clone(), signer.clone(), policy, Arc::clone(&seller), clock.clone()).unwrap();
        Self { chain, signer, clock, facilitator: Arc::new(facilitator), terms, scheme }
    }

    /// The same world under another policy.
    fn under(self, policy: Policy) -> Self {
        let (chain, signer, clock) = (self.chain.clone(), self.signer.clone(), self.clock.clone());
        let seller = Arc::clone(&self.terms.seller);
        let facilitator = LocalFacilitator::new(chain, signer, Arc::new(policy), seller, clock).unwrap();
        Self { facilitator: Arc::new(facilitator), ..self }
    }

    fn batch() -> Self {
        Self::new(DepositScheme::BatchSettlement)
    }

    fn upto() -> Self {
        Self::new(DepositScheme::Upto)
    }

    fn deposit(&self, opens: bool) -> DepositRequest {
        deposit_request(&self.terms, self.scheme, opens, [99; 32])
    }

    async fn accept(&self, opens: bool) -> Result<AcceptedDeposit, FacilitatorError> {
        self.facilitator.accept_deposit(self.deposit(opens)).await
    }

    async fn open(&self) {
        let accepted = self.accept(true).await.unwrap();
        self.facilitator.settle_deposit(accepted).await.unwrap();
    }

    fn change(&self, change: impl FnOnce(&mut ChannelAccount)) {
        self.chain.0.lock().change(self.terms.id, change);
    }

    fn state<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.chain.0.lock())
    }

    fn remove(&self, key: Key) {
        self.state(|state| state.accounts.remove(&key));
    }

    fn voucher(&self, cumulative: u64) -> Voucher {
        voucher(&self.terms, cumulative)
    }

    async fn close(&self, cumulative: Option<u64>) -> Result<SettledClose, FacilitatorError> {
        let voucher = cumulative.map(|cumulative| self.voucher(cumulative));
        self.facilitator.close(CloseRequest { terms: self.terms.clone(), voucher, voucher_expires_at: 0 }).await
    }

    async fn meter(&self, charge: u64) -> Result<SettledClose, FacilitatorError> {
        let (charge, deposit) = (Amount::from(charge), Amount::from(DEPOSIT));
        self.facilitator.close_metered(&self.terms, charge, deposit, EXPIRES_AT).await
    }

    /// The payment-channels calls of the transaction sent last.
    fn last_calls(&self) -> Vec<Call> {
        let state = self.chain.0.lock();
        let instructions = state.sent.last().unwrap().instructions();
        let ours = instructions.iter().filter(|instruction| instruction.program == PAYMENT_CHANNELS);
        ours.map(|instruction| Call::decode(&instruction.data).unwrap()).collect()
    }

    fn sent(&self) -> usize {
        self.chain.0.lock().sent.len()
    }
}

#[track_caller]
fn assert_refused<T: std::fmt::Debug>(result: Result<T, FacilitatorError>, reason: Reason, says: &str) {
    match result {
        Err(FacilitatorError::Refused { reason: found, detail }) => {
            assert_eq!((found, detail.contains(says)), (reason, true), "{detail}");
        }
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn assert_unavailable<T: std::fmt::Debug>(result: Result<T, FacilitatorError>, says: &str) {
    match result {
        Err(FacilitatorError::Unavailable(detail)) => assert!(detail.contains(says), "{detail}"),
        other => panic!("{other:?}"),
    }
}

fn unavailable() -> ChainError {
    ChainError::Unavailable("down".into())
}

#[tokio::test]
async fn an_open_is_accepted_settled_and_read_back() {
    let world = World::batch();
    assert_eq!(world.facilitator.read_channel(&world.terms).await, Ok(None));
    let accepted = world.accept(true).await.unwrap();
    assert!(accepted.opens);
    assert_eq!(accepted.deposit_after, Amount::from(DEPOSIT));
    assert_eq!(world.sent(), 0, "accepting signs and sends nothing");
    assert!(world.signer.signed.lock().is_empty());

    let settled = world.facilitator.settle_deposit(accepted).await.unwrap();
    assert_eq!(settled.channel.deposit, Amount::from(DEPOSIT));
    assert_eq!(settled.channel.status, ChannelStatus::Open);
    assert_eq!(settled.channel.read_at, world.clock.now());
    let sent = world.state(|state| state.sent[0].clone());
    assert_eq!(settled.transaction, sent.id());
    assert!(sent.is_signed_by(&world.terms.payer), "the payer's signature is untouched");
    assert_eq!(world.state(|state| state.heights.clone()), [700 + 182], "no blockhash of the client's lives longer");
    assert_eq!(world.facilitator.read_channel(&world.terms).await, Ok(Some(settled.channel)));
}

#[tokio::test]
async fn a_top_up_adds_to_what_is_there() {
    let world = World::batch();
    world.open().await;
    let accepted = world.accept(false).await.unwrap();
    assert!(!accepted.opens);
    assert_eq!(accepted.deposit_after, Amount::from(2 * DEPOSIT));
    let settled = world.facilitator.settle_deposit(accepted).await.unwrap();
    assert_eq!(settled.channel.deposit, Amount::from(2 * DEPOSIT));
    assert_eq!(*world.signer.signed.lock(), ["open", "top_up"]);
}

#[tokio::test]
async fn lamports_sent_to_the_address_beforehand_do_not_block_an_open() {
    let world = World::upto();
    let gift = Account { lamports: 1, owner: SYSTEM_PROGRAM, data: vec![] };
    world.state(|state| state.accounts.insert(world.terms.id, gift));
    world.open().await;
}

#[tokio::test]
async fn what_the_policy_refuses_never_reaches_chain_or_signer() {
    let world = World::batch();
    let mut request = world.deposit(true);
    request.amount = Amount::from(DEPOSIT + 1);
    assert_refused(world.facilitator.accept_deposit(request).await, Reason::BatchSetupTransaction, "moves 100000");
    let request = DepositRequest { transaction: "no base64!".into(), ..world.deposit(true) };
    assert_refused(world.facilitator.accept_deposit(request).await, Reason::BatchSetupTransaction, "base64");
    let other = Arc::new(Seller { withdraw_delay: 900, ..seller() });
    let terms = Terms { seller: other, ..world.terms.clone() };
    let request = DepositRequest { terms: terms.clone(), ..world.deposit(true) };
    assert_refused(world.facilitator.accept_deposit(request).await, Reason::InvalidRequirements, "another seller");
    assert_refused(world.facilitator.read_channel(&terms).await, Reason::InvalidRequirements, "another seller");

    let upto = World::upto();
    assert_refused(upto.accept(false).await, Reason::UptoOpenTransaction, "not `open`");
}

#[tokio::test]
async fn accounts_that_cannot_be_paid_are_found_before_money_is_escrowed() {
    type Change = fn(&World);
    let pay_to = |world: &World| ata(world.terms.seller.pay_to);
    let rows: [(&str, Change, Reason, Reason, &str); 9] = [
        (
            "no recipient account",
            |w| w.remove(ata(w.terms.seller.pay_to)),
            Reason::BatchSettlementSimulation,
            Reason::UptoSettlementSimulation,
            "the recipient's token account",
        ),
        (
            "no treasury account",
            |w| w.remove(ata(TREASURY_PLACEHOLDER)),
            Reason::BatchSettlementSimulation,
            Reason::UptoSettlementSimulation,
            "the treasury's token account",
        ),
        (
            "no payer account",
            |w| w.remove(ata(w.terms.payer)),
            Reason::BatchSettlementSimulation,
            Reason::UptoSettlementSimulation,
            "the payer's token account",
        ),
        (
            "a frozen payer account",
            |w| w.state(|state| state.accounts.get_mut(&ata(w.terms.payer)).unwrap().data[108] = 2),
            Reason::BatchSettlementSimulation,
            Reason::UptoSettlementSimulation,
            "frozen",
        ),
        (
            "a frozen recipient account",
            |w| w.state(|state| state.accounts.get_mut(&ata(w.terms.seller.pay_to)).unwrap().data[108] = 2),
            Reason::BatchSettlementSimulation,
            Reason::UptoSettlementSimulation,
            "frozen",
        ),
        (
            "a recipient account that was given away",
            |w| w.state(|state| state.accounts.get_mut(&ata(w.terms.seller.pay_to)).unwrap().data[32] ^= 1),
            Reason::BatchSettlementSimulation,
            Reason::UptoSettlementSimulation,
            "another owner",
        ),
        (
            "too little money",
            |w| {
                let poor = token_account(w.terms.payer, DEPOSIT - 1);
                w.state(|state| state.accounts.insert(ata(w.terms.payer), poor));
            },
            Reason::InsufficientFunds,
            Reason::InsufficientFunds,
            "holds 99999",
        ),
        (
            "a mint of the other token program",
            |w| w.state(|state| state.accounts.get_mut(&USDC_DEVNET).unwrap().owner = TOKEN_2022_PROGRAM),
            Reason::BatchTokenProgram,
            Reason::UptoSettlementSimulation,
            "does not own the mint",
        ),
        (
            "another program's account at the channel's address",
            |w| {
                let foreign = Account { lamports: 1, owner: TOKEN_PROGRAM, data: vec![1] };
                w.state(|state| state.accounts.insert(w.terms.id, foreign));
            },
            Reason::BatchChannelState,
            Reason::UptoChannelState,
            "another program",
        ),
    ];
    for (name, change, batch, upto, says) in rows {
        for (world, reason) in [(World::batch(), batch), (World::upto(), upto)] {
            assert!(world.state(|state| state.accounts.contains_key(&pay_to(&world))));
            change(&world);
            println!("{name}");
            assert_refused(world.accept(true).await, reason, says);
        }
    }
}

#[tokio::test]
async fn a_deposit_must_fit_the_channel_on_chain() {
    let world = World::batch();
    assert_refused(world.accept(false).await, Reason::BatchChannelState, "no channel to top up");
    world.open().await;
    assert_refused(world.accept(true).await, Reason::BatchChannelState, "exists");
    world.change(|channel| channel.deposit = u64::MAX - DEPOSIT + 1);
    assert_refused(world.accept(false).await, Reason::BatchChannelState, "more than a channel can hold");
    world.change(|channel| channel.deposit = DEPOSIT);
    world.change(|channel| channel.status = ChannelStatus::Closing);
    assert_refused(world.accept(false).await, Reason::BatchChannelClosing, "asked to close");
    world.change(|channel| channel.status = ChannelStatus::Distributed);
    assert_refused(world.accept(false).await, Reason::BatchChannelState, "closed");
    world.change(|channel| {
        channel.status = ChannelStatus::Open;
        channel.grace_period = 1;
    });
    assert_refused(world.accept(false).await, Reason::BatchChannelState, "other terms");
    assert_refused(world.facilitator.read_channel(&world.terms).await, Reason::BatchChannelState, "other terms");

    let upto = World::upto();
    upto.open().await;
    assert_refused(upto.accept(true).await, Reason::UptoChannelAlreadyOpen, "exists already");
}

#[tokio::test]
async fn our_own_shortcomings_are_not_the_clients_fault() {
    let world = World::batch();
    let needed = 10_000 + CHANNEL_RENT + ESCROW_RENT;
    let fund = |lamports| world.state(|state| state.accounts.get_mut(&public(GROUP)).unwrap().lamports = lamports);
    fund(needed - 1);
    assert_unavailable(world.accept(true).await, "send it some");
    fund(needed);
    world.accept(true).await.unwrap();

    world.state(|state| state.reads.push_back(Err(unavailable())));
    assert_unavailable(world.accept(true).await, "down");
    world.state(|state| state.simulations.push_back(Err(unavailable())));
    assert_unavailable(world.accept(true).await, "down");
}

#[tokio::test]
async fn a_simulation_that_fails_refuses_the_deposit() {
    let world = World::batch();
    let fails = |error: &str| {
        let logs = ["one", "two", "three", "Program log: out of window"].map(str::to_owned).to_vec();
        world.state(|state| state.simulations.push_back(Ok(Simulation { error: Some(error.to_owned()), logs })));
    };
    fails(r#"{"InstructionError":[0,{"Custom":2003}]}"#);
    assert_refused(world.accept(true).await, Reason::BatchSettlementSimulation, "out of window");
    fails("\"BlockhashNotFound\"");
    assert_refused(world.accept(true).await, Reason::BatchSettlementSimulation, "fresh blockhash");
    world.state(|state| state.simulations.push_back(Err(ChainError::Refused("bad".into()))));
    assert_refused(world.accept(true).await, Reason::BatchSettlementSimulation, "bad");
}

#[tokio::test]
async fn the_same_deposit_is_settled_once_at_a_time() {
    for opens in [true, false] {
        let world = World::batch();
        if !opens {
            world.open().await;
        }
        let (reached, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        world.state(|state| state.gate = Some((Arc::clone(&reached), Arc::clone(&go_on))));
        let accepted = world.accept(opens).await.unwrap();
        let again = accepted.clone();
        let facilitator = Arc::clone(&world.facilitator);
        let first = tokio::spawn(async move { facilitator.settle_deposit(accepted).await });
        reached.notified().await;
        let sent = world.sent();
        assert_refused(
            world.facilitator.settle_deposit(again.clone()).await,
            Reason::DuplicateSettlement,
            "being settled",
        );
        go_on.notify_one();
        first.await.unwrap().unwrap();
        assert_refused(world.facilitator.settle_deposit(again.clone()).await, Reason::DuplicateSettlement, "just now");
        assert_eq!(world.sent(), sent, "one broadcast");

        // Long after, the blockhash is gone; a replay that a chain would answer with success still adds no money.
        world.state(|state| state.gate = None);
        world.clock.advance(Duration::from_secs(120));
        assert!(world.accept(opens).await.is_ok() != opens);
    }
}

#[tokio::test]
async fn a_replayed_top_up_is_not_counted_twice() {
    let world = World::batch();
    world.open().await;
    let accepted = world.accept(false).await.unwrap();
    world.facilitator.settle_deposit(accepted.clone()).await.unwrap();
    let replay = AcceptedDeposit { deposit_after: Amount::from(3 * DEPOSIT), ..accepted };
    world.clock.advance(Duration::from_secs(120));
    // A chain answers a transaction that it knows with success, and carries it out no second time.
    world.state(|state| {
        state.meanwhile = Some(|accounts| {
            let channel = accounts.values_mut().find(|account| account.owner == PAYMENT_CHANNELS).unwrap();
            let mut before = ChannelAccount::decode(&channel.data).unwrap();
            before.deposit -= DEPOSIT;
            channel.data = before.encode();
        });
    });
    assert_refused(world.facilitator.settle_deposit(replay).await, Reason::BatchChannelState, "the deposit is 200000");
}

#[tokio::test]
async fn a_deposit_that_surely_failed_may_be_tried_again() {
    let world = World::upto();
    let accepted = world.accept(true).await.unwrap();
    type Change = fn(&mut State);
    let rows: [(Change, &str); 4] = [
        (|s| s.sends.push_back(Err(ChainError::Refused("\"BlockhashNotFound\"".into()))), "BlockhashNotFound"),
        (|s| s.sends.push_back(Err(ChainError::Refused("\"AccountInUse\"".into()))), "AccountInUse"),
        (|s| s.confirmations.push_back(Ok(Confirmation::Failed { error: "Custom(1)".into() })), "Custom(1)"),
        (|s| s.confirmations.push_back(Ok(Confirmation::Expired)), "expired"),
    ];
    for (change, says) in rows {
        world.state(change);
        assert_refused(world.facilitator.settle_deposit(accepted.clone()).await, Reason::UptoChannelBroadcast, says);
    }
    *world.signer.refuses.lock() = Some(SignerError::NoQuorum("one share is away".into()));
    assert_unavailable(world.facilitator.settle_deposit(accepted.clone()).await, "one share is away");
    let rule = SignerError::Refused { rule: "daily_limit", detail: "reached".into() };
    *world.signer.refuses.lock() = Some(rule);
    let refused = world.facilitator.settle_deposit(accepted.clone()).await;
    assert_refused(refused, Reason::UnexpectedSettleError, "daily_limit");
    *world.signer.refuses.lock() = None;
    world.facilitator.settle_deposit(accepted).await.unwrap();
}

#[tokio::test]
async fn an_unknown_fate_is_pending_and_holds_the_deposit() {
    let world = World::batch();
    let accepted = world.accept(true).await.unwrap();
    world.state(|state| state.confirmations.push_back(Err(unavailable())));
    let Err(FacilitatorError::Pending { transaction }) = world.facilitator.settle_deposit(accepted.clone()).await
    else {
        panic!("it must be pending");
    };
    assert_eq!(transaction, world.state(|state| state.sent[0].id()));
    assert_refused(world.facilitator.settle_deposit(accepted).await, Reason::DuplicateSettlement, "");
}

#[tokio::test]
async fn a_send_without_an_answer_is_waited_for() {
    let world = World::batch();
    let accepted = world.accept(true).await.unwrap();
    world.state(|state| state.sends.push_back(Err(unavailable())));
    world.facilitator.settle_deposit(accepted).await.unwrap();
    assert_eq!(world.sent(), 1);
}

#[tokio::test]
async fn a_read_that_fails_after_the_confirmation_leaves_it_pending() {
    let world = World::batch();
    let accepted = world.accept(true).await.unwrap();
    world.state(|state| state.reads.push_back(Err(unavailable())));
    let settled = world.facilitator.settle_deposit(accepted).await;
    assert!(matches!(settled, Err(FacilitatorError::Pending { .. })), "{settled:?}");
}

#[tokio::test]
async fn an_upto_deposit_must_be_exact_after_the_confirmation() {
    let world = World::upto();
    let accepted = world.accept(true).await.unwrap();
    let more = AcceptedDeposit { deposit_after: Amount::from(DEPOSIT - 1), ..accepted };
    assert_refused(world.facilitator.settle_deposit(more).await, Reason::UptoChannelState, "the deposit is 100000");
}

#[tokio::test]
async fn a_close_applies_the_last_voucher_and_returns_the_rest() {
    let world = World::batch();
    world.open().await;
    world.change(|channel| {
        channel.settled = 1_000;
        channel.payout_watermark = 1_000;
    });
    let close = world.close(Some(30_000)).await.unwrap();
    let sent = world.state(|state| state.sent[1].clone());
    assert_eq!(
        close,
        SettledClose {
            transaction: sent.id(),
            returned: Amount::from(70_000),
            claimed: Amount::from(30_000),
            deposit: Amount::from(DEPOSIT),
        }
    );
    let instructions = sent.instructions();
    assert_eq!(instructions.len(), 3);
    let voucher = world.voucher(30_000);
    let message = program::voucher_message(&world.terms.id, 30_000, 0);
    assert_eq!(instructions[0], program::ed25519(&public(AUTHORIZER), &voucher.signature, &message));
    let distribute = Call::Distribute { recipients: program::all_to(world.terms.seller.pay_to).to_vec() };
    assert_eq!(world.last_calls(), [Call::SettleAndSeal { has_voucher: true }, distribute]);
    assert_eq!(world.state(|state| *state.heights.last().unwrap()), 900, "the blockhash's own last height");
    assert_eq!(*world.signer.signed.lock(), ["open", "close"]);

    assert_eq!(world.close(Some(30_000)).await.unwrap(), close, "asked again, the same answer");
    assert_eq!(world.sent(), 2, "and nothing sent again");
}

#[tokio::test]
async fn a_close_without_anything_new_seals_at_the_watermark() {
    for (settled, voucher) in [(0, None), (5_000, Some(5_000)), (5_000, None), (0, Some(0))] {
        let world = World::batch();
        world.open().await;
        world.change(|channel| channel.settled = settled);
        let close = world.close(voucher).await.unwrap();
        assert_eq!((close.claimed, close.returned), (Amount::from(settled), Amount::from(DEPOSIT - settled)));
        assert_eq!(world.last_calls()[0], Call::SettleAndSeal { has_voucher: false });
        assert_eq!(world.state(|state| state.sent[1].instructions().len()), 2);
    }
}

#[tokio::test]
async fn a_close_follows_the_channels_state() {
    let started = NOW_SECONDS - 100;
    let closing = |since: i64| {
        move |channel: &mut ChannelAccount| {
            channel.status = ChannelStatus::Closing;
            channel.closure_started_at = since;
        }
    };
    let world = World::batch();
    world.open().await;
    world.change(closing(started));
    assert_eq!(world.close(Some(10)).await.unwrap().claimed, Amount::from(10), "within the grace period");

    let world = World::batch();
    world.open().await;
    world.change(closing(NOW_SECONDS - 3_600));
    assert_eq!(world.close(Some(10)).await.unwrap().claimed, Amount::ZERO, "after it, the voucher is lost");
    assert_eq!(world.last_calls()[0], Call::Seal);

    let world = World::batch();
    world.open().await;
    world.change(|channel| {
        channel.status = ChannelStatus::Sealed;
        channel.settled = 7;
    });
    assert_eq!(world.close(Some(10)).await.unwrap().claimed, Amount::from(7), "sealed elsewhere");
    assert_eq!(world.last_calls().len(), 1);
    world.clock.advance(Duration::from_secs(120));
    assert_refused(world.close(Some(10)).await, Reason::BatchCloseState, "paid out already");
    world.remove(world.terms.id);
    assert_refused(world.close(Some(10)).await, Reason::BatchCloseState, "no channel to close");
}

#[tokio::test]
async fn a_close_that_would_do_harm_is_refused() {
    let world = World::batch();
    world.open().await;
    world.change(|channel| channel.settled = 500);
    assert_refused(world.close(Some(499)).await, Reason::BatchCloseState, "behind the watermark");
    assert_refused(world.close(Some(DEPOSIT + 1)).await, Reason::BatchCloseState, "above the deposit");
    let forged = Voucher { cumulative: Amount::from(600), ..world.voucher(599) };
    let request = CloseRequest { terms: world.terms.clone(), voucher: Some(forged), voucher_expires_at: 0 };
    assert_refused(world.facilitator.close(request).await, Reason::BatchVoucherSignature, "does not verify");
    world.remove(ata(world.terms.payer));
    assert_refused(world.close(Some(600)).await, Reason::BatchSettlementSimulation, "payer's");
    world.change(|channel| {
        channel.status = ChannelStatus::Closing;
        channel.closure_started_at = NOW_SECONDS;
    });
    world.remove(ata(world.terms.seller.pay_to));
    assert_unavailable(world.close(Some(600)).await, "recipient's");
    let back = token_account(world.terms.seller.pay_to, 0);
    world.state(|state| state.accounts.insert(ata(world.terms.seller.pay_to), back));
    world.remove(ata(TREASURY_PLACEHOLDER));
    assert_unavailable(world.close(Some(600)).await, "treasury's");
    let back = token_account(TREASURY_PLACEHOLDER, 0);
    world.state(|state| state.accounts.insert(ata(TREASURY_PLACEHOLDER), back));
    assert_eq!(world.sent(), 1);
    // The payer's own account is still gone: in a forced close that must not cost the seller its money.
    assert_eq!(world.close(Some(600)).await.unwrap().claimed, Amount::from(600));
}

#[tokio::test]
async fn a_close_is_built_again_only_after_the_one_before_can_never_land() {
    let world = World::batch();
    world.open().await;
    world.state(|state| {
        state.sends.push_back(Err(ChainError::Refused("\"BlockhashNotFound\"".into())));
        state.confirmations.push_back(Ok(Confirmation::Expired));
    });
    let close = world.close(Some(10)).await.unwrap();
    let hashes: Vec<_> = world.state(|state| state.sent[1..].iter().map(|sent| sent.blockhash()[0]).collect());
    assert_eq!(hashes, [1, 2, 3], "each with a fresh blockhash");
    assert_eq!(close.transaction, world.state(|state| state.sent[3].id()));

    let world = World::batch();
    world.open().await;
    world.state(|state| state.confirmations.extend(vec![Ok(Confirmation::Expired); 3]));
    assert_unavailable(world.close(Some(10)).await, "3 attempts");
    assert_eq!(world.close(Some(10)).await.unwrap().claimed, Amount::from(10), "free to try again");

    let world = World::batch();
    world.open().await;
    world.state(|state| state.confirmations.push_back(Err(unavailable())));
    assert!(matches!(world.close(Some(10)).await, Err(FacilitatorError::Pending { .. })));
    assert_refused(world.close(Some(10)).await, Reason::DuplicateSettlement, "");
    assert_eq!(world.sent(), 2, "an unknown fate is never answered with another transaction");

    let world = World::batch();
    world.open().await;
    let failed = Confirmation::Failed { error: "Custom(2)".into() };
    world.state(|state| state.confirmations.push_back(Ok(failed)));
    assert_refused(world.close(Some(10)).await, Reason::BatchCloseState, "Custom(2)");
    assert_eq!(world.sent(), 2);
}

#[tokio::test]
async fn an_empty_fee_payer_forfeits_no_charge() {
    let errors =
        ["\"InsufficientFundsForFee\"", "\"AccountNotFound\"", r#"{"InsufficientFundsForRent":{"account_index":0}}"#];
    for error in errors {
        let world = World::upto();
        let refusal = ChainError::Refused(error.into());
        world.state(|state| state.simulations.push_back(Err(refusal.clone())));
        assert_unavailable(world.accept(true).await, "send it some SOL");
        let accepted = world.accept(true).await.unwrap();
        world.state(|state| state.sends.push_back(Err(refusal.clone())));
        assert_unavailable(world.facilitator.settle_deposit(accepted).await, "send it some SOL");
        world.open().await;
        world.state(|state| state.sends.push_back(Err(refusal)));
        assert_unavailable(world.meter(7).await, "send it some SOL");
        assert_eq!(world.meter(7).await.unwrap().claimed, Amount::from(7), "once it is filled");
    }
    let world = World::upto();
    world.state(|state| {
        let poor = r#"{"InsufficientFundsForRent":{"account_index":1}}"#.into();
        state.simulations.push_back(Err(ChainError::Refused(poor)));
    });
    assert_refused(world.accept(true).await, Reason::UptoSettlementSimulation, "InsufficientFundsForRent");
}

#[tokio::test]
async fn a_close_counts_a_top_up_that_landed_in_between() {
    let world = World::batch();
    world.open().await;
    world.state(|state| {
        state.meanwhile = Some(|accounts| {
            let channel = accounts.values_mut().find(|account| account.owner == PAYMENT_CHANNELS).unwrap();
            let mut richer = ChannelAccount::decode(&channel.data).unwrap();
            richer.deposit += 5;
            channel.data = richer.encode();
        });
    });
    let close = world.close(Some(10)).await.unwrap();
    assert_eq!((close.deposit, close.returned), (Amount::from(DEPOSIT + 5), Amount::from(DEPOSIT - 5)));
}

#[tokio::test]
async fn a_metered_request_is_closed_at_its_charge() {
    let world = World::upto();
    world.open().await;
    let close = world.meter(1_858).await.unwrap();
    assert_eq!((close.claimed, close.returned), (Amount::from(1_858), Amount::from(DEPOSIT - 1_858)));
    assert_eq!(*world.signer.signed.lock(), ["open", "voucher", "close"]);
    let sent = world.state(|state| state.sent[1].clone());
    let ed25519 = &sent.instructions()[0].data;
    let message = program::voucher_message(&world.terms.id, 1_858, EXPIRES_AT);
    let signature = Signature(ed25519[48..112].try_into().unwrap());
    assert_eq!(ed25519[112..], message);
    assert!(verify_strict(&public(GROUP), &message, &signature));
    assert_refused(world.meter(1_858).await, Reason::DuplicateSettlement, "");
    assert_eq!(world.sent(), 2);
}

#[tokio::test]
async fn a_charge_of_nothing_returns_everything_and_still_has_its_voucher() {
    let world = World::upto();
    world.open().await;
    let close = world.meter(0).await.unwrap();
    assert_eq!((close.claimed, close.returned), (Amount::ZERO, Amount::from(DEPOSIT)));
    assert_eq!(world.last_calls()[0], Call::SettleAndSeal { has_voucher: false });
    assert_eq!(*world.signer.signed.lock(), ["open", "voucher", "close"]);
}

#[tokio::test]
async fn a_metered_close_that_does_not_fit_is_refused() {
    let world = World::upto();
    world.open().await;
    assert_refused(world.meter(DEPOSIT + 1).await, Reason::UptoSettlementExceedsAmount, "above the ceiling");
    world.change(|channel| channel.deposit += 1);
    assert_refused(world.meter(1).await, Reason::UptoChannelState, "holds 100001");
    world.change(|channel| channel.deposit -= 1);
    *world.signer.signs_wrongly.lock() = true;
    assert_unavailable(world.meter(1).await, "does not verify");
    *world.signer.signs_wrongly.lock() = false;
    world.remove(ata(world.terms.payer));
    assert_eq!(world.meter(DEPOSIT).await.unwrap().returned, Amount::ZERO, "nothing to return, nothing to check");

    let batch = World::batch();
    batch.open().await;
    assert_refused(batch.meter(1).await, Reason::UptoChannelState, "not ours to sign");
    let upto = World::upto();
    assert_refused(upto.meter(1).await, Reason::UptoChannelState, "no channel to close");
}

#[tokio::test]
async fn a_deposit_that_no_claim_could_name_is_refused_before_anything_is_served() {
    let limit = |deposit_cap: u64, claim_cap: u64| Policy {
        deposit_cap: deposit_cap.into(),
        claim_cap: claim_cap.into(),
        ..Policy::unlimited(vec![seller().pay_to])
    };
    let world = World::batch().under(limit(DEPOSIT - 1, DEPOSIT));
    assert_refused(world.accept(true).await, Reason::BatchSetupTransaction, "signer.deposit_max");
    let world = World::batch().under(limit(DEPOSIT, DEPOSIT - 1));
    assert_refused(world.accept(true).await, Reason::BatchSetupTransaction, "signer.claim_max");
    let world = World::upto().under(limit(DEPOSIT - 1, DEPOSIT));
    assert_refused(world.accept(true).await, Reason::UptoOpenTransaction, "signer.deposit_max");

    // What fits once need not fit twice.
    let world = World::batch().under(limit(DEPOSIT, DEPOSIT));
    world.open().await;
    assert_refused(world.accept(false).await, Reason::BatchSetupTransaction, "open another");
    assert_eq!(*world.signer.signed.lock(), ["open"]);
}

#[test]
fn a_facilitator_signs_only_for_its_own_key() {
    let seller = Arc::new(Seller { receiver_authorizer: public(7), ..seller() });
    let clock: Arc<dyn Clock> = Arc::new(ManualClock::default());
    let policy = Arc::new(Policy::unlimited(vec![seller.pay_to]));
    let (chain, signer) = (Arc::new(FakeChain::default()), Arc::new(FakeSigner::default()));
    let made = LocalFacilitator::new(chain, signer, policy, seller, clock);
    let expected =
        LocalFacilitatorError::ForeignKey { role: "receiver authorizer", named: public(7), signs: public(GROUP) };
    assert_eq!(made.err(), Some(expected));
}
