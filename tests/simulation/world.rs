//! One world: a chain, a shop that lives and crashes, and its clients.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash};
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ed25519_dalek::SigningKey;
use parking_lot::Mutex;
use turnpike::amount::{Amount, Asset};
use turnpike::chain::sandbox::{Options as ChainOptions, SandboxChain};
use turnpike::chain::{Blockhash, Chain};
use turnpike::clock::Clock;
use turnpike::facilitator::Facilitator;
use turnpike::facilitator::local::LocalFacilitator;
use turnpike::gate::charge::Meter;
use turnpike::gate::route::{Offer, Payee, Pricing, Route};
use turnpike::gate::{Gate, Options as GateOptions, Outcome};
use turnpike::ledger::channel::{Seller, Terms};
use turnpike::ledger::memory::MemoryStore;
use turnpike::ledger::{Ledger, Limits};
use turnpike::policy::Policy;
use turnpike::scheme::svm::program::ChannelStatus;
use turnpike::scheme::svm::{TOKEN_PROGRAM, USDC_DEVNET, treasury_owner};
use turnpike::settlement::reconcile::{Verdict, tie_out};
use turnpike::settlement::{Filter, NoObserver, Options as SettlementOptions, Settlement};
use turnpike::signer::Signer;
use turnpike::signer::rules::{ComputeCaps, Judge, KINDS, Rules};
use turnpike::x402::key::Signature;
use turnpike::x402::network::SOLANA_DEVNET;
use turnpike::x402::wire::PaymentRequirements;
use turnpike::x402::{Key, Network};

use crate::books::{Books, claims};
use crate::chance::{Disk, Going, Power, Random, SimulatedClock, carry};
use crate::client::{COST, Client, ask};
use crate::ports::{Node, OneKey};
use crate::{CEILING, CLIENTS, DELAY, FUNDS, METERED_SECONDS, PRICE};

/// How many of its last steps a world can tell.
const STEPS_TOLD: usize = 40;

/// What is the same in every world.
pub struct Shop {
    pub seller: Arc<Seller>,
    pub fixed: Arc<Route>,
    pub metered: Arc<Route>,
    group: SigningKey,
    judge: Arc<Judge>,
    clients: Vec<SigningKey>,
}

impl Shop {
    pub fn get() -> &'static Self {
        static SHOP: OnceLock<Shop> = OnceLock::new();
        SHOP.get_or_init(Self::new)
    }

    fn new() -> Self {
        let key = |seed: u8| SigningKey::from_bytes(&[seed; 32]);
        let address = |key: &SigningKey| Key(key.verifying_key().to_bytes());
        let network: Network = SOLANA_DEVNET.parse().unwrap();
        let (group, pay_to) = (key(7), address(&key(8)));
        let fee_payer = address(&group);
        let rules = Rules {
            network: network.clone(),
            pay_to: vec![pay_to],
            mints: vec![(USDC_DEVNET, TOKEN_PROGRAM)],
            treasury_owner: treasury_owner(&network),
            deposit_max: u64::MAX,
            claim_max: u64::MAX,
            compute: ComputeCaps::default(),
            kinds: KINDS.to_vec(),
        };
        let asset = Asset { address: USDC_DEVNET.to_string().into(), symbol: "USDC".into(), decimals: 6 };
        let seller = Arc::new(Seller {
            asset: Arc::new(asset),
            mint: USDC_DEVNET,
            token_program: TOKEN_PROGRAM,
            pay_to,
            fee_payer,
            receiver_authorizer: fee_payer,
            withdraw_delay: DELAY,
            treasury_owner: treasury_owner(&network),
            network,
        });
        let offer = |amount: u64| Offer {
            payee: Payee::Svm(Arc::clone(&seller)),
            amount: amount.into(),
            min_deposit: None,
            max_timeout_seconds: METERED_SECONDS,
            memo: None,
        };
        let route = |name: &str, pricing| {
            Arc::new(Route {
                name: name.into(),
                host: None,
                methods: Vec::new(),
                path: name.into(),
                pricing,
                upstream: None,
                timeout: None,
                description: None,
                mime_type: None,
                policy: None,
                scope: name.into(),
                pack: None,
            })
        };
        let meter = Some(Meter::charge(http::HeaderName::from_static(COST)));
        Self {
            fixed: route("/x", Pricing::Fixed(vec![offer(PRICE)])),
            metered: route("/y", Pricing::Metered { offers: vec![offer(CEILING)], meter }),
            judge: Arc::new(Judge::new(rules, fee_payer)),
            clients: (100..).take(CLIENTS).map(key).collect(),
            seller,
            group,
        }
    }
}

/// What dies in a crash.
pub struct Life {
    pub power: Arc<Power>,
    pub ledger: Arc<Ledger>,
    pub gate: Arc<Gate>,
    pub settlement: Arc<Settlement>,
}

