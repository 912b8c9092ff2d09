//! The composition root: a [`Config`] becomes running parts, and the parts stop in order.
//!
//! Start: chain (or sandbox), signer (or cosigners), store, ledger, facilitators, gate, settlement, admin side, and the listener last,
//! so that no request arrives before everything that charges it is there. Stop: the listener first; requests in flight
//! are finished, what goes on behind them is waited for, then settlement stops between two steps. Nothing is lost where
//! the deadline cuts this short: what was promised is in the store.

mod audit;
mod background;
mod evm;
mod observe;
mod operate;
mod policy;
mod running;
mod service;
mod svm;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use self::audit::Notary;
use self::background::Background;
use self::evm::EvmAccount;
pub use self::operate::Settled;
pub use self::running::Running;
use self::service::Table;
use self::svm::Account;
use crate::audit::Recorder;
use crate::audit::log::AuditLog;
use crate::chain::Chain;
use crate::chain::sandbox::{self, Sandbox};
use crate::clock::{Clock, SystemClock};
use crate::config::{Config, Family, ReplayConfig};
use crate::facilitator::Facilitator;
use crate::gate::evm::EvmSide;
use crate::gate::replay::Options as ReplayOptions;
use crate::gate::route::{Route, RouteTable};
use crate::gate::{Gate, Options as GateOptions};
use crate::layer::{Cors, LayerOptions, TurnpikeLayer};
use crate::ledger::answers::AnswerLimits;
use crate::ledger::channel::{Evm, Svm};
use crate::ledger::passes::PASSES_MAX;
use crate::ledger::sqlite::{self, SqliteStore};
use crate::ledger::{Ledger, Limits};
use crate::signer::remote::{CosignerSettings, Cosigners};
use crate::telemetry::Telemetry;
use crate::x402::{Key, Network};

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

/// Every way to be paid.
struct Accounts {
    svm: Vec<Account>,
    evm: Vec<EvmAccount>,
    /// Who holds the other shares of the keys, where that is not this process.
    cosigners: Option<Arc<Cosigners>>,
}

impl Accounts {
    /// How the signers are.
    fn signers(&self) -> impl Iterator<Item = Result<(), String>> {
        let evm = self.evm.iter().map(|account| account.signer.health());
        self.svm.iter().map(|account| account.signer.health()).chain(evm)
    }
}

/// Everything that is paid and settled with, without the proxy: for an application that puts the layer around itself.
/// What a configuration says of upstreams, clients' connections and TLS is not used here.
pub struct Merchant {
    admin_address: SocketAddr,
    telemetry: Arc<Telemetry>,
    ledger: Arc<Ledger>,
    gate: Arc<Gate>,
    layer: TurnpikeLayer,
    accounts: Arc<Accounts>,
    background: Background,
    sandbox: Option<Sandbox>,
    drain_within: Duration,
    stop: watch::Sender<bool>,
    loops: Vec<tokio::task::JoinHandle<()>>,
    notary: Option<Arc<Notary>>,
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
        let log = audit::open(config, temporary.as_ref().map(|store| store.0.as_path()), &telemetry, &clock)?;
        let store = open_store(store_path, &telemetry, log.as_ref()).await?;
        if let Some(log) = &log {
            audit::started(log, config).await?;
        }
        let purse = policy::purse(config);
        let (svm_store, evm_store) = (Arc::<SqliteStore>::clone(&store), store);
        let ledger = Ledger::<Svm>::open_in(svm_store, Arc::clone(&clock), limits(config), Arc::clone(&purse));
        let ledger = ledger.await.start("ledger")?;
        let has_evm = config.networks.iter().any(|network| matches!(network.family, Family::Evm(_)));
        let evm_ledger = if has_evm {
            let ledger = Ledger::<Evm>::open_in(evm_store, Arc::clone(&clock), limits(config), purse);
            Some(ledger.await.start("ledger")?)
        } else {
            None
        };

        if let Some(log) = &log {
            audit::guard(log, Arc::clone(&ledger), evm_ledger.clone());
        }

        let cosigners = start_cosigners(config, &telemetry).await?;
        let shared = svm::Shared {
            config,
            sandbox: sandbox.as_ref(),
            telemetry: &telemetry,
            ledger: &ledger,
            clock: &clock,
            audit: log.as_ref(),
            cosigners: cosigners.as_ref(),
        };
        let svm = svm::start(&shared).await?;
        let evm = match &evm_ledger {
            Some(ledger) => {
                let (audit, cosigners) = (log.as_ref(), cosigners.as_ref());
                let shared = evm::Shared { config, telemetry: &telemetry, ledger, clock: &clock, audit, cosigners };
                evm::start(&shared).await?
            }
            None => Vec::new(),
        };
        let mut facilitators: Vec<(Network, Arc<dyn Facilitator>)> = Vec::new();
        for account in &svm {
            facilitators.push((account.seller.network.clone(), account.facilitator(&clock)?));
        }
        let evm_side = evm_ledger.as_ref().map(|ledger| EvmSide {
            ledger: Arc::clone(ledger),
            networks: evm.iter().map(EvmAccount::for_gate).collect(),
        });
        let gate = Gate::with_evm(
            Arc::clone(&ledger),
            facilitators,
            evm_side,
            Arc::clone(&clock),
            GateOptions {
                replay: replay(config),
                recorder: recorder(log.as_ref()),
                policy: policy::options(config, &telemetry, log.as_ref())?,
                telemetry: Some(Arc::clone(&telemetry)),
                ..GateOptions::default()
            },
        );
        gate.recover();

