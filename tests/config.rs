//! Configuration: what a file may say, and what is answered to everything else.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use proptest::prelude::*;
use turnpike::amount::{Amount, Asset};
use turnpike::config::{
    Config, CorsConfig, DEPTH_MAX, FILE_BYTES_MAX, Problem, Problems, ROUTES_MAX, RoutePricing, Unlisted,
};
use turnpike::gate::route::{Match, Pricing, RouteTable};
use turnpike::ledger::channel::Seller;
use turnpike::scheme::svm::{TOKEN_PROGRAM, USDC_DEVNET};
use turnpike::x402::Key;

const EXAMPLE: &str = include_str!("../config/example.yaml");
const MINIMAL: &str = include_str!("../config/minimal.yaml");
const PAY_TO: &str = "7EcDhSYGxXyscszYEp35KHN8vvw3svAuLKTzXwCFLtV";

fn env(name: &str) -> Option<String> {
    (name == "TURNPIKE_PASSPHRASE_1").then(|| "canary-of-the-environment".to_owned())
}

fn parse(text: &str) -> Result<Config, Problems> {
    parse_in(Path::new(""), text)
}

fn parse_in(directory: &Path, text: &str) -> Result<Config, Problems> {
    Config::parse(&directory.join("prod.yaml"), text, &env).map(|(config, _)| config)
}

/// The problems of a text, as lines without the file's name.
fn problems(text: &str) -> Vec<String> {
    match parse(text) {
        Ok(_) => Vec::new(),
        Err(problems) => problems.problems.iter().map(|problem| problem.to_string()).collect(),
    }
}

/// A directory with the files that the example names.
fn example_directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (file, text) in [
        ("tls/cert.pem", "certificate"),
        ("tls/key.pem", "key"),
        ("shares/share-1.json", "{}"),
        ("shares/share-2.json", "{}"),
        ("shares/share-2.passphrase", "canary-of-the-file\n"),
    ] {
        let path = directory.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    directory
}

