use proptest::prelude::*;
use secp256k1::{SecretKey, ecdsa};

use super::*;

/// The curve's order.
const ORDER: [u8; 32] = B256::literal("0xfffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141").0;

fn sign(key: &SecretKey, digest: &B256) -> EvmSignature {
    let (id, compact) =
        RecoverableSignature::sign_ecdsa_recoverable(Message::from_digest(digest.0), key).serialize_compact();
    let mut signature = [0; 65];
    signature[..64].copy_from_slice(&compact);
    signature[64] = 27 + id.to_u8();
    EvmSignature(signature)
}

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
    let key = PublicKey::from_secret_key(&SecretKey::from_secret_bytes(text.0).unwrap());
    assert_eq!(address_of(&key).to_string(), "0x70997970C51812dc3A010C7d01b50e0d17dc79C8");
}

#[test]
fn what_a_contract_refuses_is_refused() {
    let key = SecretKey::from_secret_bytes([7; 32]).unwrap();
    let public = PublicKey::from_secret_key(&key);
    let digest = B256([9; 32]);
    let good = sign(&key, &digest);
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
        assert!(!verify_remembered(&digest, &bad, &public), "{name}");
    }
    // What plain verification would let pass, and a contract would take for somebody else's.
    let mut turned = good;
    turned.0[64] = 27 + 28 - turned.0[64];
    let compact = ecdsa::Signature::from_compact(&turned.0[..64]).unwrap();
    assert!(compact.verify(Message::from_digest(digest.0), &public).is_ok());
    assert!(recover(&digest, &turned).is_some_and(|other| other != public));
    assert!(!verify_remembered(&digest, &turned, &public));
}

#[test]
fn s_may_be_half_the_order_and_no_more() {
    // `s` is an input of recovery only, so a signature with any `s` recovers some key.
    let digest = B256([9; 32]);
    let mut signature = sign(&SecretKey::from_secret_bytes([7; 32]).unwrap(), &digest);
    signature.0[32..64].copy_from_slice(&S_MAX);
    assert!(recover(&digest, &signature).is_some());
    signature.0[63] += 1;
    assert_eq!(recover(&digest, &signature), None);
    assert_eq!(negated(S_MAX)[31], S_MAX[31] + 1, "the two halves meet there");
}

proptest! {
    /// By whatever bit a signature is changed, a remembered key passes exactly where recovery gives it.
    #[test]
    fn a_remembered_key_passes_exactly_where_recovery_gives_it(
        secret in any::<[u8; 32]>(),
        digest in any::<[u8; 32]>(),
        flips in prop::collection::vec(0..520_usize, 0..3),
        malleate in any::<bool>(),
        random in prop::option::of(any::<[u8; 32]>()),
    ) {
        let Ok(key) = SecretKey::from_secret_bytes(secret) else { return Ok(()) };
        let (public, digest) = (PublicKey::from_secret_key(&key), B256(digest));
        let good = sign(&key, &digest);
        prop_assert!(verify_remembered(&digest, &good, &public));
        prop_assert_eq!(signer(&digest, &good), Some(address_of(&public)));
        let mut other = if malleate { malleated(good) } else { good };
        for flip in flips {
            other.0[flip / 8] ^= 1 << (flip % 8);
        }
        if let Some(random) = random {
            other.0[..32].copy_from_slice(&random);
        }
        let recovered = recover(&digest, &other);
        prop_assert_eq!(verify_remembered(&digest, &other, &public), recovered == Some(public));
        prop_assert_eq!(signer(&digest, &other), recovered.map(|key| address_of(&key)));
        prop_assert_eq!(other == good, recovered == Some(public), "one signature of a nonce is the key's");
    }
}
