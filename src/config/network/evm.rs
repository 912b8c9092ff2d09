//! An EVM network: its token, whose money it is, and who sends its transactions.
//!
//! ```yaml
//! network: base
//! pay_to: "0x..."
//! facilitator: local                 # the default; or a URL, see `facilitator.rs`
//! rpc_url: https://base.example.com  # with local; else optional
//! gas_key_file: secrets/gas.key      # with local; or gas_key: ${NAME}
//! confirmations: 1
//! max_fee_gwei: 5
//! gas_token_price: "$3000"           # with settlement.min_worth
//! asset: { token: "0x...", symbol: EURC, decimals: 6, name: EURC, version: "2", transfer_method: eip3009 }
//! schemes: [batch-settlement, exact]
//! ```
//!
//! Promises that a written address has its checksum, and that money goes to no contract from which nobody could get it.
//! What the network would have to be asked, such as a token's decimals, is taken as written, but for known tokens.

use std::sync::Arc;

use super::super::facilitator::{self, Who};
use super::super::reader::{Complaint, Map, Value};
use super::super::server::or;
use super::super::yaml::join;
use super::super::{Family, NetworkConfig, Scheme, money, schemes, secret};
use super::{Cosigned, CosignedFamily, several};
use super::{DECIMALS_MAX, EvmConfig, FacilitatorConfig, LocalFacilitatorConfig, rpc_urls, shown, symbol};
use crate::amount::{Amount, Asset};
use crate::scheme::evm::assets::{self, KnownAsset};
use crate::scheme::evm::{TransferMethod, contracts};
use crate::x402::evm::{Address, HexError};
use crate::x402::{Key, Network};

const PAY_TO_REMEDY: &str = "Write the address that the money goes to, 0x and 40 hexadecimal digits.";
/// The longest name and version of a token's domain.
const DOMAIN_BYTES_MAX: usize = 64;
/// The deepest confirmation that can be asked for.
const CONFIRMATIONS_MAX: u64 = 64;
/// The highest cap of gas that can be written, in gwei.
const MAX_FEE_GWEI_MAX: u64 = 100_000;

/// What belongs to an EVM network.
pub(super) fn read(map: &mut Map<'_, '_>, network: Network, chain_id: u64) -> Option<NetworkConfig> {
    let token = token(map, &network);
    let pay_to = map.require("pay_to", PAY_TO_REMEDY).and_then(|value| pay_to_of(&value, &network, token.as_ref()));
    let facilitator = facilitator(map, &network, token.as_ref().map(|token| token.asset.as_ref()));
    let schemes = or(map.take("schemes"), vec![Scheme::BatchSettlement], schemes::read);
    let (token, (facilitator, rpc_urls)) = (token?, facilitator?);
    let family = Family::Evm(EvmConfig {
        chain_id,
        token: token.address,
        token_name: token.name,
        token_version: token.version,
        transfer_method: token.transfer_method,
        pay_to: pay_to?,
        rpc_urls,
        facilitator,
        schemes: schemes?,
    });
    Some(NetworkConfig { network, asset: token.asset, family })
}

/// What a cosigner knows of an EVM network.
pub(super) fn cosigned(map: &mut Map<'_, '_>, network: Network, chain_id: u64) -> Option<Cosigned> {
    let token = token(map, &network);
    let pay_to = map.require("pay_to", PAY_TO_REMEDY);
    let pay_to = pay_to.and_then(|value| several(&value, |value| pay_to_of(value, &network, token.as_ref())));
    let (Token { asset, address, .. }, pay_to) = (token?, pay_to?);
    Some(Cosigned { network, asset, family: CosignedFamily::Evm { chain_id, token: address, pay_to } })
}

/// Who sends the transactions, and the endpoints.
fn facilitator(
    map: &mut Map<'_, '_>,
    network: &Network,
    asset: Option<&Asset>,
) -> Option<(FacilitatorConfig, Vec<super::RpcUrl>)> {
    let who = or(map.take("facilitator"), Who::Local, |value| facilitator::read(value, Some(network)));
    match who {
        Some(Who::Local) => {
            let here = shown(network);
            let remedy = format!(
                "Write the URL of a JSON-RPC endpoint of {here}, or a list of several; or the URL of a facilitator elsewhere under facilitator."
            );
            let rpc_urls = map.require("rpc_url", &remedy).and_then(|value| rpc_urls(&value));
            let local = local(map, network, asset);
            Some((FacilitatorConfig::Local(local?), rpc_urls?))
        }
        Some(Who::Elsewhere(remotes)) => {
            for key in ["gas_key", "gas_key_file", "confirmations", "max_fee_gwei", "gas_token_price"] {
                let why = "with a facilitator elsewhere, which sends the transactions and pays for them";
                map.inert(key, why, "Leave it out, or write facilitator: local.");
            }
            let rpc_urls = or(map.take("rpc_url"), Vec::new(), rpc_urls);
            Some((FacilitatorConfig::Remote(remotes), rpc_urls?))
        }
        None => {
            map.take("rpc_url").map(|value| rpc_urls(&value));
            let _ = local_parts(map, network, asset);
            None
        }
    }
}

