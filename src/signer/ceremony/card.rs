//! Who takes part in a ceremony: each participant's card, and the code that the operators compare.
//!
//! A card holds the keys by which its participant's messages are signed and sealed; they are made for one ceremony and gone
//! with it. A courier can exchange cards, so the operators compare the code of all three by voice before the first round: it is
//! the same for all only if all have the same cards. Refuses cards that are not of one ceremony.
//!
//! Format, version 1: one JSON object with the fields of [`Card`], bytes as standard base64, points as share files write them.
//! The ceremony's name (`session`) is the SHA-256 of `turnpike ceremony\0` and of the three cards in the order of the
//! participants, each as compact JSON with its length (u32, little endian) before it. The code is the SHA-256 of
//! `turnpike ceremony code\0` and the session, its first 160 bits in base32, in groups of four. 160 bits, because who stands
//! between the operators may try as many cards as he likes.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use super::{Fault, Kind, PARTICIPANTS, PublicShares};
use crate::signer::keystore::{Curve, SHARES};

/// The version of cards.
const VERSION: u32 = 1;
/// The largest card that is read.
pub const CARD_BYTES_MAX: u64 = 8 * 1024;
const CODE_BYTES: usize = 20;
/// Crockford's: no letter looks like another or like a digit.
const BASE32: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// A participant's card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Card {
    /// `1`.
    pub version: u32,
    /// What is done: `"generate"`, `"refresh"` or `{"replace": 3}`.
    pub ceremony: Kind,
    /// The curve of the key.
    pub curve: String,
    /// Whether the keys are thrown away.
    pub rehearsal: bool,
    /// Which participant it is.
    pub participant: u16,
    /// 32 bytes that no other card has.
    pub nonce: String,
    /// The key that signs its messages: Ed25519, 32 bytes.
    pub signing_key: String,
    /// The key that messages to it are sealed for: X25519, 32 bytes.
    pub sealing_key: String,
    /// The key whose share it holds, where it holds one.
    pub old: Option<OldKey>,
}

/// A key whose shares are renewed, as a card names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OldKey {
    /// The group's public key.
    pub group: String,
    /// The generation of the shares.
    pub generation: u32,
    /// The public part of each share.
    pub verifying_shares: [String; SHARES],
}

/// The secret side of a card. It cannot be printed or cloned, and is wiped when dropped.
#[derive(Serialize, Deserialize)]
pub struct Identity {
    signing: Zeroizing<[u8; 32]>,
    sealing: Zeroizing<[u8; 32]>,
}

impl Identity {
    /// New keys.
    ///
    /// # Errors
    /// Where the system gives no random bytes.
    pub fn generate() -> Result<Self, Fault> {
        let mut made = Self { signing: Zeroizing::new([0; 32]), sealing: Zeroizing::new([0; 32]) };
        getrandom::fill(made.signing.as_mut()).map_err(Fault::somewhere)?;
        getrandom::fill(made.sealing.as_mut()).map_err(Fault::somewhere)?;
        Ok(made)
    }

    pub(super) fn signing(&self) -> SigningKey {
        SigningKey::from_bytes(&self.signing)
    }

    pub(super) fn sealing(&self) -> StaticSecret {
        StaticSecret::from(*self.sealing)
    }

    /// The card of a participant with these keys.
    ///
    /// # Errors
    /// Where the system gives no random bytes.
    pub fn card<C: Curve>(
        &self,
        ceremony: Kind,
        participant: u16,
        rehearsal: bool,
        old: Option<PublicShares<C>>,
    ) -> Result<Card, Fault> {
        let mut nonce = [0; 32];
        getrandom::fill(&mut nonce).map_err(Fault::somewhere)?;
        Ok(Card {
            version: VERSION,
            ceremony,
            curve: C::NAME.to_owned(),
            rehearsal,
            participant,
            nonce: STANDARD.encode(nonce),
            signing_key: STANDARD.encode(self.signing().verifying_key()),
            sealing_key: STANDARD.encode(PublicKey::from(&self.sealing())),
            old: old.map(|old| OldKey {
                group: old.group.to_string(),
                generation: old.generation,
                verifying_shares: old.verifying_shares.map(|share| share.to_string()),
            }),
        })
    }
}

/// The cards of all three, which are of one ceremony.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cards([Card; SHARES]);

/// Why cards are not of one ceremony, or a file is no card.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CardError {
    /// Not a card.
    #[error("{file}: is not the card of participant {participant} ({what}); have that participant send it again")]
    NotACard {
        /// The file.
        file: String,
        /// Whose it should be.
        participant: u16,
        /// What is wrong.
        what: String,
    },
    /// Different ceremonies.
    #[error(
        "the card of participant {participant} has {what} {theirs}, that of this participant has {ours}: they are not of one \
         ceremony; agree on one, and begin again where it is wrong"
    )]
    Differs {
        /// Whose card.
        participant: u16,
        /// In what.
        what: &'static str,
        /// What theirs has.
        theirs: String,
        /// What ours has.
        ours: String,
    },
    /// A card of who was to bring a share, without one, or the other way round.
    #[error("the card of participant {0} does not name the key that this ceremony is about; have it begin again")]
    WrongKey(u16),
}

