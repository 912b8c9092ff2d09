//! What operators see and do: metrics brought up to date, the parts' health, settlement on demand.

use std::sync::Arc;

use serde_json::{Value, json};

use super::background::Background;
use super::evm::EvmAccount;
use super::{Account, Accounts, audit, observe};
use crate::admin::{Admin, Part};
use crate::amount::Amount;
use crate::audit::Recorder;
use crate::audit::log::AuditLog;
use crate::chain::rpc::EndpointHealth;
use crate::config::Config;
use crate::ledger::Ledger;
use crate::ledger::channel::{Evm, Family, Seller};
use crate::scheme::evm::EvmSeller;
use crate::settlement::evm::EvmBatchReport;
use crate::settlement::{self, Filter};
use crate::signer::remote::CosignerHealth;
use crate::telemetry::{Telemetry, amount_value};

/// What settling on demand did.
#[derive(Clone, Debug, Default)]
pub struct Settled {
    /// A line for each batch, up to a thousand of a network's.
    pub lines: Vec<String>,
    /// How many channels or batches are in trouble.
    pub failures: usize,
}

/// What operators see and start.
pub(super) struct Operated<'a> {
    pub(super) telemetry: &'a Arc<Telemetry>,
    pub(super) ledger: &'a Arc<Ledger>,
    pub(super) evm: Option<&'a Arc<Ledger<Evm>>>,
    pub(super) accounts: &'a Arc<Accounts>,
    pub(super) background: &'a Background,
    pub(super) config: &'a Config,
    pub(super) log: Option<&'a Arc<AuditLog>>,
}

/// The admin side of a merchant.
pub(super) fn admin(operated: Operated<'_>) -> Admin {
    let Operated { telemetry, ledger, evm, accounts, background, config, log } = operated;
    telemetry.exposure_max.set(amount_value(config.settlement.exposure_max));
    let refresh = {
        let (telemetry, ledger, evm) = (Arc::clone(telemetry), Arc::clone(ledger), evm.cloned());
        let accounts = Arc::clone(accounts);
        move || {
            let mut sums = Sums::of(&ledger);
            if let Some(evm) = &evm {
                sums.add(&Sums::of(evm));
            }
            sums.show(&telemetry);
            telemetry.signer_up.set(i64::from(accounts.signers().all(|state| state.is_ok())));
            let mut status = observe::SettlementStatus::default();
            accounts.svm.iter().for_each(|account| status.add(&account.settlement.status()));
            accounts.evm.iter().for_each(|account| status.add_evm(&account.settlement.status()));
            status.show(&telemetry);
        }
    };
    let parts = {
        let (ledger, evm, accounts) = (Arc::clone(ledger), evm.cloned(), Arc::clone(accounts));
        let log = log.cloned();
        move || {
            let state = ledger.health().and_then(|()| evm.as_ref().map_or(Ok(()), |evm| evm.health()));
            let mut parts = vec![Part { name: "ledger", vital: true, state }];
            if let Some(log) = &log {
                let state = log.health().map_err(|error| error.to_string());
                parts.push(Part { name: "audit", vital: true, state });
            }
            accounts.svm.iter().for_each(|account| svm_parts(account, &mut parts));
            accounts.evm.iter().for_each(|account| evm_parts(account, &mut parts));
            parts.extend(accounts.cosigners.as_ref().map(|cosigners| Part {
                name: "cosigners",
                vital: false,
                state: cosigners_state(&cosigners.health()),
            }));
            parts
        }
    };
    let settle = {
        let (accounts, background, log) = (Arc::clone(accounts), background.clone(), log.cloned());
        move || -> crate::admin::Settled {
            let (accounts, background, log) = (Arc::clone(&accounts), background.clone(), log.clone());
            Box::pin(async move {
                audit::admin(log.as_ref(), "settle").await.map_err(|error| error.to_string())?;
                let settled = settle_all(&accounts, &background).await;
                let lines: Vec<Value> = settled.lines.iter().map(|line| json!(line)).collect();
                Ok(json!({ "lines": lines, "failures": settled.failures }))
            })
        }
    };
    Admin {
        telemetry: Arc::clone(telemetry),
        ledger: Arc::clone(ledger),
        evm: evm.cloned(),
        parts: Box::new(parts),
        refresh: Box::new(refresh),
        settle: Box::new(settle),
    }
}

