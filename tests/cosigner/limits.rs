//! What a cosigner counts, and that it does not forget.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use turnpike::amount::Amount;
use turnpike::clock::{Clock as _, ManualClock};
use turnpike::policy::EvmRequest;
use turnpike::signer::cosigner::policy::{Limits, Moves};
use turnpike::signer::cosigner::store::{Ask, Store, StoreError};
use turnpike::signer::cosigner::{Cosigner, Settings};
use turnpike::signer::frost::signing::FrostShare;
use turnpike::signer::wire::{Begin, Call, Commit, Reply, Sign, Signed, Turn};
use turnpike::signer::{ClaimLine, SigningRequest};

use crate::faults::commitment;
use crate::world::{self, NOON, Written};
use crate::{evm_requests, signer_requests};

/// A cosigner that is restarted before every request.
struct Forgetful {
    directory: tempfile::TempDir,
    clock: Arc<ManualClock>,
    limits: Limits,
}

impl Forgetful {
    fn new(limits: Limits) -> Self {
        Self { directory: tempfile::tempdir().unwrap(), clock: Arc::new(ManualClock::new(NOON)), limits }
    }

    fn store(&self) -> std::path::PathBuf {
        self.directory.path().join("cosigner.db")
    }

    fn settings(&self) -> Settings {
        world::settings(2, &self.store(), world::policy(&self.limits))
    }

    fn open(&self) -> Cosigner {
        Cosigner::open(self.settings(), Arc::<ManualClock>::clone(&self.clock)).unwrap()
    }

    /// The rule that refuses, or `None` where it signs.
    fn ask(&self, request: &SigningRequest) -> Option<String> {
        let cosigner = self.open();
        let (_, mine) = FrostShare::open(&world::share(1)).unwrap().commit().unwrap();
        let theirs = commitment(&cosigner.handle(Commit::PATH, b"{}")).commitment;
        let sign = Sign {
            network: signer_requests::rules().network,
            request: request.clone(),
            commitments: BTreeMap::from([(1, mine), (2, theirs)]),
        };
        let answer = cosigner.handle(Sign::PATH, &serde_json::to_vec(&sign).unwrap()).1;
        match serde_json::from_slice::<Reply<Signed>>(&answer).unwrap() {
            Reply::Done(_) => None,
            Reply::Refused { rule, .. } => Some(rule),
            Reply::Failed { what, .. } => panic!("{what}"),
        }
    }

    fn ask_evm(&self, request: &EvmRequest) -> Option<String> {
        let begin = Begin { request: request.clone(), peer: 1 };
        let answer = self.open().handle(Begin::PATH, &serde_json::to_vec(&begin).unwrap()).1;
        match serde_json::from_slice::<Reply<Turn>>(&answer).unwrap() {
            Reply::Done(_) => None,
            Reply::Refused { rule, .. } => Some(rule),
            Reply::Failed { what, .. } => panic!("{what}"),
        }
    }
}

fn most(amount: u64) -> Option<Amount> {
    Some(Amount::from(amount))
}

/// A voucher of ours over a channel's total.
fn total(channel: u8, cumulative: u64) -> SigningRequest {
    let channel = signer_requests::key(channel);
    SigningRequest::Voucher { channel, cumulative, deposit: 1_000_000, expires_at: 60 }
}

#[test]
fn only_what_is_new_of_a_channel_counts() {
    let cosigner = Forgetful::new(Limits { per_day: most(1000), ..Limits::default() });
    assert_eq!(cosigner.ask(&total(1, 600)), None);
    assert_eq!(cosigner.ask(&total(1, 600)), None, "the same again counts nothing");
    assert_eq!(cosigner.ask(&total(1, 100)), None, "nor does less");
    assert_eq!(cosigner.ask(&total(1, 1000)), None, "400 more");
    assert_eq!(cosigner.ask(&total(2, 1)).as_deref(), Some("per_day"), "the day is full");
    assert_eq!(cosigner.ask(&total(1, 1000)), None, "what counts nothing is signed all the same");
    cosigner.clock.advance(Duration::from_secs(24 * 60 * 60));
    assert_eq!(
        cosigner.ask(&total(2, 1)).as_deref(),
        Some("per_day"),
        "the minute in which it was signed counts whole"
    );
    cosigner.clock.advance(Duration::from_secs(60));
    assert_eq!(cosigner.ask(&total(2, 1000)), None);
    assert_eq!(cosigner.ask(&total(1, 1001)).as_deref(), Some("per_day"), "the channel's total is remembered for ever");
}

