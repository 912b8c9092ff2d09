use super::*;

/// One key for all tests here: making it takes seconds.
fn key() -> &'static [KeyShare<Secp256k1>; SHARES] {
    static KEY: OnceLock<[KeyShare<Secp256k1>; SHARES]> = OnceLock::new();
    KEY.get_or_init(|| generate().unwrap())
}

/// A quorum with another secret part of its first share.
fn with_first(change: impl FnOnce(&mut Party)) -> Quorum {
    let mut quorum = Quorum::of(&key()[..2]).unwrap();
    change(&mut quorum.shares[0]);
    quorum
}

fn copy(share: &KeyShare<Secp256k1>) -> KeyShare<Secp256k1> {
    KeyShare {
        group: share.group,
        identifier: share.identifier,
        verifying_shares: share.verifying_shares,
        generation: share.generation,
        rehearsal: share.rehearsal,
        secret: share.secret.clone(),
        origin: share.origin.clone(),
    }
}

#[test]
fn a_share_that_does_not_fit_its_public_part_is_found() {
    type Change = fn(&mut KeyShare<Secp256k1>);
    let table: &[(&str, Change)] = &[
        ("another scalar", |share| share.secret[37] ^= 1),
        ("another identifier", |share| share.identifier = 3),
        ("no identifier of a share", |share| share.identifier = 0),
        ("another public part", |share| share.verifying_shares.swap(0, 1)),
        ("cut short", |share| share.secret.truncate(1000)),
        ("empty", |share| share.secret.clear()),
    ];
    for (what, change) in table {
        let mut share = copy(&key()[0]);
        change(&mut share);
        assert!(share::from_file(&share).is_none(), "{what}");
        let error = Quorum::assemble(&[share]).err().unwrap();
        assert_eq!(error, OpenError::Corrupt("the new share 1".to_owned()), "{what}");
    }
    assert!(share::from_file(&key()[0]).is_some());
}

#[test]
fn shares_of_a_falsified_group_do_not_sign_together() {
    let mut quorum = Quorum::of(&key()[..2]).unwrap();
    quorum.address = Address([1; 20]);
    assert!(matches!(quorum.test(), Err(OpenError::Broken(_))));
}

/// What one share knows of the other is wrong: no signature, and the library says that there must be no second try.
#[test]
fn shares_that_catch_each_other_cheating_sign_no_more() {
    let quorum = with_first(|party| {
        for sender in party.mul_senders.values_mut() {
            sender.ote_sender.seeds.iter_mut().for_each(|seed| seed[0] ^= 1);
        }
    });
    assert_eq!(quorum.health(), Ok(()));
    let error = quorum.sign(&B256([7; 32])).unwrap_err();
    assert!(matches!(&error, SignerError::Broken(what) if what.starts_with("share ")), "{error}");
    let missing = quorum.health().unwrap_err();
    assert!(missing.contains("sign together no more"), "{missing}");
    let rules = EvmRules {
        chain_id: 1,
        pay_to: Vec::new(),
        tokens: Vec::new(),
        channel_max: crate::amount::Amount::ZERO,
        claim_max: crate::amount::Amount::ZERO,
        kinds: Vec::new(),
    };
    let signer = EcdsaSigner::of(quorum, rules);
    let request = EvmRequest::ClaimBatch {
        contract: crate::policy::Deployment { chain_id: 1, address: Address::ZERO },
        claims: Vec::new(),
    };
    assert_eq!(signer.sign_blocking(&request), Err(SignerError::NoQuorum(missing)));
}

/// A scalar that is wrong gives no signature that verifies, and is no reason to end the shares' life.
#[test]
fn a_wrong_scalar_gives_no_signature() {
    let quorum = with_first(|party| party.poly_point += k256::Scalar::ONE);
    let error = quorum.sign(&B256([7; 32])).unwrap_err();
    assert!(matches!(error, SignerError::Broken(_)), "{error}");
    assert_eq!(quorum.health(), Ok(()));
}

#[test]
fn the_address_is_that_of_the_groups_key() {
    let table = [
        // Of the secret keys 1 and 2.
        (
            "0x0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798",
            Some("0x7E5F4552091A69125d5DfCb7b8C2659029395Bdf"),
        ),
        (
            "0x02c6047f9441ed7d6d3045406e95c07cd85c778e4b8cef3ca7abac09b95c709ee5",
            Some("0x2B5AD5c4795c026514f8317c7a215E218DcCD6cF"),
        ),
        ("0x020000000000000000000000000000000000000000000000000000000000000005", None),
        ("0x000000000000000000000000000000000000000000000000000000000000000000", None),
    ];
    for (point, address) in table {
        let found = address_of(&point.parse().unwrap()).map(|address| address.to_string());
        assert_eq!(found.as_deref(), address, "{point}");
    }
}

/// Even where nobody looks at their generations. It is a session of another name to them: no state is given away, and both may
/// go on signing with their own.
#[test]
fn an_old_and_a_new_share_do_not_sign_together() {
    let [first, second, third] = key();
    let shares = [Some(first), Some(second), Some(third)];
    let [_, new, other] = play::<EcdsaRounds>(Kind::Refresh, false, shares).unwrap();
    let together = |shares: [&KeyShare<Secp256k1>; 2]| {
        let shares = shares.map(|share| share::from_file(share).unwrap()).into();
        let quorum = Quorum { address: address_of(&new.group()).unwrap(), shares, ended: OnceLock::new() };
        (quorum.test(), quorum.ended.get().cloned())
    };
    assert_eq!(together([&new, &other]), (Ok(()), None));
    let (tested, ended) = together([first, &new]);
    assert!(matches!(tested, Err(OpenError::Broken(_))));
    assert_eq!(ended, None);
}