pub struct World {
    pub shop: &'static Shop,
    pub random: Random,
    pub clock: Arc<SimulatedClock>,
    pub chain: SandboxChain,
    pub store: Arc<MemoryStore>,
    pub life: Life,
    pub clients: Vec<Client>,
    pub books: Rc<RefCell<Books>>,
    /// The offers, as an unpaid request is answered.
    pub fixed: PaymentRequirements,
    pub metered: PaymentRequirements,
    /// When the last round of settlement was let come to its end.
    pub settled_at: i64,
    sent: Arc<Mutex<HashMap<Signature, Vec<u8>>>>,
    told: Rc<RefCell<Told>>,
}

/// What a world tells of its steps: the last of them, and a digest of all.
#[derive(Default)]
pub struct Told {
    pub last: VecDeque<String>,
    pub digest: DefaultHasher,
}

impl Told {
    fn tell(&mut self, now: i64, line: String) {
        (now, &line).hash(&mut self.digest);
        if self.last.len() >= STEPS_TOLD {
            self.last.pop_front();
        }
        self.last.push_back(line);
    }
}

impl World {
    pub async fn new(seed: u64, told: Rc<RefCell<Told>>) -> Self {
        let shop = Shop::get();
        let clock = Arc::new(SimulatedClock::start());
        let random = Random::new(seed);
        let options = ChainOptions::new(shop.seller.network.clone()).clock(Arc::<SimulatedClock>::clone(&clock));
        let chain = SandboxChain::new(options.seed(seed));
        chain.airdrop(&shop.seller.fee_payer, 1_000_000_000_000).unwrap();
        chain.mint_to(&shop.seller.pay_to, 0).unwrap();
        let clients: Vec<_> =
            shop.clients.iter().map(|key| Client::new(key.clone(), Arc::clone(&shop.seller))).collect();
        for client in &clients {
            chain.mint_to(&client.address, FUNDS).unwrap();
            chain.airdrop(&client.address, 1_000_000_000).unwrap();
        }
        let store = Arc::new(MemoryStore::new());
        let sent = Arc::default();
        let life = live(shop, &store, &chain, &sent, &clock, &random).await;
        let fixed = offer(&life.gate, &shop.fixed).await;
        let metered = offer(&life.gate, &shop.metered).await;
        let settled_at = clock.now().seconds();
        let books = Rc::default();
        Self { shop, random, clock, chain, store, life, clients, books, fixed, metered, settled_at, sent, told }
    }

    pub fn now(&self) -> i64 {
        self.clock.now().seconds()
    }

    /// What a client builds a transaction on; it asks until it is answered.
    pub async fn blockhash(&self) -> Blockhash {
        loop {
            if let Ok(blockhash) = self.chain.latest_blockhash().await {
                return blockhash;
            }
        }
    }

    pub fn tell(&self, line: impl Into<String>) {
        self.told.borrow_mut().tell(self.clock.now().0, line.into());
    }

    /// A client's newest channel that is open, its deposit, and what was charged on it.
    pub fn open_channel(&self, n: usize) -> Option<(Terms, u64, u64)> {
        let newest = |terms: &&Terms| {
            let account = self.chain.channel(&terms.id).filter(|account| account.status == ChannelStatus::Open)?;
            let charged = self.life.ledger.channel(&terms.id).and_then(|record| record.charged.to_u64());
            Some((Terms::clone(terms), account.deposit, charged.unwrap_or(account.settled)))
        };
        self.clients[n].channels.iter().rev().find_map(|terms| newest(&terms))
    }

    /// Lets all of this go on at once until it has ended or the power fails, and looks into the books all the while.
    pub async fn carry(&self, going: Vec<Going>) {
        let (ledger, chain) = (&self.life.ledger, &self.chain);
        carry(going, &self.random, &self.life.power, |line| {
            self.tell(format!("  {line}"));
            let mut books = self.books.borrow_mut();
            books.counts.dropped += u64::from(line.ends_with("dropped"));
            books.check(ledger, chain, self.clock.now().seconds());
        })
        .await;
    }

    /// Ends a life, unless its power has failed already, and begins the next.
    pub async fn crash(&mut self) {
        let halfway = !self.life.power.is_on();
        self.life.power.cut();
        self.store = Arc::new(self.store.crash());
        let (shop, store, chain) = (self.shop, &self.store, &self.chain);
        self.life = live(shop, store, chain, &self.sent, &self.clock, &self.random).await;
        let found = self.life.ledger.open_metered().len();
        self.tell(format!("crash{}; {found} metered calls are found open", if halfway { " halfway" } else { "" }));
        let mut books = self.books.borrow_mut();
        books.counts.crashes += 1;
        books.counts.crashes_halfway += u64::from(halfway);
        books.counts.recovered += u64::try_from(found).unwrap();
        drop(books);
        self.check();
    }

