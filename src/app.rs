//! The composition root: a [`Config`] becomes running parts, and the parts stop in order.
//!
//! Start: chain (or sandbox), signer, store, ledger, facilitators, gate, settlement, admin side, and the listener last,
//! so that no request arrives before everything that charges it is there. Stop: the listener first; requests in flight
//! are finished, what goes on behind them is waited for, then settlement stops between two steps. Nothing is lost where
//! the deadline cuts this short: what was promised is in the store.

mod observe;
mod running;
mod service;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;

pub use self::running::Running;
use self::service::Table;
use crate::admin::{Admin, Part};
use crate::amount::Amount;
use crate::chain::Chain;
use crate::chain::sandbox::{self, Sandbox};
use crate::chain::svm::{SvmRpc, SvmRpcOptions};
use crate::clock::{Clock, SystemClock};
use crate::config::{Config, Family, NetworkConfig, ReplayConfig, SvmConfig};
use crate::facilitator::Facilitator;
use crate::facilitator::local::LocalFacilitator;
use crate::gate::replay::Options as ReplayOptions;
use crate::gate::route::{Route, RouteTable};
use crate::gate::{Gate, Options as GateOptions};
use crate::layer::{Cors, LayerOptions, TurnpikeLayer};
use crate::ledger::answers::AnswerLimits;
use crate::ledger::channel::Seller;
use crate::ledger::sqlite::{self, SqliteStore};
use crate::ledger::{Ledger, Limits};
use crate::policy::Policy;
use crate::scheme::svm::treasury_owner;
use crate::settlement::{self, Filter, Settlement};
use crate::signer::Signer;
use crate::signer::frost::FrostSigner;
use crate::signer::keystore::{self, Passphrase};
use crate::signer::rules::{ComputeCaps, KINDS, Rules};
use crate::telemetry::{Telemetry, amount_value};
use crate::x402::{Key, Network};

/// Lamports that a sandbox gives its fee payer: ten thousand SOL.
const SANDBOX_LAMPORTS: u64 = 10_000_000_000_000;
/// How long a request waits at most for its turn and its upstream, before the ledger takes its reservation back.
const RESERVATION_SLACK: Duration = Duration::from_secs(60);

/// Why Turnpike does not start. The text says which part, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{part}: {why}")]
pub struct StartError {
    part: &'static str,
    why: String,
}

