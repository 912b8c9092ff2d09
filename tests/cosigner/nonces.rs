//! No nonce serves twice: through crashes, retries, two at once, and a coordinator that tries for it.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use turnpike::audit::Recorder;
use turnpike::clock::ManualClock;
use turnpike::scheme::svm::program::voucher_message;
use turnpike::signer::SigningRequest;
use turnpike::signer::cosigner::policy::Limits;
use turnpike::signer::cosigner::{Cosigner, Settings};
use turnpike::signer::frost::signing::{Commitment, FrostShare, Joiner};
use turnpike::signer::rules::Judge;
use turnpike::signer::wire::{Begin, Call, Commit, Continue, Reply, Sealed, Sign, Signed, Turn};

use crate::faults::commitment;
use crate::world::{self, NOON, Written};
use crate::{evm_requests, signer_requests};

#[derive(Clone, Debug)]
enum Step {
    /// Asks for a commitment.
    Commit,
    /// Asks for a part over one of three messages, with one of the commitments so far, perhaps again.
    Sign { commitment: prop::sample::Index, message: u8 },
    /// The same, but the cosigner dies when the request is in its record and its part has not left.
    Die { commitment: prop::sample::Index, message: u8 },
    /// The cosigner ends and is started again with what it has on its disk.
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let which = || (any::<prop::sample::Index>(), 0..3_u8);
    let sign = which().prop_map(|(commitment, message)| Step::Sign { commitment, message });
    let die = which().prop_map(|(commitment, message)| Step::Die { commitment, message });
    let step = prop_oneof![3 => Just(Step::Commit), 6 => sign, 1 => die, 1 => Just(Step::Restart)];
    prop::collection::vec(step, 1..40)
}

fn voucher(message: u8) -> SigningRequest {
    let channel = signer_requests::key(0x40 + message);
    SigningRequest::Voucher { channel, cumulative: 5, deposit: 10, expires_at: 60 }
}

fn open(directory: &tempfile::TempDir) -> Cosigner {
    open_with(directory, None)
}

fn open_with(directory: &tempfile::TempDir, audit: Option<Arc<dyn Recorder>>) -> Cosigner {
    let settings = world::settings(2, &directory.path().join("cosigner.db"), world::policy(&Limits::default()));
    Cosigner::open(Settings { audit, ..settings }, Arc::new(ManualClock::new(NOON))).unwrap()
}

/// Asks for a part as a coordinator with share 1; a part that is given is a true one.
fn ask(cosigner: &Cosigner, theirs: &Commitment, message: u8) -> bool {
    let own = FrostShare::open(&world::share(1)).unwrap();
    let (nonces, mine) = own.commit().unwrap();
    let commitments = BTreeMap::from([(1, mine), (2, theirs.clone())]);
    let request = voucher(message);
    let sign = Sign { network: signer_requests::rules().network, request: request.clone(), commitments };
    let answer = cosigner.handle(Sign::PATH, &serde_json::to_vec(&sign).unwrap()).1;
    let Ok(Reply::Done(Signed { part })) = serde_json::from_slice(&answer) else { return false };
    let bytes = Judge::new(signer_requests::rules(), own.group()).judge(&request).unwrap();
    let mine = own.sign(nonces, &sign.commitments, &bytes).unwrap();
    let joiner = Joiner::new(own.group(), &own.verifying_shares()).unwrap();
    let signature = joiner.join(&sign.commitments, &BTreeMap::from([(1, mine), (2, part)]), &bytes).unwrap();
    let SigningRequest::Voucher { channel, .. } = request else { unreachable!() };
    assert!(turnpike::scheme::svm::verify_strict(&own.group(), &voucher_message(&channel, 5, 60), &signature));
    true
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Whatever is asked in whatever order, a commitment that has served is never seen in another message, nor again in
    /// the same.
    #[test]
    fn no_commitment_serves_twice(steps in steps()) {
        let directory = tempfile::tempdir().unwrap();
        let audit = Written::at(directory.path().join("audit"));
        let reopened = || open_with(&directory, Some(audit.open()));
        let mut cosigner = reopened();
        let mut commitments: Vec<Commitment> = Vec::new();
        let mut served: BTreeMap<Commitment, u8> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Commit => {
                    let fresh = commitment(&cosigner.handle(Commit::PATH, b"{}")).commitment;
                    prop_assert!(!commitments.contains(&fresh));
                    commitments.push(fresh);
                }
                Step::Sign { commitment, message } => {
                    if commitments.is_empty() {
                        continue;
                    }
                    let theirs = commitment.get(&commitments).clone();
                    if ask(&cosigner, &theirs, message) {
                        let earlier = served.insert(theirs, message);
                        prop_assert_eq!(earlier, None, "a nonce has served twice");
                    }
                }
                Step::Die { commitment, message } => {
                    if commitments.is_empty() {
                        continue;
                    }
                    let theirs = commitment.get(&commitments).clone();
                    audit.fill(true);
                    prop_assert!(!ask(&cosigner, &theirs, message));
                    drop(cosigner);
                    audit.fill(false);
                    cosigner = reopened();
                }
                Step::Restart => {
                    drop(cosigner);
                    cosigner = reopened();
                }
            }
        }
    }
}

