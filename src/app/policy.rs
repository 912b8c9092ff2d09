//! What policies need of the outside: compliance lists, and whom to tell.

use std::fmt::Display;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Start, StartError};
use crate::audit::Entry;
use crate::audit::log::AuditLog;
use crate::config::{Config, ScreeningServiceConfig};
use crate::gate::PolicyOptions;
use crate::gate::policy::{Decision, Observer};
use crate::ledger::Purse;
use crate::screening::file::FileScreen;
use crate::screening::http::{HttpScreen, HttpScreenOptions};
use crate::screening::{Screen, Screens};
use crate::telemetry::Telemetry;

/// What holds on all routes.
pub(super) fn options(
    config: &Config,
    telemetry: &Arc<Telemetry>,
    log: Option<&Arc<AuditLog>>,
) -> Result<PolicyOptions, StartError> {
    let screen = screen(config, telemetry)?;
    if config.policy.shadow {
        tracing::warn!("policy.shadow: what policy refuses is only counted and logged, and served all the same");
    }
    let observer = log.map(|log| -> Arc<dyn Observer> { Arc::new(Recorded::new(log)) });
    Ok(PolicyOptions { shadow: config.policy.shadow, screen, observer })
}

/// How many refusals a second of requests that no payer stands behind the record takes.
const STRANGERS_PER_SECOND_MAX: u32 = 10;

/// Tells the audit record of refusals. None is waited for. Those of requests that no payer stands behind cost nobody
/// anything and may come in any number, which would fill the disk: so many a second are recorded, and of the rest how many
/// there were.
struct Recorded {
    log: Arc<AuditLog>,
    /// The second, and how many of it were recorded.
    strangers: Mutex<(i64, u32)>,
}

impl Recorded {
    fn new(log: &Arc<AuditLog>) -> Self {
        Self { log: Arc::clone(log), strangers: Mutex::default() }
    }

    fn has_room(&self, second: i64) -> bool {
        let mut strangers = self.strangers.lock();
        if strangers.0 != second {
            *strangers = (second, 0);
        }
        strangers.1 = strangers.1.saturating_add(1);
        strangers.1 <= STRANGERS_PER_SECOND_MAX
    }
}

impl Observer for Recorded {
    fn on_decision(&self, decision: &Decision<'_>) {
        if decision.payer.is_none() && !self.has_room(decision.at.seconds()) {
            return self.log.pass_over();
        }
        let payer = decision.payer.as_ref().map(|payer| -> &dyn Display { payer });
        let (rule, mode) = (decision.rule.as_str(), decision.mode.as_str());
        self.log.note(Entry::refusal(rule, mode, decision.route, payer, decision.amount));
    }
}

/// What payers have at risk is summed up where that has a limit.
pub(super) fn purse(config: &Config) -> Arc<Purse> {
    if config.policy.payer_exposure_max.is_some() { Purse::by_payer() } else { Purse::new() }
}

/// The compliance lists, the file first: it costs nothing to ask.
fn screen(config: &Config, telemetry: &Arc<Telemetry>) -> Result<Option<Arc<dyn Screen>>, StartError> {
    let Some(screening) = &config.policy.screening else { return Ok(None) };
    let mut screens: Vec<Arc<dyn Screen>> = Vec::new();
    if let Some(file) = &screening.file {
        let screen = FileScreen::open(file, Arc::clone(telemetry)).start("policy.screening.file")?;
        tracing::info!(file = %file.display(), addresses = screen.addresses(), "payers are screened by a file");
        screens.push(screen);
    }
    if let Some(service) = &screening.service {
        let screen = HttpScreen::new(service_options(service), Arc::clone(telemetry));
        screens.push(screen.start("policy.screening.service")?);
    }
    Ok(Some(Arc::new(Screens(screens))))
}

fn service_options(service: &ScreeningServiceConfig) -> HttpScreenOptions {
    HttpScreenOptions {
        url: service.url.uri().to_string(),
        headers: service.headers.clone(),
        timeout: service.timeout,
        keep: service.cache,
        listed_at: service.listed_at.clone(),
        refuse_unknown: service.refuse_unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::log::Options;

    #[test]
    fn strangers_cannot_fill_the_record() {
        let place = tempfile::tempdir().unwrap();
        let log = Arc::new(AuditLog::open(place.path(), Options::default()).unwrap());
        let recorded = Recorded::new(&log);
        let room = |second| (0..50).filter(|_| recorded.has_room(second)).count();
        assert_eq!((room(7), room(7), room(8)), (10, 0, 10));
    }
}
