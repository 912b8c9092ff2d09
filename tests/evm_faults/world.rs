//! A chain, a facilitator, a shop behind the proxy and a payer, and what the chain says of their money.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use http::{HeaderMap, Method};
use serde_json::{Value, json};
use tempfile::TempDir;
use turnpike::client::http::{Http, Request};
use turnpike::x402::evm::keccak256;

use super::line::Line;
use super::support::{PATIENCE, Turnpike, Upstream, directory, project, rpc};

pub const PRICE: u64 = 1_000;
/// What `/usage` reports of it.
pub const METERED: u64 = 300;
pub const FUNDS: u64 = 1_000_000;
pub const DEPOSIT: u64 = 100_000;
const CONTRACT: &str = "0x4020074e9dF2ce1deE5A9C1b5c3f541D02a10003";
const TOKEN: &str = "0x036CbD53842c5426634e7929541eC2318f3dCF7e";

/// Polls until something holds.
pub async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A script of `tests/interop`. It ends when its input closes.
pub struct Script {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Script {
    pub fn start(name: &str, args: &[String], environment: &[(&str, String)]) -> Self {
        install();
        let mut command = Command::new("node");
        command.arg(project("tests/interop").join(name)).args(args).stdin(Stdio::piped()).stdout(Stdio::piped());
        for (name, value) in environment {
            command.env(name, value);
        }
        let mut child = command.spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self { input: child.stdin.take(), child, output }
    }

    pub fn send(&mut self, command: &Value) {
        writeln!(self.input.as_mut().unwrap(), "{command}").unwrap();
    }

    /// Its next line.
    pub fn line(&mut self) -> Value {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("a script said {line:?}"))
    }

    pub fn ask(&mut self, command: &Value) -> Value {
        self.send(command);
        self.line()
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ended = self.child.wait();
    }
}

/// Installs what the scripts need, once.
fn install() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let folder = project("tests/interop");
        if !folder.join("node_modules/@foundry-rs").exists() {
            let mut npm = Command::new("npm");
            npm.args(["ci", "--no-audit", "--no-fund", "--silent", "--prefix"]).arg(folder);
            assert!(npm.status().unwrap().success(), "npm ci in tests/interop failed");
        }
    });
}

/// The reference facilitator.
pub struct Facilitator {
    script: Script,
    pub url: String,
    rpc_url: String,
}

impl Facilitator {
    fn start(rpc_url: &str, port: u16) -> Self {
        let environment = [("RPC_URL", rpc_url.to_owned()), ("PORT", port.to_string())];
        let mut script = Script::start("facilitator.mjs", &[], &environment);
        let url = script.line()["url"].as_str().unwrap().to_owned();
        Self { script, url, rpc_url: rpc_url.to_owned() }
    }

    /// What it does wrong from now on.
    pub async fn misbehave(&self, rules: Value) {
        post(&format!("{}/control", self.url), json!({ "rules": rules, "forget": true })).await;
    }

    /// What it was asked since the rules were set.
    pub async fn calls(&self) -> Vec<Value> {
        let control = request(Method::GET, &format!("{}/control", self.url), Value::Null).await;
        control["calls"].as_array().unwrap().clone()
    }

    /// Waits until it is asked for something that it was told to do wrong.
    pub async fn misbehaves(&self) {
        until("the facilitator to be asked", async || {
            self.calls().await.iter().any(|call| call.get("misbehaved").is_some())
        })
        .await;
    }

    /// Waits until it has ended by itself.
    pub async fn ends(&mut self) {
        until("the facilitator to exit", async || self.script.child.try_wait().unwrap().is_some()).await;
    }

    pub fn kill(&mut self) {
        self.script.child.kill().unwrap();
        self.script.child.wait().unwrap();
    }

    /// Starts it again in its old place.
    pub fn restart(&mut self) {
        let port = self.url.rsplit_once(':').unwrap().1.parse().unwrap();
        *self = Self::start(&self.rpc_url, port);
    }
}

async fn request(method: Method, url: &str, body: Value) -> Value {
    let mut headers = HeaderMap::new();
    headers.insert("content-type", "application/json".parse().unwrap());
    let request = Request { method, uri: url.parse().unwrap(), headers, body: body.to_string().into() };
    let answer = Http::new().unwrap().send(&request, None).await.unwrap().bytes(1 << 24).await.unwrap();
    serde_json::from_slice(&answer).unwrap()
}

async fn post(url: &str, body: Value) -> Value {
    request(Method::POST, url, body).await
}

/// What a world is made of.
pub struct Setup<'a> {
    /// Whether the proxy is its own facilitator.
    pub local: bool,
    /// How many seconds apart blocks are mined; each transaction at once where it is `None`.
    pub block_seconds: Option<u32>,
    pub settle_timeout_seconds: u32,
    /// The section of the configuration.
    pub settlement: &'a str,
}

/// Everything due is claimed at every tick.
pub const EAGER: &str = "{ interval: 1s, min_amount: '$0.000001' }";

