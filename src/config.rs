//! Configuration: a YAML file becomes a [`Config`] in which nothing is left to parse, or a list of every problem in it.
//!
//! Promises: every problem at once, each with its line, key, value and remedy; no secret in any message; no key that
//! does nothing; no input that panics. Refuses: unknown and duplicate keys, anchors, aliases, tags, files above
//! [`FILE_BYTES_MAX`]. What the file means is explained key by key in `config/example.yaml`.
//!
//! Text values may hold `${NAME}`, which stands for an environment variable; `$$` stands for one `$`. A message shows
//! a value as it is written in the file, so what a variable holds is not shown. Paths are relative to the file.

mod audit;
pub mod cosigner;
mod facilitator;
mod metering;
mod money;
mod network;
mod pack;
mod policy;
mod problem;
mod reader;
mod root;
mod route;
mod routes;
mod schemes;
mod screening;
mod secret;
mod server;
mod settlement;
mod signer;
mod value;
mod yaml;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Uri};

pub use self::policy::PolicyConfig;
pub use self::problem::{Problem, Problems, Warning};
pub use self::route::{NetworkPrice, PackConfig, RouteConfig, RoutePricing};
pub use self::schemes::Scheme;
pub use self::screening::{ScreeningConfig, ScreeningServiceConfig};
pub use self::secret::{RpcUrl, Secret};
use crate::amount::{Amount, Asset};
pub use crate::gate::route::Unlisted;
use crate::scheme::evm::TransferMethod;
use crate::signer::tls::TlsFiles;
use crate::x402::evm::Address;
use crate::x402::{Key, Network};

/// The largest file that is read.
pub const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// The most routes in one file.
pub const ROUTES_MAX: usize = 10_000;
/// The most networks in one file.
pub const NETWORKS_MAX: usize = 16;
/// The most URLs for one upstream or one network.
pub const URLS_MAX: usize = 64;
/// The most facilitators for one network.
pub const FACILITATORS_MAX: usize = 8;
/// How deep mappings and lists may nest.
pub const DEPTH_MAX: usize = 12;
/// The most values in one file.
pub const NODES_MAX: usize = 400_000;
/// The most problems that are reported.
pub const PROBLEMS_MAX: usize = 500;

/// How the environment is asked for a variable.
pub type Env<'a> = dyn Fn(&str) -> Option<String> + 'a;

/// A checked configuration.
#[derive(Debug)]
pub struct Config {
    /// The file that it came from.
    pub source: PathBuf,
    /// The SHA-256 of the file's text, as it stands there.
    pub sha256: [u8; 32],
    /// The upstream of every route that names none, as one or several equal origins (scheme, host, port; no path).
    /// Empty only where every route names its own and unlisted paths are refused.
    pub upstream: Vec<Uri>,
    /// Further upstreams by name, each as one or several equal origins.
    pub upstreams: BTreeMap<Arc<str>, Vec<Uri>>,
    /// Where money is taken, in order of preference; at least one. On the sandbox exactly one.
    pub networks: Vec<NetworkConfig>,
    /// Present where the only network is the sandbox.
    pub sandbox: Option<SandboxConfig>,
    /// The routes, as written.
    pub routes: Vec<RouteConfig>,
    /// What happens to a path that no route lists.
    pub default: Unlisted,
    /// Where clients connect.
    pub listen: SocketAddr,
    /// The admin API, health and metrics.
    pub admin: AdminConfig,
    /// TLS for `listen`; plain HTTP where absent.
    pub tls: Option<TlsConfig>,
    /// The ledger's database; `None` for a temporary one (sandbox only).
    pub store: Option<PathBuf>,
    /// The audit record; `None` for none.
    pub audit: Option<AuditConfig>,
    /// The key shares; `None` on the sandbox, which makes its own.
    pub signer: Option<SignerConfig>,
    /// Between a payer's request to close and its end: whole seconds, 15 minutes to 30 days.
    pub withdraw_delay: Duration,
    /// `maxTimeoutSeconds` of every offer: whole seconds.
    pub max_timeout: Duration,
    /// The memo that setup transactions must carry.
    pub memo: Option<Arc<str>>,
    /// When charges become money, and how much may be at risk meanwhile.
    pub settlement: SettlementConfig,
    /// Which paid requests are wanted, as far as it holds on all routes.
    pub policy: PolicyConfig,
    /// Requests of one channel that arrive together.
    pub queue: QueueConfig,
    /// The answers that are kept for clients that lost theirs; none where absent.
    pub replay: Option<ReplayConfig>,
    /// Sizes and counts of the HTTP side.
    pub limits: LimitsConfig,
    /// Waits of the HTTP side.
    pub timeouts: TimeoutsConfig,
    /// Answers to browsers of other origins; none where absent.
    pub cors: Option<CorsConfig>,
    /// The log.
    pub log: LogConfig,
    /// What `resource.url` begins with (scheme, authority, perhaps a path); from the `Host` header where absent.
    pub public_url: Option<Uri>,
}

