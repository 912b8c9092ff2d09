//! What a cosigner allows beyond the shape of a request: how much, how often, when, and what needs another's word.
//!
//! Pure: a function of the operator's limits, of what was signed before and of a given time. Owns [`Limits`], [`Moves`]
//! (what a request moves, in its own words) and [`judge`]. That each request is what it says, pays only who may be paid and
//! is of an allowed kind is judged before this, by `signer/rules`.
//!
//! What counts. A claim, a close and a voucher of ours name a channel's total; what counts is by how much it is above the
//! highest total of that channel that this cosigner has signed. So signing a claim again, in a new transaction or after
//! a failure, counts nothing, and no order of requests counts less than the chain can pay out. A refund counts whole, but
//! the same digest once only. Sponsoring a client's transaction, paying out what was claimed and a checkpoint of the audit record count nothing: they are
//! bounded by the rules of their kind and by `signatures_per_minute`. Windows of an hour and of a day slide, by whole
//! minutes, rounded against the one who asks.

use crate::amount::Amount;
use crate::clock::UnixMillis;
use crate::policy::{EvmRequest, SigningRequest};
use crate::scheme::evm::eip712::{Domain, channel_id};
use crate::signer::rules::rule;

/// How many minutes a window of an hour has, and one of a day.
pub const HOUR_MINUTES: i64 = 60;
/// See [`HOUR_MINUTES`].
pub const DAY_MINUTES: i64 = 24 * 60;
const MINUTE_MILLIS: i64 = 60_000;

/// The limits of one entry of the policy; what is absent is not limited.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// The most that one signature may newly move.
    pub per_signature: Option<Amount>,
    /// The most in any 60 minutes.
    pub per_hour: Option<Amount>,
    /// The most in any 24 hours.
    pub per_day: Option<Amount>,
    /// The most signatures in any 60 seconds.
    pub signatures_per_minute: Option<u32>,
    /// When it signs at all.
    pub hours: Option<Hours>,
    /// What moves more needs an approval on this machine.
    pub approval_above: Option<Amount>,
}

/// Times of the week, in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hours {
    /// Whether it signs on a day, Monday first.
    pub days: [bool; 7],
    /// From this minute of the day on.
    pub from_minute: u16,
    /// Until before this minute of the day.
    pub to_minute: u16,
}

impl Hours {
    fn contain(&self, now: UnixMillis) -> bool {
        let minute = now.0.div_euclid(MINUTE_MILLIS);
        let (day, minute) = (minute.div_euclid(DAY_MINUTES), minute.rem_euclid(DAY_MINUTES));
        // The first of January 1970 was a Thursday.
        let weekday = usize::try_from(day.saturating_add(3).rem_euclid(7)).unwrap_or(0);
        let open = self.days.get(weekday).copied().unwrap_or(false);
        open && minute >= i64::from(self.from_minute) && minute < i64::from(self.to_minute)
    }
}

/// The minute that a time lies in, counted from the epoch.
#[must_use]
pub const fn minute_of(now: UnixMillis) -> i64 {
    now.0.div_euclid(MINUTE_MILLIS)
}

/// What a request moves, by its own words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Moves {
    /// Totals of channels.
    pub totals: Vec<(String, Amount)>,
    /// What goes out of channels outright.
    pub outright: Vec<(String, Amount)>,
}

impl Moves {
    /// Of a request for a Solana network.
    #[must_use]
    pub fn of(request: &SigningRequest) -> Self {
        let totals = match request {
            SigningRequest::Claim { lines, .. } => {
                lines.iter().map(|line| (line.channel.to_string(), line.cumulative.into())).collect()
            }
            SigningRequest::Close { channel, cumulative: Some(cumulative), .. }
            | SigningRequest::Voucher { channel, cumulative, .. }
            | SigningRequest::CloseAuthorization { channel, cumulative, .. } => {
                vec![(channel.to_string(), (*cumulative).into())]
            }
            SigningRequest::Close { cumulative: None, .. }
            | SigningRequest::Sponsor { .. }
            | SigningRequest::Distribute { .. }
            | SigningRequest::AuditCheckpoint(_) => Vec::new(),
        };
        Self { totals, outright: Vec::new() }
    }

