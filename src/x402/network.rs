//! Networks by their CAIP-2 names.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Solana's main cluster.
pub const SOLANA: &str = "solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp";
/// Solana's development cluster.
pub const SOLANA_DEVNET: &str = "solana:EtWTRABZaYq6iMfeYKouRu166VU2xqa1";
/// Solana's test cluster.
pub const SOLANA_TESTNET: &str = "solana:4uhcVJyU9pJkvQyS88uRDiswHXSCkY3z";

/// Networks of the EVM: the short name that configuration and version 1 of the protocol use, and the chain's id.
///
/// The names of the reference packages (`EVM_NETWORK_CHAIN_ID_MAP` of npm's `@x402/evm`) and of chains that have a
/// known asset.
pub const EVM_NETWORKS: &[(&str, u64)] = &[
    ("ethereum", 1),
    ("sepolia", 11_155_111),
    ("base", 8453),
    ("base-sepolia", 84_532),
    ("polygon", 137),
    ("polygon-amoy", 80_002),
    ("arbitrum", 42_161),
    ("arbitrum-sepolia", 421_614),
    ("optimism", 10),
    ("optimism-sepolia", 11_155_420),
    ("avalanche", 43_114),
    ("avalanche-fuji", 43_113),
    ("abstract", 2741),
    ("abstract-testnet", 11_124),
    ("celo", 42_220),
    ("celo-sepolia", 11_142_220),
    ("educhain", 41_923),
    ("flare", 14),
    ("iotex", 4689),
    ("megaeth", 4326),
    ("monad", 143),
    ("peaq", 3338),
    ("sei", 1329),
    ("sei-testnet", 1328),
    ("skale-base-sepolia", 324_705_682),
    ("stable", 988),
    ("stable-testnet", 2201),
    ("story", 1514),
    ("xdc", 50),
    ("xdc-apothem", 51),
];

/// A network's CAIP-2 name: a namespace of 3 to 8 characters, a colon, a reference of 1 to 32.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Network(Arc<str>);

impl Network {
    /// The whole name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The part before the colon: `solana`, `eip155`.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.0.split_once(':').map_or("", |(namespace, _)| namespace)
    }

    /// Whether this is a Solana-like network.
    #[must_use]
    pub fn is_solana(&self) -> bool {
        self.namespace() == "solana"
    }

    /// The network of the EVM with this chain id.
    #[must_use]
    pub fn eip155(chain_id: u64) -> Self {
        Self(format!("eip155:{chain_id}").into())
    }

    /// The network of the EVM with this short name, such as `base-sepolia`.
    #[must_use]
    pub fn of_short_name(name: &str) -> Option<Self> {
        EVM_NETWORKS.iter().find(|(short, _)| *short == name).map(|(_, chain_id)| Self::eip155(*chain_id))
    }

    /// The short name of a network of the EVM, where it has one.
    #[must_use]
    pub fn short_name(&self) -> Option<&'static str> {
        let chain_id = self.chain_id()?;
        EVM_NETWORKS.iter().find(|(_, id)| *id == chain_id).map(|(short, _)| *short)
    }

    /// Whether this is a network of the EVM, `eip155:` and a chain id.
    #[must_use]
    pub fn is_evm(&self) -> bool {
        self.chain_id().is_some()
    }

    /// The chain id of a network of the EVM. One that is not written as the number itself names no chain.
    #[must_use]
    pub fn chain_id(&self) -> Option<u64> {
        let digits = self.0.strip_prefix("eip155:")?;
        let plain = digits.bytes().all(|b| b.is_ascii_digit()) && !digits.starts_with('0');
        plain.then(|| digits.parse().ok()).flatten()
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The text is not a CAIP-2 chain id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a CAIP-2 network name such as {SOLANA}")]
pub struct NetworkError;

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let (namespace, reference) = text.split_once(':').ok_or(NetworkError)?;
        let lower = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        let valid = (3..=8).contains(&namespace.len())
            && namespace.bytes().all(lower)
            && (1..=32).contains(&reference.len())
            && reference.bytes().all(plain);
        if valid { Ok(Self(text.into())) } else { Err(NetworkError) }
    }
}

impl Serialize for Network {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn an_evm_network_has_a_chain_id_written_in_one_way() {
        let chain_id = |text: &str| text.parse::<Network>().unwrap().chain_id();
        assert_eq!(chain_id("eip155:8453"), Some(8453));
        assert_eq!(chain_id("eip155:18446744073709551615"), Some(u64::MAX));
        let others = ["eip155:08453", "eip155:0", "eip155:18446744073709551616", "eip155:base", "eip155:-1", SOLANA];
        for other in others {
            assert_eq!(chain_id(other), None, "{other}");
            assert!(!other.parse::<Network>().unwrap().is_evm(), "{other}");
        }
    }

    #[test]
    fn short_names_and_chain_ids_are_one_to_one() {
        let mut seen = HashSet::new();
        for (name, chain_id) in EVM_NETWORKS {
            let network = Network::of_short_name(name).unwrap();
            assert_eq!(network.as_str(), format!("eip155:{chain_id}"));
            assert_eq!(network.to_string().parse(), Ok(network.clone()), "a CAIP-2 name");
            assert_eq!(network.chain_id(), Some(*chain_id));
            assert_eq!(network.short_name(), Some(*name));
            assert!(seen.insert(chain_id), "{name}");
        }
        assert_eq!(Network::of_short_name("basis"), None);
        assert_eq!(Network::eip155(7).short_name(), None);
    }
}
