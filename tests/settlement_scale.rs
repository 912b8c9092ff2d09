//! Settlement of many channels that are due at once: how much is looked at, kept and under way, counted. Over the
//! sandbox's chain, the real ledger and a store in memory; how long it takes is `benches/settlement.rs`.

#[path = "support/channels.rs"]
mod channels;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use ed25519_dalek::{Signer as _, SigningKey};
use turnpike::amount::{Amount, Asset};
use turnpike::chain::Chain;
use turnpike::chain::sandbox::{Options as SandboxOptions, SandboxChain};
use turnpike::clock::{Clock, ManualClock, UnixMillis};
use turnpike::ledger::channel::{OnChain, Seller, Terms, Voucher};
use turnpike::ledger::memory::MemoryStore;
use turnpike::ledger::store::{BatchKind, BatchRecord, Store, Write};
use turnpike::ledger::{Entry, Ledger, Limits};
use turnpike::policy::Policy;
use turnpike::scheme::svm::program::{ChannelAccount, ChannelStatus, voucher_message};
use turnpike::scheme::svm::{TOKEN_PROGRAM, treasury_owner};
use turnpike::settlement::batches::BATCHES_LISTED_MAX;
use turnpike::settlement::reconcile::tie_out;
use turnpike::settlement::{Filter, Observer, Options, Outcome, Settlement, Trigger};
use turnpike::signer::{Approved, Signer, SignerError, SigningRequest};
use turnpike::x402::Key;
use turnpike::x402::key::Signature;

const DELAY: u32 = 900;
const DEPOSIT: u64 = 1_000_000;
/// Of channel `n`, this and `n` more is charged.
const CHARGE: u64 = 20_000;
const OPEN_SLOT: u64 = 9_990;

fn key(number: u8) -> SigningKey {
    SigningKey::from_bytes(&[number; 32])
}

fn public(number: u8) -> Key {
    Key(key(number).verifying_key().to_bytes())
}

const PAYER: u8 = 1;
const MERCHANT: u8 = 2;
const PAY_TO: u8 = 3;

/// The whole key, in place of a threshold of shares.
struct WholeKey(Arc<UnderWay>);

#[async_trait]
impl Signer for WholeKey {
    fn public_key(&self) -> Key {
        public(MERCHANT)
    }

    async fn sign(&self, approved: Approved) -> Result<Signature, SignerError> {
        let (SigningRequest::Claim { transaction, .. }
        | SigningRequest::Distribute { transaction, .. }
        | SigningRequest::Close { transaction, .. }) = approved.into_request()
        else {
            panic!("none of the settlement's");
        };
        self.0.begin();
        // Others get a turn, so that batches are under way together.
        tokio::task::yield_now().await;
        Ok(Signature(key(MERCHANT).sign(transaction.message()).to_bytes()))
    }

    fn health(&self) -> Result<(), String> {
        Ok(())
    }
}

/// How many batches are under way, and how many were at most.
#[derive(Default)]
struct UnderWay {
    now: AtomicUsize,
    most: AtomicUsize,
}

impl UnderWay {
    fn begin(&self) {
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
    }
}

impl Observer for UnderWay {
    fn confirmed(&self, _batch: &BatchRecord, _moved: Amount, _took: Duration) {
        self.now.fetch_sub(1, Ordering::SeqCst);
    }

    fn dropped(&self, _batch: &BatchRecord, _why: &str) {
        self.now.fetch_sub(1, Ordering::SeqCst);
    }
}

struct World {
    clock: Arc<ManualClock>,
    chain: Arc<SandboxChain>,
    ledger: Arc<Ledger>,
    seller: Arc<Seller>,
    under_way: Arc<UnderWay>,
}

