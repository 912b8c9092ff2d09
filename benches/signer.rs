//! One whole 2-of-3 signature on each curve, and what judging its request adds.
//!
//! After criterion's means come percentiles of single signatures: a metered call waits for three of Ed25519's, and the
//! budget of one on secp256k1 is a p99 of 150 ms on two processors.

#![allow(missing_docs, reason = "a bench has no readers of its interface")]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a bench may fail loudly and says what it measured")]

#[path = "../tests/support/evm_requests.rs"]
mod evm_requests;
#[path = "../tests/support/signer_requests.rs"]
mod signer_requests;

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::Criterion;
use signer_requests::{Cast, approved, rules};
use turnpike::signer::ecdsa::{self, EcdsaSigner};
use turnpike::signer::frost::{self, FrostSigner};
use turnpike::signer::rules::Judge;
use turnpike::signer::rules::evm::EvmJudge;
use turnpike::signer::{EvmSigner as _, Signer as _, SigningRequest};

const SIGNATURES: usize = 1000;
const KEYS: usize = 10;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let signer = FrostSigner::ephemeral(rules()).unwrap();
    let cast = Cast::new(signer.public_key());
    let channel = cast.channel(1);
    let voucher = SigningRequest::Voucher { channel, cumulative: 5, deposit: 10, expires_at: 1 };
    let claim = cast.build(&cast.claim(4));
    let open = cast.build(&cast.open());
    let judge = Judge::new(rules(), signer.public_key());

    criterion.bench_function("sign voucher, 2 of 3, verified", |b| {
        b.iter(|| signer.sign_blocking(black_box(&voucher)).unwrap());
    });
    criterion.bench_function("judge open", |b| b.iter(|| judge.judge(black_box(&open)).unwrap()));
    criterion.bench_function("judge claim of 4", |b| b.iter(|| judge.judge(black_box(&claim)).unwrap()));

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    criterion.bench_function("sign voucher on the blocking pool", |b| {
        b.iter(|| runtime.block_on(signer.sign(approved(black_box(voucher.clone())))).unwrap());
    });

    // Three parties in this process; each pair of them in turn.
    let mut shares = ecdsa::generate().unwrap();
    let pairs = [(); 3].map(|()| {
        shares.rotate_left(1);
        EcdsaSigner::open(&shares[..2], evm_requests::rules()).unwrap()
    });
    let address = pairs[0].address();
    let cast = evm_requests::Cast::new(address);
    let (refund, batch) = (cast.refund(), cast.batch(100));
    let judge = EvmJudge::new(evm_requests::rules(), address);
    criterion.bench_function("judge refund", |b| b.iter(|| judge.judge(black_box(&refund)).unwrap()));
    criterion.bench_function("judge batch of 100 claims", |b| b.iter(|| judge.judge(black_box(&batch)).unwrap()));
    criterion.final_summary();

    println!("\n{:<46} {:>6} {:>10} {:>10} {:>10}", "single runs", "runs", "p50", "p99", "most");
    percentiles("Ed25519 key generation", KEYS, |_| frost::generate().unwrap());
    percentiles("Ed25519 voucher, 2 of 3, verified", SIGNATURES, |_| signer.sign_blocking(&voucher).unwrap());
    percentiles("secp256k1 key generation", KEYS, |_| ecdsa::generate().unwrap());
    percentiles("secp256k1 refund, any 2 of 3, verified", SIGNATURES, |run| {
        pairs[run % pairs.len()].sign_blocking(&refund).unwrap()
    });
    percentiles("secp256k1 batch of 100 claims, the same", SIGNATURES, |run| {
        pairs[run % pairs.len()].sign_blocking(&batch).unwrap()
    });
}

/// How long single runs take. A run is not repeated for a mean, as a slow one is what somebody waits for.
fn percentiles<T>(what: &str, runs: usize, mut run: impl FnMut(usize) -> T) {
    let mut times: Vec<Duration> = (0..runs)
        .map(|number| {
            let begun = Instant::now();
            black_box(run(number));
            begun.elapsed()
        })
        .collect();
    times.sort_unstable();
    let [p50, p99, most] = [runs / 2, runs * 99 / 100, runs - 1].map(|place| times[place]);
    println!("{what:<46} {runs:>6} {p50:>10.2?} {p99:>10.2?} {most:>10.2?}");
}
