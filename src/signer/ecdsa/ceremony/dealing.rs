//! The rounds in which shares are made: dealt, promised, proved.
//!
//! A new key and a refresh go the same way; a refresh deals values of polynomials that are zero at zero, adds what comes out to
//! the old share, and keeps the chain code.

use std::collections::BTreeMap;

use dkls23_core::protocols::dkg::{
    self, BroadcastDerivationPhase2to4, BroadcastDerivationPhase3to4, KeepInitMulPhase3to4, KeepInitZeroSharePhase2to3,
    KeepInitZeroSharePhase3to4, ProofCommitment, SessionData, TransmitInitMulPhase3to4, TransmitInitZeroSharePhase2to4,
    TransmitInitZeroSharePhase3to4, UniqueKeepDerivationPhase2to3,
};
use dkls23_core::protocols::{PartiesMessage, PartyIndex};
use dkls23_core::utilities::proofs::DLogProof;
use k256::{Scalar, Secp256k1};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use super::{Packed, fault, index, no_address, parameters, public_package};
use crate::signer::ceremony::{Fault, Heard, Outgoing, PARTICIPANTS, Setup, encode};
use crate::signer::ecdsa::rounds::{Party, Public};
use crate::signer::keystore;

type Curve = keystore::Secp256k1;

/// Values of the participant's polynomial are under way.
#[derive(Serialize, Deserialize)]
pub(super) struct Dealt {
    share: Option<Packed>,
    mine: Zeroizing<Scalar>,
}

/// Commitments are under way.
#[derive(Serialize, Deserialize)]
pub(super) struct Promised {
    share: Option<Packed>,
    sum: Zeroizing<Scalar>,
    proof: ProofCommitment<Secp256k1>,
    seeds: Wiped<BTreeMap<PartyIndex, KeepInitZeroSharePhase2to3>>,
    chain: Option<(UniqueKeepDerivationPhase2to3, BroadcastDerivationPhase2to4)>,
}

/// What was committed to is under way.
#[derive(Serialize, Deserialize)]
pub(super) struct Proved {
    share: Option<Packed>,
    sum: Zeroizing<Scalar>,
    proof: ProofCommitment<Secp256k1>,
    promises: BTreeMap<u16, Promise>,
    seed_promises: Vec<TransmitInitZeroSharePhase2to4>,
    seeds: Wiped<BTreeMap<PartyIndex, KeepInitZeroSharePhase3to4>>,
    transfers: Wiped<BTreeMap<PartyIndex, KeepInitMulPhase3to4<Secp256k1>>>,
    chain: Option<BroadcastDerivationPhase3to4>,
}

/// To all in the second round.
#[derive(Serialize, Deserialize)]
struct Promise {
    proof: [u8; 32],
    chain: Option<BroadcastDerivationPhase2to4>,
}

/// To all in the third round.
#[derive(Serialize, Deserialize)]
struct Opening {
    proof: DLogProof<Secp256k1>,
    chain: Option<BroadcastDerivationPhase3to4>,
}

/// To each in the third round.
#[derive(Serialize, Deserialize)]
struct Seeds {
    seed: TransmitInitZeroSharePhase3to4,
    transfer: TransmitInitMulPhase3to4<Secp256k1>,
}

impl Dealt {
    pub(super) fn begin(setup: &Setup<Curve>, party: Option<Party>) -> Result<(Self, Outgoing), Fault> {
        let values = Zeroizing::new(match &party {
            None => dkg::phase1::<Secp256k1>(&session(setup)?),
            Some(party) => party.refresh_complete_phase1(),
        });
        let mut outgoing = Outgoing::default();
        let mut mine = Zeroizing::new(Scalar::ZERO);
        for (participant, value) in PARTICIPANTS.into_iter().zip(values.iter()) {
            if participant == setup.me {
                *mine = *value;
            } else {
                outgoing.to.insert(participant, encode(value)?);
            }
        }
        let share = party.as_ref().map(Packed::of).transpose()?;
        Ok((Self { share, mine }, outgoing))
    }

