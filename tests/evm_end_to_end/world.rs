//! One merchant on a node of its own, with either facilitator, and the reference clients that pay it.
//!
//! The merchant's receiver holds nothing at first, and each payer `FUNDS`. Everything ends with the test.

use std::fs::Permissions;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::Receiver;

use serde_json::{Value, json};
use tempfile::TempDir;
use turnpike::chain::evm::EvmChain;
use turnpike::scheme::evm::contracts::BATCH_SETTLEMENT;
use turnpike::x402::evm::Address;

use super::client::{Payer, USDC};
use super::node::Node;
use super::python;
use super::support::{PATIENCE, Turnpike, Upstream, directory, project};

/// What each payer has.
pub const FUNDS: u64 = 1_000_000;
/// Where the merchant is paid.
pub const RECEIVER: Address = Address::literal("0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC");

/// The part of a network's configuration that has its token taken by Permit2.
pub const PERMIT2: &str = "asset: { token: '0x036CbD53842c5426634e7929541eC2318f3dCF7e', transfer_method: permit2 }";

/// Who sends what clients sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Facilitator {
    /// npm's, in a process of its own.
    Reference,
    /// Turnpike itself.
    Local,
}

/// A reference client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reference {
    /// npm's `@x402/fetch` with `@x402/evm`.
    TypeScript,
    /// PyPI's `x402`.
    Python,
}

/// A test's body for both facilitators.
macro_rules! with_both {
    ($($body:ident),+ $(,)?) => {$(
        mod $body {
            use crate::world::Facilitator;

            #[tokio::test]
            async fn with_the_reference_facilitator() {
                super::$body(Facilitator::Reference).await;
            }

            #[tokio::test]
            async fn with_the_local_facilitator() {
                super::$body(Facilitator::Local).await;
            }
        }
    )+};
}
pub(crate) use with_both;

/// A test's body for both facilitators, and with each for both reference clients.
macro_rules! with_each {
    ($($body:ident),+ $(,)?) => {$(
        mod $body {
            use crate::world::{Facilitator, Reference};

            #[tokio::test]
            async fn with_the_reference_facilitator() {
                super::$body(Facilitator::Reference, Reference::TypeScript).await;
            }

            #[tokio::test]
            async fn with_the_local_facilitator() {
                super::$body(Facilitator::Local, Reference::TypeScript).await;
            }

            #[tokio::test]
            async fn from_python_with_the_reference_facilitator() {
                super::$body(Facilitator::Reference, Reference::Python).await;
            }

            #[tokio::test]
            async fn from_python_with_the_local_facilitator() {
                super::$body(Facilitator::Local, Reference::Python).await;
            }
        }
    )+};
}
pub(crate) use with_each;

/// A script of `tests/interop` that answers by JSON lines. It ends with the test.
pub struct Script {
    name: String,
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
}

