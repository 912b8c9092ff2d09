//! A small world: the contract, a facilitator, a reader, a signer, the real ledger over a store in memory, and payers.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use turnpike::amount::{Amount, Asset};
use turnpike::clock::Clock;
use turnpike::facilitator::channels::EvmChannels;
use turnpike::ledger::channel::{Evm, EvmOnChain, Voucher};
use turnpike::ledger::memory::MemoryStore;
use turnpike::ledger::store::RecordOf;
use turnpike::ledger::{Entry, Ledger, Limits, Refused, Reservation};
use turnpike::policy::EvmPolicy;
use turnpike::scheme::evm::eip712::{Domain, voucher_digest};
use turnpike::scheme::evm::{EvmSeller, EvmTerms, TransferMethod};
use turnpike::settlement::evm::{ClaimCost, EvmOptions, EvmParts, EvmSettlement, NoEvmObserver};
use turnpike::signer::EvmSigner;
use turnpike::signer::rules::evm::{EVM_KINDS, EvmJudge, EvmRules};
use turnpike::x402::evm::{Address, AnySignature, B256};

use crate::chance::{Disk, Going, Power, Random, SimulatedClock, carry};
use crate::contract::Contract;
use crate::ports::{Facilitator, Key, OneKey, Reader, ReaderFaults, Shared, reading};

pub const CHAIN_ID: u64 = 84_532;
pub const NETWORK: &str = "eip155:84532";
pub const DEPOSIT: u128 = 1_000_000;
/// Seconds between a payer's wish to withdraw and its end.
pub const DELAY: u64 = 900;
pub const PAY_TO: Address = Address([0xA0; 20]);
pub const DOLLAR: Address = Address([0x70; 20]);
pub const EURO: Address = Address([0x71; 20]);

/// Whose signature claims need.
pub fn authorizer() -> Key {
    Key::new(1_000_000)
}

/// The merchant's account in one token.
pub fn seller(token: Address) -> EvmSeller {
    EvmSeller {
        network: NETWORK.parse().unwrap(),
        chain_id: CHAIN_ID,
        asset: Arc::new(Asset { address: token.to_string().into(), symbol: "USDC".into(), decimals: 6 }),
        token,
        token_name: "USDC".into(),
        token_version: "2".into(),
        transfer_method: TransferMethod::Eip3009,
        pay_to: PAY_TO,
        receiver_authorizer: authorizer().address(),
        withdraw_delay: DELAY,
        domain: Domain::batch_settlement(CHAIN_ID),
    }
}

pub fn rules() -> EvmRules {
    EvmRules {
        chain_id: CHAIN_ID,
        pay_to: vec![PAY_TO],
        tokens: vec![DOLLAR, EURO],
        channel_max: Amount::new(u128::MAX),
        claim_max: Amount::new(u128::MAX),
        kinds: EVM_KINDS.to_vec(),
    }
}

/// What dies in a crash.
pub struct Life {
    pub power: Arc<Power>,
    pub ledger: Arc<Ledger<Evm>>,
    pub signer: Arc<OneKey>,
    pub facilitator: Arc<Facilitator>,
    pub reader: Arc<Reader>,
}

pub struct World {
    pub random: Random,
    pub clock: Arc<SimulatedClock>,
    pub contract: Arc<Contract>,
    pub store: Arc<MemoryStore<Evm>>,
    pub facilitator: Arc<Shared>,
    pub reader: Arc<ReaderFaults>,
    /// In dollars, and in euros.
    pub sellers: [Arc<EvmSeller>; 2],
    pub limits: Limits,
    pub rules: EvmRules,
    pub policy: EvmPolicy,
    pub life: Life,
}

impl World {
    pub async fn new() -> Self {
        Self::of_chance(Random::new(0), Limits::default()).await
    }

    pub async fn limited(limits: Limits) -> Self {
        Self::of_chance(Random::new(0), limits).await
    }

    pub async fn of_chance(random: Random, limits: Limits) -> Self {
        let clock = Arc::new(SimulatedClock::start());
        let contract = Contract::new(CHAIN_ID, Arc::<SimulatedClock>::clone(&clock));
        let store = Arc::new(MemoryStore::new());
        let (facilitator, reader) = (Arc::default(), Arc::default());
        let (rules, policy) = (rules(), EvmPolicy::unlimited(vec![PAY_TO]));
        let life = live(&random, &clock, &contract, &store, &facilitator, &reader, &limits, &rules).await;
        let sellers = [DOLLAR, EURO].map(|token| Arc::new(seller(token)));
        Self { random, clock, contract, store, facilitator, reader, sellers, limits, rules, policy, life }
    }

