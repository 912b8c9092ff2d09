//! Cosigners in the proxy's file, and a cosigner's own.

use std::fs;
use std::path::Path;
use std::time::Duration;

use turnpike::amount::Amount;
use turnpike::config::cosigner::CosignerConfig;
use turnpike::config::{Config, Problem, Problems};
use turnpike::signer::cosigner::EntryRules;
use turnpike::signer::cosigner::policy::{Hours, Limits};
use turnpike::signer::rules::KINDS;

use super::{PAY_TO, env, example_directory, parse_in};

const EXAMPLE: &str = include_str!("../../config/cosigner.yaml");

/// With the files that a cosigner's file names.
fn directory() -> tempfile::TempDir {
    let directory = example_directory();
    for file in ["tls/cosigner-2.pem", "tls/cosigner-2.key", "tls/proxy.pem", "tls/proxy.key", "tls/ca.pem"] {
        fs::write(directory.path().join(file), "pem").unwrap();
    }
    fs::write(directory.path().join("shares/evm-share-2.json"), "{}").unwrap();
    directory
}

fn cosigner(directory: &Path, text: &str) -> Result<CosignerConfig, Problems> {
    CosignerConfig::parse(&directory.join("cosigner.yaml"), text, &env).map(|(config, _)| config)
}

fn lines(problems: &Problems) -> Vec<String> {
    problems.problems.iter().map(Problem::to_string).collect()
}

#[test]
fn the_example_of_a_cosigner_means_what_it_says() {
    let directory = directory();
    let config = cosigner(directory.path(), EXAMPLE).unwrap();
    assert_eq!((config.name.as_str(), config.listen.to_string().as_str()), ("cosigner-2", "0.0.0.0:8443"));
    assert_eq!(config.coordinators, ["proxy"]);
    assert_eq!(config.tls.ca_file, directory.path().join("tls/ca.pem"));
    assert_eq!(config.share.unwrap().file, directory.path().join("shares/share-2.json"));
    assert_eq!(config.evm_share.unwrap().passphrase.expose(), "canary-of-the-environment");
    assert_eq!(config.store, directory.path().join("cosigner.db"));
    assert_eq!(config.audit, Some(directory.path().join("cosigner.audit")));
    let [solana, base] = config.policy.as_slice() else { panic!("two entries") };
    let EntryRules::Svm(rules) = &solana.rules else { panic!("a Solana network") };
    assert_eq!(rules.pay_to, [PAY_TO.parse().unwrap()]);
    assert_eq!((rules.deposit_max, rules.kinds.len()), (1_000_000_000, KINDS.len() - 1));
    let dollars = |dollars: u64| Some(Amount::from(dollars * 1_000_000));
    let limits = Limits {
        per_signature: dollars(500),
        per_hour: dollars(1000),
        per_day: dollars(5000),
        signatures_per_minute: Some(600),
        hours: Some(Hours { days: [true; 7], from_minute: 0, to_minute: 24 * 60 }),
        approval_above: dollars(250),
    };
    assert_eq!(solana.limits, limits);
    let EntryRules::Evm(rules) = &base.rules else { panic!("an EVM network") };
    assert_eq!((rules.chain_id, rules.tokens.len(), rules.kinds.len()), (84_532, 1, 3));
    assert_eq!(base.limits, Limits { per_day: dollars(5000), ..Limits::default() });
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    assert!(CosignerConfig::is_meant(&project.join("cosigner.yaml")));
    assert!(!CosignerConfig::is_meant(&project.join("example.yaml")));
}

#[test]
fn a_cosigner_keeps_an_audit_record_unless_it_is_told_not_to() {
    let directory = directory();
    let said = "audit:\n  dir: cosigner.audit               # made where it is not there\n";
    let audit = |text: &str| {
        let changed = EXAMPLE.replacen("path: cosigner.db", "path: kept/two.db", 1).replacen(said, text, 1);
        assert!(!changed.contains("cosigner.audit  "), "{changed}");
        cosigner(directory.path(), &changed).map(|config| config.audit).map_err(|problems| lines(&problems))
    };
    let beside = Some(directory.path().join("kept/two.audit"));
    assert_eq!((audit(""), audit("audit: {}\n")), (Ok(beside.clone()), Ok(beside)), "beside the store");
    assert_eq!(audit("audit: { dir: /var/record }\n"), Ok(Some("/var/record".into())));
    assert_eq!(audit("audit: off\n"), Ok(None));
    for (text, expected) in [
        ("audit: on\n", "audit: \"on\" is not known here. Write off, or a mapping of keys."),
        ("audit: { dir: tls/ca.pem }\n", "audit.dir: \"tls/ca.pem\" is a file."),
        ("audit: { keep: 90d }\n", "audit.keep: is not a key."),
    ] {
        let told = audit(text).unwrap_err();
        assert!(told.iter().any(|line| line.contains(expected)), "{text}{told:#?}");
    }
}

