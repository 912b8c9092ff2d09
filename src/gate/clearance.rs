//! Where a policy meets the request flow: what waits for compliance lists, counts and tells.
//!
//! A request is judged twice, and both times before anything is reserved or sent to a chain: by what it is, before its
//! payment is verified; and by who pays, once that is proved. In shadow mode the same is found and told, only the first
//! finding of a request as it would have been refused for, and the request goes on; what it spends is counted all the
//! same. A route without a policy pays for none of this but a look whether it has one.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::policy::patterns::Armed;
use super::policy::rate::Buckets;
use super::policy::{Decision, Finding, Mode, Observer, Policy, RequestFacts, Rule};
use super::recent::Recent;
use super::refusal::{Denial, UNAVAILABLE_RETRY};
use super::{AdmitRequest, Context, Gate, Paid, Prepared, RECENT_MAX};
use crate::amount::Amount;
use crate::clock::UnixMillis;
use crate::ledger::payers::{Allowance, DailyLimit, Over, PayerLimits, Payers};
use crate::screening::{Screen, Verdict};
use crate::telemetry::Telemetry;
use crate::x402::{Account, Network};

/// What holds on all routes that have a policy.
#[derive(Clone, Default)]
pub struct PolicyOptions {
    /// Whether refusals are only told of.
    pub shadow: bool,
    /// Who knows compliance lists.
    pub screen: Option<Arc<dyn Screen>>,
    /// Who is told.
    pub observer: Option<Arc<dyn Observer>>,
}

impl fmt::Debug for PolicyOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PolicyOptions").field("shadow", &self.shadow).finish_non_exhaustive()
    }
}

/// How often a line is logged of one payer and rule: it can have as many refusals as it likes, for they cost nothing.
const LOG_EVERY: Duration = Duration::from_secs(60);

/// What the gate keeps for policies.
pub(super) struct Clearances {
    options: PolicyOptions,
    telemetry: Option<Arc<Telemetry>>,
    buckets: Buckets,
    /// What a line was lately logged of.
    logged: Arc<Recent<(Account, Rule)>>,
}

/// What was found of a request before its payment was looked at.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Judged {
    armed: Armed,
    /// In shadow mode: something was, so nothing more is told of this request.
    told: bool,
}

/// Whose money, how much, and where.
struct Payment<'a> {
    payer: Account,
    amount: Amount,
    network: &'a Network,
}

impl Clearances {
    pub(super) fn new(options: PolicyOptions, telemetry: Option<Arc<Telemetry>>) -> Self {
        Self { options, telemetry, buckets: Buckets::default(), logged: Recent::new(LOG_EVERY, RECENT_MAX) }
    }

    const fn mode(&self) -> Mode {
        if self.options.shadow { Mode::Shadow } else { Mode::Enforced }
    }

    /// Logs a finding for an operator. What anybody can have by the thousand is for debugging alone.
    fn log(&self, rule: Rule, route: &str, payment: Option<&Payment<'_>>, detail: &str, now: UnixMillis) {
        let said = match self.mode() {
            Mode::Enforced => "refused by policy",
            Mode::Shadow => "would be refused by policy, were it not in shadow mode",
        };
        let Some(Payment { payer, amount, network }) = payment else {
            return tracing::debug!(rule = rule.as_str(), route, detail, "{said}");
        };
        match self.logged.enter((*payer, rule), now) {
            Ok(mut entered) => {
                entered.keep(now);
                tracing::info!(rule = rule.as_str(), route, %payer, %amount, %network, detail, "{said}");
            }
            Err(_) => tracing::debug!(rule = rule.as_str(), route, %payer, %amount, %network, detail, "{said}"),
        }
    }
}

impl Gate {
    /// Judges a request by what it is.
    pub(super) fn judge(&self, request: &AdmitRequest<'_>) -> Result<Judged, Denial> {
        let Some(policy) = &request.route.policy else { return Ok(Judged::default()) };
        let facts = RequestFacts {
            path: request.target.split('?').next().unwrap_or_default(),
            host: request.host,
            headers: request.headers,
            now: self.clock.now(),
        };
        match policy.on_request(&facts) {
            Ok(armed) => Ok(Judged { armed, told: false }),
            Err(finding) => {
                self.found(finding, &request.route.name, None)?;
                Ok(Judged { armed: Armed::default(), told: true })
            }
        }
    }

    /// Judges a payer who is verified, and holds back what its limits count of the most that the request can cost.
    /// `in_channel` says that the charge will be at risk until it is claimed.
    pub(super) async fn clear(
        &self,
        context: &Context,
        payers: &Arc<Payers>,
        payer: Account,
        in_channel: bool,
    ) -> Result<Option<Allowance>, Denial> {
        match context.policy() {
            Some(policy) => Box::pin(self.clear_by(policy, context, payers, payer, in_channel)).await,
            None => Ok(None),
        }
    }

