//! Three participants' directories in one process, and a courier that loses, mixes up, keeps and alters.

use std::fs;

use tempfile::TempDir;

use super::*;
use crate::signer::frost;
use crate::signer::keystore::KeyShare;

/// Three directories, and their shares beside them.
struct World {
    root: TempDir,
    kind: Kind,
    rehearsal: bool,
}

fn passphrase(me: u16) -> Passphrase {
    Passphrase::new(format!("correct horse battery {me}"))
}

impl World {
    fn new(kind: Kind, rehearsal: bool) -> Self {
        Self { root: tempfile::tempdir().unwrap(), kind, rehearsal }
    }

    /// Begins another ceremony with the shares of this one.
    fn again(self, kind: Kind) -> Self {
        for me in PARTICIPANTS {
            fs::remove_dir_all(self.directory(me)).unwrap();
        }
        Self { kind, ..self }
    }

    fn directory(&self, me: u16) -> PathBuf {
        self.root.path().join(format!("participant-{me}"))
    }

    fn share(&self, me: u16) -> PathBuf {
        self.root.path().join(format!("share-{me}.json"))
    }

    fn start(&self, me: u16) -> Result<Standing, DeskError> {
        self.start_on::<Ed25519>(me)
    }

    fn start_on<C: Curve>(&self, me: u16) -> Result<Standing, DeskError> {
        start::<C>(&Start {
            directory: &self.directory(me),
            kind: self.kind,
            me,
            rehearsal: self.rehearsal,
            share: &self.share(me),
            passphrase: &passphrase(me),
            kdf: Kdf::FAST_FOR_TESTS,
        })
    }

    fn step(&self, me: u16, code: Option<&str>) -> Result<Standing, DeskError> {
        step(&self.directory(me), &passphrase(me), Kdf::FAST_FOR_TESTS, code)
    }

    /// Carries everything that is for a participant.
    fn carry_to(&self, to: u16) {
        for from in PARTICIPANTS.into_iter().filter(|from| *from != to) {
            for entry in fs::read_dir(self.directory(from).join("out")).unwrap() {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                if name.ends_with(&format!("to-{to}.json")) || name.starts_with("card") {
                    fs::copy(&path, self.directory(to).join("in").join(name)).unwrap();
                }
            }
        }
    }

    fn carry(&self) {
        PARTICIPANTS.into_iter().for_each(|to| self.carry_to(to));
    }

    /// All start, exchange cards and give the code: everybody waits for round 1.
    fn begin(&self) {
        for me in PARTICIPANTS {
            self.start(me).unwrap();
        }
        self.carry();
        let code = self.step(1, None).unwrap().code.unwrap();
        for me in PARTICIPANTS {
            assert_eq!(self.step(me, Some(&code)).unwrap().stage, Stage::Round(1));
        }
    }

    fn finish(&self) {
        loop {
            self.carry();
            let stages = PARTICIPANTS.map(|me| self.step(me, None).unwrap().stage);
            if stages.iter().all(|stage| matches!(stage, Stage::Done { .. })) {
                break;
            }
        }
    }

    fn shares(&self) -> [KeyShare; SHARES] {
        PARTICIPANTS.map(|me| keystore::open_of(&self.share(me), &passphrase(me), self.rehearsal).unwrap())
    }

    fn address(&self) -> String {
        frost::prove(&self.shares()).unwrap().to_string()
    }
}

