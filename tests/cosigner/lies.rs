//! A proxy that was taken over, with everything that it has: its share, its certificate, its configuration. Each cosigner
//! judges by itself, says which rule forbids it, and writes that down.

use std::collections::BTreeMap;

use http::StatusCode;
use turnpike::amount::Amount;
use turnpike::clock::ManualClock;
use turnpike::policy::EvmRequest;
use turnpike::scheme::svm::transaction::Transaction;
use turnpike::signer::cosigner::Cosigner;
use turnpike::signer::cosigner::policy::Limits;
use turnpike::signer::ecdsa::EcdsaSigner;
use turnpike::signer::frost::FrostSigner;
use turnpike::signer::frost::signing::FrostShare;
use turnpike::signer::wire::{Answer, Begin, Call, Cause, Commit, Reply, Sealed, Sign, Signed, Turn};
use turnpike::signer::{ClaimLine, Deployment, SignerError, SigningRequest};
use turnpike::x402::Network;
use turnpike::x402::evm::Address;

use crate::faults::commitment;
use crate::world::{self, NOON, World};
use crate::{evm_requests, signer_requests};

fn cosigner(number: u16, limits: &Limits) -> (tempfile::TempDir, Cosigner) {
    let directory = tempfile::tempdir().unwrap();
    let settings = world::settings(number, &directory.path().join("cosigner.db"), world::policy(limits));
    let cosigner = Cosigner::open(settings, std::sync::Arc::new(ManualClock::new(NOON))).unwrap();
    (directory, cosigner)
}

/// Asks for a part of a signature as share 1 would, commitments and all.
fn ask(cosigner: &Cosigner, network: &Network, request: &SigningRequest) -> Reply<Signed> {
    let own = FrostShare::open(&world::share(1)).unwrap();
    let (_, mine) = own.commit().unwrap();
    let theirs = commitment(&cosigner.handle(Commit::PATH, b"{}")).commitment;
    let identifier = cosigner.introduction().ed25519.unwrap().identifier;
    let commitments = BTreeMap::from([(1, mine), (identifier, theirs)]);
    let sign = Sign { network: network.clone(), request: request.clone(), commitments };
    serde_json::from_slice(&cosigner.handle(Sign::PATH, &serde_json::to_vec(&sign).unwrap()).1).unwrap()
}

fn ask_evm(cosigner: &Cosigner, request: &EvmRequest) -> [Reply<Turn>; 2] {
    let begin = Begin { request: request.clone(), peer: 1 };
    let answer = Answer { request: request.clone(), peer: 1, opening: Sealed(vec![7; 32]) };
    let begun = cosigner.handle(Begin::PATH, &serde_json::to_vec(&begin).unwrap()).1;
    let answered = cosigner.handle(Answer::PATH, &serde_json::to_vec(&answer).unwrap()).1;
    [serde_json::from_slice(&begun).unwrap(), serde_json::from_slice(&answered).unwrap()]
}

fn rule<T: std::fmt::Debug>(reply: &Reply<T>) -> &str {
    match reply {
        Reply::Refused { rule, .. } => rule,
        other => panic!("not refused: {other:?}"),
    }
}

/// What the record says of the last refusal.
fn recorded(cosigner: &Cosigner) -> String {
    cosigner.store().refusals(1).unwrap().remove(0).rule
}

