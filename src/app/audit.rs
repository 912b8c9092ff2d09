//! The audit record of a running Turnpike: opened first, told of everything, signed from time to time.
//!
//! Owns what the root adds to the record: start and stop, the configuration, operators' acts, every signing request and
//! its answer, checkpoints and retention. A record that cannot be written stops the ledgers, so that nothing is served
//! on credit that nobody could prove, and signatures are withheld.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use super::{Accounts, Start, StartError};
use crate::amount::Amount;
use crate::audit::checkpoint::{Checkpoint, Signed};
use crate::audit::log::{AuditLog, Options, State};
use crate::audit::{AuditError, Entry, EntryHash, Kind};
use crate::clock::Clock;
use crate::config::{AuditConfig, Config, Family};
use crate::ledger::Ledger;
use crate::ledger::channel::Evm;
use crate::policy::{Approved, EvmPolicy, EvmRequest, Policy, SigningRequest};
use crate::signer::{EvmSigner, Signer, SignerError};
use crate::telemetry::Telemetry;
use crate::x402::Key;
use crate::x402::evm::{Address, EvmSignature};
use crate::x402::key::Signature;

/// How long the last checkpoint may take when the process stops.
const LAST_CHECKPOINT: Duration = Duration::from_secs(5);

/// Opens the record and tells it of this start; `None` where there shall be none. `temporary` is where one belongs that
/// lives as long as the process.
pub(super) fn open(
    config: &Config,
    temporary: Option<&Path>,
    telemetry: &Arc<Telemetry>,
    clock: &Arc<dyn Clock>,
) -> Result<Option<Arc<AuditLog>>, StartError> {
    let Some(audit) = &config.audit else {
        tracing::warn!("audit: off. Nothing proves what was charged and signed");
        return Ok(None);
    };
    let place = audit.dir.clone().or_else(|| temporary.map(|folder| folder.join("audit")));
    let place = place.ok_or("there is no place for the record; write audit.dir").start("audit")?;
    let options = Options {
        segment_bytes_max: audit.segment_bytes,
        clock: Arc::clone(clock),
        telemetry: Some(Arc::clone(telemetry)),
        ..Options::default()
    };
    let log = AuditLog::open(&place, options).start("audit")?;
    tracing::info!(record = %log.record_id(), place = %place.display(), head = log.state().head.seq, "the audit record is open");
    Ok(Some(Arc::new(log)))
}

/// Tells of this start, and of what was configured.
pub(super) async fn started(log: &AuditLog, config: &Config) -> Result<(), StartError> {
    let start = Entry::new(Kind::Start).text("version", env!("CARGO_PKG_VERSION")).number("pid", std::process::id());
    log.append(start).await.start("audit")?;
    log.append(loaded(config)).await.start("audit")?;
    Ok(())
}

/// The configuration in a line: its file's hash, and what of it matters for money. No secret is in it.
fn loaded(config: &Config) -> Entry {
    let networks: Vec<_> = config
        .networks
        .iter()
        .map(|network| {
            let pay_to = match &network.family {
                Family::Svm(svm) => svm.pay_to.map(|key| key.to_string()).unwrap_or_default(),
                Family::Evm(evm) => evm.pay_to.to_string(),
            };
            (network.network.to_string(), network.asset.address.to_string(), pay_to)
        })
        .collect();
    let caps = config.signer.as_ref().map(|signer| (signer.deposit_max.to_string(), signer.claim_max.to_string()));
    Entry::new(Kind::Config)
        .text("file", config.source.display())
        .text("sha256", EntryHash(config.sha256))
        .json("networks", &networks)
        .number("routes", u64::try_from(config.routes.len()).unwrap_or(u64::MAX))
        .text("exposure_max", config.settlement.exposure_max)
        .text("channel_exposure_max", config.settlement.channel_exposure_max)
        .json("signer_max", &caps)
}

/// Stops the ledgers as soon as the record cannot be written, rather than at the next charge. Ends with the record.
pub(super) fn guard(log: &AuditLog, ledger: Arc<Ledger>, evm: Option<Arc<Ledger<Evm>>>) {
    let mut state = log.watch();
    drop(tokio::spawn(async move {
        if let Ok(failed) = state.wait_for(|state: &State| state.failed.is_some()).await {
            let why = failed.failed.as_ref().map(ToString::to_string).unwrap_or_default();
            ledger.stop(&why);
            if let Some(evm) = evm {
                evm.stop(&why);
            }
        }
    }));
}

/// What an operator asked for, before it is done.
pub(super) async fn admin(log: Option<&Arc<AuditLog>>, act: &str) -> Result<(), AuditError> {
    match log {
        Some(log) => log.append(Entry::new(Kind::Admin).text("act", act)).await.map(drop),
        None => Ok(()),
    }
}

