//! The threshold signer, its share files, and `turnpike keygen`.

#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

#[path = "support/signer_requests.rs"]
mod signer_requests;

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use signer_requests::{Cast, approved, key, rules};
use turnpike::cli::keygen::{self, CurveName, GroupAddress, KeygenError, Report};
use turnpike::scheme::svm::{program, verify_strict};
use turnpike::signer::frost::{self, FrostSigner, OpenError};
use turnpike::signer::keystore::{self, Ed25519, Kdf, KeyShare, KeystoreError, Passphrase};
use turnpike::signer::{Signer, SignerError, SigningRequest};
use turnpike::x402::Key;
use turnpike::x402::network::SOLANA_DEVNET;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/shares-v1");

fn voucher(channel: Key, cumulative: u64, expires_at: i64) -> SigningRequest {
    SigningRequest::Voucher { channel, cumulative, deposit: signer_requests::DEPOSIT_MAX, expires_at }
}

fn passphrase(number: usize) -> Passphrase {
    Passphrase::new(format!("correct horse battery {number}"))
}

fn variable(name: &str) -> Option<String> {
    let number = name.strip_prefix("TURNPIKE_PASSPHRASE_")?;
    Some(format!("correct horse battery {number}"))
}

fn args(out: &Path) -> keygen::Args {
    keygen::Args {
        curve: CurveName::Ed25519,
        out: out.to_owned(),
        passphrase_files: Vec::new(),
        generate_passphrases: None,
    }
}

/// A key of three shares in `directory`.
fn make(directory: &Path) -> Report {
    keygen::run_with(&args(directory), Kdf::FAST_FOR_TESTS, variable).unwrap()
}

fn address(report: &Report) -> Key {
    let GroupAddress::Solana(key) = report.address else { panic!("{} is not of Solana", report.address) };
    key
}

fn open(report: &Report, number: usize) -> KeyShare {
    keystore::open(&report.shares[number - 1], &passphrase(number)).unwrap()
}

#[tokio::test]
async fn every_pair_of_shares_signs_under_the_same_key() {
    let directory = tempfile::tempdir().unwrap();
    let report = make(directory.path());
    for pair in [[1, 2], [1, 3], [2, 3], [3, 1]] {
        let signer = FrostSigner::open(pair.map(|number| open(&report, number)).into(), rules()).unwrap();
        assert_eq!(signer.public_key(), address(&report), "{pair:?}");
        assert_eq!(signer.health(), Ok(()));
        let signature = signer.sign(approved(voucher(key(1), 5, 9))).await.unwrap();
        assert!(verify_strict(&address(&report), &program::voucher_message(&key(1), 5, 9), &signature), "{pair:?}");
    }
    let all = [1, 2, 3].map(|number| open(&report, number)).into();
    assert!(FrostSigner::open(all, rules()).is_ok());
}

#[tokio::test]
async fn one_share_signs_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let report = make(directory.path());
    assert_eq!(FrostSigner::open(vec![open(&report, 2)], rules()).unwrap_err(), OpenError::NoQuorum { have: 1 });
    assert_eq!(FrostSigner::open(Vec::new(), rules()).unwrap_err(), OpenError::NoQuorum { have: 0 });
    let signer = FrostSigner::open_without_quorum(&open(&report, 2), rules()).unwrap();
    assert_eq!(signer.public_key(), address(&report));
    let missing = signer.health().unwrap_err();
    assert!(missing.contains("1 of the 2 shares"), "{missing}");
    assert_eq!(signer.sign(approved(voucher(key(1), 5, 9))).await, Err(SignerError::NoQuorum(missing)));
}

