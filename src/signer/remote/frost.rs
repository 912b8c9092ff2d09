//! Signatures for Solana networks with shares elsewhere: FROST's two rounds over the wire.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::future::try_join;

use super::race::{Fault, as_introduced, race};
use super::{Cosigners, Member, PeerError, SIGN_WAIT_MAX, outcome, pairs};
use crate::signer::frost::signing::{Commitment, Commitments, FrostShare, Joiner, OnceNonces, SignaturePart};
use crate::signer::keystore::{KeyShare, SHARES};
use crate::signer::quorum::OpenError;
use crate::signer::rules::{BytesToSign, Judge, Rules};
use crate::signer::wire::{Cause, Commit, Sign};
use crate::signer::{Approved, Signer, SignerError, SigningRequest};
use crate::x402::Key;
use crate::x402::key::Signature;

/// A signer that holds one share of the key or none.
#[derive(Clone)]
pub struct RemoteSigner(Arc<Inner>);

struct Inner {
    judge: Judge,
    group: Key,
    rules: Rules,
    own: Option<FrostShare>,
    cosigners: Arc<Cosigners>,
}

impl RemoteSigner {
    /// With a share here.
    ///
    /// # Errors
    /// [`OpenError::Corrupt`] where the share does not fit its public part.
    pub fn with_share(share: &KeyShare, rules: Rules, cosigners: Arc<Cosigners>) -> Result<Self, OpenError> {
        let own = FrostShare::open(share)?;
        Ok(Self::of(own.group(), Some(own), rules, cosigners))
    }

    /// Without a share: this process only asks, for signatures of the key `group`.
    #[must_use]
    pub fn coordinating(group: Key, rules: Rules, cosigners: Arc<Cosigners>) -> Self {
        Self::of(group, None, rules, cosigners)
    }

    fn of(group: Key, own: Option<FrostShare>, rules: Rules, cosigners: Arc<Cosigners>) -> Self {
        Self(Arc::new(Inner { judge: Judge::new(rules.clone(), group), group, rules, own, cosigners }))
    }

    /// Judges and has it signed. It takes a request as a proxy that lies could make it: nothing here relies on anybody's
    /// approval.
    ///
    /// # Errors
    /// As [`Signer::sign`].
    pub async fn sign_request(&self, request: &SigningRequest) -> Result<Signature, SignerError> {
        let bytes = self.0.judge.judge(request)?;
        let pairs = pairs(self.0.own.is_some(), &self.0.cosigners.peers);
        let attempt = |pair| self.attempt(pair, request, &bytes);
        let signed = race(pairs, SIGN_WAIT_MAX, |pair| as_introduced(pair, attempt)).await;
        signed.map_err(outcome)
    }

    /// Both rounds with these two.
    async fn attempt(
        &self,
        pair: [Member; 2],
        request: &SigningRequest,
        bytes: &BytesToSign,
    ) -> Result<Signature, Fault> {
        let [first, second] = &pair;
        let (one, other) = try_join(self.commit(first), self.commit(second)).await?;
        let verifying_shares = one.verifying_shares;
        if other.verifying_shares != verifying_shares || one.identifier == other.identifier {
            return Err(disagree(&pair, "their shares are not two of one generation of the key"));
        }
        let commitments =
            Commitments::from([(one.identifier, one.commitment.clone()), (other.identifier, other.commitment.clone())]);
        let joiner = Joiner::new(self.0.group, &verifying_shares)
            .map_err(|error| disagree(&pair, &format!("the public parts of their shares: {error}")))?;
        let identifiers = [one.identifier, other.identifier];
        let (a, b) = try_join(
            self.part(first, one, &commitments, request, bytes),
            self.part(second, other, &commitments, request, bytes),
        )
        .await?;
        let parts = BTreeMap::from([(identifiers[0], a), (identifiers[1], b)]);
        joiner.join(&commitments, &parts, bytes).map_err(|error| {
            let guilty = identifiers.iter().zip(&pair).find(|(number, _)| error.at_fault.contains(number));
            let Some((_, member)) = guilty else { return disagree(&pair, &error.what) };
            let what = format!("its part of the signature is wrong ({error})");
            if let Member::Peer(peer) = member {
                peer.lied(&what);
            }
            Fault::of(member, PeerError::Lied(what))
        })
    }