/// One way to be paid: a token on a network.
#[derive(Debug)]
pub struct NetworkConfig {
    /// The network; on the sandbox the one that it presents itself as.
    pub network: Network,
    /// What is paid with. Its address is the mint's or the token contract's, and tells the tokens of a network apart.
    pub asset: Arc<Asset>,
    /// What is particular to the network's family.
    pub family: Family,
}

/// What is particular to a family of networks.
#[derive(Debug)]
pub enum Family {
    /// Solana's clusters and the sandbox.
    Svm(SvmConfig),
    /// Networks of the EVM.
    Evm(EvmConfig),
}

/// A token on a Solana network. This process is its facilitator.
#[derive(Debug)]
pub struct SvmConfig {
    /// The asset's mint.
    pub mint: Key,
    /// The program that owns the mint.
    pub token_program: Key,
    /// Where the money goes; `None` only on the sandbox.
    pub pay_to: Option<Key>,
    /// The network's JSON-RPC endpoints, in order of preference; empty only on the sandbox.
    pub rpc_urls: Vec<RpcUrl>,
}

/// A token on an EVM network.
#[derive(Debug)]
pub struct EvmConfig {
    /// The network's chain id.
    pub chain_id: u64,
    /// The asset's contract.
    pub token: Address,
    /// The name in the token's EIP-712 domain.
    pub token_name: Arc<str>,
    /// The version in the token's EIP-712 domain.
    pub token_version: Arc<str>,
    /// How deposits move.
    pub transfer_method: TransferMethod,
    /// Where the money goes.
    pub pay_to: Address,
    /// The network's JSON-RPC endpoints, in order of preference; at least one where the facilitator is this process. With
    /// one elsewhere they serve to read channels, and where there is none the facilitator is asked.
    pub rpc_urls: Vec<RpcUrl>,
    /// Who checks and sends what clients sign.
    pub facilitator: FacilitatorConfig,
    /// How routes that say nothing else are paid, in order of preference; at least one.
    pub schemes: Vec<Scheme>,
}

/// The audit record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditConfig {
    /// The directory; `None` for a temporary one (sandbox only).
    pub dir: Option<PathBuf>,
    /// From this size on a segment is followed by another.
    pub segment_bytes: u64,
    /// How long segments are kept; for ever where absent.
    pub keep: Option<Duration>,
    /// How often the record's head is signed.
    pub checkpoint_interval: Duration,
}

/// The network without a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SandboxConfig {
    /// Where the sandbox chain answers JSON-RPC.
    pub rpc_listen: SocketAddr,
}

/// The admin side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdminConfig {
    /// Where operators connect.
    pub listen: SocketAddr,
}

/// TLS for clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsConfig {
    /// PEM: the certificate, then its issuers.
    pub cert_file: PathBuf,
    /// PEM: its private key.
    pub key_file: PathBuf,
}

