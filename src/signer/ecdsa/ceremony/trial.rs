//! The test signatures at the end of a ceremony of a DKLs23 key: every pair of the new shares signs, all three verify.
//!
//! What is kept between two rounds serves once: it is used up by the round, and the state that follows is durable before a
//! message leaves ([`Next::Send`](crate::signer::ceremony::Next::Send)), so that no stored copy of it is used for a second
//! answer.

use std::collections::BTreeMap;

use dkls23_core::protocols::PartyIndex;
use dkls23_core::protocols::signing::{
    Broadcast3to4, KeepPhase1to2, KeepPhase2to3, SignData, TransmitPhase1to2, TransmitPhase2to3, UniqueKeep1to2,
    UniqueKeep2to3,
};
use k256::Secp256k1;
use serde::{Deserialize, Serialize};

use super::dealing::addressed;
use super::{Packed, fault, index};
use crate::scheme::evm::signature;
use crate::signer::ceremony::{Fault, Heard, Outgoing, PAIRS, PackedShare, Setup, encode};
use crate::signer::ecdsa::rounds::{Party, Public, signature as as_signature};
use crate::signer::ecdsa::share;
use crate::signer::keystore::{self, KeyShare};
use crate::x402::evm::{B256, keccak256};

type Curve = keystore::Secp256k1;
/// What there is for each participant that this one signs with.
type WithEach<T> = BTreeMap<u16, T>;
/// What the library keeps of a signature from one round to the next: of itself, and of the other.
type Kept<Unique, OfEach> = (Unique, BTreeMap<PartyIndex, OfEach>);

/// The first messages of the signatures are under way.
#[derive(Serialize, Deserialize)]
pub(super) struct First {
    party: Packed,
    made: PackedShare<Curve>,
    kept: WithEach<Kept<UniqueKeep1to2<Secp256k1>, KeepPhase1to2<Secp256k1>>>,
}

/// The second messages of the signatures are under way.
#[derive(Serialize, Deserialize)]
pub(super) struct Second {
    party: Packed,
    made: PackedShare<Curve>,
    kept: WithEach<Kept<UniqueKeep2to3<Secp256k1>, KeepPhase2to3<Secp256k1>>>,
}

/// The parts of the signatures are under way.
#[derive(Serialize, Deserialize)]
pub(super) struct Third {
    party: Packed,
    made: PackedShare<Curve>,
    mine: WithEach<Part>,
}

/// A participant's part of a signature: all that the signature is made of, for all.
#[derive(Clone, Serialize, Deserialize)]
struct Part {
    r: String,
    sum: Broadcast3to4<Secp256k1>,
}

impl First {
    pub(super) fn begin(setup: &Setup<Curve>, party: &Party, public: &Public) -> Result<(Self, Outgoing), Fault> {
        let unfit = || Fault::somewhere("the new share does not fit its public part");
        let mut made = share::to_file(party, public).ok_or_else(unfit)?;
        (made.generation, made.rehearsal) = (setup.generation(), setup.rehearsal);
        share::from_file(&made).ok_or_else(unfit)?;
        let (mut kept, mut outgoing) = (BTreeMap::new(), Outgoing::default());
        for partner in setup.others() {
            let (unique, of_each, messages) = party.sign_phase1(&data(setup, setup.me, partner)?).map_err(fault)?;
            kept.insert(partner, (unique, of_each));
            send(&mut outgoing, partner, &messages)?;
        }
        Ok((Self { party: Packed::of(party)?, made: PackedShare::pack(made), kept }, outgoing))
    }

