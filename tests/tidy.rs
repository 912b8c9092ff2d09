//! Keeps the house in order: who may name whom, and which vendor crate is confined to which files
//! (CONTRIBUTING.md, "Where things are").

use std::fs;
use std::path::{Path, PathBuf};

/// Every source file below `src/`, as its path without `src/`, with its text less comments and tests.
fn sources() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
                let text = fs::read_to_string(&path).unwrap();
                let code = text.split("#[cfg(test)]\nmod ").next().unwrap();
                let code: Vec<_> = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
                files.push((name, code.join("\n")));
            }
        }
    }
    assert!(files.len() > 20, "the sources were not found");
    files
}

fn within(file: &str, module: &str) -> bool {
    file == format!("{module}.rs") || file.starts_with(&format!("{module}/"))
}

/// Whether the code names `crate::module`, alone or in a `use crate::{...}` group.
fn names(code: &str, module: &str) -> bool {
    let path = module.replace('/', "::");
    let direct = format!("crate::{path}");
    code.match_indices(&direct).any(|(at, _)| {
        let next = code[at + direct.len()..].chars().next().unwrap_or(' ');
        !(next.is_alphanumeric() || next == '_')
    })
}

/// Whether the code has a path that begins with the crate's name; `Keccak256::` does not begin with `k256`.
fn uses(code: &str, vendor: &str) -> bool {
    code.match_indices(&format!("{vendor}::"))
        .any(|(at, _)| !code[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_'))
}

fn forbid(users: &[&str], named: &[&str]) {
    for (file, code) in sources() {
        for module in named {
            if users.iter().any(|user| within(&file, user)) && !within(&file, module) {
                assert!(!names(&code, module), "src/{file} names crate::{}", module.replace('/', "::"));
            }
        }
    }
}

#[test]
fn gate_and_settlement_meet_only_in_the_ledger() {
    forbid(&["gate"], &["settlement"]);
    forbid(&["settlement"], &["gate"]);
}

#[test]
fn the_request_path_cannot_reach_a_key_share() {
    forbid(&["gate", "proxy", "layer"], &["signer"]);
}

const ADAPTERS: &[&str] = &[
    "audit/log",
    "ledger/sqlite",
    "ledger/memory",
    "chain/svm",
    "chain/sandbox",
    "chain/evm/rpc",
    "facilitator/local",
    "facilitator/authorizer/threshold",
    "facilitator/evm",
    "facilitator/http",
    "screening/file",
    "screening/http",
    "signer/ceremony",
    "signer/cosigner/server",
    "signer/cosigner/store",
    "signer/ecdsa",
    "signer/frost",
    "signer/keystore",
    "signer/remote",
];

#[test]
fn only_the_root_and_the_command_line_name_adapters() {
    for (file, code) in sources() {
        for adapter in ADAPTERS {
            let parent = adapter.split('/').next().unwrap();
            let may = within(&file, "app") || within(&file, "cli") || within(&file, parent) || file == "main.rs";
            assert!(
                may || !names(&code, adapter),
                "src/{file} names the adapter crate::{}",
                adapter.replace('/', "::")
            );
        }
    }
}

#[test]
fn lower_levels_name_nothing_above_them() {
    let edges = ["proxy", "layer", "admin", "cli", "config", "client", "app"];
    let flows = ["gate", "settlement"];
    let words = ["amount", "clock", "telemetry", "x402"];
    let pure = ["ledger/channel", "scheme", "policy", "gate/policy"];
    let ports = ["ledger", "chain", "facilitator", "screening", "signer", "audit"];
    let above_flows: Vec<_> = edges.to_vec();
    let above_ports: Vec<_> = edges.iter().chain(&flows).copied().filter(|module| *module != "gate").collect();
    let above_words: Vec<_> = above_ports.iter().chain(&ports).chain(&["scheme", "policy", "gate"]).copied().collect();
    forbid(&flows, &above_flows);
    forbid(&ports, &above_ports);
    forbid(&pure, &above_ports);
    forbid(&["gate/policy"], &ports);
    // But for what a checkpoint is, which is pure.
    forbid(
        &["policy"],
        &["ledger", "chain", "facilitator", "screening", "signer", "audit/log", "audit/entry", "audit/segment"],
    );
    forbid(&["audit"], &["ledger", "chain", "facilitator", "signer", "policy"]);
    forbid(&words, &above_words);
    forbid(&["http_client"], &above_words);
    forbid(&["http_client"], &words);
}

#[test]
fn pure_modules_have_no_clock_socket_file_or_async() {
    for (file, code) in sources() {
        let pure = [
            "ledger/channel",
            "scheme",
            "policy",
            "gate/policy",
            "gate/route",
            "audit/checkpoint",
            "audit/entry",
            "audit/segment",
        ];
        if pure.iter().any(|module| within(&file, module)) {
            for word in
                ["async fn", "std::fs", "TcpStream", "UdpSocket", "tokio::", "SystemTime", "Instant::now", "getrandom"]
            {
                assert!(!code.contains(word), "src/{file} is pure and must not use {word}");
            }
        }
    }
}

#[test]
fn vendor_crates_stay_in_their_files() {
    let confined: &[(&str, &[&str])] = &[
        ("granit_parser", &["config"]),
        ("jiff", &["gate/policy", "config/policy"]),
        ("frost_ed25519", &["signer/frost"]),
        ("argon2", &["signer/keystore/sealed"]),
        ("chacha20poly1305", &["signer/keystore", "signer/ceremony/letter", "signer/ecdsa/pair"]),
        ("rusqlite", &["ledger/sqlite", "signer/cosigner/store"]),
        ("rcgen", &["cli/keygen/certificates"]),
        ("rustix", &["cli/cosigner", "app/background"]),
        ("solana_message", &["scheme/svm/transaction", "chain"]),
        ("solana_transaction", &["scheme/svm/transaction", "chain"]),
        ("wincode", &["scheme/svm/transaction", "chain"]),
        ("solana_address", &["scheme/svm", "chain"]),
        ("wayfind", &["gate/route/tree"]),
        ("prometheus", &["telemetry"]),
        ("axum", &["admin", "chain/sandbox", "cli/demo"]),
        ("clap", &["cli"]),
        ("alloy_primitives", &["chain/evm"]),
        ("alloy_rlp", &["chain/evm"]),
        ("alloy_sol_types", &["chain/evm"]),
        ("const_hex", &["x402/evm", "chain/evm", "signer/keystore/curve"]),
        ("dkls23_core", &["signer/ecdsa"]),
        ("k256", &["signer/ecdsa"]),
        ("postcard", &["signer/ecdsa", "signer/ceremony"]),
        ("secp256k1", &["scheme/evm/signature", "scheme/evm/testing", "chain/evm/key", "cli/bench/purse"]),
        ("sha3", &["x402/evm"]),
        ("x25519_dalek", &["signer/ceremony"]),
    ];
    for (file, code) in sources() {
        for (vendor, places) in confined {
            let used = uses(&code, vendor) || code.contains(&format!("use {vendor};"));
            assert!(!used || places.iter().any(|place| within(&file, place)), "src/{file} names {vendor}");
        }
    }
}