#[test]
fn claims_of_one_request_are_summed_and_each_kind_counts() {
    let cast = signer_requests::Cast::new(world::share(1).group());
    // 1000 + 2000 + 3000 + 4000.
    let claim = cast.build(&cast.claim(4));
    let SigningRequest::Claim { lines, .. } = &claim else { panic!() };
    assert_eq!(lines.iter().map(|ClaimLine { cumulative, .. }| cumulative).sum::<u64>(), 10_000);
    let exact = Forgetful::new(Limits { per_signature: most(10_000), ..Limits::default() });
    assert_eq!(exact.ask(&claim), None);
    let short = Forgetful::new(Limits { per_signature: most(9_999), ..Limits::default() });
    assert_eq!(short.ask(&claim).as_deref(), Some("per_signature"));
    assert_eq!(short.ask(&cast.build(&cast.close_with_voucher(10_000, 0))).as_deref(), Some("per_signature"));
    assert_eq!(short.ask(&cast.build(&cast.distribute(4))), None, "what was claimed may be paid out");
    let evm = evm_requests::Cast::new(world::evm_address());
    let exact = Forgetful::new(Limits { per_hour: most(600_000), ..Limits::default() });
    assert_eq!(exact.ask_evm(&evm.refund()), None);
    assert_eq!(exact.ask_evm(&evm.refund()), None, "a refund of the same nonce and amount is one refund");
    assert_eq!(exact.ask_evm(&evm.batch(1)).as_deref(), Some("per_hour"), "claims and refunds count together");
}

#[test]
fn networks_are_counted_apart_and_so_are_minutes() {
    let cosigner =
        Forgetful::new(Limits { per_day: most(400_000), signatures_per_minute: Some(2), ..Limits::default() });
    assert_eq!(cosigner.ask(&total(1, 400_000)), None);
    assert_eq!(cosigner.ask_evm(&evm_requests::Cast::new(world::evm_address()).batch(1)), None);
    assert_eq!(cosigner.ask(&total(1, 1)), None);
    assert_eq!(cosigner.ask(&total(1, 1)).as_deref(), Some("signatures_per_minute"));
    cosigner.clock.advance(Duration::from_secs(60));
    assert_eq!(cosigner.ask(&total(1, 1)), None);
}

#[test]
fn what_is_above_a_sum_waits_for_an_approval_which_holds_once() {
    let cosigner = Forgetful::new(Limits { approval_above: most(1000), ..Limits::default() });
    assert_eq!(cosigner.ask(&total(1, 1000)), None);
    assert_eq!(cosigner.ask(&total(2, 1001)).as_deref(), Some("approval"));
    // As turnpike cosigner pending and approve do it, beside the cosigner.
    let operator = Store::open(&cosigner.store()).unwrap();
    let waiting = operator.approvals(cosigner.clock.now()).unwrap();
    assert_eq!((waiting.len(), waiting[0].amount.as_str(), waiting[0].kind.as_str()), (1, "1001", "voucher"));
    assert_eq!(operator.approve("000000000000", None, cosigner.clock.now()).unwrap(), None);
    assert_eq!(operator.approve(&waiting[0].id, None, cosigner.clock.now()).unwrap(), most(1001));
    assert_eq!(cosigner.ask(&total(2, 1002)).as_deref(), Some("approval"), "not for more than was approved");
    assert_eq!(cosigner.ask(&total(3, 1001)).as_deref(), Some("approval"), "not for another channel");
    assert_eq!(cosigner.ask(&total(2, 1001)), None);
    assert_eq!(cosigner.ask(&total(2, 2002)).as_deref(), Some("approval"), "not twice");
    let id = &operator.approvals(cosigner.clock.now()).unwrap()[0].id;
    assert_eq!(operator.approve(id, most(5000), cosigner.clock.now()).unwrap(), most(5000));
    cosigner.clock.advance(Duration::from_secs(24 * 60 * 60 + 1));
    assert_eq!(cosigner.ask(&total(2, 3000)).as_deref(), Some("approval"), "nor after a day");
}

/// A record that cannot be written is no record: nothing is signed.
#[test]
fn without_its_record_it_signs_nothing() {
    let cosigner = Forgetful::new(Limits::default());
    drop(cosigner.open());
    std::fs::write(cosigner.store(), b"this is no database, but a text that is long enough to be looked at").unwrap();
    for extension in ["db-wal", "db-shm"] {
        let _ = std::fs::remove_file(cosigner.store().with_extension(extension));
    }
    let opened = Cosigner::open(cosigner.settings(), Arc::<ManualClock>::clone(&cosigner.clock));
    let why = opened.err().unwrap().to_string();
    assert!(why.contains("cosigner.db") && why.contains("nothing is signed"), "{why}");
    assert!(Store::open(Path::new("/nowhere/cosigner.db")).is_err());
}