impl World {
    /// A ledger and a chain with this many channels, of each of which something is charged and not claimed.
    async fn with_channels(count: u64) -> Self {
        let network: turnpike::x402::Network = "solana:EtWTRABZaYq6iMfeYKouRu166VU2xqa1".parse().unwrap();
        let clock = Arc::new(ManualClock::new(UnixMillis(1_800_000_000_000)));
        let options = SandboxOptions::new(network.clone()).clock(Arc::<ManualClock>::clone(&clock));
        let chain = Arc::new(SandboxChain::new(options));
        chain.airdrop(&public(MERCHANT), 1_000_000_000_000).unwrap();
        for owner in [PAYER, PAY_TO] {
            chain.mint_to(&public(owner), 0).unwrap();
        }
        let asset = Asset { address: chain.usdc().to_string().into(), symbol: "USDC".into(), decimals: 6 };
        let seller = Arc::new(Seller {
            asset: Arc::new(asset),
            mint: chain.usdc(),
            token_program: TOKEN_PROGRAM,
            pay_to: public(PAY_TO),
            fee_payer: public(MERCHANT),
            receiver_authorizer: public(MERCHANT),
            withdraw_delay: DELAY,
            treasury_owner: treasury_owner(&network),
            network,
        });
        let store = Arc::new(MemoryStore::new());
        let mut writes = Vec::new();
        for number in 0..count {
            let terms = terms(&seller, number);
            open(&chain, &terms);
            writes.push(Write::Channel(Box::new(channels::owing(
                terms,
                &key(PAYER),
                DEPOSIT,
                CHARGE + number,
                clock.now(),
            ))));
        }
        store.write(writes).await.unwrap();
        let ledger = Ledger::open(store, Arc::<ManualClock>::clone(&clock), Limits::default()).await.unwrap();
        Self { clock, chain, ledger, seller, under_way: Arc::default() }
    }

    fn settlement(&self, change: impl FnOnce(&mut Options)) -> Settlement {
        let mut options = Options::new(vec![Arc::clone(&self.seller)]);
        change(&mut options);
        Settlement::new(
            Arc::clone(&self.ledger),
            Arc::<SandboxChain>::clone(&self.chain),
            Arc::new(WholeKey(Arc::clone(&self.under_way))),
            Arc::new(Policy::unlimited(vec![self.seller.pay_to])),
            Arc::<ManualClock>::clone(&self.clock),
            options,
            Arc::<UnderWay>::clone(&self.under_way),
        )
    }

    /// The payer closes a channel.
    fn request_close(&self, number: u64) -> Key {
        let id = terms(&self.seller, number).id;
        let mut account = self.chain.channel(&id).unwrap();
        account.status = ChannelStatus::Closing;
        account.closure_started_at = self.chain.unix_time();
        put(&self.chain, id, &account);
        id
    }

    /// Somebody pays for a request on a channel.
    async fn charge(&self, number: u64) {
        let terms = terms(&self.seller, number);
        let cumulative = self.ledger.channel(&terms.id).unwrap().charged.to_u64().unwrap() + 1;
        let signature = Signature(key(PAYER).sign(&voucher_message(&terms.id, cumulative, 0)).to_bytes());
        let voucher = Voucher { cumulative: cumulative.into(), signature };
        let entry = Entry { terms, voucher, amount: Amount::new(1), deposit_after: None };
        self.ledger.reserve(entry).await.unwrap().commit(None).await.unwrap();
    }

    async fn on_chain(&self, id: &Key) -> OnChain {
        let account = self.chain.account(id).await.unwrap().unwrap();
        OnChain::of(&ChannelAccount::decode(&account.data).unwrap(), self.clock.now())
    }

    fn paid(&self) -> u64 {
        self.chain.token_balance(&public(PAY_TO))
    }

    async fn assert_tied(&self, count: u64) {
        let sum = sum(count);
        let tie = tie_out(&self.ledger, self.chain.as_ref()).await.unwrap();
        assert!(tie.ties(), "{:?}", tie.faults().next());
        let (totals, all) = (tie.totals, Amount::from(sum));
        assert_eq!((totals.charged, totals.claimed, totals.distributed), (all, all, all));
        assert_eq!(self.paid(), sum);
        assert!(self.ledger.open_batches().is_empty());
        self.ledger.health().unwrap();
    }
}

/// What is charged on so many channels.
fn sum(channels: u64) -> u64 {
    (0..channels).map(|number| CHARGE + number).sum()
}

fn terms(seller: &Arc<Seller>, number: u64) -> Terms {
    Terms::derive(Arc::clone(seller), public(PAYER), public(PAYER), number, OPEN_SLOT)
}

/// Puts a channel on chain with its deposit.
fn open(chain: &SandboxChain, terms: &Terms) {
    chain.mint_to(&terms.id, DEPOSIT).unwrap();
    put(chain, terms.id, &channels::account(terms, DEPOSIT));
}

fn put(chain: &SandboxChain, id: Key, account: &ChannelAccount) {
    chain.set_account(id, channels::on_chain(account));
}

