//! Passes: calls on one route that were paid for ahead, and are counted down.
//!
//! A pass is sold in the write that charges for it ([`super::Reservation::selling`]), so after a crash either both are
//! there or neither. A call is held back before it is served ([`Ledger::take_pass`]), and becomes used by a durable write
//! before its answer may leave ([`PassCall::commit`]); dropped, it is given back. So calls that were used and calls in
//! flight are never more than were paid for, in whatever order requests come and go, and no restart gives back a call
//! whose answer was let go.
//!
//! The token that a client holds is known here by its SHA-256 alone. What has ended (spent, expired, revoked) is kept for
//! [`ENDED_KEEP`], so that a client can be told why it is refused, and forgotten then. Passes are bounded in number: room is
//! taken before one is sold ([`Ledger::pass_room`]).
//!
//! A call is refused for the first of these that holds: the ledger has stopped, the pass is not known, is another
//! route's, is revoked, is spent, has expired, all calls that are left are in flight.

mod shelf;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

pub use self::shelf::PassRoom;
pub(super) use self::shelf::Passes;
use super::Ledger;
use super::changes::carry;
use super::channel::Family;
use super::store::{StoreError, Write};
use super::turns::Core;
use crate::amount::Amount;
use crate::clock::UnixMillis;
use crate::x402::evm::hex_digits;
use crate::x402::{Account, Network};

/// How many passes a ledger holds where nothing else is said. By the sizes of its types, an index of so many takes 40 MB.
pub const PASSES_MAX: usize = 100_000;
/// For how long what has ended is remembered.
pub const ENDED_KEEP: Duration = Duration::from_secs(3600);

/// A pass by its digest: the SHA-256 of the token, which is not known here.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PassId(pub [u8; 32]);

impl fmt::Display for PassId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(std::str::from_utf8(&hex_digits(&self.0)).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for PassId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PassId({self})")
    }
}

/// A text that names no pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a pass is named by 64 hexadecimal digits")]
pub struct NotAPassId;

impl FromStr for PassId {
    type Err = NotAPassId;

    fn from_str(text: &str) -> Result<Self, NotAPassId> {
        let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return Err(NotAPassId) };
        let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        let byte = |pair: &[u8; 2]| Some((digit(pair[0])? << 4) | digit(pair[1])?);
        let bytes: Option<Vec<u8>> = pairs.iter().map(byte).collect();
        bytes.and_then(|bytes| bytes.try_into().ok()).map(Self).ok_or(NotAPassId)
    }
}

/// A pass as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassRecord {
    /// What it is found by.
    pub id: PassId,
    /// Who bought it.
    pub payer: Account,
    /// Where it was paid.
    pub network: Network,
    /// What it is good for: the route's scope.
    pub scope: Arc<str>,
    /// How many calls were paid for.
    pub calls: u32,
    /// How many of them were used; the buying request is the first.
    pub used: u32,
    /// What was charged for it.
    pub price: Amount,
    /// When.
    pub sold_at: UnixMillis,
    /// When it was used last.
    pub last_used: UnixMillis,
    /// From when on it takes no more calls.
    pub expires_at: UnixMillis,
    /// Since when it takes none, where an operator has said so.
    pub revoked_at: Option<UnixMillis>,
}

/// How a pass stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PassState {
    /// It takes calls.
    Open,
    /// All its calls were used.
    Spent,
    /// Its time is over.
    Expired,
    /// An operator has ended it.
    Revoked,
}

impl PassState {
    /// Its name, for people and programs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Spent => "spent",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
        }
    }
}

impl PassRecord {
    /// How many calls are left.
    #[must_use]
    pub const fn left(&self) -> u32 {
        self.calls.saturating_sub(self.used)
    }

    /// How it stands at a time.
    #[must_use]
    pub fn state(&self, now: UnixMillis) -> PassState {
        if self.revoked_at.is_some() {
            PassState::Revoked
        } else if self.left() == 0 {
            PassState::Spent
        } else if now >= self.expires_at {
            PassState::Expired
        } else {
            PassState::Open
        }
    }

    /// From when on nobody needs to be told of it any more.
    fn forget_at(&self) -> UnixMillis {
        let spent = (self.left() == 0).then_some(self.last_used);
        let ended = [Some(self.expires_at), spent, self.revoked_at].into_iter().flatten().min();
        ended.unwrap_or(self.expires_at).plus(ENDED_KEEP)
    }
}

/// A call on a pass, as it is made durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassUse {
    /// The pass.
    pub id: PassId,
    /// Whose it is.
    pub payer: Account,
    /// What was called.
    pub scope: Arc<str>,
    /// Which call on it this is, counted from 1; for the audit record.
    pub number: u32,
    /// When.
    pub at: UnixMillis,
}

/// Why a pass takes no call. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PassRefused {
    /// There is none of this token.
    #[error("the pass is not known")]
    Unknown,
    /// It is good for another route.
    #[error("the pass is for another route")]
    OtherRoute,
    /// An operator has ended it.
    #[error("the pass was revoked")]
    Revoked,
    /// All its calls were used.
    #[error("the pass is spent")]
    Spent,
    /// Its time is over.
    #[error("the pass has expired")]
    Expired,
    /// All calls that are left are in flight.
    #[error("all calls that are left on the pass are being served")]
    Busy,
    /// The ledger has stopped.
    #[error("the ledger has stopped: {0}")]
    Stopped(String),
}

