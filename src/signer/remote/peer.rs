//! One cosigner: where it is, what it has said of itself, how it does.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Request};
use http_body_util::Full;
use hyper_rustls::{FixedServerNameResolver, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioTimer;
use parking_lot::Mutex;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::time::Instant;

use super::ASIDE;
use crate::http_client::home::Home;
use crate::http_client::{Connector, causes, read};
use crate::signer::rules::rule;
use crate::signer::wire::{BODY_BYTES_MAX, Call, Cause, Hello, INSTANCE, Introduction, Reply};
use crate::telemetry::Telemetry;

/// Idle connections to one cosigner.
const IDLE_MAX: usize = 8;
/// How long one is kept; the cosigner's own patience is longer.
const IDLE_LIFE: Duration = Duration::from_secs(60);
/// The longest text of a cosigner's that is shown.
const TEXT_CHARS_MAX: usize = 400;

/// Where a cosigner is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CosignerSettings {
    /// What it is called: the name in its certificate.
    pub name: String,
    /// Host and port.
    pub address: String,
    /// How long one call may take, connecting included.
    pub timeout: Duration,
}

/// Why a cosigner did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// It cannot be reached, or not in time.
    #[error("cannot be reached: {0}")]
    Unreachable(String),
    /// Its policy forbids it.
    #[error("refuses by rule {rule}: {detail}")]
    Refused {
        /// The rule, as it has written it.
        rule: String,
        /// What was asked and what is allowed.
        detail: String,
    },
    /// It has been started anew since it was asked who it is.
    #[error("has been started anew meanwhile")]
    Restarted,
    /// It could not.
    #[error("{what}")]
    Failed {
        /// Whose move it is.
        cause: Cause,
        /// What happened.
        what: String,
    },
    /// What it has sent is wrong: it lies, or its share is corrupt.
    #[error("has answered what is not true: {0}")]
    Lied(String),
}

impl PeerError {
    const fn label(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "unreachable",
            Self::Refused { .. } => "refused",
            Self::Restarted | Self::Failed { .. } => "failed",
            Self::Lied(_) => "lied",
        }
    }
}

/// One cosigner.
pub(super) struct Peer {
    settings: CosignerSettings,
    client: Client<Connector, Full<Bytes>>,
    telemetry: Option<Arc<Telemetry>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    introduction: Option<Introduction>,
    /// The run that it was last heard from.
    instance: Option<HeaderValue>,
    /// What the last word of it was: `None` before the first.
    last: Option<Result<(), String>>,
    /// Until when it is asked last, and what for.
    aside: Option<(Instant, String)>,
}