pub struct World {
    place: TempDir,
    pub rpc_url: String,
    pub line: Line,
    pub facilitator: Option<Facilitator>,
    pub turnpike: Turnpike,
    configuration: String,
    pub payer: Script,
    payer_address: String,
    merchant: String,
    /// All that the client was told that it was charged.
    pub told: u64,
    _upstream: Upstream,
    _chain: Script,
}

impl World {
    pub fn open(setup: &Setup<'_>) -> Self {
        // The node's second development account.
        let payer_address = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8";
        let mut args = vec!["--fund".to_owned(), format!("{payer_address}={FUNDS}")];
        if let Some(seconds) = setup.block_seconds {
            args.extend(["--block-time".to_owned(), seconds.to_string()]);
        }
        let mut chain = Script::start("evm.mjs", &args, &[]);
        let ready = chain.line();
        let account = |number: usize, field: &str| ready["accounts"][number][field].as_str().unwrap().to_owned();
        let rpc_url = ready["rpc_url"].as_str().unwrap().to_owned();
        let line = Line::lay(&rpc_url);
        let facilitator = (!setup.local).then(|| Facilitator::start(&rpc_url, 0));
        let upstream = Upstream::start(|head, mut stream| {
            let cost = if head.starts_with("GET /usage") { "x-cost: 0.0003\r\n" } else { "" };
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n{cost}content-length: 2\r\nconnection: close\r\n\r\nok"
            );
            let _gone = stream.write_all(answer.as_bytes());
        });
        let place = directory();
        let by = match &facilitator {
            Some(facilitator) => format!(
                "facilitator: {{ url: '{}', settle_timeout: {}s }}",
                facilitator.url, setup.settle_timeout_seconds
            ),
            None => {
                secret(&place.path().join("gas.key"), &account(0, "key"));
                "facilitator: local\n    gas_key_file: gas.key".to_owned()
            }
        };
        let merchant = account(2, "address");
        let configuration = format!(
            "upstream: http://{}\nnetworks:\n  - network: base-sepolia\n    pay_to: '{merchant}'\n    {by}\n    \
             rpc_url: {}\nwithdraw_delay: 15m\n{}routes:\n  \
             - {{ path: /usage, price: '$0.001', metering: {{ header: x-cost }} }}\n  - {{ path: /*, price: '$0.001' }}\n",
            upstream.address,
            line.url(),
            signer(place.path())
        );
        let turnpike = serve(&place, &configuration, setup.settlement);
        let settings = json!({ "key": account(1, "key"), "rpc_url": rpc_url, "deposit": DEPOSIT.to_string(),
            "any_price": true, "scheme": "batch-settlement" });
        let payer = Script::start("pay_evm.mjs", &[settings.to_string()], &[]);
        Self {
            place,
            rpc_url,
            line,
            facilitator,
            turnpike,
            configuration,
            payer,
            payer_address: payer_address.to_owned(),
            merchant,
            told: 0,
            _upstream: upstream,
            _chain: chain,
        }
    }

    pub fn facilitator(&mut self) -> &mut Facilitator {
        self.facilitator.as_mut().unwrap()
    }

    /// Ends the proxy as a power failure would.
    pub fn kill(&mut self) {
        self.turnpike.process.child.kill().unwrap();
        self.turnpike.process.child.wait().unwrap();
    }

    /// Starts the proxy again, which must be dead.
    pub fn serve(&mut self, settlement: &str) {
        self.turnpike = serve(&self.place, &self.configuration, settlement);
    }

    pub fn url(&self, path: &str) -> String {
        self.turnpike.url(path).to_string()
    }

    /// Takes note of an answer of the client's; whether it was charged for.
    pub fn took(&mut self, answer: &Value) -> bool {
        let extra = &answer["settlement"]["extra"];
        if answer["status"] != 200 {
            assert!(extra["chargedAmount"].is_null(), "{answer}");
            return false;
        }
        self.told += extra["chargedAmount"].as_str().unwrap().parse::<u64>().unwrap();
        let total: u64 = extra["channelState"]["chargedCumulativeAmount"].as_str().unwrap().parse().unwrap();
        assert_eq!(total, self.told, "the channel's total is the sum of the charges: {answer}");
        true
    }

    /// Pays for a request, which must succeed.
    pub fn pay(&mut self, path: &str) -> Value {
        let answer = self.payer.ask(&json!({ "do": "pay", "url": self.url(path) }));
        assert!(self.took(&answer), "{answer}");
        answer
    }

    /// Settles now, without waiting for it.
    pub fn demand(&self) {
        let url = format!("http://{}/api/settle", self.turnpike.admin);
        let request = Request {
            method: Method::POST,
            uri: url.parse().unwrap(),
            headers: HeaderMap::new(),
            body: bytes::Bytes::new(),
        };
        tokio::spawn(async move {
            let _nobody_listens = Http::new().unwrap().send(&request, None).await;
        });
    }

    async fn balance(&self, account: &str) -> u64 {
        let data = format!("0x70a08231{:0>64}", account.trim_start_matches("0x").to_ascii_lowercase());
        let word = rpc(&self.rpc_url, "eth_call", json!([{ "to": TOKEN, "data": data }, "latest"])).await;
        number(word.as_str().unwrap())
    }

    pub async fn merchants(&self) -> u64 {
        self.balance(&self.merchant).await
    }

    /// How often the contract has told of this, and the sum of what it told.
    async fn told_by_contract(&self, event: &str) -> (usize, u64) {
        let topic = keccak256(event.as_bytes()).to_string();
        let filter = json!([{ "fromBlock": "0x0", "address": CONTRACT, "topics": [topic] }]);
        let logs = rpc(&self.rpc_url, "eth_getLogs", filter).await;
        let logs = logs.as_array().unwrap();
        let first = |log: &Value| number(&log["data"].as_str().unwrap()[..66]);
        (logs.len(), logs.iter().map(first).sum())
    }

    pub async fn claimed(&self) -> (usize, u64) {
        self.told_by_contract("Claimed(bytes32,address,uint128,uint128)").await
    }

    pub async fn paid_out(&self) -> (usize, u64) {
        self.told_by_contract("Settled(address,address,address,uint128)").await
    }

    pub async fn deposited(&self) -> (usize, u64) {
        self.told_by_contract("Deposited(bytes32,address,uint128,uint128)").await
    }

    pub async fn refunded(&self) -> (usize, u64) {
        self.told_by_contract("Refunded(bytes32,address,uint128)").await
    }

    /// Waits until the merchant has all that was charged, and no batch is open. Nobody asks for it.
    pub async fn is_settled(&self) {
        until("all that was charged to be claimed, paid out and confirmed", async || {
            let (_, body) = self.turnpike.admin(Method::GET, "/api/batches").await;
            let batches: Value = serde_json::from_str(&body).unwrap();
            let open = batches["batches"].as_array().unwrap().iter().any(|batch| batch["state"] == "Signed");
            !open && self.merchants().await >= self.told
        })
        .await;
        assert_eq!(self.merchants().await, self.told, "nothing is paid out twice");
        assert_eq!(self.claimed().await.1, self.told);
        assert_eq!(self.paid_out().await.1, self.told);
    }

    /// No block is mined until [`World::mine`].
    pub async fn stop_mining(&self) {
        rpc(&self.rpc_url, "evm_setAutomine", json!([false])).await;
        rpc(&self.rpc_url, "evm_setIntervalMining", json!([0])).await;
    }

    pub async fn mine(&self) {
        rpc(&self.rpc_url, "evm_setAutomine", json!([true])).await;
        rpc(&self.rpc_url, "anvil_mine", json!([1])).await;
    }

    /// One block, and no more.
    pub async fn mine_one(&self) {
        rpc(&self.rpc_url, "anvil_mine", json!([1])).await;
    }

    /// How many transactions wait to be mined.
    pub async fn unmined(&self) -> u64 {
        let status = rpc(&self.rpc_url, "txpool_status", json!([])).await;
        number(status["pending"].as_str().unwrap())
    }

    /// Asks for everything back, and compares all that the chain says with what the client was told.
    pub async fn tie_out(mut self) {
        let answer = self.payer.ask(&json!({ "do": "refund", "url": self.url("/quote") }));
        assert_eq!(answer["settlement"]["success"], true, "{answer}");
        self.is_settled().await;
        self.ties_out().await;
        let (_, deposited) = self.deposited().await;
        assert_eq!(self.refunded().await.1, deposited - self.told, "all that was not charged has come back");
    }

    /// Where everything is over.
    pub async fn ties_out(&self) {
        let (_, body) = self.turnpike.admin(Method::GET, "/api/channels").await;
        let channels: Value = serde_json::from_str(&body).unwrap();
        let charged = channels["channels"].as_array().unwrap().iter();
        let charged: u64 = charged.map(|channel| channel["charged"].as_str().unwrap().parse::<u64>().unwrap()).sum();
        assert_eq!(charged, self.told, "the ledger holds what the client was told");
        assert_eq!(self.merchants().await, self.told);
        assert_eq!(self.balance(CONTRACT).await, 0);
        assert_eq!(self.balance(&self.payer_address).await, FUNDS - self.told);
    }
}

fn serve(place: &TempDir, configuration: &str, settlement: &str) -> Turnpike {
    Turnpike::serve(place.path(), &format!("{configuration}settlement: {settlement}\n"))
}

/// The part of a configuration that opens the fixtures' two shares.
fn signer(place: &Path) -> String {
    let mut text = "signer:\n  evm_shares:\n".to_owned();
    for number in 1..=2 {
        let passphrase = place.join(format!("passphrase-{number}"));
        secret(&passphrase, &format!("correct horse battery {number}"));
        let share = project(&format!("tests/support/shares-v1-secp256k1/evm-share-{number}.json"));
        text.push_str(&format!(
            "    - {{ file: '{}', passphrase_file: '{}' }}\n",
            share.display(),
            passphrase.display()
        ));
    }
    text
}

/// A file that only its owner may read.
fn secret(file: &Path, text: &str) {
    std::fs::write(file, text).unwrap();
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600)).unwrap();
}

fn number(hexadecimal: &str) -> u64 {
    u64::from_str_radix(hexadecimal.trim_start_matches("0x"), 16).unwrap()
}