impl Script {
    pub fn start(command: &mut Command, name: &str) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = std::sync::mpsc::channel();
        let output = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { name: name.to_owned(), input: child.stdin.take().unwrap(), child, lines }
    }

    pub fn node(name: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut command = Command::new("node");
        command.arg(project("tests/interop").join(name)).args(arguments).envs(environment.iter().copied());
        Self::start(&mut command, name)
    }

    pub fn line(&self) -> Value {
        let line = self.lines.recv_timeout(PATIENCE);
        let line = line.unwrap_or_else(|error| panic!("{} says nothing more: {error}", self.name));
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("{} said {line:?}", self.name))
    }

    pub fn ask(&mut self, command: &Value) -> Value {
        writeln!(self.input, "{command}").unwrap();
        self.line()
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// A merchant that serves.
pub struct Shop {
    pub turnpike: Turnpike,
    pub node: Node,
    _facilitator: Option<Script>,
    _upstream: Upstream,
    pub place: TempDir,
}

/// What its upstream answers: 503 below `/fail`, and elsewhere that 0.0003 of the token were used.
fn upstream() -> Upstream {
    Upstream::start(|head, mut stream| {
        let answer: &[u8] = if head.starts_with("GET /fail") {
            b"HTTP/1.1 503 Down\r\nContent-Length: 4\r\nConnection: close\r\n\r\ndown"
        } else {
            b"HTTP/1.1 200 OK\r\nX-Cost: 0.0003\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello"
        };
        let _gone = stream.write_all(answer);
    })
}

fn write_secret(file: &Path, text: &str) {
    std::fs::write(file, text).unwrap();
    std::fs::set_permissions(file, Permissions::from_mode(0o600)).unwrap();
}

/// The part of a configuration that opens the two committed shares of the EVM key.
pub fn evm_shares(place: &TempDir) -> String {
    let mut text = "  evm_shares:\n".to_owned();
    for number in [1, 2] {
        let passphrase = place.path().join(format!("passphrase-evm-{number}"));
        write_secret(&passphrase, &format!("correct horse battery {number}"));
        let share = project("tests/support/shares-v1-secp256k1").join(format!("evm-share-{number}.json"));
        text += &format!("    - {{ file: {}, passphrase_file: {} }}\n", share.display(), passphrase.display());
    }
    text
}

/// The keys that say how `base-sepolia` is reached, one a line; and the facilitator's process, where it has one.
pub fn reached(node: &Node, facilitator: Facilitator, place: &TempDir) -> (Vec<String>, Option<Script>) {
    let mut keys =
        vec!["network: base-sepolia".into(), format!("pay_to: '{RECEIVER}'"), format!("rpc_url: {}", node.url)];
    let script = match facilitator {
        Facilitator::Reference => {
            let script = Script::node("facilitator.mjs", &[], &[("RPC_URL", &node.url)]);
            keys.push(format!("facilitator: {}", script.line()["url"].as_str().unwrap()));
            Some(script)
        }
        Facilitator::Local => {
            write_secret(&place.path().join("gas.key"), node.key(0));
            keys.extend(["facilitator: local".into(), "gas_key_file: gas.key".into()]);
            None
        }
    };
    (keys, script)
}

impl Shop {
    /// Opens one on a node. `more` is what the network has besides, and `routes` the routes, both in YAML.
    pub fn open(node: Node, facilitator: Facilitator, more: &str, routes: &str) -> Self {
        let place = directory();
        let (mut keys, script) = reached(&node, facilitator, &place);
        keys.push(more.to_owned());
        let signer = format!("signer:\n{}", evm_shares(&place));
        Self::serve(place, node, script, "", &format!("{}\n{signer}routes:\n{routes}", keys.join("\n")))
    }

    /// Opens one that is paid on another network too: `other` is its entry, `signer` both keys', and `settlement` what is
    /// said of the settlement beyond that it has no round of its own.
    pub fn open_beside(
        other: &str,
        signer: &str,
        settlement: &str,
        place: TempDir,
        node: Node,
        facilitator: Facilitator,
        routes: &str,
    ) -> Self {
        let (keys, script) = reached(&node, facilitator, &place);
        let networks = format!("networks:\n  - {other}\n  - {{ {} }}", keys.join(", "));
        Self::serve(place, node, script, settlement, &format!("{networks}\n{signer}routes:\n{routes}"))
    }

    fn serve(place: TempDir, node: Node, facilitator: Option<Script>, settlement: &str, configuration: &str) -> Self {
        let upstream = upstream();
        // No round of its own: a test says when it settles.
        let basis = format!("upstream: http://{}\nsettlement: {{ interval: 1h, {settlement} }}", upstream.address);
        let turnpike = Turnpike::serve(place.path(), &format!("{basis}\n{configuration}"));
        Self { turnpike, node, _facilitator: facilitator, _upstream: upstream, place }
    }

    /// The TypeScript client with a payer's key; `settings` as in `pay_evm.mjs`.
    pub fn client(&self, payer: &Payer, settings: &Value) -> Client<'_> {
        self.client_of(Reference::TypeScript, payer, settings)
    }

    /// A reference client with a payer's key; `settings` as in `pay_evm.mjs` or `pay_evm.py`.
    pub fn client_of(&self, reference: Reference, payer: &Payer, settings: &Value) -> Client<'_> {
        let mut all = json!({ "key": payer.key(), "rpc_url": self.node.url });
        all.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
        let script = match reference {
            Reference::TypeScript => Script::node("pay_evm.mjs", &[&all.to_string()], &[]),
            Reference::Python => python::start("pay_evm.py", &all.to_string()),
        };
        Client { script, shop: self }
    }

    pub async fn balance(&self, account: Address) -> u64 {
        self.node.chain().token_balance(USDC, account).await.unwrap().to_u64().unwrap()
    }

    /// Settles; all goes well.
    pub async fn settle(&self) {
        let settled = self.turnpike.settle().await;
        assert_eq!(settled["failures"], 0, "{settled}");
    }

    /// What the payer and the merchant have, and what the contract holds.
    pub async fn balances(&self, payer: Address) -> [u64; 3] {
        [self.balance(payer).await, self.balance(RECEIVER).await, self.balance(BATCH_SETTLEMENT).await]
    }
}

/// A reference client in a process of its own.
pub struct Client<'a> {
    script: Script,
    shop: &'a Shop,
}

impl Client<'_> {
    /// Tells it what to do (`pay_evm.mjs` says what there is); `url` is a path of the shop.
    pub fn ask(&mut self, mut command: Value) -> Value {
        if let Some(path) = command["url"].as_str() {
            command["url"] = json!(self.shop.turnpike.url(path).to_string());
        }
        self.script.ask(&command)
    }

    /// Pays, and is served.
    pub fn pay(&mut self, path: &str) -> Value {
        let answer = self.ask(json!({ "do": "pay", "url": path }));
        assert_eq!((answer["status"].as_u64(), answer["body"].as_str()), (Some(200), Some("hello")), "{answer}");
        answer
    }

    /// Is refused.
    pub fn refused(&mut self, command: Value, reason: &str) -> Value {
        let answer = self.ask(command);
        assert_eq!(
            (answer["status"].as_u64(), answer["required"]["error"].as_str()),
            (Some(402), Some(reason)),
            "{answer}"
        );
        answer
    }

    /// Has so much, or all that is left, of its deposit paid back; the settlement.
    pub fn refund(&mut self, path: &str, amount: Option<&str>) -> Value {
        let answer = self.ask(json!({ "do": "refund", "url": path, "amount": amount }));
        assert_eq!(answer["settlement"]["success"], true, "{answer}");
        answer["settlement"].clone()
    }
}
