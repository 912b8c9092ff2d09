//! Processes and wallets for the end-to-end tests. Everything listens on free loopback ports and is ended by its own
//! process id.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ed25519_dalek::SigningKey;
use http::{HeaderMap, Method, Uri};
use serde_json::{Value, json};
use tempfile::TempDir;
use turnpike::amount::Amount;
use turnpike::chain::svm::{SvmRpc, SvmRpcOptions};
use turnpike::client::http::{Http, Request};
use turnpike::client::{Client, Spending};
use turnpike::scheme::svm::{TOKEN_PROGRAM, USDC_DEVNET, associated_token_account};
use turnpike::x402::Key;

pub const BINARY: &str = env!("CARGO_BIN_EXE_turnpike");
/// How long any single thing may take before a test gives up on it.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A child process that is killed when dropped, with its last lines of standard error.
pub struct Process {
    pub child: Child,
    lines: Arc<Mutex<VecDeque<String>>>,
    news: std::sync::mpsc::Receiver<String>,
}

impl Process {
    /// Starts a command; lines of its standard output and standard error can be waited for.
    pub fn start(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = Arc::new(Mutex::new(VecDeque::new()));
        let (sender, news) = std::sync::mpsc::channel();
        let streams: [Box<dyn std::io::Read + Send>; 2] =
            [Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap())];
        for stream in streams {
            let (lines, sender) = (Arc::clone(&lines), sender.clone());
            std::thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    let mut lines = lines.lock().unwrap();
                    lines.push_back(line.clone());
                    if lines.len() > 200 {
                        lines.pop_front();
                    }
                    let _nobody_waits = sender.send(line);
                }
            });
        }
        Self { child, lines, news }
    }

    /// Waits for a line that `read` makes something of.
    pub fn wait_for<T>(&self, what: &str, mut read: impl FnMut(&str) -> Option<T>) -> T {
        loop {
            match self.news.recv_timeout(PATIENCE) {
                Ok(line) => {
                    if let Some(found) = read(&line) {
                        return found;
                    }
                }
                Err(_) => panic!("waited in vain for {what}; the process said:\n{}", self.said()),
            }
        }
    }

    pub fn said(&self) -> String {
        self.lines.lock().unwrap().iter().cloned().collect::<Vec<_>>().join("\n")
    }

    /// The most memory that the process has had at once, in KiB.
    pub fn peak_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- process {} said:\n{}", self.child.id(), self.said());
        }
    }
}

/// A `turnpike serve`.
pub struct Turnpike {
    pub process: Process,
    pub address: SocketAddr,
    pub admin: SocketAddr,
    pub rpc_url: Option<String>,
}

impl Turnpike {
    /// Starts `turnpike serve` on a configuration, to which free ports and JSON logs are added.
    pub fn serve(directory: &Path, configuration: &str) -> Self {
        let file = directory.join("turnpike.yaml");
        let text = format!(
            "{configuration}\nlisten: 127.0.0.1:0\nadmin: {{ listen: '127.0.0.1:0' }}\nlog: {{ format: json, level: info }}\n"
        );
        std::fs::write(&file, text).unwrap();
        let process = Process::start(Command::new(BINARY).arg("serve").arg(&file).current_dir(directory));
        let ready = process.wait_for("turnpike to be ready", |line| {
            let line: Value = serde_json::from_str(line).ok()?;
            (line["message"] == "turnpike is ready").then_some(line)
        });
        let address = |field: &str| ready[field].as_str().unwrap().parse().unwrap();
        let rpc_url = ready["sandbox_rpc"].as_str().map(str::to_owned);
        Self { address: address("listen"), admin: address("admin"), rpc_url, process }
    }

    pub fn url(&self, path: &str) -> Uri {
        format!("http://{}{path}", self.address).parse().unwrap()
    }

    /// Asks the admin side.
    pub async fn admin(&self, method: Method, path: &str) -> (u16, String) {
        let uri = format!("http://{}{path}", self.admin).parse().unwrap();
        let request = Request { method, uri, headers: HeaderMap::new(), body: bytes::Bytes::new() };
        let response = Http::new().unwrap().send(&request, None).await.unwrap();
        let status = response.status();
        (status, String::from_utf8(response.bytes(1 << 26).await.unwrap().to_vec()).unwrap())
    }

