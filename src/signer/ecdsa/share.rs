//! A share as the library has it, and as a share file does.
//!
//! The secret part is the library's own value in postcard; its layout is a matter of the library's release, and committed
//! share files hold it fixed. Promises: a share that does not fit the public part beside it is refused; what was secret is
//! wiped when it is dropped.

use k256::elliptic_curve::sec1::{FromSec1Point, Sec1Point, ToSec1Point};
use k256::{AffinePoint, ProjectivePoint, Secp256k1};
use zeroize::Zeroizing;

use super::rounds::{PARTIES, Party, Public};
use crate::signer::keystore::{self, Curve, KeyShare, Point, SHARES};
use crate::signer::quorum::SIGNERS_MIN;
use crate::x402::evm::{Address, keccak256};

/// The address of a key; `None` where the bytes are no point of the curve.
pub(super) fn address_of(key: &Point) -> Option<Address> {
    let hash = keccak256(affine(key)?.to_sec1_point(false).as_bytes().get(1..)?);
    Some(Address(*hash.0.last_chunk()?))
}

/// A public point as the library takes it; `None` where the bytes are no point of the curve.
pub(super) fn affine(point: &Point) -> Option<AffinePoint> {
    let encoded = Sec1Point::<Secp256k1>::from_bytes(point.0).ok()?;
    Option::from(AffinePoint::from_sec1_point(&encoded))
}

/// A new share, to be written to its file; the first of its key, where nobody says otherwise.
pub(super) fn to_file(party: &Party, public: &Public) -> Option<KeyShare<keystore::Secp256k1>> {
    let identifier = u16::from(party.party_index.as_u8());
    let verifying = PARTIES.map(|number| public.verifying_share(number.try_into().ok()?).and_then(point));
    let verifying: Option<Vec<Point>> = verifying.into_iter().collect();
    // At its full length from the start: a buffer that grows would leave parts of the secret behind.
    let mut secret = Zeroizing::new(vec![0; *keystore::Secp256k1::SECRET_BYTES.end()]);
    let used = postcard::to_slice(party, &mut secret).ok()?.len();
    secret.truncate(used);
    Some(KeyShare {
        group: point(public.verifying_key())?,
        identifier,
        verifying_shares: verifying?.try_into().ok()?,
        generation: 1,
        rehearsal: false,
        secret,
        origin: format!("the new share {identifier}"),
    })
}

/// The share as the library takes it, where it fits its own public part.
pub(super) fn from_file(share: &KeyShare<keystore::Secp256k1>) -> Option<Party> {
    let party: Party = postcard::from_bytes(&share.secret).ok()?;
    let position = usize::from(share.identifier()).checked_sub(1)?;
    let said = share.verifying_shares.get(position)?;
    let fits = u16::from(party.party_index.as_u8()) == share.identifier()
        && u16::from(party.parameters.threshold) == SIGNERS_MIN
        && usize::from(party.parameters.share_count) == SHARES
        && point(&party.pk)? == share.group()
        && point(&(ProjectivePoint::GENERATOR * party.poly_point).to_affine())? == *said;
    fits.then_some(party)
}

fn point(point: &AffinePoint) -> Option<Point> {
    point.to_sec1_point(true).as_bytes().try_into().ok().map(Point)
}