fn made() -> World {
    let world = World::new(Kind::Generate, false);
    world.begin();
    world.finish();
    world
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn a_key_is_made_refreshed_and_a_holder_is_replaced() {
    let world = made();
    let address = world.address();
    let Ok(Stage::Done { address: told, generation: 1 }) = world.step(2, None).map(|standing| standing.stage) else {
        panic!("it does not say again that it is done")
    };
    assert_eq!(told, address);
    let first = world.shares();
    let world = world.again(Kind::Refresh);
    world.begin();
    world.finish();
    assert_eq!(world.address(), address);
    let second = world.shares();
    assert!(first.iter().zip(&second).all(|(old, new)| old.secret != new.secret && new.generation() == 2));
    // The new holder of share 3 has nothing of the old one.
    fs::remove_file(world.share(3)).unwrap();
    let world = world.again(Kind::Replace(3));
    world.begin();
    world.finish();
    assert_eq!(world.address(), address);
    assert!(world.shares().iter().all(|share| share.generation() == 3));
}

/// At every step of every participant: a crash before anything was written, one after the state was, and one in the middle of the
/// letters. Each is followed by the same step again, and the ceremony comes to its end.
#[test]
fn a_crash_anywhere_is_gone_on_from() {
    for kind in [Kind::Generate, Kind::Replace(2)] {
        let world = if kind == Kind::Generate { World::new(kind, false) } else { made().again(kind) };
        world.begin();
        let mut going_on = true;
        while going_on {
            going_on = false;
            for me in PARTICIPANTS {
                world.carry();
                let (directory, before) = (world.directory(me), world.root.path().join("before"));
                copy(&directory, &before);
                let after = world.step(me, None).unwrap();
                // The state is written, some letters are not: the very same letters are written again.
                let of_this_step = match after.stage {
                    Stage::Round(round) => format!("round-{round}-"),
                    _ => "none".to_owned(),
                };
                for path in after.to_carry.iter().filter(|path| path.to_str().unwrap().contains(&of_this_step)) {
                    let letter = fs::read(path).unwrap();
                    fs::remove_file(path).unwrap();
                    world.step(me, None).unwrap();
                    assert_eq!(fs::read(path).unwrap(), letter, "{}", path.display());
                }
                if matches!(after.stage, Stage::Done { .. }) {
                    // The share is written, the state is not.
                    fs::remove_dir_all(&directory).unwrap();
                    copy(&before, &directory);
                    assert_eq!(world.step(me, None).unwrap().stage, after.stage);
                } else {
                    going_on = true;
                    // A file that a crash has left beside the state is nobody's business.
                    fs::write(directory.join("state.json.new"), "half a st").unwrap();
                }
                fs::remove_dir_all(&before).unwrap();
            }
        }
        world.address();
    }
}

/// The third dies when the first has its new share in place and the second has not. The old shares are all still there.
#[test]
fn old_shares_are_kept_until_all_new_ones_are_in_their_places() {
    let world = made().again(Kind::Refresh);
    let address = world.address();
    world.begin();
    let old = |me| world.root.path().join(format!("share-{me}.json.old"));
    while !old(1).exists() {
        for me in [3, 2] {
            world.carry();
            world.step(me, None).unwrap();
        }
        world.carry_to(1);
        world.step(1, None).unwrap();
    }
    assert_eq!(keystore::open::<Ed25519>(&world.share(1), &passphrase(1)).unwrap().generation(), 2);
    assert!(!old(2).exists());
    let kept = fs::read(old(1)).unwrap();
    let now = fs::read(world.share(1)).unwrap();
    fs::write(world.share(1), &kept).unwrap();
    assert_eq!(world.address(), address);
    fs::write(world.share(1), &now).unwrap();
    world.finish();
    assert_eq!(world.address(), address);
    assert!(PARTICIPANTS.iter().all(|me| !old(*me).exists()));
}

/// Nothing left the machine, so the step is done anew with other nonces, and nobody sees a difference.
#[test]
fn a_step_whose_state_was_never_written_is_done_anew() {
    for kind in [Kind::Generate, Kind::Refresh] {
        let world = if kind == Kind::Generate { World::new(kind, false) } else { made().again(kind) };
        world.begin();
        for _ in 1..=6 {
            world.carry();
            let before = world.root.path().join("before");
            copy(&world.directory(1), &before);
            world.step(1, None).unwrap();
            fs::remove_dir_all(world.directory(1)).unwrap();
            fs::rename(&before, world.directory(1)).unwrap();
            for me in PARTICIPANTS {
                world.step(me, None).unwrap();
            }
        }
        world.finish();
        world.address();
    }
}

#[test]
fn a_letter_that_is_not_the_right_one_is_refused_and_the_right_one_is_taken_then() {
    let other = World::new(Kind::Generate, false);
    other.begin();
    let world = World::new(Kind::Generate, false);
    world.begin();
    let name = |round, from, to| format!("round-{round}-from-{from}-to-{to}.json");
    let text =
        |world: &World, me: u16, name: &str| fs::read_to_string(world.directory(me).join("out").join(name)).unwrap();
    let right = text(&world, 2, &name(1, 2, 1));
    let altered = |field: &str| {
        let mut letter: serde_json::Value = serde_json::from_str(&right).unwrap();
        let value = letter[field].as_str().unwrap().to_owned();
        let first = if value.starts_with('A') { "B" } else { "A" };
        letter[field] = format!("{first}{}", &value[1..]).into();
        letter.to_string()
    };
    let table = [
        (altered("ciphertext"), "is not as participant 2 wrote it"),
        (altered("nonce"), "is not as participant 2 wrote it"),
        (altered("signature"), "is not as participant 2 wrote it"),
        (altered("session"), "belongs to another ceremony"),
        (text(&other, 2, &name(1, 2, 1)), "belongs to another ceremony"),
        (text(&world, 2, &name(1, 2, 3)), "is in truth the letter of round 1 from 2 to 3"),
        (text(&world, 3, &name(1, 3, 1)), "is in truth the letter of round 1 from 3 to 1"),
        (text(&world, 1, &name(1, 1, 2)), "is in truth the letter of round 1 from 1 to 2"),
        (right.replace("\"version\": 1", "\"version\": 2"), "is of version 2, this release reads 1"),
        (right.replace("\"from\": 2", "\"from\": 3"), "is in truth the letter of round 1 from 3 to 1"),
        (right[..right.len() / 2].to_owned(), "is no letter"),
        (String::new(), "is no letter"),
    ];
    world.carry_to(1);
    let place = world.directory(1).join("in").join(name(1, 2, 1));
    for (wrong, what) in table {
        fs::write(&place, wrong).unwrap();
        let error = world.step(1, None).unwrap_err().to_string();
        assert!(error.starts_with(&place.display().to_string()), "{error}");
        assert!(error.contains(what), "{what}: {error}");
        assert!(error.ends_with("have participant 2 send the letter of this name again"), "{error}");
    }
    fs::write(&place, &right).unwrap();
    assert_eq!(world.step(1, None).unwrap().stage, Stage::Round(2));
    // One of a round that is over, under the name of the next.
    fs::write(world.directory(1).join("in").join(name(2, 2, 1)), &right).unwrap();
    fs::write(world.directory(1).join("in").join(name(2, 3, 1)), &right).unwrap();
    let error = world.step(1, None).unwrap_err().to_string();
    assert!(error.contains("is in truth the letter of round 1 from 2 to 1"), "{error}");
    for from in [2, 3] {
        fs::remove_file(world.directory(1).join("in").join(name(2, from, 1))).unwrap();
    }
    world.finish();
    world.address();
}

/// Who seals and signs nonsense is known to have done it, and the ceremony is over.
#[test]
fn a_participant_that_lies_is_named_and_nothing_is_used() {
    let world = made().again(Kind::Refresh);
    world.begin();
    let before = PARTICIPANTS.map(|me| fs::read(world.share(me)).unwrap());
    let liar = State::open(&world.directory(3), &passphrase(3)).unwrap();
    let cards = liar.secrets.cards.as_ref().unwrap();
    let address = Address { session: cards.session(), round: 1, from: 3, to: 1 };
    let lie = letter::seal(&liar.secrets.identity, cards, &address, b"nonsense").unwrap();
    fs::write(world.directory(3).join("out").join(address.file_name()), lie).unwrap();
    world.carry_to(1);
    let error = world.step(1, None).unwrap_err();
    assert!(error.to_string().contains("participant 3: it has no readable message of round 1"), "{error}");
    assert!(matches!(error, DeskError::Over(_)));
    // It stays over, and its secrets are gone.
    world.carry_to(1);
    assert!(matches!(world.step(1, None), Err(DeskError::Over(_))));
    assert!(!fs::read_to_string(world.directory(1).join("state.json")).unwrap().contains("ciphertext"));
    assert!(matches!(status(&world.directory(1)).unwrap().stage, Stage::Failed(_)));
    assert_eq!(PARTICIPANTS.map(|me| fs::read(world.share(me)).unwrap()), before);
}

/// A courier that carries only what each step names: nothing that is waited for is left behind, however far ahead others are.
#[test]
fn what_a_step_names_is_all_that_has_to_be_carried() {
    let world = World::new(Kind::Generate, false);
    let carry = |standing: &Standing| {
        for path in &standing.to_carry {
            let name = path.file_name().unwrap().to_str().unwrap();
            for to in PARTICIPANTS.into_iter().filter(|to| *to != standing.me) {
                if name.starts_with("card") || name.ends_with(&format!("-to-{to}.json")) {
                    fs::copy(path, world.directory(to).join("in").join(name)).unwrap();
                }
            }
        }
    };
    let begun = PARTICIPANTS.map(|me| world.start(me).unwrap());
    begun.iter().for_each(carry);
    let code = world.step(1, None).unwrap().code.unwrap();
    let mut done = 0;
    // Participant 3 goes first and last in turn, so that now it and now the others are ahead.
    for turn in 0..20 {
        done = 0;
        for me in if turn % 2 == 0 { [3, 1, 2] } else { [1, 2, 3] } {
            let standing = world.step(me, Some(&code)).unwrap();
            carry(&standing);
            done += usize::from(matches!(standing.stage, Stage::Done { .. }));
        }
        if done == SHARES {
            break;
        }
    }
    assert_eq!(done, SHARES);
    world.address();
}

#[test]
fn somebody_between_the_participants_is_found_by_the_code() {
    let (world, between) = (World::new(Kind::Generate, false), World::new(Kind::Generate, false));
    for me in PARTICIPANTS {
        world.start(me).unwrap();
        between.start(me).unwrap();
    }
    world.carry();
    // Participant 1 is given another card for 3.
    fs::copy(between.directory(3).join("out/card-3.json"), world.directory(1).join("in/card-3.json")).unwrap();
    let codes = PARTICIPANTS.map(|me| world.step(me, None).unwrap().code.unwrap());
    assert!(codes[0] != codes[1] && codes[1] == codes[2]);
    assert_eq!(codes[1].len(), 39);
    assert_eq!(status(&world.directory(1)).unwrap().code.as_ref(), Some(&codes[0]));
    assert!(matches!(world.step(1, Some(&codes[1])), Err(DeskError::WrongCode(right)) if right == codes[0]));
    assert_eq!(status(&world.directory(1)).unwrap().stage, Stage::Cards);
    world.carry_to(1);
    let typed = codes[1].to_uppercase().replace('-', " ");
    assert_eq!(world.step(1, Some(&typed)).unwrap().stage, Stage::Round(1));
}

#[test]
fn cards_of_different_ceremonies_are_refused() {
    let world = World::new(Kind::Generate, false);
    for me in PARTICIPANTS {
        world.start(me).unwrap();
    }
    let card = fs::read_to_string(world.directory(2).join("out/card-2.json")).unwrap();
    let of_3 = fs::read_to_string(world.directory(3).join("out/card-3.json")).unwrap();
    let table = [
        (
            card.replace("\"generate\"", "\"refresh\""),
            "has the purpose refresh the shares, that of this participant has generate a key",
        ),
        (card.replace("\"ed25519\"", "\"secp256k1\""), "has the curve secp256k1"),
        (card.replace("\"rehearsal\": false", "\"rehearsal\": true"), "has as a rehearsal true"),
        (card.replace("\"version\": 1", "\"version\": 2"), "its version is 2, this release reads 1"),
        (of_3, "it is that of participant 3"),
        (card.replace("\"signing_key\": \"", "\"signing_key\": \"A"), "its keys are no keys"),
        ("{}".to_owned(), "missing field"),
    ];
    for (card, what) in table {
        world.carry_to(1);
        fs::write(world.directory(1).join("in/card-2.json"), card).unwrap();
        let error = world.step(1, None).unwrap_err().to_string();
        assert!(error.contains(what) && error.contains("participant 2"), "{what}: {error}");
    }
}

/// Neither the bytes of a share nor of what led to it, in any of the forms that files have, are in what is written.
#[test]
fn nothing_secret_is_written_in_the_clear() {
    let world = World::new(Kind::Generate, false);
    world.begin();
    let mut secrets: Vec<Vec<u8>> = Vec::new();
    let mut files: Vec<(PathBuf, Vec<u8>)> = Vec::new();
    let mut look = |world: &World| {
        for me in PARTICIPANTS {
            for folder in ["", "in", "out"] {
                for entry in fs::read_dir(world.directory(me).join(folder)).unwrap() {
                    let path = entry.unwrap().path();
                    if path.is_file() {
                        files.push((path.clone(), fs::read(path).unwrap()));
                    }
                }
            }
        }
    };
    for _ in 1..=6 {
        for me in PARTICIPANTS {
            let State { secrets: Secrets { identity, machine, .. }, .. } =
                State::open(&world.directory(me), &passphrase(me)).unwrap();
            secrets.push(encode(&identity).unwrap().to_vec());
            secrets.extend(
                machine.windows(32).step_by(16).map(<[u8]>::to_vec).filter(|part| part.iter().any(|byte| *byte > 0)),
            );
        }
        look(&world);
        world.carry();
        for me in PARTICIPANTS {
            world.step(me, None).unwrap();
        }
    }
    look(&world);
    secrets.extend(world.shares().iter().map(|share| share.secret.to_vec()));
    assert!(files.len() > 50 && secrets.len() > 100);
    let within = |text: &[u8], part: &[u8]| text.windows(part.len()).any(|window| window == part);
    // The ceremony's name and the public points, which are texts, lie in the state and elsewhere, and are no secret.
    let session = cards(&world.directory(1), 1, None).unwrap().unwrap().session().repeat(4);
    for secret in secrets.iter().filter(|secret| !within(&session, secret) && !secret.is_ascii()) {
        use base64::Engine;
        let base64 = base64::engine::general_purpose::STANDARD.encode(&secret[..30]);
        for (path, text) in &files {
            assert!(!within(text, secret) && !within(text, base64.as_bytes()), "{}", path.display());
        }
    }
}

#[test]
fn a_rehearsal_goes_the_same_way_and_no_signer_takes_what_it_makes() {
    let world = World::new(Kind::Generate, true);
    world.begin();
    world.finish();
    let error = keystore::open::<Ed25519>(&world.share(1), &passphrase(1)).err().unwrap().to_string();
    assert!(error.contains("holds a share of a rehearsal, and one of a real key is needed"), "{error}");
    // Its shares are good for further rehearsals, and for nothing else.
    let world = world.again(Kind::Refresh);
    let real = World { rehearsal: false, ..world };
    assert!(matches!(real.start(1), Err(DeskError::Keystore(KeystoreError::Rehearsal { .. }))));
    let world = World { rehearsal: true, ..real };
    world.begin();
    world.finish();
    assert!(world.shares().iter().all(|share| share.rehearsal && share.generation() == 2));
}

#[test]
fn what_cannot_be_begun_says_why() {
    let world = made();
    let again = |kind| World { kind, rehearsal: false, root: tempfile::tempdir().unwrap() };
    assert!(matches!(world.start(1), Err(DeskError::Keystore(KeystoreError::Exists(_)))));
    let world = World { kind: Kind::Refresh, ..world };
    assert!(matches!(world.start(1), Err(DeskError::Exists(_))));
    fs::copy(world.share(2), world.share(1)).unwrap();
    fs::remove_dir_all(world.directory(1)).unwrap();
    let opened = start::<Ed25519>(&Start {
        directory: &world.directory(1),
        kind: Kind::Refresh,
        me: 1,
        rehearsal: false,
        share: &world.share(1),
        passphrase: &passphrase(2),
        kdf: Kdf::FAST_FOR_TESTS,
    });
    assert!(matches!(opened, Err(DeskError::OthersShare { found: 2, me: 1, .. })));
    assert!(matches!(again(Kind::Generate).start(4), Err(DeskError::NoParticipant(4))));
    assert!(matches!(again(Kind::Replace(0)).start(1), Err(DeskError::NoParticipant(0))));
    let nothing = again(Kind::Generate);
    assert!(matches!(nothing.step(1, None), Err(DeskError::NoCeremony(_))));
    nothing.start_on::<Secp256k1>(1).unwrap();
    assert!(matches!(
        step(&nothing.directory(1), &passphrase(2), Kdf::FAST_FOR_TESTS, None),
        Err(DeskError::Passphrase(_))
    ));
    let state = nothing.directory(1).join("state.json");
    let changed = fs::read_to_string(&state).unwrap().replace("share-1.json", "share-9.json");
    fs::write(&state, changed).unwrap();
    assert!(matches!(nothing.step(1, None), Err(DeskError::Passphrase(_))));
    let held = lock(&nothing.directory(1)).unwrap();
    assert!(matches!(nothing.step(1, None), Err(DeskError::Busy(_))));
    drop(held);
}

/// The share file is another one when the ceremony ends: it is left alone, and the step can be done again.
#[test]
fn a_share_that_is_not_the_one_renewed_is_left_alone() {
    let other = made();
    let world = made().again(Kind::Refresh);
    world.begin();
    let kept = fs::read(world.share(1)).unwrap();
    fs::copy(other.share(1), world.share(1)).unwrap();
    let stopped = loop {
        world.carry();
        world.step(2, None).unwrap();
        world.step(3, None).unwrap();
        if let Err(error) = world.step(1, None) {
            break error;
        }
    };
    assert!(matches!(stopped, DeskError::AnotherShare(_)), "{stopped}");
    assert_eq!(fs::read(world.share(1)).unwrap(), fs::read(other.share(1)).unwrap());
    fs::write(world.share(1), kept).unwrap();
    world.finish();
    world.address();
}