#[test]
fn lies_about_solana_are_refused_by_name_on_each_cosigner() {
    let network = signer_requests::rules().network;
    let cast = signer_requests::Cast::new(world::share(1).group());
    let thief = signer_requests::key(0xEE);
    let with = |draft: &signer_requests::Draft, request: fn(Transaction) -> SigningRequest| {
        let SigningRequest::Claim { transaction, .. } = cast.build(draft) else { panic!() };
        request(transaction)
    };
    let other_recipient = {
        let mut draft = cast.distribute(1);
        let shares = turnpike::scheme::svm::program::all_to(thief);
        *draft.main() = turnpike::scheme::svm::program::distribute(
            &cast.accounts(1),
            &turnpike::scheme::svm::TREASURY_PLACEHOLDER,
            &shares,
        );
        cast.build(&draft)
    };
    let stolen_sol = {
        let mut draft = cast.claim(1);
        draft.instructions.push(cast.sol_transfer(cast.group, thief, 1_000_000_000));
        cast.build(&draft)
    };
    let inflated = {
        let SigningRequest::Claim { mut lines, transaction } = cast.build(&cast.claim(1)) else { panic!() };
        lines[0].cumulative = 900_000;
        SigningRequest::Claim { lines, transaction }
    };
    // A transaction that is another than the request says: what is signed is always made of what is checked.
    let another_message =
        with(&cast.claim(1), |transaction| SigningRequest::Distribute { channels: vec![], transaction });
    let above_cap = SigningRequest::Claim {
        lines: vec![ClaimLine { channel: cast.channel(1), cumulative: signer_requests::CLAIM_MAX + 1 }],
        transaction: match cast.build(&cast.claim(1)) {
            SigningRequest::Claim { transaction, .. } => transaction,
            _ => panic!(),
        },
    };
    let elsewhere: Network = "solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp".parse().unwrap();
    let table = [
        ("another recipient", &network, other_recipient, "pay_to"),
        ("the key's own SOL", &network, stolen_sol, "instruction"),
        ("an inflated amount", &network, inflated, "amount"),
        ("another transaction than it says", &network, another_message, "batch"),
        ("more than one signature may claim", &network, above_cap, "amount"),
        ("another network", &elsewhere, cast.build(&cast.claim(1)), "network"),
    ];
    for number in [2, 3] {
        let (_directory, cosigner) = cosigner(number, &Limits::default());
        for (what, network, request, expected) in &table {
            let reply = ask(&cosigner, network, request);
            assert_eq!(rule(&reply), *expected, "{what}");
            assert_eq!(recorded(&cosigner), *expected, "{what}");
        }
        assert!(matches!(ask(&cosigner, &network, &cast.build(&cast.claim(1))), Reply::Done(_)), "the truth is signed");
    }
}

#[test]
fn lies_about_evm_are_refused_by_name_on_each_cosigner() {
    let cast = evm_requests::Cast::new(world::evm_address());
    let with = |change: fn(&mut turnpike::signer::EvmClaim)| {
        let EvmRequest::ClaimBatch { contract, mut claims } = cast.batch(2) else { panic!() };
        change(&mut claims[1]);
        EvmRequest::ClaimBatch { contract, claims }
    };
    let of = |contract| EvmRequest::ClaimBatch { contract, claims: vec![cast.claim(1, 1_000, 1_000)] };
    let table = [
        ("another recipient", with(|claim| claim.config.receiver = Address([0xEE; 20])), "pay_to"),
        ("an inflated amount", with(|claim| claim.total_claimed = Amount::new(1_000_001)), "amount"),
        (
            "a voucher that the payer has not signed",
            with(|claim| claim.max_claimable = Amount::new(2_000_000)),
            "voucher",
        ),
        ("another token", with(|claim| claim.config.token = Address([0xEE; 20])), "token"),
        (
            "another key's channel",
            with(|claim| claim.config.receiver_authorizer = Address([1; 20])),
            "receiver_authorizer",
        ),
        ("another contract", of(Deployment { address: Address([0xEE; 20]), ..evm_requests::CONTRACT }), "contract"),
        ("another chain", of(Deployment { chain_id: 1, ..evm_requests::CONTRACT }), "network"),
    ];
    for number in [2, 3] {
        let (_directory, cosigner) = cosigner(number, &Limits::default());
        for (what, request, expected) in &table {
            for reply in ask_evm(&cosigner, request) {
                assert_eq!(rule(&reply), *expected, "{what}");
                assert_eq!(recorded(&cosigner), *expected, "{what}");
            }
        }
        for reply in ask_evm(&cosigner, &cast.batch(2)) {
            assert!(matches!(reply, Reply::Done(Turn::Message { .. })), "the truth is signed: {reply:?}");
        }
    }
}

/// There is no call for a digest, and no member for one.
#[test]
fn nobody_can_ask_for_opaque_bytes() {
    let (_directory, cosigner) = cosigner(2, &Limits::default());
    let cast = signer_requests::Cast::new(world::share(1).group());
    let theirs = commitment(&cosigner.handle(Commit::PATH, b"{}")).commitment;
    let sign = Sign {
        network: signer_requests::rules().network,
        request: cast.build(&cast.claim(1)),
        commitments: BTreeMap::from([(2, theirs)]),
    };
    let whole = serde_json::to_value(&sign).unwrap();
    let with = |place: &str, key: &str| {
        let mut body = whole.clone();
        body.pointer_mut(place).unwrap()[key] = "00".into();
        body
    };
    let bodies = [with("", "digest"), with("", "message"), with("/request/claim", "digest"), with("/request", "raw")];
    for body in bodies {
        let (status, answer) = cosigner.handle(Sign::PATH, body.to_string().as_bytes());
        assert_eq!(status, StatusCode::BAD_REQUEST, "{}", String::from_utf8_lossy(&answer));
    }
    for path in ["/v1/sign", "/v1/ed25519/raw", "/v2/ed25519/sign", "/"] {
        assert_eq!(cosigner.handle(path, b"{}").0, StatusCode::NOT_FOUND);
    }
}

