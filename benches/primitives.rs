//! What the steps of a request cost without a wire: `cargo bench --bench primitives`.

#![allow(clippy::unwrap_used, missing_docs, reason = "a bench has no readers, and may fail loudly")]

#[allow(dead_code, clippy::as_conversions, reason = "shared with the gate's tests")]
#[path = "../tests/gate/doubles.rs"]
mod doubles;

use std::hint::black_box;
use std::sync::{Arc, LazyLock};

use criterion::{BatchSize, Criterion};
use doubles::{Client, House, PRICE, fixed, header, seller};
use http::{HeaderMap, Method, StatusCode};
use turnpike::gate::challenge::Challenge;
use turnpike::gate::route::Route;
use turnpike::gate::{Admission, AdmitRequest, Finished, Outcome, PaymentHeader, reply};
use turnpike::scheme::batch_settlement_svm as scheme;
use turnpike::x402::header::decode;
use turnpike::x402::wire::{BatchPayload, PaymentPayload};

static NO_HEADERS: LazyLock<HeaderMap> = LazyLock::new(HeaderMap::new);
const URL: &str = "https://api.example.com/quote";

fn request<'a>(route: &'a Arc<Route>, payment_header: Option<&'a [u8]>) -> AdmitRequest<'a> {
    let (method, host) = (&Method::GET, Some("api.example.com"));
    let payment_header = payment_header.map(PaymentHeader::V2);
    let headers = &NO_HEADERS;
    AdmitRequest { route, method, host, target: "/quote", headers, url: URL, payment_header }
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let house = runtime.block_on(House::new());
    let client = Client::new(7);
    house.facilitator.open(&client.terms, u64::MAX);
    let route = fixed();
    let challenge = || -> Arc<Challenge> {
        let request = request(&route, None);
        match runtime.block_on(house.gate.admit(request)) {
            Outcome::Challenge(challenge) => challenge,
            _ => panic!("an unpaid request is challenged"),
        }
    };
    let offer = challenge().demand.v2.accepts[0].clone();
    let payment = |number: u64| header(&offer, &client.pays(number * PRICE));
    let admit = |payment: &[u8]| -> Box<Admission> {
        let request = request(&route, Some(payment));
        match runtime.block_on(house.gate.admit(request)) {
            Outcome::Admitted(admission) => admission,
            _ => panic!("a paid request is admitted"),
        }
    };

    let first = payment(1);
    criterion.bench_function("decode a payment header", |b| {
        b.iter(|| decode::<PaymentPayload>(black_box(&first)).unwrap());
    });
    criterion.bench_function("answer an unpaid request: 402", |b| b.iter(|| reply::challenge(&challenge())));

    let BatchPayload::Voucher { channel_config, voucher } = scheme::parse(client.pays(PRICE)).unwrap() else {
        panic!("a voucher pays")
    };
    let ours = seller();
    for (name, known) in [("of a known channel", Some(&client.terms)), ("of a new channel", None)] {
        criterion.bench_function(&format!("verify a voucher {name}"), |b| {
            b.iter(|| scheme::verify(&ours, black_box(&channel_config), black_box(&voucher), known).unwrap());
        });
    }

    // Each payment can be admitted once, so they are signed beforehand, outside of what is measured.
    let mut number = 0;
    criterion.bench_function("admit and finish a paid request, store in memory", |b| {
        b.iter_batched(
            || {
                number += 1;
                payment(number)
            },
            |payment| {
                let finished = runtime.block_on(admit(&payment).finish(StatusCode::OK, &HeaderMap::new()));
                assert!(matches!(finished, Finished::Charged(_)));
            },
            // One by one: the next voucher is signed once the one before it is charged.
            BatchSize::PerIteration,
        );
    });
    criterion.final_summary();
}
