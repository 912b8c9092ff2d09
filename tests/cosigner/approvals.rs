//! Four eyes: a real `turnpike cosigner`, a coordinator that asks it for more than it may sign by itself, and somebody on
//! the cosigner's machine who approves by the command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::Arc;

use serde_json::{Value, json};
use turnpike::cli::keygen::certificates;
use turnpike::policy::EvmRequest;
use turnpike::signer::bans::BanFile;
use turnpike::signer::remote::{CosignerSettings, Cosigners, RemoteEvmSigner, RemoteSigner};
use turnpike::signer::{SignerError, SigningRequest};
use turnpike::telemetry::Telemetry;

use crate::support::{BINARY, Process};
use crate::world::{self, TIMEOUT};
use crate::{evm_requests, signer_requests};

/// A cosigner that signs up to 1000 atomic units by itself, and the coordinator, with the other share that there is.
struct Pair {
    directory: tempfile::TempDir,
    file: PathBuf,
    _cosigner: Process,
    svm: RemoteSigner,
    evm: RemoteEvmSigner,
}

impl Pair {
    async fn open() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path();
        certificates::make(&["proxy".to_owned(), "cosigner-2".to_owned()], place).unwrap();
        std::fs::write(place.join("passphrase"), world::PASSPHRASE).unwrap();
        let share = |prefix| {
            let file = world::file(world::keys(), prefix, 2);
            format!("{{ file: '{}', passphrase_file: passphrase }}", file.display())
        };
        let text = format!(
            "name: cosigner-2\nlisten: 127.0.0.1:0\n\
             tls: {{ cert_file: cosigner-2.pem, key_file: cosigner-2.key, ca_file: ca.pem }}\ncoordinators: [proxy]\n\
             share: {}\nevm_share: {}\nstore: {{ path: cosigner.db }}\nlog: {{ format: json }}\npolicy:\n  \
             - {{ network: solana-devnet, pay_to: {}, deposit_max: $10, per_day: $10, approval_above: 1000 USDC-atomic }}\n  \
             - {{ network: base-sepolia, pay_to: '{}', per_day: $10, approval_above: 1000 USDC-atomic,\n      \
             asset: {{ token: '{}', symbol: USDC, decimals: 6, name: USDC, version: '2' }} }}\n",
            share(""),
            share("evm-"),
            signer_requests::pay_to(),
            evm_requests::PAY_TO,
            evm_requests::TOKEN,
        );
        let file = place.join("cosigner.yaml");
        std::fs::write(&file, text).unwrap();
        let cosigner = Process::start(Command::new(BINARY).arg("cosigner").arg(&file));
        let address: SocketAddr = cosigner.wait_for("the cosigner to be ready", |line| {
            let line: Value = serde_json::from_str(line).ok()?;
            (line["message"] == "the cosigner is ready").then(|| line["listen"].as_str().unwrap().parse().unwrap())
        });
        let settings =
            CosignerSettings { name: "cosigner-2".to_owned(), address: address.to_string(), timeout: TIMEOUT };
        let telemetry = Telemetry::new().unwrap();
        let cosigners = Cosigners::new(vec![settings], &world::tls_files(place, "proxy"), Some(&telemetry)).unwrap();
        let cosigners = cosigners.watched().await;
        let svm = RemoteSigner::with_share(&world::share(1), signer_requests::rules(), Arc::clone(&cosigners)).unwrap();
        let evm_share = world::evm_share(1);
        let bans = Arc::new(BanFile::open(Some(place.join("proxy.bans")), &evm_share).unwrap());
        let evm = RemoteEvmSigner::with_share(&evm_share, bans, evm_requests::rules(), cosigners).unwrap();
        Self { directory, file, _cosigner: cosigner, svm, evm }
    }

    /// Whether it is signed, or waits for an approval, as the coordinator is told; no other end is expected.
    async fn signs(&self, request: &SigningRequest) -> bool {
        signed(self.svm.sign_request(request).await.map(drop))
    }

    async fn signs_evm(&self, request: &EvmRequest) -> bool {
        signed(self.evm.sign_request(request).await.map(drop))
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(BINARY).arg("cosigner").args(arguments).arg("--file").arg(&self.file).output().unwrap()
    }

    /// What the operator reads, where all is well.
    fn told(&self, arguments: &[&str]) -> String {
        let done = self.run(arguments);
        assert_eq!(done.status.code(), Some(0), "{arguments:?}: {done:?}");
        String::from_utf8(done.stdout).unwrap()
    }

    /// How the operator is refused: the exit status and what he reads.
    fn refused(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let done = self.run(arguments);
        assert!(done.stdout.is_empty(), "{done:?}");
        (done.status.code(), String::from_utf8(done.stderr).unwrap())
    }

    /// What waits, in JSON.
    fn pending(&self) -> Vec<Value> {
        serde_json::from_str(&self.told(&["pending", "--json"])).unwrap()
    }
}

fn signed(result: Result<(), SignerError>) -> bool {
    match result {
        Ok(()) => true,
        Err(SignerError::Refused { rule: "approval", detail }) => {
            assert!(detail.contains("turnpike cosigner approve "), "{detail}");
            false
        }
        Err(error) => panic!("{error}"),
    }
}