/// Each answer stands in the audit record before it is given; where that cannot be written, there is none.
#[test]
fn every_answer_is_in_the_audit_record() {
    let world = Forgetful::new(Limits { per_signature: most(1000), ..Limits::default() });
    let written = Written::at(world.directory.path().join("audit"));
    let settings = Settings { audit: Some(written.open()), ..world.settings() };
    let cosigner = Cosigner::open(settings, Arc::<ManualClock>::clone(&world.clock)).unwrap();
    let ask = |request: &SigningRequest| {
        let (_, mine) = FrostShare::open(&world::share(1)).unwrap().commit().unwrap();
        let theirs = commitment(&cosigner.handle(Commit::PATH, b"{}")).commitment;
        let commitments = BTreeMap::from([(1, mine), (2, theirs)]);
        let sign = Sign { network: signer_requests::rules().network, request: request.clone(), commitments };
        let answer = cosigner.handle(Sign::PATH, &serde_json::to_vec(&sign).unwrap()).1;
        serde_json::from_slice::<Reply<Signed>>(&answer).unwrap()
    };
    assert!(matches!(ask(&total(1, 1000)), Reply::Done(_)));
    assert!(matches!(ask(&total(2, 1001)), Reply::Refused { .. }));
    let answers = written.answers();
    assert!(answers[0].contains("\"outcome\":\"signs\"") && answers[0].contains("\"1000\""), "{answers:?}");
    assert!(answers[1].contains("\"rule\":\"per_signature\""), "{answers:?}");
    written.fill(true);
    assert!(matches!(ask(&total(1, 1000)), Reply::Failed { .. }));
}

/// A nonce that is written down is used, whatever came of it and whoever names it: also where a machine's memory was set
/// back and has the nonce again.
#[test]
fn the_record_takes_each_nonce_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cosigner.db");
    let (moves, limits) = (Default::default(), Limits::default());
    let ask = |digest: u8, nonce: u8| Ask {
        entry: "solana USDC",
        kind: "claim",
        digest: [digest; 32],
        nonce: [nonce; 32],
        moves: &moves,
        limits: &limits,
        now: NOON,
    };
    assert_eq!(Store::open(&path).unwrap().authorize(&ask(1, 1)), Ok(()));
    let store = Store::open(&path).unwrap();
    for digest in [1, 2] {
        assert!(matches!(store.authorize(&ask(digest, 1)), Err(StoreError::Used(_))), "{digest}");
    }
    assert_eq!(store.authorize(&ask(1, 2)), Ok(()));
}

/// The name of what waits is short enough that two requests with one name can be made: who approves the one has not
/// approved the other, and does not come to see it in the first one's place.
#[test]
fn an_approval_is_for_what_was_shown_whatever_has_its_name() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cosigner.db");
    let store = Store::open(&path).unwrap();
    let limits = Limits { approval_above: most(1), ..Limits::default() };
    let moves = |channel: &str| Moves { totals: vec![(channel.to_owned(), Amount::new(5))], outright: Vec::new() };
    let (shown, other) = (moves("shown"), moves("other"));
    let ask = |moves, nonce| Ask {
        entry: "solana USDC",
        kind: "claim",
        digest: [1; 32],
        nonce: [nonce; 32],
        moves,
        limits: &limits,
        now: NOON,
    };
    assert!(matches!(store.authorize(&ask(&other, 1)), Err(StoreError::Refused { rule: "approval", .. })));
    let id = store.approvals(NOON).unwrap().remove(0).id;
    // As if the two had one name.
    let raw = rusqlite::Connection::open(&path).unwrap();
    raw.execute("UPDATE approvals SET channels = 'shown'", []).unwrap();
    assert_eq!(store.approve(&id, None, NOON), Ok(Some(Amount::new(5))));
    assert!(matches!(store.authorize(&ask(&other, 2)), Err(StoreError::Refused { rule: "approval", .. })));
    let waits = store.approvals(NOON).unwrap().remove(0);
    assert_eq!((waits.channels.as_str(), waits.approved.as_deref()), ("shown", Some("5")));
    assert!(matches!(store.authorize(&ask(&shown, 3)), Err(StoreError::Refused { .. })), "it has another name");
}