impl<F: Family> Ledger<F> {
    /// Takes room for a pass that is about to be sold; `None` where there is none.
    #[must_use]
    pub fn pass_room(&self) -> Option<Arc<PassRoom>> {
        self.core.passes.room()
    }

    /// Holds a call on a pass back, where the pass is good for `scope`.
    ///
    /// # Errors
    /// [`PassRefused`].
    pub fn take_pass(&self, id: &PassId, scope: &str) -> Result<PassCall<F>, PassRefused> {
        self.core.running().map_err(PassRefused::Stopped)?;
        let (payer, network, scope) = self.core.passes.take(id, scope, self.core.clock.now())?;
        Ok(PassCall { core: Arc::clone(&self.core), id: *id, payer, network, scope, over: false })
    }

    /// A pass as it is now.
    #[must_use]
    pub fn pass(&self, id: &PassId) -> Option<PassRecord> {
        self.core.passes.find(id)
    }

    /// The passes that were sold last, newest first, and how each stands; those that have ended for a while are forgotten.
    #[must_use]
    pub fn passes(&self, limit: usize) -> Vec<(PassRecord, PassState)> {
        let now = self.core.clock.now();
        let state = |record: PassRecord| {
            let state = record.state(now);
            (record, state)
        };
        self.core.passes.newest(limit).into_iter().map(state).collect()
    }

    /// How many passes are known.
    #[must_use]
    pub fn pass_count(&self) -> usize {
        self.core.passes.len()
    }

    /// Ends a pass: it takes no more calls from here on, durably when this returns. Calls in flight are still counted.
    /// Gives the pass as it is then; `None` where it is not known.
    ///
    /// # Errors
    /// [`StoreError`]: the ledger has stopped.
    pub async fn revoke_pass(&self, id: &PassId) -> Result<Option<PassRecord>, StoreError> {
        self.core.writable()?;
        let Some(record) = self.core.passes.revoke(id, self.core.clock.now()) else { return Ok(None) };
        // Also where it was revoked before, as that may not be durable yet.
        self.journalled(vec![Write::RevokePass(Box::new(record.clone()))], |_| ()).await?;
        Ok(Some(record))
    }
}

/// A call on a pass that is held back while its request is served. Dropped, it is given back.
#[must_use = "a call that is not committed is given back"]
pub struct PassCall<F: Family> {
    core: Arc<Core<F>>,
    id: PassId,
    payer: Account,
    network: Network,
    scope: Arc<str>,
    over: bool,
}

impl<F: Family> PassCall<F> {
    /// Who bought the pass.
    #[must_use]
    pub const fn payer(&self) -> &Account {
        &self.payer
    }

    /// Where it was paid.
    #[must_use]
    pub const fn network(&self) -> &Network {
        &self.network
    }

    /// Counts the call, durably: its answer may be delivered when this has returned, and not otherwise. Gives how many
    /// calls are left. Once begun it is carried through, if the caller goes away.
    ///
    /// # Errors
    /// [`StoreError`]: the ledger has stopped.
    pub async fn commit(mut self) -> Result<u32, StoreError> {
        self.core.writable()?;
        let at = self.core.clock.now();
        let number = self.core.passes.begin(&self.id);
        let (payer, scope) = (self.payer, Arc::clone(&self.scope));
        let write = Write::PassUsed(Box::new(PassUse { id: self.id, payer, scope, number, at }));
        self.over = true;
        let mut writing = Writing { core: Arc::clone(&self.core), over: false };
        let id = self.id;
        carry(async move {
            let written = writing.core.store.write(vec![write]).await;
            writing.over = true;
            match written {
                Ok(()) => Ok(writing.core.passes.used(&id, at)),
                Err(error) => {
                    writing.core.passes.release(&id);
                    writing.core.stop(&error.0);
                    Err(error)
                }
            }
        })
        .await
    }

    /// Gives the call back. The same as dropping, said aloud.
    pub fn release(self) {}
}

impl<F: Family> Drop for PassCall<F> {
    fn drop(&mut self) {
        if !self.over {
            self.core.passes.release(&self.id);
        }
    }
}

impl<F: Family> fmt::Debug for PassCall<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PassCall").field("pass", &self.id).finish_non_exhaustive()
    }
}

/// A count on its way to the store: what cannot be carried through stops the ledger, for it may be durable.
struct Writing<F: Family> {
    core: Arc<Core<F>>,
    over: bool,
}

impl<F: Family> Drop for Writing<F> {
    fn drop(&mut self) {
        if !self.over {
            self.core.stop("a call was given up between its write and the outcome; restart reads what became of it");
        }
    }
}

impl<F: Family> Core<F> {
    /// Forgets passes that have ended a while ago.
    pub(super) async fn forget_passes(&self) {
        loop {
            if self.writable().is_err() {
                return;
            }
            let gone = self.passes.step(self.clock.now());
            if gone.is_empty() {
                return;
            }
            if let Err(error) = self.store.write(vec![Write::ForgetPasses(gone)]).await {
                return self.stop(&error.0);
            }
        }
    }
}