/// Everything on the proxy's disk and in its memory makes no signature, on either curve.
#[test]
fn a_stolen_proxy_signs_nothing() {
    let cast = signer_requests::Cast::new(world::share(1).group());
    let alone = FrostSigner::open_without_quorum(&world::share(1), signer_requests::rules()).unwrap();
    assert!(matches!(alone.sign_blocking(&cast.build(&cast.claim(1))), Err(SignerError::NoQuorum(_))));
    let twice = FrostSigner::open(vec![world::share(1), world::share(1)], signer_requests::rules());
    assert!(twice.is_err(), "the same share twice is one share");
    let alone = EcdsaSigner::open_without_quorum(&world::evm_share(1), evm_requests::rules()).unwrap();
    let cast = evm_requests::Cast::new(world::evm_address());
    assert!(matches!(alone.sign_blocking(&cast.batch(1)), Err(SignerError::NoQuorum(_))));
    assert!(EcdsaSigner::open(&[world::evm_share(1), world::evm_share(1)], evm_requests::rules()).is_err());
}

/// Who has a certificate of the authority that names no coordinator is turned away, as is who has another authority's.
#[tokio::test]
async fn only_a_coordinator_is_heard() {
    let world = World::new(&[2, 3]).await;
    let cast = signer_requests::Cast::new(world::share(1).group());
    let request = cast.build(&cast.claim(1));
    // A cosigner that was taken over, with its own certificate.
    let thief = world::connect(world.directory.path(), "cosigner-3", &world.nodes[..1], &world.telemetry);
    let signer = turnpike::signer::remote::RemoteSigner::with_share(
        &world::share(3),
        signer_requests::rules(),
        thief.watched().await,
    );
    assert!(matches!(signer.unwrap().sign_request(&request).await, Err(SignerError::NoQuorum(_))));
    // The right name under another authority.
    let elsewhere = tempfile::tempdir().unwrap();
    let names = ["proxy", "cosigner-2"].map(str::to_owned);
    turnpike::cli::keygen::certificates::make(&names, elsewhere.path()).unwrap();
    let mut files = world::tls_files(elsewhere.path(), "proxy");
    files.ca_file = world.directory.path().join("ca.pem");
    let settings = turnpike::signer::remote::CosignerSettings {
        name: "cosigner-2".to_owned(),
        address: world.nodes[0].address.to_string(),
        timeout: world::TIMEOUT,
    };
    let forged = turnpike::signer::remote::Cosigners::new(vec![settings], &files, None).unwrap();
    assert!(forged.watched().await.health()[0].state.is_err());
    // A cosigner of another name than the one that is meant: its place may have been taken.
    let settings = turnpike::signer::remote::CosignerSettings {
        name: "cosigner-3".to_owned(),
        address: world.nodes[0].address.to_string(),
        timeout: world::TIMEOUT,
    };
    let files = world::tls_files(world.directory.path(), "proxy");
    let swapped = turnpike::signer::remote::Cosigners::new(vec![settings], &files, None).unwrap();
    let why = swapped.watched().await.health()[0].state.clone().unwrap_err();
    assert!(why.contains("certificate"), "{why}");
}

#[test]
fn what_is_banned_stays_banned() {
    use turnpike::signer::bans::BanFile;
    use turnpike::signer::ecdsa::pair::Bans;
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("cosigner.db");
    let path = store.with_extension("bans");
    let share = world::evm_share(2);
    BanFile::open(Some(path.clone()), &share).unwrap().ban(1, "it has cheated");
    let open = || {
        let settings = world::settings(2, &store, world::policy(&Limits::default()));
        Cosigner::open(settings, std::sync::Arc::new(ManualClock::new(NOON))).unwrap()
    };
    let cast = evm_requests::Cast::new(world::evm_address());
    for _ in 0..2 {
        for reply in ask_evm(&open(), &cast.batch(1)) {
            assert!(matches!(reply, Reply::Failed { cause: Cause::Banned, .. }), "{reply:?}");
        }
    }
    let begin = Begin { request: cast.batch(1), peer: 3 };
    let begun = open().handle(Begin::PATH, &serde_json::to_vec(&begin).unwrap());
    assert_eq!(begun.0, StatusCode::OK, "with the third share it still signs");
    std::fs::write(&path, "{}\n").unwrap();
    assert!(BanFile::open(Some(path), &share).is_err(), "a damaged file is no empty one");
}
