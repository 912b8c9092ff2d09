//! Ceremonies of FROST keys: key generation, refresh and replacement, each with a test signature of every pair.
//!
//! Promises: commitments are compared by all before a share comes out; a part that does not fit its commitment names who dealt
//! it; the state of a round, nonces among it, is used up by the round. A replaced share is never anybody's for good: it is
//! repaired and refreshed in the same two rounds, so that what the helpers gave signs with no share that is kept.
//!
//! | round | to all | to each |
//! |---|---|---|
//! | 1 | commitment to the participant's polynomial | a helper to the other helper: its part of the repair |
//! | 2 | | the value of the polynomial; a helper to the participant that is replaced: the sum of the parts |
//! | 3 | commitments to the nonces of two test signatures | |
//! | 4 | shares of the two test signatures | |
//!
//! Source: RFC 9591 and the FROST paper, figure 1 (key generation); refresh as key generation of zero; repair by
//! <https://eprint.iacr.org/2017/1155>; all as `frost-ed25519` has them.

mod trial;

use std::collections::BTreeMap;

use frost_ed25519::keys::dkg::{self, round1, round2};
use frost_ed25519::keys::repairable::{self, Delta, Sigma};
use frost_ed25519::keys::{KeyPackage, PublicKeyPackage, VerifyingShare, refresh};
use frost_ed25519::rand_core::OsRng;
use frost_ed25519::{Ciphersuite, Ed25519Sha512, Error as FrostError, Group, Identifier, VerifyingKey};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use self::trial::{Committed, Signed};
use super::{SIGNERS_MAX, key_package};
use crate::signer::ceremony::{Fault, Heard, Kind, Outgoing, PARTICIPANTS, PublicShares, Rounds, Setup, Turn, encode};
use crate::signer::keystore::{Ed25519, KeyShare};
use crate::signer::quorum::SIGNERS_MIN;
use crate::x402::Key;

/// A participant of a ceremony between two rounds.
#[derive(Serialize, Deserialize)]
pub struct FrostRounds(State);

#[derive(Serialize, Deserialize)]
enum State {
    Dealing(Dealing),
    Gathering(Gathering),
    Committed(Committed),
    Signed(Signed),
}

/// After the first message: a polynomial is committed to.
#[derive(Serialize, Deserialize)]
struct Dealing {
    polynomial: round1::SecretPackage,
    /// The share that is renewed, where there is one.
    share: Option<KeyPackage>,
    /// This participant's own part of the repair, where it helps.
    repair: Option<Delta>,
}

/// After the second message: everybody's value of the polynomial is under way.
#[derive(Serialize, Deserialize)]
struct Gathering {
    value: round2::SecretPackage,
    commitments: BTreeMap<u16, round1::Package>,
    share: Option<KeyPackage>,
}

/// What a participant gives another in the second round.
#[derive(Serialize, Deserialize)]
struct Dealt {
    value: round2::Package,
    repair: Option<Sigma>,
}

impl Rounds for FrostRounds {
    type Curve = Ed25519;

    fn begin(setup: &Setup<Ed25519>, share: Option<&KeyShare>) -> Result<(Self, Outgoing), Fault> {
        let share = share.map(|share| key_package(share).ok_or_else(|| not_its_share(setup))).transpose()?;
        let me = identifier(setup.me)?;
        let (polynomial, commitment) = match setup.kind {
            Kind::Generate => dkg::part1(me, SIGNERS_MAX, SIGNERS_MIN, OsRng),
            Kind::Refresh | Kind::Replace(_) => refresh::refresh_dkg_part1(me, SIGNERS_MAX, SIGNERS_MIN, OsRng),
        }
        .map_err(Fault::somewhere)?;
        let mut outgoing = Outgoing { to_all: encode(&commitment)?.to_vec(), to: BTreeMap::new() };
        let mut repair = None;
        if let (Kind::Replace(lost), Some(share)) = (setup.kind, &share) {
            let helpers = helpers(lost).map(identifier).collect::<Result<Vec<_>, _>>()?;
            let parts =
                repairable::repair_share_part1::<Ed25519Sha512, _>(&helpers, share, &mut OsRng, identifier(lost)?)
                    .map_err(Fault::somewhere)?;
            for helper in helpers_of(lost, &parts)? {
                match helper {
                    (number, part) if number == setup.me => repair = Some(part),
                    (number, part) => drop(outgoing.to.insert(number, encode(&part)?)),
                }
            }
        }
        Ok((Self(State::Dealing(Dealing { polynomial, share, repair })), outgoing))
    }