    pub fn check(&self) {
        self.books.borrow_mut().check(&self.life.ledger, &self.chain, self.now());
    }

    /// Nothing goes wrong any more, and time goes on until everything has come to rest: then the money ties out.
    pub async fn finish(&mut self) {
        self.chain.set_faults(turnpike::chain::sandbox::Faults::default());
        self.chain.release_held();
        if self.random.one_in(2) {
            self.crash().await;
        } else {
            self.life.power.fails_after(0);
            self.store.fault_at(u64::MAX, turnpike::ledger::memory::Fault::Fail);
        }
        for _ in 0..6 {
            tokio::time::sleep(Duration::from_secs(120)).await;
            self.life.settlement.watch().await.unwrap();
            self.life.settlement.settle_now(&Filter::All).await;
            self.check();
        }
        self.life.gate.settled().await;
        self.check();
        assert!(self.life.power.is_on(), "the last life lives on");
        let tie = tie_out(&self.life.ledger, &self.chain).await.unwrap();
        for line in tie.faults() {
            assert_eq!(line.verdict, Verdict::Behind, "the books do not tie out: {line:?}");
        }
        let payers = self.clients.iter().map(|client| self.chain.token_balance(&client.address)).sum();
        let merchant = self.chain.token_balance(&self.shop.seller.pay_to);
        let treasury = self.chain.token_balance(&self.shop.seller.treasury_owner);
        let supply = u64::try_from(CLIENTS).unwrap() * FUNDS;
        let claims = claims(&self.effective().await);
        let mut books = self.books.borrow_mut();
        books.close(&self.chain, &claims, payers, merchant, treasury, supply);
    }

    /// The transactions of ours that took effect.
    async fn effective(&self) -> HashMap<Signature, Vec<u8>> {
        let sent: Vec<_> = self.sent.lock().drain().collect();
        let ids: Vec<_> = sent.iter().map(|(id, _)| *id).collect();
        let statuses = self.chain.statuses(&ids).await.unwrap();
        let took_effect = statuses.into_iter().map(|status| status.is_some_and(|status| status.error.is_none()));
        sent.into_iter().zip(took_effect).filter_map(|(sent, took_effect)| took_effect.then_some(sent)).collect()
    }
}

async fn live(
    shop: &Shop,
    store: &Arc<MemoryStore>,
    chain: &SandboxChain,
    sent: &Arc<Mutex<HashMap<Signature, Vec<u8>>>>,
    clock: &Arc<SimulatedClock>,
    random: &Random,
) -> Life {
    let power = Power::new(random.clone());
    let clock: Arc<dyn Clock> = Arc::<SimulatedClock>::clone(clock);
    let (sent, seller) = (Arc::clone(sent), &shop.seller);
    let chain: Arc<dyn Chain> = Arc::new(Node { chain: chain.clone(), power: Arc::clone(&power), sent });
    let (key, judge) = (shop.group.clone(), Arc::clone(&shop.judge));
    let signer: Arc<dyn Signer> = Arc::new(OneKey { key, judge, power: Arc::clone(&power) });
    let disk = Arc::new(Disk { store: Arc::clone(store), power: Arc::clone(&power) });
    let ledger = Ledger::open(disk, Arc::clone(&clock), Limits::default()).await.unwrap();
    let policy = Arc::new(Policy::unlimited(vec![seller.pay_to]));
    let (a, b, c, d) = (Arc::clone(&chain), Arc::clone(&signer), Arc::clone(&policy), Arc::clone(seller));
    let facilitator = LocalFacilitator::new(a, b, c, d, Arc::clone(&clock)).unwrap();
    let facilitator = facilitator.confirm_within(Duration::from_millis(80));
    let facilitator: Arc<dyn Facilitator> = Arc::new(facilitator);
    let gate = Gate::new(
        Arc::clone(&ledger),
        [(seller.network.clone(), facilitator)],
        Arc::clone(&clock),
        GateOptions { hints: false, ..GateOptions::default() },
    );
    gate.recover();
    let mut options = SettlementOptions::new(vec![Arc::clone(seller)]);
    options.rules.min_amount = Amount::new(1);
    options.confirm_wait = Duration::from_millis(80);
    let settlement = Settlement::new(Arc::clone(&ledger), chain, signer, policy, clock, options, Arc::new(NoObserver));
    Life { power, ledger, gate, settlement: Arc::new(settlement) }
}

async fn offer(gate: &Arc<Gate>, route: &Arc<Route>) -> PaymentRequirements {
    match gate.admit(ask(route, None)).await {
        Outcome::Challenge(challenge) => challenge.demand.v2.accepts[0].clone(),
        _ => panic!("an unpaid request was not challenged"),
    }
}