/// No key is accepted that does nothing: with a value that no key can take, each line of the example is a problem.
#[test]
fn every_value_of_the_cosigners_example_is_read() {
    let directory = directory();
    let lines: Vec<&str> = EXAMPLE.lines().collect();
    let mut tried = 0;
    for (i, line) in lines.iter().enumerate() {
        let code = line.split(" #").next().unwrap().trim_end();
        let Some((key, value)) = code.split_once(": ") else { continue };
        if line.trim_start().starts_with('#') || value.is_empty() {
            continue;
        }
        let broken = format!("{key}: \"\\0\"");
        let mut changed = lines.clone();
        changed[i] = &broken;
        let Err(problems) = cosigner(directory.path(), &changed.join("\n")) else { panic!("line {}: {line}", i + 1) };
        let name = key.trim_start_matches([' ', '-']);
        let told = |problem: &Problem| problem.line == Some(i + 1) && problem.key.contains(name);
        assert!(problems.problems.iter().any(told), "line {}: {line}\n{problems}", i + 1);
        tried += 1;
    }
    assert!(tried >= 28, "{tried}");
}

#[test]
fn mistakes_of_a_cosigners_file_are_told() {
    let directory = directory();
    let table = [
        ("name: cosigner-2", "nam: x", "nam: is not a key. Did you mean name?"),
        ("name: cosigner-2", "name: \"a b\"", "name: \"a b\" cannot stand in a certificate"),
        ("coordinators: [proxy]", "coordinators: []", "coordinators: holds 0 names. Write 1 to 8."),
        (
            "    per_day: \"$5000\"                # in",
            "    # in",
            "policy[0].per_day: is missing. Write the most that may newly move in any 24 hours.",
        ),
        ("per_hour: \"$1000\"", "per_hour: 1000", "names no currency"),
        ("to: \"24:00\"", "to: \"24:01\"", "is no time of the day"),
        ("to: \"24:00\"", "to: \"00:00\"", "policy[0].hours.to: is not after from."),
        ("days: [mon, ", "days: [moon, ", "\"moon\" is not known here"),
        ("kinds: [open, ", "kinds: [opne, ", "Did you mean open?"),
        ("  - network: base-sepolia", "  - network: sandbox", "The sandbox makes a key of its own."),
        (
            "    pay_to: [\"0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC\"]",
            "    pay_to: []",
            "policy[1].pay_to: holds 0 addresses.",
        ),
        (
            "    pay_to: [\"0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC\"]",
            "    deposit_max: \"$1\"\n    pay_to: [\"0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC\"]",
            "deposit_max: does nothing on an EVM network",
        ),
        ("passphrase: ${TURNPIKE_PASSPHRASE_1}", "passphrase: abc", "may not stand in this file"),
    ];
    for (from, to, expected) in table {
        let changed = EXAMPLE.replacen(from, to, 1);
        assert_ne!(changed, EXAMPLE, "{from}");
        let told = lines(&cosigner(directory.path(), &changed).err().unwrap_or_else(|| panic!("{to} is taken")));
        assert!(told.iter().any(|line| line.contains(expected)), "{to}: {told:#?}");
        assert!(!told.iter().any(|line| line.contains("canary")), "{told:#?}");
    }
    let without = EXAMPLE.split("  - network: base-sepolia").next().unwrap();
    let told = lines(&cosigner(directory.path(), without).unwrap_err());
    assert!(told[0].contains("evm_share: does nothing: no entry of policy is for its networks."), "{told:#?}");
}