/// Reads the card of a participant.
///
/// # Errors
/// [`CardError::NotACard`], which names the file.
pub fn read(file: &Path, text: &str, participant: u16) -> Result<Card, CardError> {
    let not_a_card = |what: String| CardError::NotACard { file: file.display().to_string(), participant, what };
    let card: Card = serde_json::from_str(text).map_err(|error| not_a_card(error.to_string()))?;
    if card.version != VERSION {
        return Err(not_a_card(format!("its version is {}, this release reads {VERSION}", card.version)));
    }
    if card.participant != participant {
        return Err(not_a_card(format!("it is that of participant {}", card.participant)));
    }
    if card.signing_key().is_none() || card.sealing_key().is_none() || bytes(&card.nonce).is_none() {
        return Err(not_a_card("its keys are no keys".to_owned()));
    }
    Ok(card)
}

impl Card {
    pub(super) fn signing_key(&self) -> Option<VerifyingKey> {
        VerifyingKey::from_bytes(&bytes(&self.signing_key)?).ok().filter(|key| !key.is_weak())
    }

    pub(super) fn sealing_key(&self) -> Option<PublicKey> {
        bytes(&self.sealing_key).map(PublicKey::from)
    }

    fn old<C: Curve>(&self) -> Option<PublicShares<C>> {
        let old = self.old.as_ref()?;
        let point = |text: &String| serde_json::from_value::<C::Point>(serde_json::Value::from(text.as_str())).ok();
        let [first, second, third] = &old.verifying_shares;
        let verifying_shares = [point(first)?, point(second)?, point(third)?];
        Some(PublicShares { group: point(&old.group)?, verifying_shares, generation: old.generation })
    }
}

impl Cards {
    /// The cards of one ceremony, where they are that. `me` is whose words the others' are held against.
    ///
    /// # Errors
    /// [`CardError`], which names whose card does not fit.
    pub fn of_one_ceremony(cards: [Card; SHARES], me: u16) -> Result<Self, CardError> {
        let this = Self(cards);
        let Some(mine) = this.of(me) else { return Err(CardError::WrongKey(me)) };
        let named = |card: &Card| {
            card.old.as_ref().map(|old| (old.group.clone(), old.generation, old.verifying_shares.clone()))
        };
        let key = named(mine).or_else(|| this.0.iter().find_map(named));
        for (participant, card) in PARTICIPANTS.into_iter().zip(&this.0) {
            let differ = |what, theirs: String, ours: String| {
                if theirs == ours { Ok(()) } else { Err(CardError::Differs { participant, what, theirs, ours }) }
            };
            differ("the number", card.participant.to_string(), participant.to_string())?;
            differ("the purpose", card.ceremony.to_string(), mine.ceremony.to_string())?;
            differ("the curve", card.curve.clone(), mine.curve.clone())?;
            differ("as a rehearsal", card.rehearsal.to_string(), mine.rehearsal.to_string())?;
            let expected = if card.ceremony.needs_share(participant) { key.clone() } else { None };
            let missing = card.ceremony.needs_share(participant) && expected.is_none();
            if missing || named(card) != expected {
                return Err(CardError::WrongKey(participant));
            }
        }
        Ok(this)
    }

    /// A participant's card.
    #[must_use]
    pub fn of(&self, participant: u16) -> Option<&Card> {
        self.0.get(usize::from(participant).checked_sub(1)?)
    }

    /// The ceremony's name.
    #[must_use]
    pub fn session(&self) -> [u8; 32] {
        let mut hash = Sha256::new().chain_update(b"turnpike ceremony\0");
        for card in &self.0 {
            // A card is some short texts and numbers, which always have JSON.
            let text = serde_json::to_vec(card).unwrap_or_default();
            hash.update(u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes());
            hash.update(text);
        }
        hash.finalize().into()
    }

    /// The code that the operators compare.
    #[must_use]
    pub fn code(&self) -> String {
        let hash = Sha256::new().chain_update(b"turnpike ceremony code\0").chain_update(self.session()).finalize();
        let mut code = String::new();
        for (count, bits) in five_bits(&hash[..CODE_BYTES]).into_iter().enumerate() {
            if count > 0 && count.is_multiple_of(4) {
                code.push('-');
            }
            code.push(BASE32.get(usize::from(bits)).map_or('-', |letter| char::from(*letter)));
        }
        code
    }

    /// The key whose shares are renewed, by the cards; `None` where a key is made, or a point of it is none.
    #[must_use]
    pub fn old<C: Curve>(&self) -> Option<PublicShares<C>> {
        self.0.iter().find_map(Card::old)
    }
}

/// Whether an operator has typed this code: case, blanks and hyphens do not count.
#[must_use]
pub fn same_code(code: &str, typed: &str) -> bool {
    let plain =
        |text: &str| text.chars().filter(|c| !c.is_whitespace() && *c != '-').collect::<String>().to_lowercase();
    plain(code) == plain(typed)
}

fn five_bits(bytes: &[u8]) -> Vec<u8> {
    let bits: Vec<u8> = bytes.iter().flat_map(|byte| (0..8).rev().map(move |place| byte >> place & 1)).collect();
    bits.chunks(5).map(|five| five.iter().fold(0, |number, bit| number << 1 | bit)).collect()
}

fn bytes(text: &str) -> Option<[u8; 32]> {
    STANDARD.decode(text).ok()?.try_into().ok()
}
