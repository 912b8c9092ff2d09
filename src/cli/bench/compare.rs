//! Side-by-side measurements of the whole proxy, for `turnpike bench`: everything on loopback, each piece a process of
//! its own, contenders taking turns in rounds.
//!
//! Owns what is measured against what. Promises that all contenders of a run answer the same requests over the same
//! number of keep-alive connections, that payments are signed beforehand, that ratios are made within a round and told
//! as their median with the least and the most, and that every process ends with the run. Figures and how to read them:
//! `docs/performance.md`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use ed25519_dalek::{Signer, SigningKey};

use super::BenchError;
use super::load::{self, Load, Sample};
use super::pieces::Piece;
use super::process::Process;
use super::purse::{EvmPayer, Purse};
use super::report::{Measured, Report};
use crate::scheme::evm::signature;
use crate::scheme::svm::program::voucher_message;
use crate::scheme::svm::verify_strict;
use crate::x402::evm::keccak256;
use crate::x402::key::Signature;
use crate::x402::{Key, Network};

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
}

/// The yardstick's name.
pub const BARE: &str = "bare hyper proxy";

/// Who is measured.
struct Contender {
    name: &'static str,
    pid: u32,
    address: SocketAddr,
    /// What it is asked, and with which status it answers.
    exchange: (&'static str, u16),
    purses: Vec<Purse>,
    samples: Vec<Sample>,
}

const FREE: (&str, u16) = ("/free", 200);
const UNPAID: (&str, u16) = ("/paid", 402);
const PAID: (&str, u16) = ("/paid", 200);

impl Contender {
    fn of(name: &'static str, pid: u32, address: SocketAddr, exchange: (&'static str, u16)) -> Self {
        Self { name, pid, address, exchange, purses: Vec::new(), samples: Vec::new() }
    }
}

