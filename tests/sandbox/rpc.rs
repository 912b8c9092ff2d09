//! The JSON-RPC over real HTTP: the shapes that clients read.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use turnpike::chain::sandbox::{Options, Sandbox};
use turnpike::scheme::svm::TOKEN_PROGRAM;
use turnpike::scheme::svm::program;
use turnpike::scheme::svm::transaction::Transaction;
use turnpike::x402::Key;

use crate::world::{World, public, sign};

async fn post(url: &str, body: &Value) -> Value {
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<bytes::Bytes>>();
    let request = http::Request::post(url).header("content-type", "application/json");
    let answer = client.request(request.body(Full::from(body.to_string())).unwrap()).await.unwrap();
    assert_eq!(answer.status(), 200);
    serde_json::from_slice(&answer.into_body().collect().await.unwrap().to_bytes()).unwrap()
}

async fn call(sandbox: &Sandbox, method: &str, params: Value) -> Value {
    let body = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
    let mut answer = post(sandbox.rpc_url(), &body).await;
    assert_eq!((&answer["jsonrpc"], &answer["id"]), (&json!("2.0"), &json!(1)));
    assert!(answer["error"].is_null(), "{answer}");
    answer["result"].take()
}

async fn started() -> Sandbox {
    Sandbox::start(Options::new("solana:EtWTRABZaYq6iMfeYKouRu166VU2xqa1".parse().unwrap())).await.unwrap()
}

#[tokio::test]
async fn the_chain_s_numbers() {
    let sandbox = started().await;
    assert_eq!(call(&sandbox, "getHealth", json!([])).await, json!("ok"));
    assert!(call(&sandbox, "getVersion", json!([])).await["solana-core"].is_string());
    let genesis = call(&sandbox, "getGenesisHash", json!([])).await;
    assert!(genesis.as_str().unwrap().starts_with("EtWTRABZaYq6iMfeYKouRu166VU2xqa1"));
    let slot = call(&sandbox, "getSlot", json!([{ "commitment": "processed" }])).await.as_u64().unwrap();
    let finalized = call(&sandbox, "getSlot", json!([])).await.as_u64().unwrap();
    assert!(finalized < slot);
    let height = call(&sandbox, "getBlockHeight", json!([{ "commitment": "confirmed" }])).await.as_u64().unwrap();
    assert!(height < slot);
    assert_eq!(call(&sandbox, "getEpochInfo", json!([])).await["slotsInEpoch"], 432_000);
    assert_eq!(call(&sandbox, "getMinimumBalanceForRentExemption", json!([165])).await, 2_039_280);
    let latest = call(&sandbox, "getLatestBlockhash", json!([])).await;
    let hash = &latest["value"]["blockhash"];
    assert!(latest["value"]["lastValidBlockHeight"].as_u64().unwrap() > height);
    assert_eq!(call(&sandbox, "isBlockhashValid", json!([hash])).await["value"], true);
    assert_eq!(call(&sandbox, "isBlockhashValid", json!([Key([1; 32])])).await["value"], false);
}

