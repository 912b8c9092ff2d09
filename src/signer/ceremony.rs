//! Ceremonies: how three participants make, renew and replace the shares of a key that no one of them ever holds.
//!
//! Owns the words that both curves share: [`Kind`], [`Setup`], [`Fault`], the trait [`Rounds`] that a curve's protocol
//! implements, and [`Machine`], a participant's side of a ceremony without any IO. Below it: [`card`] (who takes part, and
//! the code that the operators compare), [`letter`] (messages that any courier may carry) and [`desk`] (a participant's side
//! on its disk). Promises: no share comes out before every pair of the new shares has signed a test message, and before
//! every participant has seen the same public messages; who broke the protocol is named where the protocol can tell. Refuses
//! to go on after a fault: the ceremony is begun again, and nothing of it is used.
//!
//! What the ceremonies are built of and what they do not give: `docs/decisions/0012-ceremonies.md`.

pub mod card;
pub mod desk;
pub mod letter;
mod machine;

use std::collections::BTreeMap;
use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

pub use self::machine::{Machine, Messages, Next, play};

use super::keystore::{Curve, KeyShare, SHARES};

/// The participants of every ceremony, by the identifiers of their shares.
pub const PARTICIPANTS: [u16; SHARES] = [1, 2, 3];
/// The pairs of participants, each of which signs a test message.
pub const PAIRS: [(u16, u16); 3] = [(1, 2), (1, 3), (2, 3)];
/// The longest message of one participant to another. The longest that is sent has 148,000 bytes: the proofs of
/// 256 oblivious transfers.
pub const MESSAGE_BYTES_MAX: usize = 256 * 1024;

/// What a quorum signs at the end of a ceremony begins so, as no transaction, voucher or signed structure does.
const TEST_LABEL: &[u8] = b"\xffturnpike ceremony: these shares sign together\0";

/// What is done with a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A new key is made.
    Generate,
    /// The shares of a key are made anew; the key stays.
    Refresh,
    /// The share of one participant is lost, or its holder is to be another: the other two give it a share, and all three are
    /// made anew. The key stays.
    Replace(u16),
}

impl Kind {
    /// Whether this participant brings a share of the key.
    #[must_use]
    pub fn needs_share(self, participant: u16) -> bool {
        match self {
            Self::Generate => false,
            Self::Refresh => true,
            Self::Replace(lost) => lost != participant,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Generate => f.write_str("generate a key"),
            Self::Refresh => f.write_str("refresh the shares"),
            Self::Replace(lost) => write!(f, "replace share {lost}"),
        }
    }
}

/// The public part of a key's shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(bound = "")]
pub struct PublicShares<C: Curve> {
    /// The group's public key.
    pub group: C::Point,
    /// The public part of each share, in the order of their identifiers.
    pub verifying_shares: [C::Point; SHARES],
    /// How often the shares were made: 1 for those of a new key, one more after each refresh.
    pub generation: u32,
}

impl<C: Curve> PublicShares<C> {
    /// The public part of the key that a share belongs to.
    #[must_use]
    pub const fn of(share: &KeyShare<C>) -> Self {
        Self { group: share.group, verifying_shares: share.verifying_shares, generation: share.generation }
    }
}

/// What a participant and the others have agreed on before the first round.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(bound = "")]
pub struct Setup<C: Curve> {
    /// The ceremony's name: no other has it, as every participant has a part in it.
    pub session: [u8; 32],
    /// What is done.
    pub kind: Kind,
    /// Which participant this is.
    pub me: u16,
    /// The shares that are renewed; `None` where a key is made.
    pub old: Option<PublicShares<C>>,
    /// Whether the keys are thrown away: no signer takes the shares of a rehearsal.
    pub rehearsal: bool,
}

impl<C: Curve> Setup<C> {
    /// The other two participants.
    pub fn others(&self) -> impl Iterator<Item = u16> + use<C> {
        let me = self.me;
        PARTICIPANTS.into_iter().filter(move |participant| *participant != me)
    }

    /// The generation of the shares that this ceremony makes.
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.old.map_or(1, |old| old.generation.saturating_add(1))
    }

    /// The test message of this ceremony.
    #[must_use]
    pub fn test_message(&self) -> Vec<u8> {
        [TEST_LABEL, &self.session].concat()
    }
}

/// Why a ceremony came to no end: it is begun again, and nothing of it is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Who may be at fault; empty where the protocol cannot tell.
    pub who: Vec<u16>,
    /// What happened.
    pub what: String,
}

impl Fault {
    /// A fault of one participant.
    pub fn of(who: u16, what: impl fmt::Display) -> Self {
        Self { who: vec![who], what: what.to_string() }
    }

    /// A fault of one of several.
    pub fn among(who: &[u16], what: impl fmt::Display) -> Self {
        let mut who = who.to_vec();
        who.sort_unstable();
        Self { who, what: what.to_string() }
    }