/// Names the part that an error comes from.
trait Start<T> {
    fn start(self, part: &'static str) -> Result<T, StartError>;
}

impl<T, E: std::fmt::Display> Start<T> for Result<T, E> {
    fn start(self, part: &'static str) -> Result<T, StartError> {
        self.map_err(|error| StartError { part, why: error.to_string() })
    }
}

/// One way to be paid, with everything that serves it.
struct Account {
    seller: Arc<Seller>,
    chain: Arc<dyn Chain>,
    rpc: SvmRpc,
    signer: Arc<dyn Signer>,
    policy: Arc<Policy>,
    settlement: Arc<Settlement>,
}

/// Everything that is paid and settled with, without the proxy: for an application that puts the layer around itself.
/// What a configuration says of upstreams, clients' connections and TLS is not used here.
pub struct Merchant {
    admin_address: SocketAddr,
    telemetry: Arc<Telemetry>,
    ledger: Arc<Ledger>,
    gate: Arc<Gate>,
    layer: TurnpikeLayer,
    accounts: Arc<Vec<Account>>,
    sandbox: Option<Sandbox>,
    drain_within: Duration,
    stop: watch::Sender<bool>,
    loops: Vec<tokio::task::JoinHandle<()>>,
    /// The temporary store's directory, removed at the end.
    _temporary: Option<TemporaryStore>,
}

impl Merchant {
    /// Starts everything that `config` names, but for what listens to clients.
    ///
    /// # Errors
    /// [`StartError`] names the part that cannot start.
    pub async fn start(config: &Config) -> Result<Self, StartError> {
        let telemetry = Telemetry::new().start("metrics")?;
        telemetry.build_info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let sandbox = start_sandbox(config).await?;

        let (store_path, temporary) = store_path(config)?;
        let store = Arc::new(
            SqliteStore::open(
                &store_path,
                sqlite::Settings { telemetry: Some(Arc::clone(&telemetry)), ..Default::default() },
            )
            .start("store")?,
        );
        let ledger = Ledger::open(store, Arc::clone(&clock), limits(config)).await.start("ledger")?;

        let mut accounts = Vec::new();
        let mut facilitators: Vec<(Network, Arc<dyn Facilitator>)> = Vec::new();
        for network in &config.networks {
            let Family::Svm(svm) = &network.family else {
                let why = format!("{} is configured rightly, and this version cannot serve it yet", network.network);
                return Err(StartError { part: "network", why });
            };
            let account = Account::start(network, svm, config, sandbox.as_ref(), &telemetry, &ledger, &clock).await?;
            let facilitator = LocalFacilitator::new(
                Arc::clone(&account.chain),
                Arc::clone(&account.signer),
                Arc::clone(&account.policy),
                Arc::clone(&account.seller),
                Arc::clone(&clock),
            )
            .start("facilitator")?;
            facilitators.push((account.seller.network.clone(), Arc::new(facilitator)));
            accounts.push(account);
        }
        let gate = Gate::new(
            Arc::clone(&ledger),
            facilitators,
            clock,
            GateOptions { replay: replay(config), telemetry: Some(Arc::clone(&telemetry)), ..GateOptions::default() },
        );
        gate.recover();

        let table = RouteTable::build(routes(config, &accounts), config.default).start("routes")?;
        let options = LayerOptions {
            public_url: config.public_url.as_ref().map(|url| url.to_string().into()),
            cors: cors(config),
        };
        let layer = TurnpikeLayer::new(Arc::clone(&gate), Table(Arc::new(table)), options);

        let accounts = Arc::new(accounts);
        let (stop, stopping) = watch::channel(false);
        let loops = accounts.iter().map(|account| spawn_settlement(account, stopping.clone())).collect();
        let admin = admin(&telemetry, &ledger, &accounts, config);
        let admin_address = admin.listen(config.admin.listen, stopped(stopping)).await.start("admin.listen")?;
        Ok(Self {
            admin_address,
            telemetry,
            ledger,
            gate,
            layer,
            accounts,
            sandbox,
            drain_within: config.timeouts.drain,
            stop,
            loops,
            _temporary: temporary,
        })
    }

    /// The layer that is paid: what it wraps is sold by the configuration's routes.
    #[must_use]
    pub fn layer(&self) -> TurnpikeLayer {
        self.layer.clone()
    }

    /// Where operators connect.
    #[must_use]
    pub const fn admin_address(&self) -> SocketAddr {
        self.admin_address
    }

    /// The sandbox, on `network: sandbox`.
    #[must_use]
    pub const fn sandbox(&self) -> Option<&Sandbox> {
        self.sandbox.as_ref()
    }

    /// The balances.
    #[must_use]
    pub const fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    /// The first network's chain.
    #[must_use]
    pub fn chain(&self) -> Option<Arc<dyn Chain>> {
        self.accounts.first().map(|account| Arc::clone(&account.chain))
    }

    /// The threshold key's address.
    #[must_use]
    pub fn public_key(&self) -> Key {
        self.accounts.first().map(|account| account.signer.public_key()).unwrap_or_default()
    }

    /// Settles what is owed now, on every network; a line for each batch.
    pub async fn settle_now(&self) -> Settled {
        settle_all(&self.accounts).await
    }

