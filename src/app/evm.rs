//! An EVM network with everything that serves it: facilitator, threshold signer, settlement.
//!
//! The tokens of one network share all of it, above all the account that pays for gas: two that counted its nonces apart
//! would send over one another.

use std::sync::Arc;

use async_trait::async_trait;

use super::audit::Audited;
use super::observe;
use super::{Start, StartError};
use crate::amount::Amount;
use crate::audit::log::AuditLog;
use crate::chain::evm::fees::FeeLimits;
use crate::chain::evm::key::GasKey;
use crate::chain::evm::rpc::{EvmRpc, EvmRpcOptions};
use crate::chain::evm::sender::{Sender, SenderOptions};
use crate::chain::evm::{EvmChain, EvmError};
use crate::clock::Clock;
use crate::config::{Config, EvmConfig, FacilitatorConfig, Family, LocalFacilitatorConfig, NetworkConfig, Scheme};
use crate::facilitator::authorizer::threshold::ThresholdAuthorizer;
use crate::facilitator::channels::{ByChain, ByFacilitator, EvmChannels};
use crate::facilitator::evm::{EvmFacilitatorOptions, LocalEvmFacilitator};
use crate::facilitator::http::{HttpFacilitator, RemoteOptions};
use crate::facilitator::interface::{InterfaceError, Supported, X402Facilitator};
use crate::gate::evm::{EvmNetwork, Served};
use crate::ledger::Ledger;
use crate::ledger::channel::Evm;
use crate::policy::EvmPolicy;
use crate::scheme::evm::EvmSeller;
use crate::scheme::evm::eip712::Domain;
use crate::scheme::{batch_settlement_evm, exact_evm, upto_evm};
use crate::settlement::evm::{ClaimCost, EvmOptions, EvmParts, EvmSettlement};
use crate::signer::EvmSigner;
use crate::signer::bans::BanFile;
use crate::signer::ecdsa::EcdsaSigner;
use crate::signer::keystore::{self, KeyShare, Passphrase, Secp256k1};
use crate::signer::remote::{Cosigners, RemoteEvmSigner};
use crate::signer::rules::evm::{EVM_KINDS, EvmRules};
use crate::telemetry::Telemetry;
use crate::x402::Network;
use crate::x402::evm::{Address, U256};

/// The most gas that a claim transaction may use: half of what the smallest blocks of the known networks hold.
const CLAIM_GAS_MAX: u64 = 15_000_000;
/// Gas of a claim beside its rows, and of the payout that follows it.
const BESIDES_GAS: u64 = 160_000;
/// Below so many wei the account that pays for gas is said to be nearly empty: 0.0005 of the gas token.
const GAS_BALANCE_LOW_WEI: u64 = 500_000_000_000_000;

/// An EVM network that is paid on.
pub(super) struct EvmAccount {
    pub(super) network: Network,
    pub(super) sellers: Vec<Arc<EvmSeller>>,
    pub(super) signer: Arc<dyn EvmSigner>,
    pub(super) policy: Arc<EvmPolicy>,
    pub(super) settlement: Arc<EvmSettlement>,
    facilitator: Arc<dyn X402Facilitator>,
    authorizer: Arc<ThresholdAuthorizer>,
    served: Served,
    rpc: Option<EvmRpc>,
    remote: Option<Arc<HttpFacilitator>>,
}

/// What all accounts share.
pub(super) struct Shared<'a> {
    pub(super) config: &'a Config,
    pub(super) telemetry: &'a Arc<Telemetry>,
    pub(super) ledger: &'a Arc<Ledger<Evm>>,
    pub(super) clock: &'a Arc<dyn Clock>,
    pub(super) audit: Option<&'a Arc<AuditLog>>,
    pub(super) cosigners: Option<&'a Arc<Cosigners>>,
}

/// Starts every EVM network of the configuration.
pub(super) async fn start(shared: &Shared<'_>) -> Result<Vec<EvmAccount>, StartError> {
    let mut accounts: Vec<EvmAccount> = Vec::new();
    let mut entries: Vec<(&NetworkConfig, &EvmConfig)> = Vec::new();
    for network in &shared.config.networks {
        if let Family::Evm(evm) = &network.family {
            entries.push((network, evm));
        }
    }
    if entries.is_empty() {
        return Ok(accounts);
    }
    let key = OpenKey::open(shared)?;
    while let Some((first, _)) = entries.first() {
        let name = first.network.clone();
        let (same, others): (Vec<_>, Vec<_>) = entries.into_iter().partition(|(entry, _)| entry.network == name);
        entries = others;
        accounts.push(EvmAccount::start(&same, &key, shared).await?);
    }
    Ok(accounts)
}