#[tokio::test]
async fn accounts_and_tokens() {
    let sandbox = started().await;
    let (owner, mint) = (Key([40; 32]), sandbox.usdc());
    let account = sandbox.mint_to(&owner, 1_500_000).unwrap();

    let info = call(&sandbox, "getAccountInfo", json!([mint, { "encoding": "base64" }])).await;
    let value = &info["value"];
    assert_eq!(STANDARD.decode(value["data"][0].as_str().unwrap()).unwrap().len(), 82);
    assert_eq!(
        (&value["owner"], &value["space"], &value["executable"]),
        (&json!(TOKEN_PROGRAM), &json!(82), &json!(false))
    );
    assert!(info["context"]["slot"].is_u64());
    let parsed = call(&sandbox, "getAccountInfo", json!([account, { "encoding": "jsonParsed" }])).await;
    let amount = json!({ "amount": "1500000", "decimals": 6, "uiAmount": 1.5, "uiAmountString": "1.5" });
    assert_eq!(parsed["value"]["data"]["program"], "spl-token");
    assert_eq!(parsed["value"]["data"]["parsed"]["type"], "account");
    assert_eq!(parsed["value"]["data"]["parsed"]["info"]["tokenAmount"], amount);
    assert_eq!(parsed["value"]["data"]["parsed"]["info"]["state"], "initialized");
    assert_eq!(call(&sandbox, "getAccountInfo", json!([Key([41; 32])])).await["value"], Value::Null);

    let many = call(&sandbox, "getMultipleAccounts", json!([[mint, Key([41; 32])], { "encoding": "base64" }])).await;
    assert!(many["value"][0].is_object() && many["value"][1].is_null());
    assert_eq!(call(&sandbox, "getTokenAccountBalance", json!([account])).await["value"], amount);
    let owned =
        call(&sandbox, "getTokenAccountsByOwner", json!([owner, { "mint": mint }, { "encoding": "jsonParsed" }])).await;
    assert_eq!(owned["value"][0]["pubkey"], json!(account));
    assert_eq!(owned["value"].as_array().unwrap().len(), 1);
    let owned = call(
        &sandbox,
        "getTokenAccountsByOwner",
        json!([owner, { "programId": TOKEN_PROGRAM }, { "encoding": "base64" }]),
    )
    .await;
    assert_eq!(owned["value"][0]["pubkey"], json!(account));

    let filters = json!([{ "dataSize": 165 }, { "memcmp": { "offset": 32, "bytes": STANDARD.encode(owner.0), "encoding": "base64" } }]);
    let slice = json!({ "offset": 64, "length": 8 });
    let config = json!({ "encoding": "base64", "filters": filters, "dataSlice": slice, "withContext": true });
    let found = call(&sandbox, "getProgramAccounts", json!([TOKEN_PROGRAM, config])).await;
    let data = found["value"][0]["account"]["data"][0].as_str().unwrap();
    assert_eq!(STANDARD.decode(data).unwrap(), 1_500_000u64.to_le_bytes());
    let none = json!([{ "memcmp": { "offset": 32, "bytes": Key([42; 32]) } }]);
    assert_eq!(
        call(&sandbox, "getProgramAccounts", json!([TOKEN_PROGRAM, { "encoding": "base64", "filters": none }])).await,
        json!([])
    );

    let id = call(&sandbox, "requestAirdrop", json!([owner, 5_000_000])).await;
    assert_eq!(
        call(&sandbox, "getSignatureStatuses", json!([[id]])).await["value"][0]["confirmationStatus"],
        "confirmed"
    );
    assert_eq!(call(&sandbox, "getBalance", json!([owner])).await["value"], 5_000_000);
    let clock = call(
        &sandbox,
        "getAccountInfo",
        json!(["SysvarC1ock11111111111111111111111111111111", { "encoding": "base64" }]),
    )
    .await;
    assert_eq!(clock["value"]["space"], 40);
}

#[tokio::test]
async fn sending_and_looking_back() {
    let sandbox = started().await;
    let operator = ed25519_dalek::SigningKey::from_bytes(&[2; 32]);
    sandbox.airdrop(&public(&operator), 1_000_000_000).unwrap();
    let latest = call(&sandbox, "getLatestBlockhash", json!([{ "commitment": "finalized" }])).await;
    let hash: Key = latest["value"]["blockhash"].as_str().unwrap().parse().unwrap();
    let mut memo = Transaction::build(public(&operator), &[program::memo("hello")], hash.0).unwrap();
    let message = STANDARD.encode(memo.message());
    assert_eq!(call(&sandbox, "getFeeForMessage", json!([message])).await["value"], 5_000);

    let unsigned = STANDARD.encode(memo.encode());
    let simulated = call(&sandbox, "simulateTransaction", json!([unsigned, { "encoding": "base64" }])).await;
    assert_eq!(simulated["value"]["err"], Value::Null);
    assert!(simulated["value"]["logs"][1].as_str().unwrap().contains("Memo (len 5): \"hello\""));
    let verified = json!([unsigned, { "encoding": "base64", "sigVerify": true }]);
    assert_eq!(call(&sandbox, "simulateTransaction", verified).await["value"]["err"], "SignatureFailure");
    let stale = Transaction::build(public(&operator), &[program::memo("hello")], [7; 32]).unwrap();
    let replaced = json!([STANDARD.encode(stale.encode()), { "encoding": "base64", "replaceRecentBlockhash": true }]);
    let replaced = call(&sandbox, "simulateTransaction", replaced).await;
    assert!(replaced["value"]["err"].is_null() && replaced["value"]["replacementBlockhash"]["blockhash"].is_string());

    sign(&mut memo, &[&operator]);
    let text = bs58::encode(memo.encode()).into_string();
    assert_eq!(call(&sandbox, "sendTransaction", json!([text])).await, json!(memo.id()));
    let status =
        call(&sandbox, "getSignatureStatuses", json!([[memo.id(), memo.id()], { "searchTransactionHistory": true }]))
            .await;
    assert_eq!(status["value"][1]["confirmationStatus"], "confirmed");
    assert_eq!(status["value"][1]["status"], json!({ "Ok": null }));
    sandbox.advance_slots(32);
    let status = call(&sandbox, "getSignatureStatuses", json!([[memo.id()]])).await;
    assert_eq!(status["value"][0]["confirmationStatus"], "finalized");
    assert_eq!(status["value"][0]["confirmations"], Value::Null);

    let config = json!({ "encoding": "json", "maxSupportedTransactionVersion": 0, "commitment": "confirmed" });
    let found = call(&sandbox, "getTransaction", json!([memo.id(), config])).await;
    assert_eq!(found["meta"]["fee"], 5_000);
    assert_eq!(found["version"], "legacy");
    assert_eq!(found["transaction"]["message"]["header"]["numRequiredSignatures"], 1);
    assert_eq!(
        found["meta"]["preBalances"][0].as_u64().unwrap() - found["meta"]["postBalances"][0].as_u64().unwrap(),
        5_000
    );
    let wire = call(&sandbox, "getTransaction", json!([memo.id(), "base64"])).await;
    assert_eq!(wire["transaction"][0], STANDARD.encode(memo.encode()));
    let history = call(&sandbox, "getSignaturesForAddress", json!([public(&operator), { "limit": 10 }])).await;
    assert_eq!(history[0]["signature"], json!(memo.id()));
}

