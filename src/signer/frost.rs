//! The threshold signer: FROST over Ed25519, two shares of three, both in this process.
//!
//! This file and those below it are the only ones that name FROST's crates. Owns key generation ([`generate`]), the quorum
//! test ([`prove`]) and [`FrostSigner`]. Promises: no request is signed but what the [`Judge`] makes of it; a nonce is used once, as signing
//! consumes it; every signature is verified by the chain's rules before anybody sees it; the group's secret key exists
//! nowhere, neither at generation nor at signing. Refuses a quorum whose shares do not sign together.
//!
//! That both shares are in one process is the local mode: whoever reads its memory holds the key. What it gives is a
//! key that can be moved to cosigners on other machines without changing the address: there `signer/cosigner.rs` holds
//! the shares and `signer/remote.rs` asks for signatures, both by the rounds of `frost/signing.rs`.
//!
//! Source: RFC 9591 (FROST(Ed25519, SHA-512)); key generation as `frost-ed25519` documents it.

mod ceremony;
pub mod signing;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use self::signing::OnceNonces;
use super::ceremony::{Kind, play};
use super::keystore::{KeyShare, SHARES};
use super::quorum::{self, SIGNERS_MIN};
use super::rules::{Judge, Rules};
use super::{Approved, Signer, SignerError, SigningRequest};
use crate::scheme::svm::verify_strict;
use crate::x402::Key;
use crate::x402::key::Signature;
use async_trait::async_trait;
use frost_ed25519::keys::{KeyPackage, PublicKeyPackage, SigningShare, VerifyingShare};
use frost_ed25519::{Error as FrostError, Identifier, SigningPackage, VerifyingKey};

pub use self::ceremony::FrostRounds;
pub use super::quorum::OpenError;

const SIGNERS_MAX: u16 = 3;

/// What a quorum signs to prove that it can. Its first byte is no transaction's and no voucher's.
const TEST_MESSAGE: &[u8] = b"\xffturnpike: these shares sign together";

/// A signer that holds a quorum of one key's shares in this process.
#[derive(Clone)]
pub struct FrostSigner(Arc<Inner>);

struct Inner {
    judge: Judge,
    quorum: Quorum,
}

impl FrostSigner {
    /// A signer of two or three shares of one key. They sign a test message first, so that a share that cannot sign is
    /// found now and not at the first payment.
    ///
    /// # Errors
    /// [`OpenError`], which names the shares at fault.
    pub fn open(shares: Vec<KeyShare>, rules: Rules) -> Result<Self, OpenError> {
        let quorum = Quorum::of(&shares)?;
        quorum.test()?;
        Ok(Self::of(quorum, rules))
    }

    /// A signer that knows its key but holds one share only: it answers every request with
    /// [`SignerError::NoQuorum`]. A proxy that is started so can show what it would do, and why it cannot.
    ///
    /// # Errors
    /// [`OpenError::Corrupt`] where the share does not fit its own public part.
    pub fn open_without_quorum(share: &KeyShare, rules: Rules) -> Result<Self, OpenError> {
        Ok(Self::of(Quorum::assemble(std::slice::from_ref(share))?, rules))
    }

    /// A signer with a new key that is gone with the process: for the sandbox. The key is made by the same distributed
    /// key generation as a real one, so that the sandbox runs what `turnpike keygen` runs.
    ///
    /// # Errors
    /// [`OpenError::Broken`] where key generation fails, which it does not.
    pub fn ephemeral(rules: Rules) -> Result<Self, OpenError> {
        Self::open(generate()?.into_iter().take(usize::from(SIGNERS_MIN)).collect(), rules)
    }

    fn of(quorum: Quorum, rules: Rules) -> Self {
        Self(Arc::new(Inner { judge: Judge::new(rules, quorum.group), quorum }))
    }