#[tokio::test]
async fn every_kind_of_transaction_comes_back_signed_by_the_group() {
    let signer = FrostSigner::ephemeral(rules()).unwrap();
    let group = signer.public_key();
    let cast = Cast::new(group);
    for draft in [cast.open(), cast.claim(4), cast.distribute(2), cast.close_with_voucher(7, 0), cast.reclaim()] {
        let request = cast.build(&draft);
        let signature = signer.sign(approved(request.clone())).await.unwrap();
        let (SigningRequest::Sponsor { mut transaction, .. }
        | SigningRequest::Claim { mut transaction, .. }
        | SigningRequest::Distribute { mut transaction, .. }
        | SigningRequest::Close { mut transaction, .. }) = request
        else {
            unreachable!()
        };
        transaction.set_signature(&group, signature).unwrap();
        assert!(transaction.required_signers().iter().all(|signer| transaction.is_signed_by(signer)));
    }
    let channel = cast.channel(1);
    let network = SOLANA_DEVNET.parse().unwrap();
    let consent = SigningRequest::CloseAuthorization { network, channel, cumulative: 3, valid_before: 9 };
    let digest = program::close_digest(SOLANA_DEVNET, &group, &channel, 3, 0, 9);
    assert!(verify_strict(&group, &digest, &signer.sign(approved(consent)).await.unwrap()));
}

#[test]
fn a_refused_request_has_no_signature_whatever_the_proxy_says() {
    let signer = FrostSigner::ephemeral(rules()).unwrap();
    let cast = Cast::new(signer.public_key());
    let mut draft = cast.claim(1);
    draft.instructions.push(cast.sol_transfer(cast.group, key(9), 1));
    let refused = signer.sign_blocking(&cast.build(&draft)).unwrap_err();
    assert!(matches!(refused, SignerError::Refused { rule: "instruction", .. }), "{refused}");
}

#[test]
fn a_signer_signs_without_a_runtime_too() {
    let signer = FrostSigner::ephemeral(rules()).unwrap();
    let mut signing = signer.sign(approved(voucher(key(1), 5, 9)));
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(matches!(signing.as_mut().poll(&mut context), std::task::Poll::Ready(Ok(_))));
}

#[test]
fn key_generation_gives_another_key_each_time() {
    let keys = [(); 4].map(|()| frost::prove(&frost::generate().unwrap()).unwrap());
    for (index, key) in keys.iter().enumerate() {
        assert!(!keys[..index].contains(key));
    }
}

#[test]
fn shares_that_do_not_belong_together_are_named() {
    let directories = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let reports = directories.each_ref().map(|directory| make(directory.path()));
    let error = FrostSigner::open(vec![open(&reports[0], 1), open(&reports[1], 2)], rules()).unwrap_err();
    assert!(matches!(error, OpenError::DifferentGroups { .. }));
    let text = error.to_string();
    for (report, number) in reports.iter().zip([1, 2]) {
        assert!(text.contains(report.shares[number - 1].to_str().unwrap()), "{text}");
        assert!(text.contains(&report.address.to_string()), "{text}");
    }
    let error = FrostSigner::open(vec![open(&reports[0], 3), open(&reports[0], 3)], rules()).unwrap_err();
    assert!(matches!(error, OpenError::SameShare { identifier: 3, .. }));
    assert!(error.to_string().contains("share-3.json"), "{error}");
    let error = FrostSigner::open([1, 2, 3, 1].map(|number| open(&reports[0], number)).into(), rules()).unwrap_err();
    assert!(matches!(error, OpenError::SameShare { .. }));
}

