//! `turnpike bench`: the proxy beside a bare one, with payments that were signed beforehand.
//!
//! [`compare`] says who is measured against whom; the benches of the project use its [`load`] and [`pieces`] too.

#![allow(clippy::float_arithmetic, clippy::as_conversions, reason = "measurements, not money")]

pub mod compare;
mod crowd;
mod floor;
pub mod load;
pub mod peer;
pub mod pieces;
mod process;
pub mod purse;
pub mod report;
mod stage;

use std::path::{Path, PathBuf};

use clap::Args as ClapArgs;

use self::compare::Plan;
use self::peer::Peer;
use self::pieces::Piece;
use self::report::IDLE_BYTES_MAX;
use super::output::{Output, Style};
use super::serve::stop_signal;
use super::{Failure, runtime};

/// Why a measurement cannot be made. It is for people, and ends the run.
pub type BenchError = Box<dyn std::error::Error + Send + Sync>;

/// Where Linux keeps files in memory.
const MEMORY: &str = "/dev/shm";
/// How many requests a round has at most; each is prepared, two kilobytes with its payment.
const REQUESTS_MAX: u32 = 500_000;

/// Measures Turnpike side by side with a bare reverse proxy on this machine: throughput, latency, processor time
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Run it on a machine that does nothing else; nginx is measured too where it is installed.\n\nExamples:\n  turnpike bench\n  turnpike bench --rounds 9 --connections 32\n  turnpike bench --only free --only 402 --requests 2000\n  turnpike bench --peer 'reference=node benches/peers/reference.mjs'\n  turnpike bench --json > figures.json"
)]
pub struct Args {
    /// Rounds, after one to warm up
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// Keep-alive connections, one request at a time on each
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1024))]
    connections: u32,
    /// Requests on each connection in each round
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    requests: u32,
    /// Only contenders whose name holds this, beside the bare proxy; may be repeated
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// Channels that Turnpike knows in the comparison of many with 1000
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(2_000..=10_000_000))]
    channels: u64,
    /// Another paywall: what to call it, and the command that serves it; may be repeated
    #[arg(long, value_name = "NAME=COMMAND")]
    peer: Vec<Peer>,
    /// Where ledgers are kept meanwhile, in a directory of their own: on the disk whose flushes count
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,
    /// The result as JSON instead of tables
    #[arg(long)]
    json: bool,
    /// Serves as one of the other pieces
    #[arg(long, hide = true)]
    piece: Option<Piece>,
}

/// Runs the command.
///
/// # Errors
/// [`Failure`].
pub fn run(args: Args, output: &mut Output) -> Result<(), Failure> {
    if let Some(piece) = args.piece {
        return piece.serve(|address| output.line(format_args!("listening on {address}"))).map_err(Failure::failed);
    }
    if args.connections.saturating_mul(args.requests) > REQUESTS_MAX {
        return Err(Failure::unusable(format_args!(
            "{} connections with {} requests on each are more than the {REQUESTS_MAX} that are prepared for a round; \
             lower one of them",
            args.connections, args.requests
        )));
    }
    let place = Place::make(&args.dir)?;
    let memory = Place::make(Path::new(MEMORY)).ok();
    let plan = Plan {
        program: std::env::current_exe()?,
        place: place.0.clone(),
        memory: memory.as_ref().map(|place| place.0.clone()),
        connections: args.connections,
        requests: usize::try_from(args.requests).map_err(Failure::unusable)?,
        rounds: usize::from(args.rounds),
        only: args.only,
        channels: args.channels,
        peers: args.peer,
    };
    let mut progress = |step: &str| output.progress(step);
    let report = runtime()?.block_on(async {
        tokio::select! {
            biased;
            // What was started and written ends with what is dropped here, which a signal by itself would not do.
            stopped = stop_signal() => Err(stopped.err().unwrap_or_else(|| Failure::failed("stopped by a signal"))),
            report = compare::run(&plan, &mut progress) => report.map_err(Failure::failed),
        }
    });
    output.progress("");
    let report = report?;
    if args.json {
        output.line(serde_json::to_string(&report).map_err(Failure::failed)?);
        return Ok(());
    }
    output.line(output.styled(Style::Dim, &report.machine));
    let (connections, requests, rounds) = (report.connections, report.requests, report.rounds);
    output.line(format_args!(
        "{connections} connections, {requests} requests on each in a round; median of {rounds} rounds (least-most)"
    ));
    output.heading("Requests");
    output.table(&report.rows());
    let (ed25519, evm) = report.verification;
    output.line(format_args!("  one signature's check: Ed25519 {:.1} us, EVM {:.1} us", ed25519.median, evm.median));
    output.heading("Ratios, made within each round");
    output.table(&report.ratio_rows());
    if let Some(bytes) = report.idle_channel_bytes {
        output.line(format_args!(
            "  an idle channel: {bytes:.0} bytes of resident memory, at most {IDLE_BYTES_MAX:.0} are meant"
        ));
    }
    Ok(())
}

/// A directory that goes with the run.
struct Place(PathBuf);

impl Place {
    fn make(parent: &Path) -> Result<Self, Failure> {
        let place = parent.join(format!("turnpike-bench-{}", std::process::id()));
        std::fs::create_dir(&place).map_err(|error| {
            Failure::unusable(format_args!("{}: {error}; name a directory with --dir", place.display()))
        })?;
        Ok(Self(std::path::absolute(place)?))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _left = std::fs::remove_dir_all(&self.0);
    }
}
