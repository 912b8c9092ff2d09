//! The threshold signer of EVM networks: its rules, its share files, and `turnpike keygen --curve secp256k1`.

#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

#[path = "support/evm_requests.rs"]
mod evm_requests;

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use evm_requests::{CHANNEL_MAX, CLAIM_MAX, Cast, PAY_TO, TOKEN, approved, digest, rules, sign};
use proptest::prelude::*;
use secp256k1::SecretKey;
use turnpike::amount::Amount;
use turnpike::cli::keygen::{self, CurveName, GroupAddress, Report};
use turnpike::clock::UnixMillis;
use turnpike::facilitator::FacilitatorError;
use turnpike::facilitator::authorizer::threshold::ThresholdAuthorizer;
use turnpike::facilitator::authorizer::{ReceiverAuthorizer, Refund, RefundAuthorization};
use turnpike::ledger::channel::{EvmOnChain, Voucher};
use turnpike::policy::{EvmPolicy, PolicyError};
use turnpike::scheme::evm::contracts::MULTICALL3;
use turnpike::scheme::evm::eip712::{ChannelConfig, Domain};
use turnpike::scheme::evm::{EvmSeller, EvmTerms, TransferMethod, assets, signature};
use turnpike::signer::ecdsa::EcdsaSigner;
use turnpike::signer::keystore::{self, Ed25519, Kdf, KeyShare, KeystoreError, Passphrase, Secp256k1};
use turnpike::signer::quorum::OpenError;
use turnpike::signer::rules::evm::{CLAIMS_PER_BATCH_MAX, EvmJudge};
use turnpike::signer::{Deployment, EvmClaim, EvmRefund, EvmRequest, EvmSigner, SignerError};
use turnpike::x402::Network;
use turnpike::x402::evm::{Address, AnySignature, B256, EvmSignature, U256};

const ED25519_FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/shares-v1");
const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/shares-v1-secp256k1");

fn passphrase(number: usize) -> Passphrase {
    Passphrase::new(format!("correct horse battery {number}"))
}

fn variable(name: &str) -> Option<String> {
    let number = name.strip_prefix("TURNPIKE_PASSPHRASE_")?;
    Some(format!("correct horse battery {number}"))
}

fn args(out: &Path, curve: CurveName) -> keygen::Args {
    keygen::Args { curve, out: out.to_owned(), passphrase_files: Vec::new(), generate_passphrases: None }
}

/// A key of three shares in `directory`.
fn make(directory: &Path) -> Report {
    keygen::run_with(&args(directory, CurveName::Secp256k1), Kdf::FAST_FOR_TESTS, variable).unwrap()
}

/// One key for all tests that only read it: making it takes seconds.
fn report() -> &'static Report {
    static MADE: OnceLock<(tempfile::TempDir, Report)> = OnceLock::new();
    let (_, report) = MADE.get_or_init(|| {
        let directory = tempfile::tempdir().unwrap();
        let report = make(directory.path());
        (directory, report)
    });
    report
}

/// A second key, beside one of Solana's in the same directory: the files of the two have other names.
fn other() -> &'static Report {
    static MADE: OnceLock<(tempfile::TempDir, Report)> = OnceLock::new();
    let (_, report) = MADE.get_or_init(|| {
        let directory = tempfile::tempdir().unwrap();
        let solana = args(directory.path(), CurveName::Ed25519);
        let solana = keygen::run_with(&solana, Kdf::FAST_FOR_TESTS, variable).unwrap();
        let report = make(directory.path());
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 6);
        assert!(keystore::open::<Ed25519>(&solana.shares[0], &passphrase(1)).is_ok());
        (directory, report)
    });
    report
}

fn address(report: &Report) -> Address {
    let GroupAddress::Evm(address) = report.address else { panic!("{} is not of an EVM network", report.address) };
    address
}

fn open(report: &Report, number: usize) -> KeyShare<Secp256k1> {
    keystore::open(&report.shares[number - 1], &passphrase(number)).unwrap()
}

