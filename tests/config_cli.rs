//! `turnpike check` and `turnpike init`, run in process.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::path::Path;

use turnpike::cli::{check, init};
use turnpike::config::{Config, Family};

const EVM_PAY_TO: &str = "0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC";
const PAY_TO: &str = "7EcDhSYGxXyscszYEp35KHN8vvw3svAuLKTzXwCFLtV";

fn env(_: &str) -> Option<String> {
    None
}

fn run_check(file: &Path, json: bool) -> (u8, String) {
    let mut out = Vec::new();
    let status = check::run(&check::Args { file: file.to_owned(), json }, &env, &mut out).unwrap();
    (status, String::from_utf8(out).unwrap())
}

fn run_init(args: init::Args, answers: Option<&str>) -> (u8, String) {
    let mut out = Vec::new();
    let mut input = answers.map(str::as_bytes);
    let terminal = input.as_mut().map(|input| -> &mut dyn std::io::BufRead { input });
    let status = init::run(args, &env, terminal, &mut out).unwrap();
    (status, String::from_utf8(out).unwrap())
}

fn file(directory: &tempfile::TempDir, text: &str) -> std::path::PathBuf {
    let path = directory.path().join("turnpike.yaml");
    fs::write(&path, text).unwrap();
    path
}

#[test]
fn check_shows_what_a_file_says() {
    let directory = tempfile::tempdir().unwrap();
    let path = file(&directory, include_str!("../config/minimal.yaml"));
    let (status, told) = run_check(&path, false);
    assert_eq!(status, check::EXIT_FINE, "{told}");
    let lines: Vec<&str> = told.lines().collect();
    assert!(lines[0].ends_with("turnpike.yaml is fine."), "{told}");
    assert_eq!(lines[2], "  METHODS  ROUTE        PRICE       SCHEME            UPSTREAM");
    assert_eq!(lines[3], "  all      /v1/quote/*  0.001 USDC  batch-settlement  http://127.0.0.1:3000");
    assert_eq!(lines[4], "  POST     /v1/search   0.02 USDC   batch-settlement  http://127.0.0.1:3000");
    assert_eq!(lines[5], "  all      /health      free                          http://127.0.0.1:3000");
    assert!(told.contains("Any other path is refused."), "{told}");
    assert!(told.contains("A lost answer of up to 65536 bytes can be had again for 600 s."), "{told}");
    assert!(told.contains("on the sandbox, shown as solana:EtWTRABZaYq6iMfeYKouRu166VU2xqa1"), "{told}");
    let (status, told) = run_check(&path, true);
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert_eq!((status, &told["ok"]), (0, &true.into()));
    assert_eq!(told["routes"][1]["prices"][0]["amount"], "20000");
    assert_eq!(told["routes"][1]["methods"][0], "POST");
}

#[test]
fn check_tells_every_problem() {
    let directory = tempfile::tempdir().unwrap();
    let path = file(&directory, "upstream: 1\nnetwork: sandbox\nroutes: [{path: /a, price: 1}]\nlog: {levle: info}\n");
    let (status, told) = run_check(&path, false);
    assert_eq!(status, check::EXIT_PROBLEMS);
    assert!(told.contains(&format!("{}:3 routes[0].price: \"1\" names no currency.", path.display())), "{told}");
    assert!(told.trim_end().ends_with("3 problems."), "{told}");
    let (status, told) = run_check(&path, true);
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert_eq!((status, &told["ok"]), (1, &false.into()));
    assert_eq!(told["problems"].as_array().unwrap().len(), 3);
    assert_eq!(told["problems"][2]["line"], 4);
    assert_eq!(told["problems"][2]["key"], "log.levle");
    assert_eq!(told["problems"][2]["remedy"], "Did you mean level?");
}

#[test]
fn check_warns_of_what_is_probably_not_meant() {
    let directory = tempfile::tempdir().unwrap();
    let text =
        "upstream: http://a\nnetwork: sandbox\nroutes: [{path: /a, free: true}]\nadmin: {listen: 0.0.0.0:9402}\n";
    let (status, told) = run_check(&file(&directory, text), false);
    assert_eq!(status, check::EXIT_FINE);
    assert!(told.contains(":3 routes: are all free, so nothing is ever charged."), "{told}");
    assert!(told.contains(":4 admin.listen: lets other machines reach the admin API."), "{told}");
}

