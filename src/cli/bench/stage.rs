//! Everything that a measurement starts.
//!
//! Promises that all processes end with the [`Stage`], and that Turnpike runs as a merchant would run it: configured by a
//! file, its ledger on the disk, its audit record kept.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use super::BenchError;
use super::compare::{BARE, Contender, FLOOR, Plan};
use super::crowd;
use super::peer::Peer;
use super::pieces::Piece;
use super::process::Process;
use super::purse::Purse;
use crate::x402::Network;

const FREE: (&str, u16) = ("/free", 200);
const UNPAID: (&str, u16) = ("/paid", 402);
const PAID: (&str, u16) = ("/paid", 200);
const PACKED: (&str, u16) = ("/packed", 200);

/// Turnpike with few and with many channels beside those that pay, as the tables call it.
pub(super) const CROWDS: [&str; 2] = ["Turnpike, few channels known", "Turnpike, many channels known"];
/// How many are few.
pub(super) const FEW: u64 = 1_000;

/// What is running.
pub(super) struct Stage<'p> {
    plan: &'p Plan,
    pub(super) processes: Vec<Process>,
    pub(super) contenders: Vec<Contender>,
    /// What an idle channel takes of resident memory.
    pub(super) idle_bytes: Option<f64>,
}

impl<'p> Stage<'p> {
    /// Starts what the plan wants.
    pub(super) async fn set_up(plan: &'p Plan, progress: &mut (dyn FnMut(&str) + Send)) -> Result<Self, BenchError> {
        let mut stage = Self { plan, processes: Vec::new(), contenders: Vec::new(), idle_bytes: None };
        progress("starting the upstream and the yardstick");
        let (_, upstream) = stage.piece(&Piece::Upstream)?;
        let (pid, bare) = stage.piece(&Piece::Bare(upstream))?;
        stage.contenders.push(Contender::of(BARE, pid, bare, FREE));
        let nginx = "nginx, plain proxy";
        if stage.wants(nginx) && has_nginx() {
            progress("starting nginx");
            let (pid, address) = stage.nginx(upstream)?;
            stage.contenders.push(Contender::of(nginx, pid, address, FREE));
        }
        stage.sandbox(upstream, progress).await?;
        stage.evm(upstream, progress).await?;
        Ok(stage)
    }

    /// The contenders on the sandbox.
    async fn sandbox(
        &mut self,
        upstream: SocketAddr,
        progress: &mut (dyn FnMut(&str) + Send),
    ) -> Result<(), BenchError> {
        let (free, unpaid, paid) = ("Turnpike, free route", "Turnpike, unpaid: 402", "Turnpike, paid, Ed25519");
        let in_memory = "Turnpike, paid, Ed25519, ledger in memory";
        let on_pass = "Turnpike, on a pass";
        if [free, unpaid, paid, FLOOR].iter().any(|name| self.wants(name)) {
            progress("starting Turnpike on a sandbox, and opening channels");
            let ours = self.turnpike("sandbox", &self.plan.place.clone(), &sandbox_config(upstream))?;
            if self.wants(free) {
                self.contenders.push(Contender::of(free, ours.pid, ours.address, FREE));
            }
            if self.wants(unpaid) {
                self.contenders.push(Contender::of(unpaid, ours.pid, ours.address, UNPAID));
            }
            if self.wants(paid) {
                let purses = self.sandbox_purses(&ours, 1).await?;
                self.contenders.push(Contender::of(paid, ours.pid, ours.address, PAID).paying(purses));
            }
            if self.wants(FLOOR) {
                // Payments for Turnpike, which are sent to the other.
                let purses = self.sandbox_purses(&ours, self.plan.connections.saturating_add(1)).await?;
                let (pid, address) = self.piece(&Piece::Floor(upstream, self.plan.place.join("lines")))?;
                self.contenders.push(Contender::of(FLOOR, pid, address, PAID).paying(purses));
            }
        }
        // Beside the others, whose payers have no pass.
        if self.wants(on_pass) {
            let ours = self.turnpike("passes", &self.plan.place.clone(), &sandbox_config(upstream))?;
            let rpc_url = ours.rpc_url.as_deref().ok_or("the sandbox has no RPC")?;
            let mut purses = Vec::new();
            for number in 1..=self.plan.connections {
                purses.push(Purse::pass(number, rpc_url, format!("http://{}/packed", ours.address).parse()?).await?);
            }
            self.contenders.push(Contender::of(on_pass, ours.pid, ours.address, PACKED).paying(purses));
        }
        if let Some(memory) = self.plan.memory.clone().filter(|_| self.wants(in_memory)) {
            let ours = self.turnpike("memory", &memory, &sandbox_config(upstream))?;
            let purses = self.sandbox_purses(&ours, 1).await?;
            self.contenders.push(Contender::of(in_memory, ours.pid, ours.address, PAID).paying(purses));
        }
        Ok(())
    }