/// What a checkpoint is signed with.
enum Authority {
    Svm(Arc<dyn Signer>, Arc<Policy>),
    Evm(Arc<dyn EvmSigner>, Arc<EvmPolicy>),
}

/// Signs the record's head from time to time, and removes what is older than it is to be kept.
pub(super) struct Notary {
    log: Arc<AuditLog>,
    clock: Arc<dyn Clock>,
    authorities: Vec<Authority>,
    keep: Option<Duration>,
    interval: Duration,
}

impl Notary {
    /// A notary with every key of the merchant, each once.
    pub(super) fn new(log: Arc<AuditLog>, clock: Arc<dyn Clock>, config: &AuditConfig, accounts: &Accounts) -> Self {
        let mut authorities = Vec::new();
        let (mut keys, mut addresses): (Vec<Key>, Vec<Address>) = (Vec::new(), Vec::new());
        for account in &accounts.svm {
            if !keys.contains(&account.signer.public_key()) {
                keys.push(account.signer.public_key());
                authorities.push(Authority::Svm(Arc::clone(&account.signer), Arc::clone(&account.policy)));
            }
        }
        for account in &accounts.evm {
            if !addresses.contains(&account.signer.address()) {
                addresses.push(account.signer.address());
                authorities.push(Authority::Evm(Arc::clone(&account.signer), Arc::clone(&account.policy)));
            }
        }
        Self { log, clock, authorities, keep: config.keep, interval: config.checkpoint_interval }
    }

    /// Works until it is told to stop.
    pub(super) async fn run(self: Arc<Self>, stopping: watch::Receiver<bool>) {
        let mut signed = 0;
        let stop = super::stopped(stopping);
        tokio::pin!(stop);
        loop {
            tokio::select! {
                () = tokio::time::sleep(self.interval) => {
                    self.sign(&mut signed).await;
                    self.retire().await;
                }
                () = &mut stop => break,
            }
        }
    }

    /// Records that the process stops, and signs what is there then.
    pub(super) async fn end(&self) {
        if let Err(error) = self.log.append(Entry::new(Kind::Stop)).await {
            tracing::error!(%error, "that the process stops could not be recorded");
        }
        if tokio::time::timeout(LAST_CHECKPOINT, self.sign(&mut 0)).await.is_err() {
            tracing::warn!("the audit record's last checkpoint was not signed in time; the next start's covers it");
        }
    }

    /// Signs the head where something was added since it was signed last.
    async fn sign(&self, signed: &mut u64) {
        let head = self.log.state().head;
        if head.seq == *signed {
            return;
        }
        let checkpoint = Checkpoint { record: self.log.record_id(), head, time: self.clock.now() };
        for authority in &self.authorities {
            let entry = match authority.sign(checkpoint).await {
                Ok(by) => checkpoint.entry(&by),
                Err(why) => {
                    tracing::warn!(why, "the audit record's checkpoint is not signed; it is tried again");
                    continue;
                }
            };
            match self.log.append(entry).await {
                // The checkpoint itself needs no other.
                Ok(place) => *signed = place.seq,
                Err(error) => tracing::error!(%error, "a checkpoint could not be recorded"),
            }
        }
    }

    async fn retire(&self) {
        let Some(keep) = self.keep else { return };
        let millis = i64::try_from(keep.as_millis()).unwrap_or(i64::MAX);
        let before = crate::clock::UnixMillis(self.clock.now().0.saturating_sub(millis));
        match self.log.retire(before).await {
            Ok(0) => {}
            Ok(segments) => tracing::info!(segments, "old segments of the audit record were removed"),
            Err(error) => tracing::error!(%error, "old segments of the audit record could not be removed"),
        }
    }
}

impl Authority {
    async fn sign(&self, checkpoint: Checkpoint) -> Result<Signed, String> {
        match self {
            Self::Svm(signer, policy) => {
                let request = SigningRequest::AuditCheckpoint(checkpoint);
                let approved = policy.approve(request, Amount::ZERO).map_err(|error| error.to_string())?;
                let signature = signer.sign(approved).await.map_err(|error| error.to_string())?;
                Ok(Signed::Ed25519 { key: signer.public_key(), signature })
            }
            Self::Evm(signer, policy) => {
                let request = EvmRequest::AuditCheckpoint(checkpoint);
                let approved = policy.approve(request, Amount::ZERO).map_err(|error| error.to_string())?;
                let signature = signer.sign(approved).await.map_err(|error| error.to_string())?;
                Ok(Signed::Secp256k1 { address: signer.address(), signature })
            }
        }
    }
}

