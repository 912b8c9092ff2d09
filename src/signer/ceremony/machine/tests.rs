//! Ceremonies in one process: every order and every kind of lie, on both curves.

use super::*;
use crate::signer::ceremony::PAIRS;
use crate::signer::ecdsa::{self, EcdsaRounds};
use crate::signer::frost::{self, FrostRounds};
use crate::signer::quorum::{self, OpenError};

type Shares<R> = [KeyShare<<R as Rounds>::Curve>; SHARES];
/// Changes the messages of one round on their way: round, sender, receiver, message.
type Courier<'a> = &'a mut dyn FnMut(u8, u16, u16, &mut Zeroizing<Vec<u8>>);

/// Runs a ceremony with a courier between the participants; every state is stored and read again before it is used. The first
/// fault is told with who found it.
fn run<R: Rounds>(
    kind: Kind,
    shares: [Option<&KeyShare<R::Curve>>; SHARES],
    courier: Courier<'_>,
) -> Result<Vec<KeyShare<R::Curve>>, (u16, Fault)> {
    let old = shares.iter().flatten().next().map(|share| PublicShares::of(share));
    let mut session = [0; 32];
    getrandom::fill(&mut session).unwrap();
    let mut states = BTreeMap::new();
    let mut post: BTreeMap<(u16, u16), Zeroizing<Vec<u8>>> = BTreeMap::new();
    for (me, share) in PARTICIPANTS.into_iter().zip(shares) {
        let setup = Setup { session, kind, me, old, rehearsal: false };
        let (machine, messages) = Machine::<R>::begin(setup, share).map_err(|fault| (me, fault))?;
        states.insert(me, encode(&machine).unwrap());
        post.extend(messages.into_iter().map(|(to, message)| ((me, to), message)));
    }
    let mut made = Vec::new();
    for round in 1.. {
        let mut sent = std::mem::take(&mut post);
        for ((from, to), message) in &mut sent {
            courier(round, *from, *to, message);
        }
        // The last first: no order among the participants matters.
        for me in PARTICIPANTS.into_iter().rev() {
            let Some(state) = states.remove(&me) else { continue };
            let machine: Machine<R> = decode(&state).unwrap();
            assert_eq!(machine.round(), round);
            let inbox =
                sent.iter().filter(|((_, to), _)| *to == me).map(|((from, _), message)| (*from, message.clone()));
            match machine.next(inbox.collect()).map_err(|fault| (me, fault))? {
                Next::Send(machine, messages) => {
                    states.insert(me, encode(&machine).unwrap());
                    post.extend(messages.into_iter().map(|(to, message)| ((me, to), message)));
                }
                Next::Install(share, machine, messages) => {
                    made.push(share);
                    states.insert(me, encode(&machine).unwrap());
                    post.extend(messages.into_iter().map(|(to, message)| ((me, to), message)));
                }
                Next::Done => {}
            }
        }
        if states.is_empty() {
            break;
        }
    }
    made.reverse();
    Ok(made)
}

fn honest(_: u8, _: u16, _: u16, _: &mut Zeroizing<Vec<u8>>) {}

fn all<R: Rounds>(kind: Kind, shares: &Shares<R>) -> Shares<R> {
    let brought = PARTICIPANTS.map(|me| kind.needs_share(me).then(|| &shares[usize::from(me) - 1]));
    run::<R>(kind, brought, &mut honest).unwrap().try_into().ok().unwrap()
}

/// What each curve's signer says of its shares.
trait Curved: Rounds {
    fn prove(shares: &Shares<Self>) -> Result<String, OpenError>;
    fn made() -> Shares<Self>;
}

impl Curved for FrostRounds {
    fn prove(shares: &Shares<Self>) -> Result<String, OpenError> {
        frost::prove(shares).map(|key| key.to_string())
    }
    fn made() -> Shares<Self> {
        frost::generate().unwrap()
    }
}

impl Curved for EcdsaRounds {
    fn prove(shares: &Shares<Self>) -> Result<String, OpenError> {
        ecdsa::prove(shares).map(|address| address.to_string())
    }
    fn made() -> Shares<Self> {
        ecdsa::generate().unwrap()
    }
}

fn the_key_stays_and_old_shares_are_of_another_generation<R: Curved>(kinds: &[Kind]) {
    let first = run::<R>(Kind::Generate, [None; SHARES], &mut honest).unwrap();
    let first: Shares<R> = first.try_into().ok().unwrap();
    let address = R::prove(&first).unwrap();
    let mut shares = first;
    for (generation, kind) in (2..).zip(kinds.iter().copied()) {
        let new = all::<R>(kind, &shares);
        assert_eq!(R::prove(&new).unwrap(), address, "{kind}");
        assert!(new.iter().all(|share| share.generation() == generation), "{kind}");
        for (one, other) in PAIRS {
            let (old, new) = (&shares[usize::from(one) - 1], &new[usize::from(other) - 1]);
            assert!(old.verifying_shares != new.verifying_shares, "{kind}");
        }
        // A refresh takes nothing back from who keeps two old shares, which is why they are destroyed.
        assert_eq!(R::prove(&shares).unwrap(), address, "{kind}");
        shares = new;
    }
}