    pub(super) fn next(self, setup: &Setup<Curve>, heard: &Heard) -> Result<(Promised, Outgoing), Fault> {
        let Self { share, mine } = self;
        let mut values = Zeroizing::new(Vec::with_capacity(PARTICIPANTS.len()));
        values.push(*mine);
        for from in setup.others() {
            values.push(heard.private(from)?);
        }
        let (sum, proof, seeds, to_each, chain) = match &share {
            None => {
                let (sum, proof, seeds, to_each, keep, chain) = dkg::phase2::<Secp256k1>(&session(setup)?, &values);
                (sum, proof, seeds, to_each, Some((keep, chain)))
            }
            Some(share) => {
                let (sum, proof, seeds, to_each) = share.party()?.refresh_complete_phase2(&setup.session, &values);
                (sum, proof, seeds, to_each, None)
            }
        };
        let (sum, seeds) = (Zeroizing::new(sum), Wiped(seeds));
        let promise = Promise { proof: proof.commitment, chain: chain.as_ref().map(|(_, chain)| chain.clone()) };
        let mut outgoing = Outgoing { to_all: encode(&promise)?.to_vec(), to: BTreeMap::new() };
        for message in to_each {
            outgoing.to.insert(message.parties.receiver.as_u8().into(), encode(&message)?);
        }
        Ok((Promised { share, sum, proof, seeds, chain }, outgoing))
    }
}

impl Promised {
    pub(super) fn next(self, setup: &Setup<Curve>, heard: &Heard) -> Result<(Proved, Outgoing), Fault> {
        let Self { share, sum, proof, seeds, chain } = self;
        let mut promises = BTreeMap::new();
        if let Some((_, own)) = &chain {
            promises.insert(setup.me, Promise { proof: proof.commitment, chain: Some(own.clone()) });
        }
        let mut seed_promises = Vec::new();
        for from in setup.others() {
            let promise: Promise = heard.public(from)?;
            let speaks = promise.chain.as_ref().map(|chain| u16::from(chain.sender_index.as_u8()));
            if speaks != chain.as_ref().map(|_| from) {
                return Err(Fault::of(from, "its promise of a chain code is not its own"));
            }
            promises.insert(from, promise);
            let seed: TransmitInitZeroSharePhase2to4 = heard.private(from)?;
            addressed(setup, from, &seed.parties)?;
            seed_promises.push(seed);
        }
        let (kept, seeds, transfers, mut to_each, opened) = match &share {
            None => {
                let (keep, _) = chain.as_ref().ok_or_else(|| Fault::somewhere("a chain code is missing"))?;
                let (kept, seeds, transfers, to_each, opened) = dkg::phase3(&session(setup)?, &seeds.0, keep);
                (kept, seeds, transfers, to_each, Some(opened))
            }
            Some(share) => {
                let (kept, seeds, transfers, to_each) =
                    share.party()?.refresh_complete_phase3(&setup.session, &seeds.0);
                (kept, seeds, transfers, to_each, None)
            }
        };
        let opening = Opening { proof: proof.proof.clone(), chain: opened.clone() };
        let mut outgoing = Outgoing { to_all: encode(&opening)?.to_vec(), to: BTreeMap::new() };
        for seed in seeds {
            let receiver = seed.parties.receiver;
            let place = to_each.iter().position(|transfer| transfer.parties.receiver == receiver);
            let transfer = place.map(|place| to_each.swap_remove(place));
            let transfer = transfer.ok_or_else(|| Fault::somewhere("the library makes no transfer"))?;
            let mut both = Seeds { seed, transfer };
            outgoing.to.insert(receiver.as_u8().into(), encode(&both)?);
            both.seed.seed.zeroize();
        }
        let (seeds, transfers) = (Wiped(kept), Wiped(transfers));
        Ok((Proved { share, sum, proof, promises, seed_promises, seeds, transfers, chain: opened }, outgoing))
    }
}