    /// A payer for each connection, numbered from `first` on.
    async fn sandbox_purses(&self, ours: &Ours, first: u32) -> Result<Vec<Purse>, BenchError> {
        let rpc_url = ours.rpc_url.as_deref().ok_or("the sandbox has no RPC")?;
        let mut purses = Vec::new();
        for number in first..first.saturating_add(self.plan.connections) {
            purses.push(Purse::svm(number, rpc_url, format!("http://{}/paid", ours.address).parse()?).await?);
        }
        Ok(purses)
    }

    /// The contenders on an EVM network.
    async fn evm(&mut self, upstream: SocketAddr, progress: &mut (dyn FnMut(&str) + Send)) -> Result<(), BenchError> {
        let paid = "Turnpike, paid, EVM";
        let wants_crowds = CROWDS.iter().any(|name| self.wants(name));
        let peers: Vec<Peer> = self.plan.peers.iter().filter(|peer| self.wants(&peer.name)).cloned().collect();
        if !self.wants(paid) && !wants_crowds && peers.is_empty() {
            return Ok(());
        }
        let network = Network::eip155(84_532);
        let (_, facilitator) = self.piece(&Piece::Facilitator(network.clone()))?;
        if self.wants(paid) || wants_crowds {
            progress("making an EVM key between three shares: some seconds");
            self.evm_key()?;
        }
        if self.wants(paid) {
            let ours = self.turnpike("evm", &self.plan.place.clone(), &evm_config(upstream, facilitator))?;
            self.enter_evm(Contender::of(paid, ours.pid, ours.address, PAID)).await?;
        }
        if wants_crowds {
            self.crowds(upstream, facilitator, progress).await?;
        }
        for peer in &peers {
            progress(&format!("starting {}", peer.name));
            let (process, address) = peer.start(upstream, facilitator, &network)?;
            let contender = Contender::of(&peer.name, process.id(), address, PAID).slow();
            self.processes.push(process);
            self.enter_evm(contender).await?;
        }
        Ok(())
    }

    /// Makes the key that all Turnpikes on the EVM network share.
    fn evm_key(&self) -> Result<(), BenchError> {
        std::fs::create_dir_all(self.plan.place.join("passphrases"))?;
        let made = Command::new(&self.plan.program)
            .args(["keygen", "--curve", "secp256k1", "--out", "shares", "--generate-passphrases", "passphrases"])
            .current_dir(&self.plan.place)
            .output()?;
        if made.status.success() {
            Ok(())
        } else {
            Err(format!("keygen: {}", String::from_utf8_lossy(&made.stderr)).into())
        }
    }

    /// Turnpike with few channels and with very many, of which some pay.
    async fn crowds(
        &mut self,
        upstream: SocketAddr,
        facilitator: SocketAddr,
        progress: &mut (dyn FnMut(&str) + Send),
    ) -> Result<(), BenchError> {
        let mut weights = Vec::new();
        let sizes = [FEW, self.plan.channels];
        for (channels, name) in sizes.into_iter().zip(CROWDS) {
            progress(&format!("entering {channels} channels"));
            let place = format!("channels-{channels}");
            std::fs::create_dir_all(self.plan.place.join(&place))?;
            crowd::enter(&self.plan.place.join(&place).join("turnpike.db"), channels).await?;
            let ours = self.turnpike(&place, &self.plan.place.clone(), &evm_config(upstream, facilitator))?;
            weights.push(resident(ours.pid)?);
            self.enter_evm(Contender::of(&format!("{name}: {channels}"), ours.pid, ours.address, PAID)).await?;
        }
        if let [few, many] = &weights[..] {
            self.idle_bytes = Some((many - few) / self.plan.channels.saturating_sub(FEW) as f64);
        }
        Ok(())
    }

    async fn enter_evm(&mut self, contender: Contender) -> Result<(), BenchError> {
        let mut purses = Vec::new();
        for number in 1..=self.plan.connections {
            purses.push(Purse::evm(number, contender.uri()?).await?);
        }
        self.contenders.push(contender.paying(purses));
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

/// Whom EVM payments go to.
pub(super) const PAY_TO: &str = "0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC";

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
         - {{ path: /paid, price: '$0.000001' }}\n  \
         - {{ path: /packed, price: '$0.000001', pack: {{ calls: 1000000, price: '$1' }} }}"
    )
}

fn evm_config(upstream: SocketAddr, facilitator: SocketAddr) -> String {
    format!(
        "upstream: http://{upstream}\nnetwork: base-sepolia\npay_to: '{PAY_TO}'\n\
         facilitator: http://{facilitator}\nstore: {{ path: turnpike.db }}\n\
         signer:\n  evm_shares:\n    - {{ file: ../shares/evm-share-1.json, passphrase_file: ../passphrases/evm-passphrase-1.txt }}\n    \
         - {{ file: ../shares/evm-share-2.json, passphrase_file: ../passphrases/evm-passphrase-2.txt }}\n\
         routes:\n  - {{ path: /paid, price: '$0.000001' }}"
    )
}

/// Resident memory of a process, in bytes.
fn resident(pid: u32) -> Result<f64, BenchError> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("Linux tells no resident memory")?;
    let kibibytes: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kibibytes * 1024.0)
}

fn has_nginx() -> bool {
    Command::new("nginx").arg("-v").output().is_ok_and(|output| output.status.success())
}