    /// A fault of which the protocol does not tell whose it is.
    pub fn somewhere(what: impl fmt::Display) -> Self {
        Self { who: Vec::new(), what: what.to_string() }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let who: Vec<String> = self.who.iter().map(u16::to_string).collect();
        match who.as_slice() {
            [] => write!(f, "{} (the protocol cannot tell whose fault it is)", self.what),
            [one] => write!(f, "participant {one}: {}", self.what),
            several => write!(f, "participant {}: {}", several.join(" or "), self.what),
        }
    }
}

impl std::error::Error for Fault {}

/// What a participant says in a round: one thing to all, and something to each.
#[derive(Default)]
pub struct Outgoing {
    /// The same for both others, who compare it.
    pub to_all: Vec<u8>,
    /// For one participant's eyes.
    pub to: BTreeMap<u16, Zeroizing<Vec<u8>>>,
}

/// What the other two have said in a round, by who said it.
#[derive(Default)]
pub struct Heard {
    /// What each has said to all.
    pub to_all: BTreeMap<u16, Vec<u8>>,
    /// What each has said to this participant alone.
    pub to_me: BTreeMap<u16, Zeroizing<Vec<u8>>>,
}

impl Heard {
    /// What a participant has said to all, read as a `T`.
    ///
    /// # Errors
    /// A [`Fault`] of that participant.
    pub fn public<T: DeserializeOwned>(&self, from: u16) -> Result<T, Fault> {
        let bytes = self.to_all.get(&from).map_or(&[][..], Vec::as_slice);
        decode(bytes).ok_or_else(|| Fault::of(from, "what it says to all is not what this round asks for"))
    }

    /// What a participant has said to this one alone, read as a `T`.
    ///
    /// # Errors
    /// A [`Fault`] of that participant.
    pub fn private<T: DeserializeOwned>(&self, from: u16) -> Result<T, Fault> {
        let bytes = self.to_me.get(&from).map_or(&[][..], |bytes| bytes.as_slice());
        decode(bytes).ok_or_else(|| Fault::of(from, "what it says to this participant is not what this round asks for"))
    }
}

/// What comes after a round.
pub enum Turn<R: Rounds> {
    /// Another round.
    Goes(R, Outgoing),
    /// A new share, with which every pair has signed.
    Made(KeyShare<R::Curve>),
}

/// One curve's protocol as a participant runs it: each state is used up by the round that follows it.
pub trait Rounds: Sized + Serialize + DeserializeOwned {
    /// The curve.
    type Curve: Curve;

    /// The first round. `share` is the participant's share of the key, where [`Kind::needs_share`].
    ///
    /// # Errors
    /// A [`Fault`] where the share does not fit the setup, or the library refuses.
    fn begin(setup: &Setup<Self::Curve>, share: Option<&KeyShare<Self::Curve>>) -> Result<(Self, Outgoing), Fault>;

    /// What follows when the others' messages of a round are there.
    ///
    /// # Errors
    /// A [`Fault`] where they do not fit the protocol.
    fn next(self, setup: &Setup<Self::Curve>, heard: Heard) -> Result<Turn<Self>, Fault>;
}

/// The bytes of a value that may be secret, in a buffer that never grew.
pub fn encode<T: Serialize>(value: &T) -> Result<Zeroizing<Vec<u8>>, Fault> {
    let failed = |error| Fault::somewhere(format!("a message of ours has no bytes: {error}"));
    let length = postcard::experimental::serialized_size(value).map_err(failed)?;
    let mut bytes = Zeroizing::new(vec![0; length]);
    postcard::to_slice(value, &mut bytes).map_err(failed)?;
    Ok(bytes)
}

/// The value whose bytes these are, all of them.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let (value, rest) = postcard::take_from_bytes(bytes).ok()?;
    rest.is_empty().then_some(value)
}

/// A share in the form in which a state keeps it.
#[derive(Serialize, Deserialize)]
#[serde(bound = "")]
pub(super) struct PackedShare<C: Curve> {
    public: PublicShares<C>,
    identifier: u16,
    secret: Zeroizing<Vec<u8>>,
    rehearsal: bool,
}

impl<C: Curve> PackedShare<C> {
    /// Packs a share.
    pub(super) fn pack(mut share: KeyShare<C>) -> Self {
        let public = PublicShares::of(&share);
        let secret = std::mem::take(&mut share.secret);
        Self { public, identifier: share.identifier, secret, rehearsal: share.rehearsal }
    }

    /// The share again. `origin` says for messages where it came from.
    pub(super) fn unpack(self, origin: String) -> KeyShare<C> {
        let Self { public, identifier, secret, rehearsal } = self;
        let PublicShares { group, verifying_shares, generation } = public;
        KeyShare { group, identifier, verifying_shares, generation, rehearsal, secret, origin }
    }
}
