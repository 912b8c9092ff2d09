//! A proxy and two cosigners as three processes, each cosigner in a network namespace of its own where that can be had,
//! and one merchant on both families of chains. A link that is down loses packets without a word, as a cut cable does;
//! where there are no namespaces, a stopped process stands for it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use turnpike::client::Client as SolanaClient;
use turnpike::client::http::Request;
use turnpike::x402::Key;

use super::ceremony::{ALL, Desk, Desks};
use super::client::Payer;
use super::node::Node;
use super::support::{BINARY, Chain, PATIENCE, Process, address, balance, client, directory, project, rpc, wallet};
use super::world::{Client, FUNDS, Facilitator, RECEIVER, Shop};

const ROUTES: &str = "
  - { path: /quote, price: '$0.001' }
  - { path: /usage, price: '$0.001', metering: { header: X-Cost }, schemes: [upto, batch-settlement] }";
/// What a call costs.
const PRICE: u64 = 1000;
/// Two calls on each channel may be served and not yet claimed.
const CAPPED: &str = "min_amount: $0.001, exposure_max: $0.1, channel_exposure_max: $0.002";

fn run(program: &str, arguments: &[&str]) -> bool {
    Command::new(program).args(arguments).output().is_ok_and(|done| done.status.success())
}

/// A network namespace with a link to this one. Removed when dropped.
struct Namespace {
    name: String,
    link: String,
    address: String,
}

impl Namespace {
    /// `None` where this process may not make one.
    fn make() -> Option<Self> {
        // Tests of one process do not meet either.
        static MADE: AtomicU32 = AtomicU32::new(0);
        let (pid, number) = (std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let (name, link) = (format!("turnpike-{pid}-{number}"), format!("tp{}n{number}", pid % 100_000));
        // 10.64.0.0/10 by the process, so that two runs do not meet.
        let net = format!("10.{}.{}", 64 + pid % 64, (pid / 64 % 32) * 8 + number % 8);
        let made = Self { address: format!("{net}.2"), name, link };
        let inside = |arguments: &[&str]| run("ip", &[&["-n", &made.name], arguments].concat());
        let done = run("ip", &["netns", "add", &made.name])
            && run("ip", &["link", "add", &made.link, "type", "veth", "peer", "name", "eth0", "netns", &made.name])
            && run("ip", &["addr", "add", &format!("{net}.1/24"), "dev", &made.link])
            && run("ip", &["link", "set", &made.link, "up"])
            && inside(&["addr", "add", &format!("{net}.2/24"), "dev", "eth0"])
            && inside(&["link", "set", "eth0", "up"])
            && inside(&["link", "set", "lo", "up"]);
        done.then_some(made)
    }

    /// Takes the far end up or down. Of the near end, the route would go too, and packets elsewhere.
    fn carrier(&self, state: &str) {
        assert!(run("ip", &["-n", &self.name, "link", "set", "eth0", state]));
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        run("ip", &["link", "del", &self.link]);
        run("ip", &["netns", "del", &self.name]);
    }
}

/// A cosigner's machine.
struct Machine {
    name: String,
    file: PathBuf,
    address: String,
    namespace: Option<Namespace>,
    process: Option<Process>,
}

impl Machine {
    /// A cosigner with the share of this number of both keys.
    fn new(number: u16, place: &Path, solana_pay_to: &Key) -> Self {
        let namespace = Namespace::make();
        let address = match &namespace {
            Some(namespace) => format!("{}:8443", namespace.address),
            None => std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string(),
        };
        let name = format!("cosigner-{number}");
        let text = format!(
            "name: {name}\nlisten: {address}\n\
             tls: {{ cert_file: tls/{name}.pem, key_file: tls/{name}.key, ca_file: tls/ca.pem }}\n\
             coordinators: [proxy]\nstore: {{ path: {name}.db }}\naudit: {{ dir: {name}-audit }}\n\
             share: {{ file: shares/share-{number}.json, passphrase_file: passphrases/passphrase-{number}.txt }}\n\
             evm_share: {{ file: shares/evm-share-{number}.json, passphrase_file: passphrases/evm-passphrase-{number}.txt }}\n\
             policy:\n  - {{ network: solana-devnet, pay_to: {solana_pay_to}, deposit_max: $10, per_day: $10 }}\n  \
             - {{ network: base-sepolia, pay_to: '{RECEIVER}', per_day: $10 }}\n"
        );
        let file = place.join(format!("{name}.yaml"));
        std::fs::write(&file, text).unwrap();
        let mut machine = Self { name, file, address, namespace, process: None };
        machine.start();
        machine
    }