    /// Judges and signs on the calling thread. It takes a request as a proxy that lies could make it: nothing here
    /// relies on anybody's approval.
    ///
    /// # Errors
    /// As [`Signer::sign`].
    pub fn sign_blocking(&self, request: &SigningRequest) -> Result<Signature, SignerError> {
        self.health().map_err(SignerError::NoQuorum)?;
        let bytes = self.0.judge.judge(request)?;
        self.0.quorum.sign(bytes.as_bytes())
    }
}

impl fmt::Debug for FrostSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FrostSigner({}, {} shares)", self.0.quorum.group, self.0.quorum.shares.len())
    }
}

#[async_trait]
impl Signer for FrostSigner {
    fn public_key(&self) -> Key {
        self.0.quorum.group
    }

    async fn sign(&self, approved: Approved) -> Result<Signature, SignerError> {
        let request = approved.into_request();
        let signer = self.clone();
        // A signature is 0.4 ms of arithmetic, twenty times a proxied request.
        super::off_the_runtime(move || signer.sign_blocking(&request)).await
    }

    fn health(&self) -> Result<(), String> {
        match self.0.quorum.shares.len() {
            2.. => Ok(()),
            have => Err(OpenError::NoQuorum { have }.to_string()),
        }
    }
}

/// Makes a new key by distributed key generation between three participants in this process. No participant, and
/// nobody else, ever holds the whole secret key.
///
/// # Errors
/// [`OpenError::Broken`] where a participant refuses another's part, which cannot happen in one process.
pub fn generate() -> Result<[KeyShare; SHARES], OpenError> {
    play::<FrostRounds>(Kind::Generate, false, [None; SHARES]).map_err(|fault| OpenError::Broken(fault.to_string()))
}

/// Tests that every pair of a key's shares signs under the same group key, which it returns.
///
/// # Errors
/// [`OpenError`], which names the shares at fault.
pub fn prove(shares: &[KeyShare; SHARES]) -> Result<Key, OpenError> {
    let quorum = Quorum::of(shares)?;
    for [first, second] in [[0, 1], [0, 2], [1, 2]] {
        let pair = quorum.shares.get(first).zip(quorum.shares.get(second));
        let signed = pair.map(|(first, second)| quorum.sign_with(first, second, TEST_MESSAGE));
        signed.transpose().map_err(|error| OpenError::Broken(error.to_string()))?;
    }
    Ok(quorum.group)
}

/// The shares of one key that are here.
struct Quorum {
    group: Key,
    shares: Vec<KeyPackage>,
    public: PublicKeyPackage,
}

impl Quorum {
    /// Two or three different shares of one key.
    fn of(shares: &[KeyShare]) -> Result<Self, OpenError> {
        quorum::check(shares, Key::to_string)?;
        Self::assemble(shares)
    }

    fn assemble(shares: &[KeyShare]) -> Result<Self, OpenError> {
        let first = shares.first().ok_or(OpenError::NoQuorum { have: 0 })?;
        let corrupt = |share: &KeyShare| OpenError::Corrupt(share.origin().to_owned());
        let public = signing::public(first.group(), &first.verifying_shares).map_err(|_| corrupt(first))?;
        let shares =
            shares.iter().map(|share| key_package(share).ok_or_else(|| corrupt(share))).collect::<Result<_, _>>()?;
        Ok(Self { group: first.group(), shares, public })
    }

    fn test(&self) -> Result<(), OpenError> {
        self.sign(TEST_MESSAGE).map(|_| ()).map_err(|error| OpenError::Broken(error.to_string()))
    }

    fn sign(&self, message: &[u8]) -> Result<Signature, SignerError> {
        let [first, second, ..] = self.shares.as_slice() else {
            return Err(SignerError::NoQuorum(OpenError::NoQuorum { have: self.shares.len() }.to_string()));
        };
        self.sign_with(first, second, message)
    }