fn signer() -> &'static EcdsaSigner {
    static SIGNER: OnceLock<EcdsaSigner> = OnceLock::new();
    SIGNER.get_or_init(|| EcdsaSigner::open(&[1, 3].map(|number| open(report(), number)), rules()).unwrap())
}

fn refusal(result: Result<impl std::fmt::Debug, SignerError>) -> (&'static str, String) {
    match result {
        Err(SignerError::Refused { rule, detail }) => (rule, detail),
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test]
async fn every_pair_of_shares_signs_under_the_same_key() {
    let cast = Cast::new(address(report()));
    for pair in [[1, 2], [1, 3], [2, 3], [3, 1]] {
        let shares = pair.map(|number| open(report(), number));
        let signer = EcdsaSigner::open(&shares, rules()).unwrap();
        assert_eq!(signer.address(), address(report()), "{pair:?}");
        assert_eq!(signer.health(), Ok(()));
        for request in [cast.batch(3), cast.refund()] {
            let signed = signer.sign(approved(request.clone())).await.unwrap();
            assert_eq!(signature::signer(&digest(&request), &signed), Some(address(report())), "{pair:?}");
        }
    }
    assert!(EcdsaSigner::open(&[1, 2, 3].map(|number| open(report(), number)), rules()).is_ok());
}

/// What the contract asks of a signature besides its signer: `s` in the lower half, `v` of 27 or 28.
#[test]
fn signatures_have_the_form_that_contracts_take() {
    let cast = Cast::new(signer().address());
    let mut seen = [false; 2];
    for salt in 0..24 {
        let claims = vec![cast.claim(salt, 10, 10)];
        let EvmSignature(bytes) =
            signer().sign_blocking(&EvmRequest::ClaimBatch { contract: evm_requests::CONTRACT, claims }).unwrap();
        assert!(bytes[32] < 0x80, "s is in the upper half");
        seen[usize::from(bytes[64].checked_sub(27).unwrap())] = true;
    }
    // Each of the two comes with even odds: that one of them never does is one in eight million.
    assert_eq!(seen, [true, true]);
}

#[tokio::test]
async fn one_share_signs_nothing() {
    let share = open(report(), 2);
    assert_eq!(EcdsaSigner::open(std::slice::from_ref(&share), rules()).unwrap_err(), OpenError::NoQuorum { have: 1 });
    assert_eq!(EcdsaSigner::open(&[], rules()).unwrap_err(), OpenError::NoQuorum { have: 0 });
    let signer = EcdsaSigner::open_without_quorum(&share, rules()).unwrap();
    assert_eq!(signer.address(), address(report()));
    let missing = signer.health().unwrap_err();
    assert!(missing.contains("1 of the 2 shares"), "{missing}");
    let request = Cast::new(signer.address()).batch(1);
    assert_eq!(signer.sign(approved(request)).await, Err(SignerError::NoQuorum(missing)));
}

#[test]
fn shares_that_do_not_belong_together_are_named() {
    assert_ne!(address(other()), address(report()));
    let error = EcdsaSigner::open(&[open(report(), 1), open(other(), 2)], rules()).unwrap_err();
    assert!(matches!(error, OpenError::DifferentGroups { .. }));
    let text = error.to_string();
    for (report, number) in [report(), other()].into_iter().zip([1, 2]) {
        assert!(text.contains(report.shares[number - 1].to_str().unwrap()), "{text}");
        assert!(text.contains(&report.address.to_string()), "{text}");
    }
    let error = EcdsaSigner::open(&[open(report(), 3), open(report(), 3)], rules()).unwrap_err();
    assert!(matches!(error, OpenError::SameShare { identifier: 3, .. }));
    assert!(error.to_string().contains("evm-share-3.json"), "{error}");
    let four = [1, 2, 3, 1].map(|number| open(report(), number));
    assert!(matches!(EcdsaSigner::open(&four, rules()).unwrap_err(), OpenError::SameShare { .. }));
}

/// What is done to a share file, and how the error begins after its path.
#[test]
fn a_share_file_that_cannot_be_used_says_why_and_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("share.json");
    let read = |number: usize| -> serde_json::Value {
        serde_json::from_str(&std::fs::read_to_string(&report().shares[number - 1]).unwrap()).unwrap()
    };
    let changed = |change: fn(&mut serde_json::Value)| {
        let mut file = read(1);
        change(&mut file);
        file.to_string()
    };
    let mut swapped = read(1);
    swapped["ciphertext"] = read(2)["ciphertext"].clone();
    let ed25519 = std::fs::read_to_string(PathBuf::from(ED25519_FIXTURES).join("share-1.json")).unwrap();
    let table = [
        ("holds a share of a key on ed25519, and one on secp256k1 is needed", ed25519),
        ("has version 3, this release reads 1 and 2", changed(|file| file["version"] = 3.into())),
        ("is not a share file (its generation", changed(|file| file["version"] = 2.into())),
        ("is not a share file (its generation", changed(|file| file["generation"] = 2.into())),
        ("has scheme cggmp24", changed(|file| file["scheme"] = "cggmp24-secp256k1-2-of-3".into())),
        ("is damaged (the checksum", changed(|file| file["identifier"] = 2.into())),
        ("is damaged (the checksum", changed(|file| file["verifying_shares"][1] = file["group"].clone())),
        ("is damaged (the checksum", swapped.to_string()),
        ("is damaged (the ciphertext is not base64", changed(|file| file["ciphertext"] = "!".into())),
        ("is damaged (the ciphertext is too short", changed(|file| file["ciphertext"] = "AAAA".into())),
        ("is not a share file (not 0x and 66", changed(|file| file["group"] = "0x02".into())),
        ("is not a share file (unknown field", changed(|file| file["comment"] = "mine".into())),
        ("cannot be read: it is longer than", " ".repeat(300_000)),
    ];
    for (expected, text) in table {
        std::fs::write(&path, &text).unwrap();
        let error = keystore::open::<Secp256k1>(&path, &passphrase(1)).err().unwrap().to_string();
        let told = error.strip_prefix(&format!("{}: ", path.display())).expect("the file is named");
        assert!(told.starts_with(expected), "{error}");
    }
}

