//! What the steps of a request cost without a wire.
//!
//! - `cargo bench --bench primitives`: in time, by criterion.
//! - `cargo bench --bench primitives -- --check`: in instructions, by valgrind, against `benches/instructions.txt`;
//!   fails where one has grown by more than 5 percent. Instructions are the same whatever else a machine does, so this
//!   can be a test, which time cannot.
//! - `cargo bench --bench primitives -- --record`: writes that file, for a change that is meant to cost more, or costs
//!   less.

#![allow(clippy::unwrap_used, missing_docs, reason = "a bench has no readers, and may fail loudly")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for people, run by hand")]

#[allow(dead_code, clippy::as_conversions, reason = "shared with the gate's tests")]
#[path = "../tests/gate/doubles.rs"]
mod doubles;
#[path = "primitives/instructions.rs"]
mod instructions;

use std::hint::black_box;
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use criterion::Criterion;
use doubles::{Client, House, PRICE, fixed, header, seller};
use http::{HeaderMap, Method, StatusCode};
use secp256k1::ecdsa::RecoverableSignature;
use secp256k1::{Message, PublicKey, SecretKey};
use tokio::runtime::Runtime;
use turnpike::clock::SystemClock;
use turnpike::gate::challenge::Challenge;
use turnpike::gate::route::Route;
use turnpike::gate::{Admission, AdmitRequest, Finished, Outcome, PaymentHeader, reply};
use turnpike::ledger::channel::{ChannelTerms, OnChain, Voucher};
use turnpike::ledger::memory::MemoryStore;
use turnpike::ledger::sqlite::{Settings, SqliteStore};
use turnpike::ledger::store::Store;
use turnpike::ledger::{Entry, Ledger, Limits};
use turnpike::scheme::evm::signature::{address_of, signer};
use turnpike::scheme::svm::program::ChannelStatus;
use turnpike::scheme::{batch_settlement_svm as scheme, offer};
use turnpike::x402::evm::{EvmSignature, keccak256};
use turnpike::x402::header::decode;
use turnpike::x402::key::Signature;
use turnpike::x402::wire::{BatchPayload, PaymentPayload, PaymentRequirements};

static NO_HEADERS: LazyLock<HeaderMap> = LazyLock::new(HeaderMap::new);
const URL: &str = "https://api.example.com/quote";
/// How many charges share a flush.
const GROUP: usize = 64;

/// Work that is ready to be measured.
pub type Work<'w> = Box<dyn FnOnce() + 'w>;

