//! A signature by two shares that are not in one place: each side's moves, as sealed messages.
//!
//! Owns [`EcdsaShare`] and the states of a signing session, [`First`] and [`Second`]. Nothing here knows how a message
//! travels: it may pass through hands that must neither read nor change it. Promises: every message is sealed for the
//! other side and for its place in its session, so what does not come from there as it was sent is refused before any of
//! the protocol's arithmetic sees it; a session has a name to which both sides gave 32 random bytes; each state is used up
//! by its next move and cannot be cloned; the signature has been verified by the contract's rules. Refuses a partner that
//! has once been caught cheating ([`Bans`]), for good.
//!
//! | | who | message | holds |
//! |---|---|---|---|
//! | 1 | first | opening | its 32 random bytes, in the clear |
//! | 2 | second | answer | its 32 random bytes, in the clear; sealed: its message of phase 1 |
//! | 3 | first | reply | sealed: its messages of phases 1 and 2 |
//! | 4 | second | end | sealed: its message of phase 2 and its part of the signature |
//!
//! This is the protocol with a fixed order of speaking. Both have committed to their instance points (phase 1) before
//! either opens its own (phase 2), and a side that speaks second sees only what a rushing adversary sees, against which
//! DKLs23 is proved. The second's part goes to the first alone, which makes the signature: nobody between them sees it.
//!
//! The sealing key is made of the seed that these two shares have in common since their key was generated (from which
//! the protocol makes its shares of zero), of the session's name and of the direction. So no keys need to be exchanged,
//! and new shares bring new seals. Whoever later steals a share can open what that share took part in, and learns no more
//! than that share knew: the protocol is proved against one of the two being corrupt from the start.
//!
//! Source: "Threshold ECDSA in Three Rounds" (DKLs23), protocol 3.6. Why so: `docs/decisions/0011-cosigners.md`.

use std::collections::BTreeMap;
use std::sync::Arc;

use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use dkls23_core::protocols::PartyIndex;
use dkls23_core::protocols::signing::{
    Broadcast3to4, KeepPhase1to2, KeepPhase2to3, SignData, TransmitPhase1to2, TransmitPhase2to3, UniqueKeep1to2,
    UniqueKeep2to3,
};
use k256::Secp256k1;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::rounds::{Fault, Party, V_MIN, random};
use super::share;
use crate::scheme::evm::signature;
use crate::signer::keystore::{self, KeyShare, Point, SHARES};
use crate::signer::quorum::OpenError;
use crate::signer::rules::evm::DigestToSign;
use crate::x402::evm::{Address, B256, EvmSignature};

/// The longest sealed message; the longest there is has 82 KB.
pub const MESSAGE_BYTES_MAX: usize = 128 * 1024;
const NONCE_BYTES: usize = 24;
const SESSION_LABEL: &[u8] = b"turnpike ecdsa session, version 1\0";
const SEAL_LABEL: &[u8] = b"turnpike ecdsa seal, version 1\0";

/// How long an opening is.
pub const OPENING_BYTES: usize = 32;

/// Random bytes of one side, for the session's name.
pub type Opening = [u8; OPENING_BYTES];

/// Which shares this one must never sign with again.
pub trait Bans: Send + Sync {
    /// Why the share `peer` is banned, where it is.
    fn banned(&self, peer: u16) -> Option<String>;

    /// Bans the share `peer` for good. Where that cannot be written down it holds for the life of the process.
    fn ban(&self, peer: u16, why: &str);
}

/// Why a move came to nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PairError {
    /// What the other side sent cannot be opened or used: it, or somebody between the two, has changed it.
    #[error("the message of share {peer} is not what was agreed on: {what}")]
    Message {
        /// The other side.
        peer: u16,
        /// What is wrong.
        what: String,
    },
    /// The two shares sign together no more.
    #[error(
        "share {peer} has given an answer that does not fit what the two shares have in common ({why}); they sign \
         together no more until both are renewed"
    )]
    Banned {
        /// The other side.
        peer: u16,
        /// What it did.
        why: String,
    },
    /// Something of our own.
    #[error("{0}")]
    Own(String),
}

