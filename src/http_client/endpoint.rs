//! One service elsewhere: where it is, how it does, and what of its address is a secret.
//!
//! Providers put keys into the path, the query or the user part of a URL, so only the host is ever shown: in logs,
//! metrics, errors and the health view. What an endpoint says itself is scrubbed of these parts as well.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderValue, Uri};
use parking_lot::Mutex;
use tokio::time::Instant;

/// The longest error text of an endpoint that is kept.
const ERROR_TEXT_BYTES_MAX: usize = 300;
/// The shortest part of a URL that is taken for a secret; shorter ones are words such as `v2`.
const SECRET_BYTES_MIN: usize = 8;

/// How an endpoint does, for the status page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointHealth {
    /// Its host, without any secret.
    pub name: String,
    /// Whether it is asked in its turn; else only after all others.
    pub healthy: bool,
    /// Failures since its last answer.
    pub consecutive_failures: u32,
    /// What went wrong last.
    pub last_error: Option<String>,
}

/// What is wrong with an endpoint's URL. Never repeats it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadEndpoint(pub &'static str);

/// One endpoint.
pub struct Endpoint {
    /// Its host, and a number where another one has the same.
    pub name: String,
    /// Where requests go.
    pub uri: Uri,
    /// From the URL's user part.
    pub authorization: Option<HeaderValue>,
    secrets: Vec<String>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    failures: u32,
    last_error: Option<String>,
    /// Asked only after all others until then.
    rests_until: Option<Instant>,
    /// Not asked at all until then: it said so.
    barred_until: Option<Instant>,
}

impl Endpoint {
    /// Reads an endpoint's URL.
    ///
    /// # Errors
    /// [`BadEndpoint`], which completes "the endpoint ...".
    pub fn parse(text: &str) -> Result<Self, BadEndpoint> {
        let wrong = BadEndpoint;
        let uri: Uri = text.parse().map_err(|_| wrong("is not a URL"))?;
        let scheme = uri.scheme_str().filter(|scheme| matches!(*scheme, "http" | "https"));
        let scheme = scheme.ok_or(wrong("must begin with http:// or https://"))?;
        let authority = uri.authority().ok_or(wrong("names no host"))?.as_str();
        let (user, host) = authority.rsplit_once('@').map_or((None, authority), |(user, host)| (Some(user), host));
        let authorization = user.map(|user| HeaderValue::try_from(format!("Basic {}", STANDARD.encode(user))));
        let mut authorization = authorization.transpose().map_err(|_| wrong("has a user part that cannot be sent"))?;
        if let Some(value) = &mut authorization {
            value.set_sensitive(true);
        }
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let secrets = path.split(['/', '?', '&', '=']).chain(user.into_iter().flat_map(|user| user.split(':')));
        let secrets = secrets.filter(|part| part.len() >= SECRET_BYTES_MIN).map(str::to_owned).collect();
        let uri = format!("{scheme}://{host}{path}").parse().map_err(|_| wrong("is not a URL"))?;
        Ok(Self { name: host.to_owned(), uri, authorization, secrets, state: Mutex::default() })
    }

    /// Keeps another text out of what is shown: a token that is sent along.
    pub fn hide(&mut self, secret: &str) {
        if secret.len() >= SECRET_BYTES_MIN {
            self.secrets.push(secret.to_owned());
        }
    }

    /// A text of the endpoint's or about it, fit to be shown: short, on one line, without secrets.
    #[must_use]
    pub fn scrub(&self, text: &str) -> String {
        let mut shown = text.to_owned();
        for secret in &self.secrets {
            shown = shown.replace(secret.as_str(), "***");
        }
        let mut end = shown.len().min(ERROR_TEXT_BYTES_MAX);
        while !shown.is_char_boundary(end) {
            end = end.saturating_sub(1);
        }
        shown.truncate(end);
        shown.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
    }

    /// Whether it is asked in its turn at `now`.
    #[must_use]
    pub fn is_healthy(&self, now: Instant) -> bool {
        self.state.lock().rests_until.is_none_or(|until| until <= now)
    }

    /// How long it asked to be left alone, seen from `now`.
    #[must_use]
    pub fn barred_for(&self, now: Instant) -> Option<Duration> {
        let left = self.state.lock().barred_until?.saturating_duration_since(now);
        (!left.is_zero()).then_some(left)
    }

    /// It answered.
    pub fn succeeded(&self) {
        *self.state.lock() = State::default();
    }

    /// It failed; after `failures_max` in a row it rests for `cool_down`.
    pub fn failed(&self, error: &str, failures_max: u32, cool_down: Duration) {
        let mut state = self.state.lock();
        state.failures = state.failures.saturating_add(1);
        state.last_error = Some(error.to_owned());
        if state.failures >= failures_max {
            state.rests_until = Instant::now().checked_add(cool_down);
        }
    }

    /// It asked to be left alone for a while.
    pub fn bar(&self, pause: Duration) {
        let mut state = self.state.lock();
        state.last_error = Some("rate limited".into());
        state.barred_until = Instant::now().checked_add(pause);
    }

    /// How it does.
    #[must_use]
    pub fn health(&self) -> EndpointHealth {
        let now = Instant::now();
        let healthy = self.is_healthy(now) && self.barred_for(now).is_none();
        let state = self.state.lock();
        EndpointHealth {
            name: self.name.clone(),
            healthy,
            consecutive_failures: state.failures,
            last_error: state.last_error.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_shows_no_secret() {
        let endpoint =
            Endpoint::parse("https://bob:hunter2pass@rpc.example.com:8899/v2/KEYKEYKEY123?api-key=abcdef123456")
                .unwrap();
        assert_eq!(endpoint.name, "rpc.example.com:8899");
        assert_eq!(endpoint.uri, "https://rpc.example.com:8899/v2/KEYKEYKEY123?api-key=abcdef123456");
        assert_eq!(endpoint.authorization.as_ref().unwrap().to_str().unwrap(), "Basic Ym9iOmh1bnRlcjJwYXNz");
        let said = endpoint.scrub("no such key KEYKEYKEY123,\nnor abcdef123456, bob:hunter2pass");
        assert_eq!(said, "no such key ***, nor ***, bob:***");
        assert!(endpoint.scrub(&"\u{e9}".repeat(1_000)).len() <= ERROR_TEXT_BYTES_MAX);
    }

    #[test]
    fn what_is_no_endpoint_is_refused_without_being_repeated() {
        for text in ["", "ftp://host/secretsecret", "secretsecret", "http://", "/secretsecret", "https:///x y"] {
            let Err(error) = Endpoint::parse(text) else { panic!("{text:?} was taken") };
            let shown = error.to_string();
            assert!(!shown.is_empty() && !shown.contains("secret"), "{shown}");
        }
    }
}
