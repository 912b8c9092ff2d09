//! Networks: where money is taken, in which token, and whose it is.

use std::sync::Arc;

use super::money::DOLLAR_SYMBOLS;
use super::reader::{Complaint, Map, Value};
use super::secret::RpcUrl;
use super::value::{self, UrlTail};
use super::{NETWORKS_MAX, NetworkConfig, SandboxConfig, URLS_MAX};
use crate::amount::Asset;
use crate::scheme::svm::{
    ATA_PROGRAM, PAYMENT_CHANNELS, SYSTEM_PROGRAM, TOKEN_2022_PROGRAM, TOKEN_PROGRAM, USDC_DEVNET, USDC_MAINNET,
};
use crate::x402::network::{SOLANA, SOLANA_DEVNET, SOLANA_TESTNET};
use crate::x402::{Key, Network};

/// The most decimals that an asset may have.
const DECIMALS_MAX: u8 = 18;
/// The longest symbol.
const SYMBOL_BYTES_MAX: usize = 16;
const NETWORK_REMEDY: &str =
    "Write sandbox to try things out, or solana, solana-devnet, solana-testnet, or a CAIP-2 name such as solana:....";
const PAY_TO_REMEDY: &str = "Write the Solana address that the money goes to.";

/// What `network:` may say.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Named {
    Sandbox,
    Cluster(Network),
}

/// All networks of a file, and the sandbox where it is the one.
pub(super) struct Networks {
    pub networks: Vec<NetworkConfig>,
    pub sandbox: Option<SandboxConfig>,
}

/// Reads `network` and what belongs to it, or `networks`, and `sandbox`.
pub(super) fn read(root: &mut Map<'_, '_>) -> Option<Networks> {
    if root.has("networks") {
        for key in ["network", "pay_to", "rpc_url", "asset"] {
            root.inert(key, "beside networks", "Write it in an entry of networks.");
        }
        root.inert("sandbox", "without network: sandbox", "Leave it out, or write network: sandbox.");
        let networks = list(&root.take("networks")?)?;
        return Some(Networks { networks, sandbox: None });
    }
    root.take("networks");
    let named = root.require("network", NETWORK_REMEDY).and_then(|value| value.parse("a network", named));
    match named {
        Some(Named::Sandbox) => sandbox(root),
        Some(Named::Cluster(network)) => {
            root.inert("sandbox", "without network: sandbox", "Leave it out, or write network: sandbox.");
            Some(Networks { networks: vec![cluster(root, network)?], sandbox: None })
        }
        None => {
            shapes(root);
            root.take("sandbox");
            None
        }
    }
}

/// Checks what can be checked of an entry whose network is not known.
fn shapes(map: &mut Map<'_, '_>) {
    map.take("pay_to").map(|value| pay_to(&value));
    map.take("rpc_url").map(|value| rpc_urls(&value));
    map.take("asset").map(|value| asset(&value));
}

/// A network's name. EVM networks are known and refused.
fn named(text: &str) -> Result<Named, Complaint> {
    let evm = ["ethereum", "base", "base-sepolia", "polygon", "arbitrum", "optimism", "avalanche", "bsc"];
    match text {
        "sandbox" => return Ok(Named::Sandbox),
        "solana" => return cluster_named(SOLANA),
        "solana-devnet" => return cluster_named(SOLANA_DEVNET),
        "solana-testnet" => return cluster_named(SOLANA_TESTNET),
        _ => {}
    }
    if evm.contains(&text) || text.starts_with("eip155:") {
        let what = "is an EVM network, and this version can only serve Solana networks";
        return Err(Complaint::new(what, "Write solana, solana-devnet or sandbox."));
    }
    match text.parse::<Network>() {
        Ok(network) if network.is_solana() => Ok(Named::Cluster(network)),
        Ok(_) => Err(Complaint::new("is not a Solana network, and no other can be served", NETWORK_REMEDY)),
        Err(_) => {
            let complaint = Complaint::new("is not a known network", NETWORK_REMEDY);
            let near = value::nearest(text, &["sandbox", "solana", "solana-devnet", "solana-testnet"]);
            Err(near.map_or(complaint.clone(), |near| complaint.suggest(format!("Did you mean {near}?"))))
        }
    }
}

fn cluster_named(name: &str) -> Result<Named, Complaint> {
    name.parse().map(Named::Cluster).map_err(|_| Complaint::new("is not a known network", NETWORK_REMEDY))
}

