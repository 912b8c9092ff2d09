//! Tokens that are known without asking the chain: address, decimals, and the EIP-712 domain that their owners sign
//! under.
//!
//! A wrong row costs nobody money: a domain that is not the token's own makes every authorization fail. Source: the
//! default assets of the reference package (npm's `@x402/evm` 2.27.0), and for the test networks of Avalanche and
//! Polygon the table of `x402-rs/x402-rs`.

use super::TransferMethod::{self, Eip3009, Permit2};
use crate::amount::Asset;
use crate::x402::Network;
use crate::x402::evm::Address;

/// A known token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownAsset {
    /// The chain that it lives on.
    pub chain_id: u64,
    /// The symbol that people read.
    pub symbol: &'static str,
    /// Its contract.
    pub address: Address,
    /// The name in its EIP-712 domain.
    pub name: &'static str,
    /// The version in its EIP-712 domain.
    pub version: &'static str,
    /// How many decimal digits one whole token has.
    pub decimals: u8,
    /// How it moves on a signature.
    pub transfer_method: TransferMethod,
}

impl KnownAsset {
    /// What amounts of it count.
    #[must_use]
    pub fn asset(&self) -> Asset {
        Asset { address: self.address.to_string().into(), symbol: self.symbol.into(), decimals: self.decimals }
    }
}

/// The known token of a network with this symbol, in either case.
#[must_use]
pub fn by_symbol(network: &Network, symbol: &str) -> Option<&'static KnownAsset> {
    on(network).find(|asset| asset.symbol.eq_ignore_ascii_case(symbol))
}

/// The known token of a network at this address.
#[must_use]
pub fn by_address(network: &Network, address: Address) -> Option<&'static KnownAsset> {
    on(network).find(|asset| asset.address == address)
}

/// The known tokens of a network, the usual one first.
pub fn on(network: &Network) -> impl Iterator<Item = &'static KnownAsset> {
    let chain_id = network.chain_id();
    KNOWN.iter().filter(move |asset| Some(asset.chain_id) == chain_id)
}