#[tokio::test]
async fn refusals_have_solana_s_shapes() {
    let sandbox = started().await;
    let ask = async |method: &str, params: Value| {
        let body = json!({ "jsonrpc": "2.0", "id": "x", "method": method, "params": params });
        post(sandbox.rpc_url(), &body).await["error"].clone()
    };
    assert_eq!(ask("getNothing", json!([])).await["code"], -32601);
    assert_eq!(ask("getBalance", json!(["no key"])).await["code"], -32602);
    assert_eq!(ask("getBalance", json!([])).await["code"], -32602);
    assert_eq!(ask("getSlot", json!([{ "commitment": "sure" }])).await["code"], -32602);
    assert_eq!(ask("sendTransaction", json!(["AAAA", { "encoding": "base64" }])).await["code"], -32602);
    assert_eq!(ask("getSlot", json!([{ "minContextSlot": u64::MAX }])).await["code"], -32016);
    assert_eq!(ask("getTokenAccountBalance", json!([Key([9; 32])])).await["code"], -32602);

    let w = World::new();
    let seal = w.transaction(&[program::seal(w.merchant)], &[]);
    let text = STANDARD.encode(seal.encode());
    let error = w.chain.call("sendTransaction", &json!([text, { "encoding": "base64" }])).unwrap_err();
    assert_eq!(error.code, -32002);
    let message = "Transaction simulation failed: Error processing Instruction 0: Invalid account owner";
    assert_eq!(error.message.to_lowercase(), message.to_lowercase());
    let data = error.data.unwrap();
    assert_eq!(data["err"], json!({ "InstructionError": [0, "InvalidAccountOwner"] }));
    assert_eq!(data["logs"][0], format!("Program {} invoke [1]", seal.instructions()[0].program));

    let garbled = post(sandbox.rpc_url(), &json!("text")).await;
    assert_eq!(garbled["error"]["code"], -32600);
}

#[tokio::test]
async fn batches_answer_in_order_and_a_dropped_sandbox_stops() {
    let sandbox = started().await;
    let one = |id: u32, method: &str| json!({ "jsonrpc": "2.0", "id": id, "method": method });
    let answers = post(sandbox.rpc_url(), &json!([one(1, "getHealth"), one(2, "getNothing"), one(3, "getSlot")])).await;
    assert_eq!(answers[0], json!({ "jsonrpc": "2.0", "id": 1, "result": "ok" }));
    assert_eq!((&answers[1]["id"], &answers[1]["error"]["code"]), (&json!(2), &json!(-32601)));
    assert!(answers[2]["result"].is_u64());
    let too_many: Vec<_> = (0..101).map(|id| one(id, "getHealth")).collect();
    assert_eq!(post(sandbox.rpc_url(), &json!(too_many)).await["error"]["code"], -32600);

    let address = sandbox.address();
    drop(sandbox);
    // The listener closes when its task next runs; the last connection that slips in before is not answered.
    while tokio::net::TcpStream::connect(address).await.is_ok() {
        tokio::task::yield_now().await;
    }
}
