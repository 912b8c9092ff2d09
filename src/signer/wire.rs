//! What a coordinator and a cosigner say to each other.
//!
//! Every exchange is a [`Call`]: a `POST` of one JSON object to the call's path, answered by a [`Reply`]. The paths begin
//! with the version. A message has exactly the members that its type has, and no more than [`BODY_BYTES_MAX`]. A request
//! to sign is always the whole structured request: nowhere is there a place for a digest or for bytes to be signed.
//!
//! Other services of the same machines, such as the ceremonies of key generation, bring calls of their own.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::frost::signing::{Commitment, SignaturePart};
use super::keystore::{Curve, Ed25519, SHARES, Secp256k1};
use crate::policy::{EvmRequest, SigningRequest};
use crate::x402::Network;
use crate::x402::evm::EvmSignature;

/// The longest body of a request or an answer: a batch of a hundred claims has about 100 KB, a sealed message of DKLs23
/// 110 KB.
pub const BODY_BYTES_MAX: usize = 512 * 1024;
/// For how long a cosigner keeps what it has begun: nonces that are not used by then are gone.
pub const SESSION_LIFE: Duration = Duration::from_secs(30);

/// The header of every answer that names the run of the cosigner which gives it. After a restart what it has said of itself
/// may hold no more: its share may be one of another generation.
pub const INSTANCE: &str = "turnpike-instance";

/// One kind of exchange.
pub trait Call: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// Where it is posted.
    const PATH: &'static str;
    /// What is answered where it is done.
    type Answer: Serialize + DeserializeOwned + Send + 'static;
}

/// What a cosigner answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Reply<T> {
    /// It is done.
    Done(T),
    /// The cosigner's policy forbids it.
    Refused {
        /// The rule's stable name.
        rule: String,
        /// What was asked and what is allowed.
        detail: String,
    },
    /// It could not be done.
    Failed {
        /// Whose move it is.
        cause: Cause,
        /// What happened.
        what: String,
    },
}

/// Why something could not be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// What it refers to is used, unknown or expired: begin again.
    Stale,
    /// What the other share has sent is not right.
    Peer,
    /// The other share is banned.
    Banned,
    /// Too much is under way: wait.
    Busy,
    /// The request cannot be read, or is none that this cosigner knows.
    Malformed,
    /// Something of the cosigner's own: its disk, its share.
    Broken,
}

/// Who are you? Asked now and then, and before the first request.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hello {}

/// A cosigner and its shares.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Introduction {
    /// What it is called.
    pub name: String,
    /// Its share of the key for Solana networks.
    pub ed25519: Option<ShareOf<Ed25519>>,
    /// Its share of the key for EVM networks.
    pub secp256k1: Option<ShareOf<Secp256k1>>,
}

/// What is public of a share.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, bound = "")]
pub struct ShareOf<C: Curve> {
    /// The group's public key.
    pub group: C::Point,
    /// Which share it is: 1, 2 or 3.
    pub identifier: u16,
    /// The public part of each share of the key.
    pub verifying_shares: [C::Point; SHARES],
}

impl<C: Curve> ShareOf<C> {
    /// Whether the number is that of a share.
    #[must_use]
    pub fn is_one_of_three(&self) -> bool {
        (1..=SHARES).contains(&usize::from(self.identifier))
    }
}

impl<C: Curve> Clone for ShareOf<C> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<C: Curve> Copy for ShareOf<C> {}

impl Call for Hello {
    const PATH: &'static str = "/v1/hello";
    type Answer = Introduction;
}

/// FROST, round one.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Commit {}

/// What the share has committed to, for one signature within [`SESSION_LIFE`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Committed {
    /// The commitment.
    pub commitment: Commitment,
}

impl Call for Commit {
    const PATH: &'static str = "/v1/ed25519/commit";
    type Answer = Committed;
}

/// FROST, round two.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sign {
    /// The network that the request is for.
    pub network: Network,
    /// What is to be signed.
    pub request: SigningRequest,
    /// The commitments of the two shares that sign, the cosigner's own among them.
    pub commitments: BTreeMap<u16, Commitment>,
}

/// The share's part of the signature.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signed {
    /// The part.
    pub part: SignaturePart,
}

impl Call for Sign {
    const PATH: &'static str = "/v1/ed25519/sign";
    type Answer = Signed;
}

/// DKLs23, the first side's opening (`signer/ecdsa/pair.rs`).
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Begin {
    /// What is to be signed; it names its network itself.
    pub request: EvmRequest,
    /// The share to sign with.
    pub peer: u16,
}

impl Call for Begin {
    const PATH: &'static str = "/v1/secp256k1/begin";
    type Answer = Turn;
}

/// DKLs23, the second side's answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// What is to be signed; it names its network itself.
    pub request: EvmRequest,
    /// The share to sign with.
    pub peer: u16,
    /// What that has said.
    pub opening: Sealed,
}

impl Call for Answer {
    const PATH: &'static str = "/v1/secp256k1/answer";
    type Answer = Turn;
}

/// DKLs23, any later move of either side.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Continue {
    /// The session, as the cosigner has named it.
    pub session: String,
    /// What the other side has said.
    pub message: Sealed,
}

impl Call for Continue {
    const PATH: &'static str = "/v1/secp256k1/continue";
    type Answer = Turn;
}

/// One side's move.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Turn {
    /// For the other side.
    Message {
        /// The session, for this side's next move.
        session: String,
        /// What the other side is told.
        message: Sealed,
    },
    /// The second side's last move.
    End {
        /// What the first side is told.
        message: Sealed,
    },
    /// The first side's last move.
    Signature {
        /// What both have made.
        signature: EvmSignature,
    },
}

/// A message that only the other side can open; as base64 in JSON.
#[derive(Clone, PartialEq, Eq)]
pub struct Sealed(pub Vec<u8>);

impl std::fmt::Debug for Sealed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sealed({} bytes)", self.0.len())
    }
}

/// As base64 in JSON.
macro_rules! base64 {
    ($($name:ident),*) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&STANDARD.encode(&self.0))
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                STANDARD.decode(text.as_bytes()).map(Self).map_err(serde::de::Error::custom)
            }
        }
    )*};
}

base64!(Sealed, Commitment, SignaturePart);