#[test]
fn a_share_of_the_wrong_curve_and_a_wrong_passphrase_are_told_apart() {
    let error = keystore::open::<Ed25519>(&report().shares[0], &passphrase(1)).err().unwrap();
    assert!(matches!(error, KeystoreError::WrongCurve { found: "secp256k1", expected: "ed25519", .. }));
    assert!(error.to_string().contains("evm-share-1.json"), "{error}");
    assert!(error.to_string().contains("keygen --curve ed25519"), "{error}");
    let error = keystore::open::<Secp256k1>(&report().shares[0], &passphrase(2)).err().unwrap();
    assert!(matches!(error, KeystoreError::Passphrase { identifier: 1, .. }));
}

/// Files that an earlier build wrote still open and still sign: the library's layout of a share is part of the format.
#[test]
fn committed_share_files_still_sign() {
    let shares = [1, 2].map(|number| {
        let path = PathBuf::from(FIXTURES).join(format!("evm-share-{number}.json"));
        keystore::open(&path, &passphrase(number)).unwrap()
    });
    let signer = EcdsaSigner::open(&shares, rules()).unwrap();
    let request = Cast::new(signer.address()).refund();
    let signed = signer.sign_blocking(&request).unwrap();
    assert_eq!(signature::signer(&digest(&request), &signed), Some(signer.address()));
}

