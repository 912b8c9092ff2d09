//! A Solana network, or the sandbox.

use std::sync::Arc;

use super::super::reader::{Complaint, Map, Value};
use super::super::{Family, NetworkConfig, SandboxConfig, SvmConfig, facilitator};
use super::{Cosigned, CosignedFamily, DECIMALS_MAX, Named, Networks, named, rpc_urls, several, symbol};
use crate::amount::Asset;
use crate::scheme::svm::{
    ATA_PROGRAM, PAYMENT_CHANNELS, SYSTEM_PROGRAM, TOKEN_2022_PROGRAM, TOKEN_PROGRAM, USDC_DEVNET, USDC_MAINNET,
};
use crate::x402::network::{SOLANA, SOLANA_DEVNET, SOLANA_TESTNET};
use crate::x402::{Key, Network};

const PAY_TO_REMEDY: &str = "Write the Solana address that the money goes to.";

/// The sandbox: USDC of its own, on a chain of its own.
pub(super) fn sandbox(root: &mut Map<'_, '_>) -> Option<Networks> {
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
    only_local(root, &network);
    let rpc_listen = rpc_listen?.unwrap_or_else(|| ([127, 0, 0, 1], 8899).into());
    let pay_to = pay_to.map_or(Some(None), |key| key.map(Some))?;
    let network = usdc(&USDC_DEVNET).at(network, pay_to, Vec::new());
    Some(Networks { networks: vec![network], sandbox: Some(SandboxConfig { rpc_listen }) })
}

/// The test network that the sandbox looks like to clients.
fn present_as(value: &Value<'_, '_>) -> Option<Network> {
    value.parse("a test network such as solana-devnet", |text| match named(text)? {
        Named::Svm(network) if network.as_str() != SOLANA => Ok(network),
        _ => Err(Complaint::new("cannot be played by the sandbox", "Write solana-devnet or solana-testnet.")),
    })
}

/// A network for prices to be checked against where the file's own are wrong: as if they were in USDC.
pub(in super::super) fn stand_in() -> Option<NetworkConfig> {
    Some(usdc(&USDC_DEVNET).at(SOLANA_DEVNET.parse().ok()?, None, Vec::new()))
}

/// What belongs to a network that is not the sandbox.
pub(super) fn read(map: &mut Map<'_, '_>, network: Network) -> Option<NetworkConfig> {
    only_local(map, &network);
    let pay_to = map.require("pay_to", PAY_TO_REMEDY).and_then(|value| pay_to(&value));
    let remedy = "Write the URL of a Solana JSON-RPC endpoint, or a list of several.";
    let rpc_urls = map.require("rpc_url", remedy).and_then(|value| rpc_urls(&value));
    let token = token(map, &network);
    Some(token?.at(network, Some(pay_to?), rpc_urls?))
}

/// What a cosigner knows of a Solana network.
pub(super) fn cosigned(map: &mut Map<'_, '_>, network: Network) -> Option<Cosigned> {
    let pay_to = map.require("pay_to", PAY_TO_REMEDY).and_then(|value| several(&value, pay_to));
    let token = token(map, &network);
    let (Token { asset, mint, token_program }, pay_to) = (token?, pay_to?);
    Some(Cosigned { network, asset, family: CosignedFamily::Svm { mint, token_program, pay_to } })
}

/// `asset`, or the network's USDC.
fn token(map: &mut Map<'_, '_>, network: &Network) -> Option<Token> {
    let usdc_here = match network.as_str() {
        SOLANA => Some(USDC_MAINNET),
        SOLANA_DEVNET | SOLANA_TESTNET => Some(USDC_DEVNET),
        _ => None,
    };
    match (map.take("asset"), usdc_here) {
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
        (None, Some(mint)) => Some(usdc(&mint)),
        (None, None) => {
            if !map.has("asset") {
                let _ = map.require("asset", "The USDC of this network is not known: write {mint, symbol, decimals}.");
            }
            None
        }
    }
}

/// This process is the facilitator of Solana networks, with the signer's key; what says more of it would do nothing.
fn only_local(map: &mut Map<'_, '_>, network: &Network) {
    map.take("facilitator").map(|value| facilitator::read(&value, Some(network)));
    for key in ["gas_key", "gas_key_file", "max_fee_gwei", "gas_token_price"] {
        map.inert(key, "on a Solana network, where the signer's key pays the fees", "Leave it out.");
    }
    map.inert("confirmations", "on a Solana network, whose own commitment is waited for", "Leave it out.");
    let why = "on a Solana network: a fixed price is paid by batch-settlement there, a metered one by upto";
    map.inert("schemes", why, "Leave it out.");
}

/// A token with its programs.
struct Token {
    asset: Arc<Asset>,
    mint: Key,
    token_program: Key,
}

impl Token {
    fn at(self, network: Network, pay_to: Option<Key>, rpc_urls: Vec<super::RpcUrl>) -> NetworkConfig {
        let Self { asset, mint, token_program } = self;
        NetworkConfig { network, asset, family: Family::Svm(SvmConfig { mint, token_program, pay_to, rpc_urls }) }
    }
}

fn usdc(mint: &Key) -> Token {
    let asset = Asset { address: mint.to_string().into(), symbol: "USDC".into(), decimals: 6 };
    Token { asset: Arc::new(asset), mint: *mint, token_program: TOKEN_PROGRAM }
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