    /// Of a request for an EVM network.
    #[must_use]
    pub fn of_evm(request: &EvmRequest) -> Self {
        match request {
            EvmRequest::ClaimBatch { contract, claims } => {
                let domain = Domain::batch_settlement(contract.chain_id);
                let total = |claim: &crate::policy::EvmClaim| {
                    (channel_id(&domain, &claim.config).to_string(), claim.total_claimed)
                };
                Self { totals: claims.iter().map(total).collect(), outright: Vec::new() }
            }
            EvmRequest::Refund { contract, refund } => {
                let channel = channel_id(&Domain::batch_settlement(contract.chain_id), &refund.config);
                Self { totals: Vec::new(), outright: vec![(channel.to_string(), refund.amount)] }
            }
            EvmRequest::AuditCheckpoint(_) => Self::default(),
        }
    }

    /// The channels that it names, in order, each once.
    #[must_use]
    pub fn channels(&self) -> Vec<&str> {
        let mut channels: Vec<_> =
            self.totals.iter().chain(&self.outright).map(|(channel, _)| channel.as_str()).collect();
        channels.sort_unstable();
        channels.dedup();
        channels
    }
}

/// What was signed before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// What this request counts.
    pub counts: Amount,
    /// What was counted in the last 60 minutes.
    pub hour: Amount,
    /// What was counted in the last 24 hours.
    pub day: Amount,
    /// How many signatures there were in the last 60 seconds.
    pub signatures: u32,
    /// Up to how much somebody has approved this.
    pub approved: Option<Amount>,
}

/// What a limit says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Within all limits.
    Within,
    /// Within all limits, for an approval that is used up by it.
    ByApproval,
    /// Above a limit.
    Above {
        /// The rule's stable name, of [`rule`].
        rule: &'static str,
        /// What was asked and what is allowed.
        detail: String,
    },
    /// It needs an approval first.
    NeedsApproval {
        /// What needs none.
        free: Amount,
    },
}

