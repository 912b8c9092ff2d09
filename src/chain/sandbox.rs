//! A Solana-like chain inside the process, for demonstrations, development and tests.
//!
//! Executes real transactions, checks what a cluster checks (signatures, blockhashes, duplicates, fees, rent, who may
//! change what) and runs the programs that x402 payments need, the payment-channels program among them. It can be told
//! to fail the way networks and nodes fail ([`Faults`]). Everything lives in memory and, with a manual clock, one seed
//! gives one history.
//!
//! [`SandboxChain`] is the chain itself and answers without a socket; [`Sandbox`] serves one over HTTP on loopback.
//!
//! What differs from a cluster: a transaction is executed when it is sent, is confirmed at once and final after 32
//! slots; reads answer the present state at every commitment; Lighthouse assertions are accepted unread; there are no
//! Token-2022 extensions, no lookup tables, no votes, no subscriptions; compute units are nominal.

mod accounts;
mod bank;
mod control;
mod faults;
mod history;
mod port;
mod programs;
mod rpc;
mod runtime;

use std::fmt;
use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::Arc;

use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use bank::Bank;

pub use control::SandboxError;
pub use faults::{Faults, InjectedFailure, RpcFault};
pub use rpc::RpcError;

use crate::clock::{Clock, SystemClock};
use crate::scheme::svm::{self, TOKEN_PROGRAM, USDC_DEVNET, USDC_MAINNET};
use crate::x402::{Key, Network, network};

/// How a sandbox starts.
#[derive(Clone, Debug)]
pub struct Options {
    /// The network that it presents itself as: decides which mint is USDC and who owns the treasury.
    pub network: Network,
    /// What its slots and its time follow.
    pub clock: Arc<dyn Clock>,
    /// Where everything that would be random comes from.
    pub seed: u64,
    /// Where [`Sandbox::start`] listens. Port 0 takes a free one. Whoever reaches it can make money and faults, so
    /// anything but loopback belongs behind a wall.
    pub listen: SocketAddr,
}

impl Options {
    /// A sandbox that presents itself as `network`, on the machine's clock and a free loopback port.
    #[must_use]
    pub fn new(network: Network) -> Self {
        Self { network, clock: Arc::new(SystemClock), seed: 0, listen: SocketAddr::from(([127, 0, 0, 1], 0)) }
    }

    /// The same on another clock.
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// The same with another seed.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }
}

/// The chain within the process. Its copies are one chain.
#[derive(Clone)]
pub struct SandboxChain {
    shared: Arc<Shared>,
}

struct Shared {
    network: Network,
    usdc: Key,
    treasury_owner: Key,
    bank: Mutex<Bank>,
}

impl fmt::Debug for SandboxChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SandboxChain").field("network", &self.shared.network).finish_non_exhaustive()
    }
}

impl SandboxChain {
    /// A chain with a USDC mint of six decimals and the treasury's token account.
    #[must_use]
    pub fn new(options: Options) -> Self {
        let Options { network, clock, seed, listen: _ } = options;
        let usdc = if network.as_str() == network::SOLANA { USDC_MAINNET } else { USDC_DEVNET };
        let treasury_owner = svm::treasury_owner(&network);
        let bank = Bank::new(genesis_hash(&network), seed, treasury_owner, clock);
        let chain = Self { shared: Arc::new(Shared { network, usdc, treasury_owner, bank: Mutex::new(bank) }) };
        chain.put_mint(usdc, 6, TOKEN_PROGRAM, None);
        chain
    }

    /// The network that it presents itself as.
    #[must_use]
    pub fn network(&self) -> &Network {
        &self.shared.network
    }

    /// The mint of its USDC.
    #[must_use]
    pub fn usdc(&self) -> Key {
        self.shared.usdc
    }

    /// Who owns the treasury that the payment-channels program insists on.
    #[must_use]
    pub fn treasury_owner(&self) -> Key {
        self.shared.treasury_owner
    }

    fn with<T>(&self, work: impl FnOnce(&mut Bank) -> T) -> T {
        work(&mut self.shared.bank.lock())
    }
}

/// A genesis hash whose text begins as the network's CAIP-2 reference does, and is not the real network's.
fn genesis_hash(network: &Network) -> [u8; 32] {
    let reference = network.as_str().split_once(':').map_or("", |(_, reference)| reference);
    for ending in ["Sandbox11111", "Sandbox1111"] {
        let text = format!("{reference}{ending}");
        let mut bytes = [0; 32];
        if text.len() >= 43 && bs58::decode(text).onto(&mut bytes) == Ok(32) {
            return bytes;
        }
    }
    Sha256::digest(network.as_str()).into()
}

/// A chain that is served over HTTP until it is dropped.
///
/// Everything that [`SandboxChain`] can be told, it can be told too.
#[derive(Debug)]
pub struct Sandbox {
    chain: SandboxChain,
    address: SocketAddr,
    rpc_url: String,
    /// Its end stops the server.
    _stop: oneshot::Sender<()>,
}

impl Sandbox {
    /// Starts a chain and serves Solana's JSON-RPC on the runtime that this is called on.
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub async fn start(options: Options) -> Result<Self, std::io::Error> {
        let listener = TcpListener::bind(options.listen).await?;
        let address = listener.local_addr()?;
        let chain = SandboxChain::new(options);
        let (stop, stopped) = oneshot::channel();
        tokio::spawn(rpc::server::serve(listener, chain.clone(), stopped));
        Ok(Self { chain, address, rpc_url: format!("http://{address}"), _stop: stop })
    }

    /// Where it answers, such as `http://127.0.0.1:41234`.
    #[must_use]
    pub fn rpc_url(&self) -> &str {
        &self.rpc_url
    }

    /// The address that it listens on.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The chain, for whoever wants it without HTTP.
    #[must_use]
    pub const fn chain(&self) -> &SandboxChain {
        &self.chain
    }
}

impl Deref for Sandbox {
    type Target = SandboxChain;

    fn deref(&self) -> &SandboxChain {
        &self.chain
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_genesis_hash_begins_as_the_network_s_name_does() {
        for name in [network::SOLANA, network::SOLANA_DEVNET, network::SOLANA_TESTNET] {
            let hash = Key(genesis_hash(&name.parse().unwrap())).to_string();
            assert_eq!(format!("solana:{}", &hash[..32]), name);
            assert!(hash.contains("Sandbox"), "{hash} can be told from the real network's");
        }
        assert_ne!(genesis_hash(&"solana:sandbox".parse().unwrap()), [0; 32]);
    }
}