/// Runs the plan; `progress` is told of each step.
///
/// # Errors
/// [`BenchError`].
pub async fn run(plan: &Plan, progress: &mut (dyn FnMut(&str) + Send)) -> Result<Report, BenchError> {
    let mut stage = Stage { plan, processes: Vec::new(), contenders: Vec::new() };
    stage.set_up(progress).await?;
    let Stage { mut contenders, processes, .. } = stage;
    let mut verified = Vec::new();
    for round in 0..=plan.rounds {
        for turn in 0..contenders.len() {
            let which = (round + turn) % contenders.len();
            let Some(contender) = contenders.get_mut(which) else { continue };
            progress(&format!("round {round} of {}: {}", plan.rounds, contender.name));
            let (path, status) = contender.exchange;
            let mut loads = Vec::new();
            for connection in 0..plan.connections {
                let purse = usize::try_from(connection).ok().and_then(|place| contender.purses.get_mut(place));
                let payments = match purse {
                    Some(purse) => purse.sign(plan.requests).await?,
                    None => Vec::new(),
                };
                loads.push(Load::new(path, plan.requests, &payments));
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
    Ok(Report::new(plan, measured.collect(), &verified))
}

/// What one signature's check costs, in microseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Verified {
    pub(crate) ed25519: f64,
    pub(crate) evm: f64,
}

impl Verified {
    fn measure() -> Result<Self, BenchError> {
        const KEYS: u8 = 64;
        const TIMES: u32 = 2_000;
        let mut svm = Vec::new();
        let mut evm = Vec::new();
        for number in 1..=KEYS {
            let key = SigningKey::from_bytes(&[number; 32]);
            let message = voucher_message(&Key([number; 32]), 1, 0);
            let signature = Signature(key.sign(&message).to_bytes());
            svm.push((Key(key.verifying_key().to_bytes()), message, signature));
            let digest = keccak256(&message);
            evm.push((digest, EvmPayer::new([number; 32])?.sign(&digest)));
        }
        let each = |started: Instant| started.elapsed().as_secs_f64() * 1e6 / f64::from(TIMES);
        let times = || (0..TIMES).map(|time| time as usize % usize::from(KEYS));
        let started = Instant::now();
        let passed = times().all(|at| svm.get(at).is_some_and(|(key, message, s)| verify_strict(key, message, s)));
        let ed25519 = each(started);
        let started = Instant::now();
        let passed = passed && times().all(|at| evm.get(at).is_some_and(|(d, s)| signature::signer(d, s).is_some()));
        if !passed {
            return Err("a signature of our own does not verify".into());
        }
        Ok(Self { ed25519, evm: each(started) })
    }
}

/// What is running.
struct Stage<'p> {
    plan: &'p Plan,
    processes: Vec<Process>,
    contenders: Vec<Contender>,
}

impl Stage<'_> {
    async fn set_up(&mut self, progress: &mut (dyn FnMut(&str) + Send)) -> Result<(), BenchError> {
        progress("starting the upstream and the yardstick");
        let (_, upstream) = self.piece(&Piece::Upstream)?;
        let (pid, bare) = self.piece(&Piece::Bare(upstream))?;
        self.contenders.push(Contender::of(BARE, pid, bare, FREE));
        let nginx = "nginx, plain proxy";
        if self.wants(nginx) && has_nginx() {
            progress("starting nginx");
            let (pid, address) = self.nginx(upstream)?;
            self.contenders.push(Contender::of(nginx, pid, address, FREE));
        }
        self.sandbox(upstream, progress).await?;
        self.evm(upstream, progress).await
    }

    /// The contenders on the sandbox.
    async fn sandbox(
        &mut self,
        upstream: SocketAddr,
        progress: &mut (dyn FnMut(&str) + Send),
    ) -> Result<(), BenchError> {
        let (free, unpaid, paid) = ("Turnpike, free route", "Turnpike, unpaid: 402", "Turnpike, paid, Ed25519");
        let in_memory = "Turnpike, paid, Ed25519, ledger in memory";
        if [free, unpaid, paid].iter().any(|name| self.wants(name)) {
            progress("starting Turnpike on a sandbox, and opening channels");
            let ours = self.turnpike("sandbox", &self.plan.place.clone(), &sandbox_config(upstream))?;
            if self.wants(free) {
                self.contenders.push(Contender::of(free, ours.pid, ours.address, FREE));
            }
            if self.wants(unpaid) {
                self.contenders.push(Contender::of(unpaid, ours.pid, ours.address, UNPAID));
            }
            if self.wants(paid) {
                let purses = self.sandbox_purses(&ours).await?;
                self.contenders.push(Contender { purses, ..Contender::of(paid, ours.pid, ours.address, PAID) });
            }
        }
        if let Some(memory) = self.plan.memory.clone().filter(|_| self.wants(in_memory)) {
            let ours = self.turnpike("memory", &memory, &sandbox_config(upstream))?;
            let purses = self.sandbox_purses(&ours).await?;
            self.contenders.push(Contender { purses, ..Contender::of(in_memory, ours.pid, ours.address, PAID) });
        }
        Ok(())
    }

    async fn sandbox_purses(&self, ours: &Ours) -> Result<Vec<Purse>, BenchError> {
        let rpc_url = ours.rpc_url.as_deref().ok_or("the sandbox has no RPC")?;
        let mut purses = Vec::new();
        for number in 1..=self.plan.connections {
            purses.push(Purse::svm(number, rpc_url, format!("http://{}/paid", ours.address).parse()?).await?);
        }
        Ok(purses)
    }

    /// The contender on an EVM network.
    async fn evm(&mut self, upstream: SocketAddr, progress: &mut (dyn FnMut(&str) + Send)) -> Result<(), BenchError> {
        let paid = "Turnpike, paid, EVM";
        if !self.wants(paid) {
            return Ok(());
        }
        progress("making an EVM key between three shares: some seconds");
        let network = Network::eip155(84_532);
        let (_, facilitator) = self.piece(&Piece::Facilitator(network))?;
        let place = self.plan.place.join("evm");
        std::fs::create_dir_all(place.join("passphrases"))?;
        let made = Command::new(&self.plan.program)
            .args(["keygen", "--curve", "secp256k1", "--out", "shares", "--generate-passphrases", "passphrases"])
            .current_dir(&place)
            .output()?;
        if !made.status.success() {
            return Err(format!("keygen: {}", String::from_utf8_lossy(&made.stderr)).into());
        }
        let configuration = format!(
            "upstream: http://{upstream}\nnetwork: base-sepolia\npay_to: '0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC'\n\
             facilitator: http://{facilitator}\nstore: {{ path: turnpike.db }}\n\
             signer:\n  evm_shares:\n    - {{ file: shares/evm-share-1.json, passphrase_file: passphrases/evm-passphrase-1.txt }}\n    \
             - {{ file: shares/evm-share-2.json, passphrase_file: passphrases/evm-passphrase-2.txt }}\n\
             routes:\n  - {{ path: /paid, price: '$0.000001' }}"
        );
        let ours = self.turnpike("evm", &self.plan.place.clone(), &configuration)?;
        let mut purses = Vec::new();
        for number in 1..=self.plan.connections {
            purses.push(Purse::evm(number, format!("http://{}/paid", ours.address).parse()?).await?);
        }
        self.contenders.push(Contender { purses, ..Contender::of(paid, ours.pid, ours.address, PAID) });
        Ok(())
    }

    fn wants(&self, name: &str) -> bool {
        self.plan.only.is_empty() || self.plan.only.iter().any(|part| name.contains(part.as_str()))
    }

    fn piece(&mut self, piece: &Piece) -> Result<(u32, SocketAddr), BenchError> {
        let mut command = Command::new(&self.plan.program);
        command.args(["bench", "--piece", &piece.argument()]);
        let mut process = Process::start(&mut command)?;
        let address = process.wait_for("an address", |line| line.strip_prefix("listening on ")?.parse().ok())?;
        let pid = process.id();
        self.processes.push(process);
        Ok((pid, address))
    }

    fn turnpike(&mut self, name: &str, place: &Path, configuration: &str) -> Result<Ours, BenchError> {
        let place = place.join(name);
        std::fs::create_dir_all(&place)?;
        let text = format!(
            "{configuration}\nlisten: 127.0.0.1:0\nadmin: {{ listen: '127.0.0.1:0' }}\nlog: {{ format: json, level: info }}\n"
        );
        std::fs::write(place.join("turnpike.yaml"), text)?;
        let mut command = Command::new(&self.plan.program);
        command.args(["serve", "turnpike.yaml"]).current_dir(&place);
        let mut process = Process::start(&mut command)?;
        let ready = process.wait_for("turnpike to be ready", |line| {
            let line: serde_json::Value = serde_json::from_str(line).ok()?;
            (line.get("message")? == "turnpike is ready").then_some(line)
        })?;
        let told = |field: &str| ready.get(field).and_then(serde_json::Value::as_str);
        let address = told("listen").ok_or("turnpike tells no address")?.parse()?;
        let ours = Ours { pid: process.id(), address, rpc_url: told("sandbox_rpc").map(str::to_owned) };
        self.processes.push(process);
        Ok(ours)
    }

    fn nginx(&mut self, upstream: SocketAddr) -> Result<(u32, SocketAddr), BenchError> {
        // nginx takes no port 0; a port that was free a moment ago will do.
        let address = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let place = self.plan.place.join("nginx");
        std::fs::create_dir_all(&place)?;
        let configuration = format!(
            "daemon off; worker_processes auto; pid nginx.pid; error_log stderr warn;\n\
             events {{ worker_connections 4096; }}\n\
             http {{ access_log off;\n\
             client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;\n\
             upstream up {{ server {upstream}; keepalive 256; }}\n\
             server {{ listen {address} reuseport; keepalive_requests 1000000000;\n\
             location / {{ proxy_pass http://up; proxy_http_version 1.1; proxy_set_header Connection ''; }} }} }}\n"
        );
        std::fs::write(place.join("nginx.conf"), configuration)?;
        let mut command = Command::new("nginx");
        command.arg("-p").arg(&place).args(["-c", "nginx.conf", "-e", "stderr"]);
        let process = Process::start(&mut command)?;
        process.wait_until_it_listens(address)?;
        let pid = process.id();
        self.processes.push(process);
        Ok((pid, address))
    }
}

/// A Turnpike that is running.
struct Ours {
    pid: u32,
    address: SocketAddr,
    rpc_url: Option<String>,
}

fn sandbox_config(upstream: SocketAddr) -> String {
    format!(
        "upstream: http://{upstream}\nnetwork: sandbox\nsandbox: {{ rpc_listen: '127.0.0.1:0' }}\n\
         store: {{ path: turnpike.db }}\nroutes:\n  - {{ path: /free, free: true }}\n  \
         - {{ path: /paid, price: '$0.000001' }}"
    )
}

fn has_nginx() -> bool {
    Command::new("nginx").arg("-v").output().is_ok_and(|output| output.status.success())
}
