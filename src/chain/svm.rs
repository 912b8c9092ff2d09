//! A Solana chain over JSON-RPC: the adapter of [`Chain`] for clusters and for our own sandbox alike.
//!
//! Owns several endpoints in the operator's order, a time-out and a size limit on every answer, the retries, the cached
//! blockhash and the wait for confirmation. Promises that a read after a confirmation is not older than it, that no
//! secret of an endpoint's URL is shown, and that a transaction that landed is never called expired. Everything is read
//! at commitment `confirmed`.

mod confirm;
mod wire;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

pub use self::confirm::Pace;
use self::wire::{AccountShape, InContext, KeyedAccount, LatestBlockhash, SimulationShape, StatusShape};
use super::rpc::{CallError, Client, Endpoints, RpcError, Verdict};
pub use super::rpc::{EndpointHealth, Observer, Outcome, RpcSetupError as SvmRpcError};
use super::{Account, Blockhash, Chain, ChainError, Confirmation, Simulation, TransactionStatus};
use crate::scheme::svm::PAYMENT_CHANNELS;
use crate::scheme::svm::program::{CHANNEL_ACCOUNT_BYTES, ChannelAccount};
use crate::x402::Key;
use crate::x402::key::Signature;

/// The most accounts that a node answers at once.
const ACCOUNTS_PER_CALL_MAX: usize = 100;
/// The most signatures that a node answers at once.
const SIGNATURES_PER_CALL_MAX: usize = 256;
/// How long a confirmed slot is asked of nodes: a node further behind is not asked at all by then, and a chain that
/// starts over with earlier slots must not stay locked out.
const SEEN_SLOT_KEPT: Duration = Duration::from_secs(60);
/// The most sizes whose rent is remembered.
const RENT_SIZES_MAX: usize = 64;
/// The shortest pause between two refreshes of the blockhash.
const REFRESH_PAUSE_MIN: Duration = Duration::from_millis(5);
/// How many decoded accounts of a scan are worked through before other tasks get a turn.
const SCAN_STRIDE: usize = 128;

/// How to reach a chain. Shows nothing of its endpoints but their number.
#[derive(Clone, Debug)]
pub struct SvmRpcOptions {
    /// Where it is asked.
    pub endpoints: Endpoints,
    /// The longest answer that is read.
    pub answer_bytes_max: usize,
    /// The longest answer that is read of a scan over all channels.
    pub scan_bytes_max: usize,
    /// How waiting for a transaction is paced.
    pub pace: Pace,
    /// How old a cached blockhash may be when it is used.
    pub blockhash_age_max: Duration,
}

impl SvmRpcOptions {
    /// What fits a public cluster.
    #[must_use]
    pub const fn cluster(urls: Vec<String>) -> Self {
        Self {
            endpoints: Endpoints::public(urls),
            answer_bytes_max: 16 * 1024 * 1024,
            scan_bytes_max: 128 * 1024 * 1024,
            pace: Pace::CLUSTER,
            blockhash_age_max: Duration::from_secs(10),
        }
    }

    /// What fits the sandbox, whose time may be moved and which answers at once.
    #[must_use]
    pub fn sandbox(endpoint: String) -> Self {
        let pace = Pace::SANDBOX;
        Self { pace, blockhash_age_max: Duration::from_secs(2), ..Self::cluster(vec![endpoint]) }
    }
}

/// Tells errors about the endpoint from errors about the request (Agave, `rpc-client-api/src/custom_error.rs`).
fn judge(error: &RpcError) -> Verdict {
    match error.code {
        // Behind the slot that we asked for, or behind the cluster.
        -32016 | -32005 => Verdict::Behind,
        -32601 => Verdict::NotServed,
        // Inner failure; a block or slot that this node lacks; not indexed here.
        -32603 | -32001 | -32004 | -32007 | -32009 | -32010 | -32011 | -32014 => Verdict::Failed,
        429 | -32429 => Verdict::Limited,
        _ => Verdict::Request,
    }
}

/// For calls that only read: an error answer means that the request or the endpoint is wrong.
fn of_read(error: CallError, method: &'static str) -> ChainError {
    match error {
        CallError::Unavailable(detail) => ChainError::Unavailable(detail),
        CallError::Rpc { error, .. } => {
            ChainError::Malformed { method, what: format!("error {}: {}", error.code, error.message) }
        }
        CallError::Malformed(what) => ChainError::Malformed { method, what },
    }
}

/// A chain over JSON-RPC. Cheap to clone: clones share connections and caches.
#[derive(Clone)]
pub struct SvmRpc(Arc<Inner>);

