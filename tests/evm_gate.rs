//! The reference clients (npm's `@x402/fetch` with `@x402/evm`, and `x402-fetch` of protocol version 1) pay a gate on
//! the tests' chain, once through our own facilitator and once through the reference one, until the balances tie out.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

#[path = "evm_chain/client.rs"]
#[allow(dead_code, reason = "each test binary uses a part")]
mod client;
#[path = "evm_chain/node.rs"]
#[allow(dead_code, reason = "each test binary uses a part")]
mod node;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};
use turnpike::chain::evm::EvmChain;
use turnpike::clock::SystemClock;
use turnpike::facilitator::FacilitatorError;
use turnpike::facilitator::authorizer::{ReceiverAuthorizer, Refund, RefundAuthorization};
use turnpike::facilitator::http::{HttpFacilitator, RemoteOptions};
use turnpike::facilitator::interface::X402Facilitator;
use turnpike::gate::charge::Meter;
use turnpike::gate::evm::{EvmNetwork, EvmSide, Served};
use turnpike::gate::route::{EvmScheme, Offer, Payee, Pricing, Route};
use turnpike::gate::{Gate, Options};
use turnpike::layer::{LayerOptions, RouteMatch, TurnpikeLayer};
use turnpike::ledger::channel::Evm;
use turnpike::ledger::memory::MemoryStore;
use turnpike::ledger::{Ledger, Limits};
use turnpike::scheme::evm::eip712::{ClaimEntry, Domain, claim_batch_digest, refund_digest};
use turnpike::scheme::evm::{EvmSeller, TransferMethod, assets};
use turnpike::x402::Network;
use turnpike::x402::evm::{Address, U256};

use client::Payer;
use node::{CHAIN_ID, Node};

const FUNDS: u64 = 1_000_000;

/// A script of `tests/interop` that is driven by lines.
struct Script {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Script {
    fn start(name: &str, arguments: &[String], environment: &[(&str, &str)]) -> Self {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop");
        let mut command = Command::new("node");
        command.arg(format!("{folder}/{name}")).args(arguments).envs(environment.iter().copied());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self { input: child.stdin.take(), child, output }
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("a script said {line:?}"))
    }

    fn ask(&mut self, command: &Value) -> Value {
        writeln!(self.input.as_mut().unwrap(), "{command}").unwrap();
        self.line()
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ended = self.child.wait();
    }
}

/// Signs with the merchant's own key.
struct Authorizer(Payer);

#[async_trait]
impl ReceiverAuthorizer for Authorizer {
    async fn authorize_refund(&self, refund: &Refund) -> Result<RefundAuthorization, FacilitatorError> {
        let (domain, id) = (Domain::batch_settlement(CHAIN_ID), refund.terms.id);
        let claim = refund.voucher.as_ref().map(|voucher| {
            let max_claimable_amount = voucher.cumulative;
            let entry = ClaimEntry { channel_id: id, max_claimable_amount, total_claimed: refund.charged };
            self.0.sign(&claim_batch_digest(&domain, &[entry])).into()
        });
        let nonce = U256::from(refund.on_chain.refund_nonce);
        let refund = self.0.sign(&refund_digest(&domain, &id, nonce, refund.amount)).into();
        Ok(RefundAuthorization { claim, refund })
    }
}

fn seller(transfer_method: TransferMethod) -> Arc<EvmSeller> {
    let network = Network::eip155(CHAIN_ID);
    let usdc = assets::by_symbol(&network, "USDC").unwrap();
    Arc::new(EvmSeller {
        network,
        chain_id: CHAIN_ID,
        asset: Arc::new(usdc.asset()),
        token: usdc.address,
        token_name: usdc.name.into(),
        token_version: usdc.version.into(),
        transfer_method,
        pay_to: Payer::new(0x51).address(),
        receiver_authorizer: Payer::new(0x52).address(),
        withdraw_delay: 900,
        domain: Domain::batch_settlement(CHAIN_ID),
    })
}

fn route(path: &str, scheme: EvmScheme, method: TransferMethod) -> Arc<Route> {
    let amount: u64 = if scheme == EvmScheme::Upto { 10_000 } else { 1_000 };
    let (payee, amount) = (Payee::Evm(seller(method), scheme), amount.into());
    let offer = Offer { payee, amount, min_deposit: None, max_timeout_seconds: 60, memo: None };
    let meter = Meter::charge(http::HeaderName::from_static("x-cost"));
    let pricing = match scheme {
        EvmScheme::Upto => Pricing::Metered { offers: vec![offer], meter: Some(meter) },
        EvmScheme::Exact | EvmScheme::BatchSettlement => Pricing::Fixed(vec![offer]),
    };
    Arc::new(Route {
        name: path.into(),
        host: None,
        methods: Vec::new(),
        path: path.into(),
        pricing,
        upstream: None,
        timeout: None,
        description: Some("a quote".into()),
        mime_type: None,
        policy: None,
        scope: path.into(),
        pack: None,
    })
}