/// Compares a request with the limits.
#[must_use]
pub fn judge(limits: &Limits, tally: &Tally, now: UnixMillis) -> Verdict {
    let above = |rule, detail| Verdict::Above { rule, detail };
    if limits.hours.is_some_and(|hours| !hours.contain(now)) {
        return above(rule::HOURS, "this cosigner does not sign at this time (UTC)".to_owned());
    }
    if let Some(most) = limits.signatures_per_minute
        && tally.signatures >= most
    {
        return above(
            rule::SIGNATURES_PER_MINUTE,
            format!("{} signatures in the last minute, {most} are allowed", tally.signatures),
        );
    }
    let counts = tally.counts;
    // What moves nothing new is within every cap, however full.
    if counts.is_zero() {
        return Verdict::Within;
    }
    if let Some(most) = limits.per_signature
        && counts > most
    {
        return above(rule::PER_SIGNATURE, format!("{counts} would newly move, one signature may move {most}"));
    }
    let windows =
        [(rule::PER_HOUR, "hour", tally.hour, limits.per_hour), (rule::PER_DAY, "day", tally.day, limits.per_day)];
    for (rule, window, before, most) in windows {
        let Some(most) = most else { continue };
        if before.checked_add(counts).is_none_or(|sum| sum > most) {
            let detail = format!("{counts} would newly move after {before} in the last {window}, {most} may");
            return above(rule, detail);
        }
    }
    match limits.approval_above {
        Some(free) if counts > free => match tally.approved {
            Some(approved) if counts <= approved => Verdict::ByApproval,
            Some(_) | None => Verdict::NeedsApproval { free },
        },
        Some(_) | None => Verdict::Within,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: UnixMillis = UnixMillis(1_764_331_200_000); // Friday, 2025-11-28, 12:00 UTC

    fn rule_of(limits: &Limits, tally: &Tally, now: UnixMillis) -> Option<&'static str> {
        match judge(limits, tally, now) {
            Verdict::Within | Verdict::ByApproval => None,
            Verdict::Above { rule, .. } => Some(rule),
            Verdict::NeedsApproval { .. } => Some(rule::APPROVAL),
        }
    }

    /// Every limit is met exactly, and then passed by one.
    #[test]
    fn limits_hold_at_their_edges() {
        let tally = Tally { counts: Amount::new(10), hour: Amount::new(5), day: Amount::new(50), ..Tally::default() };
        let limit = |amount| Some(Amount::new(amount));
        let table = [
            (Limits::default(), None),
            (Limits { per_signature: limit(10), ..Limits::default() }, None),
            (Limits { per_signature: limit(9), ..Limits::default() }, Some(rule::PER_SIGNATURE)),
            (Limits { per_hour: limit(15), ..Limits::default() }, None),
            (Limits { per_hour: limit(14), ..Limits::default() }, Some(rule::PER_HOUR)),
            (Limits { per_day: limit(60), ..Limits::default() }, None),
            (Limits { per_day: limit(59), ..Limits::default() }, Some(rule::PER_DAY)),
            (Limits { approval_above: limit(10), ..Limits::default() }, None),
            (Limits { approval_above: limit(9), ..Limits::default() }, Some(rule::APPROVAL)),
            (Limits { signatures_per_minute: Some(1), ..Limits::default() }, None),
            (Limits { signatures_per_minute: Some(0), ..Limits::default() }, Some(rule::SIGNATURES_PER_MINUTE)),
        ];
        for (limits, expected) in table {
            assert_eq!(rule_of(&limits, &tally, NOON), expected, "{limits:?}");
        }
        let full = Limits { per_day: limit(1), per_hour: limit(1), per_signature: limit(1), ..Limits::default() };
        assert_eq!(rule_of(&full, &Tally { counts: Amount::ZERO, ..tally }, NOON), None, "what counts nothing passes");
        let overflow = Tally { day: Amount::new(u128::MAX), ..tally };
        assert_eq!(rule_of(&full, &Tally { counts: Amount::new(1), ..overflow }, NOON), Some(rule::PER_HOUR));
    }

    #[test]
    fn an_approval_holds_up_to_its_amount() {
        let limits = Limits { approval_above: Some(Amount::new(9)), ..Limits::default() };
        let tally = |approved| Tally { counts: Amount::new(10), approved, ..Tally::default() };
        assert_eq!(judge(&limits, &tally(Some(Amount::new(10))), NOON), Verdict::ByApproval);
        assert_eq!(rule_of(&limits, &tally(Some(Amount::new(9))), NOON), Some(rule::APPROVAL));
    }

    #[test]
    fn hours_are_those_of_the_week_in_utc() {
        let weekdays = [true, true, true, true, true, false, false];
        let hours = Hours { days: weekdays, from_minute: 8 * 60, to_minute: 12 * 60 };
        let limits = Limits { hours: Some(hours), ..Limits::default() };
        let at = |minutes: i64| rule_of(&limits, &Tally::default(), UnixMillis(NOON.0 + minutes * MINUTE_MILLIS));
        assert_eq!(at(0), Some(rule::HOURS), "the end does not belong to it");
        assert_eq!(at(-1), None);
        assert_eq!(at(-4 * 60), None, "the beginning does");
        assert_eq!(at(-4 * 60 - 1), Some(rule::HOURS));
        assert_eq!(at(24 * 60 - 1), Some(rule::HOURS), "Saturday");
        assert_eq!(at(3 * 24 * 60 - 1), None, "Monday");
    }
}