/// This process as the facilitator.
fn local(map: &mut Map<'_, '_>, network: &Network, asset: Option<&Asset>) -> Option<LocalFacilitatorConfig> {
    if !map.has("gas_key") && !map.has("gas_key_file") {
        let remedy = "Write the path of a file with the private key of an account that pays for gas, or gas_key: ${NAME}; or the URL of a facilitator elsewhere under facilitator.";
        let _ = map.require("gas_key_file", remedy);
    }
    let (gas_key, confirmations, max_fee_wei, gas_token_price) = local_parts(map, network, asset);
    Some(LocalFacilitatorConfig {
        gas_key: gas_key?,
        confirmations: confirmations?,
        max_fee_wei: max_fee_wei?,
        gas_token_price: gas_token_price?,
    })
}

type LocalParts = (Option<secret::Secret>, Option<u64>, Option<Option<u128>>, Option<Option<Amount>>);

fn local_parts(map: &mut Map<'_, '_>, network: &Network, asset: Option<&Asset>) -> LocalParts {
    let confirmations =
        or(map.take("confirmations"), confirmations_default(network), |value| value.number(1, CONFIRMATIONS_MAX));
    let max_fee_wei = or(map.take("max_fee_gwei"), None, |value| max_fee(value).map(Some));
    let gas_token_price = or(map.take("gas_token_price"), None, |value| match asset {
        Some(asset) => money::in_asset(value, asset).map(Some),
        None => value.text("a price such as \"$3000\"").map(|_| None),
    });
    (gas_key(map), confirmations, max_fee_wei, gas_token_price)
}

/// How deep a transaction has to be by default. Where one sequencer orders the blocks, or a block is final at once, the
/// first block is as good as the third; Ethereum now and then replaces its last block, Polygon several.
fn confirmations_default(network: &Network) -> u64 {
    match network.short_name() {
        Some("ethereum" | "sepolia") => 2,
        Some("polygon" | "polygon-amoy") => 5,
        _ => 1,
    }
}

/// The private key that pays for gas. Whether it is one of the curve, the sender says at start.
fn gas_key(map: &mut Map<'_, '_>) -> Option<secret::Secret> {
    let by = if map.has("gas_key") { "gas_key" } else { "gas_key_file" };
    let key = secret::read(map, "gas_key", "gas_key_file")??;
    let digits = key.expose().trim();
    let digits = digits.strip_prefix("0x").unwrap_or(digits);
    if digits.len() != 64 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) || digits.bytes().all(|b| b == b'0') {
        let remedy = "It has to be 64 hexadecimal digits, with or without 0x before them.".to_owned();
        let place = join(&map.whole.key, by);
        map.whole.cx.problem(map.line_of(by), place, "does not hold a private key.".to_owned(), remedy);
        return None;
    }
    Some(key)
}

/// A cap in gwei, in wei.
fn max_fee(value: &Value<'_, '_>) -> Option<u128> {
    value.parse("a number of gwei such as 5 or 0.05", |text| {
        let gwei = Asset { address: "".into(), symbol: "gwei".into(), decimals: 9 };
        let remedy = format!("Write a number of gwei such as 5 or 0.05, up to {MAX_FEE_GWEI_MAX}.");
        let most = u128::from(MAX_FEE_GWEI_MAX).saturating_mul(1_000_000_000);
        match gwei.parse_decimal(text).map(Amount::get) {
            Ok(wei) if (1..=most).contains(&wei) => Ok(wei),
            Ok(_) => Err(Complaint::new("is out of range", remedy)),
            Err(_) => Err(Complaint::new("is not a number of gwei", remedy)),
        }
    })
}

/// A token with the domain that its owners sign under.
struct Token {
    asset: Arc<Asset>,
    address: Address,
    name: Arc<str>,
    version: Arc<str>,
    transfer_method: TransferMethod,
}

impl From<&KnownAsset> for Token {
    fn from(known: &KnownAsset) -> Self {
        Self {
            asset: Arc::new(known.asset()),
            address: known.address,
            name: known.name.into(),
            version: known.version.into(),
            transfer_method: known.transfer_method,
        }
    }
}

/// `asset`, or the network's usual token.
fn token(map: &mut Map<'_, '_>, network: &Network) -> Option<Token> {
    if let Some(value) = map.take("asset") {
        return value.map("a mapping such as {token: \"0x...\"}", |map| asset(map, network)).flatten();
    }
    let known = assets::on(network).next();
    if known.is_none() && !map.has("asset") {
        let remedy = "No token of this network is known: write {token, symbol, decimals, name, version}.";
        let _ = map.require("asset", remedy);
    }
    known.map(Token::from)
}