#[test]
fn keygen_writes_three_private_files_and_tells_the_address() {
    let directory = report().shares[0].parent().unwrap();
    let names = ["evm-share-1.json", "evm-share-2.json", "evm-share-3.json"];
    assert_eq!(report().shares, names.map(|name| directory.join(name)));
    for (index, path) in report().shares.iter().enumerate() {
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        }
        assert_eq!(usize::from(open(report(), index + 1).identifier()), index + 1);
    }
    let text = report().to_string();
    let written = address(report()).to_string();
    assert_eq!(Address::parse_checked(&written), Ok(address(report())));
    assert!(text.contains(&written) && text.contains("Send nothing to the address"), "{text}");
    let json: serde_json::Value = serde_json::to_value(report()).unwrap();
    assert_eq!(json["address"], written.as_str());
    assert!(!text.contains("correct horse") && !json.to_string().contains("correct horse"));
    assert_eq!(format!("{:?}", signer()), format!("EcdsaSigner({written}, 2 shares)"));
}

#[test]
fn keygen_overwrites_nothing() {
    let directory = other().shares[0].parent().unwrap();
    let again = keygen::run_with(&args(directory, CurveName::Secp256k1), Kdf::FAST_FOR_TESTS, variable);
    assert!(again.unwrap_err().to_string().contains("evm-share-1.json: exists already"));
    assert_eq!(open(other(), 1).identifier(), 1);
}

#[test]
fn the_proxys_policy_knows_the_books() {
    let cast = Cast::new(Address([9; 20]));
    let policy = EvmPolicy { pay_to: vec![PAY_TO], claim_cap: Amount::new(900_000) };
    let approve = |request: EvmRequest, moving: u128| policy.approve(request, Amount::new(moving)).map(drop);
    assert_eq!(approve(cast.batch(2), 800_001), Ok(()));
    assert!(matches!(approve(cast.batch(2), 800_002), Err(PolicyError::Books { .. })));
    assert!(matches!(approve(cast.batch(3), 900_001), Err(PolicyError::ClaimCap { .. })));
    assert_eq!(approve(cast.refund(), 0), Ok(()));
    assert!(matches!(approve(cast.refund(), 1), Err(PolicyError::Books { .. })));
    let strangers = EvmPolicy::unlimited(vec![Address([1; 20])]);
    assert_eq!(strangers.approve(cast.batch(1), Amount::ZERO).map(drop), Err(PolicyError::Receiver(PAY_TO)));
    assert_eq!(strangers.approve(cast.refund(), Amount::ZERO).map(drop), Err(PolicyError::Receiver(PAY_TO)));
}

type Change = fn(&Cast, &mut Vec<EvmClaim>, &mut Deployment);