impl EvmAccount {
    /// Starts a network with its tokens; the first entry says how the network is reached.
    async fn start(
        entries: &[(&NetworkConfig, &EvmConfig)],
        key: &OpenKey,
        shared: &Shared<'_>,
    ) -> Result<Self, StartError> {
        let Shared { config, telemetry, ledger, clock, audit, cosigners } = *shared;
        let (network, evm) = *entries.first().ok_or(()).map_err(|()| "no entry").start("networks")?;
        let signer: Arc<dyn EvmSigner> = Arc::new(observe::TimedEvm {
            telemetry: Arc::clone(telemetry),
            inner: key.signer(config, rules(entries, config), cosigners)?,
        });
        let signer = match audit {
            Some(log) => Arc::new(Audited { log: Arc::clone(log), inner: signer }),
            None => signer,
        };
        let seller = |(network, evm): &(&NetworkConfig, &EvmConfig)| {
            Arc::new(EvmSeller {
                network: network.network.clone(),
                chain_id: evm.chain_id,
                asset: Arc::clone(&network.asset),
                token: evm.token,
                token_name: Arc::clone(&evm.token_name),
                token_version: Arc::clone(&evm.token_version),
                transfer_method: evm.transfer_method,
                pay_to: evm.pay_to,
                receiver_authorizer: signer.address(),
                withdraw_delay: config.withdraw_delay.as_secs(),
                domain: Domain::batch_settlement(evm.chain_id),
            })
        };
        let sellers: Vec<_> = entries.iter().map(seller).collect();
        let rpc = open_rpc(evm, telemetry).await?;
        let way = Way::open(network, evm, rpc.as_ref(), shared).await?;
        let channels: Arc<dyn EvmChannels> = match &rpc {
            Some(rpc) => Arc::new(ByChain::new(Arc::new(rpc.clone()), Arc::clone(clock))),
            None => Arc::new(ByFacilitator::new(Arc::clone(&way.facilitator), Arc::clone(clock))),
        };
        let policy = Arc::new(policy(entries, config));
        let parts = EvmParts {
            ledger: Arc::clone(ledger),
            facilitator: Arc::clone(&way.facilitator),
            channels,
            signer: Arc::clone(&signer),
            policy: Arc::clone(&policy),
            cost: way.cost,
            clock: Arc::clone(clock),
            observer: Arc::new(observe::EvmBatches {
                telemetry: Arc::clone(telemetry),
                sellers: sellers.clone(),
                audit: audit.cloned(),
            }),
        };
        let settlement = Arc::new(EvmSettlement::new(parts, settlement_options(config, &sellers)));
        for seller in &sellers {
            tracing::info!(
                network = %seller.network, pay_to = %seller.pay_to, receiver_authorizer = %signer.address(),
                "selling for {}", seller.asset.symbol
            );
        }
        let authorizer = Arc::new(ThresholdAuthorizer::new(Arc::clone(&signer), Arc::clone(&policy)));
        Ok(Self {
            network: network.network.clone(),
            sellers,
            signer,
            policy,
            settlement,
            facilitator: way.facilitator,
            authorizer,
            served: way.served,
            rpc,
            remote: way.remote,
        })
    }

    /// What the gate needs of it.
    pub(super) fn for_gate(&self) -> (Network, EvmNetwork) {
        let network = EvmNetwork {
            facilitator: Arc::clone(&self.facilitator),
            authorizer: Arc::<ThresholdAuthorizer>::clone(&self.authorizer),
            served: self.served,
        };
        (self.network.clone(), network)
    }

    /// What is wrong with the way to the chain.
    pub(super) fn chain_state(&self) -> Result<(), String> {
        let endpoints: Vec<_> = match (&self.rpc, &self.remote) {
            (Some(rpc), _) => rpc.health(),
            (None, Some(remote)) => remote.health().into_iter().map(|remote| remote.endpoint).collect(),
            (None, None) => Vec::new(),
        };
        super::operate::endpoints_state(&endpoints)
    }