struct Inner {
    client: Client,
    options: SvmRpcOptions,
    blockhash: Mutex<Option<(Instant, Blockhash)>>,
    /// Held while a blockhash is fetched, so that many who need one cause one call.
    fetching: tokio::sync::Mutex<()>,
    refreshing: AtomicBool,
    seen_slot: Mutex<Option<(Instant, u64)>>,
    rents: Mutex<HashMap<usize, u64>>,
}

impl fmt::Debug for SvmRpc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.health()).finish()
    }
}

impl SvmRpc {
    /// A chain that tells nobody how its calls went.
    ///
    /// # Errors
    /// [`SvmRpcError`] where an endpoint cannot be used.
    pub fn new(options: SvmRpcOptions) -> Result<Self, SvmRpcError> {
        Self::observed(options, Arc::new(()))
    }

    /// A chain that tells `observer` of every attempt.
    ///
    /// # Errors
    /// [`SvmRpcError`] where an endpoint cannot be used.
    pub fn observed(options: SvmRpcOptions, observer: Arc<dyn Observer>) -> Result<Self, SvmRpcError> {
        let client = Client::new(&options.endpoints, judge, observer)?;
        Ok(Self(Arc::new(Inner {
            client,
            options,
            blockhash: Mutex::new(None),
            fetching: tokio::sync::Mutex::new(()),
            refreshing: AtomicBool::new(false),
            seen_slot: Mutex::new(None),
            rents: Mutex::default(),
        })))
    }

    /// How each endpoint does, in the operator's order.
    #[must_use]
    pub fn health(&self) -> Vec<EndpointHealth> {
        self.0.client.health()
    }

    /// Fetches a blockhash now and again as it ages, until the last clone of this is dropped: a challenge then always
    /// has one to offer, and a client without an endpoint of its own can pay. Must be called within a tokio runtime.
    pub fn keep_fresh(&self) -> tokio::task::JoinHandle<()> {
        let pause = (self.0.options.blockhash_age_max / 2).max(REFRESH_PAUSE_MIN);
        let weak = Arc::downgrade(&self.0);
        tokio::spawn(async move {
            while let Some(inner) = weak.upgrade() {
                let chain = Self(inner);
                let in_turn = chain.0.fetching.lock().await;
                if let Err(error) = chain.fetch_blockhash().await {
                    tracing::debug!(%error, "the blockhash could not be refreshed");
                }
                drop(in_turn);
                drop(chain);
                tokio::time::sleep(pause).await;
            }
        })
    }

    fn pace(&self) -> Pace {
        self.0.options.pace
    }

    async fn call<T: DeserializeOwned>(&self, method: &'static str, params: Value) -> Result<T, ChainError> {
        let result = self.0.client.call(method, params, self.0.options.answer_bytes_max).await;
        result.map_err(|error| of_read(error, method))
    }

    /// Remembers a slot that we saw confirmed: what is read from now on must not be older.
    fn seen(&self, slot: u64) {
        let mut seen = self.0.seen_slot.lock();
        let now = Instant::now();
        let still = seen.filter(|(at, _)| now.duration_since(*at) < SEEN_SLOT_KEPT).map_or(0, |(_, slot)| slot);
        *seen = Some((now, slot.max(still)));
    }

    /// A call's configuration, with the slot that the node must have reached.
    fn config(&self, fields: Value) -> Value {
        let mut config = match fields {
            Value::Object(fields) => fields,
            _ => Map::new(),
        };
        config.insert("commitment".into(), "confirmed".into());
        if let Some((at, slot)) = *self.0.seen_slot.lock()
            && at.elapsed() < SEEN_SLOT_KEPT
        {
            config.insert("minContextSlot".into(), slot.into());
        }
        Value::Object(config)
    }

    async fn fetch_blockhash(&self) -> Result<Blockhash, ChainError> {
        let config = json!([{ "commitment": "confirmed" }]);
        let answer: InContext<LatestBlockhash> = self.call("getLatestBlockhash", config).await?;
        let blockhash = Blockhash {
            hash: answer.value.blockhash.0,
            last_valid_block_height: answer.value.last_valid_block_height,
            slot: answer.context.slot,
        };
        *self.0.blockhash.lock() = Some((Instant::now(), blockhash));
        Ok(blockhash)
    }

    /// The cached blockhash that is at most `age` old; one past half its life is replaced behind the caller's back.
    fn cached(&self, age: Duration) -> Option<Blockhash> {
        let entry = *self.0.blockhash.lock();
        if entry.is_none_or(|(at, _)| at.elapsed() > self.0.options.blockhash_age_max / 2) {
            self.refresh();
        }
        entry.filter(|(at, _)| at.elapsed() <= age).map(|(_, blockhash)| blockhash)
    }