/// What is done to a share file, and how the error begins after its path.
#[test]
fn a_share_file_that_cannot_be_used_says_why_and_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let report = make(directory.path());
    let path = &report.shares[0];
    let good: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let changed = |change: fn(&mut serde_json::Value)| {
        let mut file = good.clone();
        change(&mut file);
        file.to_string()
    };
    let other: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&report.shares[1]).unwrap()).unwrap();
    let swapped = {
        let mut file = good.clone();
        file["ciphertext"] = other["ciphertext"].clone();
        file.to_string()
    };
    let table = [
        ("has version 3, this release reads 1 and 2", changed(|file| file["version"] = 3.into())),
        ("is not a share file (its generation", changed(|file| file["version"] = 2.into())),
        ("is not a share file (its generation", changed(|file| file["generation"] = 2.into())),
        ("has version 9, this release reads 1", r#"{"version": 9, "unknown": true}"#.to_owned()),
        ("has scheme", changed(|file| file["scheme"] = "frost-ed448-2-of-3".into())),
        ("has kdf scrypt", changed(|file| file["kdf"]["name"] = "scrypt".into())),
        ("has cipher", changed(|file| file["cipher"] = "aes-256-gcm".into())),
        ("is damaged (the checksum", changed(|file| file["identifier"] = 2.into())),
        ("is damaged (the checksum", changed(|file| file["group"] = key(1).to_string().into())),
        ("is damaged (the checksum", changed(|file| file["kdf"]["passes"] = 2.into())),
        ("is damaged (the checksum", swapped),
        ("is damaged (the nonce", changed(|file| file["nonce"] = "AAAA".into())),
        ("is damaged (the salt", changed(|file| file["kdf"]["salt"] = "!".into())),
        ("is damaged (the ciphertext", changed(|file| file["ciphertext"] = "".into())),
        ("is not a share file (unknown field", changed(|file| file["comment"] = "mine".into())),
        ("is not a share file (missing field", changed(|file| drop(file.as_object_mut().unwrap().remove("group")))),
        ("is not a share file", "{}".to_owned()),
        ("is not a share file", "passphrase".to_owned()),
        ("cannot be read: it is longer than", " ".repeat(300_000)),
    ];
    for (expected, text) in table {
        std::fs::write(path, &text).unwrap();
        let error = keystore::open::<Ed25519>(path, &passphrase(1)).err().unwrap().to_string();
        let told = error.strip_prefix(&format!("{}: ", path.display())).expect("the file is named");
        assert!(told.starts_with(expected), "{error}");
    }
    std::fs::remove_file(path).unwrap();
    assert!(matches!(keystore::open::<Ed25519>(path, &passphrase(1)).err().unwrap(), KeystoreError::Read { .. }));
}

#[test]
fn a_wrong_passphrase_is_told_from_a_damaged_file() {
    let directory = tempfile::tempdir().unwrap();
    let report = make(directory.path());
    let error = keystore::open::<Ed25519>(&report.shares[0], &passphrase(2)).err().unwrap();
    assert!(matches!(error, KeystoreError::Passphrase { identifier: 1, .. }));
    assert!(error.to_string().contains("share-1.json"), "{error}");
}

/// Whoever can write the file, but does not know the passphrase, cannot relabel the share: a right checksum is no help.
#[test]
fn the_clear_fields_are_bound_to_the_ciphertext() {
    use base64::Engine;
    use sha2::Digest;
    let directory = tempfile::tempdir().unwrap();
    let report = make(directory.path());
    let path = &report.shares[0];
    let mut file: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    file["identifier"] = 2.into();
    let base64 = base64::engine::general_purpose::STANDARD;
    let text = |field: &str| [&u16::try_from(field.len()).unwrap().to_le_bytes()[..], field.as_bytes()].concat();
    let point = |value: &serde_json::Value| value.as_str().unwrap().parse::<Key>().unwrap().0.to_vec();
    let bytes = |value: &serde_json::Value| base64.decode(value.as_str().unwrap()).unwrap();
    let number = |value: &serde_json::Value| u32::try_from(value.as_u64().unwrap()).unwrap().to_le_bytes().to_vec();
    // The documented layout of the associated data, written a second time.
    let mut data = b"turnpike share file\0".to_vec();
    data.extend(1_u32.to_le_bytes());
    data.extend(text("frost-ed25519-2-of-3"));
    data.extend(point(&file["group"]));
    data.extend(2_u16.to_le_bytes());
    file["verifying_shares"].as_array().unwrap().iter().for_each(|share| data.extend(point(share)));
    data.extend(text("argon2id"));
    ["memory_kib", "passes", "lanes"].iter().for_each(|field| data.extend(number(&file["kdf"][*field])));
    data.extend(bytes(&file["kdf"]["salt"]));
    data.extend(text("xchacha20-poly1305"));
    data.extend(bytes(&file["nonce"]));
    data.extend(bytes(&file["ciphertext"]));
    file["checksum"] = base64.encode(sha2::Sha256::digest(&data)).into();
    std::fs::write(path, file.to_string()).unwrap();
    let error = keystore::open::<Ed25519>(path, &passphrase(1)).err().unwrap();
    assert!(matches!(error, KeystoreError::Passphrase { .. }), "{error}");
}

