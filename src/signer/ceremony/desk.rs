//! A participant's side of a ceremony on its disk: a directory with its state, what it has received and what it sends.
//!
//! Owns the directory: `state.json` (`desk/state.rs`), `in/` (cards and letters of the others, put there by a courier), `out/`
//! (its own). Promises: a step may be broken off anywhere and done again, as a state is durable before anything that came of it
//! leaves; nothing secret is written in the clear; the new share takes its place when both others have said that every pair of
//! the new shares has signed, and the old one is kept beside it until all new ones are in their places. Refuses a file that is not the one waited for and goes on waiting; ends the ceremony when somebody
//! known to have written it breaks the protocol.
//!
//! A directory must not be copied or restored from a backup while a ceremony goes on: two runs from one state could answer with
//! one nonce twice.

mod install;
mod state;

use std::fs::File;
use std::path::{Path, PathBuf};

pub use self::state::Stage;

use self::state::{Clear, Secrets, State};
use super::card::{self, CARD_BYTES_MAX, Card, CardError, Cards, Identity};
use super::letter::{self, Address, LETTER_BYTES_MAX, LetterError};
use super::{
    Fault, Kind, Machine, Messages, Next, PARTICIPANTS, PackedShare, PublicShares, Rounds, Setup, decode, encode,
};
use crate::signer::ecdsa::{self, EcdsaRounds};
use crate::signer::frost::FrostRounds;
use crate::signer::keystore::{
    self, Curve, Ed25519, Kdf, KeystoreError, PASSPHRASE_CHARS_MIN, Passphrase, SHARES, Secp256k1, read_text,
    write_over,
};

/// More rounds than any ceremony has.
const ROUNDS_MAX: u8 = 12;

/// Why a step was not done.
#[derive(Debug, thiserror::Error)]
pub enum DeskError {
    /// Files, shares, passphrases.
    #[error(transparent)]
    Keystore(#[from] KeystoreError),
    /// A card that does not fit.
    #[error(transparent)]
    Card(#[from] CardError),
    /// A letter that is not the one waited for. The ceremony goes on with the right one.
    #[error(transparent)]
    Letter(#[from] LetterError),
    /// The ceremony is over, as somebody broke the protocol.
    #[error(
        "the ceremony is over: {0}. Nothing of it is used, and every share is as it was. Find out what happened at the participant \
         that is named, then begin again: all three with a new directory"
    )]
    Over(String),
    /// Begun before.
    #[error("{path}: a ceremony has been begun here; go on with `turnpike ceremony step`, or choose a new directory", path = .0.display())]
    Exists(PathBuf),
    /// Not begun.
    #[error("{path}: no ceremony has been begun here; begin with `turnpike ceremony start`", path = .0.display())]
    NoCeremony(PathBuf),
    /// Two at once.
    #[error("{path}: another command is at work in this directory; wait until it is done", path = .0.display())]
    Busy(PathBuf),
    /// A directory or a file in it cannot be used.
    #[error("{path}: cannot be used: {source}", path = .path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The state cannot be read.
    #[error("{path}: cannot be gone on with ({what}); begin the ceremony again in a new directory", path = .path.display())]
    BadState {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
    /// The passphrase is another, or the file was changed.
    #[error(
        "{path}: the passphrase does not open it; give the one that the ceremony was begun with, and if it is that one, the file \
         was changed: begin again", path = .0.display()
    )]
    Passphrase(PathBuf),
    /// Too easily guessed.
    #[error("the passphrase is shorter than {PASSPHRASE_CHARS_MIN} characters; choose a longer one")]
    ShortPassphrase,
    /// Not a participant.
    #[error("there is no participant {0}: they are 1, 2 and 3, as their shares")]
    NoParticipant(u16),
    /// The share of another participant.
    #[error("{path}: is share {found}, this is participant {me}; give share {me}, or take part as {found}", path = .path.display())]
    OthersShare {
        /// The file.
        path: PathBuf,
        /// Which share it is.
        found: u16,
        /// Which is needed.
        me: u16,
    },
    /// The code that was given is not that of the cards.
    #[error(
        "the code is not that of the three cards here, which is {0}: somebody has other cards. Send the cards again by another way, \
         and compare the code by voice"
    )]
    WrongCode(String),
    /// The share file is not the one that is renewed.
    #[error(
        "{path}: is not the share that this ceremony renews, and is left as it is; move it away and do the step again", path = .0.display()
    )]
    AnotherShare(PathBuf),
    /// A file where the old share is to be kept.
    #[error("{path}: is in the way, the old share is to be kept there; move it away and do the step again", path = .0.display())]
    InTheWay(PathBuf),
    /// The old share is still there.
    #[error("{path}: the old share cannot be destroyed: {source}; delete it, and do the step again", path = .path.display())]
    OldShare {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// What was written is not what is read.
    #[error("{path}: was written and does not read back; check the disk and do the step again", path = .0.display())]
    NotReadBack(PathBuf),
    /// A step of ours failed before anything was sent.
    #[error("the step failed: {0}; do it again")]
    Failed(Fault),
}