/// The threshold key's shares and what they refuse to sign.
#[derive(Debug)]
pub struct SignerConfig {
    /// The shares of the key for Solana networks, on ed25519, that are here: two or three, and none where there is no such
    /// network; beside `cosigners` one or none.
    pub shares: Vec<ShareConfig>,
    /// The shares of the key for EVM networks, on secp256k1, as above.
    pub evm_shares: Vec<ShareConfig>,
    /// The shares that are elsewhere.
    pub cosigners: Option<CosignersConfig>,
    /// The most that one `open` or `top_up` may deposit.
    pub deposit_max: Amount,
    /// The most that one claim transaction may name: the sum of its channels' whole cumulative amounts, what was
    /// claimed before included. At least `deposit_max`, and on Solana that for each of `batch_channels`.
    pub claim_max: Amount,
}

/// Shares on other machines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CosignersConfig {
    /// Who they are, each with its name in its certificate and with host and port: one to three.
    pub cosigners: Vec<(String, String)>,
    /// What this process shows them, and who may have signed what they show.
    pub tls: TlsFiles,
    /// How long one call may take.
    pub timeout: Duration,
    /// The key for Solana networks, where no share of it is here.
    pub address: Option<Key>,
    /// The key for EVM networks, where no share of it is here.
    pub evm_address: Option<Address>,
}

/// One share of the key.
pub struct ShareConfig {
    /// The share's encrypted file.
    pub file: PathBuf,
    /// What it is encrypted with.
    pub passphrase: Secret,
}

impl std::fmt::Debug for ShareConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShareConfig").field("file", &self.file).finish_non_exhaustive()
    }
}

/// Who checks and sends what clients sign for an EVM network.
#[derive(Debug)]
pub enum FacilitatorConfig {
    /// This process.
    Local(LocalFacilitatorConfig),
    /// Facilitators elsewhere, in order of preference.
    Remote(Vec<RemoteFacilitatorConfig>),
}

/// This process as an EVM network's facilitator.
pub struct LocalFacilitatorConfig {
    /// The private key of the account that pays for gas: 64 hexadecimal digits, perhaps after `0x`.
    pub gas_key: Secret,
    /// How many blocks deep a transaction must be; 1 is the block that holds it.
    pub confirmations: u64,
    /// The most that a transaction pays, in wei per gas, where the operator says so.
    pub max_fee_wei: Option<u128>,
    /// What one whole gas token (10^18 wei) costs, in atomic units of the network's asset. There where
    /// [`SettlementConfig::min_worth`] needs it.
    pub gas_token_price: Option<Amount>,
}

impl std::fmt::Debug for LocalFacilitatorConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalFacilitatorConfig")
            .field("confirmations", &self.confirmations)
            .field("max_fee_wei", &self.max_fee_wei)
            .field("gas_token_price", &self.gas_token_price)
            .finish_non_exhaustive()
    }
}

/// A facilitator elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteFacilitatorConfig {
    /// Where it is.
    pub url: RpcUrl,
    /// What goes with each request, a bearer token included. The values are marked as sensitive and never shown.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// How long `verify` may take.
    pub verify_timeout: Duration,
    /// How long `settle` may take.
    pub settle_timeout: Duration,
}

