//! Signatures for EVM networks with shares elsewhere: a session of DKLs23 between two of them, led from here.
//!
//! Where this process has a share it is the first side, and two exchanges with the other make a signature. Where it has
//! none it carries the sealed messages of two cosigners to and fro, five exchanges, and sees nothing but the signature.

use std::sync::Arc;

use async_trait::async_trait;

use super::peer::Peer;
use super::race::{Fault, as_introduced, race};
use super::{Cosigners, Member, PeerError, SIGN_WAIT_MAX, outcome, pairs};
use crate::scheme::evm::signature;
use crate::signer::ecdsa::address_of;
use crate::signer::ecdsa::pair::{Bans, EcdsaShare, First, FirstEnd, MESSAGE_BYTES_MAX, OPENING_BYTES, PairError};
use crate::signer::keystore::{KeyShare, Point, Secp256k1};
use crate::signer::quorum::OpenError;
use crate::signer::rules::evm::{DigestToSign, EvmJudge, EvmRules};
use crate::signer::wire::{Answer, Begin, Cause, Continue, Sealed, ShareOf, Turn};
use crate::signer::{Approved, EvmRequest, EvmSigner, SignerError, off_the_runtime};
use crate::x402::evm::{Address, EvmSignature};

/// A signer that holds one share of the key or none.
#[derive(Clone)]
pub struct RemoteEvmSigner(Arc<Inner>);

struct Inner {
    judge: Arc<EvmJudge>,
    address: Address,
    own: Option<Arc<EcdsaShare>>,
    cosigners: Arc<Cosigners>,
}

impl RemoteEvmSigner {
    /// With a share here, which never signs with those that `bans` has.
    ///
    /// # Errors
    /// [`OpenError::Corrupt`] where the share does not fit its public part.
    pub fn with_share(
        share: &KeyShare<Secp256k1>,
        bans: Arc<dyn Bans>,
        rules: EvmRules,
        cosigners: Arc<Cosigners>,
    ) -> Result<Self, OpenError> {
        let own = EcdsaShare::open(share, bans)?;
        Ok(Self::of(own.address(), Some(Arc::new(own)), rules, cosigners))
    }

    /// Without a share: this process only asks, for signatures of the key with this address.
    #[must_use]
    pub fn coordinating(address: Address, rules: EvmRules, cosigners: Arc<Cosigners>) -> Self {
        Self::of(address, None, rules, cosigners)
    }

    fn of(address: Address, own: Option<Arc<EcdsaShare>>, rules: EvmRules, cosigners: Arc<Cosigners>) -> Self {
        Self(Arc::new(Inner { judge: Arc::new(EvmJudge::new(rules, address)), address, own, cosigners }))
    }

    /// Judges and has it signed. It takes a request as a proxy that lies could make it: nothing here relies on anybody's
    /// approval.
    ///
    /// # Errors
    /// As [`EvmSigner::sign`].
    pub async fn sign_request(&self, request: &EvmRequest) -> Result<EvmSignature, SignerError> {
        let (judge, judged) = (Arc::clone(&self.0.judge), request.clone());
        // Up to a hundred vouchers are verified.
        let digest = off_the_runtime(move || judge.judge(&judged)).await?;
        let pairs = pairs(self.0.own.is_some(), &self.0.cosigners.peers);
        let attempt = |pair| self.attempt(pair, request, &digest);
        let signed = race(pairs, SIGN_WAIT_MAX, |pair| as_introduced(pair, attempt)).await;
        signed.map_err(outcome)
    }

    /// A session of these two.
    async fn attempt(
        &self,
        pair: [Member; 2],
        request: &EvmRequest,
        digest: &DigestToSign,
    ) -> Result<EvmSignature, Fault> {
        let signed = match &pair {
            [Member::Own, Member::Peer(peer)] | [Member::Peer(peer), Member::Own] => {
                self.with_own(peer, request, digest).await
            }
            [Member::Peer(first), Member::Peer(second)] => self.between(first, second, request).await,
            [Member::Own, Member::Own] => Err(own_fault("one share is not two")),
        }?;
        if signature::signer(digest.digest(), &signed) == Some(self.0.address) {
            return Ok(signed);
        }
        // The first side has checked it, or has lied; this process's own has.
        match &pair {
            [Member::Peer(peer), _] => {
                let what = "the signature that it has given is not valid";
                peer.lied(what);
                Err(Fault::of(&pair[0], PeerError::Lied(what.to_owned())))
            }
            [Member::Own, _] => Err(own_fault("the signature is not valid")),
        }
    }