#[test]
fn ten_mistakes_are_told_at_once_with_line_and_remedy() {
    let text = r#"
upstraem: http://127.0.0.1:3000
upstream: 127.0.0.1:3000
network: solana-devnt
pay_to: "0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC"
listen: 8402
withdraw_delay: 5m
routes:
  - { path: /v1/quote/*, price: "0.001" }
  - { path: "/v1/items/{a}", price: "$0.01", methods: [GTE] }
  - { path: "/v1/items/{id}", price: "$0.01", free: true }
  - { path: /health, free: true, metering: { header: X-Usage } }
timeouts:
  connect: 5
  connect: 6s
"#;
    let told = problems(text);
    let want = [
        r#":2 upstraem: is not a key. Did you mean upstream?"#,
        r#":3 upstream: "127.0.0.1:3000" names no scheme. Write http://127.0.0.1:3000."#,
        r#":4 network: "solana-devnt" is not a known network. Did you mean solana-devnet?"#,
        r#":5 pay_to: "0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC" is an EVM address, not a Solana address. Write the base58 text of 32 bytes, 32 to 44 letters and digits."#,
        r#":6 listen: "8402" is not an address and port. Write 0.0.0.0:8402, or 127.0.0.1:8402 for this machine only."#,
        r#":7 withdraw_delay: "5m" is shorter than 15m. Write 15m to 30d."#,
        r#":9 routes[0].price: "0.001" names no currency. Write "$0.001" or "1000 USDC-atomic"."#,
        r#":10 routes[1].methods[0]: "GTE" is not a method. Did you mean GET?"#,
        r#":11 routes[2].free: stands beside price. Keep one of the two."#,
        r#":12 routes[3].metering: does nothing on a free route. Leave it out, or give the route a price."#,
        r#":14 timeouts.connect: "5" names no unit. Write 5s for seconds, or another of ms, m, h, d."#,
        r#":15 timeouts.connect: is written twice. Keep one of the two."#,
    ];
    assert_eq!(told, want, "\n{}", told.join("\n"));
    let named = parse(text).unwrap_err().to_string();
    assert!(named.starts_with("prod.yaml:2 upstraem: "), "{named}");
}

#[test]
fn the_minimal_file_means_what_it_says() {
    let config = parse(MINIMAL).unwrap();
    assert_eq!(config.upstream, ["http://127.0.0.1:3000"]);
    assert!(config.sandbox.is_some() && config.signer.is_none() && config.store.is_none() && config.tls.is_none());
    assert_eq!(config.default, Unlisted::Deny);
    assert_eq!(config.listen.to_string(), "0.0.0.0:8402");
    assert_eq!(config.admin.listen.to_string(), "127.0.0.1:9402");
    assert_eq!(config.withdraw_delay_seconds(), 86_400);
    let [network] = config.networks.as_slice() else { panic!("one network") };
    assert_eq!((network.mint, network.pay_to), (USDC_DEVNET, None));
    let amounts: Vec<_> = config.routes.iter().map(|route| amount(&route.pricing)).collect();
    assert_eq!(amounts, [Some(Amount::new(1000)), Some(Amount::new(20_000)), None]);
    assert_eq!(config.routes[1].methods, [Method::POST]);
}

fn amount(pricing: &RoutePricing) -> Option<Amount> {
    match pricing {
        RoutePricing::Free => None,
        RoutePricing::Fixed(prices) | RoutePricing::Metered { prices, .. } => Some(prices[0].amount),
    }
}

#[test]
fn the_example_means_what_it_says() {
    let directory = example_directory();
    let config = parse_in(directory.path(), EXAMPLE).unwrap();
    assert_eq!(config.upstreams["search"].len(), 2);
    assert_eq!(config.networks[0].pay_to, Some(PAY_TO.parse().unwrap()));
    assert_eq!(config.networks[0].rpc_urls[0].uri(), "https://api.devnet.solana.com");
    let signer = config.signer.as_ref().unwrap();
    assert_eq!(signer.shares[0].passphrase.expose(), "canary-of-the-environment");
    assert_eq!(signer.shares[1].passphrase.expose(), "canary-of-the-file");
    assert_eq!(signer.shares[1].file, directory.path().join("shares/share-2.json"));
    assert_eq!((signer.deposit_max, signer.claim_max), (Amount::new(1_000_000_000), Amount::new(10_000_000_000)));
    assert_eq!(config.store, Some(directory.path().join("turnpike.db")));
    assert_eq!(config.settlement.min_amount, Amount::new(100_000));
    assert_eq!(config.settlement.exposure_max, Amount::new(100_000_000));
    assert_eq!(config.settlement.channel_exposure_max, Amount::new(10_000_000));
    assert_eq!(config.limits.body_bytes, 10 * 1024 * 1024);
    assert_eq!(config.timeouts.idle, Duration::from_secs(75));
    assert_eq!(config.memo.as_deref(), Some("order-desk"));
    assert!(matches!(&config.cors, Some(CorsConfig::Origins(origins)) if origins == &["https://app.example.com"]));
    let RoutePricing::Fixed(prices) = &config.routes[0].pricing else { panic!("fixed") };
    assert_eq!(prices[0].min_deposit, Some(Amount::new(500_000)));
    let RoutePricing::Metered { header: Some(header), .. } = &config.routes[2].pricing else { panic!("metered") };
    assert_eq!(header, "x-usage");
}

/// What the example says is a default, is one: without those keys the file means the same.
#[test]
fn the_examples_defaults_are_the_defaults() {
    let directory = example_directory();
    let full = parse_in(directory.path(), EXAMPLE).unwrap();
    let sections = ["asset", "settlement", "queue", "limits", "timeouts", "log", "default", "listen", "admin"];
    let single = ["withdraw_delay", "max_timeout", "facilitator"];
    let mut dropping = false;
    let mut text = String::new();
    for line in EXAMPLE.lines() {
        if line.starts_with(|c: char| c.is_ascii_lowercase()) {
            let key = line.split(':').next().unwrap();
            dropping = sections.contains(&key) || single.contains(&key);
        }
        if !dropping
            && !line.trim_start().starts_with(["deposit_max", "claim_max"].as_slice()[0])
            && !line.trim_start().starts_with("claim_max")
        {
            text.push_str(line);
            text.push('\n');
        }
    }
    let short = parse_in(directory.path(), &text).unwrap();
    assert_eq!(short.networks, full.networks);
    assert_eq!(short.settlement, full.settlement);
    assert_eq!(
        (short.queue, short.limits, short.timeouts, short.log),
        (full.queue, full.limits, full.timeouts, full.log)
    );
    assert_eq!((short.default, short.listen, short.admin), (full.default, full.listen, full.admin));
    assert_eq!((short.withdraw_delay, short.max_timeout), (full.withdraw_delay, full.max_timeout));
    let (short, full) = (short.signer.unwrap(), full.signer.unwrap());
    assert_eq!((short.deposit_max, short.claim_max), (full.deposit_max, full.claim_max));
}

/// No key is accepted that does nothing: with a value that no key can take, each line of the example is a problem.
#[test]
fn every_value_of_the_example_is_read() {
    let directory = example_directory();
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
        let Err(problems) = parse_in(directory.path(), &changed.join("\n")) else { panic!("line {}: {line}", i + 1) };
        let name = key.trim_start_matches([' ', '-']);
        let told = |problem: &Problem| problem.line == Some(i + 1) && problem.key.ends_with(name);
        assert!(problems.problems.iter().any(told), "line {}: {line}\n{problems}", i + 1);
        tried += 1;
    }
    assert!(tried >= 60, "{tried}");
}

/// Every key that is known anywhere is explained in the example.
#[test]
fn the_example_names_every_key() {
    let unknown = "qqqqqqqqqqqqqqqq: 1";
    let solana = format!("upstream: http://a\nnetwork: solana\npay_to: {PAY_TO}\nrpc_url: http://a\n");
    let texts = [
        format!("{MINIMAL}\n{unknown}"),
        format!("{MINIMAL}\nsandbox: {{{unknown}}}"),
        format!("{MINIMAL}\nadmin: {{listen: 127.0.0.1:1, {unknown}}}\ntls: {{{unknown}}}\nstore: {{{unknown}}}"),
        format!("{MINIMAL}\nsettlement: {{{unknown}}}\nqueue: {{{unknown}}}\nlimits: {{{unknown}}}"),
        format!("{MINIMAL}\ntimeouts: {{{unknown}}}\ncors: {{{unknown}}}\nlog: {{{unknown}}}"),
        format!(
            "{solana}asset: {{{unknown}}}\nsigner: {{shares: [{{{unknown}}}], {unknown}}}\nroutes: [{{{unknown}}}]"
        ),
        format!(
            "networks: [{{network: solana, {unknown}}}]\nroutes: [{{path: /, price: $1, metering: {{{unknown}}}}}]"
        ),
    ];
    let mut known = BTreeSet::new();
    for text in &texts {
        for problem in parse(text).unwrap_err().problems {
            if let Some(keys) = problem.remedy.strip_prefix("The keys here are ") {
                known.extend(keys.trim_end_matches('.').split(", ").map(str::to_owned));
            }
        }
    }
    assert!(known.len() >= 60, "{known:?}");
    for key in known {
        assert!(EXAMPLE.contains(&format!("{key}:")), "{key} is not explained");
    }
}

#[test]
fn unknown_keys_are_told_the_nearest() {
    for (key, want) in [
        ("upsteam", "Did you mean upstream?"),
        ("route", "Did you mean routes?"),
        ("Listen", "Did you mean listen?"),
        ("with_draw_delay", "Did you mean withdraw_delay?"),
        ("settlment", "Did you mean settlement?"),
    ] {
        let told = problems(&format!("{MINIMAL}\n{key}: 1"));
        assert!(told.iter().any(|line| line.ends_with(&format!(" {key}: is not a key. {want}"))), "{told:?}");
    }
    let told = problems(&format!("{MINIMAL}\nqueue: {{waitters: 1, wat: 1s}}"));
    assert_eq!(
        told,
        [":8 queue.waitters: is not a key. Did you mean waiters?", ":8 queue.wat: is not a key. Did you mean wait?"]
    );
}

#[test]
fn no_message_holds_a_secret() {
    const CANARY: &str = "hunter2canary";
    let directory = example_directory();
    let secret_env = |name: &str| match name {
        "EMPTY" => Some(String::new()),
        "UNSET" => None,
        "KEY" => Some(format!("{PAY_TO}{CANARY}")),
        _ => Some(CANARY.to_owned()),
    };
    let check_as = |text: &str, and_the_config: bool| {
        let (shown, fine) = match Config::parse(&directory.path().join("prod.yaml"), text, &secret_env) {
            Ok((config, warnings)) if and_the_config => (format!("{config:?} {warnings:?}"), true),
            Ok((_, warnings)) => (format!("{warnings:?}"), true),
            Err(problems) => (format!("{problems} {problems:?} {}", serde_json::to_string(&problems).unwrap()), false),
        };
        assert!(!shown.contains(CANARY), "{shown}\n{text}");
        fine
    };
    let check = |text: &str| check_as(text, true);
    assert!(check(EXAMPLE));
    // In place of every value, by a variable, alone and with something around it.
    let lines: Vec<&str> = EXAMPLE.lines().collect();
    for (i, line) in lines.iter().enumerate() {
        let Some((key, _)) = line.split_once(": ").filter(|_| !line.trim_start().starts_with('#')) else { continue };
        for value in ["${SECRET}", "\"$${SECRET\"", "x${SECRET}", "http://${SECRET}:x/#", "$0.${SECRET}", "${KEY}"] {
            let broken = format!("{key}: {value}");
            let mut changed = lines.clone();
            changed[i] = &broken;
            check_as(&changed.join("\n"), false);
        }
    }
    // Written out where a secret may be expected.
    for (from, to) in [
        ("${TURNPIKE_PASSPHRASE_1}", CANARY),
        ("${TURNPIKE_PASSPHRASE_1}", "hunter2canary${X}"),
        ("${TURNPIKE_PASSPHRASE_1}", "{hunter2canary: 1}"),
        ("${TURNPIKE_PASSPHRASE_1}", "[hunter2canary]"),
        ("${TURNPIKE_PASSPHRASE_1}", "!hunter2canary x"),
        ("${TURNPIKE_PASSPHRASE_1}", "&hunter2canary x"),
        ("${TURNPIKE_PASSPHRASE_1}", "*hunter2canary"),
        ("${TURNPIKE_PASSPHRASE_1}", "${hunter2canary"),
        ("https://api.devnet.solana.com", "https://rpc.example.com/hunter2canary#x"),
        ("https://api.devnet.solana.com", "https://user:hunter2canary@rpc.example.com"),
        ("https://api.devnet.solana.com", "hunter2canary"),
        ("upstream: http://127.0.0.1:3000", "upstream: http://user:hunter2canary@127.0.0.1:3000"),
        ("upstream: http://127.0.0.1:3000", "upstream: http://127.0.0.1:3000/?key=hunter2canary"),
        ("https://api.example.com", "https://hunter2canary@api.example.com"),
    ] {
        assert!(!check(&EXAMPLE.replace(from, to)), "{to} was taken");
    }
    let key =
        EXAMPLE.replace("https://api.devnet.solana.com", "https://rpc.example.com/hunter2canary?key=hunter2canary");
    assert!(check(&key));
    assert!(check(&EXAMPLE.replace("https://api.devnet.solana.com", "https://rpc.example.com/${ANY}")));
}

#[test]
fn refusals() {
    let sandbox = "upstream: http://127.0.0.1:3000\nnetwork: sandbox\nroutes: [{path: /a, price: $1}]\n";
    let solana = format!(
        "upstream: http://127.0.0.1:3000\nnetwork: solana\npay_to: {PAY_TO}\nrpc_url: http://a\nroutes: [{{path: /a, price: $1}}]\n"
    );
    let replaced = |routes: &str| format!("upstream: http://127.0.0.1:3000\nnetwork: sandbox\nroutes: {routes}\n");
    let table: Vec<(String, &str)> = vec![
        (String::new(), ":1 holds no configuration. Write one with turnpike init."),
        ("# nothing".into(), ":1 holds no configuration. Write one with turnpike init."),
        ("a: [".into(), "is not YAML: "),
        ("a: 1\n--- \nb: 2".into(), "begins a second document."),
        ("[1]".into(), ":1 is a list. Write a mapping"),
        ("x".into(), ":1 is text. Write a mapping"),
        ("? [a]\n: 1".into(), "has a key that is not text."),
        (format!("{sandbox}memo: *x"), ":4 memo: is an alias"),
        (format!("{sandbox}memo: &x y"), ":4 memo: has an anchor"),
        (format!("{sandbox}memo: !x y"), ":4 memo: has a tag"),
        (format!("{sandbox}network: solana"), ":4 network: is written twice."),
        (format!("{sandbox}memo:"), ":4 memo: has no value. Write one, or leave the key out."),
        (format!("{sandbox}memo: [a]"), ":4 memo: is a list. Write a line of text."),
        (
            format!("{sandbox}memo: ${{UNSET}}"),
            r#":4 memo: "${UNSET}" needs the environment variable UNSET, which is not set or empty. Set UNSET."#,
        ),
        (format!("{sandbox}memo: {}", "x".repeat(257)), "is longer than 256 bytes."),
        // Networks.
        ("routes: [{path: /a, price: $1}]".into(), ":1 network: is missing. Write sandbox to try things out"),
        (
            sandbox.replace("sandbox", "base"),
            "is an EVM network, and this version can only serve Solana networks. Write solana",
        ),
        (sandbox.replace("sandbox", "eip155:8453"), "is an EVM network"),
        (sandbox.replace("sandbox", "cosmos:hub"), "is not a Solana network"),
        (
            format!("{sandbox}rpc_url: http://a"),
            ":4 rpc_url: does nothing on the sandbox, which has a chain of its own.",
        ),
        (format!("{sandbox}signer: {{}}"), ":4 signer: does nothing on the sandbox"),
        (format!("{sandbox}sandbox: {{present_as: solana}}"), "cannot be played by the sandbox."),
        (format!("{sandbox}pay_to: 11111111111111111111111111111111"), "from which nobody can spend."),
        (solana.clone(), ":1 signer: is missing."),
        (solana.replace("rpc_url: http://a\n", ""), ":1 rpc_url: is missing."),
        (format!("{solana}sandbox: {{}}"), "sandbox: does nothing without network: sandbox."),
        (format!("{solana}networks: []"), ":2 network: does nothing beside networks."),
        (
            format!("{solana}asset: {{mint: {USDC_DEVNET}, symbol: USDC, decimals: 9}}"),
            "are not the decimals of this mint",
        ),
        (
            solana.replace("network: solana", "network: solana:unknowncluster"),
            ":1 asset: is missing. The USDC of this network is not known",
        ),
        (
            format!(
                "networks:\n- {{network: solana, pay_to: {PAY_TO}, rpc_url: http://a}}\n- {{network: solana-devnet, pay_to: {PAY_TO}, rpc_url: http://a}}"
            ),
            "mixes a test network with a real one",
        ),
        (
            format!(
                "networks:\n- {{network: solana, pay_to: {PAY_TO}, rpc_url: http://a}}\n- {{network: solana, pay_to: {PAY_TO}, rpc_url: http://b}}"
            ),
            ":3 networks[1]: is the network and asset of line 2 again.",
        ),
        ("networks: [{network: sandbox}]".into(), "networks[0].network: The sandbox stands alone."),
        // Signer.
        (
            format!("{solana}signer: {{shares: [{{file: nowhere, passphrase: abc}}]}}"),
            "signer.shares[0].file: \"nowhere\" cannot be read",
        ),
        (
            format!("{solana}signer: {{shares: [{{file: nowhere, passphrase: abc}}]}}"),
            "a secret may not stand in this file",
        ),
        (format!("{solana}signer: {{shares: [{{file: nowhere}}]}}"), "signer.shares: holds 1 shares."),
        (format!("{solana}signer: {{shares: [{{file: nowhere}}]}}"), "signer.shares[0]: has no passphrase."),
        // Routes.
        (replaced("[]"), ":3 routes: holds 0 routes."),
        (replaced("[{path: /a}]"), "routes[0]: has neither a price nor free: true."),
        (replaced("[{price: $1}]"), "routes[0].path: is missing."),
        (replaced("[{path: a, price: $1}]"), "\"a\" does not begin with a slash."),
        (replaced("[{path: /a, free: false}]"), "routes[0].free: does nothing where it is false."),
        (replaced("[{path: /a, free: yes}]"), "\"yes\" is neither true nor false."),
        (replaced("[{path: /a, price: \"$0\"}]"), "\"$0\" is nothing."),
        (
            replaced("[{path: /a, price: \"$0.0000001\"}]"),
            "is finer than the smallest unit of USDC. Write at most 6 digits after the point.",
        ),
        (
            replaced("[{path: /a, price: 1 EURC}]"),
            "is in a currency that no network of this file takes. Taken here: USDC.",
        ),
        (replaced("[{path: /a, price: 0.001}]"), "names no currency. Write \"$0.001\" or \"1000 USDC-atomic\"."),
        (
            replaced("[{path: /a, price: $11}]"),
            "is above settlement.channel_exposure_max ($10), so it could never be paid.",
        ),
        (replaced("[{path: /a, price: $1, min_deposit: $0.5}]"), "is below the price."),
        (
            replaced("[{path: /a, price: $1, scheme: upto, min_deposit: $2}]"),
            "min_deposit: does nothing with scheme upto",
        ),
        (
            replaced("[{path: /a, price: $1, scheme: exact}]"),
            "\"exact\" is not known here. Write batch-settlement or upto.",
        ),
        (
            replaced("[{path: /a, price: $1, scheme: batch-settlement, metering: {header: X}}]"),
            "so metering would do nothing.",
        ),
        (replaced("[{path: /a, price: $1, metering: {header: \"a b\"}}]"), "is not a header name."),
        (replaced("[{path: /a, price: $1, upstream: b}]"), "\"b\" names no upstream."),
        (
            replaced("[{path: /a, price: $1, timeout: 2m}]"),
            "is longer than max_timeout (1m), after which the client no longer waits.",
        ),
        (replaced("[{path: /a, price: $1, host: \"*.a.b\"}]"), "is not a host name or address without port."),
        (replaced("[{path: /a, price: $1, methods: [GET, GET]}]"), "is in the list already."),
        (replaced("[{path: /a, price: $1, mime_type: json}]"), "is not a media type."),
        (replaced("[{path: /a, free: true, description: x}]"), "description: does nothing on a free route"),
        (
            replaced("\n- {path: '/a/{x}', price: $1}\n- {path: '/A/{y}/', free: true}"),
            ":5 routes[1]: matches the same requests as the route /a/{x} in line 4.",
        ),
        (
            format!("{}default: free", replaced("[{path: /a, price: $1, host: a.b}]")),
            "a client chooses the host that it sends",
        ),
        // Upstreams.
        (sandbox.replace("upstream: http://127.0.0.1:3000\n", ""), ":1 upstream: is missing."),
        (sandbox.replace(":3000", ":8402"), "is where Turnpike itself listens (0.0.0.0:8402)."),
        (sandbox.replace(":3000", ":3000/base"), "has a path. Write http://127.0.0.1:3000: requests keep"),
        (sandbox.replace("http:", "ftp:"), "is neither an http nor an https URL."),
        (format!("{sandbox}upstreams: {{b: http://b}}"), ":4 upstreams.b: does nothing: no route names it."),
        (
            format!("upstreams: {{b: http://b}}\n{}", replaced("[{path: /a, price: $1, upstream: b}]")),
            ":2 upstream: does nothing where every route names its own upstream.",
        ),
        (
            sandbox.replace("http://127.0.0.1:3000", "[http://a, http://a]"),
            ":1 upstream[1]: \"http://a\" is in the list already.",
        ),
        // The rest.
        (format!("{sandbox}listen: 127.0.0.1:9402"), "admin.listen: (127.0.0.1:9402) has the port of listen"),
        (format!("{sandbox}withdraw_delay: 1500ms"), "is shorter than 15m."),
        (format!("{sandbox}withdraw_delay: 900500ms"), "is not a whole number of seconds."),
        (format!("{sandbox}max_timeout: 0s"), "is shorter than 1s."),
        (format!("{sandbox}queue: {{waiters: 0, wait: 1s}}"), "queue.wait: does nothing where no request may wait"),
        (format!("{sandbox}queue: {{waiters: -1}}"), "\"-1\" is not a whole number. Write 0 to 1024."),
        (format!("{sandbox}queue: {{wait: 1s, gap_wait: 2s}}"), "queue.gap_wait: \"2s\" is longer than 1s."),
        (format!("{sandbox}limits: {{header_bytes: 1}}"), "is out of range. Write 16384 to 1048576 bytes."),
        (format!("{sandbox}settlement: {{batch_channels: 5}}"), "is out of range. Write 1 to 4."),
        (
            format!("{sandbox}settlement: {{max_age: 20h, close_margin: 5h}}"),
            "together are longer than withdraw_delay (1d).",
        ),
        (format!("{sandbox}settlement: {{interval: 10m, max_age: 5m}}"), "interval (10m) is longer than max_age (5m)"),
        (format!("{sandbox}settlement: {{exposure_max: $5}}"), "channel_exposure_max is above exposure_max ($5)."),
        (format!("{sandbox}settlement: {{min_amount: $20}}"), "is above channel_exposure_max ($10)"),
        (format!("{sandbox}cors: {{origins: [\"*\", https://a.b]}}"), "holds \"*\" beside other origins"),
        (format!("{sandbox}cors: {{origins: https://A.b/}}"), "is not an origin. Write https://a.b."),
        (format!("{sandbox}log: {{level: loud}}"), "Write error, warn, info, debug or trace."),
        (format!("{sandbox}facilitator: remote"), "\"remote\" is not known here. Write local."),
        (format!("{sandbox}tls: {{cert_file: nowhere, key_file: .}}"), "tls.cert_file: \"nowhere\" cannot be read"),
        (format!("{sandbox}public_url: https://a.b/?c"), "has a query."),
    ];
    for (text, want) in table {
        let told = problems(&text);
        assert!(told.iter().any(|line| line.contains(want)), "wanted: {want}\n{}\n{text}", told.join("\n"));
    }
}

#[test]
fn several_networks_and_currencies() {
    let directory = example_directory();
    let signer = "signer: {shares: [{file: shares/share-1.json, passphrase: '${TURNPIKE_PASSPHRASE_1}'}, {file: shares/share-2.json, passphrase_file: shares/share-2.passphrase}]}";
    let pyusd = "2b1kV6DkPAnxd5ixfnxCpjxmKwqjjaYmCZfHsFu24GXo";
    let entry = format!("network: solana, pay_to: {PAY_TO}, rpc_url: [http://a, http://b]");
    let text = format!(
        "upstream: http://127.0.0.1:3000\n{signer}\nnetworks:\n- {{{entry}}}\n- {{{entry}, asset: {{mint: {pyusd}, symbol: PYUSD, decimals: 6, token_program: token-2022}}}}\nroutes:\n- {{path: /a, price: $1}}\n- {{path: /b, price: 2 PYUSD}}"
    );
    let config = parse_in(directory.path(), &text).unwrap();
    assert_eq!(config.networks.len(), 2);
    let counted = |pricing: &RoutePricing| match pricing {
        RoutePricing::Fixed(prices) => {
            prices.iter().map(|price| (price.mint.to_string(), price.amount.get())).collect()
        }
        _ => Vec::new(),
    };
    let usdc = config.networks[0].mint.to_string();
    assert_eq!(counted(&config.routes[0].pricing), [(usdc, 1_000_000), (pyusd.to_owned(), 1_000_000)]);
    assert_eq!(counted(&config.routes[1].pricing), [(pyusd.to_owned(), 2_000_000)]);
    let unlike = text.replace("symbol: PYUSD", "symbol: EURX").replace("2 PYUSD", "2 EURX");
    let problems = parse_in(directory.path(), &unlike).unwrap_err();
    assert!(problems.to_string().contains("prod.yaml:3 networks: hold assets that do not count alike"), "{problems}");
}

#[test]
fn a_route_becomes_the_gates_route() {
    let config = parse(MINIMAL).unwrap();
    let network = &config.networks[0];
    let seller = |mint: Key| {
        Arc::new(Seller {
            network: network.network.clone(),
            asset: Arc::new(Asset { address: mint.to_string().into(), symbol: "USDC".into(), decimals: 6 }),
            mint,
            token_program: TOKEN_PROGRAM,
            pay_to: Key([1; 32]),
            fee_payer: Key([2; 32]),
            receiver_authorizer: Key([3; 32]),
            withdraw_delay: config.withdraw_delay_seconds(),
            treasury_owner: Key([4; 32]),
        })
    };
    let sellers = [seller(Key([9; 32])), seller(USDC_DEVNET)];
    let routes: Vec<_> = config.routes.iter().map(|route| route.resolve(&sellers)).collect();
    let table = RouteTable::build(routes, config.default).unwrap();
    let Match::Matched(route) = table.find(None, &Method::GET, "/v1/quote/btc") else { panic!("listed") };
    let Pricing::Fixed(offers) = &route.pricing else { panic!("priced") };
    assert_eq!((offers.len(), offers[0].amount, offers[0].max_timeout_seconds), (1, Amount::new(1000), 60));
    assert_eq!(offers[0].seller.mint, USDC_DEVNET);
    // Without its seller a priced route can be paid by nobody; it does not become free.
    let alone = config.routes[0].resolve(&sellers[..1]);
    assert!(matches!(&alone.pricing, Pricing::Fixed(offers) if offers.is_empty()));
}

#[test]
fn limits_hold() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("prod.yaml");
    let load = |text: &[u8]| {
        fs::write(&path, text).unwrap();
        Config::load(&path, &env).unwrap_err()
    };
    let size = usize::try_from(FILE_BYTES_MAX).unwrap();
    let told = load(&vec![b'#'; size + 1]);
    assert!(told.unreadable && told.to_string().contains("is larger than 1048576 bytes"), "{told}");
    assert!(!load(&vec![b'#'; size]).unreadable);
    assert!(load(b"a: \xff").to_string().contains("is not UTF-8 text (at byte 3)"));
    assert!(Config::load(&PathBuf::from("/nowhere/at/all"), &env).unwrap_err().unreadable);
    for (open, close) in [("[", "]"), ("{a: ", "}"), ("\n- - - - - - - - - - - - - - - - - - - - - - - -", "")] {
        let deep = format!("upstream: {}x{}", open.repeat(DEPTH_MAX + 1), close.repeat(DEPTH_MAX + 1));
        assert!(parse(&deep).is_err(), "{deep}");
    }
    let deep = "[".repeat(100_000);
    assert!(parse(&deep).is_err());
    let head = "upstream: http://127.0.0.1:3000\nnetwork: sandbox\nroutes:\n";
    let routes: String = (0..ROUTES_MAX).map(|i| format!("- {{path: /r/{i}, price: $1}}\n")).collect();
    assert_eq!(parse(&format!("{head}{routes}")).unwrap().routes.len(), ROUTES_MAX);
    let told = problems(&format!("{head}{routes}- {{path: /x, price: $1}}"));
    assert!(told[0].contains("holds 10001 routes"), "{told:?}");
    let wrong: String = (0..2000).map(|i| format!("- {{path: /r/{i}, price: 1}}\n")).collect();
    let told = parse(&format!("{head}{wrong}")).unwrap_err();
    assert_eq!((told.problems.len(), told.more), (500, 1500));
}

/// The example with pieces of text put into it.
fn mangled() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("\n".to_owned()),
        "[-:?{}\\[\\],&*!|>'\"%@`#$ \t\n0-9a-z]{1,6}",
        any::<char>().prop_map(String::from),
        prop::sample::select(vec!["${", "}", "*a", "&a", "!t", "? ", "- ", ": ", "---", "...", "|", ">", "\u{feff}"])
            .prop_map(str::to_owned),
    ];
    prop::collection::vec((any::<prop::sample::Index>(), 0_usize..20, piece), 1..6).prop_map(|edits| {
        let mut text: Vec<char> = EXAMPLE.chars().collect();
        for (at, cut, piece) in edits {
            let at = at.index(text.len());
            let end = (at + cut).min(text.len());
            text.splice(at..end, piece.chars());
        }
        text.into_iter().collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn no_yaml_like_text_panics(text in "[-:?{}\\[\\],&*!|>'\"%@`#$ \n0-9a-z]{0,120}") {
        let _ = parse(&text);
    }

    #[test]
    fn no_mangled_file_panics_and_every_refusal_says_what_to_do(text in mangled()) {
        if let Err(problems) = parse(&text) {
            prop_assert!(!problems.problems.is_empty());
            for problem in &problems.problems {
                prop_assert!(problem.line.is_some() && !problem.message.is_empty() && !problem.remedy.is_empty(), "{problem:?}");
                prop_assert!(!problem.message.contains('\n') && !problem.remedy.contains('\n') && !problem.key.contains('\n'));
            }
        }
    }
}

#[test]
fn the_order_of_keys_does_not_matter() {
    let directory = example_directory();
    let mut sections: Vec<String> = Vec::new();
    for line in EXAMPLE.lines().filter(|line| !line.trim_start().starts_with('#') && !line.is_empty()) {
        match sections.last_mut() {
            Some(section) if line.starts_with(' ') => section.push_str(&format!("{line}\n")),
            _ => sections.push(format!("{line}\n")),
        }
    }
    // All but the routes' line numbers.
    let told = |text: &str| {
        let config = format!("{:?}", parse_in(directory.path(), text).unwrap());
        let parts = config.split("line: ").map(|part| part.trim_start_matches(|c: char| c.is_ascii_digit()).to_owned());
        parts.collect::<Vec<_>>()
    };
    let want = told(EXAMPLE);
    for _ in 0..sections.len() {
        sections.rotate_left(1);
        assert_eq!(told(&sections.concat()), want);
    }
}

#[test]
fn variables_stand_anywhere() {
    let vars: HashMap<&str, &str> =
        HashMap::from([("UP", "127.0.0.1:3000"), ("PRICE", "$0.25"), ("LISTEN", "0.0.0.0:1"), ("W", "7")]);
    let env = |name: &str| vars.get(name).map(|value| (*value).to_owned());
    let text = "upstream: http://${UP}\nnetwork: sandbox\nlisten: ${LISTEN}\nqueue: {waiters: \"${W}\"}\nmemo: $${UP} for $5\nroutes: [{path: /a, price: \"${PRICE}\"}]";
    let (config, _) = Config::parse(Path::new("x.yaml"), text, &env).unwrap();
    assert_eq!(config.upstream, ["http://127.0.0.1:3000"]);
    assert_eq!((config.listen.port(), config.queue.waiters), (1, 7));
    assert_eq!(amount(&config.routes[0].pricing), Some(Amount::new(250_000)));
    assert_eq!(config.memo.as_deref(), Some("${UP} for $5"));
}
