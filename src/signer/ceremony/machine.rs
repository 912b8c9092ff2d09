//! A participant's side of a ceremony: messages in, messages out, and at the end a share. No IO.
//!
//! Promises: a state is used up by the round that follows it; whoever tells two participants different things to all is found
//! out one round later, as every message repeats what its sender has heard from everybody; a share comes out when the other
//! two have said that they hold theirs and that every pair has signed; the end comes when they have said that theirs are in
//! their places.
//!
//! A message is, in postcard: what its sender has heard to all in the round before (32 bytes for each participant), what it
//! says to all, what it says to its receiver alone.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::{
    Fault, Heard, Kind, MESSAGE_BYTES_MAX, Outgoing, PARTICIPANTS, PackedShare, PublicShares, Rounds, Setup, Turn,
    decode, encode,
};
use crate::signer::keystore::{Curve, KeyShare, SHARES};

/// Messages, by who they are for or who they are from.
pub type Messages = BTreeMap<u16, Zeroizing<Vec<u8>>>;

/// For each participant the hash of what it said to all in a round.
type Said = [[u8; 32]; SHARES];

/// A participant between two rounds. It is not `Clone`, and taking a turn uses it up.
#[derive(Serialize, Deserialize)]
#[serde(bound = "")]
pub struct Machine<R: Rounds> {
    setup: Setup<R::Curve>,
    /// The round whose messages it waits for.
    round: u8,
    before: Said,
    mine: [u8; 32],
    stage: Stage<R>,
}

#[derive(Serialize, Deserialize)]
#[serde(bound = "")]
enum Stage<R: Rounds> {
    Rounds(R),
    /// The share is made; the others have still to say that theirs are.
    Made(PackedShare<R::Curve>),
    /// The share is in its place; the others have still to say that theirs are. What all have come to.
    InPlace(Vec<u8>),
}

/// What a turn leads to.
pub enum Next<R: Rounds> {
    /// Messages to the others, and the state that waits for theirs. The state is to be durable before a message leaves.
    Send(Machine<R>, Messages),
    /// The new share, for which the others hold theirs ready, and the messages which say that it is in its place. The old one is
    /// to be kept until the end.
    Install(KeyShare<R::Curve>, Machine<R>, Messages),
    /// All new shares are in their places: the old ones are to be destroyed.
    Done,
}

#[derive(Serialize, Deserialize)]
struct Parcel {
    before: Said,
    to_all: Vec<u8>,
    to_you: Zeroizing<Vec<u8>>,
}

impl<R: Rounds> Machine<R> {
    /// Begins a ceremony. `share` is the participant's share, where [`Kind::needs_share`].
    ///
    /// # Errors
    /// A [`Fault`] where setup and share do not fit together.
    pub fn begin(setup: Setup<R::Curve>, share: Option<&KeyShare<R::Curve>>) -> Result<(Self, Messages), Fault> {
        fits(&setup, share)?;
        let before = [setup.session; SHARES];
        let (rounds, outgoing) = R::begin(&setup, share)?;
        Self::send(setup, 1, before, Stage::Rounds(rounds), outgoing)
    }

    /// The round whose messages it waits for.
    #[must_use]
    pub const fn round(&self) -> u8 {
        self.round
    }

    /// What was agreed on.
    #[must_use]
    pub const fn setup(&self) -> &Setup<R::Curve> {
        &self.setup
    }

    /// Takes the messages of a round from both others, who are known to have sent them.
    ///
    /// # Errors
    /// A [`Fault`] that names who broke the protocol, where it can tell. The ceremony is over then.
    pub fn next(self, mut inbox: Messages) -> Result<Next<R>, Fault> {
        let Self { setup, round, before, mine, stage } = self;
        let mut said = before;
        let mut heard = Heard::default();
        for from in setup.others() {
            let message = inbox.remove(&from).filter(|message| message.len() <= MESSAGE_BYTES_MAX);
            let parcel: Option<Parcel> = message.and_then(|message| decode(&message));
            let parcel =
                parcel.ok_or_else(|| Fault::of(from, format!("it has no readable message of round {round}")))?;
            same_news(&setup, from, &before, &parcel.before)?;
            put(&mut said, from, hash(&setup, round, from, &parcel.to_all));
            heard.to_all.insert(from, parcel.to_all);
            heard.to_me.insert(from, parcel.to_you);
        }
        put(&mut said, setup.me, mine);
        let round = round.checked_add(1).ok_or_else(|| Fault::somewhere("the ceremony has no end"))?;
        match stage {
            Stage::Rounds(rounds) => match rounds.next(&setup, heard)? {
                Turn::Goes(rounds, outgoing) => {
                    let (machine, messages) = Self::send(setup, round, said, Stage::Rounds(rounds), outgoing)?;
                    Ok(Next::Send(machine, messages))
                }
                Turn::Made(share) => Self::made(setup, round, said, share),
            },
            Stage::Made(share) => {
                let share = share.unpack(format!("the new share {}", setup.me));
                let ours = result(&setup, &PublicShares::of(&share));
                same_result(&heard, &ours)?;
                let outgoing = Outgoing { to_all: ours.clone(), to: BTreeMap::new() };
                let (machine, messages) = Self::send(setup, round, said, Stage::InPlace(ours), outgoing)?;
                Ok(Next::Install(share, machine, messages))
            }
            Stage::InPlace(ours) => same_result(&heard, &ours).map(|()| Next::Done),
        }
    }