#[test]
fn frost_the_key_stays() {
    let kinds = [Kind::Refresh, Kind::Replace(1), Kind::Replace(3), Kind::Replace(2)];
    the_key_stays_and_old_shares_are_of_another_generation::<FrostRounds>(&kinds);
}

#[test]
fn ecdsa_the_key_stays() {
    the_key_stays_and_old_shares_are_of_another_generation::<EcdsaRounds>(&[Kind::Replace(1)]);
}

const LIES: &[(u16, &[u8])] = &[(1, b""), (2, b"\x00"), (3, &[0xff; 200])];

/// Every byte string in place of every message is refused, and the fault names its sender.
fn garbage_is_its_senders_fault<R: Curved>(
    kind: Kind,
    shares: Option<&Shares<R>>,
    rounds: std::ops::RangeInclusive<u8>,
    lies: &[(u16, &[u8])],
) {
    for round in rounds {
        for (liar, garbage) in lies.iter().copied() {
            let brought = PARTICIPANTS
                .map(|me| shares.filter(|_| kind.needs_share(me)).map(|shares| &shares[usize::from(me) - 1]));
            let mut courier = |now: u8, from: u16, _: u16, message: &mut Zeroizing<Vec<u8>>| {
                if now == round && from == liar {
                    *message = Zeroizing::new(garbage.to_vec());
                }
            };
            let (finder, fault) = run::<R>(kind, brought, &mut courier).err().unwrap();
            assert!(finder != liar && fault.who == [liar], "round {round}: {finder} finds {fault}");
        }
    }
}

#[test]
fn frost_garbage() {
    garbage_is_its_senders_fault::<FrostRounds>(Kind::Generate, None, 1..=6, LIES);
    let shares = FrostRounds::made();
    garbage_is_its_senders_fault::<FrostRounds>(Kind::Refresh, Some(&shares), 1..=6, LIES);
    garbage_is_its_senders_fault::<FrostRounds>(Kind::Replace(3), Some(&shares), 1..=6, LIES);
}

#[test]
fn ecdsa_garbage() {
    garbage_is_its_senders_fault::<EcdsaRounds>(Kind::Generate, None, 1..=2, LIES);
    garbage_is_its_senders_fault::<EcdsaRounds>(Kind::Generate, None, 3..=4, &LIES[2..]);
}

/// A participant that says something well formed and untrue to one of the others, or to both: whatever part of whichever
/// message it changes, the ceremony ends in a fault, and never in shares.
fn every_lie_ends_the_ceremony<R: Curved>(kind: Kind, shares: Option<&Shares<R>>, rounds: u8, step: usize) {
    for round in 1..=rounds {
        for to_both in [false, true] {
            let (mut changed, mut at) = (true, 0);
            while changed {
                changed = false;
                let brought = PARTICIPANTS
                    .map(|me| shares.filter(|_| kind.needs_share(me)).map(|shares| &shares[usize::from(me) - 1]));
                let mut courier = |now: u8, from: u16, to: u16, message: &mut Zeroizing<Vec<u8>>| {
                    if now == round
                        && from == 2
                        && (to_both || to == 3)
                        && let Some(byte) = message.get_mut(at)
                    {
                        *byte ^= 1;
                        changed = true;
                    }
                };
                let ended = run::<R>(kind, brought, &mut courier);
                if changed {
                    let (_, fault) = ended.err().unwrap_or_else(|| panic!("round {round}, byte {at}: nobody objects"));
                    let innocent = fault.who == [1] || fault.who == [3];
                    assert!(!innocent, "round {round}, byte {at}, to both {to_both}: {fault}");
                }
                at += step;
            }
        }
    }
}

#[test]
fn frost_lies() {
    every_lie_ends_the_ceremony::<FrostRounds>(Kind::Generate, None, 6, 5);
    let shares = FrostRounds::made();
    every_lie_ends_the_ceremony::<FrostRounds>(Kind::Refresh, Some(&shares), 2, 5);
    every_lie_ends_the_ceremony::<FrostRounds>(Kind::Replace(1), Some(&shares), 2, 5);
}

/// Whatever a participant says in a message that can be read: no panic, no next round.
fn nonsense_leads_nowhere<R: Rounds>(kind: Kind, to_all: &[u8], to_you: &[u8]) {
    let mut courier = |_: u8, from: u16, _: u16, message: &mut Zeroizing<Vec<u8>>| {
        if from == 2 {
            let parcel: Parcel = decode(message).unwrap();
            let to_you = Zeroizing::new(to_you.to_vec());
            *message = encode(&Parcel { before: parcel.before, to_all: to_all.to_vec(), to_you }).unwrap();
        }
    };
    assert!(run::<R>(kind, [None; SHARES], &mut courier).is_err());
}

