//! `turnpike ceremony` and `turnpike key` as operators use them: three participants, each a process of its own for every step,
//! and a courier that copies files between their directories.

#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

#[path = "support/ceremony.rs"]
mod ceremony;
#[path = "support/evm_requests.rs"]
mod evm_requests;
#[path = "support/signer_requests.rs"]
mod signer_requests;

use std::fs;
use std::path::Path;
use std::process::Output;

use serde_json::Value;
use tempfile::TempDir;
use turnpike::scheme::evm::signature;
use turnpike::scheme::svm::{program, verify_strict};
use turnpike::signer::SigningRequest;
use turnpike::signer::ecdsa::EcdsaSigner;
use turnpike::signer::frost::{FrostSigner, OpenError};
use turnpike::signer::keystore::{self, Curve, Ed25519, KeyShare, KeystoreError, Passphrase, Secp256k1};
use turnpike::x402::Key;
use turnpike::x402::evm::Address;

use ceremony::{ALL, Desk, Desks, json};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/ceremony-v1");

/// Three machines: below one directory, one for each.
struct Machines {
    root: TempDir,
    desks: Desks,
}

impl Machines {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let desks = Desks(ALL.map(|me| {
            let place = root.path().join(format!("machine-{me}"));
            fs::create_dir(&place).unwrap();
            let (share, passphrase) = (place.join("share.json"), place.join("passphrase"));
            fs::write(&passphrase, format!("correct horse battery {me}\n")).unwrap();
            Desk { place, share, passphrase }
        }));
        Self { root, desks }
    }

    fn of(&self, me: u16) -> &Path {
        &self.desks.of(me).place
    }

    fn share(&self, me: u16) -> &Path {
        &self.desks.of(me).share
    }

    fn passphrase(&self, me: u16) -> &Path {
        &self.desks.of(me).passphrase
    }

    fn open<C: Curve>(&self, me: u16) -> KeyShare<C> {
        keystore::open(self.share(me), &Passphrase::read(self.passphrase(me)).unwrap()).unwrap()
    }

    fn run(&self, me: u16, arguments: &[&str]) -> Output {
        self.desks.command(me, arguments).output().unwrap()
    }
}

fn solana(machines: &Machines, pair: [u16; 2]) -> Key {
    let signer = FrostSigner::open(pair.map(|me| machines.open(me)).into(), signer_requests::rules()).unwrap();
    let (channel, deposit) = (signer_requests::key(1), signer_requests::DEPOSIT_MAX);
    let request = SigningRequest::Voucher { channel, cumulative: 5, deposit, expires_at: 9 };
    let signature = signer.sign_blocking(&request).unwrap();
    let key = turnpike::signer::Signer::public_key(&signer);
    assert!(verify_strict(&key, &program::voucher_message(&channel, 5, 9), &signature), "{pair:?}");
    key
}

fn evm(machines: &Machines, pair: [u16; 2]) -> Address {
    let signer = EcdsaSigner::open(&pair.map(|me| machines.open(me)), evm_requests::rules()).unwrap();
    let address = turnpike::signer::EvmSigner::address(&signer);
    let request = evm_requests::Cast::new(address).batch(2);
    let signed = signer.sign_blocking(&request).unwrap();
    assert_eq!(signature::signer(&evm_requests::digest(&request), &signed), Some(address), "{pair:?}");
    address
}

#[test]
fn a_solana_key_is_made_by_three_processes_refreshed_and_one_of_its_holders_is_replaced() {
    let machines = Machines::new();
    let address = machines.desks.ceremony(|_| vec!["--generate"]);
    for pair in [[1, 2], [2, 3], [3, 1]] {
        assert_eq!(solana(&machines, pair).to_string(), address);
    }
    let shown = json(machines.run(1, &["key", "show", "share.json", "--json"]));
    assert_eq!(shown["address"], address.as_str());
    assert_eq!((&shown["share"], &shown["generation"]), (&1.into(), &1.into()));

    // The share has another passphrase from now on.
    fs::write(machines.of(1).join("new"), "another horse, another battery").unwrap();
    let change = ["key", "passphrase", "share.json", "--passphrase-file", "passphrase", "--new-passphrase-file", "new"];
    assert!(machines.run(1, &change).status.success());
    let refused = machines.run(1, &change);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("the passphrase does not open it"), "{refused:?}");
    fs::rename(machines.of(1).join("new"), machines.passphrase(1)).unwrap();
    solana(&machines, [1, 2]);

    let kept = machines.root.path().join("kept.json");
    fs::copy(machines.share(2), &kept).unwrap();
    assert_eq!(machines.desks.ceremony(|_| vec!["--refresh"]), address);
    assert_eq!(solana(&machines, [1, 2]).to_string(), address);
    let old = keystore::open(&kept, &Passphrase::read(machines.passphrase(2)).unwrap()).unwrap();
    let error = FrostSigner::open(vec![machines.open(1), old], signer_requests::rules()).unwrap_err();
    assert!(matches!(error, OpenError::OtherGeneration { older_generation: 1, newer_generation: 2, .. }), "{error}");

    // The disk of machine 3 is gone.
    fs::remove_file(machines.share(3)).unwrap();
    assert_eq!(machines.desks.ceremony(|_| vec!["--replace", "3"]), address);
    for pair in [[1, 2], [2, 3], [3, 1]] {
        assert_eq!(solana(&machines, pair).to_string(), address);
    }
    let shown = machines.run(3, &["key", "show", "share.json"]);
    assert!(String::from_utf8_lossy(&shown.stdout).contains("3 of 3, generation 3"), "{shown:?}");
}