/// Files that an earlier build wrote still open and still sign.
#[tokio::test]
async fn committed_share_files_still_sign() {
    let share = |number| {
        let path = PathBuf::from(FIXTURES).join(format!("share-{number}.json"));
        keystore::open(&path, &passphrase(number)).unwrap()
    };
    let signer = FrostSigner::open(vec![share(1), share(2)], rules()).unwrap();
    let signature = signer.sign(approved(voucher(key(1), 5, 9))).await.unwrap();
    assert!(verify_strict(&signer.public_key(), &program::voucher_message(&key(1), 5, 9), &signature));
}

#[test]
fn no_secret_is_shown() {
    let directory = tempfile::tempdir().unwrap();
    let report = make(directory.path());
    let signer = FrostSigner::open(vec![open(&report, 1), open(&report, 2)], rules()).unwrap();
    assert_eq!(format!("{signer:?}"), format!("FrostSigner({}, 2 shares)", report.address));
    assert_eq!(format!("{:?}", passphrase(1)), "Passphrase(hidden)");
    let shown = [format!("{report}"), format!("{report:?}"), serde_json::to_string(&report).unwrap()];
    let files = report.shares.iter().map(|path| std::fs::read_to_string(path).unwrap());
    for text in files.chain(shown) {
        assert!(!text.contains("correct horse"), "{text}");
        assert!(!text.contains("secret"), "{text}");
    }
    let fields = |number: usize| {
        let file: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(&report.shares[number]).unwrap()).unwrap();
        file.as_object().unwrap().keys().cloned().collect::<Vec<_>>()
    };
    let mut documented = [
        "version",
        "scheme",
        "group",
        "identifier",
        "verifying_shares",
        "kdf",
        "cipher",
        "nonce",
        "ciphertext",
        "checksum",
    ];
    documented.sort_unstable();
    assert_eq!(fields(0), documented);
}

#[test]
fn keygen_writes_three_private_files_and_tells_what_to_fund() {
    let directory = tempfile::tempdir().unwrap();
    let report = make(directory.path());
    assert_eq!(report.shares, ["share-1.json", "share-2.json", "share-3.json"].map(|name| directory.path().join(name)));
    for (index, path) in report.shares.iter().enumerate() {
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        }
        let share = open(&report, index + 1);
        assert_eq!((share.group(), usize::from(share.identifier())), (address(&report), index + 1));
    }
    let text = report.to_string();
    assert!(text.contains(&report.address.to_string()) && text.contains("Send SOL to the address"), "{text}");
}

#[test]
fn keygen_overwrites_nothing() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("share-2.json"), "precious").unwrap();
    let error = keygen::run_with(&args(directory.path()), Kdf::FAST_FOR_TESTS, variable).unwrap_err();
    assert!(error.to_string().contains("share-2.json: exists already"), "{error}");
    assert_eq!(std::fs::read_to_string(directory.path().join("share-2.json")).unwrap(), "precious");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    let share = frost::generate().unwrap();
    let path = directory.path().join("share-2.json");
    let error = keystore::create(&path, &share[0], &passphrase(1), Kdf::FAST_FOR_TESTS).unwrap_err();
    assert!(matches!(error, KeystoreError::Exists(_)));
}

#[test]
fn keygen_takes_passphrases_from_files_and_makes_them_on_demand() {
    let directory = tempfile::tempdir().unwrap();
    let secrets = tempfile::tempdir().unwrap();
    let generated = keygen::Args { generate_passphrases: Some(secrets.path().to_owned()), ..args(directory.path()) };
    let report = keygen::run_with(&generated, Kdf::FAST_FOR_TESTS, |_| None).unwrap();
    let mut seen = Vec::new();
    for (share, file) in report.shares.iter().zip(&report.passphrases) {
        let text = std::fs::read_to_string(file).unwrap();
        assert!(text.trim().len() >= 24);
        assert!(!seen.contains(&text));
        assert!(!format!("{report}{report:?}").contains(text.trim()));
        keystore::open::<Ed25519>(share, &Passphrase::read(file).unwrap()).unwrap();
        seen.push(text);
    }
    assert_eq!(report.passphrases.len(), 3);
    let second = tempfile::tempdir().unwrap();
    let from_files = keygen::Args { passphrase_files: report.passphrases.clone(), ..args(second.path()) };
    let again = keygen::run_with(&from_files, Kdf::FAST_FOR_TESTS, |_| None).unwrap();
    keystore::open::<Ed25519>(&again.shares[2], &Passphrase::read(&report.passphrases[2]).unwrap()).unwrap();
    assert!(again.passphrases.is_empty());
}

