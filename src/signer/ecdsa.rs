//! The threshold signer of EVM networks: ECDSA on secp256k1 by DKLs23, two shares of three, both in this process.
//!
//! This file and those below it are the only ones that name the crates of DKLs23. Owns key generation ([`generate`]), the
//! quorum test ([`prove`]) and [`EcdsaSigner`]. Promises: no request is signed but what the [`EvmJudge`] makes of it; every
//! signature is verified by the contract's rules before anybody sees it; the group's secret key exists nowhere, neither at
//! generation nor at signing; shares that have once caught each other cheating sign no more in this process. Refuses a
//! quorum whose shares do not sign together.
//!
//! Which library and why, and that nobody has audited it: `docs/decisions/0007-threshold-ecdsa.md`. That both shares are in
//! one process is the local mode, as `frost.rs` says of its own. [`pair`] is for shares that are apart.

mod ceremony;
pub mod pair;
mod rounds;
mod share;

use std::fmt;
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;

pub use self::ceremony::EcdsaRounds;

use super::ceremony::{Kind, play};
use super::keystore::{KeyShare, Point, SHARES, Secp256k1};
use super::quorum::{self, OpenError};
use super::rules::evm::{EvmJudge, EvmRules};
use super::{Approved, EvmRequest, EvmSigner, SignerError};
use crate::scheme::evm::signature;
use crate::x402::evm::{Address, B256, EvmSignature, keccak256};
use rounds::{Fault, Party};

/// The address of a key; `None` where the bytes are no point of the curve.
#[must_use]
pub fn address_of(key: &Point) -> Option<Address> {
    share::address_of(key)
}

/// The text whose hash a quorum signs to prove that it can. It begins as no signed structure and no transaction does.
const TEST_MESSAGE: &[u8] = b"\xffturnpike: these shares sign together";

/// A signer that holds a quorum of one key's shares in this process.
#[derive(Clone)]
pub struct EcdsaSigner(Arc<Inner>);

struct Inner {
    judge: EvmJudge,
    quorum: Quorum,
}

impl EcdsaSigner {
    /// A signer of two or three shares of one key. They sign a test message first, so that a share that cannot sign is
    /// found now and not at the first claim.
    ///
    /// # Errors
    /// [`OpenError`], which names the shares at fault.
    pub fn open(shares: &[KeyShare<Secp256k1>], rules: EvmRules) -> Result<Self, OpenError> {
        let quorum = Quorum::of(shares)?;
        quorum.test()?;
        Ok(Self::of(quorum, rules))
    }

    /// A signer that knows its key but holds one share only: it answers every request with
    /// [`SignerError::NoQuorum`]. A proxy that is started so can show what it would do, and why it cannot.
    ///
    /// # Errors
    /// [`OpenError::Corrupt`] where the share does not fit its own public part.
    pub fn open_without_quorum(share: &KeyShare<Secp256k1>, rules: EvmRules) -> Result<Self, OpenError> {
        Ok(Self::of(Quorum::assemble(std::slice::from_ref(share))?, rules))
    }

    /// A signer with a new key that is gone with the process, made as a real one is: for tests and trials. It takes two
    /// seconds.
    ///
    /// # Errors
    /// [`OpenError::Broken`] where key generation fails, which it does not.
    pub fn ephemeral(rules: EvmRules) -> Result<Self, OpenError> {
        let [first, second, _] = generate()?;
        Self::open(&[first, second], rules)
    }

    fn of(quorum: Quorum, rules: EvmRules) -> Self {
        Self(Arc::new(Inner { judge: EvmJudge::new(rules, quorum.address), quorum }))
    }

    /// Judges and signs on the calling thread. It takes a request as a proxy that lies could make it: nothing here
    /// relies on anybody's approval.
    ///
    /// # Errors
    /// As [`EvmSigner::sign`].
    pub fn sign_blocking(&self, request: &EvmRequest) -> Result<EvmSignature, SignerError> {
        self.health().map_err(SignerError::NoQuorum)?;
        let accepted = self.0.judge.judge(request)?;
        self.0.quorum.sign(accepted.digest())
    }
}

impl fmt::Debug for EcdsaSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EcdsaSigner({}, {} shares)", self.0.quorum.address, self.0.quorum.shares.len())
    }
}

#[async_trait]
impl EvmSigner for EcdsaSigner {
    fn address(&self) -> Address {
        self.0.quorum.address
    }

