//! The rounds of a DKLs23 signature between two shares. How shares are made: `ceremony.rs`.
//!
//! Owns no key. Promises: the signing state of one signature is used up by it; what a participant has to itself is wiped. A
//! failure says whether the shares may be used again ([`Fault::lasting`]).
//!
//! Source: "Threshold ECDSA in Three Rounds" (DKLs23), protocol 3.6, as `dkls23-core` lays it out.

use dkls23_core::SignSession;
use dkls23_core::protocols::signing::SignData;
use dkls23_core::protocols::{Abort, AbortKind};
use k256::Secp256k1;

use crate::x402::evm::{B256, EvmSignature};

/// One participant's share, with what it needs to sign with each of the others.
pub(super) type Party = dkls23_core::protocols::Party<Secp256k1>;
/// The public parts of a key's shares.
pub(super) type Public = dkls23_core::protocols::PublicKeyPackage<Secp256k1>;

/// The participants, by the identifiers of their shares.
pub(super) const PARTIES: [u8; 3] = [1, 2, 3];
/// The first `v` of a signature by a key.
pub(super) const V_MIN: u8 = 27;

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
    joined(&low, v).ok_or_else(|| Fault::passing("the signature has no recovery id"))
}

/// A signature of its two numbers, in hexadecimal digits, and its recovery id.
pub(super) fn signature(r: &str, s: &str, recovery_id: u8) -> Option<EvmSignature> {
    let number = |digits: &str| format!("0x{digits}").parse::<B256>().ok();
    joined(&[number(r)?.0, number(s)?.0].concat(), recovery_id)
}

fn joined(numbers: &[u8], recovery_id: u8) -> Option<EvmSignature> {
    let mut bytes = [V_MIN.checked_add(recovery_id)?; 65];
    bytes.get_mut(..64)?.copy_from_slice(numbers.try_into().ok().map(|numbers: &[u8; 64]| numbers)?);
    Some(EvmSignature(bytes))
}

/// A name that no other run of the rounds has.
pub(super) fn random() -> Result<[u8; 32], Fault> {
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