impl From<Fault> for DeskError {
    fn from(fault: Fault) -> Self {
        Self::Failed(fault)
    }
}

/// What a ceremony begins with.
pub struct Start<'a> {
    /// The participant's directory.
    pub directory: &'a Path,
    /// What is done.
    pub kind: Kind,
    /// Which participant this is.
    pub me: u16,
    /// Whether the keys are thrown away.
    pub rehearsal: bool,
    /// The share that is renewed, and where the new one is written.
    pub share: &'a Path,
    /// Of the share and of the state.
    pub passphrase: &'a Passphrase,
    /// What makes guessing it slow.
    pub kdf: Kdf,
}

/// Where a participant stands, and what is to be done next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// What is done.
    pub ceremony: Kind,
    /// The curve of the key.
    pub curve: String,
    /// Whether the keys are thrown away.
    pub rehearsal: bool,
    /// Which participant this is.
    pub me: u16,
    /// Where the new share is written.
    pub share: PathBuf,
    /// How far it has come.
    pub stage: Stage,
    /// The code to compare by voice, once all cards are there.
    pub code: Option<String>,
    /// Files that are waited for.
    pub waiting_for: Vec<PathBuf>,
    /// Files that the others may still wait for.
    pub to_carry: Vec<PathBuf>,
}

/// Begins a ceremony: makes the directory, the state and the card.
///
/// # Errors
/// [`DeskError`]; nothing has been begun then.
pub fn start<C: Curve>(start: &Start<'_>) -> Result<Standing, DeskError> {
    let Start { directory, kind, me, rehearsal, share: path, passphrase, kdf } = *start;
    let lost = if let Kind::Replace(lost) = kind { lost } else { me };
    if let Some(wrong) = [me, lost].into_iter().find(|participant| !PARTICIPANTS.contains(participant)) {
        return Err(DeskError::NoParticipant(wrong));
    }
    if !passphrase.is_long_enough() {
        return Err(DeskError::ShortPassphrase);
    }
    let mut share = None;
    if kind.needs_share(me) {
        let opened = keystore::open_of::<C>(path, passphrase, rehearsal)?;
        if opened.identifier() != me {
            return Err(DeskError::OthersShare { path: path.to_owned(), found: opened.identifier(), me });
        }
        share = Some(opened);
    } else if kind == Kind::Generate && path.symlink_metadata().is_ok() {
        return Err(KeystoreError::Exists(path.to_owned()).into());
    }
    if state::path_in(directory).symlink_metadata().is_ok() {
        return Err(DeskError::Exists(directory.to_owned()));
    }
    for folder in [directory, &directory.join("in"), &directory.join("out")] {
        make(folder)?;
    }
    let _lock = lock(directory)?;
    let identity = Identity::generate()?;
    let card = identity.card(kind, me, rehearsal, share.as_ref().map(PublicShares::of))?;
    let card = serde_json::to_string_pretty(&card).map_err(Fault::somewhere)? + "\n";
    let machine = share.map(|share| encode(&PackedShare::pack(share))).transpose()?.unwrap_or_default();
    let secrets = Secrets { identity, card, cards: None, machine, letters: Vec::new(), address: String::new() };
    let share = std::path::absolute(path).map_err(|source| DeskError::Directory { path: path.to_owned(), source })?;
    let clear =
        Clear { ceremony: kind, curve: C::NAME.to_owned(), rehearsal, participant: me, share, stage: Stage::Cards };
    let state = State::create(directory, passphrase, kdf, clear, secrets)?;
    post(directory, &state)?;
    Ok(standing(directory, &state.clear, None))
}

/// Where the ceremony in a directory stands, without its passphrase.
///
/// # Errors
/// [`DeskError::NoCeremony`], [`DeskError::BadState`].
pub fn status(directory: &Path) -> Result<Standing, DeskError> {
    let clear = state::peek(directory)?;
    let code = if clear.stage == Stage::Cards {
        cards(directory, clear.participant, None)?.map(|cards| cards.code())
    } else {
        None
    };
    Ok(standing(directory, &clear, code))
}

