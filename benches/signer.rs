//! One whole 2-of-3 signature, and what judging its request adds.

#![allow(missing_docs, reason = "a bench has no readers of its interface")]
#![allow(clippy::unwrap_used, reason = "a bench may fail loudly")]

#[path = "../tests/support/signer_requests.rs"]
mod signer_requests;

use std::hint::black_box;

use criterion::Criterion;
use signer_requests::{Cast, approved, rules};
use turnpike::signer::frost::FrostSigner;
use turnpike::signer::rules::Judge;
use turnpike::signer::{Signer, SigningRequest};

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
    criterion.final_summary();
}
