//! Networks: where money is taken, in which token, and whose it is. What each family of networks has of its own is in
//! `svm` and `evm`.

mod evm;
mod svm;

use super::facilitator;
use super::money::DOLLAR_SYMBOLS;
use super::reader::{Complaint, Map, Value};
use super::secret::{self, RpcUrl};
use super::value::{self, UrlTail};
use super::{EvmConfig, FacilitatorConfig, Family, LocalFacilitatorConfig, NETWORKS_MAX, NetworkConfig, SandboxConfig};
use super::{URLS_MAX, schemes};
use crate::x402::network::{EVM_NETWORKS, SOLANA, SOLANA_DEVNET, SOLANA_TESTNET};
use crate::x402::{Key, Network};

pub(super) use self::svm::stand_in;

/// What a cosigner knows of a network: no way to reach it, only what may be signed for it.
pub(super) struct Cosigned {
    pub network: Network,
    pub asset: std::sync::Arc<crate::amount::Asset>,
    pub family: CosignedFamily,
}

/// What is particular to the network's family.
pub(super) enum CosignedFamily {
    Svm { mint: Key, token_program: Key, pay_to: Vec<Key> },
    Evm { chain_id: u64, token: crate::x402::evm::Address, pay_to: Vec<crate::x402::evm::Address> },
}

/// Reads `network`, `pay_to` and `asset` of an entry of a cosigner's policy.
pub(super) fn cosigned(map: &mut Map<'_, '_>) -> Option<Cosigned> {
    let value = map.require("network", NETWORK_REMEDY)?;
    match value.parse("a network", named) {
        Some(Named::Svm(network)) => svm::cosigned(map, network),
        Some(Named::Evm(network, id)) => evm::cosigned(map, network, id),
        Some(Named::Sandbox) => {
            value.problem("The sandbox makes a key of its own.", "Write the network that it presents itself as.");
            drop((map.take("pay_to"), map.take("asset")));
            None
        }
        None => {
            drop((map.take("pay_to"), map.take("asset")));
            None
        }
    }
}

/// One value or several, each of which `read` takes.
fn several<T: PartialEq>(value: &Value<'_, '_>, read: impl Fn(&Value<'_, '_>) -> Option<T>) -> Option<Vec<T>> {
    let values = value.one_or_many();
    if values.is_empty() || values.len() > NETWORKS_MAX {
        value.problem(format!("holds {} addresses.", values.len()), format!("Write 1 to {NETWORKS_MAX}."));
        return None;
    }
    values.iter().map(read).collect::<Vec<_>>().into_iter().collect()
}

/// The most decimals that an asset may have.
const DECIMALS_MAX: u8 = 18;
/// The longest symbol.
const SYMBOL_BYTES_MAX: usize = 16;
const NETWORK_REMEDY: &str = "Write sandbox to try things out, or one such as solana, solana-devnet, base, base-sepolia, polygon, or a CAIP-2 name such as eip155:8453.";
/// The keys that belong to one network.
const KEYS: [&str; 11] = [
    "network",
    "pay_to",
    "rpc_url",
    "asset",
    "facilitator",
    "gas_key",
    "gas_key_file",
    "confirmations",
    "max_fee_gwei",
    "gas_token_price",
    "schemes",
];

/// What `network:` may say.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Named {
    Sandbox,
    Svm(Network),
    Evm(Network, u64),
}

/// All networks of a file, and the sandbox where it is the one.
pub(super) struct Networks {
    pub networks: Vec<NetworkConfig>,
    pub sandbox: Option<SandboxConfig>,
}

/// Which families of networks a file has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Families {
    /// Solana networks, the sandbox among them.
    pub svm: bool,
    pub evm: bool,
    pub sandbox: bool,
}

impl Networks {
    pub(super) fn families(&self) -> Families {
        let is_evm = |network: &NetworkConfig| matches!(network.family, Family::Evm(_));
        Families {
            svm: !self.networks.iter().all(is_evm),
            evm: self.networks.iter().any(is_evm),
            sandbox: self.sandbox.is_some(),
        }
    }
}