#[tokio::test]
async fn many_channels_due_at_once_are_settled_in_bounded_work() {
    const CHANNELS: u64 = 2_400;
    const BACKLOG: usize = 600;
    const IN_FLIGHT: usize = 4;
    let world = World::with_channels(CHANNELS).await;
    let settlement = world.settlement(|options| {
        options.backlog_channels_max = BACKLOG;
        options.in_flight_max = IN_FLIGHT;
    });
    let report = settlement.settle_now(&Filter::All).await;

    let batches = usize::try_from(CHANNELS).unwrap() / 4 * 2;
    let ends = report.batches.ends();
    assert_eq!((ends.confirmed, ends.unsettled()), (batches, 0), "{:?}", report.batches.first());
    let sum = Amount::from(sum(CHANNELS));
    assert_eq!([BatchKind::Claim, BatchKind::Distribute].map(|kind| report.moved(kind)), [sum, sum]);
    // One look for each backlog, and the last one that finds nothing; not one for each of the rounds.
    assert!(report.rounds >= 10, "{}", report.rounds);
    assert!(report.looks <= usize::try_from(CHANNELS).unwrap() / BACKLOG + 1, "looked {} times", report.looks);
    assert_eq!(world.under_way.most.load(Ordering::SeqCst), IN_FLIGHT);
    assert_eq!((report.batches.len(), report.batches.left_off()), (BATCHES_LISTED_MAX, batches - BATCHES_LISTED_MAX));
    world.assert_tied(CHANNELS).await;
}

#[tokio::test]
async fn what_is_charged_meanwhile_is_for_the_next_time() {
    let world = World::with_channels(200).await;
    let settlement = world.settlement(|options| options.round_channels_max = 20);
    let mut charges = 0;
    let requests = async {
        loop {
            world.clock.advance(Duration::from_millis(1));
            world.charge(charges % 3).await;
            charges += 1;
            tokio::task::yield_now().await;
        }
    };
    let report = tokio::select! {
        report = settlement.settle_now(&Filter::All) => report,
        () = requests => unreachable!(),
    };
    assert!(charges > 30, "requests came in all the time: {charges}");
    let claims = report.batches.iter().filter(|batch| batch.kind == BatchKind::Claim);
    let mut claimed: Vec<Key> = claims.flat_map(|batch| batch.lines.iter().map(|(id, _)| *id)).collect();
    assert_eq!(claimed.len(), 200);
    claimed.sort_unstable();
    claimed.dedup();
    assert_eq!(claimed.len(), 200, "each once");
    world.clock.advance(Duration::from_millis(1));
    settlement.settle_now(&Filter::All).await;
    assert_eq!(world.paid(), sum(200) + charges);
}

#[tokio::test(start_paused = true)]
async fn batches_keep_their_pace_and_a_deadline_does_not_wait_for_it() {
    let world = World::with_channels(40).await;
    let closing = world.request_close(0);
    world.ledger.observe(&closing, world.on_chain(&closing).await).await.unwrap();
    let pace = Duration::from_secs(60);
    let settlement = world.settlement(|options| options.pace = pace);
    let started = tokio::time::Instant::now();
    let report = settlement.settle_now(&Filter::All).await;
    let ends = report.batches.ends();
    // Ten claims of up to four, and ten payouts; the seal comes first, and waits for nothing.
    assert_eq!((ends.confirmed, ends.unsettled()), (21, 0));
    assert_eq!(report.batches.first().unwrap().kind, BatchKind::Seal);
    assert!(started.elapsed() >= pace * 18, "{:?}", started.elapsed());
    assert!(started.elapsed() <= pace * 20, "{:?}", started.elapsed());
    assert_eq!(world.paid(), sum(40));
}

#[tokio::test(start_paused = true)]
async fn what_is_due_for_far_too_long_keeps_no_pace() {
    let world = World::with_channels(40).await;
    let settlement = world.settlement(|options| {
        options.pace = Duration::from_secs(60);
        options.round_channels_max = 20;
        options.rules.max_age = Duration::from_secs(3600);
    });
    let mut took = Vec::new();
    for _ in 0..2 {
        world.clock.advance(Duration::from_secs(3600));
        let started = tokio::time::Instant::now();
        let report = settlement.step(Trigger::Clock).await;
        assert_eq!(report.batches.ends().confirmed, 10);
        took.push(started.elapsed());
    }
    // Five claims, then five payouts, which are never late.
    let paced = Duration::from_secs(4 * 60);
    assert!(took[0] >= paced * 2 && took[1] >= paced && took[1] < paced * 2, "{took:?}");
}

