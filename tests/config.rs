//! Configuration: what a file may say, and what is answered to everything else.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, Method};
use turnpike::amount::{Amount, Asset};
use turnpike::config::{
    Config, CorsConfig, FacilitatorConfig, Family, NetworkConfig, Problem, Problems, RoutePricing, Scheme, SvmConfig,
    Unlisted,
};
use turnpike::gate::charge::{Count, Meter, Missing, Report, Term, UnitPrice};
use turnpike::gate::route::{Match, Payee, Pricing, RouteTable};
use turnpike::ledger::channel::Seller;
use turnpike::scheme::svm::{TOKEN_PROGRAM, USDC_DEVNET};
use turnpike::x402::Key;

#[path = "config/cosigner.rs"]
mod cosigner;
#[path = "config/evm.rs"]
mod evm;
#[path = "config/policy.rs"]
mod policy;
#[path = "config/refused.rs"]
mod refused;

const EXAMPLE: &str = include_str!("../config/example.yaml");
const MINIMAL: &str = include_str!("../config/minimal.yaml");
/// A private key that anybody may know.
const GAS_KEY: &str = "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80\n";
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

/// What is particular to a Solana network.
fn svm(network: &NetworkConfig) -> &SvmConfig {
    match &network.family {
        Family::Svm(svm) => svm,
        Family::Evm(_) => panic!("{} is an EVM network", network.network),
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
        ("shares/evm-share-1.json", "{}"),
        ("shares/evm-share-2.json", "{}"),
        ("shares/evm-share-1.passphrase", "canary-of-the-file\n"),
        ("shares/evm-share-2.passphrase", "canary-of-the-file\n"),
        ("secrets/gas.key", GAS_KEY),
        ("secrets/screening.token", "canary-of-the-file\n"),
        ("lists/sanctioned.txt", "# nobody\n"),
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
pay_to: 3C44CdDdB6a900fa2b585dd299e03d12FA4293BC
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
        r#":5 pay_to: "3C44CdDdB6a900fa2b585dd299e03d12FA4293BC" is neither a Solana nor an EVM address. Write the address that the money goes to, as your wallet shows it."#,
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
    assert_eq!((svm(network).mint, svm(network).pay_to), (USDC_DEVNET, None));
    let amounts: Vec<_> = config.routes.iter().map(|route| amount(&route.pricing)).collect();
    assert_eq!(amounts, [Some(Amount::new(1000)), Some(Amount::new(20_000)), None]);
    assert_eq!(config.routes[1].methods, [Method::POST]);
}

#[test]
fn an_upstream_may_speak_http2_in_the_clear() {
    let config =
        parse(&MINIMAL.replace("http://127.0.0.1:3000", "[h2c://127.0.0.1:3000, 'h2c://[::1]:3001']")).unwrap();
    assert_eq!(config.upstream, ["h2c://127.0.0.1:3000", "h2c://[::1]:3001"]);
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
    let solana = svm(&config.networks[0]);
    assert_eq!(solana.pay_to, Some(PAY_TO.parse().unwrap()));
    assert_eq!(solana.rpc_urls[0].uri(), "https://api.devnet.solana.com");
    let Family::Evm(base) = &config.networks[1].family else { panic!("an EVM network") };
    assert_eq!(
        (base.chain_id, base.pay_to.to_string().as_str()),
        (84_532, "0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC")
    );
    let FacilitatorConfig::Local(local) = &base.facilitator else { panic!("local") };
    assert_eq!(local.gas_key.expose(), GAS_KEY.trim());
    assert_eq!((local.confirmations, local.max_fee_wei), (1, Some(5_000_000_000)));
    assert_eq!(local.gas_token_price, Some(Amount::new(3_000_000_000)));
    assert_eq!((config.settlement.claims_per_batch, config.settlement.min_worth), (100, Some(10)));
    let signer = config.signer.as_ref().unwrap();
    assert_eq!(signer.shares[0].passphrase.expose(), "canary-of-the-environment");
    assert_eq!(signer.shares[1].passphrase.expose(), "canary-of-the-file");
    assert_eq!(signer.shares[1].file, directory.path().join("shares/share-2.json"));
    assert_eq!(signer.evm_shares[0].file, directory.path().join("shares/evm-share-1.json"));
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
    assert_eq!(prices.iter().map(|price| price.min_deposit).collect::<Vec<_>>(), [Some(Amount::new(500_000)); 2]);
    let pack = config.routes[0].pack.as_ref().unwrap();
    assert_eq!((pack.calls, pack.lifetime), (50, Duration::from_secs(30 * 24 * 3600)));
    assert_eq!(pack.prices.iter().map(|price| price.amount).collect::<Vec<_>>(), [Amount::new(40_000); 2]);
    assert!(config.routes[1..].iter().all(|route| route.pack.is_none()));
    let RoutePricing::Metered { prices, .. } = &config.routes[2].pricing else { panic!("metered") };
    let schemes: Vec<_> = prices.iter().map(|price| (price.network.is_solana(), price.scheme)).collect();
    assert_eq!(schemes, [(true, Scheme::Upto), (false, Scheme::Upto), (false, Scheme::BatchSettlement)]);
    let RoutePricing::Metered { meter: Some(meter), .. } = &config.routes[2].pricing else { panic!("metered") };
    assert_eq!(*meter, Meter::charge(HeaderName::from_static("x-usage")));
    let RoutePricing::Metered { meter: Some(meter), .. } = &config.routes[3].pricing else { panic!("metered") };
    let term = |pointer: &str, price| Term {
        count: Count::Json(pointer.into()),
        unit_price: UnitPrice::parse(price, 6).unwrap(),
    };
    let terms = vec![term("/usage/prompt_tokens", "0.15"), term("/usage/completion_tokens", "0.60")];
    let expected = Meter { minimum: Amount::new(100), ..Meter::of(Report::Counts(terms)) };
    assert_eq!(*meter, Meter { missing: Some(Missing::ChargeMaximum), ..expected });
}

/// The meter of a route's `metering`, on the sandbox.
fn meter(metering: &str) -> Meter {
    let route = format!("routes: [{{path: /a, price: $1, metering: {metering}}}]");
    let config = parse(&format!("upstream: http://127.0.0.1:3000\nnetwork: sandbox\n{route}")).unwrap();
    let RoutePricing::Metered { meter: Some(meter), .. } = config.routes[0].pricing.clone() else { panic!("metered") };
    meter
}

#[test]
fn a_meter_is_read_in_every_way_of_writing_it() {
    let usage = HeaderName::from_static("x-usage");
    let counts = |count, unit_price| Report::Counts(vec![Term { count, unit_price }]);
    let price = |text, scale| UnitPrice::parse(text, scale).unwrap();
    assert_eq!(meter("{header: X-Usage}"), Meter::charge(usage.clone()));
    assert_eq!(
        meter("{header: X-Usage, unit_price: 0.0000025 USDC, minimum: $1, missing: refuse}"),
        Meter {
            minimum: Amount::new(1_000_000),
            missing: Some(Missing::Refuse),
            ..Meter::of(counts(Count::Header(usage.clone()), price("0.0000025", 0)))
        }
    );
    assert_eq!(
        meter("{json: /usage/total_tokens, unit_price: $2.5, per: 1000000, body_bytes_max: 64KiB, body_wait: 60s}"),
        Meter {
            body_bytes_max: 64 * 1024,
            body_wait: Duration::from_secs(60),
            ..Meter::of(counts(Count::Json("/usage/total_tokens".into()), price("0.0000025", 0)))
        }
    );
    // Two and a half millionths of a millionth of a dollar.
    assert_eq!(
        meter("{response_bytes: true, unit_price: 2.5 USDC-atomic, per: 1000000, missing: charge_nothing}").report,
        counts(Count::ResponseBytes, price("2.5", 12))
    );
    let Report::Counts(terms) =
        meter("{sum: [{header: X-Usage, unit_price: $0.1}, {response_bytes: true, unit_price: $1, per: 1000}]}").report
    else {
        panic!("counts")
    };
    assert_eq!(terms.len(), 2);
    assert_eq!((&terms[0].count, terms[1].unit_price), (&Count::Header(usage), price("0.001", 0)));
}

/// What the example says is a default, is one: without those keys the file means the same.
#[test]
fn the_examples_defaults_are_the_defaults() {
    let directory = example_directory();
    let full = parse_in(directory.path(), EXAMPLE).unwrap();
    let defaults = [
        "asset",
        "facilitator",
        "confirmations",
        "deposit_max",
        "claim_max",
        "queue",
        "replay",
        "limits",
        "timeouts",
        "log",
        "default",
        "listen",
        "admin",
        "audit",
        "withdraw_delay",
        "max_timeout",
        "interval",
        "min_amount",
        "max_age",
        "exposure_max",
        "channel_exposure_max",
        "close_margin",
        "batch_channels",
        "batches_in_flight",
        "claims_per_batch",
    ];
    // A key's value goes with it: what is indented more deeply. Routes are left as they are.
    let mut dropping = None;
    let mut section = "";
    let mut text = String::new();
    for line in EXAMPLE.lines().filter(|line| !line.trim_start().starts_with('#') && !line.is_empty()) {
        let indent = line.len() - line.trim_start().len();
        if dropping.is_some_and(|from| indent > from) {
            continue;
        }
        let key = line.trim_start().split(':').next().unwrap();
        if indent == 0 {
            section = key;
        }
        let default = section != "routes" && (defaults.contains(&key) || (section == "networks" && key == "schemes"));
        dropping = default.then_some(indent);
        if !default {
            text.push_str(line);
            text.push('\n');
        }
    }
    assert!(!text.contains("confirmations") && !text.contains("gap_wait") && text.contains("min_worth"), "{text}");
    let short = parse_in(directory.path(), &text).unwrap();
    assert_eq!(format!("{:?}", short.networks), format!("{:?}", full.networks));
    assert_eq!(short.settlement, full.settlement);
    assert_eq!(
        (short.queue, short.replay, short.limits, short.timeouts, short.log),
        (full.queue, full.replay, full.limits, full.timeouts, full.log)
    );
    assert_eq!((short.default, short.listen, short.admin), (full.default, full.listen, full.admin));
    assert_eq!(short.audit, full.audit);
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
    let evm = "upstream: http://a\nnetwork: base\n";
    let texts = [
        format!("{MINIMAL}\n{unknown}"),
        format!("{MINIMAL}\nsandbox: {{{unknown}}}"),
        format!("{MINIMAL}\nadmin: {{listen: 127.0.0.1:1, {unknown}}}\ntls: {{{unknown}}}\nstore: {{{unknown}}}"),
        format!(
            "{MINIMAL}\nsettlement: {{{unknown}}}\nqueue: {{{unknown}}}\nreplay: {{{unknown}}}\nlimits: {{{unknown}}}"
        ),
        format!("{MINIMAL}\ntimeouts: {{{unknown}}}\ncors: {{{unknown}}}\nlog: {{{unknown}}}"),
        format!(
            "{solana}asset: {{{unknown}}}\nsigner: {{shares: [{{{unknown}}}], {unknown}}}\nroutes: [{{{unknown}}}]"
        ),
        format!(
            "{evm}asset: {{{unknown}}}\nfacilitator: {{{unknown}}}\nsigner: {{{unknown}}}\nsettlement: {{{unknown}}}"
        ),
        format!("{evm}audit: {{{unknown}}}\n{unknown}"),
        format!("{MINIMAL}\npolicy: {{{unknown}}}"),
        format!("{solana}routes: [{{path: /, price: $1, pack: {{{unknown}}}}}]"),
        format!("{MINIMAL}\npolicy: {{screening: {{service: {{{unknown}}}, {unknown}}}, time_window: {{{unknown}}}}}"),
        format!("{MINIMAL}\npolicy: {{block_patterns: {{{unknown}}}}}"),
        format!("{solana}signer: {{cosigners: [{{{unknown}}}], tls: {{{unknown}}}, {unknown}}}"),
        format!(
            "networks: [{{network: solana, {unknown}}}, {{network: base, {unknown}}}]\nroutes: [{{path: /, price: $1, metering: {{{unknown}}}}}]"
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
fn kept_answers_are_bounded_or_off() {
    let replay = |text: &str| parse(&format!("{MINIMAL}\nreplay: {text}")).map(|config| config.replay);
    assert_eq!(replay("off").unwrap(), None);
    let read = replay("{ keep: 1h, body_bytes: 1MiB, total_bytes: 2MiB }").unwrap().unwrap();
    assert_eq!((read.keep, read.body_bytes, read.total_bytes), (Duration::from_secs(3600), 1 << 20, 2 << 20));
    for (text, want) in [
        ("on", r#"replay: "on" is not known here. Write off, or a mapping of keys."#),
        ("[off]", "replay: is a list. Write off, or a mapping of keys."),
        ("{ keep: 2d }", r#"replay.keep: "2d" is longer than 1d. Write 1s to 1d."#),
        ("{ body_bytes: 0 }", r#"replay.body_bytes: "0" is out of range. Write 1 to 16777216 bytes."#),
        (
            "{ body_bytes: 1MiB, total_bytes: 1MiB }",
            r#"replay.total_bytes: "1MiB" holds less than two bodies of body_bytes (1048576). Write more, or lower body_bytes."#,
        ),
    ] {
        let told = problems(&format!("{MINIMAL}\nreplay: {text}"));
        assert!(told.iter().any(|line| line.ends_with(want)), "{told:?}");
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
            prices.iter().map(|price| (price.asset.address.to_string(), price.amount.get())).collect()
        }
        _ => Vec::new(),
    };
    let usdc = config.networks[0].asset.address.to_string();
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
    let routes: Vec<_> = config.routes.iter().map(|route| route.resolve(&sellers, &[])).collect();
    let table = RouteTable::build(routes, config.default).unwrap();
    let Match::Matched(route) = table.find(None, &Method::GET, "/v1/quote/btc") else { panic!("listed") };
    let Pricing::Fixed(offers) = &route.pricing else { panic!("priced") };
    assert_eq!((offers.len(), offers[0].amount, offers[0].max_timeout_seconds), (1, Amount::new(1000), 60));
    assert!(matches!(&offers[0].payee, Payee::Svm(seller) if seller.mint == USDC_DEVNET));
    // Without its seller a priced route can be paid by nobody; it does not become free.
    let alone = config.routes[0].resolve(&sellers[..1], &[]);
    assert!(matches!(&alone.pricing, Pricing::Fixed(offers) if offers.is_empty()));
}

/// Beside the store, under its name; on the sandbox as temporary as that; elsewhere, or off, where it is written so.
#[test]
fn where_the_audit_record_is() {
    let audit = |text: &str| parse(&format!("{MINIMAL}\n{text}")).unwrap().audit;
    let default = audit("").unwrap();
    assert_eq!((default.dir, default.keep, default.checkpoint_interval), (None, None, Duration::from_secs(600)));
    assert_eq!(audit("store: {path: a/money.db}").unwrap().dir, Some("a/money.audit".into()));
    assert_eq!(audit("audit: off"), None);
    let written = audit("audit: {dir: /var/audit, keep: 400d, segment_bytes: 1MiB, checkpoint_interval: 10s}").unwrap();
    assert_eq!(written.dir, Some("/var/audit".into()));
    assert_eq!((written.keep, written.segment_bytes), (Some(Duration::from_secs(400 * 86_400)), 1 << 20));
    for (text, want) in [
        ("audit: on", ":8 audit: \"on\" is not known here. Write off, or a mapping of keys."),
        ("audit: {keep: 1h}", ":8 audit.keep: \"1h\" is out of range. Write forever, or a duration of 1d to 36500d."),
        (
            "audit: {keep: ever}",
            ":8 audit.keep: \"ever\" is not a duration. Write forever, or a duration of 1d to 36500d.",
        ),
        (
            "audit: {dir: Cargo.toml}",
            ":8 audit.dir: \"Cargo.toml\" is a file. Write the path of a directory; it is made where it is not there.",
        ),
        (
            "audit: {segment_bytes: 1KiB}",
            ":8 audit.segment_bytes: \"1KiB\" is out of range. Write 1048576 to 1073741824 bytes.",
        ),
    ] {
        assert_eq!(problems(&format!("{MINIMAL}\n{text}")), [want], "{text}");
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
    // All but the text's hash and the routes' line numbers.
    let told = |text: &str| {
        let config = Config { sha256: [0; 32], ..parse_in(directory.path(), text).unwrap() };
        let config = format!("{config:?}");
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
