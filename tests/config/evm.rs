//! What a file may say of EVM networks, and what is answered to everything else.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use turnpike::amount::Amount;
use turnpike::config::{
    Config, EvmConfig, FacilitatorConfig, Family, NetworkConfig, Problems, RoutePricing, Scheme, SettlementConfig,
    Warning,
};
use turnpike::gate::route::{EvmScheme, Payee, Pricing, Route};
use turnpike::scheme::evm::eip712::Domain;
use turnpike::scheme::evm::{EvmSeller, TransferMethod};
use turnpike::x402::evm::Address;

use super::{GAS_KEY, PAY_TO as SOLANA_PAY_TO, env, example_directory};

const PAY_TO: &str = "0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC";
const USDC_ON_BASE: &str = "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913";
const UNKNOWN_TOKEN: &str = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8";
/// What every file here ends with.
const TAIL: &str = "signer: {evm_shares: [{file: shares/evm-share-1.json, passphrase_file: shares/evm-share-1.passphrase}, {file: shares/evm-share-2.json, passphrase_file: shares/evm-share-2.passphrase}]}\nupstream: http://127.0.0.1:3000\n";
const ROUTES: &str = "routes: [{path: /a, price: $1}]\n";

/// A file for Base, sent from here: `network` in line 1, `pay_to` in 2, `rpc_url` in 3, `gas_key_file` in 4, and what
/// follows from 5 on.
fn local(more: &str) -> String {
    format!(
        "network: base\npay_to: \"{PAY_TO}\"\nrpc_url: http://a\ngas_key_file: secrets/gas.key\n{more}\n{ROUTES}{TAIL}"
    )
}

/// The same with a facilitator elsewhere: what follows begins in line 4.
fn elsewhere(more: &str) -> String {
    format!("network: base\npay_to: \"{PAY_TO}\"\nfacilitator: https://x402.example.com\n{more}\n{ROUTES}{TAIL}")
}

/// The same with these routes, in line 5.
fn with_routes(routes: &str) -> String {
    elsewhere("").replace("routes: [{path: /a, price: $1}]", &format!("routes: [{routes}]"))
}

fn read_with(text: &str, directory: &Path) -> Result<(Config, Vec<Warning>), Problems> {
    let key = GAS_KEY.trim();
    let all = |name: &str| match name {
        "GAS_KEY" => Some(key.to_owned()),
        "SHORT_KEY" => Some("hunter2canary".to_owned()),
        "NO_KEY" => Some("0".repeat(64)),
        _ => env(name),
    };
    Config::parse(&directory.join("prod.yaml"), text, &all)
}

fn parse(text: &str) -> Config {
    read_with(text, example_directory().path()).unwrap_or_else(|problems| panic!("{problems}\n{text}")).0
}

fn problems(text: &str) -> Vec<String> {
    match read_with(text, example_directory().path()) {
        Ok(_) => Vec::new(),
        Err(problems) => problems.problems.iter().map(ToString::to_string).collect(),
    }
}

fn evm(network: &NetworkConfig) -> &EvmConfig {
    match &network.family {
        Family::Evm(evm) => evm,
        Family::Svm(_) => panic!("{} is a Solana network", network.network),
    }
}

#[test]
fn the_smallest_file_takes_usdc_from_a_balance() {
    let config = parse(&elsewhere(""));
    let [network] = config.networks.as_slice() else { panic!("one network") };
    let base = evm(network);
    assert_eq!((network.network.as_str(), base.chain_id), ("eip155:8453", 8453));
    assert_eq!((base.token.to_string().as_str(), &*network.asset.address), (USDC_ON_BASE, USDC_ON_BASE));
    assert_eq!((&*base.token_name, &*base.token_version, network.asset.decimals), ("USD Coin", "2", 6));
    assert_eq!((base.transfer_method, base.pay_to.to_string().as_str()), (TransferMethod::Eip3009, PAY_TO));
    assert!(matches!(&base.facilitator, FacilitatorConfig::Remote(remotes) if remotes.len() == 1));
    assert!(base.rpc_urls.is_empty() && base.schemes == [Scheme::BatchSettlement]);
    let signer = config.signer.as_ref().unwrap();
    assert_eq!((signer.shares.len(), signer.evm_shares.len()), (0, 2));
    let SettlementConfig { claims_per_batch, min_worth, .. } = config.settlement;
    assert_eq!((claims_per_batch, min_worth), (100, None));
}

