//! A Solana network, or the sandbox, with everything that serves it.

use std::sync::Arc;
use std::time::Duration;

use super::audit::Audited;
use super::observe;
use super::{Start, StartError};
use crate::amount::Amount;
use crate::audit::log::AuditLog;
use crate::chain::Chain;
use crate::chain::sandbox::Sandbox;
use crate::chain::svm::{SvmRpc, SvmRpcOptions};
use crate::clock::Clock;
use crate::config::{Config, Family, NetworkConfig, SvmConfig};
use crate::facilitator::Facilitator;
use crate::facilitator::local::LocalFacilitator;
use crate::ledger::Ledger;
use crate::ledger::channel::Seller;
use crate::policy::Policy;
use crate::scheme::svm::treasury_owner;
use crate::settlement::{self, Settlement};
use crate::signer::Signer;
use crate::signer::frost::FrostSigner;
use crate::signer::keystore::{self, Passphrase};
use crate::signer::remote::{Cosigners, RemoteSigner};
use crate::signer::rules::{ComputeCaps, KINDS, Rules};
use crate::telemetry::Telemetry;
use crate::x402::Key;

/// Lamports that a sandbox gives its fee payer: ten thousand SOL.
const SANDBOX_LAMPORTS: u64 = 10_000_000_000_000;

/// One way to be paid on a Solana network, with everything that serves it.
pub(super) struct Account {
    pub(super) seller: Arc<Seller>,
    pub(super) chain: Arc<dyn Chain>,
    pub(super) rpc: SvmRpc,
    pub(super) signer: Arc<dyn Signer>,
    pub(super) policy: Arc<Policy>,
    pub(super) settlement: Arc<Settlement>,
}

/// What all accounts share.
pub(super) struct Shared<'a> {
    pub(super) config: &'a Config,
    pub(super) sandbox: Option<&'a Sandbox>,
    pub(super) telemetry: &'a Arc<Telemetry>,
    pub(super) ledger: &'a Arc<Ledger>,
    pub(super) clock: &'a Arc<dyn Clock>,
    pub(super) audit: Option<&'a Arc<AuditLog>>,
    pub(super) cosigners: Option<&'a Arc<Cosigners>>,
}

/// Starts every Solana network of the configuration.
pub(super) async fn start(shared: &Shared<'_>) -> Result<Vec<Account>, StartError> {
    let mut accounts = Vec::new();
    for network in &shared.config.networks {
        if let Family::Svm(svm) = &network.family {
            accounts.push(Account::start(network, svm, shared).await?);
        }
    }
    Ok(accounts)
}

impl Account {
    async fn start(network: &NetworkConfig, svm: &SvmConfig, shared: &Shared<'_>) -> Result<Self, StartError> {
        let Shared { config, sandbox, telemetry, ledger, clock, audit, cosigners } = *shared;
        let pay_to = pay_to(network, svm, sandbox)?;
        let signer: Arc<dyn Signer> = Arc::new(observe::Timed {
            telemetry: Arc::clone(telemetry),
            inner: open_signer(config, rules(network, svm, config, pay_to), cosigners)?,
        });
        let signer = match audit {
            Some(log) => Arc::new(Audited { log: Arc::clone(log), inner: signer }),
            None => signer,
        };
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
            Arc::new(observe::Batches {
                telemetry: Arc::clone(telemetry),
                seller: Arc::clone(&seller),
                audit: audit.cloned(),
            }),
        );
        tracing::info!(network = %seller.network, %pay_to, key = %group, "selling for {}", seller.asset.symbol);
        Ok(Self { seller, chain, rpc, signer, policy, settlement: Arc::new(settlement) })
    }

    /// The facilitator that the gate asks.
    pub(super) fn facilitator(&self, clock: &Arc<dyn Clock>) -> Result<Arc<dyn Facilitator>, StartError> {
        let facilitator = LocalFacilitator::new(
            Arc::clone(&self.chain),
            Arc::clone(&self.signer),
            Arc::clone(&self.policy),
            Arc::clone(&self.seller),
            Arc::clone(clock),
        );
        Ok(Arc::new(facilitator.start("facilitator")?))
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

fn open_signer(
    config: &Config,
    rules: Rules,
    cosigners: Option<&Arc<Cosigners>>,
) -> Result<Arc<dyn Signer>, StartError> {
    let Some(signer) = &config.signer else { return Ok(Arc::new(FrostSigner::ephemeral(rules).start("signer")?)) };
    let mut shares = Vec::new();
    for share in &signer.shares {
        let passphrase = Passphrase::new(share.passphrase.expose().to_owned());
        shares.push(keystore::open(&share.file, &passphrase).start("signer.shares")?);
    }
    let address = signer.cosigners.as_ref().and_then(|elsewhere| elsewhere.address);
    Ok(match (cosigners.map(Arc::clone), shares.first(), address) {
        (None, ..) => Arc::new(FrostSigner::open(shares, rules).start("signer")?),
        (Some(cosigners), Some(own), _) => Arc::new(RemoteSigner::with_share(own, rules, cosigners).start("signer")?),
        (Some(cosigners), None, Some(address)) => Arc::new(RemoteSigner::coordinating(address, rules, cosigners)),
        (Some(_), None, None) => return Err("neither a share nor an address of the key is configured").start("signer"),
    })
}

/// What the proxy may ask its signer for. The signer judges again by its own rules.
fn policy(config: &Config, pay_to: Key) -> Policy {
    let policy = Policy::unlimited(vec![pay_to]);
    match &config.signer {
        Some(signer) => Policy { deposit_cap: signer.deposit_max, claim_cap: signer.claim_max, ..policy },
        None => policy,
    }
}

/// Eight hundred claims or payouts in a second; what that does to requests is in docs/performance.md.
const SETTLEMENT_PACE: Duration = Duration::from_millis(5);

fn settlement_options(config: &Config, seller: &Arc<Seller>) -> settlement::Options {
    let mut options = settlement::Options::new(vec![Arc::clone(seller)]);
    options.interval = config.settlement.interval;
    options.rules.min_amount = config.settlement.min_amount;
    options.rules.max_age = config.settlement.max_age;
    options.rules.seal_margin = config.settlement.close_margin;
    options.batch_channels = config.settlement.batch_channels;
    options.in_flight_max = config.settlement.batches_in_flight;
    options.pace = SETTLEMENT_PACE;
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