    /// What is wrong with the facilitators elsewhere, where there are any.
    pub(super) fn facilitator_state(&self) -> Option<Result<(), String>> {
        let endpoints: Vec<_> = self.remote.as_ref()?.health().into_iter().map(|remote| remote.endpoint).collect();
        Some(super::operate::endpoints_state(&endpoints))
    }
}

/// How a network's payments reach the chain.
struct Way {
    facilitator: Arc<dyn X402Facilitator>,
    served: Served,
    cost: Option<Arc<dyn ClaimCost>>,
    remote: Option<Arc<HttpFacilitator>>,
}

impl Way {
    async fn open(
        network: &NetworkConfig,
        evm: &EvmConfig,
        rpc: Option<&EvmRpc>,
        shared: &Shared<'_>,
    ) -> Result<Self, StartError> {
        match (&evm.facilitator, rpc) {
            (FacilitatorConfig::Local(local), Some(rpc)) => Self::local(local, rpc, shared).await,
            (FacilitatorConfig::Local(_), None) => {
                Err(StartError { part: "rpc_url", why: format!("{} has none", network.network) })
            }
            (FacilitatorConfig::Remote(remotes), _) => {
                let options: Vec<_> = remotes
                    .iter()
                    .map(|remote| RemoteOptions {
                        url: remote.url.uri().to_string(),
                        headers: remote.headers.clone(),
                        verify_timeout: remote.verify_timeout,
                        settle_timeout: remote.settle_timeout,
                    })
                    .collect();
                Self::remote(network, &options, shared).await
            }
        }
    }

    async fn local(local: &LocalFacilitatorConfig, rpc: &EvmRpc, shared: &Shared<'_>) -> Result<Self, StartError> {
        let key = GasKey::from_hex("gas_key", local.gas_key.expose()).start("gas_key")?;
        let chain: Arc<dyn EvmChain> = Arc::new(rpc.clone());
        warn_of_missing_gas(chain.as_ref(), key.address()).await;
        let mut options = SenderOptions { confirmations: local.confirmations, ..SenderOptions::DEFAULT };
        if let Some(max) = local.max_fee_wei {
            options.fees = FeeLimits { max_fee_per_gas_max: max, ..options.fees };
        }
        let sender = Sender::new(Arc::clone(&chain), key, options);
        // Ends with the process: what is unmined is looked after whether somebody waits for it or not.
        drop(sender.keep_looking_after());
        let clock = Arc::clone(shared.clock);
        let facilitator = LocalEvmFacilitator::new(Arc::clone(&chain), sender, clock, EvmFacilitatorOptions::DEFAULT);
        let served = Served { upto_facilitator: Some(facilitator.address()), exact_v1: true };
        let cost = GasCost { facilitator: facilitator.clone(), chain, price: local.gas_token_price };
        let facilitator: Arc<dyn X402Facilitator> = Arc::new(facilitator);
        Ok(Self { facilitator, served, cost: Some(Arc::new(cost)), remote: None })
    }

    async fn remote(
        network: &NetworkConfig,
        options: &[RemoteOptions],
        shared: &Shared<'_>,
    ) -> Result<Self, StartError> {
        let observer = Arc::new(observe::Facilitators(Arc::clone(shared.telemetry)));
        let remote = Arc::new(HttpFacilitator::new(options, observer).start("facilitator")?);
        let served = match remote.supported().await {
            Ok(supported) => {
                check_supported(&supported, network, shared.config)?;
                Served::of(&supported, &network.network)
            }
            Err(error) => {
                tracing::warn!(
                    network = %network.network, %error,
                    "no facilitator says what it serves: deposits, refunds and settlement wait for it, and `upto` and \
                     version 1 are not offered until a restart"
                );
                Served::default()
            }
        };
        let informed = Arc::clone(&remote);
        drop(tokio::spawn(async move { informed.keep_informed().await }));
        let facilitator: Arc<dyn X402Facilitator> = Arc::<HttpFacilitator>::clone(&remote);
        Ok(Self { facilitator, served, cost: None, remote: Some(remote) })
    }
}