    fn refresh(&self) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if self.0.refreshing.swap(true, Ordering::AcqRel) {
            return;
        }
        let refreshing = Refreshing(self.clone());
        runtime.spawn(async move {
            let chain = &refreshing.0;
            let _in_turn = chain.0.fetching.lock().await;
            if let Err(error) = chain.fetch_blockhash().await {
                tracing::debug!(%error, "the blockhash could not be refreshed");
            }
        });
    }

    async fn statuses_in_context(
        &self,
        ids: &[Signature],
        history: bool,
    ) -> Result<(u64, Vec<Option<TransactionStatus>>), ChainError> {
        const METHOD: &str = "getSignatureStatuses";
        let params = json!([ids, { "searchTransactionHistory": history }]);
        let answer: InContext<Vec<Option<StatusShape>>> = self.call(METHOD, params).await?;
        if answer.value.len() != ids.len() {
            return Err(ChainError::Malformed { method: METHOD, what: "another number of statuses".into() });
        }
        Ok((answer.context.slot, answer.value.into_iter().map(|status| status.map(StatusShape::read)).collect()))
    }

    /// One status, and the slot of the node that answered.
    async fn status_in_context(
        &self,
        id: &Signature,
        history: bool,
    ) -> Result<(u64, Option<TransactionStatus>), ChainError> {
        let (slot, mut statuses) = self.statuses_in_context(std::slice::from_ref(id), history).await?;
        Ok((slot, statuses.pop().flatten()))
    }

    /// Sends without preflight: it passed once, and a node that has it already only wastes time on it.
    async fn send_again(&self, transaction: &[u8]) -> Result<(), ChainError> {
        self.send_with(transaction, json!({ "encoding": "base64", "skipPreflight": true })).await
    }

    async fn send_with(&self, transaction: &[u8], config: Value) -> Result<(), ChainError> {
        const METHOD: &str = "sendTransaction";
        let params = json!([STANDARD.encode(transaction), config]);
        let sent: Result<String, _> = self.0.client.call(METHOD, params, self.0.options.answer_bytes_max).await;
        match sent {
            Ok(_) => Ok(()),
            Err(CallError::Rpc { error, doubtful }) => self.send_refused(&error, doubtful),
            Err(error) => Err(of_read(error, METHOD)),
        }
    }

    fn send_refused(&self, error: &RpcError, doubtful: bool) -> Result<(), ChainError> {
        let text = preflight_error(error);
        if text.contains("AlreadyProcessed") {
            return Ok(());
        }
        let refused = ChainError::Refused(text);
        if refused.is_stale_blockhash() {
            *self.0.blockhash.lock() = None;
        }
        if doubtful {
            // Another endpoint may have passed it on before this one judged it.
            return Err(ChainError::Unavailable(format!("one endpoint did not answer, another said: {refused}")));
        }
        Err(refused)
    }
}

/// A refresh under way; ends when it is dropped, even with the runtime that ran it.
struct Refreshing(SvmRpc);

impl Drop for Refreshing {
    fn drop(&mut self) {
        self.0.0.refreshing.store(false, Ordering::Release);
    }
}

/// The error in the chain's own words: `data.err` as JSON, or the message where a node says no more.
fn preflight_error(error: &RpcError) -> String {
    let err = error.data.as_ref().and_then(|data| data.get("err")).filter(|err| !err.is_null());
    match err {
        Some(err) => err.to_string(),
        None if error.message.contains("Blockhash not found") => "\"BlockhashNotFound\"".into(),
        None if error.message.contains("already been processed") => "\"AlreadyProcessed\"".into(),
        None => error.message.clone(),
    }
}

#[async_trait]
impl Chain for SvmRpc {
    async fn latest_blockhash(&self) -> Result<Blockhash, ChainError> {
        let age = self.0.options.blockhash_age_max;
        if let Some(blockhash) = self.cached(age) {
            return Ok(blockhash);
        }
        let _in_turn = self.0.fetching.lock().await;
        let entry = *self.0.blockhash.lock();
        match entry {
            Some((at, blockhash)) if at.elapsed() <= age => Ok(blockhash),
            _ => self.fetch_blockhash().await,
        }
    }

    fn cached_blockhash(&self) -> Option<Blockhash> {
        // A hint must outlive the client's own work on it; a blockhash lives for about a minute.
        self.cached(self.0.options.blockhash_age_max.saturating_mul(2))
    }

    async fn slot(&self) -> Result<u64, ChainError> {
        self.call("getSlot", json!([{ "commitment": "confirmed" }])).await
    }

    async fn block_height(&self) -> Result<u64, ChainError> {
        self.call("getBlockHeight", json!([{ "commitment": "confirmed" }])).await
    }