#[test]
fn this_process_can_be_the_facilitator() {
    let config = parse(&local("facilitator: local\nmax_fee_gwei: 0.05"));
    let base = evm(&config.networks[0]);
    let FacilitatorConfig::Local(local) = &base.facilitator else { panic!("local") };
    assert_eq!((local.confirmations, local.max_fee_wei, local.gas_token_price), (1, Some(50_000_000), None));
    assert_eq!((local.gas_key.expose(), base.rpc_urls.len()), (GAS_KEY.trim(), 1));
    assert!(!format!("{config:?}").contains(GAS_KEY.trim()), "a key is never shown");
    let by_variable = super::evm::local("").replace("gas_key_file: secrets/gas.key", "gas_key: ${GAS_KEY}");
    assert_eq!(evm(&parse(&by_variable).networks[0]).rpc_urls.len(), 1);
    let confirmations = |network: &str, line: &str| {
        let config = parse(&super::evm::local(line).replace("network: base", &format!("network: {network}")));
        match &evm(&config.networks[0]).facilitator {
            FacilitatorConfig::Local(local) => local.confirmations,
            FacilitatorConfig::Remote(_) => panic!("local"),
        }
    };
    assert_eq!(
        (confirmations("ethereum", ""), confirmations("polygon", ""), confirmations("eip155:137", "")),
        (2, 5, 5)
    );
    assert_eq!((confirmations("base", ""), confirmations("ethereum", "confirmations: 12")), (1, 12));
    let worth = parse(&super::evm::local("gas_token_price: $3000\nsettlement: {min_worth: 10, claims_per_batch: 3}"));
    assert_eq!((worth.settlement.min_worth, worth.settlement.claims_per_batch), (Some(10), 3));
    let FacilitatorConfig::Local(local) = &evm(&worth.networks[0]).facilitator else { panic!("local") };
    assert_eq!(local.gas_token_price, Some(Amount::new(3_000_000_000)));
}

#[test]
fn a_token_is_known_or_written_out() {
    let limits = "signer: {deposit_max: 10 EURC, claim_max: 100 EURC, ";
    let settlement = "settlement: {exposure_max: 10 EURC, channel_exposure_max: 5 EURC}\n";
    let written = |method: &str| {
        let asset =
            format!("{{token: \"{UNKNOWN_TOKEN}\", symbol: EURC, decimals: 8, name: Euro, version: \"3\"{method}}}");
        let text = elsewhere(&format!("asset: {asset}\n{settlement}")).replace("$1", "1 EURC");
        let config = parse(&text.replace("signer: {", limits));
        let evm = evm(&config.networks[0]);
        assert_eq!((&*evm.token_name, &*evm.token_version), ("Euro", "3"));
        assert_eq!(config.settlement.exposure_max, Amount::new(1_000_000_000));
        evm.transfer_method
    };
    assert_eq!(written(""), TransferMethod::Eip3009);
    assert_eq!(written(", transfer_method: permit2"), TransferMethod::Permit2);
    let known = parse(&elsewhere(&format!("asset: {{token: \"{USDC_ON_BASE}\", transfer_method: permit2}}")));
    let base = evm(&known.networks[0]);
    assert_eq!((&*known.networks[0].asset.symbol, base.transfer_method), ("USDC", TransferMethod::Permit2));
    // A dollar of eighteen decimals, of which a Solana token could not count twenty.
    let megaeth = parse(&elsewhere("").replace("network: base", "network: megaeth"));
    assert_eq!(&*megaeth.networks[0].asset.symbol, "MegaUSD");
    assert_eq!(megaeth.settlement.exposure_max, Amount::new(100 * 10_u128.pow(18)));
}

