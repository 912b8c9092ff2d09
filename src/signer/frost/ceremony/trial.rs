//! The test signatures at the end of a ceremony of a FROST key: every pair of the new shares signs, all three verify.
//!
//! The nonces of a test signature lie in the participant's state between two rounds. They cannot be used twice while the state
//! that follows is durable before a message leaves, as [`Next::Send`](crate::signer::ceremony::Next::Send) asks.

use std::collections::BTreeMap;

use frost_ed25519::keys::{KeyPackage, PublicKeyPackage};
use frost_ed25519::rand_core::OsRng;
use frost_ed25519::round1::{SigningCommitments, SigningNonces};
use frost_ed25519::round2::SignatureShare;
use frost_ed25519::{SigningPackage, round1, round2};
use serde::{Deserialize, Serialize};

use super::{fault, identifier, key_share};
use crate::scheme::svm::verify_strict;
use crate::signer::ceremony::{Fault, Heard, Outgoing, PAIRS, Setup, encode};
use crate::signer::keystore::{Ed25519, KeyShare};
use crate::x402::key::Signature;

/// What a participant says to all in a round of test signatures, by whom it signs with.
type WithEach<T> = BTreeMap<u16, T>;

/// The nonces are committed to.
#[derive(Serialize, Deserialize)]
pub(super) struct Committed {
    key: KeyPackage,
    public: PublicKeyPackage,
    nonces: WithEach<SigningNonces>,
    commitments: WithEach<SigningCommitments>,
}

/// The shares of the signatures are made.
#[derive(Serialize, Deserialize)]
pub(super) struct Signed {
    key: KeyPackage,
    public: PublicKeyPackage,
    packages: Vec<SigningPackage>,
    mine: WithEach<SignatureShare>,
}

impl Committed {
    pub(super) fn begin(
        setup: &Setup<Ed25519>,
        key: KeyPackage,
        public: PublicKeyPackage,
    ) -> Result<(Self, Outgoing), Fault> {
        if public.verifying_shares().get(key.identifier()) != Some(key.verifying_share()) {
            return Err(Fault::somewhere("the new share does not fit its public part"));
        }
        let (mut nonces, mut commitments) = (BTreeMap::new(), BTreeMap::new());
        for partner in setup.others() {
            let (secret, public) = round1::commit(key.signing_share(), &mut OsRng);
            nonces.insert(partner, secret);
            commitments.insert(partner, public);
        }
        let outgoing = Outgoing { to_all: encode(&commitments)?.to_vec(), to: BTreeMap::new() };
        Ok((Self { key, public, nonces, commitments }, outgoing))
    }

    pub(super) fn next(self, setup: &Setup<Ed25519>, heard: &Heard) -> Result<(Signed, Outgoing), Fault> {
        let Self { key, public, mut nonces, commitments } = self;
        let commitments = of_all(setup, heard, commitments)?;
        let message = setup.test_message();
        let (mut packages, mut mine) = (Vec::new(), BTreeMap::new());
        for (one, other) in PAIRS {
            let of_pair = BTreeMap::from([
                (identifier(one)?, with(&commitments, one, other)?),
                (identifier(other)?, with(&commitments, other, one)?),
            ]);
            let package = SigningPackage::new(of_pair, &message);
            let partner = if one == setup.me { other } else { one };
            if one == setup.me || other == setup.me {
                let nonces = nonces.remove(&partner).ok_or_else(|| Fault::somewhere("a nonce is used up"))?;
                mine.insert(partner, round2::sign(&package, &nonces, &key).map_err(|error| fault(&error))?);
            }
            packages.push(package);
        }
        let outgoing = Outgoing { to_all: encode(&mine)?.to_vec(), to: BTreeMap::new() };
        Ok((Signed { key, public, packages, mine }, outgoing))
    }
}

impl Signed {
    pub(super) fn next(self, setup: &Setup<Ed25519>, heard: &Heard) -> Result<KeyShare, Fault> {
        let Self { key, public, packages, mine } = self;
        let shares = of_all(setup, heard, mine)?;
        let made = key_share(setup, &key, &public).ok_or_else(|| Fault::somewhere("the new share has no bytes"))?;
        for ((one, other), package) in PAIRS.into_iter().zip(&packages) {
            let of_pair = BTreeMap::from([
                (identifier(one)?, with(&shares, one, other)?),
                (identifier(other)?, with(&shares, other, one)?),
            ]);
            let signature = frost_ed25519::aggregate(package, &of_pair, &public).map_err(|error| fault(&error))?;
            let signature = signature.serialize().ok().and_then(|bytes| bytes.try_into().ok()).map(Signature);
            if !signature.is_some_and(|signature| verify_strict(&made.group(), package.message(), &signature)) {
                return Err(Fault::among(&[one, other], "their test signature is not valid by the rules of the chain"));
            }
        }
        Ok(made)
    }
}

/// What all three participants say, this one included.
fn of_all<T: serde::de::DeserializeOwned>(
    setup: &Setup<Ed25519>,
    heard: &Heard,
    mine: WithEach<T>,
) -> Result<BTreeMap<u16, WithEach<T>>, Fault> {
    let mut said = BTreeMap::from([(setup.me, mine)]);
    for from in setup.others() {
        said.insert(from, heard.public(from)?);
    }
    Ok(said)
}

fn with<T: Copy>(said: &BTreeMap<u16, WithEach<T>>, by: u16, partner: u16) -> Result<T, Fault> {
    let found = said.get(&by).and_then(|said| said.get(&partner)).copied();
    found.ok_or_else(|| Fault::of(by, format!("it says nothing for its test signature with {partner}")))
}
