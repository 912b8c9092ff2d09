//! Which two sign: the best pair first, another where that one is slow or fails, and the first signature wins.

use std::fmt;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;

use super::{Member, PeerError};

/// How long the first pair is waited for before another one is asked as well.
const HEDGE_WAIT: Duration = Duration::from_millis(300);

/// Why an attempt came to nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Of this member, who is left out of what is still to be tried.
    Of(String, PeerError),
    /// Of this pair, not known of whom.
    Between([String; 2], String),
    /// Nobody's in particular: the time is over.
    Late(Duration),
}

impl Fault {
    pub(super) fn of(member: &Member, error: PeerError) -> Self {
        Self::Of(member.name().to_owned(), error)
    }

    pub(super) fn blamed(&self) -> Option<(&str, &PeerError)> {
        match self {
            Self::Of(name, error) => Some((name, error)),
            Self::Between(..) | Self::Late(_) => None,
        }
    }

    fn concerns(&self, pair: &[Member; 2]) -> bool {
        match self {
            Self::Of(name, _) => pair.iter().any(|member| member.name() == name),
            Self::Between(names, _) => pair.iter().all(|member| names.iter().any(|name| name == member.name())),
            Self::Late(_) => false,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Of(name, error) => write!(f, "{name}: {error}"),
            Self::Between([first, second], what) => write!(f, "{first} and {second}: {what}"),
            Self::Late(wait) => write!(f, "no signature within {} ms", wait.as_millis()),
        }
    }
}

/// Runs attempts of pairs, the first of which is the best, until one makes it. Attempts that are not needed any more are
/// dropped: what they have begun is used up or forgotten where it is.
///
/// # Errors
/// Every attempt's fault, in the order in which they came.
pub(super) async fn race<T, F>(
    pairs: Vec<[Member; 2]>,
    wait_max: Duration,
    attempt: impl Fn([Member; 2]) -> F,
) -> Result<T, Vec<Fault>>
where
    F: Future<Output = Result<T, Fault>>,
{
    let ends = Instant::now() + wait_max;
    let mut waiting = pairs.into_iter();
    let mut running = FuturesUnordered::new();
    let mut faults: Vec<Fault> = Vec::new();
    loop {
        let next = waiting.find(|pair| !faults.iter().any(|fault| fault.concerns(pair)));
        let more = next.is_some();
        running.extend(next.map(&attempt));
        let hedge = if more { Instant::now() + HEDGE_WAIT } else { ends };
        tokio::select! {
            done = running.next() => match done {
                Some(Ok(made)) => return Ok(made),
                Some(Err(fault)) => faults.push(fault),
                None => return Err(faults),
            },
            () = tokio::time::sleep_until(hedge.min(ends)) => {
                if Instant::now() >= ends {
                    faults.push(Fault::Late(wait_max));
                    return Err(faults);
                }
            }
        }
    }
}

/// An attempt, and another for each of the two that has been started anew since it was asked who it is.
///
/// # Errors
/// The last attempt's fault.
pub(super) async fn as_introduced<T, F>(pair: [Member; 2], attempt: impl Fn([Member; 2]) -> F) -> Result<T, Fault>
where
    F: Future<Output = Result<T, Fault>>,
{
    for _ in &pair {
        match attempt(pair.clone()).await {
            Err(Fault::Of(_, PeerError::Restarted)) => {}
            done => return done,
        }
    }
    attempt(pair).await
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::super::{pairs, peer::Peer};
    use super::*;

    fn peers() -> Vec<Arc<Peer>> {
        let settings = |name: &str| super::super::CosignerSettings {
            name: name.to_owned(),
            address: "127.0.0.1:1".to_owned(),
            timeout: Duration::from_secs(1),
        };
        let tls = || {
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let builder = rustls::ClientConfig::builder_with_provider(provider);
            let builder = builder.with_protocol_versions(&[&rustls::version::TLS13]).unwrap();
            builder.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth()
        };
        ["b", "c"].map(|name| Arc::new(Peer::new(settings(name), tls(), None))).to_vec()
    }

    fn names(pair: &[Member; 2]) -> String {
        format!("{}+{}", pair[0].name(), pair[1].name())
    }

    const GONE: fn() -> PeerError = || PeerError::Unreachable("gone".to_owned());

    #[tokio::test(start_paused = true)]
    async fn one_that_fails_is_left_out_at_once() {
        let asked = Mutex::new(Vec::new());
        let signed = race(pairs(true, &peers()), Duration::from_secs(10), |pair| {
            asked.lock().push(names(&pair));
            async move { if pair[1].name() == "b" { Err(Fault::of(&pair[1], GONE())) } else { Ok(names(&pair)) } }
        });
        assert_eq!(signed.await, Ok("this process+c".to_owned()));
        assert_eq!(*asked.lock(), ["this process+b", "this process+c"]);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_slow_is_not_waited_for() {
        let begun = Instant::now();
        let signed = race(pairs(true, &peers()), Duration::from_secs(10), |pair| async move {
            if pair[1].name() == "b" {
                std::future::pending::<()>().await;
            }
            Ok(names(&pair))
        });
        assert_eq!(signed.await, Ok("this process+c".to_owned()));
        assert_eq!(begun.elapsed(), HEDGE_WAIT, "by the paused clock");
    }

    #[tokio::test(start_paused = true)]
    async fn without_two_there_is_no_signature_and_each_is_named() {
        let failed: Result<(), _> = race(pairs(true, &peers()), Duration::from_secs(10), |pair| async move {
            Err(Fault::of(pair.iter().find(|member| member.name() != "this process").unwrap(), GONE()))
        })
        .await;
        assert_eq!(failed.unwrap_err(), [Fault::Of("b".to_owned(), GONE()), Fault::Of("c".to_owned(), GONE())]);
        let never: Result<(), _> =
            race(pairs(true, &peers()), Duration::from_secs(10), |_| std::future::pending()).await;
        assert!(matches!(never.unwrap_err()[..], [Fault::Late(_)]), "the wait has an end");
        let nobody: Result<(), _> = race(Vec::new(), Duration::from_secs(10), |_| std::future::pending()).await;
        assert_eq!(nobody, Err(Vec::new()));
    }
}