/// What is changed of a good batch of three claims, which rule refuses it, and a part of what it says.
const REFUSED_CLAIMS: &[(&str, Change, &str)] = &[
    ("network", |_, _, contract| contract.chain_id = 8453, "for chain 8453, the key is for chain 84532"),
    ("contract", |_, _, contract| contract.address = MULTICALL3, "the channels are in 0x4020074e"),
    ("batch", |_, claims, _| claims.clear(), "0 claims; one signature takes 1 to 100"),
    ("batch", |cast, claims, _| *claims = (0..101).map(|salt| cast.claim(salt, 1, 1)).collect(), "101 claims"),
    ("channel", |_, claims, _| claims.push(claims[1].clone()), "stands twice"),
    ("channel", |cast, claims, _| claims[2] = cast.claim(0, 5, 5), "stands twice"),
    ("channel", |_, claims, _| claims[0].config.withdraw_delay = 1 << 40, "withdrawal delay of 1099511627776 s"),
    ("pay_to", |_, claims, _| claims[1].config.receiver = Address([1; 20]), "is not an allowed pay_to"),
    ("pay_to", |_, claims, _| claims[1].config.receiver = Address::ZERO, "is not an allowed pay_to"),
    (
        "receiver_authorizer",
        |_, claims, _| claims[0].config.receiver_authorizer = Address([1; 20]),
        "the channel's receiver authorizer is 0x0101",
    ),
    ("token", |_, claims, _| claims[2].config.token = PAY_TO, "is not allowed"),
    ("amount", |_, claims, _| claims[0].total_claimed = Amount::ZERO, "nothing would be claimed"),
    ("amount", |_, claims, _| claims[0].total_claimed = Amount::new(1_000_001), "its voucher is over 1000000"),
    ("amount", |cast, claims, _| claims[0] = cast.claim(0, u128::MAX, CHANNEL_MAX + 1), "a channel may give"),
    (
        "amount",
        |cast, claims, _| *claims = (0..6).map(|salt| cast.claim(salt, CHANNEL_MAX, CLAIM_MAX / 6 + 1)).collect(),
        "one signature may claim 50000000",
    ),
    ("voucher", |_, claims, _| claims[0].max_claimable = Amount::new(1_000_001), "is not signed by"),
    ("voucher", |_, claims, _| claims[0].config.salt = B256([9; 32]), "is not signed by"),
    ("voucher", |_, claims, _| claims[0].config.payer = Address([9; 20]), "is not signed by"),
    ("voucher", |_, claims, _| claims[0].config.withdraw_delay += 1, "is not signed by"),
    ("voucher", |_, claims, _| claims[0].config.payer_authorizer = Address([9; 20]), "is not signed by"),
    ("voucher", |_, claims, _| claims[0].voucher = claims[1].voucher.clone(), "is not signed by"),
    ("voucher", |_, claims, _| claims[0].voucher = "0x00".parse().unwrap(), "is not signed by"),
    (
        "voucher",
        |_, claims, _| {
            let AnySignature::Key(voucher) = &mut claims[0].voucher else { unreachable!() };
            voucher.0[64] -= 27;
        },
        "is not signed by",
    ),
    (
        "voucher",
        |_, claims, _| {
            let other = SecretKey::from_secret_bytes([0x22; 32]).unwrap();
            claims[0].voucher = sign(&other, &B256([1; 32])).into();
        },
        "is not signed by",
    ),
];

#[test]
fn claims_that_a_rule_forbids_have_no_signature() {
    let cast = Cast::new(signer().address());
    for (number, (rule, change, says)) in REFUSED_CLAIMS.iter().enumerate() {
        let EvmRequest::ClaimBatch { mut contract, mut claims } = cast.batch(3) else { unreachable!() };
        change(&cast, &mut claims, &mut contract);
        let (refused, detail) = refusal(signer().sign_blocking(&EvmRequest::ClaimBatch { contract, claims }));
        assert_eq!(refused, *rule, "case {number}: {detail}");
        assert!(detail.contains(says), "case {number}: {detail}");
    }
}

type RefundChange = fn(&mut EvmRefund, &mut Deployment);

const REFUSED_REFUNDS: &[(&str, RefundChange, &str)] = &[
    ("network", |_, contract| contract.chain_id = 1, "for chain 1, the key is for chain 84532"),
    ("contract", |_, contract| contract.address = Address::ZERO, "the channels are in"),
    ("pay_to", |refund, _| refund.config.receiver = TOKEN, "is not an allowed pay_to"),
    ("receiver_authorizer", |refund, _| refund.config.receiver_authorizer = PAY_TO, "this key is"),
    ("token", |refund, _| refund.config.token = Address::ZERO, "is not allowed"),
    ("channel", |refund, _| refund.config.withdraw_delay = u64::MAX, "withdrawal delay"),
    ("amount", |refund, _| refund.amount = Amount::ZERO, "nothing would be refunded"),
    ("amount", |refund, _| refund.amount = Amount::new(600_001), "it holds 1000000 of which 400000 are ours"),
    ("amount", |refund, _| refund.total = Amount::new(400_001), "of which 400001 are ours"),
    ("amount", |refund, _| refund.balance = Amount::new(999_999), "it holds 999999"),
    ("amount", |refund, _| refund.total = Amount::new(u128::MAX), "are ours"),
];