/// One share of a key, and what it signs with another one elsewhere.
pub struct EcdsaShare {
    party: Party,
    address: Address,
    group: Point,
    identifier: u16,
    verifying_shares: [Point; SHARES],
    bans: Arc<dyn Bans>,
}

impl EcdsaShare {
    /// A share that fits its own public part.
    ///
    /// # Errors
    /// [`OpenError::Corrupt`] where it does not.
    pub fn open(share: &KeyShare<keystore::Secp256k1>, bans: Arc<dyn Bans>) -> Result<Self, OpenError> {
        let corrupt = || OpenError::Corrupt(share.origin().to_owned());
        let address = share::address_of(&share.group()).ok_or_else(corrupt)?;
        let party = share::from_file(share).ok_or_else(corrupt)?;
        let (group, identifier) = (share.group(), share.identifier());
        Ok(Self { party, address, group, identifier, verifying_shares: share.verifying_shares, bans })
    }

    /// The group's address.
    #[must_use]
    pub const fn address(&self) -> Address {
        self.address
    }

    /// The group's public key.
    #[must_use]
    pub const fn group(&self) -> Point {
        self.group
    }

    /// Which share this is.
    #[must_use]
    pub const fn identifier(&self) -> u16 {
        self.identifier
    }

    /// The public parts of the key's shares.
    #[must_use]
    pub const fn verifying_shares(&self) -> [Point; SHARES] {
        self.verifying_shares
    }

    /// Begins a session with the share `peer`, as the side that ends with the signature.
    ///
    /// # Errors
    /// [`PairError`] where `peer` is banned or no other share of the key.
    pub fn begin(self: &Arc<Self>, peer: u16, digest: DigestToSign) -> Result<(First, Opening), PairError> {
        self.may_sign_with(peer)?;
        let opening = random().map_err(|fault| PairError::Own(fault.what))?;
        Ok((First { share: Arc::clone(self), peer, digest, opening }, opening))
    }

    /// Answers a session that the share `peer` has begun.
    ///
    /// # Errors
    /// As [`Self::begin`].
    pub fn answer(
        self: &Arc<Self>,
        peer: u16,
        digest: &DigestToSign,
        theirs: &Opening,
    ) -> Result<(Second, Vec<u8>), PairError> {
        self.may_sign_with(peer)?;
        let own = random().map_err(|fault| PairError::Own(fault.what))?;
        let session = Session::new(self, peer, digest.digest(), theirs, &own)?;
        let (kept, message) = session.phase1()?;
        let mut answer = own.to_vec();
        answer.extend(session.seal(2, &message)?);
        Ok((Second { session, kept }, answer))
    }

    fn may_sign_with(&self, peer: u16) -> Result<(), PairError> {
        if !(1..=SHARES).contains(&usize::from(peer)) || peer == self.identifier {
            return Err(PairError::Own(format!("share {} cannot sign with share {peer}", self.identifier)));
        }
        self.bans.banned(peer).map_or(Ok(()), |why| Err(PairError::Banned { peer, why }))
    }
}

impl std::fmt::Debug for EcdsaShare {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "EcdsaShare({} of {})", self.identifier, self.address)
    }
}

/// The first side, which has sent its opening.
pub struct First {
    share: Arc<EcdsaShare>,
    peer: u16,
    digest: DigestToSign,
    opening: Opening,
}

impl First {
    /// Takes the answer and makes the reply.
    ///
    /// # Errors
    /// [`PairError`].
    pub fn reply(self, answer: &[u8]) -> Result<(FirstEnd, Vec<u8>), PairError> {
        let short = || PairError::Message { peer: self.peer, what: "it is too short".to_owned() };
        let (theirs, sealed) = answer.split_first_chunk::<32>().ok_or_else(short)?;
        let session = Session::new(&self.share, self.peer, self.digest.digest(), &self.opening, theirs)?;
        let their_phase1: TransmitPhase1to2 = session.open(2, sealed)?;
        let (kept, phase1) = session.phase1()?;
        let (kept, phase2) = session.phase2(kept, their_phase1)?;
        let reply = session.seal(3, &(phase1, phase2))?;
        Ok((FirstEnd { session, kept }, reply))
    }
}