    async fn clear_by(
        &self,
        policy: &Policy,
        context: &Context,
        payers: &Arc<Payers>,
        payer: Account,
        in_channel: bool,
    ) -> Result<Option<Allowance>, Denial> {
        let payment = Payment { payer, amount: context.offer.offer.amount, network: context.network() };
        let mut told = context.judged.told;
        if let Err(finding) = self.judge_payer(policy, &payment, context.judged.armed, told).await {
            self.found(finding, context.prepared.name(), Some(&payment))?;
            told = true;
        }
        let limits = limits(policy, in_channel, self.clock.now());
        if limits.daily.is_none() && limits.exposure_max.is_none() {
            return Ok(None);
        }
        let over = match payers.hold(payer, payment.amount, &limits) {
            Ok(held) => return Ok(Some(held)),
            Err(over) => over,
        };
        if !told {
            self.found(self.over(policy, over), context.prepared.name(), Some(&payment))?;
        }
        Ok(Some(payers.hold_anyway(payer, payment.amount, &limits)))
    }

    /// Judges the payer of a call on a pass, which adds to no sum: the pack did.
    pub(super) async fn clear_pass(&self, prepared: &Prepared, judged: Judged, paid: &Paid) -> Result<(), Denial> {
        let Some(policy) = prepared.policy() else { return Ok(()) };
        let payment = Payment { payer: paid.payer, amount: paid.amount, network: &paid.network };
        match Box::pin(self.judge_payer(policy, &payment, judged.armed, judged.told)).await {
            Ok(()) => Ok(()),
            Err(finding) => self.found(finding, prepared.name(), Some(&payment)),
        }
    }

    /// All but the sums. What a request was found guilty of already is not looked for again: it would not have come
    /// this far.
    async fn judge_payer(
        &self,
        policy: &Policy,
        payment: &Payment<'_>,
        armed: Armed,
        told: bool,
    ) -> Result<(), Finding> {
        if told {
            return Ok(());
        }
        policy.on_payer(&payment.payer, payment.amount, armed)?;
        if let Some(screen) = self.clearances.options.screen.as_ref().filter(|_| policy.screened) {
            match screen.screen(&payment.payer).await {
                Verdict::Clear => {}
                Verdict::Listed => {
                    let detail = "this payer is not served here; nothing was charged";
                    return Err(Finding::new(Rule::Screening, detail));
                }
                Verdict::Unknown => {
                    let detail = "this payer cannot be checked at the moment; nothing was charged";
                    let finding = Finding::new(Rule::ScreeningUnavailable, detail);
                    return Err(finding.retry_after(UNAVAILABLE_RETRY));
                }
            }
        }
        if let Some(limit) = &policy.rate_limit {
            let taken = self.clearances.buckets.take(payment.payer, &limit.scope, &limit.rate, self.clock.now());
            taken.map_err(|wait| {
                let detail = "this payer asks more often than it may; nothing was charged";
                Finding::new(Rule::RateLimit, detail).retry_after(wait)
            })?;
        }
        Ok(())
    }

    fn over(&self, policy: &Policy, over: Over) -> Finding {
        match over {
            Over::Daily => {
                let detail = "this payer would spend more than it may in a day; nothing was charged";
                let now = self.clock.now();
                let tomorrow = policy.daily_limit.as_ref().map(|rule| rule.zone.until_tomorrow(now));
                Finding::new(Rule::DailyLimit, detail).retry_after(tomorrow.unwrap_or_default())
            }
            Over::Exposure => {
                let detail = "this payer's unredeemed charges are as high as they may be; nothing was charged";
                Finding::new(Rule::PayerExposure, detail).retry_after(UNAVAILABLE_RETRY)
            }
        }
    }

    /// Tells of a finding, and refuses for it unless in shadow mode. This is the one place through which every refusal
    /// by policy goes.
    fn found(&self, finding: Finding, route: &str, payment: Option<&Payment<'_>>) -> Result<(), Denial> {
        let Clearances { options, telemetry, .. } = &self.clearances;
        let mode = self.clearances.mode();
        let (rule, note) = (finding.rule, finding.note.as_deref().unwrap_or(finding.detail));
        if let Some(telemetry) = telemetry {
            telemetry.policy_refusals.with_label_values(&[rule.as_str(), mode.as_str()]).inc();
        }
        self.clearances.log(rule, route, payment, note, self.clock.now());
        if let Some(observer) = &options.observer {
            observer.on_decision(&Decision {
                at: self.clock.now(),
                rule,
                mode,
                route,
                payer: payment.map(|payment| payment.payer),
                amount: payment.map(|payment| payment.amount),
                network: payment.map(|payment| payment.network),
                detail: note,
            });
        }
        if rule == Rule::PayerExposure {
            self.ledger.press();
        }
        match mode {
            Mode::Shadow => Ok(()),
            Mode::Enforced => Err(Denial::policy(&finding)),
        }
    }
}

/// The limits of a payer's sums now. What is not paid by a channel is never at risk.
fn limits(policy: &Policy, in_channel: bool, now: UnixMillis) -> PayerLimits {
    let daily = policy.daily_limit.as_ref().map(|rule| DailyLimit {
        scope: Arc::clone(&rule.scope),
        day: rule.zone.day(now),
        max: rule.max,
    });
    PayerLimits { daily, exposure_max: policy.payer_exposure_max.filter(|_| in_channel) }
}
