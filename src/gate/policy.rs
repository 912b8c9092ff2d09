//! Which paid requests a merchant wants: what a policy says of a request, of its payer and of the amount.
//!
//! Not what a signer may sign, which is [`crate::policy`]'s. Everything below `gate/policy/` is a function of state,
//! request and given time; what waits and counts is `gate/clearance.rs`. A refusal is for the first of these that holds:
//!
//! | rule | whose move | known from |
//! |---|---|---|
//! | `block_patterns` without payer | forbidden | the request, before its payment is looked at |
//! | `time_window` | forbidden until it opens | the same |
//! | `blocklist` | forbidden | the payer, verified |
//! | `allowlist` | forbidden | the same |
//! | `block_patterns` with payer | forbidden | the same |
//! | `per_request_cap` | forbidden | the most that the request can cost |
//! | `screening` | forbidden, or busy where nobody can be asked | the payer, verified |
//! | `rate_limit` | too much, for a moment | the payer's requests |
//! | `daily_limit` | too much, until tomorrow | what was charged and is held back |
//! | `payer_exposure_max` | busy, until it is settled | the same |
//!
//! Promises: nothing is reserved, sent to a chain or charged for a request that is refused; a payer's limits are used up
//! by nobody but who has proved to be that payer; refunds and answers that were paid for before are never refused.

pub mod calendar;
pub mod glob;
pub mod patterns;
pub mod rate;

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;

use self::calendar::{Window, Zone};
use self::patterns::{Armed, BlockPattern};
use self::rate::Rate;
use crate::amount::Amount;
use crate::clock::UnixMillis;
use crate::x402::{Account, Network, Reason};

/// What holds on a route.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Who must not look so.
    pub block_patterns: Arc<[BlockPattern]>,
    /// When requests are served; always where it is empty.
    pub time_window: Arc<[Window]>,
    /// Who is not served.
    pub blocklist: Option<Accounts>,
    /// Who alone is served.
    pub allowlist: Option<Accounts>,
    /// The most that one request may cost.
    pub per_request_cap: Option<Amount>,
    /// How often a payer may ask.
    pub rate_limit: Option<RateLimit>,
    /// How much a payer may spend in a day.
    pub daily_limit: Option<DailyRule>,
    /// The most that may be charged to a payer and not yet claimed, over all its channels. Needs a ledger whose purse
    /// counts by payer ([`crate::ledger::Purse::by_payer`]).
    pub payer_exposure_max: Option<Amount>,
    /// Whether payers are screened, where the gate has lists to look in.
    pub screened: bool,
}

/// A list of payers.
#[derive(Clone, PartialEq, Eq)]
pub struct Accounts(Arc<HashSet<Account>>);

impl Accounts {
    /// Whether a payer is in it.
    #[must_use]
    pub fn contains(&self, payer: &Account) -> bool {
        self.0.contains(payer)
    }
}

impl FromIterator<Account> for Accounts {
    fn from_iter<T: IntoIterator<Item = Account>>(accounts: T) -> Self {
        Self(Arc::new(accounts.into_iter().collect()))
    }
}

impl fmt::Debug for Accounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} accounts", self.0.len())
    }
}

/// A rate, and what is counted together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// Names the limit.
    pub scope: Arc<str>,
    /// How often.
    pub rate: Rate,
}

/// A sum for each day, and what is counted together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DailyRule {
    /// Names the limit. What was spent is stored under this name.
    pub scope: Arc<str>,
    /// The most.
    pub max: Amount,
    /// Where a day begins.
    pub zone: Zone,
}

/// What a policy's rules for requests look at.
#[derive(Clone, Copy, Debug)]
pub struct RequestFacts<'a> {
    /// The path, as it was sent, without query.
    pub path: &'a str,
    /// The host that it was sent to, perhaps with its port.
    pub host: Option<&'a str>,
    /// Its headers.
    pub headers: &'a HeaderMap,
    /// When.
    pub now: UnixMillis,
}

macro_rules! rules {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $reason:ident;)*) => {
        /// A rule of a policy, in order of precedence.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Rule { $($(#[$doc])* $name,)* }

        impl Rule {
            /// Every rule.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Its name, in metrics, logs and records.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// The code of its refusal.
            #[must_use]
            pub const fn reason(self) -> Reason {
                match self { $(Self::$name => Reason::$reason,)* }
            }
        }
    };
}

