//! The rounds of DKLs23: key generation between three participants, signing between two.
//!
//! Owns no key. Promises: what is meant for one participant reaches no other; the signing state of one signature is used
//! up by it; what a participant has to itself is wiped. A failure says whether the shares may be used again
//! ([`Fault::lasting`]).
//!
//! Source: "Threshold ECDSA in Three Rounds" (DKLs23), protocols 3.6 (signing) and 9.1 (key generation), as `dkls23-core`
//! lays them out.

use std::collections::BTreeMap;

use dkls23_core::protocols::signing::SignData;
use dkls23_core::protocols::{Abort, AbortKind, InvalidPartyIndex, Parameters, PartyIndex};
use dkls23_core::{DkgSession, SignSession};
use k256::{Scalar, Secp256k1};
use zeroize::{Zeroize, Zeroizing};

use crate::x402::evm::{B256, EvmSignature};

/// One participant's share, with what it needs to sign with each of the others.
pub(super) type Party = dkls23_core::protocols::Party<Secp256k1>;
/// The public parts of a key's shares.
pub(super) type Public = dkls23_core::protocols::PublicKeyPackage<Secp256k1>;

/// The participants, by the identifiers of their shares.
pub(super) const PARTIES: [u8; 3] = [1, 2, 3];
const THRESHOLD: u8 = 2;
/// The first `v` of a signature by a key.
const V_MIN: u8 = 27;

/// Why the rounds came to no end.
#[derive(Clone, Debug)]
pub(super) struct Fault {
    /// What happened.
    pub(super) what: String,
    /// Whether the shares must never sign together again: one has found that the other's answers do not fit what they
    /// once agreed on. Trying again and again would give a share away.
    pub(super) lasting: bool,
}

impl Fault {
    fn passing(what: impl ToString) -> Self {
        Self { what: what.to_string(), lasting: false }
    }
}

impl From<Abort> for Fault {
    fn from(abort: Abort) -> Self {
        let lasting = matches!(abort.kind, AbortKind::BanCounterparty(_));
        Self { what: format!("share {} stops: {}", abort.index, abort.description()), lasting }
    }
}

impl From<InvalidPartyIndex> for Fault {
    fn from(error: InvalidPartyIndex) -> Self {
        Self::passing(error)
    }
}

/// Key generation. Each participant has a session of its own, and nobody ever has the secret key.
pub(super) fn generate() -> Result<Vec<(Party, Public)>, Fault> {
    let everyone = PARTIES.into_iter().map(PartyIndex::new).collect::<Result<Vec<_>, _>>()?;
    let parameters =
        Parameters::new(THRESHOLD, u8::try_from(PARTIES.len()).unwrap_or(u8::MAX)).map_err(Fault::passing)?;
    let session = random()?.to_vec();
    let mut sessions: Vec<DkgSession<Secp256k1>> =
        everyone.iter().map(|me| DkgSession::new(parameters.clone(), *me, session.clone())).collect();

    // Row by row what a participant gives to each; column by column what one gets.
    let rows: Vec<Zeroizing<Vec<Scalar>>> = sessions.iter().map(|session| Zeroizing::new(session.phase1())).collect();
    let (mut proofs, mut zeros_early, mut chain_early) = (Vec::new(), Vec::new(), BTreeMap::new());
    for (place, (me, session)) in everyone.iter().zip(&mut sessions).enumerate() {
        let column = Zeroizing::new(rows.iter().filter_map(|row| row.get(place).copied()).collect::<Vec<_>>());
        let (proof, zeros, chain) = session.phase2(&column)?;
        proofs.push(proof);
        zeros_early.extend(zeros);
        chain_early.insert(*me, chain);
    }
    let (mut zeros_late, mut transfers, mut chain_late) = (Vec::new(), Vec::new(), BTreeMap::new());
    for (me, session) in everyone.iter().zip(&mut sessions) {
        let (zeros, transfer, chain) = session.phase3()?;
        zeros_late.extend(zeros);
        transfers.extend(transfer);
        chain_late.insert(*me, chain);
    }
    let mut finish = |(me, session): (PartyIndex, DkgSession<Secp256k1>)| {
        let zeros_early: Vec<_> = zeros_early.extract_if(.., |to| to.parties.receiver == me).collect();
        let mut zeros_late: Vec<_> = zeros_late.extract_if(.., |to| to.parties.receiver == me).collect();
        let transfers: Vec<_> = transfers.extract_if(.., |to| to.parties.receiver == me).collect();
        // The address is ours to make; the library keeps none.
        let no_address = |_: &_| String::new();
        let made =
            session.phase4(&proofs, &zeros_early, &zeros_late, &transfers, &chain_early, &chain_late, no_address);
        // The library wipes sessions and shares, but not these seeds that two participants have in common.
        zeros_late.iter_mut().for_each(|zero| zero.seed.zeroize());
        made.map_err(Fault::from)
    };
    everyone.iter().copied().zip(sessions).map(&mut finish).collect()
}

/// Signs a digest with two shares of one key. The signature has `s` in the lower half, as contracts want it; it is not
/// verified here. A session is used up as it advances and cannot be cloned, so no nonce signs twice.
pub(super) fn sign(first: &Party, second: &Party, digest: &B256) -> Result<EvmSignature, Fault> {
    let id = random()?.to_vec();
    let begin = |me, other: &Party| {
        let (sign_id, counterparties) = (id.clone(), vec![other.party_index]);
        SignSession::new(me, SignData { sign_id, counterparties, message_hash: digest.0 })
    };
    let (mut of_first, to_second) = begin(first, second)?;
    let (mut of_second, to_first) = begin(second, first)?;
    let (to_second, to_first) = (of_first.phase2(&to_first)?, of_second.phase2(&to_second)?);
    let broadcasts = [of_first.phase3(&to_first)?, of_second.phase3(&to_second)?];
    let signature = of_first.phase4(&broadcasts, true)?;
    let [low @ .., v] = signature.to_bytes_with_recovery();
    let v = V_MIN.checked_add(v).ok_or_else(|| Fault::passing("the signature has no recovery id"))?;
    let mut bytes = [v; 65];
    bytes[..64].copy_from_slice(&low);
    Ok(EvmSignature(bytes))
}

/// A name that no other run of the rounds has.
fn random() -> Result<[u8; 32], Fault> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(Fault::passing)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compiles only while a session is not `Clone`: with two candidates the type below could not be inferred.
    #[test]
    fn sessions_cannot_be_cloned() {
        trait AmbiguousIfClone<A> {
            fn check() {}
        }
        struct IsClone;
        impl<T: ?Sized> AmbiguousIfClone<()> for T {}
        impl<T: Clone> AmbiguousIfClone<IsClone> for T {}
        <SignSession<'static, Secp256k1> as AmbiguousIfClone<_>>::check();
    }
}