    /// Round one with one of them.
    async fn commit(&self, member: &Member) -> Result<Ready, Fault> {
        let peer = match (member, &self.0.own) {
            (Member::Peer(peer), _) => peer,
            (Member::Own, Some(own)) => {
                let (nonces, commitment) = own.commit().map_err(|error| own_fault(&error.what))?;
                return Ok(Ready {
                    identifier: own.identifier(),
                    verifying_shares: own.verifying_shares(),
                    commitment,
                    nonces: Some(nonces),
                });
            }
            (Member::Own, None) => return Err(own_fault("no share is here")),
        };
        let fault = |error| Fault::of(member, error);
        let introduction = peer.introduction().await.map_err(fault)?;
        let Some(share) = introduction.ed25519 else {
            return Err(fault(failed("it has no share on Ed25519")));
        };
        if share.group != self.0.group {
            return Err(fault(failed(&format!("its share is of the key {}, not of {}", share.group, self.0.group))));
        }
        if let Some(own) = &self.0.own
            && share.verifying_shares != own.verifying_shares()
        {
            return Err(fault(failed("its share is of another generation of the key than the one here")));
        }
        if !share.is_one_of_three() {
            return Err(fault(failed(&format!("its share has the number {}, which no share has", share.identifier))));
        }
        let committed = peer.call(&Commit {}).await.map_err(fault)?;
        // Passed on, it would be whoever signs with it that fails.
        if !committed.commitment.is_sound() {
            let what = "its commitment cannot be read";
            peer.lied(what);
            return Err(fault(PeerError::Lied(what.to_owned())));
        }
        Ok(Ready {
            identifier: share.identifier,
            verifying_shares: share.verifying_shares,
            commitment: committed.commitment,
            nonces: None,
        })
    }

    /// Round two with one of them.
    async fn part(
        &self,
        member: &Member,
        ready: Ready,
        commitments: &Commitments,
        request: &SigningRequest,
        bytes: &BytesToSign,
    ) -> Result<SignaturePart, Fault> {
        match (member, ready.nonces, &self.0.own) {
            (Member::Own, Some(nonces), Some(own)) => {
                own.sign(nonces, commitments, bytes).map_err(|error| own_fault(&error.what))
            }
            (Member::Peer(peer), ..) => {
                let sign = Sign {
                    network: self.0.rules.network.clone(),
                    request: request.clone(),
                    commitments: commitments.clone(),
                };
                peer.call(&sign).await.map(|signed| signed.part).map_err(|error| Fault::of(member, error))
            }
            (Member::Own, ..) => Err(own_fault("no share is here")),
        }
    }
}

/// One member after round one.
struct Ready {
    identifier: u16,
    verifying_shares: [Key; SHARES],
    commitment: Commitment,
    /// Of the share in this process.
    nonces: Option<OnceNonces>,
}

fn failed(what: &str) -> PeerError {
    PeerError::Failed { cause: Cause::Broken, what: what.to_owned() }
}

fn own_fault(what: &str) -> Fault {
    Fault::of(&Member::Own, failed(what))
}

fn disagree([first, second]: &[Member; 2], what: &str) -> Fault {
    Fault::Between([first.name().to_owned(), second.name().to_owned()], what.to_owned())
}

#[async_trait]
impl Signer for RemoteSigner {
    fn public_key(&self) -> Key {
        self.0.group
    }

    async fn sign(&self, approved: Approved) -> Result<Signature, SignerError> {
        self.sign_request(approved.request()).await
    }

    fn health(&self) -> Result<(), String> {
        let have = usize::from(self.0.own.is_some());
        self.0.cosigners.quorum(have, |it| it.ed25519.is_some_and(|share| share.group == self.0.group))
    }
}

impl std::fmt::Debug for RemoteSigner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RemoteSigner({}, {:?})", self.0.group, self.0.cosigners)
    }
}
