//! The two rounds of a FROST signature, apart: what one share does, and what whoever joins the parts does.
//!
//! Owns [`FrostShare`] (one share and what it does with its nonces), [`OnceNonces`] and [`Joiner`], which holds no secret.
//! Promises: nonces cannot be cloned, stored or printed, and signing consumes them; a share signs nothing but what a
//! [`Judge`](crate::signer::rules::Judge) has accepted; a joined signature is verified by the chain's rules, and where a
//! part of it is wrong, whose it is gets named.
//!
//! Source: RFC 9591, section 5.

use std::collections::BTreeMap;

use frost_ed25519::keys::{KeyPackage, PublicKeyPackage, VerifyingShare};
use frost_ed25519::rand_core::OsRng;
use frost_ed25519::round1::{SigningCommitments, SigningNonces};
use frost_ed25519::round2::SignatureShare;
use frost_ed25519::{Error as FrostError, Identifier, SigningPackage, VerifyingKey};

use crate::scheme::svm::verify_strict;
use crate::signer::keystore::{KeyShare, SHARES};
use crate::signer::quorum::{OpenError, SIGNERS_MIN};
use crate::signer::rules::BytesToSign;
use crate::x402::Key;
use crate::x402::key::Signature;

/// The longest commitment on the wire; one is 69 bytes.
pub const COMMITMENT_BYTES_MAX: usize = 128;

/// The nonces of one signature. Signing consumes them, and they cannot be cloned: two signatures with the same nonces
/// would give the share away.
pub struct OnceNonces(SigningNonces);

impl OnceNonces {
    pub(super) fn commit(share: &KeyPackage) -> (Self, SigningCommitments) {
        let (nonces, commitments) = frost_ed25519::round1::commit(share.signing_share(), &mut OsRng);
        (Self(nonces), commitments)
    }

    pub(super) fn sign(self, package: &SigningPackage, share: &KeyPackage) -> Result<SignatureShare, FrostError> {
        frost_ed25519::round2::sign(package, &self.0, share)
    }
}

/// What a share has committed to, as it goes over the wire: public, and good for one signature.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Commitment(pub Vec<u8>);

impl Commitment {
    /// Whether it can be read. One that cannot says more of who sent it than of who is asked to sign with it.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.read().is_some()
    }

    fn read(&self) -> Option<SigningCommitments> {
        let short = Some(&self.0).filter(|bytes| bytes.len() <= COMMITMENT_BYTES_MAX)?;
        SigningCommitments::deserialize(short).ok()
    }
}

/// A part of a signature, as it goes over the wire. Only together with the other part is it worth anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignaturePart(pub Vec<u8>);

/// The commitments of those who sign together, by the identifiers of their shares.
pub type Commitments = BTreeMap<u16, Commitment>;

/// Why a round came to nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct RoundError {
    /// What happened.
    pub what: String,
    /// The shares whose part is wrong, as far as it can be told.
    pub at_fault: Vec<u16>,
}

impl RoundError {
    fn of(error: &FrostError) -> Self {
        let at_fault = error.culprits();
        let at_fault = identifiers().filter(|(_, known)| at_fault.contains(known)).map(|(number, _)| number).collect();
        Self { what: error.to_string(), at_fault }
    }

    fn by(number: u16, what: &str) -> Self {
        Self { what: format!("{what} of share {number} cannot be read"), at_fault: vec![number] }
    }
}

/// One share of a key, and what it does in the two rounds.
pub struct FrostShare {
    share: KeyPackage,
    group: Key,
    identifier: u16,
    verifying_shares: [Key; SHARES],
}

impl FrostShare {
    /// A share that fits its own public part.
    ///
    /// # Errors
    /// [`OpenError::Corrupt`] where it does not.
    pub fn open(share: &KeyShare) -> Result<Self, OpenError> {
        let corrupt = || OpenError::Corrupt(share.origin().to_owned());
        let package = super::key_package(share).ok_or_else(corrupt)?;
        Ok(Self {
            share: package,
            group: share.group(),
            identifier: share.identifier(),
            verifying_shares: share.verifying_shares,
        })
    }

    /// The group's public key.
    #[must_use]
    pub const fn group(&self) -> Key {
        self.group
    }

    /// Which share this is.
    #[must_use]
    pub const fn identifier(&self) -> u16 {
        self.identifier
    }

    /// The public parts of the key's shares.
    #[must_use]
    pub const fn verifying_shares(&self) -> [Key; SHARES] {
        self.verifying_shares
    }

    /// Round one: new nonces, and what is told of them.
    ///
    /// # Errors
    /// [`RoundError`], never seen.
    pub fn commit(&self) -> Result<(OnceNonces, Commitment), RoundError> {
        let (nonces, commitments) = OnceNonces::commit(&self.share);
        let commitment = commitments.serialize().map_err(|error| RoundError::of(&error))?;
        Ok((nonces, Commitment(commitment)))
    }