    /// This process's share is the first side.
    async fn with_own(
        &self,
        peer: &Arc<Peer>,
        request: &EvmRequest,
        digest: &DigestToSign,
    ) -> Result<EvmSignature, Fault> {
        let there = Member::Peer(Arc::clone(peer));
        let own = self.0.own.as_ref().ok_or_else(|| own_fault("no share is here"))?;
        let theirs = self.share_of(peer).await?;
        if theirs.verifying_shares != own.verifying_shares() {
            return Err(Fault::of(&there, failed("its share is of another generation of the key than the one here")));
        }
        if theirs.identifier == own.identifier() {
            return Err(Fault::of(&there, failed("it has the same share as this process")));
        }
        let wrong = |error: PairError| Self::wrong(peer, error);
        let (first, opening) = own.begin(theirs.identifier, digest.clone()).map_err(wrong)?;
        let answer = Answer { request: request.clone(), peer: own.identifier(), opening: Sealed(opening.to_vec()) };
        let (session, answer) = message(&there, call(peer, &answer).await?)?;
        let (end, reply): (FirstEnd, Vec<u8>) =
            arithmetic(move || First::reply(first, &answer.0)).await.map_err(wrong)?;
        match call(peer, &Continue { session, message: Sealed(reply) }).await? {
            Turn::End { message } => arithmetic(move || end.finish(&message.0)).await.map_err(wrong),
            Turn::Message { .. } | Turn::Signature { .. } => Err(out_of_turn(&there)),
        }
    }

    /// Two cosigners sign; what they say to each other is sealed.
    async fn between(
        &self,
        first: &Arc<Peer>,
        second: &Arc<Peer>,
        request: &EvmRequest,
    ) -> Result<EvmSignature, Fault> {
        let [a, b] = [first, second].map(|peer| Member::Peer(Arc::clone(peer)));
        let (one, other) = futures_util::future::try_join(self.share_of(first), self.share_of(second)).await?;
        if one.verifying_shares != other.verifying_shares || one.identifier == other.identifier {
            let names = [a.name().to_owned(), b.name().to_owned()];
            return Err(Fault::Between(names, "their shares are not two of one generation of the key".to_owned()));
        }
        let begin = Begin { request: request.clone(), peer: other.identifier };
        let (of_first, opening) = message(&a, call(first, &begin).await?)?;
        if opening.0.len() != OPENING_BYTES {
            return Err(lied(&a, "its opening has not the length of one"));
        }
        let answer = Answer { request: request.clone(), peer: one.identifier, opening };
        let (of_second, answer) = message(&b, call(second, &answer).await?)?;
        let next = |session, message| Continue { session, message };
        let (of_first, reply) = message(&a, between(first, second, &next(of_first, answer)).await?)?;
        let end = match between(second, first, &next(of_second, reply)).await? {
            Turn::End { message } if message.0.len() <= MESSAGE_BYTES_MAX => message,
            Turn::End { .. } => return Err(lied(&b, "its message is too long")),
            Turn::Message { .. } | Turn::Signature { .. } => return Err(out_of_turn(&b)),
        };
        match between(first, second, &next(of_first, end)).await? {
            Turn::Signature { signature } => Ok(signature),
            Turn::Message { .. } | Turn::End { .. } => Err(out_of_turn(&a)),
        }
    }

