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
use super::support::{BINARY, Chain, PATIENCE, Process, address, balance, client, directory, rpc, wallet};
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

    fn start(&mut self) {
        let mut command = match &self.namespace {
            Some(namespace) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", &namespace.name, BINARY]);
                command
            }
            None => Command::new(BINARY),
        };
        let process = Process::start(command.arg("cosigner").arg(&self.file));
        process.wait_for("the cosigner to be ready", |line| line.contains("the cosigner is ready").then_some(()));
        self.process = Some(process);
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
            None => self.process.as_ref().unwrap().signal("-CONT"),
        }
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