/// Serves the merchant's API with a gate before it; its address.
async fn serve(facilitator: Arc<dyn X402Facilitator>) -> String {
    let clock = Arc::new(SystemClock);
    let network = Network::eip155(CHAIN_ID);
    let served = Served::of(&facilitator.supported().await.unwrap(), &network);
    assert!(served.exact_v1 && served.upto_facilitator.is_some(), "{served:?}");
    let svm = Ledger::open(Arc::new(MemoryStore::default()), clock.clone(), Limits::default()).await.unwrap();
    let evm = Arc::new(MemoryStore::<Evm>::default());
    let ledger = Ledger::open(evm, clock.clone(), Limits::default()).await.unwrap();
    let authorizer = Arc::new(Authorizer(Payer::new(0x52)));
    let networks = [(network, EvmNetwork { facilitator, authorizer, served })].into();
    let gate = Gate::with_evm(svm, [], Some(EvmSide { ledger, networks }), clock, Options::default());
    let table = [
        ("/exact", route("/exact", EvmScheme::Exact, TransferMethod::Eip3009)),
        ("/exact/permit2", route("/exact/permit2", EvmScheme::Exact, TransferMethod::Permit2)),
        ("/upto", route("/upto", EvmScheme::Upto, TransferMethod::Permit2)),
        ("/batch", route("/batch", EvmScheme::BatchSettlement, TransferMethod::Eip3009)),
    ];
    let routes = move |parts: &http::request::Parts| {
        let found = table.iter().find(|(path, _)| *path == parts.uri.path());
        found.map_or(RouteMatch::Unlisted, |(_, route)| RouteMatch::Route(Arc::clone(route)))
    };
    let api = axum::Router::new().fallback(|| async { ([("x-cost", "0.0042")], "hello") });
    let shop = api.layer(TurnpikeLayer::new(gate, routes, LayerOptions::default()));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    drop(tokio::spawn(async move { axum::serve(listener, shop).await }));
    address
}

fn key(seed: u8) -> String {
    format!("0x{}", format!("{seed:02x}").repeat(32))
}

/// A client of `seed`'s wallet that takes only offers of a scheme and a transfer method.
fn payer(seed: u8, scheme: &str, transfer: &str) -> Script {
    let settings = json!({
        "key": key(seed), "scheme": scheme, "transfer": transfer, "deposit": "20000", "any_price": true,
    });
    Script::start("pay_evm.mjs", &[settings.to_string()], &[])
}

fn assert_paid(answer: &Value, amount: &str) {
    assert_eq!((&answer["status"], &answer["body"]), (&json!(200), &json!("hello")), "{answer}");
    assert_eq!((&answer["settlement"]["success"], &answer["settlement"]["amount"]), (&json!(true), &json!(amount)));
}

