//! A cosigner's share on secp256k1: its side of sessions with another share (`signer/ecdsa/pair.rs`).
//!
//! A request is judged and counted before the first message of its session leaves, on either side.

use std::sync::Arc;

use super::policy::Moves;
use super::sessions::Sessions;
use super::{
    Allowed, Cosigner, Entry, EntryRules, Judged, NO_NETWORK, Record, Trouble, first_that_accepts, hex, sha256,
};
use crate::policy::EvmRequest;
use crate::signer::ecdsa::pair::{Bans, EcdsaShare, First, FirstEnd, Opening, PairError, Second};
use crate::signer::keystore::{KeyShare, Secp256k1};
use crate::signer::quorum::OpenError;
use crate::signer::rules::evm::{DigestToSign, EvmJudge};
use crate::signer::wire::{Answer, Begin, Cause, Continue, SESSION_LIFE, Sealed, ShareOf, Turn};
use crate::x402::Network;

/// The most sessions that may be under way at once; each holds some 100 KB.
const SESSIONS_MAX: usize = 64;

pub(super) struct EcdsaSide {
    share: Arc<EcdsaShare>,
    judges: Vec<(Network, Allowed, EvmJudge)>,
    sessions: Sessions<String, State>,
}

/// Where a session stands.
enum State {
    First(First),
    FirstEnd(FirstEnd),
    Second(Second),
}

impl From<PairError> for Trouble {
    fn from(error: PairError) -> Self {
        let cause = match error {
            PairError::Message { .. } => Cause::Peer,
            PairError::Banned { .. } => Cause::Banned,
            PairError::Own(_) => Cause::Broken,
        };
        Self::Failed(cause, error.to_string())
    }
}

impl EcdsaSide {
    pub(super) fn open(share: &KeyShare<Secp256k1>, policy: &[Entry], bans: Arc<dyn Bans>) -> Result<Self, OpenError> {
        let share = EcdsaShare::open(share, bans)?;
        let judge = |entry: &Entry| match &entry.rules {
            EntryRules::Evm(rules) => {
                let allowed = Allowed { name: entry.name.clone(), limits: entry.limits.clone() };
                Some((entry.network.clone(), allowed, EvmJudge::new(rules.clone(), share.address())))
            }
            EntryRules::Svm(_) => None,
        };
        let judges = policy.iter().filter_map(judge).collect();
        Ok(Self { share: Arc::new(share), judges, sessions: Sessions::new(SESSIONS_MAX, SESSION_LIFE) })
    }

    pub(super) fn public(&self) -> ShareOf<Secp256k1> {
        let share = &self.share;
        ShareOf { group: share.group(), identifier: share.identifier(), verifying_shares: share.verifying_shares() }
    }

    /// Judges and counts a request, and names the session that it is for.
    fn authorize(&self, record: &Record, request: &EvmRequest) -> Result<(DigestToSign, String), Trouble> {
        let network = request.network();
        let place = network.as_ref().map_or(NO_NETWORK, Network::as_str);
        let here = self.judges.iter().filter(|(place, ..)| network.as_ref().is_none_or(|network| network == place));
        let here = here.map(|(_, allowed, judge)| (allowed, judge));
        let (entry, digest) = first_that_accepts(here, place, |judge| judge.judge(request))?;
        let session = self.name_of_session()?;
        let judged = Judged { entry, kind: request.kind(), moves: Moves::of_evm(request), digest: digest.digest().0 };
        record.authorize(&judged, sha256(session.as_bytes()))?;
        Ok((digest, session))
    }

    fn name_of_session(&self) -> Result<String, Trouble> {
        let mut name = [0; 16];
        getrandom::fill(&mut name).map_err(|error| Trouble::Failed(Cause::Broken, error.to_string()))?;
        Ok(hex(&name))
    }

    fn keep(&self, session: String, state: State, message: Vec<u8>) -> Result<Turn, Trouble> {
        let kept = self.sessions.keep(session.clone(), state);
        kept.map_err(|_| Trouble::Failed(Cause::Busy, format!("{SESSIONS_MAX} sessions are under way")))?;
        Ok(Turn::Message { session, message: Sealed(message) })
    }

    fn begin(&self, record: &Record, begin: &Begin) -> Result<Turn, Trouble> {
        let (digest, session) = self.authorize(record, &begin.request)?;
        let (first, opening) = self.share.begin(begin.peer, digest)?;
        self.keep(session, State::First(first), opening.to_vec())
    }

    fn answer(&self, record: &Record, answer: &Answer) -> Result<Turn, Trouble> {
        let opening: Opening =
            answer.opening.0.as_slice().try_into().map_err(|_| Trouble::malformed("the opening is not 32 bytes"))?;
        let (digest, session) = self.authorize(record, &answer.request)?;
        let (second, message) = self.share.answer(answer.peer, &digest, &opening)?;
        self.keep(session, State::Second(second), message)
    }

    fn carry_on(&self, next: &Continue) -> Result<Turn, Trouble> {
        // Used up by being named, whatever comes of it.
        let state = self.sessions.take(&next.session);
        let state =
            state.ok_or_else(|| Trouble::Failed(Cause::Stale, "the session is used, unknown or too old".to_owned()))?;
        let message = next.message.0.as_slice();
        match state {
            State::First(first) => {
                let (end, reply) = first.reply(message)?;
                self.keep(self.name_of_session()?, State::FirstEnd(end), reply)
            }
            State::Second(second) => Ok(Turn::End { message: Sealed(second.finish(message)?) }),
            State::FirstEnd(end) => Ok(Turn::Signature { signature: end.finish(message)? }),
        }
    }
}

impl Cosigner {
    pub(super) fn begin(&self, begin: &Begin) -> Result<Turn, Trouble> {
        let turn = self.ecdsa()?.begin(&self.0.record, begin);
        self.refused_evm(&begin.request, turn)
    }

    pub(super) fn answer(&self, answer: &Answer) -> Result<Turn, Trouble> {
        let turn = self.ecdsa()?.answer(&self.0.record, answer);
        self.refused_evm(&answer.request, turn)
    }

    pub(super) fn carry_on(&self, next: &Continue) -> Result<Turn, Trouble> {
        self.ecdsa()?.carry_on(next)
    }

    fn refused_evm(&self, request: &EvmRequest, turn: Result<Turn, Trouble>) -> Result<Turn, Trouble> {
        if let Err(Trouble::Refused { rule, detail }) = &turn {
            let network = request.network();
            let place = network.as_ref().map_or(NO_NETWORK, Network::as_str);
            self.0.record.refused(place, request.kind(), rule, detail);
        }
        turn
    }

    fn ecdsa(&self) -> Result<&EcdsaSide, Trouble> {
        self.0.ecdsa.as_ref().ok_or_else(|| Trouble::malformed("this cosigner has no share on secp256k1"))
    }
}