    async fn sign(&self, approved: Approved<EvmRequest>) -> Result<EvmSignature, SignerError> {
        let request = approved.into_request();
        let signer = self.clone();
        // A signature is 8 ms of arithmetic, four hundred times a proxied request.
        super::off_the_runtime(move || signer.sign_blocking(&request)).await
    }

    fn health(&self) -> Result<(), String> {
        self.0.quorum.health()
    }
}

/// Makes a new key by distributed key generation between three participants in this process. No participant, and
/// nobody else, ever holds the whole secret key.
///
/// # Errors
/// [`OpenError::Broken`] where a participant refuses another's part, which cannot happen in one process.
pub fn generate() -> Result<[KeyShare<Secp256k1>; SHARES], OpenError> {
    play::<EcdsaRounds>(Kind::Generate, false, [None; SHARES]).map_err(|fault| OpenError::Broken(fault.to_string()))
}

/// Tests that every pair of a key's shares signs under the same group key, whose address it returns.
///
/// # Errors
/// [`OpenError`], which names the shares at fault.
pub fn prove(shares: &[KeyShare<Secp256k1>; SHARES]) -> Result<Address, OpenError> {
    let quorum = Quorum::of(shares)?;
    for [first, second] in [[0, 1], [0, 2], [1, 2]] {
        let pair = quorum.shares.get(first).zip(quorum.shares.get(second));
        let signed = pair.map(|(first, second)| quorum.sign_with(first, second, &keccak256(TEST_MESSAGE)));
        signed.transpose().map_err(|error| OpenError::Broken(error.to_string()))?;
    }
    Ok(quorum.address)
}

/// The shares of one key that are here.
struct Quorum {
    address: Address,
    shares: Vec<Party>,
    /// Why these shares sign no more, once that is so.
    ended: OnceLock<String>,
}

impl Quorum {
    /// Two or three different shares of one key.
    fn of(shares: &[KeyShare<Secp256k1>]) -> Result<Self, OpenError> {
        quorum::check(shares, |key| address_of(key).map_or_else(|| key.to_string(), |known| known.to_string()))?;
        Self::assemble(shares)
    }

    fn assemble(shares: &[KeyShare<Secp256k1>]) -> Result<Self, OpenError> {
        let first = shares.first().ok_or(OpenError::NoQuorum { have: 0 })?;
        let corrupt = |share: &KeyShare<Secp256k1>| OpenError::Corrupt(share.origin().to_owned());
        let address = address_of(&first.group()).ok_or_else(|| corrupt(first))?;
        let shares = shares
            .iter()
            .map(|share| share::from_file(share).ok_or_else(|| corrupt(share)))
            .collect::<Result<_, _>>()?;
        Ok(Self { address, shares, ended: OnceLock::new() })
    }

    fn test(&self) -> Result<(), OpenError> {
        self.sign(&keccak256(TEST_MESSAGE)).map(|_| ()).map_err(|error| OpenError::Broken(error.to_string()))
    }

    fn health(&self) -> Result<(), String> {
        if let Some(why) = self.ended.get() {
            return Err(format!("{why}; restart with the shares from their backups, or make a new key"));
        }
        match self.shares.len() {
            2.. => Ok(()),
            have => Err(OpenError::NoQuorum { have }.to_string()),
        }
    }

    fn sign(&self, digest: &B256) -> Result<EvmSignature, SignerError> {
        let [first, second, ..] = self.shares.as_slice() else {
            return Err(SignerError::NoQuorum(OpenError::NoQuorum { have: self.shares.len() }.to_string()));
        };
        self.sign_with(first, second, digest)
    }

    fn sign_with(&self, first: &Party, second: &Party, digest: &B256) -> Result<EvmSignature, SignerError> {
        let signature = rounds::sign(first, second, digest).map_err(|fault| self.broken(fault))?;
        Some(signature)
            .filter(|signature| signature::signer(digest, signature) == Some(self.address))
            .ok_or_else(|| SignerError::Broken("it is not valid by the rules of the contract".to_owned()))
    }

    fn broken(&self, fault: Fault) -> SignerError {
        if fault.lasting {
            self.ended.get_or_init(|| format!("the shares sign together no more: {}", fault.what));
        }
        SignerError::Broken(fault.what)
    }
}

#[cfg(test)]
mod tests;