    /// What is public of a cosigner's share, where it is one of this key.
    async fn share_of(&self, peer: &Arc<Peer>) -> Result<ShareOf<Secp256k1>, Fault> {
        let there = Member::Peer(Arc::clone(peer));
        let introduction = peer.introduction().await.map_err(|error| Fault::of(&there, error))?;
        let share = introduction.secp256k1;
        let share = share.ok_or_else(|| Fault::of(&there, failed("it has no share on secp256k1")))?;
        if !share.is_one_of_three() {
            let what = format!("its share has the number {}, which no share has", share.identifier);
            return Err(Fault::of(&there, failed(&what)));
        }
        if address_of(&share.group) == Some(self.0.address) {
            return Ok(share);
        }
        let what = format!("its share is of the key {}, not of that with the address {}", share.group, self.0.address);
        Err(Fault::of(&there, failed(&what)))
    }

    /// What the share here has found wrong with a cosigner's message. The connection is authentic, so it is the
    /// cosigner's.
    fn wrong(peer: &Arc<Peer>, error: PairError) -> Fault {
        let there = Member::Peer(Arc::clone(peer));
        match error {
            PairError::Message { .. } => {
                let what = error.to_string();
                peer.lied(&what);
                Fault::of(&there, PeerError::Lied(what))
            }
            PairError::Banned { .. } => {
                Fault::of(&there, PeerError::Failed { cause: Cause::Banned, what: error.to_string() })
            }
            PairError::Own(what) => own_fault(&what),
        }
    }
}

async fn call<C: crate::signer::wire::Call>(peer: &Arc<Peer>, call: &C) -> Result<C::Answer, Fault> {
    peer.call(call).await.map_err(|error| Fault::of(&Member::Peer(Arc::clone(peer)), error))
}

/// A move that carries the other's words: where they are wrong, it is one of the two, and this process cannot tell which.
async fn between(to: &Arc<Peer>, from: &Arc<Peer>, next: &Continue) -> Result<Turn, Fault> {
    to.call(next).await.map_err(|error| match error {
        PeerError::Failed { cause: Cause::Peer | Cause::Banned, what } => {
            tracing::error!(
                cosigner = to.name(),
                of = from.name(),
                what,
                "a cosigner says that another's message is wrong"
            );
            Fault::Between([to.name().to_owned(), from.name().to_owned()], what)
        }
        error => Fault::of(&Member::Peer(Arc::clone(to)), error),
    })
}

fn message(from: &Member, turn: Turn) -> Result<(String, Sealed), Fault> {
    match turn {
        // Passed on, one that is too long would be the receiver's failure.
        Turn::Message { message, .. } if message.0.len() > MESSAGE_BYTES_MAX => {
            Err(lied(from, "its message is too long"))
        }
        Turn::Message { session, message } => Ok((session, message)),
        Turn::End { .. } | Turn::Signature { .. } => Err(out_of_turn(from)),
    }
}

fn out_of_turn(member: &Member) -> Fault {
    lied(member, "it speaks out of turn")
}

fn lied(member: &Member, what: &str) -> Fault {
    if let Member::Peer(peer) = member {
        peer.lied(what);
    }
    Fault::of(member, PeerError::Lied(what.to_owned()))
}

fn failed(what: &str) -> PeerError {
    PeerError::Failed { cause: Cause::Broken, what: what.to_owned() }
}

fn own_fault(what: &str) -> Fault {
    Fault::of(&Member::Own, failed(what))
}

/// A few milliseconds of arithmetic, beside what the runtime's threads serve.
async fn arithmetic<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PairError> + Send + 'static,
) -> Result<T, PairError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(PairError::Own(format!("signing was interrupted: {error}"))))
}

#[async_trait]
impl EvmSigner for RemoteEvmSigner {
    fn address(&self) -> Address {
        self.0.address
    }

    async fn sign(&self, approved: Approved<EvmRequest>) -> Result<EvmSignature, SignerError> {
        self.sign_request(approved.request()).await
    }

    fn health(&self) -> Result<(), String> {
        let have = usize::from(self.0.own.is_some());
        let ours = |group: &Point| address_of(group) == Some(self.0.address);
        self.0.cosigners.quorum(have, |it| it.secp256k1.is_some_and(|share| ours(&share.group)))
    }
}

impl std::fmt::Debug for RemoteEvmSigner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RemoteEvmSigner({}, {:?})", self.0.address, self.0.cosigners)
    }
}