    /// The process ends, and another one starts on what was durable.
    pub async fn restart(&mut self) {
        self.life.power.cut();
        self.store = Arc::new(self.store.crash());
        self.life = live(
            &self.random,
            &self.clock,
            &self.contract,
            &self.store,
            &self.facilitator,
            &self.reader,
            &self.limits,
            &self.rules,
        )
        .await;
    }

    /// Goes on with this until it has ended, or the power fails. Says whether it ended.
    pub async fn runs(&self, work: impl Future<Output = ()> + 'static) -> bool {
        let going = vec![Going { name: "it".into(), work: Box::pin(work), polls_left: None }];
        let mut ended = false;
        carry(going, &self.random, &self.life.power, |_| ended = true).await;
        ended
    }

    /// Everything is asked for, of whatever age and size.
    pub fn options(&self) -> EvmOptions {
        EvmOptions::new(self.sellers.to_vec())
    }

    pub fn settlement(&self) -> EvmSettlement {
        self.settlement_with(self.options())
    }

    pub fn settlement_with(&self, options: EvmOptions) -> EvmSettlement {
        let reader: Arc<Reader> = Arc::clone(&self.life.reader);
        EvmSettlement::new(self.parts(reader, None), options)
    }

    pub fn parts(&self, channels: Arc<dyn EvmChannels>, cost: Option<Arc<dyn ClaimCost>>) -> EvmParts {
        EvmParts {
            ledger: Arc::clone(&self.life.ledger),
            facilitator: Arc::<Facilitator>::clone(&self.life.facilitator),
            channels,
            signer: Arc::<OneKey>::clone(&self.life.signer),
            policy: Arc::new(self.policy.clone()),
            cost,
            clock: Arc::<SimulatedClock>::clone(&self.clock),
            observer: Arc::new(NoEvmObserver),
        }
    }

    /// The same with another signer.
    pub fn parts_signed_by(&self, signer: Arc<dyn EvmSigner>) -> EvmParts {
        EvmParts { signer, ..self.parts(Arc::<Reader>::clone(&self.life.reader), None) }
    }

    /// Payer `n`'s channel, in dollars.
    pub fn terms(&self, n: u32) -> EvmTerms {
        self.terms_in(0, n)
    }

    /// In dollars (0) or euros (1).
    pub fn terms_in(&self, currency: usize, n: u32) -> EvmTerms {
        let key = Key::new(n).address();
        EvmTerms::derive(Arc::clone(&self.sellers[currency]), key, key, B256::ZERO)
    }

    /// The channel of a payer that is a contract.
    pub fn wallet_terms(&self, n: u32) -> EvmTerms {
        let payer = Key::new(n).address();
        EvmTerms::derive(Arc::clone(&self.sellers[0]), payer, Address::ZERO, B256::ZERO)
    }

    pub fn id(&self, n: u32) -> B256 {
        self.terms(n).id
    }

    pub fn record(&self, n: u32) -> RecordOf<Evm> {
        self.life.ledger.channel(&self.id(n)).unwrap()
    }

    pub fn charged(&self, terms: &EvmTerms) -> u128 {
        self.life.ledger.channel(&terms.id).map_or(0, |record| record.charged.get())
    }

    /// A deposit by payer `n`, as its confirmation tells the state after it.
    pub fn deposit(&self, terms: &EvmTerms, amount: u128) -> EvmOnChain {
        self.contract.deposit(&terms.config(), amount);
        self.read_now(terms)
    }

    /// What the chain says of a channel.
    pub fn read_now(&self, terms: &EvmTerms) -> EvmOnChain {
        reading(&self.contract, &record_of(terms), false, self.clock.as_ref())
    }

    /// Charges payer `n`'s channel, which is opened where it is not there.
    pub async fn charge(&self, n: u32, amount: u128) {
        self.charge_part(&self.terms(n), n, amount, amount).await;
    }

    /// Charges a part of a voucher over `price` more.
    pub async fn charge_part(&self, terms: &EvmTerms, n: u32, amount: u128, price: u128) {
        let opened = self.life.ledger.channel(&terms.id).is_none().then(|| self.deposit(terms, DEPOSIT));
        let reservation = self.reserve(terms, n, price, opened.map(|state| state.balance)).await.unwrap();
        reservation.charging(Amount::new(amount)).commit(opened).await.unwrap();
    }

    /// A request of payer `n` that is being served.
    pub async fn reserve(
        &self,
        terms: &EvmTerms,
        n: u32,
        price: u128,
        deposit_after: Option<Amount>,
    ) -> Result<Reservation<Evm>, Refused<Evm>> {
        let cumulative = self.charged(terms) + price;
        let voucher = voucher(terms, n, cumulative);
        let entry = Entry { terms: terms.clone(), voucher, amount: Amount::new(price), deposit_after };
        self.life.ledger.reserve(entry).await
    }

