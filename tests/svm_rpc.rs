//! The JSON-RPC client against a double: a server that answers what a test scripted, and remembers what it was asked.

#![allow(clippy::unwrap_used, reason = "a test that cannot build its own fixture should stop")]

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use parking_lot::Mutex;
use serde_json::{Value, json};
use turnpike::chain::rpc::Endpoints;
use turnpike::chain::svm::{Observer, Outcome, Pace, SvmRpc, SvmRpcOptions};
use turnpike::chain::{Chain, ChainError, Confirmation};
use turnpike::scheme::svm::PAYMENT_CHANNELS;
use turnpike::scheme::svm::program::{ChannelAccount, ChannelStatus, RENT_PAYER_OFFSET};
use turnpike::x402::Key;
use turnpike::x402::key::Signature;

#[derive(Clone)]
enum Reply {
    Result(Value),
    Error(i64, &'static str, Value),
    Status(u16, Option<&'static str>),
    Body(String),
    /// Without and with a search through history.
    ByHistory(Value, Value),
    /// Never answers.
    Silence,
}

/// The double: per method, the scripted replies in turn; the last one stays.
#[derive(Default)]
struct Double {
    script: Mutex<HashMap<&'static str, VecDeque<Reply>>>,
    asked: Mutex<Vec<(String, Value)>>,
}

impl Double {
    async fn start() -> (Arc<Self>, String) {
        let double = Arc::new(Self::default());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let app =
            Router::new().route("/{*rest}", post(answer)).route("/", post(answer)).with_state(Arc::clone(&double));
        tokio::spawn(async move { axum::serve(listener, app).await });
        (double, url)
    }

    fn on(&self, method: &'static str, replies: impl IntoIterator<Item = Reply>) -> &Self {
        self.script.lock().insert(method, replies.into_iter().collect());
        self
    }

    fn asked(&self, method: &str) -> Vec<Value> {
        self.asked.lock().iter().filter(|(asked, _)| asked == method).map(|(_, params)| params.clone()).collect()
    }
}

async fn answer(State(double): State<Arc<Double>>, body: String) -> Response {
    let request: Value = serde_json::from_str(&body).unwrap();
    let method = request["method"].as_str().unwrap().to_owned();
    double.asked.lock().push((method.clone(), request["params"].clone()));
    let reply = {
        let mut script = double.script.lock();
        let replies = script.get_mut(method.as_str()).unwrap_or_else(|| panic!("{method} is not scripted"));
        if replies.len() > 1 { replies.pop_front().unwrap() } else { replies.front().unwrap().clone() }
    };
    let reply = match reply {
        Reply::ByHistory(recent, all) => {
            Reply::Result(if request["params"][1]["searchTransactionHistory"] == true { all } else { recent })
        }
        other => other,
    };
    match reply {
        Reply::Result(result) => {
            json!({ "jsonrpc": "2.0", "id": request["id"], "result": result }).to_string().into_response()
        }
        Reply::Error(code, message, data) => {
            let error = json!({ "code": code, "message": message, "data": data });
            json!({ "jsonrpc": "2.0", "id": request["id"], "error": error }).to_string().into_response()
        }
        Reply::Status(status, retry_after) => {
            let status = StatusCode::from_u16(status).unwrap();
            match retry_after {
                Some(seconds) => (status, [("retry-after", seconds)]).into_response(),
                None => status.into_response(),
            }
        }
        Reply::Body(body) => body.into_response(),
        Reply::Silence | Reply::ByHistory(..) => std::future::pending().await,
    }
}

fn options(urls: &[&str]) -> SvmRpcOptions {
    let urls = urls.iter().map(|url| (*url).to_owned()).collect();
    SvmRpcOptions {
        endpoints: Endpoints {
            attempt_timeout: Duration::from_millis(800),
            call_timeout: Duration::from_secs(5),
            rounds_max: 2,
            ..Endpoints::public(urls)
        },
        pace: Pace {
            poll_min: Duration::from_millis(1),
            poll_max: Duration::from_millis(5),
            resend_every: Duration::from_millis(2),
        },
        ..SvmRpcOptions::cluster(Vec::new())
    }
}

fn rpc(endpoints: &[&str]) -> SvmRpc {
    SvmRpc::new(options(endpoints)).unwrap()
}

fn slot(slot: u64) -> Reply {
    Reply::Result(json!(slot))
}

fn in_context(slot: u64, value: Value) -> Reply {
    Reply::Result(json!({ "context": { "slot": slot }, "value": value }))
}

fn blockhash(byte: u8) -> Reply {
    in_context(90, json!({ "blockhash": Key([byte; 32]), "lastValidBlockHeight": 240 }))
}

fn status(status: &str, error: Value) -> Value {
    json!([{ "slot": 77, "confirmations": 1, "err": error, "confirmationStatus": status }])
}

const ID: Signature = Signature([3; 64]);
const WIRE: &[u8] = b"the same bytes each time";
const LONG: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_failing_endpoint_is_passed_over_and_rests() {
    let (first, first_url) = Double::start().await;
    let (second, second_url) = Double::start().await;
    first.on("getSlot", [Reply::Status(500, None)]);
    second.on("getSlot", [slot(7)]);
    let rpc = rpc(&[&first_url, &second_url]);
    for _ in 0..4 {
        assert_eq!(rpc.slot().await, Ok(7));
    }
    assert_eq!(first.asked("getSlot").len(), 2, "two failures, then it rests at the end of the order");
    assert_eq!(second.asked("getSlot").len(), 4);
    let health = rpc.health();
    assert!(!health[0].healthy && health[1].healthy, "{health:?}");
    assert_eq!(health[0].consecutive_failures, 2);
}

#[tokio::test]
async fn a_silent_or_absent_endpoint_costs_one_timeout() {
    let (silent, silent_url) = Double::start().await;
    let (second, second_url) = Double::start().await;
    silent.on("getBlockHeight", [Reply::Silence]);
    second.on("getBlockHeight", [slot(11)]);
    let absent = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    let rpc = rpc(&[&absent, &silent_url, &second_url]);
    assert_eq!(rpc.block_height().await, Ok(11));
    assert_eq!(silent.asked("getBlockHeight").len(), 1);
}

#[tokio::test]
async fn an_endpoint_that_asks_for_a_pause_gets_it() {
    let (first, first_url) = Double::start().await;
    let (second, second_url) = Double::start().await;
    first.on("getSlot", [Reply::Status(429, Some("60")), slot(1)]);
    second.on("getSlot", [slot(2)]);
    let both = rpc(&[&first_url, &second_url]);
    assert_eq!(both.slot().await, Ok(2));
    assert_eq!(both.slot().await, Ok(2));
    assert_eq!(first.asked("getSlot").len(), 1);

    let alone = rpc(&[&first_url]);
    first.on("getSlot", [Reply::Status(429, Some("60")), slot(1)]);
    let error = alone.slot().await.unwrap_err();
    assert!(matches!(&error, ChainError::Unavailable(detail) if detail.contains("rate limited")), "{error}");
    assert_eq!(first.asked("getSlot").len(), 2, "not asked again within the minute");

    let patient = rpc(&[&first_url]);
    first.on("getSlot", [Reply::Status(429, Some("0")), slot(1)]);
    assert_eq!(patient.slot().await, Ok(1));
}

#[tokio::test]
async fn a_node_that_is_behind_is_asked_until_it_has_caught_up() {
    let (double, url) = Double::start().await;
    let behind = || Reply::Error(-32016, "Minimum context slot has not been reached", json!({ "contextSlot": 5 }));
    double.on("getMultipleAccounts", [behind(), behind(), behind(), in_context(9, json!([null]))]);
    assert_eq!(rpc(&[&url]).accounts(&[Key([1; 32])]).await, Ok(vec![None]));
}

#[tokio::test]
async fn answers_that_cannot_be_used_are_errors() {
    let (double, url) = Double::start().await;
    let rpc = rpc(&[&url]);
    double.on("getSlot", [Reply::Body("<html>blocked</html>".into())]);
    assert!(matches!(rpc.slot().await, Err(ChainError::Malformed { method: "getSlot", .. })));
    double.on("getSlot", [Reply::Result(json!("seven"))]);
    assert!(matches!(rpc.slot().await, Err(ChainError::Malformed { .. })));
    double.on("getSlot", [Reply::Body(r#"{"jsonrpc":"2.0","id":1}"#.into())]);
    assert!(matches!(rpc.slot().await, Err(ChainError::Malformed { .. })));
    double.on("getMultipleAccounts", [in_context(1, json!([null]))]);
    assert!(matches!(rpc.accounts(&[Key([1; 32]), Key([2; 32])]).await, Err(ChainError::Malformed { .. })));

    double.on("getBlockHeight", [Reply::Error(-32602, "Invalid params", Value::Null)]);
    assert!(matches!(rpc.block_height().await, Err(ChainError::Malformed { .. })));
    assert_eq!(double.asked("getBlockHeight").len(), 1, "a wrong request is not repeated");

    let short = SvmRpc::new(SvmRpcOptions { answer_bytes_max: 1_000, ..options(&[&url]) }).unwrap();
    double.on("getSlot", [Reply::Body(" ".repeat(1_001))]);
    let error = short.slot().await.unwrap_err();
    assert!(matches!(&error, ChainError::Unavailable(detail) if detail.contains("longer than")), "{error}");
}

#[tokio::test]
async fn preflight_errors_are_told_apart() {
    let (double, url) = Double::start().await;
    let rpc = rpc(&[&url]);
    let custom = json!({ "InstructionError": [2, { "Custom": 2201 }] });
    double.on(
        "sendTransaction",
        [Reply::Error(-32002, "Transaction simulation failed", json!({ "err": custom, "logs": [] }))],
    );
    let error = rpc.send(WIRE).await.unwrap_err();
    assert_eq!(error, ChainError::Refused(custom.to_string()));
    assert!(!error.is_stale_blockhash());
    assert_eq!(double.asked("sendTransaction").len(), 1, "a judgement is not asked for twice");
    assert_eq!(double.asked("sendTransaction")[0][0], STANDARD.encode(WIRE));

    double.on("getLatestBlockhash", [blockhash(1), blockhash(2)]);
    assert_eq!(rpc.latest_blockhash().await.unwrap().hash, [1; 32]);
    assert_eq!(rpc.latest_blockhash().await.unwrap().hash, [1; 32]);
    double.on(
        "sendTransaction",
        [Reply::Error(
            -32002,
            "Transaction simulation failed: Blockhash not found",
            json!({ "err": "BlockhashNotFound" }),
        )],
    );
    assert!(rpc.send(WIRE).await.unwrap_err().is_stale_blockhash());
    assert_eq!(rpc.latest_blockhash().await.unwrap().hash, [2; 32], "the stale one is forgotten");

    double.on(
        "sendTransaction",
        [Reply::Error(-32002, "This transaction has already been processed", json!({ "err": "AlreadyProcessed" }))],
    );
    assert_eq!(rpc.send(WIRE).await, Ok(()));
    double.on("sendTransaction", [Reply::Error(-32003, "Transaction signature verification failure", Value::Null)]);
    assert!(matches!(rpc.send(WIRE).await, Err(ChainError::Refused(text)) if text.contains("signature")));
}

#[tokio::test]
async fn a_refusal_after_a_silent_endpoint_settles_nothing() {
    let (silent, silent_url) = Double::start().await;
    let (second, second_url) = Double::start().await;
    silent.on("sendTransaction", [Reply::Silence]);
    second.on("sendTransaction", [Reply::Error(-32002, "failed", json!({ "err": "AccountInUse" }))]);
    let error = rpc(&[&silent_url, &second_url]).send(WIRE).await.unwrap_err();
    assert!(matches!(error, ChainError::Unavailable(_)), "{error}");
}

#[tokio::test]
async fn simulation_tells_error_and_logs() {
    let (double, url) = Double::start().await;
    let rpc = rpc(&[&url]);
    double.on(
        "simulateTransaction",
        [
            in_context(5, json!({ "err": null, "logs": ["Program log: fine"], "unitsConsumed": 9 })),
            in_context(5, json!({ "err": { "InstructionError": [0, "Custom"] }, "logs": null })),
        ],
    );
    let simulation = rpc.simulate(WIRE).await.unwrap();
    assert_eq!((simulation.error, simulation.logs), (None, vec!["Program log: fine".to_owned()]));
    let simulation = rpc.simulate(WIRE).await.unwrap();
    assert_eq!(simulation.error.as_deref(), Some(r#"{"InstructionError":[0,"Custom"]}"#));
    let config = &double.asked("simulateTransaction")[0][1];
    assert_eq!((&config["sigVerify"], &config["commitment"]), (&json!(false), &json!("confirmed")));
}

#[tokio::test]
async fn long_lists_are_asked_in_parts() {
    let (double, url) = Double::start().await;
    let rpc = rpc(&[&url]);
    let account = json!({ "lamports": 5, "owner": PAYMENT_CHANNELS, "data": [STANDARD.encode([1, 2]), "base64"], "executable": false, "rentEpoch": 18_446_744_073_709_551_615_u64 });
    let parts = [vec![account; 100], vec![Value::Null; 100], vec![Value::Null; 50]];
    double.on("getMultipleAccounts", parts.map(|part| in_context(1, json!(part))));
    let accounts = rpc.accounts(&vec![Key([8; 32]); 250]).await.unwrap();
    assert_eq!(accounts.len(), 250);
    assert_eq!(accounts[99].as_ref().unwrap().data, [1, 2]);
    assert_eq!(accounts[100], None);

    let none = |count| in_context(1, json!(vec![Value::Null; count]));
    double.on("getSignatureStatuses", [none(256), none(44)]);
    assert_eq!(rpc.statuses(&[ID; 300]).await.unwrap().len(), 300);
    let asked = double.asked("getSignatureStatuses");
    assert_eq!(asked.iter().map(|params| params[0].as_array().unwrap().len()).collect::<Vec<_>>(), [256, 44]);
    assert_eq!(asked[0][1]["searchTransactionHistory"], true);
}

fn channel() -> ChannelAccount {
    ChannelAccount {
        bump: 255,
        status: ChannelStatus::Open,
        salt: 1,
        deposit: 100,
        settled: 0,
        payout_watermark: 0,
        closure_started_at: 0,
        payer_withdrawn_at: 0,
        grace_period: 900,
        distribution_hash: [0; 32],
        payer: Key([1; 32]),
        payee: Key([2; 32]),
        authorized_signer: Key([3; 32]),
        mint: Key([4; 32]),
        rent_payer: Key([2; 32]),
        open_slot: 9,
    }
}

#[tokio::test]
async fn a_scan_keeps_only_channels_that_are_what_they_say() {
    let (double, url) = Double::start().await;
    let found = |pubkey: Key, owner: Key, data: Vec<u8>| json!({ "pubkey": pubkey, "account": { "lamports": 1, "owner": owner, "data": [STANDARD.encode(data), "base64"] } });
    let (real, other) = (channel(), ChannelAccount { salt: 2, ..channel() });
    let mut future = real.encode();
    future[1] = 2;
    double.on(
        "getProgramAccounts",
        [Reply::Result(json!([
            found(real.address(), PAYMENT_CHANNELS, real.encode()),
            found(real.address(), PAYMENT_CHANNELS, other.encode()),
            found(real.address(), Key([7; 32]), real.encode()),
            found(real.address(), PAYMENT_CHANNELS, future),
            found(real.address(), PAYMENT_CHANNELS, vec![1]),
        ]))],
    );
    let channels = rpc(&[&url]).channels_by(RENT_PAYER_OFFSET, &Key([2; 32])).await.unwrap();
    assert_eq!(channels, [(real.address(), real)]);
    let params = &double.asked("getProgramAccounts")[0];
    assert_eq!(params[0], PAYMENT_CHANNELS.to_string());
    assert_eq!(
        params[1]["filters"],
        json!([{ "dataSize": 256 }, { "memcmp": { "offset": 216, "bytes": Key([2; 32]) } }])
    );
}

#[tokio::test]
async fn blockhash_and_rent_are_remembered() {
    let (double, url) = Double::start().await;
    let rpc = rpc(&[&url]);
    assert_eq!(rpc.cached_blockhash(), None, "nothing at hand, and nothing waited for");
    double.on("getLatestBlockhash", [blockhash(4)]).on("getMinimumBalanceForRentExemption", [slot(2_672_640)]);
    let (first, second) = tokio::join!(rpc.latest_blockhash(), rpc.latest_blockhash());
    assert_eq!(first, second);
    assert_eq!(
        rpc.cached_blockhash().map(|blockhash| (blockhash.slot, blockhash.last_valid_block_height)),
        Some((90, 240))
    );
    assert_eq!(rpc.rent(256).await, Ok(2_672_640));
    assert_eq!(rpc.rent(256).await, Ok(2_672_640));
    assert_eq!(double.asked("getMinimumBalanceForRentExemption").len(), 1);
    assert!(double.asked("getLatestBlockhash").len() <= 2, "one call, and at most one refresh");
}

#[tokio::test]
async fn a_blockhash_is_kept_at_hand_until_nobody_needs_it() {
    let (double, url) = Double::start().await;
    double.on("getLatestBlockhash", [blockhash(1), Reply::Status(500, None), blockhash(2), blockhash(3)]);
    let rpc = SvmRpc::new(SvmRpcOptions { blockhash_age_max: Duration::from_millis(10), ..options(&[&url]) }).unwrap();
    let task = rpc.keep_fresh();
    // `cached_blockhash` would ask for a refresh itself; what the double was asked shows that nobody needs to.
    while double.asked("getLatestBlockhash").len() < 5 {
        tokio::task::yield_now().await;
    }
    assert_eq!(rpc.latest_blockhash().await.unwrap().hash, [3; 32]);
    drop(rpc);
    task.await.unwrap();
}

#[tokio::test]
async fn confirmation_waits_for_the_vote_and_reads_nothing_older() {
    let (double, url) = Double::start().await;
    let rpc = rpc(&[&url]);
    double.on(
        "getSignatureStatuses",
        [
            in_context(70, json!([null])),
            in_context(76, status("processed", Value::Null)),
            in_context(78, status("confirmed", Value::Null)),
        ],
    );
    double.on("getBlockHeight", [slot(1)]).on("sendTransaction", [Reply::Result(json!(ID))]);
    assert_eq!(rpc.confirm(WIRE, &ID, 200, LONG).await, Ok(Confirmation::Confirmed { slot: 77 }));
    double.on("getMultipleAccounts", [in_context(80, json!([null]))]);
    rpc.accounts(&[Key([1; 32])]).await.unwrap();
    assert_eq!(double.asked("getMultipleAccounts")[0][1]["minContextSlot"], 77);
}

#[tokio::test]
async fn a_transaction_that_ran_and_failed_is_told_so() {
    let (double, url) = Double::start().await;
    let error = json!({ "InstructionError": [0, { "Custom": 6 }] });
    double.on("getSignatureStatuses", [in_context(78, status("finalized", error.clone()))]);
    let confirmed = rpc(&[&url]).confirm(WIRE, &ID, 200, LONG).await;
    assert_eq!(confirmed, Ok(Confirmation::Failed { error: error.to_string() }));
}

#[tokio::test]
async fn an_unknown_transaction_is_sent_again_byte_for_byte_until_it_expires() {
    let (double, url) = Double::start().await;
    double.on("getSignatureStatuses", [in_context(500, json!([null]))]);
    double.on("getBlockHeight", [slot(198), slot(200), slot(201)]).on("getSlot", [slot(450)]);
    double.on("sendTransaction", [Reply::Error(-32002, "failed", json!({ "err": "BlockhashNotFound" }))]);
    assert_eq!(rpc(&[&url]).confirm(WIRE, &ID, 200, LONG).await, Ok(Confirmation::Expired));
    let sent = double.asked("sendTransaction");
    assert_eq!(sent.len(), 2, "while its blockhash was taken, and not after");
    assert!(sent.iter().all(|params| params[0] == STANDARD.encode(WIRE)));
    let looked_up = double.asked("getSignatureStatuses");
    assert_eq!(looked_up.last().unwrap()[1]["searchTransactionHistory"], true, "the last look goes back in history");
    assert_eq!(looked_up[0][1]["searchTransactionHistory"], false);
}

#[tokio::test]
async fn a_node_that_is_behind_cannot_call_a_transaction_expired() {
    let (double, url) = Double::start().await;
    // Beyond the last height, but the node that looks has not reached that slot; then it has, and knows better.
    double.on("getBlockHeight", [slot(300)]).on("getSlot", [slot(450)]);
    let mut replies = vec![in_context(449, json!([null])); 12];
    replies.push(in_context(451, status("confirmed", Value::Null)));
    double.on("getSignatureStatuses", replies).on("sendTransaction", [Reply::Result(json!(ID))]);
    assert_eq!(rpc(&[&url]).confirm(WIRE, &ID, 200, LONG).await, Ok(Confirmation::Confirmed { slot: 77 }));
}

#[tokio::test]
async fn the_last_look_finds_what_landed_meanwhile() {
    let (double, url) = Double::start().await;
    double.on("getBlockHeight", [slot(300)]).on("getSlot", [slot(450)]);
    double.on("sendTransaction", [Reply::Result(json!(ID))]);
    // Unknown to every ordinary look; found by the one that searches history.
    let recent = json!({ "context": { "slot": 500 }, "value": [null] });
    let history = json!({ "context": { "slot": 500 }, "value": status("finalized", Value::Null) });
    double.on("getSignatureStatuses", [Reply::ByHistory(recent, history)]);
    assert_eq!(rpc(&[&url]).confirm(WIRE, &ID, 200, LONG).await, Ok(Confirmation::Confirmed { slot: 77 }));
}

#[tokio::test]
async fn an_outage_while_waiting_is_no_answer() {
    let (double, url) = Double::start().await;
    double.on("getSignatureStatuses", [Reply::Status(503, None)]);
    let error = rpc(&[&url]).confirm(WIRE, &ID, 200, Duration::from_millis(50)).await.unwrap_err();
    assert!(matches!(error, ChainError::Unavailable(_)), "{error}");
}

#[derive(Default)]
struct Seen(Mutex<Vec<(String, &'static str, Outcome)>>);

impl Observer for Seen {
    fn observe(&self, endpoint: &str, method: &'static str, outcome: Outcome, _took: Duration) {
        self.0.lock().push((endpoint.to_owned(), method, outcome));
    }
}

#[tokio::test]
async fn no_secret_of_a_url_is_ever_shown() {
    let (double, url) = Double::start().await;
    let host = url.strip_prefix("http://").unwrap();
    double.on(
        "getSlot",
        [Reply::Error(-32603, "key PATHSECRET1 of bobs-password and ?QUERYSECRET is wrong", Value::Null)],
    );
    let secret = format!("http://bob:bobs-password@{host}/v2/PATHSECRET1?key=QUERYSECRET");
    let seen = Arc::new(Seen::default());
    let options = options(&[&secret, &secret]);
    assert!(!format!("{options:?}").contains("SECRET"));
    let rpc = SvmRpc::observed(options, seen.clone()).unwrap();
    let error = rpc.slot().await.unwrap_err();
    let everything = format!("{error} {error:?} {:?} {rpc:?} {:?}", rpc.health(), seen.0.lock());
    for word in ["PATHSECRET1", "QUERYSECRET", "bobs-password"] {
        assert!(!everything.contains(word), "{everything}");
    }
    assert!(everything.contains(host));
    let names: Vec<_> = rpc.health().into_iter().map(|health| health.name).collect();
    assert_eq!(names, [host.to_owned(), format!("{host}#2")]);
    assert!(seen.0.lock().iter().all(|(_, method, outcome)| *method == "getSlot" && *outcome == Outcome::Failed));
}