    /// Stops in order, once no more requests come: what goes on behind answered ones is waited for, then settlement
    /// stops.
    pub async fn drain(self) {
        self.telemetry.draining.set(1);
        if tokio::time::timeout(self.drain_within, self.gate.settled()).await.is_err() {
            tracing::warn!("closes of metered requests were still under way; they are taken up at the next start");
        }
        self.stop.send_replace(true);
        for settlement_loop in self.loops {
            if tokio::time::timeout(self.drain_within, settlement_loop).await.is_err() {
                tracing::warn!("a settlement batch was still under way; it is followed up at the next start");
            }
        }
    }
}

/// The configured routes, with who is paid by them.
fn routes(config: &Config, accounts: &[Account]) -> Vec<Route> {
    let sellers: Vec<_> = accounts.iter().map(|account| Arc::clone(&account.seller)).collect();
    config.routes.iter().map(|route| route.resolve(&sellers, &[])).collect()
}

async fn stopped(mut stopping: watch::Receiver<bool>) {
    let _gone = stopping.wait_for(|stop| *stop).await;
}

fn spawn_settlement(account: &Account, stopping: watch::Receiver<bool>) -> tokio::task::JoinHandle<()> {
    let settlement = Arc::clone(&account.settlement);
    tokio::spawn(async move { settlement.run(stopped(stopping)).await })
}

async fn start_sandbox(config: &Config) -> Result<Option<Sandbox>, StartError> {
    let (Some(sandbox), Some(network)) = (config.sandbox, config.networks.first()) else { return Ok(None) };
    let options = sandbox::Options { listen: sandbox.rpc_listen, ..sandbox::Options::new(network.network.clone()) };
    let sandbox = Sandbox::start(options).await.start("sandbox.rpc_listen")?;
    tracing::warn!(
        rpc_url = sandbox.rpc_url(),
        presents_as = %network.network,
        "network: sandbox. Chain, keys and funds are made on the spot and are worth nothing"
    );
    Ok(Some(sandbox))
}

/// A store that lives as long as the process.
struct TemporaryStore(std::path::PathBuf);

impl Drop for TemporaryStore {
    fn drop(&mut self) {
        let _left_behind = std::fs::remove_dir_all(&self.0);
    }
}

fn store_path(config: &Config) -> Result<(std::path::PathBuf, Option<TemporaryStore>), StartError> {
    if let Some(path) = &config.store {
        return Ok((path.clone(), None));
    }
    let mut random = [0_u8; 8];
    getrandom::fill(&mut random).start("store")?;
    let name: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let directory = std::env::temp_dir().join(format!("turnpike-{name}"));
    std::fs::create_dir(&directory).start("store")?;
    Ok((directory.join("turnpike.db"), Some(TemporaryStore(directory))))
}

fn limits(config: &Config) -> Limits {
    let longest = config.routes.iter().filter_map(|route| route.timeout).max().unwrap_or_default();
    let longest = longest.max(config.timeouts.response_header);
    Limits {
        exposure_max: Some(config.settlement.exposure_max),
        channel_exposure_max: Some(config.settlement.channel_exposure_max),
        channel_charged_max: config.signer.as_ref().map(|signer| signer.claim_max),
        withdraw_margin: config.settlement.close_margin,
        waiters_per_channel_max: config.queue.waiters,
        wait_max: config.queue.wait,
        gap_wait_max: config.queue.gap_wait,
        reservation_max: longest.saturating_add(RESERVATION_SLACK),
        answers: config.replay.map(|replay| AnswerLimits { keep: replay.keep, bytes_max: replay.total_bytes }),
    }
}

fn replay(config: &Config) -> Option<ReplayOptions> {
    let body_bytes_max = |replay: ReplayConfig| usize::try_from(replay.body_bytes).unwrap_or(usize::MAX);
    config.replay.map(|replay| ReplayOptions { body_bytes_max: body_bytes_max(replay), wait_max: config.queue.wait })
}

impl Account {
    async fn start(
        network: &NetworkConfig,
        svm: &SvmConfig,
        config: &Config,
        sandbox: Option<&Sandbox>,
        telemetry: &Arc<Telemetry>,
        ledger: &Arc<Ledger>,
        clock: &Arc<dyn Clock>,
    ) -> Result<Self, StartError> {
        let pay_to = pay_to(network, svm, sandbox)?;
        let signer: Arc<dyn Signer> = Arc::new(observe::Timed {
            telemetry: Arc::clone(telemetry),
            inner: Arc::new(open_signer(config, rules(network, svm, config, pay_to))?),
        });
        let group = signer.public_key();
        if let Some(sandbox) = sandbox {
            sandbox.chain().airdrop(&group, SANDBOX_LAMPORTS).start("sandbox")?;
            sandbox.chain().mint_to(&pay_to, 0).start("sandbox")?;
        }
        let seller = Arc::new(Seller {
            network: network.network.clone(),
            asset: Arc::clone(&network.asset),
            mint: svm.mint,
            token_program: svm.token_program,
            pay_to,
            fee_payer: group,
            receiver_authorizer: group,
            withdraw_delay: config.withdraw_delay_seconds(),
            treasury_owner: treasury_owner(&network.network),
        });
        let rpc_options = match sandbox {
            Some(sandbox) => SvmRpcOptions::sandbox(sandbox.rpc_url().to_owned()),
            None => SvmRpcOptions::cluster(svm.rpc_urls.iter().map(|url| url.uri().to_string()).collect()),
        };
        let rpc = SvmRpc::observed(rpc_options, Arc::new(observe::Rpc(Arc::clone(telemetry)))).start("rpc_url")?;
        // Ends with the last of its clones: a challenge after a quiet hour still offers a blockhash.
        drop(rpc.keep_fresh());
        let chain: Arc<dyn Chain> = Arc::new(rpc.clone());
        warn_of_missing_funds(chain.as_ref(), &seller).await;
        let policy = Arc::new(policy(config, pay_to));
        let settlement = Settlement::new(
            Arc::clone(ledger),
            Arc::clone(&chain),
            Arc::clone(&signer),
            Arc::clone(&policy),
            Arc::clone(clock),
            settlement_options(config, &seller),
            Arc::new(observe::Batches { telemetry: Arc::clone(telemetry), seller: Arc::clone(&seller) }),
        );
        tracing::info!(network = %seller.network, %pay_to, key = %group, "selling for {}", seller.asset.symbol);
        Ok(Self { seller, chain, rpc, signer, policy, settlement: Arc::new(settlement) })
    }
}

fn pay_to(network: &NetworkConfig, svm: &SvmConfig, sandbox: Option<&Sandbox>) -> Result<Key, StartError> {
    if let Some(pay_to) = svm.pay_to {
        return Ok(pay_to);
    }
    if sandbox.is_none() {
        return Err(StartError { part: "pay_to", why: format!("no address is configured for {}", network.network) });
    }
    let mut seed = [0_u8; 32];
    getrandom::fill(&mut seed).start("pay_to")?;
    Ok(Key(ed25519_dalek::SigningKey::from_bytes(&seed).verifying_key().to_bytes()))
}

fn rules(network: &NetworkConfig, svm: &SvmConfig, config: &Config, pay_to: Key) -> Rules {
    let cap = |amount: Amount| amount.to_u64().unwrap_or(u64::MAX);
    let (deposit_max, claim_max) = match &config.signer {
        Some(signer) => (cap(signer.deposit_max), cap(signer.claim_max)),
        None => (u64::MAX, u64::MAX),
    };
    Rules {
        network: network.network.clone(),
        pay_to: vec![pay_to],
        mints: vec![(svm.mint, svm.token_program)],
        treasury_owner: treasury_owner(&network.network),
        deposit_max,
        claim_max,
        compute: ComputeCaps::default(),
        kinds: KINDS.to_vec(),
    }
}

fn open_signer(config: &Config, rules: Rules) -> Result<FrostSigner, StartError> {
    let Some(signer) = &config.signer else { return FrostSigner::ephemeral(rules).start("signer") };
    let mut shares = Vec::new();
    for share in &signer.shares {
        let passphrase = Passphrase::new(share.passphrase.expose().to_owned());
        shares.push(keystore::open(&share.file, &passphrase).start("signer.shares")?);
    }
    FrostSigner::open(shares, rules).start("signer")
}

/// What the proxy may ask its signer for. The signer judges again by its own rules.
fn policy(config: &Config, pay_to: Key) -> Policy {
    let policy = Policy::unlimited(vec![pay_to]);
    match &config.signer {
        Some(signer) => Policy { deposit_cap: signer.deposit_max, claim_cap: signer.claim_max, ..policy },
        None => policy,
    }
}

fn settlement_options(config: &Config, seller: &Arc<Seller>) -> settlement::Options {
    let mut options = settlement::Options::new(vec![Arc::clone(seller)]);
    options.interval = config.settlement.interval;
    options.rules.min_amount = config.settlement.min_amount;
    options.rules.max_age = config.settlement.max_age;
    options.rules.seal_margin = config.settlement.close_margin;
    options.batch_channels = config.settlement.batch_channels;
    options
}

/// Says at start what deposits and settlement will need: SOL for fees and rent, and the accounts that money goes to.
async fn warn_of_missing_funds(chain: &dyn Chain, seller: &Seller) {
    let ata = |owner| crate::scheme::svm::associated_token_account(owner, &seller.mint, &seller.token_program);
    let keys = [seller.fee_payer, ata(&seller.pay_to), ata(&seller.treasury_owner)];
    match chain.accounts(&keys).await.as_deref() {
        Ok([fee_payer, pay_to, treasury]) => {
            if fee_payer.as_ref().is_none_or(|account| account.lamports < 10_000_000) {
                tracing::warn!(address = %keys[0], "the fee payer holds less than 0.01 SOL: send it SOL, or deposits and settlement fail");
            }
            if pay_to.is_none() {
                tracing::warn!(owner = %seller.pay_to, account = %keys[1], "pay_to has no token account: create it, or deposits are refused");
            }
            if treasury.is_none() {
                tracing::warn!(owner = %seller.treasury_owner, account = %keys[2], "the program's treasury has no token account for this mint: deposits are refused");
            }
        }
        Ok(_) => {}
        Err(error) => {
            tracing::warn!(network = %seller.network, %error, "the chain cannot be reached: deposits and settlement wait for it")
        }
    }
}

fn cors(config: &Config) -> Cors {
    match &config.cors {
        None => Cors::default(),
        Some(crate::config::CorsConfig::Any) => Cors::Any,
        Some(crate::config::CorsConfig::Origins(origins)) => Cors::Origins(origins.clone()),
    }
}

fn admin(telemetry: &Arc<Telemetry>, ledger: &Arc<Ledger>, accounts: &Arc<Vec<Account>>, config: &Config) -> Admin {
    telemetry.exposure_max.set(amount_value(config.settlement.exposure_max));
    let refresh = {
        let (telemetry, ledger, accounts) = (Arc::clone(telemetry), Arc::clone(ledger), Arc::clone(accounts));
        move || {
            let (channels, reservations) = ledger.counts();
            telemetry.channels.set(i64::try_from(channels).unwrap_or(i64::MAX));
            telemetry.reservations.set(i64::try_from(reservations).unwrap_or(i64::MAX));
            let (answers, bytes) = ledger.answers();
            telemetry.answers.set(i64::try_from(answers).unwrap_or(i64::MAX));
            telemetry.answers_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
            let exposure = ledger.exposure();
            telemetry.exposure.set(amount_value(exposure.total));
            telemetry.exposure_largest.set(amount_value(exposure.largest));
            let quorum = accounts.iter().all(|account| account.signer.health().is_ok());
            telemetry.signer_up.set(i64::from(quorum));
            for account in accounts.iter() {
                observe::settlement_status(&telemetry, &account.settlement.status());
            }
        }
    };
    let parts = {
        let (ledger, accounts) = (Arc::clone(ledger), Arc::clone(accounts));
        move || {
            let mut parts = vec![Part { name: "ledger", vital: true, state: ledger.health() }];
            for account in accounts.iter() {
                parts.push(Part { name: "signer", vital: false, state: account.signer.health() });
                parts.push(Part { name: "chain", vital: false, state: chain_state(&account.rpc) });
                let status = account.settlement.status();
                parts.push(Part { name: "settlement", vital: false, state: status.held.map_or(Ok(()), Err) });
            }
            parts
        }
    };
    let settle = {
        let accounts = Arc::clone(accounts);
        move || -> crate::admin::Settled {
            let accounts = Arc::clone(&accounts);
            Box::pin(async move {
                let settled = settle_all(&accounts).await;
                let lines: Vec<Value> = settled.lines.iter().map(|line| json!(line)).collect();
                Ok(json!({ "lines": lines, "failures": settled.failures }))
            })
        }
    };
    Admin {
        telemetry: Arc::clone(telemetry),
        ledger: Arc::clone(ledger),
        parts: Box::new(parts),
        refresh: Box::new(refresh),
        settle: Box::new(settle),
    }
}

fn chain_state(rpc: &SvmRpc) -> Result<(), String> {
    let endpoints = rpc.health();
    if endpoints.is_empty() || endpoints.iter().any(|endpoint| endpoint.healthy) {
        return Ok(());
    }
    let names: Vec<_> = endpoints.iter().map(|endpoint| endpoint.name.as_str()).collect();
    Err(format!("no endpoint answers: {}", names.join(", ")))
}

/// What settling on demand did.
#[derive(Clone, Debug, Default)]
pub struct Settled {
    /// A line for each batch.
    pub lines: Vec<String>,
    /// How many channels or batches are in trouble.
    pub failures: usize,
}

async fn settle_all(accounts: &[Account]) -> Settled {
    let mut settled = Settled::default();
    for account in accounts {
        let report = account.settlement.settle_now(&Filter::All).await;
        for batch in &report.batches {
            settled.lines.push(batch_line(batch, &account.seller));
        }
        settled.failures = settled.failures.saturating_add(report.stuck.len()).saturating_add(report.unknown());
        for stuck in &report.stuck {
            settled
                .lines
                .push(format!("channel {} waits after {} failures: {}", stuck.channel, stuck.attempts, stuck.error));
        }
        if let Some(why) = &report.held {
            settled.lines.push(format!("nothing new is started: {why}"));
            settled.failures = settled.failures.saturating_add(1);
        }
    }
    if settled.lines.is_empty() {
        settled.lines.push("nothing is owed".into());
    }
    settled
}

fn batch_line(batch: &settlement::BatchReport, seller: &Seller) -> String {
    let kind = format!("{:?}", batch.kind).to_lowercase();
    let channels = batch.lines.len();
    let signature = batch.signature.map(|s| s.to_string().chars().take(12).collect::<String>()).unwrap_or_default();
    let millis = batch.timings.sign.as_millis();
    match &batch.outcome {
        settlement::Outcome::Confirmed { moved } => format!(
            "{kind} of {channels} channel(s): {} {}, signed by two of three shares in {millis} ms, confirmed as {signature}…",
            seller.asset.format_decimal(*moved),
            seller.asset.symbol
        ),
        settlement::Outcome::Dropped { why } => format!("{kind} of {channels} channel(s) dropped: {why}"),
        settlement::Outcome::Unknown { why } => {
            format!("{kind} of {channels} channel(s) sent, not yet confirmed: {why}")
        }
        settlement::Outcome::Refused { why } => format!("{kind} of {channels} channel(s) not signed: {why}"),
    }
}
