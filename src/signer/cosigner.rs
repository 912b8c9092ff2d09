//! A cosigner: one share of each key, on a machine of its own, with a policy of its own.
//!
//! Owns [`Cosigner`], what it is given ([`Settings`]) and the way of a request through it: the operator's rules
//! (`signer/rules`), the limits and the durable record (`cosigner/store.rs`), and only then the share. It knows no chain,
//! no ledger and no configuration but its own; whoever asks is believed nothing.
//!
//! Promises: before a part of a signature leaves, the record on disk says what was signed, what it counts and that its
//! nonce is used; nonces are made here, live in memory and for [`SESSION_LIFE`](super::wire::SESSION_LIFE), and are used
//! up by the first request that names them, whether that is granted or not. So no retry, no crash, no restart and no lie
//! of a coordinator gets two signatures from one nonce. Every refusal names its rule, to the one who asks and in the record.
//!
//! Refuses requests for networks that no entry of its policy has, and all requests while its record cannot be written.

pub mod policy;
pub mod server;
pub mod store;

mod ecdsa;
mod frost;
mod sessions;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use self::ecdsa::EcdsaSide;
use self::frost::FrostSide;
use self::policy::{Limits, Moves};
use self::store::{Ask, Store, StoreError};
use super::bans::{BanFile, BansError};
use super::keystore::{KeyShare, Secp256k1};
use super::quorum::OpenError;
use super::rules::evm::EvmRules;
use super::rules::{Rules, rule};
use super::wire::{Cause, Introduction};
use super::{EvmRequest, SignerError};
use crate::audit::{Entry as AuditEntry, Kind, Recorder};
use crate::clock::{Clock, UnixMillis};
use crate::x402::Network;

/// What a cosigner is given.
pub struct Settings {
    /// What it is called; its certificate has this name.
    pub name: String,
    /// Its share of the key for Solana networks.
    pub share: Option<KeyShare>,
    /// Its share of the key for EVM networks.
    pub evm_share: Option<KeyShare<Secp256k1>>,
    /// What it allows.
    pub policy: Vec<Entry>,
    /// Where its record is.
    pub store: PathBuf,
    /// The audit record beside it, where every answer stands before it is given.
    pub audit: Option<Arc<dyn Recorder>>,
}

/// What is allowed on one network with one token.
#[derive(Clone, Debug)]
pub struct Entry {
    /// What it is called in the record: the network and the token.
    pub name: String,
    /// The network.
    pub network: Network,
    /// What a request may be.
    pub rules: EntryRules,
    /// How much, how often and when.
    pub limits: Limits,
}

/// The rules of a request's shape, for the network's family.
#[derive(Clone, Debug)]
pub enum EntryRules {
    /// Of a Solana network.
    Svm(Rules),
    /// Of an EVM network.
    Evm(EvmRules),
}

/// Why a cosigner does not start.
#[derive(Debug, thiserror::Error)]
pub enum CosignerError {
    /// A share.
    #[error(transparent)]
    Share(#[from] OpenError),
    /// The record.
    #[error("{0}")]
    Store(StoreError),
    /// The bans.
    #[error(transparent)]
    Bans(#[from] BansError),
    /// The system gives no random bytes.
    #[error("the system gives no random bytes: {0}")]
    Random(String),
}

/// Why a request is not done.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Trouble {
    Refused { rule: &'static str, detail: String },
    Failed(Cause, String),
}

impl Trouble {
    fn malformed(what: impl fmt::Display) -> Self {
        Self::Failed(Cause::Malformed, what.to_string())
    }
}

impl From<SignerError> for Trouble {
    fn from(error: SignerError) -> Self {
        match error {
            SignerError::Refused { rule, detail } => Self::Refused { rule, detail },
            SignerError::NoQuorum(what) | SignerError::Broken(what) => Self::Failed(Cause::Broken, what),
        }
    }
}

impl From<StoreError> for Trouble {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Refused { rule, detail } => Self::Refused { rule, detail },
            StoreError::Used(_) => Self::Failed(Cause::Stale, error.to_string()),
            StoreError::File(what) => Self::Failed(Cause::Broken, what),
        }
    }
}

/// A cosigner, without its port: `cosigner/server.rs` gives it one.
#[derive(Clone)]
pub struct Cosigner(Arc<Inner>);

struct Inner {
    name: String,
    /// Names this run.
    instance: String,
    frost: Option<FrostSide>,
    ecdsa: Option<EcdsaSide>,
    record: Record,
}