    pub(super) fn next(self, setup: &Setup<Curve>, heard: &Heard) -> Result<(Second, Outgoing), Fault> {
        let Self { party: packed, made, kept } = self;
        let party = packed.party()?;
        let (mut next, mut outgoing) = (BTreeMap::new(), Outgoing::default());
        for (partner, (unique, of_each)) in kept {
            let message: TransmitPhase1to2 = heard.private(partner)?;
            addressed(setup, partner, &message.parties)?;
            let data = data(setup, setup.me, partner)?;
            let (unique, of_each, messages) = party.sign_phase2(&data, unique, of_each, &[message]).map_err(fault)?;
            next.insert(partner, (unique, of_each));
            send(&mut outgoing, partner, &messages)?;
        }
        Ok((Second { party: packed, made, kept: next }, outgoing))
    }
}

impl Second {
    pub(super) fn next(self, setup: &Setup<Curve>, heard: &Heard) -> Result<(Third, Outgoing), Fault> {
        let Self { party: packed, made, kept } = self;
        let party = packed.party()?;
        let mut mine = BTreeMap::new();
        for (partner, (unique, of_each)) in kept {
            let message: TransmitPhase2to3<Secp256k1> = heard.private(partner)?;
            addressed(setup, partner, &message.parties)?;
            let data = data(setup, setup.me, partner)?;
            let (r, sum) = party.sign_phase3(&data, unique, of_each, &[message]).map_err(fault)?;
            mine.insert(partner, Part { r, sum });
        }
        let outgoing = Outgoing { to_all: encode(&mine)?.to_vec(), to: BTreeMap::new() };
        Ok((Third { party: packed, made, mine }, outgoing))
    }
}

impl Third {
    pub(super) fn next(self, setup: &Setup<Curve>, heard: &Heard) -> Result<KeyShare<Curve>, Fault> {
        let Self { party, made, mine } = self;
        let (party, made) = (party.party()?, made.unpack(format!("the new share {}", setup.me)));
        let address = share::address_of(&made.group()).ok_or_else(|| Fault::somewhere("the key has no address"))?;
        let mut parts = BTreeMap::from([(setup.me, mine)]);
        for from in setup.others() {
            parts.insert(from, heard.public(from)?);
        }
        let part = |by: u16, partner: u16| {
            let found = parts.get(&by).and_then(|parts: &WithEach<Part>| parts.get(&partner)).cloned();
            found.ok_or_else(|| Fault::of(by, format!("it says nothing for its test signature with {partner}")))
        };
        for (one, other) in PAIRS {
            let (first, second) = (part(one, other)?, part(other, one)?);
            let broken =
                |what: &dyn std::fmt::Display| Fault::among(&[one, other], format!("their test signature: {what}"));
            if first.r != second.r {
                return Err(broken(&"they do not agree on its nonce"));
            }
            let data = data(setup, one, other)?;
            let assembled = party.sign_phase4(&data, &first.r, &[first.sum.clone(), second.sum.clone()], true);
            let (s, recovery_id) = assembled.map_err(|abort| broken(&abort.description()))?;
            let signed = as_signature(&first.r, &s, recovery_id);
            if signed.and_then(|signed| signature::signer(&B256(data.message_hash), &signed)) != Some(address) {
                return Err(broken(&"it is not valid by the rules of the contract"));
            }
        }
        Ok(made)
    }
}

/// What a pair signs. Each pair's session has a name of its own, in which all participants have had a part.
fn data(setup: &Setup<Curve>, me: u16, partner: u16) -> Result<SignData, Fault> {
    let pair = [me.min(partner), me.max(partner)].map(u16::to_le_bytes).concat();
    let message_hash = keccak256(&setup.test_message()).0;
    let sign_id = keccak256(&[&setup.session[..], b"test signature", &pair].concat()).0.to_vec();
    Ok(SignData { sign_id, counterparties: vec![index(partner)?], message_hash })
}

fn send<T: Serialize>(outgoing: &mut Outgoing, partner: u16, messages: &[T]) -> Result<(), Fault> {
    let [message] = messages else { return Err(Fault::somewhere("the library has more or less than one message")) };
    outgoing.to.insert(partner, encode(message)?);
    Ok(())
}