        let accounts = Accounts { svm, evm, cosigners };
        let table = RouteTable::build(routes(config, &accounts), config.default).start("routes")?;
        let options = LayerOptions {
            public_url: config.public_url.as_ref().map(|url| url.to_string().into()),
            cors: cors(config),
            // What is inside hands the upstream its headers, past the proxy's own rules for them.
            extension_only: true,
        };
        let layer = TurnpikeLayer::new(Arc::clone(&gate), Table(Arc::new(table)), options);

        let accounts = Arc::new(accounts);
        let (stop, stopping) = watch::channel(false);
        let background = Background::start().start("settlement")?;
        let loops = spawn_settlements(&accounts, &background, &stopping);
        let notary = config
            .audit
            .as_ref()
            .zip(log.as_ref())
            .map(|(audit, log)| Arc::new(Notary::new(Arc::clone(log), Arc::clone(&clock), audit, &accounts)));
        let notaries = notary.iter().map(|notary| tokio::spawn(Arc::clone(notary).run(stopping.clone())));
        let loops = loops.into_iter().chain(notaries).collect();
        let admin = operate::admin(operate::Operated {
            telemetry: &telemetry,
            ledger: &ledger,
            evm: evm_ledger.as_ref(),
            accounts: &accounts,
            background: &background,
            config,
            log: log.as_ref(),
        });
        let admin_address = admin.listen(config.admin.listen, stopped(stopping)).await.start("admin.listen")?;
        Ok(Self {
            admin_address,
            telemetry,
            ledger,
            gate,
            layer,
            accounts,
            background,
            sandbox,
            drain_within: config.timeouts.drain,
            stop,
            loops,
            notary,
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

    /// The first Solana network's chain.
    #[must_use]
    pub fn chain(&self) -> Option<Arc<dyn Chain>> {
        self.accounts.svm.first().map(|account| Arc::clone(&account.chain))
    }

    /// The address of the threshold key for Solana networks.
    #[must_use]
    pub fn public_key(&self) -> Key {
        self.accounts.svm.first().map(|account| account.signer.public_key()).unwrap_or_default()
    }

    /// Settles what is owed now, on every network.
    pub async fn settle_now(&self) -> Settled {
        operate::settle_all(&self.accounts, &self.background).await
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
        if let Some(notary) = self.notary {
            notary.end().await;
        }
    }
}

/// The configured routes, with who is paid by them.
fn routes(config: &Config, accounts: &Accounts) -> Vec<Route> {
    let svm: Vec<_> = accounts.svm.iter().map(|account| Arc::clone(&account.seller)).collect();
    let evm: Vec<_> = accounts.evm.iter().flat_map(|account| account.sellers.iter().cloned()).collect();
    config.routes.iter().map(|route| route.resolve(&svm, &evm)).collect()
}

async fn stopped(mut stopping: watch::Receiver<bool>) {
    let _gone = stopping.wait_for(|stop| *stop).await;
}

fn spawn_settlements(
    accounts: &Accounts,
    background: &Background,
    stopping: &watch::Receiver<bool>,
) -> Vec<tokio::task::JoinHandle<()>> {
    let svm = accounts.svm.iter().map(|account| {
        let (settlement, stopping) = (Arc::clone(&account.settlement), stopping.clone());
        background.spawn(async move { settlement.run(stopped(stopping)).await })
    });
    let evm = accounts.evm.iter().map(|account| {
        let (settlement, stopping) = (Arc::clone(&account.settlement), stopping.clone());
        background.spawn(async move { settlement.run(stopped(stopping)).await })
    });
    svm.chain(evm).collect()
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

/// Asks the cosigners who they are. Those that do not answer are waited for while everything else goes on.
async fn start_cosigners(config: &Config, telemetry: &Arc<Telemetry>) -> Result<Option<Arc<Cosigners>>, StartError> {
    let Some(elsewhere) = config.signer.as_ref().and_then(|signer| signer.cosigners.as_ref()) else { return Ok(None) };
    let settings = elsewhere.cosigners.iter().map(|(name, address)| CosignerSettings {
        name: name.clone(),
        address: address.clone(),
        timeout: elsewhere.timeout,
    });
    let cosigners = Cosigners::new(settings.collect(), &elsewhere.tls, Some(telemetry)).start("signer.tls")?;
    Ok(Some(cosigners.watched().await))
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

fn recorder(log: Option<&Arc<AuditLog>>) -> Option<Arc<dyn Recorder>> {
    let log: Arc<dyn Recorder> = Arc::<AuditLog>::clone(log?);
    Some(log)
}

/// Opens the store on a thread that may block: it clears up between its file and the audit record.
async fn open_store(
    path: std::path::PathBuf,
    telemetry: &Arc<Telemetry>,
    log: Option<&Arc<AuditLog>>,
) -> Result<Arc<SqliteStore>, StartError> {
    let settings =
        sqlite::Settings { telemetry: Some(Arc::clone(telemetry)), recorder: recorder(log), ..Default::default() };
    let opened = tokio::task::spawn_blocking(move || SqliteStore::open(&path, settings)).await.start("store")?;
    Ok(Arc::new(opened.start("store")?))
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
        passes_max: PASSES_MAX,
    }
}

fn replay(config: &Config) -> Option<ReplayOptions> {
    let body_bytes_max = |replay: ReplayConfig| usize::try_from(replay.body_bytes).unwrap_or(usize::MAX);
    config.replay.map(|replay| ReplayOptions { body_bytes_max: body_bytes_max(replay), wait_max: config.queue.wait })
}

fn cors(config: &Config) -> Cors {
    match &config.cors {
        None => Cors::default(),
        Some(crate::config::CorsConfig::Any) => Cors::Any,
        Some(crate::config::CorsConfig::Origins(origins)) => Cors::Origins(origins.clone()),
    }
}