    /// Settles now; the report's lines.
    pub async fn settle(&self) -> Value {
        let (status, body) = self.admin(Method::POST, "/api/settle").await;
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }
}

/// A standalone sandbox chain.
pub struct Chain {
    _process: Process,
    pub url: String,
}

impl Chain {
    pub fn start() -> Self {
        let process = Process::start(Command::new(BINARY).args(["sandbox", "--listen", "127.0.0.1:0"]));
        let url = process.wait_for("the sandbox to answer", |line| {
            let at = line.find("http://")?;
            Some(line[at..].split(';').next()?.to_owned())
        });
        Self { _process: process, url }
    }
}

/// Calls a method of a chain's JSON-RPC.
pub async fn rpc(url: &str, method: &str, params: Value) -> Value {
    let body = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params }).to_string();
    let mut headers = HeaderMap::new();
    headers.insert("content-type", "application/json".parse().unwrap());
    let request = Request { method: Method::POST, uri: url.parse().unwrap(), headers, body: body.into() };
    let response = Http::new().unwrap().send(&request, None).await.unwrap().bytes(1 << 24).await.unwrap();
    let answer: Value = serde_json::from_slice(&response).unwrap();
    assert!(answer.get("error").is_none(), "{method}: {answer}");
    answer["result"].clone()
}

/// The USDC that an owner holds on a sandbox; nothing where the account does not exist.
pub async fn balance(url: &str, owner: &Key) -> u64 {
    let account = associated_token_account(owner, &USDC_DEVNET, &TOKEN_PROGRAM);
    let info = rpc(url, "getAccountInfo", json!([account, { "encoding": "base64" }])).await;
    let Some(data) = info["value"]["data"][0].as_str() else { return 0 };
    let data = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, data).unwrap();
    u64::from_le_bytes(data[64..72].try_into().unwrap())
}

/// A wallet that a test makes up.
pub fn wallet(number: u8) -> SigningKey {
    SigningKey::from_bytes(&[number; 32])
}

pub fn address(key: &SigningKey) -> Key {
    Key(key.verifying_key().to_bytes())
}

/// A paying client with a funded wallet.
pub async fn client(rpc_url: &str, number: u8, funds: u64, deposit: u64) -> Client {
    let key = wallet(number);
    if funds > 0 {
        rpc(rpc_url, "sandbox_mintTo", json!([address(&key), funds])).await;
    }
    let chain = SvmRpc::new(SvmRpcOptions::sandbox(rpc_url.to_owned())).unwrap();
    let (call_max, deposit) = (Amount::from(1_000_000_u64), Amount::from(deposit));
    Client::new(key, Arc::new(chain), Spending { call_max, deposit, deposit_max: deposit }).unwrap()
}

/// Makes a key's three shares, and the part of a configuration that opens two of them. Also the key's address.
pub fn keygen(directory: &Path) -> (String, Key) {
    for folder in ["shares", "passphrases"] {
        std::fs::create_dir_all(directory.join(folder)).unwrap();
    }
    let made = Command::new(BINARY)
        .args(["keygen", "--out", "shares", "--generate-passphrases", "passphrases", "--json"])
        .current_dir(directory)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let report: Value = serde_json::from_slice(&made.stdout).unwrap();
    let share = |n: usize| {
        format!("    - {{ file: shares/share-{n}.json, passphrase_file: passphrases/passphrase-{n}.txt }}\n")
    };
    let text = format!("signer:\n  shares:\n{}{}", share(1), share(3));
    (text, report["address"].as_str().unwrap().parse().unwrap())
}

pub fn directory() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// An HTTP server on a thread of its own that answers each connection with `answer` of the request's head and the
/// number of requests before it. Says nothing of payments.
pub struct Upstream {
    pub address: SocketAddr,
}

impl Upstream {
    pub fn start(answer: impl Fn(&str, std::net::TcpStream) + Send + Sync + 'static) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let answer = Arc::new(answer);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let answer = Arc::clone(&answer);
                std::thread::spawn(move || {
                    let mut reader = BufReader::new(stream.try_clone().unwrap());
                    let mut head = String::new();
                    while reader.read_line(&mut head).is_ok_and(|n| n > 0) && !head.ends_with("\r\n\r\n") {}
                    if !head.is_empty() {
                        answer(&head, stream);
                    }
                });
            }
        });
        Self { address }
    }
}

/// Where the project's own files are.
pub fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}