/// Goes on as far as what has been received allows. The first round needs the `code`, by which the operator says that the others
/// have the same cards.
///
/// # Errors
/// [`DeskError`]. But for [`DeskError::Over`], the step can be done again when what it names is mended.
pub fn step(directory: &Path, passphrase: &Passphrase, kdf: Kdf, code: Option<&str>) -> Result<Standing, DeskError> {
    state::peek(directory)?;
    let _lock = lock(directory)?;
    let clear = state::peek(directory)?;
    match clear.stage {
        Stage::Done { .. } => return Ok(standing(directory, &clear, None)),
        Stage::Failed(why) => return Err(DeskError::Over(why)),
        Stage::Cards | Stage::Round(_) => {}
    }
    let state = State::open(directory, passphrase)?;
    // A crash may have come after the state was written and before its files were.
    post(directory, &state)?;
    if state.clear.curve == Ed25519::NAME {
        go_on::<FrostRounds>(directory, state, passphrase, kdf, code, |group| Some(group.to_string()))
    } else if state.clear.curve == Secp256k1::NAME {
        let address = |group: &_| ecdsa::address_of(group).map(|address| address.to_string());
        go_on::<EcdsaRounds>(directory, state, passphrase, kdf, code, address)
    } else {
        Err(DeskError::BadState {
            path: state::path_in(directory),
            what: "it is of a curve that this release does not know",
        })
    }
}

fn go_on<R: Rounds>(
    directory: &Path,
    mut state: State,
    passphrase: &Passphrase,
    kdf: Kdf,
    code: Option<&str>,
    address: impl Fn(&<R::Curve as Curve>::Point) -> Option<String>,
) -> Result<Standing, DeskError> {
    if state.clear.stage == Stage::Cards {
        let Some(all) = cards(directory, state.clear.participant, Some(&state.secrets.card))? else {
            return Ok(standing(directory, &state.clear, None));
        };
        let right = all.code();
        match code {
            None => return Ok(standing(directory, &state.clear, Some(right))),
            Some(code) if !card::same_code(&right, code) => return Err(DeskError::WrongCode(right)),
            Some(_) => begin::<R>(directory, &mut state, all)?,
        }
    }
    while let Some(messages) = letters(directory, &state)? {
        let machine: Option<Machine<R>> = decode(&state.secrets.machine);
        let unreadable =
            || DeskError::BadState { path: state::path_in(directory), what: "another release has written it" };
        let machine = machine.ok_or_else(unreadable)?;
        let setup = machine.setup().clone();
        match machine.next(messages) {
            Ok(Next::Send(machine, messages)) => advance(directory, &mut state, &machine, messages)?,
            Ok(Next::Install(share, machine, messages)) => {
                install::install(&state.clear.share, &setup, &share, passphrase, kdf)?;
                state.secrets.address = address(&share.group()).unwrap_or_default();
                advance(directory, &mut state, &machine, messages)?;
            }
            Ok(Next::Done) => {
                install::destroy_old(&state.clear.share)?;
                let address = std::mem::take(&mut state.secrets.address);
                let clear = state.end(Stage::Done { address, generation: setup.generation() })?;
                return Ok(standing(directory, &clear, None));
            }
            Err(fault) => {
                let why = fault.to_string();
                state.end(Stage::Failed(why.clone()))?;
                return Err(DeskError::Over(why));
            }
        }
    }
    Ok(standing(directory, &state.clear, None))
}

/// The first round: the cards are known to be the same for all.
fn begin<R: Rounds>(directory: &Path, state: &mut State, cards: Cards) -> Result<(), DeskError> {
    let Clear { ceremony: kind, participant: me, rehearsal, .. } = state.clear;
    let old = cards.old::<R::Curve>();
    if old.is_none() != (kind == Kind::Generate) {
        return Err(CardError::WrongKey(me).into());
    }
    let setup = Setup { session: cards.session(), kind, me, old, rehearsal };
    let share: Option<PackedShare<R::Curve>> = decode(&state.secrets.machine).filter(|_| kind.needs_share(me));
    let share = share.map(|share| share.unpack(state.clear.share.display().to_string()));
    let (machine, messages) = Machine::<R>::begin(setup, share.as_ref())?;
    state.secrets.cards = Some(cards);
    advance(directory, state, &machine, messages)
}

/// Makes the state durable, and then sends what came of it.
fn advance<R: Rounds>(
    directory: &Path,
    state: &mut State,
    machine: &Machine<R>,
    messages: Messages,
) -> Result<(), DeskError> {
    let (session, round, from) = (machine.setup().session, machine.round(), state.clear.participant);
    let cards = state.secrets.cards.as_ref().ok_or_else(|| Fault::somewhere("there are no cards"))?;
    let mut sealed = Vec::new();
    for (to, message) in messages {
        let address = Address { session, round, from, to };
        sealed.push((address.file_name(), letter::seal(&state.secrets.identity, cards, &address, &message)?));
    }
    state.secrets.machine = encode(machine)?;
    state.secrets.letters = sealed;
    state.clear.stage = Stage::Round(round);
    state.write()?;
    post(directory, state)
}