    fn next(self, setup: &Setup<Ed25519>, heard: Heard) -> Result<Turn<Self>, Fault> {
        let (state, outgoing) = match self.0 {
            State::Dealing(dealing) => {
                let (gathering, outgoing) = dealing.next(setup, &heard)?;
                (State::Gathering(gathering), outgoing)
            }
            State::Gathering(gathering) => {
                let (key, public) = gathering.next(setup, &heard)?;
                let (committed, outgoing) = Committed::begin(setup, key, public)?;
                (State::Committed(committed), outgoing)
            }
            State::Committed(committed) => {
                let (signed, outgoing) = committed.next(setup, &heard)?;
                (State::Signed(signed), outgoing)
            }
            State::Signed(signed) => return signed.next(setup, &heard).map(Turn::Made),
        };
        Ok(Turn::Goes(Self(state), outgoing))
    }
}

impl Dealing {
    fn next(self, setup: &Setup<Ed25519>, heard: &Heard) -> Result<(Gathering, Outgoing), Fault> {
        let Self { polynomial, share, repair } = self;
        // A commitment to zero is left out where shares are refreshed.
        let coefficients = if setup.kind == Kind::Generate { 2 } else { 1 };
        let mut commitments = BTreeMap::new();
        for from in setup.others() {
            let commitment: round1::Package = heard.public(from)?;
            if commitment.commitment().serialize().map_or(0, |points| points.len()) != coefficients {
                return Err(Fault::of(from, "it commits to a polynomial of another degree"));
            }
            commitments.insert(from, commitment);
        }
        let by_identifier = by_identifier(&commitments)?;
        let (value, values) = match setup.kind {
            Kind::Generate => dkg::part2(polynomial, &by_identifier),
            Kind::Refresh | Kind::Replace(_) => refresh::refresh_dkg_part2(polynomial, &by_identifier),
        }
        .map_err(|error| fault(&error))?;
        let sum = match (setup.kind, repair) {
            (Kind::Replace(lost), Some(mine)) => {
                let mut parts = vec![mine];
                for helper in helpers(lost).filter(|helper| *helper != setup.me) {
                    parts.push(heard.private(helper)?);
                }
                Some((lost, repairable::repair_share_part2(&parts)))
            }
            _ => None,
        };
        let mut outgoing = Outgoing::default();
        for receiver in setup.others() {
            let value = values.get(&identifier(receiver)?).cloned();
            let value = value.ok_or_else(|| Fault::somewhere("the library deals no part"))?;
            let repair = sum.filter(|(lost, _)| *lost == receiver).map(|(_, sum)| sum);
            outgoing.to.insert(receiver, encode(&Dealt { value, repair })?);
        }
        Ok((Gathering { value, commitments, share }, outgoing))
    }
}

impl Gathering {
    fn next(self, setup: &Setup<Ed25519>, heard: &Heard) -> Result<(KeyPackage, PublicKeyPackage), Fault> {
        let Self { value, commitments, share } = self;
        let (mut values, mut repairs) = (BTreeMap::new(), Vec::new());
        for from in setup.others() {
            let dealt: Dealt = heard.private(from)?;
            repairs.extend(dealt.repair);
            values.insert(from, dealt.value);
        }
        let (of_all, values) = (by_identifier(&commitments)?, by_identifier(&values)?);
        let Some(old) = &setup.old else {
            return dkg::part3(&value, &of_all, &values).map_err(|error| fault(&error));
        };
        let public = public_package(old).map_err(Fault::somewhere)?;
        for from in setup.others() {
            let sender = identifier(from)?;
            if !fits(setup.me, of_all.get(&sender), values.get(&sender)).unwrap_or(false) {
                return Err(Fault::of(from, "the part that it deals does not fit its commitment"));
            }
        }
        let share = match share {
            Some(share) => share,
            None => repaired(setup, &repairs, &public)?,
        };
        refresh::refresh_dkg_shares(&value, &of_all, &values, public, share).map_err(|error| fault(&error))
    }
}

