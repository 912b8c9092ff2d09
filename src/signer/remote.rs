//! Signing with shares on other machines: the coordinator's side.
//!
//! Owns [`Cosigners`] (who they are and how they do), and, below, [`RemoteSigner`] and [`RemoteEvmSigner`], which are the
//! ports of `signer.rs` over them. This process holds one share of a key or none; any two of three make a signature.
//!
//! Promises: a request goes to no cosigner that this process's own rules would not let through; a cosigner that is
//! slow, gone, refuses or lies is left out while the others make the signature, within [`SIGN_WAIT_MAX`]; which one it
//! was, and why, is logged and counted by its name; one that was caught lying is asked last for [`ASIDE`]; every signature
//! is verified before anybody sees it. Where no two are left there is [`NoQuorum`](super::SignerError::NoQuorum), until
//! they are back: they are asked how they do every [`WATCH_INTERVAL`].
//!
//! What passes through here between two cosigners is sealed for them (`ecdsa/pair.rs`).

mod ecdsa;
mod frost;
mod peer;
mod race;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::task::JoinHandle;

pub use self::ecdsa::RemoteEvmSigner;
pub use self::frost::RemoteSigner;
use self::peer::Peer;
pub use self::peer::{CosignerSettings, PeerError};
use self::race::Fault;
use super::SignerError;
use super::rules::rule;
use super::tls::{self, TlsError, TlsFiles};
use super::wire::Introduction;
use crate::telemetry::Telemetry;

/// How long a signature may take, whatever happens on the way.
pub const SIGN_WAIT_MAX: Duration = Duration::from_secs(10);
/// For how long a cosigner that was caught lying is asked last.
pub const ASIDE: Duration = Duration::from_secs(600);
/// How often cosigners are asked how they do.
pub const WATCH_INTERVAL: Duration = Duration::from_secs(5);

/// The cosigners of this process, for both of its keys.
pub struct Cosigners {
    peers: Vec<Arc<Peer>>,
    watch: Option<JoinHandle<()>>,
}

/// How a cosigner does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CosignerHealth {
    /// Its name.
    pub name: String,
    /// What is wrong with it.
    pub state: Result<(), String>,
}

impl Cosigners {
    /// Makes ready to talk to them. Nobody is asked anything yet.
    ///
    /// # Errors
    /// [`TlsError`], which names the file at fault.
    pub fn new(
        settings: Vec<CosignerSettings>,
        files: &TlsFiles,
        telemetry: Option<&Arc<Telemetry>>,
    ) -> Result<Self, TlsError> {
        let config = tls::client(files)?;
        let peer = |settings| Arc::new(Peer::new(settings, config.clone(), telemetry.cloned()));
        Ok(Self { peers: settings.into_iter().map(peer).collect(), watch: None })
    }

    /// Asks all of them who they are, and from then on how they do.
    pub async fn watched(mut self) -> Arc<Self> {
        ask(&self.peers).await;
        let peers = self.peers.clone();
        self.watch = Some(tokio::spawn(async move {
            let mut ticks = tokio::time::interval(WATCH_INTERVAL);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            ticks.tick().await;
            loop {
                ticks.tick().await;
                ask(&peers).await;
            }
        }));
        Arc::new(self)
    }

    /// How each of them does.
    #[must_use]
    pub fn health(&self) -> Vec<CosignerHealth> {
        self.peers.iter().map(|peer| CosignerHealth { name: peer.name().to_owned(), state: peer.health() }).collect()
    }

    /// Whether two shares of a key are there, this process's own (`have`) among them; the text says what is missing.
    fn quorum(&self, have: usize, holds: impl Fn(&Introduction) -> bool) -> Result<(), String> {
        let up = self.peers.iter().filter(|peer| peer.introduced().is_some_and(|it| holds(&it)));
        let up = up.filter(|peer| peer.health().is_ok()).count();
        if have.saturating_add(up) >= 2 {
            return Ok(());
        }
        let wrong = |peer: &Arc<Peer>| peer.health().err().map(|why| format!("{}: {why}", peer.name()));
        let wrong: Vec<_> = self.peers.iter().filter_map(wrong).collect();
        Err(format!("{up} of {} cosigners can sign ({})", self.peers.len(), wrong.join("; ")))
    }
}

impl std::fmt::Debug for Cosigners {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.peers.iter().map(|peer| peer.name())).finish()
    }
}

impl Drop for Cosigners {
    fn drop(&mut self) {
        if let Some(watch) = &self.watch {
            watch.abort();
        }
    }
}

async fn ask(peers: &[Arc<Peer>]) {
    join_all(peers.iter().map(|peer| peer.ask())).await;
}

/// Who takes part in a signature.
#[derive(Clone)]
enum Member {
    /// The share in this process.
    Own,
    /// One elsewhere.
    Peer(Arc<Peer>),
}

impl Member {
    fn name(&self) -> &str {
        match self {
            Self::Own => "this process",
            Self::Peer(peer) => peer.name(),
        }
    }

    /// Who is asked first: the lower, the sooner.
    fn rank(&self) -> u8 {
        match self {
            Self::Own => 0,
            Self::Peer(peer) => peer.rank(),
        }
    }
}

/// Every two that can sign together, the best first.
fn pairs(own: bool, peers: &[Arc<Peer>]) -> Vec<[Member; 2]> {
    let mut members: Vec<Member> = own.then_some(Member::Own).into_iter().collect();
    members.extend(peers.iter().map(|peer| Member::Peer(Arc::clone(peer))));
    // Stable: among equals the order of the configuration stays.
    members.sort_by_key(Member::rank);
    let mut pairs = Vec::new();
    for (place, second) in members.iter().enumerate() {
        for first in members.iter().take(place) {
            pairs.push([first.clone(), second.clone()]);
        }
    }
    pairs.sort_by_key(|[first, second]| (first.rank().max(second.rank()), first.rank().min(second.rank())));
    pairs
}

/// What all attempts together come to: a refusal, where a cosigner has refused, as the others are of no help then.
fn outcome(faults: Vec<Fault>) -> SignerError {
    for fault in &faults {
        if let Some((name, PeerError::Refused { rule, detail })) = fault.blamed() {
            return SignerError::Refused { rule: rule::named(rule), detail: format!("{name}: {detail}") };
        }
    }
    let mut told: Vec<String> = faults.iter().map(ToString::to_string).collect();
    told.dedup();
    if told.is_empty() {
        told.push("fewer than two shares are configured".to_owned());
    }
    SignerError::NoQuorum(told.join("; "))
}
