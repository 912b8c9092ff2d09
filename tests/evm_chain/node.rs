//! A real node (npm's anvil) with the tests' contracts, and a facilitator of ours in front of it.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use turnpike::chain::evm::key::GasKey;
use turnpike::chain::evm::rpc::{EvmRpc, EvmRpcOptions};
use turnpike::chain::evm::sender::{Sender, SenderOptions};
use turnpike::chain::evm::{Call, EvmChain};
use turnpike::clock::{Clock, SystemClock};
use turnpike::facilitator::evm::{EvmFacilitatorOptions, LocalEvmFacilitator};
use turnpike::x402::evm::Address;

use super::client::{Payer, USDC};

pub const CHAIN_ID: u64 = 84_532;

/// A node of a test's own. It ends with the test.
pub struct Node {
    script: Child,
    /// Closing it ends the script.
    input: Option<ChildStdin>,
    pub url: String,
    pub wallets: Vec<Address>,
    keys: Vec<String>,
}

/// Installs what the script needs, once.
fn install(folder: &Path) {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        if folder.join("node_modules/@foundry-rs/anvil-linux-amd64").exists() {
            return;
        }
        let mut npm = Command::new("npm");
        npm.args(["ci", "--no-audit", "--no-fund", "--silent", "--prefix"]).arg(folder);
        assert!(npm.status().unwrap().success(), "npm ci in tests/interop failed");
    });
}

impl Node {
    /// Starts one. Each payer has 1,000,000 units of the token, and lets Permit2 take them; each has an ERC-1271 wallet
    /// where it is asked for.
    pub fn start(payers: &[&Payer], with_wallets: bool) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop");
        install(&folder);
        let mut command = Command::new("node");
        command.arg(folder.join("evm.mjs")).stdin(Stdio::piped()).stdout(Stdio::piped());
        for payer in payers {
            let address = payer.address();
            command.args(["--fund", &format!("{address}=1000000"), "--permit2", &address.to_string()]);
            if with_wallets {
                command.args(["--wallet", &address.to_string()]);
            }
        }
        let mut script = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(script.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let said: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("evm.mjs said {line:?}"));
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        Self {
            input: script.stdin.take(),
            script,
            url: text(&said["rpc_url"]),
            wallets: said["wallets"].as_array().unwrap().iter().map(|w| text(&w["address"]).parse().unwrap()).collect(),
            keys: said["accounts"].as_array().unwrap().iter().map(|a| text(&a["key"])).collect(),
        }
    }

    /// The gas key of a development account, which has coin.
    pub fn gas_key(&self, index: usize) -> GasKey {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), self.key(index)).unwrap();
        GasKey::from_file(file.path()).unwrap()
    }

    /// A development account's key as text.
    pub fn key(&self, index: usize) -> &str {
        &self.keys[index]
    }

    /// One of the node's own calls.
    pub async fn ask(&self, method: &str, params: Value) -> Value {
        ask(&self.url, method, params).await
    }

    pub fn chain(&self) -> Arc<EvmRpc> {
        chain(vec![self.url.clone()])
    }

    /// A facilitator with the first development account's key.
    pub fn facilitator(&self) -> Ours {
        self.facilitator_with(options(), Arc::new(SystemClock))
    }

    pub fn facilitator_with(&self, sender: SenderOptions, clock: Arc<dyn Clock>) -> Ours {
        let chain = self.chain();
        let sender = Sender::new(chain.clone(), self.gas_key(0), sender);
        let options =
            EvmFacilitatorOptions { confirm_timeout: Duration::from_secs(60), ..EvmFacilitatorOptions::DEFAULT };
        let facilitator = LocalEvmFacilitator::new(chain.clone(), sender.clone(), clock, options);
        Ours { chain, sender, facilitator }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ended = self.script.wait();
    }
}

/// What stands in front of a node.
pub struct Ours {
    pub chain: Arc<EvmRpc>,
    pub sender: Sender,
    pub facilitator: LocalEvmFacilitator,
}

impl Ours {
    /// Sends a call and waits until it is mined.
    pub async fn run(&self, call: Call) {
        let gas = self.sender.gas_for(&call).await.unwrap();
        let sent = self.sender.send(self.sender.prepare(call, gas).await.unwrap()).await.unwrap();
        let fate = self.sender.wait(&sent, Duration::from_secs(60)).await;
        assert!(matches!(fate, turnpike::chain::evm::sender::Fate::Confirmed(_)), "{fate:?}");
    }

    /// Mints tokens to an account.
    pub async fn mint(&self, to: Address, amount: u128) {
        let mut data = vec![0x40, 0xc1, 0x0f, 0x19];
        data.extend_from_slice(&to.word().0);
        data.extend_from_slice(&[0; 16]);
        data.extend_from_slice(&amount.to_be_bytes());
        self.run(Call { to: USDC, data }).await;
    }

    pub async fn balance(&self, account: Address) -> u64 {
        self.chain.token_balance(USDC, account).await.unwrap().to_u64().unwrap()
    }
}

/// What fits a node that mines at once.
pub fn options() -> SenderOptions {
    SenderOptions {
        poll_min: Duration::from_millis(5),
        poll_max: Duration::from_millis(50),
        resend_after: Duration::from_millis(300),
        bump_after: Duration::from_millis(600),
        ..SenderOptions::DEFAULT
    }
}

pub fn chain(endpoints: Vec<String>) -> Arc<EvmRpc> {
    Arc::new(EvmRpc::new(EvmRpcOptions::new(CHAIN_ID, endpoints), Arc::new(())).unwrap())
}

pub async fn ask(url: &str, method: &str, params: Value) -> Value {
    use http_body_util::{BodyExt, Full};
    use hyper_util::client::legacy::Client;
    use hyper_util::rt::TokioExecutor;

    let body = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params }).to_string();
    let request = http::Request::post(url).header("content-type", "application/json");
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<bytes::Bytes>>();
    let response = client.request(request.body(Full::from(body)).unwrap()).await.unwrap();
    let answer: Value = serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap();
    assert!(answer["error"].is_null(), "{method}: {}", answer["error"]);
    answer["result"].clone()
}