/// The first side, which has sent its reply.
pub struct FirstEnd {
    session: Session,
    kept: Kept2,
}

impl FirstEnd {
    /// Takes the end and makes the signature of it.
    ///
    /// # Errors
    /// [`PairError`].
    pub fn finish(self, end: &[u8]) -> Result<EvmSignature, PairError> {
        let Self { session, kept } = self;
        let (phase2, theirs): (TransmitPhase2to3<Secp256k1>, Broadcast3to4<Secp256k1>) = session.open(4, end)?;
        let (x, own) = session.phase3(kept, phase2)?;
        session.phase4(&x, &[own, theirs])
    }
}

/// The second side, which has sent its answer.
pub struct Second {
    session: Session,
    kept: Kept1,
}

impl Second {
    /// Takes the reply and makes the end: this share's part of the signature is in it.
    ///
    /// # Errors
    /// [`PairError`].
    pub fn finish(self, reply: &[u8]) -> Result<Vec<u8>, PairError> {
        let Self { session, kept } = self;
        let (phase1, their_phase2): (TransmitPhase1to2, TransmitPhase2to3<Secp256k1>) = session.open(3, reply)?;
        let (kept, phase2) = session.phase2(kept, phase1)?;
        let (_, part) = session.phase3(kept, their_phase2)?;
        session.seal(4, &(phase2, part))
    }
}

type Kept1 = (UniqueKeep1to2<Secp256k1>, BTreeMap<PartyIndex, KeepPhase1to2<Secp256k1>>);
type Kept2 = (UniqueKeep2to3<Secp256k1>, BTreeMap<PartyIndex, KeepPhase2to3<Secp256k1>>);

/// What both sides know of one signature.
struct Session {
    share: Arc<EcdsaShare>,
    peer: u16,
    data: SignData,
    seal: XChaCha20Poly1305,
}

impl Session {
    fn new(
        share: &Arc<EcdsaShare>,
        peer: u16,
        digest: &B256,
        first: &Opening,
        second: &Opening,
    ) -> Result<Self, PairError> {
        let own = |what: &str| PairError::Own(what.to_owned());
        let counterparty = u8::try_from(peer).ok().and_then(|index| PartyIndex::new(index).ok());
        let counterparty = counterparty.ok_or_else(|| own("no such share"))?;
        let name = Sha256::new().chain_update(SESSION_LABEL).chain_update(first).chain_update(second).finalize();
        let seeds = &share.party.zero_share.seeds;
        let common = seeds.iter().find(|pair| pair.index_counterparty == counterparty);
        let common = common.ok_or_else(|| own("the share has nothing in common with that one"))?;
        let key: [u8; 32] = Sha256::new()
            .chain_update(SEAL_LABEL)
            .chain_update(common.seed)
            .chain_update(share.group.0)
            .chain_update(name)
            .chain_update(digest.0)
            .finalize()
            .into();
        let key = Zeroizing::new(key);
        let seal = XChaCha20Poly1305::new(chacha20poly1305::Key::from_slice(key.as_ref()));
        let data = SignData { sign_id: name.to_vec(), counterparties: vec![counterparty], message_hash: digest.0 };
        Ok(Self { share: Arc::clone(share), peer, data, seal })
    }

    fn phase1(&self) -> Result<(Kept1, TransmitPhase1to2), PairError> {
        let (unique, kept, mut sent) =
            self.share.party.sign_phase1(&self.data).map_err(|abort| self.failed(abort.into()))?;
        let sent = sent.pop().ok_or_else(|| PairError::Own("phase 1 has no message".to_owned()))?;
        Ok(((unique, kept), sent))
    }

