//! Ed25519 signatures by the chain's rules (invariant L4), at the price of the plain check.
//!
//! The chain refuses what `verify_strict` refuses: an `s` that is not canonical, and a key or an `R` of small order.
//! That function decompresses `R` to know its order. But a signature passes only if `R` is, byte by byte, the canonical
//! encoding of a point that is computed anyway, and eight canonical encodings are of small order; so it is enough not to
//! be one of them. Keys that sign often are kept decompressed, their order known; a memory that changes no outcome.

use ed25519_dalek::{Verifier, VerifyingKey};

use crate::x402::Key;
use crate::x402::key::Signature;
use crate::x402::recent::{Recent, recent};

thread_local! {
    /// A quarter of a kilobyte each.
    static KEPT: Recent<32, VerifyingKey> = const { Recent::new(1024) };
}

/// Whether `signature` over `message` verifies under `key` by the rules of the chain.
#[must_use]
pub fn verify_strict(key: &Key, message: &[u8], signature: &Signature) -> bool {
    let [r, _] = signature.0.as_chunks::<32>().0 else { return false };
    if SMALL_ORDER.contains(r) {
        return false;
    }
    decompressed(key)
        .is_some_and(|key| key.verify(message, &ed25519_dalek::Signature::from_bytes(&signature.0)).is_ok())
}

/// A key that can sign at all: a point, and not of small order.
fn decompressed(key: &Key) -> Option<VerifyingKey> {
    recent(&KEPT, &key.0, || VerifyingKey::from_bytes(&key.0).ok().filter(|key| !key.is_weak()))
}

/// The canonical encodings of the points whose order divides eight.
const SMALL_ORDER: [[u8; 32]; 8] = [
    with_ends([0x00; 32], 0x01, 0x00),
    with_ends([0xff; 32], 0xec, 0x7f),
    with_ends([0x00; 32], 0x00, 0x00),
    with_ends([0x00; 32], 0x00, 0x80),
    with_ends(EIGHTH, 0x26, 0x05),
    with_ends(EIGHTH, 0x26, 0x85),
    with_ends(OTHER_EIGHTH, 0xc7, 0x7a),
    with_ends(OTHER_EIGHTH, 0xc7, 0xfa),
];
const EIGHTH: [u8; 32] = [
    0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef, 0x98, 0xf0, 0xd5, 0xdf, 0xac,
    0x05, 0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88, 0x6d, 0x53, 0xfc, 0x05,
];
const OTHER_EIGHTH: [u8; 32] = [
    0xc7, 0x17, 0x6a, 0x70, 0x3d, 0x4d, 0xd8, 0x4f, 0xba, 0x3c, 0x0b, 0x76, 0x0d, 0x10, 0x67, 0x0f, 0x2a, 0x20, 0x53,
    0xfa, 0x2c, 0x39, 0xcc, 0xc6, 0x4e, 0xc7, 0xfd, 0x77, 0x92, 0xac, 0x03, 0x7a,
];

const fn with_ends(mut bytes: [u8; 32], first: u8, last: u8) -> [u8; 32] {
    bytes[0] = first;
    bytes[31] = last;
    bytes
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use ed25519_dalek::{Signer, SigningKey};
    use proptest::prelude::*;

    use super::*;

    /// What the chain's own check says.
    fn by_the_book(key: &Key, message: &[u8], signature: &Signature) -> bool {
        VerifyingKey::from_bytes(&key.0)
            .is_ok_and(|key| key.verify_strict(message, &ed25519_dalek::Signature::from_bytes(&signature.0)).is_ok())
    }

    #[test]
    fn the_eight_points_are_of_small_order_and_are_all() {
        let keys: HashSet<_> =
            SMALL_ORDER.iter().filter(|bytes| VerifyingKey::from_bytes(bytes).unwrap().is_weak()).collect();
        // The curve's cofactor is eight, so there are no more.
        assert_eq!(keys.len(), 8);
    }

    /// With `s` of zero, `R` must be minus `k` times the key: every pair of points of small order is a candidate that
    /// the plain check takes for some messages.
    #[test]
    fn nothing_of_small_order_passes() {
        let mut plain = 0;
        for key in SMALL_ORDER {
            for r in SMALL_ORDER {
                for message in 0..=64_u8 {
                    let mut signature = Signature([0; 64]);
                    signature.0[..32].copy_from_slice(&r);
                    assert!(!verify_strict(&Key(key), &[message], &signature));
                    let key = VerifyingKey::from_bytes(&key).unwrap();
                    let signature = ed25519_dalek::Signature::from_bytes(&signature.0);
                    plain += u32::from(key.verify(&[message], &signature).is_ok());
                }
            }
        }
        assert!(plain > 0, "the plain check accepts some of them");
    }

    proptest! {
        #[test]
        fn it_says_what_the_chains_check_says(
            seed in any::<[u8; 32]>(),
            message in any::<[u8; 50]>(),
            mend in prop_oneof![Just(None), (0..96_usize, 1..=255_u8).prop_map(Some)],
            r in prop_oneof![4 => Just(None), 1 => (0..8_usize).prop_map(Some)],
        ) {
            let signer = SigningKey::from_bytes(&seed);
            let mut key = Key(signer.verifying_key().to_bytes());
            let mut signature = Signature(signer.sign(&message).to_bytes());
            if let Some(which) = r {
                signature.0[..32].copy_from_slice(&SMALL_ORDER[which]);
            }
            match mend {
                Some((at, by)) if at < 64 => signature.0[at] ^= by,
                Some((at, by)) => key.0[at - 64] ^= by,
                None => {}
            }
            let expected = by_the_book(&key, &message, &signature);
            prop_assert_eq!(expected, mend.is_none() && r.is_none());
            // A second time the key is remembered.
            prop_assert_eq!(verify_strict(&key, &message, &signature), expected);
            prop_assert_eq!(verify_strict(&key, &message, &signature), expected);
        }
    }
}