    fn sign_with(&self, first: &KeyPackage, second: &KeyPackage, message: &[u8]) -> Result<Signature, SignerError> {
        let signature = self.rounds(first, second, message).map_err(|error| broken(&error))?;
        let signature = signature.serialize().ok().and_then(|bytes| bytes.try_into().ok()).map(Signature);
        signature
            .filter(|signature| verify_strict(&self.group, message, signature))
            .ok_or_else(|| SignerError::Broken("it is not valid by the rules of the chain".to_owned()))
    }

    /// Both rounds of the protocol: commitments, then shares of the signature, which are checked as they are joined.
    fn rounds(
        &self,
        first: &KeyPackage,
        second: &KeyPackage,
        message: &[u8],
    ) -> Result<frost_ed25519::Signature, FrostError> {
        let (first_nonces, first_commitments) = OnceNonces::commit(first);
        let (second_nonces, second_commitments) = OnceNonces::commit(second);
        let commitments =
            BTreeMap::from([(*first.identifier(), first_commitments), (*second.identifier(), second_commitments)]);
        let package = SigningPackage::new(commitments, message);
        let shares = BTreeMap::from([
            (*first.identifier(), first_nonces.sign(&package, first)?),
            (*second.identifier(), second_nonces.sign(&package, second)?),
        ]);
        frost_ed25519::aggregate(&package, &shares, &self.public)
    }
}

fn broken(error: &FrostError) -> SignerError {
    let culprits: Vec<String> = error.culprits().iter().map(|culprit| format!("{culprit:?}")).collect();
    SignerError::Broken(format!("{error} (at fault: {})", culprits.join(", ")))
}

/// The share as the library takes it, where it fits its own public part.
fn key_package(share: &KeyShare) -> Option<KeyPackage> {
    let identifier = Identifier::try_from(share.identifier()).ok()?;
    let signing = SigningShare::deserialize(share.secret.as_ref()).ok()?;
    let verifying = VerifyingShare::from(signing);
    let position = usize::from(share.identifier()).checked_sub(1)?;
    let said = share.verifying_shares.get(position)?;
    let group = VerifyingKey::deserialize(&share.group().0).ok()?;
    let fits = verifying.serialize().ok()? == said.0;
    fits.then(|| KeyPackage::new(identifier, signing, verifying, group, SIGNERS_MIN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_that_does_not_fit_its_public_part_is_found() {
        let [mut first, second, _] = generate().unwrap();
        first.secret[0] ^= 1;
        let error = Quorum::of(&[first, second]).err().unwrap();
        assert_eq!(error, OpenError::Corrupt("the new share 1".to_owned()));
    }

    #[test]
    fn shares_of_a_falsified_group_do_not_sign_together() {
        let [first, second, _] = generate().unwrap();
        let [other, ..] = generate().unwrap();
        let quorum = Quorum::of(&[first, second]).unwrap();
        let public = PublicKeyPackage::new(
            quorum.public.verifying_shares().clone(),
            VerifyingKey::deserialize(&other.group().0).unwrap(),
            Some(SIGNERS_MIN),
        );
        let falsified = Quorum { group: other.group(), public, shares: quorum.shares };
        assert!(matches!(falsified.test(), Err(OpenError::Broken(_))));
    }

    /// Even where nobody looks at their generations.
    #[test]
    fn an_old_and_a_new_share_do_not_sign_together() {
        let old = generate().unwrap();
        let [first, second, third] = &old;
        let shares = [Some(first), Some(second), Some(third)];
        let [_, new, other] = play::<FrostRounds>(Kind::Refresh, false, shares).unwrap();
        let together = |shares: [&KeyShare; 2]| {
            let shares = shares.map(|share| key_package(share).unwrap()).into();
            Quorum { group: new.group(), shares, public: signing::public(new.group(), &new.verifying_shares).unwrap() }
                .test()
        };
        assert_eq!(together([&new, &other]), Ok(()));
        assert!(matches!(together([first, &new]), Err(OpenError::Broken(_))));
    }
}