impl Peer {
    pub(super) fn new(settings: CosignerSettings, config: ClientConfig, telemetry: Option<Arc<Telemetry>>) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.enforce_http(false);
        connector.set_connect_timeout(Some(settings.timeout));
        let builder = HttpsConnectorBuilder::new().with_tls_config(config).https_only();
        let connector = match ServerName::try_from(settings.name.clone()) {
            // Whatever the address, the certificate has to be for this name.
            Ok(name) => builder
                .with_server_name_resolver(FixedServerNameResolver::new(name))
                .enable_http1()
                .wrap_connector(connector),
            Err(_) => builder.enable_http1().wrap_connector(connector),
        };
        let client = Client::builder(Home::here())
            .pool_idle_timeout(IDLE_LIFE)
            .pool_max_idle_per_host(IDLE_MAX)
            .pool_timer(TokioTimer::new())
            .build(Home::here().connecting(connector));
        Self { settings, client, telemetry, state: Mutex::default() }
    }

    pub(super) fn name(&self) -> &str {
        &self.settings.name
    }

    /// Asks how it does, and notes it.
    pub(super) async fn ask(&self) {
        if let Ok(introduction) = self.call(&Hello {}).await {
            self.state.lock().introduction = Some(introduction);
        }
    }

    /// What it has said of itself; it is asked where it has not yet.
    pub(super) async fn introduction(&self) -> Result<Introduction, PeerError> {
        if let Some(known) = self.introduced() {
            return Ok(known);
        }
        let introduction = self.call(&Hello {}).await?;
        self.state.lock().introduction = Some(introduction.clone());
        Ok(introduction)
    }

    pub(super) fn introduced(&self) -> Option<Introduction> {
        self.state.lock().introduction.clone()
    }

    /// What is wrong with it.
    pub(super) fn health(&self) -> Result<(), String> {
        let state = self.state.lock();
        match (&state.last, &state.aside) {
            (_, Some((until, why))) if *until > Instant::now() => Err(format!("put aside, {why}")),
            (Some(last), _) => last.clone(),
            (None, _) => Err("it was not heard of yet".to_owned()),
        }
    }

    /// Who is asked first: the lower, the sooner.
    pub(super) fn rank(&self) -> u8 {
        let state = self.state.lock();
        match (&state.last, &state.aside) {
            (_, Some((until, _))) if *until > Instant::now() => 4,
            (Some(Ok(())), _) => 1,
            (None, _) => 2,
            (Some(Err(_)), _) => 3,
        }
    }

    /// Notes that it has lied: an alarm, and it is asked last for a while.
    pub(super) fn lied(&self, what: &str) {
        tracing::error!(
            cosigner = self.name(),
            what,
            "a cosigner has answered what is not true and is put aside: find out who has that machine, or whether its share is corrupt"
        );
        self.count("lied");
        self.state.lock().aside = Some((Instant::now() + ASIDE, what.to_owned()));
    }

    /// Makes a call within the cosigner's time.
    pub(super) async fn call<C: Call>(&self, call: &C) -> Result<C::Answer, PeerError> {
        let begun = std::time::Instant::now();
        let answer = tokio::time::timeout(self.settings.timeout, self.exchange(call)).await;
        let answer = answer.unwrap_or_else(|_| {
            Err(PeerError::Unreachable(format!("no answer within {} ms", self.settings.timeout.as_millis())))
        });
        if let Some(telemetry) = &self.telemetry {
            let labels = [self.name(), C::PATH];
            telemetry.cosigner_seconds.with_label_values(&labels).observe(begun.elapsed().as_secs_f64());
        }
        self.note(answer.as_ref().err());
        answer
    }

    async fn exchange<C: Call>(&self, call: &C) -> Result<C::Answer, PeerError> {
        let unreachable = |what: String| PeerError::Unreachable(what);
        let body = serde_json::to_vec(call).map_err(|error| unreachable(error.to_string()))?;
        let request = Request::post(format!("https://{}{}", self.settings.address, C::PATH))
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| unreachable(error.to_string()))?;
        let response = self.client.request(request).await.map_err(|error| unreachable(causes(&error)))?;
        let status = response.status();
        self.same_run(response.headers().get(INSTANCE), C::PATH == Hello::PATH)?;
        let body = read(response, BODY_BYTES_MAX).await.map_err(unreachable)?;
        match serde_json::from_slice(&body) {
            Ok(Reply::Done(done)) => Ok(done),
            Ok(Reply::Refused { rule, detail }) => Err(PeerError::Refused { rule, detail: short(&detail) }),
            Ok(Reply::Failed { cause, what }) => Err(PeerError::Failed { cause, what: short(&what) }),
            Err(_) if !status.is_success() => {
                Err(PeerError::Unreachable(format!("{status}: {}", short(&String::from_utf8_lossy(&body)))))
            }
            Err(error) => Err(PeerError::Lied(format!("an answer that cannot be read: {error}"))),
        }
    }

    /// Forgets what it has said of itself where that was before a restart. What was asked on the strength of it has to be
    /// begun again, or a share of another generation would pass for a wrong one.
    fn same_run(&self, instance: Option<&HeaderValue>, hello: bool) -> Result<(), PeerError> {
        let mut state = self.state.lock();
        let before = std::mem::replace(&mut state.instance, instance.cloned());
        if before.is_none() || before == state.instance {
            return Ok(());
        }
        state.introduction = None;
        if hello { Ok(()) } else { Err(PeerError::Restarted) }
    }

    /// Notes what came of a call, and tells of what has changed.
    fn note(&self, error: Option<&PeerError>) {
        let down = match error {
            // It is there, and says so.
            None | Some(PeerError::Refused { .. } | PeerError::Restarted) => Ok(()),
            Some(PeerError::Failed { cause, what }) => match cause {
                Cause::Broken => Err(what.clone()),
                Cause::Stale | Cause::Peer | Cause::Banned | Cause::Busy | Cause::Malformed => Ok(()),
            },
            Some(error) => Err(error.to_string()),
        };
        if let Some(PeerError::Refused { rule, detail }) = error {
            tracing::error!(
                cosigner = self.name(),
                rule,
                detail,
                "a cosigner refuses: compare its policy with the configuration"
            );
            if let Some(telemetry) = &self.telemetry {
                telemetry.cosigner_refusals.with_label_values(&[self.name(), rule::named(rule)]).inc();
            }
        }
        match error {
            Some(PeerError::Lied(what)) => self.lied(what),
            Some(error) => self.count(error.label()),
            None => {}
        }
        let before = self.state.lock().last.replace(down.clone());
        match (&down, before) {
            (Ok(()), Some(Err(_))) => tracing::info!(cosigner = self.name(), "a cosigner is back"),
            (Ok(()), None) => tracing::info!(cosigner = self.name(), "a cosigner is there"),
            (Err(why), None | Some(Ok(()))) => {
                tracing::error!(
                    cosigner = self.name(),
                    why,
                    "a cosigner is gone: signing goes on while two shares are left"
                );
            }
            (Ok(()), Some(Ok(()))) | (Err(_), Some(Err(_))) => {}
        }
        if let Some(telemetry) = &self.telemetry {
            telemetry.cosigner_up.with_label_values(&[self.name()]).set(i64::from(down.is_ok()));
        }
    }

    fn count(&self, fault: &str) {
        if let Some(telemetry) = &self.telemetry {
            telemetry.cosigner_faults.with_label_values(&[self.name(), fault]).inc();
        }
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Peer({} at {})", self.settings.name, self.settings.address)
    }
}

/// A text of somebody else's, on one line.
fn short(text: &str) -> String {
    text.chars().take(TEXT_CHARS_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect()
}