/// The share of the participant that is replaced, by what the two helpers gave.
fn repaired(setup: &Setup<Ed25519>, sums: &[Sigma], public: &PublicKeyPackage) -> Result<KeyPackage, Fault> {
    let me = identifier(setup.me)?;
    let helpers: Vec<u16> = setup.others().collect();
    let share = repairable::repair_share_part3(sums, me, public).map_err(Fault::somewhere)?;
    if sums.len() != helpers.len() || public.verifying_shares().get(&me) != Some(share.verifying_share()) {
        return Err(Fault::among(&helpers, "what they gave makes no share of the key"));
    }
    Ok(share)
}

/// Whether the value that a participant deals is that of the polynomial that it has committed to, which is zero at zero. The
/// library makes the same test and does not say whose value fails it.
fn fits(me: u16, commitment: Option<&round1::Package>, value: Option<&round2::Package>) -> Option<bool> {
    type Points = <Ed25519Sha512 as Ciphersuite>::Group;
    let [point] = commitment?.commitment().serialize().ok()?.try_into().ok()?;
    let slope = Points::deserialize(point.as_slice().try_into().ok()?).ok()?;
    let expected = (0..me).fold(Points::identity(), |sum, _| sum + slope);
    let dealt = VerifyingShare::from(*value?.signing_share()).serialize().ok()?;
    Some(Points::serialize(&expected).ok()?.as_slice() == dealt.as_slice())
}

/// The two participants that help a third.
fn helpers(lost: u16) -> impl Iterator<Item = u16> {
    PARTICIPANTS.into_iter().filter(move |participant| *participant != lost)
}

fn helpers_of(lost: u16, parts: &BTreeMap<Identifier, Delta>) -> Result<Vec<(u16, Delta)>, Fault> {
    let part = |helper| parts.get(&identifier(helper)?).map(|part| (helper, *part)).ok_or_else(no_part);
    helpers(lost).map(part).collect()
}

fn no_part() -> Fault {
    Fault::somewhere("the library makes no part of the repair")
}

fn not_its_share(setup: &Setup<Ed25519>) -> Fault {
    Fault::of(setup.me, "its share does not hold what it says; restore it from its backup")
}

fn identifier(participant: u16) -> Result<Identifier, Fault> {
    Identifier::try_from(participant).map_err(Fault::somewhere)
}

fn by_identifier<T: Clone>(of: &BTreeMap<u16, T>) -> Result<BTreeMap<Identifier, T>, Fault> {
    of.iter().map(|(participant, value)| Ok((identifier(*participant)?, value.clone()))).collect()
}

/// The library's error, and whom it names.
fn fault(error: &FrostError) -> Fault {
    let culprits = error.culprits();
    let named = PARTICIPANTS.into_iter().filter(|participant| {
        Identifier::try_from(*participant).is_ok_and(|identifier| culprits.contains(&identifier))
    });
    Fault { who: named.collect(), what: error.to_string() }
}

/// The public part of a key as the library takes it.
fn public_package(old: &PublicShares<Ed25519>) -> Result<PublicKeyPackage, FrostError> {
    let mut verifying = BTreeMap::new();
    for (participant, key) in PARTICIPANTS.into_iter().zip(&old.verifying_shares) {
        verifying.insert(Identifier::try_from(participant)?, VerifyingShare::deserialize(&key.0)?);
    }
    Ok(PublicKeyPackage::new(verifying, VerifyingKey::deserialize(&old.group.0)?, Some(SIGNERS_MIN)))
}

/// The share as its file has it.
fn key_share(setup: &Setup<Ed25519>, key: &KeyPackage, public: &PublicKeyPackage) -> Option<KeyShare> {
    let point = |bytes: Result<Vec<u8>, FrostError>| bytes.ok()?.try_into().ok().map(Key);
    let verifying: Option<Vec<Key>> =
        public.verifying_shares().values().map(|share| point(share.serialize())).collect();
    Some(KeyShare {
        group: point(public.verifying_key().serialize())?,
        identifier: setup.me,
        verifying_shares: verifying?.try_into().ok()?,
        generation: setup.generation(),
        rehearsal: setup.rehearsal,
        secret: Zeroizing::new(key.signing_share().serialize()),
        origin: format!("the new share {}", setup.me),
    })
}
