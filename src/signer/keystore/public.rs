//! What a share file says in the clear: for `turnpike key show` and for who needs no secret.
//!
//! Nothing of it is proved before the passphrase opens the file: the clear fields are bound to the secret part.

use std::path::Path;

use super::file::read_text;
use super::{Curve, Ed25519, FILE_BYTES_MAX, KeystoreError, SHARES, Secp256k1, ShareFile, parse};

/// The clear fields of a share file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicPart<C: Curve> {
    /// The group's public key.
    pub group: C::Point,
    /// Which share it is.
    pub identifier: u16,
    /// The public part of each share.
    pub verifying_shares: [C::Point; SHARES],
    /// How often the key's shares were made.
    pub generation: u32,
    /// Whether it is of a rehearsal.
    pub rehearsal: bool,
}

/// The clear fields of a share file on one of the curves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AnyPublicPart {
    /// On Solana's curve.
    Ed25519(PublicPart<Ed25519>),
    /// On that of the EVM chains.
    Secp256k1(PublicPart<Secp256k1>),
}

/// Reads the clear fields of a share file, without its passphrase.
///
/// # Errors
/// [`KeystoreError`], which names the file and what to do.
pub fn peek(path: &Path) -> Result<AnyPublicPart, KeystoreError> {
    let text = read_text(path, FILE_BYTES_MAX)?;
    match parse::<Ed25519>(path, &text) {
        Ok(file) => Ok(AnyPublicPart::Ed25519(file.public_part())),
        Err(KeystoreError::WrongCurve { .. }) => {
            Ok(AnyPublicPart::Secp256k1(parse::<Secp256k1>(path, &text)?.public_part()))
        }
        Err(error) => Err(error),
    }
}

/// [`peek`] at a share of a key on the curve `C`.
///
/// # Errors
/// As [`peek`].
pub fn public_part<C: Curve>(path: &Path) -> Result<PublicPart<C>, KeystoreError> {
    Ok(parse::<C>(path, &read_text(path, FILE_BYTES_MAX)?)?.public_part())
}

impl<C: Curve> ShareFile<C> {
    fn public_part(self) -> PublicPart<C> {
        let rehearsal = self.is_of_rehearsal();
        let (generation, Self { group, identifier, verifying_shares, .. }) = (self.generation(), self);
        PublicPart { group, identifier, verifying_shares, generation, rehearsal }
    }
}
