//! Ceremonies of DKLs23 keys: key generation, refresh and replacement, each with a test signature of every pair.
//!
//! Promises: commitments are heard by all before anything is opened; messages carry the names of those who are known to have
//! sent them, so that no part of one participant counts as another's; what a participant has to itself is wiped. Refresh is the
//! library's complete one: all state of oblivious transfers is made anew, so that what stands between two shares of another
//! generation is a session of another name, which fails without harm.
//!
//! | round | to all | to each |
//! |---|---|---|
//! | 0, where a share is replaced | | a helper to the participant that is replaced: its masked term |
//! | 1 | | the value of the participant's polynomial |
//! | 2 | commitments to the proof of its sum, and to its chain code | commitment to the seed that the two will have in common |
//! | 3 | the proof, the chain code | the seed; the first half of the oblivious transfers |
//! | 4 to 6 | at last: the parts of two test signatures | the rounds of two test signatures |
//!
//! Source: "Threshold ECDSA in Three Rounds" (DKLs23), protocols 9.1 (key generation) and 3.6 (signing), with refresh and
//! repair as `dkls23-core` documents them in its modules of these names.

mod dealing;
mod trial;

use std::collections::BTreeMap;

use dkls23_core::protocols::repair::{RepairTerm, repair_assemble};
use dkls23_core::protocols::{Abort, AbortReason, Parameters, PartyIndex};
use k256::{AffinePoint, Secp256k1};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use self::dealing::{Dealt, Promised, Proved};
use self::trial::{First, Second, Third};
use super::rounds::{PARTIES, Party, Public};
use super::share;
use crate::signer::ceremony::{
    Fault, Heard, Kind, Outgoing, PARTICIPANTS, PublicShares, Rounds, Setup, Turn, decode, encode,
};
use crate::signer::keystore::{self, KeyShare, SHARES};
use crate::signer::quorum::SIGNERS_MIN;

/// A participant of a ceremony between two rounds.
#[derive(Serialize, Deserialize)]
pub struct EcdsaRounds(State);

#[derive(Serialize, Deserialize)]
enum State {
    /// A share is replaced, and the terms of the helpers are under way.
    Helping(Option<Packed>),
    Dealt(Dealt),
    Promised(Promised),
    Proved(Proved),
    First(First),
    Second(Second),
    Third(Third),
}

/// A share as the library has it, in postcard.
#[derive(Serialize, Deserialize)]
struct Packed(Zeroizing<Vec<u8>>);

impl Packed {
    fn of(party: &Party) -> Result<Self, Fault> {
        encode(party).map(Self)
    }

    fn party(&self) -> Result<Party, Fault> {
        decode(&self.0).ok_or_else(|| Fault::somewhere("the share of this participant has become unreadable"))
    }
}

impl Rounds for EcdsaRounds {
    type Curve = keystore::Secp256k1;

    fn begin(setup: &Setup<Self::Curve>, share: Option<&KeyShare<Self::Curve>>) -> Result<(Self, Outgoing), Fault> {
        let unfit = || Fault::of(setup.me, "its share does not hold what it says; restore it from its backup");
        let party = share.map(|share| share::from_file(share).ok_or_else(unfit)).transpose()?;
        let Kind::Replace(lost) = setup.kind else {
            let (dealt, outgoing) = Dealt::begin(setup, party)?;
            return Ok((Self(State::Dealt(dealt)), outgoing));
        };
        let mut outgoing = Outgoing::default();
        if let Some(party) = &party {
            let helpers = helpers(lost)?;
            let term = party.repair_term(&helpers, index(lost)?, &setup.session).map_err(Fault::somewhere)?;
            outgoing.to.insert(lost, encode(&term)?);
        }
        let packed = party.as_ref().map(Packed::of).transpose()?;
        Ok((Self(State::Helping(packed)), outgoing))
    }