#[test]
fn refunds_that_a_rule_forbids_have_no_signature() {
    let cast = Cast::new(signer().address());
    for (number, (rule, change, says)) in REFUSED_REFUNDS.iter().enumerate() {
        let EvmRequest::Refund { mut contract, mut refund } = cast.refund() else { unreachable!() };
        change(&mut refund, &mut contract);
        let (refused, detail) = refusal(signer().sign_blocking(&EvmRequest::Refund { contract, refund }));
        assert_eq!(refused, *rule, "case {number}: {detail}");
        assert!(detail.contains(says), "case {number}: {detail}");
    }
}

/// The judge alone, as the bounds need no signature to be seen.
#[test]
fn what_is_just_within_the_bounds_is_accepted() {
    let cast = Cast::new(Address([9; 20]));
    let judge = EvmJudge::new(rules(), cast.authorizer);
    let most = u8::try_from(CLAIMS_PER_BATCH_MAX).unwrap();
    let accepted = |claims: Vec<EvmClaim>| {
        let request = EvmRequest::ClaimBatch { contract: evm_requests::CONTRACT, claims };
        assert_eq!(judge.judge(&request).unwrap().digest(), &digest(&request));
    };
    accepted((0..most).map(|salt| cast.claim(salt, 500_000, 500_000)).collect());
    accepted((0..5).map(|salt| cast.claim(salt, u128::MAX, CHANNEL_MAX)).collect());
    let EvmRequest::Refund { contract, mut refund } = cast.refund() else { unreachable!() };
    refund.nonce = U256::from(B256([0xFF; 32]));
    let request = EvmRequest::Refund { contract, refund };
    assert_eq!(judge.judge(&request).unwrap().digest(), &digest(&request));
}

/// A payer that is a contract judges its vouchers itself, on chain: any bytes may be a good signature.
#[test]
fn the_voucher_of_a_contract_is_left_to_the_chain() {
    let cast = Cast::new(Address([9; 20]));
    let judge = EvmJudge::new(rules(), cast.authorizer);
    for voucher in ["0x", "0x1234", &format!("0x{}", "ab".repeat(65))] {
        let mut claim = cast.claim(1, 10, 10);
        claim.config.payer_authorizer = Address::ZERO;
        claim.voucher = voucher.parse().unwrap();
        let request = EvmRequest::ClaimBatch { contract: evm_requests::CONTRACT, claims: vec![claim] };
        assert!(judge.judge(&request).is_ok(), "{voucher}");
    }
}

#[test]
fn a_kind_that_is_not_allowed_is_refused() {
    let cast = Cast::new(Address([9; 20]));
    for (kind, request) in [("claim_batch", cast.batch(1)), ("refund", cast.refund())] {
        let mut rules = rules();
        rules.kinds.retain(|allowed| *allowed != kind);
        let (rule, detail) = refusal(EvmJudge::new(rules, cast.authorizer).judge(&request));
        assert_eq!(rule, "kind");
        assert!(detail.starts_with(&format!("{kind} is not among the allowed kinds")), "{detail}");
    }
}

#[test]
fn a_signer_signs_without_a_runtime_too() {
    let mut signing = signer().sign(approved(Cast::new(signer().address()).refund()));
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(matches!(signing.as_mut().poll(&mut context), std::task::Poll::Ready(Ok(_))));
}