/// A step: its name, and how so many of it are made ready.
type Step<'w> = (&'static str, Box<dyn Fn(usize) -> Work<'w> + 'w>);

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let world = World::new(&runtime);
    let steps = steps(&world);
    let argument = |name: &str| std::env::args().skip_while(|argument| argument != name).nth(1);
    if let Some(name) = argument("--count") {
        let (_, prepare) = steps.iter().find(|(step, _)| *step == name).unwrap();
        return instructions::measured(prepare(instructions::TIMES));
    }
    let names: Vec<_> = steps.iter().map(|(name, _)| *name).filter(|name| !name.starts_with("store")).collect();
    if std::env::args().any(|argument| argument == "--check") {
        return instructions::check(&names);
    }
    if std::env::args().any(|argument| argument == "--record") {
        return instructions::record(&names);
    }
    let mut criterion = Criterion::default().configure_from_args();
    for (name, prepare) in &steps {
        criterion.bench_function(name, |bencher| {
            bencher.iter_custom(|count| {
                let work = prepare(usize::try_from(count).unwrap());
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
        let challenge = challenge(runtime, &house, &route);
        let offer = challenge.demand.v2.accepts[0].clone();
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
    let mut steps: Vec<Step<'w>> = Vec::new();
    let mut step = |name, prepare: Box<dyn Fn(usize) -> Work<'w> + 'w>| steps.push((name, prepare));
    step(
        "decode a payment header",
        Box::new(|times| {
            let payment = world.payments(1).remove(0);
            again(times, move || drop(decode::<PaymentPayload>(black_box(&payment)).unwrap()))
        }),
    );
    step(
        "match requirements",
        Box::new(|times| {
            let offers = [world.offer.clone()];
            let accepted = world.offer.clone();
            again(times, move || _ = offer::select(offers.iter(), |offer| offer, black_box(&accepted)).unwrap())
        }),
    );
    step(
        "answer an unpaid request with 402",
        Box::new(|times| {
            again(times, || drop(reply::challenge(&challenge(world.runtime, &world.house, &world.route))))
        }),
    );
    for (name, known) in [("verify an Ed25519 voucher", true), ("verify an Ed25519 voucher of a new channel", false)] {
        step(
            name,
            Box::new(move |times| {
                let BatchPayload::Voucher { channel_config, voucher } =
                    scheme::parse(world.client.pays(PRICE)).unwrap()
                else {
                    panic!("a voucher pays")
                };
                let (ours, known) = (seller(), known.then(|| world.client.terms.clone()));
                again(times, move || {
                    drop(
                        scheme::verify(&ours, black_box(&channel_config), black_box(&voucher), known.as_ref()).unwrap(),
                    );
                })
            }),
        );
    }
    step(
        "recover an EVM voucher's signer",
        Box::new(|times| {
            let key = SecretKey::from_secret_bytes([7; 32]).unwrap();
            let digest = keccak256(b"a voucher");
            let (id, compact) =
                RecoverableSignature::sign_ecdsa_recoverable(Message::from_digest(digest.0), &key).serialize_compact();
            let mut signature = EvmSignature([27 + id.to_u8(); 65]);
            signature.0[..64].copy_from_slice(&compact);
            let address = address_of(&PublicKey::from_secret_key(&key));
            again(times, move || assert_eq!(signer(black_box(&digest), black_box(&signature)), Some(address)))
        }),
    );
    step("reserve and commit", Box::new(|times| charges(world, Arc::new(MemoryStore::new()), times, 1)));
    step(
        "admit and finish a paid request",
        Box::new(|times| {
            let payments = world.payments(times);
            Box::new(move || {
                for payment in &payments {
                    let admission = world.admit(payment);
                    let finished = world.runtime.block_on(admission.finish(StatusCode::OK, &HeaderMap::new()));
                    assert!(matches!(finished, Finished::Charged(_)));
                }
            })
        }),
    );
    step(
        "store: 64 charges made durable at once",
        Box::new(|times| {
            let place = tempfile::tempdir().unwrap();
            let store = SqliteStore::open(&place.path().join("ledger.db"), Settings::default()).unwrap();
            let work = charges(world, Arc::new(store), times, GROUP);
            Box::new(move || {
                work();
                drop(place);
            })
        }),
    );
    steps
}

/// The same, so many times.
fn again<'w>(times: usize, mut step: impl FnMut() + 'w) -> Work<'w> {
    Box::new(move || (0..times).for_each(|_| step()))
}

/// Charges of `group` channels at once, over and over.
fn charges<'w>(world: &'w World<'w>, store: Arc<dyn Store>, times: usize, group: usize) -> Work<'w> {
    let opened = Ledger::open(store, Arc::new(SystemClock), Limits::default());
    let ledger = world.runtime.block_on(opened).unwrap();
    let on_chain =
        OnChain { deposit: u64::MAX.into(), claimed: 0_u64.into(), status: ChannelStatus::Open, ..OnChain::default() };
    let clients: Vec<_> = (1..=u8::try_from(group).unwrap()).map(Client::new).collect();
    for client in &clients {
        ledger.adopt(client.terms.clone(), on_chain);
    }
    let entry = |client: &Client, total: usize| {
        let cumulative = u64::try_from(total).unwrap().into();
        let voucher = Voucher { cumulative, signature: Signature([1; 64]) };
        Entry { terms: client.terms.clone(), voucher, amount: 1_u64.into(), deposit_after: None }
    };
    let groups: Vec<Vec<Entry>> =
        (1..=times).map(|total| clients.iter().map(|client| entry(client, total)).collect()).collect();
    Box::new(move || {
        for group in groups {
            let pay = |entry| async { ledger.reserve(entry).await.unwrap().commit(None).await.unwrap() };
            world.runtime.block_on(futures_util::future::join_all(group.into_iter().map(pay)));
        }
        assert_eq!(ledger.channel(&clients[0].terms.id()).unwrap().charged.get(), u128::try_from(times).unwrap());
    })
}