#[test]
fn check_cannot_read_what_is_not_there() {
    let (status, told) = run_check(Path::new("/nowhere/turnpike.yaml"), false);
    assert_eq!(status, check::EXIT_UNREADABLE);
    assert!(told.starts_with("/nowhere/turnpike.yaml cannot be read: "), "{told}");
    assert_eq!(run_check(Path::new("/nowhere/turnpike.yaml"), true).0, check::EXIT_UNREADABLE);
}

#[test]
fn init_writes_a_file_that_passes_check() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("turnpike.yaml");
    let args = init::Args { file: path.clone(), ..init::Args::default() };
    let (status, told) = run_init(args.clone(), None);
    assert_eq!(status, 0, "{told}");
    assert_eq!(run_check(&path, false).0, check::EXIT_FINE);
    assert!(fs::read_to_string(&path).unwrap().contains("# What costs what."));
    let before = fs::read(&path).unwrap();
    let other = init::Args { upstream: Some("http://127.0.0.1:4000".into()), ..args };
    let (status, told) = run_init(other.clone(), None);
    assert_eq!(status, 1);
    assert!(told.contains("is there already"), "{told}");
    assert_eq!(fs::read(&path).unwrap(), before);
    let (status, told) = run_init(init::Args { force: true, ..other }, None);
    assert_eq!(status, 0, "{told}");
    assert_ne!(fs::read(&path).unwrap(), before);
    assert_eq!(run_check(&path, false).0, check::EXIT_FINE);
}

#[test]
fn init_takes_flags_for_a_cluster() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("turnpike.yaml");
    let args = init::Args {
        file: path.clone(),
        upstream: Some("http://127.0.0.1:4000".into()),
        network: Some("solana-devnet".into()),
        pay_to: Some(PAY_TO.into()),
        rpc_url: Some("https://api.devnet.solana.com".into()),
        facilitator: None,
        routes: vec!["POST,PUT /v1/search=$0.02".into(), "/v1/x=y/*=1000 USDC-atomic".into(), "/health=free".into()],
        force: false,
    };
    let (status, told) = run_init(args, None);
    assert_eq!(status, 0, "{told}");
    assert!(told.contains("turnpike keygen"), "{told}");
    // Its shares are still to be made, and nothing else is wrong.
    assert_eq!(run_check(&path, false).0, check::EXIT_PROBLEMS);
    make_shares(&directory, "");
    let (status, told) = run_check(&path, false);
    assert_eq!(status, check::EXIT_FINE, "{told}");
    let (config, _) = Config::load(&path, &env).unwrap();
    assert_eq!(config.routes[0].methods, ["POST", "PUT"]);
    assert_eq!(&*config.routes[1].path, "/v1/x=y/*");
    let Family::Svm(solana) = &config.networks[0].family else { panic!("a Solana network") };
    assert_eq!(solana.pay_to, Some(PAY_TO.parse().unwrap()));
}

/// The files that `turnpike keygen --out shares --generate-passphrases passphrases` makes, by their names.
fn make_shares(directory: &tempfile::TempDir, prefix: &str) {
    for folder in ["shares", "passphrases"] {
        fs::create_dir_all(directory.path().join(folder)).unwrap();
    }
    for number in [1, 2] {
        fs::write(directory.path().join(format!("shares/{prefix}share-{number}.json")), "x").unwrap();
        fs::write(directory.path().join(format!("passphrases/{prefix}passphrase-{number}.txt")), "x").unwrap();
    }
}

#[test]
fn init_writes_a_file_for_an_evm_network() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("turnpike.yaml");
    let args = init::Args {
        file: path.clone(),
        network: Some("base".into()),
        pay_to: Some(EVM_PAY_TO.into()),
        rpc_url: Some("https://mainnet.base.org".into()),
        ..init::Args::default()
    };
    let (status, told) = run_init(args.clone(), None);
    assert_eq!(status, 0, "{told}");
    assert!(told.contains("into secrets/gas.key"), "{told}");
    assert!(told.contains("turnpike keygen --curve secp256k1 --out shares"), "{told}");
    make_shares(&directory, "evm-");
    let (status, told) = run_check(&path, false);
    assert!(status == check::EXIT_PROBLEMS && told.trim_end().ends_with("\n1 problem."), "{told}");
    fs::create_dir(directory.path().join("secrets")).unwrap();
    fs::write(directory.path().join("secrets/gas.key"), "7".repeat(64)).unwrap();
    let (status, told) = run_check(&path, false);
    assert_eq!(status, check::EXIT_FINE, "{told}");
    let sentence =
        format!("Paid in USDC on base eip155:8453, to {EVM_PAY_TO}, sent from here by https://mainnet.base.org.");
    assert!(told.contains(&sentence), "{told}");
    let elsewhere = init::Args {
        facilitator: Some("https://x402.example.com".into()),
        rpc_url: None,
        network: Some("eip155:84532".into()),
        force: true,
        ..args
    };
    let (status, told) = run_init(elsewhere, None);
    assert!(status == 0 && !told.contains("gas.key"), "{told}");
    let (status, told) = run_check(&path, false);
    assert_eq!(status, check::EXIT_FINE, "{told}");
    assert!(told.contains("on base-sepolia eip155:84532"), "{told}");
    assert!(told.contains("sent by the facilitator at https://x402.example.com."), "{told}");
    let (_, told) = run_check(&path, true);
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told["networks"][0]["facilitator"][0], "https://x402.example.com");
    assert_eq!(told["networks"][0]["payTo"], EVM_PAY_TO);
    assert_eq!(told["routes"][0]["schemes"][0], "batch-settlement");
}