/// A refund that the gate finds due, of a channel that holds 1,000,000, of which 400,000 were charged and 100,000 claimed.
fn due(authorizer: Address, with_voucher: bool) -> (Refund, EvmRequest, EvmRequest) {
    let cast = Cast::new(authorizer);
    let claim = cast.claim(1, 500_000, 400_000);
    let ChannelConfig { payer, payer_authorizer, receiver, receiver_authorizer, token, withdraw_delay, salt } =
        claim.config;
    let network = Network::eip155(evm_requests::CHAIN_ID);
    let usdc = assets::on(&network).next().unwrap().asset();
    let seller = EvmSeller {
        asset: Arc::new(usdc),
        chain_id: evm_requests::CHAIN_ID,
        domain: Domain::batch_settlement(evm_requests::CHAIN_ID),
        network,
        token,
        token_name: "USDC".into(),
        token_version: "2".into(),
        transfer_method: TransferMethod::Eip3009,
        pay_to: receiver,
        receiver_authorizer,
        withdraw_delay,
    };
    let on_chain = EvmOnChain {
        balance: Amount::new(1_000_000),
        claimed: Amount::new(100_000),
        withdrawal: Amount::ZERO,
        withdraw_since: 0,
        withdraw_ends_at: 0,
        refund_nonce: 3,
        block: 7,
        read_at: UnixMillis(0),
    };
    let voucher = Voucher { cumulative: claim.max_claimable, signature: claim.voucher.clone() };
    let refund = Refund {
        terms: EvmTerms::derive(Arc::new(seller), payer, payer_authorizer, salt),
        on_chain,
        charged: claim.total_claimed,
        voucher: with_voucher.then_some(voucher),
        amount: Amount::new(600_000),
    };
    (refund, EvmRequest::ClaimBatch { contract: evm_requests::CONTRACT, claims: vec![claim] }, cast.refund())
}

#[tokio::test]
async fn a_due_refund_is_authorized_with_its_claim() {
    let policy = Arc::new(EvmPolicy { pay_to: vec![PAY_TO], claim_cap: Amount::new(300_000) });
    let authorizer = ThresholdAuthorizer::new(Arc::new(signer().clone()), policy);
    let made_by_us = |signed: &AnySignature, request: &EvmRequest| {
        let AnySignature::Key(signed) = signed else { panic!("{signed} is no key's") };
        signature::signer(&digest(request), signed) == Some(signer().address())
    };
    for with_voucher in [true, false] {
        let (refund, claim_request, refund_request) = due(signer().address(), with_voucher);
        let RefundAuthorization { claim, refund } = authorizer.authorize_refund(&refund).await.unwrap();
        assert!(made_by_us(&refund, &refund_request));
        assert_eq!(claim.map(|claim| made_by_us(&claim, &claim_request)), with_voucher.then_some(true));
    }
}

/// What is changed of a due refund, and a part of what the operator reads.
#[tokio::test]
async fn a_refund_that_the_policy_or_the_signer_forbids_is_not_authorized() {
    let policy = Arc::new(EvmPolicy { pay_to: vec![PAY_TO], claim_cap: Amount::new(300_000) });
    let authorizer = ThresholdAuthorizer::new(Arc::new(signer().clone()), policy.clone());
    type Change = fn(&mut Refund);
    let table: &[(Change, &str)] = &[
        (|refund| refund.amount = Amount::new(600_001), "refuses by rule amount"),
        (|refund| refund.on_chain.claimed = Amount::new(99_999), "one request may move 300000"),
        (|refund| refund.voucher.as_mut().unwrap().cumulative = Amount::new(500_001), "refuses by rule voucher"),
        (|refund| refund.terms = due(TOKEN, true).0.terms, "refuses by rule receiver_authorizer"),
    ];
    for (change, says) in table {
        let (mut refund, ..) = due(signer().address(), true);
        change(&mut refund);
        let error = authorizer.authorize_refund(&refund).await.unwrap_err();
        assert!(matches!(&error, FacilitatorError::Refused { detail, .. } if detail.contains(says)), "{error}");
    }
    let alone = EcdsaSigner::open_without_quorum(&open(report(), 2), rules()).unwrap();
    let authorizer = ThresholdAuthorizer::new(Arc::new(alone), policy);
    let error = authorizer.authorize_refund(&due(signer().address(), true).0).await.unwrap_err();
    assert!(matches!(error, FacilitatorError::Unavailable(_)), "{error}");
}