fn asset(map: &mut Map<'_, '_>, network: &Network) -> Option<Token> {
    let address = map.require("token", "Write the address of the token's contract.").and_then(|value| {
        value.parse("an EVM address", |text| {
            let address = address(text)?;
            if is_contract(&address) || address.is_zero() {
                return Err(Complaint::new("is no token", "Write the address of the token's contract."));
            }
            Ok(address)
        })
    });
    let known = address.and_then(|address| assets::by_address(network, address));
    let unknown = address.is_some() && known.is_none();
    let symbol = part(map, "symbol", unknown, known.map(|known| known.symbol.to_owned()), "such as USDC", symbol);
    let decimals = part(map, "decimals", unknown, known.map(|known| known.decimals), "such as 6", |value| {
        value.number(0, DECIMALS_MAX)
    });
    let domain = "of its EIP-712 domain; the 402 names it, whatever the transfer method";
    let text = |value: &Value<'_, '_>| value.line(DOMAIN_BYTES_MAX);
    let name = part(map, "name", unknown, known.map(|known| known.name.to_owned()), domain, text);
    let version = part(map, "version", unknown, known.map(|known| known.version.to_owned()), domain, text);
    let default = known.map_or(TransferMethod::Eip3009, |known| known.transfer_method);
    let transfer_method = or(map.take("transfer_method"), default, |value| {
        let choices = [TransferMethod::Eip3009, TransferMethod::Permit2].map(|method| (method.as_str(), method));
        let method = value.choice(&choices)?;
        if default == TransferMethod::Permit2 && method != default {
            value.reject(Complaint::new("is not known to this token", "Write permit2, or leave it out."));
            return None;
        }
        Some(method)
    });
    let (address, symbol) = (address?, symbol?);
    if let (None, Some(usual)) = (known, assets::by_symbol(network, &symbol)) {
        let what = format!("calls itself {symbol} and is not the known {symbol} of {}.", shown(network));
        map.whole
            .warn(what, format!("Make sure that the token is the one you mean; the known one is {}.", usual.address));
    }
    let asset = Asset { address: address.to_string().into(), symbol: symbol.into(), decimals: decimals? };
    Some(Token {
        asset: Arc::new(asset),
        address,
        name: name?.into(),
        version: version?.into(),
        transfer_method: transfer_method?,
    })
}

/// What a token has one of: for a known token it may be left out, and must not differ; for an unknown one it has to be
/// written. A token whose address could not be read is neither.
fn part<T: PartialEq + std::fmt::Display>(
    map: &mut Map<'_, '_>,
    key: &'static str,
    unknown: bool,
    known: Option<T>,
    hint: &str,
    read: impl FnOnce(&Value<'_, '_>) -> Option<T>,
) -> Option<T> {
    let value = if unknown {
        map.require(key, &format!("This token is not known: write its {key}, {hint}."))
    } else {
        map.take(key)
    };
    let Some(value) = value else { return known.filter(|_| !map.has(key)) };
    let written = read(&value)?;
    match known {
        Some(known) if known != written => {
            let remedy = format!("Write {known}, or leave it out.");
            value.reject(Complaint::new(format!("is not the {key} of this token, which is known"), remedy));
            None
        }
        Some(_) | None => Some(written),
    }
}

/// An address with its checksum.
fn address(text: &str) -> Result<Address, Complaint> {
    Address::parse_checked(text).map_err(|why| match why {
        HexError::Checksum => Complaint::new(
            "has letters in upper and lower case that do not fit its checksum: a character is wrong",
            "Copy it again from where it comes from.",
        ),
        HexError::NotHex(_) | HexError::NotBytes => {
            let solana = text.parse::<Key>().is_ok();
            let what = if solana { "is a Solana address, not an EVM address" } else { "is not an EVM address" };
            Complaint::new(what, "Write 0x and 40 hexadecimal digits.")
        }
    })
}

/// Whether an address is that of a contract which is the same on every network.
fn is_contract(address: &Address) -> bool {
    [
        contracts::BATCH_SETTLEMENT,
        contracts::EIP3009_COLLECTOR,
        contracts::PERMIT2_COLLECTOR,
        contracts::PERMIT2,
        contracts::EXACT_PERMIT2_PROXY,
        contracts::UPTO_PERMIT2_PROXY,
        contracts::MULTICALL3,
    ]
    .contains(address)
}

/// Where the money goes. Addresses that nobody can spend from are refused.
fn pay_to_of(value: &Value<'_, '_>, network: &Network, token: Option<&Token>) -> Option<Address> {
    value.parse("an EVM address", |text| {
        let address = address(text)?;
        if address.is_zero() {
            return Err(Complaint::new("is the zero address, from which nobody can spend", PAY_TO_REMEDY));
        }
        let a_token =
            token.is_some_and(|token| token.address == address) || assets::by_address(network, address).is_some();
        if a_token || is_contract(&address) {
            return Err(Complaint::new("is a contract, from which nobody can spend", PAY_TO_REMEDY));
        }
        Ok(address)
    })
}
