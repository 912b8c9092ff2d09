//! What the steps of a request cost without a wire.
//!
//! - `cargo bench --bench primitives`: in time, by criterion.
//! - `cargo bench --profile counted --bench primitives -- --check`: in instructions, by valgrind, against
//!   `benches/instructions.txt`; fails where one has grown by more than 5 percent. Instructions hardly depend on what else
//!   a machine does, so this can be a test, which time cannot.
//! - `... -- --record`: writes that file, for a change that is meant to cost more, or costs less.

#![allow(clippy::unwrap_used, missing_docs, reason = "a bench has no readers, and may fail loudly")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for people, run by hand")]

#[allow(dead_code, clippy::as_conversions, reason = "shared with the gate's tests")]
#[path = "../tests/gate/doubles.rs"]
mod doubles;
#[path = "primitives/evm.rs"]
mod evm;
#[path = "primitives/instructions.rs"]
mod instructions;

use std::hint::black_box;
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use criterion::Criterion;
use doubles::{Client, House, PRICE, fixed, header, seller};
use http::{HeaderMap, Method, StatusCode};
use tokio::runtime::Runtime;
use turnpike::amount::Amount;
use turnpike::clock::SystemClock;
use turnpike::gate::challenge::Challenge;
use turnpike::gate::route::Route;
use turnpike::gate::{Admission, AdmitRequest, Finished, Outcome, PaymentHeader, reply};
use turnpike::ledger::channel::{OnChain, Voucher};
use turnpike::ledger::memory::MemoryStore;
use turnpike::ledger::sqlite::{Settings, SqliteStore};
use turnpike::ledger::store::Store;
use turnpike::ledger::{Entry, Ledger, Limits};
use turnpike::scheme::svm::program::ChannelStatus;
use turnpike::scheme::{batch_settlement_evm, batch_settlement_svm as scheme, offer};
use turnpike::x402::header::decode;
use turnpike::x402::key::Signature;
use turnpike::x402::wire::{BatchPayload, PaymentPayload, PaymentRequirements};

static NO_HEADERS: LazyLock<HeaderMap> = LazyLock::new(HeaderMap::new);
const URL: &str = "https://api.example.com/quote";
/// How many charges share a flush.
const GROUP: usize = 64;

/// Work that is ready to be measured.
pub type Work<'w> = Box<dyn FnOnce() + 'w>;

/// Makes so many of a step ready.
type Prepare<'w> = Box<dyn Fn(usize) -> Work<'w> + 'w>;

/// A step: its name, whether its instructions are counted, and what makes it ready.
struct Step<'w> {
    name: &'static str,
    is_counted: bool,
    prepare: Prepare<'w>,
}

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let world = World::new(&runtime);
    let steps = steps(&world);
    let mut arguments = std::env::args().skip_while(|argument| !argument.starts_with("--"));
    let counted = || steps.iter().filter(|step| step.is_counted).map(|step| step.name);
    match arguments.next().as_deref() {
        Some("--count") => {
            let name = arguments.next().unwrap();
            let step = steps.iter().find(|step| step.name == name).unwrap();
            // What is set up once, at the first, is not what the step costs.
            (step.prepare)(1)();
            instructions::measured((step.prepare)(instructions::TIMES));
        }
        Some("--check") => instructions::check(counted()),
        Some("--record") => instructions::record(counted()),
        Some(_) | None => measure(&steps),
    }
}

/// Measures time.
fn measure(steps: &[Step<'_>]) {
    let mut criterion = Criterion::default().configure_from_args();
    for step in steps {
        criterion.bench_function(step.name, |bencher| {
            bencher.iter_custom(|count| {
                let work = (step.prepare)(usize::try_from(count).unwrap());
                let started = Instant::now();
                work();
                started.elapsed()
            });
        });
    }
    criterion.final_summary();
}

/// What all steps work on.
struct World<'r> {
    runtime: &'r Runtime,
    house: House,
    client: Client,
    route: Arc<Route>,
    offer: PaymentRequirements,
}

impl<'r> World<'r> {
    fn new(runtime: &'r Runtime) -> Self {
        let house = runtime.block_on(House::new());
        let client = Client::new(7);
        house.facilitator.open(&client.terms, u64::MAX);
        let route = fixed();
        let offer = challenge(runtime, &house, &route).demand.v2.accepts[0].clone();
        Self { runtime, house, client, route, offer }
    }

    /// The next payments, which follow what was charged.
    fn payments(&self, count: usize) -> Vec<Vec<u8>> {
        let charged = self.house.ledger.channel(&self.client.terms.id).map_or(0, |record| record.charged.get());
        let next = u64::try_from(charged).unwrap() / PRICE + 1;
        (next..).take(count).map(|number| header(&self.offer, &self.client.pays(number * PRICE))).collect()
    }

    fn admit(&self, payment: &[u8]) -> Box<Admission> {
        match self.runtime.block_on(self.house.gate.admit(request(&self.route, Some(payment)))) {
            Outcome::Admitted(admission) => admission,
            _ => panic!("a paid request is admitted"),
        }
    }