/// Writes the files that the last step has made, where they are not there.
fn post(directory: &Path, state: &State) -> Result<(), DeskError> {
    let card = (card_name(state.clear.participant), state.secrets.card.clone());
    for (name, text) in state.secrets.letters.iter().chain([&card]) {
        let path = directory.join("out").join(name);
        if path.symlink_metadata().is_err() {
            write_over(&path, text)?;
        }
    }
    Ok(())
}

/// The cards of all three, once those of the others are there. This participant's own is that of its state, where it is open.
fn cards(directory: &Path, me: u16, own: Option<&str>) -> Result<Option<Cards>, DeskError> {
    let mut cards: Vec<Card> = Vec::new();
    for participant in PARTICIPANTS {
        let folder = if participant == me { "out" } else { "in" };
        let path = directory.join(folder).join(card_name(participant));
        let text = match own {
            Some(own) if participant == me => own.to_owned(),
            _ if path.symlink_metadata().is_err() => return Ok(None),
            _ => read_text(&path, CARD_BYTES_MAX)?,
        };
        cards.push(card::read(&path, &text, participant)?);
    }
    let cards: Result<[Card; SHARES], _> = cards.try_into();
    Ok(cards.ok().map(|cards| Cards::of_one_ceremony(cards, me)).transpose()?)
}

/// The messages of the round that is waited for, once both are there.
fn letters(directory: &Path, state: &State) -> Result<Option<Messages>, DeskError> {
    let (Some(cards), Stage::Round(round)) = (&state.secrets.cards, &state.clear.stage) else { return Ok(None) };
    let (session, round, to) = (cards.session(), *round, state.clear.participant);
    let mut messages = Messages::new();
    for from in PARTICIPANTS.into_iter().filter(|from| *from != to) {
        let address = Address { session, round, from, to };
        let path = directory.join("in").join(address.file_name());
        if path.symlink_metadata().is_err() {
            return Ok(None);
        }
        let text = read_text(&path, LETTER_BYTES_MAX)?;
        messages.insert(from, letter::open(&path, &text, &state.secrets.identity, cards, &address)?);
    }
    Ok(Some(messages))
}

fn standing(directory: &Path, clear: &Clear, code: Option<String>) -> Standing {
    let Clear { ceremony, curve, rehearsal, participant: me, share, stage } = clear.clone();
    let others = || PARTICIPANTS.into_iter().filter(|other| *other != me);
    let awaited: Vec<String> = match stage {
        Stage::Cards => others().map(card_name).collect(),
        Stage::Round(round) => others().map(|from| letter_name(round, from, me)).collect(),
        Stage::Done { .. } | Stage::Failed(_) => Vec::new(),
    };
    let there = |path: &PathBuf| path.symlink_metadata().is_ok();
    let waiting_for = awaited.iter().map(|name| directory.join("in").join(name)).filter(|path| !there(path)).collect();
    let out = directory.join("out");
    let letters = |round| others().map(|to| out.join(letter_name(round, me, to))).filter(there).collect::<Vec<_>>();
    let last = (1..=ROUNDS_MAX).rev().find(|round| !letters(*round).is_empty());
    // One step can take two rounds, when the others are ahead: they wait for the letters of both.
    let to_carry = match (&stage, last) {
        (Stage::Failed(_), _) => Vec::new(),
        (_, None) => vec![out.join(card_name(me))],
        (_, Some(1)) => [vec![out.join(card_name(me))], letters(1)].concat(),
        (_, Some(last)) => [letters(last.saturating_sub(1)), letters(last)].concat(),
    };
    Standing { ceremony, curve, rehearsal, me, share, stage, code, waiting_for, to_carry }
}

fn letter_name(round: u8, from: u16, to: u16) -> String {
    Address { session: [0; 32], round, from, to }.file_name()
}

fn card_name(participant: u16) -> String {
    format!("card-{participant}.json")
}

fn make(directory: &Path) -> Result<(), DeskError> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(directory).map_err(|source| DeskError::Directory { path: directory.to_owned(), source })
}

/// One command at a time. The lock ends with the process.
fn lock(directory: &Path) -> Result<File, DeskError> {
    let path = directory.join("lock");
    let file = File::create(&path).map_err(|source| DeskError::Directory { path: path.clone(), source })?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(DeskError::Busy(directory.to_owned())),
        Err(std::fs::TryLockError::Error(source)) => Err(DeskError::Directory { path, source }),
    }
}

#[cfg(test)]
mod tests;