    fn made(setup: Setup<R::Curve>, round: u8, said: Said, share: KeyShare<R::Curve>) -> Result<Next<R>, Fault> {
        if setup.old.is_some_and(|old| old.group != share.group) || share.identifier != setup.me {
            return Err(Fault::somewhere("the new share is of another key or participant"));
        }
        let to_all = result(&setup, &PublicShares::of(&share));
        let outgoing = Outgoing { to_all, to: BTreeMap::new() };
        let stage = Stage::Made(PackedShare::pack(share));
        let (machine, messages) = Self::send(setup, round, said, stage, outgoing)?;
        Ok(Next::Send(machine, messages))
    }

    fn send(
        setup: Setup<R::Curve>,
        round: u8,
        before: Said,
        stage: Stage<R>,
        outgoing: Outgoing,
    ) -> Result<(Self, Messages), Fault> {
        let Outgoing { to_all, mut to } = outgoing;
        let mine = hash(&setup, round, setup.me, &to_all);
        let mut messages = Messages::new();
        for receiver in setup.others() {
            let to_you = to.remove(&receiver).unwrap_or_default();
            messages.insert(receiver, encode(&Parcel { before, to_all: to_all.clone(), to_you })?);
        }
        Ok((Self { setup, round, before, mine, stage }, messages))
    }
}

/// Runs a whole ceremony between three participants in this process. `shares` are the old ones, in the order of the
/// participants.
///
/// # Errors
/// A [`Fault`], which can only be of a share that is not what it says.
pub fn play<R: Rounds>(
    kind: Kind,
    rehearsal: bool,
    shares: [Option<&KeyShare<R::Curve>>; SHARES],
) -> Result<[KeyShare<R::Curve>; SHARES], Fault> {
    let mut session = [0; 32];
    getrandom::fill(&mut session).map_err(Fault::somewhere)?;
    let old = shares.iter().flatten().next().map(|share| PublicShares::of(share));
    let mut waiting = Vec::new();
    let mut post: BTreeMap<u16, Messages> = BTreeMap::new();
    let deliver = |post: &mut BTreeMap<u16, Messages>, from: u16, messages: Messages| {
        for (to, message) in messages {
            post.entry(to).or_default().insert(from, message);
        }
    };
    for (me, share) in PARTICIPANTS.into_iter().zip(shares) {
        let (machine, messages) = Machine::<R>::begin(Setup { session, kind, me, old, rehearsal }, share)?;
        deliver(&mut post, me, messages);
        waiting.push(machine);
    }
    let mut made = Vec::new();
    while made.len() < SHARES {
        let mut inboxes = std::mem::take(&mut post);
        for machine in std::mem::take(&mut waiting) {
            let me = machine.setup.me;
            match machine.next(inboxes.remove(&me).unwrap_or_default())? {
                Next::Send(machine, messages) => {
                    deliver(&mut post, me, messages);
                    waiting.push(machine);
                }
                Next::Install(share, _, _) => made.push(share),
                Next::Done => return Err(Fault::somewhere("the ceremony ended before it came to shares")),
            }
        }
    }
    made.try_into().map_err(|_| Fault::somewhere("the participants did not end together"))
}

fn fits<C: Curve>(setup: &Setup<C>, share: Option<&KeyShare<C>>) -> Result<(), Fault> {
    let right = match (share, setup.old) {
        _ if !PARTICIPANTS.contains(&setup.me) => false,
        (None, None) => setup.kind == Kind::Generate,
        (None, Some(_)) => setup.kind == Kind::Replace(setup.me),
        (Some(share), Some(old)) => {
            let same = PublicShares::of(share) == old && share.rehearsal == setup.rehearsal;
            setup.kind.needs_share(setup.me) && share.identifier == setup.me && same
        }
        (Some(_), None) => false,
    };
    let lost = matches!(setup.kind, Kind::Replace(lost) if !PARTICIPANTS.contains(&lost));
    if right && !lost {
        Ok(())
    } else {
        Err(Fault::of(setup.me, "its share is not the one that the ceremony is about"))
    }
}

/// Whether another participant has heard in the last round what this one has heard.
fn same_news<C: Curve>(setup: &Setup<C>, from: u16, ours: &Said, theirs: &Said) -> Result<(), Fault> {
    for ((about, ours), theirs) in PARTICIPANTS.iter().zip(ours).zip(theirs) {
        if ours != theirs {
            let what = format!("participant {from} says that {about} told it something else in the last round");
            // What this participant said, it knows; what the sender said, the sender knows.
            let known = *about == setup.me || *about == from;
            return Err(if known { Fault::of(from, what) } else { Fault::among(&[*about, from], what) });
        }
    }
    Ok(())
}

fn same_result(heard: &Heard, ours: &[u8]) -> Result<(), Fault> {
    match heard.to_all.iter().find(|(_, theirs)| *theirs != ours) {
        Some((from, _)) => Err(Fault::of(*from, "it has come to other shares than this participant")),
        None => Ok(()),
    }
}

fn put(said: &mut Said, participant: u16, hash: [u8; 32]) {
    if let Some(place) = usize::from(participant).checked_sub(1).and_then(|place| said.get_mut(place)) {
        *place = hash;
    }
}

fn hash<C: Curve>(setup: &Setup<C>, round: u8, from: u16, to_all: &[u8]) -> [u8; 32] {
    let hash = Sha256::new().chain_update(b"turnpike ceremony said\0").chain_update(setup.session);
    hash.chain_update([round]).chain_update(from.to_le_bytes()).chain_update(to_all).finalize().into()
}

/// What all participants must have come to.
fn result<C: Curve>(setup: &Setup<C>, public: &PublicShares<C>) -> Vec<u8> {
    let mut hash = Sha256::new().chain_update(b"turnpike ceremony result\0").chain_update(setup.session);
    hash.update(public.group);
    for share in &public.verifying_shares {
        hash.update(share);
    }
    hash.chain_update(public.generation.to_le_bytes()).finalize().to_vec()
}

#[cfg(test)]
mod tests;