    /// Round two: this share's part of a signature over what its judge has accepted. The nonces are used up, also where
    /// it fails.
    ///
    /// # Errors
    /// [`RoundError`] where the commitments are not those of two shares, this one with these nonces among them.
    pub fn sign(
        &self,
        nonces: OnceNonces,
        commitments: &Commitments,
        message: &BytesToSign,
    ) -> Result<SignaturePart, RoundError> {
        let package = package(commitments, message.as_bytes())?;
        let part = nonces.sign(&package, &self.share).map_err(|error| RoundError::of(&error))?;
        Ok(SignaturePart(part.serialize()))
    }
}

impl std::fmt::Debug for FrostShare {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FrostShare({} of {})", self.identifier, self.group)
    }
}

/// Joins parts to a signature, for whoever asked for them. It needs only what is public.
#[derive(Clone, Debug)]
pub struct Joiner {
    group: Key,
    public: PublicKeyPackage,
}

impl Joiner {
    /// For a key and the public parts of its shares.
    ///
    /// # Errors
    /// [`RoundError`] where these are no points of the curve.
    pub fn new(group: Key, verifying_shares: &[Key; SHARES]) -> Result<Self, RoundError> {
        let public = public(group, verifying_shares).map_err(|error| RoundError::of(&error))?;
        Ok(Self { group, public })
    }

    /// The whole signature, verified by the chain's rules.
    ///
    /// # Errors
    /// [`RoundError`], which names the shares whose parts are wrong.
    pub fn join(
        &self,
        commitments: &Commitments,
        parts: &BTreeMap<u16, SignaturePart>,
        message: &BytesToSign,
    ) -> Result<Signature, RoundError> {
        let package = package(commitments, message.as_bytes())?;
        let mut read = BTreeMap::new();
        for (number, part) in parts {
            let share = SignatureShare::deserialize(&part.0).map_err(|_| RoundError::by(*number, "the part"))?;
            read.insert(identifier(*number)?, share);
        }
        let signature = frost_ed25519::aggregate(&package, &read, &self.public).map_err(|e| RoundError::of(&e))?;
        let signature = signature.serialize().ok().and_then(|bytes| bytes.try_into().ok()).map(Signature);
        signature.filter(|signature| verify_strict(&self.group, message.as_bytes(), signature)).ok_or_else(|| {
            RoundError { what: "the signature is not valid by the rules of the chain".to_owned(), at_fault: Vec::new() }
        })
    }
}

/// What is signed, with exactly the commitments of two shares.
fn package(commitments: &Commitments, message: &[u8]) -> Result<SigningPackage, RoundError> {
    if commitments.len() != usize::from(SIGNERS_MIN) {
        let what = format!("{} commitments, and {SIGNERS_MIN} shares sign together", commitments.len());
        return Err(RoundError { what, at_fault: Vec::new() });
    }
    let mut read = BTreeMap::new();
    for (number, commitment) in commitments {
        let commitment = commitment.read().ok_or_else(|| RoundError::by(*number, "the commitment"))?;
        read.insert(identifier(*number)?, commitment);
    }
    Ok(SigningPackage::new(read, message))
}

pub(super) fn public(group: Key, verifying_shares: &[Key; SHARES]) -> Result<PublicKeyPackage, FrostError> {
    let mut verifying = BTreeMap::new();
    for ((_, identifier), key) in identifiers().zip(verifying_shares) {
        verifying.insert(identifier, VerifyingShare::deserialize(&key.0)?);
    }
    Ok(PublicKeyPackage::new(verifying, VerifyingKey::deserialize(&group.0)?, Some(SIGNERS_MIN)))
}

/// Every share's number and what the library calls it.
fn identifiers() -> impl Iterator<Item = (u16, Identifier)> {
    (1..=super::SIGNERS_MAX).filter_map(|number| Some((number, Identifier::try_from(number).ok()?)))
}

fn identifier(number: u16) -> Result<Identifier, RoundError> {
    let found = identifiers().find(|(known, _)| *known == number).map(|(_, identifier)| identifier);
    let what = || RoundError { what: format!("a key has no share {number}"), at_fault: Vec::new() };
    found.ok_or_else(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compiles only while [`OnceNonces`] is not `Clone`: with two candidates the type below could not be inferred.
    #[test]
    fn nonces_cannot_be_cloned() {
        trait AmbiguousIfClone<A> {
            fn check() {}
        }
        struct IsClone;
        impl<T: ?Sized> AmbiguousIfClone<()> for T {}
        impl<T: Clone> AmbiguousIfClone<IsClone> for T {}
        <OnceNonces as AmbiguousIfClone<_>>::check();
    }
}