impl Cosigner {
    /// Opens the record and makes the share ready.
    ///
    /// # Errors
    /// [`CosignerError`], which names the file at fault.
    pub fn open(settings: Settings, clock: Arc<dyn Clock>) -> Result<Self, CosignerError> {
        let Settings { name, share, evm_share, policy, store, audit } = settings;
        let frost = share.map(|share| FrostSide::open(&share, &policy)).transpose()?;
        let ecdsa = match evm_share {
            Some(share) => {
                let bans = BanFile::open(Some(store.with_extension("bans")), &share)?;
                Some(EcdsaSide::open(&share, &policy, Arc::new(bans))?)
            }
            None => None,
        };
        let store = Store::open(&store).map_err(CosignerError::Store)?;
        let mut instance = [0; 8];
        getrandom::fill(&mut instance).map_err(|error| CosignerError::Random(error.to_string()))?;
        let (instance, record) = (hex(&instance), Record { store, audit, clock });
        Ok(Self(Arc::new(Inner { name, instance, frost, ecdsa, record })))
    }

    /// What is public of it.
    #[must_use]
    pub fn introduction(&self) -> Introduction {
        Introduction {
            name: self.0.name.clone(),
            ed25519: self.0.frost.as_ref().map(FrostSide::public),
            secp256k1: self.0.ecdsa.as_ref().map(EcdsaSide::public),
        }
    }

    /// Names this run ([`wire::INSTANCE`](super::wire::INSTANCE)).
    #[must_use]
    pub fn instance(&self) -> &str {
        &self.0.instance
    }

    /// The record, for the operator's questions.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.0.record.store
    }
}

impl fmt::Debug for Cosigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cosigner({})", self.0.name)
    }
}

/// The record with its clock: what both sides of a cosigner ask before they sign.
struct Record {
    store: Store,
    audit: Option<Arc<dyn Recorder>>,
    clock: Arc<dyn Clock>,
}

/// A request that its judge has accepted.
struct Judged<'a> {
    entry: &'a Allowed,
    kind: &'static str,
    moves: Moves,
    digest: [u8; 32],
}

/// An entry's part that is the same for all families.
struct Allowed {
    name: String,
    limits: Limits,
}

impl Record {
    /// Counts a request and uses up its nonce, durably, or says why it may not be signed.
    fn authorize(&self, judged: &Judged<'_>, nonce: [u8; 32]) -> Result<(), Trouble> {
        let Judged { entry, kind, moves, digest } = judged;
        let ask =
            Ask { entry: &entry.name, kind, digest: *digest, nonce, moves, limits: &entry.limits, now: self.now() };
        self.store.authorize(&ask)?;
        let answer = AuditEntry::new(Kind::SigningAnswer)
            .text("outcome", "signs")
            .text("policy", &entry.name)
            .text("request", kind)
            .text("digest", hex(digest))
            .json("totals", &moves.totals)
            .json("outright", &moves.outright);
        self.audited(answer)?;
        tracing::info!(entry = %entry.name, kind, digest = %hex(digest), "signs");
        Ok(())
    }

    /// Keeps a refusal. That it cannot be kept changes nothing for the one who asks: nothing is signed either way.
    fn refused(&self, place: &str, kind: &str, rule: &str, detail: &str) {
        tracing::warn!(place, kind, rule, detail, "refuses to sign");
        if let Err(error) = self.store.refused(place, kind, rule, detail, self.now()) {
            tracing::error!(%error, "a refusal cannot be written down");
        }
        let answer = AuditEntry::new(Kind::SigningAnswer)
            .text("outcome", "refuses")
            .text("network", place)
            .text("request", kind)
            .text("rule", rule)
            .text("detail", detail);
        if let Err(trouble) = self.audited(answer) {
            tracing::error!(?trouble, "a refusal is not in the audit record");
        }
    }

    /// Adds to the audit record; what is not there is not given out.
    fn audited(&self, answer: AuditEntry) -> Result<(), Trouble> {
        let Some(audit) = &self.audit else { return Ok(()) };
        let durable = audit.record_blocking(&[answer]);
        durable.map(|_| ()).map_err(|error| Trouble::Failed(Cause::Broken, error.to_string()))
    }

    fn now(&self) -> UnixMillis {
        self.clock.now()
    }
}

/// Asks the judge of each entry in turn: the first that accepts, or what the last one says.
fn first_that_accepts<'a, J, T>(
    entries: impl Iterator<Item = (&'a Allowed, &'a J)>,
    place: &str,
    judge: impl Fn(&J) -> Result<T, SignerError>,
) -> Result<(&'a Allowed, T), Trouble>
where
    J: 'a,
{
    let mut refusal = SignerError::Refused {
        rule: rule::NETWORK,
        detail: format!("no entry of this cosigner's policy is for {place}"),
    };
    for (entry, rules) in entries {
        match judge(rules) {
            Ok(accepted) => return Ok((entry, accepted)),
            Err(error) => refusal = error,
        }
    }
    Err(refusal.into())
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl EvmRequest {
    /// The network that it is for, by its own words; `None` where it is for none, and any entry may allow it.
    fn network(&self) -> Option<Network> {
        match self {
            Self::ClaimBatch { contract, .. } | Self::Refund { contract, .. } => {
                Some(Network::eip155(contract.chain_id))
            }
            Self::AuditCheckpoint(_) => None,
        }
    }
}

/// What a request without a network is for, in the record.
const NO_NETWORK: &str = "no network";