/// What the ledgers hold together.
struct Sums {
    channels: usize,
    reservations: usize,
    answers: usize,
    answers_bytes: u64,
    passes: usize,
    exposure: Amount,
    largest: Amount,
}

impl Sums {
    fn of<F: Family>(ledger: &Ledger<F>) -> Self {
        let ((channels, reservations), (answers, answers_bytes)) = (ledger.counts(), ledger.answers());
        let exposure = ledger.exposure();
        let (total, largest) = (exposure.total, exposure.largest);
        let passes = ledger.pass_count();
        Self { channels, reservations, answers, answers_bytes, passes, exposure: total, largest }
    }

    /// The exposure is one for all ledgers already.
    fn add(&mut self, other: &Self) {
        self.channels = self.channels.saturating_add(other.channels);
        self.reservations = self.reservations.saturating_add(other.reservations);
        self.answers = self.answers.saturating_add(other.answers);
        self.answers_bytes = self.answers_bytes.saturating_add(other.answers_bytes);
        self.passes = self.passes.saturating_add(other.passes);
        self.largest = self.largest.max(other.largest);
    }

    fn show(&self, telemetry: &Telemetry) {
        let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        telemetry.channels.set(count(self.channels));
        telemetry.reservations.set(count(self.reservations));
        telemetry.answers.set(count(self.answers));
        telemetry.answers_bytes.set(i64::try_from(self.answers_bytes).unwrap_or(i64::MAX));
        telemetry.passes.set(count(self.passes));
        telemetry.exposure.set(amount_value(self.exposure));
        telemetry.exposure_largest.set(amount_value(self.largest));
    }
}

fn svm_parts(account: &Account, parts: &mut Vec<Part>) {
    let held = account.settlement.held();
    parts.push(Part { name: "signer", vital: false, state: account.signer.health() });
    parts.push(Part { name: "chain", vital: false, state: endpoints_state(&account.rpc.health()) });
    parts.push(Part { name: "settlement", vital: false, state: held.map_or(Ok(()), Err) });
}

fn evm_parts(account: &EvmAccount, parts: &mut Vec<Part>) {
    let held = account.settlement.held();
    parts.push(Part { name: "evm signer", vital: false, state: account.signer.health() });
    parts.push(Part { name: "evm chain", vital: false, state: account.chain_state() });
    if let Some(state) = account.facilitator_state() {
        parts.push(Part { name: "facilitator", vital: false, state });
    }
    parts.push(Part { name: "evm settlement", vital: false, state: held.map_or(Ok(()), Err) });
}

/// What is wrong with any of the cosigners, by name.
fn cosigners_state(health: &[CosignerHealth]) -> Result<(), String> {
    let wrong = |it: &CosignerHealth| it.state.as_ref().err().map(|why| format!("{}: {why}", it.name));
    let wrong: Vec<_> = health.iter().filter_map(wrong).collect();
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ")) }
}

/// What is wrong where none of several endpoints answers.
pub(super) fn endpoints_state(endpoints: &[EndpointHealth]) -> Result<(), String> {
    if endpoints.is_empty() || endpoints.iter().any(|endpoint| endpoint.healthy) {
        return Ok(());
    }
    let names: Vec<_> = endpoints.iter().map(|endpoint| endpoint.name.as_str()).collect();
    Err(format!("no endpoint answers: {}", names.join(", ")))
}

/// Settles what is owed now, on every network, where settlement runs.
pub(super) async fn settle_all(accounts: &Arc<Accounts>, background: &Background) -> Settled {
    let accounts = Arc::clone(accounts);
    let settled = background.spawn(async move {
        let mut settled = Settled::default();
        for account in &accounts.svm {
            settle_svm(account, &mut settled).await;
        }
        for account in &accounts.evm {
            settle_evm(account, &mut settled).await;
        }
        settled
    });
    let failed = |error| Settled { lines: vec![format!("settlement broke off: {error}")], failures: 1 };
    let mut settled = settled.await.unwrap_or_else(failed);
    if settled.lines.is_empty() {
        settled.lines.push("nothing is owed".into());
    }
    settled
}