rules! {
    /// The request, or its payer, looks like one that is blocked.
    BlockPatterns = "block_patterns", PolicyBlockPatterns;
    /// Nothing is served at this time.
    TimeWindow = "time_window", PolicyTimeWindow;
    /// The payer is on the blocklist.
    Blocklist = "blocklist", PolicyBlocklist;
    /// The payer is not on the allowlist.
    Allowlist = "allowlist", PolicyAllowlist;
    /// The request may cost more than one may.
    PerRequestCap = "per_request_cap", PolicyPerRequestCap;
    /// The payer is on a compliance list.
    Screening = "screening", PolicyScreening;
    /// Whether it is cannot be found out.
    ScreeningUnavailable = "screening_unavailable", PolicyScreeningUnavailable;
    /// The payer asks too often.
    RateLimit = "rate_limit", PolicyRateLimit;
    /// The payer has spent what it may spend today.
    DailyLimit = "daily_limit", PolicyDailyLimit;
    /// The payer owes as much as it may.
    PayerExposure = "payer_exposure_max", PolicyPayerExposure;
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a rule found wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The rule.
    pub rule: Rule,
    /// When the same request may pass, where time alone can help.
    pub retry_after: Option<Duration>,
    /// What is wrong, in words; safe to show to the client.
    pub detail: &'static str,
    /// What an operator needs beside it, such as which pattern it was.
    pub note: Option<String>,
}

impl Finding {
    /// What time alone does not help.
    pub(super) const fn new(rule: Rule, detail: &'static str) -> Self {
        Self { rule, retry_after: None, detail, note: None }
    }

    pub(super) const fn retry_after(self, after: Duration) -> Self {
        let mut finding = self;
        finding.retry_after = Some(after);
        finding
    }

    fn note(self, note: String) -> Self {
        Self { note: Some(note), ..self }
    }
}

impl Policy {
    /// Judges a request before its payment is looked at; what comes back is needed to judge its payer.
    ///
    /// # Errors
    /// The first [`Finding`].
    pub fn on_request(&self, request: &RequestFacts<'_>) -> Result<Armed, Finding> {
        let armed = patterns::block_request(&self.block_patterns, request).map_err(blocked)?;
        if !self.time_window.is_empty() && !self.time_window.iter().any(|window| window.is_open(request.now)) {
            let opens = self.time_window.iter().map(|window| window.until_open(request.now)).min();
            let finding = Finding::new(Rule::TimeWindow, "requests are not served at this time");
            return Err(finding.retry_after(opens.unwrap_or_default()));
        }
        Ok(armed)
    }

    /// Judges a payer who is verified, and the most that its request can cost.
    ///
    /// # Errors
    /// The first [`Finding`].
    pub fn on_payer(&self, payer: &Account, amount: Amount, armed: Armed) -> Result<(), Finding> {
        let not_served = "this payer is not served here; nothing was charged";
        if self.blocklist.as_ref().is_some_and(|list| list.contains(payer)) {
            return Err(Finding::new(Rule::Blocklist, not_served));
        }
        if self.allowlist.as_ref().is_some_and(|list| !list.contains(payer)) {
            return Err(Finding::new(Rule::Allowlist, not_served));
        }
        if let Some(at) = patterns::block_payer(&self.block_patterns, armed, payer) {
            return Err(blocked(at));
        }
        if self.per_request_cap.is_some_and(|cap| amount > cap) {
            return Err(Finding::new(Rule::PerRequestCap, "the request may cost more than one request may cost here"));
        }
        Ok(())
    }
}

fn blocked(at: usize) -> Finding {
    let detail = "requests like this one are not served here; nothing was charged";
    Finding::new(Rule::BlockPatterns, detail).note(format!("block_patterns[{at}]"))
}

/// Whether a refusal is made, or only told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It is made.
    Enforced,
    /// It would have been made.
    Shadow,
}

impl Mode {
    /// Its name, in metrics, logs and records.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Enforced => "enforced",
            Self::Shadow => "shadow",
        }
    }
}

/// A refusal by policy, made or only told of.
#[derive(Clone, Copy, Debug)]
pub struct Decision<'a> {
    /// When.
    pub at: UnixMillis,
    /// By which rule.
    pub rule: Rule,
    /// Whether it was made.
    pub mode: Mode,
    /// The route's name.
    pub route: &'a str,
    /// Who would have paid; `None` where the request was judged before its payment was looked at.
    pub payer: Option<Account>,
    /// The most that it could have cost, in atomic units.
    pub amount: Option<Amount>,
    /// Where it would have been paid.
    pub network: Option<&'a Network>,
    /// What was found, for an operator.
    pub detail: &'a str,
}

/// Told of every refusal by policy, and of every one that would have been made.
pub trait Observer: Send + Sync {
    /// Is called on the request's path: it must not wait.
    fn on_decision(&self, decision: &Decision<'_>);
}

#[cfg(test)]
mod tests;