    fn phase2(
        &self,
        (unique, kept): Kept1,
        theirs: TransmitPhase1to2,
    ) -> Result<(Kept2, TransmitPhase2to3<Secp256k1>), PairError> {
        let moved = self.share.party.sign_phase2(&self.data, unique, kept, &[theirs]);
        let (unique, kept, mut sent) = moved.map_err(|abort| self.failed(abort.into()))?;
        let sent = sent.pop().ok_or_else(|| PairError::Own("phase 2 has no message".to_owned()))?;
        Ok(((unique, kept), sent))
    }

    fn phase3(
        &self,
        (unique, kept): Kept2,
        theirs: TransmitPhase2to3<Secp256k1>,
    ) -> Result<(String, Broadcast3to4<Secp256k1>), PairError> {
        let moved = self.share.party.sign_phase3(&self.data, unique, kept, &[theirs]);
        moved.map_err(|abort| self.failed(abort.into()))
    }

    fn phase4(&self, x: &str, parts: &[Broadcast3to4<Secp256k1>]) -> Result<EvmSignature, PairError> {
        let made = self.share.party.sign_phase4(&self.data, x, parts, true);
        let (s, recovery) = made.map_err(|abort| self.failed(abort.into()))?;
        let text = format!("0x{x}{s}{:02x}", V_MIN.saturating_add(recovery));
        let digest = B256(self.data.message_hash);
        let signature = text.parse().ok().filter(|made| signature::signer(&digest, made) == Some(self.share.address));
        signature.ok_or_else(|| self.wrong("the signature is not valid by the rules of the contract"))
    }

    /// What is sent is bound to the session's name (by the key), to its place and to who sends it.
    fn associated(&self, place: u8, sender: u16) -> [u8; 3] {
        let [low, high] = sender.to_le_bytes();
        [place, low, high]
    }

    fn seal<T: Serialize>(&self, place: u8, message: &T) -> Result<Vec<u8>, PairError> {
        let own = |what: &str| PairError::Own(format!("a message cannot be sealed: {what}"));
        // At its full length from the start: a buffer that grows would leave parts of it behind.
        let mut plain = Zeroizing::new(vec![0; MESSAGE_BYTES_MAX]);
        let used = postcard::to_slice(message, &mut plain).map_err(|_| own("it is too long"))?.len();
        let mut nonce = [0; NONCE_BYTES];
        getrandom::fill(&mut nonce).map_err(|error| own(&error.to_string()))?;
        let aad = self.associated(place, self.share.identifier);
        let payload = Payload { msg: plain.get(..used).unwrap_or_default(), aad: &aad };
        let sealed = self.seal.encrypt(XNonce::from_slice(&nonce), payload).map_err(|_| own("the cipher refused"))?;
        let mut message = nonce.to_vec();
        message.extend(sealed);
        Ok(message)
    }

    fn open<T: DeserializeOwned>(&self, place: u8, sealed: &[u8]) -> Result<T, PairError> {
        let known = Some(sealed).filter(|bytes| bytes.len() <= MESSAGE_BYTES_MAX);
        let (nonce, sealed) = known
            .and_then(|bytes| bytes.split_first_chunk::<NONCE_BYTES>())
            .ok_or_else(|| self.wrong("it has not the length of a message"))?;
        let aad = self.associated(place, self.peer);
        let payload = Payload { msg: sealed, aad: &aad };
        let plain = self
            .seal
            .decrypt(XNonce::from_slice(nonce), payload)
            .map(Zeroizing::new)
            .map_err(|_| self.wrong("its seal is broken, or it belongs elsewhere"))?;
        postcard::from_bytes(&plain).map_err(|_| self.wrong("it cannot be read"))
    }

    fn wrong(&self, what: &str) -> PairError {
        PairError::Message { peer: self.peer, what: what.to_owned() }
    }

    /// A failure of the protocol. One that is lasting ends what the two shares sign together, here and now.
    fn failed(&self, fault: Fault) -> PairError {
        if fault.lasting {
            self.share.bans.ban(self.peer, &fault.what);
            return PairError::Banned { peer: self.peer, why: fault.what };
        }
        self.wrong(&fault.what)
    }
}

#[cfg(test)]
mod tests;
