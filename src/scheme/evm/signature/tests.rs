use proptest::prelude::*;
use secp256k1::ecdsa;

use super::*;
use crate::scheme::evm::testing::TestKey;

/// The curve's order.
const ORDER: [u8; 32] = B256::literal("0xfffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141").0;

/// `ORDER - number`, big-endian.
fn negated(number: [u8; 32]) -> [u8; 32] {
    let mut result = [0; 32];
    let mut borrow = 0;
    for place in (0..32).rev() {
        let difference = i16::from(ORDER[place]) - i16::from(number[place]) - borrow;
        borrow = i16::from(difference < 0);
        result[place] = difference.rem_euclid(256).try_into().unwrap();
    }
    result
}

/// The other signature that plain ECDSA accepts for the same key: `s` negated and `v` turned.
fn malleated(signature: EvmSignature) -> EvmSignature {
    let mut other = signature;
    other.0[32..64].copy_from_slice(&negated(signature.0[32..64].try_into().unwrap()));
    other.0[64] = 27 + 28 - signature.0[64];
    other
}

#[test]
fn the_address_of_a_known_key() {
    // The second development account of Ethereum's test nodes.
    let text = B256::literal("0x59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d");
    let key = TestKey::from_secret(text.0).unwrap();
    assert_eq!(key.address().to_string(), "0x70997970C51812dc3A010C7d01b50e0d17dc79C8");
}

#[test]
fn what_a_contract_refuses_is_refused() {
    let key = TestKey::new(7);
    let public = key.public();
    let digest = B256([9; 32]);
    let good = key.sign(&digest);
    assert_eq!(recover(&digest, &good), Some(public));

    type Change = fn(&mut EvmSignature);
    let table: &[(&str, Change)] = &[
        ("v of 0", |s| s.0[64] -= 27),
        ("v of 29", |s| s.0[64] = 29),
        ("v of 30", |s| s.0[64] = 30),
        ("v of EIP-155", |s| s.0[64] += 10),
        ("high s", |s| *s = malleated(*s)),
        ("high s, the same v", |s| {
            *s = EvmSignature([&malleated(*s).0[..64], &s.0[64..]].concat().try_into().unwrap())
        }),
        ("r of zero", |s| s.0[..32].fill(0)),
        ("s of zero", |s| s.0[32..64].fill(0)),
        ("r of the order", |s| s.0[..32].copy_from_slice(&ORDER)),
        ("s of the order", |s| s.0[32..64].copy_from_slice(&ORDER)),
        ("nothing", |s| s.0 = [0; 65]),
        ("all bits", |s| s.0 = [0xFF; 65]),
    ];
    for (name, change) in table {
        let mut bad = good;
        change(&mut bad);
        assert_eq!(recover(&digest, &bad), None, "{name}");
        assert_eq!(signer(&digest, &bad), None, "{name}");
    }
    // What plain verification would let pass, and a contract would take for somebody else's.
    let mut turned = good;
    turned.0[64] = 27 + 28 - turned.0[64];
    let compact = ecdsa::Signature::from_compact(&turned.0[..64]).unwrap();
    assert!(compact.verify(Message::from_digest(digest.0), &public).is_ok());
    assert!(recover(&digest, &turned).is_some_and(|other| other != public));
}

#[test]
fn s_may_be_half_the_order_and_no_more() {
    // `s` is an input of recovery only, so a signature with any `s` recovers some key.
    let digest = B256([9; 32]);
    let mut signature = TestKey::new(7).sign(&digest);
    signature.0[32..64].copy_from_slice(&S_MAX);
    assert!(recover(&digest, &signature).is_some());
    signature.0[63] += 1;
    assert_eq!(recover(&digest, &signature), None);
    assert_eq!(negated(S_MAX)[31], S_MAX[31] + 1, "the two halves meet there");
}

proptest! {
    /// Of all signatures that are near a key's own, that one alone is the key's: there is no second form of it.
    #[test]
    fn a_signature_has_one_form(
        secret in any::<[u8; 32]>(),
        digest in any::<[u8; 32]>(),
        flips in prop::collection::vec(0..520_usize, 0..3),
        malleate in any::<bool>(),
        random in prop::option::of(any::<[u8; 32]>()),
    ) {
        let Some(key) = TestKey::from_secret(secret) else { return Ok(()) };
        let (public, digest) = (key.public(), B256(digest));
        let good = key.sign(&digest);
        prop_assert_eq!(signer(&digest, &good), Some(address_of(&public)));
        let mut other = if malleate { malleated(good) } else { good };
        for flip in flips {
            other.0[flip / 8] ^= 1 << (flip % 8);
        }
        if let Some(random) = random {
            other.0[..32].copy_from_slice(&random);
        }
        let recovered = recover(&digest, &other);
        prop_assert_eq!(signer(&digest, &other), recovered.map(|key| address_of(&key)));
        prop_assert_eq!(other == good, recovered == Some(public));
        let by_key = signed_by(&address_of(&public), &digest, &other.into()) == Signed::ByKey;
        prop_assert_eq!(by_key, other == good);
    }
}