/// Reads `network` and what belongs to it, or `networks`, and `sandbox`.
pub(super) fn read(root: &mut Map<'_, '_>) -> Option<Networks> {
    if root.has("networks") {
        for key in KEYS {
            root.inert(key, "beside networks", "Write it in an entry of networks.");
        }
        root.inert("sandbox", "without network: sandbox", "Leave it out, or write network: sandbox.");
        let networks = list(&root.take("networks")?)?;
        return Some(Networks { networks, sandbox: None });
    }
    root.take("networks");
    let named = root.require("network", NETWORK_REMEDY).and_then(|value| value.parse("a network", named));
    if let Some(Named::Svm(_) | Named::Evm(..)) = named {
        root.inert("sandbox", "without network: sandbox", "Leave it out, or write network: sandbox.");
    }
    match named {
        Some(Named::Sandbox) => svm::sandbox(root),
        Some(Named::Svm(network)) => Some(Networks { networks: vec![svm::read(root, network)?], sandbox: None }),
        Some(Named::Evm(network, id)) => {
            Some(Networks { networks: vec![evm::read(root, network, id)?], sandbox: None })
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
    for key in KEYS.into_iter().filter(|key| !key.starts_with("gas_key")) {
        let Some(value) = map.take(key) else { continue };
        match key {
            "pay_to" => {
                value.parse("an address", |text| {
                    let known = text.parse::<Key>().is_ok() || text.starts_with("0x");
                    let remedy = "Write the address that the money goes to, as your wallet shows it.";
                    if known { Ok(()) } else { Err(Complaint::new("is neither a Solana nor an EVM address", remedy)) }
                });
            }
            "rpc_url" => drop(rpc_urls(&value)),
            "facilitator" => drop(facilitator::read(&value, None)),
            "schemes" => drop(schemes::read(&value)),
            _ => {}
        }
    }
    drop(secret::read(map, "gas_key", "gas_key_file"));
}

/// A network's name.
fn named(text: &str) -> Result<Named, Complaint> {
    let svm = match text {
        "sandbox" => return Ok(Named::Sandbox),
        "solana" => SOLANA,
        "solana-devnet" => SOLANA_DEVNET,
        "solana-testnet" => SOLANA_TESTNET,
        _ => text,
    };
    let network = Network::of_short_name(text).or_else(|| svm.parse().ok());
    match network {
        Some(network) if network.is_solana() => Ok(Named::Svm(network)),
        Some(network) => match network.chain_id() {
            Some(id) => Ok(Named::Evm(network, id)),
            None => Err(Complaint::new(
                "is neither a Solana nor an EVM network, and no other can be served",
                NETWORK_REMEDY,
            )),
        },
        None => {
            let complaint = Complaint::new("is not a known network", NETWORK_REMEDY);
            let mut names = vec!["sandbox", "solana", "solana-devnet", "solana-testnet"];
            names.extend(EVM_NETWORKS.iter().map(|(name, _)| *name));
            let near = value::nearest(text, &names);
            Err(near.map_or(complaint.clone(), |near| complaint.suggest(format!("Did you mean {near}?"))))
        }
    }
}

/// Several ways to be paid.
fn list(value: &Value<'_, '_>) -> Option<Vec<NetworkConfig>> {
    let items = value.items("a list of mappings, each with network and pay_to")?;
    if items.is_empty() || items.len() > NETWORKS_MAX {
        value.problem(format!("holds {} entries.", items.len()), format!("Write 1 to {NETWORKS_MAX}."));
        return None;
    }
    let mut networks: Vec<(usize, NetworkConfig)> = Vec::new();
    let mut whole = true;
    for item in &items {
        let Some(network) = item.map("a mapping with network and pay_to", entry).flatten() else {
            whole = false;
            continue;
        };
        if let Some((line, earlier)) = networks.iter().find(|(_, earlier)| earlier.network == network.network) {
            if earlier.asset.address == network.asset.address {
                item.problem(format!("is the network and asset of line {line} again."), "Keep one of the two.");
                whole = false;
            } else if matches!(network.family, Family::Evm(_)) {
                // Its facilitator, its gas key and the nonces of that are one for the whole network.
                let what = format!("is the network of line {line} again, and an EVM network is served with one token.");
                item.problem(what, "Keep one of the two.");
                whole = false;
            }
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

/// Whether money on a network is play money. An EVM network that is not known counts as a real one.
fn is_test(network: &Network) -> bool {
    /// Developers' own chains, and test networks of known tokens that have no short name.
    const NAMELESS: [u64; 5] = [1337, 31_337, 31_611, 72_344, 181_228];
    const WORDS: [&str; 5] = ["sepolia", "testnet", "amoy", "fuji", "apothem"];
    match network.chain_id() {
        Some(id) => {
            let name = network.short_name().unwrap_or_default();
            WORDS.iter().any(|word| name.contains(word)) || NAMELESS.contains(&id)
        }
        None => [SOLANA_DEVNET, SOLANA_TESTNET].contains(&network.as_str()),
    }
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
        Some(Named::Svm(network)) => svm::read(map, network),
        Some(Named::Evm(network, id)) => evm::read(map, network, id),
        Some(Named::Sandbox) | None => {
            // What else is wrong with the entry is told all the same.
            shapes(map);
            None
        }
    }
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

/// `settlement.min_worth` and the price of gas need each other. `min_worth` is what was read of it.
pub(super) fn check_gas_price(root: &Map<'_, '_>, networks: &[NetworkConfig], min_worth: Option<u32>) {
    let local = |network: &NetworkConfig| match &network.family {
        Family::Evm(EvmConfig { facilitator: FacilitatorConfig::Local(local), .. }) => Some(local.gas_token_price),
        Family::Evm(_) | Family::Svm(_) => None,
    };
    let told = |at: &str, key: &str, what: String, remedy: &str| {
        root.whole.cx.problem(root.line_of(at), key.to_owned(), what, remedy.to_owned());
    };
    let prices: Vec<_> = networks.iter().filter_map(|network| Some((network, local(network)?))).collect();
    if min_worth.is_none() {
        let at = if root.has("networks") { "networks" } else { "gas_token_price" };
        if prices.iter().any(|(_, price)| price.is_some()) {
            let what = "does nothing without settlement.min_worth.".to_owned();
            told(at, "gas_token_price", what, "Leave it out, or write min_worth.");
        }
        return;
    }
    let key = "settlement.min_worth";
    if prices.is_empty() {
        let what = "does nothing: no EVM network of this file has this process as its facilitator.".to_owned();
        told("settlement", key, what, "Leave it out.");
    }
    for (network, _) in prices.iter().filter(|(_, price)| price.is_none()) {
        let what = format!("needs to know what gas costs on {}.", shown(&network.network));
        let remedy = "Write gas_token_price beside its gas key, what one whole gas token costs, such as \"$3000\".";
        told("settlement", key, what, remedy);
    }
}

/// A network's name for people, as the file may have it.
pub(super) fn shown(network: &Network) -> String {
    let solana = [(SOLANA, "solana"), (SOLANA_DEVNET, "solana-devnet"), (SOLANA_TESTNET, "solana-testnet")];
    let solana = solana.iter().find(|(name, _)| *name == network.as_str()).map(|(_, short)| *short);
    solana.or_else(|| network.short_name()).map_or_else(|| network.to_string(), str::to_owned)
}