#[test]
fn keygen_refuses_weak_arrangements_and_leaves_nothing_behind() {
    let directory = tempfile::tempdir().unwrap();
    let run = |args: keygen::Args, variable: fn(&str) -> Option<String>| {
        let error = keygen::run_with(&args, Kdf::FAST_FOR_TESTS, variable).unwrap_err();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "{error}");
        error
    };
    let plain = || args(directory.path());
    assert!(matches!(run(plain(), |_| None), KeygenError::NoPassphrase(1)));
    let two = |name: &str| variable(name).filter(|_| !name.ends_with('3'));
    assert!(matches!(run(plain(), two), KeygenError::NoPassphrase(3)));
    let same = |_: &str| Some("the same for everyone".to_owned());
    assert!(matches!(run(plain(), same), KeygenError::SamePassphrase(1, 2)));
    let short = |_: &str| Some("short".to_owned());
    assert!(matches!(run(plain(), short), KeygenError::ShortPassphrase(1)));
    let beside = keygen::Args { generate_passphrases: Some(directory.path().to_owned()), ..plain() };
    assert!(matches!(run(beside, variable), KeygenError::SameDirectory(_)));
    let one = keygen::Args { passphrase_files: vec![PathBuf::from("only-one.txt")], ..plain() };
    assert!(matches!(run(one, variable), KeygenError::PassphraseCount(1)));
    let absent = keygen::Args { passphrase_files: vec![directory.path().join("absent.txt"); 3], ..plain() };
    assert!(matches!(run(absent, variable), KeygenError::Keystore(KeystoreError::Read { .. })));
}

/// The command line's own cost of passphrases: slow enough to need no repetition here.
#[test]
fn keygen_of_the_command_line_uses_the_standard_cost() {
    let directory = tempfile::tempdir().unwrap();
    let files = [1, 2, 3].map(|number| {
        let path = directory.path().join(format!("{number}.txt"));
        std::fs::write(&path, format!("correct horse battery {number}\n")).unwrap();
        path
    });
    let args = keygen::Args { passphrase_files: files.to_vec(), ..args(&directory.path().join("shares")) };
    let report = keygen::run(&args).unwrap();
    let file: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&report.shares[0]).unwrap()).unwrap();
    assert_eq!((file["kdf"]["memory_kib"].as_u64(), file["kdf"]["passes"].as_u64()), (Some(65_536), Some(3)));
    open(&report, 1);
}

#[test]
fn the_arguments_parse() {
    use clap::{Args as _, FromArgMatches};
    let parse = |line: &[&str]| {
        let command = keygen::Args::augment_args(clap::Command::new("keygen").no_binary_name(true));
        command.try_get_matches_from(line).and_then(|matches| keygen::Args::from_arg_matches(&matches))
    };
    let parsed = parse(&["--out", "keys", "--passphrase-file", "a", "--passphrase-file", "b"]).unwrap();
    assert_eq!(parsed.passphrase_files, [PathBuf::from("a"), PathBuf::from("b")]);
    assert!(parse(&["--generate-passphrases", "d", "--passphrase-file", "a"]).is_err());
    assert_eq!(parse(&[]).unwrap().out, PathBuf::from("."));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn every_voucher_that_is_signed_verifies(
        channel in any::<[u8; 32]>(),
        cumulative in 0..=signer_requests::DEPOSIT_MAX,
        expires_at in 1..=i64::MAX,
    ) {
        use std::sync::OnceLock;
        static SIGNER: OnceLock<FrostSigner> = OnceLock::new();
        let signer = SIGNER.get_or_init(|| FrostSigner::ephemeral(rules()).unwrap());
        let signature = signer.sign_blocking(&voucher(Key(channel), cumulative, expires_at)).unwrap();
        let message = program::voucher_message(&Key(channel), cumulative, expires_at);
        prop_assert!(verify_strict(&signer.public_key(), &message, &signature));
        let other = program::voucher_message(&Key(channel), cumulative.wrapping_add(1), expires_at);
        prop_assert!(!verify_strict(&signer.public_key(), &other, &signature));
    }
}