/// Solana and EVM networks stand together where their tokens count alike.
fn both(more: &str) -> String {
    let solana = format!("{{network: solana, pay_to: {SOLANA_PAY_TO}, rpc_url: http://a}}");
    let base = format!(
        "{{network: base, pay_to: \"{PAY_TO}\", facilitator: https://x402.example.com, schemes: [batch-settlement, exact, upto]}}"
    );
    let shares = "signer: {shares: [{file: shares/share-1.json, passphrase_file: shares/share-2.passphrase}, {file: shares/share-2.json, passphrase_file: shares/share-2.passphrase}], ";
    format!("networks:\n- {solana}\n- {base}\n{more}\n{}", TAIL.replace("signer: {", shares))
}

fn schemes(pricing: &RoutePricing) -> Vec<(bool, Scheme, Option<u128>)> {
    let (RoutePricing::Fixed(prices) | RoutePricing::Metered { prices, .. }) = pricing else { return Vec::new() };
    let told = |price: &turnpike::config::NetworkPrice| {
        (price.network.is_evm(), price.scheme, price.min_deposit.map(Amount::get))
    };
    prices.iter().map(told).collect()
}

#[test]
fn a_price_is_paid_by_what_fits_it_on_each_network() {
    use Scheme::{BatchSettlement, Exact, Upto};
    for (route, want) in [
        (
            "price: $1, min_deposit: $5",
            vec![
                (false, BatchSettlement, Some(5_000_000)),
                (true, BatchSettlement, Some(5_000_000)),
                (true, Exact, None),
            ],
        ),
        (
            "price: $1, metering: {header: X}",
            vec![(false, Upto, None), (true, BatchSettlement, None), (true, Upto, None)],
        ),
        (
            "price: $1, schemes: [exact, batch-settlement]",
            vec![(false, BatchSettlement, None), (true, Exact, None), (true, BatchSettlement, None)],
        ),
        ("price: $1, schemes: upto, metering: {header: X}", vec![(false, Upto, None), (true, Upto, None)]),
    ] {
        let config = parse(&both(&format!("routes: [{{path: /a, {route}}}]")));
        assert_eq!(schemes(&config.routes[0].pricing), want, "{route}");
    }
    let config = parse(&both(ROUTES));
    let signer = config.signer.as_ref().unwrap();
    assert_eq!((signer.shares.len(), signer.evm_shares.len()), (2, 2));
    assert_eq!((config.settlement.batch_channels, config.settlement.claims_per_batch), (4, 100));
}

#[test]
fn what_is_paid_by_no_channel_may_cost_more_than_a_payer_may_owe() {
    let costs = |schemes: &str, limit: &str| {
        let route = format!("{{path: /a, price: $1, schemes: {schemes}, metering: {{header: X}}}}");
        let channel = "{path: /b, price: $0.10, schemes: batch-settlement}";
        let text = both(&format!("routes: [{route}, {channel}]\npolicy: {{{limit}: $0.50}}"));
        read_with(&text, example_directory().path()).map(|_| ()).map_err(|problems| problems.to_string())
    };
    assert_eq!(costs("upto", "payer_exposure_max"), Ok(()));
    assert!(costs("[upto, batch-settlement]", "payer_exposure_max").unwrap_err().contains("above payer_exposure_max"));
    assert!(costs("upto", "daily_limit").unwrap_err().contains("above daily_limit ($0.5"));
}