impl Proved {
    pub(super) fn next(self, setup: &Setup<Curve>, heard: &Heard) -> Result<(Party, Public), Fault> {
        let Self { share, sum, proof, mut promises, seed_promises, seeds, transfers, chain } = self;
        let (mut proofs, mut chain_promises, mut chains) = (vec![proof], BTreeMap::new(), BTreeMap::new());
        if let Some((own, promised)) = chain.zip(promises.remove(&setup.me).and_then(|promise| promise.chain)) {
            chain_promises.insert(index(setup.me)?, promised);
            chains.insert(index(setup.me)?, own);
        }
        let (mut opened_seeds, mut opened_transfers) = (Wiped(Vec::new()), Vec::new());
        for from in setup.others() {
            let promise = promises.remove(&from).ok_or_else(|| Fault::of(from, "it has promised nothing"))?;
            let Opening { proof, chain } = heard.public(from)?;
            proofs.push(ProofCommitment { index: index(from)?, proof, commitment: promise.proof });
            match (promise.chain, chain) {
                (Some(promised), Some(opened)) if u16::from(opened.sender_index.as_u8()) == from => {
                    chain_promises.insert(index(from)?, promised);
                    chains.insert(index(from)?, opened);
                }
                (None, None) => {}
                _ => return Err(Fault::of(from, "it does not open the chain code that it promised")),
            }
            let Seeds { seed, transfer } = heard.private(from)?;
            addressed(setup, from, &seed.parties)?;
            addressed(setup, from, &transfer.parties)?;
            opened_seeds.0.push(seed);
            opened_transfers.push(transfer);
        }
        let Some(share) = share else {
            let made = dkg::phase4::<Secp256k1>(
                &session(setup)?,
                &sum,
                &proofs,
                &seeds.0,
                &seed_promises,
                &opened_seeds.0,
                &transfers.0,
                &opened_transfers,
                &chain_promises,
                &chains,
                no_address,
            );
            return made.map_err(fault);
        };
        let old = setup.old.as_ref().ok_or_else(|| Fault::somewhere("no key is known whose shares are refreshed"))?;
        let party = share.party()?.refresh_complete_phase4(
            &setup.session,
            &sum,
            &proofs,
            &seeds.0,
            &seed_promises,
            &opened_seeds.0,
            &transfers.0,
            &opened_transfers,
        );
        let public = public_package(old)?.refresh(&setup.session, &proofs).map_err(Fault::somewhere)?;
        Ok((party.map_err(fault)?, public))
    }
}

fn session(setup: &Setup<Curve>) -> Result<SessionData, Fault> {
    let session_id = setup.session.to_vec();
    Ok(SessionData { parameters: parameters()?, party_index: index(setup.me)?, session_id })
}

/// Whether a message names its sender and this participant.
pub(super) fn addressed(setup: &Setup<Curve>, from: u16, parties: &PartiesMessage) -> Result<(), Fault> {
    let right = u16::from(parties.sender.as_u8()) == from && u16::from(parties.receiver.as_u8()) == setup.me;
    if right { Ok(()) } else { Err(Fault::of(from, "its message names another sender or receiver")) }
}

/// What the library does not wipe of itself.
#[derive(Serialize, Deserialize)]
struct Wiped<T: Wipe>(T);

impl<T: Wipe> Drop for Wiped<T> {
    fn drop(&mut self) {
        self.0.wipe();
    }
}

trait Wipe {
    fn wipe(&mut self);
}

impl Wipe for BTreeMap<PartyIndex, KeepInitZeroSharePhase2to3> {
    fn wipe(&mut self) {
        for kept in self.values_mut() {
            kept.seed.zeroize();
            kept.salt.zeroize();
        }
    }
}

impl Wipe for BTreeMap<PartyIndex, KeepInitZeroSharePhase3to4> {
    fn wipe(&mut self) {
        self.values_mut().for_each(|kept| kept.seed.zeroize());
    }
}

impl Wipe for BTreeMap<PartyIndex, KeepInitMulPhase3to4<Secp256k1>> {
    fn wipe(&mut self) {
        for kept in self.values_mut() {
            kept.ot_sender.s.zeroize();
            kept.ot_receiver.seed.zeroize();
            kept.nonce.zeroize();
            kept.vec_r.zeroize();
            kept.correlation.zeroize();
        }
    }
}

impl Wipe for Vec<TransmitInitZeroSharePhase3to4> {
    fn wipe(&mut self) {
        self.iter_mut().for_each(|opened| opened.seed.zeroize());
    }
}
