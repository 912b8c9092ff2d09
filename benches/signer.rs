//! One whole 2-of-3 signature on each curve, and what judging its request adds.
//!
//! After criterion's means come percentiles of single signatures: a metered call waits for three of Ed25519's, and the
//! budget of one on secp256k1 is a p99 of 150 ms on two processors. The same over mutual TLS on loopback: a share in this
//! process and two cosigners, each with its record on this disk; and two cosigners alone, their messages carried by this
//! process.

#![allow(missing_docs, reason = "a bench has no readers of its interface")]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a bench may fail loudly and says what it measured")]

#[path = "../tests/support/evm_requests.rs"]
mod evm_requests;
#[path = "../tests/support/signer_requests.rs"]
mod signer_requests;

use std::hint::black_box;
use std::time::{Duration, Instant};

use std::sync::Arc;

use criterion::Criterion;
use signer_requests::{Cast, approved, rules};
use turnpike::cli::keygen::certificates;
use turnpike::clock::SystemClock;
use turnpike::signer::bans::BanFile;
use turnpike::signer::cosigner::server::{Access, Server};
use turnpike::signer::cosigner::{Cosigner, Entry, EntryRules, Settings};
use turnpike::signer::ecdsa::{self, EcdsaSigner};
use turnpike::signer::frost::{self, FrostSigner};
use turnpike::signer::keystore::{self, Curve, Kdf, KeyShare, Passphrase};
use turnpike::signer::remote::{CosignerSettings, Cosigners, RemoteEvmSigner, RemoteSigner};
use turnpike::signer::rules::Judge;
use turnpike::signer::rules::evm::EvmJudge;
use turnpike::signer::tls::{self, TlsFiles};
use turnpike::signer::{EvmSigner as _, Signer as _, SigningRequest};
use turnpike::x402::Network;

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

    println!("\n{:<58} {:>6} {:>10} {:>10} {:>10}", "single runs", "runs", "p50", "p99", "most");
    percentiles("Ed25519 key generation", KEYS, |_| frost::generate().unwrap());
    percentiles("Ed25519 voucher, 2 of 3, verified", SIGNATURES, |_| signer.sign_blocking(&voucher).unwrap());
    percentiles("secp256k1 key generation", KEYS, |_| ecdsa::generate().unwrap());
    percentiles("secp256k1 refund, any 2 of 3, verified", SIGNATURES, |run| {
        pairs[run % pairs.len()].sign_blocking(&refund).unwrap()
    });
    percentiles("secp256k1 batch of 100 claims, the same", SIGNATURES, |run| {
        pairs[run % pairs.len()].sign_blocking(&batch).unwrap()
    });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(over_tls());
}