/// On either family: a metered request on Solana has a channel of its own, which holds all that it may cost.
#[test]
fn what_a_payer_may_owe_does_nothing_where_no_channel_owes() {
    let read = |policy: &str, routes: &str| {
        read_with(&both(&format!("{policy}\nroutes: [{routes}]")), example_directory().path())
    };
    let policy = "policy:\n  rate_limit: 1/s\n  payer_exposure_max: $5";
    for routes in ["{path: /a, price: $1, schemes: upto, metering: {header: X}}", "{path: /a, free: true}"] {
        let problems = read(policy, routes).map(|_| ()).unwrap_err();
        let [problem] = problems.problems.as_slice() else { panic!("{problems}") };
        let line = both(policy).lines().position(|line| line.contains("payer_exposure_max")).map(|line| line + 1);
        assert_eq!(problem.line, line, "{problem}");
        let told = "policy.payer_exposure_max: does nothing: no route is paid by batch-settlement, and nothing else is \
                    ever at risk. Leave it out, or write batch-settlement in the schemes of a route.";
        assert!(problem.to_string().contains(told), "{problem}");
        assert!(read(policy, &format!("{routes}, {{path: /c, price: $1}}")).is_ok(), "{routes}");
    }
}

#[test]
fn an_evm_price_becomes_an_offer_of_its_seller() {
    let config = parse(&elsewhere(""));
    let network = &config.networks[0];
    let seller = |token: Address| {
        let base = evm(network);
        Arc::new(EvmSeller {
            network: network.network.clone(),
            chain_id: base.chain_id,
            asset: Arc::new(turnpike::amount::Asset { address: token.to_string().into(), ..(*network.asset).clone() }),
            token,
            token_name: Arc::clone(&base.token_name),
            token_version: Arc::clone(&base.token_version),
            transfer_method: base.transfer_method,
            pay_to: base.pay_to,
            receiver_authorizer: Address([7; 20]),
            withdraw_delay: config.withdraw_delay.as_secs(),
            domain: Domain::batch_settlement(base.chain_id),
        })
    };
    let offers = |sellers: &[Arc<EvmSeller>]| match config.routes[0].resolve(&[], sellers) {
        Route { pricing: Pricing::Fixed(offers), .. } => offers,
        route => panic!("{route:?}"),
    };
    let ours = seller(USDC_ON_BASE.parse().unwrap());
    let found = offers(&[seller(Address([9; 20])), Arc::clone(&ours)]);
    assert!(matches!(&found[..], [offer] if offer.amount == Amount::new(1_000_000)
        && matches!(&offer.payee, Payee::Evm(seller, EvmScheme::BatchSettlement) if Arc::ptr_eq(seller, &ours))));
    assert!(offers(&[seller(Address([9; 20]))]).is_empty(), "another token of the network is not ours");
}

#[test]
fn networks_are_named_and_real_ones_stand_apart_from_test_networks() {
    for name in ["ethereum", "base-sepolia", "polygon", "arbitrum", "avalanche", "celo", "eip155:8453"] {
        parse(&elsewhere("").replace("network: base", &format!("network: {name}")));
    }
    let two = |first: &str, second: &str| {
        let entry = |name: &str| {
            format!("- {{network: {name}, pay_to: \"{PAY_TO}\", facilitator: https://x402.example.com}}\n")
        };
        problems(&format!("networks:\n{}{}{ROUTES}{TAIL}", entry(first), entry(second)))
    };
    assert!(two("base", "polygon").is_empty());
    assert!(two("base-sepolia", "polygon-amoy").is_empty());
    for (first, second) in [("base", "base-sepolia"), ("avalanche-fuji", "ethereum"), ("celo-sepolia", "eip155:8453")] {
        let told = two(first, second);
        assert!(told.iter().any(|line| line.contains(":2 networks: mixes a test network with a real one")), "{told:?}");
    }
}