/// When charges become money, and how much may be at risk meanwhile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettlementConfig {
    /// How often the ledger is asked what is due.
    pub interval: Duration,
    /// A channel with less to claim waits, until `max_age`.
    pub min_amount: Amount,
    /// How old the oldest unclaimed charge of a channel may become.
    pub max_age: Duration,
    /// The most that may be charged and not yet claimed, over all channels.
    pub exposure_max: Amount,
    /// The most that may be charged and not yet claimed on one channel.
    pub channel_exposure_max: Amount,
    /// How long before a payer's forced close (Solana) or withdrawal (EVM) ends everything must have been claimed, and no
    /// more credit is given.
    pub close_margin: Duration,
    /// How many channels one claim transaction holds on Solana networks, 1 to 4.
    pub batch_channels: usize,
    /// How many transactions of settlement are under way at once on Solana, 1 to 64.
    pub batches_in_flight: usize,
    /// How many channels one claim transaction holds at most on EVM networks, 1 to 100.
    pub claims_per_batch: usize,
    /// On EVM networks whose facilitator is this process: how many times the cost of its gas a batch must bring, unless
    /// something presses. Where there is one, each of those networks has a `gas_token_price`.
    pub min_worth: Option<u32>,
}

/// Requests of one channel that arrive together are served in voucher order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueConfig {
    /// How many may wait on one channel.
    pub waiters: usize,
    /// How long one waits for those before it that are being served.
    pub wait: Duration,
    /// How long one waits for one before it that has not arrived.
    pub gap_wait: Duration,
}

/// The answers that are kept for clients that lost theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplayConfig {
    /// For how long an answer can be had again.
    pub keep: Duration,
    /// The longest body that is kept.
    pub body_bytes: u64,
    /// How much all kept answers may hold.
    pub total_bytes: u64,
}

/// Sizes and counts of the HTTP side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitsConfig {
    /// The largest head of a request.
    pub header_bytes: usize,
    /// The largest body of a request.
    pub body_bytes: u64,
    /// The most client connections at once.
    pub connections: usize,
}

/// Waits of the HTTP side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeoutsConfig {
    /// For a connection to the upstream.
    pub connect: Duration,
    /// For the upstream's response header; a route's `timeout` replaces it.
    pub response_header: Duration,
    /// For the next request on a connection that is kept open, on either side.
    pub idle: Duration,
    /// For requests in flight when the process is asked to stop.
    pub drain: Duration,
    /// For the next bytes of a request or response body.
    pub body_idle: Duration,
}

/// Answers to browsers of other origins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CorsConfig {
    /// Any origin.
    Any,
    /// These, each as a browser sends it in `Origin`.
    Origins(Vec<HeaderValue>),
}

/// The log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// How a line looks.
    pub format: LogFormat,
    /// What is logged.
    pub level: tracing::Level,
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// Every problem of the file at once; or one, with [`Problems::unreadable`], where it cannot be read.
    pub fn load(path: &Path, env: &Env<'_>) -> Result<(Self, Vec<Warning>), Problems> {
        let text = read(path).map_err(|why| Problems::cannot_read(path, why))?;
        Self::parse(path, &text, env)
    }

    /// Checks a file's text. `path` is named in messages, and its directory is what paths in the text are relative to.
    ///
    /// # Errors
    /// Every problem at once.
    pub fn parse(path: &Path, text: &str, env: &Env<'_>) -> Result<(Self, Vec<Warning>), Problems> {
        root::read(path, text, env)
    }

    /// [`Config::withdraw_delay`] as it is sent to clients.
    #[must_use]
    pub fn withdraw_delay_seconds(&self) -> u32 {
        u32::try_from(self.withdraw_delay.as_secs()).unwrap_or(u32::MAX)
    }
}

/// A file's text, within [`FILE_BYTES_MAX`].
fn read(path: &Path) -> Result<String, String> {
    use std::io::Read;
    let file = std::fs::File::open(path).map_err(|e| format!("cannot be read: {e}"))?;
    let mut text = Vec::new();
    file.take(FILE_BYTES_MAX.saturating_add(1)).read_to_end(&mut text).map_err(|e| format!("cannot be read: {e}"))?;
    if u64::try_from(text.len()).is_ok_and(|len| len > FILE_BYTES_MAX) {
        return Err(format!("is larger than {FILE_BYTES_MAX} bytes"));
    }
    String::from_utf8(text).map_err(|e| format!("is not UTF-8 text (at byte {})", e.utf8_error().valid_up_to()))
}