/// All schemes and both versions; what the merchant has then.
async fn pays_by_every_scheme(node: &Node, shop: &str, seed: u8) {
    let chain = node.chain();
    let balance = |account: Address| {
        let chain = Arc::clone(&chain);
        async move { chain.token_balance(client::USDC, account).await.unwrap().to_u64().unwrap() }
    };
    let (wallet, merchant) = (Payer::new(seed).address(), Payer::new(0x51).address());
    let before = balance(merchant).await;
    let url = |path: &str| format!("{shop}{path}");

    let mut exact = payer(seed, "exact", "eip3009");
    assert_paid(&exact.ask(&json!({ "do": "pay", "url": url("/exact") })), "1000");
    let replayed = exact.ask(&json!({ "do": "replay" }));
    assert_eq!((&replayed["status"], &replayed["required"]["error"]), (&json!(402), &json!("duplicate_settlement")));
    let tampered =
        exact.ask(&json!({ "do": "tamper", "change": { "payload": { "authorization": { "value": "1" } } } }));
    assert_eq!(tampered, json!({}));
    assert_eq!(exact.ask(&json!({ "do": "pay", "url": url("/exact") }))["status"], 402);

    let mut permit2 = payer(seed, "exact", "permit2");
    assert_paid(&permit2.ask(&json!({ "do": "pay", "url": url("/exact/permit2") })), "1000");
    let mut upto = payer(seed, "upto", "permit2");
    assert_paid(&upto.ask(&json!({ "do": "pay", "url": url("/upto") })), "4200");

    let mut v1 = Script::start("pay_v1.mjs", &[url("/exact"), key(seed), "2".to_owned()], &[]);
    for answer in [v1.line(), v1.line()] {
        assert_eq!((&answer["status"], &answer["body"]), (&json!(200), &json!("hello")), "{answer}");
        assert_eq!(answer["settlement"]["network"], "base-sepolia", "{answer}");
        assert_eq!(answer["settlement"]["success"], true, "{answer}");
    }
    assert_eq!(balance(merchant).await - before, 1000 + 1000 + 4200 + 2000);

    let mut batch = payer(seed, "batch-settlement", "eip3009");
    assert_paid(&batch.ask(&json!({ "do": "pay", "url": url("/batch") })), "20000");
    for _ in 0..2 {
        assert_paid(&batch.ask(&json!({ "do": "pay", "url": url("/batch") })), "");
    }
    let replayed = batch.ask(&json!({ "do": "replay" }));
    assert_eq!(replayed["status"], 402, "{replayed}");
    let refund = batch.ask(&json!({ "do": "refund", "url": url("/batch") }));
    assert_eq!((&refund["settlement"]["success"], &refund["settlement"]["amount"]), (&json!(true), &json!("17000")));
    assert_eq!(FUNDS - balance(wallet).await, 8_200 + 3_000, "what was not used is the payer's again");
}

/// The reference facilitator, with rules for when it misbehaves.
fn reference(node: &Node, rules: &Value) -> (Script, Arc<HttpFacilitator>) {
    let rules = rules.to_string();
    let mut script = Script::start("facilitator.mjs", &[], &[("RPC_URL", &node.url), ("MISBEHAVE", &rules)]);
    let options = RemoteOptions {
        url: script.line()["url"].as_str().unwrap().to_owned(),
        headers: Vec::new(),
        verify_timeout: Duration::from_secs(30),
        settle_timeout: Duration::from_secs(60),
    };
    (script, Arc::new(HttpFacilitator::new(&[options], Arc::new(())).unwrap()))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_reference_clients_pay_through_our_own_facilitator() {
    let node = Node::start(&[&Payer::new(0x61)], false);
    let shop = serve(Arc::new(node.facilitator().facilitator)).await;
    pays_by_every_scheme(&node, &shop, 0x61).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_reference_clients_pay_through_the_reference_facilitator() {
    let node = Node::start(&[&Payer::new(0x62)], false);
    let (_script, facilitator) = reference(&node, &json!([]));
    let shop = serve(facilitator).await;
    pays_by_every_scheme(&node, &shop, 0x62).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_facilitator_that_breaks_off_has_nobody_pay_twice_or_get_unpaid_answers() {
    let node = Node::start(&[&Payer::new(0x63)], false);
    let breaks = |kind: &str, when: &str| json!({ "kind": kind, "when": when, "do": "hangup", "count": 1 });
    let rules = json!([breaks("exact", "before"), breaks("upto", "after"), breaks("deposit", "after")]);
    let (_script, facilitator) = reference(&node, &rules);
    let shop = serve(facilitator).await;
    let chain = node.chain();
    let balance =
        || async { chain.token_balance(client::USDC, Payer::new(0x51).address()).await.unwrap().to_u64().unwrap() };
    let pay = |script: &mut Script, path: &str| script.ask(&json!({ "do": "pay", "url": format!("{shop}{path}") }));

    // Never sent, asked for again, settled.
    assert_paid(&pay(&mut payer(0x63, "exact", "eip3009"), "/exact"), "1000");
    assert_eq!(balance().await, 1000);

    // Mined and not told of: nobody can say that this is whose payment it was.
    let mut upto = payer(0x63, "upto", "permit2");
    let answer = pay(&mut upto, "/upto");
    assert_eq!((&answer["status"], &answer["settlement"]["success"]), (&json!(500), &json!(false)), "{answer}");
    assert_eq!(answer["settlement"]["errorReason"], "settlement_pending", "{answer}");
    assert_eq!(balance().await, 5200, "settled once");
    assert_eq!(upto.ask(&json!({ "do": "replay" }))["status"], 402);

    // A deposit shows in its channel.
    assert_paid(&pay(&mut payer(0x63, "batch-settlement", "eip3009"), "/batch"), "20000");
}