/// A facilitator that cannot do what routes offer is better known at start than by the first client.
fn check_supported(supported: &Supported, network: &NetworkConfig, config: &Config) -> Result<(), StartError> {
    let name = |scheme: Scheme| match scheme {
        Scheme::BatchSettlement => batch_settlement_evm::SCHEME,
        Scheme::Exact => exact_evm::SCHEME,
        Scheme::Upto => upto_evm::SCHEME,
    };
    let prices = config.routes.iter().flat_map(|route| route.pricing.prices());
    let mut missing: Vec<_> = prices
        .filter(|price| price.network == network.network)
        .map(|price| name(price.scheme))
        .filter(|scheme| !supported.serves(scheme, &network.network))
        .collect();
    missing.sort_unstable();
    missing.dedup();
    if missing.is_empty() {
        return Ok(());
    }
    let why = format!(
        "no facilitator of {} serves {}: name another, or leave it out of schemes",
        network.network,
        missing.join(", ")
    );
    Err(StartError { part: "facilitator", why })
}

async fn open_rpc(evm: &EvmConfig, telemetry: &Arc<Telemetry>) -> Result<Option<EvmRpc>, StartError> {
    if evm.rpc_urls.is_empty() {
        return Ok(None);
    }
    let urls = evm.rpc_urls.iter().map(|url| url.uri().to_string()).collect();
    let observer = Arc::new(observe::Rpc(Arc::clone(telemetry)));
    let rpc = EvmRpc::new(EvmRpcOptions::new(evm.chain_id, urls), observer).start("rpc_url")?;
    match rpc.check_chain().await {
        Ok(()) => {}
        Err(EvmError::Unavailable(why)) => {
            tracing::warn!(%why, "the chain cannot be reached: deposits and settlement wait for it");
        }
        Err(error) => return Err(error).start("rpc_url"),
    }
    Ok(Some(rpc))
}

fn rules(entries: &[(&NetworkConfig, &EvmConfig)], config: &Config) -> EvmRules {
    let claim_max = config.signer.as_ref().map_or(Amount::new(u128::MAX), |signer| signer.claim_max);
    EvmRules {
        chain_id: entries.first().map_or(0, |(_, evm)| evm.chain_id),
        pay_to: entries.iter().map(|(_, evm)| evm.pay_to).collect(),
        tokens: entries.iter().map(|(_, evm)| evm.token).collect(),
        channel_max: claim_max,
        claim_max,
        kinds: EVM_KINDS.to_vec(),
    }
}

/// What the proxy may ask its signer for. The signer judges again by its own rules.
fn policy(entries: &[(&NetworkConfig, &EvmConfig)], config: &Config) -> EvmPolicy {
    let policy = EvmPolicy::unlimited(entries.iter().map(|(_, evm)| evm.pay_to).collect());
    match &config.signer {
        Some(signer) => EvmPolicy { claim_cap: signer.claim_max, ..policy },
        None => policy,
    }
}

/// What is here of the key for EVM networks, which is the same on all of them.
struct OpenKey {
    shares: Vec<KeyShare<Secp256k1>>,
    /// Of the one share that signs with cosigners. One for all networks: who is banned on one is on every other.
    bans: Option<Arc<BanFile>>,
}

impl OpenKey {
    fn open(shared: &Shared<'_>) -> Result<Self, StartError> {
        let configured = shared.config.signer.as_ref().map_or(&[][..], |signer| &signer.evm_shares);
        let mut shares = Vec::new();
        for share in configured {
            let passphrase = Passphrase::new(share.passphrase.expose().to_owned());
            shares.push(keystore::open::<Secp256k1>(&share.file, &passphrase).start("signer.evm_shares")?);
        }
        let mut bans = None;
        if shared.cosigners.is_some() {
            tracing::warn!(
                "the key for EVM networks signs by DKLs23 between machines, with a library of which no audit is \
                 published: docs/cosigners.md says what that means and what is done about it"
            );
            let file = shared.config.store.as_ref().map(|store| store.with_extension("bans"));
            let open = |own: &KeyShare<Secp256k1>| BanFile::open(file, own).map(Arc::new);
            bans = shares.first().map(open).transpose().start("signer.evm_shares")?;
        }
        Ok(Self { shares, bans })
    }