#[tokio::test]
async fn the_largest_are_claimed_first_over_all_rounds() {
    let world = World::with_channels(300).await;
    let settlement = world.settlement(|options| {
        options.backlog_channels_max = 100;
        options.round_channels_max = 20;
        options.in_flight_max = 1;
    });
    let report = settlement.settle_now(&Filter::All).await;
    let claims = report.batches.iter().filter(|batch| batch.kind == BatchKind::Claim);
    let claimed: Vec<Amount> = claims.flat_map(|batch| batch.lines.iter().map(|(_, amount)| *amount)).collect();
    assert_eq!(claimed.len(), 300);
    assert!(claimed.is_sorted_by(|a, b| a >= b), "{claimed:?}");
    world.assert_tied(300).await;
}

#[tokio::test]
async fn a_closing_payer_is_seen_among_many_idle_channels() {
    let world = World::with_channels(60).await;
    let settlement = world.settlement(|options| options.watch_channels_max = 8);
    // All but three are settled, and were read last later than these.
    let few: std::collections::HashSet<Key> = (0..3).map(|number| terms(&world.seller, number).id).collect();
    let rest = (3..60).map(|number| terms(&world.seller, number).id).collect();
    settlement.settle_now(&Filter::Channels(rest)).await;
    for id in &few {
        world.clock.advance(Duration::from_secs(1));
        world.ledger.observe(id, world.on_chain(id).await).await.unwrap();
    }
    world.clock.advance(Duration::from_secs(1));
    let closing = world.request_close(2);
    settlement.watch().await.unwrap();
    assert_eq!(world.ledger.channel(&closing).unwrap().on_chain.status, ChannelStatus::Closing);
    let now = world.clock.now();
    let read = |id: &Key| world.ledger.channel(id).unwrap().on_chain.read_at == now;
    assert!(few.iter().all(read), "what is owed on is read first");
    let mut read_now = 0;
    world.ledger.glance(|channel| (channel.on_chain.read_at == now).then_some(()), |()| read_now += 1);
    assert_eq!(read_now, 8, "and of the others as many as there is room for");
}

/// How many rounds it takes until a channel is sealed.
async fn rounds_until_sealed(settlement: &Settlement, channel: &Key) -> usize {
    for round in 1..100 {
        let report = settlement.step(Trigger::Clock).await;
        let sealed = |outcome: &Outcome| matches!(outcome, Outcome::Confirmed { .. });
        let mut seals = report.batches.iter().filter(|batch| batch.kind == BatchKind::Seal && sealed(&batch.outcome));
        if seals.any(|batch| batch.lines.iter().any(|(id, _)| id == channel)) {
            return round;
        }
        assert!(report.more && report.looks == 0, "the rest of the sweep is worked off");
    }
    panic!("never");
}

#[tokio::test]
async fn a_deadline_that_comes_up_in_the_middle_of_a_sweep_comes_first() {
    let world = World::with_channels(400).await;
    let settlement = world.settlement(|options| options.round_channels_max = 20);
    world.clock.advance(Duration::from_secs(600));
    for _ in 0..3 {
        let report = settlement.step(Trigger::Clock).await;
        assert!(report.more);
    }

    // The smallest is far down the list. Its payer is seen to close it by our own reading of the chain.
    let closing = world.request_close(0);
    settlement.watch().await.unwrap();
    assert_eq!(rounds_until_sealed(&settlement, &closing).await, 1);

    // Another's close is seen by somebody else, as when its payer's next request is refused for it: the rounds go on with
    // what they have, and with the next tick it is found.
    let closing = world.request_close(1);
    world.ledger.observe(&closing, world.on_chain(&closing).await).await.unwrap();
    let report = settlement.step(Trigger::Clock).await;
    assert_eq!((report.looks, report.moved(BatchKind::Seal)), (0, Amount::ZERO));
    world.clock.advance(Duration::from_secs(5));
    let report = settlement.step(Trigger::Clock).await;
    assert_eq!((report.looks, report.moved(BatchKind::Seal)), (1, Amount::from(CHARGE + 1)));

    // The two are gone from chain and ledger by the end, and paid.
    settlement.settle_now(&Filter::All).await;
    assert_eq!(world.ledger.counts().0, 398);
    assert_eq!(world.paid(), sum(400));
}