    /// A program on this machine: its process is that of the command.
    fn command(&self, program: &str) -> Command {
        match &self.namespace {
            Some(namespace) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", &namespace.name, program]);
                command
            }
            None => Command::new(program),
        }
    }

    fn start(&mut self) {
        let process = Process::start(self.command(BINARY).arg("cosigner").arg(&self.file));
        process.wait_for("the cosigner to be ready", |line| line.contains("the cosigner is ready").then_some(()));
        self.process = Some(process);
    }

    /// Puts a server with the cosigner's certificate and key in its place, which answers every call with garbage of a kind
    /// (`garbage.py`).
    fn garble(&mut self, kind: &str) {
        self.kill();
        let tls = self.file.with_file_name("tls");
        let mut command = self.command("python3");
        command.arg(project("tests/evm_end_to_end/garbage.py")).arg(&self.address);
        command.arg(tls.join(format!("{}.pem", self.name))).arg(tls.join(format!("{}.key", self.name)));
        let process = Process::start(command.arg(tls.join("ca.pem")).arg(kind));
        process.wait_for("the garbage to be ready", |line| (line == "ready").then_some(()));
        self.process = Some(process);
    }

    /// Stops the process where it stands: connections stay, and what is sent is taken and not answered.
    async fn stop(&self) {
        let process = self.process.as_ref().unwrap();
        process.signal("-STOP");
        let stat = format!("/proc/{}/stat", process.child.id());
        // `pid (name) state …`.
        let stopped = || std::fs::read_to_string(&stat).unwrap().rsplit_once(") ").unwrap().1.starts_with('T');
        until("the cosigner is stopped", async || stopped()).await;
    }

    fn go_on(&self) {
        self.process.as_ref().unwrap().signal("-CONT");
    }

    fn kill(&mut self) {
        self.process = None;
    }

    fn cut(&self) {
        match &self.namespace {
            Some(namespace) => namespace.carrier("down"),
            None => self.process.as_ref().unwrap().signal("-STOP"),
        }
    }

    fn mend(&self) {
        match &self.namespace {
            Some(namespace) => namespace.carrier("up"),
            None => self.go_on(),
        }
    }
}