    /// A signer with the rules of one network.
    fn signer(
        &self,
        config: &Config,
        rules: EvmRules,
        cosigners: Option<&Arc<Cosigners>>,
    ) -> Result<Arc<dyn EvmSigner>, StartError> {
        let Some(cosigners) = cosigners.map(Arc::clone) else {
            return Ok(Arc::new(EcdsaSigner::open(&self.shares, rules).start("signer.evm_shares")?));
        };
        if let (Some(own), Some(bans)) = (self.shares.first(), &self.bans) {
            let bans = Arc::<BanFile>::clone(bans);
            return Ok(Arc::new(RemoteEvmSigner::with_share(own, bans, rules, cosigners).start("signer.evm_shares")?));
        }
        let address = config.signer.as_ref().and_then(|signer| signer.cosigners.as_ref()?.evm_address);
        let address = address.ok_or("neither a share nor an address of the key is configured");
        Ok(Arc::new(RemoteEvmSigner::coordinating(address.start("signer.evm_shares")?, rules, cosigners)))
    }
}

fn settlement_options(config: &Config, sellers: &[Arc<EvmSeller>]) -> EvmOptions {
    let mut options = EvmOptions::new(sellers.to_vec());
    let settlement = &config.settlement;
    options.interval = settlement.interval;
    options.rules.min_amount = settlement.min_amount;
    options.rules.max_age = settlement.max_age;
    options.rules.worth_multiple = settlement.min_worth.unwrap_or(0);
    options.batch_claims = settlement.claims_per_batch;
    if let Some(signer) = &config.signer {
        options.batch_total_max = signer.claim_max;
    }
    // A payer who withdraws must be seen with time left to claim.
    let eighth = config.withdraw_delay.checked_div(8).unwrap_or(options.watch_interval);
    options.watch_interval = options.watch_interval.min(eighth).min(settlement.close_margin);
    options
}

async fn warn_of_missing_gas(chain: &dyn EvmChain, payer: Address) {
    match chain.coin_balance(payer).await {
        Ok(balance) if balance < U256::from(GAS_BALANCE_LOW_WEI) => tracing::warn!(
            address = %payer,
            "the account that pays for gas is nearly empty: send it the chain's own coin, or deposits and settlement fail"
        ),
        Ok(_) => tracing::info!(address = %payer, "pays for gas"),
        Err(error) => tracing::warn!(%error, "the balance of the account that pays for gas cannot be read"),
    }
}

/// What claims cost by the chain's present fees and what the facilitator has seen them take.
struct GasCost {
    facilitator: LocalEvmFacilitator,
    chain: Arc<dyn EvmChain>,
    /// Of one whole gas token, in the asset's atomic units.
    price: Option<Amount>,
}

#[async_trait]
impl ClaimCost for GasCost {
    fn claims_max(&self) -> usize {
        self.facilitator.claims_in(CLAIM_GAS_MAX)
    }

    async fn cost(&self, claims: usize) -> Result<Amount, InterfaceError> {
        let Some(price) = self.price else { return Ok(Amount::ZERO) };
        let unread = |error: EvmError| InterfaceError::Unavailable(error.to_string());
        let base = self.chain.head().await.map_err(unread)?.base_fee_per_gas.unwrap_or(0);
        let priority = self.chain.priority_fee().await.map_err(unread)?;
        let rows = u64::try_from(claims).unwrap_or(u64::MAX).saturating_mul(self.facilitator.gas_per_claim());
        Ok(worth_of_gas(rows.saturating_add(BESIDES_GAS), base.saturating_add(priority), price))
    }
}

/// What so much gas costs, rounded up.
fn worth_of_gas(gas: u64, wei_per_gas: u128, price: Amount) -> Amount {
    /// A gas token's smallest units.
    const WEI: u128 = 1_000_000_000_000_000_000;
    let wei = u128::from(gas).saturating_mul(wei_per_gas);
    // The token's whole part first, so that nothing overflows short of a fortune.
    let (whole, rest) = (wei / WEI, wei % WEI);
    let rest = rest.saturating_mul(price.get()).div_ceil(WEI);
    Amount::new(whole.saturating_mul(price.get()).saturating_add(rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gas_is_worth_what_its_token_costs_rounded_up() {
        let dollars = |dollars: u128| Amount::new(dollars * 1_000_000);
        // 2,000,000 gas at 50 gwei are 0.1 of a token.
        assert_eq!(worth_of_gas(2_000_000, 50_000_000_000, dollars(3_000)), dollars(300));
        assert_eq!(worth_of_gas(1, 1, dollars(3_000)), Amount::new(1));
        assert_eq!(worth_of_gas(0, 50, dollars(3_000)), Amount::ZERO);
        assert_eq!(worth_of_gas(u64::MAX, u128::MAX, Amount::new(u128::MAX)), Amount::new(u128::MAX));
    }
}
