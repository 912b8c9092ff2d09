//! What went wrong, whose fault it is, and when to try again.
//!
//! Owns the exponential backoff with jitter (seeded, so that a simulation repeats), the reading of the chain's error
//! words, and the list of channels in trouble. Promises that one bad channel does not hold up the others: a failure
//! that names an instruction blames its channel, and a failure that names none makes every channel of the batch stand
//! alone the next time.

use std::collections::HashMap;
use std::time::Duration;

use crate::amount::Amount;
use crate::clock::UnixMillis;
use crate::ledger::store::BatchKind;
use crate::scheme::svm::transaction::Transaction;
use crate::x402::Key;

use super::batch::channel_at;

/// How often a batch may expire unseen before its channels wait.
const EXPIRIES_FREE: u32 = 2;

/// How waiting grows.
#[derive(Clone, Debug)]
pub struct Backoff {
    /// The first wait.
    pub first: Duration,
    /// The longest wait.
    pub longest: Duration,
    /// The longest wait where a deadline runs: a channel that its payer is closing.
    pub longest_urgent: Duration,
    /// Where the jitter starts.
    pub seed: u64,
}

impl Backoff {
    /// The wait after the `attempt`-th failure, counted from 1: doubling, between half and all of it, up to `longest`.
    #[must_use]
    pub fn delay(&self, key: &[u8; 32], attempt: u32, longest: Duration) -> Duration {
        let doublings = attempt.saturating_sub(1).min(31);
        let whole = self.first.saturating_mul(1_u32 << doublings).min(longest);
        let salt = key.first_chunk().map_or(0, |head| u64::from_le_bytes(*head));
        let share = u32::try_from(mix(self.seed ^ salt ^ u64::from(attempt)) % 1025).unwrap_or(0);
        let half = whole / 2;
        half.saturating_add(half.saturating_mul(share) / 1024)
    }
}