async fn settle_svm(account: &Account, settled: &mut Settled) {
    let report = account.settlement.settle_now(&Filter::All).await;
    for batch in report.batches.iter() {
        settled.lines.push(batch_line(batch, &account.seller));
    }
    settled.left_off(report.batches.left_off());
    let failures = [report.unknown(), report.stuck.len(), report.stuck_left_off];
    settled.failures = failures.into_iter().fold(settled.failures, usize::saturating_add);
    for stuck in &report.stuck {
        settled
            .lines
            .push(format!("channel {} waits after {} failures: {}", stuck.channel, stuck.attempts, stuck.error));
    }
    settled.held(report.held.as_deref());
}

async fn settle_evm(account: &EvmAccount, settled: &mut Settled) {
    let report = account.settlement.settle_now(&None).await;
    for batch in report.batches.iter() {
        // A payout that found nothing is no news.
        if let settlement::Outcome::Confirmed { moved } = &batch.outcome
            && moved.is_zero()
        {
            continue;
        }
        let seller = account.sellers.iter().find(|seller| seller.token == batch.token);
        settled.lines.push(evm_batch_line(batch, seller.or(account.sellers.first())));
    }
    settled.left_off(report.batches.left_off());
    let failures = [report.batches.ends().unknown, report.stuck.len(), report.stuck_left_off];
    settled.failures = failures.into_iter().fold(settled.failures, usize::saturating_add);
    for (channel, error) in &report.stuck {
        settled.lines.push(format!("channel {channel} waits after a failure: {error}"));
    }
    settled.held(report.held.as_deref());
}

impl Settled {
    /// Says how many batches no line is about.
    fn left_off(&mut self, batches: usize) {
        if batches > 0 {
            self.lines.push(format!("and {batches} batch(es) more"));
        }
    }

    fn held(&mut self, held: Option<&str>) {
        if let Some(why) = held {
            self.lines.push(format!("nothing new is started: {why}"));
            self.failures = self.failures.saturating_add(1);
        }
    }
}

fn batch_line(batch: &settlement::BatchReport, seller: &Seller) -> String {
    let kind = format!("{:?}", batch.kind).to_lowercase();
    let channels = batch.lines.len();
    let signature = batch.signature.map(|s| s.to_string().chars().take(12).collect::<String>()).unwrap_or_default();
    let millis = batch.timings.sign.as_millis();
    let what = format!("{kind} of {channels} channel(s)");
    match &batch.outcome {
        settlement::Outcome::Confirmed { moved } => format!(
            "{what}: {} {}, signed by two of three shares in {millis} ms, confirmed as {signature}…",
            seller.asset.format_decimal(*moved),
            seller.asset.symbol
        ),
        other => failed_line(&what, other),
    }
}

fn evm_batch_line(batch: &EvmBatchReport, seller: Option<&Arc<EvmSeller>>) -> String {
    let what = match batch.lines.len() {
        0 => "payout".to_owned(),
        channels => format!("claim of {channels} channel(s)"),
    };
    match (&batch.outcome, seller) {
        (settlement::Outcome::Confirmed { moved }, Some(seller)) => {
            let hash = batch.transaction.map(|hash| hash.to_string().chars().take(14).collect::<String>());
            format!(
                "{what}: {} {}, confirmed as {}…",
                seller.asset.format_decimal(*moved),
                seller.asset.symbol,
                hash.unwrap_or_default()
            )
        }
        (other, _) => failed_line(&what, other),
    }
}

fn failed_line(what: &str, outcome: &settlement::Outcome) -> String {
    match outcome {
        settlement::Outcome::Confirmed { moved } => format!("{what}: {moved} confirmed"),
        settlement::Outcome::Dropped { why } => format!("{what} dropped: {why}"),
        settlement::Outcome::Unknown { why } => format!("{what} sent, not yet confirmed: {why}"),
        settlement::Outcome::Refused { why } => format!("{what} not signed: {why}"),
    }
}