#[test]
fn an_evm_key_is_made_by_three_processes_and_one_of_its_holders_is_replaced() {
    let machines = Machines::new();
    let address = machines.desks.ceremony(|_| vec!["--generate", "--curve", "secp256k1"]);
    assert_eq!(evm(&machines, [1, 2]).to_string(), address);
    fs::remove_file(machines.share(2)).unwrap();
    let replaced = |me| if me == 2 { vec!["--replace", "2", "--curve", "secp256k1"] } else { vec!["--replace", "2"] };
    assert_eq!(machines.desks.ceremony(replaced), address);
    for pair in [[1, 2], [2, 3]] {
        assert_eq!(evm(&machines, pair).to_string(), address);
    }
    let shown = json(machines.run(2, &["key", "show", "share.json", "--json"]));
    assert_eq!(shown["address"], address.as_str());
    assert_eq!(shown["scheme"], Secp256k1::SCHEME);
}

#[test]
fn a_process_that_is_killed_in_any_step_can_be_started_again() {
    let machines = Machines::new();
    for me in ALL {
        machines.desks.start(me, &["--generate"]);
    }
    machines.desks.carry();
    let code = machines.desks.step(1, &[])["code"].as_str().unwrap().to_owned();
    let mut told = Value::Null;
    for round in 1..=8 {
        // Killed before it has done anything, somewhere on its way, or after all: the step that follows goes on from anywhere.
        for attempt in 0..3 {
            let step = ["ceremony", "step", "ceremony", "--passphrase-file", "passphrase", "--code", &code];
            let mut process = machines.desks.command(1, &step).stdout(std::process::Stdio::null()).spawn().unwrap();
            std::thread::sleep(std::time::Duration::from_millis(120 * attempt + 13 * round));
            process.kill().unwrap();
            process.wait().unwrap();
        }
        told = machines.desks.step(1, &["--code", &code]);
        for me in [2, 3] {
            machines.desks.step(me, &["--code", &code]);
        }
        machines.desks.carry();
    }
    let address = told["stage"]["done"]["address"].as_str().unwrap();
    assert_eq!(solana(&machines, [1, 3]).to_string(), address);
}

#[test]
fn a_rehearsal_makes_shares_that_no_signer_takes() {
    let machines = Machines::new();
    let address = machines.desks.ceremony(|_| vec!["--generate", "--rehearse"]);
    assert_eq!(machines.desks.ceremony(|_| vec!["--refresh", "--rehearse"]), address);
    let shown = machines.run(1, &["key", "show", "share.json"]);
    assert!(String::from_utf8_lossy(&shown.stdout).contains("of a rehearsal: no signer takes it"), "{shown:?}");
    let passphrase = Passphrase::read(machines.passphrase(1)).unwrap();
    let opened = keystore::open::<Ed25519>(machines.share(1), &passphrase).err().unwrap();
    assert!(matches!(opened, KeystoreError::Rehearsal { .. }), "{opened}");
    let mixed = machines.run(
        2,
        &[
            "ceremony",
            "start",
            "real",
            "--refresh",
            "--me",
            "2",
            "--share",
            "share.json",
            "--passphrase-file",
            "passphrase",
        ],
    );
    let said = String::from_utf8_lossy(&mixed.stderr);
    assert!(
        !mixed.status.success() && said.contains("holds a share of a rehearsal, and one of a real key is needed"),
        "{said}"
    );
}

/// Cards, letters and a state as they were first written: participant 1 has begun, and takes the first letters of the others.
#[test]
fn the_formats_of_version_1_stay() {
    let machines = Machines::new();
    let ceremony = machines.of(1).join("ceremony");
    copy(&Path::new(FIXTURES).join("participant-1"), &ceremony);
    fs::copy(Path::new(FIXTURES).join("passphrase"), machines.passphrase(1)).unwrap();
    let told = machines.desks.step(1, &[]);
    assert_eq!(told["stage"]["round"], 2, "{told}");
    // The shares that came of it and of a refresh.
    let share = |me: usize| {
        let file = Path::new(FIXTURES).with_file_name("shares-v2").join(format!("share-{me}.json"));
        keystore::open(&file, &Passphrase::new(format!("correct horse battery {me}"))).unwrap()
    };
    assert!(FrostSigner::open(vec![share(1), share(2)], signer_requests::rules()).is_ok());
    let status = json(machines.run(1, &["ceremony", "status", "ceremony", "--json"]));
    assert_eq!(status["waiting_for"].as_array().unwrap().len(), 2);
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Every command that the guide for operators names has the arguments that it shows.
#[test]
fn the_guides_commands_are_commands() {
    let guide = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/ceremonies.md")).unwrap();
    let commands: Vec<&str> = guide.lines().filter_map(|line| line.strip_prefix("    turnpike ")).collect();
    assert!(commands.len() >= 10, "the guide has lost its commands");
    let machines = Machines::new();
    for command in commands {
        let arguments: Vec<&str> = command.split_whitespace().collect();
        let output = machines.run(1, &arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!said.contains("Usage:") && !said.contains("--help"), "{command}: {said}");
    }
}