/// Changes one bit of a claim, so that it is none that the payer and the operator have agreed to.
fn mutate(claim: &mut EvmClaim, field: u8, bit: u8) {
    let flip = |bytes: &mut [u8]| {
        let place = usize::from(bit) / 8 % bytes.len();
        bytes[place] ^= 1 << (bit % 8);
    };
    let flip_amount = |amount: &mut Amount| *amount = Amount::new(amount.get() ^ (1 << (bit % 128)));
    match field {
        0 => flip(&mut claim.config.payer.0),
        1 => flip(&mut claim.config.payer_authorizer.0),
        2 => flip(&mut claim.config.receiver.0),
        3 => flip(&mut claim.config.receiver_authorizer.0),
        4 => flip(&mut claim.config.token.0),
        5 => claim.config.withdraw_delay ^= 1 << (bit % 64),
        6 => flip(&mut claim.config.salt.0),
        7 => flip_amount(&mut claim.max_claimable),
        _ => {
            let AnySignature::Key(voucher) = &mut claim.voucher else { unreachable!() };
            flip(&mut voucher.0);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Every bit of a claim is bound by a rule or by the payer's signature, but the total charged, which is ours to say
    /// up to what the payer has signed.
    #[test]
    fn no_mutated_claim_gets_a_signature(field in 0..9_u8, bit in any::<u8>(), at in 0..3_usize) {
        let cast = Cast::new(signer().address());
        let EvmRequest::ClaimBatch { contract, mut claims } = cast.batch(3) else { unreachable!() };
        mutate(&mut claims[at], field, bit);
        let result = signer().sign_blocking(&EvmRequest::ClaimBatch { contract, claims });
        prop_assert!(matches!(result, Err(SignerError::Refused { .. })), "field {field}, bit {bit}: {result:?}");
    }

    /// What a signature is good for is the one request that it was asked for: another has another digest.
    #[test]
    fn no_two_requests_have_the_same_digest(field in 0..7_u8, bit in any::<u8>()) {
        let cast = Cast::new(Address([9; 20]));
        let mut seen = vec![digest(&cast.refund())];
        let EvmRequest::Refund { contract, refund: good } = cast.refund() else { unreachable!() };
        let EvmRequest::ClaimBatch { claims: good_claims, .. } = cast.batch(3) else { unreachable!() };
        let mut claim = good_claims[0].clone();
        mutate(&mut claim, field, bit);
        for refund in [
            EvmRefund { config: claim.config, ..good },
            EvmRefund { nonce: U256::from(4_u64), ..good },
            EvmRefund { amount: Amount::new(good.amount.get() ^ (1 << (bit % 128))), ..good },
        ] {
            seen.push(digest(&EvmRequest::Refund { contract, refund }));
        }
        let claims = |change: &dyn Fn(&mut Vec<EvmClaim>)| {
            let mut claims = good_claims.clone();
            change(&mut claims);
            digest(&EvmRequest::ClaimBatch { contract, claims })
        };
        seen.push(claims(&|_| {}));
        seen.push(claims(&|claims| claims[0] = claim.clone()));
        seen.push(claims(&|claims| claims.swap(0, 1)));
        seen.push(claims(&|claims| drop(claims.pop())));
        seen.push(claims(&|claims| claims[2].total_claimed = Amount::new(1)));
        let count = seen.len();
        seen.sort_unstable();
        seen.dedup();
        prop_assert_eq!(seen.len(), count);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn every_claim_that_is_signed_verifies_and_is_within_its_voucher(
        max_claimable in 1..=CHANNEL_MAX * 2,
        total_claimed in 0..=CHANNEL_MAX * 2,
        salt in any::<u8>(),
    ) {
        let cast = Cast::new(signer().address());
        let claims = vec![cast.claim(salt, max_claimable, total_claimed)];
        let request = EvmRequest::ClaimBatch { contract: evm_requests::CONTRACT, claims };
        let allowed = (1..=max_claimable.min(CHANNEL_MAX)).contains(&total_claimed);
        match signer().sign_blocking(&request) {
            Ok(signed) => {
                prop_assert!(allowed);
                prop_assert_eq!(signature::signer(&digest(&request), &signed), Some(signer().address()));
            }
            Err(error) => {
                let refused = matches!(error, SignerError::Refused { .. });
                prop_assert!(!allowed && refused, "{error}");
            }
        }
    }
}