const PROXY: &str = "upstream: http://127.0.0.1:3000\nroutes: [{path: /a, price: $1}]\n";
const OWN: &str = "{file: shares/share-1.json, passphrase_file: shares/share-2.passphrase}";
const TWO: &str =
    "cosigners: [{name: cosigner-2, address: \"10.0.0.2:8443\"}, {name: cosigner-3, address: \"c.internal:8443\"}]";
const TLS: &str = "tls: {cert_file: tls/proxy.pem, key_file: tls/proxy.key, ca_file: tls/ca.pem}";

fn solana(signer: &str) -> String {
    format!("network: solana-devnet\npay_to: {PAY_TO}\nrpc_url: https://rpc.example.com\n{PROXY}signer: {{{signer}}}\n")
}

fn proxy(signer: &str) -> Result<Config, Problems> {
    let directory = directory();
    parse_in(directory.path(), &solana(signer))
}

#[test]
fn cosigners_stand_beside_one_share_or_the_keys_address() {
    let config = proxy(&format!("shares: [{OWN}], {TWO}, {TLS}, cosigner_timeout: 700ms")).unwrap();
    let signer = config.signer.unwrap();
    assert_eq!((signer.shares.len(), signer.evm_shares.len()), (1, 0));
    let elsewhere = signer.cosigners.unwrap();
    assert_eq!(elsewhere.cosigners[1], ("cosigner-3".to_owned(), "c.internal:8443".to_owned()));
    assert_eq!((elsewhere.timeout, elsewhere.address), (Duration::from_millis(700), None));
    let config = proxy(&format!("address: {PAY_TO}, {TWO}, {TLS}")).unwrap();
    let elsewhere = config.signer.unwrap().cosigners.unwrap();
    assert_eq!((elsewhere.timeout, elsewhere.address), (Duration::from_secs(2), Some(PAY_TO.parse().unwrap())));
}

#[test]
fn mistakes_with_cosigners_are_told() {
    let one = "cosigners: [{name: cosigner-2, address: \"10.0.0.2:8443\"}]";
    let table = [
        (format!("shares: [{OWN}, {OWN}], {TWO}, {TLS}"), "signer.shares: holds 2 shares. Write one share at most"),
        (format!("{TWO}, {TLS}"), "signer.address: is missing. Write the key's address, or one share of it in shares."),
        (format!("shares: [{OWN}], address: {PAY_TO}, {TWO}, {TLS}"), "signer.address: does nothing beside a share"),
        (format!("address: {PAY_TO}, {one}, {TLS}"), "signer.address: needs two cosigners"),
        (format!("shares: [{OWN}], {TWO}"), "signer.tls: is missing. Write cert_file, key_file and ca_file"),
        (format!("shares: [{OWN}], cosigners: [], {TLS}"), "signer.cosigners: holds 0 cosigners."),
        (
            format!("shares: [{OWN}], {one}, {TLS}, evm_address: \"0x\""),
            "signer.evm_address: does nothing without an EVM network",
        ),
        (format!("shares: [{OWN}, {OWN}], {TLS}"), "signer.tls: does nothing without cosigners."),
        (
            format!("shares: [{OWN}, {OWN}], cosigner_timeout: 1s"),
            "signer.cosigner_timeout: does nothing without cosigners.",
        ),
        (format!("shares: [{OWN}, {OWN}], address: {PAY_TO}"), "signer.address: does nothing without cosigners"),
        (
            format!(
                "shares: [{OWN}], cosigners: [{{name: a, address: \"h:1\"}}, {{name: a, address: \"h:2\"}}], {TLS}"
            ),
            "signer.cosigners[1]: has the name or the address of another cosigner.",
        ),
        (format!("shares: [{OWN}], cosigners: [{{name: a, address: \"https://h\"}}], {TLS}"), "is not host and port"),
        (format!("shares: [{OWN}], cosigners: [{{name: a, address: h}}], {TLS}"), "is not host and port"),
        (format!("shares: [{OWN}], cosigners: [{{nam: a, address: \"h:1\"}}], {TLS}"), "Did you mean name?"),
    ];
    for (signer, expected) in table {
        let told = lines(&proxy(&signer).err().unwrap_or_else(|| panic!("{signer} is taken")));
        assert!(told.iter().any(|line| line.contains(expected)), "{signer}: {told:#?}");
    }
}