proptest::proptest! {
    #[test]
    fn nonsense_in_a_readable_message_leads_nowhere(
        to_all in proptest::collection::vec(proptest::num::u8::ANY, 0..160),
        to_you in proptest::collection::vec(proptest::num::u8::ANY, 0..80),
    ) {
        nonsense_leads_nowhere::<FrostRounds>(Kind::Generate, &to_all, &to_you);
        nonsense_leads_nowhere::<EcdsaRounds>(Kind::Generate, &to_all, &to_you);
    }
}

/// In DKLs23 a wrong value of a polynomial shows in the sum only, and nobody is named; what is proved names who proves it. To
/// change a promise without what it promises is to break it.
#[test]
fn ecdsa_lies() {
    for (round, from_the_end, who) in [(1, 1, &[][..]), (2, 1, &[2]), (3, 40, &[2])] {
        let mut courier = |now: u8, from: u16, to: u16, message: &mut Zeroizing<Vec<u8>>| {
            if now == round && from == 2 && to == 3 {
                let at = message.len() - from_the_end;
                message[at] ^= 1;
            }
        };
        let (finder, fault) = run::<EcdsaRounds>(Kind::Generate, [None; SHARES], &mut courier).err().unwrap();
        assert_eq!((finder, fault.who.as_slice()), (3, who), "round {round}: {fault}");
    }
}

/// Participant 2 commits to one polynomial before 1 and to another before 3. Each is in order; only the two of them together
/// can know, and neither can know whether it is 2 or the other that lies.
#[test]
fn who_tells_two_stories_is_found_one_round_later() {
    let begin = |me| {
        let setup = Setup { session: [7; 32], kind: Kind::Generate, me, old: None, rehearsal: false };
        Machine::<FrostRounds>::begin(setup, None).unwrap()
    };
    let inbox = |of: [(u16, &Messages); 2], me| of.map(|(from, messages)| (from, messages[&me].clone())).into();
    let go = |machine: Machine<FrostRounds>, inbox| match machine.next(inbox).unwrap() {
        Next::Send(machine, messages) => (machine, messages),
        _ => panic!("it is not over"),
    };
    let ((one, of_one), (two, of_two), (_, another_story), (three, of_three)) =
        (begin(1), begin(2), begin(2), begin(3));
    let (one, after_one) = go(one, inbox([(2, &of_two), (3, &of_three)], 1));
    let (_, after_two) = go(two, inbox([(1, &of_one), (3, &of_three)], 2));
    let (three, after_three) = go(three, inbox([(1, &of_one), (2, &another_story)], 3));
    let found_by_one = one.next(inbox([(2, &after_two), (3, &after_three)], 1)).err().unwrap();
    assert_eq!(found_by_one.who, [2, 3]);
    assert!(found_by_one.what.contains("participant 3 says that 2 told it something else"), "{found_by_one}");
    // Participant 2 itself repeats its first story, which is not what 3 heard from it.
    let found_by_three = three.next(inbox([(1, &after_one), (2, &after_two)], 3)).err().unwrap();
    assert_eq!(found_by_three.who, [1, 2]);
}

#[test]
fn shares_of_two_generations_make_no_signer_and_the_message_says_which_is_older() {
    let old = FrostRounds::made();
    let new = all::<FrostRounds>(Kind::Refresh, &old);
    let [old, _, _] = old;
    let [_, new, _] = new;
    let error = quorum::check(&[new, old], ToString::to_string).unwrap_err();
    assert!(matches!(error, OpenError::OtherGeneration { older_generation: 1, newer_generation: 2, .. }), "{error}");
    let text = error.to_string();
    assert!(
        text.starts_with("the new share 1 and the new share 2 are shares of one key of another generation (1 and 2)"),
        "{text}"
    );
}

#[test]
fn a_share_that_the_ceremony_is_not_about_is_refused() {
    let shares = FrostRounds::made();
    let [first, second, _] = &shares;
    for (kind, brought) in [
        (Kind::Generate, [Some(first), None, None]),
        (Kind::Refresh, [Some(second), Some(second), Some(first)]),
        (Kind::Refresh, [Some(first), Some(second), None]),
        (Kind::Replace(3), [Some(first), None, None]),
        (Kind::Replace(4), [Some(first), Some(second), None]),
    ] {
        let (_, fault) = run::<FrostRounds>(kind, brought, &mut honest).err().unwrap();
        assert!(fault.what.contains("not the one that the ceremony is about"), "{kind}: {fault}");
    }
}
