//! Another paywall to be measured beside ours: a command that whoever measures names.
//!
//! It is told by its environment what it stands in front of, and says where it listens:
//!
//! | variable | |
//! |---|---|
//! | `BENCH_UPSTREAM` | the upstream's URL |
//! | `BENCH_FACILITATOR` | the facilitator's URL; to it every channel is full |
//! | `BENCH_NETWORK` | the network, by its CAIP-2 name |
//! | `BENCH_PAY_TO` | who is paid |
//! | `BENCH_ASSET` | the token |
//!
//! It sells `/paid` by `batch-settlement`, and prints `listening on ADDRESS` on a line of its own.

use std::net::SocketAddr;
use std::process::Command;
use std::str::FromStr;

use super::BenchError;
use super::process::Process;
use super::stage::PAY_TO;
use crate::scheme::evm::assets;
use crate::x402::Network;

/// A paywall to be measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// What it is called in the tables.
    pub name: String,
    command: Vec<String>,
}

impl FromStr for Peer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, command) = text.split_once('=').ok_or("NAME=COMMAND")?;
        let command: Vec<String> = command.split_whitespace().map(str::to_owned).collect();
        if name.is_empty() || command.is_empty() {
            return Err("NAME=COMMAND".to_owned());
        }
        Ok(Self { name: name.to_owned(), command })
    }
}

impl Peer {
    /// Starts it, and waits until it listens.
    ///
    /// # Errors
    /// [`BenchError`].
    pub(super) fn start(
        &self,
        upstream: SocketAddr,
        facilitator: SocketAddr,
        network: &Network,
    ) -> Result<(Process, SocketAddr), BenchError> {
        let (program, arguments) = self.command.split_first().ok_or("a peer needs a command")?;
        let token = assets::by_symbol(network, "USDC").ok_or("no USDC is known on the network")?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env("BENCH_UPSTREAM", format!("http://{upstream}"))
            .env("BENCH_FACILITATOR", format!("http://{facilitator}"))
            .env("BENCH_NETWORK", network.as_str())
            .env("BENCH_PAY_TO", PAY_TO)
            .env("BENCH_ASSET", token.address.to_string());
        let mut process = Process::start(&mut command)?;
        let address = process.wait_for("an address", |line| line.strip_prefix("listening on ")?.parse().ok())?;
        Ok((process, address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_has_a_name_and_a_command() {
        let peer: Peer = "reference=node server.mjs".parse().unwrap();
        assert_eq!(
            (peer.name.as_str(), &peer.command[..]),
            ("reference", &["node".to_owned(), "server.mjs".to_owned()][..])
        );
        for text in ["", "reference", "=node", "reference= "] {
            assert!(text.parse::<Peer>().is_err(), "{text}");
        }
    }
}