/// The sandbox: USDC of its own, on a chain of its own.
fn sandbox(root: &mut Map<'_, '_>) -> Option<Networks> {
    root.inert("rpc_url", "on the sandbox, which has a chain of its own", "Leave it out.");
    root.inert("asset", "on the sandbox, which has a USDC of its own", "Leave it out.");
    let pay_to = root.take("pay_to").map(|value| pay_to(&value));
    let (presented, rpc_listen) = match root.take("sandbox") {
        None => (Some(None), Some(None)),
        Some(value) => value.map("a mapping such as {present_as: solana-devnet}", |map| {
            (
                map.take("present_as").map_or(Some(None), |value| present_as(&value).map(Some)),
                map.take("rpc_listen").map_or(Some(None), |value| value.socket().map(Some)),
            )
        })?,
    };
    let network = presented?.or_else(|| SOLANA_DEVNET.parse().ok())?;
    let rpc_listen = rpc_listen?.unwrap_or_else(|| ([127, 0, 0, 1], 8899).into());
    let network = NetworkConfig {
        network,
        asset: Arc::new(usdc(&USDC_DEVNET)),
        mint: USDC_DEVNET,
        token_program: TOKEN_PROGRAM,
        pay_to: pay_to.map_or(Some(None), |key| key.map(Some))?,
        rpc_urls: Vec::new(),
    };
    Some(Networks { networks: vec![network], sandbox: Some(SandboxConfig { rpc_listen }) })
}

/// The test network that the sandbox looks like to clients.
fn present_as(value: &Value<'_, '_>) -> Option<Network> {
    value.parse("a test network such as solana-devnet", |text| match named(text)? {
        Named::Cluster(network) if network.as_str() != SOLANA => Ok(network),
        _ => Err(Complaint::new("cannot be played by the sandbox", "Write solana-devnet or solana-testnet.")),
    })
}

/// Several ways to be paid.
fn list(value: &Value<'_, '_>) -> Option<Vec<NetworkConfig>> {
    let items = value.items("a list of mappings, each with network, pay_to and rpc_url")?;
    if items.is_empty() || items.len() > NETWORKS_MAX {
        value.problem(format!("holds {} entries.", items.len()), format!("Write 1 to {NETWORKS_MAX}."));
        return None;
    }
    let mut networks: Vec<(usize, NetworkConfig)> = Vec::new();
    let mut whole = true;
    for item in &items {
        let Some(network) = item.map("a mapping with network, pay_to and rpc_url", entry).flatten() else {
            whole = false;
            continue;
        };
        if let Some((line, _)) = networks.iter().find(|(_, n)| n.network == network.network && n.mint == network.mint) {
            item.problem(format!("is the network and asset of line {line} again."), "Keep one of the two.");
            whole = false;
        }
        networks.push((item.line, network));
    }
    let of_value = |test: bool| networks.iter().any(|(_, n)| is_test(&n.network) == test);
    if of_value(true) && of_value(false) {
        value.problem(
            "mixes a test network with a real one: what costs money on one would be had for play money on the other.",
            "Serve them from two files.",
        );
        return None;
    }
    whole.then(|| networks.into_iter().map(|(_, network)| network).collect())
}

fn is_test(network: &Network) -> bool {
    [SOLANA_DEVNET, SOLANA_TESTNET].contains(&network.as_str())
}

/// One entry of `networks`.
fn entry(map: &mut Map<'_, '_>) -> Option<NetworkConfig> {
    let named = map.require("network", NETWORK_REMEDY).and_then(|value| {
        let named = value.parse("a network", named)?;
        if named == Named::Sandbox {
            value.problem("The sandbox stands alone.", "Write network: sandbox at the top instead of networks.");
        }
        Some(named)
    });
    match named {
        Some(Named::Cluster(network)) => cluster(map, network),
        Some(Named::Sandbox) | None => {
            // What else is wrong with the entry is told all the same.
            shapes(map);
            None
        }
    }
}

/// What belongs to a network that is not the sandbox.
fn cluster(map: &mut Map<'_, '_>, network: Network) -> Option<NetworkConfig> {
    if !map.whole.key.is_empty() {
        let why = "for a Solana network, where this process is its own facilitator";
        map.inert("facilitator", why, "Leave it out.");
    }
    let pay_to = map.require("pay_to", PAY_TO_REMEDY).and_then(|value| pay_to(&value));
    let remedy = "Write the URL of a Solana JSON-RPC endpoint, or a list of several.";
    let rpc_urls = map.require("rpc_url", remedy).and_then(|value| rpc_urls(&value));
    let usdc_here = match network.as_str() {
        SOLANA => Some(USDC_MAINNET),
        SOLANA_DEVNET | SOLANA_TESTNET => Some(USDC_DEVNET),
        _ => None,
    };
    let token = match (map.take("asset"), usdc_here) {
        (Some(value), _) => {
            let token = asset(&value);
            if let (Some(token), SOLANA) = (&token, network.as_str())
                && token.asset.symbol.as_ref() == "USDC"
                && token.mint != USDC_MAINNET
            {
                value.warn(
                    "calls itself USDC and is not Circle's USDC.",
                    "Make sure that the mint is the one you mean.",
                );
            }
            token
        }
        (None, Some(mint)) => Some(Token { asset: Arc::new(usdc(&mint)), mint, token_program: TOKEN_PROGRAM }),
        (None, None) => {
            if !map.has("asset") {
                let _ = map.require("asset", "The USDC of this network is not known: write {mint, symbol, decimals}.");
            }
            None
        }
    };
    let token = token?;
    Some(NetworkConfig {
        network,
        asset: token.asset,
        mint: token.mint,
        token_program: token.token_program,
        pay_to: Some(pay_to?),
        rpc_urls: rpc_urls?,
    })
}

