//! The words of x402 version 2, and of version 1 in `v1.rs`: wire types, the bounded header codec, network names, keys
//! and reason codes. What a thread made of keys lately is remembered by `recent.rs`.
//!
//! Source: `x402-specification-v2.md` section 5, `transports-v2/http.md`. Nothing here knows a scheme.

pub mod call_pack;
pub mod evm;
pub mod header;
pub mod key;
pub mod network;
pub mod payment_identifier;
pub mod reason;
pub(crate) mod recent;
pub mod v1;
pub mod wire;

use std::fmt;

pub use key::Key;
pub use network::Network;
pub use reason::Reason;

/// An account on whatever network: a payer, a receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Account {
    /// On a Solana-like network.
    Svm(Key),
    /// On an EVM network.
    Evm(evm::Address),
}

impl Account {
    /// Reads an address of either family: base58 of 32 bytes, or `0x` and 40 hexadecimal digits in any case.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let svm = text.parse().ok().map(Self::Svm);
        svm.or_else(|| text.parse().ok().map(Self::Evm))
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Svm(key) => key.fmt(f),
            Self::Evm(address) => address.fmt(f),
        }
    }
}

/// A channel on whatever network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChannelId {
    /// On a Solana-like network: the channel's address.
    Svm(Key),
    /// On an EVM network: the hash of the channel's terms.
    Evm(evm::B256),
}

impl fmt::Display for ChannelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Svm(key) => key.fmt(f),
            Self::Evm(id) => id.fmt(f),
        }
    }
}
