use std::sync::OnceLock;

use parking_lot::Mutex;

use super::*;

/// One key for all tests here: making it takes seconds.
fn key() -> &'static [KeyShare<keystore::Secp256k1>; SHARES] {
    static KEY: OnceLock<[KeyShare<keystore::Secp256k1>; SHARES]> = OnceLock::new();
    KEY.get_or_init(|| crate::signer::ecdsa::generate().unwrap())
}

#[derive(Default)]
struct Book(Mutex<BTreeMap<u16, String>>);

impl Bans for Book {
    fn banned(&self, peer: u16) -> Option<String> {
        self.0.lock().get(&peer).cloned()
    }

    fn ban(&self, peer: u16, why: &str) {
        self.0.lock().insert(peer, why.to_owned());
    }
}

fn share(number: usize) -> Arc<EcdsaShare> {
    Arc::new(EcdsaShare::open(&key()[number - 1], Arc::new(Book::default())).unwrap())
}

/// A share that answers in the oblivious transfers what does not fit.
fn cheat(number: usize) -> Arc<EcdsaShare> {
    let mut share = EcdsaShare::open(&key()[number - 1], Arc::new(Book::default())).unwrap();
    for sender in share.party.mul_senders.values_mut() {
        sender.ote_sender.seeds.iter_mut().for_each(|seed| seed[0] ^= 1);
    }
    Arc::new(share)
}

fn digest(byte: u8) -> DigestToSign {
    DigestToSign::for_tests(B256([byte; 32]))
}

/// The whole session; `change` sees each message on its way, with its place.
fn run(
    one: &Arc<EcdsaShare>,
    other: &Arc<EcdsaShare>,
    mut change: impl FnMut(u8, &mut Vec<u8>),
) -> Result<EvmSignature, PairError> {
    let (first, mut opening) = one.begin(other.identifier(), digest(7))?;
    let mut bytes = opening.to_vec();
    change(1, &mut bytes);
    opening.copy_from_slice(&bytes);
    let (second, mut answer) = other.answer(one.identifier(), &digest(7), &opening)?;
    change(2, &mut answer);
    let (end, mut reply) = first.reply(&answer)?;
    change(3, &mut reply);
    let mut last = second.finish(&reply)?;
    change(4, &mut last);
    end.finish(&last)
}

#[test]
fn every_pair_signs_whoever_begins() {
    for [one, other] in [[1, 2], [2, 1], [1, 3], [3, 1], [2, 3], [3, 2]] {
        let mut longest = 0;
        let signed = run(&share(one), &share(other), |_, message| longest = longest.max(message.len())).unwrap();
        assert_eq!(signature::signer(&B256([7; 32]), &signed), Some(share(1).address()));
        assert!(longest < MESSAGE_BYTES_MAX / 4 * 3, "{longest}");
    }
}

/// Any message that is not as it was sent is refused by its seal, and nobody is banned for it.
#[test]
fn a_changed_message_is_refused_and_bans_nobody() {
    for place in 1..=4 {
        for part in [0, 31, 32, 60, 5_000] {
            let (one, other) = (share(1), share(2));
            let changed = run(&one, &other, |at, message| {
                let position = part.min(message.len() - 1);
                message[position] ^= u8::from(at == place);
            });
            assert!(matches!(changed, Err(PairError::Message { .. })), "{place} at {part}: {changed:?}");
            assert!(one.bans.banned(2).is_none() && other.bans.banned(1).is_none());
        }
        let cut = run(&share(1), &share(2), |at, message| {
            if at == place && at > 1 {
                message.truncate(20);
            }
        });
        assert_eq!(cut.is_err(), place > 1, "{place}");
    }
}

/// A message of another session, of another place, of oneself, or over another digest is not the one that is waited for.
#[test]
fn a_message_from_elsewhere_is_refused() {
    let (one, other, third) = (share(1), share(2), share(3));
    let (first, opening) = one.begin(2, digest(7)).unwrap();
    let (_, of_another_digest) = other.answer(1, &digest(8), &opening).unwrap();
    assert!(matches!(first.reply(&of_another_digest), Err(PairError::Message { peer: 2, .. })));
    let (first, _) = one.begin(2, digest(7)).unwrap();
    let (_, of_another_session) = other.answer(1, &digest(7), &[9; 32]).unwrap();
    assert!(matches!(first.reply(&of_another_session), Err(PairError::Message { .. })));
    let (first, opening) = one.begin(2, digest(7)).unwrap();
    let (_, of_another_share) = third.answer(1, &digest(7), &opening).unwrap();
    assert!(matches!(first.reply(&of_another_share), Err(PairError::Message { .. })));
    let (first, opening) = one.begin(2, digest(7)).unwrap();
    let (second, answer) = other.answer(1, &digest(7), &opening).unwrap();
    let (end, _) = first.reply(&answer).unwrap();
    assert!(matches!(end.finish(&answer[32..]), Err(PairError::Message { .. })), "of another place");
    assert!(matches!(second.finish(&answer[32..]), Err(PairError::Message { .. })), "its own");
    assert!(matches!(one.begin(1, digest(7)), Err(PairError::Own(_))));
    assert!(matches!(one.begin(4, digest(7)), Err(PairError::Own(_))));
}

/// Who is caught cheating is banned by the one who has caught it, for that pair alone.
#[test]
fn a_cheat_is_banned() {
    for begins in [true, false] {
        let (honest, cheat) = (share(1), cheat(2));
        let signed = if begins { run(&honest, &cheat, |_, _| ()) } else { run(&cheat, &honest, |_, _| ()) };
        assert!(matches!(signed, Err(PairError::Banned { .. })), "{signed:?}");
        let banned = [honest.bans.banned(2), cheat.bans.banned(1)];
        assert!(banned.iter().any(Option::is_some), "{banned:?}");
        let caught = if banned[0].is_some() { (&honest, 2) } else { (&cheat, 1) };
        assert!(matches!(caught.0.begin(caught.1, digest(7)), Err(PairError::Banned { .. })));
        assert!(matches!(caught.0.answer(caught.1, &digest(7), &[1; 32]), Err(PairError::Banned { .. })));
        assert!(run(&honest, &share(3), |_, _| ()).is_ok(), "with the third it signs");
    }
}

/// Compile only while no state is `Clone`: with two candidates the types below could not be inferred.
#[test]
fn states_cannot_be_cloned() {
    trait AmbiguousIfClone<A> {
        fn check() {}
    }
    struct IsClone;
    impl<T: ?Sized> AmbiguousIfClone<()> for T {}
    impl<T: Clone> AmbiguousIfClone<IsClone> for T {}
    <First as AmbiguousIfClone<_>>::check();
    <FirstEnd as AmbiguousIfClone<_>>::check();
    <Second as AmbiguousIfClone<_>>::check();
}