    pub async fn pass(&self, seconds: u64) {
        tokio::time::advance(Duration::from_secs(seconds)).await;
    }

    pub fn now(&self) -> i64 {
        self.clock.now().seconds()
    }

    /// What the merchant has got, in dollars.
    pub fn paid(&self) -> u128 {
        self.contract.tokens(DOLLAR, PAY_TO)
    }

    /// No channel is claimed above its charge or its voucher, and the ledger does not think so either.
    pub fn check(&self) {
        self.life.ledger.health().unwrap();
        self.contract.check();
        let mut charged = 0;
        self.life.ledger.for_each(&mut |record| {
            let claimed = Amount::new(self.contract.claimed(&record.terms.id));
            assert!(claimed <= record.charged, "L3: {} is claimed above its charge", record.terms.id);
            assert!(record.on_chain.claimed <= claimed, "the ledger is ahead of the chain");
            let signed = record.voucher.as_ref().map_or(Amount::ZERO, |voucher| voucher.cumulative);
            assert!(record.charged <= signed.max(claimed), "L2");
            charged += record.charged.get();
        });
        let paid: u128 = [DOLLAR, EURO].iter().map(|token| self.contract.tokens(*token, PAY_TO)).sum();
        assert!(paid <= charged, "the merchant was paid more than was charged");
    }

    /// Everything that was charged is claimed, paid out and known: `sum` in dollars.
    pub fn assert_tied(&self, sum: u128) {
        self.check();
        assert_eq!(self.paid(), sum);
        let (mut charged, mut claimed) = (0, 0);
        self.life.ledger.for_each(&mut |record| {
            if record.terms.seller.token == DOLLAR {
                charged += record.charged.get();
                claimed += record.on_chain.claimed.get();
                assert_eq!(record.on_chain.claimed.get(), self.contract.claimed(&record.terms.id));
            }
        });
        assert_eq!((charged, claimed), (sum, sum));
        assert_eq!(self.contract.unsettled(PAY_TO, DOLLAR, false), 0);
        assert!(self.life.ledger.open_batches().is_empty());
        assert_eq!(self.life.ledger.counts().1, 0, "a reservation outlives its request");
    }
}

/// Payer `n`'s voucher.
pub fn voucher(terms: &EvmTerms, n: u32, cumulative: u128) -> Voucher<AnySignature> {
    let cumulative = Amount::new(cumulative);
    let signature = Key::new(n).sign(&voucher_digest(&terms.seller.domain, &terms.id, cumulative));
    Voucher { cumulative, signature: signature.into() }
}

/// A channel that is in nobody's books.
pub fn record_of(terms: &EvmTerms) -> RecordOf<Evm> {
    use turnpike::clock::UnixMillis;
    use turnpike::ledger::channel::{ChainState, ChannelOf};
    let channel = ChannelOf::<Evm>::proposed(UnixMillis(0));
    RecordOf::<Evm>::of(terms.clone(), &ChannelOf::<Evm> { on_chain: EvmOnChain::none(UnixMillis(0)), ..channel })
}

#[allow(clippy::too_many_arguments, reason = "what survives a crash, once said")]
async fn live(
    random: &Random,
    clock: &Arc<SimulatedClock>,
    contract: &Arc<Contract>,
    store: &Arc<MemoryStore<Evm>>,
    facilitator: &Arc<Shared>,
    reader: &Arc<ReaderFaults>,
    limits: &Limits,
    rules: &EvmRules,
) -> Life {
    let power = Power::new(random.clone());
    let clock: Arc<dyn Clock> = Arc::<SimulatedClock>::clone(clock);
    let disk = Arc::new(Disk { store: Arc::clone(store), power: Arc::clone(&power) });
    let ledger = Ledger::open(disk, Arc::clone(&clock), limits.clone()).await.unwrap();
    let key = authorizer();
    let judge = Arc::new(EvmJudge::new(rules.clone(), key.address()));
    let signer = Arc::new(OneKey { key, judge, power: Arc::clone(&power), down: AtomicBool::new(false) });
    let facilitator = Facilitator::new(contract, Domain::batch_settlement(CHAIN_ID), &power, facilitator);
    let (contract, shared) = (Arc::clone(contract), Arc::clone(reader));
    let reader = Arc::new(Reader { contract, clock, power: Arc::clone(&power), shared });
    Life { power, ledger, signer, facilitator: Arc::new(facilitator), reader }
}
