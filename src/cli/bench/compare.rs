//! Side-by-side measurements of the whole proxy, for `turnpike bench`: everything on loopback, each piece a process of
//! its own, contenders taking turns in rounds.
//!
//! Owns what is measured against what. Promises that all contenders of a run answer the same requests over the same
//! number of keep-alive connections, that payments are signed beforehand, that ratios are made within a round and told
//! as their median with the least and the most, and that every process ends with the run. Figures and how to read them:
//! `docs/performance.md`.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Instant;

use ed25519_dalek::{Signer, SigningKey};
use http::Uri;

use super::BenchError;
use super::load::{self, Load, Sample};
use super::peer::Peer;
use super::purse::{EvmPayer, Purse};
use super::report::{Measured, Report};
use super::stage::Stage;
use crate::scheme::evm::signature;
use crate::scheme::svm::program::{VOUCHER_MESSAGE_BYTES, voucher_message};
use crate::scheme::svm::verify_strict;
use crate::x402::Key;
use crate::x402::evm::keccak256;
use crate::x402::key::Signature;

/// What is measured, and how often.
#[derive(Clone, Debug)]
pub struct Plan {
    /// This program.
    pub program: PathBuf,
    /// Where ledgers are kept meanwhile: on the disk whose flushes are to be measured. Must be empty.
    pub place: PathBuf,
    /// Where files are kept in memory only; `None` to leave that comparison out.
    pub memory: Option<PathBuf>,
    /// Keep-alive connections, one request at a time on each.
    pub connections: u32,
    /// Requests on each connection in each round.
    pub requests: usize,
    /// Rounds, after one to warm up.
    pub rounds: usize,
    /// Only contenders whose name holds one of these; all where empty. The yardstick is always there.
    pub only: Vec<String>,
    /// How many channels are many; above 1000.
    pub channels: u64,
    /// Other paywalls to measure.
    pub peers: Vec<Peer>,
}

/// The yardstick's name.
pub const BARE: &str = "bare hyper proxy";
/// About the least that a paid proxy on hyper does.
pub const FLOOR: &str = "bare proxy that checks and records";

/// Who is measured.
pub(super) struct Contender {
    name: String,
    pid: u32,
    address: SocketAddr,
    /// What it is asked, and with which status it answers.
    exchange: (&'static str, u16),
    purses: Vec<Purse>,
    /// Whether it is so slow that a tenth of the requests has to do.
    is_slow: bool,
    samples: Vec<Sample>,
}

impl Contender {
    pub(super) fn of(name: &str, pid: u32, address: SocketAddr, exchange: (&'static str, u16)) -> Self {
        Self { name: name.to_owned(), pid, address, exchange, purses: Vec::new(), is_slow: false, samples: Vec::new() }
    }

    /// The same, with a payment for each request.
    pub(super) fn paying(self, purses: Vec<Purse>) -> Self {
        Self { purses, ..self }
    }

    /// The same, with a tenth of the requests.
    pub(super) fn slow(self) -> Self {
        Self { is_slow: true, ..self }
    }

    /// What it is asked, with its address.
    pub(super) fn uri(&self) -> Result<Uri, BenchError> {
        Ok(format!("http://{}{}", self.address, self.exchange.0).parse()?)
    }

    fn requests(&self, plan: &Plan) -> usize {
        if self.is_slow { plan.requests.div_ceil(10) } else { plan.requests }
    }
}

/// Runs the plan; `progress` is told of each step.
///
/// # Errors
/// [`BenchError`].
pub async fn run(plan: &Plan, progress: &mut (dyn FnMut(&str) + Send)) -> Result<Report, BenchError> {
    let stage = Stage::set_up(plan, progress).await?;
    let Stage { mut contenders, processes, idle_bytes, .. } = stage;
    let mut verified = Vec::new();
    for round in 0..=plan.rounds {
        for turn in 0..contenders.len() {
            let which = (round + turn) % contenders.len();
            let Some(contender) = contenders.get_mut(which) else { continue };
            progress(&format!("round {round} of {}: {}", plan.rounds, contender.name));
            let (path, status) = contender.exchange;
            let requests = contender.requests(plan);
            let mut loads = Vec::new();
            for connection in 0..plan.connections {
                let purse = usize::try_from(connection).ok().and_then(|place| contender.purses.get_mut(place));
                let payments = match purse {
                    Some(purse) => purse.sign(requests).await?,
                    None => Vec::new(),
                };
                loads.push(Load::new(path, requests, &payments));
            }
            let sample = load::run(contender.pid, contender.address, status, loads).await?;
            // The first round warms up.
            if round > 0 {
                contender.samples.push(sample);
            }
        }
        if round > 0 {
            verified.push(Verified::measure()?);
        }
    }
    drop(processes);
    let measured =
        contenders.into_iter().map(|contender| Measured { name: contender.name, samples: contender.samples });
    Ok(Report::new(plan, measured.collect(), &verified, idle_bytes))
}

/// What one signature's check costs, in microseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Verified {
    pub(crate) ed25519: f64,
    pub(crate) evm: f64,
}

impl Verified {
    /// On all processors at once, as the proxies have them: cores that share something are slower then.
    fn measure() -> Result<Self, BenchError> {
        let processors = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let each: Vec<Self> = std::thread::scope(|scope| {
            let running: Vec<_> = (0..processors).map(|_| scope.spawn(Self::measure_alone)).collect();
            let ended = running.into_iter().map(|running| running.join().map_err(|_| "a check panicked")?);
            ended.collect::<Result<_, BenchError>>()
        })?;
        let mean = |of: fn(&Self) -> f64| each.iter().map(of).sum::<f64>() / each.len() as f64;
        Ok(Self { ed25519: mean(|verified| verified.ed25519), evm: mean(|verified| verified.evm) })
    }

    fn measure_alone() -> Result<Self, BenchError> {
        const TIMES: u32 = 2_000;
        let svm = Signed::all();
        let mut evm = Vec::new();
        for (number, signed) in (1..).zip(&svm) {
            let digest = keccak256(&signed.message);
            evm.push((digest, EvmPayer::new([number; 32])?.sign(&digest)));
        }
        let each = |started: Instant| started.elapsed().as_secs_f64() * 1e6 / f64::from(TIMES);
        let times = || (0..TIMES).map(|time| time as usize % svm.len());
        let started = Instant::now();
        let passed = times().all(|at| svm.get(at).is_some_and(Signed::verifies));
        let ed25519 = each(started);
        let started = Instant::now();
        let passed = passed && times().all(|at| evm.get(at).is_some_and(|(d, s)| signature::signer(d, s).is_some()));
        if !passed {
            return Err("a signature of our own does not verify".into());
        }
        Ok(Self { ed25519, evm: each(started) })
    }
}

/// A voucher and its signature.
pub(super) struct Signed {
    key: Key,
    message: [u8; VOUCHER_MESSAGE_BYTES],
    signature: Signature,
}

impl Signed {
    /// Those of 64 keys.
    pub(super) fn all() -> Vec<Self> {
        let signed = |number| {
            let key = SigningKey::from_bytes(&[number; 32]);
            let message = voucher_message(&Key([number; 32]), 1, 0);
            let signature = Signature(key.sign(&message).to_bytes());
            Self { key: Key(key.verifying_key().to_bytes()), message, signature }
        };
        (1..=64).map(signed).collect()
    }

    /// Checks it.
    pub(super) fn verifies(&self) -> bool {
        verify_strict(&self.key, &self.message, &self.signature)
    }
}