    /// Charges of `group` channels at once, over and over.
    fn charges(&self, store: Arc<dyn Store>, times: usize, group: usize) -> Work<'_> {
        let opened = Ledger::open(store, Arc::new(SystemClock), Limits::default());
        let ledger = self.runtime.block_on(opened).unwrap();
        let on_chain = OnChain {
            status: ChannelStatus::Open,
            deposit: u64::MAX.into(),
            claimed: Amount::ZERO,
            distributed: Amount::ZERO,
            closing_since: 0,
            read_at: turnpike::clock::UnixMillis(0),
        };
        let clients: Vec<_> = (1..=u8::try_from(group).unwrap()).map(Client::new).collect();
        for client in &clients {
            ledger.adopt(client.terms.clone(), on_chain);
        }
        let entry = |client: &Client, total: usize| {
            let cumulative = u64::try_from(total).unwrap().into();
            let voucher = Voucher { cumulative, signature: Signature([1; 64]) };
            Entry { terms: client.terms.clone(), voucher, amount: 1_u64.into(), deposit_after: None }
        };
        let groups: Vec<Vec<_>> =
            (1..=times).map(|total| clients.iter().map(|client| entry(client, total)).collect()).collect();
        Box::new(move || {
            for group in groups {
                let pay = async |entry| ledger.reserve(entry).await.unwrap().commit(None).await.unwrap();
                self.runtime.block_on(futures_util::future::join_all(group.into_iter().map(pay)));
            }
            let charged = ledger.channel(&clients[0].terms.id).unwrap().charged;
            assert_eq!(charged, u64::try_from(times).unwrap().into());
        })
    }
}

fn request<'a>(route: &'a Arc<Route>, payment_header: Option<&'a [u8]>) -> AdmitRequest<'a> {
    let (method, host) = (&Method::GET, Some("api.example.com"));
    let payment_header = payment_header.map(PaymentHeader::V2);
    let headers = &NO_HEADERS;
    AdmitRequest { route, method, host, target: "/quote", headers, url: URL, payment_header }
}

fn challenge(runtime: &Runtime, house: &House, route: &Arc<Route>) -> Arc<Challenge> {
    match runtime.block_on(house.gate.admit(request(route, None))) {
        Outcome::Challenge(challenge) => challenge,
        _ => panic!("an unpaid request is challenged"),
    }
}

fn steps<'w>(world: &'w World<'w>) -> Vec<Step<'w>> {
    let counted = |name, prepare| Step { name, is_counted: true, prepare };
    vec![
        counted("decode a payment header", Box::new(|times| decoded(world, times))),
        counted("match requirements", Box::new(|times| matched(world, times))),
        counted("answer an unpaid request with 402", Box::new(|times| challenged(world, times))),
        counted("verify an Ed25519 voucher", Box::new(|times| verified(world, times, true))),
        counted("verify an Ed25519 voucher of a new channel", Box::new(|times| verified(world, times, false))),
        counted("verify an EVM voucher", Box::new(|times| verified_evm(times, true))),
        counted("verify an EVM voucher of a new channel", Box::new(|times| verified_evm(times, false))),
        counted("reserve and commit", Box::new(|times| world.charges(Arc::new(MemoryStore::new()), times, 1))),
        counted("admit and finish a paid request", Box::new(|times| paid(world, times))),
        Step {
            name: "make 64 charges durable at once",
            // The kernel and another thread do most of it.
            is_counted: false,
            prepare: Box::new(|times| durable(world, times)),
        },
    ]
}

fn decoded<'w>(world: &'w World<'w>, times: usize) -> Work<'w> {
    let payment = world.payments(1).remove(0);
    again(times, move || drop(decode::<PaymentPayload>(black_box(&payment)).unwrap()))
}

fn matched<'w>(world: &'w World<'w>, times: usize) -> Work<'w> {
    let (offers, accepted) = ([world.offer.clone()], world.offer.clone());
    again(times, move || {
        black_box(offer::select(offers.iter(), |offer| offer, black_box(&accepted)).unwrap());
    })
}

fn challenged<'w>(world: &'w World<'w>, times: usize) -> Work<'w> {
    again(times, || drop(reply::challenge(&challenge(world.runtime, &world.house, &world.route))))
}

fn verified<'w>(world: &'w World<'w>, times: usize, is_known: bool) -> Work<'w> {
    let BatchPayload::Voucher { channel_config, voucher } = scheme::parse(world.client.pays(PRICE)).unwrap() else {
        panic!("a voucher pays")
    };
    let (ours, known) = (seller(), is_known.then(|| world.client.terms.clone()));
    again(times, move || {
        drop(scheme::verify(&ours, black_box(&channel_config), black_box(&voucher), known.as_ref()).unwrap());
    })
}

fn verified_evm<'w>(times: usize, is_known: bool) -> Work<'w> {
    let evm::Paid { seller, terms, voucher } = evm::paid();
    let (config, known) = (terms.config(), is_known.then_some(terms));
    again(times, move || {
        let checked =
            batch_settlement_evm::verify(&seller, black_box(&config), black_box(&voucher), known.as_ref()).unwrap();
        assert!(matches!(checked, batch_settlement_evm::Checked::Verified(_)));
    })
}

fn paid<'w>(world: &'w World<'w>, times: usize) -> Work<'w> {
    let payments = world.payments(times);
    Box::new(move || {
        for payment in &payments {
            let admission = world.admit(payment);
            let finished = world.runtime.block_on(admission.finish(StatusCode::OK, &HeaderMap::new()));
            assert!(matches!(finished, Finished::Charged(_)));
        }
    })
}

fn durable<'w>(world: &'w World<'w>, times: usize) -> Work<'w> {
    let place = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&place.path().join("ledger.db"), Settings::default()).unwrap();
    let work = world.charges(Arc::new(store), times, GROUP);
    Box::new(move || {
        work();
        drop(place);
    })
}

/// The same, so many times.
fn again<'w>(times: usize, mut step: impl FnMut() + 'w) -> Work<'w> {
    Box::new(move || (0..times).for_each(|_| step()))
}