fn total(channel: u8, cumulative: u64) -> SigningRequest {
    let channel = signer_requests::key(channel);
    SigningRequest::Voucher { channel, cumulative, deposit: 1_000_000, expires_at: 60 }
}

fn id(pending: &Value) -> &str {
    pending["id"].as_str().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_is_let_through_once_by_the_command_line() {
    let pair = Pair::open().await;
    assert_eq!(pair.told(&["pending"]), "Nothing waits for an approval.\n");
    assert!(pair.signs(&total(1, 1000)).await, "what needs no approval");
    assert!(!pair.signs(&total(2, 5000)).await && !pair.signs(&total(2, 5000)).await, "asked again, it waits on");

    let [waits] = pair.pending().try_into().unwrap();
    let channel = signer_requests::key(2).to_string();
    let shown = ["kind", "channels", "amount", "approved"].map(|key| waits[key].clone());
    assert_eq!(json!(shown), json!(["voucher", channel, "5000", null]));
    let line = pair.told(&["pending"]);
    assert!(line.starts_with(id(&waits)) && line.ends_with(&format!("5000 atomic units  {channel}\n")), "{line}");

    let said = format!("{} may be signed once, up to 5000 atomic units, within a day.\n", id(&waits));
    assert_eq!(pair.told(&["approve", id(&waits)]), said);
    assert!(pair.told(&["pending"]).ends_with("  approved up to 5000\n"));
    assert!(!pair.signs(&total(2, 5001)).await && !pair.signs(&total(3, 5000)).await, "for nothing else");
    assert!(pair.signs(&total(2, 5000)).await);
    assert!(!pair.signs(&total(2, 10_000)).await, "5000 more, and the approval is used up");

    // With room for what payers add meanwhile.
    let pending = pair.pending();
    let again = pending.iter().find(|it| id(it) == id(&waits)).unwrap();
    assert_eq!((pending.len(), &again["amount"], &again["approved"]), (2, &json!("5000"), &Value::Null));
    let approved = pair.told(&["approve", id(again), "--up-to", "9000", "--json"]);
    assert_eq!(serde_json::from_str::<Value>(&approved).unwrap(), json!({ "id": id(&waits), "upTo": "9000" }));
    assert!(!pair.signs(&total(2, 14_001)).await, "9001 more");
    assert!(pair.signs(&total(2, 14_000)).await);
    assert!(!pair.signs(&total(2, 23_000)).await);

    // All of it is in the record that is kept where nothing else is said.
    let verified = Command::new(BINARY).args(["audit", "verify"]).arg(&pair.file).output().unwrap();
    assert_eq!(verified.status.code(), Some(0), "{verified:?}");
    let record = std::fs::read_to_string(pair.directory.path().join("cosigner.audit/000001.jsonl")).unwrap();
    assert_eq!(record.matches("\"outcome\":\"signs\"").count(), 3, "{record}");
    assert_eq!(record.matches("\"rule\":\"approval\"").count(), 7, "{record}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_on_an_evm_network_wait_too() {
    let pair = Pair::open().await;
    let claims = evm_requests::Cast::new(world::evm_address()).batch(2);
    assert!(!pair.signs_evm(&claims).await);
    let [waits] = pair.pending().try_into().unwrap();
    assert_eq!((&waits["kind"], &waits["amount"]), (&json!("claim_batch"), &json!("800001")));
    pair.told(&["approve", id(&waits)]);
    assert!(pair.signs_evm(&claims).await);
    assert!(pair.pending().is_empty(), "used");
    assert!(pair.signs_evm(&claims).await, "again it moves nothing new");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_approved_is_told_with_an_exit_status() {
    let pair = Pair::open().await;
    assert!(!pair.signs(&total(2, 5000)).await);
    let [waits] = pair.pending().try_into().unwrap();
    for wrong in ["000000000000", "", "../cosigner.db", &id(&waits)[..11], &id(&waits).to_uppercase()] {
        let told = format!("nothing waits under {wrong}: turnpike cosigner pending lists what does");
        let (status, said) = pair.refused(&["approve", wrong]);
        assert!(status == Some(1) && said.contains(&told), "{wrong}: {status:?} {said}");
    }
    for amount in ["-1", "1.5", "$1", "much", "340282366920938463463374607431768211456"] {
        let (status, said) = pair.refused(&["approve", id(&waits), &format!("--up-to={amount}")]);
        assert!(status == Some(2) && said.contains("--up-to"), "{amount}: {status:?} {said}");
    }
    let (status, said) = pair.refused(&["approve"]);
    assert!(status == Some(2) && said.contains("<ID>"), "{status:?} {said}");
    let nowhere = ["cosigner", "approve", id(&waits), "--file", "/nowhere/cosigner.yaml"];
    let done = Command::new(BINARY).args(nowhere).output().unwrap();
    assert_eq!(done.status.code(), Some(2), "{done:?}");
    assert!(String::from_utf8(done.stderr).unwrap().contains("/nowhere/cosigner.yaml"));
    assert!(!pair.signs(&total(2, 5000)).await, "none of this has approved anything");
}