/// A token with its programs.
struct Token {
    asset: Arc<Asset>,
    mint: Key,
    token_program: Key,
}

fn usdc(mint: &Key) -> Asset {
    Asset { address: mint.to_string().into(), symbol: "USDC".into(), decimals: 6 }
}

fn asset(value: &Value<'_, '_>) -> Option<Token> {
    value.map("a mapping with mint, symbol and decimals", |map| {
        let mint = map.require("mint", "Write the token's mint address.").and_then(|value| key(&value));
        let symbol = map.require("symbol", "Write the token's symbol, such as USDC.").and_then(|value| symbol(&value));
        let decimals_value = map.require("decimals", "Write how many decimals the token has, such as 6.");
        let decimals = decimals_value.as_ref().and_then(|value| value.number(0, DECIMALS_MAX));
        let token_program = match map.take("token_program") {
            None => Some(TOKEN_PROGRAM),
            Some(value) => value.choice(&[("spl-token", TOKEN_PROGRAM), ("token-2022", TOKEN_2022_PROGRAM)]),
        };
        let (mint, decimals) = (mint?, decimals?);
        if let Some(value) = decimals_value
            && [USDC_MAINNET, USDC_DEVNET].contains(&mint)
            && decimals != 6
        {
            value.reject(Complaint::new("are not the decimals of this mint, which is USDC", "Write 6."));
            return None;
        }
        let asset = Asset { address: mint.to_string().into(), symbol: symbol?.into(), decimals };
        Some(Token { asset: Arc::new(asset), mint, token_program: token_program? })
    })?
}

fn symbol(value: &Value<'_, '_>) -> Option<String> {
    value.parse("a symbol such as USDC", |text| {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-+".contains(&b);
        let digits_only = text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        if digits_only || text.len() > SYMBOL_BYTES_MAX || !text.bytes().all(plain) || text.ends_with("-atomic") {
            let remedy = format!("Write up to {SYMBOL_BYTES_MAX} letters and digits, such as {}.", DOLLAR_SYMBOLS[0]);
            return Err(Complaint::new("is not a symbol", remedy));
        }
        Ok(text.to_owned())
    })
}

fn key(value: &Value<'_, '_>) -> Option<Key> {
    value.parse("a Solana address", address)
}

fn address(text: &str) -> Result<Key, Complaint> {
    text.parse().map_err(|_| {
        let what =
            if text.starts_with("0x") { "is an EVM address, not a Solana address" } else { "is not a Solana address" };
        Complaint::new(what, "Write the base58 text of 32 bytes, 32 to 44 letters and digits.")
    })
}

/// Where the money goes. Addresses that nobody can spend from are refused.
fn pay_to(value: &Value<'_, '_>) -> Option<Key> {
    value.parse("a Solana address", |text| {
        let key = address(text)?;
        let nobody = [
            SYSTEM_PROGRAM,
            TOKEN_PROGRAM,
            TOKEN_2022_PROGRAM,
            ATA_PROGRAM,
            PAYMENT_CHANNELS,
            USDC_MAINNET,
            USDC_DEVNET,
        ];
        if nobody.contains(&key) {
            return Err(Complaint::new("is a program or a mint, from which nobody can spend", PAY_TO_REMEDY));
        }
        Ok(key)
    })
}

/// One or several endpoints. They may hold an access key, so they are never shown.
fn rpc_urls(value: &Value<'_, '_>) -> Option<Vec<RpcUrl>> {
    let values = value.clone().hide().one_or_many();
    if values.is_empty() || values.len() > URLS_MAX {
        value.problem(format!("holds {} URLs.", values.len()), format!("Write 1 to {URLS_MAX}."));
        return None;
    }
    let urls: Vec<_> = values
        .iter()
        .map(|value| value.parse("a URL", |text| value::url(text, UrlTail::Query)).map(RpcUrl::new))
        .collect::<Vec<_>>()
        .into_iter()
        .collect::<Option<_>>()?;
    for (i, url) in urls.iter().enumerate() {
        if let (true, Some(again)) = (urls.iter().take(i).any(|other| other == url), values.get(i)) {
            again.problem("is the same endpoint again.", "Keep one of the two.");
            return None;
        }
    }
    Some(urls)
}