    async fn accounts(&self, keys: &[Key]) -> Result<Vec<Option<Account>>, ChainError> {
        const METHOD: &str = "getMultipleAccounts";
        let malformed = |what| ChainError::Malformed { method: METHOD, what };
        let mut accounts = Vec::with_capacity(keys.len());
        for part in keys.chunks(ACCOUNTS_PER_CALL_MAX) {
            let config = self.config(json!({ "encoding": "base64" }));
            let answer: InContext<Vec<Option<AccountShape>>> = self.call(METHOD, json!([part, config])).await?;
            if answer.value.len() != part.len() {
                return Err(malformed("another number of accounts".into()));
            }
            for shape in answer.value {
                accounts.push(shape.map(AccountShape::read).transpose().map_err(malformed)?);
            }
        }
        Ok(accounts)
    }

    async fn channels_by(&self, offset: usize, key: &Key) -> Result<Vec<(Key, ChannelAccount)>, ChainError> {
        const METHOD: &str = "getProgramAccounts";
        let filters = json!([{ "dataSize": CHANNEL_ACCOUNT_BYTES }, { "memcmp": { "offset": offset, "bytes": key } }]);
        let config = json!({ "encoding": "base64", "commitment": "confirmed", "filters": filters });
        let params = json!([PAYMENT_CHANNELS, config]);
        let found = self.0.client.call(METHOD, params, self.0.options.scan_bytes_max).await;
        let found: Vec<KeyedAccount> = found.map_err(|error| of_read(error, METHOD))?;
        let mut channels = Vec::with_capacity(found.len());
        for (index, KeyedAccount { pubkey, account }) in found.into_iter().enumerate() {
            let account = account.read().map_err(|what| ChainError::Malformed { method: METHOD, what })?;
            match channel_at(&pubkey, &account) {
                Some(channel) => channels.push((pubkey, channel)),
                None => tracing::warn!(%pubkey, "an account of the program is no channel that we know; passed over"),
            }
            if index % SCAN_STRIDE == SCAN_STRIDE - 1 {
                tokio::task::yield_now().await;
            }
        }
        Ok(channels)
    }

    async fn simulate(&self, transaction: &[u8]) -> Result<Simulation, ChainError> {
        let config = self.config(json!({ "encoding": "base64", "sigVerify": false, "replaceRecentBlockhash": false }));
        let params = json!([STANDARD.encode(transaction), config]);
        let result = self.0.client.call("simulateTransaction", params, self.0.options.answer_bytes_max).await;
        let answer: InContext<SimulationShape> = match result {
            Ok(answer) => answer,
            // Some nodes refuse to simulate what they could not send.
            Err(CallError::Rpc { error, .. }) => return Err(ChainError::Refused(preflight_error(&error))),
            Err(error) => return Err(of_read(error, "simulateTransaction")),
        };
        let error = answer.value.err.map(|error| error.to_string());
        Ok(Simulation { error, logs: answer.value.logs.unwrap_or_default() })
    }

    async fn send(&self, transaction: &[u8]) -> Result<(), ChainError> {
        self.send_with(transaction, json!({ "encoding": "base64", "preflightCommitment": "confirmed" })).await
    }

    async fn statuses(&self, ids: &[Signature]) -> Result<Vec<Option<TransactionStatus>>, ChainError> {
        let mut statuses = Vec::with_capacity(ids.len());
        for part in ids.chunks(SIGNATURES_PER_CALL_MAX) {
            statuses.extend(self.statuses_in_context(part, true).await?.1);
        }
        Ok(statuses)
    }

    async fn confirm(
        &self,
        transaction: &[u8],
        id: &Signature,
        last_valid_block_height: u64,
        deadline: Duration,
    ) -> Result<Confirmation, ChainError> {
        confirm::confirm(self, transaction, id, last_valid_block_height, deadline).await
    }

    async fn rent(&self, bytes: usize) -> Result<u64, ChainError> {
        if let Some(lamports) = self.0.rents.lock().get(&bytes) {
            return Ok(*lamports);
        }
        let lamports = self.call("getMinimumBalanceForRentExemption", json!([bytes])).await?;
        let mut rents = self.0.rents.lock();
        if rents.len() < RENT_SIZES_MAX {
            rents.insert(bytes, lamports);
        }
        Ok(lamports)
    }
}

/// The channel that an account is, where its owner, its layout and its own address agree that it is one.
fn channel_at(key: &Key, account: &Account) -> Option<ChannelAccount> {
    let channel = ChannelAccount::decode(&account.data).ok()?;
    (account.owner == PAYMENT_CHANNELS && channel.address() == *key).then_some(channel)
}