#[test]
fn init_asks_who_sends_transactions_on_an_evm_network() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("turnpike.yaml");
    let args = init::Args {
        file: path.clone(),
        upstream: Some("http://127.0.0.1:4000".into()),
        routes: vec!["/v1/*=$0.5".into()],
        ..init::Args::default()
    };
    let (status, told) = run_init(args.clone(), Some(&format!("base-sepolia\n{EVM_PAY_TO}\n\n\n")));
    assert!(status == 0 && told.contains("(local for this process, or a facilitator's URL) [local]"), "{told}");
    assert!(told.contains("[https://sepolia.base.org]"), "{told}");
    let answers = format!("base-sepolia\n{EVM_PAY_TO}\nhttps://x402.example.com\n");
    let (status, told) = run_init(init::Args { force: true, ..args }, Some(&answers));
    assert!(status == 0 && !told.contains("JSON-RPC"), "{told}");
    let written = fs::read_to_string(&path).unwrap();
    assert!(written.contains("facilitator: \"https://x402.example.com\"") && !written.contains("gas_key"), "{written}");
}

#[test]
fn init_asks_what_the_flags_leave_out() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("turnpike.yaml");
    let args = init::Args { file: path.clone(), network: Some("sandbox".into()), ..init::Args::default() };
    let (status, told) = run_init(args, Some("http://127.0.0.1:5000\n/v1/*=$0.5\n/health=free\n\n"));
    assert_eq!(status, 0, "{told}");
    assert!(told.starts_with("Where does your API listen? [http://127.0.0.1:3000] "), "{told}");
    let (config, _) = Config::load(&path, &env).unwrap();
    assert_eq!((config.upstream[0].port_u16(), config.routes.len()), (Some(5000), 2));
}

#[test]
fn init_takes_the_end_of_input_for_no_answer() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("turnpike.yaml");
    let args = init::Args { file: path.clone(), ..init::Args::default() };
    assert_eq!(run_init(args, Some("")).0, 0);
    assert_eq!(run_check(&path, false).0, check::EXIT_FINE);
}

#[test]
fn init_writes_nothing_that_would_not_pass() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("turnpike.yaml");
    let args = init::Args { file: path.clone(), ..init::Args::default() };
    for (args, want) in [
        (init::Args { upstream: Some("localhost".into()), ..args.clone() }, "names no scheme"),
        (init::Args { network: Some("solana".into()), ..args.clone() }, "pay_to: is missing."),
        (init::Args { network: Some("base".into()), ..args.clone() }, "pay_to: is missing."),
        (
            init::Args { network: Some("base".into()), pay_to: Some(EVM_PAY_TO.into()), ..args.clone() },
            "rpc_url: is missing.",
        ),
        (
            init::Args { facilitator: Some("https://x402.example.com".into()), ..args.clone() },
            "names a facilitator elsewhere, which can only serve EVM networks",
        ),
        (init::Args { routes: vec!["/v1".into()], ..args.clone() }, "names no price"),
        (init::Args { routes: vec!["/v1=0.1".into()], ..args.clone() }, "names no currency"),
        (init::Args { upstream: Some("http://a\"\nroutes: []\n#".into()), ..args.clone() }, "upstream: "),
    ] {
        let (status, told) = run_init(args, None);
        assert_eq!(status, 1, "{told}");
        assert!(told.contains(want), "{told}");
        assert!(!path.exists());
    }
}