#[test]
fn of_many_who_name_one_commitment_at_once_one_is_served() {
    let directory = tempfile::tempdir().unwrap();
    let cosigner = open(&directory);
    for _ in 0..8 {
        let theirs = commitment(&cosigner.handle(Commit::PATH, b"{}")).commitment;
        let served: usize = std::thread::scope(|scope| {
            let asks: Vec<_> = (0..6_u8)
                .map(|message| {
                    let (cosigner, theirs) = (&cosigner, &theirs);
                    scope.spawn(move || usize::from(ask(cosigner, theirs, message % 3)))
                })
                .collect();
            asks.into_iter().map(|ask| ask.join().unwrap()).sum()
        });
        assert_eq!(served, 1);
    }
}

/// A request that is refused uses its commitment up as well, and one that was never given out is not known.
#[test]
fn a_commitment_is_used_up_by_a_refusal_and_one_of_another_cosigner_is_none() {
    let directory = tempfile::tempdir().unwrap();
    let cosigner = open(&directory);
    let theirs = commitment(&cosigner.handle(Commit::PATH, b"{}")).commitment;
    let (_, mine) = FrostShare::open(&world::share(1)).unwrap().commit().unwrap();
    let forbidden =
        SigningRequest::Voucher { channel: signer_requests::key(0x40), cumulative: 11, deposit: 10, expires_at: 60 };
    let commitments = BTreeMap::from([(1, mine.clone()), (2, theirs.clone())]);
    let sign = Sign { network: signer_requests::rules().network, request: forbidden, commitments };
    let answer = cosigner.handle(Sign::PATH, &serde_json::to_vec(&sign).unwrap()).1;
    assert!(matches!(serde_json::from_slice::<Reply<Signed>>(&answer), Ok(Reply::Refused { .. })));
    assert!(!ask(&cosigner, &theirs, 0));
    assert!(!ask(&cosigner, &mine, 0), "a commitment that this cosigner has not made");
}

/// A session of DKLs23 takes each of its messages once, and none after a restart.
#[test]
fn a_session_moves_once() {
    let directory = tempfile::tempdir().unwrap();
    let cosigner = open(&directory);
    let begin = Begin { request: evm_requests::Cast::new(world::evm_address()).batch(1), peer: 1 };
    let begin = serde_json::to_vec(&begin).unwrap();
    let opened = || {
        let answer = cosigner.handle(Begin::PATH, &begin).1;
        let Ok(Reply::Done(Turn::Message { session, message })) = serde_json::from_slice(&answer) else { panic!() };
        (session, message)
    };
    let (one, other) = (opened(), opened());
    assert!(one.0 != other.0 && one.1 != other.1, "names and openings are never the same");
    let next = |session: &str| Continue { session: session.to_owned(), message: Sealed(vec![0; 100]) };
    let ask = |cosigner: &Cosigner, session: &str| {
        let answer = cosigner.handle(Continue::PATH, &serde_json::to_vec(&next(session)).unwrap()).1;
        let Ok(Reply::Failed { cause, .. }) = serde_json::from_slice::<Reply<Turn>>(&answer) else { panic!() };
        cause
    };
    use turnpike::signer::wire::Cause;
    assert_eq!(ask(&cosigner, &one.0), Cause::Peer, "a message that nobody has sealed");
    assert_eq!(ask(&cosigner, &one.0), Cause::Stale, "and there is no second try");
    drop(cosigner);
    assert_eq!(ask(&open(&directory), &other.0), Cause::Stale, "nor one after a restart");
}