/// A signer whose requests and answers are recorded: the request before it is asked, the answer before it is used. A
/// checkpoint is its own record.
pub(super) struct Audited<S: ?Sized> {
    pub(super) log: Arc<AuditLog>,
    pub(super) inner: Arc<S>,
}

#[async_trait]
impl Signer for Audited<dyn Signer> {
    fn public_key(&self) -> Key {
        self.inner.public_key()
    }

    async fn sign(&self, approved: Approved) -> Result<Signature, SignerError> {
        let Some(entry) = asked(approved.request(), &self.public_key()) else { return self.inner.sign(approved).await };
        recorded(&self.log, entry, self.inner.sign(approved)).await
    }

    fn health(&self) -> Result<(), String> {
        self.inner.health()
    }
}

#[async_trait]
impl EvmSigner for Audited<dyn EvmSigner> {
    fn address(&self) -> Address {
        self.inner.address()
    }

    async fn sign(&self, approved: Approved<EvmRequest>) -> Result<EvmSignature, SignerError> {
        let Some(entry) = asked_evm(approved.request(), &self.address()) else {
            return self.inner.sign(approved).await;
        };
        recorded(&self.log, entry, self.inner.sign(approved)).await
    }

    fn health(&self) -> Result<(), String> {
        self.inner.health()
    }
}

/// Records a request, has it signed, and records the answer.
async fn recorded<T: ToString>(
    log: &AuditLog,
    request: Entry,
    signing: impl Future<Output = Result<T, SignerError>>,
) -> Result<T, SignerError> {
    let unrecorded = |error: AuditError| SignerError::NoQuorum(error.to_string());
    let asked = log.append(request).await.map_err(unrecorded)?;
    let signed = signing.await;
    let answer = Entry::new(Kind::SigningAnswer).number("request", asked.seq);
    let answer = match &signed {
        Ok(signature) => answer.text("outcome", "signed").text("signature", signature.to_string()),
        Err(SignerError::Refused { rule, detail }) => {
            answer.text("outcome", "refused").text("rule", rule).text("why", detail)
        }
        Err(SignerError::NoQuorum(why)) => answer.text("outcome", "no_quorum").text("why", why),
        Err(SignerError::Broken(why)) => answer.text("outcome", "broken").text("why", why),
    };
    log.append(answer).await.map_err(unrecorded)?;
    signed
}

/// What is asked for, in a line; `None` where it needs none.
fn asked(request: &SigningRequest, key: &Key) -> Option<Entry> {
    let entry = Entry::new(Kind::SigningRequest).text("family", "svm").text("what", request.kind()).text("key", key);
    let message =
        |entry: Entry, message: &[u8]| entry.text("message_sha256", EntryHash(Sha256::digest(message).into()));
    Some(match request {
        SigningRequest::AuditCheckpoint(_) => return None,
        SigningRequest::Sponsor { transaction, .. } => message(entry, transaction.message()),
        SigningRequest::Claim { lines, transaction } => {
            let lines: Vec<_> = lines.iter().map(|line| (line.channel, line.cumulative.to_string())).collect();
            message(entry.json("channels", &lines), transaction.message())
        }
        SigningRequest::Distribute { channels, transaction } => {
            message(entry.json("channels", channels), transaction.message())
        }
        SigningRequest::Close { channel, cumulative, transaction } => {
            let entry = entry.text("channel", channel).text_if("total", *cumulative);
            message(entry, transaction.message())
        }
        SigningRequest::Voucher { channel, cumulative, deposit, expires_at } => entry
            .text("channel", channel)
            .text("total", cumulative)
            .text("deposit", deposit)
            .number("expires_at", *expires_at),
        SigningRequest::CloseAuthorization { network, channel, cumulative, valid_before } => entry
            .text("network", network)
            .text("channel", channel)
            .text("total", cumulative)
            .number("valid_before", *valid_before),
    })
}

fn asked_evm(request: &EvmRequest, key: &Address) -> Option<Entry> {
    let entry = Entry::new(Kind::SigningRequest).text("family", "evm").text("what", request.kind()).text("key", key);
    Some(match request {
        EvmRequest::AuditCheckpoint(_) => return None,
        EvmRequest::ClaimBatch { contract, claims } => {
            let lines: Vec<_> = claims
                .iter()
                .map(|claim| (claim.config.payer, claim.config.salt, claim.total_claimed.to_string()))
                .collect();
            entry.number("chain_id", contract.chain_id).json("claims", &lines)
        }
        EvmRequest::Refund { contract, refund } => entry
            .number("chain_id", contract.chain_id)
            .text("payer", refund.config.payer)
            .text("salt", refund.config.salt)
            .text("amount", refund.amount)
            .text("nonce", refund.nonce),
    })
}
