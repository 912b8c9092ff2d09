//! `turnpike sandbox`: the sandbox chain by itself, for a proxy and clients in processes of their own.

use std::net::SocketAddr;

use clap::Args as ClapArgs;

use super::output::Output;
use super::{Failure, runtime};
use crate::chain::sandbox::{Options, Sandbox};
use crate::x402::{Key, Network, network};

/// Lamports that `--fund` gives: ten SOL.
const FUND_LAMPORTS: u64 = 10_000_000_000;
/// Atomic units of USDC that `--fund` gives: a thousand dollars.
const FUND_UNITS: u64 = 1_000_000_000;

/// Runs a Solana-like chain in memory and answers Solana's JSON-RPC until interrupted. Worth nothing, needs nothing.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Examples:\n  turnpike sandbox\n  turnpike sandbox --fund 7EcDhSYGxXyscszYEp35KHN8vvw3svAuLKTzXwCFLtV\n\nThen, in turnpike.yaml: network: solana-devnet, rpc_url: http://127.0.0.1:8899"
)]
pub struct Args {
    /// Where to answer; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:8899")]
    listen: SocketAddr,
    /// The network that it presents itself as: solana, solana-devnet, solana-testnet or a CAIP-2 name
    #[arg(long, default_value = "solana-devnet")]
    present_as: String,
    /// An address that starts with 10 SOL, 1,000 USDC and a token account; may be given several times
    #[arg(long, value_name = "ADDRESS")]
    fund: Vec<Key>,
}

/// Runs the command.
///
/// # Errors
/// [`Failure`].
pub fn run(args: &Args, output: &mut Output) -> Result<(), Failure> {
    let network = match args.present_as.as_str() {
        "solana" => network::SOLANA,
        "solana-devnet" => network::SOLANA_DEVNET,
        "solana-testnet" => network::SOLANA_TESTNET,
        other => other,
    };
    let network: Network = network.parse().map_err(|error| Failure::unusable(format_args!("--present-as: {error}")))?;
    runtime()?.block_on(async {
        let options = Options { listen: args.listen, ..Options::new(network.clone()) };
        let sandbox = Sandbox::start(options)
            .await
            .map_err(|error| Failure::failed(format_args!("--listen {}: {error}", args.listen)))?;
        for address in &args.fund {
            sandbox.chain().airdrop(address, FUND_LAMPORTS).map_err(Failure::failed)?;
            sandbox.chain().mint_to(address, FUND_UNITS).map_err(Failure::failed)?;
            output.done(format_args!("{address} holds 10 SOL and 1,000 USDC"));
        }
        output.line(format_args!(
            "sandbox chain {network} answers on {}; Ctrl-C ends it and forgets everything",
            sandbox.rpc_url()
        ));
        super::serve::stop_signal().await
    })
}