/// One round of SplitMix64: spreads what differs in few bits over all of them.
const fn mix(seed: u64) -> u64 {
    let a = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let b = (a ^ (a >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let c = (b ^ (b >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    c ^ (c >> 31)
}

/// Whose fault a failure is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Blame {
    /// This channel's.
    Channel(Key),
    /// One of the batch's, not known which.
    Someone,
    /// None of theirs: the fee payer, the blockhash, the node.
    Nobody,
}

/// What the chain says where no channel of a batch is at fault.
const NOBODYS: [&str; 10] = [
    "insufficientfunds",
    "insufficient funds",
    "insufficient lamports",
    "blockhash",
    "accountnotfound",
    "prior credit",
    "node is behind",
    "node is unhealthy",
    "too many requests",
    "signature verification",
];

/// Reads whose fault the chain's words say it is.
#[must_use]
pub fn blame(error: &str, transaction: &Transaction, lines: &[(Key, Amount)]) -> Blame {
    if let Some(channel) = failed_instruction(error).and_then(|index| channel_at(transaction, lines, index)) {
        return Blame::Channel(channel);
    }
    let lower = error.to_lowercase();
    if NOBODYS.iter().any(|text| lower.contains(text)) {
        return Blame::Nobody;
    }
    match lines {
        [(channel, _)] => Blame::Channel(*channel),
        _ => Blame::Someone,
    }
}

/// The index of the instruction that failed, in any of the forms that nodes write: `{"InstructionError":[3,..]}`,
/// `InstructionError(3, ..)`, `Error processing Instruction 3: ..`.
#[must_use]
pub fn failed_instruction(error: &str) -> Option<usize> {
    let after = ["InstructionError", "rocessing Instruction"]
        .iter()
        .find_map(|mark| error.split_once(mark).map(|(_, after)| after))?;
    let digits = after.trim_start_matches(['"', ':', '[', '(', ' ']);
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits.get(..end)?.parse().ok()
}

/// What the operator can do about an error of the program (`docs/003`, "Error Codes").
#[must_use]
pub fn advice(error: &str) -> &'static str {
    let has = |code: u32| {
        let forms = [format!("Custom({code})"), format!("\"Custom\":{code}}}"), format!("error: 0x{code:x}")];
        forms.iter().any(|form| match error.find(form.as_str()) {
            // "0x2" must not be found in "0x2a".
            Some(at) => !error[at + form.len()..].starts_with(|c: char| c.is_ascii_hexdigit()),
            None => false,
        })
    };
    let table: [(&[u32], &str); 8] = [
        (&[2], "the channel's status has changed; it is read again before the next try"),
        (&[234], "the chain has claimed this much already; it is read again before the next try"),
        (&[235], "the voucher is above the deposit that the chain knows; the top-up may not be confirmed yet"),
        (&[230, 231, 232, 233, 237, 238], "the chain does not accept the voucher; check the ledger's store for damage"),
        (&[2401, 2402, 2403], "the treasury's token account is missing or unusable; create it for this mint"),
        (
            &[51, 52, 53, 54, 55, 56],
            "the mint or the channel's token account is unusable, perhaps frozen by its issuer",
        ),
        (&[2201, 2414], "the chain's clock has not reached the time; it is tried again"),
        (
            &[2404, 2405, 2406, 2407, 2409],
            "the pay_to of the configuration is not the one that the channel was opened with",
        ),
    ];
    if let Some((_, text)) = table.iter().find(|(codes, _)| codes.iter().any(|code| has(*code))) {
        return text;
    }
    let lower = error.to_lowercase();
    if lower.contains("insufficient") || lower.contains("prior credit") || lower.contains("accountnotfound") {
        "the fee payer has too little SOL; fund it"
    } else {
        "it is tried again; if it persists, compare `turnpike settle --check` with the chain"
    }
}

/// A channel in trouble.
#[derive(Clone, Debug)]
pub struct Trouble {
    /// What failed.
    pub kind: BatchKind,
    /// How often.
    pub attempts: u32,
    /// Not tried before then.
    pub until: UnixMillis,
    /// Whether it stands alone in a batch until it succeeds.
    pub alone: bool,
    /// The last error.
    pub error: String,
}

/// The channels in trouble, and the trouble that is nobody's.
#[derive(Debug)]
pub struct Troubles {
    backoff: Backoff,
    channels: HashMap<Key, Trouble>,
    hold: Option<(u32, UnixMillis, String)>,
}

impl Troubles {
    /// None yet.
    #[must_use]
    pub fn new(backoff: Backoff) -> Self {
        Self { backoff, channels: HashMap::new(), hold: None }
    }

    /// A channel's trouble with this kind of batch.
    #[must_use]
    pub fn of(&self, channel: &Key, kind: BatchKind) -> Option<&Trouble> {
        self.channels.get(channel).filter(|trouble| trouble.kind == kind)
    }

    /// Whether a channel stands alone.
    #[must_use]
    pub fn alone(&self, channel: &Key) -> bool {
        self.channels.get(channel).is_some_and(|trouble| trouble.alone)
    }

    /// Every channel in trouble.
    pub fn iter(&self) -> impl Iterator<Item = (&Key, &Trouble)> {
        self.channels.iter()
    }

    /// A channel has failed: it waits, longer each time. Returns how long.
    pub fn blame(&mut self, channel: Key, kind: BatchKind, error: &str, now: UnixMillis) -> Duration {
        let attempts = self.entry(channel, kind, error, true);
        let delay = self.backoff.delay(&channel.0, attempts, self.longest(kind));
        self.wait(&channel, now.plus(delay));
        delay
    }

    /// One of these has failed: each is tried alone, at once.
    pub fn split(&mut self, channels: impl Iterator<Item = Key>, kind: BatchKind, error: &str, now: UnixMillis) {
        for channel in channels {
            self.entry(channel, kind, error, true);
            self.wait(&channel, now);
        }
    }

    /// A batch has expired unseen: it is tried again at once, and from the third time on after a wait.
    pub fn expire(&mut self, channels: impl Iterator<Item = Key>, kind: BatchKind, error: &str, now: UnixMillis) {
        for channel in channels {
            let attempts = self.entry(channel, kind, error, false);
            let late = attempts.saturating_sub(EXPIRIES_FREE);
            let delay = self.backoff.delay(&channel.0, late, self.longest(kind));
            self.wait(&channel, if late == 0 { now } else { now.plus(delay) });
        }
    }

    /// A channel has succeeded, or is no more.
    pub fn clear(&mut self, channel: &Key) {
        self.channels.remove(channel);
    }

    /// An operator says that the cause is mended: nobody waits.
    pub fn forgive(&mut self) {
        for trouble in self.channels.values_mut() {
            trouble.until = UnixMillis(i64::MIN);
        }
        self.hold = None;
    }

    /// Nobody's fault: everything new waits. The wait stays short, for a deadline may be running.
    pub fn hold(&mut self, error: &str, now: UnixMillis) -> Duration {
        let known = self.hold.as_ref().map_or(0, |(attempts, ..)| *attempts);
        // Batches that run side by side and fail together count once.
        let attempts = if self.held(now).is_some() { known } else { known.saturating_add(1) };
        let delay = self.backoff.delay(&[0; 32], attempts, self.backoff.longest_urgent);
        self.hold = Some((attempts, now.plus(delay), error.to_owned()));
        delay
    }

    /// Something went well: nothing is held.
    pub fn release(&mut self) {
        self.hold = None;
    }

    /// Why everything new waits now.
    #[must_use]
    pub fn held(&self, now: UnixMillis) -> Option<&str> {
        self.hold.as_ref().filter(|(_, until, _)| now < *until).map(|(.., error)| error.as_str())
    }

    const fn longest(&self, kind: BatchKind) -> Duration {
        match kind {
            BatchKind::Seal => self.backoff.longest_urgent,
            BatchKind::Claim | BatchKind::Distribute | BatchKind::CleanUp => self.backoff.longest,
        }
    }

    fn entry(&mut self, channel: Key, kind: BatchKind, error: &str, alone: bool) -> u32 {
        let fresh = || Trouble { kind, attempts: 0, until: UnixMillis(i64::MIN), alone: false, error: String::new() };
        let trouble = self.channels.entry(channel).or_insert_with(fresh);
        if trouble.kind != kind {
            *trouble = fresh();
        }
        trouble.attempts = trouble.attempts.saturating_add(1);
        trouble.alone |= alone;
        error.clone_into(&mut trouble.error);
        trouble.attempts
    }

    fn wait(&mut self, channel: &Key, until: UnixMillis) {
        if let Some(trouble) = self.channels.get_mut(channel) {
            trouble.until = until;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::batch::{Line, pack};
    use super::super::plan::Action;
    use super::super::testing::{public, record, seller};
    use super::*;

    fn backoff(seed: u64) -> Backoff {
        Backoff {
            first: Duration::from_secs(2),
            longest: Duration::from_secs(600),
            longest_urgent: Duration::from_secs(15),
            seed,
        }
    }

    #[test]
    fn the_failed_instruction_is_read_in_every_form() {
        let table = [
            (r#"{"InstructionError":[3,{"Custom":234}]}"#, Some(3)),
            ("InstructionError(12, Custom(234))", Some(12)),
            ("InstructionError [2, Custom(2)]", Some(2)),
            ("Transaction simulation failed: Error processing Instruction 5: custom program error: 0xea", Some(5)),
            ("BlockhashNotFound", None),
            ("InstructionError", None),
            ("InstructionError(x)", None),
            ("InstructionError(99999999999999999999999)", None),
        ];
        for (error, expected) in table {
            assert_eq!(failed_instruction(error), expected, "{error}");
        }
    }

    #[test]
    fn blame_falls_on_the_channel_the_batch_or_nobody() {
        let seller = seller();
        let lines = (1..=3).map(|n| Line::new(Action::Claim, record(&seller, n, 5, 0, 0), true).unwrap()).collect();
        let (drafts, _) = pack(lines, 4, public(201), 0, &|_| false);
        let journal = drafts[0].journal();
        let transaction = drafts[0].transaction(public(201), 0, [7; 32], 0).unwrap();
        let of = |error: &str| blame(error, &transaction, &journal);
        assert_eq!(of(r#"{"InstructionError":[4,{"Custom":234}]}"#), Blame::Channel(journal[1].0));
        assert_eq!(of(r#"{"InstructionError":[5,{"Custom":234}]}"#), Blame::Channel(journal[2].0));
        assert_eq!(of(r#"{"InstructionError":[0,"ComputationalBudgetExceeded"]}"#), Blame::Someone);
        assert_eq!(of("something else"), Blame::Someone);
        assert_eq!(of("InsufficientFundsForFee"), Blame::Nobody);
        assert_eq!(of("BlockhashNotFound"), Blame::Nobody);
        assert_eq!(blame("something else", &transaction, &journal[..1]), Blame::Channel(journal[0].0));
    }

    #[test]
    fn advice_fits_the_code() {
        assert!(advice(r#"{"InstructionError":[3,{"Custom":234}]}"#).contains("claimed this much already"));
        assert!(advice("Error processing Instruction 5: custom program error: 0xea").contains("claimed this much"));
        assert!(advice("InstructionError(1, Custom(2401))").contains("treasury"));
        assert!(advice("custom program error: 0x2").contains("status"));
        assert!(advice("InsufficientFundsForFee").contains("fund"));
        assert!(!advice("custom program error: 0x2ff").contains("status"));
    }

    #[test]
    fn trouble_with_one_kind_does_not_hold_up_another() {
        let mut troubles = Troubles::new(backoff(1));
        let (key, now) = (public(1), UnixMillis(0));
        troubles.blame(key, BatchKind::Claim, "x", now);
        assert!(troubles.of(&key, BatchKind::Claim).is_some_and(|trouble| trouble.until > now));
        assert!(troubles.of(&key, BatchKind::Seal).is_none());
        troubles.blame(key, BatchKind::Seal, "y", now);
        assert_eq!(troubles.of(&key, BatchKind::Seal).map(|trouble| trouble.attempts), Some(1));
    }

    #[test]
    fn an_expired_batch_is_tried_twice_at_once_and_then_waits() {
        let mut troubles = Troubles::new(backoff(1));
        let (key, now) = (public(1), UnixMillis(1000));
        let waits: Vec<bool> = (0..4)
            .map(|_| {
                troubles.expire([key].into_iter(), BatchKind::Claim, "expired", now);
                troubles.of(&key, BatchKind::Claim).unwrap().until > now
            })
            .collect();
        assert_eq!(waits, [false, false, true, true]);
        assert!(!troubles.alone(&key));
    }

    proptest! {
        #[test]
        fn waits_grow_within_bounds_and_repeat(seed: u64, key: [u8; 32], attempt in 1_u32..100) {
            let backoff = backoff(seed);
            let delay = backoff.delay(&key, attempt, backoff.longest);
            let whole = backoff.first.saturating_mul(1 << attempt.min(20).saturating_sub(1)).min(backoff.longest);
            prop_assert!(delay >= whole / 2 && delay <= whole);
            prop_assert_eq!(delay, backoff.delay(&key, attempt, backoff.longest));
        }

        #[test]
        fn no_words_of_the_chain_cause_a_panic(error in ".{0,80}") {
            let _ = failed_instruction(&error);
            let _ = advice(&error);
        }
    }
}