/// Each mistake alone, with the line, the value and the remedy that are told.
#[test]
fn a_mistake_is_told_once_with_line_value_and_remedy() {
    let asset = |asset: &str| elsewhere(&format!("asset: {{{asset}}}"));
    let unknown = |rest: &str| asset(&format!("token: \"{UNKNOWN_TOKEN}\", {rest}"));
    let known = |rest: &str| asset(&format!("token: \"{USDC_ON_BASE}\", {rest}"));
    let paid_to = |address: &str| elsewhere("").replace(PAY_TO, address);
    let two = |second: &str| {
        let entry = format!("network: base, pay_to: \"{PAY_TO}\", facilitator: https://x402.example.com");
        format!("networks:\n- {{{entry}}}\n- {{{entry}{second}}}\n{ROUTES}{TAIL}")
    };
    let table = [
        // Names.
        (
            elsewhere("").replace("network: base", "network: bsae"),
            ":1 network: \"bsae\" is not a known network. Did you mean base?",
        ),
        (
            elsewhere("").replace("network: base", "network: eip155:08453"),
            ":1 network: \"eip155:08453\" is neither a Solana nor an EVM network",
        ),
        (
            elsewhere("").replace("network: base", "network: eip155:12345"),
            ":1 asset: is missing. No token of this network is known: write {token, symbol, decimals, name, version}.",
        ),
        (two(""), ":3 networks[1]: is the network and asset of line 2 again. Keep one of the two."),
        (
            two(&format!(
                ", asset: {{token: \"{UNKNOWN_TOKEN}\", symbol: USDT, decimals: 6, name: T, version: \"1\"}}"
            )),
            ":3 networks[1]: is the network of line 2 again, and an EVM network is served with one token.",
        ),
        (
            format!("networks: []\n{ROUTES}signer: {{}}\nupstream: http://a"),
            ":1 networks: holds 0 entries. Write 1 to 16.",
        ),
        // Whose it is.
        (paid_to(&PAY_TO.replace("CdDd", "cdDd")), "do not fit its checksum: a character is wrong. Copy it again"),
        (paid_to("0x3C44"), ":2 pay_to: \"0x3C44\" is not an EVM address. Write 0x and 40 hexadecimal digits."),
        (paid_to(SOLANA_PAY_TO), "is a Solana address, not an EVM address. Write 0x and 40 hexadecimal digits."),
        (paid_to("0x0000000000000000000000000000000000000000"), "is the zero address, from which nobody can spend."),
        (paid_to(USDC_ON_BASE), "is a contract, from which nobody can spend. Write the address that the money goes to"),
        (paid_to("0x4020074e9dF2ce1deE5A9C1b5c3f541D02a10003"), "is a contract, from which nobody can spend."),
        (paid_to("0x4020806089470a89826cB9fB1f4059150b550004"), "is a contract, from which nobody can spend."),
        (paid_to("0x4020425FAf3B746C082C2f942b4E5159887B0005"), "is a contract, from which nobody can spend."),
        (paid_to("0x000000000022D473030F116dDEE9F6B43aC78BA3"), "is a contract, from which nobody can spend."),
        (
            elsewhere("").replace(&format!("pay_to: \"{PAY_TO}\"\n"), ""),
            ":1 pay_to: is missing. Write the address that the money goes to",
        ),
        // Who sends.
        (
            local("").replace("rpc_url: http://a\n", ""),
            ":1 rpc_url: is missing. Write the URL of a JSON-RPC endpoint of base",
        ),
        (
            local("").replace("gas_key_file: secrets/gas.key\n", ""),
            ":1 gas_key_file: is missing. Write the path of a file with the private key",
        ),
        (
            local("").replace("gas_key_file: secrets/gas.key", "gas_key_file: nowhere"),
            ":4 gas_key_file: \"nowhere\" cannot be read",
        ),
        (
            local("").replace("gas_key_file: secrets/gas.key", "gas_key_file: shares/share-1.json"),
            ":4 gas_key_file: does not hold a private key. It has to be 64 hexadecimal digits",
        ),
        (
            local("").replace("gas_key_file: secrets/gas.key", "gas_key: ${SHORT_KEY}"),
            ":4 gas_key: does not hold a private key.",
        ),
        (
            local("").replace("gas_key_file: secrets/gas.key", "gas_key: ${NO_KEY}"),
            ":4 gas_key: does not hold a private key.",
        ),
        (
            local("").replace("gas_key_file: secrets/gas.key", &format!("gas_key: {}", GAS_KEY.trim())),
            ":4 gas_key: is not a single environment variable, and a secret may not stand in this file.",
        ),
        (local("gas_key: ${GAS_KEY}"), ":4 gas_key_file: stands beside gas_key. Keep one of the two."),
        (local("confirmations: 0"), ":5 confirmations: \"0\" is out of range. Write 1 to 64."),
        (local("max_fee_gwei: 0"), ":5 max_fee_gwei: \"0\" is out of range. Write a number of gwei such as 5 or 0.05"),
        (local("max_fee_gwei: 1e3"), ":5 max_fee_gwei: \"1e3\" is not a number of gwei."),
        (local("max_fee_gwei: 0.0000000001"), "is not a number of gwei."),
        (
            elsewhere("gas_key: ${GAS_KEY}"),
            ":4 gas_key: does nothing with a facilitator elsewhere, which sends the transactions and pays for them. Leave it out",
        ),
        (elsewhere("gas_key_file: secrets/gas.key"), ":4 gas_key_file: does nothing with a facilitator elsewhere"),
        (elsewhere("confirmations: 1"), ":4 confirmations: does nothing with a facilitator elsewhere"),
        (elsewhere("max_fee_gwei: 1"), ":4 max_fee_gwei: does nothing with a facilitator elsewhere"),
        (elsewhere("gas_token_price: $1"), ":4 gas_token_price: does nothing with a facilitator elsewhere"),
        (elsewhere("rpc_url: a"), ":4 rpc_url: names no scheme."),
        (
            elsewhere("").replace("https://x402.example.com", "remote"),
            ":3 facilitator: \"remote\" is not known here. Write local.",
        ),
        (
            both(&format!("facilitator: local\n{ROUTES}")),
            ":4 facilitator: does nothing beside networks. Write it in an entry of networks.",
        ),
        // Its token.
        (
            known("decimals: 18"),
            ":4 asset.decimals: \"18\" is not the decimals of this token, which is known. Write 6, or leave it out.",
        ),
        (
            known("name: USDC"),
            ":4 asset.name: \"USDC\" is not the name of this token, which is known. Write USD Coin, or leave it out.",
        ),
        (known("version: \"1\""), ":4 asset.version: \"1\" is not the version of this token"),
        (known("symbol: USDT"), ":4 asset.symbol: \"USDT\" is not the symbol of this token"),
        (
            known("transfer_method: permit"),
            ":4 asset.transfer_method: \"permit\" is not known here. Did you mean permit2?",
        ),
        (known("mint: x"), ":4 asset.mint: is not a key."),
        (
            unknown("symbol: USDT, decimals: 6, version: \"1\", transfer_method: permit2"),
            ":4 asset.name: is missing. This token is not known: write its name, of its EIP-712 domain; the 402 names it, whatever the transfer method.",
        ),
        (unknown("symbol: USDT, decimals: 6, name: x"), ":4 asset.version: is missing."),
        (
            unknown("symbol: USDT, name: x, version: \"1\""),
            ":4 asset.decimals: is missing. This token is not known: write its decimals",
        ),
        (unknown("decimals: 6, name: x, version: \"1\""), ":4 asset.symbol: is missing."),
        (asset("symbol: USDC"), ":4 asset.token: is missing. Write the address of the token's contract."),
        (
            asset(
                "token: \"0x4020074e9dF2ce1deE5A9C1b5c3f541D02a10003\", symbol: USDC, decimals: 6, name: x, version: \"1\"",
            ),
            "is no token.",
        ),
        (
            elsewhere("asset: {token: \"0xFAfDdbb3FC7688494971a79cc65DCa3EF82079E7\", transfer_method: eip3009}")
                .replace("network: base", "network: megaeth"),
            ":4 asset.transfer_method: \"eip3009\" is not known to this token. Write permit2, or leave it out.",
        ),
        // How it is paid.
        (elsewhere("schemes: []"), ":4 schemes: holds no scheme."),
        (elsewhere("schemes: [exact, exact]"), ":4 schemes[1]: \"exact\" is in the list already."),
        (
            elsewhere("schemes: permit2"),
            ":4 schemes: \"permit2\" is not known here. Write batch-settlement, exact or upto.",
        ),
        (
            elsewhere("schemes: upto"),
            "routes[0].price: \"$1\" cannot be paid: on base a fixed price is paid by batch-settlement or exact, and the network has only upto. Write schemes here",
        ),
        (
            with_routes("{path: /a, price: $1, schemes: upto}"),
            ":5 routes[0].schemes: \"upto\" would always charge the whole price on base, as nothing is metered. Write exact, or metering.",
        ),
        (
            with_routes("{path: /a, price: $1, schemes: exact, metering: {header: X}}"),
            ":5 routes[0].schemes: \"exact\" is no way to pay a metered price on base. Write batch-settlement or upto, or leave schemes out.",
        ),
        (
            with_routes("{path: /a, price: $1, schemes: [batch-settlement, upto]}"),
            ":5 routes[0].schemes: holds upto, by which a fixed price is paid on none of its networks. Leave it out.",
        ),
        (
            with_routes("{path: /a, price: $1, schemes: [batch-settlement, exact], metering: {header: X}}"),
            ":5 routes[0].schemes: holds exact, by which a metered price is paid on none of its networks.",
        ),
        (with_routes("{path: /a, free: true, schemes: exact}"), ":5 routes[0].schemes: does nothing on a free route."),
        (
            with_routes("{path: /a, price: $1, schemes: exact, min_deposit: $2}"),
            ":5 routes[0].min_deposit: does nothing where nothing is paid by batch-settlement",
        ),
        (
            with_routes("{path: /a, price: $11}"),
            "is above settlement.channel_exposure_max ($10), so it could never be paid.",
        ),
        // The signer.
        (
            elsewhere("").replace(TAIL, "signer: {deposit_max: $100}\nupstream: http://a"),
            "signer.evm_shares: is missing. Write two or three, each with file and passphrase_file; turnpike keygen --curve secp256k1 makes them.",
        ),
        (
            elsewhere("").replace("signer: {", "signer: {shares: [], "),
            "signer.shares: does nothing without a Solana network. Leave it out.",
        ),
        (
            elsewhere("").replace("signer: {", "signer: {claim_max: $999, "),
            ":6 signer.claim_max: ($999) is below what a full channel can owe ($1000). Write at least $1000, or lower signer.deposit_max.",
        ),
        (
            both(ROUTES).replace("evm_shares: [{file: shares/evm-share-1.json", "evm_shares: [{file: nowhere"),
            "signer.evm_shares[0].file: \"nowhere\" cannot be read",
        ),
        // Settlement.
        (
            elsewhere("settlement: {batch_channels: 4}"),
            ":4 settlement.batch_channels: does nothing without a Solana network. Write claims_per_batch",
        ),
        (
            elsewhere("settlement: {batches_in_flight: 4}"),
            ":4 settlement.batches_in_flight: does nothing without a Solana network. Leave it out.",
        ),
        (
            elsewhere("settlement: {claims_per_batch: 101}"),
            ":4 settlement.claims_per_batch: \"101\" is out of range. Write 1 to 100.",
        ),
        (
            elsewhere("settlement: {min_worth: 10}"),
            ":4 settlement.min_worth: does nothing: no EVM network of this file has this process as its facilitator.",
        ),
        (
            local("settlement: {min_worth: 10}"),
            ":5 settlement.min_worth: needs to know what gas costs on base. Write gas_token_price beside its gas key",
        ),
        (
            local("settlement: {min_worth: 0.5}\ngas_token_price: $3000"),
            ":5 settlement.min_worth: \"0.5\" is not a whole number. Write 1 to 1000.",
        ),
        (
            local("gas_token_price: $3000"),
            ":5 gas_token_price: does nothing without settlement.min_worth. Leave it out, or write min_worth.",
        ),
        (local("gas_token_price: 3000"), ":5 gas_token_price: \"3000\" names no currency. Write \"$3000\""),
        (
            local("gas_token_price: 1 ETH\nsettlement: {min_worth: 1}"),
            ":5 gas_token_price: \"1 ETH\" is not in the token that is paid with here.",
        ),
        (
            elsewhere("memo: x"),
            ":4 memo: does nothing without a Solana network: transactions on EVM networks have none.",
        ),
        (elsewhere("withdraw_delay: 31d"), ":4 withdraw_delay: \"31d\" is longer than 30d."),
        (elsewhere("sandbox: {}"), ":4 sandbox: does nothing without network: sandbox."),
    ];
    let mut failures = Vec::new();
    for (text, want) in table {
        let told = problems(&text);
        assert!(!told.concat().contains("canary") && !told.concat().contains(GAS_KEY.trim()), "{told:?}");
        if !matches!(&told[..], [line] if line.contains(want)) {
            failures.push(format!("wanted only: {want}\n{}\n{text}", told.join("\n")));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn solana_has_none_of_the_keys_of_evm_networks() {
    let solana = format!("network: solana\npay_to: {SOLANA_PAY_TO}\nrpc_url: http://a\n");
    for (line, want) in [
        ("gas_key: ${GAS_KEY}", ":4 gas_key: does nothing on a Solana network, where the signer's key pays the fees."),
        ("confirmations: 2", ":4 confirmations: does nothing on a Solana network"),
        (
            "schemes: [exact]",
            ":4 schemes: does nothing on a Solana network: a fixed price is paid by batch-settlement there",
        ),
        (
            "facilitator: https://x402.example.com",
            ":4 facilitator: names a facilitator elsewhere, which can only serve EVM",
        ),
        ("settlement: {claims_per_batch: 3}", ":4 settlement.claims_per_batch: does nothing without an EVM network."),
        ("settlement: {min_worth: 3}", ":4 settlement.min_worth: does nothing without an EVM network."),
        ("asset: {token: x}", ":4 asset.token: is not a key."),
    ] {
        let told = problems(&format!("{solana}{line}\n{ROUTES}{TAIL}"));
        assert!(told.iter().any(|told| told.contains(want)), "wanted: {want}\n{}", told.join("\n"));
    }
    let told = problems(&format!("{solana}{ROUTES}{TAIL}"));
    assert!(
        told.iter().any(|line| line.contains("signer.evm_shares: does nothing without an EVM network.")),
        "{told:?}"
    );
}

#[test]
fn what_is_probably_not_meant_is_warned_of() {
    let directory = example_directory();
    let warnings = |text: &str| {
        let (_, warnings) = read_with(text, directory.path()).unwrap();
        warnings.iter().map(|warning| warning.0.to_string()).collect::<String>()
    };
    let other = format!("asset: {{token: \"{UNKNOWN_TOKEN}\", symbol: USDC, decimals: 6, name: x, version: \"1\"}}");
    let told = warnings(&elsewhere(&other));
    assert!(told.contains(":4 asset: calls itself USDC and is not the known USDC of base."), "{told}");
    assert!(told.contains(USDC_ON_BASE), "{told}");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let path = directory.path().join("secrets/gas.key");
        for (mode, open) in [(0o644, true), (0o600, false)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let told = warnings(&local(""));
            assert_eq!(told.contains(":4 gas_key_file: can be read by other users of this machine."), open, "{told}");
        }
    }
}