/// Waits for a state.
async fn until(what: &str, mut reached: impl AsyncFnMut() -> bool) {
    let patience = Instant::now() + PATIENCE;
    while !reached().await {
        assert!(Instant::now() < patience, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// What the operator of a cosigner sees, while it runs.
fn operator(arguments: &[&str], file: &Path) -> String {
    let done = Command::new(BINARY).args(arguments).arg(file).output().unwrap();
    assert!(done.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

/// Makes both keys and the certificates; the address of each key.
fn keys(place: &Path) -> (Key, String) {
    let make = |arguments: &[&str]| {
        let made =
            Command::new(BINARY).arg("keygen").args(arguments).arg("--json").current_dir(place).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        serde_json::from_slice::<Value>(&made.stdout).unwrap()
    };
    let evm = make(&["--curve", "secp256k1", "--out", "shares", "--generate-passphrases", "passphrases"]);
    make(&["--certificates", "proxy,cosigner-1,cosigner-2,cosigner-3", "--out", "tls"]);
    let solana = make(&["--out", "shares", "--generate-passphrases", "passphrases"]);
    (solana["address"].as_str().unwrap().parse().unwrap(), evm["address"].as_str().unwrap().to_owned())
}

/// The proxy holds the first share of both keys, or where all three have a machine of their own, none.
fn signer(machines: &[Machine], (solana, evm): &(Key, String)) -> String {
    let cosigners: Vec<_> =
        machines.iter().map(|it| format!("{{ name: {}, address: '{}' }}", it.name, it.address)).collect();
    let shares = if machines.len() == 3 {
        format!("  address: {solana}\n  evm_address: '{evm}'\n")
    } else {
        "  shares: [{ file: shares/share-1.json, passphrase_file: passphrases/passphrase-1.txt }]\n  \
         evm_shares: [{ file: shares/evm-share-1.json, passphrase_file: passphrases/evm-passphrase-1.txt }]\n"
            .to_owned()
    };
    format!(
        "signer:\n{shares}  cosigners: [{}]\n  cosigner_timeout: 4s\n  \
         tls: {{ cert_file: tls/proxy.pem, key_file: tls/proxy.key, ca_file: tls/ca.pem }}\n",
        cosigners.join(", ")
    )
}

/// Everything but the machines.
struct Scene {
    shop: Shop,
    chain: Chain,
    solana: SolanaClient,
    solana_pay_to: Key,
    payer: Payer,
    place: PathBuf,
}

impl Scene {
    /// With a cosigner for each of these shares.
    async fn open(shares: &[u16], settlement: &str) -> (Self, Vec<Machine>) {
        let (chain, place): (Chain, TempDir) = (Chain::start(), directory());
        let keys = keys(place.path());
        let solana_pay_to = address(&wallet(51));
        rpc(&chain.url, "requestAirdrop", json!([keys.0, 10_000_000_000_u64])).await;
        rpc(&chain.url, "sandbox_mintTo", json!([solana_pay_to, 0])).await;
        let solana = client(&chain.url, 2, FUNDS, 20_000).await;
        let payer = Payer::new(1);
        let machines: Vec<_> =
            shares.iter().map(|number| Machine::new(*number, place.path(), &solana_pay_to)).collect();
        let at = place.path().to_owned();
        let entry = format!("{{ network: solana-devnet, pay_to: {solana_pay_to}, rpc_url: '{}' }}", chain.url);
        let node = Node::start(&[&payer], false);
        let signer = signer(&machines, &keys);
        let shop = Shop::open_beside(&entry, &signer, settlement, place, node, Facilitator::Local, ROUTES);
        (Self { shop, chain, solana, solana_pay_to, payer, place: at }, machines)
    }

    /// One call on each family.
    async fn pay(&self, evm: &mut Client<'_>) {
        evm.pay("/quote");
        let paid = self.solana.call(&Request::get(self.shop.turnpike.url("/quote"))).await.unwrap();
        assert_eq!(paid.response.status(), 200);
    }

    /// What both receivers have.
    async fn received(&self) -> [u64; 2] {
        [balance(&self.chain.url, &self.solana_pay_to).await, self.shop.balance(RECEIVER).await]
    }

    /// A call on each family, and both are settled.
    async fn earns(&self, evm: &mut Client<'_>, calls: &mut u64, when: &str) {
        self.pay(evm).await;
        *calls += 1;
        self.shop.settle().await;
        assert_eq!(self.received().await, [*calls * PRICE; 2], "{when}");
    }

    async fn admin(&self, path: &str) -> String {
        self.shop.turnpike.admin(http::Method::GET, path).await.1
    }

    /// The value of a metric of a cosigner, whose name is the last label.
    async fn metric(&self, of: &Machine, metric: &str) -> u64 {
        let metrics = self.admin("/metrics").await;
        let line = format!("{metric}name=\"{}\"}} ", of.name);
        metrics.lines().find_map(|it| it.strip_prefix(&line)?.parse().ok()).unwrap_or(0)
    }

    async fn is_up(&self, machine: &Machine) -> bool {
        self.metric(machine, "turnpike_cosigner_up{").await == 1
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_machines_settle_through_the_loss_of_any_one_and_wait_for_two() {
    let (scene, mut machines) = Scene::open(&[2, 3], CAPPED).await;
    let mut evm = scene.shop.client(&scene.payer, &json!({ "deposit": "20000" }));
    let mut calls = 0;
    scene.earns(&mut evm, &mut calls, "all three are there").await;
    for machine in &mut machines {
        machine.cut();
        scene.earns(&mut evm, &mut calls, &format!("{} is cut off", machine.name)).await;
        machine.mend();
        machine.kill();
        scene.earns(&mut evm, &mut calls, &format!("{} is down", machine.name)).await;
        machine.start();
        scene.earns(&mut evm, &mut calls, &format!("{} is back", machine.name)).await;
    }

    // Two are cut off: calls are served and charged, what is owed waits, and operators are told.
    machines.iter().for_each(Machine::cut);
    scene.pay(&mut evm).await;
    let waits = scene.shop.turnpike.settle().await;
    assert!(waits["failures"].as_u64().unwrap() > 0, "{waits}");
    assert_eq!(scene.received().await, [calls * PRICE; 2], "nothing moves");
    scene.pay(&mut evm).await;
    calls += 2;
    // That is all the credit there is.
    let refused = evm.ask(json!({ "do": "pay", "url": "/quote" }));
    assert_eq!(
        (refused["status"].as_u64(), refused["body"].as_str().unwrap().contains("exposure")),
        (Some(503), true),
        "{refused}"
    );
    let refused = scene.solana.call(&Request::get(scene.shop.turnpike.url("/quote"))).await.unwrap();
    assert_eq!(refused.response.status(), 503);
    let health = scene.admin("/health").await;
    assert!(health.contains("cosigner-2") && health.contains("cosigner-3"), "{health}");
    let metrics = scene.admin("/metrics").await;
    for line in ["turnpike_cosigner_up{name=\"cosigner-2\"} 0", "turnpike_signer_quorum 0"] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }

    // They are back, and nobody has to do anything at the proxy.
    machines.iter().for_each(Machine::mend);
    let patience = Instant::now() + PATIENCE;
    loop {
        scene.shop.turnpike.settle().await;
        if scene.received().await == [calls * PRICE; 2] {
            break;
        }
        assert!(Instant::now() < patience, "{}", scene.shop.turnpike.process.said());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    for machine in &machines {
        assert!(operator(&["check"], &machine.file).contains("is fine"));
        assert_eq!(operator(&["cosigner", "refusals", "--json", "--file"], &machine.file), "[]\n");
        assert_eq!(operator(&["cosigner", "pending", "--file"], &machine.file), "Nothing waits for an approval.\n");
    }
    // The end of both channels' lives: what is left goes back.
    // The reference client asks the first offer of the scheme for it, whatever its network: here that is its own.
    evm.refund("/usage", None);
    scene.solana.refund(&Request::get(scene.shop.turnpike.url("/quote"))).await.unwrap();
    scene.shop.turnpike.settle().await;
    let paid = calls * PRICE;
    assert_eq!(scene.shop.balances(scene.payer.address()).await, [FUNDS - paid, paid, 0]);
    assert_eq!(balance(&scene.chain.url, &scene.solana.address()).await, FUNDS - paid);
}

/// One that is slow and one that answers garbage with its own certificate are found out while calls are settled: each is
/// named, the other signs in its place, and what was wrong is over when it is over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_is_slow_and_one_that_answers_garbage_are_left_out_and_named() {
    let (scene, mut machines) = Scene::open(&[2, 3], "").await;
    let mut evm = scene.shop.client(&scene.payer, &json!({ "deposit": "50000" }));
    let mut calls = 0;
    scene.earns(&mut evm, &mut calls, "both are there").await;
    for machine in &machines {
        machine.stop().await;
        // All of it within the deadline of a signature: one that is above it is a failure of the settlement.
        scene.earns(&mut evm, &mut calls, &format!("{} is slow, and not known to be", machine.name)).await;
        until("the slow one is named", async || !scene.is_up(machine).await).await;
        assert!(scene.metric(machine, "turnpike_cosigner_faults_total{fault=\"unreachable\",").await > 0);
        let health = scene.admin("/health").await;
        let told = format!("{}: cannot be reached: no answer within 4000 ms", machine.name);
        assert!(health.contains(&told), "{health}");
        scene.earns(&mut evm, &mut calls, &format!("{} is slow", machine.name)).await;
        machine.go_on();
        until("the slow one is back", async || scene.is_up(machine).await).await;
    }

    for (kind, fault, place) in
        [("nonsense", "unreachable", 0), ("cut", "unreachable", 1), ("random", "lied", 0), ("random", "lied", 1)]
    {
        let machine = &mut machines[place];
        let faults = format!("turnpike_cosigner_faults_total{{fault=\"{fault}\",");
        let before = scene.metric(machine, &faults).await;
        machine.garble(kind);
        scene.earns(&mut evm, &mut calls, &format!("{} answers {kind}, and is not known to", machine.name)).await;
        machine.process.as_ref().unwrap().wait_for("an answer", |line| (line == "answered").then_some(()));
        until("garbage is named", async || scene.metric(machine, &faults).await > before).await;
        until("it counts as gone", async || !scene.is_up(machine).await).await;
        scene.earns(&mut evm, &mut calls, &format!("{} answers {kind}", machine.name)).await;
        machine.kill();
        machine.start();
        until("the real one is back", async || scene.is_up(machine).await).await;
    }
    // Who has lied is asked last for a while, whatever it says since.
    for machine in &machines {
        let health = scene.admin("/health").await;
        assert!(health.contains(&format!("{}: put aside", machine.name)), "{health}");
        assert!(!machine.file.with_extension("bans").exists(), "garbage bans nobody");
    }
    scene.earns(&mut evm, &mut calls, "both are back, and both are put aside").await;
}

/// What the three holders of a key's shares have; `prefix` is the key's.
fn desks(place: &Path, prefix: &str) -> Desks {
    Desks(ALL.map(|me| {
        let desk = place.join(format!("desk-{prefix}{me}"));
        std::fs::create_dir(&desk).unwrap();
        let share = place.join(format!("shares/{prefix}share-{me}.json"));
        Desk { place: desk, share, passphrase: place.join(format!("passphrases/{prefix}passphrase-{me}.txt")) }
    }))
}

impl Scene {
    /// Renews the shares of both keys by a ceremony while calls are paid and settled; then one machine after the other takes
    /// its new share. The addresses that the ceremonies end with.
    async fn renews(
        &self,
        evm: &mut Client<'_>,
        calls: &mut u64,
        machines: &mut [Machine],
        keys: &[Arc<Desks>; 2],
        what: &'static [&'static str],
    ) -> Vec<String> {
        let keys = keys.clone();
        let ceremonies = tokio::task::spawn_blocking(move || {
            let each = keys.iter().zip(["ed25519", "secp256k1"]);
            each.map(|(desks, curve)| desks.ceremony(|_| [what, &["--curve", curve]].concat())).collect()
        });
        while !ceremonies.is_finished() {
            self.earns(evm, calls, &format!("during {what:?}")).await;
        }
        let addresses = ceremonies.await.unwrap();
        // Two of one generation are always there, and no third is blamed.
        for machine in machines {
            machine.kill();
            machine.start();
            self.earns(evm, calls, &format!("{} has its new share, {what:?}", machine.name)).await;
        }
        addresses
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shares_are_renewed_and_a_holder_is_replaced_under_load_and_the_addresses_stay() {
    let (scene, mut machines) = Scene::open(&ALL, "").await;
    let mut evm = scene.shop.client(&scene.payer, &json!({ "deposit": "200000" }));
    let mut calls = 0;
    scene.earns(&mut evm, &mut calls, "before").await;
    let keys = ["", "evm-"].map(|prefix| Arc::new(desks(&scene.place, prefix)));
    let addresses = scene.renews(&mut evm, &mut calls, &mut machines, &keys, &["--refresh"]).await;
    // The third machine's disk is gone, and another takes its part.
    for desks in &keys {
        std::fs::remove_file(&desks.of(3).share).unwrap();
    }
    let replaced = scene.renews(&mut evm, &mut calls, &mut machines, &keys, &["--replace", "3"]).await;
    assert_eq!(replaced, addresses);
    let metrics = scene.admin("/metrics").await;
    assert!(!metrics.contains("fault=\"lied\""), "{metrics}");
    let configuration = std::fs::read_to_string(scene.place.join("turnpike.yaml")).unwrap();
    for (address, desks) in addresses.iter().zip(&keys) {
        assert!(configuration.contains(address), "the key is the one that was configured");
        let shown = operator(&["key", "show", "--json"], &desks.of(2).share);
        assert_eq!(serde_json::from_str::<Value>(&shown).unwrap()["generation"], 3);
    }
}