/// Every known token.
pub const KNOWN: &[KnownAsset] = &[
    of(8453, "USDC", "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913", "USD Coin", "2", 6, Eip3009),
    of(84_532, "USDC", "0x036CbD53842c5426634e7929541eC2318f3dCF7e", "USDC", "2", 6, Eip3009),
    of(1, "USDC", "0xA0b86991c6218b36c1d19D4a2e9Eb0cE3606eB48", "USD Coin", "2", 6, Eip3009),
    of(43_114, "USDC", "0xB97EF9Ef8734C71904D8002F8b6Bc66Dd9c48a6E", "USD Coin", "2", 6, Eip3009),
    of(4326, "MegaUSD", "0xFAfDdbb3FC7688494971a79cc65DCa3EF82079E7", "MegaUSD", "1", 18, Permit2),
    of(143, "USDC", "0x754704Bc059F8C67012fEd69BC8A327a5aafb603", "USDC", "2", 6, Eip3009),
    of(988, "USDT0", "0x779Ded0c9e1022225f8E0630b35a9b54bE713736", "USDT0", "1", 6, Eip3009),
    of(2201, "USDT0", "0x78Cf24370174180738C5B8E352B6D14c83a6c9A9", "USDT0", "1", 6, Eip3009),
    of(137, "USDC", "0x3c499c542cEF5E3811e1192ce70d8cC03d5c3359", "USD Coin", "2", 6, Eip3009),
    of(42_161, "USDC", "0xaf88d065e77c8cC2239327C5EDb3A432268e5831", "USD Coin", "2", 6, Eip3009),
    of(421_614, "USDC", "0x75faf114eafb1BDbe2F0316DF893fd58CE46AA4d", "USD Coin", "2", 6, Eip3009),
    of(31_612, "mUSD", "0xdD468A1DDc392dcdbEf6db6e34E89AA338F9F186", "Mezo USD", "1", 18, Permit2),
    of(31_611, "mUSD", "0x118917a40FAF1CD7a13dB0Ef56C86De7973Ac503", "Mezo USD", "1", 18, Permit2),
    of(723_487, "SBC", "0x33ad9e4BD16B69B5BFdED37D8B5D9fF9aba014Fb", "Stable Coin", "1", 6, Permit2),
    of(72_344, "SBC", "0x33ad9e4BD16B69B5BFdED37D8B5D9fF9aba014Fb", "Stable Coin", "1", 6, Permit2),
    of(36_900, "USDC.e", "0x9cb8142aEBBcdc60AF7c97Af897A67A8f3CA71C2", "USDC.e", "2", 6, Eip3009),
    of(190_415, "USDC.e", "0x401eCb1D350407f13ba348573E5630B83638E30D", "Bridged USDC", "2", 6, Eip3009),
    of(181_228, "USDC.e", "0x401eCb1D350407f13ba348573E5630B83638E30D", "Bridged USDC", "2", 6, Eip3009),
    of(50, "USDC", "0xfA2958CB79b0491CC627c1557F441eF849Ca8eb1", "USDC", "2", 6, Eip3009),
    of(51, "USDC", "0xb5AB69F7bBada22B28e79C8FFAECe55eF1c771D4", "USDC", "2", 6, Eip3009),
    of(38_833, "USDC", "0xA5b8BF902b2844dA17d4506cc827F7F1681735E7", "USDC", "1", 6, Permit2),
    of(14, "USDT0", "0xe7cd86e13AC4309349F30B3435a9d337750fC82D", "USD\u{20AE}0", "1", 6, Eip3009),
    of(42_220, "USDC", "0xcebA9300f2b948710d2653dD7B07f33A8B32118C", "USDC", "2", 6, Eip3009),
    of(42_220, "USDT", "0x48065fbBE25f71C9282ddf5e1cD6D6A887483D5e", "Tether USD", "1", 6, Eip3009),
    of(42_220, "USAT", "0xD2ab3C9A02DBBAB236BfEC45D1d755DF4267F771", "Tether America USD", "1", 6, Eip3009),
    of(11_142_220, "USDC", "0x01C5C0122039549AD1493B8220cABEdD739BC44E", "USDC", "2", 6, Eip3009),
    of(1329, "USDC", "0xe15fC38F6D8c56aF07bbCBe3BAf5708A2Bf42392", "USDC", "2", 6, Eip3009),
    of(1328, "USDC", "0x4fCF1784B31630811181f670Aea7A7bEF803eaED", "USDC", "2", 6, Eip3009),
    of(80_002, "USDC", "0x41E94Eb019C0762f9Bfcf9Fb1E58725BfB0e7582", "USDC", "2", 6, Eip3009),
    of(43_113, "USDC", "0x5425890298aed601595a70AB815c96711a31Bc65", "USD Coin", "2", 6, Eip3009),
];

const fn of(
    chain_id: u64,
    symbol: &'static str,
    address: &str,
    name: &'static str,
    version: &'static str,
    decimals: u8,
    transfer_method: TransferMethod,
) -> KnownAsset {
    KnownAsset { chain_id, symbol, address: Address::literal(address), name, version, decimals, transfer_method }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn tokens_are_found_by_symbol_and_address() {
        let base = Network::eip155(8453);
        let usdc = by_symbol(&base, "usdc").unwrap();
        assert_eq!(usdc.address.to_string(), "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913");
        assert_eq!((usdc.name, usdc.version, usdc.decimals), ("USD Coin", "2", 6));
        assert_eq!(by_address(&base, usdc.address), Some(usdc));
        assert_eq!(by_symbol(&Network::of_short_name("base-sepolia").unwrap(), "USDC").unwrap().name, "USDC");
        assert_eq!(by_symbol(&base, "EURC"), None);
        assert_eq!(on(&crate::x402::network::SOLANA.parse().unwrap()).count(), 0);
        assert_eq!(on(&Network::of_short_name("celo").unwrap()).next().unwrap().symbol, "USDC");
    }

    #[test]
    fn no_token_is_there_twice() {
        let mut seen = HashSet::new();
        for asset in KNOWN {
            assert!(seen.insert((asset.chain_id, asset.address)), "{asset:?}");
            assert!(seen.len() <= KNOWN.len() && asset.asset().decimals <= 18);
        }
    }
}