    fn next(self, setup: &Setup<Self::Curve>, heard: Heard) -> Result<Turn<Self>, Fault> {
        let (state, outgoing) = match self.0 {
            State::Helping(share) => {
                let party = match share {
                    Some(share) => share.party()?,
                    None => repaired(setup, &heard)?,
                };
                let (dealt, outgoing) = Dealt::begin(setup, Some(party))?;
                (State::Dealt(dealt), outgoing)
            }
            State::Dealt(dealt) => {
                let (promised, outgoing) = dealt.next(setup, &heard)?;
                (State::Promised(promised), outgoing)
            }
            State::Promised(promised) => {
                let (proved, outgoing) = promised.next(setup, &heard)?;
                (State::Proved(proved), outgoing)
            }
            State::Proved(proved) => {
                let (party, public) = proved.next(setup, &heard)?;
                let (first, outgoing) = First::begin(setup, &party, &public)?;
                (State::First(first), outgoing)
            }
            State::First(first) => {
                let (second, outgoing) = first.next(setup, &heard)?;
                (State::Second(second), outgoing)
            }
            State::Second(second) => {
                let (third, outgoing) = second.next(setup, &heard)?;
                (State::Third(third), outgoing)
            }
            State::Third(third) => return third.next(setup, &heard).map(Turn::Made),
        };
        Ok(Turn::Goes(Self(state), outgoing))
    }
}

/// The share of the participant that is replaced, by the terms of the two helpers. It cannot sign: the refresh that follows
/// makes one of it that can.
fn repaired(setup: &Setup<keystore::Secp256k1>, heard: &Heard) -> Result<Party, Fault> {
    let old = setup.old.as_ref().ok_or_else(|| Fault::somewhere("no key is known whose share is replaced"))?;
    let mut terms = Vec::new();
    for from in setup.others() {
        let term: RepairTerm<Secp256k1> = heard.private(from)?;
        if u16::from(term.helper.as_u8()) != from {
            return Err(Fault::of(from, "it gives the term of another participant"));
        }
        terms.push(term);
    }
    let among = |error: &dyn std::fmt::Display| Fault::among(&setup.others().collect::<Vec<_>>(), error);
    let public = public_package(old)?;
    repair_assemble(&public, index(setup.me)?, &terms, no_address).map_err(|error| among(&error))
}

/// The two participants that help a third, in the library's order.
fn helpers(lost: u16) -> Result<Vec<PartyIndex>, Fault> {
    PARTICIPANTS.into_iter().filter(|participant| *participant != lost).map(index).collect()
}

/// The addresses are ours to make; the library keeps none.
fn no_address(_: &AffinePoint) -> String {
    String::new()
}

fn index(participant: u16) -> Result<PartyIndex, Fault> {
    let number = u8::try_from(participant).map_err(Fault::somewhere)?;
    PartyIndex::new(number).map_err(Fault::somewhere)
}

fn parameters() -> Result<Parameters, Fault> {
    let (threshold, count) = (u8::try_from(SIGNERS_MIN), u8::try_from(SHARES));
    Parameters::new(threshold.map_err(Fault::somewhere)?, count.map_err(Fault::somewhere)?).map_err(Fault::somewhere)
}

/// The public part of a key as the library takes it.
fn public_package(old: &PublicShares<keystore::Secp256k1>) -> Result<Public, Fault> {
    let point = |point| share::affine(point).ok_or_else(|| Fault::somewhere("a public share is no point of the curve"));
    let mut verifying = BTreeMap::new();
    for (participant, key) in PARTIES.into_iter().zip(&old.verifying_shares) {
        verifying.insert(index(participant.into())?, point(key)?);
    }
    Ok(Public::new(point(&old.group)?, verifying, parameters()?))
}

/// The library's error, and whom it names. What a participant finds in its own parts names nobody.
fn fault(abort: Abort) -> Fault {
    let named = match &abort.reason {
        AbortReason::ProofVerificationFailed { counterparty }
        | AbortReason::CommitmentMismatch { counterparty }
        | AbortReason::TrivialInstancePoint { counterparty }
        | AbortReason::SessionBindingMismatch { counterparty }
        | AbortReason::OtConsistencyCheckFailed { counterparty }
        | AbortReason::MultiplicationVerificationFailed { counterparty, .. }
        | AbortReason::GammaUInconsistency { counterparty }
        | AbortReason::ZeroShareDecommitFailed { counterparty } => Some(*counterparty),
        AbortReason::MissingCommittedPoint { party }
        | AbortReason::MissingMessageFromParty { party }
        | AbortReason::ChainCodeCommitmentFailed { party } => Some(*party),
        AbortReason::UnexpectedSender { sender } | AbortReason::DuplicateSender { sender } => Some(*sender),
        _ => None,
    };
    let named = named.filter(|party| *party != abort.index).map(|party| party.as_u8().into());
    Fault { who: named.into_iter().collect(), what: abort.description() }
}