/// Signatures with shares elsewhere, which here is two other ports of this process.
async fn over_tls() {
    let place = tempfile::tempdir().unwrap();
    let names = ["proxy", "cosigner-2", "cosigner-3"];
    certificates::make(&names.map(str::to_owned), place.path()).unwrap();
    let files = |name: &str| TlsFiles {
        cert_file: place.path().join(format!("{name}.pem")),
        key_file: place.path().join(format!("{name}.key")),
        ca_file: place.path().join("ca.pem"),
    };
    // A share is not cloned: each use opens its file.
    let (svm, evm) = (frost::generate().unwrap(), ecdsa::generate().unwrap());
    let share = |number: usize| copy(place.path(), &svm[number - 1]);
    let evm_share = |number: usize| copy(place.path(), &evm[number - 1]);
    let mut settings = Vec::new();
    for number in [2, 3] {
        let name = names[number - 1].to_owned();
        let (rules, evm_rules) = (rules(), evm_requests::rules());
        let entry =
            |name: &str, network, rules| Entry { name: name.to_owned(), network, rules, limits: Default::default() };
        let policy = vec![
            entry("svm", rules.network.clone(), EntryRules::Svm(rules)),
            entry("evm", Network::eip155(evm_rules.chain_id), EntryRules::Evm(evm_rules)),
        ];
        let given = Settings {
            name: name.clone(),
            share: Some(share(number)),
            evm_share: Some(evm_share(number)),
            policy,
            store: place.path().join(format!("{name}.db")),
            audit: None,
        };
        let cosigner = Cosigner::open(given, Arc::new(SystemClock)).unwrap();
        let server = Server::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let access = Access { tls: tls::server(&files(&name)).unwrap(), coordinators: vec!["proxy".to_owned()] };
        settings.push(CosignerSettings {
            name,
            address: server.address().to_string(),
            timeout: Duration::from_secs(2),
        });
        tokio::spawn(server.run(cosigner, access, std::future::pending()));
    }
    let cosigners = Cosigners::new(settings, &files("proxy"), None).unwrap().watched().await;
    let channel = Cast::new(svm[0].group()).channel(1);
    let voucher = SigningRequest::Voucher { channel, cumulative: 5, deposit: 10, expires_at: 1 };
    let address = ecdsa::address_of(&evm[0].group()).unwrap();
    let refund = evm_requests::Cast::new(address).refund();
    let batch = evm_requests::Cast::new(address).batch(100);
    let own = share(1);
    let signers = [
        ("with a share here", RemoteSigner::with_share(&own, rules(), Arc::clone(&cosigners)).unwrap()),
        ("two cosigners", RemoteSigner::coordinating(svm[0].group(), rules(), Arc::clone(&cosigners))),
    ];
    for (what, signer) in &signers {
        let what = format!("Ed25519 voucher over TLS, {what}");
        percentiles_of(&what, SIGNATURES, async || signer.sign_request(&voucher).await.unwrap()).await;
    }
    let own = evm_share(1);
    let bans = Arc::new(BanFile::open(None, &own).unwrap());
    let signers = [
        (
            "with a share here",
            RemoteEvmSigner::with_share(&own, bans, evm_requests::rules(), Arc::clone(&cosigners)).unwrap(),
        ),
        ("two cosigners", RemoteEvmSigner::coordinating(address, evm_requests::rules(), Arc::clone(&cosigners))),
    ];
    for (what, signer) in &signers {
        for (kind, request) in [("refund", &refund), ("batch of 100 claims", &batch)] {
            let what = format!("secp256k1 {kind} over TLS, {what}");
            percentiles_of(&what, SIGNATURES / 2, async || signer.sign_request(request).await.unwrap()).await;
        }
    }
}

/// The same share, through a file of its own.
fn copy<C: Curve>(place: &std::path::Path, share: &KeyShare<C>) -> KeyShare<C> {
    let passphrase = Passphrase::new("a bench has no secrets".to_owned());
    let path = place.join(format!("{}-{}.json", C::NAME, share.identifier()));
    if !path.exists() {
        keystore::create(&path, share, &passphrase, Kdf::FAST_FOR_TESTS).unwrap();
    }
    keystore::open(&path, &passphrase).unwrap()
}

async fn percentiles_of<T>(what: &str, runs: usize, run: impl AsyncFn() -> T) {
    let mut times = Vec::with_capacity(runs);
    for _ in 0..runs {
        let begun = Instant::now();
        black_box(run().await);
        times.push(begun.elapsed());
    }
    show(what, times);
}

/// How long single runs take. A run is not repeated for a mean, as a slow one is what somebody waits for.
fn percentiles<T>(what: &str, runs: usize, mut run: impl FnMut(usize) -> T) {
    let times = (0..runs).map(|number| {
        let begun = Instant::now();
        black_box(run(number));
        begun.elapsed()
    });
    show(what, times.collect());
}

fn show(what: &str, mut times: Vec<Duration>) {
    let runs = times.len();
    times.sort_unstable();
    let [p50, p99, most] = [runs / 2, runs * 99 / 100, runs - 1].map(|place| times[place]);
    println!("{what:<58} {runs:>6} {p50:>10.2?} {p99:>10.2?} {most:>10.2?}");
}
